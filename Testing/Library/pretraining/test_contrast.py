"""Contrast: NT-Xent, pooling and the queue against loops; two processes against one."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_objectives import draw_crops, small_objective
from torch import Tensor

from HybridMIMLib.pretraining.contrast import NOBODY, NegativeQueue, nt_xent, partner_found, pooled

TESTING = Path(__file__).resolve().parents[2]
Triple = tuple[int, int, int]


def views(samples: int, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two views of each sample, of any length, in double precision."""
    one, other = torch.randn(2, samples, width, generator=torch.Generator().manual_seed(seed)).double()
    return 3 * one, other


def likeness(one: list[float], other: list[float]) -> float:
    """Cosine of two vectors."""
    return sum(a * b for a, b in zip(one, other)) / math.hypot(*one) / math.hypot(*other)


def slow_nt_xent(
    one: Tensor, other: Tensor, temperature: float, patients: list[int], earlier: list[tuple[list[float], int]]
) -> float:
    """Equation 1 of SimCLR, view by view; of others, those of the same patient are left out."""
    own = [*one.tolist(), *other.tolist()]
    owners, terms = patients * 2, []
    for i in range(len(own)):
        partner = (i + len(one)) % len(own)
        others = [own[k] for k in range(len(own)) if owners[k] != owners[i]]
        others += [view for view, owner in earlier if owner != owners[i]]
        right = math.exp(likeness(own[i], own[partner]) / temperature)
        wrong = sum(math.exp(likeness(own[i], view) / temperature) for view in others)
        terms.append(-math.log(right / (right + wrong)))
    return float(np.mean(terms))


@settings(max_examples=40, deadline=None)
@given(
    patients=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    earlier=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), max_size=3),
    length=st.integers(0, 6),
    temperature=st.sampled_from([0.1, 0.5, 2.0]),
)
def test_nt_xent_is_equation_1_without_negatives_of_the_same_patient(
    patients: list[int], earlier: list[list[int]], length: int, temperature: float
) -> None:
    one, other = views(len(patients), seed=len(patients))
    queue = NegativeQueue(length, 5).double() if length else None
    kept: deque[tuple[list[float], int]] = deque(maxlen=length)
    for step, whose in enumerate(earlier):
        pushed, _ = views(len(whose), seed=100 + step)
        kept.extend(zip(pushed.tolist(), whose))
        if queue is not None:
            queue.push(pushed, torch.tensor(whose))
    expected = slow_nt_xent(one, other, temperature, patients, list(kept))
    found = float(nt_xent(one, other, temperature, torch.tensor(patients), queue))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    turned = float(nt_xent(other, 0.1 * one, temperature, torch.tensor(patients), queue))
    assert turned == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_nt_xent_wants_each_sample_beside_itself() -> None:
    corners, patients = torch.eye(4), torch.arange(4)
    right, wrong = (nt_xent(corners, other, 0.5, patients) for other in (corners, corners.roll(1, 0)))
    assert float(right) < float(nt_xent(torch.ones(4, 4), torch.ones(4, 4), 0.5, patients)) < float(wrong)


@pytest.mark.parametrize("patients", [[0], [0, 0, 0]])
def test_one_patient_has_no_contrast_and_no_nan(patients: list[int]) -> None:
    one, other = (x.requires_grad_() for x in views(len(patients)))
    loss = nt_xent(one, other, 0.5, torch.tensor(patients), NegativeQueue(4, 5).double())
    gradients = torch.autograd.grad(loss, [one, other])
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9)
    assert all(torch.allclose(g, torch.zeros_like(g), atol=1e-9) for g in gradients)


# --- queue --------------------------------------------------------------------


def content(queue: NegativeQueue) -> list[tuple[list[float], int]]:
    """What the queue holds, oldest first."""
    order = torch.arange(len(queue.patients)).roll(-int(queue._next))
    rows = zip(queue.views[order].tolist(), queue.patients[order].tolist())
    return [(view, owner) for view, owner in rows if owner != NOBODY]


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 7), batches=st.lists(st.integers(1, 9), max_size=6))
def test_the_queue_keeps_the_last_ones(length: int, batches: list[int]) -> None:
    queue, kept = NegativeQueue(length, 5).double(), deque[tuple[list[float], int]](maxlen=length)
    for step, samples in enumerate(batches):
        pushed, _ = views(samples, seed=step)
        patients = [100 * step + sample for sample in range(samples)]
        queue.push(pushed, torch.tensor(patients))
        kept.extend(zip(F.normalize(pushed, dim=1).tolist(), patients))
    found = content(queue)
    assert [owner for _, owner in found] == [owner for _, owner in kept]
    assert np.allclose([view for view, _ in found], [view for view, _ in kept], atol=1e-12)


