"""Tags that come from elsewhere: a file of labels, a function of the user, a trained classifier."""

import csv
import json
import random
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard import canonical, storage, taggers
from skillshard.corpus import Corpus, CorpusReading, FieldMapping, Sample
from skillshard.errors import CorpusError, StorageError, TagsError
from skillshard.execution import Backend
from skillshard.taggers.function import _imported
from skillshard.taggers.labels import LabelTable, _merged, read_labels
from skillshard.taggers.tagger import Finder, Tag, Tagger
from skillshard.tags import Tags
from tests.commands import fails, works
from tests.conftest import HERE, samples, tree, write_corpus
from tests.tokenizers_trained import byte_tokenizer
from tests.topics import WORDS, topic_corpus, topic_samples

TOPICS = list(WORDS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return topic_corpus(tmp_path_factory.mktemp("topics") / "corpus", 120)


def tag(corpus: Path, tagger: Tagger | Finder, out: Path, backend: Backend = HERE, **more: Any) -> Tags:
    return taggers.tag_corpus(Corpus.open(corpus), tagger, out, partition_bytes=4_000, backend=backend, **more)


def rows_of(tags: Tags) -> list[tuple[Any, ...]]:
    return [tuple(row) for part in range(len(tags.manifest.parts)) for row in tags.rows(part)]


def expected_labels() -> dict[str, str]:
    return {record["id"]: record["meta"]["topic"] for record in topic_samples(120)}


def write_labels(place: Path, labels: list[tuple[str, Any]], names: tuple[str, str] = ("id", "skill")) -> Path:
    if place.name.endswith(".parquet"):
        pq.write_table(pa.table(dict(zip(names, zip(*labels, strict=True), strict=True))), place, row_group_size=7)
    elif place.suffix == ".csv":
        with place.open("w", newline="") as file:
            csv.writer(file).writerows([names, *labels])
    else:
        place.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in labels))
    return place


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.parquet"])
@pytest.mark.parametrize("workers", [1, 2])
def test_labels_in_any_format_and_order_give_their_skills(
    name: str, workers: int, corpus: Path, tmp_path: Path
) -> None:
    labels = list(expected_labels().items())
    random.Random(1).shuffle(labels)
    place = write_labels(tmp_path / name, [*labels, ("nobody", "unused"), labels[0]])
    tags = tag(corpus, taggers.labels(place), tmp_path / "T", Backend(workers=workers))
    assert {row[0]: row[1] for row in rows_of(tags)} == expected_labels()
    assert {row[2] for row in rows_of(tags)} == {1.0}


def test_integer_labels_and_other_names_of_the_fields_are_taken(corpus: Path, tmp_path: Path) -> None:
    numbers = {identity: TOPICS.index(topic) for identity, topic in expected_labels().items()}
    place = write_labels(tmp_path / "labels.csv", list(numbers.items()), ("doc", "class"))
    tags = tag(corpus, taggers.labels(place, label_id="doc", label="class"), tmp_path / "T")
    assert {row[0]: row[1] for row in rows_of(tags)} == {identity: str(number) for identity, number in numbers.items()}


def test_a_sample_without_a_label_stops_or_is_set_aside(corpus: Path, tmp_path: Path) -> None:
    labels = list(expected_labels().items())
    place = write_labels(tmp_path / "labels.jsonl", labels[:-2])
    with pytest.raises(
        CorpusError, match=r"line \d+: \S+labels.jsonl has no skill for the id '[^']+'. Give the sample a skill"
    ):
        tag(corpus, taggers.labels(place), tmp_path / "T")
    tags = tag(corpus, taggers.labels(place), tmp_path / "U", on_bad_sample="set-aside", max_set_aside=1.0)
    assert tags.manifest.set_aside == {"no-label": 2} and tags.manifest.num_tagged == 118


def test_labels_with_another_delimiter_are_one_sentence(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("id;skill\nadd-1;x\n")
    with pytest.raises(TagsError) as error:
        tag(corpus, taggers.labels(tmp_path / "labels.csv"), tmp_path / "T")
    assert "'id;skill', which looks like several names. A label is an id and a skill, and a CSV" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("a", "x"), ("b", "y"), ("a", "y")], r"gives an id two skills, 'x' and 'y' \(1 such id\)"),
        ([("a", "x"), ("b", "")], r"labels.jsonl line 2 is no label: .*empty"),
        ([("a", "x"), ("b", None)], r"labels.jsonl line 2 is no label: .*'skill'"),
        ([(None, "x")], r"labels.jsonl line 1 is no label: .*'id'"),
        ([("a", [1, 2])], r"labels.jsonl line 1 is no label: .*'skill'"),
    ],
)
def test_a_label_that_is_none_is_one_sentence(
    rows: list[tuple[Any, Any]], sentence: str, corpus: Path, tmp_path: Path
) -> None:
    place = write_labels(tmp_path / "labels.jsonl", rows)
    with pytest.raises(TagsError, match=sentence):
        tag(corpus, taggers.labels(place), tmp_path / "T")


