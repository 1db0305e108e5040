"""The commands that find skills by embedding, regroup skills and show skills, with good and with bad input."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard import progress, taggers
from skillshard.corpus import Corpus, CorpusReading, FieldMapping, Sample, read_partition
from skillshard.errors import TagsError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.keyed_random import distinct
from skillshard.report.clusters import compare
from skillshard.taggers.clusters import embeddings as taggers_vectors
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.encoder import Encoder, VectorsOf
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works
from tests.conftest import HERE, SHARED, lines, tree
from tests.topics import WORDS, minilm, topic_corpus, topic_samples

BY = ("--workers", 1)
CUT = ("--partition-size", "9kB")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a corpus C, its clusters E and its topics M."""
    folder = tmp_path_factory.mktemp("made")
    topic_corpus(folder / "C", 240)
    works("tag", "embedding", folder / "C", *BY, *CUT, "--skills", 5, "--out", folder / "E")
    works("tag", "metadata", folder / "C", *CUT, "--field", "topic", "--workers", 1, "--out", folder / "M")
    return folder


# ------------------------------------------------------------------------------------------------------------ what is found


def test_clusters_are_the_topics_and_are_named_by_their_words(root: Path) -> None:
    measured = compare(Tags.open(root / "E"), "meta.topic")
    assert measured.nmi > 0.95
    for skill, counts in zip(measured.found, measured.counts, strict=True):
        topic = measured.true[int(counts.argmax())]
        assert set(skill.split("-")) <= set(WORDS[topic].split())


@pytest.mark.parametrize("takes_kept_embeddings", [False, True])
def test_euclidean_clusters_are_means_and_score_by_squared_distances(
    takes_kept_embeddings: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sample smaller than the corpus, so that steps over all rows run too.
    monkeypatch.setattr(kmeans, "MIN_SAMPLE", 60)
    monkeypatch.setattr(kmeans, "POINTS_PER_CLUSTER", 1)
    embeddings = ("--from", root / "E") if takes_kept_embeddings else ()
    command = ("tag", "embedding", root / "C", *BY, *CUT, "--skills", 5, "--distance", "euclidean", *embeddings)
    works(*command, "--out", tmp_path / "T")
    model, tags = taggers.SavedClusters.open(tmp_path / "T"), Tags.open(tmp_path / "T")
    assert not model.clusters.spherical
    assert compare(tags, "meta.topic").nmi > 0.95
    rows = [row for part in range(len(tags.manifest.parts)) for row in tags.rows(part)]
    vectors = np.concatenate([np.load(path) for path in sorted((tmp_path / "T" / "embeddings").glob("*.npy"))])
    for number, name in enumerate(model.names):
        members = [place for place, row in enumerate(rows) if row.skill == name]
        points = vectors[members].astype(np.float64)
        np.testing.assert_allclose(model.clusters.centroids[number], points.mean(axis=0), atol=1e-3)
        distances = ((points - model.clusters.centroids[number]) ** 2).sum(axis=1)
        np.testing.assert_allclose([rows[place].score for place in members], distances, atol=1e-5)
    # New samples of saved clusters meet the same distance.
    works("tag", "reuse", root / "C", "--clusters", tmp_path / "T", *BY, *CUT, "--out", tmp_path / "R")
    again = Tags.open(tmp_path / "R")
    assert [row.skill for part in range(len(again.manifest.parts)) for row in again.rows(part)] == [
        row.skill for row in rows
    ]


def test_a_distance_that_does_not_exist_is_one_sentence(root: Path, tmp_path: Path) -> None:
    sentence = fails("tag", "embedding", root / "C", "--skills", 5, "--distance", "euclid", "--out", tmp_path / "T")
    assert sentence == "--distance euclid is unknown (did you mean 'euclidean'?): give 'cosine' or 'euclidean'."


def test_a_number_of_skills_that_is_asked_for_is_found_and_its_curve_kept(root: Path, tmp_path: Path) -> None:
    works(
        "tag", "embedding", root / "C", *BY, *CUT, "--skills", "auto", "--skills-range", "2:12", "--out", tmp_path / "E"
    )
    model = taggers.SavedClusters.open(tmp_path / "E")
    assert len(model.names) == 5
    assert model.manifest.tried[0].num_clusters == 2
    printed = works("inspect", tmp_path / "E", "--pictures", tmp_path / "pictures")
    assert "number of skills by simplified silhouette: 2: 0." in printed and "5 has the highest score." in printed
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"sizes.png", "map.png", "choice.png"}


