"""Texts, conversations and blocks of tokens for a causal language model of Hugging Face: the batches to train on, and the loss to report."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skillshard.answers import AnswerRule
from skillshard.batch_losses import token_nats
from skillshard.corpus import Sample
from skillshard.corpus.chat import Chat, ChatTemplate
from skillshard.corpus.template import Span
from skillshard.errors import ObservationError, PolicyError, TokensError
from skillshard.evaluation import ModelLoss
from skillshard.loader_items import Blocks, Items, block_collator
from skillshard.loss import IGNORE, LossKind
from skillshard.proxy.pretrained import ReadText, read_tokens, refuse_slow

SKILL, SEGMENT = "skill", "skill_segment"
"""Columns of a batch of a run with training losses."""


def causal_lm_collator(
    tokenizer: Any,
    *,
    max_tokens: int,
    fixed_length: bool = False,
    answer_after: str | None = None,
    prompt_field: str | None = None,
    messages: str | None = None,
) -> Callable[[Sequence[Any]], dict[str, Tensor]]:
    """Make a `data_collator` for next-token training. Texts are cut at `max_tokens` and padded on the right, and padding is not learned.

    Args:
        tokenizer: Hugging Face tokenizer. A tokenizer without a padding token pads with the end token, since padding is masked. None: the corpus
            was tokenized already.
        max_tokens: Number of tokens read of a text: the first tokens, or, where prompts are masked, the last tokens up to
            the end of the last answer.
        fixed_length: Pad to `max_tokens`, not to the longest text of the batch. accelerate's `dispatch_batches=True` needs
            batches of equal length, because accelerate joins the batches of all processes.
        answer_after: Text before the answer. Only the tokens after its last occurrence are learned, as with
            'skillshard graph learn --answer-after'. None: the whole text is learned.
        prompt_field: Metadata field with the number of characters of the prompt, which is not learned, or with the spans of the
            answers, such as "answer_spans" (see `LossKind`). For items that are not samples of a mixer, the field is read from item["meta"].

        messages: Metadata field with the messages of a conversation. The tokenizer's chat template renders the conversation in place of the
            text, and the assistant's turns are learned, as with 'skillshard tokens --chat-template tokenizer'.

    Raises:
        ProxyError: Prompts are masked, and the tokenizer does not give the positions of its tokens in the text.
        ObservationError: `answer_after` and `prompt_field` are both given, or a text of a batch has no answer, or a conversation cannot be rendered.
        TokensError: `messages` is given, and the tokenizer has no chat template, or `answer_after` or `prompt_field` is given too.
    """
    kind = LossKind(answer_after=answer_after, prompt_field=prompt_field)
    if messages is not None and kind.masks:
        raise TokensError("the chat template marks the answers of `messages`: leave answer_after and prompt_field out.")
    rule = AnswerRule(kind, None if messages is None else Chat(ChatTemplate.of(tokenizer), messages))
    if rule.masks:
        refuse_slow(tokenizer)
    return _Collator(tokenizer, max_tokens, fixed_length, rule)


class _Collator:
    """The collator as a class. A nested function could not be pickled for workers that are started by `spawn`."""

    def __init__(self, tokenizer: Any, max_tokens: int, fixed_length: bool, rule: AnswerRule) -> None:
        self.tokenizer, self.max_tokens, self.fixed_length = tokenizer, max_tokens, fixed_length
        self.rule = rule

    def __call__(self, items: Sequence[Any]) -> dict[str, Tensor]:
        if isinstance(items, Blocks):
            raise PolicyError(
                "causal_lm_collator takes texts, and these are blocks of tokens: give data_collator=causal_lm_blocks."
            )
        answers: list[list[Span]] | None = None
        if self.rule.masks:
            pairs = [self._read(item, meta) for item, meta in zip(items, self._metas(items), strict=True)]
            texts, answers = [text for text, _ in pairs], [spans for _, spans in pairs]
        else:
            texts = [item["text"] for item in items]
        special = self.rule.chat is None
        read = read_tokens(self.tokenizer, texts, max_tokens=self.max_tokens, answers=answers, special_tokens=special)
        batch = _padded(self.tokenizer, read, self.max_tokens if self.fixed_length else None)
        learned = batch.mask == 1 if answers is None else batch.predicted
        labels = batch.ids.masked_fill(~learned, IGNORE)
        return {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": labels, **skills_of_batch(items)}

    def _read(self, item: Any, meta: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Return the text and the answers of an item. Raise ObservationError with the draw of the item if the item has no answer."""
        try:
            return self.rule.read(item.get("text", ""), meta)
        except ObservationError as error:
            # An item that is no sample of a mixer has no draw.
            raise ObservationError(f"draw {item['draw']:,}: {error}" if "draw" in item else str(error)) from error

    def _metas(self, items: Sequence[Any]) -> list[Mapping[str, Any]]:
        """Return the metadata of each item, or empty metadata if the rule needs none."""
        if not self.rule.needs_meta:
            return [{}] * len(items)
        return [*items.metas] if isinstance(items, Items) else [item.get("meta") or {} for item in items]


