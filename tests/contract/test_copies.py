"""The treatment of copies and of skills with few texts by `shard`, and the printed lines."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from skillshard.corpus import Corpus, PartitionReader, Sample
from skillshard.shards.manifest import Manifest
from skillshard.shards.read import ShardSet
from skillshard.shards.texts import folded, text_hash
from tests.commands import skillshard, works
from tests.conftest import lines


def crawl(folder: Path, num: int = 1250) -> Path:
    """Write rows of a crawl. Every fourth text stands twice, with another id, skill, case and white space."""
    records: list[dict[str, Any]] = []
    for number in range(num):
        is_copy = number % 4 == 3
        text = f"Page {number - is_copy} says what it says."
        records.append(
            {
                "id": f"page-{number:04d}",
                "text": text.upper().replace(" ", " \n") if is_copy else text,
                "meta": {"skill": ("code", "law", "web")[number % 3]},
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(2):
        (folder / f"{part}.jsonl").write_bytes(lines(records[part * num // 2 : (part + 1) * num // 2]))
    return folder


def tagged(corpus: Path, folder: Path) -> Path:
    works(
        "tag",
        "metadata",
        corpus,
        "--field",
        "skill",
        "--out",
        folder / "tags",
        "--partition-size",
        "9kB",
        "--workers",
        1,
    )
    return folder / "tags"


def shard(corpus: Path, tags: Path, out: Path, *options: object) -> str:
    return " ".join(works("shard", corpus, "--tags", tags, "--out", out, "--workers", 1, *options).split())


def texts_of(shards: ShardSet, split: str) -> set[str]:
    return {folded(sample.text) for samples in getattr(shards, split).values() for sample in samples}


def test_of_a_crawl_with_copies_no_held_out_text_stands_in_train_and_the_copies_are_counted(tmp_path: Path) -> None:
    corpus = crawl(tmp_path / "corpus")
    tags = tagged(corpus, tmp_path)
    printed = shard(corpus, tags, tmp_path / "S", "--holdout", 0.1)
    shards = ShardSet.open(tmp_path / "S")
    held_out = texts_of(shards, "holdout")
    assert 70 < len(held_out) < 120
    assert not held_out & texts_of(shards, "train")
    copies = Counter(("code", "law", "web")[number % 3] for number in range(3, 1250, 4))
    for skill, num in copies.items():
        assert re.search(rf"{skill} \d+ \d+ {num} ", printed), printed
    assert "312 samples are copies: the same text stands earlier in the corpus" in printed
    assert (
        "They are kept, each text on one side of the split; 'skillshard shard --copies drop' leaves them out."
        in printed
    )
    inspected = " ".join(works("inspect", tmp_path / "S").split())
    assert inspected.startswith(printed) and "Beside each shard lie keys" in inspected.removeprefix(printed)


def test_dropped_copies_are_set_aside_with_the_id_of_the_first_and_counted(tmp_path: Path) -> None:
    corpus = crawl(tmp_path / "corpus")
    tags = tagged(corpus, tmp_path)
    printed = shard(corpus, tags, tmp_path / "S", "--holdout", 0.1, "--copies", "drop")
    assert "312 set aside (copy 312)" in printed and "They are set aside in rejected/." in printed
    shards = ShardSet.open(tmp_path / "S")
    assert isinstance(shards.manifest, Manifest)
    assert shards.manifest.num_train + shards.manifest.num_holdout == 1250 - 312
    rejected = [
        json.loads(line)
        for path in sorted((tmp_path / "S" / "rejected").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert [row["id"] for row in rejected] == [f"page-{number:04d}" for number in range(3, 1250, 4)]
    for row in rejected:
        first = f"page-{int(row['id'][-4:]) - 1:04d}"
        assert row["reason"] == "copy" and row["detail"] == f"the text is a copy of that of sample '{first}'"
    assert works("verify", tmp_path / "S")


def test_a_corpus_without_copies_says_nothing_of_them(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "0.jsonl").write_bytes(
        lines([{"id": str(number), "text": f"text {number}", "meta": {"skill": "add"}} for number in range(40)])
    )
    printed = shard(corpus, tagged(corpus, tmp_path), tmp_path / "S", "--copies", "drop")
    assert "is a copy" not in printed and "are copies" not in printed and "0 set aside;" in printed
    assert "add 39 1 0 " in printed
    assert "1 more text is in holdout, so that skills without a held-out text have one" in printed


def test_a_skill_that_cannot_be_measured_is_named_with_what_follows_and_what_helps(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    records = [{"id": str(number), "text": f"text {number}", "meta": {"skill": "add"}} for number in range(60)]
    records += [{"id": "t0", "text": "alone", "meta": {"skill": "tiny"}}]
    records += [{"id": f"r{number}", "text": "again", "meta": {"skill": "repeated"}} for number in range(5)]
    (corpus / "0.jsonl").write_bytes(lines(records))
    tags = tagged(corpus, tmp_path)
    printed = shard(corpus, tags, tmp_path / "S")
    assert (
        "Without a held-out sample, so SKILL-IT and other policies that read losses cannot measure them: repeated, tiny."
        in printed
    )
    command = re.search(r"'skillshard (regroup T --min-share 0.01 --rest other --out R)'", printed)
    assert command is not None
    arguments = (
        command[1].replace(" T ", f" {tags} ").replace(" R", f" {tmp_path / 'R'}").replace("0.01", "0.2").split()
    )
    works(*arguments)
    assert "Without a held-out sample" not in shard(corpus, tmp_path / "R", tmp_path / "again")
    assert "No sample is held out" in shard(corpus, tags, tmp_path / "none", "--holdout", 0)


def test_a_skill_that_loses_much_of_its_train_to_copies_of_a_held_out_text_is_named(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    texts = sorted((f"text {number}" for number in range(20)), key=text_hash)
    records = [{"id": f"r{number}", "text": text, "meta": {"skill": "a"}} for number, text in enumerate(texts)]
    records += [{"id": f"c{number}", "text": texts[0], "meta": {"skill": "a"}} for number in range(20)]
    (corpus / "0.jsonl").write_bytes(lines(records))
    tags = tagged(corpus, tmp_path)
    sentence = (
        "much more than the holdout 0.01 of these skills: a 52 %. 'skillshard shard --copies drop' prevents this."
    )
    assert sentence in shard(corpus, tags, tmp_path / "S")
    assert "take much more" not in shard(corpus, tags, tmp_path / "dropped", "--copies", "drop")


def test_a_skill_whose_samples_are_all_copies_of_others_is_named(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    records = [
        {"id": f"{skill}{number}", "text": f"text {number}", "meta": {"skill": skill}}
        for skill in "ab"
        for number in range(30)
    ]
    (corpus / "0.jsonl").write_bytes(lines(records))
    printed = shard(corpus, tagged(corpus, tmp_path), tmp_path / "S", "--copies", "drop")
    assert "Without a training sample, so left out of every mix: b." in printed
    assert ShardSet.open(tmp_path / "S").skills == ("a",)


def test_an_unknown_word_for_copies_is_refused(tmp_path: Path) -> None:
    corpus = crawl(tmp_path / "corpus", 20)
    tags = tagged(corpus, tmp_path)
    outcome = skillshard("shard", corpus, "--tags", tags, "--out", tmp_path / "S", "--copies", "some")
    assert outcome.code == 2 and "--copies" in outcome.err and "keep" in outcome.err and "drop" in outcome.err


@pytest.mark.long
def test_copies_of_a_real_corpus_are_counted_and_stand_on_one_side(
    real_corpus: tuple[str, Path], tmp_path: Path
) -> None:
    name, corpus = real_corpus
    field = {"instructions": "meta.category", "sources": "meta.source"}[name]
    works(
        "tag", "metadata", corpus, "--field", field, "--out", tmp_path / "T", "--partition-size", "8MB", "--workers", 2
    )
    works("shard", corpus, "--tags", tmp_path / "T", "--out", tmp_path / "S", "--holdout", 0.02, "--workers", 2)
    seen: dict[str, Counter[str]] = {}
    for partition in Corpus.open(corpus).partitions(partition_bytes=8_000_000):
        for row in PartitionReader(partition):
            assert isinstance(row, Sample)
            seen.setdefault(folded(row.text), Counter())[row.id] += 1
    num_copies = sum(sum(ids.values()) - 1 for ids in seen.values())
    shards = ShardSet.open(tmp_path / "S")
    assert isinstance(shards.manifest, Manifest)
    assert shards.manifest.num_copies == num_copies == {"instructions": 0, "sources": 0}[name]
    assert not texts_of(shards, "train") & texts_of(shards, "holdout")
    assert set(shards.holdout) == set(shards.train)
