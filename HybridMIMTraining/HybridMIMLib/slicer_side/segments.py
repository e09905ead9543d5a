"""A label array becomes a segment node in a MRML scene, and can be read back.

Arrays are (D, H, W) with the voxel axes (i, j, k); affines are 4x4, in mm, voxel (i, j, k) -> RAS, which is
what Slicer calls IJKToRAS.

The segments are built directly, as one label image shared by all of them, and not by
``ImportLabelmapToSegmentationNode``: that function needs a temporary label map node in the scene, reads label
``n`` as the ``n``-th id of a list instead of as a value, and applies a parent transform twice when label map
and segmentation do not have the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import HybridMIMError, LabelError

# Slicer's classes have no type information.
Node: TypeAlias = Any
Scene: TypeAlias = Any

BINARY_LABELMAP = "Binary labelmap"
"""What Slicer calls the representation of a segment that is an image."""
_TERMINOLOGY_TAG = "TerminologyEntry"


def segment_id(label_class: LabelClass) -> str:
    """The id of a class's segment; it stays the same when the user renames the segment."""
    return f"class_{label_class.label}"


def volume_node(scene: Scene, array: np.ndarray, affine: np.ndarray, name: str) -> Node:
    """Add a scalar volume to the scene.

    Oblique, left-handed and sheared affines are all kept to the last digit: MRML stores the length of each
    column as spacing and the rest as directions, which need not be at right angles.

    Args:
        array: (D, H, W), any number type; copied.
        affine: 4x4, mm, voxel -> RAS.

    Returns:
        A ``vtkMRMLScalarVolumeNode`` with display nodes.

    Raises:
        HybridMIMError: the array is not 3-D, or the affine has no inverse.
    """
    if array.ndim != 3:
        raise HybridMIMError(
            f"{name}: a volume needs three axes, this array has the shape {array.shape}",
            cure="Give one channel of the scan as (D, H, W).",
        )
    matrix = vtk_matrix(affine, name)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(fill_image(vtk.vtkImageData(), array))
    node.CreateDefaultDisplayNodes()
    join_subject_hierarchy(node, beside=None)
    return node


def segmentation_node(
    scene: Scene, volume_node: Node, labels: np.ndarray, classes: Sequence[LabelClass], name: str
) -> Node:
    """Add a segmentation with one segment per class, on the volume's grid and under its parent transform.

    Args:
        labels: (D, H, W) on the volume's grid, whole numbers below 256; 0 is background.
        classes: every value in ``labels`` must be one of these; one without a voxel gives an empty segment.

    Returns:
        A ``vtkMRMLSegmentationNode`` with display nodes; segment ids as :func:`segment_id` names them.

    Raises:
        LabelError: the array is not on the volume's grid, or holds a value that is no class.
    """
    _check_labels(labels, volume_node, classes, name)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    # The parent comes first: the reference geometry is stored relative to it.
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    _add_segments(node.GetSegmentation(), _label_image(labels, volume_node), classes)
    node.CreateDefaultDisplayNodes()
    join_subject_hierarchy(node, beside=volume_node)
    return node


def label_array(segmentation_node: Node, volume_node: Node, classes: Sequence[LabelClass]) -> np.ndarray:
    """The segments as one label array on the volume's grid; where segments overlap, the later class wins.

    The segmentation may lie under another parent transform than the volume.

    Returns:
        (D, H, W) uint8, values as in ``classes``; classes that the segmentation lacks have no voxel.
    """
    segmentation = segmentation_node.GetSegmentation()
    present = [c for c in classes if segmentation.GetSegment(segment_id(c)) is not None]
    values = np.array([0, *(c.label for c in present)], dtype=np.uint8)
    if not present:
        return np.zeros(volume_node.GetImageData().GetDimensions(), dtype=np.uint8)
    return values[segment_indices(segmentation_node, volume_node, [segment_id(c) for c in present])]


def segment_indices(segmentation_node: Node, volume_node: Node, ids: Sequence[str]) -> np.ndarray:
    """Which of the segments each voxel of a volume belongs to, whatever the segments are called.

    Returns:
        (D, H, W) whole numbers: n stands for the n-th id, from 1; 0 for none.
    """
    scene = segmentation_node.GetScene()
    target = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "temporary")
    try:
        names = vtk.vtkStringArray()
        for identifier in ids:
            names.InsertNextValue(identifier)
        export = slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode
        if not export(segmentation_node, names, target, volume_node):
            raise HybridMIMError(
                f"{segmentation_node.GetName()}: Slicer could not bring it onto {volume_node.GetName()}",
                cure="Check that the segmentation has segments and that both lie in one scene.",
            )
        # A copy: the image goes away with the node.
        return image_array(target.GetImageData()).copy()
    finally:
        _remove_with_display(target)


