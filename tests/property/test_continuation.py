"""A run that continues another run loses and repeats no sample within an epoch, whatever changes from run to run."""

import dataclasses
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.positions import Standing, advanced, after_skip, grown, grown_ahead, order_of, untouched
from skillshard.mixing.recorded import RecordedStream
from skillshard.mixing.skill_order import SkillOrder
from skillshard.policies import Policy, fixed, skill_it, stratified
from skillshard.shards.manifest import Manifest
from skillshard.shards.read import ShardSet
from tests.conftest import samples, tag_and_shard, write_corpus

NUM_SAMPLES = {"add": 90, "carry": 55, "negate": 38}


# --- the order of a skill ---------------------------------------------------------------------------------------------


class SeenInEpochs:
    """The samples of each epoch of a skill, drawn or skipped. A draw belongs to the first epoch that is not complete."""

    def __init__(self) -> None:
        self.epochs: dict[int, set[Any]] = {}
        self.first = 0

    def _is_complete(self, num_samples: int) -> bool:
        return len(self.epochs.get(self.first, ())) == num_samples

    def _add(self, epoch: int, sample: Any) -> None:
        own = self.epochs.setdefault(epoch, set())
        assert sample not in own
        own.add(sample)

    def draw(self, sample: Any, num_samples: int) -> int:
        """Add a draw, and return its epoch. At its exact end an epoch is still open for appended samples."""
        while self._is_complete(num_samples):
            self.first += 1
        self._add(self.first, sample)
        return self.first

    def skip(self, epoch: int, sample: Any, num_samples: int) -> None:
        """Add a skipped sample. A skip in the next epoch closes a complete epoch."""
        if epoch == self.first + 1 and self._is_complete(num_samples):
            self.first = epoch
        self._add(epoch, sample)


def rows_at(order: SkillOrder, start: int, stop: int) -> list[tuple[int, int]]:
    stretch = order.read(start, stop)
    read = [(shard, row) for shard, rows in stretch.segments for row in rows.tolist()]
    return read if stretch.place is None else [read[place] for place in stretch.place.tolist()]


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.lists(st.integers(1, 12), max_size=3), st.integers(0, 2)),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_every_epoch_of_a_growing_skill_has_every_sample_once(
    runs: list[tuple[int, list[int], int]], first_rows: list[int]
) -> None:
    """A run draws some samples. Then shards are appended, and the next run has another seed."""
    rows, seen = list(first_rows), SeenInEpochs()
    start = Standing(untouched(skill="add", label="add", seed=0, content="", shard_rows=rows))
    for num_drawn, appended, seed in [*runs, (200, [], 0)]:
        start = drawn_once(with_shards(start, rows, seed), rows, seed, num_drawn, seen)
        rows += appended


def with_shards(standing: Standing, rows: Sequence[int], seed: int) -> Standing:
    """Return the place with the present shards."""
    place = grown(standing.place, skill="add", seed=seed, content="", shard_rows=rows)
    return standing._replace(place=place, ahead=tuple(grown_ahead(standing.ahead, [place])))


def drawn_once(start: Standing, rows: Sequence[int], seed: int, num_drawn: int, seen: SeenInEpochs) -> Standing:
    """Draw some samples, compare every question to the order with the draws, and return the place after the draws."""
    order, first = order_of(start, np.array(rows), seed), start.drawn
    drawn = rows_at(order, first, first + num_drawn)
    # Any other division into reads gives the same samples.
    middle = first + num_drawn // 3
    assert rows_at(order, first, middle) + rows_at(order, middle, first + num_drawn) == drawn
    assert {shard for shard, _ in drawn} <= set(order.shards(first, first + num_drawn))
    tokens = [np.arange(num, dtype=np.uint32) + 100 * shard for shard, num in enumerate(rows)]
    shard_tokens = np.array([counts.sum() for counts in tokens], np.int64)
    first_token, last_token = (
        order.tokens_before(number, shard_tokens, tokens.__getitem__) for number in (first, first + num_drawn)
    )
    assert last_token - first_token == sum(int(tokens[shard][row]) for shard, row in drawn)
    for number, sample in enumerate(drawn, start=first):
        epoch, position = order.place_of(number)
        assert order.offset(epoch, *sample) == position and order.draw_of(epoch, position) == number
        assert seen.draw(sample, sum(rows)) == epoch
    return advanced(start, first + num_drawn, seed)


@st.composite
def skips_and_draws(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int, list[int], int]:
    """Draw a run: the lengths of drawn and skipped stretches, the draws, the appended shards and the seed."""
    lengths = st.tuples(st.integers(0, 12), st.integers(1, 9))
    return (
        draw(st.lists(lengths, max_size=3)),
        draw(st.integers(0, 60)),
        draw(st.lists(st.integers(1, 12), max_size=2)),
        draw(st.integers(0, 2)),
    )


