"""A page for a browser about runs: HTML with inline SVG, style and script in one file, without network.

Every name and place is escaped. The charts show a few skills, the table all skills. The functions are pure, so that equal facts give equal
bytes.
"""

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import PurePath

import numpy as np
import orjson

from skillshard.printable import counted, printable, shortened, size_in_words
from skillshard.report.facts import ShardsSkill
from skillshard.report.graph_facts import GraphFacts
from skillshard.report.history import Event, LossCourse, ReportFacts, RunHistory, SkillCourse

WIDTH, HEIGHT, LEFT, TOP = 640, 230, 58, 12
PLOT_WIDTH, PLOT_HEIGHT = 570, 186
"""Sizes of a chart in units of its SVG. page.js holds LEFT and PLOT_WIDTH too."""
COLOURS = 8
"""Number of colours of page.css. More lines repeat the colours with dashes."""
SPARK_POINTS = 24
"""Number of points of a small line in the table."""
MARK_RADIUS = 5
"""Radius of the circle of a mark."""
DASH = 6
"""Length of a dash where marks of several kinds share a line."""
SIDE_BY_SIDE = 2
"""Largest number of runs whose columns stand side by side on paper. The columns of more runs stand below one another."""
MAP_SKILLS = 30
"""Largest number of rows and of columns of a heat map."""
MAP_NUMBERS = 10
"""Largest number of skills up to which the cells of a heat map show numbers."""
NO_VALUE = "–"  # noqa: RUF001  # a dash, in the place of a number
SMALLEST_CHANGE = 1e-9
"""Smallest change of a weight that is shown. Smaller changes are rounding."""

Points = Sequence[tuple[int, float | None]]


