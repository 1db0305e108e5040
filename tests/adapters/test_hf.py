"""Hugging Face's Trainer: one and two processes, killed and resumed, see the single stream without loss or repetition."""

import math
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import skip_first_batches
from accelerate.data_loader import DataLoaderDispatcher, prepare_data_loader
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler, random_split
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from skillshard.errors import LedgerError, LengthError, PolicyError
from skillshard.evaluation import losses_per_skill
from skillshard.hf import MixerCallback, WholeStream, causal_lm_blocks, causal_lm_loss, last_checkpoint
from skillshard.loss import Reduction
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import Blocks, MixedDataset, collate
from tests.adapters.hf_trainer import ACCUMULATED, BATCH, STEP_ITEMS, Logging, Steps, byte_tokenizer, collator, tiny
from tests.adapters.packed_trainer import Source
from tests.adapters.processes import finish, records, start_ranks
from tests.adapters.trainers import SKILLS, expected_items, live_mixer, losses_at, measured_mixer, reported

STEPS = 17
HAS_STRATEGIES = "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


def trained(folder: Path, *, world_size: int, accumulated: int) -> list[list[Any]]:
    """Return the texts or blocks of every step in the order of the stream: micro-batch by micro-batch, rank by rank."""
    by_step: dict[int, list[list[list[Any]]]] = {}
    for rank in range(world_size):
        step, again = 0, False
        mine: dict[int, list[list[Any]]] = {}
        for record in records(folder / f"rank-{rank}-of-{world_size}.jsonl"):
            if "step" in record:
                step, again = record["step"], record["step"] in mine
                before = mine.get(step, [])
                mine[step] = []
            else:
                mine[step].append(record["items"])
                assert not again or before[len(mine[step]) - 1] == mine[step][-1], "a step done again differs"
        for step, batches in mine.items():
            by_step.setdefault(step, []).append(batches)
    return [
        [item for number in range(accumulated) for rank in range(world_size) for item in by_step[step][rank][number]]
        for step in sorted(by_step)
    ]


def expected(source: Source, folder: Path, *, step_items: int) -> list[list[Any]]:
    """Return the items of every step of a run without a trainer, whose weights follow the losses."""
    stream = source.stream(folder / "reference", step_items=step_items)
    items = expected_items(stream, steps=STEPS, step_items=step_items)
    mixer = stream.mixer if isinstance(stream, PackedTokens) else stream
    assert mixer.round(0).weights != mixer.round(2).weights
    return items


@pytest.mark.parametrize(
    ("dispatch", "kill_at", "after"), [("shard", 11, 2), ("shard", 11, 1), ("dispatch", 11, 1), ("dispatch", 0, 2)]
)
def test_two_processes_under_accelerate_lose_and_repeat_nothing(
    source: Source, tmp_path: Path, dispatch: str, kill_at: int, after: int
) -> None:
    arguments = [*source, str(tmp_path), str(STEPS), dispatch]
    if kill_at and int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("transformers before version 5 loads no checkpoint of an optimizer in several processes on a CPU")
    if kill_at:
        codes = finish(start_ranks("hf_trainer", 2, [*arguments, str(kill_at)], tmp_path))
        assert set(codes) == {-signal.SIGKILL}
    assert finish(start_ranks("hf_trainer", after, [*arguments, "0"], tmp_path)) == [0] * after
    items = expected(source, tmp_path, step_items=STEP_ITEMS)
    if after == 1:
        assert trained(tmp_path, world_size=2, accumulated=ACCUMULATED) == items[:kill_at]
        assert (
            trained(tmp_path, world_size=1, accumulated=2 * ACCUMULATED) == items[8:]
        )  # from the checkpoint of step 8
    else:
        assert trained(tmp_path, world_size=2, accumulated=ACCUMULATED) == items
    if kill_at:
        assert (
            tmp_path / "run" / "generations" / "00000001.json"
        ).exists()  # step 10 was later than the checkpoint of step 8
    step_draws = [draw for draw, _ in reported(tmp_path / "run")]
    assert step_draws[0] == 0 and len(step_draws) == 4  # of steps 0, 5, 10 and 15


