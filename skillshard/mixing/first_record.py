"""Put the first record of a run into its ledger, or join the run that the ledger holds."""

from skillshard import artefact
from skillshard.errors import LedgerError
from skillshard.mixing.ledger import RUN, Ledger, read_record, record_name
from skillshard.mixing.round_records import ObservationRecord
from skillshard.mixing.run_records import RunRecord


def open_run(ledger: Ledger, run: RunRecord) -> tuple[RunRecord, bool]:
    """Begin the run, or join the run. Return its record, and whether this call began the run.

    Raises:
        LedgerError: The ledger belongs to another run. The sentence names the differences.
    """
    begun, was_put = read_record(ledger, RUN, RunRecord), False
    if begun is None:
        # Put first, then read: if two processes begin the run at the same time, both compare with the record that won.
        was_put = ledger.put(RUN, run.to_bytes())
        begun = read_record(ledger, RUN, RunRecord)
        assert begun is not None
    facts = begun.model_dump(by_alias=True, exclude={"checksum"})
    own_facts = run.model_dump(by_alias=True, exclude={"checksum"})
    changed = artefact.differences(facts, own_facts)
    if changed:
        raise LedgerError(
            f"{ledger} is the ledger of another run: {'; '.join(changed[:4])}. These values determine the stream of a run. Continue with "
            "the values of the run, give a new ledger directory, or let a new run continue this run with other values "
            "('skillshard continue')."
        )
    _put_copied(ledger, begun)
    return begun, was_put


def _put_copied(ledger: Ledger, run: RunRecord) -> None:
    """Put the last observation of the run before as observation 0. Every process puts the same bytes."""
    copied = run.continues and run.continues.observation
    if copied:
        record = ObservationRecord(
            step=copied.step,
            draw=copied.draw,
            losses=copied.losses,
            loss=run.loss,
            measured_on=run.measured_on,
            num_samples=None,
            standard_errors=None,
            left_out=copied.left_out,
            previous=run.checksum,
        )
        ledger.put(record_name(0, "observations", 0), record.to_bytes())
