"""A ledger trusts nothing: changed records, foreign states, impossible reports, and places that cannot be written."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skillshard import storage
from skillshard.errors import LedgerError, ObservationError, PolicyError, RoundError, SkillshardError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.loss import LossKind
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.mixing.round_records import ObservationRecord, RoundRecord
from skillshard.mixing.run_records import RunRecord
from skillshard.policies import (
    Policy,
    cap,
    chain,
    fixed,
    floor,
    odm,
    proportional,
    skill_it,
    smoothing,
    softmax_loss,
    stratified,
)
from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY, samples, tag_and_shard, write_corpus

SKILLS = ("add", "carry", "negate")
GOOD = {"add": 1.0, "carry": 2.0, "negate": 0.5}


def build(shards: ShardSet, ledger: Path | str, **arguments: Any) -> Mixer:
    defaults: dict[str, Any] = {"round_draws": 64, "step_draws": 8, "wait_s": 0.0}
    policy = skill_it(SkillGraph.identity(SKILLS), eta=0.5)
    return Mixer(shards, arguments.pop("policy", policy), ledger=ledger, **(defaults | arguments))


def trained(shards: ShardSet, ledger: Path, rounds: int = 6) -> Mixer:
    mixer = build(shards, ledger)
    for number in range(rounds):
        mixer.report(8 * number, {**GOOD, "add": 1 + number / 10})
        mixer.round(number)
    return mixer


def path_of(ledger: Path, kind: str, number: int) -> Path:
    return ledger / "generations" / "00000000" / kind / f"{number:08d}.json"


# --- records ---------------------------------------------------------------------------------------------------------


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def removed(path: Path, **_: Any) -> None:
    path.unlink()


CHANGES: list[tuple[str, int, Callable[..., None], dict[str, Any]]] = [
    ("rounds", 3, edited, {"weights": [0.9, 0.05, 0.05]}),
    ("rounds", 3, edited, {"counts": [10**9] * 3}),
    ("rounds", 3, edited, {"counts": [-5, 60, 9]}),
    ("rounds", 3, edited, {"counts": [64]}),
    ("rounds", 3, edited, {"num_draws": 10**15}),
    ("rounds", 3, edited, {"policy_state": {}}),
    ("rounds", 3, removed, {}),
    ("observations", 2, edited, {"losses": {"add": 50.0, "carry": 2.0, "negate": 0.5}}),
    ("observations", 4, edited, {"draw": 2**63}),
    ("observations", 2, removed, {}),
]


@pytest.mark.parametrize(("kind", "number", "change", "values"), CHANGES)
def test_a_record_that_was_changed_or_lost_is_noticed_when_it_is_read_and_by_verify(
    shards: ShardSet, tmp_path: Path, kind: str, number: int, change: Callable[..., None], values: dict[str, Any]
) -> None:
    trained(shards, tmp_path)
    assert verify_ledger(open_records(trained(shards, tmp_path / "other").ledger).ledger) == []
    change(path_of(tmp_path, kind, number), **values)
    again = build(shards, tmp_path)  # opening does not fail, because a resume from an earlier draw must stay possible
    with pytest.raises(LedgerError, match=rf"{kind}/{number:08d}\.json (is damaged|is missing)"):
        if kind == "rounds" and change is edited:
            again.round(number)
        elif kind == "rounds":
            again.round(number), again.round(20)
        else:
            again.report(48, GOOD), again.round(6), list(open_records(again.ledger).observations)
    assert any(f"{kind}/{number:08d}.json" in fault for fault in verify_ledger(again.ledger))


def test_a_changed_record_with_a_checksum_of_its_own_does_not_follow_from_its_neighbours(
    shards: ShardSet, tmp_path: Path
) -> None:
    trained(shards, tmp_path)
    path = path_of(tmp_path, "rounds", 3)
    record = RoundRecord.model_validate({**json.loads(path.read_text()), "policy_state": {"forged": 1}, "checksum": ""})
    path.write_bytes(record.to_bytes())
    with pytest.raises(LedgerError, match=r"rounds/00000004\.json does not follow from the record before it"):
        build(shards, tmp_path).round(4)
    assert any("does not follow" in fault for fault in verify_ledger(build(shards, tmp_path).ledger))


def test_a_resume_from_before_a_damaged_record_leaves_it_behind(shards: ShardSet, tmp_path: Path) -> None:
    mixer = trained(shards, tmp_path)
    state, expected = mixer.state_at(128).model_dump(by_alias=True), mixer.round(2).weights
    for kind, number in (("rounds", 4), ("observations", 4), ("observations", 5)):
        path_of(tmp_path, kind, number).write_bytes(b"{")
    again = build(shards, tmp_path)
    with pytest.warns(UserWarning, match="resumed at draw 128: later losses"):
        again.load_state_dict(state)
    assert again.round(2).weights == expected
    assert not [fault for fault in verify_ledger(again.ledger) if "00000001/" in fault]


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": [9.0, 9.0, 9.0]},
        {"num_draws": 5},
        {"num_observed": 10**9},
        {"num_observed": 0},
        {"observed_to": -1},
    ],
)
def test_a_record_with_a_checksum_of_its_own_must_still_agree_with_itself_and_the_record_before(
    shards: ShardSet, tmp_path: Path, change: dict[str, Any]
) -> None:
    """The record is the last round, so no later record names its checksum."""
    trained(shards, tmp_path)
    path = path_of(tmp_path, "rounds", 5)
    record = RoundRecord.model_validate({**json.loads(path.read_text()), **change, "checksum": ""})
    path.write_bytes(record.to_bytes())
    with pytest.raises(LedgerError, match=r"rounds/00000005\.json (has|counts).*it was changed"):
        build(shards, tmp_path).round(5)
    assert len(verify_ledger(build(shards, tmp_path).ledger)) >= 1


def test_a_round_with_a_checksum_of_its_own_that_begins_later_than_its_number_says_is_refused(
    shards: ShardSet, tmp_path: Path
) -> None:
    trained(shards, tmp_path)
    path = path_of(tmp_path, "rounds", 5)
    record = json.loads(path.read_text())
    later = {**record, "first_draw": record["first_draw"] + 64, "checksum": ""}
    path.write_bytes(RoundRecord.model_validate(later).to_bytes())
    with pytest.raises(LedgerError, match=r"is round 5 from draw 384 on, but its name says otherwise: it was changed"):
        build(shards, tmp_path).round(5)


@pytest.mark.parametrize("number", [-1, 2**62, 2**62 + 1])
def test_a_round_holds_only_numbers_of_draws_that_can_be(shards: ShardSet, tmp_path: Path, number: int) -> None:
    trained(shards, tmp_path)
    record = json.loads(path_of(tmp_path, "rounds", 5).read_text())
    drawn = [number, *record["drawn_before"][1:]]
    with pytest.raises(ValueError, match=rf"drawn_before holds {number}: expected numbers from 0 to 2\*\*62"):
        RoundRecord.model_validate({**record, "drawn_before": drawn, "checksum": ""})


def test_a_lost_round_far_before_the_next_one_is_noticed_before_the_next_one_is_decided(
    shards: ShardSet, tmp_path: Path
) -> None:
    trained(shards, tmp_path)
    path_of(tmp_path, "rounds", 2).unlink()
    with pytest.raises(LedgerError, match=r"rounds/00000002\.json is missing"):
        build(shards, tmp_path).round(6)


def test_an_observation_that_was_put_in_place_of_a_used_one_is_noticed_when_the_next_round_is_decided(
    shards: ShardSet, tmp_path: Path
) -> None:
    mixer = trained(shards, tmp_path)
    used = mixer.round(5).num_observed - 1
    for number in range(used, mixer.num_observations):
        path_of(tmp_path, "observations", number).unlink()
    again = build(shards, tmp_path)
    for step in (8 * used, 8 * used + 8):
        again.report(step, {**GOOD, "add": 7.0})
    with pytest.raises(
        LedgerError, match=r"rounds/00000005\.json was decided with another observation than the ledger"
    ):
        again.round(6)
    assert any("was decided with another observation" in fault for fault in verify_ledger(again.ledger))


def test_files_that_are_no_records_do_no_harm(shards: ShardSet, tmp_path: Path) -> None:
    mixer = trained(shards, tmp_path)
    state = mixer.state_dict(step=40)
    for name in (
        "notes.json",
        "00000000/rounds/abc.json",
        "00000000/rounds/-0000001.json",
        "00000000/rounds/3.json",
        "00000000/rounds/00000003 (1).json",
        "00000000/observations/x.json",
    ):
        (tmp_path / "generations" / name).write_text("{}")
    again = build(shards, tmp_path)
    with pytest.warns(UserWarning, match="Ranks of one job") if mixer.num_rounds > 6 else nullcontext():
        again.load_state_dict(state)
    assert (again.generation, again.num_rounds, again.num_observations) == (1, 5, 6)
    assert verify_ledger(again.ledger) == []


# --- generations -----------------------------------------------------------------------------------------------------


def renamed(path: Path) -> None:
    path.rename(path.with_name("99999999.json"))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def moved_to_another_draw(path: Path) -> None:
    edited(path, draw=64)


@pytest.mark.parametrize("change", [emptied, removed, moved_to_another_draw, renamed])
def test_a_generation_whose_record_was_changed_is_left_behind_by_a_resume_from_before_it(
    shards: ShardSet, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """A failure of power leaves such a record. The state of the damaged generation itself is refused."""
    mixer = trained(shards, tmp_path)
    before = mixer.state_dict(step=40)
    resumed = build(shards, tmp_path)
    resumed.load_state_dict(before)
    resumed.report(48, {**GOOD, "add": 9.0})
    after = resumed.state_dict(step=48)
    change(tmp_path / "generations" / "00000001.json")
    again = build(shards, tmp_path)  # opening does not fail
    with pytest.raises(LedgerError, match=r"generations/(00000001|99999999)\.json (is|has)"):
        again.round(4)
    assert any(r"generations/00000001.json is" in fault for fault in verify_ledger(again.ledger))
    with pytest.warns(UserWarning, match="This resume leaves that generation behind"):
        again.load_state_dict(before)
    assert again.generation == (100000000 if change is renamed else 2)
    again.report(48, {**GOOD, "add": 0.5})
    assert (again.num_observations, again.round(7).observations) == (7, [384])
    lost = build(shards, tmp_path)
    with pytest.raises(LedgerError, match="that the checkpoint names"):
        lost.load_state_dict(after)


def test_the_last_records_that_a_generation_has_kept_are_compared_with_what_it_names(
    shards: ShardSet, tmp_path: Path
) -> None:
    mixer = trained(shards, tmp_path)
    again = build(shards, tmp_path)
    again.load_state_dict(mixer.state_dict(step=40))
    for kind, number, model, change in (
        ("rounds", 4, RoundRecord, {"policy_state": {"forged": 1}}),
        ("observations", 5, ObservationRecord, {"losses": {**GOOD, "add": 7.0}}),
    ):
        path = path_of(tmp_path, kind, number)
        record = model.model_validate({**json.loads(path.read_text()), **change, "checksum": ""})
        path.write_bytes(record.to_bytes())
        records = open_records(again.ledger)
        with pytest.raises(
            LedgerError, match=rf"{kind}/0000000{number}\.json is another record than generation 1 has kept"
        ):
            records.rounds.get(number) if kind == "rounds" else records.observations.get(number)
    assert len([fault for fault in verify_ledger(again.ledger) if "than generation 1 has kept" in fault]) == 2


def test_a_record_that_a_listing_leaves_out_still_counts(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing during the write of a record may show only the records around the new record."""
    trained(shards, tmp_path)
    ledger = build(shards, tmp_path).ledger
    names = type(ledger).names
    monkeypatch.setattr(
        type(ledger), "names", lambda self, folder: [*names(self, folder)[:2], *names(self, folder)[3:]]
    )
    assert len(list(open_records(ledger).rounds)) == len(list(open_records(ledger).observations)) == 6


