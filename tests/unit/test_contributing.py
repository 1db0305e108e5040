"""The pages for contributors: their code works unchanged, and the named files and tests exist."""

import ast
import doctest
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from skillshard import check_policy, tag_corpus
from skillshard.corpus import Corpus
from tests.conftest import HERE, REPOSITORY, samples, write_corpus

PAGES = REPOSITORY / "docs" / "contributing"
NEW_FILES = {"skillshard/policies/largest_loss.py", "skillshard/taggers/length.py"}


def module_of(page: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module of a page, whose doctests have passed."""
    code = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), flags=re.S)[0]
    module = ModuleType(f"page_{Path(page).stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(code, module.__dict__)
    tried = doctest.testmod(module)
    assert tried.attempted and not tried.failed
    return module


def test_the_policy_of_the_page_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    check_policy(module_of("policy.md", monkeypatch).largest_loss, skills=("add", "carry", "negate"))


def test_the_tagger_of_the_page_tags_a_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tagger = module_of("tagger.md", monkeypatch).length(25)
    tags = tag_corpus(
        Corpus.open(write_corpus(tmp_path / "corpus", samples(add=40))), tagger, tmp_path / "T", backend=HERE
    )
    assert [skill.name for skill in tags.manifest.skills] == ["long", "short"]


@pytest.mark.parametrize("page", [*PAGES.glob("*.md"), REPOSITORY / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_the_files_and_names_of_a_page_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    paths = set(re.findall(r"(?:skillshard|tests|docs|jobs)/[\w/.-]+\.(?:py|md)", text))
    assert {path for path in paths if not (REPOSITORY / path).exists()} <= NEW_FILES
    sources = [(REPOSITORY / path).read_text() for path in paths - NEW_FILES if path.endswith(".py")]
    shown = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    known = {name for source in [*sources, *shown] for name in names_in(source)}
    assert set(re.findall(r"`([A-Za-z_]\w+)`", text)) <= known


def names_in(source: str) -> Iterator[str]:
    """Yield the names of a source as Python reads the source, without the words of docstrings and comments."""
    for node in ast.walk(ast.parse(source)):
        for field in ("name", "id", "attr", "arg"):
            if isinstance(name := getattr(node, field, None), str):
                yield name