class Stop(TrainerCallback):
    """A callback that stops after a step, as at the end of a time limit."""

    def __init__(self, stop_at: int) -> None:
        self.stop_at = stop_at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = state.global_step >= self.stop_at
        return control


def trainer(
    mixer: Mixer | PackedTokens,
    folder: Path,
    *,
    source: Source = Source(""),
    train_dataset: Any = None,
    stop_at: int = STEPS,
    **arguments: Any,
) -> Trainer:
    shown: list[Trainer] = []
    callback = MixerCallback(mixer, lambda _: losses_at(shown[0].state.global_step), every_steps=5)
    Logging.log = folder.parent / "rank-0-of-1.jsonl"
    defaults = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "remove_unused_columns": False,
        "save_steps": 3,
        "logging_strategy": "no",
    }
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **(defaults | arguments)
    )
    shown.append(
        Trainer(
            model=tiny(Logging),
            args=args,
            train_dataset=train_dataset or WholeStream(mixer),
            data_collator=collator(source),
            callbacks=[callback, Steps(Logging.log, 0), Stop(stop_at)],
        )
    )
    return shown[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_from_checkpoint_goes_on_with_the_next_draw_or_block(
    source: Source, tmp_path: Path, workers: int
) -> None:
    stream = source.stream(tmp_path / "run", step_items=BATCH)
    trainer(stream, tmp_path / "out", source=source, stop_at=13, dataloader_num_workers=workers).train()
    other = source.stream(tmp_path / "run", step_items=BATCH)
    resumed = trainer(other, tmp_path / "out", source=source, dataloader_num_workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # older versions of PyTorch give a FutureWarning of their own
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-12"))
    assert resumed.state.global_step == STEPS
    assert other.position == 12 * BATCH
    assert trained(tmp_path, world_size=1, accumulated=1) == expected(source, tmp_path, step_items=BATCH)


def test_the_sampling_strategies_that_need_no_length_read_the_stream_in_order(shards: ShardSet, tmp_path: Path) -> None:
    """The Trainer's default is "random". The stream is already shuffled."""
    reference = expected_items(live_mixer(shards, tmp_path / "reference", step_draws=BATCH), steps=3, step_items=BATCH)
    for strategy in ("random", "sequential"):
        if not HAS_STRATEGIES:
            pytest.skip("this version of transformers has no train_sampling_strategy")
        folder = tmp_path / strategy
        mixer = live_mixer(shards, folder / "run", step_draws=BATCH)
        trainer(mixer, folder / "out", stop_at=3, train_sampling_strategy=strategy).train()
        assert trained(folder, world_size=1, accumulated=1) == reference


def test_a_training_that_died_before_its_first_checkpoint_begins_again(source: Source, tmp_path: Path) -> None:
    """The command is the same, and the losses differ in the last digit."""
    died = source.stream(tmp_path / "run", step_items=BATCH)
    died.report(0, {skill: loss + 1e-9 for skill, loss in losses_at(0).items()})
    again = source.stream(tmp_path / "run", step_items=BATCH)
    with pytest.warns(UserWarning, match=r"resumed at draw 0: later losses \(1\)"):
        trainer(again, tmp_path / "out", source=source).train()
    assert trained(tmp_path, world_size=1, accumulated=1) == expected(source, tmp_path, step_items=BATCH)
    assert reported(tmp_path / "run") == reported(tmp_path / "reference")


def prepared(mixer: Mixer, *, workers: int, processes: int, rank: int, **arguments: Any) -> Any:
    loader = DataLoader(WholeStream(mixer), batch_size=BATCH, num_workers=workers, collate_fn=collate)
    return prepare_data_loader(
        loader, torch.device("cpu"), processes, rank, put_on_device=False, dispatch_batches=False, **arguments
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("split_batches", [False, True])
def test_batches_skipped_after_a_resume_are_refused(
    shards: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    processes: int,
    split_batches: bool,
) -> None:
    """accelerate's examples skip batches themselves. On top of the mixer's resume, samples would be lost in silence."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    size = BATCH if split_batches else BATCH * processes
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        mixer = measured_mixer(shards, tmp_path, step_draws=size, round_draws=10_000)
        mixer.load_state_dict(mixer.state_dict(step=20))
        loader = prepared(mixer, workers=workers, processes=processes, rank=rank, split_batches=split_batches)
        for skipped in (1, 20):
            with pytest.raises(
                PolicyError, match=r"WholeStream for indices .* first.*leave accelerate\.skip_first_batches"
            ):
                next(iter(skip_first_batches(loader, skipped)))
        mixer.load_state_dict(mixer.state_dict(step=20))
        own = BATCH // processes if split_batches else BATCH
        loader = prepared(mixer, workers=workers, processes=processes, rank=rank, split_batches=split_batches)
        for step, batch in zip(range(4), loader, strict=False):
            first = (20 + step) * size + rank * own
            assert batch["draw"].tolist() == list(range(first, first + own))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_batches_skipped_after_a_resume_are_refused_with_dispatched_batches(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, processes: int
) -> None:
    """Process 0 reads the batches of all processes. A skip of one batch begins where the share of process 1 would begin without dispatch."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("RANK", "0")
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH * processes, round_draws=10_000)
    mixer.load_state_dict(mixer.state_dict(step=20))
    inner = DataLoader(WholeStream(mixer), batch_size=BATCH, num_workers=workers, collate_fn=collate)
    loader = DataLoaderDispatcher(
        inner.dataset, batch_sampler=inner.batch_sampler, num_workers=workers, collate_fn=collate
    )
    for skipped in (1, processes, 20):
        # The loader that process 0 reads, without the exchange with other processes, which are not there.
        skipping = skip_first_batches(loader, skipped).base_dataloader
        with pytest.raises(
            PolicyError, match=r"WholeStream for indices .* first.*leave accelerate\.skip_first_batches"
        ):
            next(iter(skipping))
    mixer.load_state_dict(mixer.state_dict(step=20))
    first = 20 * BATCH * processes
    for number, batch in zip(range(4), loader.base_dataloader, strict=False):
        assert batch["draw"].tolist() == list(range(first + number * BATCH, first + (number + 1) * BATCH))


def test_a_second_loop_over_the_whole_stream_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    """A training by epochs has a second loop, which would see the samples of the first loop."""
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH, round_draws=10_000)
    loader = prepared(mixer, workers=0, processes=1, rank=0)
    assert next(iter(loader))["draw"].tolist() == list(range(BATCH))
    with pytest.raises(PolicyError, match=r"from draw 0 was read through this dataset already.*make a new WholeStream"):
        next(iter(loader))


def test_the_whole_stream_has_no_length(shards: ShardSet, tmp_path: Path) -> None:
    stream = WholeStream(measured_mixer(shards, tmp_path, step_draws=BATCH))
    asking: list[Callable[[Any], Any]] = [
        len,
        list,
        lambda dataset: len(DataLoader(dataset, batch_size=BATCH)),
        lambda dataset: len(prepare_data_loader(DataLoader(dataset, batch_size=BATCH), put_on_device=False)),
        lambda dataset: len(
            prepare_data_loader(DataLoader(dataset, batch_size=BATCH), put_on_device=True, dispatch_batches=True)
        ),
        lambda dataset: DataLoader(dataset, batch_size=BATCH, shuffle=True),
        lambda dataset: RandomSampler(dataset),
        lambda dataset: random_split(dataset, [0.9, 0.1]),
        lambda dataset: ConcatDataset([dataset, dataset]),
        lambda dataset: LengthGroupedSampler(BATCH, dataset=dataset, model_input_name="text"),
    ]
    for ask in asking:
        with pytest.raises(LengthError, match=r"^WholeStream"):
            ask(stream)
    with pytest.raises(PolicyError, match=r"WholeStream\[-1\]: an index is a whole number"):
        stream[-1]
    assert stream and stream[5]["draw"] == 5


def test_a_stateful_loader_over_the_whole_stream_goes_on(shards: ShardSet, tmp_path: Path) -> None:
    mixer = measured_mixer(shards, tmp_path, step_draws=BATCH, round_draws=10_000)
    first = StatefulDataLoader(WholeStream(mixer), batch_size=BATCH, collate_fn=collate)
    assert [batch["draw"][0] for _, batch in zip(range(3), first, strict=False)] == [0, 4, 8]
    other = measured_mixer(shards, tmp_path, step_draws=BATCH, round_draws=10_000)
    again = StatefulDataLoader(WholeStream(other), batch_size=BATCH, collate_fn=collate)
    again.load_state_dict(first.state_dict())
    assert next(iter(again))["draw"][0] == 12


def test_the_last_checkpoint_is_the_newest_that_was_written_whole(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "out") is None
    for step in (9, 10, 100):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
    assert last_checkpoint(tmp_path / "out") is None, "a stopped process leaves a directory without mixer.json"
    for step in (9, 10):
        (tmp_path / "out" / f"checkpoint-{step}" / "mixer.json").write_text("{}")
    for name in ("checkpoint-best", "checkpoint-11-old"):
        shutil.copytree(tmp_path / "out" / "checkpoint-10", tmp_path / "out" / name)
    assert last_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-10")


def test_a_checkpoint_without_a_mixer_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path / "run", step_draws=BATCH)
    trainer(mixer, tmp_path / "out", stop_at=3).train()
    (tmp_path / "out" / "checkpoint-3" / "mixer.json").write_text("[]")
    with pytest.raises(LedgerError, match=r"mixer.json is of step None, but training resumes at step 3"):
        trainer(mixer, tmp_path / "out").train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    (tmp_path / "out" / "checkpoint-3" / "mixer.json").unlink()
    with pytest.raises(LedgerError, match=r"resumes at step 3, but .*checkpoint-3/mixer.json is not there"):
        trainer(mixer, tmp_path / "out").train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))


