"""The one training loop of the project, and the measurement of losses per skill.

Batches come from outside, encoded, so that a mixer decides what is trained on. Weight decay .01, a warm-up of 50 steps,
linear decay to 0 and gradients clipped at norm 1 are the official code's of Chen et al. 2023, arXiv:2307.14430; the
betas of AdamW (.9 and .98) are ours, and biases and norms decay too. The warm-up of a short training is shorter
(`usual_lr_warmup`), so that its learning rate is reached.

A trial is deterministic for its seed, batches, device and number of threads.
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
"""The authors' 50 steps, but at most three tenths of the training: with 50 fixed steps a trial of 20 ends at four tenths of its
rate. The shortest training behind a published number has 190 steps, so all of them have a warm-up of 50 steps by this rule."""


@dataclass(frozen=True)
class TokenBatch:
    """Encoded sequences: tokens in slots, and for each position the token to predict there or `IGNORE`."""

    tokens: Int[np.ndarray, "batch positions slots"]
    targets: Int[np.ndarray, "batch positions"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Int[np.ndarray, " rows"]) -> "TokenBatch":
        return TokenBatch(self.tokens[rows], self.targets[rows])


@dataclass(frozen=True)
class Evaluation:
    """A skill's loss in nats per target token, and the mean over samples of the share of target tokens that the model ranks first."""

    loss: float
    accuracy: float


def answer_batch(tokens: Int[np.ndarray, "batch positions slots"], answers: Int[np.ndarray, " batch"]) -> TokenBatch:
    """A batch in which only the answer is predicted, at the last position.

    >>> answer_batch(np.zeros((1, 3, 1), dtype=np.int64), np.array([7])).targets.tolist()
    [[-100, -100, 7]]
    """
    targets = np.full(tokens.shape[:2], IGNORE, dtype=np.int64)
    targets[:, -1] = answers
    return TokenBatch(tokens, targets)


def text_batch(tokens: Int[np.ndarray, "batch length"], *, pad: int | None = None) -> TokenBatch:
    """A batch of ordinary text: each position predicts the next token, except where that is `pad`.

    >>> batch = text_batch(np.array([[5, 6, 0]]), pad=0)
    >>> batch.tokens[:, :, 0].tolist(), batch.targets.tolist()
    ([[5, 6]], [[6, -100]])
    """
    following = tokens[:, 1:]
    targets = following if pad is None else np.where(following == pad, IGNORE, following)
    return TokenBatch(tokens[:, :-1, None], targets)


def seeded_model(shape: ProxyShape, *, seed: int, device: str = "cpu") -> Proxy:
    """A proxy whose weights depend on the shape and the seed alone; torch's global generator is left as it was.

    >>> shape = ProxyShape(vocab=5, positions=2, layers=1, dim=8, heads=2)
    >>> torch.equal(seeded_model(shape, seed=1).head.weight, seeded_model(shape, seed=1).head.weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Proxy(shape).to(device)


def usual_lr_warmup(steps: int | float) -> int:
    """Steps of a training over which the learning rate rises: 50, and fewer than that in a training of less than 167 steps.

    >>> [usual_lr_warmup(steps) for steps in (1, 20, 190, 6000, math.inf)]
    [0, 6, 50, 50, 50]
    """
    return int(min(LR_WARMUP_STEPS, LR_WARMUP_SHARE * steps))


def learning_rate(step: int, *, steps: int | float, lr: float, warmup: int) -> float:
    """The rate at a step counted from 1: linear from 0 to `lr` over `warmup` steps, then linear to 0 after `steps`.

    With steps=math.inf it stays at `lr`.

    >>> [round(learning_rate(step, steps=10, lr=1.0, warmup=2), 3) for step in (1, 2, 3, 6, 10)]
    [0.5, 1.0, 1.0, 0.625, 0.125]
    """
    falling = 1.0 if steps == math.inf else (steps - step + 1) / max(steps - warmup, 1)
    return lr * min(step / max(warmup, 1), falling, 1.0)


def adamw(model: nn.Module, *, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    """Fused AdamW over all parameters; `train_step` sets its learning rate."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: TokenBatch, *, lr: float, clip: float = 1.0
) -> float:
    """One optimizer step on one batch; changes `model` and `optimizer` and nothing else.

    Returns:
        The batch's mean loss before the step, nats per target token.
    """
    tokens, targets = _tensors(batch, model)
    loss = _answer_loss(model(tokens), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), clip)
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
        model: maps tokens `(batch, positions, slots)` to logits `(batch, positions, vocab)`.
        batches: at least `steps` of them; exactly `steps` are taken, and none before the step that needs it.
        steps: number of optimizer steps.
        lr: learning rate that the training reaches after its warm-up.
        warmup: steps over which the learning rate rises from 0; None: `usual_lr_warmup` of the schedule, or
            of `steps` where the rate does not fall.
        clip, weight_decay: see the module.
        eval_every, on_eval: `on_eval(step)` is called after steps eval_every, 2 eval_every, ..., before the next
            batch is taken, so that a mixer can be told the losses in time. Give both or neither.
        optimizer: of `adamw`, with the state it had after `steps_done` steps; None: a new one.
        steps_done: steps of an earlier, interrupted call with equal arguments; `batches` begins with the next one's.
        schedule_steps: length of the schedule of the rate; None: `steps`; math.inf: the rate does not fall.

    Returns:
        The training loss of each step taken now, nats per target token.

    Raises:
        ProxyError: the batches end too early, or the loss is no longer a number.

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
    for step, batch in zip(range(steps_done + 1, steps + 1), batches, strict=False):
        rate = learning_rate(step, steps=schedule_steps or steps, lr=lr, warmup=rising)
        losses.append(_finite(train_step(model, optimizer, batch, lr=rate, clip=clip), step, lr))
        if eval_every is not None and on_eval is not None and step % eval_every == 0:
            on_eval(step)
            model.train()
    if len(losses) < steps - steps_done:
        raise ProxyError(
            f"the batches ended after step {steps_done + len(losses):,}: {steps:,} steps need {steps:,} batches. Give an endless "
            "stream, or fewer steps."
        )
    return np.asarray(losses)


