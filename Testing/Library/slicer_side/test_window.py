"""Waiting loops and Slicer's window."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import slicer

from HybridMIMLib.slicer_side.window import let_window_live


def test_a_window_answers_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    monkeypatch.setattr(slicer, "app", SimpleNamespace(processEvents=lambda: looks.append("look")), raising=False)
    let_window_live()
    assert looks == ["look"]


def test_without_a_window_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(slicer, "app", raising=False)
    let_window_live()
