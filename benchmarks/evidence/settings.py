"""The settings: a corpus, the trained and the measured skills, and the training. All methods of a setting have the same sizes.

Numbers were chosen on seeds from 100 on (docs/LOG.md). Reported seeds count from 0.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

# ROUNDS is the number of changes of the weights in a training, as in the authors' scripts.
ROUNDS, BATCH_SIZE, EVAL_SAMPLES = 6, 64, 200

SIZES: dict[str, dict[str, int]] = {"tiny": {}, "125m": {"layers": 12, "dim": 768, "heads": 12}}
"""Changes to the small proxy: 125m is the size of the paper's GPT-Neo."""

MIXES = ("natural", "stratified")
CURRICULA = ("curriculum", "anti_curriculum", "skill_curriculum")
LEARNED = ("leave-one-out", "linear", "brute-force")
LONG, LONG_RUNS = "long-leave-one-out", 0.6
"""The graph whose trials are as long as this share of a training. docs/LOG.md has the lengths that were tried."""
PROBING = ("refresh", "aioli")
PRETRAINING = (
    *MIXES,
    *CURRICULA,
    "identity",
    "loss order",
    "chain",
    "static",
    *LEARNED,
    "leave-one-out of 5 seeds",
    "direct edges",
    "odm",
    *PROBING,
)


@dataclass(frozen=True)
class Setting:
    """A comparison of methods.

    Attributes:
        corpus: lego (clauses shuffled), lego-ordered (clauses in the order of the chain), addition, or a folder of the corpora.
        k: Number of variables or digits, 0 for a folder.
        trained, measured: Numbers of the skills, from 1. Empty for all skills.
        measured_k: Length of the measured problems. 0 for the length of the trained problems.
        natural: Natural frequency of each trained skill. Empty for the frequencies of the folder.
        samples: Number of generated samples, the same number for each trained skill. A folder does not use the number.
        steps, eval_every: Optimizer steps of a training, and between two evaluations.
        eta, reduce: Arguments of SKILL-IT, as in the authors' scripts.
        graph_steps, warmup_steps: Steps of each trial of a learned graph, and of the warm start.
        lr: Highest learning rate.
        size: Size of the trained model, see SIZES. Graphs are always learned with the small proxy.
        precision: Data type of the matrix products of the trained model, float32 or bfloat16.
        target_loss: Mean loss of the measured skills, in nats, that ends the count of steps to the target. None compares areas alone.
        baseline: Method that the other methods are compared with.
        methods: Names of methods, see `methods.py`.
    """

    corpus: str
    k: int
    trained: tuple[int, ...]
    measured: tuple[int, ...]
    natural: tuple[int, ...]
    samples: int
    steps: int
    target_loss: float | None
    baseline: str
    methods: tuple[str, ...]
    eval_every: int = 25
    eta: float = 0.5
    reduce: Literal["sum", "mean"] = "sum"
    graph_steps: int = 300
    warmup_steps: int = 50
    lr: float = 1e-3
    measured_k: int = 0
    size: str = "tiny"
    precision: str = "float32"

    @property
    def is_text(self) -> bool:
        return self.k == 0

    @property
    def is_ordered(self) -> bool:
        """Whether the position of a word has a meaning for the model."""
        return self.corpus != "lego"

    @property
    def window(self) -> int:
        """Number of bytes that the model reads of a real text."""
        return 128

    @property
    def batch_size(self) -> int:
        return 32 if self.is_text else BATCH_SIZE

    @property
    def eval_samples(self) -> int:
        """Number of held-out samples of each measured skill."""
        return 40 if self.is_text else EVAL_SAMPLES

    @property
    def long_graph_steps(self) -> int:
        return self.eval_every * math.ceil(LONG_RUNS * self.steps / self.eval_every)

    @property
    def round_steps(self) -> int:
        return self.steps // ROUNDS


def _pretraining(
    corpus: str, natural: tuple[int, ...], samples: int, steps: int, *, more: tuple[str, ...] = (), **numbers: Any
) -> Setting:
    """Return a setting that trains on every skill and measures every skill."""
    every = tuple(range(1, len(natural) + 1))
    methods = (*PRETRAINING, *more)
    return Setting(corpus, len(natural), every, every, natural, samples, steps, 0.05, "stratified", methods, **numbers)


