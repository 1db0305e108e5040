"""The mixed stream in Lightning's `Trainer`: a data module and a callback, with their state in Lightning's checkpoints.

Lightning may read one batch ahead, so `lag=0` would stall and is refused.

    Trainer(max_steps=1000, use_distributed_sampler=False, callbacks=[MixerCallback(mixer, losses, every_steps=100)]).fit(
        module, datamodule=MixedData(mixer, batch_size=32, num_workers=2)
    )

For blocks of tokens, use `PackedTokens` in place of the mixer: `MixedData(packed, ...)` and `MixerCallback(packed, ...)`.
"""

from skillshard.extras import needed

needed("lightning", what="skillshard.lightning")  # before the imports that fail without the extra

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch.utils.data import DataLoader

from skillshard.batch_losses import BatchLosses
from skillshard.errors import PolicyError
from skillshard.mixing.stream import Stream
from skillshard.refusals import refuse_for_trainer, refuse_other_measurement, refuse_other_step, refuse_rare_reports
from skillshard.torch import InOrder, dataset_of, restart, resume


class MixedData(LightningDataModule):
    """The stream of a mixer or of packed tokens as training data. A checkpoint keeps the position after the optimizer steps taken.

    Each rank takes its share, so with several processes give `Trainer(use_distributed_sampler=False)`. Without this argument,
    Lightning stops. The stream is endless: train for `max_steps`.

    A training that begins at step 0 over a ledger with records restarts the run in a new generation of the ledger and prints a
    warning. To continue after a `fit`, save a checkpoint and give the checkpoint to the `fit` of a new `Trainer` (`ckpt_path`). A
    second `fit` of the same `Trainer` is refused, because Lightning begins a new epoch and reads its first batch twice.

    Args:
        stream: Mixer or packed tokens. `step_draws` (`step_blocks`) is batch_size x processes x accumulate_grad_batches.
        batch_size: Number of samples (blocks) per rank and batch.
        num_workers: Number of loader processes.
        collate_fn: Function that makes a batch of items, as for `skillshard.torch.MixedDataset` and `PackedDataset`. None:
            `collate`, or `collate_blocks` for packed tokens.

    Raises:
        PolicyError: The mixer has lag=0. When training begins: `step_draws` or `step_blocks` differs from the size of a step, or the Trainer counts
            epochs alone, although an epoch of the endless stream never ends.
        LedgerError: The checkpoint is of another run.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        refuse_for_trainer(stream, "Lightning")
        self.stream, self.batch_size, self.num_workers, self.collate_fn = stream, batch_size, num_workers, collate_fn

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self._trainer()
        _refuse_endless(trainer)
        _refuse_epochs(trainer)
        refuse_other_step(
            self.stream,
            batch_size=self.batch_size,
            processes=trainer.world_size,
            accumulated=trainer.accumulate_grad_batches,
        )
        self._begin(trainer)  # before the dataset is made: the position of the stream must be final
        dataset = dataset_of(self.stream)
        return DataLoader(
            dataset,
            sampler=InOrder(dataset),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn or dataset.collate,
        )

    def _begin(self, trainer: Trainer) -> None:
        """Begin the run at step 0. Lightning reads the first batch before it calls the callbacks, so the data module begins the run.

        Raises:
            PolicyError: The Trainer has taken steps, and the position of the stream is not the end of these steps.
        """
        if trainer.global_step:
            expected, position = self.stream.clock.position_at(trainer.global_step), self.stream.position
            if expected != position:
                raise PolicyError(
                    f"the Trainer stands at step {trainer.global_step:,}, after {expected:,} {self.stream.clock.words.position}s, and the stream "
                    f"stands at {position:,}: "
                    "a second fit() would read the stream again. To train on, call trainer.save_checkpoint(PATH), and then fit(..., ckpt_path=PATH) "
                    "of a new Trainer with a larger max_steps: the checkpoint moves the stream too."
                )
        else:
            # The losses of step 0 are part of the new generation, so the run restarts before the callback measures.
            restart(self.stream)
        # The first draw of a run that continues another run is the draw of a checkpoint of the other run.
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MixerCallback) and self.stream.lacks_first_losses:
                callback.report(trainer, trainer.lightning_module)

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict(step=self._trainer().global_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        resume(self.stream, state_dict)

    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise PolicyError("MixedData has no Trainer: give it to Trainer.fit(module, datamodule=...).")
        return self.trainer


def _refuse_endless(trainer: Trainer) -> None:
    """Raise PolicyError for a Trainer that would wait for the end of an epoch without end. With max_epochs=-1 the user asks for this training."""
    has_end = trainer.max_steps != -1 or trainer.limit_train_batches not in (None, 1.0)
    if not has_end and trainer.fit_loop.max_epochs != -1 and not _stops_in_time(trainer):
        raise PolicyError(
            f"the Trainer trains for {trainer.fit_loop.max_epochs} epochs, and an epoch of the endless stream never ends: give Trainer(max_steps=...)."
        )


def _refuse_epochs(trainer: Trainer) -> None:
    """Raise PolicyError for a Trainer whose second epoch would begin the loader again. `overfit_batches` sets the same limit."""
    limit, max_epochs = trainer.limit_train_batches, trainer.fit_loop.max_epochs
    is_last_epoch = max_epochs not in (None, -1) and max_epochs - trainer.current_epoch <= 1
    if not isinstance(limit, int) or limit < 1 or is_last_epoch:
        return
    steps = trainer.max_steps - trainer.global_step
    if trainer.max_steps == -1 or steps * trainer.accumulate_grad_batches > limit:
        raise PolicyError(
            f"Trainer(limit_train_batches={limit}) ends an epoch after {limit:,} batches, and the next epoch would begin the loader again, so samples would be "
            "repeated: give Trainer(max_steps=...) and leave limit_train_batches and overfit_batches out. For validation in between, give val_check_interval."
        )


def _stops_in_time(trainer: Trainer) -> bool:
    """Return whether a Trainer has a limit of time (`max_time`)."""
    return any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]


class MixerCallback(Callback):
    """A callback that reports losses per skill every few optimizer steps. Every process measures, and rank 0 reports.

    If the policy needs the losses before the first step (`Mixer.initial_losses`), `MixedData` lets the callback measure at step 0.
    With a loader of your own, call `mixer.restart()` and `mixer.report(0, ...)` before `fit`.

    With `Mixer(measured_on="training")` the callback needs no `losses`. The module's `training_step` then returns, beside "loss", either
    "nats" and "tokens" (the summed loss and the number of predicted tokens of each sample), or "logits" if the batch has "labels". The batch
    has "skill", as `collate` makes the batch. A report holds the losses of the batches since the last report. Save checkpoints at the steps
    of reports. A report after another checkpoint holds the batches since the resume alone.

    Args:
        stream: Mixer or packed tokens of the `MixedData` in training.
        losses: Function that measures a module: module -> evaluation skill -> loss. None for a run with training losses.
        every_steps: Number of optimizer steps from one report to the next. A round needs at least one report. With blocks, two
            reports are safer, since a round of short samples has fewer blocks.
        log_skills: Number of skills whose metrics (`Mixer.metrics`) go to the loggers of the Trainer after each report, on rank 0. 0 (default)
            logs nothing.

    Raises:
        PolicyError: `losses` is missing, or is given in a run with training losses. When training begins: a round would have no report, or the reports go to another mixer than the data's.
    """

    def __init__(
        self,
        stream: Stream,
        losses: Callable[[LightningModule], Mapping[str, Any]] | None = None,
        *,
        every_steps: int,
        log_skills: int = 0,
    ) -> None:
        refuse_other_measurement(stream, losses)
        self.log_skills = log_skills
        self.stream, self.losses, self.every_steps = stream, losses, every_steps
        self._batch_losses = BatchLosses(stream)
        self._reported = -1  # no step yet

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reported = trainer.global_step
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, MixedData) and data.stream is not self.stream:
            raise PolicyError(
                f"MixerCallback reports to another {type(self.stream).__name__} than the {type(data.stream).__name__} that MixedData reads: "
                "give both the same."
            )
        refuse_rare_reports(self.stream, self.every_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.losses is None:
            self._add(outputs, batch)
        step = trainer.global_step
        # With accumulated gradients several batches end at one step, and only the first of these batches reports.
        if step == self._reported or step % self.every_steps:
            return
        self._reported = step
        self.report(trainer, pl_module)

    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on every process, and report the losses for the present step."""
        losses = self._batch_losses.take() if self.losses is None else self.losses(pl_module)
        if trainer.is_global_zero:
            self.stream.report(trainer.global_step, losses)
            if self.log_skills:
                metrics = self.stream.metrics(step=trainer.global_step, most_skills=self.log_skills)
                for logger in trainer.loggers:
                    logger.log_metrics(metrics, step=trainer.global_step)

    def _add(self, outputs: Any, batch: Any) -> None:
        """Add the losses of a training batch."""
        named = outputs if isinstance(outputs, Mapping) else {}
        columns = batch if isinstance(batch, Mapping) else {}
        if "skill" in columns and "nats" in named and "tokens" in named:
            self._batch_losses.add_sums(columns["skill"], named["nats"], named["tokens"])
        elif "skill" in columns and "labels" in columns and "logits" in named:
            # A batch of blocks names the samples of a block. Without the names, two samples of one skill would count as one.
            self._batch_losses.add(
                columns["skill"], columns["labels"], logits=named["logits"], segments=columns.get("segment_ids")
            )
        else:
            raise PolicyError(
                "Mixer(measured_on='training') reads the losses of the batches: training_step must return {'loss': ..., 'nats': ..., "
                "'tokens': ...} with the sums of each sample, or {'loss': ..., 'logits': ...} for a batch with 'labels', and the batch must have "
                f"'skill'. training_step returned {sorted(named) or 'no mapping'}, and the batch has {sorted(columns) or 'no columns'}."
            )
