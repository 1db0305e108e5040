"""The ledger: the append-only record of a run, and the channel over which its processes agree.

    RUN/run.json                                        the definition of the run: shards, skills, seed, round_draws, lag, policy
    RUN/handover.json                                   the run before and the place in its stream, if this run continues another run
    RUN/packed.json                                     the first block of the packed stream, if this run continues another run
    RUN/steers/00000000.json                            a steering by hand, which acts from a round on
    RUN/generations/00000001.json                       a resume: the records that generation 1 keeps of generation 0, and its job
    RUN/generations/00000000/observations/00000000.json reported losses, numbered in the order of the reports, with rising draws
    RUN/generations/00000000/rounds/00000001.json       a decided round: weights, counts, observations used, state of the policy
    RUN/generations/00000000/waits/00000002.json        a long wait for the report of a round, which determines nothing

One primitive carries the whole protocol: *put if absent*. A process that needs a round computes the round and puts the record. The
first put wins, and every process reads the winner's record. A dead process leaves no partial record.

Every record holds a checksum of its own content and the checksum of its predecessor, so a reader notices a changed or missing
record. `skillshard.mixing.records` reads the records of a generation.
"""

import errno
import os
import threading
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError

from skillshard import artefact, canonical, places, storage
from skillshard.errors import LedgerError, StorageError
from skillshard.mixing.ledger_record import LedgerRecord, RecordType
from skillshard.mixing.round_records import RoundRecord, SteeredRoundRecord
from skillshard.mixing.run_records import (
    AheadHandoverRecord,
    AheadRunRecord,
    BlocksHandoverRecord,
    BlockSkipsBlocksRunRecord,
    BlockSkipsHandoverRecord,
    BlockSkipsRunRecord,
    BlocksRunRecord,
    HandoverRecord,
    LastDrawHandoverRecord,
    RunRecord,
    SkippingHandoverRecord,
    SkippingRunRecord,
)

RUN = "run.json"
OLDER_RUNS = tuple(f"skillshard/run/{version}" for version in range(1, 5))
HANDOVER = "handover.json"
PACKED = "packed.json"
REMEDY = "Restore the file, resume from a checkpoint before it, or start a new ledger."


@runtime_checkable
class Ledger(Protocol):
    """Named byte strings that are written once. Names are paths with `/`."""

    def put(self, name: str, data: bytes) -> bool:
        """Write unless the name is taken. Return whether this call wrote the bytes."""

    def get(self, name: str) -> bytes | None:
        """Return the bytes that were put, or None."""

    def flush(self) -> None:
        """Return when all records put by this process will survive a power failure."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the records in a folder, sorted."""


class _Locks:
    """The locks of all ledgers of this process. The locks are no part of a ledger, because a ledger is sent to workers."""

    def __init__(self) -> None:
        self.marks, self.flush = threading.Lock(), threading.Lock()

    def after_fork(self) -> None:
        self.marks, self.flush = (
            threading.Lock(),
            threading.Lock(),
        )  # another thread of the parent may have held the old locks


_locks = _Locks()
os.register_at_fork(after_in_child=_locks.after_fork)


class DirectoryLedger:
    """A ledger in a directory, local or shared (NFS). Any number of threads may use the ledger."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        text = places.text_of(place)
        if not text or "\0" in text:
            raise LedgerError(f"the ledger's place is {text!r}: give the path of a directory.")
        self.root = places.local_path(place)
        # Folder -> its first record that may be lost in a power failure. A single name per folder is enough, because the names
        # of later records sort after this name. Syncing every put would cost a disk access per round.
        self._first_unsynced: dict[str, str] = {}

    def __str__(self) -> str:
        return str(self.root)

    def put(self, name: str, data: bytes) -> bool:
        path = f"{self.root}/{name}"
        if name == RUN:
            self._refuse_other_artefact()
        try:
            # Only the first record of a folder needs the folder to be created, so a put does not look for the folder first.
            try:
                was_put = storage.put_if_absent(path, data)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                was_put = storage.put_if_absent(path, data)
        except StorageError as error:
            raise LedgerError(str(error)) from error
        except OSError as error:
            raise LedgerError(_refused(path, error)) from error
        if was_put:
            self._mark(name.rpartition("/")[0], name)
        return was_put

    def _mark(self, folder: str, name: str) -> None:
        """Note that a record may be lost in a power failure."""
        with _locks.marks:
            # The least name, because another thread may have put a later record and noted this record first.
            self._first_unsynced[folder] = min(name, self._first_unsynced.get(folder, name))

    def _refuse_other_artefact(self) -> None:
        """Raise LedgerError in a directory of tags or shards: commands that take a directory tell its kind by the manifest."""
        for manifest, kind in artefact.MANIFESTS.items():
            if manifest != RUN and (self.root / manifest).exists():
                raise LedgerError(
                    f"{self.root} holds {kind} ({manifest}), and a run's ledger needs its own directory. Give another directory."
                )

    def get(self, name: str) -> bytes | None:
        path = f"{self.root}/{name}"
        try:
            with open(path, "rb", buffering=0) as file:
                return file.readall()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(_unreadable(path, error)) from error

    def flush(self) -> None:
        # One thread at a time: a thread with nothing left to sync must not return while another thread is still syncing.
        with _locks.flush:
            with _locks.marks:
                unsynced = dict(self._first_unsynced)
            for folder, first in unsynced.items():
                with _locks.marks:
                    # The mark goes before the names are listed, so that a record of another thread, put during the syncs, has a new mark.
                    del self._first_unsynced[folder]
                try:
                    for name in self.names(folder):
                        if name >= first:
                            self._sync(name)
                except BaseException:
                    self._mark(folder, first)
                    raise

    def _sync(self, name: str) -> None:
        try:
            storage.sync(self.root / name)
        except OSError as error:
            raise LedgerError(
                f"{self.root}/{name} may not be on the disk: {error.strerror}. A checkpoint that is written now could name records that the "
                "ledger has lost. Mend the cause, then write the checkpoint again."
            ) from error

    def names(self, folder: str) -> list[str]:
        try:
            names = os.listdir(self.root / folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LedgerError(_unreadable(f"{self.root}/{folder}", error)) from error
        prefix = f"{folder}/" if folder else ""
        return sorted(f"{prefix}{name}" for name in names if name.endswith(".json") and name[0] != ".")


def opened_ledger(ledger: Any) -> Ledger:
    """Return the ledger in a directory, or a ledger itself.

    Raises:
        LedgerError: The value is no path of a directory and no ledger.
    """
    if isinstance(ledger, (str, os.PathLike)):
        return DirectoryLedger(ledger)
    if not isinstance(ledger, Ledger):
        raise LedgerError(f"ledger is {ledger!r}: give the directory of the run's record.")
    return ledger


_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of the quota",
    errno.EROFS: "Make the file system writable, or give a ledger directory elsewhere",
    errno.EACCES: "Give this user the permission to write there",
    errno.EPERM: "Give this user the permission to write there",
    errno.ENOTDIR: "A part of the path is a file: give another ledger directory",
    errno.EEXIST: "A part of the path is a file: give another ledger directory",
}


def _refused(path: str, error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0, "Mend the cause")
    return (
        f"{path} cannot be written: {error.strerror}. {remedy}, then run the same command again. Every record written before is "
        "whole, and nothing was written under this name."
    )


def _unreadable(path: str, error: OSError) -> str:
    remedy = (
        "A part of the path is a file: give the directory of a run."
        if error.errno == errno.ENOTDIR
        else "Restore the file and its permissions, then run the same command again."
    )
    return f"{path} cannot be read: {error.strerror}. {remedy}"


def record_name(generation: int, kind: str, number: int) -> str:
    """Return the name of a round or an observation that a generation writes."""
    return f"{folder_of(generation, kind)}/{number:08d}.json"


def folder_of(generation: int, kind: str) -> str:
    """Return the folder of a generation's rounds or observations."""
    return f"generations/{generation:08d}/{kind}"


