"""The user's models: packages made to hand on, taken from others, listed and removed.

>>> from HybridMIMLib import pack_model, add_model, list_models, remove_model
>>> pack_model(model="run/model", output="liver.zip", license="CC-BY-4.0")      # doctest: +SKIP
>>> add_model(model="liver.zip")                                               # doctest: +SKIP
>>> remove_model(model="liver")                                                # doctest: +SKIP
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from HybridMIMLib.bundle import why_not_in_monai
from HybridMIMLib.config import Run, make_run, user_path
from HybridMIMLib.data.model_description import LONGEST_LICENSE, LONGEST_NAME, ModelDescription, read_description
from HybridMIMLib.data.model_store import add, all_models, damaged_models, is_added, locate, models_folder, remove
from HybridMIMLib.data.package_files import file_name, pack
from HybridMIMLib.errors import ModelError, SettingsError
from HybridMIMLib.model_package import ModelPackage, check_shapes, ensemble_of, load_model
from HybridMIMLib.networks.ensemble import members_of

_PATH = re.compile(r"(\S+|.*[/\\].*)\.(txt|md|rst)", re.IGNORECASE)
"""What hardly is a license in words."""


def pack_model(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Make a package to hand on of a ``model``: a ``.zip``, or a folder where ``output`` has no such ending.

    ``name``, ``license`` and the clean-up of ``inference`` replace what the model says of itself; a license is a
    text, or a file that holds it. Paths on this machine are left out.

    Returns:
        ``package`` (where it is), ``name``, ``license``, ``bytes``, ``in_monai`` (yes, or why plain MONAI cannot run
        it).

    Raises:
        HybridMIMError: the model cannot be read, or the package not be written.
    """
    run = make_run(run, settings)
    output, source = run.folder("output", "the package to write, such as liver.zip"), _model(run)
    _check_not_inside(output, locate(source))
    package = _as_asked(load_model(source), run)
    return _written(package, output)


