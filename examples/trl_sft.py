"""Train with TRL's SFTTrainer: python examples/trl_sft.py --shards S --run-dir runs/trl --steps 100.

With two processes: torchrun --nproc-per-node 2 examples/trl_sft.py --shards S --run-dir runs/trl2 --steps 100. Run the command again
with more steps or with another number of processes that divides 8, and the training continues. For conversations, add --messages meta.messages.
"""

import skillshard as ss

ss.needed("datasets", "hf", what="examples/trl_sft.py")

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from skillshard.hf import MixerCallback, causal_lm_loss, last_checkpoint, sft_dataset

BATCH, EVERY, MAX_TOKENS = 8, 5, 128
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes, so that the example downloads nothing. Use the tokenizer of your model in its place."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({"<pad>": 0, **{byte: number for number, byte in enumerate(alphabet, start=1)}}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>", chat_template=TEMPLATE
    )


def main(shards_at: Path, run: Path, steps: int, messages: str | None) -> None:
    shards, tokenizer = ss.ShardSet.open(shards_at), byte_tokenizer()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if BATCH % world_size:
        raise SystemExit(f"{BATCH} samples a step do not divide over {world_size} processes.")
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(
        shards,
        policy,
        ledger=run,
        seed=3,
        round_draws=EVERY * BATCH,
        step_draws=BATCH,
        fields=() if messages is None else (messages,),
    )
    columns = {"text": "text"} if messages is None else {"messages": messages}

    def losses(model: Any) -> Any:
        nats_and_tokens = causal_lm_loss(model, tokenizer, max_tokens=MAX_TOKENS)
        measured = ss.losses_per_skill(nats_and_tokens, shards.holdout, max_samples=32, batch_size=16)
        if os.environ.get("RANK", "0") == "0":  # every rank measures, and rank 0 reports
            print({skill: round(loss.mean, 3) for skill, loss in measured.items()})
        return measured

    checkpoints = run / "checkpoints"
    last = last_checkpoint(checkpoints)
    if last is not None and int(last.rpartition("-")[2]) >= steps:
        return  # the Trainer would train one step too many

    config = GPT2Config(
        vocab_size=257, n_positions=MAX_TOKENS, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    trainer = SFTTrainer(
        model=GPT2LMHeadModel(config),
        args=SFTConfig(
            output_dir=str(checkpoints),
            max_steps=steps,
            per_device_train_batch_size=BATCH // world_size,
            max_length=MAX_TOKENS,
            save_steps=EVERY,
            use_cpu=not torch.cuda.is_available(),  # without this argument, processes on CPUs would not join a group
            bf16=torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=sft_dataset(mixer, columns=columns),
        processing_class=tokenizer,
        callbacks=[MixerCallback(mixer, losses, every_steps=EVERY)],
    )
    trainer.train(resume_from_checkpoint=last)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    parser.add_argument("--messages", help="Field of the metadata with the messages of a conversation.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps, arguments.messages)