def test_the_record_of_a_generation_names_the_last_round_that_is_kept(shards: ShardSet, tmp_path: Path) -> None:
    mixer = trained(shards, tmp_path)
    expected = mixer.round(1).checksum
    with pytest.warns(UserWarning, match="resumed at draw 128"):
        build(shards, tmp_path).load_state_dict(mixer.state_at(128).model_dump(by_alias=True))
    record = json.loads((tmp_path / "generations" / "00000001.json").read_text())
    assert (record["num_rounds"], record["last_round"]) == (2, expected)


# --- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", ["an empty ledger", "another past"])
def test_a_checkpoint_beside_another_ledger_is_refused(shards: ShardSet, tmp_path: Path, prepare: str) -> None:
    state = trained(shards, tmp_path / "one").state_dict(step=24)
    other = build(shards, tmp_path / "two")
    if prepare == "another past":
        for number in range(4):
            other.report(8 * number, {**GOOD, "add": 4.0})
            other.round(number)
    with pytest.raises(
        LedgerError, match=r"^round 2 of .*made beside another ledger.* give ledger=the directory of that run"
    ):
        other.load_state_dict(state)
    assert other.generation == 0


def test_a_state_names_the_observations_before_it(shards: ShardSet, tmp_path: Path) -> None:
    """An observation that is lost between the last round and the checkpoint is not yet missing in a round."""
    mixer = trained(shards, tmp_path, rounds=4)
    state = mixer.state_dict(step=24)
    assert (state["num_observations"], len(json.dumps(state)) < 1000) == (4, True)
    path_of(tmp_path, "observations", 3).unlink()
    with pytest.raises(LedgerError, match=r"observation 3 of .* is missing"):
        build(shards, tmp_path).load_state_dict(state)


