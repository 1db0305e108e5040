"""Skipped draws: a bad stretch of a run does not come in the run that continues it."""

import json
from pathlib import Path
from typing import Any

import pytest

from skillshard.errors import LedgerError, PolicyError, SkillshardError
from skillshard.mixing.difference import first_other_sample
from skillshard.mixing.handover import fields_of, hand_over
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_beginning, verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.recorded import open_recorded
from skillshard.mixing.records import open_records
from skillshard.mixing.run_records import ahead_of, last_draw_of, skipped_by
from skillshard.mixing.skipping import checked_stretches
from skillshard.policies import proportional, stratified
from skillshard.report.history import report_facts
from skillshard.shards.read import ShardSet
from tests.commands import fails, skillshard, works
from tests.conftest import samples, tag_and_shard, write_corpus

SKILLS = ("add", "carry", "negate")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Shards with skills that are large enough for a run within the first epoch."""
    folder = tmp_path_factory.mktemp("large")
    corpus = write_corpus(folder / "corpus", samples(add=300, carry=200, negate=150))
    return tag_and_shard(corpus, folder, holdout=0.1)


@pytest.fixture
def old(large: ShardSet, tmp_path: Path) -> Mixer:
    """A run of 160 draws in rounds of 32."""
    mixer = Mixer(large, proportional(), ledger=tmp_path / "old", round_draws=32, step_draws=8)
    mixer.round(4)
    return mixer


def goes_on(old: Mixer, new: Path, skip: Any, *, draw: int = 64, **arguments: Any) -> Mixer:
    common: dict[str, Any] = {"policy": stratified(), "step": draw // 8, "step_draws": 8, "wait_s": 0.0} | arguments
    return Mixer.continue_from(old.ledger, draw=draw, shards=old.shards, ledger=new, skip=skip, **common)


def test_skipped_samples_do_not_come_and_all_other_samples_come(old: Mixer, tmp_path: Path) -> None:
    skip = [(72, 16, "the loss rose"), (100, 4, "a bad file")]
    mixer = goes_on(old, tmp_path / "new", skip)
    seen, skipped = set(old.ids(0, 64)), {*old.ids(72, 16), *old.ids(100, 4)}
    num = 3 * len(old.shards.train["negate"]) - 64 - 20
    drawn: dict[str, list[str]] = {skill: [] for skill in SKILLS}
    for skill, identity in zip(mixer.batch(64, num).skill, mixer.ids(64, num), strict=True):
        drawn[skill].append(identity)
    for skill in SKILLS:
        everything = {sample.id for sample in old.shards.train[skill]}
        left = everything - seen - skipped
        first = drawn[skill][: len(left)]
        assert len(set(first)) == len(first) and set(first) <= left
        if len(drawn[skill]) >= len(left):
            assert set(first) == left
    assert mixer.draw == 64 and verify_ledger(mixer.ledger) == []


def test_the_record_names_the_stretches_the_reasons_and_the_draws_of_each_skill(old: Mixer, tmp_path: Path) -> None:
    mixer = goes_on(old, tmp_path / "new", [(100, 4, "a bad file"), (72, 16, "the loss rose")])
    run = open_records(mixer.ledger).run
    part, begun = skipped_by(run), run.continues
    assert run.schema_version == "skillshard/run/6" and part is not None and begun is not None
    assert [(own.first, own.num, own.why) for own in part.stretches] == [
        (72, 16, "the loss rose"),
        (100, 4, "a bad file"),
    ]
    for before, after in zip(part.places, begun.skills, strict=True):
        num = sum(draws.num for own in part.stretches for draws in own.skills if draws.label == before.label)
        assert after.position == before.position + num and after.passes == (before.position + num) / before.num_samples


def test_a_skip_from_the_place_on_needs_no_entry_in_the_open_epoch(old: Mixer, tmp_path: Path) -> None:
    mixer = goes_on(old, tmp_path / "new", [(64, 32, "the loss rose")], policy=proportional())
    run = json.loads((tmp_path / "new" / "run.json").read_text())
    assert run["open_skips"] == []
    drawn = [before + count for before, count in zip(old.round(2).drawn_before, old.round(2).counts, strict=True)]
    assert mixer.round(0).drawn_before == drawn


def test_a_run_without_a_skip_keeps_the_versions_of_its_records(old: Mixer, tmp_path: Path) -> None:
    goes_on(old, tmp_path / "new", [])
    for name, version in (("run.json", "skillshard/run/5"), ("handover.json", "skillshard/handover/1")):
        assert json.loads((tmp_path / "new" / name).read_text())["schema"] == version


def test_a_resumed_and_a_repeated_run_with_a_skip_give_the_same_stream(old: Mixer, tmp_path: Path) -> None:
    skip = [(72, 16, "the loss rose")]
    first = goes_on(old, tmp_path / "new", skip)
    expected = first.ids(64, 64)
    again = goes_on(old, tmp_path / "new", skip)
    assert again.ids(64, 64) == expected
    state = again.state_at(80).model_dump(by_alias=True)
    resumed = Mixer(old.shards, stratified(), ledger=tmp_path / "new", round_draws=32, step_draws=8)
    resumed.load_state_dict(state)
    assert resumed.ids(80, 48) == expected[16:]
    with pytest.raises(LedgerError, match=r"skip \[\(72, 16, 'the loss rose'\)\]\), and this call continues run"):
        goes_on(old, tmp_path / "new", [(72, 8, "the loss rose")])


@pytest.mark.parametrize(
    ("skip", "error", "sentence"),
    [
        ([(40, 8, "x")], LedgerError, "begins before draw 64, up to which the model has seen draws"),
        ([(150, 32, "x")], LedgerError, "the skipped draws end at draw 182, and .* has been decided up to draw 160"),
        ([(70, 8, "x"), (77, 2, "y")], PolicyError, "the skipped stretches from draw 70 and from draw 77 on overlap"),
        ([(-1, 8, "x")], PolicyError, "the first draw -1 and 8 draws: give a first draw of at least 0"),
        ([(70, 0, "x")], PolicyError, "the first draw 70 and 0 draws: give"),
        ([(70, True, "x")], PolicyError, "the first draw 70 and True draws: give"),
        ([(70, 8, "  ")], PolicyError, "skip has the reason '  ' for draw 70: give a reason"),
        ([(70, 8, "a\nb")], PolicyError, "skip has the reason 'a.nb' for draw 70: give a reason"),
    ],
)
def test_a_bad_skip_is_one_sentence_and_writes_nothing(
    old: Mixer, tmp_path: Path, skip: Any, error: type[SkillshardError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        goes_on(old, tmp_path / "new", skip)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("skip", [[(70, 8)], (70, 8, "x"), "70:8:x", [("70", 8, "x")], [(70, 8, None)]], ids=repr)
def test_a_skip_of_another_form_is_one_sentence(skip: Any) -> None:
    with pytest.raises(PolicyError, match=r"^skip has .*: give .*\.$"):
        checked_stretches(skip)


def test_draws_beyond_the_end_of_a_stream_cannot_be_skipped(large: ShardSet, tmp_path: Path) -> None:
    old = Mixer(large, stratified(), ledger=tmp_path / "old", round_draws=512, repeat="stop")
    old.round(0)
    end = old.length()
    assert end is not None
    with pytest.raises(LedgerError, match=rf"and the stream of .* ends at draw {end}: .* Skip decided draws"):
        goes_on(old, tmp_path / "new", [(end - 4, 8, "x")])


@pytest.fixture
def across(shards: ShardSet, tmp_path: Path) -> tuple[Mixer, str, int]:
    """A run over several epochs, its smallest skill, and the draw after the first epoch of this skill."""
    old = Mixer(shards, stratified(), ledger=tmp_path / "old", round_draws=32, step_draws=8)
    old.round(40)
    smallest = min(shards.skills, key=lambda skill: len(shards.train[skill]))
    end = next(
        draw for draw in range(1, 1000) if old.batch(0, draw).skill.count(smallest) == len(shards.train[smallest])
    )
    return old, smallest, end


def test_a_skip_may_begin_in_one_epoch_and_end_in_the_next_with_samples_left_before(
    shards: ShardSet, tmp_path: Path, across: tuple[Mixer, str, int]
) -> None:
    old, smallest, end = across
    first, num = end - 10, 40
    mixer = goes_on(old, tmp_path / "new", [(first, num, "x")], draw=end - 30)
    run = open_records(mixer.ledger).run
    assert run.schema_version == "skillshard/run/7" and [(own.label, own.epoch) for own in ahead_of(run)] == [
        (smallest, 1)
    ]
    past = open_recorded(tmp_path / "old")
    skipped = [(own.epoch, own.id) for own in past.samples(range(first, first + num)) if own.skill == smallest]
    seen = [own.id for own in past.samples(range(end - 30)) if own.skill == smallest]
    assert {epoch for epoch, _ in skipped} == {0, 1}
    mixer.round(12)
    own = open_recorded(tmp_path / "new")
    drawn = [
        (sample.draw, sample.epoch, sample.id)
        for sample in own.samples(range(end - 30, own.num_draws))
        if sample.skill == smallest
    ]
    everything = {sample.id for sample in shards.train[smallest]}
    for epoch, before in ((0, seen), (1, [])):
        of_epoch = [*before, *(identity for of, identity in skipped if of == epoch)]
        of_epoch += [identity for _, of, identity in drawn if of == epoch]
        assert sorted(of_epoch) == sorted(everything)
    for identity in everything:
        place = own.find(identity)[0]
        assert [(past.draw, past.epoch) for past in own.draws_of(place)] == [
            (draw, epoch) for draw, epoch, of in drawn if of == identity
        ]
        assert [past.epoch for past in own.skips_of(place)] == [epoch for epoch, of in skipped if of == identity]
    assert verify_ledger(mixer.ledger) == []
    # A third run between the epochs, where samples of the next epoch count as drawn.
    third = goes_on(mixer, tmp_path / "third", [], draw=end - 24)
    assert [own.epoch for own in ahead_of(open_records(third.ledger).run)] == [1]
    assert third.ids(end - 24, 8) and verify_ledger(third.ledger) == []


def test_a_rule_that_ends_a_skill_between_skipped_samples_is_refused(
    tmp_path: Path, across: tuple[Mixer, str, int]
) -> None:
    old, smallest, end = across
    skip = [(end - 10, 40, "x")]
    with pytest.raises(PolicyError, match=f"repeat='drop' ends skill '{smallest}' after 1 epoch, .* repeat='cap:2'"):
        goes_on(old, tmp_path / "new", skip, draw=end - 30, repeat="drop")
    goes_on(old, tmp_path / "other", skip, draw=end - 30, repeat="cap:2")


def test_a_skip_from_the_place_on_may_pass_the_end_of_an_epoch(
    tmp_path: Path, shards: ShardSet, across: tuple[Mixer, str, int]
) -> None:
    old, smallest, end = across
    mixer = goes_on(old, tmp_path / "new", [(end - 30, 60, "x")], draw=end - 30)
    number = shards.skills.index(smallest)
    assert mixer.round(0).drawn_before[number] == old.batch(0, end + 30).skill.count(smallest)
    assert open_records(mixer.ledger).run.schema_version == "skillshard/run/6"


def test_a_skip_may_end_in_a_later_epoch_that_had_skipped_samples(
    tmp_path: Path, across: tuple[Mixer, str, int]
) -> None:
    old, smallest, end = across
    begin = end - 30
    second = goes_on(old, tmp_path / "second", [(end - 10, 40, "x")], draw=begin)
    assert [own.epoch for own in ahead_of(second.run)] == [1]
    second.round(3)
    past = open_recorded(tmp_path / "second").samples(range(begin, begin + 120))
    num = next(number for number, own in enumerate(past, start=1) if (own.skill, own.epoch) == (smallest, 1))
    third = goes_on(second, tmp_path / "third", [(begin, num, "y")], draw=begin)
    assert ahead_of(third.run) == [] and verify_ledger(third.ledger) == []
    assert third.ids(begin, 40) == goes_on(second, tmp_path / "third", [(begin, num, "y")], draw=begin).ids(begin, 40)


def test_the_place_of_the_last_draw_needs_a_record_only_after_a_skip_without_draws(old: Mixer, tmp_path: Path) -> None:
    skipping = goes_on(old, tmp_path / "new", [(64, 16, "the loss rose")])
    plain = hand_over(goes_on(old, tmp_path / "plain", []).ledger, draw=64)
    assert (plain.schema_version, plain.last_skill) == (
        "skillshard/handover/1",
        hand_over(old.ledger, draw=64).last_skill,
    )
    handover = hand_over(skipping.ledger, draw=64)
    last = last_draw_of(handover)
    assert last is not None and last.place == next(
        place for place in hand_over(old.ledger, draw=64).skills if place.label == handover.last_skill
    )
    skipping.round(0)
    assert last_draw_of(hand_over(skipping.ledger, draw=65)) is None


def test_a_last_draw_after_the_places_of_the_skills_is_a_fault(old: Mixer, tmp_path: Path) -> None:
    handover = hand_over(goes_on(old, tmp_path / "new", [(64, 16, "the loss rose")]).ledger, draw=64)
    last = last_draw_of(handover)
    assert last is not None
    for name, num, is_fault in (("third", 0, False), ("changed", 16, True)):
        position = last.place.position + num
        passes = position / last.place.num_samples
        place = last.place.model_copy(update={"position": position, "passes": passes})
        changed = type(handover)(**fields_of(handover) | {"last": last.model_copy(update={"place": place})})
        ledger = DirectoryLedger(tmp_path / name)
        ledger.put("handover.json", changed.to_bytes())
        faults, _ = verify_beginning(ledger)
        assert [fault for fault in faults if "has a last draw that does not come before the places" in fault] == faults
        assert bool(faults) == is_fault
    with pytest.raises(ValueError, match=r"the last draw is of .*, and last_skill is None"):
        type(handover)(**fields_of(handover) | {"last_skill": None})


def test_a_changed_handover_of_a_skip_is_a_fault(old: Mixer, tmp_path: Path) -> None:
    goes_on(old, tmp_path / "new", [(72, 16, "the loss rose")])
    goes_on(old, tmp_path / "other", [(72, 8, "the loss rose")])
    (tmp_path / "new" / "handover.json").write_bytes((tmp_path / "other" / "handover.json").read_bytes())
    (fault,) = verify_ledger(DirectoryLedger(tmp_path / "new"))
    assert "handover.json is not the handover that run.json names: one of them was changed." in fault
    (tmp_path / "new" / "handover.json").unlink()
    assert "handover.json is missing" in verify_ledger(DirectoryLedger(tmp_path / "new"))[0]


# --- views --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def skipping(old: Mixer, tmp_path: Path) -> Path:
    """The ledger of a run with a skip, made on the command line, with 64 draws."""
    shown = works(
        "continue", tmp_path / "old", "--draw", 64, "--skip", "72:16:the loss rose: twice", "--out", tmp_path / "new"
    )
    assert "draws 72 to 87 of the run before are skipped, because the loss rose: twice" in shown
    mixer = Mixer(old.shards, proportional(), ledger=tmp_path / "new", round_draws=32, step_draws=8)
    mixer.round(1)
    return tmp_path / "new"


def test_seen_says_that_a_sample_was_skipped(old: Mixer, skipping: Path, tmp_path: Path) -> None:
    for identity in old.ids(72, 16):
        shown = works("seen", skipping, "--id", identity)
        assert f"skipped in epoch 0: in the draws 72 to 87 of {tmp_path}/old, because the loss rose: twice" in shown
        assert "0 draws among" in shown
    (line,) = works("seen", skipping, "--id", old.ids(80, 1)[0], "--json").splitlines()
    skip = {"first": 72, "num": 16, "why": "the loss rose: twice", "epoch": 0, "run": str(tmp_path / "old")}
    assert json.loads(line) == {"skipped": skip}
    assert "skipped" not in works("seen", skipping, "--id", old.ids(64, 1)[0])


def test_skips_name_exactly_the_samples_of_the_stretch(old: Mixer, skipping: Path) -> None:
    past = open_recorded(skipping)
    skipped = [
        sample.id for skill in SKILLS for sample in old.shards.train[skill] if [*past.skips_of(past.find(sample.id)[0])]
    ]
    assert sorted(skipped) == sorted(old.ids(72, 16))


def test_at_inspect_and_report_show_the_skipped_stretch(skipping: Path) -> None:
    sentence = "draws 72 to 87 of the run before are skipped, because the loss rose: twice"
    assert f"{sentence} (they count as drawn: " in works("inspect", skipping)
    facts = json.loads(works("inspect", skipping, "--json"))
    (skip,) = facts["skipped"]
    assert (skip["first"], skip["num"], skip["why"], sum(skip["skills"].values())) == (
        72,
        16,
        "the loss rose: twice",
        16,
    )
    assert works("at", skipping, "--draw", 80).startswith("draw 80,")
    (history,) = report_facts([skipping]).runs
    assert [(event.draw, event.kind) for event in history.events if event.sentence == sentence] == [(64, "change")]


def test_a_skip_on_the_command_line_has_three_parts(old: Mixer, tmp_path: Path) -> None:
    for text in ("72", "72:16", "a:16:why", "72:-1:why", ":16:why"):
        command = ("continue", tmp_path / "old", "--draw", 64, "--skip", text, "--out", tmp_path / "new")
        outcome = skillshard(*command)
        assert outcome.code == 2
        assert "is no skip: give FIRST:NUM:WHY" in " ".join(outcome.err.replace("│", " ").split())
    sentence = fails("continue", tmp_path / "old", "--draw", 64, "--skip", "8:8:why", "--out", tmp_path / "new")
    assert "begins before draw 64, up to which the model has seen draws" in sentence


def test_a_saved_state_gives_the_place_on_the_command_line(old: Mixer, tmp_path: Path) -> None:
    (tmp_path / "mixer.json").write_text(json.dumps(old.state_dict(step=8)))
    shown = works("continue", tmp_path / "old", "--state", tmp_path / "mixer.json", "--out", tmp_path / "new")
    assert "continues" in shown and "from draw 64, step 8." in shown
    (tmp_path / "list.json").write_text("[1]")
    sentence = fails("continue", tmp_path / "old", "--state", tmp_path / "list.json", "--out", tmp_path / "other")
    assert "this is no state of a mixer (schemas/mixer-2.json)" in sentence
    outcome = skillshard("continue", tmp_path / "old", "--draw", 8, "--state", "x.json", "--out", tmp_path / "other")
    assert outcome.code == 2 and "give either --draw, --step or --state." in " ".join(outcome.err.split())


def test_diff_sees_that_a_skip_gives_other_samples(old: Mixer, tmp_path: Path) -> None:
    """Without the skip, the run with the same policy and whole rounds gives the samples of the old run."""
    plain = goes_on(old, tmp_path / "plain", [], policy=proportional())
    skipping = goes_on(old, tmp_path / "skipping", [(64, 8, "the loss rose")], policy=proportional())
    for mixer in (plain, skipping):
        mixer.round(1)
    expected = next(draw for draw in range(64, 128) if plain.ids(draw, 1) != skipping.ids(draw, 1))
    assert first_other_sample(open_records(plain.ledger), open_records(skipping.ledger)) == expected
