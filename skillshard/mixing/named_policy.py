"""Policies by name: from the record of a run, or from a text such as `loss_order:eta=0.5+floor:least=0.01`."""

import inspect
import os
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError

from skillshard import canonical, policies
from skillshard.artefact import differences
from skillshard.errors import PolicyError, did_you_mean
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.weights_file import read_weights
from skillshard.policies.policy import Policy, Transform

POLICIES: dict[str, Callable[..., Policy]] = {
    "ado": policies.ado,
    "aioli": policies.aioli,
    "anti_curriculum": policies.anti_curriculum,
    "curriculum": policies.curriculum,
    "doremi": policies.doremi,
    "exp3": policies.exp3,
    "fixed": policies.fixed,
    "graph_refresh": policies.graph_refresh,
    "loss_order": policies.loss_order,
    "odm": policies.odm,
    "proportional": policies.proportional,
    "skill_curriculum": policies.skill_curriculum,
    "skill_it": policies.skill_it,
    "skill_stratified": policies.skill_stratified,
    "softmax_loss": policies.softmax_loss,
    "stratified": policies.stratified,
    "temperature": policies.temperature,
    "unimax": policies.unimax,
}
"""Name of a policy -> its function. The names of the arguments are the names in the records of runs."""
TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "cap": policies.cap,
    "floor": policies.floor,
    "max_change": policies.max_change,
    "repetition_limit": policies.repetition_limit,
    "smoothing": policies.smoothing,
}
"""Name of a transform -> its function."""
OF_SKILLS = ("weights", "prior", "losses", "reference")
"""Arguments that are a number for each skill."""
_NEXT_TRANSFORM = re.compile(rf"\+(?=(?:{'|'.join(TRANSFORMS)})(?::|\+|$))")


def policy_of_record(name: str, arguments: Mapping[str, Any], *, graph: str | os.PathLike[str] | None) -> Policy:
    """Make the policy of a run from its record.

    Args:
        name: Name of the policy in the record.
        arguments: Arguments of the policy in the record.
        graph: File of the graph, for a policy with a graph. A record names only the digest of the graph.

    Raises:
        PolicyError: The policy is no policy of skillshard, or the graph is missing or another graph.
    """
    policy = _made(name, arguments, graph)
    arguments_of_policy = canonical.from_json(canonical.to_json(policy.arguments), "arguments")
    changed = differences(dict(arguments), arguments_of_policy)
    if policy.name != name or changed:
        raise PolicyError(
            f"policy {name} of the run has other arguments than the policy made from its record: {'; '.join(changed[:4])}. For a policy with a "
            "graph, give the graph of the run."
        )
    return policy


def _made(name: str, arguments: Mapping[str, Any], graph: str | os.PathLike[str] | None) -> Policy:
    if set(arguments) == {"policy", "transforms"}:
        inner, inner_arguments = arguments["policy"]
        transforms = [
            _called(TRANSFORMS, transform, values, "transform") for transform, values in arguments["transforms"]
        ]
        return policies.chain(_made(inner, inner_arguments, graph), *transforms)
    values = dict(arguments)
    if isinstance(values.get("graph"), str):
        if graph is None:
            raise PolicyError(
                f"policy {name} of the run has a graph, and the record names only its digest {values['graph']}: give the `graph` file."
            )
        values["graph"] = SkillGraph.open(graph)
    return _called(POLICIES, name, values, "policy")


