"""A chosen set has the stream, the tokens, the losses and the graph of the whole set without the other skills."""

import json
import pickle
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.errors import PolicyError, ShardError, TokensError, choose_names
from skillshard.evaluation import losses_per_skill
from skillshard.graph.skill_graph import SkillGraph, read_graph
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import Policy, fixed, proportional, skill_it, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from tests.commands import fails, skillshard, works
from tests.conftest import HERE
from tests.tokenizers_trained import EOS, byte_tokenizer

SKILLS = ("add", "carry", "negate")
choices = st.lists(st.sampled_from(SKILLS), min_size=1, max_size=3, unique=True)


def stream(shards: ShardSet, policy: Policy, num: int, **arguments: object) -> list[tuple[str, str]]:
    """Return skill and id of the first draws."""
    with tempfile.TemporaryDirectory() as folder:
        mixer = Mixer(shards, policy, ledger=folder, round_draws=64, seed=7, **arguments)  # type: ignore[arg-type]
        return list(zip(mixer.batch(0, num).skill, mixer.ids(0, num), strict=True))


@settings(deadline=None, max_examples=12)
@given(names=choices, weights=st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_the_stream_of_a_chosen_set_is_that_of_the_whole_set_with_weight_0_for_the_others(
    shards: ShardSet, names: list[str], weights: list[int]
) -> None:
    given_weights = {name: float(weight) for name, weight in zip(SKILLS, weights, strict=True) if name in names}
    chosen = stream(shards.choose(names), fixed(given_weights), 200)
    whole = stream(shards, fixed({name: given_weights.get(name, 0.0) for name in SKILLS}), 200)
    assert chosen == whole


@settings(deadline=None, max_examples=6)
@given(names=choices)
def test_each_skill_comes_in_the_order_that_it_has_in_the_whole_set_whatever_the_policies(
    shards: ShardSet, names: list[str]
) -> None:
    orders = []
    for mixed in (stream(shards.choose(names), stratified(), 900), stream(shards, proportional(), 900)):
        order = defaultdict(list)
        for skill, name in mixed:
            order[skill].append(name)
        orders.append(order)
    assert set(orders[0]) == set(names)
    for skill in names:
        both = min(len(orders[0][skill]), len(orders[1][skill]))
        assert both and orders[0][skill][:both] == orders[1][skill][:both]


def test_a_chosen_set_has_the_order_of_the_set_and_the_digest_of_the_set_and_the_names(shards: ShardSet) -> None:
    chosen = shards.choose(["negate", "add"])
    assert chosen.skills == ("add", "negate") and tuple(chosen.holdout) == ("add", "negate")
    assert chosen.digest == shards.choose(["add", "negate"]).digest
    assert len({chosen.digest, shards.digest, shards.choose(["add"]).digest, shards.choose(["negate"]).digest}) == 4
    assert chosen.choose(["add"]).digest == shards.choose(["add"]).digest
    assert shards.choose(SKILLS[::-1]).digest == shards.digest, "a choice of all skills is the set itself"
    again = pickle.loads(pickle.dumps(chosen))
    assert (again.digest, again.skills) == (chosen.digest, chosen.skills)
    assert [sample.id for sample in again.holdout["add"]] == [sample.id for sample in shards.holdout["add"]]
    assert chosen.verify() == []


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["add", "carri"],
            r"'carri' \(did you mean 'carry'\?\) is not among the 3 skills of .*shards: 'add', 'carry', 'negate'",
        ),
        ([], "no name is chosen from the 3 skills of"),
        (["add", "add"], "'add' is chosen twice or more"),
        ("add", r"the chosen skills are the text 'add': give a list of names, such as \['add'\]"),
    ],
)
def test_names_that_cannot_be_chosen_are_refused_in_one_sentence(
    shards: ShardSet, names: list[str], sentence: str
) -> None:
    with pytest.raises(ShardError, match=sentence):
        shards.choose(names)
    with pytest.raises(ShardError, match="'negate' is not among the 2 skills"):
        shards.choose(["add", "carry"]).choose(["negate"])


def test_shards_of_other_skills_are_not_opened(shards: ShardSet, tmp_path: Path) -> None:
    copy = shutil.copytree(shards.root, tmp_path / "copy")
    for split in ("train", "holdout"):
        shutil.rmtree(copy / split / "carry")
        shutil.rmtree(copy / split / "negate")
    only = ShardSet.open(copy).choose(["add"])
    assert {skill for skill, _ in stream(only, stratified(), 300)} == {"add"}
    assert list(only.holdout["add"]) and only.verify() == []


