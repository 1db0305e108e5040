"""The mixed stream as rows of a `datasets.IterableDataset`, for trainers that accept no other kind of data, such as TRL's `SFTTrainer`.

A trainer with rows resumes by a walk over all earlier rows. The rows of this module begin at the position of the stream instead, so the
state is one integer, and the trainer's own walk must be off. `skillshard.hf.MixerCallback` moves the stream, and lets the trainer read.

Trainers put stages between the rows and the model. A stage that leaves out a row, or collects rows for a shuffle or for packing, separates
the number of read rows from the number of trained samples, and a resume would then lose or repeat samples. The callback counts the rows, and
refuses both stages at the first step at which the numbers differ.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from skillshard.errors import FieldError, PolicyError, did_you_mean, name_some
from skillshard.extras import needed
from skillshard.mixing.fields import RESERVED
from skillshard.mixing.members import MEMBERS_AHEAD
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.stream import Stream
from skillshard.refusals import refuse_for_trainer

if TYPE_CHECKING:
    from datasets import IterableDataset

LOOKS = 16
"""Number of rows that may be read before the training begins. TRL looks at the first row a few times."""
ROWS_AHEAD = 64
"""Number of samples that are cut out of the shards at once."""
LISTS = ("messages", "prompt", "completion", "tools")
"""Columns of TRL that may hold lists. A JSON text of a list in such a column is parsed."""
_KEY = "skillshard stream "
KEY_BYTES = 16
"""Bytes of a key: the size of a UUID, so that no two streams of rows ever share a key."""

# The dataset keeps its description through every stage, and holds the key. The references are weak, because a stream that nobody holds
# needs no key.
_STREAMS: "WeakValueDictionary[str, StreamRows]" = WeakValueDictionary()


class StreamRows:
    """The rows of a stream from the stream's position on, with a count of the rows that were read.

    Args:
        stream: Mixer, whose rows are samples, or packed tokens, whose rows are blocks with "input_ids" and "labels".
        columns: For a mixer: name of each column -> path of a field of the mixer, of a member, or "text", "skill" or "draw".

    Raises:
        PolicyError: The mixer has lag=0 or a stream that ends. Columns are given for blocks.
        FieldError: A path is no field of the mixer.
    """

    def __init__(self, stream: Stream, columns: Mapping[str, str]) -> None:
        refuse_for_trainer(stream, "TRL")
        if not isinstance(stream, Mixer) and columns:
            raise PolicyError(
                "columns are of samples, and the rows of packed tokens have the columns 'input_ids' and 'labels': leave columns out."
            )
        known = (*RESERVED, *stream.fields.paths, *stream.members.suffixes) if isinstance(stream, Mixer) else ()
        for column, path in columns.items():
            if path not in known:
                raise FieldError(
                    f"column {column!r} is of field {path!r}{did_you_mean(path, known)}, and the mixer gives {name_some(known)}: give Mixer(fields=("
                    f"{path!r},))."
                )
        self.stream, self.columns = stream, dict(columns)
        self.num_read = 0
        self.most = LOOKS
        self.has_begun = False

    # `datasets` copies the arguments of a generator. A copy would stay where the stream stood at that moment, and would count for itself.
    def __deepcopy__(self, memo: Any) -> "StreamRows":
        return self

    # `datasets` hashes the arguments of a generator by their pickle. The mixer is left out, because a worker must not read rows.
    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse_copy, ()

    def begin(self, most: int) -> None:
        """Let the trainer read from the position of the stream on, up to `most` rows."""
        self.num_read, self.most, self.has_begun = 0, most, True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start = self.stream.position
        rows_ahead = MEMBERS_AHEAD if isinstance(self.stream, Mixer) and self.stream.members else ROWS_AHEAD
        while True:
            # Not beyond the rows of the steps so far: a row ahead could lie in a round that waits for the losses of this step.
            num = min(rows_ahead, self.most - self.num_read) if self.has_begun else 1
            self._count()
            for number, row in enumerate(self._rows(start, num)):
                if number:
                    self._count()
                yield row
            start += num

    def _rows(self, start: int, num: int) -> list[dict[str, Any]]:
        if isinstance(self.stream, PackedTokens):
            blocks = self.stream.batch(start, num)
            pairs = zip(blocks.input_ids.tolist(), blocks.labels.tolist(), strict=True)
            return [{"input_ids": ids, "labels": learned} for ids, learned in pairs]
        assert isinstance(self.stream, Mixer)
        batch = self.stream.batch(start, num)
        values = batch.columns()
        return [
            {column: _value(column, values[path][row]) for column, path in self.columns.items()}
            for row in range(len(batch))
        ]

    def _count(self) -> None:
        if self.num_read >= self.most:
            if not self.has_begun:
                raise PolicyError(
                    f"{self.most} rows of the stream were read before the training began. Give the trainer MixerCallback(mixer, ...) in callbacks=[...], "
                    "and no packing, shuffle or cache in front of the rows. To look at the stream, call mixer.batch(first, num)."
                )
            raise PolicyError(
                f"the trainer read {self.num_read + 1:,} rows, and its steps so far need {self.most:,} at most: a stage in front of the trainer collects or "
                "leaves out rows, and a resume would lose samples. Set SFTConfig(shuffle_dataset=False, packing=False, ignore_data_skip=True, "
                "max_length=None)."
            )
        self.num_read += 1


def _value(column: str, value: Any) -> Any:
    """Return a value of a row: a number or a text of Python, or a list in place of its JSON text."""
    if column == "draw" or not isinstance(value, str):
        return value.item() if hasattr(value, "item") else value
    if column in LISTS and value[:1] == "[":
        try:
            return json.loads(value)
        except ValueError:  # a text that only begins like a list
            return value
    return value


def _refuse_copy() -> StreamRows:
    raise PolicyError(
        "a worker of a DataLoader cannot read the rows of the stream, because the rows are counted in the trainer's process: give "
        "dataloader_num_workers=0."
    )


def dataset_of_rows(rows: StreamRows) -> "IterableDataset":
    """Make the `datasets.IterableDataset` of rows, with one shard.

    Raises:
        ExtraError: The library `datasets` is not installed.
    """
    needed("datasets", what="A stream of rows")
    from datasets import IterableDataset

    from skillshard.endless_rows import EndlessRows

    key = secrets.token_hex(KEY_BYTES)
    _STREAMS[key] = rows
    dataset = IterableDataset.from_generator(_read, gen_kwargs={"rows": rows})
    dataset.info.description = _KEY + key
    # `from_generator` makes an object of the base class, which has the same fields.
    dataset.__class__ = EndlessRows
    return dataset


def _read(rows: StreamRows) -> Iterator[dict[str, Any]]:
    return iter(rows)


def rows_of_dataset(dataset: Any) -> StreamRows | None:
    """Return the rows that a dataset reads, through any stages of `datasets` and accelerate. None: the dataset reads no stream of rows."""
    while hasattr(dataset, "dataset"):  # accelerate's share of a dataset
        dataset = dataset.dataset
    description = getattr(getattr(dataset, "info", None), "description", None) or ""
    return _STREAMS.get(description.removeprefix(_KEY)) if description.startswith(_KEY) else None
