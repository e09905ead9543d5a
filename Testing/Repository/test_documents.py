"""Documents: they agree with each other, with the code, and with what is installed."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from repository import REPOSITORY, load_script, text_of

import HybridMIMLib

DOCUMENTS = sorted(
    file.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "Resources/Documentation/*.md", "Testing/*/README.md", ".github/*.md")
    for file in REPOSITORY.glob(pattern)
)
documentation = load_script("Resources/render_documentation.py")


# ---------------------------------------------------------------- links


def headings(text: str) -> set[str]:
    """What links to a heading of a page are called."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_to_files_and_headings_lead_somewhere(name: str) -> None:
    text = text_of(name)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.exists(), f"{name} links to {target}"
        assert not heading or heading in headings(file.read_text(encoding="utf-8")), f"{name} links to {target}"


# ---------------------------------------------------------------- messages


def messages() -> list[str]:
    """What the README quotes of messages, by the table of troubleshooting."""
    table = text_of("README.md").partition("## Troubleshooting")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (?:in Slicer: )?`([^`]+)` \|", table, re.MULTILINE)
    return [part.strip() for cell in cells for part in cell.split("…") if len(part.strip()) > 3]


def test_messages_in_the_readme_are_those_of_the_program() -> None:
    files = [REPOSITORY / "Makefile", *REPOSITORY.glob("HybridMIM*/**/*.py")]
    # Texts are broken into lines in the code.
    told = " ".join(re.sub(r'"\s*f?"', "", file.read_text(encoding="utf-8")) for file in files)
    assert len(messages()) > 10
    assert [one for one in messages() if one.rstrip(":") not in told] == []


# ---------------------------------------------------------------- pages that are made


@pytest.mark.parametrize(("name", "text"), documentation.pages().items())
def test_pages_made_from_the_code_are_not_stale(name: str, text: str) -> None:
    assert text_of(f"Resources/Documentation/{name}") == text, "stale: make docs"


def test_every_command_and_setting_is_on_the_page() -> None:
    from HybridMIMLib.cli import COMMANDS

    page = documentation.pages()["commands.md"]
    assert all(f"| `{name}` |" in page for name in COMMANDS)
    for setting in ("--unlabelled", "--plan.spacing", "--pretraining.mask_ratio", "--study.labelled"):
        assert page.count(f"| `{setting}` |") == 1
    assert "`hybridmim`, `simmim`, `mae`, `simclr`, `none` | `hybridmim`" in page


# ---------------------------------------------------------------- versions, citation


def citation() -> dict[str, Any]:
    content = yaml.safe_load(text_of("CITATION.cff"))
    assert isinstance(content, dict)
    return content


def test_the_version_is_the_same_everywhere() -> None:
    version = HybridMIMLib.__version__
    assert str(citation()["version"]) == version
    first = re.findall(r"^## (\S+)", text_of("CHANGELOG.md"), re.MULTILINE)[0]
    assert first == version


def test_the_citation_has_what_cff_asks_for() -> None:
    content = citation()
    assert content["cff-version"] == "1.2.0"
    for key in ("message", "title", "authors"):
        assert content[key], f"{key} is required"
    assert content["type"] == "software" and content["authors"] == [{"name": "The HybridMIM contributors"}]
    assert content["license"] == tomllib.loads(text_of("pyproject.toml"))["project"]["license"]
    # Neither is known yet: an invented one would be wrong for ever.
    assert "doi" not in content and "date-released" not in content


def test_both_papers_are_cited_in_both_places() -> None:
    references = citation()["references"]
    for reference in references:
        assert reference["type"] == "article" and reference["title"] and reference["authors"] and reference["year"]
        assert all("name" in one or {"family-names", "given-names"} <= set(one) for one in reference["authors"])
    numbers = {reference["identifiers"][0]["value"] for reference in references}
    assert numbers == {"arXiv:2303.10333", "arXiv:2204.11716"}
    cited = text_of("README.md").partition("## Licence and citation")[2]
    for reference in references:
        assert reference["title"] in " ".join(cited.split()), "the README gives another title"
        assert reference["url"].rpartition("/")[2] in cited


# ---------------------------------------------------------------- third parties


def rows() -> dict[str, str]:
    """Licences in the notices, by package."""
    table = re.findall(r"^\| (\S+) \| (.+?) \| https?://\S+ \|$", text_of("THIRD_PARTY_NOTICES.md"), re.MULTILINE)
    return dict(table)


def stated_licence(package: str) -> set[str]:
    """What the installed metadata states: the expression, or the short text, or the classifiers."""
    found = metadata.metadata(package)
    short = (found.get("License") or "").strip()
    classifiers = [
        one.rpartition(" :: ")[2] for one in found.get_all("Classifier") or [] if one.startswith("License")
    ]
    expression = found.get("License-Expression")
    return {expression} if expression else {short, *classifiers}


def required() -> list[str]:
    lines = text_of("HybridMIMTraining/HybridMIMLib/requirements.txt").splitlines()
    return [Requirement(line.partition("#")[0]).name for line in lines if line.partition("#")[0].strip()]


def test_the_notices_have_every_required_package_and_no_other() -> None:
    assert list(rows()) == required()


@pytest.mark.parametrize("package", required())
def test_licences_are_those_that_the_packages_state(package: str) -> None:
    assert rows()[package] in stated_licence(package)


# ---------------------------------------------------------------- what must not stand there


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_speak_of_no_folder_of_a_machine(name: str) -> None:
    text = text_of(name)
    assert not re.search(r"(?<![\w.~])/(home|root|tmp|mnt|Users)/", text)


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "/" not in name])
def test_lines_are_short_enough_to_be_compared(name: str) -> None:
    prose = re.sub(r"```.*?```", "", text_of(name), flags=re.DOTALL)
    lines = [line for line in prose.splitlines() if not line.startswith("|")]
    assert max(map(len, lines)) <= 125


def test_the_tutorial_names_what_the_panels_show() -> None:
    files = [
        file
        for module in ("HybridMIMTraining", "HybridMIMSegmentation")
        for kind in ("*.ui", "*.py")
        for file in (REPOSITORY / module).rglob(kind)
    ]
    shown = "\n".join(file.read_text(encoding="utf-8") for file in files)
    prose = text_of("Resources/Documentation/tutorial.md").replace("**", "")
    named = [" ".join(words.split()) for words in re.findall(r"(?<!\w)\*([^*]+)\*(?!\w)", prose)]
    assert len(named) > 15
    missing = [words for words in named if not re.search(rf"[>\"]{re.escape(words)}:?[<\"]", shown)]
    assert missing == []
