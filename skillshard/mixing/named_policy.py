"""Policies by name: from the record of a run, or from a text such as `loss_order:eta=0.5+floor:least=0.01`."""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from skillshard import canonical, places, policies
from skillshard.artefact import differences
from skillshard.errors import GraphError, PolicyError, did_you_mean, with_suggestions
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.weights_file import read_weights
from skillshard.policies.by_group import groups_of
from skillshard.policies.policy import Policy, Transform
from skillshard.policies.stages import Blend, Unit, with_ends
from skillshard.printable import shortened

POLICIES: dict[str, Callable[..., Policy]] = {
    "ado": policies.ado,
    "aioli": policies.aioli,
    "anti_curriculum": policies.anti_curriculum,
    "by_group": policies.by_group,
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
    "stages": policies.stages,
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
IDENTITY = "identity"
"""Word in place of the file of a graph: the graph in which each skill of the mix helps itself alone."""

OTHER_WORDS = {
    "equal": "stratified",
    "uniform": "stratified",
    "natural": "proportional",
    "size": "proportional",
    "manual": "fixed",
    "static": "fixed",
    "weights": "fixed",
}
"""Usual word for a policy -> its name here, for suggestions alone."""

HOLDERS = ("stages", "by_group")
"""Policies whose arguments are other policies. A text of names and values cannot write these policies."""


@dataclass(frozen=True)
class Context:
    """Everything that the text of a policy does not hold.

    Attributes:
        folder: Directory of the files that the text names. None: the working directory.
        skills: Training skills. A graph is reduced to the rows of these skills. None: graphs are not reduced.
        absent: Skills that the run does not have yet. A graph loses their columns, and weights lose their numbers.
        targets: Evaluation skills that count. A graph is reduced to these columns. Empty: all columns.
        defaults: Values of arguments that a policy has and the text does not name.
        opened: Places of the graphs that were opened.
        unit: Unit of the weights, "samples", "tokens" or "blocks". Files with weights of another unit are refused. None: unknown.
    """

    folder: str | None = None
    skills: Sequence[str] | None = None
    targets: Sequence[str] = ()
    absent: Collection[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    unit: str | None = None

    def weights(self, words: str) -> dict[str, float]:
        source = words if words.lstrip().startswith("{") else self._place_of(words)
        return self.present(read_weights(source, unit=self.unit))

    def present(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Return weights without the skills that the run does not have yet."""
        return {skill: weight for skill, weight in weights.items() if skill not in self.absent}

    def _place_of(self, file: str) -> str:
        return file if self.folder is None else places.resolve(file, self.folder)

    def graph(self, file: str) -> SkillGraph:
        """Open the file of a graph, or make the identity graph.

        Raises:
            GraphError: The graph lacks a skill.
            StorageError: The file cannot be read.
        """
        if file == IDENTITY:
            return self._identity()
        place = self._place_of(file)
        graph = SkillGraph.open(place)
        self.opened.append(place)
        if self.skills is None:
            return graph
        columns = [name for name in self.targets or graph.eval_skills if name not in self.absent]
        try:
            return graph.choose(rows=self.skills, columns=columns)
        except GraphError as error:
            raise GraphError(
                f"{place}: {error} Give a graph with a row for each skill of the mix and a column for each target."
            ) from error

    def _identity(self) -> SkillGraph:
        if self.skills is None:
            raise GraphError(
                f"the graph {IDENTITY!r} needs the skills of the mix, and the skills are not known here: give `skills`, or the file of a graph."
            )
        try:
            return SkillGraph.identity(self.skills).choose(columns=[*self.targets] or None)
        except GraphError as error:
            raise GraphError(
                f"the graph {IDENTITY!r}: {error} Each skill helps itself alone, so a target must be a skill of the mix. Give the file of a graph."
            ) from error

    def of_groups(self, groups: Any) -> "Context":
        """Return the context of a policy over groups. The rows and columns of its graph are groups."""
        return replace(self, skills=_names_of_groups(groups, self.skills), targets=(), absent=())

    def of_group(self, groups: Any, group: str | None) -> "Context":
        """Return the context of a policy inside a group. None: the policy is inside each group, so its graph is not reduced."""
        if self.skills is None or group is None:
            return replace(self, skills=None)
        members = groups_of(self.skills) if groups == "prefix" else groups
        return replace(self, skills=members.get(group) if isinstance(members, Mapping) else None)


def _names_of_groups(groups: Any, skills: Sequence[str] | None) -> tuple[str, ...] | None:
    if skills is None:
        return None
    if groups == "prefix":
        return tuple(groups_of(skills))
    return tuple(groups) if isinstance(groups, Mapping) else None


_Model = TypeVar("_Model", bound=BaseModel)


class _Stage(BaseModel):
    """A stage in the record of a run."""

    model_config = ConfigDict(extra="forbid")

    until: int | None
    until_draw: int | None
    policy: tuple[str, dict[str, Any]]


class _Stages(BaseModel):
    """Arguments of `stages` in the record of a run."""

    model_config = ConfigDict(extra="forbid")

    stages: list[_Stage]
    unit: Unit
    blend: Blend


class _ByGroup(BaseModel):
    """Arguments of `by_group` in the record of a run."""

    model_config = ConfigDict(extra="forbid")

    outer: tuple[str, dict[str, Any]]
    inner: tuple[str, dict[str, Any]] | dict[str, tuple[str, dict[str, Any]]]
    groups: Literal["prefix"] | dict[str, list[str]]


class _Chain(BaseModel):
    """Arguments of a policy with transforms in the record of a run."""

    model_config = ConfigDict(extra="forbid")

    policy: tuple[str, dict[str, Any]]
    transforms: list[tuple[str, dict[str, Any]]]


def policy_of_record(
    name: str, arguments: Mapping[str, Any], *, graphs: Sequence[str] = (), skills: Sequence[str] | None = None
) -> Policy:
    """Make the policy of a run from its record.

    Args:
        name: Name of the policy in the record.
        arguments: Arguments of the policy in the record.
        graphs: Files of the graphs of the policy. A record names only the digest of a graph.
        skills: Training skills of the run. A graph may have more rows than the run has skills. None: graphs are not reduced.

    Raises:
        PolicyError: The policy is no policy of skillshard, or a graph is missing or another graph.
    """
    policy = _policy_of(name, arguments, {place: SkillGraph.open(place) for place in graphs}, Context(skills=skills))
    arguments_of_policy = canonical.from_json(canonical.to_json(policy.arguments), "arguments")
    changed = differences(dict(arguments), arguments_of_policy)
    if policy.name != name or changed:
        raise PolicyError(
            f"policy {name} of the run has other arguments than the policy made from its record: {'; '.join(changed[:4])}."
        )
    return policy


def _policy_of(name: str, arguments: Mapping[str, Any], graphs: Mapping[str, SkillGraph], context: Context) -> Policy:
    if set(arguments) == {"policy", "transforms"}:
        chained = _validated(_Chain, name, arguments)
        transforms = [_called(TRANSFORMS, transform, values, "transform") for transform, values in chained.transforms]
        return policies.chain(_policy_of(*chained.policy, graphs, context), *transforms)
    if name == "stages":
        record = _validated(_Stages, name, arguments)
        pairs = [(stage.until, _policy_of(*stage.policy, graphs, context)) for stage in record.stages]
        ends = [stage.until_draw for stage in record.stages[:-1]]
        policy_of_stages = policies.stages(pairs, unit=record.unit, blend=record.blend)
        # The record holds the draws that the run has used. A conversion of the steps or tokens could give other draws.
        return (
            policy_of_stages if None in ends else with_ends(policy_of_stages, [end for end in ends if end is not None])
        )
    if name == "by_group":
        levels = _validated(_ByGroup, name, arguments)
        outer = _policy_of(*levels.outer, graphs, context.of_groups(levels.groups))
        inner: Policy | dict[str, Policy]
        if isinstance(levels.inner, dict):
            inner = {
                group: _policy_of(*own, graphs, context.of_group(levels.groups, group))
                for group, own in levels.inner.items()
            }
        else:
            inner = _policy_of(*levels.inner, graphs, context.of_group(levels.groups, None))
        return policies.by_group(outer, inner, groups=levels.groups)
    values = dict(arguments)
    if isinstance(values.get("graph"), str):
        values["graph"] = _graph_of_digest(name, values["graph"], graphs, context.skills)
    return _called(POLICIES, name, values, "policy")


def _validated(model: type[_Model], name: str, arguments: Mapping[str, Any]) -> _Model:
    try:
        return model.model_validate(dict(arguments))
    except ValidationError as error:
        raise PolicyError(
            f"the record holds no arguments of policy {name}: {canonical.first_fault(error)}. The record is damaged or edited."
        ) from error


MOST_REDUCED_ROWS = 1_000_000
"""Largest number of rows of all reduced graphs that are compared with a digest, which takes about a second."""


def _graph_of_digest(
    name: str, digest: str, graphs: Mapping[str, SkillGraph], skills: Sequence[str] | None
) -> SkillGraph:
    """Find the graph with a digest: a given graph or the identity graph of the skills, whole or reduced to the skills and to targets."""
    identity = [SkillGraph.identity(skills)] if skills else []
    for graph in [*identity, *graphs.values()]:
        for reduced in islice(_reduced(graph, skills), 2 + MOST_REDUCED_ROWS // len(graph.train_skills)):
            if reduced.digest == digest:
                return reduced
    if not graphs:
        raise PolicyError(
            f"policy {name} of the run has a graph, and the record names only its digest {digest}: give the file of the graph by `graphs`."
        )
    others = "; ".join(f"{place} has the digest {graph.digest}" for place, graph in graphs.items())
    raise PolicyError(
        f"policy {name} of the run has a graph with the digest {digest}, and this is no given graph ({others}): give the graph of the run by `graphs`."
    )


def _reduced(graph: SkillGraph, skills: Sequence[str] | None) -> Iterator[SkillGraph]:
    """Yield a graph, then the graph with the rows of the skills, then this graph with each choice of columns, few columns first.

    A comparison with targets reduces the graph of a policy to the columns of the targets.
    """
    yield graph
    if skills and set(skills) < set(graph.train_skills):
        graph = graph.choose(rows=skills)
        yield graph
    for num_columns in range(1, len(graph.eval_skills)):
        for columns in combinations(graph.eval_skills, num_columns):
            yield graph.choose(columns=columns)


def policy_of_text(text: str, context: Context | None = None) -> Policy:
    """Make a policy from a name and arguments in a text.

    Args:
        text: `NAME` or `NAME:argument=value,argument=value`, with the arguments of the function in `skillshard.policies`. A graph is a file, or
            the word "identity" for the graph in which each skill helps itself alone. Weights, a prior and losses are a file of weights. Other
            values are JSON, or a text. A file alone, or "identity" alone, is the graph or the weights of the policy.
            `+NAME:argument=value` adds a transform.
        context: Skills, directory and defaults. None: graphs are not reduced, and files are named relative to the working directory.

    Raises:
        PolicyError: The name or an argument is unknown, or an argument is missing.
        GraphError, StorageError: A file cannot be read.

    >>> policy_of_text("loss_order:eta=0.5,reduce=mean").arguments
    {'eta': 0.5, 'edge': 0.5, 'window': 3, 'reduce': 'mean'}
    >>> policy_of_text("stratified+floor:least=0.1").name
    'stratified+floor'
    """
    context = context or Context()
    first, transforms = divided(text)
    name, words = _parts(first)
    if name in HOLDERS:
        raise PolicyError(
            f'policy {name} holds other policies, so write the policy as JSON, {{"policy": "{name}", ...}}, into a file, and give the file, FILE.json.'
        )
    arguments = {key: _value(key, word, context) for key, word in words.items()}
    return chained(called_policy(name, arguments, context), [transform_of_text(other) for other in transforms])


def divided(text: str) -> tuple[str, list[str]]:
    """Divide the text of a policy into the text of the policy itself and the texts of the transforms after the policy.

    >>> divided("skill_it:graph.json,eta=0.2+floor:least=0.01")
    ('skill_it:graph.json,eta=0.2', ['floor:least=0.01'])
    """
    first, *transforms = _NEXT_TRANSFORM.split(text)
    return first, transforms


def transform_of_text(text: str) -> Transform:
    """Make a transform from `NAME:argument=value`."""
    name, words = _parts(text)
    return called_transform(name, {key: _json_or_text(word) for key, word in words.items()})


def called_policy(name: str, arguments: Mapping[str, Any], context: Context) -> Policy:
    """Call the function of a policy with arguments from a text, and with the defaults of the context."""
    more = {key: value for key, value in context.defaults.items() if key in _arguments_of(POLICIES, name)}
    policy: Policy = _called(POLICIES, name, {**more, **arguments}, "policy")
    return policy


def called_transform(name: str, arguments: Mapping[str, Any]) -> Transform:
    """Call the function of a transform with arguments from a text."""
    transform: Transform = _called(TRANSFORMS, name, arguments, "transform")
    return transform


def chained(policy: Policy, transforms: Sequence[Transform]) -> Policy:
    """Return a policy with its transforms, or the policy itself without transforms."""
    return policies.chain(policy, *transforms) if transforms else policy


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


def _value(key: str, word: str, context: Context) -> Any:
    if key == "graph":
        return context.graph(word)
    if key in OF_SKILLS:
        return context.weights(word)
    return _json_or_text(word)


def _json_or_text(word: str) -> Any:
    try:
        return orjson.loads(word)
    except orjson.JSONDecodeError:
        return word


def suggestion(name: str, among: Collection[str]) -> str:
    """Return a suggestion in brackets for an unknown name of a policy, or an empty text.

    >>> suggestion("uniform", ["stratified", "unimax"]), suggestion("unimx", ["stratified", "unimax"])
    (" (did you mean 'stratified'?)", " (did you mean 'unimax'?)")
    """
    other = OTHER_WORDS.get(name.lower())
    return f" (did you mean {other!r}?)" if other in among else did_you_mean(name, among)


def _called(functions: Mapping[str, Callable[..., Any]], name: str, arguments: Mapping[str, Any], kind: str) -> Any:
    """Call the function of a name. The arguments are checked first, because they come from a record or from a text."""
    if name not in functions:
        raise PolicyError(
            f"{shortened(name, 80)!r} is no {kind} of skillshard{suggestion(name, functions)}: give one of {', '.join(functions)}"
            f"{', or a file, FILE.json' if kind == 'policy' else ''}. In Python, give a {kind} of your own."
        )
    parameters = _arguments_of(functions, name)
    unknown = [argument for argument in arguments if argument not in parameters]
    missing = [key for key, own in parameters.items() if own.default is own.empty and key not in arguments]
    if unknown or missing:
        faults = [
            f"{word} {', '.join(names)}"
            for word, names in (("unknown:", with_suggestions(unknown, parameters)), ("missing:", missing))
            if names
        ]
        hint = f" A graph is a file, or the word {IDENTITY!r} for no help between skills." if "graph" in missing else ""
        raise PolicyError(
            f"{kind} {name} takes the arguments {', '.join(parameters) or 'none'} ({'; '.join(faults)}).{hint}"
        )
    values = {
        argument: _checked(name, argument, parameters[argument].annotation, own) for argument, own in arguments.items()
    }
    return functions[name](**values)


def _checked(name: str, argument: str, annotation: Any, value: Any) -> Any:
    """Return a value of JSON in the type of an argument, such as a whole number as a float."""
    # The functions of policies that hold policies check these arguments themselves.
    if isinstance(value, SkillGraph) or argument in ("stages", "outer", "inner", "groups"):
        return value
    try:
        # Strict, because true is no number. A whole number is a float all the same.
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
        return adapter.validate_python(value)
    except ValidationError as error:
        raise PolicyError(f"{argument} of {name} is {value!r}: {canonical.first_fault(error)}.") from error
