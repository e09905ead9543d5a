"""The trained model as something that others can use: a MONAI bundle, in a folder or a single ``.zip``.

==============================  ====================================================================================
``configs/metadata.json``       what it is, in MONAI's words, with our own under ``hybridmim``: network, plan, classes
                                with names, colours and terminology, clean-up, and where it came from
``configs/inference.json``      how plain MONAI runs it (:mod:`HybridMIMLib.bundle`); never read by us
``models/model.safetensors``    the weights, under the names of MONAI's class; of an ensemble ``model_1.safetensors``,
                                ``model_2.safetensors`` …, one a network
``LICENSE``, ``docs/README.md`` for people
``configs/sha256.json``         the SHA-256 of all the others
==============================  ====================================================================================

Whoever made a package may mean harm. What is read is data alone: the network is made from a list of known ones, of a
size that its file of weights proves before any memory is taken, and a file that has another hash is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of

from HybridMIMLib.bundle import inference_config, why_not_in_monai
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.model_description import (
    FORMAT,
    FORMAT_OF_SEVERAL,
    METADATA,
    MOST_MEMBERS,
    NO_LICENSE,
    ModelDescription,
    damaged,
    weights_files,
)
from HybridMIMLib.data.model_store import locate
from HybridMIMLib.data.package_check import CheckedPackage, check_files
from HybridMIMLib.data.package_files import MOST_BYTES, PackageFiles, changed, open_package, write_hashes
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.weights_header import WeightsHeader
from HybridMIMLib.errors import HybridMIMError, ModelError
from HybridMIMLib.files import TEMPORARY, disk_errors, write_json, write_text
from HybridMIMLib.model_readme import readme
from HybridMIMLib.networks import SegmentationNetwork, make_backbone
from HybridMIMLib.networks.ensemble import Ensemble, members_of
from HybridMIMLib.runs import versions
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.weights import restore, save_weights

CONFIG = Path("configs") / "inference.json"
LICENSE, README = Path("LICENSE"), Path("docs") / "README.md"
NEEDED = ("einops", "fire", "nibabel", "pytorch-ignite", "safetensors", "scipy")
"""What plain MONAI needs to run a package."""
_ALIKE = {
    "plan": "the plan (spacing, intensities, crop)",
    "classes": "the classes",
    "settings": "the network",
    "overlapping": "whether classes overlap",
    "clean_up": "the clean-up",
    "license": "the licence",
}
"""What the members of an ensemble have in common."""
_FOR_THE_REST = 2**24
"""Bytes of a package that are no weights, at most."""


@dataclass(frozen=True)
class ModelPackage:
    """A network that can segment, and all that is needed to use it.

    Attributes:
        network: with its trained weights, on the CPU; or several, whose scores are averaged.
        settings: of the network.
        plan: how scans are brought to the form it was trained on.
        classes: what its outputs mean; output 0 is background, where classes do not overlap.
        provenance: how it was made, and how well it did.
        name: what it is called.
        overlapping: one output a class, each told by itself (sigmoid), and none for the background.
        clean_up: what is done to label maps afterwards.
        flip_axes: axes along which crops were flipped in training, 0 = left-right.
        license: under which it may be used, in words.
        digest: SHA-256 of all files that it was read from; empty where it was not read from any.
    """

    network: SegmentationNetwork | Ensemble
    settings: NetworkSettings
    plan: Plan
    classes: tuple[LabelClass, ...]
    provenance: dict[str, Any]
    name: str
    overlapping: bool = False
    clean_up: CleanUp = field(default_factory=CleanUp)
    flip_axes: tuple[int, ...] = ()
    license: str = NO_LICENSE
    digest: str = ""

    def save(self, folder: Path) -> None:
        """Write the package; an earlier one in the folder is replaced when the new one is whole.

        Raises:
            DiskError: it could not be written.
            ModelError: it would be larger than a package may be.
        """
        self._check_size()
        temporary, before = (_beside(folder) for _ in range(2))
        with disk_errors(folder):
            try:
                self._write(temporary)
                if folder.exists():
                    os.replace(folder, before)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.rmtree(before, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        members = members_of(self.network)
        for file, member in zip(weights_files(len(members)), members):
            tensors = {name: tensor.clone() for name, tensor in member.monai_state().items()}
            save_weights(folder / file, tensors, {"format": FORMAT, "kind": "model"})
        write_json(folder / METADATA, self._metadata())
        if not why_not_in_monai(self.settings):
            write_json(folder / CONFIG, inference_config(self.settings, self.plan, self.classes, self.overlapping,
                                                         len(members)))  # fmt: skip
        write_text(folder / LICENSE, f"{self.license.strip()}\n")
        write_text(folder / README, readme(self.name, self.settings, self.plan, self.classes, self.provenance,
                                           self.license, clean_up=bool(self.clean_up),
                                           members=len(members)))  # fmt: skip
        write_hashes(folder)

    def _check_size(self) -> None:
        """Who trained for days must not get what nobody can read."""
        members = members_of(self.network)
        size = sum(tensor.nbytes for one in members for tensor in one.monai_state().values())
        if size > MOST_BYTES - _FOR_THE_REST:
            raise ModelError(
                f"{self.name}: the weights of its {len(members)} network(s) are {size / 1e9:.1f} GB, and a package "
                f"has at most {MOST_BYTES / 1e9:.1f} GB",
                cure="Make an ensemble of fewer networks with 'model ensemble', or train smaller ones.",
            )

    def _metadata(self) -> dict[str, Any]:
        packages = versions()
        background = [] if self.overlapping else ["background"]
        names = {str(n): name for n, name in enumerate([*background, *(c.name for c in self.classes)])}
        shape, scan = list(self.plan.crop), {str(n): f"channel {n}" for n in range(self.plan.channels)}
        members = len(members_of(self.network))
        several = {"members": members} if members > 1 else {}
        return {
            "name": self.name,
            "version": "0.1.0",
            "changelog": {"0.1.0": "trained"},
            "monai_version": packages["monai"],
            "pytorch_version": packages["torch"],
            "numpy_version": packages["numpy"],
            "required_packages_version": {name: packages[name] for name in NEEDED if name in packages},
            "task": f"segmentation of {', '.join(c.name for c in self.classes)}",
            "description": "Trained with HybridMIM on local scans. For research, not for clinical use.",
            "authors": "",
            "copyright": "",
            "license": self.license,
            "network_data_format": {
                "inputs": {"image": _tensor_format("image", self.plan.channels, shape, scan, [0, 1])},
                "outputs": {"pred": _tensor_format("segmentation", len(names), shape, names, [0, len(names) - 1])},
            },
            "hybridmim": {
                "format": FORMAT_OF_SEVERAL if several else FORMAT,
                **several,
                "network": asdict(self.settings),
                "plan": self.plan.to_json(),
                "classes": [c.to_json() for c in self.classes],
                "overlapping": self.overlapping,
                "clean_up": self.clean_up.to_json(),
                "flip_axes": list(self.flip_axes),
                "provenance": self.provenance,
            },
        }


def ensemble_of(packages: Sequence[ModelPackage], name: str, provenance: dict[str, Any]) -> ModelPackage:
    """One package of the networks of several, those of ensembles one by one; licence and clean-up are those of all.

    Raises:
        ModelError: they are too many, or not of one kind, and the mean of their scores would mean nothing.
    """
    first, members = packages[0], [one for package in packages for one in members_of(package.network)]
    for other in packages[1:]:
        if different := [words for part, words in _ALIKE.items() if getattr(first, part) != getattr(other, part)]:
            raise ModelError(
                f"{first.name} and {other.name} cannot be one model: they differ in {', '.join(different)}",
                cure="Take models that were trained on one data set with the same settings, such as the folds of one "
                "run.",
            )
    if len(members) > MOST_MEMBERS:
        raise ModelError(
            f"{len(members)} networks in one model, and there may be {MOST_MEMBERS}", cure="Take fewer of them."
        )
    # Along axes that one of them has never seen flipped, it would answer wrongly.
    flips = set(first.flip_axes).intersection(*(one.flip_axes for one in packages))
    return replace(
        first,
        network=Ensemble(members).eval(),
        name=name,
        provenance=provenance,
        flip_axes=tuple(sorted(flips)),
        digest="",
    )


def load_model(model: str | Path) -> ModelPackage:
    """Read a package; every hash must be as listed, and the weights must fit to the last tensor.

    Args:
        model: a folder, a ``.zip``, which is not unpacked, or the name of a model that was added.

    Raises:
        ModelError: there is none, it is not ours, of another format, changed or damaged.
    """
    with open_package(locate(model)) as files:
        checked = check_files(files)
        check_shapes(checked)
        found = checked.description
        members = [_member(files, file, checked) for file in weights_files(found.members)]
    network = members[0] if len(members) == 1 else Ensemble(members)
    return ModelPackage(
        network.eval(),
        found.network,
        Plan.from_json(found.plan),
        found.classes,
        found.provenance,
        found.name,
        found.overlapping,
        found.clean_up,
        found.flip_axes,
        found.license,
        checked.digest,
    )


def _member(files: PackageFiles, file: Path, checked: CheckedPackage) -> SegmentationNetwork:
    """One network of a package that was checked, with its weights."""
    name, found = file.as_posix(), checked.description
    content = files.read(name, MOST_BYTES)
    # What is used is what was checked, even if somebody writes to the folder meanwhile.
    if hashlib.sha256(content).hexdigest() != checked.hashes[name]:
        raise changed(found.path, name)
    try:
        tensors = tensors_of(content)
    except (SafetensorError, ValueError, TypeError) as error:
        raise damaged(found.path, error) from error
    network = _network_of(found)
    restore(network, network.own_state(tensors), found.path / file)
    return network


def check_shapes(checked: CheckedPackage) -> None:
    """See whether all weights are those of the network that the package describes; no memory is taken for it.

    Raises:
        ModelError: they are not, or there is no such network.
    """
    for file, weights in zip(weights_files(checked.description.members), checked.weights):
        _check_shapes(checked.description, checked.description.path / file, weights)


def _check_shapes(found: ModelDescription, source: Path, weights: WeightsHeader) -> None:
    if found.network.architecture == "swinunetr":
        # MONAI's class cannot be made without memory, and its window alone could ask for much.
        side = found.network.window**3
        index = weights.shapes.get("swinViT.layers1.0.blocks.0.attn.relative_position_index")
        if index != (side, side):
            raise _other_network(source, "the window")
        return
    with torch.device("meta"):
        network = _network_of(found)
    own = {name: tuple(tensor.shape) for name, tensor in network.monai_state().items()}
    other = sorted(n for n in {*own, *weights.shapes} if own.get(n) != weights.shapes.get(n))
    if other:
        raise _other_network(source, f"{len(other)} tensor(s), the first is {other[0]}")


def _other_network(source: Path, what: str) -> ModelError:
    return ModelError(
        f"{source}: has other shapes than the network that the package describes: {what}",
        cure="Get the package again from where it came from.",
    )


def _network_of(found: ModelDescription) -> SegmentationNetwork:
    """The network that a package describes, with any weights."""
    try:
        plan = Plan.from_json(found.plan)
        backbone = make_backbone(found.network, plan.channels, plan.crop)
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, HybridMIMError) as error:
        raise damaged(found.path, error) from error
    return SegmentationNetwork(backbone, len(found.classes) + (not found.overlapping))


def _beside(folder: Path) -> Path:
    """A temporary name beside a folder."""
    return folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{folder.name[-60:]}")


def _tensor_format(
    kind: str, channels: int, shape: list[int], names: Mapping[str, str], values: list[int]
) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        "num_channels": channels,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": values,
        "is_patch_data": True,
        "channel_def": dict(names),
    }
