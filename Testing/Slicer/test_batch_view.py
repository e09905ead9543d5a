"""The table of a batch in a real widget; installing in the stand-in, when the user declines or is offline."""

from __future__ import annotations

import gc
import time

import pytest
import qt
from SlicerHost import Host, dialogs, packages
from SlicerHost.packages import Call

from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.slicer_side import environment
from HybridMIMLib.slicer_side.batch import BatchTable, CaseRow
from HybridMIMLib.slicer_side.environment import install_packages
from HybridMIMLib.slicer_side.installed import log_lines


def listed(count: int) -> dict:
    return {
        "kind": "cases",
        "cases": [{"name": f"c{n}", "scan": f"/s/{n}", "state": "waiting"} for n in range(count)],
    }


def texts(widget) -> list[list[str]]:
    return [[widget.item(row, column).text() for column in range(3)] for row in range(widget.rowCount)]


def test_rows_follow_the_batch(host: Host) -> None:
    from HybridMIMLib.slicer_side.batch_view import BatchView

    widget, opened = qt.QTableWidget(), []
    view, table = BatchView(widget, opened.append), BatchTable()
    view.show(table)
    assert widget.rowCount == 0
    table.take(listed(3))
    view.show(table)
    table.take({"kind": "case", "case": "c1", "state": "skipped", "message": "damaged"})
    view.show(table)
    assert texts(widget) == [["c0", "waiting", ""], ["c1", "skipped", "damaged"], ["c2", "waiting", ""]]
    widget.cellDoubleClicked.emit(1, 0)
    assert opened == [CaseRow("c1", "/s/1", "skipped", "damaged")]
    table.take(listed(1))
    view.show(table)
    assert texts(widget) == [["c0", "waiting", ""]]
    other = BatchTable()
    other.take(listed(2))
    view.show(other)
    assert widget.rowCount == 2


def test_very_many_rows_come_piece_by_piece_and_the_one_at_work_first(host: Host) -> None:
    from HybridMIMLib.slicer_side.batch_view import BatchView

    widget, table = qt.QTableWidget(), BatchTable()
    view = BatchView(widget)
    table.take(listed(1000))
    view.show(table)
    table.take({"kind": "case", "case": "c900", "state": "working"})
    longest = 0.0
    # What Python collects may be the rubbish of all tests before.
    gc.disable()
    try:
        for _ in range(20):
            began = time.thread_time()
            view.show(table)
            longest = max(longest, time.thread_time() - began)
            assert widget.item(900, 1).text() == "working"
            if view.is_complete:
                break
    finally:
        gc.enable()
    assert view.is_complete and texts(widget)[999] == ["c999", "waiting", ""]
    assert longest < 0.2


@pytest.fixture
def nothing_is_asked(monkeypatch: pytest.MonkeyPatch, workspace: object) -> None:
    packages.pretend_missing("monai")


def test_a_user_who_declines_is_told_how_to_go_on(host: Host, nothing_is_asked: None) -> None:
    dialogs.announce("message", "Cancel")
    with pytest.raises(HybridMIMError, match="missing: monai>=1.5. Press the button again and agree"):
        install_packages(["monai>=1.5"])
    assert "about 15 MB" in dialogs.shown()[-1] and "monai>=1.5" in dialogs.shown()[-1]
    assert packages.calls() == [] and "declined" in log_lines()[-1]


def test_without_a_connection_it_says_so(host: Host, nothing_is_asked: None) -> None:
    dialogs.announce("message", "OK")
    packages.announce(RuntimeError("[Errno -3] Temporary failure in name resolution"))
    with pytest.raises(HybridMIMError, match="no connection to the internet. Connect this computer"):
        install_packages(["monai>=1.5"])
    [call] = packages.calls()
    assert isinstance(call, Call) and call.requester == "HybridMIM" and call.constraints
    assert "failed: The packages could not be downloaded" in log_lines()[-1]


def test_installed_it_goes_on(host: Host, nothing_is_asked: None) -> None:
    dialogs.announce("message", "OK")
    packages.announce("installed")
    install_packages(["monai>=1.5"])
    assert packages.calls()[0].requirements == ("monai>=1.5",)
    assert environment.missing_packages() == []
