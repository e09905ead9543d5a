"""How a fine-tuning ends: early, for want of a better validation, or because of what it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import TINY, write_blobs

from HybridMIMLib import finetune, pretrain
from HybridMIMLib.config import Run, make_run
from HybridMIMLib.data.layouts import open_dataset
from HybridMIMLib.data.scans import read_scan, write_nifti
from HybridMIMLib.errors import DataError, LabelError, ModelError, RunError, SettingsError
from HybridMIMLib.events import EventReader, Phase
from HybridMIMLib.finetuning import precision
from HybridMIMLib.finetuning.run import _Finetuning, check_labelled
from HybridMIMLib.inference.predictor import Prediction, Predictor, make_predictor
from HybridMIMLib.model_package import load_model
from HybridMIMLib.networks import SegmentationNetwork, make_segmentation_network
from HybridMIMLib.settings.inference import InferenceSettings
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.training import load_checkpoint
from HybridMIMLib.weights import load_weights


def tuned(**changes: Any) -> dict[str, Any]:
    return {**TINY, "finetuning": {**TINY["finetuning"], **changes}}


def said(run: Path) -> list[str]:
    return [event.get("message", "") for event in EventReader(run / "events.jsonl").read()]


# --- early ending -------------------------------------------------------------------------------------------

IMPATIENT = tuned(steps=40, validate_every=2, patience=3, checkpoint_every=50)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: dict[int, float]) -> list[int]:
    """Let the validations have these mean Dice, by step; returns the steps at which they were asked for."""
    asked: list[int] = []
    now = {"step": 0}
    validate = _Finetuning.validate

    def validating(self: _Finetuning, step: int) -> dict[str, float]:
        asked.append(step)
        now["step"] = step
        return validate(self, step)

    monkeypatch.setattr(_Finetuning, "validate", validating)
    monkeypatch.setattr(
        _Finetuning, "_dice", lambda self, facts: dict.fromkeys(("Bright", "Dark"), scores.get(now["step"], 0.1))
    )
    return asked


def test_it_ends_when_validations_get_no_better_and_keeps_the_best(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, {2: 0.3, 4: 0.2, 6: 0.5, 8: 0.5, 10: float("nan"), 12: 0.4})
    call = {"labelled": str(blobs / "labelled"), "output": str(tmp_path), **IMPATIENT}
    result = finetune(**call)
    assert asked == [2, 4, 6, 8, 10, 12], "an equal score is no better one"
    assert (result["step"], result["steps"], result["ended_early"]) == (6, 12, True)
    assert result["validation"]["mean"] == 0.5 and result["seconds"] > 0
    package = load_model(Path(result["model"]))
    kept = load_weights(tmp_path / "best.safetensors")[0]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in package.network.state_dict().items())
    for name in ("step", "steps", "ended_early", "seconds"):
        assert package.provenance[name] == result[name]
    assert any(
        "ended early, after 12 of 40 steps" in text and "best at step 6 (0.500)" in text for text in said(tmp_path)
    )
    # Continued, it does nothing more, also where only the model is missing.
    assert finetune(**call) == result
    (tmp_path / "result.json").unlink()
    assert finetune(**call) == result and asked == [2, 4, 6, 8, 10, 12]


def test_without_patience_it_goes_to_the_last_step(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, {})
    result = finetune(labelled=str(blobs / "labelled"), output=str(tmp_path), **tuned(steps=8, validate_every=1))
    assert asked == list(range(1, 9)) and (result["steps"], result["ended_early"]) == (8, False)


@pytest.mark.parametrize("killed_at", [6, 7, 12])
def test_killed_on_the_way_it_ends_early_at_the_same_step(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    scripted(monkeypatch, {2: 0.3, 4: 0.2, 6: 0.5})
    settings = tuned(steps=40, validate_every=2, patience=3, checkpoint_every=3)
    losses = _Finetuning.losses

    def killed(self: _Finetuning, step: int) -> dict[str, torch.Tensor]:
        if step == killed_at:
            raise KeyboardInterrupt
        return losses(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(_Finetuning, "losses", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(labelled=str(blobs / "labelled"), output=str(tmp_path), **settings)
    result = finetune(labelled=str(blobs / "labelled"), output=str(tmp_path), **settings)
    assert (result["step"], result["steps"], result["ended_early"]) == (6, 12, True)


# --- what goes wrong on the way -----------------------------------------------------------------------------


def test_a_loss_that_is_no_number_names_the_cases_of_its_step(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Phase, "due", lambda phase, step: False)
    losses, names = _Finetuning.losses, []

    def spoilt(self: _Finetuning, step: int) -> dict[str, torch.Tensor]:
        found = losses(self, step)
        if step != 4:
            return found
        names.extend(self.sampler.batch(step, 2, torch.device("cpu")).cases)
        return {name: loss * float("nan") for name, loss in found.items()}

    monkeypatch.setattr(_Finetuning, "losses", spoilt)
    with pytest.raises(RunError) as caught:
        finetune(labelled=str(blobs / "labelled"), output=str(tmp_path), **tuned(steps=20, checkpoint_every=3))
    assert len(set(names)) == 2
    text = f"finetune, step 4: the loss or its gradient is not finite; its crops are of {', '.join(names)}; what was"
    assert text in str(caught.value) and "up to step 3 is kept" in str(caught.value)
    assert "Look at these scans" in caught.value.cure
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert kept["step"] == 3 and all(bool(tensor.isfinite().all()) for tensor in kept["module"].values())


def test_what_is_kept_of_a_run_that_went_wrong_starts_another(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = _Finetuning.losses

    def spoilt(self: _Finetuning, step: int) -> dict[str, torch.Tensor]:
        return {name: loss * (float("nan") if step == 4 else 1) for name, loss in losses(self, step).items()}

    call: dict[str, Any] = {"labelled": str(blobs / "labelled"), **tuned(checkpoint_every=3)}
    with monkeypatch.context() as patch:
        patch.setattr(_Finetuning, "losses", spoilt)
        with pytest.raises(RunError, match="that file as --weights"):
            finetune(**call, output=str(tmp_path / "one"))
    kept = tmp_path / "one" / "checkpoint.pt"
    call = {"labelled": str(blobs / "labelled"), **tuned(learning_rate=1e-12, steps=1)}
    result = finetune(**call, weights=str(kept), output=str(tmp_path / "two"))
    assert "100 % of the encoder's numbers, 100 % of the decoder's" in result["loaded"]
    own = load_model(Path(result["model"])).network.state_dict()
    before = load_checkpoint(kept)["module"]
    assert all(torch.allclose(own[name], before[name]) for name in own if name.startswith("backbone."))


def test_a_network_that_a_validation_took_to_the_cpu_comes_back(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a GPU is full: the predictor has another device then, and the network is there."""
    predict, brought = Predictor.predict, []

    def elsewhere(self: Predictor, *args: Any) -> Prediction:
        found = predict(self, *args)
        self.engine.device = torch.device("meta")
        return found

    def bringing(self: SegmentationNetwork, device: torch.device) -> SegmentationNetwork:
        brought.append(str(device))
        return self

    monkeypatch.setattr(Predictor, "predict", elsewhere)
    monkeypatch.setattr(SegmentationNetwork, "to", bringing)
    finetune(labelled=str(blobs / "labelled"), output=str(tmp_path), device="cpu", **tuned(steps=1))
    assert brought == ["cpu"] * 3, "for the first predictor, for the training, and after the validation"
    assert any("validated on the CPU" in text for text in said(tmp_path))


