"""`skillshard report`: runs as one page for a browser."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from skillshard.bars import Bars
from skillshard.cli.output import write_new
from skillshard.cli.verb import Verb

NUM_LINES = 8
"""Number of skills that charts show, if the user names no number."""


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Directories of the ledgers of runs.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="File to write, for example report.html.")],
    graph: Annotated[
        list[Path] | None,
        typer.Option(
            "--graph",
            metavar="FILE",
            help="Graph of a policy, to be shown as a heat map. Repeat the option for several graphs.",
        ),
    ] = None,
    form: Annotated[
        Literal["html", "json"],
        typer.Option("--format", help="Form of the file: a page for a browser, or the facts as JSON."),
    ] = "html",
    skills: Annotated[
        int,
        typer.Option(
            "--skills", metavar="N", min=1, max=24, help="Number of skills that charts show. The table shows all."
        ),
    ] = NUM_LINES,
) -> None:
    """Write the history of runs as one page: weights, losses, shares, epochs, alarms and changes, side by side.

    The page needs no network and no other file.
    """
    from skillshard import storage
    from skillshard.report.history import report_facts
    from skillshard.report.page import page_of

    if form == "json":
        Verb.given.refuse(["skills"], "belongs to --format html: the JSON has all skills")
    with Bars() as bars, bars.working("reading the ledgers"):
        facts = report_facts(runs, graphs=graph or [])
        data = facts.to_json() if form == "json" else page_of(facts, num_lines=skills).encode()
    write_new(out, lambda place: storage.write_bytes(place, data))
    typer.echo(f"{out}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(data):,} bytes.")
