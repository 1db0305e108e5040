"""Compare finished runs of any trainer by the losses in their ledgers, paired by seed."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from skillshard import canonical
from skillshard.comparison.compare import compared
from skillshard.comparison.file import CompareFile
from skillshard.comparison.verdict import ComparedRun
from skillshard.errors import ComparisonError, did_you_mean, name_some
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.records import open_records
from skillshard.report.figures import History, history


def compare_runs(runs: Sequence[str | os.PathLike[str]], *, baseline: str, targets: Sequence[str] = ()) -> CompareFile:
    """Compare finished runs. Runs with the same policy and arguments are the runs of one policy, and are paired by their seeds.

    Args:
        runs: Directories of ledgers.
        baseline: Name of a policy, or one of `runs`.
        targets: Evaluation skills whose mean loss decides. Empty: the skills that every run measured.

    Raises:
        ComparisonError: Runs differ in shards, length or steps of the reports, a seed comes twice, or the baseline is unknown.
        LedgerError: A place holds no run.
    """
    places = [os.fspath(place).rstrip("/") for place in runs]
    ledgers = {place: DirectoryLedger(place) for place in places}
    records = {place: open_records(ledger).run for place, ledger in ledgers.items()}
    histories = {place: history(ledger) for place, ledger in ledgers.items()}
    for place, past in histories.items():
        if not past.losses.size:
            raise ComparisonError(f"{place} holds no losses: report the losses of the run, or leave the run out.")
    first = places[0]
    for place in places[1:]:
        differs = [
            what
            for what, is_equal in (
                ("shards", records[place].shards == records[first].shards),
                ("steps of the reports", histories[place].steps.tolist() == histories[first].steps.tolist()),
                ("draws of the reports", histories[place].draws.tolist() == histories[first].draws.tolist()),
            )
            if not is_equal
        ]
        if differs:
            raise ComparisonError(
                f"{place} and {first} have other {name_some(differs)}: a difference of losses is then not an effect of the policy. Leave one "
                "of the runs out."
            )
    skills = _common(histories, targets)
    name_of = _names(places, {place: (record.policy, record.policy_arguments) for place, record in records.items()})
    grouped: dict[str, list[ComparedRun]] = {}
    for place in places:
        past, seed, name = histories[place], records[place].seed, name_of[place]
        if any(other.seed == seed for other in grouped.get(name, [])):
            raise ComparisonError(
                f"{place} is a second run of {name} with seed {seed}: runs are paired by seed, so leave one of the two out."
            )
        losses = past.losses[:, [past.eval_skills.index(skill) for skill in skills]]
        final = dict(zip(skills, losses[-1].tolist(), strict=True))
        grouped.setdefault(name, []).append(
            ComparedRun(
                seed=seed, steps=past.steps.tolist(), mean_losses=losses.mean(axis=1).tolist(), final_losses=final
            )
        )
    chosen = name_of.get(baseline.rstrip("/"), baseline)
    if chosen not in grouped:
        raise ComparisonError(
            f"`{baseline=}`{did_you_mean(baseline, grouped)}: give one of the runs, or one of the policies {name_some(grouped)}."
        )
    if len(grouped) < 2:
        raise ComparisonError(f"all runs are of the policy {chosen}: give runs of another policy too.")
    return compared(grouped, chosen, {}, made_from={"runs": places, "shards": records[first].shards}, skills=skills)


def _common(histories: dict[str, History], targets: Sequence[str]) -> tuple[str, ...]:
    """Return the skills that every run measured in every report."""
    measured = [
        {skill for column, skill in enumerate(past.eval_skills) if np.isfinite(past.losses[:, column]).all()}
        for past in histories.values()
    ]
    common = set.intersection(*measured)
    missing = [f"{name!r}{did_you_mean(name, common)}" for name in targets if name not in common]
    if not common:
        raise ComparisonError(
            "no skill is in every report of every run: report the losses of the same skills in all runs, or leave runs out."
        )
    if missing:
        raise ComparisonError(
            f"`targets` {name_some(missing)}: not in every report of every run. The skills in every report are {name_some(sorted(common))}."
        )
    return tuple(sorted(set(targets) or common))


MOST_NAMED = 3
"""Largest number of arguments in the name of a policy. More arguments, or a long value such as a digest, would make a column too wide."""
MOST_CHARS = 10
"""Largest number of characters of an argument's value in the name of a policy."""


def _names(places: Sequence[str], policies: dict[str, tuple[str, object]]) -> dict[str, str]:
    """Return the name of the policy of each run. Policies that differ in their arguments alone are told apart by these arguments, or by numbers.

    >>> runs = {"a": ("odm", {"eta": 0.1, "n": 2}), "b": ("odm", {"eta": 0.2, "n": 2}), "c": ("stratified", {})}
    >>> _names(["a", "b", "c"], runs)
    {'a': 'odm (eta=0.1)', 'b': 'odm (eta=0.2)', 'c': 'stratified'}
    """
    forms: dict[str, dict[bytes, dict[str, object]]] = {}
    for place in places:
        name, arguments = policies[place]
        forms.setdefault(name, {})[canonical.to_json(arguments)] = dict(_flat(arguments))
    labels: dict[tuple[str, bytes], str] = {}
    for name, known in forms.items():
        for number, (key, label) in enumerate(zip(known, _differing(list(known.values())), strict=True), start=1):
            labels[name, key] = name if len(known) == 1 else f"{name} ({label or number})"
    return {place: labels[name, canonical.to_json(arguments)] for place, (name, arguments) in policies.items()}


def _differing(forms: list[dict[str, object]]) -> list[str]:
    """Return the arguments in which each form differs from the others, or an empty text for each if the texts would be long or equal."""
    paths = [
        path
        for path in dict.fromkeys(path for form in forms for path in form)
        if len({repr(form.get(path)) for form in forms}) > 1
    ]
    texts = [
        ", ".join(f"{path}={form[path]}" if path in form else f"without {path}" for path in paths) for form in forms
    ]
    is_long = any(len(str(form.get(path))) > MOST_CHARS for form in forms for path in paths)
    # 1 and "1" are other values with the same text.
    is_unclear = len(paths) > MOST_NAMED or is_long or len(set(texts)) < len(texts)
    return [""] * len(forms) if is_unclear else texts


def _flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the path and the value of each number, text or null inside arguments."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
