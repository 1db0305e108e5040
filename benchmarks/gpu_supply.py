"""The supply of a GPU with batches: a model of the size of GPT-2, its step, and loaders with live SKILL-IT weights."""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.gpu_corpora import EOS, VOCAB_SIZE, Plan, samples_of, trained_tokenizer
from benchmarks.processes import timed

Opened = tuple[Iterator[Any], Callable[[], None]]
"""The batches of a loader, and a function that ends its workers."""


def new_gpt2(
    *, vocab_size: int, num_positions: int, layers: int, width: int, end_token: int = 50_256, dropout: float = 0.1
) -> Any:
    """Make a GPT-2 with random weights, the same at each call.

    Args:
        end_token: Number of the token that begins and ends a text, by default GPT-2's own.
        dropout: Share of the units that a training drops, by default GPT-2's own.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_positions": num_positions, "n_embd": width, "n_layer": layers, "n_head": max(1, width // 64)}
    ends = {"bos_token_id": end_token, "eos_token_id": end_token}
    dropouts = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes, **ends, **dropouts))


class TimedModel:
    """A model of the size of GPT-2 on the device of a plan, and the tokens of its steps."""

    def __init__(self, plan: Plan) -> None:
        import torch

        size = plan.size
        self.plan, self.device = plan, torch.device(plan.device)
        # GPT-2's vocabulary, rounded up to a multiple of 64 as trainers do for speed.
        self.model = new_gpt2(
            vocab_size=50_304, num_positions=size.block_tokens, layers=size.layers, width=size.width
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, fused=True)
        self.step_tokens = size.blocks * size.block_tokens

    def step(self, ids: Any) -> None:
        """Take one optimizer step in bfloat16."""
        import torch

        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model(input_ids=ids, labels=ids).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def time_one_batch(self) -> dict[str, float]:
        """Time the steps on one batch again and again: the limit of every loader."""
        import torch

        size = self.plan.size
        fixed = torch.randint(0, VOCAB_SIZE, (size.blocks, size.block_tokens), device=self.device)
        return self._with_tokens(time_steps(self.plan, iter(lambda: fixed, None), self.step))

    def time_loader(self, opened: Callable[[], Opened], *, trains: bool) -> dict[str, float]:
        """Time the steps of a loader, with the model or alone."""
        batches, close = opened()
        times = time_steps(self.plan, batches, self.step if trains else lambda ids: None)
        close()
        return self._with_tokens(times)

    def facts(self) -> dict[str, int]:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"parameters": parameters, "step_tokens": self.step_tokens}

    def _with_tokens(self, times: dict[str, float]) -> dict[str, float]:
        return {**times, "tokens_per_s": round(self.step_tokens / times["step_s"])}


def time_steps(plan: Plan, batches: Iterator[Any], step: Callable[[Any], None]) -> dict[str, float]:
    """Time the steps, with the waits for the device at the start and the end alone, so that batches are read while the device computes.

    Returns:
        step_s: Mean seconds of a step.
        wait_s: Mean seconds of a step in which the loop waits for the next batch.
    """
    import torch

    def wait_for_device() -> None:
        if plan.device.startswith("cuda"):
            torch.cuda.synchronize()

    for ids in islice(batches, max(2, plan.size.timed_steps // 10)):
        step(ids)
    wait_for_device()
    waited, started = 0.0, time.perf_counter()
    for _ in range(plan.size.timed_steps):
        before = time.perf_counter()
        ids = next(batches)
        waited += time.perf_counter() - before
        step(ids)
    wait_for_device()
    num = plan.size.timed_steps
    return {"step_s": round((time.perf_counter() - started) / num, 5), "wait_s": round(waited / num, 5)}


def count(plan: Plan) -> tuple[Any, float]:
    """Train a tokenizer of 8,000 entries on some texts, and count the tokens of the shards."""
    import skillshard as ss

    texts = [sample["text"] for sample in islice(samples_of(plan.work / "topics"), 3000)]
    tokenizer = trained_tokenizer(texts)
    shards = _topics_shards(plan)
    return timed(lambda: ss.write_tokens(shards, tokenizer, plan.work / "throughput" / "counts", progress=False))


def _topics_shards(plan: Plan) -> Any:
    import skillshard as ss

    return ss.ShardSet.open(plan.work / "topics-shards")


def live_mixer(plan: Plan, shards: Any, tokens: Any, *, unit: str, step_draws: int) -> Any:
    """Make a mixer with live SKILL-IT weights in a new directory. A round has the draws of 20 steps."""
    import skillshard as ss

    ledger = plan.work / "throughput" / "ledger"
    shutil.rmtree(ledger, ignore_errors=True)
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    arguments: dict[str, Any] = {"unit": unit, "tokens": tokens} if unit == "tokens" else {}
    return ss.Mixer(
        shards, policy, ledger=ledger, round_draws=20 * step_draws, step_draws=step_draws, lag="live", **arguments
    )


def reporting(batches: Iterator[Any], stream: Any, skills: Sequence[str]) -> Iterator[Any]:
    """Report losses every 10 steps, so that the weights of the rounds change during the timing."""
    for step, ids in enumerate(batches):
        if step and step % 10 == 0:
            report(stream, skills, step)
        yield ids


def packed_loader(plan: Plan, counts: Any, workers: int) -> Opened:
    """Make a loader of blocks of generated words. The workers tokenize and pack."""
    from skillshard.torch import collate_blocks

    return _block_loader(plan, _topics_shards(plan), counts, workers, collate_blocks, ("input_ids",))


def blocks_of_columns(plan: Plan, shards: Any, tokens: Any, columns: Sequence[str], workers: int) -> Opened:
    """Make a loader of blocks of a token set. All columns travel to the device, and the ids are yielded."""
    from skillshard.torch import block_collator

    return _block_loader(plan, shards, tokens, workers, block_collator(*columns), columns)


def _block_loader(
    plan: Plan, shards: Any, tokens: Any, workers: int, collate: Callable[[Any], Any], columns: Sequence[str]
) -> Opened:
    from torch.utils.data import DataLoader

    import skillshard as ss
    from skillshard.torch import PackedDataset

    size = plan.size
    # A block has about four samples.
    mixer = live_mixer(plan, shards, tokens, unit="tokens", step_draws=size.blocks * 4)
    packed = ss.PackedTokens(mixer, tokens, block_tokens=size.block_tokens, separator=EOS, step_blocks=size.blocks)
    report(packed, shards.skills, 0)
    loader = DataLoader(
        PackedDataset(packed),
        batch_size=size.blocks,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=plan.device.startswith("cuda"),
    )
    iterator = iter(loader)

    def on_device() -> Iterator[Any]:
        for batch in iterator:
            moved = {name: batch[name].to(plan.device, non_blocking=True) for name in columns}
            yield moved["input_ids"].long()

    return reporting(on_device(), packed, shards.skills), closed(iterator)


class Tokenized:
    """Tokenize the texts of a batch in a worker, cut or padded to one length."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def __call__(self, items: Any) -> Any:
        import torch

        encoded = self.tokenizer.encode_batch_fast(items.batch.text, add_special_tokens=False)
        ids = [token for text in encoded for token in text.ids]
        # A text has about a third of a block's tokens. Texts are joined, so that a step has as many tokens as a step of packed blocks.
        return torch.tensor(np.resize(np.array(ids), self.length), dtype=torch.int64)


