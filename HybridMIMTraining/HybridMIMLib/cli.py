"""``python -m HybridMIMLib COMMAND``: the settings tree as options, and what comes back as text.

Exit codes: 0 done; 1 failed; 2 a setting is wrong; 3 done, but some scans were skipped; 130 stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Optional, get_type_hints

import HybridMIMLib
from HybridMIMLib.commands import COMMANDS, PROGRAM
from HybridMIMLib.config import DEMO_DEFAULTS, Run, from_dict, make_run, to_dict, user_path
from HybridMIMLib.distributed import has_to_say, is_first
from HybridMIMLib.errors import HybridMIMError, SettingsError
from HybridMIMLib.events import EventLog
from HybridMIMLib.presets import config_path
from HybridMIMLib.report import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    given = _in_one_word(list(sys.argv[1:] if arguments is None else arguments))
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0 if given else 2
    if given[0] == "--version":
        print(HybridMIMLib.__version__)
        return 0
    if given[0] not in COMMANDS:
        return _fail(f"there is no command {given[0]!r}. Commands are: {', '.join(COMMANDS)}.", 2)
    for stream in (sys.stdout, sys.stderr):
        # A path with Chinese letters must not end a finished job on a terminal that cannot print them.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if given[0] == "serve":
            return _serve(given[1:])
        return _run(given[0], parse(given[0], given[1:]))
    except SettingsError as error:
        return _fail(str(error), 2)
    except HybridMIMError as error:
        return _fail(str(error), 1)


def _serve(arguments: list[str]) -> int:
    """The worker has no run, and nothing to print: its answers have standard output for themselves."""
    about = COMMANDS["serve"]
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} serve",
        description=f"{about.summary[0].upper()}{about.summary[1:]}. HybridMIMLib/worker_protocol.py tells of them.",
        epilog=f"Example: {PROGRAM} {about.example}",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, where a request names none")
    parser.add_argument(
        "--idle_seconds", type=float, default=300.0, help="free the device after so long without a request [300]"
    )
    parser.add_argument("--parent", type=int, help="number of a process to end with, besides the one that starts it")
    given = parser.parse_args(arguments)
    return HybridMIMLib.serve(given.device, given.idle_seconds, given.parent)


def _in_one_word(arguments: list[str]) -> list[str]:
    """``model add …`` is the command called ``model add``; ``model`` alone asks which there are."""
    if arguments[:1] != ["model"]:
        return arguments
    if len(arguments) == 1 or arguments[1] in ("-h", "--help"):
        return ["--help"]
    return [" ".join(arguments[:2]), *arguments[2:]]


def parse(command: str, arguments: Sequence[str]) -> Run:
    """The settings tree from options and ``--config`` files, presets and recipes.

    Raises:
        SettingsError: an option is unknown or has a value that cannot work.
    """
    from jsonargparse import ArgumentError

    arguments = _with_models(arguments) if command == "model ensemble" else arguments
    try:
        values = _parser(command).parse_args(_configs_first(arguments)).as_dict()
    except (ArgumentError, argparse.ArgumentError) as error:
        raise SettingsError(_explain(str(error)), cure=f"See {PROGRAM} {command} --help.") from error
    values.update(_texts(arguments))
    configs = values.pop("config", None) or []
    if any(_is_of_another(command, Path(str(file))) for file in configs):
        # Its settings are wanted, its folder is taken.
        values["output"] = _option(arguments, "--output")
    return from_dict(values)


def _with_models(arguments: Sequence[str]) -> list[str]:
    """Models need no ``--models`` where they come first."""
    count = next((n for n, one in enumerate(arguments) if one.startswith("-")), len(arguments))
    named = [f"--models={json.dumps(list(arguments[:count]))}"] if count else []
    return [*named, *arguments[count:]]


def _texts(arguments: Sequence[str]) -> dict[str, str]:
    """Paths and names as they were given: for the parser of YAML a folder called ``null`` is nothing."""
    hints = get_type_hints(Run)
    names = [one.name for one in dataclasses.fields(Run) if hints[one.name] == Optional[str]]
    given = {name: _option(arguments, f"--{name}") for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _configs_first(arguments: Sequence[str]) -> list[str]:
    """Options win over a file, wherever the file stands among them; a preset's name becomes its file."""
    first: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for one in waiting:
        if one == "--config":
            first += [one, *[str(config_path(value)) for value in [next(waiting, None)] if value is not None]]
        elif one.startswith("--config="):
            first.append(f"--config={config_path(one.partition('=')[2])}")
        else:
            rest.append(one)
    return first + rest