def test_a_queue_from_a_checkpoint_goes_on_as_before() -> None:
    queue, one, other = NegativeQueue(5, 5), *(x.float() for x in views(3))
    for step in range(3):
        queue.push(views(2, seed=step)[0].float(), torch.tensor([7 + step, 20]))
    restored = NegativeQueue(5, 5)
    restored.load_state_dict({name: tensor.clone() for name, tensor in queue.state_dict().items()})
    for _ in range(4):
        losses = [float(nt_xent(one, other, 0.5, torch.arange(3), which)) for which in (queue, restored)]
        assert losses[0] == losses[1]
        for which in (queue, restored):
            which.push(one, torch.arange(3))
    assert float(nt_xent(one, other, 0.5, torch.arange(3))) != losses[0], "the queue has no part in it"


def test_what_is_pushed_does_not_change_the_gradient_of_this_step() -> None:
    """The loss comes first; the queue must not write into what its backward pass still needs."""
    gradients = []
    for pushes in (False, True):
        queue = NegativeQueue(4, 5).double()
        queue.push(views(4, seed=9)[0], torch.arange(4) + 10)
        one, other = (x.requires_grad_() for x in views(3))
        loss = nt_xent(one, other, 0.5, torch.arange(3), queue)
        if pushes:
            queue.push(one, torch.arange(3))
        loss.backward()
        assert not queue.views.requires_grad
        gradients.append((one.grad, other.grad))
    for without, after in zip(*gradients):
        assert without is not None and after is not None and torch.equal(without, after)