def page_of(facts: ReportFacts, *, num_lines: int) -> str:
    """Write the page.

    Args:
        facts: Runs of the page.
        num_lines: Number of skills that the charts show: the skills with the largest weights and the largest changes of weights.
    """
    names = _label_of_each(facts.runs)
    chosen = _chosen_skills(facts.runs, num_lines)
    panels = [_Panel(run, names[number], chosen, num_lines, facts.runs) for number, run in enumerate(facts.runs)]
    num_skills = len({skill.name for run in facts.runs for skill in run.skills})
    title = f"skillshard report: {', '.join(names)}"
    data = orjson.dumps([panel.data() for panel in panels]).decode().replace("<", "\\u003c")
    style, script = (files("skillshard.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
        # The browser itself refuses any request to a network.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">",
        f"<title>{_text(title)}</title><style>{style}</style></head><body>",
        f"<h1>{'A training run' if len(names) == 1 else counted(len(names), 'training run')}</h1>",
        "<p>Each run mixes its training data by weights over skills. A round is a part of the data with the same weights, and the losses that the "
        f"trainer reports may change the weights of later rounds. {_what_a_draw_is(facts.runs)}</p>",
        _summary(facts.runs, names),
        f'<p class="soft">{_choice_of_lines(len(chosen), num_skills)} {_thinning(facts.runs)}</p>',
        "<noscript><p>The table of a round, the sorting and the filter need JavaScript.</p></noscript>",
        f'<h2>Course of {"the run" if len(names) == 1 else "the runs"}</h2><div class="runs{" single" if len(names) == 1 else ""}">',
        *(panel.html() for panel in panels),
        "</div>",
        _skill_table(facts.runs, names),
        *_graph_sections(facts.runs, names, chosen),
        '<h2>Shards, and how to reproduce</h2><div class="runs">',
        *(_origin(run, name) for run, name in zip(facts.runs, names, strict=True)),
        "</div>",
        f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>\n',
    ]
    return "\n".join(parts)


def _text(name: str) -> str:
    """Escape a name for HTML. Control characters and marks of direction are written out.

    >>> _text('<b>"x" & y')
    '&lt;b&gt;&quot;x&quot; &amp; y'
    """
    return escape(printable(name))


def _name(name: str, most: int = 40) -> str:
    """Write a name inside a line. A name in a script from right to left does not move its neighbours."""
    return f'<bdi title="{_text(name)}">{escape(shortened(name, most))}</bdi>'


def _label_of_each(runs: Sequence[RunHistory]) -> list[str]:
    """Name each run by its directory, or by its whole place where two directories have the same name."""
    short = [PurePath(run.facts.place).name or run.facts.place for run in runs]
    return [name if short.count(name) == 1 else run.facts.place for name, run in zip(short, runs, strict=True)]


def _chosen_skills(runs: Sequence[RunHistory], most: int) -> list[str]:
    scores: dict[str, float] = {}
    for run in runs:
        for skill in run.skills:
            weights = [weight for weight in skill.weights if weight is not None]
            score = max(weights, default=0.0) + (max(weights) - min(weights) if weights else 0.0)
            scores[skill.name] = max(score, scores.get(skill.name, 0.0))
    best = sorted(scores, key=lambda name: -scores[name])[:most]
    return [
        name for name in scores if name in best
    ]  # in the order of the runs, so that colours follow the order of the names


def _what_a_draw_is(runs: Sequence[RunHistory]) -> str:
    blocks = [run.facts.unit == "blocks" for run in runs]
    if not any(blocks):
        return "A draw is a training sample."
    return (
        "A draw is a block of tokens."
        if all(blocks)
        else "A draw is a training sample, or a block of tokens in a run with weights in blocks."
    )


def _choice_of_lines(num_chosen: int, num_skills: int) -> str:
    if num_chosen == num_skills:
        return f"The charts show all {counted(num_skills, 'skill')}."
    return (
        f"The charts show {num_chosen} of {num_skills:,} skills: those with the largest weights and changes of weights. "
        "The table below the charts has all skills."
    )


def _thinning(runs: Sequence[RunHistory]) -> str:
    thinned = [run for run in runs if len(run.rounds) < run.num_rounds]
    if not thinned:
        return "Every round is shown."
    counts = ", ".join(f"{len(run.rounds):,} of {run.num_rounds:,}" for run in thinned)
    return f"The charts are thinned to rounds at equal distances ({counts} rounds). The ledger and 'skillshard inspect RUN --csv' have every round."


def _number(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.4g}"


def _change(value: float | None) -> str:
    """Write a change of a weight in two digits, however small the change is.

    >>> _change(0.000114), _change(-0.02), _change(0.0)
    ('+0.00011', '-0.02', '0')
    """
    if value is None:
        return NO_VALUE
    if abs(value) < SMALLEST_CHANGE:
        return "0"
    return np.format_float_positional(value, precision=2, fractional=False, trim="-", sign=True)


def _percent(value: float | None) -> str:
    return NO_VALUE if value is None else f"{100 * value:.2f} %"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Write a table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _summary(runs: Sequence[RunHistory], names: Sequence[str]) -> str:
    header = (
        "run",
        "policy",
        "skills",
        "rounds",
        "draws",
        "last report",
        "first mean loss",
        "last mean loss",
        "alarms now",
    )
    rows = []
    for run, name in zip(runs, names, strict=True):
        means = [mean for _, mean in _means(run) if mean is not None]
        report = run.facts.last_report
        rows.append(
            (
                _name(name),
                _text(run.facts.policy),
                f"{len(run.facts.skills):,}",
                f"{run.num_rounds:,}",
                f"{run.facts.num_draws:,}",
                "none" if report is None else f"step {report.step:,}, draw {report.draw:,}",
                _number(means[0] if means else None),
                _number(means[-1] if means else None),
                f"{len(run.facts.alarms):,}",
            )
        )
    return _table(header, rows)


def _means(run: RunHistory) -> list[tuple[int, float | None]]:
    """Compute the mean loss of each report that names all evaluation skills. Means over different skills would jump."""
    means: list[tuple[int, float | None]] = []
    for number, report in enumerate(run.reports):
        losses = [course.losses[number] for course in run.losses]
        known = [loss for loss in losses if loss is not None]
        means.append((report.draw, sum(known) / len(known) if known and len(known) == len(losses) else None))
    return means


# --- the panel of a run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A skill of the charts, with the number of its colour. A skill is trained, measured, or both."""

    name: str
    colour: int
    skill: SkillCourse | None
    loss: LossCourse | None


class _Panel:
    """The charts of a run. All runs share the axes, so that charts side by side can be compared."""

    def __init__(
        self, run: RunHistory, name: str, chosen: Sequence[str], num_lines: int, runs: Sequence[RunHistory]
    ) -> None:
        self._run, self._label, self._runs = run, name, runs
        measured = dict.fromkeys(course.name for other in runs for course in other.losses)
        # A skill that is only measured gets a line where lines are left.
        extra = [other for other in measured if other not in chosen]
        trained = {skill.name for other in runs for skill in other.skills}
        extra = [other for other in extra if other not in trained][:num_lines]
        skills, losses = {skill.name: skill for skill in run.skills}, {course.name: course for course in run.losses}
        self._lines = [
            _Line(other, number, skills.get(other), losses.get(other))
            for number, other in enumerate([*chosen, *extra])
            if other in skills or other in losses
        ]
        self._span = (
            min(other.first_draw for other in runs),
            max(other.rounds[-1].end_draw for other in runs),
        )

    def data(self) -> dict[str, object]:
        """Return the numbers for the script."""
        return {
            "span": self._span,
            "rounds": [
                [row.round, row.first_draw, row.end_draw, row.new_reports[-1:], row.observed_to]
                for row in self._run.rounds
            ],
            "reports": [[report.step, report.draw] for report in self._run.reports],
            "lines": [
                {
                    "name": shortened(line.name),
                    "colour": line.colour,
                    "weights": line.skill and [_short(weight) for weight in line.skill.weights],
                    "losses": line.loss and [_short(loss) for loss in line.loss.losses],
                }
                for line in self._lines
            ],
        }

    def html(self) -> str:
        run, last = self._run, len(self._run.rounds) - 1
        alarms = "".join(f'<li class="alarm">{_text(alarm.sentence)}</li>' for alarm in run.facts.alarms)
        events = "".join(
            f'<li class="{event.kind}">draw {event.draw:,}, {event.kind}: {_text(event.sentence)}</li>'
            for event in run.events
        )
        header = ("skill", "loss used", "weight before", "weight", "change")
        return "\n".join(
            [
                f'<section class="run history"><h2>{_name(self._label, 80)}</h2>',
                f'<p class="soft">{_text(run.facts.place)}</p>',
                f'<div class="alarms"><strong>Alarms at the newest round</strong><ul>{alarms}</ul></div>'
                if alarms
                else "",
                '<div class="key" role="group" aria-label="Emphasize a skill in the charts">',
                *(
                    f'<button type="button" aria-pressed="false" data-line="{line.colour}">{_swatch(line.colour)}{_name(line.name, 30)}</button>'
                    for line in self._lines
                ),
                "</div>",
                '<div class="charts">',
                self._chart(f"Weights, in {run.facts.unit}", "weight", self._weights),
                self._chart("Losses, nats per token (dashed: mean)", "loss", self._losses)
                if run.losses
                else '<p class="soft">No losses were reported.</p>',
                self._chart("Epochs: passes over each skill", "epochs", self._epochs),
                f"<div>{self._shares()}</div></div>",
                '<h3>Why these weights? Losses and weights of a round</h3><label class="control"><span class="soft">Choose a round: point at a chart, or use the '
                f'arrow keys on a chart or here.</span><input type="range" min="0" max="{last}" value="{last}" aria-label="Round of {_text(self._label)}"></label>',
                f'<p class="round" aria-live="polite"></p>{_table(header, [], "readout")}',
                f"<h3>Marks: alarms, resumes, changes</h3><ul>{events}</ul>" if events else "",
                "</section>",
            ]
        )

    def _weights(self, run: RunHistory, name: str) -> Points:
        return _over_rounds(run, name, "weights")

    def _epochs(self, run: RunHistory, name: str) -> Points:
        return _over_rounds(run, name, "epochs")

    def _losses(self, run: RunHistory, name: str) -> Points:
        course = next((course for course in run.losses if course.name == name), None)
        return [
            (report.draw, None if course is None else course.losses[number])
            for number, report in enumerate(run.reports)
        ]

    def _chart(self, title: str, quantity: str, points_of: Callable[[RunHistory, str], Points]) -> str:
        names = [line.name for line in self._lines]
        highest = max(
            (value for run in self._runs for name in names for _, value in points_of(run, name) if value is not None),
            default=1.0,
        )
        ticks = _ticks(highest)
        axes = _Axes(self._span, ticks[-1])
        curves = [
            _curve(axes, points_of(self._run, line.name), line.colour, steps=quantity == "weight")
            for line in self._lines
            if any(value is not None for _, value in points_of(self._run, line.name))
        ]
        if quantity == "loss":
            curves.append(f'<path class="curve mean" d="{_path(axes, _means(self._run), steps=False)}"/>')
        return (
            f'<div class="chart"><h3>{title}</h3><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" tabindex="0" role="img" '
            f'aria-label="{_text(title)} of {_text(self._label)} over the draws. Arrow keys choose a round.">'
            f"{axes.frame(ticks)}{_marks(axes, self._run.events)}{''.join(curves)}"
            f'<line class="cursor" x1="-9" x2="-9" y1="{TOP}" y2="{TOP + PLOT_HEIGHT}"/></svg></div>'
        )

    def _shares(self) -> str:
        rows = []
        names = {line.name for line in self._lines}
        last = [
            share
            for run in self._runs
            for skill in run.skills
            if skill.name in names
            for share in (skill.achieved[-1], skill.intended[-1])
        ]
        # The bars of all runs have one scale, which the largest share fills: with 500 skills every share is small.
        largest = max((share for share in last if share is not None), default=1.0) or 1.0
        for line in self._lines:
            if line.skill is None or line.skill.achieved[-1] is None:
                continue
            achieved, intended = line.skill.achieved[-1], line.skill.intended[-1] or 0.0
            bar = (
                f'<svg viewBox="0 0 200 14" style="width:130px" aria-hidden="true"><rect y="3" height="8" width="{200 * achieved / largest:.1f}" fill="var(--c{line.colour % COLOURS})"/>'
                f'<path d="M{min(199.0, 200 * intended / largest):.1f} 0v14" stroke="var(--text)" stroke-width="2"/></svg>'
            )
            rows.append((_swatch(line.colour) + _name(line.name), bar, _percent(intended), _percent(achieved)))
        header = ("skill", f"0 to {_percent(largest)}", "intended", "achieved")
        return (
            '<h3>Shares of all draws</h3><p class="soft">The bar is the share of the draws that the skill got, the stroke the share that the weights ask for.</p>'
            + _table(header, rows)
        )


def _over_rounds(run: RunHistory, name: str, field: str) -> Points:
    course = next((skill for skill in run.skills if skill.name == name), None)
    values = [None] * len(run.rounds) if course is None else getattr(course, field)
    points = [(row.first_draw, value) for row, value in zip(run.rounds, values, strict=True)]
    if field == "epochs":  # the number of epochs is known after a round
        return [(row.end_draw, value) for row, (_, value) in zip(run.rounds, points, strict=True)]
    return [*points, (run.rounds[-1].end_draw, values[-1])]


def _swatch(colour: int) -> str:
    return f'<span class="swatch dash{colour // COLOURS}" style="color:var(--c{colour % COLOURS})"></span>'


def _short(value: float | None) -> float | None:
    """Round a number for the script to five digits, so that the page stays small."""
    return None if value is None else float(f"{value:.5g}")


# --- charts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axes:
    span: tuple[int, int]
    highest: float

    def x(self, draw: int | float) -> float:
        return LEFT + PLOT_WIDTH * (draw - self.span[0]) / max(1, self.span[1] - self.span[0])

    def y(self, value: float | int) -> float:
        return TOP + PLOT_HEIGHT * (1 - value / self.highest)

    def frame(self, ticks: Sequence[float]) -> str:
        bottom, right = TOP + PLOT_HEIGHT, LEFT + PLOT_WIDTH
        lines = [
            f'<path class="grid" d="M{LEFT} {self.y(tick):.1f}H{right}"/><text x="{LEFT - 6}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            for tick in ticks
        ]
        length = self.span[1] - self.span[0]
        for tick in _ticks(length):
            if tick <= length:
                x = self.x(self.span[0] + tick)
                # The outermost labels stay inside the picture.
                anchor = "start" if tick == 0 else "end" if x > right - 30 else "middle"
                lines.append(
                    f'<path class="axis" d="M{x:.1f} {bottom}v4"/><text x="{x:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{self.span[0] + round(tick):,}</text>'
                )
        return f'{"".join(lines)}<path class="axis" d="M{LEFT} {bottom}H{right}"/><text x="{right}" y="{HEIGHT - 1}" text-anchor="end">draws</text>'


def _ticks(highest: float | int) -> list[float]:
    """Choose round numbers from 0 to at least `highest`, at most seven.

    >>> _ticks(0.93), _ticks(4.2)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    """
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 6 >= highest)
    return [float(f"{number * step:.6g}") for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _curve(axes: _Axes, points: Points, colour: int, *, steps: bool) -> str:
    return (
        f'<path class="curve dash{colour // COLOURS}" data-line="{colour}" style="stroke:var(--c{colour % COLOURS})" '
        f'd="{_path(axes, points, steps=steps)}"/>'
    )


def _path(axes: _Axes, points: Points, *, steps: bool) -> str:
    """Write the path of a curve, with a gap where a value is missing. Weights stay the same within a round, so they make steps."""
    commands, pen_is_down = [], False
    for draw, value in points:
        if value is None:
            pen_is_down = False
            continue
        x, y = f"{axes.x(draw):.1f}", f"{axes.y(value):.1f}"
        commands.append((f"H{x}V{y}" if steps else f"L{x} {y}") if pen_is_down else f"M{x} {y}")
        pen_is_down = True
    return "".join(commands)


def _marks(axes: _Axes, events: Iterable[Event]) -> str:
    """Draw the marks of events. No mark covers another mark: kinds at the same place share the line in dashes, and near circles are stacked."""
    sentences: dict[tuple[str, str], list[str]] = {}
    kinds: dict[str, list[str]] = {}
    for event in sorted(events, key=lambda event: event.draw):
        x = f"{axes.x(event.draw):.1f}"
        sentences.setdefault((x, event.kind), []).append(f"draw {event.draw:,}, {event.kind}: {_text(event.sentence)}")
        if event.kind not in kinds.setdefault(x, []):
            kinds[x].append(event.kind)
    ends: list[float] = []  # right edge of the last circle in each level
    marks = []
    for (x, kind), titles in sentences.items():
        level = next((number for number, end in enumerate(ends) if end <= float(x) - MARK_RADIUS), len(ends))
        ends[level:] = [float(x) + MARK_RADIUS, *ends[level + 1 :]]
        # Beyond the height of a chart, circles begin at the top again.
        y = TOP + level * (2 * MARK_RADIUS + 1) % PLOT_HEIGHT
        num, place = len(kinds[x]), kinds[x].index(kind)
        dashes = (
            f' style="stroke-dasharray:{DASH} {DASH * (num - 1)};stroke-dashoffset:{-DASH * place}"' if num > 1 else ""
        )
        marks.append(
            f'<g><title>{"&#10;".join(titles)}</title><path class="mark {kind}"{dashes} d="M{x} {TOP}v{PLOT_HEIGHT}"/>'
            f'<circle class="{kind}" cx="{x}" cy="{y}" r="{MARK_RADIUS}"/></g>'
        )
    return "".join(marks)


def _spark(values: Sequence[float | None], highest: float) -> str:
    """Draw the course of a weight as a small line."""
    step = max(1, -(-len(values) // SPARK_POINTS))
    shown = [*values[:-1:step], values[-1]]
    width = 90 / max(1, len(shown) - 1)
    points = " ".join(
        f"{number * width:.0f},{19 - 18 * value / highest:.0f}"
        for number, value in enumerate(shown)
        if value is not None
    )
    return f'<svg class="spark" viewBox="0 0 90 20" aria-hidden="true"><polyline points="{points}" fill="none" stroke="currentColor"/></svg>'


# --- all skills -------------------------------------------------------------------------------------------------------

COLUMNS = (
    "weight now",
    "since the first round",
    "over time",
    "intended",
    "achieved",
    "epochs",
    "last loss",
    "loss since the first report",
)


def _skill_table(runs: Sequence[RunHistory], names: Sequence[str]) -> str:
    every = dict.fromkeys(
        [skill.name for run in runs for skill in run.skills] + [course.name for run in runs for course in run.losses]
    )
    groups = "".join(f'<th colspan="{len(COLUMNS)}" scope="colgroup">{_name(name)}</th>' for name in names)
    # On paper, the columns of many runs stand below one another. Then the cells of a run begin with the name of the run.
    is_stacked = len(runs) > SIDE_BY_SIDE
    heads = ['<th scope="col"><button type="button" data-column="0">skill</button></th>']
    for number in range(len(runs)):
        kind = ' class="again"' if number else ""
        if is_stacked:
            heads.append(f'<th scope="col" class="paper{" again" if number else ""}">run</th>')
        for column in COLUMNS:
            heads.append(
                f'<th scope="col"{kind}><button type="button" data-column="{len(heads)}">{column}</button></th>'
                if column != "over time"
                else f'<th scope="col"{kind}>{column}</th>'
            )
    cells: dict[str, list[str]] = {name: [] for name in every}
    for run, label in zip(runs, names, strict=True):
        for name, row in zip(every, _skill_cells(run, every), strict=True):
            cells[name] += [f'<td class="paper">{_name(label)}</td>'] if is_stacked else []
            cells[name] += [f"<td>{cell}</td>" for cell in row]
    body = "".join(f"<tr><td>{_name(name, 60)}</td>{''.join(row)}</tr>" for name, row in cells.items())
    stacked = f' class="stacked" style="--runs:{len(runs)}"' if is_stacked else ""
    table = f'<table id="skills"{stacked}>'
    return (
        '<h2>All skills</h2><p class="control"><label>Filter by name <input type="search" id="filter"></label> '
        f'<span id="matches" class="soft" aria-live="polite">{len(every):,} of {len(every):,} skills</span></p>'
        '<p class="soft control">A click on a heading sorts the table.</p>'
        f'<div class="tall" tabindex="0" role="region" aria-label="All skills">{table}<thead>{f"<tr><td></td>{groups}</tr>" if len(runs) > 1 else ""}'
        f"<tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _skill_cells(run: RunHistory, names: Iterable[str]) -> Iterator[list[str]]:
    skills, losses = {skill.name: skill for skill in run.skills}, {course.name: course for course in run.losses}
    highest = (
        max((weight for skill in run.skills for weight in skill.weights if weight is not None), default=1.0) or 1.0
    )
    for name in names:
        skill, course = skills.get(name), losses.get(name)
        cells = [NO_VALUE, NO_VALUE, "", NO_VALUE, NO_VALUE, NO_VALUE]
        if skill is not None:
            first = next((weight for weight in skill.weights if weight is not None), None)
            now, epochs = skill.weights[-1], skill.epochs[-1]
            change = None if now is None or first is None else now - first
            cells = [
                _number(now),
                _change(change),
                _spark(skill.weights, highest),
                _percent(skill.intended[-1]),
                _percent(skill.achieved[-1]),
                NO_VALUE if epochs is None else f"{epochs:.2f}",
            ]
        known = [] if course is None else [loss for loss in course.losses if loss is not None]
        yield [*cells, _number(known[-1] if known else None), f"{known[-1] - known[0]:+.4f}" if known else NO_VALUE]


# --- graph, shards, origin ----------------------------------------------------------------------------------------------


def _graph_sections(runs: Sequence[RunHistory], names: Sequence[str], chosen: Sequence[str]) -> Iterator[str]:
    """Draw each graph once, under the names of its runs."""
    graphs = {run.graph.place: run.graph for run in runs if run.graph}
    for place, graph in graphs.items():
        users = [name for run, name in zip(runs, names, strict=True) if run.graph and run.graph.place == place]
        yield _graph_section(graph, ", ".join(map(_name, users)), chosen)


def _graph_section(graph: GraphFacts, users: str, chosen: Sequence[str]) -> str:
    rows, columns = (_rows_shown(names, chosen) for names in (graph.train_skills, graph.eval_skills))
    all_shown = len(rows) == len(graph.train_skills) and len(columns) == len(graph.eval_skills)
    note = (
        ""
        if all_shown
        else f" The map shows {len(rows)} of {len(graph.train_skills):,} rows and {len(columns)} of {len(graph.eval_skills):,} columns."
    )
    highest = max((abs(edge) for row in graph.edges for edge in row), default=1.0) or 1.0
    size = 44 if max(len(rows), len(columns)) <= MAP_NUMBERS else 18
    left, top = 170, 120
    has_numbers = size > 20
    parts = []
    for y, row in enumerate(rows):
        parts.append(
            f'<text x="{left - 6}" y="{top + y * size + size / 2 + 4:.0f}" text-anchor="end">{escape(shortened(graph.train_skills[row], 24))}</text>'
        )
        for x, column in enumerate(columns):
            edge = graph.edges[row][column]
            share = abs(edge) / highest
            colour = f"rgba(var(--{'hot' if edge >= 0 else 'cold'}),{share:.2f})"
            title = f"{graph.train_skills[row]} helps {graph.eval_skills[column]}: {edge:.4g}"
            parts.append(
                f'<rect x="{left + x * size}" y="{top + y * size}" width="{size - 1}" height="{size - 1}" style="fill:{colour};stroke:var(--grid)"><title>{_text(title)}</title></rect>'
            )
            if has_numbers:
                parts.append(
                    f'<text x="{left + x * size + size / 2:.0f}" y="{top + y * size + size / 2 + 4:.0f}" text-anchor="middle" style="fill:var(--text)">{edge:.2f}</text>'
                )
    parts += [
        f'<text transform="translate({left + x * size + size / 2 + 4:.0f} {top - 6}) rotate(-45)">{escape(shortened(graph.eval_skills[column], 20))}</text>'
        for x, column in enumerate(columns)
    ]
    width, height = left + len(columns) * size + 110, top + len(rows) * size + 4
    return (
        f"<h2>Graph of {users}</h2><p>A row is a skill that is trained, a column a skill that is measured. Blue: training on the row helps the column. "
        f"Orange: it harms. {_text(graph.conclusion)}{note}</p>"
        f'<div class="scroll"><svg viewBox="0 0 {width} {height}" style="width:{width}px;max-width:none" role="img" aria-label="Heat map of the graph">{"".join(parts)}</svg></div>'
    )


def _rows_shown(names: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """Choose the skills of a heat map: the skills of the charts, then the others in their order."""
    first = [number for number, name in enumerate(names) if name in chosen]
    others = [number for number, name in enumerate(names) if name not in chosen]
    return sorted([*first, *others][:MAP_SKILLS])


def _origin(run: RunHistory, name: str) -> str:
    shards, facts = run.shards, run.facts
    if shards is None:
        counts = f"<p>The shards are not at hand: {_text(run.no_shards or '')}</p>"
    else:
        size = size_in_words(sum(skill.num_bytes for skill in shards.skills))
        numbers = (
            ("place", _text(shards.place)),
            ("skills", f"{len(shards.skills):,}"),
            ("training samples", f"{shards.num_train:,}"),
            ("held-out samples", f"{shards.num_holdout:,}"),
            ("copies", NO_VALUE if shards.num_copies is None else f"{shards.num_copies:,}"),
            ("shards", f"{sum(skill.num_shards for skill in shards.skills):,}"),
            ("size", size),
            ("smallest skill", _smallest(shards.skills)),
        )
        counts = _table(("shards", ""), numbers, "left")
    place = shlex.quote(facts.place)
    source = "SHARDS" if shards is None else shlex.quote(shards.place)
    commands = [
        f"skillshard verify {place}",
        f"skillshard inspect {place}",
        f"skillshard mix {source} --ledger {place} --first {facts.first_draw} --draws {facts.num_draws - facts.first_draw} --out stream.jsonl",
        f"skillshard at {place} --draw {facts.first_draw}",
    ]
    settings = orjson.dumps(run.settings, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()
    return (
        f'<section class="run"><h2>{_name(name, 80)}</h2>{counts}<h3>How to reproduce</h3>'
        "<p>The first command checks every record of the run. The third command writes the ids of all its draws in their order, and the last command shows the sample of a draw.</p>"
        f"<pre>{_text_of_lines(commands)}</pre><p>A new training with the same arguments, shards and losses decides the same weights and the same draws. "
        f"The record of the run (<code>run.json</code>):</p><pre>{_text_of_lines(settings.splitlines())}</pre></section>"
    )


def _smallest(skills: Sequence[ShardsSkill]) -> str:
    smallest = min(skills, key=lambda skill: skill.num_train)
    return f"{_name(smallest.name)}, {counted(smallest.num_train, 'sample')}"


def _text_of_lines(lines: Iterable[str]) -> str:
    return "\n".join(map(_text, lines))
