"""Text from a trained language model: one token after the other, drawn under a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from configs.errors import InputError
from data.vocabulary import Vocabulary
from launch.using.text_options import Sampling
from launch.using.trained import Trained, not_finite

BROKEN = "\N{REPLACEMENT CHARACTER}"


def require_text(trained: Trained) -> Vocabulary:
    """The vocabulary of a run on tokens.

    Raises:
        InputError: If the run's inputs are something else.
    """
    vocabulary = trained.facts.vocabulary
    if vocabulary is None:
        raise InputError(
            "--prompt",
            given=f"with a run on data.dataset={trained.config.data.dataset}",
            expected="a run on data.dataset=tokens",
        )
    return vocabulary


def write_text(trained: Trained, prompt: str, how: Sampling) -> Iterator[str]:
    """The prompt and what follows, piece by piece; a character comes when all its bytes are there.

    Raises:
        InputError: If the prompt cannot be told as tokens, or a logit is not finite.
    """
    vocabulary = require_text(trained)
    ids = vocabulary.encode(prompt, "--prompt").tolist()
    start = [] if vocabulary.separator is None else [vocabulary.separator]
    if not ids and not start:
        raise InputError("--prompt", given=prompt, expected="a character or more")
    shown, text = "", vocabulary.decode(ids)
    for token in tokens_after(trained, ids or start, how):
        if not text.endswith(BROKEN):
            yield text[len(shown) :]
            shown = text
        ids.append(token)
        text = vocabulary.decode(ids)
    yield text[len(shown) :]


def tokens_after(trained: Trained, ids: Sequence[int], how: Sampling) -> Iterator[int]:
    """Tokens that follow others, until one ends the document or there are enough.

    The model sees the last tokens only, as many as a window of its training has. The same seed
    gives the same tokens where it gives the same logits: on the same kind of machine.
    """
    generator = torch.Generator().manual_seed(how.seed)
    context, seen = trained.facts.input_shape[0], list(ids)
    for _ in range(how.max_tokens):
        inputs = torch.tensor([seen[-context:]])
        logits = trained.logits(inputs)[0, -1].double().cpu()
        if not bool(logits.isfinite().all()):
            raise not_finite("a token", inputs, logits[~logits.isfinite()][:1])
        token = choose(logits, how, generator)
        if trained.facts.vocabulary is not None and token == trained.facts.vocabulary.separator:
            return
        seen.append(token)
        yield token


def choose(logits: Tensor, how: Sampling, generator: torch.Generator) -> int:
    """A token by its logits, float64 `(vocabulary,)`."""
    if how.temperature == 0:
        return int(logits.argmax())
    if how.top_k is not None and how.top_k < len(logits):
        least = logits.topk(how.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -math.inf)
    probabilities = (logits / how.temperature).softmax(0)
    return int(torch.multinomial(probabilities, 1, generator=generator))
