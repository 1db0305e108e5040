"""Samples that are tokenized already: the ids of a row become the text, as decimal numbers with one space between neighbours.

So a sample of ids has a hash, a place in the order and a size as every other text has, and the shards need no other format. The labels of
a row become the spans of the answers in this text. `ids_of_text` gives the ids back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import Any

import numpy as np
import orjson
from jaxtyping import Int

from skillshard.corpus.paths import MISSING, unknown
from skillshard.corpus.sample import BadRecord, json_type
from skillshard.corpus.template import Span
from skillshard.errors import CorpusError

NOT_LEARNED = -100
"""Label of a token that is not learned, as in PyTorch's cross entropy and in the data sets of Hugging Face."""
MAX_IDS = 1 << 32
"""Largest number of ids of a vocabulary. Token sets keep ids as unsigned integers of at most 32 bits."""

NEEDS_TEXTS = (
    "Tag token ids by metadata or by a function. Where the texts of the samples are known, tag the texts, and give the same skills to the ids: "
    "'skillshard tag from TAGS/parts CORPUS'."
)
"""Remedy where a tagger reads texts and a corpus has token ids."""


@dataclass(frozen=True)
class TokenForm:
    """Form of the samples of a corpus whose texts are token ids.

    Attributes:
        vocab_size: Number of ids of the vocabulary. None: not given, so no id was compared with the size.
        marks_answers: Whether the metadata of each sample has the spans of the answers, because the corpus has labels.
    """

    vocab_size: int | None
    marks_answers: bool


def in_words(form: TokenForm | None) -> str:
    """Return the form of samples in words.

    >>> in_words(None), in_words(TokenForm(50257, True))
    ('texts', 'token ids with labels, below 50,257')
    """
    if form is None:
        return "texts"
    labels = "with labels" if form.marks_answers else "without labels"
    return f"token ids {labels}{'' if form.vocab_size is None else f', below {form.vocab_size:,}'}"


