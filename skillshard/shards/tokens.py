"""Write token sets: tokenize every sample of a shard set once, and keep the ids and the counts (`token_set.py` has the layout).

One task tokenizes one shard. The ids go to the disk as they come, so a task takes a few megabytes whatever the size of the shard.
"""

import itertools
import math
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Integer

from skillshard import artefact, canonical, places, storage
from skillshard.answers import AnswerRule
from skillshard.corpus import ANSWER_SPANS
from skillshard.corpus.chat import Chat, ChatTemplate, chat_of, refuse_with_template
from skillshard.corpus.template import Span
from skillshard.corpus.token_ids import MAX_IDS, ids_of_text, offsets_of_text
from skillshard.errors import ObservationError, ShardError, TokensError
from skillshard.execution import Backend, OnStage, Record, keyed, run, shown
from skillshard.loss import LossKind, answer_tokens
from skillshard.opened import refuse_unopened
from skillshard.printable import counted, size_in_words, time_in_words
from skillshard.progress import advance
from skillshard.shards.manifest import SPLITS, gathered
from skillshard.shards.open_shard import OpenShard
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.token_manifest import (
    CHAT_TEMPLATE,
    MANIFEST,
    TOKENIZER,
    AnyTokens,
    KeptAnswers,
    KeptChat,
    KeptIds,
    TokenColumns,
    TokensManifest,
    TokensManifest3,
    TokensManifest4,
    TokensSkill,
    file_name,
    id_dtype,
    id_type_of,
)
from skillshard.shards.token_set import TokenSet, checks_of, refuse_beyond
from skillshard.shards.tokenizers import TEXTS_AT_ONCE, encode, encode_with_answers, num_ids, open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

STAGES = ("count",)
"""The stage of tasks."""
# Enough texts for a mean within a few percent. A tokenizer needs less than a tenth of a second for them.
ESTIMATE_SKILLS, ESTIMATE_TEXTS = 8, 64
"""Largest number of parts (a skill in train or in holdout), and number of texts of each part, that are tokenized for the estimate."""


@dataclass(frozen=True)
class TokensEstimate:
    """Size and time of a token set, estimated from a few samples.

    Attributes:
        num_tokens: Number of tokens of all samples.
        num_bytes: Size of the token set in bytes.
        seconds: Time of the tokenizer on idle processors.
        num_processes: Number of processes that tokenize at the same time.
    """

    num_tokens: int
    num_bytes: int
    seconds: float
    num_processes: int

    @property
    def sentence(self) -> str:
        """Return the estimate in words."""
        return (
            f"about {self.num_tokens:,} tokens, {size_in_words(self.num_bytes)}: about {time_in_words(self.seconds)} in "
            f"{counted(self.num_processes, 'process', 'processes')}"
        )


