"""Learn a graph from shards: plan, encode, estimate, train, derive."""

import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int

from skillshard import artefact, canonical, places, storage
from skillshard.answers import AnswerRule
from skillshard.corpus import Sample
from skillshard.errors import GraphError, ShardError, SkillshardError, did_you_mean, name_some
from skillshard.execution import Backend, OnStage, Record, Task, run, shown
from skillshard.graph.derive import derived, rule_of
from skillshard.graph.edges import EdgeRule
from skillshard.graph.plan import Method, Trial, plan_trials, plan_warm_starts
from skillshard.graph.skill_graph import GraphFile, Learned, TrialLosses, read_graph, write_graph
from skillshard.graph.trial_data import DrawnTexts, TrialData, save_data
from skillshard.graph.trials import Schedule, drawn_rows, eval_steps, timing_task, trial_task, warm_task
from skillshard.loss import Reduction
from skillshard.opened import refuse_unopened
from skillshard.printable import counted, time_in_words
from skillshard.proxy.device import Compute, device_kind, is_here, resolve_precision
from skillshard.proxy.identity import training_identity
from skillshard.proxy.reading import Reading
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.proxy.samples import CORRECTION, ReadableText, encode, readable
from skillshard.proxy.train import usual_lr_warmup
from skillshard.proxy.trial import Recipe
from skillshard.shards.read import ShardSet
from skillshard.shards.skill_shards import SkillShards
from skillshard.shards.split import HOW_TO_HOLD_OUT

READ_BY = (
    "shards",
    "proxy",
    "window",
    "segment_at",
    "answer_after",
    "prompt_field",
    "ordered",
    "samples",
    "chat_template",
)
"""Settings that determine the texts and tokens of a warm start or trial. The settings are part of the keys of both."""
MEASURED_BY = ("eval_shards", "eval_samples")
"""Settings that determine the measurement of a trial. The settings are part of the keys of trials only."""
TIMING = "timing"
"""Subdirectory of the folder of trials for the texts of the timed steps, which are removed after the estimate."""
TIMED_TEXTS = 64
"""Number of texts that timed steps draw from. All texts have the same number of positions, so few texts give the time of many."""
TEXTS_AT_ONCE = 1024
"""Number of texts that are encoded at once. Readings make 64-bit tokens, which are compacted before the next texts are read."""


@dataclass(frozen=True)
class Cost:
    """The cost of the training that is still to do.

    Attributes:
        num_trials: Number of trials without a record. Warm starts are not counted.
        num_steps: Number of steps of these trials and of the warm starts that the trials need.
        seconds: Estimated time on an idle machine.
    """

    num_trials: int
    num_steps: int
    seconds: float

    @property
    def sentence(self) -> str:
        """Describe the cost in words.

        >>> Cost(4, 1200, 95.0).sentence
        '4 trials, 1,200 steps in all: about 2 min'
        """
        return f"{counted(self.num_trials, 'trial')}, {counted(self.num_steps, 'step')} in all: about {time_in_words(self.seconds)}"

    def refusal(self, budget_s: float, fewer: str, lengths: Mapping[str, int]) -> str | None:
        """Return the sentence that refuses a cost beyond a budget, or None if the budget suffices.

        Args:
            budget_s: Largest estimated time in seconds.
            fewer: Plural of the inputs that the sentence proposes to reduce, for example "seeds (`num_seeds`)".
            lengths: Argument -> number of steps. A length of 0 is left out. A length that would fall below 1 is no remedy.

        >>> print(Cost(4, 1200, 95.0).refusal(10.0, "seeds", {"steps": 20}))
        4 trials, 1,200 steps in all: about 2 min, and `budget_s` allows 10 s. Raise `budget_s`, take fewer seeds, or give `steps=2`.
        >>> print(Cost(4, 1200, 95.0).refusal(1.0, "seeds", {"steps": 20}))
        4 trials, 1,200 steps in all: about 2 min, and `budget_s` allows 1 s. Raise `budget_s`, or take fewer seeds.
        """
        if self.seconds <= budget_s:
            return None
        shorter = {name: math.floor(steps * budget_s / self.seconds) for name, steps in lengths.items() if steps}
        proposed = " and ".join(f"`{name}={steps}`" for name, steps in shorter.items())
        remedy = (
            f", take fewer {fewer}, or give {proposed}" if min(shorter.values()) >= 1 else f", or take fewer {fewer}"
        )
        return f"{self.sentence}, and `budget_s` allows {time_in_words(budget_s)}. Raise `budget_s`{remedy}."