@given(st.lists(skips_and_draws(), min_size=1, max_size=5), st.lists(st.integers(1, 30), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_every_epoch_has_every_sample_once_and_no_skipped_sample_is_drawn(
    runs: list[tuple[list[tuple[int, int]], int, list[int], int]], first_rows: list[int]
) -> None:
    """Each run skips stretches of the order of the run before. Then shards are appended, and the run draws some samples."""
    rows, seed, seen = list(first_rows), 0, SeenInEpochs()
    start = Standing(untouched(skill="add", label="add", seed=0, content="", shard_rows=rows))
    for stretches, num_drawn, appended, next_seed in [*runs, ([], 200, [], 0)]:
        order, parts, end = order_of(start, np.array(rows), seed), list[tuple[int, int]](), start.drawn
        for gap, length in stretches:
            parts.append((end + gap, end + gap + length))
            end += gap + length
        for first, end in parts:
            for draw, sample in zip(range(first, end), rows_at(order, first, end), strict=True):
                seen.skip(order.place_of(draw)[0], sample, sum(rows))
        start, seed = after_skip(start, joined(parts), seed), next_seed
        rows += appended
        start = drawn_once(with_shards(start, rows, seed), rows, seed, num_drawn, seen)


def joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join neighbouring parts."""
    stretches: list[tuple[int, int]] = []
    for first, end in parts:
        stretches, begin = (
            (stretches[:-1], stretches[-1][0]) if stretches and stretches[-1][1] == first else (stretches, first)
        )
        stretches = [*stretches, (begin, end)]
    return stretches


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40))
@settings(deadline=None)
def test_appended_samples_are_spread_evenly_over_the_rest_of_the_epoch(num: int, drawn: int, num_new: int) -> None:
    drawn = min(drawn, num)
    first = advanced(Standing(untouched(skill="add", label="add", seed=0, content="", shard_rows=[num])), drawn, 0)
    start = with_shards(first, [num, num_new], 0)
    order = order_of(start, np.array([num, num_new]), 0)
    rest = rows_at(order, start.drawn, num + num_new)
    if not drawn:
        return  # the first epoch is a permutation of all samples
    old = rows_at(SkillOrder(np.array([num]), (0, "add")), drawn, num)
    assert [place for place in rest if place[0] == 0] == old
    for length in range(len(rest) + 1):
        assert sum(shard == 1 for shard, _ in rest[:length]) == length * num_new // len(rest)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.lists(st.integers(1, 12), max_size=3), st.data())
@settings(deadline=None)
def test_tokens_before_a_draw_are_the_tokens_of_the_draws(
    rows: list[int], appended: list[int], data: st.DataObject
) -> None:
    drawn = data.draw(st.integers(0, sum(rows)))
    first = advanced(Standing(untouched(skill="add", label="add", seed=0, content="", shard_rows=rows)), drawn, 0)
    start = with_shards(first, [*rows, *appended], 0)
    order = order_of(start, np.array([*rows, *appended]), 0)
    tokens = [np.arange(num, dtype=np.uint32) + 100 * shard for shard, num in enumerate([*rows, *appended])]
    shard_tokens = np.array([counts.sum() for counts in tokens], np.int64)
    stop = data.draw(st.integers(start.drawn, start.drawn + 2 * sum(rows)))
    expected = sum(int(tokens[shard][row]) for shard, row in rows_at(order, start.drawn, stop))
    before = order.tokens_before(start.drawn, shard_tokens, tokens.__getitem__)
    assert order.tokens_before(stop, shard_tokens, tokens.__getitem__) - before == expected


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Return shards with several shards for each skill."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = write_corpus(folder / "corpus", samples(**NUM_SAMPLES))
    return tag_and_shard(corpus, folder, shard_bytes=30_000, holdout=0.1)


def with_skills(shards: ShardSet, name_of: dict[str, str], num_shards: dict[str, int]) -> ShardSet:
    """Return a shard set in memory with some skills under some names, and with the first shards of each skill."""
    manifest = shards.manifest
    assert isinstance(manifest, Manifest)
    skills = []
    for skill in manifest.skills:
        columns = {name: values[: num_shards.get(skill.name, 1)] for name, values in skill.train.model_dump().items()}
        train = type(skill.train)(**columns)
        skills.append(skill.model_copy(update={"name": name_of.get(skill.name, skill.name), "train": train}))
    skills.sort(key=lambda skill: skill.name)
    chosen = tuple(sorted(name_of.values()))
    digest = f"{name_of} {num_shards}"
    return dataclasses.replace(
        shards, manifest=manifest.model_copy(update={"skills": skills}), whole_digest=digest, chosen=chosen
    )


def policies_for(skills: Sequence[str]) -> list[Policy]:
    return [
        stratified(),
        skill_it(SkillGraph.identity(skills), eta=0.5),
        skill_it(SkillGraph.chain(skills), eta=1.0, window=2),
        fixed({skill: 1.0 + number for number, skill in enumerate(skills)}),
    ]


@st.composite
def chains(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw a chain of runs: the skills, names, numbers of shards and arguments of each run."""
    runs = []
    shown: dict[str, int] = {}
    for _ in range(draw(st.integers(2, 4))):
        skills = draw(st.lists(st.sampled_from(sorted(NUM_SAMPLES)), min_size=1, unique=True))
        for skill in skills:
            shown[skill] = max(shown.get(skill, 1), draw(st.integers(1, 4)))
        names = {skill: draw(st.sampled_from([skill, f"new {skill}"])) for skill in skills}
        runs.append(
            {
                "names": names,
                "num_shards": dict(shown),
                "policy": draw(st.integers(0, 3)),
                "seed": draw(st.integers(0, 1)),
                "round_draws": draw(st.sampled_from([7, 16, 40])),
                "lag": draw(st.sampled_from([0, 1, "live"])),
                "num_draws": draw(st.integers(0, 90)),
                "killed_at": draw(st.integers(0, 90)),
                "ranks": draw(st.sampled_from([1, 2, 3])),
                "skip": draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 15)), max_size=2)),
            }
        )
    return runs


