"""What is measured of one case, class by class: overlap, distances and volumes.

=====================  ============================================================================================
Dice                   twice the voxels that both share, divided by the voxels of both; 1 is perfect
HD95                   in mm: 95 % of either surface is at most that far from the other (:mod:`.surfaces`); 0 is
                       perfect
surface Dice           normalised surface distance: the share of both surfaces that is within a tolerance in mm of the
                       other; 1 is perfect
volumes                in ml, their difference (prediction less reference) in ml and in % of the reference
=====================  ============================================================================================

ONE RULE for what is empty, whatever is measured, in an evaluation as in the validation of a training:

* A class that neither reference nor prediction has ("absent") gives no figure, and does not count. To call that
  perfect would reward sets in which a class is rare.
* A class that one of the two alone has ("missed" if it is the reference, "invented" if it is the prediction) has a
  Dice and a surface Dice of 0, and as HD95 the diagonal of the scan in mm, the longest way that there is in it, as
  the BraTS challenges have it (373 mm in theirs). Without a figure a model that finds nothing would look better than
  one that is nearly right (MONAI's HD95 is NaN here, and left out of its means); an endless one would leave no mean.
* A class that was not annotated in the reference gives no figure, and does not count, whatever was predicted.
* A case without a prediction counts as one in which nothing was found.

Background is no class. Regions, several classes measured as one, are measured as classes are; one with a class that
was not annotated is not annotated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from HybridMIMLib.data.classes import LabelClass, Region
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.evaluation.dice import dice_of
from HybridMIMLib.evaluation.surfaces import surface_distances

Labels = npt.NDArray[Any]
Box = tuple[slice, ...]

TOLERANCE = 2.0
"""Of the surface Dice, in mm, if nothing else is said: about what two experts differ by on organs."""

Status = Literal["both", "missed", "invented", "absent", "not annotated"]
COUNTED: tuple[Status, ...] = ("both", "missed", "invented")
"""Those that have figures."""

NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """What was measured of one class or region in one case; NaN where there is no figure.

    Attributes:
        case: its name.
        name: of the class or region.
        is_region: whether it is a region.
        status: who has it; see the rule at the top of this file.
        dice: 0 to 1.
        hd95: in mm.
        surface_dice: 0 to 1, at ``tolerance``.
        tolerance: in mm.
        reference_ml, prediction_ml: volumes.
        difference_ml: prediction less reference.
        difference_percent: the same in percent of the reference; NaN where that is empty.
    """

    case: str
    name: str
    is_region: bool
    status: Status
    dice: float = NAN
    hd95: float = NAN
    surface_dice: float = NAN
    tolerance: float = TOLERANCE
    reference_ml: float = NAN
    prediction_ml: float = NAN
    difference_ml: float = NAN
    difference_percent: float = NAN

    @property
    def counts(self) -> bool:
        """Whether it has figures."""
        return self.status in COUNTED


def measure_case(
    reference: Labels,
    prediction: Labels | None,
    grid: Grid,
    classes: Sequence[LabelClass],
    regions: Sequence[Region] = (),
    *,
    annotated: Collection[int] | None = None,
    tolerances: Mapping[str, float] | None = None,
    tolerance: float = TOLERANCE,
    case: str = "",
) -> list[Row]:
    """Measure one case; a row a class, then a row a region.

    Every class is looked at in the box around it alone, so that a scan of 512 x 512 x 300 with 25 organs takes
    seconds.

    Args:
        reference: (D, H, W) labels that are held to be right.
        prediction: (D, H, W) labels to judge, on the same grid; None: there is none, so that nothing was found.
        grid: of both.
        classes: to measure.
        regions: to measure.
        annotated: labels that were annotated in the reference; None: all.
        tolerances: of the surface Dice in mm by name of class or region.
        tolerance: of all others.
        case: its name, for the rows.

    Raises:
        ValueError: the label maps have another shape than the grid.
    """
    prediction = np.zeros(grid.shape, dtype=np.uint8) if prediction is None else prediction
    if not reference.shape == prediction.shape == grid.shape:
        raise ValueError(f"label maps of {reference.shape} and {prediction.shape} on a grid of {grid.shape}")
    pair = _Pair(reference, prediction, grid)
    named = [(one.name, frozenset({one.label}), False) for one in classes]
    named += [(one.name, one.labels, True) for one in regions]
    rows = []
    for name, labels, is_region in named:
        within = (tolerances or {}).get(name, tolerance)
        if annotated is not None and not labels <= set(annotated):
            rows.append(Row(case, name, is_region, "not annotated", tolerance=within))
        else:
            rows.append(pair.measure(Row(case, name, is_region, "absent", tolerance=within), labels))
    return rows


class _Pair:
    """Two label maps on one grid; where each label lies in either is looked up once."""

    def __init__(self, reference: Labels, prediction: Labels, grid: Grid) -> None:
        self._maps, self._grid = (reference, prediction), grid
        self._boxes = [_boxes(labels) for labels in self._maps]
        self._voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
        self._diagonal = float(np.linalg.norm(grid.affine[:3, :3] @ np.array(grid.shape)))

    def measure(self, row: Row, labels: frozenset[int]) -> Row:
        """The row with the figures of some labels as one."""
        boxes = [boxes[label] for boxes in self._boxes for label in labels if label in boxes]
        box = _around(boxes) if boxes else (slice(0, 1),) * 3
        reference, prediction = (_mask(one[box], labels) for one in self._maps)
        in_reference, in_prediction = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
        both = int(np.count_nonzero(reference & prediction))
        status = _status(in_reference, in_prediction)
        hd95, surface_dice = NAN, NAN
        if status == "both":
            distances = surface_distances(prediction, reference, self._grid)
            hd95, surface_dice = distances.hd95, distances.surface_dice(row.tolerance)
        elif status != "absent":
            hd95, surface_dice = self._diagonal, 0.0
        more = in_prediction - in_reference
        return Row(
            row.case,
            row.name,
            row.is_region,
            status,
            dice_of(both, in_reference, in_prediction),
            hd95,
            surface_dice,
            row.tolerance,
            in_reference * self._voxel_ml,
            in_prediction * self._voxel_ml,
            more * self._voxel_ml,
            100 * more / in_reference if in_reference else NAN,
        )


def _status(in_reference: int, in_prediction: int) -> Status:
    if in_reference and in_prediction:
        return "both"
    if in_reference:
        return "missed"
    return "invented" if in_prediction else "absent"


def labels_in(labels: Labels) -> frozenset[int]:
    """The labels that there are, without 0."""
    return frozenset(_boxes(labels))


def _boxes(labels: Labels) -> dict[int, Box]:
    """The box around each label that there is."""
    from scipy import ndimage

    found = ndimage.find_objects(labels if labels.dtype.kind in "iu" else labels.astype(np.int64))
    return {label: box for label, box in enumerate(found, 1) if box is not None}


def _around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds several."""
    return tuple(slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes))


def _mask(labels: Labels, wanted: frozenset[int]) -> npt.NDArray[np.bool_]:
    if len(wanted) == 1:
        return np.ascontiguousarray(labels == next(iter(wanted)))
    return np.isin(labels, sorted(wanted))


def case_dice(rows: Sequence[Row]) -> float:
    """The mean Dice of the classes of one case; NaN where none has one."""
    known = [row.dice for row in rows if row.counts and not row.is_region]
    return math.fsum(known) / len(known) if known else NAN