def test_what_does_not_fit_is_refused_with_a_sentence(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path / "run", step_draws=BATCH)
    with pytest.raises(PolicyError, match=r"accelerate reads a batch ahead.*Use lag=1"):
        WholeStream(live_mixer(shards, tmp_path / "strict", step_draws=BATCH, lag=0))
    with pytest.raises(PolicyError, match=r"accelerate reads a batch ahead"):
        MixerCallback(live_mixer(shards, tmp_path / "strict", step_draws=BATCH, lag=0), dict, every_steps=1)
    with pytest.raises(
        PolicyError, match=r"the Trainer reads a MixedDataset, not a WholeStream of this callback's Mixer"
    ):
        trainer(mixer, tmp_path / "out", train_dataset=MixedDataset(mixer)).train()
    wishes: list[tuple[str, dict[str, Any]]] = [
        (name, {"train_sampling_strategy": name}) for name in ("group_by_length", "batch_rebalance")
    ]
    for name, wish in wishes if HAS_STRATEGIES else [("group_by_length", {"group_by_length": True})]:
        with pytest.raises(PolicyError, match=rf"ask for '{name}', which needs the length of every sample.*Leave"):
            trainer(mixer, tmp_path / "out", **wish).train()
    with pytest.raises(ValueError, match="max_steps"):
        trainer(mixer, tmp_path / "out", max_steps=-1, num_train_epochs=1).train()
    with pytest.raises(
        PolicyError, match=r"an optimizer step takes 4 samples x 1 processes x 3 accumulated = 12 draws"
    ):
        trainer(mixer, tmp_path / "out", gradient_accumulation_steps=3).train()
    with pytest.raises(PolicyError, match=r"Set remove_unused_columns=False"):
        trainer(mixer, tmp_path / "out", remove_unused_columns=True).train()
    for foreign in (default_data_collator, DataCollatorForLanguageModeling(byte_tokenizer(), mlm=False)):
        forgotten = trainer(mixer, tmp_path / "out")
        forgotten.data_collator = foreign
        with pytest.raises(
            PolicyError, match=r"data_collator is \w+ of transformers.*give data_collator=causal_lm_coll"
        ):
            forgotten.train()
    rare = live_mixer(shards, tmp_path / "rare", step_draws=BATCH, round_draws=12)
    with pytest.raises(PolicyError, match=r"every_steps=5 reports every 20 draws, and a round is 12.*from 1 to 3"):
        trainer(rare, tmp_path / "out").train()


