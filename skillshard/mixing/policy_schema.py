"""The shape of a file of a policy, made from the functions of the policies, for schemas/policy-1.json.

`skillshard.mixing.policy_file` reads the file, and names the place of a fault better than a schema does. An editor checks and completes
the file by the schema.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, RootModel, create_model

from skillshard.mixing.named_policy import OF_SKILLS, POLICIES, TRANSFORMS

_CONFIG = ConfigDict(extra="forbid")
_Weights = dict[str, Annotated[float, Field(ge=0)]] | str
_ONE_OF_TWO: Any = {"oneOf": [{"required": ["policy"]}, {"required": ["weights"]}]}


_stage = create_model(
    "stage",
    __config__=ConfigDict(extra="forbid", json_schema_extra=_ONE_OF_TWO),
    __doc__="A stage: its end, and either its policy or its weights. Only the last stage has no end.",
    until=(Annotated[int | None, Field(ge=1, description="end of the stage, in the unit of the stages")], None),
    # A factory in place of a default, so that the schema allows to leave out the key and does not allow null.
    policy=(Annotated["AnyPolicy", Field(description="policy of the stage")], Field(default_factory=str)),
    weights=(
        Annotated[_Weights, Field(description="weights of the stage: training skill -> weight, or a file")],
        Field(default_factory=dict),
    ),
)
_DRAWS = (
    Annotated[int, Field(ge=1, description="number of draws of the run, which mix and compare know")],
    Field(default_factory=int),
)
_TYPES: dict[str, Any] = {
    "graph": str,
    "stages": Annotated[list[_stage], Field(min_length=1)],
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


_transforms: list[Any] = [
    create_model(name, __config__=_CONFIG, transform=(Literal[name], ...), **_fields(function))
    for name, function in TRANSFORMS.items()
]
_Transforms = Annotated[
    list[Union[(str, *_transforms)]],  # type: ignore[valid-type]
    Field(description="transforms after the policy, such as floor:least=0.01"),
]
_written = create_model(
    "written",
    __config__=_CONFIG,
    __doc__="A policy as NAME:KEY=VALUE, with transforms.",
    policy=(Annotated[str, Field(pattern="[:+]")], ...),
    transforms=(_Transforms, []),
)
_policies: list[Any] = [
    create_model(
        name,
        __config__=_CONFIG,
        policy=(Literal[name], ...),
        transforms=(_Transforms, []),
        **_fields(function),
    )
    for name, function in POLICIES.items()
]
PolicyFile = Union[(*_policies, _written)]
"""Content of a file of a policy."""
AnyPolicy = create_model("AnyPolicy", __base__=RootModel[Union[(str, *_policies, _written)]])  # type: ignore[valid-type]
for _model in (_stage, *_policies, AnyPolicy):
    _model.model_rebuild(force=True, _types_namespace={"AnyPolicy": AnyPolicy})
