"""`skillshard at`, `seen` and `mix --ledger` of a run whose draws are blocks, and of a run that continues this run."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from skillshard.errors import LedgerError
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.recorded_blocks import RecordedBlocks
from skillshard.mixing.recorded_chain import open_recorded_chain
from skillshard.policies import proportional, temperature
from skillshard.report.history import report_facts
from tests.commands import fails, skillshard, works
from tests.property.packed_streams import Counted, losses_at, stream_of
from tests.tokenizers_trained import EOS, counted, uneven_shards

pytestmark = pytest.mark.filterwarnings("ignore::skillshard.errors.RepetitionWarning")
STEP = 4
UNIT: dict[str, Any] = {"block_tokens": 16, "separator": EOS}


class Chained(NamedTuple):
    """A run of 120 blocks, of which 80 blocks in 20 steps count, and a run of samples that continues the run."""

    counted: Counted
    blocks: Path
    samples: Path


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Chained:
    folder = tmp_path_factory.mktemp("chained")
    shards = uneven_shards(folder)
    uneven = Counted(shards, counted(shards, folder / "T"), counted(shards, folder / "S", special_tokens=True))
    stream = stream_of(uneven, folder / "blocks", "skill", step_blocks=STEP)
    for step in (0, 10, 20):
        stream.report(step, losses_at(step))
        stream.batch(0, 100)
    samples = Mixer.continue_from(
        folder / "blocks",
        state=stream.state_dict(step=20),
        unit="samples",
        shards=shards,
        policy=proportional(),
        ledger=folder / "samples",
        old_tokens=uneven.plain,
        round_draws=60,
    )
    samples.round(9)
    return Chained(uneven, folder / "blocks", folder / "samples")


def lines(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in works(*arguments).splitlines()]


def test_at_shows_the_samples_of_a_block_and_says_which_are_cut(chained: Chained) -> None:
    of_step = lines("at", chained.samples, "--step", 3, "--json")
    assert [own["draw"] for own in of_step] == [8, 9, 10, 11]
    assert {own["run"] for own in of_step} == {str(chained.blocks)}
    for own in of_step:
        assert sum(part["num_tokens"] for part in own["parts"]) == 16
        for part in own["parts"]:
            assert part["is_cut"] == (part["num_tokens"] < part["sample_tokens"]) and part["file"] is not None
            assert part["id"].startswith(own["skill"])
    shown = works("at", chained.blocks, "--draw", of_step[0]["draw"]).splitlines()
    first = of_step[0]
    num = len(first["parts"])
    assert shown[0] == f"draw 8, round 0, epoch 0 of skill {first['skill']}: 16 tokens of {num} sample{'s'[: num > 1]}"
    for part, line, text in zip(first["parts"], shown[1::2], shown[2::2], strict=True):
        last = part["first_token"] + part["num_tokens"] - 1
        tokens = f"tokens {part['first_token']} to {last} of {part['sample_tokens']}, cut"
        assert (
            line
            == f"  {part['id']} ({part['file']}, row {part['row']}): {tokens if part['is_cut'] else 'whole sample'}"
        )
        assert text.strip() == part["text"][:160] + "..." * (len(part["text"]) > 160)


def test_seen_shows_every_block_of_a_sample_and_its_steps(chained: Chained) -> None:
    parts = [part for own in lines("at", chained.blocks, "--draw", 0, "--num", 79, "--json") for part in own["parts"]]
    long = max(parts, key=lambda part: (part["is_cut"], part["sample_tokens"]))["id"]
    expected = [
        (own["draw"], own["draw"] // STEP + 1)
        for own in lines("at", chained.samples, "--draw", 0, "--num", 80, "--json")
        if long in [part["id"] for part in own["parts"]]
    ]
    shown = lines("seen", chained.samples, "--id", long, "--json")
    of_blocks = [(own["draw"], own["step"]) for own in shown if own["run"] == str(chained.blocks)]
    assert len(of_blocks) > 1 and of_blocks == expected
    summary = works("seen", chained.samples, "--id", long).splitlines()[-1]
    assert summary.startswith(f"{long} of skill ") and summary.endswith("among the 680 decided draws of 2 runs.")


def test_mix_lists_the_ids_of_a_block(chained: Chained) -> None:
    listed = lines("mix", chained.counted.shards.root, "--ledger", chained.samples, "--first", 78, "--draws", 4)
    shown = lines("at", chained.samples, "--draw", 78, "--num", 4, "--json")
    assert [own["draw"] for own in listed] == [78, 79, 80, 81]
    assert [own["ids"] for own in listed[:2]] == [[part["id"] for part in own["parts"]] for own in shown[:2]]
    assert [own["id"] for own in listed[2:]] == [own["id"] for own in shown[2:]]


def test_tokens_that_were_moved_are_named_by_an_option(chained: Chained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(chained.blocks, tmp_path / "run"))
    (run / "beside" / "tokens.json").write_text(json.dumps({"place": str(tmp_path / "gone")}))
    sentence = fails("at", run, "--draw", 3)
    assert f"the run {run} has read the tokens at {tmp_path}/gone, which cannot be opened" in sentence
    assert sentence.endswith("If the tokens were moved, give --tokens, their new place.")
    plain, special = chained.counted.plain.root, chained.counted.special.root
    assert works("at", run, "--draw", 3, "--tokens", plain) == works("at", chained.blocks, "--draw", 3)
    sentence = fails("at", run, "--draw", 3, "--tokens", special)
    assert f"the blocks of the run of {run} are of the tokens" in sentence
    (run / "beside" / "tokens.json").unlink()
    assert "has no note of the place of the tokens. Give --tokens, the tokens of the run." in fails(
        "at", run, "--draw", 3
    )
    alone = tmp_path / "alone"
    Mixer(chained.counted.shards, proportional(), ledger=alone, round_draws=9).round(0)
    assert "so no tokens are needed: leave out --tokens" in fails("at", alone, "--draw", 3, "--tokens", plain)
    with pytest.raises(LedgerError, match="are samples and not blocks"):
        RecordedBlocks(DirectoryLedger(alone), None, chained.counted.plain)


def test_a_missing_token_set_of_an_earlier_run_is_a_note(chained: Chained, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(chained.blocks.parent, tmp_path / "runs"))
    (runs / "blocks" / "beside" / "tokens.json").unlink()
    drawn = lines("at", runs / "samples", "--draw", 85, "--json")[0]
    outcome = skillshard("seen", runs / "samples", "--id", drawn["id"])
    assert outcome.code == 0 and "Give --tokens, the tokens of the run." in outcome.err
    assert f"draw 85, round 0 of {runs}/samples, epoch 0" in outcome.out


def test_the_reports_of_a_run_count_more_than_a_given_number_of_draws(chained: Chained) -> None:
    """The reports of the first run give 4 draws a step, and the second run has no reports."""
    chain = open_recorded_chain(chained.samples)
    drawn = [own.id for _, own in chain.samples(range(80, 680))]  # type: ignore[union-attr]
    in_both = next(own for own in drawn if len({event.run for event in chain.seen(own).history}) == 2)
    outcome = skillshard("seen", chained.samples, "--id", in_both, "--step-draws", 10, "--json")
    assert outcome.code == 0
    assert "note: the steps of a run follow from its reports: the run reported step 10 at draw 40" in outcome.err
    for own in map(json.loads, outcome.out.splitlines()):
        is_of_blocks = own["run"] == str(chained.blocks)
        assert own["step"] == (own["draw"] // STEP + 1 if is_of_blocks else 20 + (own["draw"] - 80) // 10 + 1)
    assert "Give the number of samples" in fails("at", chained.samples, "--step", 4, "--step-draws", 10)


def test_a_report_of_a_run_of_blocks_has_the_facts_of_its_shards(chained: Chained) -> None:
    (run,) = report_facts([chained.blocks]).runs
    assert run.shards is not None and run.no_shards is None


def test_inspect_of_a_run_without_rounds_shows_what_is_known(chained: Chained, tmp_path: Path) -> None:
    Mixer(chained.counted.shards, temperature(2.0), ledger=tmp_path / "run", round_draws=60)
    shown = works("inspect", tmp_path / "run")
    assert f"no round is decided yet; shards {chained.counted.shards.digest}" in shown
    assert 'arguments of the policy: {"tau":2.0}' in shown and "policy temperature, weights in samples" in shown
    for skill, own in chained.counted.shards.train.items():
        assert any(line.split() == [skill, str(len(own))] for line in shown.splitlines())


def test_at_and_seen_say_what_a_cut_round_of_best_fit_cannot_tell(chained: Chained, tmp_path: Path) -> None:
    stream = stream_of(chained.counted, tmp_path / "packed", "best-fit", step_blocks=STEP)
    stream.batch(0, 8)
    state = stream.state_dict(step=2)
    Mixer.continue_from(
        tmp_path / "packed",
        state=state,
        shards=chained.counted.shards,
        policy=proportional(),
        ledger=tmp_path / "next",
        old_tokens=chained.counted.plain,
    ).round(0)
    end = state["mixer"]["draw"]
    assert 0 < end < 60
    run = tmp_path / "next"
    assert "round 0 of" in fails("at", run, "--step", 1, "--step-draws", 4)
    assert "The draws of the round are 0 to 59: give --draw and --num." in fails(
        "at", run, "--step", 1, "--step-draws", 4
    )
    outcome = skillshard("at", run, "--draw", 0)
    assert f"The model has seen {end} draws from everywhere among the draws 0 to 59 of this run" in outcome.err
    assert skillshard("at", run, "--draw", end).err == ""
    own = stream.mixer.ids(0, 60)
    given = set(stream.batch(0, 8).draw.ravel().tolist()) - {-1}
    for draw in range(0, 60, 7):
        first = [event for event in lines("seen", run, "--id", own[draw], "--json") if event["run"].endswith("packed")]
        assert [(event["draw"], event["step"]) for event in first] == [(draw, None)] * (draw in given)


def test_tokens_that_were_moved_must_be_given_to_continue_a_run_of_blocks(chained: Chained, tmp_path: Path) -> None:
    run = tmp_path / "blocks"
    shutil.copytree(chained.blocks, run)
    noted = run / "beside" / "tokens.json"
    known = works("continue", run, "--draw", 80, "--out", tmp_path / "known")
    # Other tokens at the noted place, no tokens, and no note.
    for place in (str(chained.counted.special.root), str(tmp_path / "nothing"), None):
        noted.unlink() if place is None else noted.write_text(json.dumps({"place": place}))
        command = ("continue", run, "--draw", 80, "--out", tmp_path / f"new-{place is None}")
        assert "Give --old-tokens, the tokens of the run that is continued." in fails(*command)
    assert works(*command, "--old-tokens", chained.counted.plain.root) == known.replace("/known", "/new-True")
    handovers = [(tmp_path / name / "handover.json").read_bytes() for name in ("known", "new-True")]
    assert handovers[0] == handovers[1]
    assert "holds the tokens" in fails(*command[:-1], tmp_path / "other", "--old-tokens", chained.counted.special.root)


def test_a_run_of_blocks_continues_with_other_tokens_without_a_word_about_the_old_tokens(
    chained: Chained, tmp_path: Path
) -> None:
    mixer = Mixer.continue_from(
        chained.blocks,
        draw=80,
        shards=chained.counted.shards,
        policy=proportional(),
        ledger=tmp_path / "new",
        tokens=chained.counted.special,
    )
    assert mixer.blocks is not None and mixer.blocks.tokens == chained.counted.special.digest and mixer.draw == 80


def test_a_skip_counts_blocks_and_its_samples_are_seen_as_skipped(chained: Chained, tmp_path: Path) -> None:
    command = ("continue", chained.blocks, "--draw", 80, "--skip", "85:6:the loss rose", "--out", tmp_path / "new")
    shown = works(*command)
    assert "draws 85 to 90 of the run before are skipped, because the loss rose" in shown
    skipped = lines("at", chained.blocks, "--draw", 85, "--num", 6, "--json")
    seen = {
        part["id"] for own in lines("at", chained.blocks, "--draw", 0, "--num", 80, "--json") for part in own["parts"]
    }
    ids = {part["id"] for own in skipped for part in own["parts"]}
    mixer = Mixer(chained.counted.shards, proportional(), ledger=tmp_path / "new", round_draws=60)
    mixer.round(0)
    assert not ids & set(mixer.ids(80, 60)) and not seen & set(mixer.ids(80, 60))
    assert json.loads((tmp_path / "new" / "run.json").read_text())["schema"] == "skillshard/run/9"
    identity = next(iter(sorted(ids)))
    assert f"in the draws 85 to 90 of {chained.blocks}, because the loss rose" in works(
        "seen", tmp_path / "new", "--id", identity
    )
    assert works("verify", tmp_path / "new") and works("inspect", tmp_path / "new")
    handover = json.loads((tmp_path / "new" / "handover.json").read_text())
    assert handover["schema"] == "skillshard/handover/5" and handover["skipped"]["stretches"][0]["num"] == 6
