"""Texts to token ids, by a tokenizer of Hugging Face's `tokenizers`.

Truncation and padding of the tokenizer are turned off, so every token counts. A tokenizer with random merges (dropout) is refused.
"""

import os
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from skillshard import places, storage
from skillshard.errors import TokensError
from skillshard.extras import needed

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# About a quarter of a megabyte of texts: enough that the cost of a call does not count, and little memory.
TEXTS_AT_ONCE = 256
"""Number of texts that the tokenizer gets in one call."""
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
            # The fast variant does not compute offsets, which only `encode_with_offsets` needs.
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


def encode_with_offsets(
    tokenizer: "Tokenizer",
    texts: Sequence[str],
    *,
    special_tokens: bool,
    name_of: Callable[[int], str] = lambda index: f"text {index}",
) -> "list[tuple[list[int], Int[np.ndarray, 'token 2']]]":
    """Return the token ids of each text, and the characters of the text at which each token starts and ends.

    A special token starts and ends at 0. Arguments and errors are as in `encode`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoded = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = list(texts[start : start + TEXTS_AT_ONCE])
        try:
            encodings = tokenizer.encode_batch(batch, add_special_tokens=special_tokens)
        except Exception as error:  # the package raises nothing narrower
            raise TokensError(_untokenized(tokenizer, batch, start, name_of, str(error))) from error
        for encoding in encodings:
            offsets = encoding.offsets
            # Half the time of an array of a list of pairs.
            flat = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets))
            encoded.append((encoding.ids, flat.reshape(-1, 2)))
    return encoded


def num_ids(tokenizer: "Tokenizer") -> int:
    """Return the number of ids of a tokenizer: its largest id, and 1. A vocabulary may have gaps.

    Raises:
        TokensError: The tokenizer has no token.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if not ids:
        raise TokensError("the tokenizer has no token: its vocabulary is empty. Give a trained tokenizer.")
    return max(ids) + 1