def write_tokens(
    shards: ShardSet,
    tokenizer: "str | os.PathLike[str] | Tokenizer | PreTrainedTokenizerFast | None",
    out: "str | os.PathLike[str]",
    *,
    vocab_size: int | None = None,
    special_tokens: bool = False,
    counts_only: bool = False,
    answer_after: str | None = None,
    prompt_field: str | None = None,
    chat_template: "str | os.PathLike[str] | None" = None,
    backend: Backend = Backend(),
    on_stage: OnStage | None = None,
    on_estimate: Callable[[str], None] = lambda sentence: None,
    progress: bool = True,
) -> TokenSet:
    """Tokenize every sample, and keep the ids and the numbers of tokens.

    An interrupted run is continued. A finished token set is only opened.

    Args:
        shards: Shard set, local or remote.
        tokenizer: Path or URI of a tokenizer.json, a `tokenizers.Tokenizer`, or a fast tokenizer of transformers. None: the corpus was tokenized already (`token_ids` of
            `FieldMapping`), and its ids are kept. If the corpus has labels, the mask of answers is kept too.
        out: Directory for the tokens, local or in a store.
        vocab_size: Number of ids of the vocabulary, without a tokenizer. None: the number that the corpus was tagged with.
        special_tokens: Whether the tokenizer adds its special tokens, such as BOS and EOS, to each sample.
        counts_only: Whether the ids are left out. Counts are enough for weights in tokens, and not for packed blocks.
        answer_after: Text before the answer, as in `LossKind`. The prompt before the text is masked, so that only answers are learned.
        prompt_field: Metadata field with the length of the prompt or with the spans of the answers, as in `LossKind`.
        chat_template: Chat template that renders the conversations of shards that were tagged with `messages`: "tokenizer" for the template beside
            tokenizer.json, or a path or URI of a file. The assistant's turns are then the answers. None: the texts of the samples are tokenized.
        backend: Local pool of processes or Ray. The bytes are the same.
        on_stage: Function that is called before a stage with the name and the number of its tasks. The returned function is called
            for each finished task. With None, progress bars appear in a terminal or a notebook.
        on_estimate: Function that is called before the work with a sentence about the size and the time.
        progress: Whether progress bars are shown.

    Returns:
        The finished token set, opened.

    Raises:
        TokensError: The tokenizer or the chat template cannot be used, a mask is asked for without ids, the shards have texts and no tokenizer
            is given, or a token id is not below the size of the vocabulary.
        ObservationError: A sample has no answer, a conversation cannot be rendered, or both `answer_after` and `prompt_field` are given.
        ShardError: `shards` is no opened shard set, or a shard differs from its entry in the manifest.
        StorageError: `out` holds something else.
    """
    refuse_unopened(shards, ShardSet, "shards", "shard set", ShardError)
    form = shards.token_form
    if tokenizer is None:
        vocab_size = _vocabulary(shards, vocab_size, counts_only=counts_only)
        options = {"special_tokens": special_tokens, "answer_after": answer_after, "prompt_field": prompt_field}
        _refuse_for_ids({**options, "chat_template": chat_template})
        prompt_field = ANSWER_SPANS if form is not None and form.marks_answers and not counts_only else None
    elif form is not None:
        raise TokensError(
            f"the samples of {places.public(shards.root)} are token ids, and a tokenizer reads texts: leave `tokenizer` out, or shard the texts."
        )
    elif vocab_size is not None:
        raise TokensError(
            "`vocab_size` is the size of a vocabulary without a tokenizer: leave out `vocab_size` or `tokenizer`."
        )
    kind = LossKind(answer_after=answer_after, prompt_field=prompt_field)
    if counts_only and kind.masks:
        raise TokensError(
            "a mask of answers belongs to kept ids: leave out counts_only, or answer_after and prompt_field."
        )
    opened = None if tokenizer is None else open_tokenizer(tokenizer)
    chat = None
    if chat_template is not None and tokenizer is not None:
        chat = _chat_of(shards, tokenizer, chat_template, kind, special_tokens)
    if chat is not None and not counts_only:
        # The answers of a conversation are the assistant's turns, as in the plain rendering that graphs and loss tags read.
        kind = LossKind(prompt_field=ANSWER_SPANS)
    content = None if opened is None else opened.to_str().encode()
    num_kept_ids = vocab_size if opened is None else num_ids(opened)
    made_from = {
        "command": "tokens",
        "arguments": {
            "special_tokens": special_tokens,
            "counts_only": counts_only,
            "answer_after": answer_after,
            "prompt_field": prompt_field,
            # Sets with a tokenizer, and sets without a chat template, keep the bytes of their manifests.
            **({} if chat is None else {"chat_template": chat.template.digest}),
            **({"vocab_size": vocab_size} if opened is None else {}),
        },
        "shards": shards.digest,
        "tokenizer": None if content is None else canonical.digest(content),
    }

    def work(unfinished: artefact.Work) -> None:
        if backend.array_part is None:
            on_estimate(
                estimate_tokens(
                    shards, opened, vocab_size=vocab_size, counts_only=counts_only, masks=kind.masks, backend=backend
                ).sentence
            )
        ids = (
            None
            if counts_only or num_kept_ids is None
            else KeptIds(type=id_type_of(num_kept_ids), num_ids=num_kept_ids)
        )
        _write(shards, content, unfinished, made_from, ids, kind, chat, backend, stages)

    with shown(on_stage, progress) as stages:
        artefact.make(out, MANIFEST, made_from, work, keep_unfinished_files=backend.array_part is not None)
    return TokenSet.open(out)


