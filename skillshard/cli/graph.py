"""`skillshard graph`: learn, derive, show, import."""

from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.graph_options import Edges, Training
from skillshard.cli.groups import grouped
from skillshard.cli.options import ChosenSkills, Json, Nodes, ProxyDevice, ProxyTexts, choose_skills, measured_shards
from skillshard.cli.output import write_json, write_new
from skillshard.cli.values import parse_duration, parse_out, place_on_all_nodes
from skillshard.cli.verb import HOW, WHAT, WHERE, Verb
from skillshard.cli.words import in_options

graphs = typer.Typer(help="The skills graph: which skill helps which.", no_args_is_help=True)

GraphOut = Annotated[
    str, typer.Option("--out", parser=parse_out, metavar="FILE", help="JSON file to write, local or in a store.")
]


@graphs.command(
    "learn",
    cls=Verb,
    epilog="""
    skillshard graph learn shards --steps 600 --warmup 300 --out graph.json
    skillshard graph learn shards --method leave-one-out --steps 600 --seeds 3 --direct 0.2 --out graph.json
    """,
)
@grouped
def learn_graph(
    shards: Annotated[
        str,
        typer.Argument(
            parser=place_on_all_nodes, metavar="SHARDS", help="Shard set. Each skill is a row of the graph."
        ),
    ],
    out: GraphOut,
    *,
    skills: ChosenSkills = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="SKILL",
            help="Skill whose loss counts, for fine-tuning. The skill need not be among --skills.",
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
        int,
        typer.Option("--steps", min=1, metavar="N", help="Optimizer steps of a trial.", rich_help_panel=HOW),
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method", metavar="NAME", help="Method: linear, brute-force or leave-one-out.", rich_help_panel=HOW
        ),
    ] = "linear",
    warmup_steps: Annotated[
        int,
        typer.Option(
            "--warmup",
            min=0,
            metavar="N",
            help="Stratified steps before the trials. All trials of a seed share these steps.",
            rich_help_panel=HOW,
        ),
    ] = 0,
    num_seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            metavar="N",
            help="Number of seeds. Standard errors need 2 or more.",
            rich_help_panel=HOW,
        ),
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="First seed.", rich_help_panel=HOW)] = 0,
    edges: Edges,
    texts: ProxyTexts,
    training: Training,
    budget_s: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Longest time to spend, such as 90s, 30m or 2h. Longer work is refused.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option(
            "--trials",
            parser=parse_out,
            metavar="PLACE",
            help="Directory of the trials and warm starts, local or in a store.",
            show_default="beside --out",
            rich_help_panel=WHERE,
        ),
    ] = None,
    device: ProxyDevice,
    nodes: Nodes,
) -> None:
    """Learn from short trials of a small model which skill helps which."""
    from skillshard.artefact import refuse_nested
    from skillshard.graph.learn import learn_graph as learn
    from skillshard.graph.learn import trials_folder
    from skillshard.graph.plan import parse_method
    from skillshard.loss import parse_reduction
    from skillshard.report.graphs import show_graph
    from skillshard.shards.read import ShardSet

    backend = nodes.backend()
    reading = texts.choice()
    for written in (out, trials_folder(out, trials)):
        refuse_nested(written, [shards, *([] if eval_shards is None else [eval_shards])])
    if warmup_steps == 0 and texts.proxy in ("tiny", "small"):
        typer.echo(
            f"note: without --warmup, a new {texts.proxy} model first learns what all texts have in common, so every skill seems to help every "
            "other skill. Give --warmup.",
            err=True,
        )
    whole = ShardSet.open(shards)
    chosen = choose_skills(whole, skills)
    with Bars(trials_folder(out, trials)) as bars:
        learn(
            chosen,
            out,
            method=parse_method(method),
            steps=steps,
            rule=edges.rule(parse_method(method)),
            warmup_steps=warmup_steps,
            num_seeds=num_seeds,
            targets=targets or (),
            eval_shards=measured_shards(whole, chosen, eval_shards, targets or ()),
            reading=reading,
            reduction=parse_reduction(training.reduction),
            batch_size=training.batch_size,
            lr=training.lr,
            lr_warmup=training.lr_warmup,
            eval_every=training.eval_every,
            eval_samples=training.eval_samples,
            samples=training.samples,
            for_steps=training.for_steps,
            settle=training.settle,
            budget_s=None if budget_s is None else parse_duration(budget_s, "--budget"),
            seed=seed,
            compute=device.compute(),
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
@grouped
def derive_graph(
    source: Annotated[str, typer.Argument(metavar="GRAPH", help="Learned graph, local or in a store.")],
    out: GraphOut,
    edges: Edges,
) -> None:
    """Define the edges of a learned graph anew, without training."""
    from skillshard.graph.derive import derive_again
    from skillshard.graph.skill_graph import read_graph, write_graph
    from skillshard.report.graphs import show_graph

    graph = read_graph(source)
    method = "linear" if graph.learned is None else graph.learned.method
    rule = edges.rule(method)
    write_new(out, lambda place: write_graph(derive_again(graph, rule=rule, name=source), place))
    show_graph(out)


@graphs.command("show", cls=Verb, epilog="    skillshard graph show graph.json --pictures pictures")
def show_graph_file(
    graph: Annotated[str, typer.Argument(metavar="FILE", help="Graph to show, local or in a store.")],
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Directory for a heat map and a picture of nodes and arrows.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the edges and the density of a graph, and the conclusion for SKILL-IT."""
    from skillshard.report.graphs import show_graph

    if json:
        Verb.given.refuse(["pictures"], "has no JSON form: leave out --json, or run the verb once for each")
        from skillshard.report.graph_facts import graph_facts

        write_json(graph_facts(graph))
        return
    show_graph(graph, pictures=pictures)


@graphs.command("import", cls=Verb, epilog="    skillshard graph import matrix.csv --names skills.txt --out graph.json")
def import_graph_file(
    matrix: Annotated[
        Path, typer.Argument(metavar="FILE", help="Matrix to import: .npy, .csv or .json. Rows are training skills.")
    ],
    out: GraphOut,
    train_skills: Annotated[
        Path | None,
        typer.Option("--names", help="Text file with the names of the rows. The names also serve for as many columns."),
    ] = None,
    eval_skills: Annotated[
        Path | None, typer.Option("--eval-names", help="Text file with the names of the columns.")
    ] = None,
) -> None:
    """Make a graph from a matrix of another program."""
    from skillshard.graph.imported import import_graph, read_names
    from skillshard.report.graphs import show_graph

    graph = import_graph(
        matrix,
        train_skills=() if train_skills is None else read_names(train_skills),
        eval_skills=() if eval_skills is None else read_names(eval_skills),
    )
    write_new(out, graph.save)
    show_graph(out)
