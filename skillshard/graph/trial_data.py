"""The encoded texts that a graph's trials train on and are measured on. Texts that no trial draws are left out.

    RUNS/data-DIGEST.npz     for each skill: row numbers, tokens and targets of the texts that are drawn; what is measured

A trial draws a text by its number among the first `samples` texts of the skill. So the drawn texts are known before any text is
read, and the draws do not depend on which texts are kept.
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
    """The texts of a skill that are drawn, found by their number among all of them.

    Attributes:
        num_texts: number of texts that are drawn from.
        rows: numbers of the kept texts, rising.
        tokens: tokens of the kept texts, in the smallest unsigned integers that hold all tokens.
        targets: targets of the kept texts minus `IGNORE`, so that no number is negative, in such integers too.
    """

    num_texts: int
    rows: Int[np.ndarray, " text"]
    tokens: UInt[np.ndarray, "text positions slots"]
    targets: UInt[np.ndarray, "text positions"]

    @classmethod
    def of(cls, parts: Sequence[TokenBatch], rows: Int[np.ndarray, " text"], num_texts: int) -> "DrawnTexts":
        """Encoded texts, part by part, in the order of their rows.

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
        """The texts of some numbers, which are all kept."""
        at = np.searchsorted(self.rows, rows)
        assert np.array_equal(self.rows.take(at, mode="clip"), rows), "a text is drawn that was not kept"
        return TokenBatch(self.tokens[at].astype(np.int64), self.targets[at].astype(np.int64) + IGNORE)

    @property
    def batch(self) -> TokenBatch:
        """All kept texts."""
        return self[self.rows]

    @property
    def num_bytes(self) -> int:
        """Bytes in memory and, about, on disk."""
        return int(self.rows.nbytes + self.tokens.nbytes + self.targets.nbytes)


def _compact(numbers: Integer[np.ndarray, "..."]) -> UInt[np.ndarray, "..."]:
    largest = int(numbers.max(initial=0))
    return numbers.astype(next(kind for kind in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(kind).max))


@dataclass(frozen=True)
class TrialData:
    """Encoded texts of each skill.

    Attributes:
        train: training skill -> what its batches are drawn from.
        evaluation: evaluation skill -> what its loss is measured on.
    """

    train: Mapping[str, DrawnTexts]
    evaluation: Mapping[str, DrawnTexts]


def save_data(data: TrialData, folder: str | Path) -> str:
    """Write the data under a name that is its content's; the place."""
    splits = {"train": data.train, "evaluation": data.evaluation}
    names = {split: [[skill, len(texts)] for skill, texts in of_skill.items()] for split, of_skill in splits.items()}
    arrays: dict[str, np.ndarray] = {"names": np.frombuffer(orjson.dumps(names), dtype=np.uint8)}
    for split, of_skill in splits.items():
        for number, texts in enumerate(of_skill.values()):
            for name in ("rows", "tokens", "targets"):
                arrays[f"{split}-{number}-{name}"] = getattr(texts, name)
    parts = [
        canonical.digest(np.ascontiguousarray(array).data) + str(array.shape) + array.dtype.str
        for array in arrays.values()
    ]
    place = places.join(folder, f"data-{canonical.digest(' '.join(parts).encode())}.npz")
    if not storage.exists(place):
        storage.write_arrays(place, arrays)
    return place


@lru_cache(maxsize=1)
def load_data(place: str, trained_on: tuple[str, ...]) -> TrialData:
    """What `save_data` wrote, of the skills that a trial trains on, and all that is measured."""
    with np.load(place) as found:
        names = orjson.loads(found["names"].tobytes())
        splits = {
            split: {
                skill: DrawnTexts(num, *(found[f"{split}-{number}-{name}"] for name in ("rows", "tokens", "targets")))
                for number, (skill, num) in enumerate(skills)
                if split == "evaluation" or skill in trained_on
            }
            for split, skills in names.items()
        }
    return TrialData(splits["train"], splits["evaluation"])
