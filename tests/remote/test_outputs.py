"""Tags, clusters, shards, token counts and graphs in a store equal those of a local directory byte for byte, for every answer of the store."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from skillshard import artefact, places, storage, taggers, uploads
from skillshard.corpus import Corpus
from skillshard.errors import ShardError, StorageError, TagsError
from skillshard.execution import Backend
from skillshard.export import export_shards
from skillshard.export_files import FORMATS
from skillshard.merge_levels import plan_merges
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import append_shards, write_shards
from skillshard.taggers.losses.saved import open_loss_tagger
from skillshard.taggers.regroup import regroup_tags
from skillshard.tags import Tags
from skillshard.verification import verify
from tests.commands import works
from tests.conftest import HERE, samples, tree, write_corpus
from tests.remote.conftest import BUCKET, Through
from tests.tokenizers_trained import EOS, byte_tokenizer
from tests.unit.test_graph_learning import learn
from tests.unit.test_loss_tagger import small_corpus, small_finder

NUMBERS = itertools.count()


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus.open(write_corpus(tmp_path / "corpus", samples(add=60, carry=40, both=20)))


@pytest.fixture
def store(s3_address: str) -> Callable[[str], str]:
    """Return the place of a name in a part of the bucket that no other test uses."""
    part = f"outputs-{next(NUMBERS)}"
    return lambda name: f"s3://{BUCKET}/{part}/{name}?endpoint_override={s3_address}&scheme=http&region=us-east-1"


def objects(place: str) -> dict[str, bytes]:
    """Return all objects under a place, by the path below the place."""
    return {
        places.relative(file.place, place): storage.read_bytes(file.place)
        for file in storage.list_files(place, hidden=True)
    }


def tag(corpus: Corpus, out: str | Path, field: str = "skill", backend: Backend = HERE) -> Tags:
    return taggers.tag_corpus(corpus, taggers.metadata(field), out, partition_bytes=2000, backend=backend)


def test_tags_in_a_store_are_those_of_a_directory(corpus: Corpus, store: Callable[[str], str], tmp_path: Path) -> None:
    tags, local = tag(corpus, store("T")), tag(corpus, tmp_path / "T")
    assert objects(store("T")) == tree(tmp_path / "T")
    assert tags.digest == local.digest and list(tags.rows(1)) == list(local.rows(1))
    assert verify(store("T"))[0] == [] and artefact.kind(store("T")) == "tags.json"


def test_two_processes_write_the_same_tags(corpus: Corpus, store: Callable[[str], str], tmp_path: Path) -> None:
    tag(corpus, store("T"), backend=Backend(workers=2))
    tag(corpus, tmp_path / "T")
    assert objects(store("T")) == tree(tmp_path / "T")


def test_clusters_and_regrouped_tags_in_a_store_are_those_of_a_directory(
    corpus: Corpus, store: Callable[[str], str], tmp_path: Path
) -> None:
    def made(place: Callable[[str], str]) -> None:
        tagger = taggers.embedding(taggers.lexical(), skills=2)
        tags = taggers.tag_corpus(corpus, tagger, place("E"), partition_bytes=2000, backend=HERE)
        regroup_tags([tags.folder], place("R"), mapping={"*": "all"}, backend=HERE)

    made(store)
    made(lambda name: str(tmp_path / name))
    for name in ("E", "R"):
        assert objects(store(name)) == tree(tmp_path / name)
    assert verify(store("E"))[0] == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_in_a_store_is_that_of_a_directory(
    format: str, shards: ShardSet, store: Callable[[str], str], tmp_path: Path
) -> None:
    for out in (store("E"), tmp_path / "E"):
        export_shards(shards, out, format=format, file_bytes=300_000, workers=1)
    assert objects(store("E")) == tree(tmp_path / "E")
    assert export_shards(shards, store("E"), format=format, file_bytes=300_000).num_rows == shards.manifest.num_train


def test_an_export_of_token_ids_in_a_store_is_that_of_a_directory(
    shards: ShardSet, store: Callable[[str], str], tmp_path: Path
) -> None:
    tokens = write_tokens(shards, byte_tokenizer(["add carry"]), tmp_path / "T", backend=HERE)
    for out in (store("E"), tmp_path / "E"):
        export_shards(shards, out, format="megatron", tokens=tokens, separator=EOS, file_bytes=20_000, workers=1)
    assert objects(store("E")) == tree(tmp_path / "E") and any(name.endswith(".idx") for name in objects(store("E")))
    again = export_shards(shards, store("E"), format="megatron", tokens=tokens, separator=EOS, file_bytes=20_000)
    assert again.num_rows == shards.manifest.num_train and verify(store("E"))[0] == []


@pytest.mark.parametrize("copies", ["keep", "drop"])
def test_shards_in_a_store_with_merges_in_the_store_are_those_of_a_directory(
    copies: Any, corpus: Corpus, store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = tag(corpus, tmp_path / "T")
    local = write_shards(corpus, tags, tmp_path / "S", shard_bytes=50_000, holdout=0.1, copies=copies, backend=HERE)
    monkeypatch.setattr("skillshard.stages.plan_merges", partial(plan_merges, max_fan_in=2))
    place = store(f"S-{copies}")
    shards = write_shards(corpus, tags, place, shard_bytes=50_000, holdout=0.1, copies=copies, backend=HERE)
    assert shards.digest == local.digest and shards.verify() == []
    assert objects(place) == tree(tmp_path / "S")


@pytest.mark.parametrize("copies", ["keep", "drop"])
def test_appended_shards_in_a_store_are_those_of_a_directory_and_name_their_parent_by_a_relative_place(
    copies: Any, corpus: Corpus, store: Callable[[str], str], tmp_path: Path
) -> None:
    new = [{**record, "id": f"new-{record['id']}"} for record in samples(add=30)]
    new += [
        {**record, "id": f"more-{record['id']}", "text": f"new {record['text']}"}
        for record in samples(add=20, other=10)
    ]
    appended = Corpus.open(write_corpus(tmp_path / "new", new))
    tags, new_tags = tag(corpus, tmp_path / "T"), tag(appended, tmp_path / "N")
    for place in (lambda name: str(tmp_path / name), store):
        parent = write_shards(corpus, tags, place("S"), shard_bytes=50_000, holdout=0.1, copies=copies, backend=HERE)
        append_shards(parent, appended, new_tags, place("A"), shard_bytes=50_000, backend=HERE)
    assert objects(store("A")) == tree(tmp_path / "A")
    last = ShardSet.open(store("A"), cache=tmp_path / "cache")
    assert last.verify() == [] and last.skills == ("add", "both", "carry", "other")
    assert last.manifest.earlier[0].place == "../S"  # type: ignore[union-attr]
    local = ShardSet.open(tmp_path / "A")
    assert [list(skill) for skill in last.train.values()] == [list(skill) for skill in local.train.values()]
    with pytest.raises(ShardError, match="lies on this machine"):
        append_shards(local, appended, new_tags, store("B"), backend=HERE)


@pytest.mark.parametrize("stopped_at", range(1, 12))
def test_work_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    stopped_at: int, corpus: Corpus, store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    put, num_puts = uploads.put, itertools.count(1)

    def put_until_killed(place: str, source: Any) -> None:
        if next(num_puts) == stopped_at:
            raise Killed
        put(place, source)

    monkeypatch.setattr(uploads, "put", put_until_killed)
    # A killed process does not take its claim back.
    monkeypatch.setattr(artefact, "_take_claim_back", lambda work, is_refused=False: None)
    with pytest.raises(Killed):
        tag(corpus, store("T"))
    monkeypatch.undo()
    tag(corpus, store("T"))
    tag(corpus, tmp_path / "T")
    assert objects(store("T")) == tree(tmp_path / "T")


def faulty(through: Through, faults: dict[str, Any]) -> tuple[Any, Callable[[str], str]]:
    between, _ = through("s3")
    part = f"outputs-{next(NUMBERS)}"
    query = f"endpoint_override={between.address}&scheme=http&region=us-east-1"
    between.write_faults = lambda path, nth: faults["write"](path, nth)
    between.faults = lambda path, nth: faults["read"](path, nth)
    return between, lambda name: f"s3://{BUCKET}/{part}/{name}?{query}"


def never(path: str, nth: int) -> None:
    return None


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Repeat a failed request at once, in clients that no other test uses."""
    from datetime import timedelta

    pause = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2), "base": 2}
    monkeypatch.setattr(uploads, "RETRY", {**uploads.RETRY, "backoff": pause})
    uploads._store.cache_clear()
    yield
    uploads._store.cache_clear()


