"""`skillshard VERB`: parse, call one function, print. Heavy modules are imported inside the verbs.

Exit codes: 0 done, 1 an error of data or run in one sentence, 2 usage.
"""

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from skillshard.errors import SkillshardError

app = typer.Typer(
    name="skillshard",
    help="From a text corpus to the batch on the GPU: tag it into skills, shard it, mix it live.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
synth = typer.Typer(help="Generate the paper's synthetic corpora.", no_args_is_help=True)
app.add_typer(synth, name="synth")


class _Graphs(typer.core.TyperGroup):
    """`graph SHARDS ...` learns and `graph --from FILE ...` derives, without saying so; a directory called 'show' is ./show."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["derive" if any(arg.split("=")[0] == "--from" for arg in args) else "learn", *args]
        return super().parse_args(ctx, args)


graphs = typer.Typer(
    cls=_Graphs,
    help="The skills graph. 'graph SHARDS ...' is 'graph learn', 'graph --from FILE ...' is 'graph derive'.",
    no_args_is_help=True,
)
app.add_typer(graphs, name="graph")

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


CorpusPlaces = Annotated[
    list[str],
    typer.Argument(
        metavar="CORPUS...", help="Directories, globs or files (jsonl, jsonl.gz, jsonl.zst, parquet, arrow, tar)."
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
        help="Directory to write; the same command again goes on, or finds it finished.",
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; all CPUs by default.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="Run on Ray: 'local', 'auto' or an address. Without it: a local process pool."),
]
OnBadSample = Annotated[
    str, typer.Option("--on-bad-sample", help="'stop' with an error, or 'set-aside' in OUT/rejected with the reason.")
]

Artefact = Annotated[
    str,
    typer.Argument(
        metavar="ARTEFACT",
        help="Tags, shards, token counts or a run's ledger: a directory; of shards also a URI (s3://, gs://, http://).",
    ),
]
ShardsPlace = Annotated[
    str, typer.Argument(metavar="SHARDS", help="A shard set: a directory or a URI (s3://, gs://, http://).")
]
CachePlace = Annotated[
    Path | None, typer.Option("--cache", help="Directory for remote shards; without it they are fetched and not kept.")
]
CacheSize = Annotated[
    str | None, typer.Option("--cache-size", help="Limit of what is kept there, such as 50GB; the disk's without it.")
]


@app.command()
def tag(
    corpus: CorpusPlaces,
    out: Out,
    by: Annotated[str, typer.Option("--by", help="How skills are found: metadata, embedding or loss.")] = "metadata",
    field: Annotated[
        list[str] | None, typer.Option("--field", help="metadata: dotted path of a field; several are joined by '/'.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            help="embedding: 'lexical' (built in, the default), or a sentence-transformers model by name or directory.",
        ),
    ] = None,
    skills: Annotated[
        str | None, typer.Option("--skills", help="embedding, loss: the number of skills, or 'auto'.", metavar="K|auto")
    ] = None,
    skills_range: Annotated[
        str, typer.Option("--skills-range", help="embedding, loss: what --skills auto tries.", metavar="LEAST:MOST")
    ] = "2:64",
    balance: Annotated[
        float, typer.Option("--balance", help="embedding: no skill gets a smaller share of the samples.")
    ] = 0.0,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="embedding, loss: tag with the clusters kept here: a directory of tags, or its model/."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="embedding, loss: cpu, cuda or cuda:1; a GPU if there is one.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="embedding: texts at once; 32 by default.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="float32 or bfloat16; embedding: of the weights, also float16; loss: of the products."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="embedding: put before every text.")] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            min=1,
            help="Tokens of a window. embedding: the model's; loss: 128 (bytes, but with --proxy PATH).",
        ),
    ] = None,
    windows: Annotated[
        str | None,
        typer.Option("--windows", help="embedding: of a long text the 'first' window, or the 'mean' of all."),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--proxy",
            help="loss: 'tiny' (the default), 'small', or a directory: any Hugging Face causal model and its tokenizer.",
        ),
    ] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="loss: training runs from different seeds; 10.")] = None,
    checkpoints: Annotated[int | None, typer.Option("--checkpoints", help="loss: kept of each run; 10.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="loss: of each run, batches of 64; 1000.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="loss: highest learning rate; 0.001.")] = None,
    probe: Annotated[
        int | None, typer.Option("--probe", help="loss: samples whose trajectories are clustered; 2000.")
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            "--measure",
            help="loss: 'whole', the trajectories (the default), or 'parts': which segments the answer needs.",
        ),
    ] = None,
    segment_at: Annotated[
        str | None,
        typer.Option(
            "--segment-at", help="loss: characters that end a segment; one position each, the answer is predicted."
        ),
    ] = None,
    answer_after: Annotated[
        str | None,
        typer.Option("--answer-after", help="loss: only what follows the last of these in a text is predicted."),
    ] = None,
    unordered: Annotated[
        bool, typer.Option("--unordered", help="loss: the order of the segments means nothing.")
    ] = False,
    combine: Annotated[
        bool,
        typer.Option("--combine", help="CORPUS is two directories of tags: every pair of their skills is a skill."),
    ] = False,
    mapping: Annotated[
        Path | None,
        typer.Option("--map", help='Rename and merge: a JSON file {"old": "new"}; "*" names all others. Also of tags.'),
    ] = None,
    min_share: Annotated[
        float, typer.Option("--min-share", help="Skills with less of the samples are merged into others. Also of tags.")
    ] = 0.0,
    rest: Annotated[
        str | None,
        typer.Option(
            "--rest", help="Name of the skill that takes the small ones; without it, the nearest by --min-share."
        ),
    ] = None,
    graph: Annotated[
        Path | None, typer.Option("--graph", help="Merge small skills into those with the nearest row of this graph.")
    ] = None,
    on_bad_sample: OnBadSample = "stop",
    max_sample_bytes: Annotated[
        str, typer.Option("--max-sample-bytes", help="Largest sample (text and metadata).")
    ] = "16MiB",
    id_field: Annotated[str, typer.Option("--id-field", help="Field of the id; '' if the corpus has none.")] = "id",
    text_field: Annotated[str, typer.Option("--text-field", help="Field of the text.")] = "text",
    partition_size: Annotated[str, typer.Option("--partition-size", help="Size of a unit of work.")] = "64MiB",
    seed: Annotated[int, typer.Option("--seed", min=0, help="embedding, loss: of the samples, starts and runs.")] = 0,
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Give every sample of a corpus its skill; or regroup the skills of tags (--combine, --map, --min-share)."""
    from skillshard import taggers
    from skillshard.corpus import Corpus
    from skillshard.execution import Where
    from skillshard.report.text import show_tags

    if by not in ("metadata", "embedding", "loss"):
        raise typer.BadParameter(f"{by!r}: give 'metadata', 'embedding' or 'loss'.", param_hint="--by")
    if on_bad_sample not in ("stop", "set-aside"):
        raise typer.BadParameter(f"{on_bad_sample!r}: give 'stop' or 'set-aside'.", param_hint="--on-bad-sample")
    clustering: dict[str, Any] = {"--skills": skills, "--model": model, "--device": device, "--dtype": dtype}
    clustering["--max-length"] = max_length
    of_embedding: dict[str, Any] = {"--encoder": encoder, "--batch-size": batch_size, "--prompt": prompt}
    of_embedding |= {"--windows": windows, "--balance": balance or None}
    of_loss: dict[str, Any] = {
        "--proxy": proxy,
        "--runs": runs,
        "--checkpoints": checkpoints,
        "--steps": steps,
        "--lr": lr,
    }
    of_loss |= {"--probe": probe, "--measure": measure, "--segment-at": segment_at, "--answer-after": answer_after}
    of_loss["--unordered"] = unordered or None
    alien_to = {
        "metadata": clustering | of_embedding | of_loss,
        "embedding": {"--field": field} | of_loss,
        "loss": {"--field": field} | of_embedding,
    }
    regrouping: dict[str, Any] = {
        "--combine": combine or None,
        "--map": mapping,
        "--min-share": min_share or None,
        "--rest": rest,
    }
    _refuse_strangers(alien_to[by], f"has no meaning with --by {by}")
    where = Where(workers, ray_address)
    if any(value is not None for value in regrouping.values()) and not field:
        _refuse_strangers(
            regrouping if by != "metadata" else {},
            "regroups finished tags: tag first, then give the directory of the tags in place of CORPUS",
        )
        with _Bars() as bars:
            tags = taggers.regroup_tags(
                corpus,
                out,
                combine=combine,
                mapping=None if mapping is None else taggers.read_map(mapping),
                min_share=min_share,
                rest=rest,
                vectors=_graph_rows(graph),
                where=where,
                on_stage=bars.stage,
            )
        show_tags(tags)
        return
    if field:
        alien = {"--combine": combine or None, "--graph": graph}
        _refuse_strangers(alien, "regroups finished tags: leave out --field, and give the tags in place of CORPUS")
    if by == "metadata" and not field:
        raise typer.BadParameter(
            "tagging by metadata needs a field, such as --field meta.category.", param_hint="--field"
        )
    opened = Corpus.open(corpus)
    tagger = (
        _metadata(field or [], mapping, min_share, rest)
        if by == "metadata"
        else _loss(
            skills=skills,
            skills_range=skills_range,
            model=model,
            fixed={"--device": device, "--dtype": dtype, "--max-length": max_length} | of_loss,
            runs=10 if runs is None else runs,
            checkpoints=10 if checkpoints is None else checkpoints,
            steps=1000 if steps is None else steps,
            lr=0.001 if lr is None else lr,
            probe=2000 if probe is None else probe,
            proxy=proxy or "tiny",
            measure=measure or "whole",
            segment_at=segment_at,
            answer_after=answer_after,
            unordered=unordered,
            window=max_length or 128,
            seed=seed,
            device=device or "auto",
            precision=dtype or "auto",
        )
        if by == "loss"
        else _embedding(
            encoder=encoder,
            skills=skills,
            skills_range=skills_range,
            balance=balance,
            model=model,
            device=device,
            batch_size=batch_size,
            dtype=dtype,
            prompt=prompt,
            max_length=max_length,
            windows=windows,
            seed=seed,
            on_this_machine=ray_address is None,
        )
    )
    with _Bars() as bars:
        tags = taggers.tag_corpus(
            opened,
            tagger,
            out,
            on_bad_sample=on_bad_sample,  # type: ignore[arg-type]  # checked above
            id_field=id_field or None,
            text_field=text_field,
            max_sample_bytes=parse_size(max_sample_bytes, "--max-sample-bytes"),
            partition_bytes=parse_size(partition_size, "--partition-size"),
            where=where,
            on_stage=bars.stage,
        )
    show_tags(tags)


def _metadata(field: list[str], mapping: Path | None, min_share: float, rest: str | None) -> Any:
    from skillshard import taggers

    tagger = taggers.metadata(*field)
    if mapping is None and not min_share and rest is None:
        return tagger
    return taggers.regrouped(
        tagger, mapping=None if mapping is None else taggers.read_map(mapping), min_share=min_share, rest=rest
    )


def _graph_rows(graph: Path | None) -> dict[str, Any]:
    """Row of each training skill."""
    if graph is None:
        return {}
    from skillshard.graph.skill_graph import SkillGraph

    found = SkillGraph.open(graph)
    return dict(zip(found.train_skills, found.edges, strict=True))


def _refuse_strangers(options: dict[str, Any], why: str) -> None:
    """A usage error for the first option that was given and does not belong here."""
    for name, value in options.items():
        if value is not None and value != []:
            raise typer.BadParameter(f"{name} {why}.", param_hint=name)


def _embedding(
    *,
    encoder: str | None,
    skills: str | None,
    skills_range: str,
    balance: float,
    model: Path | None,
    device: str | None,
    batch_size: int | None,
    dtype: str | None,
    prompt: str | None,
    max_length: int | None,
    windows: str | None,
    seed: int,
    on_this_machine: bool,
) -> Any:
    """The tagger that --by embedding asks for."""
    from skillshard import taggers

    if model is not None:
        _refuse_strangers({"--skills": skills, "--balance": balance or None}, "is fixed by --model")
    elif skills is None:
        raise typer.BadParameter("tagging by embedding needs --skills K, or --skills auto.", param_hint="--skills")
    kept = None if model is None else taggers.ClusterModel.open(model)
    name = encoder or (kept.manifest.encoder.name if kept else "lexical")
    if name == "lexical":
        alien = {"--device": device, "--batch-size": batch_size, "--dtype": dtype, "--prompt": prompt}
        alien |= {"--max-length": max_length, "--windows": windows}
        _refuse_strangers(alien, "is of sentence-transformers models: the lexical encoder has none")
        chosen: Any = taggers.lexical() if kept is None else taggers.kept_lexical(kept)
    else:
        made = kept.manifest.encoder.arguments if kept else {}
        chosen = taggers.sentence_encoder(
            name,
            device=device,
            batch_size=batch_size or made.get("batch_size", 32),
            dtype=dtype or made.get("dtype", "float32"),
            prompt=made.get("prompt", "") if prompt is None else prompt,
            max_length=max_length or made.get("max_length"),
            windows=windows or made.get("windows", "first"),
            on_this_machine=on_this_machine,
        )
    if kept:
        return taggers.kept_clusters(kept, chosen)
    assert skills is not None
    return taggers.embedding(
        chosen, skills=parse_skills(skills), skills_range=parse_range(skills_range), min_share=balance, seed=seed
    )


def _loss(
    *,
    skills: str | None,
    skills_range: str,
    model: Path | None,
    fixed: dict[str, Any],
    runs: int,
    checkpoints: int,
    steps: int,
    lr: float,
    probe: int,
    proxy: str,
    measure: str,
    segment_at: str | None,
    answer_after: str | None,
    unordered: bool,
    window: int,
    seed: int,
    device: str,
    precision: str,
) -> Any:
    """The tagger that --by loss asks for."""
    if model is not None:
        from skillshard.taggers.loss_model import open_loss_tagger

        _refuse_strangers({"--skills": skills} | fixed, "is fixed by --model")
        return open_loss_tagger(model)
    if skills is None:
        raise typer.BadParameter("tagging by loss needs --skills K, or --skills auto.", param_hint="--skills")
    from skillshard.taggers.loss import loss_tagger

    return loss_tagger(
        skills=parse_skills(skills),
        skills_range=parse_range(skills_range),
        runs=runs,
        checkpoints=checkpoints,
        steps=steps,
        proxy=proxy,
        measure=measure,
        segment_at=segment_at,
        answer_after=answer_after,
        ordered=not unordered,
        window=window,
        probe=probe,
        lr=lr,
        seed=seed,
        device=device,
        precision=precision,
        on_estimate=lambda sentence: typer.echo(sentence, err=True),
    )


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


@app.command()
def shard(
    corpus: CorpusPlaces,
    tags: Annotated[Path, typer.Option("--tags", help="Tags of this corpus, from 'skillshard tag'.")],
    out: Out,
    shard_size: Annotated[str, typer.Option("--shard-size", help="Size of a shard to aim at.")] = "64MB",
    holdout: Annotated[float, typer.Option("--holdout", help="Share of each skill kept for measuring losses.")] = 0.01,
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Write a tagged corpus as per-skill WebDataset shards."""
    from skillshard.corpus import Corpus
    from skillshard.execution import Where
    from skillshard.report.text import show_shards
    from skillshard.shards.read import ShardSet
    from skillshard.shards.write import write_shards
    from skillshard.tags import Tags

    if not 0 <= holdout < 1:
        raise typer.BadParameter(f"{holdout} is no share: give a number from 0 to below 1.", param_hint="--holdout")
    with _Bars() as bars:
        write_shards(
            Corpus.open(corpus),
            Tags.open(tags),
            out,
            shard_bytes=parse_size(shard_size, "--shard-size"),
            holdout=holdout,
            where=Where(workers, ray_address),
            on_stage=bars.stage,
        )
    show_shards(ShardSet.open(out))


@app.command()
def tokens(
    shards: ShardsPlace,
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="A tokenizer.json of Hugging Face's tokenizers.")],
    out: Out,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Add the tokenizer's special tokens to each sample.")
    ] = False,
    cache: CachePlace = None,
    cache_size: CacheSize = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Count the tokens of every sample: for weights in tokens, and for packing."""
    from skillshard.execution import Where
    from skillshard.report.text import show_tokens
    from skillshard.shards.read import ShardSet
    from skillshard.shards.tokens import count_tokens

    cache_bytes = None if cache_size is None else parse_size(cache_size, "--cache-size")
    with _Bars() as bars:
        counts = count_tokens(
            ShardSet.open(shards, cache=cache, cache_bytes=cache_bytes),
            tokenizer,
            out,
            special_tokens=special_tokens,
            where=Where(workers, ray_address),
            on_stage=bars.stage,
        )
    show_tokens(counts)


@app.command()
def inspect(
    place: Artefact,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Tags: how well they agree with a metadata field, or with other tags.",
            metavar="FIELD|TAGS",
        ),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", help="The corpus, to read the field from; only where tags do not keep it."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Tags: directory for pictures of sizes, map and agreement.")
    ] = None,
) -> None:
    """Show what an artefact holds."""
    from skillshard.report.text import show

    if against is None and pictures is None:
        _refuse_strangers({"--corpus": corpus}, "is where --against reads a field from: give --against FIELD")
        show(place)
        return
    from skillshard.report.clusters import show_clusters

    show_clusters(place, against=against, corpus=corpus, pictures=pictures)


