"""The commands of ``python -m HybridMIMLib``, and the options that matter to each."""

from __future__ import annotations

from dataclasses import dataclass

PROGRAM = "python -m HybridMIMLib"


@dataclass(frozen=True)
class Command:
    """One command: what it does, which options matter to it, and where its defaults differ."""

    summary: str
    options: tuple[str, ...]
    example: str
    has_run: bool = True
    function: str = ""
    """Of the package; without: that of the command's own name."""


COMMANDS = {
    "prepare": Command(
        "check scans and prepare them for training",
        ("unlabelled", "labelled", "missing_labels", "resample_labels", "check", "output", "store", "plan",
         "network"),
        "prepare --unlabelled SCANS --output PREPARED",
    ),
    "pretrain": Command(
        "learn from scans without labels (HybridMIM, SimMIM, MAE, SimCLR)",
        ("unlabelled", "output", "store", "seed", "device", "plan", "network", "pretraining"),
        "pretrain --unlabelled SCANS --output PRETRAINED",
    ),
    "finetune": Command(
        "learn to segment from a few labelled scans",
        ("labelled", "missing_labels", "resample_labels", "weights", "partial_weights", "name", "output", "store",
         "seed", "device", "plan", "network", "finetuning", "inference"),
        "finetune --labelled CASES --weights PRETRAINED --output FINETUNED",
    ),
    "train": Command(
        "pre-train and then fine-tune, in one run",
        ("unlabelled", "labelled", "missing_labels", "resample_labels", "weights", "partial_weights", "name",
         "output", "store", "seed", "device", "plan", "network", "pretraining", "finetuning", "inference"),
        "train --unlabelled SCANS --labelled CASES --output TRAINED",
    ),
    "estimate": Command(
        "try a few steps of a training, and tell how long it will take, and how much memory and disk",
        ("of", "unlabelled", "labelled", "missing_labels", "resample_labels", "weights", "partial_weights", "output",
         "store", "seed", "device", "plan", "network", "pretraining", "finetuning", "inference"),
        "estimate --of train --unlabelled SCANS --labelled CASES",
    ),
    "segment": Command(
        "segment scans with a trained model",
        ("scans", "model", "check", "output", "device", "inference"),
        "segment --scans NEW --model FINETUNED/model --output SEGMENTED",
    ),
    "rank": Command(
        "rank scans without labels by how uncertain a model is: which to label next",
        ("scans", "model", "output", "device", "inference"),
        "rank --scans UNLABELLED --model FINETUNED/model --output RANKED",
    ),
    "evaluate": Command(
        "judge segmentations by references: Dice, distances, volumes, and a report to open in a browser",
        ("predictions", "references", "compare", "scans", "missing_labels", "resample_labels", "output", "seed",
         "evaluation"),
        "evaluate --predictions SEGMENTED --references CASES --output EVALUATED",
    ),
    "study": Command(
        "see whether pre-training helps on your scans: arms, seeds and labelled amounts, and a verdict",
        ("unlabelled", "labelled", "missing_labels", "resample_labels", "output", "store", "seed", "device", "study",
         "plan", "network", "pretraining", "finetuning", "inference", "evaluation"),
        "study --unlabelled SCANS --labelled CASES --study.preset quick --output STUDY",
    ),
    "demo": Command(
        "the whole way, on synthetic scans or on your folders",
        ("unlabelled", "labelled", "missing_labels", "resample_labels", "name", "output", "store", "seed", "device",
         "split", "plan", "network", "pretraining", "finetuning", "inference"),
        "demo --unlabelled SCANS --labelled CASES --output DEMO",
    ),
    "model pack": Command(
        "make a package of a model, to hand on", ("model", "output", "name", "license", "inference"),
        "model pack --model FINETUNED/model --output liver.zip --license CC-BY-4.0", has_run=False,
        function="pack_model",
    ),
    "model ensemble": Command(
        "make one model of several of a kind, such as the folds of a cross-validation: their scores are averaged",
        ("models", "output", "name", "license", "inference"),
        "model ensemble FOLD1/model FOLD2/model --output liver.zip", has_run=False, function="ensemble_models",
    ),
    "model add": Command(
        "keep a package that you were given, once all of it is checked", ("model",), "model add --model liver.zip",
        has_run=False, function="add_model",
    ),
    "model list": Command(
        "models that were added, and those that runs made", (), "model list", has_run=False, function="list_models"
    ),
    "model remove": Command(
        "delete a model that was added", ("model",), "model remove --model liver", has_run=False,
        function="remove_model",
    ),
    "serve": Command(
        "keep a model ready and segment on request: JSON lines on standard input and output", ("device",),
        "serve --device cuda --idle_seconds 300", has_run=False,
    ),
    "info": Command("versions, devices, and where runs are kept", (), "info", has_run=False),
}  # fmt: skip
