"""Speed of the objectives, each as a ratio of two peers that take turns in one run; each line is a row of README.md.

Rows are chosen by name; without names all are measured that fit into ``--minutes``, the quick ones first. A step is
forward, backward and optimizer. The stated figures are those of the published sizes, which are the default: a step of
the base U-Net takes half a minute on two cores. ``--size`` and ``--crop`` take smaller ones, to see that it runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from rows import Result, print_table
from torch import nn

from HybridMIMLib.architectures import settled, total_stride
from HybridMIMLib.networks import make_backbone
from HybridMIMLib.pretraining.crops import Crops, blank_crops
from HybridMIMLib.pretraining.hybridmim import HybridMIM
from HybridMIMLib.pretraining.mae import MAE
from HybridMIMLib.pretraining.masking import PatchGrid, by_region, draw_box, draw_mask, whole_patches
from HybridMIMLib.pretraining.objective import Objective
from HybridMIMLib.pretraining.simmim import SimMIM
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings

Triple = tuple[int, int, int]
NO_OTHERS = PretrainingSettings(
    number_weight=0.0, location_weight=0.0, consistency_weight=0.0, contrast_weight=0.0, contrast_queue=0
)
"""Reconstruction alone."""


@dataclass(frozen=True)
class Sizes:
    """What is measured: the published sizes, or smaller ones to see that it runs.

    Attributes:
        size: of the networks.
        crop: voxels along a side.
        patch, region: voxels along a side.
        batch: crops a step of the ViTs; the others have ``large_batch``.
        large_batch: crops a step of the U-Net and SwinUNETR.
        repetitions: pairs of steps, of which medians are taken.
        limit: seconds of the monotonic clock at which no further pair begins.
    """

    size: str
    crop: int
    patch: int
    region: int
    batch: int
    large_batch: int
    repetitions: int
    limit: float

    @property
    def grid(self) -> PatchGrid:
        """Crop, patch and region."""
        return PatchGrid((self.crop,) * 3, (self.patch,) * 3, (self.region,) * 3)

    def box(self, stride: int) -> Triple:
        """Two thirds of the crop, of more than one voxel of the bottleneck."""
        side = min(max(round(self.crop * 2 / 3 / stride), 2) * stride, self.crop)
        return (side,) * 3

    def crops(self, count: int) -> Crops:
        """Crops of noise, each of another patient."""
        return replace(blank_crops(count, 1, self.grid.crop), image=torch.rand(count, 1, *self.grid.crop))


# --- objectives and steps ---


def hybridmim(sizes: Sizes, architecture: str, chosen: PretrainingSettings, whole: bool = False) -> HybridMIM:
    """HybridMIM that reconstructs a box, or the whole crop."""
    settings = settled(NetworkSettings(architecture=architecture, size=sizes.size), (1, 1, 1))
    backbone = make_backbone(settings, 1, sizes.grid.crop)
    box = sizes.grid.crop if whole else sizes.box(total_stride(settings)[0])
    return HybridMIM(backbone, sizes.grid, box, 1, chosen)


def on_vit(sizes: Sizes, make: type[MAE] | type[SimMIM], chosen: PretrainingSettings) -> Objective:
    """MAE or SimMIM on a ViT."""
    settings = NetworkSettings(architecture="unetr", size=sizes.size)
    backbone = make_backbone(settings, 1, sizes.grid.crop)
    return make(backbone, sizes.grid, 1, chosen)


def stepper(objective: nn.Module, crops: Crops) -> Callable[[], None]:
    """A training step: forward, backward, optimizer."""
    trained = [parameter for parameter in objective.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)

    def step() -> None:
        losses = objective(crops)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def taking_turns(peers: dict[str, Callable[[], None]], sizes: Sizes) -> dict[str, float]:
    """Median seconds of each peer; the first round, in which libraries choose how to compute, does not count."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for repetition in range(sizes.repetitions + 1):
        if repetition > 1 and time.monotonic() > sizes.limit:
            print(f"time is up after {repetition - 1} of {sizes.repetitions} rounds", file=sys.stderr)
            break
        for name, work in peers.items():
            began = time.perf_counter()
            work()
            if repetition:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


# --- the rows ---


def partial(sizes: Sizes, architecture: str, name: str, target: float) -> list[Result]:
    """Partial against full reconstruction, same network, same crop."""
    crops = sizes.crops(sizes.large_batch)
    peers = {
        kind: stepper(hybridmim(sizes, architecture, NO_OTHERS, whole), crops)
        for kind, whole in (("full", True), ("partial", False))
    }
    found = taking_turns(peers, sizes)
    what = f"{name} {sizes.size}, {sizes.crop}³: step with a full reconstruction against one of a box"
    told = f"{found['full'] / found['partial']:.2f}× ({found['full']:.2f} s, {found['partial']:.2f} s)"
    return [Result(what, f"≥ {target}×", told)]


def partial_unet(sizes: Sizes) -> list[Result]:
    """See :func:`partial`."""
    return partial(sizes, "unet", "U-Net", 1.5)


