"""The shape of a file of a policy, made from the functions of the policies, for schemas/policy-1.json.

`skillshard.mixing.policy_file` reads the file, and names the place of a fault better than a schema does. An editor checks and completes
the file by the schema.
"""

import inspect
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, RootModel, create_model

from skillshard.mixing.named_policy import OF_SKILLS, POLICIES, TRANSFORMS

# The checker of types knows no types that a loop makes, so these types are values of type Any.
_list: Any = list
_Weights: Any = dict[str, Annotated[float, Field(ge=0)]] | str
_ONE_OF_TWO: Any = {"oneOf": [{"required": ["policy"]}, {"required": ["weights"]}]}


def _model(name: str, about: str | None, fields: dict[str, Any], extra: Any = None) -> Any:
    """Make the model of an object of JSON with these keys and no others."""
    return create_model(name, __config__=ConfigDict(extra="forbid", json_schema_extra=extra), __doc__=about, **fields)


_stage = _model(
    "stage",
    "A stage: its end, and either its policy or its weights. Only the last stage has no end.",
    {
        "until": (Annotated[int | None, Field(ge=1, description="end of the stage, in the unit of the stages")], None),
        # A factory in place of a default, so that the schema allows to leave out the key and does not allow null.
        "policy": (Annotated["AnyPolicy", Field(description="policy of the stage")], Field(default_factory=str)),
        "weights": (
            Annotated[_Weights, Field(description="weights of the stage: training skill -> weight, or a file")],
            Field(default_factory=dict),
        ),
    },
    _ONE_OF_TWO,
)
_DRAWS: Any = (
    Annotated[int, Field(ge=1, description="number of draws of the run, which mix and compare know")],
    Field(default_factory=int),
)
_TYPES: dict[str, Any] = {
    "graph": str,
    "stages": Annotated[_list[_stage], Field(min_length=1)],
    "outer": "AnyPolicy",
    "inner": Union["AnyPolicy", dict[str, "AnyPolicy"]],
    "groups": dict[str, list[str]] | Literal["prefix"],
    **dict.fromkeys(OF_SKILLS, _Weights),
}
"""Argument of a function -> its type in JSON, where the two types differ."""


def _fields(function: Callable[..., Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, parameter in inspect.signature(function).parameters.items():
        kind = _TYPES.get(key, parameter.annotation)
        if key == "draws":
            fields[key] = _DRAWS
        elif parameter.default is parameter.empty:
            fields[key] = (kind, ...)
        else:
            fields[key] = (kind | None if parameter.default is None else kind, parameter.default)
    return fields


_transforms = [
    _model(name, None, {"transform": (Literal[name], ...), **_fields(function)})
    for name, function in TRANSFORMS.items()
]
_Transforms: Any = Annotated[
    _list[reduce(or_, _transforms, str)], Field(description="transforms after the policy, such as floor:least=0.01")
]
_written = _model(
    "written",
    "A policy as NAME:KEY=VALUE, with transforms.",
    {"policy": (Annotated[str, Field(pattern="[:+]")], ...), "transforms": (_Transforms, [])},
)
_policies = [
    _model(name, None, {"policy": (Literal[name], ...), "transforms": (_Transforms, []), **_fields(function)})
    for name, function in POLICIES.items()
]
PolicyFile: Any = reduce(or_, [*_policies, _written])
"""Content of a file of a policy."""
_root: Any = RootModel
AnyPolicy: Any = create_model("AnyPolicy", __base__=_root[reduce(or_, [*_policies, _written], str)])
for _incomplete in (_stage, *_policies, AnyPolicy):
    _incomplete.model_rebuild(force=True, _types_namespace={"AnyPolicy": AnyPolicy})
