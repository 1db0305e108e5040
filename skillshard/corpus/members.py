"""Members of samples beside text and JSON, such as images and sounds: bytes that shards keep as they are.

A member has a suffix, under which shards and batches hold the bytes, and a source in the corpus. In a tar the source is the suffix of the
member there. In a table the source is a column of bytes, or a column of structs with the field "bytes", as the image and audio columns of
`datasets` are. Nothing decodes the bytes.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from skillshard.errors import CorpusError, did_you_mean, name_some
from skillshard.printable import counted

# A task of the sorting holds 128 MiB of samples and one more sample, and must stay below 500 MB with the libraries.
MAX_MEMBER_BYTES = 32 << 20
"""Largest size of all kept members of a sample together, in bytes."""
# A header of a tar has 100 bytes for the name, and the key of a sample takes 16.
_SUFFIX = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,58}[a-z0-9])?")
_BESIDE = re.compile(r"\*\.(.+) beside texts")
_TAKEN = ("txt", "json", "draw", "skill", "text", "id")
Members = tuple[tuple[str, bytes], ...]
"""Members of a sample: suffix and bytes of each member, by rising suffix."""


def parse_members(names: Sequence[str]) -> dict[str, str]:
    """Return the source of each kept member, by rising suffix.

    Args:
        names: For each member its suffix, or "SUFFIX=SOURCE" if the corpus has another name for the member.

    Raises:
        CorpusError: A suffix is not valid or is given twice.

    >>> parse_members(["png", "jpg=image"])
    {'jpg': 'image', 'png': 'png'}
    """
    if isinstance(names, str):
        raise CorpusError(f"members is the text {names!r}: give a list of suffixes, such as [{names!r}].")
    sources: dict[str, str] = {}
    for name in names:
        suffix, separator, source = name.partition("=")
        if not _SUFFIX.fullmatch(suffix) or (separator and not source):
            raise CorpusError(
                f"member {name!r}: give the suffix of the members in lower case and without its first dot, such as jpg, or SUFFIX=COLUMN for a column "
                "of a table, such as jpg=image."
            )
        if suffix in _TAKEN or suffix.endswith((".txt", ".json")):
            raise CorpusError(
                f"member {name!r}: the name {suffix!r} is taken, because shards keep text and metadata of each sample. Members are further parts, "
                "such as jpg."
            )
        if suffix in sources:
            raise CorpusError(f"member {suffix!r} is given twice: give each suffix once.")
        sources[suffix] = source or suffix
    return dict(sorted(sources.items()))


def beside_texts(ext: str) -> str:
    """Return the name under which the members of a tar beside texts are counted.

    >>> beside_texts(".left.wav")
    '*.left.wav beside texts'
    """
    return f"*{ext} beside texts"


def suffixes_beside_texts(names: Iterable[str]) -> list[str]:
    """Return the suffixes of counted members beside texts, from all names of things that were left out.

    >>> suffixes_beside_texts(["*.png beside texts", "*.md", "*.left.wav beside texts"])
    ['left.wav', 'png']
    """
    return sorted(match[1] for name in names if (match := _BESIDE.fullmatch(name)) is not None)


def members_record(members: Mapping[str, str]) -> list[str]:
    """Return the members as names that `parse_members` reads.

    >>> members_record({"jpg": "image", "png": "png"})
    ['jpg=image', 'png']
    """
    return [suffix if suffix == source else f"{suffix}={source}" for suffix, source in members.items()]


def refuse_absent(members: Mapping[str, str], present: Collection[str], left_out: Collection[str]) -> None:
    """Raise CorpusError if no sample has one of the members.

    Args:
        members: Suffix -> source of each kept member.
        present: Suffixes of the members that samples have.
        left_out: Suffixes of further members in the tars of the corpus.
    """
    for suffix, source in members.items():
        if suffix not in present:
            known = sorted({*left_out, *(members[name] for name in present)})
            raise CorpusError(
                f"no sample of the corpus has a member {source!r}{did_you_mean(source, known)}; the members beside texts are "
                f"{name_some(known) or 'none'}. Name another member, or leave `members` out."
            )


def too_large(name: str, num_bytes: int) -> CorpusError:
    """Return the error for a sample with too many bytes of members.

    Args:
        name: Words for the place of the sample.
        num_bytes: Bytes of its members.
    """
    return CorpusError(
        f"{name} has {counted(num_bytes, 'byte')} of members, and at most {MAX_MEMBER_BYTES:,} are kept for each sample. Make the members "
        "smaller, leave the sample out of the corpus, or keep other members."
    )
