"""Deep supervision: coarser stages of the decoder learn from heads of their own while the network is trained.

Lee et al., arXiv:1409.5185; with a weight that halves from each stage to the next coarser one as in nnU-Net (Isensee
et al., arXiv:1904.08128). The heads are linear layers, and no part of the finished model.
"""

from __future__ import annotations

from collections import deque

from torch import Tensor, nn

from HybridMIMLib.architectures import decoder_stages
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.networks.interface import EncoderDecoder, SegmentationNetwork
from HybridMIMLib.settings.network import NetworkSettings

ALL = -1
"""In settings: every coarser stage that there is."""


class DeeplySupervised(SegmentationNetwork):
    """A segmentation network some of whose coarser decoder stages have a head too.

    Whoever calls it, or takes the tensors under MONAI's names, sees the network without these heads.

    Args:
        backbone: with more stages in its decoder than ``levels``.
        outputs: channels of every head.
        levels: how many of the coarser stages, the finest of them first.
    """

    def __init__(self, backbone: EncoderDecoder, outputs: int, levels: int) -> None:
        super().__init__(backbone, outputs)
        widths = backbone.decoder_widths[1 : levels + 1]
        if not 0 < levels == len(widths):
            raise ValueError(f"{levels} coarser stages of a decoder of {len(backbone.decoder_widths)}")
        self.coarse_heads = nn.ModuleList(nn.Conv3d(width, outputs, 1) for width in widths)

    def heads(self) -> list[nn.Conv3d]:
        """See :meth:`SegmentationNetwork.heads`."""
        return [self.head, *(head for head in self.coarse_heads if isinstance(head, nn.Conv3d))]

    def scores_by_stage(self, x: Tensor) -> list[Tensor]:
        """Scores (B, outputs, d, h, w) of each stage that has a head, finest first, of a scan (B, C, D, H, W)."""
        heads = self.heads()
        stages = deque(self.backbone.decode_stages(self.backbone.encode(x)), maxlen=len(heads))
        return [head(features) for head, features in zip(heads, reversed(stages), strict=True)]


def stage_weights(levels: int) -> tuple[float, ...]:
    """Weights of the losses of the last stage and so many coarser ones: each half the one before, 1 together."""
    halves = [0.5**level for level in range(levels + 1)]
    return tuple(half / sum(halves) for half in halves)


def supervised_levels(asked: int, settings: NetworkSettings) -> int:
    """How many coarser stages have a head, where ``asked`` were wanted, :data:`ALL` for every one.

    Raises:
        SettingsError: the network has not so many, or none at all.
    """
    there = decoder_stages(settings) - 1
    if asked and not there:
        raise SettingsError(
            f"finetuning.deep_supervision is {asked}, and the decoder of this {settings.architecture} has one stage "
            "alone, the last",
            cure="Set it to 0, or use a network with coarser stages: unet or resunet of three or more "
            "network.features, swinunetr, unetr, segresnet.",
        )
    if asked > there:
        raise SettingsError(
            f"finetuning.deep_supervision is {asked}, and the decoder of this {settings.architecture} has {there} "
            "coarser stage(s)",
            cure=f"Give a number from 0 (none) to {there}, or {ALL} for all of them.",
        )
    return there if asked == ALL else asked
