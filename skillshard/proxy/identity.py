"""Identify the inputs of a training beside its arguments: the files of a model, and the versions of packages."""

from pathlib import Path

from skillshard import storage

SIZES = ("tiny", "small")
"""Names of new proxies. Every other value is the directory of a pretrained model."""
TRAINING_VERSION = 4
"""Version of the training procedure. Increase it whenever a change alters the losses, so that records from older versions are not
reused. Version 2: the learning rate of a short trial reaches `lr`. Version 3: batches are drawn by `skillshard.keyed_random`.
Version 4: a special token behind an answer that ends a text is predicted."""


def model_identity(proxy: str) -> str | dict[str, str]:
    """Return the name of a new proxy, or the digests of the files of a pretrained model.

    A copy of a directory is the same model, and a directory with a changed file is another model.
    """
    return proxy if proxy in SIZES else directory_identity(proxy)


def directory_identity(folder: str | Path) -> dict[str, str]:
    """Map the path of each file in a directory to the digest of the file. Hidden files are left out."""
    # Hidden files are notes of tools, such as a download cache, and do not belong to the model.
    files = ((path.relative_to(folder), path) for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {
        name.as_posix(): storage.file_digest(path)
        for name, path in files
        if not any(part.startswith(".") for part in name.parts)
    }


def training_identity() -> dict[str, int | str]:
    """Return the version of the training procedure, and of the packages whose results may change between versions."""
    import numpy
    import torch

    return {"version": TRAINING_VERSION, "torch": str(torch.__version__), "numpy": numpy.__version__}
