"""Read JSONL, plain or compressed: one JSON object per line.

Bytes are read and split in blocks. Only the parser and the checks of `RowFields` run for each line. Line numbers and other parts of
an error are computed only for an error. Memory is bounded by a block and the longest line that is parsed. A longer line is passed
over in blocks.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import xxhash

from skillshard.canonical import explain
from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.columns import SampleColumns, SampleJsons, SampleLists
from skillshard.corpus.contents import BOM, cut_off, end_of, open_text
from skillshard.corpus.json_values import (
    MAX_DEPTH,
    exact_json,
    is_plain,
    json_fault,
    long_digit_runs,
    may_be_deep,
    needs_exact,
    parse_quickly,
)
from skillshard.corpus.line_columns import LineColumns
from skillshard.corpus.line_jsons import LineJsons
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.quick_lines import quick_samples
from skillshard.corpus.sample import PassedOver, Rejection, Sample, check_size
from skillshard.corpus.sources import PlainSource, Source
from skillshard.corpus.stretches import Stretch
from skillshard.repeated_keys import repeated_keys

# The records of a block are parsed together. Larger blocks leave the caches of a CPU, and reading costs a quarter more (docs/LOG.md).
_BLOCK_BYTES = 1 << 18
# Bytes that a line may have beyond a multiple of the largest sample. Another number changes the digest of files with such lines.
_LINE_SLACK = 1 << 20
_NEVER = 1 << 63  # an offset beyond every file


# ------------------------------------------------------------------------------------------------------------ blocks


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring whole lines, or a line that is too long to be parsed.

    Attributes:
        offset: Position of the first byte in the file.
        data: Bytes of the lines. Empty for a line that is too long.
        num_skipped: Length in bytes of a line that is too long, otherwise 0.
    """

    offset: int
    data: bytes
    num_skipped: int = 0


def blocks(source: Source, *, start: int, stop: int | None, line_limit: int) -> Iterator[Block]:
    """Yield the whole lines that start in [start, stop), in blocks.

    A last line without newline counts, except in a damaged source, where it may be half a line.

    Args:
        source: Bytes from position `start - 1` on, or from 0 if `start` is 0.
        start: First position at which a line may start.
        stop: Position before which a line must start. None stands for the end of the source.
        line_limit: Length in bytes over which a line is passed over.
    """
    # The byte before `start` shows whether a line starts at `start` itself.
    chunks = _stretch(source, position=max(start - 1, 0), stop=stop)
    offset, first = _first_line_start(chunks, start)
    return _whole_lines(itertools.chain((first,), chunks), source, offset=offset, line_limit=line_limit)


def _stretch(source: Source, *, position: int, stop: int | None) -> Iterator[bytes]:
    """Yield the bytes from the present position of the source to the end of the line with byte `stop - 1`."""
    while chunk := source.read(_BLOCK_BYTES):
        if stop is not None and position + len(chunk) >= stop:
            cut = chunk.find(b"\n", max(0, stop - 1 - position))
            if cut >= 0:
                yield chunk[: cut + 1]
                return
        yield chunk
        position += len(chunk)


def _first_line_start(chunks: Iterator[bytes], start: int) -> tuple[int, bytes]:
    """Return the offset of the first line that starts at `start` or later, and the bytes of this line that were read."""
    if start == 0:
        first = next(chunks, b"")
        skipped = len(BOM) if first.startswith(BOM) else 0
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
        # The newline ends a line over the limit. The beginning of the line may be thrown away already.
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
        is_long = num_pending > line_limit
        yield Block(offset, b"" if is_long else b"".join(pending), num_pending if is_long else 0)


def line_limit_of(stretch: Stretch, max_sample_bytes: int) -> int:
    """Return the length in bytes over which a line of JSON or text is passed over."""
    # JSON escapes take at most 6 bytes for a byte of text (\u0041). A longer line is too large, or mostly white space.
    return (16 if stretch.format == "jsonl" else 1) * max_sample_bytes + _LINE_SLACK


# ------------------------------------------------------------------------------------------------------------ samples


