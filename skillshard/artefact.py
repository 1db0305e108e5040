"""An artefact is a directory, local or in a store, finished by a manifest. This module starts, resumes and finishes the work on it.

Layout during the work:

    OUT/.work/job.json        inputs and arguments of the work; a command with other inputs is refused
    OUT/.work/refused         the last command ended with an error about the corpus or the arguments
    OUT/.work/records/STAGE/  one JSON record per finished task
    OUT/...                   parts, each whole
    OUT/MANIFEST              written last; then .work is removed

`made_from` (command, arguments, names and sizes of the inputs) determines the bytes and is part of the manifest. The inputs' times of
change are only in job.json, so that equal input gives equal bytes. A new time of change only means that a file has to be checked. The
content of the file decides.

A command that ended before its first finished task (because a field is missing, for example) leaves nothing that another command could
damage. The same holds for a command that was refused, for example because of a bad row or a number of skills that is too large: the same
command would be refused again, and its finished tasks do not fit a corrected command. So the next command starts the directory afresh, unless
a process still works in the directory.

A store has no locks and no renames. Two conditional requests replace both: job.json claims the directory, and the manifest finishes the
directory, and each is put only if its name is free. A command that fails before the first task is finished, or is refused, removes the claim.
"""

import contextlib
import fcntl
import fnmatch
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from skillshard import canonical, places, storage, uploads, web
from skillshard.errors import ExecutionError, SkillshardError, StorageError
from skillshard.printable import counted

M = TypeVar("M", bound=BaseModel)

MANIFESTS = {
    "tags.json": "tags",
    "manifest.json": "shards",
    "tokens.json": "tokens",
    ".export.json": "exported rows",
    "run.json": "a run's ledger",
}
"""The file that finishes an artefact -> the kind of artefact."""
_REFUSED = (".work", "refused")
NOT_BEGUN = "is a run that continues another run and has not begun: start the training with this ledger."
"""End of a sentence about the ledger of a run that `skillshard continue` has made."""


