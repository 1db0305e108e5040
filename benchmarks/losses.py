"""Measure what the losses of a run cost, and which policies may read the losses of the training batches.

    python -m benchmarks.losses compare --work /tmp/losses --seeds 0 1 2 --out benchmarks/results/losses.json
    python -m benchmarks.losses overhead --out benchmarks/results/eval-overhead.json

`compare` trains the small proxy on tasks of the evidence (`evidence/settings.py`) twice with each policy: with losses of held-out samples, and
with the losses of the batches between two reports. Both trainings of a pair have the same shards, first model, stream within each skill and
steps of reports. A second call continues the first one.

`overhead` trains a proxy on generated skills and measures the share of the CPU time that reports take: with a fixed number of samples of each
skill, with `EvalBudget(0.05)`, and with training losses.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.evidence.settings import SETTINGS, Setting
from benchmarks.evidence.training import place_of, prepare_task, slug
from benchmarks.mixers import machine

if TYPE_CHECKING:
    from torch import nn

    from skillshard.batch_losses import BatchLosses
    from skillshard.policies.policy import Policy
    from skillshard.proxy.train import TokenBatch

TASKS = ("shuffled LEGO k=3", "ordered LEGO k=5")
POLICIES = ("stratified", "chain", "identity", "odm", "ado", "softmax loss")
SOURCES = ("holdout", "training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("compare", "overhead"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/losses"), help="folder of shards and records")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--skills", type=int, nargs="+", default=[9, 27, 500])
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the results")
    arguments = parser.parse_args()
    load = [os.getloadavg()[0]]
    if arguments.verb == "compare":
        results = compare(arguments.settings, arguments.policies, arguments.seeds, arguments.work)
    else:
        results = overhead(arguments.skills)
    if arguments.out is not None:
        load.append(os.getloadavg()[0])  # the means of the minutes before the beginning and before the end
        arguments.out.write_text(json.dumps({"machine": machine(), "load": load, **results}, indent=1) + "\n")


# --- which policies may read training losses ---------------------------------------------------------------------------


def compare(settings: list[str], policies: list[str], seeds: list[int], work: Path) -> dict[str, Any]:
    """Train every pair of trainings, and print for each policy the mean loss with both kinds of losses."""
    rows = []
    for name in settings:
        for seed in seeds:
            prepare_task(name, seed, str(work), None, {})
            for policy in policies:
                for source in SOURCES if policy != "stratified" else SOURCES[1:]:
                    rows.append(_kept(name, seed, policy, source, work))
    _print_comparison(rows)
    return {"trainings": rows}


def _kept(name: str, seed: int, policy: str, source: str, work: Path) -> dict[str, Any]:
    """Return the record of a training, from the folder or from a new training."""
    place = work / "records" / f"{slug(name)}-{seed}-{policy.replace(' ', '-')}-{source}.json"
    if not place.exists():
        record = {"setting": name, "seed": seed, "policy": policy, "source": source}
        record |= _trained(SETTINGS[name], name, seed, policy, source, work)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(record))
        print(f"{place.stem}: mean loss {record['area']:.4f}, last {record['last']:.4f}", flush=True)
    result: dict[str, Any] = json.loads(place.read_text())
    return result


def _trained(setting: Setting, name: str, seed: int, policy: str, source: str, work: Path) -> dict[str, Any]:
    import shutil

    import torch
    from torch.utils.data import DataLoader

    from benchmarks.evidence.training import training_of
    from skillshard.batch_losses import BatchLosses
    from skillshard.comparison.training import holdout_of
    from skillshard.mixing.mixer import Mixer
    from skillshard.proxy.train import evaluate, train
    from skillshard.proxy.trial import new_model
    from skillshard.shards.read import ShardSet
    from skillshard.torch import MixedDataset

    torch.set_num_threads(1)
    folder = place_of(work, name, seed)
    ledger = folder / "runs" / f"{policy.replace(' ', '-')}-{source}"
    shutil.rmtree(ledger, ignore_errors=True)
    shards, training = ShardSet.open(folder / "shards"), training_of(setting, folder, "cpu")
    mixer = Mixer(
        shards,
        _policy(setting, policy, shards.skills),
        ledger=ledger,
        round_draws=setting.round_steps * setting.batch_size,
        seed=seed,
        lag=0,
        step_draws=setting.batch_size,
        initial_losses=False,
        loss=training.kind,
        measured_on="training" if source == "training" else "holdout",
    )
    model, holdout = new_model(training.recipe, seed=seed), holdout_of(training)
    collected = BatchLosses(mixer)
    numbers = {skill: number for number, skill in enumerate(mixer.skills)}

    def batches() -> "Iterator[TokenBatch]":
        for batch in DataLoader(MixedDataset(mixer), batch_size=setting.batch_size):
            encoded = training.reading.encode(batch["text"])
            watched.now = (torch.tensor([numbers[skill] for skill in batch["skill"]]), torch.tensor(encoded.targets))
            yield encoded

    watched = _Watched(model, collected)
    held_out: list[dict[str, float]] = []
    in_batches: list[dict[str, float]] = []
    started, evaluating_s = time.process_time(), 0.0

    def measure(step: int) -> None:
        nonlocal evaluating_s
        before = time.process_time()
        losses = {skill: measured.loss for skill, measured in evaluate(model, holdout).items()}
        evaluating_s += time.process_time() - before
        of_batches = collected.take()
        held_out.append(losses)
        in_batches.append({skill: loss.mean for skill, loss in of_batches.items()})
        mixer.report(step, of_batches if source == "training" else losses)

    train(model, batches(), steps=setting.steps, lr=setting.lr, eval_every=setting.eval_every, on_eval=measure)
    means = [statistics.mean(row.values()) for row in held_out]
    # A skill without a sample between two reports has no training loss there.
    pairs = [(row[skill], other[skill]) for row, other in zip(held_out, in_batches, strict=True) for skill in other]
    return {
        "area": statistics.mean(means),
        "last": means[-1],
        "held_out": held_out,
        "in_batches": in_batches,
        "weights": [mixer.round(number).weights for number in range(setting.steps // setting.round_steps)],
        "difference": float(np.mean([abs(of_holdout - of_batch) for of_holdout, of_batch in pairs])),
        "bias": float(np.mean([of_batch - of_holdout for of_holdout, of_batch in pairs])),
        "rank_correlation": _rank_correlation(held_out, in_batches, mixer.skills),
        "cpu_s": time.process_time() - started,
        "evaluation_cpu_s": evaluating_s,
        "hook_cpu_s": watched.cpu_s,
    }


class _Watched:
    """A hook that collects the losses of the training batches of a proxy. `now` holds the skills and the targets of the batch."""

    def __init__(self, model: "nn.Module", losses: "BatchLosses") -> None:
        self.losses, self.cpu_s = losses, 0.0
        self.now: Any = None
        model.register_forward_hook(self._after)

    def _after(self, model: "nn.Module", arguments: Any, logits: Any) -> None:
        if not model.training:
            return
        from torch.nn import functional as F

        before = time.process_time()
        skill, targets = self.now
        nats = F.cross_entropy(logits.detach().transpose(1, 2), targets, ignore_index=-100, reduction="none")
        self.losses.add(skill, targets, token_losses=nats)
        self.cpu_s += time.process_time() - before


def _policy(setting: Setting, policy: str, skills: tuple[str, ...]) -> "Policy":
    from benchmarks.evidence.methods import true_graph
    from skillshard import policies
    from skillshard.graph.skill_graph import SkillGraph

    if policy == "chain":
        return policies.skill_it(true_graph(setting, "chain", skills), eta=setting.eta)
    return {
        "stratified": lambda: policies.stratified(),
        "identity": lambda: policies.skill_it(SkillGraph.identity(skills), eta=setting.eta),
        "odm": lambda: policies.odm(warmup_steps=setting.eval_every),
        "ado": lambda: policies.ado(
            warmup_steps=setting.eval_every, refit_steps=setting.round_steps, least_log_loss=-9.0
        ),
        "softmax loss": lambda: policies.softmax_loss(temperature=1.0),
    }[policy]()


def _rank_correlation(held_out: Any, in_batches: Any, skills: tuple[str, ...]) -> float:
    """Return the mean over reports of the rank correlation between the losses of the skills by the two measurements."""
    correlations = []
    for row, other in zip(held_out, in_batches, strict=True):
        common = [skill for skill in skills if skill in row and skill in other]
        if len(common) > 2:
            ranks = [np.argsort(np.argsort([losses[skill] for skill in common])) for losses in (row, other)]
            correlations.append(float(np.corrcoef(*ranks)[0, 1]))
    return float(np.mean(correlations))


def _print_comparison(rows: list[dict[str, Any]]) -> None:
    for name in dict.fromkeys(row["setting"] for row in rows):
        print(
            f"\n{name}\n{'policy':14} {'held-out losses':>16} {'training losses':>16} {'lower':>8} {'bias':>7} {'ranks':>6}"
        )
        for policy in dict.fromkeys(row["policy"] for row in rows):
            by = {
                source: {
                    row["seed"]: row
                    for row in rows
                    if (row["setting"], row["policy"], row["source"]) == (name, policy, source)
                }
                for source in SOURCES
            }
            seeds = sorted(set(by["holdout"]) & set(by["training"]))
            own = list(by["training"].values())
            if not own:
                continue
            areas = [f"{_mean(by[source]):16.4f}" if by[source] else " " * 16 for source in SOURCES]
            lower = sum(by["training"][seed]["area"] < by["holdout"][seed]["area"] for seed in seeds)
            bias = statistics.mean(row["bias"] for row in own)
            ranks = statistics.mean(row["rank_correlation"] for row in own)
            print(f"{policy:14} {areas[0]} {areas[1]} {f'{lower} of {len(seeds)}':>8} {bias:7.3f} {ranks:6.2f}")


def _mean(rows: dict[int, dict[str, Any]]) -> float:
    return statistics.mean(row["area"] for row in rows.values())


# --- what reports cost -------------------------------------------------------------------------------------------------

EVERY_STEPS, BATCH, REPORTS, TEXT_BYTES = 100, 32, 4, 64


def overhead(numbers: list[int]) -> dict[str, Any]:
    """Train a proxy on texts of many skills, and print the share of the CPU time that reports take."""
    rows = []
    print(f"{'skills':>6} {'reports':28} {'samples of a skill':>18} {'share of the time':>18} {'standard error':>15}")
    for num_skills in numbers:
        for way in ("64 samples", "EvalBudget(0.05)", "training losses"):
            rows.append(_overhead(num_skills, way))
            row = rows[-1]
            print(
                f"{num_skills:6} {way:28} {row['num_samples']:18.1f} {row['share']:17.1%} {row['standard_error']:15.4f}",
                flush=True,
            )
    return {"every_steps": EVERY_STEPS, "batch_size": BATCH, "overhead": rows}


def _overhead(num_skills: int, way: str) -> dict[str, Any]:
    """Measure the reports of one training. Only the second half of the reports counts, because a budget needs two to settle."""
    import torch

    from skillshard.batch_losses import BatchLosses
    from skillshard.corpus import Sample
    from skillshard.evaluation import EvalBudget, losses_per_skill
    from skillshard.loss import LossKind
    from skillshard.proxy.model import ProxyShape
    from skillshard.proxy.train import _tensors, adamw, seeded_model, text_batch, train_step

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    names = tuple(f"skill-{number:03d}" for number in range(num_skills))
    holdout = {
        name: [Sample(str(row), bytes(rng.integers(97, 123, TEXT_BYTES, np.uint8)).decode(), {}) for row in range(64)]
        for name in names
    }

    class Run:
        skills, loss = names, LossKind()

    model = seeded_model(ProxyShape(vocab=256, positions=TEXT_BYTES, layers=1, dim=32, heads=2), seed=0)
    optimizer, collected = adamw(model), BatchLosses(Run())
    watched = _Watched(model, collected) if way == "training losses" else None

    def encoded(texts: list[str]) -> "TokenBatch":
        return text_batch(np.array([list(text.encode()) for text in texts], np.int64))

    def nats_and_tokens(texts: list[str]) -> Any:
        model.eval()
        tokens, targets = _tensors(encoded(texts), model)
        with torch.inference_mode():
            nats = torch.nn.functional.cross_entropy(model(tokens).transpose(1, 2), targets, reduction="none")
        model.train()
        return nats.sum(1), (targets >= 0).sum(1)

    budget = EvalBudget(0.05, max_samples=64, clock=time.process_time)
    reporting_s, training_s, losses = [], [], {}
    for report in range(REPORTS + 1):
        before = time.process_time()
        if watched is not None:
            losses = collected.take() if report else {}
        else:
            samples = 64 if way == "64 samples" else budget
            losses = losses_per_skill(nats_and_tokens, holdout, max_samples=samples, batch_size=32)
        reporting_s.append(time.process_time() - before)
        before, hooked = time.process_time(), watched.cpu_s if watched else 0.0
        for _ in range(EVERY_STEPS if report < REPORTS else 0):
            skill = rng.integers(0, num_skills, BATCH)
            batch = encoded([holdout[names[number]][0].text for number in skill])
            if watched is not None:
                watched.now = (torch.from_numpy(skill), torch.from_numpy(batch.targets))
            train_step(model, optimizer, batch, lr=1e-3)
        took = watched.cpu_s - hooked if watched else 0.0  # the hook is a part of the cost of a report
        reporting_s[-1] += took
        training_s.append(time.process_time() - before - took)
    # The report of the last steps has no steps after it, and the first two reports have no settled number of samples.
    counted = slice(2, REPORTS)
    spent, trained = sum(reporting_s[counted]), sum(training_s[counted])
    errors = [loss.standard_error for loss in losses.values() if np.isfinite(loss.standard_error)]
    return {
        "skills": num_skills,
        "reports": way,
        "num_samples": statistics.mean(loss.num_samples for loss in losses.values()),
        "share": spent / (spent + trained),
        "standard_error": statistics.mean(errors) if errors else float("nan"),
        "training_cpu_s": trained / (REPORTS - 2),
    }


if __name__ == "__main__":
    main()
