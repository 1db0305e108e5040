"""Appended shards continue a shard set: nothing of the parent changes, no text stands on both sides, and every sample is accounted for."""

import shutil
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard import stages, storage, taggers
from skillshard.corpus import Corpus
from skillshard.errors import ShardError
from skillshard.execution import silent
from skillshard.merge_levels import plan_merges
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards import copies as copies_module
from skillshard.shards import parent as parent_module
from skillshard.shards import sort, tables
from skillshard.shards.manifest import Manifest4
from skillshard.shards.read import ShardSet
from skillshard.shards.texts import folded, text_hash
from skillshard.shards.write import APPEND_STAGES, append_shards, write_shards
from skillshard.tags import Tags
from tests.commands import skillshard, works
from tests.conftest import HERE, lines, samples, tree

SHARD_BYTES = 12_000
Rows = list[tuple[str, str]]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "sync", lambda path: None)


def tagged(folder: Path, records: list[dict[str, Any]], *, partition_bytes: int = 1500) -> tuple[Corpus, Tags]:
    (folder / "corpus").mkdir(parents=True)
    for number in range(2):
        (folder / "corpus" / f"{number}.jsonl").write_bytes(lines(records[number::2]) or b"\n")
    corpus = Corpus.open(folder / "corpus")
    return corpus, taggers.tag_corpus(
        corpus, taggers.metadata("skill"), folder / "tags", backend=HERE, partition_bytes=partition_bytes
    )


def records_of(rows: Rows, prefix: str) -> list[dict[str, Any]]:
    return [{"id": f"{prefix}{number:03d}", "text": text, "skill": skill} for number, (skill, text) in enumerate(rows)]


def appended(parent: ShardSet, new: tuple[Corpus, Tags], out: Path, **options: Any) -> ShardSet:
    shards = append_shards(parent, *new, out, shard_bytes=SHARD_BYTES, backend=HERE, **options)
    assert shards.verify() == []
    return shards


def by_side(shards: ShardSet) -> dict[str, dict[str, list[Any]]]:
    return {
        side: {name: list(skill) for name, skill in skills.items()}
        for side, skills in (("train", shards.train), ("holdout", shards.holdout))
    }


def texts_of(shards: ShardSet) -> dict[str, set[str]]:
    return {
        side: {folded(sample.text) for samples_of in skills.values() for sample in samples_of}
        for side, skills in by_side(shards).items()
    }


