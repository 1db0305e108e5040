"""The proxy and its training: the visible positions, the effect of a seed, the measured losses, and the success of learning."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from skillshard.errors import ProxyError
from skillshard.loss import IGNORE
from skillshard.proxy.model import Proxy, ProxyShape, mix_earlier, visible
from skillshard.proxy.segments import fit_segments
from skillshard.proxy.train import (
    TokenBatch,
    adamw,
    evaluate,
    learning_rate,
    sample_scores,
    seeded_model,
    text_batch,
    train,
    train_step,
    usual_lr_warmup,
)
from skillshard.proxy.trial import load_state, save_state
from skillshard.synthetic.lego import lego_samples, skill_names

POSITIONS = 6


def shape(*, shift: int = 0, prefix: int = 0) -> ProxyShape:
    return ProxyShape(vocab=11, positions=POSITIONS, slots=2, layers=2, dim=16, heads=2, shift=shift, prefix=prefix)


def moved_positions(model: Proxy, changed: int) -> list[int]:
    """Return the positions whose logits change with the input of a position. Shifts get values that matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("shift"):
                parameter.fill_(1.0)
        tokens = torch.arange(POSITIONS * 2).reshape(1, POSITIONS, 2) % 11
        other = tokens.clone()
        other[0, changed, 0] = (other[0, changed, 0] + 5) % 11
        difference = (model(tokens) - model(other)).abs().amax(dim=(0, 2))
    return torch.nonzero(difference > 1e-6).flatten().tolist()


def tiny_run(*, seed: int) -> tuple[np.ndarray, list[int], Proxy]:
    model = seeded_model(shape(), seed=seed)
    generator = np.random.default_rng(0)
    steps: list[int] = []
    batches = (text_batch(generator.integers(0, 11, (4, POSITIONS))) for _ in range(100))
    doubled = (TokenBatch(b.tokens.repeat(2, axis=2), b.targets) for b in batches)
    return train(model, doubled, steps=6, lr=1e-2, eval_every=3, on_eval=steps.append), steps, model


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("changed", range(POSITIONS))
def test_with_causal_attention_a_position_moves_itself_and_later_ones_only(shift, changed):
    moved = moved_positions(seeded_model(shape(shift=shift), seed=0), changed)
    assert moved == list(range(changed, POSITIONS))


@pytest.mark.parametrize("changed", range(POSITIONS))
def test_with_prefix_attention_a_position_of_the_prefix_moves_earlier_ones_too(changed):
    moved = moved_positions(seeded_model(shape(prefix=4), seed=0), changed)
    assert moved == list(range(POSITIONS) if changed < 4 else range(changed, POSITIONS))


def test_a_prefix_of_the_whole_input_needs_no_mask():
    assert visible(3, 3) is None
    assert visible(3, 0).equal(torch.ones(3, 3).tril().bool())


def test_shifted_features_of_a_short_input_are_zero():
    assert mix_earlier(torch.ones(1, 1, 2), torch.ones(3, 2)).tolist() == [[[0.0, 0.0]]]


def test_slots_of_one_position_are_told_apart():
    model = seeded_model(shape(), seed=0)
    first, second = torch.tensor([[[3, 5]]]), torch.tensor([[[5, 3]]])
    assert not torch.allclose(model(first), model(second))


@pytest.mark.parametrize("ordered", [False, True])
def test_without_places_the_order_within_the_prefix_is_not_seen(ordered):
    model = seeded_model(
        ProxyShape(vocab=11, positions=4, layers=2, dim=16, heads=2, prefix=4, ordered=ordered), seed=0
    )
    tokens = torch.tensor([[[3], [5], [7], [2]], [[7], [3], [5], [2]]])
    first, second = model(tokens)[:, -1]
    assert torch.allclose(first, second, atol=1e-5) is not ordered


