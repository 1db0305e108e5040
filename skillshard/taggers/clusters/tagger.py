"""Tag by clusters of embeddings.

1. `rows.count_partition` reads every row, so that a bad sample ends the command before any costly stage begins.
2. `embeddings.take_texts` reads a seeded sample of the texts, and an encoder that must be fitted learns from the sample.
3. `embeddings.encode_partition` turns rows into embeddings/000000.npy (float16, row for row).
4. k-means runs on a seeded sample in one process. Then `fit.step_partition` runs steps over all rows.
5. `fit.assign_partition` writes the cluster and the distance of each row.
6. `description.look_at_rows` collects terms and nearest samples for the names of the clusters.

With saved clusters only the stages 1, 3 and 5 run. With kept embeddings the stages 2 and 3 are left out. By calculation a billion samples of 384 dimensions have 768 GB of embeddings. A
step, or the assignment to 256 clusters, then takes 2e14 operations: about an hour on one core of 50 GFLOPS, spread over all tasks.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from skillshard import places, storage
from skillshard.errors import TagsError, did_you_mean
from skillshard.extras import needed
from skillshard.taggers.clusters import kmeans
from skillshard.taggers.clusters.description import describe_clusters, record_of
from skillshard.taggers.clusters.embeddings import (
    EMBEDDINGS,
    array_place,
    bring_embeddings,
    encode_rows,
    fit_encoder,
    has_embeddings,
    sample_vectors,
)
from skillshard.taggers.clusters.embeddings import MANIFEST as EMBEDDINGS_MANIFEST
from skillshard.taggers.clusters.encoder import Encoder, Unfitted
from skillshard.taggers.clusters.fit import ASSIGNMENTS, assign_balanced, assign_rows, fit_clusters
from skillshard.taggers.clusters.lexical import VERSION as LEXICAL_VERSION
from skillshard.taggers.clusters.lexical import open_lexical
from skillshard.taggers.clusters.saved import (
    CENTROIDS,
    FOLDER,
    EncoderRecord,
    SavedClusters,
    copy_clusters,
    has_clusters,
)
from skillshard.taggers.rows import count_rows, read_rows
from skillshard.taggers.tagger import Finder, RowTagger, Search, Tag
from skillshard.tags import Tags

DISTANCES = ("cosine", "euclidean")


@dataclass(frozen=True)
class Choice:
    """The number of clusters, and how clusters are fitted."""

    skills: int | Literal["auto"]
    skills_range: tuple[int, int] | None
    min_share: float
    seed: int
    distance: str = "cosine"

    def range_of(self, num_samples: int) -> tuple[int, int]:
        """Return the smallest and the largest number of clusters that "auto" tries on a corpus."""
        return self.skills_range or kmeans.default_range(num_samples)

    @property
    def arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {"skills": self.skills}
        if self.skills == "auto":
            arguments["skills_range"] = None if self.skills_range is None else list(self.skills_range)
        if self.distance != "cosine":  # tags by cosine have the manifest of the time before there was a choice
            arguments["distance"] = self.distance
        return {**arguments, "min_share": self.min_share, "seed": self.seed}


@dataclass(frozen=True)
class Embedding:
    """The finder that `embedding` makes."""

    reads_texts: ClassVar[bool] = True

    encoder: Encoder | Unfitted
    choice: Choice

    @property
    def name(self) -> str:
        return "embedding"

    @property
    def arguments(self) -> dict[str, Any]:
        described = self.encoder.arguments
        return {
            # A directory is identified by the content of its files, so that a copy of the directory is the same encoder.
            "encoder": "directory" if described.get("files") else self.encoder.name,
            "encoder_arguments": described,
            **self.choice.arguments,
        }

    @property
    def stages(self) -> tuple[str, ...]:
        return ()  # each step of k-means needs the whole step before

    def find(self, search: Search) -> RowTagger:
        num_rows, num_samples = count_rows(search)
        # A corpus without samples ends in the error of `tag_corpus`, which lists the reasons.
        if num_samples == 0:
            return AssignedRows("", ())
        # Encoding a corpus takes hours, so a number of clusters that cannot work is refused before.
        if self.choice.skills != "auto":
            kmeans.refuse_more_than(num_samples, self.choice.skills)
        encoder = fit_encoder(self.encoder, search, num_rows, seed=self.choice.seed)
        places = encode_rows(encoder, search, num_rows)
        return _clustered(search, places, num_rows, num_samples, self.choice, *record_of(encoder))


@dataclass(frozen=True)
class KeptEmbeddings:
    """The finder of `kept_embeddings`."""

    reads_texts: ClassVar[bool] = True

    tags: Tags
    model: SavedClusters
    choice: Choice

    @property
    def name(self) -> str:
        return "embedding"

    @property
    def arguments(self) -> dict[str, Any]:
        encoder = self.model.manifest.encoder
        return {
            "embeddings": storage.file_digest(self.tags.place(EMBEDDINGS, EMBEDDINGS_MANIFEST)),
            "encoder_arguments": encoder.arguments,
            **self.choice.arguments,
        }

    @property
    def stages(self) -> tuple[str, ...]:
        return ()  # each step of k-means needs the whole step before

    def find(self, search: Search) -> RowTagger:
        self._refuse_other_partitions(search)
        records = read_rows(search, [part.rows_digests for part in self.tags.manifest.parts])
        self._refuse_other_rows([record["rows_digests"] for record in records])
        num_rows, num_samples = ([record[name] for record in records] for name in ("num_rows", "num_samples"))
        if self.choice.skills != "auto":
            kmeans.refuse_more_than(sum(num_samples), self.choice.skills)
        files = bring_embeddings(self.tags, search.work.scratch("kept", EMBEDDINGS))
        folder = search.work.scratch("kept", FOLDER)
        encoder = self.model.manifest.encoder
        encoder_files = tuple(name for name in self.model.manifest.files if name != CENTROIDS)
        storage.bring_all([(places.join(self.model.folder, name), places.join(folder, name)) for name in encoder_files])
        return _clustered(search, files, num_rows, sum(num_samples), self.choice, encoder, encoder_files)

    def _refuse_other_partitions(self, search: Search) -> None:
        arguments, parts = self.tags.manifest.made_from["arguments"], self.tags.manifest.parts
        if [part.bounds for part in search.partitions] != [part.bounds for part in parts]:
            raise TagsError(
                f"the embeddings in {places.public(self.tags.folder)} are of other files, or of other partitions. Give the same corpus and "
                f"`partition_bytes={arguments.get('partition_bytes')}`, as at the encoding."
            )
        if arguments.get("reading") != search.reading.to_json():
            raise TagsError(
                f"the embeddings in {places.public(self.tags.folder)} were made with other fields or limits of a sample. Give the same "
                "`text_field`, `id_field` and `max_sample_bytes`, as at the encoding."
            )

    def _refuse_other_rows(self, digests: Sequence[Sequence[str]]) -> None:
        stretches = itertools.chain.from_iterable(part.stretches for part in self.tags.manifest.parts)
        for stretch, digest in zip(stretches, itertools.chain.from_iterable(digests), strict=True):
            if stretch.rows_digest != digest:
                raise TagsError(
                    f"{stretch.file} changed since {places.public(self.tags.folder)} was made, so the embeddings are of other rows. Encode the "
                    "corpus again: leave out `kept_embeddings`."
                )


def _clustered(
    search: Search,
    files: Sequence[str],
    num_rows: Sequence[int],
    num_samples: int,
    choice: Choice,
    encoder: EncoderRecord,
    encoder_files: Sequence[str],
) -> RowTagger:
    """Fit clusters on embeddings, assign every row, and describe and save the clusters."""
    skills_range = choice.range_of(num_samples)
    most = choice.skills if isinstance(choice.skills, int) else skills_range[1]
    sample = sample_vectors(files, num_rows, kmeans.sample_size(most), seed=choice.seed)
    fitted = fit_clusters(
        search,
        files,
        sample,
        skills=choice.skills,
        skills_range=skills_range,
        min_share=choice.min_share,
        seed=choice.seed,
        spherical=choice.distance == "cosine",
        covers_all=len(sample.points) == num_samples,
    )
    clusters, records = assign_balanced(search, files, sample, fitted.clusters, min_share=choice.min_share)
    names = describe_clusters(encoder, encoder_files, search, sample, clusters, records, fitted.tried)
    return AssignedRows(search.work.scratch(ASSIGNMENTS), tuple(names))


@dataclass(frozen=True)
class KeptClusters:
    """The finder of `kept_clusters`."""

    reads_texts: ClassVar[bool] = True

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
    skills_range: tuple[int, int] | None = None,
    min_share: float = 0.0,
    seed: int = 0,
    distance: str = "cosine",
) -> Finder:
    """Tag by clusters of embeddings. The score is the distance to the centroid of the cluster.

    Args:
        encoder: Encoder of the texts, `lexical()` or `sentence_encoder(NAME)`.
        skills: Number of clusters. "auto" takes a peak or the knee of the simplified silhouette over numbers in `skills_range`.
        skills_range: Smallest and largest number of clusters that "auto" tries. None: from 2 to the square root of the number of samples,
            at most 256.
        min_share: Smallest share of the samples that a cluster may have.
        seed: Seed for sampling and for the k-means starts.
        distance: "cosine": spherical k-means, and a score of 1 - cosine, in [0, 2]. "euclidean": Euclidean k-means, and a score that is the
            squared Euclidean distance.

    Raises:
        TagsError: An argument is out of range.
        ExtraError: scikit-learn, SciPy or threadpoolctl is not installed.
    """
    return Embedding(encoder, _choice(skills, skills_range, min_share, seed, distance))


def kept_embeddings(
    tags: str | os.PathLike[str],
    *,
    skills: int | Literal["auto"],
    skills_range: tuple[int, int] | None = None,
    min_share: float = 0.0,
    seed: int = 0,
    distance: str = "cosine",
) -> Finder:
    """Tag by new clusters of the embeddings beside finished tags of the same corpus. No text is encoded again.

    Args:
        tags: Directory or URI of tags by `embedding`.
        skills: Number of clusters, or "auto".
        skills_range: Smallest and largest number of clusters that "auto" tries, as for `embedding`.
        min_share: Smallest share of the samples that a cluster may have.
        seed: Seed for sampling and for the k-means starts.
        distance: As for `embedding`. The embeddings may have been clustered by the other distance before.

    Raises:
        TagsError: An argument is out of range, or no embeddings lie beside the tags.
        ExtraError: scikit-learn, SciPy or threadpoolctl is not installed.
    """
    choice = _choice(skills, skills_range, min_share, seed, distance)
    opened = Tags.open(tags)
    if not has_embeddings(opened.folder) or not has_clusters(opened.folder):
        raise TagsError(
            f"{places.public(opened.folder)} has no embeddings beside its tags. Give tags that 'skillshard tag embedding' wrote, or encode "
            "the corpus with an encoder."
        )
    return KeptEmbeddings(opened, SavedClusters.open(opened.folder), choice)


def _choice(
    skills: int | Literal["auto"],
    skills_range: tuple[int, int] | None,
    min_share: float,
    seed: int,
    distance: str,
) -> Choice:
    needed("cluster", what="Tagging by clusters")
    kmeans.refuse_range(skills_range)
    if skills != "auto" and skills < 2:
        raise TagsError(f"`{skills=}` leaves nothing to tell apart: give 2 or more, or 'auto'.")
    # The limit that depends on the number of skills comes in `kmeans.fit`, because "auto" chooses the number later.
    if not 0 <= min_share < 0.5:
        raise TagsError(f"`{min_share=}`: give the least share of a skill, from 0 to below 0.5.")
    if distance not in DISTANCES:
        raise TagsError(f"`{distance=}` is unknown{did_you_mean(distance, DISTANCES)}: give 'cosine' or 'euclidean'.")
    return Choice(skills, skills_range, min_share, seed, distance)


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
        TagsError: The clusters were made with another encoder, or with another version of the lexical encoder.
    """
    saved = model.manifest.encoder
    if saved.kind != "lexical":
        raise TagsError(
            f"the centroids in {places.public(model.folder)} have {saved.dim} dimensions, and were made with the encoder {saved.name}, not lexical. Give the "
            f"encoder {saved.name}."
        )
    if saved.arguments.get("version") != LEXICAL_VERSION:
        raise TagsError(
            f"the clusters in {places.public(model.folder)} were made by another version of the lexical encoder (version "
            f"{saved.arguments.get('version', 1)}, and this skillshard has version {LEXICAL_VERSION}), which counts other terms. Find the clusters "
            "anew with 'skillshard tag embedding'."
        )
    return open_lexical(model.folder)
