"""Read CSV and TSV: a record is a sample, and the columns are the fields. Every value is a string.

The reader is the standard library's csv module in its strict mode. The header is the first record, or `FileLayout.header`. The rows of
a file are one stretch, because a line break inside quotes is part of a field. Memory is bounded by the largest record.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence

import xxhash

from skillshard.corpus.bad_record import BadRecord, Reason
from skillshard.corpus.contents import Refused, cut_off, encoding_hint, opened_text
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.sample import PassedOver, Rejection, Sample, check_size
from skillshard.corpus.sources import Source
from skillshard.corpus.stretches import Stretch
from skillshard.errors import name_some
from skillshard.printable import counted

_BLOCK_BYTES = 1 << 20
_UNCLOSED = "unexpected end of data"  # the message of the csv module for a quote that never closes
_LIMIT = "field larger than field limit"


class _Cut(Exception):
    """Error for the rest of a file that cannot be read.

    Args:
        detail: Description of the fault.
        reason: "truncated" for damage, "unsupported" for a limit of the reader.

    Attributes:
        line: 1-based line at which the unreadable record begins.
    """

    def __init__(self, detail: str, reason: Reason = "truncated") -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.line = 1


class _Bytes(io.RawIOBase):
    """Source as a file of Python, for the decoder of the standard library."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]  # the buffer of BufferedReader
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Lines:
    """Lines of a text with their ends, for the csv module.

    Attributes:
        record: Lines of the record that is being read.
    """

    def __init__(self, source: Source, limit: int) -> None:
        # Bytes that are no text become half surrogate pairs, so that only the record with these bytes is refused.
        buffered = io.BufferedReader(_Bytes(source), _BLOCK_BYTES)
        self._text = io.TextIOWrapper(buffered, "utf-8-sig", errors="surrogateescape", newline="")
        self._source, self._limit = source, limit
        self.record: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._limit)
        if len(line) == self._limit:
            raise _Cut(f"a line is longer than {self._limit:,} characters", "unsupported")
        if not line:
            if self._source.damage is not None:
                raise _Cut(self._source.damage, self._source.reason)
            raise StopIteration
        self.record.append(line)
        return line


def read_delimited(
    stretch: Stretch,
    *,
    fields: RowFields,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
) -> Iterator[Sample | Rejection]:
    """Yield the records of a CSV or TSV file. The line of a rejection is the line at which the record begins.

    Args:
        stretch: Stretch to read, a whole file.
        fields: Field mapping of the rows.
        max_sample_bytes: Largest size of a sample.
        hasher: Hash that is updated with the lines of the records, and of the header.
        passed_over: Not used, because every value is a string.
    """
    name, header, row = stretch.name, stretch.layout.header, 0
    try:
        for line, data, values in _records(stretch, max_sample_bytes):
            hasher.update(data)
            if header is None:
                header = _checked_header(values)
                continue
            row += 1
            try:
                sample = fields.sample(_record(header, values), row)
                check_size(sample, fields.mapping.kept_meta(sample.meta), max_sample_bytes)
            except BadRecord as error:
                raw = data.decode(errors="backslashreplace").rstrip("\r\n")
                yield Rejection(name, line, error.reason, error.detail, error.id, raw, error.field)
            else:
                yield sample
    except Refused as error:
        yield error.rejection
    except _Cut as error:
        yield cut_off(name, error.line, str(error), error.reason)


def lines_of_records(stretch: Stretch, *, max_sample_bytes: int) -> Iterator[int]:
    """Yield the line at which each record of a CSV or TSV file begins, without the header."""
    has_header = stretch.layout.header is None
    try:
        for number, (line, _, _) in enumerate(_records(stretch, max_sample_bytes)):
            if number or not has_header:
                yield line
    except (Refused, _Cut):
        return


def _records(stretch: Stretch, max_sample_bytes: int) -> Iterator[tuple[int, bytes, list[str] | BadRecord]]:
    """Yield the first line, the bytes and the fields of each record, the header included. A broken record has its fault as fields.

    Raises:
        Refused: The content does not fit the name.
        _Cut: The rest of the file cannot be read.
    """
    layout = stretch.layout
    source = opened_text(stretch, expected="lines of text")
    limit = 4 * max_sample_bytes + _BLOCK_BYTES
    # The limit of the csv module is one number for the whole process, so the number is only raised.
    csv.field_size_limit(max(limit, csv.field_size_limit()))
    lines = _Lines(source, limit)
    reader = csv.reader(
        lines,
        delimiter=layout.delimiter or ("\t" if stretch.format == "tsv" else ","),
        quotechar=layout.quote or None,
        quoting=csv.QUOTE_MINIMAL if layout.quote else csv.QUOTE_NONE,
        strict=True,
    )
    while True:
        lines.record, line = [], reader.line_num + 1
        values: list[str] | BadRecord
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            values = _fault(error, line, layout.quote)
        except _Cut as error:
            error.line = line
            raise
        text = "".join(lines.record)
        try:
            data = text.encode()
        except UnicodeEncodeError:
            data = text.encode(errors="surrogateescape")
            values = BadRecord("invalid-utf8", f"not valid {layout.encoding}{encoding_hint(layout)}")
        if values != []:  # a blank line is no record
            yield line, data, values


def _fault(error: csv.Error, line: int, quote: str) -> BadRecord:
    """Return the fault of a record.

    Raises:
        _Cut: The fault reaches to the end of the file.
    """
    message = str(error)
    if message == _UNCLOSED or message.startswith(_LIMIT):
        cut = _Cut(
            f"a quote {quote} opens here and does not close. If the quotes of the file are ordinary characters, give `quote=''`"
        )
        cut.line = line
        raise cut from error
    remedy = (
        "; if the quotes of the file are ordinary characters, give `quote=''`" if quote and quote in message else ""
    )
    return BadRecord("malformed-row", f"not valid CSV ({message}){remedy}")


def _checked_header(values: list[str] | BadRecord) -> tuple[str, ...]:
    """Return the names of the columns. A column without a name, as pandas writes for its index, is named by its number.

    Raises:
        _Cut: The header is broken, or has a name twice.
    """
    if isinstance(values, BadRecord):
        raise _Cut(f"the header is {values.detail}")
    names = [name or f"column_{number}" for number, name in enumerate(values, start=1)]
    # Damage may make a header of a million columns, so the names are counted in one pass.
    if twice := sorted(name for name, num in Counter(names).items() if num > 1):
        raise _Cut(f"several columns have the name {twice[0]!r}. Rename the columns, or give `header`", "unsupported")
    return tuple(names)


def _record(header: Sequence[str], values: list[str] | BadRecord) -> dict[str, str]:
    if isinstance(values, BadRecord):
        raise values
    if len(values) != len(header):
        raise BadRecord(
            "malformed-row",
            f"expected {counted(len(header), 'field')} ({name_some(header)}), got {len(values):,}",
        )
    return dict(zip(header, values, strict=True))
