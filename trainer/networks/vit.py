"""The vision transformer of Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv:2010.11929."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.dropout import Dropout
from trainer.networks.layers import expect_kwarg, image_size, is_count


class Attention(nn.Module):
    """Every token looks at every token: `(B, tokens, width)` -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        # (B, tokens, 3 * width) -> query, key and value, each (B, heads, tokens, width / heads)
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).unbind(2)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        outputs: Tensor = self.projection(attended.transpose(1, 2).flatten(2))
        return outputs


class EncoderBlock(nn.Module):
    """Attention, then a perceptron on every token, each normalised before and added after."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, mlp_width)
        self.contract = nn.Linear(mlp_width, width)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        hidden = self.dropout(F.gelu(self.expand(self.norm2(tokens))))
        outputs: Tensor = tokens + self.dropout(self.contract(hidden))
        return outputs


class ViT(nn.Module):
    """Patches become tokens, a class token is read out after the encoder.

    The defaults suit images of 28x28 and 32x32 pixels. ViT-S/16 of ImageNet is patch_size=16,
    depth=12, width=384, heads=6, mlp_ratio=4.

    Args:
        input_shape: `(channels, height, width)`, both sides multiples of the patch.
        num_classes: Number of logits.
        patch_size: Side of a patch in pixels.
        depth: Number of encoder blocks.
        width: Numbers per token.
        heads: Attention heads; they share the width.
        mlp_ratio: Hidden width of the perceptrons over `width`.
        dropout: Probability of dropping an activation behind the position embedding and every
            linear layer but those of query, key and value (appendix B.1 of the paper).

    Shapes:
        `(B, C, H, W)` float -> `(B, num_classes)` logits.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        patch_size: int = 4,
        depth: int = 6,
        width: int = 128,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        counts = {"patch_size": patch_size, "depth": depth, "width": width, "heads": heads}
        for name, given in counts.items():
            expect_kwarg(name, given, is_count(given), "a whole number, 1 or more")
        expect_kwarg("heads", heads, width % heads == 0, f"a divisor of the width, {width}")
        expect_kwarg("mlp_ratio", mlp_ratio, width * mlp_ratio >= 1, "a positive ratio")
        expect_kwarg("dropout", dropout, 0 <= dropout < 1, "0 <= dropout < 1")
        channels, rows, columns = image_size("a ViT", input_shape)
        fits = [n for n in range(1, min(rows, columns) + 1) if rows % n == columns % n == 0]
        expect_kwarg(
            "patch_size",
            patch_size,
            patch_size in fits,
            f"a divisor of both sides of images of {rows} x {columns} pixels",
            f"These are {', '.join(map(str, fits))}.",
        )
        tokens = 1 + (rows // patch_size) * (columns // patch_size)
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, tokens, width))
        self.dropout = Dropout(dropout)
        self.encoder = nn.Sequential(
            *(EncoderBlock(width, heads, round(width * mlp_ratio), dropout) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Small weights and no biases; the first layer keeps the variance of its inputs."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                is_first = module is self.patch_embedding
                std = module.weight[0].numel() ** -0.5 if is_first else 0.02
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position_embedding, std=0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.patch_embedding(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        tokens = self.encoder(self.dropout(tokens + self.position_embedding))
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits

    def blocks(self) -> list[nn.Module]:
        """The encoder blocks, in the order in which they are applied."""
        return list(self.encoder)
