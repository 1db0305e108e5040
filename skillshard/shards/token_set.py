"""Token sets: the number of tokens, and the token ids, of each sample of a shard set, by one tokenizer. The shards stay unchanged.

    T/train/SKILL/000000.tokens.npy    number of tokens of each row of train/SKILL/000000.tar, uint32
    T/train/SKILL/000000.ids.bin       ids of all rows, one row after the other, uint16 or uint32, little-endian; one id 0 at the end
    T/train/SKILL/000000.answers.bin   one byte for each id: 1 for a token of an answer, 0 for a token of a prompt; one byte 1 at the end
    T/train/SKILL/000000.checks.npy    xxh3 (64 bits) of each MiB of ids.bin, then of each MiB of answers.bin, uint64
    T/holdout/SKILL/...                the same for the held-out samples
    T/tokenizer.json                   the tokenizer, as written by Hugging Face's `tokenizers`
    T/chat_template.json               the chat template, if conversations were rendered by one (schemas/chat-template-1.json)
    T/tokens.json                      written last (schemas/tokens-2.json, tokens-3.json or tokens-4.json)

The set of a corpus that was tokenized already has version 3 and no tokenizer. A set with a chat template has version 4, and every other set
version 2. A set of counts alone has no ids.bin and no checks.npy. A set without masked prompts has no answers.bin.

With the counts the mixer can weigh tokens instead of samples, and `mixing/packing.py` can find any block of the packed stream. The
counts are also the index of the ids: the first id of a row follows the ids of the rows before. With the ids, nothing is tokenized during
the training. The counts take 4 bytes per sample, about 0.4 % of the size of texts of 1 kB. The ids take 2 or 4 bytes per token.

A reader compares each MiB of ids with its digest when the MiB is first read. So a training starts at once, and a flipped byte never
reaches a model. The id at the end lets a reader copy a sample together with the place of its separator.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import xxhash
from jaxtyping import Int, Integer, UInt64

from skillshard import canonical, places, storage
from skillshard.corpus.chat import ChatTemplate
from skillshard.corpus.token_ids import MAX_IDS
from skillshard.errors import TokensError, did_you_mean, name_some
from skillshard.loss import LossKind
from skillshard.memo import memoized
from skillshard.printable import counted
from skillshard.progress import advance
from skillshard.shards.cache import Cache
from skillshard.shards.files import Files, LocalFiles, RemoteFiles, Wanted
from skillshard.shards.manifest import SPLITS, Split
from skillshard.shards.mapped import MAX_OPEN, FileWords, Mapped, mapped
from skillshard.shards.read import ShardSet
from skillshard.shards.token_manifest import (
    ANEW,
    CHAT_TEMPLATE,
    MANIFEST,
    TOKENIZER,
    AnyTokens,
    KeptIds,
    TokenColumns,
    TokensManifest4,
    file_name,
    id_dtype,
    manifest_of,
)
from skillshard.shards.tokenizers import open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A MiB is read from a disk in about a millisecond, and hashed in a tenth of a millisecond. The digests take 8 bytes per MiB.
CHECK_BYTES = 1 << 20
"""Number of neighbouring bytes with one digest."""
# The rows of a stripe of the order. The sums of a shard of 64 MB then take 500 bytes.
ROWS_SUMMED = 1024
"""Number of rows between two known positions in the ids of a shard."""
# A reader moves from a stripe to the next stripe. Within an epoch with appended samples it reads two stripes side by side.
PARTS_KEPT = 2
"""Number of parts of a skill, of `ROWS_SUMMED` rows each, whose first ids stay in memory: 8 kB for each part."""
_WORDS = FileWords(TokensError, MANIFEST, ANEW)
_COUNT = np.dtype("<u4")


def checks_of(data: Mapped | bytes) -> UInt64[np.ndarray, " check"]:
    """Return the digest of each MiB of some bytes, uint64.

    >>> len(checks_of(bytes(CHECK_BYTES + 1)))
    2
    """
    starts = range(0, len(data), CHECK_BYTES)
    with memoryview(data) as view:  # an open view would keep a map from being closed
        return np.array([xxhash.xxh3_64_intdigest(view[start : start + CHECK_BYTES]) for start in starts], np.uint64)


class CheckedBytes:
    """A file in memory, and the digests of its parts. A part is compared with its digest when the part is first read.

    Args:
        name: Name of the file, for errors.
        data: Bytes of the file.
        digests: Digest of each MiB.
        is_checked: Whether each MiB has been compared with its digest. All readers of one file share the array.
        ids: Form of the ids in the file. None: the file has no ids.
    """

    def __init__(
        self,
        name: str,
        data: Mapped,
        digests: UInt64[np.ndarray, " check"],
        is_checked: np.ndarray,
        ids: KeptIds | None,
    ) -> None:
        self._name, self.data, self._digests, self.is_checked, self._ids = name, data, digests, is_checked, ids

    def check(self, part: int) -> None:
        """Compare a MiB of the file with its digest, and its ids with the number of ids of the tokenizer.

        Raises:
            TokensError: The bytes differ, or an id is too large.
        """
        start = part * CHECK_BYTES
        stop = min(start + CHECK_BYTES, len(self.data))
        data = memoryview(self.data)[start:stop]
        (got,) = checks_of(data).tolist()
        if got != (expected := int(self._digests[part])):
            raise TokensError(
                f"{self._name}: bytes {start:,} to {stop - 1:,} have digest {got:016x} but the file of digests says {expected:016x}: damaged or "
                f"edited. {ANEW}"
            )
        if self._ids is not None:
            # The digests find damage. Ids that another program wrote may be whole, and still belong to another tokenizer.
            refuse_beyond(np.frombuffer(data, id_dtype(self._ids.type)), self._ids.num_ids, self._name)
        self.is_checked[part] = True


@dataclass(frozen=True)
class ShardIds:
    """The ids of one shard in memory maps.

    Attributes:
        ids: Bytes of the ids.
        answers: Bytes of the mask of answers, or None.
    """

    ids: CheckedBytes
    answers: CheckedBytes | None


@dataclass(frozen=True)
class SkillTokens:
    """Tokens of one skill and split.

    Attributes:
        files: Source of the files.
        skill: Name of the skill.
        split: "train" or "holdout".
        folder: Name of the skill's directory.
        columns: Files as in tokens.json.
        kept: Form of the ids, or None for counts alone.
    """

    files: Files
    skill: str
    split: Split
    folder: str
    columns: TokenColumns
    kept: KeptIds | None
    _counts: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    _sums: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    _starts: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    _ids: dict[int, ShardIds] = field(default_factory=dict, init=False, repr=False, compare=False)
    # One byte per MiB of ids. The arrays outlive the maps, so that a MiB is checked once in a process and not once in an epoch.
    _checked: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        """Return one line with the skill, the split and the numbers."""
        tokens, samples = counted(sum(self.columns.num_tokens), "token"), counted(self.num_samples, "sample")
        return f"SkillTokens({self.skill!r} of {places.public(self.files.root)!r}: {self.split}, {tokens} in {samples})"

    @cached_property
    def shard_tokens(self) -> Int[np.ndarray, " shard"]:
        """Number of tokens of each shard, in the order of the shard set's manifest."""
        return np.array(self.columns.num_tokens, np.int64)

    @cached_property
    def num_tokens(self) -> int:
        return int(self.shard_tokens.sum())

    @property
    def num_samples(self) -> int:
        return sum(self.columns.num_samples)

    def rows(self, shard: int) -> np.ndarray:
        """Return the number of tokens of each row of a shard, uint32, memory-mapped.

        Raises:
            TokensError: The file differs from its entry in tokens.json.
        """
        return memoized(self._counts, shard, self._counts_checked, most=MAX_OPEN)

    def starts(self, shard: int, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
        """Return the position in the shard's ids of the first id of each row. The rows lie within `ROWS_SUMMED` rows or a few times more."""
        part = int(rows[0]) // ROWS_SUMMED
        inside = rows - part * ROWS_SUMMED
        # The rows of a stripe of the order lie in one part. A row before the part is a very large number without a sign.
        if int(inside.view(np.uint64).max()) < ROWS_SUMMED:
            return memoized(self._starts, (shard, part), self._starts_of, most=PARTS_KEPT).take(inside)
        part, end = int(rows.min()) // ROWS_SUMMED, int(rows.max()) + 1
        return self._starts_between(shard, part, end).take(rows - part * ROWS_SUMMED)

    def _starts_of(self, place: tuple[int, int]) -> Int[np.ndarray, " row"]:
        """Return the position of the first id of each row of a part of a shard, `ROWS_SUMMED` rows."""
        shard, part = place
        return self._starts_between(shard, part, (part + 1) * ROWS_SUMMED)

    def _starts_between(self, shard: int, part: int, end: int) -> Int[np.ndarray, " row"]:
        """Return the position of the first id of each row from the beginning of a part up to a row."""
        sums = memoized(self._sums, shard, self._sums_of, most=MAX_OPEN)
        counts = self.rows(shard)[part * ROWS_SUMMED : end]
        return sums[part] + np.cumsum(counts, dtype=np.int64) - counts

    def _sums_of(self, shard: int) -> Int[np.ndarray, " part"]:
        """Return the number of tokens before every `ROWS_SUMMED`-th row."""
        counts = self.rows(shard)
        sums = np.add.reduceat(counts, np.arange(0, len(counts), ROWS_SUMMED), dtype=np.int64)
        return np.cumsum(sums) - sums

    def ids(self, shard: int) -> ShardIds:
        """Return the ids of a shard, memory-mapped.

        Raises:
            TokensError: The set has counts alone, or a file differs from its entry in tokens.json.
        """
        return memoized(self._ids, shard, self._ids_opened, most=MAX_OPEN)

    def prefetch(self, shard: int) -> None:
        """Announce that the ids of a shard will be read soon. A remote file is fetched into the cache in the background."""
        if shard not in self._ids:
            for wanted in self._wanted(shard):
                self.files.prefetch(wanted)

    def _name(self, shard: int, kind: Literal["tokens.npy", "ids.bin", "answers.bin", "checks.npy"]) -> str:
        return file_name(self.split, self.folder, self.columns.number[shard], kind)

    def _wanted(self, shard: int) -> list[Wanted]:
        """Return the files of a shard with their expected bytes: ids, then answers if the set has a mask."""
        if self.kept is None:
            raise _counts_alone(str(self.files.root))
        num = self.columns.num_tokens[shard] + 1
        ids, answers = self.columns.ids_digest[shard], self.columns.answers_digest[shard]
        assert ids is not None
        wanted = [Wanted(self._name(shard, "ids.bin"), ids, num * id_dtype(self.kept.type).itemsize)]
        return wanted if answers is None else [*wanted, Wanted(self._name(shard, "answers.bin"), answers, num)]

    def _ids_opened(self, shard: int) -> ShardIds:
        wanted = self._wanted(shard)
        digests = self._digests(shard, wanted)
        opened: list[CheckedBytes] = []
        first = 0
        for file in wanted:
            # The parts are checked when they are read. A file of a store was checked as a whole on its arrival.
            data = mapped(self.files, file, check_digest=False, keep_open=self.files.are_locked, words=_WORDS)
            num_parts = -(-len(data) // CHECK_BYTES)
            is_checked = self._checked.setdefault(file.name, np.zeros(num_parts, bool))
            ids = None if opened else self.kept
            opened.append(CheckedBytes(file.name, data, digests[first : first + num_parts], is_checked, ids))
            first += num_parts
        return ShardIds(opened[0], opened[1] if len(opened) > 1 else None)

    def _digests(self, shard: int, wanted: Sequence[Wanted]) -> UInt64[np.ndarray, " check"]:
        """Return the digests of all parts of a shard's files."""
        digest = self.columns.checks_digest[shard]
        assert digest is not None
        num = sum(-(-(file.num_bytes or 0) // CHECK_BYTES) for file in wanted)
        return self._array(Wanted(self._name(shard, "checks.npy"), digest), np.dtype("<u8"), num)

    def _array(self, wanted: Wanted, dtype: np.dtype, num: int) -> np.ndarray:
        """Map the entries of a .npy file, whose digest is compared."""
        data = mapped(self.files, wanted, check_digest=True, keep_open=False, words=_WORDS)
        # The entries are the end of the .npy file, so their number gives the length of the header before them.
        first = len(data) - num * dtype.itemsize
        if not 0 < first < 2 * 64 + 1:
            raise TokensError(
                f"{wanted.name} is {len(data):,} bytes, but {MANIFEST} says {num:,} entries of {dtype.itemsize} bytes: damaged or edited. {ANEW}"
            )
        return np.frombuffer(data, dtype, offset=first)

    def _counts_checked(self, shard: int) -> np.ndarray:
        wanted = Wanted(self._name(shard, "tokens.npy"), self.columns.digest[shard])
        counts = self._array(wanted, _COUNT, self.columns.num_samples[shard])
        # The digest says that the file is whole. tokens.json itself may be edited, so its numbers are compared too.
        if (got := int(counts.sum(dtype=np.int64))) != (expected := self.columns.num_tokens[shard]):
            raise TokensError(
                f"{wanted.name} counts {got:,} tokens but {MANIFEST} says {expected:,}: damaged or edited. {ANEW}"
            )
        return counts

    def __getstate__(self) -> dict[str, object]:
        # Memory maps cannot be pickled. Another process maps and checks the files itself.
        return {**self.__dict__, "_counts": {}, "_sums": {}, "_starts": {}, "_ids": {}, "_checked": {}}

    def verify(self) -> list[str]:
        """Read all files and return one sentence for each fault."""
        faults = []
        self._checked.clear()
        for shard in range(len(self.columns.number)):
            try:
                self._counts_checked(shard)
                if self.kept is not None:
                    self._verify_ids(shard)
            except TokensError as error:
                faults.append(str(error))
        return faults

    def _verify_ids(self, shard: int) -> None:
        opened, wanted = self._ids_opened(shard), self._wanted(shard)
        for checked, file in zip((opened.ids, opened.answers), wanted, strict=False):
            assert checked is not None
            for part in range(len(checked.is_checked)):
                checked.check(part)
            if (digest := canonical.digest(checked.data)) != file.digest:
                raise TokensError(
                    f"{file.name} has digest {digest} but {MANIFEST} says {file.digest}: damaged or edited file. {ANEW}"
                )


def _counts_alone(root: str) -> TokensError:
    return TokensError(
        f"{places.public(root)} has token counts alone, and no token ids. Write the ids in another directory with "
        "'skillshard tokens SHARDS --tokenizer T --out OUT'."
    )


def refuse_beyond(ids: Integer[np.ndarray, " token"], num_ids: int, name: str) -> None:
    """Raise TokensError if an id is not below the number of ids of the tokenizer."""
    if ids.size and (largest := int(ids.max())) >= num_ids:
        raise TokensError(
            f"{name} has id {largest:,}, but the tokenizer's ids are below {num_ids:,}: the ids are of another tokenizer, or damaged. {ANEW}"
        )


@dataclass(frozen=True)
class TokenSet:
    """Finished tokens of a shard set: counts, and ids unless the set has counts alone.

    Attributes:
        files: Source of the files.
        manifest: Content of tokens.json.
        digest: Digest of tokens.json. tokens.json has the digests of all files, so this digest stands for all bytes.
    """

    files: Files
    manifest: AnyTokens
    digest: str

    @classmethod
    def open(
        cls,
        place: str | os.PathLike[str],
        *,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
    ) -> "TokenSet":
        """Open a token set by its directory or URI.

        Args:
            place: Directory or URI of the token set.
            cache: Directory on this machine for files from a remote place, as for `ShardSet.open`. Both may share a cache.
            cache_bytes: Limit of the size of the cache, in bytes.

        Raises:
            TokensError: The token set is not finished, or the directory holds no token set.
        """
        files: Files
        if places.is_remote(place):
            files = RemoteFiles(os.fspath(place), None if cache is None else Cache(cache, cache_bytes))
        else:
            files = LocalFiles(places.local_path(place))
        manifest_place = places.join(str(files.root), MANIFEST)
        if not storage.exists(manifest_place):
            raise TokensError(
                f"{places.public(files.root)} holds no finished tokens: {MANIFEST} is not there. Run 'skillshard tokens' to its end."
            )
        if not files.is_remote:
            storage.refuse_special(manifest_place)
        raw = storage.read_bytes(manifest_place)
        return cls(files, manifest_of(raw, places.public(manifest_place)), canonical.digest(raw))

    @property
    def root(self) -> str:
        """Directory or URI of the token set."""
        return str(self.files.root)

    @cached_property
    def train(self) -> dict[str, SkillTokens]:
        """Tokens of each skill with training shards, in the order of the names."""
        return self._split("train")

    @cached_property
    def holdout(self) -> dict[str, SkillTokens]:
        """Tokens of each skill with held-out shards."""
        return self._split("holdout")

    @property
    def encoding(self) -> str:
        """Digest of the tokenizer, its special tokens and the rendering of conversations. Equal encodings give a sample the same ids."""
        chat = self.manifest.chat.model_dump() if isinstance(self.manifest, TokensManifest4) else None
        rule = {"tokenizer": self.manifest.tokenizer, "special_tokens": self.manifest.special_tokens, "chat": chat}
        return canonical.digest(canonical.to_json(rule))

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """Tokenizer of the token set.

        Raises:
            TokensError: The file is missing, or holds another tokenizer than the tokenizer of the token set. Or the corpus was tokenized
                already, so that the set has no tokenizer.
        """
        if self.manifest.tokenizer is None:
            raise TokensError(
                f"{places.public(self.root)} has the ids of a corpus that was tokenized already, and no tokenizer. Use the tokenizer that made the ids."
            )
        place = places.join(self.root, TOKENIZER)
        if not storage.exists(place):
            raise TokensError(f"{places.public(place)} is missing. {ANEW}")
        if (digest := storage.file_digest(place)) != self.manifest.tokenizer:
            raise TokensError(
                f"{places.public(place)} has digest {digest} but {MANIFEST} says {self.manifest.tokenizer}: not the tokenizer of these tokens. {ANEW}"
            )
        return open_tokenizer(place)

    def token_id(self, token: str) -> int:
        """Return the id of a token by its text. Without a tokenizer, the text is the id in decimal digits.

        Raises:
            TokensError: The tokenizer has no token with this text, or the text is no id.
        """
        if not isinstance(token, str):
            # Trainers keep `eos_token_id`, so a number is the likely mistake.
            raise TokensError(
                f"the token is {token!r}: give the text of the token, such as '<|endoftext|>' (`eos_token` of a tokenizer and not `eos_token_id`), or the "
                "id in decimal digits as a text if the set has no tokenizer."
            )
        if self.manifest.tokenizer is None:
            return self._id_in_digits(token)
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            special = [added.content for added in self.tokenizer.get_added_tokens_decoder().values()]
            raise TokensError(
                f"the tokenizer of {places.public(self.root)} has no token {token!r}{did_you_mean(token, special)}; its special tokens are "
                f"{name_some(special) or 'none'}."
            )
        return token_id

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """Chat template by which the conversations were rendered, or None if the texts of the samples were tokenized.

        Raises:
            TokensError: The file is missing, or holds another template.
        """
        if not isinstance(self.manifest, TokensManifest4):
            return None
        place = places.join(self.root, CHAT_TEMPLATE)
        if not storage.exists(place):
            raise TokensError(f"{places.public(place)} is missing. {ANEW}")
        if (digest := storage.file_digest(place)) != self.manifest.chat.template:
            raise TokensError(
                f"{places.public(place)} has digest {digest} but {MANIFEST} says {self.manifest.chat.template}: not the template of these tokens. {ANEW}"
            )
        return ChatTemplate.from_json(storage.read_bytes(place))

    def _id_in_digits(self, token: str) -> int:
        ids = self.manifest.ids
        expected = "" if ids is None else f", below {ids.num_ids:,}"
        is_id = token.isascii() and token.isdigit() and len(token) <= len(str(MAX_IDS))
        if not is_id or (ids is not None and int(token) >= ids.num_ids):
            raise TokensError(
                f"{places.public(self.root)} has the ids of a corpus that was tokenized already, and no tokenizer: a token is its id in decimal digits"
                f"{expected}, such as '0', got {token!r}."
            )
        return int(token)

    @property
    def answers(self) -> LossKind | None:
        """Rule of the mask of answers, or None if every token is learned."""
        rule = self.manifest.answers
        return None if rule is None else LossKind(answer_after=rule.answer_after, prompt_field=rule.prompt_field)

    def refuse_other_shards(self, shards: ShardSet) -> None:
        """Raise TokensError unless the tokens belong to a shard set, or to the whole set behind a chosen set."""
        if self.manifest.shards not in (shards.digest, shards.whole_digest):
            raise TokensError(
                f"{places.public(self.root)} has the tokens of shards {self.manifest.shards}, but {places.public(shards.root)} is {shards.digest}. "
                "Write the tokens of these shards with 'skillshard tokens'."
            )

    def refuse_counts_alone(self) -> None:
        """Raise TokensError unless the set has token ids."""
        if self.manifest.ids is None:
            raise _counts_alone(self.root)

    def __getstate__(self) -> dict[str, object]:
        # Without the cached tokens and tokenizer: another process opens its own.
        return {"files": self.files, "manifest": self.manifest, "digest": self.digest}

    def __repr__(self) -> str:
        """Return one line with the place and the numbers of skills and tokens."""
        manifest = self.manifest
        form = "counts alone" if manifest.ids is None else f"ids of {manifest.ids.type}"
        return (
            f"TokenSet({places.public(self.root)!r}: {counted(len(manifest.skills), 'skill')}, {manifest.num_train:,} train + "
            f"{manifest.num_holdout:,} holdout tokens, {form})"
        )

    def verify(self) -> list[str]:
        """Read all files and return one sentence for each fault, or an empty list. Remote bytes are fetched anew."""
        files = RemoteFiles(self.files.root, None) if isinstance(self.files, RemoteFiles) else self.files
        whole = TokenSet(files, self.manifest, self.digest)
        parts = [*whole.train.values(), *whole.holdout.values()]
        faults = []
        for number, part in enumerate(parts):
            advance(number, len(parts))
            faults += part.verify()
        totals = {"num_train": 0, "num_holdout": 0}
        for skill in self.manifest.skills:
            for split in SPLITS:
                got, expected = sum(getattr(skill, split).num_tokens), getattr(skill, f"num_{split}")
                totals[f"num_{split}"] += got
                if got != expected:
                    faults.append(
                        f"{MANIFEST} says skill {skill.name!r} has {expected:,} {split} tokens, but its shards have {got:,}: damaged or "
                        f"edited. {ANEW}"
                    )
        for name, got in totals.items():
            if got != (expected := getattr(self.manifest, name)):
                faults.append(
                    f"{MANIFEST} says {name} is {expected:,}, but its skills have {got:,}: damaged or edited. {ANEW}"
                )
        if self.manifest.tokenizer is None:
            return faults
        try:
            _ = self.tokenizer
        except TokensError as error:
            faults.append(str(error))
        try:
            _ = self.chat_template
        except TokensError as error:
            faults.append(str(error))
        return faults

    def _split(self, split: Split) -> dict[str, SkillTokens]:
        return {
            skill.name: SkillTokens(
                self.files, skill.name, split, skill.folder, getattr(skill, split), self.manifest.ids
            )
            for skill in self.manifest.skills
            if getattr(skill, split).number
        }
