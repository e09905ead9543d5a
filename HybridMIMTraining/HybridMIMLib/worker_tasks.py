"""What the warm worker does: load a model, segment a scan. This needs torch; :mod:`HybridMIMLib.worker` does not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.nifti import is_nifti
from HybridMIMLib.data.package_files import file_name
from HybridMIMLib.data.scans import ScanItems, scan_name, write_image, write_label_map
from HybridMIMLib.errors import DiskError, HybridMIMError, LabelError
from HybridMIMLib.files import make_folder
from HybridMIMLib.inference.cases import Found, joined, read_volumes
from HybridMIMLib.inference.ladder import is_out_of_memory
from HybridMIMLib.inference.predictor import Labels, Prediction, Predictor
from HybridMIMLib.inference.warm_model import WarmModel
from HybridMIMLib.settings.inference import InferenceSettings
from HybridMIMLib.worker_protocol import Load, Segment


class Voice(Protocol):
    """Where a job tells how far it is. Each call may raise what ends the job, if it was cancelled."""

    def phase(self, name: str) -> None:
        """A phase begins: load, read, segment, write."""

    def windows(self, done: int, of: int) -> None:
        """So many windows are done."""

    def message(self, text: str, level: str = "info") -> None:
        """Something that the user should know."""


class Tasks:
    """Carries out requests, one after the other, with a model that stays warm.

    Args:
        device: for requests that name none.
    """

    def __init__(self, device: str) -> None:
        self.model = WarmModel()
        self._own_device = self._device = device
        self._settings: Mapping[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """What is loaded, and what holds it ready."""
        device = self.model.device
        return {"model": self._about_model(), "device": device, "warm": device is not None}

    def load(self, request: Load, voice: Voice) -> dict[str, Any]:
        """Have a model ready on its device."""
        clock = _Clock(voice)
        clock.phase("load")
        device = request.device or self._own_device
        try:
            self.model.load(request.model)
            voice.phase("load")
            with self.model.predictor(_settings(request.inference), device, voice.message):
                # On its device now, and the settings are known to suit it. A cancelled one must not end as done.
                voice.phase("load")
        except BaseException:
            self.model.forget()
            raise
        self._device, self._settings = device, request.inference
        return {**self.state(), "seconds": clock.seconds()}

    def segment(self, request: Segment, voice: Voice) -> dict[str, Any]:
        """Segment one scan and write what was found."""
        _check_places(request)
        clock = _Clock(voice)
        clock.phase("load")
        if request.model is not None:
            self.model.load(request.model)
        settings = _settings({**self._settings, **request.inference}, request.uncertainty is not None)
        with self.model.predictor(settings, request.device or self._device, voice.message) as predictor:
            clock.phase("read")
            case = Case(scan_name(request.scan[0]), request.scan, None)
            scan, _ = read_volumes(case, predictor.plan.channels)
            for path in _to_write(request):
                _check_can_hold(path, scan)
            for text in scan.warnings:
                voice.message(text, level="warning")
            clock.phase("segment")
            parts = _predictions(predictor, scan, voice)
            clock.phase("write")
            found = joined(case, scan, parts, None)
            layers = _write(request, predictor, found)
            seconds = {**clock.seconds(), "network": round(self.model.clock.seconds(), 3)}
            return {
                "label": str(request.output),
                "uncertainty": None if request.uncertainty is None else str(request.uncertainty),
                "layers": layers,
                **_volumes(predictor, scan, found),
                "windows": sum(one.windows for one in parts),
                "skipped": sum(one.skipped for one in parts),
                "seconds": seconds,
                "presets": _by_preset(seconds, predictor, parts),
                "model": self._about_model(),
                "device": predictor.engine.name,
            }

    def release(self) -> None:
        """Free the device."""
        self.model.release()

    def recover(self) -> None:
        """Make room, and leave nothing behind of what a failed job may have left in disorder.

        To be called when the error is no longer handled: its traceback holds what fills the memory.
        """
        self.model.reset()

    def _about_model(self) -> dict[str, Any] | None:
        package = self.model.package
        if package is None:
            return None
        return {"name": package.name, "digest": package.digest, "path": str(self.model.path)}


def explain(error: Exception) -> HybridMIMError | None:
    """What to tell the user of an error that is none of ours; None where it is a defect."""
    if isinstance(error, OSError) and error.filename is not None:
        return DiskError(
            f"{error.filename}: cannot be read or written ({error.strerror})",
            cure="Check that it is there, and choose another place or a shorter name.",
        )
    if not is_out_of_memory(error):
        return None
    return HybridMIMError(
        "out of memory: there is not enough of it for this model and this scan",
        cure="Close other programs, or choose another device, or a smaller model.",
    )


class _Clock:
    """Seconds of each phase; a phase ends where the next begins."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._began = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._phase = ""

    def phase(self, name: str) -> None:
        self._end()
        self._phase = name
        self._voice.phase(name)

    def seconds(self) -> dict[str, float]:
        """Of every phase so far, and of all together."""
        self._end()
        self._phase = ""
        return {name: round(value, 3) for name, value in {**self._seconds, "total": self._last - self._began}.items()}

    def _end(self) -> None:
        now = time.perf_counter()
        if self._phase:
            self._seconds[self._phase] = now - self._last
        self._last = now


