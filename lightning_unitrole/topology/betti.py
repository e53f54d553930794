"""The Betti curve of one map, for plots."""

import math

import numpy as np
import torch
from torch import Tensor

from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.topology.definition import MAX_BIRTH, MAX_DENSITY, check_maps, check_settings, edge_count
from lightning_unitrole.topology.ripser_backend import h1_bars, step_numbers


def betti_curve(map: Tensor, *, max_density: float = MAX_DENSITY, max_steps: int | None = None) -> Tensor:  # noqa: A002
    """First Betti number of a map's flag complex after each step of its filtration.

    Entry ``k`` belongs to step ``k + 1``, so the index of the first entry above zero is the birth point.

    Args:
        map: one feature map ``[H, W]``, any floating-point type, any device.
        max_density: steps end at ``ceil(max_density * n(n-1)/2)``, ``n = max(H, W)``.
        max_steps: stop after so many steps. The work grows steeply with the number of steps; 51 are enough to see every
            birth point up to 50. None: all of them.

    Returns:
        int64 ``[steps]`` on the CPU; ``steps`` is the number of distinct edge values within the limits.

    Raises:
        DataError: ``map`` is not a floating-point ``[H, W]`` tensor of finite values.
        SettingError: a setting is out of range.
        BackendError: ripser is missing.

    Source: Zhao & Zhang (arXiv:2103.09716v1), section 3.1.

    >>> square = torch.zeros(4, 4)
    >>> square[0, 1], square[1, 2], square[2, 3], square[3, 0], square[0, 2] = 6.0, 5.0, 4.0, 3.0, 2.0
    >>> betti_curve(square)
    tensor([0, 0, 0, 1, 0])
    """
    check_maps(map, dims=2)
    check_settings(MAX_BIRTH, max_density)
    if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1):
        raise SettingError(f"max_steps must be an integer of at least 1 or None, got {max_steps!r}.")
    values = map.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(values).all():
        raise DataError("The Betti curve of a map with NaN or infinite values is not defined.")
    if max(map.shape) < 2 or min(map.shape) < 1:
        return torch.zeros(0, dtype=torch.int64)
    matrix = step_numbers(values)
    steps = min(int(matrix[np.isfinite(matrix)].max()), math.ceil(max_density * edge_count(*map.shape)))
    steps = steps if max_steps is None else min(steps, max_steps)
    if steps == 0:
        return torch.zeros(0, dtype=torch.int64)
    bars = h1_bars(matrix, steps)
    number = np.arange(1, steps + 1)
    alive = (bars[:, :1] <= number) & (number < bars[:, 1:])
    return torch.from_numpy(alive.sum(0).astype(np.int64))
