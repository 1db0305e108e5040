"""The facts of an artefact as numbers, for 'skillshard inspect --json' and for the tables in the terminal.

Every kind of artefact has one model, and the field `kind` names the kind. schemas/inspect-2.json describes all models.
"""

import os
from datetime import UTC, datetime
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from skillshard import artefact, canonical, export_manifest, places, storage
from skillshard import tags as tags_module
from skillshard.export_manifest import ExportManifest
from skillshard.graph.derive import own_gains, rule_in
from skillshard.graph.skill_graph import GraphFile, read_graph
from skillshard.graph.statistics import Gain, Statistics, gains_of, statistics
from skillshard.loss import LossKind
from skillshard.mixing.alarms import PINNED_ROUNDS, RISING_REPORTS, alarms, open_wait, reads_losses
from skillshard.mixing.chain import Chain, earlier_runs
from skillshard.mixing.counts import drawn_at, in_unit, intended_at, surplus_draws
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import Records, open_records, resumes
from skillshard.mixing.round_records import ObservationRecord, RoundRecord
from skillshard.mixing.run_records import Lag, RunRecord, skipped_by
from skillshard.mixing.steering import steerings
from skillshard.printable import printable
from skillshard.shards import manifest as shards_manifest
from skillshard.shards import token_manifest
from skillshard.shards.account import member_counts, set_aside_counts
from skillshard.shards.manifest import Edition, Layout, Manifest1, Manifest4, ManifestSkill2
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.taggers.clusters.saved import Cluster, Cluster1, EncoderRecord, SavedClusters, TriedNumber, has_clusters
from skillshard.tags import LeftOut, Tags, TagsSetAside, TagsSkill


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["skillshard/inspect/2"] = Field("skillshard/inspect/2", alias="schema")
    place: str = Field(description="path or URI of the artefact, without the keys and signatures of a URI")

    def to_json(self) -> bytes:
        """Return the facts as one JSON object."""
        return canonical.to_json(self.model_dump(by_alias=True))


class _Skill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str


class ClustersFacts(BaseModel):
    """The clusters beside tags."""

    model_config = ConfigDict(extra="forbid")

    clusters: list[Cluster | Cluster1] = Field(description="in the order of the centroids")
    tried: list[TriedNumber] = Field(
        description="numbers of clusters that were tried for skills 'auto', with their scores"
    )
    criterion: str | None = Field(description="measure of the scores")
    encoder: EncoderRecord


class TagsFacts(_Facts):
    """The facts of tags."""

    kind: Literal["tags"] = "tags"
    skills: list[TagsSkill] = Field(description="in the order of their names")
    num_rows: int = Field(description="rows of the corpus = num_tagged + rows that were set aside")
    num_tagged: int
    num_parts: int
    set_aside: dict[str, int] = Field(description="reason -> number of rows")
    unread: dict[str, int] = Field(description="reason -> number of files of which the rest was not read")
    set_aside_by: list[TagsSetAside] = Field(
        description="rows of set_aside and unread by file, reason and field; empty for tags of version 1, which do not record files"
    )
    left_out: LeftOut
    clusters: ClustersFacts | None = Field(description="null if the tags do not come from clusters")


class ShardsSkill(_Skill):
    """A skill of a shard set."""

    num_train: int = Field(description="training samples")
    num_holdout: int = Field(description="held-out samples")
    num_copies: int | None = Field(description="null for shards of version 1, which does not count copies")
    num_shards: int
    num_bytes: int = Field(description="size of the tars")


class ShardsMember(BaseModel):
    """Members of one suffix beside the texts of a shard set."""

    model_config = ConfigDict(extra="forbid")

    suffix: str = Field(description="suffix of the members in the tars, such as jpg")
    source: str = Field(description="name of the members in the corpus")
    num_samples: int | None = Field(
        description="samples with the member; null for remote shards, which are not counted"
    )
    num_bytes: int | None = Field(description="bytes of all these members; null for remote shards")


