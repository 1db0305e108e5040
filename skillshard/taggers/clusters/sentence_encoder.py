"""Use any sentence-transformers model as an encoder.

Most models are transformers, which read a window of tokens. A static model (`StaticEmbedding`, as made by model2vec) adds up a
vector for each token of a text of any length. Its tokenizer comes from the package `tokenizers` and has no special tokens.

A process loads the model once and keeps the model. Batches are formed by the number of tokens, so that padding costs little. On a CPU
a process uses one thread, so that equal texts give equal bytes for any number of cores.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skillshard import canonical
from skillshard.errors import TagsError
from skillshard.extras import needed
from skillshard.taggers.clusters.encoder import VectorsOf

Windows = Literal["first", "mean"]
NO_LIMIT = 1 << 20
"""Number of tokens that stands for "no limit" in a model without a limit."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SentenceEncoder:
    """The encoder of `sentence_encoder`."""

    model: str
    device: str
    batch_size: int
    dtype: str
    prompt: str
    max_length: int
    windows: Windows
    dim: int
    weights_digest: str
    files: dict[str, str] | None

    @property
    def name(self) -> str:
        return self.model

    @property
    def arguments(self) -> dict[str, Any]:
        names = ("batch_size", "dtype", "prompt", "max_length", "windows", "weights_digest", "files")
        # The number of a GPU does not change the vectors.
        return {name: getattr(self, name) for name in names} | {"device": self.device.partition(":")[0]}

    @property
    def num_gpus(self) -> float:
        return 1.0 if self.device.startswith("cuda") else 0.0

    def encode(self, texts: Sequence[str]) -> VectorsOf:
        model = _loaded(self.model, self.device, self.dtype, self.max_length)
        owner, pieces = self._pieces(model, texts)
        vectors = np.zeros((len(pieces), self.dim), np.float32)
        with _one_thread(self.device):
            for rows in _batches(_lengths(model, pieces), self.batch_size):
                vectors[rows] = model.encode(
                    [pieces[row] for row in rows],
                    prompt=self.prompt or None,
                    batch_size=len(rows),
                    normalize_embeddings=True,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                ).astype(np.float32)
        return vectors if self.windows == "first" else _means(vectors, owner, len(texts))

    def _pieces(self, model: Any, texts: Sequence[str]) -> tuple[np.ndarray, Sequence[str]]:
        """Return the pieces of text to encode, and before them the number of the text of each piece."""
        # A transformer cuts texts to its window by itself, but a static model reads a text to the end.
        reads_one_window = not _is_static(model) or self.max_length == NO_LIMIT
        if self.windows == "first" and reads_one_window:
            return np.arange(len(texts)), texts
        cut = [_windows(model, text, self.max_length - _num_special(model, self.prompt)) for text in texts]
        if self.windows == "first":
            return np.arange(len(texts)), [windows[0] for windows in cut]
        owner = np.repeat(np.arange(len(texts)), [len(windows) for windows in cut])
        return owner, [window for windows in cut for window in windows]


def sentence_encoder(
    model: str,
    *,
    device: str = "auto",
    batch_size: int = 32,
    dtype: str = "float32",
    prompt: str = "",
    max_length: int | None = None,
    windows: str = "first",
    on_this_machine: bool = True,
) -> SentenceEncoder:
    """Load a model to check that the model works, and read its dimensions and limits.

    Args:
        model: Name on the Hugging Face hub (such as "all-MiniLM-L6-v2"), or a directory.
        device: "auto" ("cuda" if this machine has a GPU, else "cpu"), "cpu", "cuda" or "cuda:N".
        batch_size: Number of texts that go through the model together.
        dtype: Data type of the weights: "float32", "bfloat16" or "float16".
        prompt: Text that is put before every text.
        max_length: Number of tokens of a window. None takes the limit of the model.
        windows: Part of a longer text that is encoded: the "first" window, or the "mean" of all windows.
        on_this_machine: Whether the device is on this machine. With False, the device is on other nodes and is not checked.

    Raises:
        TagsError: The model cannot be loaded, or an argument is out of range.
        ProxyError: This machine does not have the device.
        ExtraError: sentence-transformers or a package of the extra `cluster` is not installed.
    """
    needed("embed", what="A sentence-transformers model as the encoder")
    if dtype not in DTYPES:
        raise TagsError(f"`{dtype=}`: give one of {', '.join(DTYPES)}.")
    if windows not in ("first", "mean"):
        raise TagsError(f"`{windows=}`: give 'first' or 'mean'.")
    if batch_size < 1:
        raise TagsError(f"`{batch_size=}`: give a positive number of texts.")
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise TagsError(f"`{model=}`: no such directory. Give a sentence-transformers model, or 'lexical'.")
    from skillshard.proxy.device import resolve_device  # brings torch
    from skillshard.proxy.identity import directory_identity

    chosen = resolve_device(device, on_this_machine=on_this_machine)
    loaded = _loaded(model, chosen if on_this_machine else "cpu", dtype, max_length)
    most = _most_tokens(loaded)
    if max_length is not None and not _num_special(loaded, prompt) < max_length <= most:
        raise TagsError(f"`{max_length=}`: {model} takes from {_num_special(loaded, prompt) + 1} to {most} tokens.")
    return SentenceEncoder(
        model=model,
        device=chosen,
        batch_size=batch_size,
        dtype=dtype,
        prompt=prompt,
        max_length=max_length or most,
        windows=windows,  # type: ignore[arg-type]  # checked above
        dim=_dim(loaded),
        weights_digest=_weights_digest(loaded),
        files=directory_identity(model) if Path(model).is_dir() else None,
    )


