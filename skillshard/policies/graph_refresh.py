"""SKILL-IT with a graph that probe rounds estimate repeatedly during the run."""

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
from skillshard.number_checks import is_finite
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
        # Only the arguments of `graph_refresh`. The others are fixed below, or stand in the arguments of SKILL-IT.
        own = ("period_rounds", "sweeps", "warmup_rounds", "one_hot", "ema", "seed")
        probing = {name: self.probing.arguments[name] for name in own}
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
        """Return SKILL-IT with the latest estimate, scaled like a learned graph."""
        weighing, skills, estimate = self.weighing, state["probing"]["skills"], state["probing"]["graph"]
        if estimate is None:
            return weighing
        same = is_same(skills, weighing.eval_skills)
        edges, _ = scaled_edges(np.maximum(estimate, 0), same, self.off_diagonal)
        return replace(weighing, graph=SkillGraph(skills, weighing.eval_skills, edges))


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
    r"""Compute SKILL-IT's weights by a graph that probe rounds estimate anew in every period.

    .. math:: \text{fall of } L_j = \sum_i p_i A_{ij} \text{ per probe round}, \quad
        A'_{ij} = c \max(A_{ij}, 0), \quad A'_{ii} = 1, \quad
        p_i \propto q_i \exp\Big(\eta \sum_j A'_{ij} \operatorname{reduce}_{\tau > t-w} L_j(\tau)\Big)

    A graph that was learned once overstates the transfer later in a run. After `warmup_rounds`, every period of `period_rounds` rounds
    begins with `sweeps` x k probe rounds, as in `aioli`. The other rounds of the period have SKILL-IT's weights by the estimated graph.
    The estimate is scaled like a learned graph: c sets the largest edge between two skills to `off_diagonal`, so that eta keeps its
    meaning while effects shrink from period to period. Before the first estimate, `graph` is used unchanged.

    Negative effects count as 0. Near the end of a run most negative effects are noise, and scaled noise would decide the weights
    (measured: weights of .99). NaN, missing and unknown skills are refused. A lone node keeps its own edge of 1 if it is an evaluation
    skill. Report once before the first probe (without a warm-up at step 0) and at the end of every probe round, otherwise probes are
    lost. The policy requires `Observation.drawn`, `Observation.round` and `NextRound`.

    Args:
        graph: First graph, whose rows are the training skills. Use `SkillGraph.identity(skills)` if no graph is known.
        eta: Step size in 1 / nats, as in `skill_it`.
        window: Number of the latest observations used, as in `skill_it`. Observations after probe rounds count too.
        reduce: "sum" or "mean" over the window, as in `skill_it`.
        prior: q, training skill -> weight > 0, as in `skill_it`. None: equal weights.
        any_loss: Whether a graph of another kind of losses than the run's is accepted, as in `skill_it`.
        off_diagonal: Largest edge between two skills, above 0. The authors' graphs use 0.5.
        period_rounds: Rounds of a period, as in `aioli`. The share of probe rounds is sweeps x k / period_rounds.
        sweeps: Probes of each skill in a period, as in `aioli`.
        warmup_rounds: Rounds before the first period, as in `aioli`.
        one_hot: Weight of the probed skill, as in `aioli`.
        seed: Seed of the order of the probes, as in `aioli`.
        ema: Share e in [0, 1) of the old estimate, or None. The estimate is (1 - e) A + e A_before.

    Returns:
        A policy that probes. The state holds the states of `aioli` and of `skill_it`.

    Raises:
        PolicyError: An argument is out of range. Later, the graph's rows are not the skills of the mix, or the probes fill the period.
        ObservationError: An observation does not say its round and its draws.

    Example:
        >>> policy = graph_refresh(SkillGraph.identity(("add", "carry")), eta=0.5, period_rounds=10, sweeps=1)
        >>> state = policy.init(("add", "carry"))
        >>> policy.weights(state, NextRound(5, 80, 16, (100, 100), (40, 40))).tolist()
        [0.5, 0.5]

    Reference:
        A method of skillshard from two parts: Chen et al., "Skill-it!", NeurIPS 2023, arXiv:2307.14430, Algorithm 1, and the probes of
        Chen, Hu et al., "Aioli", ICLR 2025, arXiv:2411.05735, Algorithm 2. In contrast to Aioli, the estimate is a graph for SKILL-IT.
    """
    if not (is_finite(off_diagonal) and off_diagonal > 0):
        raise PolicyError(
            f"off_diagonal is {off_diagonal!r}: give a finite number above 0 (0.5 in the authors' graphs)."
        )
    weighing = skill_it(graph, eta=eta, window=window, reduce=reduce, prior=prior, any_loss=any_loss)
    # Of aioli only the probes and the estimate are used, so its step size has no effect. The estimate stays in nats, because
    # SKILL-IT's scaling replaces the normalization.
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
