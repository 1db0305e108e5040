"""A training run of the proxy on random batches of texts, kept at checkpoints, that goes on where it was killed.

    RUN/checkpoint-000100.npy    all parameters after step 100, one flat float32 vector
    TRIAL/unfinished/000100.npz    the optimizer's state there, as long as the trial goes on

The batch of a step depends on the seed and the step alone, so a resumed trial sees the batches that it would have seen. On a
CPU with one thread it ends in the same bytes.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from skillshard import progress, storage
from skillshard.errors import ProxyError
from skillshard.keyed_random import Label, chances, integers
from skillshard.proxy.device import MixedPrecision, Precision
from skillshard.proxy.model import ProxyShape
from skillshard.proxy.pretrained import open_pretrained
from skillshard.proxy.segments import PAD
from skillshard.proxy.train import TokenBatch, adamw, seeded_model, train, train_step

BATCH_SIZE = 64
TIMED_STEPS = 3


def check_schedule(*, steps: int, checkpoints: int, lr: float) -> None:
    """ProxyError unless a trial of so many steps can keep so many checkpoints, and the learning rate is above 0."""
    if steps < 1 or not 1 <= checkpoints <= steps:
        raise ProxyError(
            f"{steps:,} steps with {checkpoints:,} checkpoints: a trial has at least 1 step and 1 checkpoint, and "
            "at most a checkpoint a step."
        )
    if not lr > 0:
        raise ProxyError(f"lr={lr}: expected a learning rate above 0.")


@dataclass(frozen=True)
class Recipe:
    """How a proxy is trained: what all trials of a loss tagger or of a graph share.

    Args:
        model: shape of a new proxy, or the directory of a pretrained one.
        steps: optimizer steps of `BATCH_SIZE` texts.
        checkpoints: kept checkpoints, spread evenly, the last one after the last step; at most `steps`.
        lr: highest learning rate.
        drop_share: share of positions, but for the last, that are emptied in training, so that the model learns what to
            expect where a part of the text is missing; 0 for none.
        device, precision: as resolved by `skillshard.proxy.device`.

    Raises:
        ProxyError: a number is out of range.
    """

    model: ProxyShape | str
    steps: int
    checkpoints: int
    lr: float
    drop_share: float = 0.0
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_schedule(steps=self.steps, checkpoints=self.checkpoints, lr=self.lr)
        if not 0 <= self.drop_share < 1:
            raise ProxyError(f"drop_share={self.drop_share}: expected a share from 0 to below 1.")

    @property
    def kept_steps(self) -> list[int]:
        """The steps after which checkpoints are kept.

        >>> Recipe(model="m", steps=10, checkpoints=4, lr=1e-3).kept_steps
        [3, 5, 8, 10]
        """
        return [-(-self.steps * number // self.checkpoints) for number in range(1, self.checkpoints + 1)]


def new_model(recipe: Recipe, *, seed: int) -> nn.Module:
    """The model that a trial begins with: weights by the seed, or the pretrained ones."""
    if isinstance(recipe.model, str):
        return open_pretrained(recipe.model).to(recipe.device)
    return seeded_model(recipe.model, seed=seed, device=recipe.device)


def computing(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model as it computes: in the recipe's precision."""
    return MixedPrecision(model) if recipe.precision == "bfloat16" else model


def train_trial(encoded: TokenBatch, recipe: Recipe, *, seed: int, folder: Path) -> None:
    """Train one trial to its end, from its last kept checkpoint; does nothing if it is there already.

    Args:
        encoded: the texts to draw from, at least 1.
        recipe: how the trial is trained.
        seed: of the weights and of the batches.
        folder: of this trial; made if missing.

    Raises:
        ProxyError: the loss is no longer a number.
    """
    done = max((step for step in recipe.kept_steps if _is_kept(folder, step, recipe)), default=0)
    model = new_model(recipe, seed=seed)
    optimizer = adamw(model)
    if done:
        load_checkpoint(model, folder, done)
        if done < recipe.steps:
            _load_optimizer(optimizer, _unfinished(folder, done), done)

    def keep(step: int) -> None:
        progress.advance(step, recipe.steps)
        if step in recipe.kept_steps:
            _save(model, optimizer, folder, step, is_last=step == recipe.steps)

    train(
        computing(model, recipe),
        random_batches(encoded, key=(seed,), first_step=done + 1, drop_share=recipe.drop_share),
        steps=recipe.steps,
        lr=recipe.lr,
        eval_every=1,
        on_eval=keep,
        optimizer=optimizer,
        steps_done=done,
    )
    shutil.rmtree(folder / "unfinished", ignore_errors=True)


