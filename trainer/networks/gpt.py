"""A decoder that predicts the next token: GPT (Radford et al., 2019) with the parts of its heirs.

Rotary positions are those of Su et al., arXiv:2104.09864, in the order of halves; grouped heads
those of Ainslie et al., arXiv:2305.13245.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.dropout import Dropout
from trainer.networks.layers import expect_kwarg, is_count

NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
POSITIONS = ("rotary", "learned")
LONGEST_WAVE = 10_000.0
"""Of rotary positions, in tokens / 2 pi."""


class CausalAttention(nn.Module):
    """Every token looks at itself and at those before it: `(B, T, width)` -> the same."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.sizes = [heads, kv_heads, kv_heads]
        self.head_width = width // heads
        self.qkv = nn.Linear(width, sum(self.sizes) * self.head_width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, turns: Tensor | None) -> Tensor:
        # (B, T, numbers) -> (B, heads, T, head_width), and twice with kv_heads
        heads = self.qkv(tokens).unflatten(2, (-1, self.head_width)).transpose(1, 2)
        query, key, value = heads.split(self.sizes, dim=1)
        if turns is not None:
            query, key = turned(query, turns), turned(key, turns)
        grouped = self.sizes[0] != self.sizes[1]
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=grouped
        )
        outputs: Tensor = self.projection(attended.transpose(1, 2).flatten(2))
        return outputs


class DecoderBlock(nn.Module):
    """Attention, then a perceptron on every token, each normalised before and added after."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, mlp_width: int, norm: str, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = NORMS[norm](width, eps=1e-5)
        self.attention = CausalAttention(width, heads, kv_heads)
        self.norm2 = NORMS[norm](width, eps=1e-5)
        self.expand = nn.Linear(width, mlp_width, bias=False)
        self.contract = nn.Linear(mlp_width, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, turns: Tensor | None) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens), turns))
        hidden = F.gelu(self.expand(self.norm2(tokens)))
        outputs: Tensor = tokens + self.dropout(self.contract(hidden))
        return outputs


class GPT(nn.Module):
    """Token ids -> logits of the token that follows each.

    GPT-2 of 124 million parameters is depth=12, width=768, heads=12, positions=learned, norm=layer
    over a context of 1024 and a vocabulary of 50257 (without its biases).

    Args:
        input_shape: `(T,)`, the length of a window; rotary positions take any other as well.
        num_classes: Size of the vocabulary.
        depth: Number of decoder blocks.
        width: Numbers per token.
        heads: Attention heads; they share the width.
        kv_heads: Heads of keys and values, each shared by heads / kv_heads; None: as many as heads.
        mlp_ratio: Hidden width of the perceptrons over `width`.
        positions: rotary or learned.
        norm: rms or layer.
        tied: Whether the embedding of a token is also the row of its logit.
        dropout: Probability of dropping an activation behind the embedding and both parts of a
            block.

    Shapes:
        `(B, T)` int64 -> `(B, T, num_classes)` logits.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: int = 6,
        width: int = 384,
        heads: int = 6,
        kv_heads: int | None = None,
        mlp_ratio: float = 4.0,
        positions: str = "rotary",
        norm: str = "rms",
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        shared = heads if kv_heads is None else kv_heads
        counts = {"depth": depth, "width": width, "heads": heads, "kv_heads": shared}
        for name, given in counts.items():
            expect_kwarg(name, given, is_count(given), "a whole number, 1 or more")
        expect_kwarg("heads", heads, width % heads == 0, f"a divisor of the width, {width}")
        expect_kwarg("kv_heads", shared, heads % shared == 0, f"a divisor of the heads, {heads}")
        expect_kwarg("mlp_ratio", mlp_ratio, width * mlp_ratio >= 1, "a positive ratio")
        expect_kwarg("dropout", dropout, 0 <= dropout < 1, "0 <= dropout < 1")
        expect_kwarg("positions", positions, positions in POSITIONS, "rotary or learned")
        expect_kwarg("norm", norm, norm in NORMS, "rms or layer")
        even = positions != "rotary" or (width // heads) % 2 == 0
        expect_kwarg("heads", heads, even, f"an even number of the width {width} for each head")
        one = len(input_shape) == 1
        expect_kwarg("input_shape", tuple(input_shape), one, "(T,), the length of a window")
        self.context, self.head_width = input_shape[0], width // heads
        self.embedding = nn.Embedding(num_classes, width)
        learned = positions == "learned"
        self.positions = nn.Embedding(self.context, width) if learned else None
        self.dropout = Dropout(dropout)
        hidden = round(width * mlp_ratio)
        self.decoder = nn.ModuleList(
            DecoderBlock(width, heads, shared, hidden, norm, dropout) for _ in range(depth)
        )
        self.norm = NORMS[norm](width, eps=1e-5)
        # Tied, the one weight has one name: nothing that saves or shards it meets it twice.
        self.head = None if tied else nn.Linear(width, num_classes, bias=False)
        self._initialise(depth)

    def _initialise(self, depth: int) -> None:
        """Small weights; what is added to the residual stream does not grow with the depth."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                adds = name.endswith(("projection", "contract"))
                nn.init.normal_(module.weight, std=0.02 / (2 * depth) ** 0.5 if adds else 0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        # Sharded embeddings come in the type of computation: what blocks add up stays as precise as
        # the norms, which are not sharded in it.
        tokens, length = self.embedding(inputs).to(self.norm.weight.dtype), inputs.shape[1]
        if self.positions is not None:
            tokens = tokens + self.positions(torch.arange(length, device=inputs.device))
            turns = None
        else:
            turns = rotary(length, self.head_width, inputs.device)
        tokens = self.dropout(tokens)
        for block in self.decoder:
            tokens = block(tokens, turns)
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.norm(tokens), weight)

    def blocks(self) -> list[nn.Module]:
        """The decoder blocks, in the order in which they are applied."""
        return list(self.decoder)


def rotary(length: int, width: int, device: torch.device) -> Tensor:
    """Cosines and sines of the angle of each pair at each position, float32 `(2, T, width / 2)`.

    Found in every forward pass, which costs next to nothing: a buffer would be sent to all ranks.
    """
    places = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    angles = torch.outer(torch.arange(length, device=device).float(), LONGEST_WAVE**-places)
    return torch.stack([angles.cos(), angles.sin()])


def turned(heads: Tensor, turns: Tensor) -> Tensor:
    """Turn each pair of numbers (one of either half) by its angle: `(B, heads, T, width)`."""
    first, second = heads.chunk(2, dim=-1)
    cosine, sine = turns.unbind()
    halves = first * cosine - second * sine, second * cosine + first * sine
    return torch.cat(halves, dim=-1).to(heads.dtype)
