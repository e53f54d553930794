"""Gathering what criteria need while maps pass by: histograms and sums by class and unit, never the maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_unitrole.criteria import UnitStatistics
from lightning_unitrole.topology import count_births, count_dtype

SumOverProcesses = Callable[[Tensor], Tensor]


class UnitRecorder:
    """Sums over the maps of one layer for one split (C classes, U units).

    Args:
        num_classes: number of classes ``C``.
        num_units: number of units ``U``.
        images_per_class: most images of a class that will be recorded; fixes the width of the counters, so that they
            cannot overflow.
        device: where the maps will lie.
        activation: gather means and shares of positive pixels too, at the price of two more reads of the maps.
        max_birth: largest birth point that is told apart.
        max_density: share of the edges that enter the filtration.
        backend: backend of the topology.
    """

    def __init__(
        self,
        num_classes: int,
        num_units: int,
        *,
        images_per_class: int,
        device: torch.device,
        activation: bool = False,
        max_birth: int = 50,
        max_density: float = 0.8,
        backend: str = "auto",
    ) -> None:
        # Buffers made in inference mode could not be updated outside it.
        with torch.inference_mode(False):
            shape = (num_classes, num_units)
            self.images = torch.zeros(num_classes, dtype=torch.int64, device=device)
            self.counts = torch.zeros(*shape, max_birth + 1, dtype=count_dtype(images_per_class), device=device)
            self.non_finite = torch.zeros(shape, dtype=torch.int64, device=device)
            self.activation = torch.zeros(shape, dtype=torch.float64, device=device) if activation else None
            self.positive = torch.zeros(shape, dtype=torch.float64, device=device) if activation else None
        self.max_birth, self.max_density, self.backend = max_birth, max_density, backend

    def update(self, maps: Tensor, groups: Tensor) -> None:
        """Add a batch.

        Args:
            maps: ``[B, U, H, W]`` floats.
            groups: ``[B]`` int64 class indices on the device of ``maps``; images with -1 are passed over.
        """
        maps = maps.detach()
        counted = groups >= 0
        index = groups.clamp(min=0)
        self.images.index_add_(0, index, counted.long())
        count_births(
            maps,
            groups,
            self.counts,
            self.non_finite,
            max_birth=self.max_birth,
            max_density=self.max_density,
            backend=self.backend,
        )
        if self.activation is not None and self.positive is not None:
            mean = maps.mean((2, 3), dtype=torch.float32)
            usable = counted.unsqueeze(1) & mean.isfinite()
            self.activation.index_add_(0, index, torch.where(usable, mean, 0).double())
            share = (maps > 0).mean((2, 3), dtype=torch.float32)
            self.positive.index_add_(0, index, torch.where(usable, share, 0).double())

    def statistics(
        self, filter_norm: Tensor, *, sensitivity: Tensor | None = None, reduce: SumOverProcesses | None = None
    ) -> UnitStatistics:
        """What was gathered, summed over processes, on the CPU.

        Args:
            filter_norm: ``[U]`` L1 norm of each filter.
            sensitivity: ``[C, U]`` sums over images, see :class:`UnitStatistics`.
            reduce: sums a tensor over processes.
        """

        def total(values: Tensor) -> Tensor:
            if reduce is None:
                return values.cpu()
            # No backend of torch.distributed sums 16-bit integers, and sums over processes may not fit them.
            return reduce(values.int() if values.dtype == torch.int16 else values).cpu()

        images = total(self.images)
        non_finite = total(self.non_finite)
        finite = (images.unsqueeze(1) - non_finite).double()
        return UnitStatistics(
            images=images,
            counts=total(self.counts),
            non_finite=non_finite,
            filter_norm=filter_norm.double().cpu(),
            activation=None if self.activation is None else total(self.activation) / finite,
            positive=None if self.positive is None else total(self.positive) / finite,
            sensitivity=None if sensitivity is None else total(sensitivity) / images.unsqueeze(1),
        )