@dataclass(frozen=True)
class TokenFields:
    """Fields of a row that is tokenized already. The attributes are arguments of `FieldMapping`."""

    token_ids: str
    token_labels: str | None
    token_mask: str | None
    attention_mask: str | None
    vocab_size: int | None

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the fields."""
        paths = (self.token_ids, self.token_labels, self.token_mask, self.attention_mask)
        return tuple(path for path in paths if path is not None)

    def text(self, values: Mapping[str, Any], row: Mapping[str, Any], sample_id: str) -> tuple[str, list[Span] | None]:
        """Return the text of a row, and the spans of its answers, or None without labels.

        Args:
            values: Value of each path, or `MISSING`.
            row: Row, for the names of its fields.
            sample_id: Id of the sample, for errors.

        Raises:
            BadRecord: The ids, the labels or a mask are not usable.
        """
        given = _Row(values, row, sample_id)
        ids = given.integers(self.token_ids, "token_ids")
        self._refuse_ids(ids, sample_id)
        learned = self._learned(given, ids)
        if self.attention_mask is not None:
            attended = given.bits(self.attention_mask, "attention_mask", ids, self.token_ids)
            if not any(attended):
                raise given.bad(f"the mask in {self.attention_mask!r} is 0 for every token", self.attention_mask)
            ids = list(compress(ids, attended))
            learned = None if learned is None else list(compress(learned, attended))
        words = list(map(str, ids))
        if learned is None:
            return " ".join(words), None
        if not any(learned):
            path = self.token_labels or self.token_mask or ""
            raise given.bad(f"no token is learned: the labels in {path!r} mark no answer", path)
        return " ".join(words), _spans(words, learned)

    def _refuse_ids(self, ids: Sequence[int], sample_id: str) -> None:
        path = self.token_ids
        if not ids:
            raise _bad(f"the token ids in {path!r} are an empty array", sample_id, path)
        limit = MAX_IDS if self.vocab_size is None else self.vocab_size
        if min(ids) >= 0 and max(ids) < limit:
            return
        place, token = next((place, token) for place, token in enumerate(ids) if not 0 <= token < limit)
        expected = f"ids below {limit:,}{'' if self.vocab_size is None else ', the `vocab_size`'}"
        fault = "is negative" if token < 0 else f"is too large, expected {expected}"
        raise _bad(f"the token id {token:,} at position {place:,} of {path!r} {fault}", sample_id, path)

    def _learned(self, given: "_Row", ids: Sequence[int]) -> list[bool] | None:
        """Return whether each token is learned, or None without labels."""
        if self.token_mask is not None:
            return given.bits(self.token_mask, "token_mask", ids, self.token_ids)
        if self.token_labels is None:
            return None
        path = self.token_labels
        labels = given.integers(path, "token_labels")
        given.refuse_length(labels, path, ids, self.token_ids)
        for place, (label, token) in enumerate(zip(labels, ids, strict=True)):
            if label not in (token, NOT_LEARNED):
                raise given.bad(
                    f"the label {label:,} at position {place:,} of {path!r} is neither the token id {token:,} nor {NOT_LEARNED}. A label stands at "
                    "the position of its token, because models and trainers shift the labels themselves",
                    path,
                )
        return [label != NOT_LEARNED for label in labels]


@dataclass(frozen=True)
class _Row:
    """Values of a row, with what an error names.

    Attributes:
        values: Value of each path, or `MISSING`.
        row: Row, for the names of its fields.
        sample_id: Id of the sample.
    """

    values: Mapping[str, Any]
    row: Mapping[str, Any]
    sample_id: str

    def bad(self, detail: str, path: str) -> BadRecord:
        return _bad(detail, self.sample_id, path)

    def integers(self, path: str, argument: str) -> list[int]:
        """Return the array of integers at a path, which an argument names."""
        value = self.values[path]
        if value is MISSING:
            raise self.bad(f"no field {path!r} for `{argument}`{unknown(path, self.row)}", path)
        expected = f"the field {path!r} of `{argument}` must be an array of integers"
        if type(value) is not list:
            raise self.bad(f"{expected}, got {json_type(value)}", path)
        if not {int}.issuperset(map(type, value)):
            place, item = next((place, item) for place, item in enumerate(value) if type(item) is not int)
            raise self.bad(f"{expected}, got {json_type(item)} at position {place:,}", path)
        return value

    def bits(self, path: str, argument: str, ids: Sequence[int], ids_path: str) -> list[bool]:
        """Return a mask with an entry for each id: 0 and 1, or booleans."""
        value = self.values[path]
        if type(value) is list and {bool}.issuperset(map(type, value)):
            value = list(map(int, value))
        else:
            value = self.integers(path, argument)
        self.refuse_length(value, path, ids, ids_path)
        if not {0, 1}.issuperset(value):
            place, bit = next((place, bit) for place, bit in enumerate(value) if bit not in (0, 1))
            raise self.bad(
                f"the mask in {path!r} must have the values 0 and 1, got {bit:,} at position {place:,}", path
            )
        return list(map(bool, value))

    def refuse_length(self, items: Sequence[int], path: str, ids: Sequence[int], ids_path: str) -> None:
        if len(items) != len(ids):
            raise self.bad(
                f"the field {path!r} has {len(items):,} values, but {ids_path!r} has {len(ids):,} token ids", path
            )


def ids_of_text(text: str) -> list[int]:
    """Return the token ids of a sample whose corpus was tokenized already.

    Args:
        text: Text of the sample: decimal numbers with one space between neighbours.

    Raises:
        CorpusError: The text is no list of ids.

    >>> ids_of_text("464 2068 11")
    [464, 2068, 11]
    """
    try:
        ids = orjson.loads(f"[{text.replace(' ', ',')}]")
    except orjson.JSONDecodeError:
        ids = []
    if not ids or not {int}.issuperset(map(type, ids)):
        raise CorpusError(
            f"the text {text[:60]!r} is no list of token ids: expected decimal numbers with one space between neighbours. Read samples of "
            "a corpus that was tagged with `token_ids`."
        )
    return ids


def offsets_of_text(text: str) -> Int[np.ndarray, "token 2"]:
    """Return the characters of a text of ids at which each id starts and ends.

    >>> offsets_of_text("464 11").tolist()
    [[0, 3], [4, 6]]
    """
    ends = np.append(np.flatnonzero(np.frombuffer(text.encode(), np.uint8) == ord(" ")), len(text))
    starts = np.append(0, ends[:-1] + 1)
    return np.stack([starts, ends], axis=1).astype(np.int64)


def _spans(words: Sequence[str], learned: Sequence[bool]) -> list[Span]:
    """Return the stretches of the text with the learned tokens. Neighbouring tokens share a stretch."""
    ends = accumulate(len(word) + 1 for word in words)
    spans: list[Span] = []
    for word, end, bit, before in zip(words, ends, learned, (False, *learned), strict=False):
        if bit:
            start = spans.pop()[0] if before else end - 1 - len(word)
            spans.append((start, end - 1))
    return spans


def _bad(detail: str, sample_id: str, path: str) -> BadRecord:
    return BadRecord("malformed-row", detail, sample_id, path)
