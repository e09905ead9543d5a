"""An ensemble is the mean of the scores of its members, whatever computes it."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from HybridMIMLib.architectures import settled
from HybridMIMLib.inference.engines import TorchEngine
from HybridMIMLib.inference.openvino_engine import OpenVINOEngine
from HybridMIMLib.inference.torch_engine import in_eval_mode
from HybridMIMLib.networks import SegmentationNetwork, make_segmentation_network
from HybridMIMLib.networks.ensemble import Ensemble, members_of
from HybridMIMLib.settings.network import NetworkSettings

CROP = (16, 16, 16)
CPU = torch.device("cpu")


def member(seed: int, architecture: str = "unet") -> SegmentationNetwork:
    chosen = NetworkSettings(architecture=architecture, features=[4, 8] if architecture == "unet" else None)  # type: ignore[arg-type]
    return make_segmentation_network(settled(chosen, (1.0, 1.0, 1.0)), 1, 2, CROP, seed).eval()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_it_is_the_mean_of_the_scores(count: int) -> None:
    members = [member(seed) for seed in range(count)]
    x = torch.randn(2, 1, *CROP)
    with torch.no_grad():
        expected = torch.stack([one(x) for one in members]).mean(dim=0)
        assert (members[0](x) - expected).abs().max() > 0.01, "the members differ"
        torch.testing.assert_close(Ensemble(members)(x), expected)


def test_members_are_the_networks_themselves() -> None:
    members = (member(0), member(1))
    found = members_of(Ensemble(members))
    assert len(found) == 2 and all(one is other for one, other in zip(found, members))
    assert members_of(members[0]) == (members[0],)
    with pytest.raises(ValueError, match="an ensemble of 1"):
        Ensemble(members[:1])


def test_dropout_of_every_member_is_off_while_an_engine_computes() -> None:
    ensemble = Ensemble([member(0), member(1)]).train()
    with in_eval_mode(ensemble):
        assert not any(module.training for module in ensemble.modules())
    x = torch.randn(1, 1, *CROP)
    engine = TorchEngine(ensemble, CPU)
    torch.testing.assert_close(engine(x), engine(x), rtol=0, atol=0)
    assert ensemble.members[1].training, "and it is given back as it was"


def test_a_sum_that_half_precision_cannot_hold_is_no_trouble() -> None:
    """Each member is within 65504, and two of them together are not."""

    class Large(SegmentationNetwork):
        def __init__(self) -> None:
            nn.Module.__init__(self)

        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, 60000, dtype=torch.float16)

    found = Ensemble([Large(), Large()])(torch.zeros(1, 1, 2, 2, 2))
    assert found.dtype == torch.float32 and bool((found == 60000).all())


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
@pytest.mark.parametrize("architecture", ["unet", "segresnet"])
def test_openvino_computes_it_like_any_other(architecture: str) -> None:
    ensemble = Ensemble([member(seed, architecture) for seed in range(3)]).eval()
    x = torch.randn(2, 1, *CROP)
    torch.testing.assert_close(
        OpenVINOEngine(ensemble, 1, CROP)(x), TorchEngine(ensemble, CPU)(x), atol=1e-4, rtol=1e-4
    )
