"""The refusals of a corpus with their sentences, and the limits of damage."""

import gzip
import io
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard import storage
from skillshard.corpus import MISSING, Corpus, FieldMapping, Rejection, Sample, lines, lookup, read_partition
from skillshard.errors import CorpusError

GOOD = b'{"id": "a", "text": "one"}\n'
SET_ASIDE = "set such samples aside with `on_bad_sample='set-aside'`."
OTHER_FIELD = f"Mend the row, name another field with `fields`, `id_field` or `text_field`, or {SET_ASIDE}"
REST_ASIDE = "Fetch or write the file again, or set the rest of it aside with `on_bad_sample='set-aside'`."
SUFFIXES = ".jsonl .ndjson .json .csv .tsv .wet (also with .gz .zst .bz2 .xz) .parquet .arrow .feather .tar"
NO_ID = "Where rows have no ids, `id_field=None` makes ids of the file and the row."
RENAME = "Rename or rewrite the file, or set it aside with `on_bad_sample='set-aside'`."


def items_of(
    path: Path, *, partition_bytes: int = 1 << 26, max_sample_bytes: int = 1 << 24, **fields: Any
) -> list[Sample | Rejection]:
    corpus = Corpus.open(path, fields=FieldMapping(**fields))
    reading = corpus.reading(max_sample_bytes)
    partitions = corpus.partitions(partition_bytes=partition_bytes)
    return [item for partition in partitions for item in read_partition(partition, reading)]


def rejection_of(path: Path, **options: Any) -> Rejection:
    (bad,) = [item for item in items_of(path, **options) if isinstance(item, Rejection)]
    return bad


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


# --------------------------------------------------------------------------------------------------------- bad lines


