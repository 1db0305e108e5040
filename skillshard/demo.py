"""The demo: a generated corpus, and three trainings with equal starts and different weights.

    OUT/corpus  OUT/tags  OUT/shards    LEGO in pages of eight problems, tagged by metadata, sharded
    OUT/graph.json                      strength of each skill's help for each measured skill
    OUT/runs/METHOD/                    the ledger of a training
    OUT/results/METHOD.json             the losses and accuracies of a training
    OUT/demo.png                        the mean loss of each training, and the weights of SKILL-IT

A rule chooses the setting. Of all settings in benchmarks/results/skillit.json, the demo takes the setting with the largest gain: SKILL-IT
with the true graph lowers the loss over the whole training the most, compared with equal weights. The rule chooses "out of domain:
chains of 3 from chains of 5". The seed is the first integer after the seeds of the file. docs/demo.md states the rule, the figures
behind the rule and the result.

The setting has the numbers of benchmarks/evidence/settings.py. Only the size of a sample differs: a sample is a
page of eight problems of one skill instead of one problem. A sample takes at least 2,048 bytes of a shard, and shards of single
problems need five times the space.
"""

from skillshard.extras import needed

needed("proxy", "plots", what="skillshard demo")  # before the imports that fail without the extra

import os
import shlex
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from skillshard import artefact, canonical, progress, storage, taggers
from skillshard.corpus import Corpus, Sample
from skillshard.errors import StorageError
from skillshard.execution import Backend, OnStage, Record, Task, run
from skillshard.graph.skill_graph import SkillGraph
from skillshard.loss import LossKind
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.mixer import Mixer
from skillshard.policies import Policy, fixed, skill_it, stratified
from skillshard.proxy.model import ProxyShape
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.proxy.train import evaluate, seeded_model, train
from skillshard.report.figures import draw_comparison, history
from skillshard.report.text import print_table
from skillshard.shards.read import ShardSet
from skillshard.shards.write import write_shards
from skillshard.synthetic.draws import write_samples
from skillshard.synthetic.lego import lego_samples, natural_proportions, skill_names
from skillshard.torch import MixedDataset

TRAINED_K, MEASURED_K = 5, 3
"""Variables in the chains that are trained on, and in the chains that are measured."""
PAGE_PROBLEMS = 8
"""Problems in a sample. Eight problems of 76 characters fill two of the tar's blocks of 512 bytes, with little padding."""
BATCH_PAGES = 8
"""Samples in a batch: 64 problems, as in the evidence."""
LEARNING_RATE = 1e-3
ETA, WINDOW, EDGE = 0.5, 3, 0.5
"""Of SKILL-IT: step size, number of evaluations in its window, strength of the edge from a skill to the next skill."""
ROUNDS = 6
EVALS_PER_ROUND = 16
"""With 2,400 steps, an evaluation every 25 steps."""
EVAL_PROBLEMS = 200
"""Problems of each measured skill in an evaluation."""
HOLDOUT = 0.05
MEASURED_PAGES = 1000
"""Samples of each measured skill in the corpus. A twentieth is held out, twice the number of samples that an evaluation reads."""
SHARD_BYTES = 8_000_000
TARGET_LOSS = 0.05

CONTROL = "0.133 on seed 10"
"""The loss over the whole training of such a mixture. docs/LOG.md has the measurement."""

METHODS = ("natural", "stratified", "skill-it")
DEFAULT_SAMPLES, DEFAULT_STEPS, DEFAULT_SEED = 20_000, 2400, 10
EVIDENCE = "31 % on average, on 10 of 10 seeds"
"""What benchmarks/results/skillit.json says of the chosen setting, against stratified. A test compares the two."""

Working = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class MethodResult:
    """One training.

    Attributes:
        mean_losses: mean over the measured skills at each evaluation, nats per answer.
        steps: optimizer steps done at each evaluation.
        losses: skill -> nats per answer on the holdout, at the last evaluation.
        accuracies: skill -> share of right answers on the holdout, at the last evaluation.
        cpu_s: CPU-seconds of the process, evaluations included.
    """

    method: str
    mean_losses: list[float]
    steps: list[int]
    losses: dict[str, float]
    accuracies: dict[str, float]
    cpu_s: float

    @property
    def area(self) -> float:
        """The loss over the whole training: the mean over all evaluations, nats per answer."""
        return statistics.mean(self.mean_losses)

    @property
    def steps_to_target(self) -> int | None:
        """Steps at the first evaluation with a mean loss below `TARGET_LOSS`. None: never."""
        reached = (step for step, loss in zip(self.steps, self.mean_losses, strict=True) if loss < TARGET_LOSS)
        return next(reached, None)

    @property
    def mean_accuracy(self) -> float:
        """Share of right answers at the last evaluation, mean over the measured skills."""
        return statistics.mean(self.accuracies.values())


