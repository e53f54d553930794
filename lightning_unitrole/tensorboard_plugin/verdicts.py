"""What the tab says of rankings, roles and runs: the package's own verdicts, on the numbers of a log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_unitrole.reports.verdicts import (
    NO_ORDER,
    RELIABLE_AGREEMENT,
    order_is_informative,
    ranking_is_informative,
    ranking_verdict,
    ranking_word,
    reliability_verdict,
)
from lightning_unitrole.reports.vocabulary import LayerFacts, findings
from lightning_unitrole.tensorboard_plugin.packing import Array
from lightning_unitrole.tensorboard_plugin.schema import OVERVIEW_COLUMNS


def overview_findings(table: Array, names: Sequence[str]) -> list[list[str]]:
    """What stands out at each step, in sentences.

    Args:
        table: ``[steps, layers, columns]`` with the columns of :data:`~.schema.OVERVIEW_COLUMNS`.
        names: of the layers.
    """
    columns = ("present", "units_help_no_class", "units_removable", "differing_share", "agreement")
    chosen = table[..., [OVERVIEW_COLUMNS.index(column) for column in columns]]
    found = []
    for step in chosen:
        rows = [(name, row.tolist()) for name, row in zip(names, step, strict=True) if row[0] >= 1]
        found.append(findings([LayerFacts(name, int(row[0]), *row[1:]) for name, row in rows]))
    return found


def overview_doubts(table: Array) -> tuple[list[str], Array, Array]:
    """Why roles or the order of the units of a layer should not be relied on, at each step.

    Args:
        table: as in :func:`overview_findings`.

    Returns:
        The different sentences; ``[steps, layers]`` uint32 that of the roles, and the same of the order, each counted
        from one, 0 where there is no doubt.
    """
    columns = ("agreement", "images", "ordered_classes", "entropy_q50", "present")
    chosen = table[..., [OVERVIEW_COLUMNS.index(column) for column in columns]]
    places: dict[str, int] = {}
    roles, orders = [], []
    for agreement, images, ordered, entropy, present in chosen.reshape(-1, len(columns)).tolist():
        doubtful = agreement < RELIABLE_AGREEMENT and math.isfinite(images)
        text = reliability_verdict(agreement, int(images)) if doubtful else ""
        roles.append(places.setdefault(text, len(places) + 1) if doubtful else 0)
        tied = present > 0 and not order_is_informative(ordered, entropy)
        orders.append(places.setdefault(NO_ORDER, len(places) + 1) if tied else 0)
    shape = table.shape[:2]
    return list(places), np.array(roles, np.uint32).reshape(shape), np.array(orders, np.uint32).reshape(shape)


def overview_verdicts(table: Array, criterion: str) -> tuple[list[dict[str, Any]], Array]:
    """The verdict on the order of each layer's units at each step.

    Args:
        table: ``[steps, layers, columns]`` with the columns of :data:`~.schema.OVERVIEW_COLUMNS`.
        criterion: what ranked the units.

    Returns:
        The different verdicts, and ``[steps, layers]`` uint8: which of them holds. A verdict warns only where roles
        follow from the order, as those by turning points do.
    """
    gaps, random_gaps, help_over_all = (
        table[..., OVERVIEW_COLUMNS.index(column)].ravel().tolist()
        for column in ("ranking_gap", "random_gap", "units_help")
    )
    places: dict[tuple[str, bool], int] = {}
    verdicts: list[dict[str, Any]] = []
    found = []
    for gap, random_gap, by_contribution in zip(gaps, random_gaps, np.isfinite(help_over_all), strict=True):
        key = (ranking_word(gap, random_gap), bool(by_contribution))
        if key not in places:
            places[key] = len(verdicts)
            verdicts.append(_verdict(gap, random_gap, criterion, by_order=not by_contribution))
        found.append(places[key])
    return verdicts, np.array(found, np.uint8).reshape(table.shape[:2])


def curve_rankings(
    curves: Sequence[Mapping[str, Any]], ablated: Array, accuracy: Array, criterion: str, by_order: Sequence[bool]
) -> list[dict[str, Any]]:
    """What the curves of each step and split say of the ranking.

    Args:
        curves: ``at``, ``split``, ``order`` and number of ``points`` of each curve.
        ablated: ``[points of all curves]``, numbers of units that are off.
        accuracy: the accuracy there.
        criterion: what ranked the units.
        by_order: for each step, whether roles follow from that order.

    Returns:
        For each step and split with a least-first curve: the ``gap`` to the reverse order and ``over_random``, by how
        much it beats random orders (None where not measured), and the verdict.
    """
    areas: dict[tuple[int, str], dict[str, list[float]]] = {}
    start = 0
    for curve in curves:
        stop = start + curve["points"]
        area = _area(ablated[start:stop].astype(np.float64), accuracy[start:stop].astype(np.float64))
        order = "random" if curve["order"].startswith("random") else curve["order"]
        areas.setdefault((curve["at"], curve["split"]), {}).setdefault(order, []).append(area)
        start = stop
    rankings = []
    for (at, split), area_of in areas.items():
        means = {order: sum(each) / len(each) for order, each in area_of.items()}
        least, most, random = (means.get(order, math.nan) for order in ("least_first", "most_first", "random"))
        if "least_first" in area_of:
            measured = {"gap": _finite(least - most), "over_random": _finite(least - random)}
            verdict = _verdict(least - most, random - most, criterion, by_order=by_order[at])
            rankings.append({"at": at, "split": split, **measured, **verdict})
    return rankings


def _verdict(gap: float, random_gap: float, criterion: str, *, by_order: bool) -> dict[str, Any]:
    return {
        "text": ranking_verdict(gap, random_gap, criterion),
        "word": ranking_word(gap, random_gap),
        "warn": by_order and ranking_is_informative(gap, random_gap) is False,
    }


def _area(ablated: Array, accuracy: Array) -> float:
    """Area under an accuracy curve over the share of units that are off, as the package defines it."""
    if len(ablated) < 2 or ablated[-1] == ablated[0]:
        return float(accuracy[0])
    with np.errstate(invalid="ignore", over="ignore"):
        heights = (accuracy[1:] + accuracy[:-1]) / 2
        return float((heights * np.diff(ablated)).sum() / (ablated[-1] - ablated[0]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
