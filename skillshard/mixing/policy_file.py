"""Policies in a file of JSON: every policy, also `stages` and `by_group`, which hold other policies.

    {
      "policy": "stages",
      "unit": "steps",
      "stages": [
        {"until": 2000, "policy": "proportional"},
        {"until": 4000, "policy": {"policy": "skill_it", "graph": "graph.json", "eta": 0.5}},
        {"weights": {"add": 0.7, "carry": 0.3}}
      ],
      "transforms": ["floor:least=0.01"]
    }

An object names a policy by the key "policy". The other keys are the arguments of the function in `skillshard.policies`. In place of an object,
a policy may be the text NAME:KEY=VALUE. Files are named relative to the directory of the policy file. The file is described by
schemas/policy-1.json.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from skillshard import canonical, places, storage
from skillshard.errors import PolicyError, SkillshardError, did_you_mean
from skillshard.mixing.named_policy import (
    OF_SKILLS,
    Context,
    called_policy,
    called_transform,
    chained,
    divided,
    policy_of_text,
    transform_of_text,
)
from skillshard.policies.policy import Policy, Transform

MOST_NESTED = 8
"""Largest depth of policies inside policies. Stages of groups of stages have depth 3, so a deeper file is most likely a mistake of a program."""
# NAME, NAME:KEY=VALUE or NAME+TRANSFORM. A URI has two slashes after its scheme.
_NAME_FORM = re.compile(r"\w+(:(?!//)|\+|$)")


def read_policy(
    source: str | os.PathLike[str], *, skills: Sequence[str] | None = None, unit: str | None = None
) -> Policy:
    """Read a policy from a file of JSON. Every command that takes a policy takes the same file.

    Args:
        source: File of JSON whose name ends with .json, see schemas/policy-1.json. A text that begins with { is read as JSON, and a
            text such as "loss_order:eta=0.5+floor:least=0.01" is a policy by its name.
        skills: Training skills. Graphs are reduced to the rows of these skills. None: graphs are not reduced.
        unit: Unit of the weights in the run, "samples", "tokens" or "blocks". None: files with weights of any unit are taken.

    Raises:
        PolicyError: The file holds no policy, or names a file of weights of another unit. The message names the place in the file.
        StorageError: The file cannot be read, or is not JSON.
        GraphError: The file of a graph holds no graph.

    >>> read_policy('{"policy": "stages", "stages": [{"until": 200, "policy": "proportional"}, {"policy": "loss_order:eta=0.5"}]}').name
    'stages'
    >>> read_policy('{"policy": "stages", "stages": [{"untill": 200, "policy": "proportional"}]}')
    Traceback (most recent call last):
    skillshard.errors.PolicyError: the JSON of the policy, stages.0: unknown key 'untill' (did you mean 'until'?). The keys: until, policy, weights.
    """
    return policy_given(places.text_of(source), Context(skills=skills, unit=unit))


def policy_given(text: str, context: Context | None = None) -> Policy:
    """Make a policy from a text of a user: a file, JSON, or NAME:KEY=VALUE.

    Args:
        text: As in `read_policy`. Transforms may follow a file, as in `policy.json+floor:least=0.01`.
        context: Skills and defaults. None: graphs are not reduced.

    Raises:
        PolicyError, StorageError, GraphError: As in `read_policy`.
    """
    context = context or Context()
    if not is_in_json(text):
        return policy_of_text(text, context)
    if text.lstrip().startswith("{"):
        return _File("the JSON of the policy", context).policy_of_file(canonical.from_json(text.encode(), "the policy"))
    file, transforms = divided(text)
    reader = _File(file, replace(context, folder=os.path.dirname(file)))
    policy = reader.policy_of_file(storage.read_json(file))
    return chained(policy, [transform_of_text(transform) for transform in transforms])


def is_in_json(text: str) -> bool:
    """Return whether a text is JSON or the name of a file of JSON, in place of NAME:KEY=VALUE.

    >>> is_in_json("policy.json"), is_in_json("s3://bucket/policy.json"), is_in_json("skill_it:graph.json,eta=1")
    (True, True, False)
    """
    file = divided(text)[0]
    return text.lstrip().startswith("{") or (file.endswith(".json") and not _NAME_FORM.match(file))


def is_by_name(text: str) -> bool:
    """Return whether a text is the name of a policy alone, without arguments and transforms.

    >>> is_by_name("stratified"), is_by_name("temperature:tau=2"), is_by_name("policy.json")
    (True, False, False)
    """
    return re.fullmatch(r"[\w-]+", text) is not None


class _File:
    """The reader of a file of a policy. A place is the path of keys and numbers in the JSON, such as "stages.0.policy".

    Args:
        name: Name of the file, for messages.
        context: Skills, directory and defaults.
    """

    def __init__(self, name: str, context: Context) -> None:
        self.name = name
        self.context = context

    def policy_of_file(self, value: Any) -> Policy:
        if not isinstance(value, dict):
            raise self._error("", f'{_kind(value)} is no policy: give an object with the key "policy"')
        return self._policy(value, "", self.context, 1)

    def _error(self, place: str, sentence: str) -> PolicyError:
        return PolicyError(f"{self.name}{place and f', {place}'}: {sentence.rstrip('.')}.")

    def _policy(self, value: Any, place: str, context: Context, depth: int) -> Policy:
        """Make a policy from a text or an object."""
        if depth > MOST_NESTED:
            raise self._error(place, f"policies are nested deeper than {MOST_NESTED} levels: write a flatter policy")
        if isinstance(value, str):
            try:
                return policy_of_text(value, context)
            except SkillshardError as error:
                raise self._error(place, str(error)) from error
        if not isinstance(value, dict):
            raise self._error(
                place, f'{_kind(value)} is no policy: give NAME:KEY=VALUE, or an object with the key "policy"'
            )
        name = value.get("policy")
        if not isinstance(name, str):
            fault = (
                f'"policy" is {_kind(name)}' if "policy" in value else 'an object of a policy needs the key "policy"'
            )
            near = [f", and the object has {key!r}{did_you_mean(key, ['policy'])}" for key in value]
            hint = next((words for words in near if words.endswith("?)")), "") if "policy" not in value else ""
            raise self._error(place, f"{fault}{hint}: give the name of a policy")
        values = {key: own for key, own in value.items() if key not in ("policy", "transforms")}
        transforms = self._transforms(value.get("transforms", []), _join(place, "transforms"))
        if not is_by_name(name):
            self._refuse_unknown(values, ("policy", "transforms"), place)
            return chained(self._policy(name, _join(place, "policy"), context, depth), transforms)
        arguments = self._arguments(name, values, place, context, depth)
        try:
            return chained(called_policy(name, arguments, context), transforms)
        except SkillshardError as error:
            raise self._error(place, str(error)) from error

    def _arguments(
        self, name: str, values: Mapping[str, Any], place: str, context: Context, depth: int
    ) -> dict[str, Any]:
        """Return the arguments of a policy, with graphs, weights and inner policies in place of their JSON."""
        arguments = {key: self._argument(key, value, _join(place, key), context) for key, value in values.items()}
        if name == "stages" and "stages" in values:
            arguments["stages"] = self._stages(values["stages"], _join(place, "stages"), context, depth)
        if name == "by_group":
            groups = values.get("groups")
            if "groups" in values:
                self._check_groups(groups, _join(place, "groups"))
            if "outer" in values:
                arguments["outer"] = self._policy(
                    values["outer"], _join(place, "outer"), context.of_groups(groups), depth + 1
                )
            if "inner" in values:
                arguments["inner"] = self._inner(values["inner"], groups, _join(place, "inner"), context, depth)
        return arguments

    def _argument(self, key: str, value: Any, place: str, context: Context) -> Any:
        if not isinstance(value, str) or key not in ("graph", *OF_SKILLS):
            if key == "graph":
                raise self._error(place, f'{_kind(value)} is no graph: give the file of a graph, or "identity"')
            return context.present(value) if key in OF_SKILLS and isinstance(value, dict) else value
        try:
            return context.graph(value) if key == "graph" else context.weights(value)
        except SkillshardError as error:
            raise self._error(place, str(error)) from error

    def _stages(self, value: Any, place: str, context: Context, depth: int) -> list[tuple[Any, Any]]:
        if not isinstance(value, list) or not value:
            raise self._error(
                place,
                f'{_kind(value) if value != [] else "an empty list"} is no list of stages: give [{{"until": 2000, "policy": ...}}, ...]',
            )
        stages = [self._stage(stage, _join(place, number), context, depth) for number, stage in enumerate(value)]
        self._check_last([end for end, _ in stages], place)
        return stages

    def _check_last(self, ends: list[Any], place: str) -> None:
        """Refuse a last stage with an end, and an earlier stage without an end."""
        *before, last = ends
        if None in before:
            raise self._error(
                _join(place, before.index(None)),
                'the stage has no "until", and only the last stage has no end: give a whole number',
            )
        if last is not None:
            raise self._error(
                _join(_join(place, len(before)), "until"),
                f'the last stage ends at {last}, and a stream has no end: leave out "until" in the last stage, or add a stage without "until"',
            )

    def _stage(self, value: Any, place: str, context: Context, depth: int) -> tuple[Any, Any]:
        if not isinstance(value, dict):
            raise self._error(place, f'{_kind(value)} is no stage: give {{"until": 2000, "policy": ...}}')
        self._refuse_unknown(value, ("until", "policy", "weights"), place)
        if ("policy" in value) == ("weights" in value):
            raise self._error(place, 'a stage has either "policy" or "weights": give one of the two')
        end = value.get("until")
        if end is not None and (isinstance(end, bool) or not isinstance(end, int | float)):
            raise self._error(
                _join(place, "until"),
                f'{_kind(end)} ends no stage: give a whole number, and leave out "until" in the last stage',
            )
        if "policy" in value:
            return end, self._policy(value["policy"], _join(place, "policy"), context, depth + 1)
        weights = self._argument("weights", value["weights"], _join(place, "weights"), context)
        if not isinstance(weights, dict):
            raise self._error(
                _join(place, "weights"),
                f"{_kind(weights)} holds no weights: give an object of skills and numbers, or a file",
            )
        try:
            return end, called_policy("fixed", {"weights": weights}, context)
        except PolicyError as error:
            raise self._error(_join(place, "weights"), str(error)) from error

    def _check_groups(self, groups: Any, place: str) -> None:
        if groups == "prefix":
            return
        if not isinstance(groups, dict):
            raise self._error(
                place, f'{_kind(groups)} names no groups: give {{"GROUP": ["SKILL", ...], ...}}, or "prefix"'
            )
        for group, skills in groups.items():
            if not isinstance(skills, list) or not all(isinstance(skill, str) for skill in skills):
                raise self._error(_join(place, group), 'a group is a list of skills: give ["SKILL", ...]')

    def _inner(self, value: Any, groups: Any, place: str, context: Context, depth: int) -> Policy | dict[str, Policy]:
        if isinstance(value, dict) and "policy" not in value:
            return {
                group: self._policy(own, _join(place, group), context.of_group(groups, group), depth + 1)
                for group, own in value.items()
            }
        return self._policy(value, place, context.of_group(groups, None), depth + 1)

    def _transforms(self, value: Any, place: str) -> list[Transform]:
        if not isinstance(value, list):
            raise self._error(place, f'{_kind(value)} is no list of transforms: give ["floor:least=0.01", ...]')
        return [self._transform(own, _join(place, number)) for number, own in enumerate(value)]

    def _transform(self, value: Any, place: str) -> Transform:
        try:
            if isinstance(value, str):
                return transform_of_text(value)
            if isinstance(value, dict) and isinstance(value.get("transform"), str):
                return called_transform(
                    value["transform"], {key: own for key, own in value.items() if key != "transform"}
                )
        except PolicyError as error:
            raise self._error(place, str(error)) from error
        raise self._error(
            place,
            'a transform is a text or an object: give "floor:least=0.01", or {"transform": "floor", "least": 0.01}',
        )

    def _refuse_unknown(self, value: Mapping[str, Any], known: Collection[str], place: str) -> None:
        for key in value:
            if key not in known:
                raise self._error(place, f"unknown key {key!r}{did_you_mean(key, known)}. The keys: {', '.join(known)}")


def _join(place: str, key: str | int) -> str:
    return f"{place}.{key}" if place else str(key)


def _kind(value: Any) -> str:
    """Name the type of a JSON value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
