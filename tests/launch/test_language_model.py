"""A language model keeps every promise: ranks, resume, exact evaluation, text under a seed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from data.collate import IGNORED
from data.datasets import load_datasets
from data.formats.tokens import TokenWindows
from launch.evaluate import main as evaluate
from launch.predict import main as predict
from launch.using.trained import load_trained
from tests.support.processes import begin, python_command, train, wait_for_step
from tests.support.runs import assert_same_bits, comparable, latest_weights, records, series
from tests.support.texts import CONTEXT, make_text, text_arguments, train_text

RATE = 1000.0
"""So large that a weight is of the size of its change, and the change as exact."""
ONE_STEP = (
    "--train.max_steps=1",
    "--optimizer.name=sgd",
    f"--optimizer.lr={RATE}",
    "--optimizer.momentum=0",
    "--optimizer.weight_decay=0",
    "--schedule.warmup_steps=0",
    "--schedule.name=constant",
)
"""Then what became of the weights is the gradient."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_text(tokens, tmp_path_factory.mktemp("trained"), "run", "--train.epochs=8")


def sets(directory: Path) -> tuple[TokenWindows, TokenWindows]:
    config = load_trained(directory).config
    data = load_datasets(config.data, seed=0)
    assert isinstance(data.train, TokenWindows)
    assert isinstance(data.test, TokenWindows)
    return data.train, data.test


def test_what_an_evaluation_says_is_of_every_token_once(trained: Path) -> None:
    """Law: loss, accuracy, perplexity and bits per byte from one pass over the text in float64."""
    test = sets(trained)[1]
    last = [record for record in records(trained) if "eval/loss" in record][-1]
    model = load_trained(trained, checkpoint="latest").module.double()
    total, right, count = 0.0, 0, 0
    for inputs, targets in (test[index] for index in range(len(test))):
        with torch.no_grad():
            logits = model(inputs[None])[0]
        there = targets != IGNORED
        total += float(F.cross_entropy(logits[there], targets[there], reduction="sum"))
        right += int((logits.argmax(1) == targets)[there].sum())
        count += int(there.sum())
    separators = int((test.tokens[:-1] == test.vocabulary.separator).sum())
    assert count == len(test.tokens) - 1 - separators == last["eval/tokens"]
    assert last["eval/loss"] == pytest.approx(total / count, rel=1e-5)
    assert last["eval/token_accuracy"] == pytest.approx(right / count, abs=1.01 / count)
    assert last["eval/perplexity"] == pytest.approx(math.exp(last["eval/loss"]), rel=1e-12)
    targets = test.tokens[1:][test.tokens[:-1] != test.vocabulary.separator]
    text = test.vocabulary.decode(targets.tolist())
    bits = last["eval/loss"] * count / math.log(2) / len(text.encode())
    assert last["eval/bits_per_byte"] == pytest.approx(bits, rel=1e-12)


