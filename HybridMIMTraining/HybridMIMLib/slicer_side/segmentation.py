"""Segmenting volumes of a MRML scene: the logic of the module HybridMIMSegmentation, without any GUI.

    >>> from HybridMIMLib.slicer_side.segmentation import segment
    >>> node = segment(volume_node, "hippocampus")                                            # doctest: +SKIP
    >>> node = segment({"T1": one, "T2": other}, "/models/brain", roi=box, on_log=print)      # doctest: +SKIP

The work is done by the warm worker (:mod:`~HybridMIMLib.slicer_side.warm_worker`), a process of its own that keeps
the model loaded. The scene is only changed when a whole result is at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, Union

import numpy as np

from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.errors import DiskError, HybridMIMError, RunError, SettingsError
from HybridMIMLib.slicer_side.background import Background
from HybridMIMLib.slicer_side.environment import missing_packages
from HybridMIMLib.slicer_side.expected_time import ml_of, note_time
from HybridMIMLib.slicer_side.inputs import Given, make_inputs, why_not
from HybridMIMLib.slicer_side.job_folder import ROOM, JobFolder
from HybridMIMLib.slicer_side.jobs import FAILED, FINISHED, STOPPED, STOPPING, Work
from HybridMIMLib.slicer_side.label_layers import Image, LabelSource
from HybridMIMLib.slicer_side.models import find_model
from HybridMIMLib.slicer_side.results import Output, Result, put_in_scene, why_no_output
from HybridMIMLib.slicer_side.roi import Region, region_of
from HybridMIMLib.slicer_side.segments import Node, ijk_to_ras
from HybridMIMLib.slicer_side.sequences import put_sequence_in_scene, why_no_sequence_output
from HybridMIMLib.slicer_side.steps import Step
from HybridMIMLib.slicer_side.voxels import (
    Triple,
    copy_voxels,
    new_array,
    read_labels,
    type_of_copy,
    write_scan,
)
from HybridMIMLib.slicer_side.warm_worker import Request, warm_worker
from HybridMIMLib.slicer_side.window import let_window_live
from HybridMIMLib.worker_protocol import LAST_EVENTS

__all__ = ["Output", "SegmentationJob", "read_labels", "segment", "why_not"]

T = TypeVar("T")
_Looks: TypeAlias = Generator[Union[Step, None], None, T]
"""Pieces of work: None where there is nothing to do but to wait for the worker."""

_BUDGET = 0.02
"""Seconds of a look after which no further piece is begun."""
_PATIENCE = 1.0
"""Seconds after which a worker that has not begun is one that is still being started."""
_PHASES = {"load": "Loading the model", "read": "Reading the scan", "segment": "Segmenting", "write": "Writing"}
_STOPPED = RunError("Stopped", cure="Start it again.")


@dataclass(frozen=True, eq=False)
class _Sent:
    """An item on its way: its files, and which part of it they hold."""

    scans: list[Path]
    region: Region | None
    lower: Triple
    upper: Triple

    @property
    def shape(self) -> Triple:
        d, h, w = (b - a for a, b in zip(self.lower, self.upper))
        return (d, h, w)


class SegmentationJob(Work):
    """Something that is being segmented; a :class:`~HybridMIMLib.slicer_side.jobs.Work` whose result goes into the
    scene.

    Each :meth:`update` takes some 20 ms: voxels are copied and segments made piece by piece, files are written and
    read in threads, the rest is done by the worker.

    Args:
        volume: a ``vtkMRMLScalarVolumeNode`` in a scene; or several, one a channel, or a sequence; see
            :func:`~HybridMIMLib.slicer_side.inputs.why_not`.
        model: from :func:`~HybridMIMLib.slicer_side.models.find_model`.
        device: auto, cpu, cuda, cuda:1, mps.
        roi: a ``vtkMRMLMarkupsROINode``: only what lies in its box, as it is now, is segmented.
        output: what becomes of the result; without: a new segmentation.
        inference: settings, as in the section of that name of a run.yaml.

    Attributes:
        segmentation: the node that was made, once the state is finished.
        empty: names of the classes that were not found.
        made: all that was put into the scene, or None.
        answers: what the worker said of each item in the end: volumes, seconds, device.

    Raises:
        DataError: it cannot be segmented.
        HybridMIMError: the worker cannot be started, or there is no place for temporary files.
    """

    SECONDS_TO_END = 3.0
    """The worker has nothing to put in order: killed, it costs the next request no more than a new start."""

    def __init__(
        self,
        volume: Given,
        model: ModelDescription,
        device: str = "auto",
        roi: Node | None = None,
        output: Output | None = None,
        inference: Mapping[str, Any] | None = None,
    ) -> None:
        self.inputs, self.model, self.device = make_inputs(volume, model, roi), model, device
        self.volume = self.inputs.main
        self.output = output or Output()
        self.segmentation: Node | None = None
        self.empty: list[str] = []
        self.made: Result | None = None
        self.answers: list[dict[str, Any]] = []
        if reason := self._why_no_output():
            raise SettingsError(reason.rstrip("."), cure="Choose another output.")
        self._inference = dict(inference or {})
        self._stamps = self.inputs.stamps()
        self._regions = self._find_regions(roi)
        self._request: Request | None = None
        self._threads: list[Background[Any]] = []
        self._problem: Exception | None = None
        self._gone = ""
        self._was_warm, self._began = warm_worker().running, time.monotonic()
        # It gets ready while the scan is copied.
        warm_worker().start()
        self._folder = JobFolder()
        super().__init__(self._folder.path)
        self._pieces: _Looks[None] | None = self._work()
        # The user knows the volume, and no temporary file.
        self.progress.called = {str(self.folder): "temporary folder"}
        self._tell("Starting", None)

    def update(self) -> bool:
        """Take in what happened since the last call, and do some more; returns whether the job goes on.

        Raises:
            Exception: a defect of ours, once; the job has failed then.
        """
        if self.ended:
            return False
        self._notice()
        end = time.monotonic() + _BUDGET
        while self._advance() and time.monotonic() < end:
            pass
        if self.ended and self._problem is not None and not isinstance(self._problem, HybridMIMError):
            raise self._problem
        return not self.ended

    def cancel(self) -> None:
        """Ask for its end. A worker that does not obey is killed by :meth:`update`, some seconds later."""
        if not self.ended and not self._asked:
            self.state, self._asked = STOPPING, time.monotonic()
            if self._request is not None:
                self._request.cancel()

    def kill(self) -> None:
        """End it now, and wait for that: a moment for the worker to obey, then it is killed."""
        self.cancel()
        patience = time.monotonic() + 0.5
        while self.update():
            if time.monotonic() > patience:
                self._kill_worker()
            time.sleep(0.005)

    # --- looking --------------------------------------------------------------------------------------------

    def _notice(self) -> None:
        """See what else has happened: nodes that went, a worker that does not obey."""
        if not self._gone and not self.inputs.is_there():
            self._gone = (
                f"The volume {self.inputs.name} was removed from the scene, so its segmentation was stopped. "
                "Load it again, then start again."
            )
            self.cancel()
        target = self._target
        if not self._gone and target is not None and target.GetScene() is None:
            # Nobody waits for a result that has no place to go.
            self._gone = (
                f"The segmentation {target.GetName()}, to which the result was to go, was removed from the scene, so "
                "this was stopped. Choose another output, then start again."
            )
            self.cancel()
        if self._asked and time.monotonic() - self._asked > self.SECONDS_TO_END:
            self._kill_worker()

    @property
    def _target(self) -> Node | None:
        """What is replaced or appended to; once the result is in, it may go."""
        return self.output.segmentation if self.output.mode != "new" and self.made is None else None

    @property
    def _is_open(self) -> bool:
        """Whether the worker owes an answer."""
        return self._request is not None and self._request.open

    def _kill_worker(self) -> None:
        if self._request is not None and self._request.open:
            self._request.kill()

    def _advance(self) -> bool:
        """Do a piece of work; returns whether another can follow at once."""
        if self._pieces is None:
            return self._clean_up()
        try:
            if self._asked and not self._is_open:
                self._pieces.close()
                raise _STOPPED
            step = next(self._pieces)
        except StopIteration:
            self._pieces = None
        except Exception as error:
            self._pieces, self._problem = None, error
        else:
            if step is not None:
                self._tell(step.text, step.fraction)
            return step is not None
        return True

    def _clean_up(self) -> bool:
        """Leave no scan behind; the job is over when that is done."""
        if all(one.done for one in self._threads) and self._folder.is_removed():
            self._conclude()
        return False

    def _conclude(self) -> None:
        error = self._problem
        if error is None:
            self.state, self.message = FINISHED, self._what_was_made()
        elif self._gone:
            self.state, self.message = FAILED, self._gone
        elif not isinstance(error, HybridMIMError):
            # A defect of ours; the job is over all the same, and is not tried again at the next look.
            self.state, self.message = FAILED, f"Unexpected error: {type(error).__name__}: {error}"
        elif self._asked:
            self.state, self.message = STOPPED, "Stopped."
        else:
            self.state, self.message = FAILED, self.progress.for_user(str(_for_slicer(error)))
        if self.state == FAILED and self._request is not None:
            self.said = [self.progress.for_user(line) for line in self._request.last_lines()]

    def _what_was_made(self) -> str:
        assert self.segmentation is not None
        made = f"Made the segmentation {self.segmentation.GetName()}."
        return f"{made} Not found: {', '.join(self.empty)}." if self.empty else made

    # --- working --------------------------------------------------------------------------------------------

    def _work(self) -> _Looks[None]:
        labels: list[LabelSource] = []
        for item in range(self.inputs.items):
            sent = yield from self._send(item)
            yield from self._segment(item, sent)
            labels.append((yield from self._labels(item, sent)))
        self._check_unchanged()
        yield from self._note_time()
        yield from self._put(labels)

    def _send(self, item: int) -> _Looks[_Sent]:
        """Write an item where the worker finds it."""
        self._check_unchanged()
        volumes, region = self.inputs.volumes(item), self._regions[item]
        shape: Triple = volumes[0].GetImageData().GetDimensions()
        lower, upper = ((0, 0, 0), shape) if region is None else self._part(region, volumes[0], shape)
        sent = _Sent([], region, lower, upper)
        for channel, volume in enumerate(volumes):
            path = self.folder / f"scan-{item}-{channel}.nrrd"
            text = f"Copying {self.inputs.nodes[channel].GetName()}{self._which(item)}"
            self._call(path, item, channel)
            yield from self._write(volume, sent, path, text)
            sent.scans.append(path)
        return sent

    def _write(self, volume: Node, sent: _Sent, path: Path, text: str) -> _Looks[None]:
        affine = ijk_to_ras(volume)
        affine[:3, 3] += affine[:3, :3] @ np.array(sent.lower, float)
        array = yield from self._beside(partial(new_array, sent.shape, type_of_copy(volume)), Step(0, text))
        pieces = copy_voxels(volume, sent.lower, array)
        self._check_unchanged()
        for _ in pieces:
            yield Step(0, text)
            self._check_unchanged()
        yield from self._beside(partial(write_scan, path, array, affine), Step(0, text))

    def _segment(self, item: int, sent: _Sent) -> _Looks[None]:
        """Have the worker segment an item."""
        layers = {"layers": str(self._layers(item))} if self.model.overlapping else {}
        self._request = request = warm_worker().ask(
            "segment",
            scan=[str(path) for path in sent.scans],
            output=str(self._label_file(item)),
            model=str(self.model.path.absolute()),
            device=self.device,
            inference=self._inference,
            **layers,
        )
        last: Mapping[str, Any] = {}
        late = time.monotonic() + _PATIENCE
        while request.open:
            for answer in request.take():
                last = answer
                self._hear(answer, item)
            if last.get("event") in (None, "accepted") and time.monotonic() > late:
                # It loads PyTorch, which takes a while where nobody asked it before.
                self._tell("Starting the process that segments", None)
            if request.open:
                yield None
        if last.get("event") == "done":
            self.answers.append(dict(last))
        elif last.get("event") == "cancelled":
            raise _STOPPED
        else:
            raise RunError(str(last.get("message", "The worker gave no reason")), cure=str(last.get("cure", "")))

    def _hear(self, answer: Mapping[str, Any], item: int) -> None:
        event = answer.get("event")
        if event == "progress":
            done, of = answer.get("done", 0), answer.get("of", 1)
            phase = _PHASES.get(str(answer.get("phase")), str(answer.get("phase"))) + self._which(item)
            told = {"phase": phase, "step": done, "steps": of, "seconds_left": answer.get("seconds_left")}
            self.progress.take({"kind": "progress", **told})
        elif event == "message":
            self._note(str(answer.get("message", "")), str(answer.get("level", "info")))
        elif event in LAST_EVENTS and event != "cancelled":
            self._note(_in_words(answer))

    def _labels(self, item: int, sent: _Sent) -> _Looks[LabelSource]:
        """The label map of an item, or a mask a class where classes overlap; a file as it is, if it may be."""
        last = self.answers[item]
        files: Mapping[str, Any] = last.get("layers") or {}
        if self.model.overlapping:
            masks: dict[str, Image] = {}
            for name, path in files.items():
                masks[str(name)] = yield from self._whole(item, sent, Path(str(path)))
            return masks
        return (yield from self._whole(item, sent, self._label_file(item)))

    def _whole(self, item: int, sent: _Sent, file: Path) -> _Looks[Image]:
        if sent.region is None:
            return file
        volume, region = self.inputs.volumes(item)[0], sent.region
        shape: Triple = volume.GetImageData().GetDimensions()
        name = self.inputs.name

        def read() -> Any:
            return region.keep(read_labels(file, sent.shape, name), sent.lower, shape)

        return (yield from self._beside(read, Step(0, f"Reading the result{self._which(item)}")))

    def _note_time(self) -> _Looks[None]:
        """Keep what it took, for the next time; not of a part of a scan, nor with settings that no preset has."""
        if any(one is not None for one in self._regions) or set(self._inference) - {"preset"}:
            return
        seconds, ml = time.monotonic() - self._began, ml_of(self.inputs)
        note = partial(note_time, self.model, self.device, ml, self.answers, seconds, self._was_warm)
        yield from self._beside(note, Step(1, "Reading the result"))

    def _put(self, labels: list[LabelSource]) -> _Looks[None]:
        """Put the result into the scene, in one piece at the end."""
        how = self.model, self.output, self._made_with()
        if self.inputs.is_sequence:
            self.made = yield from put_sequence_in_scene(self.volume, labels, *how)
        else:
            self.made = yield from put_in_scene(self.volume, labels[0], *how)
        self.segmentation, self.empty = self.made.segmentation, self.made.empty
        for note in self.made.notes:
            self._note(f"{note}.", "warning")

    def _made_with(self) -> dict[str, Any]:
        """What the result keeps of how it came about."""
        model = self.answers[0].get("model") or {}
        return {
            "digest": model.get("digest", ""),
            "package": str(self.model.path),
            "device": self.answers[0].get("device"),
            "inference": self._inference,
            "inputs": self.inputs.to_json(),
            "region": None if self._regions[0] is None else self._regions[0].to_json(),
            "seconds": [one.get("seconds", {}).get("total") for one in self.answers],
        }

    def _beside(self, do: Callable[[], T], step: Step) -> _Looks[T]:
        """Do something in a thread, which the end of the job waits for."""
        work = Background(do)
        self._threads.append(work)
        for _ in work.wait():
            yield step
        return work.result()

    # --- words and places -----------------------------------------------------------------------------------

    def _tell(self, text: str, fraction: float | None) -> None:
        self.progress.take({"kind": "progress", "phase": text, "step": fraction or 0.0, "steps": 1})

    def _note(self, text: str, level: str = "info") -> None:
        self.progress.take({"kind": "message", "message": text, "level": level})

    def _which(self, item: int) -> str:
        return f" ({item + 1} of {self.inputs.items})" if self.inputs.is_sequence else ""

    def _call(self, path: Path, item: int, channel: int) -> None:
        """What to call a temporary file in front of the user."""
        called = f"volume {self.inputs.nodes[channel].GetName()}{self._which(item)}"
        # The folder comes last: it is the beginning of every file's name.
        self.progress.called = {str(path): called, **self.progress.called}

    def _label_file(self, item: int) -> Path:
        return self.folder / f"labels-{item}.nrrd"

    def _layers(self, item: int) -> Path:
        return self.folder / f"layers-{item}"

    def _check_unchanged(self) -> None:
        if self.inputs.stamps() != self._stamps:
            raise RunError(
                f"The voxels of {self.inputs.name} were changed while they were segmented", cure="Segment it again."
            )

    def _why_no_output(self) -> str:
        if self.inputs.is_sequence:
            return why_no_sequence_output(self.volume, self.output, self.model)
        return why_no_output(self.output, self.model)

    def _find_regions(self, roi: Node | None) -> list[Region | None]:
        if roi is None:
            return [None] * self.inputs.items
        transform, found, regions = self.inputs.transform, dict[tuple[Any, ...], Region](), []
        for item in range(self.inputs.items):
            volume = self.inputs.volumes(item)[0]
            grid = volume.GetImageData().GetDimensions(), ijk_to_ras(volume).tobytes()
            # Under a warping transform it takes tens of milliseconds, and most items lie on one grid.
            if grid not in found:
                found[grid] = region_of(roi, volume, transform)
            regions.append(found[grid])
        return list(regions)

    def _part(self, region: Region, volume: Node, shape: Triple) -> tuple[Triple, Triple]:
        """Which part of the volume the worker gets: the region and half a window more on each side.

        Where intensities are judged by those of the whole scan, it needs that.
        """
        plan = self.model.plan
        if plan["normalisation"] != "window":
            return (0, 0, 0), shape
        # The plan's axes are R, A, S; each of the volume's is nearest to one of them.
        axes = np.abs(ijk_to_ras(volume)[:3, :3])
        nearest, spacing = axes.argmax(axis=0), np.linalg.norm(axes, axis=0)
        half = [plan["crop"][axis] * plan["spacing"][axis] / 2 for axis in nearest]
        return region.with_context([one / size for one, size in zip(half, spacing)], shape)


def segment(
    volume: Given,
    model: str | Path,
    device: str = "auto",
    on_update: Callable[[SegmentationJob], None] | None = None,
    *,
    roi: Node | None = None,
    output: Output | None = None,
    inference: Mapping[str, Any] | None = None,
    on_log: Callable[[str], None] | None = None,
    on_progress: Callable[[float | None, str], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Node:
    """Segment something and wait for it: for scripts, with Slicer, whose window stays alive, or slicer-core alone.

    Args:
        volume: a ``vtkMRMLScalarVolumeNode`` in a scene; a list of them, one a channel; a mapping from the names of
            channels to them; or a ``vtkMRMLSequenceNode``, each item of which is segmented.
        model: name of a model of this user, or the folder or ``.zip`` of a model package.
        device: auto, cpu, cuda, cuda:1, mps.
        on_update: called several times a second with the job.
        roi: a ``vtkMRMLMarkupsROINode``: only what lies in its box is segmented.
        output: whether a new segmentation is made, or one is replaced or appended to, and which classes are kept.
        inference: settings, as in the section of that name of a run.yaml, such as ``{"preset": "fast"}``.
        on_log: called with each line of the log.
        on_progress: called several times a second with the share that is done (None while nobody can say) and what
            is being done.
        is_cancelled: called several times a second; when it returns True, the work is stopped.

    Returns:
        A ``vtkMRMLSegmentationNode`` with one segment a class, on the volume's grid and under its transform.

    Raises:
        HybridMIMError: the message names what is wrong and the cure; the scene is as it was.
    """
    missing = missing_packages()
    if missing:
        raise SettingsError(
            f"These packages are missing: {', '.join(missing)}",
            cure="Install them (in Slicer: press Apply in the module HybridMIM Segmentation and agree).",
        )
    job = SegmentationJob(volume, find_model(model), device, roi, output, inference)
    watch = _Watch(on_update, on_log, on_progress, is_cancelled)
    try:
        job.wait(watch, interval=0.02)
        watch(job)
    finally:
        if not job.ended:
            # An exception in a callback, or Ctrl+C.
            job.kill()
    return job.segmentation


class _Watch:
    """Tells the callbacks of a script what there is to tell."""

    def __init__(
        self,
        on_update: Callable[[SegmentationJob], None] | None,
        on_log: Callable[[str], None] | None,
        on_progress: Callable[[float | None, str], None] | None,
        is_cancelled: Callable[[], bool] | None,
    ) -> None:
        self._on_update, self._on_log, self._on_progress = on_update, on_log, on_progress
        self._is_cancelled, self._told = is_cancelled, 0

    def __call__(self, job: SegmentationJob) -> None:
        let_window_live()
        if self._on_update is not None:
            self._on_update(job)
        if self._on_log is not None:
            for line in job.progress.lines[self._told :]:
                self._on_log(line)
            self._told = len(job.progress.lines)
        if self._on_progress is not None:
            self._on_progress(1.0 if job.ended else job.progress.fraction, job.progress.describe())
        if self._is_cancelled is not None and not job.ended and self._is_cancelled():
            job.cancel()


def _in_words(answer: Mapping[str, Any]) -> str:
    """The last answer of the worker for the log."""
    if answer.get("event") != "done":
        return f"{answer.get('message', '')}. {answer.get('cure', '')}"
    found = ", ".join(f"{one['name']} {one['ml']:g} ml" for one in answer.get("classes", ()))
    seconds = answer.get("seconds", {}).get("total")
    return f"Segmented in {seconds} s on {answer.get('device')}: {found or 'nothing was found'}"


def _for_slicer(error: HybridMIMError) -> HybridMIMError:
    """Cures that speak of the command line do not help in Slicer."""
    if "--output" in error.cure and "disk is full" in error.message:
        return DiskError(error.message, cure=ROOM)
    return error
