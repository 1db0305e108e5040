"""Make small tokenizers, and shards whose samples have from 0 to 90 tokens."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.shards.tokens import write_tokens
from tests.conftest import HERE, tag_and_shard, write_corpus

EOS, BOS = "<eos>", "<bos>"


def byte_tokenizer(texts: Iterable[str], *, vocab_size: int = 300, separator: str = EOS) -> Tokenizer:
    """Train a byte-level BPE tokenizer. Every text has tokens, and can be decoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[separator, BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def letter_tokenizer() -> Tokenizer:
    """Make a tokenizer with a token for each letter that stands alone. Other text has no tokens."""
    tokens = [EOS, BOS, *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}))
    tokenizer.add_special_tokens([EOS, BOS])
    tokenizer.normalizer = normalizers.Replace(Regex("[^a-z ]"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with <bos> before each text when special tokens are added."""
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, changed.token_to_id(BOS))]
    )
    return changed


def save(tokenizer: Tokenizer, place: Path) -> Path:
    tokenizer.save(str(place))
    return place


def letters(skill: str, number: int, num: int) -> dict[str, Any]:
    """Make a sample of letters, which depend on skill and number. A sample without letters is a full stop."""
    start = number * 7 + len(skill)
    text = " ".join(chr(ord("a") + (start + position * (1 + number % 5)) % 26) for position in range(num)) or "."
    return {"id": f"{skill}-{number:04d}", "text": text, "meta": {"skill": skill}}


def uneven_shards(folder: Path) -> ShardSet:
    """Write skills of about 4, 10 and 20 tokens a sample. Some samples have no tokens, and some have several blocks of tokens."""
    records = [letters("add", number, number % 9) for number in range(300)]
    records += [letters("carry", number, 90 if number % 40 == 0 else 8 + number % 3) for number in range(150)]
    records += [letters("negate", number, 0 if number % 7 == 0 else 10 + number % 27) for number in range(40)]
    return tag_and_shard(write_corpus(folder / "corpus", records), folder, shard_bytes=60_000)


def counted(shards: ShardSet, folder: Path, *, special_tokens: bool = False) -> TokenSet:
    return write_tokens(shards, with_bos(letter_tokenizer()), folder, special_tokens=special_tokens, backend=HERE)
