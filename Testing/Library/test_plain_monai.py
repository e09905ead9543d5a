"""A trained network runs in plain MONAI: its classes take our tensors, every one, and give what ours give; a model
package gives the label maps that we do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as how_often
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from safetensors.torch import load_file, save_file
from small_packages import make_package
from torch import nn

from HybridMIMLib.architectures import SEGRESNET, SWIN, VIT, settled
from HybridMIMLib.bundle import inference_config, network_config, why_not_in_monai
from HybridMIMLib.data.body import MARGIN, air_level, find_body
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.model_description import WEIGHTS, weights_files
from HybridMIMLib.data.nifti import read_nifti, save_nifti
from HybridMIMLib.data.normalisation import intensity_range
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.store import bring_to_plan
from HybridMIMLib.inference.engines import TorchEngine
from HybridMIMLib.inference.predictor import Predictor
from HybridMIMLib.model_package import CONFIG, ModelPackage, ensemble_of, load_model
from HybridMIMLib.networks import make_backbone, make_segmentation_network
from HybridMIMLib.pretrained import load_pretrained
from HybridMIMLib.settings.inference import InferenceSettings
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.transfer import transfer

CHANNELS, OUTPUTS, CROP = 2, 3, (64, 64, 32)


def dynunet(settings: NetworkSettings) -> nn.Module:
    assert settings.features is not None and settings.strides is not None
    return DynUNet(
        3,
        CHANNELS,
        OUTPUTS,
        kernel_size=[3] * len(settings.features),
        strides=settings.strides,
        upsample_kernel_size=settings.strides[1:],
        filters=settings.features,
        res_block=settings.architecture == "resunet",
    )


def swinunetr(settings: NetworkSettings) -> nn.Module:
    size = SWIN[settings.size]
    return SwinUNETR(
        CHANNELS,
        OUTPUTS,
        feature_size=size.features,
        depths=size.depths,
        num_heads=size.heads,
        window_size=settings.window,
    )


def unetr(settings: NetworkSettings) -> nn.Module:
    size = VIT[settings.size]
    return UNETR(CHANNELS, OUTPUTS, CROP, size.features, size.width, 4 * size.width, size.heads)


def segresnet(settings: NetworkSettings) -> nn.Module:
    size = SEGRESNET[settings.size]
    return SegResNet(3, size.filters, CHANNELS, OUTPUTS, blocks_down=size.blocks)


MAKERS: dict[str, Callable[[NetworkSettings], nn.Module]] = {
    "unet": dynunet,
    "resunet": dynunet,
    "swinunetr": swinunetr,
    "unetr": unetr,
    "segresnet": segresnet,
}


@pytest.mark.parametrize("architecture", MAKERS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0)])
def test_monai_takes_the_tensors_and_gives_the_same(architecture: str, spacing: tuple[float, ...]) -> None:
    chosen = NetworkSettings(architecture=architecture, window=4)  # type: ignore[arg-type]
    settings = settled(chosen, spacing)
    ours = make_segmentation_network(settings, CHANNELS, OUTPUTS - 1, CROP, seed=4).eval()
    theirs = MAKERS[architecture](settings).eval()
    state = ours.monai_state()
    # DynUNet keeps each block a second time, nested: these names are the same tensors.
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("skip_layers.") for name in missing)
    x = torch.randn(1, CHANNELS, *CROP)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", MAKERS)
def test_weights_of_monai_are_a_start(architecture: str, tmp_path: Path) -> None:
    settings = settled(NetworkSettings(architecture=architecture, window=4), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    theirs = MAKERS[architecture](settings)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pt")
    ours = make_backbone(settings, CHANNELS, CROP, seed=9)
    account = transfer(ours, load_pretrained(tmp_path / "w.pt"))
    assert [part.share for part in account.parts] == [1, 1]
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    # The head, and a second time what DynUNet nests.
    assert all(name.startswith((ours.head_name, "skip_layers.")) for name in account.left_out)
    assert {name for name in account.left_out if name.startswith(ours.head_name)}


PLAN = Plan(1, (1.1, 1.3, 0.9), "zscore", (-1000.0, 1000.0), (64, 32, 32), (4, 4, 4), (8, 8, 8))
SMALL = NetworkSettings(features=[4, 8, 8], strides=[[1, 1, 1], [2, 2, 2], [2, 2, 1]])


def parser_of(config: dict[str, Any]) -> ConfigParser:
    """What plain MONAI makes of a config; its expressions are evaluated when they are asked for."""
    parser = ConfigParser(config)
    parser.parse()
    return parser


def run_here(model: Path, scans: Sequence[Any], output: Path) -> None:
    """What ``python -m monai.bundle run`` does, in this process."""
    config = ConfigParser.load_config_file(str(model / CONFIG))
    parser = parser_of({**config, "bundle_root": str(model), "datalist": list(scans), "output_dir": str(output)})
    for number in range(len(config["initialize"])):
        parser.get_parsed_content(f"initialize#{number}")
    parser.get_parsed_content("run#0")


def run_in_a_child(model: Path, scans: Path, output: Path) -> None:
    """``python -m monai.bundle run``, as the README of a package tells."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIG), "--bundle_root", ".",
               "--dataset_dir", str(scans), "--output_dir", str(output)]  # fmt: skip
    # A process in which nothing of ours can be found.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=model, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def ours_on(package: ModelPackage, array: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    """Our own label map; nothing may be passed over as air, where a network that was not trained finds things."""
    engine = TorchEngine(package.network, torch.device("cpu"), 2)
    predictor = Predictor(engine, package.plan, package.classes, InferenceSettings(), package.overlapping)
    found = predictor.predict(array, grid)
    assert found.skipped == 0
    return found.labels


