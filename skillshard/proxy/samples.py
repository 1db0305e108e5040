"""Read samples for a proxy: the text and the answers of a sample, and the tokens and targets of a text.

Graphs, loss taggers and comparisons use the two functions. The error of a caller names the place of the sample.
"""

from collections.abc import Sequence
from typing import NamedTuple

from skillshard.answers import AnswerRule
from skillshard.corpus.sample import Sample
from skillshard.corpus.template import Span
from skillshard.errors import ObservationError
from skillshard.proxy.reading import Reading, Refusal
from skillshard.proxy.train import TokenBatch

CORRECTION = (
    "Change `answer_after`, `prompt_field`, `segment_at` or `chat_template`, or leave such samples out of the corpus."
)
"""The remedy for a sample that cannot be read."""


class ReadableText(NamedTuple):
    """A text that a proxy can read.

    Attributes:
        text: Text of the sample, or the rendered conversation.
        answers: Stretches of the text that are predicted. None: the reading finds the answers in the text.
    """

    text: str
    answers: list[Span] | None = None


def readable(sample: Sample, refusal: Refusal, rule: AnswerRule) -> ReadableText | str:
    """Return the text of a sample with its answers, or the reason why the sample cannot be read.

    Args:
        sample: Sample of a corpus or of shards.
        refusal: Function that refuses texts (`Reading.refusal`).
        rule: Rule for the text and the answers.

    Returns:
        The text, or the reason as the middle of a sentence.
    """
    # The words of a reading about a missing answer are the plainer ones, so a text that is known already is refused first.
    if rule.chat is None and (why := refusal(sample.text)) is not None:
        return why
    try:
        text, answers = rule.read(sample.text, sample.meta)
    except ObservationError as error:
        return str(error).rstrip(".")
    if rule.chat is not None and (why := refusal(text)) is not None:
        return why
    # A mark in the text is known to the reading itself.
    return ReadableText(text, answers if rule.needs_meta else None)


def encode(reading: Reading, texts: Sequence[ReadableText]) -> TokenBatch:
    """Encode the texts of samples that were read by one rule.

    Raises:
        ProxyError, ObservationError: A text has nothing to predict.
    """
    answers = [text.answers for text in texts if text.answers is not None]
    return reading.encode([text.text for text in texts], answers if answers else None)
