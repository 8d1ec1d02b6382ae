"""The decoder is that of its papers: causal, with turned heads that may be shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from trainer.networks.gpt import GPT, CausalAttention, rotary, turned


def tiny(**kwargs: Any) -> GPT:
    torch.manual_seed(0)
    return GPT((8,), 11, **{"depth": 2, "width": 16, "heads": 4, **kwargs}).double().eval()


def ids(*shape: int) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(1))


KINDS: list[dict[str, Any]] = [
    {},
    {"positions": "learned", "norm": "layer"},
    {"kv_heads": 2},
    {"kv_heads": 1, "tied": False},
]


@pytest.mark.parametrize("kwargs", KINDS)
def test_a_logit_depends_on_its_token_and_those_before_it(kwargs: dict[str, Any]) -> None:
    """Law: another token changes the logits at its place, and none before it."""
    model, tokens = tiny(**kwargs), ids(2, 8)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 8, 11)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-12)
    for place in (5, 6, 7):
        assert (after[:, place] - before[:, place]).abs().max() > 1e-9


@pytest.mark.parametrize("kwargs", KINDS)
def test_a_shorter_window_has_the_logits_of_its_places(kwargs: dict[str, Any]) -> None:
    model, tokens = tiny(**kwargs), ids(2, 8)
    torch.testing.assert_close(model(tokens[:, :3]), model(tokens)[:, :3])


def test_attention_is_the_formula_of_its_papers() -> None:
    """Law: softmax over the past of q k^T / sqrt(width of a head), two heads to a key and value."""
    torch.manual_seed(0)
    attention = CausalAttention(width=8, heads=4, kv_heads=2).double()
    tokens = torch.randn(3, 5, 8, dtype=torch.float64)
    query, key, value = attention.qkv(tokens).split([8, 4, 4], dim=2)
    heads = []
    for head in range(4):
        own, shared = slice(2 * head, 2 * head + 2), slice(2 * (head // 2), 2 * (head // 2) + 2)
        scores = query[..., own] @ key[..., shared].transpose(1, 2) / 2**0.5
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
        heads.append(F.softmax(scores, dim=2) @ value[..., shared])
    expected = attention.projection(torch.cat(heads, dim=2))
    torch.testing.assert_close(attention(tokens, None), expected)


def test_turned_heads_know_how_far_apart_they_are() -> None:
    """Law: pair i at place t is multiplied by exp(1j t 10000^(-2 i / width)), so a product depends
    on the distance alone."""
    torch.manual_seed(0)
    heads = torch.randn(1, 1, 6, 8, dtype=torch.float64)
    found = turned(heads, rotary(6, 8, torch.device("cpu")))
    as_complex = torch.complex(heads[..., :4], heads[..., 4:])
    speeds = 10_000.0 ** (-2 * torch.arange(4, dtype=torch.float64) / 8)
    angles = torch.outer(torch.arange(6, dtype=torch.float64), speeds)
    expected = as_complex * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(
        torch.complex(found[..., :4], found[..., 4:]), expected, rtol=1e-6, atol=1e-6
    )
    same = turned(heads[:, :, :1].expand(1, 1, 6, 8), rotary(6, 8, torch.device("cpu")))
    products = (same[0, 0] @ same[0, 0].T).diagonal(2)
    torch.testing.assert_close(products, products[:1].expand(4), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_order_of_tokens_matters(positions: str) -> None:
    model, tokens = tiny(positions=positions, depth=1), torch.tensor([[1, 2, 3, 4]])
    swapped = torch.tensor([[2, 1, 3, 4]])
    assert (model(tokens) - model(swapped))[:, -1].abs().max() > 1e-9


def test_tied_weights_have_one_name_and_both_gradients() -> None:
    """Law: the gradient of the tied weight is the sum of those of an embedding and a head."""
    tied, free = tiny(), tiny(tied=False)
    assert set(free.state_dict()) - set(tied.state_dict()) == {"head.weight"}
    state = tied.state_dict()
    free.load_state_dict(state | {"head.weight": state["embedding.weight"]})
    tokens = ids(2, 8)
    for model in (tied, free):
        model(tokens).square().sum().backward()
    assert free.head is not None
    both = free.embedding.weight.grad + free.head.weight.grad  # type: ignore[operator]
    torch.testing.assert_close(tied.embedding.weight.grad, both)


def test_what_blocks_add_up_has_the_precision_of_the_norms() -> None:
    """FSDP fetches embeddings in bf16, and norms in float32: neither sums nor norms are in bf16."""
    model, seen = tiny().float(), []
    model.embedding.to(torch.bfloat16)
    for block in model.blocks():
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(ids(2, 8))
    assert seen == [torch.float32] * 2


def test_gpt_2_has_its_number_of_parameters() -> None:
    """Law: 124,439,808 with its biases, two vectors for each LayerNorm (nanoGPT, bias=True)."""
    with torch.device("meta"):
        model = GPT((1024,), 50257, 12, 768, 12, positions="learned", norm="layer")
    biases = 12 * (3 * 768 + 768 + 4 * 768 + 768)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808 - biases


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"heads": 3}, "divisor of the width"),
        ({"kv_heads": 3}, "divisor of the heads"),
        ({"heads": 16}, "even number"),
        ({"positions": "sine"}, "rotary or learned"),
        ({"norm": "batch"}, "rms or layer"),
        ({"dropout": 1.0}, "dropout < 1"),
        ({"depth": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_built_is_refused(kwargs: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        tiny(**kwargs)


def test_pictures_are_no_windows() -> None:
    with pytest.raises(InputError, match="length of a window"):
        GPT((1, 28, 28), 10)
