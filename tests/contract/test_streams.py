"""The stream interface that trainers' adapters use: draws of a mixer and blocks of packed tokens alike."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skillshard.errors import LedgerError, ObservationError
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.stream import Stream
from skillshard.policies import odm, stratified
from skillshard.refusals import refuse_for_trainer, refuse_other_step, refuse_rare_reports
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.torch import StreamShare, dataset_of
from tests.tokenizers_trained import EOS, counted, uneven_shards

STEP = 4
Make = Callable[..., Stream]
pytestmark = pytest.mark.filterwarnings(
    "ignore:skills? .* pass(es)? 4 epochs:UserWarning", "ignore:resumed at:UserWarning"
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, TokenSet]:
    folder = tmp_path_factory.mktemp("streams")
    shards = uneven_shards(folder)
    return shards, counted(shards, folder / "T")


@pytest.fixture(params=["draws", "blocks"])
def make(request: pytest.FixtureRequest, uneven: tuple[ShardSet, TokenSet]) -> Make:
    shards, counts = uneven

    def stream(ledger: Path, *, step_size: int | None = STEP, **arguments: Any) -> Stream:
        defaults: dict[str, Any] = {"policy": stratified(), "round_draws": 64, "ledger": ledger}
        if request.param == "draws":
            return Mixer(shards, step_draws=step_size, **(defaults | arguments))
        mixer = Mixer(shards, **(defaults | arguments))
        return PackedTokens(mixer, counts, block_tokens=16, separator=EOS, step_blocks=step_size)

    return stream


def test_it_meets_the_protocol(make: Make, tmp_path: Path) -> None:
    assert isinstance(make(tmp_path), Stream)


def test_its_position_is_what_batches_have_handed_out_and_looks_do_not_move_it(make: Make, tmp_path: Path) -> None:
    stream = make(tmp_path)
    batches = stream.batches(STEP)
    assert stream.position == 0
    assert [len(next(batches)) for _ in range(3)] == [STEP] * 3
    assert len(stream.batch(100, 7)) == 7
    assert stream.position == 3 * STEP


def test_its_state_names_the_position_by_its_word_and_brings_the_stream_back(make: Make, tmp_path: Path) -> None:
    stream = make(tmp_path)
    state = json.loads(json.dumps(stream.state_dict(step=5)))
    assert state[stream.clock.words.position] == stream.clock.position_at(5) == 5 * STEP
    again = make(tmp_path, step_size=3 * STEP)
    again.load_state_dict(state)
    assert (again.position, again.clock.position_at(7)) == (5 * STEP, 5 * STEP + 2 * 3 * STEP)
    again.restart()
    assert (again.position, again.clock.position_at(7)) == (0, 7 * 3 * STEP)


def test_a_step_before_the_beginning_is_refused_with_a_sentence(make: Make, tmp_path: Path) -> None:
    stream = make(tmp_path)
    again = make(tmp_path, step_size=100)
    again.load_state_dict(stream.state_dict(step=5))
    sentence = r"step 1 would be of (draw|block) -380: .* are counted from step 5, (draw|block) 20\."
    with pytest.raises(ObservationError, match=sentence):
        again.state_dict(step=1)
    with pytest.raises(ObservationError, match=sentence):
        again.report(1, {})


def test_steps_of_unknown_size_are_refused_with_the_argument_to_give(make: Make, tmp_path: Path) -> None:
    stream = make(tmp_path, step_size=None)
    words = stream.clock.words
    with pytest.raises(
        ObservationError, match=re.escape(f"give {words.maker}(..., {words.step_argument}={words.items} per")
    ):
        stream.state_dict(step=3)


def test_where_it_ends_its_length_its_batches_and_holds_agree(make: Make, tmp_path: Path) -> None:
    stream = make(tmp_path, repeat="drop")
    length = stream.length()
    assert length is not None and length > 0
    assert sum(map(len, stream.batches(16))) == stream.position == length
    assert stream.holds(length - 1) and not stream.holds(length)
    assert make(tmp_path / "endless").length() is None


def test_a_stream_of_another_run_has_another_identity(make: Make, tmp_path: Path) -> None:
    stream, same, other = make(tmp_path / "1"), make(tmp_path / "2"), make(tmp_path / "3", seed=1)
    assert stream.identity == same.identity != other.identity
    assert json.loads(json.dumps(stream.identity)) == stream.identity
    with pytest.raises(LedgerError):
        other.load_state_dict(stream.state_dict())


def test_an_adapter_reads_it_by_the_dataset_that_its_words_name(make: Make, tmp_path: Path) -> None:
    stream = make(tmp_path)
    dataset: StreamShare[Any] = dataset_of(stream, rank=0, world_size=1)
    assert type(dataset).__name__ == stream.clock.words.dataset
    assert dataset.stream is stream
    batch = dataset.collate(dataset.read(list(range(STEP))))
    assert [int(number) for number in batch[stream.clock.words.position]] == list(range(STEP))


def test_trainers_refuse_by_one_rule_what_would_stall_or_end(make: Make, tmp_path: Path) -> None:
    stream = make(tmp_path / "fits", policy=odm(warmup_steps=0))
    words = stream.clock.words
    refuse_for_trainer(stream, "a trainer")
    refuse_other_step(stream, batch_size=2, processes=2, accumulated=1)
    with pytest.raises(
        ValueError, match=rf"{words.maker}\({words.step_argument}=4\), but .* = 8 {words.position}s: give"
    ):
        refuse_other_step(stream, batch_size=2, processes=2, accumulated=2)
    most = int(stream.round_size // STEP)
    refuse_rare_reports(stream, most)
    with pytest.raises(ValueError, match=rf"and {words.round} is .* from 1 to {most}\."):
        refuse_rare_reports(stream, most + 1)
    # A live round waits for no report, and a callback would still divide by the number.
    for lag in (1, "live"):
        with pytest.raises(ValueError, match=r"every_steps=0: give the number of steps .* at least 1\."):
            refuse_rare_reports(make(tmp_path / f"lag {lag}", policy=odm(warmup_steps=0), lag=lag), 0)
    with pytest.raises(ValueError, match=rf"skillshard\.torch\.{words.dataset}\."):
        refuse_for_trainer(make(tmp_path / "ends", repeat="stop"), "a trainer")
