"""The skills of a shard set, recognized in the handover of a run.

A skill is recognized by its content: the keys of its training shards, which do not depend on the name of the skill. docs/design/0016 has
the reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skillshard import canonical, places
from skillshard.errors import ShardError, name_some, with_suggestions
from skillshard.mixing.place_records import (
    SkillPosition,
)
from skillshard.mixing.positions import (
    grown,
    untouched,
)
from skillshard.mixing.run_records import HandoverRecord
from skillshard.printable import counted
from skillshard.shards.manifest import ShardColumns, ShardColumns2
from skillshard.shards.read import ShardSet

Change = Literal["continues", "grew", "came back", "is new", "begins again"]


def content_of(columns: ShardColumns2, num_shards: int | None = None) -> str:
    """Compute the digest of the first training shards of a skill. The digest does not depend on the name of the skill.

    Args:
        columns: Training shards of the skill.
        num_shards: Number of shards. None: all shards.
    """
    # The JSON member of a sample holds the name of its skill, and the keys do not. Older shards have no keys.
    digests = columns.keys_digest if isinstance(columns, ShardColumns) else columns.digest
    return canonical.digest(canonical.to_json([columns.num_samples[:num_shards], digests[:num_shards]]))


@dataclass(frozen=True)
class Matched:
    """The skills of the new run, recognized in the handover.

    Attributes:
        skills: Place in the order of each skill of the new run.
        absent: Known skills that the new run does not have.
        changes: Change of each skill.
        old_names: Present name -> name in the run before, for the skills of the run before.
        num_repeated: Upper limit of the number of samples that come twice in the open epochs.
    """

    skills: list[SkillPosition]
    absent: list[SkillPosition]
    changes: dict[str, Change]
    old_names: dict[str, str]
    num_repeated: int


def matched(handover: HandoverRecord, shards: ShardSet, *, seed: int) -> Matched:
    """Recognize the skills of a shard set in a handover.

    Raises:
        ShardError: A skill holds other samples than before, or may hold drawn samples of a skill that is gone, and is not named in
            `restart`. Another cause is a name in `restart` that does not need it.
    """
    known = list(handover.skills)
    present = set(handover.present)
    columns = {skill: of_skill.columns for skill, of_skill in shards.train.items()}
    recognized = _recognized(columns, known)
    left = sorted(set(range(len(known))) - set(recognized.values()))
    new = [skill for skill in columns if skill not in recognized]
    removed = [known[number] for number in left if known[number].position and not _is_in(known[number], shards)]
    num_repeated = min(
        sum(position.position for position in removed), sum(sum(columns[skill].num_samples) for skill in new)
    )
    suspects = new if num_repeated else []
    _check_restart(handover, shards, suspects, removed, num_repeated)
    labels = {position.label for position in known}
    skills, changes = [], dict[str, Change]()
    for skill, own in columns.items():
        common: dict[str, Any] = {
            "skill": skill,
            "seed": seed,
            "content": content_of(own),
            "shard_rows": own.num_samples,
        }
        if skill in recognized:
            before = known[recognized[skill]]
            skills.append(grown(before, **common))
            has_grown = len(own.num_samples) > before.num_shards
            change = "continues" if recognized[skill] < len(handover.present) else "came back"
            changes[skill] = "grew" if has_grown else change  # type: ignore[assignment]  # both are members of Change
        else:
            label = skill
            while label in labels:
                label += "'"
            labels.add(label)
            skills.append(untouched(label=label, **common))
            changes[skill] = "begins again" if skill in suspects else "is new"
    old_names = {skill: known[number].skill for skill, number in recognized.items() if known[number].skill in present}
    return Matched(skills, [known[number] for number in left], changes, old_names, num_repeated)


def _recognized(columns: Mapping[str, ShardColumns2], known: Sequence[SkillPosition]) -> dict[str, int]:
    """Return skill -> number of the known skill with the same content. A skill of the same name comes before a renamed skill."""
    by_name = {position.skill: number for number, position in enumerate(known)}
    recognized = {
        skill: by_name[skill]
        for skill, own in columns.items()
        if skill in by_name and _begins_with(own, known[by_name[skill]])
    }
    left = [number for number in range(len(known)) if number not in recognized.values()]
    for skill, own in columns.items():
        if skill not in recognized:
            number = next((number for number in left if _begins_with(own, known[number])), None)
            if number is not None:
                recognized[skill] = number
                left.remove(number)
    return recognized


def _begins_with(columns: ShardColumns2, position: SkillPosition) -> bool:
    num_shards = position.num_shards
    return (
        len(columns.number) >= num_shards
        and sum(columns.num_samples[:num_shards]) == position.num_samples
        and content_of(columns, num_shards) == position.content
    )


def _is_in(position: SkillPosition, shards: ShardSet) -> bool:
    """Return whether a skill of the whole shard set, chosen or not, has the content. A sample has a single skill."""
    return any(_begins_with(skill.train, position) for skill in shards.manifest.skills)


def _check_restart(
    handover: HandoverRecord, shards: ShardSet, suspects: list[str], removed: list[SkillPosition], num_repeated: int
) -> None:
    """Raise ShardError unless exactly the skills that must begin again are named in `restart`."""
    unknown = [skill for skill in handover.restart if skill not in shards.train]
    if unknown:
        raise ShardError(
            f"`restart` names {name_some(with_suggestions(unknown, list(shards.train)))}, and {places.public(shards.root)} has no such skill. The skills are "
            f"{name_some(shards.train)}."
        )
    needless = [skill for skill in handover.restart if skill not in suspects]
    if needless:
        raise ShardError(
            f"`restart` names {name_some(map(repr, needless))}, and {'this skill' if len(needless) == 1 else 'these skills'} of "
            f"{places.public(shards.root)} need{'s' if len(needless) == 1 else ''} no restart: every skill with known samples continues, and a skill "
            "with new samples begins by itself. Leave the name out."
        )
    missing = [skill for skill in suspects if skill not in handover.restart]
    if missing:
        raise ShardError(
            f"{name_some(map(repr, missing))} in {places.public(shards.root)} may hold samples of {name_some(repr(position.skill) for position in removed)}, "
            f"which the run has begun to draw and which {'is' if len(removed) == 1 else 'are'} gone: the skills were split, merged or tagged anew. Up to "
            f"{counted(num_repeated, 'sample')} would come twice in an epoch. To begin these skills again in spite of that, give "
            f"`restart={missing!r}`. To add samples to a skill, use 'skillshard shard --append'."
        )
