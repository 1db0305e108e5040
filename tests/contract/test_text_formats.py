"""JSON documents, CSV, TSV and text files: their samples, their faults, and damage of every kind."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.corpus import (
    Corpus,
    CorpusReading,
    FieldMapping,
    FileLayout,
    PartitionReader,
    Rejection,
    Sample,
    read_partition,
    row_places,
)
from skillshard.errors import CorpusError

SET_ASIDE = "set such samples aside with `on_bad_sample='set-aside'`."
LIMIT = 1 << 20


def items_of(
    place: Path | str,
    *,
    layout: FileLayout = FileLayout(),
    partition_bytes: int = 1 << 26,
    max_sample_bytes: int = 1 << 24,
    **fields: Any,
) -> list[Sample | Rejection]:
    partitions = Corpus.open(place, layout=layout).partitions(partition_bytes=partition_bytes)
    reading = CorpusReading({"": FieldMapping(**fields)}, max_sample_bytes)
    return [item for partition in partitions for item in read_partition(partition, reading)]


def items_in(folder: Path, name: str, data: bytes, **options: Any) -> list[Sample | Rejection]:
    (folder / name).write_bytes(data)
    return items_of(folder / name, **options)


def sentences(items: list[Sample | Rejection]) -> list[str]:
    return [item.sentence() for item in items if isinstance(item, Rejection)]


# ---------------------------------------------------------------------------------------------------------- documents

TASK = {
    "Contributors": ["Ada"],
    "Categories": ["Question Generation"],
    "Instances": [{"id": "t-1", "input": "one", "output": ["1"]}, {"id": "t-2", "input": "two", "output": ["2"]}],
    "License": ["MIT"],
}


@pytest.mark.parametrize("indent", [None, 4])
def test_rows_inside_an_object_have_the_fields_beside_the_rows(indent: int | None, tmp_path: Path) -> None:
    data = json.dumps(TASK, indent=indent).encode()
    beside = {"Contributors": ["Ada"], "Categories": ["Question Generation"], "License": ["MIT"]}
    assert items_in(tmp_path, "task.json", data, layout=FileLayout(rows="Instances"), text_field="input") == [
        Sample("t-1", "one", {**beside, "output": ["1"]}),
        Sample("t-2", "two", {**beside, "output": ["2"]}),
    ]


def test_rows_deep_inside_several_objects_keep_the_fields_of_their_own_object(tmp_path: Path) -> None:
    documents = [
        {"split": name, "data": {"rows": [{"id": name, "text": name}]}, "n": number} for number, name in enumerate("ab")
    ]
    data = "\n".join(map(json.dumps, documents)).encode()
    for name in ("a.json", "a.jsonl", "a.jsonl.xz"):
        packed = lzma.compress(data) if name.endswith("xz") else data
        assert items_in(tmp_path, name, packed, layout=FileLayout(rows="data.rows")) == [
            Sample("a", "a", {"split": "a", "n": 0}),
            Sample("b", "b", {"split": "b", "n": 1}),
        ]


def test_a_field_of_the_row_has_priority_over_a_field_beside_the_rows(tmp_path: Path) -> None:
    data = b'{"lang": "en", "rows": [{"id": 1, "text": "x", "lang": "de"}, {"id": 2, "text": "y"}]}'
    items = items_in(tmp_path, "a.json", data, layout=FileLayout(rows="rows"))
    assert [item.meta for item in items if isinstance(item, Sample)] == [{"lang": "de"}, {"lang": "en"}]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"data": []}', "no field 'rows' with the rows; the fields are data. Name the field with `rows`."),
        (b"{}", "no field 'rows' with the rows; the object is empty. Name the field with `rows`."),
        (b'{"rows": {"a": 1}}', "expected an array with the rows at 'rows', got an object."),
        (b'{"rows": null}', "expected an array with the rows at 'rows', got null."),
        (b"[1]", "expected an object with the rows at 'rows', got an array."),
    ],
)
def test_a_document_without_the_rows_says_what_it_has(data: bytes, sentence: str, tmp_path: Path) -> None:
    (message,) = sentences(items_in(tmp_path, "a.json", data, layout=FileLayout(rows="rows")))
    assert message.startswith(f"a.json line 1: {sentence}")


def test_a_bad_row_of_a_document_is_refused_alone_and_has_line_and_row(tmp_path: Path) -> None:
    rows = b'[\n{"id": 1, "text": "x"},\n{"id": 2},\n7,\n{"id": 3, "text": "\xff"},\n{"id": 4, "text": NaN},\n{"id": 5, "text": "y"}\n]'
    items = items_in(tmp_path, "a.json", rows)
    assert [item.id for item in items] == ["1", "2", None, None, None, "5"]
    assert [
        message.partition(".")[0] + message[message.index(" line") :].partition(". ")[0] for message in sentences(items)
    ] == [
        "a line 3: in row 2, no field 'text' for the text; the row has no other field",
        "a line 4: in row 3, expected a JSON object, got a number (7)",
        "a line 5: in row 4, not valid UTF-8 (byte 0xff: column 20)",
        "a line 6: in row 5, not valid JSON (NaN is no JSON value, write null in its place: column 19)",
    ]


def test_an_object_with_rows_inside_names_the_path_of_the_rows(tmp_path: Path) -> None:
    (message,) = sentences(items_in(tmp_path, "task.json", json.dumps(TASK, indent=1).encode()))
    assert message.startswith("task.json line 1: in row 1, no field 'id' for the id; the row has ")
    assert "; the field 'Instances' is an array of objects, and `rows='Instances'` makes each object a row. " in message


def test_integers_of_more_than_64_bits_stay_exact_in_documents(tmp_path: Path) -> None:
    (item,) = items_in(tmp_path, "a.json", b'[{"id": 1, "text": "x", "hash": 36893488147419103233}]')
    assert isinstance(item, Sample) and item.meta == {"hash": "36893488147419103233"}


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (b'{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n', ["a", "b"]),  # lines
        (b'{"id": "a", "text": "x"}', ["a"]),
        (b'{\n"id": "a",\n"text": "x"\n}\n{"id": "b", "text": "y"}', ["a", "b"]),  # objects
        (b'[{"id": "a", "text": "x"}]', ["a"]),
        (b"[]", []),
        (b"", []),
        (b" \n ", []),
        (b'{"id": "b", "text": "unfinished\n{"id": "a", "text": "x"}\n', [None, "a"]),  # lines with a bad line
        (b'{"id": 1\n{"id": "a", "text": "x"}\n', [None, "a"]),
    ],
)
def test_the_content_of_a_json_file_decides_between_lines_and_documents(
    data: bytes, ids: list[str | None], tmp_path: Path
) -> None:
    for partition_bytes in (5, 1 << 20):
        assert [item.id for item in items_in(tmp_path, "a.json", data, partition_bytes=partition_bytes)] == ids


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.bz2"])
def test_a_document_that_is_cut_gives_the_rows_before_the_cut(name: str, tmp_path: Path) -> None:
    pack: Callable[[bytes], bytes] = {"a.json.gz": gzip.compress, "a.json.bz2": bz2.compress}.get(name, bytes)
    data = json.dumps([{"id": number, "text": f"text {number}"} for number in range(100)], indent=1).encode()
    *good, bad = items_in(tmp_path, name, pack(data[: len(data) // 2]))
    assert [item.id for item in good] == [str(number) for number in range(len(good))] and 40 < len(good) < 60
    assert isinstance(bad, Rejection) and bad.reason == "truncated"
    assert f"after {len(good)} rows, not valid JSON: " in bad.detail


def test_a_value_over_the_limit_ends_the_reading_of_a_document(tmp_path: Path) -> None:
    data = b'[{"id": 1, "text": "x"}, {"id": 2, "text": "' + b"x" * (3 << 20) + b'"}]'
    *good, bad = items_in(tmp_path, "a.json", data, max_sample_bytes=1000)
    assert len(good) == 1 and isinstance(bad, Rejection) and bad.reason == "unsupported"
    assert "a value is longer than" in bad.detail


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"text": st.just("x"), "v": values}), max_size=6),
    indent=st.sampled_from([None, 0, 3]),
)
def test_an_array_and_the_lines_of_its_rows_give_the_same_samples(
    rows: list[dict[str, Any]], indent: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        array = json.dumps(rows, indent=indent, ensure_ascii=False).encode(errors="surrogatepass")
        of_lines = items_in(Path(folder), "a.jsonl", lines, id_field=None)
        of_array = items_in(Path(folder), "a.json", array, id_field=None)
        assert [i.meta for i in of_array if isinstance(i, Sample)] == [
            i.meta for i in of_lines if isinstance(i, Sample)
        ]


# ------------------------------------------------------------------------------------------------------- CSV and TSV


# The csv module writes a lone carriage return without quotes, and a reader takes such a character for the end of a line.
fields = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
rows_of_strings = st.lists(
    st.tuples(st.integers(0, 999).map(str), fields.filter(lambda text: bool(text.strip())), fields), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(
    rows=rows_of_strings,
    name=st.sampled_from(["a.csv", "a.tsv", "a.csv.gz", "a.tsv.xz", "a.csv.bz2", "a.csv.zst"]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]),
)
def test_every_field_comes_back_as_the_csv_module_wrote_it(
    rows: list[tuple[str, str, str]], name: str, end: str, quoting: Any, encoding: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, "excel-tab" if ".tsv" in name else "excel", lineterminator=end, quoting=quoting)
    writer.writerows([("id", "text", "topic"), *rows])
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "xz": lzma.compress,
        "bz2": bz2.compress,
        "zst": lambda data: bytes(pa.Codec("zstd").compress(data, asbytes=True)),
    }
    data = pack.get(name.rpartition(".")[2], bytes)(text.getvalue().encode(encoding))
    layout = FileLayout(encoding="utf-8" if encoding == "utf-8-sig" else encoding)
    with tempfile.TemporaryDirectory() as folder:
        items = items_in(Path(folder), name, data, layout=layout)
    assert items == [Sample(identity, body, {"topic": topic}) for identity, body, topic in rows]


def test_a_file_without_a_header_gets_the_given_names(tmp_path: Path) -> None:
    layout = FileLayout(header=("id", "text"), delimiter=";", quote="'")
    assert items_in(tmp_path, "a.csv", b"1;'a;b'\n\n2;say \"x\"\n", layout=layout) == [
        Sample("1", "a;b", {}),
        Sample("2", 'say "x"', {}),
    ]


def test_line_ends_inside_quotes_stay_as_they_are(tmp_path: Path) -> None:
    (item,) = items_in(tmp_path, "a.csv", b'id,text\r\n1,"a\rb\r\nc\nd"\r\n')
    assert isinstance(item, Sample) and item.text == "a\rb\r\nc\nd"


def test_a_column_without_a_name_is_named_by_its_number(tmp_path: Path) -> None:
    assert items_in(tmp_path, "a.csv", b",text\n0,x\n", id_field="column_1") == [Sample("0", "x", {})]


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"id,text\n1,a,b\n2,c\n", "a.csv line 2: expected 2 fields (id, text), got 3."),
        (
            b'id,text\n1,"a"b\n2,c\n',
            "a.csv line 2: not valid CSV (',' expected after '\"'); if the quotes of the file are",
        ),
        (b'id,text\n1,"a\nb",c\n2,c\n', "a.csv line 2: expected 2 fields (id, text), got 3."),
        (
            b'"id",text\n1,"\xffa"\n2,c\n',
            "a.csv line 2: not valid utf-8. Give the encoding of the file with `encoding`, such as cp1252.",
        ),
        (b"id,text\n1,\n2,c\n", "a.csv line 2: the text in 'text' is empty or only white space."),
        (b"id,body\n1,x\n", "a.csv line 2: no field 'text' for the text; the row has body."),
    ],
)
def test_a_bad_record_is_refused_alone_and_has_its_line(data: bytes, detail: str, tmp_path: Path) -> None:
    items = items_in(tmp_path, "a.csv", data)
    assert sentences(items)[0].startswith(detail)
    assert [item.id for item in items[1:]] == (["2"] if b"\n2,c" in data else [])


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b'id,text\n1,x\n2,"never\nclosed\n', "truncated", 'a quote " opens here and does not close. If the quotes'),
        (b"id,id\n1,2\n", "unsupported", "several columns have the name 'id'. Rename the columns, or give `header`"),
        (b'"a"b,c\n', "truncated", "the header is not valid CSV"),
        (b"id,text\n1," + b"x" * (6 << 20), "unsupported", "a line is longer than"),
    ],
)
def test_a_fault_that_reaches_to_the_end_of_a_csv_file_refuses_the_rest(
    data: bytes, reason: str, detail: str, tmp_path: Path
) -> None:
    *good, bad = items_in(tmp_path, "a.csv", data, max_sample_bytes=LIMIT)
    assert isinstance(bad, Rejection) and bad.reason == reason and detail in bad.detail
    assert bad.line == len(good) + (1 if "header" in bad.detail or "several" in bad.detail else 2)


def test_a_csv_file_with_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert items_in(tmp_path, "a.csv", b"id,text\n") == items_in(tmp_path, "a.csv", b"") == []


def test_the_lines_of_records_are_those_of_an_editor(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,"a\nb"\n\n2,c\n')
    (tmp_path / "b.json").write_bytes(b'[{"id": 1, "text": "x"},\n\n{"id": 2, "text": "y"}]')
    (tmp_path / "c.jsonl").write_bytes(b'\n{"id": 1, "text": "x"}\n\n{"id": 2, "text": "y"}')
    (partition,) = Corpus.open(tmp_path).partitions()
    reader = PartitionReader(partition)
    assert len(list(reader)) == 6
    numbers = row_places(partition, reader.first_rows, range(6), max_sample_bytes=1000)
    assert [numbers[row] for row in range(6)] == [
        ("a.csv", 2),
        ("a.csv", 5),
        ("b.json", 1),
        ("b.json", 3),
        ("c.jsonl", 2),
        ("c.jsonl", 4),
    ]


REAL_CORPORA = Path(__file__).parents[2] / ".." / "shared" / "corpora"


def check_table(place: Path, num_rows: int, text_field: str, num_topics: int) -> None:
    items = items_of(place, id_field=None, text_field=text_field)
    topics = {tuple(item.meta.values()) for item in items if isinstance(item, Sample)}
    assert (len(items), len({item.id for item in items}), len(topics)) == (num_rows, num_rows, num_topics)
    assert not sentences(items)


def test_a_generated_table_is_read_whole(tmp_path: Path) -> None:
    """A twin of the real tables: quotes, quotes inside quotes, line breaks inside quotes, and fields without quotes."""
    rows = [
        f"plain {number},topic {number % 7}\n" if number % 3 else f'"say ""{number}"",\nplease",topic {number % 7}\n'
        for number in range(3000)
    ]
    (tmp_path / "train.csv").write_text("text,category\n" + "".join(rows))
    check_table(tmp_path / "train.csv", 3000, "text", 7)


@pytest.mark.parametrize(
    ("name", "num_rows", "text_field", "num_topics"),
    [
        ("banking77/train.csv", 10_003, "text", 77),
        ("banking77/test.csv", 3_080, "text", 77),
        ("stackoverflow/titles.tsv", 20_000, "title", 20),
    ],
)
def test_a_real_table_is_read_whole(name: str, num_rows: int, text_field: str, num_topics: int) -> None:
    if not (REAL_CORPORA / name).is_file():
        pytest.skip(f"{REAL_CORPORA / name} is not on this machine; the generated twin is tested instead")
    check_table(REAL_CORPORA / name, num_rows, text_field, num_topics)


# --------------------------------------------------------------------------------------------------------------- text


def put(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        place = folder / name.replace("__", "/").replace("_", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def test_text_files_of_a_directory_are_read_on_request(tmp_path: Path) -> None:
    put(
        tmp_path, sub__a_py=b"import os\n", b_md=b"\xef\xbb\xbf# Title\n", c_txt_gz=gzip.compress(b"packed"), d_bin=b"x"
    )
    with pytest.raises(CorpusError, match="To read files of text or code, give `text_files='whole'`"):
        Corpus.open(tmp_path)
    corpus = Corpus.open(tmp_path, layout=FileLayout(text_files="whole"))
    assert corpus.left_out == {".bin": 1}
    assert items_of(tmp_path, layout=FileLayout(text_files="whole")) == [
        Sample("b.md", "# Title\n", {}),
        Sample("c.txt.gz", "packed", {}),
        Sample("sub/a.py", "import os\n", {}),
    ]
    # A name, or a glob with the suffix, is a request too.
    assert items_of(tmp_path / "b.md") == [Sample("b.md", "# Title\n", {})]
    assert items_of(f"{tmp_path}/**/*.py") == [Sample("sub/a.py", "import os\n", {})]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
@pytest.mark.parametrize("partition_bytes", [3, 1 << 20])
def test_each_line_of_a_text_file_may_be_a_sample(encoding: str, partition_bytes: int, tmp_path: Path) -> None:
    layout = FileLayout(text_files="lines", encoding=encoding)
    data = "first é\r\n\n  \nsecond\nthird".encode(encoding)
    items = items_in(tmp_path, "a.txt", data, layout=layout, partition_bytes=partition_bytes)
    assert [item.text for item in items if isinstance(item, Sample)] == ["first é", "second", "third"]
    assert len({item.id for item in items}) == 3


def test_a_blank_text_file_is_no_sample_and_is_counted(tmp_path: Path) -> None:
    put(tmp_path, a_py=b"", b_py=b" \n", c_py=b"x = 1")
    readers = [PartitionReader(p) for p in Corpus.open(tmp_path, layout=FileLayout(text_files="whole")).partitions()]
    assert [item.id for reader in readers for item in reader] == ["c.py"]
    assert sum(reader.passed_over.members["files without a text"] for reader in readers) == 2


def test_bad_text_files_say_why(tmp_path: Path) -> None:
    assert sentences(items_in(tmp_path, "a.txt", b"caf\xe9")) == [
        f"a.txt: not valid UTF-8 (byte 0xe9 at 3). Give the encoding of the file with `encoding`, such as cp1252. Mend the line, or {SET_ASIDE}"
    ]
    assert items_in(tmp_path, "a.txt", b"caf\xe9", layout=FileLayout(encoding="latin-1")) == [
        Sample("a.txt", "café", {})
    ]
    (large,) = sentences(items_in(tmp_path, "a.txt", b"x" * 101, max_sample_bytes=100))
    assert large.startswith("a.txt: the text has more than 100 bytes. Split the sample, raise `max_sample_bytes`")
    (binary,) = sentences(items_in(tmp_path, "a.txt", b"x" * 100 + b"\0"))
    assert binary.startswith("a.txt: not what its name says (expected text, got binary data)")
    layout = FileLayout(text_files="lines")
    bad, long = items_in(tmp_path, "b.txt", b"ok\n\xff\n" + b"x" * 20, layout=layout, max_sample_bytes=10)[1:]
    assert isinstance(bad, Rejection) and (bad.line, bad.reason) == (2, "invalid-utf8")
    assert isinstance(long, Rejection) and (long.line, long.reason) == (3, "too-large")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rows": "a..b"}, "`rows` must be a dotted path such as Instances or data.rows, got 'a..b'."),
        ({"header": ("a", "a")}, "`header` must be different names of columns, got 'a', 'a'."),
        ({"delimiter": "ab"}, "`delimiter` must be one character, got 'ab'."),
        (
            {"delimiter": ";", "quote": ";"},
            "`quote` must be one character other than the delimiter, or nothing, got ';'.",
        ),
        (
            {"encoding": "base64"},
            "`encoding` 'base64' is not known. Give a name of Python's codecs, such as utf-8, utf-16 or",
        ),
    ],
)
def test_an_impossible_layout_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CorpusError) as error:
        FileLayout(**arguments)
    assert str(error.value).startswith(sentence)


# ---------------------------------------------------------------------------------------------------------------- WET


def wet(*texts: bytes, kind: str = "conversion") -> bytes:
    records = []
    for number, text in enumerate(texts):
        head = (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: https://example.org/{number}\r\n"
            f"WARC-Record-ID: <urn:uuid:{number}>\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        records.append(head.encode() + text + b"\r\n\r\n")
    return b"".join(records)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_the_texts_of_a_wet_file_are_samples(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    data = wet(b"software: x\r\n", kind="warcinfo") + wet("one\r\n\r\nWARC/1.0 é".encode(), b"two\n")
    name = "a.warc.wet.gz" if compress is gzip.compress else "a.wet"
    assert items_in(tmp_path, name, compress(data)) == [
        Sample("urn:uuid:0", "one\r\n\r\nWARC/1.0 é", {"WARC-Target-URI": "https://example.org/0"}),
        Sample("urn:uuid:1", "two\n", {"WARC-Target-URI": "https://example.org/1"}),
    ]
    (reader,) = (PartitionReader(partition) for partition in Corpus.open(tmp_path).partitions())
    list(reader)
    assert reader.passed_over.members == {"records of the type warcinfo": 1}


def test_bad_records_of_a_wet_file_are_refused_alone(tmp_path: Path) -> None:
    data = wet(b"good", b"\xff", b" \n", b"x" * 101, b"good")
    items = items_in(tmp_path, "a.wet", data, max_sample_bytes=100)
    assert [item.reason for item in items if isinstance(item, Rejection)] == ["invalid-utf8", "empty-text", "too-large"]
    assert [item.id for item in items] == [f"urn:uuid:{number}" for number in range(5)]
    assert sentences(items)[0].startswith("a.wet row 2: not valid UTF-8 (byte 0xff at 0 of the text).")


@pytest.mark.parametrize(
    ("data", "num_good", "detail"),
    [
        (wet(b"good", b"bad")[:-6], 1, "the file ends 2 bytes before the end of a record"),
        (wet(b"good") + wet(b"bad")[:50], 1, "the file ends inside the header of a record"),
        (wet(b"good") + b"what is this?\r\n\r\n", 1, "expected the header of record 2, got b'what is this?'"),
        (wet(b"good").replace(b"Content-Length: 4", b"Content-Length: x"), 0, "a record has the Content-Length 'x'"),
        (b"no WARC\r\n\r\n", 0, "not what its name says (expected a header that begins with WARC/1.0, got b'no WARC')"),
    ],
)
def test_damage_of_a_wet_file_keeps_the_records_before(data: bytes, num_good: int, detail: str, tmp_path: Path) -> None:
    *good, bad = items_in(tmp_path, "a.wet", data)
    assert len(good) == num_good and isinstance(bad, Rejection) and detail in bad.detail


# ------------------------------------------------------------------------------------------------------------ folders


def test_folders_named_by_hive_give_fields_in_every_format(tmp_path: Path) -> None:
    row = b'{"id": "%d", "text": "x", "topic": "own"}'
    for number, folder in enumerate(("lang=en/topic=a%2Fb", "lang=__HIVE_DEFAULT_PARTITION__/topic=c")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jsonl").write_bytes(row % number)
        (tmp_path / folder / "b.csv").write_bytes(b"id,text\n%d,x\n" % (number + 10))
    meta = {item.id: item.meta for item in items_of(tmp_path) if isinstance(item, Sample)}
    assert meta == {
        "0": {"lang": "en", "topic": "own"},
        "10": {"lang": "en", "topic": "a/b"},
        "1": {"lang": None, "topic": "own"},
        "11": {"lang": None, "topic": "c"},
    }


# ------------------------------------------------------------------------------------------------------------- damage

DOCUMENT = json.dumps(
    [{"id": number, "text": f"text {number} é", "meta": {"n": [number]}} for number in range(30)], indent=1
).encode()
TASKS = json.dumps(
    {"a": {"x": 1}, "rows": [{"id": number, "text": f"t{number}"} for number in range(30)], "b": [2]}
).encode()
TABLE = b"id,text,topic\n" + b"".join(b'%d,"text, ""%d""\nline",t\n' % (number, number) for number in range(30))
LINES = b"".join(b"line %d \xc3\xa9\r\n" % number for number in range(60))
WHOLE_FILES: list[tuple[str, bytes, FileLayout]] = [
    ("a.json", DOCUMENT, FileLayout()),
    ("b.json", TASKS, FileLayout(rows="rows")),
    ("a.csv", TABLE, FileLayout()),
    ("b.csv", TABLE.decode().encode("utf-16"), FileLayout(encoding="utf-16")),
    ("a.tsv", TABLE.replace(b",", b"\t"), FileLayout()),
    ("a.txt", LINES, FileLayout()),
    ("b.txt", LINES, FileLayout(text_files="lines")),
    ("a.wet", wet(*(b"text %d \xc3\xa9" % number for number in range(20))), FileLayout()),
]
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pa.Codec("zstd").compress(data, asbytes=True)),
}


@pytest.mark.timeout(60)
def test_a_header_of_very_many_columns_is_answered_without_comparing_all_pairs_of_names(tmp_path: Path) -> None:
    """A flipped bit of a compressed file may make such a header. The comparison of all pairs took hours."""
    names = [f"column {number}" for number in range(200_000)]
    (bad,) = items_in(tmp_path, "a.csv", ",".join([*names, names[7]]).encode() + b"\n1,2\n")
    assert isinstance(bad, Rejection) and "several columns have the name 'column 7'" in bad.detail


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize(
    ("name", "data", "layout"), WHOLE_FILES, ids=lambda value: value if isinstance(value, str) else ""
)
@settings(max_examples=25, deadline=None)
@given(choice=st.data())
def test_damage_gives_samples_and_rejections_and_never_another_error(
    name: str, data: bytes, layout: FileLayout, suffix: str, choice: st.DataObject
) -> None:
    damaged = bytearray(COMPRESSORS[suffix](data))
    kind = choice.draw(st.sampled_from(["cut", "flip", "insert", "NUL", "quote"]))
    position = choice.draw(st.integers(0, len(damaged) - 1))
    if kind == "cut":
        del damaged[position:]
    elif kind == "flip":
        damaged[position] ^= choice.draw(st.integers(1, 255))
    else:
        damaged[position:position] = {"insert": b"\xff\xfe[", "NUL": b"\0" * 3, "quote": b'"'}[kind]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"{name}{suffix}"
        place.write_bytes(damaged)
        first, second = (items_of(place, layout=layout, partition_bytes=size) for size in (64, 1 << 26))
        assert first == second
        assert all(item.sentence() for item in first if isinstance(item, Rejection))


@pytest.mark.parametrize(("name", "data", "layout"), [row for row in WHOLE_FILES if row[0].endswith(".json")])
@pytest.mark.parametrize("bad", [b"\xff\xfe[", b"\xed\xa0\x80"])
def test_invalid_bytes_at_every_place_of_a_document_are_rejections(
    name: str, data: bytes, layout: FileLayout, bad: bytes, tmp_path: Path
) -> None:
    for position in range(0, len(data), 1 if len(data) < 400 else 7):
        (tmp_path / name).write_bytes(data[:position] + bad + data[position:])
        rejections = [item for item in items_of(tmp_path / name, layout=layout) if isinstance(item, Rejection)]
        assert rejections and all(item.sentence() for item in rejections)


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress], ids=["bz2", "xz"])
def test_other_data_after_compressed_data_is_said(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    suffix = "bz2" if compress is bz2.compress else "xz"
    *good, bad = items_in(tmp_path, f"a.jsonl.{suffix}", compress(b'{"id": 1, "text": "x"}\n') + b"something else")
    assert [item.id for item in good] == ["1"]
    assert isinstance(bad, Rejection) and "other data follows the compressed data" in bad.detail


def test_an_xz_dictionary_over_the_limit_is_no_damage(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20, "preset": 0}]
    data = lzma.compress(b'{"id": 1, "text": "x"}\n', filters=filters)
    (bad,) = items_in(tmp_path, "a.jsonl.xz", data)
    assert isinstance(bad, Rejection) and bad.reason == "unsupported"
    assert "its xz dictionary needs more than 200 MiB. Write it anew with 'xz -dc OLD | xz -9 > NEW'" in bad.detail


def test_the_blocks_of_a_transcoded_file_end_with_the_file(tmp_path: Path) -> None:
    text = "é" * 3_000_000 + "\nend"
    (tmp_path / "a.txt").write_bytes(text.encode("latin-1"))
    items = items_of(tmp_path / "a.txt", layout=FileLayout(text_files="lines", encoding="latin-1"))
    assert [len(item.text) for item in items if isinstance(item, Sample)] == [3_000_000, 3]
