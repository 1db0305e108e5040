"""A pipeline file: the stages from a corpus to tags, shards, token counts and a graph, with the options of the command line.

    corpus: /data/corpus
    out: /data/work
    tag:
      metadata: {field: meta.category}
    shard: {holdout: 0.02}
    tokens: {tokenizer: /data/tokenizer.json}
    graph:
      learn: {method: leave-one-out, steps: 200}

The keys of a section are the options of the verb without the dashes, and the values are those of the command line. A list is an option
that is given several times. Each stage writes below `out` and reads what the stages before have written. The file is described by
schemas/pipeline-1.json. The names of the options belong to the command line, so the schema does not list them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillshard import canonical, places, storage
from skillshard.errors import PipelineError, did_you_mean
from skillshard.printable import shortened
from skillshard.yaml_text import from_yaml

Value = bool | int | float | str
Section = dict[str, Value | list[Value] | None]
"""Options of a verb without the dashes, and their values. An option without a value is left out."""

STAGES = ("tag", "regroup", "shard", "tokens", "graph")
"""Stages of a pipeline, in their order."""
MANIFESTS = {"tag": "tags.json", "regroup": "tags.json", "shard": "manifest.json", "tokens": "tokens.json"}
"""Stage -> the file that finishes its directory. A graph is a single file."""


class Pipeline(BaseModel):
    """Content of a pipeline file."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    corpus: Annotated[str | list[str], Field(description="Directories, globs or files of the corpus.")]
    out: Annotated[str, Field(description="Directory below which every stage writes.")]
    workers: Annotated[int | None, Field(description="Number of processes of each stage.")] = None
    ray_address: Annotated[str | None, Field(alias="ray-address", description="Ray cluster of each stage.")] = None
    tag: Annotated[
        dict[str, Section],
        Field(
            min_length=1,
            description="Way to tag -> options of 'skillshard tag WAY'. Two ways are crossed by 'regroup'.",
        ),
    ]
    regroup: Annotated[Section | None, Field(description="Options of 'skillshard regroup'.")] = None
    shard: Annotated[Section | None, Field(description="Options of 'skillshard shard'.")] = None
    tokens: Annotated[Section | None, Field(description="Options of 'skillshard tokens'.")] = None
    graph: Annotated[
        dict[str, Section] | None, Field(max_length=1, description="Options of 'skillshard graph learn'.")
    ] = None


@dataclass(frozen=True)
class Stage:
    """A stage as a command.

    Attributes:
        name: Name of the stage, from `STAGES`.
        verbs: Words of the verb, such as ("tag", "metadata").
        arguments: Inputs of the command, and the options that follow from the inputs.
        options: Options of the section.
        out: Place that the stage writes.
    """

    name: str
    verbs: tuple[str, ...]
    arguments: tuple[str, ...]
    options: Section
    out: str

    @property
    def title(self) -> str:
        return " ".join(self.verbs)

    def status(self) -> str:
        """Return "finished", "begun" or "to do", by the files on the disk."""
        if storage.exists(places.join(self.out, MANIFESTS[self.name]) if self.name in MANIFESTS else self.out):
            return "finished"
        traces = places.join(self.out, ".work") if self.name in MANIFESTS else f"{self.out.removesuffix('.json')}.runs"
        return "begun" if storage.names_in(traces) else "to do"


def read_pipeline(place: str | os.PathLike[str]) -> Pipeline:
    """Read a pipeline file.

    Raises:
        PipelineError: The file is no YAML, or a key or value does not fit the schema. An unknown key is named with the nearest known key.
    """
    content: Any = from_yaml(storage.read_bytes(place), place, error=PipelineError)
    if not isinstance(content, dict):
        raise PipelineError(f"{os.fspath(place)}: give a mapping of sections: corpus, out, {', '.join(STAGES)}.")
    # An empty section in YAML is null, and stands for a stage without options.
    content = {key: {} if value is None and key in STAGES else value for key, value in content.items()}
    for way in ("tag", "graph"):
        if isinstance(content.get(way), dict):
            content[way] = {verb: {} if options is None else options for verb, options in content[way].items()}
    known = [field.alias or name for name, field in Pipeline.model_fields.items()]
    refuse_unknown(content, known, where=os.fspath(place))
    _refuse_nested_values(content, os.fspath(place))
    try:
        return Pipeline.model_validate(content)
    except ValidationError as fault:
        raise PipelineError(
            f"{os.fspath(place)} does not fit schemas/pipeline-1.json: {canonical.first_fault(fault)}."
        ) from fault


