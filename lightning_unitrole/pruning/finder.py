"""From Torch-Pruning's dependency graph to groups of channels, each with every place that its removal reaches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_unitrole.pruning.groups import (
    CONVOLUTIONS,
    LAYERS,
    ChannelGroup,
    Place,
    width_of,
)

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, under all of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


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


class _LostError(Exception):
    """The library fails, or takes something else for channels: no tensor of the network has so many."""


class _Index(NamedTuple):
    """A channel somewhere, and the channel of the layer at which the walk began that it belongs to."""

    idx: int
    root_idx: int


class _Start(NamedTuple):
    """Stands for the library's record of a dependency where a walk begins."""

    handler: Any
    target: Any


@dataclass
class _Entry:
    """A place that a walk reached: the library's record of how, and for each channel there the one at the start."""

    dep: Any
    roots: dict[int, int] = field(default_factory=dict)

    @property
    def idxs(self) -> list[int]:
        return list(self.roots)

    @property
    def root_idxs(self) -> list[int]:
        return list(self.roots.values())


class Finder:
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
        self.shared = shared_tensors(model)
        self.tensors = dict(named_tensors(model))
        self.item_of: dict[tuple[str, int], _Item] = {}
        self._mapped = False
        self._widest = max((size for tensor in self.tensors.values() for size in tensor.shape), default=0)

    def groups(self) -> list[ChannelGroup]:
        """The groups, in the order in which the model holds their first layers."""
        for module in list(self.graph.module2node):
            if isinstance(module, LAYERS):
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
        if len(items) == 1 and len(items[0].channels[names[0]]) > 1:
            reasons.add("all of its channels hang together, so that none can leave without the others")
        return ChannelGroup(
            name=names[0],
            channels={name: [tuple(sorted(item.channels[name])) for item in items] for name in names},
            slices={place: [tuple(sorted(item.slices[place])) for item in items] for place in items[0].slices},
            reason="; ".join(sorted(reasons)) or None,
        )

    def _follow(self, module: nn.Module) -> None:
        """Everything that hangs on the output channels of one layer."""
        name, width = self.names[module], width_of(module)
        pruner = self.graph.get_pruner_of_module(module)
        known = {id(self.item_of.get((name, channel))) for channel in range(width)}
        if id(None) not in known and len(known) == width:
            return  # every channel was reached from a layer that it is tied to
        fresh = [_Item() for _ in range(width)]
        for channel, item in enumerate(fresh):
            item.channels[name].add(channel)
        try:
            entries = self._reached(module, pruner.prune_out_channels, width)
        except _LostError:
            entries = []
            self._refuse(fresh, "its channels cannot be followed")
        for entry in entries:
            for place, divisor in self._places(entry.dep, fresh):
                indices = [index % divisor if divisor else index for index in entry.idxs]
                if max(indices) >= self.tensors[place[0]].shape[place[1]]:
                    self._refuse(fresh, f"its channels cannot be followed to {place[0]!r}, which has fewer of them")
                    continue
                for root, index in zip(entry.root_idxs, indices, strict=True):
                    fresh[root].slices[place].add(index)
            target = entry.dep.target.module
            if self._is_output_side(entry.dep) and isinstance(target, LAYERS):
                for root, index in zip(entry.root_idxs, entry.idxs, strict=True):
                    fresh[root].channels[self.names[target]].add(index)
            self._tie_groups(entry, fresh)
        for item in {id(item): item for item in fresh}.values():
            self._merge(item)

    def _reached(self, module: nn.Module, function: Any, width: int) -> list[_Entry]:
        """Where the output channels of a layer lead, by the library's own rules.

        Its walk compares the channels of each step with those of all steps before, and walks again from a place that
        only some of them had reached. Here each channel is followed once from each place.

        Raises:
            _LostError: if it leads to more channels than there are, or the library fails on the way.
        """
        if not self._mapped:
            try:
                self.graph.get_pruning_group(module, function, [0])  # works out how indices map from layer to layer
            except Exception as error:
                raise _LostError from error
            self._mapped = True
        start = _Start(function, self.graph.module2node[module])
        reached: dict[tuple[int, Any], _Entry] = {}
        waiting: list[tuple[Any, Iterable[Any]]] = [(start, [_Index(channel, channel) for channel in range(width)])]
        while waiting:
            dep, indices = waiting.pop()
            entry = reached.setdefault((id(dep.target), dep.handler), _Entry(dep))
            new = {pair.idx: pair.root_idx for pair in indices if pair.idx not in entry.roots}
            if not new:
                continue
            entry.roots.update(new)
            if max(new) >= self._widest:
                raise _LostError
            for following in dep.target.dependencies:
                if following.is_triggered_by(dep.handler):
                    mapped = _mapped([_Index(*pair) for pair in new.items()], following.index_mapping)
                    if mapped:
                        waiting.append((following, mapped))
        return list(reached.values())

    def _tie_groups(self, entry: _Entry, fresh: list[_Item]) -> None:
        """What can only leave together inside of a layer.

        Every group of a grouped convolution loses a channel at the same place, so that all stay equally wide. Of a
        group normalisation whole groups leave, so that those that stay are normalised as before.
        """
        layer = entry.dep.target.module
        if isinstance(layer, CONVOLUTIONS) and layer.groups > 1 and not _is_depthwise(layer):
            width = layer.out_channels if self._is_output_side(entry.dep) else layer.in_channels
            size = width // layer.groups
            keys = [index % size for index in entry.idxs]
        elif isinstance(layer, nn.GroupNorm):
            size = layer.num_channels // layer.num_groups
            keys = [index // size for index in entry.idxs]
        else:
            return
        together: dict[int, list[int]] = defaultdict(list)
        for root, key in zip(entry.root_idxs, keys, strict=True):
            together[key].append(root)
        for first, *others in together.values():
            for other in others:
                joined, gone = fresh[first], fresh[other]
                if joined is not gone:
                    joined.join(gone)
                    fresh[:] = [joined if item is gone else item for item in fresh]

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
            if owner in self.norms and target.dim() > 1:
                return self._refuse(items, f"its channels run through {owner!r}, which normalises more than channels")
            return self._checked(items, [((parameter, dep.target.pruning_dim % target.dim()), 0)])
        name, kind = self.names[target], type(target).__name__
        if isinstance(target, CONVOLUTIONS):
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
        if isinstance(target, nn.GroupNorm) and target.affine:
            if target.num_groups == 1:
                return self._refuse(items, f"{name!r}, a {kind} with one group, normalises all channels together")
            return self._checked(items, [((f"{name}.weight", 0), 0), ((f"{name}.bias", 0), 0)])
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
                self._refuse(
                    items,
                    f"the weight of {owner!r} is computed from other parameters (a parametrization); make it a plain "
                    "one, with torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.remove_weight_norm",
                )
        return present

    def _lacks_weight(self, owner: str) -> bool:
        return any(name == owner and getattr(module, "weight", None) is not None for module, name in self.names.items())

    @staticmethod
    def _refuse(items: Iterable[_Item], reason: str) -> list[tuple[Place, int]]:
        for item in items:
            item.reasons.add(reason)
        return []


def _mapped(indices: list[Any], mappings: Iterable[Any]) -> list[Any]:
    """The channels beyond a dependency; the library's mappings fail in many ways where channels are folded."""
    try:
        for mapping in mappings:
            indices = indices if mapping is None else mapping(indices)
    except Exception as error:
        raise _LostError from error
    return indices


def _extent(item: _Item) -> tuple[Any, ...]:
    """How many channels an item takes from where."""
    return (
        *sorted((name, len(channels)) for name, channels in item.channels.items()),
        *sorted((place, len(indices)) for place, indices in item.slices.items()),
    )


def _is_depthwise(conv: Any) -> bool:
    return bool(conv.groups == conv.in_channels == conv.out_channels and conv.groups != 1)


def shared_tensors(model: nn.Module) -> dict[str, str]:
    """For each parameter that several layers hold, by name, another name of it."""
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
