"""Save clusters, so that people can read the clusters and the clusters can tag other samples later.

MODEL/model.json      written last: the encoder, the names and terms of the clusters, and the digest of each file
MODEL/centroids.npy   float32, cluster x dim
MODEL/...             files of the encoder
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard import canonical, places, storage
from skillshard.errors import TagsError
from skillshard.printable import counted
from skillshard.taggers.clusters.kmeans import Clusters

MANIFEST = "model.json"
FOLDER = "model"
CENTROIDS = "centroids.npy"
ANEW = "Tag anew in another directory, or fetch the model again."


class NearestSample(BaseModel):
    """A sample near the centroid of a cluster."""

    model_config = ConfigDict(extra="forbid")

    id: str
    distance: float = Field(ge=0)
    text: str = Field(description="Beginning of the text.")


class Term(BaseModel):
    """A term that distinguishes a cluster from the other clusters."""

    model_config = ConfigDict(extra="forbid")

    term: str
    share: float = Field(ge=0, le=1, description="Share of the samples of the cluster that hold the term.")


class Cluster(BaseModel):
    """A cluster of samples: a skill."""

    model_config = ConfigDict(extra="forbid")

    name: str
    has_topic: bool = Field(description="Whether a term of the name stands in many samples of the cluster.")
    terms: list[Term] = Field(description="Terms that distinguish the cluster from the other clusters, best first.")
    num_samples: int = Field(ge=0, description="Number of samples in the corpus that the clusters were found in.")
    mean_distance: float = Field(ge=0)
    bonus: float = Field(
        ge=0, description="Amount that is subtracted from the distance before the nearest cluster is chosen."
    )
    nearest: list[NearestSample]


class TriedNumber(BaseModel):
    """A number of clusters that was tried for skills "auto"."""

    model_config = ConfigDict(extra="forbid")

    num_clusters: int = Field(ge=2)
    score: float


class EncoderRecord(BaseModel):
    """The encoder that the centroids belong to."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(description="Kind of encoder: lexical, sentence-transformers, or the name of a tagging method.")
    name: str
    arguments: dict[str, Any]
    dim: int = Field(ge=1)


class Cluster1(BaseModel):
    """A cluster of version 1 of model.json, whose terms have no shares."""

    model_config = ConfigDict(extra="forbid")

    name: str
    terms: list[str] = Field(description="Terms that distinguish the cluster from the other clusters, best first.")
    num_samples: int = Field(ge=0, description="Number of samples in the corpus that the clusters were found in.")
    mean_distance: float = Field(ge=0)
    bonus: float = Field(
        ge=0, description="Amount that is subtracted from the distance before the nearest cluster is chosen."
    )
    nearest: list[NearestSample]


class ModelManifest(BaseModel):
    """The content of model.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/clusters/2"] = Field("skillshard/clusters/2", alias="schema")
    encoder: EncoderRecord
    spherical: bool = Field(
        description="Whether the distance is 1 - cosine. Otherwise the distance is the squared Euclidean distance."
    )
    clusters: list[Cluster] = Field(description="Clusters in the order of the centroids.")
    tried: list[TriedNumber] = Field(
        description="Curve from which skills 'auto' chose the number of clusters. Empty for a given number."
    )
    criterion: str | None = Field(description="Name of the values of the curve.")
    files: dict[str, str] = Field(description="File beside model.json -> digest.")


class ModelManifest1(BaseModel):
    """The content of version 1 of model.json, which is still read."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/clusters/1"] = Field("skillshard/clusters/1", alias="schema")
    encoder: EncoderRecord
    spherical: bool = Field(
        description="Whether the distance is 1 - cosine. Otherwise the distance is the squared Euclidean distance."
    )
    clusters: list[Cluster1] = Field(description="Clusters in the order of the centroids.")
    tried: list[TriedNumber] = Field(
        description="Curve from which skills 'auto' chose the number of clusters. Empty for a given number."
    )
    criterion: str | None = Field(description="Name of the values of the curve. The knee of the curve is taken.")
    files: dict[str, str] = Field(description="File beside model.json -> digest.")


AnyModelManifest = ModelManifest | ModelManifest1


