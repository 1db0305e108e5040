"""A process of a training by TRL's SFTTrainer: SHARDS COUNTS FOLDER STEPS KIND KILL_AT. Resumes from the last checkpoint."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from skillshard.hf import MixerCallback, last_checkpoint, sft_dataset
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from tests.adapters.hf_trainer import ACCUMULATED, BATCH, STEP_ITEMS, Logging, Steps, byte_tokenizer, tiny, write_line
from tests.adapters.packed_trainer import Source
from tests.adapters.trainers import losses_at

COLUMNS = {
    "chat": {"messages": "meta.messages"},
    "pairs": {"prompt": "meta.prompt", "completion": "meta.completion"},
    "text": {"text": "text"},
    "blocks": None,
}
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"
"""A chat template without a mark for the assistant's tokens, as most models have."""
MARKED = (
    "{% for message in messages %}<{{ message['role'] }}>{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The same chat template with the mark, which TRL needs for `assistant_only_loss`."""


def chat_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = "!", template
    return tokenizer


class LoggingTrainer(SFTTrainer):
    """A trainer that logs the text and the learned part of every sample. TRL replaces the `forward` of a model, so no model can log."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        decode = chat_tokenizer().decode
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        rows = zip(inputs["input_ids"], mask, inputs["labels"], strict=True)
        items = [
            [decode(ids[completion_mask == 1]), decode(learned[learned >= 0])] for ids, completion_mask, learned in rows
        ]
        write_line(Logging.log, {"items": items})
        return super().training_step(model, inputs, num_items_in_batch)


def stream_of(source: Source, ledger: Path, kind: str, step_items: int = BATCH * ACCUMULATED) -> Mixer | PackedTokens:
    columns = COLUMNS[kind] or {}
    fields = [path for path in columns.values() if path != "text"]
    return source.stream(ledger, step_items=step_items, fields=fields)


def trainer(
    stream: Mixer | PackedTokens,
    folder: Path,
    kind: str,
    *,
    steps: int,
    kill_at: int = 0,
    callbacks: list[Any] | None = None,
    template: str = TEMPLATE,
    accumulated: int = ACCUMULATED,
    **arguments: Any,
) -> SFTTrainer:
    shown: list[SFTTrainer] = []
    callback = MixerCallback(stream, lambda _: losses_at(shown[0].state.global_step), every_steps=5)
    defaults = {"max_length": None, "save_steps": 4, "logging_strategy": "no", "disable_tqdm": True}
    config = SFTConfig(
        output_dir=str(folder / "out"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulated,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        **(defaults | arguments),
    )
    shown.append(
        LoggingTrainer(
            model=tiny(),
            args=config,
            train_dataset=sft_dataset(stream, columns=COLUMNS[kind]),
            processing_class=chat_tokenizer(template),
            callbacks=[callback, Steps(Logging.log, kill_at)] if callbacks is None else callbacks,
        )
    )
    return shown[0]


def main(source: Source, folder: Path, steps: int, kind: str, kill_at: int) -> None:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    Logging.log = folder / f"rank-{rank}-of-{world_size}.jsonl"
    stream = stream_of(source, folder / "run", kind, STEP_ITEMS)
    accumulated = STEP_ITEMS // (BATCH * world_size)
    sft_trainer = trainer(stream, folder, kind, steps=steps, kill_at=kill_at, accumulated=accumulated)
    sft_trainer.train(resume_from_checkpoint=last_checkpoint(folder / "out"))
    if world_size > 1:
        torch.distributed.barrier()
        os._exit(0)  # with the group alive, torch 2.13 sometimes aborts at interpreter exit ("terminate called ...")


def run(arguments: list[str]) -> None:
    shards, counts, folder, steps, kind, kill_at = arguments
    main(Source(shards, counts), Path(folder), int(steps), kind, int(kill_at))


if __name__ == "__main__":
    run(sys.argv[1:])
