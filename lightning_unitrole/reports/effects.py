"""From contributions to roles: which units help, hurt, or have no measurable effect, and on which side.

The definitions are tests with a bounded false discovery rate and a minimum effect size; see :func:`measure_effects`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unitrole.reports.contributions import Contributions, Estimate
from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.reports.significance import discoveries, kappa, p_differs, p_negative, p_positive, pooled
from lightning_unitrole.reports.vocabulary import NO_ROLE, UNDECIDED

HELPS, NO_EFFECT, HURTS, UNTESTED = 1, 0, -1, -2

MIN_EFFECT = 0.2
"""Smallest mean contribution that counts, as a share of what a unit of the layer contributes on average (in absolute
value): below a fifth of it a unit is said to have no effect, however sure the sign is. Measured with 50 to 100 images a
class, a fifth is where what helps repeats best on other images, see ``reproduction/reliability.py``."""

MIN_IMAGES = 4
"""Images of a class on either side, at least, for a test: two in each half."""


@dataclass(frozen=True, repr=False)
class Effects:
    """What units do on either side, for each class (``[C, U]``) or over all classes (``[U]``).

    Attributes:
        train: int8, :data:`HELPS`, :data:`NO_EFFECT` (none was measurable), :data:`HURTS` or :data:`UNTESTED`.
        val: the same on validation images.
        differs: bool, whether the contribution on training images differs from that on validation images.
    """

    train: Tensor
    val: Tensor
    differs: Tensor

    def __repr__(self) -> str:
        helps, hurts = (100 * self.share(effect) for effect in (HELPS, HURTS))
        return f"Effects({list(self.val.shape)}, {helps:.0f} % help, {hurts:.0f} % hurt)"

    @property
    def differing_share(self) -> float:
        """Share of what was tested in which the sides differ; about 0 unless the network overfits."""
        tested = self.val != UNTESTED
        return float(self.differs[tested].double().mean()) if bool(tested.any()) else math.nan

    def share(self, effect: int) -> float:
        """Share of what was tested that has this effect on validation images; NaN without tests."""
        tested = self.val[self.val != UNTESTED]
        return float((tested == effect).double().mean()) if len(tested) else math.nan


def measure_effects(train: Estimate, val: Estimate, scale: float, *, least: float = MIN_EFFECT) -> Effects:
    """Test which means are above or below zero, and which differ between the sides.

    1. *Differs*: Welch's two-sided test of the training mean against the validation mean.
    2. Where the sides do not differ, they are pooled and one test decides for both; elsewhere each side's own does.
    3. Each family of tests, over all pairs at once, is held to a false discovery rate of 5 % (Benjamini and Hochberg),
       and an effect must be at least ``least`` of ``scale``.

    Args:
        train: means on training images, ``[C, U]`` or ``[U]``.
        val: means on validation images.
        scale: what a unit of the layer contributes on average, see
            :attr:`~lightning_unitrole.reports.contributions.Contributions.scale`.
        least: smallest effect that counts, as a share of ``scale``.
    """
    enough = (torch.minimum(train.images, val.images) >= MIN_IMAGES).expand_as(val.mean)
    enough = enough & train.variance.isfinite() & val.variance.isfinite()
    smallest = least * scale
    both = pooled(train, val)
    apart = torch.where(enough, p_differs(train, val), torch.nan)
    differs = discoveries(apart) & ((train.mean - val.mean).abs() >= smallest)

    def decided(p_value: Callable[[Estimate], Tensor], sign: int) -> tuple[Tensor, Tensor]:
        shared = p_value(both)
        sides = torch.stack([torch.where(differs, p_value(side), shared) for side in (train, val)])
        sides[:, ~enough] = torch.nan
        counted = sides.clone()
        counted[1][~differs] = torch.nan  # a pooled test is one test, not two
        found = discoveries(counted)
        found[1] |= ~differs & found[0]
        means = torch.stack([torch.where(differs, side.mean, both.mean) for side in (train, val)])
        found &= sign * means >= smallest
        return found[0], found[1]

    helps, hurts = decided(p_positive, 1), decided(p_negative, -1)
    signs = [
        torch.where(enough, helps[side].to(torch.int8) * HELPS + hurts[side].to(torch.int8) * HURTS, UNTESTED)
        for side in range(2)
    ]
    return Effects(signs[0].to(torch.int8), signs[1].to(torch.int8), differs)


def class_effects(train: Contributions, val: Contributions, *, least: float = MIN_EFFECT) -> Effects:
    """Effects of each (class, unit) pair of a layer; ``least`` as in :func:`measure_effects`."""
    return measure_effects(train.by_class(), val.by_class(), _scale(train, val), least=least)


def overall_effects(train: Contributions, val: Contributions) -> Effects:
    """Effects of each unit of a layer over all classes, classes weighted equally."""
    return measure_effects(train.overall(), val.overall(), _scale(train, val, overall=True))


def roles_from_effects(effects: Effects, images: Tensor | None = None) -> Tensor:
    """Roles, uint8: helps on training images, on validation images, on both or on neither.

    Args:
        effects: of each pair or unit.
        images: ``[C]`` images of each class on the side that has fewer; a class without any has ``NO_ROLE``, one with
            too few for a test is ``UNDECIDED``.
    """
    roles = (effects.train == HELPS).to(torch.uint8) * UnitRole.TRAIN_ONLY
    roles = (roles + (effects.val == HELPS).to(torch.uint8) * UnitRole.VAL_ONLY).to(torch.uint8)
    roles[effects.val == UNTESTED] = UNDECIDED
    if images is not None:
        roles[images == 0] = NO_ROLE
    return roles


def without_effect(by_class: Effects, overall: Effects) -> Tensor:
    """``[U]`` bool, units without a measurable effect: for no class that was tested, on neither side, and not over all.

    The mean over all classes alone would not do: a unit that helps one class and hurts another may add up to nothing.

    Args:
        by_class: effects of each pair, ``[C, U]``.
        overall: effects over all classes, ``[U]``.
    """
    idle = (overall.train == NO_EFFECT) & (overall.val == NO_EFFECT)
    for side in (by_class.train, by_class.val):
        idle &= ((side == NO_EFFECT) | (side == UNTESTED)).all(0)
    return idle


def agreement_between_halves(train: Contributions, val: Contributions) -> float:
    """How well "helps on validation images" agrees between the even and the odd images of each class.

    Cohen's kappa within each class, averaged over the classes; NaN where there are too few images, or where in every
    class all units are said to do the same. Each half has half of the images, so this is a lower bound of how well the
    roles would agree with those from other images.
    """
    found = [class_effects(train.half(index), val.half(index)) for index in range(2)]
    tested = ((found[0].val != UNTESTED) & (found[1].val != UNTESTED)).all(1)
    if not bool(tested.any()):
        return math.nan
    return float(kappa(*((one.val[tested] == HELPS) for one in found)).nanmean())


def _scale(train: Contributions, val: Contributions, *, overall: bool = False) -> float:
    means = [(one.overall() if overall else one.by_class()).mean for one in (train, val)]
    known = torch.cat([mean[mean.isfinite()].abs() for mean in means])
    return float(known.mean()) if len(known) else math.nan
