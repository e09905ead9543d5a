"""The headers of NRRD and MetaImage, which are text, and whether the voxels that they announce are all there.

SimpleITK reads damaged compressed voxels without a word, and takes what a header does not say for 1 mm and LPS.
"""

from __future__ import annotations

import bz2
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from HybridMIMLib.data.volume import AGAIN, attempt
from HybridMIMLib.errors import ScanError

_BLOCK = 1 << 20
_LARGEST_HEADER = 1 << 24
_SPACES = {
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior"),
    *("lps", "ras", "las"),
}
_META_BYTES = {
    **{"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "long": 4, "ulong": 4},
    **{"long_long": 8, "ulong_long": 8, "float": 4, "double": 8},
}
_NRRD_BYTES = (
    (8, r"(u|signed |unsigned )?long ?long( int)?|u?int64(_t)?|double"),
    (4, r"(u|signed |unsigned )?int|u?int32(_t)?|float"),
    (2, r"(u|signed |unsigned )?short( int)?|u?int16(_t)?"),
    (1, r"(u|signed |unsigned )?char|u?int8(_t)?"),
)


@dataclass(frozen=True)
class TextHeader:
    """What a NRRD or MetaImage file says of itself.

    Attributes:
        fields: by their names in lower case, without blanks at the ends.
        start: where the voxels begin, in bytes, if they lie in the same file.
        data: the file that they lie in.
        several: they lie in files of their own, slice by slice.
        packed: how they are compressed: ``"zlib"`` (gzip too), ``"bz2"``, ``""`` not at all, or ``"text"``.
        bytes: how many they take unpacked; 0 where it cannot be told.
    """

    fields: dict[str, str]
    start: int
    data: Path
    several: bool
    packed: str
    bytes: int


def read_text_header(path: Path) -> TextHeader:
    """The header of a NRRD or MetaImage file.

    Raises:
        ScanError: it has no such header, or one that does not end.
    """
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    with path.open("rb") as handle:
        fields = dict(_nrrd_fields(path, handle) if is_nrrd else _meta_fields(handle))
        start = handle.tell()
    if not ({"type", "sizes"} if is_nrrd else {"dimsize", "elementdatafile"}) <= fields.keys():
        raise ScanError(f"{path}: its header is truncated or damaged, or of another format", cure=AGAIN)
    return attempt(path, lambda: (_nrrd if is_nrrd else _meta)(path, fields, start))


def check_voxels_are_there(path: Path, header: TextHeader) -> None:
    """Unpack the voxels to their checksum, in blocks, and count them.

    Raises:
        ScanError: they lie in many files, or some are missing or damaged.
    """
    if header.several:
        raise ScanError(
            f"{path}: its slices lie in files of their own",
            cure="Save it as one file, for example with Slicer; only the header would be watched for changes.",
        )
    if not header.data.is_file():
        raise ScanError(f"{path}: there is no file {header.data.name}, in which its voxels lie", cure=AGAIN)
    if header.packed == "text":
        return
    there = attempt(header.data, lambda: _count(header))
    if there < header.bytes:
        where = "" if header.data == path else f" of {header.data.name}"
        raise ScanError(
            f"{path}: the file is truncated or damaged: {max(there, 0)} of {header.bytes} bytes{where} are there",
            cure=AGAIN,
        )


def geometry_warnings(path: Path, header: TextHeader) -> tuple[str, ...]:
    """What the header does not say of the place of the voxels, and what is taken instead."""
    fields = header.fields
    if path.suffix.lower() not in (".nrrd", ".nhdr"):
        known = "elementspacing" in fields or "elementsize" in fields
        return () if known else ("stores no voxel size (ElementSpacing): 1 mm is assumed",)
    warnings = []
    if "space directions" not in fields and not re.search(r"\d", fields.get("spacings", "")):
        warnings.append("stores no voxel size (space directions): 1 mm is assumed")
    space = fields.get("space", "")
    if not space:
        warnings.append("stores no orientation (space): left and right may be swapped")
    elif space.lower() not in _SPACES:
        warnings.append(f"its axes are those of {space}, taken for LPS: left and right may be swapped")
    return tuple(warnings)


# --- fields -------------------------------------------------------------------------------------------------


def _nrrd_fields(path: Path, handle: BinaryIO) -> Iterator[tuple[str, str]]:
    if not handle.readline(16).startswith(b"NRRD"):
        raise ScanError(f"{path}: its header is truncated or damaged, or of another format", cure=AGAIN)
    for line in _lines(handle):
        if not line:
            return
        name, separator, value = line.partition(":")
        if separator and not value.startswith("=") and not line.startswith("#"):
            yield name.strip().lower().replace("datafile", "data file"), value.strip()


def _meta_fields(handle: BinaryIO) -> Iterator[tuple[str, str]]:
    for line in _lines(handle):
        name, _, value = line.partition("=")
        yield name.strip().lower(), value.strip()
        if name.strip().lower() == "elementdatafile":
            return


def _lines(handle: BinaryIO) -> Iterator[str]:
    while handle.tell() < _LARGEST_HEADER and (line := handle.readline(_LARGEST_HEADER)):
        yield line.decode("utf-8", "surrogateescape").strip()


def _nrrd(path: Path, fields: dict[str, str], start: int) -> TextHeader:
    name = fields.get("data file", "")
    encoding = fields.get("encoding", "raw").lower()
    packed = {"gz": "zlib", "gzip": "zlib", "bz2": "bz2", "bzip2": "bz2", "raw": ""}.get(encoding, "text")
    each = next((size for size, names in _NRRD_BYTES if re.fullmatch(names, fields["type"].lower())), 0)
    data = path.parent / name if name else path
    several = bool(re.match(r"LIST\b", name)) or ("%" in name and not data.is_file())
    return TextHeader(fields, 0 if name else start, data, several, packed, each * _product(fields["sizes"]))


def _meta(path: Path, fields: dict[str, str], start: int) -> TextHeader:
    name = fields["elementdatafile"]
    local = name.upper() == "LOCAL" or not name
    packed = "zlib" if fields.get("compresseddata", "").lower().startswith(("t", "1")) else ""
    if fields.get("binarydata", "true").lower().startswith(("f", "0")):
        packed = "text"
    kind = fields.get("elementtype", "").lower().removeprefix("met_").removesuffix("_array")
    each = _META_BYTES.get(kind, 0) * int(fields.get("elementnumberofchannels") or 1)
    data = path if local else path.parent / name
    several = bool(re.match(r"LIST\b", name)) or ("%" in name and not data.is_file())
    return TextHeader(fields, start if local else 0, data, several, packed, each * _product(fields["dimsize"]))


def _product(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split())


# --- voxels -------------------------------------------------------------------------------------------------


def _count(header: TextHeader) -> int:
    """Bytes of voxels that are there; a header of their own is left out."""
    fields = header.fields
    own = max(int(fields.get("byte skip") or fields.get("headersize") or 0), 0)
    with header.data.open("rb") as handle:
        handle.seek(header.start)
        for _ in range(int(fields.get("line skip") or fields.get("lineskip") or 0)):
            handle.readline()
        if header.packed == "bz2":
            unpacked = bz2.BZ2File(handle)
            return sum(len(block) for block in iter(lambda: unpacked.read(_BLOCK), b"")) - own
        if header.packed == "zlib":
            if "headersize" in fields:
                handle.seek(own, 1)
                own = 0
            return _unpacked_bytes(handle) - own
        return header.data.stat().st_size - handle.tell() - own


def _unpacked_bytes(handle: BinaryIO) -> int:
    """Of gzip or zlib, to the checksum; in blocks, as scans may be larger than the memory."""
    unpack, count = zlib.decompressobj(wbits=47), 0
    content = handle.read(_BLOCK)
    while content:
        count += len(unpack.decompress(content, _BLOCK))
        if unpack.eof:
            rest = unpack.unused_data or handle.read(_BLOCK)
            if not rest.startswith(b"\x1f\x8b"):
                return count
            unpack, content = zlib.decompressobj(wbits=47), rest
        else:
            content = unpack.unconsumed_tail or handle.read(_BLOCK)
    count += len(unpack.flush())
    if not unpack.eof:
        raise EOFError("compressed data end before their checksum")
    return count
