"""The reports that a ledger takes, and the sentences of its refusals."""

import errno
import json
import math
import re
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillshard.artefact import MANIFESTS
from skillshard.errors import LedgerError, ObservationError, PolicyError, RoundError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.mixing.round_records import ObservationRecord, RoundRecord
from skillshard.policies import Policy, ado, chain, exp3, floor, odm, skill_it, softmax_loss, stratified
from skillshard.report.figures import draw_runs, history
from skillshard.shards.read import ShardSet

SKILLS = ("add", "carry", "negate")
GOOD = {"add": 1.0, "carry": 2.0, "negate": 0.5}


@pytest.fixture
def run(shards: ShardSet, tmp_path: Path) -> Mixer:
    return build(shards, tmp_path / "run")


def build(shards: ShardSet, ledger: Path, **arguments: Any) -> Mixer:
    defaults: dict[str, Any] = {"round_draws": 64, "step_draws": 8, "wait_s": 0.2, "initial_losses": False}
    policy = skill_it(SkillGraph.identity(SKILLS), eta=0.5)
    return Mixer(shards, arguments.pop("policy", policy), ledger=ledger, **(defaults | arguments))


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (
            {**GOOD, "carryy": 1.0},
            "losses at step 8 do not name the evaluation skills: unknown 'carryy' (did you mean 'carry'?). "
            "Report exactly these 3: add, carry, negate.",
        ),
        ({"add": 1.0}, "losses at step 8 do not name the evaluation skills: missing 'carry', 'negate'."),
        ({**GOOD, "add": math.nan}, "losses at step 8 are not finite numbers >= 0: add is nan."),
        ({**GOOD, "carry": math.inf, "add": -1.0}, "add is -1.0, carry is inf."),
        ({**GOOD, "add": None}, "add is None."),
    ],
)
def test_bad_losses_are_refused_by_name_and_nothing_is_recorded(run: Mixer, losses: Any, sentence: str) -> None:
    with pytest.raises(ObservationError, match=re.escape(sentence)):
        run.report(8, losses)
    assert run.num_observations == 0


@pytest.mark.parametrize("manifest", sorted(set(MANIFESTS) - {"run.json"}))
def test_a_ledger_needs_a_directory_without_another_artefact(manifest: str, shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / manifest).write_text("{}")
    with pytest.raises(
        LedgerError, match=rf"holds {MANIFESTS[manifest]} \({manifest}\), and a run's ledger needs its own"
    ):
        build(shards, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [manifest]


MAY_MISS: dict[str, Policy] = {
    "odm": odm(warmup_steps=0),
    "exp3": exp3(),
    "ado": ado(warmup_steps=0, refit_steps=2),
    "odm with a floor": chain(odm(warmup_steps=0), floor(0.01)),
    "stratified": stratified(),
}


@pytest.mark.parametrize("policy", MAY_MISS.values(), ids=MAY_MISS)
def test_a_policy_that_may_miss_losses_takes_a_part_of_them_and_its_run_replays(
    policy: Policy, shards: ShardSet, tmp_path: Path
) -> None:
    parts: list[dict[str, float]] = [{"carry": 2.0}, {"add": 1.0, "negate": 0.5}, GOOD, {"negate": 0.4}, {"add": 0.9}]
    ledgers = [build(shards, tmp_path / name, policy=policy) for name in ("first", "second")]
    for mixer in ledgers:
        for number, part in enumerate(parts, start=1):
            mixer.report(8 * number, part)
            mixer.round(number)
    first, second = ([mixer.round(number).to_bytes() for number in range(7)] for mixer in ledgers)
    assert first == second
    assert verify_ledger(ledgers[0].ledger) == []
    assert [record.losses for record in observations_of(ledgers[0])] == parts


@pytest.mark.parametrize("policy", MAY_MISS.values(), ids=MAY_MISS)
@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (
            {"add": 1.0, "carryy": 1.0},
            "losses at step 8 do not name the evaluation skills: unknown 'carryy' (did you mean 'carry'?). Report some of these 3: "
            "add, carry, negate.",
        ),
        (
            {},
            "losses at step 8 name no skill at all. Report at least one of these 3: add, carry, negate. If nothing was measured, do not "
            "report.",
        ),
        ({"add": math.nan}, "losses at step 8 are not finite numbers >= 0: add is nan."),
    ],
)
def test_a_part_of_the_losses_is_still_refused_where_it_is_unknown_empty_or_bad(
    policy: Policy, losses: dict[str, float], sentence: str, shards: ShardSet, tmp_path: Path
) -> None:
    mixer = build(shards, tmp_path / "run", policy=policy)
    with pytest.raises(ObservationError, match=re.escape(sentence)):
        mixer.report(8, losses)
    assert mixer.num_observations == 0


