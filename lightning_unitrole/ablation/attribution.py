"""What each unit adds to the network's answers: contributions of all units of a layer at once, and removal effects.

Source: integrated gradients, Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, taken at a
hidden layer as in Dhamdhere et al., "How Important Is a Neuron?", ICLR 2019. Permutations: Ghorbani & Zou, "Neuron
Shapley", NeurIPS 2020.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_unitrole.ablation.batch_attribution import BatchAttribution, NoGradientError
from lightning_unitrole.ablation.engine import Memory, run_switched_off
from lightning_unitrole.ablation.examples import ExampleCollector
from lightning_unitrole.ablation.recorder import record_all
from lightning_unitrole.ablation.scores import ScoreFn
from lightning_unitrole.ablation.tape import Tape, UnreplayableError
from lightning_unitrole.ablation.verification import Replay, verify
from lightning_unitrole.data.sample import Images
from lightning_unitrole.network.isolation import with_gradients
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.units import UnitLayer
from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.significance import rank_correlation

TRIED_UNITS, TRIED_IMAGES = 16, 16
"""Units whose removal effect is measured to see how well contributions predict it, and images of all processes."""


def tried_units(num_units: int) -> list[int]:
    """Units of a layer, spread evenly, whose removal effect is measured."""
    return torch.linspace(0, num_units - 1, min(TRIED_UNITS, num_units)).round().long().tolist()


def gauss_legendre(steps: int) -> list[tuple[float, float]]:
    """Nodes and weights of an integral over [0, 1].

    Example:
        >>> [(round(node, 4), round(weight, 4)) for node, weight in gauss_legendre(2)]
        [(0.2113, 0.5), (0.7887, 0.5)]
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(node + 1) / 2, float(weight) / 2) for node, weight in zip(nodes, weights, strict=True)]


