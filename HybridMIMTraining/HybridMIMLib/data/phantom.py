"""Synthetic scans for the demo and the tests: invented bodies, not images of people.

A phantom looks somewhat like a CT of an abdomen: a body in air with a rim of fat; liver, spleen, kidneys and
spine as classes; lungs, heart, aorta, stomach, bowel and muscle as distractors of overlapping intensity.
Nothing here is a real patient or derived from one; a model trained on phantoms is of no use on real scans.

Anatomy is drawn in world mm (RAS), so that the liver is on the right of the patient however the voxels lie.
All of a case follows from (seed, group, index).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel import orientations

from HybridMIMLib.data.classes import LabelClass, default_color
from HybridMIMLib.data.grid import Affine, Grid, reorient
from HybridMIMLib.data.scans import write_label_map, write_nifti
from HybridMIMLib.files import write_json

CLASSES = tuple(
    LabelClass(label, name, default_color(label))
    for label, name in enumerate(("Liver", "Spleen", "Kidneys", "Spine"), start=1)
)
"""The classes of a phantom; each is in every case."""

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Triple = tuple[float, float, float]

_AIR = -1000.0
_FAT = -95.0
_BODY_POWER = 2.4
_AXES = ("RAS", "LPS", "LAS", "RAS", "LPS", "PIR", "RSA", "SAL")
_GROUPS = ("unlabelled", "labelled", "unseen")


@dataclass(frozen=True)
class PhantomSet:
    """The folders of a set of phantoms.

    Attributes:
        unlabelled: scans to pre-train on.
        labelled: ``images/`` and ``labels/`` to fine-tune on.
        unseen: ``images/`` and ``labels/`` that no model should have seen.
    """

    unlabelled: Path
    labelled: Path
    unseen: Path


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic case.

    Attributes:
        image: (D, H, W) int16, in Hounsfield units.
        labels: (D, H, W) uint8, see :data:`CLASSES`.
        grid: the grid of both.
    """

    image: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    grid: Grid


def write_phantoms(folder: Path, seed: int, unlabelled: int, labelled: int, unseen: int) -> PhantomSet:
    """Write synthetic CT-like scans as .nii.gz into three folders.

    Args:
        folder: gets ``unlabelled``, ``labelled`` and ``unseen``; files that are there are written over.
        seed: the same seed gives the same voxels.
        unlabelled, labelled, unseen: how many scans of each.

    Raises:
        DiskError: a file could not be written.
    """
    for _ in writing_phantoms(folder, seed, (unlabelled, labelled, unseen)):
        pass
    return PhantomSet(*(folder / group for group in _GROUPS))


def writing_phantoms(folder: Path, seed: int, counts: Sequence[int]) -> Iterator[int]:
    """The same as :func:`write_phantoms`, scan by scan; yields how many are written.

    Args:
        folder, seed: as there.
        counts: of ``unlabelled``, ``labelled`` and ``unseen``.

    Raises:
        DiskError: a file could not be written.
    """
    for group in _GROUPS[1:]:
        write_json(folder / group / "classes.json", {str(entry.label): entry.name for entry in CLASSES})
    wanted = [(group, index) for group, count in zip(_GROUPS, counts, strict=True) for index in range(count)]
    for done, (group, index) in enumerate(wanted, 1):
        _write(folder / group, f"phantom_{index + 1:03d}.nii.gz", make_phantom(seed, group, index))
        yield done


def make_phantom(seed: int, group: str, index: int) -> Phantom:
    """Draw one synthetic case.

    Args:
        seed: of the set.
        group: ``"unlabelled"``, ``"labelled"`` or ``"unseen"``.
        index: the number of the case in its group.
    """
    rng = np.random.default_rng([seed, _GROUPS.index(group), index])
    grid = _draw_grid(rng)
    body = _Body(_deformed(rng, _world(grid), grid.shape), rng)
    hounsfield, labels = body.draw()
    image = _acquire(rng, hounsfield)
    return _on_random_axes(rng, image, labels, grid)


def _write(folder: Path, name: str, phantom: Phantom) -> None:
    if folder.name == "unlabelled":
        write_nifti(folder / name, phantom.image, phantom.grid)
        return
    write_nifti(folder / "images" / name, phantom.image, phantom.grid)
    write_label_map(folder / "labels" / name, phantom.labels, phantom.grid)


