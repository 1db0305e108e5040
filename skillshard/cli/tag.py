"""`skillshard tag`: give every sample of a corpus its skill. Each way is a verb."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from skillshard.bars import Bars
from skillshard.cli.groups import grouped
from skillshard.cli.options import (
    CorpusPlaces,
    Files,
    JobArray,
    Nodes,
    Out,
    ProxyDevice,
    ProxyTexts,
    Reading,
    open_corpus,
)
from skillshard.cli.values import parse_range, parse_size, parse_skills, path_on_all_nodes, place_on_all_nodes
from skillshard.cli.verb import ENCODER, HOW, WHAT, Verb
from skillshard.cli.words import in_options

tag = typer.Typer(
    help="Give every sample of a corpus its skill. Each way to find skills is a verb.", no_args_is_help=True
)

SENTENCE_MODEL = frozenset(("device", "batch_size", "dtype", "prompt", "max_length", "windows"))
"""Options that only a sentence-transformers model has."""

NumSkills = Annotated[
    str,
    typer.Option(
        "--skills", metavar="K|auto", help="Number of skills, or 'auto' to choose the number.", rich_help_panel=WHAT
    ),
]
SkillsRange = Annotated[
    str | None,
    typer.Option(
        "--skills-range",
        metavar="LEAST:MOST",
        help="Smallest and largest number of skills that --skills auto tries.",
        show_default="by the size of the corpus",
        rich_help_panel=WHAT,
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
    skillshard tag metadata corpus/ --field meta.category --limit 10000 --dry-run --out tags
    """,
)
@grouped
def by_metadata(
    corpus: CorpusPlaces,
    fields: Annotated[
        list[str],
        typer.Option(
            "--field",
            metavar="PATH",
            help="Field that names the skill, as a dotted path. Repeat the option to join the values of several fields by '/'.",
            rich_help_panel=WHAT,
        ),
    ],
    out: Out,
    reading: Reading,
    files: Files,
    nodes: Nodes,
    array: JobArray,
) -> None:
    """Take each sample's skill from its metadata."""
    from skillshard import taggers

    _tag(corpus, out, lambda bars: taggers.metadata(*fields), reading, files, nodes, array)


@tag.command(
    "embedding",
    cls=Verb,
    epilog="""
    skillshard tag embedding corpus/ --skills auto --out tags
    skillshard tag embedding corpus/ --skills 9 --encoder models/all-MiniLM-L6-v2 --out tags
    skillshard tag embedding corpus/ --from tags --skills 20 --out more-skills
    """,
)
@grouped
def by_embedding(
    corpus: CorpusPlaces,
    skills: NumSkills,
    out: Out,
    *,
    skills_range: SkillsRange = None,
    min_share: Annotated[
        float,
        typer.Option(
            "--balance",
            metavar="SHARE",
            help="Smallest share of the samples that a skill may have.",
            rich_help_panel=WHAT,
        ),
    ] = 0.0,
    distance: Annotated[
        str,
        typer.Option(
            "--distance",
            metavar="cosine|euclidean",
            help="Distance of k-means.",
            rich_help_panel=WHAT,
        ),
    ] = "cosine",
    kept: Annotated[
        str | None,
        typer.Option(
            "--from",
            parser=place_on_all_nodes,
            metavar="TAGS",
            help="Tags by embedding of the same corpus, whose embeddings are clustered again. No text is encoded.",
            rich_help_panel=WHAT,
        ),
    ] = None,
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
            "--batch-size",
            metavar="N",
            min=1,
            help="Number of texts that the model encodes at once.",
            rich_help_panel=ENCODER,
        ),
    ] = 32,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help="Data type of the model's weights: float32, float16 or bfloat16.",
            rich_help_panel=ENCODER,
        ),
    ] = "float32",
    prompt: Annotated[
        str,
        typer.Option("--prompt", metavar="TEXT", help="Text that stands before every text.", rich_help_panel=ENCODER),
    ] = "",
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            metavar="N",
            min=1,
            help="Number of tokens of a window.",
            show_default="the model's",
            rich_help_panel=ENCODER,
        ),
    ] = None,
    windows: Annotated[
        str,
        typer.Option(
            "--windows",
            metavar="first|mean",
            help="Embedding of a long text: of the first window, or the mean of all windows.",
            rich_help_panel=ENCODER,
        ),
    ] = "first",
    seed: Seed = 0,
    reading: Reading,
    files: Files,
    nodes: Nodes,
) -> None:
    """Cluster the embeddings of the texts. Each cluster is a skill."""
    from skillshard import taggers

    if skills != "auto":
        Verb.given.refuse(["skills_range"], "is what --skills auto tries: give --skills auto")
    if kept is not None:
        Verb.given.refuse(
            [*SENTENCE_MODEL, "encoder"],
            "is of the encoder, and --from takes embeddings that exist: leave out one of them",
        )
    if encoder == "lexical":
        Verb.given.refuse(SENTENCE_MODEL, "is of sentence-transformers models: the lexical encoder has none")

    def tagger(bars: Bars) -> Any:
        chosen_range = None if skills_range is None else parse_range(skills_range)
        if kept is not None:
            return taggers.kept_embeddings(
                kept,
                skills=parse_skills(skills),
                skills_range=chosen_range,
                min_share=min_share,
                seed=seed,
                distance=distance,
            )
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
                on_this_machine=nodes.are_local,
            )
        return taggers.embedding(
            chosen,
            skills=parse_skills(skills),
            skills_range=chosen_range,
            min_share=min_share,
            seed=seed,
            distance=distance,
        )

    _tag(corpus, out, tagger, reading, files, nodes, is_auto=skills == "auto")


