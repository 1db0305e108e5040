"""`skillshard tag`: four ways to give every sample of a corpus its skill, each a verb of its own."""

from pathlib import Path
from typing import Annotated, Any

import typer

from skillshard.bars import Bars
from skillshard.cli.options import (
    HOW,
    WHAT,
    CorpusPlaces,
    IdField,
    MaxSampleBytes,
    OnBadSample,
    Out,
    PartitionSize,
    RayAddress,
    Reading,
    TextField,
    Verb,
    Workers,
    backend_of,
    open_corpus,
    parse_range,
    parse_size,
    parse_skills,
    path_on_all_nodes,
    proxy_on_all_nodes,
)
from skillshard.cli.words import in_options

tag = typer.Typer(
    help="Give every sample of a corpus its skill. Each way to find skills is a verb.", no_args_is_help=True
)

SENTENCE_MODEL = frozenset(("device", "batch_size", "dtype", "prompt", "max_length", "windows"))
"""Options that only a sentence-transformers model obeys."""

NumSkills = Annotated[
    str,
    typer.Option("--skills", metavar="K|auto", help="Number of skills; 'auto' finds it.", rich_help_panel=WHAT),
]
SkillsRange = Annotated[
    str,
    typer.Option(
        "--skills-range", metavar="LEAST:MOST", help="Numbers of skills that --skills auto tries.", rich_help_panel=WHAT
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Seed of every random choice.", rich_help_panel=HOW)
]


@tag.command(
    "metadata",
    cls=Verb,
    epilog="""
    skillshard tag metadata corpus/ --field meta.category --out tags
    skillshard tag metadata 'corpus/*.parquet' --field source --field language --out tags
    """,
)
def by_metadata(
    corpus: CorpusPlaces,
    fields: Annotated[
        list[str],
        typer.Option(
            "--field",
            metavar="PATH",
            help="Field that names the skill, as a dotted path; repeat the option to join the values of several fields by '/'.",
            rich_help_panel=WHAT,
        ),
    ],
    out: Out,
    on_bad_sample: OnBadSample = "stop",
    max_sample_bytes: MaxSampleBytes = "16MiB",
    id_field: IdField = "id",
    text_field: TextField = "text",
    partition_bytes: PartitionSize = "64MiB",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Take each sample's skill from its metadata."""
    from skillshard import taggers

    reading = Reading(on_bad_sample, max_sample_bytes, id_field, text_field, partition_bytes)
    _tag(corpus, out, lambda bars: taggers.metadata(*fields), reading, workers, ray_address)


@tag.command(
    "embedding",
    cls=Verb,
    epilog="""
    skillshard tag embedding corpus/ --skills auto --out tags
    skillshard tag embedding corpus/ --skills 9 --encoder models/all-MiniLM-L6-v2 --out tags
    """,
)
def by_embedding(
    corpus: CorpusPlaces,
    skills: NumSkills,
    out: Out,
    skills_range: SkillsRange = "2:64",
    min_share: Annotated[
        float,
        typer.Option(
            "--balance", metavar="SHARE", help="Least share of the samples that a skill gets.", rich_help_panel=WHAT
        ),
    ] = 0.0,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            metavar="MODEL",
            help="Encoder: 'lexical' (built in), or a sentence-transformers model.",
            rich_help_panel=HOW,
        ),
    ] = "lexical",
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="Device of the model: auto, cpu, cuda or cuda:1.", rich_help_panel=HOW
        ),
    ] = "auto",
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="Texts that the model encodes at once.", rich_help_panel=HOW
        ),
    ] = 32,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="TYPE", help="Type of its weights: float32, float16 or bfloat16.", rich_help_panel=HOW
        ),
    ] = "float32",
    prompt: Annotated[
        str,
        typer.Option("--prompt", metavar="TEXT", help="Text put before every text.", rich_help_panel=HOW),
    ] = "",
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            metavar="N",
            min=1,
            help="Tokens of a window.",
            show_default="the model's",
            rich_help_panel=HOW,
        ),
    ] = None,
    windows: Annotated[
        str,
        typer.Option(
            "--windows",
            metavar="first|mean",
            help="Windows of a long text that count: the first, or the mean of all.",
            rich_help_panel=HOW,
        ),
    ] = "first",
    seed: Seed = 0,
    on_bad_sample: OnBadSample = "stop",
    max_sample_bytes: MaxSampleBytes = "16MiB",
    id_field: IdField = "id",
    text_field: TextField = "text",
    partition_bytes: PartitionSize = "64MiB",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Cluster the texts' embeddings; each cluster is a skill."""
    from skillshard import taggers

    if skills != "auto":
        Verb.given.refuse(["skills_range"], "is what --skills auto tries: give --skills auto")
    if encoder == "lexical":
        Verb.given.refuse(SENTENCE_MODEL, "is of sentence-transformers models: the lexical encoder has none")

    def tagger(bars: Bars) -> Any:
        if encoder == "lexical":
            chosen: Any = taggers.lexical()
        else:
            chosen = taggers.sentence_encoder(
                encoder,
                device=device,
                batch_size=batch_size,
                dtype=dtype,
                prompt=prompt,
                max_length=max_length,
                windows=windows,
                on_this_machine=ray_address is None,
            )
        return taggers.embedding(
            chosen, skills=parse_skills(skills), skills_range=parse_range(skills_range), min_share=min_share, seed=seed
        )

    reading = Reading(on_bad_sample, max_sample_bytes, id_field, text_field, partition_bytes)
    _tag(corpus, out, tagger, reading, workers, ray_address)


