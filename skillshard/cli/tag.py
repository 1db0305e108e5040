"""`skillshard tag`: by metadata, embedding, loss or other tags."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from skillshard.cli.bars import Bars
from skillshard.cli.options import (
    CorpusPlaces,
    Given,
    OnBadSample,
    Out,
    RayAddress,
    Verb,
    Workers,
    open_corpus,
    parse_range,
    parse_size,
    parse_skills,
    place_of_work,
)

OF_ALL = frozenset(("corpus", "out", "workers", "ray_address"))
OF_READING = frozenset(("by", "on_bad_sample", "max_sample_bytes", "id_field", "text_field", "partition_size"))
OF_REGROUPING = frozenset(("combine", "mapping", "min_share", "rest", "graph"))
OF_MODELS = frozenset(("device", "batch_size", "dtype", "prompt", "max_length", "windows"))
OF_CLUSTERS = frozenset(("skills", "skills_range", "seed"))
OF_RUNS = frozenset(
    (
        "proxy",
        "runs",
        "checkpoints",
        "steps",
        "lr",
        "probe",
        "measure",
        "segment_at",
        "answer_after",
        "prompt_field",
        "unordered",
    )
)
OF_METHOD = {
    "metadata": frozenset(("field", "mapping", "min_share", "rest")),
    "embedding": OF_CLUSTERS | OF_MODELS | {"encoder", "balance", "model"},
    "loss": OF_CLUSTERS | OF_RUNS | {"model", "device", "dtype", "max_length"},
}
"""Options by what they belong to: all others are refused, also where they are given their default."""


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
    prompt_field: Annotated[
        str | None,
        typer.Option(
            "--prompt-field",
            help="loss: metadata field with the number of characters of a text's prompt, which is not predicted.",
        ),
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
    from skillshard.artefact import refuse_nested
    from skillshard.report.text import show_tags

    refuse_nested(out, corpus)
    if by not in ("metadata", "embedding", "loss"):
        raise typer.BadParameter(f"{by!r}: give 'metadata', 'embedding' or 'loss'.", param_hint="--by")
    if on_bad_sample not in ("stop", "set-aside"):
        raise typer.BadParameter(f"{on_bad_sample!r}: give 'stop' or 'set-aside'.", param_hint="--on-bad-sample")
    given = Verb.given
    where = place_of_work(workers, ray_address)
    if not field and any(name in given for name in ("combine", "mapping", "min_share", "rest")):
        if by != "metadata":
            given.refuse(
                OF_REGROUPING,
                "regroups finished tags: tag first, then give the directory of the tags in place of CORPUS",
            )
        given.refuse_all_but(
            OF_ALL | OF_REGROUPING,
            "has no meaning where finished tags are regrouped (--combine, --map, --min-share); to tag by metadata give --field",
        )
        if "rest" in given:
            given.refuse(
                ["graph"], "finds the skill that a small one is merged into, and --rest names it: give one of them"
            )
        elif "min_share" not in given:
            given.refuse(["graph"], "says where small skills go: give --min-share")
        _regroup(
            corpus, out, combine=combine, mapping=mapping, min_share=min_share, rest=rest, graph=graph, where=where
        )
        return
    if by == "metadata" and field:
        given.refuse(
            ["combine", "graph"], "regroups finished tags: leave out --field, and give the tags in place of CORPUS"
        )
    given.refuse_all_but(OF_ALL | OF_READING | OF_METHOD[by], f"has no meaning with --by {by}")
    if by == "metadata" and not field:
        raise typer.BadParameter(
            "tagging by metadata needs a field, such as --field meta.category.", param_hint="--field"
        )
    if by != "metadata" and model is not None:
        given.refuse(
            (OF_CLUSTERS | OF_RUNS | {"balance"} | (OF_METHOD["loss"] - {"model"} if by == "loss" else frozenset())),
            "is fixed by --model",
        )
    elif by != "metadata" and skills != "auto":
        given.refuse(["skills_range"], "is what --skills auto tries: give --skills auto")
    if segment_at is not None:
        given.refuse(["max_length"], "counts tokens of a text, and with --segment-at a text is read as segments")
    else:
        given.refuse(["unordered"], "is about the order of segments: give --segment-at")
    opened = open_corpus(corpus)
    bars = Bars(out)
    if by == "metadata":
        tagger = _metadata(field or [], mapping, min_share, rest)
    elif by == "loss":
        tagger = _loss(
            skills=skills,
            skills_range=skills_range,
            model=model,
            runs=10 if runs is None else runs,
            checkpoints=10 if checkpoints is None else checkpoints,
            steps=1000 if steps is None else steps,
            lr=0.001 if lr is None else lr,
            probe=2000 if probe is None else probe,
            proxy=proxy or "tiny",
            measure=measure or "whole",
            segment_at=segment_at,
            answer_after=answer_after,
            prompt_field=prompt_field,
            unordered=unordered,
            window=max_length or 128,
            seed=seed,
            device=device or "auto",
            precision=dtype or "auto",
            on_this_machine=ray_address is None,
            on_estimate=bars.say,
        )
    else:
        tagger = _embedding(
            given=given,
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
    with bars:
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


def _regroup(
    corpus: Any,
    out: Path,
    *,
    combine: bool,
    mapping: Path | None,
    min_share: float,
    rest: str | None,
    graph: Path | None,
    where: Any,
) -> None:
    """Finished tags, with fewer skills or pairs of them."""
    from skillshard import taggers
    from skillshard.report.text import show_tags

    with Bars(out) as bars:
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


def _embedding(
    *,
    given: Given,
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

    if model is None and skills is None:
        raise typer.BadParameter("tagging by embedding needs --skills K, or --skills auto.", param_hint="--skills")
    kept = None if model is None else taggers.ClusterModel.open(model)
    name = encoder or (kept.manifest.encoder.name if kept else "lexical")
    if name == "lexical":
        given.refuse(OF_MODELS, "is of sentence-transformers models: the lexical encoder has none")
        chosen: Any = taggers.lexical() if kept is None else taggers.kept_lexical(kept)
    else:
        made = kept.manifest.encoder.arguments if kept else {}
        chosen = taggers.sentence_encoder(
            name,
            device=device or "auto",
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
    runs: int,
    checkpoints: int,
    steps: int,
    lr: float,
    probe: int,
    proxy: str,
    measure: str,
    segment_at: str | None,
    answer_after: str | None,
    prompt_field: str | None,
    unordered: bool,
    window: int,
    seed: int,
    device: str,
    precision: str,
    on_this_machine: bool,
    on_estimate: Callable[[str], None],
) -> Any:
    """The tagger that --by loss asks for."""
    if model is not None:
        from skillshard.taggers.losses.saved import open_loss_tagger

        return open_loss_tagger(model)
    if skills is None:
        raise typer.BadParameter("tagging by loss needs --skills K, or --skills auto.", param_hint="--skills")
    from skillshard.taggers.losses.tagger import loss_tagger

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
        prompt_field=prompt_field,
        ordered=not unordered,
        window=window,
        probe=probe,
        lr=lr,
        seed=seed,
        device=device,
        precision=precision,
        on_this_machine=on_this_machine,
        on_estimate=on_estimate,
    )