class ShardsFacts(_Facts):
    """The facts of a shard set."""

    kind: Literal["shards"] = "shards"
    skills: list[ShardsSkill] = Field(description="in the order of their names")
    num_rows: int = Field(description="rows of the corpus = num_train + num_holdout + rows that were set aside")
    num_train: int
    num_holdout: int
    num_copies: int | None = Field(description="null for shards of version 1")
    copies_are_dropped: bool
    has_keys: bool = Field(
        description="whether keys lie beside the shards: hashes of id and text, file and row of each sample"
    )
    layout: Layout = Field(description="layout of the members in the tars")
    members: list[ShardsMember] = Field(description="members beside the texts, such as images, by rising suffix")
    earlier: list[Edition] = Field(description="shard sets that this set continues, the oldest first")
    split_by: Literal["text", "id"] = Field(
        description="id: shards of version 1, in which a text may stand on both sides"
    )
    num_also_held_out: int = Field(description="texts held out so that every skill has one in the holdout")
    num_kept_in_train: int = Field(description="texts kept in train so that every skill has one to train on")
    set_aside: dict[str, int] = Field(description="reason -> number of rows")
    unread: dict[str, int] = Field(description="reason -> number of files of which the rest was not read")
    set_aside_by: list[TagsSetAside] | None = Field(
        description="rows of set_aside and unread by file, reason and field; null if rejected/ lies on a web server, which cannot list it"
    )


class TokensFactsSkill(_Skill):
    """A skill of a token set."""

    num_train: int = Field(description="tokens of the skill's training samples")
    num_train_samples: int
    num_holdout: int = Field(description="tokens of the skill's held-out samples")


class TokensFacts(_Facts):
    """The facts of a token set."""

    kind: Literal["tokens"] = "tokens"
    skills: list[TokensFactsSkill] = Field(description="in the order of their names")
    num_train: int = Field(description="tokens of all training samples")
    num_holdout: int = Field(description="tokens of all held-out samples")
    shards: str = Field(description="digest of the counted shard set")
    special_tokens: bool = Field(description="whether the special tokens of the tokenizer are counted")
    id_type: Literal["uint16", "uint32"] | None = Field(description="type of the kept ids; null for counts alone")
    answers: str | None = Field(description="rule of the mask of answers; null if every token is learned")


class ExportSkill(_Skill):
    """A skill of exported rows."""

    num_rows: int


class ExportFacts(_Facts):
    """The facts of exported rows."""

    kind: Literal["export"] = "export"
    skills: list[ExportSkill] = Field(description="in the order of their names")
    num_rows: int
    columns: list[str] = Field(description="columns of each row")
    format: str = Field(description="format of the files")
    num_files: int
    num_bytes: int = Field(description="bytes of all files")
    shards: str = Field(description="digest of the exported shard set")


class RunSkill(_Skill):
    """A skill of a run."""

    weight: float = Field(description="weight in the newest round")
    weights: list[float] = Field(description="weight in each round of `shown_rounds`")
    num_drawn: int = Field(description="draws of all rounds")
    intended: float = Field(
        description="draws that the weights of all rounds ask for; num_drawn is a whole number beside it"
    )
    epochs: float = Field(description="num_drawn as a multiple of the training samples")
    num_tokens: int | None = Field(
        description="tokens drawn, the average of the skill for each draw; null if the weights count samples"
    )


class RunLoss(_Skill):
    """The losses of an evaluation skill."""

    first: float | None = Field(description="loss of the first report")
    last: float | None = Field(description="loss of the newest report")
    losses: list[float | None] = Field(description="loss of each report of `shown_reports`")


class RunReport(BaseModel):
    """The newest report of a run."""

    model_config = ConfigDict(extra="forbid")

    step: int
    draw: int
    time: str = Field(description="time of the report's file, ISO 8601 in UTC; a copy of a ledger may have other times")


class RunResume(BaseModel):
    """A resume of a run."""

    model_config = ConfigDict(extra="forbid")

    generation: int
    draw: int = Field(description="draw at which the run was resumed")
    job: str | None