def test_kept_clusters_tag_new_samples_as_they_would_the_old(root: Path, tmp_path: Path) -> None:
    topic_corpus(tmp_path / "new", 100, seed=9)
    works("tag", "reuse", tmp_path / "new", *BY, "--clusters", root / "E", "--out", tmp_path / "N")
    assert compare(Tags.open(tmp_path / "N"), "topic").nmi > 0.9
    works("tag", "reuse", root / "C", *BY, *CUT, "--clusters", root / "E" / "model", "--out", tmp_path / "again")
    parts = {name: data for name, data in tree(root / "E").items() if name.startswith("parts/")}
    assert {name: data for name, data in tree(tmp_path / "again").items() if name.startswith("parts/")} == parts
    works("tag", "reuse", tmp_path / "new", *BY, "--clusters", tmp_path / "N", "--out", tmp_path / "N2")
    assert tree(tmp_path / "N2") == tree(tmp_path / "N")


def test_inspect_shows_name_terms_size_nearest_samples_and_agreement(root: Path, tmp_path: Path) -> None:
    printed = works("inspect", root / "E", "--against", "meta.topic", "--pictures", tmp_path)
    for cluster in taggers.SavedClusters.open(root / "E").manifest.clusters:
        assert f"{cluster.name}: fitted on {cluster.num_samples:,} samples" in printed
        shares = ", ".join(f"{term.term} {100 * term.share:.0f} %" for term in cluster.terms)
        assert f"terms: {shares}" in printed
        assert len(cluster.nearest) == 5 and all(sample.id in printed for sample in cluster.nearest)
    assert "agreement with meta.topic (5 skills, 5 values, 240 samples): NMI " in printed
    assert {path.name for path in tmp_path.iterdir()} == {"sizes.png", "map.png", "agreement.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_agreement_is_the_same_from_kept_fields_from_the_corpus_and_from_tags(root: Path) -> None:
    ways = [("--against", "meta.topic"), ("--against", "topic", "--corpus", root / "C"), ("--against", root / "M")]
    figures = [works("inspect", root / "E", *way).splitlines()[-1].partition(": NMI")[2] for way in ways]
    assert figures[0] == figures[1] == figures[2] and figures[0]


def test_tagged_samples_beside_set_aside_ones_keep_their_rows(tmp_path: Path) -> None:
    records = topic_samples(90)
    bad = [b"{\n", lines([{"id": "e", "text": " "}]), lines([{**records[3], "text": "again"}])]
    (tmp_path / "a.jsonl").write_bytes(
        b"".join(line for start in range(3) for line in (lines(records[start::3]), bad[start]))
    )
    works(
        "tag",
        "embedding",
        tmp_path / "a.jsonl",
        *BY,
        "--skills",
        5,
        "--out",
        tmp_path / "E",
        "--on-bad-sample",
        "set-aside",
        "--max-set-aside",
        "1",
    )
    tags = Tags.open(tmp_path / "E")
    assert tags.manifest.set_aside == {"malformed-json": 1, "empty-text": 1, "duplicate-id": 1}
    vectors = np.load(tmp_path / "E" / "embeddings" / "000000.npy")
    rows = list(tags.rows(0))
    assert len(vectors) == len(rows) == 93
    assert [bool(np.isnan(vector).all()) for vector in vectors] == [
        row.reason in ("malformed-json", "empty-text") for row in rows
    ]
    assert compare(tags, "meta.topic").nmi > 0.8
    works("verify", tmp_path / "E")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model/centroids.npy", "model/lexical.idf.npy", "embeddings/000001.npy"])
@pytest.mark.parametrize(("damage", "says"), [(flip, "has digest"), (Path.unlink, "is missing")])
def test_verify_finds_damage_beside_the_tags(
    root: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], says: str
) -> None:
    for place, data in tree(root / "E").items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(data)
    damage(tmp_path / name)
    sentence = fails("verify", tmp_path)
    assert str(tmp_path / name) in sentence and says in sentence
    if name.startswith("model"):
        assert says in fails("tag", "reuse", root / "C", *BY, "--clusters", tmp_path, "--out", tmp_path / "N")


# --------------------------------------------------------------------------------------------------------------- regrouping


def skills_of(place: Path) -> dict[str, int]:
    return {skill.name: skill.num_samples for skill in Tags.open(place).manifest.skills}


def test_tags_are_crossed_and_small_pairs_go_to_the_nearest(root: Path, tmp_path: Path) -> None:
    works("regroup", root / "M", root / "E", "--out", tmp_path / "all")
    pairs = list(zip(*([row for p in range(3) for row in Tags.open(root / t).rows(p)] for t in "ME"), strict=True))
    crossed = {f"{first.skill}/{second.skill}" for first, second in pairs}
    assert set(skills_of(tmp_path / "all")) == crossed
    works("regroup", root / "M", root / "E", "--min-share", 0.05, "--out", tmp_path / "large")
    sizes = skills_of(tmp_path / "large")
    assert set(sizes) <= crossed and min(sizes.values()) >= 0.05 * 240 and sum(sizes.values()) == 240
    for folder in ("all", "large"):
        works("verify", tmp_path / folder)
        works("inspect", tmp_path / folder)
        works("shard", root / "C", "--tags", tmp_path / folder, "--out", tmp_path / f"S-{folder}", "--workers", 1)


