"""What a reviewer of the Extensions Index looks at: metadata, the entry for the index, icons."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from repository import REPOSITORY, files_in, load_script

ENTRY = REPOSITORY / "Resources" / "ExtensionsIndex" / "HybridMIM.json"
LISTS = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
RAW = "https://raw.githubusercontent.com/HybridMIM/SlicerHybridMIM/main/"
# The index's rules for an entry, as its schema and its checks have them: which fields there may be, and of what kind.
KINDS = {
    "$schema": str,
    "category": str,
    "scm_url": str,
    "scm_revision": str,
    "scm_type": str,
    "build_dependencies": list,
    "build_subdirectory": str,
    "enabled": bool,
    "tier": int,
}
REQUIRED = {"$schema", "category", "scm_url"}
TIERS = (1, 3, 5)


def extension(name: str) -> str:
    """A value of the top CMakeLists.txt. The index's checks read them by the same pattern, on one line."""
    found = re.findall(rf'^set\(EXTENSION_{name} "([^"\n]+)"\)$', LISTS, re.MULTILINE)
    assert len(found) == 1, f"EXTENSION_{name} is set {len(found)} times"
    return str(found[0])


def entry() -> dict[str, object]:
    content = json.loads(ENTRY.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_the_entry_keeps_the_rules_of_the_index() -> None:
    content = entry()
    assert set(content) >= REQUIRED and set(content) <= set(KINDS), "any other field is refused"
    assert all(type(value) is KINDS[name] for name, value in content.items())
    assert re.fullmatch(
        r"https://raw\.githubusercontent\.com/Slicer/Slicer/main/Schemas/"
        r"slicer-extension-catalog-entry-schema-v1\.0\.1\.json#",
        str(content["$schema"]),
    )
    assert content["tier"] in TIERS and content["category"] == "Segmentation"
    assert all(isinstance(name, str) and name for name in content["build_dependencies"])  # type: ignore[attr-defined]
    assert b"\r" not in ENTRY.read_bytes(), "lines end with LF alone"


def test_the_entry_and_cmake_say_the_same() -> None:
    content = entry()
    assert ENTRY.stem == re.findall(r"^project\((\w+)\)$", LISTS, re.MULTILINE)[0], (
        "the file is called as the project"
    )
    assert not ENTRY.stem.lower().startswith("slicer")
    url = urlsplit(str(content["scm_url"]))
    assert url.scheme in ("https", "git") and "slicer" in Path(url.path).stem.lower()
    assert str(content["scm_url"]).removesuffix(".git") == extension("HOMEPAGE")
    assert content["build_dependencies"] == extension("DEPENDS").split()


def test_the_description_is_short_and_says_what_it_is() -> None:
    text = extension("DESCRIPTION")
    assert len(text) < 300 and len(re.findall(r"\.(?: |$)", text)) <= 2 and text.endswith(".")
    assert "segment" in text and "research" in text


def test_pictures_of_the_extensions_manager_are_files_of_this_repository() -> None:
    for url in [extension("ICONURL"), *extension("SCREENSHOTURLS").split()]:
        assert url.startswith(RAW) and (REPOSITORY / url.removeprefix(RAW)).is_file(), url
        assert Image.open(REPOSITORY / url.removeprefix(RAW)).format == "PNG"


def test_what_the_index_asks_of_the_repository() -> None:
    assert (REPOSITORY / "LICENSE.txt").is_file()
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "HybridMIM" in readme and "Apache-2.0" in readme and "2303.10333" in readme
    assert re.search(r"!\[[^\]]+\]\(Resources/", readme), "a picture"
    for module in ("HybridMIM Training", "HybridMIM Segmentation"):
        assert f"**{module}**" in readme
    size = sum((REPOSITORY / file).stat().st_size for file in files_in("."))
    assert size < 20e6, "the index refuses 100 MB"


NO_PLACEHOLDERS = (
    "CMakeLists.txt",
    "HybridMIMTraining/CMakeLists.txt",
    "HybridMIMSegmentation/CMakeLists.txt",
    "README.md",
    "CITATION.cff",
)


@pytest.mark.parametrize("name", NO_PLACEHOLDERS)
def test_no_placeholder_is_left(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert not re.search(r"example\.com|TODO|FIXME|TemplateKey|YOUR[-_ ]|lorem ipsum|\bNA\b", text)


os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
icons = load_script("Resources/render_icons.py")


def pixels(name: str, side: int) -> np.ndarray:
    """(side, side, 4) what the drawing looks like, as numbers from 0 to 255."""
    image = icons.render(name, side)
    found: np.ndarray = np.frombuffer(bytes(image.constBits()), np.uint8).reshape(side, side, 4).astype(float)
    return found


@pytest.mark.parametrize("name", icons.ICONS)
def test_icons_are_what_their_drawings_say(name: str) -> None:
    kept = Image.open(icons.ICONS[name])
    assert kept.size == (128, 128) and kept.mode == "RGBA"
    # Qt keeps blue first; another version of it may draw an edge a little differently.
    difference = np.abs(np.asarray(kept, float)[..., [2, 1, 0, 3]] - pixels(name, 128))
    assert difference.mean() < 2, "stale: make icons"


def test_icons_are_told_from_each_other_when_small() -> None:
    small = {name: pixels(name, 24) for name in icons.ICONS}
    for name, one in small.items():
        assert one[..., 3].min() == 0 and one[..., 3].mean() > 200, "a rounded square that is filled"
        assert one[..., :3].std(axis=(0, 1)).max() > 40, f"{name} has no contrast"
        for other, another in small.items():
            share = (np.abs(one - another).max(axis=-1) > 60).mean()
            assert name == other or share > 0.15, f"{name} and {other} differ in {share:.0%} of the pixels"