def test_a_policy_that_reads_no_losses_goes_on_beside_an_empty_ledger(shards: ShardSet, tmp_path: Path) -> None:
    mixer = build(shards, tmp_path / "one", policy=proportional())
    expected = mixer.ids(200, 50)
    other = build(shards, tmp_path / "two", policy=proportional())
    other.load_state_dict(mixer.state_at(200).model_dump(by_alias=True))
    assert [other.draw, *other.ids(200, 50)] == [200, *expected]
    with pytest.raises(LedgerError, match="is not the round that the checkpoint names"):
        other.load_state_dict({**mixer.state_at(200).model_dump(by_alias=True), "round": "0" * 32})


# --- beginning again -------------------------------------------------------------------------------------------------


def test_a_run_that_died_before_its_first_checkpoint_begins_again(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path)
    again = build(shards, tmp_path)
    for begin in (lambda: next(iter(again)), lambda: next(again.batches(8)), again.check_start):
        with pytest.raises(LedgerError, match=re.escape("or mixer.restart() to begin again")):
            begin()
    with pytest.raises(
        ObservationError, match=re.escape("a run that starts again from its beginning calls mixer.restart()")
    ):
        again.report(0, {**GOOD, "add": 1.0000001})
    with pytest.warns(UserWarning, match=r"resumed at draw 0: later losses \(6\)"):
        again.restart()
    again.report(0, {**GOOD, "add": 1.0000001})
    assert next(iter(again)).draw == 0
    assert (again.generation, again.num_rounds, again.num_observations) == (1, 1, 1)
    assert verify_ledger(again.ledger) == []


