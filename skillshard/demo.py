"""The demo: the whole way from a generated corpus to three trainings that differ in nothing but their weights.

    OUT/corpus  OUT/tags  OUT/shards    LEGO, tagged by metadata, sharded
    OUT/runs/METHOD/                    one ledger each
    OUT/runs/METHOD.json                final losses, accuracies, steps to the target
    OUT/demo.png                        the curves

The settings are the paper's where they can be (shuffled LEGO, proportions 1:1:3:5, six rounds, eta 0.5, window 3 counted in
evaluations as in the authors' code); the model is a small one from scratch instead of GPT-Neo 125M.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from skillshard import artefact, storage, taggers
from skillshard.corpus import Corpus
from skillshard.errors import StorageError
from skillshard.execution import Record, Unit, Where, num_cpus
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.policies import Policy, proportional, skill_it, stratified
from skillshard.proxy.model import ProxyShape
from skillshard.proxy.train import TokenBatch, answer_batch, evaluate, seeded_model, train
from skillshard.report.figures import draw_runs, history
from skillshard.report.text import print_table
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards
from skillshard.synthetic.lego import skill_names, write_lego
from skillshard.synthetic.lego_tokens import SLOTS, VOCAB, encode_lego
from skillshard.torch import MixedDataset

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
ROUNDS = 6
EVAL_EVERY = 50
EVAL_SAMPLES = 200
TARGET_LOSS = 0.05

OnStage = Callable[[str, int], Callable[[Unit, Record], None]]
OnStep = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True)
class MethodResult:
    """One training.

    Attributes:
        losses: skill -> nats per answer token on the holdout, at the end.
        accuracies: skill -> share of right answers on the holdout, at the end.
        steps_to_target: steps at the first evaluation with mean loss below `TARGET_LOSS`; None: never.
        cpu_s: CPU-seconds of the process, evaluations included.
    """

    method: str
    losses: dict[str, float]
    accuracies: dict[str, float]
    steps_to_target: int | None
    cpu_s: float

    @property
    def mean_loss(self) -> float:
        return sum(self.losses.values()) / len(self.losses)

    @property
    def mean_accuracy(self) -> float:
        return sum(self.accuracies.values()) / len(self.accuracies)


def run_demo(
    out: str | os.PathLike[str],
    *,
    k: int = 4,
    num_samples: int = 200_000,
    steps: int = 3000,
    seed: int = 0,
    on_stage: OnStage,
    on_step: OnStep,
) -> list[MethodResult]:
    """Generate, tag, shard, train three times, draw; what is done already is not done again.

    Args:
        out: local directory.
        k: variables in a chain, the number of skills.
        num_samples: size of the corpus, in natural proportions.
        steps: optimizer steps of each training, batches of `BATCH_SIZE`.
        seed: of corpus, model and stream. The three trainings share it.
        on_stage, on_step: progress.
    """
    folder = Path(out)
    _join(folder, {"k": k, "num_samples": num_samples, "steps": steps, "seed": seed})
    shards = prepare(folder, k=k, num_samples=num_samples, seed=seed, on_stage=on_stage)
    methods: dict[str, Policy] = {
        "natural": proportional(),
        "stratified": stratified(),
        "skill-it": skill_it(SkillGraph.chain(skill_names(k)), eta=0.5, window=3),
    }
    results = []
    for method, policy in methods.items():
        place = folder / "runs" / f"{method}.json"
        if place.exists():
            results.append(MethodResult(**storage.read_json(place)))
            continue
        result = _train(shards, policy, method, folder, k=k, steps=steps, seed=seed, on_done=on_step(method, steps))
        storage.write_bytes(place, storage.to_json(asdict(result)))
        results.append(result)
    draw_runs(
        {method: history(DirectoryLedger(folder / "runs" / method)) for method in methods},
        folder / "demo.png",
        title=f"LEGO, k={k}, shuffled clauses, one seed ({seed})",
    )
    return results


def _join(folder: Path, arguments: dict[str, int]) -> None:
    """Begin a demo in `folder`, or go on with the same one; StorageError if it holds anything else."""
    place = folder / "demo.json"
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if place.exists():
        changed = artefact.differences(storage.read_json(place), arguments)
        if changed:
            raise StorageError(
                f"{folder} holds a demo with other arguments ({'; '.join(changed)}). Choose another --out."
            )
    elif there:
        raise StorageError(f"{folder} is not empty ({', '.join(there[:3])}). Choose another --out.")
    else:
        storage.write_bytes(place, storage.to_json(arguments))


def prepare(folder: Path, *, k: int, num_samples: int, seed: int, on_stage: OnStage) -> ShardSet:
    """The demo's shards: generate, tag, shard."""
    if not (folder / "corpus").exists():
        shutil.rmtree(folder / ".corpus", ignore_errors=True)
        write_lego(folder / ".corpus", k=k, num_samples=num_samples, seed=seed)
        (folder / ".corpus").rename(folder / "corpus")
    corpus = Corpus.open(folder / "corpus")
    tags = taggers.tag_corpus(corpus, taggers.metadata("meta.skill"), folder / "tags", where=Where(), on_stage=on_stage)
    holdout = max(0.02, 20 * EVAL_SAMPLES / num_samples)
    write_shards(corpus, tags, folder / "shards", shard_bytes=32_000_000, holdout=holdout, on_stage=on_stage)
    return ShardSet.open(folder / "shards")


