"""What the tab says of rankings: the package's own verdicts, on the numbers of a log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_unitrole.reports.vocabulary import ranking_is_informative, ranking_verdict
from lightning_unitrole.tensorboard_plugin.packing import Array
from lightning_unitrole.tensorboard_plugin.schema import OVERVIEW_COLUMNS


def overview_verdicts(table: Array) -> tuple[list[dict[str, Any]], Array]:
    """The verdict on the ranking of each layer at each step.

    Args:
        table: ``[steps, layers, columns]`` with the columns of :data:`~.schema.OVERVIEW_COLUMNS`.

    Returns:
        The different verdicts, and ``[steps, layers]`` uint8: which of them holds.
    """
    verdicts: list[dict[str, Any]] = []
    places = np.zeros(table.shape[:2], np.uint8)
    gaps = table[..., OVERVIEW_COLUMNS.index("ranking_gap")]
    random_gaps = table[..., OVERVIEW_COLUMNS.index("random_gap")]
    for place in np.ndindex(*places.shape):
        verdict = _verdict(float(gaps[place]), float(random_gaps[place]))
        if verdict not in verdicts:
            verdicts.append(verdict)
        places[place] = verdicts.index(verdict)
    return verdicts, places


def curve_rankings(curves: Sequence[Mapping[str, Any]], ablated: Array, accuracy: Array) -> list[dict[str, Any]]:
    """What the curves of each step and split say of the ranking.

    Args:
        curves: ``at``, ``split``, ``order`` and number of ``points`` of each curve.
        ablated: ``[points of all curves]``, numbers of units that are off.
        accuracy: the accuracy there.

    Returns:
        For each step and split with a least-first curve: the ``gap`` to the reverse order and ``over_random``, by how
        much it beats a random order (None where not measured), and the verdict.
    """
    areas: dict[tuple[int, str], dict[str, float]] = {}
    start = 0
    for curve in curves:
        stop = start + curve["points"]
        area = _area(ablated[start:stop].astype(np.float64), accuracy[start:stop].astype(np.float64))
        areas.setdefault((curve["at"], curve["split"]), {})[curve["order"]] = area
        start = stop
    rankings = []
    for (at, split), area_of in areas.items():
        least, most, random = (area_of.get(order, math.nan) for order in ("least_first", "most_first", "random"))
        if "least_first" in area_of:
            measured = {"gap": _finite(least - most), "over_random": _finite(least - random)}
            rankings.append({"at": at, "split": split, **measured, **_verdict(least - most, random - most)})
    return rankings


def _verdict(gap: float, random_gap: float) -> dict[str, Any]:
    warn = ranking_is_informative(gap, random_gap) is False
    return {"text": ranking_verdict(gap, random_gap), "warn": warn}


def _area(ablated: Array, accuracy: Array) -> float:
    """Area under an accuracy curve over the share of units that are off, as the package defines it."""
    if len(ablated) < 2 or ablated[-1] == ablated[0]:
        return float(accuracy[0])
    with np.errstate(invalid="ignore", over="ignore"):
        heights = (accuracy[1:] + accuracy[:-1]) / 2
        return float((heights * np.diff(ablated)).sum() / (ablated[-1] - ablated[0]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
