"""Aioli: learn from short probe rounds what each skill does to each loss, again and again during the run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import ObservationError, PolicyError
from skillshard.keyed_random import keyed_seed
from skillshard.policies.policy import (
    NextRound,
    Observation,
    Online,
    Policy,
    State,
    check_losses,
    known_round,
    softmax,
)
from skillshard.policies.prior import checked_prior, prior_weights


@dataclass(frozen=True)
class Aioli(Online):
    """See `aioli`."""

    eta: float
    period_rounds: int
    sweeps: int
    warmup_rounds: int
    one_hot: float
    ema: float | None
    normalize: bool
    diagonal: bool
    prior: Mapping[str, float] | None
    measured_skills: tuple[str, ...] | None
    seed: int

    @property
    def name(self) -> str:
        return "aioli"

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "eta": self.eta,
            "period_rounds": self.period_rounds,
            "sweeps": self.sweeps,
            "warmup_rounds": self.warmup_rounds,
            "one_hot": self.one_hot,
            "ema": self.ema,
            "normalize": self.normalize,
            "diagonal": self.diagonal,
            "prior": None if self.prior is None else dict(self.prior),
            "eval_skills": None if self.eval_skills is None else list(self.eval_skills),
            "seed": self.seed,
        }

    @property
    def eval_skills(self) -> tuple[str, ...] | None:
        return self.measured_skills

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        k, m = len(skills), len(self.eval_skills or skills)
        if self.sweeps * k >= self.period_rounds:
            raise PolicyError(
                f"aioli's {self.sweeps} sweeps over {k} skills are {self.sweeps * k} probe rounds, and a period is {self.period_rounds}: "
                f"give period_rounds of more than {self.sweeps * k}."
            )
        if self.diagonal and m != k:
            raise PolicyError(
                "aioli(diagonal=True) needs the training skills as evaluation skills: leave eval_skills out."
            )
        return {
            "skills": list(skills),
            "period": -1,
            "weights": prior_weights(self.name, self.prior, skills).tolist(),
            "base": [0.0] * k,
            "graph": None,
            "graph_before": None,
            "gram": np.zeros((k, k)).tolist(),
            "cross": np.zeros((k, m)).tolist(),
            "last": None,
        }

    def probe(self, upcoming: NextRound, skills: Sequence[str]) -> Float[np.ndarray, " train_skill"] | None:
        period, position = self._turn(upcoming.number)
        if period < 0 or position >= self.sweeps * len(skills):
            return None
        sweep, turn = divmod(position, len(skills))
        chosen = sorted(skills, key=lambda skill: self._place(period, sweep, skill))[turn]
        return self._probe_weights(len(skills))[list(skills).index(chosen)]

    def observe(self, state: State, observation: Observation) -> State:
        skills = state["skills"]
        losses = list(check_losses(observation.losses, self.eval_skills or skills, step=observation.step).values())
        drawn = [int(observation.drawn.get(skill, 0 if not observation.draw else -1)) for skill in skills]
        if min(drawn) < 0 or (observation.round < 0 < observation.draw):
            raise ObservationError(
                f"the observation at step {observation.step} does not say in which round it was made and how many draws each skill "
                "had, which aioli needs: Observation(drawn={skill: draws}, round=number)."
            )
        period, position = self._turn(observation.round)
        if period >= 0 and period != state["period"]:
            state = self._begun(state, period)
        num_probes = self.sweeps * len(skills)
        last = state["last"]
        state = {**state, "last": {"drawn": drawn, "losses": losses}}
        if period < 0 or position >= num_probes or last is None:
            return state
        state = _learned(state, np.array(drawn) - np.array(last["drawn"]), np.array(last["losses"]) - np.array(losses))
        return self._updated(state) if position == num_probes - 1 else state

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        probe = self.probe(known_round("aioli", upcoming), state["skills"])
        return np.array(state["weights"]) if probe is None else probe

    def _turn(self, number: int) -> tuple[int, int]:
        """The period of a round, below 0 before the first one, and the round's place in it."""
        return divmod(number - self.warmup_rounds, self.period_rounds)

    def _begun(self, state: State, period: int) -> State:
        """A new period: what the last one has learned is the base of what this one will."""
        k, m = len(state["skills"]), len(state["cross"][0])
        base = np.log(state["weights"]).tolist() if state["graph"] is not None else state["base"]
        blank = {"gram": np.zeros((k, k)).tolist(), "cross": np.zeros((k, m)).tolist()}
        return {**state, **blank, "period": period, "base": base, "graph_before": state["graph"]}

    def _updated(self, state: State) -> State:
        """With the weights that the probes of this period give; as before if they do not tell the skills apart."""
        gram, k = np.array(state["gram"]), len(state["skills"])
        if np.linalg.matrix_rank(gram) < k:
            return state
        graph = np.linalg.solve(gram, np.array(state["cross"]))
        if self.diagonal:
            graph = np.diag(np.diag(self._probe_weights(k) @ graph) / self.one_hot)
        if self.normalize:
            graph = graph - min(graph.min(), 0)
            graph = graph / graph.sum() if graph.sum() > 0 else graph
        base = np.array(state["base"])
        if self.ema is not None:
            base = np.zeros(k)
            if state["graph_before"] is not None:
                graph = (1 - self.ema) * graph + self.ema * np.array(state["graph_before"])
        weights = softmax(base + self.eta * graph.sum(axis=1))
        return {**state, "graph": graph.tolist(), "weights": np.maximum(weights, np.finfo(np.float64).tiny).tolist()}

    def _probe_weights(self, k: int) -> Float[np.ndarray, "probe train_skill"]:
        """Row i: the weights of a probe of skill i."""
        if k == 1:
            return np.ones((1, 1))
        other = (1 - self.one_hot) / (k - 1)
        return np.full((k, k), other) + (self.one_hot - other) * np.eye(k)

    def _place(self, period: int, sweep: int, skill: str) -> int:
        return keyed_seed("probe", self.seed, period, sweep, skill)


