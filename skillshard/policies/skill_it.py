"""SKILL-IT: weights from the latest losses and the skills graph."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError, name_some
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies.policy import Observation, Policy, State, check_losses, softmax

Reduce = Literal["sum", "mean"]


@dataclass(frozen=True)
class SkillIt:
    """See `skill_it`."""

    graph: SkillGraph
    eta: float
    window: int
    reduce: Reduce

    @property
    def name(self) -> str:
        return "skill_it"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"graph": self.graph.digest, "eta": self.eta, "window": self.window, "reduce": self.reduce}

    @property
    def eval_skills(self) -> tuple[str, ...]:
        return self.graph.eval_skills

    @property
    def reads_losses(self) -> bool:
        return True

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        if sorted(skills) != sorted(self.graph.train_skills):
            unknown = [name for name in self.graph.train_skills if name not in skills]
            missing = [name for name in skills if name not in self.graph.train_skills]
            raise PolicyError(
                "the graph's rows are not the skills of the mix: "
                f"rows without a skill: {name_some(unknown) or 'none'}; skills without a row: {name_some(missing) or 'none'}."
            )
        return {"skills": list(skills), "window": []}

    def observe(self, state: State, observation: Observation) -> State:
        losses = check_losses(observation.losses, self.eval_skills, step=observation.step)
        return {**state, "window": [*state["window"], list(losses.values())][-self.window :]}

    def weights(self, state: State) -> Float[np.ndarray, " train_skill"]:
        rows = [self.graph.train_skills.index(skill) for skill in state["skills"]]
        return softmax(self.eta * self.graph.edges[rows] @ self._reduced(state["window"]))

    def _reduced(self, window: list[list[float]]) -> Float[np.ndarray, " eval_skill"]:
        if not window:
            return np.ones(len(self.eval_skills))
        losses = np.array(window)
        return losses.sum(axis=0) if self.reduce == "sum" else losses.mean(axis=0)


def skill_it(graph: SkillGraph, *, eta: float, window: int = 3, reduce: Reduce = "sum") -> Policy:
    r"""Shift weight to the skills that help what is not learned yet.

    .. math:: p_i \propto \exp\Big(\eta \sum_j A_{ij} \operatorname{reduce}_{\tau > t-w} L_j(\tau)\Big)

    Before the first observation every loss counts as 1: the softmax over A.

    Args:
        graph: A, rows `train_skill`, columns `eval_skill`; negative edges are kept.
        eta: step size in 1 / nats, finite and >= 0. 0 gives equal weights. The paper: 0.5 on LEGO, 0.2 on Natural Instructions.
        window: number of latest observations used, at least 1; 3 in the paper.
        reduce: "sum" as in the authors' pre-training runs, "mean" as in their runs with a target skill. With "sum" the
            same eta acts `window` times as strongly.

    Returns:
        A policy; its weights are `(train_skill,)`, positive, sum 1; its state is the window, oldest first.

    Raises:
        PolicyError: eta, window or reduce are out of range; later, the graph's rows are not the skills of the mix.

    Example:
        >>> graph = SkillGraph(("add", "carry"), ("carry",), [[1.0], [0.0]])
        >>> policy = skill_it(graph, eta=1.0)
        >>> state = policy.observe(policy.init(("add", "carry")), Observation(step=100, losses={"carry": math.log(3)}))
        >>> policy.weights(state).round(6).tolist()
        [0.75, 0.25]

    Reference:
        Chen et al., "Skill-it!", NeurIPS 2023, Algorithm 1, arXiv:2307.14430. Differs from Algorithm 1 as printed: the
        window counts observations, not rounds, as in the code that made the paper's figures; the maximum is subtracted
        before exp, so that no eta overflows.
    """
    if not (math.isfinite(eta) and eta >= 0):
        raise PolicyError(f"eta is {eta}: give a finite number >= 0 (the paper uses 0.1 to 0.8).")
    if window < 1:
        raise PolicyError(f"window is {window}: give the number of latest observations to use, at least 1.")
    if reduce not in ("sum", "mean"):
        raise PolicyError(f"reduce is {reduce!r}: give 'sum' or 'mean'.")
    return SkillIt(graph, eta, window, reduce)
