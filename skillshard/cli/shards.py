"""`skillshard shard` and `tokens`: write the data that a trainer reads."""

from enum import StrEnum
from typing import Annotated

import typer

from skillshard.bars import Bars
from skillshard.cli.groups import grouped
from skillshard.cli.options import CHAT_TEMPLATE, Cache, CorpusPlaces, JobArray, Nodes, Out, ShardsPlace, open_corpus
from skillshard.cli.values import parse_out, parse_size, place_on_all_nodes


class Copies(StrEnum):
    """Values of --copies."""

    keep = "keep"
    drop = "drop"


DEFAULT_HOLDOUT = 0.01


class Layouts(StrEnum):
    """Values of --layout."""

    pairs = "pairs"
    compact = "compact"


@grouped
def shard(
    corpus: CorpusPlaces,
    tags: Annotated[
        str,
        typer.Option(
            "--tags", parser=place_on_all_nodes, metavar="TAGS", help="Tags of the corpus, from 'skillshard tag'."
        ),
    ],
    out: Out,
    *,
    shard_bytes: Annotated[
        str, typer.Option("--shard-size", metavar="SIZE", help="Approximate size of a shard.")
    ] = "64MB",
    holdout: Annotated[
        float | None,
        typer.Option(
            "--holdout",
            metavar="SHARE",
            show_default="0.01",
            help="Share of the texts that are held out for measuring losses. The hash of the folded text decides, so copies of a text "
            "never stand in train and in holdout.",
        ),
    ] = None,
    copies: Annotated[
        Copies | None,
        typer.Option(
            "--copies",
            show_default="keep",
            help="Action on a sample whose folded text stands earlier in the corpus: 'keep' the sample, or 'drop' the sample into "
            "OUT/rejected with the id of the first copy.",
        ),
    ] = None,
    layout: Annotated[
        Layouts | None,
        typer.Option(
            "--layout",
            show_default="pairs",
            help="Members of a tar: 'pairs' has a text and a JSON for each sample, 'compact' saves a third of the space of texts of 1 kB.",
        ),
    ] = None,
    members: Annotated[
        list[str] | None,
        typer.Option(
            "--members",
            metavar="A,B",
            help="Members that samples keep as bytes beside their text, such as images: suffixes of a tar, as in 'jpg,wav', or columns of a table, as "
            "in 'jpg=image'. Other members are left out.",
            show_default="none",
        ),
    ] = None,
    append: Annotated[
        str | None,
        typer.Option(
            "--append",
            parser=place_on_all_nodes,
            metavar="SHARDS",
            help="Finished shards to continue. OUT gets shards for CORPUS, and its manifest also lists SHARDS. Split, copies, layout "
            "and members are as in SHARDS.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help="Number of rows to shard, from the beginning of the corpus.",
            show_default="all rows that are tagged",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the input, the output and the cost of the command. Write nothing."),
    ] = False,
    scratch: Annotated[
        str | None,
        typer.Option(
            "--scratch",
            parser=parse_out,
            metavar="PLACE",
            help="Directory or URI for scratch files, as large as the corpus. Default: a directory in OUT.",
        ),
    ] = None,
    nodes: Nodes,
    array: JobArray,
) -> None:
    """Write a tagged corpus as per-skill WebDataset shards."""
    from skillshard.artefact import refuse_nested
    from skillshard.cli.values import split_names
    from skillshard.corpus import given_places
    from skillshard.corpus.members import parse_members
    from skillshard.report.text import show_shards
    from skillshard.shards.read import ShardSet
    from skillshard.shards.write import APPEND_STAGES, STAGES, append_shards, write_shards
    from skillshard.tags import Tags

    of_parent = {"--holdout": holdout, "--copies": copies, "--layout": layout, "--members": members}
    if append is not None and (named := [name for name, value in of_parent.items() if value is not None]):
        raise typer.BadParameter(
            f"the appended shards follow {append}: leave out {', '.join(named)}.", param_hint="--append"
        )
    if holdout is not None and not 0 <= holdout < 1:
        raise typer.BadParameter(f"{holdout} is no share: give a number from 0 to below 1.", param_hint="--holdout")
    backend = nodes.backend(array.part(STAGES if append is None else APPEND_STAGES))
    refuse_nested(out, [*given_places(corpus), tags, *([] if append is None else [append])])
    opened_tags = Tags.open(tags)
    opened = open_corpus(corpus, opened_tags.layout)
    shard_size = parse_size(shard_bytes, "--shard-size")
    parent = None if append is None else ShardSet.open(append)
    suffixes = split_names(members or (), ())
    parse_members(suffixes)
    if dry_run:
        from skillshard.report.dry_run import show_shard_plan

        show_shard_plan(
            opened,
            opened_tags,
            out,
            shard_bytes=shard_size,
            holdout=DEFAULT_HOLDOUT if holdout is None else holdout,
            layout=(layout or Layouts.pairs).value if parent is None else parent.layout,
            members=parse_members(suffixes) if parent is None else parent.kept_members,
            scratch=scratch,
            limit=limit,
            backend=backend,
        )
        return
    with Bars(out) as bars:
        if parent is not None:
            shards = append_shards(
                parent,
                opened,
                opened_tags,
                out,
                shard_bytes=shard_size,
                scratch=scratch,
                limit=limit,
                backend=backend,
                on_stage=bars.stage,
            )
        else:
            shards = write_shards(
                opened,
                opened_tags,
                out,
                shard_bytes=shard_size,
                holdout=DEFAULT_HOLDOUT if holdout is None else holdout,
                copies=(copies or Copies.keep).value,
                layout=(layout or Layouts.pairs).value,
                members=suffixes,
                scratch=scratch,
                limit=limit,
                backend=backend,
                on_stage=bars.stage,
            )
    show_shards(shards)


@grouped
def tokens(
    shards: ShardsPlace,
    out: Out,
    *,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            parser=place_on_all_nodes,
            metavar="FILE",
            help="Tokenizer: a tokenizer.json of Hugging Face's tokenizers, or its directory.",
        ),
    ] = None,
    from_ids: Annotated[
        bool,
        typer.Option(
            "--from-ids",
            help="Keep the ids and labels of a corpus that was tokenized already, in place of --tokenizer.",
        ),
    ] = False,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size",
            metavar="N",
            min=1,
            help="Number of ids of the vocabulary, with --from-ids.",
            show_default="as the corpus was tagged",
        ),
    ] = None,
    special_tokens: Annotated[
        bool,
        typer.Option(
            "--special-tokens", help="Add the tokenizer's special tokens, such as BOS and EOS, to each sample."
        ),
    ] = False,
    counts_only: Annotated[
        bool,
        typer.Option(
            "--counts-only",
            help="Leave out the ids. Counts are enough for weights in tokens, and not for packed blocks.",
        ),
    ] = False,
    answer_after: Annotated[
        str | None,
        typer.Option(
            "--answer-after",
            metavar="TEXT",
            help="String before the answer. Only the text after the last occurrence is learned.",
        ),
    ] = None,
    prompt_field: Annotated[
        str | None,
        typer.Option(
            "--prompt-field",
            metavar="PATH",
            help="Metadata field with the length of the prompt in characters, or with the spans of the answers. Only answers are learned.",
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="tokenizer|FILE",
            help=f"{CHAT_TEMPLATE} learned.",
        ),
    ] = None,
    cache: Cache,
    nodes: Nodes,
    array: JobArray,
) -> None:
    """Tokenize every sample once: ids for packed blocks, and counts for weights in tokens."""
    from skillshard.artefact import refuse_nested
    from skillshard.report.text import show_tokens
    from skillshard.shards.tokens import STAGES, write_tokens

    if from_ids == (tokenizer is not None):
        fault = "give one of --tokenizer and --from-ids"
        raise typer.BadParameter(
            f"both make the ids: {fault}."
            if from_ids
            else f"no tokenizer: {fault}, which keeps the ids of a tokenized corpus.",
            param_hint="--tokenizer",
        )
    if counts_only and (answer_after is not None or prompt_field is not None):
        option = "--answer-after" if answer_after is not None else "--prompt-field"
        raise typer.BadParameter(
            "masks kept ids, and --counts-only keeps none: give one of the two.", param_hint=option
        )
    backend = nodes.backend(array.part(STAGES))
    refuse_nested(out, [shards])
    opened = cache.open(shards)
    with Bars(out) as bars:
        tokens = write_tokens(
            opened,
            tokenizer,
            out,
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            counts_only=counts_only,
            answer_after=answer_after,
            prompt_field=prompt_field,
            chat_template=chat_template,
            backend=backend,
            on_stage=bars.stage,
            on_estimate=bars.say,
        )
    show_tokens(tokens)
