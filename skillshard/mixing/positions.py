"""Pure functions of places in the order of a skill: after draws, after a skip, and with appended shards."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from skillshard.mixing.ledger import (
    Layer,
    RunRecord,
    SkillPosition,
    SkipInEpoch,
    SkippedPart,
    open_skips_of,
    skipped_by,
)
from skillshard.mixing.order import OpenEpoch, SkillOrder, Skip
from skillshard.shards.read import SkillShards


def advanced(start: SkillPosition, drawn: int, seed: int) -> SkillPosition:
    """Return the place of a run in the order of a skill after some draws.

    Args:
        start: Place at the beginning of the run.
        drawn: Number of draws of the skill, as if the skill had always had its present samples.
        seed: Seed of the run.
    """
    num = start.num_samples
    # A finished epoch stays open at its end, so that samples that are appended next still belong to this epoch.
    epoch = (drawn - 1) // num if drawn else 0
    if epoch != start.epoch:
        start = start.model_copy(
            update={"seed": seed, "layers": [Layer(num_shards=start.num_shards, position=0)], "epoch": epoch}
        )
    return start.model_copy(update={"position": drawn - epoch * num, "passes": drawn / num})


def grown(before: SkillPosition, *, skill: str, seed: int, content: str, shard_rows: Sequence[int]) -> SkillPosition:
    """Return the place in the order of a skill under its present name and with its present shards.

    Args:
        before: Place in the order of the skill's first shards.
        skill: Present name.
        seed: Seed of the new run.
        content: Content of the present shards.
        shard_rows: Number of samples of each present shard. The first shards are the shards of `before`.
    """
    num_shards, num_samples = len(shard_rows), sum(shard_rows)
    layers, own_seed = before.layers, before.seed
    if not before.position:
        # Nothing was drawn, so the first epoch is a permutation of all samples.
        layers, own_seed = [Layer(num_shards=num_shards, position=0)], seed
    elif num_shards > before.num_shards:
        layers = [*layers, Layer(num_shards=num_shards, position=before.position)]
    return SkillPosition(
        skill=skill,
        label=before.label,
        content=content,
        num_shards=num_shards,
        num_samples=num_samples,
        seed=own_seed,
        epoch=before.epoch,
        position=before.position,
        passes=(before.epoch * num_samples + before.position) / num_samples,
        layers=layers,
    )


def untouched(*, skill: str, label: str, seed: int, content: str, shard_rows: Sequence[int]) -> SkillPosition:
    """Return the beginning of the order of a skill."""
    return SkillPosition(
        skill=skill,
        label=label,
        content=content,
        num_shards=len(shard_rows),
        num_samples=sum(shard_rows),
        seed=seed,
        epoch=0,
        position=0,
        passes=0.0,
        layers=[Layer(num_shards=len(shard_rows), position=0)],
    )


class SkipAcrossEpochs(ValueError):
    """A skip leaves samples of the open epoch behind and goes on in a later epoch."""


def after_skip(
    start: SkillPosition, parts: Sequence[tuple[int, int]], seed: int
) -> tuple[SkillPosition, SkipInEpoch | None]:
    """Return the place in the order of a skill after a skip, which counts the skipped samples as drawn.

    Args:
        start: Place before the skip.
        parts: First draw and end of each skipped part in the order of the skill, over all epochs: rising, disjoint, and not before the place.
        seed: Seed of the run before.

    Returns:
        The place, and the skipped parts that lie beyond samples that are left. None: the skip begins at the place and has no gap.

    Raises:
        SkipAcrossEpochs: Samples of an epoch are left, and the skip goes on in the next epoch.

    Example:
        >>> start = untouched(skill="add", label="add", seed=0, content="", shard_rows=[10])
        >>> place, skip = after_skip(start, [(0, 2), (5, 7)], 0)
        >>> place.position, skip.position, skip.parts
        (4, 2, [(5, 7)])
    """
    num, drawn, left = start.num_samples, start.drawn, list(parts)
    while left and left[0][0] == drawn:
        drawn = left.pop(0)[1]
    place = advanced(start, drawn, seed)
    if not left:
        return place, None
    epoch = drawn // num
    if left[-1][1] > (epoch + 1) * num:
        raise SkipAcrossEpochs
    if place.epoch != epoch:
        # The finished epoch is closed, because the skip belongs to the next epoch.
        place = place.model_copy(
            update={"seed": seed, "epoch": epoch, "layers": [Layer(num_shards=start.num_shards, position=0)]}
        )
    first = epoch * num
    skip = SkipInEpoch(
        label=start.label,
        num_layers=len(place.layers),
        position=drawn - first,
        parts=[(begin - first, end - first) for begin, end in left],
    )
    drawn += sum(end - begin for begin, end in left)
    return place.model_copy(update={"position": drawn - first, "passes": drawn / num}), skip


def parts_of(part: SkippedPart, label: str) -> list[tuple[int, int]]:
    """Return the first draw and the end of each skipped part of a skill, rising. Neighbouring parts are joined."""
    parts: list[tuple[int, int]] = []
    for draws in (own for stretch in part.stretches for own in stretch.skills if own.label == label):
        first, end = draws.first, draws.first + draws.num
        if parts and parts[-1][1] == first:
            first = parts.pop()[0]
        parts.append((first, end))
    return parts


def places_after(part: SkippedPart) -> tuple[list[SkillPosition], list[SkipInEpoch]]:
    """Return the place of each skill after a skip, and all skips in the open epochs, the oldest first."""
    places, skips = [], list(part.earlier)
    for before in part.places:
        place, skip = after_skip(before, parts_of(part, before.label), part.seed)
        if place.epoch != before.epoch:
            skips = [earlier for earlier in skips if earlier.label != place.label]
        places.append(place)
        skips += [] if skip is None else [skip]
    return places, skips


def still_open(
    skips: Sequence[SkipInEpoch], before: Sequence[SkillPosition], after: Sequence[SkillPosition]
) -> list[SkipInEpoch]:
    """Return the skips whose epoch is still open after a run.

    Args:
        skips: Skips in the open epochs at the beginning of the run.
        before, after: Place of each skill at the beginning and at the end of the run.
    """
    same = {start.label for start, end in zip(before, after, strict=True) if start.epoch == end.epoch}
    return [skip for skip in skips if skip.label in same]


def open_epoch(start: SkillPosition, skips: Sequence[SkipInEpoch] = ()) -> OpenEpoch:
    """Return the epoch in which a run begins, for `SkillOrder`.

    Args:
        start: Place in the order of the skill.
        skips: Skips in the open epochs of all skills, the oldest first.
    """
    return OpenEpoch(
        start.epoch,
        start.seed,
        tuple((layer.num_shards, layer.position) for layer in start.layers),
        tuple(Skip(skip.num_layers, skip.position, tuple(skip.parts)) for skip in skips if skip.label == start.label),
    )


def orders_of(run: RunRecord, train: Sequence[SkillShards]) -> list[SkillOrder]:
    """Return the order of the samples of each skill of a run.

    Args:
        run: Run, or the run that will begin.
        train: Training shards of each skill.
    """
    if run.continues is None:
        return [
            SkillOrder(shards.shard_rows, (run.seed, skill)) for shards, skill in zip(train, run.skills, strict=True)
        ]
    skips = open_skips_of(run)
    return [
        SkillOrder(shards.shard_rows, (run.seed, start.label), open_epoch(start, skips))
        for shards, start in zip(train, run.continues.skills, strict=True)
    ]


def last_sample(
    run: RunRecord, label: str, train: Sequence[SkillShards]
) -> tuple[int, int, Int[np.ndarray, "1"]] | None:
    """Find the sample of the last draw before a run that continues another run.

    Args:
        run: Run that continues another run.
        label: Label of the skill of the draw.
        train: Training shards of each skill.

    Returns:
        The number of the skill, the shard and the row, or None if the run does not have the skill.
    """
    assert run.continues is not None
    number = next((number for number, place in enumerate(run.continues.skills) if place.label == label), None)
    if number is None:
        return None
    part = skipped_by(run)
    places, seed, skips = run.continues.skills, run.seed, open_skips_of(run)
    if part is not None:
        # The draw comes before the skipped samples, so it stands in the order without the skip.
        places, seed, skips = part.places, part.seed, part.earlier
    place = next(place for place in places if place.label == label)
    order = SkillOrder(train[number].shard_rows[: place.num_shards], (seed, label), open_epoch(place, skips))
    ((shard, rows),) = order.read(place.drawn - 1, place.drawn).segments
    return number, shard, rows
