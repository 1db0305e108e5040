"""Foreign files of a corpus directory are counted and not read. A directory that leaves a doubt is refused."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillshard import artefact
from skillshard.corpus import Corpus, FileLayout, read_partition
from skillshard.errors import CorpusError
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works
from tests.conftest import lines, samples, tree

GOOD = lines(samples(add=5, carry=3))
FIELD = ("--field", "meta.skill", "--workers", 1)


def put(folder: Path, *names: str, data: bytes = GOOD) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def names_of(folder: Path | str) -> list[str]:
    return [file.name for file in Corpus.open(folder).files]


def refusal(folder: Path | str) -> str:
    with pytest.raises(CorpusError) as error:
        Corpus.open(folder)
    return str(error.value)


# ------------------------------------------------------------------------------------------------ left out and counted


def test_what_is_left_out_is_printed_by_suffix_and_stands_in_the_record(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "T"
    put(corpus, "a.jsonl", "notes.doc", "sub/more.doc", "README.md", "Makefile", "old.jsonl.bak", "x.doc.gz")
    outcome = skillshard("tag", "metadata", corpus, "--out", out, *FIELD)
    line = "6 files (.doc 2, .doc.gz 1, .jsonl.bak 1, .md 1, without a suffix 1)"
    assert outcome.code == 0
    assert f"note: left out of the corpus: {line}." in outcome.err.splitlines()
    kinds = {".doc": 2, ".doc.gz": 1, ".jsonl.bak": 1, ".md": 1, "without a suffix": 1}
    assert Tags.open(out).manifest.left_out.files == kinds
    assert f"left out of the corpus: {line}" in works("inspect", out)
    sharded = skillshard("shard", corpus, "--tags", out, "--out", tmp_path / "S", "--workers", 1)
    assert (sharded.code, line in sharded.err) == (0, True)


def test_a_corpus_without_other_files_says_nothing(tmp_path: Path) -> None:
    put(tmp_path, "corpus/a.jsonl")
    outcome = skillshard("tag", "metadata", tmp_path / "corpus", "--out", tmp_path / "T", *FIELD)
    assert (outcome.code, "left out" in outcome.out + outcome.err) == (0, False)


def test_tags_of_a_record_without_the_field_are_still_read(tmp_path: Path) -> None:
    put(tmp_path, "corpus/a.jsonl")
    works("tag", "metadata", tmp_path / "corpus", "--out", tmp_path / "T", *FIELD)
    record = orjson.loads((tmp_path / "T" / "tags.json").read_bytes())
    del record["left_out"]
    (tmp_path / "T" / "tags.json").write_bytes(orjson.dumps(record))
    works("shard", tmp_path / "corpus", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)


def test_where_nothing_is_read_the_error_says_what_is_there(tmp_path: Path) -> None:
    put(tmp_path, "a.doc", "b.txt", "_temporary/0/a.jsonl")
    assert "Left out: 3 files (.doc 1, .txt 1, _temporary/ 1)." in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_temporary/0/task/a.jsonl", "_temporary/"),
        ("sub/_temporary/0/a.jsonl", "_temporary/"),
        ("_SUCCESS", "_SUCCESS"),
        ("_part.jsonl", "_*.jsonl"),
        (".part-0.jsonl.crc", ".*.jsonl.crc"),
        (".git/objects/ab/a.jsonl", ".git/"),
        ("__MACOSX/a.jsonl", "__MACOSX/"),
        ("._a.jsonl", ".*.jsonl"),
        ("_spark_metadata/0.json", "_spark_metadata/"),
        ("dataset_infos.json", "dataset_infos.json"),
    ],
)
def test_files_that_other_tools_keep_beside_their_data_are_not_read(name: str, kind: str, tmp_path: Path) -> None:
    put(tmp_path, "good.jsonl", name)
    corpus = Corpus.open(tmp_path)
    assert ([file.name for file in corpus.files], corpus.left_out) == (["good.jsonl"], {kind: 1})


def test_source_code_may_begin_with_an_underscore(tmp_path: Path) -> None:
    put(tmp_path, "core/__init__.py", "_guide.md", "_build/a.py", "._core.py", "_part.jsonl", "a.jsonl")
    corpus = Corpus.open(tmp_path, layout=FileLayout(text_files="whole"))
    assert [file.name for file in corpus.files] == ["_guide.md", "a.jsonl", "core/__init__.py"]
    assert corpus.left_out == {".*.py": 1, "_*.jsonl": 1, "_build/": 1}
    assert [file.name for file in Corpus.open(tmp_path).files] == ["a.jsonl"]


def test_a_glob_that_names_hidden_or_underscored_files_reads_them(tmp_path: Path) -> None:
    put(tmp_path, "_new/a.jsonl", ".old/b.jsonl", "c.jsonl")
    assert names_of(f"{tmp_path}/_*/*.jsonl") == ["_new/a.jsonl"]
    assert names_of(f"{tmp_path}/.old/*") == ["b.jsonl"]
    assert names_of(f"{tmp_path}/*") == ["c.jsonl"]


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    "suffix",
    [
        "csv.br",
        "jsonl.zstd",
        "ndjson.lz4",
        "json.LZMA",
        "parquet.xz",
        "parquet.gz",
        "arrow.zst",
        "tar.gz",
        "tgz",
        "tar.xz",
        "jsonl.zip",
    ],
)
def test_a_known_format_in_another_compression_is_refused_beside_files_that_are_read(
    suffix: str, tmp_path: Path
) -> None:
    put(tmp_path, "a.jsonl", f"sub/b.{suffix}", "e.txt")
    sentence = refusal(tmp_path)
    assert f"1 file in a compression that is not read: sub/b.{suffix}" in sentence
    assert "Decompress these files, or choose other files with a glob" in sentence
    assert names_of(f"{tmp_path}/*.jsonl") == ["a.jsonl"]


def save_dataset(folder: Path, *names: str) -> None:
    """Write a data set as Hugging Face's `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist([{"id": str(folder / name), "text": "x"} for name in names])
    for name in names:
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_bytes(orjson.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_bytes(orjson.dumps({"features": {}}))


def test_the_splits_of_a_saved_dataset_dict_are_not_merged(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_dataset(tmp_path / "dd" / split, "data-0.arrow")
    (tmp_path / "dd" / "dataset_dict.json").write_bytes(orjson.dumps({"splits": ["train", "test"]}))
    sentence = refusal(tmp_path / "dd")
    assert sentence == (
        f"{tmp_path}/dd is a saved DatasetDict with the splits test, train, and a corpus is a single split. Name the "
        f"directory of the split, such as {tmp_path}/dd/train."
    )
    assert refusal(tmp_path) == sentence
    assert names_of(tmp_path / "dd" / "train") == ["data-0.arrow"]


def test_a_dataset_dict_of_one_split_is_read(tmp_path: Path) -> None:
    save_dataset(tmp_path / "train", "data-0.arrow")
    (tmp_path / "dataset_dict.json").write_bytes(orjson.dumps({"splits": ["train"]}))
    corpus = Corpus.open(tmp_path)
    assert [file.name for file in corpus.files] == ["train/data-0.arrow"]
    assert corpus.left_out == {"dataset_dict.json": 1, "dataset_info.json": 1, "state.json": 1}


def test_a_saved_dataset_without_one_of_its_files_is_refused(tmp_path: Path) -> None:
    save_dataset(tmp_path / "ds", "data-0.arrow", "data-1.arrow")
    (tmp_path / "ds" / "data-1.arrow").unlink()
    assert "ds/state.json lists data-1.arrow, but these files are missing" in refusal(tmp_path / "ds")


@pytest.mark.parametrize(
    "names",
    [("train-0.jsonl", "test-0.jsonl"), ("train/a.jsonl", "validation/b.jsonl"), ("x_dev.jsonl", "x_train.jsonl")],
)
def test_file_names_of_several_splits_are_said(names: tuple[str, str], tmp_path: Path) -> None:
    put(tmp_path, *names)
    (note,) = Corpus.open(tmp_path).notes()
    assert "train 1" in note and "are read as one corpus" in note
    assert Corpus.open(tmp_path / names[0]).notes() == []


def write_delta(folder: Path, *versions: list[dict[str, object]]) -> None:
    for number, actions in enumerate(versions):
        put(folder, f"_delta_log/{number:020d}.json", data=b"\n".join(orjson.dumps(action) for action in actions))


def test_of_a_delta_table_only_the_files_of_its_newest_version_are_read(tmp_path: Path) -> None:
    put(tmp_path, "old.parquet", "new 1.parquet", "crashed.parquet")
    add_old, add_new = {"add": {"path": "old.parquet"}}, {"add": {"path": "new%201.parquet"}}
    write_delta(tmp_path, [{"protocol": {}}, add_old], [add_new, {"remove": {"path": "old.parquet"}}])
    corpus = Corpus.open(tmp_path)
    assert [file.name for file in corpus.files] == ["new 1.parquet"]
    assert corpus.left_out == {".parquet not in the Delta table": 2, "_delta_log/": 2}
    write_delta(tmp_path, [add_new], [{"add": {"path": "new%201.parquet", "deletionVector": {"x": 1}}}])
    assert "rows that are marked as deleted" in refusal(tmp_path)
    write_delta(tmp_path, [add_new], [{"add": {"path": "gone.parquet"}}])
    assert "lists gone.parquet, but these files are missing" in refusal(tmp_path)
    (tmp_path / "_delta_log" / f"{0:020d}.json").unlink()
    assert "log does not begin at version 0" in refusal(tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("metadata/v1.metadata.json", "Iceberg"), (".hoodie/x.commit", "Hudi")])
def test_tables_whose_metadata_is_not_read_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    put(tmp_path, "data/a.parquet", name)
    assert f"{kind} table ({name})" in refusal(tmp_path)


# -------------------------------------------------------------------------------------------------- our own artefacts


def test_artefacts_inside_the_corpus_directory_are_not_read(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl")
    works("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", *FIELD)
    works("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--out", tmp_path / "deep" / "S", "--workers", 1)
    put(tmp_path, "begun/.work/job.json", "begun/parts/0.parquet")
    corpus = Corpus.open(tmp_path)
    assert [file.name for file in corpus.files] == ["a.jsonl"]
    inside = {kind for kind in corpus.left_out if "of skillshard" in kind}
    assert inside == {
        "T/, tags of skillshard",
        "deep/S/, shards of skillshard",
        "begun/, unfinished work of skillshard",
    }
    assert "holds tags of skillshard, not a corpus. Name the directory of the corpus." in refusal(tmp_path / "T")
    assert f"Name {tmp_path}/deep/S/train to read its samples." in refusal(tmp_path / "deep" / "S")
    assert all(name.endswith(".tar") for name in names_of(tmp_path / "deep" / "S" / "train"))


def test_a_corpus_file_that_is_called_manifest_is_read(tmp_path: Path) -> None:
    put(tmp_path, "manifest.json", "sub/run.json", "sub/state.json")
    assert names_of(tmp_path) == ["manifest.json", "sub/run.json", "sub/state.json"]


# ------------------------------------------------------------------------------------------------ names and no files


def write_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a named pipe": lambda path: os.mkfifo(path),
    "a socket": write_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a missing file": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["b.jsonl", "b.parquet", "b.tar", "b.jsonl.gz", "b.arrow"])
def test_what_is_no_file_is_refused_at_once(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "a.jsonl")
    SPECIAL[kind](tmp_path / name)
    for place in (tmp_path, tmp_path / name, f"{tmp_path}/*"):
        assert refusal(place).startswith(f"{tmp_path}/{name} is {kind}")
    assert not stat.S_ISREG(os.lstat(tmp_path / name).st_mode)


def test_what_is_no_file_and_not_of_the_corpus_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "log")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "self").symlink_to("self")
    assert names_of(tmp_path) == ["a.jsonl"]