def _chat_of(
    shards: ShardSet,
    tokenizer: "str | os.PathLike[str] | Tokenizer | PreTrainedTokenizerFast",
    chat_template: "str | os.PathLike[str]",
    kind: LossKind,
    special_tokens: bool,
) -> Chat:
    """Return the way to render the conversations of shards.

    Raises:
        TokensError: The shards have no conversations, the tokenizer has no template, or another argument does not fit a chat template.
    """
    refuse_with_template(special_tokens=special_tokens, answer_after=kind.answer_after, prompt_field=kind.prompt_field)
    if not isinstance(tokenizer, str | os.PathLike):
        raise TokensError(
            "with `chat_template`, give the path of a tokenizer.json: the special tokens of the template stand beside this file."
        )
    template = ChatTemplate.read(tokenizer, chat_template)
    return chat_of(template, shards.messages_field, places.public(shards.root))


def _vocabulary(shards: ShardSet, vocab_size: int | None, *, counts_only: bool) -> int | None:
    """Return the size of the vocabulary of token ids: the given size, or the size in the record of the shards.

    Raises:
        TokensError: The samples are texts, or no size is known and ids are kept.
    """
    if (form := shards.token_form) is None:
        raise TokensError(
            f"the samples of {places.public(shards.root)} are texts: give `tokenizer`. The ids of a corpus are kept where the corpus was tagged with "
            "`token_ids`, the field of the ids."
        )
    if vocab_size is not None and not 1 <= vocab_size <= MAX_IDS:
        raise TokensError(
            f"`vocab_size` is {vocab_size:,}: give the number of ids of the vocabulary, from 1 to {MAX_IDS:,}."
        )
    size = form.vocab_size if vocab_size is None else vocab_size
    if size is None and not counts_only:
        raise TokensError(
            f"the size of the vocabulary of {places.public(shards.root)} is not known, because the corpus was tagged without the size: give "
            "`vocab_size`, the number of ids of the tokenizer that made the ids."
        )
    return size


def _refuse_for_ids(given: Mapping[str, object]) -> None:
    """Raise TokensError for the first given argument, by its name. Only tokens made from texts take these arguments."""
    for name, value in given.items():
        if value:
            raise TokensError(
                f"`{name}` is for texts, and the ids of the corpus are kept as they are: leave `{name}` out. The labels of the corpus, which "
                "`token_labels` of the tagging names, mark the answers."
            )


def estimate_tokens(
    shards: ShardSet,
    tokenizer: "Tokenizer | None",
    *,
    vocab_size: int | None = None,
    counts_only: bool,
    masks: bool,
    backend: Backend,
) -> TokensEstimate:
    """Estimate the size and the time of a token set. Tokenize the first texts of a few skills, and scale up by bytes.

    Args:
        shards: Shard set. Of a remote shard set, the shards of a single skill are read.
        tokenizer: Tokenizer from `open_tokenizer`, or None for token ids.
        vocab_size: Number of ids of the vocabulary, for token ids that are kept.
        counts_only: Whether the ids are left out.
        masks: Whether a mask of answers is kept.
        backend: Place of the work.
    """
    num_kept_ids = vocab_size if tokenizer is None else num_ids(tokenizer)
    parts = [*shards.train.values(), *shards.holdout.values()]
    step = math.ceil(max(1, len(parts)) / (1 if shards.files.is_remote else ESTIMATE_SKILLS))
    seconds, num_bytes, num_tokens = 0.0, 0, 0
    for part in parts[::step]:
        opened = part.open_shard(0)
        texts = [opened.text(row) for row in range(min(int(part.shard_rows[0]), ESTIMATE_TEXTS))]
        started_s = time.process_time()
        name_of = _names_in(part, opened, 0)
        num_tokens += sum(map(len, _ids(tokenizer, texts, num_kept_ids, special_tokens=False, name_of=name_of)))
        seconds += time.process_time() - started_s
        num_bytes += sum(len(text.encode()) for text in texts)
    # Tokens and time follow the bytes of the texts. The first index of a skill gives the mean size of its texts.
    read = parts[::step] if shards.files.is_remote else parts
    sizes = [float(part.index(0)["text_bytes"].mean()) * len(part) for part in read]
    total = sum(map(len, parts))
    share = sum(sizes) / max(1, sum(map(len, read))) * total / max(1, num_bytes)
    all_tokens = round(num_tokens * share)
    num_shards = sum(len(part.shard_rows) for part in parts)
    has_ids = not counts_only and num_kept_ids is not None
    per_token = id_dtype(id_type_of(num_kept_ids)).itemsize + masks if has_ids and num_kept_ids is not None else 0
    processes = backend.processes(num_shards)
    return TokensEstimate(all_tokens, 4 * total + per_token * all_tokens, seconds * share / processes, processes)


