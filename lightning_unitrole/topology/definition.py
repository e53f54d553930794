"""What a birth point is: the constants, the size of the problem and the checks that every backend shares.

The graph of a map is the complete graph on ``n = max(H, W)`` vertices, weighed by ``S[i, j] = max(X[i, j], X[j,
i])``. Edges enter by descending weight, equal weights together, in one *step*. The birth point is the number of
steps that pass before the flag complex of the graph has a 1-cycle (first Betti number over GF(2) above zero); 0
stands for "no birth".

Source: Zhao & Zhang, *Quantitative Effectiveness Assessment and Role Categorization of Individual Units in CNNs*
(arXiv:2103.09716v1), section 3. Three extensions that the paper leaves open are ours: a map that is not square is
the square of its longer side whose missing edges never enter, maps below 4x4 (which cannot hold a 1-cycle) have
birth point 0, and maps with NaN or infinity have no birth point and are counted apart.
"""

import math

import torch
from torch import Tensor

from lightning_unitrole.errors import DataError, SettingError

MAX_BIRTH = 50
MAX_DENSITY = 0.8

NON_FINITE = -1
"""What a backend's ``raw_births`` puts in the place of a birth point when the map holds NaN or infinity."""

UNSETTLED = -2
"""What the compiled scan returns for a map whose ties take linear algebra."""


def edge_count(height: int, width: int) -> int:
    """Number of edges of the complete graph behind an ``H x W`` map, missing ones included.

    >>> edge_count(14, 14), edge_count(3, 5)
    (91, 10)
    """
    n = max(height, width)
    return n * (n - 1) // 2


def step_limit(height: int, width: int, max_birth: int, max_density: float) -> int:
    """Number of filtration steps that can decide the birth point of an ``H x W`` map.

    A birth at step ``k`` is birth point ``k - 1``, so steps beyond ``max_birth + 1`` cannot matter, and steps beyond
    ``ceil(max_density * edges)`` do not exist. Below four vertices there is no step to look at.

    >>> step_limit(14, 14, 50, 0.8), step_limit(5, 5, 50, 0.8), step_limit(3, 3, 50, 0.8)
    (51, 8, 0)
    """
    if max(height, width) < 4 or min(height, width) < 1:
        return 0
    return min(max_birth + 1, math.ceil(max_density * edge_count(height, width)))


def check_settings(max_birth: int, max_density: float) -> None:
    """Refuse settings that no birth point can be computed with.

    Raises:
        SettingError: ``max_birth`` is not an integer of at least 1, or ``max_density`` is not in (0, 1].
    """
    if isinstance(max_birth, bool) or not isinstance(max_birth, int) or max_birth < 1:
        raise SettingError(
            f"max_birth must be an integer of at least 1 (the paper uses {MAX_BIRTH}), got {max_birth!r}."
        )
    if isinstance(max_density, bool) or not isinstance(max_density, int | float) or not 0 < max_density <= 1:
        raise SettingError(
            f"max_density must be a number above 0 and at most 1 (the paper uses {MAX_DENSITY}), got {max_density!r}."
        )


def check_maps(maps: Tensor, dims: int | None = None) -> None:
    """Refuse anything but floating-point maps ``[..., H, W]``.

    Args:
        maps: what the caller handed in.
        dims: the exact number of dimensions to insist on; at least two when left out.

    Raises:
        DataError: ``maps`` is no tensor, has the wrong number of dimensions or is not floating point.
    """
    if not isinstance(maps, Tensor):
        raise DataError(f"Maps must be a torch.Tensor, got {type(maps).__name__}; convert with torch.as_tensor first.")
    if maps.dim() < 2 if dims is None else maps.dim() != dims:
        expected = {None: "[..., H, W]", 2: "[H, W]", 4: "[images, units, H, W]"}[dims]
        raise DataError(f"Maps must have the shape {expected}, got {list(maps.shape)}.")
    if not maps.is_floating_point():
        raise DataError(f"Maps must be floating point, got {maps.dtype}; convert with maps.float() first.")


def widened(maps: Tensor) -> Tensor:
    """Maps in a type that torch computes with: float8, of which versions of torch know more or less, as float32.

    Every float8 value is a float32 value, so births stay the same.

    Raises:
        DataError: torch cannot convert the type, as with packed pairs of float4.
    """
    if maps.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return maps
    try:
        return maps.float()
    except RuntimeError as error:
        raise DataError(f"torch {torch.__version__} cannot convert maps of type {maps.dtype} to float32.") from error


def trivial_births(maps: Tensor) -> Tensor:
    """Births of maps ``[..., H, W]`` that are too small to hold a cycle: 0, or :data:`NON_FINITE`; int32 ``[...]``."""
    finite = torch.isfinite(maps).flatten(-2).all(-1)
    return finite.to(torch.int32) - 1
