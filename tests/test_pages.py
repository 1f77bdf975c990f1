"""The examples of the pages run, and what the pages list is what there is."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest

import batchkit as bk
from batchkit.stages import STAGES

DOCS = Path(__file__).parents[1] / "docs"
COMBINING = ("concat", "zip", "interleave", "mix")

pytestmark = pytest.mark.checkout


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["stages.md", "checkpointing.md", "coming-from.md"])
def test_the_examples_of_a_page_run_and_print_what_is_shown(name: str) -> None:
    result = doctest.testfile(str(DOCS / name), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 10


def test_the_verbs_and_options_that_other_loaders_are_compared_with_are_there() -> None:
    code = " ".join(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\|.*\|(.*)\|$", page("coming-from.md"), re.M))))
    for verb in set(re.findall(r"(?<![\w)])\.(\w+)\(", code)):
        assert hasattr(bk.Pipeline, verb), verb
    for name in set(re.findall(r"bk\.(\w+)", code)):
        assert hasattr(bk, name), name
    for method in set(re.findall(r"loader\.(\w+)", code)):
        assert hasattr(bk.Loader, method), method
    options = set(re.findall(r"(\w+)=", " ".join(re.findall(r"(?<!Data)Loader\(([^)]*)\)", code))))
    assert options
    assert options <= set(inspect.signature(bk.Loader).parameters)


def test_the_page_lists_every_verb() -> None:
    table = page("stages.md").split("\n\n")[2]
    assert table.startswith("| verb |")
    verbs = [*STAGES, *(f"bk.{name}" for name in COMBINING), "apply"]
    assert [verb for verb in verbs if f"`{verb}" not in table] == []
    assert all(hasattr(bk, name) for name in COMBINING)


@pytest.mark.parametrize("name", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(name: str) -> None:
    def anchors(text: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
        return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}

    text = re.sub(r"^```.*?^```", "", page(name), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (DOCS / file).resolve() if file else DOCS / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target
