"""Compare the layouts of shards: bytes on disk, CPU time of a mixed round, of the writing, and of the package webdataset.

    python -m benchmarks.layouts --work /tmp/bench-layouts [--samples 20000] [--repeats 15] [--out benchmarks/results/layouts.json]

The corpus has 4 skills of `--samples` texts each, of about 1 kB (lognormal) or of 43 bytes. The page cache is warm. Both layouts run in one
process and take turns: a round of 4,096 draws in batches of 256, with and without the field of the id. The measure is the CPU time, and the
ratio is to the layout `pairs` of the same turn. The writing and the reading by webdataset take turns in the same way, `--repeats` / 5 times.
"""

import argparse
import json
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fields import rounds_of
from benchmarks.mixers import ROUND_DRAWS, texts_of
from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.errors import RepetitionWarning
from skillshard.execution import Backend
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import Layout
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards
from skillshard.tags import Tags

NUM_SKILLS = 4
SHORT_BYTES = 43
HERE = Backend(workers=1)


def prepare(place: Path, num: int, *, is_short: bool) -> tuple[Corpus, Tags]:
    """Write the corpus and its tags, unless they exist."""
    (place / "corpus").mkdir(parents=True, exist_ok=True)
    for skill in range(NUM_SKILLS):
        texts = [
            f"{text[: SHORT_BYTES - 8]}{number:08d}" if is_short else text
            for number, text in enumerate(texts_of(skill, num))
        ]
        rows = (
            json.dumps({"id": f"skill-{skill}-{number:08d}", "text": text, "skill": f"skill-{skill}"})
            for number, text in enumerate(texts)
        )
        (place / "corpus" / f"{skill}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    corpus = Corpus.open(place / "corpus")
    return corpus, taggers.tag_corpus(corpus, taggers.metadata("skill"), place / "tags", backend=HERE)


def written(corpus: Corpus, tags: Tags, out: Path, layout: Layout) -> ShardSet:
    shutil.rmtree(out, ignore_errors=True)
    return write_shards(corpus, tags, out, layout=layout, holdout=0.0, backend=HERE, progress=False)


def bytes_on_disk(shards: ShardSet) -> dict[str, float]:
    """Return the bytes of all files, and of the tars alone, for each byte of text."""
    files = [path for path in Path(shards.root).rglob("*") if path.is_file()]
    num_text = sum(
        int(skill.index(shard)["text_bytes"].sum(dtype=np.int64))
        for skill in shards.train.values()
        for shard in range(len(skill.shard_rows))
    )
    num_samples = sum(map(len, shards.train.values()))
    of_all, of_tars = (
        sum(path.stat().st_size for path in files if path.suffix in suffixes)
        for suffixes in ((".tar", ".npy", ".json"), (".tar",))
    )
    return {
        "all files": round(of_all / num_text, 3),
        "tars": round(of_tars / num_text, 3),
        "bytes of a sample": round(of_all / num_samples),
    }


def by_webdataset(shards: ShardSet) -> Callable[[int], None]:
    """Make a function that reads the texts of the first skill with the package webdataset."""
    import webdataset

    skill = next(iter(shards.train.values()))
    urls = [str(Path(shards.root) / skill.name(shard)) for shard in range(len(skill.shard_rows))]

    def read(_: int) -> None:
        assert sum(len(sample["txt"]) > 0 for sample in webdataset.WebDataset(urls, shardshuffle=False)) == len(skill)

    return read


def writer(corpus: Corpus, tags: Tags, out: Path, layout: Layout) -> Callable[[int], Any]:
    """Make a function that writes the shards anew."""
    return lambda _: written(corpus, tags, out, layout)


def turns(readers: dict[Layout, Callable[[int], Any]], repeats: int) -> dict[Layout, list[float]]:
    """Return the CPU seconds of each turn. The first turn warms up."""
    times: dict[Layout, list[float]] = {layout: [] for layout in readers}
    for number in range(repeats + 1):
        for layout, read in readers.items() if number % 2 else reversed(readers.items()):
            begun = time.process_time()
            read(number)
            if number:
                times[layout].append(time.process_time() - begun)
    return times


def shown(title: str, times: dict[Layout, list[float]], num: int) -> dict[str, Any]:
    ratios: Sequence[float] = np.array(times["compact"]) / np.array(times["pairs"])
    low, middle, high = np.percentile(ratios, [10, 50, 90]).round(3).tolist()
    nanoseconds = {layout: round(float(np.median(values)) / num * 1e9) for layout, values in times.items()}
    print(f"{title:32} {nanoseconds}: compact / pairs {middle} ({low} to {high})", flush=True)
    return {"ns": nanoseconds, "ratio": middle, "ratio_10_to_90_percent": [low, high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=15, choices=range(5, 60), metavar="N")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore", RepetitionWarning)  # 64 rounds pass over a small corpus several times
    results: dict[str, Any] = {"machine": platform.platform(), "python": platform.python_version()}
    for kind in ("1 kB", "43 bytes"):
        corpus, tags = prepare(args.work / kind, args.samples, is_short=kind == "43 bytes")
        shards = {layout: written(corpus, tags, args.work / kind / layout, layout) for layout in LAYOUTS}
        figures: dict[str, Any] = {
            "bytes on disk": {layout: bytes_on_disk(layout_shards) for layout, layout_shards in shards.items()}
        }
        print(kind, figures["bytes on disk"])
        num = NUM_SKILLS * args.samples
        for fields in ((), ("id",)):
            name = f"a mixed sample, {'with id' if fields else 'text alone'}"
            readers = {layout: rounds_of(layout_shards, fields) for layout, layout_shards in shards.items()}
            figures[name] = shown(f"{kind}: {name}", turns(readers, args.repeats), ROUND_DRAWS)
        foreign = {layout: by_webdataset(layout_shards) for layout, layout_shards in shards.items()}
        figures["webdataset"] = shown(f"{kind}: webdataset", turns(foreign, args.repeats // 5), args.samples)
        writers = {layout: writer(corpus, tags, args.work / kind / "again", layout) for layout in LAYOUTS}
        figures["writing"] = shown(f"{kind}: writing", turns(writers, args.repeats // 5), num)
        results[kind] = figures
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
