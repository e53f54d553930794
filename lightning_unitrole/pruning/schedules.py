"""When to prune, and how much of the amount by then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning_unitrole.errors import SettingError


def linear(progress: float) -> float:
    """Equal steps."""
    return progress


def cubic(progress: float) -> float:
    """Much at first and less and less, ``1 - (1 - progress)^3``.

    Source: Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878, equation 1 with an initial sparsity of 0.
    """
    return 1 - (1 - progress) ** 3


SHAPES: dict[str, Callable[[float], float]] = {"linear": linear, "cubic": cubic}
REGULARISED = "regularised"
SCHEDULES = ("once", *SHAPES, REGULARISED)


@dataclass(frozen=True)
class Schedule:
    """The epochs at whose start units are pruned.

    Attributes:
        kind: ``"once"``, ``"linear"`` (equal amounts), ``"cubic"`` (gradual), or ``"regularised"``: units are chosen at
            the start, shrink from then on, and go at the end.
        start: first epoch, counted from 0.
        end: last epoch; not used with ``"once"``.
        every: epochs between two removals.

    Raises:
        SettingError: if a value is out of range.

    Example:
        >>> schedule = Schedule("cubic", start=1, end=5, every=2)
        >>> [round(schedule.share(epoch), 3) for epoch in (1, 3, 5)]
        [0.704, 0.963, 1.0]
    """

    kind: str = "once"
    start: int = 1
    end: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise SettingError(f"schedule={self.kind!r}; expected one of {', '.join(SCHEDULES)}.")
        for name, value, least in (("start_epoch", self.start, 0), ("every_n_epochs", self.every, 1)):
            if not isinstance(value, int) or value < least:
                raise SettingError(f"{name}={value!r}; expected an integer of at least {least}.")
        if self.kind == "once":
            return
        if self.end is None:
            raise SettingError(f"schedule={self.kind!r} needs end_epoch, the epoch by which the amount is reached.")
        least = self.start + (self.kind == REGULARISED)
        if not isinstance(self.end, int) or self.end < least:
            more = " + 1, as units shrink in between" if least > self.start else ""
            raise SettingError(
                f"end_epoch={self.end!r}; expected an integer of at least start_epoch={self.start}{more}."
            )

    @property
    def epochs(self) -> list[int]:
        """All epochs at whose start units are pruned."""
        if self.kind == "once" or self.end is None:
            return [self.start]
        if self.kind == REGULARISED:
            return [self.end]
        return [*range(self.start, self.end + 1, self.every)]

    def latest(self, epoch: int) -> int | None:
        """The last epoch up to this one at whose start units are pruned; None before the first."""
        return max((one for one in self.epochs if one <= epoch), default=None)

    def share(self, epoch: int) -> float:
        """Share of the whole amount that is reached at the start of an epoch, in (0, 1]."""
        epochs = self.epochs
        reached = sum(one <= epoch for one in epochs) / len(epochs)
        return SHAPES[self.kind](reached) if self.kind in SHAPES else float(reached > 0)

    def shrinks(self, epoch: int) -> bool:
        """Whether units that are going to be pruned shrink in this epoch."""
        return self.kind == REGULARISED and self.end is not None and self.start <= epoch < self.end
