"""The beginning of a packed stream: the first block of the run, and the tokens of a sample that a block before has cut.

    RUN/packed.json     the beginning, if the run continues another run

Another run continues at a saved state, and its blocks go on counting. The record is put before the first block is read, so that no process
begins at another block later.
"""

from skillshard.mixing.ledger import PACKED
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.records import packed_begin
from skillshard.mixing.round_records import PackedBeginRecord


class PackedBegin:
    """The beginning of the packed stream of a mixer. Without a record, a continued run begins at block 0 and at the next sample.

    Args:
        mixer: Mixer of the stream.
    """

    def __init__(self, mixer: Mixer) -> None:
        self._mixer = mixer
        self._known: tuple[int, int] | None = None if mixer.run.continues else (0, 0)

    @property
    def block(self) -> int:
        """First block of the run. 0 unless the run continues another run."""
        return self._place()[0]

    @property
    def left(self) -> int:
        """Number of tokens at the end of the last draw before the run that no earlier block has. The first block begins with these tokens."""
        return self._place()[1]

    def _place(self) -> tuple[int, int]:
        if self._known is None:
            record = packed_begin(self._mixer.ledger, self._mixer.run)
            if record is None:
                return 0, 0
            self._known = record.block, record.left
        return self._known

    def record(self) -> None:
        """Record the beginning before a block is read."""
        if self._known is None:
            self.put(0, 0)

    def put(self, block: int, left: int) -> tuple[int, int]:
        """Record the beginning unless the ledger knows it. Return the block and the number of tokens of the ledger."""
        # The first put wins, and then the record is read back, so that every process begins at the block of the ledger.
        run = self._mixer.run
        self._mixer.ledger.put(PACKED, PackedBeginRecord(run=run.checksum, block=block, left=left).to_bytes())
        self._known = None
        record = packed_begin(self._mixer.ledger, run)
        assert record is not None
        return record.block, record.left