def read_lines(
    stretch: Stretch,
    *,
    fields: RowFields,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
    columns: LineColumns | None = None,
    jsons: LineJsons | None = None,
) -> Iterator[list[Sample | Rejection] | SampleColumns | SampleJsons | SampleLists]:
    """Yield the rows of a stretch of a JSONL file, block by block.

    Args:
        stretch: Stretch to read.
        fields: Field mapping of the rows.
        max_sample_bytes: Largest size of a sample.
        hasher: Hash that is updated with the bytes of the lines.
        passed_over: Not used, because JSONL has no members or columns to leave out.
        columns: Reader of ordinary blocks as columns. None: no block is read as columns.
        jsons: Reader of ordinary blocks with the metadata as JSON. None: no block is read in this way.
    """
    source = open_text(stretch, expected="lines of JSON")
    if isinstance(source, Rejection):
        # A file has one rejection, however many stretches it is cut into.
        if stretch.start == 0:
            yield [source]
        return
    name, unchecked_bytes, sample_of = stretch.name, max_sample_bytes // 4, fields.sample
    line_limit = line_limit_of(stretch, max_sample_bytes)
    counter, no_json = LineCounter(stretch), orjson.JSONDecodeError
    for block in blocks(source, start=stretch.start, stop=end_of(stretch), line_limit=line_limit):
        hasher.update(block.data)
        if block.num_skipped:
            # The bytes are gone, so the digest takes the length instead.
            hasher.update(f"{block.num_skipped} bytes passed over".encode())
            yield [Rejection(name, counter.line(0), "too-large", _too_long(block.num_skipped, line_limit))]
            counter.passed += 1
            continue
        # Rewritten JSON is at most four times as long as the line (1e15 grows most), so a short line needs no check.
        if fields.is_quick and len(block.data) <= unchecked_bytes:
            of_block = _quick(block.data, fields, columns, jsons)
            if of_block is not None:
                yield of_block
                counter.passed += of_block.num_rows
                continue
        rows: list[Sample | Rejection] = []
        lines = block.data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        offset = block.offset
        # One search over the block finds the few lines that may hold an integer of more than 64 bits. The last run is the next.
        runs = [offset + position for position in reversed(long_digit_runs(block.data))]
        next_run = runs[-1] if runs else _NEVER
        records = _parsed(lines)
        repeated = repeated_keys(block.data, lines, records)
        for number, (line, record) in enumerate(zip(lines, records, strict=True)):
            end = offset + len(line) + 1
            try:
                if type(record) is no_json:
                    raise record
                if number in repeated:
                    raise BadRecord("malformed-json", f"the key {repeated[number]!r} stands twice in one object")
                sample = sample_of(record, offset)
                is_suspect = next_run < end or (len(line) > 2 * MAX_DEPTH + len(sample.text) and may_be_deep(line))
                if is_suspect:
                    # A quick mapping has taken the id and the text out of the record. Any other mapping leaves the record whole.
                    rest = sample.meta if fields.is_quick else record
                    if not is_plain(map(type, rest.values())) and needs_exact(rest):
                        sample = sample_of(exact_json(line), offset)
                if len(line) > unchecked_bytes:
                    check_size(sample, fields.mapping.kept_meta(sample.meta), max_sample_bytes)
            except (orjson.JSONDecodeError, BadRecord) as error:
                if line.strip():  # a blank line is no row
                    may_be_mended = next_run < end and isinstance(error, BadRecord) and error.reason == "wrong-type"
                    mended = _mended(line, fields, offset) if may_be_mended else None
                    rows.append(mended or rejection(error, line, name=name, number=counter.line(number)))
            else:
                rows.append(sample)
            offset = end
            if next_run < end:
                while runs and runs[-1] < end:
                    runs.pop()
                next_run = runs[-1] if runs else _NEVER
        yield rows
        counter.passed += len(lines)
    if source.damage is not None:
        yield [cut_off(name, counter.line(0), source.damage, source.reason)]


def _quick(
    data: bytes, fields: RowFields, columns: LineColumns | None, jsons: LineJsons | None
) -> SampleColumns | SampleJsons | SampleLists | None:
    """Return the samples of a block of ordinary lines in the wanted form or as lists, or None if a line needs a closer look."""
    of_block: SampleColumns | SampleJsons | None = None
    if columns is not None:
        of_block = columns.read(data)
    elif jsons is not None:
        of_block = jsons.read(data, fields.name)
    return quick_samples(data, fields) if of_block is None else of_block


def _parsed(lines: list[bytes]) -> list[Any]:
    """Return the JSON value of each line, or the error of the parser."""
    try:
        return list(map(orjson.loads, lines))  # the usual case, without a step of Python for each line
    except orjson.JSONDecodeError:
        return [_parsed_line(line) for line in lines]


