"""Describe clusters of embeddings by names, terms, sizes and nearest samples, and save the clusters.

Only a few rows are read again (`look_at_rows`): about 300 rows of each cluster, and the rows nearest to the centroid.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from skillshard import storage
from skillshard.corpus import CorpusReading, Partition, Sample, read_partition
from skillshard.execution import Record, Task
from skillshard.keyed_random import permutation
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.embeddings import SampledRows, array_place
from skillshard.taggers.clusters.encoder import Encoder
from skillshard.taggers.clusters.fit import ASSIGNMENTS, CRITERION, NUM_NEAREST
from skillshard.taggers.clusters.kmeans import Clusters
from skillshard.taggers.clusters.lexical import FILES as LEXICAL_FILES
from skillshard.taggers.clusters.names import count_terms, name_clusters
from skillshard.taggers.clusters.saved import (
    FOLDER,
    Cluster,
    EncoderRecord,
    NearestSample,
    Term,
    TriedNumber,
    save_clusters,
)
from skillshard.taggers.tagger import Search

NAMED_BY = 300
"""Number of samples of a cluster from which the name is made."""
# A preview takes two lines of a terminal.
PREVIEW_CHARS = 160


def describe_clusters(
    encoder: EncoderRecord,
    encoder_files: Sequence[str],
    search: Search,
    sample: SampledRows,
    clusters: Clusters,
    records: Sequence[Record],
    tried: Sequence[kmeans.Choice],
) -> list[str]:
    """Name the clusters, save the clusters with their description, and return the names.

    Args:
        encoder: Encoder of the texts.
        encoder_files: Names of the files of the encoder, which lie beside the centroids.
        search: Search in which the clusters were found.
        sample: Rows that k-means was fitted on.
        clusters: Clusters of the whole corpus.
        records: Records of `assign_partition`, in the order of the partitions.
        tried: Numbers of clusters that skills "auto" tried.
    """
    num = clusters.num_clusters
    nearest = [_nearest_of(records, cluster) for cluster in range(num)]
    rows_of = _rows_for_names(sample, search, num, nearest)
    tasks = [
        Task(f"{part:06d}", {"partition": search.partitions[part], "reading": search.reading, "rows": rows})
        for part, rows in sorted(rows_of.items())
    ]
    seen = dict(zip(sorted(rows_of), search.run(look_at_rows, tasks, stage="names", title="naming"), strict=True))
    terms: list[Counter[str]] = [Counter() for _ in range(num)]
    num_seen = [0] * num
    for part, record in seen.items():
        for cluster, counts_of_terms in record["terms"].items():
            terms[int(cluster)].update(counts_of_terms)
        for cluster in rows_of[part].values():
            num_seen[cluster] += 1
    counts = np.sum([record["counts"] for record in records], axis=0)
    distances = np.sum([record["distances"] for record in records], axis=0)
    described = [
        Cluster(
            name=named.name,
            has_topic=named.has_topic,
            terms=[Term(term=term, share=share) for term, share in named.terms],
            num_samples=int(counts[cluster]),
            # Six digits are the precision of a float32 distance.
            mean_distance=round(float(distances[cluster] / max(counts[cluster], 1)), 6),
            bonus=float(clusters.bonus[cluster]),
            nearest=[
                NearestSample(distance=round(distance, 6), **seen[partition]["rows"][str(row)])
                for distance, partition, row in nearest[cluster]
            ],
        )
        for cluster, named in enumerate(name_clusters(terms, num_seen))
    ]
    save_clusters(
        search.work.scratch("kept", FOLDER),
        clusters,
        encoder=encoder,
        described=described,
        tried=[TriedNumber(num_clusters=choice.num_clusters, score=choice.score) for choice in tried],
        criterion=CRITERION if tried else None,
        encoder_files=encoder_files,
    )
    return [cluster.name for cluster in described]


def record_of(encoder: Encoder) -> tuple[EncoderRecord, tuple[str, ...]]:
    """Return the record of an encoder, and the names of the files that the encoder keeps beside the centroids."""
    is_lexical = encoder.name == "lexical"
    kind = "lexical" if is_lexical else "sentence-transformers"
    record = EncoderRecord(kind=kind, name=encoder.name, arguments=encoder.arguments, dim=encoder.dim)
    # The weights of a sentence-transformers model are not copied. The manifest holds their digest.
    return record, LEXICAL_FILES if is_lexical else ()


def _nearest_of(records: Sequence[Record], cluster: int) -> list[tuple[float, int, int]]:
    """Find the samples nearest to a centroid in all partitions, as (distance, partition, row)."""
    every = (
        (distance, part, int(row))
        for part, record in enumerate(records)
        for distance, row in record["nearest"][cluster]
    )
    return sorted(every)[:NUM_NEAREST]


def _rows_for_names(
    sample: SampledRows, search: Search, num_clusters: int, nearest: Sequence[Sequence[tuple[float, int, int]]]
) -> dict[int, dict[str, int]]:
    """Choose up to `NAMED_BY` sampled rows of each cluster, and the nearest rows, as partition -> row -> cluster."""
    chosen: dict[int, dict[str, int]] = {}
    left = [NAMED_BY] * num_clusters
    clusters = np.empty(len(sample.row), np.int64)
    for partition in np.unique(sample.partition).tolist():
        in_partition = sample.partition == partition
        assigned = storage.load_array(array_place(search.work.scratch(ASSIGNMENTS), partition))
        clusters[in_partition] = assigned["cluster"][sample.row[in_partition]]
    # The sample is in the order of the corpus. Without the permutation the first files would name the clusters.
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


def look_at_rows(partition: Partition, reading: CorpusReading, rows: Mapping[str, int]) -> Record:
    """Count the terms of chosen rows for each cluster, and take the beginning of each text.

    Args:
        partition: Partition to read.
        reading: Field mappings and limits of the corpus.
        rows: Number of the row (as a string, as in JSON) -> cluster.
    """
    texts: dict[int, list[str]] = {}
    previews = {}
    for number, row in enumerate(read_partition(partition, reading)):
        cluster = rows.get(str(number))
        if cluster is not None and isinstance(row, Sample):
            texts.setdefault(cluster, []).append(row.text)
            previews[str(number)] = {
                "id": row.id,
                "text": preview(row.text),
            }
    return {"terms": {str(cluster): count_terms(texts_of) for cluster, texts_of in texts.items()}, "rows": previews}


def preview(text: str) -> str:
    """Return the beginning of a text on one line.

    >>> preview(" one\\n two ")
    'one two'
    """
    # The cut comes before the split, because a text may have megabytes. The factor leaves room for white space.
    return " ".join(text[: 4 * PREVIEW_CHARS].split())[:PREVIEW_CHARS]
