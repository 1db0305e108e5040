"""A text never stands in train and in holdout, every skill keeps as much as possible, and every sample is accounted for."""

import json
import resource
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard import taggers
from skillshard.corpus import Corpus, CorpusReading
from skillshard.shards import copies as copies_module
from skillshard.shards import sort, tables
from skillshard.shards import texts as texts_module
from skillshard.shards.manifest import Manifest
from skillshard.shards.read import ShardSet
from skillshard.shards.split import HOLDOUT, TEXTS, TRAIN, Candidate, Order, Split, cut_of, split_of
from skillshard.shards.tagged_rows import TaggedRows
from skillshard.shards.texts import folded, hex_of, text_hash, text_hashes
from skillshard.shards.write import write_shards
from tests.conftest import HERE, lines, tree

# ----------------------------------------------------------------------------------------------- when texts are the same

# Letters with a hard case, composition or white space: final sigma, sharp s, dotted I, iota subscript, ideographic space.
LETTERS = (
    "aAbBzZ09.\0 \t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u3000éÉe\u0301ßẞİ\u0131Σ\u03c3ςΐ\u0345ᾳǰ😀"
    "“\u2013•→\u0338\u2329\u212b\u1100\u1161\u11a8\u0b47\u0b3e\u3099かⒶ漢ǅ\U0001d400\U00011131\U00011127"
)
TEXTS_ = st.text(st.sampled_from(LETTERS), min_size=1, max_size=30).filter(lambda text: not text.isspace())


@given(
    st.lists(TEXTS_ | TEXTS_.map(lambda text: text.encode("ascii", "ignore").decode() or "a"), min_size=1, max_size=8)
)
def test_the_fast_hashes_are_those_of_the_definition(texts: list[str]) -> None:
    texts = [text for text in texts if not text.isspace()] or ["a"]
    assert hex_of(text_hashes([text.encode() for text in texts])) == [text_hash(text) for text in texts]


def test_the_fast_hashes_do_not_depend_on_where_batches_end(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'  A' * (number % 5)} text {number}\n" for number in range(500)]
    monkeypatch.setattr("skillshard.shards.texts._BYTES_AT_ONCE", 64)
    assert hex_of(text_hashes([text.encode() for text in texts])) == [text_hash(text) for text in texts]


def test_every_letter_that_is_taken_for_plain_stays_as_it_is_beside_any_other() -> None:
    plain = [
        chr(code) for code in range(128, 0x10000) if not 0xD800 <= code < 0xE000 and texts_module._is_plain(chr(code))
    ]
    assert len(plain) > 40_000 and set("é“\u2013•→漢") <= set(plain)
    composed = {unicodedata.normalize("NFD", chr(code))[1:2] for code in range(0x11000) if not 0xD800 <= code < 0xE000}
    assert not composed & set(plain), "a letter that can be composed with the one before it"
    for letter in plain:
        assert folded(f"a{letter}a") == f"a{letter}a"


@given(TEXTS_)
def test_composition_case_and_white_space_make_no_difference(text: str) -> None:
    spaced = "\u3000" + "\r\n ".join(text.split()) + "\t"
    for same in (unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text), spaced):
        assert folded(same) == folded(text)
    assert folded("Straße  ÉCOLE") == folded("STRASSE E\u0301cole")


def test_texts_that_differ_in_more_are_no_copies() -> None:
    texts = ["1 2", "12", "1  2 .", "é", "e", "a-b", "a b", "\uff41", "a\u200b", "a"]
    assert len({folded(text) for text in texts}) == len(texts)


# -------------------------------------------------------------------------------------------------- which texts are held out

Members = dict[str, dict[int, tuple[int, int]]]
"""Hash of a text -> skill -> number of samples and bytes."""


def sizes_of(members: Members, num_skills: int, is_held_out: Mapping[str, bool]) -> np.ndarray:
    sizes = np.zeros((num_skills, 2, 3), np.int64)
    for text, of_text in members.items():
        for skill, (num_samples, num_bytes) in of_text.items():
            sizes[skill, HOLDOUT if is_held_out[text] else TRAIN] += [1, num_samples, num_bytes]
    return sizes


def decide(members: Members, num_skills: int, cut: str, *, most: int) -> Split:
    def search(beyond: dict[int, str], order: Order) -> dict[int, list[Candidate]]:
        return {
            skill: [
                Candidate(text, members[text])
                for text in sorted(members, reverse=order == "highest")
                if skill in members[text] and text > after
            ][:most]
            for skill, after in beyond.items()
        }

    by_cut = {text: text < cut for text in members}
    return split_of(sizes_of(members, num_skills, by_cut), search, holds_out=cut != cut_of(0.0))


NUM_SKILLS = 5
MEMBERS = st.dictionaries(
    st.integers(0, 15).map(lambda number: f"{number:x}" + "0" * 31),
    st.dictionaries(st.integers(0, NUM_SKILLS - 1), st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1),
)


