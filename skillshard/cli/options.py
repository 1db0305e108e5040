"""Arguments, options and groups of options that several verbs share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillshard.cli.values import (
    parse_local_out,
    parse_out,
    parse_size,
    path_on_all_nodes,
    place_on_all_nodes,
    proxy_on_all_nodes,
    split_names,
)
from skillshard.cli.verb import ARRAY, FIELDS, FILES, HOW, MORE_FIELDS, READING, TEXTS, TOKEN_FIELDS, WHAT, WHERE, Verb
from skillshard.cli.words import in_options

if TYPE_CHECKING:
    from skillshard.corpus import FieldMapping, FileLayout
    from skillshard.execution import Backend
    from skillshard.job_array import ArrayPart
    from skillshard.proxy.device import Compute
    from skillshard.proxy.reading_choice import ReadingChoice
    from skillshard.shards.read import ShardSet

CHAT_TEMPLATE = (
    "Chat template for conversations that were tagged with --messages: the word 'tokenizer' for the template of the tokenizer, or a file. The "
    "assistant's turns are"
)
"""Beginning of the help of --chat-template, which the use of the turns ends."""
CorpusPlaces = Annotated[
    list[str],
    typer.Argument(
        parser=place_on_all_nodes,
        metavar="CORPUS",
        help="Directories, globs, files, hf:NAME addresses, or a corpus.yaml.",
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        parser=parse_out,
        metavar="PLACE",
        help="Directory or URI (s3://, gs://, abfs://) to write. After a stop, the same command goes on.",
    ),
]
LocalOut = Annotated[
    Path,
    typer.Option(
        "--out",
        parser=parse_local_out,
        metavar="DIRECTORY",
        help="Directory to write. After a stop, the same command goes on.",
    ),
]
Artefact = Annotated[
    str,
    typer.Argument(
        metavar="ARTEFACT",
        help="Directory of tags, shards, token counts, exported rows or a run's ledger. Shards can also be a URI (s3://, gs://, http://).",
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
    typer.Option("--json", help="Write the facts as one JSON object (schemas/inspect-2.json) instead of tables."),
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


Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        min=1,
        help="Number of rows to read, from the beginning of the corpus.",
        show_default="all rows",
        rich_help_panel=READING,
    ),
]


DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the input, the output and the cost of the command, estimated from the first rows of a few files. Write nothing.",
        rich_help_panel=READING,
    ),
]


@dataclass(frozen=True)
class Reading:
    """The options on how a corpus is read, and how much of the corpus."""

    id_field: Annotated[
        str, typer.Option("--id-field", metavar="PATH", help="Field of the id.", rich_help_panel=FIELDS)
    ] = "id"
    id_from_row: Annotated[
        bool,
        typer.Option(
            "--id-from-row",
            help="Make the ids from the name of the file and the place of the row.",
            rich_help_panel=FIELDS,
        ),
    ] = False
    text_field: Annotated[
        list[str] | None,
        typer.Option(
            "--text-field",
            metavar="PATH",
            help="Field of the text. Repeated fields are joined by an empty line.",
            show_default="text",
            rich_help_panel=FIELDS,
        ),
    ] = None
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="TEMPLATE",
            help=r"Text made of several fields, such as '{question}\n\n{answer}'.",
            rich_help_panel=FIELDS,
        ),
    ] = None
    messages: Annotated[
        str | None,
        typer.Option(
            "--messages",
            metavar="PATH",
            help="Field of a conversation. The messages of the assistant are the answers.",
            rich_help_panel=FIELDS,
        ),
    ] = None
    token_ids: Annotated[
        str | None,
        typer.Option(
            "--token-ids",
            metavar="PATH",
            help="Field of the token ids of samples that are tokenized already, such as input_ids. The ids take the place of the text.",
            rich_help_panel=TOKEN_FIELDS,
        ),
    ] = None
    token_labels: Annotated[
        str | None,
        typer.Option(
            "--token-labels",
            metavar="PATH",
            help="Field of the labels of the ids: the id itself, or -100 for a token that is not learned.",
            rich_help_panel=TOKEN_FIELDS,
        ),
    ] = None
    token_mask: Annotated[
        str | None,
        typer.Option(
            "--token-mask",
            metavar="PATH",
            help="Field of a mask of the ids, in place of labels: 1 for a token that is learned, 0 for a prompt.",
            rich_help_panel=TOKEN_FIELDS,
        ),
    ] = None
    attention_mask: Annotated[
        str | None,
        typer.Option(
            "--attention-mask",
            metavar="PATH",
            help="Field of a mask of the ids: 0 for padding. Padding is left out.",
            rich_help_panel=TOKEN_FIELDS,
        ),
    ] = None
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size",
            metavar="N",
            min=1,
            help="Number of ids of the vocabulary. A row with an id that is not below N is bad.",
            rich_help_panel=TOKEN_FIELDS,
        ),
    ] = None
    answer: Annotated[
        list[str] | None,
        typer.Option(
            "--answer",
            metavar="PATH",
            help="Field of the text that is an answer, so that trainers can mask the rest of the text.",
            rich_help_panel=MORE_FIELDS,
        ),
    ] = None
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            metavar="A,B",
            help="Metadata fields that the shards keep.",
            show_default="all",
            rich_help_panel=MORE_FIELDS,
        ),
    ] = None
    drop: Annotated[
        list[str] | None,
        typer.Option(
            "--drop", metavar="A,B", help="Metadata fields that the shards do not keep.", rich_help_panel=MORE_FIELDS
        ),
    ] = None
    limit: Limit = None
    dry_run: DryRun = False
    on_bad_sample: Annotated[
        str,
        typer.Option(
            "--on-bad-sample",
            metavar="stop|set-aside",
            help="Action on a bad sample: stop the command, or write the sample to OUT/rejected with the reason.",
            rich_help_panel=READING,
        ),
    ] = "stop"
    max_set_aside: Annotated[
        float,
        typer.Option(
            "--max-set-aside",
            metavar="SHARE",
            help="Largest share of the rows that --on-bad-sample set-aside may set aside, from 0 to 1. With more, the command stops.",
            rich_help_panel=READING,
        ),
    ] = 0.01
    max_sample_bytes: Annotated[
        str,
        typer.Option(
            "--max-sample-bytes",
            metavar="SIZE",
            help="Largest size of a sample, text and metadata together.",
            rich_help_panel=READING,
        ),
    ] = "16MiB"
    partition_bytes: Annotated[
        str,
        typer.Option(
            "--partition-size",
            metavar="SIZE",
            help="Approximate number of corpus bytes of a task.",
            rich_help_panel=READING,
        ),
    ] = "64MiB"

    def fields(self) -> "FieldMapping | None":
        """Make the library's mapping of the fields, or None if no option names a field."""
        from skillshard.corpus import FieldMapping

        names = ("id_field", "id_from_row", "text_field", "text", "messages", "answer", "columns", "drop")
        of_tokens = ("token_ids", "token_labels", "token_mask", "attention_mask", "vocab_size")
        if not any(name in Verb.given for name in (*names, *of_tokens)):
            return None
        if self.id_from_row:
            Verb.given.refuse(["id_field"], "names a field, and --id-from-row makes ids without a field")
        return FieldMapping(
            id_field=None if self.id_from_row else self.id_field,
            text_field=self.text_field,
            text=self.text,
            messages=self.messages,
            token_ids=self.token_ids,
            token_labels=self.token_labels,
            token_mask=self.token_mask,
            attention_mask=self.attention_mask,
            vocab_size=self.vocab_size,
            answer=self.answer or (),
            columns=None if self.columns is None else split_names(self.columns, ()),
            drop=split_names(self.drop or (), ()),
        )


