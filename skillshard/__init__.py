"""skillshard: from a text corpus to the batch on the GPU, by skills.

The names of this module, of its modules `policies`, `taggers` and `errors`, and of the adapters `skillshard.torch`, `skillshard.hf`,
`skillshard.lightning`, `skillshard.grain` and `skillshard.webdataset` are public. All other names may change from one version to the next.

A name is imported on first use, so that `import skillshard` is quick and imports neither torch nor ray.
"""

import sys
from importlib import import_module
from typing import Any

if sys.platform == "win32":
    # File locks (fcntl), limits of open files (resource) and the worker pool (forkserver) do not exist on Windows.
    raise ImportError("skillshard runs on Linux and macOS, not on Windows. On Windows, install skillshard in WSL 2.")

_HOMES = {
    "Backend": "skillshard.execution",
    "Batch": "skillshard.mixing.batch",
    "BatchLosses": "skillshard.batch_losses",
    "Compute": "skillshard.proxy.device",
    "Corpus": "skillshard.corpus",
    "EdgeRule": "skillshard.graph.edges",
    "EvalBudget": "skillshard.evaluation",
    "FieldMapping": "skillshard.corpus",
    "Loss": "skillshard.loss",
    "LossKind": "skillshard.loss",
    "Losses": "skillshard.loss",
    "Mixer": "skillshard.mixing.mixer",
    "Observation": "skillshard.policies.policy",
    "PackedBatch": "skillshard.mixing.packed_batch",
    "PackedTokens": "skillshard.mixing.packing",
    "ReadingChoice": "skillshard.proxy.reading_choice",
    "Sample": "skillshard.corpus",
    "ShardSet": "skillshard.shards.read",
    "SkillGraph": "skillshard.graph.skill_graph",
    "SkillshardError": "skillshard.errors",
    "Tags": "skillshard.tags",
    "TokenSet": "skillshard.shards.token_set",
    "append_shards": "skillshard.shards.write",
    "check_policy": "skillshard.testing",
    "errors": "skillshard",
    "export_shards": "skillshard.export",
    "ids_of_text": "skillshard.corpus.token_ids",
    "learn_graph": "skillshard.graph.learn",
    "losses_from_batch": "skillshard.batch_losses",
    "losses_per_skill": "skillshard.evaluation",
    "needed": "skillshard.extras",
    "open_recorded": "skillshard.mixing.recorded",
    "open_recorded_chain": "skillshard.mixing.recorded_chain",
    "policies": "skillshard",
    "read_policy": "skillshard.mixing.policy_file",
    "regroup_tags": "skillshard.taggers",
    "replay": "skillshard.mixing.replay",
    "replay_chain": "skillshard.mixing.replay",
    "tag_corpus": "skillshard.taggers",
    "taggers": "skillshard",
    "verify": "skillshard.verification",
    "write_shards": "skillshard.shards.write",
    "write_tokens": "skillshard.shards.tokens",
}

__all__ = list(_HOMES)
__version__ = "0.1.0"
"""The only place of the version. pyproject.toml reads this line."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skillshard' has no attribute {name!r}")
    home = _HOMES[name]
    return import_module(f"skillshard.{name}") if home == "skillshard" else getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
