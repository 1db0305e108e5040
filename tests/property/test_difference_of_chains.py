"""`skillshard diff` and `replay` on runs that continue other runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from skillshard.mixing.chain import Chain
from skillshard.mixing.difference import difference, first_other_sample
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.replay import replay
from skillshard.policies import Policy, loss_order, stratified
from skillshard.shards.read import ShardSet
from tests.commands import skillshard, works

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
    for one, two in (records, records[::-1]):
        answer = difference(one, two)
        assert (answer.kind, answer.draw) == ("continued", DRAW)
        if expected is None or "seed" not in changes:
            assert answer.first_other_sample == expected
        else:  # a new seed orders the later epochs alone, and the answer compares orders
            assert answer.first_other_sample is not None and DRAW <= answer.first_other_sample <= expected
        configured = {field.split(":")[0].split(".")[0] for field in answer.fields}
        named = {
            "policy": {"policy", "policy_arguments"},
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


def test_a_replay_of_a_continued_run_names_the_run_before(shards: ShardSet, tmp_path: Path) -> None:
    begun(shards, tmp_path / "first")
    continued(shards, tmp_path / "first", tmp_path / "second")
    output = works("replay", tmp_path / "second")
    assert "rounds decided again, all as the record says." in output
    assert f"begins at draw 150, where it continues the run in {tmp_path}/first. Replay" in " ".join(output.split())
    assert json.loads(works("replay", tmp_path / "second", "--json"))["first_draw"] == 150
    assert replay(tmp_path / "first").first_draw == 0 and "continues" not in works("replay", tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    assert "but its ledger is not there" in works("replay", tmp_path / "second")
