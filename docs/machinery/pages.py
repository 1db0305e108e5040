"""The parts of the site that come from the code: the command line, the formats, and files from outside `docs/`.

A comment marks the place of a part on a page, `<!-- commands -->` or `<!-- schemas -->`. A link from a page to a file of the
repository, such as `../../examples/ddp.py`, leads to a copy of the file in the site.
"""

import html
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[2]
COPIED = "files"
"""Folder of the site for copies of the repository's files."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^```.*?^```$", flags=re.S | re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's files that pages link to."""
    sources = [file for file in files.documentation_pages() if not file.inclusion.is_excluded()]
    outside = {path for file in sources for path in _outside(file.src_uri, filled(file.content_string))}
    for path in sorted(outside):
        files.append(File.generated(config, f"{COPIED}/{path}", abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the marked places of a page, and change links to files of the repository into links to the copies."""
    markdown = filled(markdown)
    depth = page.file.src_uri.count("/")

    def copied(match: re.Match[str]) -> str:
        path = _in_repository(page.file.src_uri, match[1])
        return match[0] if path is None else "../" * depth + f"{COPIED}/{path}"

    return _outside_fences(markdown, lambda text: LINK.sub(copied, text))


def filled(markdown: str) -> str:
    """Fill the marked places of a page."""
    for marker, make in (("<!-- commands -->", commands), ("<!-- schemas -->", schemas)):
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def _outside(page: str, markdown: str) -> Iterator[str]:
    """List the repository's files outside `docs/` to which a page links."""
    for match in LINK.finditer(FENCE.sub("", markdown)):
        path = _in_repository(page, match[1])
        if path is not None:
            yield path


def _in_repository(page: str, target: str) -> str | None:
    """Return the path of a link's target from the repository's root, or None for a target inside `docs/` or a path without a file."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return path if not path.startswith(("docs/", "../")) and (REPOSITORY / path).is_file() else None


def _outside_fences(markdown: str, change: Any) -> str:
    """Change a text outside the blocks of code."""
    pieces, end = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, change(markdown[end:])])


def commands() -> str:
    """Return the command line as Markdown: every verb with its arguments, its options by panel, and its examples."""
    import typer

    from skillshard.cli import app

    root: Any = typer.main.get_command(app)
    context = root.make_context("skillshard", [], resilient_parsing=True)
    return "\n".join(line for name in root.list_commands(context) for line in _command(root.commands[name], name))


def _command(command: Any, path: str, level: int = 2) -> Iterator[str]:
    """Return the Markdown of a verb and of the verbs below."""
    yield f"\n{'#' * level} skillshard {path} {{ #{path.replace(' ', '-')} }}\n"
    words, _, examples = (command.help or "").strip().partition("\n\n")
    yield _prose(words) + "\n"
    if hasattr(command, "commands"):
        yield from _prose(examples).splitlines()
        for name, inner in command.commands.items():
            yield from _command(inner, f"{path} {name}", level + 1)
        return
    context = command.make_context(path, [], resilient_parsing=True)
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name != "argument"]
    usage = " ".join(_argument(parameter) for parameter in arguments)
    yield f"```text\nskillshard {path} {usage} [OPTIONS]\n```\n"
    rest, code = _text_and_examples("\n\n".join(filter(None, (examples, command.epilog or ""))))
    yield from (_prose(paragraph) + "\n" for paragraph in rest)
    yield from _table("Arguments", arguments, context)
    panels = dict.fromkeys(getattr(option, "rich_help_panel", None) for option in options)
    for panel in sorted(panels, key=lambda name: name is not None):
        yield from _table(
            panel or "Options", [o for o in options if getattr(o, "rich_help_panel", None) == panel], context
        )
    if code:
        yield "Examples:\n\n```bash\n" + "\n".join(code) + "\n```\n"


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    many = "..." if parameter.nargs == -1 else ""
    return f"{name}{many}" if parameter.required else f"[{name}{many}]"


def _text_and_examples(text: str) -> tuple[list[str], list[str]]:
    """Split a help text into paragraphs and example commands."""
    lines = [line.strip() for line in text.splitlines()]
    code = [line for line in lines if line.startswith("skillshard ")]
    rest = "\n".join(line for line in lines if not line.startswith("skillshard "))
    return [paragraph for paragraph in rest.split("\n\n") if paragraph.strip()], code


def _table(title: str, parameters: list[Any], context: Any) -> Iterator[str]:
    """Return a table of arguments or options with values, meanings and defaults."""
    records = [(parameter, parameter.get_help_record(context)) for parameter in parameters]
    rows = [(parameter, *record) for parameter, record in records if record is not None]
    if not rows:
        return
    yield f"| {title} | meaning |\n|---|---|"
    for parameter, name, meaning in rows:
        if parameter.param_type_name == "argument":
            name = _argument(parameter)
        code = html.escape(name).replace("|", "&#124;")  # a bar would end the cell, also in code
        yield f"| <code>{code}</code> | {_prose(meaning)} |"
    yield ""


def _prose(text: str) -> str:
    """Escape the characters of a help text that have a meaning in Markdown. Options and words in backticks stay code."""
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(piece if number % 2 else _plain(piece) for number, piece in enumerate(pieces))


def _plain(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
    quoted = escaped.replace("''", "`''`")  # two apostrophes look like a quotation mark
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", quoted)


def schemas() -> str:
    """Return the formats on disk as Markdown: the newest version of each schema with its fields."""
    newest: dict[str, Path] = {}
    for path in sorted((REPOSITORY / "schemas").glob("*.json"), key=lambda path: int(path.stem.rpartition("-")[2])):
        newest[path.stem.rpartition("-")[0]] = path
    return "\n".join(line for _, path in sorted(newest.items()) for line in _schema(path))


def _schema(path: Path) -> Iterator[str]:
    """Return the Markdown of a schema."""
    schema = json.loads(path.read_text())
    yield f"\n## {path.stem}\n"
    yield f"[{path.name}](../../schemas/{path.name})\n"
    description = str(schema.get("description", "")).split("\n\nAttributes:")[0]
    yield f"{_prose(description)}\n"
    for part in schema.get("oneOf", []):
        yield f"- {_type(part)}"
    if properties := schema.get("properties", {}):
        yield "| field | type | meaning |\n|---|---|---|"
    for name, field in properties.items():
        optional = "" if name in schema.get("required", []) or "const" in field else " (optional)"
        yield f"| `{name}`{optional} | {_type(field)} | {_prose(field.get('description', ''))} |"
    yield ""


def _type(field: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    if field.get("type") == "array":
        inner = field.get("items") or next(iter(field.get("prefixItems", [])), None)
        return f"array of {_type(inner)}" if isinstance(inner, dict) and inner else "array"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"object of {_type(field['additionalProperties'])}"
    return str(field.get("type", "any"))
