"""Sentence-transformers models of other kinds than MiniLM: static embeddings, and tokenizers without a padding token."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from skillshard import taggers
from skillshard.report.clusters import compare
from skillshard.tags import Tags
from tests.commands import fails, works
from tests.tokenizers_trained import byte_tokenizer
from tests.topics import PLAIN, WORDS, topic_corpus

TEXTS = ["court statute appeal", "orbit rocket lunar telescope", "", "court statute", "unknownword"]


def word_tokenizer() -> Tokenizer:
    """Make a tokenizer with a token for each word of the topics. Like published tokenizers, the tokenizer truncates at 512 tokens."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([*WORDS.values(), " ".join(PLAIN)], trainer)
    tokenizer.enable_truncation(512)
    return tokenizer


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a static model like model2vec: a vector for each token, and short vectors for words without meaning."""
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:  # the place of the class before sentence-transformers 5.4
        from sentence_transformers.models import StaticEmbedding

    tokenizer = word_tokenizer()
    vectors = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 32)).astype(np.float32)
    for topic in WORDS.values():
        words = [tokenizer.token_to_id(word) for word in topic.split()]
        vectors[words] += 2 * vectors[words[0]]
    vectors[[tokenizer.token_to_id(word) for word in PLAIN]] *= 0.1
    folder = tmp_path_factory.mktemp("static")
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, vectors)], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def without_padding(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a tiny GPT-2 with mean pooling, whose tokenizer has no padding token."""
    from sentence_transformers import SentenceTransformer
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:
        from sentence_transformers.models import Pooling, Transformer

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(WORDS.values()), eos_token="<eos>")
    assert tokenizer.pad_token is None
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder / "gpt2")
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    GPT2Model(config).save_pretrained(folder / "gpt2")
    module = Transformer(str(folder / "gpt2"))
    SentenceTransformer(modules=[module, Pooling(16)], device="cpu").save(str(folder / "sentence"))
    return str(folder / "sentence")


def vectors_of(model: str, texts: list[str], **arguments: Any) -> np.ndarray:
    return taggers.sentence_encoder(model, device="cpu", **arguments).encode(texts)


def test_a_static_model_gives_the_vectors_that_the_library_gives(static: str) -> None:
    from sentence_transformers import SentenceTransformer

    ours = vectors_of(static, TEXTS)
    theirs = SentenceTransformer(static, device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.all(ours[2] == 0)  # a text without known words has no direction


def test_a_static_model_reads_as_many_tokens_as_it_is_told_to(static: str) -> None:
    first = vectors_of(static, TEXTS, max_length=2)
    np.testing.assert_allclose(first[0], first[3], atol=1e-6)
    mean = vectors_of(static, TEXTS, max_length=2, windows="mean")
    halves = vectors_of(static, ["orbit rocket", "lunar telescope"]).sum(axis=0)
    np.testing.assert_allclose(mean[1], halves / np.linalg.norm(halves), atol=1e-6)


def test_the_windows_of_a_static_model_are_cut_beyond_its_tokenizer_s_truncation(static: str) -> None:
    long = " ".join(["court"] * 600 + ["orbit"] * 600)
    court, orbit = vectors_of(static, ["court", "orbit"])
    (mean,) = vectors_of(static, [long], max_length=600, windows="mean")
    np.testing.assert_allclose(mean, (court + orbit) / np.linalg.norm(court + orbit), atol=1e-5)


def test_a_static_model_takes_the_prompt_and_the_data_type(static: str) -> None:
    np.testing.assert_allclose(
        vectors_of(static, ["appeal"], prompt="court "), vectors_of(static, ["court appeal"]), atol=1e-6
    )
    exact, rounded = vectors_of(static, TEXTS), vectors_of(static, TEXTS, dtype="bfloat16")
    assert 0 < np.abs(exact - rounded).max() < 0.02


def test_the_command_tags_by_a_static_model_and_goes_on_with_its_clusters(static: str, tmp_path: Path) -> None:
    corpus = topic_corpus(tmp_path / "C", 300)
    by = ("--workers", 1)
    works("tag", "embedding", corpus, *by, "--encoder", static, "--skills", 5, "--out", tmp_path / "T")
    tags = Tags.open(tmp_path / "T")
    assert compare(tags, "meta.topic").nmi > 0.9
    works("tag", "reuse", corpus, *by, "--clusters", tmp_path / "T", "--out", tmp_path / "again")
    again = Tags.open(tmp_path / "again")
    assert skill_counts(again) == skill_counts(tags)
    sentence = fails(
        "tag",
        "embedding",
        corpus,
        *by,
        "--encoder",
        static,
        "--skills",
        5,
        "--max-length",
        2**21,
        "--out",
        tmp_path / "X",
    )
    assert "takes from 1 to 1048576 tokens" in sentence


def skill_counts(tags: Tags) -> Counter[str | None]:
    return Counter(row.skill for part in range(len(tags.manifest.parts)) for row in tags.rows(part))


def test_a_tokenizer_without_a_padding_token_pads_what_is_masked(without_padding: str) -> None:
    """Texts of the same length need no padding. Each text alone has the vector of the text beside longer texts."""
    texts = ["court statute", "orbit rocket lunar telescope galaxy", "a"]
    together = vectors_of(without_padding, texts)
    alone = np.concatenate([vectors_of(without_padding, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    mean = vectors_of(without_padding, texts, max_length=3, windows="mean")
    np.testing.assert_allclose(np.linalg.norm(mean, axis=1), 1, atol=1e-5)
