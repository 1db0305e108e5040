"""Pictures of a setting: losses per skill and weights over a training, like the paper's Figures 4, 5 and 20."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.methods import round_steps
from benchmarks.evidence.settings import Setting, sized
from benchmarks.evidence.training import place_of
from skillshard.report.figures import History, draw_runs

SHOWN = (
    "natural",
    "target-only",
    "stratified",
    "identity",
    "chain",
    "prerequisites",
    "leave-one-out",
    "refresh",
    "odm",
)


def draw_setting(name: str, seed: int, work: Path, folder: Path, changes: dict[str, Any]) -> Path | None:
    """One PNG with the trainings of a seed by the methods that say most; None without a record of the baseline to compare with."""
    setting, key = sized(name, **changes), place_of(Path(), name, 0).parent.name
    places = {method: work / "records" / f"train-{key}-{seed}-{method}.json" for method in SHOWN}
    if not places[setting.baseline].exists():
        return None
    shown = {
        method: history_of(setting, f"{key}-{seed}", method, work / "records")
        for method, place in places.items()
        if method in setting.methods and place.exists()
    }
    folder.mkdir(parents=True, exist_ok=True)
    draw_runs(shown, folder / f"{key}.png", title=f"{name}, seed {seed}")
    return folder / f"{key}.png"


def history_of(setting: Setting, key: str, method: str, records: Path) -> History:
    """The course of a training, from its record."""
    record = json.loads((records / f"train-{key}-{method}.json").read_text())
    skills = json.loads((records / f"shards-{key}.json").read_text())["skills"]
    round_draws = round_steps(setting, method) * setting.batch_size
    steps = np.arange(len(record["losses"])) * setting.eval_every
    return History(
        skills=tuple(skills),
        eval_skills=tuple(record["losses"][0]),
        draws=steps * setting.batch_size,
        steps=steps,
        losses=np.array([list(losses.values()) for losses in record["losses"]]),
        first_draws=np.arange(len(record["weights"])) * round_draws,
        round_draws=round_draws,
        weights=np.array(record["weights"]),
    )
