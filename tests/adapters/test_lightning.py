"""Lightning's Trainer: a checkpoint holds the place in the stream, and losses are reported once a step."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from skillshard.errors import PolicyError
from skillshard.lightning import MixedData, MixerCallback
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.shards.read import ShardSet
from tests.adapters.packed_trainer import Source
from tests.adapters.trainers import expected_items, live_mixer, losses_at, reported

BATCH, ACCUMULATED = 4, 2
STEP_DRAWS = BATCH * ACCUMULATED
pytestmark = [
    pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning"),
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec"),
]


class Module(LightningModule):
    """A module that records the texts or blocks of its training, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[int, list[Any]] = {}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.setdefault(self.global_step + 1, []).extend(
            batch["text"] if "text" in batch else batch["input_ids"].tolist()
        )
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    mixer: Mixer | PackedTokens,
    folder: Path,
    *,
    steps: int,
    resume_from: str | None = None,
    workers: int = 0,
    reports_to: Mixer | None = None,
) -> Module:
    module = Module()
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=ACCUMULATED,
        callbacks=[
            MixerCallback(reports_to or mixer, lambda module: losses_at(module.global_step), every_steps=5),
            keep,
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=MixedData(mixer, batch_size=BATCH, num_workers=workers), ckpt_path=resume_from)
    return module


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_goes_on_from_a_checkpoint_with_the_next_draw_or_block(
    source: Source, tmp_path: Path, workers: int
) -> None:
    reference = source.stream(tmp_path / "reference", step_items=STEP_DRAWS)
    expected = expected_items(reference, steps=20, step_items=STEP_DRAWS)
    first_stream, second_stream = (source.stream(tmp_path / "run", step_items=STEP_DRAWS) for _ in range(2))
    first = fit(first_stream, tmp_path / "kept", steps=11, workers=workers)
    assert [first.seen[step] for step in range(1, 12)] == expected[:11]
    draw = reference.draws_before(72) if isinstance(reference, PackedTokens) else 72
    with pytest.warns(UserWarning, match=rf"resumed at draw {draw}: later losses \(1\) and rounds"):
        second = fit(
            second_stream,
            tmp_path / "kept",
            steps=20,
            resume_from=str(tmp_path / "kept" / "step=9.ckpt"),
            workers=workers,
        )
    assert second_stream.position == 72
    assert sorted(second.seen) == list(range(10, 21))
    assert [second.seen[step] for step in range(10, 21)] == expected[9:]
    assert reported(tmp_path / "run") == reported(tmp_path / "reference")
    assert reported(tmp_path / "run")[0] == (0, losses_at(0))


def test_a_training_that_died_before_its_first_checkpoint_begins_again(shards: ShardSet, tmp_path: Path) -> None:
    """The command is the same, and the losses differ in the last digit."""
    reference = expected_items(
        live_mixer(shards, tmp_path / "reference", step_draws=STEP_DRAWS), steps=7, step_items=STEP_DRAWS
    )
    died = live_mixer(shards, tmp_path / "run", step_draws=STEP_DRAWS)
    for step in (0, 5):
        died.report(step, {skill: loss + 1e-9 for skill, loss in losses_at(step).items()})
        died.batch(step * STEP_DRAWS, 1)
    again = live_mixer(shards, tmp_path / "run", step_draws=STEP_DRAWS)
    with pytest.warns(UserWarning, match=r"resumed at draw 0: later losses \(2\) and rounds \(\d\) are left behind"):
        module = fit(again, tmp_path / "kept", steps=7)
    assert [module.seen[step] for step in range(1, 8)] == reference
    assert reported(tmp_path / "run") == reported(tmp_path / "reference")


def short_trainer(mixer: Mixer, steps: int) -> Trainer:
    return trainer_with(mixer, max_steps=steps)