def test_restart_does_nothing_to_an_untouched_ledger(shards: ShardSet, tmp_path: Path) -> None:
    mixer = build(shards, tmp_path)
    mixer.restart()
    mixer.restart()
    assert mixer.generation == 0 and not (tmp_path / "generations").exists()
    named = build(shards, tmp_path, job="first")
    named.restart()
    named.restart()
    assert (named.generation, build(shards, tmp_path).generation) == (1, 1), "the ranks of a job must find each other"


def test_a_job_that_is_started_again_under_its_old_name_is_told_to_take_another(
    shards: ShardSet, tmp_path: Path
) -> None:
    """The job joins the generation of the dead attempt, so its losses meet the losses of the dead attempt."""
    for loss in (1.0, 1.0000001):
        mixer = build(shards, tmp_path, job="4711")
        mixer.restart()
        if loss == 1.0:
            mixer.report(0, {**GOOD, "add": loss})
            continue
        with pytest.raises(ObservationError, match=r"If job '4711' was started again, give it another name"):
            mixer.report(0, {**GOOD, "add": loss})
    again = build(shards, tmp_path, job="4711-2")
    with pytest.warns(UserWarning, match="resumed at draw 0: later losses"):
        again.restart()
    again.report(0, {**GOOD, "add": 1.0000001})


def test_a_missing_first_report_is_said_at_once(shards: ShardSet, tmp_path: Path) -> None:
    mixer = build(shards, tmp_path, wait_s=600.0)
    mixer.round(0)
    for begin in (lambda: mixer.round(1), mixer.check_start):
        with pytest.raises(
            RoundError, match=re.escape("Evaluate the model before the first step and call mixer.report(0, losses)")
        ):
            begin()
    with pytest.raises(ObservationError, match=r"the first losses of this run are of step 3 \(draw 24\)"):
        mixer.report(3, GOOD)
    assert build(shards, tmp_path / "other", initial_losses=False).round(1).observations == []


