"""One pass over images, and everything that is gathered in it: histograms, sums and contributions, never the maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.ablation import classification_score
from lightning_unitrole.ablation.attribution import Attribution
from lightning_unitrole.ablation.examples import ExampleCollector
from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.analysis.statistics import UnitRecorder, filter_norm
from lightning_unitrole.data.sample import Images, Sample, Samples
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import UnitLayer
from lightning_unitrole.ranking.criteria import Criterion, Needs, UnitStatistics
from lightning_unitrole.reports.contributions import Contributions


@dataclass(frozen=True)
class Measured:
    """What one pass over a sample gathered about one layer.

    Attributes:
        statistics: of all images.
        halves: of the even and of the odd images of each class.
        contributions: None unless roles or a criterion need them.
        removal: None unless asked for.
        prediction: rank correlation of contribution and removal effect over some units; NaN where not measured.
        fill: ``[U, H, W]`` maps of units that are off; None for zero.
    """

    statistics: UnitStatistics
    halves: tuple[UnitStatistics, UnitStatistics]
    contributions: Contributions | None = None
    removal: Contributions | None = None
    prediction: float = math.nan
    fill: Tensor | None = None


class Observer:
    """Runs images through a model once and gathers what is asked for, layer by layer.

    Args:
        runner: runs the model.
        options: what to analyse and how.
        layers: the layers to look at.
        num_classes: number of classes ``C``.
    """

    def __init__(self, runner: Runner, options: AnalysisOptions, layers: Sequence[UnitLayer], num_classes: int) -> None:
        self.runner, self.options, self.layers, self.num_classes = runner, options, layers, num_classes

    def recorders(self, criteria: Sequence[str | Criterion] | None = None) -> dict[str, UnitRecorder]:
        """An empty recorder for each layer, by the layer's name, that gathers what criteria read."""
        options = self.options
        needs = Needs.of(criteria or [options.criterion])
        return {
            layer.name: UnitRecorder(
                self.num_classes,
                layer,
                images_per_class=options.images_of_each(self.num_classes),
                device=self.runner.device,
                activation=needs.activation,
                max_birth=options.max_birth,
                max_density=options.max_density,
                backend=options.backend,
            )
            for layer in self.layers
        }

    def example_collectors(self, samples: Samples, example_inputs: Any) -> dict[str, ExampleCollector]:
        """An empty collector for each split, of the images that units contribute and respond to most.

        Args:
            samples: the images that will be measured.
            example_inputs: inputs of any batch, which say whether there are images.
        """
        return {
            split: ExampleCollector(
                self.runner, self.layers, int(sample.images.sum()), example_inputs, twins=split == "val"
            )
            for split, sample in (("train", samples.train), ("val", samples.val))
        }

    def measure(
        self,
        sample: Sample,
        criteria: Sequence[str | Criterion] | None = None,
        *,
        recorders: Mapping[str, UnitRecorder] | None = None,
        contributions: bool = False,
        removal: bool = False,
        examples: ExampleCollector | None = None,
        description: str = "Unit roles: recording",
    ) -> dict[str, Measured]:
        """Run the images of a sample through the model once, and gather everything that is asked for.

        Args:
            sample: the images.
            criteria: what will rank the units; by default the criterion of the options.
            recorders: what a validation loop recorded of these images already.
            contributions: measure contributions even if no criterion reads them.
            removal: measure the removal effect of every unit.
            examples: is given the maps and contributions of each image; asks for ``contributions``.
            description: for the progress bar.
        """
        needs = Needs.of(criteria or [self.options.criterion])
        recorded = recorders or self.recorders(criteria)
        contributions = contributions or needs.contribution or removal
        with self.runner.undisturbed():
            fills = self._mean_maps(sample) if contributions and self.options.off == "mean" else {}
            attribution = Attribution(
                self.runner,
                self.layers,
                self.num_classes,
                steps=self.options.contribution_steps,
                score_fn=self.options.score_fn,
                fills=fills,
                removal=removal,
            )
            gradients = _Gradients(self) if needs.gradient else None
            if recorders is None or contributions or gradients is not None:
                with self.runner.progress(int(sample.images.sum()), description) as advance:
                    for images in sample:
                        measured_with = attribution if contributions else None
                        self._measure_batch(images, recorded, recorders is None, measured_with, examples)
                        if gradients is not None:
                            gradients.add(images)
                        for _ in range(len(images.groups)):
                            advance()
        found, predictions = (attribution.results(), attribution.predictions()) if contributions else ({}, {})
        removed = attribution.removal_results()
        measured = {}
        for layer in self.layers:
            name = layer.name
            sensitivity = None if gradients is None else gradients.totals[name]
            whole, *halves = recorded[name].statistics(self.runner, filter_norm(self.runner, layer), sensitivity)
            parts = found.get(name)
            if parts is not None:
                whole, halves = (
                    whole.with_contribution(parts),
                    [half.with_contribution(parts.half(index)) for index, half in enumerate(halves)],
                )
            prediction = predictions.get(name, math.nan)
            measured[name] = Measured(
                whole, (halves[0], halves[1]), parts, removed.get(name), prediction, fills.get(name)
            )
        return measured

    def _measure_batch(
        self,
        images: Images,
        recorders: Mapping[str, UnitRecorder],
        record: bool,
        attribution: Attribution | None,
        examples: ExampleCollector | None,
    ) -> None:
        def take(layer: UnitLayer, maps: Tensor) -> None:
            if record:
                recorders[layer.name].update(maps, images.groups, images.halves)

        if attribution is not None:
            attribution.add(images, take, examples)
        elif record:
            with UnitTap(self.runner.model, self.layers, take):
                self.runner.forward(images.inputs)

    def _mean_maps(self, sample: Sample) -> dict[str, Tensor]:
        """``[U, H, W]`` mean map of each unit over a sample, by layer."""
        sums: dict[str, Tensor] = {}

        def take(layer: UnitLayer, maps: Tensor) -> None:
            total = maps.sum(0, dtype=torch.promote_types(maps.dtype, torch.float32))
            sums[layer.name] = sums.get(layer.name, 0) + total

        with UnitTap(self.runner.model, self.layers, take) as tap:
            for images in sample:
                tap.reset()
                self.runner.forward(images.inputs)
        return {name: self.runner.total(total) / int(sample.images.sum()) for name, total in sums.items()}


