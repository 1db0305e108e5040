"""The past of a run, read from its ledger, is the stream that the run gave."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillshard import storage
from skillshard.errors import LedgerError
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.recorded import RecordedStream
from skillshard.mixing.skill_order import STRIPE_ROWS, SkillOrder
from skillshard.policies import proportional, stratified, temperature
from skillshard.shards.read import ShardSet
from tests.conftest import samples, tag_and_shard, write_corpus


@given(
    st.lists(st.integers(1, 2 * STRIPE_ROWS + 3), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 2**32),
    st.data(),
)
def test_the_offset_of_a_sample_is_the_inverse_of_the_order(
    shard_rows: list[int], epoch: int, seed: int, data: st.DataObject
) -> None:
    order = SkillOrder(np.array(shard_rows), (seed, "skill"))
    offset = data.draw(st.integers(0, sum(shard_rows) - 1))
    start = epoch * order.num_samples + offset
    ((shard, rows),) = order.read(start, start + 1).segments
    assert order.offset(epoch, shard, int(rows[0])) == offset


@pytest.mark.parametrize("repeat", ["epochs", "stop", "drop", "cap:2"])
@pytest.mark.parametrize("policy", [stratified(), proportional(), temperature(2.0)], ids=lambda policy: policy.name)
def test_the_draws_and_the_samples_of_a_run_find_each_other(
    repeat: str, policy: object, shards: ShardSet, tmp_path: Path
) -> None:
    mixer = Mixer(shards, policy, ledger=tmp_path, round_draws=37, seed=3, repeat=repeat, fields=("id",))  # type: ignore[arg-type]
    batches = [mixer.batch(first, 100) for first in range(0, 1000, 100)]
    texts = [text for batch in batches for text in batch.text]
    ids = [sample_id for batch in batches for sample_id in batch.fields["id"]]
    past = RecordedStream(DirectoryLedger(tmp_path), shards)
    assert past.num_draws >= len(texts)
    assert past.has_ended == (repeat != "epochs")
    recorded = list(past.samples(range(len(texts))))
    assert [sample.text for sample in recorded] == texts
    assert [sample.id for sample in recorded] == ids
    seen = defaultdict(list)
    for sample in past.samples(range(past.num_draws)):
        seen[sample.id].append((sample.draw, sample.round, sample.epoch))
    for sample_id in sorted(seen)[::7]:
        (stored,) = past.find(sample_id)
        assert [tuple(place) for place in past.draws_of(stored)] == seen[sample_id]


def test_a_recorded_sample_names_its_corpus_file_and_row(tmp_path: Path) -> None:
    rows = samples(add=40, carry=30)
    shards = tag_and_shard(write_corpus(tmp_path / "corpus", rows, num_files=3), tmp_path)
    Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=16).batch(0, 64)
    lines: dict[str, list[bytes]] = {}
    for path in (tmp_path / "corpus").iterdir():
        with storage.open_stream(path, compression={".gz": "gzip", ".zst": "zstd"}.get(path.suffix)) as stream:
            lines[path.name] = stream.read().splitlines()
    for sample in RecordedStream(DirectoryLedger(tmp_path / "run"), shards).samples([63, 5, 17]):
        assert sample.file is not None and sample.row is not None
        assert f'"{sample.id}"'.encode() in lines[sample.file][sample.row - 1]


def test_a_held_out_sample_is_found_and_was_never_drawn(shards: ShardSet, tmp_path: Path) -> None:
    Mixer(shards, stratified(), ledger=tmp_path, round_draws=16).batch(0, 64)
    past = RecordedStream(DirectoryLedger(tmp_path), shards)
    held_out = next(iter(next(iter(shards.holdout.values())))).id
    (stored,) = past.find(held_out)
    assert stored.split == "holdout"
    assert list(past.draws_of(stored)) == []
    assert past.find("no such id") == []


def test_a_draw_that_is_not_decided_is_one_sentence_and_decides_nothing(shards: ShardSet, tmp_path: Path) -> None:
    Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=16).batch(0, 64)
    past = RecordedStream(DirectoryLedger(tmp_path / "run"), shards)
    with pytest.raises(LedgerError, match=r"draw 64 does not exist: .*/run has decided 64 draws, in 4 rounds"):
        list(past.samples([64]))
    with pytest.raises(LedgerError, match=r"draw -1 was asked for"):
        list(past.samples([-1]))
    assert RecordedStream(DirectoryLedger(tmp_path / "run"), shards).num_draws == 64
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "ends", round_draws=50, repeat="stop")
    num = len(list(mixer))
    with pytest.raises(LedgerError, match=rf"the stream ended after {num} draws"):
        list(RecordedStream(DirectoryLedger(tmp_path / "ends"), shards).samples([num]))


def test_a_run_over_chosen_skills_opens_with_the_whole_set_and_not_with_other_shards(
    shards: ShardSet, tmp_path: Path
) -> None:
    skills = shards.skills[:2]
    mixer = Mixer(shards.choose(skills), stratified(), ledger=tmp_path / "run", round_draws=16)
    texts = mixer.batch(0, 48).text
    past = RecordedStream(DirectoryLedger(tmp_path / "run"), shards)
    assert [sample.text for sample in past.samples(range(48))] == texts
    other = tag_and_shard(write_corpus(tmp_path / "corpus", samples(add=40)), tmp_path)
    with pytest.raises(LedgerError, match=rf"is a run over the shards .*{re.escape(str(other.root))} holds the shards"):
        RecordedStream(DirectoryLedger(tmp_path / "run"), other)
