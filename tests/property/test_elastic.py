"""Killed anywhere and gone on with other ranks, workers and batch sizes, under any lag: the stream of one reader.

A training is simulated: each loader worker asks for its batches through a mixer of its own, with the calls that a `DataLoader`
makes, in any order; a kill throws all objects away. Real kills of real processes: tests/fault/test_killed_elastic.py.
"""

import random
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard import torch as adapter
from skillshard.errors import RoundError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import Lag
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import verify_ledger
from skillshard.policies import Policy, chain, floor, skill_it
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset

SKILLS = ("add", "carry", "negate")
EVERY = 10
"""Draws between two reports."""


def live() -> Policy:
    return chain(skill_it(SkillGraph.chain(SKILLS), eta=1.0, window=3), floor(0.02))


def losses_at(draw: int) -> dict[str, float]:
    """What a deterministic trainer would measure: a function of the samples seen."""
    return {skill: 3.0 / (1 + draw * (at + 1) / 100) for at, skill in enumerate(SKILLS)}


def mixer(shards: ShardSet, ledger: Path, *, lag: Lag, round_draws: int) -> Mixer:
    return Mixer(shards, live(), ledger=ledger, round_draws=round_draws, lag=lag, wait_s=0.0, initial_losses=False)


def report_up_to(one: Mixer, draw: int, reported: int) -> int:
    """Report as a trainer does on its way to a draw: every `EVERY` draws and at the rounds' ends; where it stands."""
    for at in range(max(1, reported + 1), draw + 1):
        if at % EVERY == 0 or at % one.round_draws == 0:
            one.round((at - 1) // one.round_draws)  # what a model has seen has been decided
            one.report(at, losses_at(at), draw=at)
    return max(draw, reported)


def by_one_reader(shards: ShardSet, ledger: Path, *, lag: Lag, round_draws: int, num_draws: int) -> list[str]:
    """The texts of an undisturbed run that reports on time and reads no sample ahead."""
    one = mixer(shards, ledger, lag=lag, round_draws=round_draws)
    edges = sorted({*range(0, num_draws, EVERY), *range(0, num_draws, round_draws), num_draws})
    found: list[str] = []
    for first, end in pairwise(edges):
        report_up_to(one, first, first - 1)
        found += one.batch(first, end - first).text
    return found


@dataclass(frozen=True)
class Stretch:
    """How a training is run until it is killed.

    Attributes:
        workers: of each rank.
        batch_size: samples per rank and step.
        steps: until the kill.
        ahead: batches that the loaders read beyond the step, where the losses for them are there.
        back: draws from the kill back to the last checkpoint.
    """

    world_size: int
    workers: int
    batch_size: int
    steps: int
    ahead: int
    back: int


stretches = st.builds(
    Stretch,
    world_size=st.integers(1, 8),
    workers=st.integers(0, 4),
    batch_size=st.integers(1, 5),
    steps=st.integers(1, 6),
    ahead=st.integers(0, 5),
    back=st.integers(0, 50),
)


class Worker:
    """One reader: the batches number, number + workers, ... of a rank, each once and in their order."""

    def __init__(self, one: Mixer, rank: int, number: int, stretch: Stretch) -> None:
        self.dataset = MixedDataset(one, rank=rank, world_size=stretch.world_size)
        self.batch_size, self.stride, self.next = stretch.batch_size, max(1, stretch.workers), number
        self.info = SimpleNamespace(id=number, num_workers=self.stride, seed=number)

    def read_to(self, batch: int, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
        """All its batches up to one, or to the first for which losses are missing: draw -> text."""
        seen: dict[int, str] = {}
        monkeypatch.setattr(adapter, "get_worker_info", lambda: self.info)
        while self.next <= batch and self._is_ready(end := (self.next + 1) * self.batch_size):
            items = self.dataset.__getitems__(list(range(end - self.batch_size, end)))
            seen |= {item["draw"]: item["text"] for item in items}
            self.next += self.stride
        return seen

    def _is_ready(self, end: int) -> bool:
        one = self.dataset.mixer
        try:
            one.round((one.draw + end * self.dataset.world_size - 1) // one.round_draws)
        except RoundError:
            return False
        return True


def train(
    mixers: list[Mixer], stretch: Stretch, seen: dict[int, str], chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> int:
    """One stretch, until the kill; the draw where it comes. What is seen again must be what was seen before."""
    trainer, *of_workers = mixers
    first, step_draws = trainer.draw, stretch.world_size * stretch.batch_size
    stride = max(1, stretch.workers)
    workers = [Worker(one, at // stride, at % stride, stretch) for at, one in enumerate(of_workers)]
    reported = max(0, first - 15)  # what the ledger holds already is reported again
    for step in range(stretch.steps):
        chance.shuffle(workers)
        found = [worker.read_to(step + stretch.ahead, monkeypatch) for worker in workers]
        done = first + (step + 1) * step_draws
        reported = report_up_to(trainer, done, reported)  # before the step's last batches where they need it (lag=0)
        found += [worker.read_to(step, monkeypatch) for worker in workers]
        for draw, text in (pair for some in found for pair in some.items()):
            assert seen.setdefault(draw, text) == text
        assert all(draw in seen for draw in range(first, done))
    return done


@given(
    plan=st.lists(stretches, min_size=1, max_size=4),
    lag=st.sampled_from([0, 1, 2, 3, "live"]),
    round_draws=st.integers(7, 61),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ranks_workers_batches_and_kills_give_the_stream_of_one_reader(
    shards: ShardSet,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    plan: list[Stretch],
    lag: Lag,
    round_draws: int,
    chance: random.Random,
) -> None:
    ledger = tmp_path_factory.mktemp("ledger")
    seen: dict[int, str] = {}
    saved = 0
    for stretch in plan:
        num_workers = stretch.world_size * max(1, stretch.workers)
        mixers = [mixer(shards, ledger, lag=lag, round_draws=round_draws) for _ in range(1 + num_workers)]
        if saved:
            resume_all(mixers, saved)
            if lag == "live":  # other losses are at hand now: the rounds from here on are decided anew
                seen = {draw: text for draw, text in seen.items() if draw < saved}
        saved = max(0, train(mixers, stretch, seen, chance, monkeypatch) - stretch.back)
        if not saved:
            break
    num_draws = max(seen) + 1
    assert sorted(seen) == list(range(num_draws))
    if lag == "live":
        alone = mixer(shards, ledger, lag=lag, round_draws=round_draws).batch(0, num_draws).text
    else:
        alone = by_one_reader(
            shards, tmp_path_factory.mktemp("alone"), lag=lag, round_draws=round_draws, num_draws=num_draws
        )
    assert [seen[draw] for draw in range(num_draws)] == alone
    assert verify_ledger(mixers[0].ledger) == []


def resume_all(mixers: list[Mixer], draw: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "resumed at draw")
        state = mixers[0].state_at(draw).model_dump(by_alias=True)
        mixers[0].load_state_dict(state)
        for one in mixers[1:]:
            one.load_state_dict(state, generation=mixers[0].generation)
