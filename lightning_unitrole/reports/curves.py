"""Ablation curves, and those of several criteria side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.reports.figures import draw_curve, subplots
from lightning_unitrole.reports.tables import text_table

_ROUNDING = 1e-6


@dataclass(frozen=True, repr=False)
class AblationCurve:
    """Performance after switching off more and more units of one layer.

    Attributes:
        ablated: ``[P]`` int64, numbers of units that are off, strictly increasing, from 0 to all of them.
        loss: ``[P]`` float64, mean loss over the images.
        accuracy: ``[P]`` float64 in [0, 1]; with a ``score_fn`` its mean score.
        top5: ``[P]`` float64 in [0, 1]; NaN where a top-5 accuracy has no meaning.
    """

    ablated: Tensor
    loss: Tensor
    accuracy: Tensor
    top5: Tensor

    def __repr__(self) -> str:
        ends = f"accuracy {float(self.accuracy[0]):.3f} to {float(self.accuracy[-1]):.3f}"
        return f"AblationCurve({len(self.ablated)} points, {int(self.ablated[-1])} units, {ends})"

    def plot(self, ax: Any = None, *, label: str | None = None) -> tuple[Any, Any]:
        """Accuracy over the number of units that are switched off, with the turning point.

        Args:
            ax: Matplotlib axes to draw in; a new figure by default.
            label: name of the curve, for a legend.

        Returns:
            The figure and the axes.

        Raises:
            ImportError: if Matplotlib is not installed.
        """
        figure, axes = subplots(ax)
        draw_curve(axes, self, label)
        return figure, axes

    @property
    def turning_point(self) -> int:
        """Largest number of ablated units at which the loss is at its minimum (arXiv:2103.09716, section 4).

        Losses within one part in a million of the minimum count as equal to it: else rounding, which differs with the
        size of a batch, would decide about units that have no effect.
        """
        return _last_minimum(self.ablated, self.loss)

    @property
    def turning_point_by_accuracy(self) -> int:
        """Largest number of ablated units at which the accuracy is at its maximum."""
        return _last_minimum(self.ablated, -self.accuracy)

    @property
    def area(self) -> float:
        """Area under the accuracy curve over the *share* of ablated units, in [0, 1]."""
        span = float(self.ablated[-1] - self.ablated[0])
        if span == 0:
            return float(self.accuracy[0])
        return float(torch.trapezoid(self.accuracy, self.ablated.double())) / span


def _last_minimum(ablated: Tensor, values: Tensor) -> int:
    """Largest entry of ``ablated`` at which ``values`` is smallest up to rounding; NaN counts as largest.

    Where all are NaN nothing speaks against any unit, and it is the smallest entry.
    """
    if bool(values.isnan().all()):
        return int(ablated.min())
    values = values.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf"))
    smallest = values.min()
    return int(ablated[values <= smallest + _ROUNDING * smallest.abs()].max())


@dataclass(frozen=True)
class CriterionCurves:
    """What the ranking of one criterion does to one layer, on the images of all classes.

    Attributes:
        least_first: ablation curve, least effective units first.
        most_first: ablation curve, most effective units first.
    """

    least_first: AblationCurve
    most_first: AblationCurve

    @property
    def ranking_gap(self) -> float:
        """Area between the two accuracy curves; positive: the ranking knows something."""
        return self.least_first.area - self.most_first.area


@dataclass(frozen=True, repr=False)
class CriteriaComparison:
    """The curves of several criteria.

    Attributes:
        layers: by layer and by name of the criterion.
    """

    layers: Mapping[str, Mapping[str, CriterionCurves]]

    def __repr__(self) -> str:
        criteria = ", ".join(next(iter(self.layers.values()), {}))
        return f"CriteriaComparison({len(self.layers)} layers, criteria: {criteria})"

    def only(self, layers: Sequence[str]) -> CriteriaComparison:
        """The same for some of the layers."""
        return CriteriaComparison({layer: self.layers[layer] for layer in layers})

    def best(self) -> str | None:
        """Name of the criterion with the largest mean ranking gap over the layers; None if the random control wins."""
        names = next(iter(self.layers.values())).keys()
        gap = {name: sum(curves[name].ranking_gap for curves in self.layers.values()) for name in names}
        winner = max(gap, key=lambda name: gap[name])
        return None if winner == "random" else winner

    def rows(self, layer: str) -> list[list[str]]:
        """A layer's table of areas under the accuracy curves, head first, the largest ranking gap on top."""
        ranked = sorted(self.layers[layer].items(), key=lambda item: -item[1].ranking_gap)
        return [
            ["criterion", "area least first", "area most first", "ranking gap"],
            *(
                [name, f"{found.least_first.area:.3f}", f"{found.most_first.area:.3f}", f"{found.ranking_gap:+.3f}"]
                for name, found in ranked
            ),
        ]

    def table(self) -> str:
        """The tables of all layers as plain text."""
        return "\n\n".join(f"{layer}\n{text_table(self.rows(layer))}" for layer in self.layers)
