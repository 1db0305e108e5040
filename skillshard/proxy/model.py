"""Define the proxy, a small decoder-only transformer that takes the place of a large model in many short trainings.

The blocks are pre-LN with GELU. Positions are learned or absent. A position may hold several tokens in slots (a whole clause of a
synthetic corpus). The embedding of a token is scaled by the gain of the slot, and the scaled embeddings are summed. Ordinary text has
one slot. With four layers of width 64, a training step of 64 sequences of 5 positions takes about 11 ms on one core.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from skillshard.errors import ProxyError


@dataclass(frozen=True)
class ProxyShape:
    """The shape of a proxy. Two proxies of the same shape differ only in their weights.

    Args:
        vocab: Number of tokens, which is also the number of logits.
        positions: Largest number of positions of an input.
        slots: Number of tokens of a position, with an embedding for each token and a gain for each slot. Ordinary text has 1.
        layers: Number of blocks.
        dim: Width of the features.
        heads: Number of attention heads, a divisor of `dim`.
        shift: Number of earlier positions whose features each block also reads directly, before the attention.
        prefix: Number of first positions that see all positions of the prefix, also later positions. With 0 the attention is plain causal
            attention. With a prefix, give no targets before its last position, because the model would see the targets.
        ordered: Whether positions have embeddings. Without embeddings and without shifts, the model does not see the order in the prefix.
            The value False suits texts whose order has no meaning, such as shuffled clauses.

    Raises:
        ProxyError: A number is out of range.
    """

    vocab: int
    positions: int
    slots: int = 1
    layers: int = 4
    dim: int = 64
    heads: int = 4
    shift: int = 0
    prefix: int = 0
    ordered: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab", "positions", "slots", "layers", "dim", "heads"):
            _check_range(name, getattr(self, name), 1)
        for name in ("shift", "prefix"):
            _check_range(name, getattr(self, name), 0, self.positions)
        if self.dim % self.heads:
            raise ProxyError(f"heads={self.heads} does not divide dim={self.dim}: give a divisor of {self.dim}.")


class Proxy(nn.Module):
    """A transformer that gives logits for every position of a batch.

    The parameters come from the global generator of torch. Use `seeded_model` of `skillshard.proxy.train` for weights that depend only on
    a seed.

    Example:
        >>> model = Proxy(ProxyShape(vocab=10, positions=4, layers=1, dim=8, heads=2))
        >>> model(torch.zeros(3, 4, 1, dtype=torch.long)).shape
        torch.Size([3, 4, 10])
    """

    def __init__(self, shape: ProxyShape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocab, shape.dim)
        self.gains = nn.Parameter(torch.ones(shape.slots, shape.dim))
        self.places = nn.Parameter(torch.zeros(shape.positions, shape.dim)) if shape.ordered else None
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.vocab, bias=False)
        _initialise(self)

    def forward(self, tokens: Int[Tensor, "batch positions slots"]) -> Float[Tensor, "batch positions vocab"]:
        """Compute the logits.

        Raises:
            ProxyError: The input has more positions than the shape, or another number of slots.
        """
        num_positions, num_slots = tokens.shape[1:]
        if num_positions > self.shape.positions or num_slots != self.shape.slots:
            raise ProxyError(
                f"input of {num_positions} positions x {num_slots} slots: this proxy reads at most "
                f"{self.shape.positions} positions of exactly {self.shape.slots} slots. Cut the input or build a "
                "larger proxy."
            )
        mask = visible(num_positions, self.shape.prefix, device=tokens.device)
        x = (self.tokens(tokens) * self.gains).sum(dim=2)
        if self.places is not None:
            x = x + self.places[:num_positions]
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.head(self.norm(x))
        return logits


def visible(
    num_positions: int, prefix: int, *, device: torch.device | str = "cpu"
) -> Bool[Tensor, "positions positions"] | None:
    """Compute the attention mask: whether a position (row) sees a position (column). Return None if every position sees all.

    >>> visible(3, 2).int().tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """
    # Without a mask, attention uses a faster kernel.
    if prefix >= num_positions:
        return None
    mask = torch.ones(num_positions, num_positions, dtype=torch.bool, device=device).tril()
    mask[:, :prefix] = True
    return mask


class _Block(nn.Module):
    def __init__(self, shape: ProxyShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.dim)
        self.shift = nn.Parameter(torch.zeros(shape.shift, shape.dim)) if shape.shift else None
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim)
        self.attention_out = nn.Linear(shape.dim, shape.dim)
        self.mlp_norm = nn.LayerNorm(shape.dim)
        self.mlp_in = nn.Linear(shape.dim, 4 * shape.dim)
        self.mlp_out = nn.Linear(4 * shape.dim, shape.dim)

    def forward(
        self, x: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "positions positions"] | None
    ) -> Float[Tensor, "batch positions dim"]:
        x = x + self._attend(self.attention_norm(x), mask)
        hidden: Tensor = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return x + hidden

    def _attend(
        self, x: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "positions positions"] | None
    ) -> Float[Tensor, "batch positions dim"]:
        if self.shift is not None:
            x = x + mix_earlier(x, self.shift)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.attention_out(mixed.transpose(1, 2).flatten(2))
        return out


def mix_earlier(
    x: Float[Tensor, "batch positions dim"], weights: Float[Tensor, "shift dim"]
) -> Float[Tensor, "batch positions dim"]:
    """Compute the weighted sum of the features 1, 2, ... positions earlier. Features before the start are zero.

    >>> mix_earlier(torch.tensor([[[1.0], [2.0], [4.0]]]), torch.tensor([[1.0], [0.5]])).flatten().tolist()
    [0.0, 1.0, 2.5]
    """
    padded = F.pad(x, (0, 0, len(weights), 0))
    num_positions = x.shape[1]
    # The first weight belongs to the nearest earlier position, so the starts run backwards.
    starts = range(len(weights) - 1, -1, -1)
    return sum(
        (padded[:, start : start + num_positions] * weight for start, weight in zip(starts, weights, strict=True)),
        start=torch.zeros_like(x),
    )


def _initialise(model: Proxy) -> None:
    """Initialise embeddings by 0.05, gains by 1 +- 0.5, and weights by 0.5 / sqrt(inputs) with keys equal to queries. The rest is 0.

    All slots share a table of embeddings, and keys start equal to queries. So clauses with a common letter attend to each other from the
    first step. The value 0.02 of GPT-2 is far too small for a width of 64.

    Reference: Trockman and Kolter 2023, "Mimetic initialization of self-attention layers", arXiv:2305.09828. Ours is simpler, and does not
    change the values.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "shift")):
            nn.init.zeros_(parameter)
        elif name == "gains":
            # Different gains let the model distinguish the slots, as positions do. A single slot needs no gain.
            nn.init.normal_(parameter, mean=1.0, std=0.5 if len(parameter) > 1 else 0.0)
        elif name in ("tokens.weight", "places"):
            nn.init.normal_(parameter, std=0.05)
        # The norms keep the initial weights of PyTorch, which are 1.
        elif "norm" not in name:
            nn.init.normal_(parameter, std=0.5 / parameter.shape[1] ** 0.5)
        if name.endswith("qkv.weight"):
            query, key, _ = parameter.detach().chunk(3)
            key.copy_(query)


def _check_range(name: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most} (positions)"
        raise ProxyError(f"{name}={value}: a proxy needs {name} of at least {least}{upper}.")
