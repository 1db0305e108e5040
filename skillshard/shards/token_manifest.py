"""The manifest tokens.json of a token set, in all its versions. `token_set.py` has the layout of the directory."""

from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skillshard import canonical
from skillshard.errors import TokensError
from skillshard.shards.manifest import SPLITS, Digest, Split, check_lengths

MANIFEST = "tokens.json"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.json"
IdType = Literal["uint16", "uint32"]
"""Type of the kept ids. A vocabulary of up to 65,536 ids needs two bytes per id."""
ANEW = "Write the tokens anew in another directory with 'skillshard tokens'."


class TokenColumns1(BaseModel):
    """Counts of one skill and split, one list for each property, with the shards in the order of the shard set's manifest."""

    model_config = ConfigDict(extra="forbid")

    number: list[int] = Field(description="Number in the file name of the shard.")
    num_samples: list[int]
    num_tokens: list[int]
    digest: list[str] = Field(description="xxh3 (128 bits) of the file of counts.")

    @model_validator(mode="after")
    def _same_length(self) -> "TokenColumns1":
        check_lengths(self, "counts")
        return self


class TokenColumns(BaseModel):
    """Files of one skill and split, one list for each property, with the shards in the order of the shard set's manifest."""

    model_config = ConfigDict(extra="forbid")

    number: list[int] = Field(description="Number in the file name of the shard.")
    num_samples: list[Annotated[int, Field(ge=0)]]
    num_tokens: list[Annotated[int, Field(ge=0)]]
    digest: list[Digest] = Field(description="xxh3 (128 bits) of the file of counts.")
    ids_digest: list[Digest | None] = Field(description="xxh3 (128 bits) of the file of ids. null without ids.")
    answers_digest: list[Digest | None] = Field(
        description="xxh3 (128 bits) of the mask of answers. null without masks."
    )
    checks_digest: list[Digest | None] = Field(description="xxh3 (128 bits) of the file of digests. null without ids.")

    @model_validator(mode="after")
    def _same_length(self) -> "TokenColumns":
        check_lengths(self, "tokens")
        return self


class _Skill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    folder: str = Field(pattern=r"^[a-z0-9-]+$", description="Directory name under train/ and holdout/.")
    num_train: int = Field(ge=0, description="Number of tokens of the training samples.")
    num_holdout: int = Field(ge=0, description="Number of tokens of the held-out samples.")


class TokensSkill1(_Skill):
    """Skill with its token counts."""

    train: TokenColumns1
    holdout: TokenColumns1


class TokensSkill(_Skill):
    """Skill with its tokens."""

    train: TokenColumns
    holdout: TokenColumns


class KeptIds(BaseModel):
    """Form of the kept ids."""

    model_config = ConfigDict(extra="forbid")

    type: IdType
    num_ids: int = Field(
        ge=1, le=1 << 32, description="Number of ids of the tokenizer. Every kept id is below this number."
    )


class KeptAnswers(BaseModel):
    """Rule by which the answers were found, as in `skillshard.loss.LossKind`. Exactly one of the two is set."""

    model_config = ConfigDict(extra="forbid")

    answer_after: str | None = Field(description="Text before the answer.")
    prompt_field: str | None = Field(
        description="Metadata field with the length of the prompt, or with the spans of the answers."
    )


