"""What the tab holds of one layer: numbers for the overview by their columns, and arrays over its units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_unitrole.reports.effects import HELPS, HURTS, UNTESTED
from lightning_unitrole.reports.layer import SPLITS, LayerReport, SplitReport
from lightning_unitrole.reports.vocabulary import BOTH, NO_ROLE, REMOVED, ROLES
from lightning_unitrole.tensorboard_plugin.packing import Array
from lightning_unitrole.tensorboard_plugin.schema import NO_CLASS, STRONGEST

if TYPE_CHECKING:
    from torch import Tensor

_COUNTED = [role for role in ROLES if role.fill != "empty"]
"""Roles whose shares of a layer add up to one."""


def mean_over_classes(values: Tensor) -> Array:
    """Mean of each unit over the classes in which it is finite."""
    return finite_mean(values.cpu().numpy())


def finite_mean(values: Array) -> Array:
    """Mean over the first axis of what is finite; NaN where nothing is, without the warning of ``nanmean``."""
    finite = np.isfinite(values)
    count = finite.sum(0)
    total: Array = np.where(finite, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def overview_row(layer: LayerReport, roles: Array, before: Array | None) -> dict[str, float]:
    """What is known of a layer, by the names of :data:`~.schema.OVERVIEW_COLUMNS`.

    Args:
        layer: its report.
        roles: ``[1 + classes, units]`` role codes, those over all classes in the first row.
        before: the same of the report before.
    """
    values: dict[str, float] = {
        "present": layer.num_units,
        "selective_rate": float(finite_mean(mean_over_classes(layer.val.selective_rate))),
        "ranking_gap": layer.ranking_gap,
        "random_gap": layer.val.random_gap,
        "macs": layer.macs,
    }
    if layer.summary.numel():
        values |= {f"units_{role.name.lower()}": int((roles[0] == role.code).sum()) for role in _COUNTED}
    # In numpy, not by `layer.role_shares`: on a busy machine torch's threads wait for each other for milliseconds.
    pairs = np.bincount(layer.roles.cpu().numpy().ravel(), minlength=NO_ROLE + 1)
    total = sum(int(pairs[role.code]) for role in _COUNTED)
    if total:
        values |= {f"pairs_{role.name.lower()}": float(pairs[role.code] / total) for role in _COUNTED}
    if before is not None and before.shape == roles.shape:
        values["units_changed"] = _changed(before[:1], roles[:1])
        values["pairs_changed"] = _changed(before[1:], roles[1:])
    entropy = mean_over_classes(layer.val.entropy)
    entropy = entropy[np.isfinite(entropy)]
    if len(entropy):
        quartiles = np.quantile(entropy, [0.25, 0.5, 0.75]).tolist()
        values |= dict(zip(("entropy_q25", "entropy_q50", "entropy_q75"), quartiles, strict=True))
    for split in SPLITS:
        measured: SplitReport = getattr(layer, split)
        if "least_first" in measured.curves and measured.class_curves:
            values[f"turning_{split}"] = measured.curves["least_first"].turning_point / layer.num_units
        if measured.contributions is not None:
            values[f"margin_{split}"] = float(measured.contributions.overall().mean.numpy().sum())
    return values | _effect_columns(layer) | _check_columns(layer)


def _effect_columns(layer: LayerReport) -> dict[str, float]:
    """What the tests of the contributions say, and how well they and the ranking repeat; empty where not measured."""
    scores = layer.val.score.cpu().numpy()[layer.val.images.numpy() > 0]
    values: dict[str, float] = {
        "images": int(layer.val.images.max()),
        "agreement": layer.agreement,
        "rank_agreement": layer.val.rank_agreement,
        "contribution_gap": layer.val.contribution_gap,
    }
    if len(scores):
        values["ordered_classes"] = float(np.mean([len(np.unique(row[np.isfinite(row)])) > 1 for row in scores]))
    if layer.summary_effects is not None:
        over_all = layer.summary_effects.val.numpy()
        for name, effect in (("help", HELPS), ("hurt", HURTS)):
            values[f"units_{name}"] = int((over_all == effect).sum())
        values["units_no_effect"] = int(layer.without_effect.sum())
    if layer.effects is not None:
        by_class = layer.effects.val.numpy()
        tested = (by_class != UNTESTED).any(0)
        values["units_help_no_class"] = int((tested & (by_class != HELPS).all(0)).sum())
        values["differing_share"] = layer.differing_share
    return values


def _check_columns(layer: LayerReport) -> dict[str, float]:
    """Accuracies without groups of units; empty where not measured."""
    check = layer.check
    if check is None:
        return {}
    return {
        "units_removable": len(layer.removable),
        "check_images": check.images,
        "check_accuracy": check.accuracy,
        "check_removed_accuracy": check.removed_accuracy,
        "check_helpers_accuracy": check.helpers_accuracy,
        "check_random_accuracy": float(check.random_accuracy.numpy().mean())
        if check.random_accuracy.numel()
        else np.nan,
    }


def _changed(before: Array, after: Array) -> float:
    """Share of what has a role in both whose role differs."""
    comparable = (before <= BOTH) & (after <= BOTH)
    return float((before != after)[comparable].mean()) if comparable.any() else float("nan")


def scatter(values: Array, slots: Array, units: int, fill: Any = REMOVED) -> Array:
    """``[..., units]``: ``values`` at their original places and ``fill`` at those of removed units."""
    whole = np.full((*values.shape[:-1], units), fill, values.dtype)
    whole[..., slots] = values
    return whole


def half(values: Array) -> Array:
    """The values as float16, infinite where they are too large for it."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def contribution_arrays(layer: LayerReport, slots: Array, units: int, num_classes: int) -> dict[str, Array]:
    """Contributions and standard errors ``[M, units]`` of each unit for some classes; empty where not measured.

    Args:
        layer: the layer.
        slots: original index of each unit that it has now.
        units: number of units that it had at first.
        num_classes: number of all classes. Up to :data:`~.schema.STRONGEST` of them are all there, in order; of more,
            those to which a unit contributes most in either direction on validation images, the largest sum first,
            with their indices as ``classes`` (uint16).
    """
    if layer.train.contributions is None or layer.val.contributions is None:
        return {}
    found = {split: getattr(layer, split).contributions.by_class() for split in SPLITS}
    means = found["val"].mean.numpy()
    arrays = {}
    chosen = np.broadcast_to(np.arange(num_classes)[:, None], means.shape)
    if num_classes > STRONGEST:
        strength = np.where(np.isfinite(means), np.abs(means), -1)
        chosen = np.argpartition(-strength, STRONGEST - 1, axis=0)[:STRONGEST]
        order = np.argsort(-np.take_along_axis(means, chosen, 0), axis=0, kind="stable")
        chosen = np.take_along_axis(chosen, order, 0)
        arrays["classes"] = scatter(chosen.astype(np.uint16), slots, units, NO_CLASS)
    for split, by_class in found.items():
        for name, values in (("contribution", by_class.mean), ("error", by_class.standard_error)):
            logged = half(np.take_along_axis(values.numpy(), chosen, 0))
            arrays[f"{name}_{split}"] = scatter(logged, slots, units, np.nan)
    return arrays
