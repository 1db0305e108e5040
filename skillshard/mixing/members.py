"""Members beside the texts, such as images, that a mixer delivers with its samples as bytes.

Members follow the JSON of their sample in the tar (`skillshard.shards.members`). A batch has a list of `bytes` under the suffix of each
member. Nothing is decoded. A worker of a loader sends the places of the samples, and the loader's process reads the members.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, UInt32

from skillshard import places
from skillshard.errors import FieldError, did_you_mean, name_some
from skillshard.mixing.fields import Fields, is_list_of_texts, record_of
from skillshard.mixing.round_plan import Maps
from skillshard.shards.members import read_members
from skillshard.shards.read import ShardSet

MEMBERS_AHEAD = 8
"""Number of samples with members that iterating cuts out of the shards at once. Members may be large."""


@dataclass(frozen=True)
class MemberColumns:
    """The members that a mixer delivers.

    Attributes:
        suffixes: Suffix of each member. The suffix is also the key of the member in a batch.
        defaults: Suffix -> value for the samples without this member. Without a default, such a sample is an error.
    """

    suffixes: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.suffixes)

    def read(
        self,
        maps: Maps,
        which: Int[np.ndarray, " sample"],
        json_start: Int[np.ndarray, " sample"],
        json_bytes: UInt32[np.ndarray, " sample"],
    ) -> dict[str, list[Any]]:
        """Read the members of samples: suffix -> the bytes of each sample.

        Args:
            maps: Bytes of shards.
            which: Shard of each sample in `maps`.
            json_start, json_bytes: First byte and bytes of the JSON of each sample.

        Raises:
            FieldError: A sample lacks a member without a default.
        """
        if not self.suffixes:
            return {}
        # A loop for each sample, unlike for texts: members may have megabytes, so a step in Python costs little beside the copy of the bytes.
        columns: dict[str, list[Any]] = {suffix: [] for suffix in self.suffixes}
        for file, start, num_bytes in zip(which.tolist(), json_start.tolist(), json_bytes.tolist(), strict=True):
            data = maps.data(file)
            members = read_members(data, start, num_bytes, self.suffixes)
            for suffix, column in columns.items():
                if suffix not in members and suffix not in self.defaults:
                    raise _no_member(suffix, data[start : start + num_bytes], read_members(data, start, num_bytes))
                column.append(members[suffix] if suffix in members else self.defaults[suffix])
        return columns


def check_members(members: Any, fields: Fields, defaults: Mapping[str, Any] | None, shards: ShardSet) -> MemberColumns:
    """Check the argument `members` of a mixer.

    Args:
        members: Suffixes.
        fields: Fields of the same mixer.
        defaults: Values for the samples without a field or a member.
        shards: Shards of the mixer.

    Raises:
        FieldError: A member is given twice, has the name of a field, or is not kept in the shards.
    """
    if not is_list_of_texts(members):
        raise FieldError(f"members is {members!r}: give a tuple of suffixes, such as ('jpg',).")
    suffixes = tuple(members)
    for suffix in suffixes:
        if suffix not in shards.members:
            raise FieldError(
                f"members has {suffix!r}{did_you_mean(suffix, shards.members)}, and the members of {places.public(shards.root)} are: "
                f"{name_some(shards.members) or 'none'}. 'skillshard shard --members' keeps members of the corpus."
            )
        if suffixes.count(suffix) > 1:
            raise FieldError(f"members has {suffix!r} twice: give each suffix once.")
        if suffix in fields.paths:
            raise FieldError(
                f"members and fields both have {suffix!r}: give 'meta.{suffix}' for the field of the metadata."
            )
    return MemberColumns(suffixes, {name: value for name, value in (defaults or {}).items() if name in suffixes})


def _no_member(suffix: str, json: bytes | memoryview, members: Mapping[str, bytes]) -> FieldError:
    record = record_of(json)
    return FieldError(
        f"sample {record['id']!r} of skill {record['skill']!r} has no member {suffix!r}; its members are {name_some(list(members)) or 'none'}. Name another "
        f"member, or give a value for such samples: Mixer(..., field_defaults={{{suffix!r}: None}})."
    )
