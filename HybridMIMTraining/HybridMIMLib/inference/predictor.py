"""The predictor: scan in, labels on the scan's own grid out.

A scan is turned to R, A, S, resampled to the plan's spacing and normalised as training saw it. Windows inside the
body box go through the network (:mod:`~HybridMIMLib.inference.windows`, :mod:`~HybridMIMLib.inference.sliding`), and
slab by slab the scores become labels on the scan's grid (:mod:`~HybridMIMLib.inference.labelling`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Union

import numpy as np
import numpy.typing as npt
import torch

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.grid import Grid, from_canonical
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.inference.cleaning import clean, clean_layers
from HybridMIMLib.inference.engines import Engine, choose_engine
from HybridMIMLib.inference.labelling import ExclusiveLabels, Layout, OverlappingLabels, Uncertainty
from HybridMIMLib.inference.ladder import Rung, with_ladder
from HybridMIMLib.inference.pace import Pace
from HybridMIMLib.inference.preparing import PreparedScan, prepare_scan
from HybridMIMLib.inference.sliding import Computing, Watch, sliding_scores
from HybridMIMLib.inference.windows import Triple, plan_windows, step_of
from HybridMIMLib.model_package import ModelPackage
from HybridMIMLib.networks.device import wait_for
from HybridMIMLib.settings.inference import InferenceSettings

Labels = npt.NDArray[np.integer[Any]]
Tell = Callable[[str], None]

Preset = Literal["fast", "balanced", "best"]
OVERLAPS: dict[Preset, float] = {"fast": 0.25, "balanced": 0.5, "best": 0.625}
"""Of the presets; see :class:`~HybridMIMLib.settings.inference.InferenceSettings`."""


@dataclass(frozen=True)
class Prediction:
    """What was found in a scan, on the scan's own grid.

    Attributes:
        labels: (D, H, W) uint8, or uint16 where a class has a label above 255. Where classes overlap, the last of
            those that hold a voxel.
        layers: (K, D, H, W) bool, for classes that overlap; None for those that do not.
        uncertainty: (D, H, W) float32 from 0 to 1, or None if it was not asked for.
        windows: how many went through the network.
        skipped: how many did not, because they hold nothing but air.
        passes: windows that each preset would have sent through the network, flips included; empty where nobody
            counted.
    """

    labels: Labels
    layers: npt.NDArray[np.bool_] | None
    uncertainty: npt.NDArray[np.float32] | None
    windows: int
    skipped: int
    passes: Mapping[str, int] = field(default_factory=dict)


class Predictor:
    """Segments scans with a network that stays on its device.

    Args:
        engine: computes the network.
        plan: how scans are brought to the form the network knows.
        classes: what outputs 1 to K mean, or, where classes overlap, outputs 0 to K - 1.
        settings: of the sliding window, and what else is wanted.
        overlapping: whether each class is told by itself (sigmoid) and not against the others (softmax).
        clean_up: what is done to each class afterwards.
        flip_axes: axes along which the network was trained to be flipped; the preset ``best`` makes use of them.
        tell: where to say how long a scan will take, and what had to be done about memory.

    Raises:
        SettingsError: windows would leave gaps.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        classes: tuple[LabelClass, ...],
        settings: InferenceSettings,
        overlapping: bool = False,
        clean_up: CleanUp | None = None,
        flip_axes: tuple[int, ...] = (),
        tell: Tell = lambda text: None,
    ) -> None:
        self.engine, self.plan, self.classes, self.settings = engine, plan, classes, settings
        self.overlapping, self.clean_up = overlapping, clean_up or CleanUp()
        self.flip_axes = flip_axes
        self.step, self.flips = _step(settings, plan.crop), _flips(settings, flip_axes)
        self._tell = tell
        self._rung = Rung(engine.device, engine.batch, engine.device)
        labels = [0, *(one.label for one in classes)]
        self._type: type[np.integer[Any]] = np.uint8 if max(labels) < 256 else np.uint16
        self._values: Labels = np.array(labels, dtype=self._type)

    def predict(self, array: npt.NDArray[Any], grid: Grid, watch: Watch | None = None) -> Prediction:
        """Segment one scan.

        Args:
            array: (C, D, H, W), intensities as in the file.
            grid: of the scan; any orientation, spacing and shear.
            watch: called with the number of windows done, and of all; what it raises ends the work.

        Raises:
            DataError: the scan has another number of channels than the model.
            HybridMIMError: there is not enough memory, even on the CPU.
        """
        scan = self._prepared(array, grid)
        layout = Layout.of(scan.windows, scan.coarse, scan.grid.shape)
        found, self._rung = with_ladder(self._rung, lambda rung: self._attempt(rung, scan, layout, watch), self._tell)
        return self._finished(found, scan)

    def forecast(self, array: npt.NDArray[Any], grid: Grid) -> dict[Preset, float]:
        """Seconds that each preset would take for a scan, from one window that is computed to see.

        Flips are those of the preset and of this model; see :meth:`predict` for arguments and errors.
        """
        scan = self._prepared(array, grid)
        pace, self._rung = with_ladder(self._rung, self._seconds_a_window, self._tell)
        return {name: self._count(scan, name) * pace + 2 * scan.seconds for name in OVERLAPS}

    def _seconds_a_window(self, rung: Rung) -> float:
        how = self._computing(rung)
        crops = torch.zeros((1, self.plan.channels, *self.plan.crop), device=how.device).expand(
            how.batch, -1, -1, -1, -1
        )
        how.forward(crops)
        wait_for(how.device)
        began = time.monotonic()
        how.forward(crops)
        wait_for(how.device)
        return (time.monotonic() - began) / how.batch

    def _count(self, scan: PreparedScan, preset: Preset) -> int:
        """How many windows a preset sends through the network."""
        chosen = replace(self.settings, preset=preset, overlap=None, step=None, flips=None)
        windows = plan_windows(
            scan.coarse, self.plan.crop, _step(chosen, self.plan.crop), scan.body, _follows(chosen)
        )
        return len(windows.starts) * 2 ** len(_flips(chosen, self.flip_axes))

    def _prepared(self, array: npt.NDArray[Any], grid: Grid) -> PreparedScan:
        return prepare_scan(array, grid, self.plan, self.step, self.settings.skip_air, _follows(self.settings))

    def _computing(self, rung: Rung) -> Computing:
        if (self.engine.device, self.engine.batch) != (rung.device, rung.batch):
            self.engine = self.engine.on(rung.device, rung.batch)
        outputs = len(self.classes) + (not self.overlapping)
        return Computing(
            self.engine, rung.device, rung.batch, rung.accumulate_on, outputs, self.overlapping, self.flips
        )

    def _attempt(self, rung: Rung, scan: PreparedScan, layout: Layout, watch: Watch | None) -> list[_Taker]:
        how = self._computing(rung)
        labels = OverlappingLabels if self.overlapping else ExclusiveLabels
        takers: list[_Taker] = [labels(layout, how.sums_on, how.outputs)]
        if self.settings.uncertainty:
            takers.append(Uncertainty(layout, how.sums_on, self.overlapping))
        windows = scan.windows
        about = f"{len(windows.starts)} windows, and {windows.skipped} of air passed over"
        # Labels go the way of the scan back, and take about as long.
        pace = Pace(about, scan.seconds, lambda: wait_for(how.device), self._tell, watch)
        with torch.inference_mode():
            for slab in sliding_scores(scan.box, windows, how, pace.watch):
                with pace.not_counted():
                    for taker in takers:
                        taker.add(slab)
        return takers

    def _finished(self, found: list[_Taker], scan: PreparedScan) -> Prediction:
        """Clean up, name the labels, and turn everything back to the axes of the file."""
        layers, labels = None, found[0]
        if isinstance(labels, OverlappingLabels):
            layers = clean_layers(labels.layers, self.classes, scan.grid, self.clean_up)
            values = np.zeros(scan.grid.shape, dtype=self._type)
            for one, layer in zip(self.classes, layers):
                values[layer] = one.label
            layers = from_canonical(layers, scan.orientation)
        else:
            assert isinstance(labels, ExclusiveLabels)
            values = clean(self._values[labels.numbers], scan.grid, self.clean_up)
        entropy = [one.entropy for one in found if isinstance(one, Uncertainty)]
        return Prediction(
            from_canonical(values, scan.orientation),
            layers,
            from_canonical(entropy[0], scan.orientation) if entropy else None,
            len(scan.windows.starts),
            scan.windows.skipped,
            {name: self._count(scan, name) for name in OVERLAPS},
        )


