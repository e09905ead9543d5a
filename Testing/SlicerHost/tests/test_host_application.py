"""slicer.app, files through slicer.util, and the data tree."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from SlicerHost import Host, problems


def test_what_real_code_asks_the_application(host: Host) -> None:
    app = slicer.app
    assert (app.majorVersion, app.minorVersion, app.applicationName) == (5, 13, "Slicer")
    assert app.applicationVersion.startswith("5.13")
    assert app.mrmlScene() is host.scene is slicer.mrmlScene
    assert app.applicationLogic().GetMRMLScene() is host.scene
    assert Path(app.temporaryPath).is_dir()
    assert app.testingEnabled() is False
    assert app.settings() is app.userSettings()
    assert slicer.util.mainWindow() is host.window
    slicer.util.showStatusMessage("hello")
    assert host.window.statusBar().currentMessage() == "hello"
    with pytest.raises(AttributeError, match="dicomDatabase"):
        app.dicomDatabase()
    with pytest.raises(RuntimeError, match="resumed"):
        app.resumeRender()
    with slicer.util.RenderBlocker():
        assert app.isRenderPaused()


def _scan(name: str = "CT") -> Any:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    return slicer.util.addVolumeFromArray(array, ijkToRAS=np.diag([1.0, 2.0, 3.0, 1.0]), name=name)


def test_volumes_are_exported_and_loaded(host: Host, tmp_path: Path) -> None:
    node, file = _scan(), tmp_path / "a b ü.nrrd"
    assert slicer.util.exportNode(node, str(file), {})
    assert node.GetStorageNode() is None, "exporting leaves the node as it was"
    again = slicer.util.loadVolume(file, {"name": "Again"})
    assert again.GetName() == "Again"
    assert np.array_equal(slicer.util.arrayFromVolume(again), slicer.util.arrayFromVolume(node))
    assert again.GetSpacing() == (1.0, 2.0, 3.0)
    label = slicer.util.loadLabelVolume(file, {})
    assert (label.GetClassName(), label.GetName()) == ("vtkMRMLLabelMapVolumeNode", "a b ü")
    assert slicer.util.saveNode(node, str(tmp_path / "saved.nii.gz"), {})
    assert node.GetStorageNode() is not None
    assert (tmp_path / "saved.nii.gz").is_file()


def test_segmentations_are_saved_and_loaded(host: Host, tmp_path: Path) -> None:
    volume = _scan()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = node.GetSegmentation().AddEmptySegment("one", "One")
    mask = np.zeros((3, 4, 5), dtype=np.uint8)
    mask[1, 1:3, 2] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, volume)
    assert slicer.util.saveNode(node, str(tmp_path / "s.seg.nrrd"), {})
    again = slicer.util.loadSegmentation(tmp_path / "s.seg.nrrd", {})
    assert again.GetSegmentation().GetSegment("one").GetName() == "One"
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(again, "one", volume), mask)


def test_files_that_it_does_not_know_are_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"nothing\.nrrd"):
        slicer.util.loadVolume(tmp_path / "nothing.nrrd", {})
    for load, properties, named in (
        (slicer.util.loadModel, None, "ModelFile"),
        (slicer.util.loadVolume, {"center": True}, "center"),
        (slicer.util.loadNodeFromFile, None, "file.xyz"),
    ):
        arguments = (tmp_path / "file.xyz",) if properties is None else (tmp_path / "file.xyz", properties)
        with pytest.raises(ValueError, match=named):
            load(*arguments)
    with pytest.raises(ValueError, match=r"no known file format was found for filename .*file\.xyz"):
        slicer.util.exportNode(_scan(), str(tmp_path / "file.xyz"), {})
    with pytest.raises(NotImplementedError, match="world"):
        slicer.util.exportNode(_scan(), str(tmp_path / "file.nrrd"), {}, world=True)
    with pytest.raises(ValueError, match=r"\.mrb only"):
        slicer.util.saveScene(str(tmp_path / "scene.mrml"), {})


def test_a_broken_file_is_no_volume(host: Host, tmp_path: Path) -> None:
    (tmp_path / "broken.nrrd").write_text("NRRD0004\nnonsense\n", "utf-8")
    with pytest.raises(RuntimeError, match=r"broken\.nrrd"):
        slicer.util.loadVolume(tmp_path / "broken.nrrd", {})
    assert problems.take()


def test_slice_views_show_what_they_are_told(host: Host) -> None:
    node = _scan()
    slicer.util.setSliceViewerLayers(background=node)
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = {one.GetName(): one.GetBackgroundVolumeID() for one in nodes}
    assert shown == dict.fromkeys(("Red", "Green", "Yellow"), node.GetID())
    host.close_scene()
    assert len(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")) == 3


def test_nodes_have_items_in_the_data_tree(host: Host, tmp_path: Path) -> None:
    tree = host.scene.GetSubjectHierarchyNode()
    node, hidden = _scan(), slicer.vtkMRMLScalarVolumeNode()
    hidden.SetHideFromEditors(True)
    host.scene.AddNode(hidden)
    assert tree.GetItemName(tree.GetItemByDataNode(node)) == "CT"
    assert not tree.GetItemByDataNode(hidden)
    host.save_scene(tmp_path / "a.mrb")
    host.scene.RemoveNode(node)
    assert tree.GetNumberOfItems() == 0
    host.load_scene(tmp_path / "a.mrb")
    tree = host.scene.GetSubjectHierarchyNode()
    assert tree.GetItemByDataNode(slicer.util.getNode("CT"))


def test_after_quitting_slicer_is_slicer_core_again(host: Host) -> None:
    assert slicer.i18n.tr("a") == "a"
    host.close()
    for name in ("app", "modules", "mrmlScene", "qMRMLWidget", "packaging"):
        assert not hasattr(slicer, name)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("slicer.i18n")


def test_unknown_names_of_slicer_are_named(host: Host) -> None:
    for name in ("qSlicerSegmentEditorWidget", "qMRMLSegmentsTableView", "dicomDatabase"):
        with pytest.raises(AttributeError, match=name):
            getattr(slicer, name)
    with pytest.raises(AttributeError, match="sliceWidget"):
        slicer.app.layoutManager().sliceWidget("Red")
    with pytest.raises(ImportError, match="parameterPack"):
        from slicer.parameterNodeWrapper import parameterPack  # noqa: F401