def test_packed_tokens_that_do_not_fit_are_refused_with_a_sentence(blocks: Source, tmp_path: Path) -> None:
    packed = blocks.stream(tmp_path / "run", step_items=BATCH)
    with pytest.raises(PolicyError, match=r"accelerate trains for max_steps.*skillshard\.torch\.PackedDataset"):
        WholeStream(blocks.stream(tmp_path / "ends", step_items=BATCH, repeat="stop"))
    with pytest.raises(
        PolicyError,
        match=r"PackedTokens\(step_blocks=4\), but an optimizer step takes 4 blocks x 1 processes x 3 accumulated = 12 blocks: "
        r"give PackedTokens\(step_blocks=12\)",
    ):
        trainer(packed, tmp_path / "out", gradient_accumulation_steps=3).train()
    with pytest.raises(PolicyError, match=r"what no model has an argument for, such as 'text' and 'draw'"):
        trainer(packed, tmp_path / "out", remove_unused_columns=True).train()
    with pytest.raises(PolicyError, match=r"reads a WholeStream, not a WholeStream of this callback's PackedTokens"):
        trainer(packed, tmp_path / "out", train_dataset=WholeStream(packed.mixer)).train()
    rare = blocks.stream(tmp_path / "rare", step_items=BATCH, round_draws=9)
    with pytest.raises(
        PolicyError, match=r"every_steps=5 reports every 20 blocks, and the first round is 9:.*from 1 to 2\."
    ):
        trainer(rare, tmp_path / "out").train()
    short_rounds = blocks.stream(tmp_path / "one", step_items=BATCH, round_draws=1)
    with pytest.raises(PolicyError, match=r"and the first round is 0: .* Give round_draws of at least 3\."):
        trainer(short_rounds, tmp_path / "out").train()
    with pytest.raises(PolicyError, match=r"these are blocks of tokens: give data_collator=causal_lm_blocks"):
        trainer(packed, tmp_path / "out").train()
    with pytest.raises(PolicyError, match=r"these are texts: give train_dataset=WholeStream\(packed\), or"):
        causal_lm_blocks(WholeStream(packed.mixer).__getitems__([0, 1]))


