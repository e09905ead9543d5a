"""Augmentation: image and label map move together, rigidly in mm, and only as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from HybridMIMLib.data.augmentation import (
    BRIGHTNESS,
    DEGREES,
    GAMMA,
    NOISE,
    SCALING,
    Augmentation,
    apply_augmentation,
    draw_augmentation,
)

ANISOTROPIC = (0.9, 0.9, 4.0)


def only_moved(matrix: np.ndarray) -> Augmentation:
    """Moves by ``matrix`` and leaves the intensities alone."""
    one = np.ones(len(matrix))
    return Augmentation(matrix, one, 0 * one, 0 * one, tuple(range(len(matrix))))


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
    assert np.array_equal(one.matrix[0], other.matrix[2]) and one.gamma[1] == other.gamma[1]
    image, label = torch.rand(1, 1, 8, 8, 8).repeat(3, 1, 1, 1, 1), torch.zeros(3, 8, 8, 8, dtype=torch.long)
    alone, among = apply_augmentation(image[:2], label[:2], one)[0], apply_augmentation(image, label, other)[0]
    assert torch.equal(alone[0], among[2]) and torch.equal(alone[1], among[1]) and not torch.equal(alone[0], alone[1])


def test_what_is_drawn_stays_within_its_bounds() -> None:
    drawn = draw_augmentation(range(300), ANISOTROPIC)
    assert drawn.gamma.min() >= GAMMA[0] and drawn.gamma.max() <= GAMMA[1]
    assert np.abs(drawn.brightness).max() <= BRIGHTNESS and drawn.noise.min() >= 0 and drawn.noise.max() <= NOISE
    for matrix in drawn.matrix:
        world = in_mm(matrix, ANISOTROPIC)
        scale = np.linalg.det(world) ** (1 / 3)
        assert 1 / SCALING[1] <= scale <= 1 / SCALING[0]
        turned = np.degrees(np.arccos(np.clip((np.trace(world / scale) - 1) / 2, -1, 1)))
        assert turned <= DEGREES * 3**0.5 + 1


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


def test_intensities_vary_as_drawn() -> None:
    image = torch.rand(1, 1, 12, 12, 12)
    label = torch.zeros(1, 12, 12, 12, dtype=torch.long)
    gamma, brightness, noise = np.array([1.3]), np.array([0.05]), np.array([0.02])
    varied, _ = apply_augmentation(image, label, Augmentation(np.eye(3)[None], gamma, brightness, noise, (9,)))
    rest = varied - (image**1.3 + 0.05)
    assert abs(rest.std().item() - 0.02) < 0.002 and abs(rest.mean().item()) < 0.002
    assert torch.isfinite(varied).all()


def test_channels_share_the_movement_but_not_the_noise() -> None:
    image = torch.full((1, 2, 10, 10, 10), 0.5)
    label = torch.zeros(1, 10, 10, 10, dtype=torch.long)
    one = np.ones(1)
    varied, _ = apply_augmentation(image, label, Augmentation(np.eye(3)[None], one, 0 * one, 0.05 * one, (1,)))
    assert not torch.allclose(varied[0, 0], varied[0, 1])
