"""Learn a graph from shards: plan, encode, estimate, run, derive."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from skillshard import artefact, storage
from skillshard.errors import GraphError, did_you_mean, name_some
from skillshard.execution import Record, Unit, Where, num_cpus, run
from skillshard.graph.derive import derived as derive
from skillshard.graph.derive import rule_of
from skillshard.graph.edges import EdgeRule
from skillshard.graph.plan import Method, PlannedRun, plan_runs
from skillshard.graph.runs import RunData, eval_steps, run_unit, save_data, warm_unit
from skillshard.graph.skill_graph import GraphFile, Learned, RunLosses, read_graph, write_graph
from skillshard.proxy.device import one_thread, resolve_device, resolve_precision
from skillshard.proxy.pretrained import check_place
from skillshard.proxy.reading import Reading, check_window
from skillshard.proxy.run import Recipe, computing, estimate_s, model_for, new_model, reading_for
from skillshard.proxy.train import TokenBatch, evaluate
from skillshard.shards.read import ShardSet, SkillShards

OnStage = Callable[[str, int], Callable[[Unit, Record], None]]


@dataclass(frozen=True)
class Cost:
    """What is still to be trained.

    Attributes:
        num_runs: without record, warm starts not counted.
        num_steps: of them and of the warm starts that they need.
        seconds: expected on this machine, idle.
    """

    num_runs: int
    num_steps: int
    seconds: float

    @property
    def sentence(self) -> str:
        """
        >>> Cost(4, 1200, 95.0).sentence
        '4 runs, 1,200 steps in all: about 2 min'
        """
        return f"{self.num_runs:,} runs, {self.num_steps:,} steps in all: about {said_s(self.seconds)}"


def said_s(seconds: float) -> str:
    """
    >>> said_s(12.3), said_s(125), said_s(7300)
    ('12 s', '2 min', '2.0 h')
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def learn_graph(
    shards: ShardSet,
    out: str | Path,
    *,
    method: Method,
    steps: int,
    rule: EdgeRule,
    warmup_steps: int = 0,
    num_seeds: int = 1,
    targets: Sequence[str] = (),
    eval_shards: ShardSet | None = None,
    proxy: str = "tiny",
    window: int = 128,
    segment_at: str | None = None,
    answer_after: str | None = None,
    ordered: bool = True,
    batch_size: int = 64,
    lr: float = 1e-3,
    eval_every: int | None = None,
    eval_samples: int = 100,
    samples: int = 20_000,
    for_steps: int | None = None,
    settle: float | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    runs: str | Path | None = None,
    where: Where | None = None,
    on_estimate: Callable[[str], None] = lambda sentence: None,
    on_stage: OnStage = lambda name, num: lambda unit, record: None,
) -> GraphFile:
    """Learn a graph and write it; what is trained already is not trained again.

    Args:
        shards: training skills, and their holdout unless `eval_shards` are given.
        out: JSON file.
        method: see `skillshard.graph.plan.plan_runs`.
        steps: of each run, H.
        rule: what an edge is; another one can be derived later.
        warmup_steps: stratified steps before every run, shared by all runs of a seed.
        num_seeds: runs of each kind, from seeds `seed`, `seed` + 1, ...: from two on, edges have standard errors.
        targets: evaluation skills (fine-tuning); empty: all.
        eval_shards: whose holdout is measured (out of domain).
        proxy, window, segment_at, answer_after, ordered: the model, and how it reads texts (`skillshard.proxy.run`).
        batch_size: samples of a step, at least.
        lr: highest learning rate.
        eval_every: steps between two measurements, h; None: a tenth of `steps`.
        eval_samples: held-out samples of each evaluation skill, at most.
        samples: training samples of each skill that runs draw from, at most.
        for_steps: length of the training that the graph is for: its learning rate's schedule is followed. None: the rate does
            not fall.
        settle: nats; see `run_unit`.
        budget_s: seconds; more than this is refused before it begins. None: no limit.
        seed: first of the seeds.
        device, precision: see `skillshard.proxy.device`.
        runs: directory of the runs; None: beside `out`.
        where: local pool or Ray.
        on_estimate: called before training with a sentence on how long it will take.
        on_stage: progress.

    Raises:
        GraphError: numbers that do not go together, skills that are not there, or more work than the budget.
        ProxyError: no such proxy, or texts that it cannot read.
        StorageError: `out` holds something else.
    """
    every = eval_every or max(1, steps // 10)
    _check_numbers(
        steps,
        warmup_steps,
        num_seeds,
        every,
        eval_samples,
        samples,
        for_steps,
        settle,
        window,
        proxy,
        segment_at,
        answer_after,
    )
    measured = (eval_shards or shards).holdout
    eval_skills = _eval_skills(measured, targets, eval_shards or shards)
    seeds = list(range(seed, seed + num_seeds))
    planned = plan_runs(method, shards.skills, eval_skills, batch_size=batch_size, seeds=seeds)
    warm = (
        plan_runs("leave-one-out", shards.skills, eval_skills, batch_size=batch_size, seeds=seeds)[
            :: len(shards.skills) + 1
        ]
        if warmup_steps
        else []
    )
    device = resolve_device(device)
    made_from = {
        "shards": shards.digest,
        "eval_shards": None if eval_shards is None else eval_shards.digest,
        "proxy": proxy if proxy in ("tiny", "small") else _digests(proxy),
        "window": window,
        "segment_at": segment_at,
        "answer_after": answer_after,
        "ordered": ordered,
        "batch_size": batch_size,
        "lr": lr,
        "eval_samples": eval_samples,
        "samples": samples,
        "for_steps": for_steps,
        "settle": settle,
        "device": device.partition(":")[0],
        "precision": resolve_precision(precision, device),
    }
    told = Learned(
        method=method,
        made_from=made_from,
        seeds=seeds,
        warmup_steps=warmup_steps,
        warmup_batch_size=warm[0].batch_size if warm else batch_size,
        eval_steps=eval_steps(steps, every),
        runs=[],
        **rule_of(rule),
    )
    if (before := _before(out, told)) is not None:
        return before
    pools = {skill: _texts(found, samples) for skill, found in shards.train.items()}
    reading = reading_for(
        proxy,
        [text for texts in pools.values() for text in texts],
        window=window,
        segment_at=segment_at,
        answer_after=answer_after,
    )
    data = RunData(
        {skill: _encoded(reading, skill, texts) for skill, texts in pools.items()},
        {skill: _encoded(reading, skill, _texts(measured[skill], eval_samples)) for skill in eval_skills},
    )
    recipe = Recipe(
        model=model_for(proxy, reading, ordered=ordered),
        steps=steps,
        checkpoints=1,
        lr=lr,
        device=device,
        precision=resolve_precision(precision, device),
    )
    folder = str(Path(out).with_suffix(".runs") if runs is None else runs)
    place = save_data(data, folder)
    schedule = math.inf if for_steps is None else float(for_steps)
    same = {"data": Path(place).name, "recipe": asdict(recipe), "schedule": for_steps, "proxy": made_from["proxy"]}
    warm_units = {
        one.seed: _warm_unit(folder, place, replace(recipe, steps=warmup_steps), one, schedule, same) for one in warm
    }
    run_units = [
        _run_unit(place, recipe, one, warm_units.get(one.seed), warmup_steps, every, schedule, settle, same)
        for one in planned
    ]
    where, records = where or Where(), storage.join(folder, "records")
    missing = [unit for unit in run_units if not storage.exists(storage.join(records, f"{unit.key}.json"))]
    needed = _needed(list(warm_units.values()), missing, records)
    cost = _cost(data, recipe, needed, missing, where)
    if budget_s is not None and cost.seconds > budget_s:
        fits = math.floor(steps * budget_s / cost.seconds)
        raise GraphError(
            f"{cost.sentence}, and --budget allows {said_s(budget_s)}. Raise it, or take fewer seeds, fewer samples per step or fewer steps "
            f"(about {fits:,} would fit, if --warmup shrinks alike)."
        )
    if missing:
        on_estimate(cost.sentence)
    gpus = {"keeps_model": device.startswith("cuda"), "num_gpus": 1.0 if device.startswith("cuda") else 0.0}
    if needed:
        run(warm_unit, needed, where=where, records=records, on_done=on_stage("warm-up", len(needed)), **gpus)  # type: ignore[arg-type]
    found = run(run_unit, run_units, where=where, records=records, on_done=on_stage("runs", len(run_units)), **gpus)  # type: ignore[arg-type]
    losses = [
        RunLosses(
            trained_on=list(one.trained_on),
            samples_per_skill=one.samples_per_skill,
            seed=one.seed,
            steps_taken=record["steps_taken"],
            losses=record["losses"],
        )
        for one, record in zip(planned, found, strict=True)
    ]
    graph = derive(list(shards.skills), eval_skills, told.model_copy(update={"runs": losses}), rule=rule)
    write_graph(graph, out)
    return graph


def _check_numbers(
    steps: int,
    warmup_steps: int,
    num_seeds: int,
    eval_every: int,
    eval_samples: int,
    samples: int,
    for_steps: int | None,
    settle: float | None,
    window: int,
    proxy: str,
    segment_at: str | None,
    answer_after: str | None,
) -> None:
    least = {"--steps": steps, "--seeds": num_seeds, "--eval-samples": eval_samples, "--samples": samples}
    bad = [f"{name} {number}" for name, number in least.items() if number < 1]
    if bad or warmup_steps < 0:
        raise GraphError(f"{name_some(bad) or f'--warmup {warmup_steps}'}: give 1 or more (--warmup: 0 or more).")
    if not 1 <= eval_every <= steps:
        raise GraphError(
            f"--eval-every {eval_every}: losses are measured every so many steps, at least 1 and at most --steps {steps}."
        )
    if for_steps is not None and for_steps < warmup_steps + steps:
        raise GraphError(
            f"--for-steps {for_steps:,} is shorter than warm-up and run, {warmup_steps:,} + {steps:,} steps: their learning rate would be 0 "
            "before they end. Shorten them."
        )
    if settle is not None and not settle > 0:
        raise GraphError(f"--settle {settle}: give nats above 0, or leave it out.")
    if segment_at is not None and (not segment_at or not answer_after or proxy not in ("tiny", "small")):
        raise GraphError(
            "--segment-at needs --answer-after, such as --answer-after '= ', and --proxy tiny or small: it reads a text as segments and "
            "predicts a word of answer."
        )
    check_window(window)
    if proxy not in ("tiny", "small"):
        check_place(proxy)


def _eval_skills(holdout: Mapping[str, SkillShards], targets: Sequence[str], shards: ShardSet) -> list[str]:
    """The graph's columns; GraphError where one has nothing to be measured on."""
    if targets:
        unknown = [f"{name!r}{did_you_mean(name, holdout)}" for name in targets if name not in holdout]
        if unknown:
            raise GraphError(
                f"--target {name_some(unknown)}: not a skill with held-out samples in {storage.public(shards.root)}; it has "
                f"{name_some(holdout)}."
            )
        return sorted(set(targets))
    bare = [name for name in shards.skills if name not in holdout]
    if bare:
        raise GraphError(
            f"{name_some(bare)} of {storage.public(shards.root)} has no held-out samples, so its loss cannot be measured: shard with a "
            "larger --holdout, or name the skills that count with --target."
        )
    return sorted(holdout)


def _texts(shards: SkillShards, most: int) -> list[str]:
    """The first texts of a skill, which are a sample of it: shards are shuffled when they are written."""
    return [sample.text for sample in islice(shards, most)]


def _encoded(reading: Reading, skill: str, texts: list[str]) -> TokenBatch:
    for number, text in enumerate(texts):
        if (why := reading.refusal(text)) is not None:
            raise GraphError(
                f"sample {number:,} of skill {skill!r} cannot be read: {why} ({text[:60]!r}). Change --answer-after or --segment-at, or "
                "leave such samples out of the corpus."
            )
    return reading.encode(texts)


def _digests(folder: str) -> dict[str, str]:
    """What a pretrained proxy is, by the content of its files."""
    return {path.name: storage.file_digest(path) for path in sorted(Path(folder).iterdir()) if path.is_file()}


def _before(out: str | Path, told: Learned) -> GraphFile | None:
    """The graph that is there already, if it is this one; StorageError if there is something else."""
    if not storage.exists(out):
        return None
    found = read_graph(out)
    now = told.model_dump(exclude={"runs"})
    before = {} if found.learned is None else found.learned.model_dump(exclude={"runs"})
    if changed := artefact.differences(before, now):
        raise GraphError(
            f"{out} holds another graph ({'; '.join(changed[:2])}). Choose another --out, or remove it; runs that both need are kept."
        )
    return found


def _warm_unit(folder: str, data: str, recipe: Recipe, one: PlannedRun, schedule: float, same: dict[str, Any]) -> Unit:
    key = _key("warm", {**same, "recipe": asdict(recipe), "run": asdict(one)})
    place = storage.join(folder, f"{key}.npz")
    return Unit(key, {"data": data, "recipe": recipe, "run": one, "schedule_steps": schedule, "place": place})


def _run_unit(
    data: str,
    recipe: Recipe,
    one: PlannedRun,
    warm: Unit | None,
    warmup_steps: int,
    eval_every: int,
    schedule: float,
    settle: float | None,
    same: dict[str, Any],
) -> Unit:
    arguments = {"warmup_steps": warmup_steps, "eval_every": eval_every, "settle": settle}
    known = {**same, **arguments, "run": asdict(one), "warm": None if warm is None else warm.key}
    place = None if warm is None else warm.arguments["place"]
    given = {"data": data, "recipe": recipe, "run": one, "warm": place, "schedule_steps": schedule}
    return Unit(_key("run", known), {**given, **arguments})


def _key(kind: str, known: dict[str, Any]) -> str:
    return f"{kind}-{storage.digest(storage.to_json(known))}"


def _needed(warm: Sequence[Unit], missing: Sequence[Unit], records: str) -> list[Unit]:
    """The warm starts that runs still need and that are not there; one whose file was removed is done anew."""
    wanted = {unit.arguments["warm"] for unit in missing}
    needed = [
        unit for unit in warm if unit.arguments["place"] in wanted and not storage.exists(unit.arguments["place"])
    ]
    for unit in needed:
        Path(storage.join(records, f"{unit.key}.json")).unlink(missing_ok=True)
    return needed


def _cost(data: RunData, recipe: Recipe, warm: Sequence[Unit], missing: Sequence[Unit], where: Where) -> Cost:
    """From a few steps and one evaluation, measured here."""
    if not missing:
        return Cost(0, 0, 0.0)
    largest = max(unit.arguments["run"].batch_size for unit in (*warm, *missing))
    some = next(iter(data.train.values()))
    with one_thread():
        step_s = estimate_s(some, recipe, size=largest) / recipe.steps
        started = time.perf_counter()
        evaluate(computing(new_model(recipe, seed=0), recipe), data.evaluation)
        eval_s = time.perf_counter() - started
    workers = 1 if recipe.device.startswith("cuda") else where.workers or num_cpus()

    def seconds(unit: Unit) -> float:
        arguments = unit.arguments
        num_evals = (
            len(eval_steps(arguments["recipe"].steps, arguments["eval_every"])) if "eval_every" in arguments else 0
        )
        share = arguments["run"].batch_size / largest
        return float(arguments["recipe"].steps * step_s * share + num_evals * eval_s)

    stages = [(sum(map(seconds, units)), len(units)) for units in (warm, missing)]
    total = sum(spent / min(workers, num) for spent, num in stages if num)
    num_steps = sum(unit.arguments["recipe"].steps for unit in (*warm, *missing))
    return Cost(len(missing), num_steps, total)