def check_equal(package: ModelPackage, scan: Path, theirs: Path) -> None:
    """Both label maps lie on the scan's grid, and each class is found and the same."""
    volume, image = read_nifti(scan), nibabel.load(theirs)  # type: ignore[attr-defined]
    depth, height, width = volume.array.shape[1:]
    grid = Grid((depth, height, width), volume.affine)
    compare(package, ours_on(package, volume.array, grid), np.asarray(image.dataobj))
    assert Grid(image.shape, image.affine).same_as(grid, 1e-3)


def compare(package: ModelPackage, one: npt.NDArray[Any], other: npt.NDArray[Any]) -> None:
    assert one.shape == other.shape and one.dtype == other.dtype
    assert set(np.unique(other)) <= {0, *(c.label for c in package.classes)}
    for label in (c.label for c in package.classes):
        sizes = (one == label).sum() + (other == label).sum()
        assert sizes > 0.02 * one.size
        assert 2 * ((one == label) & (other == label)).sum() / sizes >= 0.999


def turned(scan: Path, target: Path, codes: tuple[int, ...], flips: tuple[int, ...], angle: float) -> Path:
    """The scan with its axes in another order, some backwards, lying obliquely in space."""
    volume = read_nifti(scan)
    step = np.zeros((4, 4))
    step[3, 3] = 1
    array = volume.array[0].transpose(codes)
    for axis, code in enumerate(codes):
        step[code, axis] = -1 if axis in flips else 1
        if axis in flips:
            array = np.flip(array, axis)
            step[code, 3] = array.shape[axis] - 1
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.eye(4)
    rotation[:2, :2] = [[cosine, -sine], [sine, cosine]]
    shear = np.eye(4)
    shear[1, 2] = 0.1
    affine = rotation @ shear @ volume.affine @ step
    target.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array), affine), target)  # type: ignore[attr-defined]
    return target


@pytest.fixture
def mr(shared_data: Path) -> Path:
    return shared_data / "hippocampus_mr" / "imagesTr" / "hippocampus_003.nii.gz"


@pytest.fixture
def ct(shared_data: Path, tmp_path: Path) -> Path:
    """A part of a CT scan (L, P, S; 4.7 x 4.7 x 3 mm) without much air."""
    return part_of(shared_data, tmp_path / "part.nii.gz", (44, 36, 56))


def part_of(shared_data: Path, target: Path, shape: tuple[int, int, int]) -> Path:
    volume = read_nifti(shared_data / "headneck_ct" / "images" / "pt_10.nii.gz")
    first = (40, 16, 20)
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ first
    d, h, w = (slice(at, at + size) for at, size in zip(first, shape))
    save_nifti(target, np.ascontiguousarray(volume.array[0, d, h, w]), Grid(shape, affine))
    return target