def test_a_chain_needs_the_losses_that_its_policy_needs(shards: ShardSet, tmp_path: Path) -> None:
    mixer = build(shards, tmp_path / "run", policy=chain(softmax_loss(temperature=0.5), floor(0.01)))
    with pytest.raises(
        ObservationError, match=r"missing 'carry', 'negate'\. Report exactly these 3: add, carry, negate\."
    ):
        mixer.report(8, {"add": 1.0})


def test_a_part_moves_the_weights_of_the_skills_it_names(shards: ShardSet, tmp_path: Path) -> None:
    mixer = build(shards, tmp_path / "run", policy=odm(warmup_steps=0, smoothing=0.0))
    mixer.report(8, {"add": 1.0, "carry": 1.0, "negate": 1.0})
    for number in range(2, 9):
        mixer.round(number - 1)
        mixer.report(8 * number, {"carry": 3.0})
    explored = math.sqrt(math.log(3) / (3 * 8))
    share = np.exp([1.0, 3.0, 1.0]) / np.exp([1.0, 3.0, 1.0]).sum()
    np.testing.assert_allclose(mixer.round(9).weights, (1 - 3 * explored) * share + explored)


def test_a_picture_of_a_run_leaves_out_what_was_not_reported(shards: ShardSet, tmp_path: Path) -> None:
    mixer = build(shards, tmp_path / "run", policy=exp3())
    for number, part in enumerate([{"carry": 2.0}, GOOD, {"add": 0.5}], start=1):
        mixer.report(8 * number, part)
        mixer.round(number)
    mixer.round(3)
    seen = history(mixer.ledger)
    assert set(seen.eval_skills) == set(SKILLS)
    column = seen.losses[:, seen.eval_skills.index("add")]
    assert math.isnan(column[0])
    assert column[1:].tolist() == [1.0, 0.5]
    draw_runs({"exp3": seen}, tmp_path / "run.png", title="parts")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    sizes = {}
    for num in (1, 2, 4, 5):
        draw_runs({f"run {number}": seen for number in range(num)}, tmp_path / "runs.png", title="parts")
        sizes[num] = struct.unpack(
            ">II", (tmp_path / "runs.png").read_bytes()[16:24]
        )  # the size in the header of a PNG
    width, height = sizes[1]
    assert sizes[2] == (2 * width, height) and sizes[4] == (4 * width, height)
    assert sizes[5] == (4 * width, 2 * height), "more than four go on below"


def observations_of(mixer: Mixer) -> list[ObservationRecord]:
    return list(open_records(mixer.ledger).observations)


def test_the_same_losses_again_have_no_effect_and_other_losses_are_an_error(run: Mixer) -> None:
    run.report(8, GOOD)
    run.report(8, dict(GOOD))
    with pytest.raises(
        ObservationError, match=re.escape("already holds other losses for step 8, draw 64: losses.add: 1.0 -> 1.5")
    ):
        run.report(8, {**GOOD, "add": 1.5})
    assert run.num_observations == 1


def test_losses_of_an_earlier_draw_than_the_last_are_an_error(run: Mixer) -> None:
    run.round(0)
    run.report(16, GOOD)
    assert run.round(2).observed_to == 64
    with pytest.raises(
        ObservationError, match=r"losses of step 4 \(draw 32\) come too late: .* holds losses of draw 128\."
    ):
        run.report(4, GOOD)
    assert run.num_observations == 1


def test_losses_may_come_before_the_loader_needs_them(run: Mixer) -> None:
    run.round(1)
    for step in (8, 16, 24):
        run.report(step, {**GOOD, "add": float(step)})
    assert [run.round(number).observations for number in range(5)] == [[], [], [64], [128], [192]]


