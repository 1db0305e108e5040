"""`write_shards` beside a second run of itself, and the limit of the number of shards."""

from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.errors import ShardError
from skillshard.execution import silent
from skillshard.shards import tables, write
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from tests.conftest import HERE, lines, samples, tag_and_shard, write_corpus


def tagged(folder: Path) -> tuple[Corpus, Any]:
    corpus = Corpus.open(write_corpus(folder / "corpus", samples(add=60, carry=20)))
    return corpus, taggers.tag_corpus(
        corpus, taggers.metadata("skill"), folder / "tags", backend=HERE, partition_bytes=20_000
    )


@pytest.mark.parametrize("error", [FileNotFoundError("scratch"), ShardError("a fault of this run")])
def test_a_run_that_finds_its_work_finished_by_another_run_returns_the_set_of_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    corpus, tags = tagged(tmp_path)
    unhindered, finished = write._write, []

    def overtaken(*arguments: Any) -> None:
        unhindered(*arguments)
        finished.append(ShardSet.open(tmp_path / "S"))
        raise error

    monkeypatch.setattr(write, "_write", overtaken)
    if isinstance(error, ShardError):
        with pytest.raises(ShardError, match="a fault of this run"):
            write.write_shards(corpus, tags, tmp_path / "S", shard_bytes=50_000, holdout=0.1, backend=HERE)
        return
    again = write.write_shards(corpus, tags, tmp_path / "S", shard_bytes=50_000, holdout=0.1, backend=HERE)
    assert [again] == finished


def test_a_finished_set_that_is_written_again_is_returned_opened_and_changes_nothing(tmp_path: Path) -> None:
    corpus, tags = tagged(tmp_path)
    first, again = (
        write.write_shards(corpus, tags, tmp_path / "S", shard_bytes=50_000, holdout=0.1, backend=HERE)
        for _ in range(2)
    )
    assert again == first == ShardSet.open(tmp_path / "S") and again.skills == ("add", "carry")


def test_more_shards_than_a_manifest_can_name_are_refused_with_the_number_that_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, tags = tagged(tmp_path)
    monkeypatch.setattr(write, "MAX_MANIFEST_BYTES", 20 * write.MANIFEST_BYTES_PER_SHARD)
    with pytest.raises(
        ShardError, match=r"^\d\d shards of [\d,]+ bytes are too many .* \(at most 20\)\. Give a larger"
    ):
        write.write_shards(corpus, tags, tmp_path / "S", shard_bytes=3000, holdout=0.1, backend=HERE)


def test_texts_of_any_number_of_tar_blocks_are_read_and_pass_verification(tmp_path: Path) -> None:
    """A block has 512 bytes, so headers stand at odd and at even blocks."""
    texts = {f"s-{size:04d}": "x" * (size - 1) + "y" for size in (1, 511, 512, 513, 1023, 1024, 1025, 1600)}
    records = [{"id": key, "text": text, "meta": {"skill": "add"}} for key, text in texts.items()]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "0.jsonl").write_bytes(lines(records))
    shards = tag_and_shard(tmp_path / "corpus", tmp_path, holdout=0.2)
    assert ShardSet.open(shards.root).verify() == []
    read = {sample.id: sample.text for skills in (shards.train, shards.holdout) for sample in skills["add"]}
    assert read == texts


def test_a_shard_has_64_mebibytes_where_nothing_else_is_asked_for() -> None:
    assert signature(write.write_shards).parameters["shard_bytes"].default == 64 * 2**20


def test_copies_are_found_in_as_many_tasks_as_there_are_ranges_of_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 texts in ranges of at most 30 are three tasks, and the last range is not full."""
    corpus, tags = tagged(tmp_path)
    monkeypatch.setattr(tables, "TEXTS_PER_RANGE", 30)
    stages: dict[str, int] = {}

    def on_stage(name: str, num: int) -> Any:
        stages[name] = num
        return silent(name, num)

    write.write_shards(corpus, tags, tmp_path / "S", shard_bytes=50_000, holdout=0.1, backend=HERE, on_stage=on_stage)
    assert stages["finding copies"] == 3


def test_who_reads_a_skill_from_the_beginning_asks_for_each_next_shard_in_time(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[int] = []
    monkeypatch.setattr(SkillShards, "prefetch", lambda self, shard: requested.append(shard))
    of_skill = shards.train["add"]
    num_shards = len(of_skill.shard_rows)
    assert num_shards > 2 and len(list(of_skill)) == len(of_skill)
    assert requested == list(range(1, num_shards))