def test_missing_labels_and_labels_without_rows_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises((CorpusError, StorageError), match=r"labels.csv: no such file"):
        taggers.labels(tmp_path / "labels.csv")
    (tmp_path / "labels.jsonl").write_text("\n")
    with pytest.raises(TagsError, match=r"labels.jsonl holds no labels"):
        tag(corpus, taggers.labels(tmp_path / "labels.jsonl"), tmp_path / "T")


@settings(deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=4).filter(str.strip), st.sampled_from("xyz"), max_size=30),
    st.integers(1, 4),
)
def test_the_table_of_labels_is_a_dictionary(labels: dict[str, str], num_parts: int) -> None:
    labels = {identity: skill for identity, skill in labels.items() if identity.isprintable()}
    if not labels:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = []
        for part in range(num_parts):
            rows = list(labels.items())[part::num_parts]
            place = folder / f"labels-{part}.jsonl"
            place.write_text("".join(json.dumps({"id": key, "skill": skill}) + "\n" for key, skill in rows))
            finder = taggers.labels(place)
            reading = CorpusReading({"": FieldMapping(text="{skill}")})
            for partition in Corpus.open(place).partitions():
                parts.append(str(folder / f"{part}-{partition.index}.npz"))
                read_labels(partition, reading, parts[-1])
            assert finder.name == "labels"
        table, names = _merged(parts, name)
        for column, file in (("hash", "hashes"), ("rest", "rests"), ("skill", "skills")):
            storage.write_array(folder / f"{file}.npy", np.ascontiguousarray(table[column]))
        storage.write_bytes(folder / "names.json", canonical.to_json(names))
        tagger = LabelTable(name, "labels")
        wanted = [*labels, "an id that no label has"]
        outcomes = tagger.tag([Sample(identity, "text", {}) for identity in wanted])
    assert [outcome.skill if isinstance(outcome, Tag) else None for outcome in outcomes] == [*labels.values(), None]


# --- functions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module into the current directory, and returns the name of the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(code: str) -> str:
        name = f"by_others_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        return name

    return write


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_tags_with_names_scores_and_nothing(
    workers: int, corpus: Path, tmp_path: Path, module: Callable[[str], str]
) -> None:
    name = module(
        """
        def skill_of(sample):
            if sample.meta["number"] % 10 == 9:
                return None
            return sample.meta["topic"] if sample.meta["number"] % 2 else (sample.meta["topic"], 0.25)
        """
    )
    tags = tag(
        corpus,
        taggers.function(f"{name}:skill_of"),
        tmp_path / "T",
        Backend(workers=workers),
        on_bad_sample="set-aside",
        max_set_aside=1.0,
    )
    topics = expected_labels()
    assert tags.manifest.set_aside == {"no-label": 12}
    assert Counter(row[2] for row in rows_of(tags)) == {None: 12, 0.25: 60, 1.0: 48}
    assert all(row[1] in (None, topics[row[0]]) for row in rows_of(tags))


def test_a_changed_function_is_another_tagger(
    corpus: Path, tmp_path: Path, module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module("def skill_of(sample): return 'a'")
    before = taggers.function(f"{name}:skill_of").arguments
    module("def skill_of(sample): return 'bb'")
    assert taggers.function(f"{name}:skill_of").arguments != before


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def skill_of(sample): return 3", r"returned 3 for the sample '\S+': return the name of the skill"),
        ("def skill_of(sample): return ''", r"returned '' for the sample"),
        ("def skill_of(sample): return ' '", r"returned ' ' for the sample"),
        ("def skill_of(sample): return (' ', 0.5)", r"returned \(' ', 0.5\) for the sample"),
        ("def skill_of(sample): return ('a', 'b')", r"returned \('a', 'b'\) for the sample"),
        ("def skill_of(sample): return sample.meta['absent']", r"failed for the sample '\S+': KeyError: 'absent'"),
    ],
)
def test_a_function_that_fails_or_returns_no_skill_is_one_sentence(
    code: str, sentence: str, corpus: Path, tmp_path: Path, module: Callable[[str], str]
) -> None:
    name = module(code)
    _imported.cache_clear()
    sys.modules.pop(name, None)
    with pytest.raises(TagsError, match=sentence):
        tag(corpus, taggers.function(f"{name}:skill_of"), tmp_path / "T")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("json", r"'json' names no function: give MODULE:NAME"),
        ("json:", r"'json:' names no function"),
        ("no_such_module_here:f", r"'no_such_module_here' cannot be imported: ModuleNotFoundError"),
        ("json:dump_s", r"'json' has no function 'dump_s' \(did you mean 'dumps'\?\)"),
    ],
)
def test_a_function_that_is_not_there_is_one_sentence(target: str, sentence: str) -> None:
    with pytest.raises(TagsError, match=sentence):
        taggers.function(target)


