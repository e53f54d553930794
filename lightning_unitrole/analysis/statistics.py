"""Gathering what criteria need while maps pass by: histograms and sums by class and unit, never the maps."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unitrole.network.layout import on_grid
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.units import UnitLayer
from lightning_unitrole.ranking.criteria import UnitStatistics
from lightning_unitrole.topology import count_births, count_dtype


class UnitRecorder:
    """Sums over the maps of one layer for one split (C classes, U units), the even and the odd images of a class apart.

    Args:
        num_classes: number of classes ``C``.
        layer: the layer, with its ``U`` units; where they have no birth points none is counted.
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
        layer: UnitLayer,
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
            shape = (2 * num_classes, layer.num_units)
            self.images = torch.zeros(2 * num_classes, dtype=torch.int64, device=device)
            self.counts = torch.zeros(*shape, max_birth + 1, dtype=count_dtype(images_per_class), device=device)
            self.non_finite = torch.zeros(shape, dtype=torch.int64, device=device)
            self.activation = torch.zeros(shape, dtype=torch.float64, device=device) if activation else None
            self.positive = torch.zeros(shape, dtype=torch.float64, device=device) if activation else None
        self.num_classes, self.layer = num_classes, layer
        self.max_birth, self.max_density, self.backend = max_birth, max_density, backend

    def update(self, maps: Tensor, groups: Tensor, halves: Tensor) -> None:
        """Add a batch.

        Args:
            maps: ``[B, U, H, W]`` floats.
            groups: ``[B]`` int64 class indices on the device of ``maps``; images with -1 are passed over.
            halves: ``[B]`` int64, 0 for the even and 1 for the odd images of each class.
        """
        maps = maps.detach()
        groups = torch.where(groups >= 0, halves * self.num_classes + groups, groups)
        counted = groups >= 0
        index = groups.clamp(min=0)
        self.images.index_add_(0, index, counted.long())
        arranged = on_grid(self.layer, maps)
        if arranged is None:
            ones = counted.to(self.counts.dtype).unsqueeze(1).expand(-1, self.layer.num_units)
            self.counts[..., 0].index_add_(0, index, ones)
        else:
            count_births(
                arranged,
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
        self, runner: Runner, filter_norm: Tensor | None, sensitivity: Tensor | None = None
    ) -> tuple[UnitStatistics, UnitStatistics, UnitStatistics]:
        """What was gathered, summed over processes, on the CPU: of all images, of the even and of the odd ones.

        Args:
            runner: sums over processes.
            filter_norm: ``[U]`` L1 norm of each filter, or None where it has none.
            sensitivity: ``[2 * C, U]`` sums over images, see :class:`UnitStatistics`.
        """

        def total(values: Tensor) -> Tensor:
            # No backend of torch.distributed sums 16-bit integers, and sums over processes may not fit them.
            summed = runner.total(values.int() if runner.shards > 1 and values.dtype == torch.int16 else values)
            return summed.cpu().view(2, self.num_classes, *summed.shape[1:])

        sums = {
            "images": self.images,
            "counts": self.counts,
            "non_finite": self.non_finite,
            "activation": self.activation,
            "positive": self.positive,
            "sensitivity": sensitivity,
        }
        found = {name: None if values is None else total(values) for name, values in sums.items()}
        norm = None if filter_norm is None else filter_norm.double().cpu()

        def of(part: dict[str, Tensor | None]) -> UnitStatistics:
            images, counts, non_finite = part["images"], part["counts"], part["non_finite"]
            assert images is not None
            assert counts is not None
            assert non_finite is not None
            finite = (images.unsqueeze(1) - non_finite).double()
            activation, positive, sensitivity = (part[name] for name in ("activation", "positive", "sensitivity"))
            return UnitStatistics(
                images=images,
                counts=counts,
                non_finite=non_finite,
                filter_norm=norm,
                activation=None if activation is None else activation / finite,
                positive=None if positive is None else positive / finite,
                sensitivity=None if sensitivity is None else sensitivity / images.unsqueeze(1),
            )

        whole = {name: None if values is None else values.sum(0, dtype=values.dtype) for name, values in found.items()}
        halves = [{name: None if values is None else values[half] for name, values in found.items()} for half in (0, 1)]
        return of(whole), of(halves[0]), of(halves[1])


def filter_norm(runner: Runner, layer: UnitLayer) -> Tensor | None:
    """``[U]`` L1 norm of the weights of each filter of a layer; None where the module holds no such weights."""
    module = runner.model.get_submodule(layer.conv)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return None
    weight = weight.detach()
    if getattr(module, "transposed", False):
        # [in, out / groups, ...]: the filters of one group lie behind those of the group before.
        groups = int(getattr(module, "groups", 1))
        weight = weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.abs().flatten(1).sum(1) if len(weight) == layer.num_units else None
