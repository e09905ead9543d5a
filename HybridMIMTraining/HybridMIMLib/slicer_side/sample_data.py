"""Data to try the modules with: a synthetic set that is drawn here, and a public one that is downloaded.

    >>> for sample in SAMPLES:
    ...     print(sample.name, "-", sample.licence)
    Synthetic phantoms - none needed: invented bodies, free for any use
    MSD Hippocampus - CC-BY-SA 4.0
    >>> finish(get_steps(SAMPLES[0]))                       # the folder that was made           # doctest: +SKIP
    >>> remove(SAMPLES[0])                                                                      # doctest: +SKIP

Both lie in ``sample data`` in the workspace, where the user finds and can delete them. A set is made under a
temporary name and renamed when it is whole; a download is taken only if it has the SHA-256 that is known of it.

In Slicer's module Sample Data they stand under HybridMIM (:func:`register`).
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tarfile
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import slicer

from HybridMIMLib.config import workspace
from HybridMIMLib.data.package_files import wrong_with_name
from HybridMIMLib.errors import DataError, DiskError
from HybridMIMLib.files import TEMPORARY, disk_errors, free_bytes, make_folder, size_in_words
from HybridMIMLib.slicer_side.child_steps import in_child, with_folder
from HybridMIMLib.slicer_side.disk_use import bytes_in
from HybridMIMLib.slicer_side.steps import Step, Steps, in_thread, part

CATEGORY = "HybridMIM"
"""Of both in Slicer's module Sample Data."""

_SHARE_OF_DOWNLOAD = 0.9
_BLOCK = 2**18
_SECONDS_WITHOUT_ANSWER = 30
_SPARE = 64 * 2**20
_MOST_FILES, _LONGEST_NAME = 10_000, 200
_PICTURES = Path(__file__).parents[2] / "Resources" / "Icons"
_OFFLINE_CURE = "Connect this computer to the internet, or take the synthetic set, which is made here."


@dataclass(frozen=True)
class Sample:
    """A set of scans.

    Attributes:
        identifier: of it, and of its folder.
        name: for people.
        about: what it is, in a sentence or two.
        licence: of the scans.
        unlabelled, labelled: its folders for the two kinds of learning, relative to its own.
        size: bytes on the disk, at most.
        url: from where it comes; empty: it is made here.
        sha256: of the file there.
        bytes: of the file there.
    """

    identifier: str
    name: str
    about: str
    licence: str
    unlabelled: str
    labelled: str
    size: int
    url: str = ""
    sha256: str = ""
    bytes: int = 0

    @property
    def folder(self) -> Path:
        """Where it lies, or would."""
        return samples_folder() / self.identifier

    @property
    def is_there(self) -> bool:
        """Whether it is; what is there is whole."""
        return self.folder.is_dir()

    @property
    def folders(self) -> tuple[Path, Path]:
        """Of unlabelled and of labelled scans."""
        return self.folder / self.unlabelled, self.folder / self.labelled

    @property
    def picture(self) -> Path:
        """A small picture of it."""
        return _PICTURES / f"Sample-{self.identifier}.png"

    def describe(self) -> str:
        """What it is, its licence, and where it lies or how large it would be."""
        where = f"It is in {self.folder}." if self.is_there else f"It takes {size_in_words(self.size)}."
        return f"{self.about} Licence: {self.licence}. {where}"


SAMPLES = (
    Sample(
        "phantoms",
        "Synthetic phantoms",
        "Invented CT-like bodies, drawn on this computer in a minute, without the internet: 16 scans without labels, "
        "12 with liver, spleen, kidneys and spine, and 4 to test on. No patient is in them; a model trained on them "
        "is of no use on real scans.",
        "none needed: invented bodies, free for any use",
        "unlabelled",
        "labelled",
        30_000_000,
    ),
    Sample(
        "hippocampus",
        "MSD Hippocampus",
        "MR of the head cut to the hippocampus, Task 4 of the Medical Segmentation Decathlon (Antonelli et al., "
        "arXiv:2106.05735): 260 scans with its anterior and posterior part labelled, and 130 without labels. "
        "Downloaded from the mirror of the MONAI project.",
        "CC-BY-SA 4.0",
        "Task04_Hippocampus",
        "Task04_Hippocampus",
        60_000_000,
        url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
        # MONAI publishes an MD5 (9d24dba78a72977dbd1d2e110310f31b); this is what several projects, such as torch-em,
        # publish for the same file.
        sha256="282d808a3e84e5a52f090d9dd4c0b0057b94a6bd51ad41569aef5ff303287771",
        bytes=28_425_216,
    ),
)


def samples_folder() -> Path:
    """Where they are kept."""
    return workspace() / "sample data"


def sample_of(identifier: str) -> Sample:
    """The set of that identifier."""
    return next(one for one in SAMPLES if one.identifier == identifier)


def get_steps(sample: Sample) -> Steps[Path]:
    """Make or download a set, unless it is there; closed early, nothing of it is left.

    Returns:
        Its folder.

    Raises:
        DataError: it cannot be downloaded, or is not what it should be.
        DiskError: there is no room.
        RunError: the process that draws it failed.
    """
    if sample.is_there:
        return sample.folder
    make_folder(samples_folder())
    # A download lies beside what is unpacked of it.
    needed, free = sample.size + sample.bytes + _SPARE, free_bytes(samples_folder())
    if needed > free:
        raise DiskError(
            f"{samples_folder()}: {size_in_words(needed)} are needed, and {size_in_words(free)} are free",
            cure="Free some space, or move the workspace with HYBRIDMIM_WORKSPACE.",
        )
    work = samples_folder() / f"{TEMPORARY}{uuid.uuid4().hex[:8]}"
    try:
        yield from _download(sample, work) if sample.url else _draw(work)
        with disk_errors(sample.folder):
            os.replace(work, sample.folder)
    finally:
        # Begun, and not waited for: there may be nobody left to wait.
        threading.Thread(target=shutil.rmtree, args=(work,), kwargs={"ignore_errors": True}, daemon=True).start()
    return sample.folder


