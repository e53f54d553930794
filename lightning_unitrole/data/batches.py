"""Taking batches apart: inputs, targets, and the group of each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.errors import DataError
from lightning_unitrole.network.isolation import preserve_rng
from lightning_unitrole.network.structures import batch_size

BatchFn = Callable[[Any], tuple[Any, Any]]
GroupFn = Callable[[Any], Tensor]

_INPUT_KEYS = ("image", "images", "input", "inputs", "pixel_values", "img", "x", "data")
_TARGET_KEYS = ("label", "labels", "target", "targets", "y", "class")


def split_batch(batch: Any, batch_fn: BatchFn | None = None) -> tuple[Any, Any]:
    """Inputs and targets of a batch: the first two entries of a tuple or list, or the usual keys of a dict.

    Args:
        batch: what a data loader yields.
        batch_fn: takes the batch apart instead.

    Raises:
        DataError: if the batch has no recognisable targets; the message says what was found.
    """
    advice = "Pass batch_fn=, a function from a batch to (inputs, targets)."
    if batch_fn is not None:
        with preserve_rng():
            pair = batch_fn(batch)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise DataError(f"batch_fn returned {describe(pair)}; expected a pair (inputs, targets).")
        return pair[0], pair[1]
    if isinstance(batch, Mapping):
        inputs = [key for key in _INPUT_KEYS if key in batch]
        targets = [key for key in _TARGET_KEYS if key in batch]
        if not inputs or not targets:
            raise DataError(
                f"A batch is a dict with keys {', '.join(map(repr, batch))}; expected one of {', '.join(_INPUT_KEYS)} "
                f"for the inputs and one of {', '.join(_TARGET_KEYS)} for the labels. {advice}"
            )
        return batch[inputs[0]], batch[targets[0]]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[0], batch[1]
    raise DataError(f"A batch is {describe(batch)}, which has no labels; expected (inputs, targets). {advice}")


def is_soft(targets: Any) -> bool:
    """Whether targets are probabilities ``[B, C]`` of the classes, as MixUp and CutMix make them, or one-hot."""
    if not isinstance(targets, Tensor) or not targets.is_floating_point():
        return False
    return targets.dim() == 2 and targets.shape[1] > 1 and sums_to_one(targets)


def class_indices(targets: Any) -> Any:
    """``[B]`` class indices: the likeliest class of soft labels, and labels ``[B, 1]`` without their last dimension."""
    if is_soft(targets):
        return targets.argmax(1)
    if isinstance(targets, Tensor) and targets.dim() == 2 and targets.shape[1] == 1:
        targets = targets.squeeze(1)
    return targets


def sums_to_one(targets: Tensor) -> bool:
    """Whether every row ``[B, C]`` of targets sums to one, and nothing in it is negative."""
    return bool((targets >= 0).all()) and bool(((targets.double().sum(1) - 1).abs() < 1e-3).all())


def batch_groups(targets: Any, batch_size: int, num_groups: int, group_fn: GroupFn | None = None) -> Tensor:
    """Group of each image of a batch: its label, or what ``group_fn`` makes of it.

    Args:
        targets: the batch's targets; without ``group_fn``, ``[B]`` class indices, or soft labels ``[B, C]``.
        batch_size: number ``B`` of images in the batch.
        num_groups: number of classes or groups.
        group_fn: function from targets to ``[B]`` group indices.

    Returns:
        ``[B]`` int64.

    Raises:
        DataError: if there are not exactly ``B`` integers from 0 to ``num_groups - 1``.
    """
    groups = class_indices(targets) if group_fn is None else targets
    if group_fn is not None:
        with preserve_rng():
            groups = group_fn(targets)
    name = "targets" if group_fn is None else "group_fn(targets)"
    advice = "" if group_fn else " Pass group_fn= if images are to be grouped by something other than one label each."
    found = describe(groups)
    try:
        groups = torch.as_tensor(groups)
    except (TypeError, ValueError, RuntimeError):
        groups = torch.empty(0, 0)
    if groups.is_floating_point() or groups.is_complex() or groups.ndim != 1:
        raise DataError(f"{name} is {found}; expected [B] integers, one class index for each image.{advice}")
    if len(groups) != batch_size:
        raise DataError(f"{name} has {len(groups)} entries for a batch of {batch_size} images; expected one each.")
    groups = groups.long()
    if groups.device.type == "cpu" and len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < num_groups:
        raise DataError(
            f"{name} holds labels from {int(groups.min())} to {int(groups.max())}; expected 0 to {num_groups - 1}, as "
            f"the model tells {num_groups} classes apart. Pass num_classes= if that number is wrong."
        )
    return groups


def ranks_in_group(groups: Tensor, seen: Tensor) -> Tensor:
    """Place of each image of a batch among all images of its group, counted from 0.

    Args:
        groups: ``[B]`` int64 group indices; an index that is none of ``C`` groups has no place.
        seen: ``[C]`` int64, images of each group in earlier batches; the batch's are added in place.

    Returns:
        ``[B]`` int64, -1 where there is no place. Nothing here waits for the device.

    Example:
        >>> seen = torch.tensor([1, 0])
        >>> ranks_in_group(torch.tensor([0, 0, 1, -1, 0]), seen).tolist()
        [1, 2, 0, -1, 3]
        >>> seen.tolist()
        [4, 1]
    """
    known = groups.clamp(0, len(seen) - 1)
    membership = groups.unsqueeze(1) == torch.arange(len(seen), device=groups.device)
    place = (membership.cumsum(0) + seen).gather(1, known.unsqueeze(1)).squeeze(1) - 1
    seen += membership.sum(0)
    return torch.where(known == groups, place, -1)


def within(ranks: Tensor, groups: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Which images have a place from ``start`` to below ``stop`` in their group.

    Args:
        ranks: ``[B]`` int64 from :func:`ranks_in_group`.
        groups: ``[B]`` int64 group indices.
        start: ``[C]`` int64.
        stop: ``[C]`` int64.

    Returns:
        ``[B]`` bool.
    """
    known = groups.clamp(0, len(stop) - 1)
    return (ranks >= start[known]) & (ranks < stop[known]) & (ranks >= 0)


def count_images(inputs: Any) -> int:
    """Length of the first dimension of the first tensor in ``inputs`` that has one.

    Raises:
        DataError: if there is none.
    """
    size = batch_size(inputs)
    if size is None:
        raise DataError(
            f"The inputs of a batch are {describe(inputs)}; expected a tensor [B, ...] or a collection that holds one. "
            "Pass batch_fn=, a function from a batch to (inputs, targets)."
        )
    return size


def describe(value: Any) -> str:
    """What a value is, for an error message."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
