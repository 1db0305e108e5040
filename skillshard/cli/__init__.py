"""`skillshard VERB`: parse, call one function, print. Heavy modules are imported inside the verbs.

Exit codes: 0 done, 1 an error of data or run in one sentence, 2 usage.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import typer

from skillshard.cli.demo import demo
from skillshard.cli.graph import graphs
from skillshard.cli.shards import shard, tokens
from skillshard.cli.show import inspect, verify
from skillshard.cli.synth import synth
from skillshard.cli.tag import tag
from skillshard.cli.weights import fit, mix
from skillshard.errors import SkillshardError

app = typer.Typer(
    name="skillshard",
    help="From a text corpus to the batch on the GPU: tag it into skills, shard it, mix it live.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in (tag, shard, tokens, inspect, verify, mix, fit, demo):
    app.command()(verb)
app.add_typer(graphs, name="graph")
app.add_typer(synth, name="synth")


def run_job(*verb: str) -> None:
    """A verb as a Ray job (jobs/*.py): the same options, on the cluster that the job was submitted to."""
    arguments = sys.argv[1:]
    if relative := _relative_paths(verb, arguments):
        typer.echo(
            f"error: {relative[0]} is a relative path, and the working directory of a Ray job is a copy on some node. Give "
            "absolute paths that every node sees, or URIs.",
            err=True,
        )
        sys.exit(2)
    main([*verb, "--ray-address", "auto", *arguments])


def _relative_paths(verb: tuple[str, ...], arguments: list[str]) -> list[str]:
    command: Any = typer.main.get_command(app)
    for name in verb:
        command = command.commands[name]
    found = command.make_context(verb[-1], list(arguments), resilient_parsing=True).params
    names = ("shards", "eval_shards", "tags", "tokenizer", "cache", "out", "model", "mapping", "graph", "runs", "proxy")
    given = [found.get(name) for name in names if found.get(name) not in ("tiny", "small")]
    places = [*(found.get("corpus") or ()), *(place for place in given if isinstance(place, str | Path))]
    return [str(place) for place in places if place is not None and "://" not in str(place) and str(place)[:1] != "/"]


def main(arguments: list[str] | None = None) -> None:
    """The entry point: every error of ours becomes one sentence and exit code 1, every warning one sentence."""
    warnings.showwarning = lambda message, *place: typer.echo(f"warning: {message}", err=True)
    try:
        app(arguments)
    except SkillshardError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        typer.echo(
            f"error: {error}. What is finished is kept: mend the cause and run the same command again.", err=True
        )
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("stopped; what is finished is kept: run the same command again to go on.", err=True)
        sys.exit(130)
