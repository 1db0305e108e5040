"""Compare policies by trainings of a proxy on the user's own shards, paired by seed.

    OUT/settings.json       the settings that all trials share
    OUT/trials/KEY.json     record of a trial, a policy with a seed; KEY has the digest of all inputs of the trial
    OUT/runs/KEY/           ledger of the trial, which takes this name when the trial ends
    OUT/compare.json        the result (schemas/compare-1.json), written last

A killed command that is run again repeats only unfinished trials, and ends in the same bytes. A command with more seeds or policies
keeps the finished trials.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from skillshard import artefact, canonical, places, storage
from skillshard.comparison.file import ComparedPolicy, CompareFile
from skillshard.comparison.policy_text import NamedPolicy, parse_policy
from skillshard.comparison.training import Training, num_evaluated, skills_read, timing_task, trial_task
from skillshard.comparison.verdict import EVALUATION_COST, ComparedRun, Cost, verdicts
from skillshard.errors import ComparisonError, PolicyError, ShardError, did_you_mean, name_some
from skillshard.execution import Backend, OnStage, Task, run, shown
from skillshard.graph.learn import Cost as TrainingCost
from skillshard.graph.learn import answer_rule, refuse_budget
from skillshard.graph.skill_graph import read_graph
from skillshard.graph.trials import eval_steps
from skillshard.loss import LossKind, Reduction
from skillshard.mixing.replay import other_loss
from skillshard.opened import refuse_unopened
from skillshard.policies.policy import RunFacts, in_draws
from skillshard.printable import shortened
from skillshard.proxy.device import Compute, device_kind, is_here, resolve_precision
from skillshard.proxy.identity import SIZES, training_identity
from skillshard.proxy.reading_choice import ReadingChoice
from skillshard.proxy.trial import Recipe
from skillshard.shards.read import ShardSet
from skillshard.shards.split import HOW_TO_HOLD_OUT

SAMPLES_OF_WORDS = 20_000
"""Number of training samples of each skill from which a reading by segments takes its words."""


def compare_policies(
    shards: ShardSet,
    out: Path,
    *,
    policies: Sequence[str],
    steps: int,
    num_seeds: int = 5,
    seed: int = 0,
    baseline: str | None = None,
    targets: Sequence[str] = (),
    eval_shards: ShardSet | None = None,
    reading: ReadingChoice = ReadingChoice(),
    reduction: Reduction = "per_sample",
    batch_size: int = 64,
    lr: float = 1e-3,
    eval_every: int | None = None,
    eval_samples: int = 100,
    budget_s: float | None = None,
    compute: Compute = Compute(),
    backend: Backend | None = None,
    on_estimate: Callable[[str], None] = lambda sentence: None,
    on_stage: OnStage | None = None,
    progress: bool = True,
) -> CompareFile:
    """Train under every policy and seed, and write compare.json with a verdict for every policy except the baseline.

    Args:
        shards: Training shards.
        out: Local directory. On Ray, all nodes must see the directory.
        policies: At least 2 policies as texts, see `skillshard.comparison.policy_text`.
        steps: Number of optimizer steps of each trial.
        num_seeds: Number of seeds `seed`, `seed` + 1, ..., at least 2.
        seed: First seed.
        baseline: One of `policies`. None: the first policy.
        targets: Evaluation skills whose mean loss decides. Empty: all skills with held-out samples.
        eval_shards: Shards whose holdout is measured. None: `shards`.
        reading: Model, and its way to read texts.
        reduction: Mean over the samples of a skill.
        batch_size: Number of samples of a step.
        lr: Highest learning rate. The rate rises, and then falls to 0 at the last step.
        eval_every: Number of steps between two measurements, after which the weights may change. None: a tenth of `steps`.
        eval_samples: Largest number of held-out samples of a skill.
        budget_s: Largest estimated time in seconds. More work is refused before training. None: no limit.
        compute: Device and precision.
        backend: Local pool or Ray. On a GPU, trials of the local pool run in turn, and each trial on Ray gets a GPU of its own.
        on_estimate: Function that is called before training with a sentence about the cost.
        on_stage: Function that receives the stages; see `skillshard.execution.OnStage`.
        progress: Whether to show bars.

    Raises:
        ComparisonError: The arguments do not fit the shards, `out` holds something else, or the work exceeds the budget.
        PolicyError, GraphError: A policy cannot be made, or its graph lacks a skill.
        ProxyError: The proxy is unknown, or a training diverges.
        TokensError: The reading has a chat template, and the shards have no conversations.
    """
    every = max(1, steps // 10) if eval_every is None else eval_every
    _check_numbers(policies, steps, num_seeds, every, batch_size, eval_samples, baseline)
    refuse_budget(budget_s, ComparisonError)
    measured_on = eval_shards or shards
    for name, read_shards in {"shards": shards, "eval_shards": measured_on}.items():
        refuse_unopened(read_shards, ShardSet, name, "shard set", ShardError)
        read_shards.refuse_token_ids("The small model of a comparison")
    counted = _counted(measured_on, targets)
    chosen = [parse_policy(text, skills=shards.skills, targets=targets, draws=steps * batch_size) for text in policies]
    _refuse_twice(chosen)
    kind = reading.kind(reduction)
    _refuse_unfit(chosen, shards, batch_size, kind)
    backend = backend or Backend()
    # A worker of Ray has another working directory.
    out = out.absolute()
    if reading.proxy not in SIZES:
        reading = replace(reading, proxy=os.path.abspath(reading.proxy))
    compute = compute.resolved(on_this_machine=backend.ray_address is None)
    read = {skill for named in chosen for skill in skills_read(named.policy, shards.skills)}
    _refuse_unmeasured(chosen, shards, measured_on)
    texts = (
        []
        if reading.segment_at is None
        else [sample.text for split in shards.train.values() for sample in islice(split, SAMPLES_OF_WORDS)]
    )
    encoder = reading.reading(texts)
    training = Training(
        shards=_on_all_nodes(shards),
        skills=tuple(shards.skills),
        eval_shards=_on_all_nodes(measured_on),
        counted=counted,
        measured=tuple(sorted({*counted, *read})),
        reading=encoder,
        kind=kind,
        recipe=Recipe(
            model=reading.model(encoder),
            steps=steps,
            checkpoints=1,
            lr=lr,
            device=compute.device,
            precision=resolve_precision(compute.precision, compute.device),
        ),
        batch_size=batch_size,
        eval_every=every,
        eval_samples=eval_samples,
        train_chat=answer_rule(reading, shards).chat,
        eval_chat=answer_rule(reading, measured_on).chat,
    )
    settings = {
        "shards": shards.digest,
        "skills": list(shards.skills),
        "eval_shards": None if eval_shards is None else eval_shards.digest,
        "targets": list(targets),
        **reading.record(),
        "reduction": reduction,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "eval_every": every,
        "eval_samples": eval_samples,
        "device": device_kind(compute.device),
        "precision": training.recipe.precision,
    }
    _refuse_other(out, settings)
    seeds = range(seed, seed + num_seeds)
    tasks = [_task(named, number, training, settings, out) for named in chosen for number in seeds]
    missing = [task for task in tasks if not (out / "trials" / f"{task.key}.json").exists()]
    if missing:
        cost = _cost(missing, training, backend, out)
        fewer = "policies or seeds (`num_seeds`)"
        refusal = None if budget_s is None else cost.refusal(budget_s, fewer, {"steps": steps})
        if refusal is not None:
            raise ComparisonError(refusal)
        on_estimate(cost.sentence)
        # Only now: a refused comparison leaves nothing that another comparison would have to remove.
        storage.write_bytes(out / "settings.json", canonical.to_json(settings))
    on_gpu = training.recipe.device.startswith("cuda")
    with shown(on_stage, progress) as stages:
        records = run(
            trial_task,
            tasks,
            backend=backend,
            records=str(out / "trials"),
            keeps_model=on_gpu,
            num_gpus=1.0 if on_gpu else 0.0,
            on_done=stages("trials", len(tasks)),
            stage="trials",
        )
    runs = {
        named.text: [ComparedRun(**record) for record in records[place * num_seeds : (place + 1) * num_seeds]]
        for place, named in enumerate(chosen)
    }
    costs = {named.text: _cost_of(named, training, measured_on) for named in chosen}
    result = compared(
        runs, baseline or policies[0], costs, made_from={**settings, "seeds": list(seeds)}, skills=counted
    )
    result.save(out / "compare.json")
    _clean(out)
    return result


def compared(
    runs: dict[str, list[ComparedRun]],
    baseline: str,
    costs: dict[str, Cost],
    *,
    made_from: dict[str, Any],
    skills: Sequence[str],
) -> CompareFile:
    """Make the result of a comparison from its runs."""
    decided = verdicts(runs, baseline, costs)
    return CompareFile(
        schema="skillshard/compare/1",
        made_from=made_from,
        skills=list(skills),
        baseline=baseline,
        policies=[
            ComparedPolicy(name=name, runs=of_policy, cost=costs.get(name, Cost()), verdict=decided.get(name))
            for name, of_policy in runs.items()
        ],
    )


def _check_numbers(
    policies: Sequence[str],
    steps: int,
    num_seeds: int,
    eval_every: int,
    batch_size: int,
    eval_samples: int,
    baseline: str | None,
) -> None:
    least = {"steps": steps, "batch_size": batch_size, "eval_samples": eval_samples}
    bad = [f"`{name}={number}`" for name, number in least.items() if number < 1]
    if bad:
        raise ComparisonError(f"{name_some(bad)}: give 1 or more.")
    if num_seeds < 2:
        raise ComparisonError(
            f"`{num_seeds=}`: a single seed cannot tell a policy's effect from noise. Give 2 or more, such as 5."
        )
    if not 1 <= eval_every <= steps:
        raise ComparisonError(f"`{eval_every=}`: give a number of steps from 1 to `{steps=}`.")
    if len(policies) < 2:
        raise ComparisonError("a comparison needs a baseline and another policy: give `policies` twice or more.")
    if baseline is not None and baseline not in policies:
        raise ComparisonError(
            f"`{baseline=}`{did_you_mean(baseline, policies)}: give one of the policies, {name_some(policies)}."
        )


def _counted(shards: ShardSet, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the skills whose mean loss decides."""
    holdout = shards.holdout
    unknown = [f"{name!r}{did_you_mean(name, holdout)}" for name in targets if name not in holdout]
    if not holdout:
        raise ComparisonError(f"{places.public(shards.root)} has no held-out samples to measure: {HOW_TO_HOLD_OUT}.")
    if unknown:
        raise ComparisonError(
            f"`targets` {name_some(unknown)}: not a skill with held-out samples in {places.public(shards.root)}; it has {name_some(holdout)}."
        )
    return tuple(sorted(set(targets) or holdout))


