"""Compare encoders on four corpora whose categories are known, and choose the settings of the lexical encoder.

    python -m benchmarks.clusters choose --corpora CORPORA --out benchmarks/results/clusters.json
    python -m benchmarks.clusters table  --corpora CORPORA --minilm DIRECTORY --static DIRECTORY --out ...

choose: NMI of every candidate of docs/LOG.md (2026-11-27, "the rule"), of the plain baseline and of the encoder before the choice.
table: NMI and ARI of the encoder before and after the choice, of the plain baselines, of a MiniLM and of a static model, with the CPU-seconds
    of encoding and of clustering. Encoding counts the fit of an encoder.
loss: the same for loss trajectories on the rows of `table`: three seeds of short trials, and with --long one seed of trials of the default length.
static: distil a static model with the package model2vec from a sentence-transformers model, into the directory --static.

All methods see the same rows, chosen by `keyed_random.distinct`: 4,000 of each corpus, and in `table` 1,000 of `instructions`.
The rows of `choose` and of `table` differ. BLAS and torch use one thread. `table` writes each corpus to --out as soon as it is measured.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, HashingVectorizer, TfidfVectorizer
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from benchmarks.mixers import save_section
from skillshard import keyed_random
from skillshard.corpus import Corpus, FieldMapping, Sample, read_partition
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.lexical import lexical
from skillshard.taggers.clusters.sentence_encoder import sentence_encoder
from skillshard.taggers.clusters.words import words_in

NUM_ROWS = 4000
SEEDS = (0, 1, 2)
MAX_CHARS = 16_384


@dataclass(frozen=True)
class Source:
    """A corpus with known categories: the fields of its rows, the field of the category, and the number of rows in the table."""

    text_field: str
    category: str
    id_field: str | None = "id"
    table_rows: int = NUM_ROWS


CORPORA = {
    "sources": Source("text", "source"),
    # On a busy machine a MiniLM took up to a second for a text, so the table has fewer rows of this corpus.
    "instructions": Source("text", "category", table_rows=1000),
    "banking77": Source("text", "category", None),
    "stackoverflow": Source("title", "tag", None),
}


@dataclass(frozen=True)
class Rows:
    """Texts with their categories."""

    texts: list[str]
    categories: list[str]

    @property
    def num_categories(self) -> int:
        return len(set(self.categories))


def chosen_rows(corpora: Path, name: str, purpose: str) -> Rows:
    """Read the rows of a corpus that serve a purpose, "choice" or "table"."""
    source = CORPORA[name]
    mapping = FieldMapping(id_field=source.id_field, text_field=source.text_field)
    partitions = Corpus.open(corpora / name, fields=mapping).partitions()
    reading = Corpus.open(corpora / name, fields=mapping).reading(16 << 20)
    samples = [row for part in partitions for row in read_partition(part, reading) if isinstance(row, Sample)]
    num_rows = source.table_rows if purpose == "table" else NUM_ROWS
    rows = keyed_random.distinct(num_rows, len(samples), purpose, 0)
    chosen = [samples[row] for row in rows]
    return Rows([sample.text for sample in chosen], [str(sample.meta[source.category]) for sample in chosen])


# --- the candidates -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Settings of a lexical encoder.

    Attributes:
        terms: "words", "pairs" (words and pairs of words), "prefixes" (words cut to six characters) or "marks" (words, marks and pairs, as
            before the choice).
        dim: Number of dimensions.
        power: Power of the singular value by which a direction is divided.
        plus_one: Whether the rarity of a term has the summand 1.
    """

    terms: str
    dim: int
    power: float
    plus_one: bool = True

    def __str__(self) -> str:
        return f"{self.terms} {self.dim} {'root' if self.power else 'svd'} {'idf+1' if self.plus_one else 'idf'}"


TERMS = ("words", "pairs", "prefixes")
CANDIDATES = [
    *(Candidate(*settings) for settings in itertools.product(TERMS, (100, 200), (0.0, 0.5))),
    *(Candidate(terms, 100, power, False) for terms, power in itertools.product(TERMS, (0.0, 0.5))),
]
BEFORE = Candidate("marks", 64, 0.5)
"""The encoder before the choice: punctuation marks and stop words are terms."""


