"""Blocks of concatenated draws are the tokens of the draws in order, and weights in tokens are shares of tokens."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import ObservationError
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import fixed, proportional
from tests.property.packed_streams import Counted, live, losses_at, slow, stream_arguments, stream_of, tokens_of
from tests.tokenizers_trained import BOS, EOS

pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


def token_stream(stream: PackedTokens, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the first draws in order, each text tokenized by itself, and the draw of each token."""
    samples = tokens_of(stream, 0, num_draws)
    draws = np.repeat(np.arange(num_draws), [len(ids) for ids in samples])
    return np.array([token for ids in samples for token in ids]), draws


@given(
    arguments=stream_arguments(most_block_tokens=200, separators=(None, EOS, BOS)),
    numbers=st.lists(st.integers(0, 400), min_size=1, max_size=6),
)
@slow
def test_blocks_in_any_order_are_the_tokens_of_the_draws_in_order(
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    arguments: dict[str, Any],
    numbers: list[int],
) -> None:
    ledger, block_tokens = tmp_path_factory.mktemp("ledger"), arguments["block_tokens"]
    stream = stream_of(uneven, ledger, **arguments)
    tokens, draws = token_stream(stream, 1500)
    last = len(tokens) // block_tokens
    blocks = np.array([block % last for block in numbers])
    batch = stream.at(blocks)
    again = stream_of(uneven, ledger, **arguments)
    for row, block in enumerate(blocks.tolist()):
        span = slice(block * block_tokens, (block + 1) * block_tokens)
        assert batch.input_ids[row].tolist() == tokens[span].tolist()
        assert batch.draw[row].tolist() == draws[span].tolist()
        (alone,) = again.batch(block, 1).input_ids.tolist()
        assert alone == tokens[span].tolist()
        assert again.draws_before(block) == (draws[block * block_tokens - 1] + 1 if block else 0)
    assert batch.block.tolist() == blocks.tolist()
    assert again.round_size == max(1, (draws < arguments["round_draws"]).sum()) / block_tokens
    skills = stream.mixer.batch(0, 1500).skill_number
    expected = [np.bincount(skills[row], minlength=3).tolist() for row in batch.draw]
    assert batch.skill_tokens.tolist() == expected


@given(
    block_tokens=st.integers(1, 60),
    separator=st.sampled_from([None, EOS]),
    round_draws=st.integers(7, 60),
    window_draws=st.integers(3, 70),
    batches=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=4),
)
@slow
def test_neighbouring_blocks_are_the_same_blocks_read_one_by_one(
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    block_tokens: int,
    separator: str | None,
    round_draws: int,
    window_draws: int,
    batches: list[tuple[int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        # A batch reaches over the ends of rounds and of windows. A window may have no draw with a token.
        for module in ("packings.concat", "packings.sample_round"):
            patched.setattr(f"skillshard.mixing.{module}.WINDOW_DRAWS", window_draws)
        stream = stream_of(
            uneven,
            tmp_path_factory.mktemp("ledger"),
            block_tokens=block_tokens,
            separator=separator,
            round_draws=round_draws,
            repeat="cap:2",
        )
        num_blocks = stream.length()
        assert num_blocks is not None
        for first, num in batches:
            batch, rows = stream.batch(first % num_blocks, num), range(first % num_blocks, first % num_blocks + num)
            scattered = stream.at(np.array(rows)[::-1])
            assert batch.block.tolist() == [block for block in rows if block < num_blocks]
            assert batch.input_ids.tolist() == scattered.input_ids[::-1].tolist()
            assert batch.draw.tolist() == scattered.draw[::-1].tolist()
            assert batch.skill_tokens.tolist() == scattered.skill_tokens[::-1].tolist()


def test_positions_count_from_the_begin_of_each_sample(uneven: Counted, tmp_path: Path) -> None:
    batch = stream_of(uneven, tmp_path, block_tokens=50).batch(0, 20)
    for draws, positions in zip(batch.draw.tolist(), batch.position_ids.tolist(), strict=True):
        expected = [position for _, run in itertools.groupby(draws) for position in range(len(list(run)))]
        assert positions == expected


@pytest.mark.parametrize("repeat", ["stop", "drop", "cap:2"])
@pytest.mark.parametrize("separator", [None, EOS])
@pytest.mark.parametrize("block_tokens", [7, 64])
def test_a_stream_that_ends_ends_with_a_block_filled_up_and_loses_no_token(
    uneven: Counted, tmp_path: Path, repeat: str, separator: str | None, block_tokens: int
) -> None:
    stream = stream_of(uneven, tmp_path, repeat=repeat, separator=separator, block_tokens=block_tokens)
    num_draws = sum(map(len, stream.mixer.batches(100)))
    stream = stream_of(uneven, tmp_path, repeat=repeat, separator=separator, block_tokens=block_tokens)
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
        stream = stream_of(uneven, tmp_path / str(extra), policy=proportional(), separator=separator, block_tokens=50)
        num_tokens = sum(skill.num_tokens for skill in stream._tokens)
        assert stream.draws_per_position == pytest.approx(50 * num_samples / (num_tokens + extra * num_samples))


@given(weights=st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3), round_draws=st.integers(20, 200))
@slow
def test_token_shares_follow_the_weights(
    uneven: Counted, tmp_path_factory: pytest.TempPathFactory, weights: list[float], round_draws: int
) -> None:
    """The shares are exact within a part of an epoch. The mean lengths of the skills differ fivefold."""
    policy = fixed(dict(zip(uneven.shards.train, weights, strict=True)))
    ledger = tmp_path_factory.mktemp("ledger")
    stream = stream_of(uneven, ledger, policy=policy, unit="tokens", tokens=uneven.plain, round_draws=round_draws)
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
    stream = stream_of(
        uneven, tmp_path, policy=proportional(), unit="tokens", tokens=uneven.plain, round_draws=total, separator=None
    )
    record = stream.mixer.round(1)
    assert record.epochs == [2.0, 2.0, 2.0]
    num_tokens = np.array([counts.num_tokens for counts in stream._tokens])
    np.testing.assert_allclose(record.weights, num_tokens / num_tokens.sum())
    blocks = stream.batch(0, int(num_tokens.sum()) // 16)
    np.testing.assert_allclose(blocks.skill_tokens.sum(0) / blocks.skill_tokens.sum(), record.weights, atol=16 / 2000)


def test_tokens_before_a_draw_are_those_of_the_draws_before(uneven: Counted, tmp_path: Path) -> None:
    """The range covers epochs and shards, at every position. tests/property/test_order.py has shards of several stripes."""
    stream = stream_of(uneven, tmp_path)
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
    stream = stream_of(
        uneven, tmp_path, policy=live(), block_tokens=2, step_blocks=1, unit="tokens", tokens=uneven.plain
    )
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
