"""A stand-in with the interface of torchtitan's loader: what a subclass calls, and what the trainer calls on the subclass."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torchdata.stateful_dataloader import StatefulDataLoader


class ParallelAwareDataloader(StatefulDataLoader[Any]):
    @dataclass(kw_only=True, slots=True)
    class Config:
        dataset: str = ""
        dataset_path: str | None = None
        num_workers: int = 0
        persistent_workers: bool = False
        pin_memory: bool = False
        prefetch_factor: int | None = None
        owner: ClassVar[Any] = None

        def build(self, **arguments: Any) -> Any:
            return self.owner(config=self, **arguments)

    def __init_subclass__(cls) -> None:
        cls.Config.owner = cls

    def __init__(self, dataset: Any, dp_rank: int, dp_world_size: int, **kwargs: Any) -> None:
        if not kwargs.get("num_workers"):
            kwargs = {
                key: value for key, value in kwargs.items() if key not in ("persistent_workers", "prefetch_factor")
            }
        super().__init__(dataset, **kwargs)
