"""What a model package says of itself, read without torch, monai or nibabel: panels list models in Slicer's process.

This is the one place that knows how ``configs/metadata.json`` is laid out for reading; whoever needs the network
too takes :func:`HybridMIMLib.model_package.load_model`, which reads the description here. A package may come from
anywhere: its description is data, nothing in it is evaluated, and a network or a plan of a size that no scan asks for
is refused before anything is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

from HybridMIMLib.architectures import settled, total_stride
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.package_files import MOST_TEXT, PackageFiles, open_package
from HybridMIMLib.errors import ModelError, SettingsError
from HybridMIMLib.files import read_json
from HybridMIMLib.settings.checks import is_name
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.plan import PlanSettings

FORMAT = 3
"""2: networks are MONAI's, with other names of tensors. 3: tensors have MONAI's names, files their hashes."""
FORMAT_OF_SEVERAL = 4
"""An ensemble: as 3, with several files of weights. A program that knows 3 alone must not take the first for all."""
METADATA = Path("configs") / "metadata.json"
WEIGHTS = Path("models") / "model.safetensors"
MOST_MEMBERS = 20

HIGHEST_LABEL = 65535
"""Label maps are written with 8 or 16 bits."""
MOST_CLASSES = 255
"""Prepared label maps have 8 bits."""
MOST_CHANNELS, MOST_STAGES, MOST_FEATURES, WIDEST_WINDOW = 64, 10, 4096, 32
LONGEST_SIDE, MOST_VOXELS = 1024, 2**27
"""Of a crop."""
LONGEST_NAME, LONGEST_LICENSE = 200, 100_000
NO_LICENSE = "Not stated: ask who made this model before you use it or hand it on."


@dataclass(frozen=True)
class ModelDescription:
    """A model package without its weights.

    Attributes:
        path: its folder, or its ``.zip``.
        name: what it is called; that of its run folder where it was saved without a name.
        classes: what it segments, at least one.
        channels: of the scans that it takes.
        provenance: how it was made, and how well it did.
        trained: when it was made, ISO 8601 with zone, or None where that was not recorded.
        network: settings of the network.
        plan: how scans are prepared, as it stands in the file; ``Plan.from_json`` makes a plan of it.
        overlapping: whether a voxel may be of several classes: one output a class, and none for the background.
        clean_up: what is done to label maps afterwards.
        flip_axes: axes along which crops were flipped in training, 0 = left-right.
        license: under which the model may be used, in words.
        members: networks whose scores are averaged; 1 for a model of one.
        channel_names: what the channels are called, in their order; empty where the package does not say.
    """

    path: Path
    name: str
    classes: tuple[LabelClass, ...]
    channels: int
    provenance: dict[str, Any]
    trained: str | None
    network: NetworkSettings
    plan: dict[str, Any]
    overlapping: bool = False
    clean_up: CleanUp = field(default_factory=CleanUp)
    flip_axes: tuple[int, ...] = ()
    license: str = NO_LICENSE
    members: int = 1
    channel_names: tuple[str, ...] = ()


def weights_files(members: int) -> tuple[Path, ...]:
    """The files of weights of a package, one a network."""
    if members == 1:
        return (WEIGHTS,)
    return tuple(WEIGHTS.with_name(f"model_{number}.safetensors") for number in range(1, members + 1))


def read_description(path: Path) -> ModelDescription:
    """Read and check what a package, a folder or a ``.zip``, says of itself; hashes are not looked at.

    Raises:
        ModelError: there is none, it is not ours, of another format, damaged, or without weights.
    """
    if _is_there(path, folder=False):
        with open_package(path) as files:
            return description_of(files)
    if not _is_there(path, folder=True):
        raise ModelError(f"{path}: is not a model package (a folder or a .zip)", cure=_GIVE)
    try:
        # What is no plain file has no size, and may have no end.
        if not (path / METADATA).is_file() or (path / METADATA).stat().st_size > MOST_TEXT:
            raise ValueError("no file, or too large")
        content = read_json(path / METADATA)
    except (OSError, ValueError, RecursionError) as error:
        raise _not_ours(path) from error
    return _description(path, content, lambda file: _is_there(path / file, folder=False))


def description_of(files: PackageFiles) -> ModelDescription:
    """What an open package says of itself; see :func:`read_description`."""
    if METADATA.as_posix() not in files.sizes:
        raise _not_ours(files.path)
    try:
        content = files.read_json(METADATA.as_posix())
    except ValueError as error:
        raise _not_ours(files.path) from error
    return _description(files.path, content, lambda file: file.as_posix() in files.sizes)


def find_models(folder: Path) -> list[ModelDescription]:
    """The models that runs made, newest first: ``RUN/model`` and ``RUN/STAGE/model`` for each RUN in ``folder``.

    A folder that does not exist has no models.
    """
    paths = sorted([*folder.glob("*/model"), *folder.glob("*/*/model")])
    return by_age(path for path in paths if path.parent.name != "store")


def by_age(paths: Iterable[Path]) -> list[ModelDescription]:
    """The packages in these folders, newest first.

    Those that cannot be read are passed over, as they are there while a run removes or writes one. The age is that of
    the training, or of the file where no date was recorded.
    """
    found: list[tuple[float, ModelDescription]] = []
    for path in paths:
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


_GIVE = "Give the folder 'model' that finetune wrote, with configs/ and models/ inside, or a .zip of it."


def _not_ours(path: Path) -> ModelError:
    return ModelError(f"{path}: is not a HybridMIM model package", cure=_GIVE)


def _description(path: Path, content: Any, has: Callable[[Path], bool]) -> ModelDescription:
    ours = content.get("hybridmim") if isinstance(content, dict) else None
    if not isinstance(ours, dict) or not _is_whole(ours.get("format"), 1):
        raise _not_ours(path)
    if ours["format"] < FORMAT:
        raise ModelError(
            f"{path}: was made by an earlier version (format {ours['format']}), whose packages were others",
            cure="Train the model again.",
        )
    if ours["format"] > FORMAT_OF_SEVERAL:
        raise ModelError(
            f"{path}: was made by a later version (format {ours['format']})", cure="Update HybridMIM, then try again."
        )
    try:
        description = _checked(path, content, ours)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, SettingsError) as error:
        raise damaged(path, error) from error
    for file in weights_files(description.members):
        if not has(file):
            raise ModelError(f"{path / file}: no such file", cure="Get the package again from where it came from.")
    return description


def _checked(path: Path, content: Mapping[str, Any], ours: Mapping[str, Any]) -> ModelDescription:
    plan, provenance = ours["plan"], ours.get("provenance", {})
    name, trained = content.get("name", _name_by_place(path)), None
    _require(isinstance(plan, dict) and _is_whole(plan["channels"], 1), "the plan has no number of channels")
    _require(isinstance(provenance, dict), "the provenance is no section")
    _require(_is_short_name(name), f"the name is {str(name)[:LONGEST_NAME]!r}")
    if provenance.get("trained") is not None:
        trained = provenance["trained"]
        # TypeError where it is no text, ValueError where it is no date.
        _require(datetime.fromisoformat(trained).tzinfo is not None, f"the date {trained!r} has no time zone")
    network = _network(ours["network"])
    _check_plan(plan, network)
    classes = _classes(ours["classes"])
    overlapping, flips, license_ = ours.get("overlapping", False), ours.get("flip_axes", []), _license(content)
    _require(isinstance(overlapping, bool), "overlapping is neither true nor false")
    _require(isinstance(flips, list) and sorted({0, 1, 2} & set(flips)) == sorted(flips), f"flip_axes is {flips!r}")
    clean_up = CleanUp.from_json(ours["clean_up"]) if "clean_up" in ours else CleanUp()
    cleaned = clean_up.largest | clean_up.fill_holes | set(clean_up.smallest_ml)
    _require(cleaned <= {one.label for one in classes}, "a label is cleaned up that no class has")
    return ModelDescription(
        path,
        name,
        classes,
        plan["channels"],
        provenance,
        trained,
        network,
        plan,
        overlapping,
        clean_up,
        tuple(flips),
        license_,
        _members(ours),
        _channel_names(content, plan["channels"]),
    )


def _members(ours: Mapping[str, Any]) -> int:
    if ours["format"] == FORMAT:
        return 1
    count = ours["members"]
    _require(_is_whole(count, 2) and count <= MOST_MEMBERS, f"an ensemble of {count!r} networks")
    return int(count)


def _channel_names(content: Mapping[str, Any], channels: int) -> tuple[str, ...]:
    """As MONAI's bundles list them; whatever else stands there names nothing."""
    try:
        names = content["network_data_format"]["inputs"]["image"]["channel_def"]
        found = tuple(names[str(number)] for number in range(channels))
    except (LookupError, TypeError):
        return ()
    return found if all(map(_is_short_name, found)) else ()


