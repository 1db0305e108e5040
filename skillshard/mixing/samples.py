"""Reading the samples of the training shards at places in the shards."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from skillshard.memo import memoized
from skillshard.mixing.batch import NO_FIELDS, Batch
from skillshard.mixing.fields import Fields, metas_of, rows_of
from skillshard.mixing.members import MemberColumns
from skillshard.mixing.records import RECORDS_KEPT
from skillshard.mixing.round_plan import Maps, Places, RoundPlan
from skillshard.shards.manifest import TAR_BLOCK
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.tar import KEY_DIGITS


class Samples:
    """The samples of a mixer at places that `Mixer.find` returned.

    Args:
        skills: Names of the skills of the mix.
        train: Training shards of each skill.
        fields: Fields of the metadata that come with each sample.
        members: MemberColumns that come with each sample.
    """

    def __init__(
        self, skills: tuple[str, ...], train: Sequence[SkillShards], fields: Fields, members: MemberColumns
    ) -> None:
        self.skills, self.fields, self.members = skills, fields, members
        self._train = train
        self._maps: dict[bytes, Maps] = {}

    def cut(self, places: Places, *, fields: Mapping[str, list[Any]] | None = None) -> Batch:
        """Read the texts at places found by another process of this machine. The other process has checked the shards already.

        Args:
            places: Result of `find`.
            fields: Result of `fields_at`, if the other process has read the fields. None: the fields are read here.

        Raises:
            FieldError: A sample lacks a field or a member without a default.
        """
        maps = self._maps_at(places)
        texts = maps.texts(maps.views(places.segment, places.start, places.end))
        columns = {**(self.fields_at(places) if fields is None else fields), **self.members_at(places)}
        return Batch(places.draw, places.shards[places.segment, 0], self.skills, texts, columns)

    def fields_at(self, places: Places) -> dict[str, list[Any]]:
        """Read the fields of the mixer for the samples at places that `find` returned: path -> the value of each sample.

        Raises:
            FieldError: A sample lacks a field without a default.
        """
        return self.fields.read(self._members_at(places)) if self.fields else {}

    def members_at(self, places: Places) -> dict[str, list[Any]]:
        """Read the members of the mixer for the samples at places that `find` returned: suffix -> the bytes of each sample.

        Raises:
            FieldError: A sample lacks a member without a default.
        """
        return self.members.read(self._maps_at(places), places.segment, places.json_start, places.json_bytes)

    def metas(self, places: Places) -> list[dict[str, Any]]:
        """Read the whole metadata of the samples at places that `find` returned."""
        return metas_of(self._members_at(places))

    def tar_samples(self, places: Places) -> list[dict[str, Any]]:
        """Read samples at places that `find` returned as a reader of tar files gives the samples.

        Returns:
            For each sample the key of its members, the path of its shard, the bytes of its text and of its JSON member, its draw and its
            skill, under the names `__key__`, `__url__`, "txt", "json", "draw" and "skill", and the members of the mixer under their suffixes.
        """
        # A text follows its header, and a header begins with the name of the member: the key and the suffix.
        header = places.start - TAR_BLOCK
        keys = self._maps_at(places).slices(places.segment, header, header + KEY_DIGITS)
        texts = self._maps_at(places).slices(places.segment, places.start, places.end)
        urls = [self._train[skill].place(shard) for skill, shard in places.shards.tolist()]
        members = self.members_at(places)
        rows: Iterator[Mapping[str, Any]] = rows_of(members) if members else repeat(NO_FIELDS, len(places))
        return [
            {
                "__key__": str(key, "ascii"),
                "__url__": urls[segment],
                "txt": bytes(text),
                "json": bytes(member),
                "draw": draw,
                "skill": self.skills[places.shards[segment, 0]],
                **further,
            }
            for further, key, segment, text, member, draw in zip(
                rows,
                keys,
                places.segment.tolist(),
                texts,
                self._members_at(places),
                places.draw.tolist(),
                strict=True,
            )
        ]

    def _members_at(self, places: Places) -> list[bytes | memoryview]:
        return self._maps_at(places).members(places.segment, places.json_start, places.json_bytes)

    def _maps_at(self, places: Places) -> Maps:
        return memoized(self._maps, places.shards.tobytes(), self._maps_of, most=RECORDS_KEPT)

    def columns(self, plan: RoundPlan, within: slice) -> dict[str, list[Any]]:
        """Read the fields and the members of draws of a round."""
        members = (
            self.members.read(plan.maps, plan.segment[within], plan.json_start[within], plan.json_bytes[within])
            if self.members
            else {}
        )
        return {**plan.fields(self.fields, within), **members}

    def _maps_of(self, shards: bytes) -> Maps:
        """Map the shards of `Places` into memory."""
        pairs = np.frombuffer(shards, np.int64).reshape(-1, 2).tolist()
        return Maps([self._train[skill].open_shard(shard).data for skill, shard in pairs])

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps cannot be pickled. A worker that gets a copy maps the shards itself.
        return {**self.__dict__, "_maps": {}}
