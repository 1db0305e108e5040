"""Losses do not change: a training and the losses of its skills equal those of the code that made the published graphs."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from skillshard.proxy.device import one_thread
from skillshard.proxy.model import ProxyShape
from skillshard.proxy.reading import Bytes
from skillshard.proxy.train import TokenBatch, adamw, evaluate, seeded_model, train, usual_lr_warmup
from tests.conftest import REPOSITORY

WORDS = {"add": "+", "carry": "plus", "negate": "minus"}
LOSSES = {
    None: [
        [5.656818485260009, 5.539806818962097, 5.653721952438355],
        [3.036020588874817, 4.6761221408844, 4.80839171409607],
        [0.4219483807682991, 5.91881251335144, 6.522182440757751],
    ],
    "= ": [
        [5.787414717674255, 5.620426988601684, 5.707860398292541],
        [3.402371609210968, 3.5612801909446716, 3.4726118206977845],
        [0.5142259370535612, 1.7344150215387344, 2.7305878520011904],
    ],
}
"""Computed by commit 40c9a8d: losses after 0, 40 and 200 steps on the first skill, by the predicted part of a text."""


def texts(skill: str) -> list[str]:
    """Make texts of unequal lengths, so that a mean over samples differs from a mean over tokens."""
    return [f"{skill} {n % 7} {WORDS[skill]} {n % 5} = {(n * 3) % 11}" + "!" * (n % 4) for n in range(20)]


@pytest.mark.parametrize("answer_after", LOSSES)
def test_a_training_has_the_losses_of_the_code_that_made_the_published_graphs(answer_after: str | None) -> None:
    reading = Bytes(24, answer_after)
    data = {skill: reading.encode(texts(skill)) for skill in WORDS}

    def batches() -> Iterator[TokenBatch]:
        for first in range(0, 200 * 8, 8):
            yield data["add"][np.arange(first, first + 8) % 20]

    shape = ProxyShape(vocab=reading.vocab, positions=reading.positions, layers=1, dim=16, heads=2)
    stream = batches()
    with one_thread():
        model = seeded_model(shape, seed=3)
        optimizer = adamw(model)
        losses = [[skill.loss for skill in evaluate(model, data).values()]]
        for done, until in ((0, 40), (40, 200)):
            train(model, stream, steps=until, lr=3e-3, optimizer=optimizer, steps_done=done, schedule_steps=200)
            losses.append([skill.loss for skill in evaluate(model, data).values()])
    assert np.allclose(losses, LOSSES[answer_after], rtol=1e-4), "the same but for the rounding of another processor"


def test_every_published_training_has_a_warm_up_of_the_learning_rate_of_50_steps() -> None:
    results = REPOSITORY / "benchmarks" / "results"
    settings = json.loads((results / "skillit.json").read_text())["settings"]
    lengths = [setting["setting"]["steps"] for setting in settings.values()]
    of_instructions = json.loads((results / "graph-instructions.json").read_text())["settings"]
    lengths.append(of_instructions["warmup_steps"] + of_instructions["eval_steps"][-1])
    assert len(lengths) > 10 and {usual_lr_warmup(steps) for steps in lengths} == {50}
