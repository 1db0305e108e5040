"""Measure the speed of packed blocks of token ids: skillshard, a bare gather, and other loaders, side by side on the same ids.

    python -m benchmarks.tokens --work /tmp/bench-tokens [--samples 20000] [--repeats 3] [--out benchmarks/results/tokens.json]

The corpus has 8 skills of `--samples` texts of about 250 tokens (lognormal) of a vocabulary of 50,000 words, so the ids are uint16. The
weights are .3 .2 .15 .1 .1 .05 .05 .05, the stream is shuffled, and the page cache is warm. Every loader delivers int64 ids in batches of 32
blocks. Every loader runs in a process of its own, in turn, `--repeats` times. The measure is the number of tokens per CPU-second of the
process with its children, as a ratio to the bare gather measured just before.

- The gather copies the segments of the first batches of skillshard's stream from one memory map into blocks: one slice of NumPy for each
  segment. The places of the segments are known beforehand, so the gather decides nothing and finds nothing.
- The blend is like Megatron's: for each block a data set by weights, then the documents of the block from its .bin, by an index in memory.
- LitData's TokensLoader reads contiguous blocks of one file, and so copies nothing for each sample. It knows no samples in the block.

`--packings` measures the packings alone, in turns within one process: for each packing the tokens of samples per CPU-second as a ratio to
`concat`, the share of fillers, and the share of samples that are cut.

The last lines measure a resume in the middle of 10^9 tokens, whose files have holes in place of ids, and the speed of `write_tokens` against
`encode_batch` on the same texts.
"""

import argparse
import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, cycle, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixers import LEDGER_PREFIX, MEMORY, SKILLS, WEIGHTS, Shifting, _cpu_s, _read_all, machine

BATCH, ROUND_DRAWS, NUM_WORDS, MEAN = 32, 4096, 50_000, 250
GATHERED_BATCHES = 256
"""Number of batches whose segments the gather copies in a circle."""
SEPARATOR = "<eos>"


# --- corpus ----------------------------------------------------------------------------------------------------------


def texts_of(skill: int, num: int) -> Iterator[str]:
    """Yield texts of numbered words. The texts depend on nothing but the skill."""
    rng = np.random.default_rng(skill)
    sizes = np.clip(rng.lognormal(np.log(MEAN) - 0.125, 0.5, num), 1, 8 * MEAN).astype(int)
    for size in sizes.tolist():
        yield " ".join(map(str, rng.integers(0, NUM_WORDS, size).tolist()))


