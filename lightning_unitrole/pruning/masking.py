"""Holding units at zero while a network trains: what a removal would take is zero instead, and can come back."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.errors import DataError
from lightning_unitrole.pruning.groups import CHANNEL_NORMS
from lightning_unitrole.pruning.removal import Removal


class UnitMask:
    """Zeros in place of everything that a removal would take, so that the network computes what the smaller one would.

    Layer and RMS normalisation compute their statistics from the units that are left, by a hook; elsewhere only
    parameters change, so compiled models and every optimizer go on as they are.

    Args:
        model: the network; changed in place.
        removal: what a removal would leave.

    Raises:
        DataError: if the network does not have the parameters that the record speaks of.
    """

    def __init__(self, model: nn.Module, removal: Removal) -> None:
        self._holes = removed_entries(model, removal)
        self._hooks = [
            module.register_forward_hook(_LayerNormOfKept(module, removal.kept[f"{name}.weight"][0]))
            for name, module in model.named_modules()
            if isinstance(module, CHANNEL_NORMS) and f"{name}.weight" in removal.kept
        ]
        self.take()

    def take(self) -> None:
        """Remember the entries as they are, so that they can come back, and set them to zero."""
        self._taken = [parameter.detach().index_select(dim, indices) for parameter, dim, indices in self._holes]
        self.hold()

    @property
    def hooks(self) -> int:
        """Number of forward hooks that the mask needs."""
        return len(self._hooks)

    @torch.no_grad()
    def hold(self) -> None:
        """Set the entries to zero again, after an optimizer step."""
        for parameter, dim, indices in self._holes:
            parameter.index_fill_(dim, indices.to(parameter.device), 0)

    @torch.no_grad()
    def hold_gradients(self) -> None:
        """Set the gradients of the entries to zero, so that they count in no norm and in no average."""
        for parameter, dim, indices in self._holes:
            gradient = parameter.grad
            if gradient is not None:
                gradient.index_fill_(dim, indices.to(gradient.device), 0)

    def drop(self) -> None:
        """Detach from the network, keeping masked weights at zero."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def restore(self) -> None:
        """Detach from the network, with every entry as it was when the mask was put on."""
        self.drop()
        self.put_back()

    @torch.no_grad()
    def put_back(self) -> None:
        """Set every entry to what it was when it was taken."""
        # Where two dimensions of a tensor are masked their copies overlap, and agree: both were taken from the whole.
        for (parameter, dim, indices), taken in zip(self._holes, self._taken, strict=True):
            parameter.index_copy_(dim, indices.to(parameter.device), taken.to(parameter.device))


def removed_entries(model: nn.Module, removal: Removal) -> list[tuple[nn.Parameter, int, Tensor]]:
    """Everything that a removal would take from the parameters of a network: parameter, dimension and indices.

    Raises:
        DataError: if the network does not have the parameters that the record speaks of.
    """
    parameters = dict(model.named_parameters())
    present = {*parameters, *dict(model.named_buffers())}
    for name, shape in removal.shapes.items():
        if name not in present:
            raise DataError(
                f"The mask does not fit this {type(model).__name__}: it has no parameter or buffer {name!r}."
            )
        if name in parameters and tuple(parameters[name].shape) != shape:
            raise DataError(
                f"The mask does not fit this {type(model).__name__}: {name!r} has shape "
                f"{list(parameters[name].shape)}; expected {list(shape)}."
            )
    return [
        (parameters[name], dim, removal.removed(name, dim).to(parameters[name].device))
        for name, dims in removal.kept.items()
        if name in parameters
        for dim in dims
    ]


@torch.no_grad()
def shrink(model: nn.Module, removal: Removal, steps_left: int) -> None:
    """Let what a removal would take shrink by one step, so that it is zero when no step is left.

    The proximal step of a group lasso on these weights whose strength grows: each norm loses the same at every step.
    It is taken after the optimizer's, so that neither the optimizer's memory nor the scale of the gradients plays a
    part, and it is the same in all processes.

    Args:
        model: the network; changed in place.
        removal: what a removal would leave.
        steps_left: how many of these steps are still to come after this one.

    Source: the growing strength is that of Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021.
    """
    for parameter, dim, indices in removed_entries(model, removal):
        part = parameter.index_select(dim, indices)
        parameter.index_copy_(dim, indices, part * (steps_left / (steps_left + 1)))


class _LayerNormOfKept:
    """Forward hook that normalises over the kept channels alone."""

    def __init__(self, module: Any, kept: Tensor) -> None:
        self.kept = kept
        self.dim = _channel_dim(module)

    def __call__(self, module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        kept = self.kept.to(output.device)
        narrow = copy.copy(module)
        narrow._parameters = {}
        narrow.normalized_shape = (len(kept),)
        for name, parameter in module._parameters.items():
            # Plain attributes: they carry the gradient back to the parameters of the layer.
            object.__setattr__(narrow, name, None if parameter is None else parameter.index_select(0, kept))
        normalised = type(module).forward(narrow, args[0].index_select(self.dim, kept))
        return torch.zeros_like(output).index_copy(self.dim, kept, normalised)


def _channel_dim(module: Any) -> int:
    """Dimension over which a layer, or a subclass that moves channels, normalises."""
    if type(module) in CHANNEL_NORMS:
        return -1
    width = module.normalized_shape[0]
    other = 3 if width != 3 else 5
    try:
        with torch.no_grad():
            type(module).forward(module, module.weight.new_zeros(1, width, other, other))
    except RuntimeError:
        return -1
    return 1
