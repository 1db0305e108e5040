"""An extension of griffe that prepares docstrings for the site.

The public names of `skillshard` are imported at their first use, so a reader of the source alone does not see the names. The extension
adds the names. Docstrings hold formulas in the mathematics directive. The extension turns a formula into MathML, which browsers show
without a script.
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

DISPLAYED = re.compile(r"^( *)\.\. math:: ?(.*(?:\n\1 +\S.*)*)", flags=re.M)
INLINE = re.compile(r":math:`([^`]*)`")
EXAMPLE = re.compile(r"^( *)Example:\n((?:\1 +\S.*\n?|\n)+)", flags=re.M)
DOCTEST = re.compile(r"(?:^|(?<=\n\n))( *)(>>> .*(?:\n\1\S.*)*)")


class Names(griffe.Extension):
    """Add the names that are imported at their first use, and render formulas."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        if pkg.name == "skillshard":
            for name, home in _homes(Path(pkg.filepath)).items():
                if home != "skillshard":
                    pkg.set_member(name, griffe.Alias(name, f"{home}.{name}", parent=pkg))

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rendered(obj.docstring.value)


def _homes(init: Path) -> dict[str, str]:
    """Read the table of the public names in the source of the package."""
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{init} has no table _HOMES of its public names; the reference is generated from it")


def rendered(docstring: str) -> str:
    """Return a docstring with formulas as MathML and examples as blocks of code."""
    if "```" not in docstring:
        docstring = EXAMPLE.sub(_example, docstring)
        docstring = DOCTEST.sub(lambda match: _fenced("pycon", match[2], match[1]), docstring)
    docstring = DISPLAYED.sub(lambda match: f"{match[1]}{_mathml(match[2], 'block')}", docstring)
    return INLINE.sub(lambda match: _mathml(match[1], "inline"), docstring)


def _example(match: re.Match[str]) -> str:
    """Return an example as a section that griffe shows as code: a doctest unchanged, other code between fences."""
    indent, code = match[1], match[2]
    if ">>>" in code:
        return f"{indent}Examples:\n{code}"
    inner = f"{indent}    "
    return f"{indent}Examples:\n{_fenced('python', textwrap.dedent(code).strip(), inner)}\n\n"


def _fenced(language: str, code: str, indent: str) -> str:
    lines = [f"```{language}", *code.splitlines(), "```"]
    return "\n".join(f"{indent}{line.removeprefix(indent)}".rstrip() for line in lines)


def _mathml(formula: str, display: str) -> str:
    return convert(" ".join(textwrap.dedent(formula).split()), display=display)
