"""`skillshard at` and `seen`: the past of a run."""

from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from skillshard.bars import Bars
from skillshard.cli.groups import grouped
from skillshard.cli.options import Cache
from skillshard.cli.verb import Verb
from skillshard.printable import counted, printable

if TYPE_CHECKING:
    from skillshard.mixing.recorded import RecordedSample, RecordedStream

STEPS = "Steps"
"""Panel of the help."""
# A line of a terminal shows the beginning of a text.
SHOWN_CHARACTERS = 160

Run = Annotated[str, typer.Argument(metavar="RUN", help="Directory of the run's ledger.")]
Shards = Annotated[
    str | None,
    typer.Option(
        "--shards",
        metavar="SHARDS",
        help="Shards of the run, if the shards were moved.",
        show_default="the place that the run has noted",
    ),
]
StepDraws = Annotated[
    int | None,
    typer.Option(
        "--step-draws",
        metavar="N",
        min=1,
        help="Samples of an optimizer step, over all ranks and gradient accumulation.",
        show_default="from the reports of the run",
        rich_help_panel=STEPS,
    ),
]
JsonLines = Annotated[bool, typer.Option("--json", help="Write a JSON object for each draw, a line each.")]


def _open(run: str, shards: str | None, cache: Cache) -> "RecordedStream":
    from skillshard.mixing.recorded import open_recorded

    if shards is None:
        Verb.given.refuse(["cache", "cache_bytes"], "needs the address of the shards: give --shards")
        return open_recorded(run)
    return open_recorded(run, cache.open(shards))


@grouped
def at(
    run: Run,
    draw: Annotated[int | None, typer.Option("--draw", metavar="D", min=0, help="First draw.")] = None,
    num: Annotated[int, typer.Option("--num", metavar="N", min=1, help="Number of draws, with --draw.")] = 1,
    step: Annotated[
        int | None,
        typer.Option(
            "--step", metavar="N", min=1, help="Optimizer step whose draws are shown. The first step is step 1."
        ),
    ] = None,
    *,
    shards: Shards = None,
    json: JsonLines = False,
    step_draws: StepDraws = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Samples of a step on each rank. With --world-size, an alternative to --step-draws.",
            rich_help_panel=STEPS,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="R",
            min=0,
            help="Rank whose draws are shown: every N-th draw of the step for --world-size N, as MixedDataset divides the draws.",
            show_default="the draws of all ranks",
            rich_help_panel=STEPS,
        ),
    ] = None,
    world_size: Annotated[
        int | None, typer.Option("--world-size", metavar="N", min=1, help="Number of ranks.", rich_help_panel=STEPS)
    ] = None,
    cache: Cache,
) -> None:
    """Show the samples of a draw or of an optimizer step: skill, id, file and row of the corpus, text.

    Draws, rounds, epochs and rows count from 0.
    """
    if (draw is None) == (step is None):
        raise typer.BadParameter("give either --draw or --step.", param_hint="--draw")
    if step is None:
        Verb.given.refuse(["step_draws", "batch_size", "rank", "world_size"], "belongs to --step")
    else:
        Verb.given.refuse(["num"], "belongs to --draw")
    if rank is not None and (world_size is None or rank >= world_size):
        raise typer.BadParameter("give --world-size too, a number above the rank.", param_hint="--rank")
    if batch_size is not None:
        Verb.given.refuse(["step_draws"], "says what --batch-size and --world-size say: leave out one of the two")
        step_draws = batch_size * (world_size or 1)
    from skillshard.mixing.ledger import skipped_by

    past = _open(run, shards, cache)
    if draw is not None:
        draws = range(draw, draw + num)
    else:
        from skillshard.mixing.steps import Steps

        assert step is not None
        draws = _of_rank(Steps(past.records, step_draws).draws_of(step), rank, world_size)
    for sample in past.samples(draws):
        _show(sample, json=json)
    part = skipped_by(past.run)
    for stretch in part.stretches if part else []:
        if stretch.first < draws.stop and draws.start < stretch.first + stretch.num:
            typer.echo(printable(f"note: {stretch.sentence}. The lines above are the draws of this run."), err=True)


def _of_rank(draws: range, rank: int | None, world_size: int | None) -> range:
    """Return the draws of a rank among the draws of a step: every `world_size`-th draw."""
    if world_size is not None and len(draws) % world_size:
        raise typer.BadParameter(
            f"the step has {len(draws):,} draws, which {world_size} ranks cannot share equally.",
            param_hint="--world-size",
        )
    return draws if rank is None else draws[rank::world_size]


def _show(sample: "RecordedSample", *, json: bool) -> None:
    if json:
        typer.echo(orjson.dumps(sample._asdict()).decode())
        return
    source = "no keys beside the shards" if sample.file is None else f"{sample.file}, row {sample.row:,}"
    text = " ".join(sample.text.split())
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    typer.echo(
        printable(
            f"draw {sample.draw:,}, round {sample.round:,}, epoch {sample.epoch:,} of skill {sample.skill}: {sample.id} ({source})"
        )
    )
    typer.echo(f"    {printable(shown)}")


@grouped
def seen(
    run: Run,
    id: Annotated[str, typer.Option("--id", metavar="ID", help="Id of the sample.")],
    *,
    shards: Shards = None,
    json: JsonLines = False,
    step_draws: StepDraws = None,
    cache: Cache,
) -> None:
    """Show each draw of a sample: the draw, the optimizer step and the epoch.

    Draws, rounds and epochs count from 0.
    """
    from skillshard.errors import LedgerError
    from skillshard.mixing.steps import Steps

    past = _open(run, shards, cache)
    with Bars() as bars, bars.working("searching"):
        stored = past.find(id)
        draws = [draw for sample in stored for draw in past.draws_of(sample)]
        skips = [skip for sample in stored for skip in past.skips_of(sample)]
    if not stored:
        raise LedgerError(f"no sample of the run's shards has the id {id!r}.")
    for skip in skips:
        if json:
            typer.echo(orjson.dumps({"skipped": skip._asdict()}).decode())
            continue
        last = skip.first + skip.num - 1
        typer.echo(
            printable(
                f"skipped in epoch {skip.epoch:,}: in the draws {skip.first:,} to {last:,} of the run before, because {skip.why}"
            )
        )
    steps = Steps(past.records, step_draws)
    for draw in draws:
        facts = {**draw._asdict(), "step": steps.step_of(draw.draw)}
        if json:
            typer.echo(orjson.dumps(facts).decode())
            continue
        at_step = "" if facts["step"] is None else f", step {facts['step']:,}"
        typer.echo(f"draw {draw.draw:,}{at_step}, round {draw.round:,}, epoch {draw.epoch:,}")
    if not json:
        typer.echo(
            printable(_summary(id, stored[0].skill, stored[0].split, len(draws), past.num_draws - past.run.first_draw))
        )


def _summary(sample_id: str, skill: str, split: str, num_seen: int, num_draws: int) -> str:
    if split == "holdout":
        return f"{sample_id} of skill {skill} is held out, so no training draws it."
    return f"{sample_id} of skill {skill}: {counted(num_seen, 'draw')} among the {num_draws:,} decided draws."
