"""A result into the scene: how long the window stands still, piece by piece, against Slicer's import in one go.

Each row runs in a process of its own. Ellipsoids of all classes at random places; the label map is read from a
compressed NRRD file, as in a run. ``views`` has three slice views with Slicer's own displayable managers looking on,
without drawing. ``looks`` is a whole job as the panel follows it, a look every 30 ms, with a worker that answers at
once: the scan is copied and written, and the result read and shown.

Processor time of the window's thread, which other work on the machine does not lengthen; ``--wall`` measures by the
clock, for a machine that has nothing else to do.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from HybridMIMLib.data.classes import LabelClass, default_color
from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.slicer_side import worker_client
from HybridMIMLib.slicer_side.jobs import FINISHED
from HybridMIMLib.slicer_side.results import Output, Result, put_in_scene
from HybridMIMLib.slicer_side.scene import headless_scene
from HybridMIMLib.slicer_side.segmentation import SegmentationJob
from HybridMIMLib.slicer_side.segments import ijk_to_ras
from HybridMIMLib.slicer_side.steps import Steps
from HybridMIMLib.slicer_side.surfaces import CLOSED_SURFACE, show_in_3d
from HybridMIMLib.slicer_side.warm_worker import warm_worker

SIZES = {"small": ((110, 66, 106), 5), "large": ((512, 512, 300), 25)}
WAYS = ("pieces", "looks", "views", "append", "surfaces", "one surface after the other", "import", "delete")

WORKER = """
import sys, json, shutil
asked = json.loads(sys.stdin.readline())
shutil.copyfile(sys.argv[1], asked["output"])
print(json.dumps({"id": asked["id"], "event": "done"}), flush=True)
sys.stdin.readline()
"""
"""Answers at once, with a label map that is there already."""

CLOCK = [time.thread_time]
"""What is measured by."""


def labels_of(shape: tuple[int, int, int], classes: int) -> np.ndarray:
    """(D, H, W) uint8: an ellipsoid a class."""
    rng, labels = np.random.default_rng(0), np.zeros(shape, np.uint8)
    for label in range(1, classes + 1):
        radii = [max(2, int(side * rng.uniform(0.05, 0.15))) for side in shape]
        middle = [int(rng.integers(radius, side - radius)) for radius, side in zip(radii, shape)]
        box = tuple(slice(m - r, m + r) for m, r in zip(middle, radii))
        grid = np.ogrid[box]
        inside = sum(((g - m) / r) ** 2 for g, m, r in zip(grid, middle, radii)) < 1
        labels[box][inside] = label
    return labels


def model_of(classes: int) -> ModelDescription:
    """A description of a model that is nowhere."""
    made = tuple(LabelClass(n, f"class {n}", default_color(n)) for n in range(1, classes + 1))
    return ModelDescription(Path("nowhere"), "model", made, 1, {}, None, NetworkSettings(), {})


def scene_with(shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """A scene, and in it a volume of zeros."""
    held = headless_scene()
    volume = held.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    image = vtk.vtkImageData()
    image.SetDimensions(shape)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    volume.SetAndObserveImageData(image)
    volume.SetSpacing(0.8, 0.8, 1.5)
    return held, volume


def timed(steps: Steps[Any]) -> tuple[Any, list[tuple[float, str]]]:
    """What it returns, and of each piece the seconds that it took, and what it was about."""
    pieces, text = [], "begin"
    while True:
        begin = CLOCK[0]()
        try:
            step = next(steps)
        except StopIteration as end:
            pieces.append((CLOCK[0]() - begin, f"after: {text}"))
            return end.value, pieces
        pieces.append((CLOCK[0]() - begin, step.text))
        text = step.text


@contextmanager
def three_views(held: Any) -> Iterator[None]:
    """Slice views of Slicer's own displayable managers."""
    application, scene = held.logics["Application"], held.scene
    factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    factory.SetMRMLApplicationLogic(application)
    if not factory.IsDisplayableManagerRegistered("vtkMRMLSegmentationsDisplayableManager2D"):
        factory.RegisterDisplayableManager("vtkMRMLSegmentationsDisplayableManager2D")
    logics, kept = vtk.vtkCollection(), []
    for name in ("Red", "Yellow", "Green"):
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        logics.AddItem(logic)
        application.SetSliceLogics(logics)
        group, renderer = slicer.vtkMRMLDisplayableManagerGroup(), vtk.vtkRenderer()
        window = vtk.vtkRenderWindow()
        window.SetOffScreenRendering(1)
        window.AddRenderer(renderer)
        interactor = vtk.vtkRenderWindowInteractor()
        interactor.SetRenderWindow(window)
        group.Initialize(factory, renderer)
        group.SetMRMLDisplayableNode(logic.AddSliceNode(name))
        kept.append((logic, group, renderer, window, interactor))
    yield


