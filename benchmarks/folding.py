"""Measure the cost of folding and hashing a text, by the definition and by the fast way of `skillshard shard`.

    python benchmarks/folding.py FILE.jsonl...

Prints, for each file, the microseconds of CPU time for each kB of UTF-8. Texts of ASCII letters alone are measured apart from all other
texts. Each figure is the best of `ROUNDS`, and the two ways take turns, so that another load on the machine meets both ways.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson

from skillshard.shards.texts import hex_of, text_hash, text_hashes

ROUNDS = 9


def seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def measure(texts: list[str]) -> tuple[float, float]:
    """Return the microseconds for each kB by the definition, and by the fast way."""
    encoded = [text.encode() for text in texts]
    assert hex_of(text_hashes(encoded)) == [text_hash(text) for text in texts]
    both = [
        (seconds(lambda: [text_hash(text) for text in texts]), seconds(lambda: text_hashes(encoded)))
        for _ in range(ROUNDS)
    ]
    kilobytes = sum(map(len, encoded)) / 1000
    slow, fast = (min(column) / kilobytes * 1e6 for column in zip(*both, strict=True))
    return slow, fast


def main(places: list[str]) -> None:
    print("| file | texts | number | definition, us/kB | fast, us/kB |")
    print("|---|---|---:|---:|---:|")
    for place in places:
        texts = [orjson.loads(line)["text"] for line in Path(place).read_bytes().splitlines()]
        for name, chosen in (
            ("ASCII", [text for text in texts if text.isascii()]),
            ("others", [text for text in texts if not text.isascii()]),
        ):
            if chosen:
                slow, fast = measure(chosen)
                print(f"| {Path(place).name} | {name} | {len(chosen):,} | {slow:.1f} | {fast:.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