def _finetuning(
    corpus: str,
    k: int,
    trained: int,
    target: int,
    samples: int,
    steps: int,
    *,
    more: tuple[str, ...] = (),
    **numbers: Any,
) -> Setting:
    """Return a setting that measures a single skill, and trains on the measured skill alone or with the first skills."""
    methods = ("target-only", "skill-stratified", "prerequisites", *more)
    skills = tuple(range(1, trained + 1))
    return Setting(
        corpus,
        k,
        skills,
        (target,),
        (1,) * trained,
        samples,
        steps,
        0.01,
        "target-only",
        methods,
        reduce="mean",
        **numbers,
    )


def _real_text(corpus: str) -> Setting:
    methods = ("natural", "stratified", "identity", "loss order", "leave-one-out", "odm", "aioli")
    return Setting(
        corpus,
        0,
        (),
        (),
        (),
        0,
        600,
        None,
        "stratified",
        methods,
        eval_every=10,
        eta=0.2,
        graph_steps=60,
        warmup_steps=100,
    )


INITIAL = " with initial losses"
INITIAL_TOO = (f"chain{INITIAL}", f"identity{INITIAL}")
LEARNED_TOO = ("leave-one-out",)
PUBLISHED_TOO = ("published",)
SETTINGS = {
    "shuffled LEGO k=3": _pretraining("lego", (1, 3, 5), 120_000, 900, more=INITIAL_TOO, graph_steps=150),
    "ordered LEGO k=5": _pretraining(
        "lego-ordered", (1, 1, 1, 3, 5), 100_000, 1500, more=(*PUBLISHED_TOO, *INITIAL_TOO)
    ),
    "shuffled LEGO k=4": _pretraining("lego", (1, 1, 3, 5), 200_000, 3000),
    "shuffled LEGO k=5": _pretraining("lego", (1, 1, 1, 3, 5), 400_000, 6000, more=PUBLISHED_TOO, eval_every=50),
    "addition k=3": _pretraining(
        "addition", (13, 14, 18), 400_000, 6000, more=PUBLISHED_TOO, eta=0.1, lr=2e-3, eval_every=50
    ),
    "fine-tuning: shuffled LEGO, skill 3": _finetuning("lego", 5, 3, 3, 120_000, 2100, more=LEARNED_TOO),
    "fine-tuning: shuffled LEGO, skill 5": _finetuning("lego", 5, 5, 5, 200_000, 3000),
    "fine-tuning: ordered LEGO, skill 5": _finetuning("lego-ordered", 5, 5, 5, 100_000, 1500, more=LEARNED_TOO),
    "fine-tuning: ordered LEGO, skill 3": _finetuning("lego-ordered", 5, 3, 3, 60_000, 900),
    "fine-tuning: addition, skill 1": _finetuning(
        "addition", 3, 2, 1, 80_000, 1200, eta=0.1, lr=2e-3, more=(*PUBLISHED_TOO, *LEARNED_TOO)
    ),
    "out of domain: ordered LEGO, skill 4": Setting(
        "lego-ordered",
        5,
        (1, 2, 3, 5),
        (4,),
        (1, 1, 1, 5),
        100_000,
        1500,
        0.05,
        "stratified",
        ("natural", "stratified", "chain", "leave-one-out", "skill-stratified by leave-one-out"),
    ),
    "out of domain: chains of 3 from chains of 5": Setting(
        "lego",
        5,
        (1, 2, 3, 4, 5),
        (1, 2, 3),
        (1, 1, 1, 3, 5),
        160_000,
        2400,
        0.05,
        "stratified",
        ("natural", "stratified", "chain", "leave-one-out", "skill-stratified by leave-one-out"),
        measured_k=3,
    ),
    "real text: sources": _real_text("sources"),
    "real text: instructions": _real_text("instructions"),
}


def sized(
    name: str, *, steps: int | None = None, size: str = "tiny", lr: float | None = None, precision: str = "float32"
) -> Setting:
    """Return a setting, with other numbers if these are given.

    With another number of steps, evaluations move so that an evaluation ends every round. A shorter training has fewer samples and a graph
    of shorter trials.

    >>> sized("shuffled LEGO k=3", steps=120).eval_every, sized("shuffled LEGO k=3").eval_every
    (20, 25)
    """
    setting = replace(SETTINGS[name], size=size, precision=precision)
    if lr is not None:
        setting = replace(setting, lr=lr)
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
