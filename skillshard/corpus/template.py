"""Templates that make a text of several fields, such as "{instruction}\\n\\n{input}\\n\\n{output}".

A path in braces stands for the value of a field. Everything else is literal text. "{{" and "}}" stand for braces, "\\n" for the end of
a line, "\\t" for a tab, and "\\\\" for a backslash, because a shell does not turn "\\n" into the end of a line. A template has no format
specifications and runs no code.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skillshard.errors import CorpusError

Span = tuple[int, int]
"""First character of a stretch of a text, and the character after the last one, counted as Python counts characters."""
JOIN = "\n\n"
"""Text between several text fields, and between the messages of a conversation."""
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\", "{{": "{", "}}": "}"}
_TOKEN = re.compile(r"\\.?|\{\{|\}\}|\{[^{}]*\}|[{}]", re.DOTALL)


def pairs_of(spans: Iterable[Sequence[int]]) -> list[Span]:
    """Return spans that were read from JSON, which has lists and no pairs.

    >>> pairs_of([[3, 5]])
    [(3, 5)]
    """
    return [(start, stop) for start, stop in spans]


@dataclass(frozen=True)
class Template:
    """A parsed template: the field paths, with the literal text before each path, and the literal text at the end.

    Attributes:
        paths: Path of each field, in the order of the template.
        literals: Literal text before each field, and the literal text after the last field.
    """

    paths: tuple[str, ...]
    literals: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Parse a template.

        Raises:
            CorpusError: The template names no field, a brace has no partner, or a backslash stands before another character.

        >>> Template.parse("Q: {question}\\\\nA: {answer.0}")
        Template(paths=('question', 'answer.0'), literals=('Q: ', '\\nA: ', ''))
        """
        paths: list[str] = []
        literals = [""]
        position = 0
        for match in _TOKEN.finditer(text):
            token = match[0]
            literals[-1] += text[position : match.start()]
            position = match.end()
            if token in _ESCAPES:
                literals[-1] += _ESCAPES[token]
            elif token[0] == "{" and len(token) > 2:
                paths.append(token[1:-1].strip())
                literals.append("")
            if token not in _ESCAPES and (token[0] != "{" or len(token) < 3 or not paths[-1]):
                raise CorpusError(f"the template {text!r}, character {match.start() + 1}: {_fault(token)}.")
        literals[-1] += text[position:]
        if not paths:
            raise CorpusError(
                f"the template {text!r} names no field: every text would be the same. Name a field in braces, such as {{text}}."
            )
        return cls(tuple(paths), tuple(literals))

    @classmethod
    def joining(cls, paths: Sequence[str]) -> "Template":
        """Make the template that joins fields by an empty line.

        >>> Template.joining(["title", "body"]).render(["A", "B"])[0]
        'A\\n\\nB'
        """
        return cls(tuple(paths), ("", *([JOIN] * (len(paths) - 1)), ""))

    def render(self, values: Sequence[str]) -> tuple[str, list[Span]]:
        """Return the text for the values of the fields, and the span of each value in the text.

        An empty value is left out together with the literal text before it. Where the values at the beginning are left out, the white
        space that would begin the text is left out also. The span of an empty value is empty.

        Args:
            values: Value of each path.

        >>> Template.parse("{instruction}\\\\n\\\\nInput: {input}\\\\n\\\\n{output}").render(["Add.", "", "3"])
        ('Add.\\n\\n3', [(0, 4), (4, 4), (6, 7)])
        """
        parts: list[str] = []
        spans: list[Span] = []
        length = 0
        is_first_left_out = False
        for literal, value in zip(self.literals, values, strict=False):  # one literal stands behind the last value
            if not value:
                is_first_left_out = is_first_left_out or not length
                spans.append((length, length))
                continue
            before = literal.lstrip() if is_first_left_out and not length else literal
            parts += (before, value)
            spans.append((length + len(before), length + len(before) + len(value)))
            length += len(before) + len(value)
        return "".join((*parts, self.literals[-1])), spans


def _fault(token: str) -> str:
    if token[0] == "\\":
        return f"{token!r} has no meaning. Write \\\\ for a backslash, \\n for the end of a line, or \\t for a tab"
    if token[0] == "{" and len(token) > 1:
        return "the braces name no field. Write a path in the braces, such as {text}, or {{}} for braces in the text"
    return f"the brace {token!r} has no partner. Write {token * 2} for a brace in the text"
