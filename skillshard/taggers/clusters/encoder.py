"""Protocols of encoders, which turn texts into vectors for k-means."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

VectorsOf = Float[np.ndarray, "text dim"]


@runtime_checkable
class Encoder(Protocol):
    """An encoder that gives each text a vector of length 1, or the zero vector if the encoder knows no term of the text.

    An encoder is picklable and small. A process loads large weights once, when they are needed. The method `encode` is a pure function of
    the texts of a call: the last bits of a vector may depend on the other texts.
    """

    @property
    def name(self) -> str:
        """Kind of encoder, or name of the model."""

    @property
    def arguments(self) -> dict[str, Any]:
        """All values that determine the vectors, as JSON, with the digest of the weights."""

    @property
    def dim(self) -> int:
        """Number of dimensions of a vector."""

    @property
    def num_gpus(self) -> float:
        """Number of GPUs of a process with the encoder."""

    def encode(self, texts: Sequence[str]) -> VectorsOf:
        """Return the vectors of texts, float32."""


@runtime_checkable
class Unfitted(Protocol):
    """An encoder that must learn from texts of the corpus first."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> dict[str, Any]: ...

    @property
    def sample_size(self) -> int:
        """Number of texts to learn from."""

    def fit(self, texts: Sequence[str], folder: str, *, seed: int) -> Encoder:
        """Learn from texts, and write the files of the fitted encoder to a directory."""
