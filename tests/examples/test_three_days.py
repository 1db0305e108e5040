"""The three days of docs/three-days.md: the page runs, and the processes have received every sample as the page says."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.ledger_faults import verify_ledger
from skillshard.mixing.recorded import open_recorded
from skillshard.mixing.records import open_records
from skillshard.report.history import report_facts
from skillshard.shards.read import ShardSet
from tests.conftest import REPOSITORY
from tests.documents import run_document

PAGE = REPOSITORY / "docs" / "three-days.md"
BORDERS = {"monday": range(640), "tuesday": range(640, 960), "wednesday": range(896, 1280)}
"""The draws of each run that count as seen. The last run skips the draws 896 to 959 of Tuesday."""


def received_by(folder: Path) -> dict[int, dict[int, list[str]]]:
    """Return rank -> draw -> the ids that the process received at the draw, once for each time that the draw came."""
    ranks: dict[int, dict[int, list[str]]] = {}
    for path in folder.glob("received-*.jsonl"):
        draws = ranks.setdefault(int(path.stem.rpartition("-")[2]), defaultdict(list))
        for batch in map(json.loads, path.read_text().splitlines()):
            for draw, sample in zip(batch["draw"], batch["id"], strict=True):
                draws[draw].append(sample)
    return ranks


def training_ids(place: Path) -> dict[str, set[str]]:
    return {skill: {sample.id for sample in samples} for skill, samples in ShardSet.open(place).train.items()}


def check_epochs(history: list[tuple[int, str]], before: Mapping[str, set[str]], after: Mapping[str, set[str]]) -> None:
    """Check that no sample comes twice in an epoch and that an epoch ends only after every sample that the skill has at that draw."""
    num_epochs = {}
    for skill, everything in after.items():
        drawn: set[str] = set()
        num_epochs[skill] = 0
        for draw, sample in history:
            if not sample.startswith(f"{skill}-"):
                continue
            present = before.get(skill, set()) if draw < 640 else everything
            if drawn == present:
                drawn, num_epochs[skill] = set(), num_epochs[skill] + 1
            assert sample in present and sample not in drawn, (draw, sample)
            drawn.add(sample)
    # The three days are long enough for every skill to end an epoch.
    assert min(num_epochs.values()) >= 1, num_epochs


@pytest.mark.long
def test_three_days_of_changes_lose_and_repeat_no_sample(tmp_path: Path) -> None:
    run_document(PAGE, tmp_path)
    runs = tmp_path / "runs"
    received = {run: received_by(runs / run) for run in BORDERS}
    assert {run: len(ranks) for run, ranks in received.items()} == {"monday": 2, "tuesday": 2, "wednesday": 1}

    # The two processes of Monday share the stream, draw by draw.
    for rank, draws in received["monday"].items():
        assert sorted(draws) == list(range(rank, 640, 2))
        assert all(len(samples) == 1 for samples in draws.values())
    # After the failure at step 54, one process receives the draws of steps 53 and 54 again, with the same samples.
    tuesday: dict[int, list[str]] = defaultdict(list)
    for draws in received["tuesday"].values():
        for draw, samples in draws.items():
            tuesday[draw] += samples
    assert sorted(tuesday) == list(range(640, 960))
    assert {draw for draw, samples in tuesday.items() if len(samples) == 2} == set(range(832, 864))
    assert all(len(set(samples)) == 1 for samples in tuesday.values())
    assert sorted(received["wednesday"][0]) == list(range(896, 1280))

    history = []
    for run, draws in BORDERS.items():
        of_run = {draw: samples[0] for ranks in received[run].values() for draw, samples in ranks.items()}
        history += [(draw, of_run[draw]) for draw in draws]
        # The ledger, which knows nothing of the logs, tells the same samples for every draw.
        past = open_recorded(runs / run)
        assert [sample.id for sample in past.samples(list(draws))] == [of_run[draw] for draw in draws]
        assert verify_ledger(DirectoryLedger(runs / run)) == []
    check_epochs(history, training_ids(tmp_path / "shards"), training_ids(tmp_path / "shards-tuesday"))

    # The decisions: the steering acts from the round after the pause to the end of Monday.
    weights = [record.weights for record in open_records(DirectoryLedger(runs / "monday")).rounds]
    assert [of_round == [0.15, 0.15, 0.55, 0.15] for of_round in weights] == [False] * 4 + [True] * 6
    (facts,) = report_facts([runs / "wednesday"]).runs
    events = [(event.draw, event.kind) for event in facts.events if event.kind != "alarm"]
    assert events == [
        (256, "change"),
        (640, "change"),
        (640, "resume"),
        (832, "resume"),
        (896, "change"),
        (896, "change"),
        (896, "resume"),
    ]
    sentence = "draws 896 to 959 of the run before are skipped, because the loss jumped at step 58"
    assert sentence in [event.sentence for event in facts.events]