def _refuse_twice(chosen: Sequence[NamedPolicy]) -> None:
    first_of: dict[bytes, str] = {}
    for named in chosen:
        key = canonical.to_json([named.policy.name, named.policy.arguments])
        if key in first_of:
            raise ComparisonError(
                f"policy {named.text!r} is the same as {first_of[key]!r}: give each policy once, because a policy that counts twice "
                "makes the correction stricter for all."
            )
        first_of[key] = named.text


def _refuse_unfit(chosen: Sequence[NamedPolicy], shards: ShardSet, batch_size: int, loss: LossKind) -> None:
    """Raise PolicyError before any training if a policy does not fit the skills or the losses, as the mixer of a trial would."""
    skills = tuple(shards.skills)
    num_samples = tuple(len(shards.train[skill]) for skill in skills)
    for named in chosen:
        try:
            in_draws(named.policy, RunFacts(skills, num_samples, step_draws=batch_size)).init(skills, num_samples)
        except PolicyError as error:
            raise PolicyError(f"policy {shortened(named.text, 80)}: {error}") from error
        kind = other_loss(named.policy, loss)
        if kind is not None:
            raise PolicyError(
                f"policy {shortened(named.text, 80)}: its graph was measured with {kind.sentence}, and this comparison measures {loss.sentence}. "
                f"Measure the comparison in the same way (`reduction={kind.reduction!r}`, `answer_after`, `prompt_field`), or allow the mix with "
                "any_loss=true in the text of the policy."
            )


