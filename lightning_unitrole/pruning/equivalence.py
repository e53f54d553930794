"""Removing units only where the smaller network computes what the masked one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.errors import TraceError
from lightning_unitrole.network.isolation import hooked, undisturbed
from lightning_unitrole.network.structures import tensors_in
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.removal import Change, Removal, remove

TOLERANCES = {torch.float64: 1e-6, torch.float32: 5e-3}
COARSE = 5e-2
"""Largest difference that rounding may make, as a share of the largest output, by the coarsest type that a layer
computes in; ``COARSE`` for half precision."""


def remove_checked(forward: Callable[[Any], Any], model: nn.Module, removal: Removal, inputs: Any) -> Change:
    """Make a network smaller, and see by one batch that its outputs are those of the masked network.

    Args:
        forward: called with ``inputs``; runs ``model``.
        model: the network; changed in place.
        removal: what stays.
        inputs: a batch; two images are enough.

    Raises:
        TraceError: if the smaller network does not run, or its outputs differ. The network is as it was then.
    """
    expected, tolerance = _masked(forward, model, removal, inputs)
    change, outputs = _removed(forward, model, removal, inputs)
    found = _difference(expected, outputs, tolerance)
    if found is not None:
        change.undo()
        raise TraceError(
            f"Nothing was removed: the outputs of the smaller network {found} from those of the network with the "
            "same units at zero. The model mixes channels in a way that the dependency graph does not see; leave "
            "the layers out with skip_layers=, or use mode='mask'."
        )
    return change


def same_masked(
    forward: Callable[[Any], Any], other: Callable[[Any], Any], model: nn.Module, removal: Removal, inputs: Any
) -> bool:
    """Whether the masked network computes what it does unmasked in another way.

    Args:
        forward: called with ``inputs``; runs ``model``.
        other: the same in another way, as where units are set to zero while it runs.
        model: the network; left as it is.
        removal: what is to be held at zero.
        inputs: a batch; two images are enough.
    """
    masked, tolerance = _masked(forward, model, removal, inputs)
    with undisturbed(model), torch.no_grad():
        return _difference(masked, _floats(other(inputs)), tolerance) is None


def _difference(expected: list[Tensor], outputs: list[Tensor], tolerance: float) -> str | None:
    """In what outputs differ by more than a tolerance, as a share of the largest; None where they do not."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in outputs]:
        return "have another shape"
    for before, after in zip(expected, outputs, strict=True):
        difference = float((before - after).abs().max()) if before.numel() else 0.0
        largest = float(before.abs().max()) if before.numel() else 0.0
        if not difference <= tolerance * largest:
            return f"differ by {difference:.3g}"
    return None


def remove_running(forward: Callable[[Any], Any], model: nn.Module, removal: Removal, inputs: Any) -> Change:
    """Make a network smaller, and see that it runs; for half the time of :func:`remove_checked`.

    Args:
        forward: called with ``inputs``; runs ``model``.
        model: the network; changed in place.
        removal: what stays.
        inputs: a batch; two images are enough.

    Raises:
        TraceError: if the smaller network does not run. The network is as it was then.
    """
    return _removed(forward, model, removal, inputs)[0]


def _removed(
    forward: Callable[[Any], Any], model: nn.Module, removal: Removal, inputs: Any
) -> tuple[Change, list[Tensor]]:
    """The change that was made, and the outputs after it."""
    change = remove(model, removal)
    try:
        with undisturbed(model), torch.no_grad():
            return change, _floats(forward(inputs))
    except Exception as error:
        change.undo()
        raise TraceError(
            f"Without these units the forward pass fails, so nothing was removed: {type(error).__name__}: {error}. "
            "Does the model write a number of channels into its forward method? Leave out the layer with skip_layers=."
        ) from error


def _masked(
    forward: Callable[[Any], Any], model: nn.Module, removal: Removal, inputs: Any
) -> tuple[list[Tensor], float]:
    """Outputs with units at zero, and the tolerance for the coarsest type that a layer, or the whole, computes in."""
    found: set[torch.dtype] = set()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.update(tensor.dtype for tensor in tensors_in(output) if tensor.is_floating_point())

    with hooked(module.register_forward_hook(note) for module in model.modules()), undisturbed(model), torch.no_grad():
        mask = UnitMask(model, removal)
        try:
            outputs = forward(inputs)
            note(model, (), outputs)
        finally:
            mask.restore()
    return _floats(outputs), max((TOLERANCES.get(dtype, COARSE) for dtype in found), default=COARSE)


def _floats(outputs: Any) -> list[Tensor]:
    return [tensor.detach().double() for tensor in tensors_in(outputs) if tensor.is_floating_point()]
