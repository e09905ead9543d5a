"""The user's models: packages that were added, kept where no update of the program touches them.

``models`` in the workspace (``HYBRIDMIM_WORKSPACE`` moves it) holds a folder a package, called by its name and the
first digits of its digest. A package is checked, unpacked under a temporary name, checked again and renamed, so that
one that is there is whole. No two have one name: ``segment --model liver`` must mean one model.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from HybridMIMLib.config import user_path, workspace
from HybridMIMLib.data.model_description import METADATA, ModelDescription, by_age, find_models, read_description
from HybridMIMLib.data.package_check import CheckedPackage, check_files, check_package
from HybridMIMLib.data.package_files import file_name, open_package, unpack
from HybridMIMLib.errors import ModelError
from HybridMIMLib.files import TEMPORARY, disk_errors, make_folder
from HybridMIMLib.runs import runs_folder

_DIGITS = 16
_OURS = re.compile(rf".+-[0-9a-f]{{{_DIGITS}}}")
_SECONDS_TO_UNPACK = 3600


def models_folder() -> Path:
    """Where added packages are kept."""
    return workspace() / "models"


def added_models() -> list[ModelDescription]:
    """The packages that were added, newest first."""
    return by_age(path for path in models_folder().glob("*") if not path.name.startswith(TEMPORARY))


def damaged_models() -> list[Path]:
    """The folders of packages that were added and can no longer be read, by their names."""
    sound = {one.path for one in added_models()}
    return sorted(path for path in models_folder().glob("*") if _is_ours(path) and path not in sound)


def all_models() -> list[ModelDescription]:
    """The packages that were added and those that runs of the workspace made, newest first."""
    return by_age(one.path for one in (*added_models(), *find_models(runs_folder())))


def is_added(model: ModelDescription) -> bool:
    """Whether a package is one that was added, and not one that lies elsewhere."""
    return model.path.absolute().parent == models_folder().absolute()


def locate(model: str | Path) -> Path:
    """The package that a user means: a path to a folder or a ``.zip``, or the name of one that was added.

    A folder or a file that happens to have the name of a model, and is none, is not meant.

    Raises:
        ModelError: several of that name were added.
    """
    path = user_path(str(model))
    if (path / METADATA).is_file() or (path.is_file() and path.suffix.lower() == ".zip"):
        return path
    named = [one.path for one in added_models() if one.name == str(model)]
    if len(named) > 1:
        raise ModelError(
            f"{len(named)} models are called {model}: {', '.join(map(str, named))}", cure="Give the folder of one."
        )
    return named[0] if named else path


def add(path: Path, also: Callable[[CheckedPackage], None] | None = None) -> tuple[ModelDescription, bool]:
    """Keep a package for good.

    Args:
        path: a folder or a ``.zip``.
        also: a further check, which raises.

    Returns:
        What it says of itself, from where it is kept now, and whether it is new there.

    Raises:
        ModelError: something is wrong with it, or another model has its name.
        DiskError: it could not be written.
    """
    _remove_leftovers()
    with open_package(path) as files:
        found = check_files(files)
        if also is not None:
            also(found)
        name = found.description.name
        target = models_folder() / f"{file_name(name)}-{found.digest[:_DIGITS]}"
        if _is_there(target, found.digest):
            return read_description(target), False
        _check_name_is_free(name)
        make_folder(models_folder())
        temporary = models_folder() / f"{TEMPORARY}{uuid.uuid4().hex[:8]}"
        try:
            unpack(files, found.hashes, temporary)
            if check_package(temporary).digest != found.digest:
                raise ModelError(f"{path}: changed while it was unpacked", cure="Run the command again.")
            try:
                with disk_errors(target):
                    os.replace(temporary, target)
            except OSError:
                # Somebody else may have added it meanwhile.
                if not _is_there(target, found.digest):
                    raise
                return read_description(target), False
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return read_description(target), True


def remove(model: str | Path) -> tuple[str, Path]:
    """Delete a package that was added, and nothing else.

    Args:
        model: its name, or its folder, which does for one that can no longer be read, too.

    Returns:
        Its name, and where it was; one that cannot be read is called by its folder.

    Raises:
        ModelError: no such model was added.
        DiskError: it could not be deleted.
    """
    there = [*((one.name, one.path) for one in added_models()), *((one.name, one) for one in damaged_models())]
    path = locate(model).absolute()
    found = next((pair for pair in there if pair[1].absolute() == path), None)
    if found is None:
        raise _not_added(str(model), [name for name, _ in there])
    # Under another name first, so that nobody takes up what is half deleted.
    temporary = found[1].with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}")
    with disk_errors(found[1]):
        os.replace(found[1], temporary)
        shutil.rmtree(temporary)
    return found


def _not_added(model: str, names: list[str]) -> ModelError:
    near = get_close_matches(model, names, n=1)
    if near:
        cure = f"Did you mean {near[0]!r}?"
    elif names:
        cure = f"Models that were added: {', '.join(names)}. What a run made is deleted with the run's folder."
    else:
        cure = "None was added yet. What a run made is deleted with the run's folder."
    return ModelError(f"{model}: is not a model that was added", cure=cure)


def _check_name_is_free(name: str) -> None:
    for one in added_models():
        if one.name == name:
            raise ModelError(
                f"another model is called {name!r} already: {one.path}",
                cure="Remove that one with 'model remove', or give this one another --name with 'model pack'.",
            )


def _is_ours(path: Path) -> bool:
    """Whether a folder beside others has a name that :func:`add` gave it."""
    return _OURS.fullmatch(path.name) is not None and not path.name.startswith(TEMPORARY) and path.is_dir()


def _is_there(folder: Path, digest: str) -> bool:
    """Whether a package is there and whole; one that is damaged makes room for a sound copy."""
    if not folder.exists():
        return False
    try:
        return check_package(folder).digest == digest
    except ModelError:
        with disk_errors(folder):
            shutil.rmtree(folder)
        return False


def _remove_leftovers() -> None:
    """What a process left behind that was killed while it unpacked."""
    for path in models_folder().glob(f"{TEMPORARY}*"):
        try:
            if time.time() - path.stat().st_mtime > _SECONDS_TO_UNPACK:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