def test_a_package_runs_in_plain_monai(mr: Path, shared_data: Path, tmp_path: Path) -> None:
    """MR as it is and turned, and CT, down- and upsampled, in a process of its own."""
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "mr.nii.gz").write_bytes(mr.read_bytes())
    part_of(shared_data, scans / "ct.nii.gz", (16, 16, 24))
    turned(mr, scans / "turned.nii", (2, 0, 1), (0, 2), 0.3)
    plan = replace(PLAN, spacing=(2.4, 1.6, 1.3), crop=(24, 24, 24))
    model = tmp_path / "model"
    make_package(SMALL, plan).save(model)
    run_in_a_child(model, scans, tmp_path / "out")
    package = load_model(model)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ct_seg.nii.gz", "mr_seg.nii.gz", "turned_seg.nii.gz"
    ]  # fmt: skip
    for scan in scans.iterdir():
        check_equal(package, scan, tmp_path / "out" / f"{scan.name.split('.')[0]}_seg.nii.gz")


@pytest.mark.parametrize(("architecture", "overlapping"), [*((name, False) for name in MAKERS), ("unet", True)])
def test_every_network_gives_our_label_map_in_plain_monai(
    architecture: str, overlapping: bool, mr: Path, tmp_path: Path
) -> None:
    settings = NetworkSettings(architecture=architecture, window=4)  # type: ignore[arg-type]
    classes = (LabelClass(300 if overlapping else 5, "A", (0, 0, 1)), LabelClass(2, "B", (0, 1, 0)))
    plan = PLAN if architecture == "swinunetr" else replace(PLAN, crop=(32, 32, 32))
    package = make_package(settings, plan, classes, overlapping=overlapping)
    package.save(tmp_path / "model")
    run_here(tmp_path / "model", [str(mr)], tmp_path / "out")
    check_equal(package, mr, tmp_path / "out" / "hippocampus_003_seg.nii.gz")


