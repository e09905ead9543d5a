"""Augmentation of a whole batch on the training device; what is drawn is apart from how it is applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from HybridMIMLib.randomness import random_stream

DEGREES = 15.0
SCALING = (0.85, 1.18)
NOISE = 0.05
GAMMA = (0.75, 1.35)
BRIGHTNESS = 0.1


@dataclass(frozen=True)
class Augmentation:
    """What is done to each sample of a batch.

    Attributes:
        matrix: (B, 3, 3) voxel offset from the crop's centre in the result → in the source, in voxels.
        gamma, brightness, noise: (B,) exponent, shift, and standard deviation of intensities from 0 to 1.
        keys: (B) numbers from which the noise follows.
    """

    matrix: np.ndarray
    gamma: np.ndarray
    brightness: np.ndarray
    noise: np.ndarray
    keys: tuple[int, ...]


def draw_augmentation(
    keys: Sequence[int], spacing: Sequence[float], flip_axes: Sequence[int] = (), degrees: float = DEGREES
) -> Augmentation:
    """Draw one for each key; ``spacing`` (mm) keeps rotations rigid in space on anisotropic voxels."""
    matrices, values = [], []
    for key in keys:
        random = random_stream(key, "augmentation")
        rotation = Rotation.from_euler("xyz", random.uniform(-degrees, degrees, 3), degrees=True).as_matrix()
        flips = np.diag([-1.0 if axis in flip_axes and random.random() < 0.5 else 1.0 for axis in range(3)])
        world = rotation @ flips / random.uniform(*SCALING)
        matrices.append(world * np.asarray(spacing)[None, :] / np.asarray(spacing)[:, None])
        values.append((random.uniform(*GAMMA), random.uniform(-BRIGHTNESS, BRIGHTNESS), random.uniform(0, NOISE)))
    gamma, brightness, noise = np.array(values).T
    return Augmentation(np.stack(matrices), gamma, brightness, noise, tuple(keys))


def apply_augmentation(image: Tensor, label: Tensor, drawn: Augmentation) -> tuple[Tensor, Tensor]:
    """Apply to image (B, C, D, H, W) and label map (B, D, H, W): one resampling, then intensities."""
    grid = _sampling_grid(drawn.matrix, image)
    turned = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    moved = F.grid_sample(
        label[:, None].to(image.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return _vary_intensities(turned, drawn), moved[:, 0].round().to(label.dtype)


def _sampling_grid(matrix: np.ndarray, image: Tensor) -> Tensor:
    size = np.array(image.shape[2:], dtype=np.float64)
    # grid_sample measures from -1 to 1 along each axis, and names the axes backwards (W, H, D).
    normalised = matrix * size[None, None, :] / size[None, :, None]
    backwards = normalised[:, ::-1, ::-1].copy()
    theta = np.concatenate([backwards, np.zeros((len(matrix), 3, 1))], axis=2)
    tensor = torch.from_numpy(theta).to(image.device, image.dtype)
    return F.affine_grid(tensor, list(image.shape), align_corners=False)


def _vary_intensities(image: Tensor, drawn: Augmentation) -> Tensor:
    def per_sample(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(image.device, image.dtype)[:, None, None, None, None]

    noise = np.stack(
        [random_stream(key, "noise").standard_normal(image.shape[1:], dtype=np.float32) for key in drawn.keys]
    )
    varied = image.clamp(min=1e-6) ** per_sample(drawn.gamma) + per_sample(drawn.brightness)
    return varied + torch.from_numpy(noise).to(image.device, image.dtype) * per_sample(drawn.noise)