def import_in_one_go(held: Any, volume: Any, labels: np.ndarray, classes: int) -> float:
    """Slicer's own way, without ids."""
    label_map = held.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    label_map.CopyOrientation(volume)
    image = vtk.vtkImageData()
    image.SetDimensions(labels.shape)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = labels.transpose().ravel()
    label_map.SetAndObserveImageData(image)
    label_map.CreateDefaultDisplayNodes()
    segmentation = held.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "imported")
    begin = CLOCK[0]()
    done = slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(label_map, segmentation)
    assert done and segmentation.GetSegmentation().GetNumberOfSegments() == classes
    return CLOCK[0]() - begin


def looks_at_a_job(volume: Any, labels: Path, model: ModelDescription, folder: Path) -> list[tuple[float, str]]:
    """Of each look the seconds that it took, and what was done in it; the first is the press of Apply."""
    os.environ["HYBRIDMIM_WORKSPACE"] = str(folder)
    worker_client.library_command = lambda *_: [sys.executable, "-c", WORKER, str(labels)]
    begin = CLOCK[0]()
    job = SegmentationJob(volume, model)
    looks, more = [(CLOCK[0]() - begin, "Apply")], True
    while more:
        # As the timer of the panel.
        time.sleep(0.03)
        text, begin = job.progress.phase, CLOCK[0]()
        more = job.update()
        looks.append((CLOCK[0]() - begin, f"{text} to {job.progress.phase}"))
    warm_worker().close()
    assert job.state == FINISHED, job.message
    return looks


def measure(way: str, size: str, folder: Path) -> str:
    """One row."""
    shape, classes = SIZES[size]
    labels, model = labels_of(shape, classes), model_of(classes)
    held, volume = scene_with(shape)
    if way == "import":
        return f"{import_in_one_go(held, volume, labels, classes) * 1000:.0f} ms"
    file = folder / "labels.nrrd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels.transpose()), str(file), True)
    output = Output()
    if way == "looks":
        begin = time.perf_counter()
        looks = looks_at_a_job(volume, file, model, folder)
        longest, text = max(looks)
        total = time.perf_counter() - begin
        return f"longest look {longest * 1000:.1f} ms ({text}); {len(looks)} looks, {total:.2f} s in all"
    if way == "append":
        target = held.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "target")
        output = Output("append", target)
    with ExitStack() as stack:
        if way == "views":
            stack.enter_context(three_views(held))
        begin = time.perf_counter()
        result, pieces = timed(put_in_scene(volume, file, model, output, {}))
        total = time.perf_counter() - begin
    assert isinstance(result, Result) and not result.empty and ijk_to_ras(volume)[0, 0] == 0.8
    if way == "surfaces":
        begin = time.perf_counter()
        _, pieces = timed(show_in_3d(result.segmentation))
        total = time.perf_counter() - begin
    if way == "one surface after the other":
        content, pieces = result.segmentation.GetSegmentation(), []
        create = slicer.vtkSlicerSegmentationsModuleLogic.CreateRepresentationForOneSegment
        for one in content.GetSegmentIDs():
            begin = CLOCK[0]()
            create(content, one, CLOSED_SURFACE)
            pieces.append((CLOCK[0]() - begin, one))
        total = sum(seconds for seconds, _ in pieces)
    if way == "delete":
        begin = CLOCK[0]()
        held.scene.RemoveNode(result.segmentation)
        del result
        gc.collect()
        return f"{(CLOCK[0]() - begin) * 1000:.0f} ms, Slicer's own doing"
    longest, text = max(pieces)
    return f"longest piece {longest * 1000:.1f} ms ({text}); {len(pieces)} pieces, {total:.2f} s in all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--wall", action="store_true", help="by the clock, not in processor time")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    given = parser.parse_args()
    if given.wall:
        CLOCK[0] = time.perf_counter
    how = ["--wall"] if given.wall else []
    for size in given.size or SIZES:
        for way in given.way or WAYS:
            if given.here:
                with tempfile.TemporaryDirectory() as folder:
                    print(f"{size} {way}: {measure(way, size, Path(folder))}", flush=True)
            else:
                subprocess.run([sys.executable, __file__, "--here", *how, "--size", size, "--way", way], check=True)


if __name__ == "__main__":
    main()
