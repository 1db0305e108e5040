"""Compressed JSON lines: every flag of a gzip or zstd header, limits of skillshard that are no damage, and exact integers."""

import gzip
import itertools
import json
import re
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.corpus import Corpus, Rejection, Sample, read_partition
from skillshard.corpus.json_values import long_digit_runs
from skillshard.corpus.sources import zstd_limit
from tests.commands import fails, works

ROWS = b"".join(b'{"id":"%d","text":"text %d"}\n' % (i, i * 7919) for i in range(300))
SAMPLES = [Sample(str(i), f"text {i * 7919}", {}) for i in range(300)]


def items_of(path: Path, data: bytes) -> list[Sample | Rejection]:
    path.write_bytes(data)
    return [item for part in Corpus.open(path).partitions() for item in read_partition(part)]


def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, check=True, capture_output=True).stdout


# --------------------------------------------------------------------------------------------------------------- gzip


@pytest.mark.parametrize("flags", range(32))
def test_every_flag_of_a_gzip_header_is_read(flags: int, tmp_path: Path) -> None:
    compressor = zlib.compressobj(wbits=-15)
    body = compressor.compress(ROWS) + compressor.flush()
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    header += struct.pack("<H", 5) + b"extra" if flags & 4 else b""
    header += b"name\0" if flags & 8 else b""
    header += b"comment\0" if flags & 16 else b""
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF) if flags & 2 else b""
    data = header + body + struct.pack("<II", zlib.crc32(ROWS), len(ROWS))
    assert gzip.decompress(data) == ROWS
    assert items_of(tmp_path / "a.jsonl.gz", data) == SAMPLES


