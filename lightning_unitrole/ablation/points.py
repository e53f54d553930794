"""At which numbers of ablated units a curve is measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_unitrole.errors import SettingError
from lightning_unitrole.reports.curves import AblationCurve

_CHANGE = 1 / 8
"""Share of a curve's range that it may change by between two points without being looked at more closely."""


def coarse_points(num_units: int, points: int | None) -> Tensor:
    """Numbers of ablated units to begin with, evenly spaced and with both ends.

    Args:
        num_units: units of the layer.
        points: about how many points the curve may have in the end, at least 2; ``None`` for all of them. Half are kept
            for :func:`refined_points`, unless there are enough for every number.

    Returns:
        ``[P]`` int64, strictly increasing.

    Raises:
        SettingError: if ``points`` is too small.

    Example:
        >>> coarse_points(100, 12).tolist()
        [0, 20, 40, 60, 80, 100]
    """
    if points is None or points > num_units:
        return even_points(num_units, points)
    return even_points(num_units, max(points // 2, 2) if points >= 2 else points)


def even_points(num_units: int, points: int | None) -> Tensor:
    """Numbers of ablated units, evenly spaced and with both ends.

    Args:
        num_units: units of the layer.
        points: how many, at least 2; ``None`` for every number of units.

    Returns:
        ``[P]`` int64, strictly increasing.

    Raises:
        SettingError: if ``points`` is too small.

    Example:
        >>> even_points(100, 6).tolist()
        [0, 20, 40, 60, 80, 100]
    """
    if points is not None and points < 2:
        raise SettingError(f"points={points}; expected at least 2, for none and all units off, or None for every one.")
    if points is None or points > num_units:
        return torch.arange(num_units + 1)
    grid = torch.linspace(0, num_units, points, dtype=torch.float64).round().long()
    return torch.unique(grid)  # type: ignore[no-any-return]


def falling_points(curve: AblationCurve, points: int) -> Tensor:
    """Numbers of ablated units to measure next, so that a curve is known as finely as it needs where it rises or falls.

    The middles of the gaps over which the accuracy changes by more than an eighth of its range; where it is level
    nothing is to be seen between. Repeated until nothing is wanted, it ends with steps of less than an eighth, or gaps
    that are no wider than those of evenly spread points.

    Args:
        curve: measured so far.
        points: number of evenly spread points whose gaps are narrow enough.

    Returns:
        ``[Q]`` int64, strictly increasing; empty when the curve is known well enough.

    Example:
        >>> off, accuracy = torch.tensor([0, 8, 16]), torch.tensor([0.9, 0.1, 0.1])
        >>> falling_points(AblationCurve(off, 1 - accuracy, accuracy, accuracy), points=9).tolist()
        [4]
    """
    score = curve.accuracy.nan_to_num()
    changes = score.diff().abs() > _CHANGE * (score.max() - score.min())
    wide = curve.ablated.diff() > max(int(curve.ablated[-1]) / (points - 1), 1)
    return ((curve.ablated[:-1] + curve.ablated[1:]) // 2)[changes & wide]


def refined_points(curve: AblationCurve, points: int) -> Tensor:
    """Numbers of ablated units to measure next, so that the turning point by loss is located exactly.

    They lie between the neighbours of the turning point of the curve so far: all that are missing there if they are
    within the limit, else evenly spread ones, to be refined again. Repeated until nothing is missing, it ends at the
    turning point that measuring every unit gives, if the loss falls to one valley and rises after it, and is flat
    nowhere but at its bottom. On any other curve it ends at a number that is no worse than every measured one and both
    its neighbours.

    Args:
        curve: measured so far.
        points: about how many points the curve may have in the end. A limit too small for an exact turning point is
            exceeded by the few points that are needed.

    Returns:
        ``[Q]`` int64, strictly increasing; empty when the turning point is located.
    """
    known = curve.ablated.tolist()
    position = known.index(curve.turning_point)
    low, high = known[max(position - 1, 0)], known[min(position + 1, len(known) - 1)]
    missing = [number for number in range(low + 1, high) if number != known[position]]
    left = points - len(known)
    if len(missing) <= max(left, 4):
        return torch.tensor(missing, dtype=torch.int64)
    # With q points the next round has about 2 w / q left to do: the sum is smallest at q = sqrt(2 w).
    width = min(math.isqrt(2 * len(missing)) + 1, max(left // 2, 4))
    spread = torch.linspace(low, high, width + 2, dtype=torch.float64).round().long()[1:-1]
    return torch.tensor(sorted({*spread.tolist()} - {known[position]}), dtype=torch.int64)
