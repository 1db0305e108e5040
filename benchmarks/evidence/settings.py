"""The settings: a corpus, the skills trained on and measured, and the training. Sizes are the same for every method of a setting.

Numbers were chosen on seeds from 100 on (docs/LOG.md); reported seeds count from 0.
"""

from dataclasses import dataclass, replace
from typing import Literal

ROUNDS, BATCH_SIZE, EVAL_SAMPLES, LEARNING_RATE = 6, 64, 200, 1e-3

MIXES = ("natural", "stratified")
CURRICULA = ("curriculum", "anti_curriculum", "skill_curriculum")
LEARNED = ("leave-one-out", "linear", "brute-force")
LIVE = ("refresh", "odm", "aioli")
PRETRAINING = (*MIXES, *CURRICULA, "identity", "chain", "static", *LEARNED, *LIVE)


@dataclass(frozen=True)
class Setting:
    """One comparison.

    Attributes:
        corpus: lego and lego-ordered (clauses shuffled, or in the order of the chain), addition; else a folder of ../shared/corpora.
        k: variables or digits; 0 for a folder.
        trained, measured: skills by number, from 1; empty: all.
        natural: how often each trained skill occurs by itself; empty: as in the folder.
        samples: of the generated corpus, equally many of each trained skill; of a folder: unused.
        steps, eval_every: optimizer steps of a training, and between two evaluations.
        eta, reduce: of SKILL-IT, as in the authors' scripts.
        graph_steps, warmup_steps: of each run of a learned graph, and before them.
        target_loss: nats; how soon the mean of the measured skills falls below it is compared. None: areas alone.
        baseline: the method that the others are compared with.
        methods: see `methods.py`.
    """

    corpus: str
    k: int
    trained: tuple[int, ...]
    measured: tuple[int, ...]
    natural: tuple[int, ...]
    samples: int
    steps: int
    eval_every: int
    eta: float
    reduce: Literal["sum", "mean"]
    graph_steps: int
    warmup_steps: int
    target_loss: float | None
    baseline: str
    methods: tuple[str, ...]

    @property
    def is_text(self) -> bool:
        return self.k == 0

    @property
    def is_ordered(self) -> bool:
        """Whether the place of a word means anything to the model."""
        return self.corpus != "lego"

    @property
    def window(self) -> int:
        """Bytes read of a real text."""
        return 128

    @property
    def batch_size(self) -> int:
        return 32 if self.is_text else BATCH_SIZE

    @property
    def eval_samples(self) -> int:
        """Of each measured skill."""
        return 40 if self.is_text else EVAL_SAMPLES

    @property
    def round_steps(self) -> int:
        return self.steps // ROUNDS


def _pretraining(
    corpus: str,
    k: int,
    natural: tuple[int, ...],
    samples: int,
    steps: int,
    eval_every: int,
    *,
    eta: float = 0.5,
    more: tuple[str, ...] = (),
) -> Setting:
    every = tuple(range(1, k + 1))
    return Setting(
        corpus,
        k,
        every,
        every,
        natural,
        samples,
        steps,
        eval_every,
        eta,
        "sum",
        300,
        50,
        0.05,
        "stratified",
        (*PRETRAINING, *more),
    )


def _finetuning(
    corpus: str,
    k: int,
    trained: int,
    target: int,
    samples: int,
    steps: int,
    *,
    eta: float = 0.5,
    more: tuple[str, ...] = (),
) -> Setting:
    methods = ("target-only", "stratified", "skill-stratified", "prerequisites", *more)
    return Setting(
        corpus,
        k,
        tuple(range(1, trained + 1)),
        (target,),
        (1,) * trained,
        samples,
        steps,
        25,
        eta,
        "mean",
        300,
        50,
        0.01,
        "target-only",
        methods,
    )


def _text(corpus: str, *, graph_steps: int) -> Setting:
    methods = ("natural", "stratified", "identity", "leave-one-out", "odm", "aioli")
    return Setting(corpus, 0, (), (), (), 0, 600, 10, 0.2, "sum", graph_steps, 100, None, "stratified", methods)


SETTINGS = {
    "shuffled LEGO k=3": _pretraining("lego", 3, (1, 3, 5), 120_000, 2100, 25),
    "ordered LEGO k=5": _pretraining("lego-ordered", 5, (1, 1, 1, 3, 5), 100_000, 1500, 25, more=("published",)),
    "shuffled LEGO k=4": _pretraining("lego", 4, (1, 1, 3, 5), 200_000, 3000, 25),
    "shuffled LEGO k=5": _pretraining("lego", 5, (1, 1, 1, 3, 5), 400_000, 6000, 50, more=("published",)),
    "addition k=3": _pretraining("addition", 3, (13, 14, 18), 200_000, 3000, 25, eta=0.1, more=("published",)),
    "fine-tuning: shuffled LEGO, skill 3": _finetuning("lego", 5, 3, 3, 120_000, 2100, more=("leave-one-out",)),
    "fine-tuning: shuffled LEGO, skill 5": _finetuning("lego", 5, 5, 5, 200_000, 3000),
    "fine-tuning: ordered LEGO, skill 5": _finetuning("lego-ordered", 5, 5, 5, 100_000, 1500, more=("leave-one-out",)),
    "fine-tuning: ordered LEGO, skill 3": _finetuning("lego-ordered", 5, 3, 3, 60_000, 900),
    "fine-tuning: addition, skill 1": _finetuning(
        "addition", 3, 2, 1, 80_000, 1200, eta=0.1, more=("published", "leave-one-out")
    ),
    "out of domain: ordered LEGO, skill 4": Setting(
        "lego-ordered",
        5,
        (1, 2, 3, 5),
        (4,),
        (1, 1, 1, 5),
        100_000,
        1500,
        25,
        0.5,
        "sum",
        300,
        50,
        0.05,
        "stratified",
        ("natural", "stratified", "chain", "leave-one-out", "skill-stratified by leave-one-out"),
    ),
    "real text: sources": _text("sources", graph_steps=60),
    "real text: instructions": _text("instructions", graph_steps=60),
}


def sized(name: str, steps: int | None) -> Setting:
    """A setting, with another number of steps if asked for: evaluations move so that one ends every round, and a shorter
    training has fewer samples and a graph of shorter runs.

    >>> sized("shuffled LEGO k=3", 120).eval_every, sized("shuffled LEGO k=3", None).eval_every
    (20, 25)
    """
    setting = SETTINGS[name]
    if steps is None:
        return setting
    longest = min(setting.eval_every, steps // ROUNDS)
    return replace(
        setting,
        steps=steps,
        eval_every=next(every for every in range(longest, 0, -1) if steps // ROUNDS % every == 0),
        graph_steps=min(setting.graph_steps, steps // 2),
        warmup_steps=min(setting.warmup_steps, steps // 4),
        samples=max(
            8 * len(setting.trained) * setting.eval_samples, min(setting.samples, 2 * steps * setting.batch_size)
        ),
    )
