"""The predictor, with networks whose answer is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from HybridMIMLib.config import InferenceSettings
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import DataError
from HybridMIMLib.inference.predictor import Predictor

CLASSES = (LabelClass(3, "dim", (1, 0, 0)), LabelClass(9, "bright", (0, 1, 0)))


class Threshold(nn.Module):
    """Scores that say: class 1 from intensity 0.3, class 2 from 0.7; no neighbourhood."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.3 - x, torch.minimum(x - 0.3, 0.7 - x), x - 0.7], dim=1)


def predictor(spacing: tuple[float, float, float], crop: int = 16) -> Predictor:
    plan = Plan(1, spacing, "window", (0.0, 100.0), (crop,) * 3, (8,) * 3, (8,) * 3)
    return Predictor(Threshold(), plan, CLASSES, InferenceSettings(), torch.device("cpu"))


def affine(spacing: tuple[float, float, float], turn: np.ndarray | None = None) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    matrix[:3, 3] = (-12.5, 40.0, 7.25)
    return matrix


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


AIL = np.array([[0, 0, -1.0], [1.0, 0, 0], [0, -1.0, 0]])
GRIDS: dict[str, Callable[[], Grid]] = {
    "plain": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0))),
    "oblique": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0), turned(17))),
    "flipped": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0), np.diag([-1.0, -1.0, 1.0]))),
    "axes A-I-L": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0), AIL)),
    "sheared": lambda: Grid((20, 24, 18), affine((1.0, 1.0, 1.0), np.array([[1, 0.2, 0], [0, 1, 0], [0, 0, 1.0]]))),
    "two slices": lambda: Grid((20, 24, 2), affine((1.0, 1.0, 1.0))),
    "smaller than the window": lambda: Grid((5, 7, 6), affine((1.0, 1.0, 1.0))),
}


@pytest.mark.parametrize("name", GRIDS)
def test_known_answer_at_the_scans_own_spacing_is_exact(name: str) -> None:
    grid = GRIDS[name]()
    array = np.random.default_rng(0).integers(0, 101, (1, *grid.shape)).astype(np.int16)
    # 30 and 70 lie on the threshold itself.
    array[np.isin(array, (30, 70))] = 50
    # The plan follows R, A, S; all grids here are isotropic but for shear, whose spacing differs along one axis.
    spacing = Grid(grid.shape, grid.affine).spacing if name == "sheared" else (1.0, 1.0, 1.0)
    result = predictor(spacing).predict(array, grid)
    expected = np.select([array[0] > 70, array[0] > 30], [9, 3], 0)
    assert result.dtype == np.uint8 and np.array_equal(result, expected)


@pytest.mark.parametrize("name", ["plain", "oblique", "flipped", "axes A-I-L"])
def test_label_edges_lie_where_the_intensity_edges_are_after_resampling(name: str) -> None:
    """A ramp in the world crosses the threshold on a plane; labels must change there, to within half a voxel."""
    grid = GRIDS[name]()
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    world = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    height = world @ np.array([0.6, 0.64, 0.48])
    ramp = 100 * (height - height.min()) / (height.max() - height.min())
    result = predictor((2.0, 1.5, 3.0)).predict(ramp[None].astype(np.float32), grid)
    voxel = 100 / (height.max() - height.min())
    inner = np.zeros(grid.shape, dtype=bool)
    inner[3:-3, 3:-3, 3:-3] = True
    sure = inner & (abs(ramp - 30) > voxel) & (abs(ramp - 70) > voxel)
    expected = np.select([ramp > 70, ramp > 30], [9, 3], 0)
    assert np.array_equal(result[sure], expected[sure])


def test_windows_do_not_show() -> None:
    """The crop decides how many windows there are, not what comes out."""
    grid = GRIDS["plain"]()
    array = np.random.default_rng(1).integers(0, 101, (1, *grid.shape)).astype(np.int16)
    array[np.isin(array, (30, 70))] = 50
    assert np.array_equal(
        predictor((1.0,) * 3, 8).predict(array, grid), predictor((1.0,) * 3, 32).predict(array, grid)
    )


def test_other_number_of_channels_is_refused() -> None:
    with pytest.raises(DataError, match="2 channel"):
        predictor((1.0,) * 3).predict(np.zeros((2, 8, 8, 8)), Grid((8, 8, 8), np.eye(4)))


def test_training_mode_of_the_network_is_given_back() -> None:
    one = predictor((1.0,) * 3)
    one.network.train()
    one.predict(np.random.default_rng(0).random((1, 8, 8, 8)), Grid((8, 8, 8), np.eye(4)))
    assert one.network.training
