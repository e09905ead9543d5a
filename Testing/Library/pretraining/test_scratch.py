"""No pre-training leaves the weights with which fine-tuning from scratch begins."""

from __future__ import annotations

import torch
from small_objectives import SIZES, draw_crops, plan, settings, small_objective

from HybridMIMLib.networks import make_segmentation_network
from HybridMIMLib.pretraining.scratch import Scratch


def test_there_is_nothing_to_learn() -> None:
    objective, crops = small_objective("unet", "none"), draw_crops(SIZES["unet"][0])
    assert isinstance(objective, Scratch) and not objective.trains_decoder
    assert objective(crops) == {} and objective.measures(crops) == {} and objective.preview(crops) is None
    assert not any(parameter.requires_grad for parameter in objective.parameters())


def test_the_weights_are_those_of_a_run_from_scratch() -> None:
    """Of the same seed, encoder and decoder."""
    found = small_objective("unet", "none").backbone.state_dict()
    run, sizes = settings("unet", "none"), plan("unet")
    fresh = make_segmentation_network(run.network, sizes.channels, 2, sizes.crop, run.seed).backbone.state_dict()
    assert found.keys() == fresh.keys() and all(torch.equal(found[name], fresh[name]) for name in fresh)