@pytest.mark.parametrize("lag", [0, 1, 2, 3, "live"])
def test_the_losses_before_the_first_step_reach_the_round_of_the_lag(
    shards: ShardSet, tmp_path: Path, lag: Any
) -> None:
    mixer = build(shards, tmp_path, lag=lag)
    mixer.report(0, GOOD)
    first = 0 if lag == "live" else lag
    assert [mixer.round(number).observations for number in range(first + 1)] == [*([[]] * first), [0]]


# --- reports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"step": 10**12},
            "decided up to draw 64 only, so no model can have seen more than a round of 64 draws beyond it",
        ),
        ({"step": 10**30}, "give a whole number from 0 to 2**62"),
        ({"step": -1}, "step is -1: give a whole number from 0 to 2**62"),
        ({"step": True}, "step is True: give a whole number >= 0"),
        ({"step": 1, "draw": 2**62}, "no model can have seen more than a round of 64 draws beyond it"),
        ({"step": 2**60}, "would be of draw 9,223,372,036,854,775,808: a draw is between 0 and 2**62"),
        ({"step": 1, "draw": -3}, "draw is -3: give a whole number"),
        ({"step": 1, "losses": {**GOOD, "add": np.array([1.0, 2.0])}}, "are not finite numbers >= 0: add is [1. 2.]"),
        ({"step": 1, "losses": {**GOOD, "add": 10**400}}, "are not finite numbers >= 0: add is 1000"),
        ({"step": 1, "losses": {**GOOD, "add": "2"}}, "are not finite numbers >= 0: add is 2"),
    ],
)
def test_a_report_that_cannot_be_is_refused_at_once(
    shards: ShardSet, tmp_path: Path, arguments: dict[str, Any], sentence: str
) -> None:
    mixer = trained(shards, tmp_path, rounds=1)
    with pytest.raises(ObservationError, match=re.escape(sentence)):
        mixer.report(**({"losses": GOOD} | arguments))
    assert mixer.num_observations == 1


WRONG_TYPES = """
import sys
import skillshard as ss
from skillshard.errors import ObservationError
shards = ss.ShardSet.open(sys.argv[1])
mixer = ss.Mixer(shards, ss.policies.stratified(), ledger=sys.argv[2], round_draws=64, step_draws=8)
good = dict.fromkeys(shards.skills, 1.0)
for step, losses in (("50", good), (5.0, good), (None, good), (1, [1.0, 2.0]), (1, None), (1, {**good, 7: 1.0})):
    try:
        mixer.report(step, losses)
    except ObservationError as error:
        print(error)
"""


WRONG_ARGUMENTS = """
import sys
import skillshard as ss
from skillshard.errors import PolicyError
shards = ss.ShardSet.open(sys.argv[1])
graph = ss.SkillGraph.identity(shards.skills)
good = {"ledger": sys.argv[2], "round_draws": 64}
for bad in (
    {"round_draws": "5"}, {"round_draws": 5.5}, {"round_draws": True}, {"round_draws": 0}, {"lag": "soon"}, {"lag": 1.5}, {"lag": -1},
    {"seed": "x"}, {"seed": 2**70}, {"step_draws": 0}, {"step_draws": -5}, {"step_draws": "5"}, {"wait_s": -1}, {"wait_s": float("nan")},
    {"wait_s": "5"}, {"job": 5}, {"job": ""}, {"job": "a\\nb"}, {"job": "a\\ud800"}, {"loss": "per_token"}, {"loss": {"reduction": "per_token"}},
    {"held_out": "ab"},
):
    try:
        ss.Mixer(shards, ss.policies.stratified(), **{**good, **bad})
    except PolicyError as error:
        print(*bad, "|", error)
for bad in ({"eta": "1"}, {"eta": None}, {"window": 1.5}, {"window": True}, {"window": "3"}, {"prior": {1: 1.0}}, {"prior": {"a": 1e308}}):
    try:
        ss.policies.skill_it(graph, **{"eta": 0.5, **bad})
    except PolicyError as error:
        print(*bad, "|", error)
"""


