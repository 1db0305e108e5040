"""Read the bytes of a corpus file in order, plain or decompressed, up to the end or to a damage."""

import bz2
import codecs
import lzma
import zlib
from collections.abc import Iterator
from typing import Literal, Protocol, runtime_checkable

import pyarrow as pa

from skillshard import storage
from skillshard.corpus.formats import Compression

_BLOCK_BYTES = 1 << 20
# The beginnings of pyarrow's messages about bad input. Any other OSError comes from the disk or the network, and is raised.
_CODEC_ERRORS = ("Truncated compressed stream", "zlib inflate failed", "ZSTD decompress failed")
# `zstd --long=28` and higher levels write larger windows.
MAX_WINDOW_BYTES = 128 << 20
"""Largest window of zstd that pyarrow decompresses, in bytes."""
# The marks of frames in RFC 8878, and the two messages of zstd about limits of the reader.
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_ZSTD_LIMITS = ("requires too much memory", "Dictionary mismatch")
# Dictionaries of up to 192 MiB fit, and `xz -9` has 64 MiB. A larger dictionary would exceed the memory of a worker.
_XZ_MEMORY_BYTES = 200 << 20
# A decompressor loses the output of a step that meets a damage, so small steps lose little.
_STEP_BYTES = 64 << 10


@runtime_checkable
class Source(Protocol):
    """Bytes in order.

    Attributes:
        damage: Description of the fault if the bytes ended too early, otherwise None.
        reason: "truncated" for damage of the file, "unsupported" for a limit of the reader.
    """

    @property
    def damage(self) -> str | None: ...

    @property
    def reason(self) -> Literal["truncated", "unsupported"]: ...

    def read(self, num_bytes: int, /) -> bytes: ...


class PlainSource:
    """Bytes of a file from an offset on."""

    damage: str | None = None
    reason: Literal["truncated", "unsupported"] = "truncated"

    def __init__(self, place: str, start: int) -> None:
        self._file = storage.open_random(place)
        self.seek(start)

    def seek(self, start: int) -> None:
        """Go to an offset."""
        self._file.seek(start)

    def read(self, num_bytes: int, /) -> bytes:
        return bytes(self._file.read(num_bytes))


class TranscodedSource:
    """Text of another encoding as UTF-8. Invalid bytes stay unchanged, so that the reader refuses only the row with the invalid bytes."""

    def __init__(self, source: Source, encoding: str) -> None:
        self._source, self._encoding = source, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        self._ready = bytearray()
        self._has_ended = False
        self._fault: str | None = None

    @property
    def damage(self) -> str | None:
        return self._fault or self._source.damage

    @property
    def reason(self) -> Literal["truncated", "unsupported"]:
        return "truncated" if self._fault else self._source.reason

    def read(self, num_bytes: int, /) -> bytes:
        while len(self._ready) < num_bytes and not self._has_ended:
            chunk = self._source.read(_BLOCK_BYTES)
            try:
                text = self._decoder.decode(chunk, final=not chunk)
                self._ready += text.encode(errors="surrogateescape")
            except UnicodeError as error:
                self._fault = f"not valid {self._encoding}: {error}"
                chunk = b""
            self._has_ended = not chunk
        data = bytes(self._ready[:num_bytes])
        del self._ready[:num_bytes]
        return data


def decompressed(place: str, compression: Compression) -> Source:
    """Return the decompressed bytes of a file from its start."""
    if compression in ("bz2", "xz"):
        return SteppedSource(place, compression)
    return DecompressedSource(place, compression)