def test_keys_start_as_the_queries():
    for block in seeded_model(shape(), seed=0).blocks:
        query, key, value = block.qkv.weight.chunk(3)
        assert query.equal(key) and not query.equal(value)


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    state, same, other = (seeded_model(shape(shift=1), seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert not torch.equal(state["head.weight"], other["head.weight"])


def test_equal_runs_give_equal_losses_and_weights():
    (losses, _, model), (same, _, twin) = tiny_run(seed=3), tiny_run(seed=3)
    assert losses.tolist() == same.tolist()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_evaluations_come_after_their_step_and_before_the_next_batch():
    events: list[str] = []

    def batches():
        for number in range(1, 100):
            events.append(f"batch {number}")
            yield text_batch(np.ones((2, 3), dtype=np.int64))

    model = seeded_model(ProxyShape(vocab=3, positions=2, layers=1, dim=4, heads=1), seed=0)
    train(model, batches(), steps=4, lr=1e-3, eval_every=2, on_eval=lambda step: events.append(f"eval {step}"))
    assert events == ["batch 1", "batch 2", "eval 2", "batch 3", "batch 4", "eval 4"]


def test_a_tiny_run_on_ordered_lego_learns_both_skills():
    samples = list(lego_samples(k=2, num_samples=6000, seed=0, order="chain", proportions="uniform"))
    texts = [sample["text"] for sample in samples]
    reading = fit_segments(texts, separators=",.:", answer_after="= ")
    data = reading.encode(texts)
    skills = np.array([sample["meta"]["skill"] for sample in samples])
    test_rows = np.arange(len(data)) >= 5600
    holdout = {name: data[np.flatnonzero(test_rows & (skills == name))] for name in skill_names(2)}
    shape = ProxyShape(
        vocab=reading.vocab,
        positions=reading.positions,
        slots=reading.slots,
        layers=2,
        dim=32,
        heads=2,
        prefix=reading.positions,
    )
    model = seeded_model(shape, seed=0)
    before = evaluate(model, holdout)
    train(model, (data[start : start + 32] for start in range(0, 5600, 32)), steps=175, lr=3e-3)
    after = evaluate(model, holdout)
    assert all(evaluation.loss > 1 for evaluation in before.values())
    assert all(evaluation.loss < 0.9 * math.log(2) for evaluation in after.values()), after
    assert all(evaluation.accuracy > 0.6 for evaluation in after.values())


def test_losses_are_those_of_a_softmax_and_count_each_sample_the_same():
    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor([0.0, 1.0, 3.0]))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(*tokens.shape[:2], 3)

    batch = TokenBatch(np.zeros((2, 3, 1), dtype=np.int64), np.array([[2, IGNORE, 1], [IGNORE, IGNORE, 2]]))
    log_sum = math.log(1 + math.e + math.e**3)
    scores = sample_scores(Constant(), batch, max_batch=1)
    assert scores.losses == pytest.approx([log_sum - 2, log_sum - 3], rel=1e-5)
    assert (scores.hits / scores.tokens).tolist() == [0.5, 1.0]
    measured = evaluate(Constant(), {"a": batch, "b": batch[1:]})
    assert list(measured) == ["a", "b"]
    assert measured["a"].loss == pytest.approx(log_sum - 2.5, rel=1e-5)
    assert (measured["a"].accuracy, measured["b"].accuracy) == (0.75, 1.0)
    per_token = evaluate(Constant(), {"a": batch}, reduction="per_token")["a"].loss
    assert per_token == pytest.approx((2 * (log_sum - 2) + log_sum - 3) / 3, rel=1e-5)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_one_step_before_zero():
    rates = [learning_rate(step, steps=100, lr=2.0, warmup=10) for step in range(1, 101)]
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[0] == pytest.approx(0.2) and rates[-1] == pytest.approx(2.0 / 90)
    assert min(rates) > 0
    assert learning_rate(1, steps=10, lr=1.0, warmup=0) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 20, 60, 166, 190, 3000])
