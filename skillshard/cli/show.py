"""`skillshard inspect` and `verify`: look at an artefact."""

from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.options import Artefact, Json
from skillshard.cli.output import write_json
from skillshard.cli.values import parse_range
from skillshard.cli.verb import Verb
from skillshard.cli.words import in_options


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
) -> None:
    """Show the contents of an artefact."""
    from skillshard.report.text import show

    if json:
        Verb.given.refuse(
            ["against", "corpus", "pictures", "skills_range"],
            "has no JSON form: leave out --json, or run the verb once for each",
        )
        from skillshard.report.facts import facts_at

        write_json(facts_at(place))
        return
    if against is None and pictures is None and skills_range is None:
        Verb.given.refuse(["corpus"], "is where --against reads a field from: give --against FIELD")
        show(place)
        return
    from skillshard.report.clusters import show_clusters

    tried = None if skills_range is None else parse_range(skills_range)
    show_clusters(place, against=against, corpus=corpus, pictures=pictures, skills_range=tried)


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
