"""Texts to token ids, by a tokenizer of Hugging Face's `tokenizers`.

Truncation and padding of the tokenizer are turned off, so every token counts. A tokenizer with random merges (dropout) is refused.
"""

import os
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from skillshard import places, storage
from skillshard.corpus.template import Span
from skillshard.errors import TokensError
from skillshard.extras import needed
from skillshard.loss import answer_tokens

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

# About a quarter of a megabyte of texts: enough that the cost of a call does not count, and little memory.
TEXTS_AT_ONCE = 256
"""Number of texts that the tokenizer gets in one call."""
# A look-up passes over the tokens of the text, so many look-ups would take longer than all offsets.
MOST_LOOKED_UP = 16
"""Largest number of answers of a text whose tokens are looked up."""
CHARS_SEARCHED = 8
"""Number of characters in which a token is looked up. White space often has no token."""
_CONVERT = (
    "AutoTokenizer.from_pretrained(DIR).save_pretrained(OUT) of transformers writes the tokenizer.json of a model. If no tokenizer.json can be made, "
    "tokenize the corpus yourself: skillshard takes token ids too."
)
"""Remedy for a tokenizer of another library or form."""


def open_tokenizer(source: "str | os.PathLike[str] | Tokenizer | PreTrainedTokenizerFast") -> "Tokenizer":
    """Open a tokenizer from its file, or copy a tokenizer, and turn truncation and padding off.

    Args:
        source: Path or URI of a tokenizer.json, directory of a tokenizer.json, a `tokenizers.Tokenizer`, or a fast tokenizer of transformers. An object
            stays unchanged.

    Raises:
        TokensError: The source is not a tokenizer, or the tokenizer merges at random.
        ExtraError: The package `tokenizers` is not installed.
        StorageError: The file cannot be read.
    """
    needed("tokens", what="A tokenizer")
    from tokenizers import Tokenizer

    if isinstance(source, str | os.PathLike):
        name, text = places.public(source), _tokenizer_text(source)
    else:
        # A fast tokenizer of transformers holds a tokenizer of this package. transformers itself is not imported for the test.
        own = getattr(source, "backend_tokenizer", source)
        if not isinstance(own, Tokenizer):
            raise TokensError(
                f"the tokenizer is of type {type(source).__module__}.{type(source).__qualname__}: give a tokenizer of Hugging Face's tokenizers, a fast "
                f"tokenizer of transformers, or the path of a tokenizer.json. {_CONVERT}"
            )
        name, text = "the tokenizer", own.to_str()
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise TokensError(f"{name} is no tokenizer of Hugging Face's tokenizers: {error}. {_CONVERT}") from error
    if getattr(tokenizer.model, "dropout", None):
        raise TokensError(
            f"{name} merges at random (dropout {tokenizer.model.dropout}), so a text has no fixed number of tokens. Set "
            "model.dropout to null in a copy of the file."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokenizer_text(place: str | os.PathLike[str]) -> str:
    if not places.is_remote(place) and os.path.isdir(place):
        place = places.join(place, "tokenizer.json")
        if not os.path.exists(place):
            raise TokensError(f"{places.public(place)} is not there. {_CONVERT}")
    try:
        return storage.read_bytes(place).decode()
    except UnicodeDecodeError as error:
        raise TokensError(f"{places.public(place)} is not text, and so no tokenizer.json: {error}.") from error


def encode(
    tokenizer: "Tokenizer",
    texts: Sequence[str],
    *,
    special_tokens: bool,
    name_of: Callable[[int], str] = lambda index: f"text {index}",
) -> list[list[int]]:
    """Return the token ids of each text.

    Args:
        tokenizer: Tokenizer from `open_tokenizer`.
        texts: Texts to encode.
        special_tokens: Whether the tokenizer adds its special tokens to each text.
        name_of: Function that names the text with a given index in an error.

    Raises:
        TokensError: The tokenizer has no token for a part of a text, and no unknown token.

    The function runs in one thread unless the environment sets TOKENIZERS_PARALLELISM. The workers of a job or a loader already run
    in parallel, and threads from before a fork would be missing in the child.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ids = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = list(texts[start : start + TEXTS_AT_ONCE])
        try:
            # The fast variant does not compute offsets, which only `encode_with_answers` needs.
            ids += [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=special_tokens)]
        except Exception as error:  # the package raises nothing narrower
            raise TokensError(_untokenized(tokenizer, batch, start, name_of, str(error))) from error
    return ids


def _untokenized(
    tokenizer: "Tokenizer", texts: Sequence[str], start: int, name_of: Callable[[int], str], reason: str
) -> str:
    """Return the error for the first text of a batch that the tokenizer cannot encode.

    Args:
        tokenizer: Tokenizer that failed on the batch.
        texts: Texts of the batch.
        start: Index of the first text of the batch.
        name_of: Function that names the text with a given index.
        reason: Reason of the failure on the batch, used if each text alone can be encoded.
    """
    # An error on a batch does not say which text is at fault, so each text is tried by itself.
    name = "a text"
    for index, text in enumerate(texts, start=start):
        try:
            tokenizer.encode(text)
        except Exception as error:  # the package raises nothing narrower
            name, reason = name_of(index), str(error)
            break
    return (
        f"{name} cannot be encoded by the tokenizer: {reason.rstrip('.')}. Give a tokenizer with an unknown token, or a tokenizer that "
        "falls back to bytes."
    )


def encode_with_answers(
    tokenizer: "Tokenizer",
    texts: Sequence[str],
    spans: Sequence[Sequence[Span]],
    *,
    special_tokens: bool,
    name_of: Callable[[int], str] = lambda index: f"text {index}",
) -> "list[tuple[list[int], Bool[np.ndarray, ' token']]]":
    """Return the token ids of each text, and the mask of the tokens that reach into an answer, as `skillshard.loss.answer_tokens` marks these tokens.

    Args:
        spans: Answers of each text in characters, rising.
        tokenizer, texts, special_tokens, name_of: As in `encode`.

    Raises:
        TokensError: As in `encode`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoded = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = list(texts[start : start + TEXTS_AT_ONCE])
        try:
            encodings = tokenizer.encode_batch(batch, add_special_tokens=special_tokens)
        except Exception as error:  # the package raises nothing narrower
            raise TokensError(_untokenized(tokenizer, batch, start, name_of, str(error))) from error
        for text, encoding, answers in zip(batch, encodings, spans[start : start + TEXTS_AT_ONCE], strict=True):
            # Special tokens have no place in the text, so their neighbours say nothing about them.
            mask = None if special_tokens else _mask_by_look_up(encoding, len(text), answers)
            if mask is None:
                offsets = encoding.offsets
                # Half the time of an array of a list of pairs.
                flat = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets))
                mask = answer_tokens(flat.reshape(-1, 2), answers)
            encoded.append((encoding.ids, mask))
    return encoded