def _refuse_nested_values(content: Mapping[str, Any], where: str) -> None:
    """Raise PipelineError for a value of an option that has no form on the command line. Other faults are left to the schema."""
    sections = {name: content.get(name) for name in STAGES if name not in ("tag", "graph")}
    for name in ("tag", "graph"):
        ways = content.get(name)
        sections |= {f"{name}.{way}": options for way, options in ways.items()} if isinstance(ways, dict) else {}
    for name, options in sections.items():
        for key, value in options.items() if isinstance(options, dict) else ():
            values = value if isinstance(value, list) else [value]
            if any(isinstance(item, dict | list) for item in values):
                raise PipelineError(
                    f"{where}: {name}.{key} is {shortened(orjson.dumps(value, default=str).decode())}, and the values of an option are those of the command line: a string, "
                    "a number, true or false, or a list of such values. A mapping of names stands in a file of its own, which the option names."
                )


def refuse_unknown(section: Mapping[Any, Any], known: list[str], *, where: str) -> None:
    """Raise PipelineError for a key that is not among the known keys. `where` names the file and the section."""
    for key in section:
        if key not in known:
            raise PipelineError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}. The keys: {', '.join(known)}."
            )


def stages_of(pipeline: Pipeline) -> list[Stage]:
    """Return the stages of a pipeline, each with the outputs of earlier stages as inputs.

    Raises:
        PipelineError: A stage lacks an input.

    >>> for stage in stages_of(Pipeline(corpus="c", out="w", tag={"metadata": {"field": "topic"}}, shard={}, tokens={})):
    ...     print(stage.title, *stage.arguments, "->", stage.out)
    tag metadata c -> w/tags
    shard c --tags w/tags -> w/shards
    tokens w/shards -> w/tokens
    """
    corpus = (pipeline.corpus,) if isinstance(pipeline.corpus, str) else tuple(pipeline.corpus)
    stages: list[Stage] = []

    def add(name: str, verbs: tuple[str, ...], arguments: tuple[str, ...], section: Section, default: str) -> str:
        out = section.get("out")
        place = places.join(pipeline.out, default) if out is None else str(out)
        options = {key: value for key, value in section.items() if key != "out"}
        stages.append(Stage(name, verbs, arguments, options, place))
        return place

    tagged = [
        add("tag", ("tag", way), corpus, section, "tags" if len(pipeline.tag) == 1 else f"tags-{way}")
        for way, section in pipeline.tag.items()
    ]
    if pipeline.regroup is not None:
        tagged = [add("regroup", ("regroup",), tuple(tagged), pipeline.regroup, "regrouped")]
    elif len(tagged) > 1:
        raise PipelineError(
            f"the corpus is tagged in {len(tagged)} ways ({', '.join(pipeline.tag)}), and the shards need one set of tags. Add a section "
            "'regroup', which crosses two sets."
        )
    if pipeline.shard is None and (pipeline.tokens is not None or pipeline.graph is not None):
        raise PipelineError("the stages 'tokens' and 'graph' read shards: add a section 'shard', which may be empty.")
    if pipeline.shard is not None:
        shards = add("shard", ("shard",), (*corpus, "--tags", tagged[0]), pipeline.shard, "shards")
        if pipeline.tokens is not None:
            add("tokens", ("tokens",), (shards,), pipeline.tokens, "tokens")
        for way, section in (pipeline.graph or {}).items():
            add("graph", ("graph", way), (shards,), section, "graph.json")
    return stages


def words_of(key: str, value: Value | list[Value] | None, option: str, opposite: str | None) -> list[str]:
    """Return the words of an option on the command line.

    Args:
        key: Key of the pipeline file, for messages.
        value: Value of the key.
        option: Option, with its dashes.
        opposite: Option that turns a switch off. None: the option is no switch with an opposite.

    >>> words_of("field", ["a", "b"], "--field", None), words_of("special-tokens", True, "--special-tokens", None)
    (['--field', 'a', '--field', 'b'], ['--special-tokens'])
    """
    if isinstance(value, list):
        return [word for part in value for word in words_of(key, part, option, opposite)]
    if value is None:
        return []
    if isinstance(value, bool):
        return [option] if value else [opposite] if opposite else []
    return [option, str(value)]
