"""Texts as small integers, cut into segments: one position for each, its words in the slots.

A text is what stands before the last `answer_after` (the prompt) and the word behind it (the answer). The prompt is cut at
any of the characters `separators`; a segment's words are what white space divides. The last segment asks the question:
it gets one word more, the mark `ASK`, and stands at the last position, where the answer is predicted. Shorter prompts are
filled with empty segments in front.

    "Input: b = not a, a = val 1. Output: b = 0."   separators ",.:", answer_after "= "
    [Input] [b = not a] [a = val 1] [Output] [b = ASK] -> 0

Nothing here knows a corpus: words are whatever the texts hold.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from skillshard.errors import ProxyError
from skillshard.proxy.train import TokenBatch, answer_batch

PAD, UNKNOWN, ASK = range(3)
SPECIAL = ("", "<unknown>", "<ask>")
MAX_WORDS = 4096
MAX_POSITIONS, MAX_SLOTS = 512, 32


@dataclass(frozen=True)
class Segments:
    """A reading of texts in segments; `fit_segments` makes one.

    Args:
        separators: characters, each of which ends a segment.
        answer_after: the answer is the first word behind the last of these.
        words: known words, most frequent first; all others are one token.
        positions: segments of the longest prompt.
        slots: words of the longest segment.
    """

    separators: str
    answer_after: str
    words: tuple[str, ...]
    positions: int
    slots: int

    @property
    def vocab(self) -> int:
        return len(SPECIAL) + len(self.words)

    @cached_property
    def _token_of(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words, start=len(SPECIAL))}

    def encode(self, texts: Sequence[str], prompts: Sequence[int] | None = None) -> TokenBatch:
        """Tokens `(batch, positions, slots)`; the answer is the target at the last position.

        Of a prompt with more segments than `positions` the last ones are read, of a segment with more words than `slots`
        the first ones.

        Raises:
            ProxyError: a text has no answer, or prompts are given by their length: here `answer_after` says where they end.
        """
        if prompts is not None:
            raise ProxyError(
                "a reading by segments finds the answer by `answer_after`, so a metadata field cannot say where the prompt ends. Leave "
                "`prompt_field` or `segment_at` out."
            )
        tokens = np.full((len(texts), self.positions, self.slots), PAD, dtype=np.int64)
        answers = np.zeros(len(texts), dtype=np.int64)
        for row, text in enumerate(texts):
            segments, answer = cut(text, separators=self.separators, answer_after=self.answer_after)
            segments = segments[-self.positions :]
            answers[row] = self._token_of.get(answer, UNKNOWN)
            for position, words in enumerate(segments, start=self.positions - len(segments)):
                found = [self._token_of.get(word, UNKNOWN) for word in words[: self.slots]]
                tokens[row, position, : len(found)] = found
            tokens[row, -1, min(len(segments[-1]), self.slots - 1)] = ASK
        return answer_batch(tokens, answers)

    def refusal(self, text: str) -> str | None:
        """Why a text has no answer, as the middle of a sentence; None if it has."""
        try:
            cut(text, separators=self.separators, answer_after=self.answer_after)
        except ProxyError:
            return f"no prompt, {self.answer_after!r} and a word behind it were found"
        return None


def fit_segments(texts: Sequence[str], *, separators: str, answer_after: str) -> Segments:
    """The reading whose words and sizes are those of some texts.

    Raises:
        ProxyError: a text has no answer, or segments are too many or too long to be meant.

    Example:
        >>> reading = fit_segments(["x is 1, y is x. y = 1", "y is 0. y = 0"], separators=",.", answer_after="= ")
        >>> reading.words, reading.positions, reading.slots
        (('y', 'is', '0', '1', '=', 'x'), 3, 3)
        >>> batch = reading.encode(["y is 0. y = 0"])
        >>> batch.tokens[0].tolist(), batch.targets[0].tolist()
        ([[0, 0, 0], [3, 4, 5], [3, 7, 2]], [-100, -100, 5])
    """
    counts: Counter[str] = Counter()
    positions = slots = 1
    for text in texts:
        segments, answer = cut(text, separators=separators, answer_after=answer_after)
        counts.update(word for words in (*segments, [answer]) for word in words)
        positions = max(positions, len(segments))
        slots = max(slots, len(segments[-1]) + 1, *map(len, segments))
    if positions > MAX_POSITIONS or slots > MAX_SLOTS:
        raise ProxyError(
            f"the separators {separators!r} cut a text into {positions:,} segments of up to {slots:,} words; at most "
            f"{MAX_POSITIONS} of {MAX_SLOTS} are read. Choose separators that fit the texts, or read them without segments."
        )
    known = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
    return Segments(separators, answer_after, tuple(known), positions, slots)


def cut(text: str, *, separators: str, answer_after: str) -> tuple[list[list[str]], str]:
    """The segments of a prompt, each a list of words, and the answer.

    Raises:
        ProxyError: there is no prompt or no answer.

    >>> cut("Input: b = val a. Output: b = 0.", separators=".:", answer_after="= ")
    ([['Input'], ['b', '=', 'val', 'a'], ['Output'], ['b', '=']], '0')
    """
    prompt, mark, rest = text.rpartition(answer_after)
    table = str.maketrans(dict.fromkeys(separators, "\n"))
    segments = [words for part in (prompt + mark).translate(table).split("\n") if (words := part.split())]
    answer = rest.translate(table).split()
    if not mark or not segments or not answer:
        raise ProxyError(
            f"the text {text[:100]!r} has no answer: expected a prompt, {answer_after!r} and a word. Give another "
            "`answer_after`, or leave such texts out."
        )
    return segments, answer[0]


def without(batch: TokenBatch, position: int) -> TokenBatch:
    """The batch with one position emptied.

    >>> without(answer_batch(np.ones((1, 2, 1), dtype=np.int64), np.array([1])), 0).tokens.tolist()
    [[[0], [1]]]
    """
    tokens: Int[np.ndarray, "batch positions slots"] = batch.tokens.copy()
    tokens[:, position] = PAD
    return TokenBatch(tokens, batch.targets)
