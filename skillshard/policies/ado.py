"""ADO, adaptive data optimization: a scaling law for each skill, and more weight for the skills whose laws predict the fastest fall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from skillshard.errors import ObservationError, PolicyError
from skillshard.extras import needed
from skillshard.number_checks import is_finite, is_whole
from skillshard.policies.policy import NextRound, Observation, Online, Policy, State, check_losses, sizes, softmax
from skillshard.policies.prior import checked_prior, prior_weights
from skillshard.policies.scaling_law import MOST_LOG_LOSS, fit_scaling_law

POINTS = 128
"""Maximal number of points of a learning curve in the state. Beyond this number, every other point is dropped."""
LEAST_ALPHA = 0.05
"""Lower bound of the exponents in the preference, as in the authors' code."""
LEAST_SHARE = 0.01
"""Lower bound of a skill's share in the preference, before the preference is normalized again, as in the authors' code."""


@dataclass(frozen=True)
class Ado(Online):
    """See `ado`."""

    warmup_steps: int
    refit_steps: int
    least_log_loss: float
    prior: Mapping[str, float] | None
    name: str = "ado"

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "warmup_steps": self.warmup_steps,
            "refit_steps": self.refit_steps,
            "least_log_loss": self.least_log_loss,
        } | ({} if self.prior is None else {"prior": dict(self.prior)})

    @property
    def may_miss_losses(self) -> bool:
        return True

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        if self.prior is None:
            counts = sizes(self.name, num_samples)
            prior = (counts / counts.sum()).tolist()
        else:
            prior = prior_weights(self.name, self.prior, skills).tolist()
        return {
            "skills": list(skills),
            "prior": prior,
            "turn": 0,
            "drawn": [0] * len(skills),
            "recent": prior,
            "average": prior,
            "weights": prior,
            "curve": {"draws": [], "losses": []},
            "laws": None,
            "fitted_step": None,
        }

    def observe(self, state: State, observation: Observation) -> State:
        drawn = [int(observation.drawn.get(skill, -1)) for skill in state["skills"]]
        if min(drawn) < 0:
            raise ObservationError(
                f"the observation at step {observation.step} does not say how many draws each skill had, which ado needs: "
                "Observation(drawn={skill: draws}) for every training skill."
            )
        new = np.array(drawn) - np.array(state["drawn"])
        recent = np.array(state["recent"])
        # A second observation at the same draw adds no samples, and a share of 0 / 0 would be NaN.
        if new.sum() > 0:
            recent = 0.9 * recent + 0.1 * new / new.sum()
        state = {**state, "turn": state["turn"] + 1, "drawn": drawn, "recent": recent.tolist()}
        state = self._refitted(self._remembered(state, observation), observation.step)
        if state["laws"] is None or observation.step < self.warmup_steps or not observation.draw:
            return state
        return self._moved(state, float(observation.draw))

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        return np.array(state["weights"])

    def _remembered(self, state: State, observation: Observation) -> State:
        """Return the state with another point on the curves. A skill without a loss repeats its last loss, or gets the mean loss."""
        observed = check_losses(observation.losses, state["skills"], step=observation.step, may_miss=True)
        # Draw 0 has no place on the curves, because the laws are powers of the number of draws.
        if observation.step < self.warmup_steps or not observation.draw or not observed:
            return state
        draws, losses = state["curve"]["draws"], state["curve"]["losses"]
        mean = sum(observed.values()) / len(observed)
        row = [
            observed.get(skill, losses[-1][index] if losses else mean) for index, skill in enumerate(state["skills"])
        ]
        draws, losses = [*draws, observation.draw], [*losses, row]
        if len(draws) > POINTS:
            draws, losses = draws[::2], losses[::2]
        return {**state, "curve": {"draws": draws, "losses": losses}}

    def _refitted(self, state: State, step: int) -> State:
        fitted, draws = state["fitted_step"], state["curve"]["draws"]
        # A law has three parameters, so four points are the first points that a law does not fit exactly.
        if len(draws) < 4 or (fitted is not None and step - fitted < self.refit_steps):
            return state
        import scipy.optimize  # noqa: F401  # before the limit, which reaches only the libraries that are loaded
        from threadpoolctl import threadpool_limits

        n, losses = np.array(draws, dtype=np.float64), np.array(state["curve"]["losses"])
        # Several threads wait for each other over matrices of 3 x 3 numbers, which takes 25 times the CPU time.
        with threadpool_limits(1):
            laws = [fit_scaling_law(n, curve, least_log_loss=self.least_log_loss) for curve in losses.T]
        # The preference compares all skills, so new laws of a part of the skills cannot be used with old laws of the others.
        if any(law is None for law in laws):
            return {**state, "fitted_step": step}
        return {**state, "fitted_step": step, "laws": [list(law) for law in laws if law is not None]}

    def _moved(self, state: State, draw: float) -> State:
        beta, _, alpha = np.array(state["laws"]).T
        tiny = np.finfo(np.float64).tiny
        # In logarithms, because n ** (-alpha - 1) underflows for long runs.
        log_rho = (
            np.log(np.maximum(state["prior"], tiny))
            + 0.5 * np.log(np.maximum(state["recent"], tiny))
            + np.log(np.maximum(alpha, LEAST_ALPHA))
            + beta
            - (alpha + 1) * np.log(draw)
        )
        rho = np.maximum(softmax(log_rho), LEAST_SHARE)
        # The constants 0.5, 0.1 and 0.9 of the preference and of the weights are the authors'.
        rho, average, turn = rho / rho.sum(), np.array(state["average"]), state["turn"]
        weights = 0.1 * rho + 0.9 * average
        moved = average + (rho - average) / (turn + 1)
        return {**state, "weights": (weights / weights.sum()).tolist(), "average": moved.tolist()}


