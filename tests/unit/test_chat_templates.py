"""Conversations are rendered by the chat template of a tokenizer, and the assistant's turns are the answers, with one result everywhere."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from skillshard import taggers
from skillshard.corpus import ANSWER_SPANS, Corpus, FieldMapping
from skillshard.corpus.chat import CONFIG, TEMPLATE, ChatTemplate
from skillshard.errors import ObservationError, TokensError
from skillshard.evaluation import losses_per_skill
from skillshard.hf import causal_lm_collator, rendered_chats
from skillshard.loss import LossKind
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.packing import PackedTokens
from skillshard.policies import stratified
from skillshard.proxy.pretrained import read_tokens
from skillshard.shards.read import ShardSet
from skillshard.shards.token_manifest import TokensManifest4
from skillshard.shards.token_set import TokenSet
from skillshard.shards.tokens import write_tokens
from skillshard.shards.write import write_shards
from tests.commands import fails, works
from tests.conftest import HERE, lines, tree
from tests.tokenizers_trained import byte_tokenizer

PROGRAM = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Marks of transformers around the assistant's turns, which its own mask of answers needs.
MARKED = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}<|assistant|>{% generation %}{{ message.content }}<|end|>\n"
    "{% endgeneration %}{% else %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


def messages_of(number: int) -> list[dict[str, Any]]:
    turns = [{"role": "system", "content": "Add."}] * (number % 2)
    for turn in range(1 + number % 3):
        turns += [
            {"role": "user", "content": f"{number} + {turn}?"},
            {"role": "assistant", "content": f"{number + turn}, é{'x' * number}"},
        ]
    return turns


def in_the_other_style(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    trained = byte_tokenizer(["Add. 1 + 1? 2, x"])
    trained.add_special_tokens(list(SPECIAL))
    return trained


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tokenizer of a chat model as transformers writes it."""
    place = tmp_path_factory.mktemp("tokenizer") / "model"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", chat_template=PROGRAM).save_pretrained(place)
    return place


