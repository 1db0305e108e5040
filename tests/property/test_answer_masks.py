"""The mask of a tokenized text is the same whether the tokens of the answers are looked up or the offsets of all tokens are read."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from skillshard.corpus.template import Span
from skillshard.loss import answer_tokens
from skillshard.shards import tokenizers
from skillshard.shards.tokenizers import MOST_LOOKED_UP, encode_with_answers, open_tokenizer
from tests.tokenizers_trained import byte_tokenizer, letter_tokenizer

WORDS = ["ab", "abc é", "ne 🙂🙂", "çà", "b\n\n\ta", "    c", "日本語", "a" * 9, "e\u0301", "ﬁ", "\u200b", " "]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), min_size=1, max_size=12).map("".join).filter(bool)


def _with(tokenizer: Tokenizer, **parts: object) -> Tokenizer:
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def _byte_level(*, add_prefix_space: bool) -> Tokenizer:
    # The offsets of this post-processor leave out white space, so some tokens have no characters.
    return _with(
        byte_tokenizer(WORDS),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space),
        post_processor=processors.ByteLevel(trim_offsets=True),
    )


def _unigram(normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = _with(
        Tokenizer(models.Unigram()),
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
    )
    trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    return tokenizer


def _letters() -> Tokenizer:
    """Make a tokenizer that leaves out everything but letters, so that many characters have no token."""
    split = pre_tokenizers.Split(Regex("[a-z]"), "isolated")
    return _with(letter_tokenizer(), pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split]))


def _word_pieces() -> Tokenizer:
    tokenizer = _with(
        Tokenizer(models.WordPiece(unk_token="[UNK]")),
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


@lru_cache(1)
def trained() -> dict[str, Tokenizer]:
    made = {
        "bytes": byte_tokenizer(WORDS),
        "bytes, trimmed": _byte_level(add_prefix_space=False),
        "bytes, prefix and trimmed": _byte_level(add_prefix_space=True),
        "unigram": _unigram(normalizers.Sequence([])),
        "unigram, NFKD": _unigram(normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])),
        "unigram, stripped and prepended": _unigram(
            normalizers.Sequence([normalizers.Strip(), normalizers.Prepend("a")])
        ),
        "word pieces": _word_pieces(),
        "letters": _letters(),
    }
    return {name: open_tokenizer(tokenizer) for name, tokenizer in made.items()}


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, list[Span]]:
    text = draw(TEXTS)
    bounds = sorted(draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=8)))
    spans = [(begin, end) for begin, end in zip(bounds[::2], bounds[1::2], strict=False) if begin < end]
    return text, spans or [(0, len(text))]


def _expected(tokenizer: Tokenizer, text: str, spans: list[Span]) -> list[bool]:
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return answer_tokens(np.array(offsets, np.int64).reshape(-1, 2), spans).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", trained())
@given(cases=st.lists(texts_with_spans(), min_size=1, max_size=4))
def test_looked_up_tokens_are_those_of_all_offsets(name: str, cases: list[tuple[str, list[Span]]]) -> None:
    tokenizer = trained()[name]
    texts, spans = [text for text, _ in cases], [own for _, own in cases]
    encoded = encode_with_answers(tokenizer, texts, spans, special_tokens=False)
    assert [mask.tolist() for _, mask in encoded] == [_expected(tokenizer, *case) for case in cases]
    assert [ids for ids, _ in encoded] == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.parametrize(
    ("text", "spans", "is_looked_up"),
    [
        ("a b a b", [(2, 5)], True),
        ("a b a b", [(0, 7)], True),
        ("a" + " " * 30 + "b", [(1, 32)], False),  # many characters without a token
        ("a b " * MOST_LOOKED_UP, [(4 * number, 4 * number + 1) for number in range(MOST_LOOKED_UP)], True),
        ("a b " * 30, [(4 * number, 4 * number + 1) for number in range(MOST_LOOKED_UP + 1)], False),
    ],
)
def test_few_answers_with_tokens_near_their_ends_are_looked_up(
    text: str, spans: list[Span], is_looked_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(offsets: np.ndarray, own: list[Span]) -> np.ndarray:
        read.append(len(offsets))
        return answer_tokens(offsets, own)

    monkeypatch.setattr(tokenizers, "answer_tokens", counted)
    ((_, mask),) = encode_with_answers(trained()["letters"], [text], [spans], special_tokens=False)
    assert mask.tolist() == _expected(trained()["letters"], text, spans)
    assert bool(read) != is_looked_up
