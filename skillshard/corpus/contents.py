"""Open the bytes of a text file of a corpus, and check that the content fits the name."""

from skillshard.corpus.bad_record import Reason
from skillshard.corpus.formats import Compression, FileLayout
from skillshard.corpus.sample import Rejection
from skillshard.corpus.sources import PlainSource, Source, TranscodedSource, decompressed
from skillshard.corpus.stretches import Stretch

BOM = b"\xef\xbb\xbf"
"""Byte order mark of UTF-8, which Windows programs write."""
_HEAD_BYTES = 64  # longer than every mark below
# The skippable frames of zstd have 16 marks, and a file may begin with such a frame (RFC 8878).
_COMPRESSED_MAGIC: dict[Compression, tuple[bytes, ...]] = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))),
    "bz2": (b"BZh",),
    "xz": (b"\xfd7zXZ\0",),
}
_BINARY_MAGIC: dict[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def open_text(stretch: Stretch, *, expected: str) -> Source | Rejection:
    """Open the decompressed bytes of a stretch, in UTF-8.

    Args:
        stretch: Stretch of a text format.
        expected: Content of the format, for the message, such as "lines of JSON".

    Returns:
        The bytes from the start of the stretch (the byte before it, if there is one), or a rejection of the file if the content
        does not fit the name.
    """
    place, compression, layout = stretch.place, stretch.compression, stretch.layout
    # RFC 8259 asks for UTF-8 in JSON. Common Crawl writes the texts of all pages in UTF-8.
    is_utf8 = stretch.format in ("jsonl", "wet") or layout.is_utf8
    plain = PlainSource(place, 0)
    head = plain.read(_HEAD_BYTES)
    if compression is not None:
        if not head:
            return cut_off(stretch.name, 1, "the file is empty, 0 bytes")
        magics = _COMPRESSED_MAGIC[compression]
        # A file cut off within its mark is truncated, not of another format.
        if not head.startswith(magics) and not any(magic.startswith(head) for magic in magics):
            return not_as_named(stretch.name, f"expected {compression} data, got {head[:4]!r}")
        head = decompressed(place, compression).read(_HEAD_BYTES)
    if is_utf8:
        binary = next((kind for magic, kind in _BINARY_MAGIC.items() if head.startswith(magic)), None)
        if binary is not None or b"\0" in head:
            hint = ""
            if binary in ("UTF-16", "UTF-32"):
                is_json = stretch.format == "jsonl"
                hint = (
                    "; JSON is read in UTF-8, so convert the file, for example with iconv"
                    if is_json
                    else f"; give `encoding='{binary.lower()}'`"
                )
            return not_as_named(stretch.name, f"expected {expected}, got {binary or 'binary'} data{hint}")
    if compression is None:
        plain.seek(max(stretch.start - 1, 0))  # the same file, because a store answers each opening by a request
    source = plain if compression is None else decompressed(place, compression)
    return source if is_utf8 else TranscodedSource(source, layout.encoding)


def is_utf16(stretch: Stretch) -> bool:
    """Return whether the bytes of a text file begin with a byte order mark of UTF-16."""
    source = (
        PlainSource(stretch.place, 0)
        if stretch.compression is None
        else decompressed(stretch.place, stretch.compression)
    )
    head = source.read(2)
    return _BINARY_MAGIC.get(head) == "UTF-16"


def encoding_hint(layout: FileLayout) -> str:
    """Return the end of a sentence about text that is not valid UTF-8, which names the argument of another encoding."""
    return ". Give the encoding of the file with `encoding`, such as cp1252" if layout.is_utf8 else ""


class Refused(Exception):
    """Error for a file whose content does not fit its name.

    Attributes:
        rejection: Rejection of the file.
    """

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


def opened_text(stretch: Stretch, *, expected: str) -> Source:
    """Open the bytes of a stretch as `open_text`.

    Raises:
        Refused: The content does not fit the name.
    """
    source = open_text(stretch, expected=expected)
    if isinstance(source, Rejection):
        raise Refused(source)
    return source


def end_of(stretch: Stretch) -> int | None:
    """Return the end of a stretch in the bytes of `open_text`. None stands for the end of the file, in other units than the file's."""
    is_plain = stretch.compression is None and (stretch.format == "jsonl" or stretch.layout.is_utf8)
    return stretch.stop if is_plain else None


def not_as_named(name: str, detail: str) -> Rejection:
    """Return the rejection of a file whose content does not fit its name."""
    return Rejection(name, None, "not-the-named-format", f"not what its name says ({detail})")


def cut_off(name: str, line: int, damage: str, reason: Reason = "truncated") -> Rejection:
    """Return the rejection of the rest of a file, from a line or row on."""
    if reason == "unsupported":
        return Rejection(name, line, reason, f"from here on the file is not read: {damage}")
    return Rejection(name, line, reason, f"from here on the file is cut off or damaged ({damage})")