def causal_lm_blocks(blocks: Blocks | Items) -> dict[str, Tensor]:
    """Make a batch for next-token training on packed tokens. Every token is learned, except prompts that the token set masks.

    To the model, a block is one text. The model attends to the earlier samples of the block and learns the first token of a sample from
    the separator, as GPT-3 was trained (Brown et al. 2020, arXiv:2005.14165, appendix B). If attention or loss has to end with the
    sample, give `data_collator=block_collator("input_ids", "labels", "position_ids")`, or your own function: `blocks.batch` has all columns.

    Raises:
        PolicyError: The items are samples, and not blocks.

    Example:
        Trainer(..., train_dataset=WholeStream(packed), data_collator=causal_lm_blocks)
    """
    if isinstance(blocks, Items):
        raise PolicyError(
            "causal_lm_blocks takes blocks of tokens, and these are texts: give train_dataset=WholeStream(packed), or "
            "data_collator=causal_lm_collator(tokenizer, max_tokens=...)."
        )
    batch = block_collator("input_ids", "labels")(blocks)
    return {"input_ids": batch["input_ids"], "labels": batch["labels"], **skills_of_batch(blocks)}


def rendered_chats(
    holdout: Mapping[str, Iterable[Sample]], tokenizer: Any, *, messages: str
) -> dict[str, Iterable[Sample]]:
    """Render held-out conversations by a tokenizer's chat template, for `losses_per_skill(..., prompt_field="answer_spans")`.

    The losses are then measured on the same tokens as `causal_lm_collator(messages=...)` and 'skillshard tokens --chat-template' learn.

    Args:
        holdout: Held-out samples of each skill: `shards.holdout`.
        tokenizer: Hugging Face tokenizer with a chat template.
        messages: Metadata field with the messages of a conversation.

    Returns:
        Samples of each skill. A sample is rendered when it is read. Its text is the conversation, with the assistant's turns in "answer_spans".

    Raises:
        TokensError: The tokenizer has no chat template.
        ObservationError: A conversation cannot be rendered, while samples are read.

    Example:
        loss = causal_lm_loss(model, tokenizer, max_tokens=1024, special_tokens=False)
        chats = rendered_chats(shards.holdout, tokenizer, messages="messages")
        losses = losses_per_skill(loss, chats, max_samples=64, batch_size=8, prompt_field="answer_spans")
    """
    chat = Chat(ChatTemplate.of(tokenizer), messages)
    return {skill: _RenderedSamples(chat, samples) for skill, samples in holdout.items()}


class _RenderedSamples:
    """Samples that are rendered in each loop anew. A generator would end after the first evaluation."""

    def __init__(self, chat: Chat, samples: Iterable[Sample]) -> None:
        self._chat, self._samples = chat, samples

    def __iter__(self) -> Iterator[Sample]:
        return map(self._chat.sample, self._samples)