class Attribution:
    """Measures the contributions of the units of several layers, batch by batch.

    One forward pass is recorded for all layers; for each node of the integral one forward and one backward pass through
    what lies behind a layer give the contributions of all its units. Only sums by class, unit and half are kept.

    Where the margin cannot be differentiated, because a ``score_fn`` has no gradient or the network works in place,
    contributions come from one sampled permutation of the units for each image, with one warning.

    Args:
        runner: runs the model.
        layers: the layers.
        num_classes: number of classes ``C``.
        steps: nodes of the integral.
        score_fn: see :data:`~lightning_unitrole.ablation.scores.ScoreFn`; its negative loss is the margin then.
        fills: ``[U, H, W]`` maps of units that are off, by layer; zero for layers that are not in it.
        removal: measure the removal effect of every unit too.

    Attributes:
        left_out: number of (image, layer) pairs left out because a margin or a contribution was not finite.
    """

    def __init__(
        self,
        runner: Runner,
        layers: Sequence[UnitLayer],
        num_classes: int,
        *,
        steps: int,
        score_fn: ScoreFn | None = None,
        fills: Mapping[str, Tensor] | None = None,
        removal: bool = False,
    ) -> None:
        self.runner, self.layers, self.steps = runner, list(layers), steps
        self.left_out = 0
        self._score_fn = score_fn
        self._fills = fills or {}
        self._nodes = gauss_legendre(steps)
        self._sums = {layer.name: _Sums(num_classes, layer.num_units, runner.device) for layer in layers}
        self._removal = {layer.name: _Sums(num_classes, layer.num_units, runner.device) for layer in layers if removal}
        # Sums over images of the contributions and of the removal effects of some units.
        self._tried = {
            name: sums.by_image.new_zeros(2, len(tried_units(sums.num_units))) for name, sums in self._sums.items()
        }
        self._seen = 0
        self._copies: dict[str, set[tuple[int, int]]] = {layer.name: set() for layer in layers}
        self._levels: dict[tuple[str, int], Replay] = {}
        self._without_gradient: dict[str, str] = {}
        self._warned: set[str] = set()
        self._piece = Memory.of(runner.device).piece // (8 if runner.device.type == "cuda" else 1)

    def add(
        self,
        images: Images,
        on_maps: Callable[[UnitLayer, Tensor], None] | None = None,
        examples: ExampleCollector | None = None,
    ) -> None:
        """Add a batch. Call it in an undisturbed model.

        Args:
            images: the batch.
            on_maps: called with the maps of each layer.
            examples: is given the maps and contributions too.

        Raises:
            DataError: if the labels do not fit the outputs.
            TraceError: if the forward pass does not reach a layer.
        """
        if examples is not None:
            examples.begin(images)
        # Gradients of parameters would only cost memory.
        with with_gradients(self.runner.model.parameters(), False):
            tapes = record_all(self.runner, self.layers, images.inputs, self._copies)
            for layer, recorded in zip(self.layers, tapes, strict=True):
                one = self._batch(layer, recorded, images)
                if on_maps is not None:
                    on_maps(layer, one.maps)
                self._add(layer, one, images, examples)
        self._seen += len(images.groups)

    def _add(self, layer: UnitLayer, one: BatchAttribution, images: Images, examples: ExampleCollector | None) -> None:
        contributions, whole = self._contributions(layer, one)
        usable = whole.isfinite() & contributions.isfinite().all(1)
        self.left_out += int((~usable).sum())
        self._sums[layer.name].add(images, contributions, whole, usable)
        if examples is not None:
            examples.add(layer, one.maps, contributions, usable)
        if layer.name in self._removal:
            effects = one.removal_effects(range(layer.num_units))
            self._removal[layer.name].add(images, effects, torch.zeros_like(whole), usable)
        # Of all processes together the first images, however they are dealt out.
        first = -(-(TRIED_IMAGES - self.runner.shard) // self.runner.shards) - self._seen
        if first > 0:
            tried = tried_units(layer.num_units)
            removed = one.removal_effects(tried, first)
            for total, values in zip(self._tried[layer.name], (contributions, removed), strict=True):
                total += values[:first][usable[:first]][:, tried].sum(0)

    def _contributions(self, layer: UnitLayer, one: BatchAttribution) -> tuple[Tensor, Tensor]:
        if layer.name not in self._without_gradient:
            try:
                return one.integrated_gradients(self._nodes)
            except NoGradientError as error:
                self._without_gradient[layer.name] = str(error)
                warnings.warn(
                    f"Layer {layer.name!r}: contributions are estimated from sampled permutations of the units, which "
                    f"takes a pass for each unit, because {error}.",
                    stacklevel=2,
                )
        return one.permuted()

    def results(self) -> dict[str, Contributions]:
        """The contributions of all images of all processes, by layer."""
        return {
            name: sums.total(self.runner, 0 if name in self._without_gradient else self.steps)
            for name, sums in self._sums.items()
        }

    def predictions(self) -> dict[str, float]:
        """How well contributions predict what removing a unit does: rank correlation over some units, by layer."""
        totals = {name: self.runner.total(total).cpu() for name, total in self._tried.items()}
        return {name: float(rank_correlation(*total)) for name, total in totals.items()}

    def removal_results(self) -> dict[str, Contributions]:
        """The removal effects, by layer; empty unless they were asked for."""
        return {name: sums.total(self.runner, 0) for name, sums in self._removal.items()}

    def _batch(self, layer: UnitLayer, recorded: Tape | UnreplayableError, images: Images) -> BatchAttribution:
        fill = self._fills.get(layer.name)
        level, reason = Replay.NONE, "a replay gives other outputs than the whole model"
        if isinstance(recorded, UnreplayableError):
            reason = str(recorded)
        else:
            level = self._level(layer, recorded, images.inputs)
        if level is Replay.NONE and layer.name not in self._warned:
            self._warned.add(layer.name)
            warnings.warn(
                f"Layer {layer.name!r}: what lies behind it cannot be replayed, because {reason}. The whole model runs "
                "for every step of its contributions instead: slower, with the same result.",
                stacklevel=2,
            )
        tape = recorded if isinstance(recorded, Tape) and level is not Replay.NONE else None
        return BatchAttribution(
            self.runner,
            layer,
            images,
            tape,
            piece_bytes=self._piece,
            apart=level is Replay.ANY_ROWS,
            score_fn=self._score_fn,
            fill=fill,
        )

    def _level(self, layer: UnitLayer, tape: Tape, inputs: Any) -> Replay:
        """How far a recording may be taken apart; looked at once for each size of a batch."""
        key = (layer.name, tape.num_rows)
        if key not in self._levels:
            fill = self._fills.get(layer.name)
            self._levels[key] = verify(
                tape, inputs, lambda some, off: run_switched_off(self.runner, layer, some, off, fill), fill
            )
        return self._levels[key]


class _Sums:
    """Sums of one layer over images, by half, class and unit."""

    def __init__(self, num_classes: int, num_units: int, device: torch.device) -> None:
        self.num_classes, self.num_units = num_classes, num_units
        dtype = torch.float32 if device.type == "mps" else torch.float64
        with torch.inference_mode(False):
            self.images = torch.zeros(2 * num_classes, dtype=torch.int64, device=device)
            self.by_unit = torch.zeros(2, 2 * num_classes, num_units, dtype=dtype, device=device)
            self.by_image = torch.zeros(3, 2 * num_classes, dtype=dtype, device=device)

    def add(self, images: Images, values: Tensor, whole: Tensor, usable: Tensor) -> None:
        """Add ``values`` ``[B, U]`` of the usable images, and ``whole`` ``[B]``, what their sum should be."""
        place = (images.halves * self.num_classes + images.groups)[usable]
        values, whole = values[usable].to(self.by_unit.dtype), whole[usable].to(self.by_unit.dtype)
        self.images.index_add_(0, place, torch.ones_like(place))
        self.by_unit[0].index_add_(0, place, values)
        self.by_unit[1].index_add_(0, place, values.square())
        for row, of_image in zip(self.by_image, (whole, whole.abs(), (values.sum(1) - whole).abs()), strict=True):
            row.index_add_(0, place, of_image)

    def total(self, runner: Runner, steps: int) -> Contributions:
        """The sums of all processes, on the CPU."""
        images, by_unit, by_image = (runner.total(one).cpu() for one in (self.images, self.by_unit, self.by_image))
        sums, squares = by_unit.double().view(2, 2, self.num_classes, -1)
        margin, sizes, errors = by_image.double().view(3, 2, self.num_classes)
        return Contributions(
            images.view(2, self.num_classes), sums, squares, margin, sizes, errors, torch.tensor(steps)
        )