class _Lock:
    """A shared lock of a working process on a directory. The end of the process releases the lock.

    Args:
        descriptor: Open file, or open directory, that carries the lock.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self.is_held = self._take(fcntl.LOCK_SH)

    def is_alone(self) -> bool:
        """Whether no other command works in the directory just now. False if the file system has no locks."""
        if not self.is_held:
            return False
        is_alone = self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_alone:
            self.share()  # a failed conversion of a lock may lose the old lock
        return is_alone

    def share(self) -> None:
        """Return to a shared lock after `is_alone`, so that other commands may work in the directory."""
        self.is_held = self._take(fcntl.LOCK_SH)

    def _take(self, kind: int) -> bool:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, kind)
        except OSError:  # another process holds the lock, or the file system has no locks
            return False
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class Work:
    """Unfinished work on one artefact, new or resumed."""

    out: str
    manifest: str
    lock: _Lock | None = field(default=None, compare=False, repr=False)
    is_claimant: bool = field(default=False, compare=False)
    """Whether this process put job.json into a store."""
    scratch_folder: str | None = None
    """Directory for temporary files. None: .work/scratch of the artefact."""

    def place(self, *parts: str) -> str:
        """Return the place of a file or directory of the artefact."""
        return places.join(self.out, *parts)

    def records(self, stage: str) -> str:
        """Return the directory for the records of a stage's tasks."""
        return self.place(".work", "records", stage)

    def scratch(self, *parts: str) -> str:
        """Return a place for temporary files of the work. `finish` removes the files."""
        return places.join(self.scratch_folder or self.place(".work", "scratch"), *parts)

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, then remove the temporary files of the work."""
        _put_manifest(self.place(self.manifest), canonical.to_json(manifest))
        _clean(self.out, self.scratch_folder)

    def release(self) -> None:
        """Release the lock on the directory."""
        if self.lock is not None:
            self.lock.release()


def _put_manifest(place: str, data: bytes) -> None:
    """Write the file that finishes an artefact. In a store, only the first of several commands writes the file.

    Raises:
        StorageError: The store holds another manifest.
    """
    if not places.is_remote(place):
        storage.write_bytes(place, data)
    # Another run of the same command writes the same bytes, and so does a repeated request whose first answer got lost.
    elif not storage.put_if_absent(place, data) and storage.read_bytes(place) != data:
        raise StorageError(f"{places.public(place)} was written by another command meanwhile. Choose another `out`.")


Changed = Callable[[str, Sequence[str]], list[str]]
"""A function that takes the directory of an artefact and files with a new time of change, and returns the files with new content."""


def begin(
    out: str | os.PathLike[str],
    manifest: str,
    made_from: dict[str, Any],
    mtimes_ns: Mapping[str, int],
    changed: Changed = lambda folder, suspects: list(suspects),
    *,
    keep_unfinished_files: bool = False,
    scratch: str | os.PathLike[str] | None = None,
) -> Work | None:
    """Start work on `out`, or resume the work.

    Args:
        out: Directory, local or in a store. A missing directory is made.
        manifest: Name of the file that finishes the directory.
        made_from: Inputs and arguments, which determine the bytes. The finished manifest has them under "made_from".
        mtimes_ns: Time of last change of every input file, by place. A change between two runs is noticed.
        changed: Function that checks files with a new time of change. By default, a new time counts as new content.
        keep_unfinished_files: Whether temporary files of killed commands stay. The processes of a job array work on several nodes, and
            some file systems have locks on a single node only, so a temporary file may belong to a living process.
        scratch: Directory for temporary files, local or in a store. The work has a directory of its own inside, named after `out`. None:
            .work/scratch of `out`.

    Returns:
        The work, or None if `out` is already finished from the same inputs.

    Raises:
        StorageError: `out` holds something else. The message names the difference.
    """
    folder = _plain(out)
    uploads.refuse_unwritable(folder)
    # The names are listed first, then job.json is read, then the manifest. Another run of the same command writes job.json first
    # and removes it after the manifest, so that run is never taken for something foreign.
    names = _names_in(folder)
    job = _job_bytes(folder)
    if storage.exists(places.join(folder, manifest)):
        _refuse_other(folder, _by_name(_made_from(folder, manifest)), _by_name(made_from))
        _refuse_changed(folder, storage.stat(places.join(folder, manifest)).mtime_ns, mtimes_ns, changed)
        _clean(folder, _scratch_in(folder, job))
        return None
    scratch_folder = None if scratch is None else _scratch_of(folder, scratch)
    if job is None:
        _refuse_foreign(folder, names)
        lock = _lock_of(folder)
        if _claim(folder, made_from, mtimes_ns, scratch_folder):
            return Work(folder, manifest, lock, is_claimant=True, scratch_folder=scratch_folder)
        job = _job_bytes(folder)  # another command was faster
        if job is None:
            raise StorageError(f"{places.public(folder)} is used by another command just now. Run the command again.")
    begun = _begun(folder, job)  # only now, because a damaged job.json beside a finished artefact does no harm
    lock = _lock_of(folder)
    try:
        try:
            _refuse_other(folder, _by_name(begun["made_from"]), _by_name(made_from))
            has_new_times = _refuse_changed_since(folder, begun["mtimes_ns"], mtimes_ns, changed)
        except StorageError:
            if not _is_free_to_begin_anew(folder, names, lock):
                raise
            _remove_unfinished(folder, begun.get("scratch"))
            _write_job(folder, made_from, mtimes_ns, scratch_folder)
        else:
            _refuse_other_scratch(folder, begun.get("scratch"), scratch_folder)
            storage.remove(places.join(folder, *_REFUSED))
            if has_new_times:  # the next command need not check these files again
                _write_job(folder, made_from, mtimes_ns, scratch_folder)
        if lock is not None:
            if not keep_unfinished_files and lock.is_alone():
                storage.remove_leftovers(folder)  # temporary files of commands that were killed
            lock.share()
    except OSError:
        if lock is not None:
            lock.release()
        raise
    return Work(folder, manifest, lock, scratch_folder=scratch_folder)


def _scratch_of(folder: str, scratch: str | os.PathLike[str]) -> str:
    """Return the directory for the temporary files of an artefact under a directory that several artefacts may share."""
    # Absolute, because another command may resume the work from another directory.
    base, target = (place if places.is_remote(place) else os.path.abspath(place) for place in (_plain(scratch), folder))
    return places.join(base, f"skillshard-{canonical.digest(target.encode())[:12]}")


def _scratch_in(folder: str, job: bytes | None) -> str | None:
    """Return the place of temporary files in job.json of a finished artefact. A damaged job.json does no harm beside a finished artefact."""
    if job is not None:
        with contextlib.suppress(StorageError):
            return cast(str | None, _begun(folder, job).get("scratch"))
    return None


def _refuse_other_scratch(folder: str, before: str | None, now: str | None) -> None:
    """Refuse to continue work whose temporary files lie in another place.

    Raises:
        StorageError: The places differ.
    """
    if before != now:
        names = [
            "its own .work/scratch (no `scratch`)" if place is None else f"{places.public(place)}"
            for place in (before, now)
        ]
        raise StorageError(
            f"{places.public(folder)} holds unfinished work whose temporary files lie in {names[0]}, and this command names {names[1]}. "
            f"Give the same `scratch` again, or remove {places.public(folder)} and run the command again."
        )


def make(
    out: str | os.PathLike[str],
    manifest: str,
    made_from: dict[str, Any],
    work: Callable[[Work], None],
    *,
    mtimes_ns: Mapping[str, int] | None = None,
    changed: Changed = lambda folder, suspects: list(suspects),
    keep_unfinished_files: bool = False,
    scratch: str | os.PathLike[str] | None = None,
) -> None:
    """Begin or resume the work on `out` and do the work. If `out` is finished from the same inputs, do nothing.

    Two runs of the same command may work in the same directory. The faster run removes the scratch files of both runs, and the slower
    run fails on missing files. The failure is ignored if `out` is finished.

    Args:
        out, manifest, made_from, changed, keep_unfinished_files, scratch: As in `begin`.
        work: Function that does the work and ends with `Work.finish`.
        mtimes_ns: As in `begin`. None: no input can change.

    Raises:
        StorageError: As in `begin`. Errors of `work`, of any class, are raised if `out` is not finished.
    """
    times_ns = mtimes_ns or {}
    unfinished = begin(
        out, manifest, made_from, times_ns, changed, keep_unfinished_files=keep_unfinished_files, scratch=scratch
    )
    if unfinished is None:
        return
    try:
        work(unfinished)
    except (FileNotFoundError, StorageError, ExecutionError):
        # `begin` returns None if the other run has finished the directory. Otherwise the error is a real one.
        again = begin(
            out, manifest, made_from, times_ns, changed, keep_unfinished_files=keep_unfinished_files, scratch=scratch
        )
        if again is not None:
            again.release()
            if not keep_unfinished_files:  # other processes of a job array go on
                _take_claim_back(unfinished)
            raise
    except BaseException as error:
        if not keep_unfinished_files:
            # Errors about inputs and arguments are ValueErrors. An interrupt or a missing package says nothing against the finished tasks.
            is_refused = isinstance(error, SkillshardError) and isinstance(error, ValueError)
            _take_claim_back(unfinished, is_refused=is_refused)
        raise
    finally:
        unfinished.release()


def _take_claim_back(work: Work, *, is_refused: bool = False) -> None:
    """Let a corrected command begin in a directory where no task is finished, or where the command was refused."""
    with contextlib.suppress(OSError):  # the error of the work itself is the one to report
        if not places.is_remote(work.out):
            if is_refused:
                storage.write_bytes(work.place(*_REFUSED), b"")
        elif work.is_claimant and (is_refused or not _has_records(work.out)):
            _remove_unfinished(work.out, work.scratch_folder)


def _remove_unfinished(folder: str, scratch: str | None) -> None:
    """Remove the records and the temporary files of unfinished work. The lock of a local directory stays, because this process holds it."""
    storage.remove_tree(scratch or places.join(folder, ".work", "scratch"))
    if places.is_remote(folder):
        storage.remove_tree(places.join(folder, ".work"))
        return
    storage.remove_tree(places.join(folder, ".work", "records"))
    storage.remove(places.join(folder, *_REFUSED))


def refuse_nested(
    out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]], *, argument: str = "out"
) -> None:
    """Refuse an output inside an input, and an input inside the output. Links are followed.

    The next command would read an output inside its own input as input.

    Raises:
        StorageError: The output lies inside an input, or an input inside the output.
    """
    if places.is_remote(out):
        _refuse_nested_in_store(os.fspath(out), inputs, argument)
        return
    target = Path(os.path.realpath(places.local_path(out)))
    for place in inputs:
        if places.is_remote(place):
            continue
        base, pattern = _split_at_wildcards(places.local_path(place))
        source = Path(os.path.realpath(base))
        if source == target:  # `begin` refuses this output: not empty, or another artefact
            continue
        if source.is_dir() and target.is_relative_to(source) and _may_match(target.relative_to(source).parts, pattern):
            raise StorageError(
                f"`{argument}` {os.fspath(out)} lies in {os.fspath(place)}, which is read: the next command would read its own output. Choose a "
                f"`{argument}` beside it."
            )
        if source.is_relative_to(target) and source.exists():
            raise StorageError(
                f"{os.fspath(place)}, which is read, lies in `{argument}` {os.fspath(out)!r}. Choose another directory to write to."
            )


def _refuse_nested_in_store(out: str, inputs: Iterable[str | os.PathLike[str]], argument: str) -> None:
    """Do the part of `refuse_nested` for an output in a store."""
    target = _address(out)
    for place in inputs:
        source = _address(os.fspath(place)) if places.is_remote(place) else ""
        base = source.partition("*")[0].rpartition("/")[0] if "*" in source else source
        if source and source != target and (target.startswith(f"{base}/") or source.startswith(f"{target}/")):
            raise StorageError(
                f"`{argument}` {places.public(out)} and {places.public(place)}, which is read, lie in each other: a command would read its own "
                f"output. Choose a `{argument}` beside it."
            )


def _address(place: str) -> str:
    """Return the scheme, bucket and path of a URI, without parameters.

    >>> _address("s3://bucket/a/b/?region=us-east-1")
    's3://bucket/a/b'
    """
    return place.partition("?")[0].rstrip("/")


def _split_at_wildcards(place: Path) -> tuple[Path, tuple[str, ...]]:
    """Split a pattern into the directory before the first wildcard, and the rest. A place without wildcards has no rest."""
    for number, part in enumerate(place.parts):
        if glob.has_magic(part) and not place.exists():
            return Path(*place.parts[:number]), place.parts[number:]
    return place, ()


def _may_match(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a pattern matches a directory, or may match files in the directory. An empty pattern matches everything.

    >>> _may_match(("T",), ("*.jsonl",)), _may_match(("T",), ("*", "*.jsonl")), _may_match(("a", "T"), ("**", "*.jsonl"))
    (False, True, True)
    """
    if not pattern or "**" in pattern:
        return True
    pairs = zip(path, pattern, strict=False)
    return len(pattern) >= len(path) and all(fnmatch.fnmatch(part, wanted) for part, wanted in pairs)


