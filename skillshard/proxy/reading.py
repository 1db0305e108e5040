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
from skillshard.proxy.train import IGNORE, TokenBatch, text_batch

PAD = 256


@runtime_checkable
class Reading(Protocol):
    """Texts -> tokens and targets; picklable, a pure function of each text alone."""

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Raises ProxyError where a text has nothing to predict."""

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

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        tokens = np.full((len(texts), self.window), PAD, dtype=np.int64)
        asked = np.zeros((len(texts), self.window), dtype=bool)
        for row, text in enumerate(texts):
            data, start = text.encode(), self._answer_start(text)
            first = max(0, len(data) - self.window) if self.answer_after is not None else 0
            read = data[first : first + self.window]
            tokens[row, : len(read)] = np.frombuffer(read, dtype=np.uint8)
            asked[row, max(start - first, 0) : len(read)] = True
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

    def _answer_start(self, text: str) -> int:
        return 0 if self.answer_after is None else len("".join(text.rpartition(self.answer_after)[:2]).encode())


def no_answer(text: str, mark: str) -> str | None:
    """Why a text has no answer, or None."""
    prompt, found, answer = text.rpartition(mark)
    return (
        None
        if found and (prompt + found).strip() and answer.strip()
        else f"there is nothing behind {mark!r}, where the answer should be"
    )


def check_window(window: int) -> None:
    """ProxyError unless texts can be read by windows of this many tokens."""
    if window < 2:
        raise ProxyError(f"window={window}: a window of less than 2 tokens predicts nothing. Give 2 or more.")