def test_a_directory_with_the_suffix_of_a_file_is_a_directory(tmp_path: Path) -> None:
    put(tmp_path, "spark.json/part-0.json", "spark.json/_SUCCESS")
    assert names_of(tmp_path / "spark.json") == ["part-0.json"]
    assert names_of(tmp_path) == ["spark.json/part-0.json"]


def bad_name(folder: Path, name: bytes) -> Path:
    path = os.path.join(os.fsencode(folder), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(GOOD)
    return Path(os.fsdecode(path))


def test_a_name_that_is_not_utf8_stops_nothing_unless_it_is_of_the_corpus(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl")
    bad_name(tmp_path, b"caf\xe9 notes.txt")
    bad_name(tmp_path, b"caf\xe9/notes.\xe9")
    assert Corpus.open(tmp_path).left_out == {".txt": 1, "other names": 1}
    works("tag", "metadata", tmp_path, "--out", tmp_path.parent / "T-of-bad-names", *FIELD)
    place = bad_name(tmp_path, b"caf\xe9.jsonl")
    for named in (tmp_path, place, f"{tmp_path}/*.jsonl"):
        assert refusal(named) == (
            f"{tmp_path}/caf\\xe9.jsonl: the name is not valid UTF-8 (\\x marks each wrong byte). Rename the file."
        )


def test_a_corpus_in_a_directory_whose_name_is_not_utf8_is_refused_in_a_sentence(tmp_path: Path) -> None:
    place = bad_name(tmp_path, b"caf\xe9/a.jsonl")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "skillshard",
            "tag",
            "metadata",
            os.fsencode(place.parent),
            "--out",
            tmp_path / "T",
            "--field",
            "x",
        ],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"Traceback" in done.stderr, b"caf\\xe9" in done.stderr) == (1, False, True)