@app.command()
def verify(place: Artefact) -> None:
    """Read every byte of an artefact and compare it with its manifest; exit 1 if anything is wrong."""
    from skillshard.report.text import verify as find_faults

    faults, summary = find_faults(place)
    for fault in faults:
        typer.echo(f"error: {fault}", err=True)
    if faults:
        raise typer.Exit(1)
    typer.echo(summary)


@app.command()
def mix(
    shards: ShardsPlace,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Number of draws.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSONL file, one line per draw; standard output if not given.")
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", help="stratified, proportional, temperature, unimax or fixed.")
    ] = "stratified",
    tau: Annotated[
        float | None, typer.Option("--tau", help="Of temperature: 1 is proportional, large is stratified.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Of unimax: most passes over one skill in these draws.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Of fixed: JSON, what 'skillshard fit' wrote or skill -> weight.")
    ] = None,
    floor: Annotated[float, typer.Option("--floor", help="Least weight of any skill.")] = 0.0,
    first: Annotated[int, typer.Option("--first", min=0, help="First draw.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another order.")] = 0,
    round_draws: Annotated[int, typer.Option("--round-draws", min=1, help="Draws with one weight vector.")] = 4096,
    ledger: Annotated[Path | None, typer.Option("--ledger", help="Keep the run's ledger here.")] = None,
    cache: CachePlace = None,
    cache_size: CacheSize = None,
) -> None:
    """Write the mixed stream: draw, skill and id, one line per draw."""
    from skillshard.mixing.listing import list_draws, static_policy

    text = list_draws(
        shards,
        policy=static_policy(policy, draws=first + draws, tau=tau, epochs=epochs, weights=weights),
        floor=floor,
        first=first,
        num=draws,
        seed=seed,
        round_draws=round_draws,
        ledger=ledger,
        cache=cache,
        cache_bytes=None if cache_size is None else parse_size(cache_size, "--cache-size"),
    )
    if out is None:
        sys.stdout.buffer.write(text)
        return
    if out.exists() and not (out.is_file() or out.is_dir()):  # a device or a pipe is written to, not replaced by a file
        out.write_bytes(text)
        return
    if out.exists() and out.read_bytes() != text:
        raise SkillshardError(f"{out} exists and holds something else. Choose another --out, or remove it.")
    from skillshard.storage import write_bytes

    write_bytes(out, text)
    typer.echo(f"{draws:,} draws in {out}")