def kind(place: str | os.PathLike[str]) -> str:
    """Return the manifest name of the artefact at a place. Over http, an artefact can only be a shard set.

    Raises:
        StorageError: The place holds no finished artefact.
    """
    if web.is_web(places.text_of(place)):
        return "manifest.json"
    folder = _plain(place)
    for name in MANIFESTS:
        if storage.exists(places.join(folder, name)):
            return name
    shown = places.public(folder)
    if storage.exists(places.join(folder, ".work", "job.json")):
        raise StorageError(f"{shown} is not finished: run the command that began it again.")
    if has_not_begun(place):
        raise StorageError(f"{shown} {NOT_BEGUN}")
    known = ", ".join(f"{name} ({what})" for name, what in MANIFESTS.items())
    if places.is_remote(folder):
        raise StorageError(f"{shown} holds no artefact of skillshard: none of {known} is there. Is the address right?")
    local = Path(folder)
    if not local.exists():
        raise StorageError(f"{shown} does not exist. Give the directory of tags, shards, token counts or a run.")
    if local.is_file():
        raise StorageError(f"{shown} is a file, and no artefact of skillshard. {_what_reads(local)}")
    raise StorageError(f"{shown} holds no artefact of skillshard: none of {known} is there.")


def has_not_begun(place: str | os.PathLike[str]) -> bool:
    """Return whether a place holds the ledger of a run that continues another run and has not begun."""
    if web.is_web(places.text_of(place)):
        return False
    folder = _plain(place)
    return storage.exists(places.join(folder, "handover.json")) and not storage.exists(places.join(folder, "run.json"))