def make_predictor(
    package: ModelPackage,
    settings: InferenceSettings,
    device: str,
    tell: Tell = lambda text: None,
    engine: Engine | None = None,
) -> Predictor:
    """The predictor of a model package.

    Args:
        package: the model.
        settings: what they leave open is as the package says.
        device: auto, cpu, cuda, cuda:1, mps.
        tell: where to say what the user should know; see :class:`Predictor`.
        engine: computes the network of the package; without: one is chosen.

    Raises:
        SettingsError: device, engine, precision or step cannot be had, or a class is not one of the model.
    """
    plan = package.plan
    return Predictor(
        engine or choose_engine(package.network, plan.channels, plan.crop, settings, device, tell),
        package.plan,
        package.classes,
        settings,
        package.overlapping,
        package.clean_up.with_settings(settings, package.classes),
        package.flip_axes,
        tell,
    )


_Taker = Union[ExclusiveLabels, OverlappingLabels, Uncertainty]


def _step(settings: InferenceSettings, crop: Triple) -> Triple:
    if settings.step is None:
        return step_of(crop, OVERLAPS[settings.preset] if settings.overlap is None else settings.overlap)
    if any(step > size for step, size in zip(settings.step, crop)):
        raise SettingsError(
            f"inference.step {settings.step} is larger than the windows of this model, {list(crop)}, and leaves gaps",
            cure="Give at most the size of a window along each axis.",
        )
    d, h, w = settings.step
    return (d, h, w)


def _follows(settings: InferenceSettings) -> bool:
    return settings.follow_body or settings.preset == "fast"


def _flips(settings: InferenceSettings, trained: tuple[int, ...]) -> tuple[int, ...]:
    if settings.flips is None:
        return trained if settings.preset == "best" else ()
    return tuple(settings.flips)
