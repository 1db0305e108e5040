"""What a training depends on beside its arguments: the content of a model's directory, and what is not portable."""

from pathlib import Path

from skillshard import storage

SIZES = ("tiny", "small")
"""Names of new proxies; everything else is the directory of a pretrained model."""
TRAINING_VERSION = 3
"""Version of the training procedure. Increase it whenever a change alters the losses, so that records from older versions are not
reused. Version 2: the learning rate of a short trial reaches `lr`. Version 3: batches are drawn by `skillshard.keyed_random`."""


def model_identity(proxy: str) -> str | dict[str, str]:
    """A new proxy's name, or the digest of each file of a pretrained model's directory by its path there.

    So a copy of a directory is the same model, and a changed file makes another one. Hidden files do not count.
    """
    return proxy if proxy in SIZES else directory_identity(proxy)


def directory_identity(folder: str | Path) -> dict[str, str]:
    """The digest of each file under a directory, by its path there."""
    files = ((path.relative_to(folder), path) for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {
        name.as_posix(): storage.file_digest(path)
        for name, path in files
        if not any(part.startswith(".") for part in name.parts)
    }


def training_identity() -> dict[str, int | str]:
    """Version of the training procedure, and the packages whose numbers may change from version to version."""
    import numpy
    import torch

    return {"version": TRAINING_VERSION, "torch": str(torch.__version__), "numpy": numpy.__version__}