def generation_name(generation: int) -> str:
    return f"generations/{generation:08d}.json"


def numbers_in(ledger: Ledger, folder: str) -> list[int]:
    """List the numbers of the records in a folder, rising. A file with another name is no record, and is passed over."""
    # The last condition refuses names such as 7.json: two names of the same number would be two records of this number.
    stems = [name[len(folder) + 1 : -len(".json")] for name in ledger.names(folder)]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and f"{int(stem):08d}" == stem)


def read_record(ledger: Ledger, name: str, kind: type[RecordType], *, remedy: str = REMEDY) -> RecordType | None:
    """Read and check a record.

    Args:
        ledger: Ledger of the record.
        name: Name of the record.
        kind: Type of the record.
        remedy: Sentence that says how to mend a damaged record.

    Returns:
        The record, or None if no record has this name.

    Raises:
        LedgerError: The bytes are no record of this kind, or differ from the bytes that were put.
    """
    data = ledger.get(name)
    if data is None:
        return None
    try:
        value = canonical.from_json(data, name)
        if kind is RunRecord and isinstance(value, dict) and value.get("schema") in OLDER_RUNS:
            raise LedgerError(
                f"{ledger} was written by an older version of skillshard (schema {value['schema']}), and this version cannot continue the "
                "run. Give a new ledger directory, or continue with the version that began the run."
            )
        own: type[Any] = kind
        if isinstance(value, dict):
            own = _EXTENDED.get(kind, {}).get(value.get("schema"), kind)
        record: RecordType = own.model_validate(value)
        # A record without a checksum would pass, because a new record computes its checksum.
        if not isinstance(value, dict) or "checksum" not in value:
            raise StorageError(f"{name} has no checksum.")
    except ValidationError as error:
        raise _damaged(ledger, name, canonical.first_fault(error), remedy) from error
    except StorageError as error:
        raise _damaged(ledger, name, str(error), remedy) from error
    return record


_EXTENDED: dict[type[LedgerRecord], dict[Any, type[LedgerRecord]]] = {
    HandoverRecord: {
        "skillshard/handover/2": SkippingHandoverRecord,
        "skillshard/handover/3": AheadHandoverRecord,
        "skillshard/handover/4": BlocksHandoverRecord,
        "skillshard/handover/5": BlockSkipsHandoverRecord,
        "skillshard/handover/6": LastDrawHandoverRecord,
    },
    RoundRecord: {"skillshard/round/3": SteeredRoundRecord},
    RunRecord: {
        "skillshard/run/6": SkippingRunRecord,
        "skillshard/run/7": AheadRunRecord,
        "skillshard/run/8": BlocksRunRecord,
        "skillshard/run/9": BlockSkipsRunRecord,
        "skillshard/run/10": BlockSkipsBlocksRunRecord,
    },
}
"""Kind of record -> schema -> kind with more fields, which a run has only if it uses them. All other runs keep their bytes."""


def _damaged(ledger: Ledger, name: str, fault: str, remedy: str) -> LedgerError:
    return LedgerError(f"{ledger}/{name} is damaged: {fault.rstrip('.')}. {remedy}")