def _settings(given: Mapping[str, Any], uncertainty: bool = False) -> InferenceSettings:
    run: Run = make_run(None, {"inference": {**given, "uncertainty": uncertainty}})
    return run.inference


def _check_places(request: Segment) -> None:
    """What can be known of the files before minutes are spent on them.

    Raises:
        DiskError: a result has no place.
    """
    for path in _to_write(request):
        if path.is_dir():
            raise DiskError(f"{path}: is a folder", cure="Choose the name of a file.")
        if any(scan.exists() and path.exists() and path.samefile(scan) for scan in request.scan):
            raise DiskError(f"{path}: is the scan itself", cure="Choose another file.")
        make_folder(path.parent)
    if request.layers is not None and request.layers.exists() and not request.layers.is_dir():
        raise DiskError(f"{request.layers}: is a file", cure="Choose a folder for the layers.")


def _to_write(request: Segment) -> list[Path]:
    return [request.output, *([] if request.uncertainty is None else [request.uncertainty])]


def _check_can_hold(path: Path, scan: ScanItems) -> None:
    if scan.is_4d and not is_nifti(path):
        raise LabelError(
            f"{path}: cannot hold the results of {len(scan)} volumes (4D)", cure="Choose a .nii.gz file."
        )


def _predictions(predictor: Predictor, scan: ScanItems, voice: Voice) -> list[Prediction]:
    """One for each volume; their windows are counted as if they were of one."""
    found: list[Prediction] = []
    for index, array in enumerate(scan):

        def watch(done: int, of: int, before: int = index) -> None:
            voice.windows(before * of + done, of * len(scan))

        found.append(predictor.predict(array, scan.grid, watch))
    return found


def _by_preset(seconds: Mapping[str, float], predictor: Predictor, parts: Sequence[Prediction]) -> dict[str, float]:
    """Seconds that each preset would have taken with a model that is loaded: they differ in their windows."""
    done = sum(one.windows for one in parts) * 2 ** len(predictor.flips)
    without = seconds["total"] - seconds["load"] - seconds["network"]
    passes = {name: sum(one.passes[name] for one in parts) for name in parts[0].passes}
    return {name: round(without + seconds["network"] * count / max(done, 1), 3) for name, count in passes.items()}


def _write(request: Segment, predictor: Predictor, found: Found) -> dict[str, str] | None:
    """Write what was found, the label map last: where that is, all is. Returns where the layers lie."""
    layers: dict[str, str] = {}
    if found.layers is not None and request.layers is not None:
        suffix = ".nrrd" if not is_nifti(request.output) else ".nii.gz"
        for one, mask in found.masks(predictor.classes):
            path = request.layers / f"{one.label}-{file_name(one.name)}{suffix}"
            write_label_map(path, mask.view(np.uint8), found.grid, found.step)
            layers[one.name] = str(path)
    if request.uncertainty is not None:
        assert found.uncertainty is not None
        write_image(request.uncertainty, found.uncertainty, found.grid, found.step)
    write_label_map(request.output, found.labels, found.grid, found.step)
    return layers or None


def _volumes(predictor: Predictor, scan: ScanItems, found: Found) -> dict[str, Any]:
    """The classes that were found, with their volume (of a 4D scan: on average), and the names of the others."""
    if found.layers is None:
        counts = _counts(found.labels)
        voxels = [int(counts[one.label]) if one.label < len(counts) else 0 for one in predictor.classes]
    else:
        voxels = [int(np.count_nonzero(layer)) for layer in found.layers]
    ml = abs(float(np.linalg.det(scan.grid.affine[:3, :3]))) / 1000 / len(scan)
    pairs = list(zip(predictor.classes, voxels))
    return {
        "classes": [
            {"name": one.name, "label": one.label, "ml": round(count * ml, 4)} for one, count in pairs if count
        ],
        "empty": [one.name for one, count in pairs if not count],
    }


def _counts(labels: Labels) -> Labels:
    """How many voxels each label has; a slice at a time, because counting takes 8 bytes a voxel."""
    highest = int(labels.max()) + 1
    total = np.zeros(highest, dtype=np.int64)
    for part in labels:
        total += np.bincount(part.ravel(), minlength=highest)
    return total
