"""Draw pictures of runs from their ledgers, and pictures of tags and graphs."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from skillshard import places, storage
from skillshard.errors import StorageError
from skillshard.extras import needed
from skillshard.mixing.ledger import Ledger
from skillshard.mixing.records import open_records
from skillshard.printable import shortened
from skillshard.taggers.agreement import Agreement

LOSS_FLOOR = 1e-4
"""Smallest loss on a logarithmic axis, in nats per token. Lower losses differ by noise only, and 0 has no logarithm."""
NAMES_INSIDE, NAMES_BESIDE = 12, 40
"""Number of names for which a legend has room inside an axis, and beside all axes."""
RUNS_ABREAST = 4
"""Number of runs side by side. More runs would be too small to read on a page."""


def refuse_file(pictures: str | os.PathLike[str]) -> None:
    """Raise StorageError if the directory for pictures is a file, before any output."""
    folder = places.local_path(pictures)
    for part in (folder, *folder.parents):
        if part.exists():
            if not part.is_dir():
                raise StorageError(f"`pictures`: {part} is a file: give a directory.")
            return


@dataclass(frozen=True)
class History:
    """The course of a run, from its ledger.

    Attributes:
        skills: Training skills.
        eval_skills: Skills that any observation names.
        draws: Draw of each observation.
        steps: Optimizer step of each observation.
        losses: Losses in nats per token. NaN: the observation does not name the skill.
        first_draws: First draw of each round.
        round_draws: Number of draws of a round.
        weights: Weights of each round.
    """

    skills: tuple[str, ...]
    eval_skills: tuple[str, ...]
    draws: Int[np.ndarray, " observation"]
    steps: Int[np.ndarray, " observation"]
    losses: Float[np.ndarray, "observation eval_skill"]
    first_draws: Int[np.ndarray, " round"]
    round_draws: int
    weights: Float[np.ndarray, "round skill"]


def history(ledger: Ledger) -> History:
    """Read the course of a run, as the newest generation sees the run.

    Raises:
        LedgerError: The ledger holds no run.
    """
    records = open_records(ledger)
    run, observations, decided = records.run, list(records.observations), list(records.rounds)
    eval_skills = tuple(dict.fromkeys(skill for record in observations for skill in record.losses))
    losses = [
        [np.nan if (loss := record.losses.get(skill)) is None else loss for skill in eval_skills]
        for record in observations
    ]
    return History(
        skills=tuple(run.skills),
        eval_skills=eval_skills,
        draws=np.array([record.draw for record in observations], np.int64),
        steps=np.array([record.step for record in observations], np.int64),
        losses=np.array(losses).reshape(len(observations), len(eval_skills)),
        first_draws=np.array([record.first_draw for record in decided], np.int64),
        round_draws=run.round_draws,
        weights=np.array([record.weights for record in decided]).reshape(len(decided), len(run.skills)),
    )


def draw_runs(runs: Mapping[str, History], place: str | os.PathLike[str], *, title: str) -> None:
    """Draw runs side by side: above, the losses of each skill and their mean (log scale), and below, the weights of each round.

    Args:
        runs: Runs by name.
        place: Place of the PNG. The other functions of this module write a PNG too.
        title: Title of the picture.

    Raises:
        ExtraError: Matplotlib is not installed.
    """
    needed("plots", what="A picture of runs")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    abreast = min(len(runs), RUNS_ABREAST)
    bands = math.ceil(len(runs) / abreast)
    figure = Figure(figsize=(4.2 * abreast, 6.4 * bands), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * bands, abreast, sharex=True, squeeze=False, height_ratios=(3, 2) * bands)
    above, below = axes[::2].ravel(), axes[1::2].ravel()
    for row in (above, below):
        for axis in row[1:]:
            axis.sharey(row[0])
    trained, measured = (
        {name: None for run in runs.values() for name in getattr(run, part)} for part in ("skills", "eval_skills")
    )
    every = [*trained, *(name for name in measured if name not in trained)]
    colour_of = dict(zip(every, _colours(len(every)), strict=True))
    for number, (name, run) in enumerate(runs.items()):
        _plot_losses(above[number], run, colour_of)
        _plot_weights(below[number], run, colour_of)
        above[number].set_title(_short(name))
        below[number].xaxis.set_major_locator(MaxNLocator(4))
        below[number].tick_params(labelbottom=True)
        if number % abreast == 0:
            above[number].set_ylabel("holdout loss, nats per token")
            below[number].set_ylabel("weight")
        else:
            above[number].tick_params(which="both", labelleft=False)
            below[number].tick_params(labelleft=False)
    below[0].set_ylim(bottom=0)  # after the last plot, because every plot changes the shared upper limit
    for axis in (*above[len(runs) :], *below[len(runs) :]):
        axis.remove()
    # If the same skills are trained and measured, one legend names the lines of both rows.
    for axis in (above[0], below[0]) if measured != trained else above[:1]:
        _name_lines(figure, axis)
    figure.suptitle(title)
    with storage.writing(place) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def draw_comparison(runs: Mapping[str, History], place: str | os.PathLike[str], *, weights_of: str, title: str) -> None:
    """Draw the mean loss of each run on the left, with its mean over the training, and the weights of one run on the right."""
    needed("plots", what="A picture of runs")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, weights = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, (name, run) in enumerate(runs.items()):
        means = run.losses.mean(axis=1)
        label = f"{_short(name)}: {means.mean():.3f}"
        losses.plot(run.draws, means, label=label, color=f"C{number}", linewidth=2.4 if name == weights_of else 1.5)
    losses.set_ylim(bottom=0)  # from 0, so that the areas below the curves compare as the means in the legend do
    losses.set_ylabel("mean holdout loss, nats per token")
    losses.legend(title="mean over the training", loc="upper right", frameon=False)
    chosen = runs[weights_of]
    _plot_weights(weights, chosen, dict(zip(chosen.skills, _colours(len(chosen.skills)), strict=True)))
    weights.set_ylim(bottom=0)
    weights.set_ylabel("weight")
    weights.set_title(f"weights of {_short(weights_of)}", fontsize=10)
    _name_lines(figure, weights)
    for axis in (losses, weights):
        axis.set_xlabel("samples seen")
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    with storage.writing(place) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _plot_losses(axis: Any, run: History, colour_of: Mapping[str, Any]) -> None:
    for column, skill in enumerate(run.eval_skills):
        is_measured = np.isfinite(run.losses[:, column])
        shown = np.maximum(run.losses[is_measured, column], LOSS_FLOOR)
        axis.plot(run.draws[is_measured], shown, label=_short(skill), color=colour_of[skill], linewidth=1.2)
    whole = np.isfinite(run.losses).all(axis=1)  # means over different skills would jump from point to point
    shown = np.maximum(run.losses[whole].mean(axis=1), LOSS_FLOOR)
    axis.plot(run.draws[whole], shown, label="mean", color="black", linewidth=2)
    axis.set_yscale("log")
    axis.grid(alpha=0.25)


def _plot_weights(axis: Any, run: History, colour_of: Mapping[str, Any]) -> None:
    edges = np.append(run.first_draws, run.first_draws[-1:] + run.round_draws)
    for column, skill in enumerate(run.skills):
        weights, colour = run.weights[:, column], colour_of[skill]
        width = max(1.4, 3.4 - 0.5 * column)  # thinner lines on top, so that lines of equal weights all show
        axis.stairs(weights, edges, label=_short(skill), color=colour, linewidth=width, baseline=None)
    axis.set_xlabel("samples seen")
    axis.grid(alpha=0.25)


def _name_lines(figure: Any, axis: Any) -> None:
    """Draw a legend inside the axis or beside all axes, or no legend for too many names."""
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) <= NAMES_INSIDE:
        axis.legend(fontsize="small", loc="best")
    elif len(labels) <= NAMES_BESIDE:
        figure.legend(handles, labels, fontsize=7, loc="outside right upper", frameon=False)


# --- tags ------------------------------------------------------------------------------------------------------------

NAMES_IN_MAP = 20
"""Number of skills up to which a map shows the names. With more skills, names would cover each other, and numbers stand in their place."""
BARS_IN_PANEL = 50
"""Number of bars, or of lines of a key, above each other in a picture. More would not fit a screen."""
# At most so many panels side by side, because a wider picture is not readable either.
MAX_PANELS = 4


def draw_sizes(sizes: Mapping[str, int], place: str | os.PathLike[str]) -> None:
    """Draw the number of samples of each skill, with the largest skill first. Many skills stand in several panels, read column by column."""
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    num_panels = min(-(-len(names) // BARS_IN_PANEL), MAX_PANELS)
    num_bars = -(-len(names) // num_panels)
    # At most 60 inches, so that a picture of thousands of skills can still be opened.
    figure, axes = _figure(8.0 if num_panels == 1 else 6.0 * num_panels, min(1.2 + 0.24 * num_bars, 60.0), num_panels)
    for number, axis in enumerate(np.atleast_1d(axes)):
        own = names[number * num_bars : (number + 1) * num_bars]
        axis.barh(range(len(own)), [sizes[name] for name in own], color="C0")
        axis.set_yticks(range(len(own)), [_short(name) for name in own], fontsize="small")
        axis.set_ylim(num_bars - 0.4, -0.6)
        # One scale for all panels, so that bars of two panels can be compared.
        axis.set_xlim(0, 1.05 * max(sizes.values()))
        axis.set_xlabel("samples")
        axis.grid(alpha=0.25, axis="x")
    figure.suptitle(f"Samples of each of {len(names):,} skills")
    _save(figure, place)


def draw_map(
    points: Float[np.ndarray, "point 2"], skills: Sequence[str], names: Sequence[str], place: str | os.PathLike[str]
) -> None:
    """Draw samples as dots in two dimensions, with a colour for each skill and the skill's name at the median of its dots.

    Of many skills the numbers stand in the map, and a key beside the map has the names. Dots far away from all others stand at the edge of the
    map, so that a few outliers do not crowd all other dots in the middle.
    """
    points = _within_reach(points)
    has_key = len(names) > NAMES_IN_MAP
    num_columns = min(-(-len(names) // BARS_IN_PANEL), MAX_PANELS) if has_key else 0
    figure, axis = _figure(10.0 + 3.4 * num_columns, 9.0 if has_key else 8.0)
    skill_of = np.array(skills)
    colours = _colours(len(names))
    white = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
    for number, name in enumerate(names):
        own = points[skill_of == name]
        axis.scatter(own[:, 0], own[:, 1], s=7, color=colours[number], linewidths=0, alpha=0.7)
        if len(own):
            middle = _most_central(own)
            label = str(number + 1) if has_key else _short(name)
            axis.text(*middle, label, fontsize=7, ha="center", va="center", bbox=white)
    if has_key:
        handles = [axis.scatter([], [], s=20, color=colour) for colour in colours]
        labels = [f"{number} {_short(name, 34)}" for number, name in enumerate(names, start=1)]
        figure.legend(
            handles, labels, loc="outside right upper", ncols=num_columns, fontsize=7, frameon=False, handletextpad=0.1
        )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(
        f"{len(points):,} samples, {len(names)} skills (distances between far groups mean nothing)", fontsize=9
    )
    _save(figure, place)


def _within_reach(points: Float[np.ndarray, "point 2"]) -> Float[np.ndarray, "point 2"]:
    """Move points that lie far outside of 98 % of all points to the edge.

    >>> _within_reach(np.array([*([[number, number] for number in range(100)]), [1000.0, 50.0]])).max(axis=0).round().tolist()
    [104.0, 99.0]
    """
    low, high = np.quantile(points, [0.01, 0.99], axis=0)
    margin = 0.05 * (high - low)
    return np.clip(points, low - margin, high + margin)


def _most_central(points: Float[np.ndarray, "point 2"]) -> Float[np.ndarray, " 2"]:
    """Return the point that is nearest to the median. The median itself may lie between two groups of the points, on other skills."""
    median = np.median(points, axis=0)
    return points[np.argmin(((points - median) ** 2).sum(axis=1))]


def draw_curve(tried: Mapping[int, float], chosen: int, criterion: str, place: str | os.PathLike[str]) -> None:
    """Draw the criterion for each number of skills that was tried."""
    figure, axis = _figure(6.0, 3.6)
    axis.plot(list(tried), list(tried.values()), marker="o", markersize=4)
    axis.axvline(chosen, color="black", linewidth=1, linestyle=":")
    axis.set_xscale("log")
    axis.set_xticks(list(tried), [str(number) for number in tried], fontsize="small")
    axis.minorticks_off()
    axis.set_xlabel(f"number of skills; {chosen} was chosen")
    axis.set_ylabel(criterion)
    axis.grid(alpha=0.25)
    _save(figure, place)


def draw_trajectories(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], place: str | os.PathLike[str]
) -> None:
    """Draw the mean loss of each skill's fitting samples along the trials. The legend lists the skill with the lowest losses first."""
    figure, axis = _figure(7.0, 4.0)
    names = sorted(curves, key=lambda name: (sum(curves[name]), name))
    for name, colour in zip(names, _colours(len(names)), strict=True):
        axis.plot(steps, curves[name], color=colour, marker="o", markersize=3, label=_short(name))
    axis.set_ylim(bottom=0)
    axis.set_xlabel("optimizer steps of the proxy")
    axis.set_ylabel("loss (nats per token)")
    axis.grid(alpha=0.25)
    num_columns = -(-len(names) // BARS_IN_PANEL)
    figure.set_figwidth(7.0 + 3.4 * (num_columns - 1))
    figure.set_figheight(max(4.0, min(len(names), BARS_IN_PANEL) * 0.16))
    figure.legend(loc="outside right upper", ncols=num_columns, fontsize=7, frameon=False)
    _save(figure, place)


def draw_agreement(measured: Agreement, against: str, place: str | os.PathLike[str]) -> None:
    """Draw the confusion matrix as shares of each skill. Rows and columns are ordered so that matches lie on the diagonal."""
    # Columns are sorted by the mean row of their mass, then rows by the mean column of their mass.
    shares = measured.counts / measured.counts.sum(axis=1, keepdims=True)
    columns = np.argsort([(np.arange(len(shares)) * column).sum() / column.sum() for column in shares.T], kind="stable")
    rows = np.argsort([(np.arange(len(columns)) * row[columns]).sum() for row in shares], kind="stable")
    # 0.17 inches hold a line of the smallest readable font.
    width, height = (min(3.0 + max(0.17, 0.3 - 0.002 * num) * num, 40.0) for num in (len(columns), len(rows)))
    figure, axis = _figure(max(width, 6.0), max(height, 4.0))
    drawn = axis.imshow(shares[rows][:, columns], vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.set_yticks(range(len(rows)), [_short(measured.found[row]) for row in rows], fontsize=7)
    axis.set_xticks(range(len(columns)), [_short(measured.true[column]) for column in columns], fontsize=7, rotation=90)
    axis.set_xlabel(_short(against))
    axis.set_title(f"NMI {measured.nmi:.3f}, ARI {measured.ari:.3f}, purity {measured.purity:.3f}", fontsize=9)
    figure.colorbar(drawn, ax=axis, label="share of the skill's samples", fraction=0.03, pad=0.01)
    _save(figure, place)


ARROWS = 40
"""Number of edges drawn as arrows. More arrows would cover each other."""
NUMBERS_UP_TO = 12
"""Number of skills up to which the cells of a heat map have room for numbers."""


def draw_heat_map(
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    edges: Float[np.ndarray, "train_skill eval_skill"],
    place: str | os.PathLike[str],
    *,
    doubt: Bool[np.ndarray, "train_skill eval_skill"] | None = None,
) -> None:
    """Draw the matrix as a heat map. Blue edges help, and red edges harm.

    The scale of colours covers 95 % of the edges between skills, so that a few large edges do not make all other cells pale.

    Args:
        train_skills, eval_skills: Rows and columns.
        edges: Matrix.
        place: Place of the PNG.
        doubt: Edges that could be 0. In a large matrix, every other edge has a dot. None: no standard errors.
    """
    # The diagonal is often set to 1 and would decide the scale alone.
    between = np.array([[row != column for column in eval_skills] for row in train_skills])
    sizes = np.abs(edges[between])
    limit = float(np.quantile(sizes, 0.95, method="higher")) if sizes.any() else 0.0
    limit = limit or float(np.abs(edges).max()) or 1.0
    has_numbers = edges.size <= NUMBERS_UP_TO**2
    # Cells have room for about four characters, so very small and very large edges are shown in a unit of a power of ten.
    unit = 10.0 ** math.floor(math.log10(limit)) if has_numbers and not 0.1 <= limit < 100 else 1.0
    wide = 0.45 if has_numbers else 0.3
    width, height = (min(2.6 + cell * num, 40.0) for cell, num in ((wide, len(eval_skills)), (0.3, len(train_skills))))
    figure, axis = _figure(max(width, 5.0), max(height, 3.6))
    harms = bool((edges < 0).any())
    drawn = axis.imshow(
        edges, vmin=-limit if harms else 0, vmax=limit, cmap="RdBu" if harms else "Blues", aspect="auto"
    )
    axis.set_yticks(range(len(train_skills)), [_short(name) for name in train_skills], fontsize=7)
    axis.set_xticks(range(len(eval_skills)), [_short(name) for name in eval_skills], fontsize=7, rotation=90)
    axis.set_ylabel("trained on")
    axis.set_xlabel("measured on")
    if has_numbers:
        for (row, column), edge in np.ndenumerate(edges):
            shown, colour = f"{edge / unit:.2f}" if edge else "0", "white" if abs(edge) > 0.6 * limit else "black"
            axis.text(column, row, shown, ha="center", va="center", fontsize=7, color=colour)
    elif doubt is not None:
        certain = np.argwhere(~doubt & (edges != 0))
        # White dots and numbers on dark cells, black ones on light cells.
        dark = np.abs(edges[*certain.T]) > 0.6 * limit
        axis.scatter(certain[:, 1], certain[:, 0], s=9, c=np.where(dark, "white", "black"), linewidths=0)
        axis.set_title("a dot: distinguishable from 0 (95 %, each edge alone)", fontsize=8)
    beyond = {(False, False): "neither", (True, False): "max", (False, True): "min", (True, True): "both"}
    is_beyond = bool((edges > limit).any()), bool((edges < -limit).any())
    scaled = "" if unit == 1 else f"; numbers: times {unit:g}"
    figure.colorbar(drawn, ax=axis, label=f"edge (blue: helps{scaled})", extend=beyond[is_beyond])
    _save(figure, place)


def draw_nodes(
    train_skills: Sequence[str],
    eval_skills: Sequence[str],
    edges: Float[np.ndarray, "train_skill eval_skill"],
    place: str | os.PathLike[str],
    *,
    doubt: Bool[np.ndarray, "train_skill eval_skill"] | None = None,
) -> None:
    """Draw skills on a circle, with arrows for the strongest positive edges between skills. A stronger edge has a wider arrow.

    Edges that could be 0, by `doubt`, are grey.
    """
    names = list(dict.fromkeys((*train_skills, *eval_skills)))
    arrows = sorted(
        (
            (
                float(edges[row, column]),
                names.index(train),
                names.index(name),
                doubt is not None and bool(doubt[row, column]),
            )
            for row, train in enumerate(train_skills)
            for column, name in enumerate(eval_skills)
            if train != name and edges[row, column] > 0
        ),
        key=lambda edge: (-edge[0], edge[1:]),
    )
    figure, axis = _figure(8.5, 7.5)
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / len(names)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for edge, start, end, could_be_0 in reversed(arrows[:ARROWS]):  # the strongest arrow last, on top of the others
        strength = edge / arrows[0][0]
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 9, "shrinkB": 9}
        style["color"] = "0.55" if could_be_0 else "C0"
        style |= {
            "linewidth": 0.4 + 3.2 * strength,
            "alpha": 0.25 + 0.75 * strength,
            "connectionstyle": "arc3,rad=0.12",
        }
        axis.annotate("", xy=places[end], xytext=places[start], arrowprops=style)
    axis.scatter(*places.T, s=60, color="black", zorder=3)
    for name, (x, y) in zip(names, places, strict=True):
        side = "center" if abs(x) < 0.02 else "left" if x > 0 else "right"
        axis.text(
            1.07 * x,
            1.07 * y + (0.03 * np.sign(y) if side == "center" else 0),
            _short(name, 28),
            ha=side,
            va="center",
            fontsize=8,
        )
    axis.set_xlim(-1.75, 1.75)
    axis.set_ylim(-1.3, 1.3)
    axis.set_aspect("equal")
    axis.axis("off")
    shown = min(len(arrows), ARROWS)
    axis.set_title(
        f"{shown:,} strongest of {len(arrows):,} positive edges between skills; arrows point to the helped skill"
        + ("; grey: could be 0" if any(could_be_0 for *_, could_be_0 in arrows[:ARROWS]) else ""),
        fontsize=9,
    )
    _save(figure, place)


def _figure(width: float, height: float, num_panels: int = 1) -> tuple[Any, Any]:
    needed("plots", what="A picture")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure without pyplot: pyplot keeps every figure in memory and looks for a display.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, num_panels)


def _save(figure: Any, place: str | os.PathLike[str]) -> None:
    # The version of Matplotlib is left out of the file, so that the bytes depend on the picture alone.
    with storage.writing(place) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _colours(num: int) -> list[Any]:
    from matplotlib import colormaps

    if num <= 10:
        return [f"C{number}" for number in range(num)]
    # Steps of 7, so that neighbouring skills get distant colours.
    return [colormaps["turbo"]((number * 7 % num + 0.5) / num) for number in range(num)]


def _short(name: str, most: int = 40) -> str:
    r"""Make a name fit for a picture: printable, short, and without "$", which Matplotlib would read as mathematics.

    >>> _short("a$b\n")
    'a\\$b\\n'
    """
    return shortened(name, most).replace("$", r"\$")