def test_token_counts_of_the_whole_set_serve_a_chosen_one_and_not_the_other_way_round(
    shards: ShardSet, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(["add carry"])
    counts = write_tokens(shards, tokenizer, tmp_path / "whole", backend=HERE)
    chosen = shards.choose(["add", "carry"])
    own = write_tokens(chosen, tokenizer, tmp_path / "own", backend=HERE)
    blocks = []
    for tokens in (counts, own):
        with tempfile.TemporaryDirectory() as folder:
            mixer = Mixer(chosen, proportional(), ledger=folder, round_draws=64, unit="tokens", tokens=tokens)
            weights = mixer.round(0).weights
            packed = PackedTokens(mixer, tokens, block_tokens=64, separator=EOS)
            blocks.append((weights, packed.batch(0, 40).input_ids.tolist()))
    assert blocks[0] == blocks[1]
    with pytest.raises(TokensError, match=r"has the tokens of shards .*, but .* is "):
        Mixer(shards, proportional(), ledger=tmp_path / "run", round_draws=64, unit="tokens", tokens=own)


def test_a_run_of_chosen_skills_uses_their_part_of_the_graph_and_their_losses(shards: ShardSet, tmp_path: Path) -> None:
    graph = SkillGraph.chain(SKILLS)
    chosen = shards.choose(["add", "carry"])
    with pytest.raises(PolicyError, match=r"rows without a skill: negate.*ShardSet.choose\(names\), SkillGraph.choose"):
        Mixer(chosen, skill_it(graph, eta=0.5), ledger=tmp_path / "refused", round_draws=64)
    part = graph.choose(rows=chosen.skills, columns=chosen.skills)
    mixer = Mixer(chosen, skill_it(part, eta=0.5), ledger=tmp_path / "run", round_draws=64, step_draws=8)
    losses = losses_per_skill(
        lambda texts: ([float(len(text)) for text in texts], [10 for _ in texts]),
        chosen.holdout,
        max_samples=5,
        batch_size=4,
    )
    assert set(losses) == {"add", "carry"}
    mixer.report(0, losses)
    before, after = mixer.round(0), mixer.round(1)
    assert len(after.weights) == 2 and after.weights != before.weights


def test_the_graph_of_chosen_skills_is_learned_on_them_and_measured_on_a_target_of_the_whole_set(
    shards: ShardSet, tmp_path: Path
) -> None:
    small = ("--steps", 2, "--batch-size", 4, "--window", 24, "--eval-samples", 3, "--device", "cpu", "--workers", 1)
    for name, options in (("own", ()), ("target", ("--target", "negate"))):
        works(
            "graph", "learn", shards.root, "--skills", "carry,add", *small, *options, "--out", tmp_path / f"{name}.json"
        )
    own, target = SkillGraph.open(tmp_path / "own.json"), SkillGraph.open(tmp_path / "target.json")
    assert own.train_skills == target.train_skills == ("add", "carry")
    assert (own.eval_skills, target.eval_skills) == (("add", "carry"), ("negate",))
    chosen = shards.choose(["add", "carry"])
    learned = read_graph(tmp_path / "target.json").learned
    assert learned is not None
    assert (learned.made_from["shards"], learned.made_from["eval_shards"]) == (chosen.digest, shards.digest)
    assert Mixer(chosen, skill_it(own, eta=0.5), ledger=tmp_path / "run", round_draws=64).skills == ("add", "carry")


def test_fit_takes_the_sizes_of_the_chosen_skills(shards: ShardSet, tmp_path: Path) -> None:
    rows = [(0.2, 2.0, 1.0), (0.5, 1.6, 1.3), (0.8, 1.3, 1.7), (0.4, 1.7, 1.2)]
    runs = "weights/add,weights/carry,losses/add,losses/carry\n" + "".join(f"{p},{1 - p},{a},{b}\n" for p, a, b in rows)
    (tmp_path / "runs.csv").write_text(runs)
    options = ("fit", tmp_path / "runs.csv", "--shards", shards.root)
    assert "without a weight in any run: negate" in fails(*options)
    works(*options, "--skills", "add,carry", "--out", tmp_path / "fit.json")
    sizes = {skill: len(shards.train[skill]) for skill in ("add", "carry")}
    prior = json.loads((tmp_path / "fit.json").read_text())["prior"]
    assert prior == pytest.approx({skill: size / sum(sizes.values()) for skill, size in sizes.items()})
    usage = skillshard("fit", tmp_path / "runs.csv", "--skills", "add")
    assert usage.code == 2 and "--skills" in usage.err


def test_names_that_can_be_read_once_only_are_chosen_all_the_same() -> None:
    """A generator that is counted and then read again would give a set without skills."""
    names: Any = (name for name in ("carry", "add"))
    chosen = choose_names(names, ("add", "carry", "negate"), what="skills", error=ShardError)
    assert sorted(chosen) == ["add", "carry"]
