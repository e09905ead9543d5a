"""What a model package says of itself, read without torch, monai or nibabel: panels list models in Slicer's process.

This is the one place that knows how ``configs/metadata.json`` is laid out for reading; whoever needs the network
too takes :func:`HybridMIMLib.model_package.load_model`, which reads the description here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from HybridMIMLib.architectures import settled
from HybridMIMLib.config import NetworkSettings, is_name
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import ModelError, SettingsError
from HybridMIMLib.files import read_json

FORMAT = 2
"""2: networks are MONAI's, with other names of tensors."""
METADATA = Path("configs") / "metadata.json"
WEIGHTS = Path("models") / "model.safetensors"

HIGHEST_LABEL = 65535
"""Label maps are written with 8 or 16 bits."""


@dataclass(frozen=True)
class ModelDescription:
    """A model package without its weights.

    Attributes:
        path: its folder.
        name: what it is called; that of its run folder where it was saved without a name.
        classes: what it segments, at least one.
        channels: of the scans that it takes.
        provenance: how it was made, and how well it did.
        trained: when it was made, ISO 8601 with zone, or None where that was not recorded.
        network: settings of the network.
        plan: how scans are prepared, as it stands in the file; ``Plan.from_json`` makes a plan of it.
    """

    path: Path
    name: str
    classes: tuple[LabelClass, ...]
    channels: int
    provenance: dict[str, Any]
    trained: str | None
    network: NetworkSettings
    plan: dict[str, Any]


def read_description(folder: Path) -> ModelDescription:
    """Read and check what a package says of itself.

    Raises:
        ModelError: there is none, it is not ours, of a later format, damaged, or without weights.
    """
    content = _read_metadata(folder)
    try:
        description = _checked(folder, content, content["hybridmim"])
    except (KeyError, TypeError, ValueError, SettingsError) as error:
        raise damaged(folder, error) from error
    if not _is_there(folder / WEIGHTS, folder=False):
        raise ModelError(f"{folder / WEIGHTS}: no such file", cure="Get the package again from where it came from.")
    return description


def find_models(folder: Path) -> list[ModelDescription]:
    """The models that runs made, newest first: ``RUN/model`` and ``RUN/STAGE/model`` for each RUN in ``folder``.

    Packages that cannot be read are passed over, as they are there while a run removes or writes one. The age is
    that of the training, or of the file where no date was recorded. A folder that does not exist has no models.
    """
    found: list[tuple[float, ModelDescription]] = []
    for path in sorted([*folder.glob("*/model"), *folder.glob("*/*/model")]):
        if path.parent.name == "store":
            continue
        try:
            description = read_description(path)
            found.append((_age(description), description))
        except (ModelError, OSError):
            continue
    return [description for _, description in sorted(found, key=lambda pair: pair[0], reverse=True)]


def damaged(folder: Path, reason: Exception) -> ModelError:
    """The error for a package of ours whose description cannot be used."""
    return ModelError(
        f"{folder / METADATA}: the description is damaged ({reason})",
        cure="Get the package again from where it came from.",
    )


def _read_metadata(folder: Path) -> dict[str, Any]:
    cure = "Give the folder 'model' that finetune wrote, with configs/ and models/ inside."
    if not _is_there(folder, folder=True):
        raise ModelError(f"{folder}: is not a model package (a folder)", cure=cure)
    try:
        content = dict(read_json(folder / METADATA))
        ours = content["hybridmim"]
        if not isinstance(ours, dict) or not _is_whole(ours["format"], 1):
            raise TypeError("no format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: is not a HybridMIM model package", cure=cure) from error
    if ours["format"] < FORMAT:
        raise ModelError(
            f"{folder}: was made by an earlier version (format {ours['format']}), whose networks were others",
            cure="Train the model again.",
        )
    if ours["format"] > FORMAT:
        raise ModelError(
            f"{folder}: was made by a later version (format {ours['format']})",
            cure="Update HybridMIM, then try again.",
        )
    return content


def _checked(folder: Path, content: Mapping[str, Any], ours: Mapping[str, Any]) -> ModelDescription:
    plan, provenance = ours["plan"], ours.get("provenance", {})
    name, trained = content.get("name", _name_by_place(folder)), None
    _require(isinstance(plan, dict) and _is_whole(plan["channels"], 1), "the plan has no number of channels")
    _require(isinstance(provenance, dict), "the provenance is no section")
    _require(isinstance(name, str) and is_name(name), f"the name is {name!r}")
    if provenance.get("trained") is not None:
        trained = provenance["trained"]
        # TypeError where it is no text, ValueError where it is no date.
        _require(datetime.fromisoformat(trained).tzinfo is not None, f"the date {trained!r} has no time zone")
    network = NetworkSettings(**ours["network"])
    _require(settled(network, (1, 1, 1)) == network, "the network's features and strides are left open")
    classes = _classes(ours["classes"])
    return ModelDescription(folder, name, classes, plan["channels"], provenance, trained, network, plan)


def _classes(content: Any) -> tuple[LabelClass, ...]:
    _require(isinstance(content, list) and len(content) > 0, "the classes are no list, or an empty one")
    classes = tuple(_class(one) for one in content)
    for kind in ("label", "name"):
        values = [getattr(one, kind) for one in classes]
        _require(len(set(values)) == len(values), f"two classes have one {kind}: {values}")
    return classes


def _class(content: Any) -> LabelClass:
    _require(isinstance(content, dict), f"the class {content!r} is no section")
    _require(
        _is_whole(content["label"], 1) and content["label"] <= HIGHEST_LABEL,
        f"the label {content['label']!r} is no whole number from 1 to {HIGHEST_LABEL}",
    )
    _require(isinstance(content["name"], str) and is_name(content["name"]), f"a class is called {content['name']!r}")
    _require(isinstance(content.get("terminology"), (str, type(None))), "a terminology is no text")
    one = LabelClass.from_json(content)
    _require(all(0 <= part <= 1 for part in one.color), f"the colour {content['color']} is not within 0 and 1")
    return one


def _name_by_place(folder: Path) -> str:
    """Packages saved before models had names: the run is what people remember, ``model`` says nothing."""
    place = folder.absolute()
    while place.name in ("model", "fine-tuning") and place.parent.name:
        place = place.parent
    return " ".join(place.name.split()) or "model"


def _age(description: ModelDescription) -> float:
    if description.trained is not None:
        return datetime.fromisoformat(description.trained).timestamp()
    return (description.path / METADATA).stat().st_mtime


def _is_there(path: Path, *, folder: bool) -> bool:
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:
        # A place that may not be looked into has nothing for us.
        return False


def _is_whole(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
