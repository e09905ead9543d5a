"""Pre-training as a command: every objective, what it leaves behind, and what it is measured on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import TINY, write_blobs

from HybridMIMLib import pretrain
from HybridMIMLib.architectures import settled
from HybridMIMLib.errors import DataError, SettingsError
from HybridMIMLib.events import EventReader
from HybridMIMLib.files import read_json
from HybridMIMLib.networks import make_backbone
from HybridMIMLib.pretrained import load_pretrained
from HybridMIMLib.pretraining.crops import Crops
from HybridMIMLib.pretraining.hybridmim import HybridMIM
from HybridMIMLib.pretraining.run import measured_at_the_end
from HybridMIMLib.report import report
from HybridMIMLib.settings.network import NetworkSettings

U_NET = {"features": [4, 8]}
VIT = {"architecture": "unetr", "token": 8}
VIT_PLAN = {"crop": [16, 16, 16], "patch": [8, 8, 8], "region": [8, 8, 8]}
ERRORS = {"hidden_error", "patch_mean_error", "error_to_patch_mean"}
MEASURED: dict[str, set[str]] = {
    "hybridmim": {"number", "location", "contrast", *ERRORS},
    "simmim": ERRORS,
    "mae": ERRORS,
    "simclr": {"contrast"},
    "none": set(),
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_blobs(tmp_path_factory.mktemp("scans"), 4, labelled=False))


def tiny(objective: str, **more: Any) -> dict[str, Any]:
    """Settings of a tiny run with an objective; MAE has the ViT that it needs."""
    chosen = {"objective": objective, "head_width": 32, "measure_every": 4, "preview_every": 4, **more}
    sizes = {"network": VIT, "plan": VIT_PLAN} if objective == "mae" else {"network": U_NET}
    return {**TINY, **sizes, "pretraining": {**TINY["pretraining"], **chosen}}


def events_of(run: Path) -> list[dict[str, Any]]:
    return list(EventReader(run / "events.jsonl").read())


# --- every objective ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", MEASURED)
def test_every_objective_leaves_weights_figures_and_pictures(objective: str, scans: str, tmp_path: Path) -> None:
    result = pretrain(unlabelled=scans, output=str(tmp_path), **tiny(objective))
    learnt = load_pretrained(Path(result["weights"]))
    assert learnt.origin and learnt.origin.objective.objective == objective and learnt.origin.scans == 4
    assert learnt.origin.trained == (("encoder", "decoder") if objective == "hybridmim" else ("encoder",))
    # All that is needed to build the network again.
    backbone = make_backbone(learnt.origin.network, learnt.origin.plan.channels, learnt.origin.plan.crop)
    backbone.load_state_dict({**backbone.state_dict(), **learnt.tensors})
    names = {name.removesuffix("_accuracy") for name in result["accuracies"] if not name.endswith("_chance")}
    assert names == MEASURED[objective]
    assert read_json(tmp_path / "result.json")["accuracies"] == pytest.approx(result["accuracies"])
    pictures = sorted(path.name for path in (tmp_path / "previews").glob("*.png"))
    expected = [] if objective in ("simclr", "none") else ["step_000004.png", "step_000006.png"]
    assert pictures == expected and bool(result["previews"]) == bool(expected)
    assert result["weights"] in report("pretrain", {**result, "output": str(tmp_path)})


@pytest.mark.parametrize("objective", ["hybridmim", "simclr"])
def test_measures_are_events_beside_their_chance_floors_and_said_at_the_end(
    objective: str, scans: str, tmp_path: Path
) -> None:
    pretrain(unlabelled=scans, output=str(tmp_path), **tiny(objective))
    events = events_of(tmp_path)
    measured = {event["step"]: event["metrics"] for event in events if "metrics" in event}
    assert list(measured) == [4, 6]
    for metrics in measured.values():
        heads = [name.removesuffix("_accuracy") for name in metrics if name.endswith("_accuracy")]
        assert heads and all(0 <= metrics[f"{head}_chance"] <= 1 for head in heads)
    said = [event["message"] for event in events if event["kind"] == "message"]
    assert any(re.search(r"\d+ % right \(\d+ % by guessing\)", text) for text in said)


def test_nothing_is_measured_on_crops_that_are_trained_on(
    scans: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[tuple[int, ...]]] = {"measures": [], "losses": []}
    for name in drawn:
        whole = getattr(HybridMIM, name)

        def note(self: Any, crops: Crops, name: str = name, whole: Any = whole) -> Any:
            drawn[name].append(tuple(crops.keys.tolist()))
            return whole(self, crops)

        monkeypatch.setattr(HybridMIM, name, note)
    pretrain(unlabelled=scans, output=str(tmp_path), **tiny("hybridmim", measure_every=1))
    trained, measured = ({key for keys in drawn[name] for key in keys} for name in ("losses", "measures"))
    assert len(trained) == 6 * 3 and len(measured) == (6 + measured_at_the_end(6)) * 3 and not trained & measured


def test_measuring_and_drawing_change_no_weight(scans: str, tmp_path: Path) -> None:
    made = [
        Path(pretrain(unlabelled=scans, output=str(tmp_path / name), **tiny("hybridmim", **more))["weights"])
        for name, more in {"often": {"measure_every": 1, "preview_every": 2}, "seldom": {}}.items()
    ]
    often, seldom = (load_pretrained(path).tensors for path in made)
    assert all(torch.equal(often[name], seldom[name]) for name in often)


# --- none ---------------------------------------------------------------------------------------------------------


def test_without_an_objective_the_weights_are_those_of_a_start_from_scratch(scans: str, tmp_path: Path) -> None:
    result = pretrain(unlabelled=scans, output=str(tmp_path), seed=5, **tiny("none", batch=0))
    learnt = load_pretrained(Path(result["weights"]))
    assert learnt.origin is not None
    plan = learnt.origin.plan
    network = settled(NetworkSettings(features=[4, 8]), plan.spacing)
    fresh = make_backbone(network, 1, plan.crop, seed=5)
    assert set(learnt.tensors) == {name for name in fresh.state_dict() if fresh.is_of_encoder(name)}
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in learnt.tensors.items())
    assert result["losses"] == {} and not (tmp_path / "checkpoint.pt").exists()
    assert any("nothing is trained" in event.get("message", "") for event in events_of(tmp_path))


# --- scans that do not fit ----------------------------------------------------------------------------------------


def test_scans_thinner_than_a_patch_matter_where_patches_are_hidden(scans: str, tmp_path: Path) -> None:
    thick = {"crop": [64, 64, 64], "patch": [32, 32, 32], "region": [32, 32, 32]}
    settings = {"unlabelled": scans, **{**tiny("simmim"), "plan": thick}}
    with pytest.raises(DataError, match="every scan is thinner than a patch"):
        pretrain(output=str(tmp_path / "simmim"), **settings)
    settings["pretraining"] = {**settings["pretraining"], "objective": "none"}
    assert not pretrain(output=str(tmp_path / "none"), **settings)["warnings"]


@pytest.mark.parametrize(
    "network, chosen",
    [
        (U_NET, {"objective": "mae"}),
        (VIT, {"objective": "mae", "head_depth": 0}),
        ({**U_NET, "dropout": 0.0}, {}),
        (U_NET, {"batch": 1, "contrast_queue": 0}),
        (U_NET, {"box": [3, 3, 3]}),
        (U_NET, {"mask_ratio": 1.0}),
    ],
)
def test_what_cannot_work_is_told_before_scans_are_prepared(
    scans: str, tmp_path: Path, network: dict[str, Any], chosen: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError):
        pretrain(unlabelled=scans, output=tmp_path / "run", network=network, plan=VIT_PLAN, pretraining=chosen)
    assert not list(tmp_path.rglob("*.npy"))
