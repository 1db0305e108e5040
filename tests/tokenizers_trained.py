"""Small tokenizers, trained where the test runs."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

EOS = "<eos>"


def byte_tokenizer(texts: Iterable[str], *, vocab_size: int = 300) -> Tokenizer:
    """Byte-level BPE: every text has tokens, and can be decoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Only these words have tokens; a text without any has none."""
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate([EOS, *words])}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same, putting <bos> before each text."""
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", changed.token_to_id("<bos>"))]
    )
    return changed


def save(tokenizer: Tokenizer, place: Path) -> Path:
    tokenizer.save(str(place))
    return place
