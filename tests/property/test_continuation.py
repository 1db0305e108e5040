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

from skillshard.errors import LedgerError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.continuation import hand_over
from skillshard.mixing.ledger import SkillPosition, SkipInEpoch
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.order import SkillOrder
from skillshard.mixing.positions import SkipAcrossEpochs, advanced, after_skip, grown, open_epoch, still_open, untouched
from skillshard.mixing.records import verify_ledger
from skillshard.policies import Policy, fixed, skill_it, stratified
from skillshard.shards.manifest import Manifest
from skillshard.shards.read import ShardSet
from tests.conftest import samples, tag_and_shard, write_corpus

NUM_SAMPLES = {"add": 90, "carry": 55, "negate": 38}


# --- the order of a skill ---------------------------------------------------------------------------------------------


def order_of(start: SkillPosition, rows: Sequence[int], seed: int, skips: Sequence[SkipInEpoch] = ()) -> SkillOrder:
    return SkillOrder(np.array(rows), (seed, start.label), open_epoch(start, skips))


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
    rows = list(first_rows)
    position = untouched(skill="add", label="add", seed=0, content="", shard_rows=rows)
    epochs: dict[int, list[tuple[int, int]]] = {}
    for num_drawn, appended, seed in [*runs, (200, [], 0)]:
        position = grown(position, skill="add", seed=seed, content="", shard_rows=rows)
        order, start, size = order_of(position, rows, seed), position.drawn, sum(rows)
        drawn = rows_at(order, start, start + num_drawn)
        # Any other division into reads gives the same samples.
        middle = start + num_drawn // 3
        assert rows_at(order, start, middle) + rows_at(order, middle, start + num_drawn) == drawn
        assert [order.offset(n // size, *place) for n, place in enumerate(drawn, start=start)] == [
            n % size for n in range(start, start + num_drawn)
        ]
        assert {shard for shard, _ in drawn} <= set(order.shards(start, start + num_drawn))
        for number, place in enumerate(drawn, start=start):
            # At its exact end an epoch is still open for appended samples.
            epochs.setdefault(number // size, []).append(place)
        position = advanced(position, start + num_drawn, seed)
        complete = {number for number in epochs if number < position.epoch}
        everything = {(shard, row) for shard, num in enumerate(rows) for row in range(num)}
        for number in complete:
            assert sorted(epochs.pop(number)) == sorted(everything)
        for places in epochs.values():
            assert len(set(places)) == len(places)
        rows += appended


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
    rows, seed = list(first_rows), 0
    position = untouched(skill="add", label="add", seed=0, content="", shard_rows=rows)
    skips: list[SkipInEpoch] = []
    epochs: dict[int, list[tuple[int, int]]] = {}
    for stretches, num_drawn, appended, next_seed in [*runs, ([], 200, [], 0)]:
        before, parts, end = order_of(position, rows, seed, skips), list[tuple[int, int]](), position.drawn
        for gap, length in stretches:
            parts.append((end + gap, end + gap + length))
            end += gap + length
        parts = joined(parts)
        try:
            after, skip = after_skip(position, parts, seed)
        except SkipAcrossEpochs:
            first_left = parts[0][1] if parts[0][0] == position.drawn else position.drawn
            assert parts[-1][1] > (first_left // sum(rows) + 1) * sum(rows)
            parts, after, skip = [], position, None
        for number, end in parts:
            for draw, place in zip(range(number, end), rows_at(before, number, end), strict=True):
                epochs.setdefault(draw // sum(rows), []).append(place)
        for number in [number for number in epochs if number < after.epoch]:
            assert sorted(epochs.pop(number)) == [(shard, row) for shard, num in enumerate(rows) for row in range(num)]
        skips = still_open(skips, [position], [after]) + ([] if skip is None else [skip])
        rows += appended
        position, seed = grown(after, skill="add", seed=next_seed, content="", shard_rows=rows), next_seed
        order, start, size = order_of(position, rows, seed, skips), position.drawn, sum(rows)
        drawn = rows_at(order, start, start + num_drawn)
        middle = start + num_drawn // 3
        assert rows_at(order, start, middle) + rows_at(order, middle, start + num_drawn) == drawn
        assert [order.offset(n // size, *place) for n, place in enumerate(drawn, start=start)] == [
            n % size for n in range(start, start + num_drawn)
        ]
        assert {shard for shard, _ in drawn} <= set(order.shards(start, start + num_drawn))
        tokens = [np.arange(num, dtype=np.uint32) + 100 * shard for shard, num in enumerate(rows)]
        shard_tokens = np.array([counts.sum() for counts in tokens], np.int64)
        first_token, last_token = (
            order.tokens_before(number, shard_tokens, tokens.__getitem__) for number in (start, start + num_drawn)
        )
        assert last_token - first_token == sum(int(tokens[shard][row]) for shard, row in drawn)
        for number, place in enumerate(drawn, start=start):
            epochs.setdefault(number // size, []).append(place)
        position, before_run = advanced(position, start + num_drawn, seed), position
        skips = still_open(skips, [before_run], [position])
        everything = {(shard, row) for shard, num in enumerate(rows) for row in range(num)}
        for number in [number for number in epochs if number < position.epoch]:
            assert sorted(epochs.pop(number)) == sorted(everything)
        for places in epochs.values():
            assert len(set(places)) == len(places)


def joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join neighbouring parts."""
    one: list[tuple[int, int]] = []
    for first, end in parts:
        one, begin = (one[:-1], one[-1][0]) if one and one[-1][1] == first else (one, first)
        one = [*one, (begin, end)]
    return one


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40))
@settings(deadline=None)
def test_appended_samples_are_spread_evenly_over_the_rest_of_the_epoch(num: int, drawn: int, num_new: int) -> None:
    drawn = min(drawn, num)
    first = advanced(untouched(skill="add", label="add", seed=0, content="", shard_rows=[num]), drawn, 0)
    start = grown(first, skill="add", seed=0, content="", shard_rows=[num, num_new])
    order = order_of(start, [num, num_new], 0)
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
    first = advanced(untouched(skill="add", label="add", seed=0, content="", shard_rows=rows), drawn, 0)
    start = grown(first, skill="add", seed=0, content="", shard_rows=[*rows, *appended])
    order = order_of(start, [*rows, *appended], 0)
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
) -> list[tuple[int, int, str, list[tuple[str, str]]]]:
    """Choose stretches that the run before has decided, and that a skip may have. Return each stretch with the skill and the id of its draws."""
    end = before.first_draw + before.num_rounds * before.round_draws
    chosen: list[tuple[int, int, str, list[tuple[str, str]]]] = []
    for gap, num in wanted:
        first = (sum(chosen[-1][:2]) if chosen else draw) + gap
        if first + num <= end:
            batch = before.batch(first, num)
            chosen.append((first, num, "a spike", [*zip(batch.skill, before.ids(first, num), strict=True)]))
            try:
                hand_over(before.ledger, draw=draw, skip=[own[:3] for own in chosen])
            except LedgerError as error:
                assert "passes the end of an epoch in the skipped draws" in str(error)
                chosen.pop()
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
    drawn: dict[str, list[str]] = {skill: [] for skill in NUM_SAMPLES}
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
            for name, identity in (draw for *_, draws in skip for draw in draws):
                of_skill = drawn[original[name]]
                if len(of_skill) == old_sizes[original[name]]:
                    of_skill.clear()
                assert identity not in of_skill
                of_skill.append(identity)
        else:
            mixer = Mixer(initial_losses=False if policy.reads_losses else None, **common)
        assert mixer.draw == first
        if mixer.initial_losses:
            mixer.report(first, dict.fromkeys(shards.skills, 3.0), draw=first)
        # Every sample of an epoch once: the draws since the end of the last complete epoch are all different.
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
            of_skill = drawn[original[name]]
            if len(of_skill) == sizes[original[name]]:
                of_skill.clear()
            assert identity not in of_skill
            of_skill.append(identity)
        assert verify_ledger(mixer.ledger) == []
        first, before, old_sizes = first + run["num_draws"], mixer, {**old_sizes, **sizes}
    assert all(len(set(of_skill)) == len(of_skill) for of_skill in drawn.values())
