"""The facts of an artefact as numbers, for 'skillshard inspect --json' and for the tables in the terminal.

Every kind of artefact has one model, and the field `kind` names the kind. schemas/inspect-2.json describes all models.
"""

import os
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from skillshard import artefact, export_manifest, places
from skillshard import tags as tags_module
from skillshard.export_manifest import ExportManifest
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.report.artefact_facts import ArtefactFacts, SkillFacts, shown
from skillshard.report.graph_facts import GraphFacts
from skillshard.report.run_facts import RunFacts, run_facts
from skillshard.shards import manifest as shards_manifest
from skillshard.shards import token_manifest
from skillshard.shards.account import member_counts, set_aside_counts
from skillshard.shards.manifest import Edition, Layout, Manifest1, Manifest4, ManifestSkill2
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.taggers.clusters.saved import Cluster, Cluster1, EncoderRecord, SavedClusters, TriedNumber, has_clusters
from skillshard.tags import LeftOut, Tags, TagsSetAside, TagsSkill


class ClustersFacts(BaseModel):
    """The clusters beside tags."""

    model_config = ConfigDict(extra="forbid")

    clusters: list[Cluster | Cluster1] = Field(description="in the order of the centroids")
    tried: list[TriedNumber] = Field(
        description="numbers of clusters that were tried for skills 'auto', with their scores"
    )
    criterion: str | None = Field(description="measure of the scores")
    encoder: EncoderRecord


class TagsFacts(ArtefactFacts):
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


class ShardsSkill(SkillFacts):
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


class ShardsFacts(ArtefactFacts):
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


class TokensFactsSkill(SkillFacts):
    """A skill of a token set."""

    num_train: int = Field(description="tokens of the skill's training samples")
    num_train_samples: int
    num_holdout: int = Field(description="tokens of the skill's held-out samples")


class TokensFacts(ArtefactFacts):
    """The facts of a token set."""

    kind: Literal["tokens"] = "tokens"
    skills: list[TokensFactsSkill] = Field(description="in the order of their names")
    num_train: int = Field(description="tokens of all training samples")
    num_holdout: int = Field(description="tokens of all held-out samples")
    shards: str = Field(description="digest of the counted shard set")
    special_tokens: bool = Field(description="whether the special tokens of the tokenizer are counted")
    id_type: Literal["uint16", "uint32"] | None = Field(description="type of the kept ids; null for counts alone")
    answers: str | None = Field(description="rule of the mask of answers; null if every token is learned")


class ExportSkill(SkillFacts):
    """A skill of exported rows."""

    num_rows: int


class ExportFacts(ArtefactFacts):
    """The facts of exported rows."""

    kind: Literal["export"] = "export"
    skills: list[ExportSkill] = Field(description="in the order of their names")
    num_rows: int
    columns: list[str] = Field(description="columns of each row")
    format: str = Field(description="format of the files")
    num_files: int
    num_bytes: int = Field(description="bytes of all files")
    shards: str = Field(description="digest of the exported shard set")


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
        place=shown(tags.folder),
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
        place=shown(shards.root),
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
        place=shown(tokens.root),
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
        place=shown(os.fspath(place)),
        skills=[ExportSkill(name=name, num_rows=num) for name, num in manifest.skills.items()],
        num_rows=manifest.num_rows,
        columns=manifest.columns,
        format=manifest.made_from["arguments"]["format"],
        num_files=len(manifest.files),
        num_bytes=sum(file.num_bytes for file in manifest.files),
        shards=manifest.made_from["shards"],
    )