def run_demo(
    out: str | os.PathLike[str],
    *,
    num_samples: int,
    steps: int,
    seed: int,
    on_stage: OnStage,
    working: Working,
) -> list[MethodResult]:
    """Generate, tag and shard a corpus, train three times, and draw a picture. Finished work is not repeated.

    Args:
        out: local directory.
        num_samples: samples to train on, equally many of each skill.
        steps: optimizer steps of each training, in batches of `BATCH_PAGES` samples.
        seed: seed of corpus, model and stream. The three trainings share it.
        on_stage: called with a stage's name and number of tasks. The result is called for each finished task.
        working: context for a piece of work without tasks, given the name of the work.

    Returns:
        The trainings, in the order of `METHODS`.

    Raises:
        StorageError: `out` holds another demo, or anything else.
    """
    folder = Path(out)
    _join(folder, {"num_samples": num_samples, "steps": steps, "seed": seed})
    prepare(folder, num_samples=num_samples, seed=seed, on_stage=on_stage, working=working)
    runs = folder / "runs"
    tasks = [
        Task(method, {"method": method, "folder": str(folder), "steps": steps, "seed": seed}) for method in METHODS
    ]
    records = run(
        train_method,
        tasks,
        # All three at once: three trainings on two cores end sooner side by side than in two turns.
        backend=Backend(workers=len(METHODS)),
        records=str(folder / "results"),
        on_done=on_stage("training", len(tasks)),
        stage="training",
    )
    draw_comparison(
        {method: history(DirectoryLedger(runs / method)) for method in METHODS},
        folder / "demo.png",
        weights_of="skill-it",
        title=f"LEGO: trained on chains of {TRAINED_K}, measured on chains of {MEASURED_K}, one seed ({seed})",
    )
    return [MethodResult(**record) for record in records]


def _join(folder: Path, arguments: dict[str, int]) -> None:
    """Begin a demo in `folder`, or go on with the same demo. StorageError if the folder holds anything else."""
    place = folder / "demo.json"
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if place.exists():
        changed = artefact.differences(storage.read_json(place), arguments)
        if changed and not (folder / "corpus").exists():  # nothing was finished: begin anew
            storage.write_bytes(place, canonical.to_json(arguments))
        elif changed:
            raise StorageError(
                f"{folder} holds a demo with other arguments ({'; '.join(changed)}). Choose another `out`."
            )
    elif names:
        raise StorageError(f"{folder} is not empty ({', '.join(names[:3])}). Choose another `out`.")
    else:
        storage.write_bytes(place, canonical.to_json(arguments))


def _unwatched(what: str) -> AbstractContextManager[None]:
    """Show nothing of a piece of work."""
    return nullcontext()


def prepare(folder: Path, *, num_samples: int, seed: int, on_stage: OnStage, working: Working = _unwatched) -> None:
    """Generate, tag and shard the demo's corpus, and write the graph."""
    if not (folder / "corpus").exists():
        shutil.rmtree(folder / ".corpus", ignore_errors=True)
        with working("generating"):
            _write_pages(folder / ".corpus", k=TRAINED_K, num_samples=num_samples, seed=seed)
            _write_pages(folder / ".corpus", k=MEASURED_K, num_samples=MEASURED_PAGES * MEASURED_K, seed=seed)
        (folder / ".corpus").rename(folder / "corpus")
    corpus = Corpus.open(folder / "corpus")
    by = taggers.metadata("meta.k", "meta.skill")
    tags = taggers.tag_corpus(corpus, by, folder / "tags", backend=Backend(), on_stage=on_stage)
    write_shards(corpus, tags, folder / "shards", shard_bytes=SHARD_BYTES, holdout=HOLDOUT, on_stage=on_stage)
    true_graph().save(folder / "graph.json")


def _write_pages(folder: Path, *, k: int, num_samples: int, seed: int) -> None:
    pages = lego_pages(k=k, num_samples=num_samples, seed=seed)
    write_samples(folder, f"chains-of-{k}", pages, num_samples=num_samples, samples_per_file=num_samples)


