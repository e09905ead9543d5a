"""A MRML scene without Slicer's window, and writing segmentations and scenes to files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

from HybridMIMLib.errors import DiskError
from HybridMIMLib.files import TEMPORARY, atomic_path
from HybridMIMLib.slicer_side.segments import Node, Scene, fill_image, image_array

_CHECK_FOLDER = "Check the free space and the rights of that folder, or choose another one."


@dataclass
class HeadlessScene:
    """A scene and what must live as long as it does.

    Attributes:
        scene: the ``vtkMRMLScene``.
        logics: Slicer's logics by module name; a scene does not keep its logics alive.
    """

    scene: Scene
    logics: dict[str, Any] = field(default_factory=dict)
    _cache: tempfile.TemporaryDirectory[str] | None = None


def headless_scene() -> HeadlessScene:
    """An empty scene with the logics that volumes, segments and scene files need.

    Left out on purpose: ``vtkSlicerColorLogic`` and the terminologies' logic look for files of an installed
    Slicer and print errors without them. The base colour logic has the grey table that volumes need, and
    terminology entries are plain tags of the segments.
    """
    held = HeadlessScene(slicer.vtkMRMLScene(), {"Application": slicer.vtkMRMLApplicationLogic()})
    application = held.logics["Application"]
    application.SetMRMLScene(held.scene)
    for name, logic in _new_logics().items():
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(name, logic)
        # Setting the scene registers the node classes that a bare scene lacks; volumes look for "Colors".
        logic.SetMRMLScene(held.scene)
        held.logics[name] = logic
    _add_file_access(held)
    # Asking for it creates the node of the data tree.
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(held.scene)
    return held


def read_scene(path: Path) -> HeadlessScene:
    """Read a ``.mrb`` (or ``.mrml``) file into a new scene.

    Raises:
        DiskError: the file is missing or is no scene.
    """
    held = headless_scene()
    # A relative path is taken as relative to the scene's own root folder, which is not where the user is.
    path = path.absolute()
    is_bundle = path.suffix.lower() == ".mrb"
    if not path.is_file() or not (_read_bundle(held, path) if is_bundle else _read_mrml(held, path)):
        raise DiskError(f"{path}: not a scene that Slicer can read", cure="Write the scene again.")
    return held


def write_segmentation(node: Node, path: Path) -> None:
    """Write a segmentation as ``.seg.nrrd``; the node keeps whatever storage node it had.

    Raises:
        DiskError: the file could not be written; an older file of that name is as it was.
    """
    if not path.name.lower().endswith(".seg.nrrd"):
        raise DiskError(f"{path}: segmentations are written as .seg.nrrd", cure="End the name with .seg.nrrd.")
    # A storage node outside the scene, so that nothing in the scene points at the temporary name.
    storage = slicer.vtkMRMLSegmentationStorageNode()

    def write(temporary: Path) -> bool:
        storage.SetFileName(str(temporary))
        return bool(storage.WriteData(node))

    _write_whole(path, write)


def write_volume(node: Node, path: Path) -> None:
    """Write a scalar volume as ``.nrrd``, without its parent transform and uncompressed: a file to hand on, not to
    keep; the node keeps whatever storage node it had.

    Raises:
        DiskError: the file could not be written; an older file of that name is as it was.
    """
    if path.suffix.lower() != ".nrrd":
        raise DiskError(f"{path}: volumes are written as .nrrd", cure="End the name with .nrrd.")
    storage = slicer.vtkMRMLNRRDStorageNode()
    storage.SetUseCompression(0)
    writable = _with_writable_voxels(node)

    def write(temporary: Path) -> bool:
        storage.SetFileName(str(temporary))
        return bool(storage.WriteData(writable))

    _write_whole(path, write)


def write_scene(scene: Scene, path: Path) -> None:
    """Write all nodes and their data as one ``.mrb`` file.

    Raises:
        DiskError: the file could not be written; an older file of that name is as it was.
    """
    if path.suffix.lower() != ".mrb":
        raise DiskError(f"{path}: scenes are written as .mrb", cure="End the name with .mrb.")
    path = path.absolute()
    with _storage_kept(scene):
        _write_whole(path, lambda temporary: bool(scene.WriteToMRB(str(temporary))))


def show_in_slice_views(scene: Scene, volume: Node) -> None:
    """Make the volume the background of the three slice views, so that a scene file does not open black."""
    for layout_name in ("Red", "Yellow", "Green"):
        composite = slicer.vtkMRMLSliceCompositeNode()
        # The singleton tag makes Slicer merge this node with the one that its own view has.
        composite.SetSingletonTag(layout_name)
        composite.SetLayoutName(layout_name)
        composite.SetName(layout_name)
        scene.AddNode(composite).SetBackgroundVolumeID(volume.GetID())


def _with_writable_voxels(node: Node) -> Node:
    """The node, or a copy outside the scene where Slicer's NRRD writer does not know the type of its voxels."""
    array = image_array(node.GetImageData())
    if array.dtype not in (np.int8, np.int64, np.uint64):
        return node
    copy = slicer.vtkMRMLScalarVolumeNode()
    copy.CopyOrientation(node)
    kind = np.int16 if array.dtype == np.int8 else np.float64
    copy.SetAndObserveImageData(fill_image(vtk.vtkImageData(), array.astype(kind)))
    return copy