@pytest.mark.parametrize(
    "write",
    [
        lambda path, nth: "500" if nth == 0 else None,
        lambda path, nth: "503" if nth < 3 else None,
        lambda path, nth: "lost" if nth == 0 else None,
        lambda path, nth: 0.05 if nth == 0 else None,
    ],
    ids=["500", "throttled", "answer lost", "slow"],
)
def test_a_store_that_fails_for_a_while_gets_the_same_bytes(
    write: Any, corpus: Corpus, through: Through, tmp_path: Path
) -> None:
    between, place = faulty(through, {"write": write, "read": never})
    tag(corpus, place("T"))
    tag(corpus, tmp_path / "T")
    assert objects(place("T")) == tree(tmp_path / "T")
    assert max(between.sent.values()) > 1 or write("", 0) == 0.05


def test_a_store_that_refuses_every_object_is_one_sentence(corpus: Corpus, through: Through) -> None:
    _, place = faulty(through, {"write": lambda path, nth: "403", "read": never})
    with pytest.raises(StorageError, match=r"^s3://bucket/\S+ cannot be written: .*403.*run the same command again\.$"):
        tag(corpus, place("T"))


def test_a_bucket_that_does_not_exist_is_one_sentence(corpus: Corpus, s3_address: str) -> None:
    place = f"s3://no-bucket-here/T?endpoint_override={s3_address}&scheme=http&region=us-east-1"
    with pytest.raises(StorageError, match=r"no-bucket-here/T\S* .*bucket"):
        tag(corpus, place)


