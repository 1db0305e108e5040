"""Train a proxy, and measure the losses of skills. The project has no other training loop.

Encoded batches come from outside, so that a mixer can decide the training data. The official code of Chen et al. 2023,
arXiv:2307.14430, has the weight decay of .01, the warm-up of 50 steps, the linear decay to 0, and the clipping of gradients at norm 1.
The betas of AdamW (.9 and .98) are ours, and biases and norms decay too. A short training has a shorter warm-up (`usual_lr_warmup`), so
that the training reaches the learning rate.

The result depends only on seed, batches, device and number of threads.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from skillshard.errors import ProxyError
from skillshard.loss import IGNORE, Reduction, reduced
from skillshard.proxy.model import Proxy, ProxyShape

LR_WARMUP_STEPS, LR_WARMUP_SHARE = 50, 0.3
"""Number of warm-up steps of the authors, and the largest share of a training. With 50 fixed steps, a trial of 20 steps would end at four
tenths of its rate. The shortest training behind a published number has 190 steps, so all published trainings have 50 warm-up steps."""


@dataclass(frozen=True)
class TokenBatch:
    """Encoded sequences: tokens in slots, and the target of each position, which is a token or `IGNORE`."""

    tokens: Int[np.ndarray, "batch positions slots"]
    targets: Int[np.ndarray, "batch positions"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Int[np.ndarray, " rows"]) -> "TokenBatch":
        return TokenBatch(self.tokens[rows], self.targets[rows])


@dataclass(frozen=True)
class Evaluation:
    """The loss and the accuracy of a skill.

    Attributes:
        loss: Loss in nats per target token.
        accuracy: Share of target tokens that the model ranks first, averaged over samples.
    """

    loss: float
    accuracy: float


def answer_batch(tokens: Int[np.ndarray, "batch positions slots"], answers: Int[np.ndarray, " batch"]) -> TokenBatch:
    """Make a batch in which only the answer is predicted, at the last position.

    >>> answer_batch(np.zeros((1, 3, 1), dtype=np.int64), np.array([7])).targets.tolist()
    [[-100, -100, 7]]
    """
    targets = np.full(tokens.shape[:2], IGNORE, dtype=np.int64)
    targets[:, -1] = answers
    return TokenBatch(tokens, targets)


def text_batch(tokens: Int[np.ndarray, "batch length"], *, pad: int | None = None) -> TokenBatch:
    """Make a batch of ordinary text. Each position predicts the next token, unless the next token is `pad`.

    >>> batch = text_batch(np.array([[5, 6, 0]]), pad=0)
    >>> batch.tokens[:, :, 0].tolist(), batch.targets.tolist()
    ([[5, 6]], [[6, -100]])
    """
    following = tokens[:, 1:]
    targets = following if pad is None else np.where(following == pad, IGNORE, following)
    return TokenBatch(tokens[:, :-1, None], targets)


def seeded_model(shape: ProxyShape, *, seed: int, device: str = "cpu") -> Proxy:
    """Make a proxy with weights that depend only on the shape and the seed. The global generator of torch does not change.

    >>> shape = ProxyShape(vocab=5, positions=2, layers=1, dim=8, heads=2)
    >>> torch.equal(seeded_model(shape, seed=1).head.weight, seeded_model(shape, seed=1).head.weight)
    True
    """
    # Weights are drawn on the CPU and then moved, so that they do not depend on the device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Proxy(shape).to(device)


def usual_lr_warmup(steps: int | float) -> int:
    """Return the number of steps over which the learning rate rises: 50, or fewer in a training of less than 167 steps.

    >>> [usual_lr_warmup(steps) for steps in (1, 20, 190, 6000, math.inf)]
    [0, 6, 50, 50, 50]
    """
    return int(min(LR_WARMUP_STEPS, LR_WARMUP_SHARE * steps))


def learning_rate(step: int, *, steps: int | float, lr: float, warmup: int) -> float:
    """Compute the learning rate at a step, counted from 1.

    The rate rises from 0 to `lr` over `warmup` steps, and then falls to 0 after `steps`, both linearly. With steps=math.inf the rate stays
    at `lr`.

    >>> [round(learning_rate(step, steps=10, lr=1.0, warmup=2), 3) for step in (1, 2, 3, 6, 10)]
    [0.5, 1.0, 1.0, 0.625, 0.125]
    """
    # `max` guards a training of a single step, and a training without a warm-up, against a division by 0.
    falling = 1.0 if steps == math.inf else (steps - step + 1) / max(steps - warmup, 1)
    return lr * min(step / max(warmup, 1), falling, 1.0)


def adamw(model: nn.Module, *, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    """Make a fused AdamW over all parameters. `train_step` sets the learning rate."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: TokenBatch, *, lr: float, clip: float = 1.0
) -> float:
    """Make one optimizer step on a batch. The function changes only `model` and `optimizer`.

    Returns:
        The mean loss of the batch before the step, in nats per target token.
    """
    tokens, targets = _tensors(batch, model)
    loss = _answer_loss(model(tokens), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    # The rate is an argument and not a scheduler of PyTorch, so a resumed training has no more state than the step.
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return float(loss.detach())


def train(
    model: nn.Module,
    batches: Iterable[TokenBatch],
    *,
    steps: int,
    lr: float,
    warmup: int | None = None,
    clip: float = 1.0,
    weight_decay: float = 0.01,
    eval_every: int | None = None,
    on_eval: Callable[[int], None] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    steps_done: int = 0,
    schedule_steps: int | float | None = None,
) -> Float[np.ndarray, " steps"]:
    """Train a model in place, on its own device.

    Args:
        model: Model that maps tokens `(batch, positions, slots)` to logits `(batch, positions, vocab)`.
        batches: At least `steps` batches. A batch is taken only when its step begins.
        steps: Number of optimizer steps.
        lr: Learning rate after the warm-up.
        warmup: Number of steps over which the learning rate rises from 0. The default is `usual_lr_warmup` of the schedule, or of `steps`
            if the rate does not fall.
        clip: Largest norm of the gradients.
        weight_decay: Weight decay of a new optimizer.
        eval_every: Number of steps between two calls of `on_eval`. Give both or neither.
        on_eval: Function that is called with the step, before the next batch is taken. So a mixer can get the losses in time.
        optimizer: Optimizer of `adamw` with the state after `steps_done` steps. None makes a new optimizer.
        steps_done: Number of steps of an earlier, interrupted call with equal arguments. `batches` begins with the batch of the next step.
        schedule_steps: Length of the schedule of the learning rate. The default is `steps`. With math.inf the rate does not fall.

    Returns:
        The training loss of each step of this call, in nats per target token.

    Raises:
        ProxyError: The batches end too early, or the loss is not a finite number.

    Example:
        >>> model = seeded_model(ProxyShape(vocab=5, positions=2, layers=1, dim=8, heads=2), seed=0)
        >>> batch = text_batch(np.array([[1, 2, 3], [4, 2, 1]]))
        >>> losses = train(model, [batch] * 40, steps=40, lr=1e-2, eval_every=20, on_eval=print)
        20
        40
        >>> bool(losses[-1] < losses[0])
        True
    """
    if (eval_every is None) != (on_eval is None) or (eval_every is not None and eval_every < 1):
        raise ProxyError(f"eval_every={eval_every}, on_eval={on_eval}: give both (eval_every at least 1) or neither.")
    optimizer = optimizer or adamw(model, weight_decay=weight_decay)
    length = steps if schedule_steps is None or schedule_steps == math.inf else schedule_steps
    rising = usual_lr_warmup(length) if warmup is None else warmup
    losses: list[float] = []
    model.train()
    # The range comes first: `zip` then stops without a batch too many, which would move a mixer by a batch.
    for step, batch in zip(range(steps_done + 1, steps + 1), batches, strict=False):
        rate = learning_rate(step, steps=schedule_steps or steps, lr=lr, warmup=rising)
        losses.append(_finite(train_step(model, optimizer, batch, lr=rate, clip=clip), step, lr))
        if eval_every is not None and on_eval is not None and step % eval_every == 0:
            on_eval(step)
            # A measurement leaves the model in `eval()`.
            model.train()
    if len(losses) < steps - steps_done:
        raise ProxyError(
            f"the batches ended after step {steps_done + len(losses):,}: {steps:,} steps need {steps:,} batches. Give an endless "
            "stream, or fewer steps."
        )
    return np.asarray(losses)


@dataclass(frozen=True)
class Scores:
    """The measurements of a model on each sample of a batch.

    Attributes:
        nats: Sum of the loss over the target tokens of the sample.
        tokens: Number of target tokens, at least 1.
        hits: Number of target tokens that the model ranks first.
    """

    nats: Float[np.ndarray, " batch"]
    tokens: Float[np.ndarray, " batch"]
    hits: Float[np.ndarray, " batch"]

    @property
    def losses(self) -> Float[np.ndarray, " batch"]:
        """Nats per target token of each sample."""
        return self.nats / self.tokens


def sample_scores(model: nn.Module, batch: TokenBatch, *, max_batch: int = 256) -> Scores:
    """Measure each sample without gradients, in batches of `max_batch` samples.

    Raises:
        ProxyError: A sample has no target.
    """
    empty = np.flatnonzero((batch.targets == IGNORE).all(axis=1))
    if len(empty):
        raise ProxyError(
            f"sample {empty[0]:,} of {len(batch):,} has no target, so its loss is not defined. Drop the sample."
        )
    model.eval()
    chunks = [_scores(model, batch[first : first + max_batch]) for first in range(0, len(batch), max_batch)]
    return Scores(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def evaluate(
    model: nn.Module, holdout: Mapping[str, TokenBatch], *, max_batch: int = 256, reduction: Reduction = "per_sample"
) -> dict[str, Evaluation]:
    """Measure loss and accuracy of each skill on its held-out samples.

    Args:
        model: Model that maps tokens `(batch, positions, slots)` to logits `(batch, positions, vocab)`.
        holdout: Skill -> held-out samples, at least 1 sample of each skill.
        max_batch: Number of samples that the model reads at once.
        reduction: Mean over the samples of a skill (`skillshard.loss`).

    Raises:
        ProxyError: A skill has no samples, or a sample has no target.

    Example:
        >>> model = seeded_model(ProxyShape(vocab=5, positions=2, layers=1, dim=8, heads=2), seed=0)
        >>> losses = evaluate(model, {"add": text_batch(np.array([[1, 2, 3], [4, 2, 1]]))})
        >>> list(losses), 1.0 < losses["add"].loss < 2.5
        (['add'], True)
    """
    measured = {}
    for skill, batch in holdout.items():
        if not len(batch):
            raise ProxyError(
                f"skill {skill!r} has no held-out samples, so its loss is not defined. Hold out at least one sample."
            )
        scores = sample_scores(model, batch, max_batch=max_batch)
        loss, _ = reduced(scores.nats, scores.tokens, reduction)
        measured[skill] = Evaluation(loss, float((scores.hits / scores.tokens).mean()))
    return measured


@torch.inference_mode()
def _scores(model: nn.Module, batch: TokenBatch) -> tuple[Float[np.ndarray, " batch"], ...]:
    """Compute nats, tokens and hits of each sample."""
    tokens, targets = _tensors(batch, model)
    logits = model(tokens)
    is_target: Bool[Tensor, "batch positions"] = targets != IGNORE
    nats = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none").sum(1)
    hits = ((logits.argmax(-1) == targets) & is_target).sum(1)
    return tuple(counts.double().cpu().numpy() for counts in (nats, is_target.sum(1), hits))


def _answer_loss(logits: Float[Tensor, "batch positions vocab"], targets: Int[Tensor, "batch positions"]) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def _tensors(batch: TokenBatch, model: nn.Module) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    tokens = torch.tensor(batch.tokens, dtype=torch.long, device=device)
    return tokens, torch.tensor(batch.targets, dtype=torch.long, device=device)


def _finite(loss: float, step: int, lr: float) -> float:
    # Otherwise a diverged training would go on to its end, and its losses would be the edges of a graph.
    if not math.isfinite(loss):
        raise ProxyError(f"the training loss at step {step:,} is {loss}: the trial diverged. Lower lr (it is {lr:g}).")
    return loss
