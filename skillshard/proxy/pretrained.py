"""Use a causal language model of Hugging Face as the proxy, from a directory with the model and its fast tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skillshard.corpus.template import Span
from skillshard.corpus.token_ids import ids_of_text, offsets_of_text
from skillshard.errors import ProxyError
from skillshard.extras import needed
from skillshard.loss import IGNORE, answer_tokens, no_answer, predicted_tokens
from skillshard.printable import shortened
from skillshard.proxy.reading import answers_of
from skillshard.proxy.train import TokenBatch

MOST_KEPT_TOKENS = 1 << 23
"""Number of tokens that a process keeps of the texts it has read, about 75 MB."""


class Pretrained(nn.Module):
    """A causal language model with the inputs and outputs of `Proxy`.

    The model is always in `eval()`, so that no dropout is drawn. Texts are padded on the right, where a causal model does not look.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> "Pretrained":
        """Stay in `eval()`."""
        # A resumed training could not repeat the random numbers of dropout.
        return super().train(False)

    def forward(self, tokens: Int[Tensor, "batch positions slots"]) -> Float[Tensor, "batch positions vocab"]:
        # Ordinary text has a single slot.
        logits: Tensor = self.model(input_ids=tokens[:, :, 0]).logits
        return logits


class ReadText(NamedTuple):
    """A text as a causal model reads it.

    Attributes:
        ids: Tokens of the text.
        predicted: Whether each token is predicted, from the tokens before it. The first token is never predicted.
    """

    ids: Int[np.ndarray, " token"]
    predicted: Bool[np.ndarray, " token"]


def read_tokens(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_tokens: int,
    answers: Sequence[Sequence[Span]] | None,
    special_tokens: bool = True,
) -> list[ReadText]:
    """Cut texts into tokens, and mask all but the answers.

    Graphs, loss taggers, collators and reported losses share the function, and the losses of all are comparable.

    Args:
        tokenizer: Hugging Face tokenizer. With answers, the tokenizer must be fast, because a fast tokenizer gives the positions of tokens. None:
            the corpus was tokenized already, and the texts are ids (`skillshard.ids_of_text`).
        texts: Texts to read.
        max_tokens: Number of tokens to read of a text. With answers these are the last tokens up to the end of the last answer.
            Without answers these are the first tokens.
        answers: Stretches of each text that are predicted (`skillshard.loss.answer_spans`). With None, whole texts are predicted.
        special_tokens: Whether the tokenizer adds its special tokens to texts with answers. The text of a chat template has them already.

    Raises:
        ProxyError: Answers are given, and the tokenizer is not fast.
        CorpusError: No tokenizer is given, and a text is no list of ids.
    """
    if answers is None:
        return [_whole(ids[:max_tokens]) for ids in _ids(tokenizer, texts)]
    refuse_slow(tokenizer)
    offsets: Sequence[Any]
    if tokenizer is None:
        all_ids, offsets = _ids(None, texts), [offsets_of_text(text) for text in texts]
    else:
        encoded = tokenizer(list(texts), return_offsets_mapping=True, add_special_tokens=special_tokens)
        all_ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    rows = zip(texts, all_ids, offsets, answers, strict=True)
    return [_masked(text, ids, places, spans, max_tokens) for text, ids, places, spans in rows]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if tokenizer is None:
        return [ids_of_text(text) for text in texts]
    ids: list[list[int]] = tokenizer(list(texts))["input_ids"]
    return ids


def _whole(ids: Sequence[int]) -> ReadText:
    predicted = np.ones(len(ids), dtype=bool)
    predicted[:1] = False
    return ReadText(np.array(ids, np.int64), predicted)


def _masked(text: str, ids: Sequence[int], offsets: Any, spans: Sequence[Span], max_tokens: int) -> ReadText:
    """Cut the tokens of a text down to the last `max_tokens` tokens up to the end of the last answer."""
    characters = np.array(offsets, np.int64).reshape(-1, 2)
    stop = len(ids)
    if spans[-1][1] < len(text):
        stop = int(np.flatnonzero(answer_tokens(characters, spans))[-1:].sum()) + 1
    start = max(0, stop - max_tokens)
    # Cut before the first token is masked: nothing within the window predicts its first token.
    return ReadText(np.array(ids[start:stop], np.int64), predicted_tokens(characters[start:stop], spans))


def refuse_slow(tokenizer: Any) -> None:
    """Check that a tokenizer gives the positions of the tokens in a text.

    Raises:
        ProxyError: The tokenizer is not fast.
    """
    if tokenizer is not None and not tokenizer.is_fast:
        raise ProxyError(
            f"the tokenizer {type(tokenizer).__name__} is not a fast tokenizer. Only a fast tokenizer gives the positions of tokens in the text, "
            "which are needed to mask prompts. Open the tokenizer with AutoTokenizer.from_pretrained(..., use_fast=True)."
        )


_kept: dict[tuple[bytes, bool, int, bytes, tuple[Span, ...] | None], ReadText] = {}
"""Texts as they were read last, by the digest of the tokenizer, whether special tokens are added, the window, the digest of the text, and the
answers. The trainings of a comparison read the same texts once for each policy and seed, and a tokenizer of long texts takes longer than the
step of a GPU. A text that is checked and then read is tokenized once."""


