"""Feature entropy: from birth points to counts to the ineffectiveness of a unit.

Source: Zhao & Zhang, "Quantitative Effectiveness Assessment and Role Categorization of Individual Units in CNNs",
arXiv:2103.09716v1, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unitrole.errors import DataError, SettingError

_SLICE = 2**18
"""Counts that are looked at together, about: what is computed of them takes a few times their memory."""


def feature_entropy(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Feature entropy, selective rate and ineffectiveness from histograms of birth points.

    With ``p`` the distribution of the *nonzero* birth points, the entropy is ``-sum p ln p`` in nats; the selective
    rate is the share of images without a birth point; the ineffectiveness is ``entropy / (1 - selective rate)``.

    Args:
        counts: ``[..., max_birth + 1]`` non-negative numbers of images; bin 0 counts the images without a birth point.

    Returns:
        Three float64 tensors ``[...]``: entropy in nats, selective rate in [0, 1], ineffectiveness in nats. Where no
        image has a birth point, entropy and ineffectiveness are NaN; where there is no image at all, all three are.

    Raises:
        DataError: if ``counts`` has no bin besides bin 0, or a number is negative.

    Source: arXiv:2103.09716v1, section 3.3. The paper leaves the case without births open.

    Example:
        >>> import torch
        >>> counts = torch.tensor([2, 1, 1, 0])  # two images without a birth, one born at step 1, one at step 2
        >>> [round(float(value), 4) for value in feature_entropy(counts)]
        [0.6931, 0.5, 1.3863]
    """
    if counts.ndim == 0 or counts.shape[-1] < 2:
        raise DataError(
            f"counts has shape {list(counts.shape)}; expected [..., max_birth + 1] with bin 0 for maps without a birth."
        )
    rows = max(1, _SLICE // max(counts[:1].numel(), 1))
    # The order of summation, and so the last digit, depends on the layout, which slices of other tensors do not share.
    if counts.ndim == 1 or len(counts) <= rows or not counts.is_contiguous():
        return _feature_entropy(counts)
    # Written into tensors of their own, because results that are kept between what is freed would scatter the memory.
    entropy, selective_rate, ineffectiveness = (
        torch.empty(counts.shape[:-1], dtype=torch.float64, device=counts.device) for _ in range(3)
    )
    for start in range(0, len(counts), rows):
        part = slice(start, start + rows)
        entropy[part], selective_rate[part], ineffectiveness[part] = _feature_entropy(counts[part])
    return entropy, selective_rate, ineffectiveness


def _feature_entropy(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if counts.numel() and bool((counts < 0).any()):
        raise DataError(f"counts holds {counts.min().item()}; expected numbers of images, none below 0.")
    images = counts.sum(-1, dtype=torch.float64)
    births = counts[..., 1:].to(torch.float64)
    born = births.sum(-1)
    probability = births / born.unsqueeze(-1)
    entropy = torch.special.entr(probability).sum(-1).abs()  # without births in two bins it would be -0.0
    selective_rate = 1 - born / images
    # The quotient is at least 1, and exactly 1 without maps that have no birth: so is the ratio to the entropy.
    return entropy, selective_rate, entropy * (images / born)


def birth_histogram(births: Tensor, targets: Tensor, num_classes: int, *, max_birth: int = 50) -> Tensor:
    """Histograms of birth points by class and unit.

    Args:
        births: ``[B, U]`` integers in ``[0, max_birth]``; 0 means no birth.
        targets: ``[B]`` class indices.
        num_classes: number of classes ``C``.
        max_birth: largest birth point that is told apart.

    Returns:
        ``[C, U, max_birth + 1]`` int64 numbers of images.

    Raises:
        DataError: if shapes disagree, or a birth point or class index is not an integer or out of range.
    """
    if births.ndim != 2 or targets.shape != births.shape[:1]:
        raise DataError(
            f"births has shape {list(births.shape)} and targets {list(targets.shape)}; expected [B, U] and [B]."
        )
    _check_range("births", births, max_birth, "max_birth")
    _check_range("targets", targets, num_classes - 1, "num_classes - 1")
    units, bins = births.shape[1], max_birth + 1
    unit = torch.arange(units, device=births.device)
    flat = (targets.long().unsqueeze(1) * units + unit) * bins + births.long()
    return torch.bincount(flat.flatten(), minlength=num_classes * units * bins).view(num_classes, units, bins)


def _check_range(name: str, values: Tensor, largest: int, bound: str) -> None:
    if values.is_floating_point():
        raise DataError(f"{name} has type {str(values.dtype).removeprefix('torch.')}; expected integers.")
    if values.numel() == 0:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > largest:
        raise DataError(f"{name} holds values from {low} to {high}; expected 0 to {largest} ({bound}).")


class FeatureEntropy(Metric):
    """Feature entropy of every unit for every class, as a metric whose state is the histogram of birth points.

    The histogram is summed over processes. :meth:`compute` returns what :func:`feature_entropy` does, each ``[C, U]``.

    Args:
        num_classes: number of classes ``C``.
        num_units: number of units ``U``.
        max_birth: largest birth point that is told apart.
        **kwargs: passed on to :class:`torchmetrics.Metric`.

    Raises:
        SettingError: if a number is not a positive integer.

    Example:
        >>> import torch
        >>> metric = FeatureEntropy(num_classes=2, num_units=1)
        >>> metric.update(torch.tensor([[3], [4], [0]]), torch.tensor([0, 0, 1]))
        >>> entropy, selective_rate, ineffectiveness = metric.compute()
        >>> [round(float(value), 4) for value in entropy.flatten()]
        [0.6931, nan]
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    counts: Tensor

    def __init__(self, num_classes: int, num_units: int, max_birth: int = 50, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("num_classes", num_classes), ("num_units", num_units), ("max_birth", max_birth)):
            if not isinstance(value, int) or value < 1:
                raise SettingError(f"{name}={value!r}; expected a positive integer.")
        self.num_classes, self.num_units, self.max_birth = num_classes, num_units, max_birth
        self.add_state(
            "counts", torch.zeros(num_classes, num_units, max_birth + 1, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, births: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            births: ``[B, U]`` integers in ``[0, max_birth]``; 0 means no birth.
            targets: ``[B]`` class indices.

        Raises:
            DataError: if a shape, a birth point or a class index does not fit.
        """
        if births.ndim != 2 or births.shape[1] != self.num_units:
            raise DataError(f"births has shape {list(births.shape)}; expected [B, {self.num_units}].")
        self.counts += birth_histogram(births, targets, self.num_classes, max_birth=self.max_birth)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entropy, selective rate and ineffectiveness, each ``[C, U]``; see :func:`feature_entropy`."""
        return feature_entropy(self.counts)
