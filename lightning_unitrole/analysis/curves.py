"""The ablation curves of one layer, and what switching groups of units off does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from lightning_unitrole.ablation import AblationEngine, AblationRequest, measure_curves
from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.data.sample import Sample
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.units import UnitLayer
from lightning_unitrole.ranking.criteria import Ranking
from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.effects import HELPS, NO_EFFECT
from lightning_unitrole.reports.layer import RemovalCheck

RANDOM_ORDERS = 2
"""Random orders that make the band around the curves."""

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
        effects: Tensor,
        sample: Sample,
        *,
        held_out: bool,
        fill: Tensor | None = None,
    ) -> tuple[dict[str, AblationCurve], RemovalCheck | None]:
        """Curves over all classes, of a ranking, of contributions and of random orders.

        Args:
            ranking: how the criterion ranks the units.
            contributions: what they contribute.
            effects: ``[U]`` what they do over all classes, see :mod:`lightning_unitrole.reports.effects`.
            sample: the images.
            held_out: whether neither ranking nor contributions come from these images; only then is it measured what
                switching off all units without an effect does.
            fill: ``[U, H, W]`` maps of units that are off; zero when left out.
        """
        if not bool(sample.images.any()):
            return {}, None
        most = contributions.overall().mean.nan_to_num(nan=0.0).argsort(descending=True, stable=True)
        requests = {
            **both_ways(ranking.overall),
            "contribution": AblationRequest(most.flip(0)),
            "random": AblationRequest(_random_order(self.layer, 0)),
            **{f"random_{draw}": AblationRequest(_random_order(self.layer, draw)) for draw in range(1, RANDOM_ORDERS)},
        }
        engine = self._engine(sample, fill)
        points = max(self.options.ablation_points // 4, 2)
        found = measure_curves(engine, list(requests.values()), points=points, refine=False)
        curves = {name: curve for name, curve in zip(requests, found, strict=True) if curve is not None}
        return curves, self._check_removal(engine, effects) if held_out else None

    def _check_removal(self, engine: AblationEngine, effects: Tensor) -> RemovalCheck:
        """What switching off all units without a measurable effect does, and what the helpers do alone."""
        units = len(effects)
        removed, helpers = int((effects == NO_EFFECT).sum()), int((effects == HELPS).sum())
        requests = [
            AblationRequest((effects != NO_EFFECT).long().argsort(stable=True)),
            AblationRequest((effects == HELPS).long().argsort(stable=True)),
            *(AblationRequest(_random_order(engine.layer, 1000 + draw)) for draw in range(RANDOM_DRAWS)),
        ]
        numbers = [torch.tensor([0, removed]), torch.tensor([units - helpers])]
        numbers = [torch.unique(one) for one in numbers] + [torch.tensor([removed])] * RANDOM_DRAWS
        sums = self.runner.total(torch.cat(engine.measure(requests, numbers))).cpu()
        means = torch.split(sums[:, :2] / sums[:, 3:], [len(one) for one in numbers])
        random = torch.cat(means[2:])
        return RemovalCheck(
            images=int(sums[0, 3]),
            accuracy=float(means[0][0, 1]),
            loss=float(means[0][0, 0]),
            removed=removed,
            removed_accuracy=float(means[0][-1, 1]),
            removed_loss=float(means[0][-1, 0]),
            helpers=helpers,
            helpers_accuracy=float(means[1][0, 1]),
            helpers_loss=float(means[1][0, 0]),
            random_accuracy=random[:, 1].clone(),
            random_loss=random[:, 0].clone(),
        )

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
