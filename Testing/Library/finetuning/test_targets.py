"""What a training aims at: the outputs of a network for classes and for regions, and their losses on every stage."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import write_blobs
from torch import Tensor

from HybridMIMLib.architectures import settled
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.classes import make_naming
from HybridMIMLib.data.layouts import Case, open_dataset
from HybridMIMLib.data.patches import CropSampler
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.store import prepare_store
from HybridMIMLib.data.survey import CaseFacts, survey
from HybridMIMLib.errors import LabelError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.finetuning.loss import region_losses, segmentation_losses
from HybridMIMLib.finetuning.targets import ClassTarget, RegionTarget, Target, make_target
from HybridMIMLib.networks import make_segmentation_network
from HybridMIMLib.networks.dropout import dropout_keys
from HybridMIMLib.settings.network import NetworkSettings

# Labels that are no numbers of classes: 1, 2 and 4 are classes 1, 2 and 3.
NAMING = make_naming({1: "core", 2: "edema", 4: "enhancing"}, {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]})
HELD = ((1, 2, 3), (1, 3), (3,))
"""Classes of each region."""
TARGETS = (ClassTarget(NAMING.classes), RegionTarget(NAMING.classes, NAMING.regions))


def labels(shape: tuple[int, ...] = (2, 8, 8, 4)) -> Tensor:
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1))


def run(**settings: object) -> Run:
    return make_run(None, {"labelled": "cases", "finetuning": settings})


def test_regions_are_where_any_of_their_labels_is() -> None:
    target, label = TARGETS[1], labels()
    truth = target.shares(label)
    assert truth.shape == (2, 3, 8, 8, 4) and target.overlapping and target.measured == ("WT", "TC", "ET")
    for region, held in enumerate(HELD):
        for b, d, h, w in itertools.product(range(2), range(8), range(8), range(4)):
            assert float(truth[b, region, d, h, w]) == (int(label[b, d, h, w]) in held)


def test_a_region_counts_where_all_its_labels_were_annotated() -> None:
    annotated = torch.tensor(list(itertools.product([True, False], repeat=3)))
    counted = TARGETS[1].counted(annotated)
    for row, found in zip(annotated.tolist(), counted.tolist(), strict=True):
        assert found == [all(row[number - 1] for number in held) for held in HELD]


@pytest.mark.parametrize("target", TARGETS, ids=["classes", "regions"])
def test_one_stage_has_the_plain_loss(target: Target) -> None:
    scores = torch.randn(2, 3 + (not target.overlapping), 8, 8, 4)
    annotated = torch.tensor([[True, True, True], [True, False, True]])
    label = labels() * torch.tensor([1, 0]).reshape(2, 1, 1, 1)
    found = target.losses([scores], label, annotated)
    if target.overlapping:
        plain = region_losses(scores, target.shares(label), target.counted(annotated))
    else:
        plain = segmentation_losses(scores, label, annotated)
    assert set(found) == {"dice", "cross_entropy"} and all(torch.equal(found[kind], plain[kind]) for kind in plain)


@pytest.mark.parametrize("target", TARGETS, ids=["classes", "regions"])
def test_coarser_stages_see_the_shares_of_what_was_annotated(target: Target) -> None:
    """Thick slices: the first step leaves them as they are."""
    annotated = torch.tensor([[True, True, True], [True, False, True]])
    label = labels()
    label[1][label[1] == 2] = 0
    outputs = 3 + (not target.overlapping)
    scores = [torch.randn(2, outputs, *grid, requires_grad=True) for grid in ((8, 8, 4), (4, 4, 4), (2, 2, 2))]
    found = target.losses(scores, label, annotated)
    torch.stack(list(found.values())).sum().backward()
    expected = dict.fromkeys(found, 0.0)
    for number, (one, steps) in enumerate(zip(scores, ((1, 1, 1), (2, 2, 1), (4, 4, 2)))):
        shares = F.avg_pool3d(target.shares(label), steps)
        for kind, loss in target.on_one_grid(one, shares, target.counted(annotated)).items():
            expected[kind] += float(loss.detach()) * (4, 2, 1)[number] / 7
        assert one.grad is not None and float(one.grad.abs().sum()) > 0
    assert all(float(found[kind].detach()) == pytest.approx(expected[kind], rel=1e-5) for kind in found)
    # In the second sample nobody looked for edema, and so nobody knows where the whole tumour ends.
    if target.overlapping:
        assert all(one.grad is not None and float(one.grad[1, 0].abs().max()) == 0 for one in scores)


@pytest.mark.parametrize("target", TARGETS, ids=["classes", "regions"])
def test_with_no_weight_for_coarser_stages_all_learns_as_without_them(target: Target) -> None:
    """Step after step, to the last bit."""
    settings = settled(NetworkSettings(features=[4, 6, 8]), (1, 1, 1))
    weights = []
    for levels in (0, 1):
        network = make_segmentation_network(
            settings, 1, 3, (8, 8, 8), seed=4, overlapping=target.overlapping, levels=levels
        ).train()
        optimizer = torch.optim.AdamW(network.parameters(), 0.01)
        for step in range(3):
            image = torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(step))
            with dropout_keys(torch.arange(2) + step):
                scores = network.scores_by_stage(image)
            losses = target.losses(scores, labels((2, 8, 8, 8)), weights=(1.0, *[0.0] * levels))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
        weights.append(network.monai_state())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_regions_are_asked_for_where_there_are_none() -> None:
    with pytest.raises(SettingsError, match="cases names no region of several labels") as caught:
        make_target(run(target="regions"), NAMING.classes, ())
    assert "classes.json" in caught.value.cure and "finetuning.target to classes" in caught.value.cure
    assert isinstance(make_target(run(), NAMING.classes, NAMING.regions), ClassTarget)
    assert isinstance(make_target(run(target="regions"), NAMING.classes, NAMING.regions), RegionTarget)


def facts_of(annotated: set[int] | None) -> CaseFacts:
    case, labels_met = Case("a", (Path("a.nii.gz"),), None), frozenset({1})
    return CaseFacts(case, "", 1, (4, 4, 4), (1, 1, 1), 0, 1, labels_met,
                     annotated=None if annotated is None else frozenset(annotated))  # fmt: skip


def test_a_region_needs_a_case_in_which_all_its_labels_were_annotated() -> None:
    target = TARGETS[1]
    with pytest.raises(LabelError, match=r"region WT \(1, 2, 4\) are annotated together in none of the 2 scans"):
        target.check_annotated(run(), [facts_of({1, 4}), facts_of({2})])
    target.check_annotated(run(), [facts_of({1, 4}), facts_of({1, 2, 4})])
    target.check_annotated(run(), [facts_of({1}), facts_of(None)])
    TARGETS[0].check_annotated(run(), [facts_of({1}), facts_of({2}), facts_of({4})])


def test_crops_are_centred_in_every_region_as_often_as_on_a_class(tmp_path: Path) -> None:
    """A class a thousand times smaller than another: a region that is that class alone is not starved."""
    cases = write_blobs(tmp_path / "cases", 2, labelled=True)
    dataset = open_dataset(cases, labelled=True)
    facts = survey(dataset.cases, EventLog())
    plan = Plan(1, (1.0, 1.0, 1.2), "percentiles", (-1e3, 1e3), (4, 4, 4), (2, 2, 2), (4, 4, 4))
    prepared = prepare_store(facts, plan, dataset.classes, tmp_path / "store", EventLog())
    # Of the second class a single voxel is left.
    few = [replace(case, counts=(case.counts[0], 1)) for case in prepared]
    sampler = CropSampler(few, (4, 4, 4), 0, "finetune", foreground_share=1.0)
    centres = [
        int(number)
        for step in range(60)
        for number in sampler.batch(step, 4, torch.device("cpu"), labels=True).label[:, 2, 2, 2]  # type: ignore[index]
    ]
    shares = np.bincount(centres, minlength=3) / len(centres)
    both, dark = shares[1:].sum(), shares[2]
    assert both > 0.99 and 0.4 < dark < 0.6
