"""Which texts are held out: pure, from what the skills hold of them.

One cut decides for all skills: a text whose hash is below the cut is held out with all its copies, every other text is for
training. Two kinds of exception to the cut let skills with few texts be trained and measured. An exception moves a text with all
its copies in all skills, so no text ever stands on both sides:

1. A skill whose texts are all below the cut would have nothing to train on. Its text with the highest hash is kept in train.
2. A skill whose texts are then all in train would have nothing to measure. Its text with the lowest hash is held out too. A text
   that is the last one in train of any skill is passed over, and the next one is tried. If all are passed over, the skill has no
   held-out sample.

Skills are taken in the order of their names. So every skill has a sample to train on, and a skill with one distinct text has no
held-out sample. Both lists of exceptions stand in the manifest.
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
"""What helps where a skill has no held-out sample; the middle of a sentence."""

Sizes = Int[np.ndarray, "skill split=2 size=3"]


class Found(NamedTuple):
    """A text that may become an exception.

    Attributes:
        text: its hash, 32 hexadecimal digits.
        members: skill -> number of samples with this text, and their bytes in tars.
    """

    text: str
    members: dict[int, tuple[int, int]]


Order = Literal["lowest", "highest"]
Search = Callable[[dict[int, str], Order], dict[int, list[Found]]]
"""Skills with the hash beyond which to look -> some texts of each, in the order asked for; none: there are no more."""


class Split(NamedTuple):
    """The exceptions to the cut, and what the splits hold with them.

    Attributes:
        also_held_out: hashes of texts that are held out though they are not below the cut; sorted.
        kept_in_train: hashes of texts that are in train though they are below the cut; sorted.
        exceptions: skill -> its texts among both.
        sizes: distinct texts, samples and bytes of each skill and split.
    """

    also_held_out: list[str]
    kept_in_train: list[str]
    exceptions: dict[int, list[str]]
    sizes: Sizes


def cut_of(holdout: float) -> str:
    """The first hash that is not held out, 32 hexadecimal digits: that share of all hashes.

    >>> cut_of(0.25)
    '40000000000000000000000000000000'
    """
    return f"{int(holdout * HASH_SPACE):016x}{0:016x}"


def split_of(sizes: Sizes, search: Search, *, holds_out: bool) -> Split:
    """The exceptions that the skills need.

    Args:
        sizes: what the cut alone gives to each skill and split.
        search: finds texts of skills by their hashes.
        holds_out: whether anything is held out; if not, there are no exceptions.
    """
    sizes = sizes.copy()
    moved: dict[str, tuple[int, Found]] = {}

    def move(found: Found, to: int) -> None:
        for skill, (num_samples, num_bytes) in found.members.items():
            size = np.array([1, num_samples, num_bytes])
            sizes[skill, to] += size
            sizes[skill, 1 - to] -= size
        if moved.pop(found.text, None) is None:
            moved[found.text] = (to, found)

    if holds_out:
        _keep_in_train(sizes, search, lambda found: move(found, TRAIN))
        _hold_out(sizes, search, lambda found: move(found, HOLDOUT))
    exceptions: dict[int, list[str]] = {}
    for text in sorted(moved):
        for skill in moved[text][1].members:
            exceptions.setdefault(skill, []).append(text)
    by_side: list[list[str]] = [[], []]
    for text in sorted(moved):
        by_side[moved[text][0]].append(text)
    return Split(by_side[HOLDOUT], by_side[TRAIN], exceptions, sizes)


def _keep_in_train(sizes: Sizes, search: Search, move: Callable[[Found], None]) -> None:
    bare = np.flatnonzero((sizes[:, TRAIN, TEXTS] == 0) & (sizes[:, HOLDOUT, TEXTS] > 0)).tolist()
    found = search(dict.fromkeys(bare, ""), "highest") if bare else {}
    for skill in bare:
        if sizes[skill, TRAIN, TEXTS] == 0:
            move(found[skill][0])


def _hold_out(sizes: Sizes, search: Search, move: Callable[[Found], None]) -> None:
    bare = (sizes[:, HOLDOUT, TEXTS] == 0) & (sizes[:, TRAIN, TEXTS] > 1)
    after = dict.fromkeys(np.flatnonzero(bare).tolist(), "")
    while after:
        found = search(after, "lowest")
        for skill in list(after):
            if sizes[skill, HOLDOUT, TEXTS] == 0 and found[skill]:
                free = next((text for text in found[skill] if _is_free(sizes, text)), None)
                if free is None:
                    after[skill] = found[skill][-1].text
                    break  # those that follow wait, so that the order does not depend on how many texts a search gives
                move(free)
            del after[skill]


def _is_free(sizes: Sizes, found: Found) -> bool:
    """Whether every skill that has this text has another one in train."""
    return all(sizes[skill, TRAIN, TEXTS] > 1 for skill in found.members)
