"""Each training and each measurement reads a sample as the same tokens with the same learned tokens, for every way to mark the answers.

The kept token ids are the reference. The tests collect what the other readers read: packed blocks, the collator, measured losses, graphs, loss taggers
and comparisons, of the library and of the commands.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from skillshard import taggers
from skillshard.batch_losses import losses_from_batch
from skillshard.comparison.compare import compare_policies
from skillshard.corpus import ANSWER_SPANS, Corpus, FieldMapping
from skillshard.errors import SkillshardError
from skillshard.evaluation import losses_per_skill
from skillshard.graph.edges import EdgeRule
from skillshard.graph.learn import learn_graph
from skillshard.hf import causal_lm_collator, causal_lm_loss, rendered_chats
from skillshard.loss import LossKind, Reduction
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.proxy.pretrained import PretrainedTokens, read_tokens
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.proxy.train import TokenBatch
from skillshard.shards.read import ShardSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import write_shards
from skillshard.taggers.losses.saved import open_loss_tagger
from skillshard.taggers.losses.tagger import loss_tagger
from tests.commands import fails, works
from tests.conftest import HERE, lines
from tests.tokenizers_trained import byte_tokenizer
from tests.unit.test_chat_templates import PROGRAM, SPECIAL, kept, messages_of, sharded

WINDOW = 256
RULE = EdgeRule("absolute", None, "end", clamp=False, off_diagonal=None, drop_uncertain=False)
Read = dict[tuple[int, ...], list[int]]
"""Ids of a text -> the label of each token. A token that is not learned has the label -100."""


@dataclass(frozen=True)
class Way:
    """A way to mark the answers.

    Attributes:
        tokens: Arguments of `write_tokens`.
        reading: Arguments of `ReadingChoice`.
        collator: Arguments of `causal_lm_collator`.
        options: Options of the commands.
    """

    tokens: dict[str, Any]
    reading: dict[str, Any]
    collator: dict[str, Any]
    options: tuple[str, ...]


WAYS = {
    "chat template": Way(
        {"chat_template": "tokenizer"},
        {"chat_template": "tokenizer"},
        {"messages": "meta.chat"},
        ("--chat-template", "tokenizer"),
    ),
    "spans": Way(
        {"prompt_field": ANSWER_SPANS, "special_tokens": True},
        {"prompt_field": ANSWER_SPANS},
        {"prompt_field": ANSWER_SPANS},
        ("--prompt-field", ANSWER_SPANS),
    ),
    "mark": Way(
        {"answer_after": "assistant: ", "special_tokens": True},
        {"answer_after": "assistant: "},
        {"answer_after": "assistant: "},
        ("--answer-after", "assistant: "),
    ),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a chat model whose tokenizer begins each text with a token. A rendered conversation has this token already."""
    tokenizer = byte_tokenizer(["Add. 1 + 1? 2, x"])
    tokenizer.add_special_tokens(list(SPECIAL))
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    place = tmp_path_factory.mktemp("chat") / "model"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", chat_template=PROGRAM).save_pretrained(place)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=WINDOW, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return sharded(tmp_path_factory.mktemp("chats") / "corpus", [messages_of(number) for number in range(40)])


def corpus_of(shards: ShardSet) -> Corpus:
    return Corpus.open(shards.root.parent / "a.jsonl", fields=FieldMapping(messages="chat"))


def expected(shards: ShardSet, model: Path, way: Way, out: Path) -> Read:
    tokens = write_tokens(shards, model, out, backend=HERE, **way.tokens)
    return {tuple(ids): labels(ids, marks) for ids, marks in kept(tokens, shards).values()}


def labels(ids: Any, learned: Any) -> list[int]:
    return [int(token) if mark else -100 for token, mark in zip(ids, learned, strict=True)]


