"""Which images each unit contributes most to and responds to most, kept while contributions are streamed.

Of each unit only the few best images are kept, with its maps made small, and of each image a thumbnail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from lightning_unitrole.data.sample import Images
from lightning_unitrole.network.layout import on_grid
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import tensors_in
from lightning_unitrole.network.units import UnitLayer
from lightning_unitrole.reports.examples import KINDS, LayerExamples, Room, SplitExamples, room_for

TWINS = 3
TWIN_UNITS = 2048
"""Layers with more units are not searched for twins: the sums grow with the square of their number."""
THUMBNAIL_BYTES = 1 << 22
"""Memory that the thumbnails of a split take, about."""
_SMALLEST, _LARGEST = 24, 64


class ExampleCollector:
    """Keeps the best images of each unit, batch by batch.

    Args:
        runner: says which share of the images this process has.
        layers: the layers.
        num_images: images that all processes will see.
        example_inputs: inputs of any batch, which say whether there are images, and of which shape.
        twins: look for units that contribute to the same images.
    """

    def __init__(
        self, runner: Runner, layers: Sequence[UnitLayer], num_images: int, example_inputs: Any, *, twins: bool
    ) -> None:
        self.runner = runner
        side = int(math.sqrt(THUMBNAIL_BYTES / (3 * max(num_images, 1))))
        example = make_thumbnails(example_inputs, min(_LARGEST, max(_SMALLEST, side)))
        room = Room(0, 1) if example is None else room_for(sum(layer.num_units for layer in layers))
        self._shape = None if example is None else tuple(example.shape[1:])
        self._layers = {layer.name: _BestImages(layer, room, runner.device, twins=twins) for layer in layers}
        self._thumbnails: list[Tensor] = []
        self._classes: list[Tensor] = []
        self._seen = 0

    def begin(self, images: Images) -> None:
        """Take in the images of a batch; what the layers make of them follows."""
        size = len(images.groups)
        own = torch.arange(self._seen, self._seen + size, device=images.groups.device)
        self._places = own * self.runner.shards + self.runner.shard
        self._seen += size
        if self._shape is not None:
            pictures = make_thumbnails(images.inputs, self._shape)
            self._thumbnails.append(torch.zeros(size, *self._shape) if pictures is None else pictures)
            self._classes.append(images.groups.cpu())

    def add(self, layer: UnitLayer, maps: Tensor, contributions: Tensor, usable: Tensor) -> None:
        """Add what a layer makes of the batch.

        Args:
            layer: the layer.
            maps: ``[B, U, H, W]``.
            contributions: ``[B, U]``.
            usable: ``[B]`` bool, images whose contributions are finite.
        """
        arranged = on_grid(layer, maps)
        self._layers[layer.name].add(self._places, maps if arranged is None else arranged, contributions, usable)

    def result(self) -> SplitExamples:
        """The best images of all processes, on the CPU."""
        with torch.inference_mode(False):
            found = {name: best.merged(self.runner) for name, best in self._layers.items()}
            every = {place for one in found.values() for place in one.images.flatten().tolist()}
            chosen = torch.tensor(sorted(every - {-1}), dtype=torch.int64)
            layers = {name: replace(one, images=_renumbered(one.images, chosen)) for name, one in found.items()}
            return SplitExamples(*self._pictures(chosen), layers)

    def _pictures(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Thumbnails and classes of some images, whichever process saw them."""
        pictures = torch.zeros(len(chosen), *(self._shape or (1, 1, 1)), dtype=torch.int32)
        classes = torch.zeros(len(chosen), dtype=torch.int64)
        own = chosen % self.runner.shards == self.runner.shard
        if bool(own.any()):
            rows = chosen[own] // self.runner.shards
            pictures[own] = torch.cat(self._thumbnails)[rows].int()
            classes[own] = torch.cat(self._classes)[rows]
        pictures, classes = (self.runner.total(one).cpu() for one in (pictures, classes))
        return pictures.to(torch.uint8), classes


def _renumbered(places: Tensor, chosen: Tensor) -> Tensor:
    """Places among the chosen images, which are sorted, in place of those among all."""
    return torch.where(places >= 0, torch.searchsorted(chosen, places.clamp(min=0)), -1)


