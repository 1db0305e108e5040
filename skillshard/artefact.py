"""An artefact on disk: a directory that is finished by its manifest, and the work that leads there.

Layout while work goes on:

    OUT/.work/job.json        what the work is made from; another command is refused
    OUT/.work/records/STAGE/  one JSON record per finished unit
    OUT/...                   parts, each whole
    OUT/MANIFEST              last; then .work goes

`made_from` (command, arguments, names and sizes of the inputs) determines the bytes, and stands in the manifest. The
inputs' times of change stand only in job.json: equal input gives equal bytes.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from skillshard import storage
from skillshard.errors import SkillshardError, StorageError

M = TypeVar("M", bound=BaseModel)

MANIFESTS = {
    "tags.json": "tags",
    "manifest.json": "shards",
    "tokens.json": "token counts",
    "run.json": "a run's ledger",
}
"""File that finishes an artefact -> what it finishes."""


@dataclass(frozen=True)
class Work:
    """Work towards one artefact, new or taken up again."""

    out: Path
    manifest: str

    def records(self, stage: str) -> str:
        """Where the records of a stage's units are kept."""
        return str(self.out / ".work" / "records" / stage)

    def scratch(self, *parts: str) -> Path:
        """A place for files that only this work needs; gone when it is finished."""
        return self.out.joinpath(".work", "scratch", *parts)

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, then remove what only the work needed."""
        storage.write_bytes(self.out / self.manifest, storage.to_json(manifest))
        _clean(self.out)


def begin(
    out: str | os.PathLike[str], manifest: str, made_from: dict[str, Any], mtimes_ns: Mapping[str, int]
) -> Work | None:
    """Start work on `out`, or take it up again.

    Args:
        out: local directory, made if missing.
        manifest: name of the file that finishes it.
        made_from: what determines the bytes; the finished manifest holds it under "made_from".
        mtimes_ns: place -> time of last change of every file read; a change between two runs is noticed.

    Returns:
        None if `out` is already finished from the same inputs.

    Raises:
        StorageError: `out` holds something else; the sentence says what differs.
    """
    folder = storage.local_path(out)
    # In this order, so that another run of the same command, which writes job.json first and removes it after the
    # manifest, is never taken for something foreign.
    there = _names_in(folder)
    begun = _begun(folder)
    if (folder / manifest).exists():
        _refuse_other(folder, _by_name(_made_from(folder, manifest)), _by_name(made_from))
        _refuse_changed(folder, (folder / manifest).stat().st_mtime_ns, mtimes_ns)
        _clean(folder)
        return None
    if begun is None:
        _refuse_foreign(folder, there)
        job = {"made_from": made_from, "mtimes_ns": dict(mtimes_ns)}
        storage.write_bytes(folder / ".work" / "job.json", storage.to_json(job))
        return Work(folder, manifest)
    _refuse_other(folder, _by_name(begun["made_from"]), _by_name(made_from))
    _refuse_changed_since(folder, begun["mtimes_ns"], mtimes_ns)
    return Work(folder, manifest)


def kind(place: str | os.PathLike[str]) -> str:
    """The manifest name of the artefact at a place; an error if there is none. What is remote can only be shards."""
    if storage.is_remote(place):
        return "manifest.json"
    folder = storage.local_path(place)
    for name in MANIFESTS:
        if (folder / name).exists():
            return name
    if (folder / ".work" / "job.json").exists():
        raise StorageError(f"{folder} is not finished: run the command that began it again.")
    known = ", ".join(f"{name} ({what})" for name, what in MANIFESTS.items())
    raise StorageError(f"{folder} holds no artefact of skillshard: none of {known} is there.")


def parse_manifest(
    data: bytes,
    model: type[M],
    *,
    place: str | os.PathLike[str],
    schema: str,
    error: type[SkillshardError],
    anew: str,
) -> M:
    """A manifest as its model.

    Args:
        data: the bytes of the file.
        model: what they must fit.
        place: of the file, for messages.
        schema: name of the file in schemas/ that says the same as the model.
        error: raised where they do not fit.
        anew: a sentence on how to come by another.
    """
    try:
        return model.model_validate(storage.from_json(data, place))
    except ValidationError as fault:
        raise error(
            f"{os.fspath(place)} does not fit schemas/{schema}: {storage.first_fault(fault)}: damaged or edited, or of another version. "
            f"{anew}"
        ) from fault


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as `path: before -> now`.

    >>> differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3]})
    ['b.1: 2 -> 3']
    """
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(str(key), before.get(key), now.get(key)) for key in sorted({*before, *now}, key=str)]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(at), old, new) for at, (old, new) in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [f"{path}: {_short(before)} -> {_short(now)}"]
    return [found for key, old, new in pairs for found in differences(old, new, f"{path}.{key}" if path else key)]


def _names_in(folder: Path) -> list[str]:
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file, and --out must be a directory. Choose another --out.")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _begun(folder: Path) -> dict[str, Any] | None:
    """What unfinished work in a directory was begun with."""
    try:
        data = (folder / ".work" / "job.json").read_bytes()
    except FileNotFoundError:
        return None
    job: dict[str, Any] = storage.from_json(data, folder / ".work" / "job.json")
    return job


def _made_from(folder: Path, manifest: str) -> Any:
    found = storage.read_json(folder / manifest)
    if not isinstance(found, dict) or "made_from" not in found:
        raise StorageError(
            f"{folder} holds a {manifest} that skillshard did not write (it says nothing of what it was made from). "
            "Choose another --out."
        )
    return found["made_from"]


def _by_name(made_from: dict[str, Any]) -> dict[str, Any]:
    """Inputs as name -> size, so that a difference names its file."""
    return {**made_from, "inputs": dict(made_from.get("inputs", ()))}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_other(folder: Path, before: Any, now: Any) -> None:
    changed = differences(before, now)
    if changed:
        shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise StorageError(
            f"{folder} was begun with other inputs or arguments ({shown}). Choose another --out, or remove {folder} to "
            "make it anew."
        )


def _refuse_changed_since(folder: Path, before_ns: Mapping[str, int], now_ns: Mapping[str, int]) -> None:
    changed = [place for place in {**before_ns, **now_ns} if before_ns.get(place) != now_ns.get(place)]
    if changed:
        raise StorageError(
            f"{changed[0]} changed since the unfinished work in {folder} was begun ({len(changed)} such file(s)), and what "
            f"is done there may not fit it any more. Remove {folder} and run the command again, or choose another --out."
        )


def _refuse_changed(folder: Path, finished_ns: int, mtimes_ns: Mapping[str, int]) -> None:
    newer = [place for place, mtime_ns in mtimes_ns.items() if mtime_ns > finished_ns]
    if newer:
        raise StorageError(
            f"{newer[0]} changed after {folder} was made from it ({len(newer)} such file(s)). Choose another --out, or remove "
            f"{folder} to make it anew."
        )


def _refuse_foreign(folder: Path, there: list[str]) -> None:
    for name in there:
        if name in MANIFESTS:
            raise StorageError(f"{folder} already holds {MANIFESTS[name]} ({name}). Choose another --out.")
    if [name for name in there if name != ".work"]:
        raise StorageError(
            f"{folder} is not empty ({', '.join(there[:3])}) and holds no artefact of skillshard. Choose another --out."
        )


def _clean(folder: Path) -> None:
    shutil.rmtree(folder / ".work", ignore_errors=True)
    storage.remove_leftovers(folder)
