"""Heads: where each predicted voxel goes, what each depends on, and that any depth and width can be trained."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch

from HybridMIMLib.pretraining.heads import Blocks, VoxelHead, to_scan

CELLS, SIDE = (2, 3, 1), (4, 2, 1)


def head(depth: int, width: int = 32) -> VoxelHead:
    torch.manual_seed(0)
    return VoxelHead(5, CELLS, SIDE, 2, depth, width)


def test_to_scan_puts_each_voxel_where_its_token_lies() -> None:
    values = torch.rand(2, prod(CELLS), 2 * prod(SIDE))
    scan = to_scan(values, CELLS, SIDE)
    assert scan.shape == (2, 2, 8, 6, 1)
    for b, c, d, h, w in np.ndindex(*scan.shape):
        token = ((d // 4) * 3 + h // 2) * 1 + w
        voxel = (c * 4 + d % 4) * 2 + h % 2
        assert scan[b, c, d, h, w] == values[b, token, voxel]


def test_depth_0_is_one_linear_layer_of_each_cell() -> None:
    linear, level = head(0), torch.rand(2, 5, *CELLS)
    assert [tuple(p.shape) for p in linear.parameters()] == [(2 * prod(SIDE), 5), (2 * prod(SIDE),)]
    weight, bias = linear.parameters()
    scan = linear(level)
    for b, d, h in np.ndindex(2, 2, 3):
        wanted = (weight @ level[b, :, d, h, 0] + bias).reshape(2, 4, 2)
        found = scan[b, :, 4 * d : 4 * d + 4, 2 * h : 2 * h + 2, 0]
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("depth", range(9))
@pytest.mark.parametrize("width", [32, 96])
def test_every_depth_and_width_can_be_trained(depth: int, width: int) -> None:
    model = head(depth, width)
    level = torch.rand(2, 5, *CELLS)
    scan = model(level)
    assert scan.shape == (2, 2, 8, 6, 1)
    scan.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    blocks = [m for m in model.modules() if isinstance(m, Blocks)]
    assert sum(len(found.blocks) for found in blocks) == depth
    assert all(found.positions.shape == (prod(CELLS), width) for found in blocks)


def test_with_blocks_a_cell_depends_on_all_others_and_on_where_it_is() -> None:
    model, level = head(2).eval(), torch.rand(1, 5, *CELLS)
    other = level.clone()
    other[..., 0, 0, 0] += 1
    assert not torch.isclose(model(level)[..., 4:, 4:, :], model(other)[..., 4:, 4:, :]).any()
    alike = model(torch.ones(1, 5, *CELLS))
    assert not torch.isclose(alike[..., :4, :, :], alike[..., 4:, :, :]).all()
