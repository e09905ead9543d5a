"""``docs/README.md`` of a model package: what it finds, how it was made, how it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from HybridMIMLib.bundle import why_not_in_monai
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.settings.network import NetworkSettings


def readme(
    name: str,
    settings: NetworkSettings,
    plan: Plan,
    classes: Sequence[LabelClass],
    provenance: Mapping[str, Any],
    license_text: str,
    *,
    clean_up: bool = False,
    members: int = 1,
) -> str:
    """The text, as Markdown; see :class:`~HybridMIMLib.model_package.ModelPackage` for the arguments.

    ``members`` is the number of networks whose scores are averaged.
    """
    first = license_text.strip().splitlines()[0]
    lines = [
        f"# {_plain(name)}",
        "",
        "A model that segments 3D scans. **For research, not for clinical use.**",
        "",
        "## What it finds",
        "",
        "| label | class | terminology |",
        "|---|---|---|",
        *(f"| {one.label} | {_plain(one.name)} | {_plain(_code(one.terminology))} |" for one in classes),
        "",
        f"It takes scans of {plan.channels} channel(s), brings them to {_times(plan.spacing)} mm along right, "
        f"anterior, superior, and looks at {_times(plan.crop)} voxels at a time. {_intensities(plan)}",
        "",
        "## How it was made",
        "",
        f"- network: {settings.architecture}, size {settings.size}",
        *([f"- an ensemble of {members} networks of this kind: their scores are averaged"] if members > 1 else []),
        *(f"- {words}: {_plain(str(provenance[key]))}" for key, words in _FACTS.items() if provenance.get(key)),
        *_scores(provenance.get("validation_dice"), provenance.get("folds")),
        "",
        "More is in `configs/metadata.json` under `hybridmim`.",
        "",
        "## How to run it",
        "",
        "With HybridMIM:",
        "",
        "    python -m HybridMIMLib segment --model THIS --scans SCANS --output SEGMENTED",
        "",
        "where THIS is this folder, or the .zip that it came in.",
        "",
        *_in_monai(settings, plan, clean_up),
        "",
        "## Licence",
        "",
        f"{_plain(first)} (the whole text is in `LICENSE`)",
    ]
    return "\n".join(lines) + "\n"


_FACTS = {
    "trained": "trained",
    "labelled_scans": "labelled scans trained on",
    "validation_scans": "scans held out",
    "pretrained": "began",
    "seed": "seed",
}


def _scores(dice: Any, folds: Any) -> list[str]:
    known = dice.items() if isinstance(dice, Mapping) else ()
    scores = [
        f"{_plain(str(name))} {value:.3f}" for name, value in known if isinstance(value, float) and value == value
    ]
    # Each network was measured on scans that it had not seen; the ensemble has seen all of them.
    where = (
        f"of its networks, in a cross-validation of {folds} folds"
        if isinstance(folds, int)
        else "on the scans held out"
    )
    return [f"- Dice {where}: {', '.join(scores)}"] if scores else []


def _in_monai(settings: NetworkSettings, plan: Plan, clean_up: bool) -> list[str]:
    if why := why_not_in_monai(settings):
        return [f"It does not run in plain MONAI, and has no `configs/inference.json`: {why}."]
    several = (
        []
        if plan.channels == 1
        else [
            "",
            "A scan of several channels is one 4D NIfTI file with the channels as its last axis. Where each is a "
            "file of its own, name them in their order:",
            "",
            "    --datalist \"[['a_0000.nii.gz', 'a_0001.nii.gz'], ['b_0000.nii.gz', 'b_0001.nii.gz']]\"",
        ]
    )
    left_out = "windows that hold nothing but air are computed too" + (
        ", and label maps are not cleaned up as HybridMIM does with this model" if clean_up else ""
    )
    return [
        "With plain MONAI, from this folder:",
        "",
        "    pip install monai fire pytorch-ignite nibabel safetensors scipy einops",
        "    python -m monai.bundle run --config_file configs/inference.json --bundle_root . "
        "--dataset_dir SCANS --output_dir SEGMENTED",
        "",
        "SCANS holds `.nii` or `.nii.gz` files; label maps get `_seg` behind the name of the scan. MONAI evaluates "
        "the expressions of `configs/inference.json`, which are Python: do so only if you trust who made this model. "
        f"Otherwise than with HybridMIM, {left_out}.",
        *several,
    ]


def _intensities(plan: Plan) -> str:
    if plan.normalisation == "window":
        return f"Intensities from {plan.window[0]:g} to {plan.window[1]:g} are told apart."
    return "Intensities are scaled scan by scan."


def _code(terminology: str | None) -> str:
    """The type in a Slicer terminology entry, such as ``Liver (SCT 10200004)``; the category comes first."""
    codes = [part.split("^") for part in (terminology or "").split("~") if part.count("^") == 2]
    scheme, code, meaning = codes[1] if len(codes) > 1 else ("", "", "")
    return f"{meaning} ({scheme} {code})" if code else ""


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _plain(text: str) -> str:
    """Text of one line that means nothing else in Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