@pytest.mark.parametrize(
    ("line", "reason", "sentence"),
    [
        (
            b'{"id": "b", "text": "unfinished',
            "malformed-json",
            f"not valid JSON (unexpected end of data: column 32). Mend the line, or {SET_ASIDE}",
        ),
        (
            b"[1, 2]",
            "malformed-json",
            f"expected a JSON object, got an array. An array has no names of fields: write each row as an object. Mend the line, or {SET_ASIDE}",
        ),
        (b"null", "malformed-json", f"expected a JSON object, got null. Mend the line, or {SET_ASIDE}"),
        (
            b'{"id": "b", "text": "x", "n": NaN}',
            "malformed-json",
            (
                "not valid JSON (NaN is no JSON value, write null in its place: column 31). "
                f"Mend the line, or {SET_ASIDE}"
            ),
        ),
        (
            b"[" * 1100 + b"]" * 1100,
            "malformed-json",
            f"not valid JSON (depth limit exceeded: column 1026). Mend the line, or {SET_ASIDE}",
        ),
        (
            b'{"id": "b", "text": "\xff"}',
            "invalid-utf8",
            f"not valid UTF-8 (byte 0xff: column 22). Mend the line, or {SET_ASIDE}",
        ),
        (
            b'{"id": "b", "text": "\\ud800"}',
            "invalid-utf8",
            f"not valid UTF-8 (no low surrogate in string: column 22). Mend the line, or {SET_ASIDE}",
        ),
        (
            b'{"id": "\\udc00", "text": "x"}',
            "invalid-utf8",
            f"not valid UTF-8 (invalid high surrogate in string: column 9). Mend the line, or {SET_ASIDE}",
        ),
        (
            b'{"id": "b", "text": "x", "meta": {"\\udc00": 1}}',
            "invalid-utf8",
            f"not valid UTF-8 (invalid high surrogate in string: column 36). Mend the line, or {SET_ASIDE}",
        ),
        (b'{"text": "x"}', "missing-field", f"no field 'id' for the id; the row has text. {NO_ID} {OTHER_FIELD}"),
        (b'{"id": "", "text": "x"}', "missing-field", f"the id in 'id' is empty. {OTHER_FIELD}"),
        (b'{"id": "b"}', "missing-field", f"no field 'text' for the text; the row has no other field. {OTHER_FIELD}"),
        (
            b'{"id": 1.5, "text": "x"}',
            "wrong-type",
            f"the id in 'id' must be a string or an integer, got a number (1.5). {OTHER_FIELD}",
        ),
        (
            b'{"id": true, "text": "x"}',
            "wrong-type",
            f"the id in 'id' must be a string or an integer, got a boolean (True). {OTHER_FIELD}",
        ),
        (
            b'{"id": null, "text": "x"}',
            "wrong-type",
            f"the id in 'id' must be a string or an integer, got null. {OTHER_FIELD}",
        ),
        (
            b'{"id": "b", "text": ["x", "y"]}',
            "wrong-type",
            f"the text in 'text' must be a string, got an array. {OTHER_FIELD}",
        ),
        (
            b'{"id": "b", "text": " \\n\\u00a0"}',
            "empty-text",
            f"the text in 'text' is empty or only white space. Mend the line, or {SET_ASIDE}",
        ),
        (
            b'{"id": "b", "text": "' + b"x" * 99 + b'"}',
            "too-large",
            (
                "the sample is 101 bytes of text and meta, and at most 100 are allowed. "
                f"Split the sample, raise `max_sample_bytes`, or {SET_ASIDE}"
            ),
        ),
    ],
)
@pytest.mark.parametrize("partition_bytes", [1, 1 << 26])
def test_a_bad_line_is_rejected_with_its_place_and_a_remedy(
    line: bytes, reason: str, sentence: str, partition_bytes: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", GOOD + b"\n" + GOOD + line + b"\r\n" + GOOD)
    items = items_of(path, partition_bytes=partition_bytes, max_sample_bytes=100)
    assert [type(item) for item in items] == [Sample, Sample, Rejection, Sample]
    bad = items[2]
    assert isinstance(bad, Rejection)
    assert bad.sentence() == f"a.jsonl line 4: {sentence}"
    assert bad.reason == reason
    assert bad.raw == line.decode(errors="backslashreplace")


@pytest.mark.parametrize(("value", "identity"), [(7, "7"), ("00123", "00123"), (-1, "-1"), (2**64 - 1, str(2**64 - 1))])
def test_an_id_is_a_string_or_the_digits_of_an_integer(value: int | str, identity: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", orjson.dumps({"id": value, "text": "x"}))
    assert items_of(path) == [Sample(identity, "x", {})]


@pytest.mark.parametrize(
    ("rest", "meta"),
    [
        ({}, {}),
        ({"meta": {"task": "add"}}, {"task": "add"}),
        ({"meta": {"task": "add"}, "lang": "en"}, {"meta": {"task": "add"}, "lang": "en"}),
        ({"meta": "free text"}, {"meta": "free text"}),
    ],
)
def test_meta_is_the_rest_of_the_row_or_its_only_object(
    rest: dict[str, Any], meta: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", orjson.dumps({"uid": "a", "content": "x", **rest}))
    assert items_of(path, id_field="uid", text_field="content") == [Sample("a", "x", meta)]


def test_an_id_that_is_known_is_in_the_rejection(tmp_path: Path) -> None:
    assert rejection_of(write(tmp_path / "a.jsonl", b'{"id": 7, "text": 8}')).id == "7"


def test_without_an_id_field_the_id_is_the_byte_offset_of_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD + b"\n" + GOOD)
    assert [item.id for item in items_of(path, id_field=None)] == ["a.jsonl@0", f"a.jsonl@{len(GOOD) + 1}"]


def test_lookup_follows_dots_and_an_optional_meta_prefix() -> None:
    sample = Sample("a", "x", {"task": {"name": "add"}, "flat.key": 1, "none": None, "meta": {"inner": 2}})
    paths = ["id", "text", "task.name", "meta.task.name", "flat.key", "none", "meta.inner", "task.size", "a.b", "id.x"]
    expected = ["a", "x", "add", "add", 1, None, 2, MISSING, MISSING, MISSING]
    assert [lookup(sample, path) for path in paths] == expected


# ------------------------------------------------------------------------------------------------------ long lines


def test_a_line_too_long_to_parse_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    long = b'{"id": "long", "text": "' + b"x" * (40 << 20) + b'"}\n'
    path = write(tmp_path / "a.jsonl", GOOD + long + GOOD)
    tracemalloc.start()
    items = items_of(path, max_sample_bytes=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(item) for item in items] == [Sample, Rejection, Sample]
    assert items[1].sentence() == (  # type: ignore[union-attr]
        f"a.jsonl line 2: the line is {len(long):,} bytes long, and lines over 1,064,576 are not parsed. "
        f"Split the sample, raise `max_sample_bytes`, or {SET_ASIDE}"
    )
    assert peak < 8 << 20


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 120), min_size=1, max_size=12),
    block_bytes=st.integers(1, 40),
    partition_bytes=st.integers(1, 200),
    last_newline=st.booleans(),
)
def test_neither_blocks_nor_partitions_change_what_a_file_gives(
    lengths: list[int],
    block_bytes: int,
    partition_bytes: int,
    last_newline: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rows = [b'{"id":%d,"text":"%s"}' % (i, b"x" * n) if n else b"" for i, n in enumerate(lengths)]
    path = write(tmp_path_factory.mktemp("a") / "a.jsonl", b"\n".join(rows) + b"\n" * last_newline)
    limit = 60  # lines over 16 * 2 + block_bytes are passed over, and samples over 2 bytes are rejected, so every row has an item
    whole = [(i, len(row)) for i, row in enumerate(rows, start=1) if row]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK_BYTES", block_bytes)
        cut = items_of(path, partition_bytes=partition_bytes, max_sample_bytes=2)
        items = items_of(path, partition_bytes=partition_bytes, max_sample_bytes=limit)
    assert [item.line for item in cut if isinstance(item, Rejection)] == [line for line, _ in whole]
    assert items == items_of(path, max_sample_bytes=limit)


# ----------------------------------------------------------------------------------------------------------- damage


ROWS = b"".join(b'{"id":"%d","text":"text %d"}\n' % (i, i * 7919) for i in range(30))
EXPECTED = [Sample(str(i), f"text {i * 7919}", {}) for i in range(30)]


def check_prefix_and_one_rejection(items: list[Sample | Rejection], expected: list[Sample]) -> None:
    good, last = items[:-1], items[-1]
    assert good == expected[: len(good)]
    assert isinstance(last, Rejection)
    assert last.reason in ("truncated", "not-the-named-format")


@pytest.mark.parametrize(
    ("name", "data", "whole"),
    [
        ("a.jsonl.gz", gzip.compress(ROWS, mtime=0), set()),
        ("a.jsonl.zst", zstd(ROWS), set()),
        ("b.jsonl.gz", gzip.compress(ROWS[:300], mtime=0) + gzip.compress(ROWS[300:], mtime=0), {"first member"}),
        ("b.jsonl.zst", zstd(ROWS[:300]) + zstd(ROWS[300:]), {"first member"}),
    ],
)
def test_a_compressed_file_cut_at_any_byte_gives_its_beginning_and_says_so(
    name: str, data: bytes, whole: set[str], tmp_path: Path
) -> None:
    compress = (lambda rows: gzip.compress(rows, mtime=0)) if name.endswith("gz") else zstd
    legal = len(compress(ROWS[:300])) if whole else None  # a file that ends with a member is whole, as for gunzip
    assert items_of(write(tmp_path / name, data)) == EXPECTED
    for cut in range(len(data)):
        items = items_of(write(tmp_path / name, data[:cut]))
        if cut == legal:
            assert [item for item in items if isinstance(item, Sample)] == EXPECTED[: ROWS[:300].count(b"\n")]
        else:
            check_prefix_and_one_rejection(items, EXPECTED)


def test_all_that_can_be_decompressed_before_a_cut_is_delivered(tmp_path: Path) -> None:
    rows = b"".join(b'{"id":"%d","text":"%s"}\n' % (i, zlib.compress(b"%d" % i).hex().encode()) for i in range(40_000))
    data = gzip.compress(rows, mtime=0)[:-100_000]
    items = items_of(write(tmp_path / "a.jsonl.gz", data))
    num_lines = zlib.decompressobj(31).decompress(data).count(b"\n")
    assert len(items) == num_lines + 1
    assert items[-1].sentence() == (  # type: ignore[union-attr]
        f"a.jsonl.gz line {num_lines + 1}: from here on the file is cut off or damaged (Truncated compressed stream). "
        f"{REST_ASIDE}"
    )


def test_an_error_of_the_disk_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def read(self, _: int) -> bytes:
            raise OSError("Connection reset by peer")

    path = write(tmp_path / "a.jsonl.gz", gzip.compress(ROWS))
    monkeypatch.setattr(storage, "open_stream", lambda *_, **__: Broken())
    with pytest.raises(OSError, match="Connection reset"):
        items_of(path)


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


TAR = tar_of(
    [
        (f"{i:04}.{ext}", data)
        for i in range(4)
        for ext, data in (("txt", b"text %d" % i), ("json", b'{"id":"s%d","level":%d}' % (i, i)))
    ]
)
TAR_SAMPLES = [Sample(f"s{i}", f"text {i}", {"level": i}) for i in range(4)]


def test_a_tar_cut_anywhere_never_gives_half_a_sample(tmp_path: Path) -> None:
    assert items_of(write(tmp_path / "a.tar", TAR)) == TAR_SAMPLES
    end = 4 * 4 * 512 + 512  # the members and the first block of the end mark
    for cut in [*range(0, end, 128), *range(1, end, 509)]:
        items = items_of(write(tmp_path / "a.tar", TAR[:cut]))
        check_prefix_and_one_rejection(items, TAR_SAMPLES)
    assert items_of(write(tmp_path / "a.tar", TAR[:end])) == TAR_SAMPLES


def arrow_bytes(open_writer: Callable[..., Any], table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with open_writer(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return bytes(sink.getvalue())


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=10, write_page_checksum=True)
    return bytes(sink.getvalue())


TABLE = pa.Table.from_pylist([{"id": s.id, "text": s.text} for s in EXPECTED])
TABLES = pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", parquet_bytes(TABLE)),
        ("a.arrow", arrow_bytes(pa.ipc.new_stream, TABLE)),
        ("a.feather", arrow_bytes(pa.ipc.new_file, TABLE)),
    ],
)


