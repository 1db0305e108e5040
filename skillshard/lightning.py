"""The mixed stream in Lightning's `Trainer`: a data module and a callback, with their state in Lightning's checkpoints.

Lightning may read a batch ahead, so `lag=0` would stall and is refused.

    Trainer(max_steps=1000, use_distributed_sampler=False, callbacks=[MixerCallback(mixer, losses, every_steps=100)]).fit(
        module, datamodule=MixedData(mixer, batch_size=32, num_workers=2)
    )
"""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from skillshard.errors import PolicyError
from skillshard.mixing.mixer import Mixer
from skillshard.refusals import refuse_for_trainer, refuse_rare_reports
from skillshard.torch import InOrder, MixedDataset, collate, resume


class MixedData(LightningDataModule):
    """A mixer's stream as training data; a checkpoint keeps where it stands, by the optimizer steps taken.

    Each rank takes its share, so with several processes give `Trainer(use_distributed_sampler=False)`; Lightning stops
    otherwise. The stream is endless: train for `max_steps`.

    Args:
        mixer: `step_draws` is batch_size x processes x accumulate_grad_batches.
        batch_size: samples per rank and batch.
        num_workers: loader processes.
        collate_fn: items -> batch; as for `skillshard.torch.MixedDataset`.

    Raises:
        PolicyError: the mixer has lag=0; or `step_draws` is not what a step takes (when training begins).
        LedgerError: the checkpoint is of another run.
    """

    def __init__(
        self, mixer: Mixer, *, batch_size: int, num_workers: int = 0, collate_fn: Callable[[Any], Any] = collate
    ) -> None:
        super().__init__()
        refuse_for_trainer(mixer, "Lightning")
        self.mixer, self.batch_size, self.num_workers, self.collate_fn = mixer, batch_size, num_workers, collate_fn

    def train_dataloader(self) -> DataLoader[Any]:
        self._check_step_draws()
        return DataLoader(
            MixedDataset(self.mixer),
            sampler=InOrder(),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
        )

    def state_dict(self) -> dict[str, Any]:
        return self.mixer.state_dict(step=self._trainer().global_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        resume(self.mixer, state_dict)

    def _check_step_draws(self) -> None:
        trainer = self._trainer()
        accumulated = trainer.accumulate_grad_batches
        expected = self.batch_size * trainer.world_size * accumulated
        if self.mixer.step_draws != expected:
            raise PolicyError(
                f"Mixer(step_draws={self.mixer.step_draws}), but an optimizer step takes {self.batch_size} samples x "
                f"{trainer.world_size} processes x {accumulated} accumulated = {expected} draws: give Mixer(step_draws={expected})."
            )

    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise PolicyError("MixedData has no Trainer: give it to Trainer.fit(module, datamodule=...).")
        return self.trainer


class MixerCallback(Callback):
    """Reports losses per skill every few optimizer steps. Every process measures, rank 0 reports.

    Args:
        mixer: of the `MixedData` that is trained on.
        losses: module -> evaluation skill -> loss.
        every_steps: optimizer steps from one report to the next; at least one report a round.

    Raises:
        PolicyError: reports would come less often than rounds (when training begins).
    """

    def __init__(
        self, mixer: Mixer, losses: Callable[[LightningModule], Mapping[str, Any]], *, every_steps: int
    ) -> None:
        self.mixer, self.losses, self.every_steps = mixer, losses, every_steps
        self._reported = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reported = trainer.global_step
        refuse_rare_reports(self.mixer, self.every_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._reported or step % self.every_steps:
            return
        self._reported = step  # an accumulated batch ends without a step
        losses = self.losses(pl_module)
        if trainer.is_global_zero:
            self.mixer.report(step, losses)
