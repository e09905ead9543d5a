"""Whether settings of different sections go together, as far as that can be told before any scan is read.

No torch here: panels ask these questions while somebody types, and a training asks them first of all.
"""

from __future__ import annotations

from HybridMIMLib.architectures import U_NETS, check_sizes, settled
from HybridMIMLib.config import Run
from HybridMIMLib.errors import SettingsError


def check_agreement(run: Run, pretrains: bool = True) -> None:
    """See whether anything in the settings would end a training whatever its scans are.

    Args:
        run: the settings.
        pretrains: whether there are scans to pre-train on; without, what is wrong with that matters to nobody.

    Raises:
        SettingsError: something would.
    """
    if pretrains:
        check_settings(run)
    plan, network = run.plan, run.network
    if plan.crop is None or plan.patch is None or plan.region is None:
        # What is left open is made to fit the rest.
        return
    if network.architecture in U_NETS and plan.spacing is None and network.strides is None:
        # How often an axis is halved follows from the spacing, and that from the scans.
        return
    check_sizes(settled(network, plan.spacing or (1.0, 1.0, 1.0)), plan.crop, plan.patch, plan.region)


def check_folders(run: Run) -> None:
    """See whether there is something to train on, and one thing alone to start from.

    Raises:
        SettingsError: there is not.
    """
    if not (run.unlabelled or run.labelled):
        raise SettingsError("there is nothing to train on", cure="Add --unlabelled DIR, --labelled DIR, or both.")
    if run.unlabelled and run.weights:
        raise SettingsError(
            "--unlabelled and --weights are both given, and the fine-tuning can start from one pre-training only",
            cure="Leave out --weights to pre-train first, or --unlabelled to start from these weights.",
        )


def check_settings(run: Run) -> None:
    """See whether the settings contradict each other, whatever the scans.

    Raises:
        SettingsError: they do.
    """
    chosen, network = run.pretraining, run.network
    contrasts = chosen.objective == "simclr" or (chosen.objective == "hybridmim" and chosen.contrast_weight > 0)
    if chosen.objective == "hybridmim" and contrasts and network.dropout == 0:
        raise SettingsError(
            "network.dropout is 0, and the contrast compares two passes that differ by dropout",
            cure="Set network.dropout above 0 (0.1 is usual), or pretraining.contrast_weight to 0.",
        )
    if contrasts and chosen.contrast_queue == 0 and chosen.batch == 1:
        raise SettingsError(
            "pretraining.batch is 1 and pretraining.contrast_queue is 0: there is nothing to contrast with",
            cure="Set pretraining.batch to 4, or pretraining.contrast_queue to -1.",
        )
    if chosen.objective != "mae":
        return
    if network.architecture != "unetr":
        raise SettingsError(
            f"pretraining.objective is mae, whose encoder computes some tokens of a ViT, and network.architecture is "
            f"{network.architecture}",
            cure="Set network.architecture to unetr, or pretraining.objective to simmim.",
        )
    if chosen.head_depth == 0:
        raise SettingsError(
            "pretraining.head_depth is 0, and without a block mae cannot tell hidden tokens of the visible ones",
            cure="Set pretraining.head_depth from 1 to 8 (4 is usual), or pretraining.objective to simmim.",
        )
