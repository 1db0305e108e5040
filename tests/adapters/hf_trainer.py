"""A process of a Hugging Face training: SHARDS COUNTS FOLDER STEPS DISPATCH KILL_AT. Resumes from the last checkpoint."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from skillshard.hf import MixerCallback, WholeStream, causal_lm_blocks, causal_lm_collator
from tests.adapters.packed_trainer import Source
from tests.adapters.trainers import losses_at

BATCH, ACCUMULATED = 4, 2
STEP_ITEMS = 2 * BATCH * ACCUMULATED
"""Samples or blocks of a step over all processes. One process accumulates as many as two processes with fewer batches."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with a token for every byte, so that nothing is downloaded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<pad>": 0, **{byte: number + 1 for number, byte in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def tiny(kind: type[GPT2LMHeadModel] = GPT2LMHeadModel) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return kind(
        GPT2Config(vocab_size=257, n_positions=64, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )


def write_line(log: Path, record: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(record) + "\n")


class Logging(GPT2LMHeadModel):
    """A trainer that logs the texts, or the tokens of the blocks, of every training batch."""

    log: Path

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        if self.training and attention_mask is None:
            write_line(self.log, {"items": input_ids.tolist()})
        elif self.training:
            decode = byte_tokenizer().decode
            items = [decode(ids[mask == 1]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
            write_line(self.log, {"items": items})
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


class Steps(TrainerCallback):
    """A callback that marks the steps in the log, and dies at a given step."""

    def __init__(self, log: Path, kill_at: int) -> None:
        self.log, self.kill_at = log, kill_at

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_line(self.log, {"step": state.global_step + 1})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def collator(source: Source, *, fixed_length: bool = False) -> Any:
    if source.counts:
        return causal_lm_blocks
    return causal_lm_collator(byte_tokenizer(), max_tokens=64, fixed_length=fixed_length)


def main(source: Source, folder: Path, steps: int, dispatch: bool, kill_at: int) -> None:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    stream = source.stream(folder / "run", step_items=STEP_ITEMS)
    Logging.log = folder / f"rank-{rank}-of-{world_size}.jsonl"
    trainer = Trainer(
        model=tiny(Logging),
        args=TrainingArguments(
            output_dir=str(folder / "out"),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=STEP_ITEMS // (BATCH * world_size),
            remove_unused_columns=False,
            accelerator_config={"dispatch_batches": dispatch},
            save_steps=4,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            logging_strategy="no",
        ),
        train_dataset=WholeStream(stream),
        data_collator=collator(source, fixed_length=dispatch),
        callbacks=[
            MixerCallback(stream, lambda _: losses_at(trainer.state.global_step), every_steps=5),
            Steps(Logging.log, kill_at),
        ],
    )
    last = get_last_checkpoint(str(folder / "out")) if (folder / "out").exists() else None
    trainer.train(resume_from_checkpoint=last)
    if world_size > 1:
        torch.distributed.barrier()
        os._exit(0)  # with the group alive, torch 2.13 sometimes aborts at interpreter exit ("terminate called ...")


def run(arguments: list[str]) -> None:
    shards, counts, folder, steps, dispatch, kill_at = arguments
    main(Source(shards, counts), Path(folder), int(steps), dispatch == "dispatch", int(kill_at))


if __name__ == "__main__":
    run(sys.argv[1:])