def test_names_with_spaces_wildcards_and_line_breaks_are_read(tmp_path: Path) -> None:
    put(tmp_path, "a [1].jsonl", "b\n.jsonl", "c #?%.jsonl")
    corpus = Corpus.open(tmp_path)
    assert len(corpus.files) == 3
    assert all(list(read_partition(partition)) for partition in corpus.partitions())


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jsonl", "locked/b.jsonl")
    scandir = os.scandir

    def refuse(place: str) -> "os.ScandirIterator[str]":  # type: ignore[name-defined]
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(tmp_path).startswith(f"{tmp_path}/locked cannot be listed: Permission denied.")


def test_the_same_directory_gives_the_same_tags_twice_with_files_beside_it(tmp_path: Path) -> None:
    put(tmp_path, "corpus/a.jsonl", "corpus/x.doc")
    for out in ("T1", "T2"):
        works("tag", "metadata", tmp_path / "corpus", "--out", tmp_path / out, *FIELD)
    assert tree(tmp_path / "T1") == tree(tmp_path / "T2")
    assert "no such file" in fails("tag", "metadata", tmp_path / "nowhere", "--out", tmp_path / "T3", *FIELD)


def test_numbers_and_booleans_as_skills_are_named_by_their_json_text_and_said(tmp_path: Path) -> None:
    values = ["true", "false", "3", '"3"', '"law"']
    rows = (b'{"id": "%d", "text": "x", "cat": %s}\n' % (number, value.encode()) for number, value in enumerate(values))
    put(tmp_path, "a.jsonl", data=b"".join(rows))
    printed = works("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", "--field", "cat", "--workers", 1)
    assert [skill.name for skill in Tags.open(tmp_path / "T").manifest.skills] == ["3", "false", "law", "true"]
    assert "3 skills with the name of a number or a boolean (3, false, true): the number 3" in printed


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_white_space_alone_is_no_skill_in_any_format(tmp_path: Path, form: str) -> None:
    rows = [{"id": str(number), "text": "x", "cat": "law" if number else " "} for number in range(50)]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    elif form == "csv":
        (tmp_path / "a.csv").write_text("id,text,cat\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        (tmp_path / "a.jsonl").write_bytes(lines(rows))
    words = ("tag", "metadata", tmp_path / f"a.{form}", "--field", "cat", "--out", tmp_path / "T", "--workers", 1)
    assert "field 'cat' holds white space alone" in fails(*words)
    works(*words, "--on-bad-sample", "set-aside", "--max-set-aside", 0.1)
    assert [skill.name for skill in Tags.open(tmp_path / "T").manifest.skills] == ["law"]


def test_unfinished_work_of_an_earlier_version_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.jsonl")
    command = ("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", *FIELD)

    def fail(work: artefact.Work, manifest: dict[str, Any]) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(artefact.Work, "finish", fail)
        assert "killed" in fails(*command)
    for path in (tmp_path / "T" / ".work" / "records" / "tag").iterdir():
        record = orjson.loads(path.read_bytes())
        path.write_bytes(orjson.dumps({key: value for key, value in record.items() if key != "set_aside_by"}))
    assert f"{tmp_path}/T holds unfinished work of an earlier version" in fails(*command)


def test_links_to_files_inside_the_corpus_are_left_out_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "a/x.jsonl", "a/deep/y.jsonl", "z.jsonl", ".hidden/h.jsonl")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "a" / "back").symlink_to("..")  # a link to a directory above
    (tmp_path / "first.jsonl").symlink_to("z.jsonl")
    (tmp_path / "a" / "last.jsonl").symlink_to(tmp_path / "z.jsonl")
    for name in ("one.jsonl", "two.jsonl"):  # the target is no file of the corpus, so one of the links is read
        (tmp_path / name).symlink_to(".hidden/h.jsonl")
    names = ["a/deep/y.jsonl", "a/x.jsonl", "one.jsonl", "z.jsonl"]
    for place in (tmp_path, f"{tmp_path}/*"):
        corpus = Corpus.open(place)
        assert [file.name for file in corpus.files] == names
    assert "links to other files of the corpus 6" in Corpus.open(tmp_path).notes()[0]
    for name in ("b", "a/back", "a/last.jsonl"):
        (tmp_path / name).unlink()
    (tmp_path / "link").symlink_to("a")
    assert [file.name for file in Corpus.open(tmp_path / "link").files] == ["deep/y.jsonl", "x.jsonl"]


