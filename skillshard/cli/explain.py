"""`skillshard replay` and `diff`: decisions made again, and two runs compared."""

from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from skillshard.bars import Bars
from skillshard.cli.past import Run
from skillshard.cli.verb import Verb
from skillshard.printable import counted, printable

if TYPE_CHECKING:
    from skillshard.mixing.replay import Replay

Json = Annotated[bool, typer.Option("--json", help="Write a JSON object.")]


def replay(
    run: Run,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="Other policy as NAME, NAME:KEY=VALUE or FILE.json, such as 'skill_it:graph=graph.json,eta=0.2+floor:least=0.01'.",
            show_default="the policy of the run",
        ),
    ] = None,
    graphs: Annotated[
        list[str] | None,
        typer.Option(
            "--graph",
            metavar="FILE",
            help="Graph of the run, if the policy of the run has a graph. Repeat the option for several graphs.",
        ),
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Decide RUN alone, without the runs that RUN continues.")
    ] = False,
    json: Json = False,
) -> None:
    """Decide each round again from the recorded losses, by the policy of the run or by another policy.

    A run that was made by `skillshard continue` is decided together with the runs before. Without --policy the exit code is 1 if a round differs
    from its record.
    """
    from skillshard.errors import GraphError, ObservationError, PolicyError
    from skillshard.mixing.chain import Chain
    from skillshard.mixing.ledger import DirectoryLedger
    from skillshard.mixing.policy_file import read_policy
    from skillshard.mixing.records import open_records
    from skillshard.mixing.replay import replay as decide_again
    from skillshard.mixing.replay import replay_chain

    if policy is not None:
        Verb.given.refuse(["graphs"], "is the graph of the run's policy: give the graph of another policy in --policy")
    records = open_records(DirectoryLedger(run))
    chain = None if last else Chain.of(records)
    with Bars() as bars, bars.working("replaying"):
        # Read for the newest run first: a policy that does not exist or does not fit this run is a fault that --last does not cure.
        other = None if policy is None else read_policy(policy, skills=records.run.skills, unit=records.run.unit)
        if chain is None or len(chain.segments) == 1:
            replays = [decide_again(run, other, graphs=graphs or ())]
        else:
            try:
                replays = replay_chain(run, policy, graphs=graphs or ())
            except (PolicyError, GraphError, ObservationError) as error:
                raise type(error)(f"{error} To decide {run} alone, give --last.") from error
    if json:
        facts = [_facts(result) for result in replays]
        content = {**facts[-1], "earlier": facts[:-1]}
        typer.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    elif replays[-1].is_other:
        _show_other(replays)
    else:
        for result in replays:
            _show_again(result, named=len(replays) > 1)
    if chain is not None and chain.missing is not None:
        typer.echo(printable(f"note: earlier runs are not decided: {chain.why_missing}"), err=True)
    if any(result.differing and not result.is_other for result in replays):
        raise typer.Exit(1)


def _facts(result: "Replay") -> "dict[str, Any]":
    return {
        "run": printable(result.run),
        "policy": result.policy,
        "is_other": result.is_other,
        "first_draw": result.first_draw,
        "end_draw": result.end_draw,
        "skills": result.skills,
        "rounds": [
            {
                **replayed._asdict(),
                "largest": {"skill": result.skills[replayed.largest[0]], "change": replayed.largest[1]},
            }
            for replayed in result.rounds
        ],
    }


def _show_other(replays: "list[Replay]") -> None:
    from skillshard.report.text import print_table

    for result in replays:
        if len(replays) > 1:
            to_end = "on" if result.end_draw is None else f"to draw {result.end_draw - 1:,}"
            typer.echo(f"{printable(result.run)}, from draw {result.first_draw:,} {to_end}:")
        rows = []
        for replayed in result.rounds:
            number, change = replayed.largest
            rows.append(
                (
                    f"{replayed.round:,}",
                    f"{replayed.first_draw:,}",
                    result.skills[number] if change else "-",
                    f"{replayed.recorded[number]:.4f}",
                    f"{replayed.decided[number]:.4f}",
                    f"{change:+.4f}",
                )
            )
        print_table(("round", "first draw", "largest change", "recorded", "replayed", "change"), rows)
    num_rounds = sum(len(result.rounds) for result in replays)
    of_runs = f" of {len(replays)} runs" if len(replays) > 1 else ""
    typer.echo(
        f"policy {printable(replays[-1].policy)} gives other weights in {sum(len(result.differing) for result in replays):,} of "
        f"{counted(num_rounds, 'round')}{of_runs}, on the same losses."
    )


def _show_again(result: "Replay", *, named: bool) -> None:
    run = printable(result.run)
    for replayed in result.differing:
        of_run = f" of {result.run}" if named else ""
        typer.echo(printable(f"round {replayed.round:,}{of_run} differs: {'; '.join(replayed.differences[:6])}"))
    outcome = f"{len(result.differing):,} differ from the record" if result.differing else "all as the record says"
    to_end = "" if result.end_draw is None else f" up to draw {result.end_draw - 1:,}"
    typer.echo(f"{run}: {counted(len(result.rounds), 'round')} decided again{to_end}, {outcome}.")


def diff(
    run: Run,
    other: Annotated[str, typer.Argument(metavar="RUN2", help="Directory of the ledger of the other run.")],
    json: Json = False,
) -> None:
    """Show the first difference between two runs: configuration, report or round, and the first other sample.

    The exit code is 0 for equal runs, and 1 for runs that differ or after an error, which is a sentence on standard error.
    """
    from skillshard.mixing.difference import difference
    from skillshard.mixing.ledger import DirectoryLedger
    from skillshard.mixing.records import open_records

    with Bars() as bars, bars.working("comparing"):
        answer = difference(*(open_records(DirectoryLedger(place)) for place in (run, other)))
    if json:
        typer.echo(orjson.dumps(answer._asdict(), option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo(printable(answer.sentence))
    if answer.kind != "equal":
        raise typer.Exit(1)
