"""The shards that a stream requests before it reads them, and the limit of the length of a text."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from skillshard.errors import ShardError
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.round_plan import Maps, read_ahead
from skillshard.policies import proportional
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards


def ids_of(path: Path) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        members = [member for member in tar if member.name.endswith(".json")]
        return {json.load(file)["id"] for member in members if (file := tar.extractfile(member)) is not None}


def test_the_shards_of_a_round_and_of_the_next_one_are_asked_for_and_none_that_was_read_to_its_end(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounds are in the first pass over each skill, so no shard comes back."""
    requested: set[str] = set()
    monkeypatch.setattr(SkillShards, "prefetch", lambda self, shard: requested.add(self.name(shard)))
    mixer = Mixer(shards, proportional(), ledger=tmp_path, round_draws=40)
    held = {
        of_skill.name(shard): ids_of(Path(shards.root) / of_skill.name(shard))
        for of_skill in shards.train.values()
        for shard in range(len(of_skill.shard_rows))
    }
    num_train = sum(map(len, shards.train.values()))
    assert len(held) > 10
    for number in range(num_train // 40 - 2):
        record = mixer.round(number)
        requested.clear()
        read_ahead(record, mixer.orders, [skill.prefetch for skill in mixer._train])
        before, now_and_next = set(mixer.ids(0, 40 * number)), set(mixer.ids(40 * number, 80))
        assert {name for name, ids in held.items() if ids & now_and_next} <= requested
        assert not {name for name, ids in held.items() if ids <= before} & requested


def test_a_text_of_two_gibibytes_is_refused_with_its_size_and_the_largest_that_is_read() -> None:
    first, size = np.array([0]), np.array([2**31])
    sentence = "a text is 2,147,483,648 bytes, and a mixer reads texts of less than 2,147,483,648 bytes: split the text"
    with pytest.raises(ShardError, match=sentence):
        Maps([memoryview(b"x")]).views(first, first, size)
