"""Define how a proxy reads texts: the protocol of readings, and the reading by bytes.

A new small model has to learn its tokens, so few tokens are better. Bytes need no trained tokenizer, no download and no choice. Bytes
also suit every language, and every text of a corpus has a loss. The price is length: a text has about four times as many positions as
with word pieces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from skillshard.corpus.template import Span
from skillshard.errors import ProxyError
from skillshard.loss import IGNORE, LossKind, answer_spans, no_answer, predicted_tokens
from skillshard.proxy.train import TokenBatch, text_batch

# 256 is the first number that is not a byte.
PAD = 256
Refusal = Callable[[str], str | None]
"""Function that says why a text cannot be used, as the middle of a sentence, or returns None for a usable text. It is picklable."""


@runtime_checkable
class Reading(Protocol):
    """A reading turns texts into tokens and targets.

    A reading is picklable. The method `encode` is a pure function of each text.
    """

    def encode(self, texts: Sequence[str], answers: Sequence[Sequence[Span]] | None = None) -> TokenBatch:
        """Encode texts.

        Args:
            texts: Texts that `refusal` does not refuse.
            answers: Stretches of each text that are predicted (`skillshard.loss.answer_spans`). With None, `answer_after` of the reading
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
        window: Number of bytes to read of a text, at least 2. With answers these are the last bytes up to the end of the last
            answer, otherwise the first bytes.
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

    def encode(self, texts: Sequence[str], answers: Sequence[Sequence[Span]] | None = None) -> TokenBatch:
        tokens = np.full((len(texts), self.window), PAD, dtype=np.int64)
        predicted = np.zeros((len(texts), self.window), dtype=bool)
        answers = answers_of(texts, answers, self.answer_after)
        for row, text in enumerate(texts):
            data = text.encode()
            if answers is None:
                first, spans = 0, [(0, len(data))]
                read = data[: self.window]
            else:
                # Answers are counted in characters, and a character has one to four bytes.
                spans = [(len(text[:start].encode()), len(text[:stop].encode())) for start, stop in answers[row]]
                # The last answer stands at the end of what is read, so a long text is cut at the beginning.
                first = max(0, spans[-1][1] - self.window)
                read = data[first : spans[-1][1]]
            tokens[row, : len(read)] = np.frombuffer(read, dtype=np.uint8)
            starts = np.arange(first, first + len(read))
            predicted[row, : len(read)] = predicted_tokens(np.stack([starts, starts + 1], 1), spans)
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


def answers_of(
    texts: Sequence[str], answers: Sequence[Sequence[Span]] | None, answer_after: str | None
) -> Sequence[Sequence[Span]] | None:
    """Return the answers of each text, as given or by the mark. Return None if whole texts are predicted.

    >>> answers_of(["1+1=2"], None, "="), answers_of(["1+1=2"], [[(3, 5)]], None), answers_of(["1+1=2"], None, None)
    ([[(4, 5)]], [[(3, 5)]], None)
    """
    if answers is not None or answer_after is None:
        return answers
    kind = LossKind(answer_after=answer_after)
    return [answer_spans(text, kind) for text in texts]


def check_window(window: int) -> None:
    """Check the size of a window.

    Raises:
        ProxyError: The window has less than 2 tokens.
    """
    if window < 2:
        raise ProxyError(f"window={window}: a window of less than 2 tokens predicts nothing. Give 2 or more.")
