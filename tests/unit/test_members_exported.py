"""Members beside texts, such as images, in exports, in `inspect` and in `verify`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillshard import canonical, export_files, export_rows, policies, taggers
from skillshard.corpus import Corpus, FieldMapping
from skillshard.errors import ShardError
from skillshard.export import export_shards
from skillshard.export_manifest import ExportManifest
from skillshard.mixing.mixer import Mixer
from skillshard.shards import members as members_module
from skillshard.shards.account import member_counts
from skillshard.shards.members import totals_of
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import append_shards, write_shards
from tests.commands import fails, skillshard, works
from tests.conftest import HERE
from tests.pictures import expected_members, tagged, written
from tests.remote.server import served
from tests.tokenizers_trained import byte_tokenizer

MEMBERS = ("jpg", "wav")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Shard 120 captions with sounds, of which two of three have an image."""
    folder = tmp_path_factory.mktemp("pictures")
    return written(tagged(folder, range(120)), folder / "shards")


def rows_of(out: Path) -> list[dict[str, Any]]:
    files = [out / file.name for file in ExportManifest.open(out).files]
    tables = [
        pq.read_table(file) if file.suffix == ".parquet" else pa.ipc.open_stream(file.read_bytes()).read_all()
        for file in files
    ]
    return [row for table in tables for row in table.to_pylist()]


def members_in(row: dict[str, Any], suffixes: tuple[str, ...] = MEMBERS) -> dict[str, bytes]:
    return {suffix: row[suffix] for suffix in suffixes if row[suffix] is not None}


# ------------------------------------------------------------------------------------------------------------------ export


@pytest.mark.parametrize("format", ["parquet", "datasets"])
def test_an_export_has_a_column_of_bytes_for_each_member(format: str, shards: ShardSet, tmp_path: Path) -> None:
    outcome = skillshard(
        *("export", shards.root, "--format", format, "--file-size", "50kB", "--workers", 1, "--out", tmp_path / "E")
    )
    assert outcome.code == 0 and "note" not in outcome.err
    rows = rows_of(tmp_path / "E")
    assert list(rows[0]) == ["id", "skill", "text", "meta", *MEMBERS] == ExportManifest.open(tmp_path / "E").columns
    assert [row["id"] for row in rows] == [sample.id for part in shards.train.values() for sample in part]
    for row in rows:
        assert members_in(row) == expected_members(row["id"])
    if format == "datasets":
        datasets = pytest.importorskip("datasets")
        saved = datasets.load_from_disk(str(tmp_path / "E"))
        assert list(saved) == rows == list(shards.to_datasets())


def test_a_mix_has_the_members_of_its_draws(shards: ShardSet, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"policy": policies.proportional(), "draws": 90, "workers": 1, "format": "parquet"}
    export_shards(shards, tmp_path / "all", **arguments)
    rows = rows_of(tmp_path / "all")
    assert [row["draw"] for row in rows] == list(range(90))
    for row in rows:
        assert members_in(row) == expected_members(row["id"])
    export_shards(shards, tmp_path / "sounds", **arguments, members=["wav"])
    assert rows_of(tmp_path / "sounds") == [
        {name: value for name, value in row.items() if name != "jpg"} for row in rows
    ]


