"""`skillshard replay` and `diff`: decisions made again, and two runs compared."""

from typing import TYPE_CHECKING, Annotated

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
    json: Json = False,
) -> None:
    """Decide each round again from the recorded losses, by the policy of the run or by another policy.

    Without --policy the exit code is 1 if a round differs from its record.
    """
    from skillshard.mixing.policy_file import read_policy
    from skillshard.mixing.replay import replay as decide_again

    if policy is not None:
        Verb.given.refuse(["graphs"], "is the graph of the run's policy: give the graph of another policy in --policy")
    other = None if policy is None else read_policy(policy)
    with Bars() as bars, bars.working("replaying"):
        result = decide_again(run, other, graphs=graphs or ())
    before = _runs_before(run) if result.first_draw and not json else None
    if json:
        rounds = [
            {
                **replayed._asdict(),
                "largest": {"skill": result.skills[replayed.largest[0]], "change": replayed.largest[1]},
            }
            for replayed in result.rounds
        ]
        facts = {
            "policy": result.policy,
            "is_other": result.is_other,
            "first_draw": result.first_draw,
            "skills": result.skills,
            "rounds": rounds,
        }
        typer.echo(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())
    elif result.is_other:
        _show_other(result)
    else:
        _show_again(result, run)
    if before is not None:
        typer.echo(printable(before))
    if result.differing and not result.is_other:
        raise typer.Exit(1)


def _show_other(result: "Replay") -> None:
    from skillshard.report.text import print_table

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
    typer.echo(
        f"policy {printable(result.policy)} gives other weights in {len(result.differing):,} of {counted(len(result.rounds), 'round')}, on the same losses."
    )


def _runs_before(run: str) -> str:
    """Return a sentence that tells where the run before is. The rounds of the run before are not replayed."""
    from skillshard.mixing.continuation import earlier_runs
    from skillshard.mixing.ledger import DirectoryLedger

    before = earlier_runs(DirectoryLedger(run))[-1]
    place = "" if before.place is None else f" in {before.place}"
    missing = ", but its ledger is not there" if before.first_draw is None else ""
    return f"{run} begins at draw {before.end_draw:,}, where it continues the run{place}{missing}. Replay the run before by its own ledger."


def _show_again(result: "Replay", run: str) -> None:
    for replayed in result.differing:
        typer.echo(printable(f"round {replayed.round:,} differs: {'; '.join(replayed.differences[:6])}"))
    outcome = f"{len(result.differing):,} differ from the record" if result.differing else "all as the record says"
    typer.echo(f"{run}: {counted(len(result.rounds), 'round')} decided again, {outcome}.")


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
