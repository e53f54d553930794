"""A removal: which indices of which tensors stay, and making a network smaller by it, or larger again.

Everything that follows a removal reads the same record: the network itself, the optimizer's state, masks that hold the
same entries at zero, and a fresh network that is to take the weights of a checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.errors import DataError, SettingError, refuse_newer
from lightning_unitrole.network.attention import fitting_heads
from lightning_unitrole.pruning.groups import CHANNEL_NORMS, ChannelGraph, ChannelGroup, Choice
from lightning_unitrole.reports.storage import BROKEN

STATE_VERSION = 2
_OF_WINDOWS = ("torchvision.models.swin_transformer", "lightning_unitrole.pruning.windows")
LARGEST_SIZE = 2**24
"""Largest dimension of a tensor, or width of a layer, that the record of a removal is believed."""


@dataclass(frozen=True)
class Removal:
    """What one removal leaves.

    Attributes:
        shapes: shape before the removal of each parameter and buffer that it changes, by name.
        kept: for each of these and for each dimension that gets smaller, the indices that stay, int64 and ascending.
        channels: for each convolution and linear layer that gets fewer output channels, those that stay, ``[K]`` int64.
            The heads of an attention are such a layer too.
        widths: number of output channels of each of these layers before the removal.
        numbers: integer attributes of modules that count heads, by their full names: before and after the removal.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, Mapping[int, Tensor]]
    channels: Mapping[str, Tensor]
    widths: Mapping[str, int]
    numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def removed(self, name: str, dim: int) -> Tensor:
        """Indices of a dimension that leave, ``[R]`` int64."""
        leaves = torch.ones(self.shapes[name][dim], dtype=torch.bool)
        leaves[self.kept[name][dim]] = False
        return leaves.nonzero().flatten()

    def state_dict(self) -> dict[str, Any]:
        """The record as tensors, numbers, strings, lists and dicts alone, fit for a ``weights_only`` checkpoint."""
        return {
            "version": STATE_VERSION,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "kept": {name: dict(dims) for name, dims in self.kept.items()},
            "channels": dict(self.channels),
            "widths": dict(self.widths),
            "numbers": {name: list(sizes) for name, sizes in self.numbers.items()},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Removal:
        """Inverse of :meth:`state_dict`.

        Raises:
            DataError: if it is damaged, or a newer version of the package wrote it.
        """
        try:
            refuse_newer("The record of a removal has version", state["version"], STATE_VERSION)
            shapes = {str(name): tuple(map(_size, shape)) for name, shape in state["shapes"].items()}
            widths = {str(name): _size(width) for name, width in state["widths"].items()}
            return cls(
                shapes=shapes,
                kept={
                    str(name): {int(dim): _indices(kept, shapes[name][dim], name) for dim, kept in dims.items()}
                    for name, dims in state["kept"].items()
                },
                channels={str(name): _indices(kept, widths[name], name) for name, kept in state["channels"].items()},
                widths=widths,
                numbers={
                    str(name): (_size(before), _size(after))  # which earlier versions did not have
                    for name, (before, after) in state.get("numbers", {}).items()
                },
            )
        except DataError:
            raise
        except BROKEN as error:
            raise DataError(f"The record of a removal is damaged: {type(error).__name__}: {error}.") from error

    def same_as(self, other: Removal) -> bool:
        """Whether two records say the same."""
        return (
            self.shapes == other.shapes
            and self.numbers == other.numbers
            and self.kept.keys() == other.kept.keys()
            and all(
                dims.keys() == other.kept[name].keys()
                and all(torch.equal(kept, other.kept[name][dim]) for dim, kept in dims.items())
                for name, dims in self.kept.items()
            )
        )


def _size(value: Any) -> int:
    """A size out of a file, refused where it can be none."""
    if not isinstance(value, int) or not 0 < value <= LARGEST_SIZE:
        raise DataError(f"The record of a removal is damaged: {value!r} is no size, from 1 to {LARGEST_SIZE}.")
    return value


def _indices(kept: Any, size: int, name: str) -> Tensor:
    """Indices that stay, out of a file: nothing is computed of them before they are known to be few."""
    known = isinstance(kept, Tensor) and kept.layout == torch.strided and kept.dtype == torch.int64 and kept.dim() == 1
    if not known or not 0 < kept.numel() <= size or kept.untyped_storage().nbytes() < kept.numel() * kept.itemsize:
        raise DataError(
            f"The record of a removal is damaged: what stays of {name!r} is no tensor of up to {size} int64 indices."
        )
    found: Tensor = kept.cpu().clone()
    if int(found[0]) < 0 or int(found[-1]) >= size or not bool((found.diff() > 0).all()):
        raise DataError(
            f"The record of a removal is damaged: what stays of {name!r} is not ascending, from 0 to {size - 1}."
        )
    return found


def plan_removal(graph: ChannelGraph, choice: Choice) -> Removal:
    """Work out what a choice of items takes from each tensor.

    Args:
        graph: the network's channel groups.
        choice: items to remove of each group, by the group's name.

    Raises:
        SettingError: if a group is unknown or cannot be pruned, or nothing would be left of it.
    """
    groups = graph.by_name
    gone: dict[str, set[int]] = {}
    numbers: dict[str, tuple[int, int]] = {}
    for name, items in choice.items():
        if not len(items):
            continue
        group = _prunable(groups, name)
        if len(set(items)) >= len(group):
            raise SettingError(
                f"All {len(group)} units of layer {name!r} would be removed; at least one has to stay. Remove fewer."
            )
        for layer, channels in group.channels.items():
            gone.setdefault(layer, set()).update(*(channels[item] for item in items))
        left = len(group) - len(set(items))
        numbers |= {number: (each * len(group), each * left) for number, each in group.numbers.items()}
    kept: dict[str, dict[int, Tensor]] = {}
    for (name, dim), leaves in graph.taken(choice).items():
        kept.setdefault(name, {})[dim] = _others(leaves, graph.sizes[name][dim])
    widths: Counter[str] = Counter()
    for group in graph.groups:
        widths.update({name: sum(map(len, channels)) for name, channels in group.channels.items()})
    return Removal(
        shapes={name: graph.sizes[name] for name in kept},
        kept=kept,
        channels={name: _others(leaves, widths[name]) for name, leaves in gone.items()},
        widths={name: widths[name] for name in gone},
        numbers=numbers,
    )


def _others(indices: Iterable[int], size: int) -> Tensor:
    stays = torch.ones(size, dtype=torch.bool)
    stays[list(indices)] = False
    return stays.nonzero().flatten()


def _prunable(groups: Mapping[str, ChannelGroup], name: str) -> ChannelGroup:
    if name not in groups:
        raise SettingError(f"No layer {name!r} can be pruned. Those that can are: {', '.join(map(repr, groups))}.")
    if groups[name].reason is not None:
        raise SettingError(f"Layer {name!r} cannot be pruned: {groups[name].reason}.")
    return groups[name]


@dataclass(frozen=True)
class Replaced:
    """A tensor that took the place of another.

    Attributes:
        name: its name.
        before: the tensor before.
        after: the tensor now.
        change: from a tensor of the shape of ``before`` to the same entries in the shape of ``after``.
    """

    name: str
    before: Tensor
    after: Tensor
    change: Callable[[Tensor], Tensor]


class Change:
    """A change of a network's shape that was carried out and can be taken back.

    Attributes:
        replaced: the tensors that were replaced.
    """

    def __init__(self, model: nn.Module, replaced: Sequence[Replaced], numbers: Mapping[str, int]) -> None:
        self.replaced = replaced
        self._attributes: list[tuple[nn.Module, str, Any]] = []
        modules = dict(model.named_modules())
        self._owners = [modules[one.name.rpartition(".")[0]] for one in replaced]
        try:
            for owner, one in zip(self._owners, replaced, strict=True):
                _put(owner, one.name.rpartition(".")[2], one.after)
            for owner in dict.fromkeys(self._owners):
                for name, value in _fitting_attributes(owner).items():
                    self._set(owner, name, value)
            for number, value in numbers.items():
                owner_name, _, name = number.rpartition(".")
                self._set(modules[owner_name], name, value)
        except BaseException:
            self.undo()
            raise

    def _set(self, owner: nn.Module, name: str, value: Any) -> None:
        self._attributes.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back as it was: the same tensors, not copies."""
        for owner, name, value in reversed(self._attributes):
            setattr(owner, name, value)
        for owner, one in zip(self._owners, self.replaced, strict=True):
            _put(owner, one.name.rpartition(".")[2], one.before)


def remove(model: nn.Module, removal: Removal) -> Change:
    """Make a network smaller.

    Parameters are new objects; their flags, gradients and attributes are those of the old ones.

    Args:
        model: the network; changed in place.
        removal: what stays.

    Raises:
        DataError: if the network does not have the tensors that the record speaks of. Nothing is changed then.
    """
    tensors = _matching(model, removal, lambda name: removal.shapes[name], before=0)
    return Change(
        model,
        [_replace(name, tensors[name], _taker(dims)) for name, dims in removal.kept.items()],
        {number: after for number, (_, after) in removal.numbers.items()},
    )


def regrow(model: nn.Module, removal: Removal) -> Change:
    """Take a removal back: the kept entries at their old places, zeros elsewhere.

    Args:
        model: a network from which ``removal`` was removed; changed in place.
        removal: what stayed.

    Raises:
        DataError: if the network does not have the tensors that the record speaks of.
    """
    tensors = _matching(model, removal, lambda name: _shape_after(removal, name), before=1)
    return Change(
        model,
        [_replace(name, tensors[name], _putter(dims, removal.shapes[name])) for name, dims in removal.kept.items()],
        {number: before for number, (before, _) in removal.numbers.items()},
    )


def _shape_after(removal: Removal, name: str) -> tuple[int, ...]:
    kept = removal.kept[name]
    return tuple(len(kept[dim]) if dim in kept else size for dim, size in enumerate(removal.shapes[name]))


def _matching(
    model: nn.Module, removal: Removal, expected: Callable[[str], tuple[int, ...]], *, before: int
) -> dict[str, Tensor]:
    """The tensors that a removal speaks of; ``before`` says which of its two numbers the model must have now."""
    modules = dict(model.named_modules())
    for number, sizes in removal.numbers.items():
        owner, _, name = number.rpartition(".")
        found = getattr(modules.get(owner), name, None)
        if found != sizes[before]:
            raise DataError(
                f"The removal history does not fit this {type(model).__name__}: {number!r} is {found!r}; expected "
                f"{sizes[before]}. Build the network as it was before units were removed."
            )
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in removal.kept:
        if name not in tensors:
            raise DataError(
                f"The removal history does not fit this {type(model).__name__}: it has no parameter or buffer "
                f"{name!r}. Build the network as it was before units were removed."
            )
        if tuple(tensors[name].shape) != expected(name):
            raise DataError(
                f"The removal history does not fit this {type(model).__name__}: {name!r} has shape "
                f"{list(tensors[name].shape)}; expected {list(expected(name))}. Build the network as it was before "
                "units were removed."
            )
    return tensors


def _taker(kept: Mapping[int, Tensor]) -> Callable[[Tensor], Tensor]:
    def take(tensor: Tensor) -> Tensor:
        for dim, indices in kept.items():
            tensor = tensor.index_select(dim, indices.to(tensor.device))
        return tensor

    return take


def _putter(kept: Mapping[int, Tensor], shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def put(tensor: Tensor) -> Tensor:
        for dim, indices in kept.items():
            wider = tensor.new_zeros(*tensor.shape[:dim], shape[dim], *tensor.shape[dim + 1 :])
            tensor = wider.index_copy(dim, indices.to(tensor.device), tensor)
        return tensor

    return put


def _replace(name: str, before: Tensor, change: Callable[[Tensor], Tensor]) -> Replaced:
    # Out of inference mode, or the new parameters could never be trained.
    with torch.inference_mode(False), torch.no_grad():
        after = _in_layout_of(before, change(before.detach()))
        if isinstance(before, nn.Parameter):
            after = nn.Parameter(after, requires_grad=before.requires_grad)
            after.__dict__.update(before.__dict__)
            if before.grad is not None:
                after.grad = _in_layout_of(before, change(before.grad.detach()))
    return Replaced(name, before, after, change)


def _in_layout_of(before: Tensor, after: Tensor) -> Tensor:
    channels_last = before.dim() == 4 and before.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not before.is_contiguous():
        return after.contiguous(memory_format=torch.channels_last)
    return after.contiguous()


def _put(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        owner._parameters[name] = tensor
    else:
        owner._buffers[name] = tensor


def _fitting_attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes of a layer that repeat the shape of its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        rows, columns = weight.shape[:2]
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
            return {"in_channels": rows, "out_channels": rows, "groups": rows}
        if module.transposed:
            return {"in_channels": rows, "out_channels": columns * module.groups}
        return {"in_channels": columns * module.groups, "out_channels": rows}
    if isinstance(module, nn.Linear) and weight is not None:
        return {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        width = weight if weight is not None else module.running_mean
        return {} if width is None else {"num_features": len(width)}
    if isinstance(module, nn.GroupNorm) and weight is not None:
        size = module.num_channels // module.num_groups
        return {"num_channels": len(weight), "num_groups": len(weight) // size}
    if isinstance(module, CHANNEL_NORMS) and weight is not None:
        return {"normalized_shape": tuple(weight.shape)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight.numel()} if weight is not None else {}
    if isinstance(module, nn.MultiheadAttention):
        return fitting_heads(module)
    if type(module).__module__ in _OF_WINDOWS:
        from lightning_unitrole.pruning.windows import fitting_windows  # needs torchvision

        return fitting_windows(module)
    return {}