@tag.command(
    "loss",
    cls=Verb,
    epilog="""
    skillshard tag loss corpus/ --skills 5 --out tags
    skillshard tag loss corpus/ --skills auto --proxy models/gpt2 --device cuda --out tags
    """,
)
def by_loss(
    corpus: CorpusPlaces,
    skills: NumSkills,
    out: Out,
    skills_range: SkillsRange = "2:64",
    measure: Annotated[
        str,
        typer.Option(
            "--measure",
            metavar="whole|parts",
            help="What is compared: 'whole', the loss trajectories; or 'parts', which segments the answer needs.",
            rich_help_panel=WHAT,
        ),
    ] = "whole",
    fitting_samples: Annotated[
        int,
        typer.Option(
            "--fitting-samples", metavar="N", help="Samples whose trajectories are clustered.", rich_help_panel=WHAT
        ),
    ] = 2000,
    proxy: Annotated[
        str,
        typer.Option(
            "--proxy",
            parser=proxy_on_all_nodes,
            metavar="MODEL",
            help="Model to train: 'tiny', 'small', or the directory of a Hugging Face causal model and its tokenizer.",
            rich_help_panel=HOW,
        ),
    ] = "tiny",
    trials: Annotated[
        int, typer.Option("--trials", metavar="N", help="Trainings, each from a seed of its own.", rich_help_panel=HOW)
    ] = 10,
    checkpoints: Annotated[
        int,
        typer.Option("--checkpoints", metavar="N", help="Checkpoints that each training keeps.", rich_help_panel=HOW),
    ] = 10,
    steps: Annotated[
        int,
        typer.Option(
            "--steps", metavar="N", help="Optimizer steps of each training, with batches of 64.", rich_help_panel=HOW
        ),
    ] = 1000,
    lr: Annotated[
        float, typer.Option("--lr", metavar="RATE", help="Highest learning rate.", rich_help_panel=HOW)
    ] = 1e-3,
    window: Annotated[
        int,
        typer.Option(
            "--max-length",
            metavar="N",
            min=1,
            help="Tokens read of a text; with a built-in proxy, bytes.",
            rich_help_panel=HOW,
        ),
    ] = 128,
    segment_at: Annotated[
        str | None,
        typer.Option(
            "--segment-at",
            metavar="CHARS",
            help="Characters that end a segment. A segment takes one position, and the answer is predicted.",
            rich_help_panel=HOW,
        ),
    ] = None,
    answer_after: Annotated[
        str | None,
        typer.Option(
            "--answer-after",
            metavar="TEXT",
            help="String before the answer: only what follows its last occurrence in a text is predicted.",
            rich_help_panel=HOW,
        ),
    ] = None,
    prompt_field: Annotated[
        str | None,
        typer.Option(
            "--prompt-field",
            metavar="PATH",
            help="Metadata field with the number of characters of a text's prompt, which is not predicted.",
            rich_help_panel=HOW,
        ),
    ] = None,
    unordered: Annotated[
        bool, typer.Option("--unordered", help="Ignore the order of the segments.", rich_help_panel=HOW)
    ] = False,
    seed: Seed = 0,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="Device of the trainings: auto, cpu, cuda or cuda:1.", rich_help_panel=HOW
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help="Data type of matrix products: auto, float32 or bfloat16.",
            rich_help_panel=HOW,
        ),
    ] = "auto",
    on_bad_sample: OnBadSample = "stop",
    max_sample_bytes: MaxSampleBytes = "16MiB",
    id_field: IdField = "id",
    text_field: TextField = "text",
    partition_bytes: PartitionSize = "64MiB",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Cluster how the texts' losses fall while small models train; each cluster is a skill."""
    given = Verb.given
    if skills != "auto":
        given.refuse(["skills_range"], "is what --skills auto tries: give --skills auto")
    if segment_at is not None:
        given.refuse(["window"], "counts tokens of a text, and with --segment-at a text is read as segments")
    else:
        given.refuse(["unordered"], "is about the order of segments: give --segment-at")

    def tagger(bars: Bars) -> Any:
        from skillshard.proxy.device import Compute
        from skillshard.proxy.reading_choice import ReadingChoice
        from skillshard.taggers.losses.tagger import loss_tagger

        return loss_tagger(
            skills=parse_skills(skills),
            skills_range=parse_range(skills_range),
            trials=trials,
            checkpoints=checkpoints,
            steps=steps,
            measure=measure,
            reading=ReadingChoice(proxy, window, segment_at, answer_after, prompt_field, ordered=not unordered),
            fitting_samples=fitting_samples,
            lr=lr,
            seed=seed,
            compute=Compute(device, precision),
            on_this_machine=ray_address is None,
            on_estimate=lambda sentence: bars.say(in_options(sentence)),
        )

    reading = Reading(on_bad_sample, max_sample_bytes, id_field, text_field, partition_bytes)
    _tag(corpus, out, tagger, reading, workers, ray_address)


