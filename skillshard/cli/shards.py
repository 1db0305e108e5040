"""`skillshard shard` and `tokens`: what a trainer reads."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.options import (
    CachePlace,
    CacheSize,
    CorpusPlaces,
    Out,
    RayAddress,
    ShardsPlace,
    Workers,
    backend_of,
    open_corpus,
    parse_cache_size,
    parse_size,
    path_on_all_nodes,
)


class Copies(StrEnum):
    """Values of --copies."""

    keep = "keep"
    drop = "drop"


def shard(
    corpus: CorpusPlaces,
    tags: Annotated[
        Path,
        typer.Option(
            "--tags", parser=path_on_all_nodes, metavar="TAGS", help="Tags of this corpus, from 'skillshard tag'."
        ),
    ],
    out: Out,
    shard_bytes: Annotated[str, typer.Option("--shard-size", help="Size of a shard to aim at.")] = "64MB",
    holdout: Annotated[
        float,
        typer.Option(
            "--holdout",
            help="Share of the texts kept for measuring losses, by the hash of the text (NFC, case and white space folded): a text never "
            "stands in train and in holdout. A skill that would have no held-out text holds out its lowest hash.",
        ),
    ] = 0.01,
    copies: Annotated[
        Copies,
        typer.Option(
            "--copies",
            help="Samples whose folded text stands earlier in the corpus, in any skill: 'keep' them, or 'drop' them into OUT/rejected with "
            "the id of the first.",
        ),
    ] = Copies.keep,
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Write a tagged corpus as per-skill WebDataset shards."""
    from skillshard.artefact import refuse_nested
    from skillshard.report.text import show_shards
    from skillshard.shards.write import write_shards
    from skillshard.tags import Tags

    if not 0 <= holdout < 1:
        raise typer.BadParameter(f"{holdout} is no share: give a number from 0 to below 1.", param_hint="--holdout")
    refuse_nested(out, [*corpus, tags])
    opened = open_corpus(corpus)
    with Bars(out) as bars:
        shards = write_shards(
            opened,
            Tags.open(tags),
            out,
            shard_bytes=parse_size(shard_bytes, "--shard-size"),
            holdout=holdout,
            copies=copies.value,
            backend=backend_of(workers, ray_address),
            on_stage=bars.stage,
        )
    show_shards(shards)


def tokens(
    shards: ShardsPlace,
    tokenizer: Annotated[
        Path,
        typer.Option(
            "--tokenizer",
            parser=path_on_all_nodes,
            metavar="FILE",
            help="A tokenizer.json of Hugging Face's tokenizers.",
        ),
    ],
    out: Out,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Add the tokenizer's special tokens to each sample.")
    ] = False,
    cache: CachePlace = None,
    cache_bytes: CacheSize = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Count the tokens of every sample: for weights in tokens, and for packing."""
    from skillshard.artefact import refuse_nested
    from skillshard.report.text import show_tokens
    from skillshard.shards.read import ShardSet
    from skillshard.shards.tokens import count_tokens

    refuse_nested(out, [shards])
    most_bytes = parse_cache_size(cache, cache_bytes)
    with Bars(out) as bars:
        counts = count_tokens(
            ShardSet.open(shards, cache=cache, cache_bytes=most_bytes),
            tokenizer,
            out,
            special_tokens=special_tokens,
            backend=backend_of(workers, ray_address),
            on_stage=bars.stage,
        )
    show_tokens(counts)