def test_a_map_renames_and_merges_and_what_it_does_not_name_keeps_its_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"law": "text", "music": "text"}')
    works("regroup", root / "M", "--map", tmp_path / "map.json", "--out", tmp_path / "T")
    before = skills_of(root / "M")
    expected = {name: num for name, num in before.items() if name not in ("law", "music")}
    assert skills_of(tmp_path / "T") == expected | {"text": before["law"] + before["music"]}
    (tmp_path / "map.json").write_text('{"law": "text", "*": "other"}')
    works("regroup", root / "M", "--map", tmp_path / "map.json", "--out", tmp_path / "T2")
    assert skills_of(tmp_path / "T2") == {"other": 240 - before["law"], "text": before["law"]}


def test_rare_skills_go_to_a_named_rest_or_to_the_nearest_graph_row(root: Path, tmp_path: Path) -> None:
    before = skills_of(root / "M")
    small = {name for name, num in before.items() if num < 0.15 * 240}
    assert 0 < len(small) < 4
    works("regroup", root / "M", "--min-share", 0.15, "--rest", "other", "--out", tmp_path / "R")
    assert set(skills_of(tmp_path / "R")) == {*before, "other"} - small
    names = sorted(before)
    SkillGraph(names, names, np.eye(5) + 0.9 * np.eye(5, k=1)).save(tmp_path / "graph.json")
    works("regroup", root / "M", "--min-share", 0.15, "--graph", tmp_path / "graph.json", "--out", tmp_path / "G")
    assert set(skills_of(tmp_path / "G")) <= set(before) and min(skills_of(tmp_path / "G").values()) >= 36


def test_set_aside_rows_stay_set_aside_when_tags_are_regrouped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines(topic_samples(30)) + b"{\n" + lines([{"id": "x", "text": "no topic", "meta": {}}])
    )
    aside = ("--on-bad-sample", "set-aside", "--max-set-aside", "1")
    works("tag", "embedding", tmp_path / "a.jsonl", *BY, "--skills", 3, *aside, "--out", tmp_path / "E")
    works("tag", "metadata", tmp_path / "a.jsonl", "--field", "topic", *aside, "--workers", 1, "--out", tmp_path / "M")
    works("regroup", tmp_path / "E", tmp_path / "M", "--out", tmp_path / "X")
    assert Tags.open(tmp_path / "X").manifest.set_aside == {"malformed-json": 1, "missing-field": 1}
    assert (tmp_path / "X" / "rejected" / "000000.jsonl").read_bytes() == (
        tmp_path / "M" / "rejected" / "000000.jsonl"
    ).read_bytes()
    works("verify", tmp_path / "X")
    works("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "X", "--out", tmp_path / "S", "--workers", 1)


def test_regrouped_tags_keep_the_metadata_to_compare_with(root: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps(dict.fromkeys(list(skills_of(root / "E"))[:2], "merged")))
    works("regroup", root / "E", "--map", tmp_path / "map.json", "--out", tmp_path / "R")
    works("regroup", root / "M", tmp_path / "R", "--out", tmp_path / "crossed")
    for place in ("R", "crossed"):
        assert "agreement with meta.topic" in works("inspect", tmp_path / place, "--against", "meta.topic")
        works("verify", tmp_path / place)
    assert compare(Tags.open(tmp_path / "crossed"), "meta.topic").purity == 1.0


# ---------------------------------------------------------------------------------------------------------- kept embeddings


def test_kept_embeddings_give_the_clusters_that_encoding_again_would_give(root: Path, tmp_path: Path) -> None:
    again = ("tag", "embedding", root / "C", *BY, *CUT, "--skills", 3)
    works(*again, "--out", tmp_path / "encoded")
    works(*again, "--from", root / "E", "--out", tmp_path / "kept")
    encoded, reused = tree(tmp_path / "encoded"), tree(tmp_path / "kept")
    assert {name: data for name, data in reused.items() if name != "tags.json"} == {
        name: data for name, data in encoded.items() if name != "tags.json"
    }
    works("verify", tmp_path / "kept")
    works("tag", "reuse", root / "C", *BY, *CUT, "--clusters", tmp_path / "kept", "--out", tmp_path / "reused")
    works(*again, "--from", tmp_path / "kept", "--out", tmp_path / "twice")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--from", "M"), "has no embeddings beside its tags"),
        (
            ("--from", "E", "--partition-size", "1MB"),
            "of other partitions. Give the same corpus and --partition-size 9000",
        ),
        (("--from", "E", "--max-sample-bytes", "1MB"), "were made with other fields or limits of a sample"),
        (
            ("--from", "E", "--encoder", "lexical"),
            "--encoder is of the encoder, and --from takes embeddings that exist",
        ),
        (("--from", "C"), "holds no finished tags"),
    ],
)
def test_embeddings_of_another_corpus_or_cut_are_refused_in_a_sentence(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], says: str
) -> None:
    monkeypatch.chdir(root)
    cut = () if "--partition-size" in options else CUT
    command = ("tag", "embedding", "C", *BY, *cut, *options, "--skills", 3, "--out", tmp_path / "X")
    outcome = skillshard(*command)
    assert outcome.code != 0 and says in " ".join(outcome.err.replace("│", " ").split())


