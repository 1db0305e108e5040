"""Facts on standard output, and files of an option --out."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from skillshard.errors import SkillshardError


def write_json(facts: Any) -> None:
    """Write the facts of an artefact (`skillshard.report.facts`) to standard output, and nothing else."""
    typer.echo(facts.to_json().decode(), nl=False)


def write_new(out: Path, write: Callable[[Path], None]) -> None:
    """Write the file of an option --out. An existing file must hold the same bytes.

    Args:
        out: path of the file.
        write: function that writes a file at a path.

    Raises:
        SkillshardError: `out` is a directory, or a file with other content.
    """
    if out.is_dir():
        raise SkillshardError(f"{out} is a directory: give --out a file to write.")
    if not out.exists():
        write(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / "new"
        write(new)
        if new.read_bytes() != out.read_bytes():
            raise SkillshardError(f"{out} exists and holds something else. Choose another --out, or remove the file.")
