"""SKILL-IT with a graph that is estimated again and again during the run, from probe rounds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError
from skillshard.graph.edges import scaled_edges
from skillshard.graph.skill_graph import SkillGraph
from skillshard.graph.statistics import is_same
from skillshard.loss import LossKind
from skillshard.policies.aioli import Aioli, aioli
from skillshard.policies.policy import NextRound, Observation, Online, Policy, State, known_round
from skillshard.policies.skill_it import Reduce, SkillIt, check_rows, skill_it


@dataclass(frozen=True)
class GraphRefresh(Online):
    """See `graph_refresh`."""

    weighing: SkillIt
    probing: Aioli
    off_diagonal: float

    @property
    def name(self) -> str:
        return "graph_refresh"

    @property
    def arguments(self) -> dict[str, Any]:
        asked = ("period_rounds", "sweeps", "warmup_rounds", "one_hot", "ema", "seed")
        probing = {name: self.probing.arguments[name] for name in asked}
        return {**self.weighing.arguments, **probing, "off_diagonal": self.off_diagonal}

    @property
    def eval_skills(self) -> tuple[str, ...]:
        return self.weighing.eval_skills

    @property
    def loss(self) -> LossKind | None:
        return self.weighing.loss

    @property
    def initial_losses(self) -> bool:
        return True

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        check_rows(self.weighing.graph, skills)
        return {"probing": self.probing.init(skills, num_samples), "weighing": self.weighing.init(skills, num_samples)}

    def probe(self, upcoming: NextRound, skills: Sequence[str]) -> Float[np.ndarray, " train_skill"] | None:
        return self.probing.probe(upcoming, skills)

    def observe(self, state: State, observation: Observation) -> State:
        return {
            "probing": self.probing.observe(state["probing"], observation),
            "weighing": self.weighing.observe(state["weighing"], observation),
        }

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        probe = self.probe(known_round(self.name, upcoming), state["probing"]["skills"])
        return self._with_graph(state).weights(state["weighing"]) if probe is None else probe

    def _with_graph(self, state: State) -> SkillIt:
        """SKILL-IT with the latest estimate, scaled as a learned graph is."""
        found, skills, estimate = self.weighing, state["probing"]["skills"], state["probing"]["graph"]
        if estimate is None:
            return found
        same = is_same(skills, found.eval_skills)
        edges, _ = scaled_edges(np.maximum(estimate, 0), same, self.off_diagonal)
        return replace(found, graph=SkillGraph(skills, found.eval_skills, edges))


def graph_refresh(
    graph: SkillGraph,
    *,
    eta: float,
    period_rounds: int,
    window: int = 3,
    reduce: Reduce = "sum",
    off_diagonal: float = 0.5,
    sweeps: int = 4,
    warmup_rounds: int = 0,
    one_hot: float = 0.75,
    ema: float | None = None,
    seed: int = 0,
    prior: Mapping[str, float] | None = None,
    any_loss: bool = False,
) -> Policy:
    r"""SKILL-IT's weights, by a graph that probe rounds estimate anew in every period.

    .. math:: \text{fall of } L_j = \sum_i p_i A_{ij} \text{ per probe round}, \quad
        A'_{ij} = c \max(A_{ij}, 0), \quad A'_{ii} = 1, \quad
        p_i \propto q_i \exp\Big(\eta \sum_j A'_{ij} \operatorname{reduce}_{\tau > t-w} L_j(\tau)\Big)

    A graph learned once overstates transfer later in a run. After `warmup_rounds`, every period of `period_rounds` rounds begins
    with `sweeps` x k probe rounds (those of `aioli`); the rounds after them have SKILL-IT's weights by the graph that the probes
    gave. It is scaled as a learned graph is, c making the largest edge between two skills `off_diagonal`, so that eta keeps its meaning while effects
    shrink from period to period. Until the first estimate `graph` itself is used, as it is.

    Negative effects count as 0: near the end of a run most are noise, and scaled up they would decide (measured: weights of .99).
    NaN, missing and unknown skills are refused; a lone node has its own edge of 1, if it is measured. Report once
    before the first probe (without a warm-up at step 0), and at the end of every probe round, or probes are lost. Needs
    `Observation.drawn` and `.round`, and `NextRound`.

    Args:
        graph: to begin with, rows the training skills; `SkillGraph.identity(skills)` where nothing is known.
        eta: Step size in 1 / nats, as in `skill_it`.
        window: Number of the latest observations used, as in `skill_it`. Observations after probe rounds count too.
        reduce: "sum" or "mean" over the window, as in `skill_it`.
        prior: q, training skill -> weight > 0, as in `skill_it`. None: equal weights.
        any_loss: Whether a graph of another kind of losses than the run's is accepted, as in `skill_it`.
        off_diagonal: the largest edge between two skills, above 0; 0.5 in the authors' graphs.
        period_rounds: Rounds of a period, as in `aioli`. The share of probe rounds is sweeps x k / period_rounds.
        sweeps: Probes of each skill in a period, as in `aioli`.
        warmup_rounds: Rounds before the first period, as in `aioli`.
        one_hot: Weight of the probed skill, as in `aioli`.
        seed: Seed of the order of the probes, as in `aioli`.
        ema: None, or e in [0, 1): the estimate is (1 - e) A + e A_before.

    Returns:
        A policy that probes; its state is that of `aioli` and of `skill_it`.

    Raises:
        PolicyError: an argument is out of range; later, the graph's rows are not the skills, or the probes fill the period.
        ObservationError: an observation does not say its round and draws.

    Example:
        >>> policy = graph_refresh(SkillGraph.identity(("add", "carry")), eta=0.5, period_rounds=10, sweeps=1)
        >>> state = policy.init(("add", "carry"))
        >>> policy.weights(state, NextRound(5, 80, 16, (100, 100), (40, 40))).tolist()
        [0.5, 0.5]

    Reference:
        Ours, of two parts: Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, Algorithm 1, and the probes of Chen, Hu et
        al., "Aioli", ICLR 2025, arXiv:2411.05735, Algorithm 2. Differs from Aioli in what the estimate is used for.
    """
    if not (math.isfinite(off_diagonal) and off_diagonal > 0):
        raise PolicyError(f"off_diagonal is {off_diagonal}: give a finite number above 0 (0.5 in the authors' graphs).")
    weighing = skill_it(graph, eta=eta, window=window, reduce=reduce, prior=prior, any_loss=any_loss)
    probing = aioli(
        eta=0.0,
        period_rounds=period_rounds,
        sweeps=sweeps,
        warmup_rounds=warmup_rounds,
        one_hot=one_hot,
        ema=ema,
        normalize=False,
        eval_skills=graph.eval_skills,
        seed=seed,
    )
    assert isinstance(weighing, SkillIt) and isinstance(probing, Aioli)
    return GraphRefresh(weighing, probing, off_diagonal)