def test_embeddings_of_rows_that_changed_are_refused(root: Path, tmp_path: Path) -> None:
    topic_corpus(tmp_path / "C", 60)
    works("tag", "embedding", tmp_path / "C", *BY, "--skills", 3, "--out", tmp_path / "E")
    (part,) = list((tmp_path / "C").glob("*.jsonl"))[:1]
    data = part.read_bytes()
    part.write_bytes(data.replace(b"the", b"THE", 1))
    sentence = fails(
        "tag", "embedding", tmp_path / "C", *BY, "--skills", 4, "--from", tmp_path / "E", "--out", tmp_path / "X"
    )
    assert "changed since" in sentence and part.name in sentence and "leave out --from" in sentence


def test_a_range_of_numbers_is_tried_at_once_on_kept_embeddings(root: Path, tmp_path: Path) -> None:
    before = tree(root / "E")
    printed = works("inspect", root / "E", "--skills-range", "2:12", "--pictures", tmp_path)
    rows = [line.split() for line in printed.splitlines()]
    table = [row[0] for row in rows if len(row) == 6 and row[3] == row[5] == "%"]
    assert table == [str(number) for number in kmeans.tried_numbers(2, 12)]
    assert "5 has the highest score." in printed
    assert (tmp_path / "choice.png").read_bytes().startswith(b"\x89PNG")
    assert tree(root / "E") == before
    (tmp_path / "file").write_text("")
    for tags, options, says in [
        ("M", ("--skills-range", "2:4"), "has no embeddings to cluster, which --skills-range needs"),
        (
            "E",
            ("--skills-range", "5:2"),
            "--skills-range goes from 5 to 2: give 2 or more, and the smaller number first",
        ),
        ("E", ("--skills-range", "1:4"), "--skills-range goes from 1 to 4: give 2 or more"),
        ("E", ("--skills-range", "90000:90001"), "--skills-range 90000:90001 is more than the"),
        ("E", ("--pictures", tmp_path / "file"), f"--pictures: {tmp_path}/file is a file: give a directory"),
        ("E", ("--pictures", tmp_path / "file" / "inside"), f"--pictures: {tmp_path}/file is a file: give a directory"),
    ]:
        outcome = skillshard("inspect", root / tags, *options)
        assert outcome.code == 1 and says in outcome.sentence
        assert outcome.out == "", "the error comes before any output"


def test_a_range_is_tried_by_the_distance_of_the_tags(root: Path, tmp_path: Path) -> None:
    options = ("--from", root / "E", "--distance", "euclidean")
    works("tag", "embedding", root / "C", *BY, *CUT, "--skills", 3, *options, "--out", tmp_path / "three")
    works(
        *("tag", "embedding", root / "C", *BY, *CUT, "--skills", "auto", "--skills-range", "2:4", *options),
        *("--out", tmp_path / "auto"),
    )
    tried = json.loads((tmp_path / "auto" / "model" / "model.json").read_text())["tried"]
    printed = works("inspect", tmp_path / "three", "--skills-range", "2:4")
    scores = [row[1] for row in map(str.split, printed.splitlines()) if len(row) == 6 and row[3] == row[5] == "%"]
    assert scores == [f"{number['score']:.3f}" for number in tried]
    assert printed != works("inspect", root / "E", "--skills-range", "2:4")


@pytest.mark.parametrize("content", ["{}", "[]", '{"parts": 3}', '{"parts": [{}]}'])
def test_a_list_of_embeddings_that_was_edited_is_a_sentence(root: Path, tmp_path: Path, content: str) -> None:
    copied = tmp_path / "E"
    shutil.copytree(root / "E", copied)
    (copied / "embeddings" / "embeddings.json").write_text(content)
    command = ("tag", "embedding", root / "C", *BY, *CUT, "--skills", 3, "--from", copied, "--out", tmp_path / "X")
    for sentence in (fails(*command), fails("verify", copied)):
        assert "embeddings.json does not list the embeddings of the parts: damaged or edited." in sentence


