"""The rows of an export: stretches of shards in stored order, or draws of a mix, divided into the parts that tasks write."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from skillshard.megatron import Documents
from skillshard.memo import memoized
from skillshard.mixing.listing import decide, num_drawn, warn_of_repeated
from skillshard.mixing.members import MEMBERS_AHEAD
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.round_ids import CheckedMaps, RoundIds, counts_of
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.token_manifest import id_dtype
from skillshard.shards.token_set import TokenSet

# A row group is the least that a reader of Parquet decodes, and the most that a writer here holds in memory.
GROUP_BYTES = 16 << 20
"""Bytes of text, metadata and members, or of token ids, at which a group of rows ends."""
GROUP_ROWS = 8192
"""Number of rows at which a group of rows ends."""


@dataclass(frozen=True)
class Stretch:
    """Rows of a shard.

    Attributes:
        shard: Shards of a skill, with a single shard.
        begin, end: First row, and the row after the last row.
        members: Suffixes of the members that the rows have.
    """

    shard: SkillShards
    begin: int
    end: int
    members: tuple[str, ...] = ()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of an export."""
        opened = replace(self.shard).open_shard(0)  # a copy, so that the shard is closed at the end of the stretch
        for row in range(self.begin, self.end):
            sample = opened.sample(row)
            members = opened.members(row, self.members) if self.members else {}
            own = {suffix: members.get(suffix) for suffix in self.members}
            yield {"id": sample.id, "skill": self.shard.skill, "text": sample.text, "meta": sample.meta, **own}

    def documents(self, tokens: TokenSet, *, has_separator: bool) -> Iterator[Documents]:
        """Yield the token ids of the rows, with a place for a separator after each row if `has_separator`."""
        own = (tokens.train if self.shard.split == "train" else tokens.holdout)[self.shard.skill]
        assert own.kept is not None
        shard = own.columns.number.index(self.shard.columns.number[0])
        maps, dtype = CheckedMaps([own.ids(shard).ids]), id_dtype(own.kept.type)
        for begin in range(self.begin, self.end, GROUP_ROWS):
            rows = np.arange(begin, min(begin + GROUP_ROWS, self.end))
            starts, sizes = own.starts(shard, rows), own.rows(shard)[rows].astype(np.int64) + has_separator
            for chosen in _bounded(sizes * dtype.itemsize):
                which = np.zeros(len(sizes[chosen]), np.int64)
                ids = maps.copied(which, starts[chosen], sizes[chosen], dtype)
                yield Documents(Counter({self.shard.skill: len(which)}), sizes[chosen], ids)


MIXERS: dict[str, Mixer] = {}
"""The mixer of the running export, by the name of its ledger."""


