"""Training losses of the batches: the one formula, for any division into batches and ranks, and a record that says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from skillshard.batch_losses import BatchLosses, losses_from_batch, token_nats
from skillshard.corpus import Sample
from skillshard.errors import ObservationError, PolicyError
from skillshard.evaluation import losses_per_skill
from skillshard.graph.skill_graph import SkillGraph
from skillshard.hf import causal_lm_collator, causal_lm_loss
from skillshard.loss import IGNORE, Loss, Losses, LossKind, Reduction, reduced
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import open_records
from skillshard.policies import ado, aioli, chain, floor, odm, skill_it, stratified
from skillshard.shards.read import ShardSet
from skillshard.torch import MixedDataset
from tests.adapters.hf_trainer import byte_tokenizer, tiny
from tests.adapters.processes import finish, start_ranks
from tests.adapters.trainers import SKILLS

IDENTITY = SkillGraph.identity(SKILLS)


class Named:
    """The parts of a stream that the losses of batches need."""

    skills = SKILLS

    def __init__(self, reduction: Reduction = "per_sample") -> None:
        self.loss = LossKind(reduction=reduction)


def mixer(shards: ShardSet, ledger: Path, policy: Any = None, **arguments: Any) -> Mixer:
    policy = policy or skill_it(IDENTITY, eta=0.5)
    defaults = {"round_draws": 32, "step_draws": 8, "measured_on": "training", "wait_s": 5.0}
    return Mixer(shards, policy, ledger=ledger, **(defaults | arguments))


def losses_of(*names: str, loss: float = 1.0) -> Losses:
    return Losses({name: Loss(loss, 0.1, 5, 50) for name in names}, kind=LossKind(), measured_on="training")


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    reduction=st.sampled_from(["per_sample", "per_token"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_the_losses_are_the_formula_over_all_samples_for_any_division_into_batches(
    sizes: list[int], reduction: Reduction, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    num = sum(sizes)
    skill, labels = rng.integers(0, 3, num), rng.integers(0, 7, (num, 6))
    labels[rng.random(labels.shape) < 0.3] = IGNORE
    logits = torch.from_numpy(rng.normal(size=(num, 6, 7)).astype(np.float32))
    collected = BatchLosses(Named(reduction))
    for part in np.split(np.arange(num), np.cumsum(sizes)[:-1]):
        collected.add(torch.from_numpy(skill[part]), torch.from_numpy(labels[part]), logits=logits[part])
    nats = -torch.log_softmax(logits.double(), 2).numpy()
    learned = labels[:, 1:] != IGNORE
    each = np.take_along_axis(nats[:, :-1], np.where(learned, labels[:, 1:], 0)[..., None], 2)[..., 0] * learned
    if not learned.any():
        with pytest.raises(ObservationError, match="no training batch since the last report has a predicted token"):
            collected.take()
        return
    losses = collected.take()
    counted = learned.any(1)
    assert set(losses) == {SKILLS[number] for number in skill[counted]}
    assert losses.measured_on == "training" and losses.kind == LossKind(reduction=reduction)
    for name, loss in losses.items():
        own = counted & (skill == SKILLS.index(name))
        mean, error = reduced(each.sum(1)[own], learned.sum(1)[own].astype(float), reduction)
        # The losses of tokens are float32, with a rounding error of 2e-7 at 2 nats. A standard error is a difference of losses.
        assert (loss.mean, loss.standard_error) == pytest.approx((mean, error), rel=1e-5, abs=1e-6)
        assert (loss.num_samples, loss.num_tokens) == (own.sum(), learned[own].sum())


def test_packed_blocks_count_each_part_of_a_sample_by_itself() -> None:
    skill = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 2, 2, -1, -1]])
    segments = torch.tensor([[0, 0, 1, 2, 2, 2], [2, 2, 3, 3, 4, 4]])
    nats = torch.arange(12.0).reshape(2, 6)
    labels = torch.ones(2, 6, dtype=torch.long)
    labels[0, 3] = IGNORE
    collected = BatchLosses(Named())
    collected.add(skill, labels, token_losses=nats, segments=segments)
    losses = collected.take()
    assert {name: (loss.num_samples, loss.num_tokens) for name, loss in losses.items()} == {
        "add": (2, 3),
        "carry": (2, 4),
        "negate": (1, 2),
    }
    assert losses["add"].mean == (0.5 + 2.0) / 2 and losses["carry"].mean == (4.5 + 6.5) / 2
    collected.add(skill, labels, token_losses=nats)
    assert collected.take()["add"].num_samples == 1  # without segments the two samples of one skill are one


@pytest.mark.parametrize("reduction", ["per_sample", "per_token"])
def test_a_training_batch_has_the_loss_that_an_evaluation_of_its_texts_measures(reduction: Reduction) -> None:
    model, tokenizer = tiny().eval(), byte_tokenizer()
    texts = ["one", "a longer text", "Output: 7", "é 𝄞"]
    batch = causal_lm_collator(tokenizer, max_tokens=32)([{"text": text} for text in texts])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    by_batch = losses_from_batch(Named(reduction), ["add"] * 4, batch["labels"], logits=logits)["add"]
    nats, tokens = causal_lm_loss(model, tokenizer, max_tokens=32)(texts)
    assert (by_batch.mean, by_batch.standard_error) == pytest.approx(
        reduced(nats.double().numpy(), tokens.double().numpy(), reduction), rel=1e-5
    )


@pytest.mark.parametrize("how", [{"answer_after": "= "}, {"prompt_field": "chars"}], ids=["mark", "field"])
def test_a_training_batch_with_masked_prompts_has_the_loss_of_a_masked_evaluation(how: dict[str, str]) -> None:
    model, tokenizer = tiny().eval(), byte_tokenizer()
    samples = [
        Sample(str(number), f"{'1 + ' * number}1 = {number + 1}.", {"chars": 4 * number + 4}) for number in range(5)
    ]
    held_out = losses_per_skill(
        causal_lm_loss(model, tokenizer, max_tokens=64), {"add": samples}, max_samples=5, batch_size=5, **how
    )["add"]
    items = [{"text": sample.text, "meta": sample.meta} for sample in samples]
    batch = causal_lm_collator(tokenizer, max_tokens=64, **how)(items)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    in_batch = losses_from_batch(Named(), ["add"] * 5, batch["labels"], logits=logits)["add"]
    assert (in_batch.num_samples, in_batch.num_tokens) == (held_out.num_samples, held_out.num_tokens) == (5, 10)
    # Evaluations sort texts by length, so the padding of a batch and the last bits may differ.
    assert in_batch.mean == pytest.approx(held_out.mean, rel=1e-5)


def test_logits_of_a_large_vocabulary_are_converted_in_parts_to_the_same_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, labels = torch.randn(5, 4, 11), torch.randint(0, 11, (5, 4))
    whole = token_nats(logits, labels)
    monkeypatch.setattr("skillshard.batch_losses.MOST_LOGITS", 50)
    assert torch.equal(token_nats(logits, labels), whole)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"logits": torch.zeros(2, 3, 4), "token_losses": torch.zeros(2, 3)}, "either logits or token_losses"),
        ({"logits": torch.zeros(2, 4, 4)}, r"logits of a batch has the shape \(2, 4\), and \(2, 3\) was expected"),
        ({"token_losses": torch.zeros(2, 3), "skill": ["add", "cary"]}, r"the skill 'cary' \(did you mean 'carry'\?\)"),
        ({"token_losses": torch.zeros(2, 3), "skill": ["add"]}, r"nats of a batch has the shape \(2,\), and \(1,\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_in_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    skill = arguments.pop("skill", ["add", "carry"])
    with pytest.raises(ObservationError, match=sentence):
        BatchLosses(Named()).add(skill, torch.ones(2, 3, dtype=torch.long), **arguments)


def test_run_and_observations_say_that_the_losses_are_training_losses(shards: ShardSet, tmp_path: Path) -> None:
    run = mixer(shards, tmp_path)
    assert run.measured_on == "training" and not run.initial_losses
    run.batch(0, 32)
    run.report(4, losses_of(*SKILLS))
    run.report(8, losses_of("add", loss=2.0))
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("observations/*.json"))]
    assert json.loads((tmp_path / "run.json").read_text())["measured_on"] == "training"
    assert [record["measured_on"] for record in records] == ["training", "training"]
    assert records[0]["num_samples"] == dict.fromkeys(SKILLS, 5)
    assert records[1]["losses"] == {"add": 2.0, "carry": 1.0, "negate": 1.0}
    assert records[1]["num_samples"] == {"add": 5, "carry": 0, "negate": 0}
    assert records[1]["standard_errors"] == {"add": 0.1, "carry": None, "negate": None}
    assert verify_ledger(DirectoryLedger(tmp_path)) == []


def test_a_resumed_run_fills_a_missing_skill_from_the_ledger_as_the_uninterrupted_run(
    shards: ShardSet, tmp_path: Path
) -> None:
    whole, first = mixer(shards, tmp_path / "whole"), mixer(shards, tmp_path / "resumed")
    for run in (whole, first):
        run.batch(0, 32)
        run.report(4, losses_of(*SKILLS, loss=3.0))
    state = first.state_dict(step=4)
    second = mixer(shards, tmp_path / "resumed")
    second.load_state_dict(state)
    for run in (whole, second):
        run.batch(32, 32)
        run.report(8, losses_of("carry"))
    assert whole.round(2).weights == second.round(2).weights
    newest = [open_records(DirectoryLedger(tmp_path / name)).observations.get(1) for name in ("whole", "resumed")]
    assert [record.losses for record in newest if record] == [{"add": 3.0, "carry": 1.0, "negate": 3.0}] * 2


def test_losses_of_other_samples_than_the_run_says_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    held_out = Losses(losses_of(*SKILLS), kind=LossKind())
    with pytest.raises(
        ObservationError, match=r"are of holdout samples, and this run's losses are of training samples"
    ):
        mixer(shards, tmp_path / "a").report(4, held_out)
    with pytest.raises(ObservationError, match=r"give Mixer\(measured_on='training'\)"):
        mixer(shards, tmp_path / "b", measured_on="holdout").report(0, losses_of(*SKILLS))
    with pytest.raises(ObservationError, match=r"no batch had a sample of 'carry', 'negate' since the last report"):
        mixer(shards, tmp_path / "c").report(4, losses_of("add"))


@pytest.mark.parametrize(
    ("policy", "arguments", "sentence"),
    [
        (skill_it(IDENTITY, eta=1.0), {"initial_losses": True}, "no batch exists before the first step"),
        (
            skill_it(SkillGraph(SKILLS, ("divide",), [[1.0], [0.5], [0.5]]), eta=1.0),
            {},
            "reads the losses of 'divide', and no batch of the training has these skills",
        ),
        (
            chain(aioli(eta=0.1, period_rounds=20, sweeps=1, warmup_rounds=0, one_hot=0.6), floor(0.01)),
            {},
            "compares the losses at the two ends of a probe round",
        ),
        (stratified(), {"held_out": ["add"]}, "held_out names held-out samples"),
        (stratified(), {"measured_on": "batches"}, "give 'holdout' .default. or 'training'"),
    ],
)
def test_a_policy_that_cannot_use_training_losses_is_refused(
    shards: ShardSet, tmp_path: Path, policy: Any, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PolicyError, match=sentence):
        mixer(shards, tmp_path, policy, **arguments)


@pytest.mark.parametrize(
    "policy",
    [
        skill_it(IDENTITY, eta=1.0),
        odm(warmup_steps=0),
        ado(warmup_steps=0, refit_steps=4),
    ],
    ids=["skill_it", "odm", "ado"],
)
def test_a_policy_runs_without_any_held_out_sample(shards: ShardSet, tmp_path: Path, policy: Any) -> None:
    run = mixer(shards, tmp_path, policy)
    model, tokenizer = tiny(), byte_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    collected = BatchLosses(run)
    loader = DataLoader(MixedDataset(run), batch_size=8, collate_fn=causal_lm_collator(tokenizer, max_tokens=32))
    for step, batch in enumerate(loader, start=1):
        skill = batch.pop("skill")
        output = model(**batch)
        collected.add(skill, batch["labels"], logits=output.logits)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 4 == 0:
            run.report(step, collected.take())
        if step == 24:
            break
    assert run.num_observations == 6
    assert run.round(6).weights != run.round(0).weights


def test_two_ranks_report_the_losses_of_all_batches_as_one_rank_does(shards: ShardSet, tmp_path: Path) -> None:
    arguments = [str(shards.root), str(tmp_path)]
    assert finish(start_ranks("batch_losses_trainer", 2, arguments, tmp_path)) == [0, 0]
    by_two = json.loads((tmp_path / "losses-2.json").read_text())
    assert finish(start_ranks("batch_losses_trainer", 1, arguments, tmp_path)) == [0]
    by_one = json.loads((tmp_path / "losses-1.json").read_text())
    assert list(by_two) == list(by_one) == list(SKILLS)
    for name in SKILLS:
        assert by_two[name][2:] == by_one[name][2:]
        assert by_two[name] == pytest.approx(by_one[name], rel=1e-6)


@pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")
def test_a_model_that_is_sharded_over_two_ranks_trains_and_measures_as_a_whole_model(
    shards: ShardSet, tmp_path: Path
) -> None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        pytest.skip("PyTorch before 2.7 shards no model over CPUs")
    for world_size in (1, 2):
        ranks = start_ranks("fsdp_trainer", world_size, [str(shards.root), str(tmp_path)], tmp_path)
        assert finish(ranks) == [0] * world_size
    whole, *parts = (json.loads((tmp_path / f"fsdp-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    for part in parts:
        for kind, skills in whole.items():
            assert part[kind].keys() == skills.keys()
            for skill, numbers in skills.items():
                assert part[kind][skill] == pytest.approx(numbers, rel=1e-4)
