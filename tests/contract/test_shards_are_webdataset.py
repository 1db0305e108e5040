"""Shards are ordinary WebDataset: `webdataset`, `tar` and the reader of skillshard see the same samples, each exactly once."""

import gc
import subprocess
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from skillshard.shards.read import ShardSet
from skillshard.shards.tar import END_OF_ARCHIVE
from skillshard.tags import Tags
from tests.commands import works
from tests.conftest import lines, sample, samples, tag_and_shard, write_corpus

SPLITS = ("train", "holdout")


def of_split(shards: ShardSet, split: str) -> dict[str, Any]:
    return dict(shards.train if split == "train" else shards.holdout)


def ids(shards: ShardSet, split: str) -> list[str]:
    return [sample_read.id for skill in of_split(shards, split).values() for sample_read in skill]


def tars(shards: ShardSet) -> dict[str, tuple[Any, int]]:
    """Map each path in the shard set to the shards of the skill and the position among the shards."""
    return {
        skill.name(position): (skill, position)
        for split in SPLITS
        for skill in of_split(shards, split).values()
        for position in range(len(skill.columns.number))
    }


# ---------------------------------------------------------------------------------------------------- other readers


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files to the garbage collector
def test_the_webdataset_package_reads_the_same_ids_and_texts_as_we_do(shards: ShardSet) -> None:
    import webdataset as wds

    assert len(tars(shards)) > 10
    for name, (skill, position) in tars(shards).items():
        read = list(wds.WebDataset(str(shards.root / name), shardshuffle=False, empty_check=False))
        ours = [skill.open_shard(position).sample(row) for row in range(int(skill.shard_rows[position]))]
        assert [row_read["txt"].decode() for row_read in read] == [row_read.text for row_read in ours]
        assert [orjson.loads(row_read["json"]) for row_read in read] == [
            {"id": row_read.id, "skill": skill.skill, "meta": row_read.meta} for row_read in ours
        ]
        assert all(row_read["__key__"].isdigit() for row_read in read)
    gc.collect()


def test_keys_are_unique_in_the_whole_set(shards: ShardSet) -> None:
    keys: Counter[str] = Counter()
    for name in tars(shards):
        with tarfile.open(shards.root / name) as tar:
            keys.update(tar.getnames())
    assert len(keys) == 2 * (shards.manifest.num_train + shards.manifest.num_holdout)
    assert set(keys.values()) == {1}


def test_tar_lists_and_extracts_every_shard(shards: ShardSet, tmp_path: Path) -> None:
    for number, (name, (skill, position)) in enumerate(sorted(tars(shards).items())):
        listed = subprocess.run(
            ["tar", "-tvf", shards.root / name],
            check=True,
            capture_output=True,
            text=True,
            env={"TZ": "UTC", "LC_ALL": "C"},
        ).stdout.splitlines()
        assert len(listed) == 2 * int(skill.shard_rows[position])
        assert all(line.startswith("-rw-r--r-- 0/0 ") and "1970-01-01 00:00" in line for line in listed)
        folder = tmp_path / str(number)
        folder.mkdir()
        subprocess.run(["tar", "-xf", shards.root / name, "-C", folder], check=True)
        texts = [path.read_bytes().decode() for path in sorted(folder.glob("*.txt"))]
        assert texts == [skill.open_shard(position).text(row) for row in range(int(skill.shard_rows[position]))]


def test_members_are_plain_ustar_with_mode_644_owner_0_and_time_0(shards: ShardSet) -> None:
    for name in tars(shards):
        data = (shards.root / name).read_bytes()
        assert data.endswith(END_OF_ARCHIVE)
        with tarfile.open(shards.root / name, format=tarfile.USTAR_FORMAT) as tar:
            members = tar.getmembers()
        for number, member in enumerate(members):
            header = data[member.offset : member.offset + 512]
            assert header[257:265] == b"ustar\x0000" and header[156:157] == b"0"
            assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
            assert (member.uname, member.gname, member.linkname, member.pax_headers) == ("", "", "", {})
            assert member.name == f"{member.name[:16]}{('.txt', '.json')[number % 2]}" and member.name[:16].isdigit()


def test_sizes_and_counts_are_those_of_the_manifest(shards: ShardSet) -> None:
    manifest = orjson.loads((shards.root / "manifest.json").read_bytes())
    named = set()
    for skill in manifest["skills"]:
        for split in SPLITS:
            for number, num_samples, num_bytes in zip(
                *(skill[split][name] for name in ("number", "num_samples", "num_bytes")), strict=True
            ):
                path = shards.root / split / skill["folder"] / f"{number:06d}.tar"
                named.add(path)
                assert path.stat().st_size == num_bytes
                with tarfile.open(path) as tar:
                    assert len(tar.getmembers()) == 2 * num_samples
    assert named == set(shards.root.rglob("*.tar"))


# ---------------------------------------------------------------------------------------------------- each id once


def test_every_id_of_the_corpus_is_in_train_or_holdout_exactly_once(shards: ShardSet) -> None:
    expected = {record["id"]: record for record in samples(add=400, carry=150, negate=30)}
    assert Counter(ids(shards, "train") + ids(shards, "holdout")) == Counter(list(expected))
    for split in SPLITS:
        for name, skill in of_split(shards, split).items():
            for sample_read in skill:
                assert (name, sample_read.text, sample_read.meta) == (
                    expected[sample_read.id]["meta"]["skill"],
                    expected[sample_read.id]["text"],
                    expected[sample_read.id]["meta"],
                )


