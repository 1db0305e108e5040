"""A packed stream that continues another run: a cut sample goes on at its place, and no token comes twice or is lost."""

import dataclasses
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillshard.errors import LedgerError
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import Policy, fixed, proportional, stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_manifest import KeptChat, TokensManifest4
from skillshard.shards.token_set import TokenSet
from tests.commands import fails, works
from tests.property.packed_streams import tokens_of
from tests.tokenizers_trained import BOS, EOS, counted, uneven_shards

SKILLS = ("add", "carry", "negate")
pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, TokenSet, TokenSet]:
    """Return shards, and their tokens without and with a special token before each sample."""
    folder = tmp_path_factory.mktemp("uneven")
    shards = uneven_shards(folder)
    return shards, counted(shards, folder / "T"), counted(shards, folder / "S", special_tokens=True)


def policies() -> list[Policy]:
    return [stratified(), proportional(), fixed({"add": 1.0, "carry": 3.0, "negate": 2.0})]


RUNS = st.lists(
    st.fixed_dictionaries(
        {
            "policy": st.integers(0, 2),
            "seed": st.integers(0, 1),
            "round_draws": st.sampled_from([9, 30, 64]),
            "block_tokens": st.sampled_from([3, 16, 40, 128]),
            "special": st.sampled_from([False, False, False, True]),
            "separator": st.sampled_from([EOS, EOS, EOS, None, BOS]),
            "packing": st.sampled_from(["concat", "concat", "concat", "one"]),
            "num_blocks": st.integers(0, 25),
            "skipped": st.sampled_from([0, 0, 5]),
        }
    ),
    min_size=2,
    max_size=4,
)