def lego_pages(*, k: int, num_samples: int, seed: int) -> Iterator[dict[str, Any]]:
    """LEGO samples of `PAGE_PROBLEMS` problems of one skill, a problem a line.

    Args:
        k: number of variables in a chain and of skills.
        num_samples: at least k. Every skill has equally many samples, and the remainder is left out.
        seed: not negative.

    >>> page = next(lego_pages(k=3, num_samples=9, seed=0))
    >>> page["meta"]["skill"], page["text"].splitlines()[:2]
    ('skill-3', ['Input: a = val 0, l = val a, w = not l. Output: w = 1.', 'Input: d = val n, n = val 1, v = not d. Output: v = 0.'])
    """
    problems = PAGE_PROBLEMS * (num_samples // k) * k
    waiting: dict[str, list[str]] = {skill: [] for skill in skill_names(k)}
    for problem in lego_samples(k=k, num_samples=problems, seed=seed, proportions="uniform"):
        lines = waiting[problem["meta"]["skill"]]
        lines.append(problem["text"])
        if len(lines) == PAGE_PROBLEMS:
            yield {**problem, "text": "\n".join(lines)}
            lines.clear()


def trained_skills() -> tuple[str, ...]:
    """Names of the trained skills in the tags.

    >>> trained_skills()
    ('5/skill-1', '5/skill-2', '5/skill-3', '5/skill-4', '5/skill-5')
    """
    return tuple(f"{TRAINED_K}/{skill}" for skill in skill_names(TRAINED_K))


def measured_skills() -> tuple[str, ...]:
    """Names of the measured skills in the tags.

    >>> measured_skills()
    ('3/skill-1', '3/skill-2', '3/skill-3')
    """
    return tuple(f"{MEASURED_K}/{skill}" for skill in skill_names(MEASURED_K))


def true_graph() -> SkillGraph:
    """The graph by the definition of LEGO: skill i of long chains helps skill i of short chains by 1, and skill i + 1 by `EDGE`.

    >>> true_graph().edges.tolist()
    [[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    edges = np.eye(TRAINED_K, MEASURED_K) + EDGE * np.eye(TRAINED_K, MEASURED_K, k=1)
    return SkillGraph(trained_skills(), measured_skills(), edges)


def train_method(method: str, folder: str, steps: int, seed: int) -> Record:
    """Train once with the weights of a method, on one thread."""
    torch.set_num_threads(1)
    eval_every = evaluation_interval(steps)
    started = time.process_time()
    shards = ShardSet.open(Path(folder) / "shards")
    mixer = Mixer(
        shards.choose(trained_skills()),
        policy_of(method, SkillGraph.open(Path(folder) / "graph.json")),
        ledger=Path(folder) / "runs" / method,
        round_draws=eval_every * EVALS_PER_ROUND * BATCH_PAGES,
        seed=seed,
        lag=0,
        step_draws=BATCH_PAGES,
        initial_losses=False,  # as the trainings of the evidence
        loss=LossKind(answer_after="= "),
        held_out=measured_skills(),
    )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a training that was killed begins again
        mixer.restart()
    texts = {skill: _problems(shards.holdout[skill], EVAL_PROBLEMS) for skill in measured_skills()}
    choice = ReadingChoice(segment_at=",.:", answer_after="= ", ordered=False)
    reading = choice.reading([text for pages in shards.holdout.values() for text in _problems(pages, EVAL_PROBLEMS)])
    shape = choice.model(reading)
    assert isinstance(shape, ProxyShape)
    model = seeded_model(shape, seed=seed)
    holdout = {skill: reading.encode(problems) for skill, problems in texts.items()}
    evaluations: list[tuple[int, float]] = []
    last: dict[str, Any] = {}

    def measure(step: int) -> None:
        progress.advance(step, steps)
        measured = evaluate(model, holdout)
        last["losses"] = {skill: evaluation.loss for skill, evaluation in measured.items()}
        last["accuracies"] = {skill: evaluation.accuracy for skill, evaluation in measured.items()}
        mixer.report(step, last["losses"])
        evaluations.append((step, statistics.mean(last["losses"].values())))

    loader = DataLoader(MixedDataset(mixer), batch_size=BATCH_PAGES)
    batches = (reading.encode([line for page in batch["text"] for line in page.splitlines()]) for batch in loader)
    train(model, batches, steps=steps, lr=LEARNING_RATE, eval_every=eval_every, on_eval=measure)
    measured_at, means = zip(*evaluations, strict=True)
    result = MethodResult(
        method, list(means), list(measured_at), last["losses"], last["accuracies"], time.process_time() - started
    )
    return asdict(result)


def _problems(pages: Iterable[Sample], most: int) -> list[str]:
    """The first problems of some pages."""
    return [problem for page in islice(pages, -(-most // PAGE_PROBLEMS)) for problem in page.text.splitlines()][:most]


def evaluation_interval(steps: int) -> int:
    """Steps between two evaluations: `EVALS_PER_ROUND` fill a round exactly, and `ROUNDS` rounds hold all steps.

    >>> evaluation_interval(2400), evaluation_interval(60)
    (25, 1)
    """
    return -(-steps // (ROUNDS * EVALS_PER_ROUND))


def policy_of(method: str, graph: SkillGraph) -> Policy:
    """The policy of a method."""
    if method == "skill-it":
        return skill_it(graph, eta=ETA, window=WINDOW)
    if method == "stratified":
        return stratified()
    return fixed(dict(zip(trained_skills(), map(float, natural_proportions(TRAINED_K)), strict=True)))


def show_results(results: Sequence[MethodResult]) -> None:
    """Print a column for each method. The first row is the measure of the comparison."""
    rows = [
        ("mean loss over the training", *(f"{result.area:.3f}" for result in results)),
        (f"steps to a mean loss of {TARGET_LOSS}", *(_steps(result) for result in results)),
    ]
    for skill in results[0].losses:
        at_end = (f"{result.losses[skill]:.3f} / {result.accuracies[skill]:.2f}" for result in results)
        rows.append((f"at the end: {skill}", *at_end))
    rows.append(
        ("at the end: mean", *(f"{result.mean_losses[-1]:.3f} / {result.mean_accuracy:.2f}" for result in results))
    )
    rows.append(("CPU-seconds", *(f"{result.cpu_s:.0f}" for result in results)))
    print_table(("holdout loss (nats) / accuracy", *(result.method for result in results)), rows)


def _steps(result: MethodResult) -> str:
    return f"{result.steps_to_target:,}" if result.steps_to_target else "never"


def summary(results: Sequence[MethodResult], out: Path, *, seed: int, program: str) -> str:
    """Describe the result, its limits, the files and the next commands.

    Args:
        program: how the user's shell starts skillshard.
    """
    natural, equal, live = (next(result for result in results if result.method == name) for name in METHODS)
    lines = [
        f"Shown: over the whole training, the mean loss of SKILL-IT is {_compared(live, equal)} stratified and {_compared(live, natural)} "
        f"natural proportions.{_verdict(live, equal)}",
        f"The task: all three train on chains of {TRAINED_K}, and chains of {MEASURED_K} are measured. The graph says that skills "
        f"{MEASURED_K + 1} and {TRAINED_K} help no measured skill. SKILL-IT moves weight to the other skills, by the losses that the "
        "trainer reports. The ledger keeps every decision.",
        "Why this task: a demo shows what a method is for. Of all settings of the published evidence, this setting has the largest gain "
        f"of SKILL-IT over stratified: {EVIDENCE}. In the other settings the gain is smaller or none. Seed {DEFAULT_SEED}, the default, is "
        f"the first seed that the evidence does not use. This run has seed {seed}.",
        "Not shown: how large the gain is, because one seed cannot tell. Not shown either: that the weights must change during the "
        f"training. Equal weights over the first {MEASURED_K} skills, fixed by the same graph for the whole training, are better: {CONTROL}.",
        "Digits: the same machine with the same PyTorch gives the same losses again. Another processor or another PyTorch rounds in another way, and "
        "gives other digits than the documentation.",
        f"Kept: {out}/shards, {out}/graph.json, {out}/runs (the ledgers), {out}/demo.png (the curves).",
        "Next:",
        *(f"  {command}" for command in next_commands(out, program)),
        "Read on: docs/demo.md has the rule and the figures, docs/tutorial.md goes on with your own corpus.",
    ]
    return "\n".join(lines)


def next_commands(out: Path, program: str) -> list[str]:
    """Commands to run next. Each command works as printed, in the directory of the demo's command.

    >>> next_commands(Path("my demo"), "skillshard")[0]
    "skillshard inspect 'my demo/runs/skill-it'"
    """
    place = f"./{out}" if str(out).startswith("-") else f"{out}"  # a dash would begin an option
    words = (
        ("inspect", f"{place}/runs/skill-it"),
        ("graph", "show", f"{place}/graph.json"),
        ("inspect", f"{place}/shards"),
        ("verify", f"{place}/shards"),
    )
    return [f"{program} {shlex.join(command)}" for command in words]


def _compared(live: MethodResult, other: MethodResult) -> str:
    difference = round(100 * (live.area / other.area - 1))
    if difference == 0:
        return "equal (within 0.5 %) to the loss of"
    return f"{abs(difference)} % {'lower' if difference < 0 else 'higher'} than the loss of"


def _verdict(live: MethodResult, equal: MethodResult) -> str:
    return "" if live.area < equal.area else " On this seed SKILL-IT does not help."
