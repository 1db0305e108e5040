"""`skillshard mix` and `fit`: weights that need no trainer."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from skillshard.cli.options import CachePlace, CacheSize, ShardsPlace, parse_size
from skillshard.errors import SkillshardError


def mix(
    shards: ShardsPlace,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Number of draws.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSONL file, one line per draw; standard output if not given.")
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", help="stratified, proportional, temperature, unimax or fixed.")
    ] = "stratified",
    tau: Annotated[
        float | None, typer.Option("--tau", help="Of temperature: 1 is proportional, large is stratified.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Of unimax: most passes over one skill in these draws.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Of fixed: JSON, what 'skillshard fit' wrote or skill -> weight.")
    ] = None,
    floor: Annotated[float, typer.Option("--floor", help="Least weight of any skill.")] = 0.0,
    first: Annotated[int, typer.Option("--first", min=0, help="First draw.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another order.")] = 0,
    round_draws: Annotated[int, typer.Option("--round-draws", min=1, help="Draws with one weight vector.")] = 4096,
    ledger: Annotated[Path | None, typer.Option("--ledger", help="Keep the run's ledger here.")] = None,
    cache: CachePlace = None,
    cache_size: CacheSize = None,
) -> None:
    """Write the mixed stream: draw, skill and id, one line per draw."""
    from skillshard.mixing.listing import list_draws, static_policy

    text = list_draws(
        shards,
        policy=static_policy(policy, draws=first + draws, tau=tau, epochs=epochs, weights=weights),
        floor=floor,
        first=first,
        num=draws,
        seed=seed,
        round_draws=round_draws,
        ledger=ledger,
        cache=cache,
        cache_bytes=None if cache_size is None else parse_size(cache_size, "--cache-size"),
    )
    if out is None:
        sys.stdout.buffer.write(text)
        return
    if out.exists() and not (out.is_file() or out.is_dir()):  # a device or a pipe is written to, not replaced by a file
        out.write_bytes(text)
        return
    if out.exists() and out.read_bytes() != text:
        raise SkillshardError(f"{out} exists and holds something else. Choose another --out, or remove it.")
    from skillshard.storage import write_bytes

    write_bytes(out, text)
    typer.echo(f"{draws:,} draws in {out}")


def fit(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNS...",
            help="Finished runs, each a mixture and the losses it ended with: the ledgers of runs, .json or .csv files, or directories of them.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Write the proposal to this JSON file.")] = None,
    method: Annotated[
        str, typer.Option("--method", help="log-linear, or regmix (needs the extra 'regmix').")
    ] = "log-linear",
    shards: Annotated[
        str | None,
        typer.Option("--shards", help="The next run's shard set: its sizes are the prior; equal weights without it."),
    ] = None,
    kl: Annotated[
        float, typer.Option("--kl", min=0.0, help="Price of leaving the prior, nats of loss per nat.")
    ] = 0.05,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="Samples that the next run takes: limits repetition.")
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Most passes over one skill, with --draws.")] = 4.0,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="An evaluation skill whose loss counts; all without it.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random mixtures of regmix.")] = 0,
) -> None:
    """Propose weights from finished runs: fit a mixing law and find its best mixture near a prior."""
    from skillshard.fitting.proposal import propose_weights
    from skillshard.mixing.finished import gather_runs
    from skillshard.report.text import show_proposal
    from skillshard.shards.read import ShardSet

    if method not in ("log-linear", "regmix"):
        raise typer.BadParameter(f"{method!r}: give 'log-linear' or 'regmix'.", param_hint="--method")
    opened = None if shards is None else ShardSet.open(shards)
    proposal = propose_weights(
        gather_runs(runs),
        method="regmix" if method == "regmix" else "log-linear",
        kl=kl,
        num_samples=None if opened is None else {skill: len(opened.train[skill]) for skill in opened.skills},
        epochs=epochs,
        draws=draws,
        targets=target,
        seed=seed,
    )
    show_proposal(proposal)
    if out is not None:
        proposal.save(out)
