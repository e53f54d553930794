"""The plain truth: one map at a time, straight from the definition, homology left to ripser.

Never optimised. The other backends are tested against this one for exact equality.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_unitrole.errors import BackendError
from lightning_unitrole.topology.definition import NON_FINITE, trivial_births


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``; None when it can; maps elsewhere are copied to the CPU."""
    try:
        import ripser  # noqa: F401
    except ImportError as error:
        return f"ripser cannot be imported ({error}); install it with: pip install ripser"
    return None


def raw_births(maps: Tensor, steps: int) -> Tensor:
    """Births of ``maps [B, U, H, W]`` within ``steps`` filtration steps; int32 ``[B, U]``, ``NON_FINITE`` where so."""
    if steps == 0 or maps.numel() == 0:
        return trivial_births(maps)
    births = [birth(map_, steps) for map_ in maps.detach().to("cpu", torch.float64).flatten(0, 1).numpy()]
    return torch.tensor(births, dtype=torch.int32).reshape(maps.shape[:2]).to(maps.device)


def birth(map_: NDArray[np.float64], steps: int) -> int:
    """Birth point of one map ``[H, W]`` within ``steps`` filtration steps; 0 if none, ``NON_FINITE`` if not finite."""
    if not np.isfinite(map_).all():
        return NON_FINITE
    bars = h1_bars(step_numbers(map_), steps)
    return int(bars[:, 0].min()) - 1 if len(bars) else 0


def step_numbers(map_: NDArray[np.float64]) -> NDArray[np.float64]:
    """The step (from 1) at which each edge enters: symmetric ``[n, n]``, zero diagonal, infinity for never."""
    n = max(map_.shape)
    square = np.full((n, n), -np.inf)
    square[: map_.shape[0], : map_.shape[1]] = map_
    weights = np.maximum(square, square.T)
    rows, columns = np.triu_indices(n, 1)
    # np.unique sorts ascending; negated, the largest weight becomes number 1. -0.0 and 0.0 are one value to it.
    values, number = np.unique(-weights[rows, columns], return_inverse=True)
    step = np.where(np.isinf(values), np.inf, np.arange(1.0, len(values) + 1))[number]
    matrix = np.zeros((n, n))
    matrix[rows, columns] = step
    matrix[columns, rows] = step
    return matrix


def h1_bars(matrix: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Bars ``[bars, 2]`` (birth, death) of H1 over GF(2) of the Rips filtration of ``matrix`` up to ``steps``."""
    try:
        from ripser import ripser
    except ImportError as error:
        raise BackendError(f"ripser cannot be imported ({error}); install it with: pip install ripser") from error
    # ripser.py works in float32; step numbers are integers far below 2**24, so nothing is rounded.
    result: dict[str, Any] = ripser(matrix, maxdim=1, thresh=float(steps), coeff=2, distance_matrix=True)
    bars: NDArray[np.float64] = result["dgms"][1]
    return bars
