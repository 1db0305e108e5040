"""schemas/*.json describe every file that is written."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from skillshard import schemas, taggers
from skillshard.corpus import Corpus
from skillshard.export import export_shards
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.weights_file import weigh
from skillshard.policies import skill_it, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import write_shards
from tests.conftest import HERE, REPOSITORY, lines, samples
from tests.tokenizers_trained import EOS, byte_tokenizer


def check(name: str, value: Any) -> None:
    schema = json.loads((REPOSITORY / "schemas" / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(value, schema)


def test_the_committed_schemas_are_those_of_the_models() -> None:
    committed = {path.stem: json.loads(path.read_text()) for path in (REPOSITORY / "schemas").glob("*.json")}
    assert committed == schemas.schemas()


def test_everything_written_fits_its_schema(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    bad = b'{"id": "x", "text": ""}\n{"id": "y"\n'
    (tmp_path / "corpus" / "0.jsonl").write_bytes(lines(samples(add=60, carry=40)) + bad)
    corpus = Corpus.open(tmp_path / "corpus")
    tags = taggers.tag_corpus(
        corpus, taggers.metadata("skill"), tmp_path / "tags", on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE
    )
    write_shards(corpus, tags, tmp_path / "shards", holdout=0.1, backend=HERE)
    shards = ShardSet.open(tmp_path / "shards")
    graph = SkillGraph.chain(shards.skills)
    graph.save(tmp_path / "graph.json")
    mixer = Mixer(shards, skill_it(graph, eta=0.5), ledger=tmp_path / "run", round_draws=50, step_draws=10)
    mixer.report(0, {"add": 2.0, "carry": 3.0})
    mixer.report(5, {"add": 1.0, "carry": 2.0})
    mixer.round(2)
    state = mixer.state_dict(step=5)
    mixer.load_state_dict(state)
    counts = write_tokens(shards, byte_tokenizer(["add carry"]), tmp_path / "tokens", backend=HERE)
    in_tokens = Mixer(
        shards, skill_it(graph, eta=0.5), ledger=tmp_path / "in-tokens", round_draws=50, unit="tokens", tokens=counts
    )
    packed = PackedTokens(in_tokens, counts, block_tokens=64, separator=EOS, step_blocks=2)

    check("weights-1", json.loads(weigh(shards, skill_it(graph, eta=0.5, mode="static")).to_bytes()))
    export_shards(shards, tmp_path / "exported", format="jsonl", workers=1)
    check("export-1", json.loads((tmp_path / "exported" / ".export.json").read_text()))
    check("tags-2", json.loads((tmp_path / "tags" / "tags.json").read_text()))
    tagger = taggers.embedding(taggers.lexical(), skills="auto", skills_range=(2, 4))
    taggers.tag_corpus(
        corpus, tagger, tmp_path / "clusters", on_bad_sample="set-aside", max_set_aside=1.0, backend=HERE
    )
    check("tags-2", json.loads((tmp_path / "clusters" / "tags.json").read_text()))
    check("clusters-2", json.loads((tmp_path / "clusters" / "model" / "model.json").read_text()))
    check("manifest-3", json.loads((tmp_path / "shards" / "manifest.json").read_text()))
    check("graph-2", json.loads((tmp_path / "graph.json").read_text()))
    check("run-5", json.loads((tmp_path / "run" / "run.json").read_text()))
    check("run-5", json.loads((tmp_path / "in-tokens" / "run.json").read_text()))
    Mixer.continue_from(
        tmp_path / "run", draw=50, shards=shards, policy=skill_it(graph, eta=0.5), ledger=tmp_path / "continued"
    )
    check("handover-1", json.loads((tmp_path / "continued" / "handover.json").read_text()))
    check("run-5", json.loads((tmp_path / "continued" / "run.json").read_text()))
    Mixer.continue_from(
        tmp_path / "run",
        draw=40,
        skip=[(44, 4, "the loss rose")],
        shards=shards,
        policy=skill_it(graph, eta=0.5),
        ledger=tmp_path / "skipping",
    )
    check("handover-2", json.loads((tmp_path / "skipping" / "handover.json").read_text()))
    check("run-6", json.loads((tmp_path / "skipping" / "run.json").read_text()))
    Mixer.continue_from(
        tmp_path / "skipping",
        draw=40,
        shards=shards,
        policy=skill_it(graph, eta=0.5),
        ledger=tmp_path / "without-draws",
    )
    check("handover-6", json.loads((tmp_path / "without-draws" / "handover.json").read_text()))
    check("mixer-2", state)
    check("tokens-2", json.loads((tmp_path / "tokens" / "tokens.json").read_text()))
    check("packed-5", packed.state_dict(step=0))
    whole = PackedTokens(
        Mixer(shards, stratified(), ledger=tmp_path / "best-fit", round_draws=50),
        counts,
        block_tokens=64,
        separator=EOS,
        packing="best-fit",
    )
    whole.batch(0, 1)
    check("packed-5", whole.state_at(1).model_dump(by_alias=True))
    for folder, name in (
        ("best-fit/blocks", "blocks-1"),
        ("run/generations/00000000/observations", "observation-3"),
        ("run/generations/00000000/rounds", "round-2"),
        ("run/generations", "generation-1"),
    ):
        files = sorted((tmp_path / folder).glob("*.json"))
        assert files
        for path in files:
            check(name, json.loads(path.read_text()))
    rejected = [
        line
        for folder in ("tags", "shards")
        for line in (tmp_path / folder / "rejected" / "000000.jsonl").read_bytes().splitlines()
    ]
    assert len(rejected) == 4
    for line in rejected:
        check("rejection-4", orjson.loads(line))
    members = [shards.train["add"].open_shard(0).member(row) for row in range(5)]
    for member in members:
        check("sample-1", orjson.loads(member))


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPOSITORY / "schemas").glob("*.json")))
def test_a_schema_refuses_what_it_does_not_describe(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(name, {"schema": "skillshard/other/9"})
