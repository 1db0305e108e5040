"""What the README says works: its code runs, its commands run, its picture and table are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import open_records, verify_ledger
from tests.conftest import REPOSITORY, samples, write_corpus
from tests.tokenizers_trained import byte_tokenizer, save

README = (REPOSITORY / "README.md").read_text()


FINISHED_RUNS = """weights/add,weights/carry,losses/add,losses/carry
1,0,1.1,2.9
0.7,0.3,1.3,2.0
0.3,0.7,1.8,1.4
0,1,2.7,1.2
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a corpus, in which every command of the verbs' block has run."""
    folder = tmp_path_factory.mktemp("readme")
    write_corpus(folder / "CORPUS", samples(add=300, carry=200, negate=100))
    (folder / "RUNS").mkdir()
    (folder / "RUNS" / "runs.csv").write_text(FINISHED_RUNS)
    (verbs,) = (block for block in blocks("bash") if block.startswith("skillshard tag"))
    for line in verbs.splitlines():
        words = shlex.split(line.split(" #")[0].replace("meta.category", "meta.skill"))
        found = run([sys.executable, "-m", "skillshard.cli", *words[1:]], folder)
        assert found.returncode == 0, f"{line}\n{found.stdout}{found.stderr}"
    return folder


def test_the_verbs_of_the_readme_run(folder: Path) -> None:
    assert (folder / "S" / "manifest.json").exists()
    assert len((folder / "ids.jsonl").read_bytes().splitlines()) == 20_000
    assert (folder / "L").is_dir()


def test_the_trainer_of_the_readme_runs_and_run_again_it_goes_on(folder: Path) -> None:
    code, _ = blocks("python")
    (folder / "trainer.py").write_text(code)
    for number in (1, 2):
        found = run([sys.executable, "-W", "ignore", "trainer.py"], folder)
        assert found.returncode == 0, found.stderr
        steps = [int(line.split()[0]) for line in found.stdout.splitlines()]
        assert steps == [0, 20, 40, 60, 80, 100] if number == 1 else [120, 140, 160, 180, 200]
        assert open_records(DirectoryLedger(folder / "runs" / "1")).observations.num() == 1 + 5 * number
    assert verify_ledger(DirectoryLedger(folder / "runs" / "1")) == []


def test_the_tokens_of_the_readme_run(folder: Path) -> None:
    """With shards and policy as in the trainer above it."""
    trainer, code = blocks("python")
    (command,) = re.findall(r"^skillshard (tokens .*)$", README, flags=re.M)
    save(byte_tokenizer(["add carry"], separator="<|endoftext|>"), folder / "tokenizer.json")
    assert run([sys.executable, "-m", "skillshard.cli", *command.split()], folder).returncode == 0
    above = trainer[: trainer.index("def report")]
    (folder / "packed.py").write_text(f"{above}{code}print(next(iter(loader))['input_ids'].shape)")
    found = run([sys.executable, "-W", "ignore", "packed.py"], folder)
    assert found.stdout == "torch.Size([8, 1024])\n", found.stderr


def test_the_install_commands_name_extras_that_exist() -> None:
    assert "<!-- test command -->" in README
    assert "'.[test]'" in README
    assert (REPOSITORY / "docs" / "demo.png").exists()


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
