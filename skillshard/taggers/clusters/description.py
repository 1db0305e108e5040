"""What is known of clusters of embeddings: names by terms, sizes, the nearest samples; kept as a model.

Only some rows are read again (`look_at_rows`): about 300 of each cluster, and the nearest to its centroid.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skillshard.corpus import Partition, Sample, read_partition
from skillshard.execution import Record, Task
from skillshard.keyed_random import permutation
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.embeddings import SampledRows, array_place
from skillshard.taggers.clusters.encoder import Encoder
from skillshard.taggers.clusters.fit import ASSIGNMENTS, CRITERION, NUM_NEAREST
from skillshard.taggers.clusters.kmeans import Clusters
from skillshard.taggers.clusters.lexical import FILES as LEXICAL_FILES
from skillshard.taggers.clusters.names import count_terms, name_clusters
from skillshard.taggers.clusters.saved import FOLDER, Cluster, EncoderRecord, NearestSample, TriedNumber, save_clusters
from skillshard.taggers.tagger import Search

NAMED_BY = 300
"""Samples of a cluster whose words are looked at for its name."""
PREVIEW_CHARS = 160


def describe_clusters(
    encoder: Encoder,
    search: Search,
    sample: SampledRows,
    clusters: Clusters,
    records: Sequence[Record],
    tried: Sequence[kmeans.Choice],
) -> list[str]:
    """Name the clusters and keep all that is known of them; the names."""
    num = clusters.num_clusters
    nearest = [_nearest_of(records, cluster) for cluster in range(num)]
    looked_at = _rows_for_names(sample, search, num, nearest)
    tasks = [
        Task(f"{at:06d}", {"partition": search.partitions[at], "reading": search.reading, "rows": rows})
        for at, rows in sorted(looked_at.items())
    ]
    seen = dict(zip(sorted(looked_at), search.run(look_at_rows, tasks, stage="names", title="naming"), strict=True))
    terms: list[Counter[str]] = [Counter() for _ in range(num)]
    num_seen = [0] * num
    for at, record in seen.items():
        for cluster, counted in record["terms"].items():
            terms[int(cluster)].update(counted)
        for cluster in looked_at[at].values():
            num_seen[cluster] += 1
    counts = np.sum([record["counts"] for record in records], axis=0)
    distances = np.sum([record["distances"] for record in records], axis=0)
    described = [
        Cluster(
            name=named.name,
            terms=list(named.terms),
            num_samples=int(counts[at]),
            mean_distance=round(float(distances[at] / max(counts[at], 1)), 6),
            bonus=float(clusters.bonus[at]),
            nearest=[
                NearestSample(distance=round(distance, 6), **seen[partition]["rows"][str(row)])
                for distance, partition, row in nearest[at]
            ],
        )
        for at, named in enumerate(name_clusters(terms, num_seen))
    ]
    kind = encoder.name if encoder.name == "lexical" else "sentence-transformers"
    save_clusters(
        search.work.scratch("kept", FOLDER),
        clusters,
        encoder=EncoderRecord(kind=kind, name=encoder.name, arguments=encoder.arguments, dim=encoder.dim),
        described=described,
        tried=[TriedNumber(num_clusters=choice.num_clusters, score=choice.score) for choice in tried],
        criterion=CRITERION if tried else None,
        encoder_files=_files_of(encoder),
    )
    return [cluster.name for cluster in described]


def _files_of(encoder: Encoder) -> tuple[str, ...]:
    """What an encoder keeps beside the centroids."""
    return LEXICAL_FILES if encoder.name == "lexical" else ()


def _nearest_of(records: Sequence[Record], cluster: int) -> list[tuple[float, int, int]]:
    """(distance, partition, row) of the samples nearest to a centroid, over all partitions."""
    every = (
        (distance, at, int(row)) for at, record in enumerate(records) for distance, row in record["nearest"][cluster]
    )
    return sorted(every)[:NUM_NEAREST]


def _rows_for_names(
    sample: SampledRows, search: Search, num_clusters: int, nearest: Sequence[Sequence[tuple[float, int, int]]]
) -> dict[int, dict[str, int]]:
    """Partition -> row -> cluster, of at most about `NAMED_BY` sampled rows of each cluster, and the nearest."""
    chosen: dict[int, dict[str, int]] = {}
    left = [NAMED_BY] * num_clusters
    clusters = np.empty(len(sample.row), np.int64)
    for partition in np.unique(sample.partition).tolist():
        here = sample.partition == partition
        found = np.load(array_place(search.work.scratch(ASSIGNMENTS), partition), mmap_mode="r")
        clusters[here] = found["cluster"][sample.row[here]]
    order = permutation(len(sample.row), "rows for names")
    columns = (sample.partition[order].tolist(), sample.row[order].tolist(), clusters[order].tolist())
    for partition, row, cluster in zip(*columns, strict=True):
        if left[cluster] > 0:
            left[cluster] -= 1
            chosen.setdefault(partition, {})[str(row)] = cluster
    for cluster, rows in enumerate(nearest):
        for _, partition, row in rows:
            chosen.setdefault(partition, {})[str(row)] = cluster
    return chosen


def look_at_rows(partition: Partition, reading: Mapping[str, Any], rows: Mapping[str, int]) -> Record:
    """Of some rows, given with their clusters: how many of a cluster hold each term, and the beginning of each text."""
    texts: dict[int, list[str]] = {}
    previews = {}
    for number, row in enumerate(read_partition(partition, **reading)):
        cluster = rows.get(str(number))
        if cluster is not None and isinstance(row, Sample):
            texts.setdefault(cluster, []).append(row.text)
            previews[str(number)] = {
                "id": row.id,
                "text": preview(row.text),
            }
    return {"terms": {str(cluster): count_terms(found) for cluster, found in texts.items()}, "rows": previews}


def preview(text: str) -> str:
    """The beginning of a text, on one line.

    >>> preview(" one\\n two ")
    'one two'
    """
    return " ".join(text[: 4 * PREVIEW_CHARS].split())[:PREVIEW_CHARS]