def _refuse_unmeasured(chosen: Sequence[NamedPolicy], shards: ShardSet, measured_on: ShardSet) -> None:
    holdout = measured_on.holdout
    for named in chosen:
        bare = [skill for skill in skills_read(named.policy, shards.skills) if skill not in holdout]
        if bare:
            raise ComparisonError(
                f"policy {named.text!r} reads the losses of {name_some(bare)}. {places.public(measured_on.root)} has no held-out samples of "
                f"{'this skill' if len(bare) == 1 else 'these skills'}: {HOW_TO_HOLD_OUT}; or leave the policy out."
            )


def _on_all_nodes(shards: ShardSet) -> str:
    place = os.fspath(shards.root)
    return place if places.is_remote(place) else os.path.abspath(place)


def _refuse_other(out: Path, settings: dict[str, Any]) -> None:
    """Check that `out` is free or holds the same comparison. A comparison without a finished trial is replaced.

    Raises:
        ComparisonError: The directory holds another comparison, or anything else.
    """
    place = out / "settings.json"
    if place.exists():
        changed = artefact.differences(storage.read_json(place), settings)
        if changed and any((out / "trials").glob("*.json")):
            raise ComparisonError(
                f"{out} holds another comparison ({'; '.join(changed[:2])}). Choose another `out`. Only the policies and the seeds may change."
            )
        return
    # Hidden files are leftovers of killed writers.
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    if names or out.is_file():
        raise ComparisonError(
            f"{out} {'is not empty' if names else 'is a file'} and holds no comparison. Choose another `out`."
        )


