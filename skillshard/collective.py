"""The one exchange between the ranks of a training that the measurement of losses needs: rows of numbers from every rank."""

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError


def gathered(
    rows: Float[np.ndarray, "row column"], *, world_size: int | None = None
) -> Float[np.ndarray, "all_row column"]:
    """Return the rows of all ranks, in the order of the ranks, on every rank. Every rank must call this function.

    Args:
        rows: Rows of this rank. Ranks may have different numbers of rows.
        world_size: Expected number of ranks. None: the number of torch.distributed, or 1 without torch.distributed.

    Raises:
        PolicyError: torch.distributed has another number of ranks than `world_size`.
    """
    if world_size == 1:
        return rows
    import torch.distributed as distributed  # here, so that a process without torch can measure losses

    is_several = distributed.is_available() and distributed.is_initialized()
    num_ranks = distributed.get_world_size() if is_several else 1
    if world_size is not None and world_size != num_ranks:
        raise PolicyError(
            f"world_size is {world_size}, and torch.distributed has {num_ranks} rank{'' if num_ranks == 1 else 's'}: call "
            "init_process_group() on every rank first, or leave rank and world_size out."
        )
    if num_ranks == 1:
        return rows
    parts: list[np.ndarray] = [np.empty(0)] * num_ranks
    distributed.all_gather_object(parts, rows)
    return np.concatenate(parts)