def _parsed_line(line: bytes) -> Any:
    try:
        return parse_quickly(line)
    except orjson.JSONDecodeError as error:
        return error


class LineCounter:
    """Absolute line numbers. The lines before the stretch are counted at the first request for a number."""

    def __init__(self, stretch: Stretch) -> None:
        self.passed = 0
        self._stretch = stretch
        self._before: int | None = None

    def line(self, number: int) -> int:
        if self._before is None:
            self._before = _lines_before(self._stretch)
        return self._before + self.passed + number + 1


def _lines_before(stretch: Stretch) -> int:
    """Count the lines that start before the stretch."""
    if stretch.start == 0:
        return 0
    # The byte at `start - 1` does not count: a newline at this place begins the first line of the stretch.
    count, num_left = 0, stretch.start - 1
    source = PlainSource(stretch.place, 0)
    while num_left > 0:
        chunk = source.read(min(_BLOCK_BYTES, num_left))
        count += chunk.count(b"\n")
        num_left -= len(chunk)
    return count + 1


def _mended(line: bytes, fields: RowFields, offset: int) -> Sample | None:
    """Parse again a line with an integer of more than 64 bits as its id, which the fast parser turns into a float."""
    try:
        record = orjson.loads(line)
        if type(record) is not dict:
            return None
        needs_exact(record)  # raises if the nesting is too deep for the exact parser
        return fields.sample(exact_json(line), offset)
    except (orjson.JSONDecodeError, BadRecord):
        return None


def _too_long(num_bytes: int, line_limit: int) -> str:
    return f"the line is {num_bytes:,} bytes long, and lines over {line_limit:,} are not parsed"


def rejection(error: orjson.JSONDecodeError | BadRecord, line: bytes, *, name: str, number: int) -> Rejection:
    """Return the rejection of the JSON of a row.

    Args:
        error: Fault of the row.
        line: Bytes of the row.
        name: Name of the file in the corpus.
        number: 1-based line.
    """
    line = line.removesuffix(b"\r")
    raw = line.decode(errors="backslashreplace")
    if isinstance(error, BadRecord):
        return Rejection(name, number, error.reason, error.detail, error.id, raw, error.field)
    if _is_encoding_error(line):
        return Rejection(name, number, "invalid-utf8", f"not valid UTF-8 ({_explanation(line)})", None, raw)
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as fault:  # parsed again without the line's end, which would shift the column
        return Rejection(name, number, *json_fault(fault), None, raw)
    raise AssertionError(line) from error


def _is_encoding_error(line: bytes) -> bool:
    """Return whether a line that orjson refuses has invalid UTF-8, or is valid JSON except for half a surrogate pair."""
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
    """Describe the encoding fault of a line without its end, and the place. orjson does not give the place of invalid UTF-8."""
    try:
        line.decode()
        orjson.loads(line)
    except UnicodeDecodeError as bad:
        return f"byte 0x{line[bad.start]:02x}: column {bad.start + 1}"
    except orjson.JSONDecodeError as bad:
        return explain(bad)
    raise AssertionError(line)


def rows_of_blocks(stretch: Stretch, *, max_sample_bytes: int) -> Iterator[int]:
    """Yield the number of rows of each block of lines, and 1 for a rejection of the file or of its rest. No line is parsed."""
    source = open_text(stretch, expected="lines of text")
    if isinstance(source, Rejection):
        yield 0 if stretch.start else 1
        return
    line_limit = line_limit_of(stretch, max_sample_bytes)
    for block in blocks(source, start=stretch.start, stop=end_of(stretch), line_limit=line_limit):
        yield 1 if block.num_skipped else sum(1 for line in block.data.split(b"\n") if line.strip())
    if source.damage is not None:
        yield 1


def line_numbers(stretch: Stretch, rows: Collection[int], *, max_sample_bytes: int) -> dict[int, int]:
    """Return the 1-based line of some rows of a stretch of a JSONL file. Row 0 is the first. The stretch is read again."""
    source = open_text(stretch, expected="lines of JSON")
    assert not isinstance(source, Rejection)
    line_limit = line_limit_of(stretch, max_sample_bytes)
    line, row, row_lines = _lines_before(stretch), 0, {}
    for block in blocks(source, start=stretch.start, stop=end_of(stretch), line_limit=line_limit):
        for data in block.data.removesuffix(b"\n").split(b"\n") if not block.num_skipped else (b"long",):
            line += 1
            if data.strip():
                if row in rows:
                    row_lines[row] = line
                row += 1
    return row_lines
