"""A CSV or a JSON file that lists cases: for data that lies in no known layout.

A CSV has the column ``image``, or ``image_1``, ``image_2`` … for channels, and as wanted ``label``, ``patient``,
``name`` and ``annotated``; paths are relative to the file. A JSON file is a list of objects with the same entries,
or an object with that list as ``cases`` besides ``labels`` (names) and ``partially_labelled``.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from HybridMIMLib.data.classes import Naming
from HybridMIMLib.data.layouts.cases import Case, read_value
from HybridMIMLib.data.layouts.decathlon import listed_cases
from HybridMIMLib.data.layouts.names import read_names
from HybridMIMLib.data.layouts.rows import KEYS, CaseList, is_resource_fork
from HybridMIMLib.errors import DataError

SUFFIXES = (".csv", ".tsv", ".json")


def read_list(file: Path, labelled: bool) -> tuple[str, list[Case], Naming, bool]:
    """Layout, cases, names, and whether the set is partially labelled.

    Raises:
        DataError: the file cannot be read as a list, lists no case, or has a case that cannot be read.
    """
    if not file.name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{file}: is no list of scans", cure=f"Give a folder, or a list in one of {', '.join(SUFFIXES)}."
        )
    if not file.name.lower().endswith(".json"):
        naming, partial = read_names(file.parent, {}, file)
        return "list", _cases(file, _table(file), naming, labelled), naming, partial
    content = read_value(file)
    description = content if isinstance(content, dict) else {"cases": content}
    naming, partial = read_names(file.parent, description, file)
    if "training" in description:
        return "msd", listed_cases(file, description, naming.classes, labelled), naming, partial
    rows = description.get("cases")
    if not isinstance(rows, list):
        raise DataError(
            f"{file}: lists no cases", cure='Write {"cases": [{"image": "a.nii.gz", "label": "a_seg.nii.gz"}]}.'
        )
    numbered = [(f"case {number}", row) for number, row in enumerate(rows, 1)]
    return "list", _cases(file, numbered, naming, labelled), naming, partial


def _cases(file: Path, rows: list[tuple[str, Any]], naming: Naming, labelled: bool) -> list[Case]:
    cases = CaseList(file, naming.classes, labelled)
    for place, row in rows:
        _check_keys(file, place, row)
    found = [cases.case(row, place) for place, row in rows if not is_resource_fork(row)]
    if not found:
        raise DataError(f"{file}: lists no case", cure="Fill in the list.")
    return found


def _check_keys(file: Path, place: str, row: Any) -> None:
    """A misspelt column that is passed over would turn what is unknown into what is absent."""
    for key in row if isinstance(row, dict) else ():
        if key not in KEYS and not re.fullmatch("image_[0-9]+", str(key)):
            raise DataError(
                f"{file}: {place}: there is no {key!r} in a list",
                cure=f"Remove it, or name it one of {', '.join(KEYS)}, image_1, image_2 and so on.",
            )


def _table(file: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})", cure="Save it as text in UTF-8.") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True)
    head = [cell.strip() for cell in next(reader, [])]
    if not {"image", "image_1"} & set(head) or len(set(head)) < len(head):
        raise DataError(
            f"{file}: its first line is {', '.join(head)!r}",
            cure="Begin with the columns, each once: image and label, and as wanted name, patient, annotated.",
        )
    rows = []
    for cells in reader:
        if any(cell.strip() for cell in cells):
            if len(cells) > len(head):
                raise DataError(
                    f"{file}: line {reader.line_num}: has {len(cells)} cells under {len(head)} columns",
                    cure="Put what holds a separator into quotation marks.",
                )
            rows.append((f"line {reader.line_num}", dict(zip(head, (cell.strip() for cell in cells)))))
    return rows


def _delimiter(text: str) -> str:
    """Spreadsheets write a semicolon where the comma is the decimal sign."""
    first = text.split("\n", 1)[0]
    return max(",;\t", key=first.count)
