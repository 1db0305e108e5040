"""Skill-stratified sampling: the static method of the SKILL-IT paper, equal weights for the skills that matter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skillshard.errors import PolicyError
from skillshard.graph.skill_graph import SkillGraph
from skillshard.policies.policy import Policy, Static
from skillshard.policies.skill_it import check_rows


@dataclass(frozen=True)
class SkillStratified(Static):
    """See `skill_stratified`."""

    graph: SkillGraph
    name: str = "skill_stratified"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"graph": self.graph.digest}

    def made(self, skills: Sequence[str], num_samples: Sequence[int] | None) -> list[float]:
        check_rows(self.graph, skills)
        helpful = {*self.graph.eval_skills, *self.graph.helpful_skills}
        chosen = [float(skill in helpful) for skill in skills]
        if not any(chosen):
            raise PolicyError(
                "no training skill has an edge > 0 to any evaluation skill, so skill_stratified has nothing to train on. Use "
                "stratified(), or learn the graph again."
            )
        return [one / sum(chosen) for one in chosen]


def skill_stratified(graph: SkillGraph) -> Policy:
    r"""Equal weights for the evaluation skills and their prerequisites, 0 for all others.

    .. math:: p_i \propto [i \in \text{eval}] \text{ or } [\exists j: A_{ij} > 0]

    One rule for the paper's three settings. Pre-training (evaluation skills are the training skills): stratified.
    Fine-tuning (some of them): targets and their prerequisites. Out of domain (none of them): prerequisites alone.
    Negative edges count as none; a lone node is left out unless it is an evaluation skill.

    Args:
        graph: A, rows `train_skill`, columns `eval_skill`; only the sign of its entries is used.

    Raises:
        PolicyError: later, the graph's rows are not the skills of the mix, or no skill is left.

    Example:
        >>> graph = SkillGraph(("add", "carry", "copy"), ("carry",), [[0.5], [1.0], [-0.1]])
        >>> policy = skill_stratified(graph)
        >>> policy.weights(policy.init(("add", "carry", "copy"))).tolist()
        [0.5, 0.5, 0.0]

    Reference:
        Chen et al., "Skill-it!", NeurIPS 2023, Section 3.3.1, arXiv:2307.14430. Differs from it: a target without any edge to
        itself is still trained on, which the paper takes for granted.
    """
    return SkillStratified(graph)