ROWS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.sampled_from([f"text {n}" for n in range(24)])),
    min_size=1,
    max_size=30,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=ROWS,
    new=ROWS,
    newer=ROWS,
    holdout=st.sampled_from([0.0, 0.02, 0.3, 0.9]),
    copies=st.sampled_from(["keep", "drop"]),
    layout=st.sampled_from(["pairs", "compact"]),
    sizes=st.sampled_from([(1 << 20, 10**6, 10**6), (64, 5, 3), (300, 4, 1)]),
)
def test_appended_shards_keep_the_sides_of_the_parent_and_hold_every_sample_once(
    old: Rows,
    new: Rows,
    newer: Rows,
    holdout: float,
    copies: Any,
    layout: Any,
    sizes: tuple[int, int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("append")
    corpus, tags = tagged(folder / "old", records_of(old, "old"))
    parent = write_shards(
        corpus,
        tags,
        folder / "S0",
        holdout=holdout,
        copies=copies,
        layout=layout,
        shard_bytes=SHARD_BYTES,
        backend=HERE,
    )
    sets, all_rows = [parent], [*old]
    before = tree(folder / "S0")
    for number, rows in enumerate((new, newer), start=1):
        source = tagged(folder / f"new{number}", records_of(rows, f"new{number}-"))
        plain = appended(sets[-1], source, folder / f"S{number}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sort, "SORT_BYTES", sizes[0])
            patch.setattr(tables, "TEXTS_PER_RANGE", sizes[1])
            patch.setattr(parent_module, "ROWS_PER_TASK", sizes[2])
            patch.setattr(parent_module, "IDS_PER_RANGE", sizes[1])
            patch.setattr(copies_module, "COPIES_AT_ONCE", 2)
            patch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=2))
            appended(sets[-1], source, folder / "again" / f"S{number}")
        expected = tree(folder / f"S{number}")
        again = tree(folder / "again" / f"S{number}")
        manifests = [orjson.loads(files.pop("manifest.json")) for files in (expected, again)]
        for manifest in manifests:
            assert len(manifest.pop("earlier")) == number
        assert (manifests[0], expected) == (manifests[1], again), "the bytes depend on sizes of chunks or of ranges"
        sets.append(plain)
        all_rows += rows
    assert tree(folder / "S0") == before, "a file of the parent has changed"

    last = sets[-1]
    assert isinstance(last.manifest, Manifest4) and isinstance(sets[1].manifest, Manifest4)
    assert [edition.digest for edition in last.manifest.earlier] == [parent.digest, sets[1].digest]
    # Sides: no text on both sides, and by the rule of the manifest.
    sides = texts_of(last)
    assert not sides["train"] & sides["holdout"]
    rule = last.manifest.split
    exceptions = {*rule.also_held_out, *rule.kept_in_train}
    assert rule.cut == parent.manifest.split.cut  # type: ignore[union-attr]
    for side, texts in sides.items():
        for text in texts:
            assert ((text_hash(text) < rule.cut) != (text_hash(text) in exceptions)) == (side == "holdout")
    # The samples of the parent come first, in their order, on their side.
    for earlier, later in ((sets[0], sets[1]), (sets[1], sets[2])):
        for side, skills in by_side(earlier).items():
            for name, own in skills.items():
                assert by_side(later)[side][name][: len(own)] == own
    # Each sample once, or set aside as a copy.
    ids = [sample.id for skills in by_side(last).values() for of_skill in skills.values() for sample in of_skill]
    assert len(ids) == len(set(ids))
    num_copies = len(all_rows) - len({text for _, text in all_rows})
    assert last.manifest.num_copies == num_copies
    assert len(ids) + (num_copies if copies == "drop" else 0) == len(all_rows) == last.manifest.num_rows
    # Keys of tar members are unique in the whole set, and numbers of shards rise.
    keys = [
        str(skill.open_shard(shard).data[:16], "ascii")
        for skills in (last.train, last.holdout)
        for skill in skills.values()
        for shard in range(len(skill.shard_rows))
    ]
    assert len(set(keys)) == len(keys)
    # A skill has a sample in train unless the holdout had all its texts, and a held-out sample if a free text exists.
    if holdout == 0.02:
        for name in {skill for skill, _ in all_rows}:
            texts = {text for skill, text in all_rows if skill == name}
            assert name in last.train or not texts - sides["holdout"] or copies == "drop"


def test_a_mix_of_an_appended_set_draws_old_and_new_samples_and_the_parent_goes_on_unchanged(tmp_path: Path) -> None:
    corpus, tags = tagged(tmp_path / "old", samples(add=120, carry=60))
    parent = write_shards(corpus, tags, tmp_path / "S", holdout=0.1, shard_bytes=SHARD_BYTES, backend=HERE)
    mixer = Mixer(parent, stratified(), ledger=tmp_path / "run", round_draws=64, seed=1, fields=("id",))
    expected = [mixer.batch(first, 64).fields["id"] for first in range(0, 256, 64)]
    new = [
        {**record, "id": f"new-{record['id']}", "text": f"new {record['text']}"}
        for record in samples(add=50, divide=40)
    ]
    last = appended(parent, tagged(tmp_path / "new", new), tmp_path / "T")
    assert last.skills == ("add", "carry", "divide")
    again = Mixer(
        ShardSet.open(tmp_path / "S"), stratified(), ledger=tmp_path / "run", round_draws=64, seed=1, fields=("id",)
    )
    assert [again.batch(first, 64).fields["id"] for first in range(0, 256, 64)] == expected
    mixed = Mixer(last, stratified(), ledger=tmp_path / "other", round_draws=64, seed=1, fields=("id",))
    drawn = {identity for first in range(0, 512, 64) for identity in mixed.batch(first, 64).fields["id"]}
    assert drawn == {sample.id for skill in last.train.values() for sample in skill}
    assert {name.partition("-")[0] for name in drawn} == {"new", "add", "carry"}
    editions = np.array(last.train["add"].editions)
    assert editions.tolist() == sorted(editions.tolist()) and set(editions.tolist()) == {0, 1}


def test_a_text_of_the_parents_holdout_goes_to_the_holdout_and_copies_are_dropped_with_the_row_of_the_parent(
    tmp_path: Path,
) -> None:
    old = records_of([("a", f"text {number}") for number in range(40)], "old")
    parent = write_shards(*tagged(tmp_path / "old", old), tmp_path / "S", holdout=0.3, copies="drop", backend=HERE)
    whole = write_shards(*tagged(tmp_path / "kept", old), tmp_path / "K", holdout=0.3, backend=HERE)
    new = records_of([("b", f"TEXT  {number}") for number in range(40)] + [("b", "another")], "new")
    source = tagged(tmp_path / "new", new)
    last = appended(whole, source, tmp_path / "L")
    assert {sample.text for sample in last.holdout["b"]} >= {
        sample.text.upper().replace(" ", "  ") for sample in whole.holdout["a"]
    }
    dropped = appended(parent, source, tmp_path / "D")
    assert [sample.text for skills in (dropped.train, dropped.holdout) for sample in skills.get("b", [])] == ["another"]
    rejected = [
        orjson.loads(line)
        for path in sorted((tmp_path / "D" / "rejected").iterdir())
        for line in path.read_bytes().splitlines()
    ]
    assert len(rejected) == 40 == dropped.manifest.set_aside["copy"]
    rows = {
        sample.text: f"row {row} of {side}/a/000000.tar"
        for side, skill in (("train", parent.train["a"]), ("holdout", parent.holdout["a"]))
        for row, sample in enumerate(skill)
    }
    for record in rejected:
        text = orjson.loads(record["raw"])["text"].lower().replace("  ", " ")
        assert record["detail"] == f"the text is a copy of that of {rows[text]} in the continued shards"


def test_ids_of_the_parent_are_refused_in_one_sentence_and_equal_hashes_of_other_ids_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = write_shards(*tagged(tmp_path / "old", samples(add=30)), tmp_path / "S", holdout=0.1, backend=HERE)
    again = [{**record, "text": f"new {record['text']}"} for record in samples(add=2)] + records_of(
        [("add", "new")], "n"
    )
    source = tagged(tmp_path / "new", again)
    with pytest.raises(ShardError) as refused:
        append_shards(parent, *source, tmp_path / "T", backend=HERE)
    where = {sample.id: skill.name(0) for skill in (parent.train["add"], parent.holdout["add"]) for sample in skill}
    named = sorted(f"{record['id']!r} (in {where[record['id']]})" for record in again[:2])
    message = str(refused.value)
    assert message.startswith(f"2 ids of the new corpus stand in {tmp_path / 'S'} already: ")
    assert all(name in message for name in named) and message.endswith("and tag them again.")
    # With a hash of two values, many ids share a hash, and only equal ids are refused.
    monkeypatch.setattr("skillshard.shards.sort.id_hashes", lambda ids: (len(sample_id) << 58 for sample_id in ids))
    monkeypatch.setattr("skillshard.shards.faults.id_hash", lambda sample_id: len(sample_id) << 58)
    other = write_shards(*tagged(tmp_path / "few", samples(add=30)), tmp_path / "F", holdout=0.1, backend=HERE)
    fresh = records_of([("add", f"fresh {number}") for number in range(9)], "abc")
    assert {len(record["id"]) for record in fresh} <= {len(sample.id) for sample in other.train["add"]} | {6}
    appended(other, tagged(tmp_path / "fresh", fresh), tmp_path / "G")


def test_the_comparison_of_ids_opens_no_more_files_than_the_merge_levels_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One open of every chunk for each range of ids would grow with the square of the corpus."""
    rows = [("a", f"text {number}") for number in range(160)]
    parent = write_shards(
        *tagged(tmp_path / "old", records_of(rows, "old-")), tmp_path / "S", shard_bytes=SHARD_BYTES, backend=HERE
    )
    corpus, tags = tagged(tmp_path / "new", records_of(rows, "new-"))
    monkeypatch.setattr(sort, "SORT_BYTES", 1 << 11)
    monkeypatch.setattr(parent_module, "ROWS_PER_TASK", 20)
    monkeypatch.setattr(parent_module, "IDS_PER_RANGE", 40)
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=4))
    opened: list[str] = []
    most: dict[str, list[int]] = {"merge_ids": [], "find_equal_ids": []}
    load_array = storage.load_array

    def counted(task: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
        @wraps(task)
        def run(**arguments: Any) -> Any:
            opened.clear()
            record = task(**arguments)
            counts.append(len(opened))
            return record

        return run

    monkeypatch.setattr(storage, "load_array", lambda place: (opened.append(place), load_array(place))[1])
    for name, counts in most.items():
        monkeypatch.setattr(parent_module, name, counted(getattr(parent_module, name), counts))
    appended(parent, (corpus, tags), tmp_path / "T")
    assert len(most["find_equal_ids"]) == 8 and len(most["merge_ids"]) > 8
    assert max(most["find_equal_ids"] + most["merge_ids"]) <= 4


def test_appended_shards_that_were_stopped_at_any_stage_end_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sort, "SORT_BYTES", 1 << 10)
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=4))
    parent = write_shards(
        *tagged(tmp_path / "old", samples(add=60, carry=20)),
        tmp_path / "S",
        holdout=0.1,
        copies="drop",
        shard_bytes=SHARD_BYTES,
        backend=HERE,
    )
    new = [{**record, "id": f"new-{record['id']}"} for record in samples(add=40)]
    new += [
        {**record, "id": f"new-{record['id']}", "text": f"new {record['text']}"}
        for record in samples(add=30, divide=20)
    ]
    for number, record in enumerate(new):
        record["id"] = f"{record['id']}-{number}"
    source = tagged(tmp_path / "new", new)
    appended(parent, source, tmp_path / "T" / "whole")
    expected = tree(tmp_path / "T" / "whole")
    num_tasks = 0

    def stopping(after: int) -> Callable[..., Any]:
        def on_stage(name: str, num: int) -> Any:
            watch = silent(name, num)

            def on_done(task: Any, record: Any) -> None:
                nonlocal num_tasks
                num_tasks += 1
                if num_tasks == after:
                    raise KeyboardInterrupt
                watch(task, record)

            return on_done

        return on_stage

    for after in range(1, 200, 7):
        num_tasks = 0
        try:
            append_shards(
                parent, *source, tmp_path / "T" / "cut", shard_bytes=SHARD_BYTES, backend=HERE, on_stage=stopping(after)
            )
        except KeyboardInterrupt:
            appended(parent, source, tmp_path / "T" / "cut")
            assert tree(tmp_path / "T" / "cut") == expected
            shutil.rmtree(tmp_path / "T" / "cut")
        else:
            assert after > 20, "the command has so few tasks that nothing was stopped"
            break


def test_a_parent_that_is_not_there_or_has_changed_is_named(tmp_path: Path) -> None:
    parent = write_shards(*tagged(tmp_path / "old", samples(add=30)), tmp_path / "S", holdout=0.1, backend=HERE)
    new = [{**record, "id": f"new-{record['id']}"} for record in samples(add=10)]
    appended(parent, tagged(tmp_path / "new", new), tmp_path / "T")
    (tmp_path / "moved").mkdir()
    for name in ("S", "T"):
        shutil.copytree(tmp_path / name, tmp_path / "moved" / name)
    assert ShardSet.open(tmp_path / "moved" / "T").verify() == []
    manifest = tmp_path / "moved" / "S" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    (fault,) = ShardSet.open(tmp_path / "moved" / "T").verify()
    assert "another shard set lies there now" in fault
    shutil.rmtree(tmp_path / "moved" / "S")
    with pytest.raises(ShardError, match="Move or copy both directories together"):
        ShardSet.open(tmp_path / "moved" / "T")


def test_the_command_line_appends_and_refuses_rules_other_than_the_parents(tmp_path: Path) -> None:
    tagged(tmp_path / "old", samples(add=40, carry=20))
    new = [
        {**record, "id": f"new-{record['id']}", "text": f"new {record['text']}"} for record in samples(add=20, other=9)
    ]
    tagged(tmp_path / "new", new)
    old, more = ((tmp_path / name / "corpus", "--tags", tmp_path / name / "tags") for name in ("old", "new"))
    works("shard", *old, "--holdout", 0.2, "--layout", "compact", "--out", tmp_path / "S")
    refused = skillshard(
        "shard", *more, "--append", tmp_path / "S", "--holdout", 0.1, "--copies", "drop", "--out", tmp_path / "A"
    )
    assert refused.code == 2 and "leave out --holdout, --copies" in " ".join(refused.err.replace("│", " ").split())
    assert "nothing is written" in works(
        "shard", *more, "--append", tmp_path / "S", "--dry-run", "--out", tmp_path / "A"
    )
    works("shard", *more, "--append", tmp_path / "S", "--out", tmp_path / "A")
    assert "all as the manifest says" in works("verify", tmp_path / "A")
    facts = orjson.loads(works("inspect", tmp_path / "A", "--json"))
    assert (facts["layout"], [edition["place"] for edition in facts["earlier"]]) == ("compact", ["../S"])
    assert facts["num_rows"] == 89
    listed = works("shard", *more, "--append", tmp_path / "S", "--out", tmp_path / "A", "--stage", "list").split()
    assert listed == list(APPEND_STAGES)


def test_a_chosen_set_and_shards_without_keys_cannot_be_continued(tmp_path: Path) -> None:
    parent = write_shards(*tagged(tmp_path / "old", samples(add=40, carry=20)), tmp_path / "S", backend=HERE)
    source = tagged(tmp_path / "new", [{**record, "id": f"new-{record['id']}"} for record in samples(add=10)])
    with pytest.raises(ShardError, match="append to the whole set"):
        append_shards(parent.choose(["add"]), *source, tmp_path / "A", backend=HERE)
    manifest = orjson.loads((tmp_path / "S" / "manifest.json").read_bytes())
    for skill in manifest["skills"]:
        for side in ("train", "holdout"):
            del skill[side]["keys_digest"]
    (tmp_path / "S" / "manifest.json").write_bytes(orjson.dumps({**manifest, "schema": "skillshard/manifest/2"}))
    with pytest.raises(ShardError, match="has no keys beside its shards"):
        append_shards(ShardSet.open(tmp_path / "S"), *source, tmp_path / "A", backend=HERE)
