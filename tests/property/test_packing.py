"""Blocks of tokens are a function of shards, counts, seed and ledger, for every reader and after any number of kills."""

import itertools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.errors import LedgerError, ObservationError, PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.records import verify_ledger
from skillshard.policies import Policy, chain, fixed, floor, proportional, skill_it, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.torch import PackedDataset
from tests.tokenizers_trained import BOS, EOS, counted, uneven_shards

SKILLS = ("add", "carry", "negate")
pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")
slow = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Counted(NamedTuple):
    """Shards with counts without and with a special token before each sample."""

    shards: ShardSet
    plain: TokenSet
    special: TokenSet


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    folder = tmp_path_factory.mktemp("uneven")
    shards = uneven_shards(folder)
    return Counted(shards, counted(shards, folder / "T"), counted(shards, folder / "S", special_tokens=True))


def live() -> Policy:
    return chain(skill_it(SkillGraph.chain(SKILLS), eta=1.0, window=2), floor(0.05))


def losses_at(step: int) -> dict[str, float]:
    return {skill: 2.0 / (1 + step * (number + 1) / 10) for number, skill in enumerate(SKILLS)}


def packed(
    uneven: Counted,
    ledger: Path,
    *,
    block_tokens: int = 16,
    separator: str | None = EOS,
    special: bool = False,
    policy: Policy | None = None,
    step_blocks: int | None = 2,
    **arguments: Any,
) -> PackedTokens:
    defaults: dict[str, Any] = {"round_draws": 60, "wait_s": 1.0}
    policy = policy or stratified()
    if policy.reads_losses:
        defaults["initial_losses"] = False
    mixer = Mixer(uneven.shards, policy, ledger=ledger, **(defaults | arguments))
    counts = uneven.special if special else uneven.plain
    return PackedTokens(mixer, counts, block_tokens=block_tokens, separator=separator, step_blocks=step_blocks)