@TABLES
def test_a_table_cut_anywhere_gives_its_beginning_or_nothing(name: str, data: bytes, tmp_path: Path) -> None:
    assert items_of(write(tmp_path / name, data)) == EXPECTED
    for cut in range(0, len(data) - 8 if name == "a.arrow" else len(data), 3):
        check_prefix_and_one_rejection(items_of(write(tmp_path / name, data[:cut])), EXPECTED)


@TABLES
def test_no_flipped_byte_of_a_table_stops_the_reader(name: str, data: bytes, tmp_path: Path) -> None:
    """Such bytes have made pyarrow abort (Parquet footers) and crash (Arrow offsets). Here every byte gives rows or rejections."""
    for position in range(0, len(data), len(data) // 120):
        damaged = bytearray(data)
        damaged[position] ^= 0xA5
        items = items_of(write(tmp_path / name, bytes(damaged)), partition_bytes=200)
        assert items, f"rows are lost without a word, byte {position}"
        for item in items:
            assert isinstance(item, Sample) or item.sentence()


def test_offsets_that_point_outside_an_arrow_file_are_noticed_behind_text_that_is_not_utf8(tmp_path: Path) -> None:
    bad_text = pa.array([b"\xff", b"b"], pa.binary()).view(pa.string())
    table = pa.table({"id": ["a", "b"], "extra": bad_text, "text": ["one", "three"]})
    data = arrow_bytes(pa.ipc.new_stream, table)
    data = data.replace(struct.pack("<3i", 0, 3, 8), struct.pack("<3i", 0, 3, 1 << 30))
    bad = rejection_of(write(tmp_path / "a.arrow", data))
    assert (bad.line, bad.reason) == (1, "truncated")


def test_a_parquet_page_with_flipped_bits_is_noticed_and_what_is_before_it_is_read(tmp_path: Path) -> None:
    data = bytearray(parquet_bytes(TABLE))
    data[data.index(b"text 158380")] ^= 1  # row 20, the first of the third row group
    items = items_of(write(tmp_path / "a.parquet", bytes(data)), partition_bytes=1)
    assert items[:-1] == EXPECTED[:20]
    assert items[-1].sentence() == (  # type: ignore[union-attr]
        "a.parquet row 21: from here on the file is cut off or damaged (could not verify page integrity, CRC checksum "
        f"verification failed for page_ordinal 0). {REST_ASIDE}"
    )


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl.gz", ROWS, "expected gzip data, got b'{\"id'"),
        ("a.jsonl.zst", gzip.compress(ROWS, mtime=0), "expected zstd data, got b'\\x1f\\x8b\\x08\\x00'"),
        ("a.jsonl", gzip.compress(ROWS), "expected lines of JSON, got gzip data"),
        ("a.jsonl", zstd(ROWS), "expected lines of JSON, got zstd data"),
        (
            "a.jsonl",
            ROWS.decode().encode("utf-16"),
            "expected lines of JSON, got UTF-16 data; JSON is read in UTF-8, so convert the file, for example with iconv",
        ),
        (
            "a.json",
            ROWS.decode().encode("utf-32"),
            "expected lines of JSON, got UTF-32 data; JSON is read in UTF-8, so convert the file, for example with iconv",
        ),
        ("a.csv", ROWS.decode().encode("utf-32"), "expected lines of text, got UTF-32 data; give `encoding='utf-32'`"),
        ("a.jsonl", pickle.dumps(["x"] * 99), "expected lines of JSON, got binary data"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(ROWS)), "expected lines of JSON, got gzip data"),
        ("a.jsonl.bz2", ROWS, "expected bz2 data, got b'{\"id'"),
        ("a.jsonl.xz", gzip.compress(ROWS, mtime=0), "expected xz data, got b'\\x1f\\x8b\\x08\\x00'"),
        ("a.csv", gzip.compress(ROWS), "expected lines of text, got gzip data"),
        ("a.csv", ROWS.decode().encode("utf-16"), "expected lines of text, got UTF-16 data; give `encoding='utf-16'`"),
        ("a.txt", pickle.dumps(["x"] * 99), "expected text, got binary data"),
        ("a.parquet", ROWS, "expected Parquet data, got b'{\"id'"),
        ("a.arrow", ROWS, "expected Arrow data, got b'{\"id'"),
        ("a.tar", ROWS, "expected a tar, found no tar header at its start"),
        ("a.tar", gzip.compress(TAR), "expected a tar, found no tar header at its start"),
    ],
)
@pytest.mark.parametrize("partition_bytes", [10, 1 << 26])
def test_a_file_that_is_not_what_its_name_says_is_rejected_once(
    name: str, data: bytes, sentence: str, partition_bytes: int, tmp_path: Path
) -> None:
    (bad,) = items_of(write(tmp_path / name, data), partition_bytes=partition_bytes)
    assert isinstance(bad, Rejection)
    assert bad.reason == "not-the-named-format"
    assert bad.sentence() == f"{name}: not what its name says ({sentence}). {RENAME}"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "a.tar"])
