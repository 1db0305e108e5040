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


def refuse_directory(out: str | Path) -> None:
    """Raise SkillshardError if the file of an option --out is a directory."""
    from skillshard import places

    if not places.is_remote(out) and places.local_path(out).is_dir():
        raise SkillshardError(f"{out} is a directory: give --out a file to write.")


def write_new(out: str | Path, write: Callable[[str | Path], None]) -> None:
    """Write the file of an option --out. An existing file must hold the same bytes.

    Args:
        out: Place of the file.
        write: Function that writes a file at a place.

    Raises:
        SkillshardError: `out` is a directory, or a file with other content.
    """
    from skillshard import places, storage

    refuse_directory(out)
    if not storage.exists(out):
        write(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / "new"
        write(new)
        if new.read_bytes() != storage.read_bytes(out):
            raise SkillshardError(
                f"{places.public(out)} exists and holds something else. Choose another --out, or remove the file."
            )
