"""The policies of a comparison, from texts such as "skill_it:graph.json,eta=0.5"."""

from collections.abc import Sequence
from dataclasses import dataclass

from skillshard.errors import PolicyError, did_you_mean
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.named_policy import graph_of_text, policy_of_text
from skillshard.policies import Policy

# Other policies need more than the losses that the trial reports: probes, reference losses, or an order that the user gives.
POLICIES = (
    "stratified",
    "proportional",
    "temperature",
    "unimax",
    "fixed",
    "skill_stratified",
    "skill_it",
    "loss_order",
    "softmax_loss",
    "odm",
)


@dataclass(frozen=True)
class NamedPolicy:
    """A policy with the text that made the policy.

    Attributes:
        text: Text of the user.
        policy: The policy.
        graph: Place of its graph, or None.
    """

    text: str
    policy: Policy
    graph: str | None


def parse_policy(text: str, *, skills: Sequence[str], targets: Sequence[str], draws: int) -> NamedPolicy:
    """Make a policy from a text, in the form that `skillshard.mixing.named_policy.policy_of_text` describes.

    Args:
        text: Name, file and arguments.
        skills: Training skills. A graph is reduced to the rows of these skills.
        targets: Evaluation skills that count. A graph is reduced to these columns. Empty: all columns.
        draws: Number of draws of the training, for unimax.

    Raises:
        PolicyError: The name is unknown, or an argument is missing, unknown or of another type.
        GraphError: The graph lacks a skill.

    >>> parse_policy("temperature:tau=2", skills=("a", "b"), targets=(), draws=100).policy.arguments
    {'tau': 2.0}
    """
    name = text.partition(":")[0].partition("+")[0]
    if name not in POLICIES:
        raise PolicyError(f"policy {name!r}{did_you_mean(name, POLICIES)}: give {', '.join(POLICIES)}.")
    policy = policy_of_text(
        text,
        open_graph=lambda place: SkillGraph.open(place).choose(rows=skills, columns=targets or None),
        defaults={"draws": draws},
    )
    return NamedPolicy(text, policy, graph_of_text(text))
