"""`skillshard VERB`: parse, call one function, print. Heavy modules are imported inside the verbs.

Exit codes: 0 done, 1 an error in one sentence, 2 usage, 3 records of an earlier stage of a job array are
missing, 130 stopped by Ctrl-C, 143 stopped by SIGTERM, 141 nobody reads the output any more (`| head`). With SKILLSHARD_DEBUG=1 in the environment a mistake of skillshard itself is shown
with its traceback.
"""

import contextlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from skillshard import __version__
from skillshard.bars import Stopped
from skillshard.cli.compare import compare
from skillshard.cli.demo import demo
from skillshard.cli.explain import diff, replay
from skillshard.cli.go_on import go_on
from skillshard.cli.graph import graphs
from skillshard.cli.past import at, seen
from skillshard.cli.peek import peek
from skillshard.cli.regroup import regroup
from skillshard.cli.report import report
from skillshard.cli.run import run
from skillshard.cli.shards import shard, tokens
from skillshard.cli.show import inspect, verify
from skillshard.cli.steer import steer
from skillshard.cli.synth import synth
from skillshard.cli.tag import tag
from skillshard.cli.values import relative_paths
from skillshard.cli.verb import Verb, end_quietly
from skillshard.cli.weights import export, fit, mix, weights
from skillshard.cli.words import Running, in_options
from skillshard.command import stopped
from skillshard.errors import MissingTasksError, SkillshardError
from skillshard.job_array import StageEnded
from skillshard.printable import printable
from skillshard.ray_connection import one_connection

AGAIN_S = 0.05
"""Time after which a signal that a destructor swallowed is sent again. Most destructors end sooner."""
DEBUG = "SKILLSHARD_DEBUG"
"""Environment variable that shows the traceback of an internal error if the value is 1."""

EXAMPLES: dict[Callable[..., None], str] = {
    peek: """
    skillshard peek corpus/
    skillshard peek task.json --rows Instances --json
    """,
    regroup: """
    skillshard regroup tags --map map.json --out fewer
    skillshard regroup tags-by-source tags-by-embedding --min-share 0.01 --rest other --out crossed
    """,
    shard: """
    skillshard shard corpus/ --tags tags --out shards
    skillshard shard corpus/ --tags tags --holdout 0.02 --copies drop --out shards
    """,
    tokens: """
    skillshard tokens shards --tokenizer tokenizer.json --out tokens
    """,
    run: """
    skillshard run pipeline.yaml --dry-run
    skillshard run pipeline.yaml --from shard
    """,
    inspect: """
    skillshard inspect shards
    skillshard inspect tags --against meta.source --pictures pictures
    skillshard inspect runs/1 --follow
    """,
    verify: """
    skillshard verify shards
    """,
    at: """
    skillshard at runs/1 --draw 4000 --num 3
    skillshard at runs/1 --step 120 --rank 3 --world-size 8
    """,
    go_on: """
    skillshard continue runs/1 --draw 12800 --out runs/2
    skillshard continue runs/1 --step 400 --shards shards-2 --out runs/2
    """,
    seen: """
    skillshard seen runs/1 --id q00017
    """,
    replay: """
    skillshard replay runs/1
    skillshard replay runs/1 --policy loss_order:eta=0.5+floor:least=0.01
    """,
    diff: """
    skillshard diff runs/1 runs/2
    """,
    steer: """
    skillshard steer runs/1 --weights weights.json --why "more code"
    skillshard steer runs/1 --freeze --why "the losses jump"
    skillshard steer runs/1 --resume --why "the losses are calm again"
    """,
    report: """
    skillshard report runs/1 --out report.html
    skillshard report runs/1 runs/2 --graph graph.json --out report.html
    """,
    mix: """
    skillshard mix shards --draws 1000
    skillshard mix shards --draws 1000 --policy temperature --tau 2 --out stream.jsonl
    """,
    export: """
    skillshard export shards --format parquet --out exported
    skillshard export shards --format jsonl.zst --weights weights.json --draws 100000 --out mixed
    """,
    weights: """
    skillshard weights shards --policy skill_it --graph graph.json --eta 0.5 --out weights.json
    """,
    fit: """
    skillshard fit runs/ --shards shards --out weights.json
    """,
    compare: """
    skillshard compare shards --policy stratified --policy skill_it:graph.json,eta=0.5 --steps 600 --out compared
    skillshard compare runs/1 runs/2 --baseline stratified
    """,
    demo: """
    skillshard demo
    skillshard demo --seed 11 --out demo-11
    """,
}
"""Verb -> the examples at the end of its help."""
NAMES: dict[Callable[..., None], str] = {go_on: "continue"}
"""Verb -> its name, if the name is a keyword of Python."""


