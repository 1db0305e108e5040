"""`skillshard compare`: policies on the user's shards, or finished runs, with a verdict for each policy."""

from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.groups import grouped
from skillshard.cli.options import ChosenSkills, Nodes, ProxyDevice, ProxyTexts, choose_skills, measured_shards
from skillshard.cli.report import NUM_LINES
from skillshard.cli.values import parse_duration, parse_local_out, place_on_all_nodes
from skillshard.cli.verb import HOW, TRAINING, WHAT, WHERE, Verb
from skillshard.cli.words import Running, in_options

OF_RUNS = {"inputs", "out", "baseline", "targets"}
"""Options that have a meaning for finished runs. The others belong to trainings."""


@grouped
def compare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            parser=place_on_all_nodes,
            metavar="SHARDS|RUN...",
            help="A shard set to train on, or the ledgers of two or more finished runs.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=parse_local_out,
            metavar="DIRECTORY",
            help="Directory of the trials, compare.json, compare.png and report.html. Required with a shard set.",
        ),
    ] = None,
    *,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="Policy as NAME or NAME:FILE,KEY=NUMBER, such as 'skill_it:graph.json,eta=0.5', or 'skill_it:identity,eta=0.5' without a graph. Repeat the option.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="POLICY|RUN",
            help="Policy or run that the others are compared with.",
            show_default="the first policy",
            rich_help_panel=WHAT,
        ),
    ] = None,
    skills: ChosenSkills = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="SKILL",
            help="Skill whose loss counts. Repeat the option for several skills.",
            show_default="all",
            rich_help_panel=WHAT,
        ),
    ] = None,
    eval_shards: Annotated[
        str | None,
        typer.Option(
            "--eval",
            parser=place_on_all_nodes,
            metavar="SHARDS",
            help="Shard set for the measurements, for skills out of domain.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            metavar="N",
            help="Optimizer steps of a training. Required with a shard set.",
            rich_help_panel=HOW,
        ),
    ] = None,
    num_seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, metavar="N", help="Number of seeds. Every policy trains once a seed.", rich_help_panel=HOW
        ),
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="First seed.", rich_help_panel=HOW)] = 0,
    texts: ProxyTexts,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Samples of a step.", rich_help_panel=TRAINING)
    ] = 64,
    reduction: Annotated[
        str,
        typer.Option(
            "--reduction",
            metavar="NAME",
            help="Mean over a skill: per_sample, as in the paper's code, or per_token.",
            rich_help_panel=TRAINING,
        ),
    ] = "per_sample",
    lr: Annotated[
        float, typer.Option("--lr", metavar="RATE", help="Highest learning rate.", rich_help_panel=TRAINING)
    ] = 1e-3,
    eval_every: Annotated[
        int | None,
        typer.Option(
            "--eval-every",
            min=1,
            metavar="N",
            help="Steps between measurements, after which the weights may change.",
            show_default="a tenth of --steps",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    eval_samples: Annotated[
        int,
        typer.Option(
            "--eval-samples",
            min=1,
            metavar="N",
            help="Largest number of held-out samples of a skill.",
            rich_help_panel=TRAINING,
        ),
    ] = 100,
    budget_s: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Longest time to spend, such as 90s, 30m or 2h. Longer work is refused.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    device: ProxyDevice,
    nodes: Nodes,
) -> None:
    """Compare policies by trainings on your shards, or finished runs, and say whether a policy is worth it."""
    from skillshard.artefact import refuse_nested
    from skillshard.extras import needed

    needed("proxy", "plots", what="A comparison")  # before the imports that fail without the extras
    from skillshard.comparison.finished import compare_runs
    from skillshard.comparison.show import draw_comparison_of_policies, show_comparison
    from skillshard.loss import parse_reduction
    from skillshard.report.history import report_facts
    from skillshard.report.page import page_of
    from skillshard.shards.read import ShardSet
    from skillshard.storage import exists, write_bytes

    if len(inputs) > 1 or exists(f"{inputs[0].rstrip('/')}/run.json"):
        Verb.given.refuse(
            Running.parameters.keys() - OF_RUNS,
            "is about trainings, and the inputs are finished runs: give one shard set",
        )
        if baseline is None:
            raise typer.BadParameter("finished runs need a baseline: give a policy or a run.", param_hint="--baseline")
        result = compare_runs(inputs, baseline=baseline, targets=targets or ())
        if out is not None:
            refuse_nested(out, inputs)
            result.save(out / "compare.json")
        runs = inputs
    else:
        from skillshard.comparison.compare import compare_policies

        if out is None or steps is None:
            raise typer.BadParameter("trainings on a shard set need --steps and --out.")
        refuse_nested(out, [*inputs, *([] if eval_shards is None else [eval_shards])])
        whole = ShardSet.open(inputs[0])
        chosen = choose_skills(whole, skills)
        with Bars(out) as bars:
            result = compare_policies(
                chosen,
                out,
                policies=policies or (),
                steps=steps,
                num_seeds=num_seeds,
                seed=seed,
                baseline=baseline,
                targets=targets or (),
                eval_shards=measured_shards(whole, chosen, eval_shards, targets or ()),
                reading=texts.choice(),
                reduction=parse_reduction(reduction),
                batch_size=batch_size,
                lr=lr,
                eval_every=eval_every,
                eval_samples=eval_samples,
                budget_s=None if budget_s is None else parse_duration(budget_s, "--budget"),
                compute=device.compute(),
                backend=nodes.backend(),
                on_estimate=lambda sentence: bars.say(in_options(sentence)),
                on_stage=bars.stage,
            )
        runs = sorted(map(str, (out / "runs").iterdir()))
    show_comparison(result)
    if out is not None:
        draw_comparison_of_policies(result, out / "compare.png")
        page = page_of(report_facts(runs, beside=out), num_lines=NUM_LINES)
        write_bytes(out / "report.html", page.encode())
        typer.echo(f"Picture: {out / 'compare.png'}. All runs on a page: {out / 'report.html'}.")
