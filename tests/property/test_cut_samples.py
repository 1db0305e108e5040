"""Chains of runs packed by `concat`: every token of every sample that is not skipped comes exactly once in an epoch."""

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from skillshard.corpus import Corpus
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.recorded import RecordedStream
from skillshard.policies import proportional, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.shards.write import append_shards, write_shards
from skillshard.taggers import metadata, tag_corpus
from tests.conftest import HERE, write_corpus
from tests.tokenizers_trained import EOS, counted, letters

SKILLS = ("add", "carry", "negate")
ORIGINAL = {name: skill for skill in SKILLS for name in (skill, f"new {skill}")}
Key = tuple[str, int, str]
"""Original name of a skill, epoch, and id of a sample."""
pytestmark = [
    pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning"),
    pytest.mark.filterwarnings("ignore:resumed at draw:UserWarning"),
]


class Edition(NamedTuple):
    """A shard set with its tokens, and the tokens of each sample by original skill and id."""

    shards: ShardSet
    tokens: TokenSet
    samples: dict[str, dict[str, list[int]]]


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> list[Edition]:
    """Return a shard set without and with appended shards. A sample has from 0 to 90 tokens."""
    folder, made = tmp_path_factory.mktemp("editions"), list[Edition]()
    first = [letters("add", number, number % 9) for number in range(30)]
    first += [letters("carry", number, 90 if number % 4 == 0 else 8 + number % 3) for number in range(12)]
    first += [letters("negate", number, 0 if number % 7 == 0 else 10 + number % 27) for number in range(9)]
    second = [letters("add", number, number % 9) for number in range(30, 41)]
    second += [letters("negate", number, number % 30) for number in range(9, 16)]
    for number, records in enumerate((first, second)):
        corpus = Corpus.open(write_corpus(folder / f"corpus-{number}", records))
        tags = tag_corpus(corpus, metadata("skill"), folder / f"tags-{number}", backend=HERE)
        out, shards = folder / f"shards-{number}", None
        if made:
            shards = append_shards(made[0].shards, corpus, tags, out, backend=HERE)
        else:
            shards = write_shards(corpus, tags, out, holdout=0.0, backend=HERE)
        tokens = counted(shards, folder / f"tokens-{number}")
        samples = {
            skill: {own.id: tokens.tokenizer.encode(own.text, add_special_tokens=False).ids for own in of_skill}
            for skill, of_skill in shards.train.items()
        }
        made.append(Edition(shards, tokens, samples))
    return made


def renamed(edition: Edition, names: dict[str, str]) -> tuple[ShardSet, TokenSet]:
    """Return some skills of an edition under other names, in memory."""

    def with_names(skills: list[Any]) -> list[Any]:
        new = [skill.model_copy(update={"name": names.get(skill.name, skill.name)}) for skill in skills]
        return sorted(new, key=lambda skill: skill.name)

    shards, tokens = edition.shards, edition.tokens
    digest = f"{names} {shards.digest}"
    manifest = shards.manifest.model_copy(update={"skills": with_names(list(shards.manifest.skills))})
    of_tokens = tokens.manifest.model_copy(
        update={"shards": digest, "skills": with_names(list(tokens.manifest.skills))}
    )
    chosen = tuple(sorted(names.values()))
    return (
        dataclasses.replace(shards, manifest=manifest, whole_digest=digest, chosen=chosen),
        dataclasses.replace(tokens, manifest=of_tokens),
    )


class Given:
    """The tokens that a chain of runs has given of each sample, in each epoch."""

    def __init__(self) -> None:
        self.tokens: dict[Key, list[int]] = {}
        self.skipped: set[Key] = set()
        self.forgotten: set[Key] = set()
        """Cut samples of skills that the next run did not have."""
        self.last: Key | None = None
        """Sample of the last draw."""

    def draw(self, key: Key) -> None:
        assert key not in self.tokens and key not in self.skipped, f"{key} comes twice"
        self.tokens[key], self.last = [], key

    def skip(self, key: Key) -> None:
        assert key not in self.tokens and key not in self.skipped, f"{key} is skipped, and came before"
        self.skipped.add(key)

    def check(self, editions: list[Edition], separator: list[int]) -> None:
        """Every epoch but the last has every sample, and every sample has all its tokens. The last draw may be cut."""
        for skill in SKILLS:
            own = {key for key in (*self.tokens, *self.skipped) if key[0] == skill}
            whole = [set(edition.samples[skill]) for edition in editions]
            for epoch in range(max((key[1] for key in own), default=0)):
                assert {key[2] for key in own if key[1] == epoch} in whole, f"epoch {epoch} of {skill} is not complete"
        for key, tokens in self.tokens.items():
            expected = editions[-1].samples[key[0]][key[2]] + separator
            if key == self.last or key in self.forgotten:
                assert tokens == expected[: len(tokens)]
            else:
                assert tokens == expected, f"{key} has {len(tokens)} of {len(expected)} tokens"


def samples_at(mixer: Mixer, first: int, stop: int) -> Iterator[Key]:
    """Yield the samples of the draws first .. stop - 1, which the run has decided."""
    for sample in RecordedStream(mixer.ledger, mixer.shards).samples(range(first, stop)):
        yield ORIGINAL[sample.skill], sample.epoch, sample.id