def token_stream(stream: PackedTokens, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the first draws in order, each text tokenized by itself, and the draw of each token."""
    tokens: list[int] = []
    draws: list[int] = []
    for draw, text in enumerate(stream.mixer.batch(0, num_draws).text):
        special = stream.tokens.manifest.special_tokens
        ids = stream.tokens.tokenizer.encode(text, add_special_tokens=special).ids
        ids += [] if stream.separator is None else [stream.tokens.token_id(stream.separator)]
        tokens += ids
        draws += [draw] * len(ids)
    return np.array(tokens), np.array(draws)


@given(
    block_tokens=st.integers(1, 200),
    separator=st.sampled_from([None, EOS, BOS]),
    special=st.booleans(),
    round_draws=st.integers(7, 90),
    numbers=st.lists(st.integers(0, 400), min_size=1, max_size=6),
)
@slow
def test_blocks_in_any_order_are_the_tokens_of_the_draws_in_order(
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    block_tokens: int,
    separator: str | None,
    special: bool,
    round_draws: int,
    numbers: list[int],
) -> None:
    ledger = tmp_path_factory.mktemp("ledger")
    stream = packed(
        uneven, ledger, block_tokens=block_tokens, separator=separator, special=special, round_draws=round_draws
    )
    tokens, draws = token_stream(stream, 1500)
    last = len(tokens) // block_tokens
    blocks = np.array([block % last for block in numbers])
    batch = stream.at(blocks)
    again = packed(
        uneven, ledger, block_tokens=block_tokens, separator=separator, special=special, round_draws=round_draws
    )
    for row, block in enumerate(blocks.tolist()):
        span = slice(block * block_tokens, (block + 1) * block_tokens)
        assert batch.input_ids[row].tolist() == tokens[span].tolist()
        assert batch.draw[row].tolist() == draws[span].tolist()
        (alone,) = again.batch(block, 1).input_ids.tolist()
        assert alone == tokens[span].tolist()
        assert again.draws_before(block) == (draws[block * block_tokens - 1] + 1 if block else 0)
    assert batch.block.tolist() == blocks.tolist()
    assert again.round_size == max(1, (draws < round_draws).sum()) / block_tokens
    skills = stream.mixer.batch(0, 1500).skill_number
    expected = [np.bincount(skills[row], minlength=3).tolist() for row in batch.draw]
    assert batch.skill_tokens.tolist() == expected


def test_positions_count_from_the_begin_of_each_sample(uneven: Counted, tmp_path: Path) -> None:
    batch = packed(uneven, tmp_path, block_tokens=50).batch(0, 20)
    for draws, positions in zip(batch.draw.tolist(), batch.position_ids.tolist(), strict=True):
        expected = [position for _, run in itertools.groupby(draws) for position in range(len(list(run)))]
        assert positions == expected


@given(
    split=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4),
    separator=st.sampled_from([None, EOS]),
)
@slow
def test_any_split_over_ranks_workers_and_batches_gives_the_one_stream(
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    split: list[tuple[int, int, int]],
    separator: str | None,
) -> None:
    """Each stretch has its own ranks, workers (copies that read every n-th batch) and batch size."""
    ledger = tmp_path_factory.mktemp("ledger")
    expected = packed(uneven, ledger, separator=separator).batch(0, 400).input_ids
    first = 0
    for world_size, batch_size, workers in split:
        tokens_of: dict[int, list[int]] = {}
        for rank, worker in itertools.product(range(world_size), range(workers)):
            stream = packed(uneven, ledger, separator=separator)
            stream.load_state_dict(stream.state_at(first).model_dump(by_alias=True))
            dataset = PackedDataset(stream, rank=rank, world_size=world_size)
            for number in (worker, worker + workers):
                items = dataset.at(np.arange(number * batch_size, (number + 1) * batch_size))
                tokens_of |= {item["block"]: item["input_ids"].tolist() for item in items}
        num = 2 * world_size * batch_size * workers
        assert sorted(tokens_of) == list(range(first, first + num))
        assert [tokens_of[block] for block in sorted(tokens_of)] == expected[first : first + num].tolist()
        first += num


def train(stream: PackedTokens, *, start: int, stop: int) -> list[list[int]]:
    """Train steps start .. stop - 1, report after every fourth step, and return the tokens that were seen."""
    seen = []
    for step in range(start, stop):
        seen += stream.batch(stream.state_dict(step=step)["block"], 2).input_ids.tolist()
        if (step + 1) % 4 == 0:
            stream.report(step + 1, losses_at(step + 1))
    return seen


@pytest.fixture(scope="module")
def whole(uneven: Counted, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """Return the blocks of an undisturbed run of 200 steps."""
    return train(
        packed(uneven, tmp_path_factory.mktemp("ledger"), policy=live(), unit="tokens", tokens=uneven.plain),
        start=0,
        stop=200,
    )


@given(kills=st.lists(st.integers(1, 199), max_size=4), data=st.data())
@slow
def test_a_run_killed_anywhere_goes_on_with_the_same_blocks(
    uneven: Counted,
    whole: list[list[int]],
    kills: list[int],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    ledger, seen, saved = tmp_path_factory.mktemp("ledger"), [], None
    for killed_at in [*sorted(kills), 200]:
        stream = packed(uneven, ledger, policy=live(), unit="tokens", tokens=uneven.plain)
        start = 0
        if saved is not None:
            start = saved["step"]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="resumed at draw", category=UserWarning)
                stream.load_state_dict(saved)
            assert stream.block == 2 * start
        seen = seen[: 2 * start] + train(stream, start=start, stop=killed_at)
        saved = stream.state_dict(step=data.draw(st.integers(start, killed_at)))
    assert seen == whole
    assert verify_ledger(stream.mixer.ledger) == []
    assert stream.mixer.round(0).weights != stream.mixer.round(9).weights


@pytest.mark.parametrize("repeat", ["stop", "drop", "cap:2"])
@pytest.mark.parametrize("separator", [None, EOS])
@pytest.mark.parametrize("block_tokens", [7, 64])
def test_a_stream_that_ends_ends_with_a_block_filled_up_and_loses_no_token(
    uneven: Counted, tmp_path: Path, repeat: str, separator: str | None, block_tokens: int
) -> None:
    stream = packed(uneven, tmp_path, repeat=repeat, separator=separator, block_tokens=block_tokens)
    num_draws = sum(map(len, stream.mixer.batches(100)))
    stream = packed(uneven, tmp_path, repeat=repeat, separator=separator, block_tokens=block_tokens)
    tokens, draws = token_stream(stream, num_draws)
    batches = list(stream.batches(8))
    ids = np.concatenate([batch.input_ids.ravel() for batch in batches])
    owners = np.concatenate([batch.draw.ravel() for batch in batches])
    assert ids[: len(tokens)].tolist() == tokens.tolist()
    assert owners[: len(draws)].tolist() == draws.tolist()
    assert (owners[len(draws) :] == -1).all() and (ids[len(draws) :] == 0).all()
    assert len(ids) == -(-len(tokens) // block_tokens) * block_tokens
    assert stream.holds(stream.block - 1) and not stream.holds(stream.block) and not stream.holds(stream.block + 1000)
    assert stream.draws_before(stream.block) == num_draws == stream.draws_before(stream.block + 7)
    assert sum(int(batch.skill_tokens.sum()) for batch in batches) == len(tokens)


def test_the_expected_draws_of_a_block_count_the_separator_of_each_sample(uneven: Counted, tmp_path: Path) -> None:
    num_samples = sum(len(skill) for skill in uneven.shards.train.values())
    for separator, extra in ((None, 0), (EOS, 1)):
        stream = packed(uneven, tmp_path / str(extra), policy=proportional(), separator=separator, block_tokens=50)
        num_tokens = sum(skill.num_tokens for skill in stream._tokens)
        assert stream.draws_per_position == pytest.approx(50 * num_samples / (num_tokens + extra * num_samples))


# ------------------------------------------------------------------------------------------------- weights in tokens


@given(weights=st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3), round_draws=st.integers(20, 200))
@slow
def test_token_shares_follow_the_weights(
    uneven: Counted, tmp_path_factory: pytest.TempPathFactory, weights: list[float], round_draws: int
) -> None:
    """The shares are exact within a part of an epoch. The mean lengths of the skills differ fivefold."""
    policy = fixed(dict(zip(uneven.shards.train, weights, strict=True)))
    ledger = tmp_path_factory.mktemp("ledger")
    stream = packed(uneven, ledger, policy=policy, unit="tokens", tokens=uneven.plain, round_draws=round_draws)
    wanted = np.array(weights) / sum(weights)
    rounds = -(-20_000 // round_draws)
    record = stream.mixer.round(rounds)
    tokens = np.array(
        [
            order.tokens_before(before, counts.shard_tokens, counts.rows)
            for order, counts, before in zip(stream.mixer.orders, stream._tokens, record.drawn_before, strict=True)
        ]
    )
    num_tokens = np.array([counts.num_tokens for counts in stream._tokens])
    slack = num_tokens + 90 + wanted * (num_tokens + 90).sum()  # a part of an epoch, and a draw that the carry owes
    assert (abs(tokens / tokens.sum() - wanted) < slack / tokens.sum()).all()
    assert record.weights == pytest.approx(wanted.tolist())
    assert verify_ledger(stream.mixer.ledger) == []


def test_over_whole_epochs_the_token_shares_are_the_weights(uneven: Counted, tmp_path: Path) -> None:
    """Proportional in tokens is proportional in samples: one epoch of every skill is one round."""
    total = sum(len(counts) for counts in uneven.shards.train.values())
    stream = packed(
        uneven, tmp_path, policy=proportional(), unit="tokens", tokens=uneven.plain, round_draws=total, separator=None
    )
    record = stream.mixer.round(1)
    assert record.epochs == [2.0, 2.0, 2.0]
    num_tokens = np.array([counts.num_tokens for counts in stream._tokens])
    np.testing.assert_allclose(record.weights, num_tokens / num_tokens.sum())
    blocks = stream.batch(0, int(num_tokens.sum()) // 16)
    np.testing.assert_allclose(blocks.skill_tokens.sum(0) / blocks.skill_tokens.sum(), record.weights, atol=16 / 2000)


def test_tokens_before_a_draw_are_those_of_the_draws_before(uneven: Counted, tmp_path: Path) -> None:
    """The range covers epochs, shards and stripes, at every position."""
    stream = packed(uneven, tmp_path)
    for order, skill_counts in zip(stream.mixer.orders, stream._tokens, strict=True):
        num = 2 * order.num_samples + 30
        counts = [
            count
            for shard, rows in order.read(0, num).segments
            for count in skill_counts.rows(shard)[rows].astype(int).tolist()
        ]
        before = [
            order.tokens_before(position, skill_counts.shard_tokens, skill_counts.rows) for position in range(num + 1)
        ]
        assert before == [0, *np.cumsum(counts).tolist()]


def test_two_reports_within_one_long_sample_leave_the_second_out_with_a_warning(
    uneven: Counted, tmp_path: Path
) -> None:
    stream = packed(uneven, tmp_path, policy=live(), block_tokens=2, step_blocks=1, unit="tokens", tokens=uneven.plain)
    draws = [stream.draws_before(block) for block in range(200)]
    step = next(step for step in range(1, 199) if draws[step] == draws[step + 1])
    stream.report(step, losses_at(step))
    with pytest.warns(
        UserWarning, match=rf"the report of step {step + 1} is left out: since the report of step {step} "
    ):
        stream.report(step + 1, losses_at(step + 1))
    assert stream.mixer.num_observations == 1
    with pytest.raises(ObservationError, match="already holds other losses"):
        stream.report(step, losses_at(step + 1))


# ------------------------------------------------------------------------------------------------- a block for each draw


def one(
    uneven: Counted, ledger: Path, *, block_tokens: int = 9, separator: str | None = EOS, **arguments: Any
) -> PackedTokens:
    defaults: dict[str, Any] = {"round_draws": 60, "wait_s": 1.0}
    mixer = Mixer(uneven.shards, arguments.pop("policy", stratified()), ledger=ledger, **(defaults | arguments))
    return PackedTokens(
        mixer, uneven.plain, block_tokens=block_tokens, separator=separator, step_blocks=2, packing="one"
    )


def rows_of(stream: PackedTokens, num_draws: int) -> list[tuple[list[int], list[int]]]:
    """Return the ids and the labels of the block of each draw, each text tokenized by itself."""
    filler = 0 if stream.separator is None else stream.tokens.token_id(stream.separator)
    rows = []
    for text in stream.mixer.batch(0, num_draws).text:
        ids = stream.tokens.tokenizer.encode(text, add_special_tokens=False).ids
        ids = [*ids, *([] if stream.separator is None else [filler])][: stream.block_tokens]
        missing = stream.block_tokens - len(ids)
        rows.append(([*ids, *[filler] * missing], [*ids, *[-100] * missing]))
    return rows


@given(
    block_tokens=st.integers(1, 100),
    separator=st.sampled_from([None, EOS]),
    round_draws=st.integers(7, 90),
    numbers=st.lists(st.integers(0, 399), min_size=1, max_size=9),
)
@slow
def test_a_block_of_one_draw_is_the_sample_cut_or_filled_up_in_any_order(
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    block_tokens: int,
    separator: str | None,
    round_draws: int,
    numbers: list[int],
) -> None:
    stream = one(
        uneven,
        tmp_path_factory.mktemp("ledger"),
        block_tokens=block_tokens,
        separator=separator,
        round_draws=round_draws,
    )
    rows = rows_of(stream, 400)
    skills = stream.mixer.batch(0, 400).skill_number
    for blocks in (np.array(numbers), np.arange(min(numbers), max(numbers) + 1)):
        batch = stream.at(blocks)
        assert batch.input_ids.tolist() == [rows[block][0] for block in blocks.tolist()]
        assert batch.labels.tolist() == [rows[block][1] for block in blocks.tolist()]
        assert (batch.attention_mask == (batch.labels != -100)).all()
        assert (batch.draw == np.where(batch.labels != -100, blocks[:, None], -1)).all()
        expected = np.zeros((len(blocks), 3), np.int64)
        expected[np.arange(len(blocks)), skills[blocks]] = batch.attention_mask.sum(1)
        assert (batch.skill_tokens == expected).all()
    assert [stream.draws_before(block) for block in numbers] == numbers
    assert stream.draws_per_position == 1.0 and stream.round_size == round_draws


@pytest.mark.parametrize("repeat", ["stop", "drop", "cap:2"])
def test_a_stream_of_one_draw_for_each_block_has_a_block_for_every_draw(
    uneven: Counted, tmp_path: Path, repeat: str
) -> None:
    stream = one(uneven, tmp_path, repeat=repeat)
    num_draws = sum(map(len, stream.mixer.batches(100)))
    stream = one(uneven, tmp_path, repeat=repeat)
    rows = rows_of(stream, num_draws)
    assert [row for batch in stream.batches(7) for row in batch.input_ids.tolist()] == [ids for ids, _ in rows]
    assert stream.length() == num_draws == stream.block


def test_a_strict_run_may_have_blocks_of_one_draw_and_another_packing_is_another_stream(
    uneven: Counted, tmp_path: Path
) -> None:
    stream = one(uneven, tmp_path / "a", policy=live(), lag=0, initial_losses=False)
    assert len(train(stream, start=0, stop=30)) == 60
    state = one(uneven, tmp_path / "b").state_dict()
    with pytest.raises(LedgerError, match="saved with packing 'one', but packing of this stream is 'concat'"):
        packed(uneven, tmp_path / "b", block_tokens=9).load_state_dict(state)
    with pytest.raises(
        PolicyError, match=r"packing is 'once' \(did you mean 'one'\?\): give 'concat', 'one' or 'skill'"
    ):
        PackedTokens(stream.mixer, uneven.plain, block_tokens=9, separator=EOS, packing="once")