@app.command()
def fit(
    runs: Annotated[
        str,
        typer.Argument(
            metavar="RUNS",
            help="Finished runs: a .json or .csv file, or a directory of them; each a mixture and the losses it ended with.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Write the proposal to this JSON file.")] = None,
    method: Annotated[
        str, typer.Option("--method", help="log-linear, or regmix (needs the extra 'regmix').")
    ] = "log-linear",
    shards: Annotated[
        str | None,
        typer.Option("--shards", help="The next run's shard set: its sizes are the prior; equal weights without it."),
    ] = None,
    kl: Annotated[
        float, typer.Option("--kl", min=0.0, help="Price of leaving the prior, nats of loss per nat.")
    ] = 0.05,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="Samples that the next run takes: limits repetition.")
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Most passes over one skill, with --draws.")] = 4.0,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="An evaluation skill whose loss counts; all without it.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random mixtures of regmix.")] = 0,
) -> None:
    """Propose weights from finished runs: fit a mixing law and find its best mixture near a prior."""
    from skillshard.fitting.proposal import propose_weights
    from skillshard.fitting.runs import read_runs
    from skillshard.report.text import show_proposal
    from skillshard.shards.read import ShardSet

    if method not in ("log-linear", "regmix"):
        raise typer.BadParameter(f"{method!r}: give 'log-linear' or 'regmix'.", param_hint="--method")
    opened = None if shards is None else ShardSet.open(shards)
    proposal = propose_weights(
        read_runs(runs),
        method="regmix" if method == "regmix" else "log_linear",
        kl=kl,
        num_samples=None if opened is None else {skill: len(opened.train[skill]) for skill in opened.skills},
        epochs=epochs,
        draws=draws,
        targets=target,
        seed=seed,
    )
    show_proposal(proposal)
    if out is not None:
        proposal.save(out)