def test_a_first_command_that_failed_does_not_block_the_corrected_one(
    corpus: Corpus, store: Callable[[str], str]
) -> None:
    with pytest.raises((TagsError, ValueError), match="absent"):
        tag(corpus, store("T"), field="absent")
    assert objects(store("T")) == {}
    assert tag(corpus, store("T")).manifest.num_tagged == 120


def test_a_place_that_another_command_has_claimed_is_refused(corpus: Corpus, store: Callable[[str], str]) -> None:
    claimed = artefact.begin(store("T"), "tags.json", {"command": "other"}, {})
    assert claimed is not None
    with pytest.raises(StorageError, match=r"was begun with other inputs or arguments \(.*command: 'other' -> 'tag'"):
        tag(corpus, store("T"))


def test_of_several_commands_that_begin_together_one_claims_the_place(store: Callable[[str], str]) -> None:
    works = [artefact.begin(store("T"), "tags.json", {"command": "tag"}, {}) for _ in range(3)]
    assert [work.is_claimant for work in works if work is not None] == [True, False, False]


def test_a_place_with_foreign_objects_is_refused(corpus: Corpus, store: Callable[[str], str]) -> None:
    storage.write_bytes(store("T/photo.jpg"), b"1")
    with pytest.raises(StorageError, match=r"is not empty \(photo.jpg\)"):
        tag(corpus, store("T"))
    assert objects(store("T")) == {"photo.jpg": b"1"}


def test_an_output_inside_its_input_is_refused(store: Callable[[str], str]) -> None:
    for out, source in (
        (store("C/T"), store("C")),
        (store("C"), store("C/a/*.jsonl")),
        (store("C/T"), store("C/*.jsonl")),
    ):
        with pytest.raises(StorageError, match="lie in each other"):
            artefact.refuse_nested(out, [source])
    artefact.refuse_nested(store("C-tags"), [store("C"), "/tmp/C"])


def test_a_place_that_cannot_be_written_is_refused_with_the_places_that_can(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"https://host/T can be read, not written"):
        storage.write_bytes("https://host/T", b"")