def _network(content: Any) -> NetworkSettings:
    network = NetworkSettings(**content)
    _require(settled(network, (1, 1, 1)) == network, "the network's features and strides are left open")
    features = network.features or []
    _require(len(features) <= MOST_STAGES and max(features, default=0) <= MOST_FEATURES, "the network is too large")
    _require(network.window <= WIDEST_WINDOW, "the network's window is too large")
    return network


def _check_plan(plan: Mapping[str, Any], network: NetworkSettings) -> None:
    """Sizes that some scan could have, and that fit the network."""
    _require(plan["channels"] <= MOST_CHANNELS, f"scans of {plan['channels']} channels")
    for name, kinds, count in (("spacing", (int, float), 3), ("window", (int, float), 2), ("crop", (int,), 3),
                               ("patch", (int,), 3), ("region", (int,), 3)):  # fmt: skip
        values = plan[name]
        fine = isinstance(values, list) and len(values) == count
        _require(fine and all(type(one) in kinds and math.isfinite(one) for one in values), f"{name} is {values!r}")
    _require(all(1e-3 <= one <= 1e3 for one in plan["spacing"]), f"the spacing is {plan['spacing']}")
    _require(plan["window"][0] < plan["window"][1], f"the window is {plan['window']}")
    for name in ("crop", "patch", "region"):
        _require(all(1 <= side <= LONGEST_SIDE for side in plan[name]), f"the {name} is {plan[name]}")
    _require(math.prod(plan["crop"]) <= MOST_VOXELS, f"the crop is {plan['crop']}")
    ways = set(get_args(get_type_hints(PlanSettings)["normalisation"])) - {"auto"}
    _require(plan["normalisation"] in ways, f"the normalisation is {plan['normalisation']!r}")
    stride = total_stride(network)
    _require(
        not any(c % s for c, s in zip(plan["crop"], stride)), f"the crop {plan['crop']} does not fit the network"
    )


def _license(content: Mapping[str, Any]) -> str:
    text = content.get("license", NO_LICENSE)
    _require(isinstance(text, str) and 0 < len(text.strip()) <= LONGEST_LICENSE, "the license is no text")
    return str(text)


def _classes(content: Any) -> tuple[LabelClass, ...]:
    _require(isinstance(content, list) and len(content) > 0, "the classes are no list, or an empty one")
    _require(len(content) <= MOST_CLASSES, f"{len(content)} classes, more than {MOST_CLASSES}")
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
    _require(_is_short_name(content["name"]), f"a class is called {str(content['name'])[:LONGEST_NAME]!r}")
    terminology = content.get("terminology")
    _require(
        terminology is None or (isinstance(terminology, str) and len(terminology) < 4096), "a terminology is no text"
    )
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


def _is_short_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME and is_name(value) and value.isprintable()


def _is_whole(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
