"""Policies from a text such as "skill_it:graph.json,eta=0.5", for a command line.

NAME[:PART,PART,...]    a part is KEY=NUMBER, or the file of the policy: a graph or weights
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from skillshard.errors import PolicyError, did_you_mean
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.weights_file import read_weights
from skillshard.policies import (
    Policy,
    fixed,
    loss_order,
    odm,
    proportional,
    skill_it,
    skill_stratified,
    softmax_loss,
    stratified,
    temperature,
    unimax,
)
from skillshard.policies.skill_it import Reduce


@dataclass(frozen=True)
class Taken:
    """What a policy takes.

    Attributes:
        file: Kind of its file. None: the policy takes no file.
        needed, possible: Keys that the policy needs, and further keys.
    """

    file: str | None = None
    needed: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()


POLICIES: dict[str, Taken] = {
    "stratified": Taken(),
    "proportional": Taken(),
    "temperature": Taken(needed=("tau",)),
    "unimax": Taken(needed=("epochs",)),
    "fixed": Taken("weights"),
    "skill_stratified": Taken("graph"),
    "skill_it": Taken("graph", ("eta",), ("window", "reduce")),
    "loss_order": Taken(None, ("eta",), ("edge", "window", "reduce")),
    "softmax_loss": Taken(None, ("temperature",)),
    "odm": Taken(None, ("warmup_steps",), ("smoothing",)),
}
"""Policy -> what the policy takes in a text."""


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
    """Make a policy from a text.

    Args:
        text: Name, file and numbers.
        skills: Training skills. A graph is reduced to the rows of these skills.
        targets: Evaluation skills that count. A graph is reduced to these columns. Empty: all columns.
        draws: Number of draws of the training, for unimax.

    Raises:
        PolicyError: The name is unknown, or a part is missing, unknown or no number.
        GraphError: The graph lacks a skill.

    >>> parse_policy("temperature:tau=2", skills=("a", "b"), targets=(), draws=100).policy.arguments
    {'tau': 2.0}
    """
    name, _, rest = text.partition(":")
    if name not in POLICIES:
        raise PolicyError(f"policy {name!r}{did_you_mean(name, POLICIES)}: give {', '.join(POLICIES)}.")
    file, values = _parts(text, rest, POLICIES[name])
    graph = file if POLICIES[name].file == "graph" else None
    policy = _policy(name, text, file, values, skills, targets, draws)
    return NamedPolicy(text, policy, graph)


def _parts(text: str, rest: str, takes: Taken) -> tuple[str, dict[str, str]]:
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    files = [part for part in parts if "=" not in part]
    values = dict(part.split("=", 1) for part in parts if "=" in part)
    keys = (*takes.needed, *takes.possible)
    if len(files) != (takes.file is not None):
        wanted = f"a file of {takes.file}" if takes.file else "no file"
        raise PolicyError(
            f"policy {text!r} names {', '.join(files) or 'no file'}, and the policy takes {wanted}: write {_form(text, takes)}."
        )
    unknown = [key for key in values if key not in keys]
    if unknown:
        raise PolicyError(
            f"policy {text!r} does not take {unknown[0]!r}{did_you_mean(unknown[0], keys)}: write {_form(text, takes)}."
        )
    missing = [key for key in takes.needed if key not in values]
    if missing:
        raise PolicyError(f"policy {text!r} needs {missing[0]!r}: write {_form(text, takes)}.")
    return (files[0] if files else ""), values


def _form(text: str, takes: Taken) -> str:
    name = text.partition(":")[0]
    parts = [*([takes.file.upper()] if takes.file else []), *(f"{key}=X" for key in takes.needed)]
    return repr(f"{name}:{','.join(parts)}" if parts else name)


def _policy(
    name: str,
    text: str,
    file: str,
    values: dict[str, str],
    skills: Sequence[str],
    targets: Sequence[str],
    draws: int,
) -> Policy:
    def number(key: str, default: float = 0.0) -> float:
        return _number(text, key, values[key]) if key in values else default

    def window() -> int:
        return int(number("window", 3.0))

    def reduce() -> Reduce:
        word = values.get("reduce", "sum")
        if word not in ("sum", "mean"):
            raise PolicyError(f"policy {text!r}: reduce is {word!r}: give 'sum' or 'mean'.")
        return "sum" if word == "sum" else "mean"

    def graph(place: str | os.PathLike[str]) -> SkillGraph:
        return SkillGraph.open(place).choose(rows=skills, columns=targets or None)

    match name:
        case "temperature":
            return temperature(number("tau"))
        case "unimax":
            return unimax(draws=draws, epochs=number("epochs"))
        case "fixed":
            return fixed(read_weights(file))
        case "skill_stratified":
            return skill_stratified(graph(file))
        case "skill_it":
            return skill_it(graph(file), eta=number("eta"), window=window(), reduce=reduce())
        case "loss_order":
            return loss_order(eta=number("eta"), edge=number("edge", 0.5), window=window(), reduce=reduce())
        case "softmax_loss":
            return softmax_loss(temperature=number("temperature"))
        case "odm":
            return odm(warmup_steps=int(number("warmup_steps")), smoothing=number("smoothing", 0.9))
    return stratified() if name == "stratified" else proportional()


def _number(text: str, key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise PolicyError(f"policy {text!r}: {key} is {value!r}: give a number.") from None
