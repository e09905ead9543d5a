"""The predictor, with networks whose answer is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.grid import Grid, to_canonical
from HybridMIMLib.data.normalisation import intensity_range
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import read_scan
from HybridMIMLib.errors import DataError, HybridMIMError, SettingsError
from HybridMIMLib.inference.engines import Engine, TorchEngine
from HybridMIMLib.inference.predictor import Predictor
from HybridMIMLib.settings.inference import InferenceSettings

Triple = tuple[int, int, int]
CPU = torch.device("cpu")
CLASSES = (LabelClass(3, "dim", (1, 0, 0)), LabelClass(9, "bright", (0, 1, 0)))
PLAIN = Grid((20, 24, 18), np.eye(4))


class Threshold(nn.Module):
    """Scores that say: class 1 from intensity 0.3, class 2 from 0.7; no neighbourhood. Channels are averaged."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=1, keepdim=True)
        return torch.cat([0.3 - x, torch.minimum(x - 0.3, 0.7 - x), x - 0.7], dim=1)


class Above(nn.Module):
    """Overlapping classes: the first from 0.3, the second from 0.7, which the first holds too."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x - 0.3, x - 0.7], dim=1)


class Rising(nn.Module):
    """Class 1 where intensities rise along the first axis, class 2 where they fall: it knows left from right."""

    def forward(self, x: Tensor) -> Tensor:
        slope = torch.diff(x, dim=2, append=x[:, :, -1:])
        return torch.cat([torch.full_like(x, 0.02), slope, -slope], dim=1)


class Blur(nn.Module):
    """Thresholds of what lies around a voxel; it is the same from all sides."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = Threshold()(nn.functional.avg_pool3d(x, 3, 1, 1))
        return scores


def plan_of(spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), crop: int = 16, channels: int = 1) -> Plan:
    return Plan(channels, spacing, "window", (0.0, 100.0), (crop,) * 3, (8,) * 3, (8,) * 3)


def predictor(plan: Plan | None = None, network: nn.Module | None = None, batch: int = 2, **others: Any) -> Predictor:
    """Settings by name, and what else a predictor takes."""
    plan, chosen = plan or plan_of(), {"classes": CLASSES, **others}
    names = {name: chosen.pop(name) for name in list(chosen) if name in InferenceSettings.__dataclass_fields__}
    engine = TorchEngine(network or Threshold(), CPU, batch)
    return Predictor(engine, plan, settings=InferenceSettings(**names), **chosen)


