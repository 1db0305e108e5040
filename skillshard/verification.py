"""Check an artefact against its own records."""

import os

from skillshard import artefact, export_manifest, places, web
from skillshard import tags as tags_module
from skillshard.export_manifest import ExportManifest, verify_export
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_beginning, verify_ledger
from skillshard.mixing.records import open_records
from skillshard.printable import counted
from skillshard.shards import manifest as shards_manifest
from skillshard.shards import token_manifest
from skillshard.shards.manifest import SPLIT_BY_ID, Manifest1
from skillshard.shards.read import ShardSet
from skillshard.shards.token_set import TokenSet
from skillshard.taggers.clusters.embeddings import verify_embeddings
from skillshard.taggers.clusters.saved import has_clusters, verify_model
from skillshard.tags import Tags


def verify(place: str | os.PathLike[str]) -> tuple[list[str], str]:
    """Return every fault of the artefact at `place`, and the sentence to print if no fault is found."""
    if artefact.has_not_begun(place):
        return _verify_beginning(place)
    kind = artefact.kind(place)
    if kind == tags_module.MANIFEST:
        tags = Tags.open(place)
        cluster_faults = verify_model(place) if has_clusters(place) else []
        return (
            [*tags.verify(), *cluster_faults, *verify_embeddings(place)],
            f"{places.public(place)}: {counted(len(tags.manifest.parts), 'part')}, {counted(tags.manifest.num_rows, 'row')}, all as the manifest says.",
        )
    if kind == shards_manifest.MANIFEST:
        shards = ShardSet.open(place)
        by_id = f" {SPLIT_BY_ID}" if isinstance(shards.manifest, Manifest1) else ""
        unread = "; rejected/ cannot be listed over http and was not read" if web.is_web(str(shards.root)) else ""
        num = sum(len(skill.train.number) + len(skill.holdout.number) for skill in shards.manifest.skills)
        return (
            shards.verify(),
            f"{places.public(place)}: {counted(num, 'shard')}, {counted(shards.manifest.num_train + shards.manifest.num_holdout, 'sample')}, all as the "
            f"manifest says{unread}.{by_id}",
        )
    if kind == token_manifest.MANIFEST:
        tokens = TokenSet.open(place)
        num = sum(len(skill.columns.number) for split in (tokens.train, tokens.holdout) for skill in split.values())
        form = "counts" if tokens.manifest.ids is None else "ids and counts"
        return (
            tokens.verify(),
            f"{places.public(place)}: {form} of {counted(num, 'shard')}, {counted(tokens.manifest.num_train + tokens.manifest.num_holdout, 'token')}, all as "
            "tokens.json says.",
        )
    if kind == export_manifest.MANIFEST:
        rows = ExportManifest.open(place)
        return (
            verify_export(place),
            f"{places.public(place)}: {counted(len(rows.files), 'file')}, {counted(rows.num_rows, 'row')}, all as the manifest says.",
        )
    ledger = DirectoryLedger(place)
    faults = verify_ledger(ledger)
    if faults:
        return faults, ""
    records = open_records(ledger)
    return [], (
        f"{places.public(place)}: {counted(records.rounds.num(), 'round')} and {counted(records.observations.num(), 'observation')} follow from one another, in generation "
        f"{records.generation}."
    )


def _verify_beginning(place: str | os.PathLike[str]) -> tuple[list[str], str]:
    """Check a run that continues another run and has not begun."""
    faults, handover = verify_beginning(DirectoryLedger(place))
    if handover is None or faults:
        return faults, ""
    step = "an unknown step" if handover.step is None else f"step {handover.step:,}"
    return [], (
        f"{places.public(place)}: the handover is as it was written. The run continues run {handover.run} from draw {handover.draw:,}, {step}, and nothing "
        "has been drawn yet."
    )
