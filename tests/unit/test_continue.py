"""What a continued run keeps, what begins anew, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillshard.errors import LedgerError, ObservationError, PolicyError, ShardError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import HANDOVER, DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.place_records import SkillPosition
from skillshard.mixing.records import open_records
from skillshard.policies import Policy, chain, max_change, proportional, skill_it, stratified
from skillshard.shards.read import ShardSet

SKILLS = ("add", "carry", "negate")
LOSSES = {"add": 2.0, "carry": 1.0, "negate": 3.0}


def live(eta: float = 1.0) -> Policy:
    return skill_it(SkillGraph.chain(SKILLS), eta=eta, window=3)


def trained(shards: ShardSet, ledger: Path, *, steps: int = 8, policy: Policy | None = None, **arguments: Any) -> Mixer:
    """Train some steps of 8 draws with a report after every second step, a round of 16 draws."""
    common: dict[str, Any] = {"round_draws": 16, "step_draws": 8, "wait_s": 0.0} | arguments
    mixer = Mixer(shards, policy or live(), ledger=ledger, **common)
    if mixer.initial_losses:
        mixer.report(0, LOSSES)
    for step in range(1, steps + 1):
        mixer.batch((step - 1) * 8, 8)
        if step % 2 == 0:
            mixer.report(step, {skill: LOSSES[skill] / step for skill in shards.skills})
    return mixer


def goes_on(shards: ShardSet, old: Path, new: Path, *, policy: Policy | None = None, **arguments: Any) -> Mixer:
    common: dict[str, Any] = {"draw": 64, "step": 8, "step_draws": 8, "wait_s": 0.0}
    if "state" in arguments:
        del common["draw"], common["step"]
    return Mixer.continue_from(old, shards=shards, policy=policy or live(), ledger=new, **(common | arguments))


def test_draws_and_steps_go_on_counting(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "1")
    mixer = goes_on(shards, tmp_path / "1", tmp_path / "2")
    assert mixer.draw == mixer.first_draw == 64
    assert mixer.state_dict(step=10)["draw"] == 80
    assert mixer.round(0).first_draw == 64 and mixer.round(0).carry is not None
    assert mixer.at(np.arange(64, 70)).draw.tolist() == list(range(64, 70))
    with pytest.raises(PolicyError, match="this run begins at draw 64: earlier draws are in the ledger of the run"):
        mixer.batch(60, 8)


def test_other_losses_at_the_place_of_the_checkpoint_are_refused_with_what_helps(
    shards: ShardSet, tmp_path: Path
) -> None:
    """A processor with other digits measures other losses at the checkpoint, after a resume and in a new run."""
    state = trained(shards, tmp_path / "1").state_at(48, 6).model_dump(by_alias=True)
    resumed = Mixer(shards, live(), ledger=tmp_path / "1", round_draws=16, step_draws=8, wait_s=0.0)
    with pytest.warns(UserWarning, match="left behind"):
        resumed.load_state_dict(state)
    other = {skill: LOSSES[skill] / 6 + 1e-6 for skill in shards.skills}
    for mixer in (resumed, goes_on(shards, tmp_path / "1", tmp_path / "2", draw=48, step=6)):
        mixer.report(6, {skill: LOSSES[skill] / 6 for skill in shards.skills})
        with pytest.raises(ObservationError, match=r"for step 6, draw 48: .* Report again after the next steps"):
            mixer.report(6, other)
        mixer.batch(48, 16)
        mixer.report(8, other)


def test_an_unchanged_run_goes_on_with_the_same_samples_of_each_skill(shards: ShardSet, tmp_path: Path) -> None:
    """The rounds differ, because the carry begins at 0. The order within a skill does not."""
    old = trained(shards, tmp_path / "1", steps=16, policy=proportional())
    mixer = goes_on(shards, tmp_path / "1", tmp_path / "2", policy=proportional())

    def by_skill(stream: Mixer) -> dict[str, list[str]]:
        ids: dict[str, list[str]] = {skill: [] for skill in SKILLS}
        for skill, identity in zip(stream.batch(64, 32).skill, stream.ids(64, 32), strict=True):
            ids[skill].append(identity)
        return ids

    expected, continued = by_skill(old), by_skill(mixer)
    for skill in SKILLS:
        length = min(len(expected[skill]), len(continued[skill]))
        assert length and expected[skill][:length] == continued[skill][:length]


def test_an_equal_policy_keeps_its_state_and_reads_every_observation_once(shards: ShardSet, tmp_path: Path) -> None:
    """SKILL-IT with a window of 3 has the losses of steps 4, 6 and 8 at the end of step 8."""
    trained(shards, tmp_path / "1")
    mixer = goes_on(shards, tmp_path / "1", tmp_path / "2")
    window = mixer.round(0).policy_state["window"]
    assert window == [[loss / step for loss in LOSSES.values()] for step in (4, 6, 8)]
    assert not mixer.initial_losses


def test_another_policy_begins_with_the_last_observation(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "1")
    mixer = goes_on(shards, tmp_path / "1", tmp_path / "2", policy=live(eta=0.25))
    assert mixer.round(0).policy_state["window"] == [[loss / 8 for loss in LOSSES.values()]]
    assert mixer.num_observations == 1 and not mixer.initial_losses
    record = open_records(DirectoryLedger(tmp_path / "2")).observations.get(0)
    assert record is not None and (record.step, record.draw) == (8, 64)


def test_losses_that_lack_a_skill_of_the_new_policy_are_not_copied(shards: ShardSet, tmp_path: Path) -> None:
    chosen = shards.choose(["add", "carry"])
    graph = SkillGraph.chain(("add", "carry"))
    old = Mixer(chosen, skill_it(graph, eta=1.0), ledger=tmp_path / "1", round_draws=16, step_draws=8)
    old.report(0, {"add": 2.0, "carry": 1.0})
    old.batch(0, 16)
    mixer = goes_on(shards, tmp_path / "1", tmp_path / "2", draw=12, step=3)
    assert mixer.num_observations == 0 and mixer.initial_losses
    with pytest.raises(
        ObservationError, match=r"Evaluate the model before the first step and call mixer.report\(3, losses, draw=12\)"
    ):
        mixer.report(4, LOSSES)
    mixer.report(3, LOSSES)
    assert mixer.batch(12, 8).draw.tolist() == list(range(12, 20))


def test_a_limit_on_change_also_holds_at_the_beginning_of_the_new_run(shards: ShardSet, tmp_path: Path) -> None:
    old = trained(shards, tmp_path / "1", policy=stratified())
    mixer = goes_on(shards, tmp_path / "1", tmp_path / "2", policy=chain(proportional(), max_change(0.05)))
    before, after = old.round(3).weights, mixer.round(0).weights
    assert sum(abs(left - right) for left, right in zip(before, after, strict=True)) / 2 == pytest.approx(0.05)


def test_the_record_names_the_old_run_and_the_place_of_each_skill(shards: ShardSet, tmp_path: Path) -> None:
    old = trained(shards, tmp_path / "1")
    goes_on(shards, tmp_path / "1", tmp_path / "2", seed=7)
    begun = open_records(DirectoryLedger(tmp_path / "2")).run.continues
    assert begun is not None and (begun.run, begun.draw, begun.step, begun.num_rounds) == (old.run_digest, 64, 8, 4)
    drawn = [before + count for before, count in zip(old.round(3).drawn_before, old.round(3).counts, strict=True)]
    for place, num_drawn in zip(begun.skills, drawn, strict=True):
        assert place.epoch * place.num_samples + place.position == num_drawn
        assert (place.label, place.passes) == (place.skill, num_drawn / place.num_samples)
        assert place.seed == 0  # the seed 7 begins with the next epoch


def test_the_policy_counts_the_rounds_of_all_runs(shards: ShardSet, tmp_path: Path) -> None:
    """Aioli and graph_refresh keep numbers of rounds in their states."""
    trained(shards, tmp_path / "1")
    mixer = goes_on(
        shards, tmp_path / "1", tmp_path / "2", policy=skill_it(SkillGraph.chain(SKILLS), eta=1.0, mode="paper")
    )
    assert mixer.round(0).policy_state["rounds"] == [3]
    mixer.batch(64, 16)
    mixer.report(10, LOSSES)
    mixer.batch(80, 16)
    mixer.report(12, LOSSES)
    assert mixer.round(3).policy_state["rounds"] == [3, 4, 5]


# --- the same script goes on --------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_old_run_begins_the_new_run(shards: ShardSet, tmp_path: Path) -> None:
    state = trained(shards, tmp_path / "1").state_dict(step=8)
    goes_on(shards, tmp_path / "1", tmp_path / "2", state=state)
    mixer = Mixer(shards, live(), ledger=tmp_path / "2", round_draws=16, step_draws=4)
    mixer.load_state_dict(state)
    assert mixer.draw == 64 and mixer.state_dict(step=10)["draw"] == 72
    mixer.report(9, LOSSES)
    own = mixer.state_dict(step=9)
    again = Mixer(shards, live(), ledger=tmp_path / "2", round_draws=16, step_draws=4)
    again.load_state_dict(own)
    assert again.draw == 68
    assert verify_ledger(again.ledger) == []


def test_a_checkpoint_of_another_draw_of_the_old_run_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    old = trained(shards, tmp_path / "1")
    mixer = goes_on(shards, tmp_path / "1", tmp_path / "2")
    with pytest.raises(LedgerError, match=r"continues run .* from draw 64, and this state of that run is of draw 56"):
        mixer.load_state_dict(old.state_dict(step=7))


def test_a_new_run_that_died_before_its_first_checkpoint_begins_again(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "1")
    first = goes_on(shards, tmp_path / "1", tmp_path / "2")
    ids = first.ids(64, 16)
    first.report(10, LOSSES)
    with pytest.warns(UserWarning, match=r"resumed at draw 64: later losses \(1\)"):
        second = goes_on(shards, tmp_path / "1", tmp_path / "2")
        second.restart()
    assert second.ids(64, 16) == ids and second.num_observations == 1
    second.report(10, dict.fromkeys(SKILLS, 9.0))
    assert verify_ledger(second.ledger) == []


def test_the_old_ledger_is_not_needed_any_more_and_nothing_is_written_there(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "1")
    before = {path: path.read_bytes() for path in (tmp_path / "1").rglob("*.json")}
    goes_on(shards, tmp_path / "1", tmp_path / "2")
    assert {path: path.read_bytes() for path in (tmp_path / "1").rglob("*.json")} == before
    (tmp_path / "1").rename(tmp_path / "away")
    assert Mixer(shards, live(), ledger=tmp_path / "2", round_draws=16).draw == 64


def test_a_checkpoint_begins_a_run_after_runs_without_a_draw(shards: ShardSet, tmp_path: Path) -> None:
    state = trained(shards, tmp_path / "1").state_at(48, 6).model_dump(by_alias=True)
    mixer = goes_on(shards, tmp_path / "1", tmp_path / "2", state=state, policy=proportional())
    mixer.load_state_dict(state)  # and no draw
    mixer = goes_on(shards, tmp_path / "2", tmp_path / "3", state=state, policy=proportional())
    mixer = goes_on(shards, tmp_path / "3", tmp_path / "4", draw=48, step=6, policy=proportional())
    mixer.load_state_dict(state)
    assert (mixer.draw, mixer.state_dict(step=7)["draw"]) == (48, 56)
    mixer.batch(48, 16)
    # Run 4 has given draws.
    after = goes_on(shards, tmp_path / "4", tmp_path / "5", draw=56, step=7, policy=proportional())
    other_place = state | {"draw": 56, "step": 7}
    for wrong in (state, other_place):
        with pytest.raises(LedgerError, match="this state is of run"):
            after.load_state_dict(wrong)
    with pytest.raises(LedgerError, match="give the ledger of the state"):
        goes_on(shards, tmp_path / "5", tmp_path / "6", state=state)
    (tmp_path / "2").rename(tmp_path / "away")
    with pytest.raises(LedgerError, match="this state is of run"):
        Mixer(shards, proportional(), ledger=tmp_path / "4", round_draws=16).load_state_dict(state)


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_a_draw_that_no_round_has_decided_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "1")
    with pytest.raises(
        LedgerError,
        match=r"the new run would begin at draw 9,000 \(step 8\), and .* has been decided up to draw 64: no model has seen",
    ):
        goes_on(shards, tmp_path / "1", tmp_path / "2", draw=9000)


def test_the_place_must_be_given_once(shards: ShardSet, tmp_path: Path) -> None:
    state = trained(shards, tmp_path / "1").state_dict(step=8)
    with pytest.raises(PolicyError, match="give either state=STATE or draw=DRAW"):
        goes_on(shards, tmp_path / "1", tmp_path / "2", state=state, draw=64)


def test_a_ledger_continues_a_single_place(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "1")
    goes_on(shards, tmp_path / "1", tmp_path / "2")
    with pytest.raises(LedgerError, match=r"from draw 64 .* from draw 48"):
        goes_on(shards, tmp_path / "1", tmp_path / "2", draw=48, step=6)
    trained(shards, tmp_path / "3")
    with pytest.raises(LedgerError, match="holds a run that continues no other run"):
        goes_on(shards, tmp_path / "1", tmp_path / "3")


def test_a_changed_handover_is_noticed(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "1")
    goes_on(shards, tmp_path / "1", tmp_path / "2")
    place = tmp_path / "2" / HANDOVER
    place.write_bytes(place.read_bytes().replace(b'"step": 8', b'"step": 9', 1))
    with pytest.raises(LedgerError, match=r"handover.json is damaged"):
        Mixer(shards, live(), ledger=tmp_path / "2", round_draws=16)
    place.unlink()
    with pytest.raises(LedgerError, match="another run"):
        Mixer(shards, live(), ledger=tmp_path / "2", round_draws=16)


def resharded(shards: ShardSet, moved: dict[str, str]) -> ShardSet:
    """Return a shard set in memory in which a skill has other samples: the shards of another skill."""
    content = {skill.name: skill for skill in shards.manifest.skills}
    skills = [
        skill.model_copy(update={"train": content[moved.get(skill.name, skill.name)].train})  # type: ignore[call-overload]
        for skill in shards.manifest.skills
        if skill.name != "add" or "add" in moved
    ]
    return dataclasses.replace(
        shards, manifest=shards.manifest.model_copy(update={"skills": skills}), whole_digest="other"
    )


def test_skills_that_may_hold_samples_of_a_begun_skill_need_a_restart(shards: ShardSet, tmp_path: Path) -> None:
    """The run has drawn `carry`. The new set has another content under this name, and no skill with the old content."""
    chosen = shards.choose(["carry", "negate"])
    old = trained(chosen, tmp_path / "1", policy=stratified())
    other = resharded(shards, {"carry": "add"}).choose(["carry", "negate"])
    drawn = old.round(3).drawn_before[0] + old.round(3).counts[0]
    position = (drawn - 1) % len(shards.train["carry"]) + 1
    with pytest.raises(
        ShardError, match=f"'carry' .* may hold samples of 'carry', .* Up to {position:,} samples would come twice"
    ):
        goes_on(other, tmp_path / "1", tmp_path / "2", policy=stratified())
    mixer = goes_on(other, tmp_path / "1", tmp_path / "3", policy=stratified(), restart=["carry"])
    begun = open_records(mixer.ledger).run.continues
    assert begun is not None
    assert [(place.skill, place.label, place.position > 0) for place in begun.skills] == [
        ("carry", "carry'", False),
        ("negate", "negate", True),
    ]
    assert [place.label for place in begun.absent] == ["carry"]


def test_a_needless_restart_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    trained(shards, tmp_path / "1")
    with pytest.raises(ShardError, match=r"`restart` names 'add', and this skill .* needs no restart"):
        goes_on(shards, tmp_path / "1", tmp_path / "2", restart=["add"])
    with pytest.raises(ShardError, match=r"`restart` names 'ad' \(did you mean 'add'\?\), and .* has no such skill"):
        goes_on(shards, tmp_path / "1", tmp_path / "2", restart=["ad"])
    goes_on(shards, tmp_path / "1", tmp_path / "2")  # the refused calls left nothing behind


POSITION = {
    "skill": "add",
    "label": "add",
    "content": "0",
    "num_shards": 3,
    "num_samples": 10,
    "seed": 0,
    "epoch": 1,
    "position": 5,
    "passes": 1.5,
    "layers": [{"num_shards": 2, "position": 0}, {"num_shards": 3, "position": 4}],
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"position": 11, "passes": 2.1}, "add: 11 draws of epoch 1 are not 2.1 passes"),
        ({"passes": 1.4}, "add: 5 draws of epoch 1 are not 1.4 passes"),
        ({"num_shards": 4}, "the layers of the epoch do not rise to 4 shards"),
        ({"layers": [{"num_shards": 3, "position": 1}]}, "the layers of the epoch do not rise to 3 shards"),
        ({"layers": POSITION["layers"][::-1]}, "the layers of the epoch do not rise to 3 shards"),  # type: ignore[index]
    ],
)
def test_a_place_whose_numbers_do_not_fit_each_other_is_refused(changes: dict[str, Any], sentence: str) -> None:
    assert SkillPosition(**POSITION).drawn == 15  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        SkillPosition(**(POSITION | changes))  # type: ignore[arg-type]