def test_more_skills_than_samples_are_refused_before_kept_embeddings_are_read(root: Path, tmp_path: Path) -> None:
    command = (
        "tag",
        "embedding",
        root / "C",
        *BY,
        *CUT,
        "--skills",
        241,
        "--from",
        root / "E",
        "--out",
        tmp_path / "X",
    )
    assert "--skills 241 is more than the 240 samples of the corpus: give at most 240." in fails(*command)


def test_the_end_of_the_range_is_said(root: Path, tmp_path: Path) -> None:
    options = ("--skills", "auto", "--skills-range", "2:4", "--from", root / "E")
    printed = works("tag", "embedding", root / "C", *BY, *CUT, *options, "--out", tmp_path / "E")
    assert "The score still rises at 4, the end of the range: try larger numbers too, such as from 4 to 16." in printed
    assert "The score still rises at 4" in works("inspect", tmp_path / "E")


# ---------------------------------------------------------------------------------------------------------- older versions


def test_clusters_of_version_1_are_shown_and_their_lexical_encoder_is_refused(root: Path, tmp_path: Path) -> None:
    for place, data in tree(root / "E").items():
        (tmp_path / "old" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / place).write_bytes(data)
    place = tmp_path / "old" / "model" / "model.json"
    model = json.loads(place.read_text())
    model["schema"] = "skillshard/clusters/1"
    del model["encoder"]["arguments"]["version"]
    for cluster in model["clusters"]:
        del cluster["has_topic"]
        cluster["terms"] = [term["term"] for term in cluster["terms"]]
    place.write_text(json.dumps(model))
    printed = works("inspect", tmp_path / "old")
    assert f"terms: {', '.join(model['clusters'][0]['terms'])}" in printed
    works("verify", tmp_path / "old")
    sentence = fails("tag", "reuse", root / "C", *BY, "--clusters", tmp_path / "old", "--out", tmp_path / "N")
    assert "another version of the lexical encoder (version 1, and this skillshard has version 2)" in sentence


# ---------------------------------------------------------------------------------------------------------------- bad input


def corpus_of(folder: Path, texts: Sequence[str]) -> Path:
    (folder / "a.jsonl").write_bytes(lines([{"id": str(number), "text": text} for number, text in enumerate(texts)]))
    return folder / "a.jsonl"


SAME = ["one text that stands here again and again"] * 9
UNLIKE = ["alpha beta", "gamma delta", "epsilon zeta"]


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        (UNLIKE, ("--skills", 2), "0 of their words stand in two texts or more, and 2 are needed"),
        (["coffee"] * 9, ("--skills", 2), "1 of their words stand in two texts or more"),
        (UNLIKE, ("--skills", 4), "--skills 4 is more than the 3 samples"),  # before any text is encoded
        (
            [f"common words and {number} more" for number in range(6)],
            ("--skills", 7),
            "--skills 7 is more than the 6 samples",
        ),
        (SAME, ("--skills", 2), "--skills 2: all 9 samples are the same to the encoder, so nothing can be told apart"),
        (SAME[:1], ("--skills", 2), "--skills 2 is more than the 1 sample of the corpus: nothing can be told apart."),
        (
            SAME + ["another text of other words"] * 3,
            ("--skills", 3),
            "--skills 3 is more than the 2 different samples of 12",
        ),
        (SAME, ("--skills", "auto"), "--skills auto: all 9 samples are the same to the encoder"),
        (
            [*SAME, "another text of other words", "another text of other words"],
            ("--skills", "auto", "--skills-range", "3:5"),
            "--skills-range 3:5 is more than the 2 different samples of 11",
        ),
        (SAME, ("--skills", 1), "--skills 1 leaves nothing to tell apart: give 2 or more, or 'auto'"),
        (SAME, ("--skills", -2), "--skills -2 leaves nothing to tell apart"),
        (SAME, ("--skills", "auto", "--skills-range", "1:5"), "--skills-range goes from 1 to 5: give 2 or more"),
        (SAME, ("--skills", 3, "--balance", 0.7), "--balance 0.7: give the least share of a skill"),
        ([*SAME, ""], ("--skills", 2), "a.jsonl line 10: the text in 'text' is empty or only white space"),
        (SAME, ("--skills", 2, "--encoder", "/no/such/model"), "--encoder /no/such/model: no such directory"),
    ],
)
def test_what_cannot_be_clustered_is_one_sentence(
    tmp_path: Path, texts: list[str], options: tuple[object, ...], says: str
) -> None:
    sentence = fails("tag", "embedding", corpus_of(tmp_path, texts), *BY, *options, "--out", tmp_path / "E")
    assert says in sentence
    assert not (tmp_path / "E" / "tags.json").exists() and not (tmp_path / "E" / "model").exists()