def note_tokens(given_tokens: Given, stream: PackedTokens, begin: int, num: int, ranks: int) -> None:
    """Read blocks as workers with copies of the stream do, and note the tokens of each sample."""
    readers = [pickle.loads(pickle.dumps(stream)) for _ in range(ranks)] if ranks > 1 else [stream]
    first, stop = stream.mixer.first_draw, stream.draws_before(begin + num)
    ids, draws = (np.empty((num, stream.block_tokens), np.int64) for _ in range(2))
    for rank, reader in enumerate(readers):
        batch = reader.at(np.arange(begin + rank, begin + num, ranks))
        ids[rank::ranks], draws[rank::ranks] = batch.input_ids, batch.draw
    keys = dict(enumerate(samples_at(stream.mixer, first, stop), start=first))
    before = given_tokens.last
    for key in keys.values():
        given_tokens.draw(key)
    for draw, token in zip(draws.ravel().tolist(), ids.ravel().tolist(), strict=True):
        # The rest of the cut sample has the draw before the run.
        key = before if draw == first - 1 else keys[draw]
        assert key is not None
        given_tokens.tokens[key].append(token)


def skipped_by_chain(given_tokens: Given, before: Mixer, draw: int, wanted: list[tuple[int, int]]) -> list[Any]:
    """Choose stretches of the run before, decide their draws, and note their samples."""
    skip, end = list[Any](), draw
    for gap, num in wanted:
        skip.append((end + gap, num, "a spike"))
        end += gap + num
    if skip:
        before.round(before.run.round_of(end))
    for first, num, _ in skip:
        for key in samples_at(before, first, first + num):
            given_tokens.skip(key)
    return skip


RUNS = st.lists(
    st.fixed_dictionaries(
        {
            "skills": st.sampled_from([SKILLS, SKILLS, SKILLS, ("add", "carry"), ("carry", "negate")]),
            "new_names": st.sets(st.sampled_from(SKILLS)),
            "is_grown": st.sampled_from([False, False, True]),
            "is_even": st.booleans(),
            "seed": st.integers(0, 1),
            "round_draws": st.sampled_from([5, 16, 64]),
            "block_tokens": st.sampled_from([3, 16, 40]),
            # Half of the runs give no draw. With few blocks, a long cut sample fills the blocks of a run.
            "num_blocks": st.sampled_from([0, 0, 0, 1, 2, 9, 25, 60]),
            "killed_at": st.integers(0, 60),
            "ranks": st.sampled_from([1, 1, 2, 3]),
            "skip": st.lists(st.tuples(st.sampled_from([0, 0, 1, 6]), st.sampled_from([1, 2, 7, 30, 60])), max_size=2),
        }
    ),
    min_size=3,
    max_size=6,
)


def a_run(**changed: Any) -> dict[str, Any]:
    plain = {"skills": SKILLS, "new_names": set(), "is_grown": False, "is_even": True, "seed": 0, "round_draws": 16}
    return plain | {"block_tokens": 3, "num_blocks": 0, "killed_at": 0, "ranks": 1, "skip": []} | changed


def opened(
    editions: list[Edition], run: dict[str, Any], ledger: Path, before: Mixer | None, state: Any, skip: list[Any]
) -> PackedTokens:
    """Begin a run, or join it."""
    names = {skill: f"new {skill}" if skill in run["new_names"] else skill for skill in run["skills"]}
    shards, tokens = renamed(editions[run["is_grown"]], names)
    common: dict[str, Any] = {
        "shards": shards,
        "policy": stratified() if run["is_even"] else proportional(),
        "ledger": ledger,
        "seed": run["seed"],
        "round_draws": run["round_draws"],
    }
    if before is None or (ledger / "run.json").exists():
        mixer = Mixer(**common)
    else:
        mixer = Mixer.continue_from(before.ledger, state=state, skip=skip, **common)
    return PackedTokens(mixer, tokens, block_tokens=run["block_tokens"], separator=run["separator"], step_blocks=1)


@given(runs=RUNS, separator=st.sampled_from([EOS, None]))
@example(runs=[a_run(num_blocks=9), a_run(skip=[(0, 7)]), a_run()], separator=EOS)
@example(
    runs=[a_run(num_blocks=9), a_run(skip=[(6, 60)], seed=1), a_run(is_grown=True), a_run(skip=[(0, 30)])],
    separator=EOS,
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_chain_of_packed_runs_gives_every_token_once(
    editions: list[Edition],
    runs: list[dict[str, Any]],
    separator: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Runs skip draws, give no draw, and are killed. Skills are removed, return, grow and get other names."""
    folder, chain, is_grown = tmp_path_factory.mktemp("chain"), Given(), False
    before: Mixer | None = None
    state: Any = None
    # The last run passes the open epochs of all skills.
    for number, run in enumerate([*runs, a_run(is_grown=True, num_blocks=300, block_tokens=40)]):
        is_grown |= run["is_grown"]
        run = run | {"is_grown": is_grown, "separator": separator}
        ledger, skip = folder / str(number), list[Any]()
        if before is not None:
            skip = skipped_by_chain(chain, before, state["mixer"]["draw"], run["skip"])
            if chain.last is not None and chain.last[0] not in run["skills"]:
                chain.forgotten.add(chain.last)
        stream = opened(editions, run, ledger, before, state, skip)
        if state is not None:
            stream.load_state_dict(state)
        begin, num = stream.block, run["num_blocks"]
        killed = stream.state_at(begin + min(run["killed_at"], num)).model_dump(by_alias=True)
        stream.batch(begin, num)
        stream = opened(editions, run, ledger, before, state, skip)
        stream.load_state_dict(killed)
        note_tokens(chain, stream, begin, num, run["ranks"])
        assert verify_ledger(stream.mixer.ledger) == []
        state, before = stream.state_at(begin + num).model_dump(by_alias=True), stream.mixer
    chain.check(editions, [] if separator is None else [editions[0].tokens.token_id(separator)])