EdgesOption = Annotated[
    str, typer.Option("--edges", help="absolute (nats), relative (to the loss at the start) or threshold:LOSS.")
]
AverageOption = Annotated[
    str | None,
    typer.Option("--average", help="'end' of a run or 'curve'; by default the end, and for leave-one-out the curve."),
]
OffDiagonal = Annotated[
    float | None,
    typer.Option("--off-diagonal", help="1 on the diagonal, the strongest other edge this; as measured without it."),
]
Clamp = Annotated[
    bool,
    typer.Option("--clamp/--keep-negative", help="Negative edges become 0, as in the paper's algorithms, or stay."),
]
DropUncertain = Annotated[
    bool, typer.Option("--drop-uncertain", help="Edges that cannot be told from 0 over the seeds become 0.")
]
GraphOut = Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON file to write.")]


@graphs.command("learn")
def learn_graph(
    shards: Annotated[str, typer.Argument(metavar="SHARDS", help="A shard set: its skills are the rows.")],
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of each run, H.")],
    out: GraphOut,
    method: Annotated[
        str,
        typer.Option("--method", help="linear, brute-force or leave-one-out; see docs/design/0010-graph-learning.md."),
    ] = "linear",
    warmup: Annotated[
        int,
        typer.Option("--warmup", min=0, help="Stratified steps before every run, taken once for each seed and kept."),
    ] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each kind; standard errors from 2 on.")] = 1,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Fine-tuning: a skill whose loss counts; all without it.")
    ] = None,
    eval_shards: Annotated[
        str | None, typer.Option("--eval", help="Out of domain: another shard set, whose holdout is measured.")
    ] = None,
    edges: EdgesOption = "absolute",
    average: AverageOption = None,
    off_diagonal: OffDiagonal = None,
    clamp: Clamp = True,
    drop_uncertain: DropUncertain = False,
    proxy: Annotated[
        str,
        typer.Option(
            "--proxy", help="'tiny', 'small', or a directory: any Hugging Face causal model and its tokenizer."
        ),
    ] = "tiny",
    window: Annotated[
        int, typer.Option("--window", help="Tokens read of a text (bytes, but with --proxy PATH).")
    ] = 128,
    segment_at: Annotated[
        str | None,
        typer.Option("--segment-at", help="Characters that end a segment; one position each, the answer is predicted."),
    ] = None,
    answer_after: Annotated[
        str | None, typer.Option("--answer-after", help="Only what follows the last of these in a text is predicted.")
    ] = None,
    unordered: Annotated[bool, typer.Option("--unordered", help="The order of the segments means nothing.")] = False,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, help="Samples of a step, rounded up so that the skills share it evenly."),
    ] = 64,
    lr: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = 1e-3,
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", min=1, help="Steps between measurements, h; a tenth of --steps.")
    ] = None,
    eval_samples: Annotated[
        int, typer.Option("--eval-samples", min=1, help="Held-out samples of each skill, at most.")
    ] = 100,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training samples of each skill, at most.")] = 20_000,
    for_steps: Annotated[
        int | None,
        typer.Option(
            "--for-steps", min=1, help="Length of the run that the graph is for: schedule, and share of its cost."
        ),
    ] = None,
    settle: Annotated[
        float | None, typer.Option("--settle", help="End a run once no loss moves by more nats over four measurements.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Begin nothing that will take longer: 90s, 30m, 2h.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Directory of runs and warm starts, kept; beside --out by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The first of the seeds.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the products: auto, float32 or bfloat16.")] = "auto",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Learn from short runs of a small model which skill helps which."""
    from skillshard.execution import Where
    from skillshard.graph.learn import learn_graph as learn
    from skillshard.graph.plan import parse_method
    from skillshard.report.graphs import show_graph
    from skillshard.shards.read import ShardSet

    if warmup == 0 and proxy in ("tiny", "small"):
        typer.echo(
            f"note: without --warmup a new {proxy} model learns first what all texts share, and the edges will mostly tell that.",
            err=True,
        )
    with _Bars() as bars:
        learn(
            ShardSet.open(shards),
            out,
            method=parse_method(method),
            steps=steps,
            rule=_edge_rule(edges, average, off_diagonal, clamp, drop_uncertain, parse_method(method)),
            warmup_steps=warmup,
            num_seeds=seeds,
            targets=target or (),
            eval_shards=None if eval_shards is None else ShardSet.open(eval_shards),
            proxy=proxy,
            window=window,
            segment_at=segment_at,
            answer_after=answer_after,
            ordered=not unordered,
            batch_size=batch_size,
            lr=lr,
            eval_every=eval_every,
            eval_samples=eval_samples,
            samples=samples,
            for_steps=for_steps,
            settle=settle,
            budget_s=None if budget is None else parse_duration(budget, "--budget"),
            seed=seed,
            device=device,
            precision=dtype,
            runs=runs,
            where=Where(workers, ray_address),
            on_estimate=lambda sentence: typer.echo(sentence, err=True),
            on_stage=bars.stage,
        )
    show_graph(out)


@graphs.command("derive")
def derive_graph(
    source: Annotated[Path, typer.Option("--from", help="A learned graph, with its losses.")],
    out: GraphOut,
    edges: EdgesOption = "absolute",
    average: AverageOption = None,
    off_diagonal: OffDiagonal = None,
    clamp: Clamp = True,
    drop_uncertain: DropUncertain = False,
) -> None:
    """Another definition of the edges of a learned graph, without training."""
    from skillshard.graph.derive import derive_again
    from skillshard.graph.skill_graph import read_graph, write_graph
    from skillshard.report.graphs import show_graph

    graph = read_graph(source)
    method = "linear" if graph.learned is None else graph.learned.method
    rule = _edge_rule(edges, average, off_diagonal, clamp, drop_uncertain, method)
    _write_new(out, lambda place: write_graph(derive_again(graph, rule=rule, name=str(source)), place))
    show_graph(out)


@graphs.command("show")
def show_graph_file(
    graph: Annotated[Path, typer.Argument(metavar="FILE", help="A graph.")],
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Directory for a heat map and a picture of nodes and arrows.")
    ] = None,
) -> None:
    """Show a graph: its edges, how dense it is, and what follows."""
    from skillshard.report.graphs import show_graph

    show_graph(graph, pictures=pictures)


@graphs.command("import")
def import_graph_file(
    matrix: Annotated[Path, typer.Argument(metavar="FILE", help="A matrix: .npy, .csv or .json; rows are trained on.")],
    out: GraphOut,
    names: Annotated[
        Path | None,
        typer.Option("--names", help="Text file: names of the rows, and of the columns if these are as many."),
    ] = None,
    eval_names: Annotated[Path | None, typer.Option("--eval-names", help="Text file: names of the columns.")] = None,
) -> None:
    """Make a graph of a matrix from elsewhere."""
    from skillshard.graph.imported import import_graph, read_names
    from skillshard.report.graphs import show_graph

    graph = import_graph(
        matrix,
        train_skills=() if names is None else read_names(names),
        eval_skills=() if eval_names is None else read_names(eval_names),
    )
    _write_new(out, graph.save)
    show_graph(out)


def _write_new(out: Path, write: Callable[[Path], None]) -> None:
    """Write a file, unless another one is there."""
    if not out.exists():
        write(out)
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "new")
        if (Path(folder) / "new").read_bytes() != out.read_bytes():
            raise SkillshardError(f"{out} exists and holds something else. Choose another --out, or remove it.")


def _edge_rule(
    edges: str, average: str | None, off_diagonal: float | None, clamp: bool, drop_uncertain: bool, method: str
) -> Any:
    from skillshard.graph.edges import EdgeRule, parse_edges, usual_average

    if average not in (None, "end", "curve"):
        raise typer.BadParameter(f"{average!r}: give 'end' or 'curve'.", param_hint="--average")
    unit, threshold = parse_edges(edges)
    return EdgeRule(
        unit,
        threshold,
        average or usual_average(method),  # type: ignore[arg-type]  # checked above and by the callers
        clamp=clamp,
        off_diagonal=off_diagonal,
        drop_uncertain=drop_uncertain,
    )


@synth.command()
def lego(
    k: Annotated[int, typer.Option("--k", min=1, max=26, help="Variables in the chain: the number of skills.")],
    samples: Annotated[int, typer.Option("--samples", min=1, help="Number of samples.")],
    out: Out,
    order: Annotated[
        str, typer.Option("--order", help="'shuffled' clauses as in the paper, or 'chain': the easier ordered LEGO.")
    ] = "shuffled",
    proportions: Annotated[
        str, typer.Option("--proportions", help="'natural' (1:...:1:3:5), 'uniform', or numbers such as 1:2:4.")
    ] = "natural",
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """The paper's LEGO corpus: chains of variables; skill i asks for the i-th."""
    from skillshard.synthetic.lego import write_lego

    places = write_lego(
        out,
        k=k,
        num_samples=samples,
        seed=seed,
        order=order,
        proportions=parse_proportions(proportions),
    )
    typer.echo(f"{samples:,} samples in {len(places)} files in {out}; tag them with --field meta.skill")


