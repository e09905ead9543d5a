"""What is tested in a running Slicer: both modules, their panels, the scene, and the whole way on small scans.

CTest runs this file in the Slicer that the extension was built for, run_in_slicer.py in one that was downloaded, and
Testing/Slicer/test_installed.py in the stand-in. It uses the standard library and what Slicer ships, alone.
"""

import json
import os
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import SimpleITK
import slicer

MODULES = ("HybridMIMTraining", "HybridMIMSegmentation")
AWKWARD = "Lékař ünï 数 a b"
SIDE = 34
"""Voxels along a side of a small scan: crops of 32 have more than one region, and a bottleneck of 4 voxels a side."""


class ModulesTest(unittest.TestCase):
    """The modules as a user meets them in the list, and their panels."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def test_they_are_loaded_and_say_what_they_are(self):
        for name in MODULES:
            module = slicer.util.getModule(name)
            self.assertTrue(module.title.startswith("HybridMIM "), module.title)
            self.assertEqual(list(module.categories), ["Segmentation"])
            for text in (module.helpText, module.acknowledgementText):
                self.assertGreater(len(text), 40)
            self.assertFalse(module.icon.isNull(), f"{name} has no icon")

    def test_panels_open_and_survive_the_end_of_the_scene_and_a_reload(self):
        for name in MODULES:
            panel = slicer.util.getModule(name).widgetRepresentation().self()
            self.assertIsNotNone(panel.logic, f"{name} does not find its library")
            slicer.mrmlScene.Clear(0)
            self.assertIsNotNone(panel.logic.getParameterNode())
            slicer.util.reloadScriptedModule(name)
            self.assertIsNotNone(slicer.util.getModule(name).widgetRepresentation().self().logic)

    def test_panels_do_not_load_torch(self):
        for name in MODULES:
            slicer.util.getModule(name).widgetRepresentation()
        self.assertNotIn("monai", sys.modules)
        self.assertNotIn("HybridMIMLib.training", sys.modules)

    def test_the_library_is_one_of_the_modules_files(self):
        import HybridMIMLib

        library = Path(HybridMIMLib.__file__).resolve().parent
        self.assertEqual(library.parent, Path(slicer.util.modulePath("HybridMIMTraining")).resolve().parent)


class SegmentsTest(unittest.TestCase):
    """A label array in the scene, without any package that Slicer does not ship."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def test_labels_become_segments_where_the_volume_is(self):
        from HybridMIMLib.data.classes import LabelClass
        from HybridMIMLib.slicer_side.segments import segment_id, segmentation_node, volume_node

        affine = np.array([[-0.8, 0.1, 0.0, 40.0], [0.1, 0.8, 0.0, -31.0], [0.0, 0.0, 2.5, 12.0], [0, 0, 0, 1]])
        labels = np.zeros((12, 15, 9), dtype=np.uint8)
        labels[2:6, 3:9, 1:4] = 2
        classes = (LabelClass(2, "Foie gauché", (0.9, 0.1, 0.2)), LabelClass(5, "Nothing", (0.0, 0.6, 0.3)))
        volume = volume_node(slicer.mrmlScene, np.zeros(labels.shape, np.float32), affine, "scan")
        node = segmentation_node(slicer.mrmlScene, volume, labels, classes, "result")
        self.assertEqual(names(node), ["Foie gauché", "Nothing"])
        found = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id(classes[0]), volume)
        # slicer.util counts k, j, i.
        np.testing.assert_array_equal(found.transpose(2, 1, 0) > 0, labels == 2)


class WholeWayTest(unittest.TestCase):
    """Two folders of small scans become a model, and the model a segmentation; needs the packages of the library."""

    def setUp(self):
        from HybridMIMLib.slicer_side.environment import missing_packages

        missing = missing_packages()
        if missing:
            self.skipTest(f"these packages are missing: {', '.join(missing)}")
        slicer.mrmlScene.Clear(0)
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.addCleanup(self._folder.cleanup)
        self.folder = Path(self._folder.name) / AWKWARD
        self._workspace = os.environ.get("HYBRIDMIM_WORKSPACE")
        os.environ["HYBRIDMIM_WORKSPACE"] = str(self.folder / "workspace")
        self.addCleanup(self._give_back_workspace)

    def _give_back_workspace(self):
        os.environ.pop("HYBRIDMIM_WORKSPACE")
        if self._workspace is not None:
            os.environ["HYBRIDMIM_WORKSPACE"] = self._workspace

    def test_train_and_segment(self):
        unlabelled = write_scans(self.folder / "unlabelled", 4, labelled=False)
        labelled = write_scans(self.folder / "labelled", 4, labelled=True)
        run = slicer.util.getModuleLogic("HybridMIMTraining").train(
            unlabelled,
            labelled,
            name="Inside",
            device="cpu",
            pretraining={"steps": 2},
            finetuning={"steps": 2},
        )
        self.assertEqual(run.wait(), "finished")
        self.assertEqual(run.model, run.folder / "fine-tuning" / "model")
        volume = slicer.util.loadVolume(str(unlabelled / "scan_0.nrrd"))
        logic = slicer.util.getModuleLogic("HybridMIMSegmentation")
        node = logic.segment(volume, "Inside", device="cpu", inference={"preset": "fast"})
        self.assertEqual(names(node), ["Bright", "Dark"])
        self.assertEqual(node.GetNodeReferenceID("referenceImageGeometryRef"), volume.GetID())
        self.assertNotIn("monai", sys.modules, "the work was done in Slicer's own process")


def names(node):
    """Of the segments of a segmentation."""
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(index).GetName() for index in range(segmentation.GetNumberOfSegments())]


def write_scans(folder, count, labelled):
    """Small NRRD scans of noise with a bright and a dark ball; labelled ones as images/ and labels/."""
    folder.mkdir(parents=True)
    places = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), axis=-1)
    for index in range(count):
        random = np.random.default_rng([index, labelled])
        labels = np.zeros((SIDE, SIDE, SIDE), dtype=np.uint8)
        for number, centre in ((1, 10), (2, 23)):
            labels[np.linalg.norm(places - centre - random.uniform(-1, 1, 3), axis=-1) < 6] = number
        image = np.array([100.0, 180.0, 30.0])[labels] + random.normal(0, 10, labels.shape)
        write(folder / "images" if labelled else folder, index, image.astype(np.float32))
        if labelled:
            write(folder / "labels", index, labels)
    if labelled:
        (folder / "classes.json").write_text(json.dumps({"1": "Bright", "2": "Dark"}), encoding="utf-8")
    return folder


def write(folder, index, array):
    folder.mkdir(exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 1.2))
    SimpleITK.WriteImage(image, str(folder / f"scan_{index}.nrrd"))


if __name__ == "__main__":
    unittest.main()
