"""Aioli: estimate the effect of each skill on each loss from short probe rounds, repeatedly during the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import ObservationError, PolicyError
from skillshard.keyed_random import keyed_seed
from skillshard.number_checks import is_finite, is_whole
from skillshard.policies.policy import (
    NextRound,
    Observation,
    Online,
    Policy,
    State,
    check_flag,
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
        # Probes with equal weights do not tell the skills apart, so the weights would never change.
        if k > 1 and self.one_hot <= 1 / k:
            raise PolicyError(
                f"aioli's one_hot is {self.one_hot:g}, and equal weights of {k} skills are {1 / k:.4g}: give the probed skill a larger weight."
            )
        if self.diagonal and m != k:
            raise PolicyError("aioli(diagonal=True) needs the training skills as evaluation skills: omit eval_skills.")
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
        # The order of a sweep is keyed by the names of the skills, so that the probes do not depend on the order of the skills.
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
        # The first observation has no observation before it, so there is no fall of the losses to learn from.
        if period < 0 or position >= num_probes or last is None:
            return state
        state = _learned(state, np.array(drawn) - np.array(last["drawn"]), np.array(last["losses"]) - np.array(losses))
        return self._updated(state) if position == num_probes - 1 else state

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        probe = self.probe(known_round("aioli", upcoming), state["skills"])
        return np.array(state["weights"]) if probe is None else probe

    def _turn(self, number: int) -> tuple[int, int]:
        """Return the period of a round and the position of the round in the period. The period is below 0 during the warm-up."""
        return divmod(number - self.warmup_rounds, self.period_rounds)

    def _begun(self, state: State, period: int) -> State:
        """Begin a period. The weights of the last period are the base for the step of the new period."""
        k, m = len(state["skills"]), len(state["cross"][0])
        base = np.log(state["weights"]).tolist() if state["graph"] is not None else state["base"]
        blank = {"gram": np.zeros((k, k)).tolist(), "cross": np.zeros((k, m)).tolist()}
        return {**state, **blank, "period": period, "base": base, "graph_before": state["graph"]}

    def _updated(self, state: State) -> State:
        """Return the state with the weights from the probes of this period. The weights stay if the probes do not separate the skills."""
        gram, k = np.array(state["gram"]), len(state["skills"])
        if np.linalg.matrix_rank(gram) < k:
            return state
        graph = np.linalg.solve(gram, np.array(state["cross"]))
        # The ablation of the paper: only the fall of a skill's own loss in its own probe, per unit of its weight.
        if self.diagonal:
            graph = np.diag(np.diag(self._probe_weights(k) @ graph) / self.one_hot)
        if self.normalize:
            graph = graph - min(graph.min(), 0)
            graph = graph / graph.sum() if graph.sum() > 0 else graph
        # Without ema the step starts from the weights of the last period. With ema the average replaces the memory of the
        # weights, so the step starts from equal weights.
        base = np.array(state["base"])
        if self.ema is not None:
            base = np.zeros(k)
            if state["graph_before"] is not None:
                graph = (1 - self.ema) * graph + self.ema * np.array(state["graph_before"])
        weights = softmax(base + self.eta * graph.sum(axis=1))
        # The next period takes the logarithm of the weights, so a weight that underflows to 0 becomes the smallest normal number.
        return {**state, "graph": graph.tolist(), "weights": np.maximum(weights, np.finfo(np.float64).tiny).tolist()}

    def _probe_weights(self, k: int) -> Float[np.ndarray, "probe train_skill"]:
        """Return a matrix whose row i holds the weights of a probe of skill i."""
        if k == 1:
            return np.ones((1, 1))
        other = (1 - self.one_hot) / (k - 1)
        return np.full((k, k), other) + (self.one_hot - other) * np.eye(k)

    def _place(self, period: int, sweep: int, skill: str) -> int:
        return keyed_seed("probe", self.seed, period, sweep, skill)


def _learned(
    state: State, draws: Float[np.ndarray, " train_skill"] | Any, fall: Float[np.ndarray, " eval_skill"]
) -> State:
    """Return the state with another equation: the shares drawn since the last observation, and the fall of the losses."""
    if draws.sum() <= 0:
        return state
    # The normal equations of least squares. Their size does not grow with the number of observations, so the state stays small.
    shares = draws / draws.sum()
    gram, cross = np.array(state["gram"]), np.array(state["cross"])
    return {
        **state,
        "gram": (gram + np.outer(shares, shares)).tolist(),
        "cross": (cross + np.outer(shares, fall)).tolist(),
    }


def _checked_names(eval_skills: Any) -> tuple[str, ...]:
    # A text would be taken for a list of its characters.
    is_list = isinstance(eval_skills, Sequence) and not isinstance(eval_skills, str)
    if not is_list or not eval_skills or not all(isinstance(name, str) for name in eval_skills):
        raise PolicyError(
            f"eval_skills is {eval_skills!r}: give a list of names of skills, or None for the training skills."
        )
    return tuple(eval_skills)


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
    r"""Estimate the effect of each skill on each loss from probe rounds, and shift weight to the skills that help most.

    .. math:: \text{fall of } L_j = \sum_i p_i A_{ij} \text{ per round}, \quad
        A \leftarrow \frac{A - \min(A, 0)}{\sum A}, \quad p_i \leftarrow p_i e^{\eta \sum_j A_{ij}}

    After `warmup_rounds`, every period of `period_rounds` rounds begins with `sweeps` x k probe rounds. A probe round gives the weight
    `one_hot` to a single skill and equal shares of the rest to the other skills, in an order shuffled by the seed. The other rounds of
    the period have the learned weights. A is the least-squares solution over the intervals between observations, with the shares really
    drawn. With an observation at the end of every round, A is the estimate of the paper. If an observation is late (the mixer's lag),
    the old weights hold until the observation arrives. If the probes do not separate the skills, the old weights hold for the period.

    Negative effects are kept, and `normalize` shifts all entries so that the smallest entry is 0. A lone node (a skill that helps no
    skill) gets the smallest step. NaN, missing and unknown skills are refused. Report once before the first probe (without a warm-up at
    step 0), otherwise the first probe is lost. The policy requires `Observation.drawn`, `Observation.round` and `NextRound`.

    Args:
        eta: Step size, >= 0, without unit if A is normalized, else in 1 / nats. The authors' scripts use 0.1 and 0.2, and 1 on all of
            SlimPajama.
        period_rounds: Number of rounds of a period, larger than the number of probe rounds. The authors use periods of 200 to 250 steps
            and probes of 4 to 10 steps.
        sweeps: Number of probes of each skill in a period. 4 is the authors' default, and their README uses 6.
        warmup_rounds: Number of rounds before the first period, >= 0, with the weights of `prior`. The losses of a new model fall from
            log(vocabulary) for any training data, so without a warm-up the estimate depends on the order of the probes.
        one_hot: Weight of the probed skill, above 1 / k and at most 1. The authors' scripts use 0.5 to 0.75.
        ema: Share e in [0, 1) of the old estimate, or None. With e, A is averaged as (1 - e) A + e A_before, and the weights are a single
            step from equal weights, as in the authors' code. Then two weights never differ by more than a factor of exp(eta).
        normalize: Whether A is shifted and scaled to the sum 1.
        diagonal: Whether only the effect of each skill on itself is used (the paper's ablation).
        prior: Weights before the first estimate. None: equal weights. The first estimate always steps from equal weights.
        eval_skills: Skills of the losses. None: the training skills.
        seed: Seed of the order of the probes.

    Returns:
        A policy that probes. The state holds two matrices (k x k and k x number of losses), the learned graph and the last observation.

    Raises:
        PolicyError: An argument is out of range. Later, the probes fill the period.
        ObservationError: An observation does not say its round and its draws.

    Example:
        >>> policy = aioli(eta=0.2, period_rounds=10, sweeps=1)
        >>> state = policy.init(("add", "carry"))
        >>> first = NextRound(0, 0, 16, (100, 100), (0, 0))
        >>> policy.weights(state, first).tolist() in ([0.75, 0.25], [0.25, 0.75])
        True

    Reference:
        Chen, Hu et al., "Aioli", ICLR 2025, arXiv:2411.05735, Algorithms 1 and 2. A is the transpose of the paper's matrix, because
        skillshard's rows are training skills. This policy differs from the authors' code in two points. The draws of the probes count,
        so that a period has the requested length (the code subtracts steps from samples). An extra observation is one more interval
        of the estimate, and is not taken for the observation of another probe.
    """
    if not (is_finite(eta) and eta >= 0):
        raise PolicyError(f"eta is {eta!r}: give a finite number >= 0 (the paper uses 0.1 to 1).")
    if not is_whole(period_rounds, 1):
        raise PolicyError(f"period_rounds is {period_rounds!r}: give the number of rounds of a period, a whole number.")
    if not is_whole(sweeps, 1):
        raise PolicyError(f"sweeps is {sweeps!r}: give the number of probes of each skill in a period, at least 1.")
    if not is_whole(warmup_rounds, 0):
        raise PolicyError(
            f"warmup_rounds is {warmup_rounds!r}: give the number of rounds before the first probe, 0 or more."
        )
    if not (is_finite(one_hot) and 0 < one_hot <= 1):
        raise PolicyError(f"one_hot is {one_hot!r}: give the weight of the probed skill, from above 1 / k to 1.")
    if ema is not None and not (is_finite(ema) and 0 <= ema < 1):
        raise PolicyError(f"ema is {ema!r}: give None, or a number from 0 to below 1.")
    if not is_whole(seed, -(2**63), 2**63 - 1):
        raise PolicyError(f"seed is {seed!r}: give a whole number of 64 bits.")
    check_flag("normalize", normalize)
    check_flag("diagonal", diagonal)
    evals = None if eval_skills is None else _checked_names(eval_skills)
    start = checked_prior("aioli", prior)
    return Aioli(eta, period_rounds, sweeps, warmup_rounds, one_hot, ema, normalize, diagonal, start, evals, seed)
