"""What each unit adds to the network's answers, with how sure that is: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Means over images that were looked at independently of each other.

    Attributes:
        images: ``[C, 1]`` or ``[1]`` float64, numbers of images.
        mean: ``[C, U]`` or ``[U]`` float64.
        variance: the same, variance of the mean; its root is the standard error. NaN with fewer than two images.
        freedom: the same, degrees of freedom of that variance.
    """

    images: Tensor
    mean: Tensor
    variance: Tensor
    freedom: Tensor

    @property
    def standard_error(self) -> Tensor:
        """Root of the variance of the mean."""
        return self.variance.sqrt()


@dataclass(frozen=True, repr=False)
class Contributions:
    """Sums over the images of one split (C classes, U units), for the even and the odd images of each class apart.

    The contribution of a unit to one image is its part of the margin, the label's logit minus the log-sum-exp of the
    other logits (with a ``score_fn``, minus its loss), by integrated gradients from the layer switched off to the layer
    as it is. Contributions are in nats and add up to what the whole layer does to the margin.

    Attributes:
        images: ``[2, C]`` int64, even and odd images of each class.
        sums: ``[2, C, U]`` float64, sums of the contributions.
        squares: ``[2, C, U]`` float64, sums of their squares.
        margin: ``[2, C]`` float64, sums of what the whole layer does to the margin.
        sizes: ``[2, C]`` float64, sums of the absolute values of that.
        errors: ``[2, C]`` float64, sums of the absolute differences between that and the sum of the contributions.
        steps: ``[]`` int64, nodes of the integral; 0 where permutations were sampled instead.

    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017; Dhamdhere et al., "How Important
    Is a Neuron?", ICLR 2019. Permutations: Ghorbani & Zou, "Neuron Shapley", NeurIPS 2020.
    """

    images: Tensor
    sums: Tensor
    squares: Tensor
    margin: Tensor
    sizes: Tensor
    errors: Tensor
    steps: Tensor

    def __repr__(self) -> str:
        return f"Contributions({int(self.images.sum())} images, {self.sums.shape[1]} classes, {self.num_units} units)"

    @property
    def num_units(self) -> int:
        """Number of units of the layer."""
        return self.sums.shape[-1]

    def half(self, index: int) -> Contributions:
        """The same of the even (0) or the odd (1) images of each class alone."""
        keep = torch.tensor([[1], [0]] if index == 0 else [[0], [1]])
        return Contributions(
            self.images * keep,
            self.sums * keep.unsqueeze(-1),
            self.squares * keep.unsqueeze(-1),
            self.margin * keep,
            self.sizes * keep,
            self.errors * keep,
            self.steps,
        )

    def by_class(self) -> Estimate:
        """Mean of each unit for each class, ``[C, U]``."""
        images = self.images.sum(0).double().unsqueeze(1)
        sums, squares = self.sums.sum(0), self.squares.sum(0)
        mean = sums / images
        spread = (squares - sums * mean).clamp(min=0) / (images - 1)
        variance = torch.where(images > 1, spread / images, torch.nan)
        return Estimate(images, mean, variance, (images - 1).clamp(min=0).expand_as(mean))

    def overall(self) -> Estimate:
        """Mean of each unit over all classes, each class weighted equally, ``[U]``.

        Classes with a single image, of which no spread is known, are left out; NaN where there are no others.
        """
        found = self.by_class()
        seen = found.images.squeeze(1) > 1
        mean, variances, freedoms = (part[seen] for part in (found.mean, found.variance, found.freedom))
        whole = variances.sum(0)
        # Welch and Satterthwaite: degrees of freedom of a sum of independent variances.
        freedom = whole.square() / (variances.square() / freedoms).sum(0)
        freedom = torch.where(whole > 0, freedom, freedoms.sum(0))
        return Estimate(found.images[seen].sum().reshape(1), mean.mean(0), variances.mean(0) / len(mean), freedom)

    @property
    def scale(self) -> float:
        """Mean absolute contribution of a unit to a class: what a unit of this layer does on average."""
        mean = self.by_class().mean
        known = mean[mean.isfinite()]
        return float(known.abs().mean()) if len(known) else float("nan")

    @property
    def completeness_error(self) -> float:
        """Mean absolute error of the sum of the contributions, as a share of what the layer does to the margin."""
        whole = float(self.sizes.sum())
        return float(self.errors.sum()) / whole if whole > 0 else float("nan")

    def arrays(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Contributions:
        """Inverse of :meth:`arrays`."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})