def _write(
    shards: ShardSet,
    tokenizer: bytes | None,
    work: artefact.Work,
    made_from: dict[str, Any],
    ids: KeptIds | None,
    kind: LossKind,
    chat: Chat | None,
    backend: Backend,
    on_stage: OnStage,
) -> None:
    if tokenizer is not None:  # before the tasks, which read the tokenizer from this file
        storage.write_bytes(work.place(TOKENIZER), tokenizer)
    if chat is not None:
        storage.write_bytes(work.place(CHAT_TEMPLATE), chat.template.to_json())
    parts = list(_parts(shards))
    tasks = keyed(
        (
            {
                "shards": part,
                "tokenizer": None if tokenizer is None else work.place(TOKENIZER),
                "tokenizer_digest": made_from["tokenizer"],
                "special_tokens": made_from["arguments"]["special_tokens"],
                "ids": None if ids is None else ids.model_dump(),
                "kind": kind.model_dump(),
                "chat": chat,
                "out": work.place(),
            }
            for part in parts
        ),
        about=(part.name(0) for part in parts),
    )
    records = run(
        tokenize_shard,
        tasks,
        backend=backend,
        records=work.records("count"),
        on_done=on_stage("tokenizing", len(tasks)),
    )
    work.finish(_manifest(shards, made_from, ids, kind, chat, parts, records).model_dump(by_alias=True))


def _parts(shards: ShardSet) -> Iterator[SkillShards]:
    """Yield each shard of each skill by itself, so that the arguments of a task stay small."""
    for split in SPLITS:
        for skill_shards in (shards.train if split == "train" else shards.holdout).values():
            columns = skill_shards.columns.model_dump()
            for shard in range(len(skill_shards.shard_rows)):
                own_columns = type(skill_shards.columns)(**{name: [values[shard]] for name, values in columns.items()})
                yield replace(skill_shards, columns=own_columns)


def tokenize_shard(
    shards: SkillShards,
    tokenizer: str | None,
    tokenizer_digest: str | None,
    special_tokens: bool,
    ids: dict[str, Any] | None,
    kind: dict[str, Any],
    chat: Chat | None,
    out: str,
) -> Record:
    """Tokenize the samples of one shard, and write its files.

    Args:
        shards: Shards of a skill, with a single shard.
        tokenizer: File of the tokenizer, or None for token ids.
        tokenizer_digest: Digest of the file, or None. Another tokenizer makes another task, so records are not reused for it.
        special_tokens: Whether the tokenizer adds its special tokens.
        ids: Form of the ids (`KeptIds`), or None for counts alone.
        kind: Kind of loss (`LossKind`), which determines the mask of answers.
        chat: Way to render the conversations of the samples, or None for their texts.
        out: Directory of the token set.
    """
    opened = None if tokenizer is None or tokenizer_digest is None else _kept_tokenizer(tokenizer, tokenizer_digest)
    kept_ids = None if ids is None else KeptIds(**ids)
    rule = AnswerRule(LossKind(**kind), chat)
    shard = _Shard(shards, opened, special_tokens, rule, None if kept_ids is None else kept_ids.num_ids)
    counts = np.empty(shard.num_rows, "<u4")
    number = shards.columns.number[0]
    place: dict[str, str] = {
        name: places.join(out, file_name(shards.split, shards.folder, number, name))
        for name in ("tokens.npy", "ids.bin", "answers.bin", "checks.npy")
    }
    digests: dict[str, str | None] = {"ids_digest": None, "answers_digest": None, "checks_digest": None}
    with ExitStack() as stack:
        files: dict[str, tuple[Path, BinaryIO]] = {}
        kinds = () if kept_ids is None else ("ids.bin", "answers.bin") if rule.kind.masks else ("ids.bin",)
        for name in kinds:
            part = stack.enter_context(storage.writing(place[name]))
            files[name] = part, stack.enter_context(part.open("wb"))
        for start, encoded, answers in shard.encoded():
            counts[start : start + len(encoded)] = [len(row) for row in encoded]
            if kept_ids is not None:
                files["ids.bin"][1].write(shard.flat(encoded, kept_ids).tobytes())
            if answers is not None and kept_ids is not None:
                files["answers.bin"][1].write(answers.tobytes())
            advance(start + len(encoded), shard.num_rows)
        checks = []
        for name, (part, file) in files.items():
            assert kept_ids is not None
            # The place for a separator after the last sample: an id, and a mark that the separator is learned.
            last = np.zeros(1, id_dtype(kept_ids.type)) if name == "ids.bin" else np.ones(1, np.uint8)
            file.write(last.tobytes())
            file.close()
            with part.open("rb") as written, mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ) as data:
                digests[f"{name.removesuffix('.bin')}_digest"] = canonical.digest(data)
                checks.append(checks_of(data))
    if checks:
        storage.write_array(place["checks.npy"], np.concatenate(checks).astype("<u8"))
        digests["checks_digest"] = storage.file_digest(place["checks.npy"])
    storage.write_array(place["tokens.npy"], counts)
    return {
        "num_samples": shard.num_rows,
        "num_tokens": int(counts.sum(dtype=np.int64)),
        "digest": storage.file_digest(place["tokens.npy"]),
        **digests,
    }