# --- the grid -----------------------------------------------------------------------------------------------


def _draw_grid(rng: np.random.Generator) -> Grid:
    """About 270 x 240 x 200 mm around the origin, its axes near R, A, S but turned by some degrees."""
    in_plane, slices = rng.uniform(3.6, 4.0), rng.uniform(4.4, 5.6)
    spacing = np.array([in_plane, in_plane, slices])
    low, high = np.array([[64, 56, 36], [80, 72, 48]])
    extent = np.array([276.0, 246.0, 204.0]) * rng.uniform(0.97, 1.03, 3)
    shape = np.clip(np.rint(extent / spacing), low, high).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(rng.uniform(-1, 1, 3) * np.radians([6, 6, 10])) * spacing
    affine[:3, 3] = rng.normal(0, 3, 3) - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _rotation(angles: npt.NDArray[np.float64]) -> Affine:
    """(3, 3): turned about R, then A, then S, in radians."""
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        step = np.eye(3)
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turned = step @ turned
    return np.asarray(turned)


def _world(grid: Grid) -> Field:
    """(3, D, H, W): the RAS position of each voxel in mm."""
    voxels = np.indices(grid.shape, dtype=np.float32)
    matrix = grid.affine[:3, :3].astype(np.float32)
    moved = np.tensordot(matrix, voxels, axes=1)
    return np.asarray(moved + grid.affine[:3, 3].astype(np.float32)[:, None, None, None], dtype=np.float32)


def _on_random_axes(rng: np.random.Generator, image: Field, labels: Field, grid: Grid) -> Phantom:
    codes = _AXES[int(rng.integers(len(_AXES)))]
    wanted = orientations.axcodes2ornt(codes)
    orientation = orientations.ornt_transform(orientations.io_orientation(grid.affine), wanted)
    turned_image, turned_grid = reorient(image.astype(np.int16), grid, orientation)
    turned_labels, _ = reorient(labels.astype(np.uint8), grid, orientation)
    return Phantom(turned_image, turned_labels, turned_grid)


# --- smooth random fields -----------------------------------------------------------------------------------


def _smooth(rng: np.random.Generator, shape: tuple[int, int, int], knots: int) -> Field:
    """(D, H, W): normally distributed at ``knots`` points an axis, and smooth in between."""
    field = rng.standard_normal((knots, knots, knots)).astype(np.float32)
    for axis, size in enumerate(shape):
        field = np.moveaxis(np.tensordot(_between(size, knots), field, axes=(1, axis)), 0, axis)
    return field


def _between(size: int, knots: int) -> Field:
    """(size, knots): the weights of an interpolation without kinks."""
    place = np.linspace(0, knots - 1, size, dtype=np.float32)
    distance = np.clip(np.abs(place[:, None] - np.arange(knots, dtype=np.float32)), 0, 1)
    return np.asarray((1 + np.cos(np.pi * distance)) / 2, dtype=np.float32)


def _deformed(rng: np.random.Generator, world: Field, shape: tuple[int, int, int]) -> Field:
    shifts = [_smooth(rng, shape, 5) * 5 + _smooth(rng, shape, 9) * 1.5 for _ in range(3)]
    return np.asarray(world + np.stack(shifts), dtype=np.float32)


# --- the body -----------------------------------------------------------------------------------------------


