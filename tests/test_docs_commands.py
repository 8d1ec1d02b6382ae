"""Every command of the documentation is one that its program takes."""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from configs.keys import known_keys
from configs.load import load_config
from tests.support.commands import Command, all_commands, ends_well, find_commands
from tests.support.processes import ROOT, start, wait

COMMANDS = all_commands()
SBATCH_OPTIONS = {"nodes", "ntasks-per-node", "gres", "array", "dependency"}
"""Slurm's own, as far as the pages use them."""


class Accepted(Exception):
    """A command's parser has taken its arguments; nothing after it is run."""


def stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
    """The same parser, but the command ends where it has accepted its arguments."""

    def accept(*args: Any, **kwargs: Any) -> Any:
        parse(*args, **kwargs)
        raise Accepted

    return accept


def check_train(words: Sequence[str]) -> None:
    """`launch/train.py` would take these options: keys, types, ranges, and files that it names."""
    words = [word.replace("examples/", f"{ROOT}/examples/") for word in words]
    with ends_well():
        load_config(words, prog="launch/train.py", description="")


def check_script(script: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command of the project parse its arguments, and no more."""
    assert (ROOT / script).is_file(), script
    name = Path(script).stem
    if script.startswith("benchmarks/peers/"):
        module = importlib.import_module("benchmarks.peers.common")
        monkeypatch.setattr(sys, "argv", [script, *words])
        module.parse("")
    elif script.startswith("examples/"):  # a reader's own program, which takes keys
        assert {word.partition("=")[0] for word in words} <= set(known_keys())
    elif script == "benchmarks/run.py" and words[:1] == ["gpu"]:
        parse = stopping(argparse.ArgumentParser.parse_args)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(Accepted):
            importlib.import_module("benchmarks.measure.proof").parse(words[1:])
    elif name == "benchmark":
        check_benchmark(importlib.import_module("benchmarks.run").parse(words))
    elif name == "train":
        check_train(words)
    else:
        module = importlib.import_module(f"launch.{name}")
        parsers: list[tuple[Any, str]] = [(argparse.ArgumentParser, "parse_args")]
        parsers += [(module, "load_config")] if hasattr(module, "load_config") else []
        for owner, parser in parsers:
            monkeypatch.setattr(owner, parser, stopping(getattr(owner, parser)))
        with pytest.raises(Accepted):
            module.main(list(words))
        keys = {word[2:].partition("=")[0] for word in words if re.match(r"--\w+\.", word)}
        keys = {re.sub(r"\.kwargs\..*", ".kwargs", key) for key in keys}
        assert {key for key in keys if not key.startswith("lr_finder.")} <= set(known_keys())


def check_benchmark(arguments: argparse.Namespace) -> None:
    """The recipes, keys and contenders that it names exist."""
    from benchmarks.measure.contenders import choose

    choose(arguments.only, arguments.device)
    for recipe in arguments.config.split(","):
        check_train(["--config", recipe, *(f"--{setting}" for setting in arguments.set)])


def check_launcher(program: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun and accelerate: their own options by their own parsers, then the script's."""
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        parser = get_args_parser()
    else:
        parser = importlib.import_module("accelerate.commands.launch").launch_command_parser()
        assert words[0] == "launch"
        words = words[1:]
    parsed = parser.parse_args(list(words))
    check_script(parsed.training_script, parsed.training_script_args, monkeypatch)


def check_sbatch(words: Sequence[str]) -> None:
    """Slurm's options, one of our scripts, then what that hands on to launch/train.py."""
    script = next(index for index, word in enumerate(words) if not word.startswith("-"))
    own = {word[2:].partition("=")[0] for word in words[:script]}
    assert own <= SBATCH_OPTIONS
    assert (ROOT / words[script]).is_file()
    rest = list(words[script + 1 :])
    if words[script].endswith("array.sbatch") and rest and not rest[0].startswith("-"):
        rest = rest[1:]  # the sweep file
    check_train(rest)


def check_make(words: Sequence[str]) -> None:
    """Targets that there are and variables that are read; make itself says what it would do."""
    source = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, equals, value = word.partition("=")
        assert re.search(rf"^{name} \?=" if equals else rf"^{name}:", source, re.MULTILINE), word
        if name == "ARGS" and "train" in words:
            check_train(value.split())
    if shutil.which("make"):
        finished = wait(start(["make", "--dry-run", *words]))
        assert finished.status == 0, finished.output


def check_pip(words: Sequence[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert words[0] == "install"
    if len(words) == 2:
        words = ["install", "-e", words[1]]
    for option, value in zip(words[1::2], words[2::2], strict=True):
        if option == "-c":
            assert (ROOT / value).is_file()
        else:
            assert option == "-e"
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", value)
            assert extras, value
            assert set((extras[1] or "").split(",")) - {""} <= set(project["optional-dependencies"])


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command is, its own program reads it."""
    program, words = command.program, list(command.words[1:])
    monkeypatch.chdir(ROOT)  # where a reader types it
    if program.startswith("--"):
        check_train(command.words)
    elif program == "python" and words[0] == "-m":
        script = words[1].replace(".", "/") + ".py"
        assert (ROOT / script).is_file()
        if script.startswith("launch/"):
            check_script(script, words[2:], monkeypatch)
    elif program == "python":
        check_script(words[0], words[1:], monkeypatch)
    elif program == "convoy":
        check_script(command.plain[1], command.plain[2:], monkeypatch)
    elif program in ("torchrun", "accelerate"):
        check_launcher(program, words, monkeypatch)
    elif program == "source":
        assert words == [".venv/bin/activate"]
    else:
        {"sbatch": check_sbatch, "make": check_make, "pip": check_pip}[program](words)


@pytest.mark.process
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_taken_by_its_program(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: options, keys, values, recipes, scripts, extras and targets are those there are."""
    check(command, monkeypatch)


def test_commands_are_found_wherever_they_stand() -> None:
    """The test above is as good as its reader: blocks of both kinds, continued lines, spans."""
    page = """
Text with `python launch/train.py --seed 1`, `train.epochs` and `make lint`.

    python launch/train.py --seed 2   # a comment
    torchrun --nproc_per_node=2 launch/train.py \\
        --seed 3
    step 50/600  epoch 0.83

```bash
cat images.npy | python launch/predict.py runs/mnist - --as json
```

```python
python = "not a command"
```
"""
    found = [" ".join(command.words) for command in find_commands(page, "page")]
    assert found == [
        "python launch/predict.py runs/mnist - --as json",
        "python launch/train.py --seed 2",
        "torchrun --nproc_per_node=2 launch/train.py --seed 3",
        "python launch/train.py --seed 1",
        "make lint",
    ]
    assert len(COMMANDS) > 100


@pytest.mark.process
@pytest.mark.parametrize(
    "line",
    [
        "python launch/train.py --optimizer.lrr 1",
        "python launch/train.py --config no_such_recipe",
        "python launch/compare.py runs/a --metrics eval/loss",
        "python launch/evaluate.py runs/mnist --data.datasets idx",
        "torchrun --nproc_per_nodes=2 launch/train.py",
        "sbatch --array=0-4 slurm/arrays.sbatch",
        "make trains",
        "pip install -e '.[plots]'",
        "convoy trains --nproc 2",
        "convoy compare runs/a --nproc 2",
    ],
)
def test_a_mistake_in_a_command_would_be_seen(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of all commands can fail: a wrong word in each place is caught."""
    (command,) = find_commands(f"    {line}", "page")
    with pytest.raises((AssertionError, InputError, KeyError, SystemExit)) as caught:
        check(command, monkeypatch)
    assert getattr(caught.value, "code", 2) == 2
