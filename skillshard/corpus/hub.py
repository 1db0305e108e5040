"""Find the files of a data set of the Hugging Face Hub, or of a local folder with the same layout.

An address is `hf:NAME[@REVISION][/CONFIG][:SPLIT]`, such as `hf:openai/gsm8k/main:train`. The split is "train" by default. The library
`datasets` knows which files belong to a configuration and a split, and the revision of each file. The files are then read as all other
files, in partitions. So nothing is downloaded as a whole, and no data set is copied into a cache.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from skillshard import storage
from skillshard.corpus.formats import CorpusFile, FileLayout, compression_of, format_of, known_suffixes
from skillshard.errors import CorpusError, did_you_mean, first_line, is_of_a_client, name_some
from skillshard.extras import needed

PREFIX = "hf:"
_FILE = re.compile(r"hf://datasets/[^@]+@[^/]+/(?P<name>.+)")


class HubAddress(NamedTuple):
    """Address of a split of a data set.

    Attributes:
        name: Name on the Hub, or the path of a local folder.
        config: Configuration, or None for the only or default configuration.
        split: Split.
        revision: Branch, tag or commit, or None for the newest commit.
    """

    name: str
    config: str | None
    split: str
    revision: str | None

    @classmethod
    def parse(cls, address: str) -> "HubAddress":
        """Parse an address.

        Raises:
            CorpusError: The address has another form.

        >>> HubAddress.parse("hf:openai/gsm8k/main:test")
        HubAddress(name='openai/gsm8k', config='main', split='test', revision=None)
        >>> HubAddress.parse("hf:allenai/tulu-3-sft-mixture@v1")
        HubAddress(name='allenai/tulu-3-sft-mixture', config=None, split='train', revision='v1')
        """
        body, colon, split = address.removeprefix(PREFIX).partition(":")
        if body.startswith(("/", ".", "~")):
            folder = Path(body).expanduser()
            config = None if folder.is_dir() or not folder.parent.is_dir() else folder.name
            return cls(str(folder if config is None else folder.parent), config, split or "train", None)
        name, _, revision = body.partition("@")
        revision, _, revised_config = revision.partition("/")
        parts = name.split("/")
        is_valid = (
            all(parts) and len(parts) <= 3 and bool(split) == bool(colon) and not (revised_config and len(parts) == 3)
        )
        if not is_valid:
            raise CorpusError(
                f"{address} is no address of a data set: give hf:NAME, hf:NAME/CONFIG or hf:NAME/CONFIG:SPLIT, such as "
                "hf:openai/gsm8k/main:train."
            )
        config = revised_config or (parts[2] if len(parts) == 3 else None)
        return cls("/".join(parts[:2]), config, split or "train", revision or None)


def is_hub_address(place: str) -> bool:
    """Return whether a place is an address of this module. "hf://" begins the address of a file instead.

    >>> is_hub_address("hf:openai/gsm8k"), is_hub_address("hf://datasets/openai/gsm8k/main")
    (True, False)
    """
    return place.startswith(PREFIX) and not place.startswith("hf://")


def hub_files(address: str, layout: FileLayout) -> list[CorpusFile]:
    """Return the files of a split.

    Raises:
        CorpusError: The data set cannot be opened, has no such configuration or split, or has files of an unknown format.
        ExtraError: The library `datasets` is not installed.
    """
    parsed = HubAddress.parse(address)
    config = _config(address, parsed)
    files_of_split = {str(split): list(files) for split, files in (config.data_files or {}).items()}
    if parsed.split not in files_of_split:
        raise CorpusError(
            f"{address}: no split {parsed.split!r}{did_you_mean(parsed.split, files_of_split)}. The splits are "
            f"{name_some(files_of_split) or 'not known'}. Name the split behind a colon, such as hf:NAME:test."
        )
    rows = getattr(config, "field", None)  # of JSON: the field with the rows, as the data set's card says
    if rows and layout.rows is None:
        layout = FileLayout(**{**vars(layout), "rows": rows})
    return [_file(address, parsed.name, str(place), layout) for place in files_of_split[parsed.split]]


def _config(address: str, parsed: HubAddress) -> Any:
    """Return the builder's configuration, which lists the files."""
    needed("datasets", what=f"The address {address}")
    from datasets import load_dataset_builder

    try:
        # The list of files needs no cache. The builder would leave folders in the user's cache.
        with tempfile.TemporaryDirectory() as cache:
            builder = load_dataset_builder(parsed.name, parsed.config, revision=parsed.revision, cache_dir=cache)
            return builder.config
    except (OSError, ValueError) as error:
        raise CorpusError(_sentence(address, error)) from error
    except (
        Exception
    ) as error:  # the client of the Hub has exceptions of its own; mistakes of this code are raised unchanged
        if not is_of_a_client(error):
            raise
        raise CorpusError(_sentence(address, error)) from error


def _sentence(address: str, error: Exception) -> str:
    message = " ".join(line.strip() for line in str(error).splitlines()[:2]).rstrip(".") or first_line(error)
    return (
        f"{address} cannot be opened: {message}. Are the name and the configuration right, and is there a network? A data set that was "
        "written by `save_to_disk` is a directory: name the directory of the split."
    )


def _file(address: str, root: str, place: str, layout: FileLayout) -> CorpusFile:
    match = _FILE.fullmatch(place)
    name = match["name"] if match else os.path.relpath(place, root)
    form = format_of(name)
    if form is None:
        raise CorpusError(
            f"{address} holds {name}, and this suffix is not known. The known suffixes of data are {known_suffixes()}. Convert the file, or "
            "give the files by their own addresses, hf://datasets/NAME/FILE."
        )
    stat = storage.stat(place)
    return CorpusFile(place, name, form, stat.num_bytes, stat.mtime_ns, compression_of(name), layout)
