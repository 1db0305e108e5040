"""Learned graphs on LEGO: do they show the chain, and does SKILL-IT do as well with them as with the true one?

    python benchmarks/graphs.py run --work /tmp/graphs --seeds 0 1 2 3      half an hour of two cores; goes on where it was
    python benchmarks/graphs.py table --work /tmp/graphs --seeds 0 1 2 3 --out benchmarks/results/graphs.json

A seed is another corpus (equal proportions), another graph, other trainings; the graph of a seed is learned on its own corpus with
one seed of runs. Trainings of a seed differ in their weights alone: the same model, the same stream within each skill.

    stratified   equal weights
    identity     SKILL-IT without a graph
    chain        SKILL-IT with the true one: 1 on the diagonal, 0.5 from each skill to the next
    learned      SKILL-IT with the leave-one-out graph, diagonal 1, strongest edge 0.5, negative edges 0

SKILL-IT as in the authors' code: eta 0.5, the sum over the latest 3 evaluations, 6 rounds. Settings were chosen on seeds from 100 on
(docs/LOG.md).
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixers import machine

ROUNDS, EVAL_SAMPLES, BATCH_SIZE, LEARNING_RATE = 6, 200, 64, 1e-3
TARGET_LOSS = 0.05
METHODS = ("stratified", "identity", "chain", "learned")


@dataclass(frozen=True)
class Task:
    """A corpus, the training on it, and the runs of its graph."""

    k: int
    order: str
    samples: int
    steps: int
    eval_every: int
    graph_steps: int
    warmup_steps: int


TASKS = {
    "shuffled LEGO k=3": Task(3, "shuffled", 120_000, 2100, 25, 300, 50),
    "ordered LEGO k=5": Task(5, "chain", 100_000, 1500, 25, 300, 50),
}


def prepare(task: Task, seed: int, folder: Path) -> Path:
    """Corpus, tags, shards; the shards."""
    from skillshard import taggers
    from skillshard.corpus import Corpus
    from skillshard.execution import Where
    from skillshard.shards.write import write_shards
    from skillshard.synthetic.lego import write_lego

    corpus = folder / "corpus"
    if not (corpus / "lego-00000.jsonl").exists():
        write_lego(
            corpus,
            k=task.k,
            num_samples=task.samples,
            seed=seed,
            order=task.order,
            proportions="uniform",
            samples_per_file=task.samples,
        )
    opened, here = Corpus.open(corpus), Where(workers=1)
    tags = taggers.tag_corpus(opened, taggers.metadata("meta.skill"), folder / "tags", where=here)
    holdout = 2 * task.k * EVAL_SAMPLES / task.samples
    write_shards(opened, tags, folder / "shards", holdout=holdout, shard_bytes=64_000_000, where=here)
    return folder / "shards"


def learn(task: Task, seeds: Sequence[int], shards: Path, out: Path, runs: Path) -> Any:
    """The leave-one-out graph of some seeds, edges as measured."""
    from skillshard.execution import Where
    from skillshard.graph.edges import EdgeRule
    from skillshard.graph.learn import learn_graph
    from skillshard.shards.read import ShardSet

    return learn_graph(
        ShardSet.open(shards),
        out,
        method="leave-one-out",
        steps=task.graph_steps,
        rule=EdgeRule("absolute", None, "curve", clamp=False, off_diagonal=None, drop_uncertain=False),
        warmup_steps=task.warmup_steps,
        num_seeds=len(seeds),
        seed=seeds[0],
        segment_at=",.:",
        answer_after="= ",
        ordered=task.order == "chain",
        batch_size=BATCH_SIZE,
        lr=LEARNING_RATE,
        eval_every=task.eval_every,
        eval_samples=EVAL_SAMPLES,
        samples=8000,
        for_steps=task.steps,
        runs=runs,
        where=Where(workers=1),
    )


def graph_unit(name: str, seed: int, work: str) -> dict[str, Any]:
    """One graph; a record with its edges and cost."""
    task, folder = TASKS[name], Path(work) / f"{name.replace(' ', '-')}-{seed}"
    graph = learn(task, [seed], prepare(task, seed, folder), folder / "graph.json", folder / "graph.runs")
    return {"edges": graph.edges, "num_steps": graph.learned.num_steps, "num_samples": graph.learned.num_samples}


def train_unit(name: str, seed: int, method: str, work: str) -> dict[str, Any]:
    """One training; mean losses at every evaluation."""
    import torch
    from torch.utils.data import DataLoader

    from skillshard.mixing.mixer import Mixer
    from skillshard.proxy.run import model_for, reading_for
    from skillshard.proxy.train import evaluate, seeded_model, train
    from skillshard.shards.read import ShardSet
    from skillshard.torch import MixedDataset

    torch.set_num_threads(1)
    task, folder = TASKS[name], Path(work) / f"{name.replace(' ', '-')}-{seed}"
    shards = ShardSet.open(folder / "shards")
    ledger = folder / "runs" / method
    if ledger.exists():
        import shutil

        shutil.rmtree(ledger)  # of a training that was killed
    mixer = Mixer(
        shards,
        policy(task, method, folder),
        ledger=ledger,
        round_draws=task.steps // ROUNDS * BATCH_SIZE,
        seed=seed,
        lag=0,
        step_draws=BATCH_SIZE,
    )
    texts = {skill: [sample.text for sample in islice(found, EVAL_SAMPLES)] for skill, found in shards.holdout.items()}
    reading = reading_for(
        "tiny", [text for found in texts.values() for text in found], window=128, segment_at=",.:", answer_after="= "
    )
    shape = model_for("tiny", reading, ordered=task.order == "chain")
    assert not isinstance(shape, str)
    model, holdout = seeded_model(shape, seed=seed), {skill: reading.encode(found) for skill, found in texts.items()}
    losses: list[dict[str, float]] = []

    def measure(step: int) -> None:
        losses.append({skill: found.loss for skill, found in evaluate(model, holdout).items()})
        mixer.report(step, losses[-1])

    batches = (reading.encode(batch["text"]) for batch in DataLoader(MixedDataset(mixer), batch_size=BATCH_SIZE))
    train(model, batches, steps=task.steps, lr=LEARNING_RATE, eval_every=task.eval_every, on_eval=measure)
    accuracy = statistics.mean(found.accuracy for found in evaluate(model, holdout).values())
    weights = [mixer.round(number).weights for number in range(ROUNDS)]
    return {"losses": losses, "accuracy": accuracy, "weights": weights}


def policy(task: Task, method: str, folder: Path) -> Any:
    from skillshard.graph.derive import derive_again
    from skillshard.graph.edges import EdgeRule
    from skillshard.graph.skill_graph import SkillGraph, read_graph
    from skillshard.policies import skill_it, stratified
    from skillshard.synthetic.lego import skill_names

    if method == "stratified":
        return stratified()
    names = skill_names(task.k)
    graph = SkillGraph.identity(names) if method == "identity" else SkillGraph.chain(names)
    if method == "learned":
        rule = EdgeRule("absolute", None, "curve", clamp=True, off_diagonal=0.5, drop_uncertain=False)
        found = derive_again(read_graph(folder / "graph.json"), rule=rule, name="graph.json")
        graph = SkillGraph(found.train_skills, found.eval_skills, found.edges)
    return skill_it(graph, eta=0.5, window=3)


def run_all(names: Sequence[str], seeds: Sequence[int], methods: Sequence[str], work: Path, workers: int) -> None:
    """Graphs, then trainings; what is done already is not done again."""
    from skillshard.execution import Unit, Where, run

    def key(*parts: Any) -> str:
        return "-".join(str(part).replace(" ", "-").replace("=", "") for part in parts)

    where = Where(workers=workers)
    pairs = [(name, seed) for name in names for seed in seeds]
    graphs = [Unit(key("graph", *pair), {"name": pair[0], "seed": pair[1], "work": str(work)}) for pair in pairs]
    run(
        graph_unit,
        graphs,
        where=where,
        records=str(work / "records"),
        on_done=lambda unit, record: print(unit.key, flush=True),
    )
    trainings = [
        Unit(key("train", *pair, method), {"name": pair[0], "seed": pair[1], "method": method, "work": str(work)})
        for pair in pairs
        for method in methods
    ]
    run(
        train_unit,
        trainings,
        where=where,
        records=str(work / "records"),
        on_done=lambda unit, record: print(unit.key, flush=True),
    )


def summary(name: str, seeds: Sequence[int], work: Path) -> dict[str, Any]:
    """Graphs and trainings of one task in numbers."""
    task, short = TASKS[name], name.replace(" ", "-").replace("=", "")
    graphs = {seed: json.loads((work / "records" / f"graph-{short}-{seed}.json").read_text()) for seed in seeds}
    edges = {seed: np.array(record["edges"]) for seed, record in graphs.items()}
    cost = {"steps": graphs[seeds[0]]["num_steps"], "samples": graphs[seeds[0]]["num_samples"]}
    told: dict[str, Any] = {
        "task": vars(task),
        "graph_cost": cost | {"share_of_a_training": round(cost["samples"] / (task.steps * BATCH_SIZE), 2)},
        "forward_share": {seed: round(forward_share(found), 3) for seed, found in edges.items()},
        "mean_edges": np.mean(list(edges.values()), axis=0).round(3).tolist(),
        "standard_errors": (np.std(list(edges.values()), axis=0, ddof=1) / math.sqrt(len(seeds))).round(3).tolist(),
    }
    for method in METHODS:
        places = [work / "records" / f"train-{short}-{seed}-{method}.json" for seed in seeds]
        if all(place.exists() for place in places):
            told[method] = [_measures(json.loads(place.read_text()), task) for place in places]
    return told


def forward_share(edges: np.ndarray) -> float:
    """Of the positive edges between skills, by weight, the share that goes from an earlier to a later skill of the chain."""
    positive = np.maximum(edges, 0) * ~np.eye(len(edges), dtype=bool)
    return float(np.triu(positive).sum() / positive.sum()) if positive.sum() > 0 else math.nan


def _measures(record: dict[str, Any], task: Task) -> dict[str, Any]:
    means = [statistics.mean(losses.values()) for losses in record["losses"]]
    reached = next((at for at, mean in enumerate(means, start=1) if mean < TARGET_LOSS), None)
    return {
        "steps_to_target": None if reached is None else reached * task.eval_every,
        "area": round(statistics.mean(means), 4),
        "final_loss": round(means[-1], 4),
        "accuracy": round(record["accuracy"], 4),
    }


def print_summary(name: str, told: dict[str, Any], seeds: Sequence[int]) -> None:
    cost = told["graph_cost"]
    print(
        f"\n{name}: one graph costs {cost['steps']:,} steps, {cost['samples']:,} samples, {cost['share_of_a_training']:.2f} of a training"
    )
    print(f"edges, mean of {len(seeds)} graphs (nats):")
    for row, errors in zip(told["mean_edges"], told["standard_errors"], strict=True):
        print("   ", "  ".join(f"{edge:+.3f} ±{error:.3f}" for edge, error in zip(row, errors, strict=True)))
    print("forward share of the positive edges between skills:", told["forward_share"])
    print(
        f"{'method':12}{'steps to 0.05, by seed':34}{'mean':>6}{'area under the curve, by seed':>34}{'mean':>8}{'final':>8}{'acc.':>7}"
    )
    for method in (method for method in METHODS if method in told):
        rows = told[method]
        steps = [row["steps_to_target"] for row in rows]
        mean = "-" if None in steps else f"{statistics.mean(steps):.0f}"
        areas = [row["area"] for row in rows]
        print(
            f"{method:12}{' '.join(str(step or 'never') for step in steps):34}{mean:>6}{' '.join(f'{area:.3f}' for area in areas):>34}"
            f"{statistics.mean(areas):>8.4f}{statistics.mean(row['final_loss'] for row in rows):>8.4f}"
            f"{statistics.mean(row['accuracy'] for row in rows):>7.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the table")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        run_all(arguments.tasks, arguments.seeds, arguments.methods, arguments.work, arguments.workers)
    found = {name: summary(name, arguments.seeds, arguments.work) for name in arguments.tasks}
    for name, told in found.items():
        print_summary(name, told, arguments.seeds)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps({"machine": machine(), "seeds": arguments.seeds, "tasks": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
