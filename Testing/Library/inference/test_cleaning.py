"""Cleaning up label maps, against slow obvious code."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.inference.cleaning import clean, clean_layers

Voxel = tuple[int, ...]
FACES = [step for step in product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
TOUCHING = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
SHEARED = np.array([[1.0, 0.3, 0.2, 5], [0, 2.0, -0.4, 6], [0, 0, 5.0, 7], [0, 0, 0, 1]])
"""Its voxels are of 10 mm³, and the product of its spacings is larger."""

LABELS = st.integers(1, 3)
CLEAN_UPS = st.builds(
    CleanUp,
    st.frozensets(LABELS),
    st.frozensets(LABELS),
    st.dictionaries(LABELS, st.integers(1, 60).map(lambda voxels: voxels / 100)),
)
MAPS = arrays.arrays(
    np.uint8,
    arrays.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
    elements=st.sampled_from([0, 0, 1, 1, 1, 2, 3]),
)


def on(shape: tuple[int, ...], affine: np.ndarray = SHEARED) -> Grid:
    return Grid((shape[0], shape[1], shape[2]), affine)


def parts(mask: np.ndarray, steps: list[Voxel]) -> Iterator[list[Voxel]]:
    """The voxels of each connected part, one part after the other, in the order of their first voxels."""
    left = {tuple(map(int, voxel)) for voxel in np.argwhere(mask)}
    for first in sorted(left):
        if first in left:
            left.remove(first)
            part, waiting = [], deque([first])
            while waiting:
                part.append(waiting.popleft())
                for step in steps:
                    near = tuple(a + b for a, b in zip(part[-1], step))
                    if near in left:
                        left.remove(near)
                        waiting.append(near)
            yield part


def slowly(labels: np.ndarray, voxel_ml: float, clean_up: CleanUp) -> np.ndarray:
    cleaned = labels.copy()
    for label in (1, 2, 3):
        components = list(parts(labels == label, TOUCHING))
        largest = max(map(len, components), default=0)
        kept = next((one for one in components if len(one) == largest), None)
        for one in components:
            small = len(one) * voxel_ml < clean_up.smallest_ml.get(label, 0) * (1 - 1e-6)
            if small or (label in clean_up.largest and one is not kept):
                for voxel in one:
                    cleaned[voxel] = 0
    smallest: dict[Voxel, tuple[int, int]] = {}
    for label in clean_up.fill_holes:
        for hole in parts(cleaned != label, FACES):
            at_edge = any(n in (0, size - 1) for voxel in hole for n, size in zip(voxel, labels.shape))
            for voxel in hole if not at_edge else ():
                if cleaned[voxel] == 0:
                    smallest[voxel] = min(smallest.get(voxel, (labels.size, 0)), (len(hole), label))
    for voxel, (_, label) in smallest.items():
        cleaned[voxel] = label
    return cleaned


@settings(deadline=None, max_examples=150)
@given(MAPS, CLEAN_UPS)
def test_as_slow_obvious_code_does_it(labels: np.ndarray, clean_up: CleanUp) -> None:
    before = labels.copy()
    cleaned = clean(labels, on(labels.shape), clean_up)
    assert np.array_equal(cleaned, slowly(labels, 0.01, clean_up)) and cleaned.dtype == labels.dtype
    assert np.array_equal(labels, before)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.frozensets(LABELS, min_size=1))
def test_holes_as_slow_obvious_code_fills_them(seed: int, holes: frozenset[int]) -> None:
    """Walls of noise, in which there are many holes, of several classes in each other too."""
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, 2, 3], size=(7, 7, 7), p=[0.3, 0.6, 0.05, 0.05]).astype(np.uint16)
    clean_up = CleanUp(fill_holes=holes)
    expected = slowly(labels, 0.01, clean_up)
    assert np.array_equal(clean(labels, on(labels.shape), clean_up), expected)


def shell(labels: np.ndarray, low: int, high: int, label: int) -> None:
    """The faces of a cube from ``low`` to ``high``."""
    box = labels[low:high, low:high, low:high]
    inner = box[1:-1, 1:-1, 1:-1].copy()
    box[...] = label
    box[1:-1, 1:-1, 1:-1] = inner


def test_a_hole_goes_to_the_innermost_class_and_others_stay() -> None:
    """A kidney (1, 2) around a cyst (2, 1) with a stone (3) in it, whichever has the lower label."""
    for outer, inner in ((1, 2), (2, 1)):
        labels = np.zeros((11, 11, 11), dtype=np.uint8)
        shell(labels, 1, 10, outer)
        shell(labels, 3, 8, inner)
        labels[5, 5, 5] = 3
        filled = clean(labels, on(labels.shape), CleanUp(fill_holes=frozenset({1, 2, 3})))
        expected = np.zeros_like(labels)
        expected[1:10, 1:10, 1:10], expected[3:8, 3:8, 3:8], expected[5, 5, 5] = outer, inner, 3
        assert np.array_equal(filled, expected)


def test_what_touches_the_edge_of_the_scan_is_no_hole_and_a_tunnel_is_none() -> None:
    labels = np.ones((5, 5, 5), dtype=np.uint8)
    labels[2, 2, :] = 0
    labels[0, 0, 0] = 0
    assert np.array_equal(clean(labels, on(labels.shape), CleanUp(fill_holes=frozenset({1}))), labels)
    labels[2, 2, 0] = labels[2, 2, 4] = 1
    filled = clean(labels, on(labels.shape), CleanUp(fill_holes=frozenset({1})))
    assert filled[2, 2].all() and filled[0, 0, 0] == 0


def test_holes_are_filled_after_components_went() -> None:
    """A speck of another class in a liver goes, and the place it leaves is liver."""
    labels = np.ones((5, 5, 5), dtype=np.uint8)
    labels[2, 2, 2] = 2
    both = CleanUp(fill_holes=frozenset({1}), smallest_ml={2: 0.02})
    assert (clean(labels, on(labels.shape), both) == 1).all()
    assert np.array_equal(clean(labels, on(labels.shape), CleanUp(fill_holes=frozenset({1}))), labels)


def test_volumes_are_those_of_the_grid_sheared_ones_too() -> None:
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[1, 1, 1:4] = 7
    for ml, stays in ((0.03, True), (0.0301, False)):
        cleaned = clean(labels, on(labels.shape), CleanUp(smallest_ml={7: ml}))
        assert cleaned.any() == stays
    product_of_edges = 3 * np.prod(on(labels.shape).spacing) / 1000
    assert product_of_edges > 0.0301, "the edges alone would say otherwise"
    left_handed = on(labels.shape, SHEARED @ np.diag([-1.0, 1, 1, 1]))
    assert clean(labels, left_handed, CleanUp(smallest_ml={7: 0.03})).any(), "a determinant below 0"


def test_labels_of_16_bits_axes_in_any_order_and_classes_that_are_not_there() -> None:
    labels = np.zeros((6, 5, 4), dtype=np.uint16, order="F")
    labels[0, 0, 0], labels[3:5, 3, 2] = 300, 300
    cleaned = clean(labels, on(labels.shape), CleanUp(frozenset({300, 9, 65535}), frozenset({9}), {9: 1.0}))
    assert cleaned.dtype == np.uint16 and np.argwhere(cleaned).tolist() == [[3, 3, 2], [4, 3, 2]]
    nothing = np.zeros((3, 3, 3), dtype=np.uint8)
    assert not clean(nothing, on((3, 3, 3)), CleanUp(frozenset({1}), frozenset({1}), {1: 1.0})).any()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), CLEAN_UPS)
def test_layers_are_cleaned_each_by_itself(seed: int, clean_up: CleanUp) -> None:
    layers = np.random.default_rng(seed).random((3, 5, 6, 4)) < 0.6
    classes = [LabelClass(label, str(label), (1, 0, 0)) for label in (1, 2, 3)]
    before = layers.copy()
    cleaned = clean_layers(layers, classes, on(layers.shape[1:]), clean_up)
    assert cleaned.dtype == np.bool_ and np.array_equal(layers, before)
    for layer, expected, one in zip(cleaned, layers, classes):
        alone = np.where(expected, np.uint8(one.label), np.uint8(0))
        assert np.array_equal(layer, slowly(alone, 0.01, clean_up) > 0)