def trainer_with(mixer: Mixer, **limits: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        **limits,
        callbacks=[MixerCallback(mixer, lambda module: losses_at(module.global_step), every_steps=5)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_a_second_fit_without_a_checkpoint_is_refused_and_its_advice_works(shards: ShardSet, tmp_path: Path) -> None:
    mixer = live_mixer(shards, tmp_path / "run", step_draws=BATCH)
    module, data = Module(), MixedData(mixer, batch_size=BATCH)
    trainer = short_trainer(mixer, 6)
    trainer.fit(module, datamodule=data)
    trainer.fit_loop.epoch_loop.max_steps = 9
    with pytest.raises(PolicyError, match=r"stands at step 6, after 24 draws, and the stream stands at 0.*ckpt_path"):
        trainer.fit(module, datamodule=data)
    assert sorted(module.seen) == list(range(1, 7))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    with warnings.catch_warnings():  # rounds are left behind only if the loader had read ahead of step 6
        warnings.filterwarnings("ignore", "resumed at draw")
        short_trainer(mixer, 9).fit(
            module, datamodule=MixedData(mixer, batch_size=BATCH), ckpt_path=str(tmp_path / "end.ckpt")
        )
    reference = live_mixer(shards, tmp_path / "reference", step_draws=BATCH)
    assert [module.seen[step] for step in range(1, 10)] == expected_items(reference, steps=9, step_items=BATCH)


def test_what_does_not_fit_is_refused_with_a_sentence(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"Lightning reads a batch ahead"):
        MixedData(live_mixer(shards, tmp_path / "strict", step_draws=STEP_DRAWS, lag=0), batch_size=BATCH)
    with pytest.raises(PolicyError, match=r"repeat='stop'\) may end the stream, but Lightning trains for max_steps"):
        MixedData(live_mixer(shards, tmp_path / "ends", step_draws=STEP_DRAWS, repeat="stop"), batch_size=BATCH)
    with pytest.raises(PolicyError, match=r"step takes 4 samples x 1 processes x 2 accumulated = 8 draws"):
        fit(live_mixer(shards, tmp_path / "wrong", step_draws=BATCH), tmp_path / "kept", steps=2)
    with pytest.raises(PolicyError, match=r"every_steps=5 reports every 40 draws, and a round is 16.*from 1 to 2"):
        fit(live_mixer(shards, tmp_path / "rare", step_draws=STEP_DRAWS, round_draws=16), tmp_path / "kept", steps=2)
    with pytest.raises(PolicyError, match="MixedData has no Trainer"):
        MixedData(live_mixer(shards, tmp_path / "alone", step_draws=STEP_DRAWS), batch_size=BATCH).train_dataloader()


@pytest.mark.parametrize("limits", [{}, {"max_epochs": 3}])
def test_a_trainer_that_counts_epochs_alone_is_refused(
    shards: ShardSet, tmp_path: Path, limits: dict[str, int]
) -> None:
    """An epoch of the endless stream never ends, so `max_epochs` would never be reached."""
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning says that max_epochs was not set
        with pytest.raises(PolicyError, match=r"an epoch of the endless stream never ends: give Trainer\(max_steps="):
            trainer_with(mixer, **limits).fit(Module(), datamodule=MixedData(mixer, batch_size=BATCH))
    assert mixer.num_rounds == 0


@pytest.mark.parametrize("limits", [{"max_epochs": 1, "limit_train_batches": 3}, {"max_time": "00:00:01:00", "limit_train_batches": 2, "max_epochs": 1}])  # fmt: skip
def test_a_trainer_with_another_limit_than_steps_is_served(
    shards: ShardSet, tmp_path: Path, limits: dict[str, Any]
) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH)
    module = Module()
    trainer_with(mixer, **limits).fit(module, datamodule=MixedData(mixer, batch_size=BATCH))
    assert sorted(module.seen) == list(range(1, limits["limit_train_batches"] + 1))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 2, "limit_train_batches": 3},
        {"max_epochs": -1, "max_steps": 8, "limit_train_batches": 3, "reload_dataloaders_every_n_epochs": 1},
        {"max_epochs": -1, "max_steps": 8, "overfit_batches": 3},
    ],
)
def test_a_trainer_whose_second_epoch_would_begin_the_loader_again_is_refused_before_it_trains(
    shards: ShardSet, tmp_path: Path, limits: dict[str, Any]
) -> None:
    mixer = live_mixer(shards, tmp_path, step_draws=BATCH)
    module = Module()
    with pytest.raises(
        PolicyError, match=r"^Trainer\(limit_train_batches=3\) ends an epoch after 3 batches.*val_check_interval"
    ):
        trainer_with(mixer, **limits).fit(module, datamodule=MixedData(mixer, batch_size=BATCH))
    assert not module.seen and mixer.num_rounds == 0


def test_packed_tokens_that_do_not_fit_are_refused_with_a_sentence(blocks: Source, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"Lightning trains for max_steps.*skillshard\.torch\.PackedDataset"):
        MixedData(blocks.stream(tmp_path / "ends", step_items=STEP_DRAWS, repeat="stop"), batch_size=BATCH)
    with pytest.raises(
        PolicyError, match=r"PackedTokens\(step_blocks=4\), .*4 blocks x 1 processes x 2 accumulated = 8 blocks"
    ):
        fit(blocks.stream(tmp_path / "wrong", step_items=BATCH), tmp_path / "kept", steps=2)
    rare = blocks.stream(tmp_path / "rare", step_items=STEP_DRAWS, round_draws=16)
    with pytest.raises(
        PolicyError, match=r"every_steps=5 reports every 40 blocks, and the first round is 17:.*from 1 to 2\."
    ):
        fit(rare, tmp_path / "kept", steps=2)


def test_a_callback_of_another_mixer_is_refused(blocks: Source, tmp_path: Path) -> None:
    """The mixer of the packed stream would take blocks for draws."""
    packed = blocks.stream(tmp_path / "run", step_items=STEP_DRAWS)
    with pytest.raises(PolicyError, match=r"reports to another Mixer than the PackedTokens that MixedData reads"):
        fit(packed, tmp_path / "kept", steps=2, reports_to=packed.mixer)