@given(runs=RUNS, data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_chain_of_packed_runs_gives_every_token_of_every_draw_once(
    uneven: tuple[ShardSet, TokenSet, TokenSet],
    runs: list[dict[str, Any]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Policy, seed, round length, block length, separator, tokenizer and packing change. Each run is killed once, and may skip draws."""
    folder = tmp_path_factory.mktemp("chain")
    shards, plain, special = uneven
    before: PackedTokens | None = None
    state: dict[str, Any] | None = None
    left: list[int] = []
    for number, run in enumerate(runs):
        arguments: dict[str, Any] = {name: run[name] for name in ("seed", "round_draws")} | {"wait_s": 0.0}
        policy = policies()[run["policy"]]
        if before is None or state is None:
            mixer = Mixer(shards, policy, ledger=folder / str(number), **arguments)
        else:
            draw = state["mixer"]["draw"]
            before.mixer.round(before.mixer.num_rounds)
            skip = [(draw, run["skipped"], "a spike")] if run["skipped"] else []
            mixer = Mixer.continue_from(
                before.mixer.ledger,
                state=state,
                shards=shards,
                policy=policy,
                ledger=folder / str(number),
                skip=skip,
                **arguments,
            )
        counts = special if run["special"] else plain
        packed: dict[str, Any] = {name: run[name] for name in ("block_tokens", "separator", "packing")}
        stream = PackedTokens(mixer, counts, step_blocks=1, **packed)
        if before is not None and state is not None:
            stream.load_state_dict(state)
            same = all(getattr(stream, name) == getattr(before, name) for name in ("separator", "packing"))
            is_going_on = same and stream.tokens is before.tokens and stream.packing == "concat"
            left = left if is_going_on else []
        begin, first = stream.block, stream.mixer.draw
        assert begin == (0 if state is None else state["block"])
        length, num = run["block_tokens"], run["num_blocks"]
        expected = tokens_of(stream, first, 40 + num * length)
        if run["packing"] == "one":
            rows = [tokens[:length] for tokens in expected[:num]]
            seen = [ids[: len(row)] for ids, row in zip(stream.batch(begin, num).input_ids.tolist(), rows, strict=True)]
            assert seen == rows
        else:
            flat = [*left, *(token for tokens in expected for token in tokens)]
            draws = [first - 1] * len(left) + [first + place for place, tokens in enumerate(expected) for _ in tokens]
            batch = stream.batch(begin, num)
            assert batch.input_ids.ravel().tolist() == flat[: num * length]
            assert batch.draw.ravel().tolist() == draws[: num * length]
            # A copy in another process, and a process that resumes in the middle, read the same blocks.
            copy = pickle.loads(pickle.dumps(stream))
            chosen = np.array(data.draw(st.lists(st.integers(begin, begin + num), max_size=4)), np.int64)
            inside = chosen[chosen < begin + num]
            assert copy.at(inside).input_ids.tolist() == [batch.input_ids[block - begin].tolist() for block in inside]
            assert [stream.draws_before(block) for block in range(begin + 1, begin + num + 1)] == [
                draws[(block - begin) * length - 1] + 1 for block in range(begin + 1, begin + num + 1)
            ]
        middle = begin + data.draw(st.integers(0, num))
        saved = stream.state_dict(step=middle - begin + stream.clock.step)
        again = PackedTokens(
            Mixer(shards, policies()[run["policy"]], ledger=folder / str(number), **arguments),
            counts,
            step_blocks=1,
            **packed,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "resumed at draw")
            again.load_state_dict(saved)
        assert again.block == middle
        assert again.batch(middle, begin + num - middle).input_ids.tolist() == (
            stream.batch(middle, begin + num - middle).input_ids.tolist()
        )
        assert verify_ledger(mixer.ledger) == []
        state, before = again.state_dict(step=num + stream.clock.step), again
        assert state["block"] == begin + num
        if run["packing"] == "concat":
            end = sum(map(len, expected[: state["mixer"]["draw"] - first])) + len(left)
            left = flat[num * length : end]
            assert state["left"] == len(left)
        else:
            left = []


def begun(uneven: tuple[ShardSet, TokenSet, TokenSet], folder: Path, **arguments: Any) -> PackedTokens:
    mixer = Mixer(uneven[0], stratified(), ledger=folder / "old", round_draws=30, **arguments)
    return PackedTokens(mixer, uneven[1], block_tokens=16, separator=EOS, step_blocks=2)


def state_with_a_cut_sample(stream: PackedTokens) -> dict[str, Any]:
    return next(state for step in range(1, 40) if (state := stream.state_dict(step=step))["left"] > 1)


def test_blocks_and_steps_go_on_counting_and_fields_come_with_the_cut_sample(
    uneven: tuple[ShardSet, TokenSet, TokenSet], tmp_path: Path
) -> None:
    old = begun(uneven, tmp_path)
    state = state_with_a_cut_sample(old)
    mixer = Mixer.continue_from(
        tmp_path / "old", state=state, shards=uneven[0], policy=proportional(), ledger=tmp_path / "new", fields=["id"]
    )
    stream = PackedTokens(mixer, uneven[1], block_tokens=16, separator=EOS, step_blocks=4)
    assert stream.round_size > 0 and stream.holds(0)  # as trainers ask before they load a checkpoint
    stream.load_state_dict(state)
    assert (stream.block, stream.clock.position_at(state["step"] + 3)) == (state["block"], state["block"] + 12)
    batch = next(stream.batches(2))
    last = state["mixer"]["draw"] - 1
    assert batch.block.tolist() == [state["block"], state["block"] + 1] and batch.draw[0, 0] == last
    assert batch.sample_draw[0] == last and batch.fields["id"][0] == old.mixer.ids(last, 1)[0]
    stream.report(state["step"] + 1, dict.fromkeys(SKILLS, 1.0))
    # A process that was killed before its first checkpoint begins again at the first block of the run.
    again = PackedTokens(
        Mixer(uneven[0], proportional(), ledger=tmp_path / "new", round_draws=30),
        uneven[1],
        block_tokens=16,
        separator=EOS,
    )
    assert again.block == state["block"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "resumed at draw")
        again.restart()
    assert again.block == state["block"]
    assert again.batch(again.block, 2).input_ids.tolist() == batch.input_ids.tolist()


def test_a_packed_stream_of_a_continued_run_without_a_packed_state_begins_at_the_next_sample(
    uneven: tuple[ShardSet, TokenSet, TokenSet], tmp_path: Path
) -> None:
    begun(uneven, tmp_path).batch(0, 40)
    mixer = Mixer.continue_from(
        tmp_path / "old", draw=20, step=5, shards=uneven[0], policy=proportional(), ledger=tmp_path / "new"
    )
    stream = PackedTokens(mixer, uneven[1], block_tokens=16, separator=EOS, step_blocks=2)
    expected = [token for tokens in tokens_of(stream, 20, 30) for token in tokens]
    assert stream.block == 0 and stream.batch(0, 3).input_ids.ravel().tolist() == expected[:48]
    assert stream.clock.position_at(7) == 4


def test_the_state_of_a_packed_stream_gives_the_place_on_the_command_line(
    uneven: tuple[ShardSet, TokenSet, TokenSet], tmp_path: Path
) -> None:
    old = begun(uneven, tmp_path)
    state = state_with_a_cut_sample(old)
    (tmp_path / "packed.json").write_text(json.dumps(state))
    shown = works("continue", tmp_path / "old", "--state", tmp_path / "packed.json", "--out", tmp_path / "new")
    assert f"from draw {state['mixer']['draw']:,}, step {state['step']:,}." in shown
    mixer = Mixer(uneven[0], stratified(), ledger=tmp_path / "new", round_draws=30)
    stream = PackedTokens(mixer, uneven[1], block_tokens=16, separator=EOS, step_blocks=2)
    stream.load_state_dict(state)
    assert stream.block == state["block"] and stream.batch(stream.block, 1).draw[0, 0] == state["mixer"]["draw"] - 1


def test_the_tokens_of_a_best_fit_run_give_the_seen_samples_on_the_command_line(
    uneven: tuple[ShardSet, TokenSet, TokenSet], tmp_path: Path
) -> None:
    old = PackedTokens(
        Mixer(uneven[0], stratified(), ledger=tmp_path / "old", round_draws=30),
        uneven[1],
        block_tokens=16,
        separator=EOS,
        step_blocks=2,
        packing="best-fit",
    )
    seen = np.unique(old.batch(0, 6).draw)
    state = old.state_dict(step=3)
    (tmp_path / "packed.json").write_text(json.dumps(state))
    command = ("continue", tmp_path / "old", "--state", tmp_path / "packed.json", "--out", tmp_path / "new")
    by_option = works(*command[:-1], tmp_path / "by-option", "--old-tokens", uneven[1].root)
    note = tmp_path / "old" / "beside" / "tokens.json"
    noted, other = note.read_bytes(), str(uneven[2].root)
    for moved in (None, json.dumps({"place": other}), json.dumps({"place": f"{other}-moved"})):
        note.unlink() if moved is None else note.write_text(moved)
        assert "Give --old-tokens, the tokens of the packed stream" in fails(*command)
    note.write_bytes(noted)
    assert works(*command) == by_option.replace("/by-option", "/new")
    mixer = Mixer(uneven[0], stratified(), ledger=tmp_path / "new", round_draws=30)
    first = {sample for draw in seen[seen >= 0].tolist() for sample in old.mixer.ids(draw, 1)}
    assert mixer.first_draw == len(first) and not first & set(mixer.ids(mixer.first_draw, 60))


def test_another_tokenizer_or_rendering_is_another_encoding(uneven: tuple[ShardSet, TokenSet, TokenSet]) -> None:
    _, plain, special = uneven
    fields = plain.manifest.model_dump(exclude={"schema_version"})
    encodings = {plain.encoding, special.encoding}
    for template in ("0" * 32, "1" * 32):
        manifest = TokensManifest4(**fields, chat=KeptChat(template=template, messages="messages"))
        encodings.add(dataclasses.replace(plain, manifest=manifest).encoding)
    assert len(encodings) == 4


def test_a_packed_stream_begins_at_a_single_state(uneven: tuple[ShardSet, TokenSet, TokenSet], tmp_path: Path) -> None:
    old = begun(uneven, tmp_path)
    state = state_with_a_cut_sample(old)
    mixer = Mixer.continue_from(
        tmp_path / "old", state=state, shards=uneven[0], policy=proportional(), ledger=tmp_path / "new"
    )
    stream = PackedTokens(mixer, uneven[1], block_tokens=16, separator=EOS, step_blocks=2)
    stream.batch(0, 1)
    with pytest.raises(
        LedgerError, match=r"has begun at block 0 with 0 tokens of a cut sample, and this state begins at"
    ):
        stream.load_state_dict(state)


def test_a_cut_sample_of_a_removed_skill_does_not_go_on(
    uneven: tuple[ShardSet, TokenSet, TokenSet], tmp_path: Path
) -> None:
    old = begun(uneven, tmp_path)
    state = state_with_a_cut_sample(old)
    removed = old.mixer.batch(state["mixer"]["draw"] - 1, 1).skill[0]
    remaining = [skill for skill in SKILLS if skill != removed]
    shards = uneven[0].choose(remaining)
    mixer = Mixer.continue_from(
        tmp_path / "old", state=state, shards=shards, policy=stratified(), ledger=tmp_path / "new"
    )
    stream = PackedTokens(mixer, uneven[1], block_tokens=16, separator=EOS, step_blocks=2)
    stream.load_state_dict(state)
    assert stream.batch(stream.block, 1).draw[0, 0] == state["mixer"]["draw"]
    # The skill comes back at its next sample.
    returned = Mixer.continue_from(
        tmp_path / "new",
        state=stream.state_dict(step=state["step"]),
        shards=uneven[0],
        policy=stratified(),
        ledger=tmp_path / "returned",
    )
    expected = tokens_of(PackedTokens(returned, uneven[1], block_tokens=16, separator=EOS), returned.first_draw, 30)
    again = PackedTokens(returned, uneven[1], block_tokens=16, separator=EOS, step_blocks=2)
    again.load_state_dict(stream.state_dict(step=state["step"]))
    ids = again.batch(again.block, 3).input_ids.ravel().tolist()
    assert ids == [token for tokens in expected for token in tokens][:48]


def test_a_changed_record_of_the_first_block_is_a_fault(
    uneven: tuple[ShardSet, TokenSet, TokenSet], tmp_path: Path
) -> None:
    begun(uneven, tmp_path).batch(0, 40)
    mixer = Mixer.continue_from(
        tmp_path / "old", draw=20, shards=uneven[0], policy=proportional(), ledger=tmp_path / "new"
    )
    PackedTokens(mixer, uneven[1], block_tokens=16, separator=EOS).batch(0, 1)
    path = tmp_path / "new" / "packed.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block": 1}))
    assert [fault for fault in verify_ledger(mixer.ledger) if "packed.json is damaged" in fault]
