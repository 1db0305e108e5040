"""The past of a chain of continued runs is the stream that the runs gave, up to the draw where each run was continued."""

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.errors import LedgerError
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.recorded import open_recorded
from skillshard.mixing.recorded_chain import DrawnInRun, SkippedInRun, open_recorded_chain
from skillshard.mixing.run_records import SkippingHandoverRecord
from skillshard.policies import loss_order, proportional, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.write import append_shards
from tests.commands import fails, skillshard, works
from tests.conftest import HERE, sample, samples, tag_and_shard, write_corpus

STEP = 8
# The smallest skill is small, and an equal mix draws it often.
pytestmark = pytest.mark.filterwarnings("ignore::skillshard.errors.RepetitionWarning")


class Days(NamedTuple):
    """A chain of three runs.

    Attributes:
        runs: Ledgers, the oldest first.
        ids: Ids of all draws of the history, from draw 0 on.
        first: First draw of each run.
        skipped: Ids of the draws of the second run that the third run has skipped.
        old, new: Shards of the first run, and of the other runs.
    """

    runs: list[Path]
    ids: list[str]
    first: list[int]
    skipped: list[str]
    old: ShardSet
    new: ShardSet


def report(mixer: Mixer, step: int) -> None:
    mixer.report(step, {skill: 3.0 / (1 + number + step / 10) for number, skill in enumerate(mixer.skills)})


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    """The second run has shards with appended files and a new skill, and the third run skips draws of the second run."""
    folder = tmp_path_factory.mktemp("days")
    corpus = write_corpus(folder / "corpus", samples(add=60, carry=40))
    old = tag_and_shard(corpus, folder)
    later = [
        sample(skill, number) for skill, first in (("add", 60), ("negate", 0)) for number in range(first, first + 30)
    ]
    files = Corpus.open(write_corpus(folder / "later", later))
    tags = taggers.tag_corpus(files, taggers.metadata("skill"), folder / "tags-later", backend=HERE)
    new = append_shards(old, files, tags, folder / "shards-later", backend=HERE)
    runs = [folder / "runs" / name for name in ("monday", "tuesday", "wednesday")]
    first = Mixer(old, loss_order(eta=0.5), ledger=runs[0], round_draws=32, step_draws=STEP)
    for step in range(0, 20, 4):
        report(first, step)
        first.batch(step * STEP, 4 * STEP)
    arguments: dict[str, Any] = {"shards": new, "step_draws": STEP}
    second = Mixer.continue_from(
        runs[0], draw=112, step=14, policy=stratified(), ledger=runs[1], round_draws=24, **arguments
    )
    second.round(4)  # 120 draws, of which the first 80 count
    third = Mixer.continue_from(
        runs[1],
        draw=192,
        step=24,
        policy=proportional(),
        ledger=runs[2],
        seed=5,
        skip=[(200, 10, "the loss rose")],
        **arguments,
    )
    third.round(3)
    ids = [*first.ids(0, 112), *second.ids(112, 80), *third.ids(192, 80)]
    return Days(runs, ids, [0, 112, 192], second.ids(200, 10), old, new)


def test_every_draw_of_the_chain_is_the_draw_of_its_run(days: Days) -> None:
    past = open_recorded_chain(days.runs[2])
    recorded = list(past.samples(range(len(days.ids))))
    assert [sample.id for _, sample in recorded] == days.ids
    assert [sample.draw for _, sample in recorded] == list(range(len(days.ids)))
    assert [
        next(draw for draw, (run, _) in enumerate(recorded) if run == str(ledger)) for ledger in days.runs
    ] == days.first
    backwards = [270, 3, 111, 112, 191, 192]
    assert [sample.id for _, sample in past.samples(backwards)] == [days.ids[draw] for draw in backwards]