class _Body:
    """One patient: the anatomy is given in mm for a body of 240 x 180 mm and scaled to the patient's size."""

    def __init__(self, world: Field, rng: np.random.Generator) -> None:
        self.rng = rng
        size = rng.normal(1.0, 0.05, 3).clip(0.9, 1.08)
        self.x, self.y, self.z = world / size.astype(np.float32)[:, None, None, None]
        self.rim = rng.uniform(7, 17)
        self.hounsfield = np.full(self.x.shape, _AIR, dtype=np.float32)
        self.labels = np.zeros(self.x.shape, dtype=np.float32)

    def draw(self) -> tuple[Field, Field]:
        """The ideal image in Hounsfield units and its labels; later organs cover earlier ones."""
        inner = self._draw_trunk()
        chest = self._draw_chest(inner)
        cavity = inner & ~chest
        for draw in (self._bowel, self._stomach, self._spleen, self._kidneys, self._liver, self._aorta):
            draw(cavity)
        self._spine()
        return self.hounsfield, self.labels

    def _fill(self, where: Mask, value: float, label: int = 0) -> None:
        self.hounsfield[where] = value
        self.labels[where] = label

    def _about(self, mean: float, deviation: float) -> float:
        return float(self.rng.normal(mean, deviation))

    def _blob(self, center: Triple, radii: Triple, *, shift: float = 4, tilt: float = 0.15) -> Field:
        """Below 1 inside an ellipsoid, which is moved, scaled and tilted (in the coronal plane) at random."""
        middle = np.asarray(center) + self.rng.normal(0, shift, 3).clip(-2 * shift, 2 * shift)
        radius = np.asarray(radii) * self.rng.normal(1, 0.08, 3).clip(0.85, 1.15)
        x, y, z = (axis - float(start) for axis, start in zip((self.x, self.y, self.z), middle, strict=True))
        angle = float(self.rng.normal(0, tilt))
        across, along = x * np.cos(angle) - z * np.sin(angle), x * np.sin(angle) + z * np.cos(angle)
        scaled = (across / radius[0]) ** 2 + (y / radius[1]) ** 2 + (along / radius[2]) ** 2
        return np.asarray(np.sqrt(scaled).astype(np.float32))

    def _outline(self, rim: float) -> Mask:
        scaled = np.abs(self.x / (120 - rim)) ** _BODY_POWER + np.abs(self.y / (90 - rim)) ** _BODY_POWER
        return np.asarray(scaled < 1)

    def _draw_trunk(self) -> Mask:
        """Skin, fat, the muscle of the wall; returns what lies within the wall."""
        self._fill(self._outline(0), self._about(10, 15))
        self._fill(self._outline(3), self._about(_FAT, 8))
        self._fill(self._outline(self.rim), self._about(58, 6))
        inner = self._outline(self.rim + 9) & (self.y > -62)
        self._fill(inner, self._about(-35, 12))
        for side in (-1, 1):
            self._fill(self._blob((side * 26, -48, -40), (14, 13, 70), shift=2) < 1, self._about(60, 6))
        return np.asarray(inner)

    def _draw_chest(self, inner: Mask) -> Mask:
        """Lungs above two domes of the diaphragm, and a heart between them."""
        top = self._about(52, 5)
        domes = [self._blob((side * 52, 0, top - 40), (58, 75, 44), shift=3, tilt=0.05) for side in (-1, 1)]
        chest = inner & (np.minimum(*domes) > 1) & (self.z > top - 30) & (self.z > 0)
        self._fill(chest, self._about(-820, 30))
        beside = chest & (np.abs(self.x - self._about(0, 3)) < 13)
        self._fill(beside, self._about(20, 10))
        self._fill(chest & (self._blob((-18, 20, top + 32), (38, 34, 36)) < 1), self._about(110, 12))
        return np.asarray(chest)

    def _bowel(self, cavity: Mask) -> None:
        """Loops of an intensity between water and contrast, some with gas, in the lower belly."""
        texture = _smooth(self.rng, cavity.shape, 14)
        low = cavity & (self.z < self._about(5, 8)) & (self.y > -25)
        self._fill(low & (texture > 0.15), self._about(45, 8))
        self._fill(low & (texture > 0.75), self._about(105, 15))
        self._fill(low & (texture < -1.0), self._about(-600, 60))

    def _stomach(self, cavity: Mask) -> None:
        """Fluid behind, gas in front: the patient lies on the back."""
        stomach = cavity & (self._blob((-42, 30, 18), (36, 26, 28), tilt=0.3) < 1)
        self._fill(stomach, self._about(78, 6))
        wall = self._blob((-40, 30, 18), (30, 21, 23), tilt=0.1) < 1
        self._fill(stomach & wall, self._about(28, 8))
        self._fill(stomach & wall & (self.y > self._about(38, 4)), -900.0)

    def _liver(self, cavity: Mask) -> None:
        right = self._blob((56, 4, 8), (50, 58, 54))
        left = self._blob((6, 34, 26), (48, 28, 26))
        union = -np.log(np.exp(-6 * right) + np.exp(-6 * left)) / 6
        hollow = self._blob((22, -30, -32), (40, 34, 34))
        ripples = _smooth(self.rng, cavity.shape, 8) * 0.05
        liver = cavity & (union + ripples < 1) & (hollow > 1) & (self.labels == 0)
        self._fill(liver, self._about(95, 8), 1)
        self._fill(liver & (self._blob((40, 5, 12), (7, 26, 6), tilt=0.5) < 1), self._about(125, 10), 1)

    def _spleen(self, cavity: Mask) -> None:
        """A crescent that opens to the middle."""
        bulk = self._blob((-74, -22, 16), (27, 36, 40))
        hollow = self._blob((-50, -8, 14), (23, 27, 38), shift=2)
        self._fill(cavity & (bulk < 1) & (hollow > 1), self._about(112, 9), 2)

    def _kidneys(self, cavity: Mask) -> None:
        """Two beans of a bright cortex; the right one lies lower, under the liver."""
        brightness = self._about(128, 10)
        for side, height in ((1, -38), (-1, -26)):
            offset = self._about(height, 4)
            bean = self._blob((side * 50, -36, offset), (21, 20, 38), shift=2)
            hilum = self._blob((side * 27, -30, offset), (14, 13, 14), shift=1.5)
            kidney = cavity & (bean < 1) & (hilum > 1)
            self._fill(kidney, brightness, 3)
            self._fill(kidney & (bean < 0.55), brightness - 25, 3)

    def _aorta(self, cavity: Mask) -> None:
        """Aorta and vena cava, of much the same intensity as the organs beside them."""
        for center, radius in ((-6.0, 9.0), (14.0, 10.0)):
            distance = np.hypot(self.x - self._about(center, 2), self.y + self._about(24, 2))
            tube = (distance < radius) & (self.y > -60) & self._outline(self.rim + 9)
            self._fill(tube & (self.labels == 0), self._about(118, 14))

    def _spine(self) -> None:
        """Vertebrae with a hard shell, disks between them, a canal and spinous processes behind."""
        shift = self._about(0, 2)
        x, y = self.x - shift, self.y + 48
        column = np.sqrt((x / 21) ** 2 + (y / 16) ** 2)
        pitch = self._about(32, 1.5)
        height = np.abs((self.z + self._about(0, 8)) % pitch - pitch / 2) / (pitch / 2)
        arch = (np.hypot(x, self.y + 70) < 13) & (height < 0.6)
        process = (np.abs(x) < 5) & (self.y < -74) & (self.y > -84) & (height < 0.45)
        self._fill(arch | process, self._about(230, 20), 4)
        self._fill(column < 1, self._about(175, 18), 4)
        self._fill((column < 1) & (column > 0.8), self._about(260, 20), 4)
        self._fill((column < 1) & (height > 0.8), self._about(95, 8), 4)
        self._fill(np.hypot(x, self.y + 69) < 7, self._about(30, 5))


# --- the scanner --------------------------------------------------------------------------------------------


def _acquire(rng: np.random.Generator, hounsfield: Field) -> Field:
    """Blur between neighbours, a slow change of brightness across the image, noise, and whole numbers."""
    texture = _smooth(rng, hounsfield.shape, 12) * np.float32(4) * (hounsfield > -500)
    blurred = hounsfield + texture

    for axis in range(3):
        blurred = _blur(blurred, axis)
    bias = 1 + np.float32(0.012) * _smooth(rng, hounsfield.shape, 3)
    noise = rng.standard_normal(hounsfield.shape, dtype=np.float32) * np.float32(rng.uniform(12, 18))
    return np.asarray(np.rint(np.clip((blurred - _AIR) * bias + _AIR + noise, -1024, 3071)).astype(np.float32))


def _blur(field: Field, axis: int) -> Field:
    edge = np.concatenate([field.take([0], axis), field, field.take([-1], axis)], axis)
    size = field.shape[axis]
    before, after = (edge.take(range(start, start + size), axis) for start in (0, 2))
    return np.asarray(np.float32(0.7) * field + np.float32(0.15) * (before + after), dtype=np.float32)
