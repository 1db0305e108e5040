"""`skillshard demo`."""

from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.words import in_options
from skillshard.command import program


def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory of the demo's files, about 75 MB.")] = Path(
        "skillshard-demo"
    ),
    num_samples: Annotated[
        int, typer.Option("--samples", min=500, help="Number of samples to train on, of eight problems each.")
    ] = 20_000,
    steps: Annotated[int, typer.Option("--steps", min=60, help="Optimizer steps of each training.")] = 2400,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of corpus, model and stream. The evidence uses the seeds 0 to 9.")
    ] = 10,
) -> None:
    """Generate a corpus, tag and shard the corpus, and train three times: natural, equal and SKILL-IT weights.

    The demo takes about two minutes on two cores.
    """
    from skillshard.demo import run_demo, show_results, summary

    with Bars(out) as bars:
        results = run_demo(
            out, num_samples=num_samples, steps=steps, seed=seed, on_stage=bars.stage, working=bars.working
        )
    show_results(results)
    typer.echo(in_options(summary(results, out, seed=seed, program=program())))