def learn_graph(
    shards: ShardSet,
    out: str | os.PathLike[str],
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
    trials: str | os.PathLike[str] | None = None,
    backend: Backend | None = None,
    on_estimate: Callable[[str], None] = lambda sentence: None,
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> GraphFile:
    """Learn a graph and write its file. Trials of earlier commands are not trained again.

    Args:
        shards: Shards of the training skills. Their holdout is measured unless `eval_shards` are given.
        out: Place of the JSON file, local or in a store.
        method: Method, see `skillshard.graph.plan.plan_trials`.
        steps: Number of steps of each trial, H in the paper.
        rule: Definition of an edge. The edges of another rule can be derived later.
        warmup_steps: Number of stratified steps before every trial, shared by all trials of a seed.
        num_seeds: Number of seeds `seed`, `seed` + 1, ... Each seed has its own trials. From two seeds on, edges have standard errors.
        targets: Evaluation skills, for fine-tuning. Empty: all skills.
        eval_shards: Shards whose holdout is measured, for evaluation out of domain. None: `shards`.
        reading: Model of the proxy, and its way to read texts.
        reduction: Mean over the samples of a skill. With `reading.answer_after` and `reading.prompt_field`, the reduction is the
            kind of losses, see `skillshard.loss.LossKind`. Report losses of the same kind to a mixer that uses the graph.
        batch_size: Smallest number of samples of a step.
        lr: Learning rate after the rise.
        lr_warmup: Number of steps over which the rate rises, counted from the first step of the warm start. None:
            `skillshard.proxy.train.usual_lr_warmup` of warm start and trial, or of `for_steps`.
        eval_every: Number of steps between two measurements, h in the paper. None: a tenth of `steps`.
        eval_samples: Largest number of held-out samples of each evaluation skill.
        samples: Largest number of training samples of each skill that trials draw from. Samples that no trial draws are not encoded.
        for_steps: Number of steps of the training that the graph is for. Trials follow its schedule of the learning rate. None:
            the rate does not fall.
        settle: Largest change in nats of a settled loss; see `skillshard.graph.trials.trial_task`. None: trials run to their last step.
        budget_s: Largest estimated time in seconds. More work is refused before training. None: no limit.
        seed: First seed.
        compute: Device and precision of the trials.
        trials: Directory of the trials, local or in a store. None: beside `out`.
        backend: Local pool or Ray.
        on_estimate: Function that is called before training with a sentence about the cost.
        on_stage: Function that receives the name and the number of tasks of each stage; see `skillshard.execution.OnStage`. None:
            show bars in a terminal or a notebook.
        progress: Whether to show bars.

    Raises:
        GraphError: Numbers contradict each other, a skill is unknown, `out` holds another graph, or the work exceeds the budget.
        ProxyError: The proxy is unknown, or cannot read a text.
        TokensError: The reading has a chat template, and the shards have no conversations.
        StorageError: The file `out` cannot be read or written.
    """
    for name, read_shards in {"shards": shards, "eval_shards": eval_shards or shards}.items():
        refuse_unopened(read_shards, ShardSet, name, "shard set", ShardError)
        read_shards.refuse_token_ids("The proxy of a graph")
    every = max(1, steps // 10) if eval_every is None else eval_every
    _check_numbers(steps, warmup_steps, num_seeds, every, eval_samples, samples, for_steps, settle)
    refuse_budget(budget_s, GraphError)
    reading.kind(reduction)  # refuses an unknown mean before any work
    schedule = _schedule(lr_warmup, warmup_steps, steps, for_steps)
    backend = backend or Backend()
    # Resolved before the keys are made: "auto" on two machines may be two devices, and the losses of both differ.
    compute = compute.resolved(on_this_machine=backend.ray_address is None)
    eval_skills = _eval_skills(eval_shards or shards, targets)
    seeds = list(range(seed, seed + num_seeds))
    planned = plan_trials(method, shards.skills, eval_skills, batch_size=batch_size, seeds=seeds)
    warm = plan_warm_starts(shards.skills, batch_size=batch_size, seeds=seeds) if warmup_steps else []
    # Everything that the file records of the learning, except the losses.
    learning = Learned(
        method=method,
        made_from={
            "shards": shards.digest,
            "eval_shards": None if eval_shards is None else eval_shards.digest,
            **reading.record(),
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
    if (before := _before(out, learning)) is not None:
        return before
    # The folder of trials keeps its ending from the time when trials were called runs, so that old trials are found.
    folder = trials_folder(out, trials)
    # Only a reading by segments looks at texts: its vocabulary is made of the words of all skills.
    encoder = reading.reading([] if reading.segment_at is None else _all_texts(shards, samples))
    trained_by, measured_by = answer_rule(reading, shards), answer_rule(reading, eval_shards or shards)
    holdout = (eval_shards or shards).holdout
    measured = {
        skill: _encoded(encoder, holdout[skill], eval_samples, measured_by, rows_of=np.arange) for skill in eval_skills
    }
    recipe = Recipe(
        model=reading.model(encoder),
        steps=steps,
        checkpoints=1,
        lr=lr,
        device=compute.device,
        precision=resolve_precision(compute.precision, compute.device),
    )
    warm_tasks, trial_tasks = _tasks(
        folder, recipe, planned, warm, warmup_steps, every, schedule, settle, learning.made_from, eval_skills
    )
    with artefact.without_leftovers(folder, TIMING, out):
        needed, missing = _without_result(warm_tasks, trial_tasks, folder)
        if missing:
            # Many steps draw many texts, and drawing takes minutes. So the cost is known before any text is drawn.
            longest = max((task.arguments["trial"] for task in (*needed, *missing)), key=lambda trial: trial.batch_size)
            skill = longest.trained_on[0]
            few = _encoded(encoder, shards.train[skill], TIMED_TEXTS, trained_by, rows_of=np.arange)
            # A folder of this command alone: the same command on another node would remove the texts of both.
            timed = save_data(TrialData({skill: few}, measured), places.join(folder, TIMING, secrets.token_hex(8)))
            try:
                cost = _cost(needed, missing, longest, timed, backend, folder)
            finally:
                storage.remove(timed)
            lengths = {"steps": steps, "warmup_steps": warmup_steps}
            refusal = None if budget_s is None else cost.refusal(budget_s, "seeds (`num_seeds`)", lengths)
            if refusal is not None:
                raise GraphError(refusal)
            on_estimate(cost.sentence)
            rows_of = partial(_rows, planned=planned, warm=warm, warmup_steps=warmup_steps, steps=steps)
            drawn = {
                skill: _encoded(encoder, split, samples, trained_by, rows_of=partial(rows_of, skill))
                for skill, split in shards.train.items()
            }
            data = save_data(TrialData(drawn, measured), folder)
            needed, trial_tasks = _with_data(needed, data), _with_data(trial_tasks, data)
        with shown(on_stage, progress) as stages:
            records = _train(needed, trial_tasks, folder, backend, stages)
        learned = learning.model_copy(
            update={"runs": [_measured(*each) for each in zip(planned, records, strict=True)]}
        )
        graph = derived(shards.skills, eval_skills, learned, rule=rule)
        write_graph(graph, out)
    return graph


def refuse_budget(budget_s: float | None, error: type[SkillshardError]) -> None:
    """Raise `error` for a budget below 0 or NaN, before any work."""
    if budget_s is not None and not budget_s >= 0:
        raise error(f"`{budget_s=}`: give seconds from 0, or leave it out.")


def _without_result(
    warm_tasks: Sequence[Task], trial_tasks: Sequence[Task], folder: str
) -> tuple[list[Task], list[Task]]:
    """Return the warm starts and the trials that still have to be trained."""
    records = places.join(folder, "records")
    missing = [task for task in trial_tasks if not storage.exists(places.join(records, f"{task.key}.json"))]
    return _needed(warm_tasks, missing, records), missing


def _with_data(tasks: Sequence[Task], data: str) -> list[Task]:
    return [replace(task, arguments={**task.arguments, "data": data}) for task in tasks]


def _train(
    warm_tasks: Sequence[Task], trial_tasks: Sequence[Task], folder: str, backend: Backend, on_stage: OnStage
) -> list[Record]:
    """Run the tasks without a record, and return the records of the trials."""
    # On a GPU an actor keeps its process, because the start of CUDA takes longer than a short trial.
    on_gpu = trial_tasks[0].arguments["recipe"].device.startswith("cuda")
    stages: list[tuple[str, Callable[..., Record], Sequence[Task]]] = (
        [("warm-up", warm_task, warm_tasks)] if warm_tasks else []
    )
    records: list[Record] = []
    for name, function, tasks in [*stages, ("trials", trial_task, trial_tasks)]:
        records = run(
            function,
            tasks,
            backend=backend,
            records=places.join(folder, "records"),
            keeps_model=on_gpu,
            num_gpus=1.0 if on_gpu else 0.0,
            on_done=on_stage(name, len(tasks)),
            stage=name,
        )
    return records


def _measured(trial: Trial, record: Record) -> TrialLosses:
    return TrialLosses(
        trained_on=list(trial.trained_on),
        samples_per_skill=trial.samples_per_skill,
        seed=trial.seed,
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
    # Checked before anything is read, since the first reading of large shards takes minutes.
    if for_steps is not None and for_steps < warmup_steps + steps:
        raise GraphError(
            f"`{for_steps=}` is shorter than warm-up and trial, {warmup_steps:,} + {steps:,} steps: their learning rate would be 0 "
            "before they end. Shorten them."
        )
    if settle is not None and not settle > 0:
        raise GraphError(f"`{settle=}`: give nats above 0, or leave it out.")


def _eval_skills(shards: ShardSet, targets: Sequence[str]) -> list[str]:
    """Return the columns of the graph.

    Raises:
        GraphError: A skill has no held-out samples, so its loss cannot be measured.
    """
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
    """Return the first texts of every skill. A reading by segments takes its words from these texts."""
    return [sample.text for split in shards.train.values() for sample in islice(split, samples)]


def _rows(
    skill: str, num_texts: int, *, planned: Sequence[Trial], warm: Sequence[Trial], warmup_steps: int, steps: int
) -> Int[np.ndarray, " text"]:
    """Return the numbers of a skill's texts that any warm start or trial draws."""
    first = drawn_rows(skill, num_texts, warm, first_step=1, last_step=warmup_steps)
    then = drawn_rows(skill, num_texts, planned, first_step=warmup_steps + 1, last_step=warmup_steps + steps)
    return np.union1d(first, then)


def _schedule(lr_warmup: int | None, warmup_steps: int, steps: int, for_steps: int | None) -> Schedule:
    """Return the schedule of the learning rate: the schedule of the training that the graph is for, or a rise to a constant rate."""
    length = warmup_steps + steps if for_steps is None else for_steps
    rising = usual_lr_warmup(length) if lr_warmup is None else lr_warmup
    if not 0 <= rising <= length:
        raise GraphError(
            f"`lr_warmup={rising}`: the learning rate would rise over more steps than the {length:,} of the training. Give 0 or more, and at "
            f"most {length:,}."
        )
    return Schedule(rising, math.inf if for_steps is None else float(for_steps))


def answer_rule(reading: ReadingChoice, shards: ShardSet) -> AnswerRule:
    """Return the rule for the texts and the answers of shards.

    Raises:
        TokensError: The reading has a chat template, and the shards have no conversations.
    """
    return reading.rule(shards.messages_field if reading.chat_template else None, places.public(shards.root))


def _encoded(
    reading: Reading,
    shards: SkillShards,
    samples: int,
    rule: AnswerRule,
    *,
    rows_of: Callable[[int], Int[np.ndarray, " text"]],
) -> DrawnTexts:
    """Encode chosen samples among the first samples of a skill. Shards are shuffled, so the first samples are a random selection.

    Args:
        reading: Reading that encodes texts.
        shards: Shards of the skill and split.
        samples: Largest number of samples to choose from.
        rule: Rule for the texts and the answers.
        rows_of: Function of the number of samples to choose from, which returns the numbers of the chosen samples.
    """
    num_texts = min(samples, len(shards))
    rows = rows_of(num_texts)
    wanted = set(rows.tolist())
    chosen = ((number, sample) for number, sample in enumerate(islice(shards, num_texts)) if number in wanted)
    parts = []
    while batch := list(islice(chosen, TEXTS_AT_ONCE)):
        parts.append(
            encode(reading, [_checked(reading, shards.skill, number, sample, rule) for number, sample in batch])
        )
    return DrawnTexts.of(parts, rows, num_texts)


def _checked(reading: Reading, skill: str, number: int, sample: Sample, rule: AnswerRule) -> ReadableText:
    """Return the text and the answers of a sample.

    Raises:
        GraphError: The proxy cannot read the sample, or the sample has no answer.
    """
    text = readable(sample, reading.refusal, rule)
    if isinstance(text, ReadableText):
        return text
    raise GraphError(
        f"sample {number:,} ({sample.id!r}) of skill {skill!r} cannot be read: {text} ({sample.text[:60]!r}). {CORRECTION}"
    )


def trials_folder(out: str | os.PathLike[str], trials: str | os.PathLike[str] | None) -> str:
    """Return the directory of the trials of a graph, or a folder of a store.

    >>> trials_folder("out/graph.json", None), trials_folder("s3://bucket/graph.json?region=eu", None), trials_folder("graph.json", "trials")
    ('out/graph.runs', 's3://bucket/graph.runs?region=eu', 'trials')
    """
    if trials is not None:
        return os.fspath(trials) if places.is_remote(trials) else str(places.local_path(trials))
    if places.is_remote(out):
        return places.resolve(str(PurePosixPath(places.name(out)).with_suffix(".runs")), places.resolve("..", out))
    return str(places.local_path(out).with_suffix(".runs"))


def _before(out: str | os.PathLike[str], learning: Learned) -> GraphFile | None:
    """Return the finished graph in the file `out`, or None without a file.

    Raises:
        GraphError: The file holds another graph.
    """
    if not storage.exists(out):
        return None
    graph = read_graph(out)
    now = learning.model_dump(exclude={"runs"})
    before = {} if graph.learned is None else graph.learned.model_dump(exclude={"runs"})
    if changed := artefact.differences(before, now):
        raise GraphError(
            f"{places.public(out)} holds another graph ({'; '.join(changed[:2])}). Choose another `out`, or remove it; trials that both need are kept."
        )
    return graph


def _tasks(
    folder: str,
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
    """Make the tasks of warm starts and trials, without the place of the texts. The key of a task is the digest of all inputs that
    determine its result.

    The inputs are the shards and the way to read them, and not the data file. The data file holds only the drawn texts of the command. A
    command with more seeds or another method draws other texts, and still finds the finished trials.
    """
    length = None if schedule.steps == math.inf else schedule.steps
    shared = {
        **{name: made_from[name] for name in READ_BY if name in made_from},
        "schedule": {"lr_warmup": schedule.lr_warmup, "steps": length},
        "training": training_identity(),
    }
    measured = {"eval_skills": list(eval_skills), **{name: made_from[name] for name in MEASURED_BY}}
    common = {"schedule": schedule}
    warm_tasks = {}
    for trial in warm:
        warm_recipe = replace(recipe, steps=warmup_steps)
        key = _key("warm", {**shared, "recipe": _identity_of(warm_recipe), "run": asdict(trial)})
        place = places.join(folder, f"{key}.npz")
        warm_tasks[trial.seed] = Task(key, {**common, "recipe": warm_recipe, "trial": trial, "place": place})
    trial_tasks = []
    for trial in planned:
        start = warm_tasks.get(trial.seed)
        settings = {
            "warmup_steps": warmup_steps,
            "eval_every": eval_every,
            "settle": settle,
            "reduction": made_from["reduction"],
        }
        inputs = {
            **shared,
            **measured,
            **settings,
            "recipe": _identity_of(recipe),
            "run": asdict(trial),
            "warm": start and start.key,
        }
        arguments = {**common, **settings, "recipe": recipe, "trial": trial, "warm": start and start.arguments["place"]}
        trial_tasks.append(Task(_key("run", inputs), arguments))
    return list(warm_tasks.values()), trial_tasks


def _identity_of(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe for a key: without the place of a pretrained model, whose content is in every key, and without a GPU's number."""
    fields = {**asdict(recipe), "device": device_kind(recipe.device)}
    return fields if isinstance(fields["model"], dict) else {**fields, "model": None}


def _key(kind: str, inputs: dict[str, Any]) -> str:
    return f"{kind}-{canonical.digest(canonical.to_json(inputs))}"


def _needed(warm: Sequence[Task], missing: Sequence[Task], records: str) -> list[Task]:
    """Return the warm starts that trials still need and whose file or record is missing. A warm start whose file was removed is trained
    again, and so is a warm start that was killed between its file and its record.
    """
    wanted = {task.arguments["warm"] for task in missing}
    needed = [
        task
        for task in warm
        if task.arguments["place"] in wanted
        and not (storage.exists(task.arguments["place"]) and storage.exists(places.join(records, f"{task.key}.json")))
    ]
    # Without its record the task runs again. A record alone would count as done, and the trials would miss the file.
    for task in needed:
        storage.remove(places.join(records, f"{task.key}.json"))
    return needed


def _cost(
    warm: Sequence[Task], missing: Sequence[Task], longest: Trial, data: str, backend: Backend, folder: str
) -> Cost:
    """Estimate the cost from a few steps and one evaluation. If this machine lacks the device, the backend measures the times.

    Args:
        warm: Warm starts that have to be trained.
        missing: Trials that have to be trained.
        longest: Warm start or trial with the largest batches, which is timed.
        data: Place of a few texts of the first skill of `longest`, and of the measured texts.
        backend: Backend of the training.
        folder: Directory of the trials.
    """
    recipe = missing[0].arguments["recipe"]
    timing = Task("timing", {"data": data, "recipe": recipe, "trial": longest})
    if is_here(recipe.device):
        taken = timing_task(**timing.arguments)
    else:
        records = places.join(folder, "records")
        # An old record may be of another day or of another machine.
        storage.remove(places.join(records, f"{timing.key}.json"))
        taken = run(timing_task, [timing], backend=backend, records=records, keeps_model=True, num_gpus=1.0)[0]
    num_gpus = float(recipe.device.startswith("cuda"))

    def seconds(task: Task) -> float:
        arguments = task.arguments
        num_evals = (
            len(eval_steps(arguments["recipe"].steps, arguments["eval_every"])) if "eval_every" in arguments else 0
        )
        # The time of a step is taken to be proportional to its number of samples, so that only one batch size has to be timed.
        share = arguments["trial"].batch_size / longest.batch_size
        return float(arguments["recipe"].steps * taken["step_s"] * share + num_evals * taken["eval_s"])

    # Each stage is divided by its own number of processes: a stage with few tasks cannot use all processes.
    stages = [(sum(map(seconds, tasks)), len(tasks)) for tasks in (warm, missing)]
    total = sum(spent / backend.processes(num, num_gpus=num_gpus) for spent, num in stages if num)
    num_steps = sum(task.arguments["recipe"].steps for task in (*warm, *missing))
    return Cost(len(missing), num_steps, total)
