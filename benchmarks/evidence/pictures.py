"""Draw a setting: losses of each skill and weights over a training, like the paper's Figures 4, 5 and 20."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.methods import round_steps
from benchmarks.evidence.settings import Setting, sized
from benchmarks.evidence.training import slug, task_key
from skillshard.report.figures import History, draw_runs

SHOWN = (
    "natural",
    "target-only",
    "stratified",
    "identity",
    "loss order",
    "chain",
    "prerequisites",
    "leave-one-out",
    "direct edges",
    "refresh",
    "odm",
)


def draw_setting(name: str, seed: int, work: Path, folder: Path, changes: dict[str, Any]) -> Path | None:
    """Draw the trainings of a seed by the methods in `SHOWN`, or return None if the baseline has no record."""
    setting, records = sized(name, **changes), work / "records"
    places = {method: records / f"{task_key('train', name, seed, method)}.json" for method in SHOWN}
    if not places[setting.baseline].exists():
        return None
    skills = json.loads((records / f"{task_key('shards', name, seed)}.json").read_text())["skills"]
    shown = {
        method: history_of(setting, method, json.loads(place.read_text()), skills)
        for method, place in places.items()
        if method in setting.methods and place.exists()
    }
    folder.mkdir(parents=True, exist_ok=True)
    drawn = folder / f"{slug(name)}.png"
    draw_runs(shown, drawn, title=f"{name}, seed {seed}")
    return drawn


def history_of(setting: Setting, method: str, record: dict[str, Any], skills: list[str]) -> History:
    """Return the course of a training from the training's record."""
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
