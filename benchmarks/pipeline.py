"""Measure the CPU time of `tag metadata` and `shard` against bare parsers and other writers of shards.

    python -m benchmarks.pipeline FOLDER [--rows 150000] [--rounds 5] [--python mds=ENV/bin/python] [--python datatrove=ENV/bin/python]

The contenders take turns, and each runs in a process of its own with one worker. The CPU time of a contender is the time on the corpus, less
its median time on a corpus of 20 rows, so that the start of Python and of the libraries is left out. A ratio belongs to one round, in which the load of
the machine is about the same. The table gives the median of the ratios and their range. The results are written to
benchmarks/results/pipeline.json.

Peers need environments of their own where their requirements do not fit. A peer that cannot be imported is left out with a sentence.
"""

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "pipeline.json"
TINY_ROWS = 20
NUM_SKILLS = 20
# The workers of Ray are no children of the process that calls Ray Data, so their CPU time is not seen here. Ray Data cannot route rows to skills either.
LEFT_OUT = {
    "Ray Data write_webdataset": "its workers are no children of the command, and rows cannot be routed by skill"
}


# ------------------------------------------------------------------------------------------------------------- contenders


def parse(folder: Path) -> None:
    """Parse the lines with orjson, and drop the values."""
    import orjson

    for file in sorted((folder / "jsonl").iterdir()):
        with file.open("rb") as lines:
            for line in lines:
                orjson.loads(line)


def scan(folder: Path) -> None:
    """Read all columns of Parquet with pyarrow, and drop the batches."""
    import pyarrow.parquet as pq

    for file in sorted((folder / "parquet").iterdir()):
        for _ in pq.ParquetFile(file).iter_batches(use_threads=False):
            pass


def tag_jsonl(folder: Path) -> None:
    _skillshard(*_tag(folder, "jsonl", _out(folder)))


def tag_parquet(folder: Path) -> None:
    _skillshard(*_tag(folder, "parquet", _out(folder)))


def shard(folder: Path) -> None:
    _skillshard("shard", folder / "jsonl", "--tags", folder / "tags", "--out", _out(folder), "--workers", 1)


def ustar(folder: Path) -> None:
    """Parse, route by skill and write USTAR members and an index, by hand. No shuffle, hash, digest or check."""
    import numpy as np
    import orjson

    out = _out(folder)
    out.mkdir()
    files: dict[str, Any] = {}
    indexes: dict[str, list[tuple[int, int]]] = {}
    for sample_id, text, meta in _rows(folder, orjson.loads):
        skill = meta["skill"]
        if skill not in files:
            files[skill], indexes[skill] = (out / f"{skill}.tar").open("wb"), []
        members = (text.encode(), orjson.dumps({"id": sample_id, "skill": skill, "meta": meta}))
        row = len(indexes[skill])
        for ending, data in zip((b"txt", b"json"), members, strict=True):
            files[skill].write(_header(b"%09d.%b" % (row, ending), len(data)) + data + bytes(-len(data) % 512))
        indexes[skill].append((len(members[0]), len(members[1])))
    for skill, file in files.items():
        file.write(bytes(1024))
        file.close()
        np.save(out / f"{skill}.npy", np.array(indexes[skill]))


def shard_writer(folder: Path) -> None:
    """Write with ShardWriter of webdataset, one writer for each skill."""
    import orjson
    import webdataset

    out = _out(folder)
    writers: dict[str, Any] = {}
    for row, (sample_id, text, meta) in enumerate(_rows(folder, orjson.loads)):
        skill = meta["skill"]
        if skill not in writers:
            (out / skill).mkdir(parents=True)
            writers[skill] = webdataset.ShardWriter(str(out / skill / "%06d.tar"), verbose=0, maxsize=64 << 20)
        writers[skill].write({"__key__": f"{row:09d}", "txt": text, "json": {"id": sample_id, "meta": meta}})
    for writer in writers.values():
        writer.close()


