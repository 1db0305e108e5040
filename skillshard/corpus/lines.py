"""JSONL, plain or compressed: one JSON object a line.

Bytes are read in blocks and split at once; only the parse and the checks of `sample_of` run once a line. Line numbers
and all else that an error needs are worked out when there is an error. Memory is bounded by a block plus the longest
line that is kept; a longer one is passed over in blocks.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import orjson
import xxhash

from skillshard.corpus.partitions import Partition
from skillshard.corpus.sample import (
    MAX_DEPTH,
    BadRecord,
    PassedOver,
    Reason,
    Rejection,
    Sample,
    check_size,
    exact_json,
    explain,
    is_plain,
    json_fault,
    long_digit_runs,
    may_be_deep,
    needs_exact,
    sample_of,
)
from skillshard.corpus.sources import DecompressedSource, PlainSource, Source

_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 64
_NEVER = 1 << 63
_ARRAY_SUFFIXES = (".json", ".json.gz", ".json.zst")
_COMPRESSED_MAGIC: dict[str, tuple[bytes, ...]] = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))),
}
_BINARY_MAGIC: dict[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


# ------------------------------------------------------------------------------------------------------------ blocks


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines that follow one another, from byte `offset` of the file on; or one line too long to be kept, as no
    data and its length in `num_skipped`."""

    offset: int
    data: bytes
    num_skipped: int = 0


def blocks(source: Source, *, start: int, stop: int | None, line_limit: int) -> Iterator[Block]:
    """The lines that start in [start, stop), whole, in blocks; `source` stands at `start - 1` (0 if that is `start`).

    A last line without newline counts, unless the source is damaged: then it may be half a line.
    """
    chunks = _stretch(source, position=max(start - 1, 0), stop=stop)
    offset, first = _first_line_start(chunks, start)
    return _whole_lines(itertools.chain((first,), chunks), source, offset=offset, line_limit=line_limit)


def _stretch(source: Source, *, position: int, stop: int | None) -> Iterator[bytes]:
    """From where the source stands to the end of the line that holds byte `stop - 1`."""
    while chunk := source.read(_BLOCK_BYTES):
        if stop is not None and position + len(chunk) >= stop:
            cut = chunk.find(b"\n", max(0, stop - 1 - position))
            if cut >= 0:
                yield chunk[: cut + 1]
                return
        yield chunk
        position += len(chunk)


def _first_line_start(chunks: Iterator[bytes], start: int) -> tuple[int, bytes]:
    """The offset of the first line that starts at `start` or later, and what was read of it."""
    if start == 0:
        first = next(chunks, b"")
        skipped = len(_BOM) if first.startswith(_BOM) else 0
        return skipped, first[skipped:]
    position = start - 1
    for chunk in chunks:
        cut = chunk.find(b"\n")
        if cut >= 0:
            return position + cut + 1, chunk[cut + 1 :]
        position += len(chunk)
    return position, b""


def _whole_lines(chunks: Iterable[bytes], source: Source, *, offset: int, line_limit: int) -> Iterator[Block]:
    pending: list[bytes] = []
    num_pending = 0
    for chunk in chunks:
        end = chunk.find(b"\n") + 1
        if end and num_pending + end > line_limit:
            yield Block(offset, b"", num_pending + end)
            offset += num_pending + end
            chunk, pending, num_pending = chunk[end:], [], 0
        cut = chunk.rfind(b"\n") + 1
        if cut:
            data = b"".join((*pending, chunk[:cut]))
            yield Block(offset, data)
            offset += len(data)
            chunk, pending, num_pending = chunk[cut:], [], 0
        num_pending += len(chunk)
        if num_pending > line_limit:
            pending = []
        else:
            pending.append(chunk)
    if num_pending and source.damage is None:
        long = num_pending > line_limit
        yield Block(offset, b"" if long else b"".join(pending), num_pending if long else 0)


# ------------------------------------------------------------------------------------------------------------ samples


def read_lines(
    partition: Partition,
    *,
    id_field: str | None,
    text_field: str,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
) -> Iterator[Sample | Rejection]:
    """The rows of a JSONL partition; `hasher` takes in the bytes of its lines."""
    source = _open(partition)
    if isinstance(source, Rejection):
        if partition.start == 0:
            yield source
        return
    name, kept_limit = partition.name, max_sample_bytes // 4
    line_limit = 16 * max_sample_bytes + _BLOCK_BYTES
    stop = partition.stop if partition.format == "jsonl" else None
    counter = _LineCounter(partition)
    for block in blocks(source, start=partition.start, stop=stop, line_limit=line_limit):
        hasher.update(block.data)
        if block.num_skipped:
            hasher.update(f"{block.num_skipped} bytes passed over".encode())
            yield Rejection(name, counter.line(0), "too-large", _too_long(block.num_skipped, line_limit))
            counter.passed += 1
            continue
        lines = block.data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        offset = block.offset
        runs = [offset + position for position in reversed(long_digit_runs(block.data))]
        next_run = runs[-1] if runs else _NEVER
        for number, line in enumerate(lines):
            end = offset + len(line) + 1
            try:
                sample = sample_of(orjson.loads(line), id_field, text_field, name, offset)
                is_suspect = next_run < end or (len(line) > 2 * MAX_DEPTH + len(sample.text) and may_be_deep(line))
                if is_suspect and not is_plain(map(type, sample.meta.values())) and needs_exact(sample.meta):
                    sample = sample_of(exact_json(line), id_field, text_field, name, offset)
                # A line's JSON is at most four times as long when written again (1e15 grows most), so a short one fits.
                if len(line) > kept_limit:
                    check_size(sample, max_sample_bytes)
            except (orjson.JSONDecodeError, BadRecord) as error:
                if line.strip():
                    mended = _mended(line, id_field, text_field, name, offset) if next_run < end else None
                    yield mended or _rejection(error, line, name=name, number=counter.line(number))
            else:
                yield sample
            offset = end
            if next_run < end:
                while runs and runs[-1] < end:
                    runs.pop()
                next_run = runs[-1] if runs else _NEVER
        counter.passed += len(lines)
    if source.damage is not None:
        yield _cut_off(name, counter.line(0), source.damage, source.reason)


