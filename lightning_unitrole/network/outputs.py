"""Telling which of several tensors that a model returns are its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_unitrole.errors import DataError
from lightning_unitrole.network.losses import Path, entries, entry_at
from lightning_unitrole.network.structures import batch_size, map_tensors

LOGITS = ("logits", "out")
"""Names under which libraries return logits."""
_NO_LOGITS = ("feat", "embed", "hidden", "pool")


def named_logits(outputs: Any) -> Tensor | None:
    """The entry ``"logits"`` or ``"out"`` of a model's outputs, if there is one."""
    for name in LOGITS:
        named = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(named, Tensor):
            return named
    return None


def find_logits(
    forward: Callable[[Any], Any], inputs: Any, outputs: Any, *, classes: int | None = None, argument: str = "forward="
) -> Path | None:
    """Where among a model's outputs its logits are, by what is computed from what.

    Losses, predictions and probabilities are none, nor is what another output is computed from, such as features. Of
    several outputs of one shape, as of auxiliary heads, the first is taken.

    Args:
        forward: runs the model, in evaluation mode; called once more, with gradients, where there are several outputs.
        inputs: what it was called with.
        outputs: what it returned.
        classes: number of classes, where it is known.
        argument: name of the argument by which a user picks the logits.

    Returns:
        The way to them, for :func:`~lightning_unitrole.network.losses.entry_at`; None where there is one tensor alone,
        or an entry named ``"logits"`` or ``"out"``.

    Raises:
        DataError: if it cannot be told; the message names what was returned and the argument.
    """
    returned = [path for path, entry in entries(outputs) if isinstance(entry, Tensor)]
    if len(returned) < 2 or named_logits(outputs) is not None:
        return None
    size = batch_size(inputs)
    paths = [path for path in returned if _may_be_logits(path, entry_at(outputs, path), size)]
    of_width = [path for path in paths if entry_at(outputs, path).shape[1:2] == (classes,)]
    if len(of_width) == 1:
        return of_width[0]
    paths = _last_computed(forward, inputs, paths) if len(paths) > 1 else paths
    if not paths or len({entry_at(outputs, path).shape for path in paths}) > 1:
        shapes = (f"outputs{_written(outputs, path)} {list(entry_at(outputs, path).shape)}" for path in returned)
        call = "module, inputs: module(inputs)" if argument.startswith("forward_fn") else "inputs: model(inputs)"
        raise DataError(
            f"The model returned several tensors, {', '.join(shapes)}; which of them are the logits cannot be told. "
            f"Pass {argument}, a function that returns them alone, such as "
            f"lambda {call}{_written(outputs, (paths or returned)[-1])}."
        )
    return paths[0]


def _may_be_logits(path: Path, entry: Tensor, size: int | None) -> bool:
    name = ".".join(map(str, path)).lower()
    return (
        entry.is_floating_point()
        and entry.dim() > 0
        and (size is None or len(entry) == size)
        and not any(part in name for part in _NO_LOGITS)
    )


def _last_computed(forward: Callable[[Any], Any], inputs: Any, paths: list[Path]) -> list[Path]:
    """Those that no other is computed from, readings of others put aside; all if that cannot be seen."""
    try:
        with torch.enable_grad():
            outputs = forward(map_tensors(inputs, _followed))
            entry = {path: entry_at(outputs, path) for path in paths}
            whole = [path for path in paths if not any(_is_reading(entry[path], entry[other]) for other in paths)]
            return [path for path in whole if not any(_computed_from(entry[other], entry[path]) for other in whole)]
    except RuntimeError:  # a forward pass that allows no gradients
        return paths


def _followed(tensor: Tensor) -> Tensor:
    """A copy that gradients reach, also where no parameter wants any."""
    return tensor.clone().requires_grad_().clone() if tensor.is_floating_point() else tensor.clone()


def _computed_from(later: Tensor, earlier: Tensor) -> bool:
    if later is earlier or not later.requires_grad or not earlier.requires_grad:
        return False
    return torch.autograd.grad(later.sum(), earlier, retain_graph=True, allow_unused=True)[0] is not None


def _is_reading(one: Tensor, other: Tensor) -> bool:
    """Whether one output is what the probabilities are that belong to the logits of the other."""
    if one.shape != other.shape or one.dim() < 2 or torch.equal(one, other):
        return False
    readings = F.softmax(other, 1), F.log_softmax(other, 1), other.sigmoid()
    return any(torch.allclose(one, reading, atol=1e-6) for reading in readings)


def _written(outputs: Any, path: Path) -> str:
    """How a user writes the way to an output."""
    written = ""
    for step in path:
        written += f".{step}" if is_dataclass(outputs) and not isinstance(outputs, Mapping) else f"[{step!r}]"
        outputs = entry_at(outputs, (step,))
    return written
