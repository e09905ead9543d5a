"""The section pretraining."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from refusals import refused

from HybridMIMLib.config import Run, from_dict, to_dict


def test_all_loss_weights_zero_is_refused() -> None:
    names = [name for name in to_dict(Run())["pretraining"] if name.endswith("_weight")]
    assert "weights" in refused({"pretraining": dict.fromkeys(names, 0.0)})
    assert "weights" in refused({"pretraining": {names[0]: -1.0}})
    # They weigh the losses of one objective; another may do without.
    others = {"pretraining": {"objective": "simmim", **dict.fromkeys(names, 0.0)}}
    assert from_dict(others).pretraining.partial_weight == 0


@pytest.mark.parametrize("share", [0.4, 1, [0.3, 0.6], (0.4, 0.4), [np.float32(0.25), 1]])
@pytest.mark.parametrize("name", ["mask_ratio", "region_ratio"])
def test_a_ratio_is_a_number_or_a_range(name: str, share: Any) -> None:
    value = getattr(from_dict({"pretraining": {name: share}}).pretraining, name)
    assert value == (list(share) if isinstance(share, (list, tuple)) else share)
    assert type(value) is float or all(type(end) is float for end in value)
