"""How a proxy reads texts: a protocol, and the reading byte by byte.

A new small model has to learn its tokens, so the fewer the better: bytes need no training of a tokenizer, no download and no
choice, read every language, and give every text of a corpus a loss. The price is length: about four times as many
positions as word pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from skillshard.errors import ProxyError
from skillshard.loss import IGNORE, LossKind, no_answer, predicted_tokens, prompt_chars
from skillshard.proxy.train import TokenBatch, text_batch

PAD = 256


@runtime_checkable
class Reading(Protocol):
    """Texts -> tokens and targets; picklable, a pure function of each text alone."""

    def encode(self, texts: Sequence[str], prompts: Sequence[int] | None = None) -> TokenBatch:
        """Encode texts.

        Args:
            texts: texts that `refusal` does not refuse.
            prompts: number of characters at the beginning of each text that are not predicted; None: as the reading's
                `answer_after` says.

        Raises:
            ProxyError, ObservationError: a text has nothing to predict.
        """

    def refusal(self, text: str) -> str | None:
        """Why a text has nothing to predict, as the middle of a sentence; None if it has."""


@dataclass(frozen=True)
class Bytes:
    """The UTF-8 bytes of a text, each predicted from those before it.

    Args:
        window: bytes read, at least 2: of a longer text the first ones, or the last ones where there is an answer.
        answer_after: only what stands behind the last of these is predicted; None: everything.

    Example:
        >>> batch = Bytes(window=8, answer_after="=").encode(["1+1=2", "2"*9 + "=7"])
        >>> [bytes(row[row != IGNORE].tolist()) for row in batch.targets], batch.tokens.shape
        ([b'2', b'7'], (2, 7, 1))
    """

    window: int
    answer_after: str | None = None

    @property
    def vocab(self) -> int:
        return PAD + 1

    @property
    def positions(self) -> int:
        return self.window - 1

    def encode(self, texts: Sequence[str], prompts: Sequence[int] | None = None) -> TokenBatch:
        tokens = np.full((len(texts), self.window), PAD, dtype=np.int64)
        asked = np.zeros((len(texts), self.window), dtype=bool)
        prompts = prompts_of(texts, prompts, self.answer_after)
        for row, text in enumerate(texts):
            data = text.encode()
            stretch = slice(self.window) if prompts is None else slice(-self.window, None)
            read, ends = data[stretch], np.arange(1, len(data) + 1)[stretch]
            tokens[row, : len(read)] = np.frombuffer(read, dtype=np.uint8)
            prompt_bytes = 0 if prompts is None else len(text[: prompts[row]].encode())
            asked[row, : len(read)] = predicted_tokens(ends, prompt_bytes)
        batch = text_batch(tokens, pad=PAD)
        return TokenBatch(batch.tokens, np.where(asked[:, 1:], batch.targets, IGNORE))

    def refusal(self, text: str) -> str | None:
        """
        >>> Bytes(window=8, answer_after="=").refusal("1+1")
        "there is nothing behind '=', where the answer should be"
        >>> Bytes(window=8).refusal("1")
        'a text of a single byte has nothing to predict'
        """
        if self.answer_after is not None:
            return no_answer(text, self.answer_after)
        return None if len(text.encode()) > 1 else "a text of a single byte has nothing to predict"


def prompts_of(texts: Sequence[str], prompts: Sequence[int] | None, answer_after: str | None) -> Sequence[int] | None:
    """The number of characters of each text's prompt, given or found by the mark; None where whole texts are predicted.

    >>> prompts_of(["1+1=2"], None, "="), prompts_of(["1+1=2"], [3], None), prompts_of(["1+1=2"], None, None)
    ([4], [3], None)
    """
    if prompts is not None or answer_after is None:
        return prompts
    kind = LossKind(answer_after=answer_after)
    return [prompt_chars(text, kind) for text in texts]


def check_window(window: int) -> None:
    """ProxyError unless texts can be read by windows of this many tokens."""
    if window < 2:
        raise ProxyError(f"window={window}: a window of less than 2 tokens predicts nothing. Give 2 or more.")
