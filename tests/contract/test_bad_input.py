"""Bad input ends in a sentence with file, line and remedy, or in rejected/. A traceback or half a result never appears."""

import gzip
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillshard import artefact
from skillshard.corpus import RESTS
from skillshard.shards.read import ShardSet
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works
from tests.conftest import lines, sample, samples, tree

GOOD = samples(add=12, carry=8)
FIELD = ("--field", "meta.skill", "--workers", 1)
SET_ALL_ASIDE = ("--on-bad-sample", "set-aside", "--max-set-aside", "1")
SET_ASIDE = "--on-bad-sample set-aside"

# ------------------------------------------------------------------------------------------------------ bad samples


class Bad(NamedTuple):
    """A kind of bad input: a function that writes a corpus with the fault, and the words of the message."""

    write: Callable[[Path], None]
    where: str
    reason: str
    says: str
    remedy: str
    options: tuple[str, ...] = ()
    set_aside: int = 1
    lost: int = 0
    """Number of good samples that are lost with the fault, when the rest of a file cannot be read."""


def with_line(line: bytes) -> Callable[[Path], None]:
    """Write the corpus into a single file with a bad third line."""

    def write(folder: Path) -> None:
        records = [lines([record]) for record in GOOD]
        (folder / "a.jsonl").write_bytes(b"".join([*records[:2], line + b"\n", *records[2:]]))

    return write


def with_record(**changes: Any) -> Callable[[Path], None]:
    record = {key: value for key, value in {**sample("add", 999), **changes}.items() if value is not ...}
    return with_line(orjson.dumps(record))


