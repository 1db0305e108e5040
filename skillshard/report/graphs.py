"""Graphs as people read them: the matrix, what it looks like, what it cost, and two pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from skillshard.errors import name_some
from skillshard.extras import needed
from skillshard.graph.derive import rule_in
from skillshard.graph.skill_graph import GraphFile, read_graph
from skillshard.graph.statistics import Gain, Statistics, is_same, is_uncertain
from skillshard.report.facts import conclusion_of, gains_in, statistics_of
from skillshard.report.figures import draw_heat_map, draw_nodes
from skillshard.report.text import has_room, print_line, print_table

TABLE_SKILLS = 12
"""Larger matrices are told by their strongest edges; the heat map shows them all."""
STRONGEST = 12


def show_graph(place: str | os.PathLike[str], *, pictures: Path | None = None) -> None:
    """Print a graph, and draw it; ExtraError where Matplotlib is not installed."""
    if pictures is not None:
        needed("plots", what="`pictures`")
    graph = read_graph(place)
    found = statistics_of(graph)
    if max(len(graph.train_skills), len(graph.eval_skills)) <= TABLE_SKILLS:
        _print_matrix(graph)
    _print_strongest(graph)
    for sentence in (*_counted(found), *_own_gains(graph), conclusion_of(graph, found), *_history(graph)):
        print_line(sentence)
    for drawn in [] if pictures is None else draw_graph(graph, pictures):
        print_line(f"drawn: {drawn}")


def _own_gains(graph: GraphFile) -> list[str]:
    """The skills that are none by Definition 2.1, with numbers, and the skills that cannot be told from none."""
    gains, unit = gains_in(graph), "" if graph.learned is None else " nats"

    def listed(chosen: Sequence[Gain]) -> str:
        return name_some(
            f"{gain.skill} ({gain.nats:.4g}{unit}"
            + ("" if gain.standard_error is None else f" ± {gain.standard_error:.2g}")
            + ")"
            for gain in chosen
        )

    none = [gain for gain in gains if gain.nats <= 0]
    doubtful = [gain for gain in gains if gain.nats > 0 and gain.is_uncertain]
    sentences = []
    if none:
        sentences.append(
            f"No skill by Definition 2.1, since training on the skill does not lower its own loss: {listed(none)}. Train longer, give it "
            "more samples, or merge it with others or leave it out."
        )
    if doubtful:
        sentences.append(
            f"Not told from no skill by these seeds, by how much each lowers its own loss: {listed(doubtful)}."
        )
    return sentences


def draw_graph(graph: GraphFile, folder: Path) -> list[Path]:
    """graph.png, the heat map, and nodes.png, the strongest edges as arrows."""
    places = [folder / "graph.png", folder / "nodes.png"]
    edges, doubt = np.array(graph.edges), _doubt(graph)
    draw_heat_map(graph.train_skills, graph.eval_skills, edges, places[0], doubt=doubt)
    draw_nodes(graph.train_skills, graph.eval_skills, edges, places[1], doubt=doubt)
    return places


def _doubt(graph: GraphFile) -> Bool[np.ndarray, "train_skill eval_skill"] | None:
    """Which edges could be 0; None where the trials of a single seed cannot tell."""
    num_seeds = 1 if graph.learned is None else len(graph.learned.seeds)
    if graph.standard_errors is None or num_seeds < 2:
        return None
    return is_uncertain(np.array(graph.edges), np.array(graph.standard_errors), num_seeds)


def _print_matrix(graph: GraphFile) -> None:
    """With standard errors, or without them, or not at all: as the terminal is wide, for a number cut in two is none."""
    edges, errors = graph.edges, graph.standard_errors
    plain = [[f"{edge:.3f}" for edge in row] for row in edges]
    header = ("trained on \\ measured on", *graph.eval_skills)
    tables = [plain]
    if errors is not None:
        told = [[f"±{error:.3f}" for error in row] for row in errors]
        tables.insert(
            0, [[" ".join(cell) for cell in zip(*rows, strict=True)] for rows in zip(plain, told, strict=True)]
        )
    for table in tables:
        rows = [(name, *cells) for name, cells in zip(graph.train_skills, table, strict=True)]
        if has_room(rows):
            print_table(header, rows)
            return
    print_line(
        f"The matrix of {len(edges)} x {len(header) - 1} edges is too wide for this terminal: "
        "'skillshard graph show FILE --pictures DIR' draws it."
    )


def _print_strongest(graph: GraphFile) -> None:
    """The strongest edges between skills, with how sure each is."""
    edges, same = np.array(graph.edges), is_same(graph.train_skills, graph.eval_skills)
    errors, doubt = graph.standard_errors, _doubt(graph)
    order = np.argsort(-np.where(same | (edges <= 0), -np.inf, edges), axis=None, kind="stable")
    pairs = [np.unravel_index(at, edges.shape) for at in order[:STRONGEST]]
    rows = []
    for row, column in pairs:
        if same[row, column] or edges[row, column] <= 0:
            continue
        cells = [f"{graph.train_skills[row]} -> {graph.eval_skills[column]}", f"{edges[row, column]:.4f}"]
        cells += [] if errors is None else [f"±{errors[row][column]:.4f}"]
        cells += [] if doubt is None else ["could be 0" if doubt[row, column] else "above 0"]
        rows.append(cells)
    if rows:
        header = ("strongest edges between skills", "edge", "standard error", "95 %")
        print_table(header[: len(rows[0])], rows)


def _counted(found: Statistics) -> list[str]:
    total = found.num_positive + found.num_negative + found.num_zero
    mutual = "" if found.reciprocity is None else f" Reciprocity {found.reciprocity:.2f}."
    told = [
        f"{total:,} entries: {found.num_positive:,} positive (density {100 * found.density:.1f} %), {found.num_negative:,} negative, "
        f"{found.num_zero:,} zero.{mutual}"
    ]
    if found.num_uncertain is not None:
        told.append(
            f"{found.num_uncertain:,} of the {total - found.num_zero:,} that are not 0 cannot be told from 0 (95 %, each alone)."
        )
    told += [
        f"{what}: {name_some(names)}."
        for what, names in (
            ("Helps no other skill", found.helps_nobody),
            ("Helped by no other skill", found.helped_by_nobody),
        )
        if names
    ]
    return told


def _history(graph: GraphFile) -> list[str]:
    learned = graph.learned
    if learned is None:
        return ["Given, not learned: there are no losses to derive other edges from."]
    rule = f"edges {learned.edges}"
    if not rule_in(learned).counts_data:
        rule += f", average over the {learned.average}, negative edges {'set to 0' if learned.clamp else 'kept'}"
    if learned.direct is not None:
        rule = f"direct edges of at least {learned.direct:g} of the largest of: {rule}"
    told = [
        f"Learned by {learned.method}, {len(learned.seeds)} seed{'s' * (len(learned.seeds) > 1)}, warm-up {learned.warmup_steps:,} steps, "
        f"{len(learned.runs):,} trials of up to {learned.eval_steps[-1]:,} steps; {rule}.",
        f"Cost: {learned.num_steps:,} steps, {learned.num_samples:,} samples.",
        f"Losses: {learned.loss_kind.sentence}. Report the same to a mixer that uses this graph.",
    ]
    if len(learned.seeds) == 1:
        told.append(
            "One seed cannot tell which of these edges are luck: "
            "'skillshard graph learn --seeds 3' trains only what is missing."
        )
    settled = sum(trial.steps_taken < learned.eval_steps[-1] for trial in learned.runs)
    if settled:
        told.append(f"{settled:,} trials were ended early: their losses had settled.")
    for_steps = learned.made_from.get("for_steps")
    if for_steps:
        share = learned.num_samples / (for_steps * learned.made_from["batch_size"])
        told[1] = told[1][:-1] + f": {100 * share:.0f} % of a trial of {for_steps:,} steps of this proxy."
    return told
