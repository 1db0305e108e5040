"""`skillshard at` and `seen`: the past of a run."""

from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from skillshard.bars import Bars
from skillshard.cli.groups import grouped
from skillshard.cli.options import Cache
from skillshard.cli.verb import Verb
from skillshard.cli.words import in_options
from skillshard.printable import counted, printable

if TYPE_CHECKING:
    from skillshard.mixing.recorded import RecordedSample
    from skillshard.mixing.recorded_blocks import BlockPart, RecordedBlock
    from skillshard.mixing.recorded_chain import DrawnInRun, RecordedChain, SeenSample, SkippedInRun

STEPS = "Steps"
"""Panel of the help."""
# A line of a terminal shows the beginning of a text.
SHOWN_CHARACTERS = 160

Run = Annotated[str, typer.Argument(metavar="RUN", help="Directory of the run's ledger.")]
Shards = Annotated[
    list[str] | None,
    typer.Option(
        "--shards",
        metavar="SHARDS",
        help="Shards of the run, if the shards were moved. Repeat the option for the shards of the runs before.",
        show_default="the place that the run has noted",
    ),
]
Tokens = Annotated[
    list[str] | None,
    typer.Option(
        "--tokens",
        metavar="TOKENS",
        help="Tokens of the run, if its draws are blocks and the tokens were moved. Repeat the option for the tokens of the runs before.",
        show_default="the place that the run has noted",
    ),
]
StepDraws = Annotated[
    int | None,
    typer.Option(
        "--step-draws",
        metavar="N",
        min=1,
        help="Draws of an optimizer step, over all ranks and gradient accumulation.",
        show_default="from the reports of the run",
        rich_help_panel=STEPS,
    ),
]
JsonLines = Annotated[bool, typer.Option("--json", help="Write a JSON object for each draw, a line each.")]


def _open(run: str, shards: list[str] | None, tokens: list[str] | None, cache: Cache) -> "RecordedChain":
    from skillshard.mixing.recorded_chain import open_recorded_chain
    from skillshard.shards.token_set import TokenSet

    if not shards:
        Verb.given.refuse(["cache", "cache_bytes"], "needs the address of the shards: give --shards")
    opened = [cache.open(place) for place in shards or []]
    return open_recorded_chain(run, opened, [TokenSet.open(place) for place in tokens or []])


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
    tokens: Tokens = None,
    json: JsonLines = False,
    step_draws: StepDraws = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Draws of a step on each rank. With --world-size, an alternative to --step-draws.",
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

    In a run with unit="blocks", a draw is a block, and each sample with a token in the block has a line. Draws, rounds, epochs and rows count from 0. A draw or a step before a run that was made by `skillshard continue` is read from the run before.
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
    past = _open(run, shards, tokens, cache)
    if draw is not None:
        draws = range(draw, draw + num)
    else:
        assert step is not None
        draws = _of_rank(past.draws_of_step(step, step_draws), rank, world_size)
    named = len(past.segments) > 1 or past.first_draw > 0
    for ledger, recorded in past.samples(draws):
        _show(recorded, ledger, json=json, named=named)
    for cut in past.cut_rounds():
        if cut.first < draws.stop and draws.start < cut.end_draw:
            note = (
                f"note: round {cut.round:,} of {cut.run}, from draw {cut.first:,} on, was packed by best-fit, and another run continues from draw "
                f"{cut.end_draw:,}. The model has seen {counted(cut.end_draw - cut.first, 'draw')} from everywhere among the draws {cut.first:,} to "
                f"{cut.end - 1:,} of this run, and perhaps not all draws above. 'skillshard seen' says which draws of a sample the model has seen."
            )
            typer.echo(printable(note), err=True)
    for skip in past.skips:
        stretch = skip.stretch
        if stretch.first < draws.stop and draws.start < stretch.first + stretch.num:
            own = skip.after if skip.after == past.segments[-1].name else f"{skip.after} or later runs"
            look = f", and 'skillshard at {skip.before} --draw {stretch.first} --num {stretch.num}' shows the skipped draws"
            note = f"note: {stretch.sentence_of(skip.before or 'the run before')}. The lines above are the draws of {own}{look if skip.before else ''}."
            typer.echo(printable(note), err=True)


def _of_rank(draws: range, rank: int | None, world_size: int | None) -> range:
    """Return the draws of a rank among the draws of a step: every `world_size`-th draw."""
    if world_size is not None and len(draws) % world_size:
        raise typer.BadParameter(
            f"the step has {len(draws):,} draws, which {world_size} ranks cannot share equally.",
            param_hint="--world-size",
        )
    return draws if rank is None else draws[rank::world_size]