def _learned(
    state: State, draws: Float[np.ndarray, " train_skill"] | Any, fall: Float[np.ndarray, " eval_skill"]
) -> State:
    """With one more equation: the shares drawn since the last observation, and how much the losses fell."""
    if draws.sum() <= 0:
        return state
    shares = draws / draws.sum()
    gram, cross = np.array(state["gram"]), np.array(state["cross"])
    return {
        **state,
        "gram": (gram + np.outer(shares, shares)).tolist(),
        "cross": (cross + np.outer(shares, fall)).tolist(),
    }


def aioli(
    *,
    eta: float,
    period_rounds: int,
    sweeps: int = 4,
    warmup_rounds: int = 0,
    one_hot: float = 0.75,
    ema: float | None = None,
    normalize: bool = True,
    diagonal: bool = False,
    prior: Mapping[str, float] | None = None,
    eval_skills: Sequence[str] | None = None,
    seed: int = 0,
) -> Policy:
    r"""Estimate the effect of each skill on each loss from probe rounds, and step towards those that help most.

    .. math:: \text{fall of } L_j = \sum_i p_i A_{ij} \text{ per round}, \quad
        A \leftarrow \frac{A - \min(A, 0)}{\sum A}, \quad p_i \leftarrow p_i e^{\eta \sum_j A_{ij}}

    After `warmup_rounds`, every period of `period_rounds` rounds begins with `sweeps` x k probe rounds, each of which gives one
    skill the weight `one_hot` and the others the rest alike, in an order shuffled by the seed; the rounds after them have the
    weights learned. A is the least-squares solution over the intervals between observations, with the shares that were really drawn; for one
    observation at the end of every round that is the paper's own estimate. If an observation is late (the mixer's lag), the
    old weights hold until it is there; if the probes do not tell the skills apart, for the period.

    Negative effects are kept; `normalize` shifts all entries so that the least is 0. A lone node (a skill that helps nothing)
    gets the least step. NaN, missing and unknown skills are refused. Report once before the first probe (without a warm-up at
    step 0), or it is lost. Needs `Observation.drawn` and `.round`, and `NextRound`.

    Args:
        eta: step size, >= 0, without unit if A is normalised, else in 1 / nats: 0.1 and 0.2 in the authors' scripts, 1 on all of
            SlimPajama.
        period_rounds: rounds from one estimate to the next, more than the probes. The
            authors: 200 to 250 steps, probes of 4 to 10.
        sweeps: probes of each skill in a period: 4 (the authors' default; 6 in their README).
        warmup_rounds: rounds before the first period, with the weights of `prior`, >= 0. A new model's losses fall from log(vocabulary)
            whatever it is trained on, so that its first probes tell which of them came first.
        one_hot: weight of the probed skill, above 1 / k to 1: 0.5 to 0.75 in the authors' scripts.
        ema: None, or e in [0, 1): A is averaged, (1 - e) A + e A_before, and the weights are those of one step from equal ones, as
            in the authors' code; then no two weights ever differ by more than a factor of exp(eta).
        normalize: whether A is shifted and scaled to sum to 1.
        diagonal: use each skill's effect on itself alone (the paper's ablation).
        prior: weights before the first estimate; equal ones if none are given. The first estimate steps from equal ones.
        eval_skills: the skills of the losses; None: the training skills.
        seed: of the order of the probes.

    Returns:
        A policy that probes; its state is two k x k matrices, the graph learned, and the last observation.

    Raises:
        PolicyError: an argument is out of range; later, the probes fill the period.
        ObservationError: an observation does not say its round and draws.

    Example:
        >>> policy = aioli(eta=0.2, period_rounds=10, sweeps=1)
        >>> state = policy.init(("add", "carry"))
        >>> first = NextRound(0, 0, 16, (100, 100), (0, 0))
        >>> policy.weights(state, first).tolist() in ([0.75, 0.25], [0.25, 0.75])
        True

    Reference:
        Chen, Hu et al., "Aioli", ICLR 2025, arXiv:2411.05735, Algorithms 1 and 2. A is the transpose of the paper's, as everywhere
        here: rows are trained on. Differs from the authors' code: the probes' draws are counted, so that a period has the length
        asked for (they subtract steps from samples); the loss of a stray observation is used, not mixed up.
    """
    if not (math.isfinite(eta) and eta >= 0):
        raise PolicyError(f"eta is {eta}: give a finite number >= 0 (the paper uses 0.1 to 1).")
    if sweeps < 1:
        raise PolicyError(f"sweeps is {sweeps}: give the number of probes of each skill in a period, at least 1.")
    if warmup_rounds < 0:
        raise PolicyError(
            f"warmup_rounds is {warmup_rounds}: give the number of rounds before the first probe, 0 or more."
        )
    if not 0 < one_hot <= 1:
        raise PolicyError(f"one_hot is {one_hot}: give the weight of the probed skill, from above 1 / k to 1.")
    if ema is not None and not 0 <= ema < 1:
        raise PolicyError(f"ema is {ema}: give None, or a number from 0 to below 1.")
    evals = None if eval_skills is None else tuple(eval_skills)
    start = checked_prior("aioli", prior)
    return Aioli(eta, period_rounds, sweeps, warmup_rounds, one_hot, ema, normalize, diagonal, start, evals, seed)