def test_the_command_says_what_the_run_said_and_knows_its_vocabulary(
    trained: Path, tokens: Path, tmp_path: Path
) -> None:
    """Law: evaluate.py of the latest weights gives the last record; another text is refused."""
    arguments = [str(trained), "--checkpoint=latest", f"--output={tmp_path}"]
    assert evaluate(arguments) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    last = [record for record in records(trained) if "eval/loss" in record][-1]
    for name in ("loss", "perplexity", "bits_per_byte", "token_accuracy", "tokens"):
        assert found[name] == pytest.approx(last[f"eval/{name}"], rel=1e-12), name
    other = tmp_path / "other"
    shutil.copytree(tokens, other)
    header = json.loads((other / "tokens.json").read_text())
    header["vocabulary"]["characters"] = header["vocabulary"]["characters"][::-1]
    (other / "tokens.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="vocabulary of the data"):
        evaluate([str(trained), f"--data.root={other}"])


def test_it_learns_and_says_how_many_tokens_a_second(trained: Path) -> None:
    losses = series(trained, "train/loss")
    assert losses[-1] < 0.75 * losses[0]
    for record in records(trained):
        if "train/loss" in record:
            rate = record["train/samples_per_second"] * CONTEXT
            assert record["train/tokens_per_second"] == pytest.approx(rate)
            assert 0 <= record["train/token_accuracy"] <= 1
    facts = json.loads((trained / "model.json").read_text())
    assert facts["vocabulary"]["kind"] == "characters"
    assert facts["dtype"] == "int64"


def gradient(directory: Path, before: Path) -> dict[str, Tensor]:
    first, last = latest_weights(before), latest_weights(directory)
    return {name: (first[name].double() - last[name].double()) / RATE for name in first}


@pytest.fixture(scope="module")
def untouched(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that every run of seed 0 begins with."""
    more = (*ONE_STEP, "--optimizer.lr=1e-30")
    return train_text(tokens, tmp_path_factory.mktemp("untouched"), "run", *more)


def expected_gradient(untouched: Path) -> dict[str, Tensor]:
    """Of the mean over the tokens of the first global batch, as one batch, by autograd."""
    from trainer.components import build_plan
    from trainer.ranks.runtime import Runtime

    train_set = sets(untouched)[0]
    trained = load_trained(untouched)
    plan = build_plan(trained.config, Runtime(launcher="test"), len(train_set))
    inputs, targets = train_set.gather(torch.tensor(plan.samples(0)))
    counts = (targets != IGNORED).sum(1)
    assert counts.min() < CONTEXT == counts.max(), "windows have different numbers of tokens"
    model = trained.module.double().requires_grad_(True)
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        norm = float(value.norm())
        assert float((found[name] - value).norm()) < 1e-6 * norm, name


@pytest.mark.parametrize("micro", [1, 4, 8])
def test_the_gradient_is_that_of_the_tokens_of_the_whole_batch(
    micro: int, tokens: Path, untouched: Path, tmp_path: Path
) -> None:
    """Law: whatever micro-batch a token is in, it counts as much as every other one."""
    found = train_text(
        tokens,
        tmp_path,
        "run",
        *ONE_STEP,
        "--train.clip_norm=null",
        f"--train.micro_batch_size={micro}",
    )
    assert_close(gradient(found, untouched), expected_gradient(untouched))


@pytest.mark.process
@pytest.mark.parametrize(
    ("ranks", "strategy"),
    [
        pytest.param(2, "ddp", marks=pytest.mark.slow),
        (3, "ddp"),
        pytest.param(2, "fsdp", marks=pytest.mark.slow),
    ],
)
def test_ranks_change_neither_gradient_nor_evaluation(
    ranks: int, strategy: str, tokens: Path, untouched: Path, tmp_path: Path
) -> None:
    """Law: the gradient of the whole batch, and an evaluation equal to the last bit."""
    more = (*ONE_STEP, "--train.clip_norm=null", f"--parallel.strategy={strategy}")
    train(
        *text_arguments(tokens, tmp_path, "several", *more, "--train.micro_batch_size=2"),
        ranks=ranks,
    )
    assert_close(gradient(tmp_path / "several", untouched), expected_gradient(untouched))
    train(*text_arguments(tokens, tmp_path, "still", *more, "--optimizer.lr=1e-30"), ranks=ranks)
    evaluated = [
        {key: value for key, value in comparable(directory)[-1].items() if key.startswith("eval/")}
        for directory in (tmp_path / "still", untouched)
    ]
    assert evaluated[0] == evaluated[1]
    assert evaluated[0]["eval/tokens"] > 50


@pytest.mark.process
def test_exact_reduction_gives_the_same_bits_on_two_ranks(tokens: Path, tmp_path: Path) -> None:
    more = ("--parallel.reduction=exact", "--parallel.shards=4", "--parallel.threads=1")
    for ranks in (1, 2):
        train(*text_arguments(tokens, tmp_path, f"ranks{ranks}", *more), ranks=ranks)
    assert_same_bits(tmp_path / "ranks1", tmp_path / "ranks2")
    assert comparable(tmp_path / "ranks1") == comparable(tmp_path / "ranks2")


def test_a_run_that_stopped_in_mid_epoch_ends_with_the_same_bits(
    tokens: Path, tmp_path: Path
) -> None:
    constant = "--schedule.name=constant"  # a cosine would end with the steps
    whole = train_text(tokens, tmp_path, "whole", constant)
    train_text(tokens, tmp_path, "broken", constant, "--train.max_steps=7")
    broken = train_text(tokens, tmp_path, "broken", constant)
    assert_same_bits(whole, broken)


@pytest.mark.process
def test_a_killed_run_ends_with_the_same_bits(tokens: Path, tmp_path: Path) -> None:
    more = ("--train.epochs=20", "--checkpoint.every_steps=5")
    process = begin(
        python_command("launch/train.py", *text_arguments(tokens, tmp_path, "killed", *more))
    )
    wait_for_step(tmp_path / "killed", 12, process)
    process.kill()
    process.communicate()
    train(*text_arguments(tokens, tmp_path, "killed", *more, "--data.workers=1"))
    train(*text_arguments(tokens, tmp_path, "whole", *more))
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")


def test_weights_tied_by_hand_survive_all_of_it(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight with two names is saved, continued, exported and used as one."""
    own = (
        "--model.name=tests.support.texts:Tied",
        "--model.kwargs={}",
        "--schedule.name=constant",
    )
    whole = train_text(tokens, tmp_path, "whole", *own)
    train_text(tokens, tmp_path, "broken", *own, "--train.max_steps=7")
    broken = train_text(tokens, tmp_path, "broken", *own)
    assert_same_bits(whole, broken)
    weights = latest_weights(whole)
    assert torch.equal(weights["head.weight"], weights["embedding.weight"])
    module = load_trained(whole, trust_code=True).module
    assert module.head.weight is module.embedding.weight
    from launch.export import main as export

    output = tmp_path / "tied.safetensors"
    arguments = ["--format=safetensors", f"--output={output}", "--trust_code"]
    assert export([str(whole), *arguments]) == 0
    assert output.stat().st_size > 0
    capsys.readouterr()
    assert predict([str(whole), "--prompt=the", "--max_tokens=5", "--trust_code"]) == 0
    assert capsys.readouterr().out.startswith("the")