def _clean(out: Path) -> None:
    """Remove the remains of killed commands: half-written files, and the ledgers and progress of unfinished trials."""
    storage.remove_leftovers(out)
    for folder in ("runs", "trials"):
        for path in (out / folder).glob(".*"):
            storage.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _task(named: NamedPolicy, seed: int, training: Training, settings: dict[str, Any], out: Path) -> Task:
    inputs = {
        "settings": settings,
        "policy": [named.policy.name, named.policy.arguments],
        # Measuring more skills does not change a training, but other skills must be in the ledger for other policies.
        "measured": list(training.measured),
        "training": training_identity(),
        "seed": seed,
    }
    name = re.sub(r"\W+", "-", named.policy.name)
    key = f"{name}-{seed}-{canonical.digest(canonical.to_json(inputs))}"
    arguments = {"training": training, "policy": named.policy, "seed": seed, "ledger": str(out / "runs" / key)}
    return Task(key, arguments, about=f"{named.text}, seed {seed}")


def _cost(missing: Sequence[Task], training: Training, backend: Backend, out: Path) -> TrainingCost:
    """Estimate the time of the missing trials from a few steps and a measurement."""
    on_gpu = training.recipe.device.startswith("cuda")
    if is_here(training.recipe.device):
        taken = timing_task(training)
    else:
        records = out / "timing"
        (records / "timing.json").unlink(missing_ok=True)  # an old record may be of another machine
        task = Task("timing", {"training": training})
        taken = run(timing_task, [task], backend=backend, records=str(records), keeps_model=True, num_gpus=1.0)[0]
        storage.remove_tree(records)
    num_evals = len(eval_steps(training.recipe.steps, training.eval_every))
    seconds = training.recipe.steps * taken["step_s"] + num_evals * taken["eval_s"]
    processes = backend.processes(len(missing), num_gpus=float(on_gpu))
    return TrainingCost(len(missing), len(missing) * training.recipe.steps, seconds * -(-len(missing) // processes))


def _cost_of(named: NamedPolicy, training: Training, measured_on: ShardSet) -> Cost:
    """Return the costs of a policy beside the training: the learned graph, and the measurements for the policy."""
    read = skills_read(named.policy, training.skills)
    num_read = sum(num_evaluated(training, measured_on, skill) for skill in read)
    # Every training ends with a measurement for the comparison. No decision follows.
    num_evals = len(eval_steps(training.recipe.steps, training.eval_every)) - 1
    graph_samples = 0.0
    for graph in named.graphs:
        if (learned := read_graph(graph).learned) is not None:
            num_measured = sum(len(trial.losses) * len(trial.losses[0]) for trial in learned.runs)
            per_skill = learned.made_from.get("eval_samples", training.eval_samples)
            graph_samples += learned.num_samples + num_measured * per_skill * EVALUATION_COST
    return Cost(
        graph_steps=graph_samples / training.batch_size,
        evaluation_steps=num_read * num_evals * EVALUATION_COST / training.batch_size,
    )
