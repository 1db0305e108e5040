"""Print artefacts as tables in the terminal."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from skillshard import artefact, export_manifest, places
from skillshard import tags as tags_module
from skillshard.bars import duration
from skillshard.corpus.members import suffixes_beside_texts
from skillshard.corpus.selection import describe_left_out
from skillshard.errors import name_some
from skillshard.fitting.proposal import Proposal
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import open_records
from skillshard.mixing.weights_file import WeightsFile
from skillshard.printable import counted, printable, shortened, size_in_words
from skillshard.report.facts import ExportFacts, ShardsMember, export_facts, shards_facts, tokens_facts
from skillshard.report.run_facts import RunFacts, RunSkip, run_facts
from skillshard.shards import manifest as shards_manifest
from skillshard.shards import token_manifest
from skillshard.shards.manifest import SPLIT_BY_ID, AnyManifest, Manifest1, ManifestSkill2
from skillshard.shards.read import ShardSet
from skillshard.shards.split import HOW_TO_HOLD_OUT
from skillshard.shards.token_manifest import TokensManifest4
from skillshard.shards.token_set import TokenSet
from skillshard.taggers.clusters.kmeans import Choice, about_choice
from skillshard.taggers.clusters.saved import AnyModelManifest, Cluster, Cluster1, SavedClusters, has_clusters
from skillshard.tags import Tags, TagsSetAside


def show(place: str | os.PathLike[str]) -> None:
    """Print the content of the artefact at `place`."""
    kind = artefact.kind(place)
    if kind == tags_module.MANIFEST:
        show_tags(Tags.open(place))
        if has_clusters(place):
            show_saved_clusters(SavedClusters.open(place))
    elif kind == shards_manifest.MANIFEST:
        shards = ShardSet.open(place)
        show_shards(shards)
        if shards.has_keys:
            print_line(
                "Beside each shard lie keys: for each sample the hashes of its id and text, and its file and row in the corpus."
            )
    elif kind == token_manifest.MANIFEST:
        show_tokens(TokenSet.open(place))
    elif kind == export_manifest.MANIFEST:
        show_export(export_facts(place))
    else:
        show_ledger(DirectoryLedger(place))


def show_tags(tags: Tags) -> None:
    manifest = tags.manifest
    rows = [
        (
            skill.name,
            f"{skill.num_samples:,}",
            share(skill.num_samples, manifest.num_tagged),
            "-" if skill.num_text_bytes is None else size_in_words(skill.num_text_bytes),
        )
        for skill in manifest.skills
    ]
    print_table(("skill", "samples", "share", "text"), rows)
    aside = _set_aside(_by_field(tags.set_aside_counts(), manifest.set_aside), manifest.unread)
    print_line(
        f"{counted(manifest.num_rows, 'row')} = {manifest.num_tagged:,} tagged in {counted(len(manifest.skills), 'skill')} + {aside}; "
        f"{counted(len(manifest.parts), 'part')} in {places.public(tags.folder)}"
    )
    if manifest.set_aside_by:
        print_line(f"set aside by file, the most first: {_worst_files(manifest.set_aside_by, _file_rows(tags))}")
    other = [skill.name for skill in manifest.skills if _NO_STRING.fullmatch(skill.name)]
    if other and manifest.made_from["arguments"].get("tagger") == "metadata":
        print_line(
            f"{counted(len(other), 'skill')} with the name of a number or a boolean ({name_some(other, 3)}): "
            'the number 3 and the string "3" are one skill'
        )
    _print_limit(manifest.made_from)
    left_out = manifest.left_out
    if left_out.files:
        print_line(f"left out of the corpus: {describe_left_out(left_out.files)}")
    if left_out.members:
        print_line(f"passed over, because they are no samples: {_counts(left_out.members)}")
    if suffixes := suffixes_beside_texts(left_out.members):
        print_line(f"'skillshard shard --members {','.join(suffixes)}' keeps such members of the samples as bytes")
    if left_out.columns:
        print_line(f"left out of meta, because they have no JSON form: {_counts(left_out.columns)} (column rows)")


def _file_rows(tags: Tags) -> Counter[str]:
    num_rows = Counter[str]()
    for file, num in tags.file_rows():
        num_rows[file] += num
    return num_rows


def _by_field(counts: Iterable[tuple[str, str, str | None, int]], reasons: Collection[str]) -> dict[str, int]:
    """Return the numbers of rows that were set aside, by reason and field.

    Args:
        counts: File, reason, field and number of rows.
        reasons: Reasons of rows. The rests of files have other reasons.
    """
    total: Counter[str] = Counter()
    for _, reason, field, num_rows in counts:
        if reason in reasons:
            total[f"{reason} of {field!r}" if field else reason] += num_rows
    return dict(total)


def _worst_files(counts: Iterable[TagsSetAside], file_rows: Mapping[str, int] | None = None) -> str:
    """Name the files with the most rows that were set aside.

    Args:
        counts: Rows that were set aside.
        file_rows: File -> number of its rows. None: the numbers are unknown.
    """
    num_set_aside = Counter[str]()
    for count in counts:
        num_set_aside[count.file] += count.num_rows
    files = sorted(num_set_aside, key=lambda file: (-num_set_aside[file], file))
    return name_some(
        (
            f"{file} {counted(num_set_aside[file], 'row')}"
            if file_rows is None
            else f"{file} {num_set_aside[file]:,} of {counted(file_rows[file], 'row')}"
            for file in files
        ),
        3,
    )


def show_shards(shards: ShardSet) -> None:
    manifest, facts = shards.manifest, shards_facts(shards)
    rows = []
    for skill in facts.skills:
        copies = "not counted" if skill.num_copies is None else f"{skill.num_copies:,}"
        numbers = (f"{skill.num_train:,}", f"{skill.num_holdout:,}", copies, f"{skill.num_shards:,}")
        rows.append((skill.name, *numbers, size_in_words(skill.num_bytes)))
    print_table(("skill", "train", "holdout", "copies", "shards", "bytes"), rows)
    by_field: Mapping[str, int] = manifest.set_aside
    if facts.set_aside_by is not None:
        kinds = ((count.file, count.reason, count.field, count.num_rows) for count in facts.set_aside_by)
        by_field = _by_field(kinds, manifest.set_aside)
    print_line(
        f"{counted(manifest.num_rows, 'row')} = {manifest.num_train:,} train + {manifest.num_holdout:,} holdout + {_set_aside(by_field, manifest.unread)}; "
        f"{places.public(shards.root)}"
    )
    if facts.set_aside_by:
        print_line(f"set aside by file, the most first: {_worst_files(facts.set_aside_by)}")
    if facts.members:
        print_line(f"members beside the texts, kept as bytes: {', '.join(map(_member_in_words, facts.members))}")
    _print_limit(manifest.made_from)
    for line in _notes_on_split(manifest):
        print_line(line)


def _member_in_words(member: ShardsMember) -> str:
    """Return the suffix of members, with the number of samples with the member and the bytes, if both are known."""
    if member.num_samples is None or member.num_bytes is None:
        return f"{member.suffix} (not counted in remote shards)"
    return f"{member.suffix} in {counted(member.num_samples, 'sample')}, {size_in_words(member.num_bytes)}"


def _print_limit(made_from: Mapping[str, Any]) -> None:
    """Print a line if only the first rows of the corpus were read."""
    limit = made_from.get("arguments", {}).get("limit")
    if limit is not None:
        print_line(f"limited to the first {counted(limit, 'row')} of the corpus; the other rows were not read")


def _notes_on_split(manifest: AnyManifest) -> Iterator[str]:
    """Yield sentences about copies, exceptions to the cut, and skills that cannot be measured or trained on."""
    if isinstance(manifest, Manifest1):
        yield SPLIT_BY_ID
    else:
        if manifest.num_copies:
            yield (
                f"{counted(manifest.num_copies, 'sample')} {'is a copy' if manifest.num_copies == 1 else 'are copies'}: the same text stands "
                "earlier in the corpus, but for case, white space and Unicode composition. "
                + (
                    "They are set aside in rejected/."
                    if manifest.copies_are_dropped
                    else "They are kept, each text on one side of the split; 'skillshard shard --copies drop' leaves them out."
                )
            )
        for num, where in (
            (len(manifest.split.also_held_out), "in holdout, so that skills without a held-out text have one"),
            (
                len(manifest.split.kept_in_train),
                "in train, so that skills whose texts were all held out can be trained on",
            ),
        ):
            if num:
                yield f"{counted(num, 'more text')} {'is' if num == 1 else 'are'} {where}; manifest.json lists the hashes."
    yield from _more_than_asked(manifest)
    empty = [skill.name for skill in manifest.skills if not skill.train.number]
    if empty:
        yield f"Without a training sample, so left out of every mix: {name_some(empty)}."
    # Skills without a train were named above. A set without any holdout gets one sentence, and not a list of all its skills.
    bare = [skill.name for skill in manifest.skills if skill.train.number and not skill.holdout.number]
    if bare and manifest.num_holdout:
        yield (
            f"Without a held-out sample, so SKILL-IT and other policies that read losses cannot measure them: {name_some(bare)}. What helps: "
            f"{HOW_TO_HOLD_OUT}."
        )
    elif bare:
        yield (
            "No sample is held out, so SKILL-IT and other policies that read losses cannot measure any skill. For those, shard into "
            "another directory with a holdout: 'skillshard shard CORPUS --tags T --holdout 0.01 --out S'."
        )


def _more_than_asked(manifest: AnyManifest) -> Iterator[str]:
    """Yield a sentence about skills that lose much of their train to the holdout, because a held-out text takes its copies along."""
    holdout = manifest.made_from.get("arguments", {}).get("holdout", 0)
    shares = {}
    for skill in manifest.skills:
        num_held_out = sum(skill.holdout.num_samples)
        held_out = num_held_out / (num_held_out + sum(skill.train.num_samples) or 1)
        # Twice the holdout plus 5 points: in a small skill, chance alone often holds out more than the holdout.
        if (
            isinstance(skill, ManifestSkill2)
            and skill.num_copies
            and num_held_out > 1
            and held_out > 2 * holdout + 0.05
        ):
            shares[skill.name] = held_out
    if shares:
        yield (
            f"Held out with all their copies, some texts take much more than the holdout {holdout:g} of these skills: "
            f"{name_some(f'{name} {100 * held_out:.0f} %' for name, held_out in shares.items())}. 'skillshard shard --copies drop' prevents this."
        )


def show_tokens(tokens: TokenSet) -> None:
    facts, rows = tokens_facts(tokens), []
    for skill in facts.skills:
        mean = f"{skill.num_train / skill.num_train_samples:.1f}" if skill.num_train_samples else "-"
        share_of = share(skill.num_train, facts.num_train)
        rows.append((skill.name, f"{skill.num_train:,}", share_of, mean, f"{skill.num_holdout:,}"))
    print_table(("skill", "train tokens", "share", "per sample", "holdout tokens"), rows)
    form = "counts alone" if facts.id_type is None else f"ids of {facts.id_type}"
    learned = "" if facts.answers is None else f", learned: {facts.answers}"
    special = f"special tokens {'added' if facts.special_tokens else 'not added'}"
    if isinstance(tokens.manifest, TokensManifest4):
        special = f"messages {tokens.manifest.chat.messages!r} in a chat template"
        learned = "" if facts.answers is None else ", learned: the turns of the assistant"
    if tokens.manifest.tokenizer is None:
        special = "as in the corpus"
    print_line(
        f"{facts.num_train:,} train + {facts.num_holdout:,} holdout tokens of shards {facts.shards}, {form}, {special}{learned}; {tokens.root}"
    )


def show_export(export: ExportFacts) -> None:
    rows = [(skill.name, f"{skill.num_rows:,}", share(skill.num_rows, export.num_rows)) for skill in export.skills]
    print_table(("skill", "rows", "share"), rows)
    print_line(
        f"{counted(export.num_rows, 'row')} of shards {export.shards} as {export.format}, columns {', '.join(export.columns)}; "
        f"{counted(export.num_files, 'file')}, {size_in_words(export.num_bytes)} in {export.place}"
    )


def show_ledger(ledger: DirectoryLedger) -> None:
    run = run_facts(ledger)
    if run.round is not None:
        highest = max(weight for skill in run.skills for weight in skill.weights)
        # Skipped samples count as drawn, so the sum may be larger than the number of draws.
        num_drawn = sum(skill.num_drawn for skill in run.skills)
        tokens = ("tokens",) if run.unit == "tokens" else ()
        header = ("skill", "weight", "drawn", "share", "intended", "epochs", *tokens)
        numbers = [
            (
                skill.name,
                f"{skill.weight:.4f}",
                f"{skill.num_drawn:,}",
                share(skill.num_drawn, num_drawn),
                f"{skill.intended:,.1f}",
                f"{skill.epochs:.2f}",
                *([] if skill.num_tokens is None else [f"{skill.num_tokens:,}"]),
            )
            for skill in run.skills
        ]
        most = _room_for_bars([header, *numbers])
        bars = [sparkline(skill.weights, 0.0, highest, most=most) for skill in run.skills]
        rows = [(*row[:2], line, *row[2:]) for row, line in zip(numbers, bars, strict=True)]
        print_table((*header[:2], "over time", *header[2:]), rows)
    else:
        record = open_records(ledger).run
        sizes = [(skill, f"{num:,}") for skill, num in zip(record.skills, record.num_samples, strict=True)]
        print_table(("skill", "blocks of an epoch" if run.unit == "blocks" else "samples"), sizes)
        print_line(f"no round is decided yet; shards {record.shards}")
        print_line(f"arguments of the policy: {shortened(orjson.dumps(record.policy_arguments).decode(), 400)}")
    if run.losses:
        print_table(("evaluation skill", "first loss", "last loss", "change", "over time"), _loss_rows(run))
    for before in run.earlier:
        begin = "?" if before.first_draw is None else f"{before.first_draw:,}"
        step = "" if before.step is None else f" (step {before.step:,})"
        policy = "a ledger that is not there" if before.policy is None else f"policy {before.policy}"
        print_line(
            f"draws {begin} to {before.end_draw - 1:,}{step}: {policy}, run {before.run} in {before.place or 'an unknown place'}"
        )
    if run.earlier:
        print_line(f"draws from {run.first_draw:,} on: this run. Drawn samples and epochs count over all runs.")
    for skip in run.skipped:
        print_line(f"{skip.sentence} (they count as drawn: {_skipped_skills(skip)})")
    print_line(
        f"policy {run.policy}, weights in {run.unit}, seed {run.seed}, {run.round_draws:,} draws per round, lag {run.lag}; "
        f"{counted(run.num_rounds, 'round')}, {counted(run.num_observations, 'observation')}, generation {run.generation} in {ledger}"
    )
    if run.last_report is not None:
        print_line(
            f"last report: step {run.last_report.step:,}, draw {run.last_report.draw:,}, {age(run.last_report.time)} ago"
        )
    if run.waits_for is not None:
        print_line(f"the next round waits for {run.waits_for}")
    if run.resumes:
        draws = ", ".join(
            f"draw {begun.draw:,}" + (f" (job {begun.job})" if begun.job else "") for begun in run.resumes[-5:]
        )
        earlier = f" ({counted(len(run.resumes) - 5, 'earlier resume')})" if len(run.resumes) > 5 else ""
        print_line(f"resumed at {draws}{earlier}")
    for steering in run.steerings[-5:]:
        # A later steering of the same round counts, also if a resume has led back before the round.
        later = next(
            (own for own in run.steerings[steering.number + 1 :] if own.first_round <= steering.first_round), None
        )
        print_line(steering.sentence + ("" if later is None else f" (steering {later.number} acts in its place)"))
    for alarm in run.alarms:
        print_line(f"alarm: {alarm.sentence}")


def _skipped_skills(skip: RunSkip) -> str:
    return name_some(f"{num:,} of {skill}" for skill, num in skip.skills.items())


def _loss_rows(run: RunFacts) -> Iterator[tuple[str, ...]]:
    for skill in run.losses:
        known = [loss for loss in skill.losses if loss is not None]
        change = "-" if skill.first is None or skill.last is None else f"{skill.last - skill.first:+.3f}"
        yield (
            skill.name,
            "-" if skill.first is None else f"{skill.first:.3f}",
            "-" if skill.last is None else f"{skill.last:.3f}",
            change,
            sparkline(skill.losses, min(known, default=0.0), max(known, default=0.0)),
        )


BARS = "▁▂▃▄▅▆▇█"
SPARKS, LEAST_SPARKS = 20, 4
"""Largest number of bars of a sparkline, and the number in a narrow terminal. The words of the heading are four characters wide."""
COLUMN_GAP = 3
"""Number of characters between two columns of a table."""


def _room_for_bars(rows: Sequence[Sequence[str]]) -> int:
    """Return the number of bars for which a table has room. The terminal would fold a longer sparkline, which could not be read."""
    return max(LEAST_SPARKS, min(SPARKS, Console().width - _table_width(rows) - COLUMN_GAP))


def _table_width(rows: Sequence[Sequence[str]]) -> int:
    """Return the smallest width of a table, in which the names of the first column are folded."""
    names, *numbers = zip(*rows, strict=True)
    widths = [min(max(map(len, names)), FOLDED_NAME), *(max(map(len, column)) for column in numbers)]
    return sum(widths) + COLUMN_GAP * len(widths)


def sparkline(values: Sequence[float | None], lowest: float, highest: float, *, most: int = SPARKS) -> str:
    """Draw numbers as bars between `lowest` and `highest`, at most `most` bars. A missing number is a space.

    >>> sparkline([0.0, 0.5, None, 1.0], 0.0, 1.0), sparkline([2.0, 2.0], 2.0, 2.0)
    ('▁▅ █', '▁▁')
    """
    width = highest - lowest
    chosen = values[:: max(1, -(-len(values) // most))]
    if chosen and len(chosen) < len(values):
        chosen = [*chosen[:-1], values[-1]]
    return "".join(
        " " if value is None else BARS[min(7, int(8 * (value - lowest) / width)) if width > 0 else 0]
        for value in chosen
    )


def age(time: str) -> str:
    """Write the time since a time in ISO 8601, with a unit."""
    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()))


def show_proposal(proposal: Proposal) -> None:
    rows = [
        (
            skill,
            f"{proposal.prior[skill]:.4f}",
            f"{weight:.4f}",
            f"{proposal.most[skill]:.4f}",
            f"{proposal.best_run[skill]:.4f}",
        )
        for skill, weight in proposal.weights.items()
    ]
    print_table(("skill", "prior", "proposed", "at most", "best run"), rows)
    losses = [
        (skill, f"{proposal.expected_of_prior[skill]:.4f}", f"{loss:.4f}", f"{proposal.held_out[skill]:.3f}")
        for skill, loss in proposal.expected.items()
    ]
    print_table(("expected loss (nats)", "of the prior", "of the proposal", "rank corr. left out"), losses)
    mean = sum(proposal.expected[skill] for skill in proposal.targets) / len(proposal.targets)
    print_line(
        f"{proposal.method}, {counted(proposal.num_runs, 'run')}; mean loss expected {mean:.4f}, of the best run measured {proposal.best_run_loss:.4f}. "
        "A fit promises nothing: train the proposal and compare."
    )


def show_weights(shards: ShardSet, weights: WeightsFile) -> None:
    """Print the weight of each skill beside its number of samples."""
    rows = [
        (skill, f"{len(shards.train[skill]):,}", f"{weight:.6f}")
        for skill, weight in sorted(weights.weights.items(), key=lambda item: (-item[1], item[0]))
    ]
    print_table(("skill", "samples", "weight"), rows)
    print_line(f"{weights.policy}: shares of {weights.unit}, {counted(len(rows), 'skill')}, sum 1.")


def print_line(text: str, *, to_stderr: bool = False) -> None:
    """Print a line without wrapping and without markup."""
    _console(to_stderr).print(printable(text), soft_wrap=True)


class _Console(Console):
    """A console that lets the command line decide what happens after the reader of the output has gone."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console(to_stderr: bool = False) -> Console:
    """Make a console that shows names unchanged: no markup, and no `:smile:` that becomes a picture."""
    return _Console(stderr=to_stderr, markup=False, emoji=False, highlight=False)


