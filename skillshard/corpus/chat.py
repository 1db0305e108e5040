"""Chat templates: a conversation as the text that a chat model reads, with the spans of the assistant's turns.

A chat template is a program of Jinja, as the tokenizers of chat models have it in `chat_template.jinja` or `tokenizer_config.json`. The package
`transformers` runs the template in its sandbox. Training on chats, kept token ids and measured losses use the functions of this module, so that all of
them predict the same tokens.

An assistant's turn begins after the text that the template writes to prompt for an answer, and ends where the template has written the turn, its end
mark included. The template must write a turn in the same way whatever follows. Otherwise no stretch of the text is the turn.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from skillshard import canonical, places, storage
from skillshard.corpus.mapping import ANSWER_SPANS
from skillshard.corpus.messages import ANSWERING_ROLE, plain_message, with_roles
from skillshard.corpus.paths import MISSING, in_meta
from skillshard.corpus.sample import Sample, json_type
from skillshard.corpus.template import Span
from skillshard.errors import ObservationError, TokensError
from skillshard.extras import needed

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
"""Files beside a tokenizer.json that `save_pretrained` writes: the special tokens, and the chat template of newer tokenizers."""
# Templates name these tokens as variables.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate(BaseModel):
    """A chat template with the special tokens that the template may write.

    Attributes:
        template: Program of Jinja.
        special_tokens: Name of a variable of the template, such as "eos_token" -> text of the token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal["skillshard/chat-template/1"] = Field("skillshard/chat-template/1", alias="schema")
    template: str = Field(min_length=1, description="Program of Jinja.")
    special_tokens: dict[str, str] = Field(description="Variable of the template -> text of a special token.")

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTemplate":
        """Return the chat template of a tokenizer of transformers.

        Raises:
            TokensError: The tokenizer has no chat template.
        """
        template = getattr(tokenizer, "chat_template", None)
        tokens = {name: str(token) for name in _SPECIAL if (token := getattr(tokenizer, name, None)) is not None}
        return cls(template=_only_template(template, "the tokenizer"), special_tokens=tokens)

    @classmethod
    def read(cls, tokenizer: str | os.PathLike[str] | None, template: str | os.PathLike[str]) -> "ChatTemplate":
        """Read a chat template.

        Args:
            tokenizer: Path or URI of a tokenizer.json, or of its directory. The files of `save_pretrained` beside it give the special tokens. None:
                no tokenizer, and so no special tokens, for a model that reads bytes. `template` is then a file.
            template: "tokenizer" for the template beside tokenizer.json, or a path or URI of a file with a template.

        Raises:
            TokensError: The folder has no template, or a file is damaged.
        """
        if tokenizer is None:
            return cls(template=_text_of(template), special_tokens={})
        folder = places.parent(tokenizer) if places.name(tokenizer).endswith(".json") else os.fspath(tokenizer)
        config = _json_object(places.join(folder, CONFIG))
        tokens = {name: text for name in _SPECIAL if (text := _token_text(config.get(name))) is not None}
        if template != "tokenizer":
            return cls(template=_text_of(template), special_tokens=tokens)
        own = places.join(folder, TEMPLATE)
        text = _text_of(own) if storage.exists(own) else config.get("chat_template")
        return cls(template=_only_template(text, places.public(folder)), special_tokens=tokens)

    @classmethod
    def from_json(cls, content: bytes) -> "ChatTemplate":
        """Return the template in a file that `to_json` gave."""
        return cls.model_validate_json(content)

    @property
    def digest(self) -> str:
        """Digest of the template and the special tokens."""
        return canonical.digest(self.to_json())

    def to_json(self) -> bytes:
        """Return the content of the file in which a token set keeps the template."""
        return canonical.to_json(self.model_dump(by_alias=True))

    def render(self, messages: Any) -> tuple[str, list[Span]]:
        """Render a conversation.

        Args:
            messages: List of messages, with "role" and "content", or with "from" and "value".

        Returns:
            The text, and the first character of each assistant's turn with the character after the last one.

        Raises:
            ObservationError: The conversation has no turn of the assistant or is no list of messages, the template raises an error, or the template
                writes a turn in another way once a later turn follows.
        """
        turns = _plain(messages)
        whole = self._rendered(turns, prompts=False)
        spans: list[Span] = []
        for number, turn in enumerate(turns):
            if turn["role"] != ANSWERING_ROLE:
                continue
            # Neighbouring messages of the assistant are one turn, which the first of them begins.
            before = self._rendered(turns[:number], prompts=True)
            through = self._rendered(turns[: number + 1], prompts=False)
            if not (whole.startswith(through) and through.startswith(before) and len(through) > len(before)):
                raise ObservationError(
                    f"the chat template writes message {number} of {len(turns)} in another way once later messages follow, or not after its own prompt for an "
                    "answer, so that no stretch of the text is the assistant's turn. Give a template that keeps earlier turns as they are, or end the "
                    "conversation after its first answer."
                )
            spans.append((len(before), len(through)))
        return whole, spans

    def _rendered(self, turns: list[dict[str, Any]], *, prompts: bool) -> str:
        if not turns and not prompts:
            return ""
        try:
            renderer = _renderer(self.template, tuple(self.special_tokens.items()))
            return renderer(turns, prompts)
        except Exception as error:  # a template is a program of a user, and raises errors of any class
            raise ObservationError(
                f"the chat template raises {type(error).__name__} on {len(turns)} of the messages: {' '.join(str(error).split()).rstrip('.')}. Mend the "
                "template or the messages, or leave such samples out."
            ) from error


