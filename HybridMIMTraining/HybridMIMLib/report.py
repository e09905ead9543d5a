"""What a command made, as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from HybridMIMLib.events import duration
from HybridMIMLib.files import size_in_words


def report(command: str, result: Mapping[str, Any]) -> str:
    """The lines to print when ``command`` is done."""
    writers = {"check": _check, "demo": _demo, "estimate": _estimate, "info": _info, "finetune": _finetune,
               "pretrain": _pretrain, "evaluate": _evaluate, "rank": _rank, "forecast": _forecast,
               "segment": _segment, "study": _study, "train": _train, "model list": _models,
               "model add": _added}  # fmt: skip
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


def _forecast(result: Mapping[str, Any]) -> list[str]:
    presets = list(result["seconds"])
    rows = [[row["path"], str(row["volumes"]), *_times(row["seconds"])] for row in result["rows"]]
    if len(rows) > 1:
        rows.append(["together", "", *_times(result["seconds"])])
    left_out = f" {result['skipped']} scan(s) cannot be segmented, see above." if result["skipped"] else ""
    return [
        *table(["scan", "volumes", *presets], rows),
        "",
        f"{result['computes']}, from one window of each scan. The preset is {result['preset']}.{left_out}",
        "Nothing was written.",
    ]


def _estimate(result: Mapping[str, Any]) -> list[str]:
    stages = result["stages"]
    head = ["", "scans", "steps", "crops", "s a step", "time", "memory", "disk"]
    rows = [
        [
            name + (f" ({one['networks']} folds)" if one["networks"] > 1 else ""),
            *(str(one[key]) for key in ("scans", "steps", "batch")),
            f"{one['step_seconds']:.3g}",
            duration(one["seconds"]),
            size_in_words(one["gpu_memory"] or one["memory"]),
            size_in_words(sum(one["disk"].values())),
        ]
        for name, one in stages.items()
    ]
    if len(rows) > 1:
        together = size_in_words(result["gpu_memory"] or result["memory"]), size_in_words(result["disk"])
        rows.append(["together", *[""] * 4, duration(result["seconds"]), *together])
    return [*table(head, rows), "", *estimate_in_words(result), "Nothing of the trial was kept."]


def estimate_in_words(result: Mapping[str, Any]) -> list[str]:
    """What the table of an estimate leaves open, a line each."""
    stages = result["stages"].values()
    parts = {part: sum(one["disk"][part] for one in stages) for part in ("store", "checkpoints", "previews")}
    where = f"{size_in_words(result['free'])} are free in {result['folder']}"
    memory = f"Memory: {size_in_words(result['memory'])} of {size_in_words(result['memory_total'])}"
    if result["gpu_memory"]:
        memory += (
            f"; of the GPU: {size_in_words(result['gpu_memory'])} of {size_in_words(result['gpu_memory_total'])}"
        )
    tried = " and ".join(f"{one['tried']['steps']} steps on {one['tried']['scans']} scans" for one in stages)
    return [
        f"Disk: prepared scans {size_in_words(parts['store'])}, checkpoints and model "
        f"{size_in_words(parts['checkpoints'])}, previews {size_in_words(parts['previews'])}; {where}.",
        f"{memory}.",
        f"Computed by {result['device']}; seen in {tried}.",
        *result["notes"],
    ]


def _times(seconds: Mapping[str, float]) -> list[str]:
    return [duration(value) for value in seconds.values()]


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
    if result.get("folds"):
        return [result["loaded"], "", *_folds(result), "", f"report       {result['report']}", *_to_use(result)]
    scores = [f"{name} {_number(value)}" for name, value in result["validation"].items()]
    kept = f"Dice on the validation scans, step {result['step']}: {', '.join(scores)}" if scores else "no validation"
    return [result["loaded"], kept, *_to_use(result)]


def _to_use(result: Mapping[str, Any]) -> list[str]:
    return [f"model        {result['model']}", f"next: segment --scans NEW --model {result['model']}"]


def _folds(result: Mapping[str, Any]) -> list[str]:
    names = list(result["validation"])
    rows = [
        [f"{number}", f"{len(one['held_out'])}", *(_number(one["validation"].get(name)) for name in names)]
        for number, one in enumerate(result["folds"], 1)
    ]
    held_out = sum(len(one["held_out"]) for one in result["folds"])
    rows.append(["all", f"{held_out}", *(_number(result["validation"][name]) for name in names)])
    return ["Dice of the cross-validation: each scan by the network that was not trained on it",
            *table(["fold", "scans", *names], rows)]  # fmt: skip


def _train(result: Mapping[str, Any]) -> list[str]:
    if result["model"] is None:
        return _pretrain({**result, "output": result["weights"]})
    return [*([_losses(result)] if result["losses"] else []), *_finetune(result)]


def _segment(result: Mapping[str, Any]) -> list[str]:
    empty = result.get("empty", {})
    missing = {scan: f"  (not found: {', '.join(names)})" for scan, names in empty.items()}
    return [f"{scan}  ->  {label}{missing.get(scan, '')}" for scan, label in result["labels"].items()]


def _rank(result: Mapping[str, Any]) -> list[str]:
    rows, lost = result["ranking"], sum(not row["found"] for row in result["ranking"])
    names = list(rows[0]["volumes_ml"])
    cells = [
        [str(row["rank"]), _number(row["score"]), *(f"{row['volumes_ml'][name]:.1f}" for name in names)]
        for row in rows
    ]
    ends = ["scan", "----", *(f"{row['scan']}{'' if row['found'] else '  (nothing found)'}" for row in rows)]
    lines = table(["rank", "score", *(f"{name} (ml)" for name in names)], cells)
    widest = max(map(len, lines))
    notes = [f"Nothing was found in {lost} scan(s), which stand last: one that should hold a class comes first."]
    return [
        "Label those in front first; the score is how uncertain the model is about what it found, from 0 to 1.",
        "",
        *(f"{line.ljust(widest)}  {end}" for line, end in zip(lines, ends)),
        "",
        *(notes if lost else []),
        f"written to {result['csv']} and {result['json']}",
    ]


def _evaluate(result: Mapping[str, Any]) -> list[str]:
    names = {"dice": "Dice", "hd95": "HD95 (mm)", "surface_dice": "surface Dice"}

    def cells(figures: Mapping[str, Any]) -> list[str]:
        return [
            text
            for one in names
            for text in (_number(figures[one]["mean"]), _between(figures[one]["low"], figures[one]["high"]))
        ]

    head = ["class", "cases", "missed", *(text for name in names.values() for text in (name, "95 % interval"))]
    rows = [
        [one["name"], str(one["figures"]["dice"]["cases"]), str(one["counts"]["missed"]), *cells(one["figures"])]
        for one in result["classes"]
    ]
    rows.append(["mean", str(result["mean"]["dice"]["cases"]), "", *cells(result["mean"])])
    compared = [one for one in result["comparison"] if one["name"] == "mean" and one["measure"] == "dice"]
    lines = [
        f"mean Dice of --predictions less that of --compare: {_number(one['difference'])} "
        f"({_between(one['low'], one['high'])}), p {_p_value(one['p'])}, {one['cases']} case(s): {one['words']}"
        for one in compared
    ]
    files = [f"{name:<12} {result[name]}" for name in ("report", "csv", "json")]
    return [*table(head, rows), "", *lines, *([""] if lines else []), *files]


def _study(result: Mapping[str, Any]) -> list[str]:
    if "verdicts" not in result:
        return [result["estimate"], "Nothing was begun. The same command without study.estimate_only begins it."]
    rows = [
        [
            one["arm"],
            one["labelled"],
            "-" if _number(one["learning_rate"]) == "-" else f"{one['learning_rate']:g}",
            *(
                (_number(one["dice"]["mean"]), _between(one["dice"]["low"], one["dice"]["high"]))
                if one["dice"]
                else "--"
            ),
            " ".join(_number(seed["dice"]) for seed in one["seeds"]) or "-",
        ]
        for one in result["arms"]
    ]
    lines = table(["arm", "labelled", "rate", "mean Dice", "95 % interval", "each seed"], rows)
    failed = [f"not finished: {title}: {why}" for title, why in result["failed"].items()]
    files = [f"{name:<12} {result[name]}" for name in ("report", "cells", "cases", "json")]
    return [*lines, "", *result["verdicts"], "", *failed, *files]


def _between(low: float | None, high: float | None) -> str:
    return "-" if low is None or low != low else f"{_number(low)} to {_number(high)}"


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


def _models(result: Mapping[str, Any]) -> list[str]:
    rows = [
        [one["name"], "added" if one["added"] else "run", (one["trained"] or "")[:10], one["path"]]
        for one in result["models"]
    ]
    about = f"added models are kept in {result['folder']}; HYBRIDMIM_WORKSPACE moves it"
    damaged = [f"cannot be used any more ('model remove' takes it away): {path}" for path in result["damaged"]]
    return [*(table(["name", "from", "trained", "path"], rows) if rows else ["no models yet"]), *damaged, about]


def _added(result: Mapping[str, Any]) -> list[str]:
    license_text = result["license"].strip().splitlines()[0]
    return [f"{'added' if result['new'] else 'was there already'}: {result['name']}",
            f"finds        {', '.join(result['classes'])}", f"license      {license_text}",
            f"path         {result['path']}", f"next: segment --scans NEW --model {result['name']!r}"]  # fmt: skip


def _plain(result: Mapping[str, Any]) -> list[str]:
    return [f"{name:<12} {value}" for name, value in result.items() if name != "warnings"]


def _losses(result: Mapping[str, Any]) -> str:
    # A loss that was no number is null in a result.json that was read back.
    known = {name: value for name, value in result["losses"].items() if value is not None}
    return "losses       " + "  ".join(f"{name} {value:.4f}" for name, value in known.items())


def _mean(case: Mapping[str, float | None]) -> float | None:
    known = [value for value in case.values() if value is not None and value == value]
    return sum(known) / len(known) if known else None


def _p_value(value: float | None) -> str:
    return "below 0.001" if value is not None and value < 0.001 else _number(value)


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
