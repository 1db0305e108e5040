"""Skills are clusters of embeddings.

1. `rows.count_partition`: every row is read once, so that what is wrong with a sample is said before anything costly begins.
2. An encoder that must be fitted sees a seeded sample of the texts (`vectors.take_texts`).
3. `vectors.encode_partition`: rows -> embeddings/000000.npy, float16, row for row.
4. k-means on a seeded sample in one process, then steps over all rows (`clustering.step_partition`).
5. `clustering.assign_partition`: cluster and distance of each row.
6. `description.look_at_rows`: terms and nearest samples, for names.

With a kept model there are only 1, 3 and 5. On paper a billion samples of 384 dimensions are 768 GB of embeddings; a step or
the assignment to 256 clusters is 2e14 operations, about an hour on one core of 50 GFLOPS, spread over all tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from skillshard.errors import TagsError
from skillshard.extras import needed
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.description import describe_clusters
from skillshard.taggers.clusters.embeddings import array_place, encode_rows, fit_encoder, sample_vectors
from skillshard.taggers.clusters.encoder import Encoder, Unfitted
from skillshard.taggers.clusters.fit import ASSIGNMENTS, assign_balanced, assign_rows, fit_clusters
from skillshard.taggers.clusters.lexical import open_lexical
from skillshard.taggers.clusters.saved import FOLDER, SavedClusters, copy_clusters
from skillshard.taggers.rows import count_rows
from skillshard.taggers.tagger import Finder, RowTagger, Search, Tag


@dataclass(frozen=True)
class Embedding:
    """See `embedding`."""

    encoder: Encoder | Unfitted
    skills: int | Literal["auto"]
    skills_range: tuple[int, int]
    min_share: float
    seed: int

    @property
    def name(self) -> str:
        return "embedding"

    @property
    def arguments(self) -> dict[str, Any]:
        described = self.encoder.arguments
        asked: dict[str, Any] = {
            # a directory is known by the content of its files, so that a copy elsewhere is the same encoder
            "encoder": "directory" if described.get("files") else self.encoder.name,
            "encoder_arguments": described,
            "skills": self.skills,
        }
        if self.skills == "auto":
            asked["skills_range"] = list(self.skills_range)
        return {**asked, "min_share": self.min_share, "seed": self.seed}

    def find(self, search: Search) -> RowTagger:
        num_rows, num_samples = count_rows(search)
        if num_samples == 0:
            return AssignedRows("", ())
        if self.skills != "auto":
            kmeans.refuse_more_than(num_samples, self.skills)
        encoder = fit_encoder(self.encoder, search, num_rows, seed=self.seed)
        places = encode_rows(encoder, search, num_rows)
        sample = sample_vectors(places, num_rows, kmeans.sample_size(self._most), seed=self.seed)
        fitted = fit_clusters(
            search,
            places,
            sample,
            skills=self.skills,
            skills_range=self.skills_range,
            min_share=self.min_share,
            seed=self.seed,
            covers_all=len(sample.points) == num_samples,
        )
        clusters, records = assign_balanced(search, places, sample, fitted.clusters, min_share=self.min_share)
        names = describe_clusters(encoder, search, sample, clusters, records, fitted.tried)
        return AssignedRows(str(search.work.scratch(ASSIGNMENTS)), tuple(names))

    @property
    def _most(self) -> int:
        return self.skills if isinstance(self.skills, int) else self.skills_range[1]


@dataclass(frozen=True)
class KeptClusters:
    """See `kept_clusters`."""

    model: SavedClusters
    encoder: Encoder

    @property
    def name(self) -> str:
        return "embedding"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"model": self.model.digest, "encoder_arguments": self.encoder.arguments}

    def find(self, search: Search) -> RowTagger:
        num_rows, _ = count_rows(search)
        places = encode_rows(self.encoder, search, num_rows)
        assign_rows(search, places, self.model.clusters, "assign")
        copy_clusters(self.model, search.work.scratch("kept", FOLDER))
        return AssignedRows(str(search.work.scratch(ASSIGNMENTS)), tuple(self.model.names))


@dataclass(frozen=True)
class AssignedRows:
    """Tags by the clusters that stage 5 wrote."""

    folder: str
    names: tuple[str, ...]

    def tag_rows(self, partition: int, rows: Sequence[int]) -> list[Tag]:
        if not rows:
            return []
        found = np.load(array_place(self.folder, partition), mmap_mode="r")[list(rows)]
        return [
            Tag(self.names[cluster], distance)
            for cluster, distance in zip(found["cluster"].tolist(), found["distance"].tolist(), strict=True)
        ]


def embedding(
    encoder: Encoder | Unfitted,
    *,
    skills: int | Literal["auto"],
    skills_range: tuple[int, int] = (2, 64),
    min_share: float = 0.0,
    seed: int = 0,
) -> Finder:
    """Tag by clusters of embeddings; the score is the distance to the cluster's centroid, 1 - cosine, in [0, 2].

    Args:
        encoder: `lexical()`, or `sentence_encoder(NAME)`.
        skills: number of clusters; "auto": the knee of the simplified silhouette over numbers in `skills_range`.
        skills_range: least and most clusters that "auto" tries.
        min_share: no cluster gets a smaller share of the samples.
        seed: of the samples and starts.

    Raises:
        TagsError: arguments out of range.
        ExtraError: scikit-learn, SciPy or threadpoolctl is not installed.
    """
    needed("cluster", what="Tagging by clusters")
    least, most = skills_range
    if not 2 <= least <= most:
        raise TagsError(f"`skills='auto'` tries from {least} to {most}: give 2 or more, and the smaller number first.")
    if skills != "auto" and skills < 2:
        raise TagsError(f"`{skills=}` leaves nothing to tell apart: give 2 or more, or 'auto'.")
    if not 0 <= min_share < 0.5:
        raise TagsError(f"`{min_share=}`: give the least share of a skill, from 0 to below 0.5.")
    return Embedding(encoder, skills, skills_range, min_share, seed)


def kept_clusters(model: SavedClusters, encoder: Encoder) -> Finder:
    """Tag by clusters that were found before, perhaps in another corpus.

    Raises:
        TagsError: the encoder is not the one that the centroids belong to.
        ExtraError: scikit-learn, SciPy or threadpoolctl is not installed.
    """
    needed("cluster", what="Tagging by clusters")
    kept = model.manifest.encoder
    if encoder.dim != kept.dim:
        raise TagsError(
            f"the centroids in {model.folder} have {kept.dim} dimensions, and {encoder.name} gives {encoder.dim}: give the encoder that "
            f"they were made with, {kept.name}."
        )
    for what in ("weights_digest", "files", "digests", "prompt", "max_length", "windows"):
        if encoder.arguments.get(what) != kept.arguments.get(what):
            raise TagsError(
                f"the centroids in {model.folder} were made with {kept.name} with {what} {kept.arguments.get(what)!r}, and this encoder has "
                f"{encoder.arguments.get(what)!r}: give the same."
            )
    return KeptClusters(model, encoder)


def kept_lexical(model: SavedClusters) -> Encoder:
    """The lexical encoder that a model keeps; TagsError if it was made with another."""
    kept = model.manifest.encoder
    if kept.kind != "lexical":
        raise TagsError(
            f"the centroids in {model.folder} have {kept.dim} dimensions, and were made with the encoder {kept.name}, not lexical: give the same."
        )
    return open_lexical(str(model.folder))