def test_a_file_outside_the_corpus_that_links_lead_to_twice_is_refused_with_both_ways(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/x.jsonl", "corpus/y.jsonl")
    for name in ("a", "b"):
        (tmp_path / "corpus" / name).symlink_to("../elsewhere")
    sentence = refusal(tmp_path / "corpus")
    assert "because of links" in sentence and "a/x.jsonl" in sentence and "b/x.jsonl" in sentence
    (tmp_path / "corpus" / "b").unlink()
    assert [file.name for file in Corpus.open(tmp_path / "corpus").files] == ["a/x.jsonl", "y.jsonl"]


def test_what_hugging_face_computed_from_a_data_set_is_no_part_of_it(tmp_path: Path) -> None:
    put(tmp_path, "d/x-train.arrow", "d/cache-1c80317fa3b1799d.arrow", "d/cache-1c80317fa3b1799d_00001_of_00002.arrow")
    put(tmp_path, "e/cache-1c80317fa3b1799d.arrow")  # without a description beside the file, the file is data
    put(tmp_path, "d/dataset_info.json", data=b"{}")
    corpus = Corpus.open(tmp_path)
    assert [file.name for file in corpus.files] == ["d/x-train.arrow", "e/cache-1c80317fa3b1799d.arrow"]
    assert corpus.left_out == {"cache-*.arrow": 2, "dataset_info.json": 1}
