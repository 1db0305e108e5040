"""Train with Accelerate and without an evaluation: python examples/training_losses.py --shards S --run-dir runs/batches --steps 100.

The losses of the training batches set the weights. With two processes, give `accelerate launch` in place of python. Run the command
again with more steps or with another number of processes that divides 8, and the training continues.
"""

import skillshard as ss

ss.needed("hf", what="examples/training_losses.py")

import argparse
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from skillshard.hf import WholeStream, causal_lm_collator
from skillshard.torch import restart, resume

BATCH, EVERY, MAX_TOKENS = 8, 10, 128


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes, so that the example downloads nothing. Use the tokenizer of your model in its place."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({"<pad>": 0, **{byte: number for number, byte in enumerate(alphabet, start=1)}}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def main(shards_at: Path, run: Path, steps: int) -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    shards, num_processes = ss.ShardSet.open(shards_at), accelerator.num_processes
    if BATCH % num_processes:
        raise SystemExit(f"{BATCH} samples a step do not divide over {num_processes} processes.")
    policy = ss.policies.chain(
        ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2),
        ss.policies.floor(0.1 / len(shards.skills)),  # every skill stays in the stream, and so in the losses
    )
    mixer = ss.Mixer(shards, policy, ledger=run, round_draws=EVERY * BATCH, step_draws=BATCH, measured_on="training")
    losses = ss.BatchLosses(mixer)
    config = GPT2Config(
        vocab_size=257, n_positions=MAX_TOKENS, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    checkpoint, done = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        resume(mixer, saved["mixer"])
        done = saved["mixer"]["step"]
    else:
        restart(mixer)
    collator = causal_lm_collator(byte_tokenizer(), max_tokens=MAX_TOKENS)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(WholeStream(mixer), batch_size=BATCH // num_processes, collate_fn=collator)
    )
    for step, batch in zip(range(done + 1, steps + 1), loader, strict=False):
        skill = batch.pop("skill")  # the skills of the samples are no argument of the model
        output = model(**batch)
        losses.add(skill, batch["labels"], logits=output.logits)
        optimizer.zero_grad()
        accelerator.backward(output.loss)
        optimizer.step()
        if step % EVERY == 0:
            measured = losses.take()  # on every process: the losses of all processes are gathered
            if accelerator.is_main_process:
                mixer.report(step, measured)
                print(step, {skill: round(loss.mean, 3) for skill, loss in measured.items()})
                state = {
                    "model": accelerator.unwrap_model(model).state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "mixer": mixer.state_dict(step=step),
                }
                torch.save(state, run / "unfinished.pt")
                os.replace(run / "unfinished.pt", checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="Directory of shards.")
    parser.add_argument("--run-dir", type=Path, required=True, help="Directory of the ledger and the checkpoints.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    arguments = parser.parse_args()
    main(arguments.shards, arguments.run_dir, arguments.steps)