def test_an_empty_file_is_whole_only_as_plain_jsonl(name: str, tmp_path: Path) -> None:
    unit = "line" if "jsonl" in name else "row"
    assert rejection_of(write(tmp_path / name, b"")).sentence() == (
        f"{name} {unit} 1: from here on the file is cut off or damaged (the file is empty, 0 bytes). {REST_ASIDE}"
    )
    assert items_of(write(tmp_path / "b.jsonl", b"")) == []


# ----------------------------------------------------------------------------------------------------- tables and tars


@TABLES
def test_a_bad_row_of_a_table_is_rejected_with_its_absolute_row(name: str, data: bytes, tmp_path: Path) -> None:
    table = TABLE.set_column(1, "text", pa.array(["x"] * 25 + [None] + ["x"] * 4))
    make = {"a.parquet": parquet_bytes}.get(name) or (
        lambda t: arrow_bytes(pa.ipc.new_file if name == "a.feather" else pa.ipc.new_stream, t)
    )
    items = items_of(write(tmp_path / name, make(table)), partition_bytes=200)
    assert [type(item) for item in items] == [Sample] * 25 + [Rejection] + [Sample] * 4
    assert items[25] == Rejection(
        name, 26, "wrong-type", "the text in 'text' must be a string, got null", "25", '{"id":"25","text":null}', "text"
    )


