"""With packing="one" a block is one draw, cut or filled up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.errors import LedgerError, PolicyError
from skillshard.mixing.packing import PackedTokens
from tests.property.packed_streams import Counted, ids_of, live, slow, stream_arguments, stream_of, train
from tests.tokenizers_trained import EOS

pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


def one(uneven: Counted, ledger: Path, *, block_tokens: int = 9, **arguments: Any) -> PackedTokens:
    return stream_of(uneven, ledger, "one", block_tokens=block_tokens, **arguments)


def rows_of(stream: PackedTokens, num_draws: int) -> list[tuple[list[int], list[int]]]:
    """Return the ids and the labels of the block of each draw, each text tokenized by itself."""
    filler = 0 if stream.separator is None else stream.tokens.token_id(stream.separator)
    rows = []
    for ids in ids_of(stream, num_draws):
        tokens = [*ids, *([] if stream.separator is None else [filler])][: stream.block_tokens]
        missing = stream.block_tokens - len(tokens)
        rows.append(([*tokens, *[filler] * missing], [*tokens, *[-100] * missing]))
    return rows


@given(arguments=stream_arguments(most_block_tokens=100), numbers=st.lists(st.integers(0, 399), min_size=1, max_size=9))
@slow
def test_a_block_of_one_draw_is_the_sample_cut_or_filled_up_in_any_order(
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    arguments: dict[str, Any],
    numbers: list[int],
) -> None:
    stream = one(uneven, tmp_path_factory.mktemp("ledger"), **arguments)
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
    assert stream.draws_per_position == 1.0 and stream.round_size == arguments["round_draws"]


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
        stream_of(uneven, tmp_path / "b", block_tokens=9).load_state_dict(state)
    with pytest.raises(
        PolicyError, match=r"packing is 'once' \(did you mean 'one'\?\): give 'concat', 'one', 'skill' or 'best-fit'"
    ):
        PackedTokens(stream.mixer, uneven.plain, block_tokens=9, separator=EOS, packing="once")
