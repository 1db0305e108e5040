"""A corpus of images and sounds beside texts, as tars, with its tags and shards."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import orjson

from skillshard import taggers
from skillshard.corpus import Corpus
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards
from skillshard.tags import Tags
from tests.conftest import HERE

Tagged = tuple[Corpus, Tags]
KEPT = ("jpg", "wav=left.wav")


def members_of(number: int) -> dict[str, bytes]:
    """Return the members of a sample: a sound of every size around a block of a tar, and an image on two samples of three."""
    sound = bytes([number % 256, 0]) * (number * 37 % 1100)
    return {"left.wav": sound, **({"jpg": b"\xff\xd8" + bytes([number % 256]) * 600} if number % 3 else {})}


def write_tars(folder: Path, numbers: Sequence[int], *, num_files: int = 3) -> Path:
    folder.mkdir(parents=True)
    for file in range(num_files):
        with tarfile.open(folder / f"{file}.tar", "w") as tar:
            for number in numbers[file::num_files]:
                meta = orjson.dumps({"kind": ("cat", "dog")[number % 2]})
                contents = {"txt": f"caption {number}".encode(), "json": meta, **members_of(number), "cls": b"7"}
                for suffix, content in sorted(contents.items()):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix.upper()}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def tagged(folder: Path, numbers: Sequence[int]) -> Tagged:
    corpus = Corpus.open(write_tars(folder / "corpus", numbers))
    tags = taggers.tag_corpus(corpus, taggers.metadata("kind"), folder / "tags", backend=HERE)
    return corpus, tags


def written(pictures: Tagged, out: Path, members: Sequence[str] = KEPT) -> ShardSet:
    return write_shards(*pictures, out, shard_bytes=60_000, holdout=0.1, members=members, backend=HERE)


def expected_members(identity: str) -> dict[str, bytes]:
    members = members_of(int(identity))
    return {"wav": members["left.wav"], **({"jpg": members["jpg"]} if "jpg" in members else {})}