def test_an_object_is_put_if_its_name_is_free_and_a_deleted_name_is_free_again(store: Callable[[str], str]) -> None:
    place = store("x/record.json")
    assert [storage.put_if_absent(place, data) for data in (b"1", b"2")] == [True, False]
    assert storage.read_bytes(place) == b"1"
    storage.remove(place)
    storage.remove(place)
    assert storage.put_if_absent(place, b"3") and storage.read_bytes(place) == b"3"


def test_no_upload_in_parts_is_ever_begun(s3_address: str, store: Callable[[str], str], tmp_path: Path) -> None:
    import boto3

    big = tmp_path / "big"
    big.write_bytes(bytes(12 << 20))
    with storage.writing(store("big")) as part:
        part.write_bytes(big.read_bytes())
    client = boto3.client("s3", endpoint_url=f"http://{s3_address}", region_name="us-east-1")
    listed = client.list_multipart_uploads(Bucket=BUCKET)
    client.close()
    # The etag of an object that was sent in parts ends in the number of parts.
    assert "Uploads" not in listed and "-" not in _etag(store("big"))


def _etag(place: str) -> str:
    import obstore

    store, path = uploads._store_of(place)
    return str(obstore.head(store, path)["e_tag"])


def test_too_large_an_object_is_refused_before_it_is_sent(
    store: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_OBJECT_BYTES", 10)
    with pytest.raises(StorageError, match=r"would have 11 bytes, and a store takes 10 bytes in one request"):
        storage.write_bytes(store("big"), b"01234567890")
    assert storage.info(store("big")).type == pafs.FileType.NotFound


def test_the_commands_take_addresses_of_a_store(store: Callable[[str], str], tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path / "corpus", samples(add=30, carry=20)))
    (tmp_path / "names.json").write_text('{"add": "sum"}')

    def commands(place: Callable[[str], str]) -> None:
        works("tag", "metadata", corpus, "--field", "meta.skill", "--out", place("T"))
        works("regroup", place("T"), "--map", str(tmp_path / "names.json"), "--out", place("R"))
        works("shard", corpus, "--tags", place("R"), "--holdout", "0.1", "--out", place("S"))
        works("tag", "embedding", corpus, "--skills", "2", "--out", place("E"))
        works("tag", "reuse", corpus, "--clusters", place("E"), "--out", place("U"))
        for name in "TRSEU":
            works("inspect", place(name))
            works("verify", place(name))

    commands(store)
    commands(lambda name: str(tmp_path / name))
    for name in "TRSEU":
        assert objects(store(name)) == tree(tmp_path / name), name


def test_clusters_by_loss_and_their_checkpoints_in_a_store_are_those_of_a_directory(
    store: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    corpus, finder = Corpus.open(small_corpus(tmp_path / "lego")), small_finder()
    taggers.tag_corpus(corpus, finder, tmp_path / "L", backend=HERE)
    put = uploads.put

    def put_until_the_second_checkpoint(place: str, source: Any) -> None:
        put(place, source)
        if "unfinished" in place:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(uploads, "put", put_until_the_second_checkpoint)
        with pytest.raises(Killed):
            taggers.tag_corpus(corpus, finder, store("L"), backend=HERE)
    tags = taggers.tag_corpus(corpus, finder, store("L"), backend=HERE)
    assert objects(store("L")) == tree(tmp_path / "L")
    assert verify(store("L"))[0] == []
    again = taggers.tag_corpus(corpus, open_loss_tagger(tags.folder), tmp_path / "again", backend=HERE)
    assert list(again.rows(0)) == list(tags.rows(0))


def test_a_graph_and_its_trials_in_a_store_are_those_of_a_directory(
    shards: ShardSet, store: Callable[[str], str], tmp_path: Path
) -> None:
    for place in (lambda name: str(tmp_path / name), store):
        learn(shards, place("graph.json"))  # type: ignore[arg-type]
    written = objects(store(""))
    assert {name for name in written if "/warm-" in name} and {name for name in written if "/records/" in name}
    assert written["graph.json"] == (tmp_path / "graph.json").read_bytes()
    assert {name for name in written if name.startswith("graph.runs/")} == {
        f"graph.runs/{name}" for name in tree(tmp_path / "graph.runs")
    }
