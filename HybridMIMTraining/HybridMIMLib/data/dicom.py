"""DICOM series: which files of a folder make one, and reading it.

Headers are read through pydicom and every plane is looked at (:mod:`HybridMIMLib.data.dicom_geometry`); pixels come
through SimpleITK file by file, which knows the compressed transfer syntaxes. A series is named by its first file in
the order of space. What was found in a folder is kept until its files change, because whoever lists the scans reads
them later.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from HybridMIMLib.data.dicom_geometry import stack_planes
from HybridMIMLib.data.dicom_headers import Header, Plane, is_dicom, read_header
from HybridMIMLib.data.dicom_pixels import decode
from HybridMIMLib.data.grid import Affine, Array
from HybridMIMLib.data.names import has_scan_suffix, is_passed_over, natural_key
from HybridMIMLib.data.volume import AGAIN, Content, Volume, check_file, times
from HybridMIMLib.errors import ScanError

_SEPARATOR = "\0"
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, eq=False)
class Series:
    """The files of one volume, or of what cannot be one.

    Attributes:
        folder: where they lie.
        names: of the files in the order of space, joined by NUL: a data set may have millions.
        uid: of the series.
        title: what parts it from the other series of its folder; ``""`` where it is alone.
        problem: why it cannot be used, without a file's name, or None.
        affine: (4, 4), or None with a problem.
        size: columns and rows.
        planes: the frames of a multi-frame file in the order of space, and how each is rescaled; else empty.
        modality, patient: as the headers say.
        warnings: what is odd about it.
        inverted: the lowest value of some of its files is white.
        stamp: changes when a file does.
    """

    folder: Path
    names: str
    uid: str
    title: str
    problem: ScanError | None
    affine: Affine | None
    size: tuple[int, int]
    planes: tuple[tuple[int, float, float], ...]
    modality: str
    patient: str
    warnings: tuple[str, ...]
    inverted: bool
    stamp: int

    @property
    def path(self) -> Path:
        """Of the first file, by which the series is named."""
        return self.folder / self.names.partition(_SEPARATOR)[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files in the order of space."""
        return tuple(self.folder / name for name in self.names.split(_SEPARATOR))

    def current_stamp(self) -> int:
        """What :attr:`stamp` would be now."""
        return _stamp(self.folder, self.names.split(_SEPARATOR))


@dataclass(frozen=True, eq=False)
class _Folder:
    """The series of a folder by their first file, and what tells that the folder has changed."""

    series: dict[str, Series]
    changed: int
    stamp: int


_known: dict[Path, _Folder] = {}
_parts: dict[Path, ScanError] = {}
_lock = threading.RLock()


def series_in(folder: Path, names: Iterable[str]) -> list[Series]:
    """The series among the files of a folder, in the order of their first files.

    Args:
        folder: where they lie.
        names: of the files that may be DICOM; others are passed over.
    """
    with _lock:
        files = sorted((name for name in names if is_dicom(folder / name)), key=natural_key)
        stamp = _stamp(folder, files)
        known = _known.get(folder)
        if known is None or known.stamp != stamp:
            found = _group(folder, files) if files else []
            known = _Folder({one.path.name: one for one in found}, _changed(folder), stamp)
            _known[folder] = known
        return sorted(known.series.values(), key=lambda one: natural_key(one.path.name))


def series_of(path: Path) -> Series | None:
    """The series that a file belongs to, or None where it belongs to none."""
    with _lock:
        known = _known.get(path.parent)
        one = known.series.get(path.name) if known else None
        if known and one and known.changed == _changed(path.parent) and one.stamp == one.current_stamp():
            return _marked(one)
        if not path.is_file() or not is_dicom(path):
            return None
        names = [file.name for file in path.parent.iterdir() if file.is_file()]
        found = series_in(path.parent, [n for n in names if not (has_scan_suffix(n) or is_passed_over(n))])
        return next((_marked(one) for one in found if path.name in one.names.split(_SEPARATOR)), None)


def read_dicom(path: Path, content: Content | None = None) -> Volume:
    """Read the series that a file belongs to; the bytes of all its files go to ``content``.

    Raises:
        ScanError: it is no volume of even slices, or a file cannot be read.
    """
    series = series_of(path)
    if series is None:
        check_file(path)
        raise ScanError(f"{path}: holds no image", cure="Remove it from the list, or choose the images.")
    if series.problem is not None:
        raise ScanError(f"{series.path}: {series.problem.message}", cure=series.problem.cure)
    assert series.affine is not None
    stack = _read_frames(series, content) if series.planes else _read_slices(series, content)
    return Volume(
        stack.transpose(2, 1, 0)[np.newaxis],
        series.affine,
        stacked=False,
        warnings=series.warnings,
        modality=series.modality if series.modality in ("CT", "MR") else "",
        patient=series.patient,
    )


