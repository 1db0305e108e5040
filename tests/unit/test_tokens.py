"""Token counts, and the sentences for counts, a tokenizer, shards or arguments that do not fit."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from skillshard.errors import LedgerError, PolicyError, StorageError, TokensError
from skillshard.execution import Backend
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.counts import in_unit
from skillshard.mixing.ledger import DirectoryLedger, read_record
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.mixing.run_records import RunRecord
from skillshard.policies import (
    NextRound,
    Observation,
    ado,
    chain,
    fixed,
    repetition_limit,
    skill_it,
    stratified,
)
from skillshard.printable import size_in_words
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.token_set import TokenSet
from skillshard.shards.tokenizers import TEXTS_AT_ONCE, encode, encode_with_answers, open_tokenizer
from skillshard.shards.tokens import estimate_tokens, write_tokens
from tests.commands import fails, works
from tests.conftest import HERE, samples, tag_and_shard, tree, write_corpus
from tests.tokenizers_trained import (
    EOS,
    byte_tokenizer,
    counted,
    letter_tokenizer,
    letters,
    save,
    uneven_shards,
    with_bos,
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return uneven_shards(tmp_path_factory.mktemp("uneven"))


@pytest.fixture
def counts(uneven: ShardSet, tmp_path: Path) -> TokenSet:
    return counted(uneven, tmp_path / "counts")


def mixer(shards: ShardSet, folder: Path, **arguments: Any) -> Mixer:
    return Mixer(shards, arguments.pop("policy", stratified()), ledger=folder / "run", round_draws=50, **arguments)


def test_the_first_ids_of_rows_in_any_order_follow_the_ids_before(
    counts: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skillshard.shards.token_set.ROWS_SUMMED", 4)
    parts = set()
    for skill in counts.train.values():
        for shard in range(len(skill.columns.number)):
            sizes = skill.rows(shard).astype(np.int64)
            expected = np.cumsum(sizes) - sizes
            for first in range(len(sizes)):
                for rows in (np.arange(first, min(first + 6, len(sizes))), np.arange(first, -1, -1)[:6]):
                    assert skill.starts(shard, rows).tolist() == expected[rows].tolist()
                    parts.add(len(set((rows // 4).tolist())))
    assert parts >= {1, 2}


@pytest.mark.parametrize("special_tokens", [False, True])
def test_every_sample_is_counted(uneven: ShardSet, tmp_path: Path, special_tokens: bool) -> None:
    counts = counted(uneven, tmp_path / "T", special_tokens=special_tokens)
    for split, skills in (("train", uneven.train), ("holdout", uneven.holdout)):
        for skill, shards in skills.items():
            skill_counts = getattr(counts, split)[skill]
            for shard in range(len(shards.shard_rows)):
                opened = shards.open_shard(shard)
                texts = [opened.text(row) for row in range(int(shards.shard_rows[shard]))]
                num = [len(text.split()) * (text != ".") + special_tokens for text in texts]
                assert skill_counts.rows(shard).tolist() == num
                assert skill_counts.shard_tokens[shard] == sum(num)
    assert counts.verify() == []
    assert counts.manifest.num_train == sum(skill_counts.num_tokens for skill_counts in counts.train.values())


@pytest.mark.parametrize("special_tokens", [False, True])
def test_each_of_many_texts_gets_its_own_tokens_and_its_own_mask(special_tokens: bool) -> None:
    tokenizer, texts = with_bos(letter_tokenizer()), ["a b", "a", "b a b"] * TEXTS_AT_ONCE
    spans = [[(2, 3)], [(0, 1)], [(0, 1), (4, 5)]] * TEXTS_AT_ONCE
    alone = [tokenizer.encode(text, add_special_tokens=special_tokens).ids for text in texts[:3]] * TEXTS_AT_ONCE
    # <bos> is learned where the first answer begins with the text.
    masks = [
        [*[begins] * special_tokens, *mask]
        for begins, mask in ((False, [False, True]), (True, [True]), (True, [True, False, True]))
    ]
    encoded = encode_with_answers(tokenizer, texts, spans, special_tokens=special_tokens)
    assert [(ids, mask.tolist()) for ids, mask in encoded] == list(zip(alone, masks * TEXTS_AT_ONCE, strict=True))
    assert encode(tokenizer, texts, special_tokens=special_tokens) == alone


def test_the_bytes_are_the_same_for_any_number_of_workers_and_for_a_tokenizer_in_memory(
    uneven: ShardSet, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(sample.text for sample in uneven.train["add"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    place = save(tokenizer, tmp_path / "tokenizer.json")
    write_tokens(uneven, place, tmp_path / "a", backend=HERE)
    write_tokens(uneven, tokenizer, tmp_path / "b", backend=Backend(workers=2))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert max(TokenSet.open(tmp_path / "a").train["carry"].rows(0).tolist()) > 9  # neither cut nor padded


def test_the_verbs_count_show_and_verify(uneven: ShardSet, tmp_path: Path) -> None:
    place = save(letter_tokenizer(), tmp_path / "tokenizer.json")
    shown = works("tokens", uneven.root, "--tokenizer", place, "--out", tmp_path / "T", "--workers", 1)
    counts = TokenSet.open(tmp_path / "T")
    for text in ("carry", "per sample", f"{counts.manifest.num_train:,}", "special tokens not added"):
        assert text in shown
    assert works("inspect", tmp_path / "T") == shown
    assert "all as tokens.json says" in works("verify", tmp_path / "T")
    assert works("tokens", uneven.root, "--tokenizer", place, "--out", tmp_path / "T") == shown
    sentence = fails("tokens", uneven.root, "--tokenizer", place, "--out", tmp_path / "T", "--special-tokens")
    assert "special_tokens: False -> True" in sentence
    assert "no such file" in fails("tokens", uneven.root, "--tokenizer", tmp_path / "no.json", "--out", tmp_path / "U")


def test_size_and_time_are_said_before_the_work_and_follow_the_bytes_of_the_texts(
    uneven: ShardSet, tmp_path: Path
) -> None:
    """With a token for each byte, and shards of a skill alike, the estimate is the number of tokens."""
    letters_alone = byte_tokenizer([], vocab_size=258)
    sentences: list[str] = []
    tokens = write_tokens(
        uneven, letters_alone, tmp_path / "T", backend=Backend(workers=2), on_estimate=sentences.append, progress=False
    )
    total = tokens.manifest.num_train + tokens.manifest.num_holdout
    estimate = estimate_tokens(uneven, letters_alone, counts_only=False, masks=True, backend=HERE)
    assert estimate.num_tokens == pytest.approx(total, rel=0.2)
    assert estimate.num_bytes == 4 * 490 + 3 * estimate.num_tokens
    assert sentences == [
        f"about {estimate.num_tokens:,} tokens, {size_in_words(4 * 490 + 2 * estimate.num_tokens)}: about 1 s in 2 processes"
    ]
    write_tokens(uneven, letters_alone, tmp_path / "T", backend=HERE, on_estimate=sentences.append)
    assert len(sentences) == 1  # finished tokens are only opened


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(
        TokensError, match=r"config.json is no tokenizer of Hugging Face's tokenizers: .*save_pretrained"
    ):
        open_tokenizer(tmp_path / "config.json")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(
        TokensError,
        match=r"/tokenizer.json is not there. AutoTokenizer.from_pretrained\(DIR\).save_pretrained\(OUT\) of transformers",
    ):
        open_tokenizer(tmp_path)
    with pytest.raises(TokensError, match=r"is not text, and so no tokenizer.json"):
        open_tokenizer(tmp_path / "bytes")
    with pytest.raises(StorageError, match="no such file"):
        open_tokenizer(tmp_path / "missing.json")
    random = byte_tokenizer(["some text"])
    random.model.dropout = 0.1
    with pytest.raises(TokensError, match=r"the tokenizer merges at random \(dropout 0.1"):
        open_tokenizer(random)
    for other in (b"tokenizer.json", 5, {"model": {}}):
        with pytest.raises(TokensError, match=rf"of type builtins.{type(other).__name__}: give a tokenizer of Hugging"):
            open_tokenizer(other)  # type: ignore[arg-type]


def test_a_tokenizer_of_transformers_writes_the_tokens_of_its_file(uneven: ShardSet, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    own = letter_tokenizer()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token=EOS, model_max_length=4)
    text = next(iter(uneven.train["add"])).text
    expected = own.encode(text).ids
    assert open_tokenizer(fast).encode(text).ids == expected and len(expected) > fast.model_max_length
    tokens = write_tokens(uneven, fast, tmp_path / "object", backend=HERE)
    fast.save_pretrained(tmp_path / "saved")
    assert tree(tmp_path / "object") == tree(
        Path(write_tokens(uneven, tmp_path / "saved", tmp_path / "T", backend=HERE).root)
    )
    assert tokens.token_id(EOS) == fast.eos_token_id


def test_without_the_extra_the_sentence_says_how_to_install_it(
    uneven: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = save(letter_tokenizer(), tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    sentence = fails("tokens", uneven.root, "--tokenizer", place, "--out", tmp_path / "T")
    assert sentence == "A tokenizer needs the extra 'tokens': pip install 'skillshard[tokens]'"


# --- damage ------------------------------------------------------------------------------------------------------------


def test_edited_totals_are_found(counts: TokenSet) -> None:
    manifest = json.loads((Path(counts.root) / "tokens.json").read_text())
    manifest["skills"][1]["num_train"] += 1
    manifest["skills"][0]["train"]["num_tokens"][0] += 5
    (Path(counts.root) / "tokens.json").write_text(json.dumps(manifest))
    faults = TokenSet.open(counts.root).verify()
    assert len(faults) == 4
    assert "counts" in faults[0] and "but tokens.json says" in faults[0]
    assert "says skill 'add' has" in faults[1] and "says skill 'carry' has" in faults[2]
    assert "says num_train is" in faults[3]


def test_a_manifest_that_does_not_fit_or_is_missing_is_refused(counts: TokenSet, tmp_path: Path) -> None:
    (Path(counts.root) / "tokens.json").write_text("{}")
    with pytest.raises(TokensError, match=r"does not fit schemas/tokens-2.json"):
        TokenSet.open(counts.root)
    with pytest.raises(TokensError, match=r"holds no finished tokens: tokens.json is not there"):
        TokenSet.open(tmp_path)


def test_another_tokenizer_than_the_tokenizer_of_the_ids_is_refused(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path
) -> None:
    save(byte_tokenizer(["other"]), Path(counts.root) / "tokenizer.json")
    with pytest.raises(TokensError, match=r"tokenizer.json has digest .*not the tokenizer of these tokens"):
        PackedTokens(mixer(uneven, tmp_path), TokenSet.open(counts.root), block_tokens=16, separator=EOS)
    assert "not the tokenizer of these tokens" in fails("verify", counts.root)


def test_tokens_of_other_shards_are_refused(counts: TokenSet, tmp_path: Path) -> None:
    other = tag_and_shard(write_corpus(tmp_path / "corpus", samples(add=60, carry=40)), tmp_path)
    for use in (
        lambda: mixer(other, tmp_path, unit="tokens", tokens=counts),
        lambda: PackedTokens(mixer(other, tmp_path), counts, block_tokens=16, separator=EOS),
    ):
        with pytest.raises(
            TokensError, match=r"has the tokens of shards \w+, but .* is \w+. Write the tokens of these"
        ):
            use()


# --- arguments -----------------------------------------------------------------------------------------------------------


def test_a_skill_without_tokens_is_refused(tmp_path: Path) -> None:
    records = [letters("add", number, 5) for number in range(40)] + [letters("mute", number, 0) for number in range(40)]
    shards = tag_and_shard(write_corpus(tmp_path / "corpus", records), tmp_path)
    counts = write_tokens(shards, letter_tokenizer(), tmp_path / "T", backend=HERE)
    with pytest.raises(
        TokensError, match=r"no training sample of skill 'mute' has a token in .*T, so no number of draws"
    ):
        mixer(shards, tmp_path, unit="tokens", tokens=counts)
    mixed = mixer(shards, tmp_path)
    with pytest.raises(
        TokensError, match=r"skill 'mute' has a token in .*its draws would fill no block. Give a separator"
    ):
        PackedTokens(mixed, counts, block_tokens=8, separator=None)
    batch = PackedTokens(mixed, counts, block_tokens=8, separator=EOS).batch(0, 10)
    assert batch.skill_tokens.sum(0)[1] == (batch.draw.ravel()[:, None] == _of(mixed, 1)).any(1).sum()


def _of(mixed: Mixer, skill: int) -> np.ndarray:
    return np.flatnonzero(mixed.batch(0, 100).skill_number == skill)


def test_the_unit_and_the_counts_come_together(uneven: ShardSet, counts: TokenSet, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"unit='tokens' needs the token counts of these shards.*skillshard tokens"):
        mixer(uneven, tmp_path, unit="tokens")
    with pytest.raises(PolicyError, match=r"token counts were given, but unit is 'samples'"):
        mixer(uneven, tmp_path, tokens=counts)
    with pytest.raises(PolicyError, match=r"unit is 'words': give 'samples' \(default\), 'tokens' or 'blocks'"):
        mixer(uneven, tmp_path, unit="words", tokens=counts)


def test_another_unit_is_another_run(uneven: ShardSet, counts: TokenSet, tmp_path: Path) -> None:
    mixer(uneven, tmp_path)
    with pytest.raises(LedgerError, match=r"ledger of another run: .*unit: 'samples' -> 'tokens'"):
        mixer(uneven, tmp_path, unit="tokens", tokens=counts)


def test_counts_that_weights_in_tokens_do_not_give_are_found(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path
) -> None:
    mixed = mixer(uneven, tmp_path, unit="tokens", tokens=counts)
    mixed.round(3)
    assert verify_ledger(mixed.ledger) == []
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    run["num_tokens"][0] *= 2
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    assert "run.json is damaged" in verify_ledger(DirectoryLedger(tmp_path / "run"))[0]
    (tmp_path / "run" / "run.json").write_bytes(RunRecord.model_validate(run | {"checksum": ""}).to_bytes())
    assert any(
        "has counts that its weights do not give" in fault for fault in verify_ledger(DirectoryLedger(tmp_path / "run"))
    )


def test_a_separator_that_is_an_id_is_refused_in_a_sentence(uneven: ShardSet, counts: TokenSet, tmp_path: Path) -> None:
    # In a process of its own, because the test process checks the types of calls.
    unit = "unit='blocks', tokens=tokens, block_tokens=8, separator=0"
    for number, (arguments, call) in enumerate(
        {"": "ss.PackedTokens(mixer, tokens, block_tokens=8, separator=0)", unit: "0"}.items()
    ):
        program = (
            f"import skillshard as ss; shards, tokens = ss.ShardSet.open({str(uneven.root)!r}), ss.TokenSet.open({counts.root!r})\n"
            f"mixer = ss.Mixer(shards, ss.policies.stratified(), ledger={str(tmp_path / str(number))!r}, round_draws=50, {arguments})\n{call}"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stderr.splitlines()[-1].startswith(
            "skillshard.errors.TokensError: the token is 0: give the text of the token"
        )


def test_arguments_of_packing_that_cannot_be_are_refused(uneven: ShardSet, counts: TokenSet, tmp_path: Path) -> None:
    mixed = mixer(uneven, tmp_path)
    with pytest.raises(PolicyError, match="block_tokens is 0: give at least 1"):
        PackedTokens(mixed, counts, block_tokens=0, separator=EOS)
    with pytest.raises(PolicyError, match="step_blocks is 0: give at least 1"):
        PackedTokens(mixed, counts, block_tokens=8, separator=EOS, step_blocks=0)
    with pytest.raises(
        TokensError, match=r"has no token '<eso>' \(did you mean '<eos>'\?\); its special tokens are <eos>, <bos>"
    ):
        PackedTokens(mixed, counts, block_tokens=8, separator="<eso>")
    strict = mixer(uneven, tmp_path / "strict", policy=skill_it(SkillGraph.identity(uneven.skills), eta=1.0), lag=0)
    with pytest.raises(PolicyError, match="A block that reaches over the end of a round would wait for losses"):
        PackedTokens(strict, counts, block_tokens=8, separator=EOS)


def test_a_state_of_something_else_is_refused(uneven: ShardSet, counts: TokenSet, tmp_path: Path) -> None:
    packed = PackedTokens(mixer(uneven, tmp_path), counts, block_tokens=8, separator=EOS)
    other = PackedTokens(mixer(uneven, tmp_path), counts, block_tokens=16, separator=EOS)
    with pytest.raises(
        LedgerError, match="this state was saved with block_tokens 16, but block_tokens of this stream is 8"
    ):
        packed.load_state_dict(other.state_dict())
    with pytest.raises(LedgerError, match=r"no state of packed tokens \(schemas/packed-5.json\)"):
        packed.load_state_dict(packed.mixer.state_dict())
    with pytest.raises(LedgerError, match=r"no state of a mixer"):
        packed.mixer.load_state_dict(packed.state_dict())
    assert len(json.dumps(packed.state_dict())) < 600


def test_a_mixer_that_was_moved_beside_its_packed_stream_is_refused(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path
) -> None:
    packed = PackedTokens(mixer(uneven, tmp_path), counts, block_tokens=8, separator=EOS)
    packed.mixer.load_state_dict(packed.mixer.state_at(40).model_dump(by_alias=True))
    with pytest.raises(
        PolicyError, match=r"the mixer stands at draw 40 and stood at 0 when its packed stream was begun"
    ):
        packed.batch(0, 1)


def test_a_step_needs_to_know_its_blocks(uneven: ShardSet, counts: TokenSet, tmp_path: Path) -> None:
    packed = PackedTokens(mixer(uneven, tmp_path), counts, block_tokens=8, separator=EOS)
    losses = dict.fromkeys(uneven.skills, 1.0)
    with pytest.raises(
        Exception, match=r"step 5 cannot be translated into blocks: give PackedTokens\(..., step_blocks="
    ):
        packed.report(5, losses)
    packed.report(5, losses, block=12)
    observation = json.loads(
        (tmp_path / "run" / "generations" / "00000000" / "observations" / "00000000.json").read_text()
    )
    assert observation["draw"] == packed.draws_before(12)


def test_packed_tokens_begin_with_losses_where_their_mixer_does(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path
) -> None:
    for number, initial in enumerate((False, True)):
        policy = skill_it(SkillGraph.identity(uneven.skills), eta=0.5) if initial else stratified()
        of = mixer(uneven, tmp_path / str(number), policy=policy)
        assert PackedTokens(of, counts, block_tokens=8, separator=EOS).initial_losses is of.initial_losses is initial


def test_packed_tokens_that_begin_again_stand_at_their_first_block(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path
) -> None:
    packed = PackedTokens(mixer(uneven, tmp_path), counts, block_tokens=8, separator=EOS)
    first = next(packed.batches(3)).input_ids.tolist()
    assert packed.block == 3
    packed.restart()
    assert packed.block == 0
    assert next(packed.batches(3)).input_ids.tolist() == first


def test_packed_tokens_can_be_pickled(uneven: ShardSet, counts: TokenSet, tmp_path: Path) -> None:
    packed = PackedTokens(mixer(uneven, tmp_path), counts, block_tokens=8, separator=EOS)
    expected = packed.batch(30, 5).input_ids.tolist()
    assert pickle.loads(pickle.dumps(packed)).batch(30, 5).input_ids.tolist() == expected


def test_blocks_of_ids_need_no_text_and_no_tokenizer_beyond_the_separator(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = PackedTokens(mixer(uneven, tmp_path), counts, block_tokens=8, separator=EOS)

    def refused(*arguments: object) -> None:
        raise AssertionError("a text is read")

    monkeypatch.setattr(SkillShards, "open_shard", refused)
    monkeypatch.setattr(SkillShards, "index", refused)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert len(packed.batch(0, 60)) == 60


# --- what policies are told in tokens --------------------------------------------------------------------------------


@dataclass
class Listening:
    """A policy of equal weights that records the calls of the mixer."""

    rounds: list[NextRound] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    name: str = "listening"
    arguments: dict[str, Any] = field(default_factory=dict)
    eval_skills: tuple[str, ...] | None = None
    reads_losses: bool = True
    may_miss_losses: bool = False

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> dict[str, Any]:
        self.sizes = tuple(num_samples or ())
        return {"skills": list(skills)}

    def observe(self, state: dict[str, Any], observation: Observation) -> dict[str, Any]:
        self.observations.append(observation)
        return state

    def weights(self, state: dict[str, Any], upcoming: NextRound | None = None) -> np.ndarray:
        assert upcoming is not None
        self.rounds.append(upcoming)
        return np.full(len(state["skills"]), 1 / len(state["skills"]))


def trained(mixed: Mixer, num_rounds: int) -> Mixer:
    """Report losses in the middle of every round."""
    for number in range(num_rounds):
        mixed.round(number)
        mixed.report(number, dict.fromkeys(mixed.skills, 1.0 + 1 / (1 + number)), draw=50 * number + 25)
    return mixed


@pytest.mark.parametrize("unit", ["samples", "tokens"])
def test_sizes_and_what_was_drawn_are_told_in_the_unit_of_the_weights(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path, unit: str
) -> None:
    policy = Listening()
    mixed = trained(
        mixer(uneven, tmp_path, policy=policy, lag="live", unit=unit, tokens=counts if unit == "tokens" else None), 8
    )
    samples_of = [len(uneven.train[skill]) for skill in mixed.skills]
    sizes = samples_of if unit == "samples" else [counts.train[skill].num_tokens for skill in mixed.skills]
    assert policy.sizes == tuple(sizes)

    def drawn_before(draws: int) -> list[int]:
        numbers = np.bincount(mixed.at(np.arange(draws)).skill_number, minlength=len(mixed.skills)).tolist()
        return [
            number * size // num_samples for number, size, num_samples in zip(numbers, sizes, samples_of, strict=True)
        ]

    for upcoming in policy.rounds:
        assert upcoming.first_draw == 50 * upcoming.number
        assert upcoming.num_samples == policy.sizes
        assert list(upcoming.drawn) == drawn_before(upcoming.first_draw)
    assert len(policy.observations) >= 7
    for observation in policy.observations:
        assert observation.draw % 50 == 25
        assert list(observation.drawn.values()) == drawn_before(observation.draw)


def test_an_observation_of_an_earlier_round_is_told_with_what_was_drawn_up_to_it(
    uneven: ShardSet, tmp_path: Path
) -> None:
    """With lag=2 a round reads losses of earlier rounds than the last round, measured in the middle and at the end of a round."""
    policy = Listening()
    mixed = mixer(uneven, tmp_path, policy=policy, lag=2)
    for number in range(8):
        mixed.round(number)
        for draw in (50 * number + 20, 50 * number + 50):
            mixed.report(draw, dict.fromkeys(mixed.skills, 1.0 + 1 / draw), draw=draw)
    observed = [observation for observation in policy.observations if observation.draw]
    assert [observation.draw for observation in observed] == [20, 50, 70, 100, 120, 150, 170, 200, 220, 250]
    for observation in observed:
        numbers = np.bincount(mixed.at(np.arange(observation.draw)).skill_number, minlength=len(mixed.skills))
        assert observation.round == (observation.draw - 1) // 50
        assert list(observation.drawn.values()) == numbers.tolist()


def test_whole_epochs_are_told_as_their_tokens(uneven: ShardSet, counts: TokenSet, tmp_path: Path) -> None:
    mixed = mixer(uneven, tmp_path, unit="tokens", tokens=counts)
    mixed.round(0)
    run = read_record(mixed.ledger, "run.json", RunRecord)
    assert run is not None
    whole = [3 * counts.train[skill].num_tokens for skill in mixed.skills]
    assert in_unit(run, [3 * num for num in run.num_samples]) == whole
    huge = in_unit(run, [10**15 * num for num in run.num_samples])
    assert huge == [10**15 * counts.train[skill].num_tokens for skill in mixed.skills]


def test_ado_starts_from_the_shares_of_tokens_and_counts_tokens(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path
) -> None:
    policy = ado(warmup_steps=10**6, refit_steps=1)
    record = trained(mixer(uneven, tmp_path, policy=policy, lag="live", unit="tokens", tokens=counts), 40).round(39)
    natural = np.array([counts.train[skill].num_tokens for skill in uneven.skills], dtype=float)
    natural /= natural.sum()
    np.testing.assert_allclose(record.weights, natural)
    np.testing.assert_allclose(record.policy_state["recent"], natural, atol=0.02)


def test_no_skill_repeats_beyond_its_limit_where_weights_write_tokens(
    uneven: ShardSet, counts: TokenSet, tmp_path: Path
) -> None:
    numbers = {skill: skill_counts.num_tokens for skill, skill_counts in counts.train.items()}
    smallest = min(numbers, key=lambda skill: numbers[skill])
    wanted = {skill: 1.0 if skill == smallest else 0.01 for skill in uneven.skills}
    total = int(1.5 * sum(numbers.values()))
    policy = chain(fixed(wanted), repetition_limit(2.0, draws=total))
    mixed, tokens, number = mixer(uneven, tmp_path, policy=policy, unit="tokens", tokens=counts), 0.0, 0
    while True:
        record = mixed.round(number)
        sizes = zip(record.epochs, uneven.skills, strict=True)
        tokens = sum(epochs * numbers[skill] for epochs, skill in sizes)
        if tokens > total:
            break
        slack = 1 / len(uneven.train[smallest])
        assert record.epochs[uneven.skills.index(smallest)] <= 2 + slack
        number += 1
    before = mixed.round(number - 1)
    assert before.epochs[uneven.skills.index(smallest)] > 1.8


def test_a_text_that_a_tokenizer_has_no_token_for_is_named_with_its_shard(uneven: ShardSet, tmp_path: Path) -> None:
    lacking = Tokenizer(models.WordLevel({EOS: 0, "a": 1}))
    lacking.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    place = save(lacking, tmp_path / "tokenizer.json")
    sentence = fails("tokens", uneven.root, "--tokenizer", place, "--out", tmp_path / "T", "--workers", 1)
    assert re.search(r"\.tar: sample '\w+-\d{4}' cannot be encoded by the tokenizer", sentence)
    assert "Give a tokenizer with an unknown token" in sentence and "mistake" not in sentence


def test_a_directory_without_a_tokenizer_is_refused(uneven: ShardSet, tmp_path: Path) -> None:
    assert "tokenizer.json is not there" in fails(
        "tokens", uneven.root, "--tokenizer", tmp_path, "--out", tmp_path / "T"
    )
