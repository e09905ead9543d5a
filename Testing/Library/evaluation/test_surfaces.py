"""Distances of surfaces: by hand with unequal spacing, against slow obvious code, and against MONAI where it is
right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.evaluation import surfaces
from HybridMIMLib.evaluation.surfaces import SurfaceDistances, surface_distances

SPACING = (1.0, 2.5, 4.0)
TURNED = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3
SHEAR = np.array([[1, 0, 0.3], [0, 1, -0.2], [0, 0, 1]])


def grid_of(
    shape: tuple[int, ...], spacing: tuple[float, ...] = SPACING, directions: np.ndarray | None = None
) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if directions is None else directions) * spacing
    affine[:3, 3] = (-7.0, 11.0, 300.0)
    return Grid((shape[0], shape[1], shape[2]), affine)


def box(shape: tuple[int, int, int], *ends: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(low, high) for low, high in ends)] = True
    return mask


def brute_force(one: np.ndarray, other: np.ndarray, grid: Grid) -> list[list[float]]:
    """From each corner at which voxels of a mask meet others to the nearest such corner of the other mask, in mm."""

    def corners(mask: np.ndarray) -> list[np.ndarray]:
        padded = np.pad(mask, 1)
        found = []
        for place in itertools.product(*(range(size - 1) for size in padded.shape)):
            eight = [padded[tuple(np.add(place, step))] for step in itertools.product((0, 1), repeat=3)]
            if any(eight) and not all(eight):
                found.append(grid.affine[:3, :3] @ np.array(place))
        return found

    a, b = corners(one), corners(other)
    return [[min(float(np.linalg.norm(p - q)) for q in goal) for p in start] for start, goal in ((a, b), (b, a))]


def test_identity_is_perfect() -> None:
    mask = box((8, 9, 10), (2, 5), (3, 6), (1, 9))
    found = surface_distances(mask, mask.copy(), grid_of(mask.shape))
    assert found.hd95 == 0 and found.surface_dice(0) == 1


@pytest.mark.parametrize(("axis", "mm"), enumerate(SPACING))
@pytest.mark.parametrize("voxels", [1, 3])
def test_a_single_voxel_that_is_moved(axis: int, mm: float, voxels: int) -> None:
    one, other = np.zeros((2, 9, 9, 9), dtype=bool)
    place = [4, 4, 4]
    one[tuple(place)] = True
    place[axis] += voxels
    other[tuple(place)] = True
    assert surface_distances(one, other, grid_of(one.shape)).hd95 == pytest.approx(voxels * mm)


@pytest.mark.parametrize("axis", range(3))
def test_area_of_a_wall(axis: int) -> None:
    """Half of a scan: the wall through its middle has the area of its faces, and so has the one at the end."""
    ends = [(0, 20)] * 3
    ends[axis] = (0, 10)
    mask = box((20, 20, 20), *ends)
    found = surface_distances(mask, mask, grid_of(mask.shape))
    sizes = [mm * (high - low) for mm, (low, high) in zip(SPACING, ends)]
    faces = 2 * (sizes[0] * sizes[1] + sizes[1] * sizes[2] + sizes[0] * sizes[2])
    # Edges are cut off, by half a voxel on either side.
    assert 0.85 * faces < found.areas_there.sum() < faces


def test_a_wall_that_is_moved_where_slices_are_thick() -> None:
    """40 x 40 x 4 voxels of 1 x 1 x 10 mm, a wall moved by 4 mm: it is 16 % of the surface, so HD95 is 4 mm.

    MONAI counts voxels of the border, of which the wall has 4 %: if that should ever change, its own will do.
    """
    import torch
    from monai.metrics import compute_hausdorff_distance

    reference, prediction = box((50, 44, 6), (3, 43), (2, 42), (1, 5)), box((50, 44, 6), (3, 47), (2, 42), (1, 5))
    found = surface_distances(prediction, reference, grid_of(reference.shape, (1.0, 1.0, 10.0)))
    assert found.hd95 == pytest.approx(4)
    tensors = [torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (prediction, reference)]
    assert compute_hausdorff_distance(*tensors, percentile=95, spacing=(1.0, 1.0, 10.0)).item() == 3


@pytest.mark.parametrize("directions", [None, TURNED], ids=["straight", "oblique"])
def test_boxes_one_in_the_other(directions: np.ndarray | None) -> None:
    """Each wall is one voxel, of up to 4 mm, from that of the other box."""
    inner, outer = box((14, 14, 14), (3, 11), (3, 11), (3, 11)), box((14, 14, 14), (2, 12), (2, 12), (2, 12))
    found = surface_distances(inner, outer, grid_of(inner.shape, directions=directions))
    assert found.there.max() == pytest.approx(4) and found.there.min() == pytest.approx(1)
    assert found.hd95 >= 4 and found.back.max() == pytest.approx(math.hypot(*SPACING))
    assert found.surface_dice(0.9) == 0 and found.surface_dice(5) == 1
    # Walls a voxel of 1 mm away are those of 2.5 x 4 mm: 8 x 8 and 10 x 10 of them on two sides, edges cut off.
    share = 10 / (10 + 4 + 2.5)
    assert found.surface_dice(1) == pytest.approx(share, abs=0.1)


def test_spheres() -> None:
    spacing = (0.7, 0.9, 1.5)
    shape = (60, 48, 30)
    places = np.stack(np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing)), indexing="ij"), axis=-1)
    radius = np.linalg.norm(places - np.array([21, 21, 21]), axis=-1)
    found = surface_distances(radius < 12, radius < 17, grid_of(shape, spacing))
    assert found.hd95 == pytest.approx(5, abs=1) and found.surface_dice(3) < 0.02 and found.surface_dice(7) == 1
    for areas, r in ((found.areas_there, 12), (found.areas_back, 17)):
        # Steps of voxels have about a tenth more surface than what they stand for.
        assert 1 < areas.sum() / (4 * math.pi * r**2) < 1.15


def test_the_end_of_the_scan_is_a_surface() -> None:
    """Slabs at the end: without that, the face at the end of one would be missing."""
    thin, thick = box((6, 5, 4), (0, 2), (0, 5), (0, 4)), box((6, 5, 4), (0, 5), (0, 5), (0, 4))
    found = surface_distances(thin, thick, grid_of(thin.shape))
    assert found.hd95 == 3 and found.there.min() == 0
    everything = np.ones((3, 3, 3), dtype=bool)
    assert surface_distances(everything, everything, grid_of((3, 3, 3))).hd95 == 0


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.sampled_from([0.5, 1.0, 1.7, 6.0])] * 3),
    st.sampled_from(["straight", "oblique", "sheared"]),
    st.booleans(),
)
def test_against_slow_obvious_code(
    seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float], kind: str, by_map: bool
) -> None:
    random = np.random.default_rng(seed)
    one, other = random.random((2, *shape)) < random.uniform(0.1, 0.9)
    one[tuple(random.integers(shape))] = other[tuple(random.integers(shape))] = True
    directions = {"straight": np.eye(3), "oblique": TURNED, "sheared": SHEAR}[kind]
    grid = grid_of(shape, spacing, directions)
    with pytest.MonkeyPatch.context() as patch:
        # Which way is taken follows from the size; here either is, wherever it can be.
        patch.setattr(surfaces, "_SEARCH", 10**9 if by_map else 0)
        found = surface_distances(one, other, grid)
    there, back = brute_force(one, other, grid)
    np.testing.assert_allclose(found.there, there, atol=1e-5)
    np.testing.assert_allclose(found.back, back, atol=1e-5)
    tolerance = float(random.uniform(0, 8))
    near = sum(area for mm, area in zip(there + back, [*found.areas_there, *found.areas_back]) if mm <= tolerance)
    assert found.surface_dice(tolerance) == pytest.approx(near / (found.areas_there.sum() + found.areas_back.sum()))
    for distances, areas in ((there, found.areas_there), (back, found.areas_back)):
        within = sum(area for mm, area in zip(distances, areas) if mm <= found.hd95 + 1e-5)
        assert within >= 0.95 * areas.sum() * (1 - 1e-6)
    lower = found.hd95 - 1e-4
    parts = ((there, found.areas_there), (back, found.areas_back))
    shares = [sum(a for mm, a in zip(d, areas) if mm <= lower) / areas.sum() for d, areas in parts]
    assert found.hd95 == 0 or min(shares) < 0.95, "no smaller distance would do for both"


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.sampled_from([0.5, 1.0, 1.7, 6.0])] * 3),
    st.integers(1, 40).map(lambda n: n / 7.313),
)
def test_the_surface_dice_is_that_of_monai(seed: int, spacing: tuple[float, float, float], tolerance: float) -> None:
    import torch
    from monai.metrics import compute_surface_dice

    random = np.random.default_rng(seed)
    one, other = random.random((2, 5, 6, 4)) < 0.4
    tensors = [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (one, other)]
    theirs = compute_surface_dice(*tensors, [tolerance], spacing=spacing, use_subvoxels=True).item()
    ours = surface_distances(one, other, grid_of(one.shape, spacing)).surface_dice(tolerance)
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_percentile_by_area() -> None:
    """Nine small elements are near, a large one is far; and one that reaches 95 % exactly does."""
    far = SurfaceDistances(np.array([7.0, *[1.0] * 9]), np.zeros(1), np.array([10.0, *[1.0] * 9]), np.ones(1))
    assert far.hd95 == 7
    exact = SurfaceDistances(np.array([1.0, 2.0]), np.zeros(1), np.array([95.0, 5.0]), np.ones(1))
    assert exact.hd95 == 1


def test_a_tolerance_that_is_met_exactly_counts() -> None:
    one, other = box((30, 3, 3), (2, 3), (1, 2), (1, 2)), box((30, 3, 3), (22, 23), (1, 2), (1, 2))
    found = surface_distances(one, other, grid_of(one.shape, (0.1, 1.0, 1.0)))
    assert found.surface_dice(2.0) == 1 and found.surface_dice(1.95) == pytest.approx(0.5)


def test_what_cannot_be_measured_is_refused() -> None:
    full = np.ones((2, 2, 2), dtype=bool)
    for other in (~full, np.ones((2, 2, 3), dtype=bool)):
        with pytest.raises(ValueError, match="not empty"):
            surface_distances(full, other, grid_of((2, 2, 2)))
