"""The bytes of shards do not depend on the sizes of chunks, on merge levels, on batches or on the kill of a stage."""

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from skillshard import stages, storage, taggers
from skillshard.corpus import Corpus, PartitionReader, Sample
from skillshard.errors import StorageError
from skillshard.merge_levels import MergePlan, plan_merges
from skillshard.shards import copies as copies_module
from skillshard.shards import faults, merge, sort, tables, write
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards
from skillshard.tags import Tags
from tests.conftest import HERE, samples, tree, write_corpus

NO_LEVELS = partial(plan_merges, open_bytes=0)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of tiny scratch files would each wait for the disk."""
    monkeypatch.setattr(storage, "sync", lambda path: None)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Tags]:
    """Tag 300 samples in 3 skills and about 20 partitions, with copies in other skills, and a skill that needs exceptions to the cut."""
    folder = tmp_path_factory.mktemp("shuffle")
    records = samples(add=180, carry=90, negate=20)
    records += [{**record, "id": f"copy-{record['id']}", "meta": {"skill": "rare"}} for record in records[:60:6]]
    records += [{"id": f"same-{number}", "text": "the same text", "meta": {"skill": "same"}} for number in range(9)]
    corpus = Corpus.open(write_corpus(folder / "corpus", records, num_files=5))
    tagger = taggers.metadata("skill")
    return corpus, taggers.tag_corpus(corpus, tagger, folder / "tags", backend=HERE, partition_bytes=1_800)


def written(tagged: tuple[Corpus, Tags], out: Path, copies: Any = "keep") -> dict[str, bytes]:
    corpus, tags = tagged
    shards = write_shards(corpus, tags, out, shard_bytes=12_000, holdout=0.1, copies=copies, backend=HERE)
    assert ShardSet.open(shards.root).verify() == []
    return tree(out)


@pytest.mark.parametrize("copies", ["keep", "drop"])
def test_chunks_of_1_kb_and_of_128_mb_and_any_fan_in_give_the_same_bytes(
    copies: str, tagged: tuple[Corpus, Tags], tmp_path: Path
) -> None:
    expected = written(tagged, tmp_path / "expected", copies)
    plans: list[MergePlan] = []

    def recorded(planner: Callable[..., MergePlan], *numbers: int) -> MergePlan:
        plans.append(planner(*numbers))
        return plans[-1]

    two, six = partial(plan_merges, max_fan_in=2), partial(plan_merges, max_fan_in=6)
    for number, (sort_bytes, planner) in enumerate(
        ((1 << 10, two), (1 << 10, six), (1 << 10, NO_LEVELS), (128 << 20, two), (128 << 20, NO_LEVELS))
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sort, "SORT_BYTES", sort_bytes)
            patch.setattr(stages, "plan_merges", partial(recorded, planner))
            patch.setattr(tables, "TEXTS_PER_RANGE", 40)
            patch.setattr("skillshard.shards.plan.GROUP_SHARDS", 2)
            assert written(tagged, tmp_path / str(number), copies) == expected
    assert {len(plan.fan_ins) for plan in plans} >= {0, 2, 4}


def test_the_ids_of_first_samples_take_no_more_opens_than_the_merge_levels_allow(
    tagged: tuple[Corpus, Tags], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rejected/` names the first sample of each copy. One open for each chunk with a first sample would grow with the square of the corpus."""
    expected = written(tagged, tmp_path / "expected", "drop")
    monkeypatch.setattr(sort, "SORT_BYTES", 1 << 10)
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=4))
    monkeypatch.setattr(tables, "TEXTS_PER_RANGE", 40)
    opened: list[str] = []
    most: list[int] = []

    def recorded(opening: Callable[[str], Any]) -> Callable[[str], Any]:
        return lambda place: (opened.append(place), opening(place))[1]

    def counted(task: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(task)
        def run(**arguments: Any) -> Any:
            opened.clear()
            record = task(**arguments)
            most.append(len(opened))
            return record

        return run

    for name in ("open_at", "load_array"):
        monkeypatch.setattr(copies_module.storage, name, recorded(getattr(copies_module.storage, name)))
    monkeypatch.setattr(tables, "find_copies", counted(tables.find_copies))
    assert written(tagged, tmp_path / "merged", "drop") == expected
    assert len(list((tmp_path / "merged" / "rejected").iterdir())) > 0
    # The entries, the places of the ids, and the ids of each of four tables.
    assert len(most) > 2 and 4 < max(most) <= 3 * 4


def test_a_fan_in_of_64_merges_more_than_64_chunks_to_the_same_bytes(
    tagged: tuple[Corpus, Tags], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(tagged, tmp_path / "expected")
    monkeypatch.setattr(sort, "SORT_BYTES", 1)  # a chunk for each sample
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=64))
    assert written(tagged, tmp_path / "merged") == expected


