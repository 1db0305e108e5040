"""Measure the cost of fields of the metadata in a batch, as ratios to a mixer without fields.

    python -m benchmarks.fields --work /tmp/bench-fields [--samples 20000] [--repeats 15] [--out benchmarks/results/fields.json]

The corpus has 4 skills of `--samples` texts of about 1 kB. The metadata of a sample is short (five values, 90 bytes) or long (a chat of
1.7 kB besides). The page cache is warm. All mixers run in one process and take turns, a round of 4,096 draws each. The measure is the
CPU time of a round, and the ratio is to the round without fields of the same turn.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixers import BATCH, MEMORY, ROUND_DRAWS, texts_of
from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.mixing.mixer import Mixer
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards

NUM_SKILLS = 4
CHAT = [{"role": role, "content": "words and more words " * 12} for role in ("user", "assistant") * 3]
FIELDS: dict[str, tuple[str, ...]] = {
    "no fields": (),
    "id": ("id",),
    "id and two fields": ("id", "meta.prompt_chars", "meta.image"),
    "a nested field": ("meta.source.site",),
}
WHOLE = "the whole metadata"


def prepare(place: Path, num: int, *, is_long: bool) -> ShardSet:
    """Write the shards, unless they exist."""
    if (place / "shards" / "manifest.json").exists():
        return ShardSet.open(place / "shards")
    (place / "corpus").mkdir(parents=True, exist_ok=True)
    for skill in range(NUM_SKILLS):
        rows = (
            {
                "id": f"{skill}-{number:07d}",
                "text": text,
                "skill": f"skill-{skill}",
                "prompt_chars": number % 50,
                "image": f"images/{number}.png",
                "source": {"site": "example.org", "year": 2020},
                **({"chat": CHAT} if is_long else {}),
            }
            for number, text in enumerate(texts_of(skill, num))
        )
        (place / "corpus" / f"{skill}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    corpus = Corpus.open(place / "corpus")
    tags = taggers.tag_corpus(corpus, taggers.metadata("skill"), place / "tags")
    return write_shards(corpus, tags, place / "shards", holdout=0.0)


def rounds_of(shards: ShardSet, fields: tuple[str, ...], *, whole: bool = False) -> Callable[[int], None]:
    """Make a function that reads a round in batches. With `whole`, the function reads the whole metadata too."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as ledger:
        mixer = Mixer(shards, stratified(), ledger=Path(ledger) / "run", round_draws=ROUND_DRAWS, fields=fields)
        for number in range(64):
            mixer.round(number)

    def read(number: int) -> None:
        for first in range(number * ROUND_DRAWS, (number + 1) * ROUND_DRAWS, BATCH):
            batch = mixer.batch(first, BATCH)
            assert len(batch.text) == BATCH and list(batch.fields) == list(fields)
            if whole:
                mixer.samples.metas(mixer.find(batch.draw))

    return read


def measure(shards: ShardSet, repeats: int) -> dict[str, list[float]]:
    """Return the CPU nanoseconds of a sample in each turn, by kind."""
    readers = {name: rounds_of(shards, fields, whole=False) for name, fields in FIELDS.items()}
    readers[WHOLE] = rounds_of(shards, (), whole=True)
    times: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(repeats + 1):
        for name, read in readers.items():
            begun = time.process_time()
            read(number)
            # The first turn opens and checks the shards.
            if number:
                times[name].append((time.process_time() - begun) / ROUND_DRAWS * 1e9)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=15, choices=range(1, 60), metavar="N")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": platform.platform(), "python": platform.python_version()}
    for kind in ("short", "long"):
        times = measure(prepare(args.work / kind, args.samples, is_long=kind == "long"), args.repeats)
        results[kind] = {}
        for name, values in times.items():
            ratios = np.array(values) / np.array(times["no fields"])
            low, middle, high = np.percentile(ratios, [10, 50, 90]).round(2).tolist()
            results[kind][name] = {
                "ns": round(statistics.median(values)),
                "ratio": middle,
                "ratio_10_to_90_percent": [low, high],
            }
            print(
                f"{kind:5} metadata, {name:18}: {statistics.median(values):6,.0f} ns, ratio {middle} ({low} to {high})"
            )
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
