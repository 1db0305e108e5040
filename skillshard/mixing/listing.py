"""The mixed stream as lines of text, and the policies that need no trainer, for `skillshard mix` and `skillshard weights`."""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
from jaxtyping import Int

from skillshard.errors import LedgerError, PolicyError, RepetitionWarning
from skillshard.graph.skill_graph import SkillGraph
from skillshard.mixing.alarms import MANY_EPOCHS
from skillshard.mixing.ledger import HANDOVER, DirectoryLedger, read_record
from skillshard.mixing.mixer import Mixer
from skillshard.mixing.named_policy import HOLDERS, Context, policy_of_text, suggestion
from skillshard.mixing.policy_file import is_by_name, policy_given
from skillshard.mixing.recorded_blocks import RecordedBlock
from skillshard.mixing.recorded_chain import RecordedChain
from skillshard.mixing.rounds import EndOfStream, warn_of_repetition
from skillshard.mixing.run_records import HandoverRecord
from skillshard.mixing.weights_file import read_weights
from skillshard.policies import (
    Policy,
    anti_curriculum,
    chain,
    curriculum,
    fixed,
    proportional,
    skill_curriculum,
    skill_it,
    skill_stratified,
    stratified,
    temperature,
    unimax,
)
from skillshard.policies import floor as floored
from skillshard.policies.inner import Holding, policies_within
from skillshard.printable import shortened
from skillshard.progress import advance
from skillshard.shards.read import ShardSet

ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "stratified": ((), ()),
    "proportional": ((), ()),
    "temperature": (("tau",), ()),
    "unimax": (("epochs", "draws"), ()),
    "fixed": (("weights",), ("new",)),
    "skill_stratified": (("graph",), ("targets",)),
    "skill_it": (("graph", "eta"), ("prior", "targets")),
    "curriculum": (("losses", "draws"), ()),
    "anti_curriculum": (("losses", "draws"), ()),
    "skill_curriculum": (("losses", "draws"), ()),
}
"""Policy that needs no trainer -> required arguments and optional arguments."""
CONSTANT = tuple(name for name in ARGUMENTS if not name.endswith("curriculum"))
"""Policies that need no trainer and have the same weights in every round."""


def static_policy(
    policy: str,
    skills: Sequence[str],
    *,
    among: Sequence[str] = tuple(ARGUMENTS),
    draws: int | None = None,
    tau: float | None = None,
    epochs: float | None = None,
    weights: str | None = None,
    new: str | None = None,
    graph: str | os.PathLike[str] | None = None,
    eta: float | None = None,
    prior: str | None = None,
    targets: Sequence[str] | None = None,
    losses: str | None = None,
    floor: float = 0.0,
    unit: str = "samples",
) -> Policy:
    """Make a policy that needs no trainer, from a name and arguments.

    Args:
        policy: Name of the policy, a member of `among`, or a policy with its arguments: NAME:KEY=VALUE, or a file, see
            `skillshard.mixing.policy_file.read_policy`.
        skills: Training skills of the mix. A graph is reduced to the rows of these skills.
        among: Names of the allowed policies.
        draws: Number of draws of the run, for unimax and the curricula.
        tau: Temperature, for temperature.
        epochs: Maximal number of passes over a skill, for unimax.
        weights: File of weights, for fixed.
        new: Rule for skills without a weight, "proportional" or "refuse", for fixed.
        graph: File of a graph, for skill_it and skill_stratified. With skill_it the weights are static.
        eta: Step size, for skill_it.
        prior: File of weights from which the policy starts, for skill_it.
        targets: Evaluation skills of the graph that count. Empty or None: all evaluation skills.
        losses: File of skill -> loss of the untrained model, for the curricula.
        floor: Minimal weight of a skill. 0: no floor.
        unit: Unit of the weights, "samples" or "tokens".

    Raises:
        PolicyError: The name is unknown, an argument is missing or unknown to the policy, or a file of weights has another unit.
        GraphError: The file is no graph, or the graph lacks a skill.
    """
    values = {
        "tau": tau,
        "epochs": epochs,
        "weights": weights,
        "new": new,
        "graph": graph,
        "eta": eta,
        "prior": prior,
        "targets": targets or None,
        "losses": losses,
        "draws": draws,
    }
    if not is_by_name(policy):
        chosen = _written(policy, skills, values, unit)
        return chain(chosen, floored(floor)) if floor else chosen
    _check_arguments(policy, among, values)
    chosen = _policy(policy, skills, draws, tau, epochs, weights, new, graph, eta, prior, targets, losses, unit)
    return chain(chosen, floored(floor)) if floor else chosen


