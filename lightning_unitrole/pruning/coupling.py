"""Which channels of a network must leave together, found by tracing one forward pass with Torch-Pruning.

A residual sum, a depthwise convolution or a gate ties channels of several layers to each other. The dependency graph
is that of Torch-Pruning (Fang et al., "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900). Only its graph is
used: what a removal takes is written down here as slices of named tensors, so that removing, masking, resuming and
slicing the optimizer's state all follow the same list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.errors import BackendError, TraceError
from lightning_unitrole.network.isolation import undisturbed
from lightning_unitrole.network.structures import tensors_in

Place = tuple[str, int]
"""Name of a parameter or buffer, and one of its dimensions."""

Choice = Mapping[str, Sequence[int]]
"""Items to remove, by the name of their channel group."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVOLUTIONS, nn.Linear)
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that share a width: a removal takes an item, which is one channel of each of them, or several.

    Attributes:
        name: the first convolution of the group, in the order in which the model runs them.
        channels: for each convolution or linear layer that computes these channels, by module name, the output
            channels of each of the N items.
        slices: for each place that a removal reaches, the indices of each of the N items.
        reason: why no channel can be removed; None where that is possible.
    """

    name: str
    channels: Mapping[str, Sequence[tuple[int, ...]]]
    slices: Mapping[Place, Sequence[tuple[int, ...]]]
    reason: str | None = None

    def __len__(self) -> int:
        return len(next(iter(self.channels.values())))


@dataclass(frozen=True)
class ChannelGraph:
    """The channel groups of a network.

    Attributes:
        groups: in the order in which the model runs their first layers.
        sizes: shape of each parameter and buffer.
        parameters: names of the parameters.
        positions: for the weight of each convolution and linear layer that ran, the number of places of one image at
            which it is applied: multiply-accumulate operations for each of its entries.
    """

    groups: Sequence[ChannelGroup]
    sizes: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]
    positions: Mapping[str, int]

    @property
    def by_name(self) -> dict[str, ChannelGroup]:
        """The groups by their names."""
        return {group.name: group for group in self.groups}

    def taken(self, choice: Choice) -> dict[Place, set[int]]:
        """The indices that a choice of items takes from each place that it reaches."""
        groups, taken = self.by_name, defaultdict[Place, set[int]](set)
        for name, items in choice.items():
            for place, indices in groups[name].slices.items() if len(items) else ():
                taken[place].update(*(indices[item] for item in items))
        return dict(taken)


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


def channel_graph(forward: Callable[[Any], Any], model: nn.Module, inputs: Any, *, batch: int) -> ChannelGraph:
    """Trace one forward pass and find the channels that must leave together.

    The model is left as it was: modes, flags, buffers, gradients and random state.

    Args:
        forward: called with ``inputs``; runs ``model``.
        model: the module by which layers are named.
        inputs: one batch; two images are enough.
        batch: number of images in it.

    Raises:
        TraceError: if the forward pass cannot be followed.
        BackendError: if Torch-Pruning is not installed.
    """
    library = torch_pruning()
    with undisturbed(model), everything_trainable(model), torch.enable_grad():
        positions = _positions(forward, model, inputs, batch)
        graph = library.DependencyGraph()
        try:
            graph.build_dependency(
                model, inputs, forward_fn=lambda _, batch: _differentiable(forward(batch)), verbose=False
            )
        except Exception as error:
            raise TraceError(
                f"The forward pass could not be followed to see which channels hang together. "
                f"{type(error).__name__}: {error}"
            ) from error
        groups = _Finder(model, graph, library).groups()
    sizes = {name: tuple(tensor.shape) for name, tensor in _named_tensors(model)}
    return ChannelGraph(groups, sizes, frozenset(dict(model.named_parameters())), positions)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _differentiable(outputs: Any) -> list[Tensor]:
    # Copies: an output that the model itself goes on with would not be seen to be one.
    found = [tensor.clone() for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
    if not found:
        raise TraceError("The model's outputs do not depend on its parameters; expected a differentiable output.")
    return found


@contextmanager
def everything_trainable(model: nn.Module) -> Iterator[None]:
    """Frozen parameters would hide what lies before them: the library follows gradients."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    frozen = [parameter for parameter in frozen if parameter.is_floating_point() or parameter.is_complex()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _positions(forward: Callable[[Any], Any], model: nn.Module, inputs: Any, batch: int) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)

    def counter(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: Any, output: Tensor) -> None:
            if isinstance(module, _CONVOLUTIONS) and module.transposed:
                found[name] += args[0].numel() // (module.in_channels * batch)
            else:
                found[name] += output.numel() // (_width(module) * batch)

        return count

    hooks = [
        module.register_forward_hook(counter(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
    ]
    try:
        with torch.no_grad():
            forward(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(found)


@dataclass
class _Item:
    """What leaves together with one channel, while it is being put together."""

    channels: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    slices: dict[Place, set[int]] = field(default_factory=lambda: defaultdict(set))
    reasons: set[str] = field(default_factory=set)

    def join(self, other: _Item) -> None:
        for name, channels in other.channels.items():
            self.channels[name] |= channels
        for place, indices in other.slices.items():
            self.slices[place] |= indices
        self.reasons |= other.reasons


class _Finder:
    """Turns the library's groups into items, and items into channel groups."""

    def __init__(self, model: nn.Module, graph: Any, library: Any) -> None:
        self.graph = graph
        self.names = {module: name for name, module in model.named_modules()}
        self.parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
        rms_norm = getattr(nn, "RMSNorm", ())
        self.norms = {name for name, module in model.named_modules() if isinstance(module, rms_norm)}
        self.dummies = tuple(
            getattr(library.ops, name) for name in dir(library.ops) if name.startswith("_") and name.endswith("Op")
        )
        self.output = library.ops._OutputOp
        self.order = {name: index for index, (name, _) in enumerate(model.named_modules())}
        self.shared = _shared_tensors(model)
        self.tensors = dict(_named_tensors(model))
        self.item_of: dict[tuple[str, int], _Item] = {}

    def groups(self) -> list[ChannelGroup]:
        for module in list(self.graph.module2node):
            if isinstance(module, _LAYERS):
                self._follow(module)
        items = {id(item): item for item in self.item_of.values()}
        groups: list[tuple[set[str], list[_Item]]] = []
        for item in items.values():
            names, together = set(item.channels), [item]
            apart = []
            for layers, others in groups:
                if layers & names:
                    names, together = names | layers, others + together
                else:
                    apart.append((layers, others))
            groups = [*apart, (names, together)]
        found = [self._group(items) for _, items in groups]
        return sorted(found, key=lambda group: min(self.order[name] for name in group.channels))

    def _group(self, items: list[_Item]) -> ChannelGroup:
        names = sorted({name for item in items for name in item.channels}, key=self.order.__getitem__)
        items = sorted(items, key=lambda item: min(item.channels.get(names[0], {-1})))
        reasons = {reason for item in items for reason in item.reasons}
        # Layers of one width take the same number of channels from the same places.
        if len({_extent(item) for item in items}) > 1:
            reasons.add("some of its channels go another way than the others (a slice, split or chunk)")
        return ChannelGroup(
            name=names[0],
            channels={name: [tuple(sorted(item.channels[name])) for item in items] for name in names},
            slices={place: [tuple(sorted(item.slices[place])) for item in items] for place in items[0].slices},
            reason="; ".join(sorted(reasons)) or None,
        )

    def _follow(self, module: nn.Module) -> None:
        """Everything that hangs on the output channels of one layer."""
        name, width = self.names[module], _width(module)
        pruner = self.graph.get_pruner_of_module(module)
        known = {id(self.item_of.get((name, channel))) for channel in range(width)}
        if id(None) not in known and len(known) == width:
            return  # every channel was reached from a layer that it is tied to
        fresh = [_Item() for _ in range(width)]
        for channel, item in enumerate(fresh):
            item.channels[name].add(channel)
        group = self.graph.get_pruning_group(module, pruner.prune_out_channels, list(range(width)))
        for entry in group:
            for place, divisor in self._places(entry.dep, fresh):
                indices = [index % divisor if divisor else index for index in entry.idxs]
                if max(indices) >= self.tensors[place[0]].shape[place[1]]:
                    self._refuse(fresh, f"its channels cannot be followed to {place[0]!r}, which has fewer of them")
                    continue
                for root, index in zip(entry.root_idxs, indices, strict=True):
                    fresh[root].slices[place].add(index)
            target = entry.dep.target.module
            if self._is_output_side(entry.dep) and isinstance(target, _LAYERS):
                for root, index in zip(entry.root_idxs, entry.idxs, strict=True):
                    fresh[root].channels[self.names[target]].add(index)
            self._tie_convolution_groups(entry, fresh)
        for item in fresh:
            self._merge(item)

    def _tie_convolution_groups(self, entry: Any, fresh: list[_Item]) -> None:
        """Every group of a grouped convolution loses a channel at the same place, so that all stay equally wide."""
        conv = entry.dep.target.module
        if not isinstance(conv, _CONVOLUTIONS) or conv.groups == 1 or _is_depthwise(conv):
            return
        width = conv.out_channels if self._is_output_side(entry.dep) else conv.in_channels
        by_offset: dict[int, list[int]] = defaultdict(list)
        for root, index in zip(entry.root_idxs, entry.idxs, strict=True):
            by_offset[index % (width // conv.groups)].append(root)
        for first, *others in by_offset.values():
            for other in others:
                fresh[first].join(fresh[other])
                fresh[other] = fresh[first]

    def _merge(self, item: _Item) -> None:
        keys = [(name, channel) for name, channels in item.channels.items() for channel in channels]
        for other in {id(self.item_of[key]): self.item_of[key] for key in keys if key in self.item_of}.values():
            if other is not item:
                item.join(other)
        for name, channels in item.channels.items():
            for channel in channels:
                self.item_of[name, channel] = item

    def _is_output_side(self, dep: Any) -> bool:
        return bool(self.graph.is_out_channel_pruning_fn(dep.handler))

    def _places(self, dep: Any, items: list[_Item]) -> list[tuple[Place, int]]:
        """Places that an entry of the library's group reaches, each with a number that indices are taken modulo."""
        target, output_side = dep.target.module, self._is_output_side(dep)
        if isinstance(target, self.output) or (output_side and not dep.target.outputs):
            return self._refuse(items, "its channels are an output of the network")
        if isinstance(target, self.dummies):
            return []
        if isinstance(target, nn.Parameter):
            parameter = self.parameter_names[id(target)]
            owner = parameter.rpartition(".")[0]
            if owner in self.norms:
                return self._refuse(items, f"its channels run through {owner!r}, from which none can be removed")
            return self._checked(items, [((parameter, dep.target.pruning_dim), 0)])
        name, kind = self.names[target], type(target).__name__
        if isinstance(target, _CONVOLUTIONS):
            rows, columns = (1, 0) if target.transposed else (0, 1)
            if target.transposed and target.groups > 1:
                return self._refuse(items, f"{name!r} is a transposed convolution with groups")
            if output_side or _is_depthwise(target):
                return self._checked(items, [((f"{name}.weight", rows), 0), ((f"{name}.bias", 0), 0)])
            return self._checked(items, [((f"{name}.weight", columns), target.in_channels // target.groups)])
        if isinstance(target, nn.Linear):
            if output_side:
                return self._checked(items, [((f"{name}.weight", 0), 0), ((f"{name}.bias", 0), 0)])
            return self._checked(items, [((f"{name}.weight", 1), 0)])
        if isinstance(target, _BATCH_NORMS):
            tensors = ("weight", "bias", "running_mean", "running_var")
            if isinstance(target, nn.modules.instancenorm._InstanceNorm) and target.weight is None:
                return self._refuse(items, f"{name!r}, a {kind}, has no weights by which to see its width")
            return self._checked(items, [((f"{name}.{tensor}", 0), 0) for tensor in tensors])
        if isinstance(target, nn.LayerNorm) and len(target.normalized_shape) == 1 and target.elementwise_affine:
            return self._checked(items, [((f"{name}.weight", 0), 0), ((f"{name}.bias", 0), 0)])
        if isinstance(target, nn.PReLU):
            return self._checked(items, [((f"{name}.weight", 0), 0)] if target.num_parameters > 1 else [])
        return self._refuse(items, f"its channels run through {name!r}, a {kind}, from which none can be removed")

    def _checked(self, items: list[_Item], places: list[tuple[Place, int]]) -> list[tuple[Place, int]]:
        present = []
        for (name, dim), divisor in places:
            owner, _, tensor = name.rpartition(".")
            if name in self.shared:
                self._refuse(items, f"{name!r} is shared with {self.shared[name]!r}")
            elif name in self.tensors:
                present.append(((name, dim), divisor))
            elif tensor == "weight" and self._lacks_weight(owner):
                self._refuse(items, f"the weight of {owner!r} is computed from other parameters (a parametrization)")
        return present

    def _lacks_weight(self, owner: str) -> bool:
        return any(name == owner and getattr(module, "weight", None) is not None for module, name in self.names.items())

    @staticmethod
    def _refuse(items: Iterable[_Item], reason: str) -> list[tuple[Place, int]]:
        for item in items:
            item.reasons.add(reason)
        return []


def _extent(item: _Item) -> tuple[Any, ...]:
    """How many channels an item takes from where."""
    return (
        *sorted((name, len(channels)) for name, channels in item.channels.items()),
        *sorted((place, len(indices)) for place, indices in item.slices.items()),
    )


def layer_widths(model: nn.Module) -> dict[str, int]:
    """Output channels of each convolution and linear layer, in the order in which the model holds them."""
    return {name: _width(module) for name, module in model.named_modules() if isinstance(module, _LAYERS)}


def _width(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _is_depthwise(conv: Any) -> bool:
    return bool(conv.groups == conv.in_channels == conv.out_channels and conv.groups != 1)


def _shared_tensors(model: nn.Module) -> dict[str, str]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    modules: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        modules[id(module)].append(name)
    doubled = {alias for aliases in modules.values() for alias in aliases[1:]}
    shared: dict[str, str] = {}
    for aliases in names.values():
        distinct = [alias for alias in aliases if alias.rpartition(".")[0] not in doubled]
        if len(distinct) > 1:
            shared |= {alias: distinct[0] if alias != distinct[0] else distinct[1] for alias in distinct}
    return shared
