"""The objective that the settings describe, after a look whether it can work on these scans."""

from __future__ import annotations

from collections.abc import Sequence

from HybridMIMLib.config import PretrainingSettings, Run
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.networks import initial_weights, make_backbone
from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.pretraining.contrast import FEWEST_PATIENTS, QUEUE
from HybridMIMLib.pretraining.hybridmim import HybridMIM
from HybridMIMLib.pretraining.masking import PatchGrid, Triple
from HybridMIMLib.pretraining.objective import Objective


def make_objective(run: Run, plan: Plan, patients: int) -> Objective:
    """The objective with a backbone, both with initial weights that follow from the seed.

    Args:
        run: settings, those of the network settled, the batch chosen.
        plan: sizes and channels.
        patients: how many different ones the crops come from.

    Raises:
        SettingsError: settings contradict each other.
        DataError: there are too few patients to contrast.
    """
    backbone = make_backbone(run.network, plan.channels, plan.crop, run.seed)
    grid = PatchGrid(plan.crop, plan.patch, plan.region)
    with initial_weights(run.seed, "objective"):
        return _hybridmim(run, plan, grid, backbone, patients)


def _hybridmim(run: Run, plan: Plan, grid: PatchGrid, backbone: EncoderDecoder, patients: int) -> Objective:
    chosen = run.pretraining
    if chosen.contrast_weight and run.network.dropout == 0:
        raise SettingsError(
            "network.dropout is 0, and the contrast compares two passes that differ by dropout",
            cure="Set network.dropout above 0 (0.1 is usual), or pretraining.contrast_weight to 0.",
        )
    queue = queue_length(run, patients) if chosen.contrast_weight else 0
    box = box_size(grid, chosen, backbone.strides[-1])
    return HybridMIM(backbone, grid, box, plan.channels, chosen, queue)


def queue_length(run: Run, patients: int) -> int:
    """Crops of earlier steps to contrast with: as set, or as many as a batch of few patients needs.

    Raises:
        DataError: there is one patient.
        SettingsError: there is nothing to compare a crop with.
    """
    chosen = run.pretraining
    if patients < 2:
        raise DataError(
            f"{run.unlabelled}: holds usable scans of one patient, and the contrast compares different patients",
            cure="Add scans of others, or set pretraining.contrast_weight to 0.",
        )
    if chosen.contrast_queue >= 0:
        if chosen.contrast_queue == 0 and chosen.batch < 2:
            raise SettingsError(
                "pretraining.batch is 1 and pretraining.contrast_queue is 0: there is nothing to contrast with",
                cure="Set pretraining.batch to 4, or pretraining.contrast_queue to -1.",
            )
        return chosen.contrast_queue
    return QUEUE if min(chosen.batch, patients) < FEWEST_PATIENTS else 0


def box_size(grid: PatchGrid, settings: PretrainingSettings, stride: Sequence[int]) -> Triple:
    """The box to reconstruct: as set, or two thirds of the crop along each axis, in steps of the stride.

    Raises:
        SettingsError: the box is larger than the crop, or no multiple of the network's stride.
    """
    nearest = [min(max(round(2 / 3 * c / s), 1) * s, c) for c, s in zip(grid.crop, stride)]
    if settings.box is None:
        # A single voxel at the bottleneck has no spread that an instance norm could divide by.
        d, h, w = (2 * n if nearest == list(stride) and 2 * n <= c else n for n, c in zip(nearest, grid.crop))
        return (d, h, w)
    if any(b > c or b % s for b, c, s in zip(settings.box, grid.crop, stride)) or settings.box == list(stride):
        raise SettingsError(
            f"pretraining.box {settings.box} does not fit crop {list(grid.crop)} and stride {list(stride)}",
            cure=f"Choose a box within the crop, each side a multiple of the stride, such as {nearest}.",
        )
    d, h, w = settings.box
    return (d, h, w)