def _show(draw: "RecordedSample | RecordedBlock", ledger: str, *, json: bool, named: bool) -> None:
    """Show a draw. `named` adds the run to its round, because each run of a chain counts its rounds from 0."""
    from skillshard.mixing.recorded_blocks import RecordedBlock

    if json:
        facts = {**draw._asdict(), "run": printable(ledger)}
        if isinstance(draw, RecordedBlock):
            facts["parts"] = [{**part._asdict(), "is_cut": part.is_cut} for part in draw.parts]
        typer.echo(orjson.dumps(facts).decode())
        return
    of_run = f" of {ledger}" if named else ""
    place = f"draw {draw.draw:,}, round {draw.round:,}{of_run}, epoch {draw.epoch:,} of skill {draw.skill}"
    if not isinstance(draw, RecordedBlock):
        typer.echo(printable(f"{place}: {_source(draw)}"))
        typer.echo(f"    {_beginning_of(draw.text)}")
        return
    num_tokens = sum(part.num_tokens for part in draw.parts)
    typer.echo(printable(f"{place}: {counted(num_tokens, 'token')} of {counted(len(draw.parts), 'sample')}"))
    for part in draw.parts:
        last = part.first_token + part.num_tokens - 1
        tokens = (
            f"tokens {part.first_token:,} to {last:,} of {part.sample_tokens:,}, cut" if part.is_cut else "whole sample"
        )
        typer.echo(printable(f"  {_source(part)}: {tokens}"))
        typer.echo(f"    {_beginning_of(part.text)}")


def _source(sample: "RecordedSample | BlockPart") -> str:
    source = "no keys beside the shards" if sample.file is None else f"{sample.file}, row {sample.row:,}"
    return f"{sample.id} ({source})"


def _beginning_of(text: str) -> str:
    """Return the beginning of a text as one line."""
    line = " ".join(text.split())
    return printable(line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}...")


@grouped
def seen(
    run: Run,
    id: Annotated[str, typer.Option("--id", metavar="ID", help="Id of the sample.")],
    *,
    shards: Shards = None,
    tokens: Tokens = None,
    json: JsonLines = False,
    step_draws: StepDraws = None,
    cache: Cache,
) -> None:
    """Show each draw of a sample: the draw, the optimizer step and the epoch.

    In a run with unit="blocks", a draw is a block, and each block with a token of the sample is shown. Draws, rounds and epochs count from 0. A run that was made by `skillshard continue` is searched together with the runs before.
    """
    from skillshard.mixing.recorded_chain import SkippedInRun

    past = _open(run, shards, tokens, cache)
    with Bars() as bars, bars.working("searching"):
        sample = past.seen(id, step_draws=step_draws)
    named = len(past.segments) > 1 or past.first_draw > 0
    for event in sample.history:
        if json:
            facts = {**event._asdict(), "run": event.run and printable(event.run)}
            typer.echo(orjson.dumps({"skipped": facts} if isinstance(event, SkippedInRun) else facts).decode())
            continue
        line = _skipped(event) if isinstance(event, SkippedInRun) else _drawn(event, named=named)
        typer.echo(printable(line))
    for fault in sample.faults:
        typer.echo(printable(f"note: a part of the history is not searched: {in_options(fault)}"), err=True)
    for sentence in sample.unfit:
        typer.echo(printable(f"note: the steps of a run follow from its reports: {in_options(sentence)}"), err=True)
    if not json:
        typer.echo(printable(_summary(id, sample, named=named)))


def _drawn(draw: "DrawnInRun", *, named: bool) -> str:
    at_step = "" if draw.step is None else f", step {draw.step:,}"
    of_run = f" of {draw.run}" if named else ""
    return f"draw {draw.draw:,}{at_step}, round {draw.round:,}{of_run}, epoch {draw.epoch:,}"


def _skipped(skip: "SkippedInRun") -> str:
    last = skip.first + skip.num - 1
    return f"skipped in epoch {skip.epoch:,}: in the draws {skip.first:,} to {last:,} of {skip.run or 'the run before'}, because {skip.why}"


def _summary(sample_id: str, sample: "SeenSample", *, named: bool) -> str:
    if sample.split == "holdout" and not sample.num_drawn:
        return f"{sample_id} of skill {sample.skill} is held out, so no training draws it."
    of_runs = f" of {counted(sample.num_runs, 'run')}" if named else ""
    return f"{sample_id} of skill {sample.skill}: {counted(sample.num_drawn, 'draw')} among the {sample.num_draws:,} decided draws{of_runs}."