@tag.command(
    "reuse",
    cls=Verb,
    epilog="""
    skillshard tag reuse new-corpus/ --clusters tags --out new-tags
    """,
)
def by_clusters(
    corpus: CorpusPlaces,
    clusters: Annotated[
        Path,
        typer.Option(
            "--clusters",
            parser=path_on_all_nodes,
            metavar="TAGS",
            help="Tags whose clusters are used again: what 'tag embedding' or 'tag loss' wrote.",
            rich_help_panel=WHAT,
        ),
    ],
    out: Out,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="MODEL",
            help="Where the sentence-transformers model of the clusters lies now.",
            show_default="where it was",
            rich_help_panel=HOW,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="Device of that model: auto, cpu, cuda or cuda:1.", rich_help_panel=HOW
        ),
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Texts that it encodes at once.",
            show_default="as before",
            rich_help_panel=HOW,
        ),
    ] = None,
    on_bad_sample: OnBadSample = "stop",
    max_sample_bytes: MaxSampleBytes = "16MiB",
    id_field: IdField = "id",
    text_field: TextField = "text",
    partition_bytes: PartitionSize = "64MiB",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Give the samples of a corpus the skills of clusters that were found before, in this corpus or in another."""
    from skillshard import taggers

    given = Verb.given
    kept = taggers.SavedClusters.open(clusters)

    def tagger(bars: Bars) -> Any:
        record = kept.manifest.encoder
        if record.kind == "loss":
            given.refuse(["encoder", "device", "batch_size"], "is of embeddings, and these clusters are of losses")
            from skillshard.taggers.losses.saved import open_loss_tagger

            return open_loss_tagger(clusters)
        if record.kind == "lexical":
            given.refuse(
                ["encoder", "device", "batch_size"],
                "is of sentence-transformers models, and these clusters are of the lexical encoder",
            )
        if "lexical" in (record.kind, encoder):
            return taggers.kept_clusters(kept, taggers.kept_lexical(kept))
        made = record.arguments
        return taggers.kept_clusters(
            kept,
            taggers.sentence_encoder(
                encoder or record.name,
                device=device,
                batch_size=batch_size or made.get("batch_size", 32),
                dtype=made.get("dtype", "float32"),
                prompt=made.get("prompt", ""),
                max_length=made.get("max_length"),
                windows=made.get("windows", "first"),
                on_this_machine=ray_address is None,
            ),
        )

    reading = Reading(on_bad_sample, max_sample_bytes, id_field, text_field, partition_bytes)
    _tag(corpus, out, tagger, reading, workers, ray_address)


def _tag(
    corpus: list[str], out: Path, tagger: Any, reading: Reading, workers: int | None, ray_address: str | None
) -> None:
    """Tag a corpus with the tagger that `tagger` makes, and show the tags."""
    from skillshard import taggers
    from skillshard.artefact import refuse_nested
    from skillshard.report.text import show_tags

    refuse_nested(out, corpus)
    if reading.on_bad_sample not in ("stop", "set-aside"):
        raise typer.BadParameter(
            f"{reading.on_bad_sample!r}: give 'stop' or 'set-aside'.", param_hint="--on-bad-sample"
        )
    backend = backend_of(workers, ray_address)
    opened = open_corpus(corpus)
    bars = Bars(out)
    chosen = tagger(bars)
    with bars:
        tags = taggers.tag_corpus(
            opened,
            chosen,
            out,
            on_bad_sample=reading.on_bad_sample,  # type: ignore[arg-type]  # checked above
            id_field=reading.id_field or None,
            text_field=reading.text_field,
            max_sample_bytes=parse_size(reading.max_sample_bytes, "--max-sample-bytes"),
            partition_bytes=parse_size(reading.partition_bytes, "--partition-size"),
            backend=backend,
            on_stage=bars.stage,
        )
    show_tags(tags)
