"""Parts that the tests of adapters share: a live policy, losses that depend on the step alone, a small model over bytes."""

from pathlib import Path
from typing import Any, TypeVar

from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedBatch, PackedTokens
from skillshard.mixing.records import open_records
from skillshard.policies import Policy, skill_it
from skillshard.shards.read import ShardSet

Stream = TypeVar("Stream", Mixer, PackedTokens)
SKILLS = ("add", "carry", "negate")


def losses_at(step: int) -> dict[str, float]:
    return {skill: 2.0 / (1 + step * (number + 1) / 10) for number, skill in enumerate(SKILLS)}


def live_mixer(
    shards: ShardSet | str | Path, ledger: Path, *, step_draws: int, policy: Policy | None = None, **arguments: Any
) -> Mixer:
    """Make a mixer with rounds of five steps."""
    opened = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
    policy = policy or skill_it(SkillGraph.chain(SKILLS), eta=1.0, window=2)
    defaults: dict[str, Any] = {"round_draws": 5 * step_draws, "wait_s": 20.0}
    return Mixer(opened, policy, ledger=ledger, step_draws=step_draws, **(defaults | arguments))


def measured_mixer(
    shards: ShardSet | str | Path, ledger: Path, *, step_draws: int, policy: Policy | None = None, **arguments: Any
) -> Mixer:
    """Make a live mixer whose run begins with the losses before the first step."""
    return measured(live_mixer(shards, ledger, step_draws=step_draws, policy=policy, **arguments))


def measured(stream: Stream) -> Stream:
    """Report the first losses, if the policy begins with losses and no process has reported, and return the stream."""
    mixer = stream.mixer if isinstance(stream, PackedTokens) else stream
    if mixer.initial_losses and not mixer.num_observations:
        mixer.report(0, losses_at(0))
    return stream


def reported(ledger: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the draws and losses of the newest generation of a ledger, whose records must all be sound."""
    assert verify_ledger(DirectoryLedger(ledger)) == []
    records = open_records(DirectoryLedger(ledger))
    observations = [records.observations.get(number) for number in range(records.observations.num())]
    return [(record.draw, dict(record.losses)) for record in observations if record is not None]


def expected_texts(shards: ShardSet | str | Path, ledger: Path, *, steps: int, step_draws: int) -> list[list[str]]:
    """Return the texts of every step of a run in one process, without a loader."""
    return expected_items(live_mixer(shards, ledger, step_draws=step_draws), steps=steps, step_items=step_draws)


def expected_items(
    stream: Mixer | PackedTokens, *, steps: int, step_items: int, every_steps: int = 5
) -> list[list[Any]]:
    """Return the texts, or the tokens of the blocks, of every step of a run in one process, without a loader."""
    items: list[list[Any]] = []
    measured(stream)
    for step in range(1, steps + 1):
        batch = stream.batch((step - 1) * step_items, step_items)
        items.append(batch.input_ids.tolist() if isinstance(batch, PackedBatch) else batch.text)
        if step % every_steps == 0:
            stream.report(step, losses_at(step))
    return items
