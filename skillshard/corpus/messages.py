"""Conversations: a list of messages with a role and a content each, as chat models and the data sets of their training use them.

The data sets in the style of ShareGPT name the two keys "from" and "value", and the roles "human" and "gpt". UltraChat and LIMA list the
contents alone: the user and the assistant take turns, and the user begins. All styles give the same text.

A conversation is rendered as plain text, for taggers and for proxies. The messages themselves stay in the metadata, because a chat
template needs them where tokens are made.
"""

from collections.abc import Mapping
from typing import Any

from skillshard.corpus.bad_record import BadRecord
from skillshard.corpus.sample import json_type
from skillshard.corpus.template import JOIN, Span

ANSWERING_ROLE = "assistant"
"""Role of the messages that are answers."""
_KEYS = (("role", "content"), ("from", "value"))
"""Keys of the role and of the content, in the two styles of messages."""
_ROLES = {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), ANSWERING_ROLE)
"""Role in the style of ShareGPT -> role. The published conversations also name the model that answers."""


def with_roles(messages: Any) -> Any:
    """Return a list of contents as messages of the user and the assistant in turns, and any other value unchanged.

    >>> with_roles(["1+1?", "2"])
    [{'role': 'user', 'content': '1+1?'}, {'role': 'assistant', 'content': '2'}]
    >>> with_roles([{"role": "user", "content": "1+1?"}]), with_roles([])
    ([{'role': 'user', 'content': '1+1?'}], [])
    """
    if type(messages) is not list or not {str}.issuperset(map(type, messages)):
        return messages
    return [
        {"role": ANSWERING_ROLE if number % 2 else "user", "content": content}
        for number, content in enumerate(messages)
    ]


def is_message(value: Any) -> bool:
    """Return whether a value has the keys of a message, in one of the two styles.

    >>> is_message({"role": "user", "content": "1+1?"}), is_message({"from": "human", "value": "1+1?"}), is_message({"text": "2"})
    (True, True, False)
    """
    return type(value) is dict and any(role in value and content in value for role, content in _KEYS)


def is_answering(message: Mapping[str, Any]) -> bool:
    """Return whether a message is an answer.

    >>> is_answering({"from": "gpt", "value": "2"}), is_answering({"role": "user", "content": "1+1?"})
    (True, False)
    """
    role_key, _ = _keys_of(message)
    return _role_of(role_key, message[role_key]) == ANSWERING_ROLE


def plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message under the keys "role" and "content", with its other keys.

    >>> plain_message({"from": "gpt", "value": "2", "weight": 1})
    {'role': 'assistant', 'content': '2', 'weight': 1}
    """
    role_key, content_key = _keys_of(message)
    if role_key == "role":
        return dict(message)
    rest = {key: value for key, value in message.items() if key not in (role_key, content_key)}
    return {"role": _role_of(role_key, message[role_key]), "content": message[content_key], **rest}


def roles_of(messages: Any) -> list[str]:
    """Return the different roles of a list of messages, in the order of their first messages.

    >>> roles_of([{"from": "human", "value": "1+1?"}, {"from": "tool", "value": "2"}, {"from": "human", "value": "Thanks."}])
    ['user', 'tool']
    """
    turns = with_roles(messages)
    return list(dict.fromkeys(_role_of(key, message[key]) for message in turns for key, _ in [_keys_of(message)]))


def _keys_of(message: Mapping[str, Any]) -> tuple[str, str]:
    return next((keys for keys in _KEYS if all(key in message for key in keys)), _KEYS[0])


def _role_of(key: str, role: Any) -> Any:
    return _ROLES.get(role, role) if key == "from" and type(role) is str else role


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
    >>> render_messages([{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}], "conversations")
    ('user: 1+1?\\n\\nassistant: 2', [(23, 24)])
    >>> render_messages(["1+1?", "2"], "data")
    ('user: 1+1?\\n\\nassistant: 2', [(23, 24)])
    """
    messages = with_roles(messages)
    if type(messages) is not list:
        raise BadRecord(
            "wrong-type",
            f"the messages in {path!r} must be an array of objects or of strings, got {json_type(messages)}{_no_json(messages)}",
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


def _no_json(value: Any) -> str:
    """Return the words about a string that looks like a list and is no JSON, such as the text of a list in Python."""
    is_like_list = type(value) is str and value.lstrip().startswith("[")
    return " that is not valid JSON, so write the column anew as JSON" if is_like_list else ""


def _role_and_content(message: Any, path: str) -> tuple[str, str]:
    if type(message) is not dict:
        raise BadRecord("wrong-type", f"the message {path!r} must be an object, got {json_type(message)}")
    role_key, content_key = _keys_of(message)
    if missing := [key for key in (role_key, content_key) if key not in message]:
        keys = ", ".join(map(repr, message)) or "no key"
        raise BadRecord(
            "wrong-type",
            f"the message {path!r} has no {missing[0]!r}: expected the keys 'role' and 'content', or 'from' and 'value', got {keys}",
        )
    role = _role_of(role_key, message[role_key])
    if type(role) is not str or not role:
        raise BadRecord("wrong-type", f"the role in '{path}.{role_key}' must be a string, got {json_type(role)}")
    return role, _text_of(message[content_key], f"{path}.{content_key}")


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
