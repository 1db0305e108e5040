"""Write the tars, indexes and keys of a group of neighbouring shards: the last stage of `shard`."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from skillshard import places, storage
from skillshard.execution import Record
from skillshard.shards import members, pairs
from skillshard.shards.contents import stops_of, values_of
from skillshard.shards.layouts import LAYOUTS
from skillshard.shards.manifest import KEYS_DTYPE, SPLITS, Layout, index_name, keys_name, shard_name
from skillshard.shards.merge import Batch, Piece, SampleReader
from skillshard.shards.plan import ShardPlan
from skillshard.shards.tar import END_OF_ARCHIVE, Bytes


def write_group(
    out: str,
    folders: Mapping[int, str],
    shards: Sequence[ShardPlan],
    inputs: list[str],
    is_merged: bool,
    exceptions: Mapping[int, Sequence[str]],
    drop: bool,
    layout: Layout,
    suffixes: Sequence[str],
) -> Record:
    """Write some neighbouring shards. A shard whose range of hashes holds no sample is not written.

    Args:
        out: Directory of the shard set.
        folders: Skill -> name of its directory.
        shards: Shards to write.
        inputs: Sorted files, as in `SampleReader`.
        is_merged: Origin of the files, as in `SampleReader`.
        exceptions: Exceptions to the cut, as in `SampleReader`.
        drop: Whether copies are dropped.
        layout: Layout of the shards.
        suffixes: Suffixes of the members that the samples keep beside text and JSON.
    """
    pieces = [Piece(shard.skill, SPLITS.index(shard.split), shard.low, shard.high) for shard in shards]
    _, batches = SampleReader(inputs, is_merged, exceptions, drop).batches(pieces)
    records = []
    # A batch has several small shards, and a large shard has several batches.
    for number, parts in itertools.groupby(_shard_parts(batches), key=lambda part: part[0]):
        shard = shards[number]
        records.append(_write_shard(out, folders[shard.skill], shard, (part for _, part in parts), layout, suffixes))
    return {"shards": records}


class _Part(NamedTuple):
    """Neighbouring samples of a shard.

    Attributes:
        entries: Entries of the samples.
        texts: Texts.
        payloads: JSONs, or JSONs with members (members.py).
    """

    entries: np.ndarray
    texts: pa.LargeBinaryArray
    payloads: pa.LargeBinaryArray


def _shard_parts(batches: Iterable[Batch]) -> Iterator[tuple[int, _Part]]:
    """Yield the number of a shard with some of its samples, about `contents.CHUNK_BYTES` at a time."""
    for batch in batches:
        begin = 0
        for number, num_samples in batch.parts:
            entries, order = (values[begin : begin + num_samples] for values in (batch.entries, batch.order))
            start = 0
            for stop in stops_of(entries["text_bytes"].astype(np.int64) + entries["json_bytes"]):
                positions = 2 * order[start:stop]  # of the texts; a payload follows its text
                texts, payloads = (batch.contents.take(pa.array(positions + shift)) for shift in range(2))
                yield number, _Part(entries[start:stop], texts, payloads)
                start = stop
            begin += num_samples


def _write_shard(
    out: str,
    folder: str,
    shard: ShardPlan,
    parts: Iterable[_Part],
    layout: Layout,
    suffixes: Sequence[str],
) -> Record:
    name = shard_name(shard.split, folder, shard.number)
    sizes: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    contents = _contents(parts, sizes, keys)
    chunks = (
        pairs.tar_chunks_with_members(shard.position, _with_members(contents, suffixes, sizes))
        if suffixes
        else LAYOUTS[layout].tar_chunks(shard.position, contents)
    )
    num_bytes, digest = _write_tar(places.join(out, name), itertools.chain(chunks, [END_OF_ARCHIVE]))
    index_place = places.join(out, index_name(name))
    text_bytes, json_bytes, *member_bytes = np.concatenate(sizes, axis=1)
    storage.write_array(
        index_place,
        pairs.index_of(text_bytes, json_bytes, *member_bytes)
        if suffixes
        else LAYOUTS[layout].index_of(text_bytes, json_bytes),
    )
    keys_place = places.join(out, keys_name(name))
    storage.write_array(keys_place, np.concatenate(keys))
    return {
        "skill": shard.skill,
        "split": shard.split,
        "number": shard.number,
        "num_samples": len(text_bytes),
        "num_bytes": num_bytes,
        "digest": digest,
        "index_digest": storage.file_digest(index_place),
        "keys_digest": storage.file_digest(keys_place),
    }


def _contents(
    parts: Iterable[_Part], sizes: list[np.ndarray], keys: list[np.ndarray]
) -> Iterator[tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]]:
    """Yield the texts and payloads of each part. Append the bytes of texts and payloads to `sizes`, and the keys to `keys`."""
    for entries, texts, payloads in parts:
        sizes.append(np.stack([entries[name].astype(np.int64) for name in ("text_bytes", "json_bytes")]))
        keys.append(_keys_of(entries))
        yield texts, payloads


def _with_members(
    contents: Iterable[tuple[pa.LargeBinaryArray, pa.LargeBinaryArray]],
    suffixes: Sequence[str],
    sizes: list[np.ndarray],
) -> Iterator[tuple[Sequence[Bytes], Sequence[Bytes], Sequence[Sequence[tuple[str, Bytes]]]]]:
    """Take the payloads of samples apart. The last sizes become the bytes of texts, of JSONs, and of members in the tar.

    Args:
        contents: Texts and payloads of each part.
        suffixes: Suffixes of the members.
        sizes: Bytes of texts and payloads of each part, changed in place.
    """
    for text_array, payload_array in contents:
        texts, payloads = values_of(text_array), values_of(payload_array)
        jsons, further = zip(*(members.parts_of(payload, suffixes) for payload in payloads), strict=True)
        json_bytes, member_bytes = [len(json) for json in jsons], list(map(members.tar_bytes_of, further))
        sizes[-1] = np.stack((sizes[-1][0], np.array(json_bytes), np.array(member_bytes)))
        yield texts, jsons, further


def _keys_of(entries: np.ndarray) -> np.ndarray:
    """Return the keys of samples, dtype `KEYS_DTYPE`."""
    keys = np.empty(len(entries), KEYS_DTYPE)
    for name, column in (("id", "hash"), ("row", "row"), ("file", "file"), ("text", "text")):
        keys[name] = entries[column]
    return keys


def _write_tar(place: str, chunks: Iterator[Bytes]) -> tuple[int, str]:
    # The digest is taken of the bytes on their way to the disk, so the tar is not read again.
    hasher, num_bytes = xxhash.xxh3_128(), 0
    with storage.writing(place) as part, part.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            hasher.update(chunk)
            num_bytes += len(chunk)
    return num_bytes, hasher.hexdigest()
