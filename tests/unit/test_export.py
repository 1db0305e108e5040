"""`skillshard export` and `ShardSet.to_datasets`: files for trainers that keep their own loader."""

import gzip
import io
import json
import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillshard import export as export_module
from skillshard import export_files, export_rows, policies, storage
from skillshard.errors import PolicyError, ShardError, SkillshardError, StorageError
from skillshard.export import export_shards
from skillshard.export_files import FORMATS
from skillshard.export_manifest import MANIFEST, ExportManifest, verify_export
from skillshard.policies import Policy
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works
from tests.conftest import samples, tag_and_shard, tree, write_corpus

Rows = list[dict[str, Any]]


def stop_after(num: int, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a function of the export that writes files be stopped after some calls. Return the list of the places that the calls write."""
    write, written = getattr(export_module, name), list[str]()

    def write_or_stop(**arguments: Any) -> Any:
        if len(written) == num:
            raise KeyboardInterrupt
        written.append(arguments["place"])
        return write(**arguments)

    monkeypatch.setattr(export_module, name, write_or_stop)
    return written


def stored(shards: ShardSet, split: str = "train") -> Rows:
    """Return the rows of a plain export, read by the shards' own reader."""
    return [
        {"id": sample.id, "skill": skill, "text": sample.text, "meta": sample.meta}
        for skill, skill_shards in (shards.train if split == "train" else shards.holdout).items()
        for sample in skill_shards
    ]


def rows_of(out: Path) -> Rows:
    """Return the rows of an export in any format, in the order of the files."""
    manifest = ExportManifest.open(out)
    rows: Rows = []
    for file in manifest.files:
        path = out / file.name
        assert (path.stat().st_size, storage.file_digest(path)) == (file.num_bytes, file.digest)
        if path.suffix in (".parquet", ".arrow"):
            table = (
                pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_stream(path.read_bytes()).read_all()
            )
            own = [{**row, "meta": json.loads(row["meta"])} for row in table.to_pylist()]
        else:
            with storage.open_stream(path, compression={".gz": "gzip", ".zst": "zstd"}.get(path.suffix)) as stream:
                own = [json.loads(line) for line in stream.read().splitlines()]
        assert len(own) == file.num_rows
        rows += own
    assert len(rows) == manifest.num_rows
    assert [*rows[0]] == manifest.columns
    return rows


@pytest.mark.parametrize("split", ["train", "holdout"])
@pytest.mark.parametrize("format", FORMATS)
def test_an_export_holds_every_sample_of_the_split_once_in_stored_order(
    format: str, split: str, shards: ShardSet, tmp_path: Path
) -> None:
    works(
        *("export", shards.root, "--format", format, "--split", split, "--file-size", "100kB"),
        *("--workers", 1, "--out", tmp_path / "E"),
    )
    assert rows_of(tmp_path / "E") == stored(shards, split)
    manifest = ExportManifest.open(tmp_path / "E")
    assert manifest.skills == {
        skill: len(own) for skill, own in (shards.train if split == "train" else shards.holdout).items()
    }
    assert split == "holdout" or len(manifest.files) > 3


@pytest.mark.parametrize("format", FORMATS)
def test_a_mix_has_the_draws_of_the_verb_mix(format: str, shards: ShardSet, tmp_path: Path) -> None:
    options = ("--policy", "temperature", "--tau", 2, "--draws", 300, "--seed", 7, "--round-draws", 64)
    works("mix", shards.root, *options, "--out", tmp_path / "ids.jsonl")
    works(
        *("export", shards.root, *options, "--format", format, "--file-size", "200kB"),
        *("--workers", 1, "--out", tmp_path / "E"),
    )
    rows = rows_of(tmp_path / "E")
    listed = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_bytes().splitlines()]
    assert [{name: row[name] for name in ("draw", "skill", "id")} for row in rows] == listed
    by_id = {row["id"]: row for row in stored(shards)}
    assert [{**by_id[row["id"]], "draw": row["draw"]} for row in rows] == rows
    assert len(ExportManifest.open(tmp_path / "E").files) > 2


def test_weights_without_a_policy_are_the_weights_of_a_fixed_mix(shards: ShardSet, tmp_path: Path) -> None:
    weights = json.dumps({"add": 0.5, "carry": 0.5, "negate": 0})
    works("mix", shards.root, "--draws", 80, "--policy", "fixed", "--weights", weights, "--out", tmp_path / "ids.jsonl")
    works(
        "export",
        shards.root,
        "--draws",
        80,
        "--weights",
        weights,
        "--format",
        "jsonl",
        "--out",
        tmp_path / "E",
        "--workers",
        1,
    )
    listed = [json.loads(line)["id"] for line in (tmp_path / "ids.jsonl").read_bytes().splitlines()]
    assert [row["id"] for row in rows_of(tmp_path / "E")] == listed


