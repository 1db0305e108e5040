"""Any causal language model of Hugging Face as the proxy: a directory with a model and its fast tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from skillshard.errors import ProxyError
from skillshard.extras import needed
from skillshard.proxy.reading import no_answer
from skillshard.proxy.train import IGNORE, TokenBatch


class Pretrained(nn.Module):
    """A causal language model with the inputs and outputs of `Proxy`; always in `eval()`, so that nothing is random.

    Texts are padded on the right, where a causal model does not look.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> "Pretrained":
        """Dropout stays off: a resumed training could not repeat its draws."""
        return super().train(False)

    def forward(self, tokens: Int[Tensor, "batch positions slots"]) -> Float[Tensor, "batch positions vocab"]:
        logits: Tensor = self.model(input_ids=tokens[:, :, 0]).logits
        return logits


@dataclass(frozen=True)
class PretrainedTokens:
    """The tokens of a model's own tokenizer, each predicted from those before it.

    Args:
        place: directory of the tokenizer.
        window: tokens read, at least 2: of a longer text the first ones, or the last ones where there is an answer.
        answer_after: only what stands behind the last of these is predicted; None: everything.
    """

    place: str
    window: int
    answer_after: str | None = None

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        found = self._tokenizer(list(texts), return_offsets_mapping=True, add_special_tokens=True)
        tokens = np.zeros((len(texts), self.window - 1, 1), dtype=np.int64)
        targets = np.full((len(texts), self.window - 1), IGNORE, dtype=np.int64)
        for row, (text, ids, spans) in enumerate(zip(texts, found["input_ids"], found["offset_mapping"], strict=True)):
            stretch = slice(-self.window, None) if self.answer_after is not None else slice(self.window)
            read, ends = np.array(ids[stretch]), np.array(spans[stretch])[:, 1]
            start = 0 if self.answer_after is None else len("".join(text.rpartition(self.answer_after)[:2]))
            tokens[row, : len(read) - 1, 0] = read[:-1]
            targets[row, : len(read) - 1] = np.where(ends[1:] > start, read[1:], IGNORE)
        return TokenBatch(tokens, targets)

    def refusal(self, text: str) -> str | None:
        if self.answer_after is not None:
            return no_answer(text, self.answer_after)
        num = len(self._tokenizer(text)["input_ids"])
        return None if num > 1 else "a text of a single token has nothing to predict"

    @cached_property
    def _tokenizer(self) -> Any:
        return _open(self.place, "AutoTokenizer", "a fast tokenizer")


def open_pretrained(place: str) -> Pretrained:
    """The model of a directory, in float32; nothing is downloaded.

    Raises:
        ProxyError: there is no such directory, or no causal language model in it.
    """
    return Pretrained(_open(place, "AutoModelForCausalLM", "a causal language model").float())


def pretrained_tokens(place: str, *, window: int, answer_after: str | None) -> PretrainedTokens:
    """The reading of a directory's tokenizer, its window cut to what the model can read."""
    tokens = PretrainedTokens(place, window, answer_after)
    if not tokens._tokenizer.is_fast:
        raise ProxyError(
            f"--proxy {place}: its tokenizer is not a fast one, which alone tells where tokens stand in the text."
        )
    limit = getattr(_open(place, "AutoConfig", "a model's config.json"), "max_position_embeddings", window)
    return PretrainedTokens(place, min(window, limit), answer_after)


def check_place(place: str) -> None:
    """ProxyError unless there is a directory, ExtraError where transformers is not installed."""
    if not Path(place).is_dir():
        raise ProxyError(
            f"--proxy {place}: neither 'tiny' nor 'small' nor a directory. Give one of these, or the directory of a Hugging Face "
            "causal language model and its tokenizer (save_pretrained writes one)."
        )
    needed("hf", what=f"--proxy {place}")


def _open(place: str, kind: str, what: str) -> Any:
    """One thing of a directory, by transformers' class of that name; ProxyError if it is not there."""
    check_place(place)
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ProxyError(
            f"--proxy {place}: {what} could not be opened there: {str(error).strip().splitlines()[0].rstrip('.')}. Save the model and "
            "its tokenizer there with save_pretrained."
        ) from error
