"""Every way to rank the units of a layer, from what one pass over images gathers about them.

A criterion is a function from :class:`UnitStatistics` to scores ``[C, U]``: higher is more effective, NaN ranks last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unitrole.entropy import feature_entropy
from lightning_unitrole.errors import DataError, SettingError

MIN_INEFFECTIVENESS = 0.1
"""Units below this rank last: a handful of images with the same birth point can fake such a value."""

SCORE_DECIMALS = 9
"""Decimals of the ineffectiveness, in nats, by which units are ranked."""


@dataclass(frozen=True)
class UnitStatistics:
    """What is gathered of one layer over the images of one split (C classes, U units).

    Attributes:
        images: ``[C]`` int64, number of images of each class.
        counts: ``[C, U, max_birth + 1]`` integers, histogram of birth points; bin 0 counts maps without one.
        non_finite: ``[C, U]`` int64, maps with NaN or infinity, which are in no bin.
        activation: ``[C, U]`` float64, mean over images and pixels of the map; None if it was not gathered.
        positive: ``[C, U]`` float64 in [0, 1], share of positive pixels; None if it was not gathered.
        sensitivity: ``[C, U]`` float64, mean over images of the absolute sum over the map of activation times gradient
            of the loss; None if it was not gathered.
        filter_norm: ``[U]`` float64, L1 norm of the weights of each filter.
    """

    images: Tensor
    counts: Tensor
    non_finite: Tensor
    filter_norm: Tensor
    activation: Tensor | None = None
    positive: Tensor | None = None
    sensitivity: Tensor | None = None


Criterion = Callable[[UnitStatistics], Tensor]


def feature_entropy_score(statistics: UnitStatistics) -> Tensor:
    """Minus the ineffectiveness, rounded to 1e-9; NaN for degenerate units.

    Rounded, because equal histograms in another order of bins sum to values that differ in their last digit, and ties
    must be ties whatever the order of summation.

    Source: arXiv:2103.09716v1, section 3.3.
    """
    ineffectiveness = feature_entropy(statistics.counts)[2].round(decimals=SCORE_DECIMALS)
    return torch.where(ineffectiveness < MIN_INEFFECTIVENESS, torch.nan, -ineffectiveness)


def filter_norm_score(statistics: UnitStatistics) -> Tensor:
    """L1 norm of the filter's weights, the same for every class.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710.
    """
    return statistics.filter_norm.expand(statistics.counts.shape[:2])


def apoz_score(statistics: UnitStatistics) -> Tensor:
    """Minus the average percentage of zeros, that is of pixels that are not positive.

    Source: Hu et al., "Network Trimming", arXiv:1607.03250.
    """
    return _gathered(statistics.positive, "positive") - 1


def mean_activation_score(statistics: UnitStatistics) -> Tensor:
    """Mean activation over images and pixels.

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    arXiv:1611.06440, section 2.2.
    """
    return _gathered(statistics.activation, "activation")


def taylor_score(statistics: UnitStatistics) -> Tensor:
    """First-order Taylor estimate of what the loss would change by without the unit.

    Source: Molchanov et al., arXiv:1611.06440, equation 8 (without its division by the layer's norm).
    """
    return _gathered(statistics.sensitivity, "sensitivity")


def class_selectivity_score(statistics: UnitStatistics) -> Tensor:
    """``(m_c - m_rest) / (m_c + m_rest)``, with ``m_c`` the mean activation for class c and ``m_rest`` for the others.

    Source: Morcos et al., "On the importance of single directions for generalization", arXiv:1803.06959, which takes
    this value for each unit's best class only; here every class has its own. Where the two means do not add up to more
    than zero, which after a ReLU is a unit that is never active, the score is NaN.
    """
    mean = _gathered(statistics.activation, "activation")
    # A class without images, or one in which all maps of a unit are broken, says nothing about the others.
    seen = (statistics.images > 0).unsqueeze(1) & mean.isfinite()
    known = torch.where(seen, mean, 0.0)
    rest = (known.sum(0) - known) / (seen.sum(0) - seen.long()).clamp(min=1)
    return torch.where(mean + rest > 0, (mean - rest) / (mean + rest), torch.nan)


def random_score(statistics: UnitStatistics) -> Tensor:
    """Random numbers, always the same for a layer of the same size: the control."""
    generator = torch.Generator().manual_seed(0)
    classes, units = statistics.counts.shape[:2]
    return torch.rand(classes, units, dtype=torch.float64, generator=generator).to(statistics.counts.device)


CRITERIA: dict[str, Criterion] = {
    "feature_entropy": feature_entropy_score,
    "filter_norm": filter_norm_score,
    "apoz": apoz_score,
    "mean_activation": mean_activation_score,
    "taylor": taylor_score,
    "class_selectivity": class_selectivity_score,
    "random": random_score,
}
_NEEDS_ACTIVATION = {"apoz", "mean_activation", "class_selectivity"}
_NEEDS_GRADIENT = {"taylor"}


def resolve_criterion(criterion: str | Criterion) -> tuple[str, Criterion]:
    """Name and function of a criterion given by either.

    Raises:
        SettingError: if no criterion has that name.
    """
    if callable(criterion):
        return getattr(criterion, "__name__", type(criterion).__name__), criterion
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise SettingError(
            f"criterion={criterion!r} is not known; expected one of {', '.join(CRITERIA)}, or a function from "
            "UnitStatistics to scores [classes, units]."
        )
    return criterion, CRITERIA[criterion]


def needs_activation(criterion: str | Criterion) -> bool:
    """Whether a criterion reads means of the maps. A function of the user's own may, so it counts as one that does."""
    return callable(criterion) or criterion in _NEEDS_ACTIVATION


def needs_gradient(criterion: str | Criterion) -> bool:
    """Whether a criterion reads gradients of the loss, which cost a backward pass."""
    return criterion is taylor_score or (isinstance(criterion, str) and criterion in _NEEDS_GRADIENT)


def rank_units(score: Tensor) -> Tensor:
    """Units from the most to the least effective.

    Args:
        score: ``[..., U]``; higher is more effective. NaN ranks last; ties are broken by unit index.

    Returns:
        ``[..., U]`` int64 unit indices.

    Example:
        >>> rank_units(torch.tensor([0.5, float("nan"), 0.9, 0.5])).tolist()
        [2, 0, 3, 1]
    """
    unknown = score.isnan()
    order = score.masked_fill(unknown, 0).argsort(dim=-1, descending=True, stable=True)
    # Not as minus infinity, which is a score.
    return order.gather(-1, unknown.gather(-1, order).long().argsort(dim=-1, stable=True))


def rank_overall(order: Tensor, images: Tensor) -> Tensor:
    """One ranking for all classes together: by mean rank over the classes that have images.

    Args:
        order: ``[C, U]`` unit indices from the most to the least effective, for each class.
        images: ``[C]`` number of images of each class.

    Returns:
        ``[U]`` int64 unit indices; ties are broken by unit index.

    Example:
        >>> rank_overall(torch.tensor([[0, 1, 2], [1, 0, 2], [1, 2, 0]]), torch.tensor([5, 5, 5])).tolist()
        [1, 0, 2]
    """
    rank = order.argsort(dim=-1)[images > 0]
    return rank.sum(0).argsort(stable=True)


def score_units(criterion: str | Criterion, statistics: UnitStatistics) -> Tensor:
    """Scores ``[C, U]`` float64 of a criterion, checked.

    Raises:
        SettingError: if no criterion has that name.
        DataError: if a function of the user's own returns something else.
    """
    name, function = resolve_criterion(criterion)
    score = function(statistics)
    if not isinstance(score, Tensor):
        raise DataError(f"criterion {name!r} returned a {type(score).__name__}; expected a tensor [classes, units].")
    if score.shape != statistics.counts.shape[:2]:
        raise DataError(
            f"criterion {name!r} returned shape {list(score.shape)}; expected [classes, units] = "
            f"{list(statistics.counts.shape[:2])}."
        )
    return score.to(torch.float64)


def _gathered(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise DataError(f"UnitStatistics.{name} was not gathered in this pass, and the criterion reads it.")
    return values