def test_a_training_of_any_length_reaches_its_learning_rate(steps: int) -> None:
    warmup = usual_lr_warmup(steps)
    falling, level = (
        [learning_rate(step, steps=length, lr=1e-3, warmup=warmup) for step in range(1, steps + 1)]
        for length in (steps, math.inf)
    )
    assert max(falling) == max(level) == pytest.approx(1e-3)
    assert warmup == 50 if steps > 166 else warmup <= 0.3 * steps


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"heads": 3}, "heads=3 does not divide dim=64: give a divisor of 64."),
        ({"layers": 0}, "layers=0: a proxy needs layers of at least 1."),
        ({"prefix": 9}, "prefix=9: a proxy needs prefix of at least 0 and at most 8 (positions)."),
        ({"shift": -1}, "shift=-1: a proxy needs shift of at least 0 and at most 8 (positions)."),
    ],
)
def test_an_impossible_shape_is_refused(arguments, sentence):
    with pytest.raises(ProxyError, match=re.escape(sentence)):
        ProxyShape(**({"vocab": 5, "positions": 8} | arguments))


def test_an_input_that_does_not_fit_is_refused():
    model = seeded_model(shape(), seed=0)
    with pytest.raises(ProxyError, match=re.escape("input of 7 positions x 2 slots: this proxy reads at most 6")):
        model(torch.zeros(1, 7, 2, dtype=torch.long))
    with pytest.raises(ProxyError, match=re.escape("input of 6 positions x 1 slots: this proxy reads at most 6")):
        model(torch.zeros(1, 6, 1, dtype=torch.long))


def test_training_stops_with_a_sentence():
    model = seeded_model(ProxyShape(vocab=3, positions=2, layers=1, dim=4, heads=1), seed=0)
    batch = text_batch(np.ones((2, 3), dtype=np.int64))
    with pytest.raises(ProxyError, match="the batches ended after step 2: 3 steps need 3 batches"):
        train(model, [batch] * 2, steps=3, lr=1e-3)
    with pytest.raises(ProxyError, match="give both"):
        train(model, [batch], steps=1, lr=1e-3, eval_every=1)
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(ProxyError, match=re.escape("the training loss at step 1 is nan: the trial diverged. Lower lr")):
        train(model, [batch], steps=1, lr=1e-3)


def test_a_loss_that_is_not_defined_is_refused():
    model = seeded_model(ProxyShape(vocab=3, positions=2, layers=1, dim=4, heads=1), seed=0)
    batch = text_batch(np.array([[1, 1, 1], [1, 0, 0]]), pad=0)
    with pytest.raises(
        ProxyError, match=re.escape("sample 1 of 2 has no target, so its loss is not defined. Drop the sample.")
    ):
        evaluate(model, {"a": batch})
    with pytest.raises(ProxyError, match="skill 'a' has no held-out samples"):
        evaluate(model, {"a": batch[:0]})


def test_a_kept_state_goes_on_as_if_never_kept_and_lies_where_the_model_does(tmp_path: Path) -> None:
    batch = text_batch(np.random.default_rng(0).integers(0, 11, (4, POSITIONS)))
    flat = ProxyShape(vocab=11, positions=POSITIONS, layers=1, dim=8, heads=2)
    model = seeded_model(flat, seed=0)
    optimizer = adamw(model)
    train(model, [batch] * 3, steps=3, lr=1e-2, optimizer=optimizer)
    save_state(model, optimizer, tmp_path / "state.npz")
    again = seeded_model(flat, seed=1)
    its_own = adamw(again)
    load_state(again, its_own, tmp_path / "state.npz")
    for trained, with_optimizer in ((model, optimizer), (again, its_own)):
        train_step(trained, with_optimizer, batch, lr=1e-2)
    assert all(
        torch.equal(parameter, restored)
        for parameter, restored in zip(model.parameters(), again.parameters(), strict=True)
    )
    # On a device, fused AdamW refuses a counter on another device. Every machine has the device "meta".
    elsewhere = seeded_model(flat, seed=0, device="meta")
    moved = adamw(elsewhere)
    load_state(elsewhere, moved, tmp_path / "state.npz")
    assert {value.device.type for state in moved.state.values() for value in state.values()} == {"meta"}
