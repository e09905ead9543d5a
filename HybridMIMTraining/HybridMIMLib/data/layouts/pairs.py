"""``images/`` and ``labels/``, or ``imagesTr/`` and ``labelsTr/``: an image and its label have one name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from HybridMIMLib.data.layouts.cases import Case, check_none_left, check_unique, no_labels
from HybridMIMLib.data.layouts.source import Source

Named = Sequence[tuple[str, tuple[Path, ...]]]
"""Cases by name, with one file a channel."""


def lacks(source: Source) -> str:
    """What keeps a folder from being in this layout; nothing if it is."""
    return "" if source.images_folder else "there is no images/"


def read(source: Source, labelled: bool) -> list[Case]:
    """The cases; without labels, those in ``imagesTs`` too."""
    images = source.images_folder
    found = [(name, (path,)) for name, path in source.named(images)]
    if labelled:
        return with_labels(source, found)
    if images == "imagesTr" and source.has("imagesTs"):
        found += [(name, (path,)) for name, path in source.named("imagesTs")]
    return [Case(name, files, None) for name, files in found]


def with_labels(source: Source, found: Named) -> list[Case]:
    """Each case of the images folder with the label map of its name.

    Raises:
        DataError: there are none, or one of either is left over.
    """
    images = source.images_folder
    labels = images.replace("images", "labels")
    if not source.has(labels):
        raise no_labels(source.folder, f"has {images}/ but no {labels}/")
    named = source.named(labels)
    by_name = dict(named)
    check_unique(source.folder / labels, [name for name, _ in named], "label maps")
    check_none_left([name for name, _ in found if name not in by_name], "image", "label", source.folder / labels)
    names = {name for name, _ in found}
    check_none_left([name for name in by_name if name not in names], "label", "image", source.folder / images)
    return [Case(name, files, by_name[name]) for name, files in found]
