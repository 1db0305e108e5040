"""Read the WET files of Common Crawl: the texts of web pages, as records of the WARC format.

A record of the type "conversion" is a sample. The fields are the lines of its header by their names, such as `WARC-Target-URI`,
`WARC-Date` and `WARC-Identified-Content-Language`. The id is the record's own id. Records of other types (`warcinfo`) are counted.
Memory is bounded by the largest record.

Reference:
    ISO 28500:2017, WARC 1.1, sections 4 and 5.
"""

from collections.abc import Iterator

import xxhash

from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.contents import cut_off, not_as_named, open_text
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.paths import is_of_file
from skillshard.corpus.sample import PassedOver, Rejection, Sample, check_size
from skillshard.corpus.sources import Source
from skillshard.corpus.stretches import Stretch

_BLOCK_BYTES = 1 << 20
_HEADER_LIMIT = 64 << 10  # the headers of Common Crawl have less than 1 kB
_BEGIN = b"WARC/1."
_ID = "WARC-Record-ID"
# Facts about the bytes of the record and not about the text.
_OF_THE_RECORD = frozenset(("WARC-Type", _ID, "Content-Length", "Content-Type", "WARC-Block-Digest"))


class _Cut(Exception):
    """Error for the rest of a file that cannot be read."""


class _Stream:
    """Bytes of a source with a look ahead."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._ready = b""

    def head(self) -> bytes:
        """Return the next header without the empty line at its end, or no bytes at the end of the file."""
        while True:
            self._ready = self._ready.lstrip(b"\r\n")
            end = self._ready.find(b"\r\n\r\n")
            if end >= 0:
                head, self._ready = self._ready[:end], self._ready[end + 4 :]
                return head
            if len(self._ready) > _HEADER_LIMIT:
                raise _Cut("the header of a record does not end")
            chunk = self._source.read(_BLOCK_BYTES)
            if not chunk:
                if self._source.damage or self._ready:
                    raise _Cut(self._source.damage or "the file ends inside the header of a record")
                return b""
            self._ready += chunk

    def take(self, num_bytes: int, limit: int) -> bytes | None:
        """Return the next bytes, or pass over the bytes and return None if there are more than `limit`."""
        parts, num_left = [], num_bytes
        while num_left > 0:
            chunk = self._ready[:num_left] or self._source.read(min(_BLOCK_BYTES, num_left))
            if not chunk:
                raise _Cut(self._source.damage or f"the file ends {num_left:,} bytes before the end of a record")
            self._ready = self._ready[len(chunk) :]
            num_left -= len(chunk)
            if num_bytes <= limit:
                parts.append(chunk)
        return b"".join(parts) if num_bytes <= limit else None


def read_wet(
    stretch: Stretch,
    *,
    fields: RowFields,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
) -> Iterator[Sample | Rejection]:
    """Yield the texts of a WET file.

    Args:
        stretch: Stretch to read, a whole file.
        fields: Field mapping of the rows.
        max_sample_bytes: Largest size of a sample.
        hasher: Hash that is updated with the headers and the texts.
        passed_over: Counter of the records of other types.
    """
    source = open_text(stretch, expected="WARC records")
    if isinstance(source, Rejection):
        yield source
        return
    name, stream, row = stretch.name, _Stream(source), 0
    try:
        while head := stream.head():
            if not head.startswith(_BEGIN):
                if row == 0:
                    yield not_as_named(name, f"expected a header that begins with WARC/1.0, got {head[:16]!r}")
                    return
                raise _Cut(f"expected the header of record {row + 1:,}, got {head[:16]!r}")
            header, num_bytes = _header(head)
            data = stream.take(num_bytes, max_sample_bytes)
            if header.get("WARC-Type") != "conversion":
                passed_over.members[f"records of the type {header.get('WARC-Type', 'unknown')}"] += 1
                continue
            row += 1
            hasher.update(b"%d:" % len(head) + head + b"%d:" % num_bytes + (data or b""))
            identity = header.get(_ID, f"{name}@{row}").strip("<>")
            try:
                if data is None:
                    detail = f"the text is {num_bytes:,} bytes, and at most {max_sample_bytes:,} are allowed"
                    raise BadRecord("too-large", detail, identity)
                sample = fields.sample(_record(header, data, identity, fields), row)
                check_size(sample, fields.mapping.kept_meta(sample.meta), max_sample_bytes)
            except BadRecord as error:
                raw = None if data is None else data.decode(errors="backslashreplace")
                yield Rejection(name, row, error.reason, error.detail, error.id or identity, raw, error.field)
            else:
                yield sample
    except _Cut as error:
        yield cut_off(name, row + 1, str(error), source.reason)


def _header(head: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header, and the length of the record's content in bytes.

    Raises:
        _Cut: The header does not give the length, so the next record cannot be found.

    >>> _header(b"WARC/1.0\\r\\nWARC-Type: conversion\\r\\nContent-Length: 12")
    ({'WARC-Type': 'conversion', 'Content-Length': '12'}, 12)
    """
    pairs = (line.partition(":") for line in head.decode(errors="replace").splitlines()[1:])
    header = {name.strip(): value.strip() for name, _, value in pairs if name.strip()}
    length = header.get("Content-Length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise _Cut(f"a record has the Content-Length {length!r}")
    return header, int(length)


def _record(header: dict[str, str], data: bytes, identity: str, fields: RowFields) -> dict[str, str]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02x} at {error.start:,}"
        raise BadRecord("invalid-utf8", f"not valid UTF-8 ({where} of the text)", identity) from error
    id_field = fields.mapping.id_field
    record = {name: value for name, value in header.items() if name not in _OF_THE_RECORD}
    named = {} if id_field is None or is_of_file(id_field) or id_field in record else {id_field: identity}
    return {**record, **named, fields.text_member: text}