def mds(folder: Path) -> None:
    """Write with MDSWriter of mosaicml-streaming, one writer for each skill."""
    import orjson
    from streaming import MDSWriter

    writers: dict[str, Any] = {}
    for sample_id, text, meta in _rows(folder, orjson.loads):
        skill = meta["skill"]
        if skill not in writers:
            writers[skill] = MDSWriter(
                out=str(_out(folder) / skill), columns={"id": "str", "text": "str", "meta": "json"}
            )
        writers[skill].write({"id": sample_id, "text": text, "meta": meta})
    for writer in writers.values():
        writer.finish()


def datatrove(folder: Path) -> None:
    """Write with JsonlWriter of datatrove, one file for each skill."""
    import orjson
    from datatrove.data import Document
    from datatrove.pipeline.writers import JsonlWriter

    with JsonlWriter(str(_out(folder)), output_filename="${skill}/${rank}.jsonl", compression=None) as writer:
        for sample_id, text, meta in _rows(folder, orjson.loads):
            writer.write(Document(text=text, id=sample_id, metadata=meta), rank=0)


CONTENDERS: dict[str, Callable[[Path], None]] = {
    "parse": parse,
    "tag JSONL": tag_jsonl,
    "scan": scan,
    "tag Parquet": tag_parquet,
    "shard": shard,
    "USTAR by hand": ustar,
    "ShardWriter": shard_writer,
    "MDSWriter": mds,
    "datatrove JsonlWriter": datatrove,
}
ENVIRONMENT = {"MDSWriter": "mds", "datatrove JsonlWriter": "datatrove"}
RATIOS = (
    ("tag JSONL", "parse", "at most 3"),
    ("tag Parquet", "scan", "at most 2"),
    ("USTAR by hand", "shard", "at least 1.0"),
    ("ShardWriter", "shard", "at least 8"),
    ("MDSWriter", "shard", "above 1"),
    ("datatrove JsonlWriter", "shard", "above 1"),
)


def _tag(folder: Path, kind: str, out: Path) -> list[object]:
    # The tiny corpus has several partitions too, because a single partition is read by the command itself, without a worker to start.
    size = "64MiB" if folder.name == "corpus" else "500B"
    return [
        "tag",
        "metadata",
        folder / kind,
        "--field",
        "skill",
        "--out",
        out,
        "--workers",
        1,
        "--partition-size",
        size,
    ]


def _out(folder: Path) -> Path:
    return folder / "out"


def _skillshard(*words: object) -> None:
    from skillshard.cli import main

    sys.argv = ["skillshard", *map(str, words)]
    main()


def _rows(folder: Path, loads: Callable[[bytes], Any]) -> Any:
    for file in sorted((folder / "jsonl").iterdir()):
        with file.open("rb") as lines:
            for line in lines:
                record = loads(line)
                yield record["id"], record["text"], record["meta"]


def _header(name: bytes, size: int) -> bytes:
    header = bytearray(512)
    header[0 : len(name)] = name
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    header[124:148] = b"%011o\0" % size + b"00000000000\0"
    header[148:157] = b"        0"
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


# ------------------------------------------------------------------------------------------------------------- measuring


