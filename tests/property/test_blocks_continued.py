"""Runs whose blocks do not follow the order of the samples continue and are continued: no sample is lost, and none comes twice in an epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.corpus import Corpus
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.recorded import RecordedStream
from skillshard.mixing.recorded_blocks import RecordedBlock
from skillshard.mixing.recorded_chain import DrawnInRun, RecordedChain, SkippedInRun, open_recorded_chain
from skillshard.mixing.run_records import cuts_of
from skillshard.policies import fixed, proportional, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.shards.write import append_shards, write_shards
from skillshard.taggers import metadata, tag_corpus
from tests.conftest import HERE, write_corpus
from tests.property.packed_streams import samples_of_epoch
from tests.tokenizers_trained import EOS, counted, letters

SKILLS = ("add", "carry", "negate")
WEIGHTS = {"add": 1.0, "carry": 3.0, "negate": 2.0}
pytestmark = [
    pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning"),
    pytest.mark.filterwarnings("ignore:resumed at draw:UserWarning"),
]


class Editions(NamedTuple):
    """A shard set without and with appended shards. Both have tokens without and with a special token before each sample."""

    shards: list[ShardSet]
    tokens: list[list[TokenSet]]


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> Editions:
    folder = tmp_path_factory.mktemp("editions")
    first = [letters("add", number, number % 9) for number in range(90)]
    first += [letters("carry", number, 90 if number % 20 == 0 else 8 + number % 3) for number in range(50)]
    first += [letters("negate", number, 0 if number % 7 == 0 else 10 + number % 27) for number in range(25)]
    second = [letters("add", number, number % 9) for number in range(90, 120)]
    second += [letters("negate", number, number % 30) for number in range(25, 40)]
    shards: list[ShardSet] = []
    for number, records in enumerate((first, second)):
        corpus = Corpus.open(write_corpus(folder / f"corpus-{number}", records))
        tags = tag_corpus(corpus, metadata("skill"), folder / f"tags-{number}", backend=HERE)
        out = folder / f"shards-{number}"
        if shards:
            shards.append(append_shards(shards[0], corpus, tags, out, shard_bytes=60_000, backend=HERE))
        else:
            shards.append(write_shards(corpus, tags, out, holdout=0.0, shard_bytes=60_000, backend=HERE))
    tokens = [
        [counted(own, folder / f"T-{number}-{special}", special_tokens=special) for special in (False, True)]
        for number, own in enumerate(shards)
    ]
    return Editions(shards, tokens)


class Seen:
    """The samples of each epoch of each skill."""

    def __init__(self) -> None:
        self.epochs: dict[str, dict[int, set[str]]] = {skill: {} for skill in SKILLS}
        self.ended: set[tuple[str, int]] = set()
        self.places: dict[str, tuple[int, int]] = {}  # epoch and position after the blocks of the last run
        self.skipped: dict[str, list[SkippedInRun]] = {}
        self.given: list[tuple[str, DrawnInRun]] = []  # draws of rounds that were packed by best-fit and are cut

    def add(self, skill: str, epoch: int, identity: str) -> None:
        own = self.epochs[skill].setdefault(epoch, set())
        assert identity not in own, f"{identity} comes twice in epoch {epoch} of {skill}"
        own.add(identity)

    def end(self, skill: str, epoch: int) -> None:
        """Note that a run of blocks has left out the last tokens of an epoch, less than a block."""
        self.ended.add((skill, epoch))

    def check_complete(self, editions: Editions) -> None:
        """Every epoch but the last has each sample of the skill, with or without the appended samples."""
        for skill, epochs in self.epochs.items():
            whole = [{sample.id for sample in shards.train[skill]} for shards in editions.shards]
            assert sorted(epochs) == list(range(len(epochs)))
            for epoch in range(max(epochs, default=0)):
                if (skill, epoch) in self.ended:
                    assert epochs[epoch] <= whole[1]
                    continue
                assert epochs[epoch] in whole, f"epoch {epoch} of {skill} has {len(epochs[epoch])} samples"


def draws_seen(stream: PackedTokens, begin: int, num: int) -> list[int]:
    """Return the draws with a token in blocks, and the draws without tokens that count as begun."""
    end = stream.draws_before(begin + num)
    if stream.packing != "best-fit":
        return list(range(stream.mixer.first_draw, end))
    drawn = set(np.unique(stream.batch(begin, num).draw).tolist()) - {-1}
    if drawn:
        size, first = stream.mixer.round_draws, stream.mixer.first_draw
        end_of_round = first + -(-(max(drawn) + 1 - first) // size) * size
        special = stream.tokens.manifest.special_tokens
        texts = stream.mixer.batch(first, end_of_round - first).text
        encoded = [stream.tokens.tokenizer.encode(text, add_special_tokens=special).ids for text in texts]
        drawn |= {first + number for number, ids in enumerate(encoded) if not ids and stream.separator is None}
    assert len(drawn) == end - stream.mixer.first_draw
    return sorted(drawn)


def check_blocks(stream: PackedTokens, begin: int, num: int, lefts: dict[str, int], seen: Seen) -> None:
    """Compare the blocks of each skill with its samples, one after the other. `lefts` has the tokens of cut samples."""
    batch, length, run = stream.batch(begin, num), stream.block_tokens, stream.mixer.run
    assert (batch.skill == batch.skill[:, :1]).all() and batch.attention_mask.all()
    for skill, name in enumerate(stream.skills):
        epoch, position = 0, 0
        if run.continues is not None:
            epoch, position = run.continues.skills[skill].epoch, run.continues.skills[skill].position
        samples, left = samples_of_epoch(stream, skill, epoch), lefts.get(name, 0)
        rest = samples[position - 1][1][-left:] if left else []
        for row in batch.input_ids[batch.skill[:, 0] == skill].tolist():
            # A skip may leave less than a block of the next epoch too.
            while len(rest) + sum(len(tokens) for _, tokens in samples[position:]) < length:
                seen.end(name, epoch)
                epoch, position, rest = epoch + 1, 0, []
                samples = samples_of_epoch(stream, skill, epoch)
                # Samples that an earlier run has drawn out of order count as the first samples of the epoch.
                position = next((own.num_skipped for own in stream.mixer.orders[skill].ahead if own.number == epoch), 0)
            while len(rest) < length:
                identity, tokens = samples[position]
                seen.add(name, epoch, identity)
                rest, position = rest + tokens, position + 1
            assert row == rest[:length]
            rest = rest[length:]
        lefts[name], seen.places[name] = len(rest), (epoch, position)


def check_past(stream: PackedTokens, begin: int, num: int, past: RecordedChain) -> None:
    """The recorded parts of each block are the tokens of the block."""
    batch, first = stream.batch(begin, num), stream.mixer.first_draw
    samples = [dict(samples_of_epoch(stream, skill, 10**6)) for skill in range(len(stream.skills))]
    recorded = [block for _, block in past.samples(range(first, first + num))]
    for row, skill, block in zip(batch.input_ids.tolist(), batch.skill[:, 0].tolist(), recorded, strict=True):
        assert isinstance(block, RecordedBlock) and block.skill == stream.skills[skill]
        tokens: list[int] = []
        for part in block.parts:
            own = samples[skill][part.id]
            assert (part.sample_tokens, part.is_cut) == (len(own), part.num_tokens < len(own))
            tokens += own[part.first_token : part.first_token + part.num_tokens]
        assert tokens == row


def note_skips(
    stream: PackedTokens, draw: int, stretches: list[tuple[int, int, str]], lefts: dict[str, int], seen: Seen
) -> None:
    """Note the samples of skipped blocks, and change the tokens of the cut samples in `lefts`.

    The skipped blocks of a skill that follow the place of the run count as drawn. Samples of later skipped blocks are skipped as a whole.
    """
    run = str(stream.mixer.ledger)
    past = open_recorded_chain(run)
    blocks: list[RecordedBlock] = [own for _, own in past.samples(range(draw, stretches[-1][0] + stretches[-1][1]))]  # type: ignore[misc]
    gapped: set[str] = set()
    whole: set[tuple[str, int, str]] = set()
    following = draw
    for first, num, why in stretches:
        gapped |= {own.skill for own in blocks[following - draw : first - draw]}
        own_blocks, following = blocks[first - draw : first + num - draw], first + num
        for name, epoch in sorted({(own.skill, own.epoch) for own in own_blocks}):
            own = [block for block in own_blocks if (block.skill, block.epoch) == (name, epoch)]
            skill = stream.skills.index(name)
            ids = [identity for identity, _ in samples_of_epoch(stream, skill, epoch)]
            start, stop = ids.index(own[0].parts[0].id), ids.index(own[-1].parts[-1].id) + 1
            for identity in ids[start:stop]:
                seen.skipped.setdefault(identity, []).append(SkippedInRun(first, num, why, epoch, run))
            at_epoch, position = seen.places[name]
            if name not in gapped:
                if epoch > at_epoch:
                    seen.end(name, at_epoch)
                    ahead = stream.mixer.orders[skill].ahead
                    position = next((known.num_skipped for known in ahead if known.number == epoch), 0)
                last = own[-1].parts[-1]
                lefts[name] = last.sample_tokens - last.first_token - last.num_tokens
                seen.places[name] = epoch, stop
                for identity in ids[position:stop]:
                    seen.add(name, epoch, identity)
                continue
            for place in range(start, stop):
                if epoch == at_epoch and place < position:
                    lefts[name] = 0
                elif (name, epoch, ids[place]) not in whole:
                    seen.add(name, epoch, ids[place])
                    whole.add((name, epoch, ids[place]))


def check_seen(past: RecordedChain, chosen: Sequence[int], seen: Seen) -> None:
    """The history of a sample is its draws and its skips."""
    drawn: dict[str, list[DrawnInRun]] = {}
    cut = {round.run: round for round in past.cut_rounds()}
    for run, own in past.samples(range(past.first_draw, past.num_draws)):
        if run in cut and own.draw >= cut[run].first:
            continue  # the draws that the model has seen are in `seen.given`
        for identity in [part.id for part in own.parts] if isinstance(own, RecordedBlock) else [own.id]:
            drawn.setdefault(identity, []).append(DrawnInRun(own.draw, None, own.round, own.epoch, run))
    for identity, event in seen.given:
        drawn.setdefault(identity, []).append(event)
        drawn[identity].sort(
            key=lambda event: (int(Path(event.run).name) if Path(event.run).name != "last" else 99, event.draw)
        )
    skipped = sorted(seen.skipped)
    for number in chosen:
        for ids in (sorted(drawn), skipped):
            if ids:
                identity = ids[number % len(ids)]
                history = past.seen(identity).history
                assert [event for event in history if isinstance(event, DrawnInRun)] == drawn.get(identity, [])
                assert [event for event in history if isinstance(event, SkippedInRun)] == seen.skipped.get(identity, [])


@st.composite
def chains(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw a chain of runs: packing, skills, edition of the shards and arguments of each run."""
    runs: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(2, 4))):
        runs.append(
            {
                "packing": draw(st.sampled_from(["best-fit", "best-fit", "skill", "skill", "skill", "concat", "one"])),
                "skills": draw(st.sampled_from([SKILLS, SKILLS, ("add", "carry"), ("carry", "negate")])),
                "edition": max([draw(st.integers(0, 1)), *(run["edition"] for run in runs)]),
                "special": draw(st.booleans()),
                "separator": draw(st.sampled_from([EOS, None])),
                "block_tokens": draw(st.sampled_from([5, 16, 40, 128])),
                "policy": draw(st.integers(0, 2)),
                "seed": draw(st.integers(0, 1)),
                "round_draws": draw(st.sampled_from([9, 30, 64])),
                "num_blocks": draw(st.integers(0, 25)),
                "killed_at": draw(st.integers(0, 25)),
                "skip": draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=2)),
            }
        )
    return runs


