"""What turns texts into vectors that k-means can compare."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

VectorsOf = Float[np.ndarray, "text dim"]


@runtime_checkable
class Encoder(Protocol):
    """Gives each text a vector of length 1 (or 0, where it knows nothing of the text).

    Picklable and small: what is large is loaded where it is used, once in a process. A pure function of the texts that it is
    given together; one text's vector may differ in its last bits with its neighbours.
    """

    @property
    def name(self) -> str:
        """The kind of encoder, or the name of its model."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What determines the vectors, as JSON; the digest of the weights among it."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def num_gpus(self) -> float:
        """GPUs that a process with it takes."""

    def encode(self, texts: Sequence[str]) -> VectorsOf:
        """The vectors of some texts, float32."""


@runtime_checkable
class Unfitted(Protocol):
    """An encoder that must see texts of the corpus first."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> dict[str, Any]: ...

    @property
    def sample_size(self) -> int:
        """How many texts it wants to see."""

    def fit(self, texts: Sequence[str], folder: str, *, seed: int) -> Encoder:
        """Learn from texts and keep what was learnt in a directory."""