def ensemble_models(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Make one package of several ``models``, whose scores are averaged; of an ensemble each network counts.

    They must be of one kind: one plan, one network, the same classes. ``output``, ``name``, ``license`` and the
    clean-up of ``inference`` are as with :func:`pack_model`; without a name it is that of the models.

    Returns:
        As :func:`pack_model`, and ``networks`` (how many there are).

    Raises:
        HybridMIMError: a model cannot be read, one is there twice, they differ, or the package cannot be written.
    """
    run = make_run(run, settings)
    output = run.folder("output", "the package to write, such as liver.zip")
    for path in _several(run):
        _check_not_inside(output, locate(path))
    packages = [_as_asked(load_model(one), run) for one in _several(run)]
    for index, one in enumerate(packages):
        if one.digest in [other.digest for other in packages[:index]]:
            raise SettingsError(f"{_several(run)[index]}: is there twice", cure="Name each model once.")
    names = list(dict.fromkeys(one.name for one in packages))
    provenance = {
        "trained": datetime.now().astimezone().isoformat(timespec="seconds"),
        "members": [one.provenance for one in packages],
    }
    package = ensemble_of(packages, run.name or " + ".join(names)[:LONGEST_NAME].strip(), provenance)
    return {**_written(package, output), "networks": len(members_of(package.network))}


def _several(run: Run) -> list[str]:
    if len(run.models or []) < 2:
        raise SettingsError(
            "an ensemble is of two models or more",
            cure="Name them, such as: model ensemble ONE/model OTHER/model --output BOTH.zip",
        )
    return list(run.models or [])


def _written(package: ModelPackage, output: Path) -> dict[str, Any]:
    """Write a package as a folder or a ``.zip``, and tell what it is."""
    if output.suffix.lower() == ".zip":
        _check_no_folder(output)
        with tempfile.TemporaryDirectory() as place:
            package.save(Path(place) / "model")
            pack(Path(place) / "model", output, file_name(package.name))
    else:
        _check_may_be_replaced(output)
        package.save(output)
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    return {
        "package": str(output),
        "name": package.name,
        "license": package.license.strip().splitlines()[0],
        "bytes": sum(path.stat().st_size for path in files),
        "in_monai": why_not_in_monai(package.settings) or "yes",
    }


def _as_asked(package: ModelPackage, run: Run) -> ModelPackage:
    """The package with what the settings say in place of what it says of itself, and no paths of this machine."""
    return replace(
        package,
        name=run.name or package.name,
        license=_license(run) or package.license,
        clean_up=package.clean_up.with_settings(run.inference, package.classes),
        provenance=_for_others(package.provenance),
    )


def add_model(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Keep a package, ``model``, with the user's models; all of it is checked before anything is unpacked.

    Returns:
        ``name``, ``path`` (where it is kept), ``classes``, ``license``, ``new`` (False where it was there already).

    Raises:
        HybridMIMError: something is wrong with it, another model has its name, or it could not be written.
    """
    path = user_path(_model(make_run(run, settings)))
    found, new = add(path, check_shapes)
    return {
        "name": found.name,
        "path": str(found.path),
        "classes": _classes(found),
        "license": found.license,
        "new": new,
    }


def list_models(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """The models that were added and those that runs made, newest first.

    Returns:
        ``models``: for each ``name``, ``path``, ``classes``, ``trained``, ``added`` (not made by a run here);
        ``damaged``: paths of those that were added and can no longer be read; and ``folder``, where added ones are
        kept.
    """
    make_run(run, settings)
    rows = [
        {
            "name": one.name,
            "path": str(one.path),
            "classes": _classes(one),
            "trained": one.trained,
            "added": is_added(one),
        }
        for one in all_models()
    ]
    damaged = [str(path) for path in damaged_models()]
    return {"models": rows, "damaged": damaged, "folder": str(models_folder())}


def remove_model(run: Run | None = None, **settings: Any) -> dict[str, Any]:
    """Delete a model that was added, by its name or its folder; what a run made is never touched.

    Returns:
        ``name`` and ``path`` of what was deleted.

    Raises:
        HybridMIMError: no such model was added, or it could not be deleted.
    """
    name, path = remove(_model(make_run(run, settings)))
    return {"name": name, "path": str(path)}


def _model(run: Run) -> str:
    run.folder("model", "the model that is meant")
    assert run.model is not None
    return run.model


def _classes(model: ModelDescription) -> list[str]:
    return [one.name for one in model.classes]


def _for_others(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """How the model was made, without the paths of whoever made it."""
    kept = dict(provenance)
    if isinstance(kept.get("pretrained"), str):
        kept["pretrained"] = re.sub(r" from [^;]*[/\\][^;]*", " from a pre-training", kept["pretrained"])
    if isinstance(kept.get("settings"), Mapping):
        kept["settings"] = {name: value for name, value in kept["settings"].items() if name != "split"}
    if isinstance(kept.get("members"), list):
        kept["members"] = [_for_others(one) for one in kept["members"] if isinstance(one, Mapping)]
    return kept


def _license(run: Run) -> str | None:
    """The text of a license: what a file of that name holds, or the words themselves."""
    if run.license is None:
        return None
    file = user_path(run.license)
    try:
        text = file.read_text(encoding="utf-8") if len(run.license) < 1000 and file.is_file() else run.license
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{file}: the license cannot be read ({error})", cure="Give a text file in UTF-8."
        ) from error
    if text == run.license and _PATH.fullmatch(text.strip()) and "://" not in text:
        raise SettingsError(
            f"{file}: there is no such file with a license", cure="Check the path, or give the license in words."
        )
    if not 0 < len(text.strip()) <= LONGEST_LICENSE:
        raise SettingsError(
            f"the license has {len(text.strip())} letters", cure=f"Give from 1 to {LONGEST_LICENSE} letters."
        )
    return text


def _check_not_inside(output: Path, source: Path) -> None:
    """A file more would make the model itself one that is refused."""
    if source.is_dir() and source.resolve() in output.resolve().parents:
        raise SettingsError(f"{output}: is inside the model itself", cure="Choose another --output.")


def _check_no_folder(output: Path) -> None:
    if output.is_dir():
        raise SettingsError(f"{output}: is a folder", cure="Choose another --output.")


def _check_may_be_replaced(output: Path) -> None:
    """Nothing but a model package is overwritten by one."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        read_description(output)
    except ModelError as error:
        raise SettingsError(
            f"{output}: is there, and is no model package",
            cure="Choose another --output; one that ends with .zip becomes a single file.",
        ) from error
