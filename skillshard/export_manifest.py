"""The manifest of an export, and the check of the files against the manifest."""

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from skillshard import artefact, places, storage
from skillshard.errors import ShardError
from skillshard.printable import counted
from skillshard.progress import advance

MANIFEST = ".export.json"
_ANEW = "Export anew into another directory with 'skillshard export'."


class ExportedFile(BaseModel):
    """File of an export."""

    model_config = ConfigDict(extra="forbid")

    name: str
    num_rows: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    digest: str = Field(description="xxh3 (128 bits) of the file.")


class ExportManifest(BaseModel):
    """Content of .export.json."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/export/1"] = Field("skillshard/export/1", alias="schema")
    made_from: dict[str, Any] = Field(description="Command, arguments and digests of the inputs.")
    columns: list[str] = Field(description="Columns of each row.")
    num_rows: int = Field(ge=0, description="Number of rows of all files.")
    skills: dict[str, int] = Field(description="Skill -> number of rows.")
    files: list[ExportedFile] = Field(description="Files in the order of the rows.")

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> "ExportManifest":
        """Read the manifest of a finished export.

        Raises:
            ShardError: The manifest is damaged.
            StorageError: The place holds no finished export.
        """
        file = places.join(place, MANIFEST)
        return artefact.parse_manifest(
            storage.read_bytes(file), cls, place=file, schema="export-1.json", error=ShardError, anew=_ANEW
        )


def verify_export(place: str | os.PathLike[str]) -> list[str]:
    """Read every file of an export, and return one sentence for each file that differs from the manifest.

    Raises:
        ShardError: The manifest is damaged.
        StorageError: The place holds no finished export.
    """
    manifest = ExportManifest.open(place)
    faults = []
    for number, file in enumerate(manifest.files):
        advance(number, len(manifest.files))
        path = places.join(place, file.name)
        if not storage.exists(path):
            faults.append(f"{places.public(path)} is missing. {_ANEW}")
            continue
        if (num_bytes := storage.stat(path).num_bytes) != file.num_bytes:
            faults.append(
                f"{places.public(path)} has {counted(num_bytes, 'byte')}, expected {file.num_bytes:,}: damaged or edited. {_ANEW}"
            )
        elif (digest := storage.file_digest(path)) != file.digest:
            faults.append(
                f"{places.public(path)} has the digest {digest}, expected {file.digest}: damaged or edited. {_ANEW}"
            )
    totals = {"files": sum(file.num_rows for file in manifest.files), "skills": sum(manifest.skills.values())}
    faults += [
        f"{MANIFEST} says num_rows is {manifest.num_rows:,}, but its {name} have {total:,}: damaged or edited. {_ANEW}"
        for name, total in totals.items()
        if total != manifest.num_rows
    ]
    return faults
