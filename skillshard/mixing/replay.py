"""The replay of a run: each round decided again from the recorded observations, by the policy of the run or by another policy."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from skillshard import canonical
from skillshard.artefact import differences
from skillshard.errors import GraphError, ObservationError, PolicyError
from skillshard.loss import LossKind
from skillshard.mixing.chain import Chain, Segment
from skillshard.mixing.decision import counted_observation, decide, needed_draw
from skillshard.mixing.ledger import DirectoryLedger
from skillshard.mixing.named_policy import Context, policy_of_record
from skillshard.mixing.policy_file import policy_given
from skillshard.mixing.records import Records, open_records
from skillshard.mixing.round_records import ObservationRecord, RoundRecord
from skillshard.mixing.run_records import RunRecord
from skillshard.mixing.steering import named_by
from skillshard.mixing.steps import Steps
from skillshard.policies.policy import Policy, RunFacts, State, check_losses, in_draws
from skillshard.progress import advance


class ReplayedRound(NamedTuple):
    """A round that was decided again.

    Attributes:
        round: Number of the round.
        first_draw: First draw of the round.
        recorded: Weights in the record, in the order of the skills.
        decided: Weights of the replay, in the order of the skills.
        differences: Fields of the record that the replay gives other values, as `field: recorded -> replayed`. Empty for another policy.
    """

    round: int
    first_draw: int
    recorded: list[float]
    decided: list[float]
    differences: list[str]

    @property
    def largest(self) -> tuple[int, float]:
        """Number of the skill with the largest difference of the weights, and the difference `decided - recorded`."""
        changes = [new - old for new, old in zip(self.decided, self.recorded, strict=True)]
        number = max(range(len(changes)), key=lambda index: abs(changes[index]))
        return number, changes[number]


@dataclass(frozen=True)
class Replay:
    """A run that was decided again.

    Attributes:
        skills: Skills of the run, in the order of the weights.
        policy: Policy of the replay.
        is_other: Whether the policy is another policy than the policy of the run.
        first_draw: First draw of the run. Above 0, the run continues another run.
        rounds: Decided rounds, rising.
        run: Directory of the run's ledger.
        end_draw: Draw from which the next run of a chain continues. The later rounds of the run are not replayed. None: all rounds are replayed.
    """

    skills: list[str]
    policy: str
    is_other: bool
    first_draw: int
    rounds: list[ReplayedRound]
    run: str
    end_draw: int | None = None

    @property
    def differing(self) -> list[ReplayedRound]:
        """Rounds that differ from the record, rising."""
        return [
            replayed
            for replayed in self.rounds
            if replayed.differences or (self.is_other and replayed.decided != replayed.recorded)
        ]


def replay(
    ledger: str | os.PathLike[str],
    policy: Policy | None = None,
    *,
    graphs: Sequence[str | os.PathLike[str]] = (),
) -> Replay:
    """Decide each round of a run again from the recorded observations. Nothing is written.

    With the policy of the run, each round follows from the record of the round before, and must equal its own record. Another policy
    begins with its own first state and decides all rounds in turn, also the rounds that were steered by hand. The losses, and the draws behind the losses, stay the recorded
    ones: the replay does not know the losses of a model that is trained under the other policy.

    Args:
        ledger: Directory of the run's ledger.
        policy: Policy of the replay. None: the policy of the run, made from its record.
        graphs: Files of the graphs, if the policy of the run has graphs and `policy` is None.

    Raises:
        LedgerError: The ledger holds no run, or a record is damaged.
        PolicyError: The policy does not fit the skills or the reports of the run, or the policy of the run is no policy of skillshard.
    """
    return _replayed([Segment(open_records(DirectoryLedger(ledger)), None)], policy, graphs)[0]


def replay_chain(
    ledger: str | os.PathLike[str],
    policy: Policy | str | None = None,
    *,
    graphs: Sequence[str | os.PathLike[str]] = (),
) -> list[Replay]:
    """Decide each round of a run, and of the runs that the run continues, again. Each run counts up to the draw where the next run continues.

    Another policy decides all runs in turn. Its state goes on from run to run, as in `Mixer.continue_from`: the policy begins again, with the
    losses that the record of the new run has copied, only if the skills or the unit of the weights change.

    Args:
        ledger: Directory of the ledger of the last run.
        policy: Policy of the replay, or its text as in `skillshard.read_policy`. A text is read for each run: a graph is reduced to the skills
            of the run, and skills that come in later runs have no columns and no weights. None: the policy of each run, made from its record.
        graphs: Files of the graphs of all runs, if `policy` is None.

    Returns:
        The replays, the oldest run first, as far as the ledgers are at the noted places.

    Raises:
        LedgerError, PolicyError, GraphError, ObservationError: As in `replay`. The message names the run.
    """
    return _replayed(Chain.of(open_records(DirectoryLedger(ledger))).segments, policy, graphs)


def _replayed(
    segments: Sequence[Segment], policy: Policy | str | None, graphs: Sequence[str | os.PathLike[str]]
) -> list[Replay]:
    policies = []
    for segment in segments:
        with _naming(segment, segments):
            policies.append(_policy_of(segment, segments[-1].run.skills, policy, graphs))
    # A policy that is another policy in any run begins with a state of its own in all runs.
    is_other = any(
        (own_policy.name, canonical.to_json(own_policy.arguments))
        != (segment.run.policy, canonical.to_json(segment.run.policy_arguments))
        for segment, own_policy in zip(segments, policies, strict=True)
    )
    replays = []
    before: _Left | None = None
    for segment, own_policy in zip(segments, policies, strict=True):
        with _naming(segment, segments):
            if is_other:
                refuse_other_loss(own_policy, segment.run.loss)
                rounds, before = _decided_by_other(segment, own_policy, before)
            else:
                rounds = list(_decided_again(segment, own_policy))
        replays.append(
            Replay(
                segment.run.skills,
                own_policy.name,
                is_other,
                segment.run.first_draw,
                rounds,
                segment.name,
                segment.end,
            )
        )
    return replays


@contextlib.contextmanager
def _naming(segment: Segment, segments: Sequence[Segment]) -> Iterator[None]:
    """Name the run of a chain in an error of its policy or its reports. An error of a ledger has the place already."""
    try:
        yield
    except (PolicyError, GraphError, ObservationError) as error:
        if len(segments) == 1:
            raise
        raise type(error)(f"the run {segment.name}: {error}") from error


def _policy_of(
    segment: Segment, newest: Sequence[str], policy: Policy | str | None, graphs: Sequence[str | os.PathLike[str]]
) -> Policy:
    """Return the policy that decides a run again.

    Args:
        segment: The run.
        newest: Skills of the last run of the chain.
        policy, graphs: As in `replay_chain`.
    """
    run = segment.run
    if policy is None:
        return policy_of_record(
            run.policy, run.policy_arguments, graphs=[os.fspath(graph) for graph in graphs], skills=run.skills
        )
    if isinstance(policy, str):
        policy = policy_given(policy, Context(skills=run.skills, absent=set(newest) - set(run.skills), unit=run.unit))
    return in_draws(policy, _facts(segment.records))


def _facts(records: Records) -> RunFacts:
    """Return the facts of a run that convert the steps and tokens of another policy to draws."""
    run = records.run
    return RunFacts(
        skills=tuple(run.skills),
        num_samples=tuple(run.num_samples),
        num_tokens=None if run.num_tokens is None else tuple(run.num_tokens),
        step_draws=Steps(records).uniform(),
        first_step=0 if run.continues is None else run.continues.step,
        first_draw=run.first_draw,
    )


def other_loss(policy: Policy, loss: LossKind) -> LossKind | None:
    """Return the kind of losses of a policy's graph, if the kind is another kind than the run's and the policy does not allow the mix."""
    kind: LossKind | None = getattr(policy, "loss", None)
    return None if kind == loss or getattr(policy, "any_loss", False) else kind


def refuse_other_loss(policy: Policy, loss: LossKind) -> None:
    """Raise PolicyError if a policy's graph was measured with another kind of losses than the run's kind."""
    kind = other_loss(policy, loss)
    if kind is not None:
        raise PolicyError(
            f"the graph of policy {policy.name} was measured with {kind.sentence}, and this run's losses are {loss.sentence}: SKILL-IT would "
            f"mix the two kinds. Give Mixer(loss={kind!r}) and report losses of this kind, or allow the mix with skill_it(..., any_loss=True)."
        )


def _num_rounds(segment: Segment) -> int:
    """Return the number of rounds of a run that count: all rounds, or the rounds with a draw before the end."""
    num = segment.records.rounds.num()
    return num if segment.end is None else min(num, segment.run.num_rounds_to(segment.end))


def _decided_again(segment: Segment, policy: Policy) -> Iterator[ReplayedRound]:
    records, run = segment.records, segment.run
    first_state = _first_state(run, policy) if run.continues is None else run.continues.policy_state
    previous: RoundRecord | None = None
    num_rounds = _num_rounds(segment)
    for number in range(num_rounds):
        advance(number, num_rounds)
        record = records.rounds.existing(number)
        used = _observations(
            records, run.num_copied if previous is None else previous.num_observed, record.num_observed
        )
        decided = decide(
            records,
            policy,
            number,
            previous,
            first_state=first_state,
            horizon=record.observed_to,
            observations=used,
            newest=previous,
            steering=named_by(records.ledger, run, record),
        )
        # The checksum differs with any field, so it says nothing more.
        old, new = ({**canonical.from_json(value.to_bytes(), "round"), "checksum": ""} for value in (record, decided))
        yield ReplayedRound(number, record.first_draw, record.weights, decided.weights, differences(old, new))
        previous = record


class _Left(NamedTuple):
    """The state that another policy leaves at the end of a run to the next run of the chain.

    Attributes:
        run: Record of the run.
        policy: The policy of the run.
        state: State after all reports up to the end of the run.
    """

    run: RunRecord
    policy: Policy
    state: State

    def state_in(self, run: RunRecord, policy: Policy) -> State | None:
        """Return the state with which the policy goes on in the next run. None: the skills, the unit or the arguments change."""
        before, now = (
            (own.skills, own.unit, canonical.to_json(policy_of_run.arguments), _first_state(own, policy_of_run))
            for own, policy_of_run in ((self.run, self.policy), (run, policy))
        )
        return self.state if before == now else None


def _decided_by_other(segment: Segment, policy: Policy, before: _Left | None) -> tuple[list[ReplayedRound], _Left]:
    """Decide the rounds of a run by another policy, which has decided the run before, if any."""
    records, run = segment.records, segment.run
    measured = policy.eval_skills or tuple(run.skills)
    state = None if before is None else before.state_in(run, policy)
    if state is None:
        state = _first_state(run, policy)
        if policy.reads_losses and run.num_copied:
            copied = _copied(records.observations.existing(0), policy, measured)
            if not copied.left_out:
                state = policy.observe(state, counted_observation(records, copied, None))
    reports = (
        [
            (_copied if number < run.num_copied else _fitting)(report, policy, measured)
            for number, report in enumerate(records.observations)
            if segment.end is None or report.draw <= segment.end
        ]
        if policy.reads_losses
        else []
    )
    rounds: list[ReplayedRound] = []
    own: RoundRecord | None = None
    recorded: RoundRecord | None = None
    num_rounds = _num_rounds(segment)
    for number in range(num_rounds):
        advance(number, num_rounds)
        if own is not None and own.num_draws < run.round_draws:
            break  # the stream of the other policy ends here
        record = records.rounds.existing(number)
        horizon = max(run.copied_draw if own is None else own.observed_to, _horizon(run, record, reports))
        first = run.num_copied if own is None else own.num_observed
        used = [report for report in reports[first:] if report.draw <= horizon]
        decided = decide(
            records,
            policy,
            number,
            own,
            first_state=state,
            horizon=horizon,
            observations=used,
            newest=recorded,
        )
        rounds.append(ReplayedRound(number, record.first_draw, record.weights, decided.weights, []))
        own, recorded = decided, record
    last = state if own is None else own.policy_state
    for report in reports[run.num_copied if own is None else own.num_observed :]:
        if not report.left_out:
            last = policy.observe(last, counted_observation(records, report, recorded))
    return rounds, _Left(run, policy, last)


def _horizon(run: RunRecord, record: RoundRecord, reports: Sequence[ObservationRecord]) -> int:
    """Return the draw up to which another policy would have used reports.

    With lag="live" the reports count that the recorded round had seen.
    """
    if run.lag == "live":
        return record.observed_to
    initial = bool(reports) and reports[0].draw == run.first_draw
    needed = needed_draw(run, record.round, initial=initial)
    return -1 if needed is None else needed


def _first_state(run: RunRecord, policy: Policy) -> State:
    return policy.init(tuple(run.skills), run.num_tokens or run.num_samples)


def _observations(records: Records, first: int, stop: int) -> list[ObservationRecord]:
    return [records.observations.existing(number) for number in range(first, stop)]


def _copied(report: ObservationRecord, policy: Policy, measured: Collection[str]) -> ObservationRecord:
    """Return the report that was copied from the run before. If the report lacks a loss, for example of an added skill, the policy does not see it.

    A mixer that continues a run begins in the same way.
    """
    try:
        return _fitting(report, policy, measured)
    except ObservationError:
        return report.model_copy(update={"left_out": True})


def _fitting(report: ObservationRecord, policy: Policy, measured: Collection[str]) -> ObservationRecord:
    """Return a report with the losses that a policy reads.

    Raises:
        ObservationError: The report has no loss of a skill.
    """
    if report.left_out:
        return report
    wanted = set(measured)
    losses = check_losses(
        {name: loss for name, loss in report.losses.items() if name in wanted},
        tuple(measured),
        step=report.step,
        may_miss=policy.may_miss_losses,
    )
    return report.model_copy(update={"losses": losses})
