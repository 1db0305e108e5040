"""`skillshard synth`: the paper's corpora."""

from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.options import Out, parse_proportions
from skillshard.printable import counted

synth = typer.Typer(help="Generate the paper's synthetic corpora.", no_args_is_help=True)


@synth.command()
def lego(
    k: Annotated[int, typer.Option("--k", min=1, max=26, help="Variables in the chain: the number of skills.")],
    num_samples: Annotated[int, typer.Option("--samples", min=1, help="Number of samples.")],
    out: Out,
    order: Annotated[
        str, typer.Option("--order", help="'shuffled' clauses as in the paper, or 'chain': the easier ordered LEGO.")
    ] = "shuffled",
    proportions: Annotated[
        str, typer.Option("--proportions", help="'natural' (1:...:1:3:5), 'uniform', or numbers such as 1:2:4.")
    ] = "natural",
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """The paper's LEGO corpus: chains of variables; skill i asks for the i-th."""
    from skillshard.synthetic.lego import write_lego

    with Bars(out) as bars, bars.working("generating"):
        places = write_lego(
            out, k=k, num_samples=num_samples, seed=seed, order=order, proportions=parse_proportions(proportions)
        )
    typer.echo(
        f"{counted(num_samples, 'sample')} in {counted(len(places), 'file')} in {out}; tag them with 'skillshard tag metadata {out} --field meta.skill'"
    )


@synth.command()
def addition(
    k: Annotated[int, typer.Option("--k", min=1, max=9, help="Digits of each number: the number of skills.")],
    num_samples: Annotated[int, typer.Option("--samples", min=1, help="Number of samples.")],
    out: Out,
    proportions: Annotated[
        str, typer.Option("--proportions", help="'natural' (13:14:18 for k=3), 'uniform', or numbers such as 1:2:4.")
    ] = "natural",
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """The paper's addition corpus: sums of two numbers; skill i asks for the i-th digit from the right."""
    from skillshard.synthetic.addition import write_addition

    with Bars(out) as bars, bars.working("generating"):
        places = write_addition(
            out, k=k, num_samples=num_samples, seed=seed, proportions=parse_proportions(proportions)
        )
    typer.echo(
        f"{counted(num_samples, 'sample')} in {counted(len(places), 'file')} in {out}; tag them with 'skillshard tag metadata {out} --field meta.skill'"
    )