@synth.command()
def addition(
    k: Annotated[int, typer.Option("--k", min=1, max=9, help="Digits of each number: the number of skills.")],
    samples: Annotated[int, typer.Option("--samples", min=1, help="Number of samples.")],
    out: Out,
    proportions: Annotated[
        str, typer.Option("--proportions", help="'natural' (13:14:18 for k=3), 'uniform', or numbers such as 1:2:4.")
    ] = "natural",
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """The paper's addition corpus: sums of two numbers; skill i asks for the i-th digit from the right."""
    from skillshard.synthetic.addition import write_addition

    places = write_addition(out, k=k, num_samples=samples, seed=seed, proportions=parse_proportions(proportions))
    typer.echo(f"{samples:,} samples in {len(places)} files in {out}; tag them with --field meta.skill")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for everything it makes.")] = Path("skillshard-demo"),
    k: Annotated[int, typer.Option("--k", min=2, max=8, help="Variables in the chain: the number of skills.")] = 4,
    samples: Annotated[int, typer.Option("--samples", min=2000, help="Size of the corpus.")] = 200_000,
    steps: Annotated[int, typer.Option("--steps", min=60, help="Optimizer steps of each training.")] = 3000,
    seed: Annotated[int, typer.Option("--seed", help="Of corpus, model and stream.")] = 0,
) -> None:
    """The whole way on the paper's LEGO task: natural, stratified and SKILL-IT, in a few minutes on two cores."""
    from skillshard.demo import run_demo, show_results, summary

    with _Bars() as bars:
        results = run_demo(
            out, k=k, num_samples=samples, steps=steps, seed=seed, on_stage=bars.stage, on_steps=bars.steps
        )
    show_results(results)
    typer.echo(summary(results, out, steps=steps))


