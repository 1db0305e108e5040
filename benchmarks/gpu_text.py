"""Check on real text what a GPU computes: comparisons with a Hugging Face proxy, loss trajectories, packed blocks in trainers, and the supply.

    python -m benchmarks.gpu_text --corpora CORPORA --work /tmp/gpu-text --out gpu-text.json

CORPORA has the folders `instructions`, `sources` and `banking77`. Each job is a process of its own, and writes WORK/JOB.json and WORK/JOB.log.
The jobs of a lane run one after the other, and the lanes run beside each other. The job `supply` runs alone at the end. A job that
fails does not stop the others. At `--deadline` the unfinished jobs are killed. The same command goes on with the jobs that have no result.

All settings stand in this file and were fixed before the first run. A result is a measurement, and the script compares no result with a
threshold. `--device cpu --small` tries the script on a machine without a GPU.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.gpu import card
from benchmarks.gpu_corpora import EOS, VOCAB_SIZE, Size, make_corpora, trained_tokenizer
from benchmarks.gpu_corpora import Plan as TopicsPlan
from benchmarks.gpu_supply import Opened, TimedModel, blocks_of_columns, count, new_gpt2, packed_loader
from benchmarks.killed_trainings import whole_and_killed
from benchmarks.mixers import machine
from benchmarks.processes import REPOSITORY, checked, command_of, environment_of, kill_when, timed, tree_of, write_json

POLICIES = (
    "stratified",
    "proportional",
    "loss_order:eta=0.2",
    "skill_it:identity.json,eta=0.2",
    "skill_it:graph.json,eta=0.2",
)
CATEGORIES = {"sources": "meta.source", "instructions": "meta.category"}
READING: dict[str, tuple[str, ...]] = {"sources": (), "instructions": ("--answer-after", "Output: ")}
LEGO = ("--settings", "shuffled LEGO k=3", "--methods", "stratified", "chain", "chain with initial losses")


@dataclass(frozen=True)
class Amount:
    """The amount of work.

    Attributes:
        layers, width: Size of the proxy of the comparisons, and of the model of the trainers.
        window: Tokens that a comparison reads of a text.
        eval_samples: Held-out samples of each skill by corpus: 288 samples of 9 skills, and 432 samples of 27 skills.
        steps, batch, seeds: Steps of a training of a comparison, samples of a step, and number of seeds.
        graph_steps: Steps of the warm-up and of each trial of a graph.
        trials, trial_steps, rows: Trials of the loss tagger, their steps (None: the default of the command), and the tagged rows.
        example_steps: Steps of the trainings of the trainers.
        lego: Options of the trainings of LEGO.
        paper: Environment of the paper's experiment in miniature.
        supplied: Model and loaders whose supply is timed.
    """

    layers: int
    width: int
    window: int
    eval_samples: Mapping[str, int]
    steps: int
    batch: int
    seeds: int
    graph_steps: int
    trials: int
    trial_steps: int | None
    rows: int
    example_steps: int
    lego: tuple[str, ...]
    paper: Mapping[str, str]
    supplied: Size


FULL = Amount(
    6,
    512,
    256,
    {"sources": 32, "instructions": 16},
    300,
    32,
    5,
    50,
    10,
    None,
    4000,
    100,
    ("--seeds", "0", "1", "2", "--size", "125m", "--lr", "5e-5", "--precision", "bfloat16"),
    {"STEPS": "60", "ROUND_STEPS": "10", "SEEDS": "5", "LR": "1e-3", "WINDOW": "128", "HOLDOUT": "0.1"},
    Size(1500, 100, 1, 1, 1, 12, 768, 16, 1024, 60, (0, 2, 8)),
)
SMALL = Amount(
    1,
    32,
    32,
    {"sources": 2, "instructions": 2},
    4,
    4,
    2,
    2,
    1,
    20,
    300,
    20,
    ("--seeds", "0", "--steps", "50"),
    {"STEPS": "2", "ROUND_STEPS": "1", "SEEDS": "2", "LR": "1e-3", "WINDOW": "32", "HOLDOUT": "0.1"},
    Size(60, 100, 1, 1, 1, 1, 32, 2, 64, 6, (0, 2)),
)


@dataclass(frozen=True)
class Plan:
    """The arguments of all jobs."""

    work: Path
    corpora: Path
    device: str
    amount: Amount

    @property
    def topics(self) -> TopicsPlan:
        """The plan of the checks in `benchmarks.gpu`, for their corpus of generated words."""
        return TopicsPlan(self.work, self.device, self.amount.supplied, None)


# Preparation


def prepare(plan: Plan) -> dict[str, Any]:
    """Tag and shard both corpora, train a tokenizer on held-out texts, write the proxy, and write the token sets."""
    seconds = {}
    for name, field in CATEGORIES.items():
        tags, shards = plan.work / f"{name}-tags", plan.work / f"{name}-shards"
        checked(command_of("tag", "metadata", plan.corpora / name, "--field", field, "--out", tags))
        checked(command_of("shard", plan.corpora / name, "--tags", tags, "--holdout", "0.1", "--out", shards))
    _, seconds["tokenizer"] = timed(lambda: write_proxy(plan))
    for name in CATEGORIES:
        tokens = ("tokens", plan.work / f"{name}-shards", "--tokenizer", plan.work / "proxy", *READING[name])
        _, seconds[f"tokens of {name}"] = timed(
            lambda words=tokens, name=name: checked(command_of(*words, "--out", plan.work / f"{name}-tokens"))  # type: ignore[misc]
        )
    return {"seconds": seconds}


def write_proxy(plan: Plan) -> None:
    """Write a GPT-2 with random weights, and a tokenizer that is trained on the first held-out texts of each skill."""
    from transformers import PreTrainedTokenizerFast

    import skillshard as ss

    texts = []
    for name in CATEGORIES:
        shards = ss.ShardSet.open(plan.work / f"{name}-shards")
        texts += [sample.text[:8000] for skill in shards.skills for sample in islice(shards.holdout[skill], 150)]
    tokenizer = trained_tokenizer(texts)
    place = str(plan.work / "proxy")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS).save_pretrained(place)
    amount = plan.amount
    model = new_gpt2(vocab_size=VOCAB_SIZE, num_positions=512, layers=amount.layers, width=amount.width, end_token=0)
    model.save_pretrained(place)


def topics(plan: Plan) -> dict[str, Any]:
    """Write the corpus of generated words of `benchmarks.gpu`, whose supply was measured before."""
    return make_corpora(plan.topics)


# Comparisons


def compared(plan: Plan, *, name: str) -> dict[str, Any]:
    """Learn a graph and compare the policies. The first command of the comparison is killed after some trials."""
    import skillshard as ss

    amount, folder, shards = plan.amount, plan.work / f"compare-{name}", plan.work / f"{name}-shards"
    folder.mkdir(exist_ok=True)
    shared = (
        *("--proxy", plan.work / "proxy", "--device", plan.device, "--window", amount.window, *READING[name]),
        *("--batch-size", amount.batch, "--eval-samples", amount.eval_samples[name], "--lr", "5e-4"),
    )
    each = max(1, amount.graph_steps // 2)
    steps = ("--steps", amount.graph_steps, "--warmup", amount.graph_steps, "--eval-every", each)
    learn = command_of("graph", "learn", shards, *shared, *steps, "--out", folder / "graph.json")
    _, graph_s = timed(lambda: checked(learn, timeout_s=None))
    ss.SkillGraph.identity(ss.ShardSet.open(shards).skills).save(folder / "identity.json")
    # The policies name files by their places.
    policies = [
        word for policy in POLICIES for word in ("--policy", policy.replace("skill_it:", f"skill_it:{folder}/"))
    ]
    compare = command_of(
        *("compare", shards, *policies, *shared, "--steps", amount.steps, "--seeds", amount.seeds),
        *("--eval-every", max(1, amount.steps // 10), "--out", folder / "compared"),
    )
    trials = folder / "compared" / "trials"
    num_before_kill = 2 * amount.seeds
    before_kill: dict[str, str] = {}
    killed, first_s = False, 0.0
    if len(digests(trials)) < num_before_kill:  # not when this job itself was killed and goes on
        killed, first_s = timed(lambda: kill_when(compare, lambda: len(digests(trials)) >= num_before_kill))
        before_kill = digests(trials)
    ended, second_s = timed(lambda: checked(compare, timeout_s=None))
    after = digests(trials)
    again, third_s = timed(lambda: checked(compare))
    return {
        "graph_s": graph_s,
        "killed while running": killed,
        "trials before the kill": len(before_kill),
        "the same bytes of these trials afterwards": all(
            after[trial] == digest for trial, digest in before_kill.items()
        ),
        "seconds until the kill": first_s,
        "seconds of the command after the kill": second_s,
        "seconds of the finished command": third_s,
        "trials": len(after),
        "estimate": [line for line in ended.stderr.splitlines() if "about" in line or "expected" in line][:5],
        "output": again.stdout.splitlines(),
        "compare.json": json.loads((folder / "compared" / "compare.json").read_text()),
    }


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each record in a folder."""
    return {place.name: hashlib.sha256(place.read_bytes()).hexdigest() for place in sorted(folder.glob("*.json"))}


