"""Several trained networks that answer as one, such as those of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from HybridMIMLib.networks.interface import SegmentationNetwork


class Ensemble(nn.Module):
    """The mean of the scores of its members, for each window.

    Scores are averaged, before softmax or sigmoid, and not probabilities: a member counts more where it is surer, and
    because a mean is linear it does not matter whether it comes before or after windows are blended, flips are turned
    back and scores are interpolated, which are linear too. So whatever computes one network computes an ensemble, and
    plain MONAI, which blends the windows of each member first, gives the same. The members must be of one kind: one
    whose scores are ten times as large as those of the others would decide alone.

    Args:
        members: (B, C, D, H, W) → scores (B, outputs, D, H, W), two or more, with the same outputs.
    """

    def __init__(self, members: Sequence[SegmentationNetwork]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"an ensemble of {len(members)}")
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, outputs, D, H, W) of scans (B, C, D, H, W)."""
        # One after the other, and added in single precision: sums in half precision could go beyond its end.
        scores: Tensor = self.members[0](x).float()
        for member in self.members[1:]:
            scores = scores + member(x).float()
        return scores / len(self.members)


def members_of(network: SegmentationNetwork | Ensemble) -> tuple[SegmentationNetwork, ...]:
    """The networks of an ensemble, or the one that it is."""
    if isinstance(network, SegmentationNetwork):
        return (network,)
    return tuple(one for one in network.members if isinstance(one, SegmentationNetwork))