def tokenizer() -> Any:
    """Make a tokenizer with an id for each number."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [SEPARATOR, *map(str, range(NUM_WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def prepare(work: Path, num: int) -> None:
    """Write the corpus, its shards and its tokens, and all ids in one file for the other loaders."""
    import skillshard as ss

    if (work / "flat.npy").exists():
        return
    (work / "corpus").mkdir(parents=True, exist_ok=True)
    for skill, name in enumerate(SKILLS):
        with (work / "corpus" / f"{name}.jsonl").open("w") as file:
            for number, text in enumerate(texts_of(skill, num)):
                file.write(json.dumps({"id": f"{name}-{number:08d}", "text": text, "skill": name}) + "\n")
    corpus = ss.Corpus.open(work / "corpus")
    tags = ss.tag_corpus(corpus, ss.taggers.metadata("skill"), work / "tags", progress=False)
    shards = ss.write_shards(corpus, tags, work / "shards", shard_bytes=16 << 20, holdout=0.0, progress=False)
    tokens = ss.write_tokens(shards, tokenizer(), work / "tokens", progress=False)
    starts, flat, position = {}, [], 0
    for skill, part in tokens.train.items():
        for shard in range(len(part.columns.number)):
            ids = np.frombuffer(part.ids(shard).ids.data, np.uint16)
            starts[f"{skill}/{shard}"] = position
            flat.append(ids)
            position += len(ids)
    np.save(work / "flat.npy", np.concatenate(flat))
    (work / "starts.json").write_text(json.dumps(starts))


def _packed(work: Path, block_tokens: int, packing: str = "concat") -> Any:
    import skillshard as ss

    ledger = tempfile.mkdtemp(dir=MEMORY, prefix=LEDGER_PREFIX)
    shards, tokens = ss.ShardSet.open(work / "shards"), ss.TokenSet.open(work / "tokens")
    blocks = {"block_tokens": block_tokens, "separator": SEPARATOR}
    unit = {"unit": "blocks", "tokens": tokens, **blocks} if packing == "skill" else {}
    mixer = ss.Mixer(shards, Shifting(True), ledger=ledger, round_draws=ROUND_DRAWS, wait_s=5, **unit)
    return ss.PackedTokens(mixer, tokens, step_blocks=BATCH, packing=packing, **blocks)


class Reports:
    """Report losses once per round, as a trainer does."""

    def __init__(self, packed: Any) -> None:
        self.packed, self.reported = packed, 0

    def after(self, blocks: int) -> None:
        # A trainer looks once in several steps whether a round is over.
        if blocks // BATCH % 4:
            return
        draw = self.packed.draws_before(blocks)
        if draw // ROUND_DRAWS > self.reported:
            self.reported = draw // ROUND_DRAWS
            self.packed.report(0, dict.fromkeys(SKILLS, 1.0), block=blocks)


# --- the loaders: each an endless iterator over numbers of delivered tokens ---------------------------------------------


def ours(work: Path, block_tokens: int, workers: int, packing: str = "concat") -> Iterator[int]:
    packed = _packed(work, block_tokens, packing)
    reports, blocks = Reports(packed), 0
    if not workers:
        for batch in packed.batches(BATCH):
            yield batch.input_ids.size
            reports.after(blocks := blocks + BATCH)
        return
    from torch.utils.data import DataLoader

    from skillshard.torch import PackedDataset, block_collator

    collate = block_collator("input_ids")
    for tensors in DataLoader(PackedDataset(packed), batch_size=BATCH, num_workers=workers, collate_fn=collate):
        yield tensors["input_ids"].numel()
        reports.after(blocks := blocks + BATCH)


def skill(work: Path, block_tokens: int, workers: int) -> Iterator[int]:
    return ours(work, block_tokens, workers, "skill")


def best_fit(work: Path, block_tokens: int, workers: int) -> Iterator[int]:
    return ours(work, block_tokens, workers, "best-fit")


def segments_of(work: Path, block_tokens: int) -> list[list[tuple[int, int, int, int]]]:
    """List the segments of the first batches of our stream: first and end in the batch, first and end in the flat file."""
    packed = _packed(work, block_tokens)
    starts = json.loads((work / "starts.json").read_text())
    table: list[list[tuple[int, int, int, int]]] = []
    plans: dict[int, Any] = {}
    for number in range(GATHERED_BATCHES):
        batch = packed.batch(number * BATCH, BATCH)
        packed.report(0, dict.fromkeys(SKILLS, 1.0), block=(number + 1) * BATCH)
        bounds = [*batch.segments.start.tolist(), batch.input_ids.size]
        rows = []
        for index, draw in enumerate(batch.segments.draw.tolist()):
            number_of_round, within = divmod(draw, ROUND_DRAWS)
            if number_of_round not in plans:
                plans[number_of_round] = packed.mixer.rows_of(number_of_round)
            plan = plans[number_of_round]
            skill, shard = plan.segments[int(plan.segment[within])]
            name, row = packed.mixer.skills[skill], int(plan.row[within])
            first = starts[f"{name}/{shard}"] + int(packed.tokens.train[name].starts(shard, np.array([row]))[0])
            rows.append((bounds[index], bounds[index + 1], first, first + bounds[index + 1] - bounds[index]))
        table.append(rows)
    return table


class Gather:
    """The bare gather: copy known segments from one memory map."""

    def __init__(self, work: Path, block_tokens: int) -> None:
        place = work / f"segments-{block_tokens}.json"
        if not place.exists():
            place.write_text(json.dumps(segments_of(work, block_tokens)))
        self.table, self.block_tokens, self.place = json.loads(place.read_text()), block_tokens, work / "flat.npy"
        self.ids: np.ndarray | None = None

    def __len__(self) -> int:
        return 1 << 40

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        if self.ids is None:
            with self.place.open("rb") as file:
                self.ids = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint16, offset=128)
        blocks, ids = np.empty(BATCH * self.block_tokens, np.int64), self.ids
        for first, end, source, source_end in self.table[indices[0] // BATCH % len(self.table)]:
            blocks[first:end] = ids[source:source_end]
        return blocks.reshape(BATCH, self.block_tokens)


def gather(work: Path, block_tokens: int, workers: int) -> Iterator[int]:
    source = Gather(work, block_tokens)
    if not workers:
        for number in cycle(range(GATHERED_BATCHES)):
            yield source.__getitems__([number * BATCH]).size
    import torch
    from torch.utils.data import DataLoader

    for batch in DataLoader(source, batch_size=BATCH, num_workers=workers, collate_fn=torch.from_numpy):
        yield batch.numel()


def blend(work: Path, block_tokens: int, workers: int) -> Iterator[int]:
    """Blend as Megatron does: one flat file of ids for each skill, an index from a block to its documents, slices joined by NumPy."""
    ids, parts = np.load(work / "flat.npy", mmap_mode="r"), []
    files = json.loads((work / "starts.json").read_text())
    bounds = [*files.values(), len(ids)]
    for skill in SKILLS:
        spans = [(bounds[i], bounds[i + 1]) for i, name in enumerate(files) if name.startswith(f"{skill}/")]
        part = np.concatenate([np.asarray(ids[begin:end]) for begin, end in spans])
        rng = np.random.default_rng(0)
        sizes = np.clip(rng.lognormal(np.log(MEAN) - 0.125, 0.5, len(part) // MEAN), 1, 8 * MEAN).astype(np.int64)
        ends = np.cumsum(sizes)
        starts = (ends - sizes)[ends < len(part)]
        sizes = sizes[: len(starts)]
        order = rng.permutation(len(starts))
        parts.append((part, starts[order], np.concatenate([[0], np.cumsum(sizes[order])])))
    source, num_taken, row = np.array(WEIGHTS), np.zeros(len(WEIGHTS), int), []
    while True:
        # The data set that is furthest behind its weight.
        skill = int(np.argmax(source * (num_taken.sum() + 1) - num_taken))
        part, starts, ends = parts[skill]
        first = int(num_taken[skill]) * block_tokens % (int(ends[-1]) - block_tokens)
        num_taken[skill] += 1
        begin, end = (
            int(place) for place in np.searchsorted(ends, (first, first + block_tokens - 1), side="right") - 1
        )
        pieces = []
        for document in range(begin, end + 1):
            low = max(first, int(ends[document])) - int(ends[document])
            high = min(first + block_tokens, int(ends[document + 1])) - int(ends[document])
            pieces.append(part[starts[document] + low : starts[document] + high])
        row.append(np.concatenate(pieces).astype(np.int64))
        if len(row) == BATCH:
            yield np.stack(row).size
            row = []


def litdata(work: Path, block_tokens: int, workers: int) -> Iterator[int]:
    from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

    def combined() -> Any:
        parts = [
            StreamingDataset(
                str(work / "litdata" / name), item_loader=TokensLoader(block_size=block_tokens), shuffle=True
            )
            for name in SKILLS
        ]
        return CombinedStreamingDataset(parts, weights=list(WEIGHTS), iterate_over_all=False, seed=0)

    while True:
        if workers:
            for batch in StreamingDataLoader(combined(), batch_size=BATCH, num_workers=workers):
                yield batch.numel()
        else:
            for block in combined():
                yield block.numel()


def prepare_litdata(work: Path) -> None:
    import litdata as package
    import torch

    files = json.loads((work / "starts.json").read_text())
    ids = np.load(work / "flat.npy", mmap_mode="r")
    bounds = dict(zip(files, zip(files.values(), [*list(files.values())[1:], len(ids)], strict=True), strict=True))
    for skill in SKILLS:
        if not (work / "litdata" / skill / "index.json").exists():
            spans = [span for name, span in bounds.items() if name.startswith(f"{skill}/")]
            package.optimize(
                fn=_Ids(work / "flat.npy"),
                inputs=spans,
                output_dir=str(work / "litdata" / skill),
                chunk_size=2049 * 4096,
                item_loader=package.TokensLoader(),
                num_workers=1,
            )
    assert torch


class _Ids:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, span: tuple[int, int]) -> Iterator[Any]:
        import torch

        part = np.load(self.place, mmap_mode="r")[span[0] : span[1]].astype(np.int32)
        for first in range(0, len(part), 100_000):
            yield torch.from_numpy(part[first : first + 100_000])


LOADERS: dict[str, tuple[str, Callable[[Path, int, int], Iterator[int]]]] = {
    "gather": ("bare gather of the same segments", gather),
    "ours": ("PackedTokens, weights changing every 4,096 draws", ours),
    "skill": ('PackedTokens, packing="skill", weights changing every 4,096 blocks', skill),
    "best-fit": ('PackedTokens, packing="best-fit", weights changing every 4,096 draws', best_fit),
    "blend": ("blend like Megatron's, fixed weights", blend),
    "litdata": ("LitData TokensLoader, contiguous blocks, fixed weights", litdata),
}
CASES = [
    (name, block_tokens, workers)
    for block_tokens in (1024, 4096)
    for workers in (0, 2, 4)
    for name in LOADERS
    if not (name == "blend" and workers)
]


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(name: str, work: Path, block_tokens: int, workers: int, seconds: float) -> dict[str, float]:
    """Count the tokens and CPU-seconds of this process with its children, after a second of warm-up."""
    _read_all(work / "flat.npy")
    _read_all(work / "tokens")
    stream = LOADERS[name][1](work, block_tokens, workers)
    _deliver(stream, 1.0)
    wall, cpu = time.perf_counter(), _cpu_s()
    delivered = _deliver(stream, seconds)
    spent = {"tokens": delivered, "cpu_s": _cpu_s() - cpu, "wall_s": time.perf_counter() - wall}
    return {**spent, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _deliver(stream: Iterator[int], seconds: float) -> int:
    end, delivered = time.perf_counter() + seconds, 0
    for num in stream:
        delivered += num
        if time.perf_counter() > end:
            break
    return delivered


PACKINGS = ("concat", "one", "skill", "best-fit")
TURN_BATCHES = 64
"""Number of batches of a turn of a packing: at least two rounds of blocks of 1,024 tokens."""


def measure_packings(work: Path, block_tokens: int, turns: int) -> dict[str, dict[str, Any]]:
    """Measure the packings in turns within this process, after a turn of warm-up.

    Returns:
        For each packing the tokens of samples per CPU-second of each turn, the share of fillers, and the share of samples with a cut.
    """
    _read_all(work / "tokens")
    streams = {packing: _packed(work, block_tokens, packing) for packing in PACKINGS}
    readers = {packing: stream.batches(BATCH) for packing, stream in streams.items()}
    reports = {packing: Reports(stream) for packing, stream in streams.items()}
    rates: dict[str, list[float]] = {packing: [] for packing in PACKINGS}
    for turn in range(turns + 1):
        for packing in PACKINGS:
            tokens, started = 0, time.process_time()
            for batch in islice(readers[packing], TURN_BATCHES):
                tokens += batch.input_ids.size - int(batch._lengths[batch.segments.draw < 0].sum())
                reports[packing].after(streams[packing].block)
            if turn:
                rates[packing].append(tokens / (time.process_time() - started))
    return {packing: {"rates": rates[packing], **_quality(streams[packing])} for packing in PACKINGS}


def _quality(packed: Any) -> dict[str, float | None]:
    """Return the share of fillers and of cut samples among the blocks read so far."""
    fillers, blocks_of_draw = 0, dict[int, int]()
    for first in range(0, packed.block, BATCH):
        batch = packed.batch(first, BATCH)
        inside = batch.segments.draw >= 0
        fillers += int(batch._lengths[~inside].sum())
        for draw in batch.segments.draw[inside].tolist():
            blocks_of_draw[draw] = blocks_of_draw.get(draw, 0) + 1
    cut = sum(num > 1 for num in blocks_of_draw.values()) / len(blocks_of_draw)
    # With "skill" a draw is a block, so the draws of the segments do not tell samples apart.
    is_sample = packed.packing != "skill"
    return {"fillers": fillers / (packed.block * packed.block_tokens), "cut": cut if is_sample else None}


def table_of_packings(results: dict[int, dict[str, Any]]) -> str:
    lines = [
        "| blocks of | packing | million tokens / CPU-s | ratio to concat (range) | fillers | samples in several blocks |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for block_tokens, of_packing in results.items():
        for packing, values in of_packing.items():
            pairs = zip(values["rates"], of_packing["concat"]["rates"], strict=True)
            ratios = [rate / concat for rate, concat in pairs]
            cut = "not counted" if values["cut"] is None else f"{values['cut']:.1%}"
            lines.append(
                f"| {block_tokens:,} | `{packing}` | {statistics.median(values['rates']) / 1e6:,.0f} | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) | {values['fillers']:.2%} | {cut} |"
            )
    return "\n".join(lines)


def measure_writing(work: Path) -> dict[str, float]:
    """Measure the tokens per CPU-second of a task of `write_tokens`, without and with a mask of answers, and of `encode_batch`, in turn."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import skillshard as ss
    from skillshard.shards.tokens import _parts, tokenize_shard

    part = next(_parts(ss.ShardSet.open(work / "shards")))
    opened, encoder = part.open_shard(0), tokenizer()
    texts = [opened.text(row) for row in range(len(part))]
    rates: dict[str, list[float]] = {"encode_batch": [], "write_tokens": [], "write_tokens_with_mask": []}
    place = work / "one"
    place.mkdir(exist_ok=True)
    encoder.save(str(place / "tokenizer.json"))
    arguments = {
        "shards": part,
        "tokenizer": str(place / "tokenizer.json"),
        "tokenizer_digest": "",
        "special_tokens": False,
        "ids": {"type": "uint16", "num_ids": NUM_WORDS + 1},
        "kind": {},
        "chat": None,
        "out": str(place),
    }
    tokenize_shard(**arguments)
    for _ in range(5):
        started = time.process_time()
        num = sum(
            len(row.ids)
            for first in range(0, len(texts), 256)
            for row in encoder.encode_batch(texts[first : first + 256])
        )
        rates["encode_batch"].append(num / (time.process_time() - started))
        for name, kind in {"write_tokens": {}, "write_tokens_with_mask": {"answer_after": " "}}.items():
            started = time.process_time()
            record = tokenize_shard(**{**arguments, "kind": kind})
            rates[name].append(record["num_tokens"] / (time.process_time() - started))
    return {name: statistics.median(of_name) for name, of_name in rates.items()}


