"""A stream that is moved, resumed with other steps, pickled after a read, or waits."""

import itertools
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillshard.errors import PolicyError
from skillshard.mixing import ahead as limits
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.listing import list_draws
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.order import MAX_ROUND_DRAWS
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.records import open_records
from skillshard.mixing.stream import LAST_DRAW
from skillshard.mixing.waiting import wait_for
from skillshard.policies import curriculum, odm, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from tests.tokenizers_trained import EOS, counted, uneven_shards

pytestmark = pytest.mark.filterwarnings("ignore::skillshard.errors.RepetitionWarning")


def mixer(shards: ShardSet, ledger: Path, **arguments: Any) -> Mixer:
    defaults: dict[str, Any] = {"round_draws": 50, "step_draws": 10}
    return Mixer(shards, arguments.pop("policy", stratified()), ledger=ledger, **(defaults | arguments))


def state_at(shards: ShardSet, ledger: Path, draw: int) -> dict[str, Any]:
    """Return the state of another reader of the same ledger after a number of draws."""
    other = mixer(shards, ledger)
    for _ in itertools.islice(other, draw):
        pass
    return other.state_dict()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, TokenSet]:
    folder = tmp_path_factory.mktemp("uneven")
    shards = uneven_shards(folder)
    return shards, counted(shards, folder / "T")


# --- a stream that is moved while it is read ---------------------------------------------------------------------------


LIMITS = [("seed", -(2**63), 2**63 - 1), ("round_draws", 1, MAX_ROUND_DRAWS), ("lag", 0, LAST_DRAW)]


@pytest.mark.parametrize(("name", "least", "most"), LIMITS, ids=[name for name, *_ in LIMITS])
def test_the_numbers_of_a_mixer_reach_from_their_least_to_their_greatest(
    name: str, least: int, most: int, shards: ShardSet, tmp_path: Path
) -> None:
    for value in (least, most):
        Mixer(shards, stratified(), ledger=tmp_path / str(value), **{"round_draws": 20, name: value})
    for value in (least - 1, most + 1):
        with pytest.raises(PolicyError, match=f"^{name} is {value}: "):
            Mixer(shards, stratified(), ledger=tmp_path / str(value), **{"round_draws": 20, name: value})


@pytest.mark.parametrize("draw", [2, 49, 50, 120])
def test_iterating_goes_on_where_load_state_dict_put_the_stream(shards: ShardSet, tmp_path: Path, draw: int) -> None:
    mixed = mixer(shards, tmp_path)
    expected = mixed.batch(0, 200).text
    stream = iter(mixed)
    assert [sample.text for sample in itertools.islice(stream, 7)] == expected[:7]
    mixed.load_state_dict(state_at(shards, tmp_path, draw))
    moved = list(itertools.islice(stream, 60))
    assert [sample.draw for sample in moved] == list(range(draw, draw + 60))
    assert [sample.text for sample in moved] == expected[draw : draw + 60]


def test_batches_go_on_where_load_state_dict_put_the_stream(shards: ShardSet, tmp_path: Path) -> None:
    moved = mixer(shards, tmp_path)
    expected = moved.batch(0, 200).text
    stream = moved.batches(8)
    next(stream)
    moved.load_state_dict(state_at(shards, tmp_path, 90))
    assert next(stream).text == expected[90:98]


# --- a run that goes on with another number of samples in a step ---------------------------------------------------------


def test_steps_after_a_resume_are_counted_from_it_where_step_draws_changes(shards: ShardSet, tmp_path: Path) -> None:
    policy = odm(warmup_steps=0)
    first = mixer(shards, tmp_path, policy=policy, step_draws=10)
    first.report(4, dict.fromkeys(first.skills, 2.0))
    first.batch(0, 60)
    state = first.state_dict(step=6)
    assert state["draw"] == 60
    second = mixer(shards, tmp_path, policy=policy, step_draws=25)
    second.load_state_dict(state)
    assert second.state_dict(step=6)["draw"] == 60
    second.report(8, dict.fromkeys(second.skills, 1.0))
    second.round(3)
    second.report(12, dict.fromkeys(second.skills, 0.5))
    assert second.round(4).observations == [60 + 2 * 25]
    assert second.state_dict(step=10)["draw"] == 60 + 4 * 25


def test_blocks_after_a_resume_are_counted_from_it_where_step_blocks_changes(
    uneven: tuple[ShardSet, TokenSet], tmp_path: Path
) -> None:
    def packed(step_blocks: int) -> PackedTokens:
        mixed = mixer(uneven[0], tmp_path, step_draws=None)
        return PackedTokens(mixed, uneven[1], block_tokens=16, separator=EOS, step_blocks=step_blocks)

    state = packed(2).state_dict(step=6)
    assert state["block"] == 12
    second = packed(5)
    second.load_state_dict(state)
    assert second.state_dict(step=6)["block"] == 12
    assert second.state_dict(step=8)["block"] == 12 + 2 * 5


# --- what a spawned worker is sent ----------------------------------------------------------------------------------------


