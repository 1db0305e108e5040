"""The tasks: the shards of a setting and seed, the learned graphs, the trainings. Each task leaves a record and can be repeated.

A training is the training of `skillshard compare`, with the pace of the method.

    WORK/SETTING/SEED/shards, eval (out of domain), graphs/METHOD.json, runs/METHOD (the ledger)
    WORK/records/*.json

A seed changes the corpus (not of real text), the graphs and the trainings. Trainings of the same seed differ in their weights alone:
the first model and the stream within each skill are the same.
"""

import gzip
import io
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evidence.methods import (
    METHODS,
    begins_with_losses,
    graph_of,
    graph_seeds,
    measured_names,
    policy_of,
    read_at,
    round_steps,
)
from benchmarks.evidence.settings import LONG, SETTINGS, SIZES, Setting, sized

if TYPE_CHECKING:
    from skillshard.comparison.training import Pace, Training
    from skillshard.execution import Task
    from skillshard.shards.read import ShardSet

SKILL_FIELD = {"sources": "source", "instructions": "category"}
SETTLED_LOSS, SETTLED_EVALUATIONS = 0.002, 4
"""A training with a mean loss below the first number for the second number of evaluations has learned its task, and ends."""


def place_of(work: Path, name: str, seed: int) -> Path:
    return work / slug(name) / str(seed)


def slug(name: str) -> str:
    """Return the name of a setting as a part of paths and keys."""
    return name.replace(" ", "-").replace(":", "").replace(",", "").replace("=", "")


def task_key(kind: str, name: str, seed: int, method: str = "") -> str:
    """Return the key of a task, which names the task's record.

    >>> task_key("train", "shuffled LEGO k=3", 7, "loss order")
    'train-shuffled-LEGO-k3-7-loss-order'
    """
    return "-".join(filter(None, (kind, slug(name), str(seed), method.replace(" ", "-"))))