def test_arguments_of_other_types_are_refused_in_a_sentence_when_the_mixer_opens(
    shards: ShardSet, tmp_path: Path
) -> None:
    """The calls run in a process of their own, because the test process checks the types of calls."""
    command = [sys.executable, "-c", WRONG_ARGUMENTS, str(shards.root), str(tmp_path / "run")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert len(lines) == 22 + 7 and all(name in rest for name, rest in (line.split(" | ") for line in lines)), lines
    assert not (tmp_path / "run").exists()


def test_a_policy_whose_arguments_have_no_json_form_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    class Odd(type(stratified())):  # type: ignore[misc]
        @property
        def arguments(self) -> dict[str, Any]:
            return {"weights": {1: 0.5}}

    with pytest.raises(PolicyError, match="the arguments of policy stratified have no JSON form"):
        build(shards, tmp_path, policy=Odd())


def test_a_report_of_other_types_is_refused_in_a_sentence(shards: ShardSet, tmp_path: Path) -> None:
    """The calls run in a process of their own, because the test process checks the types of calls."""
    command = [sys.executable, "-c", WRONG_TYPES, str(shards.root), str(tmp_path / "run")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert process.stderr == ""
    expected = ["step is '50'", "step is 5.0", "step is None", "are of type list", "are of type NoneType", "unknown 7"]
    lines = process.stdout.splitlines()
    assert len(lines) == len(expected) and all(part in line for part, line in zip(expected, lines, strict=True)), lines


@pytest.mark.parametrize(
    "value", [np.array([2.0]), np.array(2.0), np.float32(2), torch.tensor([2.0]), torch.tensor(2.0), 2]
)
def test_one_number_in_any_wrapping_is_a_loss(shards: ShardSet, tmp_path: Path, value: Any) -> None:
    mixer = build(shards, tmp_path)
    mixer.report(np.int64(0), {**GOOD, "add": value})  # type: ignore[arg-type]
    assert next(iter(open_records(mixer.ledger).observations)).losses["add"] == 2.0


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(-1.0, "add is -1.0"), ("2", "add is 2"), (None, "add is None"), (np.ones(2), "add is [1. 1.]")],
)
def test_a_report_that_is_wrong_is_refused_even_where_bad_losses_are_left_out(
    shards: ShardSet, tmp_path: Path, value: Any, sentence: str
) -> None:
    mixer = build(shards, tmp_path, on_bad_loss="leave-out")
    with pytest.raises(ObservationError, match=re.escape(f"{sentence}. Give numbers in nats per token. Nothing was")):
        mixer.report(0, {**GOOD, "add": value})
    assert mixer.num_observations == 0


def test_a_loss_that_would_overflow_in_sums_is_refused_as_infinity_is(shards: ShardSet, tmp_path: Path) -> None:
    mixer = build(shards, tmp_path)
    with pytest.raises(ObservationError, match=re.escape("are not finite numbers >= 0: add is 1e+308")):
        mixer.report(0, {**GOOD, "add": 1e308})


def test_a_bad_report_can_be_left_out(shards: ShardSet, tmp_path: Path) -> None:
    """The ledger records the report whole, and the report satisfies the round that waits. The policy does not see the report."""
    stopping = build(shards, tmp_path / "stop")
    with pytest.raises(
        ObservationError, match=re.escape("Mixer(on_bad_loss='leave-out') continues without such a report")
    ):
        stopping.report(0, {**GOOD, "add": math.nan})
    assert stopping.num_observations == 0
    lenient, without = build(shards, tmp_path / "one", on_bad_loss="leave-out"), build(shards, tmp_path / "without")
    for mixer in (lenient, without):
        mixer.report(0, GOOD)
        mixer.round(1)
    lenient.report(8, {**GOOD, "add": math.nan, "carry": math.inf})
    without.report(8, GOOD)
    record = list(open_records(lenient.ledger).observations)[1]
    assert (record.left_out, record.losses) == (True, {"add": None, "carry": None, "negate": 0.5})
    assert lenient.round(2).observations == [64]
    assert lenient.round(2).weights == lenient.round(1).weights != without.round(2).weights
    assert verify_ledger(lenient.ledger) == []
    with pytest.raises(PolicyError, match="on_bad_loss is 'ignore'"):
        build(shards, tmp_path / "bad", on_bad_loss="ignore")


