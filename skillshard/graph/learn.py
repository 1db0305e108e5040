"""Learn a graph from shards: plan, encode, estimate, train, derive."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from skillshard import artefact, canonical, places, storage
from skillshard.corpus import Sample
from skillshard.errors import GraphError, ObservationError, did_you_mean, name_some
from skillshard.execution import Backend, OnStage, Record, Task, run, shown
from skillshard.graph.derive import derived, rule_of
from skillshard.graph.edges import EdgeRule
from skillshard.graph.plan import Method, Trial, plan_trials, plan_warm_starts
from skillshard.graph.skill_graph import GraphFile, Learned, TrialLosses, read_graph, write_graph
from skillshard.graph.trial_data import DrawnTexts, TrialData, save_data
from skillshard.graph.trials import Schedule, drawn_rows, eval_steps, timing_task, trial_task, warm_task
from skillshard.loss import LossKind, Reduction, prompt_chars
from skillshard.proxy.device import Compute, device_kind, is_here, resolve_precision
from skillshard.proxy.identity import model_identity, training_identity
from skillshard.proxy.reading import Reading
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.proxy.train import usual_lr_warmup
from skillshard.proxy.trial import Recipe
from skillshard.shards.read import ShardSet, SkillShards
from skillshard.shards.split import HOW_TO_HOLD_OUT

READ_BY = ("shards", "proxy", "window", "segment_at", "answer_after", "prompt_field", "ordered", "samples")
MEASURED_BY = ("eval_shards", "eval_samples")
"""Settings that decide what a warm start and a trial read, and what a trial measures besides."""
TEXTS_AT_ONCE = 1024
"""Texts that are encoded at once: readings make 64-bit tokens, which are made compact before the next texts are read."""


@dataclass(frozen=True)
class Cost:
    """What is still to be trained.

    Attributes:
        num_trials: without record, warm starts not counted.
        num_steps: of them and of the warm starts that they need.
        seconds: expected on this machine, idle.
    """

    num_trials: int
    num_steps: int
    seconds: float

    @property
    def sentence(self) -> str:
        """
        >>> Cost(4, 1200, 95.0).sentence
        '4 trials, 1,200 steps in all: about 2 min'
        """
        return f"{self.num_trials:,} trials, {self.num_steps:,} steps in all: about {said_s(self.seconds)}"


def said_s(seconds: float) -> str:
    """
    >>> said_s(12.3), said_s(125.0), said_s(7300.0)
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
    reading: ReadingChoice = ReadingChoice(),
    reduction: Reduction = "per_sample",
    batch_size: int = 64,
    lr: float = 1e-3,
    lr_warmup: int | None = None,
    eval_every: int | None = None,
    eval_samples: int = 100,
    samples: int = 20_000,
    for_steps: int | None = None,
    settle: float | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    compute: Compute = Compute(),
    trials: str | Path | None = None,
    backend: Backend | None = None,
    on_estimate: Callable[[str], None] = lambda sentence: None,
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> GraphFile:
    """Learn a graph and write it; what is trained already is not trained again.

    Args:
        shards: training skills, and their holdout unless `eval_shards` are given.
        out: JSON file.
        method: see `skillshard.graph.plan.plan_trials`.
        steps: of each trial, H.
        rule: what an edge is; another one can be derived later.
        warmup_steps: stratified steps before every trial, shared by all trials of a seed.
        num_seeds: trials of each kind, from seeds `seed`, `seed` + 1, ...: from two on, edges have standard errors.
        targets: evaluation skills (fine-tuning); empty: all.
        eval_shards: whose holdout is measured (out of domain).
        reading: the model, and how it reads texts.
        reduction: with `reading.answer_after` and `reading.prompt_field` the kind of losses that are measured, see
            `skillshard.loss.LossKind`. Losses of the same kind are reported to a mixer that uses the graph.
        batch_size: samples of a step, at least.
        lr: learning rate that every trial reaches.
        lr_warmup: steps over which the rate rises, counted from the first step of the warm start; None:
            `skillshard.proxy.train.usual_lr_warmup` of warm start and trial, or of `for_steps`.
        eval_every: steps between two measurements, h; None: a tenth of `steps`.
        eval_samples: held-out samples of each evaluation skill, at most.
        samples: number of training samples of each skill that trials draw from, at most. Samples that no trial draws are not encoded.
        for_steps: length of the training that the graph is for: its learning rate's schedule is followed. None: the rate does
            not fall.
        settle: nats; see `trial_task`.
        budget_s: seconds; more than this is refused before it begins. None: no limit.
        seed: first of the seeds.
        compute: where trials compute, and how precisely.
        trials: directory of the trials; None: beside `out`.
        backend: local pool or Ray.
        on_estimate: called before training with a sentence on how long it will take.
        on_stage: called with a stage's name and number of tasks; what it returns is called for each finished task. None: bars where
            there is a terminal or a notebook.
        progress: whether there are bars.

    Raises:
        GraphError: numbers that do not go together, skills that are not there, or more work than the budget.
        ProxyError: no such proxy, or texts that it cannot read.
        StorageError: `out` holds something else.
    """
    every = eval_every or max(1, steps // 10)
    _check_numbers(steps, warmup_steps, num_seeds, every, eval_samples, samples, for_steps, settle)
    kind = LossKind(reduction=reduction, answer_after=reading.answer_after, prompt_field=reading.prompt_field)
    schedule = _schedule(lr_warmup, warmup_steps, steps, for_steps)
    backend = backend or Backend()
    compute = compute.resolved(on_this_machine=backend.ray_address is None)
    eval_skills = _eval_skills(eval_shards or shards, targets)
    seeds = list(range(seed, seed + num_seeds))
    planned = plan_trials(method, shards.skills, eval_skills, batch_size=batch_size, seeds=seeds)
    warm = plan_warm_starts(shards.skills, batch_size=batch_size, seeds=seeds) if warmup_steps else []
    told = Learned(
        method=method,
        made_from={
            "shards": shards.digest,
            "eval_shards": None if eval_shards is None else eval_shards.digest,
            **asdict(reading),
            "proxy": model_identity(reading.proxy),
            "reduction": reduction,
            "batch_size": batch_size,
            "lr": lr,
            "lr_warmup": schedule.lr_warmup,
            "eval_samples": eval_samples,
            "samples": samples,
            "for_steps": for_steps,
            "settle": settle,
            "device": device_kind(compute.device),
            "precision": compute.precision,
        },
        seeds=seeds,
        warmup_steps=warmup_steps,
        warmup_batch_size=warm[0].batch_size if warm else batch_size,
        eval_steps=eval_steps(steps, every),
        runs=[],
        **rule_of(rule),
    )
    if (before := _before(out, told)) is not None:
        return before
    folder = str(Path(out).with_suffix(".runs") if trials is None else trials)
    encoder = reading.reading([] if reading.segment_at is None else _all_texts(shards, samples))
    holdout = (eval_shards or shards).holdout
    data = save_data(
        TrialData(
            {
                skill: _encoded(
                    encoder, found, samples, kind, rows_of=partial(_rows, skill, planned, warm, warmup_steps, steps)
                )
                for skill, found in shards.train.items()
            },
            {skill: _encoded(encoder, holdout[skill], eval_samples, kind, rows_of=np.arange) for skill in eval_skills},
        ),
        folder,
    )
    recipe = Recipe(
        model=reading.model(encoder),
        steps=steps,
        checkpoints=1,
        lr=lr,
        device=compute.device,
        precision=resolve_precision(compute.precision, compute.device),
    )
    warm_tasks, trial_tasks = _tasks(
        folder, data, recipe, planned, warm, warmup_steps, every, schedule, settle, told.made_from, eval_skills
    )
    with shown(on_stage, progress) as stages:
        records = _train(warm_tasks, trial_tasks, folder, backend, budget_s, on_estimate, stages)
    learned = told.model_copy(update={"runs": [_measured(*each) for each in zip(planned, records, strict=True)]})
    graph = derived(shards.skills, eval_skills, learned, rule=rule)
    write_graph(graph, out)
    return graph


def _train(
    warm_tasks: Sequence[Task],
    trial_tasks: Sequence[Task],
    folder: str,
    backend: Backend,
    budget_s: float | None,
    on_estimate: Callable[[str], None],
    on_stage: OnStage,
) -> list[Record]:
    """Say what it will cost, refuse what is too much, do what is not done; the records of the trials."""
    kept = places.join(folder, "records")
    missing = [task for task in trial_tasks if not storage.exists(places.join(kept, f"{task.key}.json"))]
    needed = _needed(warm_tasks, missing, kept)
    if missing:
        cost = _cost(needed, missing, backend, kept)
        if budget_s is not None and cost.seconds > budget_s:
            raise GraphError(
                f"{cost.sentence}, and `budget_s` allows {said_s(budget_s)}. Raise it, or take fewer seeds (`num_seeds`), or `steps` and `warmup_steps` shorter by a "
                f"factor of {cost.seconds / budget_s:.1f}."
            )
        on_estimate(cost.sentence)
    on_gpu = trial_tasks[0].arguments["recipe"].device.startswith("cuda")
    stages: list[tuple[str, Callable[..., Record], Sequence[Task]]] = [("warm-up", warm_task, needed)] if needed else []
    records: list[Record] = []
    for name, function, tasks in [*stages, ("trials", trial_task, trial_tasks)]:
        records = run(
            function,
            tasks,
            backend=backend,
            records=kept,
            keeps_model=on_gpu,
            num_gpus=1.0 if on_gpu else 0.0,
            on_done=on_stage(name, len(tasks)),
        )
    return records


def _measured(one: Trial, record: Record) -> TrialLosses:
    return TrialLosses(
        trained_on=list(one.trained_on),
        samples_per_skill=one.samples_per_skill,
        seed=one.seed,
        steps_taken=record["steps_taken"],
        losses=record["losses"],
    )


def _check_numbers(
    steps: int,
    warmup_steps: int,
    num_seeds: int,
    eval_every: int,
    eval_samples: int,
    samples: int,
    for_steps: int | None,
    settle: float | None,
) -> None:
    least = {"steps": steps, "num_seeds": num_seeds, "eval_samples": eval_samples, "samples": samples}
    bad = [f"`{name}={number}`" for name, number in least.items() if number < 1]
    if bad or warmup_steps < 0:
        raise GraphError(f"{name_some(bad) or f'`{warmup_steps=}`'}: give 1 or more (`warmup_steps`: 0 or more).")
    if not 1 <= eval_every <= steps:
        raise GraphError(
            f"`{eval_every=}`: losses are measured every so many steps, at least 1 and at most `{steps=}`."
        )
    if for_steps is not None and for_steps < warmup_steps + steps:
        raise GraphError(
            f"`{for_steps=}` is shorter than warm-up and trial, {warmup_steps:,} + {steps:,} steps: their learning rate would be 0 "
            "before they end. Shorten them."
        )
    if settle is not None and not settle > 0:
        raise GraphError(f"`{settle=}`: give nats above 0, or leave it out.")


def _eval_skills(shards: ShardSet, targets: Sequence[str]) -> list[str]:
    """The graph's columns; GraphError where one has nothing to be measured on."""
    holdout = shards.holdout
    if targets:
        unknown = [f"{name!r}{did_you_mean(name, holdout)}" for name in targets if name not in holdout]
        if unknown:
            raise GraphError(
                f"`targets` {name_some(unknown)}: not a skill with held-out samples in {places.public(shards.root)}; it has "
                f"{name_some(holdout)}."
            )
        return sorted(set(targets))
    bare = [name for name in shards.skills if name not in holdout]
    if bare:
        raise GraphError(
            f"{name_some(bare)} of {places.public(shards.root)} has no held-out samples, so its loss cannot be measured: "
            f"{HOW_TO_HOLD_OUT}; or name the skills that count as `targets`."
        )
    return sorted(holdout)


def _all_texts(shards: ShardSet, samples: int) -> list[str]:
    """The first texts of every skill: a reading by segments takes its words from them."""
    return [sample.text for found in shards.train.values() for sample in islice(found, samples)]


def _rows(
    skill: str, planned: Sequence[Trial], warm: Sequence[Trial], warmup_steps: int, steps: int, num_texts: int
) -> Int[np.ndarray, " text"]:
    """The numbers of a skill's texts that any warm start or trial draws."""
    first = drawn_rows(skill, num_texts, warm, first_step=1, last_step=warmup_steps)
    then = drawn_rows(skill, num_texts, planned, first_step=warmup_steps + 1, last_step=warmup_steps + steps)
    return np.union1d(first, then)


def _schedule(lr_warmup: int | None, warmup_steps: int, steps: int, for_steps: int | None) -> Schedule:
    """The learning rate's schedule: that of the training that the graph is for, or a rise and then one rate."""
    length = warmup_steps + steps if for_steps is None else for_steps
    rising = usual_lr_warmup(length) if lr_warmup is None else lr_warmup
    if not 0 <= rising <= length:
        raise GraphError(
            f"`lr_warmup={rising}`: the learning rate would rise over more steps than the {length:,} of the training. Give 0 or more, and at "
            f"most {length:,}."
        )
    return Schedule(rising, math.inf if for_steps is None else float(for_steps))


def _encoded(
    reading: Reading,
    shards: SkillShards,
    samples: int,
    kind: LossKind,
    *,
    rows_of: Callable[[int], Int[np.ndarray, " text"]],
) -> DrawnTexts:
    """Some of the first samples of a skill, which are a random sample of it: shards are shuffled when they are written.

    Args:
        reading: encodes texts.
        shards: of the skill and split.
        samples: number of samples that are drawn from, at most.
        kind: says where the prompts end.
        rows_of: number of samples that are drawn from -> the numbers of those that are read.
    """
    num_texts = min(samples, len(shards))
    rows = rows_of(num_texts)
    wanted = set(rows.tolist())
    chosen = ((number, sample) for number, sample in enumerate(islice(shards, num_texts)) if number in wanted)
    parts = []
    while batch := list(islice(chosen, TEXTS_AT_ONCE)):
        prompts = [_checked(reading, shards.skill, number, sample, kind) for number, sample in batch]
        texts = [sample.text for _, sample in batch]
        parts.append(reading.encode(texts, None if kind.prompt_field is None else prompts))
    return DrawnTexts.of(parts, rows, num_texts)


def _checked(reading: Reading, skill: str, number: int, sample: Sample, kind: LossKind) -> int:
    """The number of characters of a sample's prompt; GraphError if the sample cannot be read."""
    why = reading.refusal(sample.text)
    try:
        if why is None:
            return prompt_chars(sample.text, kind, sample.meta)
    except ObservationError as error:
        why = str(error).rstrip(".")
    raise GraphError(
        f"sample {number:,} ({sample.id!r}) of skill {skill!r} cannot be read: {why} ({sample.text[:60]!r}). Change `answer_after`, "
        "`prompt_field` or `segment_at`, or leave such samples out of the corpus."
    )


def _before(out: str | Path, told: Learned) -> GraphFile | None:
    """Return the finished graph in the file `out`, or None without a file. StorageError if the file holds another graph."""
    if not storage.exists(out):
        return None
    found = read_graph(out)
    now = told.model_dump(exclude={"runs"})
    before = {} if found.learned is None else found.learned.model_dump(exclude={"runs"})
    if changed := artefact.differences(before, now):
        raise GraphError(
            f"{out} holds another graph ({'; '.join(changed[:2])}). Choose another `out`, or remove it; trials that both need are kept."
        )
    return found


def _tasks(
    folder: str,
    data: str,
    recipe: Recipe,
    planned: Sequence[Trial],
    warm: Sequence[Trial],
    warmup_steps: int,
    eval_every: int,
    schedule: Schedule,
    settle: float | None,
    made_from: dict[str, Any],
    eval_skills: Sequence[str],
) -> tuple[list[Task], list[Task]]:
    """Warm starts and trials; the key of each is the digest of everything that its result depends on.

    That is the shards and how they are read, not the data file, which holds only the texts that this command draws: more seeds
    or another method draw others, and find the trials that are there.
    """
    length = None if schedule.steps == math.inf else schedule.steps
    shared = {
        **{name: made_from[name] for name in READ_BY},
        "schedule": {"lr_warmup": schedule.lr_warmup, "steps": length},
        "training": training_identity(),
    }
    measured = {"eval_skills": list(eval_skills), **{name: made_from[name] for name in MEASURED_BY}}
    given = {"data": data, "schedule": schedule}
    warm_tasks = {}
    for one in warm:
        warm_recipe = replace(recipe, steps=warmup_steps)
        key = _key("warm", {**shared, "recipe": _told(warm_recipe), "run": asdict(one)})
        kept = places.join(folder, f"{key}.npz")
        warm_tasks[one.seed] = Task(key, {**given, "recipe": warm_recipe, "trial": one, "place": kept})
    trial_tasks = []
    for one in planned:
        start = warm_tasks.get(one.seed)
        asked = {
            "warmup_steps": warmup_steps,
            "eval_every": eval_every,
            "settle": settle,
            "reduction": made_from["reduction"],
        }
        told = {**shared, **measured, **asked, "recipe": _told(recipe), "run": asdict(one), "warm": start and start.key}
        arguments = {**given, **asked, "recipe": recipe, "trial": one, "warm": start and start.arguments["place"]}
        trial_tasks.append(Task(_key("run", told), arguments))
    return list(warm_tasks.values()), trial_tasks


def _told(recipe: Recipe) -> dict[str, Any]:
    """A recipe without the place of a pretrained model, whose content is in every key, and without the number of a GPU."""
    told = {**asdict(recipe), "device": device_kind(recipe.device)}
    return told if isinstance(told["model"], dict) else {**told, "model": None}


def _key(kind: str, known: dict[str, Any]) -> str:
    return f"{kind}-{canonical.digest(canonical.to_json(known))}"


def _needed(warm: Sequence[Task], missing: Sequence[Task], records: str) -> list[Task]:
    """The warm starts that trials still need and that are not there; one whose file was removed is done anew."""
    wanted = {task.arguments["warm"] for task in missing}
    needed = [
        task for task in warm if task.arguments["place"] in wanted and not storage.exists(task.arguments["place"])
    ]
    for task in needed:
        Path(places.join(records, f"{task.key}.json")).unlink(missing_ok=True)
    return needed


def _cost(warm: Sequence[Task], missing: Sequence[Task], backend: Backend, records: str) -> Cost:
    """From a few steps and one evaluation, measured here if the device is here, else where it is."""
    recipe = missing[0].arguments["recipe"]
    longest: Trial = max((task.arguments["trial"] for task in (*warm, *missing)), key=lambda one: one.batch_size)
    largest = longest.batch_size
    timing = Task("timing", {"data": missing[0].arguments["data"], "recipe": recipe, "trial": longest})
    if is_here(recipe.device):
        taken = timing_task(**timing.arguments)
    else:
        Path(places.join(records, f"{timing.key}.json")).unlink(missing_ok=True)  # of another day, on other machines
        taken = run(timing_task, [timing], backend=backend, records=records, keeps_model=True, num_gpus=1.0)[0]
    num_gpus = float(recipe.device.startswith("cuda"))

    def seconds(task: Task) -> float:
        arguments = task.arguments
        num_evals = (
            len(eval_steps(arguments["recipe"].steps, arguments["eval_every"])) if "eval_every" in arguments else 0
        )
        share = arguments["trial"].batch_size / largest
        return float(arguments["recipe"].steps * taken["step_s"] * share + num_evals * taken["eval_s"])

    stages = [(sum(map(seconds, tasks)), len(tasks)) for tasks in (warm, missing)]
    total = sum(spent / backend.processes(num, num_gpus=num_gpus) for spent, num in stages if num)
    num_steps = sum(task.arguments["recipe"].steps for task in (*warm, *missing))
    return Cost(len(missing), num_steps, total)
