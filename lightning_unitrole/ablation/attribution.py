"""What each unit adds to the network's answers: contributions of all units of a layer at once, and removal effects.

Source: integrated gradients, Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, taken at a
hidden layer as in Dhamdhere et al., "How Important Is a Neuron?", ICLR 2019. Permutations: Ghorbani & Zou, "Neuron
Shapley", NeurIPS 2020.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_unitrole.ablation.engine import Memory, run_switched_off
from lightning_unitrole.ablation.examples import ExampleCollector
from lightning_unitrole.ablation.recorder import record_all
from lightning_unitrole.ablation.scores import ScoreFn, check_classification, margins
from lightning_unitrole.ablation.tape import Tape, UnreplayableError
from lightning_unitrole.ablation.verification import Replay, verify
from lightning_unitrole.data.sample import Images
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import map_tensors, take_rows, tensors_in
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import UnitLayer
from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.significance import rank_correlation

TRIED_UNITS, TRIED_IMAGES = 16, 16
"""Units whose removal effect is measured to see how well contributions predict it, and images of all processes."""

Run = Callable[[Tensor, "Tensor | None"], Any]
"""From maps ``[M, U, H, W]`` in the place of a layer's, and rows ``[M]`` of the batch, to the model's outputs."""


class NoGradientError(Exception):
    """The margin cannot be differentiated with respect to the maps; the message says why."""


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
        with _frozen(self.runner.model):
            tapes = record_all(self.runner, self.layers, images.inputs, self._copies)
            for layer, recorded in zip(self.layers, tapes, strict=True):
                one = _OneBatch(self, layer, recorded, images)
                if on_maps is not None:
                    on_maps(layer, one.maps)
                self._add(layer, one, images, examples)
        self._seen += len(images.groups)

    def _add(self, layer: UnitLayer, one: _OneBatch, images: Images, examples: ExampleCollector | None) -> None:
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

    def _contributions(self, layer: UnitLayer, one: _OneBatch) -> tuple[Tensor, Tensor]:
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

    def level(self, layer: UnitLayer, tape: Tape, inputs: Any) -> Replay:
        """How far a recording may be taken apart; looked at once for each size of a batch."""
        key = (layer.name, tape.num_rows)
        if key not in self._levels:
            fill = self._fills.get(layer.name)
            self._levels[key] = verify(
                tape, inputs, lambda some, off: run_switched_off(self.runner, layer, some, off, fill), fill
            )
        return self._levels[key]

    def warn_unreplayable(self, layer: UnitLayer, reason: str) -> None:
        """Say, once for each layer, that the whole model has to run for each step."""
        if layer.name not in self._warned:
            self._warned.add(layer.name)
            warnings.warn(
                f"Layer {layer.name!r}: what lies behind it cannot be replayed, because {reason}. The whole model runs "
                "for every step of its contributions instead: slower, with the same result.",
                stacklevel=2,
            )


class _OneBatch:
    """One layer and one batch: its maps, and how to run what lies behind them."""

    def __init__(
        self, owner: Attribution, layer: UnitLayer, recorded: Tape | UnreplayableError, images: Images
    ) -> None:
        self._runner, self._layer, self._images = owner.runner, layer, images
        self._score_fn = owner._score_fn
        tape = None if isinstance(recorded, UnreplayableError) else recorded
        level = Replay.NONE if tape is None else owner.level(layer, tape, images.inputs)
        if level is Replay.NONE:
            owner.warn_unreplayable(
                layer, str(recorded) if tape is None else "a replay gives other outputs than the whole model"
            )
        self._tape = None if level is Replay.NONE else tape
        if self._tape is not None:
            self.maps, outputs = self._tape.maps, self._tape.outputs
            rows = max(owner._piece // self._tape.bytes_per_row, 1)
            self._piece = rows if level is Replay.ANY_ROWS else len(self.maps)
            self._apart = level is Replay.ANY_ROWS
            self._one_suffices = self._apart and not self._tape.reads_images
        else:
            self.maps, outputs = self._caught()
            self._piece, self._apart, self._one_suffices = len(self.maps), False, False
        fill = owner._fills.get(layer.name)
        self._fill = torch.zeros_like(self.maps[:1]) if fill is None else fill.to(self.maps).unsqueeze(0)
        if self._score_fn is None:
            check_classification(outputs, images.targets, len(self.maps))
        self._margin = margins(outputs, images.targets, self._score_fn)

    def _caught(self) -> tuple[Tensor, Any]:
        caught: list[Tensor] = []
        with UnitTap(self._runner.model, [self._layer], lambda layer, maps: caught.append(maps.clone())):
            outputs = self._runner.forward(map_tensors(self._images.inputs, torch.clone))
        return caught[0], outputs

    def _run(self, maps: Tensor, rows: Tensor | None) -> Any:
        if self._tape is not None:
            return self._tape.replay_maps(maps, rows)
        with UnitTap(self._runner.model, [self._layer], lambda layer, own: maps):
            return self._runner.forward(map_tensors(self._images.inputs, torch.clone))

    def _pieces(self) -> Iterator[Tensor | None]:
        size = len(self.maps)
        if self._piece >= size:
            yield None
        else:
            yield from torch.split(torch.arange(size, device=self.maps.device), self._piece)

    def _margins(self, outputs: Any, rows: Tensor | None) -> Tensor:
        targets = self._images.targets
        targets = targets if rows is None else take_rows(targets, rows, len(self.maps))
        return margins(outputs, targets, self._score_fn)

    def _margins_of(self, make: Callable[[Tensor | None], Tensor]) -> Tensor:
        """``[B]`` margins with other maps, made for some rows or for all."""
        found = [self._margins(self._run(make(rows), rows), rows) for rows in self._pieces()]
        return torch.cat(found)

    def _some(self, rows: Tensor | None) -> Tensor:
        return self.maps if rows is None else self.maps[rows]

    def integrated_gradients(self, nodes: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
        """``[B, U]`` contributions, and ``[B]`` what the whole layer does to the margin, both float64.

        Raises:
            NoGradientError: if the margin has no gradient.
        """
        off = self._margins_off()
        parts, wide = [], torch.promote_types(self.maps.dtype, torch.float32)
        for rows in self._pieces():
            maps = self._some(rows)
            delta = maps - self._fill
            part = torch.zeros(maps.shape[:2], dtype=self._margin.dtype, device=maps.device)
            for node, weight in nodes:
                gradient = self._gradient(self._fill + node * delta, rows)
                if gradient is not None:
                    part += weight * (gradient.to(wide) * delta.to(wide)).sum((2, 3)).to(part.dtype)
            parts.append(part)
        return torch.cat(parts), self._margin - off

    def _margins_off(self) -> Tensor:
        """``[B]`` margins with the whole layer off; of one image where what lies behind sees nothing of the others."""
        if self._one_suffices:
            outputs = self._run(self._fill.clone(), torch.zeros(1, dtype=torch.int64, device=self.maps.device))
            outputs = map_tensors(outputs, lambda tensor: tensor.expand(len(self.maps), *tensor.shape[1:]))
            return self._margins(outputs, None)
        return self._margins_of(lambda rows: self._fill.expand_as(self._some(rows)).clone())

    def _gradient(self, maps: Tensor, rows: Tensor | None) -> Tensor | None:
        """Gradient of the sum of the margins; None where the outputs do not depend on the maps at all."""
        with torch.enable_grad():
            leaf = maps.requires_grad_()
            try:
                # A copy, because the model may work on its maps in place, which a leaf does not allow.
                outputs = self._run(leaf.clone(), rows)
                if not any(tensor.requires_grad for tensor in tensors_in(outputs)):
                    return None
                margin = self._margins(outputs, rows)
                if not margin.requires_grad:
                    raise NoGradientError("score_fn has no gradient")
                (gradient,) = torch.autograd.grad(margin.sum(), leaf, allow_unused=True)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise NoGradientError(f"the network cannot be differentiated ({error})") from error
        return gradient

    def permuted(self) -> tuple[Tensor, Tensor]:
        """The same as :meth:`integrated_gradients`, from one random permutation of the units for each image."""
        size, units = self.maps.shape[:2]
        generator = torch.Generator().manual_seed(size * units)
        ranks = torch.rand(size, units, generator=generator).argsort(1).argsort(1).to(self.maps.device)
        before = self._margin
        contributions = torch.zeros(size, units, dtype=before.dtype, device=before.device)
        for number in range(units):
            after = self._margins_of(partial(self._without, ranks <= number))
            contributions[ranks == number] = (before - after)[(ranks == number).nonzero()[:, 0]]
            before = after
        return contributions, self._margin - before

    def _without(self, off: Tensor, rows: Tensor | None) -> Tensor:
        off = off if rows is None or len(off) == 1 else off[rows]
        return torch.where(off[:, :, None, None], self._fill, self._some(rows))

    def removal_effects(self, units: Sequence[int], first: int | None = None) -> Tensor:
        """``[B, U]`` what the margin loses when single units are switched off; NaN for units that are not tried.

        Args:
            units: the units to try.
            first: try them on so many images, the first ones, where the recording can be taken apart; None for all.
        """
        size, width = self.maps.shape[:2]
        effects = torch.full((size, width), torch.nan, dtype=self._margin.dtype, device=self._margin.device)
        for unit in units:
            off = torch.zeros(1, width, dtype=torch.bool, device=self.maps.device)
            off[0, unit] = True
            if first is not None and first < size and self._apart:
                rows = torch.arange(first, device=self.maps.device)
                effects[:first, unit] = self._margin[:first] - self._margins(
                    self._run(self._without(off, rows), rows), rows
                )
            else:
                effects[:, unit] = self._margin - self._margins_of(partial(self._without, off))
        return effects


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


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters, which would only cost memory."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