def _is_of_another(command: str, config: Path) -> bool:
    from HybridMIMLib.runs import command_of

    return command_of(config.parent) not in (None, command)


def _option(arguments: Sequence[str], name: str) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name)
    value: str | None = getattr(parser.parse_known_args(list(arguments))[0], name.lstrip("-"))
    return value


def _run(command: str, run: Run) -> int:
    function = getattr(HybridMIMLib, COMMANDS[command].function or command)
    if not COMMANDS[command].has_run:
        print(report(command, function(run)))
        return 0
    if run.check and command in ("prepare", "segment") or command == "estimate" and not run.output:
        return _check(command, run)
    from HybridMIMLib.runs import new_path
    from HybridMIMLib.terminal import TerminalBar

    run = run if run.output else make_run(run, {"output": str(new_path(command))})
    signal.signal(signal.SIGTERM, _stop)
    # Of the processes that share a run, one talks.
    bar = TerminalBar(user_path(str(run.output)) / "events.jsonl", sys.stderr) if is_first() else nullcontext()
    try:
        with bar:
            result = function(run)
    except KeyboardInterrupt:
        return _fail(f"stopped. The same command with --output {run.output} continues.", 130)
    if not is_first():
        return 0
    print(report(command, {**result, "output": run.output}))
    if result.get("warnings"):
        print("\n" + "\n".join(f"warning: {text}" for text in result["warnings"]), file=sys.stderr)
    return 3 if any(text.startswith("skipped") for text in result.get("warnings", [])) else 0


def _check(command: str, run: Run) -> int:
    """``--check``, or an estimate: the bar follows a log outside the user's folders; nothing is written there."""
    from HybridMIMLib.terminal import TerminalBar

    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "events.jsonl"
        try:
            with TerminalBar(log, sys.stderr):
                result = _look(command, run, EventLog(log), Path(folder))
        except KeyboardInterrupt:
            return _fail("stopped. Nothing was written.", 130)
    print(report(_LOOKS[command], result))
    if result.get("problems") or result.get("usable") == 0:
        return 1
    return 3 if result.get("skipped") else 0


_LOOKS = {"prepare": "check", "segment": "forecast", "estimate": "estimate"}
"""How what was seen is reported, by command."""


def _look(command: str, run: Run, events: EventLog, folder: Path) -> dict[str, Any]:
    if command == "segment":
        from HybridMIMLib.inference.forecast import forecast

        return forecast(run, events)
    if command == "estimate":
        from HybridMIMLib.estimating import reckon

        return reckon(run, folder, events)
    from HybridMIMLib.data.check import check

    return check(run, events)


