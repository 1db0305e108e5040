"""`skillshard replay` and `diff`: decisions made again, and two runs compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillshard.errors import ObservationError, PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.difference import difference, first_other_sample
from skillshard.mixing.ledger import DirectoryLedger, record_name
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.named_policy import POLICIES, policy_of_record, policy_of_text
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.replay import replay, replay_chain
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.steer import steer
from skillshard.policies import (
    Policy,
    chain,
    fixed,
    floor,
    graph_refresh,
    loss_order,
    skill_it,
    stratified,
    temperature,
)
from skillshard.shards.read import ShardSet
from tests.commands import fails, skillshard, works

STEP_DRAWS = 16


def trained(
    shards: ShardSet, policy: Policy, ledger: Path, *, num_steps: int = 13, bend: float = 1.0, **changes: Any
) -> Mixer:
    """Train a run with a report every 4 steps. `bend` changes the losses from step 8 on."""
    arguments: dict[str, Any] = {"round_draws": 64, "step_draws": STEP_DRAWS, **changes}
    if not policy.reads_losses:
        arguments["initial_losses"] = None
    mixer = Mixer(shards, policy, ledger=ledger, **arguments)
    for step in range(num_steps):
        if step % 4 == 0:
            losses = {
                skill: 3.0 / (1 + number + step / 10)
                for number, skill in enumerate(policy.eval_skills or shards.skills)
            }
            mixer.report(step, {skill: loss * (bend if step >= 8 else 1.0) for skill, loss in losses.items()})
        mixer.batch(step * STEP_DRAWS, STEP_DRAWS)
    return mixer


def opened(ledger: Path) -> Records:
    return open_records(DirectoryLedger(ledger))


def policies_of(skills: list[str]) -> list[Policy]:
    return [
        stratified(),
        loss_order(eta=0.5),
        skill_it(SkillGraph.chain(skills), eta=0.5, window=2),
        chain(loss_order(eta=1.0), floor(0.05)),
        temperature(2.0),
        POLICIES["odm"](warmup_steps=2),
        POLICIES["ado"](warmup_steps=2, refit_steps=4),
        graph_refresh(SkillGraph.identity(skills), eta=0.5, period_rounds=13),
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("lag", [0, 1, "live"])
def test_a_run_replays_to_its_own_record(shards: ShardSet, tmp_path: Path, number: int, lag: Any) -> None:
    policy = policies_of(shards.skills)[number]
    trained(shards, policy, tmp_path / "run", lag=lag, initial_losses=True)
    again = replay(tmp_path / "run", policy)
    assert not again.is_other and again.differing == [] and len(again.rounds) >= 3


def test_a_continued_run_replays_to_its_own_record(shards: ShardSet, tmp_path: Path) -> None:
    before = trained(shards, loss_order(eta=0.5), tmp_path / "first")
    mixer = Mixer.continue_from(
        before.ledger,
        draw=150,
        step=9,
        shards=shards,
        policy=loss_order(eta=0.5),
        ledger=tmp_path / "second",
        step_draws=STEP_DRAWS,
    )
    for step in range(9, 20):
        if step % 4 == 0:
            mixer.report(step, dict.fromkeys(shards.skills, 1.0 + step / 10))
        mixer.batch(150 + (step - 9) * STEP_DRAWS, STEP_DRAWS)
    assert replay(tmp_path / "second").differing == []
    other = replay(tmp_path / "second", stratified())
    assert other.is_other and len(other.differing) == len(other.rounds)


def test_another_policy_decides_a_chain_in_which_a_skill_was_added(shards: ShardSet, tmp_path: Path) -> None:
    before = trained(shards.choose(shards.skills[:-1]), loss_order(eta=0.5), tmp_path / "first")
    # `odm` goes on with the last report, which has no loss of the added skill.
    mixer = Mixer.continue_from(
        before.ledger,
        draw=150,
        step=9,
        shards=shards,
        policy=POLICIES["odm"](warmup_steps=2),
        ledger=tmp_path / "second",
        step_draws=STEP_DRAWS,
    )
    assert mixer.num_observations == 1
    for step in range(9, 20):
        if step % 4 == 0:
            mixer.report(step, {skill: 1.0 + number for number, skill in enumerate(shards.skills)})
        mixer.batch(150 + (step - 9) * STEP_DRAWS, STEP_DRAWS)
    first, second = replay_chain(tmp_path / "second", "loss_order:eta=1")
    assert len(first.rounds) == 3 and len(second.rounds) == mixer.num_rounds
    # The first weights are those without losses, and later weights follow the reports with all skills.
    without = loss_order(eta=1.0)
    num_samples = [len(shards.train[skill]) for skill in shards.skills]
    assert second.rounds[0].decided == pytest.approx(without.weights(without.init(shards.skills, num_samples)).tolist())
    assert second.rounds[-1].decided != second.rounds[0].decided


@pytest.mark.parametrize("num_targets", [1, 2])
@pytest.mark.parametrize("is_identity", [True, False])
def test_a_run_of_a_comparison_with_targets_is_decided_again(
    shards: ShardSet, tmp_path: Path, num_targets: int, is_identity: bool
) -> None:
    whole = (SkillGraph.identity if is_identity else SkillGraph.chain)(shards.skills)
    whole.save(tmp_path / "graph.json")
    reduced = whole.choose(columns=shards.skills[-num_targets:])
    trained(shards, skill_it(reduced, eta=0.5), tmp_path / "run")
    # The file holds the graph with all columns. The identity graph needs no file.
    graphs = [] if is_identity else [tmp_path / "graph.json"]
    assert replay(tmp_path / "run", graphs=graphs).differing == []


def test_a_file_in_place_of_a_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no run")
    for command in (["at", "--step", "1"], ["seen", "--id", "x"], ["replay"], ["report", "--out", tmp_path / "r.html"]):
        sentence = fails(command[0], tmp_path / "file", *command[1:])
        assert "A part of the path is a file: give the directory of a run." in sentence


def test_the_policy_of_every_record_is_made_again(shards: ShardSet, tmp_path: Path) -> None:
    graph = tmp_path / "graph.json"
    SkillGraph.chain(shards.skills).save(graph)
    for policy in [*policies_of(shards.skills), fixed(dict.fromkeys(shards.skills, 1.0))]:
        if "graph" in policy.arguments and policy.name == "graph_refresh":
            continue  # the graph of this policy is another graph
        again = policy_of_record(policy.name, policy.arguments, graphs=[str(graph)])
        assert (again.name, again.arguments) == (policy.name, policy.arguments)
    with pytest.raises(PolicyError, match="give the file of the graph by `graphs`"):
        policy_of_record("skill_it", policies_of(shards.skills)[2].arguments)
    with pytest.raises(PolicyError, match=r"and this is no given graph .*: give the graph of the run by `graphs`"):
        policy_of_record("skill_it", policies_of(shards.skills)[7].weighing.arguments, graphs=[str(graph)])  # type: ignore[attr-defined]
    with pytest.raises(PolicyError, match="'my_policy' is no policy of skillshard"):
        policy_of_record("my_policy", {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("loss_ordr:eta=1", "did you mean 'loss_order'"),
        ("loss_order", "missing: eta"),
        ("loss_order:eta", "is no argument: give NAME:argument=value"),
        ("loss_order:eta=1,steps=3", "unknown: 'steps'"),
        ("loss_order:eta=much", "eta of loss_order is 'much'"),
        ("stratified+floor", "missing: least"),
        ("skill_it:eta=1", r"any_loss \(missing: graph\)"),
        ("loss_order:eta=1,eta=2", "gives eta twice"),
        ("skill_it:a.json,b.json,eta=1", "gives graph twice"),
        ("stratified+roof:least=1", "is no policy of skillshard"),
    ],
)
def test_a_text_that_names_no_policy_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(PolicyError, match=sentence):
        policy_of_text(text)


def test_a_file_alone_is_the_graph_or_the_weights_of_a_policy(tmp_path: Path) -> None:
    SkillGraph.chain(("add", "carry")).save(tmp_path / "graph.json")
    (tmp_path / "weights.json").write_text('{"add": 1, "carry": 3}')
    for text in ("skill_it:{},eta=0.5", "skill_it:eta=0.5,graph={}"):
        policy = policy_of_text(text.format(tmp_path / "graph.json"))
        assert policy.arguments == skill_it(SkillGraph.chain(("add", "carry")), eta=0.5).arguments
    assert policy_of_text(f"fixed:{tmp_path}/weights.json").arguments == fixed({"add": 1.0, "carry": 3.0}).arguments


def test_another_policy_decides_what_it_would_have_decided_in_a_run_with_the_same_losses(
    shards: ShardSet, tmp_path: Path
) -> None:
    """The policies read only the losses, so a real run of the other policy with the same reports gives the same weights."""
    other = chain(loss_order(eta=0.7, window=2), floor(0.02))
    trained(shards, skill_it(SkillGraph.identity(shards.skills), eta=0.3), tmp_path / "run")
    trained(shards, other, tmp_path / "other")
    expected = [record.weights for record in opened(tmp_path / "other").rounds]
    replayed = replay(tmp_path / "run", other)
    assert [round.decided for round in replayed.rounds] == expected
    number, change = replayed.rounds[-1].largest
    changes = np.array(expected[-1]) - np.array(replayed.rounds[-1].recorded)
    assert change == changes[number] and abs(change) == np.abs(changes).max() > 0


def test_a_policy_whose_losses_were_not_reported_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, stratified(), tmp_path / "run")
    graph = SkillGraph(tuple(shards.skills), ("exam",), [[1.0]] * len(shards.skills))
    with pytest.raises(ObservationError, match="missing 'exam'"):
        replay(tmp_path / "run", skill_it(graph, eta=0.5))


def rewritten(ledger: Path, number: int, **changes: Any) -> None:
    """Rewrite a round with a fresh checksum, as a forger of the ledger would."""
    path = ledger / record_name(0, "rounds", number)
    value = {**json.loads(path.read_bytes()), **changes, "checksum": ""}
    path.write_bytes(RoundRecord.model_validate(value).to_bytes())


def test_a_changed_state_is_found_by_the_replay_and_by_nothing_else(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, loss_order(eta=0.5), tmp_path / "run")
    newest = opened(tmp_path / "run").rounds.num() - 1
    state = {"skills": shards.skills, "window": [[1.0, 2.0, 3.0]]}
    rewritten(tmp_path / "run", newest, policy_state=state)
    works("verify", tmp_path / "run")
    outcome = skillshard("replay", tmp_path / "run")
    assert outcome.code == 1
    assert outcome.out.startswith(f"round {newest} differs: policy_state.window: ")
    assert outcome.out.endswith(f"{newest + 1} rounds decided again, 1 differ from the record.\n")


def test_the_command_shows_the_largest_change_of_each_round(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, loss_order(eta=0.5), tmp_path / "run")
    assert works("replay", tmp_path / "run").endswith("rounds decided again, all as the record says.\n")
    text = "loss_order:eta=1+floor:least=0.05"
    assert "loss_order+floor gives other weights in " in works("replay", tmp_path / "run", "--policy", text)
    facts = json.loads(works("replay", tmp_path / "run", "--policy", text, "--json"))
    expected = replay(tmp_path / "run", chain(loss_order(eta=1.0), floor(0.05)))
    assert [own["decided"] for own in facts["rounds"]] == [own.decided for own in expected.rounds]
    assert facts["rounds"][1]["largest"]["skill"] in shards.skills and facts["is_other"]
    assert "holds no run" in fails("replay", tmp_path)


def test_equal_runs_are_equal_and_a_copy_goes_on(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, loss_order(eta=0.5), tmp_path / "a")
    trained(shards, loss_order(eta=0.5), tmp_path / "b")
    assert works("diff", tmp_path / "a", tmp_path / "b") == "equal: the configuration, 4 rounds and 4 reports.\n"
    shutil.rmtree(tmp_path / "b")
    trained(shards, loss_order(eta=0.5), tmp_path / "b", num_steps=9)
    outcome = skillshard("diff", tmp_path / "a", tmp_path / "b")
    assert outcome.code == 1 and outcome.out.startswith(
        "equal as far as both runs go: 4 rounds and 4 reports in the first run, 3 rounds"
    )


def test_the_first_difference_is_named_with_the_first_other_sample(shards: ShardSet, tmp_path: Path) -> None:
    first = trained(shards, loss_order(eta=0.5), tmp_path / "a")
    second = trained(shards, loss_order(eta=0.5), tmp_path / "b", bend=1.5)
    answer = difference(opened(tmp_path / "a"), opened(tmp_path / "b"))
    assert (answer.kind, answer.draw) == ("observation", 8 * STEP_DRAWS)
    assert {field.split(":")[0] for field in answer.fields} == {f"losses.{skill}" for skill in shards.skills}
    num = min(first.num_rounds, second.num_rounds) * 64
    ids = [mixer.ids(0, num) for mixer in (first, second)]
    expected = next(draw for draw in range(num) if ids[0][draw] != ids[1][draw])
    assert answer.first_other_sample == expected
    outcome = skillshard("diff", tmp_path / "a", tmp_path / "b", "--json")
    assert outcome.code == 1 and json.loads(outcome.out) == json.loads(json.dumps(answer._asdict()))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"round_draws": 48}, {"lag": 0}])
def test_other_configurations_are_named_and_the_first_other_sample_is_right(
    shards: ShardSet, tmp_path: Path, changes: dict[str, Any]
) -> None:
    first = trained(shards, loss_order(eta=0.5), tmp_path / "a")
    second = trained(shards, loss_order(eta=0.5), tmp_path / "b", **changes)
    records = opened(tmp_path / "a"), opened(tmp_path / "b")
    answer = difference(*records)
    assert answer.kind == "configuration" and [field.split(":")[0] for field in answer.fields] == [*changes]
    num = min(records[0].rounds.num() * 64, records[1].rounds.num() * changes.get("round_draws", 64))
    ids = [mixer.ids(0, num) for mixer in (first, second)]
    expected = next((draw for draw in range(num) if ids[0][draw] != ids[1][draw]), None)
    assert first_other_sample(*records) == expected


def test_a_forged_round_is_the_first_difference(shards: ShardSet, tmp_path: Path) -> None:
    for name in ("a", "b"):
        trained(shards, loss_order(eta=0.5), tmp_path / name)
    newest = opened(tmp_path / "b").rounds.num() - 1
    rewritten(tmp_path / "b", newest, policy_state={"skills": shards.skills, "window": []})
    answer = difference(opened(tmp_path / "a"), opened(tmp_path / "b"))
    assert (answer.kind, answer.draw, answer.first_other_sample) == ("round", newest * 64, None)
    assert "although the reports before it are equal" in answer.sentence


def test_a_round_that_one_run_was_steered_in_names_the_steering_and_the_weights(
    shards: ShardSet, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        trained(shards, loss_order(eta=0.5), tmp_path / name)
    shutil.rmtree(tmp_path / "b")
    mixer = trained(shards, loss_order(eta=0.5), tmp_path / "b", num_steps=9)
    weights = {skill: float(number == 0) for number, skill in enumerate(shards.skills)}
    steer(tmp_path / "b", "weights", weights=weights, why="a test")
    for step in range(9, 13):
        if step == 12:
            mixer.report(step, {skill: 3.0 / (1 + number + 1.2) for number, skill in enumerate(shards.skills)})
        mixer.batch(step * STEP_DRAWS, STEP_DRAWS)
    answer = difference(opened(tmp_path / "a"), opened(tmp_path / "b"))
    assert answer.kind == "round"
    assert "steered by hand: none -> steering 0; weight of " in answer.sentence
    assert f"weight of {shards.skills[0]}: " in answer.sentence and "-> 1" in answer.sentence
