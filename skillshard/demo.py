"""The demo: the whole way from a generated corpus to three trainings that differ in nothing but their weights.

    OUT/corpus  OUT/tags  OUT/shards    LEGO, tagged by metadata, sharded
    OUT/runs/METHOD/                    one ledger each
    OUT/results/METHOD.json             final losses, accuracies, steps to the target
    OUT/demo.png                        the curves

The settings are the paper's where they can be (shuffled LEGO, proportions 1:1:3:5, six rounds, eta 0.5, window 3 counted in
evaluations as in the authors' code); the model is a small one from scratch instead of GPT-Neo 125M.
"""

from skillshard.extras import needed

needed("proxy", "plots", what="skillshard demo")  # before the imports that fail without the extra

import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from skillshard import artefact, canonical, progress, storage, taggers
from skillshard.corpus import Corpus
from skillshard.errors import StorageError
from skillshard.execution import OnStage, Record, Unit, Where, run
from skillshard.graph.skill_graph import SkillGraph
from skillshard.loss import LossKind
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
EVALS_PER_ROUND = 10
EVAL_SAMPLES = 200
TARGET_LOSS = 0.05

METHODS = ("natural", "stratified", "skill-it")

Working = Callable[[str], AbstractContextManager[None]]


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
    working: Working,
) -> list[MethodResult]:
    """Generate, tag, shard, train three times, draw; what is done already is not done again.

    Args:
        out: local directory.
        k: variables in a chain, the number of skills.
        num_samples: size of the corpus, in natural proportions.
        steps: optimizer steps of each training, batches of `BATCH_SIZE`.
        seed: of corpus, model and stream. The three trainings share it.
        on_stage: called with a stage's name and number of units; what it returns is called for each finished unit.
        working: a context for a piece of work without units, given its name.
    """
    folder = Path(out)
    _join(folder, {"k": k, "num_samples": num_samples, "steps": steps, "seed": seed})
    prepare(folder, k=k, num_samples=num_samples, seed=seed, on_stage=on_stage, working=working)
    runs = folder / "runs"
    common = {"folder": str(folder), "k": k, "steps": steps, "seed": seed}
    units = [Unit(method, {"method": method, **common}) for method in METHODS]
    records = run(
        train_method,
        units,
        where=Where(),
        records=str(folder / "results"),
        on_done=on_stage("training", len(units)),
    )
    draw_runs(
        {method: history(DirectoryLedger(runs / method)) for method in METHODS},
        folder / "demo.png",
        title=f"LEGO, k={k}, shuffled clauses, one seed ({seed})",
    )
    return [MethodResult(**record) for record in records]


def _join(folder: Path, arguments: dict[str, int]) -> None:
    """Begin a demo in `folder`, or go on with the same one; StorageError if it holds anything else."""
    place = folder / "demo.json"
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if place.exists():
        changed = artefact.differences(storage.read_json(place), arguments)
        if changed and not (folder / "corpus").exists():  # nothing was finished: begin anew
            storage.write_bytes(place, canonical.to_json(arguments))
        elif changed:
            raise StorageError(
                f"{folder} holds a demo with other arguments ({'; '.join(changed)}). Choose another `out`."
            )
    elif there:
        raise StorageError(f"{folder} is not empty ({', '.join(there[:3])}). Choose another `out`.")
    else:
        storage.write_bytes(place, canonical.to_json(arguments))


def _unwatched(what: str) -> AbstractContextManager[None]:
    """Show nothing of a work whose length is not known."""
    return nullcontext()


def prepare(
    folder: Path, *, k: int, num_samples: int, seed: int, on_stage: OnStage, working: Working = _unwatched
) -> None:
    """The demo's shards: generate, tag, shard."""
    if not (folder / "corpus").exists():
        shutil.rmtree(folder / ".corpus", ignore_errors=True)
        with working("generating"):
            write_lego(folder / ".corpus", k=k, num_samples=num_samples, seed=seed)
        (folder / ".corpus").rename(folder / "corpus")
    corpus = Corpus.open(folder / "corpus")
    tags = taggers.tag_corpus(corpus, taggers.metadata("meta.skill"), folder / "tags", where=Where(), on_stage=on_stage)
    # Enough for EVAL_SAMPLES of each skill; half of a small corpus at most, so that there is something to train on.
    holdout = min(0.5, max(0.02, 20 * EVAL_SAMPLES / num_samples))
    write_shards(corpus, tags, folder / "shards", shard_bytes=32_000_000, holdout=holdout, on_stage=on_stage)


