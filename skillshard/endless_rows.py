"""The class of the data set that `skillshard.hf.sft_dataset` makes. The module needs the library `datasets`."""

from datasets import IterableDataset

from skillshard.errors import LengthError


class EndlessRows(IterableDataset):  # type: ignore[misc]
    """A data set whose length is refused in a sentence. A stage of `datasets`, such as `map`, makes a data set of the base class."""

    def __len__(self) -> int:
        raise LengthError(
            "sft_dataset(...) has no length, since its stream is endless: count optimizer steps instead, with SFTConfig(max_steps=...) or a scheduler's "
            "total_steps=.... Leave num_train_epochs, samplers and splits away."
        )

    def __bool__(self) -> bool:
        return True  # without this method, `if dataset:` would ask for the length
