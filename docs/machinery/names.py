"""An extension of griffe: docstrings as the site shows them.

The public names of `skillshard` are imported when they are first used, so that a reader of the source alone does not see them. The
extension adds them. Formulas are written in the docstrings' mathematics directive; the extension turns them into MathML,
which browsers show without a script.
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


class Names(griffe.Extension):
    """Add the names that are imported when they are used, and render formulas."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        if pkg.name == "skillshard":
            for name, home in _homes(Path(pkg.filepath)).items():
                if home != "skillshard":
                    pkg.set_member(name, griffe.Alias(name, f"{home}.{name}", parent=pkg))

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rendered(obj.docstring.value)


def _homes(init: Path) -> dict[str, str]:
    """The table of the public names in the source of the package."""
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{init} has no table _HOMES of its public names; the reference is generated from it")


def rendered(docstring: str) -> str:
    """A docstring with its formulas as MathML."""
    docstring = DISPLAYED.sub(lambda match: f"{match[1]}{_mathml(match[2], 'block')}", docstring)
    return INLINE.sub(lambda match: _mathml(match[1], "inline"), docstring)


def _mathml(formula: str, display: str) -> str:
    return convert(" ".join(textwrap.dedent(formula).split()), display=display)
