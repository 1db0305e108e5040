"""A name is written once. Of several racing writers of different bytes exactly one wins, and every other writer learns of the loss."""

import os
import threading
from pathlib import Path

import pytest

from skillshard.storage import put_if_absent


def test_one_of_many_racing_writers_wins_and_its_bytes_are_the_file(tmp_path: Path) -> None:
    for attempt in range(20):
        path, barrier = tmp_path / str(attempt), threading.Barrier(6)
        won: dict[int, bool] = {}

        def write(
            number: int, path: Path = path, barrier: threading.Barrier = barrier, won: dict[int, bool] = won
        ) -> None:
            barrier.wait()
            won[number] = put_if_absent(path, str(number).encode() * 1000)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [number for number, has_won in won.items() if has_won]
        assert path.read_bytes() == str(winner).encode() * 1000


def test_who_comes_between_the_look_and_the_write_wins_and_the_other_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test fixes the order of the race: both writers look before a record exists."""
    path = tmp_path / "record"
    monkeypatch.setattr(os.path, "exists", lambda place: False)
    monkeypatch.setattr(os.path, "lexists", lambda place: False)
    assert put_if_absent(path, b"first")
    assert not put_if_absent(path, b"second")
    assert path.read_bytes() == b"first"


def test_a_loser_leaves_nothing_behind(tmp_path: Path) -> None:
    assert put_if_absent(tmp_path / "record", b"first")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert not put_if_absent(tmp_path / "record", b"second")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "record").read_bytes() == b"first"
