"""Prompts are masked in the stream as in the losses: in texts and in blocks, by a mark and by a metadata field."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader

from skillshard.corpus import ANSWER_SPANS, Corpus, FieldMapping
from skillshard.errors import ObservationError
from skillshard.evaluation import losses_per_skill
from skillshard.hf import WholeStream, causal_lm_blocks, causal_lm_collator, causal_lm_loss
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import write_shards
from skillshard.taggers import metadata, tag_corpus
from skillshard.torch import Blocks, MixedDataset
from tests.adapters.hf_trainer import byte_tokenizer, tiny
from tests.conftest import HERE, tag_and_shard, write_corpus

MARK = "Output: "


def instructions(num: int) -> list[dict[str, Any]]:
    """Make samples of two skills with letters of two and four bytes, so that characters, bytes and tokens differ."""
    records = []
    for number in range(num):
        skill = ("ask", "tell")[number % 2]
        prompt = f"{skill} né 𝄞 {number} {MARK}"
        record = {"id": f"{skill}-{number}", "text": f"{prompt}ünswer {number}"}
        records.append({**record, "meta": {"skill": skill, "prompt_chars": len(prompt)}})
    return records


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, TokenSet]:
    folder = tmp_path_factory.mktemp("masked")
    corpus = write_corpus(folder / "corpus", instructions(120))
    shards = tag_and_shard(corpus, folder)
    place = folder / "tokenizer.json"
    byte_tokenizer().backend_tokenizer.save(str(place))
    return shards, write_tokens(shards, place, folder / "tokens", backend=HERE)


def conversations(num: int) -> list[dict[str, Any]]:
    """Make conversations of two skills with two answers each."""
    return [
        {
            "skill": ("ask", "tell")[number % 2],
            "messages": [
                {"role": "user", "content": f"né {number}?"},
                {"role": "assistant", "content": f"𝄞 {number}."},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": f"Nöw {number}!"},
            ],
        }
        for number in range(num)
    ]


def spoken(messages: list[dict[str, str]]) -> str:
    return "".join(message["content"] for message in messages if message["role"] == "assistant")


@pytest.fixture(scope="module")
def spoken_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, TokenSet]:
    folder = tmp_path_factory.mktemp("spoken")
    place = write_corpus(folder / "corpus", conversations(60))
    corpus = Corpus.open(place, fields=FieldMapping(id_field=None, messages="messages"))
    tags = tag_corpus(corpus, metadata("skill"), folder / "tags", backend=HERE)
    shards = write_shards(corpus, tags, folder / "shards", holdout=0.2, backend=HERE)
    tokenizer = folder / "tokenizer.json"
    byte_tokenizer().backend_tokenizer.save(str(tokenizer))
    return shards, write_tokens(shards, tokenizer, folder / "tokens", backend=HERE)


def test_a_collator_blocks_and_losses_predict_every_answer_of_a_conversation(
    spoken_shards: tuple[ShardSet, TokenSet], tmp_path: Path
) -> None:
    shards, counts = spoken_shards
    decode = byte_tokenizer().decode
    stream = mixer(shards, tmp_path / "texts")
    collate = causal_lm_collator(byte_tokenizer(), max_tokens=500, prompt_field=ANSWER_SPANS)
    batch = next(iter(DataLoader(MixedDataset(stream), batch_size=8, collate_fn=collate)))
    metas = stream.samples.metas(stream.find(np.arange(8)))
    learned = [decode(labels[labels != -100]) for labels in batch["labels"]]
    assert learned == [spoken(meta["messages"]) for meta in metas]

    answers = write_tokens(shards, counts.tokenizer, tmp_path / "T", prompt_field=ANSWER_SPANS, backend=HERE)
    packed = PackedTokens(mixer(shards, tmp_path / "blocks"), answers, block_tokens=17, separator="<pad>")
    ids = np.concatenate([block.input_ids[block.learned] for block in packed.batches(7)])
    num = sum(map(len, shards.train.values()))
    metas = packed.mixer.samples.metas(packed.mixer.find(np.arange(num)))
    assert decode(ids) == "".join(f"{spoken(meta['messages'])}<pad>" for meta in metas)

    def model_loss(texts: list[str], answers: list[list[tuple[int, int]]]) -> tuple[list[float], list[int]]:
        predicted = [
            "".join(text[start:stop] for start, stop in spans) for text, spans in zip(texts, answers, strict=True)
        ]
        assert all("?" not in answer and ("!" in answer or "." in answer) for answer in predicted)
        return [float(len(answer)) for answer in predicted], list(map(len, predicted))

    losses = losses_per_skill(model_loss, shards.holdout, max_samples=9, batch_size=4, prompt_field=ANSWER_SPANS)
    assert [loss.mean for loss in losses.values()] == [1.0, 1.0]


def mixer(shards: ShardSet, ledger: Path) -> Mixer:
    return Mixer(shards, stratified(), ledger=ledger, round_draws=20, step_draws=4, repeat="drop")


def answers(texts: list[str]) -> list[str]:
    return [text[text.index(MARK) + len(MARK) :] for text in texts]


@pytest.mark.parametrize("how", [{"answer_after": MARK}, {"prompt_field": "prompt_chars"}], ids=["mark", "field"])
def test_the_end_token_of_a_tokenizer_is_learned_behind_the_answer(
    masked: tuple[ShardSet, TokenSet], tmp_path: Path, how: dict[str, str]
) -> None:
    """The tokenizer itself begins and ends each text. Blocks, batches of texts and losses predict the end."""
    shards, tokenizer = masked[0], byte_tokenizer()
    ended = TemplateProcessing(single="<pad> $A <pad>", special_tokens=[("<pad>", 0)])
    tokenizer.backend_tokenizer.post_processor = ended
    tokens = write_tokens(shards, tokenizer, tmp_path / "T", special_tokens=True, backend=HERE, **how)
    packed = PackedTokens(mixer(shards, tmp_path / "blocks"), tokens, block_tokens=80, separator=None, packing="one")
    expected = [f"{answer}<pad>" for answer in answers(packed.mixer.batch(0, 8).text)]
    assert [tokenizer.decode(row[row != -100]) for row in packed.batch(0, 8).labels] == expected
    collate = causal_lm_collator(tokenizer, max_tokens=80, **how)
    batch = next(iter(DataLoader(MixedDataset(mixer(shards, tmp_path / "texts")), batch_size=8, collate_fn=collate)))
    assert [tokenizer.decode(row[row != -100]) for row in batch["labels"]] == expected
    nats_and_tokens = causal_lm_loss(tiny(), tokenizer, max_tokens=64)
    losses = losses_per_skill(nats_and_tokens, shards.holdout, max_samples=1, batch_size=1, **how)
    for skill, loss in losses.items():
        (answer,) = answers([next(iter(shards.holdout[skill])).text])
        assert loss.num_tokens == len(answer.encode()) + 1


@pytest.mark.parametrize("how", [{"answer_after": MARK}, {"prompt_field": "prompt_chars"}], ids=["mark", "field"])
def test_blocks_learn_answers_and_separators_and_are_the_same_blocks(
    masked: tuple[ShardSet, TokenSet], tmp_path: Path, how: dict[str, str]
) -> None:
    shards, counts = masked
    tokens = write_tokens(shards, counts.tokenizer, tmp_path / "T", backend=HERE, **how)
    assert tokens.verify() == []
    whole, part = (
        PackedTokens(mixer(shards, tmp_path / name), of, block_tokens=17, separator="<pad>")
        for name, of in (("whole", counts), ("part", tokens))
    )
    decode = byte_tokenizer().decode
    learned: list[int] = []
    for block, masked_block in zip(whole.batches(7), part.batches(7), strict=True):
        assert (block.input_ids == masked_block.input_ids).all() and (block.draw == masked_block.draw).all()
        assert (block.learned == (block.draw >= 0)).all()
        labels = causal_lm_blocks(Blocks(masked_block))["labels"]
        assert torch.equal(labels != -100, torch.from_numpy(masked_block.learned))
        learned += labels[labels != -100].tolist()
    texts = whole.mixer.batch(0, 1000).text
    assert len(texts) == sum(map(len, shards.train.values()))
    assert decode(learned) == "".join(f"{answer}<pad>" for answer in answers(texts))


@pytest.mark.parametrize("packing", ["one", "best-fit"])
def test_blocks_of_whole_samples_learn_the_answer_of_each_sample(
    masked: tuple[ShardSet, TokenSet], tmp_path: Path, packing: str
) -> None:
    shards, counts = masked
    tokens = write_tokens(shards, counts.tokenizer, tmp_path / "T", backend=HERE, answer_after=MARK)
    stream = PackedTokens(mixer(shards, tmp_path / "run"), tokens, block_tokens=80, separator="<pad>", packing=packing)
    texts = answers(stream.mixer.batch(0, 1000).text)
    decode, learned = byte_tokenizer().decode, dict[int, str]()
    for batch in stream.batches(7):
        assert (batch.labels == np.where(batch.learned, batch.input_ids, -100)).all()
        assert not batch.learned[batch.attention_mask == 0].any()
        for draw in np.unique(batch.draw[batch.draw >= 0]).tolist():
            learned[draw] = decode(batch.labels[(batch.draw == draw) & batch.learned])
    assert learned == {draw: f"{text}<pad>" for draw, text in enumerate(texts)}


def test_blocks_of_one_skill_learn_answers_and_separators(masked: tuple[ShardSet, TokenSet], tmp_path: Path) -> None:
    shards, counts = masked
    tokens = write_tokens(shards, counts.tokenizer, tmp_path / "T", backend=HERE, answer_after=MARK)
    unit: dict[str, Any] = {"block_tokens": 17, "separator": "<pad>"}
    blocks = Mixer(
        shards,
        stratified(),
        ledger=tmp_path / "run",
        round_draws=20,
        unit="blocks",
        tokens=tokens,
        repeat="drop",
        **unit,
    )
    stream = PackedTokens(blocks, tokens, packing="skill", **unit)
    learned: dict[int, list[int]] = {number: [] for number in range(len(shards.skills))}
    for batch in stream.batches(7):
        for row, skill in enumerate(batch.skill[:, 0].tolist()):
            learned[skill] += batch.labels[row][batch.learned[row]].tolist()
    for number, skill in enumerate(stream.skills):
        samples, order = shards.train[skill], blocks.orders[number]
        rows = [(shard, row) for shard, own in order.read(0, order.num_samples).segments for row in own.tolist()]
        texts = answers([samples.open_shard(shard).text(row) for shard, row in rows])
        expected = byte_tokenizer()("".join(f"{text}<pad>" for text in texts))["input_ids"]
        # Less than a block of 17 tokens is left out at the end of the epoch.
        assert learned[number] == expected[: len(learned[number])] and len(expected) - len(learned[number]) < 17


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dataset", [MixedDataset, WholeStream])
def test_a_loader_masks_by_the_metadata_of_its_samples(
    masked: tuple[ShardSet, TokenSet], tmp_path: Path, workers: int, dataset: Any
) -> None:
    shards, _ = masked
    stream = Mixer(shards, stratified(), ledger=tmp_path, round_draws=20)
    collate = causal_lm_collator(byte_tokenizer(), max_tokens=64, prompt_field="meta.prompt_chars")
    batch = next(iter(DataLoader(dataset(stream), batch_size=16, num_workers=workers, collate_fn=collate)))
    learned = [byte_tokenizer().decode(labels[labels != -100]) for labels in batch["labels"]]
    assert learned == answers(stream.batch(0, 16).text)


def test_the_metadata_of_any_draws_is_that_of_their_samples(masked: tuple[ShardSet, TokenSet], tmp_path: Path) -> None:
    shards, _ = masked
    stream = Mixer(shards, stratified(), ledger=tmp_path, round_draws=20)
    places = stream.find(np.array([5, 0, 39, 20, 3]))
    by_text = {sample.text: sample.meta for skill in shards.train.values() for sample in skill}
    assert stream.samples.metas(places) == [by_text[text] for text in stream.samples.cut(places).text]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"answer_after": "Answer: "}, r"\.tar: sample '.*': the text .* there is nothing behind 'Answer: '"),
        (
            {"prompt_field": "prompt"},
            r"\.tar: sample '.*': .* its metadata field 'prompt' is missing, expected the number",
        ),
    ],
    ids=["mark", "field"],
)
def test_a_sample_without_an_answer_is_named_when_its_tokens_are_written(
    masked: tuple[ShardSet, TokenSet], tmp_path: Path, how: dict[str, str], sentence: str
) -> None:
    shards, counts = masked
    with pytest.raises(ObservationError, match=sentence):
        write_tokens(shards, counts.tokenizer, tmp_path / "T", backend=HERE, **how)
