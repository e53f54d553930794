"""Groups of channels that must leave together: data, and what a choice of them takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lightning_unitrole.network.tracing import HEADS_OF

Place = tuple[str, int]
"""Name of a parameter or buffer, and one of its dimensions."""

Choice = Mapping[str, Sequence[int]]
"""Items to remove, by the name of their channel group."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, nn.Linear)

CHANNEL_NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
"""Normalisations over channels; torch before 2.4 has one of them."""


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that share a width: a removal takes an item, which is one channel of each of them, or several.

    The heads of an attention are such a group too, called ``blocks.0.attn#heads``.

    Attributes:
        name: the first convolution of the group, in the order in which the model runs them.
        channels: for each convolution or linear layer that computes these channels, by module name, the output
            channels of each of the N items; for heads the heads themselves first, by the name of the group.
        slices: for each place that a removal reaches, the indices of each of the N items.
        reason: why no channel can be removed; None where that is possible.
        numbers: what each item adds to integer attributes of modules, by their full names, such as
            ``blocks.0.attn.num_heads``.
        macs: multiply-accumulate operations for one image that each item takes beside those of weights.
    """

    name: str
    channels: Mapping[str, Sequence[tuple[int, ...]]]
    slices: Mapping[Place, Sequence[tuple[int, ...]]]
    reason: str | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    macs: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.channels.values())))

    @property
    def of_heads(self) -> bool:
        """Whether its items are heads of attention."""
        return self.name.endswith(HEADS_OF)


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

    @property
    def heads(self) -> dict[str, int]:
        """Number of heads of each attention."""
        return {group.name: len(group) for group in self.groups if group.of_heads}

    def without(self, blocked: Mapping[str, str]) -> ChannelGraph:
        """The same graph, in which no channel leaves the groups that are named; each with its reason."""
        groups = [replace(group, reason=blocked.get(group.name, group.reason)) for group in self.groups]
        return replace(self, groups=groups)

    def taken(self, choice: Choice) -> dict[Place, set[int]]:
        """The indices that a choice of items takes from each place that it reaches."""
        groups, taken = self.by_name, defaultdict[Place, set[int]](set)
        for name, items in choice.items():
            for place, indices in groups[name].slices.items() if len(items) else ():
                taken[place].update(*(indices[item] for item in items))
        return dict(taken)


def layer_widths(model: nn.Module) -> dict[str, int]:
    """Output channels of each convolution and linear layer, in the order in which the model holds them."""
    return {name: width_of(module) for name, module in model.named_modules() if isinstance(module, LAYERS)}


def width_of(module: Any) -> int:
    """Output channels of a convolution or linear layer."""
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