def opened(
    editions: Editions,
    run: dict[str, Any],
    ledger: Path,
    before: PackedTokens | None,
    state: dict[str, Any] | None,
    skip: list[tuple[int, int, str]],
) -> PackedTokens:
    """Begin a run, or join it."""
    weights = fixed({skill: WEIGHTS[skill] for skill in run["skills"]})
    common: dict[str, Any] = {
        "shards": editions.shards[run["edition"]].choose(run["skills"]),
        "policy": (stratified(), proportional(), weights)[run["policy"]],
        "ledger": ledger,
        "seed": run["seed"],
        "round_draws": run["round_draws"],
    }
    blocks = {name: run[name] for name in ("block_tokens", "separator")}
    tokens = editions.tokens[run["edition"]][run["special"]]
    if run["packing"] == "skill":
        common |= {"unit": "blocks", "tokens": tokens, **blocks}
    if before is None or state is None or (ledger / "run.json").exists():
        mixer = Mixer(**common)
    else:
        mixer = Mixer.continue_from(
            before.mixer.ledger, state=state, old_tokens=before.tokens, skip=skip, **({"unit": "samples"} | common)
        )
    return PackedTokens(mixer, tokens, step_blocks=1, packing=run["packing"], **blocks)


@given(runs=chains(), chosen=st.lists(st.integers(0, 500), max_size=4))
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_chain_of_runs_in_blocks_loses_and_repeats_no_sample(
    editions: Editions, runs: list[dict[str, Any]], chosen: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Packing, tokens, blocks, skills, shards, policy, seed and round length change. Each run is killed once, and skips blocks of the run before."""
    folder, seen = tmp_path_factory.mktemp("chain"), Seen()
    state: dict[str, Any] | None = None
    before: PackedTokens | None = None
    lefts: dict[str, int] = {}
    for number, run in enumerate(runs):
        ledger = folder / str(number)
        skip: list[tuple[int, int, str]] = []
        if before is not None and state is not None and before.packing == "skill":
            following = state["mixer"]["draw"]
            for offset, num in run["skip"]:
                skip.append((following + offset, num, f"stretch {len(skip)}"))
                following += offset + num
            before.mixer.round(before.mixer.run.round_of(following))
            if skip:
                note_skips(before, state["mixer"]["draw"], skip, lefts, seen)
        stream = opened(editions, run, ledger, before, state, skip)
        assert stream.round_size > 0 and stream.mixer.first_draw == (0 if state is None else state["mixer"]["draw"])
        if state is not None:
            stream.load_state_dict(state)
        begin, num = stream.block, run["num_blocks"]
        assert begin == (0 if state is None else state["block"])
        expected = stream.batch(begin, num).input_ids.tolist()
        assert len(expected) == num
        killed = stream.state_at(begin + min(run["killed_at"], num)).model_dump(by_alias=True)
        stream = opened(editions, run, ledger, before, state, skip)
        stream.load_state_dict(killed)
        rest = stream.batch(stream.block, begin + num - stream.block).input_ids.tolist()
        assert rest == expected[len(expected) - len(rest) :]
        if run["packing"] == "skill":
            same = before is not None and (before.packing, before.tokens.encoding, before.separator) == (
                "skill",
                stream.tokens.encoding,
                stream.separator,
            )
            lefts = lefts if same else {}
            assert cuts_of(stream.mixer.run) == {skill: left for skill, left in lefts.items() if left}
            check_blocks(stream, begin, num, lefts, seen)
            check_past(stream, begin, num, open_recorded_chain(ledger))
        else:
            past = RecordedStream(stream.mixer.ledger, stream.mixer.shards)
            for sample in past.samples(draws_seen(stream, begin, num)):
                seen.add(sample.skill, sample.epoch, sample.id)
                end = stream.mixer.run.first_draw_of(sample.round + 1)
                if stream.packing == "best-fit" and stream.draws_before(begin + num) < end:
                    event = DrawnInRun(sample.draw, None, sample.round, sample.epoch, str(ledger))
                    seen.given.append((sample.id, event))
        assert verify_ledger(stream.mixer.ledger) == []
        state, before = stream.state_at(begin + num).model_dump(by_alias=True), stream
    assert before is not None and state is not None
    whole = editions.shards[1]
    last = Mixer.continue_from(
        before.mixer.ledger,
        state=state,
        old_tokens=before.tokens,
        unit="samples",
        shards=whole,
        policy=proportional(),
        ledger=folder / "last",
        round_draws=50,
    )
    total = sum(len(own) for own in whole.train.values())
    last.round(2 * total // 50)
    past = RecordedStream(last.ledger, whole)
    for sample in past.samples(range(last.first_draw, past.num_draws)):
        seen.add(sample.skill, sample.epoch, sample.id)
    seen.check_complete(editions)
    check_seen(open_recorded_chain(folder / "last"), chosen, seen)