class _Gradients:
    """Sums over images of ``|sum over the map of activation x gradient of the loss|``, by half, class and unit."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        device, classes = observer.runner.device, observer.num_classes
        self.totals = {
            layer.name: torch.zeros(2 * classes, layer.num_units, dtype=torch.float64, device=device)
            for layer in observer.layers
        }

    def add(self, images: Images) -> None:
        """Add a batch."""
        observer, tapped = self._observer, dict[str, Tensor]()
        score_fn = observer.options.score_fn or classification_score

        def keep(layer: UnitLayer, maps: Tensor) -> Tensor:
            # Connected to what is behind it, and to the layers before it only through this leaf-like copy.
            tapped[layer.name] = maps if maps.requires_grad else maps.detach().requires_grad_()
            return tapped[layer.name]

        with torch.enable_grad(), UnitTap(observer.runner.model, observer.layers, keep):
            loss = score_fn(observer.runner.forward(images.inputs), images.targets)[0]
            gradients = torch.autograd.grad(loss.sum(), list(tapped.values()), allow_unused=True)
        place = images.halves * observer.num_classes + images.groups
        for (name, maps), gradient in zip(tapped.items(), gradients, strict=True):
            if gradient is not None:
                effect = (maps.detach() * gradient).sum((2, 3)).abs().double()
                self.totals[name].index_add_(0, place, effect)
