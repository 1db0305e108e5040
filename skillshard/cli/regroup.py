"""`skillshard regroup`: other skills for samples that have some."""

from pathlib import Path
from typing import Annotated, Any

import typer

from skillshard.bars import Bars
from skillshard.cli.options import (
    HOW,
    WHAT,
    Out,
    RayAddress,
    Verb,
    Workers,
    backend_of,
    path_on_all_nodes,
    place_on_all_nodes,
)


def regroup(
    tags: Annotated[
        list[str],
        typer.Argument(
            parser=place_on_all_nodes,
            metavar="TAGS",
            help="Finished tags. Of two directories, made from one corpus, every pair of skills becomes a skill.",
        ),
    ],
    out: Out,
    mapping: Annotated[
        Path | None,
        typer.Option(
            "--map",
            parser=path_on_all_nodes,
            metavar="FILE",
            help='JSON file {"old": "new"} that renames and merges skills; "*" names all others.',
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
            help="Skill that takes the small ones.",
            show_default="the nearest skill takes each",
            rich_help_panel=HOW,
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--graph",
            parser=path_on_all_nodes,
            metavar="FILE",
            help="Skills graph whose rows say which skill is nearest.",
            show_default="the mean embeddings say it",
            rich_help_panel=HOW,
        ),
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Rename, merge or cross the skills of finished tags; the corpus is not read again."""
    from skillshard import taggers
    from skillshard.artefact import refuse_nested
    from skillshard.report.text import show_tags

    refuse_nested(out, tags)
    given = Verb.given
    if "rest" in given:
        given.refuse(
            ["vectors"], "finds the skill that a small one is merged into, and --rest names it: give one of them"
        )
    if "min_share" not in given:
        given.refuse(["rest", "vectors"], "says where small skills go: give --min-share")
    with Bars(out) as bars:
        fewer = taggers.regroup_tags(
            tags,
            out,
            mapping=None if mapping is None else taggers.read_map(mapping),
            min_share=min_share,
            rest=rest,
            vectors=_rows(vectors),
            backend=backend_of(workers, ray_address),
            on_stage=bars.stage,
        )
    show_tags(fewer)


def _rows(graph: Path | None) -> dict[str, Any]:
    """The row of each training skill of a graph."""
    if graph is None:
        return {}
    from skillshard.graph.skill_graph import SkillGraph

    opened = SkillGraph.open(graph)
    return dict(zip(opened.train_skills, opened.edges, strict=True))