def _written(text: str, skills: Sequence[str], given: Mapping[str, Any], unit: str) -> Policy:
    """Make a policy from a text with a name and arguments. SKILL-IT has static weights, as by its name alone."""
    others = [f"`{argument}`" for argument, value in given.items() if value is not None and argument != "draws"]
    if others:
        raise PolicyError(
            f"{shortened(text, 60)} is written with its arguments: write {' and '.join(others)} there too, and leave the option out."
        )
    draws = {} if given["draws"] is None else {"draws": given["draws"]}
    policy = policy_given(text, Context(skills=skills, defaults={"mode": "static", **draws}, unit=unit))
    if policy.reads_losses:
        readers = [
            inner.name for inner in policies_within(policy) if inner.reads_losses and not isinstance(inner, Holding)
        ]
        raise PolicyError(
            f"policy {' and '.join(dict.fromkeys(readers))} reads losses, and without a trainer there are no losses: give policies that read no losses: "
            f"{', '.join(ARGUMENTS)}, stages, by_group."
        )
    return policy


def _check_arguments(name: str, among: Sequence[str], given: Mapping[str, Any]) -> None:
    if name in HOLDERS:
        policy_of_text(name)  # raises with the form of a file
    if name not in among:
        raise PolicyError(
            f"policy {name!r}{suggestion(name, among)}: without a trainer there are no losses, so give a policy that reads no losses: "
            f"{', '.join(among)}."
        )
    needed, possible = ARGUMENTS[name]
    missing = [f"`{argument}`" for argument in needed if given[argument] is None]
    if missing:
        raise PolicyError(
            f"policy {name} needs {' and '.join(missing)}: give {'it' if len(missing) == 1 else 'them'} too."
        )
    unknown = [
        argument
        for argument, value in given.items()
        if value is not None and argument not in (*needed, *possible, "draws")  # every mix has a length
    ]
    if unknown:
        takers = [repr(other) for other in among if set(unknown) <= {*ARGUMENTS[other][0], *ARGUMENTS[other][1]}]
        raise PolicyError(
            f"policy {name} does not take {' and '.join(f'`{argument}`' for argument in unknown)}: leave {'it' if len(unknown) == 1 else 'them'} out"
            + (f", or give {' or '.join(f'`policy={taker}`' for taker in takers)}." if takers else ".")
        )


def _policy(
    name: str,
    skills: Sequence[str],
    draws: int | None,
    tau: float | None,
    epochs: float | None,
    weights: str | None,
    new: str | None,
    graph: str | os.PathLike[str] | None,
    eta: float | None,
    prior: str | None,
    targets: Sequence[str] | None,
    losses: str | None,
    unit: str,
) -> Policy:
    curricula: dict[str, Callable[..., Policy]] = {
        "curriculum": curriculum,
        "anti_curriculum": anti_curriculum,
        "skill_curriculum": skill_curriculum,
    }
    if tau is not None:
        return temperature(tau)
    if epochs is not None and draws is not None:
        return unimax(draws=draws, epochs=epochs)
    if weights is not None:
        return fixed(read_weights(weights, unit=unit), new=_new(new))
    if graph is not None:
        opened = SkillGraph.open(graph).choose(rows=skills, columns=targets or None)
        if eta is None:
            return skill_stratified(opened)
        start = None if prior is None else read_weights(prior, unit=unit)
        return skill_it(opened, eta=eta, mode="static", prior=start)
    if losses is not None and draws is not None:
        return curricula[name](read_weights(losses), draws=draws)
    return stratified() if name == "stratified" else proportional()


def _new(new: str | None) -> Literal["refuse", "proportional"]:
    if new not in (None, "refuse", "proportional"):
        raise PolicyError(f"`{new=}`: give 'refuse' or 'proportional'.")
    return "proportional" if new == "proportional" else "refuse"


DRAWS_AT_ONCE = 8_192
"""Number of draws that are listed between two updates of the progress bar. Listing them takes a fraction of a second."""


class Listing(NamedTuple):
    """Lines of a mixed stream.

    Attributes:
        lines: JSON lines, one per draw: draw, skill, id.
        num_draws: Number of lines, smaller than requested if the stream ends before.
    """

    lines: bytes
    num_draws: int


def list_draws(
    shards: ShardSet,
    *,
    policy: Policy,
    first: int,
    num: int,
    seed: int,
    round_draws: int,
    repeat: str,
    ledger: str | os.PathLike[str] | None,
    step_draws: int | None = None,
) -> Listing:
    """List the draws first .. first + num - 1 of a mixed stream.

    Args:
        shards: Shards to mix.
        policy: Policy that reads no losses.
        first: First draw to list.
        num: Number of draws to list.
        seed: Seed of the order.
        round_draws: Number of draws of a round.
        repeat: Rule for a skill without unread samples, as for `Mixer`.
        ledger: Directory for the run's record. None: the record is not kept.
        step_draws: Number of draws of an optimizer step, for stages that end at steps. None: unknown.

    Warns:
        RepetitionWarning: Skills pass 4 epochs within the listed draws. Later draws of the last round do not count.
    """
    if ledger is not None:
        _refuse_before_the_beginning(DirectoryLedger(ledger), first)
    with tempfile.TemporaryDirectory() as folder:
        mixer = open_stream(
            shards,
            policy=policy,
            seed=seed,
            round_draws=round_draws,
            repeat=repeat,
            ledger=ledger or folder,
            step_draws=step_draws,
        )
        decide(mixer, first + num)
        lines: list[bytes] = []
        for start in range(first, first + num, DRAWS_AT_ONCE):
            advance(start - first, num)
            num_requested = min(DRAWS_AT_ONCE, first + num - start)
            lines += _lines(mixer, start, num_requested)
            if len(lines) < start + num_requested - first:  # the stream ended
                break
        if lines:
            warn_of_repeated(mixer, first + len(lines))
        return Listing(b"".join(lines), len(lines))


