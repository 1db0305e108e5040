"""The ceiling of rows that are set aside: exact over the whole corpus, early from 10,000 rows on, and one error that says how to go on."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import skillshard as ss
from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.errors import CorpusError, TagsError
from skillshard.execution import Backend, Task
from skillshard.taggers.ceiling import EARLY_ROWS, Ceiling, CeilingWatch
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works
from tests.conftest import HERE, lines, samples, tree
from tests.topics import topic_corpus


def corpus_of(folder: Path, **files: tuple[int, int]) -> Path:
    """Write a corpus: name of a file -> numbers of good rows, and of bad rows after the good rows."""
    folder.mkdir()
    for name, (num_good, num_bad) in files.items():
        rows = [{"id": f"{name}-{n}", "text": f"text {n}", "skill": "a"} for n in range(num_good)]
        bad = [{"id": f"{name}-bad-{n}", "text": f"text {n}"} for n in range(num_bad)]
        (folder / f"{name}.jsonl").write_bytes(lines(rows) + lines(bad))
    return folder


def tag(corpus: Path, out: Path, **more: Any) -> Tags:
    options: dict[str, Any] = {"on_bad_sample": "set-aside", "backend": HERE} | more
    return taggers.tag_corpus(Corpus.open(corpus), taggers.metadata("skill"), out, **options)


@given(num_bad=st.integers(0, 50), num_rows=st.integers(1, 100), percent=st.integers(0, 100))
def test_the_ceiling_compares_exactly(num_bad: int, num_rows: int, percent: int) -> None:
    assert Ceiling(percent / 100).is_exceeded(num_bad, num_rows) == (100 * num_bad > percent * num_rows)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share: float, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", a=(1, 0))
    with pytest.raises(TagsError, match="from 0 to 1"):
        tag(corpus, tmp_path / "T", max_set_aside=share)
    outcome = skillshard(
        *("tag", "metadata", corpus, "--field", "skill", "--out", tmp_path / "U"),
        *("--on-bad-sample", "set-aside", "--max-set-aside", share),
    )
    assert outcome.code == 2 and "--max-set-aside" in outcome.err


def test_one_per_cent_of_the_rows_is_allowed_and_one_row_more_is_not(tmp_path: Path) -> None:
    at_ceiling = corpus_of(tmp_path / "at", a=(98, 1), b=(100, 1))
    assert tag(at_ceiling, tmp_path / "T").manifest.set_aside == {"missing-field": 2}
    above = corpus_of(tmp_path / "above", a=(98, 2), b=(99, 1))
    with pytest.raises(CorpusError) as error:
        tag(above, tmp_path / "U")
    assert str(error.value) == (
        "3 of the 200 rows of the corpus (1.5 %) were set aside, and at most 1 % may be: missing-field of 'skill' 3. The worst files: a.jsonl 2 "
        "of 100 rows; b.jsonl 1 of 100 rows. Mend the rows or name the right fields, or run the same command with `max_set_aside=0.02` to "
        "go on. The finished tasks are kept."
    )
    assert not (tmp_path / "U" / "tags.json").exists()


def test_a_larger_ceiling_goes_on_with_the_finished_tasks_and_gives_the_same_bytes(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", a=(30, 5), b=(10, 0))
    with pytest.raises(CorpusError):
        tag(corpus, tmp_path / "T")
    before = {place: place.stat().st_mtime_ns for place in (tmp_path / "T" / ".work" / "records").rglob("*.json")}
    assert before
    tag(corpus, tmp_path / "T", max_set_aside=0.2)
    tag(corpus, tmp_path / "once", max_set_aside=0.5)
    assert tree(tmp_path / "T") == tree(tmp_path / "once")


def test_finished_tags_with_more_rows_than_the_ceiling_are_refused_too(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", a=(30, 5))
    tag(corpus, tmp_path / "T", max_set_aside=0.2)
    with pytest.raises(CorpusError, match=r"5 of the 35 rows"):
        tag(corpus, tmp_path / "T")


def test_the_command_names_its_option_and_goes_on_with_it(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", a=(30, 5))
    command = ("tag", "metadata", corpus, "--field", "skill", "--out", tmp_path / "T", "--on-bad-sample", "set-aside")
    assert "run the same command with --max-set-aside 0.2 to go on" in fails(*command)
    output = works(*command, "--max-set-aside", 0.2)
    assert "35 rows = 30 tagged in 1 skill + 5 set aside (missing-field of 'skill' 5); 1 part" in output
    assert "set aside by file, the most first: a.jsonl 5 of 35 rows" in output
    without = skillshard("tag", "metadata", corpus, "--field", "skill", "--out", tmp_path / "U", "--max-set-aside", 0.2)
    assert without.code == 2 and "give --on-bad-sample set-aside" in " ".join(without.err.replace("│", " ").split())


def test_the_record_counts_rows_by_file_reason_and_field(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", a=(3, 2), b=(4, 0))
    with (corpus / "b.jsonl").open("ab") as file:
        file.write(b'no json\n{"id": "x", "text": 3, "skill": "a"}\n{"id": "a-0", "text": "twice", "skill": "a"}\n')
    (corpus / "c.jsonl.gz").write_bytes(gzip.compress(lines(samples(z=300)))[:-30])
    for workers in (1, 2):
        tags = tag(corpus, tmp_path / f"T{workers}", max_set_aside=1.0, backend=Backend(workers=workers))
        counts = {(count.file, count.reason, count.field): count.num_rows for count in tags.manifest.set_aside_by}
        of_c = {key: num for key, num in counts.items() if key[0] == "c.jsonl.gz"}
        assert of_c[("c.jsonl.gz", "truncated", None)] == 1
        assert {key: num for key, num in counts.items() if key not in of_c} == {
            ("a.jsonl", "missing-field", "skill"): 2,
            ("b.jsonl", "duplicate-id", None): 1,
            ("b.jsonl", "malformed-json", None): 1,
            ("b.jsonl", "wrong-type", "text"): 1,
        }
        assert sum(counts.values()) == sum(part.num_set_aside for part in tags.manifest.parts)
        assert tags.verify() == []
    rejected = [
        json.loads(line)
        for place in (tmp_path / "T1" / "rejected").iterdir()
        for line in place.read_text().splitlines()
    ]
    assert {(row["reason"], row["field"]) for row in rejected} >= {("missing-field", "skill"), ("wrong-type", "text")}


def test_regrouped_tags_keep_the_counts(tmp_path: Path) -> None:
    tags = tag(corpus_of(tmp_path / "corpus", a=(3, 2)), tmp_path / "T", max_set_aside=1.0)
    again = taggers.regroup_tags([tmp_path / "T"], tmp_path / "R", mapping={"*": "all"}, backend=HERE)
    assert again.manifest.set_aside_by == tags.manifest.set_aside_by != []


def test_counts_of_version_1_have_no_files_and_are_checked_all_the_same() -> None:
    with pytest.raises(CorpusError) as error:
        Ceiling(0.01).check([("a.jsonl", 100)], [("", "missing-field", None, 3)], is_whole=True)
    assert "missing-field 3. Mend the rows" in str(error.value)


# ---------------------------------------------------------------------------------------------------------------- early


@pytest.mark.parametrize("workers", [1, 2])
def test_the_work_stops_at_the_first_rows_that_exceed_the_ceiling(workers: int, tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", a=(6_000, 50), b=(3_900, 60), c=(20_000, 0))
    with pytest.raises(CorpusError, match=r"^110 of the first 10,010 rows of the corpus \(1\.1 %\) were set aside"):
        tag(corpus, tmp_path / "T", backend=Backend(workers=workers), partition_bytes=1_000_000)
    assert not (tmp_path / "T" / ".work" / "records" / "duplicates").exists()
    tag(corpus, tmp_path / "T", backend=Backend(workers=workers), max_set_aside=0.02, partition_bytes=1_000_000)


def test_one_large_file_stops_before_its_end(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", a=(9_995, 10_000))
    with pytest.raises(CorpusError, match=r"^101 of the first 10,096 rows"):
        tag(corpus, tmp_path / "T")


def test_fewer_rows_than_the_least_number_never_stop_early() -> None:
    ceiling = Ceiling(0.01)
    assert not ceiling.is_exceeded_early(EARLY_ROWS - 1, EARLY_ROWS - 1)
    assert ceiling.is_exceeded_early(EARLY_ROWS, EARLY_ROWS)


@given(order=st.permutations(range(6)))
def test_the_order_in_which_tasks_end_does_not_matter(
    order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    partitions = Corpus.open(corpus_of(folder / "corpus", **dict.fromkeys("abcdef", (1, 0)))).partitions(
        partition_bytes=50
    )
    bad = [10, 40, 10, 400, 0, 9_000]
    watch = CeilingWatch(lambda task, record: None, Ceiling(0.01), partitions)
    with pytest.raises(CorpusError, match=r"^460 of the first 20,000 rows"):
        for number in order:
            counts = [("a", "malformed-json", None, bad[number])] if bad[number] else []
            record = {"file_rows": [5_000], "set_aside_by": counts}
            watch(Task(f"{number:06d}", {}), record)


def test_a_tagger_with_costly_stages_stops_after_the_count(tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path / "corpus", 60)
    with (corpus / "more.jsonl").open("wb") as file:
        file.write(5 * b"no json\n")
    tagger = taggers.embedding(taggers.lexical(), skills=3)
    with pytest.raises(CorpusError, match="malformed-json 5"):
        ss.tag_corpus(Corpus.open(corpus), tagger, tmp_path / "T", on_bad_sample="set-aside", backend=HERE)
    stages = {place.name for place in (tmp_path / "T" / ".work" / "records").iterdir()}
    assert stages == {"count"}


def test_a_pipeline_file_sets_the_ceiling(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", a=(30, 5))
    section = "{field: skill, on-bad-sample: set-aside%s}"
    for more in ("", ", max-set-aside: 0.2"):
        (tmp_path / "p.yaml").write_text(
            f"corpus: {corpus}\nout: {tmp_path / 'work'}\nworkers: 1\ntag:\n  metadata: {section % more}\n"
        )
        outcome = skillshard("run", tmp_path / "p.yaml")
        assert (outcome.code == 0) == bool(more), outcome
