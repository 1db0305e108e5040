"""Choose a proxy, and the way the proxy reads texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from skillshard.errors import ProxyError
from skillshard.loss import LossKind
from skillshard.proxy.identity import SIZES
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

    Raises:
        ProxyError: The window is too short, the proxy does not exist, or `segment_at` does not fit the other values.
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

    def reading(self, texts: Sequence[str]) -> Reading:
        """Make the reading: by segments with `segment_at`, by bytes for a new proxy, or by the tokens of a pretrained model.

        Args:
            texts: Texts from which a reading by segments takes its words and sizes. Other readings need no texts.
        """
        if self.segment_at is not None:
            return fit_segments(texts, separators=self.segment_at, answer_after=self.answer_after or "")
        if self.proxy in SIZES:
            return Bytes(self.window, self.answer_after)
        return pretrained_tokens(self.proxy, window=self.window, answer_after=self.answer_after)

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