@tag.command(
    "loss",
    cls=Verb,
    epilog="""
    skillshard tag loss corpus/ --skills 5 --out tags
    skillshard tag loss corpus/ --skills auto --proxy models/gpt2 --device cuda --out tags
    """,
)
@grouped
def by_loss(
    corpus: CorpusPlaces,
    skills: NumSkills,
    out: Out,
    *,
    skills_range: SkillsRange = None,
    measure: Annotated[
        str,
        typer.Option(
            "--measure",
            metavar="whole|parts",
            help="Features to cluster: the loss trajectories ('whole'), or the segments that the answer needs ('parts').",
            rich_help_panel=WHAT,
        ),
    ] = "whole",
    fitting_samples: Annotated[
        int,
        typer.Option(
            "--fitting-samples",
            metavar="N",
            help="Number of samples whose trajectories are clustered.",
            rich_help_panel=WHAT,
        ),
    ] = 2000,
    trials: Annotated[
        int,
        typer.Option("--trials", metavar="N", help="Number of trainings, each from another seed.", rich_help_panel=HOW),
    ] = 10,
    checkpoints: Annotated[
        int,
        typer.Option(
            "--checkpoints", metavar="N", help="Number of checkpoints that a training keeps.", rich_help_panel=HOW
        ),
    ] = 10,
    steps: Annotated[
        int,
        typer.Option(
            "--steps", metavar="N", help="Optimizer steps of a training, in batches of 64 texts.", rich_help_panel=HOW
        ),
    ] = 1000,
    lr: Annotated[
        float, typer.Option("--lr", metavar="RATE", help="Highest learning rate.", rich_help_panel=HOW)
    ] = 1e-3,
    texts: ProxyTexts,
    seed: Seed = 0,
    reading: Reading,
    files: Files,
    nodes: Nodes,
    device: ProxyDevice,
) -> None:
    """Cluster the loss trajectories of the texts while small models train. Each cluster is a skill."""
    if skills != "auto":
        Verb.given.refuse(["skills_range"], "is what --skills auto tries: give --skills auto")
    choice = texts.choice()

    def tagger(bars: Bars) -> Any:
        from skillshard.taggers.losses.tagger import loss_tagger

        return loss_tagger(
            skills=parse_skills(skills),
            skills_range=None if skills_range is None else parse_range(skills_range),
            trials=trials,
            checkpoints=checkpoints,
            steps=steps,
            measure=measure,
            reading=choice,
            fitting_samples=fitting_samples,
            lr=lr,
            seed=seed,
            compute=device.compute(),
            on_this_machine=nodes.are_local,
            on_estimate=lambda sentence: bars.say(in_options(sentence)),
        )

    _tag(corpus, out, tagger, reading, files, nodes, is_auto=skills == "auto")


