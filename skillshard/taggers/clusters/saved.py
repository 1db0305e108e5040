"""What is kept of a clustering, so that it can be read, and tag other samples later.

MODEL/model.json      last: the encoder, names and terms of the clusters, the digest of each file
MODEL/centroids.npy   float32, cluster x dim
MODEL/...             what the encoder keeps
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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
_ANEW = "Tag anew in another directory, or fetch the model again."


class NearestSample(BaseModel):
    """A sample near the middle of a cluster."""

    model_config = ConfigDict(extra="forbid")

    id: str
    distance: float = Field(ge=0)
    text: str = Field(description="the beginning of its text")


class Cluster(BaseModel):
    """One cluster: a skill."""

    model_config = ConfigDict(extra="forbid")

    name: str
    terms: list[str] = Field(description="that tell it from the others, best first")
    num_samples: int = Field(ge=0, description="of the corpus that it was found in")
    mean_distance: float = Field(ge=0)
    bonus: float = Field(ge=0, description="taken from the distance before the nearest cluster is chosen")
    nearest: list[NearestSample]


class TriedNumber(BaseModel):
    """A number of clusters that was tried for skills "auto"."""

    model_config = ConfigDict(extra="forbid")

    num_clusters: int = Field(ge=2)
    score: float


class EncoderRecord(BaseModel):
    """Which encoder the centroids belong to."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(description="lexical, sentence-transformers, or a method's own name")
    name: str
    arguments: dict[str, Any]
    dim: int = Field(ge=1)


class ModelManifest(BaseModel):
    """model.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/clusters/1"] = Field("skillshard/clusters/1", alias="schema")
    encoder: EncoderRecord
    spherical: bool = Field(description="distance is 1 - cosine; otherwise squared Euclidean")
    clusters: list[Cluster] = Field(description="in the order of the centroids")
    tried: list[TriedNumber] = Field(description="for skills 'auto': the curve from which the number was chosen")
    criterion: str | None = Field(description="what the curve shows; its knee is taken")
    files: dict[str, str] = Field(description="file beside model.json -> digest")


@dataclass(frozen=True)
class SavedClusters:
    """A kept clustering."""

    folder: Path
    manifest: ModelManifest
    clusters: Clusters

    def __repr__(self) -> str:
        """One line: the place, the number of clusters and the encoder."""
        num = counted(len(self.manifest.clusters), "cluster")
        return f"SavedClusters({os.fspath(self.folder)!r}: {num}, encoder {self.manifest.encoder.name})"

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "SavedClusters":
        """Open it by its directory or by that of the tags beside which it lies.

        Raises:
            TagsError: there is none, or it is damaged.
        """
        folder = model_folder(place)
        try:
            manifest = ModelManifest.model_validate(storage.read_json(folder / MANIFEST))
        except ValidationError as error:
            raise TagsError(
                f"{folder / MANIFEST} does not fit schemas/clusters-1.json: {canonical.first_fault(error)}: damaged, edited, or of "
                f"another version. {_ANEW}"
            ) from error
        faults = _faults(folder, manifest)
        if faults:
            raise TagsError(faults[0])
        centroids = np.load(folder / CENTROIDS)
        if centroids.shape != (len(manifest.clusters), manifest.encoder.dim):
            raise TagsError(
                f"{folder / CENTROIDS} has shape {centroids.shape}, model.json makes it "
                f"({len(manifest.clusters)}, {manifest.encoder.dim}): damaged or edited. {_ANEW}"
            )
        bonus = np.array([cluster.bonus for cluster in manifest.clusters], np.float32)
        return cls(folder, manifest, Clusters(centroids, bonus, manifest.spherical))

    @property
    def names(self) -> list[str]:
        return [cluster.name for cluster in self.manifest.clusters]

    @property
    def digest(self) -> str:
        """Of model.json, and so of all files."""
        return storage.file_digest(self.folder / MANIFEST)


def has_clusters(place: str | os.PathLike[str]) -> bool:
    """Whether a clustering is kept at a place, or beside the tags there."""
    return any((places.local_path(place) / name).exists() for name in (MANIFEST, f"{FOLDER}/{MANIFEST}"))


def model_folder(place: str | os.PathLike[str]) -> Path:
    """Where model.json lies; TagsError if it is not there."""
    folder = places.local_path(place)
    for found in (folder, folder / FOLDER):
        if (found / MANIFEST).exists():
            return found
    raise TagsError(
        f"{folder} holds no kept clusters: neither {MANIFEST} nor {FOLDER}/{MANIFEST} is there. Give the directory that 'skillshard tag "
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
    """Write a clustering; the encoder's files lie in `folder` already."""
    storage.write_array(places.join(folder, CENTROIDS), clusters.centroids)
    files = {name: storage.file_digest(places.join(folder, name)) for name in (CENTROIDS, *encoder_files)}
    manifest = ModelManifest(
        schema="skillshard/clusters/1",
        encoder=encoder,
        spherical=clusters.spherical,
        clusters=list(described),
        tried=list(tried),
        criterion=criterion,
        files=files,
    )
    storage.write_bytes(places.join(folder, MANIFEST), canonical.to_json(manifest.model_dump(by_alias=True)))


def copy_clusters(model: SavedClusters, folder: str | os.PathLike[str]) -> None:
    """A copy, file by file, model.json last."""
    for name in (*model.manifest.files, MANIFEST):
        storage.write_bytes(places.join(folder, name), storage.read_bytes(model.folder / name))


def verify_model(place: str | os.PathLike[str]) -> list[str]:
    """Every fault found: one sentence each."""
    folder = model_folder(place)
    try:
        manifest = ModelManifest.model_validate(storage.read_json(folder / MANIFEST))
    except ValidationError as error:
        return [f"{folder / MANIFEST} does not fit schemas/clusters-1.json: {canonical.first_fault(error)}. {_ANEW}"]
    return _faults(folder, manifest)


def _faults(folder: Path, manifest: ModelManifest) -> list[str]:
    return [fault for name, digest in manifest.files.items() if (fault := file_fault(folder / name, digest, MANIFEST))]


def file_fault(place: str | os.PathLike[str], digest: str, manifest: str) -> str | None:
    """What is wrong with a file whose digest a manifest knows, or None."""
    if not storage.exists(place):
        return f"{place} is missing, but {manifest} names it. {_ANEW}"
    got = storage.file_digest(place)
    return None if got == digest else f"{place} has digest {got}, {manifest} says {digest}: damaged or edited. {_ANEW}"
