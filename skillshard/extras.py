"""Extras: the optional packages of each extra, and the message for a missing extra.

`pip install skillshard` installs the packages for reading shards, tagging by metadata, sharding and mixing. Every other feature calls
`needed` before the import of optional packages. A missing package is therefore named before any work begins.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec

from skillshard.errors import ExtraError

_CLUSTER = ("scipy", "sklearn", "threadpoolctl")

MODULES: Mapping[str, tuple[str, ...]] = {
    "cluster": _CLUSTER,
    "datasets": ("datasets",),
    "embed": (*_CLUSTER, "sentence_transformers", "torch"),
    "fit": ("scipy", "threadpoolctl"),
    "grain": ("grain",),
    "hf": ("accelerate", "tokenizers", "torch", "transformers"),
    "lightning": ("lightning", "torch"),
    "plots": ("matplotlib",),
    "proxy": (*_CLUSTER, "torch"),
    "ray": ("ray",),
    "raytrain": ("fsspec", "pandas", "ray", "torch"),
    "regmix": ("lightgbm", "scipy", "threadpoolctl"),
    "stores": ("obstore",),
    "tokens": ("tokenizers",),
    "torch": ("torch",),
    "torchdata": ("torch", "torchdata"),
    "webdataset": ("torch", "webdataset"),
}
"""The modules of each extra. pyproject.toml names the packages, and a test compares the two lists."""


def needed(*extras: str, what: str) -> None:
    """Check that every package of the given extras is installed, without an import.

    Args:
        extras: Names of extras of pyproject.toml.
        what: Name of the feature, as the subject of the message.

    Raises:
        ExtraError: A package is missing. The message names every extra that lacks a package.

    Example:
        >>> needed("torch", what="A DataLoader")
    """
    missing = [extra for extra in extras if not all(map(is_installed, MODULES[extra]))]
    if missing:
        quoted = " and ".join(f"'{extra}'" for extra in missing)
        raise ExtraError(
            f"{what} needs the extra{'s' * (len(missing) > 1)} {quoted}: pip install 'skillshard[{','.join(missing)}]'"
        )


def is_installed(module: str) -> bool:
    """Return whether a module can be imported, without an import."""
    # First, because find_spec raises ValueError for a module that was imported without a spec. An entry None blocks a module.
    if sys.modules.get(module) is not None:
        return True
    try:
        return find_spec(module) is not None
    except ImportError:  # a finder that blocks the module
        return False