@pytest.mark.parametrize("policy", [None, policies.proportional()], ids=["plain", "mix"])
def test_the_number_of_processes_does_not_change_the_bytes(
    policy: Policy | None, shards: ShardSet, tmp_path: Path
) -> None:
    for workers in (1, 2):
        export_shards(
            shards,
            tmp_path / str(workers),
            format="jsonl.gz",
            policy=policy,
            draws=None if policy is None else 200,
            file_bytes=200_000,
            workers=workers,
        )
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


def test_a_worker_checks_each_shard_of_a_mix_once_for_all_its_files(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[str, int]] = []
    open_checked = SkillShards.open_checked

    def noted(skill_shards: SkillShards, shard: int) -> Any:
        if shard not in skill_shards._checked:  # the opening that reads all bytes
            checked.append((skill_shards.skill, shard))
        return open_checked(skill_shards, shard)

    def write_copy(part: Any, format: str, schema: Any, place: str) -> Any:
        return write_part(
            pickle.loads(pickle.dumps(part)), format, schema, place
        )  # as the pool sends tasks to a worker

    write_part = export_module.write_part
    monkeypatch.setattr(export_module, "write_part", write_copy)
    monkeypatch.setattr(SkillShards, "open_checked", noted)
    arguments: dict[str, Any] = {"policy": policies.proportional(), "draws": 400, "file_bytes": 100_000, "workers": 1}
    manifest = export_shards(shards, tmp_path / "E", format="jsonl", **arguments)
    assert len(manifest.files) > 5 and len(checked) == len({*checked}) > 3


def test_a_stream_that_ends_gives_fewer_rows_and_a_note(shards: ShardSet, tmp_path: Path) -> None:
    outcome = skillshard(
        *("export", shards.root, "--policy", "proportional", "--repeat", "stop", "--draws", 5000),
        *("--format", "jsonl", "--workers", 1, "--out", tmp_path / "E"),
    )
    rows = rows_of(tmp_path / "E")
    assert outcome.code == 0 and f"note: the stream ends after {len(rows):,} draws (--repeat stop)" in outcome.err
    assert len({row["id"] for row in rows}) == len(rows) < 5000


