"""The numbers of blocks of the rounds of a packed run, kept beside the ledger for `packing="best-fit"`.

    RUN/blocks/ROUND-UNIT.json     blocks before the round, and blocks of the round

ROUND is the checksum of the round, and UNIT the digest of the blocks (`BlockUnit`). The checksum of a round covers all rounds before, so the
content follows from the name, and every process puts equal bytes. A resume needs no new generation of these records.

The records save time and decide nothing. A reader without the records packs the rounds again, and a reader that packs a round compares.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from skillshard import canonical
from skillshard.errors import LedgerError
from skillshard.mixing.ledger import Ledger, read_record
from skillshard.mixing.ledger_record import LedgerRecord
from skillshard.mixing.round_records import RoundRecord
from skillshard.mixing.run_records import BlockUnit

FOLDER = "blocks"
REMEDY = "Remove the file: the number is counted again."


class BlocksRecord(LedgerRecord):
    """The number of blocks of a round."""

    schema_version: Literal["skillshard/blocks/1"] = Field("skillshard/blocks/1", alias="schema")
    round: int = Field(ge=0, description="number of the round")
    round_checksum: str = Field(description="checksum of the round")
    unit: BlockUnit
    first_block: int = Field(ge=0, description="number of blocks of all rounds before")
    num_blocks: int = Field(ge=0, description="number of blocks of this round")

    @property
    def end_block(self) -> int:
        """Number of blocks up to the end of the round."""
        return self.first_block + self.num_blocks

    @property
    def name(self) -> str:
        """Name of the record in the ledger."""
        return blocks_name(self.round_checksum, self.unit)


def blocks_name(round_checksum: str, unit: BlockUnit) -> str:
    """Return the name of the record of a round.

    >>> blocks_name("0a", BlockUnit(tokens="0b", block_tokens=8, separator=None))
    'blocks/0a-545412f6b393199b232a6bb7512d7f32.json'
    """
    return f"{FOLDER}/{round_checksum}-{canonical.digest(canonical.to_json(unit.model_dump()))}.json"


def kept_blocks(ledger: Ledger, record: RoundRecord, unit: BlockUnit) -> BlocksRecord | None:
    """Read the number of blocks of a round. Return None if nobody has counted the blocks.

    Raises:
        LedgerError: The record is damaged, or is of another round or other blocks.
    """
    name = blocks_name(record.checksum, unit)
    blocks = read_record(ledger, name, BlocksRecord, remedy=REMEDY)
    if blocks is not None and (blocks.name != name or blocks.round != record.round):
        raise LedgerError(f"{ledger}/{name} is of round {blocks.round:,}, but its name says otherwise. {REMEDY}")
    return blocks


def keep_blocks(ledger: Ledger, blocks: BlocksRecord, record: RoundRecord) -> None:
    """Keep the number of blocks of a round, or compare with the number that was kept.

    Raises:
        LedgerError: As in `kept_blocks`, or another number was kept.
    """
    known = kept_blocks(ledger, record, blocks.unit)
    if known is None:
        if ledger.put(blocks.name, blocks.to_bytes()):
            return
        known = kept_blocks(ledger, record, blocks.unit)
    if known is not None and known != blocks:
        raise LedgerError(
            f"{ledger}/{blocks.name} says {known.num_blocks:,} blocks from block {known.first_block:,} on, and round {blocks.round:,} has "
            f"{blocks.num_blocks:,} blocks from block {blocks.first_block:,} on: the record or the loaded state was changed. {REMEDY}"
        )


def faults_of_blocks(ledger: Ledger, checksums: Mapping[int, str]) -> Iterator[str]:
    """Describe the damaged numbers of blocks of a run.

    Args:
        ledger: Ledger of the run.
        checksums: Number of each readable round of the newest generation -> its checksum.
    """
    number_of = {checksum: number for number, checksum in checksums.items()}
    ends: dict[tuple[int, str], tuple[int, int]] = {}
    for name in ledger.names(FOLDER):
        try:
            blocks = read_record(ledger, name, BlocksRecord, remedy=REMEDY)
        except LedgerError as error:
            yield str(error)
            continue
        if blocks is None:
            continue
        if blocks.name != name or number_of.get(blocks.round_checksum, blocks.round) != blocks.round:
            yield f"{ledger}/{name} is of round {blocks.round:,}, but its name says otherwise. {REMEDY}"
        elif blocks.round_checksum in number_of:
            ends[blocks.round, name.rpartition("-")[2]] = blocks.first_block, blocks.end_block
    for (number, unit), (first, _) in ends.items():
        _, expected = ends.get((number - 1, unit), (0, first)) if number else (0, 0)
        if first != expected:
            name = f"{FOLDER}/{checksums[number]}-{unit}"
            yield f"{ledger}/{name} begins at block {first:,}, and the round before ends at block {expected:,}. {REMEDY}"