def bytes_after_a_kill(plan: Plan) -> dict[str, Any]:
    """Run a small comparison whole, and a second time with a kill, and compare the bytes of the results."""
    amount, folder = plan.amount, plan.work / "compare-bytes"
    folder.mkdir(exist_ok=True)

    def compare(out: str) -> list[str]:
        return command_of(
            *("compare", plan.work / "sources-shards", "--policy", "stratified", "--policy", "loss_order:eta=0.2"),
            *("--proxy", plan.work / "proxy", "--device", plan.device, "--window", amount.window, "--seeds", "2"),
            *(
                "--steps",
                max(2, amount.steps // 5),
                "--batch-size",
                amount.batch,
                "--eval-samples",
                amount.eval_samples["instructions"],
            ),
            *("--lr", "5e-4", "--out", folder / out),
        )

    _, seconds = timed(lambda: checked(compare("whole")))
    killed = kill_when(compare("killed"), lambda: len(digests(folder / "killed" / "trials")) >= 2)
    checked(compare("killed"))
    return {
        "seconds": seconds,
        "killed while running": killed,
        "same bytes of the trials": digests(folder / "whole" / "trials") == digests(folder / "killed" / "trials"),
        "same bytes of compare.json": digests(folder / "whole") == digests(folder / "killed"),
        "losses": [
            {
                place.stem: json.loads(place.read_text()).get("mean_losses", [None])[-1]
                for place in sorted((folder / out / "trials").glob("*.json"))
            }
            for out in ("whole", "killed")
        ],
    }


# The other jobs of the lanes


def lego(plan: Plan) -> dict[str, Any]:
    """Train the model of 125M parameters on shuffled LEGO under three methods."""
    work, out = plan.work / "lego-trainings", plan.work / "lego-table.json"
    words = ("-m", "benchmarks.skillit", "run", *LEGO, *plan.amount.lego, "--device", plan.device, "--workers", "3")
    _, seconds = timed(
        lambda: checked([sys.executable, *words, "--work", str(work), "--out", str(out)], timeout_s=None)
    )
    records = {place.stem: json.loads(place.read_text()) for place in sorted((work / "records").glob("train-*.json"))}
    short = {
        name: {
            "final_losses": record["losses"][-1],
            "mean_losses": [sum(row.values()) / len(row) for row in record["losses"]],
        }
        for name, record in records.items()
    }
    return {"seconds": seconds, "table": json.loads(out.read_text()), "trainings": short}


def loss_tags(plan: Plan, *, name: str, seed: int) -> dict[str, Any]:
    """Tag 4,000 rows by ten trials, the default of `tag loss`."""
    from benchmarks.clusters import chosen_rows, loss_measured

    rows = chosen_rows(plan.corpora, name, "table")
    num = plan.amount.rows
    rows = type(rows)(rows.texts[:num], rows.categories[:num])
    settings: dict[str, Any] = {"trials": plan.amount.trials}
    if plan.amount.trial_steps is not None:
        settings["steps"] = plan.amount.trial_steps
    return {"num_rows": len(rows.texts), **loss_measured(rows, seed, settings, 128, device=plan.device)}


def trainer(plan: Plan, *, kind: str) -> dict[str, Any]:
    """Train on packed blocks with masked prompts, whole, and with a kill."""
    shared = ("--shards", plan.work / "instructions-shards", "--tokens", plan.work / "instructions-tokens")
    shared += ("--layers", plan.amount.layers, "--width", plan.amount.width)

    def words(run: Path, steps: int) -> list[str]:
        options = (*shared, "--run-dir", run, "--steps", steps)
        return [sys.executable, "-m", "benchmarks.packed_trainers", kind, *map(str, options)]

    folder = plan.work / "trainers" / f"packed-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    result = whole_and_killed(words, folder, plan.amount.example_steps)
    facts = folder / "whole" / "losses-of-a-batch.json"
    return {**result, **({"losses_from_batch": json.loads(facts.read_text())} if facts.exists() else {})}


def paper(plan: Plan) -> dict[str, Any]:
    """Run the fine-tuning experiment of the paper in miniature, for both targets."""
    folder, commands = plan.work / "paper", plan.work / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    commands.mkdir(exist_ok=True)
    command = commands / "skillshard"
    command.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; from skillshard.cli import main; sys.exit(main())" "$@"\n'
    )
    command.chmod(0o755)
    checked([sys.executable, "examples/paper/miniature.py", str(folder / "mini")], timeout_s=None)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "DEVICE": plan.device, **plan.amount.paper}
    results: dict[str, Any] = {}
    for experiment in ("spanish-qg", "stance-detection"):
        places = (folder / "mini" / "tasks", folder / "mini" / "model", folder / "out")
        words = ["bash", "examples/paper/experiment.sh", *map(str, places), experiment]
        started = time.perf_counter()
        ended = checked(words, environment, timeout_s=None)
        compared_at = folder / "out" / experiment / "compared" / "compare.json"
        results[experiment] = {
            "seconds": round(time.perf_counter() - started, 1),
            "output": ended.stdout.splitlines()[-30:],
            "compare.json": json.loads(compared_at.read_text()),
        }
    return results


