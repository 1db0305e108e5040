"""Features that all verbs share: the printed text, the refusals at the start, and the sentences for errors from outside."""

import csv
import errno
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard import canonical, places, storage
from skillshard.bars import Stage
from skillshard.errors import StorageError, TagsError
from skillshard.execution import keyed
from skillshard.graph.imported import import_graph
from skillshard.printable import printable, shortened
from tests.commands import fails, finish, skillshard, start, works
from tests.conftest import lines, sample, samples, tree, write_corpus

HOSTILE = (
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "two\nlines",
    "\u202eright to left",
    "nul\x00",
    "c1\x9b",
    "x" * 300,
    ":smile: [bold]",
)
FIELD = ("--field", "meta.skill", "--workers", 1)


def has_control(text: str) -> bool:
    """Return whether a terminal would obey a part of a text, line ends left aside."""
    return any(
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        or letter in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"
        for letter in text.replace("\n", "")
    )


# -------------------------------------------------------------------------------------------------------- what is shown


@given(st.text(st.characters(codec=None)))
def test_nothing_that_a_terminal_obeys_is_printable_and_printing_twice_changes_nothing(text: str) -> None:
    shown = printable(text)
    assert not has_control(shown) and "\n" not in shown
    assert printable(shown) == shown
    shown.encode()  # no half of a surrogate pair is left


@given(st.text(), st.integers(20, 100))
def test_a_shortened_name_is_never_longer_than_it_may_be(text: str, most: int) -> None:
    assert len(shortened(text, most)) <= most


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write tags and shards of skills whose names attack the terminal."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "C").mkdir()
    records = [
        {"id": f"{number}\x1b[31m", "text": f"text {number}", "meta": {"skill": name}}
        for name in HOSTILE
        for number in range(4)
    ]
    records = [{**record, "id": f"{number}\x1b[31m"} for number, record in enumerate(records)]
    (folder / "C" / "a.jsonl").write_bytes(lines(records))
    works("tag", "metadata", folder / "C", "--out", folder / "T", *FIELD)
    works("shard", folder / "C", "--tags", folder / "T", "--out", folder / "S", "--holdout", 0.3, "--workers", 1)
    return folder


def test_names_that_a_terminal_would_obey_are_shown_escaped(hostile: Path) -> None:
    for command in (
        ("tag", "metadata", hostile / "C", "--out", hostile / "T", *FIELD),
        ("inspect", hostile / "T"),
        ("inspect", hostile / "S"),
        ("inspect", hostile / "T", "--against", "skill"),
        ("verify", hostile / "S"),
    ):
        outcome = skillshard(*command)
        assert not has_control(outcome.out + outcome.err), command
    shown = works("inspect", hostile / "T")
    assert (
        r"\x1b[2J\x1b[31mred" in shown
        and r"two\nlines" in shown
        and r"\u202eright" in shown
        and ":smile: [bold]" in shown
    )
    assert max(map(len, shown.splitlines())) < 120, "a long name breaks the table"


def test_names_in_errors_and_warnings_are_shown_escaped(hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text('{"weights": {"\\u001b[31mnobody": 1.0}}')
    outcome = skillshard("mix", hostile / "S", "--draws", 10, "--policy", "fixed", "--weights", tmp_path / "w.json")
    assert outcome.code == 1 and not has_control(outcome.err), outcome
    assert not has_control(str(TagsError("a name \x1b[31m")))


def test_a_terminal_that_lacks_a_letter_shows_it_escaped(hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{**sample("add", 1), "meta": {"skill": "\xe9t\xe9"}}]))
    ascii_only = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = ("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", *FIELD)
    outcome = finish(start(*command, env_changes=ascii_only))
    assert outcome.code == 0, outcome
    assert r"\xe9t\xe9" in outcome.out


def test_a_single_thing_is_not_printed_in_the_plural(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(samples(add=5)))
    shown = works("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", *FIELD)
    assert "5 rows = 5 tagged in 1 skill + 0 set aside; 1 part in" in shown
    works(
        "shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1, "--holdout", 0
    )
    assert "1 shard, 5 samples" in works("verify", tmp_path / "S")