def test_causal_lm_blocks_learns_every_token_but_those_beyond_the_end(blocks: Source, tmp_path: Path) -> None:
    packed = blocks.stream(tmp_path, step_items=BATCH, policy=stratified(), repeat="drop")
    *_, last = packed.batches(50)
    batch = causal_lm_blocks(Blocks(last))
    assert set(batch) == {"input_ids", "labels"}
    beyond = torch.from_numpy(last.draw == -1)
    assert beyond.any()
    assert torch.equal(batch["labels"] == -100, beyond)
    assert torch.equal(batch["labels"][~beyond], batch["input_ids"][~beyond])
    assert batch["input_ids"].tolist() == last.input_ids.tolist()


@pytest.mark.parametrize("reduction", ["per_sample", "per_token"])
def test_causal_lm_loss_is_the_models_own_loss(shards: ShardSet, reduction: Reduction) -> None:
    """Batched and padded, or one by one, the nats per token are those of transformers."""
    model, tokenizer = tiny(), byte_tokenizer()
    losses = losses_per_skill(
        causal_lm_loss(model, tokenizer, max_tokens=20),
        shards.holdout,
        max_samples=9,
        batch_size=4,
        reduction=reduction,
    )
    assert tuple(losses) == SKILLS
    assert model.training
    for skill, loss in losses.items():
        nats, tokens = [], []
        for sample in [*shards.holdout[skill]][:9]:
            ids = tokenizer(sample.text, truncation=True, max_length=20, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                nats.append(float(model.eval()(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1))
            tokens.append(ids.shape[1] - 1)
        model.train()
        per_sample = sum(text_nats / num for text_nats, num in zip(nats, tokens, strict=True)) / len(nats)
        expected = per_sample if reduction == "per_sample" else sum(nats) / sum(tokens)
        assert loss.mean == pytest.approx(expected, rel=1e-5)
        assert loss.num_tokens == sum(tokens)
        assert 0 < loss.standard_error < math.inf