# The supply


def supply(plan: Plan) -> dict[str, Any]:
    """Time the steps of a GPT-2 (bfloat16) with one batch again and again, with blocks of token sets, and the loaders alone."""
    import skillshard as ss

    model = TimedModel(plan.topics)
    rows: dict[str, Any] = {"one batch again and again": model.time_one_batch()}
    plan.topics.work.joinpath("throughput").mkdir(exist_ok=True)
    counts, _ = count(plan.topics)
    shards, tokens = ss.ShardSet.open(plan.work / "sources-shards"), ss.TokenSet.open(plan.work / "sources-tokens")
    loaders: dict[str, Callable[[], Opened]] = {
        "generated words, all columns, 0 workers": partial(packed_loader, plan.topics, counts, 0)
    }
    for columns in (("input_ids",), ("input_ids", "labels", "position_ids")):
        for workers in plan.amount.supplied.workers:
            name = f"sources, {', '.join(columns)}, {workers} workers"
            loaders[name] = partial(blocks_of_columns, plan.topics, shards, tokens, columns, workers)
    for name, opened in loaders.items():
        rows[f"{name}, alone"] = model.time_loader(opened, trains=False)
        rows[f"{name}, with the model"] = model.time_loader(opened, trains=True)
    return {**model.facts(), "rows": rows}


