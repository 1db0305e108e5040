"""`skillshard mix`, `weights` and `fit`: weights that need no trainer."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.options import (
    CachePlace,
    CacheSize,
    ChosenSkills,
    ShardsPlace,
    Verb,
    choose_skills,
    parse_cache_size,
    write_new,
)
from skillshard.printable import printable

Tau = Annotated[
    float | None,
    typer.Option("--tau", help="temperature: the root of the sizes; 1 is proportional, a large number stratified."),
]
Epochs = Annotated[
    float | None, typer.Option("--epochs", help="unimax: the most passes over one skill within --draws draws.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="fixed: JSON file that 'weights' or 'fit' wrote, or of skill names and numbers; or such JSON itself.",
    ),
]
New = Annotated[
    str | None,
    typer.Option(
        "--new",
        help="fixed: what happens to skills without a weight: 'refuse' (default), or 'proportional' for their natural share.",
    ),
]
Graph = Annotated[
    str | None, typer.Option("--graph", metavar="FILE", help="skill_it, skill_stratified: the skills graph.")
]
Eta = Annotated[
    float | None,
    typer.Option("--eta", help="skill_it: the step size. The weights are prior x exp(eta x sum of a skill's edges)."),
]
Prior = Annotated[
    str | None,
    typer.Option("--prior", help="skill_it: weights to start from, given as for --weights; equal without it."),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="skill_it, skill_stratified: an evaluation skill of the graph that counts; may be repeated; all without it.",
    ),
]
Floor = Annotated[float, typer.Option("--floor", help="The least weight of any skill.")]


def mix(
    shards: ShardsPlace,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Number of draws.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSONL file, one line per draw; standard output if not given.")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="stratified, proportional, temperature, unimax, fixed, skill_stratified, skill_it (its static weights), curriculum, "
            "anti_curriculum or skill_curriculum.",
        ),
    ] = "stratified",
    skills: ChosenSkills = None,
    tau: Tau = None,
    epochs: Epochs = None,
    weights: Weights = None,
    new: New = None,
    graph: Graph = None,
    eta: Eta = None,
    prior: Prior = None,
    targets: Targets = None,
    losses: Annotated[
        str | None,
        typer.Option("--losses", help="curricula: JSON file of each skill's loss before training, as for --weights."),
    ] = None,
    floor: Floor = 0.0,
    first: Annotated[int, typer.Option("--first", min=0, help="First draw.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives another order.")] = 0,
    round_draws: Annotated[int, typer.Option("--round-draws", min=1, help="Draws with one weight vector.")] = 4096,
    repeat: Annotated[
        str,
        typer.Option(
            "--repeat",
            help="What happens when a skill runs out: 'epochs' begins it again, 'stop' ends the stream, 'drop' leaves the skill out, "
            "'cap:N' leaves it out after N epochs.",
        ),
    ] = "epochs",
    ledger: Annotated[Path | None, typer.Option("--ledger", help="Keep the run's ledger here.")] = None,
    cache: CachePlace = None,
    cache_bytes: CacheSize = None,
) -> None:
    """Write the mixed stream of a policy that needs no trainer: draw, skill and id, one line per draw."""
    from skillshard.artefact import refuse_nested
    from skillshard.mixing.listing import list_draws, static_policy
    from skillshard.shards.read import ShardSet
    from skillshard.storage import write_bytes

    most_bytes = parse_cache_size(cache, cache_bytes)
    opened = choose_skills(ShardSet.open(shards, cache=cache, cache_bytes=most_bytes), skills)
    if ledger is not None:
        refuse_nested(ledger, [shards], argument="ledger")
    chosen = static_policy(
        policy,
        opened.skills,
        draws=first + draws,
        tau=tau,
        epochs=epochs,
        weights=weights,
        new=new,
        graph=graph,
        eta=eta,
        prior=prior,
        targets=targets,
        losses=losses,
        floor=floor,
    )
    with Bars() as bars, bars.working("listing draws"):
        listing = list_draws(
            opened,
            policy=chosen,
            first=first,
            num=draws,
            seed=seed,
            round_draws=round_draws,
            repeat=repeat,
            ledger=ledger,
        )
    if listing.num_draws < draws:
        end = f"after {first + listing.num_draws:,} draws" if listing.num_draws else f"before draw {first:,}"
        typer.echo(f"note: the stream ends {end} (--repeat {repeat}).", err=True)
    if out is None:
        if sys.stdout.isatty():  # a terminal would obey control characters of skills and ids
            for line in listing.lines.decode().split("\n")[:-1]:
                typer.echo(printable(line))
            return
        sys.stdout.buffer.write(listing.lines)
        return
    if out.exists() and not (out.is_file() or out.is_dir()):  # a device or a pipe is written to, not replaced by a file
        out.write_bytes(listing.lines)
        return
    write_new(out, lambda place: write_bytes(place, listing.lines))
    typer.echo(f"{listing.num_draws:,} draws in {out}")


def weights(
    shards: ShardsPlace,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="stratified, proportional, temperature, unimax, fixed, skill_stratified or skill_it (its static weights).",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file to write, which 'mix --policy fixed --weights' reads.")
    ] = None,
    skills: ChosenSkills = None,
    tau: Tau = None,
    epochs: Epochs = None,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="unimax: the number of draws of the whole run.")
    ] = None,
    weights: Weights = None,
    new: New = None,
    graph: Graph = None,
    eta: Eta = None,
    prior: Prior = None,
    targets: Targets = None,
    floor: Floor = 0.0,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens", help="Token counts of these shards: weights are then shares of tokens, not of samples."
        ),
    ] = None,
    cache: CachePlace = None,
    cache_bytes: CacheSize = None,
) -> None:
    """Show, and write, the weights that a policy without a trainer gives each skill: for example by a skills graph."""
    from skillshard.mixing.listing import CONSTANT, static_policy
    from skillshard.mixing.weights_file import weigh
    from skillshard.report.text import show_weights
    from skillshard.shards.read import ShardSet
    from skillshard.shards.tokens import TokenCounts
    from skillshard.storage import write_bytes

    if draws is not None and policy != "unimax":
        raise typer.BadParameter(f"policy {policy} does not take it: only unimax does.", param_hint="--draws")
    most_bytes = parse_cache_size(cache, cache_bytes)
    opened = choose_skills(ShardSet.open(shards, cache=cache, cache_bytes=most_bytes), skills)
    chosen = static_policy(
        policy,
        opened.skills,
        among=CONSTANT,
        draws=draws,
        tau=tau,
        epochs=epochs,
        weights=weights,
        new=new,
        graph=graph,
        eta=eta,
        prior=prior,
        targets=targets,
        floor=floor,
    )
    result = weigh(opened, chosen, tokens=None if tokens is None else TokenCounts.open(tokens))
    if out is not None:
        write_new(out, lambda place: write_bytes(place, result.to_bytes()))
    show_weights(opened, result)


def fit(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNS",
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
    skills: ChosenSkills = None,
    kl: Annotated[
        float, typer.Option("--kl", min=0.0, help="Price of a divergence from the prior: nats of loss per nat of KL.")
    ] = 0.05,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="Samples that the next run takes: limits repetition.")
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Most passes over one skill, with --draws.")] = 4.0,
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="An evaluation skill whose loss counts; all without it.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random mixtures of regmix.")] = 0,
) -> None:
    """Propose weights from finished runs: fit a mixing law and find its best mixture near a prior."""
    from skillshard.fitting.finished import gather_runs
    from skillshard.fitting.proposal import propose_weights
    from skillshard.report.text import show_proposal
    from skillshard.shards.read import ShardSet

    if method not in ("log-linear", "regmix"):
        raise typer.BadParameter(f"{method!r}: give 'log-linear' or 'regmix'.", param_hint="--method")
    if method != "regmix":
        Verb.given.refuse(["seed"], "is of the random mixtures of --method regmix")
    if draws is None:
        Verb.given.refuse(["epochs"], "limits repetition among the draws of the next run: give --draws")
    if skills and shards is None:
        raise typer.BadParameter("it chooses skills of a shard set: give --shards too.", param_hint="--skills")
    opened = None if shards is None else choose_skills(ShardSet.open(shards), skills)
    with Bars() as bars:
        with bars.working("reading runs"):
            finished = gather_runs(runs)
        with bars.working("fitting"):
            proposal = propose_weights(
                finished,
                method="regmix" if method == "regmix" else "log-linear",
                kl=kl,
                num_samples=None if opened is None else {skill: len(opened.train[skill]) for skill in opened.skills},
                epochs=epochs,
                draws=draws,
                targets=targets,
                seed=seed,
            )
    show_proposal(proposal)
    if out is not None:
        proposal.save(out)