def test_every_draw_and_every_skip_of_every_sample_is_found(days: Days) -> None:
    past = open_recorded_chain(days.runs[2])
    decided = list(past.samples(range(past.num_draws)))
    drawn = defaultdict(list)
    for run, own_draw in decided:
        drawn[own_draw.id].append(
            DrawnInRun(own_draw.draw, own_draw.draw // STEP + 1, own_draw.round, own_draw.epoch, run)
        )
    for split in (days.new.train, days.new.holdout):
        for of_skill in split.values():
            for own in of_skill:
                seen = past.seen(own.id, step_draws=STEP)
                assert [event for event in seen.history if isinstance(event, DrawnInRun)] == drawn[own.id]
                skips = [event for event in seen.history if isinstance(event, SkippedInRun)]
                assert len(skips) == days.skipped.count(own.id)
                assert all(skip[:3] == (200, 10, "the loss rose") for skip in skips)
                assert all(skip.run == str(days.runs[1]) for skip in skips)
                assert (seen.num_draws, seen.num_runs, seen.faults) == (past.num_draws, 3, [])
    with pytest.raises(LedgerError, match="no sample of the shards of these runs has the id 'nobody'"):
        past.seen("nobody")


def test_a_step_of_the_chain_has_the_draws_of_its_run(days: Days) -> None:
    past = open_recorded_chain(days.runs[2])
    # The second run has no reports: its steps follow from its beginning and from the beginning of the run after it.
    assert [past.draws_of_step(step) for step in (1, 14, 15, 24)] == [
        range(8),
        range(104, 112),
        range(112, 120),
        range(184, 192),
    ]
    with pytest.raises(LedgerError, match="the draws of step 25 are unknown"):
        past.draws_of_step(25)
    assert past.draws_of_step(25, STEP) == range(192, 200)
    with pytest.raises(LedgerError, match="the first optimizer step is step 1"):
        past.draws_of_step(0)


def test_the_chain_of_a_run_that_continues_no_other_run_is_the_run(days: Days) -> None:
    past, alone = open_recorded_chain(days.runs[0]), open_recorded(days.runs[0])
    assert past.num_draws == alone.num_draws == 160
    assert [sample for _, sample in past.samples(range(160))] == list(alone.samples(range(160)))


def test_a_run_without_draws_in_the_middle_of_a_chain_changes_nothing(days: Days, tmp_path: Path) -> None:
    again: dict[str, Any] = {"shards": days.new, "policy": proportional(), "draw": 200}
    between = Mixer.continue_from(days.runs[2], ledger=tmp_path / "between", **again)
    between.round(0)
    Mixer.continue_from(tmp_path / "between", ledger=tmp_path / "last", **again).round(0)
    outcome = skillshard("at", tmp_path / "last", "--draw", 198, "--num", 2, "--json")
    assert [json.loads(line)["id"] for line in outcome.out.splitlines()] == days.ids[198:200] and outcome.err == ""


def lines(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in works(*arguments).splitlines()]


def test_at_reads_the_run_that_has_the_draw(days: Days) -> None:
    monday, tuesday, wednesday = map(str, days.runs)
    shown = works("at", wednesday, "--draw", 110, "--num", 4)
    assert [line.split(", epoch")[0] for line in shown.splitlines() if line.startswith("draw")] == [
        f"draw 110, round 3 of {monday}",
        f"draw 111, round 3 of {monday}",
        f"draw 112, round 0 of {tuesday}",
        f"draw 113, round 0 of {tuesday}",
    ]
    of_step = lines("at", wednesday, "--step", 14, "--rank", 1, "--world-size", 2, "--json")
    assert [(own["draw"], own["id"], own["run"]) for own in of_step] == [
        (draw, days.ids[draw], monday) for draw in range(105, 112, 2)
    ]
    # A run that continues no other run is shown as before.
    assert works("at", monday, "--draw", 3).startswith("draw 3, round 0, epoch 0 of skill ")


def test_at_says_that_draws_are_skipped_and_where_the_skipped_draws_are(days: Days) -> None:
    tuesday, wednesday = map(str, days.runs[1:])
    outcome = skillshard("at", wednesday, "--draw", 198, "--num", 4)
    assert outcome.out.startswith(f"draw 198, round 0 of {wednesday}, ")
    assert f"note: draws 200 to 209 of {tuesday} are skipped, because the loss rose. The lines above" in outcome.err
    assert f"'skillshard at {tuesday} --draw 200 --num 10' shows the skipped draws" in outcome.err
    shown = lines("at", tuesday, "--draw", 200, "--num", 10, "--json")
    assert [own["id"] for own in shown] == days.skipped
    assert skillshard("at", wednesday, "--draw", 190, "--num", 10).err == ""


def test_seen_lists_the_draws_of_all_runs(days: Days) -> None:
    wednesday = days.runs[2]
    often = max(set(days.ids), key=lambda own: (days.ids.count(own), own))
    shown = works("seen", wednesday, "--id", often).splitlines()
    draws = [draw for draw, own in enumerate(days.ids) if own == often]
    assert [int(line.split(",")[0].removeprefix("draw ")) for line in shown if line.startswith("draw")][
        : len(draws)
    ] == draws
    assert f" of {days.runs[0]}, epoch 0" in works("seen", wednesday, "--id", days.ids[5])
    assert shown[-1].endswith("among the 288 decided draws of 3 runs.")
    (skip,) = [own for own in lines("seen", wednesday, "--id", days.skipped[0], "--json") if "skipped" in own]
    assert skip["skipped"]["run"] == str(days.runs[1]) and skip["skipped"]["first"] == 200
    assert f"in the draws 200 to 209 of {days.runs[1]}, because the loss rose" in works(
        "seen", wednesday, "--id", days.skipped[0]
    )


def test_mix_lists_the_history_of_a_continued_run(days: Days) -> None:
    listed = lines("mix", days.new.root, "--ledger", days.runs[2], "--first", 100, "--draws", 150)
    assert [(own["draw"], own["id"]) for own in listed] == [(draw, days.ids[draw]) for draw in range(100, 250)]


def test_the_first_report_of_the_next_run_tells_the_steps_of_a_run_without_reports(
    shards: ShardSet, tmp_path: Path
) -> None:
    first = Mixer(shards, proportional(), ledger=tmp_path / "first", round_draws=64)
    first.round(2)
    works("continue", tmp_path / "first", "--draw", 160, "--out", tmp_path / "second")
    second = Mixer(shards, loss_order(eta=0.5), ledger=tmp_path / "second", round_draws=64, step_draws=16)
    second.load_state_dict(first.state_at(160).model_dump(by_alias=True))
    second.round(0)
    assert "second has no two reports" in fails("at", tmp_path / "second", "--step", 3)
    second.report(10, dict.fromkeys(shards.skills, 2.0), draw=160)
    past = open_recorded_chain(tmp_path / "second")
    assert [past.draws_of_step(step) for step in (1, 10)] == [range(16), range(144, 160)]


# --- what is missing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(days: Days, tmp_path: Path) -> Path:
    """A copy of the runs, whose files may be moved."""
    return Path(shutil.copytree(days.runs[0].parent, tmp_path / "runs"))


def test_a_missing_ledger_is_a_sentence_with_the_remedy(days: Days, moved: Path) -> None:
    (moved / "monday").rename(moved / "elsewhere")
    run = moved / "wednesday"
    remedy = (
        f"{moved}/tuesday continues another run from draw 112, and the ledger of that run is not in {moved}/monday. Put the ledger there again, or "
        "make a link there to its new place."
    )
    assert fails("at", run, "--draw", 4) == f"draw 4 was asked for. {remedy}"
    assert fails("at", run, "--step", 4) == f"step 4 was asked for. {remedy}"
    assert works("at", run, "--draw", 112).startswith(f"draw 112, round 0 of {moved}/tuesday")
    outcome = skillshard("seen", run, "--id", days.ids[150])
    assert outcome.code == 0 and f"note: a part of the history is not searched: {remedy}" in outcome.err
    assert outcome.out.splitlines()[-1].endswith("among the 176 decided draws of 2 runs.")
    assert remedy in fails("mix", days.new.root, "--ledger", run, "--draws", 3)
    (moved / "monday").symlink_to(moved / "elsewhere")
    assert works("at", run, "--draw", 4).startswith(f"draw 4, round 0 of {moved}/monday")
    (moved / "tuesday" / "beside" / "before.json").unlink()
    assert "and the place of the ledger of that run is not noted" in fails("at", run, "--draw", 4)


def test_missing_shards_of_an_earlier_run_are_a_sentence_with_the_remedy(
    days: Days, moved: Path, tmp_path: Path
) -> None:
    place = moved / "monday" / "beside" / "shards.json"
    place.write_text(json.dumps({"place": str(tmp_path / "gone")}))
    run = moved / "wednesday"
    sentence = fails("at", run, "--draw", 4)
    assert f"the run {moved}/monday has read the shards at {tmp_path}/gone, which cannot be opened" in sentence
    assert "If the shards were moved, give --shards, their new place." in sentence
    assert works("at", run, "--draw", 4, "--shards", days.old.root).startswith("draw 4, ")
    outcome = skillshard("seen", run, "--id", days.ids[150])
    assert outcome.code == 0 and f"{tmp_path}/gone, which cannot be opened" in outcome.err
    assert "decided draws of 2 runs." in outcome.out
    outcome = skillshard("seen", run, "--id", days.ids[150], "--shards", days.new.root, "--shards", days.old.root)
    assert outcome.err == "" and "decided draws of 3 runs." in outcome.out


def test_shards_of_no_run_of_the_chain_are_refused(days: Days, shards: ShardSet) -> None:
    sentence = fails("at", days.runs[2], "--draw", 4, "--shards", shards.root)
    assert f"{days.runs[2]} is a run over the shards" in sentence and f"{shards.root} holds the shards" in sentence


def test_the_past_of_a_single_run_names_the_chain(days: Days) -> None:
    with pytest.raises(LedgerError, match="or open both runs with `open_recorded_chain`"):
        list(open_recorded(days.runs[2]).samples([4]))
    with pytest.raises(LedgerError, match=r"has decided the draws 192 to 287, in 4 rounds\. Give a smaller draw"):
        list(open_recorded_chain(days.runs[2]).samples([400]))


# --- a run that has not begun -------------------------------------------------------------------------------------------


def test_a_run_that_has_not_begun_is_verified_and_said_to_wait(days: Days, tmp_path: Path) -> None:
    new = tmp_path / "new"
    works("continue", days.runs[0], "--draw", 100, "--skip", "104:4:bad", "--out", new)
    shown = works("verify", new)
    assert shown.startswith(f"{new}: the handover is as it was written. The run continues run ")
    assert shown.endswith("from draw 100, an unknown step, and nothing has been drawn yet.\n")
    sentence = f"{new} is a run that continues another run and has not begun: start the training with this ledger."
    for verb in (
        ("at", new, "--draw", 1),
        ("seen", new, "--id", days.ids[0]),
        ("replay", new),
        ("diff", new, days.runs[0]),
        ("report", new, "--out", tmp_path / "report.html"),
    ):
        assert fails(*verb) == sentence
    assert json.loads(works("inspect", new, "--json"))["kind"] == "waiting run"
    shown = works("inspect", new)
    assert f"in {days.runs[0]} from draw 100, an unknown step; policy of that run: loss_order" in shown
    assert (
        "draws 104 to 107 of the run before are skipped, because bad" in shown
        and "in the last round of the run before" in shown
    )
    assert "no round is decided yet, and the shards, the policy and the seed of the new run are not known" in shown
    assert fails("mix", days.new.root, "--ledger", new, "--draws", 3) == sentence
    assert not (new / "run.json").exists()


@pytest.mark.parametrize("damage", ["edit", "seal", "begun"])
def test_a_damaged_beginning_is_a_fault(days: Days, tmp_path: Path, damage: str) -> None:
    new = tmp_path / "new"
    works("continue", days.runs[0], "--draw", 100, "--skip", "104:4:bad", "--out", new)
    handover = json.loads((new / "handover.json").read_text())
    if damage == "begun":  # the definition of a run was lost after its beginning
        folder = new / "generations" / "00000000" / "rounds"
        folder.mkdir(parents=True)
        (folder / "00000000.json").write_text("{}")
        expected = "run.json is missing, and the run has begun"
    else:
        handover["skills"][0]["position"] -= 1
        handover["skills"][0]["passes"] = (
            handover["skills"][0]["epoch"] * handover["skills"][0]["num_samples"] + handover["skills"][0]["position"]
        ) / handover["skills"][0]["num_samples"]
        if damage == "seal":
            changed = SkippingHandoverRecord(**{key: own for key, own in handover.items() if key != "checksum"})
            (new / "handover.json").write_bytes(changed.to_bytes())
            expected = "has places that do not follow from its skipped draws: it was changed"
        else:
            (new / "handover.json").write_text(json.dumps(handover))
            expected = "it was changed"
    assert expected in fails("verify", new)
    assert expected in fails("inspect", new)