# --- pooled features and how often the partner is found -----------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_features_are_pooled_over_the_scan(data: st.DataObject) -> None:
    d, h, w = (data.draw(st.integers(1, 3)) for _ in range(3))
    stride = tuple(data.draw(st.integers(1, 4)) for _ in range(3))
    scan = st.tuples(*(st.integers(1, n * s) for n, s in zip((d, h, w), stride)))
    sizes = data.draw(st.lists(scan, min_size=1, max_size=3))
    level = torch.rand(len(sizes), 2, d, h, w, generator=torch.Generator().manual_seed(0))
    found = pooled(level, torch.tensor(sizes), stride)  # type: ignore[arg-type]
    for b, size in enumerate(sizes):
        # Each voxel of the scan adds the feature of the place that holds it.
        seen = [[v // s for v, s in zip(voxel, stride)] for voxel in np.ndindex(*size)]
        wanted = torch.stack([level[b, :, i, j, k] for i, j, k in seen]).mean(dim=0)
        assert torch.allclose(found[b], wanted, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(patients=st.lists(st.integers(0, 3), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_partners_are_found_among_other_patients(patients: list[int], seed: int) -> None:
    one, other = views(len(patients), width=2, seed=seed)
    own, owners = [*one.tolist(), *other.tolist()], patients * 2
    right, chances = [], []
    for i in range(len(own)):
        partner = (i + len(one)) % len(own)
        rivals = [likeness(own[i], own[k]) for k in range(len(own)) if owners[k] != owners[i]]
        right.append(likeness(own[i], own[partner]) > max(rivals, default=-2))
        chances.append(1 / (1 + len(rivals)))
    accuracy, chance = partner_found(one, other, torch.tensor(patients))
    assert float(accuracy) == pytest.approx(np.mean(right)) and float(chance) == pytest.approx(np.mean(chances))


# --- several processes --------------------------------------------------------

_PROCESS = """
import sys
import torch
import torch.distributed as dist
folder, rank, testing = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, testing)
from small_objectives import part, small_objective
from HybridMIMLib.pretraining.contrast import NegativeQueue, nt_xent, partner_found

dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
given = torch.load(f"{folder}/given.pt", weights_only=False)
mine = slice(2 * rank, 2 * rank + 2)
found = {}
for length in (0, 5):
    queue = NegativeQueue(length, 5).double() if length else None
    for step, (one, other) in enumerate(given["views"]):
        one, other = (x[mine].clone().requires_grad_() for x in (one, other))
        patients = given["patients"][mine]
        loss = nt_xent(one, other, 0.5, patients, queue)
        loss.backward()
        if queue is not None:
            queue.push(one.detach(), patients)
        found[length, step] = loss.detach(), one.grad, other.grad
    found[length, "queue"] = queue and queue.state_dict()
if rank == 0:
    # The other process does not take part, and must not be waited for.
    found["partner"] = partner_found(*(x[mine] for x in given["views"][0]), given["patients"][mine])
model = small_objective("unet", "hybridmim", **given["settings"])
for crops in given["crops"]:
    losses = model(part(crops, *range(4)[mine]))
    sum(losses.values()).backward()
found["losses"] = {name: loss.detach() for name, loss in losses.items()}
found["gradients"] = {name: p.grad for name, p in model.named_parameters()}
found["model queue"] = model.queue.state_dict()
torch.save(found, f"{folder}/found{rank}.pt")
dist.destroy_process_group()
"""

# Dropout, a queue, padding that differs between the processes, and a patient that both have.
SETTINGS: dict[str, Any] = {"contrast_queue": 6, "contrast_stage": 1, "contrast_weight": 1.0, "number_weight": 1.0}
PATIENTS = torch.tensor([0, 1, 0, 2])
SCANS: list[Triple] = [(16, 8, 16), (16, 8, 9), (8, 8, 16), (16, 5, 16)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[Any, Any]]]:
    """What was given to two processes that talk through gloo, and what each of them found."""
    folder = tmp_path_factory.mktemp("processes")
    crops = [draw_crops((16, 8, 16), *SCANS, seed=seed) for seed in range(3)]
    given_: dict[str, Any] = {"views": [views(4, seed=step) for step in range(3)], "patients": PATIENTS}
    given_ |= {"crops": crops, "settings": SETTINGS}
    torch.save(given_, folder / "given.pt")
    command = [sys.executable, "-c", _PROCESS, str(folder)]
    started = [subprocess.Popen([*command, str(rank), str(TESTING)], stderr=subprocess.PIPE) for rank in range(2)]
    for process in started:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    return given_, [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("length", [0, 5])
def test_two_processes_contrast_as_one(together: tuple[dict[str, Any], list[dict[Any, Any]]], length: int) -> None:
    """The mean of their losses, and of their gradients, is that of the whole batch."""
    given_, found = together
    queue = NegativeQueue(length, 5).double() if length else None
    for step, pair in enumerate(given_["views"]):
        one, other = (x.clone().requires_grad_() for x in pair)
        loss = nt_xent(one, other, 0.5, PATIENTS, queue)
        loss.backward()
        if queue is not None:
            queue.push(one.detach(), PATIENTS)
        parts = [process[length, step] for process in found]
        assert float(loss.detach()) == pytest.approx(float(sum(part[0] for part in parts) / 2), rel=1e-9)
        assert float(parts[0][0]) != pytest.approx(float(loss.detach()), rel=1e-4), "each has its own rows"
        for whole, which in ((one.grad, 1), (other.grad, 2)):
            assert whole is not None
            assert torch.allclose(torch.cat([part[which] for part in parts]) / 2, whole, atol=1e-9)
    if queue is not None:
        for process in found:
            for name, tensor in queue.state_dict().items():
                assert torch.equal(process[length, "queue"][name], tensor)


def test_measuring_waits_for_no_other_process(together: tuple[dict[str, Any], list[dict[Any, Any]]]) -> None:
    given_, found = together
    one, other = given_["views"][0]
    assert found[0]["partner"] == partner_found(one[:2], other[:2], PATIENTS[:2])


def test_two_processes_train_as_one(together: tuple[dict[str, Any], list[dict[Any, Any]]]) -> None:
    """All losses of HybridMIM, though one process has more padding, and so fewer masked patches, than the other."""
    given_, found = together
    model = small_objective("unet", "hybridmim", **SETTINGS)
    for crops in given_["crops"]:
        losses = model(crops)
        sum(losses.values(), torch.zeros(())).backward()
    for name, loss in losses.items():
        parts = [float(process["losses"][name]) for process in found]
        assert float(loss.detach()) == pytest.approx(np.mean(parts), rel=1e-4)
    for name, parameter in model.named_parameters():
        mean = (found[0]["gradients"][name] + found[1]["gradients"][name]) / 2
        assert parameter.grad is not None
        assert torch.allclose(mean, parameter.grad, rtol=1e-2, atol=1e-5), name
    for name, tensor in model.get_submodule("queue").state_dict().items():
        assert torch.allclose(found[0]["model queue"][name], tensor, atol=1e-4)