def test_an_output_that_nobody_reads_is_no_error(hostile: Path) -> None:
    command = f"{sys.executable} -m skillshard mix {hostile / 'S'} --draws 200000 | head -n 1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert ended.stdout.count("\n") == 1
    assert "Traceback" not in ended.stderr and "BrokenPipe" not in ended.stderr and "error" not in ended.stderr


def test_a_reader_that_goes_before_the_end_gives_the_exit_code_of_a_broken_pipe(hostile: Path) -> None:
    for verb in (("inspect", hostile / "S"), ("inspect", hostile / "S", "--json")):
        command = [sys.executable, "-m", "skillshard", *map(str, verb)]
        reading, writing = os.pipe()
        os.close(reading)
        ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        assert ended.returncode == 141 and ended.stderr == "", ended


def test_the_home_directory_is_expanded_also_behind_an_equals_sign(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    works("mix", hostile / "S", "--draws", 3, "--out=~/stream.jsonl")
    assert (tmp_path / "stream.jsonl").exists()


def test_a_name_that_is_not_utf8_is_refused_wherever_a_file_is_read_or_written(hostile: Path, tmp_path: Path) -> None:
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    os.mkdir(bad)
    Path(bad, "graph.json").write_text("{}")
    for verb in (
        ("graph", "show", f"{bad}/graph.json"),
        ("graph", "derive", f"{bad}/graph.json", "--out", tmp_path / "g.json"),
        ("mix", f"{bad}/S", "--draws", 3),
        ("fit", f"{bad}/runs.json"),
        ("synth", "lego", "--k", 3, "--samples", 9, "--out", f"{bad}/L"),
    ):
        assert "bad\\xff" in fails(*verb) and "not valid UTF-8" in fails(*verb), verb


def test_the_version_is_shown() -> None:
    assert works("--version").startswith("skillshard")


# ------------------------------------------------------------------------------------------------ refused at the start


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "C", samples(add=12, carry=8))
    works("tag", "metadata", tmp_path / "C", "--out", tmp_path / "T", *FIELD)
    works("shard", tmp_path / "C", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1, "--holdout", 0.2)
    return tmp_path


@pytest.mark.parametrize("corpus", ["C", "C/**/*", ".", "link"])
@pytest.mark.parametrize("out", ["C/T", "C/deep/T", "link/T"])
def test_an_output_inside_what_is_read_is_refused_before_anything_is_written(
    out: str, corpus: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "link").symlink_to("C")
    monkeypatch.chdir(root)
    before = tree(root)
    for command in (("tag", "metadata", corpus, *FIELD), ("shard", corpus, "--tags", "T")):
        assert f"--out {out} lies in {corpus}, which is read" in fails(*command, "--out", out)
    assert tree(root) == before


def test_every_verb_that_writes_refuses_an_output_inside_its_input(root: Path) -> None:
    assert "which is read" in fails("shard", root / "C", "--tags", root / "T", "--out", root / "T" / "S")
    assert "which is read" in fails(
        "tokens", root / "S", "--tokenizer", root / "t.json", "--out", root / "S" / "tokens"
    )
    assert "which is read" in fails("graph", "learn", root / "S", "--steps", 2, "--out", root / "S" / "graph.json")
    assert "which is read" in fails("regroup", root / "T", "--min-share", 0.1, "--out", root / "T" / "fewer")


def test_a_corpus_inside_the_output_is_refused(root: Path) -> None:
    (root / "out").mkdir()
    (root / "C").rename(root / "out" / "C")
    assert "which is read, lies in --out" in fails("tag", "metadata", root / "out" / "C", *FIELD, "--out", root / "out")
    assert "which is read, lies in --out" in fails(
        "tag", "metadata", root / "out" / "C" / "0.jsonl", *FIELD, "--out", root / "out"
    )