@dataclass(frozen=True)
class Files:
    """The options on facts about the files of a corpus that the names do not show."""

    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="PATH",
            help="Path of the array of rows in JSON documents, such as Instances, or '*' for the values of an object. The other fields become fields of each row.",
            show_default="lines, an array or objects",
            rich_help_panel=FILES,
        ),
    ] = None
    text_files: Annotated[
        str,
        typer.Option(
            "--text-files",
            metavar="named|whole|lines",
            help="Samples of text and code files: 'whole' files, or 'lines'. With 'named', text files are read only by name or suffix.",
            rich_help_panel=FILES,
        ),
    ] = "named"
    header: Annotated[
        str | None,
        typer.Option(
            "--header",
            metavar="A,B",
            help="Names of the columns of CSV and TSV files.",
            show_default="the first line",
            rich_help_panel=FILES,
        ),
    ] = None
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter",
            metavar="CHARACTER",
            help="Character between the fields of CSV files.",
            show_default="',', a tab in .tsv",
            rich_help_panel=FILES,
        ),
    ] = None
    quote: Annotated[
        str,
        typer.Option(
            "--quote",
            metavar="CHARACTER",
            help="Character around fields of CSV and TSV files that hold delimiters. Give '' for files without quoting.",
            rich_help_panel=FILES,
        ),
    ] = '"'
    encoding: Annotated[
        str,
        typer.Option("--encoding", metavar="NAME", help="Encoding of CSV, TSV and text files.", rich_help_panel=FILES),
    ] = "utf-8"

    bare_files: Annotated[
        str | None,
        typer.Option(
            "--bare-files",
            metavar="jsonl|csv|tsv|text",
            help="Format of files without a suffix, such as wiki_00 and RC_2019-01.zst.",
            show_default="left out",
            rich_help_panel=FILES,
        ),
    ] = None

    def layout(self) -> "FileLayout":
        """Return the layout of the files."""
        from skillshard.corpus import FileLayout

        return FileLayout(
            rows=self.rows,
            text_files=self.text_files,  # type: ignore[arg-type]  # checked by the class
            header=None if self.header is None else tuple(name.strip() for name in self.header.split(",")),
            delimiter={"\\t": "\t"}.get(self.delimiter or "", self.delimiter),
            quote=self.quote,
            encoding=self.encoding,
            bare_files=self.bare_files,  # type: ignore[arg-type]  # checked by the class
        )


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
    task_cpus: Annotated[
        int,
        typer.Option(
            "--task-cpus", metavar="N", min=1, help="CPUs of a Ray cluster that a task takes.", rich_help_panel=WHERE
        ),
    ] = 1
    task_memory: Annotated[
        str | None,
        typer.Option(
            "--task-memory",
            metavar="SIZE",
            help="Memory of a Ray cluster that a task takes, such as 2GB.",
            show_default="tasks are placed by CPUs alone",
            rich_help_panel=WHERE,
        ),
    ] = None

    @property
    def are_local(self) -> bool:
        """Whether all tasks run on this machine, in a process pool."""
        return self.ray_address is None

    def backend(self, part: "ArrayPart | None" = None) -> "Backend":
        """Make the backend. `--workers` for a cluster that runs already is a usage error.

        Args:
            part: Part of a stage that this command does. None: the whole command.
        """
        from skillshard.execution import Backend

        if self.ray_address is None:
            Verb.given.refuse(
                ["task_cpus", "task_memory"], "is a request to Ray: give --ray-address, or take fewer --workers"
            )
        if self.ray_address not in (None, "local"):
            Verb.given.refuse(
                ["workers"], f"has no meaning with --ray-address {self.ray_address}: the cluster's CPUs are used"
            )
        task_memory = None if self.task_memory is None else parse_size(self.task_memory, "--task-memory")
        return Backend(self.workers, self.ray_address, self.task_cpus, task_memory, part)