def affine(spacing: tuple[float, float, float], turn: np.ndarray | None = None) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    matrix[:3, 3] = (-12.5, 40.0, 7.25)
    return matrix


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def intensities(shape: Triple, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Whole numbers from 0 to 100; none on a threshold."""
    array = np.random.default_rng(seed).integers(0, 101, (channels, *shape)).astype(np.int16)
    array[np.isin(array, (30, 70))] = 50
    return array


def answer(array: np.ndarray) -> np.ndarray:
    return np.select([array > 70, array > 30], [9, 3], 0)


AIL = np.array([[0, 0, -1.0], [1.0, 0, 0], [0, -1.0, 0]])
SHEAR = np.array([[1, 0.2, 0], [0, 1, 0], [0, 0, 1.0]])
GRIDS: dict[str, Callable[[], Grid]] = {
    "plain": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0))),
    "oblique": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0), turned(17))),
    "flipped": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0), np.diag([-1.0, -1.0, 1.0]))),
    "anisotropic": lambda: Grid((40, 48, 9), affine((0.5, 0.5, 4.0), turned(-30))),
    "axes A-I-L": lambda: Grid((20, 24, 18), affine((1.0, 2.0, 3.0), AIL)),
    "sheared": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0), SHEAR)),
    "two slices": lambda: Grid((20, 24, 2), affine((1.0, 1.0, 37.5))),
    "single slice": lambda: Grid((20, 24, 1), affine((1.0, 1.0, 5.0))),
    "single slice from the side": lambda: Grid((1, 20, 24), affine((5.0, 1.0, 1.0), turned(8) @ AIL)),
    "long": lambda: Grid((9, 10, 70), affine((1.0, 1.0, 1.0))),
    "smaller than the window": lambda: Grid((5, 7, 6), affine((1.0, 1.0, 1.0))),
}


def own_plan(grid: Grid, **others: Any) -> Plan:
    """A plan with the spacing of a grid, so that nothing is resampled."""
    _, along_ras, _ = to_canonical(np.empty(grid.shape, dtype=np.bool_), grid)
    return plan_of(along_ras.spacing, **others)


# --- on every grid ---


@pytest.mark.parametrize("skip_air", [True, False])
@pytest.mark.parametrize("name", GRIDS)
def test_known_answer_at_the_scans_own_spacing_is_exact(name: str, skip_air: bool) -> None:
    grid = GRIDS[name]()
    array = intensities(grid.shape)
    result = predictor(own_plan(grid), skip_air=skip_air).predict(array, grid)
    assert result.labels.dtype == np.uint8 and result.labels.flags.c_contiguous
    assert np.array_equal(result.labels, answer(array[0]))
    assert result.layers is None and result.uncertainty is None and result.skipped == 0


@pytest.mark.parametrize("name", ["plain", "oblique", "flipped", "anisotropic", "axes A-I-L", "sheared"])
def test_label_edges_lie_where_the_intensity_edges_are_after_resampling(name: str) -> None:
    """A ramp in the world crosses the threshold on a plane; labels must change there, to within half a voxel."""
    grid = GRIDS[name]()
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    world = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    height = world @ np.array([0.6, 0.64, 0.48])
    ramp = 100 * (height - height.min()) / (height.max() - height.min())
    result = predictor(plan_of((2.0, 1.5, 3.0))).predict(ramp[None].astype(np.float32), grid).labels
    voxel = 100 * max(grid.spacing) / (height.max() - height.min())
    inner = np.zeros(grid.shape, dtype=bool)
    edge = [math.ceil(2 / size) for size in grid.spacing]  # Beyond the outermost centres a ramp goes on flat.
    inner[tuple(slice(e, -e) for e in edge)] = True
    sure = inner & (abs(ramp - 30) > voxel) & (abs(ramp - 70) > voxel)
    assert set(answer(ramp)[sure]) == {0, 3, 9}
    assert np.array_equal(result[sure], answer(ramp)[sure])


@pytest.mark.parametrize(
    "file", ["sct_t2_AIL_axes.nii.gz", "two_slices_37.5mm.nii.gz", "sct_t2s_oblique_7.5mm.nii.gz"]
)
def test_known_answer_on_awkward_real_scans(shared_data: Path, file: str) -> None:
    scan = read_scan(shared_data / "ugly" / "nifti" / file)
    plan = replace(own_plan(scan.grid, crop=48), normalisation="percentiles")
    result = predictor(plan).predict(scan.array, scan.grid).labels
    ((low, high),) = intensity_range(scan.array.astype(np.float32), plan)
    values = 100 * (scan.array[0] - low) / (high - low)
    sure = (abs(values - 30) > 1e-3) & (abs(values - 70) > 1e-3)
    assert np.array_equal(result[sure], answer(values)[sure]) and len(np.unique(result)) == 3


def test_several_channels() -> None:
    array = intensities(PLAIN.shape, channels=3)
    result = predictor(plan_of(channels=3)).predict(array, PLAIN).labels
    mean = array.mean(axis=0)
    sure = (abs(mean - 30) > 1e-3) & (abs(mean - 70) > 1e-3)
    assert np.array_equal(result[sure], answer(mean)[sure])


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(DataError, match="2 channel"):
        predictor().predict(np.zeros((2, 8, 8, 8)), Grid((8, 8, 8), np.eye(4)))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16, np.uint8, np.bool_])
def test_intensities_of_every_type_and_the_callers_stay_as_they_are(kind: Any) -> None:
    array = (intensities(PLAIN.shape) > 50 if kind is np.bool_ else intensities(PLAIN.shape)).astype(kind)
    before = array.copy()
    array.setflags(write=False)
    plan = replace(plan_of(), window=(0.0, 1.0)) if kind is np.bool_ else plan_of()
    result = predictor(plan).predict(array, PLAIN).labels
    expected = np.where(array[0], 9, 0) if kind is np.bool_ else answer(array[0])
    assert np.array_equal(result, expected) and np.array_equal(array, before)


def test_labels_above_255() -> None:
    classes = (LabelClass(300, "dim", (1, 0, 0)), LabelClass(7, "bright", (0, 1, 0)))
    array = intensities(PLAIN.shape)
    result = predictor(classes=classes).predict(array, PLAIN).labels
    assert result.dtype == np.uint16
    assert np.array_equal(result, np.select([array[0] > 70, array[0] > 30], [7, 300], 0))


# --- windows ---


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "fast"},
        {"preset": "best", "flip_axes": (0, 1)},
        {"overlap": 0.0},
        {"overlap": 0.8},
        {"step": [16, 5, 1]},
        {"flips": [0, 1, 2]},
        {"batch": 7},
        {"plan": plan_of(crop=8)},
        {"plan": plan_of(crop=32)},
    ],
    ids=str,
)
def test_windows_do_not_show(settings: dict[str, Any]) -> None:
    """They decide how long it takes, not what comes out."""
    array = intensities(PLAIN.shape)
    assert np.array_equal(predictor(**settings).predict(array, PLAIN).labels, answer(array[0]))


def test_presets_overlap_and_steps_decide_how_many_windows_there_are() -> None:
    grid = Grid((64, 16, 16), np.eye(4))
    array = intensities(grid.shape) + 1

    def windows(**settings: Any) -> int:
        return predictor(**settings).predict(array, grid).windows

    assert windows() == windows(preset="balanced") == windows(overlap=0.5) == windows(step=[8, 1, 16]) == 7
    assert windows(preset="fast") == windows(overlap=0.25) == windows(step=[12, 16, 16]) == 5
    assert windows(preset="best") == windows(overlap=0.625) == windows(step=[6, 16, 16]) == 9
    assert windows(preset="best", overlap=0.0) == windows(step=[16, 16, 16]) == 4
    assert windows(preset="best", flip_axes=(0, 1)) == 9, "flips are no windows of their own"


def test_a_step_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"inference.step \[16, 17, 16\]"):
        predictor(step=[16, 17, 16])


RAMP = np.broadcast_to(np.arange(20.0)[:, None, None] * 5, PLAIN.shape)[None]


def test_flips_are_undone() -> None:
    """A network that is the same from all sides says the same with flips, one that is not is averaged over them."""
    array = intensities(PLAIN.shape).astype(np.float32) + 0.37
    blurred = [predictor(network=Blur(), flips=flips).predict(array, PLAIN).labels for flips in ([], [0, 1, 2])]
    assert np.array_equal(*blurred) and len(np.unique(blurred[0])) == 3
    rising = predictor(network=Rising(), skip_air=False)
    assert (rising.predict(RAMP, PLAIN).labels[2:-2] == 3).all()
    assert (rising.predict(RAMP[:, ::-1], PLAIN).labels[2:-2] == 9).all()
    along_another = predictor(network=Rising(), skip_air=False, flips=[1, 2])
    assert (along_another.predict(RAMP, PLAIN).labels[2:-2] == 3).all()
    along_it = predictor(network=Rising(), skip_air=False, flips=[0])
    assert (along_it.predict(RAMP, PLAIN).labels[2:-2] == 0).all(), "a rise and a fall"


@pytest.mark.parametrize(
    ("settings", "flipped"),
    [
        ({}, False),
        ({"preset": "best"}, True),
        ({"preset": "best", "flips": []}, False),
        ({"preset": "best", "flip_axes": (1, 2)}, False),
        ({"preset": "best", "flip_axes": ()}, False),
        ({"preset": "fast", "flips": [0]}, True),
        ({"flips": [0], "flip_axes": ()}, True),
    ],
    ids=str,
)
def test_the_preset_best_flips_along_the_axes_of_the_model_alone(settings: dict[str, Any], flipped: bool) -> None:
    chosen = {"flip_axes": (0,), **settings}
    labels = predictor(network=Rising(), skip_air=False, **chosen).predict(RAMP, PLAIN).labels
    assert (labels[2:-2] == (0 if flipped else 3)).all()


# --- air ---


def body_in_air() -> tuple[np.ndarray, Grid]:
    grid = Grid((50, 60, 70), affine((-1.0, 1.0, 1.0)))
    array = np.zeros((1, *grid.shape), dtype=np.int16)
    array[0, 5:30, 20:50, 30:65] = intensities((25, 30, 35))
    array[0, 15:30, 30:40, 20:50] = 0
    return array, grid


def test_skipping_air_changes_nothing_where_the_network_sees_nothing_in_air() -> None:
    array, grid = body_in_air()
    quick, full = (predictor(plan_of(crop=8), skip_air=skip).predict(array, grid) for skip in (True, False))
    assert np.array_equal(quick.labels, full.labels) and np.array_equal(full.labels, answer(array[0]))
    assert quick.skipped > 20 and full.skipped == 0 and quick.windows + quick.skipped < full.windows


def test_skipping_air_changes_nothing_after_resampling_either() -> None:
    array, grid = body_in_air()
    plan = plan_of((1.3, 0.8, 2.1), crop=8)
    quick, full = (predictor(plan, skip_air=skip).predict(array, grid) for skip in (True, False))
    assert np.array_equal(quick.labels, full.labels) and quick.windows < full.windows


def test_a_scan_of_air_is_background() -> None:
    result = predictor(uncertainty=True).predict(np.zeros((1, *PLAIN.shape)), PLAIN)
    assert not result.labels.any() and result.windows == 0 and result.skipped > 0
    assert result.uncertainty is not None and result.uncertainty.max() < 1e-6


# --- what else is wanted ---


@pytest.mark.parametrize("name", ["plain", "axes A-I-L", "sheared"])
def test_overlapping_classes_are_layers_and_the_last_is_painted_last(name: str) -> None:
    grid = GRIDS[name]()
    array = intensities(grid.shape)
    result = predictor(own_plan(grid), Above(), overlapping=True).predict(array, grid)
    assert result.layers is not None and result.layers.dtype == np.bool_
    assert np.array_equal(result.layers, np.stack([array[0] > 30, array[0] > 70]))
    assert np.array_equal(result.labels, answer(array[0]))
    swapped = predictor(own_plan(grid), Above(), overlapping=True, classes=CLASSES[::-1]).predict(array, grid)
    assert np.array_equal(swapped.labels, np.select([array[0] > 70, array[0] > 30], [3, 9], 0))


def test_uncertainty_lies_on_the_scans_grid() -> None:
    grid = GRIDS["axes A-I-L"]()
    array = intensities(grid.shape)
    for overlapping, network in ((False, Threshold()), (True, Above())):
        one = predictor(own_plan(grid), network, overlapping=overlapping, uncertainty=True)
        result = one.predict(array, grid).uncertainty
        scores = network(torch.from_numpy(array[None] / np.float32(100)))[0].double().numpy()
        if overlapping:
            shares = np.stack([1 / (1 + np.exp(-scores)), 1 / (1 + np.exp(scores))])
            expected = -(shares * np.log2(shares)).sum(axis=0).mean(axis=0)
        else:
            shares = np.exp(scores) / np.exp(scores).sum(axis=0)
            expected = -(shares * np.log(shares)).sum(axis=0) / np.log(3)
        assert result is not None and result.shape == grid.shape and result.dtype == np.float32
        assert np.abs(result - expected).max() < 1e-5


def test_clean_up_is_done_on_the_scans_grid() -> None:
    """Two blocks, of which the larger one stays; where classes overlap, in its layer."""
    grid = Grid((20, 24, 18), affine((1.0, 2.0, 3.0), AIL))
    array = np.zeros((1, *grid.shape), dtype=np.int16)
    array[0, 2:8, 2:8, 2:8], array[0, 12:15, 12:15, 12:15] = 50, 50
    kept = np.zeros(grid.shape, dtype=bool)
    kept[2:8, 2:8, 2:8] = True
    clean_up = CleanUp(largest=frozenset({3}))
    exclusive = predictor(own_plan(grid), clean_up=clean_up).predict(array, grid)
    assert np.array_equal(exclusive.labels, np.where(kept, 3, 0))
    overlapping = predictor(own_plan(grid), Above(), overlapping=True, clean_up=clean_up).predict(array, grid)
    assert overlapping.layers is not None and np.array_equal(overlapping.layers[0], kept)
    assert np.array_equal(overlapping.labels, exclusive.labels)
    assert np.count_nonzero(predictor(own_plan(grid)).predict(array, grid).labels) == 6**3 + 3**3


def test_training_mode_of_the_network_is_given_back() -> None:
    network = nn.Sequential(nn.Dropout(0.5), Threshold())
    network.train()
    array = intensities(PLAIN.shape)
    assert np.array_equal(predictor(network=network).predict(array, PLAIN).labels, answer(array[0]))
    assert network.training and network[0].training


# --- watching, memory, time ---


def test_watch_is_told_how_far_it_is_and_may_end_it() -> None:
    one, array, told = predictor(), intensities(PLAIN.shape), []
    result = one.predict(array, PLAIN, lambda *counts: told.append(counts))
    assert told == [*((done, result.windows) for done in range(2, result.windows, 2)), (result.windows,) * 2]

    def watch(done: int, windows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.predict(array, PLAIN, watch)
    assert np.array_equal(one.predict(array, PLAIN).labels, answer(array[0])), "it can be used again"


class Small(Engine):
    """A device that holds one window at a time, or none."""

    device, name = CPU, "small"

    def __init__(self, batch: int, room: int) -> None:
        self.batch, self.room = batch, room

    def __call__(self, windows: Tensor) -> Tensor:
        if len(windows) > self.room:
            raise torch.OutOfMemoryError("it is full")
        return Threshold()(windows)

    def on(self, device: torch.device, batch: int) -> Engine:
        return Small(batch, self.room)

    def close(self) -> None:
        pass


def test_without_memory_for_a_batch_it_goes_on_with_smaller_ones() -> None:
    told: list[str] = []
    one = Predictor(Small(4, 1), plan_of(), CLASSES, InferenceSettings(), tell=told.append)
    array = intensities(PLAIN.shape)
    assert np.array_equal(one.predict(array, PLAIN).labels, answer(array[0]))
    assert [text for text in told if "Out of memory" in text] == told and len(told) == 2
    assert np.array_equal(one.predict(array, PLAIN).labels, answer(array[0])) and len(told) == 2, "and remembers"


def test_without_memory_for_anything_the_error_says_what_to_do() -> None:
    one = Predictor(Small(2, 0), plan_of(), CLASSES, InferenceSettings())
    with pytest.raises(HybridMIMError, match="out of memory") as caught:
        one.predict(intensities(PLAIN.shape), PLAIN)
    assert caught.value.cure


def test_the_forecast_is_of_every_preset() -> None:
    """More windows and flips take longer; what else is set does not matter."""
    grid = Grid((64, 40, 40), np.eye(4))
    array = intensities(grid.shape)
    heavy = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.Conv3d(16, 3, 3, padding=1))
    for settings in ({}, {"preset": "fast"}, {"step": [16, 16, 16]}):
        found = predictor(network=heavy, flip_axes=(0,), **settings).forecast(array, grid)
        assert list(found) == ["fast", "balanced", "best"]
        assert all(math.isfinite(seconds) and seconds > 0 for seconds in found.values())
        assert found["fast"] < found["balanced"] < found["best"]


def test_the_forecast_goes_down_the_ladder_too() -> None:
    told: list[str] = []
    one = Predictor(Small(4, 1), plan_of(), CLASSES, InferenceSettings(), tell=told.append)
    found = one.forecast(intensities(PLAIN.shape), PLAIN)
    assert all(seconds > 0 for seconds in found.values()) and len(told) == 2
    with pytest.raises(HybridMIMError, match="out of memory"):
        Predictor(Small(4, 0), plan_of(), CLASSES, InferenceSettings()).forecast(intensities(PLAIN.shape), PLAIN)


def test_the_forecast_counts_the_windows_that_are_kept() -> None:
    array, grid = body_in_air()
    one = predictor(plan_of(crop=8))
    scan = one._prepared(array, grid)
    result = one.predict(array, grid)
    assert one._count(scan, "balanced") == result.windows
    best = predictor(plan_of(crop=8), preset="best", flip_axes=(0, 2))
    assert best._count(scan, "best") == 4 * best.predict(array, grid).windows