def test_two_different_texts_make_two_skills(tmp_path: Path) -> None:
    works(
        "tag",
        "embedding",
        corpus_of(tmp_path, SAME + ["another text of other words"] * 3),
        *BY,
        "--skills",
        2,
        "--out",
        tmp_path / "E",
    )
    assert sorted(skills_of(tmp_path / "E").values()) == [3, 9]


class Broken:
    """An encoder that gives NaN for a single text."""

    name = "broken"
    dim = 4
    num_gpus = 0.0

    @property
    def arguments(self) -> dict[str, object]:
        return {}

    def encode(self, texts: Sequence[str]) -> VectorsOf:
        vectors = np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]
        vectors[[text == "bad" for text in texts]] = np.nan
        return vectors


def test_an_encoder_that_gives_nan_is_named_with_the_sample(tmp_path: Path) -> None:
    corpus = Corpus.open(corpus_of(tmp_path, ["good", "fine!", "bad", "better"]))
    with pytest.raises(
        TagsError,
        match=r"a.jsonl: broken gave numbers that are not finite for 1 of 4 samples.*id '2'.*`dtype='float32'`",
    ):
        taggers.tag_corpus(corpus, taggers.embedding(Broken(), skills=2), tmp_path / "E", backend=HERE)


def test_a_partition_of_many_texts_reports_its_progress_while_it_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus.open(corpus_of(tmp_path, [f"text {number}" for number in range(10)]))
    monkeypatch.setattr(taggers_vectors, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr("skillshard.progress.SECONDS_BETWEEN", 0.0)
    shares: list[float] = []
    with progress.sent_to(shares.append):
        taggers_vectors.encode_partition(
            corpus.partitions()[0], Broken(), CorpusReading(), 0, 10, str(tmp_path / "e.npy")
        )
    assert shares == [0.4, 0.8]


def test_one_partition_is_encoded_by_all_processes_to_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taggers_vectors, "ROWS_AT_ONCE", 16)
    bad = lines([{"id": "e", "text": " "}])
    records = topic_samples(90)
    (tmp_path / "a.jsonl").write_bytes(lines(records[:40]) + bad + lines(records[40:]))

    def tagged(name: str) -> dict[str, bytes]:
        tagger = taggers.embedding(taggers.lexical(), skills=5)
        corpus = Corpus.open(tmp_path / "a.jsonl")
        taggers.tag_corpus(corpus, tagger, tmp_path / name, backend=HERE, on_bad_sample="set-aside", max_set_aside=1.0)
        return tree(tmp_path / name)

    whole = tagged("whole")
    # The pieces of three processes, done by one: a test process is not a place for three others.
    pieces = taggers_vectors.pieces_of([91], 3)
    assert len(pieces[0]) == 3
    monkeypatch.setattr(taggers_vectors, "pieces_of", lambda num_rows, processes: pieces)
    assert tagged("cut") == whole


@given(num_rows=st.lists(st.integers(0, 9000), min_size=1, max_size=8), processes=st.integers(1, 20))
def test_pieces_cover_each_partition_in_whole_blocks(num_rows: list[int], processes: int) -> None:
    pieces = taggers_vectors.pieces_of(num_rows, processes)
    for num, bounds in zip(num_rows, pieces, strict=True):
        assert [row for first, end in bounds for row in range(first, end)] == list(range(num))
        assert all(first % taggers_vectors.ROWS_AT_ONCE == 0 for first, _ in bounds)
    assert sum(len(bounds) - 1 for bounds in pieces) <= processes


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("M",), "nothing says how to regroup these tags"),
        (("M", "E", "M"), "3 directories of tags were given"),
        (("M", "--min-share", 0.2), "nothing tells which skill is nearest. Give --rest NAME"),
        (("M", "--min-share", 2), "--min-share 2.0: give a share from 0 to below 1"),
        (("M", "--min-share", 0, "--rest", "other"), "--rest other takes the skills below --min-share, which is 0"),
        (("M", "--map", "nowhere.json"), "--map nowhere.json: no such file"),
        (("M", "--map", "list.json"), "is not a JSON object of names"),
        (("M", "--map", "wrong.json"), "names unknown skills: 'lau' (did you mean 'law'?)"),
        (("M", "--map", "empty.json"), "gives 'law' an empty name"),
        (("C", "--map", "wrong.json"), "holds no finished tags"),
        (("M", "other"), "are not tags of the same rows"),
    ],
)
def test_what_cannot_be_regrouped_is_one_sentence(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...], says: str
) -> None:
    for name in "CEM":
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.chdir(tmp_path)
    for name, value in (("list", ["law"]), ("wrong", {"lau": "x"}), ("empty", {"law": " "})):
        Path(f"{name}.json").write_text(json.dumps(value))
    if command == ("M", "other"):
        works("tag", "metadata", "C", "--field", "topic", "--out", "other", "--workers", 1)
    assert says in fails("regroup", *command, "--out", "X", "--workers", 1)
    assert not Path("X", "tags.json").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("embedding",), "Missing option"),
        (("embedding", "--skills", "many"), "'many': give a number, or 'auto'"),
        (("embedding", "--skills", "auto", "--skills-range", "2-9"), "such as 2:64"),
        (("embedding", "--skills", 5, "--field", "topic"), "--field"),
        (("embedding", "--skills", 5, "--device", "cuda"), "the lexical encoder has none"),
        (("embedding", "--skills", 5, "--min-share", 0.1), "--min-share"),
        (("metadata", "--field", "topic", "--encoder", "lexical"), "--encoder"),
        (("reuse", "--clusters", "E", "--skills", 5), "--skills"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], says: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    method, *others = options
    outcome = skillshard("tag", method, root / "C", *others, "--out", root / "never")
    assert outcome.code == 2 and says in outcome.err and not (root / "never").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--against", "meta.tpic"), "field 'meta.tpic' is not kept beside"),
        (("--against", "meta.tpic"), "(did you mean 'topic'?). The tags keep these fields: number, topic"),
        (("--against", "topic", "--corpus", "/tmp/nowhere-at-all"), "no such file or directory"),
    ],
)
def test_a_field_that_is_not_there_is_one_sentence(root: Path, options: tuple[str, ...], says: str) -> None:
    assert says in fails("inspect", root / "E", *options)


