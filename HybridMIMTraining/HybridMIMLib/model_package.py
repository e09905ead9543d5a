"""The trained model as a folder that others can use: a MONAI bundle.

``configs/metadata.json`` describes it in MONAI's words, with our own under ``hybridmim``: network, plan, classes with
names, colours and terminology, and where it came from. ``models/model.safetensors`` holds the weights.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from HybridMIMLib.config import NetworkSettings
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import FORMAT, METADATA, WEIGHTS, damaged, read_description
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import HybridMIMError
from HybridMIMLib.files import TEMPORARY, disk_errors, write_json
from HybridMIMLib.networks import SegmentationNetwork, make_segmentation_network
from HybridMIMLib.runs import versions
from HybridMIMLib.weights import load_weights, restore, save_weights


@dataclass(frozen=True)
class ModelPackage:
    """A network that can segment, and all that is needed to use it.

    Attributes:
        network: with its trained weights, on the CPU.
        settings: of the network.
        plan: how scans are brought to the form it was trained on.
        classes: what its outputs mean; output 0 is background.
        provenance: how it was made, and how well it did.
        name: what it is called.
    """

    network: SegmentationNetwork
    settings: NetworkSettings
    plan: Plan
    classes: tuple[LabelClass, ...]
    provenance: dict[str, Any]
    name: str

    def save(self, folder: Path) -> None:
        """Write the package; an earlier one in the folder is replaced when the new one is whole.

        Raises:
            DiskError: it could not be written.
        """
        temporary = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{folder.name}")
        with disk_errors(folder):
            try:
                save_weights(temporary / WEIGHTS, self.network.state_dict(), {"format": FORMAT, "kind": "model"})
                write_json(temporary / METADATA, self._metadata())
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _metadata(self) -> dict[str, Any]:
        packages = versions()
        names = {"0": "background", **{str(n): c.name for n, c in enumerate(self.classes, 1)}}
        shape = list(self.plan.crop)
        return {
            "name": self.name,
            "version": "0.1.0",
            "changelog": {"0.1.0": "trained"},
            "monai_version": packages["monai"],
            "pytorch_version": packages["torch"],
            "numpy_version": packages["numpy"],
            "required_packages_version": {name: packages[name] for name in ("einops", "safetensors", "nibabel")},
            "task": f"segmentation of {', '.join(c.name for c in self.classes)}",
            "description": "Trained with HybridMIM on local scans. For research, not for clinical use.",
            "authors": "",
            "copyright": "",
            "network_data_format": {
                "inputs": {"image": _tensor_format("image", self.plan.channels, shape, {"0": "scan"}, [0, 1])},
                "outputs": {"pred": _tensor_format("segmentation", len(names), shape, names, [0, len(names) - 1])},
            },
            "hybridmim": {
                "format": FORMAT,
                "network": asdict(self.settings),
                "plan": self.plan.to_json(),
                "classes": [c.to_json() for c in self.classes],
                "provenance": self.provenance,
            },
        }


def load_model(folder: Path) -> ModelPackage:
    """Read a package; the weights must fit to the last tensor.

    Raises:
        ModelError: there is none, it is not ours, of a later format, or damaged.
    """
    found = read_description(folder)
    try:
        plan = Plan.from_json(found.plan)
        network = make_segmentation_network(found.network, plan.channels, len(found.classes), plan.crop)
    except (LookupError, TypeError, ValueError, ArithmeticError, HybridMIMError) as error:
        raise damaged(folder, error) from error
    tensors, _ = load_weights(folder / WEIGHTS)
    restore(network, tensors, folder / WEIGHTS)
    return ModelPackage(network.eval(), found.network, plan, found.classes, found.provenance, found.name)


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
