"""Trainers go on from a checkpoint under another policy: steps, draws and blocks go on counting, and no sample comes twice."""

import json
from pathlib import Path
from typing import Any

import torch

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedBatch, PackedTokens
from skillshard.mixing.records import open_records
from skillshard.policies import Policy, proportional, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from tests.adapters import test_hf as hf
from tests.adapters import test_lightning as lightning
from tests.adapters.packed_trainer import Source
from tests.adapters.trainers import live_mixer, losses_at
from tests.tokenizers_trained import EOS

pytestmark = lightning.pytestmark


def continued(source: Source, old: Path, new: Path, state: dict[str, Any], *, step_items: int) -> Mixer | PackedTokens:
    """Return the stream of a run under proportional weights that continues another run at a state."""
    shards = ShardSet.open(source.shards)
    tokens = TokenSet.open(source.counts) if source.counts else None
    mixer = Mixer.continue_from(
        old,
        state=state,
        shards=shards,
        policy=proportional(),
        ledger=new,
        tokens=tokens,
        step_draws=step_items,
        wait_s=20.0,
    )
    return (
        mixer if tokens is None else PackedTokens(mixer, tokens, block_tokens=6, separator=EOS, step_blocks=step_items)
    )


def items_of_steps(
    stream: Mixer | PackedTokens, state: dict[str, Any], steps: range, step_items: int
) -> list[list[Any]]:
    """Return the texts, or the tokens of the blocks, of steps after a state, without a trainer."""
    stream.load_state_dict(state)
    begin, items = stream.position, []
    for step in steps:
        batch = stream.batch(begin + (step - steps.start) * step_items, step_items)
        items.append(batch.input_ids.tolist() if isinstance(batch, PackedBatch) else batch.text)
    return items


def reported_steps(ledger: Path) -> list[int]:
    assert verify_ledger(DirectoryLedger(ledger)) == []
    return [record.step for record in open_records(DirectoryLedger(ledger)).observations]


def test_the_trainer_of_hugging_face_goes_on_under_another_policy(source: Source, tmp_path: Path) -> None:
    first = source.stream(tmp_path / "old", step_items=hf.BATCH)
    hf.trainer(first, tmp_path / "out", source=source, stop_at=12).train()
    checkpoint = tmp_path / "out" / "checkpoint-12"
    state = json.loads((checkpoint / "mixer.json").read_text())
    reference = continued(source, tmp_path / "old", tmp_path / "reference", state, step_items=hf.BATCH)
    expected = items_of_steps(reference, state, range(13, hf.STEPS + 1), hf.BATCH)
    second = continued(source, tmp_path / "old", tmp_path / "new", state, step_items=hf.BATCH)
    trainer = hf.trainer(second, tmp_path / "out", source=source)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == hf.STEPS and second.position == 12 * hf.BATCH
    assert hf.trained(tmp_path, world_size=1, accumulated=1)[12:] == expected
    assert reported_steps(tmp_path / "new") == [10, 15]  # the last report of the old run, and the first of the new run
    saved = json.loads((tmp_path / "out" / "checkpoint-15" / "mixer.json").read_text())
    assert saved["draw" if "draw" in saved else "block"] == 15 * hf.BATCH


def test_lightning_goes_on_under_another_policy(source: Source, tmp_path: Path) -> None:
    first = source.stream(tmp_path / "old", step_items=lightning.STEP_DRAWS)
    lightning.fit(first, tmp_path / "kept", steps=9)
    checkpoint = tmp_path / "kept" / "step=9.ckpt"
    state = torch.load(checkpoint, weights_only=False)["MixedData"]
    reference = continued(source, tmp_path / "old", tmp_path / "reference", state, step_items=lightning.STEP_DRAWS)
    expected = items_of_steps(reference, state, range(10, 16), lightning.STEP_DRAWS)
    second = continued(source, tmp_path / "old", tmp_path / "new", state, step_items=lightning.STEP_DRAWS)
    module = lightning.fit(second, tmp_path / "kept", steps=15, resume_from=str(checkpoint))
    assert second.position == 9 * lightning.STEP_DRAWS
    assert [module.seen[step] for step in range(10, 16)] == expected and sorted(module.seen) == [*range(10, 16)]
    assert reported_steps(tmp_path / "new") == [5, 10, 15]
    resumed = torch.load(tmp_path / "kept" / "step=12.ckpt", weights_only=False)["MixedData"]
    assert resumed["draw" if "draw" in resumed else "block"] == 12 * lightning.STEP_DRAWS


def live_from(shards: ShardSet, old: Path, new: Path, *, step: int, step_draws: int) -> Mixer:
    """Continue a run without a report under a policy that begins with the losses before its first step."""
    live = live_mixer(shards, new.with_name("policy"), step_draws=step_draws)
    policy: Policy = live.policy
    return Mixer.continue_from(
        old,
        draw=step * step_draws,
        step=step,
        shards=shards,
        policy=policy,
        ledger=new,
        step_draws=step_draws,
        wait_s=20.0,
    )


def test_a_policy_that_begins_with_losses_gets_the_losses_of_the_checkpoint(shards: ShardSet, tmp_path: Path) -> None:
    """The old run has no report before its checkpoint at step 3."""
    old = live_mixer(shards, tmp_path / "old", step_draws=hf.BATCH, policy=stratified())
    hf.trainer(old, tmp_path / "out", stop_at=3).train()
    new = live_from(shards, tmp_path / "old", tmp_path / "new", step=3, step_draws=hf.BATCH)
    assert new.initial_losses
    hf.trainer(new, tmp_path / "out").train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert reported_steps(tmp_path / "new") == [3, 5, 10, 15]
    first = open_records(DirectoryLedger(tmp_path / "new")).observations.get(0)
    assert first is not None and (first.draw, first.losses) == (3 * hf.BATCH, losses_at(3))


def test_lightning_measures_at_the_checkpoint_for_a_policy_that_begins_with_losses(
    shards: ShardSet, tmp_path: Path
) -> None:
    old = live_mixer(shards, tmp_path / "old", step_draws=lightning.STEP_DRAWS, policy=stratified())
    lightning.fit(old, tmp_path / "kept", steps=3)
    new = live_from(shards, tmp_path / "old", tmp_path / "new", step=3, step_draws=lightning.STEP_DRAWS)
    lightning.fit(new, tmp_path / "kept", steps=10, resume_from=str(tmp_path / "kept" / "step=3.ckpt"))
    assert reported_steps(tmp_path / "new") == [3, 5, 10]
