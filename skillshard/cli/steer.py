"""`skillshard steer`: other weights for a run that trains."""

from typing import Annotated, Literal

import typer

from skillshard.cli.past import Run


def steer(
    run: Run,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Reason, for readers of the record.")],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE|JSON",
            help="Weights of the skills: a file of 'weights' or 'fit', or a JSON object of names and numbers.",
        ),
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Keep the weights of the last decided round.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let the policy decide again.")] = False,
) -> None:
    """Give a run other weights from the next undecided round on. The policy goes on observing the losses."""
    from skillshard.mixing.steer import steer as record_steering

    if (weights is not None) + freeze + resume != 1:
        raise typer.BadParameter("give either --weights, --freeze or --resume.", param_hint="--weights")
    action: Literal["weights", "freeze", "resume"] = "freeze" if freeze else "resume" if resume else "weights"
    steering = record_steering(run, action, why=why, weights=weights)
    typer.echo(
        f"{run}: steering {steering.number} ({action}) acts from round {steering.record.first_round:,} on, or from the next undecided round on."
    )
