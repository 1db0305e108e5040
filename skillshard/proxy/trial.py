"""Train the proxy in a trial on random batches of texts, with checkpoints from which a killed trial continues.

    TRIAL/checkpoint-000100.npy    all parameters after step 100, as a flat float32 vector
    TRIAL/unfinished/000100.npz    the state of the optimizer after step 100, until the trial ends

The batch of a step depends only on the seed and the step, so a resumed trial sees the same batches as an uninterrupted trial. On a CPU
with one thread, both trials end in the same bytes. TRIAL is a local directory or a folder of a store.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from skillshard import places, progress, storage
from skillshard.errors import ProxyError
from skillshard.keyed_random import Label, chances, integers
from skillshard.proxy.device import MixedPrecision, Precision
from skillshard.proxy.model import ProxyShape
from skillshard.proxy.pretrained import open_pretrained
from skillshard.proxy.segments import PAD
from skillshard.proxy.train import TokenBatch, adamw, seeded_model, train, train_step

# The size is part of the recipe of every trial: another size gives other losses, and would need a new `TRAINING_VERSION`.
BATCH_SIZE = 64
# Three steps are enough for an estimate in minutes.
TIMED_STEPS = 3


def check_schedule(*, steps: int, checkpoints: int, lr: float) -> None:
    """Check the numbers of a trial.

    Raises:
        ProxyError: The steps or the checkpoints are less than 1, the checkpoints are more than the steps, or the learning rate is not above
            0.
    """
    if steps < 1 or not 1 <= checkpoints <= steps:
        raise ProxyError(
            f"{steps:,} steps with {checkpoints:,} checkpoints: a trial has at least 1 step and 1 checkpoint, and "
            "at most a checkpoint a step."
        )
    if not lr > 0:
        raise ProxyError(f"`{lr=}`: expected a learning rate above 0.")


@dataclass(frozen=True)
class Recipe:
    """The recipe of a training, which all trials of a loss tagger or of a graph share.

    Args:
        model: Shape of a new proxy, or the directory of a pretrained model.
        steps: Number of optimizer steps with `BATCH_SIZE` texts each.
        checkpoints: Number of checkpoints, at most `steps`. The checkpoints are spread evenly, and the last checkpoint comes after the last
            step.
        lr: Highest learning rate.
        drop_share: Share of positions that are emptied in training, so that the model learns to predict with missing parts. The last
            position is never emptied.
        device: Device, as resolved by `skillshard.proxy.device`.
        precision: Precision, as resolved by `skillshard.proxy.device`.

    Raises:
        ProxyError: A number is out of range.
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
        """Steps after which checkpoints are kept.

        >>> Recipe(model="m", steps=10, checkpoints=4, lr=1e-3).kept_steps
        [3, 5, 8, 10]
        """
        return [-(-self.steps * number // self.checkpoints) for number in range(1, self.checkpoints + 1)]


def new_model(recipe: Recipe, *, seed: int) -> nn.Module:
    """Make the model with which a trial begins. A new proxy gets its weights from the seed, and a pretrained model keeps its weights."""
    if isinstance(recipe.model, str):
        return open_pretrained(recipe.model).to(recipe.device)
    return seeded_model(recipe.model, seed=seed, device=recipe.device)


def computing(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Wrap the model so that the model computes in the precision of the recipe."""
    return MixedPrecision(model) if recipe.precision == "bfloat16" else model


def train_trial(encoded: TokenBatch, recipe: Recipe, *, seed: int, folder: str | os.PathLike[str]) -> None:
    """Train a trial to its end, from the last checkpoint. A finished trial is not trained again.

    Args:
        encoded: Texts to draw from, at least 1.
        recipe: Recipe of the training.
        seed: Seed for the weights and for the batches.
        folder: Directory of the trial, which is made if needed, or a folder of a store.

    Raises:
        ProxyError: The loss is not a finite number.
    """
    done = max((step for step in recipe.kept_steps if _is_kept(folder, step, recipe)), default=0)
    model = new_model(recipe, seed=seed)
    optimizer = adamw(model)
    if done:
        load_checkpoint(model, folder, done)
        if done < recipe.steps:
            _load_optimizer(optimizer, storage.load_arrays(_unfinished(folder, done)), done)

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
    storage.remove_tree(places.join(folder, "unfinished"))


@runtime_checkable
class Texts(Protocol):
    """Encoded texts from which batches are taken by the numbers of rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Int[np.ndarray, " batch"], /) -> TokenBatch: ...


def random_batches(
    encoded: Texts, *, key: tuple[Label, ...], first_step: int, drop_share: float, size: int = BATCH_SIZE
) -> Iterator[TokenBatch]:
    """Yield the batches of the steps `first_step`, `first_step` + 1, ... without end.

    The texts of a batch are drawn with replacement. The draws depend only on the key and the step.

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
            # The last position asks the question. Without the question no answer can be learned.
            dropped[:, -1] = False
            batch = TokenBatch(np.where(dropped[:, :, None], PAD, batch.tokens), batch.targets)
        yield batch
        step += 1


def load_checkpoint(model: nn.Module, folder: str | os.PathLike[str], step: int) -> None:
    """Load the parameters of a checkpoint into a model.

    Raises:
        ProxyError: The checkpoint belongs to another model.
    """
    place = _checkpoint(folder, step)
    _set_parameters(model, np.array(storage.load_array(place)), place)


def save_state(model: nn.Module, optimizer: torch.optim.Optimizer, place: str | os.PathLike[str]) -> None:
    """Write the parameters of the model and the state of the optimizer as one file, from which a training can continue."""
    storage.write_arrays(place, {"parameters": _vector(model), **_moments(optimizer)})


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, place: str | os.PathLike[str]) -> None:
    """Load a file of `save_state` into a new model and its new optimizer.

    Raises:
        ProxyError: The file belongs to another model.
    """
    arrays = storage.load_arrays(place)
    _set_parameters(model, arrays["parameters"], place)
    _load_optimizer(optimizer, arrays, int(arrays["step"][0]))


def _vector(model: nn.Module) -> Float[np.ndarray, " parameter"]:
    vector: Float[np.ndarray, " parameter"] = parameters_to_vector(model.parameters()).detach().float().cpu().numpy()
    return vector


def _set_parameters(model: nn.Module, vector: Float[np.ndarray, " parameter"], place: str | os.PathLike[str]) -> None:
    num = sum(parameter.numel() for parameter in model.parameters())
    if vector.shape != (num,):
        raise ProxyError(
            f"{place} holds {vector.size:,} parameters, and the proxy has {num:,}. The file belongs to another model. Train anew."
        )
    device = next(model.parameters()).device
    vector_to_parameters(torch.from_numpy(vector).to(device), model.parameters())


def estimate_s(encoded: TokenBatch, recipe: Recipe, *, size: int = BATCH_SIZE) -> float:
    """Estimate how many seconds a trial takes on an idle machine: time `TIMED_STEPS` steps after one warm-up step, and scale up."""
    model = new_model(recipe, seed=0)
    optimizer, batches = adamw(model), random_batches(encoded, key=(0,), first_step=1, drop_share=0.0, size=size)
    train_step(computing(model, recipe), optimizer, next(batches), lr=0.0)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        train_step(computing(model, recipe), optimizer, next(batches), lr=0.0)
    return (time.perf_counter() - started) / TIMED_STEPS * recipe.steps


def _is_kept(folder: str | os.PathLike[str], step: int, recipe: Recipe) -> bool:
    # A checkpoint without the state of the optimizer cannot be continued, unless the checkpoint is the last.
    state = step == recipe.steps or storage.exists(_unfinished(folder, step))
    return state and storage.exists(_checkpoint(folder, step))


def _checkpoint(folder: str | os.PathLike[str], step: int) -> str:
    return places.join(folder, f"checkpoint-{step:06d}.npy")


def _unfinished(folder: str | os.PathLike[str], step: int) -> str:
    return places.join(folder, "unfinished", f"{step:06d}.npz")


def _save(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: str | os.PathLike[str], step: int, *, is_last: bool
) -> None:
    storage.write_array(_checkpoint(folder, step), _vector(model))
    if is_last:
        return
    storage.write_arrays(_unfinished(folder, step), _moments(optimizer))
    # The earlier states are deleted last, because a killed trial continues from an earlier state until this state is whole.
    for state in storage.list_files(places.join(folder, "unfinished"), "*.npz"):
        if state.place != _unfinished(folder, step):
            storage.remove(state.place)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Float[np.ndarray, " parameter"]]:
    states = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    names = ("exp_avg", "exp_avg_sq")
    moments = {
        name: np.concatenate([state[name].flatten().float().cpu().numpy() for state in states]) for name in names
    }
    return {**moments, "step": np.array([float(states[0]["step"])], np.float32)}


def _load_optimizer(optimizer: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray], step: int) -> None:
    moments = {name: arrays[name] for name in ("exp_avg", "exp_avg_sq")}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    bounds: Int[np.ndarray, " bound"] = np.cumsum([0, *(parameter.numel() for parameter in parameters)])
    for index, parameter in enumerate(parameters):
        stretch = slice(bounds[index], bounds[index + 1])
        state = {
            name: torch.from_numpy(vector[stretch]).reshape(parameter.shape).to(parameter.device)
            for name, vector in moments.items()
        }
        # Fused kernels need the step on the device of the parameter.
        device_step = torch.tensor(float(step), device=parameter.device)
        optimizer.state[parameter] = {**state, "step": device_step}
