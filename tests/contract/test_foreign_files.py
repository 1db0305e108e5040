"""Files of an unexpected shape end in one sentence, and never in an exception of a library or of skillshard."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import fails, skillshard, write_artefacts

CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "a number": b"3",
    "a string": b'"text"',
    "null": b"null",
    "a list": b"[1, 2]",
    "a list of lists": b'[["a", 1], ["b", 2]]',
    "an empty object": b"{}",
    "an object of lists": b'{"weights": [1, 2], "encoder": [], "skills": 3}',
    "an object of objects": b'{"weights": {"add": {"x": 1}}, "add": {"carry": "x"}, "schema": "skillshard/run/1"}',
    "a name twice": b'{"add": 1, "add": 2}',
    "not JSON": b"{'add': 1}",
    "not text": bytes(range(256)),
    "zip": b"PK\x03\x04" + bytes(200),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artefacts(tmp_path_factory.mktemp("foreign"))


Command = Callable[[Path, Path, Path], tuple[object, ...]]


def folder_of(name: str) -> Callable[[Path], Path]:
    """Make a directory in which the file has the given name."""

    def make(file: Path) -> Path:
        (file.parent / "folder").mkdir()
        (file.parent / "folder" / name).write_bytes(file.read_bytes())
        return file.parent / "folder"

    return make


COMMANDS: dict[str, Command] = {
    "mix --weights": lambda root, file, out: (
        *("mix", root / "S", "--draws", 4, "--policy", "fixed", "--weights", file, "--out", out),
    ),
    "fit FILE": lambda root, file, out: ("fit", file, "--out", out),
    "fit FILE.csv": lambda root, file, out: ("fit", file.rename(file.with_suffix(".csv")), "--out", out),
    "fit DIRECTORY": lambda root, file, out: ("fit", folder_of("run.json")(file), "--out", out),
    "graph show": lambda root, file, out: ("graph", "show", file),
    "graph derive": lambda root, file, out: ("graph", "derive", file, "--out", out),
    "graph import json": lambda root, file, out: ("graph", "import", file, "--out", out),
    "graph import csv": lambda root, file, out: (
        "graph",
        "import",
        file.rename(file.with_suffix(".csv")),
        "--out",
        out,
    ),
    "graph import npy": lambda root, file, out: (
        "graph",
        "import",
        file.rename(file.with_suffix(".npy")),
        "--out",
        out,
    ),
    "graph import --names": lambda root, file, out: (
        *("graph", "import", _matrix(file), "--names", file, "--out", out),
    ),
    "regroup --map": lambda root, file, out: ("regroup", root / "T", "--map", file, "--out", out),
    "regroup --graph": lambda root, file, out: (
        "regroup",
        root / "T",
        "--min-share",
        0.4,
        "--graph",
        file,
        "--out",
        out,
    ),
    "tag reuse, embedding": lambda root, file, out: (
        *("tag", "reuse", root / "C", "--clusters", folder_of("model.json")(file), "--out", out),
    ),
    "tag reuse, loss": lambda root, file, out: (
        *("tag", "reuse", root / "C", "--clusters", folder_of("model.json")(file), "--out", out),
    ),
    "tag loss --proxy": lambda root, file, out: (
        *("tag", "loss", root / "C", "--skills", 2, "--proxy", folder_of("config.json")(file), "--out", out),
    ),
    "graph --proxy": lambda root, file, out: (
        *("graph", "learn", root / "S", "--steps", 2, "--proxy", folder_of("config.json")(file), "--out", out),
    ),
    "tag embedding --encoder": lambda root, file, out: (
        *("tag", "embedding", root / "C", "--skills", 2, "--out", out),
        *("--encoder", folder_of("config.json")(file)),
    ),
    "tokens --tokenizer": lambda root, file, out: ("tokens", root / "S", "--tokenizer", file, "--out", out),
    "shard --tags": lambda root, file, out: (
        *("shard", root / "C", "--tags", folder_of("tags.json")(file), "--out", out),
    ),
    "inspect tags": lambda root, file, out: ("inspect", folder_of("tags.json")(file)),
    "inspect shards": lambda root, file, out: ("inspect", folder_of("manifest.json")(file)),
    "inspect tokens": lambda root, file, out: ("inspect", folder_of("tokens.json")(file)),
    "inspect a run": lambda root, file, out: ("inspect", folder_of("run.json")(file)),
    "verify a run": lambda root, file, out: ("verify", folder_of("run.json")(file)),
    "verify tags": lambda root, file, out: ("verify", folder_of("tags.json")(file)),
    "tag into unfinished work": lambda root, file, out: (
        *("tag", "metadata", root / "C", "--field", "meta.skill", "--workers", 1, "--out", _work(file)),
    ),
    "tag into finished tags": lambda root, file, out: (
        *(
            "tag",
            "metadata",
            root / "C",
            "--field",
            "meta.skill",
            "--workers",
            1,
            "--out",
            folder_of("tags.json")(file),
        ),
    ),
}


def _matrix(file: Path) -> Path:
    (file.parent / "m.csv").write_text("1,2\n3,4\n")
    return file.parent / "m.csv"


def _work(file: Path) -> Path:
    (file.parent / "begun" / ".work" / "records" / "tag").mkdir(parents=True)
    (file.parent / "begun" / ".work" / "job.json").write_bytes(file.read_bytes())
    (file.parent / "begun" / ".work" / "records" / "tag" / "000000.json").write_text("{}")
    return file.parent / "begun"


@pytest.mark.parametrize("content", sorted(CONTENTS))
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_file_of_another_shape_is_one_sentence(command: str, content: str, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(CONTENTS[content])
    outcome = skillshard(*COMMANDS[command](root, file, tmp_path / "out"))
    if (command, content) == ("regroup --map", "an empty object"):  # an empty map renames nothing
        assert outcome.code == 0
        return
    assert outcome.code == 1, outcome
    assert "mistake in skillshard" not in outcome.sentence and "Traceback" not in outcome.err
    assert len(outcome.sentence) < 1500


@pytest.mark.parametrize(
    ("command", "content", "says"),
    [
        ("mix --weights", b'{"add": 1, "carry": 1, "add": 2}', "the key 'add' stands twice in one object"),
        (
            "fit FILE",
            b'{"schema": "skillshard/runs/1", "runs": [{"weights": {"add": 1, "add": 2}}]}',
            "the key 'add' stands",
        ),
        (
            "graph show",
            b'{"schema": "skillshard/graph/2", "schema": "x"}',
            "the key 'schema' stands twice in one object",
        ),
        ("graph import json", b'{"add": {"add": 1}, "add": {"add": 2}}', "the name 'add' stands twice"),
        (
            "regroup --map",
            b'{"add": "a", "carry": "b", "add": "c"}',
            "file.json gives 'add' two names. Keep one of them.",
        ),
    ],
)
def test_a_name_that_stands_twice_is_named(command: str, content: bytes, says: str, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    sentence = fails(*COMMANDS[command](root, file, tmp_path / "out"))
    assert says in sentence and str(file) in sentence


def test_a_weight_beyond_the_floats_is_no_damage(root: Path) -> None:
    sentence = fails("mix", root / "S", "--draws", 4, "--policy", "fixed", "--weights", '{"add": 1e400, "carry": 1}')
    assert sentence.endswith(": a number at column 9 is beyond those that are read, from -1.8e308 to 1.8e308.")


def test_equal_weights_on_the_command_line_name_the_skill_that_stands_twice(root: Path) -> None:
    says = "the key 'add' stands twice in one object"
    assert says in fails("mix", root / "S", "--draws", 4, "--policy", "fixed", "--weights", '{"add": 1, "add": 1}')
