"""The observations that a round uses, under every lag, against a computation of the test itself, and reports that never come."""

import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.errors import LedgerError, ObservationError, RoundError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.run_records import Lag
from skillshard.policies import skill_it
from skillshard.shards.read import ShardSet

SKILLS = ("add", "carry", "negate")
ROUND, WINDOW, ETA, ROUNDS = 40, 2, 0.5, 8


def mixer(shards: ShardSet, ledger: Path, *, lag: Lag, **arguments: Any) -> Mixer:
    policy = skill_it(SkillGraph.identity(SKILLS), eta=ETA, window=WINDOW)
    return Mixer(
        shards,
        policy,
        ledger=ledger,
        round_draws=ROUND,
        lag=lag,
        **({"wait_s": 0.0, "initial_losses": False} | arguments),
    )


def losses_at(draw: int) -> dict[str, float]:
    return {skill: 3.0 / (1 + draw * (number + 1) / 100) for number, skill in enumerate(SKILLS)}


def weights_after(draws: list[int]) -> np.ndarray:
    """Compute SKILL-IT's weights with an identity graph from the last observations: q_i exp(eta sum L_i), normalised."""
    last = [losses_at(draw) for draw in draws[-WINDOW:]]
    raw = np.array([np.exp(ETA * sum(losses[skill] for losses in last)) for skill in SKILLS])
    return raw / raw.sum()