@pytest.mark.parametrize("open_writer", [None, pa.ipc.new_stream])
def test_text_in_a_table_that_is_not_utf8_costs_only_its_row(open_writer: Any, tmp_path: Path) -> None:
    text = pa.array([b"one", b"tw\xff", b"three"], pa.binary()).view(pa.string())
    table = pa.table({"id": ["a", "b", "c"], "text": text})
    data = parquet_bytes(table) if open_writer is None else arrow_bytes(open_writer, table)
    path = write(tmp_path / ("a.parquet" if open_writer is None else "a.arrow"), data)
    assert [type(item) for item in items_of(path)] == [Sample, Rejection, Sample]
    assert rejection_of(path).sentence() == (
        f"{path.name} row 2: not valid UTF-8 (byte 3 of column 'text'). Mend the row, or {SET_ASIDE}"
    )


def test_values_of_a_table_become_plain_json(tmp_path: Path) -> None:
    day = pa.array([1_577_836_800_000_000_001], pa.timestamp("ns"))
    table = pa.table({"id": [1], "text": ["x"], "day": day, "score": [float("nan")], "tags": [["a"]]})
    (item,) = items_of(write(tmp_path / "a.parquet", parquet_bytes(table)))
    assert item == Sample("1", "x", {"day": "2020-01-01 00:00:00.000000001", "score": None, "tags": ["a"]})


