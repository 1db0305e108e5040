"""Measure the peak memory of the workers of `tag` and `shard` on corpora of extreme shapes, with default options.

    python -m benchmarks.memory FOLDER [--scale 0.25] [SHAPE...]

For each shape, the corpus is generated under FOLDER, tagged and sharded by two workers, and removed. A line shows the largest resident
memory of a worker and of the driver (VmHWM of /proc, read every 50 ms), and the CPU seconds. A worker must stay under 500 MB. `--scale`
multiplies the number of rows.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

WORDS = [f"{word:05x}" for word in range(4096)]


def rows(num: int, words: int, skill: Callable[[int], str]) -> Iterator[bytes]:
    """Yield lines of JSON with `words` random words in each text."""
    random = np.random.default_rng(0)
    for first in range(0, num, 1000):
        for row, numbers in enumerate(random.integers(0, len(WORDS), (min(1000, num - first), words)).tolist(), first):
            text = " ".join([WORDS[number] for number in numbers])
            yield orjson.dumps({"id": f"{row:x}", "text": text, "skill": skill(row)}, option=orjson.OPT_APPEND_NEWLINE)


def write(place: Path, lines: Iterator[bytes]) -> None:
    codec = "zstd" if place.suffix == ".zst" else None
    with pa.output_stream(str(place), compression=codec) as file:
        for line in lines:
            file.write(line)


SHAPES: dict[str, tuple[str, Callable[[float], Iterator[bytes]]]] = {
    "2.6 M rows of 68 bytes": ("0.jsonl", lambda scale: rows(int(2_600_000 * scale), 4, lambda row: f"s{row % 8}")),
    "one .zst of 4 M rows": ("0.jsonl.zst", lambda scale: rows(int(4_000_000 * scale), 4, lambda row: f"s{row % 8}")),
    "1,100 texts of 2 MB": ("0.jsonl.zst", lambda scale: rows(int(1_100 * scale), 333_333, lambda row: f"s{row % 8}")),
    "99 % in one skill": ("0.jsonl", lambda scale: rows(int(400_000 * scale), 170, lambda row: f"s{row % 100 == 0}")),
    "2,000 skills": ("0.jsonl", lambda scale: rows(int(400_000 * scale), 170, lambda row: f"s{row * 7919 % 2000}")),
}


def processes_of(root: int) -> dict[int, float]:
    """Return a process and all its descendants, each with its CPU seconds so far.

    The workers are children of the fork server of `multiprocessing`, and not of the command. The command does not wait for the workers, so
    `os.times` does not count their time.
    """
    parents: dict[int, int] = {}
    cpu_s: dict[int, float] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # the process has just ended
            continue
        parents[int(name)] = int(fields[1])
        cpu_s[int(name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {root} & cpu_s.keys()
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return {pid: cpu_s[pid] for pid in family}


def peak_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        match = re.search(r"VmHWM:\s+(\d+) kB", file.read())
    return int(match[1]) << 10 if match else 0


def measure(command: list[str]) -> tuple[int, int, float]:
    """Run a command. Return the peak bytes of the largest worker and of the driver, and the CPU seconds of all processes."""
    process = subprocess.Popen([sys.executable, "-m", "skillshard", *command], stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    cpu_s: dict[int, float] = {}
    while process.poll() is None:
        for pid, seconds in processes_of(process.pid).items():
            cpu_s[pid] = seconds
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process has just ended
                peaks[pid] = max(peaks.get(pid, 0), peak_bytes(pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed.")
    driver = peaks.pop(process.pid)
    return max(peaks.values(), default=0), driver, sum(cpu_s.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"one of: {'; '.join(SHAPES)}")
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_intermixed_args()
    sys.stdout.write(f"{'shape':24} {'bytes':>12} {'verb':6} {'worker':>8} {'driver':>8} {'CPU s':>7}\n")
    for shape in options.shapes or SHAPES:
        name, lines = SHAPES[shape]
        folder = options.folder / "memory"
        (folder / "corpus").mkdir(parents=True)
        write(folder / "corpus" / name, lines(options.scale))
        num_bytes = (folder / "corpus" / name).stat().st_size
        corpus, tags = str(folder / "corpus"), str(folder / "tags")
        for command in (
            ["tag", "metadata", corpus, "--field", "skill", "--out", tags, "--workers", "2"],
            ["shard", corpus, "--tags", tags, "--out", str(folder / "shards"), "--workers", "2"],
        ):
            worker, driver, cpu_s = measure(command)
            megabytes = f"{worker / 1e6:5.0f} MB {driver / 1e6:5.0f} MB"
            sys.stdout.write(f"{shape:24} {num_bytes:12,} {command[0]:6} {megabytes} {cpu_s:7.1f}\n")
            sys.stdout.flush()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