def test_the_validation_cleans_up_and_flips_as_users_will(blobs: Path, tmp_path: Path) -> None:
    settings = tuned(steps=12, learning_rate=5e-3, flip_axes=[2, 1], batch=4)
    call: dict[str, Any] = {"labelled": str(blobs / "labelled"), **settings}
    plain = finetune(**call, output=str(tmp_path / "plain"))["validation"]
    assert plain["Bright"] > 0.1
    emptied = {"smallest_ml": ["Bright=1000"], "engine": "torch"}
    assert finetune(**call, inference=emptied, output=str(tmp_path / "emptied"))["validation"]["Bright"] == 0
    best = InferenceSettings(preset="best", uncertainty=True)
    made: list[Predictor] = []
    with pytest.MonkeyPatch.context() as patch:
        keep = _Finetuning._predictor
        patch.setattr(_Finetuning, "_predictor", lambda self: made.append(keep(self)) or made[-1])
        finetune(**call, inference=best, output=str(tmp_path / "best"))
    package = load_model(tmp_path / "best" / "model")
    assert made[0].flips == make_predictor(package, best, "cpu").flips == (1, 2)


def test_a_class_that_no_validation_scan_has_is_not_said_to_be_lost(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 4, labelled=True)
    (cases / "classes.json").write_text('{"1": "Bright", "2": "Dark", "3": "Ghost"}')
    # Begun so that everything is everywhere: each class is found, the ghost where it is not.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Finetuning, "_dice", lambda self, facts: {"Bright": 0.5, "Dark": 0.0, "Ghost": 0.0})
        warnings = finetune(labelled=str(cases), output=str(tmp_path / "run"), **TINY)["warnings"]
    assert [text.split()[0] for text in warnings if "was not found" in text] == ["Dark"]


def test_patience_without_anybody_held_out_is_refused(blobs: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"training": [f"blob_{n}" for n in range(5)], "validation": []}))
    settings = tuned(validation_cases=-1, split=str(file), patience=2)
    with pytest.raises(SettingsError, match=r"split\.json holds out no scan .* Set finetuning.patience to 0"):
        finetune(labelled=str(blobs / "labelled"), output=str(tmp_path / "run"), **settings)


