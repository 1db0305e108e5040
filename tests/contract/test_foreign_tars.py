"""Tars of others are read by the rules of the package `webdataset`: both readers see the same samples in the same tars.

The differences are listed, each with a reason. In every difference the reader of skillshard counts a member, sets a sample aside or keeps
a sample that the package refuses. No member is lost without a count.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from skillshard.corpus import Corpus
from skillshard.corpus.sample import PassedOver
from skillshard.corpus.tars import _groups

Group = tuple[str, dict[str, bytes]]
Member = tuple[str, bytes] | tarfile.TarInfo


def tar_of(path: Path, members: list[Member], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode="w", format=format) as tar:
        for member in members:
            info, data = (
                (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def by_webdataset(path: Path) -> list[Group]:
    """Return the key and the members of each sample. A suffix has no dot before it."""
    # The package leaves an open file to the garbage collector, also after an error. A file opened here is closed here.
    with path.open("rb") as file:
        read = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])))
    return [
        (sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")})
        for sample in read
    ]


def by_skillshard(path: Path) -> tuple[list[Group], dict[str, int]]:
    """Return the same, and the counts of the members of no sample. Only members of text and JSON have their content."""
    (partition,) = Corpus.open(path).partitions()
    passed_over = PassedOver()
    groups = list(_groups(partition.stretches[0], 1 << 20, {}, passed_over))
    return [
        (group.key, {ext.removeprefix("."): data for ext, data in group.members.items()}) for group in groups
    ], dict(passed_over.members)


def without_contents(groups: list[Group]) -> list[Group]:
    """Empty the members that skillshard does not read."""
    return [
        (key, {suffix: data if f".{suffix}".endswith((".txt", ".json")) else b"" for suffix, data in members.items()})
        for key, members in groups
    ]


FOLDERS = (
    "",
    "a/",
    "a.b/",
    "a/b.c/",
    "deep/er/",
    "__meta__/",
    "__meta__/a/",
    "a/__meta__/",
    "__x/",
    "____/",
    "_/",
    "ä/",
)
STEMS = ("0", "1", "x-y", "A", "a b", "__z", "z__", "__", "é", "0" * 120)
SUFFIXES = (
    ".txt",
    ".json",
    ".TXT",
    ".Json",
    ".en.txt",
    ".EN.txt",
    ".meta.json",
    ".jpg",
    ".seg.PNG",
    ".cls",
    ".",
    ".tar.gz",
    "..txt",
    "",
)
NAMES = st.builds("{}{}{}".format, st.sampled_from(FOLDERS), st.sampled_from(STEMS), st.sampled_from(SUFFIXES))


def distinct(names: list[str]) -> Iterator[str]:
    """Yield the names without a name whose suffix the sample has already, because the package refuses such a tar."""
    key, suffixes = "", set[str]()
    for name in names:
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if folder + slash + stem != key:
            key, suffixes = folder + slash + stem, set()
        if suffix.lower() not in suffixes:
            suffixes.add(suffix.lower())
            yield name


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, max_size=14), format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_both_readers_see_the_same_samples(names: list[str], format: int, tmp_path: Path) -> None:
    # `distinct` looks at neighbours alone, and a passed-over member may stand between two equal names.
    members: list[Member] = [(name, f"{number}".encode()) for number, name in enumerate(dict.fromkeys(distinct(names)))]
    path = tar_of(tmp_path / "a.tar", members, format)
    try:
        theirs = by_webdataset(path)
    except ValueError as error:
        assert "duplicate file name" in str(error)
        return
    ours, _ = by_skillshard(path)
    assert ours == without_contents(theirs)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


SAME: dict[str, list[Member]] = {
    "a key of several parts": [("a/b.c/0.seg.txt", b"s"), ("a/b.c/0.txt", b"t"), ("a/b.c/0.json", b"{}")],
    "suffixes in any case": [("0.TXT", b"t"), ("0.JSON", b"{}"), ("1.Txt", b"u")],
    "keys in any case are different keys": [("a.txt", b"t"), ("A.txt", b"u")],
    "a folder __NAME__ at the top": [("0.txt", b"t"), ("__meta__/0.json", b"{}"), ("0.json", b"{}")],
    "a folder __NAME__ below another": [("a/__meta__/0.txt", b"t")],
    "a member __NAME__": [("0.txt", b"t"), ("__meta__", b"m"), ("0.json", b"{}")],
    "a member without a suffix": [("0.txt", b"t"), ("LICENSE", b"m"), ("0.json", b"{}")],
    "a hidden member": [("0.txt", b"t"), (".DS_Store", b"m"), ("._0.txt", b"m"), ("0.json", b"{}")],
    "folders as members": [folder("a"), ("a/0.txt", b"t"), folder("a/b"), ("a/0.json", b"{}")],
    "a key that comes again later": [("0.txt", b"t"), ("1.txt", b"u"), ("0.json", b"{}")],
    "an empty suffix": [("0.", b"e"), ("0.txt", b"t")],
    "a long name": [("d/" * 60 + "0.txt", b"t"), ("d/" * 60 + "0.json", b"{}")],
    "an empty member": [("0.txt", b""), ("0.json", b"{}")],
    "no member": [],
}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("case", SAME)
def test_an_odd_case_is_read_as_the_package_reads_it(case: str, format: int, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", SAME[case], format)
    assert by_skillshard(path)[0] == without_contents(by_webdataset(path))


# Case -> members, the groups of the package, the groups of skillshard, and the counts of the members of no sample.
DIFFERENT: dict[str, tuple[list[Member], list[Group], list[Group], dict[str, int]]] = {
    "`tar -C folder .` writes ./ before each name, which is no part of an id": (
        [("./0.txt", b"t"), ("./0.json", b"{}")],
        [("./0", {"txt": b"t", "json": b"{}"})],
        [("0", {"txt": b"t", "json": b"{}"})],
        {},
    ),
    "descriptions of the data are no samples": (
        [("README.md", b"r"), ("0.txt", b"t"), ("license.txt", b"l"), ("0.json", b"{}")],
        [("README", {"md": b"r"}), ("0", {"txt": b"t"}), ("license", {"txt": b"l"}), ("0", {"json": b"{}"})],
        [("0", {"txt": b"t", "json": b"{}"})],
        {"*.md": 1, "license.txt": 1},
    ),
    "a member __NAME__ with a suffix describes the data too": (
        [("__info__.json", b"{}"), ("0.txt", b"t")],
        [("__info__", {"json": b"{}"}), ("0", {"txt": b"t"})],
        [("0", {"txt": b"t"})],
        {"__info__.json": 1},
    ),
    "folders that a system adds are no data": (
        [("0.txt", b"t"), ("__MACOSX/1.txt", b"m"), (".cache/2.txt", b"c")],
        [("0", {"txt": b"t"}), ("__MACOSX/1", {"txt": b"m"}), (".cache/2", {"txt": b"c"})],
        [("0", {"txt": b"t"})],
        {"__MACOSX/": 1, ".cache/": 1},
    ),
    "a text that is a link would be missed, so its sample is set aside": (
        [("0.txt", b"t"), link("1.txt", "0.txt", tarfile.LNKTYPE), link("2.txt", "0.txt", tarfile.SYMTYPE)],
        [("0", {"txt": b"t"})],
        [("0", {"txt": b"t"}), ("1", {}), ("2", {})],
        {},
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_the_readers_differ_in_these_cases_alone(case: str, tmp_path: Path) -> None:
    members, theirs, ours, counts = DIFFERENT[case]
    path = tar_of(tmp_path / "a.tar", members)
    assert by_webdataset(path) == theirs
    assert by_skillshard(path) == (ours, counts)


def test_a_suffix_that_stands_twice_begins_another_sample_where_the_package_refuses_the_tar(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("0.txt", b"t"), ("0.TXT", b"u")])
    with pytest.raises(ValueError, match="duplicate file name"):
        by_webdataset(path)
    ours: Any = by_skillshard(path)
    assert ours == ([("0", {"txt": b"t"}), ("0", {"txt": b"u"})], {})