class _Verbs(typer.core.TyperGroup):
    """The verbs in the order of the work, from a corpus to finished runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [
            "peek",
            "tag",
            "regroup",
            "shard",
            "tokens",
            "inspect",
            "verify",
            "at",
            "seen",
            "replay",
            "diff",
            "steer",
            "report",
            "continue",
            "graph",
            "run",
            "weights",
            "mix",
            "export",
            "fit",
            "compare",
            "synth",
            "demo",
        ]
        return sorted(super().list_commands(ctx), key=order.index)


app = typer.Typer(
    name="skillshard",
    cls=_Verbs,
    help="From a text corpus to the batch on the GPU: tag the samples with skills, write shards, mix the shards live.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tag, name="tag")
for verb, examples in EXAMPLES.items():
    app.command(cls=Verb, epilog=examples, name=NAMES.get(verb))(verb)
app.add_typer(graphs, name="graph")
app.add_typer(synth, name="synth")


def run_job(verb: str) -> None:
    """Run a verb as a Ray job (jobs/*.py), with the same words and options, on the cluster of the job."""
    command: Any = typer.main.get_command(app)
    words = [verb, *sys.argv[1:]]
    num_verbs = 0
    while hasattr(command, "commands") and num_verbs < len(words) and words[num_verbs] in command.commands:
        command = command.commands[words[num_verbs]]
        num_verbs += 1
    verbs, arguments = words[:num_verbs], words[num_verbs:]
    if not hasattr(command, "commands"):
        if relative := relative_paths(command, arguments):
            typer.echo(
                f"error: {relative[0]} is a relative path, and the working directory of a Ray job is a copy on some node. Give "
                "absolute paths that every node sees, or URIs.",
                err=True,
            )
            sys.exit(2)
        if any(parameter.name == "ray_address" for parameter in command.params):
            arguments = ["--ray-address", "auto", *arguments]
    Running.is_job = True
    try:
        main([*verbs, *arguments])
    finally:
        Running.is_job = False


def _show_version(asked: bool) -> bool:
    if not asked:
        return False
    typer.echo(f"skillshard {__version__}")
    raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """From a text corpus to the batch on the GPU: tag the samples with skills, write shards, mix the shards live."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Every error becomes one sentence and exit code 1, every warning one sentence."""
    warnings.showwarning = lambda message, *place: _tell("warning", str(message))
    for stream in (sys.stdout, sys.stderr):  # a terminal without a letter shows the letter escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    Running.begin([])
    with _signals() as received, one_connection():
        try:
            app(arguments)
        except StageEnded as ended:
            typer.echo(printable(in_options(str(ended))))
        except Stopped as stop:
            _tell_stopped(str(stop), received, arguments)
        except (KeyboardInterrupt, SystemExit) as end:
            if not received:
                raise
            _tell_stopped("", received, arguments)
            raise AssertionError from end  # not reached
        except BrokenPipeError:
            end_quietly()
        except Exception as error:
            if received:  # a library that was being imported may turn the interruption into an error of its own
                _tell_stopped("", received, arguments)
            if os.environ.get(DEBUG) and not isinstance(error, SkillshardError | OSError | MemoryError):
                traceback.print_exception(error)
            _tell("error", _sentence(error))
            if isinstance(error, MissingTasksError):
                for key in error.keys:
                    typer.echo(key)
                sys.exit(3)
            sys.exit(1)


def _tell(kind: str, sentence: str) -> None:
    typer.echo(f"{kind}: {printable(in_options(sentence))}", err=True)


def _sentence(error: Exception) -> str:
    """Return the sentence that the user reads about an error."""
    if isinstance(error, SkillshardError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        cause = f"{place}{error.strerror}" if error.strerror else str(error)
        return f"{cause}. What is finished is kept: mend the cause and run the same command again."
    if isinstance(error, MemoryError):
        return (
            f"the memory of this machine does not suffice ({str(error).rstrip('.') or 'MemoryError'}). What is finished is kept: free memory, or "
            "take fewer --workers or a smaller --partition-size, and run the command again."
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "skillshard" in frame.filename]
    frame = ours[-1] if ours else last
    return (
        f"this is a mistake in skillshard, not of yours: {type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno}). "
        f"What is finished is kept. To report it, run the same command with {DEBUG}=1 and send what it prints."
    )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the first SIGINT or SIGTERM, and ignore later signals while the command ends.

    Yields:
        The signals that came.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    def send_again(unraisable: "sys.UnraisableHookArgs") -> None:
        # The signal came while Python ran a destructor or a library's callback: nothing can be raised from these.
        if not isinstance(unraisable.exc_value, KeyboardInterrupt) or not received:
            sys.__unraisablehook__(unraisable)
            return
        number = received.pop()
        again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell starts background jobs with Ctrl-C ignored
            before[number] = signal.signal(number, receive)
    hook, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield received
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():  # a stopped command ends now, without disturbance
            signal.signal(number, signal.SIG_IGN if received else signal.SIG_DFL if handler is None else handler)


def _tell_stopped(where: str, received: list[int], arguments: list[str] | None) -> None:
    """Print the last line of a stopped command, and end the process."""
    number = received[0] if received else int(signal.SIGINT)
    typer.echo(stopped(number, where, arguments), err=True)
    sys.exit(128 + number)