def _what_reads(file: Path) -> str:
    """Return the remedy for a file that was given in place of an artefact."""
    if file.name in MANIFESTS:
        return f"It finishes {MANIFESTS[file.name]}: give its directory, {file.parent}."
    if file.suffix == ".json":
        return f"If it is a graph: skillshard graph show {file}."
    if any(file.name.endswith(suffix) for suffix in (".jsonl", ".ndjson", ".gz", ".zst", ".parquet", ".arrow", ".tar")):
        return f"If it is a corpus: skillshard tag metadata {file} --field FIELD --out TAGS."
    return "Give the directory of tags, shards, token counts or a run."


def parse_manifest(
    data: bytes,
    model: type[M],
    *,
    place: str | os.PathLike[str],
    schema: str,
    error: type[SkillshardError],
    anew: str,
) -> M:
    """Read a manifest into its model.

    Args:
        data: Bytes of the file.
        model: Model that the bytes must fit.
        place: Place of the file, for messages.
        schema: Name of the model's file in schemas/.
        error: Class of the error that is raised if the bytes do not fit.
        anew: Sentence on how to make a new manifest.
    """
    try:
        return model.model_validate(canonical.from_json(data, place))
    except ValidationError as fault:
        raise error(
            f"{os.fspath(place)} does not fit schemas/{schema}: {canonical.first_fault(fault)}: damaged or edited, or of another version. "
            f"{anew}"
        ) from fault


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """List the differences between two JSON values, as `path: before -> now`.

    >>> differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3]})
    ['b.1: 2 -> 3']
    """
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(str(key), before.get(key), now.get(key)) for key in sorted({*before, *now}, key=str)]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(index), old, new) for index, (old, new) in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [f"{path}: {_short(before)} -> {_short(now)}"]
    return [line for key, old, new in pairs for line in differences(old, new, f"{path}.{key}" if path else key)]