@pytest.mark.parametrize("num_zeros", [1, 511, 1 << 20, (1 << 20) + 1])
@pytest.mark.parametrize("members", [1, 3])
def test_zeros_after_the_end_of_a_gzip_file_are_padding(num_zeros: int, members: int, tmp_path: Path) -> None:
    cuts = [len(ROWS) * number // members for number in range(members + 1)]
    data = b"".join(gzip.compress(ROWS[a:b]) for a, b in itertools.pairwise(cuts)) + bytes(num_zeros)
    assert items_of(tmp_path / "a.jsonl.gz", data) == SAMPLES


@pytest.mark.parametrize("rest", [b"\0\0junk", b"junk", b"\0" * 9 + gzip.compress(ROWS)])
def test_other_bytes_after_the_end_of_a_gzip_file_are_damage(rest: bytes, tmp_path: Path) -> None:
    items = items_of(tmp_path / "a.jsonl.gz", gzip.compress(ROWS) + rest)
    assert items[:-1] == SAMPLES
    assert isinstance(items[-1], Rejection) and items[-1].reason == "truncated"


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 40), value=st.binary(min_size=1, max_size=8), is_gzip=st.booleans())
def test_no_header_of_a_compressed_file_ends_in_anything_but_samples_and_rejections(
    position: int, value: bytes, is_gzip: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(gzip.compress(ROWS, mtime=0) if is_gzip else pa.Codec("zstd").compress(ROWS, asbytes=True))
    data[position : position + len(value)] = value
    path = tmp_path_factory.mktemp("a") / ("a.jsonl.gz" if is_gzip else "a.jsonl.zst")
    items = items_of(path, bytes(data))
    assert items, "rows are lost without a word"
    for item in items:
        assert isinstance(item, Sample) or item.sentence()


# --------------------------------------------------------------------------------------------------------------- zstd


@pytest.mark.parametrize("options", [(), ("--long=27",), ("-19",), ("--no-check",), ("--fast=5",), ("--content-size",)])
def test_frames_of_the_zstd_tool_are_read(options: tuple[str, ...], tmp_path: Path) -> None:
    skippable = struct.pack("<II", 0x184D2A53, 4) + b"abcd"
    data = zstd(ROWS[:900], *options) + skippable + zstd(ROWS[900:], *options)
    assert items_of(tmp_path / "a.jsonl.zst", data) == SAMPLES


@pytest.mark.parametrize(("option", "window"), [("--long=28", "256"), ("--long=31", "2,048")])
def test_a_window_that_is_too_long_is_no_damage(option: str, window: str, tmp_path: Path) -> None:
    long = zstd(ROWS, option, "--no-content-size")
    (tmp_path / "long.zst").write_bytes(long)
    assert zstd_limit(str(tmp_path / "long.zst")) is not None
    first = zstd(ROWS)
    *good, last = items_of(tmp_path / "a.jsonl.zst", first + long)
    assert good == SAMPLES
    assert isinstance(last, Rejection)
    assert last.sentence() == (
        f"a.jsonl.zst line 301: from here on the file is not read: its zstd frame at byte {len(first):,} needs a window of "
        f"{window} MiB, and at most 128 MiB are read. Write it anew with 'zstd -d --long=31 -c OLD | zstd -o NEW'. Or "
        "set the rest of the file aside with `on_bad_sample='set-aside'`."
    )


def test_a_dictionary_is_no_damage(tmp_path: Path) -> None:
    for number in range(0, 300, 3):
        (tmp_path / f"{number}.part").write_bytes(ROWS.splitlines()[number] * 3)
    parts = [str(path) for path in tmp_path.glob("*.part")]
    subprocess.run(
        ["zstd", "-q", "--train", *parts, "-o", tmp_path / "dictionary", "--maxdict=1024"],
        check=True,
        capture_output=True,
    )
    (last,) = items_of(tmp_path / "a.jsonl.zst", zstd(ROWS, "-D", str(tmp_path / "dictionary")))
    assert isinstance(last, Rejection) and last.reason == "unsupported"
    assert "is compressed with the zstd dictionary" in last.detail


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_the_frames_of_a_cut_file_are_walked_without_an_error(cut: int, tmp_path: Path) -> None:
    (tmp_path / "a.zst").write_bytes(zstd(ROWS)[:cut])
    assert zstd_limit(str(tmp_path / "a.zst")) is None


# ------------------------------------------------------------------------------------------------------- long integers


def reference(value: Any) -> Any:
    """Return a value with integers beyond 64 bits as digits, at every depth."""
    if isinstance(value, dict):
        return {key: reference(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [reference(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return str(value)
    return value


numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.integers()
values = st.recursive(
    numbers | st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    meta=st.dictionaries(
        st.text(min_size=1, max_size=4).filter(lambda key: key not in ("id", "text")), values, max_size=4
    )
)
def test_integers_of_any_length_stay_exact_at_every_depth(
    meta: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    line = json.dumps({"id": "a", "text": "x", "meta": {"kept": 1, **meta}}).encode()
    (item,) = items_of(tmp_path_factory.mktemp("a") / "a.jsonl", line)
    assert isinstance(item, Sample) and item.meta == {"kept": 1, **reference(meta)}


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 36893488147419103233, 10**300, -(10**600)])
def test_ids_and_categories_of_any_length_stay_exact(value: int, tmp_path: Path) -> None:
    line = b'{"id": %d, "text": "x", "cat": %d, "deep": [{"hash": %d}]}' % (value, value, value)
    assert items_of(tmp_path / "a.jsonl", line) == [
        Sample(str(value), "x", {"cat": str(value), "deep": [{"hash": str(value)}]})
    ]
    works("tag", "metadata", tmp_path / "a.jsonl", "--out", tmp_path / "T", "--field", "cat", "--workers", 1)
    printed = works("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)
    assert str(value)[:30] in printed.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("depth", [200, 251, 300, 1000])
def test_metadata_nested_too_deep_to_be_written_is_refused_when_it_is_read(depth: int, tmp_path: Path) -> None:
    line = b'{"id": "a", "text": "x", "cat": "c", "deep": ' + b"[" * depth + b"]" * depth + b"}\n"
    (tmp_path / "a.jsonl").write_bytes(line)
    options = ("--field", "cat", "--workers", 1, "--out", tmp_path / "T")
    if depth > 250:
        assert "a.jsonl line 1: nested deeper than 250 levels" in fails(
            "tag", "metadata", tmp_path / "a.jsonl", *options
        )
        return
    works("tag", "metadata", tmp_path / "a.jsonl", *options)
    works("shard", tmp_path / "a.jsonl", "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1.5e400"])
def test_a_number_that_no_float_holds_is_refused_in_a_sentence(number: str, tmp_path: Path) -> None:
    (bad,) = items_of(tmp_path / "a.jsonl", b'{"id": "a", "text": "x", "n": %s}' % number.encode())
    assert isinstance(bad, Rejection) and bad.reason == "wrong-type"
    assert bad.detail == "a number at column 31 is beyond those that are read, from -1.8e308 to 1.8e308"


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.integers(0, 40).map(lambda num: "7" * num) | st.sampled_from(["x", " ", "::::::::"]), max_size=20)
)
def test_no_run_of_nineteen_digits_is_missed_wherever_it_stands(parts: list[str]) -> None:
    data = "".join(parts).encode()
    expected = [(match.start(), match.end()) for match in re.finditer(rb"[0-9]{19,}", data)]
    positions = long_digit_runs(data)
    assert all(any(start <= position < end for position in positions) for start, end in expected)
    assert all(any(start <= position < end for start, end in expected) for position in positions)
