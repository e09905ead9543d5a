"""What was measured of the heads, in words."""

from __future__ import annotations

from HybridMIMLib.measures import in_words


def test_accuracies_stand_beside_their_chance() -> None:
    measures = {"number_accuracy": 0.691, "number_chance": 0.25, "error_to_patch_mean": 0.7345}
    assert in_words(measures) == [
        "how many patches of a region are hidden: 69 % right (25 % by guessing)",
        "hidden voxels: squared error 0.73 of what the true mean of each patch would give",
    ]
    assert in_words({}) == []


def test_a_head_of_another_version_is_named_and_one_without_a_floor_left_out() -> None:
    assert in_words({"number_accuracy": 0.5}) == []
    assert in_words({"turn_accuracy": 0.5, "turn_chance": 0.25}) == ["turn: 50 % right (25 % by guessing)"]
