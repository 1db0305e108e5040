"""Which observations a round uses, under every lag, against a computation of its own; and reports that never come."""

import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.errors import ObservationError, RoundError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import Lag, verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.policies import skill_it
from skillshard.shards.read import ShardSet

SKILLS = ("add", "carry", "negate")
ROUND, WINDOW, ETA, ROUNDS = 40, 2, 0.5, 8


def mixer(shards: ShardSet, ledger: Path, *, lag: Lag, **arguments: Any) -> Mixer:
    policy = skill_it(SkillGraph.identity(SKILLS), eta=ETA, window=WINDOW)
    return Mixer(shards, policy, ledger=ledger, round_draws=ROUND, lag=lag, **({"wait_s": 0.0} | arguments))


def losses_at(draw: int) -> dict[str, float]:
    return {skill: 3.0 / (1 + draw * (at + 1) / 100) for at, skill in enumerate(SKILLS)}


def weights_after(draws: list[int]) -> np.ndarray:
    """SKILL-IT with an identity graph, from the last observations alone: q_i exp(eta sum L_i), normalised."""
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
    """However early they come: round r knows those up to draw (r - lag) x round_draws; rounds 0 .. lag know none."""
    one = mixer(shards, tmp_path_factory.mktemp("ledger"), lag=lag)
    draws = np.cumsum(gaps).tolist()
    waiting = list(draws)
    for number in range(ROUNDS):
        last_needed = max(0, number - lag) * ROUND
        if number > lag and last_needed > draws[-1]:
            break
        while waiting and (
            waiting[0] <= (number - lag + early) * ROUND or one._rounds._observations.last_draw() < last_needed
        ):
            draw = waiting.pop(0)
            one.report(draw, losses_at(draw), draw=draw)
        known = [draw for draw in draws if number > lag and draw <= last_needed]
        before = [draw for draw in draws if number - 1 > lag and draw <= last_needed - ROUND]
        record = one.round(number)
        assert record.observations == known[len(before) :]
        assert record.num_observed == len(known)
        if known:
            np.testing.assert_allclose(record.weights, weights_after(known), rtol=1e-12)
        else:
            assert record.weights == one.round(0).weights
    assert verify_ledger(one.ledger) == []


HINTS = {
    0: "Is the trainer still calling report() once per round? With lag=1 the loader would not wait here.",
    1: "Is the trainer still calling report() once per round? A loader that reads far ahead needs a larger lag.",
    3: "Is the trainer still calling report() once per round? A loader that reads far ahead needs a larger lag.",
}


@pytest.mark.parametrize("lag", HINTS)
def test_the_error_of_a_stall_names_the_missing_report(shards: ShardSet, tmp_path: Path, lag: int) -> None:
    one, reporter = mixer(shards, tmp_path, lag=lag, wait_s=0.05), mixer(shards, tmp_path, lag=lag)
    for number in range(lag + 1):
        assert one.round(number).observations == []
    with pytest.raises(
        RoundError,
        match=re.escape(
            f"waited 0.05 s for round {lag + 1}; nothing was reported yet and round {lag + 1} needs one at 40 or later. {HINTS[lag]}"
        ),
    ):
        one.round(lag + 1)
    reporter.report(40, losses_at(40), draw=40)
    assert one.round(lag + 1).observations == [40]
    with pytest.raises(
        RoundError,
        match=re.escape(
            f"for round {lag + 2}; the last observation is of draw 40 and round {lag + 2} needs one at 80 or later. {HINTS[lag]}"
        ),
    ):
        one.round(lag + 2)


@pytest.mark.parametrize("lag", [0, 1, 3, "live"])
def test_what_a_report_before_and_after_a_resume_does(shards: ShardSet, tmp_path: Path, lag: Lag) -> None:
    """At the draw of the checkpoint and before, what was reported stands: equal losses have no effect, others are an error."""
    before = mixer(shards, tmp_path, lag=lag)
    for draw in (40, 80, 120):
        before.report(draw, losses_at(draw), draw=draw)
    after = mixer(shards, tmp_path, lag=lag)
    with pytest.warns(UserWarning, match="resumed at draw 80: later losses and rounds are set aside"):
        after.load_state_dict({**before.state_dict(), "draw": 80})
    after.report(40, losses_at(40), draw=40)
    after.report(80, losses_at(80), draw=80)
    assert len(after.ledger.names("observations")) == 2
    with pytest.raises(ObservationError, match=r"already holds other losses for step 80, draw 80: losses.add"):
        after.report(80, losses_at(81), draw=80)
    with pytest.raises(
        ObservationError, match=r"losses of step 60 \(draw 60\) come too late: .* holds those of draw 80"
    ):
        after.report(60, losses_at(60), draw=60)
    after.report(120, losses_at(999), draw=120)  # set aside: the run goes its own way from the checkpoint on
    assert [path.name for path in sorted((tmp_path / "aside").iterdir())] == ["0001"]


def test_resuming_twice_in_a_row_keeps_both_pasts(shards: ShardSet, tmp_path: Path) -> None:
    state = mixer(shards, tmp_path, lag=1).state_dict()
    kept = []
    for number, draw in enumerate([120, 80, 0]):
        one = mixer(shards, tmp_path, lag=1)
        if number:
            with pytest.warns(UserWarning, match=rf"resumed at draw {draw}: .* set aside in .*/aside/{number:04d}\."):
                one.load_state_dict({**state, "draw": draw})
        for at in range(draw + ROUND, 241, ROUND):
            one.report(at, {skill: loss + number for skill, loss in losses_at(at).items()}, draw=at)
        kept.append(one.round(5).to_bytes())
        assert verify_ledger(one.ledger) == []
    assert len(set(kept)) == 3
    for number in (1, 2):
        aside = tmp_path / "aside" / f"{number:04d}" / "rounds" / "00000005.json"
        assert aside.read_bytes() == kept[number - 1]


@pytest.mark.parametrize("num_ranks", [2, 8])
def test_several_ranks_that_resume_at_once_agree_and_lose_no_record(
    shards: ShardSet, tmp_path: Path, num_ranks: int
) -> None:
    first = mixer(shards, tmp_path, lag=1)
    for draw in range(ROUND, 241, ROUND):
        first.report(draw, losses_at(draw), draw=draw)
    expected = [first.round(number).to_bytes() for number in range(7)]
    names = [*first.ledger.names("observations"), *first.ledger.names("rounds")]
    ranks = [mixer(shards, tmp_path, lag=1) for _ in range(num_ranks)]
    for rank in ranks:
        rank.round(6)  # each has read on, and remembers it
    state = {**first.state_dict(), "draw": 80}
    together, found = threading.Barrier(num_ranks), []

    def resume(rank: Mixer) -> None:
        together.wait()
        rank.load_state_dict(state)
        found.append(rank.round(3).to_bytes())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        threads = [threading.Thread(target=resume, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected[3]] * num_ranks
    aside = {
        str(path.relative_to(tmp_path / "aside")).partition("/")[2] for path in (tmp_path / "aside").rglob("*.json")
    }
    assert {*aside, *ranks[0].ledger.names("observations"), *ranks[0].ledger.names("rounds")} == set(names)
    for draw in range(120, 241, ROUND):
        ranks[0].report(draw, losses_at(draw), draw=draw)
    assert all([rank.round(number).to_bytes() for number in range(7)] == expected for rank in ranks)
    assert verify_ledger(first.ledger) == []
