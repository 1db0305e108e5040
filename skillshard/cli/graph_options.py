"""The groups of options of `skillshard graph`: the definition of an edge, and the training of a trial."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from skillshard.cli.verb import EDGES, TRAINING
from skillshard.errors import GraphError, name_some


@dataclass(frozen=True)
class Edges:
    """The options on the definition of an edge."""

    edges: Annotated[
        str,
        typer.Option(
            "--edges",
            metavar="KIND",
            help="Kind of edge: 'absolute' (nats), 'relative' (share of the loss at the start), 'threshold:LOSS' (1 where a skill "
            "reaches the loss with no more samples in all, Definition 2.2 of the paper), or 'threshold-own:LOSS' (1 where the skill needs "
            "fewer samples of its own).",
            rich_help_panel=EDGES,
        ),
    ] = "absolute"
    average: Annotated[
        str | None,
        typer.Option(
            "--average",
            metavar="end|curve",
            help="Loss of a trial: the loss at the end, or the mean of the curve.",
            show_default="end; for leave-one-out curve",
            rich_help_panel=EDGES,
        ),
    ] = None
    off_diagonal: Annotated[
        float | None,
        typer.Option(
            "--off-diagonal",
            metavar="X",
            help="Scale the edges: 1 on the diagonal, X for the strongest other edge.",
            show_default="as measured",
            rich_help_panel=EDGES,
        ),
    ] = None
    clamp: Annotated[
        bool,
        typer.Option(
            "--clamp/--keep-negative",
            help="Set negative edges to 0, as the paper's algorithms do, or keep negative edges.",
            rich_help_panel=EDGES,
        ),
    ] = True
    drop_uncertain: Annotated[
        bool,
        typer.Option(
            "--drop-uncertain",
            help="Set an edge to 0 if the seeds cannot tell the edge from 0. Thresholds have a margin of their own.",
            rich_help_panel=EDGES,
        ),
    ] = False
    direct: Annotated[
        float | None,
        typer.Option(
            "--direct",
            metavar="SHARE",
            help="Keep only direct edges: ignore edges weaker than SHARE times the strongest, drop every edge that a longer path implies, "
            "and set the others to 1.",
            rich_help_panel=EDGES,
        ),
    ] = None

    def rule(self, method: str) -> Any:
        """Make the library's rule for the trials of a method. Options that do not go together are an error."""
        from skillshard.graph.edges import EdgeRule, parse_edges, usual_average

        if self.average not in (None, "end", "curve"):
            raise typer.BadParameter(f"{self.average!r}: give 'end' or 'curve'.", param_hint="--average")
        unit, threshold = parse_edges(self.edges)
        without_effect = {
            "--average": self.average is not None,
            "--keep-negative": not self.clamp,
            "--drop-uncertain": self.drop_uncertain,
        }
        if threshold is not None and any(without_effect.values()):
            raise GraphError(
                f"--edges {self.edges} compares amounts of data: its edges are 0 or 1, with a margin by the standard errors over seeds, so "
                f"{name_some(option for option, is_given in without_effect.items() if is_given)} has no effect. Leave it out."
            )
        return EdgeRule(
            unit,
            threshold,
            self.average or usual_average(method),  # type: ignore[arg-type]  # checked above and by the callers
            clamp=self.clamp,
            off_diagonal=self.off_diagonal,
            drop_uncertain=self.drop_uncertain,
            direct=self.direct,
        )


@dataclass(frozen=True)
class Training:
    """The options on how a trial is trained and measured."""

    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            min=1,
            metavar="N",
            help="Samples of a step, rounded up to a multiple of the number of skills.",
            rich_help_panel=TRAINING,
        ),
    ] = 64
    reduction: Annotated[
        str,
        typer.Option(
            "--reduction",
            metavar="NAME",
            help="Mean over a skill: per_sample, as in the paper's code, or per_token.",
            rich_help_panel=TRAINING,
        ),
    ] = "per_sample"
    lr: Annotated[
        float, typer.Option("--lr", metavar="RATE", help="Highest learning rate.", rich_help_panel=TRAINING)
    ] = 1e-3
    lr_warmup: Annotated[
        int | None,
        typer.Option(
            "--lr-warmup",
            min=0,
            metavar="N",
            help="Steps in which the learning rate rises.",
            show_default="50, at most 0.3 of the trial",
            rich_help_panel=TRAINING,
        ),
    ] = None
    eval_every: Annotated[
        int | None,
        typer.Option(
            "--eval-every",
            min=1,
            metavar="N",
            help="Steps between measurements.",
            show_default="a tenth of --steps",
            rich_help_panel=TRAINING,
        ),
    ] = None
    eval_samples: Annotated[
        int,
        typer.Option(
            "--eval-samples",
            min=1,
            metavar="N",
            help="Largest number of held-out samples of a skill.",
            rich_help_panel=TRAINING,
        ),
    ] = 100
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            min=1,
            metavar="N",
            help="Largest number of training samples of a skill.",
            rich_help_panel=TRAINING,
        ),
    ] = 20_000
    for_steps: Annotated[
        int | None,
        typer.Option(
            "--for-steps",
            min=1,
            metavar="N",
            help="Length of the training that will use the graph, for the schedule and the share of the cost.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    settle: Annotated[
        float | None,
        typer.Option(
            "--settle",
            metavar="NATS",
            help="Largest difference of four measurements in a row that ends a trial early.",
            rich_help_panel=TRAINING,
        ),
    ] = None
