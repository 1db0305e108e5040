"""`skillshard diff` and `replay` on runs that continue other runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.chain import Chain
from skillshard.mixing.difference import difference, first_other_sample
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.replay import replay, replay_chain
from skillshard.policies import Policy, loss_order, skill_it, stratified
from skillshard.shards.read import ShardSet
from tests.commands import fails, skillshard, works

STEP, DRAW = 9, 150
# The smallest skill has 27 training samples, and an equal mix draws it often.
pytestmark = pytest.mark.filterwarnings("ignore::skillshard.errors.RepetitionWarning")


def opened(ledger: Path) -> Records:
    return open_records(DirectoryLedger(ledger))


def begun(shards: ShardSet, ledger: Path) -> Mixer:
    """Train 20 steps of 16 draws, with the last checkpoint after step 9 at draw 150."""
    mixer = Mixer(shards, loss_order(eta=0.5), ledger=ledger, round_draws=64, step_draws=16)
    return trained(mixer, range(20), 0)


def trained(mixer: Mixer, steps: range, first: int, *, bend: float = 1.0) -> Mixer:
    for step in steps:
        draw = first + (step - steps.start) * 16
        if step % 4 == 0:
            mixer.report(
                step, {skill: bend * 3.0 / (1 + number + step / 10) for number, skill in enumerate(mixer.skills)}
            )
        mixer.batch(draw, 16)
    return mixer


def continued(
    shards: ShardSet, old: Path, ledger: Path, *, policy: Policy | None = None, bend: float = 1.0, **changes: Any
) -> Mixer:
    mixer = Mixer.continue_from(
        old,
        draw=DRAW,
        step=STEP,
        shards=shards,
        policy=loss_order(eta=0.5) if policy is None else policy,
        ledger=ledger,
        step_draws=16,
        **changes,
    )
    return trained(mixer, range(STEP, 19), DRAW, bend=bend)


def ids_of(records: Records, shards: ShardSet, num: int) -> list[str]:
    """Return the ids of the first draws of a chain, from the mixers of its runs."""
    ids: list[str] = []
    for segment in Chain.of(records).segments:
        run = segment.records.run
        mixer = reopened(shards, segment.records)
        decided = run.first_draw + segment.records.rounds.num() * run.round_draws
        end = min(num, decided if segment.end is None else segment.end)
        ids += mixer.ids(run.first_draw, end - run.first_draw)
    return ids


def reopened(shards: ShardSet, records: Records) -> Mixer:
    run = records.run
    policy = stratified() if run.policy == "stratified" else loss_order(**run.policy_arguments)
    return Mixer(
        shards, policy, ledger=records.ledger, round_draws=run.round_draws, seed=run.seed, lag=run.lag, step_draws=16
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"policy": stratified()},
        {"policy": loss_order(eta=2.0)},
        {"seed": 7},
        {"round_draws": 48},
        {"bend": 3.0},
        {"seed": 3, "bend": 2.0},
    ],
    ids=str,
)
def test_the_first_other_sample_of_a_run_and_of_its_continuation_is_that_of_their_ids(
    shards: ShardSet, tmp_path: Path, changes: dict[str, Any]
) -> None:
    begun(shards, tmp_path / "first")
    continued(shards, tmp_path / "first", tmp_path / "second", **changes)
    records = opened(tmp_path / "first"), opened(tmp_path / "second")
    num = min(own.run.first_draw + own.rounds.num() * own.run.round_draws for own in records)
    ids = [ids_of(own, shards, num) for own in records]
    expected = next((draw for draw in range(num) if ids[0][draw] != ids[1][draw]), None)
    assert num > DRAW + 64
    for left, right in (records, records[::-1]):
        answer = difference(left, right)
        assert (answer.kind, answer.draw) == ("continued", DRAW)
        if expected is None or "seed" not in changes:
            assert answer.first_other_sample == expected
        else:  # a new seed orders the later epochs alone, and the answer compares orders
            assert answer.first_other_sample is not None and DRAW <= answer.first_other_sample <= expected
        configured = {field.split(":")[0].split(".")[0] for field in answer.fields}
        named = {
            "policy": {"policy", "eta"},
            "bend": set(),
            "seed": {"seed"},
            "round_draws": {"round_draws"},
        }
        assert configured <= {"initial_losses"}.union(*(named[name] for name in changes), set())


def test_two_continuations_of_the_same_run_are_compared_from_their_beginning(shards: ShardSet, tmp_path: Path) -> None:
    begun(shards, tmp_path / "first")
    continued(shards, tmp_path / "first", tmp_path / "a")
    continued(shards, tmp_path / "first", tmp_path / "b")
    continued(shards, tmp_path / "first", tmp_path / "c", bend=2.0)
    continued(shards, tmp_path / "first", tmp_path / "d", seed=5)
    assert works("diff", tmp_path / "a", tmp_path / "b").startswith("equal: the configuration, ")
    answer = difference(opened(tmp_path / "a"), opened(tmp_path / "c"))
    assert answer.kind == "observation" and answer.sentence.startswith("run 2 of the chains: report ")
    assert answer.first_other_sample is not None and answer.first_other_sample >= DRAW
    answer = difference(opened(tmp_path / "a"), opened(tmp_path / "d"))
    assert answer.kind == "configuration" and "seed: 0 -> 5" in answer.fields
    # Two runs that continue another run are compared in words, with and without the ledger of that run.
    for name, skip in (("e", []), ("f", [(DRAW, 40, "a spike")])):
        policy = loss_order(eta=0.5) if skip else stratified()
        Mixer.continue_from(
            tmp_path / "first",
            draw=DRAW,
            skip=skip,
            shards=shards,
            policy=policy,
            ledger=tmp_path / name,
            step_draws=STEP,
        )
    for gone in (False, True):
        if gone:
            (tmp_path / "first").rename(tmp_path / "away")
        answer = difference(opened(tmp_path / "e"), opened(tmp_path / "f"))
        policy_change, skipped, *places = [field for field in answer.fields if not field.startswith("initial_losses")]
        assert policy_change == "policy: 'stratified' -> 'loss_order'"
        assert (
            skipped
            == f"only in the second run: draws {DRAW} to {DRAW + 39} of the run before are skipped, because a spike"
        )
        assert sorted(place.partition(":")[0] for place in places if place.startswith("place of")) == [
            f"place of {skill}" for skill in sorted(shards.skills)
        ]
        assert not [field for field in answer.fields if "checksum" in field or "handover" in field or "passes" in field]
    (tmp_path / "away").rename(tmp_path / "first")
    outcome = skillshard("diff", tmp_path / "first", tmp_path / "a")
    assert outcome.code == 1 and outcome.out.startswith(
        "equal up to draw 150, where the second run is continued by another run, with the same configuration. "
    )


def test_a_chain_whose_first_ledger_is_gone_says_that_the_samples_are_not_compared(
    shards: ShardSet, tmp_path: Path
) -> None:
    begun(shards, tmp_path / "first")
    continued(shards, tmp_path / "first", tmp_path / "second")
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert first_other_sample(opened(tmp_path / "copy"), opened(tmp_path / "first")) is None
    shutil.rmtree(tmp_path / "first")
    answer = difference(opened(tmp_path / "copy"), opened(tmp_path / "second"))
    assert answer.first_other_sample is None and "The samples are not compared, because" in answer.sentence
    assert "begin at draw 0 and of the other run at draw 150" in answer.sentence


def decided_again(ledger: Path, policy: Policy | str | None = None) -> list[list[list[float]]]:
    return [[replayed.decided for replayed in run.rounds] for run in replay_chain(ledger, policy)]


def recorded(ledger: Path, first: int = 0, end: int | None = None) -> list[list[float]]:
    return [
        record.weights
        for record in opened(ledger).rounds
        if first <= record.first_draw and (end is None or record.first_draw < end)
    ]


def test_a_replay_of_a_continued_run_decides_all_runs_of_the_chain(shards: ShardSet, tmp_path: Path) -> None:
    begun(shards, tmp_path / "first")
    continued(shards, tmp_path / "first", tmp_path / "second", policy=loss_order(eta=2.0))
    runs = replay_chain(tmp_path / "second")
    assert [(run.run, run.first_draw, run.end_draw) for run in runs] == [
        (str(tmp_path / "first"), 0, DRAW),
        (str(tmp_path / "second"), DRAW, None),
    ]
    assert [run.differing for run in runs] == [[], []]
    # The rounds of the first run after the draw where the second run continues do not count.
    assert opened(tmp_path / "first").rounds.num() == 5
    assert decided_again(tmp_path / "second") == [recorded(tmp_path / "first", end=DRAW), recorded(tmp_path / "second")]
    output = works("replay", tmp_path / "second")
    assert output.splitlines() == [
        f"{tmp_path}/first: 3 rounds decided again up to draw 149, all as the record says.",
        f"{tmp_path}/second: {len(runs[1].rounds)} rounds decided again, all as the record says.",
    ]
    assert works("replay", tmp_path / "second", "--last").startswith(f"{tmp_path}/second: ")
    facts = json.loads(works("replay", tmp_path / "second", "--json"))
    assert (facts["run"], facts["first_draw"], facts["end_draw"]) == (str(tmp_path / "second"), DRAW, None)
    assert [(run["run"], run["end_draw"], len(run["rounds"])) for run in facts["earlier"]] == [
        (str(tmp_path / "first"), DRAW, 3)
    ]
    assert json.loads(works("replay", tmp_path / "second", "--json", "--last"))["earlier"] == []
    assert replay(tmp_path / "second").rounds == runs[1].rounds


@pytest.mark.parametrize("policy", [loss_order(eta=0.5), loss_order(eta=2.0, window=5)], ids=["short", "long window"])
@pytest.mark.parametrize("lag", [1, 2, "live"])
def test_another_policy_decides_a_chain_as_if_it_had_decided_every_run(
    shards: ShardSet, tmp_path: Path, policy: Policy, lag: Any
) -> None:
    """The chain that the policy has really decided has the weights that the replay of another chain with the same losses gives."""
    for name, own in (("own", policy), ("other", loss_order(eta=0.1))):
        mixer = Mixer(shards, own, ledger=tmp_path / name / "first", round_draws=64, step_draws=16, lag=lag)
        trained(mixer, range(20), 0)
        continued(shards, tmp_path / name / "first", tmp_path / name / "second", policy=own)
    expected = [recorded(tmp_path / "own" / "first", end=DRAW), recorded(tmp_path / "own" / "second")]
    assert decided_again(tmp_path / "other" / "second", policy) == expected
    assert expected[1] != recorded(tmp_path / "other" / "second")


def test_another_policy_begins_again_where_the_skills_of_the_chain_change(shards: ShardSet, tmp_path: Path) -> None:
    begun(shards.choose(shards.skills[:2]), tmp_path / "first")
    continued(shards, tmp_path / "first", tmp_path / "second", initial_losses=False)
    other = loss_order(eta=3.0)
    runs = replay_chain(tmp_path / "second", other)
    assert [len(run.skills) for run in runs] == [2, 3]
    assert runs[1].rounds == replay(tmp_path / "second", other).rounds
    assert runs[0].rounds[0].decided == [0.5, 0.5]


def test_a_text_of_a_policy_is_read_for_the_skills_of_each_run(shards: ShardSet, tmp_path: Path) -> None:
    few = shards.skills[:2]
    begun(shards.choose(few), tmp_path / "first")
    continued(shards, tmp_path / "first", tmp_path / "second", initial_losses=False)
    SkillGraph.chain(shards.skills).save(tmp_path / "graph.json")
    text = f"skill_it:graph={tmp_path}/graph.json,eta=0.5"
    runs = replay_chain(tmp_path / "second", text)
    small = skill_it(SkillGraph.chain(shards.skills).choose(few, few), eta=0.5)
    assert runs[0].rounds == [
        replayed for replayed in replay(tmp_path / "first", small).rounds if replayed.first_draw < DRAW
    ]
    (tmp_path / "weights.json").write_text(json.dumps(dict(zip(shards.skills, (1, 3, 4), strict=True))))
    decided = decided_again(tmp_path / "second", f"fixed:{tmp_path}/weights.json")
    assert decided[0][0] == [0.25, 0.75] and decided[1][0] == [0.125, 0.375, 0.5]
    shown = works("replay", tmp_path / "second", "--policy", text)
    assert f"{tmp_path}/first, from draw 0 to draw 149:" in shown and "rounds of 2 runs, on the same losses." in shown
    # A policy without a weight for a skill does not fit the second run.
    (tmp_path / "weights.json").write_text(json.dumps(dict.fromkeys(few, 1)))
    sentence = fails("replay", tmp_path / "second", "--policy", f"fixed:{tmp_path}/weights.json")
    assert sentence.startswith(f"the run {tmp_path}/second: the fixed weights do not name the skills of the mix")


def test_the_policy_of_an_earlier_run_that_needs_a_graph_names_the_run_and_the_option(
    shards: ShardSet, tmp_path: Path
) -> None:
    graph = SkillGraph.chain(shards.skills)
    mixer = Mixer(shards, skill_it(graph, eta=0.5), ledger=tmp_path / "first", round_draws=64, step_draws=16)
    trained(mixer, range(20), 0)
    continued(shards, tmp_path / "first", tmp_path / "second")
    sentence = fails("replay", tmp_path / "second")
    assert (
        sentence.startswith(f"the run {tmp_path}/first: policy skill_it of the run has a graph")
        and "--graph" in sentence
    )
    assert sentence.endswith(f"To decide {tmp_path}/second alone, give --last.")
    graph.save(tmp_path / "graph.json")
    assert "all as the record says" in works("replay", tmp_path / "second", "--graph", tmp_path / "graph.json")


def test_a_run_with_the_identity_graph_needs_no_file_of_the_graph(shards: ShardSet, tmp_path: Path) -> None:
    policy = skill_it(SkillGraph.identity(shards.skills), eta=0.5)
    trained(Mixer(shards, policy, ledger=tmp_path, round_draws=64, step_draws=16), range(20), 0)
    assert "rounds decided again, all as the record says." in works("replay", tmp_path)


def test_a_replay_says_that_the_ledger_of_an_earlier_run_is_missing(shards: ShardSet, tmp_path: Path) -> None:
    begun(shards, tmp_path / "first")
    continued(shards, tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    outcome = skillshard("replay", tmp_path / "second")
    assert outcome.code == 0 and outcome.out.startswith(f"{tmp_path}/second: ")
    assert "note: earlier runs are not decided: " in outcome.err and f"is not in {tmp_path}/first. Put" in outcome.err
    assert skillshard("replay", tmp_path / "second", "--last").err == ""
