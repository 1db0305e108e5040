"""Batches that a worker of a loader sends as places of texts, in place of the texts.

Why: a worker that sends texts copies each byte three times, out of the shard, through a socket, and into new strings. The loader's
process has the same shards mapped, so the worker sends the places (`Places`: a shard, a first byte and an end for each text), and
the loader's process cuts the texts out of its own maps. With two workers this gives 1.25 to 1.45 times as many samples per second
(docs/LOG.md).

The price: such a batch can be unpickled only where its stream is known. Each stream that a loader reads gets a key, the pickled
batch holds the key, and this module remembers which stream has which key. Keys are random, so that the key of one process is
never the key of another stream in another process. Only a batch inside a worker is a `SentBatch`; what a loader hands out is a
plain dictionary, which can be pickled and read anywhere.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

from skillshard.errors import SkillshardError
from skillshard.mixing.mixer import Batch, Mixer
from skillshard.mixing.round_plan import Places

KEY_BYTES = 16
"""Bytes of a key: as many as a UUID has, so that no two loaders on earth share one."""
_STREAMS: "WeakValueDictionary[str, Mixer]" = WeakValueDictionary()
"""The streams that loaders of this process read, by key. A stream that nobody holds any more needs no key."""


def register(stream: Mixer) -> str:
    """Remember a stream in this process, and return the key by which its workers name it."""
    key = secrets.token_hex(KEY_BYTES)
    _STREAMS[key] = stream
    return key


class SentBatch(Mapping[str, Any]):
    """A batch in a worker, as the dictionary that the loader's process makes of it.

    The texts are read in the worker only if they are asked for there. Pickling writes the places, and unpickling in the process
    of the loader gives the plain dictionary.

    Args:
        stream: what the batch is of.
        key: the stream's key, from `register`.
        places: where the texts lie.
        values: makes the dictionary of a batch; a function of a module, since its name is pickled.
        names: keys of that dictionary.
    """

    def __init__(
        self,
        stream: Mixer,
        key: str,
        places: Places,
        *,
        values: Callable[[Batch], Mapping[str, Any]],
        names: tuple[str, ...],
    ) -> None:
        self._stream, self._key, self._places, self._make, self._names = stream, key, places, values, names

    @cached_property
    def _values(self) -> Mapping[str, Any]:
        return self._make(self._stream.cut(self._places))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self) -> tuple[Any, ...]:
        return received, (self._key, self._places, self._make)


def received(key: str, places: Places, values: Callable[[Batch], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Make the dictionary of a batch that a worker sent; called by `pickle`.

    Raises:
        SkillshardError: this process did not make the loader, or the loader's stream is gone.
    """
    stream = _STREAMS.get(key)
    if stream is None:
        raise SkillshardError(
            f"this batch holds the places of {len(places):,} texts and not the texts, and this process cannot read the places: it did not "
            "make the loader, or the mixer of that loader is gone. A worker pickled its batch for the process of its loader alone. Pickle "
            "the batches that the loader hands out, or in a collate_fn of your own dict(collate(items)), which holds the texts."
        )
    return values(stream.cut(places))
