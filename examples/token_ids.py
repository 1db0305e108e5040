"""Train on a corpus that is tokenized already: python examples/token_ids.py --run-dir runs/token-ids --steps 100.

The first run writes rows of token ids and labels, their shards, and the kept ids. Run the command again with more steps, also with another
number of `--workers`, and the training continues. A command that was killed at any moment goes on when it is run again.
"""

import skillshard as ss

ss.needed("torch", what="examples/token_ids.py")

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from skillshard.torch import PackedDataset, block_collator

BLOCKS, BLOCK_TOKENS, EVERY, VOCAB_SIZE, END, PROMPT, IGNORED = 8, 32, 10, 100, 99, 3, -100
SKILLS = {"ones": 1, "twos": 2, "threes": 3}
"""Each skill counts in steps of its own."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_tokens(run: Path) -> tuple[ss.ShardSet, ss.TokenSet]:
    """Write the corpus, tag its rows by their metadata, shard the rows, and keep their ids. Finished artefacts are only opened."""
    rows, random = run / "corpus" / "rows.jsonl", np.random.default_rng(0)
    if not rows.exists():
        rows.parent.mkdir(parents=True, exist_ok=True)
        with rows.with_suffix(".tmp").open("w") as file:
            for number in range(900):
                skill = list(SKILLS)[number % len(SKILLS)]
                ids = ((random.integers(END) + SKILLS[skill] * np.arange(random.integers(6, 24))) % END).tolist()
                labels = [IGNORED] * PROMPT + ids[PROMPT:]  # a label stands at the place of its id
                print(json.dumps({"id": number, "skill": skill, "input_ids": ids, "labels": labels}), file=file)
        os.replace(rows.with_suffix(".tmp"), rows)
    fields = ss.FieldMapping(token_ids="input_ids", token_labels="labels", vocab_size=VOCAB_SIZE)
    corpus = ss.Corpus.open(rows.parent, fields=fields)
    tags = ss.tag_corpus(corpus, ss.taggers.metadata("skill"), run / "tags", progress=False)
    shards = ss.write_shards(corpus, tags, run / "shards", holdout=0.1, progress=False)
    return shards, ss.write_tokens(shards, None, run / "tokens", progress=False)  # None: the ids of the corpus are kept


def main(run: Path, steps: int, workers: int) -> None:
    shards, tokens = make_tokens(run)
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    mixer = ss.Mixer(
        shards,
        policy,
        ledger=run / "ledger",
        round_draws=200,
        unit="tokens",
        tokens=tokens,
        loss=tokens.answers,  # the losses are of the ids with labels
    )
    packed = ss.PackedTokens(mixer, tokens, block_tokens=BLOCK_TOKENS, separator=str(END), step_blocks=BLOCKS)
    torch.manual_seed(0)
    model = torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE, device=DEVICE)  # a bigram model; use your own model in its place
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def nats(ids: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
        logits = model(ids[:, :-1]).transpose(1, 2)
        return F.cross_entropy(logits, labels[:, 1:], ignore_index=IGNORED, reduction=reduction)

    def nats_and_tokens(texts: list[str], answers: list[list[tuple[int, int]]]) -> tuple[list[float], list[int]]:
        """Measure held-out samples. The text of a sample is its ids in decimal digits, and the answers are the stretches with labels."""
        losses, counts = [], []
        for text, spans in zip(texts, answers, strict=True):
            ids = torch.tensor([ss.ids_of_text(text)], device=DEVICE)
            labels = torch.full_like(ids, IGNORED)
            for start, end in spans:
                learned = slice(text.count(" ", 0, start), text.count(" ", 0, end) + 1)
                labels[:, learned] = ids[:, learned]
            losses.append(float(nats(ids, labels, "sum")))
            counts.append(int((labels[:, 1:] != IGNORED).sum()))
        return losses, counts

    def report(step: int) -> None:
        with torch.no_grad():
            losses = ss.losses_per_skill(
                nats_and_tokens, shards.holdout, max_samples=32, batch_size=32, prompt_field="answer_spans"
            )
        packed.report(step, losses)
        print(step, {skill: f"{loss.mean:.3f} ± {loss.standard_error:.3f}" for skill, loss in losses.items()})

    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        packed.load_state_dict(saved["packed"])  # this state holds the state of the mixer
        step = saved["packed"]["step"]
        print(f"goes on after step {step}")
    else:
        packed.restart()  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step

    collate = block_collator(
        "input_ids", "labels"
    )  # the first id of a sample has no label, so no loss crosses a sample's end
    batches = iter(DataLoader(PackedDataset(packed), batch_size=BLOCKS, num_workers=workers, collate_fn=collate))
    while step < steps:
        batch = {name: tensor.to(DEVICE) for name, tensor in next(batches).items()}
        optimizer.zero_grad()
        nats(batch["input_ids"], batch["labels"], "mean").backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:
            report(step)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "packed": packed.state_dict(step=step)}, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)  # whole or not at all


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="Directory of corpus, shards, tokens, ledger and checkpoints."
    )
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    parser.add_argument("--workers", type=int, default=2, help="Number of loader processes.")
    arguments = parser.parse_args()
    main(arguments.run_dir, arguments.steps, arguments.workers)
