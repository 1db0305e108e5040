"""The rounds of a packed stream: from a place in the stream to the round that holds the place."""

from bisect import bisect_right
from typing import Any

from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packed_begin import PackedBegin
from skillshard.mixing.packings.packing import Packing, TokenRound
from skillshard.mixing.records import RECORDS_KEPT

CUT = -1
"""Number of the round before round 0: the last draw of the run before, which a block's end has cut."""


class PackedRounds:
    """The rounds of a packed stream. The last rounds that were read stay in memory.

    Args:
        mixer: Mixer of the stream.
        packing: Packing of the stream.
        begin: Beginning of the stream.
        block_tokens: Number of tokens of a block.
    """

    def __init__(self, mixer: Mixer, packing: Packing, begin: PackedBegin, block_tokens: int) -> None:
        self.mixer, self.packing, self.begin, self.block_tokens = mixer, packing, begin, block_tokens
        self._in_memory: dict[int, TokenRound] = {}
        self._resumed: tuple[int, int] | None = None

    def resume(self, resumed: tuple[int, int] | None = None) -> None:
        """Forget the rounds in memory, because a resumed run may decide other rounds.

        Args:
            resumed: Number of a round and number of places before the round, if a state has named them.
        """
        self._in_memory.clear()
        self._resumed = resumed

    def at(self, place: int) -> TokenRound | None:
        """Find the round that holds a place of the stream. Return None beyond the end of the stream."""
        # The cheapest way first: a round in memory, then the next round, then a search in the ledger, then rounds that the
        # ledger does not have yet, which are decided one after the other.
        # A copy of the values, because another thread may add a round in the meantime. The newest round is the likely one.
        for packed in reversed(list(self._in_memory.values())):
            if packed.first <= place < packed.end:
                return packed
        if place < self.begin.block * self.block_tokens + self.begin.left:
            return self._packed(CUT)
        self._refuse_far(place)
        candidate = self._next_to(place) or self._resumed_round(place)
        if candidate is None or not candidate.first <= place < candidate.end:
            candidate = self._packed(self._number_at(place))
        while candidate is not None and candidate.end <= place:
            candidate = self._packed((candidate.first_draw - self.mixer.first_draw) // self.mixer.round_draws + 1)
        return candidate

    def _next_to(self, place: int) -> TokenRound | None:
        """Return the round after the last round in memory that ends before a place. A reader that reads on needs no search."""
        read = [number for number, packed in list(self._in_memory.items()) if packed.end <= place]
        return self._packed(max(read) + 1) if read else None

    def _resumed_round(self, place: int) -> TokenRound | None:
        """Return the round of the mixer's draw, or the round after. A resumed stream reads on at the place, and needs no search."""
        number = (self.mixer.draw - self.mixer.first_draw - 1) // self.mixer.round_draws
        if self._in_memory or number < 0 or number >= self.mixer.num_rounds:
            return None
        packed = self._packed(number)
        return packed if packed is None or place < packed.end else self._packed(number + 1)

    def _refuse_far(self, place: int) -> None:
        """Raise PolicyError for a place so far ahead that no reader in order asks for the place. Only round 0 may be decided."""
        newest = max(list(self._in_memory), default=CUT)
        last = self._in_memory.get(newest)
        # A reader that reads on needs no count of the rounds, which lists a folder.
        if last is not None and place < 2 * last.end - last.first:
            return
        if self._resumed is not None:
            known, end = self._resumed  # a state has named a place, so no round is packed to count its places
        else:
            known = self.mixer.num_rounds
            end = self.packing.places_to(known - 1) if known else self.begin.block * self.block_tokens
        # As many blocks as a round has draws are near enough. The usual reader needs no further count.
        if place - end <= self.mixer.round_draws * self.block_tokens:
            return
        draws = (place - end) / self.block_tokens * self.packing.draws_per_block()
        # Half the estimate, because the weights and the lengths of the samples change from round to round.
        number = known + int(draws / (2 * self.mixer.round_draws))
        self.mixer.refuse_far(number, place=f"block {place // self.block_tokens:,}")

    def _number_at(self, place: int) -> int:
        """Find the last round of the ledger that begins at a place or before."""
        known = self.mixer.num_rounds
        return max(0, bisect_right(range(known), place, key=self.packing.places_before) - 1)

    def _packed(self, number: int) -> TokenRound | None:
        before = self._in_memory.get(number - 1)
        first = None if before is None else before.end
        if self._resumed is not None and self._resumed[0] == number:
            first = self._resumed[1]
        packed = self.packing.cut_draw() if number == CUT else self.packing.packed(number, first)
        if packed is not None:
            self._in_memory[number] = packed
            if len(self._in_memory) > RECORDS_KEPT:
                self._in_memory.pop(min(list(self._in_memory)), None)
        return packed

    def __getstate__(self) -> dict[str, Any]:
        # The rounds in memory hold memory maps, which cannot be pickled. Each worker finds its own rounds.
        return {**self.__dict__, "_in_memory": {}}
