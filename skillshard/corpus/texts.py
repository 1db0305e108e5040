"""Read files of text and source code: a file is a sample, or each line is a sample.

The id of a sample is the name of the file, for lines with "@" and the position of the line in bytes. A blank file and a blank line are
no samples. Memory is bounded by the largest sample, or by a block of lines.
"""

from collections.abc import Iterator

import xxhash

from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.contents import BOM, cut_off, encoding_hint, end_of, not_as_named, open_text
from skillshard.corpus.lines import LineCounter, blocks, line_limit_of
from skillshard.corpus.mapping import RowFields
from skillshard.corpus.paths import is_of_file
from skillshard.corpus.sample import PassedOver, Rejection, Sample, check_size
from skillshard.corpus.sources import Source
from skillshard.corpus.stretches import Stretch

_BLOCK_BYTES = 1 << 20


def read_text(
    stretch: Stretch,
    *,
    fields: RowFields,
    max_sample_bytes: int,
    hasher: xxhash.xxh3_128,
    passed_over: PassedOver,
) -> Iterator[Sample | Rejection]:
    """Yield the samples of a file of text: the whole file, or each line.

    Args:
        stretch: Stretch to read.
        fields: Field mapping of the rows. A text has an id and the field "text", and the mapping may name parts of the file's name.
        max_sample_bytes: Largest size of a sample.
        hasher: Hash that is updated with the bytes of the text.
        passed_over: Counter of the files without a text.
    """
    source = open_text(stretch, expected="text")
    if isinstance(source, Rejection):
        # A file has one rejection, however many stretches it is cut into.
        if stretch.start == 0:
            yield source
    elif stretch.layout.text_files == "lines":
        yield from _lines(stretch, source, fields, max_sample_bytes, hasher)
    else:
        item = _whole(stretch, source, fields, max_sample_bytes, hasher)
        if item is None:
            passed_over.members["files without a text"] += 1
        else:
            yield item


def _whole(
    stretch: Stretch, source: Source, fields: RowFields, max_sample_bytes: int, hasher: xxhash.xxh3_128
) -> Sample | Rejection | None:
    """Return the sample of a whole file, or None for a blank file."""
    name, data = stretch.name, b""
    while len(data) <= max_sample_bytes and (chunk := source.read(_BLOCK_BYTES)):
        data += chunk
    hasher.update(data)
    if source.damage is not None:
        return cut_off(name, 1, source.damage, source.reason)
    if len(data) > max_sample_bytes:
        return Rejection(name, None, "too-large", f"the text has more than {max_sample_bytes:,} bytes")
    if b"\0" in data:
        return not_as_named(name, "expected text, got binary data")
    try:
        text = _decoded(data.removeprefix(BOM), stretch)
        return fields.sample(_record(text, fields.own_name, fields), 0) if text.strip() else None
    except BadRecord as error:
        return Rejection(name, None, error.reason, error.detail, name, field=error.field)


def _lines(
    stretch: Stretch, source: Source, fields: RowFields, max_sample_bytes: int, hasher: xxhash.xxh3_128
) -> Iterator[Sample | Rejection]:
    name, counter = stretch.name, LineCounter(stretch)
    for block in blocks(
        source,
        start=stretch.start,
        stop=end_of(stretch),
        line_limit=line_limit_of(stretch, max_sample_bytes),
    ):
        hasher.update(block.data)
        lines = block.data.removesuffix(b"\n").split(b"\n") if not block.num_skipped else [b""]
        if block.num_skipped:
            hasher.update(f"{block.num_skipped} bytes passed over".encode())
            yield Rejection(name, counter.line(0), "too-large", f"the line is {block.num_skipped:,} bytes long")
        offset = block.offset
        for number, line in enumerate(lines):
            if line.strip():  # a blank line is no row
                try:
                    text = _decoded(line.removesuffix(b"\r"), stretch)
                    sample = fields.sample(_record(text, f"{fields.own_name}@{offset}", fields), offset)
                    check_size(sample, fields.mapping.kept_meta(sample.meta), max_sample_bytes)
                except BadRecord as error:
                    raw = line.decode(errors="backslashreplace")
                    yield Rejection(name, counter.line(number), error.reason, error.detail, error.id, raw, error.field)
                else:
                    yield sample
            offset += len(line) + 1
        counter.passed += len(lines)
    if source.damage is not None:
        yield cut_off(name, counter.line(0), source.damage, source.reason)


def _record(text: str, identity: str, fields: RowFields) -> dict[str, str]:
    """Return the fields of a text. The id stands under the name that the mapping asks for, because a text has no names."""
    id_field = fields.mapping.id_field
    record = {} if id_field is None or is_of_file(id_field) else {id_field: identity}
    return {**record, fields.text_member: text}


def _decoded(data: bytes, stretch: Stretch) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        encoding = "UTF-8" if stretch.layout.is_utf8 else stretch.layout.encoding
        where = f"byte 0x{data[error.start]:02x} at {error.start:,}"
        raise BadRecord("invalid-utf8", f"not valid {encoding} ({where}){encoding_hint(stretch.layout)}") from error
