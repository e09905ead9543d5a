"""What to train, chosen in the panel: a preset, and the settings that differ from it. No widget is known here.

    >>> choices = PlanChoices()
    >>> choices.set("plan.crop", "64 64 32")
    >>> choices.options()
    {'plan.crop': '[64, 64, 32]'}
    >>> choices.set("plan.region", "-24")
    >>> choices.why_not()
    'Region is [-24, -24, -24]. Give three numbers above 0, one an axis.'

Names, help, choices and what is wrong with a value all come from :mod:`HybridMIMLib.settings`: one that is added
there is offered here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

from HybridMIMLib.agreement import check_agreement
from HybridMIMLib.commands import COMMANDS
from HybridMIMLib.config import Run, from_dict, to_dict
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.presets import list_presets
from HybridMIMLib.runs import load_settings
from HybridMIMLib.settings.tree import hints_of

AUTOMATIC, OWN = "automatic", "own"

MAIN = (
    "name",
    "plan.crop",
    "plan.spacing",
    "plan.normalisation",
    "plan.window",
    "network.architecture",
    "network.size",
    "pretraining.objective",
    "pretraining.mask_ratio",
    "pretraining.steps",
    "finetuning.steps",
)
"""Settings that are always in sight."""

_SECTIONS = {"plan": "Scans", "network": "Network", "pretraining": "Pre-training", "finetuning": "Fine-tuning"}
_OF_SCANS, _OF_RUN = ("missing_labels", "resample_labels"), ("seed", "device", "store", "weights", "partial_weights")

_TITLES = {
    "name": "Model name",
    "plan.normalisation": "Intensities",
    "plan.window": "Intensity window",
    "network.architecture": "Network",
    "network.size": "Network size",
    "network.window": "Attention window",
    "pretraining.objective": "Pre-training task",
    "pretraining.mask_ratio": "Mask ratio",
    "pretraining.steps": "Pre-training steps",
    "finetuning.steps": "Fine-tuning steps",
}
"""Where the name of the setting does not say it well."""

_CUBES = ("plan.spacing", "plan.crop", "plan.patch", "plan.region", "pretraining.box")
"""Of which one number stands for all three axes."""

_TWO_STARTS = (
    "Weights to start from are given (Advanced settings, Run), and unlabelled scans too: a training that does both "
    "starts from one pre-training only. Empty the setting Weights, or fine-tune alone."
)

_OF_MACHINE = ("unlabelled", "labelled", "output", "store", "scans", "predictions", "references", "compare", "model")
"""What a file of settings says of folders is not taken: those of the panel count, and are in sight."""


@dataclass(frozen=True)
class Setting:
    """A setting, as its section describes it.

    Attributes:
        name: dotted, as the command line has it.
        title: what the panel calls it.
        help: one line.
        kind: ``"choice"``, ``"switch"`` or ``"text"``.
        choices: of a choice.
        optional: whether it may be left open, and follows from the scans or from other settings then.
        hint: its type.
    """

    name: str
    title: str
    help: str
    kind: str
    choices: tuple[str, ...]
    optional: bool
    hint: Any

    def parse(self, text: str) -> Any:
        """The value that somebody typed; text that is none stays text, and is refused with a reason later."""
        text = text.strip()
        if not text:
            return None if self.optional else [] if get_origin(self.hint) is list else ""
        if self.hint is str or self.kind == "choice":
            return text
        try:
            value = json.loads(text)
        except ValueError:
            value = _numbers(text)
        if self.name in _CUBES and _is_number(value):
            return [value] * 3
        return [value] if _is_number(value) and get_origin(self.hint) is list else value

    def show(self, value: Any) -> str:
        """A value as somebody would type it; nothing where it is left open."""
        if value is None:
            return ""
        if isinstance(value, list) and all(_is_number(part) for part in value):
            return ", ".join(f"{part:.10g}" for part in value)
        if isinstance(value, (str, bool)):
            return str(value).lower() if isinstance(value, bool) else value
        return f"{value:.10g}" if _is_number(value) else json.dumps(value)


@dataclass(frozen=True)
class Base:
    """Settings that others are compared with.

    Attributes:
        key: :data:`AUTOMATIC`, :data:`OWN`, or the name of a preset or recipe.
        title: for a list.
        summary: what it is for.
        values: by dotted name; None: not read yet.
    """

    key: str
    title: str
    summary: str
    values: Mapping[str, Any] | None = None


def _numbers(text: str) -> Any:
    """``64 x 64 x 32`` and the like as a list; other text as it is."""
    try:
        parts = [json.loads(part) for part in re.split(r"\s*[,;x×\s]\s*", text.strip("[]() "))]
    except ValueError:
        return text
    return parts if all(_is_number(part) for part in parts) else text


def _is_number(value: Any) -> bool:
    """Whether it is a number that a computer can calculate with: one of hundreds of digits is none."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and not (isinstance(value, int) and abs(value) > sys.float_info.max)


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of :func:`flat`."""
    content: dict[str, Any] = {}
    for name, value in values.items():
        section, _, inner = name.rpartition(".")
        (content.setdefault(section, {}) if section else content)[inner] = value
    return content


def _settings() -> dict[str, Setting]:
    hints = get_type_hints(Run)
    found: dict[str, Setting] = {}
    for one in dataclasses.fields(Run):
        kind = hints[one.name]
        if one.name in _SECTIONS:
            inner = get_type_hints(kind)
            parts = [(f"{one.name}.{part.name}", part, inner[part.name]) for part in dataclasses.fields(kind)]
        else:
            parts = [(one.name, one, kind)] if one.name in ("name", *_OF_SCANS, *_OF_RUN) else []
        found |= {name: _described(name, part.metadata["help"], hint) for name, part, hint in parts}
    return found


def _described(name: str, text: str, hint: Any) -> Setting:
    parts = get_args(hint)
    optional = get_origin(hint) is Union and type(None) in parts
    if optional:
        inner = [part for part in parts if part is not type(None)]
        hint = inner[0] if len(inner) == 1 else Union[tuple(inner)]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = "choice" if choices else "switch" if hint is bool else "text"
    title = _TITLES.get(name) or name.rpartition(".")[2].replace("_", " ").capitalize()
    return Setting(name, title, _sentence(text, choices), kind, choices, optional, hint)


def _sentence(text: str, choices: Iterable[str]) -> str:
    """Help as a sentence; it keeps the small letter of a choice that it begins with."""
    first = re.split(r"[\s:,;(]", text)[0]
    return (text if first in choices else text[0].upper() + text[1:]).rstrip(".") + "."


SETTINGS: dict[str, Setting] = _settings()
DEFAULTS: dict[str, Any] = flat(to_dict(Run()))


def groups() -> dict[str, list[Setting]]:
    """Settings that are not always in sight, by the heading of their group."""
    found: dict[str, list[Setting]] = {}
    for section, title in _SECTIONS.items():
        found[title] = [one for name, one in SETTINGS.items() if name.startswith(f"{section}.") and name not in MAIN]
    found["Scans"] += [SETTINGS[name] for name in _OF_SCANS]
    found["Run"] = [SETTINGS[name] for name in _OF_RUN]
    return found


def bases() -> list[Base]:
    """What there is to choose from. The values of presets are not read; see :func:`read_preset`."""
    presets = [Base(one.name, f"{one.name} ({one.kind})", f"{one.summary}.") for one in list_presets()]
    own = "Settings from a file: the run.yaml of any run, or one that you were given."
    automatic = "Crop, spacing and intensities follow from your scans; the network is one that a CPU can train."
    return [Base(AUTOMATIC, "Automatic", automatic, DEFAULTS), *presets, Base(OWN, "Own settings", own)]


def read_preset(key: str) -> dict[str, Any] | None:
    """The values of a preset; None where the package that reads YAML is not installed yet. For a thread."""
    path = next(one.path for one in list_presets() if one.name == key)
    try:
        return flat(to_dict(load_settings(path)))
    except ImportError:
        return None


def read_own(path: Path) -> dict[str, Any]:
    """The values of a file of settings; for a thread.

    Raises:
        SettingsError: it cannot be read, or holds something that is no setting.
    """
    try:
        values = flat(to_dict(load_settings(path)))
    except ImportError as error:
        raise SettingsError(
            f"{path}: cannot be read before the packages are there", cure="Install them in section Environment."
        ) from error
    return {name: value for name, value in values.items() if name not in _OF_MACHINE}


@dataclass
class PlanChoices:
    """A base and what differs from it.

    Attributes:
        base: key of the base.
        file: that own settings came from.
        values_of_base: by dotted name; what is not there has its default.
        changes: values, or text that is none yet, by dotted name.
    """

    base: str = AUTOMATIC
    file: str = ""
    values_of_base: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)

    def take_base(self, key: str, values: Mapping[str, Any] | None, file: str = "") -> None:
        """Compare with another base from now on. What was changed before stays, unless the base says the same."""
        self.base, self.file, self.values_of_base = key, file, dict(values or {})
        self.changes = {name: value for name, value in self.changes.items() if value != self.of_base(name)}

    def of_base(self, name: str) -> Any:
        """The value of a setting before it is changed."""
        return self.values_of_base.get(name, DEFAULTS[name])

    def value(self, name: str) -> Any:
        """The value of a setting."""
        return self.changes[name] if name in self.changes else self.of_base(name)

    def set(self, name: str, text: str) -> None:
        """Take what somebody typed."""
        value = SETTINGS[name].parse(text)
        if value == self.of_base(name) and isinstance(value, bool) == isinstance(self.of_base(name), bool):
            self.changes.pop(name, None)
        else:
            self.changes[name] = value

    def switch(self, name: str, is_on: bool) -> None:
        """Take what somebody ticked."""
        self.set(name, json.dumps(bool(is_on)))

    def reset(self) -> None:
        """Everything as in the base again."""
        self.changes = {}

    def run(self, unlabelled: str = "", labelled: str = "") -> Run:
        """All settings.

        Raises:
            SettingsError: a value cannot work.
        """
        values = {**DEFAULTS, **self.values_of_base, **self.changes}
        return from_dict(nested({**values, "unlabelled": unlabelled or None, "labelled": labelled or None}))

    def why_not(self, unlabelled: str = "", labelled: str = "", command: str = "train") -> str:
        """Why no training can begin with these settings, in the words of the library; empty if it can.

        Args:
            unlabelled, labelled: the folders; without any, nothing is said of them.
            command: that is to begin; what it does not know is in nobody's way.
        """
        options = COMMANDS[command].options
        try:
            run = self.run(unlabelled, labelled)
            check_agreement(run, pretrains="pretraining" in options and bool(unlabelled or not labelled))
            if command == "train" and run.unlabelled and run.weights:
                return _TWO_STARTS
        except SettingsError as error:
            return for_user(str(error))
        return ""

    def options(self) -> dict[str, object]:
        """Options of the command line: the preset by name, and what differs from it."""
        if self.base == OWN:
            own = {name: value for name, value in self.values_of_base.items() if value != DEFAULTS[name]}
            return _as_options({**own, **self.changes})
        preset = {} if self.base == AUTOMATIC else {"config": self.base}
        return {**preset, **_as_options(self.changes)}

    def dump(self) -> str:
        """Text from which :meth:`load` makes the same again."""
        own = self.values_of_base if self.base == OWN else {}
        content = {"base": self.base, "file": self.file, "own": own, "changes": self.changes}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def load(cls, text: str) -> PlanChoices:
        """From a text that somebody may have damaged, or another version written: what is not known is left out.

        The values of a preset are not in it, and must be given with :meth:`take_base`.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = {}
        content = content if isinstance(content, dict) else {}
        base = content.get("base")
        known = {AUTOMATIC, OWN, *(one.name for one in list_presets())}
        if not isinstance(base, str) or base not in known:
            base = AUTOMATIC
        own = _known(content.get("own"), DEFAULTS) if base == OWN else {}
        return cls(base, str(content.get("file") or ""), own, _known(content.get("changes"), SETTINGS))


def for_user(text: str) -> str:
    """A message of the library with settings called as in the panel."""
    return _NAME.sub(lambda match: title_of(match[0]), text)


def title_of(name: str) -> str:
    """What a setting is called outside its group: both trainings have a learning rate."""
    one, section = SETTINGS[name], name.partition(".")[0]
    twice = name not in _TITLES and section in ("pretraining", "finetuning")
    return f"{_SECTIONS[section]}: {one.title.lower()}" if twice else one.title


_NAMES = sorted((name for name in SETTINGS if "." in name), key=len, reverse=True)
_NAME = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in _NAMES))


def _known(content: Any, names: Iterable[str]) -> dict[str, Any]:
    known = set(names)
    return {str(k): v for k, v in content.items() if k in known} if isinstance(content, dict) else {}


def _as_options(values: Mapping[str, Any]) -> dict[str, object]:
    return {name: _as_option(name, value) for name, value in values.items() if not _is_nothing(name, value)}


def _is_nothing(name: str, value: Any) -> bool:
    """Text that is not given is left out: no path is called null."""
    return value is None and hints_of(Run).get(name) == Optional[str]


def _as_option(name: str, value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
