"""Measure the speed of the taggers that find skills: cost of encoding, k-means at scale. `benchmarks.clusters` measures the quality.

    python -m benchmarks.taggers overhead --corpora CORPORA --work /tmp/bench --encoder MODEL --out ...
    python -m benchmarks.taggers scale    --work /tmp/bench --out ...

overhead: CPU-seconds of skillshard's encoding over CPU-seconds of bare `SentenceTransformer.encode` on the same texts, in turn, on one
    thread.
scale: a million vectors of 384 dimensions, in 10 parts, into 256 clusters, on two processes. The stages are sample, start, steps over all
    vectors and assignment. The figures are wall and CPU seconds, and the largest memory of a process.

Each section is written under its name in --out, with the machine. The other sections of the file stay.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixers import save_section
from skillshard import taggers
from skillshard.artefact import Work
from skillshard.corpus import Corpus, CorpusReading, Sample, read_partition
from skillshard.execution import Backend
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.embeddings import sample_vectors
from skillshard.taggers.clusters.fit import assign_rows, fit_clusters
from skillshard.taggers.tagger import Search


def cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the encoder of skillshard with bare encode, in turn."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    rows = [
        row for part in Corpus.open(arguments.corpora / "instructions").partitions()[:1] for row in read_partition(part)
    ]
    texts = [row.text for row in rows if isinstance(row, Sample)][: arguments.texts]
    bare, ours = (
        SentenceTransformer(arguments.encoder, device="cpu"),
        taggers.sentence_encoder(arguments.encoder, device="cpu"),
    )
    turns = []
    for turn in range(3):
        times = {}
        for name, encode in (
            ("bare", lambda: bare.encode(texts, batch_size=32, normalize_embeddings=True)),
            ("ours", lambda: ours.encode(texts)),
        ):
            before_s = time.process_time()
            vectors = encode()
            times[name] = time.process_time() - before_s
            times[f"{name}_vectors"] = vectors
        least = float((times.pop("bare_vectors") * times.pop("ours_vectors")).sum(axis=1).min())
        turns.append({**times, "ratio": times["ours"] / times["bare"], "least_cosine": least})
        print(turn, turns[-1], flush=True)
    return {"texts": len(texts), "turns": turns, "ratio": statistics.median(turn["ratio"] for turn in turns)}


def scale(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run stages 4 and 5 of taggers/clusters/tagger.py, the stages of fit.py, on vectors that exist already."""
    num, dim, parts, skills = arguments.vectors, 384, 10, 256
    folder = arguments.work / f"vectors-{num}"
    places = [str(folder / f"{number:06d}.npy") for number in range(parts)]
    random = np.random.default_rng(0)
    centres = random.normal(size=(skills, dim)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    for number, place in enumerate(places):
        if not Path(place).exists():
            points = (
                centres[random.integers(0, skills, num // parts)]
                + random.normal(size=(num // parts, dim)).astype(np.float32) * 1.5
            )
            points /= np.linalg.norm(points, axis=1, keepdims=True)
            np.save(place, points.astype(np.float16))
            print("wrote part", number, flush=True)
    work = Work(arguments.work / f"scale-{time.time_ns()}", "tags.json")
    search = Search([], CorpusReading(), "stop", work, Backend(workers=2), lambda name, num: lambda task, record: None)
    num_rows = [num // parts] * parts
    started_s, before_s = time.monotonic(), cpu_s()
    marks = {}
    sample = sample_vectors(places, num_rows, kmeans.sample_size(skills), seed=0)
    fitted = fit_clusters(
        search,
        places,
        sample,
        skills=skills,
        skills_range=(2, skills),
        min_share=0.0,
        seed=0,
        covers_all=False,
    )
    marks["fit_s"] = round(time.monotonic() - started_s, 1)
    records = assign_rows(search, places, fitted.clusters, "assign")
    wall_s = time.monotonic() - started_s
    counts = np.sum([record["counts"] for record in records], axis=0)
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "vectors": num,
        "dim": dim,
        "clusters": skills,
        "sample": len(sample.row),
        "wall_s": round(wall_s, 1),
        **marks,
        "cpu_s": round(cpu_s() - before_s, 1),
        "most_memory_of_a_process_mb": round(most / 1000),
        "smallest_cluster": int(counts.min()),
        "mean_distance": float(np.sum([record["distances"] for record in records]) / counts.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument(
        "--corpora", type=Path, default=Path("corpora"), help="folder of the real texts, CORPUS/*.jsonl"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for tags and vectors, which a second call uses again"
    )
    parser.add_argument("--encoder", help="a sentence-transformers model")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    figures = SECTIONS[arguments.section](arguments)
    print(json.dumps(figures, indent=2))
    save_section(arguments.out, arguments.section, figures)


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "scale": scale,
}

if __name__ == "__main__":
    main()