def ensemble(settings: NetworkSettings, plan: Plan, **others: Any) -> ModelPackage:
    """Three networks that do not agree."""
    members = [make_package(settings, plan, **others) for _ in range(3)]
    for number, member in enumerate(members):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in member.network.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean()
    x = torch.rand((1, plan.channels, *plan.crop), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = [member.network(x).argmax(1) for member in members]
    assert all((one != other).float().mean() > 0.02 for one, other in combinations(found, 2))
    return ensemble_of(members, "Three", {})


@pytest.mark.parametrize(
    ("architecture", "overlapping", "crop"),
    [
        ("unet", False, (16, 16, 16)),
        ("unet", True, (16, 16, 16)),
        ("segresnet", False, (16, 16, 16)),
        ("unetr", False, (32, 32, 32)),
        ("swinunetr", False, (64, 32, 32)),
    ],
)
def test_an_ensemble_gives_our_label_map_in_plain_monai(
    architecture: str, overlapping: bool, crop: tuple[int, int, int], mr: Path, tmp_path: Path
) -> None:
    settings = NetworkSettings(architecture=architecture, window=4)  # type: ignore[arg-type]
    package = ensemble(settings, replace(PLAN, spacing=(1.6, 2.3, 1.9), crop=crop), overlapping=overlapping)
    package.save(tmp_path / "model")
    run_here(tmp_path / "model", [str(mr)], tmp_path / "out")
    check_equal(package, mr, tmp_path / "out" / "hippocampus_003_seg.nii.gz")


def test_an_ensemble_runs_from_the_command_line_of_plain_monai(ct: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    scan = ct.rename(tmp_path / "scans" / "part.nii.gz")
    package = ensemble(SMALL, replace(PLAN, normalisation="window", spacing=(9.0, 5.0, 6.0), crop=(32, 16, 32)))
    package.save(tmp_path / "model")
    run_in_a_child(tmp_path / "model", tmp_path / "scans", tmp_path / "out")
    check_equal(package, scan, tmp_path / "out" / "part_seg.nii.gz")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_member_is_loaded_to_its_last_tensor(number: int, tmp_path: Path) -> None:
    package = ensemble(SMALL, replace(PLAN, crop=(32, 32, 32)))
    package.save(tmp_path / "model")
    config = {
        **ConfigParser.load_config_file(str(tmp_path / "model" / CONFIG)),
        "bundle_root": str(tmp_path / "model"),
    }
    parser = parser_of(config)
    networks = parser.get_parsed_content("networks")
    for tensor in networks[number - 1].state_dict().values():
        tensor.fill_(77)
    parser.get_parsed_content("initialize#0")
    assert not any((tensor == 77).all() for tensor in networks[number - 1].state_dict().values())
    file = tmp_path / "model" / weights_files(3)[number - 1]
    tensors = load_file(file)
    del tensors[next(iter(tensors))]
    save_file(tensors, file)
    with pytest.raises(RuntimeError, match="zip") as caught:
        parser_of(config).get_parsed_content("initialize#0")
    assert "Missing key" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("normalisation", "spacing"),
    [("window", (9.0, 5.0, 3.0)), ("window", (4.0, 4.0, 6.0)), ("percentiles", (3.0, 8.0, 5.0))],
)
def test_a_ct_gives_our_label_map_in_plain_monai(
    normalisation: str, spacing: tuple[float, float, float], ct: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, normalisation=normalisation, spacing=spacing, crop=(32, 16, 32))
    scan = turned(ct, tmp_path / "scan.nii.gz", (1, 2, 0), (1,), -0.2)
    package = make_package(SMALL, plan)
    package.save(tmp_path / "model")
    run_here(tmp_path / "model", [str(scan)], tmp_path / "out")
    check_equal(package, scan, tmp_path / "out" / "scan_seg.nii.gz")


@pytest.mark.parametrize("kind", ["4D", "a file each"])
def test_scans_of_several_channels(kind: str, mr: Path, tmp_path: Path) -> None:
    volume = read_nifti(mr)
    one = volume.array[0].astype(np.float32)
    other = one.max() - one[::-1]
    depth, height, width = one.shape
    grid = Grid((depth, height, width), volume.affine)
    stack = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.stack([one, other], axis=3), volume.affine), stack)  # type: ignore[attr-defined]
    for number, channel in enumerate((one, other)):
        save_nifti(tmp_path / f"a_000{number}.nii.gz", np.ascontiguousarray(channel), grid)
    package = make_package(SMALL, replace(PLAN, channels=2, crop=(32, 32, 32)))
    package.save(tmp_path / "model")
    listed = str(stack) if kind == "4D" else [str(tmp_path / f"a_000{number}.nii.gz") for number in range(2)]
    run_here(tmp_path / "model", [listed], tmp_path / "out")
    (written,) = (tmp_path / "out").iterdir()
    ours = ours_on(package, np.stack([one, other]), grid)
    compare(package, ours, np.asarray(nibabel.load(written).dataobj))  # type: ignore[attr-defined]


@pytest.mark.parametrize("architecture", MAKERS)
def test_nothing_is_left_at_its_initial_value(architecture: str, tmp_path: Path) -> None:
    settings = NetworkSettings(architecture=architecture, window=4)  # type: ignore[arg-type]
    package = make_package(settings, PLAN)
    package.save(tmp_path / "model")
    config = {
        **ConfigParser.load_config_file(str(tmp_path / "model" / CONFIG)),
        "bundle_root": str(tmp_path / "model"),
    }
    parser = parser_of(config)
    network = parser.get_parsed_content("network_def")
    for tensor in network.state_dict().values():
        tensor.fill_(77)
    parser.get_parsed_content("initialize#0")
    # DynUNet has each block twice; both are the same tensors.
    assert not any((tensor == 77).all() for tensor in network.state_dict().values())
    x = torch.rand(1, 1, *PLAN.crop)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), package.network(x), atol=1e-5, rtol=1e-5)
    # And plain MONAI says so where a tensor is missing.
    tensors = load_file(tmp_path / "model" / WEIGHTS)
    del tensors[next(iter(tensors))]
    save_file(tensors, tmp_path / "model" / WEIGHTS)
    with pytest.raises(RuntimeError, match="load_model") as caught:
        parser_of(config).get_parsed_content("initialize#0")
    assert "Missing key" in str(caught.value.__cause__)