def test_a_report_without_draws_per_step_says_what_to_give(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(
        ObservationError, match=re.escape("give Mixer(..., step_draws=samples per optimizer step over all ranks)")
    ):
        build(shards, tmp_path, step_draws=None).report(8, GOOD)


def test_a_round_whose_losses_never_come_says_which_are_missing(shards: ShardSet, tmp_path: Path) -> None:
    strict = build(shards, tmp_path, lag=0)
    build(shards, tmp_path, lag=0).report(8, GOOD)
    strict.round(1)
    with pytest.raises(
        RoundError,
        match=re.escape(
            "waited 0.2 s for round 2: the last observation is of draw 64, and round 2 needs an observation at 128 or later. Is the trainer "
            "still calling report() once per round? With lag=1 the loader would not wait here."
        ),
    ):
        strict.round(2)
    assert issubclass(RoundError, TimeoutError)


def test_a_thread_that_would_wait_for_its_own_report_is_told_at_once(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waited {seconds} s"))
    strict = build(shards, tmp_path, lag=0, wait_s=600.0)
    strict.report(4, GOOD)
    with pytest.raises(
        RoundError,
        match=re.escape(
            "so the thread would wait for itself. Report losses of draw 64 or a later draw before the thread reads on. Reports at the end of each round of 64 draws"
        ),
    ):
        strict.round(1)


def test_a_waiting_round_goes_on_when_the_report_comes(shards: ShardSet, tmp_path: Path) -> None:
    strict = build(shards, tmp_path, lag=0, wait_s=20.0)
    timer = threading.Timer(0.3, strict.report, (8, GOOD))
    timer.start()
    assert strict.round(1).observations == [64]
    timer.join()


def test_live_uses_the_newest_losses_and_never_waits(shards: ShardSet, tmp_path: Path) -> None:
    now = build(shards, tmp_path, lag="live")
    assert now.round(0).observations == []
    now.report(3, GOOD)
    assert now.round(1).observations == [24]
    assert now.round(2).observations == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 1}, "is the ledger of another run: seed: 0 -> 1."),
        ({"round_draws": 32}, "round_draws: 64 -> 32"),
        ({"lag": 0}, "lag: 1 -> 0"),
        ({"policy": stratified()}, "policy: 'skill_it' -> 'stratified'"),
        ({"policy": skill_it(SkillGraph.identity(SKILLS), eta=0.6)}, "policy_arguments.eta: 0.5 -> 0.6"),
    ],
)
def test_a_ledger_of_another_run_is_refused(shards: ShardSet, tmp_path: Path, change: Any, sentence: str) -> None:
    build(shards, tmp_path)
    with pytest.raises(LedgerError, match=re.escape(sentence)):
        build(shards, tmp_path, **change)


def test_a_state_of_another_run_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    state = build(shards, tmp_path / "a", seed=1).state_dict()
    with pytest.raises(LedgerError, match="this state is of run"):
        build(shards, tmp_path / "b").load_state_dict(state)
    with pytest.raises(LedgerError, match="no state of a mixer"):
        build(shards, tmp_path / "b").load_state_dict({"draw": 3})


def test_the_state_is_small_and_json(run: Mixer) -> None:
    run.round(1)
    run.report(8, GOOD)
    assert len(json.dumps(run.state_dict(step=8))) < 400


def test_resuming_from_an_earlier_draw_leaves_later_records_behind(shards: ShardSet, tmp_path: Path) -> None:
    before = build(shards, tmp_path)
    before.round(1)
    for step in (8, 16, 24):
        before.report(step, GOOD)
    before.round(4)
    after = build(shards, tmp_path)
    left_behind = re.escape(
        f"later losses (2) and rounds (3) are left behind in {tmp_path}/generations/00000000. Ranks of one job"
    )
    with pytest.warns(UserWarning, match=left_behind):
        after.load_state_dict(before.state_dict(step=9))
    assert (after.generation, after.num_observations, after.num_rounds) == (1, 1, 2)
    assert len(list((tmp_path / "generations" / "00000000").rglob("*.json"))) == 8, "nothing is moved"
    after.report(16, {**GOOD, "add": 3.0})
    assert after.round(3).observations == [128]
    assert verify_ledger(after.ledger) == []


def test_a_changed_round_is_found(shards: ShardSet, tmp_path: Path) -> None:
    run = build(shards, tmp_path, policy=stratified())
    run.round(3)
    ledger = DirectoryLedger(tmp_path)
    assert verify_ledger(ledger) == []
    path = tmp_path / "generations" / "00000000" / "rounds" / "00000001.json"
    record = json.loads(path.read_text())
    record["counts"][0] += 1
    path.write_text(json.dumps(record))
    assert any("00000001.json is damaged: the content has checksum" in fault for fault in verify_ledger(ledger))
    with pytest.raises(LedgerError, match=re.escape("rounds/00000001.json is damaged")):
        build(shards, tmp_path, policy=stratified()).round(1)
    record["checksum"] = ""
    path.write_bytes(RoundRecord.model_validate(record).to_bytes())
    faults = verify_ledger(ledger)
    assert any("00000001.json has counts that its weights do not give" in fault for fault in faults)
    assert any("00000002.json does not follow from the record before it" in fault for fault in faults)
    for number in (1, 2):
        with pytest.raises(LedgerError, match=r"has counts that its weights do not give|does not follow from"):
            build(shards, tmp_path, policy=stratified()).round(number)


