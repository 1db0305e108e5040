"""Lightning's Trainer and Fabric in several gloo processes: the union of the ranks is the global stream, also after a kill."""

import re
import signal
from pathlib import Path

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import open_records
from skillshard.shards.read import ShardSet
from tests.adapters.ddp_trainer import STEP_DRAWS
from tests.adapters.processes import finish, start_ranks
from tests.adapters.test_ddp import STEPS, check_union
from tests.adapters.trainers import losses_at, reported

ADVICE = r"MixedDataset has no length.*Fabric\.setup_dataloaders take use_distributed_sampler=False"
pytestmark = pytest.mark.filterwarnings("ignore:skills? .* pass(es)? 4 epochs:UserWarning")


def arguments(shards: ShardSet, folder: Path, kind: str, *, kill_at: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [str(shards.root), str(folder), str(STEPS), kind, str(kill_at)]


@pytest.mark.parametrize(("kind", "ranks_after"), [("lightning", 1), ("fabric", 3)])
def test_two_processes_killed_and_resumed_with_another_number_lose_and_repeat_nothing(
    shards: ShardSet, tmp_path: Path, kind: str, ranks_after: int
) -> None:
    folder = tmp_path / kind
    killed = start_ranks("lightning_ranks", 2, arguments(shards, folder, kind, kill_at=17), tmp_path)
    assert set(finish(killed)) == {-signal.SIGKILL}
    again = start_ranks("lightning_ranks", ranks_after, arguments(shards, folder, kind), tmp_path)
    assert finish(again) == [0] * ranks_after
    check_union(shards, folder, tmp_path / "reference")
    assert reported(folder / "run") == [(step * STEP_DRAWS, losses_at(step)) for step in range(0, STEPS + 1, 5)]
    assert open_records(DirectoryLedger(folder / "run")).generation == 1
    if kind == "fabric":
        for rank in range(2):
            assert re.match(ADVICE, (folder / f"refused-{rank}.txt").read_text())


def test_a_trainer_that_would_share_the_stream_out_again_stops_with_the_advice(
    shards: ShardSet, tmp_path: Path
) -> None:
    ranks = start_ranks("lightning_ranks", 2, arguments(shards, tmp_path / "shared", "lightning-shared"), tmp_path)
    with pytest.raises(AssertionError, match=ADVICE):
        finish(ranks)
    assert not (tmp_path / "shared" / "rank-0.jsonl").read_bytes()