SIDES = st.integers(1, 30)


@how_often(deadline=None, max_examples=25)
@given(
    st.tuples(SIDES, SIDES, SIDES),
    st.tuples(*[st.floats(0.3, 4)] * 3),
    st.tuples(*[st.floats(0.3, 9)] * 3),
    st.integers(0, 2**31),
)
def test_resampling_is_ours_and_leads_back(
    shape: tuple[int, int, int], spacing: Sequence[float], wanted: tuple[float, float, float], seed: int
) -> None:
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    plan = replace(PLAN, spacing=wanted)
    parser = parser_of(inference_config(SMALL, plan, [LabelClass(1, "A", (0, 0, 0))]))
    array = np.random.default_rng(seed).normal(0, 100, (2, *shape)).astype(np.float32)
    scan = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(grid.affine.copy()))
    theirs = parser.get_parsed_content("to_plan")(scan)
    ours, _ = bring_to_plan(array, grid, plan)
    np.testing.assert_allclose(theirs.numpy(), ours, atol=2e-2)
    back = parser.get_parsed_content("from_plan")(theirs)
    assert tuple(back.shape) == (2, *shape)


INTENSITIES = {
    "noise": lambda random: random.normal(50, 20, (1, 12, 10, 8)),
    "a body in air": lambda random: np.pad(random.normal(100, 9, (1, 6, 5, 4)), [(0, 0), (3, 3), (3, 2), (2, 2)]),
    "one intensity": lambda random: np.full((1, 12, 10, 8), -3.5),
    "all zero": lambda random: np.zeros((1, 12, 10, 8)),
    "a mask": lambda random: np.pad(np.ones((1, 6, 5, 4)), [(0, 0), (3, 3), (3, 2), (2, 2)]),
    "one bright voxel": lambda random: np.pad(np.full((1, 1, 1, 1), 9.0), [(0, 0), (6, 5), (5, 4), (3, 4)]),
    "two channels": lambda random: random.normal([[[[5]]], [[[900]]]], [[[[1]]], [[[300]]]], (2, 12, 10, 8)),
    "huge": lambda random: 1e7 + random.normal(0, 1e5, (1, 12, 10, 8)),
    "more voxels than are looked at": lambda random: random.gamma(2, 50, (1, 140, 130, 120)),
}


@pytest.mark.parametrize("normalisation", ["window", "percentiles", "zscore"])
@pytest.mark.parametrize("kind", INTENSITIES)
def test_intensities_and_body_are_ours(kind: str, normalisation: str) -> None:
    array = INTENSITIES[kind](np.random.default_rng(3)).astype(np.float32)
    plan = replace(PLAN, normalisation=normalisation, channels=len(array))
    parser = parser_of(inference_config(SMALL, plan, [LabelClass(1, "A", (0, 0, 0))]))
    transforms = parser.get_parsed_content("preprocessing").transforms
    scan = MetaTensor(torch.from_numpy(array), affine=torch.eye(4))
    theirs = transforms[5]({"image": scan})["image"]
    low, high = np.array(intensity_range(array, plan), dtype=np.float32).T[..., None, None, None]
    ours = np.clip((array - low) / (high - low), 0, 1)
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-6)
    body = find_body(ours, air_level(plan))
    d, h, w = (slice(first, first + size) for first, size in zip(body.lower, body.size))
    np.testing.assert_array_equal(transforms[6]({"image": theirs})["image"].numpy(), theirs.numpy()[:, d, h, w])
    assert MARGIN > 0


def test_networks_that_monai_does_not_have_are_named() -> None:
    assert "tokens of 16" in why_not_in_monai(NetworkSettings(architecture="unetr", token=8))
    assert "3 stages" in why_not_in_monai(NetworkSettings(features=[4, 8], strides=[[1, 1, 1], [2, 2, 2]]))
    assert why_not_in_monai(SMALL) == why_not_in_monai(NetworkSettings(architecture="unetr")) == ""
    assert network_config(SMALL, PLAN, 3)["filters"] == [4, 8, 8]
