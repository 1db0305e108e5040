"""Any causal language model of Hugging Face as the proxy: a directory with a model and its fast tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skillshard.errors import ProxyError
from skillshard.extras import needed
from skillshard.loss import IGNORE, no_answer, predicted_tokens
from skillshard.proxy.reading import prompts_of
from skillshard.proxy.train import TokenBatch


class Pretrained(nn.Module):
    """A causal language model with the inputs and outputs of `Proxy`; always in `eval()`, so that nothing is random.

    Texts are padded on the right, where a causal model does not look.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> "Pretrained":
        """Dropout stays off: a resumed training could not repeat its draws."""
        return super().train(False)

    def forward(self, tokens: Int[Tensor, "batch positions slots"]) -> Float[Tensor, "batch positions vocab"]:
        logits: Tensor = self.model(input_ids=tokens[:, :, 0]).logits
        return logits


class ReadText(NamedTuple):
    """One text as a causal model reads it.

    Attributes:
        ids: its tokens.
        predicted: which of them are predicted, from the tokens before them; never the first.
    """

    ids: Int[np.ndarray, " token"]
    predicted: Bool[np.ndarray, " token"]


def read_tokens(
    tokenizer: Any, texts: Sequence[str], *, max_tokens: int, prompts: Sequence[int] | None
) -> list[ReadText]:
    """Cut texts into tokens and mask their prompts: the one way for graphs, loss taggers, collators and reported losses.

    Args:
        tokenizer: a Hugging Face tokenizer; a fast one where there are prompts, since it says where tokens stand in the text.
        texts: to be read.
        max_tokens: number of tokens read of a text: the first ones, or the last ones where there are prompts, because an answer
            stands at the end.
        prompts: number of characters at the beginning of each text that are not predicted; None: whole texts are predicted.

    Raises:
        ProxyError: there are prompts, and the tokenizer is not a fast one.
    """
    if prompts is None:
        return [_read(ids[:max_tokens], np.arange(len(ids[:max_tokens])), 0) for ids in _ids(tokenizer, texts)]
    refuse_slow(tokenizer)
    encoded = tokenizer(list(texts), return_offsets_mapping=True)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], prompts, strict=True)
    return [_read(ids[-max_tokens:], [end for _, end in ends[-max_tokens:]], prompt) for ids, ends, prompt in spans]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts))["input_ids"]
    return ids


def _read(ids: Sequence[int], ends: Any, prompt: int) -> ReadText:
    return ReadText(np.array(ids, np.int64), predicted_tokens(np.array(ends, np.int64), prompt))


def refuse_slow(tokenizer: Any) -> None:
    """ProxyError unless the tokenizer says where its tokens stand in a text."""
    if not tokenizer.is_fast:
        raise ProxyError(
            f"the tokenizer {type(tokenizer).__name__} is not a fast one, which alone says where tokens stand in the text, so prompts cannot "
            "be masked. Open it with AutoTokenizer.from_pretrained(..., use_fast=True)."
        )


@dataclass(frozen=True)
class PretrainedTokens:
    """The tokens of a model's own tokenizer, each predicted from those before it.

    Args:
        place: directory of the tokenizer.
        window: tokens read, at least 2: of a longer text the first ones, or the last ones where there is an answer.
        answer_after: only what stands behind the last of these is predicted; None: everything.
    """

    place: str
    window: int
    answer_after: str | None = None

    def encode(self, texts: Sequence[str], prompts: Sequence[int] | None = None) -> TokenBatch:
        tokens = np.zeros((len(texts), self.window - 1, 1), dtype=np.int64)
        targets = np.full((len(texts), self.window - 1), IGNORE, dtype=np.int64)
        prompts = prompts_of(texts, prompts, self.answer_after)
        for row, read in enumerate(read_tokens(self._tokenizer, texts, max_tokens=self.window, prompts=prompts)):
            num = max(len(read.ids) - 1, 0)
            tokens[row, :num, 0] = read.ids[:num]
            targets[row, :num] = np.where(read.predicted, read.ids, IGNORE)[1:]
        return TokenBatch(tokens, targets)

    def refusal(self, text: str) -> str | None:
        if self.answer_after is not None:
            return no_answer(text, self.answer_after)
        num = len(self._tokenizer(text)["input_ids"])
        return None if num > 1 else "a text of a single token has nothing to predict"

    @cached_property
    def _tokenizer(self) -> Any:
        return _open(self.place, "AutoTokenizer", "a fast tokenizer")


def open_pretrained(place: str) -> Pretrained:
    """The model of a directory, in float32; nothing is downloaded.

    Raises:
        ProxyError: there is no such directory, or no causal language model in it.
    """
    return Pretrained(_open(place, "AutoModelForCausalLM", "a causal language model").float())


def pretrained_tokens(place: str, *, window: int, answer_after: str | None) -> PretrainedTokens:
    """The reading of a directory's tokenizer, its window cut to what the model can read."""
    tokens = PretrainedTokens(place, window, answer_after)
    if not tokens._tokenizer.is_fast:
        raise ProxyError(
            f"`proxy={place!r}`: its tokenizer is not a fast one, which alone tells where tokens stand in the text."
        )
    limit = getattr(_open(place, "AutoConfig", "a model's config.json"), "max_position_embeddings", window)
    return PretrainedTokens(place, min(window, limit), answer_after)


def check_place(place: str) -> None:
    """ProxyError unless there is a directory, ExtraError where transformers is not installed."""
    if not Path(place).is_dir():
        raise ProxyError(
            f"`proxy={place!r}`: neither 'tiny' nor 'small' nor a directory. Give one of these, or the directory of a Hugging Face "
            "causal language model and its tokenizer (save_pretrained writes one)."
        )
    needed("hf", what=f"`proxy={place!r}`")


def _open(place: str, kind: str, what: str) -> Any:
    """One thing of a directory, by transformers' class of that name; ProxyError if it is not there."""
    check_place(place)
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(place, local_files_only=True)
    except (
        Exception
    ) as error:  # a damaged or foreign directory makes transformers raise whatever it happens to run into
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ProxyError(
            f"`proxy={place!r}`: {what} could not be opened there: {why.rstrip('.')}. Save the model and "
            "its tokenizer there with save_pretrained."
        ) from error
