"""Heads of attention as what can leave: what belongs to each is found by trying, however the attention is written.

All heads but one are switched off where attention gives them, ``[batch, heads, tokens, width]``. What has a gradient
then belongs to the one: its rows of queries, keys and values, the columns that read it, its part of a table of biases.
Then one head is taken out. Only where the attention computes the same without it as with it at zero may heads leave.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, islice, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_unitrole.errors import TraceError
from lightning_unitrole.network.isolation import hooked
from lightning_unitrole.network.structures import map_tensors, tensors_in
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.tracing import HEADS_OF, Convolution, TapSite, trace_forward
from lightning_unitrole.network.units import UnitLayer
from lightning_unitrole.pruning.counting import count_macs
from lightning_unitrole.pruning.equivalence import remove_checked, remove_running, same_masked
from lightning_unitrole.pruning.finder import named_tensors, shared_tensors
from lightning_unitrole.pruning.groups import LAYERS, ChannelGraph, ChannelGroup, Place
from lightning_unitrole.pruning.removal import plan_removal, remove
from lightning_unitrole.pruning.selection import saving

_SCOPES = 3
"""An attention, and so many modules around it less one, in which what belongs to its heads is looked for."""

_ATTEMPTS = 32
"""How many sets of integer attributes are tried to follow the number of heads."""

_NORMS = nn.modules.batchnorm._NormBase

Call = tuple[tuple[Any, ...], dict[str, Any]]
Rows = list[tuple[int, ...]]


def head_groups(
    forward: Callable[[Any], Any],
    model: nn.Module,
    inputs: Any,
    *,
    batch: int,
    positions: Mapping[str, int],
    loose: bool = False,
) -> list[ChannelGroup]:
    """The heads of each attention of a network, which is left as it was; call it in an undisturbed model.

    Args:
        forward: called with ``inputs``; runs ``model``.
        model: the module by which layers are named.
        inputs: one batch; two images are enough.
        batch: number of images in it.
        positions: see :class:`~lightning_unitrole.pruning.groups.ChannelGraph`.
        loose: whether it is enough that heads can be held at zero.

    Returns:
        A group for each attention, in the order in which they run; with a reason where no head can leave.
    """
    trace = trace_forward(forward, model, inputs)
    sites = {one.name: (one, trace.site(one.tap)) for one in trace.heads if one.name.endswith(HEADS_OF)}
    if not sites:
        return []
    modules = [one.module for one, _ in sites.values()]
    scopes = {name: _scopes(one.module, modules) for name, (one, _) in sites.items()}
    calls = _calls(forward, model, inputs, {scope for several in scopes.values() for scope in several})
    groups, layouts = [], dict[Any, dict[Place, Rows]]()
    for name, (attention, site) in sites.items():
        search = _Search(model, attention, site, batch, positions, loose, layouts)
        groups.append(search.group([(scope, calls[scope]) for scope in scopes[name] if scope in calls]))
    return [replace(group, macs=group.macs * trace.calls[sites[group.name][0].module]) for group in groups]


def with_heads(groups: list[ChannelGroup], heads: list[ChannelGroup]) -> list[ChannelGroup]:
    """Channel groups and heads, in which no channel of a head leaves on its own."""
    taken = {layer for group in heads for layer in group.channels}
    found = []
    for group in groups:
        rest = {layer: channels for layer, channels in group.channels.items() if layer not in taken}
        if len(rest) == len(group.channels):
            found.append(group)
        elif rest:
            reason = group.reason or "its channels hang on those of heads of attention"
            found.append(replace(group, name=next(iter(rest)), channels=rest, reason=reason))
    return [*found, *heads]


def _scopes(attention: str, attentions: Iterable[str]) -> list[str]:
    """Modules in which what belongs to the heads of an attention is looked for: it, and those around it alone."""
    inner, *outer = _around(attention)
    return [inner, *(scope for scope in outer if sum(_is_inside(one, scope) for one in attentions) == 1)]


def _around(name: str) -> list[str]:
    """Names of a module and of those around it, from the inside."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)][:_SCOPES]