def test_a_mixer_that_has_read_is_pickled_as_small_as_before(shards: ShardSet, tmp_path: Path) -> None:
    reader = mixer(shards, tmp_path, round_draws=3000, step_draws=None)
    before = len(pickle.dumps(reader))
    expected = reader.batch(2990, 20).text
    data = pickle.dumps(reader)
    assert len(data) < before + 20_000, "the plans of rounds were pickled"
    assert pickle.loads(data).batch(2990, 20).text == expected


def test_packed_tokens_that_have_read_are_pickled_as_small_as_before(
    uneven: tuple[ShardSet, TokenSet], tmp_path: Path
) -> None:
    reader = mixer(uneven[0], tmp_path, round_draws=3000, step_draws=None)
    packed = PackedTokens(reader, uneven[1], block_tokens=16, separator=EOS)
    before = len(pickle.dumps(packed))
    expected = packed.batch(2000, 4).input_ids.tolist()
    data = pickle.dumps(packed)
    assert len(data) < before + 20_000, "the rounds were pickled"
    assert pickle.loads(data).batch(2000, 4).input_ids.tolist() == expected


# --- waiting ----------------------------------------------------------------------------------------------------------------


def test_waiting_looks_less_and_less_often_and_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = [100.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    assert not wait_for(lambda: False, 3.0)
    assert pauses[0] <= 0.001
    assert all(later == min(2 * earlier, 0.1) for earlier, later in itertools.pairwise(pauses))
    assert 3.0 <= sum(pauses) <= 3.2
    del pauses[:]
    assert wait_for(lambda: len(pauses) == 3, 3.0)
    assert len(pauses) == 3


def test_a_look_at_a_round_that_another_process_has_decided_is_never_too_far(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of this process does not matter, because the limit counts from the newest round of the ledger."""
    monkeypatch.setattr(limits, "DRAWS_AHEAD", 0)
    behind, ahead = mixer(shards, tmp_path), mixer(shards, tmp_path)
    for number in range(30):
        ahead.round(number)
    assert limits.ROUNDS_AHEAD < 20
    assert behind.batch(20 * 50, 3).text == ahead.batch(20 * 50, 3).text


def test_a_listing_decides_the_rounds_of_its_draws_and_no_further_round(shards: ShardSet, tmp_path: Path) -> None:
    listing = list_draws(
        shards, policy=stratified(), first=20, num=20, seed=0, round_draws=10, repeat="epochs", ledger=tmp_path
    )
    assert listing.num_draws == 20
    assert open_records(DirectoryLedger(tmp_path)).rounds.num() == 4


def test_a_listing_in_the_middle_of_a_stream_is_whole_however_many_draws_are_read_at_once(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(first: int, num: int) -> list[bytes]:
        listing = list_draws(
            shards, policy=stratified(), first=first, num=num, seed=0, round_draws=10, repeat="epochs", ledger=None
        )
        assert listing.num_draws == num
        return listing.lines.splitlines()

    whole = listed(0, 40)
    monkeypatch.setattr("skillshard.mixing.listing.DRAWS_AT_ONCE", 8)
    assert listed(7, 33) == whole[7:]


# --- what packed tokens take -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"block_tokens": 0}, "block_tokens is 0: give at least 1, as a whole number."),
        ({"block_tokens": -16}, "block_tokens is -16: give at least 1, as a whole number."),
        ({"step_blocks": 0}, "step_blocks is 0: give at least 1, as a whole number."),
        ({"step_blocks": True}, "step_blocks is True: give at least 1, as a whole number."),
    ],
)
def test_blocks_and_steps_of_packed_tokens_are_whole_numbers_of_at_least_1(
    arguments: dict[str, Any], sentence: str, uneven: tuple[ShardSet, TokenSet], tmp_path: Path
) -> None:
    with pytest.raises(PolicyError, match=re.escape(sentence)):
        PackedTokens(mixer(uneven[0], tmp_path), uneven[1], **({"block_tokens": 16, "separator": EOS} | arguments))


@pytest.mark.parametrize("lag", [1, 2, "live"])
def test_packed_tokens_take_every_lag_but_0_with_a_policy_that_reads_losses(
    lag: Any, uneven: tuple[ShardSet, TokenSet], tmp_path: Path
) -> None:
    shards, counts = uneven
    arguments: dict[str, Any] = {"block_tokens": 16, "separator": EOS}
    packed = PackedTokens(mixer(shards, tmp_path / "run", policy=odm(warmup_steps=0), lag=lag), counts, **arguments)
    assert packed.at(np.arange(2)).input_ids.shape == (2, 16)
    with pytest.raises(PolicyError, match="Use lag=1"):
        PackedTokens(mixer(shards, tmp_path / "other", policy=odm(warmup_steps=0), lag=0), counts, **arguments)


def test_the_size_of_a_round_in_blocks_is_that_of_round_0_and_decides_no_other_round(
    uneven: tuple[ShardSet, TokenSet], tmp_path: Path
) -> None:
    policy = curriculum({name: float(number) for number, name in enumerate(uneven[0].skills, 1)}, draws=100)
    packed = PackedTokens(mixer(uneven[0], tmp_path, policy=policy), uneven[1], block_tokens=16, separator=EOS)
    assert packed.round_size > 0 and packed.draws_per_position > 0
    assert open_records(DirectoryLedger(tmp_path)).rounds.num() == 1