@dataclass(frozen=True)
class PretrainedTokens:
    """The reading by the tokenizer of a pretrained model. Each token is predicted from the tokens before it.

    Args:
        place: Directory of the tokenizer.
        window: Number of tokens to read of a text, at least 2. With answers these are the last tokens up to the end of the last
            answer, otherwise the first tokens.
        answer_after: Mark before the answer. Only the text behind the last mark is predicted. With None, the whole text is predicted.
        special_tokens: Whether the tokenizer adds its special tokens. The text of a chat template has them already.
    """

    place: str
    window: int
    answer_after: str | None = None
    special_tokens: bool = True

    def encode(self, texts: Sequence[str], answers: Sequence[Sequence[Span]] | None = None) -> TokenBatch:
        # Token 0 is as good as any for padding: padded positions have no target, and a causal model does not look ahead.
        tokens = np.zeros((len(texts), self.window - 1, 1), dtype=np.int64)
        targets = np.full((len(texts), self.window - 1), IGNORE, dtype=np.int64)
        answers = answers_of(texts, answers, self.answer_after)
        for row, read in enumerate(self._read(texts, answers)):
            num = max(len(read.ids) - 1, 0)
            tokens[row, :num, 0] = read.ids[:num]
            targets[row, :num] = np.where(read.predicted, read.ids, IGNORE)[1:]
        return TokenBatch(tokens, targets)

    def refusal(self, text: str) -> str | None:
        if self.answer_after is not None:
            return no_answer(text, self.answer_after)
        if self.special_tokens:
            num = len(self._read([text], None)[0].ids)
        else:
            num = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return None if num > 1 else "a text of a single token has nothing to predict"

    def _read(self, texts: Sequence[str], answers: Sequence[Sequence[Span]] | None) -> list[ReadText]:
        """Read the texts that were not read lately, and return all texts as they are read."""
        spans = [None] * len(texts) if answers is None else [tuple(own) for own in answers]
        digests = [xxhash.xxh3_128_digest(text.encode()) for text in texts]
        reading = (self._digest, self.special_tokens, self.window)
        keys = [(*reading, *key) for key in zip(digests, spans, strict=True)]
        tokens_of = {key: _kept[key] for key in keys if key in _kept}
        new = {key: row for row, key in enumerate(keys) if key not in tokens_of}
        if new:
            rows = [*new.values()]
            own_answers = None if answers is None else [answers[row] for row in rows]
            read = read_tokens(
                self._tokenizer,
                [texts[row] for row in rows],
                max_tokens=self.window,
                answers=own_answers,
                special_tokens=self.special_tokens,
            )
            tokens_of |= zip(new, read, strict=True)
            _kept.update(zip(new, read, strict=True))
            for old in list(_kept)[: -(MOST_KEPT_TOKENS // self.window)]:
                del _kept[old]
        return [tokens_of[key] for key in keys]

    @cached_property
    def _digest(self) -> bytes:
        return xxhash.xxh3_128_digest(self._tokenizer.backend_tokenizer.to_str().encode())

    @cached_property
    def _tokenizer(self) -> Any:
        return _open(self.place, "AutoTokenizer", "a fast tokenizer")


def open_pretrained(place: str) -> Pretrained:
    """Open the model in a directory, in float32, without any download.

    Raises:
        ProxyError: The directory does not exist, or has no causal language model.
    """
    return Pretrained(_open(place, "AutoModelForCausalLM", "a causal language model").float())


def pretrained_tokens(
    place: str, *, window: int, answer_after: str | None, special_tokens: bool = True
) -> PretrainedTokens:
    """Open the tokenizer in a directory, and limit the window to the positions of the model.

    Raises:
        ProxyError: The directory has no tokenizer or no config.json, or the tokenizer is not fast.
    """
    tokens = PretrainedTokens(place, window, answer_after)
    if not tokens._tokenizer.is_fast:
        raise ProxyError(
            f"`proxy={place!r}`: the tokenizer in this directory is not a fast tokenizer, and only a fast tokenizer gives the positions of tokens "
            "in the text. Save a fast tokenizer there with save_pretrained."
        )
    # A model without a table of positions may name no limit.
    limit = getattr(_open(place, "AutoConfig", "a model's config.json"), "max_position_embeddings", window)
    return replace(tokens, window=min(window, limit), special_tokens=special_tokens)


def check_place(place: str) -> None:
    """Check that a place is a directory, and that transformers is installed.

    Raises:
        ProxyError: The place is not a directory.
        ExtraError: transformers is not installed.
    """
    if not Path(place).is_dir():
        raise ProxyError(
            f"`proxy={place!r}`: neither 'tiny' nor 'small' nor a directory. Give 'tiny' or 'small', or the directory of a Hugging Face causal "
            "language model and its tokenizer (save_pretrained writes such a directory)."
        )
    needed("hf", what=f"`proxy={place!r}`")


def _open(place: str, kind: str, what: str) -> Any:
    """Open a part of a directory with a class of transformers.

    Args:
        place: Directory of the model.
        kind: Name of the class of transformers.
        what: Name of the part for the error.

    Raises:
        ProxyError: The part cannot be opened.
    """
    check_place(place)
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(place, local_files_only=True)
    except (
        Exception
    ) as error:  # a damaged or foreign directory makes transformers raise whatever it happens to run into
        # A sentence of transformers may go on in the lines after the first line.
        why = shortened(" ".join(str(error).split()), 300) or type(error).__name__
        raise ProxyError(
            f"`proxy={place!r}`: {what} could not be opened there: {why.rstrip('.')}. Save the model and "
            "its tokenizer there with save_pretrained."
        ) from error
