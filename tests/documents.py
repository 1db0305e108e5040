"""Read the code blocks of Markdown documents, and run the blocks.

A comment in the line before a block says how a test treats the block:

    <!-- file: map.json -->            the content of a file, which is written before the next block runs
    <!-- output -->                    lines that the block before has printed, in this order; `...` stands for any text in a line
    <!-- from: examples/ddp.py -->     lines that stand in a file of the repository, in this order
    <!-- not run: needs a cluster -->  a block whose syntax and option names alone are checked
    <!-- test command -->              the commands that run this suite, which are not run again
    <!-- numbers vary -->              a console block whose numbers differ between machines; the rest of the output is compared

Without a comment a block of Python or of shell commands is run, and a block in another language is only shown. A console block holds
commands after "$ ", and below each command its whole output, up to white space. A line `...` in the output stands for any lines.
"""

import ast
import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from skillshard.cli import app
from skillshard.report.text import BARS
from tests.commands import Outcome, skillshard
from tests.conftest import REPOSITORY

FENCE = re.compile(
    r"(?:^<!-- *(?P<mark>[^>]*?) *-->\n)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", flags=re.S | re.M
)
NUMBERS_VARY = "numbers vary"
PROGRESS = re.compile(r"^[\w ]+: \d+ of \d+.*$", flags=re.M)
"""A line of progress, which names seconds. A terminal shows a bar in place of the line."""
REASONS = {
    "needs a published corpus",
    "needs a cluster",
    "needs Slurm",
    "needs a network",
    "needs minutes",
    "needs a GPU",
}
"""Reasons that keep a block from being run."""


class Block(NamedTuple):
    """A code block of a document."""

    language: str
    code: str
    mark: str
    line: int

    @property
    def is_run(self) -> bool:
        return self.language in ("bash", "python", "console") and self.mark in ("", NUMBERS_VARY)


def blocks_of(text: str) -> list[Block]:
    """Return the code blocks of a document, in order.

    >>> blocks_of("<!-- file: a.json -->\\n```json\\n{}\\n```\\n")
    [Block(language='json', code='{}\\n', mark='file: a.json', line=2)]
    """
    return [
        Block(match["language"], match["code"], match["mark"] or "", text.count("\n", 0, match.start("code")))
        for match in FENCE.finditer(text)
    ]


def run_document(document: Path, folder: Path, *, compares: bool = True) -> None:
    """Run the blocks of a document in a directory, one after the other. The Python blocks share their variables.

    Args:
        document: A Markdown file.
        folder: The directory in which the blocks run.
        compares: Compare the outputs of console blocks. A second time through a document, a finished training prints less.
    """
    variables: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(document.read_text()):
        place = f"{document.name}, line {block.line}"
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(block.code)
        elif block.mark == "output":
            check_output(block.code, printed, place)
        elif block.mark.startswith("from: "):
            check_output(block.code, (REPOSITORY / block.mark.removeprefix("from: ")).read_text(), place)
        elif block.language == "console" and block.is_run:
            run_console(block, folder, place, compares=compares)
        elif block.mark and block.mark != "test command":
            check_unrun(block, place)
        elif block.language == "bash" and block.is_run:
            printed = run_shell(block.code, folder, place)
        elif block.language == "python":
            printed = run_python(block.code, folder, variables, place)


def run_shell(code: str, folder: Path, place: str) -> str:
    """Run shell commands, each verb of skillshard that needs no shell in this process, because a new process takes seconds to start."""
    printed = ""
    for piece in pieces_of(code):
        (words, *_) = [*commands_of(piece), [""]]
        outcome = in_shell(piece, folder) if needs_shell(piece) else in_this_process(words, folder)
        assert outcome.code == 0, f"{place}: {shlex.join(words)}: {outcome.out}{outcome.err}"
        printed += outcome.out
    return printed


STATE_OF_SHELL = re.compile(r"<<|^ *(cd|export|source|set|for|while|until|if)\b|^ *\w+=|(?<!&)& *$|\$!", flags=re.M)
"""Commands after which the next line of a block needs the same shell, such as a command in the background, and documents within a block."""


def pieces_of(code: str) -> list[str]:
    r"""Cut a block into its commands. A block whose commands need one shell is one piece.

    >>> pieces_of("mkdir new\n# A comment.\nskillshard tag metadata new \\\n--field topic\n")
    ['mkdir new', 'skillshard tag metadata new  --field topic']
    >>> pieces_of("cd new\nls\n"), pieces_of("python train.py &\nwait\n")
    (['cd new\nls\n'], ['python train.py &\nwait\n'])
    """
    if STATE_OF_SHELL.search(code):
        return [code]
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if commands_of(line)]


def needs_shell(code: str) -> bool:
    """Return whether the commands are more than verbs of skillshard one after the other."""
    others = any(words[0] != "skillshard" for words in commands_of(code))
    return others or bool(re.search(r"[|<>$&;]", re.sub(r"'[^']*'|#.*", "", code)))