@lru_cache(maxsize=1)
def _loaded(model: str, device: str, dtype: str, max_length: int | None) -> Any:
    """Load the model, and keep it for the next call in this process."""
    import torch
    from huggingface_hub.utils import logging as hub
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hub.set_verbosity_error()  # type: ignore[no-untyped-call]  # a single error of ours sums up the retries
    kwargs = {"dtype": getattr(torch, dtype)}
    try:
        try:  # a model on this machine needs no network
            loaded = SentenceTransformer(model, device=device, model_kwargs=kwargs, local_files_only=True)
        except OSError:
            if Path(model).is_dir():
                raise
            warnings.warn(f"{model} is not on this machine. The Hugging Face hub is asked for the model.", stacklevel=2)
            loaded = SentenceTransformer(model, device=device, model_kwargs=kwargs)
    except Exception as error:  # a damaged or foreign directory makes the library raise whatever it happens to run into
        raise TagsError(
            f"`{model=}` cannot be loaded: {_first_line(error)}. Give 'lexical', the name of a sentence-transformers model on the "
            "Hugging Face hub (downloaded once; needs the network), or the directory of one."
        ) from error
    loaded.eval()
    for parameter in loaded.parameters():  # a static model ignores the data type of `model_kwargs`
        parameter.data = parameter.data.to(getattr(torch, dtype))
    if not _is_static(loaded):
        _make_padding(loaded.tokenizer)
        if max_length is not None and max_length <= _most_tokens(loaded):
            loaded.max_seq_length = max_length
    return loaded


def _is_static(model: Any) -> bool:
    """Tell whether the tokenizer comes from the package `tokenizers`. Only static models, without windows and padding, have such a tokenizer."""
    from tokenizers import Tokenizer

    return isinstance(model.tokenizer, Tokenizer)


def _make_padding(tokenizer: Any) -> None:
    """Give a tokenizer without a padding token another token for padding. Any token does, because padding is masked."""
    if getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)


def _most_tokens(model: Any) -> int:
    """Return the largest number of tokens that the model reads of a text, with special tokens and prompt."""
    limit = model.max_seq_length
    return NO_LIMIT if limit is None or limit > NO_LIMIT else int(limit)


def _dim(model: Any) -> int:
    if hasattr(model, "get_embedding_dimension"):
        return int(model.get_embedding_dimension())
    return int(model.get_sentence_embedding_dimension())  # the name before sentence-transformers 5.3


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _weights_digest(model: Any) -> str:
    """Compute a digest of all tensors by name. A copy of a model has the same digest, and other weights have another digest."""
    import torch

    def pieces() -> Iterator[bytes | memoryview]:
        for name, tensor in sorted(model.state_dict().items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())

    return canonical.digest_of(pieces())


@contextlib.contextmanager
def _one_thread(device: str) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _lengths(model: Any, texts: Sequence[str]) -> np.ndarray:
    """Count the tokens of each text, up to the limit of the model, or the characters for a static model, which needs no padding."""
    if _is_static(model):
        return np.array([len(text) for text in texts], np.int64)
    tokens = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length, return_attention_mask=False)
    return np.array([len(ids) for ids in tokens["input_ids"]], np.int64)


def _batches(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Group texts of similar length, the longest texts first."""
    # The longest batch comes first, so that a lack of memory shows at once.
    order = np.argsort(-lengths, kind="stable")
    return (order[first : first + batch_size] for first in range(0, len(order), batch_size))


def _num_special(model: Any, prompt: str) -> int:
    """Count the tokens that the prompt and the special tokens take of a window."""
    if _is_static(model):
        return len(_spans(model, prompt))
    return len(model.tokenizer(prompt)["input_ids"])


def _windows(model: Any, text: str, num_tokens: int) -> list[str]:
    """Cut a text into windows of at most `num_tokens` tokens."""
    spans = _spans(model, text)
    cuts = [spans[first : first + num_tokens] for first in range(0, len(spans), num_tokens)]
    return [text[cut[0][0] : cut[-1][1]] for cut in cuts] or [text]


def _spans(model: Any, text: str) -> list[tuple[int, int]]:
    """Return the position of the first character of each token, and the position after the last character."""
    if _is_static(model):
        return list(_uncut(model.tokenizer).encode(text, add_special_tokens=False).offsets)
    tokens = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(tokens["offset_mapping"])


@lru_cache(maxsize=1)
def _uncut(tokenizer: Any) -> Any:
    """Copy a tokenizer, and switch truncation and padding off in the copy."""
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _means(vectors: Float[np.ndarray, "window dim"], owner: np.ndarray, num_texts: int) -> VectorsOf:
    """Compute the mean direction of the windows of each text."""
    sums = np.zeros((num_texts, vectors.shape[1]), np.float32)
    np.add.at(sums, owner, vectors)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.where(lengths > 0, lengths, 1)
