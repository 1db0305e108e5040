"""Measure the CPU time of `tag metadata` and `shard` against bare parsers and other writers of shards.

    python -m benchmarks.pipeline FOLDER [--rows 150000] [--rounds 5] [--large-rows 0] [--python mds=ENV/bin/python] [--python datatrove=ENV/bin/python]

The contenders take turns, and each runs in a process of its own with one worker. A ratio belongs to one round, in which the load of the machine is
about the same. The table gives the median of the ratios and their range. The results are written to benchmarks/results/pipeline.json.

The start is no part of the CPU time. A peer measures itself after its imports. Ray Data measures all processes of its cluster, after a first job on 20
rows. The commands of skillshard start a worker of their own, so their CPU time is the time of the command, less its median time on 20 rows.

`--large-rows` adds a corpus of our own: the elapsed time of `shard` with one worker and with two, in turns. Two controls take turns with `shard`, and show
the speed that the machine itself gains by a second process: the bare parser, and the USTAR writer by hand. A control reads the whole corpus in
one process, or one half in each of two processes.

Peers need environments of their own where their requirements do not fit. A peer that cannot be imported is left out with a sentence.
"""

import argparse
import importlib
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "pipeline.json"
TINY_ROWS = 20
LARGE_ROUNDS = 2
CONTROLS = ("parse", "USTAR by hand, synced")
NUM_SKILLS = 20


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


def shard(folder: Path, num_workers: int = 1) -> None:
    _skillshard("shard", folder / "jsonl", "--tags", folder / "tags", "--out", _out(folder), "--workers", num_workers)


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


def ustar_synced(folder: Path) -> None:
    """Write as `ustar`, and wait until the bytes are on the disk, as `shard` does."""
    ustar(folder)
    for place in _out(folder).iterdir():
        with place.open("rb") as file:
            os.fsync(file.fileno())


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


def ray_data(folder: Path) -> None:
    """Write with `write_webdataset` of Ray Data. Ray Data cannot route rows to skills, so all samples go into one set of tars."""
    import ray

    rows = ray.data.read_json(str(folder / "jsonl"))
    rows = rows.map(
        lambda row: {"__key__": row["id"], "txt": row["text"], "json": {"id": row["id"], "meta": row["meta"]}}
    )
    rows.write_webdataset(str(_out(folder)))


def start_ray(folder: Path) -> None:
    """Start a small Ray on this machine, and run a first job, which starts the workers."""
    import ray

    ray.init(num_cpus=2, object_store_memory=400 << 20, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray_data(folder.parent / "tiny")
    shutil.rmtree(_out(folder.parent / "tiny"))


@dataclass(frozen=True)
class Contender:
    """A command or a writer.

    Attributes:
        run: Function of the folder of a corpus.
        imports: Modules that are imported before the measurement. None: a command of skillshard, which is measured with its start.
        environment: Name of the environment of a peer.
        start: Function of the folder that runs before the measurement.
    """

    run: Callable[[Path], None]
    imports: tuple[str, ...] | None = None
    environment: str = ""
    start: Callable[[Path], None] | None = None


CONTENDERS = {
    "parse": Contender(parse, ("orjson",)),
    "tag JSONL": Contender(tag_jsonl),
    "scan": Contender(scan, ("pyarrow.parquet",)),
    "tag Parquet": Contender(tag_parquet),
    "shard": Contender(shard),
    "USTAR by hand": Contender(ustar, ("numpy", "orjson")),
    "USTAR by hand, synced": Contender(ustar_synced, ("numpy", "orjson")),
    "ShardWriter": Contender(shard_writer, ("orjson", "webdataset")),
    "MDSWriter": Contender(mds, ("orjson", "streaming"), "mds"),
    "datatrove JsonlWriter": Contender(datatrove, ("orjson", "datatrove.pipeline.writers"), "datatrove"),
    "Ray Data write_webdataset": Contender(ray_data, ("ray.data", "webdataset"), start=start_ray),
}
RATIOS = (
    ("tag JSONL", "parse", "at most 3"),
    ("tag Parquet", "scan", "at most 2"),
    ("USTAR by hand", "shard", "at least 1.0"),
    ("ShardWriter", "shard", "at least 8"),
    ("MDSWriter", "shard", "above 1"),
    ("datatrove JsonlWriter", "shard", "above 1"),
    ("Ray Data write_webdataset", "shard", "above 1"),
)


def _tag(folder: Path, kind: str, out: Path) -> list[object]:
    # The tiny corpus has several partitions, because a single partition is read by the command itself, without a worker to start.
    size = "12KiB" if folder.name == "tiny" else "64MiB"
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


def measured(contender: Contender, folder: Path) -> dict[str, float]:
    """Run a contender in this process, after its imports and its start, and return the CPU seconds of this process and its children."""
    for module in contender.imports or ():
        importlib.import_module(module)
    if contender.start is not None:
        contender.start(folder)
    before_s, start_s = _cpu_seconds(with_tree=contender.start is not None), time.process_time()
    contender.run(folder)
    return {"cpu_s": _cpu_seconds(with_tree=contender.start is not None) - before_s, "start_s": start_s}


def _cpu_seconds(*, with_tree: bool) -> float:
    """Return the CPU seconds of this process, and with its tree those of all processes below, with the processes that have ended."""
    if not with_tree:
        return time.process_time()
    import psutil

    here = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in (here, *here.children(recursive=True)))