@dataclass(frozen=True)
class JobArray:
    """The options of a process of a job array, which does a part of one stage."""

    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            metavar="NAME|list",
            help="Do a single stage, and end. 'list' prints the stages in their order.",
            show_default="all stages",
            rich_help_panel=ARRAY,
        ),
    ] = None
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="I/N",
            help="Do the I-th of N parts of the stage, counted from 1.",
            show_default="all tasks",
            rich_help_panel=ARRAY,
        ),
    ] = None
    finish: Annotated[
        bool, typer.Option("--finish", help="Write the manifest after the last stage.", rich_help_panel=ARRAY)
    ] = False

    @property
    def is_given(self) -> bool:
        """Whether the command is a process of a job array."""
        return self.stage is not None or self.tasks is not None or self.finish

    def part(self, stages: Sequence[str]) -> "ArrayPart | None":
        """Return the part of a stage that the command does, or None for the whole command. `--stage list` ends the command.

        Args:
            stages: Stages of the command, in their order.
        """
        from skillshard.job_array import FINISH, ArrayPart, parse_part

        if self.finish:
            Verb.given.refuse(["stage", "tasks"], "names tasks, and --finish does none: give one of them")
            return ArrayPart(FINISH, tuple(stages))
        if self.stage is None:
            Verb.given.refuse(["tasks"], "chooses tasks of a stage: give --stage")
            return None
        if self.stage == "list":
            typer.echo("\n".join(stages))
            raise typer.Exit
        number, num_parts = (1, 1) if self.tasks is None else parse_part(self.tasks)
        return ArrayPart(self.stage, tuple(stages), number, num_parts)


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
            help="Metadata field with the length of the prompt in characters, or with the spans of the answers. Only answers are predicted.",
            rich_help_panel=TEXTS,
        ),
    ] = None
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="tokenizer|FILE",
            help=f"{CHAT_TEMPLATE} predicted.",
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
            chat_template=self.chat_template,
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


def open_corpus(places: list[str], layout: "FileLayout", fields: "FieldMapping | None" = None) -> Any:
    """Open the corpus at the given places, with the layout and the fields of the options.

    Notes on stderr say which files are left out, before the corpus is read.
    """
    from skillshard.corpus import Corpus

    corpus = Corpus.open(places, fields=fields, layout=layout)
    for note in corpus.notes():
        typer.echo(f"note: {in_options(note)}", err=True)
    return corpus


def choose_skills(shards: "ShardSet", values: Sequence[str] | None) -> "ShardSet":
    """Reduce a shard set to the skills that `--skills` names. Without the option all skills stay."""
    if not values:
        return shards
    return shards.choose(split_names(values, [skill.name for skill in shards.manifest_skills]))


def measured_shards(
    whole: "ShardSet", chosen: "ShardSet", eval_shards: str | None, targets: Sequence[str]
) -> "ShardSet | None":
    """Return the shard set to measure on, or None for the chosen skills. A target beside the chosen skills is in the whole set."""
    from skillshard.shards.read import ShardSet

    if eval_shards is not None:
        return ShardSet.open(eval_shards)
    return whole if any(target not in chosen.holdout for target in targets) else None