def ijk_to_ras(node: Node) -> np.ndarray:
    """A volume's 4x4 affine, mm, voxel -> RAS, without the parent transform."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def image_array(image: Any) -> np.ndarray:
    """The voxels of a ``vtkImageData`` as a (D, H, W) view; VTK itself runs through i first, k last."""
    dimensions = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(dimensions[::-1]).transpose(2, 1, 0)


def vtk_matrix(affine: np.ndarray, name: str) -> Any:
    """A ``vtkMatrix4x4`` of an affine.

    Raises:
        HybridMIMError: it has no inverse.
    """
    affine = np.asarray(affine, dtype=float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise HybridMIMError(
            f"{name}: its affine cannot place voxels in space: {affine.tolist()}",
            cure="Export the scan again from its source; its orientation was lost or damaged.",
        )
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(affine.ravel())
    return matrix


def fill_image(image: Any, array: np.ndarray) -> Any:
    """Give a ``vtkImageData`` a copy of the voxels (D, H, W); returns it."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # Slicer's readers and writers of volume files know no 64-bit whole numbers.
        array = array.astype(np.float64)
    # A transposed copy, because VTK wants i to run fastest; native byte order, the only one that VTK reads.
    kji = np.ascontiguousarray(array.T, dtype=array.dtype.newbyteorder("="))
    image.SetDimensions(array.shape)
    image.GetPointData().SetScalars(numpy_to_vtk(kji.ravel(), deep=True))
    return image


def _label_image(labels: np.ndarray, volume: Node) -> Any:
    image = slicer.vtkOrientedImageData()
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    fill_image(image, labels.astype(np.uint8))
    image.SetImageToWorldMatrix(matrix)
    return image


def _add_segments(segmentation: Any, image: Any, classes: Sequence[LabelClass]) -> None:
    segmentation.SetSourceRepresentationName(BINARY_LABELMAP)
    for label_class in classes:
        segmentation.AddSegment(make_segment(label_class, image, label_class.label), segment_id(label_class))


def make_segment(label_class: LabelClass, image: Any, value: int) -> Any:
    """A ``vtkSegment`` that looks as its class does.

    Args:
        image: ``vtkOrientedImageData``, which it shares with others.
        value: of its voxels in the image.
    """
    segment = slicer.vtkSegment()
    segment.SetName(label_class.name)
    segment.SetColor(*label_class.color)
    if label_class.terminology:
        segment.SetTag(_TERMINOLOGY_TAG, label_class.terminology)
    segment.SetLabelValue(value)
    segment.AddRepresentation(BINARY_LABELMAP, image)
    return segment


def oriented_image(first: tuple[int, int, int], shape: Sequence[int], scalars: Any, grid: np.ndarray) -> Any:
    """A ``vtkOrientedImageData`` that begins at a voxel of a grid; nothing is copied.

    Args:
        first: voxel (i, j, k).
        shape: (K, J, I); with a 0 in it, an image without voxels.
        scalars: VTK array, i running fastest.
        grid: 4x4, mm, voxel -> RAS of the whole grid.
    """
    image = slicer.vtkOrientedImageData()
    image.SetExtent(*(end for axis in range(3) for end in (first[axis], first[axis] + shape[2 - axis] - 1)))
    if all(shape):
        image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(vtk_matrix(grid, "image"))
    return image


def _check_labels(labels: np.ndarray, volume: Node, classes: Sequence[LabelClass], name: str) -> None:
    dimensions = volume.GetImageData().GetDimensions()
    if labels.shape != dimensions:
        raise LabelError(
            f"{name}: the label map has the shape {labels.shape}, its scan {dimensions}",
            cure="Use the label map that was made for this scan.",
        )
    known = [c.label for c in classes]
    if len(set(known)) < len(known) or not all(0 < label < 256 for label in known):
        raise LabelError(
            f"{name}: the class labels {known} are not distinct numbers from 1 to 255",
            cure="Give each class a label of its own from 1 to 255.",
        )
    strangers = sorted(set(np.unique(labels).tolist()) - {0, *known})
    if strangers:
        raise LabelError(
            f"{name}: the label map holds {strangers}, but the classes are {known}",
            cure="Add these values to the list of classes, or correct the label map.",
        )


def join_subject_hierarchy(node: Node, beside: Node | None) -> None:
    """List the node in the scene's data tree, beside another one if given.

    Slicer's window does this by itself through Qt plug-ins; without Qt nobody does.
    """
    scene = node.GetScene()
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if tree is None:
        return
    parent = tree.GetSceneItemID()
    if beside is not None and tree.GetItemByDataNode(beside):
        parent = tree.GetItemParent(tree.GetItemByDataNode(beside))
    item = tree.GetItemByDataNode(node)
    if item:
        tree.SetItemParent(item, parent)
    else:
        tree.CreateItem(parent, node)


def _remove_with_display(node: Node) -> None:
    """The export also makes a display node and a colour table, which would stay behind."""
    scene, display = node.GetScene(), node.GetDisplayNode()
    colors = display.GetColorNode() if display is not None else None
    scene.RemoveNode(node)
    for leftover in (display, colors):
        # Colour tables that Slicer ships are singletons shared by all nodes.
        if leftover is not None and leftover.GetScene() is scene and not leftover.GetSingletonTag():
            scene.RemoveNode(leftover)