def test_groups_of_rows_count_the_bytes_of_members(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (export_files, export_rows):
        monkeypatch.setattr(module, "GROUP_BYTES", 5000)
    export_shards(shards, tmp_path / "E", format="parquet", workers=1)
    file = pq.ParquetFile(tmp_path / "E" / "000000.parquet")
    groups = [file.read_row_group(number).to_pylist() for number in range(file.num_row_groups)]
    sizes = [[sum(map(len, members_in(row).values())) for row in group] for group in groups]
    assert len(sizes) > 10 and all(sum(group[:-1]) < 5000 for group in sizes)


def test_an_export_with_members_is_a_corpus_with_members_again(shards: ShardSet, tmp_path: Path) -> None:
    export_shards(shards, tmp_path / "E", format="parquet", workers=1)
    corpus = Corpus.open(tmp_path / "E")
    tags = taggers.tag_corpus(corpus, taggers.metadata("skill"), tmp_path / "tags", backend=HERE)
    copies = write_shards(corpus, tags, tmp_path / "shards", members=MEMBERS, backend=HERE)
    exported = [sample for part in (*copies.train.values(), *copies.holdout.values()) for sample in part.with_members()]
    assert len(exported) == shards.manifest.num_train
    for sample in exported:
        assert dict(sample.members) == expected_members(sample.id)


def test_jsonl_refuses_members_until_the_user_leaves_them_out(shards: ShardSet, tmp_path: Path) -> None:
    export = ("export", shards.root, "--format", "jsonl", "--workers", 1, "--out", tmp_path / "E")
    sentence = (
        f"jsonl has no form for bytes, and {shards.root} has the members jpg, wav: give --format parquet or --format datasets, or "
        "write texts and metadata alone with --members none."
    )
    assert fails(*export) == sentence == fails(*export, "--members", "jpg")
    outcome = skillshard(*export, "--members", "none")
    assert outcome.code == 0
    assert "note: left out of the files, but kept in the shards: members jpg, wav." in outcome.err
    assert ExportManifest.open(tmp_path / "E").columns == ["id", "skill", "text", "meta"]


def test_a_part_of_the_members_is_written_and_the_rest_is_named(shards: ShardSet, tmp_path: Path) -> None:
    export = ("export", shards.root, "--format", "parquet", "--workers", 1, "--out", tmp_path / "E")
    outcome = skillshard(*export, "--members", "jpg")
    assert outcome.code == 0 and "note: left out of the files, but kept in the shards: members wav." in outcome.err
    assert [members_in(row, ("jpg",)).keys() <= {"jpg"} for row in rows_of(tmp_path / "E")]
    assert "the export has no member 'jpgg' (did you mean 'jpg'?): the members of" in fails(
        *export[:-1], tmp_path / "F", "--members", "jpgg"
    )


def test_files_for_megatron_name_the_members_that_they_lack(shards: ShardSet, tmp_path: Path) -> None:
    write_tokens(shards, byte_tokenizer(["caption"]), tmp_path / "tokens", backend=HERE)
    export = ("export", shards.root, "--format", "megatron", "--tokens", tmp_path / "tokens", "--workers", 1)
    outcome = skillshard(*export, "--out", tmp_path / "E")
    assert outcome.code == 0 and "note: left out of the files, but kept in the shards: members jpg, wav." in outcome.err
    assert "files of Megatron-LM have token ids alone, and no place for the members jpg: leave out --members." in fails(
        *export, "--members", "jpg", "--out", tmp_path / "F"
    )


def test_texts_of_ids_are_named_as_ids(tmp_path: Path) -> None:
    (tmp_path / "ids").mkdir()
    rows = [
        {"id": number, "kind": "ab"[number % 2], "input_ids": [number, 7], "labels": [-100, 7]} for number in range(40)
    ]
    (tmp_path / "ids" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = FieldMapping(token_ids="input_ids", token_labels="labels", vocab_size=50)
    corpus = Corpus.open(tmp_path / "ids", fields=fields)
    tags = taggers.tag_corpus(corpus, taggers.metadata("kind"), tmp_path / "tags", backend=HERE)
    shards = write_shards(corpus, tags, tmp_path / "shards", backend=HERE)
    export = ("export", shards.root, "--workers", 1)
    outcome = skillshard(*export, "--format", "jsonl", "--out", tmp_path / "E")
    assert "note: each text is the token ids of a sample as decimal numbers, because the corpus was" in outcome.err
    write_tokens(shards, None, tmp_path / "tokens", backend=HERE)
    sentence = fails(*export, "--format", "megatron", "--tokens", tmp_path / "tokens", "--out", tmp_path / "M")
    assert "a trainer learns the answers (metadata field 'answer_spans') alone." in sentence
    assert sentence.endswith(
        "Tag and shard the corpus of ids anew without `token_labels` and `token_mask`, and then keep its ids."
    )


def test_an_export_without_members_has_the_bytes_of_before(tmp_path: Path) -> None:
    pictures = tagged(tmp_path, range(30))
    with_members, bare = (
        written(pictures, tmp_path / name, members) for name, members in (("with", ("jpg",)), ("bare", ()))
    )
    for shards, members in ((with_members, []), (bare, None)):
        export_shards(shards, tmp_path / f"E{members}", format="parquet", members=members, workers=1)
    files = [(tmp_path / name / "000000.parquet").read_bytes() for name in ("E[]", "ENone")]
    assert files[0] == files[1]
    assert "members" not in ExportManifest.open(tmp_path / "ENone").made_from["arguments"]


def test_a_member_with_the_name_of_the_metadata_is_refused(tmp_path: Path) -> None:
    shard_set = written(tagged(tmp_path, range(30)), tmp_path / "shards", ("meta=jpg",))
    with pytest.raises(
        ShardError, match="has members with the suffix 'meta', and rows have their metadata in a column"
    ):
        export_shards(shard_set, tmp_path / "E", format="parquet", workers=1)
    with pytest.raises(ShardError, match="'skillshard shard --members bytes=meta'"):
        shard_set.to_datasets()
    mixer = Mixer(
        shard_set,
        policies.stratified(),
        ledger=tmp_path / "run",
        round_draws=20,
        members=("meta",),
        field_defaults={"meta": b""},
    )
    assert any(mixer.batch(0, 8).fields["meta"])


# ---------------------------------------------------------------------------------------------------------------- inspect


def expected_counts(numbers: range) -> dict[str, tuple[int, int]]:
    members = [expected_members(f"{number:04d}") for number in numbers]
    contents = {suffix: [each[suffix] for each in members if suffix in each] for suffix in MEMBERS}
    return {suffix: (len(own), sum(map(len, own))) for suffix, own in contents.items()}


@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_inspect_counts_the_members(rows_at_once: int, shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "_ROWS_AT_ONCE", rows_at_once)
    facts = json.loads(works("inspect", shards.root, "--json"))
    expected = expected_counts(range(120))
    assert facts["members"] == [
        {"suffix": suffix, "source": source, "num_samples": expected[suffix][0], "num_bytes": expected[suffix][1]}
        for suffix, source in (("jpg", "jpg"), ("wav", "left.wav"))
    ]
    assert "members beside the texts, kept as bytes: jpg in 80 samples, 48.2 kB, wav in 120 samples, " in works(
        "inspect", shards.root
    )


def test_appended_shards_count_the_members_of_all_editions(tmp_path: Path) -> None:
    first = written(tagged(tmp_path / "first", range(60)), tmp_path / "shards")
    more = append_shards(first, *tagged(tmp_path / "more", range(60, 100)), tmp_path / "both", backend=HERE)
    counts = member_counts(more)
    assert counts is not None
    assert {count.suffix: (count.num_samples, count.num_bytes) for count in counts} == expected_counts(range(100))


def test_members_of_remote_shards_are_named_and_not_counted(shards: ShardSet) -> None:
    with served(shards.root) as address:
        facts = json.loads(works("inspect", f"http://{address}", "--json"))
        assert {(member["suffix"], member["num_samples"], member["num_bytes"]) for member in facts["members"]} == {
            ("jpg", None, None),
            ("wav", None, None),
        }
        assert "jpg (not counted in remote shards)" in works("inspect", f"http://{address}")


def test_inspect_lists_the_rows_that_were_set_aside_by_file_reason_and_field(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    rows = [{"id": str(number), "text": f"text {number % 25}", "kind": "ab"[number % 2]} for number in range(50)]
    rows[3] = {"id": "3", "text": "text", "other": 1}
    (tmp_path / "corpus" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:30]) + "{\n")
    (tmp_path / "corpus" / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[30:]))
    works(
        *("tag", "metadata", tmp_path / "corpus", "--field", "kind", "--on-bad-sample", "set-aside", "--workers", 1),
        *("--max-set-aside", 0.5, "--out", tmp_path / "tags"),
    )
    shown = works(
        *("shard", tmp_path / "corpus", "--tags", tmp_path / "tags", "--copies", "drop", "--holdout", 0.1),
        *("--workers", 1, "--out", tmp_path / "shards"),
    )
    facts = json.loads(works("inspect", tmp_path / "shards", "--json"))
    counts = {(entry["file"], entry["reason"], entry["field"]): entry["num_rows"] for entry in facts["set_aside_by"]}
    assert counts.pop(("a.jsonl", "missing-field", "kind")) == 1
    assert counts.pop(("a.jsonl", "malformed-json", None)) == 1
    # Copies of the texts 0 to 4 stand in a.jsonl, because 30 rows have 25 texts. The text of row 3 was set aside, so row 28 is no copy.
    assert counts == {("a.jsonl", "copy", None): 4, ("b.jsonl", "copy", None): 20}
    line = "set aside by file, the most first: b.jsonl 20 rows, a.jsonl 6 rows"
    assert line in shown and "missing-field of 'kind' 1" in shown and line in works("inspect", tmp_path / "shards")
    tag_facts = json.loads(works("inspect", tmp_path / "tags", "--json"))
    assert [entry for entry in facts["set_aside_by"] if entry["reason"] != "copy"] == tag_facts["set_aside_by"]
    rejected = next((tmp_path / "shards" / "rejected").glob("*.jsonl"))
    rejected.write_bytes(rejected.read_bytes()[1:])
    assert "is damaged or edited: " in fails("inspect", tmp_path / "shards")