def _plain(place: str | os.PathLike[str]) -> str:
    """Return a place as a text, a local one as a path."""
    return os.fspath(place) if places.is_remote(place) else str(places.local_path(place))


def _names_in(folder: str) -> list[str]:
    """Return the names of the files and directories in a directory. A missing directory is empty."""
    if places.is_remote(folder):
        return storage.names_in(folder)
    local = Path(folder)
    if local.exists() and not local.is_dir():
        raise StorageError(f"{folder} is a file, and `out` must be a directory. Choose another `out`.")
    for part in (local, *local.parents):
        if part.is_symlink() and not part.exists():
            raise StorageError(
                f"{part} is a link to {os.readlink(part)}, which is not there. Make that directory, remove the link, or choose another `out`."
            )
    return storage.names_in(folder)


def _job_bytes(folder: str) -> bytes | None:
    """Return the bytes of job.json of unfinished work, or None if the directory has no job.json."""
    place = places.join(folder, ".work", "job.json")
    if places.is_remote(place):
        return storage.read_bytes(place) if storage.exists(place) else None
    try:
        return Path(place).read_bytes()
    except FileNotFoundError:
        return None


def _begun(folder: str, data: bytes) -> dict[str, Any]:
    """Return the inputs and arguments of unfinished work, from the bytes of its job.json."""
    job: Any = canonical.from_json(data, places.public(places.join(folder, ".work", "job.json")))
    if not (
        isinstance(job, dict) and isinstance(job.get("made_from"), dict) and isinstance(job.get("mtimes_ns"), dict)
    ):
        raise StorageError(
            f"{places.public(places.join(folder, '.work', 'job.json'))} does not say what the unfinished work was begun with: it is damaged "
            f"or edited. Remove {places.public(folder)} and run the command again, or choose another `out`."
        )
    return job


def _made_from(folder: str, manifest: str) -> Any:
    content = storage.read_json(places.join(folder, manifest))
    if not isinstance(content, dict) or not isinstance(content.get("made_from"), dict):
        raise StorageError(
            f"{places.public(folder)} holds a {manifest} that skillshard did not write (the file does not name its inputs). "
            "Choose another `out`."
        )
    return content["made_from"]


def _by_name(made_from: dict[str, Any]) -> dict[str, Any]:
    """Turn the list of inputs into name -> size, so that a difference names its file."""
    return {**made_from, "inputs": dict(made_from.get("inputs", ()))}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_other(folder: str, before: Any, now: Any) -> None:
    changed = differences(before, now)
    if changed:
        shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise StorageError(
            f"{places.public(folder)} was begun with other inputs or arguments ({shown}). Choose another `out`, or remove "
            f"{places.public(folder)} to make it anew."
        )


def _has_records(folder: str) -> bool:
    """Whether a task is finished in a directory."""
    return bool(storage.list_files(places.join(folder, ".work", "records"), "*.json", hidden=True))


def _lock_of(folder: str) -> _Lock | None:
    if places.is_remote(folder):
        return None
    place = Path(folder) / ".work" / "lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    return _Lock(os.open(place, os.O_RDWR | os.O_CREAT, 0o666))


