"""An evaluation that ranks share gives the losses of a single rank, and a budget keeps evaluations within a share of the time."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.corpus import Sample
from skillshard.errors import ObservationError, PolicyError
from skillshard.evaluation import FIRST_SAMPLES, EvalBudget, losses_per_skill
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.policies import aioli, softmax_loss
from skillshard.shards.read import ShardSet
from tests.adapters.processes import finish, start_ranks
from tests.adapters.trainers import SKILLS

HOLDOUT = {skill: [Sample(f"{skill}-{row}", f"{skill} {row}", {}) for row in range(300)] for skill in SKILLS}


def by_length(texts: list[str]) -> tuple[list[float], list[int]]:
    return [len(text) * 1.5 for text in texts], [len(text) for text in texts]


class Clock:
    """A clock that a test moves. `model_loss` moves the clock by a fixed time for each text."""

    def __init__(self, seconds_per_sample: float) -> None:
        self.now, self.seconds_per_sample = 0.0, seconds_per_sample

    def __call__(self) -> float:
        return self.now

    def model_loss(self, texts: list[str]) -> tuple[list[float], list[int]]:
        self.now += len(texts) * self.seconds_per_sample
        return by_length(texts)


def measure(budget: EvalBudget, model_loss: Callable[[list[str]], Any]) -> Any:
    return losses_per_skill(model_loss, HOLDOUT, max_samples=budget, batch_size=16)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_share_an_evaluation_get_the_losses_of_a_single_rank(
    shards: ShardSet, tmp_path: Path, world_size: int
) -> None:
    """The 4 batches do not divide over 3 ranks, and every rank calls the model equally often."""
    arguments = [str(shards.root), str(tmp_path)]
    assert finish(start_ranks("shared_evaluation", world_size, arguments, tmp_path)) == [0] * world_size
    assert finish(start_ranks("shared_evaluation", 1, arguments, tmp_path)) == [0]
    (alone,) = [json.loads(path.read_text()) for path in tmp_path.glob("1-*.json")]
    shared = [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"{world_size}-*.json"))]
    assert len(shared) == world_size and all(rank["losses"] == alone["losses"] for rank in shared)
    assert {rank["calls"] for rank in shared} == {math.ceil(alone["calls"] / world_size)}
    assert len({json.dumps(rank["budgeted"]) for rank in shared}) == 1


@given(
    seconds_per_sample=st.floats(1e-4, 1e-2),
    training_s=st.floats(1.0, 500.0),
    share=st.floats(0.01, 0.5),
    most=st.integers(2, 300),
)
def test_a_budget_takes_as_many_samples_as_fit_into_the_share(
    seconds_per_sample: float, training_s: float, share: float, most: int
) -> None:
    clock = Clock(seconds_per_sample)
    budget = EvalBudget(share, max_samples=most, clock=clock)
    assert measure(budget, clock.model_loss)["add"].num_samples == min(FIRST_SAMPLES, most)
    clock.now += training_s
    cost = seconds_per_sample * len(SKILLS)
    seconds = training_s * share / (1 - share)
    if 2 * cost > seconds:
        with pytest.warns(UserWarning, match=r"2 samples of each of 3 skills takes .*% of the time, more than"):
            losses = measure(budget, clock.model_loss)
        num_measured = sum(loss.num_samples == 2 for loss in losses.values())
        assert num_measured == max(1, math.floor(seconds / (2 * seconds_per_sample) + 1e-6))
        return
    num = measure(budget, clock.model_loss)["add"].num_samples
    assert num * cost <= share * (training_s + num * cost) * (1 + 1e-6)
    assert num == most or (num + 1) * cost > share * (training_s + (num + 1) * cost) * (1 - 1e-6)


@given(num_skills=st.integers(1, 40), affordable=st.floats(0.5, 90.0), evaluations=st.integers(1, 6))
def test_skills_that_do_not_fit_take_turns_within_the_share_and_keep_their_last_losses(
    num_skills: int, affordable: float, evaluations: int
) -> None:
    """Each evaluation has the time for `affordable` samples, and every measured skill has another loss in each evaluation."""
    holdout = {f"skill-{number}": HOLDOUT["add"] for number in range(num_skills)}
    clock = Clock(0.01)
    budget = EvalBudget(0.2, max_samples=9, clock=clock)
    number = 0

    def model_loss(texts: list[str]) -> tuple[list[float], list[int]]:
        clock.model_loss(texts)
        return [1.0 + number] * len(texts), [1] * len(texts)

    def evaluate() -> Any:
        return losses_per_skill(model_loss, holdout, max_samples=budget, batch_size=16)

    last = dict.fromkeys(holdout, 0)
    first = evaluate()
    assert {(loss.mean, loss.num_samples) for loss in first.values()} == {(1.0, FIRST_SAMPLES)}
    for number in range(1, evaluations + 1):
        clock.now += affordable * 0.01 * (1 - 0.2) / 0.2
        began = clock.now
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another test reads the warning
            losses = evaluate()
        assert list(losses) == list(holdout)
        measured = [skill for skill, loss in losses.items() if loss.num_samples]
        assert clock.now - began <= 0.01 * max(2, affordable) * (1 + 1e-6)
        # The measured skills are those of the longest time without a measurement.
        if len(measured) < num_skills:
            assert max(last[skill] for skill in measured) <= min(
                last[skill] for skill in holdout if skill not in measured
            )
        last |= dict.fromkeys(measured, number)
        assert {skill: loss.mean for skill, loss in losses.items()} == {skill: 1.0 + last[skill] for skill in holdout}
        assert all(math.isinf(losses[skill].standard_error) for skill in holdout if skill not in measured)


def test_a_budget_without_turns_measures_every_skill_and_says_that_the_share_is_exceeded() -> None:
    clock = Clock(0.01)
    budget = EvalBudget(0.05, max_samples=9, rotate=False, clock=clock)
    measure(budget, clock.model_loss)
    clock.now += 0.1
    with pytest.warns(UserWarning, match=r"of each of 3 skills takes 37\.5% of the time.*=0\.05: report less often"):
        losses = measure(budget, clock.model_loss)
    assert [loss.num_samples for loss in losses.values()] == [2, 2, 2]


def test_the_ledger_records_the_skills_that_keep_their_losses_and_a_probe_refuses_such_losses(
    shards: ShardSet, tmp_path: Path
) -> None:
    clock = Clock(0.01)
    budget = EvalBudget(0.05, max_samples=9, clock=clock)
    first = measure(budget, clock.model_loss)
    clock.now += 0.1
    with pytest.warns(UserWarning, match="this evaluation measures 1 of the skills, the next evaluation measures the"):
        second = measure(budget, clock.model_loss)
    arguments: Any = {"round_draws": 32, "step_draws": 8}
    run = Mixer(shards, softmax_loss(temperature=1.0), ledger=tmp_path / "run", **arguments)
    run.report(0, first)
    run.report(4, second)
    records = list(open_records(DirectoryLedger(tmp_path / "run")).observations)
    assert records[1].num_samples == {"add": 2, "carry": 0, "negate": 0} and records[1].losses == records[0].losses
    probed = Mixer(shards, aioli(eta=1.0, period_rounds=20), ledger=tmp_path / "probed", **arguments)
    probed.report(0, first)
    with pytest.raises(ObservationError, match=r"step 4: 'carry', 'negate' keep the loss.*EvalBudget\(rotate=False\)"):
        probed.report(4, second)


def test_the_ledger_records_the_numbers_that_a_budget_chose_and_another_machine_replays_the_run(
    shards: ShardSet, tmp_path: Path
) -> None:
    clock = Clock(0.01)
    budget = EvalBudget(0.05, max_samples=200, clock=clock)
    arguments: Any = {"ledger": tmp_path, "round_draws": 32, "step_draws": 8}
    run = Mixer(shards, softmax_loss(temperature=1.0), **arguments)
    for report in range(3):
        if report:
            run.batch(32 * (report - 1), 32)
        run.report(4 * report, measure(budget, clock.model_loss))
        clock.now += 20.0
    records = list(open_records(DirectoryLedger(tmp_path)).observations)
    assert [record.num_samples for record in records] == [dict.fromkeys(SKILLS, num) for num in (8, 35, 35)]
    errors = records[0].standard_errors
    assert errors is not None and set(errors) == set(SKILLS) and all(error is not None for error in errors.values())
    replayed = Mixer(shards, softmax_loss(temperature=1.0), **arguments)
    assert replayed.round(2) == run.round(2) and replayed.ids(0, 96) == run.ids(0, 96)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0.0, 10), r"max_eval_share is 0\.0: give a share above 0 and below 1"),
        ((1.0, 10), r"max_eval_share is 1\.0"),
        ((0.05, 1), "max_samples is 1: give at least 2, because one sample has no standard error"),
    ],
)
def test_a_budget_out_of_range_is_refused(arguments: tuple[float, int], sentence: str) -> None:
    with pytest.raises(ObservationError, match=sentence):
        EvalBudget(arguments[0], max_samples=arguments[1])


def test_a_share_that_does_not_fit_the_ranks_is_refused() -> None:
    for share, sentence in (
        ({"rank": 0}, "rank is 0 and world_size is None: give both"),
        ({"rank": 2, "world_size": 2}, "count rank from 0 to world_size - 1"),
        ({"rank": 0, "world_size": 2}, r"world_size is 2, and torch\.distributed has 1 rank: call init_process_group"),
    ):
        with pytest.raises(PolicyError, match=sentence):
            losses_per_skill(by_length, HOLDOUT, max_samples=3, batch_size=2, **share)