def _parser(command: str) -> Any:
    from jsonargparse import ArgumentParser

    about = COMMANDS[command]
    parser = ArgumentParser(
        prog=f"{PROGRAM} {command}",
        usage=f"{PROGRAM} {command} [options]",
        description=f"{about.summary[0].upper()}{about.summary[1:]}.",
        epilog=f"Example: {PROGRAM} {about.example}. Settings of other commands are accepted too, so that one "
        "run.yaml serves all of them. Exit codes: 0 done, 1 failed, 2 wrong setting, 3 done but scans were "
        "skipped, 130 stopped; a stopped run is continued by the same command.",
        exit_on_error=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument(
        "--config", action="config", help="settings as YAML, such as the run.yaml of a run, or a name that info lists"
    )
    _add_options(parser, to_dict(_defaults(command)), about.options)
    return parser


def _add_options(parser: Any, defaults: dict[str, Any], shown: Sequence[str]) -> None:
    """Every setting as an option, those of a section as ``--section.name``; help for the fields in ``shown``."""
    hints = get_type_hints(Run)
    for one in dataclasses.fields(Run):
        kind, visible = hints[one.name], one.name in shown
        if not dataclasses.is_dataclass(kind):
            _add_option(parser, one, kind, defaults[one.name], "", visible)
            continue
        group, inner = parser.add_argument_group(one.metadata["help"] if visible else None), get_type_hints(kind)
        for part in dataclasses.fields(kind):
            _add_option(group, part, inner[part.name], defaults[one.name][part.name], f"{one.name}.", visible)


def _add_option(group: Any, one: Any, hint: Any, default: Any, prefix: str, visible: bool) -> None:
    text = argparse.SUPPRESS
    if visible:
        known = "" if default is None else f" [{str(default).lower() if isinstance(default, bool) else default}]"
        text = (one.metadata["help"] + known).replace("%", "%%")
    # A switch of a command may be given without a value.
    bare = {"nargs": "?", "const": True} if one.name == "check" else {}
    group.add_argument(f"--{prefix}{one.name}", type=hint, default=default, help=text, **bare)


def _defaults(command: str) -> Run:
    return make_run(None, DEMO_DEFAULTS if command == "demo" else {})


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {about.summary}" for name, about in COMMANDS.items()]
    examples = [f"  {PROGRAM} {COMMANDS[name].example}" for name in ("pretrain", "finetune", "segment")]
    return "\n".join([
        "HybridMIM: self-supervised pre-training and few-label segmentation of 3D medical scans.",
        "", f"usage: {PROGRAM} COMMAND [options]", "", "commands:", *lines,
        "", "From a folder of scans to segmentations:", *examples,
        "", f"Options of a command: {PROGRAM} COMMAND --help",
    ])  # fmt: skip


def _explain(text: str) -> str:
    """The error of jsonargparse in words that need no knowledge of Python."""
    name = re.search(r'[Pp]arser key "([^"]+)"', text)
    value = re.search(r"(?:Got|Given) value: (.*)", text)
    if name is None or value is None:
        return text.replace('Parser key "config": ', "--config: ").replace(
            "unrecognized arguments", "unknown options"
        )
    # What holds another kind names that too, so it is looked for first.
    kinds = {
        r"list\[list": "a list of lists such as [[1, 1, 1], [2, 2, 1]]",
        r"float'>, list": "a number, or the lowest and the highest of a range such as [0.3, 0.6]",
        "list": "a list such as [1, 2, 3]",
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
    }
    wanted = next((words for kind, words in kinds.items() if re.search(rf"\b{kind}\b", text, re.IGNORECASE)), "")
    if choices := re.search(r"(?:Literal|one of|choose from) ?[\[(]?([^\])\n]+)", text):
        wanted = f"one of {choices[1]}"
    return f"--{name[1]} cannot be {value[1].strip(' )')}" + (f", it takes {wanted}" if wanted else "")


class _HelpFormatter(argparse.HelpFormatter):
    """A short line an option: its name without jsonargparse's aliases and Python types, its meaning, [default]."""

    def __init__(self, prog: str, **others: Any) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return ", ".join(name for name in action.option_strings if not name.endswith("+"))

    def add_argument(self, action: argparse.Action) -> None:
        if "--print_config" not in action.option_strings:
            super().add_argument(action)


def _stop(number: int, frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl+C, so that the run folder says that it was stopped."""
    raise KeyboardInterrupt


def _fail(text: str, code: int) -> int:
    if has_to_say():
        print(f"error: {text}", file=sys.stderr)
    return code
