"""What the heads of an objective were measured to be worth, in words."""

from __future__ import annotations

from collections.abc import Mapping

_QUESTIONS = {
    "number": "how many patches of a region are hidden",
    "location": "which patches are hidden",
    "contrast": "which crop is the same one, looked at again",
}


def in_words(measures: Mapping[str, float]) -> list[str]:
    """A sentence for each thing that was measured: ``NAME_accuracy`` beside its ``NAME_chance``, and the error."""
    sentences = []
    for name, value in measures.items():
        kind = name.removesuffix("_accuracy")
        if kind != name and f"{kind}_chance" in measures:
            chance = measures[f"{kind}_chance"]
            question = _QUESTIONS.get(kind, kind)
            sentences.append(f"{question}: {100 * value:.0f} % right ({100 * chance:.0f} % by guessing)")
    if (ratio := measures.get("error_to_patch_mean")) is not None:
        sentences.append(f"hidden voxels: squared error {ratio:.2f} of what the true mean of each patch would give")
    return sentences
