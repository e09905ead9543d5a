"""The pages that follow from the code: every command with its settings, and the glossary: ``make docs``.

They are kept in the repository, so that they can be read where it is hosted; a test fails when they are stale.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from HybridMIMLib.commands import COMMANDS, PROGRAM
from HybridMIMLib.config import Run
from HybridMIMLib.glossary import CHAPTERS

FOLDER = Path(__file__).resolve().parent / "Documentation"
_MADE = "<!-- Made by `make docs` from {source}: change that, not this page. -->"
_WORDS: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def pages() -> dict[str, str]:
    """The pages by the names of their files."""
    return {"commands.md": _commands_page(), "glossary.md": _glossary_page()}


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"Resources/Documentation/{name}")


def _commands_page() -> str:
    lines = [
        _MADE.format(source="config.py, settings/ and commands.py in HybridMIMLib"),
        "# Commands and settings",
        f"Each is called as `{PROGRAM} COMMAND --setting value`. Settings can be kept in a file (`--config FILE`, "
        "YAML); every run writes all of its own as `run.yaml`, which other commands take back. Each command is a "
        "function of the package too, with the same settings: "
        '`pretrain(unlabelled="SCANS", pretraining={"steps": 100})`. Words are explained in the '
        "[glossary](glossary.md).",
        "## Commands",
        *_commands(),
        "## Settings",
    ]
    hints = get_type_hints(Run)
    whole = dataclasses.fields(Run)
    lines.append(_table([one for one in whole if not dataclasses.is_dataclass(hints[one.name])], hints, ""))
    for one in whole:
        kind = hints[one.name]
        if dataclasses.is_dataclass(kind):
            lines += [f"### {one.name}: {one.metadata['help']}", f"For {_users(one.name)}."]
            lines.append(_table(list(dataclasses.fields(kind)), get_type_hints(kind), f"{one.name}."))
    return "\n\n".join(lines) + "\n"


def _commands() -> list[str]:
    head = "| command | what it does | in Python | example |\n|---|---|---|---|\n"
    rows = [
        f"| `{name}` | {_cell(about.summary)} | `{about.function or name}` | `{_cell(about.example)}` |"
        for name, about in COMMANDS.items()
    ]
    return [head + "\n".join(rows)]


def _users(section: str) -> str:
    return ", ".join(f"`{name}`" for name, about in COMMANDS.items() if section in about.options)


def _table(settings: list[Any], hints: dict[str, Any], prefix: str) -> str:
    rows = [
        f"| `--{prefix}{one.name}` | {_cell(_kind(hints[one.name]))} | {_cell(_default(one))} | "
        f"{_cell(one.metadata['help'])} |"
        for one in settings
    ]
    return "| setting | value | default | what it is |\n|---|---|---|---|\n" + "\n".join(rows)


def _default(one: Any) -> str:
    value = one.default if one.default is not dataclasses.MISSING else one.default_factory()
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _kind(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Union:
        return " or ".join(dict.fromkeys(_kind(part) for part in parts if part is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is list:
        return f"list ({_kind(parts[0])})"
    return _WORDS[hint]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _glossary_page() -> str:
    lines = [
        _MADE.format(source="HybridMIMLib/glossary.py"),
        "# Glossary",
        "The words of the method in plain language. The settings are explained in [commands](commands.md).",
    ]
    for chapter, terms in CHAPTERS.items():
        rows = [
            f"| {term.name} | {_cell(term.meaning)} | {', '.join(f'`{name}`' for name in term.settings)} |"
            for term in terms
        ]
        lines += [f"## {chapter}", "| word | what it means | settings |\n|---|---|---|\n" + "\n".join(rows)]
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
