"""Plan the trials that a graph is learned from. The plan is a pure function: names in, trials out.

A trial trains on the same number of samples of each of its skills at every step. Two trials of one seed get exactly the same samples
of their common skills, so the trials differ only by their other skills.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

from skillshard.errors import GraphError, did_you_mean, name_some

Method = Literal["linear", "brute-force", "leave-one-out"]
METHODS: tuple[Method, ...] = get_args(Method)


def parse_method(word: str) -> Method:
    """Return the method that a word names.

    >>> parse_method("leave-one-out")
    'leave-one-out'
    >>> parse_method("linera")
    Traceback (most recent call last):
    skillshard.errors.GraphError: method 'linera' (did you mean 'linear'?): give linear, brute-force, leave-one-out.
    """
    if word not in METHODS:
        raise GraphError(f"method {word!r}{did_you_mean(word, METHODS)}: give {', '.join(METHODS)}.")
    return word


@dataclass(frozen=True)
class Trial:
    """A single training of the proxy.

    Attributes:
        trained_on: Skills of the training, in the order of their names.
        samples_per_skill: Number of samples of each skill at every step.
        seed: Seed for the model and for the draw of samples.
    """

    trained_on: tuple[str, ...]
    samples_per_skill: int
    seed: int

    @property
    def batch_size(self) -> int:
        """Number of samples of a step."""
        return len(self.trained_on) * self.samples_per_skill


def plan_trials(
    method: Method, train_skills: Sequence[str], eval_skills: Sequence[str], *, batch_size: int, seeds: Sequence[int]
) -> list[Trial]:
    """Plan the trials of a method. The first seed comes first, and trials for comparison come before the compared trials.

    - linear (Algorithm 3): each training skill alone.
    - brute-force (Algorithm 2): each evaluation skill alone, and with each other training skill, half and half.
    - leave-one-out (not in the paper): all training skills, and all but a single skill. The other skills have as many samples as before.

    Args:
        method: Method, as above.
        train_skills: Rows of the graph, which are distinct.
        eval_skills: Columns of the graph. With brute-force every column must be a training skill, because its samples are trained on.
        batch_size: Smallest number of samples of a step. The number is rounded up so that all skills have equal parts. A
            leave-one-out trial without a skill has fewer samples.
        seeds: Seeds. Each seed has its own set of trials.

    Raises:
        GraphError: The method cannot learn a graph of these skills.

    Example:
        >>> [trial.trained_on for trial in plan_trials("leave-one-out", ("a", "b", "c"), ("a",), batch_size=64, seeds=[0])]
        [('a', 'b', 'c'), ('b', 'c'), ('a', 'c'), ('a', 'b')]
        >>> [trial.samples_per_skill for trial in plan_trials("brute-force", ("a", "b"), ("a", "b"), batch_size=64, seeds=[0])]
        [64, 64, 32]

    Reference:
        Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, Algorithms 2 and 3. Differs: brute force with chosen evaluation
        skills leaves out the pairs without an evaluation skill.
    """
    _check(method, train_skills, eval_skills, batch_size, seeds)
    sets = _training_sets(method, tuple(train_skills), tuple(eval_skills))
    # Leave-one-out trials divide the batch size by the same number, so that every skill has equally many samples in all trials.
    widest = max(map(len, sets))
    return [
        # -(-a // b) rounds up. Names are sorted, because the key of a trial must not depend on the order of the skills.
        Trial(tuple(sorted(skills)), -(-batch_size // (widest if method == "leave-one-out" else len(skills))), seed)
        for seed in seeds
        for skills in sets
    ]


def plan_warm_starts(train_skills: Sequence[str], *, batch_size: int, seeds: Sequence[int]) -> list[Trial]:
    """Plan the warm start of each seed: a trial on all training skills, equally often. All trials of the seed begin with its model.

    >>> plan_warm_starts(("b", "a"), batch_size=63, seeds=[0])
    [Trial(trained_on=('a', 'b'), samples_per_skill=32, seed=0)]
    """
    skills = tuple(sorted(train_skills))
    return [Trial(skills, -(-batch_size // len(skills)), seed) for seed in seeds]


def _training_sets(
    method: Method, train_skills: tuple[str, ...], eval_skills: tuple[str, ...]
) -> list[tuple[str, ...]]:
    if method == "linear":
        return [(skill,) for skill in train_skills]
    if method == "leave-one-out":
        return [train_skills, *(tuple(skill for skill in train_skills if skill != left) for left in train_skills)]
    # A pair serves both directions: the losses of both skills are measured in the same trial.
    pairs = [pair for pair in combinations(train_skills, 2) if set(pair) & set(eval_skills)]
    return [*((skill,) for skill in eval_skills), *pairs]


def _check(
    method: str, train_skills: Sequence[str], eval_skills: Sequence[str], batch_size: int, seeds: Sequence[int]
) -> None:
    if not train_skills or not eval_skills:
        raise GraphError(
            f"{len(train_skills)} training and {len(eval_skills)} evaluation skills: a graph needs at least one of each."
        )
    if method != "linear" and len(train_skills) < 2:
        raise GraphError(
            f"{method} compares mixtures, and there is one training skill, {train_skills[0]!r}: use linear."
        )
    foreign = [skill for skill in eval_skills if skill not in train_skills]
    if method == "brute-force" and foreign:
        raise GraphError(
            f"brute-force trains on the evaluation skills themselves, and {name_some(foreign)} cannot be trained on: use linear or "
            "leave-one-out for skills out of domain."
        )
    if batch_size < 1 or not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise GraphError(
            f"batch_size={batch_size}, seeds={list(seeds)}: expected at least 1 sample, and one or more distinct seeds from 0."
        )
