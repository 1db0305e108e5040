"""Samples that are tokenized already: the ids of a row become the text, as decimal numbers with one space between neighbours.

So a sample of ids has a hash, a place in the order and a size as every other text has, and the shards need no other format. The labels of
a row become the spans of the answers in this text. `ids_of_text` gives the ids back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from jaxtyping import Bool, Int

from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.paths import MISSING, unknown
from skillshard.corpus.sample import json_type
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
        fields = _Row(values, row, sample_id)
        ids = fields.integers(self.token_ids, "token_ids")
        array = _array(ids)
        self._refuse_ids(array, sample_id)
        learned = self._learned(fields, array)
        if self.attention_mask is not None:
            attended = fields.bits(self.attention_mask, "attention_mask", len(ids), self.token_ids)
            if not attended.any():
                raise fields.bad(f"the mask in {self.attention_mask!r} is 0 for every token", self.attention_mask)
            ids = array[attended].tolist()
            learned = None if learned is None else learned[attended]
        # A JSON array differs from the text only in its brackets and commas, and orjson writes numbers ten times as fast as Python.
        text = orjson.dumps(ids)[1:-1].replace(b",", b" ").decode()
        if learned is None:
            return text, None
        if not learned.any():
            path = self.token_labels or self.token_mask or ""
            raise fields.bad(f"no token is learned: the labels in {path!r} mark no answer", path)
        return text, _spans(text, learned)

    def _refuse_ids(self, ids: np.ndarray, sample_id: str) -> None:
        path = self.token_ids
        if not len(ids):
            raise _bad(f"the token ids in {path!r} are an empty array", sample_id, path)
        limit = MAX_IDS if self.vocab_size is None else self.vocab_size
        if ids.min() >= 0 and ids.max() < limit:
            return
        place = int(np.argmax((ids < 0) | (ids >= limit)))
        token = int(ids[place])
        expected = f"ids below {limit:,}{'' if self.vocab_size is None else ', the `vocab_size`'}"
        fault = "is negative" if token < 0 else f"is too large, expected {expected}"
        raise _bad(f"the token id {token:,} at position {place:,} of {path!r} {fault}", sample_id, path)

    def _learned(self, given: "_Row", ids: Int[np.ndarray, " token"]) -> Bool[np.ndarray, " token"] | None:
        """Return whether each token is learned, or None without labels."""
        if self.token_mask is not None:
            return given.bits(self.token_mask, "token_mask", len(ids), self.token_ids)
        if self.token_labels is None:
            return None
        path = self.token_labels
        items = given.integers(path, "token_labels")
        given.refuse_length(len(items), path, len(ids), self.token_ids)
        labels = _array(items)
        learned = labels != NOT_LEARNED
        if (wrong := learned & (labels != ids)).any():
            place = int(np.argmax(wrong))
            raise given.bad(
                f"the label {items[place]:,} at position {place:,} of {path!r} is neither the token id {ids[place]:,} nor {NOT_LEARNED}. A label stands at "
                "the position of its token, because models and trainers shift the labels themselves",
                path,
            )
        return learned


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

    def bits(self, path: str, argument: str, num_ids: int, ids_path: str) -> Bool[np.ndarray, " token"]:
        """Return a mask with an entry for each id: 0 and 1, or booleans."""
        value = self.values[path]
        if type(value) is list and {bool}.issuperset(map(type, value)):
            items = np.array(value, np.int64)
        else:
            items = _array(self.integers(path, argument))
        self.refuse_length(len(items), path, num_ids, ids_path)
        bits = items == 1
        if (wrong := ~bits & (items != 0)).any():
            place = int(np.argmax(wrong))
            raise self.bad(
                f"the mask in {path!r} must have the values 0 and 1, got {items[place]:,} at position {place:,}", path
            )
        return bits

    def refuse_length(self, num_items: int, path: str, num_ids: int, ids_path: str) -> None:
        if num_items != num_ids:
            raise self.bad(
                f"the field {path!r} has {num_items:,} values, but {ids_path!r} has {num_ids:,} token ids", path
            )


def _array(values: Sequence[int]) -> np.ndarray:
    """Return integers as an array: of int64, or of objects for integers that int64 cannot hold."""
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array(values, object)


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
    ends = _ends(text)
    return np.stack([np.append(0, ends[:-1] + 1), ends], axis=1)


def _ends(text: str) -> Int[np.ndarray, " token"]:
    """Return the end of each id in a text of ids."""
    spaces = np.flatnonzero(np.frombuffer(text.encode(), np.uint8) == ord(" "))
    return np.append(spaces, len(text)).astype(np.int64, copy=False)


def _spans(text: str, learned: Bool[np.ndarray, " token"]) -> list[Span]:
    """Return the stretches of a text of ids with the learned tokens. Neighbouring tokens share a stretch.

    >>> _spans("464 2068 11 7", np.array([False, True, True, False]))
    [(4, 11)]
    """
    ends = _ends(text)
    padded = np.concatenate([[False], learned, [False]])
    bounds = np.flatnonzero(padded[1:] != padded[:-1])  # the first token of a stretch, and the token after the stretch
    starts = np.append(0, ends + 1)[bounds[::2]]
    return list(zip(starts.tolist(), ends[bounds[1::2] - 1].tolist(), strict=True))


def _bad(detail: str, sample_id: str, path: str) -> BadRecord:
    return BadRecord("malformed-row", detail, sample_id, path)