def _names_in(shards: SkillShards, opened: OpenShard, start: int) -> Callable[[int], str]:
    """Return the function that names the text at an index of a batch of the first shard, which begins at row `start`."""
    return lambda index: f"{shards.name(0)}: sample {opened.sample(start + index).id!r}"


def _ids(
    tokenizer: "Tokenizer | None",
    texts: Sequence[str],
    num_kept_ids: int | None,
    *,
    special_tokens: bool,
    name_of: Callable[[int], str],
) -> list[list[int]]:
    """Return the token ids of each text: by a tokenizer, or the ids that the texts are.

    Args:
        tokenizer: Tokenizer, or None for texts of ids.
        texts: Texts to encode.
        num_kept_ids: Number of ids of the vocabulary, or None if no ids are kept.
        special_tokens: Whether the tokenizer adds its special tokens.
        name_of: Function that names the text with a given index in an error.

    Raises:
        TokensError: A text cannot be encoded, or a text of ids has an id beyond the vocabulary.
    """
    if tokenizer is not None:
        return encode(tokenizer, texts, special_tokens=special_tokens, name_of=name_of)
    encoded = [ids_of_text(text) for text in texts]
    for index, ids in enumerate(encoded):
        if num_kept_ids is not None and (largest := max(ids)) >= num_kept_ids:
            raise TokensError(
                f"{name_of(index)} has the token id {largest:,} at position {ids.index(largest):,}, but the ids of the vocabulary are below "
                f"{num_kept_ids:,}. Give a larger `vocab_size`, or tag the corpus with `vocab_size`, so that the tagging sets bad rows aside."
            )
    return encoded


