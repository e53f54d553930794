"""The one road from images to a report: record, rank, ablate, assign roles.

``analyze``, the monitor and pruning all walk it; see ``docs/architecture.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.ablation import classification_score, first_tensor
from lightning_unitrole.analysis.curves import LayerCurves, both_ways
from lightning_unitrole.analysis.observer import Measured, Observer
from lightning_unitrole.analysis.options import AnalysisOptions, options_of
from lightning_unitrole.analysis.rules import first_outputs, with_rules
from lightning_unitrole.analysis.statistics import UnitRecorder
from lightning_unitrole.data.batches import split_batch
from lightning_unitrole.data.loaders import DataSource
from lightning_unitrole.data.probe import Probe
from lightning_unitrole.data.sample import Sample, Samples
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.outputs import named_logits
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import tensors_in
from lightning_unitrole.network.units import MIN_MAP_SIZE, UnitLayer, find_unit_layers, select_layers
from lightning_unitrole.ranking.criteria import (
    Criterion,
    Ranking,
    criterion_names,
    rank,
    resolve_criterion,
    score_units,
)
from lightning_unitrole.ranking.entropy import feature_entropy
from lightning_unitrole.reports.curves import AblationCurve, CriteriaComparison, CriterionCurves
from lightning_unitrole.reports.effects import (
    HELPS,
    agreement_between_halves,
    class_effects,
    overall_effects,
    roles_from_effects,
    without_effect,
)
from lightning_unitrole.reports.layer import LayerReport, SplitReport, turning_point_roles
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.roles import summarize_roles
from lightning_unitrole.reports.significance import rank_correlation
from lightning_unitrole.topology import birth_points

ENTROPY_MAP_SIZE = 6
"""Rows or columns of maps, at least, that ``layers="auto"`` takes for feature entropy: maps of 4x4 have hardly any
birth points to tell apart."""


class AnalysisSession:
    """The pipeline for one model as it is now, with the layers found on a first batch.

    Args:
        runner: runs the model.
        options: what to analyse and how.
        batch: any batch, already on the model's device; two images are enough.
        class_names: what the data call their classes, for where the options do not; passed over where it does not fit.
        more: reads a larger batch, which is looked at where two images do not tell the task.

    Attributes:
        layers: the chosen layers, in the order in which the model runs them.
        num_found: number of layers that could be chosen.
        skipped: for each convolution that was left out, why.
        num_classes: number of classes or groups.
        curve_images: images of each class to measure curves on, at most.
        class_names: a name for each.
        example_inputs: the inputs of ``batch``.
        task: what the network is taken to do, in one line; None for single-label classification.
        score_name: what the score of an image is called, such as accuracy.
        observer: runs images through the model and gathers what is asked for.

    Raises:
        SettingError: if a layer is unknown or cannot be analysed.
        DataError: if the batch has no labels, or the number of classes cannot be seen from the outputs.
        BackendError: if the topology backend cannot run on the model's device.
    """

    def __init__(
        self,
        runner: Runner,
        options: AnalysisOptions,
        batch: Any,
        class_names: Sequence[str] | None = None,
        *,
        more: Callable[[], Any] | None = None,
    ) -> None:
        self.runner = runner
        birth_points(torch.zeros(0, 4, 4, device=runner.device), backend=options.backend)
        self.example_inputs, targets = split_batch(batch, options.batch_fn)
        with runner.undisturbed(parameters=True):
            outputs = first_outputs(runner, options, self.example_inputs, class_names)
            options, self.task, self.score_name = with_rules(options, outputs, targets, more)
            self.options = options
            found = find_unit_layers(runner.forward, runner.model, self.example_inputs)
            smallest = ENTROPY_MAP_SIZE if options.criterion == "feature_entropy" else MIN_MAP_SIZE
            self.num_found = len(found.main)
            self.layers: list[UnitLayer] = select_layers(found, options.layers, smallest=smallest)
            if options.criterion == "feature_entropy" and not any(layer.grid for layer in self.layers):
                self.options = options = options_of(options, criterion="contribution")
            self.skipped = {**found.skipped, **self._too_small(found.layers.values(), smallest)}
            self.num_classes = self._count_classes(outputs)
            self.curve_images = options.curve_images_of_each(self.num_classes)
        if class_names is None or len(class_names) != self.num_classes or options.group_fn is not None:
            class_names = [str(index) for index in range(self.num_classes)]
        names = options.class_names or class_names
        self.class_names = tuple(str(name) for name in names)
        self.observer = Observer(runner, options, self.layers, self.num_classes)

    @property
    def images_per_class(self) -> int:
        """Images of each class to use, at most."""
        return self.options.images_of_each(self.num_classes)

    @property
    def roles_by_contribution(self) -> bool:
        """Whether roles come from contributions; without ablation there are no roles."""
        return self.options.roles == "contribution" and bool(self.options.ablation_points)

    def most_passes(self) -> int:
        """Forward passes of one image, at most, that a report takes; a backward pass counts as two.

        Most of them run only what lies behind a layer, so that the time is well below that of so many whole passes.
        """
        options, images = self.options, 2 * self.images_per_class * self.num_classes
        published, overall = map(sum, zip(*(self.curves(layer).most_passes() for layer in self.layers), strict=True))
        passes = images
        if not self.roles_by_contribution or options.class_curves:
            passes += images * published
        if self.roles_by_contribution:
            single = sum(layer.num_units for layer in self.layers) if options.effects == "removal" else 0
            passes += images * (3 * options.contribution_steps * len(self.layers) + single)
            passes += self.curve_images * self.num_classes * overall
        return passes

    def probe(self, source: DataSource, *, name: str, held_out: bool = False) -> Probe:
        """The first images of each class of a data source.

        Args:
            source: the data.
            name: what to call them in messages.
            held_out: look for images to measure curves on as well.
        """
        more = self.curve_images if held_out and self.roles_by_contribution else 0
        return Probe(
            source,
            name=name,
            num_groups=self.num_classes,
            images_per_group=self.images_per_class + more,
            batch_fn=self.options.batch_fn,
            group_fn=self.options.group_fn,
        )

    def sample(self, probe: Probe, quota: Tensor | None = None, start: Tensor | None = None) -> Sample:
        """Images of a probe: by default all of them, up to ``images_per_class``."""
        quota = probe.available().clamp(max=self.images_per_class) if quota is None else quota
        start = torch.zeros_like(quota) if start is None else start
        return Sample(probe, quota, start, self.runner, self.options.batch_fn)

    def samples(self, train: Probe, val: Probe) -> Samples:
        """As many images of each class on both sides, and images for the curves.

        Entropy that is estimated from fewer images is biased low, so unequal numbers would fake a difference.

        Raises:
            DataError: if no class has images on both sides.
        """
        available = val.available()
        quota = torch.minimum(train.available(), available).clamp(max=self.images_per_class)
        if not bool(quota.any()):
            found = train.available(), available
            raise DataError(
                f"No class has images on both sides: training has {int(found[0].sum())} images of "
                f"{int((found[0] > 0).sum())} classes, validation {int(found[1].sum())} of "
                f"{int((found[1] > 0).sum())}. Check that neither set is empty and that both use the same labels."
            )
        on_train, on_val = self.sample(train, quota), self.sample(val, quota)
        if not self.roles_by_contribution:
            on_val = on_val.to_keep()
            return Samples(on_train.to_keep(), on_val, on_val, held_out=False)
        beyond = torch.where(quota > 0, torch.minimum(available, quota + self.curve_images), quota)
        held_out = bool((beyond > quota)[quota > 0].all())
        if held_out:
            on_curves = self.sample(val, beyond, quota)
        else:
            on_curves = self.sample(val, quota.clamp(max=self.curve_images))
        return Samples(on_train, on_val, on_curves.to_keep(), held_out)

    def report(
        self,
        samples: Samples,
        *,
        recorders: Mapping[str, UnitRecorder] | None = None,
        examples: bool = False,
        epoch: int = 0,
        global_step: int = 0,
    ) -> UnitReport:
        """Measure both sides, ablate, and assign roles.

        Args:
            samples: the images.
            recorders: what a validation loop recorded of the validation images already.
            examples: keep the images that units contribute and respond to most; only with roles by contribution.
            epoch: epoch of the trainer.
            global_step: optimizer steps taken so far.
        """
        by_contribution = self.roles_by_contribution
        removal = by_contribution and self.options.effects == "removal"
        wanted = examples and by_contribution
        kept = self.observer.example_collectors(samples, self.example_inputs) if wanted else {}
        measure = partial(self.observer.measure, contributions=by_contribution, removal=removal)
        train = measure(samples.train, examples=kept.get("train"))
        val = measure(samples.val, recorders=recorders, examples=kept.get("val"))
        layers = {}
        steps = len(self.layers) if self.options.ablation_points else 0
        with self.runner.undisturbed(), self.runner.progress(steps, "Unit roles: ablation") as advance:
            for layer in self.layers:
                pair = train[layer.name], val[layer.name]
                road = self._by_contribution if by_contribution else self._by_turning_point
                layers[layer.name] = road(layer, *pair, samples)
                advance()
        for sample in samples[:3]:
            sample.release()
        return UnitReport(
            layers=layers,
            skipped=dict(self.skipped),
            class_names=self.class_names,
            criterion=resolve_criterion(self.options.criterion)[0],
            epoch=epoch,
            global_step=global_step,
            role_definition=self.options.roles,
            examples={split: collector.result() for split, collector in kept.items()},
        )

    def _by_turning_point(self, layer: UnitLayer, train: Measured, val: Measured, samples: Samples) -> LayerReport:
        """Roles as published: from the turning points of the curve of each class, on either side."""
        splits = []
        for measured, sample in ((train, samples.train), (val, samples.val)):
            ranking = rank(self.options.criterion, measured.statistics)
            curves = self.curves(layer).published(ranking, sample)
            splits.append(self._split(measured, ranking, *curves))
        roles = turning_point_roles(*splits)
        summary = summarize_roles(roles) if len(roles) else torch.zeros(0, dtype=torch.uint8)
        return LayerReport(layer.name, layer.map_size, splits[0], splits[1], roles, summary, macs=layer.macs)

    def _by_contribution(self, layer: UnitLayer, train: Measured, val: Measured, samples: Samples) -> LayerReport:
        """Roles from tests of what units contribute; curves over all classes on images that the roles have not seen."""
        assert train.contributions is not None
        assert val.contributions is not None
        sides = train.contributions, val.contributions
        rankings = [rank(self.options.criterion, measured.statistics) for measured in (train, val)]
        effects, summary = class_effects(*sides), overall_effects(*sides)
        by_class: list[tuple[dict[str, AblationCurve], tuple[AblationCurve | None, ...]]] = [({}, ()), ({}, ())]
        if self.options.class_curves:
            by_class = [
                self.curves(layer).published(ranking, sample)
                for ranking, sample in zip(rankings, samples[:2], strict=True)
            ]
        curves, check = self.curves(layer).overall(
            rankings[1],
            val.contributions,
            summary.val == HELPS,
            without_effect(effects, summary),
            samples.curves,
            held_out=samples.held_out,
            fill=val.fill,
        )
        return LayerReport(
            name=layer.name,
            map_size=layer.map_size,
            train=self._split(train, rankings[0], *by_class[0]),
            val=self._split(val, rankings[1], curves, by_class[1][1]),
            roles=roles_from_effects(effects, torch.minimum(*(side.images.sum(0) for side in sides))),
            summary=roles_from_effects(summary),
            effects=effects,
            summary_effects=summary,
            agreement=agreement_between_halves(*sides),
            prediction=val.prediction,
            check=check,
            macs=layer.macs,
        )

    def _split(
        self,
        measured: Measured,
        ranking: Ranking,
        curves: Mapping[str, AblationCurve],
        class_curves: tuple[AblationCurve | None, ...],
    ) -> SplitReport:
        statistics = measured.statistics
        entropy, selective_rate, ineffectiveness = feature_entropy(statistics.counts)
        scores = [score_units(self.options.criterion, half) for half in measured.halves]
        return SplitReport(
            images=statistics.images,
            entropy=entropy,
            selective_rate=selective_rate,
            ineffectiveness=ineffectiveness,
            non_finite=statistics.non_finite,
            score=ranking.score,
            order=ranking.order,
            overall_order=ranking.overall,
            curves=curves,
            class_curves=class_curves,
            contributions=measured.contributions,
            removal=measured.removal,
            rank_agreement=float(rank_correlation(scores[0], scores[1]).nanmean()),
        )

    def curves(self, layer: UnitLayer) -> LayerCurves:
        """Measures the ablation curves of a layer."""
        return LayerCurves(self.runner, self.options, layer)

    def compare(
        self, sample: Sample, criteria: Sequence[str | Criterion], *, layers: Sequence[str] | None = None
    ) -> CriteriaComparison:
        """Ablation curves of several criteria, in both directions.

        Args:
            sample: the images.
            criteria: names or functions.
            layers: names of the layers to compare; all when left out.
        """
        chosen = [layer for layer in self.layers if layers is None or layer.name in layers]
        measured = self.observer.measure(sample, criteria)
        names = criterion_names(criteria)
        compared = {}
        with self.runner.progress(len(chosen), "Unit roles: comparing criteria") as advance:
            for layer in chosen:
                requests = {
                    (name, way): request
                    for name, criterion in zip(names, criteria, strict=True)
                    for way, request in both_ways(rank(criterion, measured[layer.name].statistics).overall).items()
                }
                curves = self.curves(layer).measure(requests, sample)
                compared[layer.name] = {
                    name: CriterionCurves(curves[name, "least_first"], curves[name, "most_first"]) for name in names
                }
                advance()
        sample.release()
        return CriteriaComparison(compared)

    def accuracy(self, sample: Sample) -> float:
        """Mean score of the images of a sample: accuracy, unless a ``score_fn`` says otherwise."""
        score_fn = self.options.score_fn or classification_score
        found = torch.zeros(2, dtype=torch.float64)  # on the CPU: not every device has float64
        with self.runner.undisturbed():
            for images in sample:
                score = score_fn(self.runner.forward(images.inputs), images.targets)[1]
                found += torch.tensor([float(score.sum()), len(score)], dtype=torch.float64)
        right, images_seen = self.runner.total(found).tolist()
        return right / images_seen if images_seen else math.nan

    def _too_small(self, layers: Iterable[UnitLayer], smallest: int) -> dict[str, str]:
        """Why ``layers="auto"`` left out what has small maps only."""
        if self.options.layers != "auto":
            return {}
        sizes = {layer.map_size for layer in self.layers}
        return {
            layer.name: f"its maps of {'x'.join(map(str, layer.map_size))} are too small for feature entropy; "
            "name it in layers= to see its roles"
            for layer in layers
            if max(layer.map_size) < smallest and layer.map_size not in sizes
        }

    def _count_classes(self, outputs: Any) -> int:
        if self.options.class_names is not None:
            return len(self.options.class_names)
        if self.options.num_classes is not None:
            return self.options.num_classes
        logits = first_tensor(outputs)
        several = named_logits(outputs) is None and len(list(tensors_in(outputs))) > 1
        if several or logits.ndim != 2:
            found = "several tensors" if several else f"a tensor of shape {list(logits.shape)}"
            raise DataError(
                f"The model returned {found}; expected [images, classes] to see the number of classes. Pass "
                + ("num_classes=." if self.options.score_fn else f"{self.runner.forward_argument} to pick the logits.")
            )
        return int(logits.shape[1])