class SteppedSource:
    """Decompressed bytes of a bzip2 or xz file from its start, by the standard library. pyarrow does not read xz.

    The file can hold several streams, as parallel compressors write, and zeros after a stream. The bytes before a damage are delivered
    up to the last whole step. The steps depend on the file alone, so the delivered bytes do not depend on the size of the reads.
    """

    def __init__(self, place: str, compression: Compression) -> None:
        self.damage: str | None = None
        self.reason: Literal["truncated", "unsupported"] = "truncated"
        self._file = storage.open_stream(place)
        self._compression = compression
        self._decompressor = self._new()
        self._has_begun = self._has_ended = False
        self._ready = bytearray()

    def read(self, num_bytes: int, /) -> bytes:
        while len(self._ready) < num_bytes and not self._has_ended:
            self._step()
        chunk = bytes(self._ready[:num_bytes])
        del self._ready[:num_bytes]
        return chunk

    def _new(self) -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
        if self._compression == "bz2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def _step(self) -> None:
        """Decompress a step, or begin the next stream."""
        data = b""
        if self._decompressor.eof:
            data = self._after_stream()
            if not data:
                self._has_ended = True
                return
            self._decompressor, self._has_begun = self._new(), True
        elif self._decompressor.needs_input:
            data = bytes(self._file.read(_STEP_BYTES))
            if not data:
                self._end("the compressed data ends too early")
                return
        try:
            self._ready += self._decompressor.decompress(data, _STEP_BYTES)
        except lzma.LZMAError as error:
            self._end_by(str(error))
        except OSError as error:  # the decompressor reads no file, so the error is about the data
            self._end_by(str(error))

    def _after_stream(self) -> bytes:
        """Return the bytes after a finished stream and its padding of zeros, or no bytes at the end of the file."""
        data = self._decompressor.unused_data.lstrip(b"\0")
        while not data:
            chunk = bytes(self._file.read(_STEP_BYTES))
            if not chunk:
                return b""
            data = chunk.lstrip(b"\0")
        return data

    def _end_by(self, message: str) -> None:
        if "Memory usage limit" in message:
            self.reason = "unsupported"
            self._end(
                f"its xz dictionary needs more than {_XZ_MEMORY_BYTES >> 20} MiB. Write it anew with 'xz -dc OLD | xz -9 > NEW'"
            )
        elif self._has_begun:
            self._end(f"other data follows the compressed data ({message})")
        else:
            self._end(message)

    def _end(self, damage: str) -> None:
        self._has_ended, self.damage = True, damage


class DecompressedSource:
    """Decompressed bytes of a gzip or zstd file from its start, by pyarrow. All bytes before a damage are delivered, and then `damage` is set.

    The read that meets a damage returns no bytes in pyarrow. The file is then opened again, and the last stretch is read byte by byte.
    So the delivered bytes do not depend on the size of the reads.
    """

    def __init__(self, place: str, compression: Compression) -> None:
        self.damage: str | None = None
        self.reason: Literal["truncated", "unsupported"] = "truncated"
        self._has_ended = False
        self._place, self._compression = place, compression
        self._stream = storage.open_stream(place, compression=compression)
        self._position = 0

    def read(self, num_bytes: int, /) -> bytes:
        if self._has_ended:
            return b""
        try:
            chunk = bytes(self._stream.read(num_bytes))
        except OSError as error:
            self._end(_codec_damage(error))
            return self._rescued(num_bytes)
        self._position += len(chunk)
        return chunk

    def _end(self, damage: str) -> None:
        """End the reading, because of damage, of a limit of the codec, or of harmless padding after the data."""
        self._has_ended = True
        if self._compression == "gzip" and ends_in_zeros(self._place):
            return
        limit = None
        if self._compression == "zstd" and any(text in damage for text in _ZSTD_LIMITS):
            limit = zstd_limit(self._place)
        self.damage = limit or damage
        self.reason = "unsupported" if limit else "truncated"

    def _rescued(self, num_bytes: int) -> bytes:
        """Read the bytes between the last whole read and the damage."""
        rescued = bytearray()
        with storage.open_stream(self._place, compression=self._compression) as stream:
            _skip(stream, self._position)
            try:
                while len(rescued) < num_bytes and (byte := stream.read(1)):
                    rescued += byte
            except OSError as error:
                _codec_damage(error)
        return bytes(rescued)


def _codec_damage(error: OSError) -> str:
    if not str(error).startswith(_CODEC_ERRORS):
        raise error
    return str(error)


def _skip(stream: pa.NativeFile, num_bytes: int) -> None:
    while num_bytes > 0:
        num_bytes -= len(stream.read(min(num_bytes, _BLOCK_BYTES)))


