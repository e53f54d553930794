"""Which channels of a network must leave together, found by tracing one forward pass with Torch-Pruning.

A residual sum, a depthwise convolution or a gate ties channels of several layers to each other. The dependency graph
is that of Torch-Pruning (Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900). Only its graph is
used: what a removal takes is written down here as slices of named tensors, so that removing, masking, resuming and
slicing the optimizer's state all follow the same list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.errors import BackendError, TraceError
from lightning_unitrole.network.isolation import hooked, undisturbed, with_gradients
from lightning_unitrole.network.structures import tensors_in
from lightning_unitrole.pruning.finder import Finder, named_tensors
from lightning_unitrole.pruning.groups import CONVOLUTIONS, LAYERS, width_of
from lightning_unitrole.pruning.groups import ChannelGraph as ChannelGraph
from lightning_unitrole.pruning.groups import ChannelGroup as ChannelGroup
from lightning_unitrole.pruning.heads import head_groups, with_heads
from lightning_unitrole.pruning.loose import loose_graph


def torch_pruning() -> Any:
    """The library Torch-Pruning.

    Raises:
        BackendError: if it is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise BackendError(
            "Pruning needs the library Torch-Pruning: pip install 'lightning-unitrole[prune]'."
        ) from error
    return torch_pruning


def channel_graph(
    forward: Callable[[Any], Any], model: nn.Module, inputs: Any, *, batch: int, loose: bool = False
) -> ChannelGraph:
    """Trace one forward pass and find the channels that must leave together.

    The model is left as it was: modes, flags, buffers, gradients and random state.

    Args:
        forward: called with ``inputs``; runs ``model``.
        model: the module by which layers are named.
        inputs: one batch; two images are enough.
        batch: number of images in it.
        loose: take each convolution on its own where the forward pass cannot be followed; enough to hold units at zero.

    Raises:
        TraceError: if the forward pass cannot be followed.
        BackendError: if Torch-Pruning is not installed.
    """
    library = torch_pruning()
    with undisturbed(model), everything_trainable(model), torch.enable_grad():
        positions = _positions(forward, model, inputs, batch)
        heads = partial(head_groups, forward, model, inputs, batch=batch, positions=positions, loose=loose)
        graph = library.DependencyGraph()
        try:
            graph.build_dependency(
                model, inputs, forward_fn=lambda _, batch: _differentiable(forward(batch)), verbose=False
            )
        except Exception as error:
            if loose:
                found = loose_graph(forward, model, inputs, positions)
                return replace(found, groups=with_heads([*found.groups], heads()))
            raise TraceError(
                "The forward pass could not be followed to see which channels hang together, as where channels are "
                "shuffled or reshaped by hand, so no channel can be removed. mode='mask' without remove_at_end holds "
                f"units of this network at zero instead. {type(error).__name__}: {error}"
            ) from error
        groups = with_heads(Finder(model, graph, library).groups(), heads())
    sizes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    return ChannelGraph(groups, sizes, frozenset(dict(model.named_parameters())), positions)


def _differentiable(outputs: Any) -> list[Tensor]:
    # Copies: an output that the model itself goes on with would not be seen to be one.
    found = [tensor.clone() for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
    if not found:
        raise TraceError("The model's outputs do not depend on its parameters; expected a differentiable output.")
    return found


def everything_trainable(model: nn.Module) -> AbstractContextManager[None]:
    """Frozen parameters would hide what lies before them: the library follows gradients."""
    possible = (one for one in model.parameters() if one.is_floating_point() or one.is_complex())
    return with_gradients(possible, True)


def _positions(forward: Callable[[Any], Any], model: nn.Module, inputs: Any, batch: int) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)

    def counter(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: Any, output: Tensor) -> None:
            if isinstance(module, CONVOLUTIONS) and module.transposed:
                found[name] += args[0].numel() // (module.in_channels * batch)
            else:
                found[name] += output.numel() // (width_of(module) * batch)

        return count

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]
    with hooked(layer.register_forward_hook(counter(f"{name}.weight")) for name, layer in layers), torch.no_grad():
        forward(inputs)
    return dict(found)
