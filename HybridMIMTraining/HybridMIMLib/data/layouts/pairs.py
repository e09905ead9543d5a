"""``images/`` and ``labels/``, or ``imagesTr/`` and ``labelsTr/``: an image and its label have one name.

Patients who have a subfolder each, ``images/P1/ct.nii.gz`` and ``images/P1/pet.nii.gz``, are told by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from HybridMIMLib.data.layouts.cases import Case, check_none_left, check_unique_files, no_labels
from HybridMIMLib.data.layouts.plain import cases_of, without_labels
from HybridMIMLib.data.layouts.source import Source, patients_by_folder
from HybridMIMLib.errors import DataError

Named = Sequence[tuple[str, tuple[Path, ...]]]
"""Cases by name, with one file a channel."""


def lacks(source: Source) -> str:
    """What keeps a folder from being in this layout; nothing if it is."""
    return "" if source.images_folder else "there is no images/"


def read(source: Source, labelled: bool) -> list[Case]:
    """The cases; without labels, every other image in the folder too, as of ``imagesTs``."""
    images = source.images_folder
    if labelled:
        return with_labels(source, [(name, (path,)) for name, path in source.named(images)])
    parts = [part for part in (images, "imagesTs") if source.has(part)]
    found = [case for part in parts for case in cases_of(source.place(part), _images(source, part))]
    listed = [source.place(part) for part in parts]
    beside = [path for path in source.scans() if not any(place in path.parents for place in listed)]
    return found + cases_of(source.folder, without_labels(source, beside))


def with_labels(source: Source, found: Named) -> list[Case]:
    """Each case of the images folder with the label map of its name.

    Raises:
        DataError: there are none, one of either is left over, or two label maps have one name.
    """
    images = source.images_folder
    labels = images.replace("images", "labels")
    if not source.has(labels):
        raise _no_folder(source, images, labels)
    named = source.named(labels)
    by_name = dict(named)
    check_unique_files(source.folder, [(name, (path,)) for name, path in named], "label maps")
    check_none_left([name for name, _ in found if name not in by_name], "image", "label", source.place(labels))
    names = {name for name, _ in found}
    check_none_left([name for name in by_name if name not in names], "label", "image", source.place(images))
    patients = patients_by_folder(source.place(images), [files[0] for _, files in found])
    return [Case(name, files, by_name[name], patient) for (name, files), patient in zip(found, patients)]


def _images(source: Source, part: str) -> list[Path]:
    """What lies in a folder of images; all of it, where its names say label maps only: the folder knows better."""
    return without_labels(source, source.scans(part)) or source.scans(part)


def _no_folder(source: Source, images: str, labels: str) -> DataError:
    """The error for images without labels; folders that seem to hold these are named."""
    others = [name for name in source.subfolders if name.lower().startswith(("label", "mask", "seg"))]
    if not others:
        return no_labels(source.folder, f"has {images}/ but no {labels}/")
    named = ", ".join(f"{name}/" for name in others)
    return DataError(
        f"{source.folder}: has {images}/ and {named} but no {labels}/",
        cure=f"Rename the folder with the label maps that are wanted to {labels}/, or set a link of that name to it; "
        "or list the files in a CSV with the columns image and label.",
    )