def policy_of_text(
    text: str,
    *,
    open_graph: Callable[[str], SkillGraph] = SkillGraph.open,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Policy:
    """Make a policy from a name and arguments in a text.

    Args:
        text: `NAME` or `NAME:argument=value,argument=value`, with the arguments of the function in `skillshard.policies`. A graph is a file. Weights, a
            prior and losses are a file of weights. Other values are JSON, or a text. A file alone is the graph or the weights of the policy.
            `+NAME:argument=value` adds a transform.
        open_graph: Function that opens the file of a graph.
        defaults: Values of arguments that the policy has and the text does not name.

    Raises:
        PolicyError: The name or an argument is unknown, or an argument is missing.
        GraphError, StorageError: A file cannot be read.

    >>> policy_of_text("loss_order:eta=0.5,reduce=mean").arguments
    {'eta': 0.5, 'edge': 0.5, 'window': 3, 'reduce': 'mean'}
    >>> policy_of_text("stratified+floor:least=0.1").name
    'stratified+floor'
    """
    first, *others = _NEXT_TRANSFORM.split(text)
    name, words = _parts(first)
    arguments = {key: _value(key, word, open_graph) for key, word in words.items()}
    more = {key: value for key, value in defaults.items() if key in _arguments_of(POLICIES, name)}
    policy = _called(POLICIES, name, {**more, **arguments}, "policy")
    transforms = []
    for other in others:
        name, words = _parts(other)
        values = {key: _value(key, word, open_graph) for key, word in words.items()}
        transforms.append(_called(TRANSFORMS, name, values, "transform"))
    return policies.chain(policy, *transforms) if transforms else policy


def graph_of_text(text: str) -> str | None:
    """Return the file of the graph in the text of a policy, or None for a policy without a graph.

    >>> graph_of_text("skill_it:graph.json,eta=0.5"), graph_of_text("stratified")
    ('graph.json', None)
    """
    return _parts(_NEXT_TRANSFORM.split(text)[0])[1].get("graph")


def _parts(text: str) -> tuple[str, dict[str, str]]:
    """Divide a text into the name and the words of the arguments."""
    name, _, rest = text.partition(":")
    words: dict[str, str] = {}
    for pair in rest.split(",") if rest else []:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            of_files = [argument for argument in ("graph", "weights") if argument in _arguments_of(POLICIES, name)]
            if not of_files:
                raise PolicyError(f"{pair!r} in {text!r} is no argument: give NAME:argument=value,argument=value.")
            key, value = of_files[0], key
        if key in words:
            raise PolicyError(f"{text!r} gives {key} twice: give one value.")
        words[key] = value
    return name, words


def _arguments_of(functions: Mapping[str, Callable[..., Any]], name: str) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a policy or a transform. An unknown name has none."""
    return inspect.signature(functions[name]).parameters if name in functions else {}


def _value(key: str, value: str, open_graph: Callable[[str], SkillGraph]) -> Any:
    if key == "graph":
        return open_graph(value)
    if key in OF_SKILLS:
        return read_weights(value)
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _called(functions: Mapping[str, Callable[..., Any]], name: str, arguments: Mapping[str, Any], kind: str) -> Any:
    """Call the function of a name. The arguments are checked first, because they come from a record or from a text."""
    if name not in functions:
        raise PolicyError(
            f"{name!r} is no {kind} of skillshard{did_you_mean(name, functions)}: give one of {', '.join(functions)}, or give the policy in Python."
        )
    parameters = _arguments_of(functions, name)
    unknown = [argument for argument in arguments if argument not in parameters]
    missing = [key for key, own in parameters.items() if own.default is own.empty and key not in arguments]
    if unknown or missing:
        faults = [
            f"{word} {', '.join(names)}" for word, names in (("unknown:", unknown), ("missing:", missing)) if names
        ]
        raise PolicyError(f"{kind} {name} takes the arguments {', '.join(parameters) or 'none'} ({'; '.join(faults)}).")
    values = {
        argument: _checked(name, argument, parameters[argument].annotation, own) for argument, own in arguments.items()
    }
    return functions[name](**values)


def _checked(name: str, argument: str, annotation: Any, value: Any) -> Any:
    """Return a value of JSON in the type of an argument, such as a whole number as a float."""
    if isinstance(value, SkillGraph):
        return value
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise PolicyError(f"{argument} of {name} is {value!r}: {canonical.first_fault(error)}.") from error
