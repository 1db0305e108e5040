"""skillshard: from a text corpus to the batch on the GPU, by skills.

The public names, and nothing else; they are imported when they are first used, so that `import skillshard` is quick and
brings neither torch nor ray.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Corpus": "skillshard.corpus",
    "Mixer": "skillshard.mixing.mixer",
    "ShardSet": "skillshard.shards.read",
    "SkillGraph": "skillshard.graph.skill_graph",
    "Tags": "skillshard.tags",
    "policies": "skillshard",
    "tag_corpus": "skillshard.taggers",
    "taggers": "skillshard",
    "write_shards": "skillshard.shards.write",
}

__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skillshard' has no attribute {name!r}")
    home = _HOMES[name]
    return import_module(f"skillshard.{name}") if home == "skillshard" else getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