BILLION_SHARDS, BILLION_ROWS = 16, 31_250
"""Shards of each skill, and samples of each shard: 10^9 tokens with 250 tokens in a sample."""


def write_billion(work: Path) -> None:
    """Write the manifests of 10^9 tokens in 4 million samples. The files of ids have holes in place of ids, and no tar exists."""
    from skillshard.canonical import digest, to_json
    from skillshard.shards.token_set import CHECK_BYTES, checks_of

    place = work / "billion"
    if (place / "tokens" / "tokens.json").exists():
        return
    nothing = "0" * 32
    manifest = json.loads((work / "shards" / "manifest.json").read_text())
    tokens = json.loads((work / "tokens" / "tokens.json").read_text())
    numbers, rng = list(range(BILLION_SHARDS)), np.random.default_rng(0)
    for skill, of_tokens in zip(manifest["skills"], tokens["skills"], strict=True):
        folder = place / "tokens" / "train" / skill["folder"]
        folder.mkdir(parents=True)
        skill["train"] = {name: [nothing] * BILLION_SHARDS for name in skill["train"]}
        skill["train"] |= {"number": numbers, "num_samples": [BILLION_ROWS] * BILLION_SHARDS}
        skill["train"]["num_bytes"] = [BILLION_ROWS * 2048 + 1024] * BILLION_SHARDS
        columns = {name: [] for name in of_tokens["train"]}
        for number in numbers:
            counts = rng.integers(1, 2 * MEAN, BILLION_ROWS).astype("<u4")
            num_bytes = 2 * (int(counts.sum()) + 1)
            name = folder / f"{number:06d}"
            np.save(f"{name}.tokens.npy", counts)
            with open(f"{name}.ids.bin", "wb") as file:
                file.truncate(num_bytes)
            whole, rest = divmod(num_bytes, CHECK_BYTES)
            checks = [*np.repeat(checks_of(bytes(CHECK_BYTES)), whole), *checks_of(bytes(rest))]
            np.save(f"{name}.checks.npy", np.array(checks, "<u8"))
            row = {
                "number": number,
                "num_samples": BILLION_ROWS,
                "num_tokens": int(counts.sum()),
                "digest": digest(Path(f"{name}.tokens.npy").read_bytes()),
                "ids_digest": nothing,
                "answers_digest": None,
                "checks_digest": digest(Path(f"{name}.checks.npy").read_bytes()),
            }
            for column, values in columns.items():
                values.append(row[column])
        of_tokens["train"], of_tokens["num_train"] = columns, sum(columns["num_tokens"])
    manifest["num_train"] = manifest["num_rows"] = len(SKILLS) * BILLION_SHARDS * BILLION_ROWS
    for entry in manifest["skills"]:
        if "num_train" in entry:
            entry["num_train"] = BILLION_SHARDS * BILLION_ROWS
    tokens["num_train"] = sum(skill["num_train"] for skill in tokens["skills"])
    (place / "shards").mkdir()
    (place / "shards" / "manifest.json").write_bytes(to_json(manifest))
    tokens["shards"] = digest((place / "shards" / "manifest.json").read_bytes())
    shutil.copy(work / "tokens" / "tokenizer.json", place / "tokens")
    (place / "tokens" / "tokens.json").write_bytes(to_json(tokens))


