"""Slicer's module SampleData, as far as extensions register sets with it; nothing is downloaded here."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import slicer


class SampleDataSource:
    """One set, as its button has it."""

    def __init__(self, **fields: Any) -> None:
        self.sampleName: str = fields["sampleName"]
        self.sampleDescription: str = fields["sampleName"]
        self.uris: list[str] = _as_list(fields["uris"])
        self.fileNames: list[str] = _as_list(fields["fileNames"])
        self.nodeNames: list[Any] = _as_list(fields["nodeNames"])
        self.checksums: list[Any] = _as_list(fields["checksums"], self.uris)
        self.loadFiles: list[Any] = _as_list(fields["loadFiles"], self.uris)
        self.thumbnailFileName: str = fields["thumbnailFileName"]
        self.customDownloader = fields["customDownloader"]
        lengths = {len(one) for one in (self.uris, self.fileNames, self.nodeNames, self.checksums, self.loadFiles)}
        if len(lengths) > 1:
            raise ValueError("uris, fileNames, nodeNames, checksums and loadFiles differ in length")
        for checksum in self.checksums:
            algorithm, _, digest = (checksum or "SHA256:" + 64 * "0").partition(":")
            if len(digest) != {"SHA256": 64, "SHA512": 128, "MD5": 32}.get(algorithm):
                raise ValueError(f"{checksum} is no checksum that Slicer can see to")
        if self.thumbnailFileName and not Path(self.thumbnailFileName).is_file():
            # Slicer shows a button without a picture, and says nothing.
            raise FileNotFoundError(self.thumbnailFileName)

    def click(self) -> None:
        """The button of the set."""
        if self.customDownloader is None:
            raise NotImplementedError("the stand-in downloads nothing")
        self.customDownloader(self)


class SampleDataLogic:
    """What extensions call."""

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: str | None = None,
        loadFileType: Any = "VolumeFile",
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
    ) -> None:
        fields = {**locals()}
        source = SampleDataSource(**{name: fields[name] for name in _FIELDS})
        slicer.modules.sampleDataSources.setdefault(category, []).append(source)


_FIELDS = (
    *("sampleName", "uris", "fileNames", "nodeNames", "customDownloader", "thumbnailFileName"),
    *("loadFiles", "checksums"),
)


def _as_list(value: Any, like: list[str] | None = None) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    if value is None and like is not None:
        return [None] * len(like)
    if isinstance(value, str):
        return [value]
    raise TypeError(f"{value!r}: Slicer takes the length of it")


def module() -> types.ModuleType:
    """What ``import SampleData`` finds."""
    made = types.ModuleType("SampleData", "of the stand-in")
    vars(made).update(SampleDataLogic=SampleDataLogic, SampleDataSource=SampleDataSource)
    return made
