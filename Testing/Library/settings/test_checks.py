"""What sections ask of their values, alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from HybridMIMLib.errors import SettingsError
from HybridMIMLib.settings.checks import require_multiple, require_named_amount, require_share


@pytest.mark.parametrize("text", ["liver=20", "left kidney=0.5", "a=b=1e3", "all= 2"])
def test_an_amount_of_a_class(text: str) -> None:
    require_named_amount("inference.smallest_ml", text, "CLASS=ML, such as liver=20")


@pytest.mark.parametrize("text", ["", "liver", "=3", " =3", "liver=", "liver=0", "liver=-1", "liver=nan", "l=inf"])
def test_what_is_no_amount_of_a_class_is_named(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        require_named_amount("inference.smallest_ml", text, "CLASS=ML, such as liver=20")
    assert str(caught.value) == f"inference.smallest_ml has {text!r}. Give CLASS=ML, such as liver=20."


def test_the_nearest_multiples_are_named() -> None:
    with pytest.raises(SettingsError, match=r"is \[32, 32, 16\] or \[48, 32, 32\]"):
        require_multiple("crop", [40, 32, 20], "region", [16, 32, 16])
    with pytest.raises(SettingsError, match=r"The nearest for crop is \[16, 16, 16\]\."):
        require_multiple("crop", [8, 16, 16], "region", [16, 16, 16])
    require_multiple("crop", [32, 32, 32], "region", [16, 32, 8])


@pytest.mark.parametrize(("ask", "is_fine"), [(lambda: require_share("x", 1), True),
                                              (lambda: require_share("x", 1, below_one=True), False),
                                              (lambda: require_share("x", -0.1), False)])  # fmt: skip
def test_the_ends_of_a_share(ask: Callable[[], None], is_fine: bool) -> None:
    if is_fine:
        ask()
        return
    with pytest.raises(SettingsError, match="Give a share from 0 to"):
        ask()
