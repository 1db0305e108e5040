"""Print and draw a graph: the matrix, its statistics, its cost, and two pictures."""

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
from skillshard.printable import counted
from skillshard.report.figures import draw_heat_map, draw_nodes, refuse_file
from skillshard.report.graph_facts import conclusion_of, gains_in, statistics_of
from skillshard.report.text import has_room, print_line, print_table

TABLE_SKILLS = 12
"""Largest number of skills of a printed matrix. For larger graphs, the strongest edges are printed, and the heat map shows all edges."""
STRONGEST = 12
"""Number of strongest edges that are printed."""


def show_graph(place: str | os.PathLike[str], *, pictures: Path | None = None) -> None:
    """Print a graph, and draw its pictures into a directory.

    Raises:
        GraphError: The file is not a graph.
        ExtraError: Matplotlib is not installed, and pictures are wanted.
    """
    if pictures is not None:
        needed("plots", what="`pictures`")
        refuse_file(pictures)
    graph = read_graph(place)
    numbers = statistics_of(graph)
    if max(len(graph.train_skills), len(graph.eval_skills)) <= TABLE_SKILLS:
        _print_matrix(graph)
    _print_strongest(graph)
    for sentence in (*_counted(numbers), *_own_gains(graph), conclusion_of(graph, numbers), *_history(graph)):
        print_line(sentence)
    for drawn in [] if pictures is None else draw_graph(graph, pictures):
        print_line(f"drawn: {drawn}")


def _own_gains(graph: GraphFile) -> list[str]:
    """Describe the skills without a gain (Definition 2.1), and the skills whose gain is uncertain, with numbers."""
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
            f"Uncertain by these seeds, whether training on the skill lowers its own loss: {listed(doubtful)}."
        )
    return sentences


def draw_graph(graph: GraphFile, folder: Path) -> list[Path]:
    """Draw the heat map graph.png, and nodes.png with the strongest edges as arrows. Return the paths."""
    places = [folder / "graph.png", folder / "nodes.png"]
    edges, doubt = np.array(graph.edges), _doubt(graph)
    draw_heat_map(graph.train_skills, graph.eval_skills, edges, places[0], doubt=doubt)
    draw_nodes(graph.train_skills, graph.eval_skills, edges, places[1], doubt=doubt)
    return places


def _doubt(graph: GraphFile) -> Bool[np.ndarray, "train_skill eval_skill"] | None:
    """Mark the edges that could be 0. None: a single seed gives no standard errors."""
    num_seeds = 1 if graph.learned is None else len(graph.learned.seeds)
    if graph.standard_errors is None or num_seeds < 2:
        return None
    return is_uncertain(np.array(graph.edges), np.array(graph.standard_errors), num_seeds)


def _print_matrix(graph: GraphFile) -> None:
    """Print the matrix with standard errors, else without errors, else a hint. The width of the terminal decides, so that no number is cut."""
    edges, errors = graph.edges, graph.standard_errors
    plain = [[f"{edge:.3f}" for edge in row] for row in edges]
    header = ("trained on \\ measured on", *graph.eval_skills)
    tables = [plain]
    if errors is not None:
        spreads = [[f"±{error:.3f}" for error in row] for row in errors]
        tables.insert(
            0, [[" ".join(cell) for cell in zip(*rows, strict=True)] for rows in zip(plain, spreads, strict=True)]
        )
    # The richest table that fits is printed.
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
    """Print the strongest edges between skills, with their standard errors."""
    edges, same = np.array(graph.edges), is_same(graph.train_skills, graph.eval_skills)
    errors, doubt = graph.standard_errors, _doubt(graph)
    # Stable, so that equal edges keep the order of the names on every machine.
    order = np.argsort(-np.where(same | (edges <= 0), -np.inf, edges), axis=None, kind="stable")
    pairs = [np.unravel_index(index, edges.shape) for index in order[:STRONGEST]]
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


def _counted(numbers: Statistics) -> list[str]:
    total = numbers.num_positive + numbers.num_negative + numbers.num_zero
    mutual = "" if numbers.reciprocity is None else f" Reciprocity {numbers.reciprocity:.2f}."
    sentences = [
        f"{total:,} entries: {numbers.num_positive:,} positive (density {100 * numbers.density:.1f} %), {numbers.num_negative:,} negative, "
        f"{numbers.num_zero:,} zero.{mutual}"
    ]
    if numbers.num_uncertain is not None:
        sentences.append(
            f"{numbers.num_uncertain:,} of the {total - numbers.num_zero:,} edges that are not 0 are not distinguishable from 0 (95 %, each edge alone)."
        )
    sentences += [
        f"{what}: {name_some(names)}."
        for what, names in (
            ("Helps no other skill", numbers.helps_nobody),
            ("Helped by no other skill", numbers.helped_by_nobody),
        )
        if names
    ]
    return sentences


def _history(graph: GraphFile) -> list[str]:
    learned = graph.learned
    if learned is None:
        return ["Imported, not learned: the file has no losses from which other edges could be derived."]
    rule = f"edges {learned.edges}"
    if not rule_in(learned).counts_data:
        rule += f", average over the {learned.average}, negative edges {'set to 0' if learned.clamp else 'kept'}"
    if learned.direct is not None:
        rule = f"direct edges of at least {learned.direct:g} of the largest of: {rule}"
    sentences = [
        f"Learned by {learned.method}, {len(learned.seeds)} seed{'s' * (len(learned.seeds) > 1)}, warm-up {learned.warmup_steps:,} steps, "
        f"{counted(len(learned.runs), 'trial')} of up to {counted(learned.eval_steps[-1], 'step')}; {rule}.",
        f"Cost: {learned.num_steps:,} steps, {learned.num_samples:,} samples.",
        f"Losses: {learned.loss_kind.sentence}. Report the same to a mixer that uses this graph.",
    ]
    if len(learned.seeds) == 1:
        sentences.append(
            "One seed cannot tell which of these edges are luck: "
            "'skillshard graph learn --seeds 3' trains only what is missing."
        )
    settled = sum(trial.steps_taken < learned.eval_steps[-1] for trial in learned.runs)
    if settled:
        sentences.append(f"{counted(settled, 'trial')} ended early, because the losses had settled.")
    for_steps = learned.made_from.get("for_steps")
    if for_steps:
        # Samples are compared and not steps, because a step of a trial has another number of samples than a step of the training.
        share = learned.num_samples / (for_steps * learned.made_from["batch_size"])
        sentences[1] = sentences[1][:-1] + f": {100 * share:.0f} % of a training of {for_steps:,} steps of this proxy."
    return sentences
