"""Check everything that a GPU computes: encoders, proxies, graphs and trainers, their resume, and the supply of a GPU with batches.

    python -m benchmarks.gpu --work /tmp/gpu --out gpu.json
    python -m benchmarks.gpu --work /tmp/gpu --out gpu.json --checks encoder throughput --encoder models/all-MiniLM-L6-v2

Each check is a process of its own, and writes WORK/CHECK.json and WORK/CHECK.log. A check that fails does not stop the others. The file
OUT collects the results after each check. The check `encoder` needs `--encoder`, the directory of a sentence-transformers model. The
check `throughput` runs alone, after all other checks. `--device cpu --small` tries the script on a machine without a GPU.

A result is a measurement, and the script does not compare the result with a threshold. The exit code is 1 if a check could not run to
its end.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixers import machine

REPOSITORY = Path(__file__).resolve().parents[1]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
LEGO_READING = ("--segment-at", ",.:", "--answer-after", "= ")
KILL_WAIT_S = 240
"""Longest time to wait for the moment of a kill."""
EOS = "<|endoftext|>"


@dataclass(frozen=True)
class Size:
    """The amount of work of the checks.

    Attributes:
        texts: Number of texts of each of the 8 topics, of about 1 kB each.
        chains: Number of LEGO samples.
        steps: Optimizer steps of a trial.
        trials: Trials of the loss tagger, and seeds of the graph.
        example_steps: Optimizer steps of an example.
        layers, width: Size of the model whose training is timed.
        blocks, block_tokens: Blocks of a step, and tokens of a block.
        timed_steps: Timed steps, after a tenth as many steps of warm-up.
        workers: Numbers of loader processes to try.
    """

    texts: int
    chains: int
    steps: int
    trials: int
    example_steps: int
    layers: int
    width: int
    blocks: int
    block_tokens: int
    timed_steps: int
    workers: tuple[int, ...]


FULL = Size(1500, 12_000, 200, 3, 100, 12, 768, 16, 1024, 60, (0, 2, 4, 8))
SMALL = Size(60, 2000, 8, 2, 20, 1, 32, 2, 64, 10, (0, 2))


@dataclass(frozen=True)
class Plan:
    """The arguments of all checks."""

    work: Path
    device: str
    size: Size
    encoder: str | None


# Corpora


def make_corpora(plan: Plan) -> dict[str, Any]:
    """Write 8 topics of generated words and a LEGO corpus, and tag and shard both."""
    write_topics(plan.work / "topics", plan.size.texts)
    skillshard("synth", "lego", "--k", "3", "--samples", plan.size.chains, "--out", plan.work / "lego")
    for corpus, field in (("topics", "meta.topic"), ("lego", "meta.skill")):
        tags, shards = plan.work / f"{corpus}-tags", plan.work / f"{corpus}-shards"
        skillshard("tag", "metadata", plan.work / corpus, "--field", field, "--out", tags)
        skillshard("shard", plan.work / corpus, "--tags", tags, "--holdout", "0.1", "--out", shards)
    return {"bytes": sum(place.stat().st_size for place in (plan.work / "topics").iterdir())}


def write_topics(folder: Path, num_texts: int, *, num_topics: int = 8, seed: int = 0) -> None:
    """Write texts of about 1 kB: half of the words belong to the topic of the text, half to all topics. Common words are short."""
    chance = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "an", "el")]

    def words(num: int) -> list[str]:
        return ["".join(chance.choices(syllables, k=1 + number * 3 // num)) for number in range(num)]

    shared, topics = words(4000), [words(1500) for _ in range(num_topics)]
    folder.mkdir(parents=True, exist_ok=True)
    for topic, own in enumerate(topics):
        with (folder / f"topic-{topic}.jsonl").open("w") as lines:
            for number in range(num_texts):
                text = [chance.choice((own, shared)) for _ in range(180)]
                words_of_text = " ".join(source[int(len(source) * chance.random() ** 3)] for source in text)
                sample = {"id": f"{topic}-{number}", "text": words_of_text, "meta": {"topic": f"topic-{topic}"}}
                lines.write(json.dumps(sample) + "\n")


# Processes


def skillshard(*words: Any, environment: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """Run a command of skillshard to its end.

    Raises:
        SystemExit: The command failed.
    """
    ended = run_command(command_of(*words), environment)
    if ended.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return ended


def command_of(*words: Any) -> list[str]:
    return [sys.executable, "-c", "import sys; from skillshard.cli import main; sys.exit(main())", *map(str, words)]


def run_command(
    words: Sequence[str], environment: Mapping[str, str] = {}, timeout_s: float = 400
) -> subprocess.CompletedProcess[str]:
    print("$", *words[1:], flush=True)
    ended = subprocess.run(
        words, cwd=REPOSITORY, env=environment_of(environment), capture_output=True, text=True, timeout=timeout_s
    )
    print(ended.stdout, ended.stderr, sep="\n", flush=True)
    return ended


def environment_of(more: Mapping[str, str]) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **more}


def kill_when(words: Sequence[str], is_time: Callable[[], bool]) -> bool:
    """Start a command, and kill its processes with SIGKILL when the time has come. Return whether the command still ran."""
    print("$", *words[1:], "(until the kill)", flush=True)
    process = subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env=environment_of({}),
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    end = time.monotonic() + KILL_WAIT_S
    while process.poll() is None and not is_time() and time.monotonic() < end:
        time.sleep(0.02)
    was_running = process.poll() is None
    if was_running:
        # The whole tree, and not the group alone: torchrun starts its processes in groups of their own.
        for pid in tree_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    return was_running


def tree_of(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of a program stands in parentheses and may hold spaces. The parent is the second field after the name.
            parent = int(place.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.parent.name))
    tree = [pid]
    for member in tree:
        tree += children.get(member, [])
    return tree


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function()
    return result, round(time.perf_counter() - started, 2)


# Encoders


def check_encoder(plan: Plan) -> dict[str, Any]:
    """Tag by the embeddings of a sentence-transformers model: device against CPU, a kill and a resume, and the speed of each data type."""
    if plan.encoder is None:
        return {"not run": "no --encoder was given"}
    corpus, few, work = plan.work / "topics", plan.work / "few-topics", plan.work / "encoder"
    write_topics(few, 50)  # a CPU reads some ten texts a second

    def tag(out: str, source: Path, device: str) -> list[str]:
        arguments = ("--skills", 8, "--encoder", plan.encoder, "--device", device, "--batch-size", 128)
        where = ("--partition-size", "512KiB", "--out", work / out)
        return command_of("tag", "embedding", source, *arguments, *where)

    _, seconds = timed(lambda: checked(tag("whole", corpus, plan.device)))
    was_running = kill_when(
        tag("killed", corpus, plan.device), lambda: len([*(work / "killed").rglob("records/*/*.json")]) >= 30
    )
    checked(tag("killed", corpus, plan.device))
    checked(tag("few", few, plan.device))
    checked(tag("few-cpu", few, "cpu"))
    words = command_of("tag", "reuse", few, "--clusters", work / "few", "--device", "cpu", "--out", work / "reused")
    again = run_command(words, NO_GPU)
    return {
        "seconds": seconds,
        "arguments in tags.json": arguments_of(work / "whole"),
        "against the topics": against_field(work / "whole", corpus, "topic"),
        "device against cpu": against(work / "few", work / "few-cpu"),
        "killed while running": was_running,
        "same bytes after the kill": same_parts(work / "whole", work / "killed"),
        "reused without a GPU": again.stderr[-600:] if again.returncode else against(work / "few", work / "reused"),
        "vectors": vectors(plan),
    }


def vectors(plan: Plan) -> dict[str, Any]:
    """Compare the vectors of each data type with float32 on the CPU, and time the device."""
    from skillshard import taggers

    assert plan.encoder is not None
    texts = [sample["text"] for sample in samples_of(plan.work / "topics")]
    few = texts[:: max(1, len(texts) // 100)][:100]
    expected = taggers.sentence_encoder(plan.encoder, device="cpu").encode(few)
    rows = {}
    for dtype in ("float32", "bfloat16", "float16"):
        encoder = taggers.sentence_encoder(plan.encoder, device=plan.device, dtype=dtype, batch_size=256)
        encoded = encoder.encode(few)
        cosine = (encoded * expected).sum(1) / np.linalg.norm(encoded, axis=1) / np.linalg.norm(expected, axis=1)
        num = len(few) if plan.device == "cpu" else len(texts)
        _, seconds = timed(lambda encoder=encoder, num=num: encoder.encode(texts[:num]))  # type: ignore[misc]
        rows[dtype] = {
            "largest difference": float(np.abs(encoded - expected).max()),
            "least cosine": float(cosine.min()),
            "same again": bool((encoder.encode(few) == encoded).all()),
            "texts per second": round(num / seconds),
        }
    return rows


# Loss trajectories


def check_loss(plan: Plan) -> dict[str, Any]:
    """Tag by loss trajectories: device against CPU, a kill and a resume, and the saved checkpoints on a machine without a GPU."""
    corpus, work, size = plan.work / "lego", plan.work / "loss", plan.size

    def tag(out: str, device: str, dtype: str = "auto") -> list[str]:
        trials = ("--trials", size.trials, "--steps", size.steps, "--checkpoints", 4, "--fitting-samples", 1000)
        where = ("--device", device, "--dtype", dtype, "--workers", 4, "--partition-size", "512KiB")
        return command_of("tag", "loss", corpus, "--skills", 3, *trials, *LEGO_READING, *where, "--out", work / out)

    commands = {
        "device": tag("device", plan.device),
        "device float32": tag("float32", plan.device, "float32"),
        "cpu": tag("cpu", "cpu"),
    }
    seconds = {name: timed(lambda words=words: checked(words))[1] for name, words in commands.items()}  # type: ignore[misc]
    # A trial in progress keeps the state of its optimizer in a directory of this name.
    was_running = kill_when(tag("killed", plan.device), lambda: any((work / "killed").rglob("01/unfinished/*.npz")))
    checked(tag("killed", plan.device))
    reused = work / "reused"
    words = command_of("tag", "reuse", corpus, "--clusters", work / "device", "--out", reused)
    again = run_command(words, NO_GPU)
    recorded = arguments_of(work / "device")
    first = Path("model", "runs", "00", f"checkpoint-{size.steps:06d}.npy")
    weights = {name: np.load(work / name / first) for name in ("device", "float32", "cpu", "killed")}
    return {
        "seconds": seconds,
        "device in tags.json": [recorded["device"], recorded["precision"]],
        "against the skills": {
            name: against_field(work / name, corpus, "skill") for name in ("device", "float32", "cpu")
        },
        "float32 against cpu": against(work / "float32", work / "cpu"),
        "largest difference of weights to cpu": {
            name: float(np.abs(weights[name] - weights["cpu"]).max()) for name in ("device", "float32")
        },
        "killed while running": was_running,
        "same weights after the kill": bool((weights["device"] == weights["killed"]).all()),
        "same bytes after the kill": same_parts(work / "device", work / "killed"),
        "device against killed": against(work / "device", work / "killed"),
        "reused without a GPU": again.stderr[-600:] if again.returncode else against(work / "device", reused),
    }


# Graphs


def check_graph(plan: Plan) -> dict[str, Any]:
    """Learn a graph: device against CPU, a kill and a resume, and the refusal of another device for the same file."""
    work, size = plan.work / "graph", plan.size
    work.mkdir(parents=True, exist_ok=True)

    def learn(out: str, device: str, dtype: str = "auto") -> list[str]:
        trials = ("--steps", size.steps, "--warmup", size.steps // 4, "--seeds", size.trials, "--keep-negative")
        where = ("--device", device, "--dtype", dtype, "--workers", 4)
        return command_of(
            "graph",
            "learn",
            plan.work / "lego-shards",
            "--method",
            "leave-one-out",
            *trials,
            *LEGO_READING,
            *where,
            "--out",
            work / f"{out}.json",
        )

    commands = {
        "device": learn("device", plan.device),
        "device float32": learn("float32", plan.device, "float32"),
        "cpu": learn("cpu", "cpu"),
    }
    seconds = {name: timed(lambda words=words: checked(words))[1] for name, words in commands.items()}  # type: ignore[misc]
    records = work / "killed.runs" / "records"
    was_running = kill_when(learn("killed", plan.device), lambda: len([*records.glob("run-*.json")]) >= 2)
    checked(learn("killed", plan.device))
    graphs = {name: json.loads((work / f"{name}.json").read_text()) for name in ("device", "float32", "cpu", "killed")}
    numbered = checked(learn("device", "cuda:0" if plan.device == "cuda" else plan.device))
    other = run_command(learn("device", "cpu", "bfloat16"))
    made_from = graphs["device"]["learned"]["made_from"]
    return {
        "seconds": seconds,
        "device in the file": [made_from["device"], made_from["precision"]],
        "edges": {name: np.round(graph["edges"], 5).tolist() for name, graph in graphs.items()},
        "largest difference of edges to cpu": differences(graphs, "edges", ("device", "float32")),
        "largest difference of losses to cpu": {
            name: float(np.abs(losses_of(graphs[name]) - losses_of(graphs["cpu"])).max())
            for name in ("device", "float32")
        },
        "largest standard error of edges": largest_standard_error(work / "cpu.json"),
        "killed while running": was_running,
        "same file after the kill": (work / "device.json").read_bytes() == (work / "killed.json").read_bytes(),
        "largest difference after the kill": float(
            np.abs(losses_of(graphs["killed"]) - losses_of(graphs["device"])).max()
        ),
        "a numbered device trains nothing": "trials" not in numbered.stderr,
        "another device refused": [other.returncode, " ".join(other.stderr.split())[-600:]],
    }


def losses_of(graph: Mapping[str, Any]) -> np.ndarray:
    """Return the losses of all trials of a graph."""
    return np.concatenate([np.ravel(trial["losses"]) for trial in graph["learned"]["runs"]])


def differences(graphs: Mapping[str, Mapping[str, Any]], field: str, names: Sequence[str]) -> dict[str, float]:
    return {name: float(np.abs(np.subtract(graphs[name][field], graphs["cpu"][field])).max()) for name in names}


def largest_standard_error(place: Path) -> float | None:
    from skillshard.graph.skill_graph import read_graph

    errors = getattr(read_graph(str(place)), "standard_errors", None)
    return None if errors is None else float(np.nanmax(errors))


# Trainers

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "pytorch": ("examples/pytorch.py",),
    "ddp": ("-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", "29511", "examples/ddp.py"),
    "hf": ("examples/huggingface_trainer.py",),
    "hf torchrun": (
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "1",
        "--master-port",
        "29512",
        "examples/huggingface_trainer.py",
    ),
    "lightning": ("examples/lightning_trainer.py",),
    "packed": ("examples/packed_tokens.py",),
    "get_batch": ("examples/get_batch.py",),
    "accelerate": ("examples/training_losses.py",),
    "webdataset": ("examples/webdataset_loader.py",),
    "trl": ("examples/trl_sft.py",),
}


def check_trainer(plan: Plan, *, example: str) -> dict[str, Any]:
    """Run an example, kill the training after a checkpoint, continue it, and compare with an uninterrupted training."""
    shards = ("--shards", plan.work / "lego-shards")

    def words(run: Path, num_steps: int) -> list[str]:
        return [*(sys.executable, *EXAMPLES[example]), *map(str, (*shards, "--run-dir", run, "--steps", num_steps))]

    return whole_and_killed(words, plan.work / "trainers" / example.replace(" ", "-"), plan.size.example_steps)


def whole_and_killed(words: Callable[[Path, int], list[str]], folder: Path, steps: int) -> dict[str, Any]:
    """Run a training to its end, and a second training that is killed after a checkpoint and continued.

    Args:
        words: Function of the directory of a run and of the number of steps, which returns the command.
        folder: Directory of the two runs.
        steps: Optimizer steps of the training.
    """
    from skillshard.mixing.ledger import DirectoryLedger
    from skillshard.mixing.ledger_faults import verify_ledger
    from skillshard.mixing.records import open_records

    whole, seconds = timed(lambda: checked(words(folder / "whole", steps)))
    killed = folder / "killed"
    was_running = kill_when(
        words(killed, 100_000), lambda: any(killed.glob("checkpoint.pt")) or any(killed.glob("checkpoints/*"))
    )
    done = steps_of(open_records(DirectoryLedger(killed)).observations)
    continued = checked(words(killed, max(steps, done + steps // 2)))
    records = open_records(DirectoryLedger(killed))
    losses = losses_by_draw(records.observations)
    return {
        "seconds": seconds,
        "devices of the checkpoint": devices_of(folder / "whole"),
        "losses": losses_by_draw(open_records(DirectoryLedger(folder / "whole")).observations),
        "killed while running": was_running,
        "killed after the report of step": done,
        "generation after the kill": records.generation,
        "gaps between reports after the kill": sorted(set(np.diff(sorted(losses)).tolist())),
        "first and last losses after the kill": {draw: losses[draw] for draw in (min(losses), max(losses))},
        "faults of the ledgers": [
            fault for run in ("killed", "whole") for fault in verify_ledger(DirectoryLedger(folder / run))
        ],
        "last lines": [ended.stdout.strip().splitlines()[-1:] for ended in (whole, continued)],
        "warnings": sorted({line for line in whole.stderr.splitlines() if "Warning" in line})[:5],
    }


def losses_by_draw(observations: Any) -> dict[int, dict[str, float]]:
    """Return the mean losses of a ledger, by the draw of their measurement."""
    read = (observations.get(number) for number in range(observations.num()))
    return {
        observation.draw: {skill: round(float(loss), 4) for skill, loss in observation.losses.items()}
        for observation in read
        if observation is not None
    }


def steps_of(observations: Any) -> int:
    """Return the last reported step of a run."""
    records = [observations.get(number) for number in range(observations.num())]
    return max((observation.step or 0 for observation in records if observation is not None), default=0)


def devices_of(run: Path) -> list[str]:
    """Return the devices of the tensors in the newest checkpoint of a run. PyTorch saves the device with a tensor."""
    import torch

    places = [
        place
        for pattern in ("*.pt", "checkpoints/last.ckpt", "checkpoints/*/optimizer.pt")
        for place in run.glob(pattern)
    ]
    saved = torch.load(max(places, key=lambda place: place.stat().st_mtime), weights_only=False)
    return sorted({str(tensor.device) for tensor in tensors_of(saved)})


def tensors_of(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        if value.dim():  # a counter may lie on the CPU
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)


# Throughput


def check_throughput(plan: Plan) -> dict[str, Any]:
    """Time the steps of a model of the size of GPT-2 (bfloat16) with one batch again and again, and with the stream of a mixer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    size, device = plan.size, torch.device(plan.device)
    torch.manual_seed(0)
    heads = max(1, size.width // 64)
    config = GPT2Config(
        vocab_size=50_304, n_positions=size.block_tokens, n_embd=size.width, n_layer=size.layers, n_head=heads
    )
    model = GPT2LMHeadModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def step(ids: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    fixed = torch.randint(0, 8000, (size.blocks, size.block_tokens), device=device)
    step_tokens = size.blocks * size.block_tokens
    alone = time_steps(plan, iter(lambda: fixed, None), step)
    rows = {"one batch again and again": {**alone, "tokens_per_s": round(step_tokens / alone["step_s"])}}
    counts, tokenizer_s = count(plan)
    for workers in size.workers:
        for kind, opened in (("packed", packed_loader), ("texts", text_loader)):
            batches, close = opened(plan, counts, workers)
            row = time_steps(plan, batches, step)
            close()
            rows[f"{kind}, {workers} workers"] = {**row, "tokens_per_s": round(step_tokens / row["step_s"])}
            batches, close = opened(plan, counts, workers)
            row = time_steps(plan, batches, lambda ids: None)
            close()
            rows[f"{kind}, {workers} workers, no model"] = {**row, "tokens_per_s": round(step_tokens / row["step_s"])}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_tokens": step_tokens,
        "count_tokens_s": tokenizer_s,
        "rows": rows,
    }


def time_steps(plan: Plan, batches: Iterator[Any], step: Callable[[Any], None]) -> dict[str, float]:
    """Time the steps, with the waits for the device at the start and the end alone, so that batches are read while the device computes.

    Returns:
        step_s: Mean seconds of a step.
        wait_s: Mean seconds of a step in which the loop waits for the next batch.
    """
    import torch

    def wait_for_device() -> None:
        if plan.device.startswith("cuda"):
            torch.cuda.synchronize()

    for ids in islice(batches, max(2, plan.size.timed_steps // 10)):
        step(ids)
    wait_for_device()
    waited, started = 0.0, time.perf_counter()
    for _ in range(plan.size.timed_steps):
        before = time.perf_counter()
        ids = next(batches)
        waited += time.perf_counter() - before
        step(ids)
    wait_for_device()
    num = plan.size.timed_steps
    return {"step_s": round((time.perf_counter() - started) / num, 5), "wait_s": round(waited / num, 5)}


def count(plan: Plan) -> tuple[Any, float]:
    """Train a tokenizer of 8,000 entries on some texts, and count the tokens of the shards."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    import skillshard as ss

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [sample["text"] for sample in islice(samples_of(plan.work / "topics"), 3000)]
    tokenizer.train_from_iterator(texts, trainer)
    shards = ss.ShardSet.open(plan.work / "topics-shards")
    return timed(lambda: ss.write_tokens(shards, tokenizer, plan.work / "throughput" / "counts", progress=False))


Opened = tuple[Iterator[Any], Callable[[], None]]


def live_mixer(plan: Plan, counts: Any, *, unit: str, step_draws: int) -> Any:
    """Make a mixer with live SKILL-IT weights in a new directory."""
    import skillshard as ss

    shards = ss.ShardSet.open(plan.work / "topics-shards")
    ledger = plan.work / "throughput" / "ledger"
    shutil.rmtree(ledger, ignore_errors=True)
    policy = ss.policies.skill_it(ss.SkillGraph.identity(shards.skills), eta=0.2)
    arguments: dict[str, Any] = {"unit": unit, "tokens": counts} if unit == "tokens" else {}
    return ss.Mixer(
        shards, policy, ledger=ledger, round_draws=20 * step_draws, step_draws=step_draws, lag="live", **arguments
    )


def reporting(batches: Iterator[Any], report: Callable[[int], None]) -> Iterator[Any]:
    """Report losses every 10 steps, so that the weights of the rounds change during the timing."""
    for step, ids in enumerate(batches):
        if step % 10 == 0:
            report(step)
        yield ids


def packed_loader(plan: Plan, counts: Any, workers: int) -> Opened:
    """Make a loader of blocks of tokens. The workers tokenize and pack."""
    from torch.utils.data import DataLoader

    import skillshard as ss
    from skillshard.torch import PackedDataset, collate_blocks

    size = plan.size
    mixer = live_mixer(plan, counts, unit="tokens", step_draws=size.blocks * 4)
    packed = ss.PackedTokens(mixer, counts, block_tokens=size.block_tokens, separator=EOS, step_blocks=size.blocks)
    report(packed, 0)
    loader = DataLoader(
        PackedDataset(packed),
        batch_size=size.blocks,
        num_workers=workers,
        collate_fn=collate_blocks,
        pin_memory=on_gpu(plan),
    )
    iterator = iter(loader)
    batches = (batch["input_ids"].to(plan.device, non_blocking=True) for batch in iterator)
    return reporting(batches, lambda step: report(packed, step) if step else None), closed(iterator)


class Tokenized:
    """Tokenize the texts of a batch in a worker, cut or padded to one length."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def __call__(self, items: Any) -> Any:
        import torch

        encoded = self.tokenizer.encode_batch_fast(items.batch.text, add_special_tokens=False)
        ids = [token for text in encoded for token in text.ids]
        # A text has about a third of a block's tokens. Texts are joined, so that a step has as many tokens as a step of packed blocks.
        return torch.tensor(np.resize(np.array(ids), self.length), dtype=torch.int64)


def text_loader(plan: Plan, counts: Any, workers: int) -> Opened:
    """Make a loader of texts, tokenized in a `collate_fn` of the user, without a position for each token."""
    from torch.utils.data import DataLoader

    from skillshard.torch import MixedDataset

    size = plan.size
    step_tokens = size.blocks * size.block_tokens
    tokens_per_text = counts_per_text(counts, plan)
    batch_size = max(1, round(step_tokens / tokens_per_text))
    mixer = live_mixer(plan, counts, unit="samples", step_draws=batch_size)
    report(mixer, 0)
    loader = DataLoader(
        MixedDataset(mixer),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=Tokenized(counts.tokenizer, step_tokens),
        pin_memory=on_gpu(plan),
    )
    iterator = iter(loader)
    shape = (size.blocks, size.block_tokens)
    batches = (ids.reshape(shape).to(plan.device, non_blocking=True) for ids in iterator)
    return reporting(batches, lambda step: report(mixer, step) if step else None), closed(iterator)


def counts_per_text(counts: Any, plan: Plan) -> float:
    texts = [sample["text"] for sample in islice(samples_of(plan.work / "topics"), 200)]
    return statistics.mean(len(encoding.ids) for encoding in counts.tokenizer.encode_batch(texts))


def report(stream: Any, step: int) -> None:
    """Report losses that fall with the steps, another loss for each skill."""
    skills = [f"topic-{number}" for number in range(8)]
    stream.report(step, {skill: 3.0 / (1 + step * (number + 1) / 100) for number, skill in enumerate(skills)})


def closed(iterator: Any) -> Callable[[], None]:
    """Return a function that ends the workers of a loader's iterator."""

    def close() -> None:
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    return close


def on_gpu(plan: Plan) -> bool:
    return plan.device.startswith("cuda")


# Comparisons


def checked(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        SystemExit: The command failed.
    """
    ended = run_command(words)
    if ended.returncode:
        raise SystemExit(f"{' '.join(words[1:])} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return ended


def samples_of(corpus: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of all files in turn, so that the first samples come from all topics."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(place.open()) for place in sorted(corpus.glob("*.jsonl"))]
        for lines in zip(*files, strict=True):
            yield from map(json.loads, lines)


def skills_of(tags: Path) -> dict[str, str]:
    """Return the skill of each id."""
    from skillshard.tags import Tags

    opened = Tags.open(tags)
    faults = opened.verify()
    if faults:
        raise SystemExit(f"{tags}: {faults[0]}")
    parts = len([*(tags / "parts").iterdir()])
    return {row.id: row.skill for part in range(parts) for row in opened.rows(part) if row.skill is not None}


def against(first: Path, second: Path) -> dict[str, float]:
    """Measure the agreement of two taggings, on the samples of the second tagging."""
    return agreement_of_skills(skills_of(first), skills_of(second))


def against_field(tags: Path, corpus: Path, field: str) -> dict[str, float]:
    """Measure the agreement of tags with a field of the metadata."""
    lines = (line for place in sorted(corpus.glob("*.jsonl")) for line in place.read_text().splitlines())
    return agreement_of_skills(skills_of(tags), {row["id"]: row["meta"][field] for row in map(json.loads, lines)})


def agreement_of_skills(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, float]:
    from skillshard.taggers.agreement import agreement

    if missing := second.keys() - first.keys():
        raise SystemExit(f"{len(missing)} ids have no tag, such as {min(missing)!r}.")
    measured = agreement((first[name], second[name]) for name in second)
    return {"accuracy": round(measured.accuracy, 5), "ari": round(measured.ari, 5)}


def same_parts(first: Path, second: Path) -> bool:
    """Return whether two directories of tags have the same parts and the same manifest."""
    files = [sorted((*(tags / "parts").iterdir(), tags / "tags.json")) for tags in (first, second)]
    return [place.name for place in files[0]] == [place.name for place in files[1]] and all(
        ours.read_bytes() == theirs.read_bytes() for ours, theirs in zip(*files, strict=True)
    )


def arguments_of(tags: Path) -> dict[str, Any]:
    """Return the tagger's arguments that a manifest of tags records."""
    arguments: dict[str, Any] = json.loads((tags / "tags.json").read_text())["made_from"]["arguments"][
        "tagger_arguments"
    ]
    return arguments


# The command line

CHECKS: Mapping[str, Callable[[Plan], dict[str, Any]]] = {
    "encoder": check_encoder,
    "loss": check_loss,
    "graph": check_graph,
    **{f"trainer {example}": partial(check_trainer, example=example) for example in EXAMPLES},
    "throughput": check_throughput,
}
ALONE = "throughput"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of corpora, results and logs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of all results")
    parser.add_argument("--checks", nargs="+", choices=tuple(CHECKS), default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--encoder", default=None, help="directory of a sentence-transformers model")
    parser.add_argument("--small", action="store_true", help="little work, to try the script")
    parser.add_argument("--jobs", type=int, default=9, help="number of checks at the same time")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)  # the process of a single check
    arguments = parser.parse_args()
    encoder = None if arguments.encoder is None else str(Path(arguments.encoder).resolve())
    plan = Plan(arguments.work.resolve(), arguments.device, SMALL if arguments.small else FULL, encoder)
    if arguments.one is not None:
        functions = {"corpora": make_corpora, **CHECKS}
        result, seconds = timed(lambda: functions[arguments.one](plan))
        write_json(result_place(plan, arguments.one), {**result, "wall_s": seconds})
        return
    raise SystemExit(run_checks(plan, arguments.checks, arguments.out, arguments.jobs))


def run_checks(plan: Plan, names: Sequence[str], out: Path | None, jobs: int) -> int:
    """Run the checks in processes, and collect their results. Return the exit code."""
    plan.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": {**machine(), **card(plan)}, "size": vars(plan.size), "checks": {}}
    lock = threading.Lock()

    def run(name: str) -> bool:
        options = ["--small"] if plan.size == SMALL else []
        options += [] if plan.encoder is None else ["--encoder", plan.encoder]
        words = ["-m", "benchmarks.gpu", "--work", str(plan.work), "--device", plan.device, "--one", name, *options]
        started = time.perf_counter()
        log = result_place(plan, name).with_suffix(".log")
        with log.open("w") as lines:
            code = subprocess.run(
                [sys.executable, *words], cwd=REPOSITORY, env=environment_of({}), stdout=lines, stderr=subprocess.STDOUT
            ).returncode
        with lock:
            if code:
                results["checks"][name] = {"failed": log.read_text().strip().splitlines()[-12:]}
            else:
                results["checks"][name] = json.loads(result_place(plan, name).read_text())
            if out is not None:
                write_json(out, results)
            print(f"{name}: {'failed' if code else 'done'} in {time.perf_counter() - started:.0f} s", flush=True)
        return code == 0

    if not (plan.work / "lego-shards" / "manifest.json").exists() and not run("corpora"):
        return 1
    beside = [name for name in names if name != ALONE]
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = [*pool.map(run, beside)]
    outcomes += [run(name) for name in names if name == ALONE]
    print(json.dumps(results["checks"], indent=1))
    return 0 if all(outcomes) else 1


def result_place(plan: Plan, name: str) -> Path:
    return plan.work / f"{name.replace(' ', '-')}.json"


def card(plan: Plan) -> dict[str, Any]:
    """Return the name of the GPU, and the versions of the packages that compute on it."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {}
    for package in ("torch", "transformers", "sentence-transformers", "lightning", "accelerate", "ray"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    name = torch.cuda.get_device_name() if plan.device == "cuda" else "none"
    return {"gpu": name, **versions}


def write_json(place: Path, value: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
