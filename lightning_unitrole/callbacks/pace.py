"""When to analyse, so that analyses take no more than a share of the time that training takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Spaces analyses over a training run.

    The first epoch is analysed, and the last; between them, as many as the budget allows, evenly spaced by what one
    analysis and one epoch were measured to take.

    Args:
        budget: largest share of the training time that analyses may take together.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.analysis: float | None = None
        self._last_epoch: int | None = None
        self._started: float | None = None
        self._start_epoch = 0
        self._outside = 0.0

    def start(self, epoch: int) -> None:
        """Say that training starts, or goes on, with an epoch."""
        self._started, self._start_epoch, self._outside = time.monotonic(), epoch, 0.0

    @contextmanager
    def analysing(self, epoch: int) -> Iterator[None]:
        """Measure one analysis."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.analysis = time.monotonic() - begun
            self._outside += self.analysis
            self._last_epoch = epoch

    def epoch_seconds(self, epoch: int) -> float:
        """Seconds that an epoch of training took on average, up to the end of ``epoch``."""
        if self._started is None:
            return math.nan
        return (time.monotonic() - self._started - self._outside) / max(epoch + 1 - self._start_epoch, 1)

    def interval(self, epoch_seconds: float, analysis_seconds: float, epochs: int | None) -> int:
        """Epochs from one analysis to the next.

        Args:
            epoch_seconds: what an epoch of training takes.
            analysis_seconds: what an analysis takes.
            epochs: epochs of the whole training; None if nobody knows.

        Example:
            >>> Pace(budget=0.1).interval(epoch_seconds=60, analysis_seconds=12, epochs=91)
            3
        """
        cost = analysis_seconds / max(epoch_seconds, 1e-9)
        if epochs is None or epochs < 3:
            return max(1, math.ceil(cost / self.budget))
        affordable = max(2, int(self.budget * epochs / max(cost, 1e-9) + 1e-9))  # rounding costs no analysis
        return max(1, math.ceil((epochs - 1) / (affordable - 1)))

    def due(self, epoch: int, epochs: int | None) -> bool:
        """Whether an epoch is to be analysed.

        Args:
            epoch: the epoch, counted from 0.
            epochs: epochs of the whole training; None if nobody knows.
        """
        if self._last_epoch is None or self.analysis is None:
            return True
        if epoch == self._last_epoch:
            return False
        interval = self.interval(self.epoch_seconds(epoch), self.analysis, epochs)
        return epoch - self._last_epoch >= interval or epoch + 1 == epochs

    def in_words(self, epoch: int, epochs: int | None) -> str:
        """What an analysis takes, and how many there will be; after the first one."""
        epoch_seconds, analysis = self.epoch_seconds(epoch), self.analysis or 0.0
        interval = self.interval(epoch_seconds, analysis, epochs)
        every = "each epoch is analysed" if interval == 1 else f"one epoch in {interval} is analysed, and the last"
        return (
            f"One analysis of unit roles takes {analysis:.1f} s, {analysis / max(epoch_seconds, 1e-9):.2f} of a "
            f"training epoch. With budget={self.budget:g}, {every}."
        )

    def forget(self) -> None:
        """Begin a new run."""
        self.analysis = self._last_epoch = self._started = None


class Turns:
    """Every n-th epoch; where that one is not validated, the next that is."""

    def __init__(self) -> None:
        self._validated: int | None = None

    def start(self, epoch: int) -> None:
        """Say that training starts, or goes on, with an epoch."""
        self._validated = epoch - 1

    def due(self, epoch: int, every: int) -> bool:
        """Whether a validation run in this epoch, counted from 0, is to be analysed.

        Example:
            >>> turns = Turns()
            >>> turns.start(0)
            >>> [epoch for epoch in (1, 3, 5, 7, 9) if turns.due(epoch, 3)]
            [3, 5, 9]
        """
        before, self._validated = self._validated, epoch
        done = epoch if before is None or before == epoch else before + 1
        return (epoch + 1) // every > done // every
