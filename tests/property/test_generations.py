"""Two or three processes write to a ledger in any interleaving, with kills, and the surviving run has an undisturbed run's stream.

A process is a mixer, and the loader workers of the process are pickled copies of the mixer. A kill leaves the mixer and the copies alive as
stale writers. A stale writer still writes every record that passed its checks before the resume, under the names of its own generation.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.errors import LedgerError, RoundError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.round_records import ObservationRecord
from skillshard.mixing.run_records import Lag
from skillshard.policies import skill_it
from skillshard.shards.read import ShardSet

SKILLS = ("add", "carry", "negate")
ROUND, STEP, STEPS = 16, 8, 12


def mixer(shards: ShardSet, ledger: Path, lag: Lag) -> Mixer:
    policy = skill_it(SkillGraph.chain(SKILLS), eta=1.0, window=2)
    return Mixer(shards, policy, ledger=ledger, round_draws=ROUND, step_draws=STEP, lag=lag, wait_s=0.0)


def losses_at(step: int) -> dict[str, float]:
    return {skill: 3.0 / (1 + step * (place + 1) / 10) for place, skill in enumerate(SKILLS)}


class Process:
    """A trainer with copies of its mixer as loader workers."""

    def __init__(self, shards: ShardSet, ledger: Path, lag: Lag, workers: int, state: dict[str, Any] | None) -> None:
        self.mixer = mixer(shards, ledger, lag)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "resumed at draw")
            self.mixer.restart() if state is None else self.mixer.load_state_dict(state)
        self.step = 0 if state is None else state["step"]
        if self.step == 0:
            self.mixer.report(0, losses_at(0))
        self.readers = [pickle.loads(pickle.dumps(self.mixer)) for _ in range(workers)] or [self.mixer]

    def train(self, seen: dict[int, str]) -> None:
        """Train a step: a batch by one of the readers, then the losses."""
        first = self.step * STEP
        ids = self.readers[self.step % len(self.readers)].ids(first, STEP)
        for draw, identity in enumerate(ids, start=first):
            seen[draw] = identity
        self.step += 1
        self.mixer.report(self.step, losses_at(self.step))

    def read_ahead(self) -> None:
        """Ask for the next round as a prefetching worker does, if the losses of the round exist."""
        try:
            self.readers[-1].round(self.step * STEP // ROUND + 1)
        except RoundError:
            return

    def write_late(self, poison: float) -> None:
        """Write the records of a stale process that passed all checks before another process resumed the run."""
        for reader in (self.mixer, *self.readers):
            records = reader._rounds.records
            number = 0
            while records.ledger.get(records.observations.name(number)) is not None:
                number += 1
            before = records.observations.get(number - 1) if number else None
            late = ObservationRecord(
                step=self.step + 1,
                draw=before.draw + 1 if before else 0,
                losses={skill: poison + place for place, skill in enumerate(SKILLS)},
                loss=records.run.loss,
                measured_on=records.run.measured_on,
                num_samples=None,
                standard_errors=None,
                left_out=False,
                previous=before.checksum if before else records.run.checksum,
            )
            records.ledger.put(records.observations.name(number), late.to_bytes())
            decided = records.rounds.num()
            try:
                record = reader._rounds._decide(decided, records.rounds.get(decided - 1) if decided else None)
            except (RoundError, LedgerError):  # the process waits for losses, and notices the resume during the wait
                continue
            records.ledger.put(records.rounds.name(decided), record.to_bytes())

    def must_stop(self) -> None:
        with pytest.raises(LedgerError, match="this run was resumed elsewhere"):
            self.mixer.report(self.step + 1, losses_at(self.step + 1))


events = st.lists(
    st.sampled_from(["train", "train", "train", "read ahead", "save", "resume", "write late", "stop"]), max_size=24
)


@given(plan=events, lag=st.sampled_from([0, 1, 2, "live"]), workers=st.integers(0, 3), poison=st.floats(0, 50))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stale_processes_change_nothing_in_the_run_that_took_over(
    shards: ShardSet,
    tmp_path_factory: pytest.TempPathFactory,
    plan: list[str],
    lag: Lag,
    workers: int,
    poison: float,
) -> None:
    ledger = tmp_path_factory.mktemp("ledger")
    process = Process(shards, ledger, lag, workers, None)
    stale: list[Process] = []
    seen: dict[int, str] = {}
    saved: dict[str, Any] | None = None
    for event in [*plan, *["train"] * STEPS]:
        if event == "train" and process.step < STEPS:
            process.train(seen)
        elif event == "read ahead" and process.step < STEPS:
            process.read_ahead()
        elif event == "save":
            saved = process.mixer.state_dict(step=process.step)
        elif event == "resume":
            stale = [*stale, process][-2:]
            process = Process(shards, ledger, lag, workers, saved)
        elif event == "write late":
            for other in stale:
                other.write_late(poison)
        elif event == "stop":
            for other in stale:
                other.must_stop()
    assert process.step == STEPS
    assert verify_ledger(process.mixer.ledger) == []
    alone, expected = Process(shards, tmp_path_factory.mktemp("alone"), lag, 0, None), dict[int, str]()
    for _ in range(STEPS):
        alone.train(expected)
    if (
        lag == "live"
    ):  # the losses that exist depend on the time of the request for a round, so only the counts must fit
        expected = dict(enumerate(process.mixer.ids(0, STEPS * STEP)))
    assert seen == expected