@settings(max_examples=500)
@given(MEMBERS, st.sampled_from([0.0, 0.05, 0.25, 0.5, 0.9, 0.999]), st.integers(1, 3))
def test_every_skill_has_something_to_train_on_and_is_measured_where_that_is_possible(
    members: Members, holdout: float, most: int
) -> None:
    cut = cut_of(holdout)
    split = decide(members, NUM_SKILLS, cut, most=most)
    assert split[:3] == decide(members, NUM_SKILLS, cut, most=99)[:3]
    exceptions = {*split.also_held_out, *split.kept_in_train}
    is_held_out = {text: (text < cut) != (text in exceptions) for text in members}

    assert all(text >= cut for text in split.also_held_out) and all(text < cut for text in split.kept_in_train)
    assert split.exceptions == {
        skill: of_skill
        for skill in range(NUM_SKILLS)
        if (of_skill := [text for text in sorted(exceptions) if skill in members[text]])
    }
    assert (split.sizes == sizes_of(members, NUM_SKILLS, is_held_out)).all()
    for skill, sizes in enumerate(split.sizes):
        texts = [text for text in members if skill in members[text]]
        assert bool(texts) == (sizes[TRAIN, TEXTS] > 0)
        if not holdout:
            assert not sizes[HOLDOUT].any()
        elif len(texts) > 1 and sizes[HOLDOUT, TEXTS] == 0:
            assert all(any(split.sizes[other, TRAIN, TEXTS] == 1 for other in members[text]) for text in texts)


def test_without_need_there_is_no_exception() -> None:
    members: Members = {f"{number:x}" + "0" * 31: {0: (1, 1), 1: (2, 2)} for number in range(16)}
    split = decide(members, 2, cut_of(0.25), most=4)
    assert split.also_held_out == split.kept_in_train == [] and split.exceptions == {}


def test_a_skill_gets_its_lowest_text_and_one_whose_texts_all_fall_below_the_cut_keeps_its_highest() -> None:
    low, high = ("1" + "0" * 31, "2" + "0" * 31), ("8" + "0" * 31, "9" + "0" * 31)
    above = decide({text: {0: (1, 1)} for text in high}, 1, cut_of(0.25), most=4)
    assert (above.also_held_out, above.kept_in_train) == ([high[0]], [])
    below = decide({text: {0: (1, 1)} for text in low}, 1, cut_of(0.25), most=4)
    assert (below.also_held_out, below.kept_in_train) == ([], [low[1]])
    single = decide({low[0]: {0: (7, 7)}}, 1, cut_of(0.25), most=4)
    assert (single.also_held_out, single.kept_in_train) == ([], [low[0]])


def test_three_skills_that_share_three_texts_in_pairs_all_train_and_two_are_measured() -> None:
    """No split of three texts gives each of the three skills a text on both sides, so one skill goes without a held-out sample."""
    a, b, c = ("8" + "0" * 31, "9" + "0" * 31, "a" + "0" * 31)
    split = decide(
        {a: {0: (1, 1), 2: (1, 1)}, b: {0: (1, 1), 1: (1, 1)}, c: {1: (1, 1), 2: (1, 1)}}, 3, cut_of(0.1), most=1
    )
    assert (split.sizes[:, TRAIN, TEXTS] >= 1).all()
    assert split.also_held_out == [a] and (split.sizes[:, HOLDOUT, TEXTS] == [1, 0, 1]).all()


# ------------------------------------------------------------------------------------------------------------ the whole way

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
VARIANTS = [str, str.upper, "  {}\n".format, "\u3000{}".format]
ROWS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(WORDS), st.sampled_from(WORDS[:3]), st.sampled_from(range(4))),
    min_size=1,
    max_size=60,
)


def corpus_of(folder: Path, rows: list[tuple[str, str, str, int]]) -> Path:
    records = [
        {"id": f"{number:03d}", "text": VARIANTS[variant](f"{word} {other}"), "meta": {"skill": skill}}
        for number, (skill, word, other, variant) in enumerate(rows)
    ]
    folder.mkdir()
    for part in range(3):
        if records[part * 20 : part * 20 + 20]:
            (folder / f"{part}.jsonl").write_bytes(lines(records[part * 20 : part * 20 + 20]))
    return folder


