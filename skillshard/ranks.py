"""The processes of a training: the rank of this process, and a resume or restart of a stream on every rank."""

import operator
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed

from skillshard.errors import LedgerError, PolicyError, SkillshardError
from skillshard.mixing.stream import Stream
from skillshard.number_checks import is_whole


def process_rank() -> int:
    """Return the rank of this process: from torch.distributed, or from the environment, or 0.

    Raises:
        PolicyError: RANK is no number.
    """
    return torch.distributed.get_rank() if _is_distributed() else _of_environment("RANK", "0")


def world_size() -> int:
    """Return the number of processes of the training: from torch.distributed, or from the environment, or 1.

    Raises:
        PolicyError: WORLD_SIZE is no number.
    """
    return torch.distributed.get_world_size() if _is_distributed() else _of_environment("WORLD_SIZE", "1")


def _of_environment(name: str, default: str) -> int:
    # An unreadable rank is an error and never 0: two ranks 0 would train on the same samples.
    number = os.environ.get(name, default)
    if not re.fullmatch(r"\d+", number):
        raise PolicyError(f"the environment says {name}={number!r}: it must be a whole number, as torchrun sets it.")
    return int(number)


def resume(stream: Stream, state: Mapping[str, Any]) -> None:
    """Call `load_state_dict` of a mixer or a packed stream on every rank.

    Rank 0 begins a generation of the ledger, and the other ranks join this generation.

    Raises:
        LedgerError: The state is of another run or of another ledger. Every rank raises the error. If another error ends the resume of rank 0,
            the other ranks raise a LedgerError that names this error.
    """
    _on_every_rank(stream, lambda generation: stream.load_state_dict(state, generation=generation), "resume")


def restart(stream: Stream) -> None:
    """Call `restart` of a mixer or a packed stream on every rank, for a run that ended before its first checkpoint.

    Raises:
        LedgerError: The ledger cannot be written. Every rank raises the error.
    """
    _on_every_rank(stream, lambda generation: stream.restart(generation=generation), "restart")


def _on_every_rank(stream: Stream, go_on: Callable[[int | None], None], verb: str) -> None:
    """Let rank 0 begin a generation, then let the other ranks join the generation of rank 0."""
    if not _is_distributed():
        go_on(None)
        return
    outcome: list[tuple[str | None, int]] = [(None, 0)]
    failed: Exception | None = None
    is_first = torch.distributed.get_rank() == 0
    if is_first:
        try:
            go_on(None)
            outcome = [(None, stream.generation)]
        # Any error: a full disk, or a state of a wrong type, must not leave the other ranks in the broadcast either.
        except Exception as error:
            sentence = str(error) if isinstance(error, SkillshardError) else f"{type(error).__name__}: {error}"
            outcome, failed = [(sentence, 0)], error
    # Rank 0 sends its outcome before raising: the other ranks wait in the broadcast, and would wait for ever for a rank that has left.
    torch.distributed.broadcast_object_list(outcome, src=0)
    if failed is not None:
        raise failed
    fault, generation = outcome[0]
    if fault is not None:
        raise LedgerError(f"rank 0 could not {verb}: {fault}")
    if not is_first and generation:  # generation 0: rank 0 had nothing to begin, and the others have nothing to join
        go_on(generation)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_and_size(rank: Any, world_size: Any) -> tuple[int, int]:
    """Check given numbers, or return the rank and the number of processes of torch.distributed, or (0, 1) without torch.distributed.

    Raises:
        PolicyError: Rank and world size do not fit, or the environment names several processes but torch.distributed is not
            initialised.
    """
    if (rank is None) != (world_size is None):
        raise PolicyError(f"rank is {rank} and world_size is {world_size}: give both, or neither.")
    if rank is not None and world_size is not None:
        if not is_whole(world_size, 1) or not is_whole(rank, 0, operator.index(world_size) - 1):
            raise PolicyError(f"rank is {rank!r} of world_size {world_size!r}: rank counts from 0 to world_size - 1.")
        return operator.index(rank), operator.index(world_size)
    if _is_distributed():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    # torchrun has started several processes, and each would take the whole stream as rank 0 of 1.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise PolicyError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, but torch.distributed is not initialised: call "
            "init_process_group() first, or give rank and world_size."
        )
    return 0, 1
