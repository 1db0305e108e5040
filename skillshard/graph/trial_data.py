"""The encoded texts that the trials of a graph train on and are measured on. Texts that no trial draws are left out.

    RUNS/data-DIGEST.npz     row numbers, tokens and targets of the drawn texts and of the measured texts, for each skill

A trial draws a text by its number among the first `samples` texts of the skill. The drawn texts are therefore known before any text
is read, and the draws do not depend on the kept texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import orjson
from jaxtyping import Int, Integer, UInt

from skillshard import canonical, places, storage
from skillshard.loss import IGNORE
from skillshard.proxy.train import TokenBatch


@dataclass(frozen=True)
class DrawnTexts:
    """The drawn texts of a skill, by their numbers among all texts.

    Attributes:
        num_texts: Number of texts to draw from.
        rows: Numbers of the kept texts, in rising order.
        tokens: Tokens of the kept texts, in the smallest unsigned integers that hold all tokens.
        targets: Targets of the kept texts minus `IGNORE`, in the smallest unsigned integers. The difference is never negative.
    """

    num_texts: int
    rows: Int[np.ndarray, " text"]
    tokens: UInt[np.ndarray, "text positions slots"]
    targets: UInt[np.ndarray, "text positions"]

    @classmethod
    def of(cls, parts: Sequence[TokenBatch], rows: Int[np.ndarray, " text"], num_texts: int) -> "DrawnTexts":
        """Join encoded texts, part by part, in the order of their rows.

        >>> batch = TokenBatch(np.array([[[256], [7]]]), np.array([[7, IGNORE]]))
        >>> texts = DrawnTexts.of([batch], np.array([5]), 9)
        >>> texts.tokens.dtype, texts.targets.dtype, len(texts), texts[np.array([5, 5])].targets.tolist()
        (dtype('uint16'), dtype('uint8'), 9, [[7, -100], [7, -100]])
        """
        tokens = np.concatenate([_compact(part.tokens) for part in parts])
        targets = np.concatenate([_compact(part.targets - IGNORE) for part in parts])
        return cls(num_texts, rows, tokens, targets)

    def __len__(self) -> int:
        return self.num_texts

    def __getitem__(self, rows: Int[np.ndarray, " batch"]) -> TokenBatch:
        """Return the texts with the given numbers. Every number must be the number of a kept text."""
        positions = np.searchsorted(self.rows, rows)
        assert np.array_equal(self.rows.take(positions, mode="clip"), rows), "a text is drawn that was not kept"
        return TokenBatch(self.tokens[positions].astype(np.int64), self.targets[positions].astype(np.int64) + IGNORE)

    @property
    def batch(self) -> TokenBatch:
        """All kept texts."""
        return self[self.rows]

    @property
    def num_bytes(self) -> int:
        """Number of bytes in memory, and about the same number on disk."""
        return int(self.rows.nbytes + self.tokens.nbytes + self.targets.nbytes)


def _compact(numbers: Integer[np.ndarray, "..."]) -> UInt[np.ndarray, "..."]:
    largest = int(numbers.max(initial=0))
    return numbers.astype(next(kind for kind in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(kind).max))


@dataclass(frozen=True)
class TrialData:
    """Encoded texts of each skill.

    Attributes:
        train: Texts for the batches of each training skill.
        evaluation: Texts for the loss of each evaluation skill.
    """

    train: Mapping[str, DrawnTexts]
    evaluation: Mapping[str, DrawnTexts]


def save_data(data: TrialData, folder: str | Path) -> str:
    """Write the data under a name that is the digest of the content, and return the place."""
    splits = {"train": data.train, "evaluation": data.evaluation}
    names = {split: [[skill, len(texts)] for skill, texts in of_skill.items()] for split, of_skill in splits.items()}
    # Names of skills are stored as JSON in an array, because a name of an array in an .npz must be a name of a file.
    arrays: dict[str, np.ndarray] = {"names": np.frombuffer(orjson.dumps(names), dtype=np.uint8)}
    for split, of_skill in splits.items():
        for number, texts in enumerate(of_skill.values()):
            for name in ("rows", "tokens", "targets"):
                arrays[f"{split}-{number}-{name}"] = getattr(texts, name)
    # The digest is of the arrays and not of the file, so that the name is known before the file is written.
    parts = [
        canonical.digest(np.ascontiguousarray(array).data) + str(array.shape) + array.dtype.str
        for array in arrays.values()
    ]
    place = places.join(folder, f"data-{canonical.digest(' '.join(parts).encode())}.npz")
    if not storage.exists(place):
        storage.write_arrays(place, arrays)
    return place


# One entry only: the texts are large, and a process trains one trial after another.
@lru_cache(maxsize=1)
def load_data(place: str, trained_on: tuple[str, ...]) -> TrialData:
    """Load the data that `save_data` wrote: the texts of a trial's training skills, and the measured texts of all skills."""
    with np.load(storage.readable(place)) as arrays:
        names = orjson.loads(arrays["names"].tobytes())
        splits = {
            split: {
                skill: DrawnTexts(num, *(arrays[f"{split}-{number}-{name}"] for name in ("rows", "tokens", "targets")))
                for number, (skill, num) in enumerate(skills)
                if split == "evaluation" or skill in trained_on
            }
            for split, skills in names.items()
        }
    return TrialData(splits["train"], splits["evaluation"])
