"""Pure functions of places in the order of a skill: after draws, after a skip, and with appended shards."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from skillshard.mixing.place_records import (
    AheadEpoch,
    AheadSkippedPart,
    BlocksSkippedPart,
    Layer,
    SkillPosition,
    SkipInEpoch,
    SkippedPart,
)
from skillshard.mixing.run_records import HandoverRecord, RunRecord, ahead_of, last_draw_of, open_skips_of, skipped_by
from skillshard.mixing.skill_order import OpenEpoch, SkillOrder, Skip, place_of
from skillshard.shards.skill_shards import SkillShards


class Standing(NamedTuple):
    """The place of a run in the order of a skill, with the skipped samples of the open epoch and of later epochs.

    Attributes:
        place: Place in the open epoch.
        skips: Skips in the open epoch, the oldest first.
        ahead: Later epochs with skipped samples, rising.
    """

    place: SkillPosition
    skips: tuple[SkipInEpoch, ...] = ()
    ahead: tuple[AheadEpoch, ...] = ()

    @property
    def drawn(self) -> int:
        """Number of draws, as if the skill had always had its present samples. All skipped samples count."""
        return self.place.drawn + sum(epoch.num_skipped for epoch in self.ahead)


def has_drawn(standing: Standing, epoch: int, position: int) -> bool:
    """Return whether the sample at a position of an epoch counts as drawn."""
    if epoch <= standing.place.epoch:
        return epoch < standing.place.epoch or position < standing.place.position
    return any(own.epoch == epoch and position < own.num_skipped for own in standing.ahead)


def standings(
    places: Sequence[SkillPosition], skips: Sequence[SkipInEpoch], ahead: Sequence[AheadEpoch]
) -> list[Standing]:
    """Join the places of skills with the skips and the later epochs of all skills, by the labels."""
    return [
        Standing(
            place,
            tuple(skip for skip in skips if skip.label == place.label),
            tuple(epoch for epoch in ahead if epoch.label == place.label),
        )
        for place in places
    ]


def skips_in(after: Sequence[Standing], before: Sequence[SkipInEpoch]) -> list[SkipInEpoch]:
    """Return the skips in the open epochs of all skills, the oldest first: the skips known before, then the others skill by skill."""
    present = [skip for standing in after for skip in standing.skips]
    return [skip for skip in before if skip in present] + [skip for skip in present if skip not in before]


def ahead_in(after: Sequence[Standing]) -> list[AheadEpoch]:
    """Return the later epochs with skipped samples of all skills, skill by skill."""
    return [epoch for standing in after for epoch in standing.ahead]


def beginnings(run: RunRecord) -> list[Standing]:
    """Return where each skill of a run stood at the beginning of the run. Absent skills follow the skills of the run."""
    if run.continues is None:
        return [
            Standing(
                SkillPosition(
                    skill=skill,
                    label=skill,
                    content=content,
                    num_shards=shards,
                    num_samples=num_samples,
                    seed=run.seed,
                    epoch=0,
                    position=0,
                    passes=0.0,
                    layers=[Layer(num_shards=shards, position=0)],
                )
            )
            for skill, content, shards, num_samples in zip(
                run.skills, run.contents, run.num_shards, run.num_samples, strict=True
            )
        ]
    return standings([*run.continues.skills, *run.continues.absent], open_skips_of(run), ahead_of(run))


def advanced(start: Standing, drawn: int, seed: int) -> Standing:
    """Return where a run stands in the order of a skill after some draws.

    Args:
        start: Beginning of the run.
        drawn: Number of draws of the skill, as if the skill had always had its present samples. All skipped samples count.
        seed: Seed of the run.
    """
    if drawn == start.drawn:
        return start
    # A finished epoch stays open at its end, so that samples that are appended next still belong to this epoch.
    epoch, position = place_of(drawn - 1, start.place.num_samples, opened_ahead(start.ahead))
    return standing_at(start, epoch, position + 1, seed)


def standing_at(start: Standing, epoch: int, position: int, seed: int) -> Standing:
    """Return where a run stands at a position of the open epoch or of a later epoch. The arguments are those of `advanced`."""
    return _at(_in_epoch(start, epoch, seed), position)


def _in_epoch(start: Standing, epoch: int, seed: int) -> Standing:
    """Return the beginning of an epoch, or the same place if the epoch is open already."""
    if epoch == start.place.epoch:
        return start
    known = next((own for own in start.ahead if own.epoch == epoch), None)
    layers = [Layer(num_shards=start.place.num_shards, position=0)] if known is None else known.layers
    place = start.place.model_copy(
        update={"seed": seed if known is None else known.seed, "epoch": epoch, "layers": layers}
    )
    return Standing(
        place,
        () if known is None else tuple(known.skips),
        tuple(own for own in start.ahead if own.epoch > epoch),
    )


def _at(standing: Standing, position: int) -> Standing:
    """Return a place at a position of its open epoch."""
    place = standing.place
    drawn = place.epoch * place.num_samples + position
    return standing._replace(place=place.model_copy(update={"position": position, "passes": drawn / place.num_samples}))


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


def grown_ahead(ahead: Sequence[AheadEpoch], places: Sequence[SkillPosition]) -> list[AheadEpoch]:
    """Return the later epochs with the present shards of their skills. Appended samples follow the skipped samples of each epoch."""
    num_shards = {place.label: place.num_shards for place in places}
    return [
        epoch
        if num_shards[epoch.label] == epoch.layers[-1].num_shards
        else epoch.model_copy(
            update={
                "layers": [*epoch.layers, Layer(num_shards=num_shards[epoch.label], position=epoch.num_skipped)],
            }
        )
        for epoch in ahead
    ]


def after_skip(start: Standing, parts: Sequence[tuple[int, int]], seed: int, *, goes_on: bool = False) -> Standing:
    """Return where a run stands in the order of a skill after a skip. The skipped samples count as drawn.

    Args:
        start: Place before the skip.
        parts: First draw and end of each skipped part in the order of the skill, over all epochs: rising, disjoint, and not before the place.
        seed: Seed of the run before.
        goes_on: Whether the last drawn sample is cut and goes on after the skip. This sample then stays the last drawn sample: it follows the skipped
            samples of its epoch.

    Example:
        >>> start = Standing(untouched(skill="add", label="add", seed=0, content="", shard_rows=[10]))
        >>> after = after_skip(start, [(0, 2), (5, 7), (12, 15)], 0)
        >>> after.place.position, [(skip.position, skip.parts) for skip in after.skips]
        (4, [(2, [(5, 7)])])
        >>> [(epoch.epoch, epoch.num_skipped, epoch.skips[0].parts) for epoch in after.ahead]
        [(1, 3, [(2, 5)])]
    """
    num, drawn, left = start.place.num_samples, start.drawn, list(parts)
    while left and left[0][0] == drawn and not goes_on:
        drawn = left.pop(0)[1]
    after = advanced(start, drawn, seed)
    if not left:
        return after
    of_epoch = _parts_of_epochs(left, num, opened_ahead(after.ahead))
    epoch, position = after.place.epoch, after.place.position - 1
    if not goes_on:
        epoch, position = place_of(drawn, num, opened_ahead(after.ahead))
    own = of_epoch.pop(epoch, [])
    if own:
        # A finished epoch is closed, because the skip belongs to the next epoch.
        after = _at(_in_epoch(after, epoch, seed), position)
        skip, num_drawn = _skip(after.place.label, len(after.place.layers), position, own)
        after = _at(after._replace(skips=(*after.skips, *skip)), num_drawn + goes_on)
    later = {known.epoch: known for known in after.ahead}
    for epoch, own in of_epoch.items():
        known = later.get(epoch)
        layers = [Layer(num_shards=start.place.num_shards, position=0)] if known is None else known.layers
        skip, num_drawn = _skip(after.place.label, len(layers), 0 if known is None else known.num_skipped, own)
        later[epoch] = AheadEpoch(
            label=after.place.label,
            epoch=epoch,
            seed=seed if known is None else known.seed,
            num_skipped=num_drawn,
            layers=layers,
            skips=[*(() if known is None else known.skips), *skip],
        )
    return after._replace(ahead=tuple(later[epoch] for epoch in sorted(later)))


def _parts_of_epochs(
    parts: Sequence[tuple[int, int]], num_samples: int, ahead: Sequence[OpenEpoch]
) -> dict[int, list[tuple[int, int]]]:
    """Split parts of the order of a skill at the ends of epochs. Return epoch -> first position and end of each part."""
    of_epoch: dict[int, list[tuple[int, int]]] = {}
    for draw, end in parts:
        while draw < end:
            epoch, position = place_of(draw, num_samples, ahead)
            taken = min(end - draw, num_samples - position)
            of_epoch.setdefault(epoch, []).append((position, position + taken))
            draw += taken
    return of_epoch


def _skip(
    label: str, num_layers: int, position: int, parts: list[tuple[int, int]]
) -> tuple[tuple[SkipInEpoch, ...], int]:
    """Return the skip of parts of an epoch, and the number of draws of the epoch after the skip. Parts at the position need no skip."""
    while parts and parts[0][0] == position:
        position, parts = parts[0][1], parts[1:]
    if not parts:
        return (), position
    skip = SkipInEpoch(label=label, num_layers=num_layers, position=position, parts=parts)
    return (skip,), position + sum(end - first for first, end in parts)


def parts_of(part: SkippedPart, label: str) -> list[tuple[int, int]]:
    """Return the first draw and the end of each skipped part of a skill, rising. Neighbouring parts are joined.

    Two stretches of blocks may have a sample in common, which has tokens in both.
    """
    parts: list[tuple[int, int]] = []
    for draws in (own for stretch in part.stretches for own in stretch.skills if own.label == label):
        first, end = draws.first, draws.first + draws.num
        if parts and parts[-1][1] >= first:
            first, last = parts.pop()
            end = max(end, last)
        parts.append((first, end))
    return parts


def standings_of(part: SkippedPart) -> list[Standing]:
    """Return where each skill stood before a skip."""
    return standings(part.places, part.earlier, part.ahead if isinstance(part, AheadSkippedPart) else [])


def standings_after(part: SkippedPart) -> list[Standing]:
    """Return where each skill stands after a skip."""
    begins = {begin.label: begin for begin in part.begins} if isinstance(part, BlocksSkippedPart) else {}
    after = []
    for before in standings_of(part):
        parts, begin = parts_of(part, before.place.label), begins.get(before.place.label)
        if begin is None:
            after.append(after_skip(before, parts, part.seed))
        else:
            start = advanced(before, begin.drawn, part.seed)
            left = [(max(first, begin.drawn), end) for first, end in parts if end > begin.drawn]
            after.append(after_skip(start, left, part.seed, goes_on=begin.goes_on))
    return after


def opened_ahead(ahead: Sequence[AheadEpoch]) -> tuple[OpenEpoch, ...]:
    """Return the later epochs with skipped samples of one skill, for `SkillOrder`."""
    return tuple(
        OpenEpoch(epoch.epoch, epoch.seed, _layers(epoch.layers), _skips(epoch.skips), epoch.num_skipped)
        for epoch in ahead
    )


def order_of(standing: Standing, shard_rows: Int[np.ndarray, " shard"], seed: int) -> SkillOrder:
    """Return the order of the samples of a skill from a place on.

    Args:
        standing: Place in the order of the skill.
        shard_rows: Number of samples of each shard.
        seed: Seed of the epochs after the open epoch.
    """
    place = standing.place
    opened = OpenEpoch(place.epoch, place.seed, _layers(place.layers), _skips(standing.skips))
    return SkillOrder(shard_rows, (seed, place.label), opened, opened_ahead(standing.ahead))


def _layers(layers: Sequence[Layer]) -> tuple[tuple[int, int], ...]:
    return tuple((layer.num_shards, layer.position) for layer in layers)


def _skips(skips: Sequence[SkipInEpoch]) -> tuple[Skip, ...]:
    return tuple(Skip(skip.num_layers, skip.position, tuple(skip.parts)) for skip in skips)


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
    return [
        order_of(start, shards.shard_rows, run.seed)
        for shards, start in zip(train, beginnings(run), strict=False)  # absent skills follow the skills of the run
    ]


def after_last_draw(run: RunRecord, handover: HandoverRecord) -> Standing | None:
    """Return the place of a skill after the last draw before a run, in the order that the skill had at this draw.

    Args:
        run: Run that continues another run.
        handover: Handover of the run.

    Returns:
        The place, or None if the handover does not know the skill of the last draw.
    """
    last, part = last_draw_of(handover), skipped_by(run)
    if last is not None:
        return Standing(last.place, tuple(last.skips))
    # The draw comes before the skipped samples, so its place is the place without the skip.
    before = beginnings(run) if part is None else standings_of(part)
    return next((start for start in before if start.place.label == handover.last_skill), None)


def last_sample(
    run: RunRecord, handover: HandoverRecord, train: Sequence[SkillShards]
) -> tuple[int, int, Int[np.ndarray, "1"]] | None:
    """Find the sample of the last draw before a run that continues another run.

    Args:
        run: Run that continues another run.
        handover: Handover of the run.
        train: Training shards of each skill.

    Returns:
        The number of the skill, the shard and the row, or None if the draw is unknown or the run does not have the skill.
    """
    assert run.continues is not None
    start = after_last_draw(run, handover)
    labels = [place.label for place in run.continues.skills]
    if start is None or start.place.label not in labels:
        return None
    number = labels.index(start.place.label)
    # The epoch of the draw is open at its place and has a seed of its own, so the seed of later epochs does not matter.
    order = order_of(start, train[number].shard_rows[: start.place.num_shards], run.seed)
    ((shard, rows),) = order.read(start.drawn - 1, start.drawn).segments
    return number, shard, rows