class RunAlarm(BaseModel):
    """A sign of trouble."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    skill: str | None
    sentence: str


class EarlierRun(BaseModel):
    """A run that another run has continued."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: str | None = Field(description="place of its ledger; null if unknown")
    run: str = Field(description="checksum of its run.json")
    first_draw: int | None = Field(description="draw at which it began; null if its ledger is not at the place")
    end_draw: int = Field(description="draw from which the next run continues")
    step: int | None = Field(description="optimizer steps taken at this draw; null if unknown")
    policy: str | None = Field(description="policy of the run; null if its ledger is not at the place")


class RunSkip(BaseModel):
    """Draws of the run before that a run skips."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int = Field(description="first skipped draw in the stream of the run before")
    num: int = Field(description="number of skipped draws")
    why: str
    skills: dict[str, int] = Field(
        description="number of skipped draws of each skill, under its name in the run before"
    )
    sentence: str


class RunSteering(BaseModel):
    """A steering by hand."""

    model_config = ConfigDict(extra="forbid")

    number: int
    first_round: int = Field(description="first round that was undecided when the steering was recorded")
    action: str = Field(description="weights, freeze or resume")
    why: str

    @property
    def sentence(self) -> str:
        return f"steering {self.number}, from round {self.first_round:,} on: {self.action}, because {self.why}"

    @property
    def reason(self) -> str:
        """The steering without its round: a history counts the rounds over all runs, and the ledger the rounds of its run."""
        return f"steering {self.number}: {self.action}, because {self.why}"


class RunFacts(_Facts):
    """The facts of the ledger of a run."""

    kind: Literal["run"] = "run"
    skills: list[RunSkill] = Field(description="in the order of the run; empty before the first round")
    losses: list[RunLoss] = Field(description="in the order of the names; empty before the first report")
    shown_rounds: list[int] = Field(description="numbers of the rounds whose weights are listed, at equal distances")
    shown_reports: list[int] = Field(description="draws of the reports whose losses are listed, at equal distances")
    round: int | None = Field(description="number of the newest round; null before the first round")
    num_draws: int = Field(description="draws of all decided rounds")
    num_rounds: int
    num_observations: int
    last_report: RunReport | None
    waits_for: str | None = Field(
        description="report without which the next round is not decided; null if none is needed"
    )
    alarms: list[RunAlarm]
    resumes: list[RunResume]
    steerings: list[RunSteering] = Field(description="steerings by hand, in their order")
    generation: int = Field(description="number of times that the run was resumed")
    policy: str
    unit: str = Field(description="unit of the weights: samples, tokens or blocks")
    seed: int
    round_draws: int
    lag: Lag
    first_draw: int = Field(description="draw at which the run begins; 0 unless the run continues another run")
    earlier: list[EarlierRun] = Field(description="runs that this run continues, the oldest first")
    skipped: list[RunSkip] = Field(description="draws of the run before that this run skips")


class GraphFacts(_Facts):
    """The facts of a skills graph."""

    kind: Literal["graph"] = "graph"
    train_skills: list[str] = Field(description="names of the rows")
    eval_skills: list[str] = Field(description="names of the columns")
    edges: list[list[float]] = Field(description="edges[i][j]: how much training on row i helps column j")
    standard_errors: list[list[float]] | None = Field(description="standard error of each edge; null if unknown")
    density: float = Field(description="share of positive entries, including the diagonal")
    density_between: float | None = Field(
        description="share of positive entries off the diagonal; null if all entries are on the diagonal"
    )
    density_certain: float | None = Field(
        description="share of entries off the diagonal that are positive beyond chance; null without standard errors"
    )
    reciprocity: float | None = Field(description="share of positive edges whose opposite edge is positive too")
    num_positive: int
    num_negative: int
    num_zero: int
    num_uncertain: int | None = Field(description="entries that could be 0; null without standard errors")
    helps_nobody: list[str] = Field(description="training skills without a positive edge to another skill")
    helped_by_nobody: list[str] = Field(description="evaluation skills without a positive edge from another skill")
    not_improved: list[str] = Field(description="skills without a gain, which are no skills by Definition 2.1")
    hardly_improved: list[str] = Field(description="skills whose gain could be 0")
    conclusion: str = Field(description="sentence on mixing by the graph, from the density")
    method: str | None = Field(description="method of learning; null if the graph was imported")
    rule: str | None = Field(description="definition of the edges; null if the graph was imported")
    seeds: list[int] = Field(description="seeds of the trials; empty if the graph was imported")
    num_steps: int | None = Field(description="optimizer steps of all trials and warm starts")
    num_samples: int | None = Field(description="training samples of all trials and warm starts")
    loss: LossKind | None = Field(description="kind of the losses; null if unknown")


Facts = Annotated[
    TagsFacts | ShardsFacts | TokensFacts | ExportFacts | RunFacts | GraphFacts, Field(discriminator="kind")
]


def facts_at(place: str | os.PathLike[str]) -> TagsFacts | ShardsFacts | TokensFacts | ExportFacts | RunFacts:
    """Collect the facts of the artefact in a directory, or at the URI of a shard set.

    Raises:
        StorageError: The place holds no finished artefact.
    """
    kind = artefact.kind(place)
    if kind == tags_module.MANIFEST:
        return tags_facts(Tags.open(place))
    if kind == shards_manifest.MANIFEST:
        return shards_facts(ShardSet.open(place))
    if kind == token_manifest.MANIFEST:
        return tokens_facts(TokenSet.open(place))
    if kind == export_manifest.MANIFEST:
        return export_facts(place)
    return run_facts(DirectoryLedger(place))


def tags_facts(tags: Tags) -> TagsFacts:
    manifest = tags.manifest
    return TagsFacts(
        place=_shown(tags.folder),
        skills=manifest.skills,
        num_rows=manifest.num_rows,
        num_tagged=manifest.num_tagged,
        num_parts=len(manifest.parts),
        set_aside=manifest.set_aside,
        unread=manifest.unread,
        set_aside_by=manifest.set_aside_by,
        left_out=manifest.left_out,
        clusters=_clusters_facts(SavedClusters.open(tags.folder)) if has_clusters(tags.folder) else None,
    )


def _clusters_facts(model: SavedClusters) -> ClustersFacts:
    manifest = model.manifest
    return ClustersFacts(
        clusters=list(manifest.clusters), tried=manifest.tried, criterion=manifest.criterion, encoder=manifest.encoder
    )


def shards_facts(shards: ShardSet) -> ShardsFacts:
    manifest = shards.manifest
    counts_copies = not isinstance(manifest, Manifest1)
    return ShardsFacts(
        place=_shown(shards.root),
        skills=[
            ShardsSkill(
                name=skill.name,
                num_train=sum(skill.train.num_samples),
                num_holdout=sum(skill.holdout.num_samples),
                num_copies=skill.num_copies if isinstance(skill, ManifestSkill2) else None,
                num_shards=len(skill.train.number) + len(skill.holdout.number),
                num_bytes=sum(skill.train.num_bytes) + sum(skill.holdout.num_bytes),
            )
            for skill in manifest.skills
        ],
        num_rows=manifest.num_rows,
        num_train=manifest.num_train,
        num_holdout=manifest.num_holdout,
        num_copies=manifest.num_copies if not isinstance(manifest, Manifest1) else None,
        copies_are_dropped=not isinstance(manifest, Manifest1) and manifest.copies_are_dropped,
        has_keys=shards.has_keys,
        layout=shards.layout,
        members=_members_facts(shards),
        earlier=[
            Edition(place=places.public(edition.place), digest=edition.digest)
            for edition in (manifest.earlier if isinstance(manifest, Manifest4) else [])
        ],
        split_by="text" if counts_copies else "id",
        num_also_held_out=len(manifest.split.also_held_out) if not isinstance(manifest, Manifest1) else 0,
        num_kept_in_train=len(manifest.split.kept_in_train) if not isinstance(manifest, Manifest1) else 0,
        set_aside=manifest.set_aside,
        unread=manifest.unread,
        set_aside_by=set_aside_counts(shards),
    )


def _members_facts(shards: ShardSet) -> list[ShardsMember]:
    counts = {count.suffix: count for count in member_counts(shards) or ()}
    return [
        ShardsMember(
            suffix=suffix,
            source=source,
            num_samples=counts[suffix].num_samples if counts else None,
            num_bytes=counts[suffix].num_bytes if counts else None,
        )
        for suffix, source in shards.kept_members.items()
    ]


def tokens_facts(tokens: TokenSet) -> TokensFacts:
    manifest = tokens.manifest
    return TokensFacts(
        place=_shown(tokens.root),
        skills=[
            TokensFactsSkill(
                name=skill.name,
                num_train=skill.num_train,
                num_train_samples=sum(skill.train.num_samples),
                num_holdout=skill.num_holdout,
            )
            for skill in manifest.skills
        ],
        num_train=manifest.num_train,
        num_holdout=manifest.num_holdout,
        shards=manifest.shards,
        special_tokens=manifest.special_tokens,
        id_type=None if manifest.ids is None else manifest.ids.type,
        answers=None if tokens.answers is None else tokens.answers.mask_in_words,
    )


def export_facts(place: str | os.PathLike[str]) -> ExportFacts:
    manifest = ExportManifest.open(place)
    return ExportFacts(
        place=_shown(os.fspath(place)),
        skills=[ExportSkill(name=name, num_rows=num) for name, num in manifest.skills.items()],
        num_rows=manifest.num_rows,
        columns=manifest.columns,
        format=manifest.made_from["arguments"]["format"],
        num_files=len(manifest.files),
        num_bytes=sum(file.num_bytes for file in manifest.files),
        shards=manifest.made_from["shards"],
    )


SHOWN = 40
"""Number of rounds and of reports whose weights and losses are listed."""


def run_facts(ledger: DirectoryLedger) -> RunFacts:
    records = open_records(ledger)
    run, num_rounds, num_observations = records.run, records.rounds.num(), records.observations.num()
    rounds = {number: records.rounds.existing(number) for number in _spread(num_rounds, PINNED_ROUNDS)}
    reports = {
        number: records.observations.existing(number) for number in _spread(num_observations, RISING_REPORTS + 1)
    }
    newest = rounds.get(num_rounds - 1)
    shown_rounds, shown_reports = _spread(num_rounds, 1), _spread(num_observations, 1)
    last = reports.get(num_observations - 1)
    return RunFacts(
        place=_shown(str(ledger)),
        skills=[]
        if newest is None
        else _run_skills(
            run,
            newest,
            rounds.get(num_rounds - 2),
            [rounds[number] for number in shown_rounds],
            surplus_draws([segment.run for segment in Chain.of(records).segments])[-1],
        ),
        losses=_run_losses([reports[number] for number in shown_reports]),
        shown_rounds=shown_rounds,
        shown_reports=[reports[number].draw for number in shown_reports],
        round=None if newest is None else newest.round,
        num_draws=run.first_draw if newest is None else newest.first_draw + newest.num_draws,
        num_rounds=num_rounds,
        num_observations=num_observations,
        last_report=None if last is None else _last_report(records, last, num_observations - 1),
        waits_for=_waits_for(run, newest, last),
        alarms=[
            RunAlarm(**alarm._asdict())
            for alarm in alarms(
                run, [*rounds.values()], [*reports.values()], first=rounds.get(0), wait=open_wait(records)
            )
        ],
        resumes=[RunResume(generation=begun.generation, draw=begun.draw, job=begun.job) for begun in resumes(records)],
        steerings=[
            RunSteering(number=number, first_round=own.first_round, action=own.action, why=own.why)
            for number, own in steerings(ledger, run)
        ],
        generation=records.generation,
        policy=run.policy,
        unit=run.unit,
        seed=run.seed,
        round_draws=run.round_draws,
        lag=run.lag,
        first_draw=run.first_draw,
        earlier=[
            EarlierRun(
                place=None if before.place is None else _shown(before.place),
                run=before.run,
                first_draw=before.first_draw,
                end_draw=before.end_draw,
                step=before.step,
                policy=before.policy,
            )
            for before in earlier_runs(ledger)
        ],
        skipped=run_skips(run),
    )


def run_skips(run: RunRecord) -> list[RunSkip]:
    """Return the draws of the run before that a run skips, rising."""
    part = skipped_by(run)
    if part is None:
        return []
    names = {place.label: place.skill for place in part.places}
    return [
        RunSkip(
            first=stretch.first,
            num=stretch.num,
            why=stretch.why,
            skills={names[draws.label]: draws.num for draws in stretch.skills},
            sentence=stretch.sentence,
        )
        for stretch in part.stretches
    ]


def _spread(num: int, newest: int) -> list[int]:
    """Choose up to `SHOWN` numbers below `num` at equal distances, and the newest numbers.

    >>> _spread(3, 1), len(_spread(1000, 1)), _spread(1000, 3)[-3:]
    ([0, 1, 2], 40, [997, 998, 999])
    """
    evenly = np.linspace(0, num - 1, min(num, SHOWN)).round().astype(int).tolist()
    return sorted({*evenly, *range(max(0, num - newest), num)})


def _run_skills(
    run: RunRecord, newest: RoundRecord, previous: RoundRecord | None, shown: list[RoundRecord], surplus: list[int]
) -> list[RunSkill]:
    # The counts of a round may be of more draws than the stream has: with repeat="stop" it ends inside the round.
    end = newest.first_draw + newest.num_draws
    positions, intended = drawn_at(run, newest, end), intended_at(run, newest, previous, end)
    drawn = [position - more for position, more in zip(positions, surplus, strict=True)]
    tokens = in_unit(run, drawn)
    return [
        # The run records the number of samples of each skill at its start, so the shards are not needed.
        RunSkill(
            name=name,
            weight=newest.weights[number],
            weights=[record.weights[number] for record in shown],
            num_drawn=drawn[number],
            intended=intended[number] - surplus[number],
            epochs=positions[number] / run.num_samples[number],
            num_tokens=None if run.num_tokens is None else tokens[number],
        )
        for number, name in enumerate(run.skills)
    ]


def _run_losses(shown: list[ObservationRecord]) -> list[RunLoss]:
    names = sorted({name for record in shown for name in record.losses})
    columns = {name: [record.losses.get(name) for record in shown] for name in names}
    return [RunLoss(name=name, first=losses[0], last=losses[-1], losses=losses) for name, losses in columns.items()]


def _last_report(records: Records, last: ObservationRecord, number: int) -> RunReport:
    # The time of the file is beside the record: nothing that decides the stream depends on a clock.
    written_ns = storage.stat(f"{records.ledger}/{records.observations.name(number)}").mtime_ns
    time = datetime.fromtimestamp(written_ns // 10**9, UTC).isoformat()
    return RunReport(step=last.step, draw=last.draw, time=time)


def _waits_for(run: RunRecord, newest: RoundRecord | None, last: ObservationRecord | None) -> str | None:
    """Describe the report that the next round needs. Return None if the next round needs no report that is missing."""
    if newest is None:
        waits = run.needs_first_losses and last is None
        return f"the losses of draw {run.first_draw:,}, before the first step" if waits else None
    if run.lag == "live" or not reads_losses(run, newest) or newest.num_draws < run.round_draws:
        return None
    number = newest.round + 1
    if number < run.lag or (number == run.lag and not run.needs_first_losses):
        return None  # the first rounds are decided without losses
    needed = run.first_draw_of(number - run.lag)
    return f"a report of draw {needed:,} or later" if (-1 if last is None else last.draw) < needed else None


def graph_facts(place: str | os.PathLike[str]) -> GraphFacts:
    """Collect the facts of the graph in a file.

    Raises:
        GraphError: The file is not a graph.
    """
    graph = read_graph(place)
    learned = graph.learned
    numbers = statistics_of(graph)
    return GraphFacts(
        place=_shown(place),
        train_skills=graph.train_skills,
        eval_skills=graph.eval_skills,
        edges=graph.edges,
        standard_errors=graph.standard_errors,
        density=numbers.density,
        density_between=numbers.density_between,
        density_certain=numbers.density_certain,
        reciprocity=numbers.reciprocity,
        num_positive=numbers.num_positive,
        num_negative=numbers.num_negative,
        num_zero=numbers.num_zero,
        num_uncertain=numbers.num_uncertain,
        helps_nobody=list(numbers.helps_nobody),
        helped_by_nobody=list(numbers.helped_by_nobody),
        not_improved=list(numbers.not_improved),
        hardly_improved=list(numbers.hardly_improved),
        conclusion=conclusion_of(graph, numbers),
        method=None if learned is None else learned.method,
        rule=None if learned is None else learned.edges,
        seeds=[] if learned is None else learned.seeds,
        num_steps=None if learned is None else learned.num_steps,
        num_samples=None if learned is None else learned.num_samples,
        loss=graph.loss if learned is None else learned.loss_kind,
    )


def statistics_of(graph: GraphFile) -> Statistics:
    """Compute the statistics of a graph's file."""
    return statistics(
        graph.train_skills,
        graph.eval_skills,
        np.array(graph.edges),
        standard_errors=None if graph.standard_errors is None else np.array(graph.standard_errors),
        num_seeds=1 if graph.learned is None else len(graph.learned.seeds),
        gains=gains_in(graph),
    )


