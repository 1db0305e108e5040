"""Choose the device and the precision with which a proxy computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from skillshard.errors import ProxyError

Precision = Literal["float32", "bfloat16"]


def is_here(device: str) -> bool:
    """Tell whether this process sees the device. On Ray, the device may be on other nodes.

    >>> is_here("cpu")
    True
    """
    # `torch.cuda.is_available()` would not see that a number is too large.
    kind, _, number = device.partition(":")
    return kind != "cuda" or int(number or 0) < torch.cuda.device_count()


def device_kind(device: str) -> str:
    """Return the kind of a device. Results depend on the kind, but not on the number of a GPU.

    >>> device_kind("cuda:1"), device_kind("cpu")
    ('cuda', 'cpu')
    """
    return device.partition(":")[0]


def resolve_device(device: str, *, on_this_machine: bool = True) -> str:
    """Resolve "auto" to "cuda" if PyTorch sees a GPU, else to "cpu". Check any other device.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        on_this_machine: Whether the device is on this machine. With False, the device is on other nodes and is not checked.

    Raises:
        ProxyError: This machine does not have the device, or a device of other nodes has a number.

    >>> resolve_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ProxyError(f"`{device=}`: give 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if kind == "cuda" and number and not on_this_machine:
        raise ProxyError(f"`{device=}`: a worker on Ray sees only the GPU of its task. Give `device='cuda'`.")
    if on_this_machine and not is_here(device):
        raise ProxyError(
            f"`{device=}`: PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs on this machine. Use a machine with the device, or "
            "give `device='cpu'`."
        )
    return device


def resolve_precision(precision: str, device: str) -> Precision:
    """Resolve "auto" to bfloat16 on a GPU and to float32 elsewhere. Check any other precision.

    Raises:
        ProxyError: The precision is unknown.

    >>> resolve_precision("auto", "cpu")
    'float32'
    """
    # A CPU computes bfloat16 more slowly than float32.
    if precision == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    if precision not in ("float32", "bfloat16"):
        raise ProxyError(f"`{precision=}`: give 'auto', 'float32' or 'bfloat16'.")
    return precision  # type: ignore[return-value]  # one of the two


@dataclass(frozen=True)
class Compute:
    """The device and the precision with which a proxy computes.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: Data type of matrix products: "auto", "float32" or "bfloat16".

    >>> Compute(device="cpu").resolved()
    Compute(device='cpu', precision='float32')
    """

    device: str = "auto"
    precision: str = "auto"

    def resolved(self, *, on_this_machine: bool = True) -> "Compute":
        """Replace "auto" by a device and a precision.

        Raises:
            ProxyError: As in `resolve_device` and `resolve_precision`.
        """
        device = resolve_device(self.device, on_this_machine=on_this_machine)
        return Compute(device, resolve_precision(self.precision, device))

    @property
    def is_on_gpu(self) -> bool:
        return self.device.startswith("cuda")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread, so that the bytes of losses and weights do not depend on the number of CPUs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class MixedPrecision(nn.Module):
    """A model that computes products in bfloat16. Parameters, logits and losses stay float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16):
            logits: Tensor = self.model(tokens)
        # bfloat16 has two to three digits, too few for the differences of losses that become edges.
        return logits.float()
