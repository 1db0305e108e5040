"""A run that is killed anywhere and continues with other ranks, workers and batch sizes gives the stream of a single reader, under any lag.

The tests simulate a training. Each loader worker asks for its batches through a mixer of its own, with the calls of a `DataLoader`, in any
order. A kill throws all objects away. tests/fault/test_killed_elastic.py kills real processes.
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
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.run_records import Lag
from skillshard.policies import Policy, chain, floor, skill_it
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset

SKILLS = ("add", "carry", "negate")
EVERY = 10
"""Draws between two reports."""


def live() -> Policy:
    return chain(skill_it(SkillGraph.chain(SKILLS), eta=1.0, window=3), floor(0.02))


def losses_at(draw: int) -> dict[str, float]:
    """Return the losses of a deterministic trainer, a function of the samples seen."""
    return {skill: 3.0 / (1 + draw * (number + 1) / 100) for number, skill in enumerate(SKILLS)}


def mixer(shards: ShardSet, ledger: Path, *, lag: Lag, round_draws: int) -> Mixer:
    return Mixer(shards, live(), ledger=ledger, round_draws=round_draws, lag=lag, wait_s=0.0, initial_losses=False)


def report_up_to(stream: Mixer, draw: int, reported: int) -> int:
    """Report as a trainer does before a draw, every `EVERY` draws and at the ends of rounds, and return the draw that was reached."""
    for position in range(max(1, reported + 1), draw + 1):
        if position % EVERY == 0 or position % stream.round_draws == 0:
            stream.round(
                (position - 1) // stream.round_draws
            )  # the model has seen these draws, so the round is decided
            stream.report(position, losses_at(position), draw=position)
    return max(draw, reported)


def by_one_reader(shards: ShardSet, ledger: Path, *, lag: Lag, round_draws: int, num_draws: int) -> list[str]:
    """Return the texts of an undisturbed run that reports in time and reads no sample ahead."""
    stream = mixer(shards, ledger, lag=lag, round_draws=round_draws)
    edges = sorted({*range(0, num_draws, EVERY), *range(0, num_draws, round_draws), num_draws})
    texts: list[str] = []
    for first, end in pairwise(edges):
        report_up_to(stream, first, first - 1)
        texts += stream.batch(first, end - first).text
    return texts


@dataclass(frozen=True)
class Stretch:
    """The part of a training before a kill.

    Attributes:
        workers: Number of loader workers of a rank.
        batch_size: Samples per rank and step.
        steps: Number of steps before the kill.
        ahead: Number of batches that the loaders read beyond the step, if the losses for these batches exist.
        back: Number of draws from the kill back to the last checkpoint.
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
    """A reader of the batches number, number + workers, ... of a rank, each batch once and in order."""

    def __init__(self, stream: Mixer, rank: int, number: int, stretch: Stretch) -> None:
        self.dataset = MixedDataset(stream, rank=rank, world_size=stretch.world_size)
        self.batch_size, self.stride, self.next = stretch.batch_size, max(1, stretch.workers), number
        self.info = SimpleNamespace(id=number, num_workers=self.stride, seed=number)

    def read_to(self, batch: int, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
        """Read up to a batch, or up to the first batch whose losses are missing, and return the text of each draw."""
        seen: dict[int, str] = {}
        monkeypatch.setattr(adapter, "get_worker_info", lambda: self.info)
        while self.next <= batch and self._is_ready(end := (self.next + 1) * self.batch_size):
            items = self.dataset.__getitems__(list(range(end - self.batch_size, end)))
            seen |= {item["draw"]: item["text"] for item in items}
            self.next += self.stride
        return seen

    def _is_ready(self, end: int) -> bool:
        stream = self.dataset.mixer
        try:
            stream.round((stream.draw + end * self.dataset.world_size - 1) // stream.round_draws)
        except RoundError:
            return False
        return True


def train(
    mixers: list[Mixer], stretch: Stretch, seen: dict[int, str], chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Train a stretch up to the kill, and return the last draw. A draw that is seen again must have the same text."""
    trainer, *of_workers = mixers
    first, step_draws = trainer.draw, stretch.world_size * stretch.batch_size
    stride = max(1, stretch.workers)
    workers = [Worker(stream, number // stride, number % stride, stretch) for number, stream in enumerate(of_workers)]
    reported = max(0, first - 15)  # the reports that the ledger already holds are repeated
    for step in range(stretch.steps):
        chance.shuffle(workers)
        batches = [worker.read_to(step + stretch.ahead, monkeypatch) for worker in workers]
        done = first + (step + 1) * step_draws
        reported = report_up_to(
            trainer, done, reported
        )  # before the last batches of the step, which need the losses when the lag is 0
        batches += [worker.read_to(step, monkeypatch) for worker in workers]
        for draw, text in (pair for batch in batches for pair in batch.items()):
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
            if lag == "live":  # other losses exist now, so the later rounds are decided again
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
        for other in mixers[1:]:
            other.load_state_dict(state, generation=mixers[0].generation)