# ----------------------------------------------------------------------------------------------------------------- verify


def forge(shards: ShardSet, out: Path, old: bytes, new: bytes) -> ShardSet:
    """Copy a shard set with an edit of each tar, and with digests that agree with the edited tars."""
    for source in Path(shards.root).rglob("*"):
        if source.is_file():
            target = out / source.relative_to(shards.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = source.read_bytes()
            target.write_bytes(content.replace(old, new) if source.suffix == ".tar" else content)
    manifest = json.loads((out / "manifest.json").read_bytes())
    for skill in manifest["skills"]:
        for split in ("train", "holdout"):
            columns = skill[split]
            for place, number in enumerate(columns["number"]):
                tar = out / split / skill["folder"] / f"{number:06d}.tar"
                columns["digest"][place] = canonical.digest(tar.read_bytes())
    (out / "manifest.json").write_bytes(canonical.to_json(manifest))
    return ShardSet.open(out)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            b".jpg\0",
            b".gif\0",
            "but the members of the manifest are jpg, wav: damaged or edited file",
        ),
        (b".jpg\0", b".wav\0", "has two members 'wav' of row "),
        (b"00000001131\0", b"00000001130\0", ""),
    ],
    ids=["another suffix", "twice", "same number of blocks"],
)
def test_verify_follows_the_headers_of_members(
    old: bytes, new: bytes, sentence: str, shards: ShardSet, tmp_path: Path
) -> None:
    forged = forge(shards, tmp_path / "forged", old, new)
    faults = forged.verify()
    assert bool(faults) == bool(sentence)
    assert all(sentence in fault and fault.endswith("or copy this file again.") for fault in faults)


def test_a_member_that_reaches_beyond_its_sample_or_is_no_member_is_a_fault(shards: ShardSet) -> None:
    part = shards.train["cat"]
    opened = part.open_shard(0)
    whole = bytes(opened.data)
    assert totals_of(whole, opened.index).fault is None
    header = whole.index(b".jpg\0") - 16
    longer = whole[: header + 124] + b"00000100000" + whole[header + 135 :]
    broken = whole[:header] + b"7" * 16 + whole[header + 16 :]
    other = replace(opened, index=np.delete(opened.index, 1))
    faults = [totals_of(data, index).fault for data, index in ((longer, opened.index), (broken, opened.index))]
    assert "that reach into the next sample" in str(faults[0])
    assert "where its last member ends" in str(faults[1])
    assert "where its last member ends" in str(totals_of(whole, other.index).fault)