# Lanes

JOBS: Mapping[str, Callable[[Plan], dict[str, Any]]] = {
    "prepare": prepare,
    "topics": topics,
    **{f"compare {name}": partial(compared, name=name) for name in CATEGORIES},
    "compare bytes": bytes_after_a_kill,
    "lego": lego,
    **{
        f"loss {name} {seed}": partial(loss_tags, name=name, seed=seed)
        for name in ("banking77", "sources")
        for seed in (0, 1, 2)
    },
    **{f"trainer {kind}": partial(trainer, kind=kind) for kind in ("hf", "lightning", "accelerate")},
    "paper": paper,
    "supply": supply,
}
LANES = (
    ("compare sources",),
    ("compare instructions",),
    ("lego",),
    ("loss banking77 0", "loss banking77 1", "loss banking77 2"),
    ("loss sources 0", "loss sources 1", "loss sources 2"),
    ("topics", "trainer hf", "trainer lightning", "trainer accelerate", "compare bytes", "paper"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the real corpora")
    parser.add_argument("--work", type=Path, required=True, help="directory of shards, results and logs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--deadline", type=float, default=450, help="seconds after which unfinished jobs are killed")
    parser.add_argument("--small", action="store_true", help="little work, to try the script")
    parser.add_argument("--jobs", nargs="+", choices=tuple(JOBS), default=list(JOBS), metavar="JOB")
    parser.add_argument("--one", choices=tuple(JOBS), default=None, help=argparse.SUPPRESS)  # the process of a job
    arguments = parser.parse_args()
    plan = Plan(
        arguments.work.resolve(), arguments.corpora.resolve(), arguments.device, SMALL if arguments.small else FULL
    )
    plan.work.mkdir(parents=True, exist_ok=True)
    if arguments.one is not None:
        result, seconds = timed(lambda: JOBS[arguments.one](plan))
        write_json(result_of(plan, arguments.one), {**result, "wall_s": seconds})
        return
    Lanes(plan, arguments.jobs, arguments.out, time.monotonic() + arguments.deadline, arguments.small).run()


class Lanes:
    """Jobs in processes, and the file of their results."""

    def __init__(self, plan: Plan, names: Sequence[str], out: Path, end: float, small: bool) -> None:
        self.plan, self.names, self.out, self.end, self.small = plan, names, out, end, small
        self.results: dict[str, Any] = {
            "machine": {**machine(), **card(plan.topics)},
            "amount": repr(plan.amount),
            "jobs": {},
        }
        self.lock = threading.Lock()

    def run(self) -> None:
        self.job("prepare")
        threads = [threading.Thread(target=self.lane, args=(lane,)) for lane in LANES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.end = time.monotonic() + 120
        self.job("supply")

    def lane(self, names: Sequence[str]) -> None:
        for name in names:
            self.job(name)

    def job(self, name: str) -> None:
        """Run a job that has no result yet, and write the file of the results."""
        place, started = result_of(self.plan, name), time.monotonic()
        if name not in self.names:
            return
        code = 0 if place.exists() else self.process(name)
        log = place.with_suffix(".log")
        with self.lock:
            if place.exists():
                self.results["jobs"][name] = json.loads(place.read_text())
            else:
                self.results["jobs"][name] = {
                    "failed": code,
                    "log": log.read_text(errors="replace").splitlines()[-30:] if log.exists() else [],
                }
            write_json(self.out, self.results)
            print(f"{name}: code {code} after {time.monotonic() - started:.0f} s", flush=True)

    def process(self, name: str) -> int:
        """Run a job in a process, and kill the process and its descendants at the deadline."""
        if time.monotonic() > self.end:
            return -signal.SIGKILL
        plan = self.plan
        words = ["-m", "benchmarks.gpu_text", "--corpora", plan.corpora, "--work", plan.work, "--out", self.out]
        words += ["--device", plan.device, "--one", name, *(["--small"] if self.small else [])]
        with result_of(plan, name).with_suffix(".log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                cwd=REPOSITORY,
                env=environment_of({}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            while process.poll() is None and time.monotonic() < self.end:
                time.sleep(0.2)
            if process.poll() is None:
                for pid in tree_of(process.pid):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            return process.wait()


def result_of(plan: Plan, name: str) -> Path:
    return plan.work / f"{name.replace(' ', '-')}.json"


if __name__ == "__main__":
    main()
