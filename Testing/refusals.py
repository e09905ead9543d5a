"""How settings are refused."""

from __future__ import annotations

from typing import Any

import pytest

from HybridMIMLib.config import from_dict
from HybridMIMLib.errors import SettingsError


def refused(content: Any) -> str:
    """The one line that these settings end in."""
    with pytest.raises(SettingsError) as caught:
        from_dict(content)
    text = str(caught.value)
    assert "\n" not in text and caught.value.cure.endswith(".")
    return text