@tag.command(
    "from",
    cls=Verb,
    epilog="""
    skillshard tag from labels.parquet corpus/ --out tags
    skillshard tag from labels.csv corpus/ --label-id doc_id --label topic --on-bad-sample set-aside --out tags
    """,
)
@grouped
def by_labels(
    labels: Annotated[
        str,
        typer.Argument(
            parser=place_on_all_nodes,
            metavar="LABELS",
            help="File or directory of labels, each an id and a skill, in any format of a corpus.",
        ),
    ],
    corpus: CorpusPlaces,
    out: Out,
    *,
    label_id: Annotated[
        str, typer.Option("--label-id", metavar="PATH", help="Field of the id in a label.", rich_help_panel=WHAT)
    ] = "id",
    label: Annotated[
        str, typer.Option("--label", metavar="PATH", help="Field of the skill in a label.", rich_help_panel=WHAT)
    ] = "skill",
    reading: Reading,
    files: Files,
    nodes: Nodes,
    array: JobArray,
) -> None:
    """Take each sample's skill from a file of ids and skills that another program made."""
    from skillshard import taggers

    _tag(
        corpus,
        out,
        lambda bars: taggers.labels(labels, label_id=label_id, label=label),
        reading,
        files,
        nodes,
        array,
    )


@tag.command(
    "function",
    cls=Verb,
    epilog="""
    skillshard tag function topics:skill_of corpus/ --out tags
    """,
)
@grouped
def by_function(
    function: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="Python function that takes a sample (id, text, meta) and returns its skill, a pair of skill and score, or None.",
        ),
    ],
    corpus: CorpusPlaces,
    out: Out,
    reading: Reading,
    files: Files,
    nodes: Nodes,
    array: JobArray,
) -> None:
    """Take each sample's skill from a Python function of yours."""
    from skillshard import taggers

    _tag(corpus, out, lambda bars: taggers.function(function), reading, files, nodes, array)


@tag.command(
    "classifier",
    cls=Verb,
    epilog="""
    skillshard tag classifier corpus/ --model models/topics --out tags
    """,
)
@grouped
def by_classifier(
    corpus: CorpusPlaces,
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            parser=path_on_all_nodes,
            metavar="DIRECTORY",
            help="Hugging Face sequence classifier, with its tokenizer. The names of its classes are the skills.",
            rich_help_panel=WHAT,
        ),
    ],
    out: Out,
    *,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="Device of the model: auto, cpu, cuda or cuda:1.", rich_help_panel=HOW
        ),
    ] = "auto",
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="Number of texts of a forward pass.", rich_help_panel=HOW
        ),
    ] = 32,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            metavar="N",
            min=1,
            help="Number of tokens that the model reads of a text.",
            show_default="the model's limit, at most 512",
            rich_help_panel=HOW,
        ),
    ] = None,
    reading: Reading,
    files: Files,
    nodes: Nodes,
    array: JobArray,
) -> None:
    """Take each sample's skill from a trained sequence classifier."""
    from skillshard import taggers

    _tag(
        corpus,
        out,
        lambda bars: taggers.classifier(
            str(model),
            device=device,
            batch_size=batch_size,
            max_length=max_length,
            on_this_machine=nodes.are_local,
        ),
        reading,
        files,
        nodes,
        array,
    )