@runtime_checkable
class Texts(Protocol):
    """Encoded texts that batches are drawn from by their numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Int[np.ndarray, " batch"], /) -> TokenBatch: ...


def random_batches(
    encoded: Texts, *, key: tuple[Label, ...], first_step: int, drop_share: float, size: int = BATCH_SIZE
) -> Iterator[TokenBatch]:
    """The batches of steps `first_step`, `first_step` + 1, ...: texts drawn with replacement, by key and step alone.

    >>> texts = TokenBatch(np.arange(8).reshape(4, 2, 1), np.zeros((4, 2), dtype=np.int64))
    >>> batches = random_batches(texts, key=(0,), first_step=1, drop_share=0.0, size=3)
    >>> first, second = next(batches), next(batches)
    >>> again = next(random_batches(texts, key=(0,), first_step=2, drop_share=0.0, size=3))
    >>> bool((again.tokens == second.tokens).all())
    True
    """
    step = first_step
    while True:
        batch = encoded[integers(size, len(encoded), "batch", *key, step)]
        if drop_share:
            dropped = chances(batch.targets.size, drop_share, "dropped", *key, step).reshape(batch.targets.shape)
            dropped[:, -1] = False
            batch = TokenBatch(np.where(dropped[:, :, None], PAD, batch.tokens), batch.targets)
        yield batch
        step += 1


def load_checkpoint(model: nn.Module, folder: Path, step: int) -> None:
    """Give a model the parameters of a kept checkpoint.

    Raises:
        ProxyError: the checkpoint is of another model.
    """
    place = _checkpoint(folder, step)
    _set_parameters(model, np.load(place), place)


def save_state(model: nn.Module, optimizer: torch.optim.Optimizer, place: str | Path) -> None:
    """Write all that a training goes on from, model and optimizer, as one file."""
    with storage.writing(place) as part, part.open("wb") as file:
        np.savez(file, parameters=_vector(model), **_moments(optimizer))  # type: ignore[arg-type]  # as in _save


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, place: str | Path) -> None:
    """Give a new model and its new optimizer what `save_state` wrote.

    Raises:
        ProxyError: it is of another model.
    """
    with np.load(place) as found:
        vector, step = found["parameters"], int(found["step"][0])
    _set_parameters(model, vector, place)
    _load_optimizer(optimizer, place, step)


def _vector(model: nn.Module) -> Float[np.ndarray, " parameter"]:
    vector: Float[np.ndarray, " parameter"] = parameters_to_vector(model.parameters()).detach().float().cpu().numpy()
    return vector


def _set_parameters(model: nn.Module, vector: Float[np.ndarray, " parameter"], place: str | Path) -> None:
    num = sum(parameter.numel() for parameter in model.parameters())
    if vector.shape != (num,):
        raise ProxyError(
            f"{place} holds {vector.size:,} parameters, and the proxy has {num:,}: it is of another model. Fit anew."
        )
    device = next(model.parameters()).device
    vector_to_parameters(torch.from_numpy(vector).to(device), model.parameters())


def estimate_s(encoded: TokenBatch, recipe: Recipe, *, size: int = BATCH_SIZE) -> float:
    """Seconds that one trial of batches of `size` will take on an idle machine like this, by `TIMED_STEPS` steps after a first one."""
    model = new_model(recipe, seed=0)
    optimizer, batches = adamw(model), random_batches(encoded, key=(0,), first_step=1, drop_share=0.0, size=size)
    train_step(computing(model, recipe), optimizer, next(batches), lr=0.0)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        train_step(computing(model, recipe), optimizer, next(batches), lr=0.0)
    return (time.perf_counter() - started) / TIMED_STEPS * recipe.steps


def _is_kept(folder: Path, step: int, recipe: Recipe) -> bool:
    state = step == recipe.steps or _unfinished(folder, step).exists()
    return state and _checkpoint(folder, step).exists()


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:06d}.npy"


def _unfinished(folder: Path, step: int) -> Path:
    return folder / "unfinished" / f"{step:06d}.npz"


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, step: int, *, is_last: bool) -> None:
    with storage.writing(_checkpoint(folder, step)) as part, part.open("wb") as file:
        np.save(file, _vector(model))
    if is_last:
        return
    with storage.writing(_unfinished(folder, step)) as part, part.open("wb") as file:
        np.savez(file, **_moments(optimizer))  # type: ignore[arg-type]  # numpy's stub sees its own flag in **
    for earlier in (folder / "unfinished").glob("*.npz"):
        if earlier != _unfinished(folder, step):
            earlier.unlink(missing_ok=True)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Float[np.ndarray, " parameter"]]:
    states = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    names = ("exp_avg", "exp_avg_sq")
    found = {name: np.concatenate([state[name].flatten().float().cpu().numpy() for state in states]) for name in names}
    return {**found, "step": np.array([float(states[0]["step"])], np.float32)}


def _load_optimizer(optimizer: torch.optim.Optimizer, place: str | Path, step: int) -> None:
    with np.load(place) as found:
        moments = {name: found[name] for name in ("exp_avg", "exp_avg_sq")}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    bounds: Int[np.ndarray, " bound"] = np.cumsum([0, *(parameter.numel() for parameter in parameters)])
    for at, parameter in enumerate(parameters):
        state = {
            name: torch.from_numpy(vector[bounds[at] : bounds[at + 1]]).reshape(parameter.shape).to(parameter.device)
            for name, vector in moments.items()
        }
        at_step = torch.tensor(float(step), device=parameter.device)  # where fused kernels want it
        optimizer.state[parameter] = {**state, "step": at_step}