def test_what_a_run_wrote_down_and_somebody_spoilt_is_named(blobs: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"labelled": str(blobs / "labelled"), "output": str(tmp_path), **tuned(steps=1)}
    finetune(**call)
    (tmp_path / "result.json").unlink()
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(RunError, match=r"split\.json: is damaged .* Choose another --output"):
        finetune(**call)


# --- what it is given ---------------------------------------------------------------------------------------


def two_channels(cases: Path) -> None:
    """Give every case a second channel, as nnU-Net's layout has them."""
    (cases / "images").rename(cases / "imagesTr")
    (cases / "labels").rename(cases / "labelsTr")
    for file in sorted((cases / "imagesTr").glob("*.nii.gz")):
        scan = read_scan(file)
        for channel in (0, 1):
            name = file.name.replace(".nii.gz", f"_{channel:04d}.nii.gz")
            write_nifti(file.parent / name, (scan.array[0] * (channel + 1)).astype(np.float32), scan.grid)
        file.unlink()
    (cases / "classes.json").unlink()
    content = {
        "channel_names": {"0": "one", "1": "two"},
        "labels": {"background": 0, "Bright": 1, "Dark": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (cases / "dataset.json").write_text(json.dumps(content))


def test_weights_of_one_channel_start_a_network_of_two_and_it_is_told(blobs: Path, tmp_path: Path) -> None:
    weights = pretrain(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "pre"), **TINY)["weights"]
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    two_channels(cases)
    result = finetune(labelled=str(cases), weights=weights, output=str(tmp_path / "run"), **TINY)
    assert "1 of them reshaped" in result["loaded"]
    assert any("reshaped" in text and "channel" in text for text in said(tmp_path / "run"))
    assert load_model(Path(result["model"])).plan.channels == 2


def test_weights_that_fit_nothing_name_the_cure(blobs: Path, tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3, 4, 1, 1, 1)}, tmp_path / "w.safetensors")
    torch.save({"conv.weight": torch.zeros(3, 4, 1, 1, 1)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="Give a file that a HybridMIM run wrote"):
        finetune(
            labelled=str(blobs / "labelled"),
            weights=str(tmp_path / "w.safetensors"),
            output=str(tmp_path / "a"),
            **TINY,
        )
    with pytest.raises(ModelError, match="none of its 1 tensors fits the encoder.*Choose the network"):
        finetune(labelled=str(blobs / "labelled"), weights=str(tmp_path / "w.pt"), output=str(tmp_path / "b"), **TINY)


def test_a_checkpoint_of_another_number_of_channels_is_refused(blobs: Path, tmp_path: Path) -> None:
    finetune(labelled=str(blobs / "labelled"), output=str(tmp_path), **TINY)
    (tmp_path / "result.json").unlink()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other = make_segmentation_network(
        NetworkSettings(features=[4, 8], strides=[[1] * 3, [2] * 3]), 4, 2, (16, 16, 16)
    )
    state["module"] = other.state_dict()
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match=r"checkpoint\.pt: does not belong to this run .* Choose another folder"):
        finetune(labelled=str(blobs / "labelled"), output=str(tmp_path), **TINY)


def test_a_labelled_case_whose_scan_is_missing_is_named(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 4, labelled=True)
    (cases / "images" / "blob_2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"blob_2.* (Add|Restore)"):
        finetune(labelled=str(cases), output=str(tmp_path / "run"), **TINY)
    # A list names the file itself.
    rows = ["image,label", *(f"images/blob_{n}.nii.gz,labels/blob_{n}.nii.gz" for n in range(4))]
    (cases / "cases.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"blob_2\.nii\.gz"):
        finetune(labelled=str(cases / "cases.csv"), output=str(tmp_path / "run"), **TINY)


def test_scans_with_other_channels_than_the_rest_are_named(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    two_channels(cases)
    rows = ["image_1,image_2,label"]
    for n in range(3):
        second = f"imagesTr/blob_{n}_0001.nii.gz" if n != 1 else ""
        rows.append(f"imagesTr/blob_{n}_0000.nii.gz,{second},labelsTr/blob_{n}.nii.gz")
    (cases / "cases.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="blob_1"):
        finetune(labelled=str(cases / "cases.csv"), output=str(tmp_path / "run"), **TINY)


def test_a_label_that_no_class_is_named_for_is_refused_with_the_cure(tmp_path: Path) -> None:
    cases = write_blobs(tmp_path / "cases", 3, labelled=True)
    (cases / "classes.json").write_text('{"1": "Bright"}')
    with pytest.raises(LabelError, match=r"holds label 2, but only \[1\] are named. Add it to .*classes.json"):
        finetune(labelled=str(cases), output=str(tmp_path / "run"), **TINY)


def test_a_precision_that_cannot_be_is_told_before_a_pre_training(
    blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "half_pays", lambda device: False)
    run: Run = make_run(None, {"labelled": str(blobs / "labelled"), "device": "cpu", **tuned(precision="half")})
    with pytest.raises(SettingsError, match="gains nothing by bfloat16"):
        check_labelled(run, open_dataset(blobs / "labelled", labelled=True))