def read(mixer: Mixer, first: int, num: int, ranks: int) -> list[tuple[str, str]]:
    """Read draws as ranks with copies of the mixer do, and report after every draw."""
    seen = []
    readers = [pickle.loads(pickle.dumps(mixer)) for _ in range(ranks)] if ranks > 1 else [mixer]
    for draw in range(first, first + num):
        reader = readers[draw % ranks]
        seen.append((reader.batch(draw, 1).skill[0], reader.ids(draw, 1)[0]))
        losses = {skill: 3.0 / (1 + draw / 50 + number) for number, skill in enumerate(mixer.skills)}
        mixer.report(draw + 1, losses, draw=draw + 1)
    return seen


def skipped_draws(
    before: Mixer, draw: int, wanted: list[tuple[int, int]]
) -> list[tuple[int, int, str, list[tuple[str, str, int]]]]:
    """Choose stretches that the run before has decided. Return each stretch with the skill, the id and the epoch of its draws."""
    end = before.first_draw + before.num_rounds * before.round_draws
    chosen: list[tuple[int, int, str, list[tuple[str, str, int]]]] = []
    past = RecordedStream(before.ledger, before.shards)
    for gap, num in wanted:
        first = (sum(chosen[-1][:2]) if chosen else draw) + gap
        if first + num <= end:
            draws = [(sample.skill, sample.id, sample.epoch) for sample in past.samples(range(first, first + num))]
            chosen.append((first, num, "a spike", draws))
    return chosen


@pytest.mark.filterwarnings("ignore:skills? .* pass:skillshard.errors.RepetitionWarning")
@given(runs=chains())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_chain_of_runs_loses_and_repeats_nothing(
    whole: ShardSet, runs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Skills are added, removed, renamed and grow; policy, seed, round length and lag change; every run is killed once.

    A run skips stretches of the draws that the run before has decided.
    """
    folder = tmp_path_factory.mktemp("chain")
    original = {name: skill for skill in NUM_SAMPLES for name in (skill, f"new {skill}")}
    drawn = {skill: SeenInEpochs() for skill in NUM_SAMPLES}
    first, before, old_sizes = 0, None, dict[str, int]()
    for number, run in enumerate(runs):
        shards = with_skills(whole, run["names"], run["num_shards"])
        sizes = {original[skill]: len(of_skill) for skill, of_skill in shards.train.items()}
        policy = policies_for(shards.skills)[run["policy"]]
        ledger = folder / str(number)
        common: dict[str, Any] = {"shards": shards, "policy": policy, "ledger": ledger, "wait_s": 0.0, "step_draws": 1}
        common |= {name: run[name] for name in ("seed", "round_draws", "lag")}
        if before is not None:
            skip = skipped_draws(before, first, run["skip"])
            mixer = Mixer.continue_from(before.ledger, draw=first, step=first, skip=[own[:3] for own in skip], **common)
            for name, identity, epoch in (draw for *_, draws in skip for draw in draws):
                drawn[original[name]].skip(epoch, identity, old_sizes[original[name]])
        else:
            mixer = Mixer(initial_losses=False if policy.reads_losses else None, **common)
        assert mixer.draw == first
        if mixer.initial_losses:
            mixer.report(first, dict.fromkeys(shards.skills, 3.0), draw=first)
        killed_at = min(run["killed_at"], run["num_draws"])
        seen = read(mixer, first, killed_at, run["ranks"])
        state = mixer.state_dict(step=first + killed_at)
        read(mixer, first + killed_at, 3, 1)
        mixer = Mixer(**common, **({} if before is not None or not policy.reads_losses else {"initial_losses": False}))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "resumed at draw")
            mixer.load_state_dict(state)
        seen += read(mixer, first + killed_at, run["num_draws"] - killed_at, run["ranks"])
        for name, identity in seen:
            drawn[original[name]].draw(identity, sizes[original[name]])
        assert verify_ledger(mixer.ledger) == []
        first, before, old_sizes = first + run["num_draws"], mixer, {**old_sizes, **sizes}
