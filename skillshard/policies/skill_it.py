"""SKILL-IT: weights from the latest losses and the skills graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skillshard.errors import PolicyError, name_some
from skillshard.graph.skill_graph import SkillGraph
from skillshard.loss import LossKind
from skillshard.number_checks import is_finite, is_whole
from skillshard.policies.policy import NextRound, Observation, Online, Policy, State, check_flag, check_losses, softmax
from skillshard.policies.prior import checked_prior, log_prior

Reduce = Literal["sum", "mean"]
Mode = Literal["official", "paper", "static"]
LEAST_FIRST_LOSS = 1e-6
"""Smallest divisor of a loss, in nats per token, so that a skill with a first loss of 0 has a finite relative loss."""


def check_is_graph(graph: object) -> None:
    """Raise PolicyError unless an object is a graph."""
    if not isinstance(graph, SkillGraph):
        raise PolicyError(f"graph is {graph!r}: give a graph, such as SkillGraph.open('graph.json').")


def check_rows(graph: SkillGraph, skills: Sequence[str]) -> None:
    """Raise PolicyError unless the graph's rows are the skills of the mix, in any order."""
    rows, mixed = set(graph.train_skills), set(skills)
    if rows != mixed:
        unknown = [name for name in graph.train_skills if name not in mixed]
        missing = [name for name in skills if name not in rows]
        raise PolicyError(
            "the graph's rows are not the skills of the mix: "
            f"rows without a skill: {name_some(unknown) or 'none'}; skills without a row: {name_some(missing) or 'none'}. "
            "Choose the same skills in both: ShardSet.choose(names), SkillGraph.choose(rows=names)."
        )


@dataclass(frozen=True)
class SkillIt(Online):
    """See `skill_it`."""

    graph: SkillGraph
    eta: float
    window: int
    reduce: Reduce
    mode: Mode
    prior: Mapping[str, float] | None = None
    normalize_losses: bool = False
    any_loss: bool = False

    @property
    def name(self) -> str:
        return "skill_it"

    @property
    def arguments(self) -> dict[str, Any]:
        # Arguments with default values are left out, so that the record of a run does not change when a policy gets a new argument.
        always = {"graph": self.graph.digest, "eta": self.eta, "window": self.window, "reduce": self.reduce}
        mode = {} if self.mode == "official" else {"mode": self.mode}
        prior = {} if self.prior is None else {"prior": dict(self.prior)}
        normalize = {"normalize_losses": True} if self.normalize_losses else {}
        return always | mode | prior | normalize

    @property
    def eval_skills(self) -> tuple[str, ...]:
        return self.graph.eval_skills

    @property
    def loss(self) -> LossKind | None:
        """Kind of losses that fits the graph. None if any kind fits."""
        return self.graph.loss if self.reads_losses and not self.any_loss else None

    @property
    def reads_losses(self) -> bool:
        return self.mode != "static"

    @property
    def may_miss_losses(self) -> bool:
        return self.mode == "static"

    @property
    def initial_losses(self) -> bool:
        return self.mode != "static"

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> State:
        check_rows(self.graph, skills)
        log_prior(self.name, self.prior, skills)  # wrong names in a prior are an error now, and not in the first round
        rounds: State = {"rounds": []} if self.mode == "paper" else {}
        first: State = {"first": None} if self.normalize_losses else {}
        return {"skills": list(skills), "window": []} | rounds | first

    def observe(self, state: State, observation: Observation) -> State:
        if self.mode == "static":
            return state
        losses = list(check_losses(observation.losses, self.eval_skills, step=observation.step).values())
        if self.normalize_losses and state["first"] is None:
            state = {**state, "first": [max(loss, LEAST_FIRST_LOSS) for loss in losses]}
        if self.mode == "official":
            return {**state, "window": [*state["window"], losses][-self.window :]}
        # Mode "paper": the window counts rounds. A second observation of a round replaces the first, because the last
        # observation of a round is the model at the start of the next round.
        rounds, window = state["rounds"], state["window"]
        if rounds and rounds[-1] == observation.round >= 0:
            rounds, window = rounds[:-1], window[:-1]
        return {
            **state,
            "rounds": [*rounds, observation.round][-self.window :],
            "window": [*window, losses][-self.window :],
        }

    def weights(self, state: State, upcoming: NextRound | None = None) -> Float[np.ndarray, " train_skill"]:
        losses = reduced(state["window"], len(self.eval_skills), self.reduce)
        if self.normalize_losses and state["first"] is not None:
            losses = losses / np.array(state["first"])
        skills = state["skills"]
        # The graph computes the scores itself, so that the identity graph of 10,000 skills needs no matrix.
        scores = self.graph.scores(skills, losses, scale=self.eta, positive_only=self.mode == "paper")
        return softmax(scores + log_prior(self.name, self.prior, skills))


def reduced(window: list[list[float]], num_skills: int, reduce: Reduce) -> Float[np.ndarray, " eval_skill"]:
    """Reduce the losses of a window to a number for each skill. Without an observation every number is 1.

    >>> reduced([[1.0, 2.0], [3.0, 0.0]], 2, "mean").tolist(), reduced([], 2, "sum").tolist()
    ([2.0, 1.0], [1.0, 1.0])
    """
    if not window:
        return np.ones(num_skills)
    losses = np.array(window)
    return losses.sum(axis=0) if reduce == "sum" else losses.mean(axis=0)


