"""Batches that a worker of a loader sends as places of texts, in place of the texts.

A worker that sends texts copies each byte three times: out of the shard, through a socket, and into new strings. The loader's
process has mapped the same shards. The worker therefore sends only places (`Places`: a shard, a first byte and an end for each text),
and the loader's process cuts the texts out of the maps. With two workers, sending places gives 1.25 to 1.45 times as many samples
per second (docs/LOG.md).

The fields of a mixer are small, and parsing costs more than sending. The worker therefore reads the fields and sends their
values. Members such as images are large. The loader's process reads the members as it reads the texts.

The price: only a process with the same stream can unpickle a `SentBatch`. Each stream of a loader gets a key, the pickled batch holds
the key, and a table in the loader's process has the stream of each key. Keys are random, so two streams in different processes never
share a key. Only a batch inside a worker is a `SentBatch`. The loader returns plain dictionaries, and any process can pickle and read
a dictionary.
"""

import secrets
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

from skillshard.errors import SkillshardError
from skillshard.mixing.fields import RESERVED
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.round_plan import Places

KEY_BYTES = 16
"""Bytes of a key: the size of a UUID, so that no two loaders ever share a key."""

# The streams that loaders of this process read, by key. The references are weak, because a stream that nobody holds any more
# needs no key, and this table must not keep the memory maps of its shards open.
_STREAMS: "WeakValueDictionary[str, Mixer]" = WeakValueDictionary()


def register(stream: Mixer) -> str:
    """Remember a stream in this process, and return the key by which the workers name the stream."""
    key = secrets.token_hex(KEY_BYTES)
    _STREAMS[key] = stream
    return key


class SentBatch(Mapping[str, Any]):
    """A batch in a worker, with the keys and values of the later dictionary in the loader's process.

    The worker reads the texts only on access. Pickling writes the places and the fields, and unpickling in the loader's process gives
    the plain dictionary.

    Args:
        stream: Stream of the batch.
        key: Key of the stream, from `register`.
        places: Places of the texts.
        fields: Fields of the samples, from `Samples.fields_at`.
    """

    def __init__(self, stream: Mixer, key: str, places: Places, fields: Mapping[str, list[Any]]) -> None:
        self._stream, self._key, self._places, self._fields = stream, key, places, fields

    @cached_property
    def _values(self) -> Mapping[str, Any]:
        return self._stream.samples.cut(self._places, fields=self._fields).columns()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*RESERVED, *self._fields, *self._stream.members.suffixes))

    def __len__(self) -> int:
        return len(RESERVED) + len(self._fields) + len(self._stream.members.suffixes)

    # The stream is left out of the pickle: the receiver has the same stream under the key.
    def __reduce__(self) -> tuple[Any, ...]:
        return received, (self._key, self._places, self._fields)


def received(key: str, places: Places, fields: Mapping[str, list[Any]]) -> Mapping[str, Any]:
    """Make the dictionary of a batch that a worker sent. `pickle` calls this function.

    Raises:
        SkillshardError: The process did not make the loader, or the loader's stream is gone.
    """
    stream = _STREAMS.get(key)
    if stream is None:
        raise SkillshardError(
            f"this batch holds the places of {len(places):,} texts and not the texts, and this process cannot read the places: it did not "
            "make the loader, or the mixer of that loader is gone. A worker pickled its batch for the process of its loader alone. Pickle "
            "the batches that the loader hands out, or in a collate_fn of your own dict(collate(items)), which holds the texts."
        )
    return stream.samples.cut(places, fields=fields).columns()
