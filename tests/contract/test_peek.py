"""`skillshard peek` prints a command that works as printed, and names all bad rows of the first megabytes at once."""

import io
import json
import lzma
import shlex
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillshard.corpus import Corpus
from skillshard.corpus.peek import FILE_BYTES, FILE_ROWS, MAX_FILES, chosen_files
from skillshard.schemas import schemas
from skillshard.tags import Tags
from tests.commands import fails, works
from tests.conftest import lines
from tests.contract.test_published_corpora import MINIATURES, NUM_ROWS, command_of


def printed_command(*places: object) -> list[str]:
    """Return the words of the last line of `peek`, without "skillshard"."""
    program, *words = shlex.split(works("peek", *places).splitlines()[-1])
    assert program == "skillshard"
    return words


@pytest.mark.parametrize("corpus", MINIATURES)
def test_the_printed_command_tags_a_published_corpus(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = MINIATURES[corpus]()
    words = printed_command(command_of(corpus)[2])
    works(*words, "--workers", 1)
    skills = {skill.name: skill.num_samples for skill in Tags.open("tags").manifest.skills}
    assert skills == expected if "" not in expected else sum(skills.values()) == expected[""]


def write_tar(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(NUM_ROWS):
            row = {"topic": ("law", "garden")[number % 2], "url": "https://example.org"}
            for suffix, data in (("txt", f"Text {number}".encode()), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_semicolons(folder: Path) -> None:
    table = "".join(f'"Text {number}; and more";{("law", "garden")[number % 2]}\n' for number in range(NUM_ROWS))
    (folder / "0.csv").write_text(f"text;topic\n{table}")


def write_text(folder: Path) -> None:
    for name in ("law", "garden"):
        (folder / f"{name}.txt").write_text(f"A text about {name}.\n")


def write_corpus_file(folder: Path) -> None:
    rows = [{"ref": number, "body": f"Text {number}", "topic": ("law", "garden")[number % 2]} for number in range(20)]
    (folder / "rows").mkdir()
    (folder / "rows" / "0.jsonl").write_bytes(lines(rows))
    (folder / "corpus.yaml").write_text("corpora: {a: {files: rows, id_field: ref, text_field: body}}\n")


@pytest.mark.parametrize(
    ("write", "place", "option"),
    [
        (write_tar, "", "topic"),
        (write_semicolons, "", ";"),
        (write_text, "", "whole"),
        (write_corpus_file, "corpus.yaml", "topic"),
    ],
)
def test_the_printed_command_tags_other_formats(
    write: Callable[[Path], None], place: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a corpus"
    folder.mkdir()
    write(folder)
    monkeypatch.chdir(tmp_path)
    words = printed_command(folder / place)
    assert option in words
    works(*words, "--workers", 1)
    assert {skill.name for skill in Tags.open("tags").manifest.skills} == {"law", "garden"}


def write_utf16(folder: Path) -> None:
    table = "".join(f"Text é {number},{('law', 'garden')[number % 2]}\n" for number in range(NUM_ROWS))
    (folder / "0.csv").write_text(f"text,topic\n{table}", encoding="utf-16")


def write_western(folder: Path) -> None:
    table = "".join(f'"Un “café” {number}",{("law", "garden")[number % 2]}\r\n' for number in range(NUM_ROWS))
    (folder / "0.csv").write_bytes(f"text,topic\r\n{table}".encode("cp1252"))


def write_open_quotes(folder: Path) -> None:
    table = "".join(f'"Text {number}\t{("law", "garden")[number % 2]}\n' for number in range(NUM_ROWS))
    (folder / "0.tsv").write_text(f"text\ttopic\n{table}")


def write_without_suffix(folder: Path) -> None:
    for name in ("law", "garden"):
        (folder / name).mkdir()
        (folder / name / "wiki_00").write_bytes(lines([{"id": f"{name}-{number}", "text": "x"} for number in range(5)]))


def write_compressed_without_suffix(folder: Path) -> None:
    rows = [{"id": number, "body": "x", "subreddit": ("law", "garden")[number % 2]} for number in range(10)]
    (folder / "RC_2019-01.xz").write_bytes(lzma.compress(lines(rows)))
    # The description beside the data is smaller than the data.
    (folder / "README.md").write_text("# Reddit")


def write_json_in_a_column(folder: Path) -> None:
    rows = [
        {"uid": number, "payload": json.dumps({"body": f"x {number}", "topic": ("law", "garden")[number % 2]})}
        for number in range(10)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")


def write_messages_without_suffix(folder: Path) -> None:
    for name in ("law", "garden"):
        (folder / name).mkdir()
        for number in range(5):
            (folder / name / f"4996{number}").write_text(f"A text about {name}.")


def write_rows_by_id(folder: Path) -> None:
    rows = {str(number): {"QUESTION": "x?", "field": ("law", "garden")[number % 2]} for number in range(8)}
    (folder / "ori.json").write_text(json.dumps(rows))


def write_turns(folder: Path) -> None:
    turns = [{"data": [f"Question {number}?", "Yes."], "topic": ("law", "garden")[number % 2]} for number in range(9)]
    (folder / "0.jsonl").write_bytes(lines(turns))


def write_without_header(folder: Path) -> None:
    for name in ("law", "garden"):
        rows = "".join(
            f'"Question {number} of {name}, please?",no,yes,{"AB"[number % 2]}\n' for number in range(NUM_ROWS)
        )
        (folder / f"{name}.csv").write_text(rows)


def write_nested_questions(folder: Path) -> None:
    articles = [
        {
            "title": name,
            "paragraphs": [
                {
                    "context": f"About {name} {place}.",
                    "qas": [
                        {"id": f"{name}-{place}-{number}", "question": f"Which {number}?", "answers": [{"text": "x"}]}
                        for number in range(3)
                    ],
                }
                for place in range(4)
            ],
        }
        for name in ("law", "garden")
    ]
    (folder / "train.json").write_text(json.dumps({"version": "1.1", "data": articles}))


def write_some_binary(folder: Path) -> None:
    rows = [
        {
            "hash": f"{number:040x}",
            "content": b"x = 1 # " + bytes([0 if number == 7 else 65]),
            "lang": ("law", "garden")[number % 2],
        }
        for number in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")


@pytest.mark.parametrize(
    ("write", "option", "num_tagged"),
    [
        (write_utf16, "utf-16", NUM_ROWS),
        (write_western, "cp1252", NUM_ROWS),
        (write_open_quotes, "--quote", NUM_ROWS),
        (write_turns, "--messages", 9),
        (write_without_suffix, "jsonl", 10),
        (write_compressed_without_suffix, "jsonl", 10),
        (write_messages_without_suffix, "--bare-files", 10),
        (write_json_in_a_column, "payload.body", 10),
        (write_rows_by_id, "*", 8),
        (write_without_header, "column_1,column_2,column_3,column_4", 2 * NUM_ROWS),
        (write_nested_questions, "data.paragraphs.qas", 24),
        (write_some_binary, "content", 39),
    ],
)
def test_the_printed_command_reads_every_usable_row_of_files_that_need_an_option(
    write: Callable[[Path], None], option: str, num_tagged: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "C").mkdir()
    write(tmp_path / "C")
    monkeypatch.chdir(tmp_path)
    words = printed_command("C")
    assert option in words
    works(*words, "--workers", 1)
    manifest = Tags.open("tags").manifest
    assert {skill.name for skill in manifest.skills} == {"law", "garden"} and manifest.num_tagged == num_tagged
    works("shard", "C", "--tags", "tags", "--out", "shards", "--workers", 1)
    assert "all as the manifest says" in works("verify", "shards")


def test_rows_that_cannot_be_read_are_never_set_aside_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,topic\n" + 20 * "шум,law\n".encode("cp1251"))
    shown = works("peek", tmp_path)
    assert "text: text (no row could be read)" in shown and "--encoding, such as cp1252" in shown
    assert "--on-bad-sample" not in printed_command(tmp_path)
    assert "field   type" not in shown  # no table without fields


def test_a_file_with_the_texts_is_named_where_other_files_have_none(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("qid,question_text,target\n" + "".join(f"{n},Why {n}?,0\n" for n in range(9)))
    (tmp_path / "sample_submission.csv").write_text("qid,target\n" + "".join(f"{n},0\n" for n in range(9)))
    shown = works("peek", tmp_path)
    assert "the files have different fields, so give a file with a text in place of the directory: train.csv" in shown
    assert "qid" not in printed_command(tmp_path)


def test_a_row_without_a_text_is_no_file_with_other_fields(tmp_path: Path) -> None:
    rows = [{"id": n, "text": "x"} for n in range(60)]
    (tmp_path / "a.jsonl").write_bytes(lines([*rows, {"id": 60, "txet": "x"}]))
    (tmp_path / "b.jsonl").write_bytes(lines([{"id": 61 + n, "text": "x"} for n in range(60)]))
    assert "the files have different fields" not in works("peek", tmp_path)


def test_one_fault_of_many_rows_takes_one_line(tmp_path: Path) -> None:
    rows = [{"id": n, "text": None if n % 2 else "x"} for n in range(60)] + [{"id": 60, "text": 5}]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    faults = [line for line in works("peek", tmp_path).splitlines() if line.startswith("  a.jsonl line")]
    assert faults == [
        "  a.jsonl line 2: the text in 'text' must be a string, got null (and 29 other rows of the file)",
        "  a.jsonl line 61: the text in 'text' must be a string, got a number (5)",
    ]


def test_files_with_different_fields_are_told_and_no_row_is_proposed_to_be_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"content": "x"}] * 60))
    (tmp_path / "b.csv").write_text("body\n" + 60 * "y\n")
    shown = works("peek", tmp_path)
    assert "or the files have different fields, and a corpus file (.yaml) names the fields of each file" in shown
    assert "bad rows: 120 (the first 100: missing-field 100)" in shown
    assert "--on-bad-sample" not in printed_command(tmp_path)


@pytest.mark.parametrize("others", ["# plain", "# naïve"])
def test_a_western_file_among_files_in_utf_8_does_not_change_the_encoding_of_all(others: str, tmp_path: Path) -> None:
    for number in range(1 if others != "# plain" else 3):
        (tmp_path / f"{number}.py").write_text(others)
    (tmp_path / "old.c").write_bytes("/* café */".encode("cp1252"))
    words = printed_command(tmp_path)
    assert "--encoding" not in words and "--on-bad-sample" in words


def test_a_text_file_of_many_lines_may_be_read_by_lines(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(20 * "A sentence.\n")
    assert "--text-files lines makes each line a sample" in works("peek", tmp_path)
    (tmp_path / "train.txt").write_text(5 * "A sentence.\n")
    assert "--text-files lines" not in works("peek", tmp_path)


def test_text_files_beside_few_rows_and_a_long_object_are_told(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text(
        json.dumps({f"field{number}": {f"text{number}": "x"} for number in range(200)})
    )
    for number in range(3):
        (tmp_path / f"{number}.py").write_text("x = 1")
    shown = works("peek", tmp_path)
    assert "3 files of text or code left out: --text-files whole reads each" in shown
    assert "and 140 other fields" in shown and "field60" not in shown


def test_an_unknown_suffix_is_refused_with_the_options_that_read_the_file(tmp_path: Path) -> None:
    (tmp_path / "eng.train").write_text("A text.")
    assert "no corpus files found" in fails("peek", tmp_path)
    tag = ("tag", "metadata", tmp_path / "eng.train", "--out", tmp_path / "T", "--field", "a")
    assert "To read the file as lines of JSON, give --bare-files jsonl" in fails(*tag)
    assert "--bare-files text" in works("peek", tmp_path / "eng.train").splitlines()[-1]
    (tmp_path / "wiki_00").write_text('{"text": "x"}')
    folder = ("tag", "metadata", tmp_path, "--out", tmp_path.with_name("T"), "--field", "a")
    assert "Files without a suffix are read with their format, such as --bare-files jsonl" in fails(*folder)


def test_all_bad_rows_are_named_with_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": number, "text": f"Text {number}", "topic": ("law", "garden")[number % 2]} for number in range(20)]
    good = lines(rows)
    Path("C").mkdir()
    Path("C/a.jsonl").write_bytes(good + b'{"id": 20, "text": \n{"id": 21, "text": " ", "topic": "law"}\n')
    Path("C/b.jsonl").write_bytes(b"\xff\xfe\n" + good.replace(b'"id":', b'"id":1'))
    shown = works("peek", "C")
    assert "bad rows: 3 (" in shown
    for where in ("a.jsonl line 21: ", "a.jsonl line 22: ", "b.jsonl"):
        assert f"  {where}" in shown, shown
    words = printed_command("C")
    assert words[words.index("--on-bad-sample") + 1] == "set-aside"
    facts = json.loads(works("peek", "C", "--json"))
    assert len(facts["problems"]) == facts["num_problems"] == 3


def test_a_name_with_control_characters_reaches_no_terminal_and_the_command_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("C").mkdir()
    rows = [{"red\x1b[31m\ntopic": ("law", "garden")[number % 2], "text": f"\x1b]0;{number}\a"} for number in range(20)]
    Path("C/0.jsonl").write_bytes(lines(rows))
    shown = works("peek", "C")
    assert "\x1b" not in shown and "\a" not in shown
    command = shown.splitlines()[-1].replace("skillshard ", "printf '%s\\0' ", 1)
    words = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    works(*words, "--workers", 1)
    assert Tags.open("tags").manifest.num_tagged == 20


def test_the_facts_fit_their_schema(tmp_path: Path) -> None:
    write_tar(tmp_path)
    facts = json.loads(works("peek", tmp_path, "--json"))
    schema = schemas()["peek-1"]
    assert set(facts) == set(schema["properties"]) and set(schema["required"]) <= set(facts)
    assert facts["num_rows"] == NUM_ROWS and facts["suffixes"] == {".tar": 1}


def test_only_the_first_megabytes_of_some_files_are_read(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 4):
        (tmp_path / f"{number:02d}.jsonl").write_bytes(lines([{"id": f"{number}", "text": "a"}]))
    long_rows = [{"id": f"x{number}", "text": "word " * 2000} for number in range(2 * FILE_BYTES // 10000)]
    (tmp_path / "00.jsonl").write_bytes(lines(long_rows) + b"not JSON\n")
    (tmp_path / "z.csv").write_text("id,text\n" + "".join(f"c{number},b\n" for number in range(3 * FILE_ROWS)))
    chosen = [file.name for file in chosen_files(Corpus.open(tmp_path).files)]
    assert len(chosen) == MAX_FILES and {"00.jsonl", "z.csv"} <= set(chosen)
    facts = json.loads(works("peek", tmp_path, "--json"))
    assert facts["read"] == chosen and facts["num_problems"] == 0
    assert FILE_ROWS < facts["num_rows"] < FILE_ROWS + len(long_rows)


def test_a_place_without_a_corpus_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\0")
    assert "no corpus files found" in fails("peek", tmp_path)