@pytest.mark.parametrize("blob", [b"\x00", b"\x01\x00\x00\x00", b"\xff\xd8"])
def test_bytes_that_are_no_text_are_left_out_of_meta(blob: bytes, tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "text": ["x"], "blob": [blob]})
    assert items_of(write(tmp_path / "a.parquet", parquet_bytes(table))) == [Sample("a", "x", {})]


def test_two_columns_of_one_name_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    table = pa.table([["a"], ["x"], ["y"]], names=["id", "text", "text"])
    bad = rejection_of(write(tmp_path / "a.arrow", arrow_bytes(pa.ipc.new_stream, table)))
    assert bad.sentence() == (
        "a.arrow row 1: from here on the file is not read: 2 columns have the name 'text', which is asked for. Rename the "
        "columns. Or set the rest of the file aside with `on_bad_sample='set-aside'`."
    )


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("0.txt", b"x")], Sample("0", "x", {})),
        ([("dir.a/0.json", b'{"text": "x", "n": 1}')], Sample("dir.a/0", "x", {"n": 1})),
        ([("./0.txt", b"x"), ("0.info.json", b'{"n": 1}'), ("0.pkl", b"junk")], Sample("0", "x", {"n": 1})),
        ([("0.json", b"{"), ("0.txt", b"x")], "its JSON member is not valid JSON (unexpected end of data"),
        (
            [("0.json", b'{"n": 1, "n": 2}'), ("0.txt", b"x")],
            "in its JSON member, the key 'n' stands twice in one object",
        ),
        ([("0.txt", b"\xff")], "its text member is not valid UTF-8 (byte 0xff at 0)"),
        ([("0.jpg", b"x")], "no member .txt or .json for the text; the members of the sample are 0.jpg"),
        (
            [("0.tar", b"x"), ("0.cls", b"x")],
            "no member .txt or .json for the text; the members of the sample are 0.tar, 0.cls. An archive inside a tar is not read: unpack it",
        ),
        ([("0.json", b"[]"), ("0.txt", b"x")], "expected a JSON object, got an array"),
        ([("0.txt", b"x" * 2_000_000)], "member 0.txt is too large to be read"),
    ],
)
def test_members_of_one_key_are_one_sample_or_one_rejection(
    members: list[tuple[str, bytes]], expected: Sample | str, tmp_path: Path
) -> None:
    (item,) = items_of(write(tmp_path / "a.tar", tar_of(members)), max_sample_bytes=1000)
    assert item == expected if isinstance(expected, Sample) else item.detail.startswith(expected)  # type: ignore[union-attr]


