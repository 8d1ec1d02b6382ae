"""A small text with several documents, and runs of a small decoder on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

SEPARATOR = "\n==\n"
CONTEXT = 12


def make_text(folder: Path) -> Path:
    """Documents of very different lengths, as tokens of characters; 100 tokens or so are tested."""
    from data.formats.text_files import encode_files
    from data.formats.token_files import write_tokens

    words = ["the cat sat on the mat", "a dog ran", "so it was", "the end"]
    documents = [
        ". ".join(words[(number + i) % 4] for i in range(1 + 5 * (number % 3)))
        for number in range(12)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(SEPARATOR.join(documents))
    encoded = encode_files(
        [folder / "text.txt"], "characters", held_out={"test": 0.1}, separator=SEPARATOR
    )
    write_tokens(folder / "tokens", encoded)
    return folder / "tokens"


def text_arguments(tokens: Path, output: Path, name: str, *more: object) -> list[str]:
    """Options of `launch/train.py` for a run of seconds."""
    own = [
        "--config=gpt_chars",
        f"--data.root={tokens}",
        f'--data.kwargs={{"context": {CONTEXT}}}',
        '--model.kwargs={"depth": 2, "width": 16, "heads": 2, "kv_heads": 1}',
        f"--output_dir={output}",
        f"--name={name}",
        "--schedule.warmup_steps=2",
        "--train.epochs=3",
        "--train.global_batch_size=8",
        "--evaluate.batch_size=3",
        "--logging.every_steps=1",
        "--logging.progress=off",
        "--parallel.device=cpu",
    ]
    return [*own, *map(str, more)]


def train_text(tokens: Path, output: Path, name: str, *more: object) -> Path:
    """Such a run in this process; its directory."""
    from launch.train import main

    assert main(text_arguments(tokens, output, name, *more)) == 0
    return output / name


class Tied(nn.Module):
    """Two modules that share one weight, as most people tie them: two names in the state dict."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.tanh(self.hidden(self.embedding(inputs))))
        return outputs
