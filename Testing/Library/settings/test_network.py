"""The section network."""

from __future__ import annotations

from typing import Any

import pytest
from refusals import refused

from HybridMIMLib.config import from_dict


@pytest.mark.parametrize("name", ["features", "strides"])
@pytest.mark.parametrize("architecture", ["swinunetr", "unetr", "segresnet"])
def test_a_network_that_is_no_u_net_has_no_stages_to_set(architecture: str, name: str) -> None:
    given = {"features": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]]}[name]
    assert f"network.{name}" in refused({"network": {"architecture": architecture, name: given}})


@pytest.mark.parametrize(
    "strides",
    [
        [[1, 1, 1]],
        [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        [[2, 2, 2], [2, 2, 2]],
        [[1, 1, 1], [2, 2]],
        [[1, 1, 1], [2, 2, 3]],
        [[1, 1, 1], [2, 2, 0]],
        [1, 2],
        "222",
    ],
)
def test_strides_that_fit_no_stages_are_refused(strides: Any) -> None:
    assert "network.strides" in refused({"network": {"features": [4, 8], "strides": strides}})


def test_strides_are_kept_as_they_are() -> None:
    for strides in ([[1, 1, 1], [2, 2, 1]], [[1, 1, 1], [1, 1, 1]]):
        assert from_dict({"network": {"features": [4, 8], "strides": strides}}).network.strides == strides
