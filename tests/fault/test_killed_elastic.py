"""Ranks with real loader workers are killed by SIGKILL at random draws and continue as other ranks: the stream of a single reader."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.mixer import Mixer
from skillshard.shards.read import ShardSet
from tests.adapters.processes import records
from tests.adapters.trainers import SKILLS, live_mixer
from tests.commands import marked
from tests.conftest import REPOSITORY

ROUND, DRAWS = 50, 480
TRAINER = """
import json, os, sys, time, warnings
from pathlib import Path
from torch.utils.data import DataLoader
from skillshard.torch import MixedDataset, collate
from tests.fault.test_killed_elastic import live, losses_at

folder, plan = Path(sys.argv[2]), json.loads(sys.argv[3])
mixer, world_size, batch_size = live(sys.argv[1], folder / "run", plan["lag"]), plan["world_size"], plan["batch_size"]
saved = folder / "checkpoint.json"
warnings.simplefilter("ignore")
if saved.exists():
    mixer.load_state_dict(json.loads(saved.read_text()))
else:
    mixer.restart()
first = draw = mixer.draw
ranks = [
    iter(DataLoader(
        MixedDataset(mixer, rank=rank, world_size=world_size),
        batch_size=batch_size, num_workers=plan["workers"], prefetch_factor=2 if plan["workers"] else None, collate_fn=collate,
    ))
    for rank in range(world_size)
]
log = (folder / "log.jsonl").open("a")
while draw < plan["draws"]:
    for batch in map(next, ranks):
        log.write(json.dumps({"draws": batch["draw"].tolist(), "texts": batch["text"]}) + "\\n")
        log.flush()
    for at in range(draw + 1, draw + world_size * batch_size + 1):
        if at % 25 == 0:
            mixer.report(at, losses_at(at), draw=at)
    draw += world_size * batch_size
    if (draw - first) // (world_size * batch_size) % 3 == 0:
        (folder / "part").write_text(json.dumps(mixer.state_at(draw).model_dump(by_alias=True)))
        os.replace(folder / "part", saved)
    time.sleep(0.02)
os._exit(0)  # with worker processes still reading ahead
"""


def losses_at(draw: int) -> dict[str, float]:
    return {skill: 3.0 / (1 + draw * (number + 1) / 100) for number, skill in enumerate(SKILLS)}


def live(shards: Any, ledger: Path, lag: int) -> Mixer:
    return live_mixer(shards, ledger, step_draws=1, round_draws=ROUND, lag=lag, initial_losses=False)


def by_one_reader(shards: ShardSet, ledger: Path, lag: int, num_draws: int) -> list[str]:
    reader = live(shards, ledger, lag)
    texts: list[str] = []
    for first in range(0, num_draws, 25):
        if first:
            reader.report(first, losses_at(first), draw=first)
        texts += reader.batch(first, min(25, num_draws - first)).text
    return texts


def seen_in(folder: Path) -> dict[int, str]:
    """Return the text of each draw. A draw that is read again after a kill must have the same text."""
    seen: dict[int, str] = {}
    for record in records(folder / "log.jsonl"):
        for draw, text in zip(record["draws"], record["texts"], strict=True):
            assert seen.setdefault(draw, text) == text
    return seen


@pytest.mark.parametrize(("lag", "seed"), [(1, 0), pytest.param(3, 1, marks=pytest.mark.long)])
def test_ranks_killed_at_random_draws_and_begun_again_as_others_read_the_one_stream(
    shards: ShardSet, tmp_path: Path, lag: int, seed: int
) -> None:
    rng, marker, kills = random.Random(seed), uuid.uuid4().hex, 0
    for start in range(4):
        plan = {
            "lag": lag,
            "world_size": rng.randint(1, 4),
            "workers": rng.randint(0, 2 if start else 4),
            "batch_size": rng.randint(1, 6),
            "draws": DRAWS,
        }
        begun, more = len(seen_in(tmp_path)), rng.randint(20, 90)
        command = [sys.executable, "-W", "ignore", "-c", TRAINER, str(shards.root), str(tmp_path), json.dumps(plan)]
        with subprocess.Popen(
            command, cwd=REPOSITORY, text=True, stderr=subprocess.PIPE, env={**os.environ, "SKILLSHARD_TEST": marker}
        ) as process:
            while start < 3 and process.poll() is None:
                if len(seen_in(tmp_path)) >= begun + more:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.01)
            code = process.wait(120)
        assert code == (-signal.SIGKILL if start < 3 else 0), process.stderr
    assert kills == 3
    seen = seen_in(tmp_path)
    assert sorted(seen) == list(range(len(seen))) and len(seen) >= DRAWS
    assert [seen[draw] for draw in range(len(seen))] == by_one_reader(shards, tmp_path / "alone", lag, len(seen))
    assert verify_ledger(DirectoryLedger(tmp_path / "run")) == []
    end = time.monotonic() + 120
    while marked(marker):
        assert time.monotonic() < end, "loader workers outlive their trainer"
        time.sleep(0.1)