def run(name: str, folder: Path, python: str, num_workers: int = 1) -> dict[str, float] | str:
    """Return the CPU seconds of a contender and of its start, and the elapsed seconds, or the last line of its error."""
    shutil.rmtree(_out(folder), ignore_errors=True)
    before, started_s = os.times(), time.perf_counter()
    command = [python, __file__, "--contender", name, "--workers", str(num_workers), str(folder)]
    # The folder of the repository stands first on the path only for contenders of this environment.
    environment = (
        {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        if python == sys.executable
        else dict(os.environ)
    )
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    elapsed_s, after = time.perf_counter() - started_s, os.times()
    shutil.rmtree(_out(folder), ignore_errors=True)
    if process.returncode:
        return (process.stderr.strip().splitlines() or ["no message"])[-1]
    if CONTENDERS[name].imports is not None:
        return {**json.loads(process.stdout.splitlines()[-1]), "elapsed_s": elapsed_s}
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_s": cpu_s, "elapsed_s": elapsed_s}


def measure(
    folder: Path, num_rows: int, num_rounds: int, num_large_rows: int, pythons: dict[str, str]
) -> dict[str, Any]:
    """Measure all contenders in turns, and then our own command on a large corpus."""
    for name, num in (("corpus", num_rows), ("tiny", TINY_ROWS)):
        write_corpus(folder / name, num)
    left_out: dict[str, str] = {}
    rounds: list[dict[str, dict[str, float]]] = []
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "rows": num_rows,
        "jsonl_bytes": sum(file.stat().st_size for file in (folder / "corpus" / "jsonl").iterdir()),
        "load": [],
        "rounds": rounds,
        "left_out": left_out,
    }
    for number in range(num_rounds):
        rounds.append({})
        result["load"].append(os.getloadavg()[0])
        for name, contender in CONTENDERS.items():
            if name in left_out or name == CONTROLS[-1]:
                continue
            python = pythons.get(contender.environment, sys.executable)
            start = run(name, folder / "tiny", python) if contender.imports is None else {}
            times = run(name, folder / "corpus", python)
            if isinstance(times, str) or isinstance(start, str):
                left_out[name] = str(times)
                continue
            rounds[-1][name] = {**times, **({"start_s": start["cpu_s"]} if start else {})}
            sys.stderr.write(f"round {number + 1}: {name} {rounds[-1][name]}\n")
            # After each contender, so that a run that is stopped keeps its numbers.
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if num_large_rows:
        for result["large"] in large(folder / "large", num_large_rows):
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return result


