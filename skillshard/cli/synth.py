"""`skillshard synth`: generate the paper's corpora."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.options import LocalOut
from skillshard.cli.values import parse_proportions
from skillshard.cli.verb import Verb
from skillshard.command import program
from skillshard.printable import counted

synth = typer.Typer(help="Generate the paper's synthetic corpora.", no_args_is_help=True)


@synth.command(cls=Verb, epilog="    skillshard synth lego --k 5 --samples 10000 --out corpus")
def lego(
    k: Annotated[
        int, typer.Option("--k", metavar="N", min=1, max=26, help="Number of variables in a chain, and of skills.")
    ],
    num_samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Number of samples.")],
    out: LocalOut,
    order: Annotated[
        str,
        typer.Option(
            "--order",
            metavar="shuffled|chain",
            help="Order of the clauses: shuffled as in the paper, or in the order of the chain, which is easier.",
        ),
    ] = "shuffled",
    proportions: Annotated[
        str,
        typer.Option(
            "--proportions",
            metavar="RATIO",
            help="Sizes of the skills: 'natural' (1:...:1:3:5), 'uniform', or numbers such as 1:2:4.",
        ),
    ] = "natural",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the corpus.")] = 0,
) -> None:
    """Generate the paper's LEGO corpus: chains of variables. Skill i asks for variable i."""
    from skillshard.synthetic.lego import write_lego

    with Bars(out) as bars, bars.working("generating"):
        places = write_lego(
            out, k=k, num_samples=num_samples, seed=seed, order=order, proportions=parse_proportions(proportions)
        )
    _show_made(num_samples, len(places), out)


@synth.command(cls=Verb, epilog="    skillshard synth addition --k 3 --samples 10000 --out corpus")
def addition(
    k: Annotated[
        int, typer.Option("--k", metavar="N", min=1, max=9, help="Number of digits of a number, and of skills.")
    ],
    num_samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Number of samples.")],
    out: LocalOut,
    proportions: Annotated[
        str,
        typer.Option(
            "--proportions",
            metavar="RATIO",
            help="Sizes of the skills: 'natural' (13:14:18 for k=3), 'uniform', or numbers such as 1:2:4.",
        ),
    ] = "natural",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the corpus.")] = 0,
) -> None:
    """Generate the paper's addition corpus: sums of two numbers. Skill i asks for digit i from the right."""
    from skillshard.synthetic.addition import write_addition

    with Bars(out) as bars, bars.working("generating"):
        places = write_addition(
            out, k=k, num_samples=num_samples, seed=seed, proportions=parse_proportions(proportions)
        )
    _show_made(num_samples, len(places), out)


def _show_made(num_samples: int, num_files: int, out: Path) -> None:
    """Print what was written, and the command that tags the corpus, as a shell needs it."""
    command = shlex.join(["tag", "metadata", str(out), "--field", "meta.skill", "--out", f"{out}-tags"])
    typer.echo(
        f"{counted(num_samples, 'sample')} in {counted(num_files, 'file')} in {out}. Tag the corpus:\n  {program()} {command}"
    )
