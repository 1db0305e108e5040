"""The callbacks of the trainers report the losses of the training batches, without a function that measures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import Trainer as HfTrainer
from transformers import TrainingArguments

from skillshard import hf, lightning
from skillshard.errors import PolicyError
from skillshard.hf import causal_lm_loss
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.records import open_records
from skillshard.policies import fixed, odm, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.torch import block_collator
from tests.adapters.hf_batch_losses import train, without_dropout
from tests.adapters.hf_trainer import ACCUMULATED, BATCH, byte_tokenizer
from tests.adapters.packed_trainer import Source
from tests.adapters.processes import finish, start_ranks
from tests.adapters.trainers import SKILLS, losses_at, reported
from tests.tokenizers_trained import EOS

pytestmark = [
    pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning"),
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec"),
]


def measured_in_run(shards: ShardSet, ledger: Path, draws: range) -> dict[str, float]:
    """Return the losses of draws of the run in a ledger."""
    record = open_records(DirectoryLedger(ledger)).run
    mixer = Mixer(
        shards, stratified(), ledger=ledger, round_draws=record.round_draws, step_draws=None, measured_on="training"
    )
    batch = mixer.at(np.array(draws))
    nats, tokens = causal_lm_loss(without_dropout(), byte_tokenizer(), max_tokens=64)(batch.text)
    each = (nats / tokens).double().numpy()
    return {skill: float(each[batch.skill_number == number].mean()) for number, skill in enumerate(SKILLS)}


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_trainer_of_transformers_reports_the_losses_of_its_batches(
    shards: ShardSet, tmp_path: Path, world_size: int
) -> None:
    if world_size == 1:
        train(shards, tmp_path, 10)
    else:
        arguments = [str(shards.root), str(tmp_path), "10"]
        assert finish(start_ranks("hf_batch_losses", 2, arguments, tmp_path)) == [0, 0]
    step_draws = BATCH * ACCUMULATED * world_size
    reports = reported(tmp_path / "run")
    assert [draw for draw, _ in reports] == [5 * step_draws, 10 * step_draws]
    for number, (_, losses) in enumerate(reports):
        draws = range(5 * number * step_draws, 5 * (number + 1) * step_draws)
        assert losses == pytest.approx(measured_in_run(shards, tmp_path / "run", draws), rel=1e-5)


def hf_trainer(stream: Any, model: Any, collator: Any, folder: Path, *, every_steps: int) -> HfTrainer:
    """Make a trainer of three steps that do not change the model."""
    return HfTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "out"),
            max_steps=3,
            learning_rate=0.0,
            per_device_train_batch_size=BATCH,
            remove_unused_columns=False,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=hf.WholeStream(stream),
        data_collator=collator,
        callbacks=[hf.MixerCallback(stream, every_steps=every_steps)],
    )


BLOCK_COLUMNS = ("input_ids", "labels", "skill", "segment_ids")


@pytest.mark.parametrize(
    "collator", [hf.causal_lm_blocks, block_collator(*BLOCK_COLUMNS)], ids=["causal_lm", "columns"]
)
def test_the_trainer_of_transformers_reports_the_losses_of_packed_blocks(
    blocks: Source, tmp_path: Path, collator: Any
) -> None:
    packed = live_packed(blocks, tmp_path / "run", step_blocks=BATCH)
    model = without_dropout()
    hf_trainer(packed, model, collator, tmp_path, every_steps=3).train()
    ((_, losses),) = reported(tmp_path / "run")
    assert losses == pytest.approx(measured_in_blocks(packed, model, num_batches=3), rel=1e-5)


def measured_in_blocks(packed: PackedTokens, model: torch.nn.Module, *, num_batches: int) -> dict[str, float]:
    """Return the mean loss of each skill over the parts of samples in the first blocks of a stream."""
    sums: dict[tuple[int, int], list[float]] = {}
    for batch in (packed.batch(number * BATCH, BATCH) for number in range(num_batches)):
        ids = torch.from_numpy(batch.input_ids.astype(np.int64))
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits
        nats = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").numpy()
        for row, token in np.ndindex(*nats.shape):
            part = int(batch.block[row]), int(batch.draw[row, token + 1])
            sums.setdefault(part, [int(batch.skill[row, token + 1])]).append(float(nats[row, token]))
    parts = {
        skill: [np.mean(own[1:]) for own in sums.values() if own[0] == number]
        for number, skill in enumerate(packed.skills)
    }
    return {skill: float(np.mean(means)) for skill, means in parts.items()}


class Blocks(LightningModule):
    """A causal language model on blocks of tokens, whose step returns the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = without_dropout()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self.model(input_ids=batch["input_ids"].long(), labels=batch["labels"].long())
        return {"loss": output.loss, "logits": output.logits.detach()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_lightning_reports_the_losses_of_packed_blocks_sample_by_sample(blocks: Source, tmp_path: Path) -> None:
    packed, module = live_packed(blocks, tmp_path / "run", step_blocks=BATCH), Blocks()
    Trainer(
        accelerator="cpu",
        max_steps=3,
        callbacks=[lightning.MixerCallback(packed, every_steps=3)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(
        module,
        datamodule=lightning.MixedData(packed, batch_size=BATCH, collate_fn=block_collator(*BLOCK_COLUMNS)),
    )
    ((_, losses),) = reported(tmp_path / "run")
    expected = measured_in_blocks(packed, module.model, num_batches=3)
    assert losses == pytest.approx(expected, rel=1e-5)


def live_packed(source: Source, ledger: Path, *, step_blocks: int) -> PackedTokens:
    """Make a packed stream with training losses. Most samples are of one skill, so that samples of a skill stand side by side in a block."""
    counts = TokenSet.open(source.counts)
    weights = fixed(dict(zip(SKILLS, (0.8, 0.1, 0.1), strict=True)))
    stream = Mixer(
        ShardSet.open(source.shards), weights, ledger=ledger, round_draws=5 * step_blocks, measured_on="training"
    )
    return PackedTokens(stream, counts, block_tokens=24, separator=EOS, step_blocks=step_blocks)


class Module(LightningModule):
    """A module with a loss for each text, its length in characters, and outputs of a chosen form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer, self.form = torch.nn.Linear(1, 1), form

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(torch.ones(1, 1)).sum()
        lengths = torch.tensor([len(text) for text in batch["text"]])
        if self.form == "sums":
            return {"loss": loss, "nats": lengths**2, "tokens": lengths}
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(mixer: Mixer, form: str) -> None:
    Trainer(
        accelerator="cpu",
        max_steps=10,
        accumulate_grad_batches=2,
        callbacks=[lightning.MixerCallback(mixer, every_steps=5)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(form), datamodule=lightning.MixedData(mixer, batch_size=4))


def training_mixer(shards: ShardSet, ledger: Path, policy: Any = None, **arguments: Any) -> Mixer:
    defaults = {"round_draws": 40, "step_draws": 8, "measured_on": "training", "wait_s": 5.0}
    return Mixer(shards, policy or stratified(), ledger=ledger, **(defaults | arguments))


def test_lightning_reports_the_losses_of_its_batches(shards: ShardSet, tmp_path: Path) -> None:
    mixer = training_mixer(shards, tmp_path, odm(warmup_steps=0))
    fit(mixer, "sums")
    reports = reported(tmp_path)
    assert [draw for draw, _ in reports] == [40, 80]
    for first, (_, losses) in zip((0, 40), reports, strict=True):
        batch = mixer.batch(first, 40)
        lengths = np.array([len(text) for text in batch.text])
        for number, skill in enumerate(SKILLS):
            assert losses[skill] == pytest.approx(lengths[batch.skill_number == number].mean())


def test_a_module_without_losses_per_sample_is_refused_in_a_sentence(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"training_step must return \{'loss': \.\.\., 'nats': \.\.\."):
        fit(training_mixer(shards, tmp_path), "loss alone")


@pytest.mark.parametrize("callback", [hf.MixerCallback, lightning.MixerCallback])
def test_a_callback_measures_what_the_run_says_or_is_refused(shards: ShardSet, tmp_path: Path, callback: Any) -> None:
    with pytest.raises(PolicyError, match="leave losses out of MixerCallback"):
        callback(training_mixer(shards, tmp_path / "a"), lambda _: losses_at(0), every_steps=5)
    with pytest.raises(
        PolicyError, match="MixerCallback has no losses: give a function that measures held-out samples"
    ):
        callback(training_mixer(shards, tmp_path / "b", measured_on="holdout"), every_steps=5)


def test_a_collator_without_skills_is_refused_in_a_sentence(shards: ShardSet, tmp_path: Path) -> None:
    mixer = training_mixer(shards, tmp_path / "run", step_draws=BATCH, round_draws=5 * BATCH)

    def collate(items: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[1, 2, 3]] * len(items))
        return {"input_ids": ids, "labels": ids}

    trainer = hf_trainer(mixer, without_dropout(), collate, tmp_path, every_steps=5)
    with pytest.raises(PolicyError, match="a training batch has no skill: give data_collator=causal_lm_collator"):
        trainer.train()
