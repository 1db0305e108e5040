"""Where a proxy computes, and how precisely."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from skillshard.errors import ProxyError

Precision = Literal["float32", "bfloat16"]


def is_here(device: str) -> bool:
    """Whether this process sees the device; on Ray it may be that of other nodes.

    >>> is_here("cpu")
    True
    """
    kind, _, number = device.partition(":")
    return kind != "cuda" or int(number or 0) < torch.cuda.device_count()


def device_kind(device: str) -> str:
    """What of a device its results depend on: not the number of a GPU.

    >>> device_kind("cuda:1"), device_kind("cpu")
    ('cuda', 'cpu')
    """
    return device.partition(":")[0]


def resolve_device(device: str, *, on_this_machine: bool = True) -> str:
    """ "auto" becomes "cuda" where PyTorch sees a GPU, else "cpu"; anything else is checked.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        on_this_machine: False where the device is that of other nodes, and is not looked for here.

    Raises:
        ProxyError: no such device here, or a number where workers see only the GPU that they were given.

    >>> resolve_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ProxyError(f"`{device=}`: give 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if kind == "cuda" and number and not on_this_machine:
        raise ProxyError(f"`{device=}`: a worker on Ray sees only the GPU that it was given. Give `device='cuda'`.")
    if on_this_machine and not is_here(device):
        raise ProxyError(
            f"`{device=}`: PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs here. Run where there is one, or give "
            "`device='cpu'`."
        )
    return device


def resolve_precision(precision: str, device: str) -> Precision:
    """ "auto" becomes bfloat16 on a GPU and float32 elsewhere, where bfloat16 is slower.

    >>> resolve_precision("auto", "cpu")
    'float32'
    """
    if precision == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    if precision not in ("float32", "bfloat16"):
        raise ProxyError(f"`{precision=}`: give 'auto', 'float32' or 'bfloat16'.")
    return precision  # type: ignore[return-value]  # one of the two


@dataclass(frozen=True)
class Compute:
    """Where a proxy computes, and how precisely.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: data type of matrix products: "auto", "float32" or "bfloat16".

    >>> Compute(device="cpu").resolved()
    Compute(device='cpu', precision='float32')
    """

    device: str = "auto"
    precision: str = "auto"

    def resolved(self, *, on_this_machine: bool = True) -> "Compute":
        """The same without "auto"; ProxyError as in `resolve_device` and `resolve_precision`."""
        device = resolve_device(self.device, on_this_machine=on_this_machine)
        return Compute(device, resolve_precision(self.precision, device))

    @property
    def is_on_gpu(self) -> bool:
        return self.device.startswith("cuda")


@contextmanager
def one_thread() -> Iterator[None]:
    """Losses and weights whose bytes do not depend on the number of CPUs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class MixedPrecision(nn.Module):
    """A model whose products are computed in bfloat16; parameters, logits and losses stay float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16):
            logits: Tensor = self.model(tokens)
        return logits.float()
