"""Pictures of runs, drawn from their ledgers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from skillshard import storage
from skillshard.errors import LedgerError
from skillshard.mixing.ledger import Ledger, ObservationRecord, RoundRecord, RunRecord, read_record

LOSS_FLOOR = 1e-4


@dataclass(frozen=True)
class History:
    """What a run's ledger tells of its course.

    Attributes:
        draws: of each observation.
        losses: nats per token.
        first_draws: of each round.
    """

    skills: tuple[str, ...]
    eval_skills: tuple[str, ...]
    draws: Int[np.ndarray, " observation"]
    steps: Int[np.ndarray, " observation"]
    losses: Float[np.ndarray, "observation eval_skill"]
    first_draws: Int[np.ndarray, " round"]
    round_draws: int
    weights: Float[np.ndarray, "round skill"]


def history(ledger: Ledger) -> History:
    """Read a run's course; LedgerError if there is no run."""
    run = read_record(ledger, "run.json", RunRecord)
    if run is None:
        raise LedgerError(f"{ledger} holds no run: run.json is not there.")
    seen = [read_record(ledger, name, ObservationRecord) for name in ledger.names("observations")]
    rounds = [read_record(ledger, name, RoundRecord) for name in ledger.names("rounds")]
    observations = [record for record in seen if record is not None]
    decided = [record for record in rounds if record is not None]
    eval_skills = tuple(observations[0].losses) if observations else ()
    losses = [[record.losses[skill] for skill in eval_skills] for record in observations]
    return History(
        skills=tuple(run.skills),
        eval_skills=eval_skills,
        draws=np.array([record.draw for record in observations], np.int64),
        steps=np.array([record.step for record in observations], np.int64),
        losses=np.array(losses).reshape(len(observations), len(eval_skills)),
        first_draws=np.array([record.first_draw for record in decided], np.int64),
        round_draws=run.round_draws,
        weights=np.array([record.weights for record in decided]).reshape(len(decided), len(run.skills)),
    )


def draw_runs(runs: Mapping[str, History], place: str | os.PathLike[str], *, title: str) -> None:
    """One PNG: a column per run; above, its losses per skill and their mean (log scale); below, its weights per round."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(runs), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2))
    for column, (name, run) in enumerate(runs.items()):
        above, below = axes[0, column], axes[1, column]
        for at, skill in enumerate(run.eval_skills):
            above.plot(
                run.draws, np.maximum(run.losses[:, at], LOSS_FLOOR), label=skill, color=f"C{at % 10}", linewidth=1.2
            )
        above.plot(run.draws, np.maximum(run.losses.mean(axis=1), LOSS_FLOOR), label="mean", color="black", linewidth=2)
        edges = np.append(run.first_draws, run.first_draws[-1:] + run.round_draws)
        for at, skill in enumerate(run.skills):
            below.stairs(run.weights[:, at], edges, label=skill, color=f"C{at % 10}", linewidth=1.6, baseline=None)
        above.set_title(name)
        above.set_yscale("log")
        below.set_xlabel("samples seen")
        below.set_ylim(bottom=0)
        for axis in (above, below):
            axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("holdout loss, nats per token")
    axes[1, 0].set_ylabel("weight")
    axes[0, 0].legend(fontsize="small", loc="lower left")
    figure.suptitle(title)
    with storage.writing(place) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
