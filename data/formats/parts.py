"""Which part of somebody's files is the test set, and which one the validation set, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

VALIDATION_NAMES = ("val", "valid", "validation")
REMEDY = (
    "Others are named by data.kwargs.train, data.kwargs.validation and data.kwargs.test; "
    "--data.test 0.1 cuts a test set out of the training set."
)


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """`data.kwargs` of a format whose parts have names."""

    train: str = "train"
    """Name of the part to train on."""
    test: str | None = None
    """Name of the part to test on; default: test, and without one what would be validation."""
    validation: str | None = None
    """Name of the part to choose on; default: the first of val, valid, validation, where there is a
    test set beside it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Names of the parts that are there."""

    train: str
    validation: str | None
    test: str | None

    @property
    def found(self) -> list[tuple[str, str]]:
        """(role, name) of each, in the order train, validation, test."""
        named = (("train", self.train), ("validation", self.validation), ("test", self.test))
        return [(role, name) for role, name in named if name is not None]


def choose_parts(
    options: PartOptions,
    is_there: Callable[[str], bool],
    *,
    cut_test: bool,
    tests: Sequence[str] = ("test",),
    validations: Sequence[str] = VALIDATION_NAMES,
) -> Parts:
    """The parts that options name or, where they do not, that are there under a usual name.

    A validation set alone is what there is to test on, unless a test set is cut out of the training
    set (`cut_test`). What is named by an option is returned whether it is there or not.
    """
    test, validation = options.test, options.validation
    if test is None:
        test = next(filter(is_there, tests), None)
    if validation is None:
        others = [name for name in validations if name != test]
        validation = next(filter(is_there, others), None)
        if test is None and not cut_test:
            test, validation = validation, None
    return Parts(options.train, validation, test)
