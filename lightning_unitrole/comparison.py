"""Which ranking to trust for a network: the ablation curves of all criteria, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lightning_unitrole.ablation import AblationRequest, ScoreFn
from lightning_unitrole.analysis import AnalysisSettings, Progress, UnitAnalysis, no_progress, start_analysis
from lightning_unitrole.criteria import CRITERIA, Criterion, rank_overall, rank_units, resolve_criterion, score_units
from lightning_unitrole.data.batches import BatchFn, GroupFn
from lightning_unitrole.data.loaders import DataSource
from lightning_unitrole.data.probe import Probe
from lightning_unitrole.results import CriteriaComparison, CriterionCurves, UnitReport

MARGIN = 0.05
"""By how much a ranking gap must exceed that of a random order to say something: random orders differ by this much."""


def compare_on_probe(
    analysis: UnitAnalysis,
    probe: Probe,
    *,
    layers: Sequence[str] | None = None,
    criteria: Sequence[str | Criterion] = tuple(CRITERIA),
) -> CriteriaComparison:
    """Compare criteria on images that an analysis can read.

    Args:
        analysis: the analysis, with its layers and settings.
        probe: the images.
        layers: names of the layers to compare; all of the analysis when left out.
        criteria: names or functions.
    """
    quota = probe.available()
    chosen = [layer for layer in analysis.layers if layers is None or layer.name in layers]
    recorders = analysis.record(probe, quota, criteria=criteria)
    statistics = analysis.statistics(recorders, probe, quota, criteria=criteria)
    compared = {}
    with analysis.runtime.progress(len(chosen), "Unit roles: comparing criteria") as advance:
        for layer in chosen:
            requests = {}
            for criterion in criteria:
                order = rank_units(score_units(criterion, statistics[layer.name]))
                overall = rank_overall(order, quota)
                name = resolve_criterion(criterion)[0]
                requests[name, "least_first"] = AblationRequest(overall.flip(0))
                requests[name, "most_first"] = AblationRequest(overall)
            curves = analysis.ablate(layer, requests, probe, quota)
            names = dict.fromkeys(name for name, _ in requests)
            compared[layer.name] = {
                name: CriterionCurves(curves[name, "least_first"], curves[name, "most_first"]) for name in names
            }
            advance()
    return CriteriaComparison(compared)


def misleading_layers(report: UnitReport) -> list[str]:
    """Layers whose ranking gap on validation images is not above what a random order gets by :data:`MARGIN`."""
    return [
        name
        for name, layer in report.layers.items()
        if layer.val.curves and not layer.val.ranking_gap > layer.val.random_gap + MARGIN
    ]


def misleading_ranking(report: UnitReport, comparison: CriteriaComparison) -> str:
    """What to tell the user of layers whose ranking is hardly better than a random order.

    Args:
        report: where the ranking was found wanting.
        comparison: all criteria on these layers.
    """
    gaps = [
        f"{name!r} (ranking gap {report.layers[name].val.ranking_gap:+.3f}, a random order "
        f"{report.layers[name].val.random_gap:+.3f})"
        for name in comparison.layers
    ]
    better = comparison.best()
    advice = (
        f"Of all criteria {better!r} does best there; pass criterion={better!r} to use it."
        if better not in (report.criterion, None)
        else "No other criterion does better there; do not rely on the roles of these layers."
    )
    return f"Ranking by {report.criterion} is hardly better than a random order in {', '.join(gaps)}. {advice}"


def compare_criteria(
    model: nn.Module,
    data: DataSource,
    *,
    criteria: Sequence[str | Criterion] = tuple(CRITERIA),
    layers: str | Sequence[str] = "auto",
    images_per_class: int = 100,
    ablation_points: int = 32,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    backend: str = "auto",
    batch_fn: BatchFn | None = None,
    group_fn: GroupFn | None = None,
    score_fn: ScoreFn | None = None,
    forward: Callable[[Any], Any] | None = None,
    progress: Progress = no_progress,
) -> CriteriaComparison:
    """Rank the units of each layer by every criterion, ablate them in that order and in its reverse, and compare.

    No criterion is right for every network: ask this before trusting one.

    Args:
        model: maps the inputs of a batch to logits ``[images, classes]``.
        data: a ``DataLoader``, a ``Dataset`` or a list of batches; validation images are the ones to ask.
        criteria: names of :data:`lightning_unitrole.criteria.CRITERIA`, or functions.
        layers: see :class:`~lightning_unitrole.analysis.AnalysisSettings`, as for the arguments up to ``score_fn``.
        images_per_class: images of each class, at most.
        ablation_points: numbers of ablated units that each curve is measured at.
        num_classes: number of classes.
        class_names: a name for each class.
        backend: topology backend.
        batch_fn: function from a batch to ``(inputs, targets)``.
        group_fn: function from targets to group indices.
        score_fn: function from outputs and targets to losses and scores.
        forward: called with the inputs instead of ``model``.
        progress: progress bar, see :class:`~lightning_unitrole.analysis.Runtime`.

    Raises:
        SettingError: if a setting is out of range, a layer or a criterion unknown.
        DataError: if the data do not fit.
    """
    settings = AnalysisSettings(
        layers=layers,
        images_per_class=images_per_class,
        ablation_points=max(ablation_points, 2),
        num_classes=num_classes,
        class_names=class_names,
        backend=backend,
        batch_fn=batch_fn,
        group_fn=group_fn,
        score_fn=score_fn,
    )
    for criterion in criteria:
        resolve_criterion(criterion)
    analysis = start_analysis(model, data, settings, name="comparison", forward=forward, progress=progress)
    return compare_on_probe(analysis, analysis.probe(data, name="comparison"), criteria=criteria)