def _is_inside(name: str, outer: str) -> bool:
    """Whether a module is another one, or inside of it."""
    return not outer or f"{name}.".startswith(f"{outer}.")


def _calls(forward: Callable[[Any], Any], model: nn.Module, inputs: Any, names: set[str]) -> dict[str, Call]:
    """What some modules are called with, in the precision of their weights; of several calls the first."""
    found: dict[str, Call] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            dtype = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)

            def copied(tensor: Tensor) -> Tensor:  # since a later layer may write into it
                tensor = tensor.detach().clone()
                return tensor.to(dtype) if tensor.is_floating_point() else tensor

            if name not in found:
                found[name] = map_tensors((args, kwargs), copied)

        return hook

    scopes = [(name, module) for name, module in model.named_modules() if name in names]
    with (
        hooked(module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in scopes),
        torch.no_grad(),
    ):
        forward(inputs)
    return found


def _runner(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda _: module(*args, **kwargs)


@dataclass(frozen=True)
class _Search:
    """Looks for what belongs to the heads of one attention."""

    model: nn.Module
    attention: Convolution
    site: TapSite | None
    batch: int
    positions: Mapping[str, int]
    loose: bool
    layouts: dict[Any, dict[Place, Rows]]

    @property
    def heads(self) -> int:
        return self.attention.tap.shape[1]

    def group(self, calls: list[tuple[str, Call]]) -> ChannelGroup:
        """The group, found in the smallest of some modules that reads the heads that it makes."""
        name = self.attention.name
        reason = "what belongs to each of its heads cannot be told apart"
        if self.heads == 1:
            calls, reason = [], "it has a single head"
        failing: Any = None
        for scope, (args, kwargs) in calls:
            module, layout = self.model.get_submodule(scope), None
            try:
                layout = self._layout(scope, args, kwargs)
                if layout == failing:
                    break
                found = self._within(scope, _runner(module, args, kwargs), layout)
            except TraceError as error:
                reason = _in_words(error, scope)
                if error.__cause__ is not None:  # and will, whatever is around it
                    failing = layout
            except Exception as error:
                reason = f"it cannot be run on its own to see its heads: {type(error).__name__}: {error}"
            else:
                if isinstance(found, ChannelGroup):
                    return found
                if found is not None:
                    reason = found
                    break
        return ChannelGroup(name, {name: [(head,) for head in range(self.heads)]}, {}, reason)

    def _layout(self, scope: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Place, Rows]:
        """The indices of each head in the tensors of a module.

        Modules of one kind and size, as in the blocks of a transformer, are taken to be alike until it is tried.
        """
        module = self.model.get_submodule(scope)
        shapes = tuple((name, tensor.shape) for name, tensor in named_tensors(module))
        kind = type(module), self.attention.module.removeprefix(scope), self.attention.tap.shape[1:], shapes
        if kind not in self.layouts:
            self.layouts[kind] = self._tried(scope, module, args, kwargs)
        prefix = f"{scope}." if scope else ""
        return {(prefix + name, dim): rows for (name, dim), rows in self.layouts[kind].items()}

    def _tried(self, scope: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Place, Rows]:
        """The indices of each head in the tensors of a module, by trying with random weights."""
        leaves = {name: _random(weight) for name, weight in module.named_parameters() if weight.is_floating_point()}
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point() and not isinstance(_owner(module, name), _NORMS):
                leaves[name] = buffer.detach().clone()
        touched: dict[Place, list[Tensor]] = defaultdict(list)
        with torch.enable_grad():
            for leaf in leaves.values():
                leaf.requires_grad_(True)
            for head in range(self.heads):
                with self._tapped(scope, [head]):
                    given = {name: leaf.clone() for name, leaf in leaves.items()}  # which may be written to in place
                    outputs = [one for one in tensors_in(functional_call(module, given, args, kwargs)) if one.grad_fn]
                noise = [torch.randn_like(one) for one in outputs]
                gradients = torch.autograd.grad(outputs, list(leaves.values()), noise, allow_unused=True)
                for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                    some = torch.zeros_like(leaf, dtype=torch.bool) if gradient is None else gradient != 0
                    for dim in range(leaf.dim()):
                        touched[name, dim].append(some.transpose(0, dim).reshape(leaf.shape[dim], -1).any(1).cpu())
                if not any(bool((torch.stack(rows).sum(0) <= 1).all()) and rows[0].any() for rows in touched.values()):
                    return {}  # all of them share everything, as windows or positions do that only look like heads
        for name, buffer in module.named_buffers():  # statistics, which have no gradient
            if buffer.dim() == 1 and isinstance(_owner(module, name), _NORMS):
                touched[name, 0] = [torch.zeros(len(buffer), dtype=torch.bool)] * self.heads
        owned = _owned(module, {place: torch.stack(rows) for place, rows in touched.items()})
        return {place: [tuple(one.nonzero().flatten().tolist()) for one in rows] for place, rows in owned.items()}

    def _tapped(self, scope: str, kept: list[int]) -> UnitTap:
        """Sets the heads to zero that are not ``kept``."""
        assert self.site is not None
        keep = torch.zeros(self.heads)
        keep[kept] = 1
        inner = self.site.module.removeprefix(scope).removeprefix(".")
        tap = replace(self.site, module=inner, call=0, calls=1, root=None)
        layer = UnitLayer(self.attention.name, self.heads, (1, 1), tap, inner, None, None, grid=False)

        def switch(_: UnitLayer, maps: Tensor) -> Tensor:
            return maps * keep.to(maps)[:, None, None]

        return UnitTap(self.model.get_submodule(scope), [layer], switch)

    def _within(self, scope: str, run: Callable[[Any], Any], layout: Mapping[Place, Rows]) -> ChannelGroup | str | None:
        """The group if heads can leave by a layout; else why not.

        Raises:
            TraceError: if the attention does not work without one of them.
        """
        shared = shared_tensors(self.model)
        tied = next((name for name, _ in layout if name in shared), None)
        if not layout or tied:
            return f"{tied!r} is shared with {shared[tied]!r}" if tied else None
        name = self.attention.name
        channels: dict[str, Rows] = {name: [(head,) for head in range(self.heads)]}
        for (tensor, dim), rows in layout.items():
            layer, _, kind = tensor.rpartition(".")
            owner: Any = self.model.get_submodule(layer)
            if isinstance(owner, LAYERS) and kind == "weight" and dim == int(getattr(owner, "transposed", False)):
                channels[layer] = rows
        group = ChannelGroup(name, channels, layout)
        failure: TraceError | None = None
        for numbers in islice(self._numbers(scope), _ATTEMPTS):
            candidate = replace(group, numbers=numbers)
            removal = plan_removal(self._graph(candidate), {name: [0]})
            try:
                remove_running(run, self.model, removal, None).undo()
                remove_checked(run, self.model, removal, None).undo()
                return replace(candidate, macs=self._macs(candidate, run))
            except TraceError as error:
                if failure is None or error.__cause__ is None:
                    failure = error
        if self.loose and self._can_be_held(scope, group, run):
            return group
        assert failure is not None
        raise failure

    def _numbers(self, scope: str) -> Iterator[dict[str, int]]:
        """Sets of integer attributes that may count heads, the likeliest first: what each head adds to them."""
        outer, width = self.attention.module, self.attention.tap.shape[3]
        sure: dict[str, int] = {}
        others: dict[str, int] = {}
        for name, module in self.model.named_modules():
            near = _is_inside(name, outer) or name in _around(outer)
            if not near or not _is_inside(name, scope) or type(module).__module__.startswith("torch.nn."):
                continue
            for key, value in vars(module).items():
                each, rest = divmod(value, self.heads) if type(value) is int else (0, 0)
                if rest == 0 and each in (1, width, 2 * width, 3 * width):
                    likely = each == 1 and "head" in key
                    (sure if likely else others)[f"{name}.{key}" if name else key] = each
        for without, more in product(range(len(sure) + 1), range(len(others) + 1)):
            for left_out, added in product(combinations(sure, without), combinations(others, more)):
                yield {key: each for key, each in (sure | others).items() if key in {*sure, *added} - {*left_out}}

    def _graph(self, group: ChannelGroup) -> ChannelGraph:
        sizes = {name: tuple(tensor.shape) for name, tensor in named_tensors(self.model)}
        return ChannelGraph([group], sizes, frozenset(dict(self.model.named_parameters())), self.positions)

    def _macs(self, group: ChannelGroup, run: Callable[[Any], Any]) -> int:
        """Multiply-accumulate operations of a head beside those of weights, as counted without it."""
        graph, choice = self._graph(group), {group.name: [0]}
        before = count_macs(run, self.model, None, batch=self.batch)
        change = remove(self.model, plan_removal(graph, choice))
        try:
            after = count_macs(run, self.model, None, batch=self.batch)
        finally:
            change.undo()
        return before - after - saving(graph, choice, "macs")

    def _can_be_held(self, scope: str, group: ChannelGroup, run: Callable[[Any], Any]) -> bool:
        """Whether the masked attention computes what one does whose head is switched off where attention gives it."""

        def without(_: Any) -> Any:
            with self._tapped(scope, [*range(1, self.heads)]):
                return run(None)

        return same_masked(run, without, self.model, plan_removal(self._graph(group), {group.name: [0]}), None)


def _random(weight: Tensor) -> Tensor:
    """Weights of the same shape by which something of every entry comes through, whatever it is now."""
    if weight.dim() < 2:
        return torch.rand_like(weight) + 0.5
    return torch.randn_like(weight) * (1 / math.sqrt(weight.shape[-1]))


def _owner(module: nn.Module, name: str) -> nn.Module:
    """The module inside of another that holds a tensor."""
    return module.get_submodule(name.rpartition(".")[0])


def _owned(module: nn.Module, touched: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
    """Dimensions along which each index belongs to one head.

    Args:
        module: the module.
        touched: for each dimension of its tensors, ``[heads, size]`` whether anything there has a gradient when a head
            alone is on.
    """
    owned = {
        place: rows
        for place, rows in touched.items()
        if bool((rows.sum(0) == 1).all()) and len(set(rows.sum(1).tolist())) == 1
    }
    for (name, dim), rows in touched.items():
        # A bias of keys moves all scores alike and has no gradient but by rounding, and statistics have none: they go
        # where the weights beside them go.
        if (name, 0) in owned or (name, 1) in touched:
            continue
        known = bool(rows.any()) or isinstance(_owner(module, name), (*LAYERS, _NORMS))
        for (other, along), of_weight in list(owned.items()):
            beside = along == 0 and other.rpartition(".")[0] == name.rpartition(".")[0]
            if known and beside and of_weight.shape == rows.shape and not bool((rows & ~of_weight).any()):
                owned[name, dim] = of_weight
                break
    return owned


def _in_words(error: TraceError, name: str) -> str:
    cause = error.__cause__
    if cause is None:
        what = "computes something else than with that head at zero"
    else:
        text = str(cause).partition("\n")[0]
        what = f"fails with {type(cause).__name__}: {text}"
    return (
        f"tried out, {name!r} without one of its heads {what}. Heads can leave where each has weights of its own, and "
        "the forward method takes their number and width from attributes and weights, not from the width of its "
        "input; mode='mask' holds heads at zero"
    )
