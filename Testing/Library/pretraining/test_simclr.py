"""SimCLR: what the views are, what is pooled, and that the loss is that of each view by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_objectives import SIZES, draw_crops, part, small_objective
from torch._subclasses import FakeTensorMode

from HybridMIMLib.data.patches import inside_mask
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.pretraining.contrast import NOBODY, nt_xent, pooled, pooled_inside
from HybridMIMLib.pretraining.objective import mode
from HybridMIMLib.pretraining.simclr import SimCLR

CROP = SIZES["unet"][0]
PADDED = (CROP, (8, 8, 15), (16, 5, 16), CROP)


def simclr(channels: int = 2, **chosen: Any) -> SimCLR:
    found = small_objective("unet", "simclr", channels, **chosen)
    assert isinstance(found, SimCLR)
    return found


def test_views_follow_from_the_keys_and_differ() -> None:
    model, crops = simclr(), draw_crops(CROP, *PADDED, channels=2)
    views = model.views(crops)
    assert views.image.shape == (8, 2, *CROP) and views.inside.shape == (8, *CROP)
    again = model.views(crops)
    assert torch.equal(views.image, again.image) and torch.equal(views.inside, again.inside)
    first, second = views.image.chunk(2)
    assert all(not torch.equal(one, other) for one, other in zip(first, second))
    assert len(set(views.keys.tolist())) == 8, "two views drop other channels"
    other = model.views(replace(crops, keys=crops.keys + 1))
    assert not torch.equal(views.image, other.image)


def test_views_of_a_crop_are_the_same_in_any_batch() -> None:
    model, crops = simclr(), draw_crops(CROP, *PADDED, channels=2)
    together, alone = model.views(crops), model.views(part(crops, 2))
    assert torch.allclose(together.image[[2, 6]], alone.image, atol=1e-6)
    assert torch.equal(together.inside[[2, 6]], alone.inside) and torch.equal(together.keys[[2, 6]], alone.keys)


def test_padding_moves_with_the_scan_and_stays_0() -> None:
    """Noise, brightness and a flip do not make scan of it."""
    model = simclr()
    small = [(8, 4, 8)] * 4
    places = set()
    for seed in range(6):
        views = model.views(draw_crops(CROP, *small, channels=2, seed=seed))
        assert (views.image[~views.inside[:, None].expand_as(views.image)] == 0).all()
        for image, inside in zip(views.image, views.inside):
            assert 0.3 * 256 < int(inside.sum()) < 1.8 * 256
            # Voxels of noise are hardly ever 0.
            assert (image[:, inside] == 0).float().mean() < 0.2
            middle = inside.nonzero().double().mean(dim=0)
            places.add(tuple(int(m > (n - 1) / 2) for m, n in zip(middle, CROP)))
    assert len(places) == 8, "views are flipped along all axes"


def test_pooling_weighs_each_cell_by_its_share_of_scan() -> None:
    level, inside = torch.rand(2, 3, 2, 3, 2), torch.rand(2, 8, 6, 4) < 0.4
    found = pooled_inside(level, inside, (4, 2, 2))
    for b, c in np.ndindex(2, 3):
        values = [float(level[b, c, d // 4, h // 2, w // 2]) for d, h, w in inside[b].nonzero().tolist()]
        assert float(found[b, c]) == pytest.approx(np.mean(values), rel=1e-5)
    sizes = torch.tensor([[8, 6, 4], [3, 5, 1]])
    assert torch.equal(
        pooled(level, sizes, (4, 2, 2)), pooled_inside(level, inside_mask(sizes, (8, 6, 4)), (4, 2, 2))
    )


def test_the_loss_is_that_of_views_passed_one_by_one() -> None:
    model, crops = simclr(contrast_temperature=0.2, network={"dropout": 0.3}), draw_crops(CROP, *PADDED, channels=2)
    views, rows = model.views(crops), []
    for n in range(8):
        with dropout_keys(views.keys[n : n + 1]):
            bottleneck = model.backbone.encode(views.image[n : n + 1])[-1]
        features = pooled_inside(bottleneck, views.inside[n : n + 1], model.backbone.strides[-1])
        rows.append(model.projection(features))
    wanted = nt_xent(torch.cat(rows[:4]), torch.cat(rows[4:]), 0.2, crops.patients)
    assert list(model(crops)) == ["contrast"]
    assert model(crops)["contrast"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_earlier_crops_are_negatives() -> None:
    model = simclr(batch=2)
    assert model.queue is not None and len(model.queue.patients) == 64
    crops = draw_crops(CROP, CROP, CROP, channels=2)
    first = model(crops)["contrast"].item()
    assert model.queue.patients[:2].tolist() == [0, 1] and (model.queue.patients[2:] == NOBODY).all()
    assert model(crops)["contrast"].item() > first, "more crops to tell apart"
    assert simclr(batch=4).queue is None


def test_the_step_does_not_look_at_the_device() -> None:
    model, crops = simclr(contrast_queue=6), draw_crops(CROP, *PADDED, channels=2)
    views = model.views(crops)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        seen = replace(
            views,
            **{name: fake.from_tensor(getattr(views, name)) for name in ("image", "inside", "keys", "patients")},
        )
        model.losses_of(seen)["contrast"].backward()


def test_it_learns_to_find_partners() -> None:
    found = small_objective("segresnet", "simclr", network={"dropout": 0.0})
    crops = draw_crops((16, 16, 16), *[(16, 16, 16)] * 6)
    # Crops that differ in how many of their voxels are bright, which no augmentation changes.
    share = torch.linspace(0.05, 0.95, 6)[:, None, None, None, None]
    crops = replace(crops, image=(crops.image < share).float())
    optimizer = torch.optim.AdamW(found.parameters(), lr=3e-3)
    for step in range(15):
        optimizer.zero_grad()
        found(replace(crops, keys=crops.keys + 100 * step + 100))["contrast"].backward()
        optimizer.step()
    fresh = [found.measures(replace(crops, keys=crops.keys + 10**6 * n)) for n in range(3)]
    assert fresh[0]["contrast_chance"] == pytest.approx(1 / 11)
    assert np.mean([row["contrast_accuracy"] for row in fresh]) > 3 / 11
    assert found.preview(crops) is None


def test_measures_are_taken_without_dropout() -> None:
    model, crops = simclr(network={"dropout": 0.9}), draw_crops(CROP, channels=2)
    views = model.views(crops)
    with torch.no_grad(), mode(model, training=False):
        one, other = model._projected(views)
    both = torch.nn.functional.normalize(torch.cat([one, other]), dim=1)
    right = 0
    for n in range(8):
        likeness = [float(both[n] @ both[m]) if m != n else -2.0 for m in range(8)]
        right += int(np.argmax(likeness)) == (n + 4) % 8
    assert model.measures(crops) == {
        "contrast_accuracy": pytest.approx(right / 8),
        "contrast_chance": pytest.approx(1 / 7),
    }
    assert model.training
