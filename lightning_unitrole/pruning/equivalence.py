"""Removing units only where the smaller network computes what the masked one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.errors import TraceError
from lightning_unitrole.network.isolation import undisturbed
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
    tolerance = _tolerance(forward, model, inputs)
    expected = _outputs(forward, model, inputs, removal)
    change = remove(model, removal)
    try:
        outputs = _outputs(forward, model, inputs)
    except Exception as error:
        change.undo()
        raise TraceError(
            f"Without these units the forward pass fails, so nothing was removed: {type(error).__name__}: {error}. "
            "Does the model write a number of channels into its forward method? Leave out the layer with skip_layers=."
        ) from error
    alike = [tensor.shape for tensor in expected] == [tensor.shape for tensor in outputs]
    for before, after in zip(expected, outputs, strict=False):
        difference = float((before - after).abs().max()) if alike and before.numel() else 0.0
        if not alike or not difference <= tolerance * float(before.abs().max()):
            change.undo()
            found = f"differ by {difference:.3g}" if alike else "have another shape"
            raise TraceError(
                f"Nothing was removed: the outputs of the smaller network {found} from those of the network with the "
                "same units at zero. The model mixes channels in a way that the dependency graph does not see; leave "
                "the layers out with skip_layers=, or use mode='mask'."
            )
    return change


def _tolerance(forward: Callable[[Any], Any], model: nn.Module, inputs: Any) -> float:
    """The tolerance for the coarsest type that a layer, or the whole network, computes in."""
    found: set[torch.dtype] = set()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.update(tensor.dtype for tensor in tensors_in(output) if tensor.is_floating_point())

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with undisturbed(model), torch.no_grad():
            note(model, (), forward(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return max((TOLERANCES.get(dtype, COARSE) for dtype in found), default=COARSE)


def _outputs(
    forward: Callable[[Any], Any], model: nn.Module, inputs: Any, removal: Removal | None = None
) -> list[Tensor]:
    with undisturbed(model), torch.no_grad():
        mask = None if removal is None else UnitMask(model, removal)
        try:
            return [tensor.detach().double() for tensor in tensors_in(forward(inputs)) if tensor.is_floating_point()]
        finally:
            if mask is not None:
                mask.restore()