@dataclass(frozen=True)
class Scores:
    """What a model does on each sample of a batch.

    Attributes:
        nats: loss summed over the sample's target tokens.
        tokens: number of target tokens, at least 1.
        hits: number of target tokens that the model ranks first.
    """

    nats: Float[np.ndarray, " batch"]
    tokens: Float[np.ndarray, " batch"]
    hits: Float[np.ndarray, " batch"]

    @property
    def losses(self) -> Float[np.ndarray, " batch"]:
        """Nats per target token of each sample."""
        return self.nats / self.tokens


def sample_scores(model: nn.Module, batch: TokenBatch, *, max_batch: int = 256) -> Scores:
    """Measure each sample, `max_batch` samples at a time, without gradients.

    Raises:
        ProxyError: a sample has no target.
    """
    empty = np.flatnonzero((batch.targets == IGNORE).all(axis=1))
    if len(empty):
        raise ProxyError(f"sample {empty[0]:,} of {len(batch):,} has no target: its loss is not defined. Drop it.")
    model.eval()
    chunks = [_scores(model, batch[first : first + max_batch]) for first in range(0, len(batch), max_batch)]
    return Scores(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def evaluate(
    model: nn.Module, holdout: Mapping[str, TokenBatch], *, max_batch: int = 256, reduction: Reduction = "per_sample"
) -> dict[str, Evaluation]:
    """Measure loss and accuracy of each skill on its held-out samples.

    Args:
        model: maps tokens `(batch, positions, slots)` to logits `(batch, positions, vocab)`.
        holdout: skill -> held-out samples, at least 1 of each.
        max_batch: number of samples that the model reads at once.
        reduction: which mean the loss is, see `skillshard.loss`.

    Raises:
        ProxyError: a skill has no samples, or a sample no target.

    Example:
        >>> model = seeded_model(ProxyShape(vocab=5, positions=2, layers=1, dim=8, heads=2), seed=0)
        >>> losses = evaluate(model, {"add": text_batch(np.array([[1, 2, 3], [4, 2, 1]]))})
        >>> list(losses), 1.0 < losses["add"].loss < 2.5
        (['add'], True)
    """
    measured = {}
    for skill, batch in holdout.items():
        if not len(batch):
            raise ProxyError(f"skill {skill!r} has no held-out samples: its loss is not defined. Hold some out.")
        scores = sample_scores(model, batch, max_batch=max_batch)
        loss, _ = reduced(scores.nats, scores.tokens, reduction)
        measured[skill] = Evaluation(loss, float((scores.hits / scores.tokens).mean()))
    return measured


@torch.inference_mode()
def _scores(model: nn.Module, batch: TokenBatch) -> tuple[Float[np.ndarray, " batch"], ...]:
    """Nats, tokens and hits of each sample."""
    tokens, targets = _tensors(batch, model)
    logits = model(tokens)
    asked: Bool[Tensor, "batch positions"] = targets != IGNORE
    nats = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none").sum(1)
    hits = ((logits.argmax(-1) == targets) & asked).sum(1)
    return tuple(counts.double().cpu().numpy() for counts in (nats, asked.sum(1), hits))


def _answer_loss(logits: Float[Tensor, "batch positions vocab"], targets: Int[Tensor, "batch positions"]) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def _tensors(batch: TokenBatch, model: nn.Module) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    tokens = torch.tensor(batch.tokens, dtype=torch.long, device=device)
    return tokens, torch.tensor(batch.targets, dtype=torch.long, device=device)


def _finite(loss: float, step: int, lr: float) -> float:
    if not math.isfinite(loss):
        raise ProxyError(f"the training loss at step {step:,} is {loss}: the trial diverged. Lower lr (it is {lr:g}).")
    return loss
