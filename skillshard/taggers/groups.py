"""Which skills go together under which name: by a map, and where they are too small. Decisions, but for `read_map`."""

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import orjson
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError

from skillshard import storage
from skillshard.errors import StorageError, TagsError, did_you_mean, name_some

OTHERS = "*"
"""In a map: every skill that it does not name."""

Vector = Float[np.ndarray, " dim"]


def renamed(mapping: Mapping[str, str], skills: Sequence[str]) -> dict[str, str]:
    """Skill -> new name, for every skill: as mapped, else by "*", else its own.

    Raises:
        TagsError: the map names a skill that is not there.

    >>> renamed({"wiki": "prose", "books": "prose", "*": "other"}, ["books", "code", "wiki"])
    {'books': 'prose', 'code': 'other', 'wiki': 'prose'}
    """
    strangers = [name for name in mapping if name not in skills and name != OTHERS]
    if strangers:
        raise TagsError(
            f"the map names skills that are not there: {name_some(map(repr, strangers))}{did_you_mean(strangers[0], skills)}. There are "
            f"{name_some(skills)}."
        )
    return {skill: mapping.get(skill, mapping.get(OTHERS, skill)) for skill in skills}


def merged(
    sizes: Mapping[str, int],
    *,
    min_share: float,
    rest: str | None = None,
    vectors: Mapping[str, Vector] = {},
) -> dict[str, str]:
    """Skill -> the skill that it belongs to when those with too few samples are merged.

    Args:
        sizes: samples of each skill.
        min_share: of all samples.
        rest: takes all small skills; None: each goes to the skill with the nearest vector, smallest first, under the name of
            the larger of the two.
        vectors: of each skill, such as the sum of its embeddings or its row of a graph; compared by their cosine.

    Raises:
        TagsError: a skill is too small, there is no rest, and it has no vector.

    >>> merged({"a": 90, "b": 6, "c": 4}, min_share=0.1, rest="other")
    {'a': 'a', 'b': 'other', 'c': 'other'}
    >>> merged({"a": 90, "b": 6, "c": 4}, min_share=0.05, vectors={s: np.eye(3)[i] for i, s in enumerate("abc")})["c"]
    'a'
    """
    total = sum(sizes.values())
    if rest is not None:
        return {skill: rest if size < min_share * total else skill for skill, size in sizes.items()}
    groups = {skill: [skill] for skill in sizes}
    left = dict(sizes)
    sums = {skill: np.asarray(vector, np.float64) for skill, vector in vectors.items()}
    while len(left) > 1:
        small = min(left, key=lambda skill: (left[skill], skill))
        if left[small] >= min_share * total:
            break
        target = _nearest(small, left, sums)
        winner, loser = sorted((small, target), key=lambda skill: (-left[skill], skill))
        left[winner] += left.pop(loser)
        sums[winner] = sums[winner] + sums.pop(loser)
        groups[winner] += groups.pop(loser)
    return {skill: winner for winner, skills in groups.items() for skill in skills}


def _nearest(small: str, left: Mapping[str, int], sums: Mapping[str, Vector]) -> str:
    if small not in sums:
        raise TagsError(
            f"skill {small!r} has {left[small]:,} samples, fewer than `min_share` asks for, and nothing tells which skill is nearest: name a "
            "`rest=NAME` that takes the small ones, give `vectors` with a row for it, or tags by embedding."
        )
    others = sorted(skill for skill in left if skill != small and skill in sums)
    if not others:
        raise TagsError(f"skill {small!r} is too small, and no other skill has a vector to compare. Give `rest=NAME`.")
    return max(others, key=lambda skill: _cosine(sums[small], sums[skill]))


def _cosine(one: Vector, other: Vector) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0


def final_names(
    sizes: Mapping[str, int],
    mapping: Mapping[str, str] | None,
    min_share: float,
    rest: str | None,
    vectors: Mapping[str, Vector],
) -> dict[str, str]:
    """Skill -> final name: first the map, then the merging of what is too small."""
    names = renamed(mapping or {}, list(sizes))
    grouped: dict[str, int] = {}
    sums: dict[str, Vector] = {}
    for skill, new in names.items():
        grouped[new] = grouped.get(new, 0) + sizes[skill]
        if skill in vectors:
            sums[new] = sums[new] + vectors[skill] if new in sums else vectors[skill]
    final = merged(grouped, min_share=min_share, rest=rest, vectors=sums)
    return {skill: final[new] for skill, new in names.items()}


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums of counts by name, in the order of the names."""
    total: dict[str, int] = {}
    for found in counts:
        for skill, num in found.items():
            total[skill] = total.get(skill, 0) + num
    return dict(sorted(total.items()))


def read_map(place: str | os.PathLike[str]) -> dict[str, str]:
    """A map from a JSON file; TagsError if it is none."""
    try:
        text = storage.read_bytes(place)
    except StorageError as error:
        raise TagsError(f"`mapping` {os.fspath(place)}: no such file.") from error
    try:
        found = TypeAdapter(dict[str, str]).validate_python(orjson.loads(text), strict=True)
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise TagsError(
            f'`mapping` {os.fspath(place)} is not a JSON object of names, such as {{"old": "new", "*": "everything else"}}.'
        ) from error
    if empty := [old for old, new in found.items() if not new.strip()]:
        raise TagsError(f"`mapping` {os.fspath(place)} gives {empty[0]!r} an empty name: give it another.")
    return found


def check_share(min_share: float, rest: str | None) -> None:
    """TagsError where a least share and the name of the rest do not go together."""
    if not 0 <= min_share < 1:
        raise TagsError(f"`{min_share=}`: give a share from 0 to below 1.")
    if rest is not None and not min_share:
        raise TagsError(f"`{rest=}` takes the skills below `min_share`, which is 0: give a `min_share`.")
    if rest is not None and not rest.strip():
        raise TagsError("`rest` is empty: give the skill a name.")