@dataclass(frozen=True)
class _Shard:
    """The shard of a task with the way to tokenize its samples."""

    shards: SkillShards
    tokenizer: "Tokenizer | None"
    special_tokens: bool
    rule: AnswerRule
    num_kept_ids: int | None

    @property
    def num_rows(self) -> int:
        return int(self.shards.shard_rows[0])

    def encoded(self) -> Iterator[tuple[int, list[list[int]], Bool[np.ndarray, " token"] | None]]:
        """Yield the first row of a batch, the ids of each row, and the mask of answers of all tokens if prompts are masked."""
        opened = self.shards.open_shard(0)
        for start in range(0, self.num_rows, TEXTS_AT_ONCE):
            rows = range(start, min(start + TEXTS_AT_ONCE, self.num_rows))
            name_of = _names_in(self.shards, opened, start)
            # Counts of rendered conversations need the texts, and no mask.
            if self.rule.masks:
                read = [self._read(opened, row, name_of(row - start)) for row in rows]
                texts = [text for text, _ in read]
            else:
                texts = [opened.text(row) for row in rows]
            if self.rule.kind.masks:
                yield start, *self._masked(texts, [answers for _, answers in read], name_of)
            else:
                special = self.special_tokens
                yield (
                    start,
                    _ids(self.tokenizer, texts, self.num_kept_ids, special_tokens=special, name_of=name_of),
                    None,
                )

    def _read(self, opened: OpenShard, row: int, name: str) -> tuple[str, list[Span]]:
        """Return the text and the answers of a row. Raise ObservationError with the name of the sample if the sample has no answer."""
        # A sample of a mark is read without its metadata, which takes as long as the text.
        text, meta = opened.text(row), opened.sample(row).meta if self.rule.needs_meta else {}
        try:
            return self.rule.read(text, meta)
        except ObservationError as error:
            raise ObservationError(f"{name}: {error}") from error

    def _masked(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], name_of: Callable[[int], str]
    ) -> tuple[list[list[int]], Bool[np.ndarray, " token"]]:
        if self.tokenizer is None:
            ids = _ids(None, texts, self.num_kept_ids, special_tokens=False, name_of=name_of)
            masks = [answer_tokens(offsets_of_text(text), own) for text, own in zip(texts, spans, strict=True)]
        else:
            encoded = encode_with_answers(
                self.tokenizer, texts, spans, special_tokens=self.special_tokens, name_of=name_of
            )
            ids, masks = [own for own, _ in encoded], [mask for _, mask in encoded]
        return ids, np.concatenate([np.empty(0, bool), *masks])

    def flat(self, encoded: Sequence[Sequence[int]], ids: KeptIds) -> Integer[np.ndarray, " token"]:
        """Return the ids of some rows, one row after the other, in the type on disk."""
        total = sum(map(len, encoded))
        flat = np.fromiter(chain.from_iterable(encoded), np.uint32, total)
        # The type on disk follows from the tokenizer, so a larger id would be cut without a word.
        refuse_beyond(flat, ids.num_ids, self.shards.name(0))
        return flat.astype(id_dtype(ids.type))


@lru_cache(1)
def _kept_tokenizer(place: str, digest: str) -> "Tokenizer":
    """Return the tokenizer of a job, read once per process. The digest is the key, because a file can change."""
    return open_tokenizer(place)


def _manifest(
    shards: ShardSet,
    made_from: dict[str, Any],
    ids: KeptIds | None,
    kind: LossKind,
    chat: Chat | None,
    parts: Sequence[SkillShards],
    records: Sequence[Record],
) -> AnyTokens:
    columns: Mapping[tuple[str, str], dict[str, list[Any]]] = gathered(
        (
            ((part.skill, part.split), {"number": part.columns.number[0], **record})
            for part, record in zip(parts, records, strict=True)
        ),
        itertools.product((skill.name for skill in shards.manifest_skills), SPLITS),
        TokenColumns,
    )
    skills = [
        TokensSkill(
            name=skill.name,
            folder=skill.folder,
            num_train=sum(columns[skill.name, "train"]["num_tokens"]),
            num_holdout=sum(columns[skill.name, "holdout"]["num_tokens"]),
            train=TokenColumns(**columns[skill.name, "train"]),
            holdout=TokenColumns(**columns[skill.name, "holdout"]),
        )
        for skill in shards.manifest_skills
    ]
    answers = KeptAnswers(answer_after=kind.answer_after, prompt_field=kind.prompt_field) if kind.masks else None
    fields: dict[str, Any] = {
        "made_from": made_from,
        "shards": made_from["shards"],
        "tokenizer": made_from["tokenizer"],
        "special_tokens": made_from["arguments"]["special_tokens"],
        "ids": ids,
        "answers": answers,
        "skills": skills,
        "num_train": sum(skill.num_train for skill in skills),
        "num_holdout": sum(skill.num_holdout for skill in skills),
    }
    if made_from["tokenizer"] is None:
        return TokensManifest3(**fields)
    if chat is None:
        return TokensManifest(**fields)
    return TokensManifest4(**fields, chat=KeptChat(template=chat.template.digest, messages=chat.messages))
