"""No step makes the host wait for the device, nor walks over samples or regions in Python.

Fake tensors have a shape and no numbers: whatever wants a number of one raises, be it ``.item()``, ``.tolist()``, an
``if``, an index that is a mask, or a slice whose place was drawn. So no GPU is needed to see that a step never looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_objectives import SIZES, Triple, small_objective
from torch import Tensor
from torch._subclasses import DynamicOutputShapeException, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from HybridMIMLib.networks import UNet
from HybridMIMLib.pretraining.contrast import NegativeQueue, nt_xent
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.hybridmim import HybridMIM
from HybridMIMLib.pretraining.masking import PatchGrid
from HybridMIMLib.pretraining.objective import Objective
from HybridMIMLib.settings.pretraining import PretrainingSettings

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hybridmim": ("unet", "hybridmim", {}),
    "hybridmim, residual": ("resunet", "hybridmim", {}),
    "hybridmim, whole encoder twice": ("unet", "hybridmim", {"contrast_stage": 0}),
    "hybridmim, queue": ("unet", "hybridmim", {"contrast_queue": 6}),
    "hybridmim, box towards content": ("unet", "hybridmim", {"box_placement": "content"}),
    "hybridmim, ranges": ("unet", "hybridmim", {"mask_ratio": [0.2, 0.6], "region_ratio": [0.3, 0.9]}),
    "hybridmim, normalised": ("unet", "hybridmim", {"target": "normalised", "reconstruction": "l1"}),
    "hybridmim, no decoder": ("unet", "hybridmim", {"partial_weight": 0.0}),
    "hybridmim, swin": ("swinunetr", "hybridmim", {}),
    "hybridmim, vit": ("unetr", "hybridmim", {"contrast_stage": 1}),
    "simmim": ("unet", "simmim", {}),
    "simmim, swin": ("swinunetr", "simmim", {"target": "normalised"}),
    "simmim, blocks": ("unetr", "simmim", {"head_depth": 1, "mask_ratio": [0.3, 0.8]}),
    "mae": ("unetr", "mae", {"head_depth": 1}),
    "mae, range": ("unetr", "mae", {"head_depth": 1, "mask_ratio": [0.3, 0.8]}),
}
"""Architecture, objective and settings. The views of SimCLR are data: they are drawn on the host, see its tests."""


def some_crops(crop: Triple, samples: int = 4) -> Crops:
    """Crops whose sizes, like everything else, are known to the device alone."""
    sizes = torch.tensor(crop).repeat(samples, 1) - torch.arange(samples)[:, None] % 3
    return Crops(torch.rand(samples, 1, *crop), sizes, torch.arange(samples), torch.arange(samples))


def step(model: Callable[[Crops], dict[str, Tensor]], crops: Crops) -> None:
    """Draw, compute and go back."""
    torch.stack(list(model(crops).values())).sum().backward()


def on_a_fake_device(model: Objective, crop: Triple) -> None:
    """Two steps, the second with what the first left in a queue."""
    with FakeTensorMode() as fake:
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                held.update({name: fake.from_tensor(x) for name, x in held.items() if x is not None})
        crops = some_crops(crop)
        step(model, crops)
        step(model, crops)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_never_looks_at_the_device(variant: str) -> None:
    architecture, objective, chosen = VARIANTS[variant]
    on_a_fake_device(small_objective(architecture, objective, **chosen), SIZES[architecture][0])


LOOKS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda mask: mask.sum().item(),
    "list": lambda mask: mask.tolist(),
    "if": lambda mask: 1 if mask.any() else 0,
    "index": lambda mask: mask.float()[mask],
    "places": lambda mask: mask.nonzero(),
    "slice": lambda mask: mask[0, : mask[0].sum()],
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_step_that_looks_is_found(look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to look at what was drawn makes the check above fail."""
    masked = HybridMIM.mask

    def looking(self: HybridMIM, crops: Crops) -> Any:
        drawn = masked(self, crops)
        LOOKS[look](drawn.mask)
        return drawn

    monkeypatch.setattr(HybridMIM, "mask", looking)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        on_a_fake_device(small_objective("unet", "hybridmim"), SIZES["unet"][0])


class Operations(TorchDispatchMode):
    """Counts what is sent to the device, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(samples: int, crop: Triple, region: Triple = (8, 8, 8)) -> int:
    """How many operations a step of HybridMIM takes, with all there is."""
    settings = PretrainingSettings(box_placement="content", target="normalised", projection=8, contrast_stage=1)
    backbone = UNet(1, [4, 6, 8], [[1, 1, 1], [2, 2, 2], [2, 2, 2]])
    model = HybridMIM(backbone, PatchGrid(crop, (4, 4, 4), region), (8, 8, 8), 1, settings, queue=3)
    crops = some_crops(crop, samples)
    with Operations() as counted:
        step(model, crops)
    return counted.count


def test_more_samples_regions_or_patches_take_no_more_operations() -> None:
    few = operations(2, (16, 8, 16))
    assert few > 100
    assert operations(7, (16, 8, 16)) == few, "samples are walked over"
    assert operations(2, (32, 16, 16)) == few, "regions are walked over"
    assert operations(2, (16, 16, 16), (16, 8, 8)) == few, "patches of a region are walked over"


def test_operations_of_a_loop_are_counted() -> None:
    """The count above does grow with a loop."""
    counts = []
    for samples in (2, 3):
        x = torch.rand(samples, 4)
        with Operations() as counted:
            sum(row.sum() for row in x)
        counts.append(counted.count)
    assert counts[1] > counts[0]


def test_the_contrast_never_looks_at_the_device() -> None:
    with FakeTensorMode():
        queue, one = NegativeQueue(3, 5), torch.rand(4, 5, requires_grad=True)
        for _ in range(2):
            loss = nt_xent(one, torch.rand(4, 5), 0.5, torch.arange(4), queue)
            queue.push(one, torch.arange(4))
            loss.backward()
