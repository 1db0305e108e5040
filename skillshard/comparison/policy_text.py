"""The policies of a comparison, from texts such as "skill_it:graph.json,eta=0.5"."""

from collections.abc import Sequence
from dataclasses import dataclass

from skillshard.errors import PolicyError, SkillshardError
from skillshard.mixing.named_policy import Context, suggestion
from skillshard.mixing.policy_file import is_in_json, policy_given
from skillshard.policies import Policy
from skillshard.policies.inner import Holding, policies_within
from skillshard.printable import shortened

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
    "stages",
    "by_group",
)


@dataclass(frozen=True)
class NamedPolicy:
    """A policy with the text that made the policy.

    Attributes:
        text: Text of the user.
        policy: The policy.
        graphs: Places of its graphs.
    """

    text: str
    policy: Policy
    graphs: tuple[str, ...]


def parse_policy(text: str, *, skills: Sequence[str], targets: Sequence[str], draws: int) -> NamedPolicy:
    """Make a policy from a text, in the form that `skillshard.mixing.policy_file.read_policy` describes.

    Args:
        text: Name, file and arguments, or a file of a policy.
        skills: Training skills. A graph is reduced to the rows of these skills.
        targets: Evaluation skills that count. A graph is reduced to these columns. Empty: all columns.
        draws: Number of draws of the training, for unimax.

    Raises:
        PolicyError: The name is unknown, or an argument is missing, unknown or of another type.
        GraphError: The graph lacks a skill.
        StorageError: A file cannot be read. Every message names the policy.

    >>> parse_policy("temperature:tau=2", skills=("a", "b"), targets=(), draws=100).policy.arguments
    {'tau': 2.0}
    """
    name = text.partition(":")[0].partition("+")[0]
    if not is_in_json(text) and name not in POLICIES:
        raise PolicyError(
            f"policy {name!r}{suggestion(name, POLICIES)}: give {', '.join(POLICIES)}, or a file, FILE.json."
        )
    context = Context(skills=skills, targets=targets, defaults={"draws": draws}, unit="samples")
    try:
        policy = policy_given(text, context)
    except SkillshardError as error:
        # A comparison has several policies, so the sentence names the policy.
        raise type(error)(f"policy {shortened(text, 80)}: {error}") from error
    for inner in policies_within(policy):
        if inner.name not in POLICIES and not isinstance(inner, Holding):
            raise PolicyError(f"{text}: a comparison has no policy {inner.name!r}: give {', '.join(POLICIES)}.")
    return NamedPolicy(text, policy, tuple(dict.fromkeys(context.opened)))
