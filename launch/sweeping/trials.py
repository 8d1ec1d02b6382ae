"""The trials of a sweep: a pure function of its file and its seed, written down before the first.

The files are those of W&B: one file serves `wandb sweep` and `launch/sweep.py`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError, did_you_mean
from configs.read_files import read_yaml

METHODS = ("grid", "random")
BASE = re.compile(r"--config[ =](\S+)")


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    name: str
    overrides: dict[str, Any]
    """Config keys and their values."""

    @property
    def arguments(self) -> list[str]:
        """As on a command line."""
        return [
            f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in self.overrides.items()
        ]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is tried, and what decides."""

    trials: list[Trial]
    metric: str | None
    """Such as val/accuracy; None: what the runs themselves choose by."""
    higher: bool | None
    """Whether more of it is better; None: as its name tells."""
    config: str | None
    """The base config that the file's own command names."""

    @property
    def configs(self) -> list[list[Trial]]:
        """Trials that differ in nothing but their seed, together."""
        alike: dict[str, list[Trial]] = {}
        for trial in self.trials:
            essence = json.dumps(without_seed(trial.overrides))
            key = essence if "seed" in trial.overrides else trial.name  # chosen twice: two configs
            alike.setdefault(key, []).append(trial)
        return list(alike.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def without_seed(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if key != "seed"}


def rungs(first: int, factor: int, epochs: int) -> list[int]:
    """Epochs at which a sweep looks at its trials: first, first * factor, ... below `epochs`."""
    found = []
    while first < epochs:
        found.append(first)
        first *= factor
    return found


def of_seeds(text: str) -> Sweep:
    """A trial for each seed of `0..4` or `0,2,5`.

    Raises:
        InputError: If it is something else, or a seed occurs twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", part)
        if found is None:
            raise InputError("--seeds", given=text, expected="0..4, or 0,2,5")
        first, last = (int(end[:MOST_DIGITS]) for end in (found[1], found[2] or found[1]))
        if last - first >= MOST_TRIALS:
            raise InputError("--seeds", given=text, expected=f"at most {MOST_TRIALS} trials")
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError("--seeds", given=text, expected="one seed or more, none of them twice")
    return Sweep(_named([{"seed": seed} for seed in seeds]), None, None, None)


def read_sweep(path: Path, *, count: int, seed: int) -> Sweep:
    """The trials of a sweep file.

    Args:
        path: A YAML file in W&B's format: method grid or random, parameters, metric.
        count: How many trials of a random search.
        seed: Of its choices.

    Raises:
        InputError: With the key that is missing, unknown or of another kind, and its line.
    """
    content = read_yaml(path.expanduser())
    if not isinstance(content, dict):
        raise InputError(str(path), given=content, expected="a mapping with method and parameters")
    lines = key_lines(path.expanduser())

    def at(key: str) -> str:
        return f"{path}, line {lines[key]}: {key}" if key in lines else f"{path}: {key}"

    method, parameters = content.get("method"), content.get("parameters")
    if method not in METHODS:
        raise InputError(at("method"), given=method, expected=" or ".join(METHODS))
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(at("parameters"), given=parameters, expected="one key or more")
    spaces = {str(key): _space(at(f"parameters.{key}"), v) for key, v in parameters.items()}
    metric = content.get("metric") or {}
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str | None):
        raise InputError(at("metric"), given=metric, expected="a mapping with name and goal")
    name, goal = metric.get("name"), metric.get("goal")
    if goal not in ("maximize", "minimize", None):
        raise InputError(at("metric.goal"), given=goal, expected="maximize or minimize")
    higher = None if goal is None else goal == "maximize"
    chosen = _grid(at, spaces) if method == "grid" else _random(spaces, count, seed)
    words = content.get("command") or []
    command = BASE.search(" ".join(map(str, words if isinstance(words, list) else [words])))
    return Sweep(_named(chosen), name, higher, command[1] if command else None)


MOST_TRIALS = 10_000
MOST_DIGITS = 18
LARGEST = 2.0**53
Space = Sequence[Any] | Mapping[str, Any]
"""Values to choose from, or a distribution with its bounds."""
DISTRIBUTIONS = ("uniform", "int_uniform", "log_uniform_values", "q_uniform")
WORDS = {"value", "values", "min", "max", "distribution", "q"}


def _space(where: str, given: Any) -> Space:
    if not isinstance(given, dict):
        raise InputError(where, given=given, expected="value, values, or min and max")
    if unknown := sorted(map(str, given.keys() - WORDS)):
        raise InputError(where, given=", ".join(unknown), expected=", ".join(sorted(WORDS)))
    if "value" in given:
        return [given["value"]]
    if "values" in given:
        if not isinstance(given["values"], list) or not given["values"]:
            raise InputError(f"{where}.values", given=given["values"], expected="a list")
        return list(given["values"])
    low: Any = given.get("min")
    high: Any = given.get("max")
    whole = type(low) is int and type(high) is int
    kind = given.get("distribution", "int_uniform" if whole else "uniform")
    if kind not in DISTRIBUTIONS:
        raise InputError(
            f"{where}.distribution",
            given=kind,
            expected=f"one of {', '.join(DISTRIBUTIONS)}",
            remedy=did_you_mean(str(kind), DISTRIBUTIONS),
        )
    numbers = all(isinstance(b, int | float) and abs(b) < LARGEST for b in (low, high))
    if not numbers or low >= high or (kind == "log_uniform_values" and low <= 0):
        raise InputError(
            where,
            given={"min": low, "max": high},
            expected="two numbers, min below max"
            + (", both above 0" if kind == "log_uniform_values" else ""),
        )
    if kind == "int_uniform" and not whole:
        raise InputError(where, given={"min": low, "max": high}, expected="whole numbers")
    q = given.get("q", 1)
    if not isinstance(q, int | float) or not 0 < q < LARGEST:
        raise InputError(f"{where}.q", given=q, expected="a number above 0")
    return {"distribution": kind, "min": low, "max": high, "q": q}


def _grid(at: Callable[[str], str], spaces: Mapping[str, Space]) -> list[dict[str, Any]]:
    for key, space in spaces.items():
        if isinstance(space, Mapping):
            raise InputError(
                at(f"parameters.{key}"),
                given=dict(space),
                expected="value or values in a grid",
                remedy="Use method: random for a range.",
            )
    choices = [list(space) for space in spaces.values()]
    if (count := math.prod(map(len, choices))) > MOST_TRIALS:
        raise InputError(
            at("parameters"), given=f"{count} trials", expected=f"at most {MOST_TRIALS}"
        )
    return [dict(zip(spaces, chosen, strict=True)) for chosen in itertools.product(*choices)]


def _random(spaces: Mapping[str, Space], count: int, seed: int) -> list[dict[str, Any]]:
    """A generator for each choice: more trials leave the first ones as they were."""
    return [
        {key: _draw(space, np.random.default_rng([seed, number, index]))
         for index, (key, space) in enumerate(spaces.items())}
        for number in range(count)
    ]  # fmt: skip


def _draw(space: Space, generator: np.random.Generator) -> Any:
    if not isinstance(space, Mapping):
        return space[int(generator.integers(len(space)))]
    low, high = space["min"], space["max"]
    match space["distribution"]:
        case "int_uniform":
            return int(generator.integers(low, high + 1))
        case "log_uniform_values":
            return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.6g}")
        case "q_uniform":
            return float(f"{round(generator.uniform(low, high) / space['q']) * space['q']:.6g}")
        case _:
            return float(f"{generator.uniform(low, high):.6g}")


def _named(chosen: Sequence[dict[str, Any]]) -> list[Trial]:
    return [Trial(f"trial_{number}", trial) for number, trial in enumerate(chosen, start=1)]


def key_lines(path: Path) -> dict[str, int]:
    """The line of each key at the top, and of each one below it as `parameters.KEY`.

    Args:
        path: A YAML file that has been read without an error.
    """
    import yaml

    found: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str, depth: int) -> None:
        if not isinstance(node, yaml.MappingNode) or depth == 0:
            return
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            found[name] = key.start_mark.line + 1
            walk(value, f"{name}.", depth - 1)

    walk(yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), "", 2)
    return found