@contextlib.contextmanager
def without_leftovers(folder: str, scratch: str, out: str | os.PathLike[str]) -> Iterator[None]:
    """Do work in a directory of results that never gets a manifest, and then remove the temporary files of killed commands.

    Nothing is removed while another command works in the directory, because the temporary files may belong to that command. The lock is
    on the directory itself, so no lock file stays beside the results. A store has no locks: only `scratch` is removed there.

    Args:
        folder: Directory, which is made if needed, or a folder of a store.
        scratch: Name of the subdirectory for the temporary files of the work.
        out: File outside the directory that the work ends with.
    """
    lock = None
    if not places.is_remote(folder):
        places.local_path(folder).mkdir(parents=True, exist_ok=True)
        lock = _Lock(os.open(places.local_path(folder), os.O_RDONLY))
    try:
        yield
        if lock is None or lock.is_alone():
            storage.remove_leftovers(folder)
            storage.remove_leftovers_of(out)
            storage.remove_tree(places.join(folder, scratch))
    finally:
        if lock is not None:
            lock.release()


def _is_free_to_begin_anew(folder: str, names: list[str], lock: _Lock | None) -> bool:
    """Whether no task is finished in a directory, or its command was refused before a final file, and no other process works in the directory.

    In a store, a claim is always respected.
    """
    if lock is None:
        return False
    was_refused = storage.exists(places.join(folder, *_REFUSED)) and names == [".work"]
    return (was_refused or not _has_records(folder)) and lock.is_alone()


def _claim(folder: str, made_from: dict[str, Any], mtimes_ns: Mapping[str, int], scratch: str | None) -> bool:
    """Write job.json into a directory without one. In a store, return False if another command was faster."""
    if not places.is_remote(folder):
        _write_job(folder, made_from, mtimes_ns, scratch)
        return True
    return storage.put_if_absent(places.join(folder, ".work", "job.json"), _job(made_from, mtimes_ns, scratch))


def _job(made_from: dict[str, Any], mtimes_ns: Mapping[str, int], scratch: str | None) -> bytes:
    job = {"made_from": made_from, "mtimes_ns": dict(mtimes_ns)}
    return canonical.to_json(job if scratch is None else {**job, "scratch": scratch})


def _write_job(folder: str, made_from: dict[str, Any], mtimes_ns: Mapping[str, int], scratch: str | None) -> None:
    storage.write_bytes(places.join(folder, ".work", "job.json"), _job(made_from, mtimes_ns, scratch))


def _refuse_changed_since(
    folder: str, before_ns: Mapping[str, int], now_ns: Mapping[str, int], changed: Changed
) -> bool:
    """Refuse inputs that changed since the work was begun.

    Returns:
        Whether the content of files had to be checked.

    Raises:
        StorageError: The content of an input changed.
    """
    suspects = [place for place in {**before_ns, **now_ns} if before_ns.get(place) != now_ns.get(place)]
    if not suspects:
        return False
    new = [place for place in suspects if place not in now_ns or place not in before_ns]
    if others := new or changed(folder, suspects):
        raise StorageError(
            f"{others[0]} changed since the unfinished work in {places.public(folder)} was begun ({counted(len(others), 'such file')}), "
            f"and the finished tasks may not fit the new content. Remove {places.public(folder)} and run the command again, or choose "
            "another `out`."
        )
    return True


def _refuse_changed(folder: str, finished_ns: int, mtimes_ns: Mapping[str, int], changed: Changed) -> None:
    # The manifest has no times, so an input counts as suspect if it changed after the manifest was written.
    suspects = [place for place, mtime_ns in mtimes_ns.items() if mtime_ns > finished_ns]
    if suspects and (others := changed(folder, suspects)):
        raise StorageError(
            f"{others[0]} changed after {places.public(folder)} was made from it ({counted(len(others), 'such file')}). Choose another "
            f"`out`, or remove {places.public(folder)} to make it anew."
        )


def _refuse_foreign(folder: str, names: list[str]) -> None:
    for name in names:
        if name in MANIFESTS:
            raise StorageError(
                f"{places.public(folder)} already holds {MANIFESTS[name]} ({name}). Choose another `out`."
            )
    if [name for name in names if name != ".work"]:
        raise StorageError(
            f"{places.public(folder)} is not empty ({', '.join(names[:3])}) and holds no artefact of skillshard. Choose another `out`."
        )


def _clean(folder: str, scratch: str | None) -> None:
    if scratch is not None:
        storage.remove_tree(scratch)  # before job.json, which alone names the place
    storage.remove_tree(places.join(folder, ".work"))
    storage.remove_leftovers(folder)
