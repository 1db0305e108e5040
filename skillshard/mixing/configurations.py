"""The differences between the configurations of two runs, in words that a reader knows: the places of a continued run have no field names."""

from collections.abc import Iterator

from skillshard.artefact import differences
from skillshard.mixing.run_changes import changes_of_skills
from skillshard.mixing.run_records import RunRecord, skipped_by

OF_THE_BEGINNING = {"continues", "skipped", "open_skips", "ahead", "cuts", "drawn"}
"""Fields of run.json that say where a run begins. Most of them follow from the place in the run before."""
OF_SKILLS = {"skills", "contents", "shards", "num_samples", "num_tokens", "num_shards"}
"""Fields of run.json about each skill. If the skills have other samples, sentences about skills say more than digests and counts."""


def configuration_changes(first: RunRecord, second: RunRecord) -> list[str]:
    """List the differences between two runs as `field: first -> second`: the configuration, the skills, then the beginning in the runs before."""
    # A run has another schema because of its beginning alone.
    left_out = {"checksum", "schema_version", *OF_THE_BEGINNING}
    of_skills = list(changes_of_skills(first, second))
    if of_skills:
        left_out |= OF_SKILLS
    if first.policy != second.policy:
        left_out.add("policy_arguments")  # two policies have different arguments
    fields = differences(first.model_dump(exclude=left_out), second.model_dump(exclude=left_out))
    return [*fields, *of_skills, *_changes_of_beginning(first, second)]


def _changes_of_beginning(first: RunRecord, second: RunRecord) -> Iterator[str]:
    begun, other = first.continues, second.continues
    if begun is None or other is None:
        if begun is not other:
            places = ("no run" if own is None else f"run {own.run} from draw {own.draw:,}" for own in (begun, other))
            yield f"continues: {' -> '.join(places)}"
        return
    yield from differences({"continues run": begun.run}, {"continues run": other.run})
    for name in ("draw", "step"):
        yield from differences({f"first {name}": getattr(begun, name)}, {f"first {name}": getattr(other, name)})
    skipped, others = _skipped_stretches(first), _skipped_stretches(second)
    yield from (f"only in the first run: {sentence}" for sentence in skipped if sentence not in others)
    yield from (f"only in the second run: {sentence}" for sentence in others if sentence not in skipped)
    starts = {place.label: (place.epoch, place.position) for place in begun.skills}
    for place in other.skills:
        epoch, position = starts.get(place.label, (place.epoch, place.position))
        if (epoch, position) != (place.epoch, place.position):
            yield f"place of {place.skill}: draw {position:,} of epoch {epoch:,} -> draw {place.position:,} of epoch {place.epoch:,}"
    compared = {"policy_state", "observation", "weights_before", "num_rounds"}
    yield from differences(begun.model_dump(include=compared), other.model_dump(include=compared))


def _skipped_stretches(run: RunRecord) -> list[str]:
    part = skipped_by(run)
    return [] if part is None else [stretch.sentence for stretch in part.stretches]
