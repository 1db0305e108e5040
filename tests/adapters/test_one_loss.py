"""The losses of a graph and the losses that a trainer reports are the same numbers, for each mean and each mask."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from skillshard.corpus import Sample
from skillshard.errors import ObservationError, ProxyError
from skillshard.evaluation import losses_per_skill
from skillshard.hf import causal_lm_collator, causal_lm_loss
from skillshard.loss import LossKind, Reduction, answer_spans
from skillshard.proxy.pretrained import open_pretrained, pretrained_tokens
from skillshard.proxy.reading import Bytes
from skillshard.proxy.train import evaluate
from tests.adapters.hf_trainer import byte_tokenizer, tiny

MARK, WINDOW = "Output: ", 48
PROMPTS = {"copy": "say it again", "number": "1 2 3 4 5 6 7 8 9", "verb": "x"}
ANSWERS = {"copy": "a", "number": "999999999999", "verb": "Zzyzx Qqq"}
HOLDOUT = {
    skill: [
        Sample(
            f"{skill}-{number}",
            (text := f"{prompt * (number + 1)} {MARK}") + ANSWERS[skill] * (number % 3 + 1),
            {"prompt": {"chars": len(text)}},
        )
        for number in range(6)
    ]
    for skill, prompt in PROMPTS.items()
}


@pytest.fixture(scope="module")
def taught() -> GPT2LMHeadModel:
    """Train a toy model on the prompts and not on the answers, so that masking turns the order of the skills."""
    model, tokenizer = tiny(), byte_tokenizer()
    collate = causal_lm_collator(tokenizer, max_tokens=WINDOW)
    texts = [{"text": prompt * number} for prompt in (PROMPTS["number"], PROMPTS["copy"]) for number in (1, 2, 3)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**collate(texts)).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def place(taught: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proxy")
    taught.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def of_graph(place: Path, *, reduction: Reduction, answer_after: str | None) -> dict[str, float]:
    """Return the losses as `graph --proxy DIR` measures them."""
    reading = pretrained_tokens(str(place), window=WINDOW, answer_after=answer_after)
    encoded = {skill: reading.encode([sample.text for sample in samples]) for skill, samples in HOLDOUT.items()}
    return {
        skill: loss.loss for skill, loss in evaluate(open_pretrained(str(place)), encoded, reduction=reduction).items()
    }


def of_trainer(model: GPT2LMHeadModel, **kind: Any) -> dict[str, float]:
    """Return the losses as a trainer reports them."""
    losses = losses_per_skill(
        causal_lm_loss(model, byte_tokenizer(), max_tokens=WINDOW), HOLDOUT, max_samples=6, batch_size=4, **kind
    )
    assert losses.kind == LossKind(**kind)
    return {skill: loss.mean for skill, loss in losses.items()}


@pytest.mark.parametrize("answer_after", [None, MARK])
@pytest.mark.parametrize("reduction", ["per_sample", "per_token"])
def test_a_trainer_reports_the_losses_that_the_graph_was_learned_from(
    taught: GPT2LMHeadModel, place: Path, reduction: Reduction, answer_after: str | None
) -> None:
    live = of_trainer(taught, reduction=reduction, answer_after=answer_after)
    assert live == pytest.approx(of_graph(place, reduction=reduction, answer_after=answer_after), rel=1e-5)


def test_masking_turns_the_order_of_the_skills_in_graph_and_trainer_alike(taught: GPT2LMHeadModel, place: Path) -> None:
    def order(losses: dict[str, float]) -> list[str]:
        return sorted(losses, key=losses.__getitem__)

    whole, answers = of_trainer(taught), of_trainer(taught, answer_after=MARK)
    assert order(whole) != order(answers)
    assert order(answers) == order(of_graph(place, reduction="per_sample", answer_after=MARK))
    assert order(whole) == order(of_graph(place, reduction="per_sample", answer_after=None))


def test_a_metadata_field_and_a_mark_that_end_the_prompt_at_the_same_place_give_the_same_loss(
    taught: GPT2LMHeadModel,
) -> None:
    assert of_trainer(taught, prompt_field="prompt.chars") == of_trainer(taught, answer_after=MARK)


def test_a_reading_masks_by_the_length_of_the_prompt_as_by_its_mark(place: Path) -> None:
    texts = [sample.text for samples in HOLDOUT.values() for sample in samples]
    answers = [answer_spans(text, LossKind(answer_after=MARK)) for text in texts]
    for by_mark, by_length in (
        (Bytes(20, MARK), Bytes(20)),
        (
            pretrained_tokens(str(place), window=20, answer_after=MARK),
            pretrained_tokens(str(place), window=20, answer_after=None),
        ),
    ):
        marked, measured = by_mark.encode(texts), by_length.encode(texts, answers)
        assert np.array_equal(marked.tokens, measured.tokens) and np.array_equal(marked.targets, measured.targets)


def test_a_collator_learns_the_tokens_that_the_loss_measures() -> None:
    texts = [sample.text for samples in HOLDOUT.values() for sample in samples]
    batch = causal_lm_collator(byte_tokenizer(), max_tokens=WINDOW, answer_after=MARK)(
        [{"text": text} for text in texts]
    )
    for text, ids, labels in zip(texts, batch["input_ids"], batch["labels"], strict=True):
        ((start, stop),) = answer_spans(text, LossKind(answer_after=MARK))
        answer = text[start:stop]
        assert byte_tokenizer().decode(ids[labels != -100]) == answer
        assert torch.equal(ids[labels != -100], labels[labels != -100])


def without_padding() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)


def test_a_tokenizer_without_a_padding_token_gives_the_same_losses_and_labels(taught: GPT2LMHeadModel) -> None:
    bare = without_padding()
    assert bare.pad_token_id is None
    losses = [
        losses_per_skill(causal_lm_loss(taught, tokenizer, max_tokens=WINDOW), HOLDOUT, max_samples=6, batch_size=5)
        for tokenizer in (bare, byte_tokenizer())
    ]
    assert {skill: loss.mean for skill, loss in losses[0].items()} == {
        skill: loss.mean for skill, loss in losses[1].items()
    }
    texts = [{"text": "one"}, {"text": "a longer one"}]
    batches = [causal_lm_collator(tokenizer, max_tokens=20)(texts) for tokenizer in (bare, byte_tokenizer())]
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])
    assert torch.equal(batches[0]["attention_mask"], batches[1]["attention_mask"])


def test_a_text_without_an_answer_is_refused_wherever_it_is_read(taught: GPT2LMHeadModel) -> None:
    with pytest.raises(ObservationError, match=r"there is nothing behind 'Output: ', where the answer should be"):
        causal_lm_collator(byte_tokenizer(), max_tokens=20, answer_after=MARK)([{"text": "no mark"}])
    holdout = {"add": [Sample("7", "no mark", {"prompt": "many"})]}
    model_loss = causal_lm_loss(taught, byte_tokenizer(), max_tokens=20)
    with pytest.raises(
        ObservationError, match=r"skill 'add', held-out sample '7': the text 'no mark': there is nothing"
    ):
        losses_per_skill(model_loss, holdout, max_samples=1, batch_size=1, answer_after=MARK)
    with pytest.raises(ObservationError, match=r"metadata field 'prompt' is 'many', expected the number of characters"):
        losses_per_skill(model_loss, holdout, max_samples=1, batch_size=1, prompt_field="prompt")
    with pytest.raises(ObservationError, match=r"prompts are masked, and the model's loss .* takes texts alone"):
        losses_per_skill(lambda texts: ([], []), holdout, max_samples=1, batch_size=1, answer_after=MARK)
    with pytest.raises(ObservationError, match=r"both say where the prompt ends: give one of the two"):
        losses_per_skill(model_loss, holdout, max_samples=1, batch_size=1, answer_after=MARK, prompt_field="prompt")


def test_a_slow_tokenizer_cannot_mask_prompts_and_says_so_when_the_collator_is_made() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ProxyError, match=r"the tokenizer Slow is not a fast tokenizer\. .* to mask prompts"):
        causal_lm_collator(Slow(), max_tokens=20, answer_after=MARK)


def test_the_two_means_differ_without_bound_and_are_told_apart() -> None:
    """One text has one hard token, the other text nine easy tokens."""
    holdout = {"add": [Sample("hard", "h", {}), Sample("easy", "e" * 9, {})]}

    def model_loss(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([2.0 if text == "h" else 0.9 for text in texts]), np.array([len(text) for text in texts])

    means = {
        word: losses_per_skill(model_loss, holdout, max_samples=2, batch_size=1, reduction=word)["add"].mean
        for word in ("per_sample", "per_token")
    }
    assert means == pytest.approx({"per_sample": 1.05, "per_token": 0.29})
