"""`skillshard run`: the stages of a pipeline file, one command after the other."""

import contextlib
import io
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillshard.bars import duration
from skillshard.cli.options import RayAddress, Workers
from skillshard.cli.values import relative_paths
from skillshard.cli.verb import Verb
from skillshard.cli.words import Running
from skillshard.errors import PipelineError, did_you_mean

if TYPE_CHECKING:
    from skillshard.pipeline import Pipeline, Stage

# Typer exports only some subclasses of the class of all usage errors.
_UsageError: Any = typer.BadParameter.__mro__[1]
GIVEN_BY_PIPELINE = frozenset(("help", "help-all", "dry-run", "tags", "stage", "tasks", "finish"))
"""Options of the verbs that a pipeline file cannot give: the pipeline itself gives the inputs."""


@dataclass(frozen=True)
class Command:
    """A stage with its parsed command.

    Attributes:
        stage: The stage.
        verb: Verb as click knows the verb.
        words: Words after the verb.
    """

    stage: "Stage"
    verb: Any
    words: list[str]

    def __str__(self) -> str:
        return shlex.join(["skillshard", *self.stage.verbs, *self.words])


def run(
    pipeline: Annotated[
        Path, typer.Argument(metavar="PIPELINE", help="YAML file of the stages (schemas/pipeline-1.json).")
    ],
    *,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="First stage to run: tag, regroup, shard, tokens or graph. The earlier stages must be finished, and are not looked at.",
            show_default="the first stage",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file, and print the stages and their commands.")
    ] = False,
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Run the stages of a pipeline file: tag, regroup, shard, tokens, graph. Finished stages are skipped."""
    from skillshard.pipeline import read_pipeline
    from skillshard.report.text import print_table

    definition = read_pipeline(pipeline)
    if workers is not None or ray_address is not None:  # the command line replaces the file's choice of processes
        definition = definition.model_copy(update={"workers": workers, "ray_address": ray_address})
    commands = commands_of(definition, Verb.root, str(pipeline))
    chosen = commands if first is None else _from(first, commands, str(pipeline))
    if dry_run:
        print_table(("stage", "status", "place"), [(c.stage.title, c.stage.status(), c.stage.out) for c in commands])
        for command in chosen:
            typer.echo(str(command))
        return
    results = {command.stage.title: "not looked at" for command in commands}
    for command in chosen:
        results[command.stage.title] = _run(command, str(pipeline))
    print_table(("stage", "status", "place"), [(c.stage.title, results[c.stage.title], c.stage.out) for c in commands])


def commands_of(pipeline: "Pipeline", root: Any, file: str) -> list[Command]:
    """Return the commands of a pipeline. All options of all stages are checked before the first stage runs.

    Args:
        pipeline: Content of the file.
        root: Command of the whole program.
        file: Name of the file, for messages.

    Raises:
        PipelineError: A verb or an option is not known, or a value does not fit.
    """
    from skillshard.pipeline import stages_of

    return [_command(pipeline, stage, root, file) for stage in stages_of(pipeline)]


def _command(pipeline: "Pipeline", stage: "Stage", root: Any, file: str) -> Command:
    from skillshard.pipeline import refuse_unknown, words_of

    where = f"{file}: {stage.title}"
    verb = root
    for word in stage.verbs:
        refuse_unknown({word: None}, list(verb.commands), where=f"{file}: {stage.name}")
        verb = verb.commands[word]
    options = {
        option.opts[0].removeprefix("--"): option
        for option in verb.params
        if option.param_type_name == "option" and option.opts[0].removeprefix("--") not in GIVEN_BY_PIPELINE
    }
    refuse_unknown(stage.options, sorted(options), where=where)
    of_all = {"workers": pipeline.workers, "ray-address": pipeline.ray_address}
    words = list(stage.arguments)
    for key, value in {**of_all, **stage.options}.items():
        option = options[key]
        words += words_of(key, value, option.opts[0], next(iter(option.secondary_opts), None))
    words += ["--out", stage.out]
    with _faults_of(where):
        verb.make_context(stage.title, list(words))
    if Running.is_job and (relative := relative_paths(verb, words)):
        raise PipelineError(
            f"{where}: {relative[0]} is a relative path, and the working directory of a Ray job is a copy on some node. Give absolute paths "
            "that every node sees, or URIs."
        )
    return Command(stage, verb, words)


@contextlib.contextmanager
def _faults_of(where: str) -> Iterator[None]:
    """Turn a usage error of a stage into an error that names the pipeline file and the stage."""
    try:
        yield
    except _UsageError as error:
        raise PipelineError(f"{where}: {error.format_message().rstrip('.')}.") from error


def _from(first: str, commands: list[Command], file: str) -> list[Command]:
    names = list(dict.fromkeys(command.stage.name for command in commands))
    if first not in names:
        raise PipelineError(
            f"{first!r} is no stage of {file}{did_you_mean(first, names)}. The stages: {', '.join(names)}."
        )
    number = next(number for number, command in enumerate(commands) if command.stage.name == first)
    for command in commands[:number]:
        if command.stage.status() != "finished":
            raise PipelineError(
                f"{command.stage.out} is not finished, and --from {first} does not run the stage '{command.stage.title}'. Begin with --from "
                f"{command.stage.name}, or leave the option out."
            )
    return commands[number:]


def _run(command: Command, file: str) -> str:
    """Run a stage, and return its result for the table of stages."""
    stage = command.stage
    is_finished = stage.status() == "finished"
    typer.echo(f"{stage.title}: {'finished before' if is_finished else str(command)}")
    started_s = time.monotonic()
    # A finished stage is still called: the command compares the inputs and arguments with those of the finished output.
    hidden = contextlib.redirect_stdout(io.StringIO()) if is_finished else contextlib.nullcontext()
    with (
        _faults_of(f"{file}: {stage.title}"),
        hidden,
        command.verb.make_context(stage.title, list(command.words)) as context,
    ):
        command.verb.invoke(context)
    return "finished before" if is_finished else f"done in {duration(time.monotonic() - started_s)}"
