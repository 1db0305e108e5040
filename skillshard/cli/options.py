"""Arguments and options that several verbs share, and how their values are parsed."""

import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, get_type_hints

import typer

from skillshard.cli.words import Running, in_options
from skillshard.errors import SkillshardError

if TYPE_CHECKING:
    from skillshard.shards.read import ShardSet

WHAT, HOW, READING, WHERE = "What", "How", "How the corpus is read", "Where it runs"
"""Panels of a verb's help."""

_UNITS = {
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


def parse_size(text: str, option: str | None = None) -> int:
    """A size in bytes; `option` is named where it is none.

    >>> parse_size("8MB"), parse_size("64 MiB"), parse_size("1000")
    (8000000, 67108864, 1000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    num_bytes = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if num_bytes < 1:
        raise typer.BadParameter(
            f"{text!r} is no size: give a positive number and a unit, such as 8MB, 64MiB or 1GB.", param_hint=option
        )
    return num_bytes


def parse_cache_size(cache: Path | None, cache_bytes: str | None) -> int | None:
    """The limit of the cache in bytes, None for none; a usage error where nothing is cached."""
    if cache_bytes is None:
        return None
    if cache is None:
        raise typer.BadParameter("it limits what --cache keeps: give --cache too.", param_hint="--cache-size")
    return parse_size(cache_bytes, "--cache-size")


def parse_proportions(text: str) -> Literal["natural", "uniform"] | tuple[int, ...]:
    """
    >>> parse_proportions("natural"), parse_proportions("1:2:4")
    ('natural', (1, 2, 4))
    """
    if text in ("natural", "uniform"):
        return text  # type: ignore[return-value]  # one of the two
    if not re.fullmatch(r"\d+(:\d+)*", text):
        raise typer.BadParameter(
            f"{text!r}: give 'natural', 'uniform' or numbers such as 1:2:4.", param_hint="--proportions"
        )
    return tuple(int(number) for number in text.split(":"))


def parse_duration(text: str, option: str | None = None) -> float:
    """Seconds; `option` is named where it is no duration.

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


def path_on_all_nodes(text: str) -> Path:
    """A path that every node of a Ray cluster must see under the same name."""
    return Path(text)


def place_on_all_nodes(text: str) -> str:
    """A path or URI that every node of a Ray cluster must see under the same name."""
    return text


def proxy_on_all_nodes(text: str) -> str:
    """The name of a built-in proxy, or a directory that every node of a Ray cluster must see under the same name."""
    return text


CorpusPlaces = Annotated[
    list[str],
    typer.Argument(
        parser=place_on_all_nodes,
        metavar="CORPUS",
        help="Directories, globs or files (jsonl, jsonl.gz, jsonl.zst, parquet, arrow, tar).",
    ),
]


def parse_out(text: str) -> Path:
    """A directory to write to: on this machine, or one that all nodes share."""
    if "://" in text:
        raise typer.BadParameter(
            f"{text} is remote: this version reads remote places and writes to directories. Write to a directory, and copy it there "
            f"with the store's own tool (manifest.json last).",
            param_hint="--out",
        )
    return Path(text)


Out = Annotated[
    Path,
    typer.Option(
        "--out",
        parser=parse_out,
        metavar="DIRECTORY",
        help="Directory to write; the same command goes on after a stop.",
    ),
]
_ON_ALL_NODES = (path_on_all_nodes, place_on_all_nodes, proxy_on_all_nodes, parse_out)


def names_on_all_nodes(verb: Callable[..., None]) -> list[str]:
    """Names of a verb's arguments that are paths which must be absolute in a Ray job; their parsers say so."""
    hints = get_type_hints(verb, include_extras=True)
    return [
        name
        for name, hint in hints.items()
        if any(getattr(info, "parser", None) in _ON_ALL_NODES for info in getattr(hint, "__metadata__", ()))
    ]


Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Processes.", show_default="all CPUs", rich_help_panel=WHERE),
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
OnBadSample = Annotated[
    str,
    typer.Option(
        "--on-bad-sample",
        metavar="stop|set-aside",
        help="What a bad sample does: stop the command, or go to OUT/rejected with the reason.",
        rich_help_panel=READING,
    ),
]
MaxSampleBytes = Annotated[
    str,
    typer.Option(
        "--max-sample-bytes", metavar="SIZE", help="Largest sample, text and metadata.", rich_help_panel=READING
    ),
]
IdField = Annotated[
    str,
    typer.Option(
        "--id-field", metavar="NAME", help="Field of the id; '' if the corpus has none.", rich_help_panel=READING
    ),
]
TextField = Annotated[
    str, typer.Option("--text-field", metavar="NAME", help="Field of the text.", rich_help_panel=READING)
]
PartitionSize = Annotated[
    str,
    typer.Option(
        "--partition-size", metavar="SIZE", help="Size of a task, in bytes of the corpus.", rich_help_panel=READING
    ),
]


class Reading(NamedTuple):
    """The options on how a corpus is read, as they were given."""

    on_bad_sample: str
    max_sample_bytes: str
    id_field: str
    text_field: str
    partition_bytes: str


Artefact = Annotated[
    str,
    typer.Argument(
        metavar="ARTEFACT",
        help="Tags, shards, token counts or a run's ledger: a directory; of shards also a URI (s3://, gs://, http://).",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Write the facts as one JSON object (schemas/inspect-1.json) in place of tables."),
]
ShardsPlace = Annotated[
    str,
    typer.Argument(
        parser=place_on_all_nodes,
        metavar="SHARDS",
        help="Shard set: a directory or a URI (s3://, gs://, http://).",
    ),
]
CachePlace = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        parser=path_on_all_nodes,
        metavar="DIRECTORY",
        help="Directory that keeps remote shards.",
        show_default="they are fetched and not kept",
    ),
]
CacheSize = Annotated[
    str | None,
    typer.Option(
        "--cache-size", help="Limit of the size of the cache, such as 50GB; without it the disk is the limit."
    ),
]


