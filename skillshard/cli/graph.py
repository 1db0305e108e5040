"""`skillshard graph`: learn, derive, show, import."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from skillshard.bars import Bars
from skillshard.cli.options import (
    HOW,
    WHAT,
    WHERE,
    ChosenSkills,
    Json,
    RayAddress,
    Verb,
    Workers,
    backend_of,
    choose_skills,
    parse_duration,
    path_on_all_nodes,
    place_on_all_nodes,
    proxy_on_all_nodes,
    write_json,
    write_new,
)
from skillshard.cli.words import in_options
from skillshard.errors import GraphError, name_some

graphs = typer.Typer(help="The skills graph: which skill helps which.", no_args_is_help=True)

EDGES, TEXTS = "What an edge is", "How texts are read"
"""Panels of the help."""

EdgesOption = Annotated[
    str,
    typer.Option(
        "--edges",
        metavar="KIND",
        help="absolute: nats. relative: share of the loss at the start. threshold:LOSS: 1 where a skill reaches the loss with no more "
        "samples in all (Definition 2.2 of the paper). threshold-own:LOSS: 1 where it needs fewer samples of its own.",
        rich_help_panel=EDGES,
    ),
]
AverageOption = Annotated[
    str | None,
    typer.Option(
        "--average",
        metavar="end|curve",
        help="Losses that count: those at the end of a trial, or the mean of its curve.",
        show_default="end; for leave-one-out curve",
        rich_help_panel=EDGES,
    ),
]
OffDiagonal = Annotated[
    float | None,
    typer.Option(
        "--off-diagonal",
        metavar="X",
        help="Scale edges: 1 on the diagonal, X for the strongest other edge.",
        show_default="as measured",
        rich_help_panel=EDGES,
    ),
]
Clamp = Annotated[
    bool,
    typer.Option(
        "--clamp/--keep-negative",
        help="Set negative edges to 0, as the paper's algorithms do, or keep them.",
        rich_help_panel=EDGES,
    ),
]
DropUncertain = Annotated[
    bool,
    typer.Option(
        "--drop-uncertain",
        help="Set edges to 0 that the seeds cannot tell from 0. Thresholds have a margin of their own.",
        rich_help_panel=EDGES,
    ),
]
Direct = Annotated[
    float | None,
    typer.Option(
        "--direct",
        metavar="SHARE",
        help="Keep only direct edges: ignore edges weaker than SHARE times the strongest, drop every edge that a longer path implies, and "
        "set the others to 1.",
        rich_help_panel=EDGES,
    ),
]
GraphOut = Annotated[Path, typer.Option("--out", parser=path_on_all_nodes, metavar="FILE", help="JSON file to write.")]


@graphs.command(
    "learn",
    cls=Verb,
    epilog="""
    skillshard graph learn shards --steps 600 --warmup 300 --out graph.json
    skillshard graph learn shards --method leave-one-out --steps 600 --seeds 3 --direct 0.2 --out graph.json
    """,
)
def learn_graph(
    shards: Annotated[
        str,
        typer.Argument(parser=place_on_all_nodes, metavar="SHARDS", help="Shard set; its skills are the rows."),
    ],
    steps: Annotated[
        int,
        typer.Option("--steps", min=1, metavar="N", help="Optimizer steps of each trial.", rich_help_panel=HOW),
    ],
    out: GraphOut,
    method: Annotated[
        str,
        typer.Option("--method", metavar="NAME", help="linear, brute-force or leave-one-out.", rich_help_panel=HOW),
    ] = "linear",
    warmup_steps: Annotated[
        int,
        typer.Option(
            "--warmup",
            min=0,
            metavar="N",
            help="Stratified steps before every trial, taken once for each seed and kept.",
            rich_help_panel=HOW,
        ),
    ] = 0,
    num_seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            metavar="N",
            help="Trials of each kind; 2 or more give standard errors.",
            rich_help_panel=HOW,
        ),
    ] = 1,
    skills: ChosenSkills = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="SKILL",
            help="Skill whose loss counts, for fine-tuning; it need not be among --skills.",
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
            help="Shard set whose holdout is measured, for skills out of domain.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    edges: EdgesOption = "absolute",
    average: AverageOption = None,
    off_diagonal: OffDiagonal = None,
    clamp: Clamp = True,
    drop_uncertain: DropUncertain = False,
    direct: Direct = None,
    proxy: Annotated[
        str,
        typer.Option(
            "--proxy",
            parser=proxy_on_all_nodes,
            metavar="MODEL",
            help="Model to train: 'tiny', 'small', or the directory of a Hugging Face causal model.",
            rich_help_panel=HOW,
        ),
    ] = "tiny",
    window: Annotated[
        int,
        typer.Option(
            "--window", metavar="N", help="Tokens read of a text; with a built-in proxy, bytes.", rich_help_panel=TEXTS
        ),
    ] = 128,
    segment_at: Annotated[
        str | None,
        typer.Option(
            "--segment-at",
            metavar="CHARS",
            help="Characters that end a segment. A segment takes one position, and the answer is predicted.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    answer_after: Annotated[
        str | None,
        typer.Option(
            "--answer-after",
            metavar="TEXT",
            help="String before the answer: only what follows its last occurrence is predicted.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    unordered: Annotated[
        bool, typer.Option("--unordered", help="Ignore the order of the segments.", rich_help_panel=TEXTS)
    ] = False,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            min=1,
            metavar="N",
            help="Samples of a step, rounded up so that the skills share it evenly.",
            rich_help_panel=HOW,
        ),
    ] = 64,
    prompt_field: Annotated[
        str | None,
        typer.Option(
            "--prompt-field",
            metavar="PATH",
            help="Metadata field with the number of characters of a text's prompt, which is not predicted.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    reduction: Annotated[
        str,
        typer.Option(
            "--reduction",
            metavar="NAME",
            help="Mean that a skill's loss is: per_sample, as in the paper's code, or per_token.",
            rich_help_panel=TEXTS,
        ),
    ] = "per_sample",
    lr: Annotated[
        float, typer.Option("--lr", metavar="RATE", help="Learning rate that every trial reaches.", rich_help_panel=HOW)
    ] = 1e-3,
    lr_warmup: Annotated[
        int | None,
        typer.Option(
            "--lr-warmup",
            min=0,
            metavar="N",
            help="Steps over which the learning rate rises.",
            show_default="50, at most three tenths of the trial",
            rich_help_panel=HOW,
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            "--eval-every",
            min=1,
            metavar="N",
            help="Steps between measurements.",
            show_default="a tenth of --steps",
            rich_help_panel=HOW,
        ),
    ] = None,
    eval_samples: Annotated[
        int,
        typer.Option(
            "--eval-samples", min=1, metavar="N", help="Most held-out samples of a skill.", rich_help_panel=HOW
        ),
    ] = 100,
    samples: Annotated[
        int,
        typer.Option("--samples", min=1, metavar="N", help="Most training samples of a skill.", rich_help_panel=HOW),
    ] = 20_000,
    for_steps: Annotated[
        int | None,
        typer.Option(
            "--for-steps",
            min=1,
            metavar="N",
            help="Length of the training that the graph is for; it sets the schedule and the share of its cost.",
            rich_help_panel=HOW,
        ),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            "--settle",
            metavar="NATS",
            help="End a trial when four measurements in a row differ by no more than NATS.",
            rich_help_panel=HOW,
        ),
    ] = None,
    budget_s: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Begin nothing that will take longer: 90s, 30m, 2h.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    trials: Annotated[
        Path | None,
        typer.Option(
            "--trials",
            parser=path_on_all_nodes,
            metavar="DIRECTORY",
            help="Directory that keeps the trials and warm starts.",
            show_default="beside --out",
            rich_help_panel=WHERE,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="First of the seeds.", rich_help_panel=HOW)
    ] = 0,
    device: Annotated[
        str,
        typer.Option("--device", metavar="NAME", help="Device: auto, cpu, cuda or cuda:1.", rich_help_panel=WHERE),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help="Type of matrix products: auto, float32 or bfloat16.",
            rich_help_panel=WHERE,
        ),
    ] = "auto",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Learn from short trials of a small model which skill helps which."""
    from skillshard.artefact import refuse_nested
    from skillshard.graph.learn import learn_graph as learn
    from skillshard.graph.plan import parse_method
    from skillshard.loss import parse_reduction
    from skillshard.proxy.device import Compute
    from skillshard.proxy.reading_choice import ReadingChoice
    from skillshard.report.graphs import show_graph
    from skillshard.shards.read import ShardSet

    given = Verb.given
    backend = backend_of(workers, ray_address)
    if segment_at is not None:
        given.refuse(["window"], "counts tokens of a text, and with --segment-at a text is read as segments")
    else:
        given.refuse(["unordered"], "is about the order of segments: give --segment-at")
    for written in (out, *([] if trials is None else [trials])):
        refuse_nested(written, [shards, *([] if eval_shards is None else [eval_shards])])
    if warmup_steps == 0 and proxy in ("tiny", "small"):
        typer.echo(
            f"note: without --warmup a new {proxy} model learns first what all texts share, and the edges will mostly tell that.",
            err=True,
        )
    whole = ShardSet.open(shards)
    chosen = choose_skills(whole, skills)
    with Bars(out.with_suffix(".runs") if trials is None else trials) as bars:
        learn(
            chosen,
            out,
            method=parse_method(method),
            steps=steps,
            rule=_edge_rule(edges, average, off_diagonal, clamp, drop_uncertain, direct, parse_method(method)),
            warmup_steps=warmup_steps,
            num_seeds=num_seeds,
            targets=targets or (),
            eval_shards=_measured_on(whole, chosen, eval_shards, targets or ()),
            reading=ReadingChoice(proxy, window, segment_at, answer_after, prompt_field, ordered=not unordered),
            reduction=parse_reduction(reduction),
            batch_size=batch_size,
            lr=lr,
            lr_warmup=lr_warmup,
            eval_every=eval_every,
            eval_samples=eval_samples,
            samples=samples,
            for_steps=for_steps,
            settle=settle,
            budget_s=None if budget_s is None else parse_duration(budget_s, "--budget"),
            seed=seed,
            compute=Compute(device, precision),
            trials=trials,
            backend=backend,
            on_estimate=lambda sentence: bars.say(in_options(sentence)),
            on_stage=bars.stage,
        )
    show_graph(out)


@graphs.command(
    "derive",
    cls=Verb,
    epilog="""
    skillshard graph derive graph.json --edges relative --drop-uncertain --out other.json
    """,
)
def derive_graph(
    source: Annotated[Path, typer.Argument(metavar="GRAPH", help="Learned graph, with its losses.")],
    out: GraphOut,
    edges: EdgesOption = "absolute",
    average: AverageOption = None,
    off_diagonal: OffDiagonal = None,
    clamp: Clamp = True,
    drop_uncertain: DropUncertain = False,
    direct: Direct = None,
) -> None:
    """Another definition of the edges of a learned graph, without training."""
    from skillshard.graph.derive import derive_again
    from skillshard.graph.skill_graph import read_graph, write_graph
    from skillshard.report.graphs import show_graph

    graph = read_graph(source)
    method = "linear" if graph.learned is None else graph.learned.method
    rule = _edge_rule(edges, average, off_diagonal, clamp, drop_uncertain, direct, method)
    write_new(out, lambda place: write_graph(derive_again(graph, rule=rule, name=str(source)), place))
    show_graph(out)


@graphs.command("show", cls=Verb, epilog="    skillshard graph show graph.json --pictures pictures")
def show_graph_file(
    graph: Annotated[Path, typer.Argument(metavar="FILE", help="A graph.")],
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Directory for a heat map and a picture of nodes and arrows.")
    ] = None,
    json: Json = False,
) -> None:
    """Show a graph: its edges, its density, and the conclusion for SKILL-IT."""
    from skillshard.report.graphs import show_graph

    if json:
        Verb.given.refuse(["pictures"], "has no JSON form: leave out --json, or run the verb once for each")
        from skillshard.report.facts import graph_facts

        write_json(graph_facts(graph))
        return
    show_graph(graph, pictures=pictures)