def remove(sample: Sample) -> None:
    """Delete a set; for a thread.

    Raises:
        DiskError: it cannot be deleted.
    """
    # Under another name first, so that nobody takes up what is half deleted.
    temporary = sample.folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}")
    with disk_errors(sample.folder):
        os.replace(sample.folder, temporary)
        shutil.rmtree(temporary)
    with suppress(OSError):
        samples_folder().rmdir()


def size_of(sample: Sample) -> int:
    """The bytes that a set takes; for a thread."""
    return bytes_in(sample.folder)


def register(get: Callable[[str], None] | None = None) -> None:
    """Show the sets in Slicer's module Sample Data, once that is loaded; more than once does no harm.

    Args:
        get: called with the identifier of a set whose button was pressed there; by default the module HybridMIM
            Training is opened, which gets it.
    """
    logic = importlib.import_module("SampleData").SampleDataLogic
    take = get or _get_in_module
    for sample in SAMPLES:
        if _is_registered(sample):
            continue
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=sample.name,
            # Without a file of its own a set has empty lists.
            uris=[sample.url] if sample.url else [],
            fileNames=[sample.url.rpartition("/")[2]] if sample.url else [],
            nodeNames=[None] if sample.url else [],
            loadFiles=[False] if sample.url else [],
            checksums=[f"SHA256:{sample.sha256}"] if sample.url else [],
            thumbnailFileName=str(sample.picture),
            customDownloader=lambda source, identifier=sample.identifier: take(identifier),
        )


def _is_registered(sample: Sample) -> bool:
    sources = getattr(slicer.modules, "sampleDataSources", {}).get(CATEGORY, [])
    return any(source.sampleName == sample.name for source in sources)


def _get_in_module(identifier: str) -> None:
    slicer.util.selectModule("HybridMIMTraining")
    slicer.util.getModuleWidget("HybridMIMTraining").getSample(identifier)


# --- making -----------------------------------------------------------------------------------------------------


def _draw(work: Path) -> Steps[None]:
    job = {"folder": str(work), "seed": 0, "unlabelled": 16, "labelled": 12, "unseen": 4}
    module = "HybridMIMLib.data.phantom_job"
    yield from with_folder(lambda folder: in_child(module, job, folder, "Drawing scans"))


def _download(sample: Sample, work: Path) -> Steps[None]:
    progress, stop = _Progress(), threading.Event()
    archive = work / f"{TEMPORARY}download"
    try:
        make_folder(work)
        fetch = in_thread(lambda: _fetch(sample, archive, progress, stop), Step(0.0, "Downloading"))
        for _ in fetch:
            yield Step(_SHARE_OF_DOWNLOAD * progress.done / sample.bytes, f"Downloading from {_host(sample.url)}")
        unpack = in_thread(lambda: _unpack(sample, archive, work, stop), Step(0.0, "Unpacking"))
        yield from part(unpack, _SHARE_OF_DOWNLOAD, 1.0)
    finally:
        stop.set()


class _Progress:
    """Bytes that have come."""

    done = 0


def _fetch(sample: Sample, archive: Path, progress: _Progress, stop: threading.Event) -> None:
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(sample.url, timeout=_SECONDS_WITHOUT_ANSWER) as source,
            disk_errors(archive),
            open(archive, "wb") as file,
        ):
            while not stop.is_set() and progress.done <= sample.bytes and (block := source.read(_BLOCK)):
                file.write(block)
                digest.update(block)
                progress.done += len(block)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"{sample.name} could not be downloaded ({reason})", cure=_OFFLINE_CURE) from error
    if not stop.is_set() and digest.hexdigest() != sample.sha256:
        raise DataError(
            f"{sample.name}: what was downloaded from {_host(sample.url)} is not the file that is known "
            f"({progress.done} of {sample.bytes} bytes, another SHA-256)",
            cure="Try again; should it be so again, a proxy may be in the way, or the file has changed.",
        )


def _unpack(sample: Sample, archive: Path, work: Path, stop: threading.Event) -> None:
    with disk_errors(work):
        try:
            with tarfile.open(archive) as packed:
                for member in _members(sample, packed):
                    if stop.is_set():
                        return
                    target = work / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    stream = packed.extractfile(member)
                    assert stream is not None
                    with stream, open(target, "xb") as file:
                        shutil.copyfileobj(stream, file)
        except tarfile.TarError as error:
            raise DataError(f"{sample.name}: cannot be unpacked ({error})", cure="Try again.") from error
        archive.unlink()


def _members(sample: Sample, packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The plain files, with names that stay in the folder; what macOS leaves beside files is passed over."""
    for count, member in enumerate(packed):
        name = member.name.removeprefix("./")
        if not member.isfile() or PurePosixPath(name).name.startswith("._"):
            continue
        if count > _MOST_FILES or wrong_with_name(name, _LONGEST_NAME):
            raise DataError(f"{sample.name}: holds {name!r}, which does not belong there", cure="Do not use it.")
        yield member


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0] or "this computer"
