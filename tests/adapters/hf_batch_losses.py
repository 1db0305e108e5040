"""A process of a Hugging Face training that reports training losses: SHARDS FOLDER STEPS. The model stays as it is."""

import os
import sys
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

from skillshard.hf import MixerCallback, WholeStream, causal_lm_collator
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from tests.adapters.hf_trainer import ACCUMULATED, BATCH, byte_tokenizer, tiny


def without_dropout() -> GPT2LMHeadModel:
    model = tiny()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model


def train(shards: ShardSet, folder: Path, steps: int) -> Mixer:
    step_draws = BATCH * ACCUMULATED * int(os.environ.get("WORLD_SIZE", "1"))
    mixer = Mixer(
        shards,
        stratified(),
        ledger=folder / "run",
        round_draws=5 * step_draws,
        step_draws=step_draws,
        measured_on="training",
    )
    trainer = Trainer(
        model=without_dropout(),
        args=TrainingArguments(
            output_dir=str(folder / "out"),
            max_steps=steps,
            learning_rate=0.0,  # so that every batch is measured by the same model
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATED,
            remove_unused_columns=False,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            logging_strategy="no",
        ),
        train_dataset=WholeStream(mixer),
        data_collator=causal_lm_collator(byte_tokenizer(), max_tokens=64),
        callbacks=[MixerCallback(mixer, every_steps=5)],
    )
    trainer.train()
    return mixer


def run(arguments: list[str]) -> None:
    shards, folder, steps = arguments
    train(ShardSet.open(shards), Path(folder), int(steps))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.barrier()
        os._exit(0)  # as in hf_trainer.py


if __name__ == "__main__":
    run(sys.argv[1:])
