"""With packing="skill" the blocks of a skill are its tokens in its order, and the draws of the mixer are the blocks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import LedgerError, PolicyError, TokensError
from skillshard.mixing.handover import hand_over
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.recorded import RecordedStream
from skillshard.mixing.round_plan import order_round
from skillshard.policies import fixed, stratified
from tests.property.packed_streams import Counted, live, samples_of_epoch, slow, stream_arguments, stream_of, train
from tests.tokenizers_trained import EOS

pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


def epoch_tokens(stream: PackedTokens, skill: int, epoch: int) -> tuple[list[int], list[int]]:
    """Return the tokens of an epoch of a skill in its order, and the position of each token in its sample."""
    samples = [tokens for _, tokens in samples_of_epoch(stream, skill, epoch)]
    return [token for tokens in samples for token in tokens], [
        place for tokens in samples for place in range(len(tokens))
    ]


def expected_blocks(stream: PackedTokens, num_draws: int) -> list[tuple[int, list[int], list[int]]]:
    """Return the skill, the tokens and the positions in the samples of the first blocks, made without any search."""
    length = stream.block_tokens
    epochs: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    drawn, blocks = [0] * len(stream.skills), []
    totals = [len(epoch_tokens(stream, skill, 0)[0]) for skill in range(len(stream.skills))]
    number = 0
    while len(blocks) < num_draws and (record := stream.mixer.begun(number)) is not None:
        number += 1
        for skill in order_round(record, seed=stream.mixer.seed)[0].tolist():
            epoch, block = divmod(drawn[skill], totals[skill] // length)
            if (skill, epoch) not in epochs:
                epochs[skill, epoch] = epoch_tokens(stream, skill, epoch)
            tokens, positions = epochs[skill, epoch]
            span = slice(block * length, (block + 1) * length)
            blocks.append((skill, tokens[span], positions[span]))
            drawn[skill] += 1
    return blocks[:num_draws]


@given(arguments=stream_arguments(most_block_tokens=200), numbers=st.lists(st.integers(0, 299), min_size=1, max_size=9))
@slow
def test_a_block_of_one_skill_has_the_next_tokens_of_the_skill_in_any_order_of_reading(
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    arguments: dict[str, Any],
    numbers: list[int],
) -> None:
    stream = stream_of(uneven, tmp_path_factory.mktemp("ledger"), "skill", **arguments)
    expected = expected_blocks(stream, 300)
    for blocks in (numbers, list(range(min(numbers), max(numbers) + 1))):
        batch = stream.at(np.array(blocks))
        assert batch.input_ids.tolist() == [expected[block][1] for block in blocks]
        assert (batch.labels == batch.input_ids).all() and (batch.attention_mask == 1).all()
        assert (batch.skill == np.array([expected[block][0] for block in blocks])[:, None]).all()
        assert (batch.draw == np.array(blocks)[:, None]).all()
        # A part of a sample begins at the beginning of a block or of a sample.
        for row, block in enumerate(blocks):
            begins = [place for place, position in enumerate(expected[block][2]) if not place or not position]
            assert [place for place, position in enumerate(batch.position_ids[row]) if not position] == begins
            assert batch.segment_ids[row].max() == len(begins)
        assert int(batch.cu_seqlens[-1]) == batch.input_ids.size
    assert [stream.draws_before(block) for block in numbers] == numbers
    assert stream.draws_per_position == 1.0 and stream.round_size == arguments["round_draws"]


def test_an_epoch_has_each_block_once_and_leaves_out_less_than_a_block_of_each_skill(
    uneven: Counted, tmp_path: Path
) -> None:
    stream = stream_of(uneven, tmp_path, "skill", repeat="drop")
    blocks = [
        (int(row[0]), ids.tolist())
        for batch in stream.batches(7)
        for row, ids in zip(batch.skill, batch.input_ids, strict=True)
    ]
    for skill in range(len(stream.skills)):
        tokens, _ = epoch_tokens(stream, skill, 0)
        seen = [token for number, ids in blocks if number == skill for token in ids]
        assert seen == tokens[: len(seen)] and len(tokens) - len(seen) < stream.block_tokens
    assert stream.length() == len(blocks) == stream.block
    assert verify_ledger(stream.mixer.ledger) == []


@pytest.mark.parametrize("repeat", ["stop", "cap:2"])
@pytest.mark.parametrize("separator", [None, EOS])
def test_a_stream_of_blocks_of_one_skill_ends_with_a_full_block(
    uneven: Counted, tmp_path: Path, repeat: str, separator: str | None
) -> None:
    stream = stream_of(uneven, tmp_path, "skill", repeat=repeat, separator=separator, block_tokens=7)
    rows = [ids for batch in stream.batches(5) for ids in batch.input_ids.tolist()]
    assert rows == [tokens for _, tokens, _ in expected_blocks(stream, 1 << 30)]
    assert stream.length() == len(rows) and stream.holds(len(rows) - 1) and not stream.holds(len(rows))
    assert stream.draws_before(len(rows) + 7) == len(rows)


def test_the_shares_of_blocks_are_the_weights_within_a_block(uneven: Counted, tmp_path: Path) -> None:
    weights = dict(zip(uneven.shards.train, (0.5, 0.3, 0.2), strict=True))
    stream = stream_of(uneven, tmp_path, "skill", policy=fixed(weights), round_draws=50)
    batch = stream.batch(0, 50)
    assert batch.skill_tokens.sum(0).tolist() == [25 * 16, 15 * 16, 10 * 16]


def test_a_strict_run_may_have_blocks_of_one_skill(uneven: Counted, tmp_path: Path) -> None:
    stream = stream_of(uneven, tmp_path, "skill", policy=live(), lag=0)
    blocks = train(stream, start=0, stop=30)
    assert len(blocks) == 60 and stream.mixer.num_observations == 7


def test_a_run_of_blocks_refuses_what_needs_samples(uneven: Counted, tmp_path: Path) -> None:
    stream = stream_of(uneven, tmp_path / "a", "skill")
    for read in (lambda: stream.mixer.batch(0, 2), lambda: next(iter(stream.mixer)), lambda: stream.mixer.ids(0, 2)):
        with pytest.raises(PolicyError, match="the draws of this mixer are blocks of tokens"):
            read()
    stream.batch(0, 2)
    (tmp_path / "a" / "beside" / "tokens.json").unlink()
    with pytest.raises(TokensError, match=r"the draws of the run are blocks of tokens .* Give `old_tokens`"):
        hand_over(DirectoryLedger(tmp_path / "a"), draw=2)
    with pytest.raises(LedgerError, match=r"are blocks of tokens \(unit 'blocks'\) and not samples"):
        RecordedStream(DirectoryLedger(tmp_path / "a"), uneven.shards)
    with pytest.raises(PolicyError, match="a block holds many samples, so unit='blocks' has no fields"):
        stream_of(uneven, tmp_path / "b", "skill", fields=("id",))
    with pytest.raises(PolicyError, match="unit='blocks' needs tokens and block_tokens, and block_tokens is None"):
        stream_of(uneven, tmp_path / "b", "skill", block_tokens=None)
    with pytest.raises(PolicyError, match="block_tokens and separator need unit='blocks', and unit is 'samples'"):
        Mixer(uneven.shards, stratified(), ledger=tmp_path / "c", round_draws=9, block_tokens=4)
    with pytest.raises(TokensError, match="no block of this skill can be filled"):
        stream_of(uneven, tmp_path / "d", "skill", block_tokens=1 << 40)
    with pytest.raises(PolicyError, match="packing='skill' needs a mixer whose draws are blocks"):
        PackedTokens(
            stream_of(uneven, tmp_path / "e", "one").mixer,
            uneven.plain,
            block_tokens=16,
            separator=EOS,
            packing="skill",
        )
    with pytest.raises(PolicyError, match="and packing is 'concat': give packing='skill'"):
        PackedTokens(stream.mixer, uneven.plain, block_tokens=16, separator=EOS)
    with pytest.raises(
        PolicyError,
        match=r"block_tokens 16 in the mixer and 17 in the packed stream\. Give Mixer and PackedTokens the same values",
    ):
        PackedTokens(stream.mixer, uneven.plain, block_tokens=17, separator=EOS, packing="skill")