def mark_parts(found: Sequence[Series]) -> None:
    """Series of one uid that lie in several folders are parts of a volume, unless they are copies of each other.

    Each part may look like a whole volume; none may be taken for one. It is remembered for the reading.
    """
    by_uid: dict[tuple[str, ...], list[Series]] = {}
    for one in found:
        if one.uid and not one.planes:
            by_uid.setdefault((one.uid, one.patient, one.modality), []).append(one)
    with _lock:
        for one in found:
            _parts.pop(one.path, None)
        for others in by_uid.values():
            if len({one.folder for one in others}) > 1:
                _mark(others)


def _mark(others: Sequence[Series]) -> None:
    instances = [_instances(one) for one in others]
    for one, own in zip(others, instances):
        for other, its in zip(others, instances):
            if other.folder != one.folder and own.isdisjoint(its):
                _parts[one.path] = ScanError(
                    f"is a part of a series, other slices of which lie in {other.folder}",
                    cure="Put all files of the series into one folder.",
                )


def _marked(one: Series) -> Series:
    part = _parts.get(one.path)
    return one if part is None else replace(one, problem=part)


def _instances(series: Series) -> set[str]:
    """The instances' uids; read again for the few that need it, and not kept for the millions that do not."""
    headers = (read_header(file) for file in series.files)
    return {plane.uid for header in headers if header for plane in header.planes}


# --- grouping -----------------------------------------------------------------------------------------------


def _group(folder: Path, names: Sequence[str]) -> list[Series]:
    """Files of one series, patient and modality belong together; a multi-frame file is a volume by itself.

    Anonymisers give one uid to several series, or none to all; two patients must never make one volume.
    """
    groups: dict[tuple[str, ...], list[Header]] = {}
    broken: list[tuple[str, ScanError]] = []
    with warnings.catch_warnings():
        # pydicom warns of every value that is not quite as the standard wants it.
        warnings.simplefilter("ignore")
        for name in names:
            try:
                header = read_header(folder / name)
            except ScanError as error:
                broken.append((name, error))
            else:
                if header is not None:
                    key = (header.series, header.patient, header.modality, name if header.multiframe else "")
                    groups.setdefault(key, []).append(header)
    several = [group[0] for group in groups.values() if group[0].multiframe]
    found = [_series(folder, headers, _other_part(headers[0], several)) for headers in groups.values()]
    if broken:
        found.append(_broken(folder, broken))
    numbers = {one.path.name: group[0].number for one, group in zip(found, groups.values())}
    return [replace(one, title=_title(one, numbers) if len(found) > 1 else "") for one in found]


def _title(one: Series, numbers: dict[str, str]) -> str:
    """The number of a series, where no other of its folder has it, or else the name of its first file."""
    number = numbers.get(one.path.name, "")
    return number if number and [*numbers.values()].count(number) == 1 else one.path.stem


def _broken(folder: Path, files: Sequence[tuple[str, ScanError]]) -> Series:
    """The files of a folder whose headers cannot be read, as one: they may be hundreds of pointers or pieces."""
    error = files[0][1]
    more = f", and {len(files) - 1} more such file(s) here" if len(files) > 1 else ""
    problem = ScanError(error.message.removeprefix(f"{folder / files[0][0]}: ") + more, cure=error.cure)
    return _unusable(folder, [name for name, _ in files], problem)


def _other_part(one: Header, others: Sequence[Header]) -> ScanError | None:
    """A multi-frame file of the same series with other slices of the same volume makes both of them parts."""
    if not (one.multiframe and one.series):
        return None
    for other in others:
        same = (one.series, one.patient, one.modality) == (other.series, other.patient, other.modality)
        if other is not one and same and _beside(one.planes, other.planes):
            return ScanError(
                f"is a part of a series, other slices of which lie in {other.file}",
                cure="Export the series as one multi-frame file, or as one file for each slice.",
            )
    return None


def _beside(some: Sequence[Plane], others: Sequence[Plane]) -> bool:
    """Whether planes point the same way and none of one file lies where one of the other does."""
    if not some or not others:
        return False
    alike = (some[0].orientation, some[0].size) == (others[0].orientation, others[0].size)
    return alike and {plane.position for plane in some}.isdisjoint(plane.position for plane in others)