def test_the_step_of_the_newest_report_is_known_from_the_first_report_on(shards: ShardSet, tmp_path: Path) -> None:
    mixer = build(shards, tmp_path)
    assert mixer.step_reported_at(0) is None
    for step in (0, 8):
        mixer.report(step, GOOD)
        mixer.round(step // 8)
        assert mixer.step_reported_at(8 * step) == step
    assert mixer.step_reported_at(0) is None


# --- looks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [-1, 64 * 3000, 2**62 - 1, 2**62, np.iinfo(np.int64).max])
def test_a_look_at_a_far_draw_decides_nothing(shards: ShardSet, tmp_path: Path, draw: int) -> None:
    mixer = build(shards, tmp_path, policy=stratified())
    for look in (mixer.at, mixer.find):
        with pytest.raises(
            PolicyError, match=r"a look so far ahead would decide|were asked for: a stream's draws are 0, 1, 2"
        ):
            look(np.array([draw]))
    sentence = (
        "draw 192,000 is in round 3,000, and no round is decided yet: a look so far ahead would decide 3,001 rounds."
    )
    with pytest.raises(PolicyError, match=sentence):
        mixer.at(np.array([64 * 3000]))
    for number in (-1, 10**15, 2**60):
        with pytest.raises(PolicyError, match=r"rounds are numbered 0, 1, 2|would decide"):
            mixer.round(number)
    assert mixer.num_rounds == 0


def test_a_look_far_ahead_decides_no_round_of_a_live_policy(shards: ShardSet, tmp_path: Path) -> None:
    """Each of these rounds would be decided without the losses that are still to come."""
    mixer = build(shards, tmp_path, lag="live")
    mixer.report(0, GOOD)
    with pytest.raises(PolicyError, match=r"draw 6,400 is in round 100, .*a look so far ahead would decide 101 rounds"):
        mixer.at(np.array([6400]))
    assert mixer.num_rounds == 0
    assert len(mixer.batch(0, 64 * 3).text) == 192


@pytest.mark.parametrize(("repeat", "expected"), [("epochs", None), ("stop", 90), ("drop", 524), ("cap:3", 3 * 524)])
def test_the_length_of_a_stream_is_known_where_it_has_one(
    shards: ShardSet, tmp_path: Path, repeat: str, expected: int | None
) -> None:
    mixer = build(shards, tmp_path, policy=stratified(), repeat=repeat)
    length = mixer.length()
    assert length is None if expected is None else length is not None
    if length is not None:
        assert mixer.num_rounds == 0, "nothing is decided by asking"
        assert sum(len(batch) for batch in mixer.batches(50)) == length
    if repeat in ("drop", "cap:3"):
        of_train = sum(len(skill) for skill in shards.train.values())
        assert length == of_train * (3 if repeat == "cap:3" else 1)
    assert build(shards, tmp_path / "live", repeat=repeat).length() is None


# --- skills and losses that do not fit -------------------------------------------------------------------------------


def test_a_skill_without_a_held_out_sample_is_refused_when_the_mixer_opens(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", samples(add=60, carry=40))
    opened = tag_and_shard(corpus, tmp_path, holdout=0.0)
    policy = skill_it(SkillGraph.identity(opened.skills), eta=0.5)
    with pytest.raises(
        PolicyError, match=r"reads the losses of 'add', 'carry', which have no held-out sample in .*--holdout"
    ):
        Mixer(opened, policy, ledger=tmp_path / "run", round_draws=64)
    assert not (tmp_path / "run").exists()
    Mixer(opened, policy, ledger=tmp_path / "elsewhere", round_draws=64, held_out=opened.skills)
    for other in (stratified(), odm(warmup_steps=0)):
        Mixer(opened, other, ledger=tmp_path / other.name, round_draws=64)


def test_a_policy_that_reads_no_losses_records_those_of_skills_that_are_measured_elsewhere(
    shards: ShardSet, tmp_path: Path
) -> None:
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=64, step_draws=8, held_out=["long sums"])
    mixer.report(0, {"long sums": 2.0})
    first = open_records(mixer.ledger).observations.get(0)
    assert first is not None and first.losses == {"long sums": 2.0}
    with pytest.raises(ObservationError, match=r"unknown 'add'. Report some of these 1: long sums"):
        mixer.report(1, {"add": 1.0})
    reading = Mixer(
        shards, softmax_loss(temperature=1.0), ledger=tmp_path / "live", round_draws=64, held_out=shards.skills
    )
    with pytest.raises(ObservationError, match="unknown 'long sums'"):
        reading.report(0, {"long sums": 2.0})


def test_losses_of_another_kind_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    from skillshard.loss import Loss, Losses

    mixer = build(shards, tmp_path)
    other = Losses({skill: Loss(1.0, 0.1, 4, 40) for skill in SKILLS}, kind=LossKind(reduction="per_token"))
    with pytest.raises(ObservationError, match="this run's losses are the mean over samples"):
        mixer.report(0, other)
    build(shards, tmp_path / "tokens", loss=LossKind(reduction="per_token")).report(0, other)


# --- one policy, one identity ----------------------------------------------------------------------------------------

PAIRS: list[tuple[Policy, Policy]] = [
    (
        chain(proportional(), floor(0.10), cap(0.5), floor(0.01)),
        chain(proportional(), floor(0.20), cap(0.5), floor(0.01)),
    ),
    (
        chain(odm(smoothing=0.1, warmup_steps=0), smoothing(0.75)),
        chain(odm(smoothing=0.9, warmup_steps=0), smoothing(0.75)),
    ),
    (chain(proportional(), floor(0.1), cap(0.4)), chain(proportional(), cap(0.4), floor(0.1))),
    (chain(chain(proportional(), floor(0.1)), cap(0.4)), chain(chain(proportional(), floor(0.2)), cap(0.4))),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_policies_that_can_weigh_differently_have_records_that_differ(
    shards: ShardSet, tmp_path: Path, first: Policy, second: Policy
) -> None:
    assert (first.name, first.arguments) != (second.name, second.arguments)
    Mixer(shards, first, ledger=tmp_path, round_draws=64).batch(0, 64)
    with pytest.raises(LedgerError, match="is the ledger of another run: policy"):
        Mixer(shards, second, ledger=tmp_path, round_draws=64)


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_file_system_without_hard_links_will_do(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    mixer = trained(shards, tmp_path / "run", rounds=3)
    mixer.ledger.flush()
    assert verify_ledger(mixer.ledger) == []
    assert not storage.put_if_absent(path_of(tmp_path / "run", "rounds", 0), b"other")
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith(".part")]
    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(LedgerError, match="has neither hard links nor symbolic links"):
        build(shards, tmp_path / "none")


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "Free some space"), (errno.EROFS, "Make the file system writable")]
)
def test_a_ledger_that_cannot_be_written_says_where_and_what_to_do(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    mixer = trained(shards, tmp_path, rounds=2)
    opened = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT and str(tmp_path) in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, *more, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        actions: list[Callable[[], Any]] = [lambda: mixer.report(16, GOOD), lambda: mixer.round(2)]
        for action in actions:
            with pytest.raises(SkillshardError, match=rf"{re.escape(str(tmp_path))}.* cannot be written: .*{remedy}"):
                action()
    mixer.report(16, GOOD)
    mixer.round(2)
    assert verify_ledger(mixer.ledger) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_ledger_that_cannot_be_listed_or_synced_says_so(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    mixer = trained(shards, tmp_path, rounds=2)

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(LedgerError, match=rf"{re.escape(str(tmp_path))}/.*json may not be on the disk: "):
            mixer.state_dict(step=8)
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", refuse)
        with pytest.raises(LedgerError, match=rf"{re.escape(str(tmp_path))}/generations cannot be read: "):
            build(shards, tmp_path)
    assert mixer.state_dict(step=8)["draw"] == 64


@pytest.mark.parametrize("place", ["", "a\0b"])
def test_a_place_that_is_no_path_is_refused(shards: ShardSet, place: str) -> None:
    with pytest.raises(LedgerError, match=r"the ledger's place is .*: give the path of a directory"):
        build(shards, place)


VERSION = int(RunRecord.model_fields["schema_version"].default.rpartition("/")[2])


@pytest.mark.parametrize("version", range(1, VERSION))
def test_a_run_of_an_older_version_is_refused(shards: ShardSet, tmp_path: Path, version: int) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": f"skillshard/run/{version}", "seed": 0}))
    with pytest.raises(LedgerError, match="was written by an older version of skillshard"):
        build(shards, tmp_path, policy=fixed({"add": 1.0, "carry": 1.0, "negate": 1.0}))
