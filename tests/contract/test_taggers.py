"""Every tagger keeps the same promises. A new tagger is one row."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.execution import Backend
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards
from skillshard.taggers.clusters.embeddings import pieces_of
from skillshard.taggers.tagger import Finder, Tagger
from skillshard.tags import Tags
from tests.commands import works
from tests.conftest import HERE, lines, tree
from tests.topics import minilm, topic_corpus, topic_samples

Build = Callable[[Path], Tagger | Finder]
"""A function that makes a tagger from the directory with tags by embedding."""

TAGGERS: dict[str, Build] = {
    "metadata": lambda base: taggers.metadata("topic"),
    "lexical clusters": lambda base: taggers.embedding(taggers.lexical(), skills=5, seed=1),
    "lexical clusters fitted on few": lambda base: taggers.embedding(taggers.lexical(sample_size=50), skills=4),
    "balanced clusters": lambda base: taggers.embedding(taggers.lexical(), skills=7, min_share=0.05),
    "euclidean clusters": lambda base: taggers.embedding(taggers.lexical(), skills=5, distance="euclidean"),
    "a number of clusters that is found": lambda base: taggers.embedding(
        taggers.lexical(), skills="auto", skills_range=(2, 9)
    ),
    "kept clusters": lambda base: taggers.kept_clusters(
        taggers.SavedClusters.open(base), taggers.kept_lexical(taggers.SavedClusters.open(base))
    ),
    "kept embeddings": lambda base: taggers.kept_embeddings(base, skills=3),
    "clusters of a sentence-transformers model": lambda base: taggers.embedding(
        taggers.sentence_encoder(minilm(), device="cpu", max_length=32), skills=5
    ),
}
NAMES = pytest.mark.parametrize("name", TAGGERS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return topic_corpus(tmp_path_factory.mktemp("topics") / "corpus", 240)


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "T"
    tag(corpus, TAGGERS["lexical clusters"](folder), folder)
    return folder


@pytest.fixture(scope="module")
def expected(corpus: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes the tags of an undisturbed single process."""
    folder = tmp_path_factory.mktemp("expected")

    def tags_of(name: str) -> Path:
        tag(corpus, TAGGERS[name](base), folder / name)
        return folder / name

    return tags_of


def tag(corpus: Path, tagger: Tagger | Finder, out: Path, backend: Backend = HERE, **more: Any) -> Tags:
    return taggers.tag_corpus(Corpus.open(corpus), tagger, out, partition_bytes=9_000, backend=backend, **more)


@NAMES
def test_every_sample_gets_a_skill_and_the_tags_can_be_sharded(
    name: str, corpus: Path, expected: Callable[[str], Path], tmp_path: Path
) -> None:
    tags = Tags.open(expected(name))
    assert len(tags.manifest.parts) > 3
    assert tags.manifest.num_tagged == tags.manifest.num_rows == 240
    rows = [row for part in range(len(tags.manifest.parts)) for row in tags.rows(part)]
    assert {row.skill for row in rows} == {skill.name for skill in tags.manifest.skills}
    assert all(row.score is not None and 0 <= row.score <= 2 for row in rows)
    works("verify", tags.folder)
    write_shards(Corpus.open(corpus), tags, tmp_path / "S", backend=HERE)
    assert ShardSet.open(tmp_path / "S").skills == tuple(skill.name for skill in tags.manifest.skills)


@pytest.mark.parametrize("name", ["metadata", "lexical clusters fitted on few"])
def test_a_pool_gives_the_bytes_of_one_process(
    name: str, corpus: Path, base: Path, expected: Callable[[str], Path], tmp_path: Path
) -> None:
    tag(corpus, TAGGERS[name](base), tmp_path / "T", Backend(workers=2))
    assert tree(tmp_path / "T") == tree(expected(name))


def test_a_pool_encodes_a_single_partition_to_the_bytes_of_one_process(tmp_path: Path) -> None:
    """The corpus has more than two blocks of rows, so that each process encodes a piece."""
    samples = topic_samples(2500)
    (tmp_path / "a.jsonl").write_bytes(lines(samples))
    assert len(pieces_of([len(samples)], 2)[0]) == 2
    for name, workers in (("one", 1), ("two", 2)):
        tagger = taggers.embedding(taggers.lexical(sample_size=200), skills=2)
        taggers.tag_corpus(Corpus.open(tmp_path / "a.jsonl"), tagger, tmp_path / name, backend=Backend(workers=workers))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


class Killed(BaseException):
    """An end of a run that nothing catches, as by a kill."""


def after(num_tasks: int) -> Any:
    """Return an `on_stage` that ends the run after a number of finished tasks."""
    left = [num_tasks]

    def done(task: object, record: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return lambda name, num: done


@NAMES
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.lists(st.integers(0, 60), min_size=1, max_size=3))
def test_a_run_that_ends_anywhere_goes_on_with_the_same_bytes(
    name: str,
    ends: list[int],
    corpus: Path,
    base: Path,
    expected: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    out = tmp_path_factory.mktemp("killed") / "T"
    for end in sorted(ends):
        try:
            tag(corpus, TAGGERS[name](base), out, on_stage=after(end))
        except Killed:
            assert not (out / "tags.json").exists()
    tag(corpus, TAGGERS[name](base), out)
    assert tree(out) == tree(expected(name))


@NAMES
def test_it_can_be_pickled_and_says_what_it_was_built_with(name: str, base: Path) -> None:
    import json

    tagger = TAGGERS[name](base)
    assert pickle.loads(pickle.dumps(tagger)).arguments == tagger.arguments
    assert json.loads(json.dumps(tagger.arguments)) == tagger.arguments
    assert isinstance(tagger.name, str)
