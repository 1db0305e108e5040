"""Train on images and captions: python examples/image_captions.py --run-dir runs/captions --steps 100.

The first run makes a corpus of tiny images in a WebDataset tar, and its shards. Run the command again with more steps, also with another
number of `--workers`, and the training continues.
"""

import skillshard as ss

ss.needed("torch", what="examples/image_captions.py")

import argparse
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from skillshard.torch import Items, MixedDataset

BATCH, EVERY, SIDE = 32, 10, 8
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230), "yellow": (230, 220, 40)}
SHAPES = {"square": lambda x, y: True, "disc": lambda x, y: x * x + y * y < 14, "bar": lambda x, y: abs(x) < 2}
CAPTIONS = tuple(f"a {color} {shape}" for shape in SHAPES for color in COLORS)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def png_of(pixels: np.ndarray) -> bytes:
    """Encode pixels, (height, width, 3) of uint8, as a PNG. Use Pillow for your own images."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def pixels_of(png: bytes) -> np.ndarray:
    """Decode a PNG of `png_of`. Pillow decodes every image: np.asarray(Image.open(io.BytesIO(png)))."""
    start = png.index(b"IDAT")
    (num_bytes,) = struct.unpack(">I", png[start - 4 : start])
    rows = np.frombuffer(zlib.decompress(png[start + 4 : start + 4 + num_bytes]), np.uint8)
    return rows.reshape(SIDE, 1 + 3 * SIDE)[:, 1:].reshape(SIDE, SIDE, 3)


def make_shards(run: Path) -> ss.ShardSet:
    """Write a corpus of captioned images, a skill for each shape, and its shards with the images. Finished shards are only opened."""
    tar_at, random = run / "corpus" / "images.tar", np.random.default_rng(0)
    if not tar_at.exists():
        tar_at.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tar_at.with_suffix(".tmp")
        with tarfile.open(unfinished, "w") as tar:
            for number in range(600):
                caption = CAPTIONS[number % len(CAPTIONS)]
                _, color, shape = caption.split()
                pixels = random.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
                for y, x in np.ndindex(SIDE, SIDE):
                    if SHAPES[shape](x - SIDE // 2, y - SIDE // 2):
                        pixels[y, x] = COLORS[color]
                # The number makes each caption a text of its own, so that every skill has captions in the holdout.
                members = {"txt": f"{caption}, picture {number}".encode(), "json": b'{"shape": "%s"}' % shape.encode()}
                for suffix, content in {**members, "png": png_of(pixels)}.items():
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        os.replace(unfinished, tar_at)
    corpus = ss.Corpus.open(tar_at.parent)
    tags = ss.tag_corpus(corpus, ss.taggers.metadata("shape"), run / "tags", progress=False)
    return ss.write_shards(corpus, tags, run / "shards", holdout=0.1, members=("png",), progress=False)


def tensors_of(texts: Sequence[str], images: Sequence[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode images, and return their pixels with the number of each caption."""
    pixels = np.stack([pixels_of(image) for image in images]).reshape(len(images), -1)
    targets = [CAPTIONS.index(text.partition(",")[0]) for text in texts]
    return torch.from_numpy(pixels / np.float32(255)), torch.tensor(targets)


def prepare(items: Items) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the tensors of a batch. The function runs in the workers of the loader."""
    return tensors_of(items.batch.text, items.batch.fields["png"])


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all: a process killed during the write leaves the previous checkpoint."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def main(run: Path, steps: int, workers: int) -> None:
    shards = make_shards(run)
    policy = ss.policies.chain(
        ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2), ss.policies.floor(0.01)
    )
    ledger = run / "ledger"
    mixer = ss.Mixer(
        shards, policy, ledger=ledger, round_draws=EVERY * BATCH, step_draws=BATCH, seed=3, members=("png",)
    )
    torch.manual_seed(0)
    model = torch.nn.Linear(3 * SIDE * SIDE, len(CAPTIONS), device=DEVICE)  # your model; this one names the caption
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def loss_of(pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(pixels.to(DEVICE)), targets.to(DEVICE))

    def report(step: int) -> None:
        losses = {}
        for skill, samples in shards.holdout.items():
            held_out = list(islice(samples.with_members(), 64))
            images = [dict(sample.members)["png"] for sample in held_out]
            with torch.no_grad():
                losses[skill] = loss_of(*tensors_of([sample.text for sample in held_out], images)).item()
        mixer.report(step, losses)
        print(step, {skill: f"{loss:.3f}" for skill, loss in losses.items()})

    checkpoint, step = run / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        mixer.load_state_dict(saved["mixer"])
        step = saved["mixer"]["step"]
        print(f"goes on after step {step}")
    else:
        mixer.restart()  # does nothing in a new directory; an attempt that died before its first checkpoint begins again
        report(0)  # before the first step: these losses give the weights of round 1

    batches = iter(DataLoader(MixedDataset(mixer), batch_size=BATCH, num_workers=workers, collate_fn=prepare))
    while step < steps:
        loss = loss_of(*next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:  # once per round
            report(step)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(checkpoint, {**state, "mixer": mixer.state_dict(step=step)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="Directory of corpus, shards, ledger and checkpoints."
    )
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps of the whole training.")
    parser.add_argument("--workers", type=int, default=2, help="Number of loader processes.")
    arguments = parser.parse_args()
    main(arguments.run_dir, arguments.steps, arguments.workers)
