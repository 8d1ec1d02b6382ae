"""Whole numbers as classes: how many there are, and a label that cannot be meant as one."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError

log = logging.getLogger("convoy")

SET_NUM_CLASSES = "Correct the label, or give the number of classes as data.kwargs.num_classes."
GAPS = 16
"""Classes that may lack samples, however few have some."""


class ClassCounter:
    """Counts the classes of labels that are shown to it part by part.

    Classes are numbered from 0 to the highest label. If more than `GAPS` of them have no sample,
    and more than have one, the highest label is taken for a stray one and refused: a model with an
    output for each would be larger than its data.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.highest = -1
        self.where = ""

    def add(self, labels: NDArray[np.integer], where: str, first: int = 0) -> None:
        """Count labels `(N,)`, N >= 1, the first of which is number `first` of `where`.

        Raises:
            InputError: With the place of a label below 0.
        """
        lowest = int(labels.argmin())
        if labels[lowest] < 0:
            raise InputError(
                f"{where}: label {first + lowest}", given=int(labels[lowest]), expected="0 or more"
            )
        highest = int(labels.argmax())
        if labels[highest] > self.highest:
            self.highest, self.where = int(labels[highest]), f"{where}: label {first + highest}"
        self.seen.update(np.unique(labels).tolist())

    def count(self, remedy: str = "Correct the label, or number the classes without gaps.") -> int:
        """The number of classes; gaps among them are said.

        Raises:
            InputError: If the highest label cannot be meant as a class, with its place.
        """
        number, missing = self.highest + 1, self.highest + 1 - len(self.seen)
        if missing > max(GAPS, len(self.seen)):
            raise InputError(
                self.where,
                given=self.highest,
                expected=f"a class: {len(self.seen)} labels occur, and {missing:,} below this one "
                "do not",
                remedy=remedy,
            )
        if number == 1:
            log.warning("labels: every sample is of class 0, so any model is right at once")
        if missing:
            gaps = [label for label in range(number) if label not in self.seen]
            some = ", ".join(map(str, gaps[:8])) + (", ..." if missing > 8 else "")
            log.warning("labels: %d of %d classes have no sample (%s)", missing, number, some)
        return number
