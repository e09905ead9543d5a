"""Augmentation of a whole batch on the training device; what is drawn is apart from how it is applied.

Drawn for each sample, from its key alone: a rotation, a scaling and flips, which become one matrix and one
resampling; a blur and a lower resolution, which become one banded matrix an axis; gamma, contrast, brightness and
noise. Each part is drawn with the probability in :data:`PARTS`; a sample that a part leaves alone costs nothing.
Ranges are those of nnU-Net (arXiv:1904.08128) or narrower, but that brightness is a shift: intensities lie between 0
and 1 here. Noise comes last, as a scanner adds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from HybridMIMLib.data.resampling import resampling_matrix
from HybridMIMLib.randomness import random_stream, stream_key

Values = npt.NDArray[np.float64]


class Part(NamedTuple):
    """How often a part of the augmentation is done, from where to where, and the value that changes nothing."""

    probability: float
    low: float
    high: float
    nothing: float


DEGREES = 15.0
PARTS = {
    # Degrees about each of three axes, as a share of the largest angle.
    "rotation": Part(0.7, -1.0, 1.0, 0.0),
    # Size of things in the result.
    "scaling": Part(0.7, 0.85, 1.18, 1.0),
    # Share of the voxels along the finest axis that the scan would have had.
    "resolution": Part(0.15, 0.5, 1.0, 1.0),
    # Standard deviation in voxels of the finest axis.
    "blur": Part(0.15, 0.5, 1.0, 0.0),
    "gamma": Part(0.5, 0.75, 1.35, 1.0),
    "contrast": Part(0.3, 0.75, 1.25, 1.0),
    "brightness": Part(0.5, -0.1, 0.1, 0.0),
    # Standard deviation.
    "noise": Part(0.5, 0.0, 0.05, 0.0),
}
FLIP = 0.5
"""Probability of a flip along each axis along which crops may be flipped."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to each sample of a batch, in the order of the attributes.

    Attributes:
        keys: (B) numbers from which the noise follows.
        matrix: (B, 3, 3) voxel offset from the crop's centre in the result → in the source, in voxels.
        blur: (B, 3) standard deviation in voxels along each axis; 0 leaves it alone.
        resolution: (B, 3) share of the voxels along each axis to go down to, and up again; 1 leaves it alone.
        gamma: (B) exponent of the intensities.
        contrast: (B) factor of what an intensity is above or below the mean of its channel in the crop.
        brightness: (B) shift of the intensities.
        noise: (B) standard deviation of what is added to each voxel.
    """

    keys: tuple[int, ...]
    matrix: Values
    blur: Values
    resolution: Values
    gamma: Values
    contrast: Values
    brightness: Values
    noise: Values


def no_augmentation(keys: Sequence[int]) -> Augmentation:
    """Leaves each sample as it is."""
    one = np.ones(len(keys))
    matrix, three = np.stack([np.eye(3)] * len(keys)), np.ones((len(keys), 3))
    return Augmentation(tuple(keys), matrix, 0 * three, three, one, one, 0 * one, 0 * one)


def draw_augmentation(
    keys: Sequence[int], spacing: Sequence[float], flip_axes: Sequence[int] = (), degrees: float = DEGREES
) -> Augmentation:
    """Draw one for each key, the same for the same key whatever else is in the batch.

    Args:
        keys: of the samples.
        spacing: mm; keeps rotations rigid in space, and leaves an axis that is coarse already as it is.
        flip_axes: those of 0, 1, 2 along which a crop may be flipped.
        degrees: largest angle of rotation about each axis.
    """
    drawn = [_draw(key, np.asarray(spacing, dtype=np.float64), flip_axes, degrees) for key in keys]
    return Augmentation(tuple(keys), *(np.stack(values) for values in zip(*drawn)))


def _draw(key: int, spacing: Values, flip_axes: Sequence[int], degrees: float) -> tuple[Values, ...]:
    random = random_stream(key, "augmentation")

    def one(name: str, count: int = 1) -> Values:
        part = PARTS[name]
        # Both are drawn whether they are needed or not: a probability moves none of the other draws.
        wanted, values = random.random() < part.probability, random.uniform(part.low, part.high, count)
        return values if wanted else np.full(count, part.nothing)

    rotation = Rotation.from_euler("xyz", degrees * one("rotation", 3), degrees=True).as_matrix()
    flips = np.diag([-1.0 if random.random() < FLIP and axis in flip_axes else 1.0 for axis in range(3)])
    world = rotation @ flips / one("scaling")
    finest = spacing.min() / spacing
    return (
        world * spacing[None, :] / spacing[:, None],
        one("blur") * finest,
        np.minimum(one("resolution") / finest, 1.0),
        *(one(name)[0] for name in ("gamma", "contrast", "brightness", "noise")),
    )


def apply_augmentation(image: Tensor, label: Tensor, drawn: Augmentation) -> tuple[Tensor, Tensor]:
    """Apply to image (B, C, D, H, W) and label map (B, D, H, W), on their device; both results are new tensors."""
    image, label = _move(image, label, drawn.matrix)
    _blur_and_coarsen(image, drawn)
    _vary_intensities(image, drawn)
    return image, label


def _move(image: Tensor, label: Tensor, matrix: Values) -> tuple[Tensor, Tensor]:
    image, label = image.clone(), label.clone()
    rows = np.flatnonzero((matrix != np.eye(3)).any(axis=(1, 2))).tolist()
    if rows:
        grid = _sampling_grid(matrix[rows], image)
        image[rows] = F.grid_sample(image[rows], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        numbers = label[rows][:, None].to(image.dtype)
        moved = F.grid_sample(numbers, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        label[rows] = moved[:, 0].round().to(label.dtype)
    return image, label


def _sampling_grid(matrix: Values, image: Tensor) -> Tensor:
    """(B, D, H, W, 3) where each voxel of the result comes from."""
    size = np.array(image.shape[2:], dtype=np.float64)
    # grid_sample measures from -1 to 1 along each axis, and names the axes backwards (W, H, D).
    normalised = (matrix * size[None, None, :] / size[None, :, None])[:, ::-1]
    # The grid is a sum of three lines, one an axis, which is cheaper than a matrix product for each voxel.
    depth, height, width = (
        torch.from_numpy(normalised[:, None, :, axis] * ((2 * np.arange(n) + 1) / n - 1)[None, :, None]).to(image)
        for axis, n in enumerate(image.shape[2:])
    )
    return depth[:, :, None, None] + height[:, None, :, None] + width[:, None, None]


def _blur_and_coarsen(image: Tensor, drawn: Augmentation) -> None:
    """Both are linear along each axis: one matrix an axis does them together."""
    rows = np.flatnonzero(((drawn.blur > 0) | (drawn.resolution < 1)).any(axis=1)).tolist()
    if not rows:
        return
    part = image[rows]
    for axis, product in enumerate(("bij,bcjhw->bcihw", "bij,bcdjw->bcdiw", "bij,bcdhj->bcdhi")):
        size = image.shape[axis + 2]
        matrices = [_blur_matrix(size, drawn.blur[row, axis], drawn.resolution[row, axis]) for row in rows]
        part = torch.einsum(product, torch.from_numpy(np.stack(matrices)).to(image), part)
    image[rows] = part


def _blur_matrix(size: int, blur: float, resolution: float) -> Values:
    """(size, size): blur, then down to a share of the voxels and up again, along an axis."""
    matrix = resampling_matrix(size, size, blur)
    fewer = max(round(size * resolution), 1)
    if fewer < size:
        matrix = resampling_matrix(fewer, size) @ resampling_matrix(size, fewer) @ matrix
    return matrix


def _vary_intensities(image: Tensor, drawn: Augmentation) -> None:
    for rows, (gamma,) in _changed(image, (drawn.gamma, 1)):
        image[rows] = image[rows].clamp(min=0).pow_(gamma)
    for rows, (contrast, brightness) in _changed(image, (drawn.contrast, 1), (drawn.brightness, 0)):
        part = image[rows]
        shift = part.mean(dim=(2, 3, 4), keepdim=True) * (1 - contrast) + brightness
        image[rows] = part.mul_(contrast).add_(shift)
    generator = torch.Generator(image.device)
    for row in np.flatnonzero(drawn.noise).tolist():
        # On the device; the same device gives the same noise for the same key, another gives another.
        generator.manual_seed(stream_key(drawn.keys[row], "noise"))
        noise = torch.randn(image[row].shape, generator=generator, device=image.device, dtype=image.dtype)
        image[row].add_(noise, alpha=float(drawn.noise[row]))


def _changed(image: Tensor, *parts: tuple[Values, float]) -> list[tuple[list[int], list[Tensor]]]:
    """The samples that one of ``parts`` (values, what changes nothing) changes, and their values to multiply with."""
    rows = np.flatnonzero(np.any([values != nothing for values, nothing in parts], axis=0)).tolist()
    tensors = [torch.from_numpy(values[rows]).to(image)[:, None, None, None, None] for values, _ in parts]
    return [(rows, tensors)] if rows else []
