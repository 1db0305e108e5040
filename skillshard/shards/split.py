"""Decide the held-out texts: a pure function of the texts of each skill.

One cut decides for all skills. A text with a hash below the cut is held out with all its copies, and every other text is for
training. Two kinds of exception let skills with few texts be trained and measured. An exception moves a text with all copies in
all skills, so no text ever stands on both sides:

1. A skill with all texts below the cut would have no training sample. The text with the highest hash is kept in train.
2. A skill with all texts in train would then have no sample to measure. The text with the lowest hash is held out too. A text that
   is the last text in train of any skill is passed over, and the next text is tried. If all texts are passed over, the skill has
   no held-out sample.

The skills take turns in the order of their names. As a result, every skill has a training sample, and a skill with one distinct
text has no held-out sample. The manifest lists both kinds of exceptions.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard.hash_ranges import HASH_SPACE

TRAIN, HOLDOUT = 0, 1
"""Positions on the axis of splits, in the order of `manifest.SPLITS`."""
TEXTS, SAMPLES, BYTES = 0, 1, 2
"""Positions on the axis of sizes: distinct texts, samples, bytes in tars."""
HOW_TO_HOLD_OUT = (
    "shard with a holdout above 0, such as 'skillshard shard CORPUS --tags T --holdout 0.01 --out S'; or, if a skill has "
    "too few texts to be split, merge it into a larger one with 'skillshard regroup T --min-share 0.01 --rest other --out R'"
)
"""Remedy for a skill without a held-out sample, as the middle of a sentence."""

Sizes = Int[np.ndarray, "skill split=2 size=3"]


class Candidate(NamedTuple):
    """Text that may become an exception.

    Attributes:
        text: Hash of the text, 32 hexadecimal digits.
        members: Skill -> number of samples with this text, and their bytes in tars.
    """

    text: str
    members: dict[int, tuple[int, int]]


Order = Literal["lowest", "highest"]
Search = Callable[[dict[int, str], Order], dict[int, list[Candidate]]]
"""Function that finds texts of skills.

The function gets for each skill the hash after which to look, and an order. The function returns the next texts of each skill in
that order. An empty list means that the skill has no more texts.
"""


class Split(NamedTuple):
    """Exceptions to the cut, with the resulting sizes of the splits.

    Attributes:
        also_held_out: Sorted hashes of the held-out texts that are not below the cut.
        kept_in_train: Sorted hashes of the texts in train that are below the cut.
        exceptions: Skill -> hashes of its texts in either list.
        sizes: Number of distinct texts, samples and bytes of each skill and split.
    """

    also_held_out: list[str]
    kept_in_train: list[str]
    exceptions: dict[int, list[str]]
    sizes: Sizes


def cut_of(holdout: float) -> str:
    """Return the first hash that is not held out, as 32 hexadecimal digits, for a share of all hashes.

    >>> cut_of(0.25)
    '40000000000000000000000000000000'
    """
    return f"{int(holdout * HASH_SPACE):016x}{0:016x}"


def split_of(sizes: Sizes, search: Search, *, holds_out: bool) -> Split:
    """Find the exceptions that the skills need.

    Args:
        sizes: Sizes of each skill and split by the cut alone.
        search: Function that finds texts of skills by their hashes.
        holds_out: Whether any text is held out. Without held-out texts, no exceptions are needed.
    """
    sizes = sizes.copy()
    moved: dict[str, tuple[int, Candidate]] = {}

    def move(text: Candidate, side: int) -> None:
        for skill, (num_samples, num_bytes) in text.members.items():
            size = np.array([1, num_samples, num_bytes])
            sizes[skill, side] += size
            sizes[skill, 1 - side] -= size
        # The second rule can move back a text that the first rule has moved. Such a text obeys the cut again: no exception.
        if moved.pop(text.text, None) is None:
            moved[text.text] = (side, text)

    # The first rule can take the last held-out text of a skill, so the second rule follows.
    if holds_out:
        _keep_in_train(sizes, search, lambda text: move(text, TRAIN))
        _hold_out(sizes, search, lambda text: move(text, HOLDOUT))
    exceptions: dict[int, list[str]] = {}
    for text in sorted(moved):
        for skill in moved[text][1].members:
            exceptions.setdefault(skill, []).append(text)
    by_side: list[list[str]] = [[], []]
    for text in sorted(moved):
        by_side[moved[text][0]].append(text)
    return Split(by_side[HOLDOUT], by_side[TRAIN], exceptions, sizes)


def _keep_in_train(sizes: Sizes, search: Search, move: Callable[[Candidate], None]) -> None:
    bare = np.flatnonzero((sizes[:, TRAIN, TEXTS] == 0) & (sizes[:, HOLDOUT, TEXTS] > 0)).tolist()
    candidates = search(dict.fromkeys(bare, ""), "highest") if bare else {}
    for skill in bare:
        # An earlier skill may have moved a shared text, and then this skill has a text in train already.
        # A skill whose new texts all stand in the holdout of a parent has no candidate, and stays without a sample in train.
        if sizes[skill, TRAIN, TEXTS] == 0 and candidates[skill]:
            move(candidates[skill][0])


def _hold_out(sizes: Sizes, search: Search, move: Callable[[Candidate], None]) -> None:
    bare = (sizes[:, HOLDOUT, TEXTS] == 0) & (sizes[:, TRAIN, TEXTS] > 1)
    after = dict.fromkeys(np.flatnonzero(bare).tolist(), "")
    while after:
        candidates = search(after, "lowest")
        for skill in list(after):
            if sizes[skill, HOLDOUT, TEXTS] == 0 and candidates[skill]:
                free = next((text for text in candidates[skill] if _is_free(sizes, text)), None)
                if free is None:
                    after[skill] = candidates[skill][-1].text
                    # The following skills wait, so that the order does not depend on the number of texts of a search.
                    break
                move(free)
            del after[skill]


def _is_free(sizes: Sizes, text: Candidate) -> bool:
    """Return whether every skill with this text has another text in train."""
    return all(sizes[skill, TRAIN, TEXTS] > 1 for skill in text.members)
