"""The faults of the shards of a set: a sentence for each difference between the bytes, the index, the keys and the manifest."""

from collections.abc import Callable, Collection

import numpy as np
import orjson

from skillshard.errors import ShardError, name_some
from skillshard.hash_ranges import id_hash
from skillshard.printable import counted
from skillshard.shards.manifest import ANEW, SPLITS, ShardColumns, Split, SplitRule, keys_name
from skillshard.shards.members import totals_of
from skillshard.shards.open_shard import OpenShard
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.tar import END_OF_ARCHIVE
from skillshard.shards.texts import hash_of, hashes_of

# Texts of 1 kB then take 4 MB, and the cost of a call spreads over thousands of texts.
_ROWS_AT_ONCE = 4096


def faults_of(
    shards: SkillShards, rule: SplitRule | None, members: Collection[str], on_shard: Callable[[], None]
) -> list[str]:
    """Read all bytes of the shards of a skill and split, and return one sentence for each fault.

    Args:
        shards: Shards. Shards that are open already are read anew.
        rule: Rule of the split. With None, the sides of the texts are not checked.
        members: Suffixes of the members that samples may have.
        on_shard: Function that is called before each shard.
    """
    faults = []
    shards.forget()
    for shard in range(len(shards.shard_rows)):
        on_shard()
        try:
            opened = shards.open_checked(shard)
        except ShardError as error:
            faults.append(str(error))
            continue
        name = shards.name(shard)
        if opened.data[-len(END_OF_ARCHIVE) :] != END_OF_ARCHIVE:
            faults.append(f"{name} does not end with the end mark of a tar. {ANEW}")
        if opened.layout == "pairs" and (difference := _other_members(opened, members)) is not None:
            faults.append(f"{name} {difference}. {ANEW}")
        texts = None
        if isinstance(shards.columns, ShardColumns):
            texts, faults_of_keys = _checked_texts(shards, shard, opened)
            faults += faults_of_keys
        if rule is not None and (row := _wrong_side(opened, shards.split, rule, texts)) is not None:
            faults.append(
                f"{name}: by the hash of its text, row {row + 1:,} belongs to {_other(shards.split)}, so the text may stand in "
                f"both train and holdout. {ANEW}"
            )
    return faults


def _checked_texts(shards: SkillShards, shard: int, opened: OpenShard) -> tuple[np.ndarray | None, list[str]]:
    """Compare the keys of a shard with the ids and texts. Return the hashes of the texts if the keys are right, and the faults."""
    try:
        keys = shards.keys(shard)
    except ShardError as error:
        return None, [str(error)]
    if (row := _other_keys(opened, keys)) is None:
        return keys["text"], []
    name = keys_name(shards.name(shard))
    return None, [
        f"{name}: row {row + 1:,} has other hashes than the id and the text of that sample in the tar. {ANEW}"
    ]


def _other_members(opened: OpenShard, members: Collection[str]) -> str | None:
    """Describe a fault of the members of a shard as the rest of a sentence that begins with the name of the tar, or return None."""
    totals = totals_of(opened.data, opened.index)
    if totals.fault is not None:
        return totals.fault
    others = sorted({*totals.num_samples} - {*members})
    if not others:
        return None
    return (
        f"has a member {others[0]!r} in {counted(totals.num_samples[others[0]], 'sample')}, but the members of the manifest are {name_some(sorted(members)) or 'none'}: "
        "damaged or edited file"
    )


def _other_keys(opened: OpenShard, keys: np.ndarray) -> int | None:
    """Return the first row whose id or text has another hash than the keys say, or None."""
    for begin in range(0, len(keys), _ROWS_AT_ONCE):
        rows = range(begin, min(begin + _ROWS_AT_ONCE, len(keys)))
        texts = opened.text_hashes(rows)
        ids = np.array([id_hash(orjson.loads(opened.member(row))["id"]) for row in rows], np.uint64)
        wrong = np.flatnonzero(
            (keys["id"][rows.start : rows.stop] != ids) | (keys["text"][rows.start : rows.stop] != texts)
        )
        if len(wrong):
            return begin + int(wrong[0])
    return None


def _other(split: Split) -> Split:
    return SPLITS[1 - SPLITS.index(split)]


def _wrong_side(opened: OpenShard, split: Split, rule: SplitRule, texts: np.ndarray | None) -> int | None:
    """Return the first row whose text belongs to the other split, or None.

    Args:
        opened: Shard.
        split: Split of the shard.
        rule: Rule of the split.
        texts: Hashes of the texts, or None if the hashes are not known.
    """
    cut, exceptions = hash_of(rule.cut), hashes_of([*rule.also_held_out, *rule.kept_in_train])
    for begin in range(0, len(opened.index), _ROWS_AT_ONCE):
        rows = range(begin, min(begin + _ROWS_AT_ONCE, len(opened.index)))
        hashes = opened.text_hashes(rows) if texts is None else texts[rows.start : rows.stop]
        is_held_out = (hashes < cut) ^ np.isin(hashes, exceptions)  # an exception is on the other side of the cut
        wrong = np.flatnonzero(is_held_out != (split == "holdout")).tolist()
        if wrong:
            return begin + int(wrong[0])
    return None
