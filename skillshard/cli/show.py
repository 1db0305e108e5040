"""`skillshard inspect` and `verify`: look at an artefact."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.options import Artefact, Json
from skillshard.cli.output import write_json
from skillshard.cli.values import parse_range
from skillshard.cli.verb import Verb
from skillshard.cli.words import in_options
from skillshard.printable import printable


def inspect(
    place: Artefact,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Metadata field, or other tags, to compare tags with.",
            metavar="FIELD|TAGS",
        ),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus", metavar="CORPUS", help="Corpus to read the field from, if the tags do not hold the field."
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures", metavar="DIRECTORY", help="Directory for pictures of tags: sizes, map and agreement."
        ),
    ] = None,
    skills_range: Annotated[
        str | None,
        typer.Option(
            "--skills-range",
            metavar="LEAST:MOST",
            help="Numbers of skills to try on the embeddings beside tags. The tags stay as they are.",
        ),
    ] = None,
    json: Json = False,
    csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Write every weight, draw and loss of a run and of the runs before as CSV, a line for each number.",
        ),
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show a run again and again, until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.1, help="Time between two views, with --follow.")
    ] = 5.0,
) -> None:
    """Show the contents of an artefact."""
    from skillshard.artefact import has_not_begun

    if not follow:
        Verb.given.refuse(["every"], "belongs to --follow")
    if csv or follow:
        others = [
            name
            for name in ("json", "csv", "follow", "against", "corpus", "pictures", "skills_range")
            if name != ("csv" if csv else "follow")
        ]
        Verb.given.refuse(
            [name for name in others if name in Verb.given], f"does not go with {'--csv' if csv else '--follow'}"
        )
        if csv or not has_not_begun(place):  # a run that begins later can be followed
            _refuse_all_but_a_run(place, "--csv" if csv else "--follow")
    if csv:
        _write_table(place)
        return
    if follow:
        _follow(place, every)
        return
    if json:
        Verb.given.refuse(
            ["against", "corpus", "pictures", "skills_range"],
            "has no JSON form: leave out --json, or run the verb once for each",
        )
        _write_facts(place)
        return
    if against is None and pictures is None and skills_range is None:
        Verb.given.refuse(["corpus"], "is where --against reads a field from: give --against FIELD")
        _show(place)
        return
    from skillshard.report.clusters import show_clusters

    tried = None if skills_range is None else parse_range(skills_range)
    show_clusters(place, against=against, corpus=corpus, pictures=pictures, skills_range=tried)


def _write_facts(place: str) -> None:
    """Write the facts of an artefact, or of a run that has not begun, as JSON."""
    from skillshard.artefact import has_not_begun
    from skillshard.mixing.ledger import DirectoryLedger
    from skillshard.report.facts import facts_at
    from skillshard.report.waiting import waiting_facts

    write_json(waiting_facts(DirectoryLedger(place)) if has_not_begun(place) else facts_at(place))


def _show(place: str) -> None:
    """Show an artefact, or a run that has not begun."""
    from skillshard.artefact import has_not_begun
    from skillshard.mixing.ledger import DirectoryLedger
    from skillshard.report.handover import show_waiting_run
    from skillshard.report.text import show

    if has_not_begun(place):
        show_waiting_run(DirectoryLedger(place))
    else:
        show(place)


def _refuse_all_but_a_run(place: str, option: str) -> None:
    from skillshard.artefact import MANIFESTS, kind
    from skillshard.mixing.ledger import RUN

    if (name := kind(place)) != RUN:
        raise typer.BadParameter(
            f"{place} holds {MANIFESTS[name]}, and {option} shows a run's ledger.", param_hint=option
        )


def _write_table(place: str) -> None:
    from skillshard.mixing.chain import Chain
    from skillshard.mixing.ledger import DirectoryLedger
    from skillshard.mixing.records import open_records
    from skillshard.report.run_table import run_table

    chain = Chain.of(open_records(DirectoryLedger(place)))
    for line in run_table(chain.segments):
        sys.stdout.write(line)
    if chain.missing is not None:
        typer.echo(printable(f"note: earlier runs are not listed: {chain.why_missing}"), err=True)


def _follow(place: str, every: float) -> None:
    """Show a run until Ctrl-C."""
    from rich.console import Console

    while True:
        Console().clear()  # nothing is cleared where the output is no terminal
        _show(place)
        sys.stdout.flush()
        time.sleep(every)


def verify(place: Artefact) -> None:
    """Compare every byte of an artefact with its manifest. The exit code is 1 if anything is wrong."""
    from skillshard.verification import verify as find_faults

    with Bars() as bars, bars.working("verifying"):
        faults, summary = find_faults(place)
    for fault in faults:
        typer.echo(f"error: {in_options(fault)}", err=True)
    if faults:
        raise typer.Exit(1)
    typer.echo(in_options(summary))