@dataclass(frozen=True)
class Chat:
    """The way to render the conversations of samples.

    Attributes:
        template: Chat template.
        messages: Metadata field of the messages.
    """

    template: ChatTemplate
    messages: str

    def render(self, meta: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Render the conversation of a sample, as `ChatTemplate.render`.

        Raises:
            ObservationError: The metadata has no conversation, or the conversation cannot be rendered.
        """
        value = in_meta(dict(meta), self.messages)
        if value is MISSING:
            raise ObservationError(
                f"the metadata has no field {self.messages!r} with the messages: tag the corpus without `drop` of the messages."
            )
        return self.template.render(value)

    def sample(self, sample: Sample) -> Sample:
        """Return a sample with its rendered conversation as the text, and the spans of the assistant's turns under `ANSWER_SPANS` of its metadata.

        Raises:
            ObservationError: As in `render`.
        """
        text, spans = self.render(sample.meta)
        return replace(sample, text=text, meta={**sample.meta, ANSWER_SPANS: [list(span) for span in spans]})


def chat_of(template: ChatTemplate, messages: str | None, corpus: str) -> Chat:
    """Return the way to render the conversations of a corpus or of shards.

    Args:
        template: Chat template.
        messages: Metadata field of the messages, or None if the samples are no conversations.
        corpus: Name of the corpus or of the shards, for the error.

    Raises:
        TokensError: The samples are no conversations.
    """
    if messages is None:
        raise TokensError(
            f"{corpus} has no conversations for a chat template: tag and shard the corpus with `messages`, the field of the messages."
        )
    return Chat(template, messages)


def refuse_with_template(**arguments: object) -> None:
    """Raise TokensError for the first given argument, by its name. The arguments do not go together with a chat template."""
    for name, value in arguments.items():
        if value:
            raise TokensError(
                f"a chat template writes special tokens and the assistant's turns itself: leave out `{name}`, or leave out `chat_template`."
            )


@lru_cache(8)
def _renderer(
    template: str, special_tokens: tuple[tuple[str, str], ...]
) -> Callable[[list[dict[str, Any]], bool], str]:
    """Return the function of messages that renders a template. The second argument of the function adds the prompt for an answer."""
    needed("hf", what="A chat template")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    # The words of this tokenizer are never read: only its method that renders a template is called.
    words = Tokenizer(WordLevel({"": 0}, unk_token=""))
    # Of no type, because transformers has types for a part of its classes alone.
    of_words: Any = PreTrainedTokenizerFast
    tokenizer = of_words(tokenizer_object=words, **dict(special_tokens))

    def rendered(messages: list[dict[str, Any]], prompts: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompts
        )
        return text

    return rendered


def _plain(messages: Any) -> list[dict[str, Any]]:
    """Return messages under the keys "role" and "content".

    Raises:
        ObservationError: The value is no list of messages, or has no message of the assistant.
    """
    messages = with_roles(messages)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ObservationError(
            f"the conversation must be an array of messages, got {json_type(messages)}. Name another field, or leave such samples out."
        )
    turns = [plain_message(message) for message in messages]
    if not any(turn.get("role") == ANSWERING_ROLE for turn in turns):
        raise ObservationError(
            f"the conversation of {len(turns)} messages has no turn of the {ANSWERING_ROLE}, so nothing would be learned. Leave such samples out."
        )
    if missing := [number for number, turn in enumerate(turns) if "role" not in turn]:
        raise ObservationError(f"message {missing[0]} of the conversation has no role. Leave such samples out.")
    return turns


def _only_template(value: Any, where: str) -> str:
    """Return the template of a tokenizer: a text, or the template "default" of several."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, Mapping):
        value = value.get("default")
    if not isinstance(value, str) or not value:
        raise TokensError(
            f"{where} has no chat template, in neither {TEMPLATE} nor {CONFIG}: give the tokenizer of a chat model, or a file with a template."
        )
    return _without_clock(value, where)


def _without_clock(template: str, where: str) -> str:
    """Return a template. Raise TokensError if the template writes the present date, because the same samples would have other tokens tomorrow."""
    if "strftime_now" in template:
        raise TokensError(
            f"the chat template of {where} writes the present date (strftime_now), so the same samples would have other tokens tomorrow: give a copy of the "
            "template with a fixed date."
        )
    return template


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _text_of(place: str | os.PathLike[str]) -> str:
    if not storage.exists(place):
        raise TokensError(
            f"{places.public(place)} is not there: give a file with a chat template, or the word 'tokenizer' for the template beside tokenizer.json."
        )
    try:
        text = storage.read_bytes(place).decode()
    except UnicodeDecodeError as error:
        raise TokensError(f"{places.public(place)} is not text, and so no chat template: {error}.") from error
    if not text.strip():
        raise TokensError(f"{places.public(place)} is empty: expected a chat template.")
    return _without_clock(text, places.public(place))


def _json_object(place: str) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty object without the file."""
    if not storage.exists(place):
        return {}
    try:
        value = json.loads(storage.read_bytes(place))
    except ValueError as error:
        raise TokensError(
            f"{places.public(place)} is no JSON: {error}. Write it again with save_pretrained()."
        ) from error
    return value if isinstance(value, dict) else {}
