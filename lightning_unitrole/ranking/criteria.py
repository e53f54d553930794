"""Every way to rank the units of a layer, from what one pass over images gathers about them.

A criterion is a function from :class:`UnitStatistics` to scores ``[C, U]``: higher is more effective, NaN ranks last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.ranking.entropy import feature_entropy
from lightning_unitrole.reports.contributions import Contributions

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
        filter_norm: ``[U]`` float64, L1 norm of the weights of each filter; None where the layer holds no weights of
            its own.
        contribution: ``[C, U]`` float64, mean contribution to the margin, nats; None if it was not measured.
    """

    images: Tensor
    counts: Tensor
    non_finite: Tensor
    filter_norm: Tensor | None = None
    activation: Tensor | None = None
    positive: Tensor | None = None
    sensitivity: Tensor | None = None
    contribution: Tensor | None = None

    def with_contribution(self, measured: Contributions) -> UnitStatistics:
        """The same with the mean contributions of the same images."""
        return replace(self, contribution=measured.by_class().mean)


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
    norm = statistics.filter_norm
    if norm is None:
        raise DataError(
            "This layer holds no weights of its own, as where the forward pass computes them, so there is no filter "
            "norm. Use another criterion."
        )
    return norm.expand(statistics.counts.shape[:2])


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


def contribution_score(statistics: UnitStatistics) -> Tensor:
    """Mean contribution to the margin: what the unit adds to the network's answer, by integrated gradients.

    Source: Dhamdhere et al., "How Important Is a Neuron?", ICLR 2019; see
    :class:`~lightning_unitrole.reports.contributions.Contributions`.
    """
    return _gathered(statistics.contribution, "contribution")


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
    "contribution": contribution_score,
    "class_selectivity": class_selectivity_score,
    "random": random_score,
}
_NEEDS_ACTIVATION = {"apoz", "mean_activation", "class_selectivity"}


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


@dataclass(frozen=True)
class Needs:
    """What some criteria read besides the histograms.

    Attributes:
        activation: means of the maps. A function of the user's own may read them.
        gradient: gradients of the loss, which cost a backward pass.
        contribution: contributions to the margin, which cost several.
    """

    activation: bool
    gradient: bool
    contribution: bool

    @classmethod
    def of(cls, criteria: Sequence[str | Criterion]) -> Needs:
        """What these criteria read."""
        names = {
            next((name for name, known in CRITERIA.items() if known is criterion), None)
            if callable(criterion)
            else criterion
            for criterion in criteria
        }
        return cls(
            activation=bool(names & _NEEDS_ACTIVATION) or None in names,
            gradient="taylor" in names,
            contribution="contribution" in names,
        )


def criterion_names(criteria: Sequence[str | Criterion]) -> list[str]:
    """A name for each criterion; functions of one name are numbered.

    Raises:
        SettingError: if a criterion is unknown.
    """
    names: list[str] = []
    for criterion in criteria:
        name = resolve_criterion(criterion)[0]
        earlier = sum(other == name or other.startswith(f"{name}#") for other in names)
        names.append(f"{name}#{earlier}" if earlier and callable(criterion) else name)
    return names


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


@dataclass(frozen=True)
class Ranking:
    """How a criterion ranks the units of a layer (C classes, U units).

    Attributes:
        score: ``[C, U]`` float64, higher is more effective.
        order: ``[C, U]`` int64, units from the most to the least effective, for each class.
        overall: ``[U]`` int64, one order for all classes, by mean rank.
    """

    score: Tensor
    order: Tensor
    overall: Tensor


def rank(criterion: str | Criterion, statistics: UnitStatistics) -> Ranking:
    """Rank the units of a layer by a criterion.

    Raises:
        SettingError: if no criterion has that name.
        DataError: if a function of the user's own returns something else than scores, or something was not measured.
    """
    score = score_units(criterion, statistics)
    order = rank_units(score)
    return Ranking(score, order, rank_overall(order, statistics.images))


def score_units(criterion: str | Criterion, statistics: UnitStatistics) -> Tensor:
    """Scores ``[C, U]`` float64 of a criterion, checked.

    Raises:
        SettingError: if no criterion has that name.
        DataError: if a function of the user's own returns something else.
    """
    name, function = resolve_criterion(criterion)
    # A function of the user's own gets tensors of its own: it may work on them in place.
    score = function(_copied(statistics) if callable(criterion) else statistics)
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


def _copied(statistics: UnitStatistics) -> UnitStatistics:
    values = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
    return replace(statistics, **{name: value.clone() for name, value in values.items() if value is not None})
