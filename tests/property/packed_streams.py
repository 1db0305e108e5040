"""Packed streams over shards whose samples have from 0 to 90 tokens, for the tests of packings."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import Policy, chain, floor, skill_it, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from tests.tokenizers_trained import EOS

SKILLS = ("add", "carry", "negate")
PACKINGS = ("concat", "one", "skill", "best-fit")
slow = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Counted(NamedTuple):
    """Shards with counts without and with a special token before each sample."""

    shards: ShardSet
    plain: TokenSet
    special: TokenSet


def stream_arguments(
    *, most_block_tokens: int, separators: tuple[str | None, ...] = (None, EOS)
) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for the arguments of `stream_of`."""
    return st.fixed_dictionaries(
        {
            "block_tokens": st.integers(1, most_block_tokens),
            "separator": st.sampled_from(separators),
            "special": st.booleans(),
            "round_draws": st.integers(7, 90),
        }
    )


def live() -> Policy:
    return chain(skill_it(SkillGraph.chain(SKILLS), eta=1.0, window=2), floor(0.05))


def losses_at(step: int) -> dict[str, float]:
    return {skill: 2.0 / (1 + step * (number + 1) / 10) for number, skill in enumerate(SKILLS)}


def stream_of(
    uneven: Counted,
    ledger: Path,
    packing: str = "concat",
    *,
    block_tokens: int = 16,
    separator: str | None = EOS,
    policy: Policy | None = None,
    special: bool = False,
    step_blocks: int = 2,
    **arguments: Any,
) -> PackedTokens:
    policy = policy or stratified()
    tokens = uneven.special if special else uneven.plain
    defaults: dict[str, Any] = {"round_draws": 60, "wait_s": 1.0}
    if policy.reads_losses:
        defaults["initial_losses"] = False
    if packing == "skill":
        defaults |= {"unit": "blocks", "tokens": tokens, "block_tokens": block_tokens, "separator": separator}
    mixer = Mixer(uneven.shards, policy, ledger=ledger, **(defaults | arguments))
    return PackedTokens(
        mixer, tokens, block_tokens=block_tokens, separator=separator, step_blocks=step_blocks, packing=packing
    )


def tokens_of(stream: PackedTokens, first: int, num: int) -> list[list[int]]:
    """Return the tokens of draws, each text tokenized by itself, with the separators."""
    special = stream.tokens.manifest.special_tokens
    separator = [] if stream.separator is None else [stream.tokens.token_id(stream.separator)]
    texts = stream.mixer.batch(first, num).text
    return [stream.tokens.tokenizer.encode(text, add_special_tokens=special).ids + separator for text in texts]


def ids_of(stream: PackedTokens, num_draws: int) -> list[list[int]]:
    """Return the ids of the first draws, each text tokenized by itself, without separators."""
    num_separators = int(stream.separator is not None)
    return [tokens[: len(tokens) - num_separators] for tokens in tokens_of(stream, 0, num_draws)]


def samples_of_epoch(stream: PackedTokens, skill: int, epoch: int) -> list[tuple[str, list[int]]]:
    """Return the id and the tokens of each sample of an epoch, in the order of the skill."""
    name, order = stream.skills[skill], stream.mixer.orders[skill]
    tokens, shards = stream.tokens.train[name], stream.mixer.shards.train[name]
    separator = [] if stream.separator is None else [stream.tokens.token_id(stream.separator)]
    stretch, samples = order.read_in(epoch, 0, order.num_samples), []
    for shard, rows in stretch.segments:
        ids = np.frombuffer(tokens.ids(shard).ids.data, np.uint16)
        ends = np.cumsum(tokens.rows(shard), dtype=np.int64)
        opened_shard = shards.open_shard(shard)
        for row in rows.tolist():
            own = ids[ends[row] - int(tokens.rows(shard)[row]) : ends[row]].tolist()
            samples.append((opened_shard.sample(row).id, own + separator))
    return samples if stretch.place is None else [samples[place] for place in stretch.place.tolist()]


def train(stream: PackedTokens, *, start: int, stop: int) -> list[list[int]]:
    """Train steps start .. stop - 1, report after every fourth step, and return the tokens that were seen."""
    seen = []
    for step in range(start, stop):
        seen += stream.batch(stream.state_dict(step=step)["block"], 2).input_ids.tolist()
        if (step + 1) % 4 == 0:
            stream.report(step + 1, losses_at(step + 1))
    return seen