def in_shell(code: str, folder: Path) -> Outcome:
    """Run shell commands in a shell that finds the programs of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},  # tests share the cores
        timeout=250,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def in_this_process(words: list[str], folder: Path) -> Outcome:
    """Run a verb of skillshard in a directory, without the start of a process."""
    with contextlib.chdir(folder):
        return skillshard(*words[1:], *one_worker(words))


def run_console(block: Block, folder: Path, place: str, *, compares: bool) -> None:
    """Run the commands of a console block, and compare the output with the output in the document.

    A command whose output shows an error must fail. Every other command must end with 0.
    """
    beginning, *parts = re.split(r"^\$ ", block.code, flags=re.M)
    assert not beginning.strip(), f"{place}: a console block begins with a command after '$ ', not with {beginning!r}"
    for part in parts:
        code, _, shown = part.partition("\n")
        outcome = run_command(code, folder)
        printed = outcome.out + PROGRESS.sub("", outcome.err)
        assert (outcome.code != 0) == ("error: " in shown), f"{place}: $ {code} ended with {outcome.code}: {printed}"
        if compares:
            check_whole_output(shown, printed, f"{place}: $ {code}", numbers_vary=block.mark == NUMBERS_VARY)


def run_command(code: str, folder: Path) -> Outcome:
    """Run a command of a console block. A verb and a script of Python run in this process, which has imported PyTorch."""
    words = shlex.split(code)
    if words[0] == "python" and len(words) == 2:
        return Outcome(0, in_main(folder / words[1]), "")
    return in_shell(code, folder) if needs_shell(code) else in_this_process(words, folder)


def in_main(script: Path) -> str:
    """Run a script in its directory like Python, in this process, and return the output."""
    out = io.StringIO()
    with contextlib.chdir(script.parent), contextlib.redirect_stdout(out):
        runpy.run_path(script.name, run_name="__main__")
    return out.getvalue()


def check_whole_output(expected: str, printed: str, place: str, *, numbers_vary: bool) -> None:
    """Compare the whole output of a command with the output in a document, up to white space."""
    pieces = [plain(piece, numbers_vary) for piece in re.split(r"^\.\.\.$", expected, flags=re.M)]
    pattern = ".*".join(re.escape(piece) for piece in pieces)
    assert re.fullmatch(pattern, plain(printed, numbers_vary)), f"{place} shows {' ... '.join(pieces)!r}:\n{printed}"


def plain(text: str, numbers_vary: bool) -> str:
    """Return a text in one line, with one space between words. If numbers vary, # replaces each number and each sparkline."""
    flat = " ".join(text.split())
    return re.sub(rf"\d[\d.,]*|[{BARS}]+", "#", flat) if numbers_vary else flat


def one_worker(words: list[str]) -> list[str]:
    """Return the option that keeps a command in one process. The bytes are the same, and a pool takes seconds to start."""
    command = command_of(words)[0]
    options = {name for parameter in command.params for name in parameter.opts}
    return ["--workers", "1"] if "--workers" in options and not {"--workers", "--ray-address"} & set(words) else []


def run_python(code: str, folder: Path, variables: dict[str, Any], place: str) -> str:
    """Run a block of Python in this process."""
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        exec(compile("\n" * int(place.rpartition(" ")[2]) + code, place, "exec"), variables)
    return out.getvalue()


def check_output(expected: str, printed: str, place: str) -> None:
    """Compare the lines that a document shows with the lines that its commands printed."""
    rest = [" ".join(line.split()) for line in printed.splitlines()]
    for line in filter(None, (" ".join(line.split()) for line in expected.splitlines())):
        pattern = re.escape(line).replace(re.escape("..."), ".*")
        while rest and not re.fullmatch(pattern, rest[0]):
            rest.pop(0)
        assert rest, f"{place}: {line!r} is missing, or not in this order:\n{printed}"


def check_unrun(block: Block, place: str) -> None:
    """Check a block that is not run: its reason, its syntax and the options of its commands."""
    reason = block.mark.removeprefix("not run: ")
    assert reason in REASONS, f"{place}: {block.mark!r} is no mark of a block; reasons: {sorted(REASONS)}"
    if block.language == "python":
        ast.parse(block.code)
        return
    assert block.language == "bash", f"{place}: only a block of Python or shell commands is marked as not run"
    ended = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
    assert ended.returncode == 0, f"{place}: {ended.stderr}"
    for words in commands_of(block.code):
        for unknown in unknown_options(words):
            raise AssertionError(f"{place}: {shlex.join(words)}: no option {unknown}")


def commands_of(code: str) -> list[list[str]]:
    """Return the words of each command of a block, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def unknown_options(words: list[str]) -> Iterator[str]:
    """Return the options of a command of skillshard, or of a Ray job, that the command does not have."""
    for position, word in enumerate(words):
        job = re.fullmatch(r"(?:jobs/)?(graph|regroup|shard|tag|tokens)\.py", word)
        if word == "skillshard" or job:
            command, rest = command_of(["skillshard", *([job[1]] if job else []), *words[position + 1 :]])
            names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            yield from (option for option in rest if option.startswith("--") and option not in names)
            return


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the verb of a command line of skillshard, and the words after the verb."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest
