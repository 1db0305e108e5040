"""`skillshard graph`: learn, derive, show, import."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from skillshard.cli.bars import Bars
from skillshard.cli.options import (
    ChosenSkills,
    RayAddress,
    Verb,
    Workers,
    choose_skills,
    parse_duration,
    path_on_all_nodes,
    place_of_work,
    place_on_all_nodes,
    proxy_on_all_nodes,
    write_new,
)
from skillshard.errors import GraphError, name_some

graphs = typer.Typer(help="The skills graph: which skill helps which.", no_args_is_help=True)

EdgesOption = Annotated[
    str,
    typer.Option(
        "--edges",
        help="Definition of an edge: absolute (nats), relative (share of the loss at the start), threshold:LOSS (the paper's Definition 2.2: "
        "1 where a skill reaches the loss with no more samples in all) or threshold-own:LOSS (1 where it needs fewer samples of its own).",
    ),
]
AverageOption = Annotated[
    str | None,
    typer.Option("--average", help="'end' of a run or 'curve'; by default the end, and for leave-one-out the curve."),
]
OffDiagonal = Annotated[
    float | None,
    typer.Option(
        "--off-diagonal",
        help="Scale the edges: 1 on the diagonal, and this value for the strongest other edge. Without it, edges stay as measured.",
    ),
]
Clamp = Annotated[
    bool,
    typer.Option("--clamp/--keep-negative", help="Negative edges become 0, as in the paper's algorithms, or stay."),
]
DropUncertain = Annotated[
    bool,
    typer.Option(
        "--drop-uncertain",
        help="Edges that cannot be told from 0 over the seeds become 0; not for thresholds, which have a margin.",
    ),
]
Direct = Annotated[
    float | None,
    typer.Option(
        "--direct",
        help="Keep only direct edges: ignore edges weaker than this share of the strongest edge, drop every edge that a longer path "
        "implies, and set the remaining edges to 1.",
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
        str, typer.Argument(parser=place_on_all_nodes, metavar="SHARDS", help="Shard set; its skills are the rows.")
    ],
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of each run, H.")],
    out: GraphOut,
    method: Annotated[
        str,
        typer.Option("--method", help="linear, brute-force or leave-one-out; see docs/design/0010-graph-learning.md."),
    ] = "linear",
    warmup: Annotated[
        int,
        typer.Option("--warmup", min=0, help="Stratified steps before every run, taken once for each seed and kept."),
    ] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each kind; standard errors from 2 on.")] = 1,
    skills: ChosenSkills = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", help="Fine-tuning: a skill whose loss counts, chosen by --skills or not; all without it."
        ),
    ] = None,
    eval_shards: Annotated[
        str | None,
        typer.Option(
            "--eval",
            parser=place_on_all_nodes,
            metavar="SHARDS",
            help="Out of domain: another shard set, whose holdout is measured.",
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
            help="'tiny', 'small', or a directory: any Hugging Face causal model and its tokenizer.",
        ),
    ] = "tiny",
    window: Annotated[
        int, typer.Option("--window", help="Tokens read of a text (bytes, but with --proxy PATH).")
    ] = 128,
    segment_at: Annotated[
        str | None,
        typer.Option("--segment-at", help="Characters that end a segment; one position each, the answer is predicted."),
    ] = None,
    answer_after: Annotated[
        str | None, typer.Option("--answer-after", help="Only what follows the last of these in a text is predicted.")
    ] = None,
    unordered: Annotated[bool, typer.Option("--unordered", help="The order of the segments means nothing.")] = False,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, help="Samples of a step, rounded up so that the skills share it evenly."),
    ] = 64,
    prompt_field: Annotated[
        str | None,
        typer.Option(
            "--prompt-field",
            help="Metadata field with the number of characters of a text's prompt, which is not predicted; dots reach into nested fields.",
        ),
    ] = None,
    reduction: Annotated[
        str,
        typer.Option(
            "--reduction",
            help="Mean that a skill's loss is: per_sample (as in the paper's code) or per_token. Report the same kind.",
        ),
    ] = "per_sample",
    lr: Annotated[float, typer.Option("--lr", help="Learning rate that every run reaches.")] = 1e-3,
    lr_warmup: Annotated[
        int | None,
        typer.Option(
            "--lr-warmup",
            min=0,
            help="Steps over which the learning rate rises; by default 50, and at most three tenths of warm-up and run (or of --for-steps).",
        ),
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", min=1, help="Steps between measurements, h; a tenth of --steps.")
    ] = None,
    eval_samples: Annotated[
        int, typer.Option("--eval-samples", min=1, help="Held-out samples of each skill, at most.")
    ] = 100,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training samples of each skill, at most.")] = 20_000,
    for_steps: Annotated[
        int | None,
        typer.Option(
            "--for-steps", min=1, help="Length of the run that the graph is for: schedule, and share of its cost."
        ),
    ] = None,
    settle: Annotated[
        float | None, typer.Option("--settle", help="End a run once no loss moves by more nats over four measurements.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Begin nothing that will take longer: 90s, 30m, 2h.")
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            parser=path_on_all_nodes,
            metavar="DIRECTORY",
            help="Directory of runs and warm starts, kept; beside --out by default.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The first of the seeds.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Data type of matrix products: auto, float32 or bfloat16.")
    ] = "auto",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Learn from short runs of a small model which skill helps which."""
    from skillshard.artefact import refuse_nested
    from skillshard.graph.learn import learn_graph as learn
    from skillshard.graph.plan import parse_method
    from skillshard.loss import parse_reduction
    from skillshard.report.graphs import show_graph
    from skillshard.shards.read import ShardSet

    given = Verb.given
    where = place_of_work(workers, ray_address)
    if segment_at is not None:
        given.refuse(["window"], "counts tokens of a text, and with --segment-at a text is read as segments")
    else:
        given.refuse(["unordered"], "is about the order of segments: give --segment-at")
    for written in (out, *([] if runs is None else [runs])):
        refuse_nested(written, [shards, *([] if eval_shards is None else [eval_shards])])
    if warmup == 0 and proxy in ("tiny", "small"):
        typer.echo(
            f"note: without --warmup a new {proxy} model learns first what all texts share, and the edges will mostly tell that.",
            err=True,
        )
    whole = ShardSet.open(shards)
    chosen = choose_skills(whole, skills)
    with Bars(out.with_suffix(".runs") if runs is None else runs) as bars:
        learn(
            chosen,
            out,
            method=parse_method(method),
            steps=steps,
            rule=_edge_rule(edges, average, off_diagonal, clamp, drop_uncertain, direct, parse_method(method)),
            warmup_steps=warmup,
            num_seeds=seeds,
            targets=target or (),
            eval_shards=_measured_on(whole, chosen, eval_shards, target or ()),
            proxy=proxy,
            window=window,
            segment_at=segment_at,
            answer_after=answer_after,
            prompt_field=prompt_field,
            reduction=parse_reduction(reduction),
            ordered=not unordered,
            batch_size=batch_size,
            lr=lr,
            lr_warmup=lr_warmup,
            eval_every=eval_every,
            eval_samples=eval_samples,
            samples=samples,
            for_steps=for_steps,
            settle=settle,
            budget_s=None if budget is None else parse_duration(budget, "--budget"),
            seed=seed,
            device=device,
            precision=dtype,
            runs=runs,
            where=where,
            on_estimate=bars.say,
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
) -> None:
    """Show a graph: its edges, its density, and the conclusion for SKILL-IT."""
    from skillshard.report.graphs import show_graph

    show_graph(graph, pictures=pictures)


@graphs.command("import", cls=Verb, epilog="    skillshard graph import matrix.csv --names skills.txt --out graph.json")
def import_graph_file(
    matrix: Annotated[Path, typer.Argument(metavar="FILE", help="A matrix: .npy, .csv or .json; rows are trained on.")],
    out: GraphOut,
    names: Annotated[
        Path | None,
        typer.Option("--names", help="Text file: names of the rows, and of the columns if these are as many."),
    ] = None,
    eval_names: Annotated[Path | None, typer.Option("--eval-names", help="Text file: names of the columns.")] = None,
) -> None:
    """Make a graph of a matrix from elsewhere."""
    from skillshard.graph.imported import import_graph, read_names
    from skillshard.report.graphs import show_graph

    graph = import_graph(
        matrix,
        train_skills=() if names is None else read_names(names),
        eval_skills=() if eval_names is None else read_names(eval_names),
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
