"""The numbers of a run at a draw, for the logger of a trainer: pure functions of the records of a ledger.

Only decided rounds and recorded observations are read, so a look at the metrics never changes the stream.

TensorBoard, Weights & Biases, MLflow and trackio accept the names. A name is `skillshard/KIND/SKILL`, with the skill written by
`metric_skill`.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from skillshard.mixing.counts import drawn_at, in_unit
from skillshard.mixing.round_records import ObservationRecord, RoundRecord
from skillshard.mixing.run_records import RunRecord

PREFIX = "skillshard"
KINDS = ("weight", "share", "epochs", "tokens", "loss")
"""Columns of the table of metrics, in the order of the table."""

MOST_SKILLS = 20
"""Default number of skills with metrics of their own. 20 curves in a chart can still be told apart."""

LONGEST = 160
"""Maximal number of characters of a skill in the name of a metric.

MLflow takes names of up to 250 characters. Its file store keeps a file for each metric, and a file name has up to 255 bytes.
"""

_OTHER = re.compile(r"(?P<between>(?<=[A-Za-z0-9_-])/(?=[A-Za-z0-9_-]))|[^A-Za-z0-9_-]")
"""A slash between two characters that stay, or any character that does not stay."""

Row = dict[str, str | float | None]


def metric_skill(skill: str) -> str:
    """Write the name of a skill so that every logger accepts the name. Different skills get different names.

    Letters and digits of ASCII, `_` and `-` stay. A slash between two of these characters becomes a period. Every other character becomes two
    periods and two hexadecimal digits for each byte of its UTF-8 form. A longer name than `LONGEST` ends in three periods and a hash.

    >>> metric_skill("wiki/math-2"), metric_skill("C++"), metric_skill("a.b")
    ('wiki.math-2', 'C..2B..2B', 'a..2Eb')
    """
    # A slash would make a folder in MLflow's file store, and the skill "wiki" would need a file of the same name beside "wiki/math".
    # Writers of TensorBoard replace spaces and colons, so the period is the only character left for escapes.
    escaped = _OTHER.sub(lambda match: "." if match["between"] else _escaped(match.group()), skill)
    if not escaped:
        return "..empty"
    if len(escaped) <= LONGEST:
        return escaped
    # The hash has 32 characters, and no other name contains three periods.
    digest = xxhash.xxh3_128_hexdigest(skill.encode("utf-8", "surrogatepass"))
    return f"{escaped[: LONGEST - 35].rstrip('.')}...{digest}"


def _escaped(character: str) -> str:
    return "".join(f"..{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def table(
    run: RunRecord,
    record: RoundRecord | None,
    observation: ObservationRecord | None,
    draw: int,
    eval_skills: Sequence[str],
) -> list[Row]:
    """Compute the metrics of every skill after a draw.

    Args:
        run: Run of the ledger.
        record: Round of the last draw before `draw`. None: the run has given no draw yet.
        observation: Newest observation up to `draw`, or None.
        draw: Number of draws that the model has seen.
        eval_skills: Evaluation skills of the run.

    Returns:
        A row for each training skill, in the order of the run, then a row for each other evaluation skill. The columns are "skill" and `KINDS`:
        the weight in the round, the share of the draws of this run (of their tokens if weights count tokens), the epochs, the
        tokens (None if weights count samples) and the loss in nats per token. An unknown number is None.
    """
    losses = {} if observation is None else observation.losses
    others = [name for name in eval_skills if name not in set(run.skills)]
    if record is None:
        return [_row(name, losses) for name in (*run.skills, *others)]
    drawn = drawn_at(run, record, draw)
    amounts = in_unit(run, drawn)
    own = np.subtract(amounts, in_unit(run, run.drawn_before))  # draws of earlier runs are no draws of this run
    total = int(own.sum())
    rows = [
        _row(
            name,
            losses,
            weight=record.weights[number],
            share=int(own[number]) / total if total else None,
            epochs=drawn[number] / run.num_samples[number],
            tokens=None if run.num_tokens is None else float(amounts[number]),
        )
        for number, name in enumerate(run.skills)
    ]
    return rows + [_row(name, losses) for name in others]


def _row(
    skill: str,
    losses: Mapping[str, float | None],
    *,
    weight: float | None = None,
    share: float | None = None,
    epochs: float | None = None,
    tokens: float | None = None,
) -> Row:
    return {
        "skill": skill,
        "weight": weight,
        "share": share,
        "epochs": epochs,
        "tokens": tokens,
        "loss": losses.get(skill),
    }


def scalars(
    run: RunRecord, record: RoundRecord | None, draw: int, rows: Sequence[Row], *, most_skills: int
) -> dict[str, float]:
    """Write the metrics of the largest skills as a flat mapping: name -> number. Unknown numbers are left out.

    Args:
        run: Run of the ledger.
        record: Round of the last draw, or None.
        draw: Number of draws that the model has seen.
        rows: Result of `table`.
        most_skills: Number of skills. The training skills with the most samples come first, and then the other evaluation skills.
    """
    metrics = {f"{PREFIX}/draw": float(draw)}
    if record is not None:
        metrics[f"{PREFIX}/round"] = float(record.round)
    chosen = _chosen(run, [str(row["skill"]) for row in rows], most_skills)
    for kind in KINDS:
        for row in rows:
            value = row[kind]
            if isinstance(value, float) and row["skill"] in chosen:
                metrics[f"{PREFIX}/{kind}/{metric_skill(str(row['skill']))}"] = value
    return metrics


def _chosen(run: RunRecord, names: Sequence[str], most_skills: int) -> set[str]:
    """Choose skills by facts that stay the same for the whole run, so that no curve begins or ends in the middle of the run."""
    sizes = dict(zip(run.skills, run.num_samples, strict=True))
    # sorted is stable: skills of equal size stay in the order of the run.
    return set(sorted(names, key=lambda name: -sizes.get(name, 0))[:most_skills])
