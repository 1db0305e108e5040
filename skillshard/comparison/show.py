"""Show a comparison: a table with verdicts in the terminal, and a picture."""

import os
import re
from collections.abc import Sequence

import numpy as np

from skillshard import storage
from skillshard.comparison.file import ComparedPolicy, CompareFile
from skillshard.comparison.verdict import ComparedRun, Verdict, paired_differences
from skillshard.extras import needed
from skillshard.printable import counted, shortened
from skillshard.report.text import print_line, print_table


def show_comparison(result: CompareFile) -> None:
    """Print a row for each policy, and a verdict for each policy except the baseline."""
    names = short_names([policy.name for policy in result.policies])
    print_table(
        ("policy", "loss", "±", "curve", "difference", "lower", "p, Holm", "cost"),
        [_row(policy, names[policy.name]) for policy in result.policies],
    )
    num = len({run.seed for policy in result.policies for run in policy.runs})
    print_line(
        f"loss: at the end, mean over {counted(len(result.skills), 'skill')} and {counted(num, 'seed')}, nats per token, ± standard deviation; "
        "curve: mean loss over the training; cost: graph and measurements, in steps of the training."
    )
    for policy in result.policies:
        if policy.verdict is not None:
            for line in verdict_lines(policy.name, policy.verdict, result.baseline):
                print_line(line)


def verdict_lines(name: str, verdict: Verdict, baseline: str) -> list[str]:
    """Return the verdict on a policy in words, and the limits of the seeds."""
    lines = [f"{name} against {baseline}: worth it: {verdict.worth_it}. Reason: {verdict.why}."]
    if verdict.detectable is not None:
        lines.append(
            f"  {counted(verdict.num_pairs, 'seed')} would show a true difference of {verdict.detectable:.4f} nats or more in four of five "
            "comparisons."
        )
        if verdict.worth_it == "undecided":
            many = "more than 1,000" if verdict.seeds_needed is None else f"{verdict.seeds_needed:,}"
            lines.append(
                f"  A difference as large as the measured difference, {abs(verdict.mean_difference or 0.0):.4f} nats, would need {many} seeds."
            )
    if 0 < verdict.num_pairs < verdict.sign_test_seeds:
        lines.append(
            f"  The count of seeds with a lower loss decides nothing here: a sign test that could be significant needs {verdict.sign_test_seeds} seeds."
        )
    return lines


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return a name of each policy for tables and pictures: without the directories of its files, where the names stay different.

    >>> short_names(["stratified", "skill_it:/runs/graph.json,eta=1", "skill_it:s3://b/none.json,eta=1"])
    {'stratified': 'stratified', 'skill_it:/runs/graph.json,eta=1': 'skill_it:graph.json,eta=1', 'skill_it:s3://b/none.json,eta=1': 'skill_it:none.json,eta=1'}
    >>> short_names(["skill_it:a/graph.json,eta=1", "skill_it:b/graph.json,eta=1"])["skill_it:a/graph.json,eta=1"]
    'skill_it:a/graph.json,eta=1'
    """
    short = {name: re.sub(r"(?<=[:,])[^,=]*/", "", name) for name in names}
    return short if len({*short.values()}) == len(short) else {name: name for name in names}


def _row(policy: ComparedPolicy, name: str) -> tuple[str, ...]:
    finals = [run.mean_losses[-1] for run in policy.runs]
    spread = f"{np.std(finals, ddof=1):.4f}" if len(finals) > 1 else ""
    curve = np.mean([_mean_of_curve(run) for run in policy.runs])
    verdict = policy.verdict
    if verdict is None or verdict.mean_difference is None:
        against = ("baseline" if verdict is None else "-", "", "")
    else:
        p = "-" if verdict.p_holm is None else f"{verdict.p_holm:.3f}" if verdict.p_holm >= 0.001 else "<0.001"
        against = (f"{verdict.mean_difference:+.4f}", f"{verdict.lower_on} of {verdict.num_pairs}", p)
    return (name, f"{np.mean(finals):.4f}", spread, f"{curve:.4f}", *against, f"{policy.cost.steps:,.0f}")


def _mean_of_curve(run: ComparedRun) -> float:
    """Return the mean loss over the training. The measurement before the first step is the same for every policy, and is left out."""
    trained = [loss for step, loss in zip(run.steps, run.mean_losses, strict=True) if step > 0]
    return float(np.mean(trained or run.mean_losses))


def draw_comparison_of_policies(result: CompareFile, place: str | os.PathLike[str]) -> None:
    """Draw the mean curve of each policy on the left, and the difference to the baseline of each seed on the right, as a PNG.

    Raises:
        ExtraError: Matplotlib is not installed.
    """
    needed("plots", what="A picture of a comparison")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = short_names([policy.name for policy in result.policies])
    for number, policy in enumerate(result.policies):
        curves = np.array([run.mean_losses for run in policy.runs])
        steps = policy.runs[0].steps
        for curve in curves:
            left.plot(steps, curve, color=f"C{number}", linewidth=0.6, alpha=0.4)
        left.plot(steps, curves.mean(axis=0), color=f"C{number}", linewidth=2.2, label=shortened(names[policy.name]))
    left.set_xlabel("steps")
    left.set_ylabel("mean holdout loss, nats per token")
    left.legend(frameon=False, fontsize="small")
    others = [policy for policy in result.policies if policy.name != result.baseline]
    baseline = next(policy for policy in result.policies if policy.name == result.baseline)
    colour_of = {policy.name: f"C{number}" for number, policy in enumerate(result.policies)}
    for row, policy in enumerate(others):
        values = paired_differences(policy.runs, baseline.runs)
        right.plot(values, [row] * len(values), "o", color=colour_of[policy.name], alpha=0.5)
        if values:
            right.plot(
                [float(np.mean(values))], [row], "|", color=colour_of[policy.name], markersize=24, markeredgewidth=3
            )
    right.axvline(0, color="black", linewidth=1)
    right.set_yticks(
        range(len(others)),
        [
            f"{shortened(names[policy.name], 32)}\nworth it: {policy.verdict.worth_it}"
            for policy in others
            if policy.verdict
        ],
        fontsize="small",
    )
    right.set_ylim(len(others) - 0.5, -0.5)
    right.locator_params(axis="x", nbins=5)  # small differences have long numbers
    right.set_xlabel("loss at the end minus the baseline, by seed")
    right.set_title(f"baseline: {shortened(names[result.baseline])}", fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    with storage.writing(place) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