@graphs.command("import", cls=Verb, epilog="    skillshard graph import matrix.csv --names skills.txt --out graph.json")
def import_graph_file(
    matrix: Annotated[Path, typer.Argument(metavar="FILE", help="A matrix: .npy, .csv or .json; rows are trained on.")],
    out: GraphOut,
    train_skills: Annotated[
        Path | None,
        typer.Option("--names", help="Text file: names of the rows, and of the columns if these are as many."),
    ] = None,
    eval_skills: Annotated[Path | None, typer.Option("--eval-names", help="Text file: names of the columns.")] = None,
) -> None:
    """Make a graph of a matrix from elsewhere."""
    from skillshard.graph.imported import import_graph, read_names
    from skillshard.report.graphs import show_graph

    graph = import_graph(
        matrix,
        train_skills=() if train_skills is None else read_names(train_skills),
        eval_skills=() if eval_skills is None else read_names(eval_skills),
    )
    write_new(out, graph.save)
    show_graph(out)


def _measured_on(whole: Any, chosen: Any, eval_shards: str | None, targets: Sequence[str]) -> Any:
    """The shard set whose holdout is measured; the whole set where a target is not among the chosen skills."""
    from skillshard.shards.read import ShardSet

    if eval_shards is not None:
        return ShardSet.open(eval_shards)
    return whole if any(target not in chosen.holdout for target in targets) else None


def _edge_rule(
    edges: str,
    average: str | None,
    off_diagonal: float | None,
    clamp: bool,
    drop_uncertain: bool,
    direct: float | None,
    method: str,
) -> Any:
    from skillshard.graph.edges import EdgeRule, parse_edges, usual_average

    if average not in (None, "end", "curve"):
        raise typer.BadParameter(f"{average!r}: give 'end' or 'curve'.", param_hint="--average")
    unit, threshold = parse_edges(edges)
    given = {"--average": average is not None, "--keep-negative": not clamp, "--drop-uncertain": drop_uncertain}
    if threshold is not None and any(given.values()):
        raise GraphError(
            f"--edges {edges} compares amounts of data: its edges are 0 or 1, with a margin by the standard errors over seeds, so "
            f"{name_some(option for option, is_given in given.items() if is_given)} has no effect. Leave it out."
        )
    return EdgeRule(
        unit,
        threshold,
        average or usual_average(method),  # type: ignore[arg-type]  # checked above and by the callers
        clamp=clamp,
        off_diagonal=off_diagonal,
        drop_uncertain=drop_uncertain,
        direct=direct,
    )
