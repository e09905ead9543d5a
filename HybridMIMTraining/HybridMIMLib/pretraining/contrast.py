"""Contrast between patients: two views of one crop are alike, crops of other patients are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from HybridMIMLib.data.patches import inside_mask
from HybridMIMLib.distributed import alone, gathered, place

Triple = tuple[int, int, int]

FEWEST_PATIENTS, QUEUE = 4, 64
"""A batch of fewer patients is compared with the last crops of earlier steps too."""
NOBODY = -1
"""Patient number of a place in the queue that holds nothing yet."""


def pooled(level: Tensor, sizes: Tensor, stride: Triple) -> Tensor:
    """Mean over the voxels of a level of the pyramid, each weighted by how much of it is scan and not padding.

    Args:
        level: (B, C, d, h, w).
        sizes: (B, 3) voxels of the crop that hold scan.
        stride: voxels of the crop between voxels of the level.

    Returns:
        (B, C).
    """
    d, h, w = (n * s for n, s in zip(level.shape[2:], stride))
    return pooled_inside(level, inside_mask(sizes, (d, h, w)), stride)


def pooled_inside(level: Tensor, inside: Tensor, stride: Triple) -> Tensor:
    """The same, (B, C), for crops whose scan lies anywhere: ``inside`` (B, D, H, W) is True where there is scan."""
    weight = F.avg_pool3d(inside[:, None].to(level.dtype), stride)
    total = reduce(weight, "b c d h w -> b c", "sum").clamp(min=1e-6)
    return reduce(level * weight, "b c d h w -> b c", "sum") / total


class NegativeQueue(nn.Module):
    """The last projections of earlier steps, with the patients they belong to (as in MoCo, arXiv:1911.05722).

    Kept with the weights in a checkpoint, so that a run that goes on sees the same negatives.

    Attributes:
        views: (K, F) normalised projections.
        patients: (K) int64, or :data:`NOBODY`.
    """

    views: Tensor
    patients: Tensor
    _next: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("views", torch.zeros(length, width))
        self.register_buffer("patients", torch.full((length,), NOBODY))
        self.register_buffer("_next", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, views: Tensor, patients: Tensor) -> None:
        """Put projections (B, F) of patients (B), those of every process, in place of the oldest."""
        views, patients = gathered(F.normalize(views, dim=1)), gathered(patients)
        length = len(self.patients)
        views, patients = views[-length:], patients[-length:]
        places = (self._next + torch.arange(len(views), device=views.device)) % length
        self.views.index_copy_(0, places, views.to(self.views.dtype))
        self.patients.index_copy_(0, places, patients)
        self._next.copy_((self._next + len(views)) % length)


def nt_xent(
    one: Tensor, other: Tensor, temperature: float, patients: Tensor, queue: NegativeQueue | None = None
) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, arXiv:2002.05709, equation 1).

    In a run of several processes the views of all are compared; the mean over the processes of their losses is the
    loss of the whole batch in one process, and so is the gradient.

    Args:
        one, other: (B, F) two views of the same B samples; row i of one belongs to row i of the other.
        temperature: divides the cosine similarities.
        patients: (B) a number for each sample; crops of the same patient are no negatives of each other.
        queue: further negatives.
    """
    similarity, partner = _similarities(one, other, patients, queue)
    return F.cross_entropy(similarity / temperature, partner)


@torch.no_grad()
def partner_found(one: Tensor, other: Tensor, patients: Tensor) -> tuple[Tensor, Tensor]:
    """Share of views whose partner is the most similar one, and the share that guessing would find.

    Among the crops of this process alone: whoever measures need not wait for others to do the same.
    """
    with alone():
        similarity, partner = _similarities(one, other, patients, None)
    chance = 1 / (similarity > -torch.inf).sum(dim=1)
    return (similarity.argmax(dim=1) == partner).float().mean(), chance.mean()


def _similarities(one: Tensor, other: Tensor, patients: Tensor, queue: NegativeQueue | None) -> tuple[Tensor, Tensor]:
    """Cosine similarity of the 2 B own views to every candidate, and which column holds each one's partner."""
    own = F.normalize(torch.cat([one, other]), dim=1)
    views = F.normalize(torch.cat([gathered(one), gathered(other)]), dim=1)
    owners = gathered(patients).repeat(2)
    count = len(views) // 2
    first = place() * len(one) + torch.arange(len(one), device=one.device)
    partner = torch.cat([first + count, first])
    if queue is not None:
        views = torch.cat([views, queue.views.to(views.dtype)])
        owners = torch.cat([owners, queue.patients])
    left_out = (patients.repeat(2)[:, None] == owners[None, :]) | (owners == NOBODY)[None, :]
    left_out = left_out.scatter(1, partner[:, None], False)
    return (own @ views.T).masked_fill(left_out, -torch.inf), partner
