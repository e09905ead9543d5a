"""Settings by name: presets (the plan of a kind of scan) and recipes (a whole run for a public data set).

They are the YAML files in ``presets/``, each value with its source. ``--config NAME`` takes them as it takes a file;
several ``--config`` are stacked, later ones win, and options win over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from HybridMIMLib.config import user_path
from HybridMIMLib.errors import SettingsError

PRESETS = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class Preset:
    """Settings that have a name.

    Attributes:
        name: what ``--config`` takes.
        kind: ``"preset"`` or ``"recipe"``.
        summary: what it is for.
        path: the YAML file.
    """

    name: str
    kind: str
    summary: str
    path: Path


def list_presets() -> list[Preset]:
    """All of them, presets first, by name."""
    found = [_describe(path) for path in PRESETS.glob("*.yaml")]
    return sorted(found, key=lambda preset: (preset.kind, preset.name))


def config_path(text: str) -> Path:
    """The file that ``--config TEXT`` means: a file, else the preset or recipe of that name, capitals or not.

    Raises:
        SettingsError: there is neither; the known names are listed.
    """
    path = user_path(text)
    if path.is_file():
        return path
    known = {preset.name: preset for preset in list_presets()}
    if text.lower() not in known:
        names = {
            kind: ", ".join(name for name, one in known.items() if one.kind == kind) for kind in ("preset", "recipe")
        }
        raise SettingsError(
            f"--config {text}: there is no such file, preset or recipe",
            cure=f"Give a YAML file, a preset ({names['preset']}) or a recipe ({names['recipe']}).",
        )
    return known[text.lower()].path


def _describe(path: Path) -> Preset:
    """From the first line: ``# Recipe: what it is for``."""
    with open(path, encoding="utf-8") as handle:
        kind, _, summary = handle.readline().lstrip("# ").strip().partition(": ")
    return Preset(path.stem, kind.lower(), summary, path)
