"""Skipped blocks: stretches of a run whose draws are blocks of one skill, and the samples that count as seen after the skip.

For each skill there are two cases, as docs/design/0019 explains:

- Skipped blocks that follow the place of the run count as drawn. The new run goes on with the token after the last of these blocks.
- Before other skipped blocks, the new run gives blocks of the skill first. Each sample with a token in these skipped blocks is skipped as a whole.
"""

from collections.abc import Sequence
from typing import NamedTuple

from skillshard.mixing.place_records import BlocksSkippedPart, SkipBegin, SkipInEpoch, SkippedBlocks, SkippedDraws
from skillshard.mixing.positions import Standing, ahead_in
from skillshard.mixing.records import Records
from skillshard.mixing.skill_blocks import SkillBlocks
from skillshard.mixing.skipping import Stretch, decided_stretches


class SkillSkip(NamedTuple):
    """The skip of a skill.

    Attributes:
        begin: Place after the skipped blocks that follow the place of the run, or None if no block of the skill is skipped.
        left: Number of tokens at the end of the last sample before this place that the new run still gives.
        samples: First sample and end of each skipped part in the order of the skill, over all epochs, for each stretch.
    """

    begin: SkipBegin | None
    left: int
    samples: list[list[tuple[int, int]]]


def skipped_blocks(
    records: Records,
    skip: Sequence[Stretch],
    *,
    draw: int,
    blocks: Sequence[SkillBlocks],
    drawn: Sequence[int],
    before: Sequence[Standing],
    earlier: Sequence[SkipInEpoch],
) -> tuple[BlocksSkippedPart, dict[str, int]]:
    """Find the samples of each skill in stretches of a run of blocks that the new run skips.

    Args:
        records: Records of the run before.
        skip: Stretches of the stream of the run before, at least one.
        draw: Draw up to which the model has seen blocks.
        blocks: Blocks of each skill of the run.
        drawn: Number of blocks of each skill up to the draw, over all runs.
        before: Where each skill stands at this draw. Absent skills follow the skills of the run.
        earlier: Skips of earlier runs in the open epochs, the oldest first.

    Returns:
        The skipped part for the records, and the label of each skill -> number of tokens of its cut sample that the new run still gives.

    Raises:
        PolicyError: A stretch is no first draw, number of draws and reason, or two stretches overlap.
        LedgerError: A stretch begins before the draw or is not decided.
    """
    stretches = decided_stretches(records, skip, draw=draw)
    skips = [
        skip_of_skill(own, num, [(stretch.starts[number], stretch.stops[number]) for stretch in stretches])
        for number, (own, num) in enumerate(zip(blocks, drawn, strict=True))
    ]
    labels = [own.start.place.label for own in blocks]
    part = BlocksSkippedPart(
        seed=records.run.seed,
        places=[standing.place for standing in before],
        earlier=list(earlier),
        ahead=ahead_in(before),
        begins=[own.begin for own in skips if own.begin is not None],
        stretches=[
            SkippedBlocks(
                first=stretch.first,
                num=stretch.num,
                why=stretch.why,
                skills=[
                    SkippedDraws(label=label, first=first, num=end - first)
                    for label, own in zip(labels, skips, strict=True)
                    for first, end in own.samples[number]
                ],
            )
            for number, stretch in enumerate(stretches)
        ],
    )
    return part, {label: own.left for label, own in zip(labels, skips, strict=True)}


def skip_of_skill(blocks: SkillBlocks, drawn: int, parts: Sequence[tuple[int, int]]) -> SkillSkip:
    """Find the samples of one skill in skipped blocks.

    Args:
        blocks: Blocks of the skill.
        drawn: Number of blocks of the skill that the model has seen, over all runs.
        parts: First block and end of each stretch, rising, from `drawn` on. A part may be empty.
    """
    samples = [samples_of(blocks, *part) for part in parts]
    for first, end in parts:
        if first != drawn:
            break
        drawn = end
    standing, left = blocks.after(drawn)
    if not any(samples):
        return SkillSkip(None, left, samples)
    later = [first for own, (_, end) in zip(samples, parts, strict=True) if end > drawn for first, _ in own]
    # The cut sample at the place may have tokens in a later skipped block too. Then the sample is skipped as a whole.
    goes_on = left > 0 and all(first >= standing.drawn for first in later)
    begin = SkipBegin(label=standing.place.label, drawn=standing.drawn, goes_on=goes_on)
    return SkillSkip(begin, left if goes_on else 0, samples)


def samples_of(blocks: SkillBlocks, first: int, end: int) -> list[tuple[int, int]]:
    """Find the samples with a token in the blocks first .. end - 1 of a skill.

    Returns:
        First sample and end of each part of the order of the skill, over all epochs. A part ends with its epoch.
    """
    parts = []
    while first < end:
        epoch, block = blocks.place_of(first)
        num = min(end - first, blocks.per_epoch - block)
        begin = blocks.first_token(epoch, block)
        start, stop = blocks.positions(epoch, begin, begin + num * blocks.unit.block_tokens)
        draw = blocks.order.draw_of(epoch, start)
        assert draw is not None  # the samples before the first block of the run are no samples of its blocks
        parts.append((draw, draw + stop - start))
        first += num
    return parts