def causal_lm_loss(model: nn.Module, tokenizer: Any, *, max_tokens: int, special_tokens: bool = True) -> ModelLoss:
    """Make the function that `losses_per_skill` calls to measure the loss of a causal language model.

    Args:
        model: Model that takes `input_ids` and `attention_mask` and gives `logits`. The loss is measured in `eval()` mode,
            without gradients.
        tokenizer: Hugging Face tokenizer, which needs no padding token. None: the corpus was tokenized already.
        max_tokens: Number of tokens read of a text, as in `causal_lm_collator`.
        special_tokens: Whether the tokenizer adds its special tokens to texts with answers. False for `rendered_chats`, whose texts hold the special tokens already.
    """
    device = next(model.parameters()).device  # of the first parameter: a sharded model takes its input there

    def loss(texts: list[str], answers: list[list[Span]] | None = None) -> tuple[Tensor, Tensor]:
        read = read_tokens(tokenizer, texts, max_tokens=max_tokens, answers=answers, special_tokens=special_tokens)
        batch = _padded(tokenizer, read, None)
        ids, mask, predicted = (tensor.to(device) for tensor in (batch.ids, batch.mask, batch.predicted))
        # The mode is restored afterwards, because the caller may be in the middle of a training.
        training = model.training
        model.eval()
        # Not inference_mode: a model that is sharded by `fully_shard` keeps buffers of its first forward pass, and the next training step writes into the
        # buffers, which PyTorch refuses for tensors of inference_mode.
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
        model.train(training)
        return _nats(logits, ids, predicted)

    return loss


class _Padded(NamedTuple):
    """Texts of one batch, padded on the right, where a causal model does not see the padding.

    Attributes:
        ids: Ids of the tokens.
        mask: 1 for a token of a text, 0 for padding.
        predicted: Whether the token is predicted from the tokens before. Padding, prompt and first token are not predicted.
    """

    ids: Int[Tensor, "sample token"]
    mask: Int[Tensor, "sample token"]
    predicted: Bool[Tensor, "sample token"]


def _padded(tokenizer: Any, texts: Sequence[ReadText], length: int | None) -> _Padded:
    """Pad the texts of one batch to `length` tokens. None: to the longest text, and to at least one token."""
    # At least one token, since a model takes no tensor of width 0.
    width = max(1, *(len(text.ids) for text in texts)) if length is None else length
    ids = np.full((len(texts), width), _padding(tokenizer), np.int64)
    mask, predicted = np.zeros((len(texts), width), np.int64), np.zeros((len(texts), width), bool)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)], mask[row, : len(text.ids)] = text.ids, 1
        predicted[row, : len(text.ids)] = text.predicted
    return _Padded(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(predicted))


def _padding(tokenizer: Any) -> int:
    """Return an id for padding. Padding is masked, so any id of the vocabulary will do: GPT-2, for example, has no padding token."""
    if tokenizer is None:
        return 0
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in candidates if token is not None)


def _nats(
    logits: Float[Tensor, "sample token vocab"],
    ids: Int[Tensor, "sample token"],
    predicted: Bool[Tensor, "sample token"],
) -> tuple[Float[Tensor, " sample"], Int[Tensor, " sample"]]:
    """Return the summed loss and the number of predicted tokens of each text."""
    return token_nats(logits, ids.masked_fill(~predicted, IGNORE)).sum(1), predicted[:, 1:].sum(1)


def skills_of_batch(items: Sequence[Any]) -> dict[str, Tensor]:
    """Return the skills of a batch if the run reads training losses, and no column otherwise."""
    if isinstance(items, Items) and items.mixer.measured_on == "training":
        return {SKILL: torch.from_numpy(items.batch.skill_number.astype(np.int64))}
    if isinstance(items, Blocks) and items.measured_on == "training":
        columns = {SKILL: items.batch.skill, SEGMENT: items.batch.segment_ids}
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in columns.items()}
    return {}