def write_corpus(folder: Path, num_rows: int) -> None:
    """Write a corpus of 1 kB texts in four files, as JSONL and as Parquet, and its tags."""
    import numpy as np
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    words = [f"{word:05x}"[: 2 + word % 4] for word in range(4096)]
    for kind in ("jsonl", "parquet"):
        (folder / kind).mkdir(parents=True)
    for number in range(4):
        rows = range(num_rows * number // 4, num_rows * (number + 1) // 4)
        texts = [
            " ".join(words[word] for word in random.integers(0, 4096, length))
            for length in random.integers(80, 380, len(rows))
        ]
        metas = [{"skill": f"s{row % NUM_SKILLS}", "source": "web", "n": row, "lang": "en"} for row in rows]
        with (folder / "jsonl" / f"{number}.jsonl").open("wb") as file:
            for row, text, meta in zip(rows, texts, metas, strict=True):
                file.write(orjson.dumps({"id": f"doc-{row:09d}", "text": text, "meta": meta}) + b"\n")
        columns = {"id": [f"doc-{row:09d}" for row in rows], "text": texts}
        columns |= {name: [meta[name] for meta in metas] for name in metas[0]}
        pq.write_table(pa.table(columns), folder / "parquet" / f"{number}.parquet", row_group_size=5000)
    command = map(str, _tag(folder, "jsonl", folder / "tags"))
    subprocess.run([sys.executable, "-m", "skillshard", *command], check=True, stdout=subprocess.DEVNULL)


def run(name: str, folder: Path, python: str) -> tuple[float, float] | str:
    """Return the CPU seconds and the elapsed seconds of a contender, or the last line of its error."""
    shutil.rmtree(_out(folder), ignore_errors=True)
    before, started_s = os.times(), time.perf_counter()
    command = [python, __file__, "--contender", name, str(folder)]
    # The folder of the repository stands first on the path only for contenders of this environment.
    environment = (
        {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        if python == sys.executable
        else dict(os.environ)
    )
    process = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    elapsed_s, after = time.perf_counter() - started_s, os.times()
    if process.returncode:
        return (process.stderr.strip().splitlines() or ["no message"])[-1]
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    shutil.rmtree(_out(folder), ignore_errors=True)
    return cpu_s, elapsed_s


def measure(folder: Path, num_rows: int, num_rounds: int, pythons: dict[str, str]) -> dict[str, Any]:
    for name, num in (("corpus", num_rows), ("tiny", TINY_ROWS)):
        write_corpus(folder / name, num)
    left_out = dict(LEFT_OUT)
    names = list(CONTENDERS)
    rounds: list[dict[str, dict[str, float]]] = []
    loads = []
    for number in range(num_rounds):
        times: dict[str, dict[str, float]] = {}
        loads.append(os.getloadavg()[0])
        for name in list(names):
            python = pythons.get(ENVIRONMENT.get(name, ""), sys.executable)
            start = run(name, folder / "tiny", python)
            whole = run(name, folder / "corpus", python) if not isinstance(start, str) else start
            if isinstance(whole, str) or isinstance(start, str):
                left_out[name] = str(whole)
                names.remove(name)
                continue
            times[name] = {"cpu_s": whole[0], "start_s": start[0]}
            sys.stderr.write(f"round {number + 1}: {name} {whole[0]:.2f} s, start {start[0]:.2f} s\n")
        rounds.append(times)
        # After each round, so that a run that is stopped keeps its finished rounds.
        RESULTS.write_text(json.dumps(_result(folder, num_rows, rounds, loads, left_out), indent=1) + "\n")
    return _result(folder, num_rows, rounds, loads, left_out)


def _result(
    folder: Path, num_rows: int, rounds: list[dict[str, dict[str, float]]], loads: list[float], left_out: dict[str, str]
) -> dict[str, Any]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "rows": num_rows,
        "jsonl_bytes": sum(file.stat().st_size for file in (folder / "corpus" / "jsonl").iterdir()),
        "load": loads,
        "rounds": rounds,
        "left_out": left_out,
    }


def table(result: dict[str, Any]) -> str:
    """Return the ratios as a table of Markdown."""
    out = io.StringIO()
    out.write("| ratio of CPU times | aim | median | range |\n|---|---|---:|---:|\n")
    starts: dict[str, list[float]] = {}
    for times in result["rounds"]:
        for name, time_of in times.items():
            starts.setdefault(name, []).append(time_of["start_s"])
    start_s = {name: statistics.median(seconds) for name, seconds in starts.items()}
    for over, under, aim in RATIOS:
        ratios = [
            (times[over]["cpu_s"] - start_s[over]) / (times[under]["cpu_s"] - start_s[under])
            for times in result["rounds"]
            if over in times and under in times
        ]
        if ratios:
            out.write(
                f"| {over} / {under} | {aim} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |\n"
            )
    for name, why in result["left_out"].items():
        out.write(f"\n{name} is left out: {why}.\n")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender is not None:
        CONTENDERS[options.contender](options.folder)
        return
    pythons = dict(word.split("=", 1) for word in options.python)
    work = options.folder / "pipeline"
    result = measure(work, options.rows, options.rounds, pythons)
    shutil.rmtree(work)
    sys.stdout.write(table(result))


if __name__ == "__main__":
    main()