def test_row_groups_and_groups_of_texts_have_a_bounded_size(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (export_files, export_rows):
        monkeypatch.setattr(module, "GROUP_BYTES", 2000)
    most = max(len(row["text"]) + len(json.dumps(row["meta"])) for row in stored(shards))
    for policy in (None, policies.stratified()):
        out = tmp_path / str(policy is None)
        export_shards(shards, out, format="parquet", policy=policy, draws=None if policy is None else 300, workers=1)
        file = pq.ParquetFile(out / "000000.parquet")
        assert file.num_row_groups > 3
        for number in range(file.num_row_groups):
            texts, metas = (file.read_row_group(number, [name]).column(0).to_pylist() for name in ("text", "meta"))
            assert sum(map(len, (*texts, *metas))) < 2000 + most


@pytest.mark.parametrize("is_mix", [False, True], ids=["plain", "mix"])
def test_a_stopped_export_goes_on_and_a_finished_one_is_not_done_again(
    is_mix: bool, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"format": "datasets", "file_bytes": 100_000, "workers": 1}
    if is_mix:
        arguments |= {"policy": policies.proportional(), "draws": 300}
    export_shards(shards, tmp_path / "whole", **arguments)
    num_parts = len(ExportManifest.open(tmp_path / "whole").files)
    write_part = export_module.write_part
    written = stop_after(2, "write_part", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_shards(shards, tmp_path / "E", **arguments)
    assert not (tmp_path / "E" / MANIFEST).exists()
    with pytest.raises(
        StorageError, match=r"begun with other inputs or arguments \(arguments.format: 'datasets' -> 'jsonl'\)"
    ):
        export_shards(shards, tmp_path / "E", **{**arguments, "format": "jsonl"})

    monkeypatch.setattr(export_module, "write_part", write_part)
    later = stop_after(num_parts, "write_part", monkeypatch)
    export_shards(shards, tmp_path / "E", **arguments)
    assert len(written) == 2 and len({*written, *later}) == len(written) + len(later) == num_parts
    assert tree(tmp_path / "E") == tree(tmp_path / "whole")
    export_shards(shards, tmp_path / "E", **arguments)
    assert len(written) + len(later) == num_parts


def test_a_shard_larger_than_a_file_is_divided(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", samples(add=200, carry=5))
    shards = tag_and_shard(corpus, tmp_path, shard_bytes=10_000_000)
    export_shards(shards, tmp_path / "E", format="jsonl", file_bytes=50_000, workers=1)
    assert rows_of(tmp_path / "E") == stored(shards)
    files = ExportManifest.open(tmp_path / "E").files
    assert len(files) > 5 and max(file.num_bytes for file in files) < 50_000
    exported = export_shards(shards, tmp_path / "tiny", format="jsonl", file_bytes=1, workers=1)
    assert {file.num_rows for file in exported.files} == {1}


def test_compressed_lines_have_no_time(shards: ShardSet, tmp_path: Path) -> None:
    export_shards(shards, tmp_path / "E", format="jsonl.gz", workers=1)
    data = (tmp_path / "E" / "000000.jsonl.gz").read_bytes()
    assert data[4:8] == bytes(4)  # the time in the header of gzip
    with gzip.open(io.BytesIO(data)) as file:
        assert json.loads(file.readline())["id"] == stored(shards)[0]["id"]


def test_an_export_is_a_corpus_again(shards: ShardSet, tmp_path: Path) -> None:
    for format in FORMATS:
        works("export", shards.root, "--format", format, "--workers", 1, "--out", tmp_path / format)
        tagged = works(
            "tag", "metadata", tmp_path / format, "--field", "skill", "--workers", 1, "--out", tmp_path / f"T-{format}"
        )
        assert f"{len(stored(shards)):,} rows = {len(stored(shards)):,} tagged in 3 skills + 0 set aside" in tagged


def test_the_library_datasets_opens_the_directories(shards: ShardSet, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    expected = stored(shards)
    export_shards(shards, tmp_path / "saved", format="datasets", file_bytes=100_000, workers=1)
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    assert [{**row, "meta": json.loads(row["meta"])} for row in saved] == expected
    assert str(saved.split) == "train"
    export_shards(shards, tmp_path / "parquet", format="parquet", file_bytes=100_000, workers=1)
    loaded = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert loaded["id"][:] == [row["id"] for row in expected]


def test_shards_as_a_dataset_have_every_sample_once_in_stored_order(shards: ShardSet) -> None:
    pytest.importorskip("datasets")
    for split in ("train", "holdout"):
        dataset = shards.to_datasets(split)
        assert [{**row, "meta": json.loads(row["meta"])} for row in dataset] == stored(shards, split)
    chosen = shards.choose(["carry"]).to_datasets()
    assert {row["skill"] for row in chosen} == {"carry"}


def test_parts_of_a_dataset_divide_the_shards(shards: ShardSet) -> None:
    pytest.importorskip("datasets")
    dataset = shards.to_datasets()
    assert dataset.num_shards == sum(len(own.shard_rows) for own in shards.train.values()) > 3
    ids = [[row["id"] for row in dataset.shard(3, number)] for number in range(3)]
    assert sorted(chain(*ids)) == sorted(row["id"] for row in stored(shards))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "parqet"}, "`format='parqet'` (did you mean 'parquet'?): give jsonl, "),
        ({"split": "test"}, "`split='test'`: give 'train' or 'holdout'."),
        ({"file_bytes": 0}, "`file_bytes=0`: give 1 or more bytes."),
        ({"draws": 5}, "an export of a mix needs `policy`"),
        ({"policy": policies.stratified()}, "an export of a mix needs `draws`"),
        ({"policy": policies.stratified(), "draws": 0}, "`draws=0`: give 1 or more."),
        ({"policy": policies.stratified(), "draws": 5, "split": "holdout"}, "a mix is made of training samples"),
        ({"policy": policies.odm(warmup_steps=0), "draws": 5}, "reads losses, which an export does not have"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_sentence_and_nothing_is_written(
    arguments: dict[str, Any], sentence: str, shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(SkillshardError) as raised:
        export_shards(shards, tmp_path / "E", **{"format": "jsonl", **arguments})
    assert isinstance(raised.value, ShardError | PolicyError) and sentence in str(raised.value)
    assert not (tmp_path / "E").exists()


def test_a_split_without_samples_is_one_sentence(tmp_path: Path) -> None:
    shards = tag_and_shard(write_corpus(tmp_path / "corpus", samples(add=20, carry=9)), tmp_path, holdout=0.0)
    assert "has no holdout samples to export. Choose the other --split." in fails(
        "export", shards.root, "--format", "jsonl", "--split", "holdout", "--out", tmp_path / "E"
    )
    with pytest.raises(ShardError, match="has no holdout samples"):
        shards.to_datasets("holdout")
    with pytest.raises(ShardError, match="`split='test'`"):
        shards.to_datasets("test")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--policy", "stratified"), "--policy belongs to a mix: give --draws too"),
        (("--seed", 0), "--seed belongs to a mix: give --draws too"),
        (("--weights", "{}"), "--weights belongs to a mix: give --draws too"),
        (("--draws", 5, "--split", "train"), "--split chooses samples that are written once"),
    ],
    ids=str,
)
def test_an_option_that_would_be_ignored_is_a_usage_error(
    options: tuple[object, ...], sentence: str, shards: ShardSet, tmp_path: Path
) -> None:
    outcome = skillshard("export", shards.root, "--format", "jsonl", *options, "--out", tmp_path / "E")
    assert outcome.code == 2 and sentence in " ".join(outcome.err.replace("│", " ").split())
    assert not (tmp_path / "E").exists()


def test_a_damaged_manifest_is_one_sentence(shards: ShardSet, tmp_path: Path) -> None:
    export_shards(shards, tmp_path / "E", format="jsonl", workers=1)
    manifest = json.loads((tmp_path / "E" / MANIFEST).read_bytes())
    (tmp_path / "E" / MANIFEST).write_text(json.dumps({**manifest, "num_rows": -1}))
    with pytest.raises(ShardError, match=r"does not fit schemas/export-1.json: num_rows"):
        export_shards(shards, tmp_path / "E", format="jsonl", workers=1)


@pytest.mark.parametrize("format", ["jsonl.zst", "parquet", "datasets"])
def test_verify_reads_every_byte_of_an_export(format: str, shards: ShardSet, tmp_path: Path) -> None:
    manifest = export_shards(shards, tmp_path / "E", format=format, workers=1, file_bytes=20_000)
    assert len(manifest.files) > 1
    outcome = skillshard("verify", tmp_path / "E")
    assert outcome.code == 0
    assert (
        outcome.out
        == f"{tmp_path}/E: {len(manifest.files)} files, {manifest.num_rows} rows, all as the manifest says.\n"
    )
    flipped, cut = (tmp_path / "E" / file.name for file in (manifest.files[0], manifest.files[-1]))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    faults = verify_export(tmp_path / "E")
    assert len(faults) == 2 and f"{flipped} has the digest" in faults[0] and f"{cut} has" in faults[1]
    cut.unlink()
    outcome = skillshard("verify", tmp_path / "E")
    assert outcome.code == 1
    assert [line[: len(f"error: {cut}")] for line in outcome.err.splitlines()] == [f"error: {flipped}", f"error: {cut}"]
    assert f"{cut} is missing. Export anew" in outcome.err


def test_verify_compares_the_sums_of_an_export(shards: ShardSet, tmp_path: Path) -> None:
    export_shards(shards, tmp_path / "E", format="jsonl", workers=1)
    manifest = json.loads((tmp_path / "E" / MANIFEST).read_bytes())
    num_rows = manifest["num_rows"]
    (tmp_path / "E" / MANIFEST).write_text(json.dumps({**manifest, "num_rows": num_rows + 1}))
    assert [
        f"its {name} have {num_rows}" in fault
        for name, fault in zip(("files", "skills"), verify_export(tmp_path / "E"), strict=True)
    ] == [True, True]


def test_inspect_shows_the_skills_of_an_export(shards: ShardSet, tmp_path: Path) -> None:
    manifest = export_shards(shards, tmp_path / "E", format="jsonl", workers=1)
    facts = json.loads(skillshard("inspect", tmp_path / "E", "--json").out)
    assert {skill["name"]: skill["num_rows"] for skill in facts["skills"]} == manifest.skills
    assert (facts["kind"], facts["num_rows"], facts["format"], facts["shards"]) == (
        "export",
        manifest.num_rows,
        "jsonl",
        shards.digest,
    )
    shown = skillshard("inspect", tmp_path / "E").out
    assert (
        all(name in shown for name in manifest.skills)
        and f"{manifest.num_rows} rows of shards {shards.digest} as jsonl" in shown
    )


def test_exported_rows_are_a_corpus(shards: ShardSet, tmp_path: Path) -> None:
    manifest = export_shards(shards, tmp_path / "E", format="jsonl", workers=1)
    assert skillshard("tag", "metadata", tmp_path / "E", "--field", "skill", "--out", tmp_path / "T").code == 0
    assert {skill.name: skill.num_samples for skill in Tags.open(tmp_path / "T").manifest.skills} == manifest.skills