# ------------------------------------------------------------------------------------------------ what codecs do not say


def ends_in_zeros(place: str) -> bool:
    """Return whether a gzip file is whole and only zeros follow the last member. Tapes and block devices pad files with zeros."""
    # 31: the largest window, 15 bits, and 16 for the header of gzip (zlib manual, inflateInit2).
    decompressor, is_inside, num_zeros = zlib.decompressobj(31), True, 0
    for data in _chunks(place):
        while data:
            if is_inside:
                try:
                    # With a limit of the output, because compressed zeros expand a thousandfold.
                    decompressor.decompress(data, _BLOCK_BYTES)
                except zlib.error:
                    return False
                is_inside = not decompressor.eof
                data = decompressor.unconsumed_tail if is_inside else decompressor.unused_data
                continue
            rest = data.lstrip(b"\0")
            num_zeros += len(data) - len(rest)
            if rest and num_zeros:
                return False
            if rest:
                decompressor, is_inside = zlib.decompressobj(31), True
            data = rest
    return not is_inside and num_zeros > 0


def _chunks(place: str) -> Iterator[bytes]:
    with storage.open_stream(place) as stream:
        while chunk := bytes(stream.read(_BLOCK_BYTES)):
            yield chunk


def zstd_limit(place: str) -> str | None:
    """Explain why pyarrow cannot decompress an undamaged zstd file, from the headers of its frames (RFC 8878).

    Returns:
        The middle of a sentence, or None if no frame exceeds a limit.
    """
    with storage.open_random(place) as file:
        size = file.size()
        position = 0
        while position + 6 <= size:
            file.seek(position)
            header = bytes(file.read(18))  # the longest header of a frame
            magic = int.from_bytes(header[:4], "little")
            if magic in _ZSTD_SKIPPABLE:
                position += 8 + int.from_bytes(header[4:8], "little")  # the mark and the size take 8 bytes
                continue
            if magic != _ZSTD_MAGIC:
                return None
            window, dictionary, header_bytes = _frame_header(header)
            if dictionary:
                return (
                    f"it is compressed with the zstd dictionary {dictionary}, and no dictionary is known. Decompress it "
                    "with 'zstd -d -D DICTIONARY'"
                )
            if window > MAX_WINDOW_BYTES:
                return (
                    f"its zstd frame at byte {position:,} needs a window of {window / (1 << 20):,.0f} MiB, and at most "
                    f"{MAX_WINDOW_BYTES >> 20} MiB are read. Write it anew with 'zstd -d --long=31 -c OLD | zstd -o NEW'"
                )
            position = _frame_end(file, position + header_bytes, has_checksum=bool(header[4] & 4), size=size)
    return None


def _frame_header(header: bytes) -> tuple[int, int, int]:
    """Return the window in bytes, the number of the dictionary (0 for none) and the length of a frame's header.

    Reference:
        RFC 8878, section 3.1.1.1.
    """
    descriptor = header[4]
    is_single_segment = bool(descriptor & 32)
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    content_bytes = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 if is_single_segment else 6
    dictionary = int.from_bytes(header[start : start + dictionary_bytes], "little")
    start += dictionary_bytes
    if is_single_segment:
        # The window is the whole content. A size of two bytes is written less 256.
        window = int.from_bytes(header[start : start + content_bytes], "little") + (256 if content_bytes == 2 else 0)
    else:
        base = 1 << (10 + (header[5] >> 3))
        window = base + base // 8 * (header[5] & 7)
    return window, dictionary, start + content_bytes


def _frame_end(file: pa.NativeFile, position: int, *, has_checksum: bool, size: int) -> int:
    """Return the position of the next frame."""
    while position + 3 <= size:
        file.seek(position)
        # A block's header: one bit for the last block, two bits for the type, and the size. A run stores one byte.
        block = int.from_bytes(bytes(file.read(3)), "little")
        is_run = block >> 1 & 3 == 1
        position += 3 + (1 if is_run else block >> 3)
        if block & 1:
            return position + 4 * has_checksum
    return size
