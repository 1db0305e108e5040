"""Read texts as segments: each segment is a position, with its words in the slots.

The text before the last `answer_after` is the prompt, and the word behind is the answer. The prompt is cut at each of the characters
`separators`, and a segment is cut into words at white space. The last segment asks the question: the segment ends with the additional
word `ASK`, and stands at the last position, where the answer is predicted. Shorter prompts begin with empty segments.

    "Input: b = not a, a = val 1. Output: b = 0."   separators ",.:", answer_after "= "
    [Input] [b = not a] [a = val 1] [Output] [b = ASK] -> 0

The module knows no corpus. Any text between white space is a word.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from skillshard.corpus.template import Span
from skillshard.errors import ProxyError
from skillshard.proxy.train import TokenBatch, answer_batch

PAD, UNKNOWN, ASK = range(3)
SPECIAL = ("", "<unknown>", "<ask>")
# The limit bounds the table of embeddings. Rarer words share the token `UNKNOWN`.
MAX_WORDS = 4096
# More segments or words mean separators that do not fit the texts, and a proxy that would not fit into memory.
MAX_POSITIONS, MAX_SLOTS = 512, 32


@dataclass(frozen=True)
class Segments:
    """The reading of texts in segments, made by `fit_segments`.

    Args:
        separators: Characters that end a segment.
        answer_after: Mark before the answer. The answer is the first word behind the last mark.
        words: Known words, most frequent first. All other words share a token.
        positions: Number of segments of the longest prompt.
        slots: Number of words of the longest segment.
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

    def encode(self, texts: Sequence[str], answers: Sequence[Sequence[Span]] | None = None) -> TokenBatch:
        """Encode texts as tokens `(batch, positions, slots)`, with the answer as the target at the last position.

        A prompt with more segments than `positions` loses the first segments. A segment with more words than `slots` loses the last words.

        Raises:
            ProxyError: A text has no answer, or answers are given although `answer_after` marks the answer.
        """
        if answers is not None:
            raise ProxyError(
                "a reading by segments finds the answer by `answer_after`, so a metadata field cannot name the answer. Leave "
                "`prompt_field` or `segment_at` out."
            )
        tokens = np.full((len(texts), self.positions, self.slots), PAD, dtype=np.int64)
        words = np.zeros(len(texts), dtype=np.int64)
        for row, text in enumerate(texts):
            segments, answer = cut(text, separators=self.separators, answer_after=self.answer_after)
            segments = segments[-self.positions :]
            words[row] = self._token_of.get(answer, UNKNOWN)
            for position, segment in enumerate(segments, start=self.positions - len(segments)):
                word_tokens = [self._token_of.get(word, UNKNOWN) for word in segment[: self.slots]]
                tokens[row, position, : len(word_tokens)] = word_tokens
            # In a segment that fills all slots, the mark replaces the last word: a question without the mark is no question.
            tokens[row, -1, min(len(segments[-1]), self.slots - 1)] = ASK
        return answer_batch(tokens, words)

    def refusal(self, text: str) -> str | None:
        """Say why a text has no answer, as the middle of a sentence. Return None for a text with an answer."""
        try:
            cut(text, separators=self.separators, answer_after=self.answer_after)
        except ProxyError:
            return f"no prompt, {self.answer_after!r} and a word behind it were found"
        return None


def fit_segments(texts: Sequence[str], *, separators: str, answer_after: str) -> Segments:
    """Make a reading with the words and the sizes of the given texts.

    Raises:
        ProxyError: A text has no answer, or the separators give more than `MAX_POSITIONS` segments or `MAX_SLOTS` words.

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
        # The last segment needs a slot more, for the mark `ASK`.
        slots = max(slots, len(segments[-1]) + 1, *map(len, segments))
    if positions > MAX_POSITIONS or slots > MAX_SLOTS:
        raise ProxyError(
            f"the separators {separators!r} cut a text into {positions:,} segments of up to {slots:,} words. At most "
            f"{MAX_POSITIONS} segments of {MAX_SLOTS} words are read. Choose separators that fit the texts, or read the texts without segments."
        )
    known = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
    return Segments(separators, answer_after, tuple(known), positions, slots)


def cut(text: str, *, separators: str, answer_after: str) -> tuple[list[list[str]], str]:
    """Cut a text into the segments of the prompt, each a list of words, and the answer.

    Raises:
        ProxyError: The text has no prompt or no answer.

    >>> cut("Input: b = val a. Output: b = 0.", separators=".:", answer_after="= ")
    ([['Input'], ['b', '=', 'val', 'a'], ['Output'], ['b', '=']], '0')
    """
    # The mark is read with the prompt, because its words belong to the question, such as `=` in `b =`.
    prompt, mark, rest = text.rpartition(answer_after)
    table = str.maketrans(dict.fromkeys(separators, "\n"))
    segments = [words for part in (prompt + mark).translate(table).split("\n") if (words := part.split())]
    answer = rest.translate(table).split()
    if not mark or not segments or not answer:
        raise ProxyError(
            f"the text {text[:100]!r} has no answer: expected a prompt, {answer_after!r} and a word. Give another "
            "`answer_after`, or leave texts without an answer out."
        )
    return segments, answer[0]


def without(batch: TokenBatch, position: int) -> TokenBatch:
    """Copy a batch, and empty one position in the copy.

    >>> without(answer_batch(np.ones((1, 2, 1), dtype=np.int64), np.array([1])), 0).tokens.tolist()
    [[[0], [1]]]
    """
    tokens: Int[np.ndarray, "batch positions slots"] = batch.tokens.copy()
    tokens[:, position] = PAD
    return TokenBatch(tokens, batch.targets)
