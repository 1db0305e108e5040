"""The manifest of a shard set is not trusted. Opening refuses an impossible manifest in one sentence."""

import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.corpus import Corpus
from skillshard.errors import ShardError, SkillshardError
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards import manifest as manifest_module
from skillshard.shards import write
from skillshard.shards.manifest import Manifest, Manifest1, Manifest2
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from skillshard.tags import Tags
from tests.commands import fails, works
from tests.conftest import HERE, samples, tag_and_shard, write_corpus
from tests.tokenizers_trained import byte_tokenizer

Edit = Callable[[dict[str, Any]], object]


def columns(manifest: dict[str, Any], skill: int = 0) -> dict[str, Any]:
    part: dict[str, Any] = manifest["skills"][skill]["train"]
    return part


def set_first(name: str, value: Any) -> Edit:
    return lambda manifest: columns(manifest)[name].__setitem__(0, value)


def set_all(**values: Any) -> Edit:
    return lambda manifest: manifest.update(values)


def huge(manifest: dict[str, Any]) -> None:
    """Claim two shards of 10**15 samples with consistent sums, for which a mixer would need terabytes of memory."""
    train = columns(manifest)
    more = 2 * 10**15 - sum(train["num_samples"])
    for name, value in (("num_samples", 10**15), ("num_bytes", 10**19)):
        train[name] = [value] * 2
    for name in ("number", "digest", "index_digest", "keys_digest"):
        train[name] = train[name][:2]
    manifest["num_train"] += more
    manifest["num_rows"] += more


def folder_twice(manifest: dict[str, Any]) -> None:
    manifest["skills"][1]["folder"] = manifest["skills"][0]["folder"]


EDITS: dict[str, tuple[Edit, str]] = {
    "10**15 samples": (huge, r"skills\.0\.train\.num_samples\.0: Input should be less than or equal to 100000000"),
    "2**63 samples": (set_first("num_samples", 2**63), r"num_samples\.0: Input should be less than or equal to"),
    "10**30 samples": (set_first("num_samples", 10**30), r"num_samples\.0: Input should be a valid integer"),
    "negative samples": (set_first("num_samples", -5), r"num_samples\.0: Input should be greater than or equal to 1"),
    "no sample in a shard": (
        set_first("num_samples", 0),
        r"num_samples\.0: Input should be greater than or equal to 1",
    ),
    "half a sample": (set_first("num_samples", 2.5), r"num_samples\.0: Input should be a valid integer"),
    "a number in quotes": (set_first("num_samples", "7"), r"num_samples\.0: Input should be a valid integer"),
    "true for a number": (set_first("num_samples", True), r"num_samples\.0: Input should be a valid integer"),
    "a size that is too small": (set_first("num_bytes", 1024), r"shard 0 of 1,024 bytes cannot hold [\d,]+ samples"),
    "a size that no file has": (
        set_first("num_bytes", 1 << 62),
        r"num_bytes\.0: Input should be less than or equal to",
    ),
    "a negative number of a shard": (set_first("number", -1), r"number\.0: Input should be greater than or equal to 0"),
    "numbers that do not rise": (set_first("number", 7), "the numbers of the shards do not rise"),
    "a digest that is a path": (set_first("digest", "../../etc/passwd"), r"digest\.0: String should match pattern"),
    "columns of other lengths": (
        lambda manifest: columns(manifest)["number"].pop(),
        "columns of shards differ in length",
    ),
    "a skill that stands twice": (
        lambda manifest: manifest["skills"].insert(1, manifest["skills"][0]),
        "skill 'add' stands twice",
    ),
    "skills in another order": (lambda manifest: manifest["skills"].reverse(), "skill 'carry' stands after 'negate'"),
    "a folder of two skills": (folder_twice, "folder 'add' belongs to two skills"),
    "a skill without a name": (
        lambda manifest: manifest["skills"][0].update(name=""),
        r"skills\.0\.name: String should have at least 1 character",
    ),
    "a wrong num_train": (set_all(num_train=3), r"num_train is 3, but its parts make \d+"),
    "a wrong num_holdout": (set_all(num_holdout=3), r"num_holdout is 3, but its parts make \d+"),
    "a wrong num_rows": (set_all(num_rows=3), r"num_rows is 3, but its parts make \d+"),
    "a negative num_rows": (set_all(num_rows=-1), "num_rows: Input should be greater than or equal to 0"),
    "negative rows set aside": (
        set_all(set_aside={"copy": -1}),
        r"set_aside\.copy: Input should be greater than or equal",
    ),
    "no skills": (set_all(skills=[]), r"num_train is \d+, but its parts make 0"),
    "another type": (set_all(skills={}), "skills: Input should be a valid list"),
    "an unknown version": (set_all(schema="skillshard/manifest/9"), "schema: Input should be 'skillshard/manifest/3'"),
    "a cut that is no hash": (lambda manifest: manifest["split"].update(cut="0.1"), r"split\.cut: String should match"),
    "an exception on the wrong side": (
        lambda manifest: manifest["split"].update(also_held_out=["0" * 32]),
        "also_held_out holds a hash below the cut",
    ),
    "an exception twice": (
        lambda manifest: manifest["split"].update(also_held_out=["f" * 32] * 2),
        "the hashes of also_held_out are not sorted, or a hash is listed twice",
    ),
    "no split": (lambda manifest: manifest.pop("split"), "split: Field required"),
}


