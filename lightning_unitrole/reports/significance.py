"""Tests of means, with the false discovery rate bounded: pure functions on tensors.

Source: Welch, "The generalization of Student's problem", Biometrika 1947; Benjamini & Hochberg, "Controlling the false
discovery rate", JRSS B 1995; Cohen, "A coefficient of agreement for nominal scales", 1960.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unitrole.reports.contributions import Estimate

FALSE_DISCOVERY_RATE = 0.05
"""Share of false ones among what tests find, on average."""


def upper_tail(statistic: Tensor, freedom: Tensor) -> Tensor:
    """Probability that Student's t exceeds ``statistic``; NaN where either is NaN.

    Args:
        statistic: any shape, float64.
        freedom: degrees of freedom, the same shape.
    """
    from scipy.special import stdtr

    below = stdtr(freedom.double().numpy(), -statistic.double().numpy())
    return torch.as_tensor(below, dtype=torch.float64)


def p_positive(found: Estimate) -> Tensor:
    """One-sided p-value of "the mean is above zero", by Student's t; NaN with fewer than two images."""
    return upper_tail(_ratio(found.mean, found.variance), found.freedom)


def p_negative(found: Estimate) -> Tensor:
    """One-sided p-value of "the mean is below zero"."""
    return upper_tail(_ratio(-found.mean, found.variance), found.freedom)


def p_differs(one: Estimate, other: Estimate) -> Tensor:
    """Two-sided p-value of "the means differ", by Welch's test."""
    variance = one.variance + other.variance
    parts = one.variance.square() / one.freedom + other.variance.square() / other.freedom
    freedom = variance.square() / parts
    # Two variances of zero leave 0 / 0: without spread any difference is one.
    freedom = torch.where(variance == 0, torch.minimum(one.freedom, other.freedom), freedom)
    return (2 * upper_tail(_ratio((one.mean - other.mean).abs(), variance), freedom)).clamp(max=1)


def pooled(one: Estimate, other: Estimate) -> Estimate:
    """Two estimates of one mean as one, each weighted by its images."""
    images = one.images + other.images
    shares = one.images / images, other.images / images
    variance = shares[0].square() * one.variance + shares[1].square() * other.variance
    return Estimate(images, shares[0] * one.mean + shares[1] * other.mean, variance, one.freedom + other.freedom)


def discoveries(p_values: Tensor, rate: float = FALSE_DISCOVERY_RATE) -> Tensor:
    """Which p-values are discoveries at a false discovery rate, by Benjamini and Hochberg's step-up procedure.

    Args:
        p_values: any shape; NaN is no discovery and no test.
        rate: bound on the expected share of false discoveries.

    Returns:
        The same shape, bool.

    Example:
        >>> discoveries(torch.tensor([0.01, 0.04, 0.03, float("nan")])).tolist()
        [True, True, True, False]
        >>> discoveries(torch.tensor([0.01, 0.2, 0.04])).tolist()
        [True, False, False]
    """
    known = p_values[p_values.isfinite()]
    if not len(known):
        return torch.zeros_like(p_values, dtype=torch.bool)
    ordered = known.sort().values
    bound = rate * torch.arange(1, len(known) + 1, dtype=ordered.dtype) / len(known)
    passed = (ordered <= bound).nonzero()
    if not len(passed):
        return torch.zeros_like(p_values, dtype=torch.bool)
    return p_values <= ordered[int(passed[-1])]


def kappa(one: Tensor, other: Tensor) -> Tensor:
    """Cohen's kappa of two classifications of the same units, one for each class.

    Args:
        one: ``[C, U]`` or ``[U]`` integers or bool.
        other: the same, from other images.

    Returns:
        ``[C]`` or ``[]`` float64, 1 for perfect agreement and 0 for chance. NaN where both put all units in one
        category, so that there is nothing to agree on.

    Example:
        >>> kappa(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 1, 0, 1])).item()
        0.5
    """
    agree = torch.eq(one, other).double().mean(-1)
    categories = torch.unique(torch.cat([one.flatten(), other.flatten()]))
    chance = torch.zeros_like(agree)
    for category in categories:
        chance += (one == category).double().mean(-1) * (other == category).double().mean(-1)
    return torch.where(chance < 1, (agree - chance) / (1 - chance), torch.nan)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation over the last dimension, ties by mean rank; NaN where either is constant.

    Args:
        one: ``[..., U]``; NaN ranks lowest.
        other: the same shape.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])).item()
        0.5
    """
    left, right = (_centred_ranks(values) for values in (one, other))
    scale = (left.square().sum(-1) * right.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (left * right).sum(-1) / scale, torch.nan)


def _centred_ranks(values: Tensor) -> Tensor:
    values = values.double().nan_to_num(nan=float("-inf"), neginf=float("-inf"), posinf=float("inf"))
    ordered = values.sort(dim=-1).values.contiguous()
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    upto = torch.searchsorted(ordered, values.contiguous(), right=True)
    ranks = (below + upto - 1).double() / 2
    return ranks - ranks.mean(-1, keepdim=True)


def _ratio(mean: Tensor, variance: Tensor) -> Tensor:
    """``mean / sqrt(variance)``, with a mean of zero never significant."""
    return torch.where(mean == 0, torch.where(variance.isnan(), torch.nan, 0.0), mean / variance.sqrt())
