"""Tars of other tools: nothing hides a member, and a member without a sample does not stop the job."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillshard.corpus import Corpus, CorpusReading, FieldMapping, PartitionReader, Rejection, Sample
from skillshard.tags import Tags
from tests.commands import fails, skillshard, works

APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(100)


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as tar:
        for member in members:
            info, data = (
                (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(path: Path, data: bytes, **fields: str | None) -> tuple[list[Sample | Rejection], dict[str, int]]:
    path.write_bytes(data)
    (partition,) = Corpus.open(path).partitions()
    reader = PartitionReader(partition, CorpusReading({"": FieldMapping(**fields)}))  # type: ignore[arg-type]
    return list(reader), dict(reader.passed_over.members)


def pairs(*keys: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.{ext}", data) for key in keys for ext, data in (("json", b'{"cat": "a"}'), ("txt", b"hello"))]


def samples(*keys: str) -> list[Sample]:
    return [Sample(key, "hello", {"cat": "a"}) for key in keys]


# ------------------------------------------------------------------------------------------------- names that hide members


def test_names_with_a_dot_do_not_hide_one_another(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    (item,), _ = read(path, tar_of(*pairs("img.0", "img.1", "img.2")))
    assert isinstance(item, Rejection) and (item.reason, item.id) == ("unclear-members", "img")
    sentence = fails("tag", "metadata", path, "--out", tmp_path / "T", "--field", "cat", "--workers", 1)
    assert sentence == (
        "a.tar row 1: 3 members end in .json and have one key, which is the path up to the first dot of the name: "
        "img.0.json, img.1.json, img.2.json. Rename or repack the members, or set such samples aside with "
        "--on-bad-sample set-aside."
    )


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("0.txt",), "0.txt"),
        (("0.en.txt",), "0.en.txt"),
        (("0.TXT",), "0.TXT"),
        (("0.en.txt", "0.txt", "0.de.txt"), "0.txt"),
        (("0.en.txt", "0.de.txt"), None),
    ],
)
def test_one_text_is_taken_and_others_are_counted_or_refused(
    names: tuple[str, ...], text: str | None, tmp_path: Path
) -> None:
    (item,), passed_over = read(tmp_path / "a.tar", tar_of(*((name, name.encode()) for name in names)))
    assert item == Sample("0", text, {}) if text else isinstance(item, Rejection)
    expected = {"more .txt members of a sample": len(names) - 1} if text and len(names) > 1 else {}
    assert passed_over == expected


# ----------------------------------------------------------------------------------------------- members of no sample


def test_a_tar_packed_on_a_mac_gives_its_samples_whole(tmp_path: Path) -> None:
    members = [(f"./{folder}{name}", data) for name, data in pairs("000", "001") for folder in ("._", "")]
    mac = [(name, APPLE_DOUBLE if "/._" in name else data) for name, data in members]
    items, passed_over = read(tmp_path / "a.tar", tar_of(("./._.", APPLE_DOUBLE), *mac, ("__MACOSX/._0.txt", b"x")))
    assert items == samples("000", "001")
    assert passed_over == {"._*": 5, "__MACOSX/": 1}


OTHERS = {
    "README.md": "*.md",
    "LICENSE": "without a suffix",
    "sub/LICENSE.txt": "LICENSE.txt",
    "readme.txt": "readme.txt",
    "__info__.json": "__info__.json",
    "__samples__/000.json": "__samples__/",
    ".DS_Store": ".*",
    ".nv-meta/info.json": ".nv-meta/",
    "__MACOSX/000.txt": "__MACOSX/",
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("place", range(5))
def test_members_of_no_sample_are_passed_over_and_counted_wherever_they_stand(
    other: str, place: int, tmp_path: Path
) -> None:
    members = pairs("000", "001")
    members.insert(place, (other, b"not json"))
    items, passed_over = read(tmp_path / "a.tar", tar_of(*members))
    assert (items, passed_over) == (samples("000", "001"), {OTHERS[other]: 1})


def test_images_and_sounds_beside_texts_are_counted_by_their_suffix(tmp_path: Path) -> None:
    members = [*pairs("000"), ("000.JPG", b"\xff\xd8"), *pairs("001"), ("001.jpg", b"\xff"), ("001.left.wav", b"")]
    items, passed_over = read(tmp_path / "a.tar", tar_of(*members))
    assert [item.id for item in items if isinstance(item, Sample)] == ["000", "001"]
    assert passed_over == {"*.jpg beside texts": 2, "*.left.wav beside texts": 1}


def test_what_is_passed_over_is_printed_and_stands_in_the_record(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(("README.md", b"#"), ("LICENSE", b"MIT"), *pairs("000")))
    printed = works("tag", "metadata", path, "--out", tmp_path / "T", "--field", "cat", "--workers", 1)
    assert "passed over, because they are no samples: *.md 1, without a suffix 1" in printed
    assert Tags.open(tmp_path / "T").manifest.left_out.members == {"*.md": 1, "without a suffix": 1}
    works("shard", path, "--tags", tmp_path / "T", "--out", tmp_path / "S", "--workers", 1)


def test_a_text_that_is_a_link_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "members"
    folder.mkdir()
    (folder / "0.txt").write_text("hello")
    os.link(folder / "0.txt", folder / "1.txt")
    (folder / "2.txt").symlink_to("0.txt")
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", folder, "0.txt", "1.txt", "2.txt"], check=True)
    items, _ = read(tmp_path / "a.tar", (tmp_path / "a.tar").read_bytes())
    assert items[0] == Sample("0", "hello", {})
    assert [item.detail for item in items if isinstance(item, Rejection)] == [
        f"member {row}.txt is a link to 0.txt, and links are not followed; pack with tar --dereference "
        "--hard-dereference"
        for row in (1, 2)
    ]


def test_a_member_name_that_is_not_utf8_costs_at_most_its_row(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    data = tar_of((f"{name}.txt", b"x"), *pairs("1"), format=tarfile.GNU_FORMAT)
    items, _ = read(tmp_path / "a.tar", data)
    assert isinstance(items[0], Rejection)
    assert items[0].sentence().startswith("a.tar row 1: the name of its members, caf\\xe9, is not valid UTF-8. ")
    assert items[1:] == samples("1")
    both = [(f"{name}.json", b'{"id": "own"}'), (f"{name}.txt", b"x")]
    assert read(tmp_path / "a.tar", tar_of(*both, format=tarfile.GNU_FORMAT))[0] == [Sample("own", "x", {})]


# -------------------------------------------------------------------------------------------------------- header flags


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("kind", [*map(chr, range(48, 56)), *"DKLMNSVXxg\0", "Z"])
def test_no_type_of_member_stops_the_reader(format: int, kind: str, tmp_path: Path) -> None:
    special = tarfile.TarInfo("9.txt")
    special.type, special.linkname = kind.encode(), "000.txt"
    items, _ = read(tmp_path / "a.tar", tar_of(*pairs("000"), special, *pairs("001"), format=format))
    assert items[0] == samples("000")[0]
    assert all(isinstance(item, Sample) or item.sentence() for item in items)


@settings(max_examples=150, deadline=None)
@given(
    offset=st.integers(0, 511),
    value=st.binary(min_size=1, max_size=12),
    member=st.integers(0, 6),
    mend=st.booleans(),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_no_header_whatever_its_fields_ends_in_anything_but_samples_and_rejections(
    offset: int, value: bytes, member: int, mend: bool, format: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    info = tarfile.TarInfo("é" * (10 if format == tarfile.USTAR_FORMAT else 120) + ".txt")
    info.pax_headers = {"comment": "x", "mtime": "1.5"}
    data = bytearray(tar_of(*pairs("000"), info, *pairs("001"), format=format))
    start = 1024 * min(member, len(data) // 1024 - 1)
    data[start + offset : start + offset + len(value)] = value
    if mend:  # a valid checksum, so that the reader looks at the field itself
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 155] = b"%06o\0" % sum(data[start : start + 512])
    items, _ = read(tmp_path_factory.mktemp("a") / "a.tar", bytes(data))
    assert items, "samples are lost without a word"
    for item in items:
        assert isinstance(item, Sample) or orjson.dumps(item.to_json())


def test_json_of_a_member_keeps_long_integers_and_names_nan(tmp_path: Path) -> None:
    data = tar_of(
        ("0.txt", b"x"), ("0.json", b'{"h": 36893488147419103233}'), ("1.txt", b"x"), ("1.json", b'{"h": NaN}')
    )
    (good, bad), _ = read(tmp_path / "a.tar", data)
    assert good == Sample("0", "x", {"h": "36893488147419103233"})
    assert isinstance(bad, Rejection) and "NaN is no JSON value" in bad.detail


def test_a_tar_of_no_samples_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(("LICENSE", b"x")))
    outcome = skillshard("tag", "metadata", tmp_path / "a.tar", "--out", tmp_path / "T", "--field", "x", "--workers", 1)
    assert outcome.code == 1 and "no sample could be tagged" in outcome.sentence


def test_a_key_with_control_characters_is_kept_as_the_id(tmp_path: Path) -> None:
    items, _ = read(tmp_path / "a.tar", tar_of(("a\tb\x1b.txt", b"x")))
    assert items == [Sample("a\tb\x1b", "x", {})]


@pytest.mark.parametrize("folder", ["./", "../up/", "/abs/", "a/../b/"])
def test_folders_above_hide_no_sample(folder: str, tmp_path: Path) -> None:
    members = [(folder + name, data) for name, data in pairs("0", "1")]
    items, passed_over = read(tmp_path / "a.tar", tar_of(*members))
    assert len(items) == 2 and all(isinstance(item, Sample) for item in items) and not passed_over


@pytest.mark.parametrize(("inner", "num_hidden"), [("x", 0), ("other", 1)])
def test_a_text_in_the_json_member_that_another_text_hides_is_counted(
    inner: str, num_hidden: int, tmp_path: Path
) -> None:
    record = b'{"id": "0", "text": "%s"}' % inner.encode()
    items, passed_over = read(tmp_path / "a.tar", tar_of(("0.json", record), ("0.txt", b"x")))
    assert [item.text for item in items if isinstance(item, Sample)] == ["x"]
    assert sum(passed_over.values()) == num_hidden


def test_a_number_too_large_for_a_float_is_no_malformed_json(tmp_path: Path) -> None:
    (item,), _ = read(tmp_path / "a.tar", tar_of(("0.json", b'{"n": 1e999}'), ("0.txt", b"x")))
    assert isinstance(item, Rejection) and item.reason == "wrong-type"
    assert item.detail.startswith("in its JSON member, a number at column 7")