def gains_in(graph: GraphFile) -> list[Gain]:
    """Return the gain of each skill, from the losses of a learned graph, or from the diagonal of an imported graph."""
    if graph.learned is not None:
        return own_gains(graph.train_skills, graph.eval_skills, graph.learned)
    errors = None if graph.standard_errors is None else np.array(graph.standard_errors)
    return gains_of(graph.train_skills, graph.eval_skills, np.array(graph.edges), standard_errors=errors, num_seeds=1)


def conclusion_of(graph: GraphFile, numbers: Statistics) -> str:
    """Return the recommendation that follows from the density, or the reason why the edges mean nothing."""
    # A threshold without effect comes first: its graph is all 0 or all 1, and the density would be taken for a result.
    return _out_of_reach(graph) or numbers.sentence


def _out_of_reach(graph: GraphFile) -> str | None:
    """Return the fault of a threshold that no trial reaches, or below which every trial begins. None: no fault, or no threshold."""
    if graph.learned is None or (threshold := rule_in(graph.learned).threshold) is None:
        return None
    # Over all skills and trials: a threshold that is reached somewhere still orders some skills.
    lowest = min(loss for trial in graph.learned.runs for losses in trial.losses for loss in losses)
    highest = max(loss for trial in graph.learned.runs for loss in trial.losses[0])
    if highest <= threshold:
        return (
            f"Every trial begins at a loss of at most {threshold:g} nats (the highest is {highest:.3f}), so these edges mean nothing. Derive other edges "
            "with a smaller LOSS: 'skillshard graph derive FILE --edges threshold:LOSS --out NEW'."
        )
    if lowest <= threshold:
        return None
    return (
        f"No trial brought a loss down to {threshold:g} nats (the lowest is {lowest:.3f}), so these edges mean nothing. Derive other edges with a "
        "larger LOSS: 'skillshard graph derive FILE --edges threshold:LOSS --out NEW'."
    )


def _shown(place: str | os.PathLike[str]) -> str:
    """Return a place for JSON. Bytes of a path that are not UTF-8 are escaped."""
    return printable(places.public(place))
