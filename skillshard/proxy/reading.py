"""Define how a proxy reads texts: the protocol of readings, and the reading by bytes.

A new small model has to learn its tokens, so few tokens are better. Bytes need no trained tokenizer, no download and no choice. Bytes
also suit every language, and every text of a corpus has a loss. The price is length: a text has about four times as many positions as
with word pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from skillshard.errors import ProxyError
from skillshard.loss import IGNORE, LossKind, no_answer, predicted_tokens, prompt_chars
from skillshard.proxy.train import TokenBatch, text_batch

# 256 is the first number that is not a byte.
PAD = 256


@runtime_checkable
class Reading(Protocol):
    """A reading turns texts into tokens and targets.

    A reading is picklable. The method `encode` is a pure function of each text.
    """

    def encode(self, texts: Sequence[str], prompts: Sequence[int] | None = None) -> TokenBatch:
        """Encode texts.

        Args:
            texts: Texts that `refusal` does not refuse.
            prompts: Number of characters at the beginning of each text that are not predicted. With None, `answer_after` of the reading
                decides.

        Raises:
            ProxyError, ObservationError: A text has nothing to predict.
        """

    def refusal(self, text: str) -> str | None:
        """Say why a text has nothing to predict, as the middle of a sentence. Return None for a usable text."""


@dataclass(frozen=True)
class Bytes:
    """The reading by UTF-8 bytes. Each byte is predicted from the bytes before it.

    Args:
        window: Number of bytes to read of a text, at least 2. With a prompt these are the last bytes, otherwise the first bytes.
        answer_after: Mark before the answer. Only the text behind the last mark is predicted. With None, the whole text is predicted.

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
        predicted = np.zeros((len(texts), self.window), dtype=bool)
        prompts = prompts_of(texts, prompts, self.answer_after)
        for row, text in enumerate(texts):
            data = text.encode()
            # An answer stands at the end of a text, so a text with a prompt is cut at the beginning.
            stretch = slice(self.window) if prompts is None else slice(-self.window, None)
            read, ends = data[stretch], np.arange(1, len(data) + 1)[stretch]
            tokens[row, : len(read)] = np.frombuffer(read, dtype=np.uint8)
            # A prompt is counted in characters, and a character has one to four bytes.
            prompt_bytes = 0 if prompts is None else len(text[: prompts[row]].encode())
            predicted[row, : len(read)] = predicted_tokens(ends, prompt_bytes)
        batch = text_batch(tokens, pad=PAD)
        return TokenBatch(batch.tokens, np.where(predicted[:, 1:], batch.targets, IGNORE))

    def refusal(self, text: str) -> str | None:
        """Say why a text has nothing to predict.

        >>> Bytes(window=8, answer_after="=").refusal("1+1")
        "there is nothing behind '=', where the answer should be"
        >>> Bytes(window=8).refusal("1")
        'a text of a single byte has nothing to predict'
        """
        if self.answer_after is not None:
            return no_answer(text, self.answer_after)
        return None if len(text.encode()) > 1 else "a text of a single byte has nothing to predict"


def prompts_of(texts: Sequence[str], prompts: Sequence[int] | None, answer_after: str | None) -> Sequence[int] | None:
    """Return the number of characters of each prompt, as given or by the mark. Return None if whole texts are predicted.

    >>> prompts_of(["1+1=2"], None, "="), prompts_of(["1+1=2"], [3], None), prompts_of(["1+1=2"], None, None)
    ([4], [3], None)
    """
    if prompts is not None or answer_after is None:
        return prompts
    kind = LossKind(answer_after=answer_after)
    return [prompt_chars(text, kind) for text in texts]


def check_window(window: int) -> None:
    """Check the size of a window.

    Raises:
        ProxyError: The window has less than 2 tokens.
    """
    if window < 2:
        raise ProxyError(f"window={window}: a window of less than 2 tokens predicts nothing. Give 2 or more.")