def by_split(shards: ShardSet) -> dict[str, list[tuple[str, str, str]]]:
    """Return skill, id and folded text of every sample, by split."""
    return {
        name: [(skill, sample.id, folded(sample.text)) for skill, samples in skills.items() for sample in samples]
        for name, skills in (("train", shards.train), ("holdout", shards.holdout))
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=ROWS,
    holdout=st.sampled_from([0.0, 0.02, 0.3, 0.9]),
    copies=st.sampled_from(["keep", "drop"]),
    sizes=st.sampled_from([(1 << 20, 10**6, 16), (64, 5, 1), (300, 1, 2)]),
)
def test_no_text_is_on_both_sides_and_every_sample_is_accounted_for(
    rows: list[Any], holdout: float, copies: Any, sizes: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("holdout")
    corpus = Corpus.open(corpus_of(folder / "corpus", rows))
    tags = taggers.tag_corpus(corpus, taggers.metadata("skill"), folder / "tags", backend=HERE, partition_bytes=700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sort, "SORT_BYTES", sizes[0])
        patch.setattr(tables, "TEXTS_PER_RANGE", sizes[1])
        patch.setattr(tables, "TEXTS_AT_ONCE", sizes[2])
        patch.setattr(copies_module, "COPIES_AT_ONCE", sizes[2])
        write_shards(corpus, tags, folder / "shards", holdout=holdout, copies=copies, shard_bytes=20_000, backend=HERE)
    write_shards(corpus, tags, folder / "again", holdout=holdout, copies=copies, shard_bytes=20_000, backend=HERE)
    assert tree(folder / "shards") == tree(folder / "again"), "the bytes depend on sizes of chunks or of ranges"

    shards = ShardSet.open(folder / "shards")
    assert isinstance(shards.manifest, Manifest)
    assert shards.verify() == []
    samples = by_split(shards)
    train, held_out = ({text for _, _, text in samples[name]} for name in ("train", "holdout"))
    assert not train & held_out
    rule = shards.manifest.split
    exceptions = {*rule.also_held_out, *rule.kept_in_train}
    for texts, is_held_out in ((train, False), (held_out, True)):
        for text in texts:
            assert ((text_hash(text) < rule.cut) != (text_hash(text) in exceptions)) == is_held_out

    texts_of, first_of, num_copies = defaultdict(set), {}, Counter[str]()
    for number, (skill, word, other, _) in enumerate(rows):
        if first_of.setdefault(f"{word} {other}", f"{number:03d}") != f"{number:03d}":
            num_copies[skill] += 1
        if copies == "keep" or first_of[f"{word} {other}"] == f"{number:03d}":
            texts_of[skill].add(f"{word} {other}")
    assert {skill.name: skill.num_copies for skill in shards.manifest.skills} == {
        skill: num_copies[skill] for skill, *_ in rows
    }
    in_shards = Counter(identity for name in samples for _, identity, _ in samples[name])
    assert set(in_shards.values()) == {1}
    lines_aside = [
        json.loads(line)
        for path in sorted((folder / "shards").glob("rejected/*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    dropped = [line["id"] for line in lines_aside]
    assert len(dropped) == (sum(num_copies.values()) if copies == "drop" else 0)
    assert sorted([*in_shards, *dropped]) == [f"{number:03d}" for number in range(len(rows))]
    for line in lines_aside:
        first = first_of[folded(json.loads(line["raw"])["text"])]
        assert line["reason"] == "copy" and first < line["id"]
        assert line["detail"] == f"the text is a copy of that of sample '{first}'"
        assert (
            json.loads((folder / "corpus" / line["file"]).read_text().splitlines()[line["line"] - 1])["id"]
            == line["id"]
        )
    assert set(shards.train) == set(texts_of)
    for skill, texts in texts_of.items():
        if holdout and len(texts) > 1 and skill not in shards.holdout:
            last = [other for other in texts_of if len(texts_of[other] & train) == 1]
            assert all(any(text in texts_of[other] for other in last) for text in texts)


def test_many_small_samples_take_the_memory_that_the_limit_of_a_chunk_counts() -> None:
    """Bytes from orjson keep their first buffer: 50,000 of these objects took 225 MB."""
    before = resident_bytes()
    waiting = sort._Waiting("0" * 32, "pairs", None, False)
    for first in range(0, 200_000, 1000):
        rows = np.arange(first, first + 1000)
        metas = [{"skill": "add", "number": 7} for _ in rows]
        tagged = TaggedRows(rows, 0 * rows, list(map(str, rows.tolist())), ["text"] * len(rows), metas, [], "a.jsonl")
        waiting.add(sort._block(tagged, ["add"], 0, CorpusReading(), with_ids=False))
    assert resident_bytes() - before < waiting.num_bytes < 80_000_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_search_over_several_ranges_of_hashes_passes_over_no_free_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest texts of skill "all" are each the only text of another skill. The next text is free, and lies in the first range."""
    num_taken = tables.TEXTS_AT_ONCE + 1
    texts = sorted((f"text {number}" for number in range(100)), key=text_hash)
    middle = sum(text_hash(text) < f"8{0:031x}" for text in texts)
    assert num_taken < middle, "the free text lies beyond the first range of hashes"
    rows = [("all", text) for text in texts] + [(f"only-{text}", text) for text in texts[:num_taken]]
    (tmp_path / "corpus.jsonl").write_bytes(
        lines([{"id": f"{number}", "text": text, "skill": skill} for number, (skill, text) in enumerate(rows)])
    )
    corpus = Corpus.open(tmp_path / "corpus.jsonl")
    tags = taggers.tag_corpus(corpus, taggers.metadata("skill"), tmp_path / "tags", backend=HERE)
    monkeypatch.setattr(tables, "TEXTS_PER_RANGE", len(rows) // 2 + 1)
    shards = write_shards(corpus, tags, tmp_path / "shards", holdout=1e-9, backend=HERE)
    assert isinstance(shards.manifest, Manifest)
    assert shards.manifest.split.also_held_out == [text_hash(texts[num_taken])]
