"""Integers that sort as floats do.

Births depend on the order of the values only, so the compiled backends compare bits.
"""

import torch
from torch import Tensor

_INTEGER_VIEW = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
}


def as_integers(maps: Tensor) -> tuple[Tensor, int]:
    """The bits of ``maps [B, U, H, W]`` as sign and magnitude in 16 or 32 bits, and the magnitude of infinity.

    float32, float16 and bfloat16 are viewed where they lie. float64 does not fit: its values are replaced by their
    dense ranks within each map, which are in the same order.
    """
    if maps.dtype == torch.float64:
        return _ranks(maps), 0x7F800000
    integer, infinity = _INTEGER_VIEW[maps.dtype]
    return maps.view(integer), infinity


def _ranks(maps: Tensor) -> Tensor:
    flat = maps.flatten(2)
    value, order = flat.sort(dim=2)
    rank = torch.zeros_like(order, dtype=torch.int32)
    rank[:, :, 1:] = (value[:, :, 1:] != value[:, :, :-1]).cumsum(2)
    ranks = torch.empty_like(rank).scatter_(2, order, rank)
    finite = torch.isfinite(flat).all(2, keepdim=True)
    return torch.where(finite, ranks, 0x7F800000).view(maps.shape)
