"""Choose a proxy, and the way the proxy reads texts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from skillshard.answers import AnswerRule
from skillshard.corpus import ANSWER_SPANS
from skillshard.corpus.chat import ChatTemplate, chat_of, refuse_with_template
from skillshard.errors import ProxyError
from skillshard.loss import LossKind, Reduction
from skillshard.proxy.identity import SIZES, model_identity
from skillshard.proxy.model import ProxyShape
from skillshard.proxy.pretrained import check_place, pretrained_tokens
from skillshard.proxy.reading import Bytes, Reading, check_window
from skillshard.proxy.segments import Segments, fit_segments


@dataclass(frozen=True)
class ReadingChoice:
    """The choice of a proxy, and of the way the proxy reads texts.

    Args:
        proxy: "tiny" or "small" (see `shape_of`), or the directory of a Hugging Face causal language model with its tokenizer. All trials
            begin with this model.
        window: Number of tokens to read of a text, at least 2. For "tiny" and "small" a token is a byte. With `segment_at` the window is
            not used.
        segment_at: Characters that end a segment (`skillshard.proxy.segments`). With None, texts are read token by token.
        answer_after: Mark before the answer. Only the text behind the last mark is predicted. With None, the whole text is predicted. The
            mark is required with `segment_at`.
        prompt_field: Metadata field with the number of characters of the prompt, which is not predicted. The field takes the place of
            `answer_after`.
        ordered: Whether the order of segments has a meaning.
        chat_template: Chat template that renders the conversations of samples: "tokenizer" for the template of a proxy from a directory, or the
            path or URI of a file. Only the assistant's turns are predicted. With None, the texts of the samples are read.

    Raises:
        ProxyError: The window is too short, the proxy does not exist, or `segment_at` does not fit the other values.
        TokensError: The chat template cannot be read, or does not go together with another value.
        ObservationError: Both `answer_after` and `prompt_field` are given, or one of the two is empty.

    Example:
        >>> choice = ReadingChoice(window=8)
        >>> reading = choice.reading([])
        >>> reading
        Bytes(window=8, answer_after=None)
        >>> choice.model(reading).positions
        7
    """

    proxy: str = "tiny"
    window: int = 128
    segment_at: str | None = None
    answer_after: str | None = None
    prompt_field: str | None = None
    ordered: bool = True
    chat_template: str | None = None

    def __post_init__(self) -> None:
        check_window(self.window)
        LossKind(
            answer_after=self.answer_after, prompt_field=self.prompt_field
        )  # refuses both together, and empty values
        if self.segment_at is not None and (not self.segment_at or not self.answer_after):
            raise ProxyError(
                "`segment_at` reads a text as segments and predicts a word of answer. Give the characters that end a segment, and "
                "`answer_after`, such as `answer_after='= '`."
            )
        if self.proxy not in SIZES:
            check_place(self.proxy)
            if self.segment_at is not None:
                raise ProxyError(
                    f"`proxy={self.proxy!r}` reads texts with its own tokenizer. Leave `segment_at` out, or use `proxy='tiny'`."
                )
        if self.chat_template is not None:
            refuse_with_template(
                answer_after=self.answer_after, prompt_field=self.prompt_field, segment_at=self.segment_at
            )
            if self.chat_template == "tokenizer" and self.proxy in SIZES:
                raise ProxyError(
                    f"`chat_template='tokenizer'` is the template of a tokenizer, and `proxy={self.proxy!r}` reads bytes: give the file of a template, or "
                    "the directory of a chat model as `proxy`."
                )
            # Read now, so that a template that cannot be used is refused before any work.
            _ = self.template

    @cached_property
    def template(self) -> ChatTemplate | None:
        """Chat template, read once, or None."""
        if self.chat_template is None:
            return None
        return ChatTemplate.read(None if self.proxy in SIZES else self.proxy, self.chat_template)

    def kind(self, reduction: Reduction = "per_sample") -> LossKind:
        """Return the kind of the losses. The assistant's turns of a chat template have the kind of the answer spans that tagging writes."""
        field = self.prompt_field if self.chat_template is None else ANSWER_SPANS
        return LossKind(reduction=reduction, answer_after=self.answer_after, prompt_field=field)

    def rule(self, messages: str | None, corpus: str) -> AnswerRule:
        """Return the rule for the texts and the answers of a corpus or of shards.

        Args:
            messages: Metadata field of the messages, or None if the samples are no conversations.
            corpus: Name of the corpus or of the shards, for the error.

        Raises:
            TokensError: A chat template is given, and the samples are no conversations.
        """
        chat = None if self.template is None else chat_of(self.template, messages, corpus)
        return AnswerRule(self.kind(), chat)

    def record(self) -> dict[str, Any]:
        """Return the values that determine the losses, for the record of an artefact. Files are recorded by their content.

        The key "chat_template" exists only with a template. Records of trainings without a chat template keep their bytes.
        """
        fields = {**asdict(self), "proxy": model_identity(self.proxy)}
        if self.template is None:
            del fields["chat_template"]
            return fields
        return {**fields, "prompt_field": ANSWER_SPANS, "chat_template": self.template.digest}

    def reading(self, texts: Sequence[str]) -> Reading:
        """Make the reading: by segments with `segment_at`, by bytes for a new proxy, or by the tokens of a pretrained model.

        Args:
            texts: Texts from which a reading by segments takes its words and sizes. Other readings need no texts.
        """
        if self.segment_at is not None:
            return fit_segments(texts, separators=self.segment_at, answer_after=self.answer_after or "")
        if self.proxy in SIZES:
            return Bytes(self.window, self.answer_after)
        return pretrained_tokens(
            self.proxy,
            window=self.window,
            answer_after=self.answer_after,
            special_tokens=self.chat_template is None,
        )

    def blank_reading(self) -> Reading:
        """Make the reading without texts, which is enough to refuse texts."""
        # Whether a text has an answer does not depend on words and sizes.
        if self.segment_at is not None:
            return Segments(self.segment_at, self.answer_after or "", (), 1, 1)
        return self.reading([])

    def model(self, reading: Reading) -> ProxyShape | str:
        """Return the shape of a new model that fits the reading, or the directory of the pretrained model."""
        if not isinstance(reading, Bytes | Segments):
            return self.proxy
        return shape_of(
            self.proxy,
            vocab=reading.vocab,
            positions=reading.positions,
            slots=reading.slots if isinstance(reading, Segments) else 1,
            is_prefix=isinstance(reading, Segments),
            ordered=self.ordered,
        )


def shape_of(name: str, *, vocab: int, positions: int, slots: int, is_prefix: bool, ordered: bool) -> ProxyShape:
    """Return the shape of the proxy "tiny" or "small" for a reading.

    The proxy "tiny" has four layers of width 64, and learns the synthetic corpora on one core in a minute or two. The proxy "small" has
    six layers of width 256, and needs thirty times the work.
    """
    layers, dim, heads = {"tiny": (4, 64, 4), "small": (6, 256, 8)}[name]
    return ProxyShape(
        vocab=vocab,
        positions=positions,
        slots=slots,
        layers=layers,
        dim=dim,
        heads=heads,
        # Only the last position has a target, so all positions of a prompt may see each other.
        prefix=positions if is_prefix else 0,
        ordered=ordered,
    )
