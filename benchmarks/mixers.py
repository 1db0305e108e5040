"""Measure the speed of mixed samples: skillshard, the limit of index + mmap, and other loaders, side by side on the same texts.

    python benchmarks/mixers.py --work /tmp/bench [--samples 50000] [--repeats 3] [--out benchmarks/results/mixers.json]

The corpus has 8 skills of `--samples` texts of about 1 kB (lognormal), weights .3 .2 .15 .1 .1 .05 .05 .05. The stream is shuffled, the
page cache is warm, and texts are delivered as `str`. Every loader runs in a process of its own for about `--seconds` CPU-seconds, in turn,
`--repeats` times. The measure is the number of samples per CPU-second of the process with its children, as a ratio to the limit
measured just before.

Each foreign package is installed into a virtual environment of its own under `--work`, because the requirements of the packages and of
the tests exclude each other. The interpreter of the environment then runs this file, and needs no skillshard. A package that cannot be
installed is reported as missing.

The cost of changing weights is smaller than the difference between two processes, so the cost is measured within a single process: blocks
of 16 rounds with changing and with fixed weights take turns.
"""

import argparse
import json
import operator
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = (0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05)
SKILLS = tuple(f"skill-{number}" for number in range(len(WEIGHTS)))
BATCH = 256
ROUND_DRAWS = 4096
LIMIT_DRAWS = 16_384
BLOCKS, BLOCK_ROUNDS, WARM_UP_BLOCKS = 154, 16, 4
MEMORY = Path("/dev/shm") if os.path.isdir("/dev/shm") else None  # None means the system's temporary directory
LEDGER_PREFIX = "skillshard-bench-"


# --- texts and the formats of each loader ----------------------------------------------------------------------------


