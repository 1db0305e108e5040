"""The changes from a run to the run that continues it, for every view of a chain of runs."""

from collections.abc import Iterator

from skillshard.artefact import differences
from skillshard.errors import name_some
from skillshard.mixing.run_records import RunRecord
from skillshard.printable import counted

CHANGEABLE = {"policy", "seed", "round_draws", "lag", "unit", "repeat", "measured_on", "loss"}
"""Fields of run.json that a continued run may change. The changes of skills have sentences of their own."""
MOST_ARGUMENTS = 4
"""Largest number of changed arguments of a policy that a sentence names: fixed weights have an argument for each skill."""


def changes_between(before: RunRecord, run: RunRecord) -> list[str]:
    """List the changes that a user has made, without the fields of run.json that follow from these changes.

    Args:
        before: Run that is continued.
        run: Run that continues it.

    Returns:
        Changes as `field: before -> now`, and sentences about skills. The list is empty if the run goes on as before.
    """
    changes = differences(before.model_dump(include=CHANGEABLE), run.model_dump(include=CHANGEABLE))
    if before.blocks is not None and run.blocks is not None:  # otherwise the change of the unit says everything
        changes += differences(before.blocks.model_dump(), run.blocks.model_dump())
    # Two policies have different arguments, and a list of all arguments would hide the other changes.
    if before.policy == run.policy:
        changes += _first(differences(before.policy_arguments, run.policy_arguments))
    return [*changes, *changes_of_skills(before, run)]


def _first(changes: list[str]) -> list[str]:
    num_more = len(changes) - MOST_ARGUMENTS
    return changes if num_more <= 0 else [*changes[:MOST_ARGUMENTS], counted(num_more, "more changed argument")]


def changes_of_skills(before: RunRecord, run: RunRecord) -> Iterator[str]:
    """Yield the changes of skills between two runs. A skill is known by its samples, as everywhere in a continued run."""
    contents_before, contents = (dict(zip(own.contents, own.skills, strict=True)) for own in (before, run))
    renamed = {old: contents[content] for content, old in contents_before.items() if content in contents}
    renamed = {old: new for old, new in renamed.items() if old != new}
    if renamed:
        yield f"renamed: {name_some(f'{old} -> {new}' for old, new in renamed.items())}"
    added = [name for name in run.skills if name not in before.skills and name not in renamed.values()]
    removed = [name for name in before.skills if name not in run.skills and name not in renamed]
    others = [
        name
        for name, content in zip(run.skills, run.contents, strict=True)
        if name in before.skills and content not in contents_before
    ]
    for verb, names in (("added", added), ("removed", removed), ("with other shards", others)):
        if names:
            yield f"{'skill' if len(names) == 1 else 'skills'} {verb}: {name_some(names)}"