@pytest.fixture
def copied(shards: ShardSet, tmp_path: Path) -> Path:
    shutil.copytree(shards.root, tmp_path / "shards")
    return tmp_path / "shards"


def edit(root: Path, change: Edit) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    change(manifest)
    (root / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_cannot_be_true_is_refused_in_one_sentence(copied: Path, name: str) -> None:
    change, sentence = EDITS[name]
    edit(copied, change)
    with pytest.raises(
        ShardError, match=rf"manifest\.json does not fit schemas/manifest-3\.json: .*{sentence}"
    ) as caught:
        ShardSet.open(copied)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    for verb in ("inspect", "verify"):
        assert fails(verb, copied) == str(caught.value)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the path to every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, part in inside for inner in paths_of(part, (*path, key)))]


HOSTILE = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**62,
        2**63,
        2**64,
        10**15,
        10**30,
        1.5,
        "",
        "x",
        "../x",
        "0" * 32,
        [],
        [[]],
        {},
        [0] * 9,
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_is_taken_or_refused_and_never_ends_in_another_error(
    data: st.DataObject, shards: ShardSet, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifest = json.loads(Path(shards.root, "manifest.json").read_text())
    *way, last = data.draw(st.sampled_from(paths_of(manifest)[1:]))
    inner = manifest
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(HOSTILE)
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("train", "holdout"):
        os.symlink(Path(shards.root, name), folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        opened = ShardSet.open(folder)
        opened.verify()
        _ = opened.source_file(0), opened.token_form, opened.messages_field, opened.kept_members
        Mixer(opened, stratified(), ledger=folder / "run", round_draws=8).batch(0, 8)
    except SkillshardError as error:
        assert "\n" not in str(error)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_value_of_the_manifest_of_tags_is_read_or_refused_in_one_sentence(
    data: st.DataObject, tagged: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    corpus, tags = tagged
    manifest = json.loads((tags / "tags.json").read_text())
    *way, last = data.draw(st.sampled_from(paths_of(manifest)[1:]))
    inner = manifest
    for key in way:
        inner = inner[key]
    if type(inner) is dict and data.draw(st.booleans()):
        del inner[last]
    else:
        inner[last] = data.draw(HOSTILE)
    folder = tmp_path_factory.mktemp("hostile-tags")
    os.symlink(tags / "parts", folder / "parts")
    (folder / "tags.json").write_text(json.dumps(manifest))
    try:
        opened = Tags.open(folder)
        opened.verify()
        opened.partitions_of(Corpus.open(corpus, layout=opened.layout))
        write.write_shards(Corpus.open(corpus), opened, folder / "S", backend=HERE)
    except SkillshardError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a small corpus and its tags."""
    folder = tmp_path_factory.mktemp("tagged")
    write_corpus(folder / "C", samples(add=6, carry=4))
    works("tag", "metadata", folder / "C", "--field", "skill", "--out", folder / "T", "--workers", 1)
    return folder / "C", folder / "T"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (None, "arguments is no object: None"),
        ({"members": 3}, "arguments.members is no list: 3"),
        ({"members": [3]}, "arguments.members is no list of names"),
        ({"reading": ["text"]}, "arguments.reading is no object"),
        (
            {"reading": {"max_sample_bytes": 9, "text_field": 3}},
            "arguments.reading is {'max_sample_bytes': 9, 'text_field': 3}",
        ),
        (
            {"reading": {"max_sample_bytes": 9, "corpora": ["a"]}},
            "arguments.reading is {'max_sample_bytes': 9, 'corpora': ['a']}",
        ),
    ],
)
def test_arguments_that_a_reader_cannot_look_up_are_refused(copied: Path, arguments: Any, sentence: str) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["made_from"]["arguments"] = arguments
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=re.escape(sentence)):
        ShardSet.open(copied)


def test_a_manifest_that_is_too_large_is_refused_before_it_is_read(copied: Path) -> None:
    with (copied / "manifest.json").open("r+b") as file:
        file.truncate(200_000_000)
    tracemalloc.start()
    with pytest.raises(ShardError, match=r"is 200,000,000 bytes, and at most 134,217,728 are read.*--shard-size 1GB"):
        ShardSet.open(copied)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_shards_too_many_for_a_manifest_that_is_read_are_refused_before_they_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(write, "MAX_MANIFEST_BYTES", 10 * write.MANIFEST_BYTES_PER_SHARD)
    corpus = write_corpus(tmp_path / "corpus", samples(add=60))
    with pytest.raises(ShardError, match=r"60 shards of 2,048 bytes are too many .*at most 10\).*larger `shard_bytes`"):
        tag_and_shard(corpus, tmp_path, shard_bytes=2048)
    assert manifest_module.MAX_MANIFEST_BYTES // write.MANIFEST_BYTES_PER_SHARD > 500_000


@pytest.mark.parametrize("name", ["manifest.json", "train/add/000000.tar", "train/add/000000.index.npy"])
@pytest.mark.parametrize("kind", ["a named pipe", "a directory"])
def test_a_pipe_or_a_directory_in_place_of_a_file_is_refused_and_nobody_waits(
    copied: Path, name: str, kind: str
) -> None:
    put_special(copied / name, kind)
    with pytest.raises(SkillshardError, match=f"{name} is {kind}, not a file"):
        Mixer(ShardSet.open(copied), stratified(), ledger=copied.parent / "run", round_draws=64).batch(0, 3000)
    assert f"{name} is {kind}, not a file" in fails("verify", copied)


def put_special(place: Path, kind: str) -> None:
    place.unlink()
    if kind == "a directory":
        place.mkdir()
    else:
        os.mkfifo(place)


@pytest.mark.parametrize("kind", ["a named pipe", "a directory"])
@pytest.mark.parametrize(
    "name",
    [
        "tags/tags.json",
        "tags/parts/000000.parquet",
        "tokens/tokens.json",
        "tokens/train/add/000000.tokens.npy",
        "tokens/train/add/000000.ids.bin",
        "tokens/train/add/000000.checks.npy",
    ],
)
def test_a_pipe_or_a_directory_in_place_of_a_file_of_tags_or_tokens_is_refused(
    tmp_path: Path, name: str, kind: str
) -> None:
    shards = tag_and_shard(write_corpus(tmp_path / "corpus", samples(add=30, carry=9)), tmp_path)
    write_tokens(shards, byte_tokenizer(["add carry"]), tmp_path / "tokens", backend=HERE)
    put_special(tmp_path / name, kind)
    assert f"{name} is {kind}, not a file" in fails("verify", tmp_path / name.partition("/")[0])


def to_version_1(root: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["schema"] = "skillshard/manifest/1"
        del manifest["split"], manifest["unread"]
        for skill in manifest["skills"]:
            del skill["num_copies"], skill["train"]["keys_digest"], skill["holdout"]["keys_digest"]

    edit(root, change)


def test_a_manifest_of_version_1_is_read_and_everybody_says_that_its_split_goes_by_the_id(
    copied: Path, tmp_path: Path
) -> None:
    before = ShardSet.open(copied)
    assert isinstance(before.manifest, Manifest)
    expected = Mixer(before, stratified(), ledger=tmp_path / "before", round_draws=64).ids(0, 100)
    to_version_1(copied)
    opened = ShardSet.open(copied)
    assert isinstance(opened.manifest, Manifest1)
    assert opened.verify() == []
    assert Mixer(opened, stratified(), ledger=tmp_path / "after", round_draws=64).ids(0, 100) == expected
    sentence = "These shards are of version 1: the hash of the id decided the split"
    shown = works("inspect", copied)
    assert sentence in shown and "not counted" in shown
    assert sentence in works("verify", copied)


def test_a_manifest_of_version_2_is_read_and_gives_the_same_stream_without_keys(copied: Path, tmp_path: Path) -> None:
    before = ShardSet.open(copied)
    expected = Mixer(before, stratified(), ledger=tmp_path / "before", round_draws=64).ids(0, 100)
    assert "Beside each shard lie keys" in " ".join(works("inspect", copied).split())

    def change(manifest: dict[str, Any]) -> None:
        manifest["schema"] = "skillshard/manifest/2"
        for skill in manifest["skills"]:
            del skill["train"]["keys_digest"], skill["holdout"]["keys_digest"]

    edit(copied, change)
    opened = ShardSet.open(copied)
    assert isinstance(opened.manifest, Manifest2)
    assert opened.verify() == [] and opened.manifest.num_copies == before.manifest.num_copies
    assert Mixer(opened, stratified(), ledger=tmp_path / "after", round_draws=64).ids(0, 100) == expected
    with pytest.raises(ShardError, match="has no keys beside its shards, because an earlier version wrote the shards"):
        opened.train[opened.skills[0]].keys(0)
    assert "keys" not in works("inspect", copied)
    edit(copied, set_all(num_train=3))
    with pytest.raises(ShardError, match=r"does not fit schemas/manifest-2\.json: .*num_train is 3"):
        ShardSet.open(copied)


def test_a_manifest_of_version_1_is_checked_as_strictly(copied: Path) -> None:
    to_version_1(copied)
    edit(copied, set_all(num_train=3))
    with pytest.raises(ShardError, match=r"does not fit schemas/manifest-1\.json: .*num_train is 3"):
        ShardSet.open(copied)


@pytest.mark.parametrize(("cut", "side"), [("8" + "0" * 31, "holdout"), ("0" * 32, "train")])
def test_verify_finds_a_text_on_the_wrong_side_of_the_split(copied: Path, cut: str, side: str) -> None:
    """The bytes are as the manifest says, and the cut is changed."""
    edit(copied, lambda manifest: manifest["split"].update(cut=cut))
    faults = ShardSet.open(copied).verify()
    assert faults and all("by the hash of its text, row" in fault and f"belongs to {side}" in fault for fault in faults)
    assert "may stand in both train and holdout" in faults[0] and len(faults) == len(set(faults))
