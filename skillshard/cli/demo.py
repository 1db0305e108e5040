"""`skillshard demo`."""

from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.words import in_options


def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for everything it makes.")] = Path("skillshard-demo"),
    k: Annotated[int, typer.Option("--k", min=2, max=8, help="Variables in the chain: the number of skills.")] = 4,
    num_samples: Annotated[int, typer.Option("--samples", min=2000, help="Size of the corpus.")] = 200_000,
    steps: Annotated[int, typer.Option("--steps", min=60, help="Optimizer steps of each training.")] = 3000,
    seed: Annotated[int, typer.Option("--seed", help="Of corpus, model and stream.")] = 0,
) -> None:
    """The whole way on the paper's LEGO task: natural, stratified and SKILL-IT, in a few minutes on two cores."""
    from skillshard.demo import run_demo, show_results, summary

    with Bars(out) as bars:
        results = run_demo(
            out, k=k, num_samples=num_samples, steps=steps, seed=seed, on_stage=bars.stage, working=bars.working
        )
    show_results(results)
    typer.echo(in_options(summary(results, out, steps=steps)))