def parse_skills(text: str) -> int | Literal["auto"]:
    """
    >>> parse_skills("auto"), parse_skills("9")
    ('auto', 9)
    """
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"-?\d+", text):
        raise typer.BadParameter(f"{text!r}: give a number, or 'auto'.", param_hint="--skills")
    return int(text)


def parse_range(text: str) -> tuple[int, int]:
    """
    >>> parse_range("2:64")
    (2, 64)
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        raise typer.BadParameter(f"{text!r}: give the least and the most, such as 2:64.", param_hint="--skills-range")
    return int(match[1]), int(match[2])


def open_corpus(places: list[str]) -> Any:
    """The corpus at the places that a verb was given; what is left out of it is said on stderr before it is read."""
    from skillshard.corpus import Corpus

    corpus = Corpus.open(places)
    for note in corpus.notes():
        typer.echo(f"note: {in_options(note)}", err=True)
    return corpus


class Given:
    """The options that stand on the command line, also those that were given their default value."""

    def __init__(self, context: Any) -> None:
        self._options: dict[str, str] = {}
        for parameter in context.command.params:
            source = None if parameter.name is None else context.get_parameter_source(parameter.name)
            if source is not None and source.name == "COMMANDLINE":
                self._options[str(parameter.name)] = parameter.opts[0]

    def __contains__(self, name: str) -> bool:
        return name in self._options

    def refuse(self, names: Collection[str], why: str) -> None:
        """A usage error for the first of some options that was given."""
        for name, option in self._options.items():
            if name in names:
                raise typer.BadParameter(f"{option} {why}.", param_hint=option)

    def refuse_all_but(self, names: Collection[str], why: str) -> None:
        """A usage error for the first option that was given and is none of these."""
        self.refuse([name for name in self._options if name not in names], why)


class Verb(typer.core.TyperCommand):
    """A verb whose function can ask which options were given, and whose help ends with examples.

    `epilog` holds the examples, a command a line.
    """

    given: ClassVar[Given]

    def invoke(self, ctx: Any) -> Any:
        Verb.given = Given(ctx)
        Running.begin(ctx.command.params)
        return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        examples, self.epilog = self.epilog, None
        super().format_help(ctx, formatter)
        self.epilog = examples
        if examples:
            typer.echo(
                " Examples:\n" + "\n".join(f"   {line.strip()}" for line in examples.strip().splitlines()) + "\n"
            )


def backend_of(workers: int | None, ray_address: str | None) -> Any:
    """Where tasks run; a usage error for --workers where a cluster that runs already decides."""
    from skillshard.execution import Backend

    if ray_address not in (None, "local"):
        Verb.given.refuse(["workers"], f"has no meaning with --ray-address {ray_address}: the cluster's CPUs are used")
    return Backend(workers, ray_address)


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


def split_names(values: Sequence[str], known: Collection[str]) -> list[str]:
    """Names that stand in repeated options: a value that is a name is this name, any other value is split at its commas.

    >>> split_names(["add,carry", "question, answer"], ("add", "carry", "question, answer"))
    ['add', 'carry', 'question, answer']
    """
    names = set(known)
    return [name for value in values for name in ([value] if value in names else _parts(value))]


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


def choose_skills(shards: "ShardSet", values: Sequence[str] | None) -> "ShardSet":
    """The skills of a shard set that `--skills` names; all of them without the option."""
    if not values:
        return shards
    return shards.choose(split_names(values, [skill.name for skill in shards.manifest_skills]))


def write_json(facts: Any) -> None:
    """Write the facts of an artefact (`skillshard.report.facts`) to standard output, and nothing else."""
    typer.echo(facts.to_json().decode(), nl=False)


def write_new(out: Path, write: Callable[[Path], None]) -> None:
    """Write the file of an option --out; an existing file may only hold the same bytes.

    Args:
        out: the file.
        write: writes a file at a path.

    Raises:
        SkillshardError: a directory or a file with other content is there.
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
            raise SkillshardError(f"{out} exists and holds something else. Choose another --out, or remove it.")
