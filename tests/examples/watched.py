"""Runs an example, and writes down the batches that its process takes: watched.py FOLDER SCRIPT ARGUMENTS...

A line of FOLDER/RANK.jsonl is the list of the samples of a batch: texts, or rows of token ids. A line is written before the batch is
trained, so a process that is killed has written each batch that it has trained.
"""

import json
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data.dataloader import _BaseDataLoaderIter

from skillshard.mixing.packing import PackedTokens


def samples_of(batch: Any) -> list[Any]:
    """Return the samples of a batch of any example."""
    if isinstance(batch, list):
        return batch  # the texts of the pipeline of webdataset
    if isinstance(batch, Mapping):
        return list(batch["text"]) if "text" in batch else batch["input_ids"].tolist()
    inputs, labels = batch  # the pair of torchtitan: a block without its last token, and without its first token
    return [[*ids[:1], *shifted] for ids, shifted in zip(inputs["input"].tolist(), labels.tolist(), strict=True)]


def watch(folder: Path) -> None:
    """Write down what the loaders of this process return, and the blocks that a loop without a loader reads."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / f"{os.environ.get('RANK', '0')}.jsonl").open("a", buffering=1)
    next_batch, read = _BaseDataLoaderIter.__next__, PackedTokens.batch

    def watched_next(loader: Any) -> Any:
        batch = next_batch(loader)
        print(json.dumps(samples_of(batch)), file=log)
        return batch

    def watched_read(packed: PackedTokens, first: int, num: int) -> Any:
        blocks = read(packed, first, num)
        print(json.dumps(blocks.input_ids.tolist()), file=log)
        return blocks

    _BaseDataLoaderIter.__next__ = watched_next  # type: ignore[method-assign]
    PackedTokens.batch = watched_read  # type: ignore[method-assign]


if __name__ == "__main__":
    folder, script, *arguments = sys.argv[1:]
    watch(Path(folder))
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)  # Python begins with the directory of the script
    runpy.run_path(script, run_name="__main__")
