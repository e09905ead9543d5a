"""Pages of the panel about models and results: what they say, whatever a package or a scene holds."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from SlicerHost import Host
from small_runs import save_threshold_model

from HybridMIMLib.data.clean_up import CleanUp
from HybridMIMLib.data.model_description import ModelDescription, read_description
from HybridMIMLib.slicer_side.provenance import MadeBy

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
KEYS = ("validation_dice", "fingerprint", "labelled_scans", "validation_scans", "pretrained", "steps", "seconds")


class Texts(HTMLParser):
    """Collects the texts of a page, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> ModelDescription:
    return read_description(save_threshold_model(tmp_path_factory.mktemp("model"), "Box"))


def page_of(model: ModelDescription) -> Texts:
    # Not before there is a Slicer, which has the translations.
    from HybridMIMLib.slicer_side.panels.model_page import model_page

    return Texts(model_page(model))


def test_the_page_has_what_a_reader_asks_for(host: Host, description: ModelDescription) -> None:
    provenance = {
        "labelled_scans": 40,
        "validation_scans": 10,
        "validation_dice": {"Bright": 0.9123, "Never": float("nan"), "mean": 0.91},
        "fingerprint": {"modalities": {"CT": 39, "": 1}},
        "pretrained": "from <b>scratch</b>",
        "steps": 1000,
        "seconds": 3600.0,
    }
    model = replace(
        description,
        name="<script>Liver</script>",
        provenance=provenance,
        license="MIT & more\nsecond line",
        clean_up=CleanUp(frozenset({3}), frozenset(), {7: 0.5}),
        channels=2,
        channel_names=("T1", "T2"),
        path=Path("/models/liver"),
    )
    page = page_of(model)
    text = "|".join(page.texts)
    for wanted in (
        "<script>Liver</script>",
        "0.912",
        "CT",
        "T1, T2",
        "1 × 1 × 1 mm",
        "32 × 32 × 32 mm",
        "between the darkest",
        "40, and 10 to check it",
        "from <b>scratch</b>",
        "1000 steps in",
        "MIT & more|second line",
        "/models/liver",
        "Never 0.5 ml",
    ):
        assert wanted in text, wanted
    assert not page.tags & {"script"} and "nan" not in text


def test_an_ensemble_says_so(host: Host, description: ModelDescription) -> None:
    assert "5 networks, whose scores are averaged" in page_of(replace(description, members=5)).texts
    assert not any("averaged" in text for text in page_of(description).texts)


def test_a_long_licence_is_cut_and_says_so(host: Host, description: ModelDescription) -> None:
    text = "|".join(page_of(replace(description, license="long " * 10_000)).texts)
    assert len(text) < 4000 and "the whole text is in the package" in text


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    provenance=st.dictionaries(st.sampled_from(KEYS), ANYTHING)
    | st.fixed_dictionaries({"steps": st.integers(), "seconds": st.floats()})
)
def test_the_page_bears_whatever_a_package_holds(
    host: Host, description: ModelDescription, provenance: dict[str, Any]
) -> None:
    assert "Bright" in page_of(replace(description, provenance=provenance)).texts


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(st.text(max_size=5), ANYTHING, max_size=4), name=st.text(max_size=40))
def test_what_made_it_bears_whatever_a_scene_holds(host: Host, content: dict[str, Any], name: str) -> None:
    from HybridMIMLib.slicer_side.panels.result_section import made_by_page

    page = made_by_page(MadeBy(name, settings=content))
    # Nothing of it becomes a tag of its own.
    assert Texts(page).tags <= {"table", "tr", "td", "b"}
