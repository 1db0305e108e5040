"""The JSON Schema of every file on disk, made from the models that read and write the files.

`python -m skillshard.schemas schemas` writes the schemas, and a test compares the committed files with the models. A format never
changes in place: a changed format gets a new version.
"""

import sys
from typing import Any

from pydantic import TypeAdapter

from skillshard import canonical, places, storage
from skillshard.comparison.file import CompareFile
from skillshard.corpus import CorpusList, Rejection
from skillshard.corpus.chat import ChatTemplate
from skillshard.corpus.peek import PeekFacts
from skillshard.export_manifest import ExportManifest
from skillshard.fitting.proposal import Proposal
from skillshard.fitting.runs import RunsFile
from skillshard.graph.skill_graph import GraphFile
from skillshard.mixing.block_counts import BlocksRecord
from skillshard.mixing.packing import PackedState
from skillshard.mixing.policy_schema import PolicyFile
from skillshard.mixing.round_records import (
    GenerationRecord,
    ObservationRecord,
    PackedBeginRecord,
    RoundRecord,
    SteeredRoundRecord,
    SteerRecord,
    WaitRecord,
)
from skillshard.mixing.run_records import (
    AheadHandoverRecord,
    AheadRunRecord,
    BlocksHandoverRecord,
    BlockSkipsBlocksRunRecord,
    BlockSkipsHandoverRecord,
    BlockSkipsRunRecord,
    BlocksRunRecord,
    HandoverRecord,
    LastDrawHandoverRecord,
    RunRecord,
    SkippingHandoverRecord,
    SkippingRunRecord,
)
from skillshard.mixing.state import MixerState
from skillshard.mixing.weights_file import WeightsFile
from skillshard.pipeline import Pipeline
from skillshard.report.facts import Facts
from skillshard.report.history import ReportFacts
from skillshard.report.waiting import WaitingRunFacts
from skillshard.shards.manifest import Manifest, Manifest1, Manifest2, Manifest4, SampleMember
from skillshard.shards.token_manifest import TokensManifest, TokensManifest1, TokensManifest3, TokensManifest4
from skillshard.taggers.clusters.saved import ModelManifest, ModelManifest1
from skillshard.tags import TagsManifest, TagsManifest1, TagsManifest3

_MODELS: dict[str, Any] = {
    "blocks-1": BlocksRecord,
    "chat-template-1": ChatTemplate,
    "clusters-1": ModelManifest1,
    "clusters-2": ModelManifest,
    "compare-1": CompareFile,
    "corpus-1": CorpusList,
    "export-1": ExportManifest,
    "fit-1": Proposal,
    "generation-1": GenerationRecord,
    "graph-2": GraphFile,
    "handover-1": HandoverRecord,
    "handover-2": SkippingHandoverRecord,
    "handover-3": AheadHandoverRecord,
    "handover-4": BlocksHandoverRecord,
    "handover-5": BlockSkipsHandoverRecord,
    "handover-6": LastDrawHandoverRecord,
    "inspect-2": Facts,
    "inspect-waiting-1": WaitingRunFacts,
    "manifest-1": Manifest1,
    "manifest-2": Manifest2,
    "manifest-3": Manifest,
    "manifest-4": Manifest4,
    "mixer-2": MixerState,
    "observation-3": ObservationRecord,
    "packed-5": PackedState,
    "packed-begin-1": PackedBeginRecord,
    "peek-1": PeekFacts,
    "pipeline-1": Pipeline,
    "policy-1": PolicyFile,
    "rejection-4": Rejection,
    "report-1": ReportFacts,
    "round-2": RoundRecord,
    "round-3": SteeredRoundRecord,
    "run-5": RunRecord,
    "run-6": SkippingRunRecord,
    "run-7": AheadRunRecord,
    "run-8": BlocksRunRecord,
    "run-9": BlockSkipsRunRecord,
    "run-10": BlockSkipsBlocksRunRecord,
    "runs-1": RunsFile,
    "sample-1": SampleMember,
    "steer-1": SteerRecord,
    "tags-1": TagsManifest1,
    "tags-2": TagsManifest,
    "tags-3": TagsManifest3,
    "tokens-1": TokensManifest1,
    "tokens-2": TokensManifest,
    "tokens-3": TokensManifest3,
    "tokens-4": TokensManifest4,
    "wait-1": WaitRecord,
    "weights-1": WeightsFile,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Make the JSON Schema (draft 2020-12) of each file, by file name without suffix."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {name: dialect | TypeAdapter(model).json_schema(by_alias=True) for name, model in _MODELS.items()}


def write(folder: str) -> None:
    """Write every schema as FOLDER/NAME.json."""
    for name, schema in schemas().items():
        storage.write_bytes(places.join(folder, f"{name}.json"), canonical.to_json(schema))


if __name__ == "__main__":
    write(sys.argv[1])
