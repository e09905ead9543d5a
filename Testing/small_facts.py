"""Cases for tests of who is trained on: what was found in them, without any file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from HybridMIMLib.data.classes import LabelClass, default_color
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.survey import CaseFacts

CLASSES = tuple(LabelClass(label, name, default_color(label)) for label, name in ((1, "One"), (2, "Two")))


def facts(
    name: str, labels: Collection[int] = (1, 2), patient: str = "", annotated: Collection[int] | None = None
) -> CaseFacts:
    case = Case(name, (Path(f"{name}.nii"),), Path(f"{name}_seg.nii"))
    looked = None if annotated is None else frozenset(annotated)
    return CaseFacts(case, name, 1, (9, 9, 9), (1.0, 1.0, 1.0), 0.0, 1.0, frozenset(labels), patient=patient,
                     annotated=looked)  # fmt: skip
