"""UNETR: its levels against MONAI's hidden states, tokens on their own, hidden ones, and tokens of 8 voxels."""

from __future__ import annotations

from math import prod

import pytest
import torch
import torch.nn.functional as F
from monai.networks import nets
from torch import Tensor

from HybridMIMLib.architectures import VIT, VitSize
from HybridMIMLib.networks import UNETR, SegmentationNetwork
from HybridMIMLib.networks.dropout import dropout_keys

SIZE, CROP = VitSize(24, 2, 4), (48, 32, 16)
TOKENS = {16: (3, 2, 1), 8: (6, 4, 2)}
both = pytest.mark.parametrize("token", TOKENS)


def network(token: int, dropout: float = 0.0) -> UNETR:
    """Two channels, with positions that matter."""
    torch.manual_seed(0)
    unetr = UNETR(2, SIZE, CROP, token, dropout).eval().requires_grad_(False)
    unetr.get_parameter("vit.patch_embedding.position_embeddings").normal_()
    return unetr


def scan() -> Tensor:
    return torch.rand(2, 2, *CROP, generator=torch.Generator().manual_seed(1))


@both
def test_levels_are_the_hidden_states_on_the_grid(token: int) -> None:
    unetr, x = network(token), scan()
    final, hidden = unetr.vit(x)
    expected = {16: [hidden[3], hidden[6], hidden[9], final], 8: [hidden[3], hidden[7], final]}[token]
    first, *levels = unetr.encode(x)
    assert torch.equal(first, x)
    for level, tokens in zip(levels, expected, strict=True):
        assert level.shape == (2, 24, *TOKENS[token]) and level.is_contiguous()
        for number, place in enumerate(torch.cartesian_prod(*(torch.arange(n) for n in TOKENS[token])).tolist()):
            assert torch.allclose(level[:, :, place[0], place[1], place[2]], tokens[:, number], atol=1e-5)


@both
def test_tokens_on_their_own_give_the_bottleneck(token: int) -> None:
    unetr, x = network(token, dropout=0.3).train(), scan()
    with dropout_keys(torch.tensor([1, 2])):
        tokens = unetr.embed(x)
        assert tokens.shape == (2, prod(TOKENS[token]), 24)
        assert torch.allclose(unetr.to_grid(unetr.attend(tokens)), unetr.encode(x)[-1], atol=1e-5)


@both
def test_any_tokens_in_any_order_can_attend(token: int) -> None:
    unetr = network(token)
    tokens = unetr.embed(scan())
    order = torch.randperm(tokens.shape[1])
    assert torch.allclose(unetr.attend(tokens[:, order]), unetr.attend(tokens)[:, order], atol=1e-4)
    some = unetr.attend(tokens[:, order[:4]])
    assert some.shape == (2, 4, 24)
    assert not torch.allclose(some, unetr.attend(tokens)[:, order[:4]], atol=1e-2), "those left out are not seen"


@both
def test_hidden_tokens_take_the_fill_and_keep_their_position(token: int) -> None:
    unetr, x, fill = network(token), scan(), torch.arange(24.0) / 24
    hidden = torch.zeros(2, *CROP, dtype=torch.bool)
    hidden[0, :token, :token, :token] = True
    hidden[1, token : 2 * token, token - 1 :, :] = True  # the second token along both axes, and one layer of others
    hidden[:, -1, 0, 0] = True  # a single voxel
    seen = x * ~hidden[:, None]
    weight = unetr.get_parameter("vit.patch_embedding.patch_embeddings.weight")
    bias = unetr.get_parameter("vit.patch_embedding.patch_embeddings.bias")
    patches = F.conv3d(seen, weight, bias, stride=token)
    patches[0, :, 0, 0, 0] = fill
    patches[1, :, 1, 1:] = fill[:, None, None]
    tokens = patches.flatten(2).transpose(1, 2) + unetr.get_parameter("vit.patch_embedding.position_embeddings")
    pyramid = unetr.encode_hidden(x, hidden, fill)
    assert torch.equal(pyramid[0], seen)
    assert torch.allclose(pyramid[-1], unetr.to_grid(unetr.attend(tokens)), atol=1e-4)


def test_smaller_tokens_keep_the_names_and_most_shapes() -> None:
    small = SegmentationNetwork(network(8), 3).monai_state()
    monai = nets.UNETR(2, 3, CROP, 4, hidden_size=24, mlp_dim=96, num_heads=2).state_dict()
    assert set(small) < set(monai)
    assert {name.split(".")[0] for name in set(monai) - set(small)} == {
        "encoder2", "encoder3", "encoder4", "decoder5",
    }  # fmt: skip
    other = {name for name in small if small[name].shape != monai[name].shape}
    assert other == {
        "vit.patch_embedding.patch_embeddings.weight",
        "vit.patch_embedding.position_embeddings",
        "decoder4.transp_conv.conv.weight",
    }


def test_a_crop_that_is_no_multiple_of_16_has_tokens_of_8() -> None:
    unetr = UNETR(1, SIZE, (24, 8, 40), 8).eval()
    assert unetr(torch.rand(1, 1, 24, 8, 40)).shape == (1, 4, 24, 8, 40)


def test_what_nothing_uses_is_not_trained() -> None:
    """MONAI makes a norm for cross-attention in every block; several GPUs would wait for its gradient."""
    fixed = {name for name, weight in UNETR(1, SIZE, CROP).named_parameters() if not weight.requires_grad}
    assert fixed == {f"vit.blocks.{n}.norm_cross_attn.{part}" for n in range(12) for part in ("weight", "bias")}


def test_the_published_size() -> None:
    """768 wide, 12 heads, 216 tokens of 96³: ViT-B with the shapes of MONAI's class."""
    whole = SegmentationNetwork(UNETR(1, VIT["base"], (96, 96, 96)), 2)
    monai = nets.UNETR(1, 2, (96, 96, 96))
    shapes = {name: tensor.shape for name, tensor in monai.state_dict().items()}
    assert {name: tensor.shape for name, tensor in whole.monai_state().items()} == shapes
    encoder = sum(w.numel() for name, w in whole.backbone.named_parameters() if whole.backbone.is_of_encoder(name))
    assert 88e6 < encoder < 89e6