def _train(
    shards: ShardSet,
    policy: Policy,
    method: str,
    folder: Path,
    *,
    k: int,
    steps: int,
    seed: int,
    on_done: Callable[[], None],
) -> MethodResult:
    torch.set_num_threads(min(2, num_cpus()))
    started = time.process_time()
    mixer = Mixer(
        shards,
        policy,
        ledger=folder / "runs" / method,
        round_draws=-(-steps // ROUNDS) * BATCH_SIZE,
        seed=seed,
        lag=0,
        step_draws=BATCH_SIZE,
    )
    if mixer.ledger.names("observations"):
        mixer.load_state_dict(mixer.state_dict(step=0))
    shape = ProxyShape(
        vocab=VOCAB, positions=k + 1, slots=SLOTS, layers=4, dim=64, heads=4, shift=min(2, k), prefix=k + 1
    )
    model = seeded_model(shape, seed=seed)
    holdout = {
        skill: _encoded([sample.text for sample in islice(samples, EVAL_SAMPLES)], k)
        for skill, samples in shards.holdout.items()
    }
    reached: list[int] = []

    def measure(step: int) -> None:
        losses = {skill: found.loss for skill, found in evaluate(model, holdout).items()}
        mixer.report(step, losses)
        if sum(losses.values()) / len(losses) < TARGET_LOSS:
            reached.append(step)

    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH_SIZE)
    train(model, _counted(loader, k, on_done), steps=steps, lr=LEARNING_RATE, eval_every=EVAL_EVERY, on_eval=measure)
    final = evaluate(model, holdout)
    return MethodResult(
        method,
        {skill: found.loss for skill, found in final.items()},
        {skill: found.accuracy for skill, found in final.items()},
        reached[0] if reached else None,
        time.process_time() - started,
    )


def _counted(loader: Iterable[Any], k: int, on_done: Callable[[], None]) -> Iterator[TokenBatch]:
    for batch in loader:
        yield _encoded(batch["text"], k)
        on_done()


def _encoded(texts: list[str], k: int) -> TokenBatch:
    return answer_batch(*encode_lego(texts, k))


def show_results(results: Sequence[MethodResult]) -> None:
    """Print a column per method: loss and accuracy of each skill, their means, steps to the target loss, CPU-seconds."""
    rows = [
        (skill, *(f"{result.losses[skill]:.4f} / {result.accuracies[skill]:.2f}" for result in results))
        for skill in results[0].losses
    ]
    rows.append(("mean", *(f"{result.mean_loss:.4f} / {result.mean_accuracy:.2f}" for result in results)))
    reached = (f"{result.steps_to_target:,}" if result.steps_to_target else "never" for result in results)
    rows.append((f"steps to mean loss {TARGET_LOSS}", *reached))
    rows.append(("CPU-seconds", *(f"{result.cpu_s:.0f}" for result in results)))
    print_table(("holdout loss (nats) / accuracy", *(result.method for result in results)), rows)


def summary(results: list[MethodResult], out: Path, *, steps: int) -> str:
    """What the run showed, what it did not, where things are and what to do next."""
    reached = {result.method: result.steps_to_target for result in results}
    said = ", ".join(f"{name} {at:,}" if at else f"{name} never (in {steps:,})" for name, at in reached.items())
    live, fixed = reached["skill-it"] or steps + 1, reached["stratified"] or steps + 1
    order = "sooner than" if live < fixed else "later than" if live > fixed else "as soon as"
    return "\n".join(
        (
            f"Shown: steps to mean loss {TARGET_LOSS} on this seed: {said}. SKILL-IT got there {order} stratified. Its weights were "
            f"decided {ROUNDS} times, from the losses that the trainer reported; every decision is in the ledger.",
            "Not shown: that SKILL-IT beats stratified. One seed of one small task cannot tell; docs/LOG.md has more seeds, where "
            "either comes out ahead.",
            f"Kept: {out}/shards, {out}/runs (the ledgers), {out}/demo.png (the curves).",
            f"Next: skillshard inspect {out}/runs/skill-it; skillshard verify {out}/shards; and your own corpus: "
            "skillshard tag CORPUS --by metadata --field FIELD --out TAGS.",
        )
    )