def train_method(method: str, folder: str, k: int, steps: int, seed: int) -> Record:
    """One training, with one thread: two of them side by side use two cores better than one with two threads."""
    torch.set_num_threads(1)
    eval_every = evaluation_interval(steps)
    started = time.process_time()
    shards = ShardSet.open(Path(folder) / "shards")
    mixer = Mixer(
        shards,
        _policy(method, k),
        ledger=Path(folder) / "runs" / method,
        round_draws=eval_every * EVALS_PER_ROUND * BATCH_SIZE,
        seed=seed,
        lag=0,
        step_draws=BATCH_SIZE,
        initial_losses=False,  # the published numbers were made so
        loss=LossKind(answer_after="= "),
    )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a training that was killed begins again
        mixer.restart()
    shape = ProxyShape(vocab=VOCAB, positions=k + 1, slots=SLOTS, layers=4, prefix=k + 1, ordered=False)
    model = seeded_model(shape, seed=seed)
    holdout = {
        skill: _encoded([sample.text for sample in islice(samples, EVAL_SAMPLES)], k)
        for skill, samples in shards.holdout.items()
    }
    reached: list[int] = []

    def measure(step: int) -> None:
        progress.advance(step, steps)
        losses = {skill: found.loss for skill, found in evaluate(model, holdout).items()}
        mixer.report(step, losses)
        if sum(losses.values()) / len(losses) < TARGET_LOSS:
            reached.append(step)

    batches = (_encoded(batch["text"], k) for batch in DataLoader(MixedDataset(mixer), batch_size=BATCH_SIZE))
    train(model, batches, steps=steps, lr=LEARNING_RATE, eval_every=eval_every, on_eval=measure)
    final = evaluate(model, holdout)
    result = MethodResult(
        method,
        {skill: found.loss for skill, found in final.items()},
        {skill: found.accuracy for skill, found in final.items()},
        reached[0] if reached else None,
        time.process_time() - started,
    )
    return asdict(result)


def evaluation_interval(steps: int) -> int:
    """Steps between two evaluations: `EVALS_PER_ROUND` fill a round exactly, and `ROUNDS` rounds hold all steps.

    >>> evaluation_interval(3000), evaluation_interval(61)
    (50, 2)
    """
    return -(-steps // (ROUNDS * EVALS_PER_ROUND))


def _policy(method: str, k: int) -> Policy:
    if method == "skill-it":
        return skill_it(SkillGraph.chain(skill_names(k)), eta=0.5, window=3)
    return stratified() if method == "stratified" else proportional()


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
    steps_of_each = ", ".join(
        f"{name} {step:,}" if step else f"{name} never (in {steps:,})" for name, step in reached.items()
    )
    live, fixed = reached["skill-it"] or steps + 1, reached["stratified"] or steps + 1
    if live == fixed == steps + 1:
        comparison = "Neither SKILL-IT nor stratified got there: give more `steps`."
    else:
        order = "sooner than" if live < fixed else "later than" if live > fixed else "as soon as"
        comparison = f"SKILL-IT got there {order} stratified."
    return "\n".join(
        (
            f"Shown: steps to mean loss {TARGET_LOSS} on this seed: {steps_of_each}. {comparison} The weights of SKILL-IT were "
            f"decided {ROUNDS} times, from the losses that the trainer reported; every decision is in the ledger.",
            "Not shown: that SKILL-IT beats stratified. One seed of one small task cannot tell; docs/LOG.md has more seeds, where "
            "either comes out ahead.",
            f"Kept: {out}/shards, {out}/runs (the ledgers), {out}/demo.png (the curves).",
            f"Next: skillshard inspect {out}/runs/skill-it; skillshard verify {out}/shards; and your own corpus: "
            "skillshard tag metadata CORPUS --field FIELD --out TAGS.",
        )
    )
