"""`skillshard mix`, `export`, `weights` and `fit`: weights that need no trainer, and their streams."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.groups import grouped
from skillshard.cli.options import Cache, ChosenSkills, Out, ShardsPlace, Workers, choose_skills
from skillshard.cli.output import refuse_directory, write_new
from skillshard.cli.values import parse_size, split_names
from skillshard.cli.verb import STREAM, WHERE, Verb
from skillshard.printable import counted, printable

if TYPE_CHECKING:
    from skillshard.policies.policy import Policy

POLICY, LAW, NEXT = "Options of some policies", "Law", "Next run"
"""Panels of the help."""


@dataclass(frozen=True)
class PolicyOptions:
    """The options of policies without a trainer. Each names the policies that take the option."""

    tau: Annotated[
        float | None,
        typer.Option(
            "--tau",
            metavar="X",
            help="Exponent 1/X of the sizes: 1 is proportional, a large number is nearly stratified. (temperature)",
            rich_help_panel=POLICY,
        ),
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option(
            "--epochs",
            metavar="N",
            help="Largest number of passes over a skill within --draws draws. (unimax)",
            rich_help_panel=POLICY,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE|JSON",
            help="Weights of the skills: a file of 'weights' or 'fit', or a JSON object of names and numbers. (fixed)",
            rich_help_panel=POLICY,
        ),
    ] = None
    new: Annotated[
        str | None,
        typer.Option(
            "--new",
            metavar="refuse|proportional",
            help="Action on a skill without a weight: refuse the skill, or give the skill its natural share. (fixed)",
            show_default="refuse",
            rich_help_panel=POLICY,
        ),
    ] = None
    graph: Annotated[
        str | None,
        typer.Option(
            "--graph", metavar="FILE", help="Skills graph. (skill_it, skill_stratified)", rich_help_panel=POLICY
        ),
    ] = None
    eta: Annotated[
        float | None,
        typer.Option(
            "--eta",
            metavar="X",
            help="Step size. The weights are prior x exp(eta x sum of the skill's edges). (skill_it)",
            rich_help_panel=POLICY,
        ),
    ] = None
    prior: Annotated[
        str | None,
        typer.Option(
            "--prior",
            metavar="FILE|JSON",
            help="Weights to start from, as for --weights. (skill_it)",
            show_default="equal weights",
            rich_help_panel=POLICY,
        ),
    ] = None
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="SKILL",
            help="Evaluation skill that counts. Repeat the option for several skills. (skill_it, skill_stratified)",
            show_default="all",
            rich_help_panel=POLICY,
        ),
    ] = None
    floor: Annotated[
        float,
        typer.Option("--floor", metavar="WEIGHT", help="Smallest weight of a skill. (all)", rich_help_panel=POLICY),
    ] = 0.0


Losses = Annotated[
    str | None,
    typer.Option(
        "--losses",
        metavar="FILE|JSON",
        help="Loss of each skill before training, as for --weights. (curriculum, anti_curriculum, skill_curriculum)",
        rich_help_panel=POLICY,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the order.", rich_help_panel=STREAM)]
RoundDraws = Annotated[
    int,
    typer.Option("--round-draws", metavar="N", min=1, help="Number of draws of a round.", rich_help_panel=STREAM),
]
StepDraws = Annotated[
    int | None,
    typer.Option(
        "--step-draws",
        metavar="N",
        min=1,
        help="Samples of an optimizer step, for a policy whose stages end at steps.",
        show_default="unknown",
        rich_help_panel=STREAM,
    ),
]
Repeat = Annotated[
    str,
    typer.Option(
        "--repeat",
        metavar="RULE",
        help="Action at the end of a skill: 'epochs' begins the skill again, 'stop' ends the stream, 'drop' leaves the skill out, "
        "and 'cap:N' leaves the skill out after N epochs.",
        rich_help_panel=STREAM,
    ),
]


DETERMINE_A_STREAM = (
    "policy",
    "losses",
    "seed",
    "round_draws",
    "step_draws",
    "repeat",
    *(field.name for field in fields(PolicyOptions)),
)
"""Names of the options that determine a stream. Without these options, `mix` lists the run of its ledger."""


@grouped
def mix(
    shards: ShardsPlace,
    draws: Annotated[int, typer.Option("--draws", metavar="N", min=1, help="Number of draws.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="JSONL file to write, a line per draw.", show_default="standard output"
        ),
    ] = None,
    *,
    skills: ChosenSkills = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="Policy: stratified, proportional, temperature, unimax, fixed, skill_stratified, skill_it (static weights), curriculum, "
            "anti_curriculum or skill_curriculum. Or NAME:KEY=VALUE, or FILE.json with stages or groups.",
        ),
    ] = "stratified",
    options: PolicyOptions,
    losses: Losses = None,
    first: Annotated[
        int, typer.Option("--first", metavar="DRAW", min=0, help="First draw.", rich_help_panel=STREAM)
    ] = 0,
    seed: Seed = 0,
    round_draws: RoundDraws = 4096,
    step_draws: StepDraws = None,
    repeat: Repeat = "epochs",
    ledger: Annotated[
        Path | None,
        typer.Option(
            "--ledger",
            metavar="DIRECTORY",
            help="Directory of the run's ledger. Without a policy, the draws of the run in the ledger are listed.",
            show_default="the ledger is not kept",
            rich_help_panel=STREAM,
        ),
    ] = None,
    cache: Cache,
) -> None:
    """Write the stream of a policy that needs no trainer, or of a run: the draw, skill and id of each sample."""
    from skillshard.artefact import has_not_begun, refuse_nested
    from skillshard.mixing.listing import ARGUMENTS, list_draws, list_recorded
    from skillshard.mixing.recorded_chain import open_recorded_chain

    opened = choose_skills(cache.open(shards), skills)
    if ledger is not None:
        refuse_nested(ledger, [shards], argument="ledger")
        if not any(name in Verb.given for name in DETERMINE_A_STREAM):
            if not (ledger / "run.json").exists() and not has_not_begun(ledger):
                # A wrong path would otherwise list the draws of the default policy, and begin a run at this place.
                raise typer.BadParameter(
                    f"{ledger} holds no run. Give the ledger of a run to list its draws, or --policy to begin a run.",
                    param_hint="--ledger",
                )
            past = open_recorded_chain(ledger, [opened])
            with Bars() as bars, bars.working("listing draws"):
                listing = list_recorded(past, first=first, num=draws)
            if listing.num_draws < draws:
                typer.echo(f"note: the run has decided {past.num_draws:,} draws.", err=True)
            _write_listing(listing.lines, listing.num_draws, out)
            return
    chosen = _static_policy(policy, opened.skills, options, among=tuple(ARGUMENTS), draws=first + draws, losses=losses)
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
            step_draws=step_draws,
        )
    if listing.num_draws < draws:
        end = f"after {first + listing.num_draws:,} draws" if listing.num_draws else f"before draw {first:,}"
        typer.echo(f"note: the stream ends {end} (--repeat {repeat}).", err=True)
    _write_listing(listing.lines, listing.num_draws, out)


def _write_listing(lines: bytes, num_draws: int, out: Path | None) -> None:
    from skillshard.storage import write_bytes

    if out is None:
        if sys.stdout.isatty():  # a terminal would obey control characters of skills and ids
            for line in lines.decode().split("\n")[:-1]:
                typer.echo(printable(line))
            return
        sys.stdout.buffer.write(lines)
        return
    if out.exists() and not (out.is_file() or out.is_dir()):  # a device or a pipe is written to, not replaced by a file
        out.write_bytes(lines)
        return
    write_new(out, lambda place: write_bytes(place, lines))
    typer.echo(f"{num_draws:,} draws in {out}")


@grouped
def export(
    shards: ShardsPlace,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Format: jsonl[.gz|.zst], parquet, datasets or megatron.",
        ),
    ],
    out: Out,
    *,
    skills: ChosenSkills = None,
    split: Annotated[
        str, typer.Option("--split", metavar="train|holdout", help="Split to write, each sample once.")
    ] = "train",
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            metavar="DIRECTORY",
            help="Token ids of the shards, for --format megatron.",
            rich_help_panel=STREAM,
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator",
            metavar="TOKEN",
            help="Token after each sample, such as '<|endoftext|>', for --format megatron.",
            show_default="none",
            rich_help_panel=STREAM,
        ),
    ] = None,
    file_bytes: Annotated[
        str | None,
        typer.Option(
            "--file-size",
            metavar="SIZE",
            help="Approximate bytes of the shards whose rows a file holds.",
            show_default="256MB, or no limit for megatron",
            rich_help_panel=WHERE,
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            metavar="N",
            min=1,
            help="Number of draws of a mix.",
            show_default="no mix",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="Policy of the mix, as for 'skillshard mix'.",
            show_default="stratified, or fixed with --weights",
        ),
    ] = None,
    options: PolicyOptions,
    losses: Losses = None,
    seed: Seed = 0,
    round_draws: RoundDraws = 4096,
    step_draws: StepDraws = None,
    repeat: Repeat = "epochs",
    members: Annotated[
        list[str] | None,
        typer.Option(
            "--members",
            metavar="A,B|none",
            help="Members of the samples, such as images, to write as columns of bytes. 'none' writes texts and metadata alone.",
            show_default="all in parquet and datasets",
            rich_help_panel=WHERE,
        ),
    ] = None,
    workers: Workers = None,
    cache: Cache,
) -> None:
    """Write shards or a mix as JSONL, Parquet, a dataset or files for Megatron-LM."""
    from skillshard.artefact import refuse_nested
    from skillshard.export import export_shards
    from skillshard.mixing.listing import ARGUMENTS
    from skillshard.places import public
    from skillshard.shards.token_set import TokenSet

    if draws is None:
        Verb.given.refuse(DETERMINE_A_STREAM, "belongs to a mix: give --draws too")
    else:
        Verb.given.refuse(["split"], "chooses samples that are written once, and a mix is made of training samples")
    num_bytes = None if file_bytes is None else parse_size(file_bytes, "--file-size")
    refuse_nested(out, [shards, *([] if tokens is None else [tokens])])
    opened = choose_skills(cache.open(shards), skills)
    suffixes = None if members is None else split_names(members, opened.members)
    if suffixes == ["none"]:
        suffixes = []
    chosen = None
    if draws is not None:
        name = policy or ("stratified" if options.weights is None else "fixed")
        chosen = _static_policy(name, opened.skills, options, among=tuple(ARGUMENTS), draws=draws, losses=losses)
    with Bars(out) as bars:
        manifest = export_shards(
            opened,
            out,
            format=format,
            split=split,
            policy=chosen,
            draws=draws,
            seed=seed,
            round_draws=round_draws,
            repeat=repeat,
            step_draws=step_draws,
            file_bytes=num_bytes,
            tokens=None if tokens is None else TokenSet.open(tokens),
            separator=separator,
            members=suffixes,
            workers=workers,
            on_stage=bars.stage,
        )
    if draws is not None and manifest.num_rows < draws:
        typer.echo(f"note: the stream ends after {manifest.num_rows:,} draws (--repeat {repeat}).", err=True)
    if left_out := [suffix for suffix in opened.members if suffix not in manifest.columns]:
        typer.echo(f"note: left out of the files, but kept in the shards: members {', '.join(left_out)}.", err=True)
    if opened.token_form is not None and "text" in manifest.columns:
        typer.echo(
            "note: each text is the token ids of a sample as decimal numbers, because the corpus was tokenized already.",
            err=True,
        )
    typer.echo(
        f"{counted(manifest.num_rows, 'row')} of {counted(len(manifest.skills), 'skill')} in {counted(len(manifest.files), 'file')}: "
        f"{printable(public(out))}"
    )


@grouped
def weights(
    shards: ShardsPlace,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="Policy: stratified, proportional, temperature, unimax, fixed, skill_stratified or skill_it (static weights). Or "
            "NAME:KEY=VALUE, or FILE.json with stages or groups.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="JSON file to write, for 'mix --policy fixed --weights FILE'.",
            show_default="the weights are only shown",
        ),
    ] = None,
    *,
    skills: ChosenSkills = None,
    options: PolicyOptions,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws", metavar="N", min=1, help="Number of draws of the whole run. (unimax)", rich_help_panel=POLICY
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(
            "--at",
            metavar="DRAW",
            min=0,
            help="Draw of a run at which the weights hold. (stages, curricula)",
            rich_help_panel=STREAM,
        ),
    ] = None,
    step_draws: StepDraws = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            metavar="DIRECTORY",
            help="Token counts of the shards. Weights are then shares of the tokens.",
            show_default="shares of the samples",
        ),
    ] = None,
    cache: Cache,
) -> None:
    """Show the weights of a policy that needs no trainer, for example by a skills graph."""
    from skillshard.mixing.listing import CONSTANT
    from skillshard.mixing.policy_file import is_by_name
    from skillshard.mixing.weights_file import weigh
    from skillshard.report.text import show_weights
    from skillshard.shards.token_set import TokenSet
    from skillshard.storage import write_bytes

    if draws is not None and policy != "unimax" and is_by_name(policy):
        raise typer.BadParameter(f"policy {policy} does not take it: only unimax does.", param_hint="--draws")
    opened = choose_skills(cache.open(shards), skills)
    unit = "samples" if tokens is None else "tokens"
    chosen = _static_policy(policy, opened.skills, options, among=CONSTANT, draws=draws, unit=unit)
    if at is not None and out is not None:
        raise typer.BadParameter("a file of weights holds for each draw: leave out --out.", param_hint="--at")
    counts = None if tokens is None else TokenSet.open(tokens)
    result = weigh(opened, chosen, tokens=counts, at=at, step_draws=step_draws)
    if out is not None:
        write_new(out, lambda place: write_bytes(place, result.to_bytes()))
    show_weights(opened, result)


def _static_policy(
    policy: str,
    skills: Sequence[str],
    options: PolicyOptions,
    *,
    among: Sequence[str],
    draws: int | None,
    losses: str | None = None,
    unit: str = "samples",
) -> "Policy":
    """Make a policy from its options. The library refuses options that the policy does not take."""
    from skillshard.mixing.listing import static_policy

    return static_policy(
        policy,
        skills,
        among=among,
        draws=draws,
        tau=options.tau,
        epochs=options.epochs,
        weights=options.weights,
        new=options.new,
        graph=options.graph,
        eta=options.eta,
        prior=options.prior,
        targets=options.targets,
        losses=losses,
        floor=options.floor,
        unit=unit,
    )


def fit(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNS",
            help="Finished runs, each with a mixture and final losses: ledgers of runs, .json or .csv files, or directories of these.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="JSON file to write.", show_default="the proposal is only shown"),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Law: log-linear, or regmix, which needs the extra 'regmix'.",
            rich_help_panel=LAW,
        ),
    ] = "log-linear",
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards",
            metavar="SHARDS",
            help="Shard set of the next run. The sizes of the skills are the prior.",
            show_default="an equal prior",
            rich_help_panel=NEXT,
        ),
    ] = None,
    skills: ChosenSkills = None,
    kl: Annotated[
        float,
        typer.Option(
            "--kl",
            metavar="X",
            min=0.0,
            help="Price of a divergence from the prior: nats of loss per nat of KL divergence.",
            rich_help_panel=LAW,
        ),
    ] = 0.05,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            metavar="N",
            min=1,
            help="Number of draws of the next run, to limit repetition.",
            rich_help_panel=NEXT,
        ),
    ] = None,
    epochs: Annotated[
        float,
        typer.Option(
            "--epochs",
            metavar="N",
            help="Largest number of passes over a skill within --draws draws.",
            rich_help_panel=NEXT,
        ),
    ] = 4.0,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="SKILL",
            help="Evaluation skill whose loss counts. Repeat the option for several skills.",
            show_default="all",
            rich_help_panel=LAW,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", help="Seed of the random mixtures of regmix.", rich_help_panel=LAW),
    ] = 0,
) -> None:
    """Propose weights from finished runs: fit a mixing law, and find the best mixture near a prior."""
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
    if out is not None:
        refuse_directory(out)
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
    if out is not None:
        proposal.save(out)
    show_proposal(proposal)
