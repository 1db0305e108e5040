"""The draws that a packed stream of `best-fit` has given inside a round.

The blocks of a round have samples from everywhere in the round, so a number of draws does not divide the seen samples from the other samples.
The blocks follow from the round and the token counts. A sample counts as seen if one of its tokens stands in a consumed block, or if it has
no token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from skillshard.errors import LedgerError, TokensError
from skillshard.mixing.block_counts import FOLDER
from skillshard.mixing.ledger import Ledger
from skillshard.mixing.packings.fit import fit_round
from skillshard.mixing.positions import beginnings, order_of
from skillshard.mixing.round_ids import counts_of
from skillshard.mixing.round_plan import number_round, plan_round
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.run_records import BlockUnit, RunRecord
from skillshard.mixing.skill_blocks import refuse_other_tokens
from skillshard.printable import counted
from skillshard.shards.token_set import TokenSet


class ConsumedBlocks(NamedTuple):
    """The consumed blocks of the round of a draw.

    Attributes:
        num: Number of blocks of the round that the model has seen.
        unit: Blocks of the packed stream.
    """

    num: int
    unit: BlockUnit


class SavedPlace(NamedTuple):
    """The place of a saved state in the stream of its run.

    Attributes:
        draw: Number of draws consumed, over all runs.
        step: Number of optimizer steps taken. None: unknown.
        packing: Packing of the packed stream that was saved. None: the state of a mixer.
        consumed: Consumed blocks of the round, for the packing "best-fit".
    """

    draw: int
    step: int | None
    packing: str | None = None
    consumed: ConsumedBlocks | None = None


def is_packed_by_best_fit(ledger: Ledger, record: RoundRecord) -> bool:
    """Return whether a packed stream of `best-fit` has kept the number of blocks of a round beside its ledger."""
    return any(name.startswith(f"{FOLDER}/{record.checksum}-") for name in ledger.names(FOLDER))


def refuse_inside_blocks(ledger: Ledger, record: RoundRecord, draw: int, saved: SavedPlace | None) -> None:
    """Raise LedgerError for a draw inside a round whose blocks were packed by best-fit, unless a state names the consumed blocks.

    Args:
        ledger: Ledger of the run.
        record: Round of the last draw before the draw.
        draw: Number of draws consumed.
        saved: Place of a saved state. None: the draw was given as a number.
    """
    if saved is not None and saved.packing is not None:
        return
    if is_packed_by_best_fit(ledger, record):
        end = record.first_draw + record.num_draws
        raise LedgerError(
            f"draw {draw:,} lies inside round {record.round:,} of {ledger}, and {ledger}/{FOLDER} says that the round was packed by best-fit: its blocks have "
            f"samples from everywhere in the round. Give the saved state of the packed stream with its tokens, or a draw at the end of a round, such as "
            f"draw {record.first_draw:,} or draw {end:,}. If the model was not trained on these blocks, remove the folder {FOLDER}."
        )


def seen_draws(
    run: RunRecord, record: RoundRecord, draw: int, consumed: ConsumedBlocks, tokens: TokenSet | None
) -> list[list[tuple[int, int]]]:
    """Return the draws of each skill in the consumed blocks of a round.

    Args:
        run: Run of the round.
        record: Round with the blocks.
        draw: Number of draws consumed, over all runs.
        consumed: Consumed blocks of the round.
        tokens: Tokens of the packed stream.

    Returns:
        First draw and end of each part of the order of a skill, rising, for each skill.

    Raises:
        TokensError: The tokens are missing, or are not the tokens of the packed stream.
        LedgerError: The blocks of the round do not have so many draws.
    """
    unit = consumed.unit
    if tokens is None:
        raise TokensError(
            f"this state lies inside round {record.round:,}, whose blocks were packed by best-fit and have samples from everywhere in the round. Give "
            "`old_tokens`, the tokens of the packed stream, or a draw at the end of a round, such as draw "
            f"{record.first_draw + record.num_draws:,}."
        )
    refuse_other_tokens(tokens, unit, "the run that is continued")
    own = [tokens.train[skill] for skill in run.skills]
    orders = [
        order_of(start, np.array(skill.columns.num_samples), run.seed)
        for start, skill in zip(beginnings(run), own, strict=False)  # absent skills follow the skills of the run
    ]
    counts = counts_of(plan_round(record, (), orders, seed=run.seed), own)
    sizes, blocks = fit_round(
        counts, unit.block_tokens, separated=unit.separator is not None, seed=run.seed, number=record.round
    )
    is_seen = sizes == 0
    is_seen[blocks.draw[: blocks.first_piece[min(consumed.num, blocks.num_blocks)]]] = True
    if int(is_seen.sum()) != draw - record.first_draw:
        raise LedgerError(
            f"the first {counted(consumed.num, 'block')} of round {record.round:,} have {counted(int(is_seen.sum()), 'draw')}, and the state has seen "
            f"{draw - record.first_draw:,} draws of the round: the state was changed. Give another checkpoint."
        )
    skill, numbers = number_round(record, seed=run.seed)
    return [_joined(np.sort(numbers[is_seen & (skill == number)]).tolist()) for number in range(len(run.skills))]


def _joined(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Join rising numbers to parts.

    >>> _joined([2, 3, 7])
    [(2, 4), (7, 8)]
    """
    parts: list[tuple[int, int]] = []
    for number in numbers:
        first = parts.pop()[0] if parts and parts[-1][1] == number else number
        parts.append((first, number + 1))
    return parts