def texts_of(skill: int, num: int) -> list[str]:
    """Make texts of about 1 kB from a fixed vocabulary with lognormal lengths. The texts depend on nothing but the skill."""
    rng = np.random.default_rng(skill)
    letters = "".join(map(chr, rng.integers(97, 123, 1 << 20))) + "\n"
    words = " ".join(letters[begin : begin + 6] for begin in range(0, len(letters) - 6, 6))
    sizes = np.clip(rng.lognormal(np.log(1000) - 0.125, 0.5, num), 50, 8000).astype(int)
    starts = rng.integers(0, len(words) - 8001, num)
    return [words[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]


def prepare(work: Path, num: int) -> None:
    """Write the corpus as JSONL, its shards, and a single file of texts with offsets for the limit."""
    from skillshard import taggers
    from skillshard.corpus import Corpus
    from skillshard.shards.write import write_shards

    if (work / "shards" / "manifest.json").exists():
        return
    (work / "corpus").mkdir(parents=True, exist_ok=True)
    ends, place = [0], work / "texts.bin"
    with place.open("wb") as file:
        for skill, name in enumerate(SKILLS):
            texts = texts_of(skill, num)
            rows = (
                json.dumps({"id": f"{name}-{number:08d}", "text": text, "skill": name})
                for number, text in enumerate(texts)
            )
            (work / "corpus" / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
            for text in texts:
                ends.append(ends[-1] + file.write(text.encode()))
    np.save(work / "ends.npy", np.array(ends))
    corpus = Corpus.open(work / "corpus")
    tags = taggers.tag_corpus(corpus, taggers.metadata("skill"), work / "tags")
    # WebDataset gives whole tars to workers, so a small set also needs several tars of each skill.
    write_shards(corpus, tags, work / "shards", shard_bytes=min(32 << 20, num * 1000), holdout=0.0)


def prepare_litdata(work: Path, num: int) -> None:
    import litdata

    for skill, name in enumerate(SKILLS):
        if not (work / "litdata" / name / "index.json").exists():
            litdata.optimize(
                fn=_Texts(skill, num),
                inputs=list(range(num)),
                output_dir=str(work / "litdata" / name),
                chunk_bytes="32MB",
                num_workers=1,
            )


@dataclass
class _Texts:
    skill: int
    num: int
    texts: list[str] | None = None

    def __call__(self, number: int) -> str:
        if self.texts is None:
            self.texts = texts_of(self.skill, self.num)
        return self.texts[number]


def _import_streaming() -> None:
    """Let Mosaic Streaming import torchvision, which lacks two operators with a PyTorch that is built for the CPU alone."""
    import torch

    if torch.version.cuda is None and not _has_torchvision():
        library = torch.library.Library("torchvision", "FRAGMENT")
        _KEPT.append(library)
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _has_torchvision() -> bool:
    return not subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode


_KEPT: list[Any] = []


def prepare_mosaic(work: Path, num: int) -> None:
    _import_streaming()
    from streaming import MDSWriter

    for skill, name in enumerate(SKILLS):
        if not (work / "mosaic" / name / "index.json").exists():
            with MDSWriter(out=str(work / "mosaic" / name), columns={"text": "str"}, size_limit=32 << 20) as writer:
                for text in texts_of(skill, num):
                    writer.write({"text": text})


def prepare_webdataset(work: Path, num: int) -> None:
    """Write shards with WebDataset's own ShardWriter and its defaults."""
    import webdataset

    for skill, name in enumerate(SKILLS):
        folder = work / "webdataset" / name
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            with webdataset.ShardWriter(f"{folder}/%06d.tar", maxsize=32 << 20, verbose=0) as writer:
                for number, text in enumerate(texts_of(skill, num)):
                    writer.write({"__key__": f"{number:08d}", "txt": text})
            (folder / "done").touch()


# --- the loaders: each an endless iterator over lists of texts ------------------------------------------------------------


def limit(work: Path, num: int) -> Iterator[list[str]]:
    """Deliver texts by a bare generator: offsets of 16,384 draws at once, texts cut out of a mapped file."""
    import mmap

    ends = np.load(work / "ends.npy")
    rng = np.random.default_rng(0)
    orders = [skill * num + rng.permutation(num) for skill in range(len(WEIGHTS))]
    num_taken = np.zeros(len(WEIGHTS), int)
    with (work / "texts.bin").open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    while True:
        skills = rng.choice(len(WEIGHTS), LIMIT_DRAWS, p=WEIGHTS)
        samples = np.empty(LIMIT_DRAWS, int)
        for skill, order in enumerate(orders):
            where = np.flatnonzero(skills == skill)
            samples[where] = order[(num_taken[skill] + np.arange(len(where))) % num]
            num_taken[skill] += len(where)
        starts, stops = ends[samples].tolist(), ends[samples + 1].tolist()
        for first in range(0, LIMIT_DRAWS, BATCH):
            part = slice(first, first + BATCH)
            yield [data[start:stop].decode() for start, stop in zip(starts[part], stops[part], strict=True)]


@dataclass(frozen=True)
class Shifting:
    """The weights of the benchmark. Changing weights move a little with every observation."""

    changing: bool

    @property
    def name(self) -> str:
        return "shifting" if self.changing else "fixed"

    @property
    def arguments(self) -> dict[str, Any]:
        return {}

    @property
    def eval_skills(self) -> None:
        return None

    @property
    def reads_losses(self) -> bool:
        return self.changing

    @property
    def may_miss_losses(self) -> bool:
        return True

    def init(self, skills: Sequence[str], num_samples: Sequence[int] | None = None) -> dict[str, Any]:
        return {"seen": 0}

    def observe(self, state: dict[str, Any], observation: Any) -> dict[str, Any]:
        return {"seen": state["seen"] + 1}

    def weights(self, state: dict[str, Any], upcoming: Any = None) -> np.ndarray:
        moved = np.array(WEIGHTS) * (1 + 0.1 * np.sin(state["seen"] + np.arange(len(WEIGHTS))))
        return moved / moved.sum()


def _mixer(work: Path, *, changing: bool, ledgers: Path | None = None) -> Any:
    """Make a mixer with a new ledger, by default in memory, because the texts are also in the page cache."""
    from skillshard.mixing.mixer import Mixer
    from skillshard.shards.read import ShardSet

    ledger = tempfile.mkdtemp(dir=ledgers or MEMORY, prefix=LEDGER_PREFIX)
    return Mixer(ShardSet.open(work / "shards"), Shifting(changing), ledger=ledger, round_draws=ROUND_DRAWS, wait_s=5)


def _reported(mixer: Any, draw: int, num: int) -> None:
    """Report losses once per round, as a trainer does."""
    if draw // ROUND_DRAWS < (draw + num) // ROUND_DRAWS:
        losses = dict.fromkeys(SKILLS, 1.0)
        mixer.report(0, losses, draw=(draw + num) // ROUND_DRAWS * ROUND_DRAWS)


def ours(work: Path, num: int, *, changing: bool = True, ledgers: Path | None = None) -> Iterator[list[str]]:
    mixer = _mixer(work, changing=changing, ledgers=ledgers)
    for batch in mixer.batches(BATCH):
        assert len(batch.skill_number) == BATCH
        yield batch.text
        if changing:
            _reported(mixer, int(batch.draw[0]), BATCH)


def ours_fixed(work: Path, num: int) -> Iterator[list[str]]:
    return ours(work, num, changing=False)


def ours_on_disk(work: Path, num: int) -> Iterator[list[str]]:
    """Write two new files a round to the disk of `work`. An ext4 is slow for a minute after many files were deleted."""
    return ours(work, num, ledgers=work)


def ours_samples(work: Path, num: int) -> Iterator[list[str]]:
    mixer = _mixer(work, changing=True)
    for sample in mixer:
        yield [sample.text]
        _reported(mixer, sample.draw, 1)


def ours_workers(work: Path, num: int) -> Iterator[list[str]]:
    from torch.utils.data import DataLoader

    from skillshard.torch import MixedDataset, collate

    mixer, draw = _mixer(work, changing=True), 0
    for batch in DataLoader(MixedDataset(mixer), batch_size=BATCH, num_workers=2, collate_fn=collate):
        yield batch["text"]
        _reported(mixer, draw, BATCH)
        draw += BATCH


def _litdata(work: Path) -> Any:
    from litdata import CombinedStreamingDataset, StreamingDataset

    parts = [StreamingDataset(str(work / "litdata" / name), shuffle=True) for name in SKILLS]
    return CombinedStreamingDataset(parts, weights=list(WEIGHTS), iterate_over_all=False, seed=0)


def litdata(work: Path, num: int) -> Iterator[list[str]]:
    while True:
        for text in _litdata(work):
            yield [text]


def litdata_workers(work: Path, num: int) -> Iterator[list[str]]:
    from litdata import StreamingDataLoader

    while True:
        yield from StreamingDataLoader(_litdata(work), batch_size=BATCH, num_workers=2)


def _mosaic(work: Path) -> Any:
    _import_streaming()
    import streaming

    streaming.base.util.clean_stale_shared_memory()
    parts = [
        streaming.Stream(local=str(work / "mosaic" / name), proportion=weight)
        for name, weight in zip(SKILLS, WEIGHTS, strict=True)
    ]
    return streaming.StreamingDataset(streams=parts, shuffle=True, batch_size=BATCH)


def mosaic(work: Path, num: int) -> Iterator[list[str]]:
    dataset = _mosaic(work)
    while True:
        for sample in dataset:
            yield [sample["text"]]


def mosaic_workers(work: Path, num: int) -> Iterator[list[str]]:
    from torch.utils.data import DataLoader

    dataset = _mosaic(work)
    while True:
        for batch in DataLoader(dataset, batch_size=BATCH, num_workers=2):
            yield batch["text"]


def _webdataset(urls: list[list[str]]) -> Any:
    import webdataset as wds

    parts = [
        wds.WebDataset(tars, shardshuffle=100).shuffle(1000).to_tuple("txt").map(_decoded).repeat() for tars in urls
    ]
    return wds.RandomMix(parts, list(WEIGHTS))


def _decoded(sample: tuple[bytes]) -> str:
    return sample[0].decode()


def _plain_tars(work: Path) -> list[list[str]]:
    return [sorted(map(str, (work / "shards" / "train" / name).glob("*.tar"))) for name in SKILLS]


def webdataset_plain(work: Path, num: int) -> Iterator[list[str]]:
    """Deliver by RandomMix over the shards of skillshard, which are plain USTAR."""
    for text in _webdataset(_plain_tars(work)):
        yield [text]


def webdataset_default(work: Path, num: int) -> Iterator[list[str]]:
    """Deliver by RandomMix over the shards of WebDataset's own ShardWriter."""
    for text in _webdataset([sorted(map(str, (work / "webdataset" / name).glob("*.tar"))) for name in SKILLS]):
        yield [text]


def webdataset_workers(work: Path, num: int) -> Iterator[list[str]]:
    from torch.utils.data import DataLoader

    yield from DataLoader(_webdataset(_plain_tars(work)), batch_size=BATCH, num_workers=2)


PEERS = {
    "litdata": ("litdata>=0.2.70", "numpy", "torch"),
    "mosaic": ("mosaicml-streaming>=0.13", "numpy", "torch"),
    "webdataset": ("webdataset>=1.0", "numpy", "torch"),
}
"""Requirements of the loaders whose names begin with the key. The loaders with workers need torch."""
CONSTRAINTS = Path(__file__).parents[1] / ".ci" / "constraints.txt"


LOADERS: dict[str, tuple[str, Callable[[Path, int], Iterator[list[str]]], Callable[[Path, int], None] | None]] = {
    "limit": ("limit: index + mmap, batches", limit, None),
    "ours": ("Mixer, batches, weights changing every 4,096 draws", ours, None),
    "ours_on_disk": ("the same, ledger on disk (250 rounds a second)", ours_on_disk, None),
    "ours_fixed": ("Mixer, batches, fixed weights", ours_fixed, None),
    "ours_samples": ("Mixer, sample by sample", ours_samples, None),
    "litdata": ("litdata CombinedStreamingDataset", litdata, prepare_litdata),
    "mosaic": ("Mosaic StreamingDataset", mosaic, prepare_mosaic),
    "webdataset_plain": ("WebDataset RandomMix, plain USTAR shards", webdataset_plain, None),
    "webdataset_default": ("WebDataset RandomMix, its own shards", webdataset_default, prepare_webdataset),
    "ours_workers": ("Mixer in DataLoader, 2 workers", ours_workers, None),
    "litdata_workers": ("litdata in its DataLoader, 2 workers", litdata_workers, prepare_litdata),
    "mosaic_workers": ("Mosaic in DataLoader, 2 workers", mosaic_workers, prepare_mosaic),
    "webdataset_workers": ("WebDataset in DataLoader, 2 workers", webdataset_workers, None),
}


FILES = {"limit": "texts.bin", "webdataset_default": "webdataset"} | {
    name: next((format for format in ("litdata", "mosaic") if name.startswith(format)), "shards")
    for name in LOADERS
    if name not in ("limit", "webdataset_default")
}
"""Place of each loader's texts under `--work`."""


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(name: str, work: Path, num: int, seconds: float) -> dict[str, float]:
    """Count the samples and CPU-seconds of this process with its children, after a second of warm-up, with files in the page cache."""
    _read_all(work / FILES[name])
    batches = LOADERS[name][1](work, num)
    _deliver(batches, 1.0)
    wall, cpu = time.perf_counter(), _cpu_s()
    delivered = _deliver(batches, seconds)
    return {"samples": delivered, "cpu_s": _cpu_s() - cpu, "wall_s": time.perf_counter() - wall}


def measure_changing(work: Path, num: int) -> dict[str, Any]:
    """Measure the CPU-microseconds of a round with changing and with fixed weights, in blocks that take turns in this process."""
    _read_all(work / "shards")
    batches = {"changing": ours(work, num), "fixed": ours_fixed(work, num)}
    times: dict[str, list[float]] = {name: [] for name in batches}
    for block in range(BLOCKS):
        for name in sorted(batches, reverse=bool(block % 2)):
            before = time.process_time()
            for _ in range(BLOCK_ROUNDS * ROUND_DRAWS // BATCH):
                next(batches[name])
            times[name].append((time.process_time() - before) / BLOCK_ROUNDS * 1e6)
    return {name: blocks[WARM_UP_BLOCKS:] for name, blocks in times.items()}


def _read_all(place: Path) -> None:
    for path in [place] if place.is_file() else place.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass


def _deliver(batches: Iterator[list[str]], seconds: float) -> int:
    """Return the number of samples that came in a number of seconds."""
    end, delivered = time.perf_counter() + seconds, 0
    for batch in batches:
        delivered += len(batch)
        if time.perf_counter() > end:
            break
    return delivered


def _cpu_s() -> float:
    """Return the CPU-seconds of this process with its threads and its children, including running children."""
    total = time.process_time()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = place.joinpath("stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return total + children.ru_utime + children.ru_stime


def in_a_process(interpreter: Path, *arguments: str) -> dict[str, Any]:
    """Run this file by an interpreter, and read the last line as JSON."""
    done = subprocess.run([str(interpreter), "-W", "ignore", __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def peer_of(name: str) -> str | None:
    """Return the foreign package of a loader, or None for the limit and for skillshard."""
    return next((peer for peer in PEERS if name.startswith(peer)), None)


def interpreter_of(peer: str | None, work: Path) -> Path:
    """Return the Python that runs the loaders of a package: this interpreter, or the interpreter of the package's environment."""
    return Path(sys.executable) if peer is None else work / "environments" / peer / "bin" / "python"


def install(peer: str, work: Path) -> dict[str, Any]:
    """Make the environment of a package unless the environment is complete.

    Returns:
        {"versions": {package: version}}, or {"missing": the last line of the failure}.
    """
    interpreter = interpreter_of(peer, work)
    complete = interpreter.parents[1] / "versions.json"
    if not complete.exists():
        names = ", ".join(repr(re.split("[<>=]", requirement)[0]) for requirement in PEERS[peer])
        show = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in [{names}]}}))"
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(interpreter.parents[1])],
            [str(interpreter), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), *PEERS[peer]],
            [str(interpreter), "-c", show],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return {"missing": done.stderr.strip().splitlines()[-1]}
        complete.write_text(done.stdout)
    return {"versions": json.loads(complete.read_text())}


def machine() -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].partition(": ")[2] if model else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def save_section(place: Path | None, section: str, figures: dict[str, Any]) -> None:
    """Write figures of a section into a JSON file. The other figures of the file stay. Without a place, nothing is written."""
    if place is None:
        return
    results = json.loads(place.read_text()) if place.exists() else {}
    results[section] = {**results.get(section, {}), **figures}
    results["machine"] = machine()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of samples per CPU-second (median), ratio to the limit just before (median, least, most), and lead of skillshard."""
    lines = ["| loader | samples / CPU-s | ratio to the limit (range) | ours is |", "|---|---:|---:|---:|"]
    rates = {name: [_rate(turn) for turn in turns if "samples" in turn] for name, turns in results.items()}
    for name, of_turns in rates.items():
        label = LOADERS[name][0]
        if not of_turns:
            kind, why = next(iter(results[name][0].items()))
            lines.append(f"| {label} | {kind}: {why} | | |")
            continue
        ratios = _ratios(results[name])
        ahead = statistics.median(_ratios(results["ours_workers" if name.endswith("_workers") else "ours"]))
        ahead /= statistics.median(ratios)
        lines.append(
            f"| {label} | {statistics.median(of_turns):,.0f} | {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) | {ahead:.1f}x |"
        )
    return "\n".join(lines)


def cost_of_changing(turns: list[dict[str, list[float]]]) -> str:
    """Return the additional CPU time of a round with changing weights: medians over the pairs of blocks of each process, and quartiles."""
    costs = []
    for turn in turns:
        if "fixed" not in turn:
            costs.append(f"not measured ({turn})")
            continue
        lower, median, upper = statistics.quantiles(map(operator.truediv, turn["changing"], turn["fixed"]), n=4)
        costs.append(f"{median - 1:+.1%} (quartiles {lower - 1:+.1%} to {upper - 1:+.1%})")
    pairs = BLOCKS - WARM_UP_BLOCKS
    return f"additional CPU time of changing weights over {pairs} pairs of blocks, for each process: {', '.join(costs)}"


def _rate(turn: dict[str, Any]) -> float:
    return float(turn["samples"] / turn["cpu_s"])


def _ratios(turns: list[dict[str, Any]]) -> list[float]:
    return [_rate(turn) / turn["limit"] for turn in turns if "samples" in turn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for the texts in the format of every loader"
    )
    parser.add_argument("--samples", type=int, default=50_000, help="number of samples of each skill")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--only",
        nargs="*",
        choices=LOADERS,
        default=list(LOADERS),
        help="measure these loaders, the limit and skillshard",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        verb, name = arguments.step
        make = LOADERS[name][2] or (lambda work, num: None)
        if verb == "changing":
            done: Any = measure_changing(arguments.work, arguments.samples)
        elif verb == "prepare":
            done = make(arguments.work, arguments.samples)
        else:
            done = measure(name, arguments.work, arguments.samples, arguments.seconds)
        print(json.dumps(done or {}))
        return
    prepare(arguments.work, arguments.samples)
    common = ["--work", str(arguments.work), "--samples", str(arguments.samples), "--seconds", str(arguments.seconds)]
    names = list(dict.fromkeys(chain(["limit", "ours", "ours_workers"], arguments.only)))
    installed = {peer: install(peer, arguments.work) for peer in PEERS if any(peer_of(name) == peer for name in names)}

    def step(verb: str, name: str) -> dict[str, Any]:
        return in_a_process(interpreter_of(peer_of(name), arguments.work), *common, "--step", verb, name)

    unready = {name: installed[peer] for name in names if (peer := peer_of(name)) and "missing" in installed[peer]}
    unready |= {name: outcome for name in names if name not in unready and (outcome := step("prepare", name))}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for name in chain.from_iterable(repeat(names, arguments.repeats)):
        limit_now = _rate(step("measure", "limit"))
        done = unready.get(name) or step("measure", name)
        results[name].append({**done, "limit": limit_now})
        print(name, results[name][-1], file=sys.stderr)
    changing = [step("changing", "ours") for _ in range(arguments.repeats)]
    for place in chain.from_iterable(folder.glob(f"{LEDGER_PREFIX}*") for folder in (arguments.work, MEMORY) if folder):
        shutil.rmtree(place)
    print(table(results))
    print(cost_of_changing(changing))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine(), "peers": installed, "arguments": common, "results": results}
        arguments.out.write_text(json.dumps({**record, "changing": changing}, indent=2) + "\n")


if __name__ == "__main__":
    main()
