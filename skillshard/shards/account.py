"""Facts of a shard set beside its manifest: the number and the bytes of the members, and the rows that were set aside by file, reason and field.

The headers in the tars give the members, at the cost of a page of the disk for each member. The files of rejected/ give the rows.
"""

from collections import Counter
from dataclasses import dataclass

from skillshard import places, storage, web
from skillshard.errors import ShardError
from skillshard.shards.members import totals_of
from skillshard.shards.read import ShardSet
from skillshard.tags import TagsSetAside, kinds_of, set_aside_by


@dataclass(frozen=True)
class MemberCount:
    """Members of one suffix.

    Attributes:
        suffix: Suffix of the members, such as "jpg".
        num_samples: Number of samples with the member.
        num_bytes: Bytes of all these members.
    """

    suffix: str
    num_samples: int
    num_bytes: int


def member_counts(shards: ShardSet) -> list[MemberCount] | None:
    """Count the members of a shard set, by rising suffix.

    Returns:
        The counts, or None if a shard is remote, because a count would fetch every tar.

    Raises:
        ShardError: A shard differs from the manifest, or the members of a shard are damaged.
    """
    num_samples, num_bytes = Counter[str](), Counter[str]()
    if not shards.members:
        return []
    for skill_shards in (*shards.train.values(), *shards.holdout.values()):
        for number in range(len(skill_shards.shard_rows)):
            if places.is_remote(skill_shards.place(number)):
                return None
            totals = totals_of(skill_shards.map_tar(number), skill_shards.index(number))
            if totals.fault is not None:
                raise ShardError(
                    f"{skill_shards.name(number)} {totals.fault}. 'skillshard verify' lists every fault of the shards."
                )
            num_samples += totals.num_samples
            num_bytes += totals.num_bytes
    return [MemberCount(suffix, num_samples[suffix], num_bytes[suffix]) for suffix in shards.members]


def set_aside_counts(shards: ShardSet) -> list[TagsSetAside] | None:
    """Count the rows that were set aside, by file, reason and field.

    Returns:
        The counts, or None if rejected/ lies on a web server, because a web server cannot list files.

    Raises:
        ShardError: A file of rejected/ is damaged.
    """
    if not (shards.manifest.set_aside or shards.manifest.unread):
        return []
    roots = shards.roots
    if any(web.is_web(str(root)) for root in roots):
        return None
    kinds: Counter[tuple[str, str, str | None]] = Counter()
    for root in roots:
        for file in storage.list_files(places.join(root, "rejected"), "*.jsonl"):
            try:
                kinds += kinds_of(storage.read_bytes(file.place).splitlines())
            except ValueError as error:
                raise ShardError(
                    f"{places.public(file.place)} is damaged or edited: {error}. Write the shards anew in another directory with 'skillshard shard'."
                ) from error
    return set_aside_by((*kind, num_rows) for kind, num_rows in kinds.items())
