"""`skillshard regroup`: change the skills of tags."""

from typing import Annotated, Any

import typer

from skillshard.bars import Bars
from skillshard.cli.groups import grouped
from skillshard.cli.options import Nodes, Out
from skillshard.cli.values import place_on_all_nodes
from skillshard.cli.verb import HOW, WHAT, Verb


@grouped
def regroup(
    tags: Annotated[
        list[str],
        typer.Argument(
            parser=place_on_all_nodes,
            metavar="TAGS",
            help="Finished tags. With two directories of one corpus, every pair of skills becomes a skill.",
        ),
    ],
    out: Out,
    *,
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map",
            parser=place_on_all_nodes,
            metavar="FILE",
            help='JSON file {"old": "new"} that renames and merges skills. "*" stands for all others.',
            rich_help_panel=WHAT,
        ),
    ] = None,
    min_share: Annotated[
        float,
        typer.Option(
            "--min-share",
            metavar="SHARE",
            help="Share of the samples below which a skill is merged.",
            rich_help_panel=WHAT,
        ),
    ] = 0.0,
    rest: Annotated[
        str | None,
        typer.Option(
            "--rest",
            metavar="NAME",
            help="Skill that takes the small skills.",
            show_default="the nearest skill",
            rich_help_panel=HOW,
        ),
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(
            "--graph",
            parser=place_on_all_nodes,
            metavar="FILE",
            help="Skills graph. The nearest skill is the skill with the nearest row of the graph.",
            show_default="the mean embeddings decide",
            rich_help_panel=HOW,
        ),
    ] = None,
    nodes: Nodes,
) -> None:
    """Rename, merge or cross the skills of finished tags, without reading the corpus again."""
    from skillshard import taggers
    from skillshard.artefact import refuse_nested
    from skillshard.report.text import show_tags

    refuse_nested(out, tags)
    if "rest" in Verb.given:
        Verb.given.refuse(
            ["vectors"], "finds the skill that a small one is merged into, and --rest names it: give one of them"
        )
    if "min_share" not in Verb.given:
        Verb.given.refuse(["rest", "vectors"], "says where small skills go: give --min-share")
    with Bars(out) as bars:
        fewer = taggers.regroup_tags(
            tags,
            out,
            mapping=None if mapping is None else taggers.read_map(mapping),
            min_share=min_share,
            rest=rest,
            vectors=_rows(vectors),
            backend=nodes.backend(),
            on_stage=bars.stage,
        )
    show_tags(fewer)


def _rows(graph: str | None) -> dict[str, Any]:
    """Map each training skill of a graph to its row."""
    if graph is None:
        return {}
    from skillshard.graph.skill_graph import SkillGraph

    opened = SkillGraph.open(graph)
    return dict(zip(opened.train_skills, opened.edges, strict=True))