def test_batches_of_a_few_samples_give_the_same_bytes(
    tagged: tuple[Corpus, Tags], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small batches, a shard and a merge have several batches."""
    expected = written(tagged, tmp_path / "expected")
    monkeypatch.setattr(merge, "BATCH_BYTES", 1000)
    monkeypatch.setattr("skillshard.shards.contents.CHUNK_BYTES", 100)
    assert written(tagged, tmp_path / "batches") == expected
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=3))
    assert written(tagged, tmp_path / "merged") == expected


def test_samples_with_equal_hashes_of_their_ids_stand_in_the_order_of_the_corpus(
    tagged: tuple[Corpus, Tags], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is total, so merges cannot swap two samples. Among a billion ids, two share a hash in 3 % of cases."""
    monkeypatch.setattr(sort, "id_hashes", lambda ids: (len(sample_id) << 58 for sample_id in ids))
    # `verify` compares the keys with the ids.
    monkeypatch.setattr(faults, "id_hash", lambda sample_id: len(sample_id) << 58)
    expected = written(tagged, tmp_path / "expected")
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=2))
    assert written(tagged, tmp_path / "merged") == expected
    corpus, _ = tagged
    positions = {
        sample.id: number
        for number, sample in enumerate(
            sample
            for partition in corpus.partitions()
            for sample in PartitionReader(partition)
            if isinstance(sample, Sample)
        )
    }
    for skill in ShardSet.open(tmp_path / "merged").train.values():
        order = [(len(sample.id), positions[sample.id]) for sample in skill]
        assert order == sorted(order)


def test_chunks_and_tables_are_deleted_as_soon_as_no_task_reads_them(
    tagged: tuple[Corpus, Tags], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sort, "SORT_BYTES", 1 << 10)
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=4))
    left: list[str] = []

    def stopped(*_: object) -> None:
        left.extend(str(path) for path in (tmp_path / "S" / ".work" / "scratch").rglob("*") if path.is_file())
        raise InterruptedError

    monkeypatch.setattr(write, "_manifest", stopped)
    with pytest.raises(InterruptedError):
        written(tagged, tmp_path / "S")
    assert {path.split("/scratch/")[1].split("/")[0] for path in left} == {"totals"}


def test_scratch_files_in_another_place_give_the_same_bytes_and_are_gone_at_the_end(
    tagged: tuple[Corpus, Tags], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, tags = tagged
    expected = written(tagged, tmp_path / "expected")

    def write_with(scratch: Path | None) -> None:
        write_shards(
            corpus, tags, tmp_path / "S", shard_bytes=12_000, holdout=0.1, scratch=scratch, backend=HERE, progress=False
        )

    def stopped(*_: object, **__: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(write, "plan", stopped)
        with pytest.raises(InterruptedError):
            write_with(tmp_path / "fast")
    assert list((tmp_path / "fast").rglob("*.data")) and not (tmp_path / "S" / ".work" / "scratch").exists()
    with pytest.raises(
        StorageError, match=r"temporary files lie in .*fast/skillshard-\w{12}, and this command names its own"
    ):
        write_with(None)
    with pytest.raises(
        StorageError, match=r"and this command names .*other/skillshard-\w{12}\. Give the same `scratch` again"
    ):
        write_with(tmp_path / "other")
    write_with(tmp_path / "fast")
    assert tree(tmp_path / "S") == expected and list((tmp_path / "fast").iterdir()) == []
