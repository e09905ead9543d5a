"""Segmenting a volume of a MRML scene: the logic of the module HybridMIMSegmentation, without any GUI.

    >>> from HybridMIMLib.slicer_side.segmentation import segment
    >>> node = segment(volume_node, "HybridMIM/runs/liver/fine-tuning/model")        # doctest: +SKIP

The scene is only changed when a whole result is at hand.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from HybridMIMLib.data.model_description import ModelDescription, read_description
from HybridMIMLib.errors import DataError, HybridMIMError, LabelError, RunError
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, Job, launch
from HybridMIMLib.slicer_side.scene import write_volume
from HybridMIMLib.slicer_side.segments import Node, segmentation_node

MOST_SEGMENTS = 255
"""Segments of a scene share one label image of 8 bits."""

_SKIPPED = "skipped: "


class SegmentationJob(Job):
    """A volume that is being segmented; a :class:`Job` that puts its result into the scene.

    Args:
        volume: a ``vtkMRMLScalarVolumeNode`` in a scene.
        model: from :func:`~HybridMIMLib.data.model_description.read_description`.
        device: auto, cpu, cuda, cuda:1, mps.

    Attributes:
        segmentation: the node that was made, once the state is finished.
        empty: names of the classes that were not found.

    Raises:
        DataError: the volume cannot be segmented; see :func:`why_not`.
        HybridMIMError: it cannot be written for the child process, or that not be started.
    """

    def __init__(self, volume: Node, model: ModelDescription, device: str = "auto") -> None:
        reason = why_not(volume, model)
        if reason:
            raise DataError(reason, cure="Choose another volume.")
        self.volume, self.model = volume, model
        self.segmentation: Node | None = None
        self.empty: list[str] = []
        self._voxels = _stamp(volume)
        self._temporary = Path(tempfile.mkdtemp(prefix="hybridmim-"))
        self._scan = self._temporary / "scan.nrrd"
        folder = self._temporary / "run"
        try:
            write_volume(volume, self._scan)
            options = {"scans": self._scan, "model": model.path, "device": device}
            super().__init__(folder, *launch("segment", options, folder))
        except BaseException:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise
        # The user knows the volume, and no temporary file.
        self.progress.called = {
            str(self._scan): f"volume {volume.GetName()}",
            str(self._temporary): "temporary folder",
        }

    def update(self) -> bool:
        """As :meth:`Job.update`; a job whose volume has gone is stopped, for its result would have no place."""
        if not self.ended and self._is_gone():
            self._asked = self._asked or time.monotonic()
            self._process.kill()
        return super().update()

    def _is_gone(self) -> bool:
        return self.volume.GetScene() is None

    def _end(self) -> None:
        try:
            super()._end()
        finally:
            # At once and whatever happened: it holds a patient's scan.
            shutil.rmtree(self._temporary, ignore_errors=True)
            if self._is_gone() and self.state != FINISHED:
                self.state = FAILED
                self.message = (
                    f"The volume {self.volume.GetName()} was removed from the scene, so its segmentation was "
                    "stopped. Load it again, then start again."
                )

    def _why_it_failed(self) -> HybridMIMError:
        skipped = [text for text in self.progress.warnings if text.startswith(_SKIPPED)]
        if not skipped:
            return super()._why_it_failed()
        # The only scan was passed over: the reason is what matters, and its cure speaks of files in a folder.
        reason = skipped[0][len(_SKIPPED) :].partition(". ")[0]
        return DataError(f"{reason[:1].upper()}{reason[1:]}", cure="Choose another volume, or correct this one.")

    def _take_result(self) -> str:
        if self._asked:
            raise RunError("Stopped", cure="Start it again.")
        if _stamp(self.volume) != self._voxels:
            raise RunError(
                f"The voxels of {self.volume.GetName()} were changed while they were segmented",
                cure="Segment it again.",
            )
        labels = read_labels(self._label_file(), self.volume)
        name = f"{self.volume.GetName()} {self.model.name}"
        scene = self.volume.GetScene()
        self.segmentation = segmentation_node(
            scene, self.volume, labels, self.model.classes, scene.GenerateUniqueName(name)
        )
        found = set(np.unique(labels).tolist())
        self.empty = [one.name for one in self.model.classes if one.label not in found]
        made = f"Made the segmentation {self.segmentation.GetName()}."
        return f"{made} Not found: {', '.join(self.empty)}." if self.empty else made

    def _label_file(self) -> Path:
        try:
            return Path(self.result["labels"][str(self._scan)])
        except (KeyError, TypeError):
            raise RunError("The process ended without a label map", cure="Segment the volume again.") from None


def segment(
    volume: Node,
    model: str | Path,
    device: str = "auto",
    on_update: Callable[[Job], None] | None = None,
) -> Node:
    """Segment a volume and wait for it: for scripts, with Slicer or with slicer-core alone.

    Args:
        volume: a ``vtkMRMLScalarVolumeNode`` in a scene.
        model: folder of a model package.
        device: auto, cpu, cuda, cuda:1, mps.
        on_update: called several times a second with the job, e.g. to print ``job.progress.describe()``, or to
            ``job.cancel()``.

    Returns:
        A ``vtkMRMLSegmentationNode`` with one segment a class, on the volume's grid and under its transform.

    Raises:
        HybridMIMError: the message names what is wrong and the cure; the scene is as it was.
    """
    job = SegmentationJob(volume, read_description(Path(model)), device)
    try:
        job.wait(on_update)
    finally:
        if not job.ended:
            # An exception in on_update, or Ctrl+C.
            job.kill()
    return job.segmentation


def why_not(volume: Node | None, model: ModelDescription | None = None) -> str:
    """Why a volume cannot be segmented, or not with this model, as a sentence; empty if it can."""
    if volume is None:
        return "Choose a volume; if there is none, load one with File > Add Data."
    name, image = volume.GetName(), volume.GetImageData()
    if volume.GetClassName() != "vtkMRMLScalarVolumeNode":
        return f"Volume {name} is no scalar volume but a {volume.GetNodeTagName()}; choose another one."
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        return f"Volume {name} holds no voxels; choose another one."
    if min(image.GetDimensions()) < 2:
        return f"Volume {name} is a single slice; choose one with several."
    channels = image.GetNumberOfScalarComponents()
    if model is not None and channels != model.channels:
        return f"Volume {name} has {channels} channel(s), and the model {model.name} needs {model.channels}."
    if channels != 1:
        return f"Volume {name} has {channels} channels; choose one with grey values."
    if model is not None and max(one.label for one in model.classes) > MOST_SEGMENTS:
        return f"The model {model.name} has labels above {MOST_SEGMENTS}, which segments cannot have."
    return ""


def read_labels(file: Path, volume: Node) -> np.ndarray:
    """The label map that the child wrote for a volume.

    The voxels alone are read: their place is that of the volume, and no file keeps it better.

    Returns:
        (D, H, W) whole numbers.

    Raises:
        LabelError: it cannot be read, or has another shape.
    """
    # Slicer ships SimpleITK.
    import SimpleITK

    try:
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).transpose(2, 1, 0)
    except (RuntimeError, ValueError) as error:
        raise LabelError(f"{file}: the result cannot be read ({error})", cure="Segment the volume again.") from error
    if labels.shape != volume.GetImageData().GetDimensions():
        raise LabelError(
            f"{volume.GetName()}: the result has the shape {labels.shape}, the volume "
            f"{volume.GetImageData().GetDimensions()}",
            cure="Segment the volume again.",
        )
    return labels


def _stamp(volume: Node) -> tuple[Any, ...]:
    """Changes when the voxels do; a volume that is moved, windowed or renamed keeps it."""
    image = volume.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    if scalars is None:
        return ()
    return image.GetDimensions(), image.GetMTime(), scalars.GetMTime()
