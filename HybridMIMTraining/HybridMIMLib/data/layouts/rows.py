"""One case of a list, of a ``dataset.json``, a CSV or a JSON file: its files, its name, what was annotated in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.layouts.cases import Case
from HybridMIMLib.data.scans import find_scans, scan_name
from HybridMIMLib.errors import DataError

KEYS = ("image", "label", "name", "patient", "annotated")
"""What a case may have; ``image_1``, ``image_2`` … instead of ``image`` where it has several channels."""

_CHANNEL = re.compile("image_([0-9]+)")
_CURE = 'Write each case as {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}.'


@dataclass(frozen=True)
class CaseList:
    """A file that lists cases, and how its entries are to be read.

    Attributes:
        file: the list; its paths are relative to its folder.
        classes: names that ``annotated`` may use.
        labelled: whether every case needs a label.
    """

    file: Path
    classes: tuple[LabelClass, ...]
    labelled: bool

    def case(self, row: Any, place: str = "") -> Case:
        """The case of one entry, a path or an object with some of :data:`KEYS`.

        Args:
            row: the entry.
            place: where it stands, such as ``"line 3"``.

        Raises:
            DataError: it cannot be read, names a file that is missing, or has no label though it needs one.
        """
        entry = row if isinstance(row, Mapping) else {"image": row}
        images = self._images(entry, place)
        patient = _text(entry.get("patient"))
        name = _text(entry.get("name")) or scan_name(images[0])
        if re.search(r"[/\\]", name) or name.startswith("."):
            raise self._wrong(place, f"{name!r} cannot name files", "Leave out slashes, and points at the beginning.")
        if not self.labelled:
            return Case(name, images, None, patient)
        label = entry.get("label")
        if not isinstance(label, (str, type(None))):
            raise self._wrong(place, f"the entry {entry!r} does not name one image and one label", _CURE)
        if not label:
            raise self._wrong(
                place, f"image {images[0].name} has no label", "Add its label to the list, or remove the entry."
            )
        return Case(name, images, self._listed(label, place), patient, self._annotated(entry, place))

    def _images(self, entry: Mapping[Any, Any], place: str) -> tuple[Path, ...]:
        channels = {key: match for key in entry if (match := _CHANNEL.fullmatch(str(key))) and entry[key]}
        names = [entry[key] for key in sorted(channels, key=lambda key: int(channels[key][1]))]
        if entry.get("image"):
            # Several channels are a list in JSON; both ways at once would hide one of them.
            one = entry["image"]
            names = [] if names else list(one) if isinstance(one, list) else [one]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise self._wrong(place, f"the entry {dict(entry)!r} does not name one image", _CURE)
        return tuple(self._listed(name, place) for name in names)

    def _listed(self, name: str, place: str) -> Path:
        """A file, or the one scan in a folder, as DICOM series are listed."""
        path = find_file(self.file.parent / Path(name).expanduser())
        if path.is_dir():
            scans = find_scans(path)
            if len(scans) > 1:
                raise self._wrong(place, f"{path} holds {len(scans)} scans", "List the file of one of them.")
            return scans[0]
        if not path.is_file():
            where = f", {place}," if place else ""
            raise DataError(
                f"{path}: listed in {self.file.name}{where} but missing",
                cure="Restore the file, or remove its entry.",
            )
        return path

    def _annotated(self, entry: Mapping[Any, Any], place: str) -> frozenset[int] | None:
        given = entry.get("annotated")
        if given is None or given == "":
            return None
        parts = given.split(";") if isinstance(given, str) else given
        if not isinstance(parts, Sequence):
            parts = [parts]
        return frozenset(self._label(part, place) for part in parts if str(part).strip())

    def _label(self, part: Any, place: str) -> int:
        text = str(part).strip()
        by_name = {one.name: one.label for one in self.classes}
        if text in by_name:
            return by_name[text]
        known = {one.label for one in self.classes}
        if text.isdigit() and int(text) > 0 and (not known or int(text) in known):
            return int(text)
        raise self._wrong(
            place,
            f"annotated names {text!r}, which is no class of this set",
            "Give names or labels of classes, separated by semicolons"
            + (f": {', '.join(by_name)}." if by_name else ", and the names of the classes in a classes.json."),
        )

    def _wrong(self, place: str, what: str, cure: str) -> DataError:
        return DataError(f"{self.file}: {place + ': ' if place else ''}{what}", cure=cure)


def find_file(path: Path) -> Path:
    """The path as the disk has it: macOS keeps letters and accents apart in names, other systems do not."""
    if path.exists():
        return path
    forms = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((form for form in forms if form.exists()), path)


def is_resource_fork(row: Any) -> bool:
    """macOS leaves ``._name`` beside every file that it copies, and some data sets list these."""
    image = row.get("image") if isinstance(row, Mapping) else row
    return isinstance(image, str) and PurePosixPath(image).name.startswith("._")


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