def _new_logics() -> dict[str, Any]:
    return {
        "Colors": slicer.vtkMRMLColorLogic(),
        "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic(),
        "Volumes": slicer.vtkSlicerVolumesLogic(),
        "Transforms": slicer.vtkSlicerTransformLogic(),
        # Without this one there are no sequence browsers.
        "Sequences": slicer.vtkSlicerSequencesLogic(),
        # Without this one, closed surfaces are silently refused.
        "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic(),
    }


def _add_file_access(held: HeadlessScene) -> None:
    """Reading a ``.mrb`` unpacks it into the cache folder and goes through the scene's data manager."""
    held._cache = tempfile.TemporaryDirectory(prefix="hybridmim-scene-", ignore_cleanup_errors=True)
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLApplicationLogic(held.logics["Application"])
    remote.SetMRMLScene(held.scene)
    remote.GetCacheManager().SetRemoteCacheDirectory(held._cache.name)
    manager = slicer.vtkDataIOManagerLogic()
    manager.SetMRMLApplicationLogic(held.logics["Application"])
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    held.logics.update(RemoteIO=remote, DataIO=manager)


def _read_bundle(held: HeadlessScene, path: Path) -> bool:
    return bool(held.scene.ReadFromMRB(str(path), True))


def _read_mrml(held: HeadlessScene, path: Path) -> bool:
    held.scene.SetURL(str(path))
    return bool(held.scene.Connect())


def _write_whole(path: Path, write: Callable[[Path], bool]) -> None:
    """Let ``write`` write in a hidden folder beside ``path``, then rename.

    A folder and not just another name: a ``.mrb`` holds its own name, as that of the folder inside it.
    """
    try:
        with (
            atomic_path(path) as temporary,
            tempfile.TemporaryDirectory(dir=path.parent, prefix=TEMPORARY) as folder,
        ):
            inner = Path(folder) / path.name
            if not write(inner) or not inner.is_file():
                raise DiskError(f"{path}: Slicer could not write this file", cure=_CHECK_FOLDER)
            os.replace(inner, temporary)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror})", cure=_CHECK_FOLDER) from error


@contextmanager
def _storage_kept(scene: Scene) -> Iterator[None]:
    """Undo what writing a scene leaves in it: storage nodes and an address at the temporary name."""
    before = {node.GetID() for node in _nodes(scene, "vtkMRMLStorageNode")}
    url, root = scene.GetURL(), scene.GetRootDirectory()
    try:
        yield
    finally:
        for node in _nodes(scene, "vtkMRMLStorageNode"):
            if node.GetID() not in before:
                scene.RemoveNode(node)
        scene.SetURL(url)
        scene.SetRootDirectory(root)


def _nodes(scene: Scene, class_name: str) -> list[Node]:
    found = vtk.vtkCollection()
    collection = scene.GetNodesByClass(class_name) or found
    nodes = [collection.GetItemAsObject(index) for index in range(collection.GetNumberOfItems())]
    # The scene hands out this collection with a reference that Python does not own.
    collection.UnRegister(None)
    return nodes
