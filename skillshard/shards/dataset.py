"""The samples of shards as a `datasets.IterableDataset`, in stored order."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import orjson

from skillshard import places
from skillshard.errors import ShardError
from skillshard.extras import needed
from skillshard.shards.skill_shards import SkillShards

if TYPE_CHECKING:
    from datasets import IterableDataset


def dataset_of(shards_of: Mapping[str, SkillShards], members: Sequence[str]) -> "IterableDataset":
    """Return the samples of a split as a data set. `ShardSet.to_datasets` describes the columns.

    Args:
        shards_of: Skill -> shards of the split.
        members: Suffixes of the members of the set.

    Raises:
        ExtraError: The library `datasets` is not installed.
    """
    needed("datasets", what="`ShardSet.to_datasets`")
    from datasets import Features, IterableDataset, Value

    parts = [(skill, shard) for skill, shards in shards_of.items() for shard in range(len(shards.shard_rows))]
    return IterableDataset.from_generator(
        _rows,
        features=Features(
            {name: Value("string") for name in ("id", "skill", "text", "meta")}
            | {suffix: Value("binary") for suffix in members}
        ),
        # `datasets` divides the only list among the workers. So the other arguments are no lists.
        gen_kwargs={"shards_of": dict(shards_of), "members": tuple(members), "parts": parts},
    )


def refuse_taken_column(root: str | os.PathLike[str], members: Collection[str]) -> None:
    """Raise ShardError if a member has the name of the column of the metadata. `parse_members` refuses the names of the other columns.

    Args:
        root: Directory or URI of the shard set, for the error.
        members: Suffixes of the members of the set.
    """
    if "meta" in members:
        raise ShardError(
            f"{places.public(root)} has members with the suffix 'meta', and rows have their metadata in a column 'meta'. Shard the corpus anew "
            "with another suffix: 'skillshard shard --members bytes=meta'."
        )


def _rows(
    shards_of: Mapping[str, SkillShards], members: tuple[str, ...], parts: list[tuple[str, int]]
) -> Iterator[dict[str, str | bytes | None]]:
    """Yield the rows of some shards, each a skill and a position in the columns of the manifest."""
    for skill, shard in parts:
        opened = shards_of[skill].open_shard(shard)
        for row in range(int(shards_of[skill].shard_rows[shard])):
            sample = opened.sample(row)
            member_bytes = opened.members(row) if members else {}
            yield {
                "id": sample.id,
                "skill": skill,
                "text": sample.text,
                "meta": orjson.dumps(sample.meta).decode(),
                **{suffix: member_bytes.get(suffix) for suffix in members},
            }
