"""The ablation curves of one layer, and what switching groups of units off does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from lightning_unitrole.ablation import (
    AblationEngine,
    AblationRequest,
    even_points,
    falling_points,
    follow_curves,
    measure_curves,
)
from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.data.sample import Sample
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.units import UnitLayer
from lightning_unitrole.ranking.criteria import Ranking
from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.layer import RemovalCheck

RANDOM_ORDERS = 2
"""Random orders that make the band around the curves."""

_FIRST_POINTS = 5
"""Points of a curve that are measured before it is seen where more are needed."""

RANDOM_DRAWS = 5
"""Draws of random units against which switching off units without an effect is held."""

Key = TypeVar("Key")


class LayerCurves:
    """Measures the curves of one layer.

    Args:
        runner: runs the model.
        options: how many points, on how many images, and what a unit gives that is off.
        layer: the layer.
    """

    def __init__(self, runner: Runner, options: AnalysisOptions, layer: UnitLayer) -> None:
        self.runner, self.options, self.layer = runner, options, layer

    def most_passes(self) -> tuple[int, int]:
        """Passes of one image, at most, that :meth:`published` and :meth:`overall` take through what lies behind."""
        published, overall = (
            min(points, self.layer.num_units + 1) for points in (self.options.ablation_points, self._most_points)
        )
        # Three orders over all classes, and that of the image's own class.
        return 4 * published, (3 + RANDOM_ORDERS) * overall + 2 + RANDOM_DRAWS

    @property
    def _most_points(self) -> int:
        """Number of points, at most, of a curve on which no turning point is looked for."""
        return max(self.options.ablation_points // 4, 2)

    def published(
        self, ranking: Ranking, sample: Sample
    ) -> tuple[dict[str, AblationCurve], tuple[AblationCurve | None, ...]]:
        """Curves over all classes and for each class, with their turning points located."""
        if not self.options.ablation_points:
            return {}, ()
        overall = {**both_ways(ranking.overall), "random": AblationRequest(_random_order(self.layer, 0))}
        of_class = {
            index: AblationRequest(ranking.order[index].flip(0), group=index)
            for index in range(sample.num_groups)
            if int(sample.images[index])
        }
        curves = self.measure({**overall, **of_class}, sample)
        return {name: curves[name] for name in overall}, tuple(map(curves.get, range(sample.num_groups)))

    def overall(
        self,
        ranking: Ranking,
        contributions: Contributions,
        helps: Tensor,
        idle: Tensor,
        sample: Sample,
        *,
        held_out: bool,
        fill: Tensor | None = None,
    ) -> tuple[dict[str, AblationCurve], RemovalCheck | None]:
        """Curves over all classes, of a ranking, of contributions and of random orders.

        Args:
            ranking: how the criterion ranks the units.
            contributions: what they contribute.
            helps: ``[U]`` bool, units that help over all classes.
            idle: ``[U]`` bool, units without a measurable effect.
            sample: the images.
            held_out: whether neither ranking nor contributions come from these images; only then is it measured what
                switching off all units without an effect does.
            fill: ``[U, H, W]`` maps of units that are off; zero when left out. With it the ranking's curves are
                measured with units at zero too, as ``"least_first_zero"`` and ``"most_first_zero"``.
        """
        if not bool(sample.images.any()):
            return {}, None
        # By size: a unit that helps some classes and hurts others contributes little on average, and matters all the
        # same.
        size = contributions.by_class().mean.abs().nan_to_num(nan=0.0).mean(0)
        most = size.argsort(descending=True, stable=True)
        requests = {
            **both_ways(ranking.overall),
            "contribution": AblationRequest(most.flip(0)),
            "random": AblationRequest(_random_order(self.layer, 0)),
            **{f"random_{draw}": AblationRequest(_random_order(self.layer, draw)) for draw in range(1, RANDOM_ORDERS)},
        }
        checks = _removals(self.layer, helps, idle) if held_out else []
        # Everything in one go, so that the images are read once.
        curves, sums = self._followed(self._engine(sample, fill), requests, checks)
        if fill is not None:
            with_zero, _ = self._followed(self._engine(sample), both_ways(ranking.overall))
            curves |= {f"{name}_zero": curve for name, curve in with_zero.items()}
        return curves, _check(helps, idle, sums) if held_out else None

    def _followed(
        self,
        engine: AblationEngine,
        requests: Mapping[str, AblationRequest],
        more: Sequence[tuple[AblationRequest, Tensor]] = (),
    ) -> tuple[dict[str, AblationCurve], tuple[Tensor, ...]]:
        """Curves at a few points, and at more where they rise or fall; and the sums of further requests."""
        first = even_points(self.layer.num_units, min(_FIRST_POINTS, self._most_points))
        wanted = partial(falling_points, points=self._most_points)
        curves, sums = follow_curves(engine, list(requests.values()), first, wanted, more=more)
        return {name: curve for name, curve in zip(requests, curves, strict=True) if curve is not None}, sums

    def measure(self, requests: Mapping[Key, AblationRequest], sample: Sample) -> dict[Key, AblationCurve]:
        """Several curves at once, with their turning points located.

        Args:
            requests: the orders, and for each the group of images that count.
            sample: the images.

        Returns:
            A curve for each request that has images.
        """
        curves = measure_curves(self._engine(sample), list(requests.values()), points=self.options.ablation_points)
        return {key: curve for key, curve in zip(requests, curves, strict=True) if curve is not None}

    def _engine(self, sample: Sample, fill: Tensor | None = None) -> AblationEngine:
        return AblationEngine(self.runner, self.layer, lambda: iter(sample), score_fn=self.options.score_fn, fill=fill)


def both_ways(overall: Tensor) -> dict[str, AblationRequest]:
    """An order from the most to the least effective, least and most effective first."""
    return {"least_first": AblationRequest(overall.flip(0)), "most_first": AblationRequest(overall)}


def _random_order(layer: UnitLayer, seed: int) -> Tensor:
    return torch.randperm(layer.num_units, generator=torch.Generator().manual_seed(seed))


def _removals(layer: UnitLayer, helps: Tensor, idle: Tensor) -> list[tuple[AblationRequest, Tensor]]:
    """Without the units that have no measurable effect, with the helpers alone, and without as many random units."""
    removed, helpers = int(idle.sum()), int(helps.sum())
    idle_first = AblationRequest((~idle).long().argsort(stable=True))
    helpers_last = AblationRequest(helps.long().argsort(stable=True))
    draws = [AblationRequest(_random_order(layer, 1000 + draw)) for draw in range(RANDOM_DRAWS)]
    return [
        (idle_first, torch.unique(torch.tensor([0, removed]))),
        (helpers_last, torch.tensor([len(helps) - helpers])),
        *((draw, torch.tensor([removed])) for draw in draws),
    ]


def _check(helps: Tensor, idle: Tensor, sums: Sequence[Tensor]) -> RemovalCheck:
    """What the requests of :func:`_removals` gave."""
    means = [of_request[:, :2] / of_request[:, 3:] for of_request in sums]
    random = torch.cat(means[2:])
    return RemovalCheck(
        images=int(sums[0][0, 3]),
        accuracy=float(means[0][0, 1]),
        loss=float(means[0][0, 0]),
        removed=int(idle.sum()),
        removed_accuracy=float(means[0][-1, 1]),
        removed_loss=float(means[0][-1, 0]),
        helpers=int(helps.sum()),
        helpers_accuracy=float(means[1][0, 1]),
        helpers_loss=float(means[1][0, 0]),
        random_accuracy=random[:, 1].clone(),
        random_loss=random[:, 0].clone(),
    )
