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
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_corpora import FULL, SMALL, Plan, make_corpora, samples_of, write_topics
from benchmarks.gpu_supply import TimedModel, count, packed_loader, text_loader
from benchmarks.killed_trainings import whole_and_killed
from benchmarks.mixers import machine
from benchmarks.processes import (
    REPOSITORY,
    checked,
    command_of,
    environment_of,
    kill_when,
    run_command,
    timed,
    write_json,
)

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
LEGO_READING = ("--segment-at", ",.:", "--answer-after", "= ")


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


# Throughput


def check_throughput(plan: Plan) -> dict[str, Any]:
    """Time the steps of a model of the size of GPT-2 (bfloat16) with one batch again and again, and with the stream of a mixer."""
    model = TimedModel(plan)
    rows = {"one batch again and again": model.time_one_batch()}
    counts, tokenizer_s = count(plan)
    for workers in plan.size.workers:
        for kind, loader in (("packed", packed_loader), ("texts", text_loader)):
            opened = partial(loader, plan, counts, workers)
            rows[f"{kind}, {workers} workers"] = model.time_loader(opened, trains=True)
            rows[f"{kind}, {workers} workers, no model"] = model.time_loader(opened, trains=False)
    return {**model.facts(), "count_tokens_s": tokenizer_s, "rows": rows}


# Comparisons


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


if __name__ == "__main__":
    main()
