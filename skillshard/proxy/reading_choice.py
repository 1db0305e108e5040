"""The choice of a proxy and of how the proxy reads texts."""

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
    """A proxy, and how the proxy reads texts.

    Args:
        proxy: "tiny" or "small" (see `shape_of`), or the directory of a Hugging Face causal language model and its tokenizer, which
            all trials begin with.
        window: number of tokens that are read of a text, at least 2. For "tiny" and "small" a token is a byte. Not used with
            `segment_at`.
        segment_at: characters that end a segment (`skillshard.proxy.segments`); None: texts are read token by token.
        answer_after: only what stands behind the last of these in a text is predicted; None: the whole text. `segment_at`
            needs it.
        prompt_field: metadata field with the number of characters of a text's prompt, which is not predicted. It stands in place
            of `answer_after`.
        ordered: whether the order of segments means something.

    Raises:
        ProxyError: the window is too short, there is no such proxy, or `segment_at` does not go with the other values.
        ObservationError: both `answer_after` and `prompt_field` are given, or one of them is empty.

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
        LossKind(answer_after=self.answer_after, prompt_field=self.prompt_field)  # refuses both, and empty ones
        if self.segment_at is not None and (not self.segment_at or not self.answer_after):
            raise ProxyError(
                "`segment_at` reads a text as segments and predicts a word of answer: give the characters that end a segment, and "
                "`answer_after`, such as `answer_after='= '`."
            )
        if self.proxy not in SIZES:
            check_place(self.proxy)
            if self.segment_at is not None:
                raise ProxyError(
                    f"`proxy={self.proxy!r}` reads texts with its own tokenizer: leave `segment_at` out, or use `proxy='tiny'`."
                )

    def reading(self, texts: Sequence[str]) -> Reading:
        """The reading: segments where `segment_at` says where they end, else bytes, or the tokens of a pretrained model.

        Args:
            texts: a reading by segments takes its words and sizes from these texts. Other readings do not need them.
        """
        if self.segment_at is not None:
            return fit_segments(texts, separators=self.segment_at, answer_after=self.answer_after or "")
        if self.proxy in SIZES:
            return Bytes(self.window, self.answer_after)
        return pretrained_tokens(self.proxy, window=self.window, answer_after=self.answer_after)

    def blank_reading(self) -> Reading:
        """The reading as far as it is known without texts: enough to refuse some."""
        if self.segment_at is not None:
            return Segments(self.segment_at, self.answer_after or "", (), 1, 1)
        return self.reading([])

    def model(self, reading: Reading) -> ProxyShape | str:
        """What is trained: a new model that fits the reading, or the directory of the pretrained model."""
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
    """The shape of the proxy "tiny" or "small" for a reading.

    tiny has four layers of width 64, which learn the synthetic corpora on one core in a minute or two; small has six of width
    256, thirty times the work.
    """
    layers, dim, heads = {"tiny": (4, 64, 4), "small": (6, 256, 8)}[name]
    return ProxyShape(
        vocab=vocab,
        positions=positions,
        slots=slots,
        layers=layers,
        dim=dim,
        heads=heads,
        prefix=positions if is_prefix else 0,
        ordered=ordered,
    )
