"""The verdict on a policy against the baseline, from losses paired by seed and from the cost of the policy."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from skillshard.comparison.significance import (
    LEVEL,
    detectable_difference,
    holm,
    paired_t,
    seeds_needed,
    sign_test_seeds,
)
from skillshard.printable import counted

EVALUATION_COST = 1 / 3
"""Cost of measuring a sample, in trained samples. A step takes three passes and a measurement takes a forward pass."""


class ComparedRun(BaseModel):
    """One training: the mean loss over the counted skills at each measurement."""

    model_config = ConfigDict(extra="forbid")

    seed: int
    steps: list[int] = Field(description="optimizer steps at each measurement")
    mean_losses: list[float] = Field(
        description="mean loss over the counted skills at each measurement, nats per token"
    )
    final_losses: dict[str, float] = Field(description="skill -> loss at the last measurement, nats per token")


class Verdict(BaseModel):
    """The verdict on a policy. Differences are the policy's loss minus the baseline's loss at the last measurement."""

    model_config = ConfigDict(extra="forbid")

    worth_it: Literal["yes", "no", "undecided"]
    why: str
    num_pairs: int = Field(description="number of seeds that policy and baseline share")
    lower_on: int = Field(description="number of seeds on which the policy has the lower loss")
    mean_difference: float | None = Field(description="mean difference in nats per token; null without a pair")
    p: float | None = Field(description="p of the paired t test; null below 2 pairs")
    p_holm: float | None = Field(description="p with Holm's correction for the number of policies")
    detectable: float | None = Field(
        description="smallest true difference that so many pairs show with a power of 0.8; null without a spread"
    )
    seeds_needed: int | None = Field(
        description="number of seeds that would show the measured difference with a power of 0.8; null above 1,000"
    )
    sign_test_seeds: int = Field(description="smallest number of seeds with which a sign test could be significant")
    saved_steps: float | None = Field(
        description="steps by which the policy's mean curve reaches the baseline's final loss earlier; null for never"
    )


class Cost(BaseModel):
    """The cost of a policy beside its training, in steps of the training."""

    model_config = ConfigDict(extra="forbid")

    graph_steps: float = Field(0.0, description="trials of the learned graph, in steps of this training")
    evaluation_steps: float = Field(0.0, description="measurements that the policy reads, in steps of this training")

    @property
    def steps(self) -> float:
        return self.graph_steps + self.evaluation_steps


def verdicts(
    runs: Mapping[str, Sequence[ComparedRun]], baseline: str, costs: Mapping[str, Cost] | None = None
) -> dict[str, Verdict]:
    """Return the verdict on each policy except the baseline.

    A policy is worth it if its loss at the end is significantly lower and it saves more steps than it costs. The policy is not worth
    it if its loss is significantly higher, if it gives the same losses as the baseline, or if its cost exceeds the saved steps.

    Args:
        runs: Policy -> trainings, at most one for each seed.
        baseline: Name of the baseline.
        costs: Policy -> cost. Without an entry the cost is 0.
    """
    others = [name for name in runs if name != baseline]
    differences = {name: paired_differences(runs[name], runs[baseline]) for name in others}
    tests = {name: paired_t(values) for name, values in differences.items() if len(values) >= 2}
    corrected = holm({name: test.p for name, test in tests.items()})
    # Holm's first step, which the policy with the smallest p has to pass.
    level = LEVEL / max(len(tests), 1)
    result = {}
    for name, values in differences.items():
        test = tests.get(name)
        has_spread = test is not None and test.standard_deviation > 0
        saved = saved_steps(runs[name], runs[baseline]) if values else None
        mean = float(np.mean(values)) if values else None
        worth_it, why = _decision(values, corrected.get(name), saved, (costs or {}).get(name, Cost()).steps)
        result[name] = Verdict(
            worth_it=worth_it,
            why=why,
            num_pairs=len(values),
            lower_on=sum(value < 0 for value in values),
            mean_difference=mean,
            p=None if test is None else test.p,
            p_holm=corrected.get(name),
            detectable=detectable_difference(test.standard_deviation, len(values), level=level)
            if test is not None and has_spread
            else None,
            seeds_needed=seeds_needed(abs(test.mean), test.standard_deviation, level=level)
            if test is not None and has_spread
            else None,
            sign_test_seeds=sign_test_seeds(level),
            saved_steps=saved,
        )
    return result


def saved_steps(ours: Sequence[ComparedRun], theirs: Sequence[ComparedRun]) -> float | None:
    """Return by how many steps our mean curve reaches the final loss of their mean curve earlier, or None if our curve never does.

    Between two measurements the curve is taken to be straight. Both means are over the seeds that policy and baseline share, at least one seed.

    >>> ours = ComparedRun(seed=0, steps=[0, 10, 20], mean_losses=[4.0, 2.0, 1.0], final_losses={})
    >>> theirs = ComparedRun(seed=0, steps=[0, 10, 20], mean_losses=[4.0, 3.0, 2.0], final_losses={})
    >>> saved_steps([ours], [theirs]), saved_steps([theirs], [ours])
    (10.0, None)
    """
    steps = ours[0].steps
    shared = {run.seed for run in ours} & {run.seed for run in theirs}
    curve = np.mean([run.mean_losses for run in ours if run.seed in shared], axis=0)
    target = float(np.mean([run.mean_losses[-1] for run in theirs if run.seed in shared]))
    reached = np.flatnonzero(curve <= target)
    if not len(reached):
        return None
    place = int(reached[0])
    if place == 0:
        return float(steps[-1] - steps[0])
    share = (curve[place - 1] - target) / (curve[place - 1] - curve[place])
    return float(steps[-1] - (steps[place - 1] + share * (steps[place] - steps[place - 1])))


def paired_differences(ours: Sequence[ComparedRun], theirs: Sequence[ComparedRun]) -> list[float]:
    """Return our loss at the end minus their loss at the end, for each seed that both have."""
    final_of = {run.seed: run.mean_losses[-1] for run in theirs}
    return [run.mean_losses[-1] - final_of[run.seed] for run in ours if run.seed in final_of]


def _decision(
    values: Sequence[float], p: float | None, saved: float | None, cost: float
) -> tuple[Literal["yes", "no", "undecided"], str]:
    if not values:
        return "undecided", "no seed has a run of the policy and a run of the baseline"
    if p is None:
        return (
            "undecided",
            "a single pair of runs cannot tell an effect from the noise of the seed: add runs of other seeds",
        )
    if not any(values):
        return "no", "the losses are the same as the losses of the baseline on every seed"
    mean = float(np.mean(values))
    if p > LEVEL:
        return "undecided", f"{counted(len(values), 'seed')} cannot tell the difference from 0"
    if mean > 0:
        return "no", "the loss is higher than the loss of the baseline"
    if saved is None or saved <= cost:
        return "no", f"the loss is lower, but the policy costs {cost:,.0f} steps and saves {saved or 0:,.0f}"
    return "yes", f"the loss is lower, and the policy saves {saved:,.0f} steps and costs {cost:,.0f}"
