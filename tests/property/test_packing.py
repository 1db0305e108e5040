"""Blocks are a function of shards, counts, seed and ledger, for every packing, for every reader and after any number of kills."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.packing import PackedTokens
from skillshard.torch import PackedDataset
from tests.property.packed_streams import PACKINGS, Counted, live, slow, stream_of, train
from tests.tokenizers_trained import EOS

pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


@pytest.mark.parametrize("packing", PACKINGS)
@given(
    split=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    separator=st.sampled_from([None, EOS]),
)
@slow
def test_any_split_over_ranks_workers_and_batches_resumes_and_gives_the_one_stream(
    packing: str,
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    split: list[tuple[int, int, int]],
    separator: str | None,
) -> None:
    """Each stretch has its own ranks, workers (copies that read every n-th batch) and batch size."""
    ledger, first = tmp_path_factory.mktemp("ledger"), 0
    expected = stream_of(uneven, ledger, packing, separator=separator).batch(0, 360).input_ids
    for world_size, batch_size, workers in split:
        tokens_of: dict[int, list[int]] = {}
        for rank, worker in itertools.product(range(world_size), range(workers)):
            stream = stream_of(uneven, ledger, packing, separator=separator)
            stream.load_state_dict(stream.state_at(first).model_dump(by_alias=True))
            dataset = PackedDataset(stream, rank=rank, world_size=world_size)
            for number in (worker, worker + workers):
                items = dataset.at(np.arange(number * batch_size, (number + 1) * batch_size))
                tokens_of |= {item["block"]: item["input_ids"].tolist() for item in items}
        num = 2 * world_size * batch_size * workers
        assert sorted(tokens_of) == list(range(first, first + num))
        assert [tokens_of[block] for block in sorted(tokens_of)] == expected[first : first + num].tolist()
        first += num


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_stream_resumes_at_every_block(packing: str, uneven: Counted, tmp_path: Path) -> None:
    stream = stream_of(uneven, tmp_path, packing, round_draws=13)
    expected = stream.batch(0, 65).input_ids.tolist()
    states = [stream.state_at(block).model_dump(by_alias=True) for block in range(60)]
    for block, state in enumerate(states):
        other = stream_of(uneven, tmp_path, packing, round_draws=13)
        other.load_state_dict(state)
        batches = other.batches(2)
        assert [*next(batches).input_ids.tolist(), *next(batches).input_ids.tolist()] == expected[block : block + 4]


@pytest.mark.parametrize("packing", PACKINGS)
@given(kills=st.lists(st.integers(1, 119), max_size=4), in_tokens=st.booleans(), data=st.data())
@slow
def test_a_run_with_weights_that_change_and_kills_anywhere_gives_the_same_blocks(
    packing: str,
    uneven: Counted,
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    in_tokens: bool,
    data: st.DataObject,
) -> None:
    def opened(ledger: Path) -> PackedTokens:
        unit = {"unit": "tokens", "tokens": uneven.plain} if in_tokens and packing != "skill" else {}
        return stream_of(uneven, ledger, packing, policy=live(), round_draws=30, **unit)

    whole = train(opened(tmp_path_factory.mktemp("ledger")), start=0, stop=120)
    ledger, seen, saved = tmp_path_factory.mktemp("ledger"), list[list[int]](), None
    for killed_at in [*sorted(kills), 120]:
        stream, start = opened(ledger), 0
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
    assert stream.mixer.round(0).weights != stream.mixer.round(2).weights
