"""HybridMIM: self-supervised pre-training and few-label segmentation of 3D medical scans.

    >>> from HybridMIMLib import pretrain, finetune, segment
    >>> pretrain(unlabelled="scans", output="pretrained")                          # doctest: +SKIP
    >>> finetune(labelled="cases", weights="pretrained", output="finetuned")       # doctest: +SKIP
    >>> segment(scans="new", model="finetuned/model", output="segmented")          # doctest: +SKIP

``train`` does the first two in one run.

Functions are loaded when they are first used: importing this package loads neither torch nor monai.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "prepare": "HybridMIMLib.data.prepare",
    "pretrain": "HybridMIMLib.pretraining.run",
    "finetune": "HybridMIMLib.finetuning.run",
    "train": "HybridMIMLib.stages",
    "estimate": "HybridMIMLib.estimating",
    "segment": "HybridMIMLib.inference.run",
    "rank": "HybridMIMLib.inference.ranking",
    "serve": "HybridMIMLib.worker",
    "evaluate": "HybridMIMLib.evaluation.run",
    "study": "HybridMIMLib.studies.run",
    "demo": "HybridMIMLib.demonstration",
    "info": "HybridMIMLib.information",
    "pack_model": "HybridMIMLib.models",
    "ensemble_models": "HybridMIMLib.models",
    "add_model": "HybridMIMLib.models",
    "list_models": "HybridMIMLib.models",
    "remove_model": "HybridMIMLib.models",
    "Run": "HybridMIMLib.config",
    "HybridMIMError": "HybridMIMLib.errors",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
