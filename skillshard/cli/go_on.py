"""`skillshard continue`: a new run from a draw of another run."""

from pathlib import Path
from typing import Annotated

import typer

from skillshard.cli.groups import grouped
from skillshard.cli.options import Cache, ChosenSkills, choose_skills
from skillshard.cli.past import Run, StepDraws
from skillshard.cli.verb import Verb
from skillshard.printable import printable


@grouped
def go_on(
    run: Run,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="RUN2", help="Directory of the ledger of the new run."),
    ],
    draw: Annotated[
        int | None,
        typer.Option("--draw", metavar="D", min=0, help="Number of draws that the model has seen, over all runs."),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option("--step", metavar="N", min=0, help="Number of optimizer steps taken, in place of --draw."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FILE",
            help="State of RUN as JSON, such as mixer.json in a checkpoint of Hugging Face's Trainer, in place of --draw.",
        ),
    ] = None,
    *,
    old_tokens: Annotated[
        str | None,
        typer.Option(
            "--old-tokens",
            metavar="TOKENS",
            help="Tokens of RUN, if its draws are blocks, or if its blocks were packed by best-fit and --state lies inside a round.",
            show_default="the tokens at the place that the run has noted",
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards",
            metavar="SHARDS",
            help="Shards of the new run, to check that every skill can continue.",
            show_default="the check happens when the new run begins",
        ),
    ] = None,
    skills: ChosenSkills = None,
    restart: Annotated[
        list[str] | None,
        typer.Option(
            "--restart",
            metavar="SKILL",
            help="Skill that begins again although its samples may have come in this epoch. Repeat the option for several skills.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="Policy of the new run as NAME:KEY=VALUE or FILE.json, to check that it fits, with --shards.",
            show_default="the check happens when the new run begins",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="FIRST:NUM:WHY",
            help="Draws of RUN that the new run leaves out, such as '12800:640:the loss rose'. Their samples count as seen. In a run with "
            'unit="blocks", a draw is a block. Repeat the option for several stretches.',
        ),
    ] = None,
    step_draws: StepDraws = None,
    cache: Cache,
) -> None:
    """Continue a run from a draw in a new ledger, where policy, seed, shards and skills may change.

    Give the new ledger to the training script. The new run begins from the checkpoint of this draw.
    """
    from skillshard.artefact import refuse_nested
    from skillshard.mixing.beginning import policy_at_beginning
    from skillshard.mixing.chain import note_before
    from skillshard.mixing.handover import draw_after, hand_over, put_handover
    from skillshard.mixing.ledger import DirectoryLedger
    from skillshard.mixing.matched_skills import matched
    from skillshard.mixing.named_policy import Context
    from skillshard.mixing.policy_file import policy_given
    from skillshard.mixing.records import open_records
    from skillshard.mixing.steps import Steps
    from skillshard.report.handover import show_places, stretches_of
    from skillshard.shards.token_set import TokenSet

    if [draw, step, state].count(None) != 2:
        raise typer.BadParameter("give either --draw, --step or --state.", param_hint="--draw")
    if step is None:
        Verb.given.refuse(["step_draws"], "belongs to --step")
    if shards is None:
        Verb.given.refuse(["skills", "policy", "cache", "cache_bytes"], "belongs to --shards")
    refuse_nested(out, [run])
    old = DirectoryLedger(run)
    records = open_records(old)
    if state is None and records.run.blocks is None:
        Verb.given.refuse(["old_tokens"], "belongs to --state, or to a run whose draws are blocks")
    saved = None
    if state is not None:
        from skillshard.mixing.state import place_of_state
        from skillshard.storage import read_json

        saved = place_of_state(old, read_json(state))
        draw, step = saved.draw, saved.step
    elif draw is None:
        assert step is not None
        draw = draw_after(records, step, step_draws)
    stretches = [_stretch(text) for text in skip or []]
    handover = hand_over(
        old,
        draw=draw,
        step=step,
        restart=restart or [],
        skip=stretches,
        records=records,
        saved=saved,
        tokens=None if old_tokens is None else TokenSet.open(old_tokens),
    )
    known = None
    beginning = None
    if shards is not None:
        opened = choose_skills(cache.open(shards), skills)
        known = matched(handover, opened, seed=records.run.seed)
        if policy is not None:
            policy_of_run, beginning = policy_at_beginning(
                policy_given(policy, Context(skills=opened.skills, unit=records.run.unit)),
                handover,
                known,
                records.run,
                step_draws=Steps(records, step_draws).uniform(),
            )
    new = DirectoryLedger(out)
    put_handover(new, handover)
    note_before(new, old)
    show_places(handover, known.skills if known else handover.skills, known.changes if known else {})
    if beginning is not None:
        typer.echo(f"policy {printable(policy_of_run.name)} {beginning}.")
    for sentence in stretches_of(handover):
        typer.echo(printable(sentence))
    step_shown = "an unknown step" if handover.step is None else f"step {handover.step:,}"
    typer.echo(f"{out} continues {run} from draw {draw:,}, {step_shown}. Give this ledger to the training script.")


def _stretch(text: str) -> tuple[int, int, str]:
    """Parse FIRST:NUM:WHY. The reason may have colons."""
    parts = text.split(":", 2)
    if len(parts) < 3 or not all(part.isascii() and part.isdigit() for part in parts[:2]):
        raise typer.BadParameter(
            f"{text!r} is no skip: give FIRST:NUM:WHY, the first draw, the number of draws and the reason, such as '12800:640:the loss rose'.",
            param_hint="--skip",
        )
    return int(parts[0]), int(parts[1]), parts[2]
