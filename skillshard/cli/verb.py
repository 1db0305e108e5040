"""The class of the verbs: which options were given, and the panels and examples of the help."""

import os
import re
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import typer

from skillshard.cli.words import Running

WHAT, HOW, FIELDS, MORE_FIELDS, READING, FILES, TEXTS, WHERE, ARRAY = (
    "What",
    "How",
    "Fields of a row",
    "Answers and metadata",
    "How the corpus is read",
    "Files of the corpus",
    "How texts are read",
    "Where it runs",
    "One process of a job array",
)
"""Panels of a verb's help."""
EDGES, TRAINING, STREAM, ENCODER = "Edges", "Trials in detail", "Stream", "Encoder in detail"
TOKEN_FIELDS = "Samples that are tokenized already"
DETAILS = (MORE_FIELDS, TOKEN_FIELDS, READING, FILES, TEXTS, EDGES, TRAINING, STREAM, ENCODER, WHERE, ARRAY)
"""Panels of a verb with many options that only `--help-all` shows, so that the help fits a screen."""
# About 50 lines at 100 columns. A verb with fewer options shows all of them.
MANY_OPTIONS = 13


class Given:
    """The options that stand on the command line, also the options that were given their default value."""

    def __init__(self, context: Any) -> None:
        self._options: dict[str, str] = {}
        for parameter in context.command.params:
            source = None if parameter.name is None else context.get_parameter_source(parameter.name)
            if source is not None and source.name == "COMMANDLINE":
                self._options[str(parameter.name)] = parameter.opts[0]

    def __contains__(self, name: str) -> bool:
        return name in self._options

    def refuse(self, names: Collection[str], why: str) -> None:
        """Raise a usage error for the first given option among `names`."""
        for name, option in self._options.items():
            if name in names:
                raise typer.BadParameter(f"{option} {why}.", param_hint=option)


HELP_ALL = "--help-all"


def _panel_of(parameter: Any) -> str:
    return getattr(parameter, "rich_help_panel", None) or ""


class Verb(typer.core.TyperCommand):
    """A verb that knows which options were given, and whose help ends with examples.

    `epilog` holds the examples, a command a line. The `--help` of a verb with many options leaves out the panels
    of `DETAILS`, and `--help-all` shows every option.
    """

    given: ClassVar[Given]
    root: ClassVar[Any]
    """The command of the whole program, with all verbs."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if HELP_ALL in args[: args.index("--") if "--" in args else None]:
            ctx.meta[HELP_ALL], args = True, ["--help"]
        self._refuse_options_of_tags(ctx, args)
        # A shell expands the home directory in `--out ~/tags` and not in `--out=~/tags`.
        return super().parse_args(ctx, [re.sub(r"^(--[\w-]+=)~(?=/|$)", _with_home, word) for word in args])

    def _refuse_options_of_tags(self, ctx: Any, args: list[str]) -> None:
        """Raise a usage error if a verb that reads a corpus by its tags gets an option that the tags record."""
        own = {option for parameter in self.params for option in parameter.opts}
        # The stage of a pipeline file is a verb without the program around it.
        verbs = getattr(ctx.find_root().command, "commands", None)
        if "--tags" not in own or verbs is None:
            return
        tagging = verbs["tag"].commands["metadata"]
        recorded = {
            option
            for parameter in tagging.params
            if _panel_of(parameter) in (FIELDS, MORE_FIELDS, TOKEN_FIELDS, READING, FILES)
            for option in parameter.opts
        }
        for word in args[: args.index("--") if "--" in args else None]:
            if (option := word.partition("=")[0]) in recorded - own:
                raise typer.BadParameter(
                    "the tags record how the corpus is read. Leave the option out, or tag the corpus anew with it.",
                    ctx=ctx,
                    param_hint=option,
                )

    def invoke(self, ctx: Any) -> Any:
        Verb.given, Verb.root = Given(ctx), ctx.find_root().command
        Running.begin(ctx.command.params)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would end with exit code 1, as for an error.
            end_quietly()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # Typer joins the lines of an epilog to a paragraph. Examples must stay one command a line.
        examples, self.epilog = self.epilog, None
        is_long = len(self.params) > MANY_OPTIONS and not ctx.meta.get(HELP_ALL)
        details = [parameter for parameter in self.params if is_long and _panel_of(parameter) in DETAILS]
        for parameter in details:
            parameter.hidden = True  # type: ignore[attr-defined]  # every option has the attribute
        super().format_help(ctx, formatter)
        for parameter in details:
            parameter.hidden = False  # type: ignore[attr-defined]
        self.epilog = examples
        if details:
            panels = ", ".join(dict.fromkeys(map(_panel_of, details)))
            typer.echo(f" More options ({panels}):\n   {ctx.command_path} {HELP_ALL}\n")
        if examples:
            typer.echo(
                " Examples:\n" + "\n".join(f"   {line.strip()}" for line in examples.strip().splitlines()) + "\n"
            )


def _with_home(match: re.Match[str]) -> str:
    return match[1] + str(Path.home())


def end_quietly() -> None:
    """End the process after the reader of the output has gone. The null device takes the rest, so Python prints no complaint."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