@pytest.mark.parametrize("holdout", [0.0, 0.02, 0.5, 0.999])
def test_every_skill_of_two_samples_or_more_has_both_train_and_holdout(holdout: float, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", samples(one=1, two=2, three=3, many=300))
    shards = tag_and_shard(corpus, tmp_path, holdout=holdout)
    assert set(shards.train) == {"one", "two", "three", "many"}
    assert set(shards.holdout) == ({"two", "three", "many"} if holdout else set())
    assert shards.manifest.num_train + shards.manifest.num_holdout == 306
    share = len(shards.holdout["many"]) / 300 if holdout else 0
    assert abs(share - holdout) < 5 * (holdout * (1 - holdout) / 300) ** 0.5 + 1 / 300


def parity(num_samples: int) -> list[dict[str, Any]]:
    """Make samples of one skill, with a second tagging by even and odd."""
    records = [sample("add", number) for number in range(num_samples)]
    return [
        {**record, "meta": {**record["meta"], "parity": ("even", "odd")[number % 2]}}
        for number, record in enumerate(records)
    ]


def test_the_holdout_survives_another_tagging(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(parity(2000)))
    held = {}
    for field in ("skill", "parity"):
        out = tmp_path / field
        works("tag", "metadata", tmp_path / "a.jsonl", "--field", field, "--out", out / "T", "--workers", 1)
        works("shard", tmp_path / "a.jsonl", "--tags", out / "T", "--out", out / "S", "--holdout", 0.05, "--workers", 1)
        held[field] = set(ids(ShardSet.open(out / "S"), "holdout"))
    assert held["skill"] == held["parity"]
    assert 60 < len(held["skill"]) < 140


def test_a_larger_share_only_adds_to_the_holdout(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(parity(500)))
    works("tag", "metadata", tmp_path / "a.jsonl", "--field", "skill", "--out", tmp_path / "T", "--workers", 1)
    held = []
    for share in (0.05, 0.2, 0.5):
        out = tmp_path / f"S{share}"
        works("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--out", out, "--holdout", share, "--workers", 1)
        held.append(set(ids(ShardSet.open(out), "holdout")))
    assert held[0] < held[1] < held[2]


# ------------------------------------------------------------------------------------------------------------ sizes


def test_shard_sizes_are_near_the_target(tmp_path: Path) -> None:
    """A shard takes an equal range of hashes, so the number n of its samples has a standard deviation of the square root of n.

    At 400 samples a shard, 5 standard deviations are 25 %. Rounding to whole shards adds up to half a shard, spread over all shards.
    """
    (tmp_path / "a.jsonl").write_bytes(lines([sample("add", number) for number in range(16_000)]))
    works("tag", "metadata", tmp_path / "a.jsonl", "--field", "skill", "--out", tmp_path / "T", "--workers", 1)
    target = 2048 * 500
    command = ("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)
    works(*command, "--shard-size", f"{target}B", "--holdout", 0)
    columns = ShardSet.open(tmp_path / "S").train["add"].columns
    assert len(columns.number) == 32
    assert min(columns.num_samples) >= 375
    assert all(abs(num_bytes / target - 1) < 0.25 for num_bytes in columns.num_bytes)


def test_samples_are_shuffled_in_a_skill_and_equal_input_gives_equal_order(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([sample("add", number) for number in range(1000)]))
    works("tag", "metadata", tmp_path / "a.jsonl", "--field", "skill", "--out", tmp_path / "T", "--workers", 1)
    command = ("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--workers", 1, "--holdout", 0)
    works(*command, "--out", tmp_path / "S1", "--shard-size", "100kB")
    works(*command, "--out", tmp_path / "S2", "--shard-size", "1GB")
    first, second = (ids(ShardSet.open(tmp_path / name), "train") for name in ("S1", "S2"))
    assert first == second
    numbers = [int(identity.split("-")[1]) for identity in first]
    places_moved = sum(abs(number - position) for position, number in enumerate(numbers)) / 1000
    assert 250 < places_moved < 420  # a random order moves a sample by a third of the length


# -------------------------------------------------------------------------------------------- the real corpora


REAL = {"instructions": ("meta.category", 80_262, 27), "sources": ("meta.source", 16_531, 9)}


def check_the_whole_way(corpus: Path, out: Path, field: str, num_samples: int, num_skills: int) -> None:
    works("tag", "metadata", corpus, "--field", field, "--out", out / "T")
    works("shard", corpus, "--tags", out / "T", "--out", out / "S", "--shard-size", "8MB", "--holdout", 0.02)
    tags, shards = Tags.open(out / "T").manifest, ShardSet.open(out / "S")
    assert (tags.num_rows, tags.num_tagged, len(tags.skills), tags.set_aside) == (
        num_samples,
        num_samples,
        num_skills,
        {},
    )
    assert shards.manifest.num_train + shards.manifest.num_holdout == shards.manifest.num_rows == num_samples
    assert len(set(ids(shards, "train")) | set(ids(shards, "holdout"))) == num_samples
    assert len(shards.train) == len(shards.holdout) == num_skills
    for skill in tags.skills:
        assert len(shards.train[skill.name]) + len(shards.holdout[skill.name]) == skill.num_samples
    works("verify", out / "T")
    works("verify", out / "S")


@pytest.mark.long
def test_a_real_corpus_goes_the_whole_way(real_corpus: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = real_corpus
    check_the_whole_way(folder, tmp_path, *REAL[name])


@pytest.mark.parametrize("num_skills", [27, 9])
def test_a_generated_corpus_goes_the_whole_way(num_skills: int, tmp_path: Path) -> None:
    records = samples(**{f"skill{number:02d}": 20 + 7 * number for number in range(num_skills)})
    corpus = write_corpus(tmp_path / "corpus", records, num_files=5)
    check_the_whole_way(corpus, tmp_path, "meta.skill", len(records), num_skills)