@given(
    gaps=st.lists(st.integers(1, ROUND), min_size=ROUNDS * 2, max_size=ROUNDS * 4),
    lag=st.integers(0, 3),
    early=st.integers(0, 3),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_uses_all_observations_up_to_its_lag_and_none_after(
    shards: ShardSet, tmp_path_factory: pytest.TempPathFactory, gaps: list[int], lag: int, early: int
) -> None:
    """Reports may come early. Round r uses the observations up to draw (r - lag) x round_draws, and rounds 0 .. lag use none."""
    stream = mixer(shards, tmp_path_factory.mktemp("ledger"), lag=lag)
    draws = np.cumsum(gaps).tolist()
    waiting, draws_reported = list(draws), list[int]()
    for number in range(ROUNDS):
        last_needed = max(0, number - lag) * ROUND
        if number > lag and last_needed > draws[-1]:
            break
        while waiting and (
            waiting[0] <= (number - lag + early) * ROUND or (draws_reported[-1] if draws_reported else -1) < last_needed
        ):
            draw = waiting.pop(0)
            if draw > (stream.num_rounds + 1) * ROUND:
                waiting.insert(0, draw)  # the stream is not yet decided so far, so no trainer can have seen the draw
                break
            stream.report(draw, losses_at(draw), draw=draw)
            draws_reported.append(draw)
        known = [draw for draw in draws if number > lag and draw <= last_needed]
        before = [draw for draw in draws if number - 1 > lag and draw <= last_needed - ROUND]
        record = stream.round(number)
        assert record.observations == known[len(before) :]
        assert record.num_observed == len(known)
        if known:
            np.testing.assert_allclose(record.weights, weights_after(known), rtol=1e-12)
        else:
            assert record.weights == stream.round(0).weights
    assert verify_ledger(stream.ledger) == []


HINTS = {
    0: "Is the trainer still calling report() once per round? With lag=1 the loader would not wait here.",
    1: "Is the trainer still calling report() once per round? A loader that reads far ahead needs a larger lag.",
    3: "Is the trainer still calling report() once per round? A loader that reads far ahead needs a larger lag.",
}


@pytest.mark.parametrize("lag", HINTS)
def test_the_error_of_a_stall_names_the_missing_report(shards: ShardSet, tmp_path: Path, lag: int) -> None:
    reader, reporter = mixer(shards, tmp_path, lag=lag, wait_s=0.05), mixer(shards, tmp_path, lag=lag)
    for number in range(lag + 1):
        assert reader.round(number).observations == []
    with pytest.raises(
        RoundError,
        match=re.escape(
            f"waited 0.05 s for round {lag + 1}: no losses were reported yet, and round {lag + 1} needs an observation at 40 or later. {HINTS[lag]}"
        ),
    ):
        reader.round(lag + 1)
    reporter.report(40, losses_at(40), draw=40)
    assert reader.round(lag + 1).observations == [40]
    with pytest.raises(
        RoundError,
        match=re.escape(
            f"for round {lag + 2}: the last observation is of draw 40, and round {lag + 2} needs an observation at 80 or later. {HINTS[lag]}"
        ),
    ):
        reader.round(lag + 2)


@pytest.mark.parametrize("lag", [0, 1, 3, "live"])
def test_reports_up_to_the_checkpoint_stand_and_later_reports_are_left_behind(
    shards: ShardSet, tmp_path: Path, lag: Lag
) -> None:
    """Reports up to the draw of the checkpoint stand: equal losses have no effect, and other losses are an error."""
    before = mixer(shards, tmp_path, lag=lag)
    states = {}
    for number, draw in enumerate((40, 80, 120)):
        before.round(number)
        before.report(draw, losses_at(draw), draw=draw)
        states[draw] = before.state_at(draw).model_dump(by_alias=True)
    after = mixer(shards, tmp_path, lag=lag)
    with pytest.warns(UserWarning, match=r"resumed at draw 80: later losses \(1\) and rounds \(1\) are left behind"):
        after.load_state_dict(states[80])
    after.report(40, losses_at(40), draw=40)
    after.report(80, losses_at(80), draw=80)
    assert after.num_observations == 2
    with pytest.raises(ObservationError, match=r"already holds other losses for step 80, draw 80: losses.add"):
        after.report(80, losses_at(81), draw=80)
    with pytest.raises(
        ObservationError, match=r"losses of step 60 \(draw 60\) come too late: .* holds losses of draw 80"
    ):
        after.report(60, losses_at(60), draw=60)
    after.report(
        120, losses_at(999), draw=120
    )  # left behind, because the run continues from the checkpoint in its own way
    assert (after.generation, after.num_observations) == (1, 3)
    with pytest.raises(
        LedgerError, match=r"this run was resumed elsewhere: another process began generation 1 of .* at draw 80"
    ):
        before.report(160, losses_at(160), draw=160)
    assert verify_ledger(after.ledger) == []


def test_resuming_twice_in_a_row_keeps_both_pasts(shards: ShardSet, tmp_path: Path) -> None:
    states: dict[int, Any] = {}
    ends = []
    for generation, draw in enumerate([0, 80, 40]):
        stream = mixer(shards, tmp_path, lag=1)
        if generation:
            with pytest.warns(
                UserWarning, match=rf"resumed at draw {draw}: .* left behind in .*/{generation - 1:08d}\."
            ):
                stream.load_state_dict(states[draw])
        for number in range(draw // ROUND, 6):
            stream.round(number)
            losses = {skill: loss + generation for skill, loss in losses_at(number * ROUND + ROUND).items()}
            stream.report(number * ROUND + ROUND, losses, draw=number * ROUND + ROUND)
            states.setdefault(number * ROUND + ROUND, stream.state_at(number * ROUND + ROUND).model_dump(by_alias=True))
        ends.append(stream.round(5).to_bytes())
        assert verify_ledger(stream.ledger) == []
    assert len(set(ends)) == 3
    for generation in range(3):
        path = tmp_path / "generations" / f"{generation:08d}" / "rounds" / "00000005.json"
        assert path.read_bytes() == ends[generation]


@pytest.mark.parametrize("num_ranks", [2, 8])
@pytest.mark.parametrize("named", [True, False])
def test_several_ranks_that_resume_together_are_of_one_generation(
    shards: ShardSet, tmp_path: Path, num_ranks: int, named: bool
) -> None:
    """Ranks with the name of a job find their common generation. Without a name, the test passes on the generation of the first rank."""
    first = mixer(shards, tmp_path, lag=1)
    for number in range(6):
        first.round(number)
        first.report(number * ROUND + ROUND, losses_at(number * ROUND + ROUND), draw=number * ROUND + ROUND)
    expected = [first.round(number).to_bytes() for number in range(7)]
    state = first.state_at(80).model_dump(by_alias=True)
    ranks = [mixer(shards, tmp_path, lag=1, job="second" if named else None) for _ in range(num_ranks)]
    for rank in ranks:
        rank.round(6)  # each rank has read ahead, and remembers the round
    together = threading.Barrier(num_ranks)
    generation = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if not named:
            ranks[0].load_state_dict(state)
            generation = ranks[0].generation

        def resume(rank: Mixer) -> None:
            together.wait()
            if named or rank is not ranks[0]:
                rank.load_state_dict(state, generation=generation)

        threads = [threading.Thread(target=resume, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [rank.generation for rank in ranks] == [1] * num_ranks
    assert [rank.num_rounds for rank in ranks] == [2] * num_ranks
    for number in range(2, 6):
        draw = number * ROUND + ROUND
        assert {rank.round(number).to_bytes() for rank in ranks} == {expected[number]}
        ranks[-1].report(draw, losses_at(draw), draw=draw)
    assert all([rank.round(number).to_bytes() for number in range(7)] == expected for rank in ranks)
    assert verify_ledger(first.ledger) == []


def test_ranks_that_resume_without_a_name_stop_each_other_and_are_told_the_remedy(
    shards: ShardSet, tmp_path: Path
) -> None:
    first = mixer(shards, tmp_path, lag=1)
    first.round(0)
    state = first.state_at(40).model_dump(by_alias=True)
    second, third = mixer(shards, tmp_path, lag=1), mixer(shards, tmp_path, lag=1)
    second.load_state_dict(state)
    third.load_state_dict(state)
    assert (second.generation, third.generation) == (1, 2)
    with pytest.raises(LedgerError, match=re.escape("give all ranks the same Mixer(job=NAME)")):
        second.round(1)
    third.round(1)


def test_a_job_of_one_name_cannot_resume_twice_at_different_draws(shards: ShardSet, tmp_path: Path) -> None:
    first = mixer(shards, tmp_path, lag=1, job="a")
    first.restart()
    first.round(1)
    states = [first.state_at(draw).model_dump(by_alias=True) for draw in (40, 80)]
    mixer(shards, tmp_path, lag=1, job="b").load_state_dict(states[0])
    with pytest.raises(LedgerError, match=r"generation 2 of .* begins at draw 40, and this process resumes at draw 80"):
        mixer(shards, tmp_path, lag=1, job="b").load_state_dict(states[1])