def _refuse_before_the_beginning(ledger: DirectoryLedger, first: int) -> None:
    """Raise LedgerError, before a run is begun, if its ledger continues another run from a later draw than `first`."""
    handover = read_record(ledger, HANDOVER, HandoverRecord)
    if handover is not None and first < handover.draw:
        raise LedgerError(
            f"{ledger} continues another run from draw {handover.draw:,}, and the draws from {first:,} on were asked for: give `first={handover.draw}`, or a "
            "later draw."
        )


def list_recorded(past: RecordedChain, *, first: int, num: int) -> Listing:
    """List the draws first .. first + num - 1 of a run of any policy and of the runs before, as far as the rounds are decided.

    The line of a draw that is a block has the ids of all samples with a token in the block, in the field "ids".
    """
    draws = range(first, min(first + num, past.num_draws))
    lines: list[bytes] = []
    for start in range(0, len(draws), DRAWS_AT_ONCE):
        advance(start, len(draws))
        lines += [
            _block_line(draw) if isinstance(draw, RecordedBlock) else _line(draw.draw, draw.skill, draw.id)
            for _, draw in past.samples(draws[start : start + DRAWS_AT_ONCE])
        ]
    return Listing(b"".join(lines), len(lines))


def open_stream(
    shards: ShardSet,
    *,
    policy: Policy,
    seed: int,
    round_draws: int,
    repeat: str,
    ledger: str | os.PathLike[str],
    fields: Sequence[str] = (),
    members: Sequence[str] = (),
    field_defaults: Mapping[str, Any] | None = None,
    step_draws: int | None = None,
) -> Mixer:
    """Open the stream of a policy that reads no losses. A listing and an export of the same arguments have the same draws.

    Args:
        shards, policy, seed, round_draws, repeat, step_draws: As in `list_draws`.
        ledger: Directory for the run's record.
        fields: Fields of the metadata that come with the samples.
        members: Suffixes of the members that come with the samples.
        field_defaults: Values for the samples without a field or a member.
    """
    return Mixer(
        shards,
        policy,
        ledger=ledger,
        round_draws=round_draws,
        step_draws=step_draws,
        seed=seed,
        repeat=repeat,
        fields=fields,
        members=members,
        field_defaults=field_defaults,
    )


def _lines(mixer: Mixer, first: int, num: int) -> list[bytes]:
    """Make the lines of the draws first .. first + num - 1, or fewer lines if the stream ends before."""
    skills = mixer.batch(first, num).skill
    ids = mixer.ids(first, len(skills)) if skills else []
    return [_line(*values) for values in zip(range(first, first + len(skills)), skills, ids, strict=True)]


def _line(draw: int, skill: str, sample_id: str) -> bytes:
    return orjson.dumps({"draw": draw, "skill": skill, "id": sample_id}, option=orjson.OPT_APPEND_NEWLINE)


def _block_line(block: RecordedBlock) -> bytes:
    ids = [part.id for part in block.parts]
    return orjson.dumps({"draw": block.draw, "skill": block.skill, "ids": ids}, option=orjson.OPT_APPEND_NEWLINE)


def decide(mixer: Mixer, num_draws: int) -> None:
    """Decide the rounds of the first draws, or up to the end of the stream, because a mixer reads no draw far beyond the decided rounds."""
    with warnings.catch_warnings():
        # The mixer's own warning counts whole rounds, and the draws may end inside a round.
        warnings.simplefilter("ignore", RepetitionWarning)
        try:
            for number in range(-(-(num_draws - mixer.first_draw) // mixer.round_draws)):
                mixer.round(number)
        except EndOfStream:
            return


def num_drawn(mixer: Mixer, num_draws: int) -> Int[np.ndarray, " skill"]:
    """Return the number of draws of each skill among the first draws of a stream, whose rounds are decided.

    Args:
        mixer: Stream.
        num_draws: Number of draws, at least 1 and at most the length of the stream.
    """
    number = (num_draws - 1 - mixer.first_draw) // mixer.round_draws
    record, plan = mixer.round(number), mixer.plan(number)
    assert plan is not None
    in_round = np.bincount(plan.skill[: num_draws - record.first_draw], minlength=len(mixer.skills))
    return np.array(record.drawn_before) + in_round


def warn_of_repeated(mixer: Mixer, num_draws: int) -> None:
    """Warn of the skills that pass `MANY_EPOCHS` epochs in the first draws of a stream.

    Warns:
        RepetitionWarning: Skills pass 4 epochs.
    """
    repeated = [
        skill
        for skill, taken in zip(mixer.skills, num_drawn(mixer, num_draws).tolist(), strict=True)
        if taken > MANY_EPOCHS * len(mixer.shards.train[skill])
    ]
    if repeated:
        warn_of_repetition(repeated, f"in the first {num_draws:,} draws")