class _Bars:
    """Progress bars on standard error, one per stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> "_Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def stage(self, name: str, num: int) -> Callable[[Any, Any], None]:
        task = self._progress.add_task(name, total=num)
        return lambda unit, record: self._progress.advance(task)

    def steps(self, name: str, num: int) -> Callable[[int], None]:
        task = self._progress.add_task(name, total=num)
        return lambda done: self._progress.update(task, completed=done)


def run_job(*verb: str) -> None:
    """A verb as a Ray job (jobs/*.py): the same options, on the cluster that the job was submitted to."""
    arguments = sys.argv[1:]
    if relative := _relative_paths(verb, arguments):
        typer.echo(
            f"error: {relative[0]} is a relative path, and the working directory of a Ray job is a copy on some node. Give "
            "absolute paths that every node sees, or URIs.",
            err=True,
        )
        sys.exit(2)
    main([*verb, "--ray-address", "auto", *arguments])


def _relative_paths(verb: tuple[str, ...], arguments: list[str]) -> list[str]:
    command: Any = typer.main.get_command(app)
    for name in verb:
        command = command.commands[name]
    found = command.make_context(verb[-1], list(arguments), resilient_parsing=True).params
    names = ("shards", "eval_shards", "tags", "tokenizer", "cache", "out", "model", "mapping", "graph", "runs", "proxy")
    given = [found.get(name) for name in names if found.get(name) not in ("tiny", "small")]
    places = [*(found.get("corpus") or ()), *(place for place in given if isinstance(place, str | Path))]
    return [str(place) for place in places if place is not None and "://" not in str(place) and str(place)[:1] != "/"]


def main(arguments: list[str] | None = None) -> None:
    """The entry point: every error of ours becomes one sentence and exit code 1, every warning one sentence."""
    warnings.showwarning = lambda message, *place: typer.echo(f"warning: {message}", err=True)
    try:
        app(arguments)
    except SkillshardError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        typer.echo(
            f"error: {error}. What is finished is kept: mend the cause and run the same command again.", err=True
        )
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("stopped; what is finished is kept: run the same command again to go on.", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
