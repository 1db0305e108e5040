"""The mixed stream in Hugging Face's `Trainer`: a dataset, a callback, and the loss of a causal language model.

accelerate divides a stream among the processes itself, so the dataset takes no rank: rank r of R gets batches r, r + R, ...
of the global stream. accelerate also reads one batch ahead, so `lag=0` would stall and is refused.

    trainer = Trainer(
        model,
        TrainingArguments(..., max_steps=1000, remove_unused_columns=False),
        train_dataset=WholeStream(mixer),
        data_collator=causal_lm_collator(tokenizer, max_tokens=512),
        callbacks=[MixerCallback(mixer, losses, every_steps=100)],
    )

    OUTPUT_DIR/checkpoint-100/mixer.json        position of the stream; `resume_from_checkpoint` continues from this position

For blocks of tokens, use `PackedTokens` in place of the mixer: `WholeStream(packed)`, `data_collator=causal_lm_blocks` and
`MixerCallback(packed, ...)`.
"""

from skillshard.extras import needed

needed("hf", what="skillshard.hf")  # before the imports that fail without the extra

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.data import data_collator

from skillshard import canonical, storage
from skillshard.batch_losses import BatchLosses
from skillshard.causal_lm import (
    SEGMENT,
    SKILL,
    causal_lm_blocks,
    causal_lm_collator,
    causal_lm_loss,
    rendered_chats,
)
from skillshard.errors import LedgerError, PolicyError
from skillshard.mixing.metrics import MOST_SKILLS
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.stream import Stream
from skillshard.refusals import refuse_for_trainer, refuse_other_measurement, refuse_other_step, refuse_rare_reports
from skillshard.stream_rows import StreamRows, dataset_of_rows, rows_of_dataset
from skillshard.torch import (
    dataset_of,
    endless,
    process_rank,
    refuse_walk,
    restart,
    resume,
    world_size,
)

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = [
    "MixerCallback",
    "WholeStream",
    "causal_lm_blocks",
    "causal_lm_collator",
    "causal_lm_loss",
    "last_checkpoint",
    "rendered_chats",
    "sft_dataset",
]
STATE_NAME, COLUMN_OF_BLOCKS = "mixer.json", "segment_ids"
LENGTHS_WANTED = ("group_by_length", "batch_rebalance")
"""Sampling strategies that need the length of every sample. The Trainer ignores these strategies if the dataset has no length."""


