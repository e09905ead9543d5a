"""The section plan."""

from __future__ import annotations

import pytest
from refusals import refused


@pytest.mark.parametrize(
    "sizes",
    [{"patch": [16, 16, 16], "region": [24, 32, 32]}, {"region": [32, 32, 32], "crop": [96, 96, 48]}],
)
def test_sizes_that_do_not_divide_are_refused(sizes: dict[str, list[int]]) -> None:
    assert "is not a multiple of" in refused({"plan": sizes})
