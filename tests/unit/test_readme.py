"""The README and the tutorial work: a reader who runs the blocks in order sees the output that the documents show."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.records import open_records
from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY
from tests.documents import FENCE, blocks_of, in_main, run_document

README = REPOSITORY / "README.md"
TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
MOST_WORDS = 1300
"""The README is read in five minutes. Longer material belongs to the pages of the documentation."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Limit PyTorch to a thread, because the scripts of the documents run in this process and tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def file_of(document: Path, name: str) -> str:
    """Return the content of a file that a document shows."""
    (code,) = (block.code for block in blocks_of(document.read_text()) if block.mark == f"file: {name}")
    return code


def changed(code: str, old: str, new: str) -> str:
    """Return a script with a single change, as a reader would make the change."""
    assert code.count(old) == 1, f"{old!r} stands {code.count(old)} times in the script"
    return code.replace(old, new)


def test_a_reader_of_the_tutorial_sees_what_the_tutorial_shows(tmp_path: Path) -> None:
    run_document(TUTORIAL, tmp_path)
    assert verify_ledger(DirectoryLedger(tmp_path / "runs" / "1")) == []


def test_a_reader_of_the_readme_sees_what_the_readme_shows_and_may_repeat_every_block(tmp_path: Path) -> None:
    """The README's corpus is the tutorial's corpus without the row that has no text."""
    script = changed(file_of(TUTORIAL, "make_corpus.py"), " if number != 700 else None", "")
    (tmp_path / "make_corpus.py").write_text(script)
    in_main(tmp_path / "make_corpus.py")
    (row,) = (block.code for block in blocks_of(README.read_text()) if block.language == "json")
    with open(tmp_path / "corpus" / "questions.jsonl") as rows:
        assert rows.readline() == row
    run_document(README, tmp_path)
    run_document(README, tmp_path, compares=False)


def trained(folder: Path, num_steps: int) -> list[int]:
    """Run the README's loop for a total number of steps, and return the steps of the printed losses."""
    script = changed(file_of(README, "train.py"), "STEPS, ROUND, BATCH = 100", f"STEPS, ROUND, BATCH = {num_steps}")
    (folder / "train.py").write_text(script)
    printed = in_main(folder / "train.py")
    assert printed.splitlines()[-1] == f"runs/1 has {num_steps} steps. Raise STEPS to train further."
    return [int(step) for step in re.findall(r"^step +(\d+): add ", printed, flags=re.M)]


def test_the_training_of_the_readme_goes_on_when_it_is_run_again_and_says_when_it_is_finished(
    shards: ShardSet, tmp_path: Path
) -> None:
    (tmp_path / "shards").symlink_to(shards.root)
    ledger = DirectoryLedger(tmp_path / "runs" / "1")
    assert trained(tmp_path, 10) == [0]
    with pytest.warns(UserWarning, match="^resumed at draw 0: "):  # the first start left no checkpoint
        assert trained(tmp_path, 40) == [0, 20, 40]
    assert trained(tmp_path, 80) == [60, 80]
    assert trained(tmp_path, 80) == []
    assert open_records(ledger).observations.num() == 5
    assert verify_ledger(ledger) == []


def test_the_readme_shows_the_commands_of_the_installation() -> None:
    (command,) = (block.code for block in blocks_of(README.read_text()) if block.mark == "test command")
    assert "'.[test]'" in command and ".venv/bin/pytest" in command


def test_the_readme_stays_short() -> None:
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("", README.read_text()))
    words = re.findall(r"[A-Za-z0-9][\w'.%-]*", re.sub(r"\]\([^)]*\)", "]", text))
    assert len(words) <= MOST_WORDS


def test_the_numbers_of_the_readme_are_those_of_the_pages() -> None:
    """A number that is measured again changes on its page and in the README."""
    readme = README.read_text()
    of_demo = re.findall(r"^\| \**(?:mean loss|steps to).*$", readme, flags=re.M)
    of_evidence = re.findall(r"\d\.\d+ ± \d\.\d+(?: \(\d+ of \d+\))?", readme)
    assert (len(of_demo), len(of_evidence)) == (3, 12)
    assert set(of_demo) <= set((REPOSITORY / "docs" / "demo.md").read_text().splitlines())
    evidence = (REPOSITORY / "docs" / "evidence" / "does-it-help.md").read_text()
    assert [number for number in of_evidence if number not in evidence] == []


def test_the_picture_of_the_idea_has_a_description_and_colours_for_dark_pages() -> None:
    picture = REPOSITORY / "docs" / "images" / "idea.svg"
    root = ElementTree.parse(picture).getroot()
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert {"title", "desc"} <= names
    assert "script" not in names and "@media (prefers-color-scheme: dark)" in picture.read_text()


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [README, *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!\w+:)([^)#]+)[^)]*\)", FENCE.sub("", document.read_text())):
            assert (document.parent / target).exists(), f"{document}: {target}"
