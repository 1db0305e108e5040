"""Arguments and options that several verbs share, and the parsing of their values."""

import functools
import inspect
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

import typer

from skillshard.cli.words import Running, in_options
from skillshard.errors import SkillshardError

if TYPE_CHECKING:
    from skillshard.execution import Backend
    from skillshard.proxy.device import Compute
    from skillshard.proxy.reading_choice import ReadingChoice
    from skillshard.shards.read import ShardSet

WHAT, HOW, READING, TEXTS, WHERE = (
    "What",
    "How",
    "How the corpus is read",
    "How texts are read",
    "Where it runs",
)
"""Panels of a verb's help."""
EDGES, TRAINING, STREAM = "Edges", "Trials in detail", "Stream"
DETAILS = (READING, TEXTS, EDGES, TRAINING, STREAM, WHERE)
"""Panels of a verb with many options that only `--help-all` shows, so that the help fits a screen."""
# About 50 lines at 100 columns. A verb with fewer options shows all of them.
MANY_OPTIONS = 13

# Decimal and binary multiples, as in the names of disk sizes (MB) and memory sizes (MiB).
_BYTES_OF = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}


# ------------------------------------------------------------------------------------------------------------ values


def parse_size(text: str, option: str | None = None) -> int:
    """Parse a size in bytes. A usage error names `option`.

    >>> parse_size("8MB"), parse_size("64 MiB"), parse_size("1000")
    (8000000, 67108864, 1000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    num_bytes = int(float(match[1]) * _BYTES_OF.get(match[2].upper(), 0)) if match else 0
    if num_bytes < 1:
        raise typer.BadParameter(
            f"{text!r} is no size: give a positive number and a unit, such as 8MB, 64MiB or 1GB.", param_hint=option
        )
    return num_bytes


def parse_proportions(text: str) -> Literal["natural", "uniform"] | tuple[int, ...]:
    """Parse the proportions of a synthetic corpus.

    >>> parse_proportions("natural"), parse_proportions("1:2:4")
    ('natural', (1, 2, 4))
    """
    if text in ("natural", "uniform"):
        return text  # type: ignore[return-value]  # "natural" or "uniform"
    if not re.fullmatch(r"\d+(:\d+)*", text):
        raise typer.BadParameter(
            f"{text!r}: give 'natural', 'uniform' or numbers such as 1:2:4.", param_hint="--proportions"
        )
    return tuple(int(number) for number in text.split(":"))


def parse_duration(text: str, option: str | None = None) -> float:
    """Parse a duration into seconds. A usage error names `option`.

    >>> parse_duration("90s"), parse_duration("30m"), parse_duration("1.5h")
    (90.0, 1800.0, 5400.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", text)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise typer.BadParameter(
            f"{text!r} is no duration: give a number and s, m or h, such as 90s or 30m.", param_hint=option
        )
    return seconds


def parse_skills(text: str) -> int | Literal["auto"]:
    """Parse a number of skills.

    >>> parse_skills("auto"), parse_skills("9")
    ('auto', 9)
    """
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"-?\d+", text):
        raise typer.BadParameter(f"{text!r}: give a number, or 'auto'.", param_hint="--skills")
    return int(text)


