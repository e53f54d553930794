"""Units of networks whose channels cannot be followed: each convolution on its own, to be held at zero only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.network.isolation import hooked, undisturbed
from lightning_unitrole.network.structures import tensors_in
from lightning_unitrole.pruning.finder import named_tensors, shared_tensors
from lightning_unitrole.pruning.groups import CONVOLUTIONS, ChannelGraph, ChannelGroup, Place

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


def loose_graph(
    forward: Callable[[Any], Any], model: nn.Module, inputs: Any, positions: dict[str, int]
) -> ChannelGraph:
    """A group for each convolution, with the normalisation that reads its output; nothing hangs together.

    A unit of such a group is zero behind the normalisation when all that the group says is zero. No shape may follow
    from it: what other layers do with the channels is unknown.

    Args:
        forward: called with ``inputs``; runs ``model``.
        model: the module by which layers are named.
        inputs: one batch; two images are enough.
        positions: see :class:`~lightning_unitrole.pruning.groups.ChannelGraph`.
    """
    norms, last = _what_follows(forward, model, inputs)
    tensors, shared = dict(named_tensors(model)), shared_tensors(model)
    groups = []
    for name, followers in norms.items():
        conv: Any = model.get_submodule(name)
        places: list[Place] = [(f"{name}.weight", int(conv.transposed)), (f"{name}.bias", 0)]
        places += [(f"{norm}.{tensor}", 0) for norm in followers for tensor in ("weight", "bias")]
        items = [(channel,) for channel in range(conv.out_channels)]
        reason = None
        if name == last:
            reason = "its channels may be an output of the network"
        elif any(place in shared for place, _ in places):
            reason = "its weights are shared with another layer"
        elif conv.transposed and conv.groups > 1:
            reason = f"{name!r} is a transposed convolution with groups"
        elif f"{name}.weight" not in tensors or any(f"{norm}.bias" not in tensors for norm in followers):
            reason = "it has no weights of its own, or its normalisation has no bias, so it cannot be held at zero"
        slices = {place: items for place in places if place[0] in tensors}
        groups.append(ChannelGroup(name, {name: items}, slices, reason))
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return ChannelGraph(groups, sizes, frozenset(dict(model.named_parameters())), positions)


def _what_follows(
    forward: Callable[[Any], Any], model: nn.Module, inputs: Any
) -> tuple[dict[str, list[str]], str | None]:
    """The normalisations that read the output of each convolution; and a convolution behind which no layer comes."""
    outputs: list[tuple[Tensor, str]] = []
    found: dict[str, list[str]] = {}
    last: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(module, CONVOLUTIONS):
                found.setdefault(name, [])
                outputs.append((output, name))
            if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
                last[:] = [name]
            if isinstance(module, _NORMS):
                read = list(tensors_in(args))
                for tensor, conv in outputs:
                    if any(tensor is one for one in read) and name not in found[conv]:
                        found[conv].append(name)

        return hook

    kinds = (*CONVOLUTIONS, nn.Linear, *_NORMS)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    hooks = (module.register_forward_hook(note(name)) for name, module in layers)
    with hooked(hooks), undisturbed(model), torch.no_grad():
        forward(inputs)
    return found, last[0] if last and last[0] in found else None
