"""BTCV, the abdomen of "Multi-Atlas Labeling Beyond the Cranial Vault" (synapse.org, syn3193805).

``img0001`` belongs to ``label0001`` and ``DET0000101_avg`` to ``DET0000101_avg_seg``, whichever folders they lie in:
one for both, ``img/`` and ``label/``, ``Training/`` and ``Testing/``, ``imagesTr/`` and ``labelsTr/``, or
``averaged-training-images/`` and ``averaged-training-labels/``.
"""

from __future__ import annotations

import re
from pathlib import Path

from HybridMIMLib.data.classes import Naming, make_naming
from HybridMIMLib.data.layouts.cases import Case, check_unique_files, no_labels, some
from HybridMIMLib.data.layouts.source import Source
from HybridMIMLib.data.scans import scan_name
from HybridMIMLib.errors import DataError

ORGANS = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
          "inferior vena cava", "portal vein and splenic vein", "pancreas", "right adrenal gland",
          "left adrenal gland")  # fmt: skip
"""Of the labels 1 to 13, in the order of the challenge."""

LEAST_MET = 10
"""Other sets are called so, too. A set whose label maps hold fewer of the organs is not taken for BTCV."""

_IMAGE = re.compile(r"img([0-9]{4})|(DET[0-9]+)_avg")
_LABEL = re.compile(r"label([0-9]{4})|(DET[0-9]+)_avg_seg")


def lacks(source: Source) -> str:
    """What keeps a folder from being in this layout; nothing if it is."""
    names = [scan_name(path) for path in source.scans(source.images_folder)]
    if not any(_IMAGE.fullmatch(name) for name in names):
        return "no scan is called like img0001"
    other = next((name for name in names if not (_IMAGE.fullmatch(name) or _LABEL.fullmatch(name))), None)
    return f"{other} is called neither like img0001 nor like label0001" if other is not None else ""


def customary(source: Source) -> tuple[Naming, ...]:
    """What labels mean: the thirteen organs."""
    return (make_naming(dict(enumerate(ORGANS, 1))),)


def read(source: Source, labelled: bool) -> list[Case]:
    """The cases; without labels, those for testing too. Each is a patient of its own.

    Raises:
        DataError: an image for training has no label, or a label no image, or a number is there twice.
    """
    if not labelled:
        found = _find(source, _parts(source, "images"), _IMAGE)
        return [Case(scan_name(path), (path,), None, number) for number, path in found]
    images = _numbered(source, _parts(source, "images"), _IMAGE)
    labels = _numbered(source, _parts(source, "labels"), _LABEL)
    if not labels:
        raise no_labels(source.folder, "has img#### but no label####")
    training = {n: path for n, path in images.items() if n in labels or not _for_testing(source, path)}
    _check_complete(source, [path for n, path in training.items() if n not in labels], "label")
    _check_complete(source, [path for n, path in labels.items() if n not in training], "image")
    return [Case(scan_name(path), (path,), labels[number], number) for number, path in training.items()]


def _parts(source: Source, kind: str) -> list[str]:
    """The subfolders in which images or labels lie; the folder itself where nothing tells them apart."""
    if not source.images_folder:
        return [""]
    wanted = [source.images_folder] + (["imagesTs"] if source.images_folder == "imagesTr" else [])
    parts = [part.replace("images", kind) for part in wanted]
    return [part for part in parts if source.has(part)]


def _find(source: Source, parts: list[str], pattern: re.Pattern[str]) -> list[tuple[str, Path]]:
    paths = (path for part in parts for path in source.scans(part))
    matches = ((pattern.fullmatch(scan_name(path)), path) for path in paths)
    return [(match[1] or match[2], path) for match, path in matches if match]


def _numbered(source: Source, parts: list[str], pattern: re.Pattern[str]) -> dict[str, Path]:
    found = _find(source, parts, pattern)
    check_unique_files(source.folder, [(scan_name(path), (path,)) for _, path in found], "scans")
    return dict(found)


def _for_testing(source: Source, path: Path) -> bool:
    folders = path.relative_to(source.folder).parts[:-1]
    return any("test" in part.lower() or part == "imagesTs" for part in folders)


def _check_complete(source: Source, left: list[Path], other: str) -> None:
    if left:
        raise DataError(
            f"{source.folder}: {some([scan_name(path) for path in left])}: there is no {other} of this number",
            cure=f"Add the {other}, or remove the file; images for testing belong into a folder Testing/.",
        )