@tag.command(
    "reuse",
    cls=Verb,
    epilog="""
    skillshard tag reuse new-corpus/ --clusters tags --out new-tags
    """,
)
@grouped
def by_clusters(
    corpus: CorpusPlaces,
    clusters: Annotated[
        str,
        typer.Option(
            "--clusters",
            parser=place_on_all_nodes,
            metavar="TAGS",
            help="Tags by embedding or by loss, whose clusters are used again.",
            rich_help_panel=WHAT,
        ),
    ],
    out: Out,
    *,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="MODEL",
            help="Present place of the clusters' sentence-transformers model.",
            show_default="the recorded place",
            rich_help_panel=HOW,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="NAME", help="Device of the model: auto, cpu, cuda or cuda:1.", rich_help_panel=HOW
        ),
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Number of texts that the model encodes at once.",
            show_default="the recorded number",
            rich_help_panel=HOW,
        ),
    ] = None,
    reading: Reading,
    files: Files,
    nodes: Nodes,
    array: JobArray,
) -> None:
    """Give the samples of a corpus the skills of clusters that were found earlier, in this corpus or in another."""
    from skillshard import taggers

    saved = taggers.SavedClusters.open(clusters)

    def tagger(bars: Bars) -> Any:
        record = saved.manifest.encoder
        if record.kind == "loss":
            Verb.given.refuse(["encoder", "device", "batch_size"], "is of embeddings, and these clusters are of losses")
            from skillshard.taggers.losses.saved import open_loss_tagger

            return open_loss_tagger(clusters)
        if record.kind == "lexical":
            Verb.given.refuse(
                ["encoder", "device", "batch_size"],
                "is of sentence-transformers models, and these clusters are of the lexical encoder",
            )
        if "lexical" in (record.kind, encoder):
            return taggers.kept_clusters(saved, taggers.kept_lexical(saved))
        recorded = record.arguments
        return taggers.kept_clusters(
            saved,
            taggers.sentence_encoder(
                encoder or record.name,
                device=device,
                batch_size=batch_size or recorded.get("batch_size", 32),
                dtype=recorded.get("dtype", "float32"),
                prompt=recorded.get("prompt", ""),
                max_length=recorded.get("max_length"),
                windows=recorded.get("windows", "first"),
                on_this_machine=nodes.are_local,
            ),
        )

    _tag(corpus, out, tagger, reading, files, nodes, array)


def _tag(
    corpus: list[str],
    out: str | Path,
    tagger: Callable[[Bars], Any],
    reading: Reading,
    files: Files,
    nodes: Nodes,
    array: JobArray = JobArray(),
    *,
    is_auto: bool = False,
) -> None:
    """Tag a corpus with the tagger that `tagger` makes, and show the tags. With `is_auto`, say how the number of skills was chosen."""
    from skillshard import taggers
    from skillshard.artefact import refuse_nested
    from skillshard.corpus import given_places
    from skillshard.report.text import about_number, print_line, show_tags
    from skillshard.taggers.tag import stages_of

    refuse_nested(out, given_places(corpus))
    if reading.on_bad_sample not in ("stop", "set-aside"):
        raise typer.BadParameter(
            f"{reading.on_bad_sample!r}: give 'stop' or 'set-aside'.", param_hint="--on-bad-sample"
        )
    if not 0 <= reading.max_set_aside <= 1:
        raise typer.BadParameter(
            f"{reading.max_set_aside:g} is no share: give a number from 0 to 1.", param_hint="--max-set-aside"
        )
    if reading.on_bad_sample == "stop":
        Verb.given.refuse(["max_set_aside"], "limits the rows that are set aside: give --on-bad-sample set-aside")
    bars = Bars(out)
    chosen = tagger(bars)
    backend = nodes.backend(array.part(stages_of(chosen)) if array.is_given else None)
    opened = open_corpus(corpus, files.layout(), reading.fields())
    for sentence in opened.absent_columns():
        typer.echo(f"note: {in_options(sentence)}", err=True)
    max_sample_bytes = parse_size(reading.max_sample_bytes, "--max-sample-bytes")
    partition_bytes = parse_size(reading.partition_bytes, "--partition-size")
    if reading.dry_run:
        from skillshard.report.dry_run import show_tag_plan

        show_tag_plan(
            opened,
            chosen,
            str(out),
            on_bad_sample=reading.on_bad_sample,  # type: ignore[arg-type]  # checked above
            max_set_aside=reading.max_set_aside,
            max_sample_bytes=max_sample_bytes,
            partition_bytes=partition_bytes,
            limit=reading.limit,
            backend=backend,
        )
        return
    with bars:
        tags = taggers.tag_corpus(
            opened,
            chosen,
            out,
            on_bad_sample=reading.on_bad_sample,  # type: ignore[arg-type]  # checked above
            max_set_aside=reading.max_set_aside,
            max_sample_bytes=max_sample_bytes,
            partition_bytes=partition_bytes,
            limit=reading.limit,
            backend=backend,
            on_stage=bars.stage,
        )
    show_tags(tags)
    if is_auto:
        for line in about_number(taggers.SavedClusters.open(tags.folder).manifest):
            print_line(line)
