"""An evaluation that ranks share gives the losses of a single rank, and a budget keeps evaluations within a share of the time."""

import json
import math
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
from skillshard.policies import softmax_loss
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
    if 2 * cost > training_s * share / (1 - share):
        with pytest.warns(UserWarning, match=r"2 samples of each of 3 skills takes .*% of the time, more than"):
            assert measure(budget, clock.model_loss)["add"].num_samples == 2
        return
    num = measure(budget, clock.model_loss)["add"].num_samples
    assert num * cost <= share * (training_s + num * cost) * (1 + 1e-6)
    assert num == most or (num + 1) * cost > share * (training_s + (num + 1) * cost) * (1 - 1e-6)


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