FOLDED_NAME = 12
"""Width to which names of a table may be folded before the table counts as too wide."""
PREVIEW_CHARS = 100
"""Number of characters of a text that are printed of a cluster's nearest samples: about one line."""
# The JSON text of a number or a boolean, which is the name of the skill if a metadata field holds no string.
_NO_STRING = re.compile(r"-?\d+|true|false")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a plain table. The first column is aligned left, and numbers are aligned right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(header):
        table.add_column(shortened(name), justify="right" if column else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(shortened, row))
    _console().print(table)


def has_room(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the terminal is wide enough for the numbers of a table. The names may be folded, but a folded number misleads."""
    return _table_width(rows) <= Console().width


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _set_aside(reasons: Mapping[str, int], unread: Mapping[str, int]) -> str:
    text = f"{sum(reasons.values()):,} set aside" + (f" ({_counts(reasons)})" if reasons else "")
    if unread:
        num = sum(unread.values())
        text += f", and the {'rest' if num == 1 else 'rests'} of {counted(num, 'file')} not read ({_counts(unread)})"
    return text


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _terms(cluster: Cluster | Cluster1) -> str:
    """List the terms of a cluster, each with the share of the cluster's samples that hold the term."""
    if isinstance(cluster, Cluster1):
        return ", ".join(cluster.terms)
    return ", ".join(f"{term.term} {100 * term.share:.0f} %" for term in cluster.terms)


def about_number(manifest: AnyModelManifest) -> list[str]:
    """Return lines about the numbers of clusters that skills "auto" tried. Without tried numbers, the list is empty."""
    if not manifest.tried:
        return []
    tried = ", ".join(f"{number.num_clusters}: {number.score:.3f}" for number in manifest.tried)
    choices = [Choice(number.num_clusters, number.score) for number in manifest.tried]
    sentences = about_choice(choices, len(manifest.clusters))
    return [f"number of skills by {manifest.criterion}: {tried}", " ".join(sentences)]


def show_saved_clusters(model: SavedClusters) -> None:
    """Print saved clusters: terms, size and nearest samples of each cluster."""
    manifest = model.manifest
    clusters: Sequence[Cluster | Cluster1] = manifest.clusters
    total = sum(cluster.num_samples for cluster in clusters)
    for cluster in sorted(clusters, key=lambda cluster: cluster.name):  # the order of the table above the clusters
        samples = f"{cluster.num_samples:,} samples ({share(cluster.num_samples, total)})"
        print_line("")
        print_line(f"{cluster.name}: fitted on {samples}, mean distance to the centroid {cluster.mean_distance:.3f}")
        print_line(f"    terms: {_terms(cluster) or 'no term is more frequent than in the other clusters'}")
        if isinstance(cluster, Cluster) and not cluster.has_topic and cluster.terms:
            print_line("    no topic: each of these terms stands in few samples of the cluster")
        for sample in cluster.nearest:
            print_line(f"    {sample.distance:.3f}  {sample.id}  {sample.text[:PREVIEW_CHARS]}")
    print_line("")
    if manifest.tried:
        for line in about_number(manifest):
            print_line(line)
    encoder = manifest.encoder
    print_line(
        f"encoder {encoder.name} ({encoder.dim} dimensions), {len(manifest.clusters)} centroids in {places.public(model.folder)}"
    )
