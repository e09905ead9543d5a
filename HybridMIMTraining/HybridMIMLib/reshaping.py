"""Tensors of one network brought to the shape that another has for them, where there is a way to do so.

============================  =========================================================================
channels of the scan          what each filter adds up over all channels is shared out evenly, so that the
                              answer to a scan stays the same when every new channel shows it
side of a ViT's tokens        the kernel is resampled trilinearly; its sum, the answer to an even grey, stays
grid of a ViT's tokens        the position embeddings are resampled trilinearly, so that the first and the
                              last token keep theirs
window of Swin's attention    the table of biases is resampled trilinearly over its relative positions: the
                              middle (no distance) and the ends stay, as in arXiv:2103.14030 in two dimensions
============================  =========================================================================

Integers, such as the index into Swin's table, follow from the network and are not learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch.nn.functional as F
from torch import Tensor

Triple = tuple[int, int, int]

SEE_SCAN = (
    "input_block.conv1.conv.weight",
    "input_block.conv3.conv.weight",
    "convInit.conv.weight",
    "swinViT.patch_embed.proj.weight",
    "vit.patch_embedding.patch_embeddings.weight",
    "encoder1.layer.conv1.conv.weight",
    "encoder1.layer.conv3.conv.weight",
)
"""Tensors whose second axis is the scan's channels, of all networks."""
TOKENS = "vit.patch_embedding.patch_embeddings.weight"
POSITIONS = "vit.patch_embedding.position_embeddings"
_BIASES = ".relative_position_bias_table"


@dataclass(frozen=True)
class Grids:
    """How many tokens of a ViT lie along each axis, in the given weights and in the network; None: not known."""

    given: Triple | None = None
    own: Triple | None = None


def fitted(name: str, given: Tensor, own: Tensor, grids: Grids) -> tuple[Tensor, str] | None:
    """A tensor in the shape that the network has for it, and in words what was done; None: there is no way.

    Args:
        name: in the network.
        given: as it was trained.
        own: of the network.
        grids: of a ViT's tokens.
    """
    if not own.is_floating_point():
        return (given if given.shape == own.shape else own), ""
    if name == POSITIONS:
        return _with_positions(given, own, grids)
    if given.shape == own.shape:
        return given, ""
    if name.endswith(_BIASES):
        return _with_window(given, own)
    return _with_kernel(given, own, name == TOKENS) if name in SEE_SCAN else None


def cube_side(count: int) -> int | None:
    """The side of a cube of so many places, or None."""
    side = round(count ** (1 / 3))
    return side if side**3 == count else None


def _with_kernel(given: Tensor, own: Tensor, is_token: bool) -> tuple[Tensor, str] | None:
    """(out, channels, kernel) with other channels, and for a ViT with another kernel."""
    same_kernel = given.shape[2:] == own.shape[2:]
    if given.ndim != own.ndim or given.shape[0] != own.shape[0] or not (same_kernel or is_token):
        return None
    result, how = given, []
    if (before := given.shape[1]) != (after := own.shape[1]):
        result = result.sum(dim=1, keepdim=True).expand(-1, after, *given.shape[2:]) / after
        how.append(f"channels {before} to {after}")
    if not same_kernel:
        share = prod(given.shape[2:]) / prod(own.shape[2:])
        result = F.interpolate(result.float(), size=own.shape[2:], mode="trilinear") * share
        how.append(f"token side {given.shape[2]} to {own.shape[2]}")
    return result, " and ".join(how)


def _with_positions(given: Tensor, own: Tensor, grids: Grids) -> tuple[Tensor, str] | None:
    """(1, tokens, width) for another grid of tokens, which may have as many of them in another order."""
    if grids.given is None or grids.own is None or given.ndim != 3 or given.shape[2] != own.shape[2]:
        return None
    if given.shape[1] != prod(grids.given) or own.shape[1] != prod(grids.own):
        return None
    if grids.given == grids.own:
        return given, ""
    as_grid = given.transpose(1, 2).reshape(1, given.shape[2], *grids.given)
    result = _resampled(as_grid, grids.own).flatten(2).transpose(1, 2)
    return result, f"token grid {_in_words(grids.given)} to {_in_words(grids.own)}"


def _with_window(given: Tensor, own: Tensor) -> tuple[Tensor, str] | None:
    """(relative positions, heads) for another window; a window of w tokens has 2 w - 1 of them along each axis."""
    if given.ndim != 2 or given.shape[1] != own.shape[1]:
        return None
    before, after = cube_side(len(given)), cube_side(len(own))
    if before is None or after is None:
        return None
    table = given.T.reshape(1, -1, before, before, before)
    result = _resampled(table, (after, after, after)).flatten(2)[0].T
    return result, f"window {(before + 1) // 2} to {(after + 1) // 2}"


def _resampled(grid: Tensor, size: Triple) -> Tensor:
    """(1, C, D, H, W) at ``size``; the corners keep their values."""
    return F.interpolate(grid.float(), size=size, mode="trilinear", align_corners=True)


def _in_words(size: Triple) -> str:
    return "×".join(map(str, size))
