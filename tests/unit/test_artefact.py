"""Work on an artefact: two runs of one command in one directory, and failures that are reported."""

import errno
import os
from pathlib import Path

import pytest

from skillshard import artefact, storage, taggers
from skillshard.corpus import Corpus
from skillshard.errors import CorpusError, ExecutionError, StorageError, TagsError
from tests.conftest import HERE, samples, tree, write_corpus

MADE_FROM = {"command": "tag", "inputs": [["corpus/a.jsonl", 12]]}


def finish(work: artefact.Work) -> None:
    work.finish({"made_from": MADE_FROM})


@pytest.mark.parametrize("failure", [FileNotFoundError("scratch"), StorageError("gone"), ExecutionError("gone")])
def test_a_run_whose_files_another_run_of_the_same_command_cleaned_up_ends_well(
    failure: Exception, tmp_path: Path
) -> None:
    def work(own: artefact.Work) -> None:
        other = artefact.begin(own.out, "tags.json", MADE_FROM, {})
        assert other is not None
        finish(other)
        raise failure

    artefact.make(tmp_path / "T", "tags.json", MADE_FROM, work)
    assert storage.read_json(tmp_path / "T" / "tags.json") == {"made_from": MADE_FROM}


@pytest.mark.parametrize("failure", [FileNotFoundError("scratch"), StorageError("no place"), TagsError("no sample")])
def test_a_failure_of_unfinished_work_is_raised_and_the_work_can_be_taken_up(
    failure: Exception, tmp_path: Path
) -> None:
    def work(own: artefact.Work) -> None:
        raise failure

    with pytest.raises(type(failure), match=str(failure)):
        artefact.make(tmp_path / "T", "tags.json", MADE_FROM, work)
    with pytest.raises(StorageError, match="was begun with other inputs or arguments"):
        begun = artefact.begin(tmp_path / "T", "tags.json", MADE_FROM, {})
        assert begun is not None
        storage.write_bytes(Path(begun.records("tag")) / "0.json", b"{}")
        artefact.make(tmp_path / "T", "tags.json", {**MADE_FROM, "command": "shard"}, finish)
    artefact.make(tmp_path / "T", "tags.json", MADE_FROM, finish)
    assert (tmp_path / "T" / "tags.json").exists() and not (tmp_path / "T" / ".work").exists()


def test_a_refused_command_does_not_block_the_corrected_command(tmp_path: Path) -> None:
    def refused(own: artefact.Work) -> None:
        storage.write_bytes(Path(own.records("tag")) / "0.json", b"{}")
        storage.write_bytes(own.scratch("0.parquet"), b"old")
        raise TagsError("`skills=5000` is more than the samples")

    def corrected(own: artefact.Work) -> None:
        assert not storage.exists(Path(own.records("tag")) / "0.json") and not storage.exists(own.scratch("0.parquet"))
        own.finish({"made_from": {**MADE_FROM, "skills": 5}})

    with pytest.raises(TagsError):
        artefact.make(tmp_path / "T", "tags.json", MADE_FROM, refused)
    artefact.make(tmp_path / "T", "tags.json", {**MADE_FROM, "skills": 5}, corrected)
    assert os.listdir(tmp_path / "T") == ["tags.json"]


@pytest.mark.parametrize("failure", [ExecutionError("a worker died"), KeyboardInterrupt()])
def test_finished_tasks_of_a_command_that_was_not_refused_are_kept(failure: BaseException, tmp_path: Path) -> None:
    def refused(own: artefact.Work) -> None:
        raise TagsError("no sample")

    def failing(own: artefact.Work) -> None:
        storage.write_bytes(Path(own.records("tag")) / "0.json", b"{}")
        raise failure

    # The same command goes on after a refusal, for example with an installed package, and is then interrupted.
    for work in (refused, failing):
        with pytest.raises((TagsError, type(failure))):
            artefact.make(tmp_path / "T", "tags.json", MADE_FROM, work)
    with pytest.raises(StorageError, match="was begun with other inputs or arguments"):
        artefact.make(tmp_path / "T", "tags.json", {**MADE_FROM, "skills": 5}, finish)
    artefact.make(tmp_path / "T", "tags.json", MADE_FROM, finish)


def test_a_mended_row_and_other_arguments_may_follow_a_refused_row(tmp_path: Path) -> None:
    rows = samples(add=30, carry=20)
    place = write_corpus(tmp_path / "corpus", rows)
    (Path(place) / "z.jsonl").write_text('{"id": "z", "text": null, "meta": {"skill": "add"}}\n')

    def tagged(field: str = "skill") -> int:
        tagger, corpus = taggers.metadata(field), Corpus.open(place)
        return len(
            taggers.tag_corpus(corpus, tagger, tmp_path / "T", backend=HERE, partition_bytes=500).manifest.skills
        )

    with pytest.raises(CorpusError, match="must be a string, got null"):
        tagged()
    assert storage.list_files(tmp_path / "T" / ".work" / "records", "*.json", hidden=True)
    with pytest.raises(CorpusError, match="field 'skil' is missing"):
        tagged("skil")
    with pytest.raises(CorpusError, match="must be a string, got null"):
        tagged()
    (Path(place) / "z.jsonl").write_text('{"id": "z", "text": "1+1", "meta": {"skill": "add"}}\n')
    assert tagged() == 2


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    artefact.make(tmp_path / "T", "tags.json", MADE_FROM, finish)
    artefact.make(tmp_path / "T", "tags.json", MADE_FROM, lambda work: pytest.fail("the artefact is finished"))
    assert storage.read_json(tmp_path / "T" / "tags.json") == {"made_from": MADE_FROM}


def test_tags_are_the_same_on_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(write_corpus(tmp_path / "corpus", samples(add=30, carry=20)))
    tagger = taggers.metadata("skill")
    taggers.tag_corpus(corpus, tagger, tmp_path / "linked", backend=HERE)

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    taggers.tag_corpus(corpus, tagger, tmp_path / "copied", backend=HERE)
    assert tree(tmp_path / "copied") == tree(tmp_path / "linked")
