"""With packing="best-fit" no sample is cut that fits a block, every sample comes once, and a resume packs one round."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.errors import LedgerError, PolicyError, TokensError
from skillshard.mixing.block_counts import BlocksRecord
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.packings import fit as fit_module
from skillshard.mixing.packings.bins import best_fit_decreasing
from skillshard.mixing.packings.fit import fit
from skillshard.policies import stratified
from tests.property.packed_streams import Counted, ids_of, live, slow, stream_arguments, stream_of
from tests.tokenizers_trained import EOS

pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


def best(uneven: Counted, ledger: Path, **arguments: Any) -> PackedTokens:
    return stream_of(uneven, ledger, "best-fit", **arguments)


def packed_one_by_one(sizes: list[int], capacity: int) -> tuple[list[int], int]:
    """Pack each piece by a look at every bin."""
    room: list[int] = []
    changed: list[int] = []
    bin_of = [0] * len(sizes)
    for time, piece in enumerate(sorted(range(len(sizes)), key=lambda piece: (-sizes[piece], piece))):
        fitting = [number for number in range(len(room)) if room[number] >= sizes[piece]]
        if not fitting:
            fitting = [len(room)]
            room.append(capacity)
            changed.append(time)
        chosen = min(fitting, key=lambda number: (room[number], -changed[number]))
        room[chosen] -= sizes[piece]
        changed[chosen] = time
        bin_of[piece] = chosen
    return bin_of, len(room)


@given(st.integers(1, 40).flatmap(lambda most: st.tuples(st.just(most), st.lists(st.integers(1, most), max_size=80))))
@settings(max_examples=300, deadline=None)
def test_the_bins_are_those_of_a_search_piece_by_piece(case: tuple[int, list[int]]) -> None:
    capacity, sizes = case
    bin_of, num = best_fit_decreasing(np.array(sizes, np.int64), capacity)
    assert (bin_of.tolist(), num) == packed_one_by_one(sizes, capacity)
    filled = np.bincount(bin_of, weights=sizes, minlength=num)
    assert (filled <= capacity).all()
    # Two bins of best-fit never fit into one bin.
    assert all(first + second > capacity for first, second in itertools.combinations(filled.tolist(), 2))


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=120),
    block_tokens=st.integers(1, 40),
    at_once=st.sampled_from([1, 7, 50, 1 << 16]),
)
@settings(max_examples=150, deadline=None)
def test_a_round_of_any_length_is_packed_in_stretches_and_each_token_comes_once(
    sizes: list[int], block_tokens: int, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "DRAWS_AT_ONCE", at_once)
        blocks = fit(np.array(sizes), block_tokens, "round", 0)
    pieces = list(zip(blocks.draw.tolist(), blocks.part.tolist(), strict=True))
    assert sorted(pieces) == [
        (draw, part) for draw, size in enumerate(sizes) for part in range(-(-size // block_tokens))
    ]
    bounds = blocks.first_piece.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(pieces) and sorted(set(bounds)) == bounds
    for first, stop in itertools.pairwise(bounds):
        own = pieces[first:stop]
        assert own == sorted(own)
        assert sum(min(block_tokens, sizes[draw] - part * block_tokens) for draw, part in own) <= block_tokens
        assert len({draw // at_once for draw, _ in own}) == 1
    seen: set[int] = set()
    for number, (first, stop) in enumerate(itertools.pairwise(bounds)):
        seen |= {draw for draw, _ in pieces[first:stop]}
        assert blocks.num_begun[number] == len(seen)


@given(arguments=stream_arguments(most_block_tokens=100), data=st.data())
@slow
def test_every_sample_that_fits_is_whole_in_one_block_and_a_longer_sample_is_cut_into_full_blocks_and_a_rest(
    uneven: Counted, tmp_path_factory: pytest.TempPathFactory, arguments: dict[str, Any], data: st.DataObject
) -> None:
    block_tokens, separator, round_draws = (arguments[name] for name in ("block_tokens", "separator", "round_draws"))
    ledger, num_draws = tmp_path_factory.mktemp("ledger"), 4 * round_draws
    stream = best(uneven, ledger, **arguments)
    samples = ids_of(stream, num_draws)
    skills = stream.mixer.batch(0, num_draws).skill_number
    end = next(block for block in itertools.count() if stream.draws_before(block) >= num_draws)
    # The parts of very long samples may follow in blocks without a new draw.
    while stream.at(np.array([end])).draw.max() < num_draws:
        end += 1
    batch = stream.batch(0, end)
    pieces_of: list[list[tuple[int, list[int]]]] = [[] for _ in samples]
    begun: set[int] = set()
    empty = np.flatnonzero([not ids and separator is None for ids in samples])
    round_end = 0
    for block in range(end):
        # A draw without tokens counts as begun with the first block of its round.
        assert stream.draws_before(block) == len(begun) + (empty < round_end).sum()
        row = batch.draw[block]
        round_end = (int(row.max()) // round_draws + 1) * round_draws
        assert (row[row >= 0] // round_draws == row.max() // round_draws).all()
        for draw, run in itertools.groupby(enumerate(row.tolist()), key=lambda pair: pair[1]):
            places = [place for place, _ in run]
            if draw < 0:
                assert places[-1] == block_tokens - 1
                assert (batch.labels[block, places] == -100).all() and not batch.attention_mask[block, places].any()
                assert not batch.segment_ids[block, places].any()
                continue
            assert batch.position_ids[block, places].tolist() == list(range(len(places)))
            assert (batch.skill[block, places] == skills[draw]).all() and batch.attention_mask[block, places].all()
            pieces_of[draw].append((len(places), batch.input_ids[block, places].tolist()))
            begun.add(draw)
    for ids, pieces in zip(samples, pieces_of, strict=True):
        has_separator = separator is not None and (len(ids) % block_tokens > 0 or not ids)
        expected_ids = [*ids, *([stream.tokens.token_id(EOS)] if has_separator else [])]
        cut = [expected_ids[first : first + block_tokens] for first in range(0, len(expected_ids), block_tokens)]
        assert sorted(part for _, part in pieces) == sorted(cut)
        assert len(pieces) <= 1 or len(ids) > block_tokens
    numbers = data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=9))
    again = best(uneven, ledger, **arguments).at(np.array(numbers))
    for name in ("input_ids", "labels", "draw", "skill", "position_ids", "segment_ids", "skill_tokens"):
        assert (getattr(again, name) == getattr(batch, name)[numbers]).all()
    assert int(again.cu_seqlens[-1]) == again.input_ids.size


@pytest.mark.parametrize("repeat", ["stop", "drop", "cap:2"])
@pytest.mark.parametrize("separator", [None, EOS])
def test_a_stream_that_ends_has_every_sample_and_knows_its_length_beforehand(
    uneven: Counted, tmp_path: Path, repeat: str, separator: str | None
) -> None:
    stream = best(uneven, tmp_path / "a", repeat=repeat, separator=separator, block_tokens=24)
    length = stream.length()
    assert not list((tmp_path / "a").rglob("rounds/*.json"))  # looking at the length decides nothing
    batches = list(stream.batches(7))
    assert stream.block == length == sum(map(len, batches))
    assert stream.holds(length - 1) and not stream.holds(length)
    num_draws = stream.draws_before(length)
    assert stream.draws_before(length + 7) == num_draws == stream.mixer.length()
    samples = ids_of(best(uneven, tmp_path / "b", repeat=repeat, separator=separator), num_draws)
    draws = np.concatenate([batch.draw.ravel() for batch in batches])
    num_tokens = [len(ids) + (separator is not None and (len(ids) % 24 > 0 or not ids)) for ids in samples]
    assert np.bincount(draws[draws >= 0], minlength=num_draws).tolist() == num_tokens
    assert sum(int(batch.skill_tokens.sum()) for batch in batches) == sum(num_tokens)


def test_a_resume_packs_only_the_round_of_its_block(
    uneven: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = best(uneven, tmp_path / "a", round_draws=20)
    expected = stream.batch(0, 200).input_ids.tolist()
    block = next(block for block in range(150, 200) if 3 < (stream.state_at(block).round_blocks or 0) < 8)
    state = stream.state_at(block).model_dump(by_alias=True)
    assert state["round_blocks"] < 20 and stream.mixer.num_rounds > 8
    packed_rounds: list[Any] = []

    def counted_fit(*arguments: Any) -> Any:
        packed_rounds.append(arguments[-1])
        return fit(*arguments)

    monkeypatch.setattr(fit_module, "fit", counted_fit)
    number = (state["mixer"]["draw"] - 1) // 20
    for ledger in ("a", "beside"):  # a policy without losses also resumes beside an empty ledger
        packed_rounds.clear()
        resumed = best(uneven, tmp_path / ledger, round_draws=20)
        resumed.load_state_dict(state)
        assert next(resumed.batches(2)).input_ids.tolist() == expected[block : block + 2]
        assert packed_rounds == [number]
    # Without a state, the numbers of blocks beside the ledger lead to the round.
    packed_rounds.clear()
    assert (
        best(uneven, tmp_path / "a", round_draws=20).batch(block, 2).input_ids.tolist() == expected[block : block + 2]
    )
    assert packed_rounds == [number]


def test_numbers_of_blocks_that_are_lost_are_counted_again_and_changed_numbers_are_refused(
    uneven: Counted, tmp_path: Path
) -> None:
    expected = best(uneven, tmp_path).batch(0, 200).input_ids.tolist()
    ledger = DirectoryLedger(tmp_path)
    files = sorted((tmp_path / "blocks").iterdir(), key=lambda file: json.loads(file.read_bytes())["round"])
    contents = [file.read_bytes() for file in files]
    assert len(files) == stream_of(uneven, tmp_path).mixer.num_rounds and verify_ledger(ledger) == []
    for file in files[1:]:
        file.unlink()
    assert best(uneven, tmp_path).batch(190, 10).input_ids.tolist() == expected[190:]
    assert [file.read_bytes() for file in files] == contents

    record = json.loads(contents[1])
    files[1].write_bytes(contents[1].replace(b'"num_blocks": ', b'"num_blocks": 1'))
    with pytest.raises(LedgerError, match=r"is damaged: .* Remove the file: the number is counted again"):
        best(uneven, tmp_path).batch(190, 10)
    assert len(verify_ledger(ledger)) == 1
    del record["checksum"]
    changed = BlocksRecord.model_validate(record | {"num_blocks": record["num_blocks"] + 1})
    files[1].write_bytes(changed.to_bytes())
    with pytest.raises(
        LedgerError, match=r"says \d+ blocks from block \d+ on, and round 1 has \d+ blocks .*Remove the file"
    ):
        best(uneven, tmp_path).batch(record["first_block"] + 1, 1)
    assert ["begins at block" in fault for fault in verify_ledger(ledger)] == [True]
    files[1].write_bytes(contents[2])
    assert ["its name says otherwise" in fault for fault in verify_ledger(ledger)] == [True]
    with pytest.raises(LedgerError, match="its name says otherwise"):
        best(uneven, tmp_path).batch(190, 10)


def test_best_fit_has_fewer_fillers_than_a_block_for_each_draw(uneven: Counted, tmp_path: Path) -> None:
    share = {
        packing: 1 - stream_of(uneven, tmp_path / packing, packing, block_tokens=96).batch(0, 20).attention_mask.mean()
        for packing in ("one", "best-fit")
    }
    # A round of 60 draws has about 8 blocks, and the last block of a round has room.
    assert share["best-fit"] < 0.2 < share["one"]


def test_what_cannot_work_is_refused_in_a_sentence(uneven: Counted, tmp_path: Path) -> None:
    with pytest.raises(
        PolicyError, match="each round has another number of blocks, so optimizer steps do not end with"
    ):
        best(uneven, tmp_path / "a", policy=live(), lag=0)
    assert len(best(uneven, tmp_path / "b", lag=0).batch(0, 50)) == 50  # a policy without losses waits for nothing
    stream = best(uneven, tmp_path / "c")
    again = {"shards": uneven.shards, "policy": stratified()}
    state = stream.state_at(3).model_dump(by_alias=True)
    (tmp_path / "c" / "beside" / "tokens.json").unlink()
    for tokens in ({}, {"tokens": uneven.special}):
        with pytest.raises(TokensError, match=r"state lies inside round 0, .*Give `old_tokens`, .* such as draw 60"):
            Mixer.continue_from(tmp_path / "c", state=state, ledger=tmp_path / "d", **again, **tokens)
    with pytest.raises(TokensError, match=r"and .* holds the tokens .*: give the tokens of the run that is continued"):
        Mixer.continue_from(tmp_path / "c", state=state, ledger=tmp_path / "d", old_tokens=uneven.special, **again)
    changed = state | {"round_blocks": 2}
    with pytest.raises(LedgerError, match=r"the first 2 blocks of round 0 have \d+ draws, and the state has seen"):
        Mixer.continue_from(tmp_path / "c", state=changed, ledger=tmp_path / "d", old_tokens=uneven.plain, **again)
    for place in ({"draw": state["mixer"]["draw"]}, {"state": state["mixer"]}):
        with pytest.raises(LedgerError, match=r"lies inside round 0 .* such as draw 0 or draw 60. If the model"):
            Mixer.continue_from(tmp_path / "c", ledger=tmp_path / "d", **place, **again)
    skip = [(state["mixer"]["draw"], 5, "a spike")]
    with pytest.raises(LedgerError, match="begins before draw 60, up to which the model has seen draws"):
        Mixer.continue_from(
            tmp_path / "c", state=state, ledger=tmp_path / "d", old_tokens=uneven.plain, skip=skip, **again
        )
    assert not (tmp_path / "d").exists()
    state = stream.state_at(30).model_dump(by_alias=True)
    with pytest.raises(LedgerError, match="saved with packing 'best-fit', but packing of this stream is 'one'"):
        stream_of(uneven, tmp_path / "c", "one").load_state_dict(state)
    for wrong in ({"round_blocks": None}, {"round_blocks": 31}, {"packing": "one"}):
        with pytest.raises(
            LedgerError, match=r"no state of packed tokens \(schemas/packed-5.json\): .*round_blocks is"
        ):
            stream.load_state_dict(state | wrong)
    stream.load_state_dict(state | {"round_blocks": state["round_blocks"] - 1})
    with pytest.raises(LedgerError, match="the record or the loaded state was changed"):
        stream.batch(30, 1)
