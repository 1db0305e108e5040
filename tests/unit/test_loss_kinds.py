"""Losses of two kinds are not mixed. The losses of a graph, a run and a report have the same kind, or the user allows any kind."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from skillshard.errors import LedgerError, ObservationError, PolicyError
from skillshard.evaluation import losses_per_skill
from skillshard.graph.skill_graph import SkillGraph
from skillshard.loss import Loss, Losses, LossKind, Reduction, parse_reduction
from skillshard.mixing.mixer import Mixer
from skillshard.policies import chain, floor, skill_it, stratified
from skillshard.shards.read import ShardSet

SKILLS = ("add", "carry", "negate")
ANSWERS = LossKind(answer_after="= ")
KINDS = (LossKind(), LossKind(reduction="per_token"), ANSWERS, LossKind(prompt_field="prompt_chars"))


def graph(kind: LossKind | None) -> SkillGraph:
    return SkillGraph(SKILLS, SKILLS, [[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]], loss=kind)


def mixer(shards: ShardSet, ledger: Path, policy: Any, **arguments: Any) -> Mixer:
    return Mixer(shards, policy, ledger=ledger, round_draws=20, step_draws=4, **arguments)


def losses(kind: LossKind) -> Losses:
    return Losses({skill: Loss(1.0, 0.1, 5, 50) for skill in SKILLS}, kind=kind)


@pytest.mark.parametrize(("of_graph", "of_run"), list(product(KINDS, KINDS)), ids=str)
def test_a_graph_fits_a_run_of_its_own_kind_of_losses_and_no_other(
    shards: ShardSet, tmp_path: Path, of_graph: LossKind, of_run: LossKind
) -> None:
    policy = chain(skill_it(graph(of_graph), eta=0.1), floor(0.01))
    if of_graph == of_run:
        assert mixer(shards, tmp_path / "run", policy, loss=of_run).round(0).num_draws == 20
        return
    with pytest.raises(PolicyError) as refused:
        mixer(shards, tmp_path / "run", policy, loss=of_run)
    assert of_graph.sentence in str(refused.value) and of_run.sentence in str(refused.value)
    anyhow = skill_it(graph(of_graph), eta=0.1, any_loss=True)
    assert mixer(shards, tmp_path / "anyhow", anyhow, loss=of_run).round(0).num_draws == 20


def test_a_graph_of_no_known_kind_and_static_weights_fit_every_run(shards: ShardSet, tmp_path: Path) -> None:
    for name, policy in {
        "given": skill_it(graph(None), eta=0.1),
        "static": skill_it(graph(LossKind()), eta=0.1, mode="static"),
        "stratified": stratified(),
    }.items():
        assert mixer(shards, tmp_path / name, policy, loss=ANSWERS).round(0).num_draws == 20


def test_run_and_observations_record_the_kind_and_another_one_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    run = mixer(shards, tmp_path, skill_it(graph(ANSWERS), eta=0.1), loss=ANSWERS)
    with pytest.raises(
        ObservationError, match=r"losses at step 0 are the mean over samples of nats per token, of whole"
    ):
        run.report(0, losses(LossKind()))
    run.report(0, losses(ANSWERS))
    (record,) = tmp_path.rglob("observations/*.json")
    kinds = [json.loads(path.read_text())["loss"] for path in (tmp_path / "run.json", record)]
    assert [LossKind(**kind) for kind in kinds] == [ANSWERS, ANSWERS]
    with pytest.raises(LedgerError):
        mixer(shards, tmp_path, stratified(), loss=LossKind())


def test_losses_that_are_plain_numbers_are_taken_for_the_run_s_kind(shards: ShardSet, tmp_path: Path) -> None:
    run = mixer(shards, tmp_path, skill_it(graph(ANSWERS), eta=0.1), loss=ANSWERS)
    run.report(0, dict.fromkeys(SKILLS, 1.0))
    assert run.round(1).num_draws == 20


def test_losses_per_skill_say_their_kind(shards: ShardSet) -> None:
    def model_loss(texts: list[str]) -> tuple[list[float], list[int]]:
        return [float(len(text)) for text in texts], [len(text) for text in texts]

    for reduction in ("per_sample", "per_token"):
        word: Reduction = parse_reduction(reduction)
        measured = losses_per_skill(model_loss, shards.holdout, max_samples=3, batch_size=2, reduction=word)
        assert measured.kind == LossKind(reduction=word) and tuple(measured) == SKILLS


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"reduction": "mean"}, "LossKind: reduction: Input should be 'per_sample' or 'per_token', got 'mean'"),
        ({"answer_after": ""}, "LossKind: answer_after: String should have at least 1 character, got ''"),
        ({"answer": "="}, "LossKind: answer: Extra inputs are not permitted, got '='"),
        ({"answer_after": "=", "prompt_field": "n"}, "both say where the prompt ends: give one of the two"),
    ],
)
def test_a_kind_that_makes_no_sense_is_refused_in_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ObservationError, match=sentence):
        LossKind(**fields)
    with pytest.raises(ObservationError, match=r"reduction 'per_tokn' \(did you mean 'per_token'\?\)"):
        parse_reduction("per_tokn")
