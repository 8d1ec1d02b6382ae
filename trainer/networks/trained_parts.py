"""Which parameters are trained, from which epoch on: `model.freeze` and `model.train_from`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from configs.errors import InputError, closest
from configs.schema_model import ModelConfig
from trainer.ranks.failures import RunFailed


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a parameter: it fits the whole name, or names a module around it."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def check_patterns(key: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Refuse a pattern that means nothing.

    Raises:
        InputError: With names that are close to it.
    """
    known = list(names)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            close = closest(pattern, known, most=3, cutoff=0.3) or known[:3]
            raise InputError(
                key,
                given=pattern,
                expected="a name, a module or a pattern that some name of the model fits",
                remedy=f"There are {len(known)} names, such as {', '.join(close)}.",
            )


def freeze(model: nn.Module, config: ModelConfig) -> None:
    """Freeze what `model.freeze` names for good, and let `model.train_from` name what is trained
    later, be it that the model itself froze it.

    Raises:
        InputError: For a pattern that means nothing, or one that means what is frozen for good.
    """
    named = dict(model.named_parameters())
    check_patterns("model.freeze", config.freeze, named)
    for name, parameter in named.items():
        if any(matches(name, pattern) for pattern in config.freeze):
            parameter.requires_grad_(False)
    if config.freeze:
        _set_modes(model)
    for_good = {name for name in named if any(matches(name, p) for p in config.freeze)}
    later = [name for name in named if name not in for_good]
    check_patterns("model.train_from", config.train_from, later)
    for name in later:
        if any(matches(name, pattern) for pattern in config.train_from):
            named[name].requires_grad_(True)  # TrainedParts freezes it until its epoch


def _set_modes(model: nn.Module) -> None:
    """A batch norm whose own weights are frozen keeps its statistics, others collect them."""
    for part in model.modules():
        own = list(part.parameters(recurse=False))
        if isinstance(part, _BatchNorm) and own:
            part.train(any(parameter.requires_grad for parameter in own))


class TrainedParts:
    """Sets what is trained in an epoch, and sees to it that nobody else does.

    Args:
        module: The raw module, as its engine has it; all that will ever be trained is trainable.
        train_from: Epochs, counted from 1, by pattern of names.
    """

    def __init__(self, module: nn.Module, train_from: Mapping[str, int]) -> None:
        self.module = module
        self.first_epochs = {
            name: next((e for p, e in train_from.items() if matches(name, p)), 1)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.changes = bool(train_from)
        self.known = self._flags()

    def enter(self, epoch: int) -> None:
        """Before the steps of an epoch, counted from 0: on every rank alike."""
        if not self.changes:
            return
        for name, parameter in self.module.named_parameters():
            if name in self.first_epochs:
                parameter.requires_grad_(epoch + 1 >= self.first_epochs[name])
        flags = self._flags()
        if flags != self.known:
            _set_modes(self.module)
            self.known = flags

    def check(self, step: int) -> None:
        """Stop if somebody else has changed what is trained: the optimizer does not know of it.

        Raises:
            RunFailed: With the name of what has changed since the latest `enter`.
        """
        now = self._flags()
        if now == self.known:
            return
        name = next(n for n in {**self.known, **now} if self.known.get(n) != now.get(n))
        what = {True: "was unfrozen", False: "was frozen", None: "went away"}[now.get(name)]
        if name not in self.known:
            what = "appeared"
        raise RunFailed(
            f"by step {step} parameter {name} of the model {what} while the run went on, and the "
            "optimizer knows nothing of it. Say what is trained, and from which epoch on, with "
            f"model.freeze and model.train_from, such as --model.train_from '{{\"{name}\": 3}}'"
        )

    def _flags(self) -> dict[str, bool]:
        return {name: p.requires_grad for name, p in self.module.named_parameters()}