class _LineCounter:
    """Absolute line numbers; what comes before the partition is only counted when a number is first asked for."""

    def __init__(self, partition: Partition) -> None:
        self.passed = 0
        self._partition = partition
        self._before: int | None = None

    def line(self, number: int) -> int:
        if self._before is None:
            self._before = _lines_before(self._partition)
        return self._before + self.passed + number + 1


def _lines_before(partition: Partition) -> int:
    """How many lines start before the partition."""
    if partition.start == 0:
        return 0
    count, left = 0, partition.start - 1
    source = PlainSource(partition.place, 0)
    while left > 0:
        chunk = source.read(min(_BLOCK_BYTES, left))
        count += chunk.count(b"\n")
        left -= len(chunk)
    return count + 1


def _open(partition: Partition) -> Source | Rejection:
    """The partition's bytes; a rejection of the file if it is not what its name says."""
    place = partition.place
    head = PlainSource(place, 0).read(_HEAD_BYTES)
    if partition.format != "jsonl":
        compression = "gzip" if partition.format == "jsonl.gz" else "zstd"
        if not head:
            return _cut_off(partition.name, 1, "the file is empty, 0 bytes")
        magic = _COMPRESSED_MAGIC[compression]
        if not head.startswith(magic) and not any(m.startswith(head) for m in magic):
            return _not_as_named(partition.name, f"expected {compression} data, got {head[:4]!r}")
        head = DecompressedSource(place, compression).read(_HEAD_BYTES)
    found = next((kind for magic, kind in _BINARY_MAGIC.items() if head.startswith(magic)), None)
    if found is not None or b"\0" in head:
        return _not_as_named(partition.name, f"expected lines of JSON, got {found or 'binary'} data")
    if partition.name.lower().endswith(_ARRAY_SUFFIXES) and head.lstrip(_BOM + b" \t\r\n").startswith(b"["):
        return _not_as_named(partition.name, "expected one JSON object a line, got one JSON array")
    if partition.format == "jsonl":
        return PlainSource(place, max(partition.start - 1, 0))
    return DecompressedSource(place, compression)


def _not_as_named(name: str, detail: str) -> Rejection:
    return Rejection(name, None, "not-the-named-format", f"not what its name says ({detail})")


def _cut_off(name: str, line: int, damage: str, reason: Reason = "truncated") -> Rejection:
    if reason == "unsupported":
        return Rejection(name, line, reason, f"from here on the file is not read: {damage}")
    return Rejection(name, line, reason, f"from here on the file is cut off or damaged ({damage})")


def _mended(line: bytes, id_field: str | None, text_field: str, name: str, offset: int) -> Sample | None:
    """The sample of a line whose id is an integer of more than 64 bits, which the fast parser takes for a float."""
    try:
        record = orjson.loads(line)
        if type(record) is not dict:
            return None
        needs_exact(record)  # or it is nested too deep
        return sample_of(exact_json(line), id_field, text_field, name, offset)
    except (orjson.JSONDecodeError, BadRecord):
        return None


def _too_long(num_bytes: int, line_limit: int) -> str:
    return f"the line is {num_bytes:,} bytes long, and lines over {line_limit:,} are not parsed"


def _rejection(error: orjson.JSONDecodeError | BadRecord, line: bytes, *, name: str, number: int) -> Rejection:
    line = line.removesuffix(b"\r")
    raw = line.decode(errors="backslashreplace")
    if isinstance(error, BadRecord):
        return Rejection(name, number, error.reason, error.detail, error.id, raw)
    if _is_encoding_error(line):
        return Rejection(name, number, "invalid-utf8", f"not valid UTF-8 ({_explanation(line)})", None, raw)
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as again:  # of the line without its end
        return Rejection(name, number, *json_fault(again), None, raw)
    raise AssertionError(line) from error


def _is_encoding_error(line: bytes) -> bool:
    """Whether a line that orjson refuses has bytes that are not UTF-8, or is JSON but for half a surrogate pair."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return True
    try:
        json.dumps(json.loads(text, parse_constant=_refuse), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _explanation(line: bytes) -> str:
    """What is wrong, where, in a line without its end; of bytes that are not UTF-8 orjson does not say where."""
    try:
        line.decode()
        orjson.loads(line)
    except UnicodeDecodeError as bad:
        return f"byte 0x{line[bad.start]:02x}: column {bad.start + 1}"
    except orjson.JSONDecodeError as bad:
        return explain(bad)
    raise AssertionError(line)


def line_numbers(partition: Partition, rows: Collection[int], *, max_sample_bytes: int) -> dict[int, int]:
    """The 1-based line of some rows of a JSONL partition (row 0 is its first); reads it again."""
    source = _open(partition)
    assert not isinstance(source, Rejection)
    stop = partition.stop if partition.format == "jsonl" else None
    line_limit = 16 * max_sample_bytes + _BLOCK_BYTES
    line, row, found = _lines_before(partition), 0, {}
    for block in blocks(source, start=partition.start, stop=stop, line_limit=line_limit):
        for data in block.data.removesuffix(b"\n").split(b"\n") if not block.num_skipped else (b"long",):
            line += 1
            if data.strip():
                if row in rows:
                    found[row] = line
                row += 1
    return found