def test_tags_without_kept_fields_name_the_ways_to_compare(root: Path) -> None:
    assert "Name the corpus with --corpus, or give other tags" in fails("inspect", root / "M", "--against", "topic")


# ------------------------------------------------------------------------------------------------- sentence-transformers


@pytest.fixture(scope="module")
def model() -> str:
    return minilm()


def test_a_sentence_transformers_model_encodes_as_it_does_by_itself(model: str) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [record["text"] for record in topic_samples(40)] + ["short", "one two " * 300]
    ours = taggers.sentence_encoder(model, device="cpu", batch_size=7).encode(texts)
    bare = SentenceTransformer(model, device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(ours, bare, atol=1e-5)


def test_a_long_text_is_its_first_window_or_the_mean_of_all(model: str) -> None:
    long = " ".join(WORDS["law"].split() * 3 + WORDS["space"].split() * 3)
    of = {
        windows: taggers.sentence_encoder(model, device="cpu", max_length=24, windows=windows)
        for windows in ("first", "mean")
    }
    law, space = of["first"].encode([" ".join(WORDS[topic].split()) for topic in ("law", "space")])
    first, mean = of["first"].encode([long])[0], of["mean"].encode([long])[0]
    assert first @ law > 0.8 > 0.5 > first @ space
    assert mean @ law > 0.4 and mean @ space > 0.4 and np.linalg.norm(mean) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(of["mean"].encode(["short"]), of["first"].encode(["short"]), atol=1e-6)


def test_a_model_of_other_dimensions_weights_or_length_than_the_kept_centroids_is_refused(
    root: Path, model: str, tmp_path: Path
) -> None:
    def encoder(max_length: int) -> Encoder:
        return taggers.sentence_encoder(model, device="cpu", max_length=max_length)

    with pytest.raises(TagsError, match=r"and .* gives 384\. Give the encoder of the centroids, lexical"):
        taggers.kept_clusters(taggers.SavedClusters.open(root / "E"), encoder(16))
    options = ("--encoder", model, "--max-length", 16, "--device", "cpu")
    works("tag", "embedding", root / "C", *BY, "--skills", 3, *options, "--out", tmp_path / "S")
    works("tag", "reuse", root / "C", *BY, "--clusters", tmp_path / "S", "--out", tmp_path / "N")
    assert skills_of(tmp_path / "N") == skills_of(tmp_path / "S")
    with pytest.raises(TagsError, match=r"with max_length 16, and this encoder has 20\. Give the same value"):
        taggers.kept_clusters(taggers.SavedClusters.open(tmp_path / "S"), encoder(20))
    reuse = ("tag", "reuse", root / "C", *BY, "--out", tmp_path / "N2")
    assert "have 384 dimensions, and were made with" in fails(
        *reuse, "--clusters", tmp_path / "S", "--encoder", "lexical"
    )
    outcome = skillshard(*reuse, "--clusters", root / "E", "--encoder", model)
    assert outcome.code == 2 and "these clusters are of the lexical encoder" in outcome.err


def test_clusters_that_are_not_there_cannot_be_used_again(root: Path, tmp_path: Path) -> None:
    sentence = fails("tag", "reuse", root / "C", *BY, "--clusters", "/no/such/tags", "--out", tmp_path / "N")
    assert "/no/such/tags holds no saved clusters" in sentence


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "cuda"), "sees 0 GPUs on this machine. Use a machine with the device, or give --device cpu."),
        (("--device", "cuda:1", "--ray-address", "auto"), "--device cuda:1: a worker on Ray sees only the GPU"),
        (("--device", "abacus"), "--device abacus: give 'auto', 'cpu', 'cuda' or 'cuda:N'."),
        (("--dtype", "int4"), "--dtype int4: give one of float32, bfloat16, float16"),
        (("--windows", "last"), "--windows last: give 'first' or 'mean'"),
        (("--max-length", 100_000), "takes from 3 to 256 tokens"),
    ],
)
def test_what_a_model_cannot_do_is_one_sentence(
    root: Path, model: str, tmp_path: Path, options: tuple[object, ...], says: str
) -> None:
    import torch

    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = ("tag", "embedding", root / "C", "--skills", 3, "--encoder", model)
    assert says in fails(*command, *options, "--out", tmp_path / "E")