# --- classifiers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny classifier of the five topics on other texts than the corpus."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    records = topic_samples(400, seed=7)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer((record["text"] for record in records), vocab_size=500),
        eos_token="<eos>",
        pad_token="<eos>",
    )
    tokenizer.model_max_length = 128
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        id2label=dict(enumerate(TOPICS)),
        label2id={topic: number for number, topic in enumerate(TOPICS)},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    labels = torch.tensor([TOPICS.index(record["meta"]["topic"]) for record in records])
    inputs = tokenizer([record["text"] for record in records], return_tensors="pt", padding=True)
    for step in range(60):
        rows = torch.arange(step * 40, step * 40 + 40) % len(records)
        loss = model(
            input_ids=inputs["input_ids"][rows], attention_mask=inputs["attention_mask"][rows], labels=labels[rows]
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_tags_by_its_most_probable_class(corpus: Path, classifier_model: Path, tmp_path: Path) -> None:
    tags = tag(corpus, taggers.classifier(str(classifier_model), device="cpu"), tmp_path / "T")
    rows = rows_of(tags)
    topics = expected_labels()
    assert sum(row[1] == topics[row[0]] for row in rows) / len(rows) > 0.95
    assert all(0.2 <= row[2] <= 1 for row in rows)  # the most probable of five classes


@pytest.mark.long
def test_two_processes_of_a_classifier_give_the_bytes_of_one(
    corpus: Path, classifier_model: Path, tmp_path: Path
) -> None:
    classifier = taggers.classifier(str(classifier_model), device="cpu")
    folders = [tag(corpus, classifier, tmp_path / str(workers), Backend(workers=workers)).folder for workers in (1, 2)]
    assert tree(folders[0]) == tree(folders[1])


def test_a_batch_of_one_text_gives_the_same_classes(corpus: Path, classifier_model: Path) -> None:
    records = topic_samples(40, seed=3)
    batch = [Sample(record["id"], record["text"], record["meta"]) for record in records]
    single, many = (taggers.classifier(str(classifier_model), device="cpu", batch_size=size) for size in (1, 16))
    assert isinstance(single, Tagger) and isinstance(many, Tagger)
    pairs = list(zip(single.tag(batch), many.tag(batch), strict=True))
    assert all(left.skill == right.skill for left, right in pairs if isinstance(left, Tag) and isinstance(right, Tag))
    assert all(abs(left.score - right.score) < 1e-4 for left, right in pairs)  # type: ignore[union-attr]


def test_a_model_that_is_no_trained_classifier_is_refused(classifier_model: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    with pytest.raises(TagsError, match="no such directory"):
        taggers.classifier(str(tmp_path / "absent"))
    with pytest.raises(TagsError, match="cannot be loaded as a sequence classifier"):
        taggers.classifier(str(tmp_path))
    config = BertConfig.from_pretrained(classifier_model)
    BertModel(config).save_pretrained(tmp_path / "headless")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "headless" / name).write_bytes((classifier_model / name).read_bytes())
    with pytest.raises(TagsError, match=r"has no weights for classifier.bias, so the classes would be random"):
        taggers.classifier(str(tmp_path / "headless"))
    with pytest.raises(TagsError, match=r"`max_length=900`: \S+ takes from 1 to 128 tokens"):
        taggers.classifier(str(classifier_model), max_length=900)


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_verbs_tag_a_corpus(tmp_path: Path, module: Callable[[str], str]) -> None:
    corpus = write_corpus(tmp_path / "corpus", samples(add=6, carry=4))
    labels = [(record["id"], record["meta"]["skill"]) for record in samples(add=6, carry=4)]
    place = write_labels(tmp_path / "labels.csv", labels)
    name = module("def skill_of(sample): return sample.meta['skill']")
    works("tag", "from", str(place), str(corpus), "--out", str(tmp_path / "F"))
    works("tag", "function", f"{name}:skill_of", str(corpus), "--out", str(tmp_path / "G"))
    works("tag", "metadata", str(corpus), "--field", "meta.skill", "--out", str(tmp_path / "M"))
    skills = [Tags.open(tmp_path / folder).manifest.skills for folder in "FGM"]
    assert skills[0] == skills[1] == skills[2]
    assert "no such file" in fails("tag", "from", "absent.csv", str(corpus), "--out", str(tmp_path / "X"))