class TokensManifest1(BaseModel):
    """tokens.json of version 1: counts alone."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/tokens/1"] = Field("skillshard/tokens/1", alias="schema")
    made_from: dict[str, Any] = Field(description="Command, arguments and digests of the inputs.")
    shards: str = Field(description="Digest of the shard set's manifest.")
    tokenizer: str = Field(description="Digest of tokenizer.json.")
    special_tokens: bool = Field(
        description="Whether the tokenizer's special tokens are added to each sample and counted."
    )
    skills: list[TokensSkill1] = Field(description="Skills in the order of their names.")
    num_train: int = Field(ge=0, description="Number of tokens of all training samples.")
    num_holdout: int = Field(ge=0, description="Number of tokens of all held-out samples.")


class _TokensManifest(BaseModel):
    """Fields of tokens.json of versions 2, 3 and 4."""

    model_config = ConfigDict(extra="forbid")

    made_from: dict[str, Any] = Field(description="Command, arguments and digests of the inputs.")
    shards: str = Field(description="Digest of the shard set's manifest.")
    tokenizer: str | None
    special_tokens: bool
    ids: KeptIds | None = Field(description="Form of the kept ids. null: the set has counts alone.")
    answers: KeptAnswers | None = Field(description="Rule of the mask of answers. null: every token is learned.")
    skills: list[TokensSkill] = Field(description="Skills in the order of their names.")
    num_train: int = Field(ge=0, description="Number of tokens of all training samples.")
    num_holdout: int = Field(ge=0, description="Number of tokens of all held-out samples.")

    @model_validator(mode="after")
    def _all_or_none(self) -> "_TokensManifest":
        expected = {
            "ids_digest": self.ids is not None,
            "answers_digest": self.answers is not None,
            "checks_digest": self.ids is not None,
        }
        if self.answers is not None and self.ids is None:
            raise ValueError("answers are given without ids")
        for skill in self.skills:
            for split in SPLITS:
                for name, is_kept in expected.items():
                    if any((value is not None) != is_kept for value in getattr(getattr(skill, split), name)):
                        raise ValueError(f"skill {skill.name!r}: {split}.{name} does not agree with ids and answers")
        return self


class TokensManifest(_TokensManifest):
    """tokens.json."""

    schema_version: Literal["skillshard/tokens/2"] = Field("skillshard/tokens/2", alias="schema")
    tokenizer: str = Field(description="Digest of tokenizer.json.")
    special_tokens: bool = Field(
        description="Whether the tokenizer's special tokens, such as BOS and EOS, are added to each sample, kept and counted."
    )


class TokensManifest3(_TokensManifest):
    """tokens.json of version 3: the tokens of a corpus that was tokenized already."""

    schema_version: Literal["skillshard/tokens/3"] = Field("skillshard/tokens/3", alias="schema")
    tokenizer: None = Field(description="null: the set has no tokenizer.")
    special_tokens: Literal[False] = Field(description="false: the ids are those of the corpus.")


class KeptChat(BaseModel):
    """The rendering of conversations before the tokenizing."""

    model_config = ConfigDict(extra="forbid")

    template: Digest = Field(description="Digest of chat_template.json.")
    messages: str = Field(min_length=1, description="Metadata field of the messages.")


class TokensManifest4(TokensManifest):
    """tokens.json of version 4: the conversations of the samples were rendered by a chat template."""

    schema_version: Literal["skillshard/tokens/4"] = Field("skillshard/tokens/4", alias="schema")  # type: ignore[assignment]
    chat: KeptChat = Field(description="Rendering of the conversations. The tokens are those of the rendered texts.")


AnyTokens = TokensManifest | TokensManifest3
"""Content of tokens.json. Version 4 is a version 2 with a chat template."""


def file_name(
    split: Split, folder: str, number: int, kind: Literal["tokens.npy", "ids.bin", "answers.bin", "checks.npy"]
) -> str:
    """Return the path of a shard's file inside the directory of a token set.

    >>> file_name("train", "carry", 7, "ids.bin")
    'train/carry/000007.ids.bin'
    """
    return f"{split}/{folder}/{number:06d}.{kind}"


def id_dtype(id_type: IdType) -> np.dtype:
    """Return the little-endian type of ids on disk."""
    return np.dtype(id_type).newbyteorder("<")


def id_type_of(num_ids: int) -> IdType:
    """Return the smallest type that holds the ids below a number.

    >>> id_type_of(65_536), id_type_of(65_537)
    ('uint16', 'uint32')
    """
    return next(name for name in get_args(IdType) if num_ids - 1 <= np.iinfo(name).max)


def manifest_of(raw: bytes, shown: str) -> AnyTokens:
    """Parse tokens.json of version 2, 3 or 4, or of version 1 if its schema says so. Version 1 has counts alone."""
    value = canonical.from_json(raw, shown)
    schema = value.get("schema") if isinstance(value, dict) else None
    version = {f"skillshard/tokens/{number}": number for number in (1, 3, 4)}.get(str(schema), 2)
    try:
        if version == 4:
            return TokensManifest4.model_validate(value)
        if version == 3:
            return TokensManifest3.model_validate(value)
        if version == 2:
            return TokensManifest.model_validate(value)
        older = TokensManifest1.model_validate(value).model_dump(by_alias=True)
        for skill in older["skills"]:
            for split in SPLITS:
                nothing = [None] * len(skill[split]["number"])
                skill[split] |= {"ids_digest": nothing, "answers_digest": nothing, "checks_digest": nothing}
        return TokensManifest.model_validate({**older, "schema": "skillshard/tokens/2", "ids": None, "answers": None})
    except ValidationError as fault:
        raise TokensError(
            f"{shown} does not fit schemas/tokens-{version}.json: {canonical.first_fault(fault)}: damaged or edited, or of another "
            f"version. {ANEW}"
        ) from fault