def large(folder: Path, num_rows: int) -> Iterator[dict[str, Any]]:
    """Measure `shard` with one worker and with two on a large corpus, in turns. Yield the result after each round."""
    write_corpus(folder, num_rows)
    files = sorted((folder / "jsonl").iterdir())
    num_bytes = sum(file.stat().st_size for file in files)
    halves = [folder / f"half-{number}" for number in range(2)]
    for number, file in enumerate(files):
        half = halves[2 * number // len(files)] / "jsonl"
        half.mkdir(parents=True, exist_ok=True)
        os.link(file, half / file.name)
    rounds: list[dict[str, Any]] = []
    for _ in range(LARGE_ROUNDS):
        rounds.append({"load": os.getloadavg()[0]})
        for num_workers in (1, 2):
            rounds[-1][f"{num_workers} workers"] = run("shard", folder, sys.executable, num_workers)
        for control in CONTROLS:
            rounds[-1][control] = {"1 workers": at_once(control, [folder]), "2 workers": at_once(control, halves)}
        sys.stderr.write(f"large: {rounds[-1]}\n")
        yield {"rows": num_rows, "jsonl_bytes": num_bytes, "rounds": rounds}
    shutil.rmtree(folder)


def at_once(name: str, folders: list[Path]) -> dict[str, float]:
    """Run a contender on several corpora at the same time, and return the CPU seconds of all processes and the elapsed seconds until the last one ends."""
    with ThreadPoolExecutor(len(folders)) as threads:
        results = list(threads.map(lambda folder: run(name, folder, sys.executable), folders))
    times = [result for result in results if not isinstance(result, str)]
    if len(times) < len(results):
        raise RuntimeError(f"{name} failed: {results}")
    return {"cpu_s": sum(each["cpu_s"] for each in times), "elapsed_s": max(each["elapsed_s"] for each in times)}


def table(result: dict[str, Any]) -> str:
    """Return the ratios as a table of Markdown."""
    out = io.StringIO()
    out.write("| ratio of CPU times | aim | median | range |\n|---|---|---:|---:|\n")
    starts: dict[str, list[float]] = {}
    for times in result["rounds"]:
        for name, of_contender in times.items():
            starts.setdefault(name, []).append(of_contender["start_s"])
    # Only the time of a command contains its start.
    start_s = {
        name: statistics.median(seconds) if CONTENDERS[name].imports is None else 0.0
        for name, seconds in starts.items()
    }
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
    if "large" in result:
        for name, aim in (("shard", "at least 1.7"), *((control, "control") for control in CONTROLS)):
            turns = [times if name == "shard" else times[name] for times in result["large"]["rounds"]]
            ratios = [times["1 workers"]["elapsed_s"] / times["2 workers"]["elapsed_s"] for times in turns]
            out.write(f"| {name}, 1 worker / 2 workers, elapsed | {aim} | ")
            out.write(f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |\n")
    for name, seconds in starts.items():
        out.write(f"\n{name}: start {statistics.median(seconds):.2f} s.\n")
    for name, why in result["left_out"].items():
        out.write(f"\n{name} is left out: {why}.\n")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--large-rows", type=int, default=0)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender is not None:
        contender = CONTENDERS[options.contender]
        if options.workers > 1:
            shard(options.folder, options.workers)
        elif contender.imports is None:
            contender.run(options.folder)
        else:
            sys.stdout.write(json.dumps(measured(contender, options.folder)) + "\n")
        return
    pythons = dict(word.split("=", 1) for word in options.python)
    work = options.folder / "pipeline"
    result = measure(work, options.rows, options.rounds, options.large_rows, pythons)
    shutil.rmtree(work)
    sys.stdout.write(table(result))


if __name__ == "__main__":
    main()