def test_a_policy_that_does_not_fit_the_skills_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(
        PolicyError, match=re.escape("rows without a skill: subtract; skills without a row: carry, negate.")
    ):
        build(shards, tmp_path, policy=skill_it(SkillGraph.identity(("add", "subtract")), eta=0.5))


def test_racing_processes_agree_on_one_round(shards: ShardSet, tmp_path: Path) -> None:
    mixers = [build(shards, tmp_path) for _ in range(8)]
    answers: list[Any] = [None] * 8

    def ask(number: int) -> None:
        answers[number] = mixers[number].round(1).to_bytes()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1


def test_a_state_is_given_out_only_when_its_ledger_is_on_the_disk(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr("skillshard.storage.sync", lambda path: synced.append(str(path.relative_to(tmp_path))))
    run = build(shards, tmp_path)
    run.round(0)
    run.report(8, GOOD)
    run.round(1)
    assert synced == []
    run.state_dict(step=8)
    folder = "generations/00000000"
    names = ["observations/00000000.json", "rounds/00000000.json", "rounds/00000001.json"]
    assert sorted(synced) == ["beside/shards.json", *(f"{folder}/{name}" for name in names), "run.json"]
    run.state_dict(step=8)
    assert len(synced) == 5


def test_a_record_that_a_thread_puts_during_a_flush_is_synced_by_the_next_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = DirectoryLedger(tmp_path)
    synced: list[str] = []

    def put_and_sync(path: Path) -> None:
        # During a sync, another thread puts the next record of this folder and the first record of another folder.
        if not synced:
            ledger.put("a/2.json", b"{}")
            ledger.put("b/1.json", b"{}")
        synced.append(str(path.relative_to(tmp_path)))

    monkeypatch.setattr("skillshard.storage.sync", put_and_sync)
    ledger.put("a/1.json", b"{}")
    ledger.flush()
    ledger.flush()
    assert set(synced) == {"a/1.json", "a/2.json", "b/1.json"}


def test_records_after_a_failed_flush_do_not_hide_the_records_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = DirectoryLedger(tmp_path)

    def put_and_fail(path: Path) -> None:
        ledger.put("a/2.json", b"{}")
        raise OSError(errno.EIO, "I/O error")

    ledger.put("a/1.json", b"{}")
    with monkeypatch.context() as patched:
        patched.setattr("skillshard.storage.sync", put_and_fail)
        with pytest.raises(LedgerError, match=r"a/1\.json may not be on the disk"):
            ledger.flush()
    synced: list[str] = []
    monkeypatch.setattr("skillshard.storage.sync", lambda path: synced.append(path.name))
    ledger.flush()
    assert synced == ["1.json", "2.json"]


def test_a_flush_returns_only_after_the_flush_of_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = DirectoryLedger(tmp_path)
    ledger.put("a/1.json", b"{}")
    begun, may_end, synced = threading.Event(), threading.Event(), []

    def slow_sync(path: Path) -> None:
        begun.set()
        assert may_end.wait(120)
        synced.append(path.name)

    monkeypatch.setattr("skillshard.storage.sync", slow_sync)
    first = threading.Thread(target=ledger.flush)
    first.start()
    assert begun.wait(120)
    second = threading.Thread(target=ledger.flush)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    may_end.set()
    first.join()
    second.join()
    assert synced == ["1.json"]


def test_a_round_cut_by_a_failure_of_power_is_left_behind_on_resume(shards: ShardSet, tmp_path: Path) -> None:
    before = build(shards, tmp_path)
    before.round(0)
    before.report(8, GOOD)
    state, expected = before.state_dict(step=8), before.round(2).to_bytes()
    (tmp_path / "generations" / "00000000" / "rounds" / "00000002.json").write_bytes(b"")
    with pytest.raises(LedgerError, match=re.escape("rounds/00000002.json is damaged")):
        build(shards, tmp_path).round(2)
    after = build(shards, tmp_path)
    after.load_state_dict(state)
    assert after.round(2).to_bytes() == expected
