"""What tests of modules need of pytest; a ``conftest.py`` imports it from here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from SlicerHost import dialogs, packages, problems
from SlicerHost.host import Host, start

# At once, so that test files can import qt, and before anything else makes a QApplication that is not Slicer's.
start().close()


@pytest.fixture
def host() -> Iterator[Host]:
    """A Slicer that just started; a problem that the test does not take fails it."""
    for part in (dialogs, packages):
        part.forget()
    problems.take()
    yield start()
    # The test may have quit and started again.
    start().close()
    left = [*problems.take(), *dialogs.unanswered(), *packages.unanswered()]
    assert left == []