def partial_swin(sizes: Sizes) -> list[Result]:
    """See :func:`partial`."""
    return partial(sizes, "swinunetr", "SwinUNETR", 2.2)


def flops(sizes: Sizes) -> list[Result]:
    """The same in floating-point operations, counted without computing."""
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    rows = []
    for architecture, name in (("unet", "U-Net"), ("swinunetr", "SwinUNETR")):
        counts = []
        for whole in (True, False):
            objective = hybridmim(sizes, architecture, NO_OTHERS, whole)
            with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
                torch.stack(list(objective(sizes.crops(1)).values())).sum().backward()
            counts.append(counter.get_total_flops() / 1e9)
        what = f"{name} {sizes.size}, {sizes.crop}³: GFLOP a step and crop, full reconstruction and a box"
        rows.append(Result(what, "", f"{counts[0]:.0f} and {counts[1]:.0f} ({counts[0] / counts[1]:.2f}×)"))
    return rows


def mae(sizes: Sizes) -> list[Result]:
    """MAE at 0.75 with a light and the published decoder, against SimMIM with one linear layer."""
    crops, chosen = sizes.crops(sizes.batch), PretrainingSettings(mask_ratio=0.75)
    decoders = {"4 × 192": (4, 192, 2.5), "8 × 512": (8, 512, 1.5)}
    peers = {"SimMIM": stepper(on_vit(sizes, SimMIM, replace(chosen, head_depth=0)), crops)}
    for name, (depth, width, _) in decoders.items():
        made = on_vit(sizes, MAE, replace(chosen, head_depth=depth, head_width=width))
        peers[name] = stepper(made, crops)
    found = taking_turns(peers, sizes)
    tokens = (sizes.crop // 16) ** 3
    return [
        Result(
            f"ViT {sizes.size}, {tokens} tokens: step of SimMIM against MAE at 0.75 with a decoder of {name}",
            f"≥ {target}×",
            f"{found['SimMIM'] / found[name]:.2f}× ({found['SimMIM']:.2f} s, {found[name]:.2f} s)",
        )
        for name, (_, _, target) in decoders.items()
    ]


def losses(sizes: Sizes) -> list[Result]:
    """What region and sample losses add to the U-Net's step."""
    crops, every = sizes.crops(sizes.large_batch), PretrainingSettings(contrast_queue=0)
    stages = {3: "≤ 25 %", 0: "beside it"}
    peers = {"partial": stepper(hybridmim(sizes, "unet", NO_OTHERS), crops)}
    for stage in stages:
        peers[f"{stage}"] = stepper(hybridmim(sizes, "unet", replace(every, contrast_stage=stage)), crops)
    found = taking_turns(peers, sizes)
    return [
        Result(
            f"U-Net {sizes.size}, {sizes.crop}³: share of region and sample losses in a step, dropout from stage "
            f"{stage} on",
            target,
            f"{100 * (1 - found['partial'] / found[f'{stage}']):.1f} % ({found['partial']:.2f} s without, "
            f"{found[f'{stage}']:.2f} s with them)",
        )
        for stage, target in stages.items()
    ]


def draws(sizes: Sizes) -> list[Result]:
    """What is drawn for a batch: masks, their region labels, boxes."""
    grid, crops, box = sizes.grid, sizes.crops(4), sizes.box(8)
    whole = whole_patches(crops.sizes, grid)
    mask = draw_mask(crops.keys, grid, whole, 0.4, 0.75)
    works: dict[str, Callable[[], Any]] = {
        "masks": lambda: draw_mask(crops.keys, grid, whole, 0.4, 0.75),
        "region labels": lambda: by_region(mask, grid),
        "boxes": lambda: draw_box(crops.keys, grid, whole, box, (8, 8, 8)),
    }
    found = taking_turns(works, replace(sizes, repetitions=50))
    told = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in found.items())
    return [Result(f"drawn for 4 crops of {sizes.crop}³", "", told)]


ROWS: dict[str, Callable[[Sizes], list[Result]]] = {
    "draws": draws,
    "flops": flops,
    "mae": mae,
    "partial-unet": partial_unet,
    "losses": losses,
    "partial-swin": partial_swin,
}
"""The quick ones first."""


def main() -> None:
    """Measure the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"which of {', '.join(ROWS)}; default: all")
    parser.add_argument("--size", default="base", choices=["tiny", "small", "base"], help="of the networks")
    parser.add_argument("--crop", type=int, default=96, help="voxels along a side, a multiple of 32 and of --region")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--region", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4, help="crops a step of the ViTs")
    parser.add_argument("--large-batch", type=int, default=1, help="crops a step of the U-Net and SwinUNETR")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no further row or round begins")
    chosen = vars(parser.parse_args())
    names = chosen.pop("rows") or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"there is no row {unknown[0]!r}; rows are {', '.join(ROWS)}")
    sizes = Sizes(limit=time.monotonic() + 60 * chosen.pop("minutes"), **chosen)
    torch.manual_seed(0)
    print_table(names, ROWS, sizes, sizes.limit)


if __name__ == "__main__":
    main()
