"""From ablation curves to roles: pure functions on tensors.

Source: the four-way role test of Zhao, Zhang & Hu, "Role Taxonomy of Units in DNNs", arXiv:2011.00789, on the effective
sets of arXiv:2103.09716, section 4.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from lightning_unitrole.reports import vocabulary
from lightning_unitrole.reports.vocabulary import NO_ROLE


class UnitRole(IntEnum):
    """What a unit is good for: bit 0 says effective on training images, bit 1 on validation images.

    Source: the four-way role test of Zhao, Zhang & Hu, "Role Taxonomy of Units in DNNs", arXiv:2011.00789.
    """

    NEITHER = vocabulary.NEITHER
    TRAIN_ONLY = vocabulary.TRAIN_ONLY
    VAL_ONLY = vocabulary.VAL_ONLY
    BOTH = vocabulary.BOTH


def effective_set(order: Tensor, turning_point: int) -> Tensor:
    """Units that still stand at the turning point.

    Args:
        order: ``[U]`` unit indices from the most to the least effective.
        turning_point: number of units that were ablated there, least effective first.

    Returns:
        ``[U]`` bool, true for the units that stand.

    Example:
        >>> effective_set(torch.tensor([2, 0, 1]), turning_point=1).tolist()
        [True, False, True]
    """
    effective = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    effective[order[: len(order) - turning_point]] = True
    return effective


def assign_roles(effective_train: Tensor, effective_val: Tensor) -> Tensor:
    """Role of each unit from the two effective sets.

    Args:
        effective_train: ``[..., U]`` bool, effective on training images.
        effective_val: ``[..., U]`` bool, effective on validation images.

    Returns:
        ``[..., U]`` uint8 of :class:`UnitRole` values.

    Example:
        >>> assign_roles(torch.tensor([True, True, False]), torch.tensor([True, False, False])).tolist()
        [3, 1, 0]
    """
    both = effective_train.to(torch.uint8) * UnitRole.TRAIN_ONLY + effective_val.to(torch.uint8) * UnitRole.VAL_ONLY
    return both.to(torch.uint8)


def summarize_roles(roles: Tensor) -> Tensor:
    """One role a unit for all classes together: the role it has in most classes.

    Args:
        roles: ``[C, U]`` uint8 of :class:`UnitRole` values; classes without images hold ``NO_ROLE`` and do not count.

    Returns:
        ``[U]`` uint8. Ties go to the larger role, that is to the more useful one.

    Example:
        >>> summarize_roles(torch.tensor([[3, 0], [3, 1], [0, 2]], dtype=torch.uint8)).tolist()
        [3, 2]
    """
    votes = torch.stack([(roles == role).sum(0) for role in UnitRole])
    best = votes.flip(0).argmax(0)
    summary = (len(UnitRole) - 1 - best).to(torch.uint8)
    return torch.where((roles == NO_ROLE).all(0), torch.full_like(summary, NO_ROLE), summary)


def role_transitions(before: Tensor, after: Tensor) -> Tensor:
    """How many (class, unit) pairs went from which role to which.

    Args:
        before: ``[C, U]`` uint8 roles of one analysis.
        after: ``[C, U]`` uint8 roles of a later one.

    Returns:
        ``[4, 4]`` int64: row, the role before; column, the role after. Pairs without a role in either do not count.

    Example:
        >>> now = torch.tensor([[0, 3, 3]], dtype=torch.uint8)
        >>> role_transitions(torch.tensor([[0, 0, 3]], dtype=torch.uint8), now).diagonal().sum().item()
        2
    """
    known = (before <= UnitRole.BOTH) & (after <= UnitRole.BOTH)
    flat = before[known].long() * len(UnitRole) + after[known].long()
    return torch.bincount(flat, minlength=len(UnitRole) ** 2).view(len(UnitRole), len(UnitRole))


def stability(transitions: Tensor) -> float:
    """Share of the (class, unit) pairs that kept their role.

    Args:
        transitions: ``[4, 4]`` from :func:`role_transitions`.

    Returns:
        A share in [0, 1]; NaN where no pair has a role.

    Example:
        >>> stability(torch.tensor([[3, 1], [0, 4]]))
        0.875
    """
    total = int(transitions.sum())
    return int(transitions.diagonal().sum()) / total if total else float("nan")
