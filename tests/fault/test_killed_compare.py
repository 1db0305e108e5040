"""`compare` that is killed before, within and between its trials, and repeated, gives the bytes of an undisturbed run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from skillshard.shards.read import ShardSet
from tests.commands import finish, start, works
from tests.conftest import tree
from tests.fault.test_killed import kill_and_see_all_end, wait_until

pytestmark = pytest.mark.long
OPTIONS = ("--policy", "stratified", "--policy", "proportional", "--policy", "loss_order:eta=0.5", "--seeds", 2)
OPTIONS += (
    "--steps",
    60,
    "--batch-size",
    8,
    "--eval-every",
    10,
    "--eval-samples",
    5,
    "--window",
    32,
    "--device",
    "cpu",
)


def num_records(out: Path) -> int:
    return len([*(out / "trials").glob("*.json")])


POINTS: dict[str, Callable[[Path], bool]] = {
    "before the first trial": lambda out: (out / "settings.json").exists(),
    "within a trial": lambda out: any((out / "runs").glob(".*/generations/*/observations/00000002.json")),
    "after a trial": lambda out: num_records(out) >= 1,
    "after most trials": lambda out: num_records(out) >= 4,
}


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_several_points_it_goes_on_and_ends_in_the_same_bytes(
    workers: int, shards: ShardSet, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = ("compare", shards.root, *OPTIONS, "--workers", workers, "--out", out)
    records: dict[Path, int] = {}
    for point, is_reached in POINTS.items():
        process = start(*command, marker=str(tmp_path))
        wait_until(lambda: is_reached(out) or process.poll() is not None, timeout_s=240)  # noqa: B023
        kill_and_see_all_end(process, str(tmp_path))
        assert not (out / "compare.json").exists(), f"killed too late: {point}"
        assert records.items() <= {path: path.stat().st_mtime_ns for path in (out / "trials").glob("*.json")}.items()
        records = {path: path.stat().st_mtime_ns for path in (out / "trials").glob("*.json")}
    outcome = finish(start(*command))
    assert outcome.code == 0, outcome
    assert f"{6 - len(records)} trial" in outcome.err, "finished trials are not trained again"
    works("compare", shards.root, *OPTIONS, "--workers", 1, "--out", tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")
