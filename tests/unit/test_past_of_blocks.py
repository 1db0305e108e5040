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
