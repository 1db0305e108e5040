"""The text of a sample as a model reads it, with the stretches that are predicted. All trainings and measurements use this module.

Kept token ids, collators, measured losses, graphs, loss taggers and comparisons read a sample in the same way: by the mark or the metadata field of
`LossKind`, or by a chat template. `answer_tokens` and `predicted_tokens` of `skillshard.loss` turn the stretches into a mask of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skillshard.corpus.chat import Chat
from skillshard.corpus.template import Span
from skillshard.loss import LossKind, answer_spans


@dataclass(frozen=True)
class AnswerRule:
    """The rule for the text and the answers of samples.

    Attributes:
        kind: Kind of the losses, with the mark or the metadata field of the answers.
        chat: Way to render the conversations of samples, or None for the texts of the samples. The assistant's turns are then the answers.

    Example:
        >>> AnswerRule(LossKind(answer_after="= ")).read("1 + 1 = 2", {})
        ('1 + 1 = 2', [(8, 9)])
    """

    kind: LossKind
    chat: Chat | None = None

    @property
    def masks(self) -> bool:
        """Whether a part of each text is not predicted."""
        return self.chat is not None or self.kind.masks

    @property
    def needs_meta(self) -> bool:
        """Whether the text or the answers stand in the metadata of a sample."""
        return self.chat is not None or self.kind.prompt_field is not None

    def read(self, text: str, meta: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Return the text to read, and its answers in characters. Without a mask, the answer is the whole text.

        Args:
            text: Text of a sample. A chat template does not use the text.
            meta: Metadata of the sample. A rule that needs no metadata takes an empty mapping.

        Raises:
            ObservationError: The sample has no answer, or its conversation cannot be rendered.
        """
        if self.chat is not None:
            return self.chat.render(meta)
        return text, answer_spans(text, self.kind, meta)
