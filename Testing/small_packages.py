"""Model packages for tests: small networks with weights of no use, and packages that mean harm."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from HybridMIMLib.architectures import settled
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.package_files import HASHES
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.model_package import ModelPackage
from HybridMIMLib.networks import SegmentationNetwork, make_backbone
from HybridMIMLib.settings.network import NetworkSettings

SMALL_PLAN = Plan(1, (1.0, 1.5, 2.0), "percentiles", (-1e3, 1e3), (16, 16, 16), (4, 4, 4), (8, 8, 8))
LIVER = "Segmentation category and type~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes~^^~^^"
CLASSES = (LabelClass(2, "Léber", (0.1, 0.2, 0.3), LIVER), LabelClass(7, "Milz", (1.0, 0.0, 0.5)))


def make_package(
    settings: NetworkSettings | None = None,
    plan: Plan = SMALL_PLAN,
    classes: tuple[LabelClass, ...] = CLASSES,
    name: str = "Léber und Milz",
    **others: Any,
) -> ModelPackage:
    """A package whose network finds every class somewhere: its scores are brought to mean 0 and spread 1."""
    settings = settled(settings or NetworkSettings(features=[4, 8]), plan.spacing)
    outputs = len(classes) + (not others.get("overlapping", False))
    network = SegmentationNetwork(make_backbone(settings, plan.channels, plan.crop, seed=5), outputs).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        network.head.weight.copy_(torch.randn(network.head.weight.shape, generator=generator))
        x = torch.rand((1, plan.channels, *plan.crop), generator=generator)
        scores = network(x)
        network.head.weight /= scores.std((0, 2, 3, 4))[:, None, None, None, None]
        assert network.head.bias is not None
        network.head.bias.zero_()
        network.head.bias.copy_(-network(x).mean((0, 2, 3, 4)))
    return ModelPackage(network, settings, plan, classes, {"seed": 5}, name, **others)


def rehash(folder: Path) -> Path:
    """List the hashes of the files anew, as whoever means harm does too."""
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / HASHES
    }
    (folder / HASHES).write_text(json.dumps(hashes))
    return folder


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def entries_of(folder: Path, top: str = "") -> list[tuple[str, bytes]]:
    """The files of a package, as entries of a zip."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(f"{top}{path.relative_to(folder).as_posix()}", path.read_bytes()) for path in files]


def write_zip(
    target: Path, entries: Iterable[tuple[str | zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    """A zip with these entries in their order, whatever they are called."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    target.write_bytes(written.getvalue())
    return target