def text_loader(plan: Plan, counts: Any, workers: int) -> Opened:
    """Make a loader of texts, tokenized in a `collate_fn` of the user, without a position for each token."""
    from torch.utils.data import DataLoader

    from skillshard.torch import MixedDataset

    size = plan.size
    step_tokens = size.blocks * size.block_tokens
    tokens_per_text = counts_per_text(counts, plan)
    batch_size = max(1, round(step_tokens / tokens_per_text))
    shards = _topics_shards(plan)
    mixer = live_mixer(plan, shards, counts, unit="samples", step_draws=batch_size)
    report(mixer, shards.skills, 0)
    loader = DataLoader(
        MixedDataset(mixer),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=Tokenized(counts.tokenizer, step_tokens),
        pin_memory=plan.device.startswith("cuda"),
    )
    iterator = iter(loader)
    shape = (size.blocks, size.block_tokens)
    batches = (ids.reshape(shape).to(plan.device, non_blocking=True) for ids in iterator)
    return reporting(batches, mixer, shards.skills), closed(iterator)


def counts_per_text(counts: Any, plan: Plan) -> float:
    texts = [sample["text"] for sample in islice(samples_of(plan.work / "topics"), 200)]
    return statistics.mean(len(encoding.ids) for encoding in counts.tokenizer.encode_batch(texts))


def report(stream: Any, skills: Sequence[str], step: int) -> None:
    """Report losses that fall with the steps, another loss for each skill."""
    stream.report(step, {skill: 3.0 / (1 + step * number / 100) for number, skill in enumerate(skills, start=1)})


def closed(iterator: Any) -> Callable[[], None]:
    """Return a function that ends the workers of a loader's iterator."""

    def close() -> None:
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    return close
