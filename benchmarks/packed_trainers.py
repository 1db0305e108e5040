"""Train a small GPT-2 on packed blocks of a token set by three trainers, with masked prompts and attention within samples.

    python -m benchmarks.packed_trainers hf|lightning|accelerate --shards S --tokens T --run-dir R --steps 100

The losses of the training batches set the weights, so nothing is evaluated. A batch has labels, positions within each sample, and the skill
and the sample of each token. The same command with more steps continues the training.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

import skillshard as ss
from benchmarks.gpu_corpora import EOS, VOCAB_SIZE
from benchmarks.gpu_supply import new_gpt2
from skillshard.torch import block_collator

BLOCKS, BLOCK_TOKENS, EVERY = 16, 256, 10
COLUMNS = ("input_ids", "labels", "position_ids", "skill", "segment_ids")
ON_GPU = torch.cuda.is_available()


def packed_stream(shards_at: str, tokens_at: str, run: Path) -> ss.PackedTokens:
    """Open the blocks of a run with live SKILL-IT weights from training losses."""
    shards, tokens = ss.ShardSet.open(shards_at), ss.TokenSet.open(tokens_at)
    policy = ss.policies.chain(
        ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2),
        ss.policies.floor(0.1 / len(shards.skills)),
    )
    mixer = ss.Mixer(
        shards, policy, ledger=run, round_draws=2000, unit="tokens", tokens=tokens, measured_on="training", lag="live"
    )
    return ss.PackedTokens(mixer, tokens, block_tokens=BLOCK_TOKENS, separator=EOS, step_blocks=BLOCKS)


def new_model(layers: int, width: int) -> GPT2LMHeadModel:
    """Make a GPT-2. Without dropout, the losses of a batch depend on the weights alone."""
    model: GPT2LMHeadModel = new_gpt2(
        vocab_size=VOCAB_SIZE, num_positions=BLOCK_TOKENS, layers=layers, width=width, end_token=0, dropout=0.0
    )
    return model


def for_the_model(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: batch[name].long() for name in ("input_ids", "labels", "position_ids")}


def train_by_hf(packed: ss.PackedTokens, network: GPT2LMHeadModel, run: Path, steps: int) -> None:
    from transformers import Trainer, TrainingArguments

    from skillshard.hf import MixerCallback, WholeStream, last_checkpoint

    last = last_checkpoint(run / "checkpoints")
    trainer = Trainer(
        model=network,
        args=TrainingArguments(
            output_dir=str(run / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=BLOCKS,
            learning_rate=1e-3,
            remove_unused_columns=False,
            save_steps=EVERY,
            use_cpu=not ON_GPU,
            bf16=ON_GPU,
            report_to="none",
        ),
        train_dataset=WholeStream(packed),
        data_collator=block_collator(*COLUMNS),
        callbacks=[MixerCallback(packed, every_steps=EVERY)],
    )
    trainer.train(resume_from_checkpoint=last)


def train_by_lightning(packed: ss.PackedTokens, network: GPT2LMHeadModel, run: Path, steps: int) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from skillshard.lightning import MixedData, MixerCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network

        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            output = self.model(**for_the_model(batch))
            return {"loss": output.loss, "logits": output.logits.detach()}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    keep = ModelCheckpoint(
        run / "checkpoints", every_n_train_steps=EVERY, save_last=True, save_on_train_epoch_end=False
    )
    trainer = Trainer(
        accelerator="gpu" if ON_GPU else "cpu",
        devices=1,
        precision="bf16-mixed" if ON_GPU else "32-true",
        max_steps=steps,
        callbacks=[MixerCallback(packed, every_steps=EVERY), keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = run / "checkpoints" / "last.ckpt"
    data = MixedData(packed, batch_size=BLOCKS, collate_fn=block_collator(*COLUMNS))
    trainer.fit(Module(), datamodule=data, ckpt_path=str(last) if last.exists() else None)


def train_by_accelerate(packed: ss.PackedTokens, network: GPT2LMHeadModel, run: Path, steps: int) -> None:
    from accelerate import Accelerator

    from skillshard.hf import WholeStream
    from skillshard.torch import restart, resume

    accelerator = Accelerator(cpu=not ON_GPU, mixed_precision="bf16" if ON_GPU else "no")
    model, losses = network, ss.BatchLosses(packed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    checkpoint, done = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        resume(packed, saved["packed"])
        done = saved["packed"]["step"]
    else:
        restart(packed)
    loader = DataLoader(WholeStream(packed), batch_size=BLOCKS, collate_fn=block_collator(*COLUMNS))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for step, batch in zip(range(done + 1, steps + 1), loader, strict=False):
        output = model(**for_the_model(batch))
        losses.add(batch["skill"], batch["labels"].long(), logits=output.logits, segments=batch["segment_ids"])
        if step == done + 1:
            compare_with_cpu(packed, batch, output.logits, run)
        optimizer.zero_grad()
        accelerator.backward(output.loss)
        optimizer.step()
        if step % EVERY == 0:
            packed.report(step, losses.take())
            state = {"model": accelerator.unwrap_model(model).state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "packed": packed.state_dict(step=step)}, run / "unfinished.pt")
            os.replace(run / "unfinished.pt", checkpoint)


def compare_with_cpu(packed: ss.PackedTokens, batch: Mapping[str, Any], logits: torch.Tensor, run: Path) -> None:
    """Write the difference of the losses of a batch from the same logits on the device and on the CPU, and the shares of the tokens."""
    columns = [batch["skill"], batch["labels"].long(), logits, batch["segment_ids"]]
    measured = []
    for device in (logits.device, torch.device("cpu")):
        skill, labels, own_logits, segments = (column.to(device) for column in columns)
        measured.append(ss.losses_from_batch(packed, skill, labels, logits=own_logits, segments=segments))
    on_device, on_cpu = measured
    facts = {
        "device": str(logits.device),
        "dtype of the logits": str(logits.dtype),
        "skills in the batch": len(on_device),
        "same numbers of samples and tokens": all(
            (on_device[name].num_samples, on_device[name].num_tokens)
            == (on_cpu[name].num_samples, on_cpu[name].num_tokens)
            for name in on_cpu
        ),
        "largest difference to the cpu": max(abs(on_device[name].mean - on_cpu[name].mean) for name in on_cpu),
        "share of learned tokens": float((batch["labels"] != -100).float().mean()),
        "largest position": int(batch["position_ids"].max()),
    }
    (run / "losses-of-a-batch.json").write_text(json.dumps(facts))


TRAINERS = {"hf": train_by_hf, "lightning": train_by_lightning, "accelerate": train_by_accelerate}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    stream = packed_stream(arguments.shards, arguments.tokens, arguments.run_dir)
    network = new_model(arguments.layers, arguments.width)
    TRAINERS[arguments.trainer](stream, network, arguments.run_dir, arguments.steps)
