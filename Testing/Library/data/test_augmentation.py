"""Augmentation: image and label map move together, rigidly in mm, and only as asked; each part against slow code."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from HybridMIMLib.data import augmentation
from HybridMIMLib.data.augmentation import (
    DEGREES,
    FLIP,
    PARTS,
    Augmentation,
    apply_augmentation,
    draw_augmentation,
    no_augmentation,
)
from HybridMIMLib.randomness import stream_key

ANISOTROPIC = (0.9, 0.9, 4.0)
INTENSITIES = ("gamma", "contrast", "brightness", "noise")


def only_moved(matrix: np.ndarray) -> Augmentation:
    """Moves by ``matrix`` and leaves the intensities alone."""
    return replace(no_augmentation(range(len(matrix))), matrix=matrix)


def applied(image: torch.Tensor, drawn: Augmentation) -> torch.Tensor:
    """The image alone."""
    return apply_augmentation(image, torch.zeros((len(image), *image.shape[2:]), dtype=torch.long), drawn)[0]


def always(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Draw these parts for every sample, and no other."""
    chosen = {name: part._replace(probability=float(name in names)) for name, part in PARTS.items()}
    monkeypatch.setattr(augmentation, "PARTS", chosen)


def in_mm(matrix: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    size = np.asarray(spacing)
    world: np.ndarray = matrix * size[:, None] / size[None, :]
    return world


def blob(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> torch.Tensor:
    offsets = np.moveaxis(np.indices(shape), 0, -1) - np.asarray(centre)
    return torch.from_numpy((np.linalg.norm(offsets, axis=-1) < radius)[None].astype(np.int64))


def centre_of(mask: torch.Tensor) -> np.ndarray:
    centre: np.ndarray = np.argwhere(mask.numpy() > 0.5).mean(0)
    return centre


def slowly_moved(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Voxel by voxel: offset from the middle, times the matrix, nearest voxel there."""
    middle = (np.array(image.shape) - 1) / 2
    result = np.zeros_like(image)
    for place in np.ndindex(image.shape):
        source = np.rint(matrix @ (np.array(place) - middle) + middle).astype(int)
        if (source >= 0).all() and (source < image.shape).all():
            result[place] = image[tuple(source)]
    return result


def test_the_same_key_draws_the_same_whatever_its_place_in_the_batch() -> None:
    one, other = draw_augmentation([5, 6], (1, 1, 1), [0]), draw_augmentation([7, 6, 5], (1, 1, 1), [0])
    for field in fields(Augmentation):
        assert np.array_equal(getattr(one, field.name)[0], getattr(other, field.name)[2])
    image, label = torch.rand(1, 1, 8, 8, 8).repeat(3, 1, 1, 1, 1), torch.zeros(3, 8, 8, 8, dtype=torch.long)
    alone, among = apply_augmentation(image[:2], label[:2], one)[0], apply_augmentation(image, label, other)[0]
    assert torch.equal(alone[0], among[2]) and torch.equal(alone[1], among[1]) and not torch.equal(alone[0], alone[1])


def test_applying_twice_gives_the_same_and_spares_its_input() -> None:
    image, label = torch.rand(16, 2, 9, 8, 7), torch.randint(0, 3, (16, 9, 8, 7))
    kept = image.clone(), label.clone()
    drawn = draw_augmentation(range(16), ANISOTROPIC, [0, 1])
    first = apply_augmentation(image, label, drawn)
    torch.manual_seed(7)
    second = apply_augmentation(image, label, drawn)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(image, kept[0]) and torch.equal(label, kept[1])
    untouched = apply_augmentation(image, label, no_augmentation(range(16)))
    assert torch.equal(untouched[0], image) and torch.equal(untouched[1], label)
    assert untouched[0].data_ptr() != image.data_ptr()


def test_what_is_drawn_stays_within_its_bounds() -> None:
    drawn = draw_augmentation(range(400), ANISOTROPIC)
    for name in INTENSITIES:
        values, part = getattr(drawn, name), PARTS[name]
        used = values[values != part.nothing]
        assert used.min() >= part.low and used.max() <= part.high
        assert used.max() - used.min() > 0.9 * (part.high - part.low)
    for matrix in drawn.matrix:
        world = in_mm(matrix, ANISOTROPIC)
        scale = np.linalg.det(world) ** (1 / 3)
        assert 1 / PARTS["scaling"].high <= scale <= 1 / PARTS["scaling"].low
        turned = np.degrees(np.arccos(np.clip((np.trace(world / scale) - 1) / 2, -1, 1)))
        assert turned <= DEGREES * 3**0.5 + 1


def test_parts_are_drawn_as_often_as_is_said() -> None:
    drawn = draw_augmentation(range(2000), (1, 1, 1), [0])
    world = drawn.matrix @ np.stack([np.diag([np.sign(np.linalg.det(m)), 1, 1]) for m in drawn.matrix])
    scale = np.abs(np.linalg.det(world)) ** (1 / 3)
    done = {
        "scaling": np.abs(scale - 1) > 1e-9,
        "rotation": np.abs(drawn.matrix[:, 0, 1]) > 1e-9,
        "blur": drawn.blur[:, 0] > 0,
        "resolution": drawn.resolution[:, 0] < 1,
        **{name: getattr(drawn, name) != PARTS[name].nothing for name in INTENSITIES},
    }
    assert set(done) == set(PARTS)
    for name, which in done.items():
        assert abs(which.mean() - PARTS[name].probability) < 0.04, name
    assert abs((np.linalg.det(drawn.matrix) < 0).mean() - FLIP) < 0.04


def test_the_probability_of_a_part_moves_no_other_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    before = draw_augmentation(range(50), (1, 1, 1), [0])
    changed = {**PARTS, "blur": PARTS["blur"]._replace(probability=1.0)}
    monkeypatch.setattr(augmentation, "PARTS", changed)
    after = draw_augmentation(range(50), (1, 1, 1), [0])
    assert (after.blur > 0).all()
    for field in fields(Augmentation):
        assert field.name == "blur" or np.array_equal(getattr(before, field.name), getattr(after, field.name))


def test_an_axis_that_is_coarse_already_is_neither_blurred_nor_coarsened(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch, "blur", "resolution")
    drawn = draw_augmentation(range(100), ANISOTROPIC)
    assert (drawn.resolution[:, 0] < 1).all() and (drawn.resolution[:, :2] >= 0.5).all()
    assert (drawn.resolution[:, 2] == 1).all()
    assert np.allclose(drawn.blur * ANISOTROPIC, drawn.blur[:, :1] * 0.9)


@pytest.mark.parametrize("spacing", [(1, 1, 1), ANISOTROPIC, (5.0, 0.5, 1.0)])
def test_a_rotation_is_rigid_in_mm(spacing: tuple[float, float, float]) -> None:
    for matrix in draw_augmentation(range(20), spacing, [0, 1, 2]).matrix:
        world = in_mm(matrix, spacing)
        scale = abs(np.linalg.det(world)) ** (1 / 3)
        assert np.allclose(world @ world.T, np.eye(3) * scale**2, atol=1e-9)


@pytest.mark.parametrize("axes", [[], [0], [2], [0, 1], [0, 1, 2]])
def test_crops_are_flipped_along_the_asked_axes_alone(axes: list[int]) -> None:
    signs = np.sign([np.diag(m) for m in draw_augmentation(range(64), (1, 2, 3), axes, degrees=0).matrix])
    for axis in range(3):
        assert set(signs[:, axis]) == ({-1, 1} if axis in axes else {1})


def test_nothing_drawn_changes_nothing() -> None:
    image, label = torch.rand(2, 3, 7, 8, 9), torch.randint(0, 5, (2, 7, 8, 9))
    turned, moved = apply_augmentation(image, label, only_moved(np.stack([np.eye(3)] * 2)))
    assert torch.allclose(turned, image, atol=1e-5) and torch.equal(moved, label)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_is_exact(axis: int) -> None:
    image, label = torch.rand(1, 2, 6, 7, 8), torch.randint(0, 5, (1, 6, 7, 8))
    flip = np.diag([-1.0 if n == axis else 1.0 for n in range(3)])[None]
    turned, moved = apply_augmentation(image, label, only_moved(flip))
    assert torch.allclose(turned, image.flip(axis + 2), atol=1e-5) and torch.equal(moved, label.flip(axis + 1))


def test_a_crop_of_unequal_sides_is_moved_as_voxel_by_voxel() -> None:
    shape = (9, 12, 17)
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 4, shape))
    for matrix in draw_augmentation(range(4), ANISOTROPIC, [0, 1, 2]).matrix:
        _, moved = apply_augmentation(label[None, None].float(), label[None], only_moved(matrix[None]))
        agree = moved[0].numpy() == slowly_moved(label.numpy(), matrix)
        assert agree.mean() > 0.995  # the two may round a half differently


@pytest.mark.parametrize("spacing", [(1, 1, 1), ANISOTROPIC])
def test_a_blob_moves_to_where_its_image_moves(spacing: tuple[float, float, float]) -> None:
    shape, centre = (40, 36, 28), np.array([13.0, 22.0, 16.0])
    label = blob(shape, tuple(centre), 5)
    middle = (np.array(shape) - 1) / 2
    for key in range(8):
        drawn = draw_augmentation([key], spacing, [0])
        turned, moved = apply_augmentation(label[:, None].float(), label, only_moved(drawn.matrix))
        wanted = np.linalg.inv(drawn.matrix[0]) @ (centre - middle) + middle
        assert np.allclose(centre_of(moved[0]), wanted, atol=0.3)
        assert np.allclose(centre_of(turned[0, 0]), wanted, atol=0.3)
        differing = (moved[0] != (turned[0, 0] > 0.5)).sum()
        assert differing < 0.1 * moved.sum()


def test_every_sample_moves_by_its_own_matrix() -> None:
    label = blob((24, 24, 24), (6, 12, 12), 4).repeat(2, 1, 1, 1)
    matrices = np.stack([np.eye(3), np.diag([-1.0, 1, 1])])
    _, moved = apply_augmentation(label[:, None].float(), label, only_moved(matrices))
    assert centre_of(moved[0])[0] == 6 and centre_of(moved[1])[0] == 17


def test_labels_keep_their_numbers_and_type() -> None:
    label = torch.randint(0, 2, (2, 16, 16, 16)) * 255
    _, moved = apply_augmentation(torch.rand(2, 1, 16, 16, 16), label, draw_augmentation([1, 2], (1, 1, 1), [0]))
    assert moved.dtype == label.dtype and set(moved.flatten().tolist()) == {0, 255}


@pytest.mark.parametrize("spacing", [(1, 1, 1), ANISOTROPIC])
def test_an_image_is_moved_as_scipy_does(spacing: tuple[float, float, float]) -> None:
    shape = (11, 14, 9)
    image = torch.rand(3, 2, *shape, dtype=torch.float64).float()
    drawn = draw_augmentation([3, 4, 5], spacing, [0, 1, 2])
    moved = applied(image, only_moved(drawn.matrix))
    middle = (np.array(shape) - 1) / 2
    for sample, matrix in enumerate(drawn.matrix):
        for channel in range(2):
            wanted = ndimage.affine_transform(
                image[sample, channel].numpy(), matrix, middle - matrix @ middle, order=1, mode="grid-constant"
            )
            assert np.allclose(moved[sample, channel], wanted, atol=1e-4)


def test_samples_that_are_not_moved_are_not_resampled() -> None:
    """Bit for bit, among others that are."""
    image, label = torch.rand(3, 1, 8, 8, 8), torch.randint(0, 3, (3, 8, 8, 8))
    matrix = np.stack([np.eye(3), 0.9 * np.eye(3), np.eye(3)])
    turned, moved = apply_augmentation(image, label, only_moved(matrix))
    assert torch.equal(turned[::2], image[::2]) and torch.equal(moved[::2], label[::2])
    assert not torch.equal(turned[1], image[1])


def test_all_that_moves_is_resampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    whole = F.grid_sample

    def counted(*args: torch.Tensor, mode: str, **others: object) -> torch.Tensor:
        calls.append(mode)
        return whole(*args, mode=mode, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "grid_sample", counted)
    always(monkeypatch, *PARTS)
    drawn = draw_augmentation(range(5), (1, 1, 2), [0, 1, 2])
    apply_augmentation(torch.rand(5, 2, 8, 8, 8), torch.zeros(5, 8, 8, 8, dtype=torch.long), drawn)
    assert calls == ["bilinear", "nearest"]


def test_gamma_contrast_and_brightness_are_those_of_slow_code() -> None:
    image = torch.rand(4, 2, 6, 5, 7)
    gamma, contrast = np.array([1.3, 1, 0.8, 1]), np.array([1, 0.8, 1.2, 1])
    brightness = np.array([0, 0.05, -0.1, 0])
    drawn = replace(no_augmentation(range(4)), gamma=gamma, contrast=contrast, brightness=brightness)
    varied = applied(image, drawn)
    for sample in range(4):
        for channel in range(2):
            values = image[sample, channel].numpy().astype(np.float64) ** gamma[sample]
            wanted = values.mean() + (values - values.mean()) * contrast[sample] + brightness[sample]
            assert np.allclose(varied[sample, channel], wanted, atol=1e-5)
    assert torch.equal(varied[3], image[3])


def test_gamma_bears_what_lies_below_zero() -> None:
    image = torch.linspace(-0.1, 1, 64).reshape(1, 1, 4, 4, 4)
    varied = applied(image, replace(no_augmentation([0]), gamma=np.array([0.75])))
    assert torch.allclose(varied, image.clamp(min=0) ** 0.75)


def test_noise_follows_from_the_key_alone() -> None:
    image = torch.full((3, 2, 20, 20, 20), 0.5)
    drawn = replace(no_augmentation([11, 12, 11]), noise=np.array([0.02, 0.04, 0]))
    torch.manual_seed(0)
    varied = applied(image, drawn)
    for sample, sigma in enumerate((0.02, 0.04)):
        generator = torch.Generator().manual_seed(stream_key(drawn.keys[sample], "noise"))
        wanted = 0.5 + sigma * torch.randn(image[sample].shape, generator=generator)
        assert torch.allclose(varied[sample], wanted)
        rest = varied[sample] - 0.5
        assert abs(rest.std().item() - sigma) < 0.03 * sigma and abs(rest.mean().item()) < 0.03 * sigma
    assert torch.equal(varied[2], image[2]) and not torch.allclose(varied[0, 0], varied[0, 1])
    other = replace(drawn, keys=(13, 12, 11))
    assert not torch.equal(applied(image, other)[0], varied[0]) and torch.equal(applied(image, other)[1], varied[1])


def test_a_blur_is_that_of_scipy() -> None:
    image = torch.rand(3, 2, 12, 9, 15)
    blur = np.array([[0.5, 0.7, 1.0], [0, 0, 0], [0, 0.9, 0]])
    blurred = applied(image, replace(no_augmentation(range(3)), blur=blur))
    for sample in range(3):
        for channel in range(2):
            wanted = ndimage.gaussian_filter(image[sample, channel].numpy(), blur[sample], mode="nearest")
            assert np.allclose(blurred[sample, channel], wanted, atol=1e-5)
    assert torch.equal(blurred[1], image[1])


def slowly_stretched(line: np.ndarray, new: int) -> np.ndarray:
    """Linearly, cell by cell, between the outer faces."""
    at = np.clip((np.arange(new) + 0.5) * len(line) / new - 0.5, 0, len(line) - 1)
    return np.interp(at, np.arange(len(line)), line)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8, 0.97])
def test_a_lower_resolution_is_down_and_up_again(share: float) -> None:
    shape = (12, 10, 15)
    image = torch.rand(1, 1, *shape)
    resolution = np.array([[share, 1.0, share]])
    got = applied(image, replace(no_augmentation([0]), resolution=resolution))
    wanted = image[0, 0].numpy().astype(np.float64)
    for axis in (0, 2):
        old, new = shape[axis], round(shape[axis] * share)
        if old / new > 1.5:
            wanted = ndimage.gaussian_filter1d(wanted, old / new / 2, axis=axis, mode="nearest")
        wanted = np.apply_along_axis(slowly_stretched, axis, wanted, new)
        wanted = np.apply_along_axis(slowly_stretched, axis, wanted, old)
    assert np.allclose(got[0, 0], wanted, atol=1e-5)


def test_blur_and_resolution_leave_a_constant_and_the_smallest_crop_alone() -> None:
    drawn = replace(no_augmentation([0]), blur=np.full((1, 3), 1.0), resolution=np.full((1, 3), 0.5))
    for shape in ((8, 8, 8), (1, 1, 1), (2, 1, 5)):
        assert torch.allclose(applied(torch.full((1, 1, *shape), 0.7), drawn), torch.tensor(0.7))


@pytest.mark.parametrize("name", ["rotation", "scaling"])
def test_a_part_alone_does_what_it_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch, name)
    for matrix in draw_augmentation(range(20), (1, 1, 1)).matrix:
        if name == "rotation":
            assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.linalg.det(matrix) > 0
        else:
            assert np.allclose(matrix, np.eye(3) * matrix[0, 0])


def test_everything_at_once_stays_finite_and_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch, *PARTS)
    image, label = torch.rand(3, 2, 16, 12, 8), torch.randint(0, 4, (3, 16, 12, 8))
    varied, moved = apply_augmentation(image, label, draw_augmentation(range(3), ANISOTROPIC, [0, 1, 2]))
    assert varied.shape == image.shape and moved.shape == label.shape and torch.isfinite(varied).all()
    assert varied.dtype == torch.float32 and varied.device == image.device and moved.dtype == label.dtype
    assert varied.min() > -0.8 and varied.max() < 1.8