def parse_range(text: str) -> tuple[int, int]:
    """Parse the smallest and the largest number of skills to try.

    >>> parse_range("2:64")
    (2, 64)
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        raise typer.BadParameter(f"{text!r}: give the least and the most, such as 2:64.", param_hint="--skills-range")
    return int(match[1]), int(match[2])


# ------------------------------------------------------------------------------------------------------------ places


def path_on_all_nodes(text: str) -> Path:
    """Parse a path that every node of a Ray cluster must see under the same name."""
    return Path(text)


def place_on_all_nodes(text: str) -> str:
    """Parse a path or URI that every node of a Ray cluster must see under the same name."""
    return text


def proxy_on_all_nodes(text: str) -> str:
    """Parse the name of a built-in proxy, or a directory that every node must see under the same name."""
    return text


def parse_out(text: str) -> Path:
    """Parse a directory to write to: on this machine, or shared by all nodes."""
    if "://" in text:
        raise typer.BadParameter(
            f"{text} is remote: this version reads remote places and writes to directories. Write to a directory, and copy the directory "
            f"to the store with the store's own tool (manifest.json last).",
            param_hint="--out",
        )
    return Path(text)


_ON_ALL_NODES = (path_on_all_nodes, place_on_all_nodes, proxy_on_all_nodes, parse_out)


def names_on_all_nodes(verb: Callable[..., None]) -> list[str]:
    """List the arguments of a verb that are paths which must be absolute in a Ray job. Their parsers mark them."""
    hints = get_type_hints(verb, include_extras=True)
    return [
        name
        for name, hint in hints.items()
        if any(getattr(info, "parser", None) in _ON_ALL_NODES for info in getattr(hint, "__metadata__", ()))
    ]


CorpusPlaces = Annotated[
    list[str],
    typer.Argument(
        parser=place_on_all_nodes,
        metavar="CORPUS",
        help="Directories, globs or files (jsonl, jsonl.gz, jsonl.zst, parquet, arrow, tar).",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        parser=parse_out,
        metavar="DIRECTORY",
        help="Directory to write. After a stop, the same command goes on.",
    ),
]
Artefact = Annotated[
    str,
    typer.Argument(
        metavar="ARTEFACT",
        help="Directory of tags, shards, token counts or a run's ledger. Shards can also be a URI (s3://, gs://, http://).",
    ),
]
ShardsPlace = Annotated[
    str,
    typer.Argument(
        parser=place_on_all_nodes,
        metavar="SHARDS",
        help="Shard set: a directory or a URI (s3://, gs://, http://).",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Write the facts as one JSON object (schemas/inspect-1.json) instead of tables."),
]
ChosenSkills = Annotated[
    list[str] | None,
    typer.Option(
        "--skills",
        metavar="A,B",
        help="Skills of the shard set to use. Repeat the option for a name that holds a comma.",
        show_default="all",
        rich_help_panel=WHAT,
    ),
]


# ------------------------------------------------------------------------------------------------------------ groups


@dataclass(frozen=True)
class Reading:
    """The options on how a corpus is read."""

    on_bad_sample: Annotated[
        str,
        typer.Option(
            "--on-bad-sample",
            metavar="stop|set-aside",
            help="Action on a bad sample: stop the command, or move the sample to OUT/rejected with the reason.",
            rich_help_panel=READING,
        ),
    ] = "stop"
    max_sample_bytes: Annotated[
        str,
        typer.Option(
            "--max-sample-bytes",
            metavar="SIZE",
            help="Largest size of a sample, text and metadata together.",
            rich_help_panel=READING,
        ),
    ] = "16MiB"
    id_field: Annotated[
        str,
        typer.Option(
            "--id-field",
            metavar="NAME",
            help="Field of the id. Give '' if the corpus has no ids.",
            rich_help_panel=READING,
        ),
    ] = "id"
    text_field: Annotated[
        str, typer.Option("--text-field", metavar="NAME", help="Field of the text.", rich_help_panel=READING)
    ] = "text"
    partition_bytes: Annotated[
        str,
        typer.Option(
            "--partition-size",
            metavar="SIZE",
            help="Size of a task, in bytes of the corpus.",
            rich_help_panel=READING,
        ),
    ] = "64MiB"


Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Number of processes.",
        show_default="all CPUs",
        rich_help_panel=WHERE,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="Ray cluster: 'local', 'auto' or an address.",
        show_default="a local process pool",
        rich_help_panel=WHERE,
    ),
]


@dataclass(frozen=True)
class Nodes:
    """The options on the processes that run tasks."""

    workers: Workers = None
    ray_address: RayAddress = None

    @property
    def are_local(self) -> bool:
        """Whether all tasks run on this machine, in a process pool."""
        return self.ray_address is None

    def backend(self) -> "Backend":
        """Make the backend. `--workers` for a cluster that runs already is a usage error."""
        from skillshard.execution import Backend

        if self.ray_address not in (None, "local"):
            Verb.given.refuse(
                ["workers"], f"has no meaning with --ray-address {self.ray_address}: the cluster's CPUs are used"
            )
        return Backend(self.workers, self.ray_address)


@dataclass(frozen=True)
class Cache:
    """The options on how remote shards are kept."""

    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            parser=path_on_all_nodes,
            metavar="DIRECTORY",
            help="Directory that keeps remote shards.",
            show_default="fetched shards are not kept",
            rich_help_panel=WHERE,
        ),
    ] = None
    cache_bytes: Annotated[
        str | None,
        typer.Option(
            "--cache-size",
            metavar="SIZE",
            help="Largest size of the cache, such as 50GB.",
            show_default="the free disk",
            rich_help_panel=WHERE,
        ),
    ] = None

    def open(self, shards: str) -> "ShardSet":
        """Open a shard set with this cache. A size without a cache is a usage error."""
        from skillshard.shards.read import ShardSet

        if self.cache_bytes is None:
            return ShardSet.open(shards, cache=self.cache)
        if self.cache is None:
            raise typer.BadParameter(
                "the option limits the size of the cache: give --cache too.", param_hint="--cache-size"
            )
        return ShardSet.open(shards, cache=self.cache, cache_bytes=parse_size(self.cache_bytes, "--cache-size"))


@dataclass(frozen=True)
class ProxyTexts:
    """The options on the proxy and on how the proxy reads texts."""

    proxy: Annotated[
        str,
        typer.Option(
            "--proxy",
            parser=proxy_on_all_nodes,
            metavar="MODEL",
            help="Model to train: 'tiny', 'small', or the directory of a Hugging Face causal model and its tokenizer.",
            rich_help_panel=HOW,
        ),
    ] = "tiny"
    window: Annotated[
        int,
        typer.Option(
            "--window",
            metavar="N",
            min=1,
            help="Number of tokens read of a text. A built-in proxy reads bytes.",
            rich_help_panel=TEXTS,
        ),
    ] = 128
    segment_at: Annotated[
        str | None,
        typer.Option(
            "--segment-at",
            metavar="CHARS",
            help="Characters that end a segment. A segment takes one position, and only the answer is predicted.",
            rich_help_panel=TEXTS,
        ),
    ] = None
    answer_after: Annotated[
        str | None,
        typer.Option(
            "--answer-after",
            metavar="TEXT",
            help="String before the answer. Only the text after the last occurrence is predicted.",
            rich_help_panel=TEXTS,
        ),
    ] = None
    prompt_field: Annotated[
        str | None,
        typer.Option(
            "--prompt-field",
            metavar="PATH",
            help="Metadata field with the length of the prompt in characters. The prompt is not predicted.",
            rich_help_panel=TEXTS,
        ),
    ] = None
    unordered: Annotated[
        bool, typer.Option("--unordered", help="Ignore the order of the segments.", rich_help_panel=TEXTS)
    ] = False

    def choice(self) -> "ReadingChoice":
        """Make the library's choice. Options that do not go together are a usage error."""
        from skillshard.proxy.reading_choice import ReadingChoice

        if self.segment_at is not None:
            Verb.given.refuse(["window"], "counts tokens of a text, and with --segment-at a text is read as segments")
        else:
            Verb.given.refuse(["unordered"], "is about the order of segments: give --segment-at")
        return ReadingChoice(
            self.proxy,
            self.window,
            self.segment_at,
            self.answer_after,
            self.prompt_field,
            ordered=not self.unordered,
        )


