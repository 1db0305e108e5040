"""`skillshard peek`: look at a corpus before any work."""

from typing import Annotated

import typer

from skillshard.cli.groups import grouped
from skillshard.cli.options import CorpusPlaces, Files
from skillshard.cli.output import write_json
from skillshard.cli.words import in_options


@grouped
def peek(
    corpus: CorpusPlaces,
    files: Files,
    json: Annotated[
        bool,
        typer.Option("--json", help="Write the facts as one JSON object (schemas/peek-1.json) instead of tables."),
    ] = False,
) -> None:
    """Show the files, the fields and the bad rows at the beginning of a corpus, and the command to use next."""
    from skillshard.corpus.peek import peek as look_at
    from skillshard.report.peek import show_peek

    facts = look_at(corpus, layout=files.layout())
    if json:
        write_json(facts)
    else:
        show_peek(facts, in_options)
