"""Errors are one sentence on the cause and one on the cure, in one line."""

from __future__ import annotations

from HybridMIMLib.errors import HybridMIMError, LabelError, ScanError


def test_an_error_is_one_line_with_its_cure() -> None:
    error = HybridMIMError("a.nii:\n  cannot be read.", cure="Copy it\nagain.")
    assert str(error) == "a.nii: cannot be read. Copy it again."


def test_a_wrong_label_map_is_not_taken_for_a_bad_scan() -> None:
    assert not issubclass(LabelError, ScanError)
