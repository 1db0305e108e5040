"""Decide which skills share a name: by a map of names, and by merging small skills. Only `read_map` reads a file."""

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import orjson
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError

from skillshard import storage
from skillshard.errors import StorageError, TagsError, did_you_mean, name_some
from skillshard.repeated_keys import repeated_key

OTHERS = "*"
"""Key of a map that stands for every skill without a key."""

Vector = Float[np.ndarray, " dim"]


def renamed(mapping: Mapping[str, str], skills: Sequence[str]) -> dict[str, str]:
    """Map every skill to the new name: by the key of the skill, else by the key "*", else to the old name.

    Raises:
        TagsError: The map names an unknown skill.

    >>> renamed({"wiki": "prose", "books": "prose", "*": "other"}, ["books", "code", "wiki"])
    {'books': 'prose', 'code': 'other', 'wiki': 'prose'}
    """
    strangers = [name for name in mapping if name not in skills and name != OTHERS]
    if strangers:
        raise TagsError(
            f"the map names unknown skills: {name_some(map(repr, strangers))}{did_you_mean(strangers[0], skills)}. The skills are "
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
    """Map every skill to the skill that takes its samples when skills with too few samples are merged.

    Args:
        sizes: Number of samples of each skill.
        min_share: Smallest share of all samples that a skill may have.
        rest: Name of the skill that takes all small skills. With None, the smallest skill joins the skill with the nearest vector, under
            the name of the larger skill, until no skill is too small.
        vectors: Vector of each skill, for example the sum of the embeddings or the row of a graph. Vectors are compared by the cosine.

    Raises:
        TagsError: A skill is too small, `rest` is None, and the skill has no vector.

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
    # The smallest skill goes first, because two small skills together may be large enough.
    while len(left) > 1:
        # Ties go to the first name, so that the result does not depend on the order of the counts.
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
            f"skill {small!r} has {left[small]:,} samples, fewer than `min_share` asks for, and nothing tells which skill is nearest. Give "
            "`rest=NAME` to collect the small skills, `vectors` with a row for this skill, or tags by embedding."
        )
    others = sorted(skill for skill in left if skill != small and skill in sums)
    if not others:
        raise TagsError(f"skill {small!r} is too small, and no other skill has a vector to compare. Give `rest=NAME`.")
    return max(others, key=lambda skill: _cosine(sums[small], sums[skill]))


def _cosine(first: Vector, second: Vector) -> float:
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else 0.0


def final_names(
    sizes: Mapping[str, int],
    mapping: Mapping[str, str] | None,
    min_share: float,
    rest: str | None,
    vectors: Mapping[str, Vector],
) -> dict[str, str]:
    """Map every skill to the final name: first by the map of names, then by merging the skills that are too small."""
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
    """Add up counts by name. The result is in the order of the names."""
    total: dict[str, int] = {}
    for counts_of_part in counts:
        for skill, num in counts_of_part.items():
            total[skill] = total.get(skill, 0) + num
    return dict(sorted(total.items()))


def read_map(place: str | os.PathLike[str]) -> dict[str, str]:
    """Read a map of names from a JSON file.

    Raises:
        TagsError: The file is missing, is not a JSON object of names, or has an empty name.
    """
    try:
        text = storage.read_bytes(place)
    except StorageError as error:
        raise TagsError(f"`mapping` {os.fspath(place)}: no such file.") from error
    try:
        mapping = TypeAdapter(dict[str, str]).validate_python(orjson.loads(text), strict=True)
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise TagsError(
            f'`mapping` {os.fspath(place)} is not a JSON object of names, such as {{"old": "new", "*": "everything else"}}.'
        ) from error
    if (old := repeated_key(text, mapping)) is not None:
        raise TagsError(f"`mapping` {os.fspath(place)} gives {old!r} two names. Keep one of them.")
    if empty := [old for old, new in mapping.items() if not new.strip()]:
        raise TagsError(
            f"`mapping` {os.fspath(place)} gives {empty[0]!r} an empty name. Give a name that is not empty."
        )
    return mapping


def check_share(min_share: float, rest: str | None) -> None:
    """Check that a least share and the name of the rest fit together.

    Raises:
        TagsError: The share is not in [0, 1), or `rest` is empty or given without a share.
    """
    if not 0 <= min_share < 1:
        raise TagsError(f"`{min_share=}`: give a share from 0 to below 1.")
    if rest is not None and not min_share:
        raise TagsError(f"`{rest=}` takes the skills below `min_share`, which is 0: give a `min_share`.")
    if rest is not None and not rest.strip():
        raise TagsError("`rest` is empty: give the skill a name.")