def prepare_task(name: str, seed: int, work: str, corpora: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Write corpus, tags and shards, and delete the corpus.

    Args:
        corpora: Directory of the real texts. None for a setting with generated texts.
    """
    setting, folder = sized(name, **changes), place_of(Path(work), name, seed)
    shards = _write_shards(setting, folder, "shards", setting.trained, setting.samples, seed, corpora)
    if setting.measured_k or not set(setting.measured) <= set(setting.trained):
        other = replace(setting, k=setting.measured_k or setting.k)
        _write_shards(other, folder, "eval", setting.measured, 20 * setting.eval_samples, seed + 10_000, corpora)
    return {"skills": list(shards)}


def _write_shards(
    setting: Setting,
    folder: Path,
    part: str,
    numbers: tuple[int, ...],
    num_samples: int,
    seed: int,
    corpora: str | None,
) -> tuple[str, ...]:
    from skillshard import taggers
    from skillshard.corpus import Corpus
    from skillshard.execution import Backend
    from skillshard.shards.read import ShardSet
    from skillshard.shards.write import write_shards

    if not (folder / part / "manifest.json").exists():
        corpus, backend = folder / f"{part}-corpus", Backend(workers=1)
        shutil.rmtree(corpus, ignore_errors=True)
        _write_corpus(setting, corpus, numbers, num_samples, seed, corpora)
        opened = Corpus.open(corpus)
        fields = ("meta.k", "meta.skill") if part == "eval" and setting.measured_k else ("meta.skill",)
        tags = taggers.tag_corpus(opened, taggers.metadata(*fields), folder / f"{part}-tags", backend=backend)
        holdout = 0.1 if setting.is_text else 2 * len(numbers) * setting.eval_samples / num_samples
        write_shards(opened, tags, folder / part, holdout=holdout, shard_bytes=64_000_000, backend=backend)
        shutil.rmtree(corpus)
    return ShardSet.open(folder / part).skills


def _write_corpus(
    setting: Setting, corpus: Path, numbers: tuple[int, ...], num_samples: int, seed: int, corpora: str | None
) -> None:
    from skillshard.synthetic.addition import write_addition
    from skillshard.synthetic.lego import write_lego

    proportions = tuple(int(number in numbers) for number in range(1, setting.k + 1))
    if setting.is_text:
        assert corpora is not None  # the command line demands --corpora for real text
        corpus.mkdir(parents=True)
        with (corpus / "text.jsonl").open("w") as out:
            out.writelines(json.dumps(sample) + "\n" for sample in _passages(setting, Path(corpora)))
    elif setting.corpus == "addition":
        write_addition(
            corpus,
            k=setting.k,
            num_samples=num_samples,
            seed=seed,
            proportions=proportions,
            samples_per_file=num_samples,
        )
    else:
        order = "chain" if setting.is_ordered else "shuffled"
        write_lego(
            corpus,
            k=setting.k,
            num_samples=num_samples,
            seed=seed,
            order=order,
            proportions=proportions,
            samples_per_file=num_samples,
        )


def _passages(setting: Setting, corpora: Path) -> Iterator[dict[str, Any]]:
    """Yield real texts that a model can read at once: whole instructions, because their ends are read, and windows of documents."""
    for place in sorted((corpora / setting.corpus).glob("*.jsonl*")):
        for line in _lines(place):
            sample = json.loads(line)
            skill, text = sample["meta"][SKILL_FIELD[setting.corpus]], sample["text"]
            starts = range(0, len(text) - setting.window + 1, setting.window) if setting.corpus == "sources" else [0]
            for number, start in enumerate(starts):
                cut = text[start : start + setting.window] if setting.corpus == "sources" else text
                if cut.strip():
                    yield {"id": f"{sample['id']}-{number}", "text": cut, "meta": {"skill": skill}}


def _lines(place: Path) -> Iterator[str]:
    import pyarrow as pa

    if place.suffix == ".zst":
        with pa.input_stream(str(place), compression="zstd") as stream:
            yield from io.TextIOWrapper(io.BytesIO(stream.read()))
    elif place.suffix == ".gz":
        with gzip.open(place, "rt") as lines:
            yield from lines
    else:
        with place.open() as lines:
            yield from lines


def reading_marks(setting: Setting) -> tuple[str | None, str | None]:
    """Return the separators of words and the marker before the answer. None means bytes, or a loss over all bytes."""
    if setting.is_text:
        return None, "Output: " if setting.corpus == "instructions" else None
    return (",.:", "= ") if setting.corpus.startswith("lego") else (",+=", "Output: ")


def graph_task(name: str, seed: int, method: str, work: str, device: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Learn a graph, and record the measured edges and the cost."""
    from skillshard.execution import Backend
    from skillshard.graph.edges import EdgeRule
    from skillshard.graph.learn import learn_graph
    from skillshard.graph.plan import parse_method
    from skillshard.proxy.device import Compute
    from skillshard.proxy.reading_choice import ReadingChoice
    from skillshard.shards.read import ShardSet

    setting, folder = sized(name, **changes), place_of(Path(work), name, seed)
    segment_at, answer_after = reading_marks(setting)
    started = time.process_time()
    graph = learn_graph(
        ShardSet.open(folder / "shards"),
        folder / "graphs" / f"{method}.json",
        method=parse_method(method.removeprefix("long-")),
        steps=setting.long_graph_steps if method == LONG else setting.graph_steps,
        rule=EdgeRule("absolute", None, "curve", clamp=False, off_diagonal=None, drop_uncertain=False),
        warmup_steps=setting.warmup_steps,
        num_seeds=1,
        seed=seed,
        targets=measured_names(setting),
        eval_shards=_measured_shards(folder),
        reading=ReadingChoice("tiny", setting.window, segment_at, answer_after, ordered=setting.is_ordered),
        batch_size=setting.batch_size,
        lr=setting.lr,
        eval_every=setting.eval_every,
        eval_samples=setting.eval_samples,
        samples=8000,
        for_steps=setting.steps,
        compute=Compute(device),
        backend=Backend(workers=1),
    )
    assert graph.learned is not None
    return {
        "train_skills": graph.train_skills,
        "edges": graph.edges,
        "num_steps": graph.learned.num_steps,
        "num_samples": graph.learned.num_samples,
        "num_evaluations": sum(len(run.losses) for run in graph.learned.runs),
        "cpu_s": time.process_time() - started,
    }


def train_task(name: str, seed: int, method: str, work: str, device: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Train once, and record the losses of every evaluation from step 0 on, the final accuracies and the weights of every round.

    A training ends when its loss has settled. The schedule of the learning rate is that of the whole training.
    """
    from skillshard.comparison.training import train_under

    setting, folder = sized(name, **changes), place_of(Path(work), name, seed)
    training = training_of(setting, folder, device)
    policy = policy_of(setting, method, training.skills, folder / "graphs")
    trained = train_under(
        policy,
        training,
        _pace(setting, method, len(training.skills), reads_losses=policy.reads_losses),
        seed=seed,
        ledger=folder / "runs" / method.replace(" ", "-"),
        is_done=_has_settled,
    )
    return {
        "losses": trained.losses,
        "accuracy": trained.accuracies,
        "mean_accuracy": statistics.mean(trained.accuracies.values()),
        "weights": trained.weights,
        "reads_losses": policy.reads_losses,
        "cpu_s": trained.cpu_s,
        "evaluation_cpu_s": trained.evaluation_cpu_s,
    }


def _has_settled(losses: Sequence[Mapping[str, float]]) -> bool:
    latest = [statistics.mean(row.values()) for row in losses[-SETTLED_EVALUATIONS:]]
    return len(latest) == SETTLED_EVALUATIONS and max(latest) < SETTLED_LOSS


def _pace(setting: Setting, method: str, num_skills: int, *, reads_losses: bool) -> "Pace":
    from skillshard.comparison.training import Pace

    return Pace(
        round_steps=round_steps(setting, method),
        measured_at=tuple(range(0, setting.steps + 1, setting.eval_every)),
        reported_at=tuple(read_at(setting, method, num_skills)) if reads_losses else (),
        # Rounds of a few steps do not all end with an evaluation.
        lag="live" if METHODS[method].decides == "by probes" else 0,
        initial_losses=begins_with_losses(method),
    )


def training_of(setting: Setting, folder: Path, device: str) -> "Training":
    """Return the settings of the trainings of a seed."""
    from skillshard.comparison.training import Training
    from skillshard.loss import LossKind
    from skillshard.proxy.reading_choice import ReadingChoice
    from skillshard.proxy.trial import Recipe
    from skillshard.shards.read import ShardSet

    shards, measured = ShardSet.open(folder / "shards"), _measured_shards(folder)
    names = measured_names(setting) or shards.skills
    segment_at, answer_after = reading_marks(setting)
    known = [
        text
        for shard_set in (shards, measured)
        for skill in shard_set.skills
        for text in _holdout(shard_set, skill, 2000)
    ]
    choice = ReadingChoice("tiny", setting.window, segment_at, answer_after, ordered=setting.is_ordered)
    reading = choice.reading(known)
    shape = choice.model(reading)
    assert not isinstance(shape, str)
    return Training(
        shards=str(shards.root),
        skills=tuple(shards.skills),
        eval_shards=str(measured.root),
        counted=tuple(names),
        measured=tuple(names),
        reading=reading,
        kind=LossKind(answer_after=answer_after),
        recipe=Recipe(
            model=replace(shape, **SIZES[setting.size]),
            steps=setting.steps,
            checkpoints=1,
            lr=setting.lr,
            device=device,
            precision=setting.precision,
        ),
        batch_size=setting.batch_size,
        eval_every=setting.eval_every,
        eval_samples=setting.eval_samples,
    )


def _measured_shards(folder: Path) -> "ShardSet":
    """Open the shards with the measured holdout. Out of domain these are not the trained shards."""
    from skillshard.shards.read import ShardSet

    return ShardSet.open(folder / ("eval" if (folder / "eval").exists() else "shards"))


def _holdout(shards: "ShardSet", skill: str, most: int) -> list[str]:
    return [sample.text for sample in islice(shards.holdout[skill], most)]


def run_all(
    names: list[str],
    seeds: list[int],
    methods: list[str] | None,
    work: Path,
    *,
    workers: int,
    device: str,
    changes: dict[str, Any],
    corpora: Path | None = None,
) -> None:
    """Make shards, graphs and trainings of one setting after the other. Finished tasks are not repeated.

    Args:
        corpora: Directory with a folder for each corpus of real text. Settings with generated texts do not read the directory.
    """
    from skillshard.execution import Backend, run

    for name in names:
        chosen = [method for method in SETTINGS[name].methods if methods is None or method in methods]
        num_gpus = float(device.startswith("cuda"))
        for function, tasks in _stages(name, seeds, chosen, work, device, changes, corpora):
            # The shards need no GPU, so that all processes write shards.
            gpus = 0.0 if function is prepare_task else num_gpus
            run(
                function,
                tasks,
                backend=Backend(workers=workers),
                records=str(work / "records"),
                keeps_model=gpus > 0,
                num_gpus=gpus,
                on_done=lambda task, record: print(task.key, flush=True),
            )


def _stages(
    name: str,
    seeds: list[int],
    methods: list[str],
    work: Path,
    device: str,
    changes: dict[str, Any],
    corpora: Path | None,
) -> list[tuple[Callable[..., dict[str, Any]], list["Task"]]]:
    """Return the tasks of the three stages: shards, graphs and trainings."""
    from skillshard.execution import Task

    led = {
        (number, graph)
        for seed in seeds
        for method in methods
        if (graph := graph_of(method))
        for number in graph_seeds(method, seed)
    }
    whole = {"name": name, "work": str(work)}
    read_from = None if corpora is None else str(corpora)
    shorter = {"steps": changes["steps"]} if "steps" in changes else {}
    learning = {**whole, "device": device, "changes": shorter}
    training = {**whole, "device": device, "changes": changes}
    corpora = [
        Task(task_key("shards", name, seed), {**whole, "seed": seed, "corpora": read_from, "changes": shorter})
        for seed in sorted({*seeds, *(seed for seed, _ in led)})
    ]
    graphs = [
        Task(task_key("graph", name, seed, method), {**learning, "seed": seed, "method": method})
        for seed, method in sorted(led)
    ]
    trainings = [
        Task(task_key("train", name, seed, method), {**training, "seed": seed, "method": method})
        for seed in seeds
        for method in methods
    ]
    return [(prepare_task, corpora), (graph_task, graphs), (train_task, trainings)]