def words(text: str) -> list[str]:
    return [word for word in words_in(text[:MAX_CHARS]) if word not in ENGLISH_STOP_WORDS]


def words_and_pairs(text: str) -> list[str]:
    single = words(text)
    return single + [" ".join(pair) for pair in itertools.pairwise(single)]


def prefixes(text: str) -> list[str]:
    return [word[:6] for word in words(text)]


def counts_of(terms: str, texts: Sequence[str]) -> Any:
    """Count hashed terms, damped as 1 + log."""
    hashing: dict[str, Any] = {"n_features": 1 << 18, "alternate_sign": False, "norm": None, "dtype": np.float32}
    if terms == "marks":
        vectorizer = HashingVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", **hashing)
    else:
        analyzers: dict[str, Callable[[str], list[str]]] = {
            "words": words,
            "pairs": words_and_pairs,
            "prefixes": prefixes,
        }
        vectorizer = HashingVectorizer(analyzer=analyzers[terms], **hashing)
    counts = vectorizer.transform([text[:MAX_CHARS] for text in texts])
    counts.data = 1 + np.log(counts.data)
    return counts


def directions(counts: Any, *, plus_one: bool, dim: int, seed: int) -> tuple[Any, Any, Any]:
    """Return the weighted counts, the singular values and the directions."""
    num_texts = np.bincount(counts.indices, minlength=counts.shape[1])
    enough = np.flatnonzero(num_texts >= 2)
    columns = np.sort(enough[np.argsort(-num_texts[enough], kind="stable")[: 1 << 16]])
    rarity = np.log((1 + counts.shape[0]) / (1 + num_texts[columns])) + plus_one
    weighted = normalize(counts[:, columns].multiply(rarity).tocsr())
    _, sizes, axes = randomized_svd(weighted, min(dim, *weighted.shape), n_iter=4, random_state=seed)
    return weighted, sizes, axes


def vectors_of(weighted: Any, sizes: Any, axes: Any, candidate: Candidate) -> Float[np.ndarray, "text dim"]:
    scale = np.maximum(sizes, 1e-6 * sizes[0])[: candidate.dim] ** candidate.power
    return normalize(np.asarray(weighted @ (axes[: candidate.dim] / scale[:, None]).T)).astype(np.float32)


# --- measures -------------------------------------------------------------------------------------------------------


def agreement(rows: Rows, clusters: Sequence[Any]) -> dict[str, float]:
    return {
        "nmi": round(float(normalized_mutual_info_score(rows.categories, clusters)), 4),
        "ari": round(float(adjusted_rand_score(rows.categories, clusters)), 4),
    }


def plain(rows: Rows, seed: int, *, normalised: bool = False) -> tuple[list[int], float]:
    """Cluster by scikit-learn alone. Return the clusters, and the CPU-seconds up to the vectors."""
    before_s = time.process_time()
    weighted = TfidfVectorizer(stop_words="english").fit_transform(rows.texts)
    vectors = TruncatedSVD(100, random_state=seed).fit_transform(weighted)
    if normalised:
        vectors = normalize(vectors)
    encoded_s = time.process_time() - before_s
    labels = KMeans(rows.num_categories, n_init=10, random_state=seed).fit_predict(vectors)
    return labels.tolist(), encoded_s


def spherical(vectors: Any, num: int, seed: int, *, num_starts: int, is_spherical: bool = True) -> tuple[Any, float]:
    """Cluster by skillshard's k-means. Return the clusters of the rows, and the simplified silhouette."""
    clusters = kmeans.fit(vectors, num, seed=seed, num_starts=num_starts, spherical=is_spherical)
    return kmeans.assign(vectors, clusters).cluster, kmeans.simplified_silhouette(vectors, clusters)


