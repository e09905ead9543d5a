"""Whether a model package from anywhere may be used: everything that can be told of it without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from HybridMIMLib.data.model_description import ModelDescription, description_of, weights_files
from HybridMIMLib.data.package_files import PackageFiles, check_hashes, digest_of, open_package
from HybridMIMLib.data.weights_header import WeightsHeader, read_header
from HybridMIMLib.data.weights_shapes import why_not_these
from HybridMIMLib.errors import ModelError


@dataclass(frozen=True)
class CheckedPackage:
    """A package in which nothing was found wrong.

    Attributes:
        description: what it says of itself.
        hashes: SHA-256 of each of its files but the list of these.
        digest: one SHA-256 of all of them, the same for a folder and its ``.zip``.
        weights: what each of its files of weights holds, one a network.
    """

    description: ModelDescription
    hashes: Mapping[str, str]
    digest: str
    weights: tuple[WeightsHeader, ...]


def check_package(path: Path) -> CheckedPackage:
    """Look at all of a package, a folder or a ``.zip``; nothing is unpacked, and nothing in it is run.

    Raises:
        ModelError: something is wrong with it; the message names the file.
    """
    with open_package(path) as files:
        return check_files(files)


def check_files(files: PackageFiles) -> CheckedPackage:
    """Look at all of an open package; see :func:`check_package`."""
    description = description_of(files)
    hashes = check_hashes(files)
    weights = tuple(_weights(files, file.as_posix()) for file in weights_files(description.members))
    for file, header in zip(weights_files(description.members), weights):
        _check_network(description, file, header)
    return CheckedPackage(description, hashes, digest_of(hashes), weights)


def _check_network(description: ModelDescription, file: Path, header: WeightsHeader) -> None:
    """Whoever imports a package learns at once, and not at the first scan, that it is not whole."""
    outputs = len(description.classes) + (not description.overlapping)
    crop = description.plan["crop"]
    if reason := why_not_these(header.shapes, description.network, description.channels, outputs, crop):
        raise ModelError(
            f"{description.path / file}: has other shapes than the network that the package describes: {reason}",
            cure="Get the package again from where it came from.",
        )


def _weights(files: PackageFiles, name: str) -> WeightsHeader:
    blocks, ahead = files.blocks(name), b""

    def read(count: int) -> bytes:
        nonlocal ahead
        while len(ahead) < count and (block := next(blocks, b"")):
            ahead += block
        part, ahead = ahead[:count], ahead[count:]
        return part

    try:
        return read_header(read, files.sizes[name])
    except ValueError as error:
        raise ModelError(
            f"{files.path}: {name} is no safetensors file ({error})",
            cure="Get the package again from where it came from.",
        ) from error
