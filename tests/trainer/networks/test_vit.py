"""The vision transformer is that of the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainer.networks.vit import Attention, ViT


@pytest.mark.parametrize(
    ("patch_size", "width", "heads", "parameters"),
    [(16, 384, 6, 22_050_664), (16, 768, 12, 86_567_656), (32, 768, 12, 88_224_232)],
)
def test_for_imagenet_it_has_as_many_parameters_as_vit_s_and_vit_b(
    patch_size: int, width: int, heads: int, parameters: int
) -> None:
    """Law: the counts of timm (ViT-S/16) and torchvision (ViT-B/16, ViT-B/32)."""
    with torch.device("meta"):
        model = ViT((3, 224, 224), 1000, patch_size, 12, width, heads, mlp_ratio=4)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_attention_is_the_formula_of_the_paper() -> None:
    """Law: softmax(q k^T / sqrt(width / heads)) v for every head, then one linear layer."""
    torch.manual_seed(0)
    attention = Attention(width=6, heads=2).double()
    tokens = torch.randn(3, 5, 6, dtype=torch.float64)
    query, key, value = attention.qkv(tokens).chunk(3, dim=2)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 3**0.5
        heads.append(F.softmax(scores, dim=2) @ value[..., part])
    torch.testing.assert_close(attention(tokens), attention.projection(torch.cat(heads, dim=2)))


def test_patches_know_where_they_are() -> None:
    """Law: without position embeddings, patches in another order are the same image."""
    torch.manual_seed(0)
    model = ViT((1, 8, 8), 5, depth=1, width=16).double().eval()
    image = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    swapped = torch.cat([image[..., 4:], image[..., :4]], dim=3)
    assert not torch.allclose(model(image), model(swapped))
    with torch.no_grad():
        model.position_embedding.zero_()
    torch.testing.assert_close(model(image), model(swapped))


def test_dropout_is_for_training_only() -> None:
    model = ViT((1, 8, 8), 5, depth=1, width=16, dropout=0.5)
    image = torch.randn(1, 1, 8, 8)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))


def test_its_keys_say_what_they_are() -> None:
    keys = set(ViT((1, 8, 8), 5, depth=1, width=16).state_dict())
    linear = {"attention.qkv", "attention.projection", "expand", "contract", "norm1", "norm2"}
    named = {f"encoder.0.{name}" for name in linear} | {"patch_embedding", "norm", "head"}
    expected = {f"{name}.{kind}" for name in named for kind in ("weight", "bias")}
    assert keys == expected | {"class_token", "position_embedding"}