def choose(arguments: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in arguments.only:
        rows = chosen_rows(arguments.corpora, name, "choice")
        row = results.setdefault(name, {})
        row["plain"] = [agreement(rows, plain(rows, seed)[0]) for seed in SEEDS]
        show(name, "plain", row["plain"])
        for terms in ("marks", *TERMS):
            candidates = [BEFORE] if terms == "marks" else [each for each in CANDIDATES if each.terms == terms]
            counts = counts_of(terms, rows.texts)
            for plus_one in (True, False):
                of_kind = [each for each in candidates if each.plus_one == plus_one]
                for seed in SEEDS if of_kind else ():
                    spectrum = directions(counts, plus_one=plus_one, dim=max(each.dim for each in of_kind), seed=seed)
                    for candidate in of_kind:
                        vectors = vectors_of(*spectrum, candidate)
                        labels, _ = spherical(vectors, rows.num_categories, seed, num_starts=3)
                        row.setdefault(str(candidate), []).append(agreement(rows, labels))
                for candidate in of_kind:
                    show(name, str(candidate), row[str(candidate)])
    return results


# --- the table ------------------------------------------------------------------------------------------------------


def encoded_before(rows: Rows, seed: int) -> Float[np.ndarray, "text dim"]:
    spectrum = directions(counts_of(BEFORE.terms, rows.texts), plus_one=True, dim=BEFORE.dim, seed=seed)
    return vectors_of(*spectrum, BEFORE)


def encoded_lexical(rows: Rows, seed: int) -> Float[np.ndarray, "text dim"]:
    with tempfile.TemporaryDirectory() as folder:
        return lexical().fit(rows.texts, folder, seed=seed).encode(rows.texts)


def encoder_of(model: str) -> Callable[[Rows, int], Float[np.ndarray, "text dim"]]:
    encoder = sentence_encoder(model, device="cpu")
    encoder.encode(["The first call loads the weights."])
    vectors: dict[int, Float[np.ndarray, "text dim"]] = {}

    def encoded(rows: Rows, seed: int) -> Float[np.ndarray, "text dim"]:
        # The vectors do not depend on the seed, so the rows are encoded once.
        if id(rows) not in vectors:
            vectors[id(rows)] = encoder.encode(rows.texts)
        return vectors[id(rows)]

    return encoded


def table(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all methods. The seconds of a method are CPU-seconds of the first seed."""
    results: dict[str, Any] = {}
    encoders: dict[str, Callable[[Rows, int], Float[np.ndarray, "text dim"]]] = {
        "lexical before": encoded_before,
        "lexical": encoded_lexical,
    }
    for name, model in (("static", arguments.static), ("minilm", arguments.minilm)):
        if model:
            encoders[name] = encoder_of(model)
    for name in arguments.only:
        rows = chosen_rows(arguments.corpora, name, "table")
        results[name] = {"num_rows": len(rows.texts), "num_characters": sum(map(len, rows.texts))}
        for method, normalised in (("plain", False), ("plain, length 1", True)):
            measured = [plain_measured(rows, seed, normalised=normalised) for seed in SEEDS]
            results[name][method] = measured
            show(name, method, measured)
        for method, encode in encoders.items():
            for kind in ("spherical", "euclidean"):
                if method == "lexical before" and kind == "euclidean":
                    continue
                measured = [encoded_measured(rows, seed, encode, kind) for seed in SEEDS]
                results[name][f"{method}, {kind}"] = measured
                show(name, f"{method}, {kind}", measured)
        save_section(arguments.out, "table", results)
    return results


def plain_measured(rows: Rows, seed: int, *, normalised: bool) -> dict[str, float]:
    before_s = time.process_time()
    labels, encoded_s = plain(rows, seed, normalised=normalised)
    clustered_s = time.process_time() - before_s - encoded_s
    return {**agreement(rows, labels), "encode_s": round(encoded_s, 2), "cluster_s": round(clustered_s, 2)}


def encoded_measured(
    rows: Rows, seed: int, encode: Callable[[Rows, int], Float[np.ndarray, "text dim"]], kind: str
) -> dict[str, float]:
    before_s = time.process_time()
    vectors = encode(rows, seed)
    encoded_s = time.process_time() - before_s
    labels, silhouette = spherical(
        vectors, rows.num_categories, seed, num_starts=kmeans.NUM_STARTS, is_spherical=kind == "spherical"
    )
    clustered_s = time.process_time() - before_s - encoded_s
    return {
        **agreement(rows, labels),
        "silhouette": round(silhouette, 4),
        "encode_s": round(encoded_s, 2),
        "cluster_s": round(clustered_s, 2),
    }


SHORT_TRIALS: dict[str, Any] = {"trials": 2, "checkpoints": 5, "steps": 150, "lr": 0.003, "fitting_samples": 1000}
"""Settings of the entry on loss trajectories of 2026-11-21 in docs/LOG.md, with windows of 96 bytes. Nothing was chosen on these corpora."""
LONG_TRIALS: dict[str, Any] = {"trials": 2}
"""The settings of the command `tag loss`, but for the number of trials: ten trials of the default length take more than an hour of one core."""


def loss(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tag the rows of the table by loss trajectories: short trials with three seeds, or with --long one seed of long trials."""
    results: dict[str, Any] = {}
    for name in arguments.only:
        rows = chosen_rows(arguments.corpora, name, "table")
        method, settings, window = ("long", LONG_TRIALS, 128) if arguments.long else ("short", SHORT_TRIALS, 96)
        for seed in SEEDS[:1] if arguments.long else SEEDS:
            measured = loss_measured(rows, seed, settings, window)
            results.setdefault(f"{name}, {method}", {"num_rows": len(rows.texts), "seeds": []})["seeds"].append(
                measured
            )
            print(name, method, measured, flush=True)
            save_section(arguments.out, "loss", results)
    return results


def loss_measured(
    rows: Rows, seed: int, settings: dict[str, Any], window: int, *, device: str = "cpu"
) -> dict[str, float]:
    from skillshard import taggers
    from skillshard.execution import Backend
    from skillshard.proxy.device import Compute
    from skillshard.proxy.reading_choice import ReadingChoice
    from skillshard.taggers.losses.tagger import loss_tagger

    with tempfile.TemporaryDirectory() as folder:
        lines = [{"id": str(row), "text": text} for row, text in enumerate(rows.texts)]
        place = Path(folder) / "rows.jsonl"
        place.write_text("".join(json.dumps(line) + "\n" for line in lines))
        reading = ReadingChoice(window=window)
        finder = loss_tagger(
            skills=rows.num_categories, seed=seed, reading=reading, compute=Compute(device=device), **settings
        )
        # A single worker runs the tasks in this process, so this process has all CPU-seconds.
        before_s, began_s = time.process_time(), time.perf_counter()
        tags = taggers.tag_corpus(
            Corpus.open(place), finder, Path(folder) / "tags", backend=Backend(workers=1), progress=False
        )
        cpu_s, wall_s = time.process_time() - before_s, time.perf_counter() - began_s
        labels = [str(row.skill) for row in tags.rows(0)]
    return {**agreement(rows, labels), "cpu_s": round(cpu_s, 1), "wall_s": round(wall_s, 1)}


def static(arguments: argparse.Namespace) -> dict[str, Any]:
    """Distil a static model as model2vec does, and save the model as a sentence-transformers model."""
    from model2vec.distill import distill
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:  # the place of the class before sentence-transformers 5.4
        from sentence_transformers.models import StaticEmbedding

    before_s = time.process_time()
    distilled = distill(arguments.minilm, device="cpu", quantize_to="float32")
    distilled.save_pretrained(f"{arguments.static}-model2vec")
    module = StaticEmbedding.from_model2vec(f"{arguments.static}-model2vec")
    SentenceTransformer(modules=[module], device="cpu").save(arguments.static)
    return {"distil_s": round(time.process_time() - before_s, 1), "dim": distilled.dim}


def show(name: str, method: str, measured: Sequence[dict[str, float]]) -> None:
    means = {measure: np.mean([each[measure] for each in measured]) for measure in ("nmi", "ari")}
    print(f"{name:14} {method:28} NMI {means['nmi']:.3f}  ARI {means['ari']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--corpora", type=Path, default=Path("corpora"), help="folder of the four corpora")
    parser.add_argument("--minilm", help="directory of all-MiniLM-L6-v2")
    parser.add_argument("--static", help="directory of a static sentence-transformers model")
    parser.add_argument("--only", nargs="+", default=[*CORPORA])
    parser.add_argument("--long", action="store_true", help="for 'loss': trials of the default length, one seed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with threadpool_limits(1):
        figures = SECTIONS[arguments.section](arguments)
    save_section(arguments.out, arguments.section, figures)


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "choose": choose,
    "table": table,
    "static": static,
    "loss": loss,
}

if __name__ == "__main__":
    main()