def ado(
    *,
    warmup_steps: int,
    refit_steps: int,
    least_log_loss: float = 0.5,
    prior: Mapping[str, float] | None = None,
) -> Policy:
    r"""Give more weight to the skills whose scaling laws fall fastest at the present number of draws.

    .. math:: L_i(n) = e^{\epsilon_i} + e^{\beta_i} n^{-\alpha_i}, \quad
        \rho_i \propto \mu_i h_i^{1/2} \frac{\alpha_i (L_i(n) - e^{\epsilon_i})}{n}, \quad
        p = 0.1 \rho + 0.9 \bar\rho, \quad \bar\rho \leftarrow \bar\rho + \frac{\rho - \bar\rho}{t + 1}

    n is the number of draws that the model has seen, mu the prior, h a running mean (0.9) of the shares really drawn, and t the number
    of observations. rho is raised to at least 0.01 and then normalized, so rho may end slightly below 0.01. The weights are the prior
    during the warm-up and up to the fourth observation after the warm-up.

    A skill without a loss in an observation repeats its last loss. NaN and unknown skills are refused. A fit that is not finite is
    dropped, and the previous laws stay. The policy requires `Observation.drawn`.

    Args:
        warmup_steps: Number of optimizer steps before the first point of a law. The paper uses 1,000.
        refit_steps: Number of optimizer steps between two fits. The paper uses 1,000.
        least_log_loss: Lower bound of epsilon. The authors' code uses 0.5, which is 1.65 nats. Use a lower bound if the losses may fall
            to 1.65 nats.
        prior: Prior mu, training skill -> weight > 0, normalized to the sum 1. None: the natural shares of the samples, as in the paper.

    Returns:
        A policy. The weights are `(train_skill,)`, sum 1. The state holds the curves (at most 128 points), the laws and the means.

    Raises:
        ExtraError: SciPy, which fits the scaling laws, is not installed.
        PolicyError: warmup_steps, refit_steps, least_log_loss or prior is out of range. Later, the sizes are unknown, or the prior's names are not the
            skills of the mix.
        ObservationError: An observation does not say how many draws each skill had.

    Example:
        >>> policy = ado(warmup_steps=1000, refit_steps=1000)
        >>> policy.weights(policy.init(("add", "carry"), (300, 100))).tolist()
        [0.75, 0.25]

    Reference:
        Jiang et al., "Adaptive Data Optimization", ICLR 2025, arXiv:2410.11820, as in the authors' code. This policy differs from the
        code in three points. Losses are holdout losses, so they are not smoothed (the code uses Savitzky-Golay). t counts
        observations (the code observes in every step). The curves are thinned, so that the state stays small.
    """
    needed("fit", what="The policy ado")
    if not is_whole(warmup_steps, 0):
        raise PolicyError(
            f"warmup_steps is {warmup_steps!r}: give optimizer steps, a whole number >= 0 (1,000 in the paper)."
        )
    if not is_whole(refit_steps, 1):
        raise PolicyError(
            f"refit_steps is {refit_steps!r}: give optimizer steps, a whole number >= 1 (1,000 in the paper)."
        )
    if not (is_finite(least_log_loss) and least_log_loss < MOST_LOG_LOSS):
        raise PolicyError(
            f"least_log_loss is {least_log_loss!r}: give the logarithm of a loss in nats, a finite number below {MOST_LOG_LOSS:g} (0.5 in the "
            "authors' code)."
        )
    return Ado(warmup_steps, refit_steps, least_log_loss, checked_prior("ado", prior))
