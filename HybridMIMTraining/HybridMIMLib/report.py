"""What a command made, as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from HybridMIMLib.events import duration


def report(command: str, result: Mapping[str, Any]) -> str:
    """The lines to print when ``command`` is done."""
    writers = {"check": _check, "demo": _demo, "info": _info, "finetune": _finetune, "pretrain": _pretrain,
               "segment": _segment, "train": _train}  # fmt: skip
    return "\n".join(writers.get(command, _plain)(result))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        return "  ".join(cells).rstrip()

    return [line(head), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]


def _check(result: Mapping[str, Any]) -> list[str]:
    lines = [line for name, folder in result["folders"].items() for line in _checked(name, folder)]
    if result["duplicates"]:
        pairs = [[labelled, unlabelled] for labelled, unlabelled in result["duplicates"]]
        lines += ["in both folders, as labelled and as unlabelled scan; keep those for a test out of both:"]
        lines += [*table(["labelled", "unlabelled"], pairs), ""]
    if result["plan"]:
        lines += [*_planned(result["plan"], result["bytes"]), ""]
    lines.append(f"{result['usable']} scan(s) can be used, {result['skipped']} cannot. Nothing was written.")
    if result["problems"]:
        lines.append("A preparation, or a training, would stop: see above what would end it.")
    return lines


def _planned(plan: Mapping[str, Any], room: int) -> list[str]:
    spacing, crop = (" x ".join(f"{value:g}" for value in plan[name]) for name in ("spacing", "crop"))
    how = f"window {plan['window'][0]:g} to {plan['window'][1]:g}" if plan["normalisation"] == "window" else None
    return [
        f"plan: {spacing} mm, intensities by {how or plan['normalisation']}, crops of {crop} voxels; "
        f"prepared scans would take at most {room / 1e6:,.0f} MB",
    ]


def _checked(name: str, folder: Mapping[str, Any]) -> list[str]:
    counts, rows = folder["counts"], folder["rows"]
    columns = ["status", "name", "voxels", "mm", "channels", "modality"]
    widest = max(len(row["name"]) for row in rows)
    cells = [{**row, "name": row["name"].ljust(widest)} for row in rows]
    aligned = table(columns, [[row[column] for column in columns] for row in cells])
    reasons = ["reason", "------", *(row["reason"] for row in rows)]
    known = ", ".join(f"{kind} ({number})" for kind, number in folder["modalities"].items())
    lines = [
        f"{name}: {folder['path']} (layout: {folder['layout']})",
        "",
        *(f"{line.ljust(len(aligned[1]))}  {reason}".rstrip() for line, reason in zip(aligned, reasons)),
        "",
        f"{counts['good']} good, {counts['warning']} with a warning, {counts['skipped']} skipped; "
        f"{folder['patients']} patient(s); "
        f"modality: {known or 'unknown'}; {folder['others']} other file(s) passed over",
    ]
    if folder["classes"]:
        classes = [
            [one["name"], str(one["label"]), str(one["cases"]), str(one["annotated"])] for one in folder["classes"]
        ]
        lines += ["", *table(["class", "label", "in cases", "annotated in"], classes)]
    lines += [f"note: {note}" for note in folder["notes"]]
    lines += [f"would end the preparation: {problem}" for problem in folder["problems"]]
    lines += [f"what helps ({number}): {cure}" for cure, number in folder["cures"].items()]
    return [*lines, ""]


def _demo(result: Mapping[str, Any]) -> list[str]:
    scans = result["scans"]
    kind = "synthetic phantoms, made by this program" if result["synthetic"] else "your folders"
    names = list(result["dice"])
    rows = [
        [name, *(_number(case.get(column, _mean(case))) for column in names)]
        for name, case in result["cases"].items()
    ]
    rows.append(["mean", *(_number(result["dice"][column]) for column in names)])
    seconds = result["seconds"]
    stages = [[name, duration(value)] for name, value in seconds.items()]
    stages.append(["together", duration(sum(seconds.values()))])
    return [
        "",
        f"Scans ({kind}): {scans['unlabelled']} unlabelled for pre-training, {scans['labelled']} labelled for "
        f"fine-tuning, {scans['unseen']} unseen.",
        f"Pre-trained weights: {result['loaded']}",
        "",
        "Dice on the unseen scans",
        *table(["scan", *names], rows),
        "",
        *table(["stage", "m:ss"], stages),
        "",
        *(f"{name:<12} {path}" for name, path in result["files"].items()),
    ]


def _pretrain(result: Mapping[str, Any]) -> list[str]:
    # A training in stages says nothing of pictures.
    pictures = [f"previews     {result['previews']}"] if result.get("previews") else []
    return [*([_losses(result)] if result["losses"] else []), *pictures, f"weights      {result['weights']}",
            f"next: finetune --labelled CASES --weights {result['output']}"]  # fmt: skip


def _finetune(result: Mapping[str, Any]) -> list[str]:
    scores = [f"{name} {_number(value)}" for name, value in result["validation"].items()]
    kept = f"Dice on the validation scans, step {result['step']}: {', '.join(scores)}" if scores else "no validation"
    return [result["loaded"], kept, f"model        {result['model']}",
            f"next: segment --scans NEW --model {result['model']}"]  # fmt: skip


def _train(result: Mapping[str, Any]) -> list[str]:
    if result["model"] is None:
        return _pretrain({**result, "output": result["weights"]})
    return [*([_losses(result)] if result["losses"] else []), *_finetune(result)]


def _segment(result: Mapping[str, Any]) -> list[str]:
    return [f"{scan}  ->  {label}" for scan, label in result["labels"].items()]


def _info(result: Mapping[str, Any]) -> list[str]:
    runs = [f"  {r['state']:<10} {r['command']:<9} {r['began']}  {r['path']}" for r in result["runs"]]
    return [
        f"HybridMIM {result['version']}",
        "versions:",
        *(f"  {name:<15} {version}" for name, version in result["versions"].items()),
        "devices:",
        *(f"  {device}" for device in result["devices"]),
        "presets and recipes, for --config NAME:",
        *(f"  {one['name']:<11} {one['summary']}" for one in result["presets"]),
        f"runs are kept in {result['workspace']}/runs ({result['free_gb']} GB free); HYBRIDMIM_WORKSPACE moves it",
        *(runs or ["  none yet"]),
    ]


def _plain(result: Mapping[str, Any]) -> list[str]:
    return [f"{name:<12} {value}" for name, value in result.items() if name != "warnings"]


def _losses(result: Mapping[str, Any]) -> str:
    # A loss that was no number is null in a result.json that was read back.
    known = {name: value for name, value in result["losses"].items() if value is not None}
    return "losses       " + "  ".join(f"{name} {value:.4f}" for name, value in known.items())


def _mean(case: Mapping[str, float | None]) -> float | None:
    known = [value for value in case.values() if value is not None and value == value]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