@dataclass(frozen=True)
class SavedClusters:
    """Saved clusters, opened and checked.

    Attributes:
        folder: Directory of model.json.
        manifest: Content of model.json, of any version.
        clusters: Centroids and bonus of the clusters.
    """

    folder: str
    manifest: AnyModelManifest
    clusters: Clusters

    def __repr__(self) -> str:
        """Return a line with the place, the number of clusters and the encoder."""
        num = counted(len(self.manifest.clusters), "cluster")
        return f"SavedClusters({places.public(self.folder)!r}: {num}, encoder {self.manifest.encoder.name})"

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "SavedClusters":
        """Open saved clusters by their directory or URI, or by the place of the tags beside the clusters.

        Raises:
            TagsError: The place has no saved clusters, or the clusters are damaged.
        """
        folder = model_folder(place)
        try:
            manifest = _read_manifest(folder)
        except ValidationError as error:
            raise TagsError(
                f"{_shown(folder, MANIFEST)} does not fit schemas/clusters-2.json: {canonical.first_fault(error)}: damaged, edited, or of "
                f"another version. {ANEW}"
            ) from error
        # The digests of all files take time, but damaged weights would give wrong tags without an error.
        faults = _faults(folder, manifest)
        if faults:
            raise TagsError(faults[0])
        centroids = storage.load_array(places.join(folder, CENTROIDS))
        if centroids.shape != (len(manifest.clusters), manifest.encoder.dim):
            raise TagsError(
                f"{_shown(folder, CENTROIDS)} has shape {centroids.shape}, and model.json expects "
                f"({len(manifest.clusters)}, {manifest.encoder.dim}): damaged or edited. {ANEW}"
            )
        bonus = np.array([cluster.bonus for cluster in manifest.clusters], np.float32)
        return cls(folder, manifest, Clusters(centroids, bonus, manifest.spherical))

    @property
    def names(self) -> list[str]:
        return [cluster.name for cluster in self.manifest.clusters]

    @property
    def digest(self) -> str:
        """Digest of model.json, which holds the digests of all other files."""
        return storage.file_digest(places.join(self.folder, MANIFEST))


def has_clusters(place: str | os.PathLike[str]) -> bool:
    """Tell whether a place, or the tags at a place, have saved clusters."""
    return any(storage.exists(places.join(place, *parts)) for parts in ((MANIFEST,), (FOLDER, MANIFEST)))


def _shown(folder: str, name: str) -> str:
    return places.public(places.join(folder, name))


def model_folder(place: str | os.PathLike[str]) -> str:
    """Return the directory of model.json.

    Raises:
        TagsError: The place has no saved clusters.
    """
    for candidate in (places.join(place), places.join(place, FOLDER)):
        if storage.exists(places.join(candidate, MANIFEST)):
            return candidate
    raise TagsError(
        f"{places.public(place)} holds no saved clusters: neither {MANIFEST} nor {FOLDER}/{MANIFEST} is there. Give the directory that 'skillshard tag "
        "embedding' or 'skillshard tag loss' wrote."
    )


def save_clusters(
    folder: str | os.PathLike[str],
    clusters: Clusters,
    *,
    encoder: EncoderRecord,
    described: Sequence[Cluster],
    tried: Sequence[TriedNumber] = (),
    criterion: str | None = None,
    encoder_files: Sequence[str] = (),
) -> None:
    """Write clusters to `folder`, which already holds the files of the encoder.

    Args:
        folder: Directory for model.json and the centroids.
        clusters: Centroids and bonus of the clusters.
        encoder: Encoder that the centroids belong to.
        described: Names, terms and sizes, in the order of the centroids.
        tried: Curve from which skills "auto" chose the number of clusters.
        criterion: Name of the values of the curve.
        encoder_files: Names of the files of the encoder in `folder`.
    """
    storage.write_array(places.join(folder, CENTROIDS), clusters.centroids)
    files = {name: storage.file_digest(places.join(folder, name)) for name in (CENTROIDS, *encoder_files)}
    manifest = ModelManifest(
        schema="skillshard/clusters/2",
        encoder=encoder,
        spherical=clusters.spherical,
        clusters=list(described),
        tried=list(tried),
        criterion=criterion,
        files=files,
    )
    storage.write_bytes(places.join(folder, MANIFEST), canonical.to_json(manifest.model_dump(by_alias=True)))


def copy_clusters(model: SavedClusters, folder: str | os.PathLike[str]) -> None:
    """Copy saved clusters file by file. The file model.json comes last, so that an interrupted copy is not a finished copy."""
    for name in (*model.manifest.files, MANIFEST):
        storage.write_bytes(places.join(folder, name), storage.read_bytes(places.join(model.folder, name)))


def verify_model(place: str | os.PathLike[str]) -> list[str]:
    """List the faults of saved clusters, a sentence for each fault.

    Raises:
        TagsError: The place has no saved clusters.
    """
    folder = model_folder(place)
    try:
        manifest = _read_manifest(folder)
    except ValidationError as error:
        return [
            f"{_shown(folder, MANIFEST)} does not fit schemas/clusters-2.json: {canonical.first_fault(error)}. {ANEW}"
        ]
    return _faults(folder, manifest)


def _read_manifest(folder: str) -> AnyModelManifest:
    content = storage.read_json(places.join(folder, MANIFEST))
    is_old = isinstance(content, dict) and content.get("schema") == "skillshard/clusters/1"
    return (ModelManifest1 if is_old else ModelManifest).model_validate(content)


def _faults(folder: str, manifest: AnyModelManifest) -> list[str]:
    return [
        fault
        for name, digest in manifest.files.items()
        if (fault := file_fault(places.join(folder, name), digest, MANIFEST))
    ]


def file_fault(place: str | os.PathLike[str], digest: str, manifest: str) -> str | None:
    """Describe the fault of a file with a digest in a manifest. Return None if the file has no fault."""
    if not storage.exists(place):
        return f"{places.public(place)} is missing, but {manifest} names it. {ANEW}"
    got = storage.file_digest(place)
    if got == digest:
        return None
    return f"{places.public(place)} has digest {got}, {manifest} says {digest}: damaged or edited. {ANEW}"