@pytest.fixture
def read_by_proxies(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Collect every text that a proxy reads."""
    collected: Read = {}
    encode: Callable[..., TokenBatch] = PretrainedTokens.encode

    def encode_and_collect(self: PretrainedTokens, texts: Any, answers: Any = None) -> TokenBatch:
        batch = encode(self, texts, answers)
        for row in range(len(batch)):
            # The last token of a text stands in the targets alone, and is always an answer here.
            targets = batch.targets[row]
            num = int(np.flatnonzero(targets >= 0)[-1]) + 1
            ids = [*batch.tokens[row, :num, 0].tolist(), int(targets[num - 1])]
            collected[tuple(ids)] = [-100, *targets[:num].tolist()]
        return batch

    monkeypatch.setattr(PretrainedTokens, "encode", encode_and_collect)
    return collected


def up_to_the_last_answer(reference: Read) -> Read:
    """Cut each text behind its last learned token, where the reading of a proxy with answers ends."""
    stops = {ids: max(number for number, label in enumerate(row) if label >= 0) + 1 for ids, row in reference.items()}
    return {ids[: stops[ids]]: row[: stops[ids]] for ids, row in reference.items()}


@ways
def test_blocks_collator_and_measured_losses_read_the_kept_ids(
    way: Way, shards: ShardSet, model: Path, tmp_path: Path
) -> None:
    reference = expected(shards, model, way, tmp_path / "T")
    tokens = write_tokens(shards, model, tmp_path / "T", backend=HERE, **way.tokens)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    mixer = Mixer(shards, stratified(), ledger=tmp_path / "run", round_draws=20, loss=tokens.answers)
    blocks = PackedTokens(mixer, tokens, block_tokens=WINDOW, separator=None, packing="one").batch(0, 20)
    for ids, marks, mask in zip(blocks.input_ids, blocks.labels, blocks.attention_mask, strict=True):
        assert reference[tuple(ids[mask == 1].tolist())] == marks[mask == 1].tolist()
    collate = causal_lm_collator(tokenizer, max_tokens=WINDOW, **way.collator)
    held_out = [sample for part in shards.holdout.values() for sample in part]
    batch = collate([{"text": sample.text, "meta": sample.meta} for sample in held_out])
    for ids, marks, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        assert reference[tuple(ids[mask == 1].tolist())] == marks[mask == 1].tolist()
    measured: Read = {}
    is_chat = "chat_template" in way.reading

    def nats_and_tokens(texts: list[str], answers: Any) -> tuple[list[float], list[int]]:
        rows = read_tokens(tokenizer, texts, max_tokens=WINDOW, answers=answers, special_tokens=not is_chat)
        measured.update({tuple(row.ids.tolist()): labels(row.ids, row.predicted) for row in rows})
        return [1.0] * len(rows), [1] * len(rows)

    kind = ReadingChoice(str(model), WINDOW, **way.reading).kind()
    holdout = rendered_chats(shards.holdout, tokenizer, messages="chat") if is_chat else shards.holdout
    losses = losses_per_skill(
        nats_and_tokens, holdout, max_samples=50, batch_size=4, answer_after=kind.answer_after, prompt_field=kind.prompt_field
    )  # fmt: skip
    assert losses.kind == kind == tokens.answers
    assert len(measured) == len(held_out) and measured.items() <= reference.items()


@ways
def test_graphs_loss_taggers_and_comparisons_read_the_kept_ids(
    way: Way, shards: ShardSet, model: Path, tmp_path: Path, read_by_proxies: Read
) -> None:
    reference = up_to_the_last_answer(expected(shards, model, way, tmp_path / "T"))
    reading = ReadingChoice(str(model), WINDOW, **way.reading)
    graph = learn_graph(
        shards, tmp_path / "graph.json", method="linear", steps=2, rule=RULE, reading=reading, batch_size=8,
        eval_samples=9, backend=HERE, progress=False,
    )  # fmt: skip
    assert len(read_by_proxies) > 10 and read_by_proxies.items() <= reference.items()
    assert graph.loss == reading.kind() and graph.learned is not None
    read_by_proxies.clear()
    compare_policies(
        shards, tmp_path / "compare", policies=["stratified", "proportional"], steps=2, num_seeds=2, reading=reading,
        batch_size=8, eval_samples=9, backend=HERE, progress=False,
    )  # fmt: skip
    assert len(read_by_proxies) > 10 and read_by_proxies.items() <= reference.items()
    read_by_proxies.clear()
    finder = loss_tagger(skills=2, trials=1, checkpoints=1, steps=2, reading=reading, fitting_samples=20)
    tags = taggers.tag_corpus(corpus_of(shards), finder, tmp_path / "tags", backend=HERE, progress=False)
    assert tags.manifest.num_tagged == 40 and read_by_proxies == reference
    read_by_proxies.clear()
    again = taggers.tag_corpus(corpus_of(shards), open_loss_tagger(tmp_path / "tags"), tmp_path / "again", backend=HERE)
    assert again.manifest.num_tagged == 40 and read_by_proxies == reference


@pytest.mark.parametrize("reduction", ["per_sample", "per_token"])
def test_held_out_ids_have_the_losses_of_their_blocks_and_of_their_texts(
    reduction: Reduction, shards: ShardSet, model: Path, tmp_path: Path
) -> None:
    """The rendered conversations as a corpus of ids and labels, with the same samples in train and in holdout."""
    reference = expected(shards, model, WAYS["chat template"], tmp_path / "T")
    rows = [
        {"id": f"{number}", "kind": "a", "ids": list(ids), "labels": row}
        for number, (ids, row) in enumerate(reference.items())
    ]
    (tmp_path / "ids.jsonl").write_bytes(lines(rows))
    network = GPT2LMHeadModel.from_pretrained(model).eval()
    mapping = FieldMapping(token_ids="ids", token_labels="labels", vocab_size=network.config.vocab_size)
    corpus = Corpus.open(tmp_path / "ids.jsonl", fields=mapping)
    tags = taggers.tag_corpus(corpus, taggers.metadata("kind"), tmp_path / "tags", backend=HERE)
    own = write_shards(corpus, tags, tmp_path / "shards", holdout=0.0, backend=HERE)
    of_ids = losses_per_skill(
        causal_lm_loss(network, None, max_tokens=WINDOW), own.train, max_samples=50, batch_size=4, reduction=reduction,
        prompt_field=ANSWER_SPANS,
    )["a"]  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    rendered = (
        rendered_chats({**shards.train}, tokenizer, messages="chat"),
        rendered_chats({**shards.holdout}, tokenizer, messages="chat"),
    )
    texts = {"a": [sample for split in rendered for part in split.values() for sample in part]}
    of_texts = losses_per_skill(
        causal_lm_loss(network, tokenizer, max_tokens=WINDOW, special_tokens=False), texts, max_samples=50, batch_size=4,
        reduction=reduction, prompt_field=ANSWER_SPANS,
    )["a"]  # fmt: skip
    kind = LossKind(reduction=reduction, prompt_field=ANSWER_SPANS)
    mixer = Mixer(
        own, stratified(), ledger=tmp_path / "run", round_draws=40, loss=kind, measured_on="training", step_draws=8
    )
    tokens = write_tokens(own, None, tmp_path / "U", backend=HERE)
    blocks = PackedTokens(mixer, tokens, block_tokens=WINDOW, separator=None, packing="one").batch(0, 40)
    with torch.inference_mode():
        logits = network(input_ids=torch.from_numpy(blocks.input_ids.astype(np.int64))).logits
    of_blocks = losses_from_batch(
        mixer, torch.from_numpy(blocks.skill.astype(np.int64)), torch.from_numpy(blocks.labels), logits=logits
    )["a"]
    assert of_ids.num_samples == of_texts.num_samples == of_blocks.num_samples == 40
    assert of_ids.num_tokens == of_texts.num_tokens == of_blocks.num_tokens
    # Batches of other lengths differ in the last bits.
    assert of_ids.mean == pytest.approx(of_texts.mean, rel=1e-5) and of_ids.mean == pytest.approx(
        of_blocks.mean, rel=1e-5
    )
    assert of_ids.standard_error == pytest.approx(of_blocks.standard_error, rel=1e-4)


@pytest.mark.parametrize("verb", ["graph", "compare", "loss"])
def test_another_template_is_another_artefact(verb: str, shards: ShardSet, model: Path, tmp_path: Path) -> None:
    """The same command goes on or is finished, and a command with another template is refused."""
    (tmp_path / "own.jinja").write_text(PROGRAM)
    (tmp_path / "other.jinja").write_text(PROGRAM.replace("<|end|>", "<|END|>"))
    common = ("--proxy", model, "--window", WINDOW, "--steps", 2, "--workers", 1)
    command: dict[str, tuple[Any, ...]] = {
        "graph": ("graph", "learn", shards.root, "--batch-size", 8, "--out", tmp_path / "graph.json"),
        "compare": (
            "compare", shards.root, "--policy", "stratified", "--policy", "proportional", "--seeds", 2, "--batch-size", 8, "--out",
            tmp_path / "compare",
        ),
        "loss": (
            "tag", "loss", shards.root.parent / "a.jsonl", "--messages", "chat", "--skills", 2, "--trials", 1, "--checkpoints", 1,
            "--fitting-samples", 20, "--out", tmp_path / "tags",
        ),
    }  # fmt: skip
    works(*command[verb], *common, "--chat-template", "tokenizer")
    works(*command[verb], *common, "--chat-template", tmp_path / "own.jinja")  # the same template from a file
    for options in ((), ("--chat-template", tmp_path / "other.jinja")):
        assert "chat_template: " in fails(*command[verb], *common, *options)


def test_a_small_model_reads_the_bytes_of_a_rendered_conversation(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(PROGRAM)
    reading = ReadingChoice("tiny", WINDOW, chat_template=str(tmp_path / "own.jinja"))
    rule = reading.rule("chat", "the corpus")
    text, answers = rule.read("", {"chat": messages_of(2)})
    batch = reading.reading([]).encode([text], [answers])
    learned = bytes(batch.targets[0][batch.targets[0] >= 0].tolist()).decode()
    turns = [turn["content"] for turn in messages_of(2) if turn["role"] == "assistant"]
    assert learned == "".join(f"{turn}<|end|>\n" for turn in turns)
    works(
        "graph", "learn", shards.root, "--chat-template", tmp_path / "own.jinja", "--steps", 2, "--warmup", 1, "--batch-size", 8, "--workers",
        1, "--out", tmp_path / "graph.json",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- bad input


Entry = Callable[[ShardSet, Path, Path, Way], Any]


def by_tokens(shards: ShardSet, model: Path, out: Path, way: Way) -> None:
    write_tokens(shards, model, out / "T", backend=HERE, **way.tokens)


def by_collator(shards: ShardSet, model: Path, out: Path, way: Way) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    template = way.reading.get("chat_template", "tokenizer")
    if template != "tokenizer":
        tokenizer.chat_template = Path(template).read_text()
    collate = causal_lm_collator(tokenizer, max_tokens=WINDOW, **way.collator)
    for part in (*shards.train.values(), *shards.holdout.values()):
        collate([{"text": sample.text, "meta": sample.meta} for sample in part])


def by_losses(shards: ShardSet, model: Path, out: Path, way: Way) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    template = way.reading.get("chat_template")
    if template not in (None, "tokenizer"):
        tokenizer.chat_template = Path(template).read_text()
    kind = LossKind(
        answer_after=way.reading.get("answer_after"),
        prompt_field=ANSWER_SPANS if template is not None else way.reading.get("prompt_field"),
    )
    for split in (shards.train, shards.holdout):
        losses_per_skill(
            lambda texts, answers: ([1.0] * len(texts), [1] * len(texts)),
            split if template is None else rendered_chats(split, tokenizer, messages="chat"),
            max_samples=50,
            batch_size=4,
            answer_after=kind.answer_after,
            prompt_field=kind.prompt_field,
        )


def by_graph(shards: ShardSet, model: Path, out: Path, way: Way) -> None:
    learn_graph(
        shards, out / "graph.json", method="linear", steps=20, rule=RULE, reading=ReadingChoice(str(model), WINDOW, **way.reading),
        backend=HERE, progress=False,
    )  # fmt: skip


def by_comparison(shards: ShardSet, model: Path, out: Path, way: Way) -> None:
    compare_policies(
        shards, out / "compare", policies=["stratified", "proportional"], steps=20, num_seeds=2, backend=HERE, progress=False,
        reading=ReadingChoice(str(model), WINDOW, **way.reading),
    )  # fmt: skip


def by_loss_tagger(shards: ShardSet, model: Path, out: Path, way: Way) -> None:
    finder = loss_tagger(
        skills=2, trials=1, checkpoints=1, steps=2, reading=ReadingChoice(str(model), WINDOW, **way.reading), fitting_samples=9
    )  # fmt: skip
    taggers.tag_corpus(corpus_of(shards), finder, out / "tags", backend=HERE, progress=False)


ENTRIES: dict[str, Entry] = {
    "tokens": by_tokens,
    "collator": by_collator,
    "losses": by_losses,
    "graph": by_graph,
    "comparison": by_comparison,
    "loss tagger": by_loss_tagger,
}
entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))


def refused(entry: Entry, sentence: str, shards: ShardSet, model: Path, out: Path, way: Way) -> None:
    with pytest.raises((SkillshardError, RuntimeError), match=sentence) as raised:
        entry(shards, model, out, way)
    assert "\n" not in str(raised.value)


def with_template(program: str, folder: Path) -> Way:
    (folder / "own.jinja").write_text(program)
    place = {"chat_template": str(folder / "own.jinja")}
    return Way(place, place, {"messages": "chat"}, ())


@entries
@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("{{ raise_exception('no such role') }}", r"the chat template raises TemplateError on \d of the messages: no such role\. Mend"),
        ("{{ messages[-1].content }}", r"the chat template writes message \d of \d in another way once later messages follow"),
    ],
    ids=["raises", "hides the turns"],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_a_sentence_everywhere(
    entry: Entry, program: str, sentence: str, shards: ShardSet, model: Path, tmp_path: Path
) -> None:
    refused(entry, sentence, shards, model, tmp_path, with_template(program, tmp_path))


@entries
def test_a_tokenizer_without_a_template_is_a_sentence_everywhere(
    entry: Entry, shards: ShardSet, model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    GPT2LMHeadModel.from_pretrained(model).save_pretrained(bare)
    refused(
        entry, "has no chat template, in neither chat_template.jinja nor", shards, bare, tmp_path, WAYS["chat template"]
    )


@entries
def test_a_sample_without_a_turn_of_the_assistant_is_a_sentence_everywhere(
    entry: Entry, shards: ShardSet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tagging sets such samples aside. Shards of another program, or with changed metadata, may have them."""
    monkeypatch.setattr("skillshard.corpus.chat.ANSWERING_ROLE", "expert")
    sentence = r"the conversation of \d messages has no turn of the expert, so nothing would be learned\. Leave"
    refused(entry, sentence, shards, model, tmp_path, WAYS["chat template"])


def odd_shards(folder: Path, value: Any) -> ShardSet:
    """Write texts of which the last has another value of the field "chars". None: the field is missing."""
    folder.mkdir()
    rows: list[dict[str, Any]] = [
        {"id": f"q{number}", "kind": "ab"[number % 2], "text": f"{number} + 1 = {number + 1}", "chars": 4}
        for number in range(12)
    ]
    rows += [{"id": "odd", "kind": "a", "text": "2 = 2", **({} if value is None else {"chars": value})}]
    (folder / "a.jsonl").write_bytes(lines(rows))
    corpus = Corpus.open(folder / "a.jsonl")
    tags = taggers.tag_corpus(corpus, taggers.metadata("kind"), folder / "tags", backend=HERE)
    return write_shards(corpus, tags, folder / "shards", holdout=0.4, backend=HERE)


@entries
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "its metadata field 'chars' is missing, expected the number of characters of the prompt, from 0 to 4, or"),
        (99, "its metadata field 'chars' is 99, expected the number of characters of the prompt, from 0 to 4, or"),
        ([[2, 99]], r"its metadata field 'chars' is \[\[2, 99\]\], expected the number of characters of the prompt, from 0 to 4, or"),
    ],
    ids=["missing", "longer than the text", "spans beyond the text"],
)  # fmt: skip
def test_a_mask_that_does_not_fit_its_text_is_a_sentence_everywhere(
    entry: Entry, value: Any, sentence: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Way({"prompt_field": "chars"}, {"prompt_field": "chars"}, {"prompt_field": "chars"}, ())
    shards = odd_shards(tmp_path / "corpus", value)
    monkeypatch.setattr(
        "tests.unit.test_one_reading.corpus_of", lambda shards: Corpus.open(shards.root.parent / "a.jsonl")
    )
    refused(entry, sentence, shards, model, tmp_path, way)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"answer_after": "="}, "a chat template writes special tokens and the assistant's turns itself: leave out `answer_after`"),
        ({"prompt_field": "chars"}, "leave out `prompt_field`, or leave out `chat_template`"),
        ({"proxy": "tiny"}, "`chat_template='tokenizer'` is the template of a tokenizer, and `proxy='tiny'` reads bytes: give the file"),
        ({"proxy": "tiny", "chat_template": "missing.jinja"}, "missing.jinja is not there: give a file with a chat template"),
    ],
)  # fmt: skip
def test_choices_that_do_not_go_together_are_refused(arguments: dict[str, Any], sentence: str, model: Path) -> None:
    with pytest.raises(SkillshardError, match=re.escape(sentence)):
        ReadingChoice(**{"proxy": str(model), "chat_template": "tokenizer", **arguments})


@pytest.mark.parametrize("entry", [by_graph, by_comparison, by_loss_tagger], ids=["graph", "comparison", "loss tagger"])
def test_samples_that_are_no_conversations_are_refused(
    entry: Entry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = odd_shards(tmp_path / "corpus", 1)
    monkeypatch.setattr(
        "tests.unit.test_one_reading.corpus_of", lambda shards: Corpus.open(shards.root.parent / "a.jsonl")
    )
    sentence = (
        "has no conversations for a chat template: tag and shard the corpus with `messages`, the field of the messages"
    )
    refused(entry, sentence, shards, model, tmp_path, WAYS["chat template"])


def test_the_commands_say_the_option(shards: ShardSet, model: Path, tmp_path: Path) -> None:
    for option in (("--answer-after", "="), ("--prompt-field", "chars")):
        sentence = fails(
            "graph", "learn", shards.root, "--proxy", model, "--chat-template", "tokenizer", *option, "--steps", 2, "--out", tmp_path / "g.json"
        )  # fmt: skip
        assert f"leave out {option[0]}, or leave out --chat-template" in sentence