def test_a_generated_corpus_is_not_mixed_with_another_one(tmp_path: Path) -> None:
    command = ("synth", "lego", "--k", 2, "--out", tmp_path / "L")
    works(*command, "--samples", 50_010)
    before = tree(tmp_path)
    assert len(before) == 2
    assert "lego-00001.jsonl" in fails(*command, "--samples", 100)
    assert tree(tmp_path) == before
    assert "1 file in" not in works(*command, "--samples", 50_010)
    assert tree(tmp_path) == before


def test_inspect_says_what_is_right_where_there_is_no_artefact(root: Path) -> None:
    (root / "graph.json").write_text("{}")
    (root / "empty").mkdir()
    for place, says in {
        "nowhere": "does not exist",
        "graph.json": f"skillshard graph show {root / 'graph.json'}",
        "C/0.jsonl": f"skillshard tag metadata {root / 'C' / '0.jsonl'}",
        "T/tags.json": f"give its directory, {root / 'T'}",
        "empty": "holds no artefact",
    }.items():
        assert says in fails("inspect", root / place), place
        assert says in fails("verify", root / place), place


# ------------------------------------------------------------------------------------------------- errors from outside


def test_a_mistake_of_ours_is_one_sentence_that_says_how_to_report_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(place: object) -> None:
        raise ZeroDivisionError("nothing is\ndivided")

    monkeypatch.setattr("skillshard.report.text.show", broken)
    monkeypatch.delenv("SKILLSHARD_DEBUG")
    sentence = fails("inspect", root / "T")
    assert "a mistake in skillshard" in sentence and r"ZeroDivisionError: nothing is\ndivided" in sentence
    assert "show.py, line" in sentence and "SKILLSHARD_DEBUG=1" in sentence
    monkeypatch.setenv("SKILLSHARD_DEBUG", "1")
    assert "Traceback" in skillshard("inspect", root / "T").err


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "Free space on that disk"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "change the permissions"),
        (errno.EDQUOT, "quota"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_with_a_remedy(
    number: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage, "sync", refuse)
    with pytest.raises(StorageError) as raised:
        storage.write_bytes(tmp_path / "a", b"data")
    assert f"{tmp_path / 'a'} cannot be written: {os.strerror(number)}" in str(raised.value) and says in str(
        raised.value
    )
    assert tree(tmp_path) == {}


class ForeignError(Exception):
    """An error of the client of a store, which is no OSError."""


ForeignError.__module__ = "httpx9"


@pytest.mark.parametrize("place", ["hf://datasets/nobody/nothing", "s3://bucket/a.jsonl", "gs://bucket/a.jsonl"])
@pytest.mark.parametrize("message", ["[Errno -2] Name or service not known", "connection timed out"])
def test_a_store_that_cannot_be_reached_is_one_sentence(
    place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable:
        def get_file_info(self, path: object) -> Any:
            raise ForeignError(f"\n{message}\nand forty lines more")

    monkeypatch.setattr(places, "filesystem", lambda place: (Unreachable(), "a.jsonl"))
    monkeypatch.setattr(storage, "BACK_OFF_S", 0.0)
    sentence = fails("tag", "metadata", place, *FIELD, "--out", tmp_path / "T")
    assert sentence.startswith(place) and message in sentence and "network" in sentence and "forty" not in sentence
    assert ("in 6 tries" in sentence) == ("timed out" in message)


# --------------------------------------------------------------------------------------------------- imported matrices

MATRICES = {
    "names on both axes": (",a,b\na,1,2\nb,3,4\n", ["a", "b"], ["a", "b"]),
    "a word in the corner": ("from,a,b\na,1,2\nb,3,4\n", ["a", "b"], ["a", "b"]),
    "numbers as names": (",3,4\n3,1,2\n4,3,4\n", ["3", "4"], ["3", "4"]),
    "no header": ("a,1,2\nb,3,4\n", ["a", "b"], ["a", "b"]),
    "spaces and a byte order mark": ("\ufeff, a, b\na, 1, 2\n\nb, 3, 4\n", ["a", "b"], ["a", "b"]),
    "other columns": (",x,y\na,1,2\nb,3,4\n", ["a", "b"], ["x", "y"]),
    "line ends of Windows": (",a,b\r\na,1,2\r\nb,3,4\r\n", ["a", "b"], ["a", "b"]),
    "line ends of old Macs": (",a,b\ra,1,2\rb,3,4\r", ["a", "b"], ["a", "b"]),
}


@pytest.mark.parametrize("form", sorted(MATRICES))
def test_a_matrix_is_read_as_it_is_meant_with_or_without_its_names(form: str, tmp_path: Path) -> None:
    text, rows, columns = MATRICES[form]
    (tmp_path / "m.csv").write_bytes(text.encode())
    graph = import_graph(tmp_path / "m.csv")
    assert (list(graph.train_skills), list(graph.eval_skills)) == (rows, columns)
    assert graph.edges.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2\n3,4\n", "does not name its rows"),
        ("a,1\nb,2\n", "shape"),
        ("skill,a,2\na,1,2\nb,3,4\n", "mixes names and numbers"),
        (",a,b\na,1,\nb,3,4\n", "line 2 has '' where a number is expected"),
        (",a,b\na,1,nan\nb,3,4\n", "must be finite numbers"),
        (",a,a\na,1,2\nb,3,4\n", "not distinct"),
        (",a,b\na,1,2\na,3,4\n", "not distinct"),
        (",a,b\na,1\nb,3,4\n", "as many cells"),
        (",a,b\n", "no line of numbers"),
        ("a;1;2\nb;3;4\n", "its cells are separated by ';'"),
        ("\ta\tb\na\t1\t2\nb\t3\t4\n", "its cells are separated by '\\t'"),
        ("", "it is empty"),
        (",a\na,1_0\n", "line 2 has '1_0' where a number is expected"),
        (f",a\na,{'1' * 200_000}\n", "holds no matrix of numbers: field larger than field limit"),
    ],
)
def test_a_matrix_that_can_be_read_in_two_ways_or_in_none_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    # The limit is one number for the whole process, and reading a corpus of CSV in another test raises it.
    before = csv.field_size_limit(131_072)
    try:
        assert says in fails("graph", "import", tmp_path / "m.csv", "--out", tmp_path / "g.json")
    finally:
        csv.field_size_limit(before)
    assert not (tmp_path / "g.json").exists()


