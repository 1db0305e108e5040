"""Conversations: a list of messages with a role and a content each, as chat models and the data sets of their training use them.

A conversation is rendered as plain text, for taggers and for proxies. The messages themselves stay in the metadata, because a chat
template needs them where tokens are made.
"""

from collections.abc import Mapping
from typing import Any

from skillshard.corpus.sample import BadRecord, json_type
from skillshard.corpus.template import JOIN, Span

ANSWERING_ROLE = "assistant"
"""Role of the messages that are answers."""


def render_messages(messages: Any, path: str) -> tuple[str, list[Span]]:
    """Return a conversation as "role: content" for each message, joined by empty lines, and the spans of the assistant's contents.

    A message without content, such as a call of a tool, is left out.

    Args:
        messages: Value of the field.
        path: Path of the field, for errors.

    Raises:
        BadRecord: The value is not a list of messages.

    >>> render_messages([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], "messages")
    ('user: 1+1?\\n\\nassistant: 2', [(23, 24)])
    """
    if type(messages) is not list:
        raise BadRecord(
            "wrong-type", f"the messages in {path!r} must be an array of objects, got {json_type(messages)}"
        )
    parts: list[str] = []
    spans: list[Span] = []
    length = 0
    for number, message in enumerate(messages):
        role, content = _role_and_content(message, f"{path}.{number}")
        if not content:
            continue
        head = f"{JOIN if parts else ''}{role}: "
        parts += (head, content)
        length += len(head) + len(content)
        if role == ANSWERING_ROLE:
            spans.append((length - len(content), length))
    return "".join(parts), spans


def _role_and_content(message: Any, path: str) -> tuple[str, str]:
    if type(message) is not dict:
        raise BadRecord("wrong-type", f"the message {path!r} must be an object, got {json_type(message)}")
    if missing := [key for key in ("role", "content") if key not in message]:
        keys = ", ".join(map(repr, message)) or "no key"
        raise BadRecord(
            "wrong-type",
            f"the message {path!r} has no {missing[0]!r}: expected the keys 'role' and 'content', got {keys}",
        )
    role = message["role"]
    if type(role) is not str or not role:
        raise BadRecord("wrong-type", f"the role in '{path}.role' must be a string, got {json_type(role)}")
    return role, _text_of(message["content"], f"{path}.content")


def _text_of(content: Any, path: str) -> str:
    """Return the text of a content: a string, nothing, or a list of parts of the type "text"."""
    if content is None:
        return ""
    if type(content) is str:
        return content
    if type(content) is not list:
        raise BadRecord("wrong-type", f"the content in {path!r} must be a string, got {json_type(content)}")
    texts = []
    for number, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if type(text) is not str:
            raise BadRecord(
                "wrong-type",
                f"the part '{path}.{number}' must be an object with the type 'text' and a text: other parts, such as images, are not read",
            )
        texts.append(text)
    return "".join(texts)
