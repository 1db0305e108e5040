"""The generated corpora of the checks of a GPU, and the amount of work of the checks."""

import contextlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import checked, command_of

EOS = "<|endoftext|>"
VOCAB_SIZE = 8000


@dataclass(frozen=True)
class Size:
    """The amount of work of the checks.

    Attributes:
        texts: Number of texts of each of the 8 topics, of about 1 kB each.
        chains: Number of LEGO samples.
        steps: Optimizer steps of a trial.
        trials: Trials of the loss tagger, and seeds of the graph.
        example_steps: Optimizer steps of an example.
        layers, width: Size of the model whose training is timed.
        blocks, block_tokens: Blocks of a step, and tokens of a block.
        timed_steps: Timed steps, after a tenth as many steps of warm-up.
        workers: Numbers of loader processes to try.
    """

    texts: int
    chains: int
    steps: int
    trials: int
    example_steps: int
    layers: int
    width: int
    blocks: int
    block_tokens: int
    timed_steps: int
    workers: tuple[int, ...]


FULL = Size(1500, 12_000, 200, 3, 100, 12, 768, 16, 1024, 60, (0, 2, 4, 8))
SMALL = Size(60, 2000, 8, 2, 20, 1, 32, 2, 64, 10, (0, 2))


@dataclass(frozen=True)
class Plan:
    """The arguments of all checks."""

    work: Path
    device: str
    size: Size
    encoder: str | None


def make_corpora(plan: Plan) -> dict[str, Any]:
    """Write 8 topics of generated words and a LEGO corpus, and tag and shard both."""
    write_topics(plan.work / "topics", plan.size.texts)
    checked(command_of("synth", "lego", "--k", "3", "--samples", plan.size.chains, "--out", plan.work / "lego"))
    for corpus, field in (("topics", "meta.topic"), ("lego", "meta.skill")):
        tags, shards = plan.work / f"{corpus}-tags", plan.work / f"{corpus}-shards"
        checked(command_of("tag", "metadata", plan.work / corpus, "--field", field, "--out", tags))
        checked(command_of("shard", plan.work / corpus, "--tags", tags, "--holdout", "0.1", "--out", shards))
    return {"bytes": sum(place.stat().st_size for place in (plan.work / "topics").iterdir())}


def write_topics(folder: Path, num_texts: int, *, num_topics: int = 8, seed: int = 0) -> None:
    """Write texts of about 1 kB: half of the words belong to the topic of the text, half to all topics. Common words are short."""
    chance = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "an", "el")]

    def words(num: int) -> list[str]:
        return ["".join(chance.choices(syllables, k=1 + number * 3 // num)) for number in range(num)]

    shared, topics = words(4000), [words(1500) for _ in range(num_topics)]
    folder.mkdir(parents=True, exist_ok=True)
    for topic, own in enumerate(topics):
        with (folder / f"topic-{topic}.jsonl").open("w") as lines:
            for number in range(num_texts):
                text = [chance.choice((own, shared)) for _ in range(180)]
                words_of_text = " ".join(source[int(len(source) * chance.random() ** 3)] for source in text)
                sample = {"id": f"{topic}-{number}", "text": words_of_text, "meta": {"topic": f"topic-{topic}"}}
                lines.write(json.dumps(sample) + "\n")


def samples_of(corpus: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of all files in turn, so that the first samples come from all topics."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(place.open()) for place in sorted(corpus.glob("*.jsonl"))]
        for lines in zip(*files, strict=True):
            yield from map(json.loads, lines)


def trained_tokenizer(texts: Iterable[str]) -> Any:
    """Train a BPE tokenizer of 8,000 entries, of bytes as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