def with_file(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a.jsonl").write_bytes(lines(GOOD))
        (folder / name).write_bytes(data)

    return write


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


LONG = lines([sample("carry", number) for number in range(1000, 1400)])
BAD = {
    "no field for the skill": Bad(
        with_record(meta={"number": 1}),
        "a.jsonl line 3",
        "missing-field",
        "field 'meta.skill' is missing; the row has number",
        "name another field with --field",
    ),
    "a skill that is a list": Bad(
        with_record(meta={"skill": ["add", "carry"]}),
        "a.jsonl line 3",
        "wrong-type",
        "'meta.skill' is an array",
        "--field",
    ),
    "no text": Bad(with_record(text=...), "a.jsonl line 3", "missing-field", "no field 'text'", "--text-field"),
    "no id": Bad(with_record(id=...), "a.jsonl line 3", "missing-field", "no field 'id'", "--id-field"),
    "malformed JSON": Bad(
        with_line(b'{"id": "x", "text": "y"'), "a.jsonl line 3", "malformed-json", "not valid JSON", "Mend the line"
    ),
    "not an object": Bad(with_line(b'["x"]'), "a.jsonl line 3", "malformed-json", "got an array", "Mend the line"),
    "a key twice": Bad(
        with_line(b'{"id": "x", "text": "so: \\"a\\": 1", "meta": {"skill": "add", "skill" : "carry"}}'),
        "a.jsonl line 3",
        "malformed-json",
        "the key 'skill' stands twice in one object",
        "Mend the line",
    ),
    "a key twice beside a long integer": Bad(
        with_line(b'{"id": 36893488147419103233, "text": "y", "meta": {"skill": "add", "sk\\u0069ll": "add"}}'),
        "a.jsonl line 3",
        "malformed-json",
        "the key 'skill' stands twice in one object",
        "Mend the line",
    ),
    "invalid UTF-8": Bad(
        with_line(b'{"id": "x", "text": "\xff\xfe", "meta": {"skill": "add"}}'),
        "a.jsonl line 3",
        "invalid-utf8",
        "byte 0xff: column 22",
        "Mend the line",
    ),
    "empty text": Bad(with_record(text=""), "a.jsonl line 3", "empty-text", "is empty or only white space", "Mend"),
    "only white space": Bad(with_record(text=" \n\t"), "a.jsonl line 3", "empty-text", "only white space", "Mend"),
    "over the size": Bad(
        with_record(text="y" * 3000),
        "a.jsonl line 3",
        "too-large",
        "at most 2,000 are allowed",
        "raise --max-sample-bytes",
        options=("--max-sample-bytes", "2kB"),
    ),
    "an id twice in a file": Bad(
        with_record(id=GOOD[1]["id"]),
        "a.jsonl line 3",
        "duplicate-id",
        f"id '{GOOD[1]['id']}' stands already in a.jsonl, line 2",
        "Give it another id",
    ),
    "an id in two files": Bad(
        with_file("b.jsonl", b"\n" + lines([{**GOOD[4], "text": "another text"}])),
        "b.jsonl line 2",
        "duplicate-id",
        f"id '{GOOD[4]['id']}' stands already in a.jsonl, line 5",
        "Give it another id",
    ),
    "gzip that is not": Bad(
        with_file("b.jsonl.gz", lines(GOOD[:3])), "b.jsonl.gz:", "not-the-named-format", "expected gzip data", "Rename"
    ),
    "plain that is zstd": Bad(
        with_file("b.jsonl", zstd(lines(GOOD[:3]))), "b.jsonl:", "not-the-named-format", "got zstd data", "Rename"
    ),
    "Parquet that is not": Bad(
        with_file("b.parquet", lines(GOOD[:3])), "b.parquet:", "not-the-named-format", "what its name says", "Rename"
    ),
    "a tar that is not": Bad(
        with_file("b.tar", lines(GOOD[:3])), "b.tar:", "not-the-named-format", "what its name says", "Rename"
    ),
    "truncated gz": Bad(
        with_file("b.jsonl.gz", gzip.compress(LONG, mtime=0)[:-400]),
        "b.jsonl.gz line ",
        "truncated",
        "cut off or damaged",
        "Fetch or write the file again",
        lost=-1,
    ),
    "truncated zst": Bad(
        with_file("b.jsonl.zst", zstd(LONG)[:-40]),
        "b.jsonl.zst line ",
        "truncated",
        "cut off or damaged",
        "Fetch or write the file again",
        lost=-1,
    ),
}


@pytest.fixture(params=sorted(BAD))
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Bad:
    (tmp_path / "corpus").mkdir()
    kind: Bad = BAD[request.param]
    kind.write(tmp_path / "corpus")
    return kind


def test_by_default_the_job_stops_with_file_line_and_remedy_and_nothing_is_finished(bad: Bad, tmp_path: Path) -> None:
    sentence = fails("tag", "metadata", tmp_path / "corpus", "--out", tmp_path / "T", *FIELD, *bad.options)
    assert sentence.startswith(bad.where)
    assert bad.says in sentence
    assert bad.remedy in sentence and SET_ASIDE in sentence
    assert not (tmp_path / "T" / "tags.json").exists()
    assert not (tmp_path / "T" / "parts").exists() and not (tmp_path / "T" / "rejected").exists()
    assert "is not finished" in fails("verify", tmp_path / "T")
    assert "no finished tags" in fails("shard", tmp_path / "corpus", "--tags", tmp_path / "T", "--out", tmp_path / "S")
    assert not (tmp_path / "S").exists()


def test_the_sentence_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name in "abcdef":
        (tmp_path / "corpus" / f"{name}.jsonl").write_bytes(b"{\n" * 3)
    sentences = {
        fails(
            "tag",
            "metadata",
            tmp_path / "corpus",
            "--out",
            tmp_path / f"T{workers}",
            "--field",
            "x",
            "--workers",
            workers,
        )
        for workers in (1, 2)
    }
    assert len(sentences) == 1 and sentences.pop().startswith("a.jsonl line 1: ")


def test_set_aside_keeps_the_sample_with_its_reason_and_every_row_is_counted(bad: Bad, tmp_path: Path) -> None:
    corpus, tags_at, shards_at = tmp_path / "corpus", tmp_path / "T", tmp_path / "S"
    works(
        "tag",
        "metadata",
        corpus,
        "--out",
        tags_at,
        *FIELD,
        *bad.options,
        "--on-bad-sample",
        "set-aside",
        "--max-set-aside",
        "1",
    )
    printed = works("shard", corpus, "--tags", tags_at, "--out", shards_at, "--holdout", 0.2, "--workers", 1)
    tags, shards = Tags.open(tags_at).manifest, ShardSet.open(shards_at).manifest
    counts = {bad.reason: bad.set_aside}
    aside, unread = ({}, counts) if bad.reason in RESTS else (counts, {})
    assert (tags.set_aside, tags.unread) == (shards.set_aside, shards.unread) == (aside, unread)
    (field,) = {entry.field for entry in tags.set_aside_by}
    of_field = "" if field is None else f" of {field!r}"
    says = f"the rest of 1 file not read ({bad.reason} 1)" if unread else f"1 set aside ({bad.reason}{of_field} 1)"
    assert says in printed
    assert tags.num_rows == tags.num_tagged + sum(aside.values())
    assert shards.num_rows == shards.num_train + shards.num_holdout + sum(aside.values()) == tags.num_rows
    assert tags.num_tagged == len(GOOD) if bad.lost == 0 else len(GOOD) <= tags.num_tagged < len(GOOD) + 400
    for folder in (tags_at, shards_at):
        (rejection,) = [
            orjson.loads(line) for file in (folder / "rejected").iterdir() for line in file.read_bytes().splitlines()
        ]
        says = bad.says.replace("stands already in a.jsonl", "stands earlier in the corpus").partition(", line ")[0]
        assert rejection["reason"] == bad.reason and says in rejection["detail"]
        where = f"{rejection['file']} line {rejection['line']}" if rejection["line"] else f"{rejection['file']}:"
        assert where.startswith(bad.where)
        works("verify", folder)
    written = {
        record.id
        for split in ("train", "holdout")
        for skill in getattr(ShardSet.open(shards_at), split).values()
        for record in skill
    }
    assert {record["id"] for record in GOOD} <= written


def test_a_row_of_a_table_is_named_by_its_number(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([*GOOD[:6], {**GOOD[6], "text": ""}]), tmp_path / "a.parquet", row_group_size=2)
    sentence = fails(
        "tag", "metadata", tmp_path / "a.parquet", "--out", tmp_path / "T", *FIELD, "--partition-size", "300B"
    )
    assert sentence.startswith("a.parquet row 7: ")


def test_of_several_copies_the_first_is_kept_whatever_the_partitions(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    copies = [{**record, "text": f"copy {number}"} for number in range(3) for record in GOOD]
    (tmp_path / "corpus" / "a.jsonl").write_bytes(lines([*GOOD, *copies]))
    trees = []
    for size in ("100B", "1kB", "1MB"):
        out = tmp_path / size
        works(
            "tag",
            "metadata",
            tmp_path / "corpus",
            "--out",
            out / "T",
            *FIELD,
            "--on-bad-sample",
            "set-aside",
            "--max-set-aside",
            "1",
            "--partition-size",
            size,
        )
        works("shard", tmp_path / "corpus", "--tags", out / "T", "--out", out / "S", "--holdout", 0, "--workers", 1)
        works("verify", out / "T")
        assert Tags.open(out / "T").manifest.set_aside == {"duplicate-id": len(copies)}
        trees.append({name: data for name, data in tree(out / "S").items() if name.startswith("train/")})
    assert trees[0] == trees[1] == trees[2]
    sentence = fails("tag", "metadata", tmp_path / "corpus", "--out", tmp_path / "stop", *FIELD)
    assert f"{len(copies)} rows repeat an id" in sentence


def test_a_corpus_without_one_good_sample_is_an_error_even_where_bad_ones_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{\n{\n")
    sentence = fails(
        "tag",
        "metadata",
        tmp_path / "a.jsonl",
        "--out",
        tmp_path / "T",
        *FIELD,
        *SET_ALL_ASIDE,
    )
    assert sentence.startswith("no sample could be tagged: 2 rows were set aside (malformed-json 2).")


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    assert "no sample" in fails("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", *FIELD)


def test_no_such_file_and_nothing_found_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").write_text("notes")
    for place, says in (
        ("nowhere", "no such file or directory. Give a directory"),
        ("*.parquet", "no corpus files found. Names must end in"),
        ("empty", "no corpus files found"),
        ("model.bin", "unknown suffix"),
    ):
        sentence = fails("tag", "metadata", tmp_path / place, "--out", tmp_path / "T", *FIELD)
        assert sentence.startswith(f"{tmp_path / place}: ") and says in sentence
        assert not (tmp_path / "T").exists()
    for verb in ("verify", "inspect"):
        assert "does not exist" in fails(verb, tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------- strange ids and skills

STRANGE_IDS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "a/b/c",
    "a\\b",
    "line\nbreak\r\n",
    "nul\0inside",
    "\0",
    "漢字 ñ 😀",
    "x" * 4000,
    "é" * 4000,
    "a.b.txt",
    "-rf",
    " ",
    "'; rm -rf ~ #",
    "\x1b[31mred",
    "00123",
]


def test_strange_ids_do_no_harm_to_a_tar_and_are_kept(tmp_path: Path) -> None:
    records = [
        {"id": identity, "text": f"text {number}", "meta": {"skill": "s"}}
        for number, identity in enumerate(STRANGE_IDS)
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(records))
    works("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", *FIELD)
    works(
        "shard",
        tmp_path / "a.jsonl",
        "--tags",
        tmp_path / "T",
        "--out",
        tmp_path / "S",
        "--holdout",
        0.3,
        "--workers",
        1,
    )
    shards = ShardSet.open(tmp_path / "S")
    texts = {sample_read.id: sample_read.text for split in (shards.train, shards.holdout) for sample_read in split["s"]}
    assert texts == {record["id"]: record["text"] for record in records}
    for number, tar in enumerate(sorted((tmp_path / "S").rglob("*.tar"))):
        names = subprocess.run(["tar", "-tf", tar], check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
        assert names and all(name.split(".")[0].isdigit() and name.split(".")[1] in ("txt", "json") for name in names)
        inside = tmp_path / f"inside{number}" / "x"
        inside.mkdir(parents=True)
        subprocess.run(["tar", "-xf", tar, "-C", inside], check=True, capture_output=True)
        assert sorted(path.name for path in inside.iterdir()) == sorted(names)
        assert [path.name for path in inside.parent.iterdir()] == ["x"]
        assert {orjson.loads(path.read_bytes())["id"] for path in inside.glob("*.json")} <= set(STRANGE_IDS)
    works("mix", tmp_path / "S", "--draws", 40, "--out", tmp_path / "ids.jsonl")
    drawn = {orjson.loads(line)["id"] for line in (tmp_path / "ids.jsonl").read_bytes().splitlines()}
    assert drawn == {sample_read.id for sample_read in shards.train["s"]}
    works("verify", tmp_path / "S")


STRANGE_SKILLS = [
    "a/b",
    "a b",
    "漢字",
    "文字",
    "A",
    "a",
    "..",
    ".",
    "/",
    "\0",
    "n\nl",
    "x" * 300,
    "x" * 299 + "y",
    "a-2",
    "CON",
    "[red]",
]


def test_skills_with_strange_names_get_safe_distinct_folders_and_keep_their_names(tmp_path: Path) -> None:
    records = [
        {"id": f"{position}-{number}", "text": "t", "meta": {"skill": skill}}
        for position, skill in enumerate(STRANGE_SKILLS)
        for number in range(3)
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(records))
    works("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", *FIELD)
    works("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)
    for folder in ("T", "S"):
        works("inspect", tmp_path / folder)
        works("verify", tmp_path / folder)
    shards = ShardSet.open(tmp_path / "S")
    folders = [skill.folder for skill in shards.manifest.skills]
    assert [skill.name for skill in shards.manifest.skills] == sorted(STRANGE_SKILLS)
    assert len(set(folders)) == len(STRANGE_SKILLS)
    assert sorted(path.name for path in (tmp_path / "S" / "train").iterdir()) == sorted(folders)
    assert all(0 < len(folder) <= 70 for folder in folders)
    for skill in STRANGE_SKILLS:
        assert {sample_read.id.split("-")[0] for sample_read in shards.train[skill]} == {
            str(STRANGE_SKILLS.index(skill))
        }


# -------------------------------------------------------------------------------------------------------- directories


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a folder with a corpus C, its tags T and its shards S."""
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "a.jsonl").write_bytes(lines(GOOD))
    works("tag", "metadata", tmp_path / "C", "--out", tmp_path / "T", *FIELD)
    works("shard", tmp_path / "C", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1, "--holdout", 0.2)
    return tmp_path


def states(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def tag_again(root: Path, *options: object, out: str = "T") -> tuple[object, ...]:
    return ("tag", "metadata", root / "C", "--out", root / out, *FIELD, *options)


def shard_again(root: Path, *options: object, out: str = "S") -> tuple[object, ...]:
    return ("shard", root / "C", "--tags", root / "T", "--out", root / out, "--workers", 1, "--holdout", 0.2, *options)


def test_the_same_command_again_does_nothing(root: Path) -> None:
    before = states(root / "T") | states(root / "S")
    works(*tag_again(root))
    works(*shard_again(root))
    works(*tag_again(root, "--workers", 2))
    assert states(root / "T") | states(root / "S") == before


def test_other_arguments_are_refused_naming_what_differs(root: Path) -> None:
    before = states(root / "T") | states(root / "S")
    sentence = fails(*tag_again(root, "--max-sample-bytes", "1MB"))
    assert "reading.max_sample_bytes: 16777216 -> 1000000" in sentence and "Choose another --out" in sentence
    sentence = fails("tag", "metadata", root / "C", "--out", root / "T", "--field", "meta.number", "--workers", 1)
    assert "'meta.skill' -> 'meta.number'" in sentence
    sentence = fails(*shard_again(root, "--shard-size", "1MB"))
    assert "arguments.shard_bytes: 64000000 -> 1000000" in sentence and "Choose another --out" in sentence
    assert "arguments.holdout: 0.2 -> 0.5" in fails(*shard_again(root, "--holdout", 0.5))
    assert states(root / "T") | states(root / "S") == before


def test_a_directory_with_another_artefact_or_foreign_files_is_refused(root: Path) -> None:
    (root / "mine").mkdir()
    (root / "mine" / "thesis.tex").write_text("years of work")
    (root / "file").write_text("a file")
    (root / "web").mkdir()
    (root / "web" / "manifest.json").write_text('{"name": "a web page"}')
    before = tree(root)
    for command, out, says in (
        (tag_again, "S", "already holds shards (manifest.json)"),
        (shard_again, "T", "already holds tags (tags.json)"),
        (tag_again, "mine", "is not empty (thesis.tex)"),
        (shard_again, "mine", "is not empty (thesis.tex)"),
        (tag_again, "file", "is a file"),
        (shard_again, "file", "is a file"),
        (tag_again, "C", "is not empty (a.jsonl)"),
        (shard_again, "web", "holds a manifest.json that skillshard did not write"),
    ):
        sentence = fails(*command(root, out=out))
        assert str(root / out) in sentence and says in sentence and "Choose another --out" in sentence
    assert tree(root) == before


def test_a_corpus_that_changed_after_it_was_tagged_is_noticed_by_tag_and_by_shard(root: Path) -> None:
    (root / "C" / "a.jsonl").write_bytes(lines([*GOOD, sample("add", 500)]))
    sentence = fails(*tag_again(root))
    assert "a.jsonl" in sentence and "Choose another --out, or remove" in sentence
    sentence = fails(*shard_again(root, out="S2"))
    assert "a.jsonl has" in sentence and "Tag the present corpus" in sentence
    assert not (root / "S2").exists()


def test_a_change_that_keeps_size_and_time_is_noticed_as_the_rows_are_read(root: Path) -> None:
    file = root / "C" / "a.jsonl"
    stat, data = file.stat(), file.read_bytes()
    file.write_bytes(data.replace(b"number 3", b"number 4"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    sentence = fails(*shard_again(root, out="S2"))
    assert (
        sentence.startswith("a.jsonl changed after the tagging: its rows differ from")
        and "Tag the present corpus" in sentence
    )
    assert not (root / "S2" / "manifest.json").exists()


@pytest.mark.parametrize("hours", [0, 1])
def test_a_file_with_a_later_time_and_the_same_content_is_what_it_was(root: Path, hours: int) -> None:
    """The time may be in the future, as of a file server whose clock is ahead."""
    works(*shard_again(root))
    before = tree(root)
    time_ns = time.time_ns() + hours * 3600 * 10**9
    os.utime(root / "C" / "a.jsonl", ns=(time_ns, time_ns))
    works(*tag_again(root))
    works(*shard_again(root))
    assert tree(root) == before


def test_a_file_with_a_later_time_and_another_content_of_the_same_size_is_refused(root: Path) -> None:
    works(*shard_again(root))
    file = root / "C" / "a.jsonl"
    file.write_bytes(file.read_bytes().replace(b"number 3", b"number 4"))
    for command, out in ((tag_again(root), root / "T"), (shard_again(root), root / "S")):
        assert f"{file} changed after {out} was made from it (1 such file)" in fails(*command)


def test_tags_of_another_corpus_are_refused(root: Path) -> None:
    (root / "other").mkdir()
    (root / "other" / "b.jsonl").write_bytes(lines(GOOD))
    sentence = fails("shard", root / "other", "--tags", root / "T", "--out", root / "S2")
    assert "a.jsonl is not there any more, b.jsonl is new" in sentence and not (root / "S2").exists()


def test_a_first_command_that_failed_does_not_block_the_corrected_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD[:5]) + b"{\n")
    command = ("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T")
    assert "wrong" in fails(*command, "--field", "wrong")
    assert "a.jsonl line 6" in fails(*command, *FIELD)
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD[:5]) + b" \n")  # mended, as the sentence asks
    works(*command, *FIELD)
    works("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "undisturbed", *FIELD)
    assert tree(tmp_path / "T") == tree(tmp_path / "undisturbed")


def begin_without_end(tmp_path: Path) -> tuple[object, ...]:
    """Leave work with a finished first file and a bad second file, and return the command."""
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "a.jsonl").write_bytes(lines(GOOD[:5]))
    (tmp_path / "C" / "b.jsonl").write_bytes(lines(GOOD[5:6]) + b"{\n")
    # Partitions of this size hold one of the two files.
    command = ("tag", "metadata", tmp_path / "C", "--out", tmp_path / "T", "--workers", 1, "--partition-size", "500B")
    assert "b.jsonl line 2" in fails(*command, *FIELD)
    return command


def test_a_refused_command_with_finished_tasks_may_be_corrected(tmp_path: Path) -> None:
    command = begin_without_end(tmp_path)
    works(*command, *FIELD, *SET_ALL_ASIDE)
    works("tag", "metadata", tmp_path / "C", "--out", tmp_path / "undisturbed", *FIELD, *SET_ALL_ASIDE, *command[-2:])
    assert tree(tmp_path / "T") == tree(tmp_path / "undisturbed")


def test_work_with_finished_tasks_is_not_thrown_away_by_another_command(tmp_path: Path) -> None:
    command = begin_without_end(tmp_path)
    (tmp_path / "T" / ".work" / "refused").unlink()  # as if the command had been killed
    sentence = fails(*command, *FIELD, *SET_ALL_ASIDE)
    assert "was begun with other inputs or arguments" in sentence and "remove" in sentence


def test_unfinished_work_goes_on_after_a_touch_and_not_after_a_change(tmp_path: Path) -> None:
    command = begin_without_end(tmp_path)
    (tmp_path / "T" / ".work" / "refused").unlink()  # as if the command had been killed
    os.utime(tmp_path / "C" / "a.jsonl")
    (tmp_path / "C" / "b.jsonl").write_bytes(lines(GOOD[5:6]) + b" \n")
    file = tmp_path / "C" / "a.jsonl"
    before = file.read_bytes()
    file.write_bytes(before.replace(b"number", b"nombre"))
    sentence = fails(*command, *FIELD)
    assert f"{file} changed since the unfinished work" in sentence and f"Remove {tmp_path / 'T'}" in sentence
    file.write_bytes(before)
    works(*command, *FIELD)


def test_a_directory_in_which_another_process_works_is_not_begun_anew(tmp_path: Path) -> None:
    work = artefact.begin(tmp_path / "T", "tags.json", {"command": "other"}, {})
    assert work is not None
    other = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from skillshard import artefact; artefact.begin({str(tmp_path / 'T')!r}, 'tags.json', {{}}, {{}})",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "was begun with other inputs or arguments" in other.stderr
    work.release()
    anew = artefact.begin(tmp_path / "T", "tags.json", {"command": "tag"}, {})
    assert anew is not None
    anew.release()


# ------------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path, num_bytes: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("T/parts/000000.parquet", lambda path: flip(path, 50), "000000.parquet has digest"),
        ("T/parts/000000.parquet", Path.unlink, "000000.parquet is missing"),
        ("S/train/add/000000.tar", lambda path: flip(path, 600), "train/add/000000.tar has digest"),
        ("S/train/add/000000.tar", cut, "bytes but the manifest says"),
        ("S/train/add/000000.tar", lambda path: path.write_bytes(b""), "000000.tar is 0 bytes but the manifest says"),
        ("S/holdout/carry/000000.tar", Path.unlink, "000000.tar is missing"),
        ("S/train/carry/000000.index.npy", lambda path: flip(path, -1), "000000.index.npy has digest"),
        ("S/train/carry/000000.index.npy", Path.unlink, "000000.index.npy is missing"),
    ],
)
def test_verify_finds_every_damaged_file_and_says_what_to_do(root: Path, name: str, damage: Any, says: str) -> None:
    damage(root / name)
    sentence = fails("verify", root / name[0])
    assert says in sentence and ("anew in another directory" in sentence)


@pytest.mark.parametrize("manifest", ["T/tags.json", "S/manifest.json"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:-20], "is not valid JSON"),
        (lambda text: b"\xff" + text, "is not valid JSON"),
        (lambda text: b"[]", "does not fit schemas/"),
        (lambda text: text.replace(b'"num_rows": 20', b'"num_rows": 21'), "num_rows"),
        (lambda text: text.replace(b'"num_rows": 20', b'"num_rows": "many"'), "does not fit schemas/"),
        (lambda text: text.replace(b'"skills"', b'"skils"'), "does not fit schemas/"),
        (lambda text: text.replace(b'"skillshard/', b'"other/'), "does not fit schemas/"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(root: Path, manifest: str, damage: Any, says: str) -> None:
    path = root / manifest
    path.write_bytes(damage(path.read_bytes()))
    outcome = skillshard("verify", path.parent)
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert all(line.startswith("error: ") for line in outcome.err.splitlines())
    assert says in outcome.err


def test_a_lost_rejected_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD) + b"{\n")
    works(
        "tag",
        "metadata",
        tmp_path / "a.jsonl",
        "--out",
        tmp_path / "T",
        *FIELD,
        *SET_ALL_ASIDE,
    )
    works("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)
    for folder in ("T", "S"):
        shutil.rmtree(tmp_path / folder / "rejected")
        assert "0 rows" in fails("verify", tmp_path / folder)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("damage", [lambda path: flip(path, 50), cut, Path.unlink])
def test_sharding_with_damaged_tags_is_one_sentence(root: Path, damage: Any, workers: int) -> None:
    (root / "C2").mkdir()
    for name in "ab":
        (root / "C2" / f"{name}.jsonl").write_bytes(lines([{**record, "id": name + record["id"]} for record in GOOD]))
    works("tag", "metadata", root / "C2", "--out", root / "T2", *FIELD, "--partition-size", "1kB")
    damage(root / "T2" / "parts" / "000001.parquet")
    sentence = fails("shard", root / "C2", "--tags", root / "T2", "--out", root / "S2", "--workers", workers)
    assert "000001.parquet" in sentence and "another directory" in sentence
    assert not (root / "S2" / "manifest.json").exists()


def test_an_index_that_does_not_fit_is_never_read_past_its_end(root: Path) -> None:
    shards = ShardSet.open(root / "S")
    index = np.load(root / "S" / "train" / "add" / "000000.index.npy")
    assert len(index) == len(shards.train["add"])
    assert sum(len(sample_read.text.encode()) for sample_read in shards.train["add"]) == int(index["text_bytes"].sum())


# -------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("tag", "metadata", "C", "--out", "T", "--field", "x", "--partition-size", "huge"), "--partition-size"),
        (("tag", "metadata", "C", "--out", "T", "--field", "x", "--max-sample-bytes", "0"), "--max-sample-bytes"),
        (("tag", "metadata", "C", "--out", "T", "--field", "x", "--no-such-option"), "--no-such-option"),
        (("tag", "metadata", "C", "--out", "T"), "--field"),
        (("tag", "metadata", "C", "--field", "x"), "--out"),
        (("tag", "metadata", "--out", "T", "--field", "x"), "CORPUS"),
        (("tag", "magic", "C", "--out", "T"), "No such command"),
        (("tag", "metadata", "C", "--out", "T", "--field", "x", "--on-bad-sample", "ignore"), "--on-bad-sample"),
        (("tag", "metadata", "C", "--out", "T", "--field", "x", "--workers", "0"), "--workers"),
        (("shard", "C", "--tags", "T", "--out", "S", "--shard-size", "-8MB"), "--shard-size"),
        (("shard", "C", "--tags", "T", "--out", "S", "--holdout", "1"), "--holdout"),
        (("shard", "C", "--tags", "T", "--out", "S", "--holdout", "nan"), "--holdout"),
        (("shard", "C", "--out", "S"), "--tags"),
        (("mix", "S"), "--draws"),
        (("no-such-verb",), "no-such-verb"),
    ],
)
def test_a_wrong_call_exits_2_and_names_the_option(
    root: Path, options: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "200")
    before = tree(root)
    outcome = skillshard(*options)
    assert outcome.code == 2 and says in outcome.err and "Traceback" not in outcome.err
    assert tree(root) == before


def test_the_stream_is_written_to_devices_and_pipes_and_they_stay_what_they_are(
    shards: ShardSet, tmp_path: Path
) -> None:
    works("mix", shards.root, "--draws", 5, "--out", "/dev/null")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    assert works("mix", shards.root, "--draws", 5, "--out", tmp_path / "pipe") == ""
    works("mix", shards.root, "--draws", 5, "--out", tmp_path / "file")
    assert reader.communicate(timeout=120)[0] == (tmp_path / "file").read_bytes()
    assert (tmp_path / "pipe").is_fifo()
