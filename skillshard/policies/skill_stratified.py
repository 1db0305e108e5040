"""Skill-stratified sampling: the static method of the SKILL-IT paper, with equal weights for the helpful skills."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skillshard.errors import PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies.policy import Policy, Static
from skillshard.policies.skill_it import check_is_graph, check_rows


@dataclass(frozen=True)
class SkillStratified(Static):
    """See `skill_stratified`."""

    graph: SkillGraph
    name: str = "skill_stratified"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"graph": self.graph.digest}

    def constant_weights(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> list[float]:
        check_rows(self.graph, skills)
        # An evaluation skill may be no training skill (out of domain). Such a name matches no row and gets no weight.
        helpful = {*self.graph.eval_skills, *self.graph.helpful_skills}
        chosen = [float(skill in helpful) for skill in skills]
        if not any(chosen):
            raise PolicyError(
                "no training skill has an edge > 0 to any evaluation skill, so skill_stratified has nothing to train on. Use "
                "stratified(), or learn the graph again."
            )
        return [flag / sum(chosen) for flag in chosen]


def skill_stratified(graph: SkillGraph) -> Policy:
    r"""Give equal weights to the evaluation skills and their prerequisites, and 0 to all other skills.

    .. math:: p_i \propto [i \in \text{eval}] \text{ or } [\exists j: A_{ij} > 0]

    The rule covers the paper's three settings. In pre-training all training skills are evaluation skills, so the weights are stratified.
    In fine-tuning the targets and their prerequisites have weights. Out of domain no training skill is an evaluation skill, so only the
    prerequisites have weights. A negative edge counts as no edge. A lone node is left out unless it is an evaluation skill.

    Args:
        graph: Graph A, rows `train_skill`, columns `eval_skill`. Only the signs of the entries are used.

    Raises:
        PolicyError: `graph` is no graph. Later, the graph's rows are not the skills of the mix, or no skill has a weight.

    Example:
        >>> graph = SkillGraph(("add", "carry", "copy"), ("carry",), [[0.5], [1.0], [-0.1]])
        >>> policy = skill_stratified(graph)
        >>> policy.weights(policy.init(("add", "carry", "copy"))).tolist()
        [0.5, 0.5, 0.0]

    Reference:
        Chen et al., "Skill-it!", NeurIPS 2023, Section 3.3.1, arXiv:2307.14430. A target without an edge to itself has a weight too,
        which the paper assumes without saying so.
    """
    check_is_graph(graph)
    return SkillStratified(graph)
