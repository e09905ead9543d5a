"""The objective that the settings describe, after a look whether it can work with these sizes, network and scans.

Each objective looks at its own settings; those that it has no use for may be left as they are.

=========  =============================================================================================
objective  what must fit
=========  =============================================================================================
hybridmim  the box: within the crop, of whole and more than one voxel of the bottleneck; the contrast:
           dropout, and crops of two patients
simmim     patches of whole tokens; a ratio that leaves something to see
mae        the same; a ViT (unetr), and a decoder with at least one block
simclr     crops of two patients
none
=========  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, prod

from HybridMIMLib.agreement import check_settings
from HybridMIMLib.architectures import token_size
from HybridMIMLib.config import Run
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.networks import initial_weights, make_backbone
from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.networks.unetr import UNETR
from HybridMIMLib.pretraining.contrast import FEWEST_PATIENTS, QUEUE
from HybridMIMLib.pretraining.hybridmim import MASK_RATIO, HybridMIM
from HybridMIMLib.pretraining.mae import MAE
from HybridMIMLib.pretraining.masking import PatchGrid, Triple
from HybridMIMLib.pretraining.objective import Objective, train_encoder_alone
from HybridMIMLib.pretraining.reconstruction import ratio_of
from HybridMIMLib.pretraining.scratch import Scratch
from HybridMIMLib.pretraining.simclr import SimCLR
from HybridMIMLib.pretraining.simmim import SimMIM
from HybridMIMLib.settings.pretraining import PretrainingSettings, Share

BOX_SHARE = 2 / 3
"""Of the crop along each axis, as published."""


@dataclass(frozen=True)
class _Given:
    """What an objective is made of.

    Attributes:
        run: settings.
        plan: sizes, channels and spacing.
        grid: crop, patch and region.
        backbone: with its initial weights.
        patients: how many different ones the crops come from.
    """

    run: Run
    plan: Plan
    grid: PatchGrid
    backbone: EncoderDecoder
    patients: int


def make_objective(run: Run, plan: Plan, patients: int) -> Objective:
    """The objective with a backbone, both with initial weights that follow from the seed.

    With ``objective: none`` it is :class:`Scratch`, with which a run takes no steps.

    Args:
        run: settings, those of the network settled, the batch chosen.
        plan: sizes and channels.
        patients: how many different ones the crops come from.

    Raises:
        SettingsError: settings contradict each other.
        DataError: there are too few patients to contrast.
    """
    check_settings(run)
    grid = PatchGrid(plan.crop, plan.patch, plan.region)
    backbone = make_backbone(run.network, plan.channels, plan.crop, run.seed)
    with initial_weights(run.seed, "objective"):
        return _OBJECTIVES[run.pretraining.objective](_Given(run, plan, grid, backbone, patients))


def _hybridmim(given: _Given) -> Objective:
    chosen, backbone = given.run.pretraining, given.backbone
    _check_something_is_left(given.grid, MASK_RATIO if chosen.mask_ratio is None else chosen.mask_ratio)
    queue = queue_length(given.run, given.patients) if chosen.contrast_weight else 0
    box = box_size(given.grid, chosen, backbone.strides[-1])
    objective = HybridMIM(backbone, given.grid, box, given.plan.channels, chosen, queue)
    if not objective.trains_decoder:
        train_encoder_alone(backbone)
    return objective


def _simmim(given: _Given) -> Objective:
    _check_patches(given)
    return SimMIM(given.backbone, given.grid, given.plan.channels, given.run.pretraining)


def _mae(given: _Given) -> Objective:
    assert isinstance(given.backbone, UNETR), "check_settings was not called"
    _check_patches(given)
    return MAE(given.backbone, given.grid, given.plan.channels, given.run.pretraining)


def _simclr(given: _Given) -> Objective:
    queue = queue_length(given.run, given.patients)
    return SimCLR(given.backbone, given.plan.spacing, given.run.pretraining, queue)


_OBJECTIVES: dict[str, Callable[[_Given], Objective]] = {
    "hybridmim": _hybridmim,
    "simmim": _simmim,
    "mae": _mae,
    "simclr": _simclr,
    "none": lambda given: Scratch(given.backbone),
}


def queue_length(run: Run, patients: int) -> int:
    """Crops of earlier steps to contrast with: as set, or as many as a batch of few patients needs.

    Raises:
        DataError: there is one patient.
    """
    chosen = run.pretraining
    if patients < 2:
        instead = "pretraining.contrast_weight to 0" if chosen.objective == "hybridmim" else "another objective"
        raise DataError(
            f"{run.unlabelled}: holds usable scans of one patient, and the contrast compares different patients",
            cure=f"Add scans of others, or set {instead}.",
        )
    if chosen.contrast_queue >= 0:
        return chosen.contrast_queue
    return QUEUE if min(chosen.batch, patients) < FEWEST_PATIENTS else 0


def box_size(grid: PatchGrid, settings: PretrainingSettings, stride: Sequence[int]) -> Triple:
    """The box to reconstruct: as set, or two thirds of the crop along each axis, in steps of the stride.

    Without a reconstruction (``partial_weight`` 0) what is set plays no part.

    Raises:
        SettingsError: the box is larger than the crop, no multiple of the network's stride, or a single step of it.
    """
    box = settings.box if settings.partial_weight else None
    if box is None:
        return _nearest_box([BOX_SHARE * c for c in grid.crop], grid.crop, stride)
    if any(b > c or b % s for b, c, s in zip(box, grid.crop, stride)) or box == list(stride):
        nearest = list(_nearest_box(box, grid.crop, stride))
        raise SettingsError(
            f"pretraining.box {box} does not fit crop {list(grid.crop)} and stride {list(stride)}",
            cure=f"Choose a box within the crop, each side a multiple of the stride, and not all of them the stride "
            f"itself; the nearest is {nearest}.",
        )
    d, h, w = box
    return (d, h, w)


def _nearest_box(wanted: Sequence[float], crop: Sequence[int], stride: Sequence[int]) -> Triple:
    nearest = [min(max(round(n / s), 1) * s, c) for n, c, s in zip(wanted, crop, stride)]
    if nearest == list(stride):
        # A single voxel at the bottleneck has no spread that an instance norm could divide by.
        nearest = [2 * n if 2 * n <= c else n for n, c in zip(nearest, crop)]
    d, h, w = nearest
    return (d, h, w)


def _check_patches(given: _Given) -> None:
    """See whether patches can be hidden from this network, and some are left to see."""
    _check_tokens(given.grid, given.run.network.architecture, token_size(given.run.network))
    _check_something_is_left(given.grid, ratio_of(given.run.pretraining))


def _check_something_is_left(grid: PatchGrid, ratio: Share) -> None:
    """See whether a ratio leaves patches of a crop to see."""
    patches, most = prod(grid.patches), max(ratio) if isinstance(ratio, list) else ratio
    if patches == 1:
        raise SettingsError(
            f"plan.crop {list(grid.crop)} is a single patch: with that hidden, nothing is left to see",
            cure="Choose a larger plan.crop, or a smaller plan.patch.",
        )
    # A ratio that is rounded up to all of a few patches leaves one all the same; see masking.
    if most == 1:
        raise SettingsError(
            f"pretraining.mask_ratio {ratio} hides all {patches} patches of a crop",
            cure=f"Choose {floor(1000 * (patches - 1) / patches) / 1000} at most.",
        )


def _check_tokens(grid: PatchGrid, architecture: str, token: int) -> None:
    """See whether a patch is made of whole tokens: part of one cannot be hidden."""
    if not any(side % token for side in grid.patch):
        return
    # Of those that the region is a multiple of; a token always is, as the region is one of the stride.
    fitting = [[n for n in range(token, side + 1, token) if side % n == 0] for side in grid.region]
    below = [max((n for n in sides if n <= p), default=sides[0]) for sides, p in zip(fitting, grid.patch)]
    above = [min((n for n in sides if n >= p), default=sides[-1]) for sides, p in zip(fitting, grid.patch)]
    nearest = f"{below}" if below == above else f"{below} or {above}"
    raise SettingsError(
        f"plan.patch {list(grid.patch)} is not a multiple of the {token} voxels along a token of {architecture}",
        cure=f"The nearest that fit plan.region {list(grid.region)}: {nearest}.",
    )