def test_two_tars_joined_are_noticed(tmp_path: Path) -> None:
    items = items_of(write(tmp_path / "a.tar", TAR + TAR))
    assert items[:-1] == TAR_SAMPLES
    assert "data after the end-of-archive mark" in items[-1].detail  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------ finding files


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    for name in ("b.jsonl", "a.jsonl.gz", "sub/c.parquet", "CORPUS.md", ".hidden.jsonl", ".git/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    yield tmp_path


def test_a_directory_is_searched_for_known_suffixes_and_sorted_by_name(tree: Path) -> None:
    assert [file.name for file in Corpus.open(tree).files] == ["a.jsonl.gz", "b.jsonl", "sub/c.parquet"]
    assert Corpus.open(f"file://{tree}") == Corpus.open([str(tree) + "/"]) == Corpus.open(tree)


def test_a_relative_place_becomes_absolute(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert Corpus.open(".") == Corpus.open(tree)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["a.jsonl.gz", "b.jsonl", "sub/c.parquet"]),
        ("*.jsonl", ["b.jsonl"]),
        ("s?b/*", ["s?b/c.parquet"]),
        ("**/*.parquet", ["sub/c.parquet"]),
        ("[ab].*", ["a.jsonl.gz", "b.jsonl"]),
    ],
)
def test_a_glob_is_expanded_here(pattern: str, names: list[str], tree: Path) -> None:
    names = [name.replace("s?b", "sub") for name in names]
    assert [file.name for file in Corpus.open(tree / pattern).files] == names


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([], "No corpus given: name at least one directory, glob or file."),
        (["nowhere"], "{tree}/nowhere: no such file or directory. Give a directory, a glob in quotes, or a file."),
        (
            ["empty"],
            (
                "{tree}/empty: no corpus files found. Names must end in "
                f"{SUFFIXES}, and hidden files are left out. Check the path, or convert the files to one of these formats. "
                "To read files of text or code, give `text_files='whole'` or `text_files='lines'`."
            ),
        ),
        (
            ["model.bin"],
            (
                f"{{tree}}/model.bin: unknown suffix. The known suffixes of data are {SUFFIXES}. Rename or convert the file. "
                "To read the file as text, give `text_files='whole'` or `text_files='lines'`. "
                "To read the file as lines of JSON, give `bare_files='jsonl'`."
            ),
        ),
        (
            ["b.jsonl", "."],
            "Given twice: {tree}/b.jsonl. Name each file once, or only the directory of the files.",
        ),
        (
            ["b.jsonl", "twin/b.jsonl"],
            (
                "Two files have the name 'b.jsonl' in the corpus: {tree}/b.jsonl, {tree}/twin/b.jsonl. "
                "Name the directory above both, so that the names in the corpus differ, or rename one file."
            ),
        ),
    ],
)
def test_what_cannot_be_a_corpus_is_refused(
    places: list[str], message: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    (tree / "empty").mkdir()
    (tree / "model.bin").write_bytes(GOOD)
    (tree / "twin").mkdir()
    (tree / "twin" / "b.jsonl").write_bytes(GOOD)
    with pytest.raises(CorpusError) as error:
        Corpus.open(places)
    assert str(error.value) == message.format(tree=tree)


def test_a_file_changed_after_it_was_cut_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    (partition,) = Corpus.open(path).partitions()
    write(path, GOOD + GOOD)
    with pytest.raises(CorpusError) as error:
        list(read_partition(partition))
    assert str(error.value) == (
        f"{path} is 54 bytes, but was 27 when the corpus was opened: the file has changed since. "
        "Start again with the present corpus."
    )


def test_partitions_are_plain_values_of_about_the_size_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD * 100)
    partitions = Corpus.open(tmp_path).partitions(partition_bytes=1000)
    assert [(p.index, p.stretches[0].start, p.stretches[0].stop) for p in partitions] == [
        (0, 0, 900),
        (1, 900, 1800),
        (2, 1800, 2700),
    ]
    assert pickle.loads(pickle.dumps(partitions)) == partitions
    with pytest.raises(CorpusError, match="partition_bytes must be at least 1, got 0"):
        Corpus.open(tmp_path).partitions(partition_bytes=0)
