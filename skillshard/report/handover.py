"""Show a run that continues another run and has not begun: everything that its ledger knows before the first round."""

from collections.abc import Mapping, Sequence

from skillshard.mixing.chain import place_before
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.place_records import SkillPosition
from skillshard.mixing.run_records import HandoverRecord, skipped_by
from skillshard.report.text import print_line, print_table
from skillshard.report.waiting import intact_handover


def show_waiting_run(ledger: DirectoryLedger) -> None:
    """Print the handover of a run that has not begun.

    Raises:
        LedgerError: The handover is missing or damaged.
    """
    handover = intact_handover(ledger)
    weights = dict(zip(handover.present, handover.weights or (), strict=handover.weights is not None))
    rows = [
        (place.skill, *_shown(place), f"{weights[place.skill]:.4f}" if place.skill in weights else "-")
        for place in handover.skills
    ]
    print_table(("skill", *_PLACE_COLUMNS, "last weight"), rows)
    for line in stretches_of(handover):
        print_line(line)
    if weights:
        print_line(f"last weight: in the last round of the run before, in {handover.unit}")
    step = "an unknown step" if handover.step is None else f"step {handover.step:,}"
    print_line(
        f"continues run {handover.run} in {place_before(ledger) or 'an unknown place'} from draw {handover.draw:,}, {step}; policy of that run: "
        f"{handover.policy}"
    )
    print_line(
        "no round is decided yet, and the shards, the policy and the seed of the new run are not known: start the training with this ledger"
    )


def show_places(handover: HandoverRecord, skills: Sequence[SkillPosition], changes: Mapping[str, str]) -> None:
    """Print the place of each skill in its order.

    Args:
        handover: Handover of the run.
        skills: Places of the skills of the new run. The other skills of the handover are absent.
        changes: Change of each skill, such as 'continues' or 'grew'. Empty: unknown, because the shards of the new run are not given.
    """
    if not changes:  # a column about the new run would say nothing
        print_table(("skill", *_PLACE_COLUMNS), [(place.skill, *_shown(place)) for place in skills])
        return
    present = {own.label for own in skills}
    rows = [(place.skill, changes[place.skill], *_shown(place)) for place in skills]
    rows += [(place.skill, "is absent", *_shown(place)) for place in handover.skills if place.label not in present]
    print_table(("skill", "in the new run", *_PLACE_COLUMNS), rows)


_PLACE_COLUMNS = ("epoch", "drawn in the epoch")


def _shown(place: SkillPosition) -> tuple[str, str]:
    return f"{place.epoch:,}", f"{place.position:,} of {place.num_samples:,}"


def stretches_of(handover: HandoverRecord) -> list[str]:
    """Return a sentence about each stretch that the new run skips."""
    part = skipped_by(handover)
    return [] if part is None else [stretch.sentence for stretch in part.stretches]