def sharded(folder: Path, conversations: list[list[Any]], *, drop: str | None = None) -> ShardSet:
    folder.mkdir(parents=True)
    rows = [{"id": f"q{number}", "kind": "ab"[number % 2], "chat": chat} for number, chat in enumerate(conversations)]
    (folder / "a.jsonl").write_bytes(lines(rows))
    corpus = Corpus.open(folder / "a.jsonl", fields=FieldMapping(messages="chat", drop=() if drop is None else drop))
    tags = taggers.tag_corpus(corpus, taggers.metadata("kind"), folder / "tags", backend=HERE)
    return write_shards(corpus, tags, folder / "shards", holdout=0.1, backend=HERE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Write 60 conversations of 1 to 3 answers, a half of them in the style of ShareGPT or as strings."""
    chats: list[list[Any]] = [messages_of(number) for number in range(60)]
    chats[::4] = [[message["content"] for message in messages] for messages in chats[::4]]  # without a system message
    chats[2::4] = map(in_the_other_style, chats[2::4])
    return sharded(tmp_path_factory.mktemp("chats") / "corpus", chats)


@pytest.fixture(scope="module")
def tokens(shards: ShardSet, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    out = tmp_path_factory.mktemp("tokens") / "T"
    return write_tokens(shards, folder, out, chat_template="tokenizer", backend=HERE)


def kept(tokens: TokenSet, shards: ShardSet) -> dict[str, tuple[list[int], list[int]]]:
    """Return the kept ids and the marks of answers of each sample."""
    by_id: dict[str, tuple[list[int], list[int]]] = {}
    for split in ("train", "holdout"):
        for skill, part in getattr(shards, split).items():
            own = getattr(tokens, split)[skill]
            for shard in range(len(part.shard_rows)):
                files, rows = own.ids(shard), np.arange(part.shard_rows[shard])
                ids, answers = np.frombuffer(files.ids.data, np.uint16), np.frombuffer(files.answers.data, np.uint8)
                for row, start, num in zip(
                    rows.tolist(), own.starts(shard, rows).tolist(), own.rows(shard).tolist(), strict=True
                ):
                    first = start
                    identity = part.open_shard(shard).sample(row).id
                    by_id[identity] = ids[first : first + num].tolist(), answers[first : first + num].tolist()
    return by_id


def test_kept_ids_and_answers_are_those_of_transformers(
    tokens: TokenSet, shards: ShardSet, tokenizer: Tokenizer
) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", chat_template=MARKED)
    for identity, (ids, answers) in kept(tokens, shards).items():
        expected = theirs.apply_chat_template(
            messages_of(int(identity[1:])), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert (ids, answers) == (expected["input_ids"], expected["assistant_masks"])
    assert len(kept(tokens, shards)) == 60 and tokens.verify() == []


def test_the_record_names_the_template_and_the_field(tokens: TokenSet, shards: ShardSet, folder: Path) -> None:
    manifest = tokens.manifest
    assert isinstance(manifest, TokensManifest4) and manifest.chat.messages == "chat" == shards.messages_field
    assert tokens.chat_template == ChatTemplate(template=PROGRAM, special_tokens={"bos_token": "<s>"})
    assert tokens.chat_template == ChatTemplate.read(folder / "tokenizer.json", "tokenizer")
    assert manifest.chat.template == tokens.chat_template.digest == manifest.made_from["arguments"]["chat_template"]
    assert tokens.answers == LossKind(prompt_field=ANSWER_SPANS)


def test_packed_blocks_learn_the_turns_of_the_assistant(tokens: TokenSet, shards: ShardSet, tmp_path: Path) -> None:
    mixer = Mixer(
        shards, stratified(), ledger=tmp_path, round_draws=20, loss=LossKind(prompt_field=ANSWER_SPANS), fields=("id",)
    )
    batch = PackedTokens(mixer, tokens, block_tokens=64, separator=None).batch(0, 6)
    own = kept(tokens, shards)
    ids, learned = (
        list(np.concatenate(columns)) for columns in zip(*(own[identity] for identity in mixer.ids(0, 40)), strict=True)
    )
    assert batch.input_ids.reshape(-1).tolist() == ids[: 6 * 64]
    expected = [token if mark else -100 for token, mark in zip(ids, learned, strict=True)][: 6 * 64]
    labels = batch.labels.reshape(-1).tolist()
    assert labels == expected and -100 in labels


def test_the_command_writes_the_same_tokens_and_a_file_may_hold_the_template(
    tokens: TokenSet, shards: ShardSet, folder: Path, tmp_path: Path
) -> None:
    shown = works(
        "tokens", shards.root, "--tokenizer", folder, "--chat-template", "tokenizer", "--out", tmp_path / "T", "--workers", 1
    )  # fmt: skip
    assert "messages 'chat' in a chat template, learned: the turns of the assistant; " in shown
    assert tree(tmp_path / "T") == tree(tokens.root)
    (tmp_path / "own.jinja").write_text(PROGRAM)
    works(
        "tokens", shards.root, "--tokenizer", folder / "tokenizer.json", "--chat-template", tmp_path / "own.jinja", "--out", tmp_path / "U",
        "--workers", 1,
    )  # fmt: skip
    assert tree(tmp_path / "U") == tree(tokens.root)
    counts = write_tokens(shards, folder, tmp_path / "C", chat_template="tokenizer", counts_only=True, backend=HERE)
    assert counts.manifest.num_train == tokens.manifest.num_train and counts.answers is None


def test_an_edited_template_is_found(tokens: TokenSet, shards: ShardSet, folder: Path, tmp_path: Path) -> None:
    own = write_tokens(shards, folder, tmp_path / "T", chat_template="tokenizer", backend=HERE)
    place = tmp_path / "T" / "chat_template.json"
    place.write_bytes(place.read_bytes().replace(b"<|end|>", b"<|END|>"))
    (fault,) = TokenSet.open(own.root).verify()
    assert "not the template of these tokens" in fault
    place.unlink()
    (fault,) = TokenSet.open(own.root).verify()
    assert "chat_template.json is missing" in fault


@pytest.mark.parametrize("place", ["config", "several", "file"])
def test_a_template_is_read_from_every_file_of_save_pretrained(place: str, folder: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": None, "extra": 1}
    if place == "file":
        (tmp_path / TEMPLATE).write_text(PROGRAM)
    else:
        several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": PROGRAM}]
        config["chat_template"] = PROGRAM if place == "config" else several
    (tmp_path / CONFIG).write_text(json.dumps(config))
    read = ChatTemplate.read(tmp_path, "tokenizer")
    assert read == ChatTemplate(template=PROGRAM, special_tokens={"bos_token": "<s>"})
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    assert ChatTemplate.of(theirs) == read
    text, spans = read.render(messages_of(2))
    assert text == theirs.apply_chat_template(messages_of(2), tokenize=False)
    assert [text[start:stop] for start, stop in spans] == [
        f"{turn['content']}<|end|>\n" for turn in messages_of(2) if turn["role"] == "assistant"
    ]


def test_collator_and_measured_losses_read_the_same_tokens_as_the_kept_ids(
    tokens: TokenSet, shards: ShardSet, folder: Path
) -> None:
    own, theirs = kept(tokens, shards), PreTrainedTokenizerFast.from_pretrained(folder)
    theirs.pad_token = "<|end|>"
    collate = causal_lm_collator(theirs, max_tokens=1000, messages="meta.chat")
    held_out = {skill: list(part) for skill, part in shards.holdout.items()}
    for part in held_out.values():
        batch = collate([{"text": sample.text, "meta": sample.meta} for sample in part])
        for sample, ids, mask, labels in zip(
            part, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            assert ids[mask == 1].tolist() == own[sample.id][0]
            expected = [token if mark else -100 for token, mark in zip(*own[sample.id], strict=True)]
            assert labels[mask == 1].tolist() == expected
    read: dict[str, tuple[list[int], list[bool]]] = {}

    def nats_and_tokens(texts: list[str], answers: list[list[tuple[int, int]]]) -> tuple[list[float], list[int]]:
        rows = read_tokens(theirs, texts, max_tokens=1000, answers=answers, special_tokens=False)
        read.update({text: (row.ids.tolist(), row.predicted.tolist()) for text, row in zip(texts, rows, strict=True)})
        return [1.0 for _ in rows], [int(row.predicted.sum()) for row in rows]

    chats = rendered_chats(shards.holdout, theirs, messages="chat")
    for _ in range(2):  # a second evaluation reads the samples again
        losses = losses_per_skill(nats_and_tokens, chats, max_samples=50, batch_size=4, prompt_field=ANSWER_SPANS)
    assert losses.kind == LossKind(prompt_field=ANSWER_SPANS) == tokens.answers
    assert sorted(read.values()) == sorted(
        (own[sample.id][0], [mark == 1 for mark in own[sample.id][1]]) for part in held_out.values() for sample in part
    )
    with pytest.raises(TokensError, match="the chat template marks the answers of `messages`: leave answer_after"):
        causal_lm_collator(theirs, max_tokens=8, messages="chat", answer_after="x")
    theirs.chat_template = None
    with pytest.raises(TokensError, match="the tokenizer has no chat template"):
        causal_lm_collator(theirs, max_tokens=8, messages="chat")


# --------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("messages", "program", "sentence"),
    [
        (messages_of(0)[:1], PROGRAM, "the conversation of 1 messages has no turn of the assistant, so nothing would be learned."),
        ("2", PROGRAM, "the conversation must be an array of messages, got a string."),
        ([*messages_of(0), {"content": "x"}], PROGRAM, "message 2 of the conversation has no role."),
        (messages_of(0), "{{ raise_exception('no system message') }}", "the chat template raises TemplateError on 2 of the messages: no system message. Mend the"),
        (messages_of(0), "{{ messages[7].content }}", "the chat template raises UndefinedError on 2 of the messages: "),
        (messages_of(0), "{% if %}", "the chat template raises TemplateSyntaxError on 2 of the messages: "),
        (messages_of(0), "{{ messages.pop() }}", "the chat template raises SecurityError on 2 of the messages: "),
        (messages_of(0), "{{ messages[0].content + 1 }}", "the chat template raises TypeError on 2 of the messages: "),
        (messages_of(0), "no turn", "the chat template writes message 1 of 2 in another way once later messages follow, or not after its own prompt"),
        (messages_of(1) * 2, "{% for m in messages %}{{ m.content if not loop.last else 'LAST ' + m.content }}{% endfor %}", "writes message 2 of 10 in another way"),
    ],
)  # fmt: skip
def test_a_bad_conversation_or_template_is_a_sentence(messages: Any, program: str, sentence: str) -> None:
    with pytest.raises(ObservationError, match=re.escape(sentence)):
        ChatTemplate(template=program, special_tokens={"bos_token": "<s>"}).render(messages)


def test_the_error_of_a_sample_names_the_sample(tmp_path: Path, folder: Path) -> None:
    shards = sharded(tmp_path / "corpus", [messages_of(number) for number in range(8)])
    (tmp_path / "bad.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PROGRAM
    )
    sentence = fails(
        "tokens",
        shards.root,
        "--tokenizer",
        folder,
        "--chat-template",
        tmp_path / "bad.jinja",
        "--out",
        tmp_path / "T",
        "--workers",
        1,
    )
    assert re.search(
        r"000000\.tar: sample 'q\d': the chat template raises TemplateError on \d of the messages: no system\.",
        sentence,
    )


def test_tokenizers_and_shards_without_chats_are_refused(
    shards: ShardSet, folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(bare)

    def refused(sentence: str, tokenizer: Any = folder, shards: ShardSet = shards, **arguments: Any) -> None:
        with pytest.raises(TokensError, match=re.escape(sentence)):
            write_tokens(shards, tokenizer, tmp_path / "T", **{"chat_template": "tokenizer", **arguments}, backend=HERE)

    refused(
        "has no chat template, in neither chat_template.jinja nor tokenizer_config.json: give the tokenizer of a chat model",
        bare,
    )
    refused(
        "is not there: give a file with a chat template, or the word 'tokenizer'",
        chat_template=tmp_path / "missing.jinja",
    )
    refused("leave out `special_tokens`", special_tokens=True)
    refused("leave out `prompt_field`", prompt_field=ANSWER_SPANS)
    refused("leave out `answer_after`", answer_after="x")
    refused("give the path of a tokenizer.json", tokenizer)
    (tmp_path / "empty.jinja").write_text(" \n")
    refused("empty.jinja is empty: expected a chat template.", chat_template=tmp_path / "empty.jinja")
    (tmp_path / "bytes.jinja").write_bytes(b"\xff")
    refused("bytes.jinja is not text", chat_template=tmp_path / "bytes.jinja")
    (tmp_path / "dated.jinja").write_text("{{ strftime_now('%d') }}" + PROGRAM)
    refused("writes the present date (strftime_now)", chat_template=tmp_path / "dated.jinja")
    (bare / CONFIG).write_text("{")
    refused("tokenizer_config.json is no JSON", bare)
    corpus = tmp_path / "texts.jsonl"
    corpus.write_bytes(lines([{"id": str(number), "text": f"text {number}", "kind": "a"} for number in range(9)]))
    opened = Corpus.open(corpus)
    tags = taggers.tag_corpus(opened, taggers.metadata("kind"), tmp_path / "tags", backend=HERE)
    texts = write_shards(opened, tags, tmp_path / "texts", backend=HERE)
    refused("has no conversations for a chat template: tag and shard the corpus with `messages`", shards=texts)
    assert not os.path.exists(tmp_path / "T")


def test_shards_without_their_messages_are_refused(tmp_path: Path, folder: Path) -> None:
    shards = sharded(tmp_path / "corpus", [messages_of(number) for number in range(8)], drop="chat")
    with pytest.raises(ObservationError, match="has no field 'chat' with the messages"):
        write_tokens(shards, folder, tmp_path / "T", chat_template="tokenizer", backend=HERE)