def _series(folder: Path, headers: Sequence[Header], part: ScanError | None = None) -> Series:
    kept = [header for header in headers if not header.localizer]
    said: tuple[str, ...] = (f"{len(headers) - len(kept)} localizer image(s) in the series are passed over",)
    if len(kept) in (0, len(headers)):
        kept, said = list(headers), ()
    try:
        _check_images(kept)
        planes = [plane for header in kept for plane in header.planes]
        stack = stack_planes(planes)
        if part is not None:
            raise part
    except ScanError as problem:
        unusable = _unusable(folder, [header.file for header in headers], problem)
        return replace(unusable, uid=headers[0].series, patient=headers[0].patient)
    first = headers[0]
    names = list(dict.fromkeys(plane.file for plane in stack.planes))
    turned = sum(header.inverted for header in kept)
    if turned:
        said += (f"{turned} of its files are shown inverted, white is low (MONOCHROME1); the values are as stored",)
    return Series(
        folder,
        _SEPARATOR.join(names),
        first.series,
        "",
        None,
        stack.affine,
        stack.planes[0].size,
        _frame_order(stack.planes) if first.multiframe else (),
        first.modality,
        first.patient,
        (*stack.warnings, *said),
        turned > 0,
        _stamp(folder, names),
    )


def _check_images(headers: Sequence[Header]) -> None:
    without = [header for header in headers if not header.planes]
    if without:
        raise ScanError(
            f"{without[0].file} holds no image though it says that it is one (no rows and columns)", cure=AGAIN
        )
    if any(header.colours for header in headers):
        raise ScanError("a colour image", cure="Remove it from the folder, or convert it to grey values.")
    if all(header.localizer for header in headers):
        raise ScanError("a localizer, on which scans were planned", cure="Remove it from the folder.")


def _frame_order(planes: Sequence[Plane]) -> tuple[tuple[int, float, float], ...]:
    return tuple((plane.frame, *plane.rescale) for plane in planes)


def _unusable(folder: Path, names: Sequence[str], problem: ScanError) -> Series:
    joined = _SEPARATOR.join(names)
    return Series(folder, joined, "", "", problem, None, (0, 0), (), "", "", (), False, _stamp(folder, names))


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1


def _stamp(folder: Path, names: Sequence[str]) -> int:
    parts: list[tuple[str, int, int]] = []
    for name in names:
        try:
            state = (folder / name).stat()
        except OSError:
            parts.append((name, -1, -1))
        else:
            parts.append((name, state.st_size, state.st_mtime_ns))
    return hash(tuple(parts))


# --- pixels -------------------------------------------------------------------------------------------------


def _read_slices(series: Series, content: Content | None) -> Array:
    """(slices, rows, columns), in the smallest type that holds all; each file is rescaled by its own values."""
    files = series.files
    columns, rows = series.size
    stack = np.empty((len(files), rows, columns), dtype=np.int16)
    for index, file in enumerate(files):
        plane = _compact(_pixels(file, (1, rows, columns), content, _own_rescale(series, file)))
        wider = np.result_type(stack.dtype, plane.dtype)
        stack = stack if stack.dtype == wider else stack.astype(wider)
        stack[index] = plane[0]
    return stack


def _read_frames(series: Series, content: Content | None) -> Array:
    """(frames, rows, columns) in the order of space, each frame rescaled by its own values."""
    columns, rows = series.size
    _, slope, intercept = min(series.planes)
    read = _pixels(series.path, None, content, (slope, intercept))
    if (
        read.ndim != 3
        or read.shape[1:] != (rows, columns)
        or len(read) <= max(frame for frame, _, _ in series.planes)
    ):
        raise ScanError(f"{series.path}: its frames are not those that its header lists", cure=AGAIN)
    order = [frame for frame, _, _ in series.planes]
    if len({(slope, intercept) for _, slope, intercept in series.planes}) == 1:
        return _compact(read[order])
    # All frames were rescaled by the values of the first in the file; undo that, and use those of each.
    if slope == 0:
        raise ScanError(f"{series.path}: its values are rescaled by 0", cure=AGAIN)
    own = np.array([(s, i) for _, s, i in series.planes])[:, :, np.newaxis, np.newaxis]
    stored = (read[order].astype(np.float64) - intercept) / slope
    return _compact(stored * own[:, 0] + own[:, 1])


def _pixels(
    path: Path, shape: tuple[int, int, int] | None, content: Content | None, rescale: tuple[float, float]
) -> Array:
    if content is not None:
        # First, so that SimpleITK finds the bytes in the memory of the system: it cannot be handed them.
        content.add_file(path)
    array = decode(path, rescale)
    if shape is not None and array.shape != shape:
        raise ScanError(f"{path}: holds {times(array.shape)} pixels, and its header says {times(shape)}", cure=AGAIN)
    return array


def _own_rescale(series: Series, path: Path) -> tuple[float, float]:
    """Of a slice; only inverted ones need it, so it is read again for those."""
    header = read_header(path) if series.inverted else None
    return header.planes[0].rescale if header and header.planes else (1.0, 0.0)


def _compact(array: Array) -> Array:
    """Integers as 16 bit where they fit, as most readers give 32 for rescaled CT; other numbers as float32."""
    if array.dtype.kind == "f":
        return np.asarray(array, dtype=np.float32)
    fits = array.size == 0 or (_INT16.min <= array.min() and array.max() <= _INT16.max)
    return np.asarray(array, dtype=np.int16) if fits else array
