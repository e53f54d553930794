"""Contributions and removal effects of the units of one layer on one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.ablation.scores import ScoreFn, check_classification, margins
from lightning_unitrole.ablation.tape import Tape
from lightning_unitrole.data.sample import Images
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import map_tensors, take_rows, tensors_in
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import UnitLayer


class NoGradientError(Exception):
    """The margin cannot be differentiated with respect to the maps; the message says why."""


class BatchAttribution:
    """One layer and one batch: its maps, and how to run what lies behind them.

    Args:
        runner: runs the model.
        layer: the layer.
        images: the batch.
        tape: what lies behind the layer, recorded; None if it cannot be replayed.
        piece_bytes: memory that one replay may take.
        apart: whether the recording may be replayed on any choice of the images.
        score_fn: see :data:`~lightning_unitrole.ablation.scores.ScoreFn`; its negative loss is the margin then.
        fill: ``[U, H, W]`` maps of units that are off; zero when left out.

    Attributes:
        maps: ``[B, U, H, W]`` maps of the layer.
    """

    def __init__(
        self,
        runner: Runner,
        layer: UnitLayer,
        images: Images,
        tape: Tape | None,
        *,
        piece_bytes: int,
        apart: bool,
        score_fn: ScoreFn | None = None,
        fill: Tensor | None = None,
    ) -> None:
        self._runner, self._layer, self._images = runner, layer, images
        self._tape, self._apart, self._score_fn = tape, apart, score_fn
        self._piece_bytes = piece_bytes
        self.maps, self._outputs = self._caught() if tape is None else (tape.maps, tape.outputs)
        size = len(self.maps)
        self._piece = max(piece_bytes // tape.bytes_per_row, 1) if tape is not None and apart else size
        self._one_suffices = tape is not None and apart and not tape.reads_images
        self._fill = torch.zeros_like(self.maps[:1]) if fill is None else fill.to(self.maps).unsqueeze(0)
        if score_fn is None:
            check_classification(self._outputs, images.targets, size)
        self._margin = margins(self._outputs, images.targets, score_fn)

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
        if first is None and self._is_linear(fewer_logits_than=len(units)):
            return self._removed_from_logits()
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

    def _is_linear(self, fewer_logits_than: int) -> bool:
        """Whether removal effects follow from the gradients of the logits, and these are few."""
        if self._tape is None or not self._apart or not self._tape.is_linear:
            return False
        return isinstance(self._outputs, Tensor) and self._outputs[0].numel() < fewer_logits_than

    def _removed_from_logits(self) -> Tensor:
        """The same as :meth:`removal_effects`, of all units, where what lies behind them is linear.

        A unit then takes the same from a logit whatever the others do: its part of the logit's gradient.
        """
        effects = []
        size, width = self.maps.shape[:2]
        bytes_per_row = self._outputs[0].numel() * width * self._margin.element_size()
        rows_at_once = max(min(self._piece, self._piece_bytes // bytes_per_row), 1)
        for rows in torch.split(torch.arange(size, device=self.maps.device), rows_at_once):
            delta = self.maps[rows] - self._fill
            with torch.enable_grad():
                leaf = self.maps[rows].requires_grad_()
                logits = self._run(leaf.clone(), rows)
                parts = [
                    (torch.autograd.grad(one.sum(), leaf, retain_graph=True)[0] * delta).sum((2, 3))
                    for one in logits.flatten(1).unbind(1)
                ]
            logits = logits.detach()
            lost = torch.stack(parts, dim=2).view(len(rows), width, *logits.shape[1:])
            left = [self._margin[rows] - self._margins(logits - lost[:, unit], rows) for unit in range(width)]
            effects.append(torch.stack(left, dim=1))
        return torch.cat(effects)
