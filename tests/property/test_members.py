"""Members beside texts, such as images, go from the corpus to the batch byte for byte, whatever the sizes of chunks, batches and workers."""

import io
import itertools
import re
import shutil
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from skillshard import stages, storage, taggers
from skillshard.corpus import Corpus, FieldMapping
from skillshard.corpus import members as corpus_members
from skillshard.corpus.members import Members, parse_members
from skillshard.errors import CorpusError, FieldError, PolicyError, ShardError, StorageError, TagsError
from skillshard.grain import MixedSource
from skillshard.merge_levels import plan_merges
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards import merge, sort
from skillshard.shards.members import parts_of, payload_of
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import append_shards, write_shards
from skillshard.torch import Items, MixedDataset, collate
from skillshard.webdataset import MixedSamples
from tests.conftest import HERE, tree
from tests.pictures import KEPT, Tagged, expected_members, members_of, tagged, written
from tests.remote.server import served
from tests.tokenizers_trained import byte_tokenizer

Images = dict[str, dict[str, bytes]]
BATCH = 8


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "sync", lambda path: None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Tagged:
    """Tag 180 samples of 2 skills in 3 tars."""
    return tagged(tmp_path_factory.mktemp("pictures"), range(180))


@pytest.fixture(scope="module")
def shards(pictures: Tagged, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return written(pictures, tmp_path_factory.mktemp("kept") / "shards")


def kept_members(shards: ShardSet) -> Images:
    return {
        sample.id: dict(sample.members)
        for part in (*shards.train.values(), *shards.holdout.values())
        for sample in part.with_members()
    }


def test_every_sample_keeps_its_members_byte_for_byte(shards: ShardSet) -> None:
    assert shards.members == ("jpg", "wav") and shards.verify() == []
    assert sum(len(part.shard_rows) for part in shards.train.values()) > 2
    assert kept_members(shards) == {f"{number:04d}": expected_members(f"{number:04d}") for number in range(180)}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files to the garbage collector
def test_webdataset_reads_members_under_their_suffixes(shards: ShardSet) -> None:
    part = shards.train["cat"]
    read = list(webdataset.WebDataset(part.place(0), shardshuffle=False, nodesplitter=None, workersplitter=None))
    assert len(read) == part.shard_rows[0]
    for sample in read:
        members = {name: content for name, content in sample.items() if name in ("jpg", "wav")}
        assert members == expected_members(orjson.loads(sample["json"])["id"])


def test_the_index_and_the_texts_do_not_depend_on_members(shards: ShardSet, pictures: Tagged, tmp_path: Path) -> None:
    bare = written(pictures, tmp_path / "bare", ())
    assert bare.members == () and bare.manifest.made_from["arguments"].keys() == {"shard_bytes", "holdout", "copies"}
    assert [sample for part in bare.train.values() for sample in part] == [
        sample for part in shards.train.values() for sample in part
    ]
    assert not any(sample.members for part in shards.train.values() for sample in part)
    assert set(kept_members(bare)) == set(kept_members(shards)) and not any(kept_members(bare).values())


def test_chunks_batches_and_merge_levels_of_any_size_give_the_same_bytes(
    pictures: Tagged, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sort, "SORT_BYTES", 1 << 13)
    monkeypatch.setattr(merge, "BATCH_BYTES", 1 << 13)
    monkeypatch.setattr(stages, "plan_merges", partial(plan_merges, max_fan_in=2))
    assert tree(written(pictures, tmp_path / "shards").root) == tree(shards.root)


def test_a_killed_command_goes_on_to_the_same_bytes(
    pictures: Tagged, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("skillshard.shards.write.write_group", interrupted)
        with pytest.raises(KeyboardInterrupt):
            written(pictures, tmp_path / "shards")
    assert tree(written(pictures, tmp_path / "shards").root) == tree(shards.root)


def test_appended_shards_keep_the_members_of_their_parent(shards: ShardSet, tmp_path: Path) -> None:
    more = append_shards(shards, *tagged(tmp_path / "more", range(180, 240)), tmp_path / "both", backend=HERE)
    assert more.members == shards.members and more.verify() == []
    assert kept_members(more) == {f"{number:04d}": expected_members(f"{number:04d}") for number in range(240)}


def test_a_newer_file_is_refused_because_tags_know_no_members(pictures: Tagged, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    own = tagged(folder, range(30))
    written(own, tmp_path / "shards")
    path = folder / "corpus" / "0.tar"
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8", b"\xff\xd9"))
    with pytest.raises(StorageError, match=r"/0\.tar changed after .* was made from it"):
        written((Corpus.open(folder / "corpus"), own[1]), tmp_path / "shards")


SUFFIXES = ("a", "b.c", "d")
MEMBERS = st.dictionaries(st.sampled_from(SUFFIXES), st.binary(max_size=9)).map(
    lambda members: (*sorted(members.items()),)
)


@given(json=st.binary(max_size=20), members=MEMBERS)
def test_a_payload_gives_back_its_json_and_its_members(json: bytes, members: Members) -> None:
    back, parts = parts_of(memoryview(payload_of(json, members, SUFFIXES)), SUFFIXES)
    assert bytes(back) == json and [(suffix, bytes(content)) for suffix, content in parts] == list(members)
    assert payload_of(json, (), ()) == json


def test_images_without_captions_are_set_aside_or_take_a_field_as_their_text(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with tarfile.open(tmp_path / "corpus" / "a.tar", "w") as tar:
        for number in range(40):
            label = orjson.dumps({"kind": "cat", "label": f"label {number % 20}"})
            for suffix, content in (("jpg", bytes([number])), ("json", label)):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    bare = Corpus.open(tmp_path / "corpus")
    tagger = taggers.metadata("kind")
    with pytest.raises(TagsError, match=r"40 rows were set aside \(missing-field 40\)"):
        taggers.tag_corpus(bare, tagger, tmp_path / "aside", on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE)
    labelled = Corpus.open(tmp_path / "corpus", fields=FieldMapping(text_field="label"))
    shards = written(
        (labelled, taggers.tag_corpus(labelled, tagger, tmp_path / "tags", backend=HERE)), tmp_path / "S", ("jpg",)
    )
    assert kept_members(shards) == {f"{number:04d}": {"jpg": bytes([number])} for number in range(40)}
    # Images of one label stand on one side, because the text decides.
    sides = [{sample.text for part in split.values() for sample in part} for split in (shards.train, shards.holdout)]
    assert not sides[0] & sides[1] and all(sides)


# ----------------------------------------------------------------------------------------------------------------- streams


@pytest.fixture
def stream(shards: ShardSet, tmp_path: Path) -> Mixer:
    return mixer(shards, tmp_path / "run")


def mixer(shards: ShardSet, ledger: Path, **arguments: Any) -> Mixer:
    arguments = {"members": ("wav", "jpg"), "field_defaults": {"jpg": None}} | arguments
    return Mixer(shards, stratified(), ledger=ledger, round_draws=20, step_draws=BATCH, **arguments)


def expected_columns(ids: Sequence[str]) -> dict[str, list[Any]]:
    members = [expected_members(identity) for identity in ids]
    return {"wav": [each["wav"] for each in members], "jpg": [each.get("jpg") for each in members]}


def test_a_batch_has_the_members_of_its_samples_beside_their_fields(
    stream: Mixer, shards: ShardSet, tmp_path: Path
) -> None:
    for first, batch in zip(range(0, 60, BATCH), stream.batches(BATCH), strict=False):
        assert batch.fields == expected_columns(stream.ids(first, BATCH))
        assert list(batch.columns()) == ["draw", "skill", "text", "wav", "jpg"]
    draws = np.array([3, 47, 21, 20])
    ids = stream.ids(0, 60)
    assert stream.at(draws).fields == expected_columns([ids[draw] for draw in draws])
    both = mixer(shards, tmp_path / "both", fields=("id", "meta.kind")).batch(0, BATCH)
    assert both.fields == {"id": ids[:BATCH], "meta.kind": both.skill, **expected_columns(ids[:BATCH])}


def test_samples_one_by_one_have_the_members_too(stream: Mixer) -> None:
    columns = expected_columns(stream.ids(0, 50))
    first = list(itertools.islice(stream, 50))
    assert [mixed.draw for mixed in first] == list(range(50))
    for mixed in first:
        assert mixed.fields == {name: columns[name][mixed.draw] for name in ("wav", "jpg")}


def test_remote_shards_give_the_members_of_local_shards_with_and_without_a_cache(
    stream: Mixer, shards: ShardSet, tmp_path: Path
) -> None:
    near = stream.batch(0, 40)
    with served(shards.root) as address:
        for cache in (None, tmp_path / "cache"):
            remote = ShardSet.open(f"http://{address}", cache=cache)
            far = mixer(remote, tmp_path / str(cache is None)).batch(0, 40)
            assert remote.members == shards.members and far.fields == near.fields and any(near.fields["jpg"])


def own_collate(items: Items) -> list[dict[str, Any]]:
    return [dict(item) for item in items]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_members_with_any_number_of_workers(stream: Mixer, workers: int) -> None:
    columns = expected_columns(stream.ids(0, 4 * BATCH))
    batches = DataLoader(MixedDataset(stream), batch_size=BATCH, num_workers=workers, collate_fn=collate)
    first = list(itertools.islice(batches, 4))
    assert len(first) == 4
    for number, batch in enumerate(first):
        rows = slice(number * BATCH, (number + 1) * BATCH)
        assert {name: batch[name] for name in columns} == {name: values[rows] for name, values in columns.items()}
        assert list(batch) == ["draw", "skill", "text", "wav", "jpg"] and len(batch) == 5


def test_a_collate_function_of_the_user_gets_the_members(stream: Mixer) -> None:
    columns = expected_columns(stream.ids(0, BATCH))
    items = next(iter(DataLoader(MixedDataset(stream), batch_size=BATCH, collate_fn=own_collate)))
    assert [(item["wav"], item["jpg"]) for item in items] == list(zip(columns["wav"], columns["jpg"], strict=True))


def test_a_pipeline_of_webdataset_has_the_members_under_their_suffixes(stream: Mixer) -> None:
    columns = expected_columns(stream.ids(0, 20))
    first = list(itertools.islice(MixedSamples(stream, batch_size=BATCH), 20))
    assert [sample["draw"] for sample in first] == list(range(20))
    for sample in first:
        assert (sample["wav"], sample["jpg"]) == (columns["wav"][sample["draw"]], columns["jpg"][sample["draw"]])


def test_grain_gets_the_members(stream: Mixer) -> None:
    columns = expected_columns(stream.ids(0, 20))
    record = MixedSource(stream, num_draws=40)[7]
    assert (record["wav"], record["jpg"]) == (columns["wav"][7], columns["jpg"][7])


def test_rows_of_datasets_have_a_column_for_each_member(shards: ShardSet) -> None:
    rows = list(shards.to_datasets("holdout"))
    assert {row["id"] for row in rows} == {sample.id for part in shards.holdout.values() for sample in part}
    for row in rows:
        assert {"jpg": row["jpg"], "wav": row["wav"]} == {"jpg": None} | expected_members(row["id"])


# ------------------------------------------------------------------------------------------------------------------ tables


def write_table(folder: Path, *, path_only: bool = False) -> Corpus:
    folder.mkdir()
    rows = [
        {
            "id": f"{number:04d}",
            "text": f"caption {number}",
            "kind": ("cat", "dog")[number % 2],
            "image": {
                "bytes": None if path_only else members_of(number).get("jpg"),
                "path": "x.jpg" if path_only else None,
            },
            "sound": members_of(number)["left.wav"],
        }
        for number in range(40)
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "a.parquet", row_group_size=15)
    with pa.ipc.new_stream(folder / "b.arrow", table.schema) as writer:
        writer.write_table(
            pa.Table.from_pylist([{**row, "id": f"{1000 + int(row['id'])}"} for row in rows], table.schema)
        )
    return Corpus.open(folder)


def test_columns_of_bytes_and_images_of_datasets_are_members(tmp_path: Path) -> None:
    corpus = write_table(tmp_path / "corpus")
    tags = taggers.tag_corpus(corpus, taggers.metadata("kind"), tmp_path / "tags", backend=HERE)
    shards = written((corpus, tags), tmp_path / "shards", ("jpg=image", "wav=sound"))
    expected = {
        f"{1000 * copy + number:04d}": expected_members(f"{number:04d}") for copy in (0, 1) for number in range(40)
    }
    assert kept_members(shards) == expected


def test_an_image_beside_its_table_is_refused_at_once(tmp_path: Path) -> None:
    corpus = write_table(tmp_path / "corpus", path_only=True)
    tags = taggers.tag_corpus(corpus, taggers.metadata("kind"), tmp_path / "tags", backend=HERE)
    with pytest.raises(
        CorpusError, match=r"a\.parquet row 1: the member 'image' names the file 'x\.jpg' and has no bytes"
    ):
        written((corpus, tags), tmp_path / "shards", ("image",))
    with pytest.raises(CorpusError, match="column 'kind' of type string is no member"):
        written((corpus, tags), tmp_path / "others", ("jpg=kind",))


# --------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"members": ("jpg",), "layout": "compact"}, "a compact shard has no place for members beside the texts"),
        ({"members": ("jpg",), "copies": "drop"}, "two images may have the same caption"),
        ({"members": "jpg"}, "members is the text 'jpg': give a list of suffixes, such as ['jpg']"),
        ({"members": ("JPG",)}, "member 'JPG': give the suffix of the members in lower case"),
        ({"members": (".jpg",)}, "member '.jpg': give the suffix"),
        ({"members": ("jpg=",)}, "member 'jpg=': give the suffix"),
        ({"members": ("txt",)}, "the name 'txt' is taken"),
        ({"members": ("a.json",)}, "the name 'a.json' is taken"),
        ({"members": ("jpg", "jpg=image")}, "member 'jpg' is given twice"),
        ({"members": ("jpeg",)}, "no sample of the corpus has a member 'jpeg' (did you mean 'jpg'?); the members beside texts are cls, jpg, left.wav"),
    ],
)  # fmt: skip
def test_wrong_members_are_refused_in_a_sentence(
    arguments: dict[str, Any], sentence: str, pictures: Tagged, tmp_path: Path
) -> None:
    with pytest.raises((ShardError, CorpusError), match=re.escape(sentence)):
        write_shards(*pictures, tmp_path / "shards", backend=HERE, **arguments)


def test_a_member_that_is_too_large_or_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tagged(tmp_path, range(6))
    for module in ("skillshard.corpus.tars", "skillshard.corpus.members"):
        monkeypatch.setattr(f"{module}.MAX_MEMBER_BYTES", 400)
    with pytest.raises(CorpusError, match=r"has 602 bytes of members, and at most 400 are kept for each sample"):
        written(own, tmp_path / "shards")
    assert corpus_members.MAX_MEMBER_BYTES == 400
    with tarfile.open(tmp_path / "corpus" / "0.tar", "a") as tar:
        for suffix, content in (("txt", b"one more"), ("json", b'{"kind":"cat"}')):
            member = tarfile.TarInfo(f"9999.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("9999.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "other.cls"
        tar.addfile(link)
    corpus = Corpus.open(tmp_path / "corpus")
    tags = taggers.tag_corpus(corpus, taggers.metadata("kind"), tmp_path / "new tags", backend=HERE)
    with pytest.raises(
        CorpusError, match=r"0\.tar: member 9999\.cls is a link to other\.cls, and links are not followed"
    ):
        written((corpus, tags), tmp_path / "others", ("cls",))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"field_defaults": None}, "has no member 'jpg'; its members are wav. Name another member, or give a value for such samples: "
         "Mixer(..., field_defaults={'jpg': None})."),
        ({"members": "jpg", "field_defaults": None}, "members is 'jpg': give a tuple of suffixes, such as ('jpg',)."),
        ({"members": ("jpgg",), "field_defaults": None}, "members has 'jpgg' (did you mean 'jpg'?), and the members of"),
        ({"members": ("wav", "wav"), "field_defaults": None}, "members has 'wav' twice"),
        ({"fields": ("jpg",)}, "members and fields both have 'jpg': give 'meta.jpg' for the field of the metadata."),
        ({"field_defaults": {"png": None}}, "field_defaults has 'png', which is not in fields"),
    ],
)  # fmt: skip
def test_wrong_members_of_a_mixer_are_refused_in_a_sentence(
    arguments: dict[str, Any], sentence: str, shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(FieldError, match=re.escape(sentence)):
        mixer(shards, tmp_path, **arguments).batch(0, 60)


def test_a_mixer_of_texts_alone_says_how_to_keep_members(pictures: Tagged, tmp_path: Path) -> None:
    bare = written(pictures, tmp_path / "bare", ())
    with pytest.raises(FieldError, match="are: none\\. 'skillshard shard --members' keeps members of the corpus"):
        mixer(bare, tmp_path / "run")
    shutil.rmtree(tmp_path / "bare")


def test_sources_are_read_from_the_record_of_the_shards(shards: ShardSet) -> None:
    assert shards.manifest.made_from["arguments"]["members"] == ["jpg", "wav=left.wav"]
    assert shards.kept_members == parse_members(KEPT) == {"jpg": "jpg", "wav": "left.wav"}


def test_blocks_of_tokens_refuse_members(shards: ShardSet, tmp_path: Path) -> None:
    tokens = write_tokens(shards, byte_tokenizer(["caption"]), tmp_path / "tokens", backend=HERE)
    with pytest.raises(
        PolicyError, match="a block of tokens has no members of samples, and the mixer has wav, jpg: omit members"
    ):
        PackedTokens(mixer(shards, tmp_path / "run"), tokens, block_tokens=8, separator=None)
    with pytest.raises(PolicyError, match="a block holds many samples"):
        mixer(shards, tmp_path / "blocks", unit="blocks", tokens=tokens, block_tokens=8)