def _billion(work: Path, ledger: str) -> Any:
    import skillshard as ss

    place = work / "billion"
    policy = ss.policies.fixed(dict(zip(SKILLS, WEIGHTS, strict=True)))
    mixer = ss.Mixer(ss.ShardSet.open(place / "shards"), policy, ledger=ledger, round_draws=ROUND_DRAWS)
    return ss.PackedTokens(mixer, ss.TokenSet.open(place / "tokens"), block_tokens=1024, separator=SEPARATOR)


def measure_resume(work: Path, num_tokens: int = 10**9) -> dict[str, float]:
    """Measure the first batch after a resume, in the beginning, the middle and the end of the first tokens of 10^9, and the memory."""
    write_billion(work)
    ledger = tempfile.mkdtemp(dir=MEMORY, prefix=LEDGER_PREFIX)
    first = _billion(work, ledger)
    last = num_tokens // 1024 - BATCH
    for number in range(last * 1024 // (ROUND_DRAWS * MEAN) + 8):
        first.mixer.round(number)
    times = {}
    # From the end to the beginning: a resume leaves out the rounds behind its block.
    states = {
        name: first.state_at(block) for name, block in {"end": last, "middle": last // 2, "beginning": 64}.items()
    }
    for name, state in states.items():
        packed, block = _billion(work, ledger), state.block
        packed.load_state_dict(state.model_dump(by_alias=True))
        started, cpu = time.perf_counter(), time.process_time()
        packed.batch(block, BATCH)
        times[f"{name}_wall_ms"] = 1e3 * (time.perf_counter() - started)
        times[f"{name}_cpu_ms"] = 1e3 * (time.process_time() - cpu)
    own_mb = []
    for block in range(0, last // 2, BATCH):
        packed.batch(block, BATCH)
        if block % (last // 8) < BATCH:
            own_mb.append(_own_mb())
    return {**times, **{f"own_mb_{number}": value for number, value in enumerate(own_mb)}}


def _own_mb() -> float:
    """Return the memory of this process without the pages of mapped files, which the kernel takes back when memory is short."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def in_a_process(interpreter: str, *arguments: str) -> dict[str, Any]:
    """Run this module by an interpreter, and read the last line as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [interpreter, "-W", "ignore", "-m", "benchmarks.tokens", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| blocks of | workers | loader | million tokens / CPU-s | ratio to the gather (range) |",
        "|---:|---:|---|---:|---:|",
    ]
    for case, turns in results.items():
        name, block_tokens, workers = case.split()
        good = [turn for turn in turns if "tokens" in turn]
        if not good:
            lines.append(f"| {block_tokens} | {workers} | {LOADERS[name][0]} | {turns[0].get('failed', 'not run')} | |")
            continue
        ratios = [_rate(turn) / turn["gather"] for turn in good]
        lines.append(
            f"| {int(block_tokens):,} | {workers} | {LOADERS[name][0]} | {statistics.median(map(_rate, good)) / 1e6:,.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def _rate(turn: dict[str, Any]) -> float:
    return float(turn["tokens"] / turn["cpu_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=20_000, help="number of samples of each skill")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", nargs="*", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--packings", action="store_true", help="measure the packings alone, side by side")
    parser.add_argument("--litdata", help="Python of an environment with litdata and torch")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        verb, name, block_tokens, workers = arguments.step
        if verb == "prepare":
            prepare_litdata(arguments.work)
            print("{}")
        elif verb == "resume":
            print(json.dumps(measure_resume(arguments.work)))
        elif verb == "packings":
            print(json.dumps(measure_packings(arguments.work, int(block_tokens), arguments.repeats)))
        elif verb == "writing":
            print(json.dumps(measure_writing(arguments.work)))
        else:
            print(json.dumps(measure(name, arguments.work, int(block_tokens), int(workers), arguments.seconds)))
        return
    prepare(arguments.work, arguments.samples)
    common = ["--work", str(arguments.work), "--seconds", str(arguments.seconds), "--repeats", str(arguments.repeats)]

    def step(verb: str, name: str, block_tokens: int = 0, workers: int = 0) -> dict[str, Any]:
        python = (arguments.litdata or sys.executable) if name == "litdata" else sys.executable
        return in_a_process(python, *common, "--step", verb, name, str(block_tokens), str(workers))

    packings = {block_tokens: step("packings", "ours", block_tokens) for block_tokens in (1024, 4096)}
    if arguments.packings:
        print(table_of_packings(packings))
        if arguments.out:
            arguments.out.write_text(json.dumps({"machine": machine(), "packings": packings}, indent=2) + "\n")
        return
    if "litdata" in arguments.only:
        print("litdata", step("prepare", "litdata"), file=sys.stderr)
    cases = [case for case in CASES if case[0] in {"gather", "ours", *arguments.only}]
    results: dict[str, list[dict[str, Any]]] = {" ".join(map(str, case)): [] for case in cases}
    for case in chain.from_iterable(repeat(cases, arguments.repeats)):
        limit = step("measure", "gather", *case[1:])
        done = step("measure", *case)
        results[" ".join(map(str, case))].append({**done, "gather": _rate(limit)})
        print(case, results[" ".join(map(str, case))][-1], file=sys.stderr)
    writing, resumed = step("writing", "ours"), step("resume", "ours")
    for folder in (MEMORY or Path(tempfile.gettempdir())).glob(f"{LEDGER_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)
    print(table(results))
    print(table_of_packings(packings))
    shares = {name: round(rate / writing["encode_batch"], 2) for name, rate in writing.items()}
    print(f"tokens per CPU-second in shares of encode_batch: {shares}")
    print(f"first batch after a resume at 10^9 tokens: {resumed}")
    if arguments.out:
        arguments.out.write_text(
            json.dumps(
                {"machine": machine(), "results": results, "packings": packings, "writing": writing, "resume": resumed},
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
