"""Whether the planes of a DICOM series make one volume of evenly spaced slices, and its affine.

Readers that take the position of the first and the last slice alone hand on a wrong spacing where a slice is missing,
where gaps vary, or where several volumes share one series. Here every plane is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.dicom_headers import VOLUME_TAGS, Plane
from HybridMIMLib.data.grid import Affine
from HybridMIMLib.data.names import natural_key
from HybridMIMLib.data.volume import LPS_TO_RAS, mm, times
from HybridMIMLib.errors import ScanError

_SAME_DIRECTION = 1e-3
_SAME_SPACING = 1e-3
_SAME_PLACE = 1e-3
_EVEN = 0.05
_ROUNDING = 0.1001
_WOBBLE = 0.01
_LARGEST_DRIFT = 0.25
_LARGEST_SHIFT = 0.5
_SHOWN = 4

_PART = "Put the files of each volume into a folder and a series of their own, and keep those that you need."
_EVENLY = "Fetch what is missing, or have the series reconstructed with even gaps; else remove it."
_ONE_KIND = "Keep the slices that belong together in the folder, and move the others."

Positions = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stack:
    """The planes of a volume.

    Attributes:
        planes: in the order of their places along the normal of the first.
        affine: (4, 4), of the voxel (column, row, plane), to RAS in mm.
        warnings: what is odd about it though it can be used.
    """

    planes: tuple[Plane, ...]
    affine: Affine
    warnings: tuple[str, ...]


def stack_planes(planes: Sequence[Plane]) -> Stack:
    """Order planes to a volume.

    Raises:
        ScanError: without a file's name: the planes have no place, other sizes or directions, lie in the same place,
            are a single one, or their gaps or shifts are not even.
    """
    _check_known(planes)
    _check_alike(planes)
    single, copies = _without_copies(planes)
    normal = _normal(single[0])
    ordered = sorted(single, key=lambda plane: float(np.dot(normal, _position(plane))))
    _check_one_volume(ordered, normal)
    if len(ordered) < 2:
        raise ScanError(
            f"a single slice ({times(ordered[0].size)} pixels), not a volume",
            cure="Add the other slices of the series, or remove it from the folder.",
        )
    positions = np.array([_position(plane) for plane in ordered])
    step = _even_step(positions)
    gaps = np.diff(positions @ normal)
    _check_gaps(ordered, gaps)
    _check_line(ordered, positions, step, normal)
    warnings = (*copies, *_gap_warnings(ordered, gaps))
    return Stack(tuple(ordered), _affine(ordered[0], positions, step), warnings)


def _check_known(planes: Sequence[Plane]) -> None:
    without = [plane for plane in planes if None in (plane.position, plane.orientation, plane.spacing)]
    if without:
        which = "none of its slices says" if len(without) == len(planes) else f"{without[0].label} does not say"
        raise ScanError(
            f"{which} where it lies (position, direction, pixel spacing), as in secondary captures",
            cure="Export the series with its geometry, or remove it from the folder.",
        )


def _check_alike(planes: Sequence[Plane]) -> None:
    first = planes[0]
    sizes = Counter(plane.size for plane in planes)
    if len(sizes) > 1:
        words = ", ".join(f"{times(size)} ({count})" for size, count in sizes.most_common(_SHOWN))
        raise ScanError(f"its slices have {len(sizes)} sizes: {words}", cure=_ONE_KIND)
    directions = _groups(planes)
    if directions > 1:
        raise ScanError(
            f"its slices point in {directions} directions: a localizer, a radial scan, or several scans",
            cure=_ONE_KIND,
        )
    spacings = np.array([plane.spacing for plane in planes])
    if not np.allclose(spacings, spacings[0], rtol=_SAME_SPACING, atol=0):
        odd = planes[int(np.abs(spacings - spacings[0]).max(axis=1).argmax())]
        raise ScanError(
            f"pixels of {mm(odd.spacing)} in {odd.label}, but of {mm(first.spacing)} in {first.label}", cure=_ONE_KIND
        )
    along_i, along_j = _directions(first)
    lengths = np.array([np.linalg.norm(along_i), np.linalg.norm(along_j)])
    if np.abs(lengths - 1).max() > _SAME_DIRECTION or abs(along_i @ along_j) > _SAME_DIRECTION:
        raise ScanError(
            f"the orientation of {first.label} is not that of two axes at right angles",
            cure="Export the series again, or remove it from the folder.",
        )


def _groups(planes: Sequence[Plane]) -> int:
    """How many different directions there are."""
    known: list[npt.NDArray[np.float64]] = []
    for plane in planes:
        direction = np.array(plane.orientation)
        if not any(np.abs(direction - other).max() <= _SAME_DIRECTION for other in known):
            known.append(direction)
    return len(known)


def _without_copies(planes: Sequence[Plane]) -> tuple[list[Plane], tuple[str, ...]]:
    """One of each instance; a copy has its uid and its place."""
    single: dict[tuple[object, ...], Plane] = {}
    for plane in planes:
        single.setdefault((plane.uid, plane.position, plane.tags), plane)
    extra = len(planes) - len(single)
    warning = (f"{extra} of its files are copies of other slices and are passed over",) if extra else ()
    return list(single.values()), warning


def _check_one_volume(ordered: Sequence[Plane], normal: Positions) -> None:
    """Refuse several planes in one place."""
    positions = np.array([_position(plane) for plane in ordered])
    places: list[list[Plane]] = [[ordered[0]]]
    for plane, before, after in zip(ordered[1:], positions[:-1], positions[1:]):
        if np.dot(after - before, normal) > _SAME_PLACE:
            places.append([plane])
        else:
            places[-1].append(plane)
    counts = sorted({len(place) for place in places})
    if counts == [1]:
        return
    several = next(place for place in places if len(place) > 1)
    if len(counts) > 1:
        raise ScanError(
            f"{counts[0]} to {counts[-1]} slices lie in one place, such as {several[0].label} and "
            f"{several[1].label}: several volumes in one series, some of them not whole",
            cure=_PART,
        )
    raise ScanError(
        f"holds {counts[0]} volumes in the same place, {len(places)} slices each; {_difference(places)}", cure=_PART
    )


def _difference(places: Sequence[Sequence[Plane]]) -> str:
    """The tag that has another value in each of the volumes, with its values."""
    for index, name in enumerate(VOLUME_TAGS):
        values = [[plane.tags[index] for plane in place] for place in places]
        met = dict.fromkeys(value for place in values for value in place)
        if len(met) == len(places[0]) and all(set(place) == set(met) for place in values):
            ordered = sorted(met, key=natural_key)[:_SHOWN]
            shown = ", ".join(value or "none" for value in ordered) + (" …" if len(met) > _SHOWN else "")
            return f"they differ by {name} ({shown})"
    return "no tag was found by which they differ"


def _even_step(positions: Positions) -> Positions:
    """The step from slice to slice of the even line that fits best."""
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    return np.asarray(index @ positions / (index @ index))


def _check_gaps(ordered: Sequence[Plane], gaps: Positions) -> None:
    # The lower median: of two gaps, the wide one is where a slice is missing.
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    # Positions may have been rounded to a tenth of a millimetre.
    tolerance = max(_EVEN * usual, min(_ROUNDING, 0.35 * usual))
    if np.abs(gaps - usual).max() <= tolerance:
        return
    widest, narrowest = int(gaps.argmax()), int(gaps.argmin())
    if usual - gaps[narrowest] <= tolerance and _is_multiple(gaps, usual, tolerance):
        missing = int(round(float((gaps / usual).round().sum()))) - len(gaps)
        raise ScanError(
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing: the gap {_between(ordered, widest)} is "
            f"{gaps[widest]:.4g} mm, elsewhere {usual:.4g} mm",
            cure=_EVENLY,
        )
    raise ScanError(
        f"the gaps between its slices vary from {gaps[narrowest]:.4g} mm ({_between(ordered, narrowest)}) to "
        f"{gaps[widest]:.4g} mm ({_between(ordered, widest)})",
        cure=_EVENLY,
    )


def _is_multiple(gaps: Positions, usual: float, tolerance: float) -> bool:
    return bool(np.abs(gaps - (gaps / usual).round() * usual).max() <= tolerance)


def _between(ordered: Sequence[Plane], index: int) -> str:
    return f"between {ordered[index].label} and {ordered[index + 1].label}"


def _check_line(ordered: Sequence[Plane], positions: Positions, step: Positions, normal: Positions) -> None:
    """A tilted gantry shifts every slice by the same; anything else cannot be put into one affine."""
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    off = positions - positions.mean(axis=0) - np.outer(index, step)
    along = np.abs(off @ normal)
    across = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if along.max() > _LARGEST_DRIFT * float(step @ normal):
        worst = int(along.argmax())
        raise ScanError(
            f"its gaps drift: {ordered[worst].label} lies {along[worst]:.3g} mm from its place on an even grid",
            cure=_EVENLY,
        )
    if across.max() > _LARGEST_SHIFT * min(ordered[0].spacing or (1.0,)):
        worst = int(across.argmax())
        raise ScanError(
            f"its slices are shifted against each other unevenly: {ordered[worst].label} by {across[worst]:.3g} mm",
            cure=_EVENLY,
        )


def _gap_warnings(ordered: Sequence[Plane], gaps: Positions) -> tuple[str, ...]:
    warnings, mean = [], float(gaps.mean())
    if np.abs(gaps - mean).max() > _WOBBLE * mean:
        warnings.append(f"the gaps between its slices vary from {gaps.min():.4g} to {gaps.max():.4g} mm")
    said = ordered[0].gap
    if said is not None and said > 0 and abs(said - mean) > _EVEN * mean:
        warnings.append(f"its slices lie {mean:.4g} mm apart, but SpacingBetweenSlices says {said:.4g} mm")
    return tuple(warnings)


def _affine(first: Plane, positions: Positions, step: Positions) -> Affine:
    assert first.spacing is not None
    along_i, along_j = _directions(first)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = along_i * first.spacing[0], along_j * first.spacing[1], step
    affine[:3, 3] = positions.mean(axis=0) - (len(positions) - 1) / 2 * step
    return np.asarray(LPS_TO_RAS @ affine)


def _directions(plane: Plane) -> tuple[Positions, Positions]:
    direction = np.array(plane.orientation, dtype=np.float64)
    return direction[:3], direction[3:]


def _normal(plane: Plane) -> Positions:
    across = np.cross(*_directions(plane))
    return np.asarray(across / np.linalg.norm(across))


def _position(plane: Plane) -> Positions:
    return np.array(plane.position, dtype=np.float64)