@dataclass(frozen=True)
class Draws:
    """Draws first .. first + num - 1 of a mix whose rounds are decided."""

    mixer: Mixer
    first: int
    num: int

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of an export."""
        mixer = self._kept_mixer
        for start in range(self.first, self.first + self.num, GROUP_ROWS):
            draws = np.arange(start, min(start + GROUP_ROWS, self.first + self.num))
            places_of_draws = mixer.find(draws)
            num_bytes = (places_of_draws.end - places_of_draws.start).astype(np.int64)
            # Texts are read in groups of bounded size, because some texts have megabytes. The bytes of members are unknown before they are read.
            for chosen in _bounded(num_bytes) if not mixer.members else _few(len(num_bytes)):
                own = mixer.find(draws[chosen])
                batch, metas = mixer.samples.cut(own), mixer.samples.metas(own)
                members = [batch.fields[suffix] for suffix in mixer.members.suffixes]
                rows = zip(own.draw.tolist(), batch.fields["id"], batch.skill, batch.text, metas, *members, strict=True)
                names = ("draw", "id", "skill", "text", "meta", *mixer.members.suffixes)
                for row in rows:
                    yield dict(zip(names, row, strict=True))

    def documents(self, tokens: TokenSet, *, has_separator: bool) -> Iterator[Documents]:
        """Yield the token ids of the draws, with a place for a separator after each draw if `has_separator`."""
        mixer, end = self._kept_mixer, self.first + self.num
        own = [tokens.train[skill] for skill in mixer.skills]
        for number in range(self.first // mixer.round_draws, -(-end // mixer.round_draws)):
            plan = mixer.rows_of(number)
            assert plan is not None
            first = number * mixer.round_draws
            draws = np.arange(max(self.first, first), min(end, first + mixer.round_draws)) - first
            sizes = counts_of(plan, own)[draws] + has_separator
            round_ids = RoundIds(plan, own)
            for chosen in _bounded(sizes * round_ids.files.dtype.itemsize):
                skills = Counter([mixer.skills[skill] for skill in plan.skill[draws[chosen]].tolist()])
                yield Documents(skills, sizes[chosen], round_ids.copied(draws[chosen], sizes[chosen]))

    @property
    def _kept_mixer(self) -> Mixer:
        # Each task of a worker gets a copy of the mixer. The first copy stays, so that the bytes of a shard are checked once.
        return memoized(MIXERS, str(self.mixer.ledger), lambda _: self.mixer, most=1)


def _bounded(num_bytes: Int[np.ndarray, " row"]) -> Iterator[slice]:
    """Divide neighbouring rows into groups of about `GROUP_BYTES`, given the bytes of each row."""
    group = np.cumsum(num_bytes) // GROUP_BYTES
    edges = [0, *(np.flatnonzero(group[1:] != group[:-1]) + 1).tolist(), len(group)]
    yield from (slice(begin, end) for begin, end in pairwise(edges) if begin < end)


def _few(num_rows: int) -> Iterator[slice]:
    """Divide neighbouring rows with members into groups of `MEMBERS_AHEAD` rows."""
    yield from (slice(begin, begin + MEMBERS_AHEAD) for begin in range(0, num_rows, MEMBERS_AHEAD))


Part = Sequence[Stretch] | Sequence[Draws]


# --- the plan ----------------------------------------------------------------------------------------------------------


def stretches(skills: Iterable[SkillShards], file_bytes: int, members: tuple[str, ...] = ()) -> Iterator[list[Stretch]]:
    """Divide the shards of skills into parts of about `file_bytes` bytes of tars, in stored order."""
    part: list[Stretch] = []
    num_bytes = 0.0
    for skill_shards in skills:
        for shard in skill_shards.each():
            num_rows, shard_bytes = len(shard), shard.columns.num_bytes[0]
            num_pieces = min(num_rows, -(-shard_bytes // file_bytes))
            edges = [num_rows * piece // num_pieces for piece in range(num_pieces + 1)]
            for begin, end in pairwise(edges):
                if part and num_bytes + shard_bytes / num_pieces > file_bytes:
                    yield part
                    part, num_bytes = [], 0.0
                part.append(Stretch(shard, begin, end, members))
                num_bytes += shard_bytes / num_pieces
    yield part


def draws_of_mix(mixer: Mixer, num_draws: int, file_bytes: int) -> Iterator[list[Draws]]:
    """Decide the rounds of a mix, and divide the draws into parts of about `file_bytes` bytes of tars on average."""
    length = mixer.length()
    num_draws = num_draws if length is None else min(num_draws, length)
    decide(mixer, num_draws)
    drawn = num_drawn(mixer, num_draws)
    warn_of_repeated(mixer, num_draws)
    columns = [mixer.shards.train[skill].columns for skill in mixer.skills]
    mean_bytes = np.array([sum(column.num_bytes) / sum(column.num_samples) for column in columns])
    draws_of_file = max(1, int(file_bytes * num_draws / float(drawn @ mean_bytes)))
    for first in range(0, num_draws, draws_of_file):
        yield [Draws(mixer, first, min(draws_of_file, num_draws - first))]
