"""Tag by clusters of embeddings.

1. `rows.count_partition` reads every row, so that a bad sample ends the command before any costly stage begins.
2. `embeddings.take_texts` reads a seeded sample of the texts, and an encoder that must be fitted learns from the sample.
3. `embeddings.encode_partition` turns rows into embeddings/000000.npy (float16, row for row).
4. k-means runs on a seeded sample in one process. Then `fit.step_partition` runs steps over all rows.
5. `fit.assign_partition` writes the cluster and the distance of each row.
6. `description.look_at_rows` collects terms and nearest samples for the names of the clusters.

With saved clusters only the stages 1, 3 and 5 run. By calculation a billion samples of 384 dimensions have 768 GB of embeddings. A
step, or the assignment to 256 clusters, then takes 2e14 operations: about an hour on one core of 50 GFLOPS, spread over all tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skillshard import places, storage
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
    """The finder that `embedding` makes."""

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
        arguments: dict[str, Any] = {
            # A directory is identified by the content of its files, so that a copy of the directory is the same encoder.
            "encoder": "directory" if described.get("files") else self.encoder.name,
            "encoder_arguments": described,
            "skills": self.skills,
        }
        if self.skills == "auto":
            arguments["skills_range"] = list(self.skills_range)
        return {**arguments, "min_share": self.min_share, "seed": self.seed}

    @property
    def stages(self) -> tuple[str, ...]:
        return ()  # each step of k-means needs the whole step before

    def find(self, search: Search) -> RowTagger:
        num_rows, num_samples = count_rows(search)
        # A corpus without samples ends in the error of `tag_corpus`, which lists the reasons.
        if num_samples == 0:
            return AssignedRows("", ())
        # Encoding a corpus takes hours, so a number of clusters that cannot work is refused before.
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
        return AssignedRows(search.work.scratch(ASSIGNMENTS), tuple(names))

    @property
    def _most(self) -> int:
        return self.skills if isinstance(self.skills, int) else self.skills_range[1]


@dataclass(frozen=True)
class KeptClusters:
    """The finder that `kept_clusters` makes."""

    model: SavedClusters
    encoder: Encoder

    @property
    def name(self) -> str:
        return "embedding"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"model": self.model.digest, "encoder_arguments": self.encoder.arguments}

    @property
    def stages(self) -> tuple[str, ...]:
        return ("count", "encode", "assign")

    def find(self, search: Search) -> RowTagger:
        num_rows, _ = count_rows(search)
        places = encode_rows(self.encoder, search, num_rows)
        assign_rows(search, places, self.model.clusters, "assign")
        copy_clusters(self.model, search.work.scratch("kept", FOLDER))
        return AssignedRows(search.work.scratch(ASSIGNMENTS), tuple(self.model.names))


@dataclass(frozen=True)
class AssignedRows:
    """A row tagger by the clusters that stage 5 wrote."""

    folder: str
    names: tuple[str, ...]

    def tag_rows(self, partition: int, rows: Sequence[int]) -> list[Tag]:
        if not rows:
            return []
        assigned = storage.load_array(array_place(self.folder, partition))[list(rows)]
        return [
            Tag(self.names[cluster], distance)
            for cluster, distance in zip(assigned["cluster"].tolist(), assigned["distance"].tolist(), strict=True)
        ]


def embedding(
    encoder: Encoder | Unfitted,
    *,
    skills: int | Literal["auto"],
    skills_range: tuple[int, int] = (2, 64),
    min_share: float = 0.0,
    seed: int = 0,
) -> Finder:
    """Tag by clusters of embeddings. The score is the distance to the centroid of the cluster, 1 - cosine, in [0, 2].

    Args:
        encoder: Encoder of the texts, `lexical()` or `sentence_encoder(NAME)`.
        skills: Number of clusters. "auto" takes the knee of the simplified silhouette over numbers in `skills_range`.
        skills_range: Smallest and largest number of clusters that "auto" tries.
        min_share: Smallest share of the samples that a cluster may have.
        seed: Seed for sampling and for the k-means starts.

    Raises:
        TagsError: An argument is out of range.
        ExtraError: scikit-learn, SciPy or threadpoolctl is not installed.
    """
    needed("cluster", what="Tagging by clusters")
    least, most = skills_range
    if not 2 <= least <= most:
        raise TagsError(f"`skills='auto'` tries from {least} to {most}: give 2 or more, and the smaller number first.")
    if skills != "auto" and skills < 2:
        raise TagsError(f"`{skills=}` leaves nothing to tell apart: give 2 or more, or 'auto'.")
    # The limit that depends on the number of skills comes in `kmeans.fit`, because "auto" chooses the number later.
    if not 0 <= min_share < 0.5:
        raise TagsError(f"`{min_share=}`: give the least share of a skill, from 0 to below 0.5.")
    return Embedding(encoder, skills, skills_range, min_share, seed)


def kept_clusters(model: SavedClusters, encoder: Encoder) -> Finder:
    """Tag by saved clusters, which may come from another corpus.

    Raises:
        TagsError: The centroids belong to another encoder.
        ExtraError: scikit-learn, SciPy or threadpoolctl is not installed.
    """
    needed("cluster", what="Tagging by clusters")
    saved = model.manifest.encoder
    if encoder.dim != saved.dim:
        raise TagsError(
            f"the centroids in {places.public(model.folder)} have {saved.dim} dimensions, and {encoder.name} gives {encoder.dim}. Give the encoder of the "
            f"centroids, {saved.name}."
        )
    # The data type, the batch size and the device change a vector only by rounding, so they may differ.
    for argument in ("weights_digest", "files", "digests", "prompt", "max_length", "windows"):
        if encoder.arguments.get(argument) != saved.arguments.get(argument):
            raise TagsError(
                f"the centroids in {places.public(model.folder)} were made with {saved.name} with {argument} {saved.arguments.get(argument)!r}, and this "
                f"encoder has {encoder.arguments.get(argument)!r}. Give the same value."
            )
    return KeptClusters(model, encoder)


def kept_lexical(model: SavedClusters) -> Encoder:
    """Open the lexical encoder of saved clusters.

    Raises:
        TagsError: The clusters were made with another encoder.
    """
    saved = model.manifest.encoder
    if saved.kind != "lexical":
        raise TagsError(
            f"the centroids in {places.public(model.folder)} have {saved.dim} dimensions, and were made with the encoder {saved.name}, not lexical. Give the "
            f"encoder {saved.name}."
        )
    return open_lexical(model.folder)
