"""Steering by hand: the record acts at the next undecided round, in every process and after every kill, and every round replays."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.errors import LedgerError, PolicyError
from skillshard.mixing.ledger import DirectoryLedger, record_name
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.mixing.replay import replay
from skillshard.mixing.round_records import SteeredRoundRecord, SteerRecord
from skillshard.mixing.steer import steer
from skillshard.mixing.steering import steer_name, steerings
from skillshard.policies import loss_order, stratified
from skillshard.shards.read import ShardSet
from tests.commands import fails, skillshard, works
from tests.conftest import REPOSITORY

ROUND_DRAWS = 16
WEIGHTS = [{"add": 0.5, "carry": 0.25, "negate": 0.25}, {"add": 0.0, "carry": 0.5, "negate": 0.5}]


def opened(shards: ShardSet, ledger: Path, lag: Any = 1, **more: Any) -> Mixer:
    return Mixer(
        shards, loss_order(eta=0.5), ledger=ledger, round_draws=ROUND_DRAWS, lag=lag, step_draws=1, wait_s=0.0, **more
    )


def read(mixers: list[Mixer], first: int, num: int) -> None:
    """Read draws as ranks do in turn, and report after every draw."""
    for draw in range(first, first + num):
        mixers[draw % len(mixers)].batch(draw, 1)
        mixers[0].report(
            draw + 1, {skill: 3.0 / (1 + draw / 50 + number) for number, skill in enumerate(mixers[0].skills)}
        )


def began(shards: ShardSet, ledger: Path, lag: Any = 1) -> Mixer:
    mixer = opened(shards, ledger, lag)
    mixer.report(0, dict.fromkeys(shards.skills, 3.0))
    return mixer


def expected_action(ledger: Path, number: int) -> SteerRecord | None:
    """Return the last steering that may act in a round, in the words of the definition."""
    own = DirectoryLedger(ledger)
    known = [steering.record for steering in steerings(own, open_records(own).run)]
    return next((record for record in reversed(known) if record.first_round <= number), None)


def check(ledger: Path, num_unsteered: int) -> None:
    """Check every round against the definition of its steering."""
    own = DirectoryLedger(ledger)
    assert verify_ledger(own) == []
    assert replay(ledger).differing == []
    previous = None
    for record in open_records(own).rounds:
        steered = expected_action(ledger, record.round)
        assert isinstance(record, SteeredRoundRecord) == (steered is not None)
        if steered is not None and steered.action != "resume":
            assert record.weights == (steered.weights if steered.weights else previous and previous.weights)
        if record.round < num_unsteered:
            assert steered is None and record.schema_version == "skillshard/round/2"
        previous = record


ACTIONS = st.sampled_from([("freeze", None), ("resume", None), ("weights", WEIGHTS[0]), ("weights", WEIGHTS[1])])


@given(
    parts=st.lists(st.tuples(st.integers(1, 60), st.none() | ACTIONS, st.booleans()), min_size=1, max_size=5),
    num_ranks=st.integers(1, 3),
    lag=st.sampled_from([0, 1, 2, "live"]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_round_obeys_its_steering_under_ranks_and_kills(
    shards: ShardSet, tmp_path_factory: pytest.TempPathFactory, parts: list[Any], num_ranks: int, lag: Any
) -> None:
    """A run is read in parts. After a part it may be steered, and then killed and resumed from a checkpoint before the steering."""
    ledger = tmp_path_factory.mktemp("steered") / "run"
    mixer = began(shards, ledger, lag)
    first, num_unsteered = 0, None
    for num_draws, action, is_killed in parts:
        read([mixer, *(pickle.loads(pickle.dumps(mixer)) for _ in range(num_ranks - 1))], first, num_draws)
        first += num_draws
        checkpoint = mixer.state_dict(step=first)
        read([mixer], first, 5)
        if action is not None:
            recorded = steer(ledger, action[0], weights=action[1], why="a test").record
            assert recorded.first_round == open_records(DirectoryLedger(ledger)).rounds.num()
            num_unsteered = recorded.first_round if num_unsteered is None else min(num_unsteered, recorded.first_round)
        if not is_killed:
            read([mixer], first + 5, 40)
            check(ledger, 0 if num_unsteered is None else num_unsteered)
        mixer = opened(shards, ledger, lag)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "resumed at draw")
            mixer.load_state_dict(checkpoint)
    read([mixer], first, 40)
    check(ledger, 0 if num_unsteered is None else num_unsteered)


class BlindLedger(DirectoryLedger):
    """A ledger whose process does not see a steering yet, as on a slow network file system."""

    def get(self, name: str) -> bytes | None:
        return None if name.startswith("steers/") else super().get(name)


@pytest.mark.parametrize("blind_decides", [True, False])
def test_a_process_that_does_not_see_a_steering_reads_the_same_round(
    shards: ShardSet, tmp_path: Path, blind_decides: bool
) -> None:
    mixer = began(shards, tmp_path / "run")
    read([mixer], 0, ROUND_DRAWS)
    blind = Mixer(
        shards,
        loss_order(eta=0.5),
        ledger=BlindLedger(tmp_path / "run"),
        round_draws=ROUND_DRAWS,
        step_draws=1,
        wait_s=0.0,
    )
    steer(tmp_path / "run", "weights", weights=WEIGHTS[0], why="a test")
    order = [blind, mixer] if blind_decides else [mixer, blind]
    first, second = (own.round(1) for own in order)
    assert first == second and isinstance(first, SteeredRoundRecord) != blind_decides
    # The steering acts at the next round, which is undecided in every process.
    read([mixer], ROUND_DRAWS, ROUND_DRAWS)
    assert mixer.round(2).weights == [0.5, 0.25, 0.25]
    assert verify_ledger(DirectoryLedger(tmp_path / "run")) == [] and replay(tmp_path / "run").differing == []


def test_a_policy_observes_while_the_run_is_steered(shards: ShardSet, tmp_path: Path) -> None:
    plain, steered = began(shards, tmp_path / "plain"), began(shards, tmp_path / "steered")
    read([plain], 0, 100)
    read([steered], 0, 20)
    steer(tmp_path / "steered", "freeze", why="a test")
    read([steered], 20, 30)
    steer(tmp_path / "steered", "resume", why="a test")
    read([steered], 50, 50)
    # The losses of both runs are the same, and the policy depends on the losses alone.
    assert steered.round(2).weights == steered.round(3).weights == plain.round(1).weights != plain.round(3).weights
    assert steered.round(5).weights == plain.round(5).weights
    assert [steered.round(number).policy_state for number in range(6)] == [
        plain.round(number).policy_state for number in range(6)
    ]


def test_the_command_steers_and_every_view_shows_it(shards: ShardSet, tmp_path: Path) -> None:
    mixer = began(shards, tmp_path / "run")
    read([mixer], 0, 20)
    run = tmp_path / "run"
    printed = works("steer", run, "--weights", json.dumps(WEIGHTS[0]), "--why", "more sums")
    assert printed.endswith("steering 0 (weights) acts from round 2 on, or from the next undecided round on.\n")
    read([mixer], 20, 20)
    works("steer", run, "--resume", "--why", "enough")
    read([mixer], 40, 20)
    assert "steering 0, from round 2 on: weights, because more sums" in works("inspect", run)
    facts = json.loads(works("inspect", run, "--json"))
    assert [own["action"] for own in facts["steerings"]] == ["weights", "resume"]
    assert f"{2 * ROUND_DRAWS},,steering,,0" in works("inspect", run, "--csv").splitlines()
    works("verify", run)
    works("replay", run)
    for place, schema in ((steer_name(1), "steer-1"), (record_name(0, "rounds", 2), "round-3")):
        jsonschema.validate(
            json.loads((run / place).read_bytes()), json.loads((REPOSITORY / "schemas" / f"{schema}.json").read_bytes())
        )
    assert skillshard("steer", run, "--why", "nothing").code == 2
    assert skillshard("steer", run, "--freeze", "--resume", "--why", "both").code == 2
    assert "the weights name skills that the run of" in fails(
        "steer", run, "--weights", '{"sub": 1}', "--why", "a typo"
    )
    assert "a steering needs a reason" in fails("steer", run, "--freeze", "--why", " ")


def test_a_run_that_cannot_be_steered_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    Mixer(shards, stratified(), ledger=tmp_path / "stop", round_draws=ROUND_DRAWS, repeat="stop")
    with pytest.raises(LedgerError, match="ends before the first repeated sample"):
        steer(tmp_path / "stop", "weights", weights=WEIGHTS[0], why="a test")
    Mixer(shards, stratified(), ledger=tmp_path / "new", round_draws=ROUND_DRAWS)
    with pytest.raises(LedgerError, match="has decided no round"):
        steer(tmp_path / "new", "freeze", why="a test")
    with pytest.raises(PolicyError, match="needs a reason"):
        steer(tmp_path / "new", "resume", why="")


def test_a_changed_or_missing_steering_is_found(shards: ShardSet, tmp_path: Path) -> None:
    mixer = began(shards, tmp_path / "run")
    read([mixer], 0, 20)
    steer(tmp_path / "run", "weights", weights=WEIGHTS[0], why="a test")
    read([mixer], 20, 40)
    path = tmp_path / "run" / steer_name(0)
    record = json.loads(path.read_bytes())
    forged = SteerRecord.model_validate({**record, "weights": [0.25, 0.5, 0.25], "checksum": ""})
    path.write_bytes(forged.to_bytes())
    assert (
        "is another record than the round names: it was changed" in verify_ledger(DirectoryLedger(tmp_path / "run"))[0]
    )
    path.unlink()
    faults = verify_ledger(DirectoryLedger(tmp_path / "run"))
    assert faults and "is missing. Round 2 was decided with it" in faults[0]
    with pytest.raises(LedgerError, match="is missing"):
        read([mixer], 60, 40)


def test_a_continued_run_begins_without_steering(shards: ShardSet, tmp_path: Path) -> None:
    mixer = began(shards, tmp_path / "first")
    read([mixer], 0, 20)
    steer(tmp_path / "first", "weights", weights=WEIGHTS[0], why="a test")
    read([mixer], 20, 40)
    assert mixer.round(3).weights == [0.5, 0.25, 0.25]
    after = Mixer.continue_from(
        mixer.ledger,
        draw=60,
        step=60,
        shards=shards,
        policy=loss_order(eta=0.5),
        ledger=tmp_path / "second",
        step_draws=1,
        wait_s=0.0,
    )
    read([after], 60, 1)
    assert after.round(0).weights != [0.5, 0.25, 0.25] and after.round(0).schema_version == "skillshard/round/2"
