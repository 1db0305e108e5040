"""Optional packages: which extra brings them, and the one sentence that names an extra that is missing.

`pip install skillshard` brings what reading shards, tagging by metadata, sharding and mixing need. Every other feature asks
for its extra by `needed` before it imports the extra's packages, so that a missing package is named before any work begins.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec

from skillshard.errors import ExtraError

_CLUSTER = ("scipy", "sklearn", "threadpoolctl")

MODULES: Mapping[str, tuple[str, ...]] = {
    "cluster": _CLUSTER,
    "embed": (*_CLUSTER, "sentence_transformers", "torch"),
    "fit": ("scipy",),
    "hf": ("accelerate", "tokenizers", "torch", "transformers"),
    "lightning": ("lightning", "torch"),
    "plots": ("matplotlib",),
    "proxy": (*_CLUSTER, "torch"),
    "ray": ("ray",),
    "regmix": ("lightgbm", "scipy"),
    "tokens": ("tokenizers",),
    "torch": ("torch",),
    "torchdata": ("torch", "torchdata"),
}
"""Modules that are imported with each extra. pyproject.toml names the packages; a test compares the two."""


def needed(*extras: str, what: str) -> None:
    """Raise unless every package of some extras is installed. Nothing is imported.

    Args:
        extras: names of extras of pyproject.toml.
        what: the feature that needs the extras, as the subject of the sentence.

    Raises:
        ExtraError: a package is missing. The sentence names every extra that lacks a package.

    Example:
        >>> needed("torch", what="A DataLoader")
    """
    missing = [extra for extra in extras if not all(map(_is_installed, MODULES[extra]))]
    if missing:
        quoted = " and ".join(f"'{extra}'" for extra in missing)
        raise ExtraError(
            f"{what} needs the extra{'s' * (len(missing) > 1)} {quoted}: pip install 'skillshard[{','.join(missing)}]'"
        )


def _is_installed(module: str) -> bool:
    if sys.modules.get(module) is not None:
        return True
    try:
        return find_spec(module) is not None
    except ImportError:  # a finder that blocks the module
        return False
