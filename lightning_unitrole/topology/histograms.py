"""Adds births to the histograms of their classes, for the backends that do not count on their own."""

import torch
from torch import Tensor


def scatter_births(births: Tensor, groups: Tensor, counts: Tensor, non_finite: Tensor) -> None:
    """Add raw ``births [images, units]`` to the histograms of ``count_births``, without waiting."""
    units, bins = counts.shape[1:]
    unit = torch.arange(units, device=births.device)
    row = groups.clamp(min=0)[:, None] * units + unit
    kept = (groups >= 0)[:, None]
    finite = births >= 0
    _add(counts, row * bins + births.clamp(min=0), kept & finite)
    _add(non_finite, row, kept & ~finite)


def _add(histogram: Tensor, index: Tensor, amount: Tensor) -> None:
    """``histogram.flatten()[index] += amount``, repeated indices included."""
    flat = histogram.view(-1) if histogram.is_contiguous() else histogram.flatten()
    flat.index_add_(0, index.flatten(), amount.flatten().to(histogram.dtype))
    if not histogram.is_contiguous():
        histogram.copy_(flat.view(histogram.shape))
