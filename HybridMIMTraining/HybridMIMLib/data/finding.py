"""Finding scans in a folder, and what they are called."""

from __future__ import annotations

from pathlib import Path

from HybridMIMLib.data.dicom import Series, mark_parts, series_in, series_of
from HybridMIMLib.data.dicom_headers import DICOM_SUFFIXES
from HybridMIMLib.data.itk import files_of_itk
from HybridMIMLib.data.names import SUFFIXES, has_scan_suffix, natural_key
from HybridMIMLib.data.walking import MAY_READ, walk
from HybridMIMLib.errors import DataError

_DOUBLE_SUFFIXES = (".seg.nrrd", ".nii.gz")


def find_scans(folder: Path, unreadable: list[str] | None = None) -> list[Path]:
    """All scans in a folder and its subfolders, naturally sorted (2 before 10); one path a DICOM series.

    Folders that are links are followed, each folder once. Hidden and temporary files are passed over, and of DICOM
    what is no image. Of DICOM files the headers are read, of others nothing.

    Args:
        folder: where to look.
        unreadable: a line is added for every subfolder that may not be read; the search goes on without it.

    Raises:
        DataError: the folder does not exist, may not be read, or holds no scan that may.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", cure="Check the path, or choose another folder.")
    found: list[Path] = []
    closed: list[str] = []
    series: list[Series] = []
    for place, names in walk(folder, closed):
        found += [place / name for name in names if has_scan_suffix(name)]
        series += series_in(place, [name for name in names if not has_scan_suffix(name)])
    mark_parts(series)
    found += [one.path for one in series]
    if unreadable is not None:
        unreadable += closed
    if not found and closed:
        raise DataError(closed[0], cure=MAY_READ)
    if not found:
        raise DataError(
            f"no scan found in {folder}: formats are {', '.join(SUFFIXES)} and DICOM",
            cure="Choose the folder with the scans, or convert them (Slicer saves NRRD).",
        )
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def files_of(path: Path) -> tuple[Path, ...]:
    """All files of a scan: the slices of a DICOM series in the order of space, or a header and its data."""
    if has_scan_suffix(path.name):
        return files_of_itk(path)
    series = series_of(path)
    return (path,) if series is None else series.files


def scan_name(path: Path) -> str:
    """The file name without its suffix: ``a.b`` for ``a.b.nii.gz``, ``c`` for ``c.nrrd``, ``c.seg.nrrd``.

    A DICOM series is called as its folder, with its number where the folder holds several.
    """
    for suffix in (*_DOUBLE_SUFFIXES, *SUFFIXES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    series = series_of(path)
    if series is not None:
        return _joined(path.absolute().parent.name, series.title)
    return path.stem if path.name.lower().endswith(DICOM_SUFFIXES) else path.name


def _joined(*parts: str) -> str:
    return "_".join(part for part in parts if part)