@dataclass(frozen=True)
class ProxyDevice:
    """The options on the device that trains the proxy."""

    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Device of the trainings: auto, cpu, cuda or cuda:1.",
            rich_help_panel=WHERE,
        ),
    ] = "auto"
    precision: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help="Data type of matrix products: auto, float32 or bfloat16.",
            rich_help_panel=WHERE,
        ),
    ] = "auto"

    def compute(self) -> "Compute":
        """Make the library's description of the device."""
        from skillshard.proxy.device import Compute

        return Compute(self.device, self.precision)


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of each argument that is a group, a dataclass with an option for each field.

    Typer reads the options of a verb from its signature. The signature of the result has the fields in place of the group, and a call
    makes the group from the fields.

    >>> def shout(words: str, nodes: Nodes) -> None:
    ...     print(words.upper(), nodes)
    >>> list(inspect.signature(grouped(shout)).parameters)
    ['words', 'workers', 'ray_address']
    >>> grouped(shout)(words="tag", workers=2, ray_address=None)
    TAG Nodes(workers=2, ray_address=None)
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name in groups:
            parameters += _options_of(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY))

    @functools.wraps(verb)
    def with_groups(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        verb(**values)

    del with_groups.__wrapped__  # readers of the signature must not look behind this function
    with_groups.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_groups.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_groups


def _options_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


# ------------------------------------------------------------------------------------------------------------- verbs


class Given:
    """The options that stand on the command line, also the options that were given their default value."""

    def __init__(self, context: Any) -> None:
        self._options: dict[str, str] = {}
        for parameter in context.command.params:
            source = None if parameter.name is None else context.get_parameter_source(parameter.name)
            if source is not None and source.name == "COMMANDLINE":
                self._options[str(parameter.name)] = parameter.opts[0]

    def __contains__(self, name: str) -> bool:
        return name in self._options

    def refuse(self, names: Collection[str], why: str) -> None:
        """Raise a usage error for the first given option among `names`."""
        for name, option in self._options.items():
            if name in names:
                raise typer.BadParameter(f"{option} {why}.", param_hint=option)


HELP_ALL = "--help-all"


def _panel_of(parameter: Any) -> str:
    return getattr(parameter, "rich_help_panel", None) or ""


class Verb(typer.core.TyperCommand):
    """A verb that knows which options were given, and whose help ends with examples.

    `epilog` holds the examples, a command a line. The `--help` of a verb with many options leaves out the panels
    of `DETAILS`, and `--help-all` shows every option.
    """

    given: ClassVar[Given]

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if HELP_ALL in args[: args.index("--") if "--" in args else None]:
            ctx.meta[HELP_ALL], args = True, ["--help"]
        # A shell expands the home directory in `--out ~/tags` and not in `--out=~/tags`.
        return super().parse_args(ctx, [re.sub(r"^(--[\w-]+=)~(?=/|$)", _with_home, word) for word in args])

    def invoke(self, ctx: Any) -> Any:
        Verb.given = Given(ctx)
        Running.begin(ctx.command.params)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would end with exit code 1, as for an error.
            end_quietly()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # Typer joins the lines of an epilog to a paragraph. Examples must stay one command a line.
        examples, self.epilog = self.epilog, None
        is_long = len(self.params) > MANY_OPTIONS and not ctx.meta.get(HELP_ALL)
        details = [parameter for parameter in self.params if is_long and _panel_of(parameter) in DETAILS]
        for parameter in details:
            parameter.hidden = True  # type: ignore[attr-defined]  # every option has the attribute
        super().format_help(ctx, formatter)
        for parameter in details:
            parameter.hidden = False  # type: ignore[attr-defined]
        self.epilog = examples
        if details:
            panels = ", ".join(dict.fromkeys(map(_panel_of, details)))
            typer.echo(f" More options ({panels}):\n   {ctx.command_path} {HELP_ALL}\n")
        if examples:
            typer.echo(
                " Examples:\n" + "\n".join(f"   {line.strip()}" for line in examples.strip().splitlines()) + "\n"
            )


def _with_home(match: re.Match[str]) -> str:
    return match[1] + str(Path.home())


def end_quietly() -> None:
    """End the process after the reader of the output has gone. The null device takes the rest, so Python prints no complaint."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def open_corpus(places: list[str]) -> Any:
    """Open the corpus at the given places. Notes on stderr say which files are left out, before the corpus is read."""
    from skillshard.corpus import Corpus

    corpus = Corpus.open(places)
    for note in corpus.notes():
        typer.echo(f"note: {in_options(note)}", err=True)
    return corpus


def split_names(values: Sequence[str], known: Collection[str]) -> list[str]:
    """Split the values of a repeated option into names. A value that is a known name stays whole, others split at commas.

    >>> split_names(["add,carry", "question, answer"], ("add", "carry", "question, answer"))
    ['add', 'carry', 'question, answer']
    """
    names = set(known)
    return [name for value in values for name in ([value] if value in names else _parts(value))]


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


def choose_skills(shards: "ShardSet", values: Sequence[str] | None) -> "ShardSet":
    """Reduce a shard set to the skills that `--skills` names. Without the option all skills stay."""
    if not values:
        return shards
    return shards.choose(split_names(values, [skill.name for skill in shards.manifest_skills]))


def write_json(facts: Any) -> None:
    """Write the facts of an artefact (`skillshard.report.facts`) to standard output, and nothing else."""
    typer.echo(facts.to_json().decode(), nl=False)


def write_new(out: Path, write: Callable[[Path], None]) -> None:
    """Write the file of an option --out. An existing file must hold the same bytes.

    Args:
        out: path of the file.
        write: function that writes a file at a path.

    Raises:
        SkillshardError: `out` is a directory, or a file with other content.
    """
    if out.is_dir():
        raise SkillshardError(f"{out} is a directory: give --out a file to write.")
    if not out.exists():
        write(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / "new"
        write(new)
        if new.read_bytes() != out.read_bytes():
            raise SkillshardError(f"{out} exists and holds something else. Choose another --out, or remove the file.")