def check_arguments(*, eta: Any, window: Any, reduce: Any) -> None:
    """Raise PolicyError unless the step size, the window and its reduction are in range."""
    if not (is_finite(eta) and eta >= 0):
        raise PolicyError(f"eta is {eta!r}: give a finite number >= 0 (the paper uses 0.1 to 0.8).")
    if not is_whole(window, 1):
        raise PolicyError(f"window is {window!r}: give the number of latest observations to use, a whole number >= 1.")
    if reduce not in ("sum", "mean"):
        raise PolicyError(f"reduce is {reduce!r}: give 'sum' or 'mean'.")


def skill_it(
    graph: SkillGraph,
    *,
    eta: float,
    window: int = 3,
    reduce: Reduce = "sum",
    mode: Mode = "official",
    prior: Mapping[str, float] | None = None,
    normalize_losses: bool = False,
    any_loss: bool = False,
) -> Policy:
    r"""Shift weight to the skills that help the skills with high losses.

    .. math:: p_i \propto q_i \exp\Big(\eta \sum_j A_{ij} \operatorname{reduce}_{\tau > t-w} L_j(\tau)\Big)

    q is the prior, equal weights by default. Before the first observation every loss counts as 1, so the weights are proportional to
    :math:`q_i \exp(\eta \sum_j A_{ij})`. A lone node (a row of zeros) scores 0 and keeps the weight of exp(0), so a lone node is
    neither dropped nor preferred. A loss that is NaN, missing or of an unknown skill is refused. (The authors' code reads a NaN as 0,
    so that a broken skill looks learned.)

    Args:
        graph: Graph A, rows `train_skill`, columns `eval_skill`. For fine-tuning, only the columns of the targets.
        eta: Step size in 1 / nats, finite and >= 0. 0 gives equal weights. The paper uses 0.5 on LEGO and 0.2 on Natural
            Instructions (Section C.3).
        window: Number of the latest observations used, at least 1. The paper uses 3.
        reduce: Reduction of the window: "sum" as in the authors' pre-training runs, "mean" as in their runs with a target skill. With
            "sum" the same eta acts `window` times as strongly.
        mode: Variant of the algorithm. "official": the window counts observations, and negative edges are kept, as in the code of the
            paper's figures. "paper": Algorithm 1 as printed. The window counts rounds, and uses the last observation of each round,
            which is the model at the start of the next round (with `lag=1` of the mixer, the lag of the paper). Negative edges count
            as 0, because Algorithms 2 and 3 keep only positive edges. "static": the first weights for the whole run (T = 1, as in the
            authors' pre-training on Natural Instructions). Negative edges are kept, and window, reduce and normalize_losses have no
            effect.
        prior: Prior q, training skill -> weight > 0, normalized to the sum 1. A mixture that already works is a good prior. With eta 0
            the weights are the prior. None: equal weights.
        normalize_losses: Whether every loss is divided by the first observed loss of its skill, as by `--normalize_loss` of the
            authors' code (no script of the authors uses this option). Useful if the skills differ in their reachable losses, as in
            real text. The losses then have no unit, and are 1 at the first observation. A first loss below 0.000001 nats counts as
            0.000001 nats.
        any_loss: Whether losses of another kind (`skillshard.loss.LossKind`) than the losses of the graph are accepted. By default a
            mixer refuses another kind.

    Returns:
        A policy. The weights are `(train_skill,)`, positive, sum 1. The state is the window, oldest observation first.

    Raises:
        PolicyError: eta, window, reduce or mode is out of range. Later, the graph's rows or the prior's names are not the skills of
            the mix.

    Example:
        >>> graph = SkillGraph(("add", "carry"), ("carry",), [[1.0], [0.0]])
        >>> policy = skill_it(graph, eta=1.0)
        >>> state = policy.observe(policy.init(("add", "carry")), Observation(step=100, losses={"carry": np.log(3)}))
        >>> policy.weights(state).round(6).tolist()
        [0.75, 0.25]

    Reference:
        Chen et al., "Skill-it!", NeurIPS 2023, Algorithm 1, arXiv:2307.14430. Mode "official" differs from Algorithm 1 as printed: see
        `mode`. Every mode differs from the authors' code in three points. The maximum is subtracted before exp, so that no eta
        overflows (their code gives NaN from eta 1000 on). A graph is used unchanged (their code turns off-diagonal entries of 1 into
        0.5 and, for static weights, the diagonal into 1). Relative losses refer to the first observation (their code refers to the
        second observation).
    """
    check_is_graph(graph)
    check_arguments(eta=eta, window=window, reduce=reduce)
    if mode not in ("official", "paper", "static"):
        raise PolicyError(f"mode is {mode!r}: give 'official' (default), 'paper' or 'static'.")
    check_flag("normalize_losses", normalize_losses)
    check_flag("any_loss", any_loss)
    return SkillIt(graph, eta, window, reduce, mode, checked_prior("skill_it", prior), normalize_losses, any_loss)