def test_a_directory_that_is_no_model_is_one_sentence(root: Path, tmp_path: Path) -> None:
    sentence = fails("tag", "embedding", root / "C", *BY, "--skills", 3, "--encoder", tmp_path, "--out", tmp_path / "E")
    assert f"--encoder {tmp_path} cannot be loaded: " in sentence and "Give 'lexical'" in sentence


def test_a_name_that_is_not_here_is_asked_for_on_the_hub_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers

    def unreachable(model: str, *, local_files_only: bool = False, **_: object) -> None:
        raise OSError("not in the cache" if local_files_only else "the hub does not answer\nat all")

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", unreachable)
    with (
        pytest.warns(UserWarning, match="nobody/nothing is not on this machine. The Hugging Face hub is asked"),
        pytest.raises(TagsError, match=r"`model='nobody/nothing'` cannot be loaded: the hub does not answer\. Give"),
    ):
        taggers.sentence_encoder("nobody/nothing", device="cpu")


# -------------------------------------------------------------------------------------------------------------- real corpora


def test_a_part_of_a_real_corpus_is_split_into_its_categories(real_corpus: tuple[str, Path], tmp_path: Path) -> None:
    """benchmarks/clusters.py measures more rows. The first test of this file is the generated twin."""
    name, folder = real_corpus
    field = {"sources": "source", "instructions": "task"}[name]
    file = next(iter(sorted(folder.glob("*-00000.jsonl"))))
    rows = [orjson.loads(line) for line in file.read_bytes().splitlines()[:1500]]
    (tmp_path / "part.jsonl").write_bytes(lines(rows))
    skills = len({row["meta"][field] for row in rows})
    works("tag", "embedding", tmp_path / "part.jsonl", *BY, "--skills", skills, "--out", tmp_path / "E")
    assert compare(Tags.open(tmp_path / "E"), f"meta.{field}").nmi > 0.7


@pytest.mark.parametrize(
    ("name", "text", "category"), [("banking77", "text", "category"), ("stackoverflow", "title", "tag")]
)
def test_short_questions_are_clustered_at_least_as_well_as_by_plain_tfidf(
    name: str, text: str, category: str, tmp_path: Path
) -> None:
    """The generated twin is `test_clusters_follow_the_topic_and_not_the_habits_of_writing`."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import normalized_mutual_info_score

    folder = SHARED / "corpora" / name
    if not folder.is_dir():
        pytest.skip(f"the real corpus {folder} is not on this machine; the generated twin of this test runs everywhere")
    rows = [
        row
        for part in Corpus.open(folder, fields=FieldMapping(id_field=None, text_field=text)).partitions()
        for row in read_partition(part, CorpusReading({"": FieldMapping(id_field=None, text_field=text)}))
        if isinstance(row, Sample)
    ]
    chosen = [rows[index] for index in distinct(1000, len(rows), "plain", 0)]
    records = [{"id": row.id, "text": row.text, "meta": {"category": row.meta[category]}} for row in chosen]
    (tmp_path / "part.jsonl").write_bytes(lines(records))
    skills = len({row.meta[category] for row in chosen})
    works("tag", "embedding", tmp_path / "part.jsonl", *BY, "--skills", skills, "--out", tmp_path / "E")
    weighted = TfidfVectorizer(stop_words="english").fit_transform([row.text for row in chosen])
    vectors = TruncatedSVD(100, random_state=0).fit_transform(weighted)
    plain = KMeans(skills, n_init=10, random_state=0).fit_predict(vectors)
    of_plain = normalized_mutual_info_score([row.meta[category] for row in chosen], plain)
    assert compare(Tags.open(tmp_path / "E"), "meta.category").nmi > of_plain - 0.01
