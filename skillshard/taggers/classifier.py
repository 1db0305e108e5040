"""Tag by a sequence classifier of Hugging Face: the skill is the most probable class of the text, and the score is its probability.

A process loads the model once. The samples of a group form batches of similar length. On a CPU a process uses one thread, so that equal
texts give equal tags for any number of cores.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from skillshard.corpus import Sample
from skillshard.errors import TagsError, first_line
from skillshard.extras import needed
from skillshard.taggers.losses.scores import score_rows
from skillshard.taggers.rows import count_rows
from skillshard.taggers.tagger import Finder, RowTagger, Search, Tag, Untagged

MAX_LENGTH = 512
"""Largest number of tokens of a text where the model names no limit of its own."""
SCORE_DIGITS = 6
"""Digits of a probability. Further digits differ between machines."""


@dataclass(frozen=True)
class Classifier:
    """The tagger that `classifier` makes.

    Attributes:
        model: Directory of the model.
        files: Path of each file of the model -> digest.
        device: Device of the model.
        batch_size: Number of texts of a forward pass.
        max_length: Number of tokens that the model reads of a text.
    """

    reads_texts: ClassVar[bool] = True

    model: str
    files: dict[str, str]
    device: str
    batch_size: int
    max_length: int

    @property
    def name(self) -> str:
        return "classifier"

    @property
    def arguments(self) -> dict[str, Any]:
        # The number of a GPU does not change the tags.
        return {
            "files": self.files,
            "device": self.device.partition(":")[0],
            "batch_size": self.batch_size,
            "max_length": self.max_length,
        }

    @property
    def stages(self) -> tuple[str, ...]:
        return ("count", "score")

    def find(self, search: Search) -> RowTagger:
        """Classify all samples in small tasks (`skillshard.taggers.losses.scores`)."""
        num_rows, _ = count_rows(search)
        return score_rows(self, search, num_rows, num_gpus=float(self.device.startswith("cuda")))

    def tag(self, samples: Sequence[Sample]) -> list[Tag | Untagged]:
        """Classify samples. Texts that are longer than `max_length` tokens are cut at their end."""
        import torch

        from skillshard.proxy.device import one_thread

        loaded = _loaded(self.model, self.device)
        texts = [sample.text for sample in samples]
        tokens = loaded.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        tags: list[Tag | Untagged] = [Tag("")] * len(samples)
        # The longest texts come first, so that a lack of memory shows at once.
        order = sorted(range(len(texts)), key=lambda position: -len(tokens[position]))
        with one_thread() if self.device == "cpu" else contextlib.nullcontext(), torch.inference_mode():
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                batch = loaded.tokenizer(
                    [texts[row] for row in rows],
                    truncation=True,
                    max_length=self.max_length,
                    padding=True,
                    return_tensors="pt",
                ).to(self.device)
                probabilities = torch.softmax(loaded.model(**batch).logits.float(), dim=-1)
                scores, classes = probabilities.max(dim=-1)
                for row, score, number in zip(rows, scores.tolist(), classes.tolist(), strict=True):
                    tags[row] = Tag(loaded.names[number], round(score, SCORE_DIGITS))
        return tags


@dataclass(frozen=True)
class _Loaded:
    model: Any
    tokenizer: Any
    names: tuple[str, ...]


def classifier(
    model: str,
    *,
    device: str = "auto",
    batch_size: int = 32,
    max_length: int | None = None,
    on_this_machine: bool = True,
) -> Finder:
    """Tag by a sequence classifier, such as a classifier of topics, formats or quality.

    Args:
        model: Directory of a Hugging Face model for sequence classification, with its tokenizer. The names of the classes (`id2label` of
            the configuration) are the skills.
        device: "auto" ("cuda" if this machine has a GPU, else "cpu"), "cpu", "cuda" or "cuda:N".
        batch_size: Number of texts of a forward pass.
        max_length: Number of tokens that the model reads of a text. None takes the limit of the model, at most 512 where it has none.
        on_this_machine: Whether the device is on this machine. With False, the device is on other nodes and is not checked.

    Raises:
        TagsError: The directory holds no classifier, or an argument is out of range.
        ProxyError: This machine does not have the device.
        ExtraError: transformers or PyTorch is not installed.
    """
    needed("hf", what="A classifier")
    if batch_size < 1:
        raise TagsError(f"`{batch_size=}`: give a positive number of texts.")
    if not Path(model).is_dir():
        raise TagsError(f"`{model=}`: no such directory. Give the directory of a Hugging Face sequence classifier.")
    from skillshard.proxy.device import resolve_device  # brings torch
    from skillshard.proxy.identity import directory_identity

    chosen = resolve_device(device, on_this_machine=on_this_machine)
    loaded = _loaded(model, chosen if on_this_machine else "cpu")
    most = _most_tokens(loaded)
    if max_length is not None and not 1 <= max_length <= most:
        raise TagsError(f"`{max_length=}`: {model} takes from 1 to {most} tokens.")
    return Classifier(
        model=str(Path(model).absolute()),
        files=directory_identity(model),
        device=chosen,
        batch_size=batch_size,
        max_length=max_length or min(most, MAX_LENGTH),
    )


@lru_cache(maxsize=1)
def _loaded(model: str, device: str) -> _Loaded:
    """Load the model and the tokenizer, and keep both for the next call in this process."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded, report = AutoModelForSequenceClassification.from_pretrained(
            model, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except Exception as error:  # a damaged or foreign directory makes the library raise whatever it happens to run into
        raise TagsError(
            f"`{model=}` cannot be loaded as a sequence classifier: {first_line(error)}. Give the directory of a Hugging Face model for "
            "sequence classification, with its tokenizer."
        ) from error
    # The library starts missing weights at random, so a language model would give random classes without an error.
    if missing := sorted(report["missing_keys"]):
        raise TagsError(
            f"`{model=}` has no weights for {missing[0]}, so the classes would be random: the model is no trained classifier. Train its head, "
            "or give another model."
        )
    if tokenizer.pad_token is None:  # any token does, because padding is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if loaded.config.pad_token_id is None:  # a decoder finds the last token of a text by the padding
        loaded.config.pad_token_id = tokenizer.pad_token_id
    names = tuple(str(loaded.config.id2label[number]) for number in range(loaded.config.num_labels))
    if len(set(names)) != len(names) or len(names) < 2:
        raise TagsError(
            f"`{model=}` names its classes {', '.join(names)}: a classifier needs two or more classes with different names."
        )
    return _Loaded(loaded.eval().to(device), tokenizer, names)


def _most_tokens(loaded: _Loaded) -> int:
    """Return the largest number of tokens that the model reads of a text, with special tokens."""
    limits = (loaded.tokenizer.model_max_length, getattr(loaded.model.config, "max_position_embeddings", None))
    return int(min(limit for limit in (*limits, 1 << 20) if limit is not None))