@pytest.mark.parametrize("text", ['{"a": {"a": 1}, "a": {"a": 2}}', '{"a": {"a": 1, "a": 2}}'])
def test_a_name_that_stands_twice_in_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    assert "'a' stands twice" in fails("graph", "import", tmp_path / "m.json", "--out", tmp_path / "g.json")


def test_a_matrix_without_names_takes_those_that_are_given(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("1,2\n3,4\n")
    (tmp_path / "names").write_text("a\nb\n")
    works("graph", "import", tmp_path / "m.csv", "--names", tmp_path / "names", "--out", tmp_path / "g.json")
    assert import_graph(tmp_path / "g.json").train_skills == ("a", "b")


# ------------------------------------------------------------------------------------------------------------ estimates


def test_an_estimate_leaves_out_the_start_of_the_processes_and_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s = 0.0
    monkeypatch.setattr("skillshard.bars.time.monotonic", lambda: clock_s)
    first, second, third = keyed({} for _ in range(3))
    stage = Stage("training", 3, started_s=0.0)
    stage.found_done(first, {})
    assert stage.left_s is None and "left" not in stage.sentence()
    clock_s = 60.0  # the time of loading a model
    stage.part(second, 0.1)
    clock_s = 70.0
    stage.part(second, 0.2)
    assert stage.left_s == pytest.approx(10 * 1.8 / 0.1)
    clock_s = 150.0
    stage(second, {})
    assert stage.left_s == pytest.approx(90 * 1.0 / 0.9)
    stage(third, {})
    assert stage.left_s is None and stage.sentence() == "training: 3 of 3 in 2 min 30 s"


@pytest.mark.parametrize("place", ["S", "S/run", "T"])
def test_a_ledger_needs_a_directory_of_its_own(place: str, root: Path) -> None:
    before = tree(root)
    sentence = fails("mix", root / "S", "--draws", 4, "--ledger", root / place, "--policy", "stratified")
    assert "--ledger" in sentence or "needs its own directory" in sentence
    outcome = skillshard(
        "mix", root / "S", "--draws", 4, "--ledger", root / place
    )  # no policy, so the run would be listed
    assert outcome.code in (1, 2) and "--ledger" in outcome.err
    assert tree(root) == before


@pytest.mark.parametrize("below", ["", "T"])
def test_an_output_at_a_link_to_nothing_is_refused_in_a_sentence(below: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    sentence = fails("tag", "metadata", root / "C", *FIELD, "--out", tmp_path / "link" / below)
    assert f"is a link to {tmp_path / 'gone'}, which is not there" in sentence


@pytest.mark.parametrize(
    ("verb", "stage"),
    [
        (("verify", "S"), "verifying"),
        (("verify", "T"), "verifying"),
        (("verify", "run"), "verifying"),
        (("mix", "S", "--draws", 40, "--round-draws", 8, "--out", "m"), "listing draws"),
        (("fit", "runs.json"), "fitting"),
        (("synth", "addition", "--k", 2, "--samples", 2000, "--out", "A"), "generating"),
    ],
)
def test_a_long_piece_of_work_says_how_far_it_is_and_how_long_it_takes(
    verb: tuple[object, ...], stage: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    works("mix", "S", "--draws", 40, "--round-draws", 8, "--ledger", "run", "--out", "d")
    rows = [{"weights": {"a": 1 + n, "b": 7 - n}, "losses": {"x": 1 + n / 7}} for n in range(6)]
    (root / "runs.json").write_bytes(canonical.to_json({"schema": "skillshard/runs/1", "runs": rows}))
    monkeypatch.setattr("skillshard.mixing.listing.DRAWS_AT_ONCE", 8)
    monkeypatch.setattr("skillshard.progress.SECONDS_BETWEEN", 0.0)
    heard: list[str] = []
    advanced = Stage.advanced

    def advance_and_look(self: Stage, share: float) -> None:
        advanced(self, share)
        heard.append(self.sentence())

    monkeypatch.setattr(Stage, "advanced", advance_and_look)
    works(*verb)
    assert heard and all(sentence.startswith(f"{stage}: ") and " % in " in sentence for sentence in heard)
    assert any(" left" in sentence for sentence in heard) or verb == ("verify", "T")


def test_without_a_terminal_one_piece_of_work_has_a_line_every_few_seconds(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
import time
from skillshard import progress
from skillshard import bars
bars.SECONDS_BETWEEN_LINES, progress.SECONDS_BETWEEN = 0.3, 0.0
with bars.Bars() as shown, shown.working("verifying"):
    for number in range(8):
        progress.advance(number, 8)
        time.sleep(0.25)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    shown = capfd.readouterr().err.splitlines()
    assert len(shown) >= 3 and any(re.fullmatch(r"verifying: \d+ % in \d+ s, about \d+ s left", line) for line in shown)
    assert re.fullmatch(r"verifying: \d+ s", shown[-1])


@pytest.mark.parametrize(
    "verb",
    [
        ("mix", "S", "--draws", 4),
        ("weights", "S", "--policy", "stratified"),
        ("graph", "import", "matrix.csv"),
    ],
)
def test_a_directory_or_another_file_in_place_of_an_output_file_is_refused(
    verb: tuple[object, ...], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (root / "matrix.csv").write_text("skill,add,carry\nadd,1,0\ncarry,0,1\n")
    assert fails(*verb, "--out", "T") == "T is a directory: give --out a file to write."
    (root / "other").write_text("other")
    assert "other exists and holds something else" in fails(*verb, "--out", "other")
    works(*verb, "--out", "new")
    before = (root / "new").read_bytes()
    works(*verb, "--out", "new")
    assert (root / "new").read_bytes() == before