class _BestImages:
    """The best images of the units of one layer so far, and sums for the correlation of their contributions."""

    def __init__(self, layer: UnitLayer, room: Room, device: torch.device, *, twins: bool) -> None:
        height, width = layer.map_size
        self.size = min(height, room.map_side), min(width, room.map_side)
        shape = (len(KINDS), room.images, layer.num_units)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        with torch.inference_mode(False):
            self.values = torch.full(shape, -torch.inf, device=device)
            self.places = torch.full(shape, -1, dtype=torch.int64, device=device)
            self.maps = torch.zeros(*shape, *self.size, device=device)
            compared = layer.num_units if twins and layer.num_units <= TWIN_UNITS else 0
            self.images = torch.zeros((), dtype=torch.int64, device=device)
            self.sums = torch.zeros(compared, dtype=dtype, device=device)
            self.products = torch.zeros(compared, compared, dtype=dtype, device=device)

    def add(self, places: Tensor, maps: Tensor, contributions: Tensor, usable: Tensor) -> None:
        if len(self.sums):
            each = contributions[usable].to(self.sums.dtype)
            self.images += len(each)
            self.sums += each.sum(0)
            self.products += each.T @ each
        kept = self.values.shape[1]
        if not kept:
            return
        peaks = maps.amax((2, 3))
        new = torch.stack([contributions.float(), peaks.float()])
        new = torch.where(usable.unsqueeze(1) & new.isfinite(), new, -torch.inf)
        self.values, best = torch.cat([self.values, new], 1).topk(kept, dim=1)
        shape = (len(KINDS), len(places), maps.shape[1])
        ids = torch.where(new.isfinite(), places.view(1, -1, 1).expand(shape), -1)
        self.places = torch.cat([self.places, ids], 1).gather(1, best)
        small = adaptive_avg_pool2d(_able(maps), self.size).to(self.maps)
        units = torch.arange(maps.shape[1], device=maps.device)
        old = self.maps.gather(1, best.clamp(max=kept - 1)[..., None, None].expand(*best.shape, *self.size))
        self.maps = torch.where((best < kept)[..., None, None], old, small[(best - kept).clamp(min=0), units])

    def merged(self, runner: Runner) -> LayerExamples:
        """The best of all processes, on the CPU."""

        def every(own: Tensor) -> Tensor:
            # [2, processes * K, U, ...]
            slots = own.new_zeros(runner.shards, *own.shape)
            slots[runner.shard] = own
            return runner.total(slots).transpose(0, 1).flatten(1, 2).cpu()

        values, places, maps = every(self.values), every(self.places), every(self.maps)
        values, best = values.topk(self.values.shape[1], dim=1)
        places = places.gather(1, best)
        maps = maps.gather(1, best[..., None, None].expand(*best.shape, *self.size)).clamp(min=0).nan_to_num()
        largest = maps.amax((0, 1, 3, 4)).clamp(min=1e-12) if maps.numel() else maps.new_ones(maps.shape[2])
        shades = (255 * maps / largest[:, None, None]).round().to(torch.uint8)
        values = torch.where(places >= 0, values, torch.nan)
        totals = [runner.total(one).cpu() for one in (self.images, self.sums, self.products)]
        return LayerExamples(places, values, shades, *find_twins(*totals, units=values.shape[2]))


def find_twins(images: Tensor, sums: Tensor, products: Tensor, *, units: int) -> tuple[Tensor, Tensor]:
    """Which units contribute most alike, from sums over images.

    Args:
        images: ``[]``, number of images.
        sums: ``[U]``, of the contributions.
        products: ``[U, U]``, of their products.
        units: number of units, for where there are no sums.

    Returns:
        ``[T, U]`` int64 the units that go most with each, -1 for none, and ``[T, U]`` float32 their correlation.
    """
    if not len(sums) or int(images) < 3:
        return torch.zeros(0, units, dtype=torch.int64), torch.zeros(0, units)
    covariance = products.double() / images - torch.outer(sums.double(), sums.double()) / images**2
    spread = covariance.diagonal().clamp(min=0).sqrt()
    scale = torch.outer(spread, spread)
    noise = 1e-6 * products.diagonal().double().abs() / images  # a unit that does the same to all images has no twin
    known = (covariance.diagonal() > noise).logical_and(spread > 0)
    correlation = torch.where(torch.outer(known, known), covariance / scale, -torch.inf)
    correlation.fill_diagonal_(-torch.inf)
    best, twins = correlation.topk(min(TWINS, units - 1), dim=0)
    return torch.where(best.isfinite(), twins, -1), torch.where(best.isfinite(), best, torch.nan).float()


def make_thumbnails(inputs: Any, shape: int | tuple[int, ...]) -> Tensor | None:
    """``[B, h, w, 1 or 3]`` uint8 of a batch, on the CPU, each stretched to its own range; None for no images.

    Args:
        inputs: what the model is called with; its first tensor that may hold images counts.
        shape: longest side of a thumbnail, or their ``(h, w, 1 or 3)``.
    """
    candidates = (one for one in tensors_in(inputs) if one.ndim == 4 and one.shape[1] in (1, 3))
    images = next(candidates, None)
    if images is None or images.is_complex():
        return None
    images = _able(images.detach()).float().nan_to_num()
    height, width = images.shape[2:]
    if isinstance(shape, int):
        shrink = min(1.0, shape / max(height, width))
        shape = (max(1, round(height * shrink)), max(1, round(width * shrink)), images.shape[1])
    if shape[2] != images.shape[1]:
        return None
    if shape[:2] != (height, width):
        images = interpolate(images, size=shape[:2], mode="bilinear", antialias=True)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    shades = 255 * (images - low) / (high - low).clamp(min=1e-12)
    return shades.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def _able(values: Tensor) -> Tensor:
    """The same where every size can be made of it: Metal cannot shrink to sizes that do not divide."""
    return values.cpu() if values.device.type == "mps" else values