class WholeStream(Dataset[dict[str, Any]]):
    """The global stream of a mixer or of packed tokens, for trainers that divide a stream among processes themselves.

    The stream is endless and has no length. A training is measured in `max_steps`, and the Trainer reads the stream in order, whatever
    its `train_sampling_strategy`. `mixer.load_state_dict` moves the stream, so a loader must start at index 0 and must skip no batches.
    `accelerate.skip_first_batches` is refused, also with `dispatch_batches=True`.

    Raises:
        PolicyError: The mixer has lag=0 or a stream that ends. While reading: the indices are shuffled, skipped, divided in
            another way or begun again.
        LengthError: A caller asks for the length, or iterates over the dataset.
    """

    def __init__(self, stream: Stream) -> None:
        refuse_for_trainer(stream, "accelerate")
        self.stream = stream
        # Rank 0 of 1, because accelerate divides the batches among the processes.
        self._whole = dataset_of(stream, rank=0, world_size=1)

    def __len__(self) -> int:
        length = endless("WholeStream")
        # A sequential sampler asks for the length in the loader's process, before the workers read (as in `StreamShare.__len__`).
        self.stream.check_start(rank=process_rank())
        return length

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> NoReturn:
        refuse_walk("WholeStream", self.stream.clock.words.variable)

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Read one sample or block to look at. The position of the loader does not matter, and the stream does not move."""
        return self._whole.look(index, processes=world_size(), rank=process_rank(), name="WholeStream")

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        return self._whole.read(indices, processes=world_size(), rank=process_rank(), name="WholeStream")

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the dataset for a `StatefulDataLoader`, as for `skillshard.torch.MixedDataset`."""
        return self._whole.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state. A `StatefulDataLoader` calls this method.

        Raises:
            LedgerError: The state is of another run.
        """
        self._whole.load_state_dict(state)


def sft_dataset(stream: Stream, *, columns: Mapping[str, str] | None = None) -> "IterableDataset":
    """Make the training data of TRL's `SFTTrainer`: the stream as a `datasets.IterableDataset` with one shard.

    The rows begin at the position of the stream, so a resume walks over no earlier row. Each process reads all rows and takes its part, as
    accelerate divides rows. The `MixerCallback` of the same stream is required: the callback moves the stream, sets
    `ignore_data_skip=True`, and counts the rows. TRL's packing and shuffle are refused. For packed blocks, give `PackedTokens`.

    Args:
        stream: Mixer, or packed tokens, whose rows have the columns "input_ids" and "labels".
        columns: For a mixer: name of a column of TRL ("messages", "prompt", "completion", "text") -> path of a field of
            `Mixer(fields=...)`, or "text", "skill" or "draw". A list that is kept as JSON text is given as a list. None: the column "text".

    Raises:
        PolicyError: The mixer has lag=0 or a stream that ends, or columns are given for blocks.
        FieldError: A path is no field of the mixer.
        ExtraError: The library `datasets` is not installed.

    Example:
        mixer = Mixer(..., fields=("meta.messages",))
        SFTTrainer(..., train_dataset=sft_dataset(mixer, columns={"messages": "meta.messages"}))
    """
    default = {"text": "text"} if isinstance(stream, Mixer) else {}
    return dataset_of_rows(StreamRows(stream, default if columns is None else columns))


class _Hooks:
    """The hooks of a model that collect the losses of its training batches.

    A batch has the column "skill", and a batch of blocks also "skill_segment", or "segment_ids" if `block_collator` made the batch. The
    columns are no arguments of a model. The hook before the forward pass takes the columns out, and the hook after the forward pass reads the logits.
    """

    def __init__(self, losses: BatchLosses, model: nn.Module) -> None:
        self.losses = losses
        self._skill: Tensor | None = None
        self._segment: Tensor | None = None
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        self._skill, self._segment = named.get(SKILL), named.get(SEGMENT, named.get(COLUMN_OF_BLOCKS))
        taken = (SKILL, SEGMENT, COLUMN_OF_BLOCKS)
        return arguments, {name: value for name, value in named.items() if name not in taken}

    def _after(self, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        logits, labels = getattr(output, "logits", None), named.get("labels")
        if self._skill is None or logits is None or labels is None:
            missing = [
                name
                for name, value in (("skill", self._skill), ("labels", labels), ("logits", logits))
                if value is None
            ]
            raise PolicyError(
                f"Mixer(measured_on='training') reads the losses of the batches, and a training batch has no {' and no '.join(missing)}: give "
                "data_collator=causal_lm_collator(...) or causal_lm_blocks, or a collator that adds skill=torch.from_numpy(items.batch."
                "skill_number), leave label_smoothing_factor away, and use a model that returns its logits."
            )
        self.losses.add(self._skill, labels, logits=logits, segments=self._segment)


class MixerCallback(TrainerCallback):
    """A callback that reports losses per skill every few steps and saves the state of the stream with the checkpoints.

    Every process measures, because a sharded model needs all processes. Process 0 reports. A checkpoint gets the file `mixer.json`.
    Training with `resume_from_checkpoint` continues with exactly the next draw, so the callback turns off the Trainer's own skipping.

    With `Mixer(measured_on="training")` the callback needs no `losses`: hooks on the model read the labels and the logits of every training
    batch, and a report holds the losses of the batches since the last report. Save checkpoints at the steps of reports. A report after
    another checkpoint holds the batches since the resume alone.

    Args:
        stream: Mixer or packed tokens of the `WholeStream` in training. `step_draws` (`step_blocks`) is
            per_device_train_batch_size x processes x gradient_accumulation_steps.
        losses: Function that measures a model: model -> evaluation skill -> loss. None for a run with training losses.
        every_steps: Number of steps from one report to the next. A round needs at least one report. With blocks, two reports
            are safer, since a round of short samples has fewer blocks.
        resume_from: Directory of the checkpoint, if the checkpoint is not in `output_dir`.

    Raises:
        PolicyError: The mixer has lag=0, or does not fit the training arguments (when training begins). `losses` is missing, or is
            given in a run with training losses.
        LedgerError: The checkpoint has no `mixer.json`, or the `mixer.json` of another run.

    Example:
        def losses(model):
            return losses_per_skill(
                causal_lm_loss(model, tokenizer, max_tokens=512), shards.holdout, max_samples=64, batch_size=32
            )

        MixerCallback(mixer, losses, every_steps=100)
    """

    def __init__(
        self,
        stream: Stream,
        losses: Callable[[Any], Mapping[str, Any]] | None = None,
        *,
        every_steps: int,
        resume_from: str | os.PathLike[str] | None = None,
    ) -> None:
        refuse_for_trainer(stream, "accelerate")
        refuse_other_measurement(stream, losses)
        self.stream, self.losses, self.every_steps, self.resume_from = stream, losses, every_steps, resume_from
        self._hooks: _Hooks | None = None
        self._rows: StreamRows | None = None
        self._first_step = 0
        self._trainer: Trainer | None = None
        self._log_skills = 0

    def log_to(self, trainer: Trainer, *, skills: int = MOST_SKILLS) -> None:
        """Send the metrics of the run (`Mixer.metrics`) to the loggers of a Trainer after each report, on process 0.

        The loggers of `TrainingArguments(report_to=...)` get the metrics and put "train/" before each name, except for MLflow. Neither the console nor
        the Trainer's log history gets the metrics.

        Args:
            trainer: Trainer of this callback.
            skills: Number of skills with metrics of their own.

        Raises:
            PolicyError: The Trainer has another callback.

        Example:
            callback = MixerCallback(mixer, losses, every_steps=100)
            trainer = Trainer(..., callbacks=[callback])
            callback.log_to(trainer)
        """
        if self not in trainer.callback_handler.callbacks:
            raise PolicyError(
                "log_to got a Trainer without this callback: give the callback to Trainer(callbacks=[...]) first, and then call log_to(trainer)."
            )
        self._trainer, self._log_skills = trainer, skills

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        # `load_state_dict` moves the stream. A Trainer that skips batches on resume would skip the same samples a second time.
        args.ignore_data_skip = True
        return control

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        # The loader exists already, but nothing has been read: the stream can still be moved.
        loader = given["train_dataloader"]
        dataset = loader.dataset
        self._rows = rows_of_dataset(dataset)
        if self._rows is None:
            self._check_whole_stream(args, dataset)
            _refuse_foreign_collator(getattr(loader, "collate_fn", None))
        else:
            if self.losses is None:
                raise PolicyError(
                    "TRL takes the skills out of its batches and replaces the forward of the model, so training losses per skill cannot be read: give "
                    "MixerCallback(losses=...)."
                )
            _check_rows(self._rows, self.stream, args)
        self._check(args)
        if state.global_step:
            resume(self.stream, self._saved(args, state.global_step))
        else:
            restart(self.stream)
        # The first draw of a run that continues another run is the draw of a checkpoint of the other run.
        if self.stream.lacks_first_losses:
            self._report(state, given["model"])
        refuse_rare_reports(self.stream, self.every_steps)
        if self.losses is None:
            self._hooks = _Hooks(BatchLosses(self.stream), given["model"])
        if self._rows is not None:
            self._first_step = state.global_step
            self._rows.begin(_rows_of_steps(args, 1))
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self._hooks is not None:
            self._hooks.remove()
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        if self._rows is not None:
            # Before the report: a wrong step would be recorded for ever.
            _check_count(self._rows, args)
            self._rows.most = _rows_of_steps(args, state.global_step - self._first_step + 1)
        if state.global_step % self.every_steps == 0:
            self._report(state, given["model"])
        return control

    def _report(self, state: TrainerState, model: Any) -> None:
        if self.losses is not None:
            losses = self.losses(model)
        else:
            assert self._hooks is not None  # made when training began
            losses = self._hooks.losses.take()
        if state.is_world_process_zero:
            self.stream.report(state.global_step, losses)
            self._log(state)

    def _log(self, state: TrainerState) -> None:
        if self._trainer is None:
            return
        trainer, metrics = self._trainer, self.stream.metrics(step=state.global_step, most_skills=self._log_skills)
        # Not Trainer.log: the Trainer would leave out its own log of this step, and TRL would end the means that it collects.
        for callback in trainer.callback_handler.callbacks:
            if not isinstance(callback, (PrinterCallback, ProgressCallback)):
                callback.on_log(trainer.args, state, trainer.control, model=trainer.model, logs=dict(metrics))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.is_local_process_zero if args.save_on_each_node else state.is_world_process_zero:
            path = _checkpoint(args, state.global_step) / STATE_NAME
            storage.write_bytes(path, canonical.to_json(self.stream.state_dict(step=state.global_step)))
        return control

    def _saved(self, args: TrainingArguments, step: int) -> Any:
        folder = _checkpoint(args, step) if self.resume_from is None else Path(self.resume_from)
        path = folder / STATE_NAME
        if not path.exists():
            raise LedgerError(
                f"training resumes at step {step}, but {path} is not there: the checkpoint was made without MixerCallback, was cut "
                "short, or lies elsewhere. Resume from the checkpoint before it, or give MixerCallback(resume_from=its directory)."
            )
        saved = canonical.from_json(path.read_bytes(), path)
        saved_step = saved.get("step") if isinstance(saved, dict) else None
        if saved_step != step:
            raise LedgerError(
                f"{path} is of step {saved_step}, but training resumes at step {step}: give "
                "MixerCallback(resume_from=the directory that is given to resume_from_checkpoint)."
            )
        return saved

    def _check_whole_stream(self, args: TrainingArguments, dataset: Any) -> None:
        if getattr(dataset, "stream", None) is not self.stream or not isinstance(dataset, WholeStream):
            raise PolicyError(
                f"the Trainer reads a {type(dataset).__name__}, not a WholeStream of this callback's {type(self.stream).__name__}: give the same to "
                "both, Trainer(train_dataset=WholeStream(...)) and MixerCallback(...). accelerate shares the stream out itself, and a "
                "dataset with a rank would lose samples."
            )
        # The Trainer's default is True, and every user meets this check once.
        if self.losses is None and args.n_gpu > 1:
            raise PolicyError(
                f"this process trains on {args.n_gpu} GPUs by nn.DataParallel, which copies the model in every step, and training losses are "
                "read from a single model: start a process for each GPU by torchrun, or give losses=."
            )
        if args.remove_unused_columns:
            raise PolicyError(
                "TrainingArguments.remove_unused_columns is True: the Trainer would take out of samples and blocks what no model has an "
                "argument for, such as 'text' and 'draw'. Set remove_unused_columns=False."
            )

    def _check(self, args: TrainingArguments) -> None:
        if not args.ignore_data_skip:
            raise PolicyError(
                "TrainingArguments.ignore_data_skip is False: a resumed Trainer would skip what the mixer has skipped already. Set it, "
                "or give the callback to Trainer(callbacks=[...]), where it sets it itself."
            )
        wanted = getattr(args, "train_sampling_strategy", None)
        if wanted in LENGTHS_WANTED or getattr(args, "group_by_length", False):
            raise PolicyError(
                f"TrainingArguments ask for {wanted or 'group_by_length'!r}, which needs the length of every sample, but the stream is "
                "endless and the Trainer would ignore it. Leave train_sampling_strategy and group_by_length away, or train on "
                "PackedTokens, whose blocks all have one length."
            )
        # With split_batches one batch of the loader is divided among the processes: train_batch_size counts all of them already.
        processes = 1 if getattr(args.accelerator_config, "split_batches", False) else args.world_size
        refuse_other_step(
            self.stream,
            batch_size=args.train_batch_size,
            processes=processes,
            accumulated=args.gradient_accumulation_steps,
        )


def _refuse_foreign_collator(collator: Any) -> None:
    """Raise PolicyError for a collator of transformers. These collators take dictionaries of token ids, and would fail at the first batch."""
    kind = collator if hasattr(collator, "__name__") else type(collator)
    if getattr(kind, "__module__", "") == data_collator.__name__:
        raise PolicyError(
            f"the Trainer's data_collator is {kind.__name__} of transformers, which takes dictionaries of token ids: give data_collator=causal_lm_collator(tokenizer, "
            "max_tokens=...) for texts, data_collator=causal_lm_blocks for packed blocks, or a function of your own over the samples of a batch."
        )


def _check_rows(rows: StreamRows, stream: Stream, args: TrainingArguments) -> None:
    """Raise PolicyError for a trainer that would read the rows of `sft_dataset` in another order or number than it trains on."""
    if rows.stream is not stream:
        raise PolicyError(
            "the trainer reads the rows of another stream than this callback's stream: give the same to both, sft_dataset(mixer) and "
            "MixerCallback(mixer, ...)."
        )
    if args.dataloader_num_workers:
        raise PolicyError(
            f"TrainingArguments.dataloader_num_workers is {args.dataloader_num_workers}, and the rows of sft_dataset are counted in the trainer's process: "
            "set dataloader_num_workers=0."
        )
    for name in ("packing", "shuffle_dataset"):
        if getattr(args, name, False):
            raise PolicyError(
                f"SFTConfig.{name} is True: the trainer would collect about a thousand rows ahead of the training, and a resume would lose the rows. Set "
                f"{name}=False. The stream is shuffled already, and sft_dataset(PackedTokens(...)) gives packed blocks."
            )


def _real_batch(args: TrainingArguments) -> int:
    """Return the number of rows of one batch of all processes."""
    split = getattr(args.accelerator_config, "split_batches", False)
    return int(args.train_batch_size) * (1 if split else int(args.world_size))


def _rows_of_steps(args: TrainingArguments, steps: int) -> int:
    """Return the number of rows that a number of steps reads, with the one batch that accelerate reads ahead."""
    return _real_batch(args) * (steps * int(args.gradient_accumulation_steps) + 1)


def _check_count(rows: StreamRows, args: TrainingArguments) -> None:
    """Raise PolicyError if a row was left out. Between steps, the read rows are whole batches, unless a row was left out."""
    left_over = rows.num_read % _real_batch(args)
    if left_over:
        raise PolicyError(
            f"the trainer read {rows.num_read:,} rows since its start, which are not whole batches of {_real_batch(args):,}: a stage before the trainer left rows "
            "out, and a resume would go on at a wrong draw. TRL leaves out a row whose labels are all masked after the cut at max_length. Set "
            "SFTConfig(max_length=None), and leave long samples out of the shards."
        )


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Return the newest complete checkpoint of a `Trainer` with `MixerCallback`. None: no checkpoint is complete.

    The Trainer calls the callback after the whole checkpoint is written, so a checkpoint with `mixer.json` is complete. A process that
    was stopped while it wrote a checkpoint leaves a directory without `mixer.json`, and `transformers.trainer_utils.get_last_checkpoint`
    returns this directory.

    Args:
        output_dir: `output_dir` of the training arguments. The directory need not exist.
    """
    complete = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{STATE_NAME}")]
    # A copy such as checkpoint-best is no checkpoint of the Trainer.
    steps = {int(match[1]): folder for folder in complete if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name))}
    return str(steps[max(steps)]) if steps else None


def _checkpoint(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{step}"