def _mask_by_look_up(
    encoding: "Encoding", num_chars: int, answers: Sequence[Span]
) -> Bool[np.ndarray, " token"] | None:
    """Return the mask of `answer_tokens` by looking up the tokens at the ends of the answers, or None if that would take longer.

    The offsets of all tokens as Python objects take a fifth of the time of the tokenizer. The offsets of tokens rise, so the tokens of an
    answer are neighbours, and a token near each end is enough to find them.

    Args:
        encoding: Text without added special tokens.
        num_chars: Number of characters of the text.
        answers: Answers in characters, rising.
    """
    if len(answers) > MOST_LOOKED_UP:
        return None
    mask = np.zeros(len(encoding), bool)
    for begin, end in answers:
        first, last = _token_near(encoding, begin, num_chars), _token_near(encoding, end, num_chars)
        if first is None or last is None:
            return None
        # Tokens without characters have no look-up, and several tokens may stand for one character. So both bounds move to their places.
        while first < len(mask) and _chars(encoding, first)[1] <= begin:
            first += 1
        while first and _chars(encoding, first - 1)[1] > begin:
            first -= 1
        while last < len(mask) and _chars(encoding, last)[0] < end:
            last += 1
        while last and _chars(encoding, last - 1)[0] >= end:
            last -= 1
        mask[first:last] = True
    # A token at character 0 without characters, as a prefix of the tokenizer may be, counts as a special token.
    number = 0
    while answers[0][0] == 0 and number < len(mask) and _chars(encoding, number)[1] == 0:
        mask[number] = True
        number += 1
    return mask


def _token_near(encoding: "Encoding", char: int, num_chars: int) -> int | None:
    """Return the first token at a character or soon after, or the number of tokens at the end of the text. None: many characters have no token."""
    for near in range(char, min(char + CHARS_SEARCHED, num_chars)):
        number = encoding.char_to_token(near)
        if number is not None:
            return int(number)
    return len(encoding) if char + CHARS_SEARCHED >= num_chars else None


def _chars(encoding: "Encoding", number: int) -> tuple[int, int]:
    """Return the characters at which a token starts and ends. A token without characters belongs to the character before it."""
    chars = encoding.token_to_chars(number)
    assert chars is not None  # the number is below the number of tokens
    start, end = chars
    return min(start, end - 1), end


def num_ids(tokenizer: "Tokenizer") -> int:
    """Return the number of ids of a tokenizer: its largest id, and 1. A vocabulary may have gaps.

    Raises:
        TokensError: The tokenizer has no token.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if not ids:
        raise TokensError("the tokenizer has no token: its vocabulary is empty. Give a trained tokenizer.")
    return max(ids) + 1
