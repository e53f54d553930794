"""The units of a model: finding them by running one batch, and choosing among them.

A unit is one output channel of a convolution, seen after its normalisation and its activation; also of a convolution in
one or three dimensions, of a linear layer, be it at each token of a grid, and a head of attention. A convolution whose
output is mixed across channels, pooled or concatenated before any activation is seen after its normalisation
("linear" units).
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import nn

from lightning_unitrole.errors import SettingError
from lightning_unitrole.network.tracing import Convolution, TapSite, Trace, trace_forward

MIN_MAP_SIZE = 4  # smaller maps cannot hold a one-dimensional cycle
_MOST_OF_A_SIZE = 4
_MOST_EXTRA_TOKENS = 8


@dataclass(frozen=True)
class UnitLayer:
    """The units of one convolution.

    Attributes:
        name: name of the convolution; ``name#1`` is the second call of the same convolution in a forward pass.
        num_units: number of output channels.
        map_size: height and width of the maps of the units.
        tap: where the maps are caught.
        conv: qualified name of the module that calls the convolution.
        norm: qualified name of the module that normalises its output, if there is one.
        activation: torch name of the activation, ``"sigmoid gate"`` and the like for ``x * sigmoid(x)``; ``None`` for
            linear units.
        summed: whether the output of the convolution is added to something else, as at the end of a residual block.
        dim: dimension of the output along which the units lie.
        grid: whether a unit's output is a map, so that it has a birth point.
        extra: tokens before those of the grid, such as the class token.
        macs: multiply-accumulate operations of the convolution for one image; NaN where they are not known.
    """

    name: str
    num_units: int
    map_size: tuple[int, int]
    tap: TapSite
    conv: str
    norm: str | None
    activation: str | None
    summed: bool = False
    dim: int = 1
    grid: bool = True
    extra: int = 0
    macs: float = math.nan

    @property
    def site(self) -> str:
        """Where the maps are caught, in plain words."""
        return f"{self.tap}, after {self.activation}" if self.activation else f"{self.tap}, without an activation"


@dataclass(frozen=True)
class FoundUnits:
    """What running one batch showed.

    Attributes:
        layers: name to layer, in the order in which the convolutions ran.
        skipped: name of each convolution that was left out, and why.
        head: name of the last convolution if its units are the outputs of the model, as in networks that end in a
            convolution to as many channels as there are classes.
        flat: units of convolutions in one and three dimensions and of linear layers, chosen by name, or where there is
            no more than one convolution in two dimensions, such as one that makes tokens of patches.
        heads: heads of attention, chosen by name alone: ``blocks.0.attn#heads`` are those of the module
            ``blocks.0.attn``.
    """

    layers: Mapping[str, UnitLayer]
    skipped: Mapping[str, str]
    head: str | None = None
    flat: Mapping[str, UnitLayer] = field(default_factory=dict)
    heads: Mapping[str, UnitLayer] = field(default_factory=dict)

    @property
    def main(self) -> Mapping[str, UnitLayer]:
        """The layers that ``"auto"`` and ``"all"`` mean."""
        return self.layers if len(self.layers) > 1 else {**self.layers, **self.flat}


def find_unit_layers(forward: Callable[[Any], Any], model: nn.Module, inputs: Any) -> FoundUnits:
    """Run one batch and find the units of ``model``.

    The model is left as it was: modes, buffers, random state, and no hook stays.

    Args:
        forward: called once with ``inputs``; runs ``model``, or a part of it, in any way.
        model: the module in which layers are looked for and by which they are named.
        inputs: one batch; a few images are enough. The batch is the first dimension of its first tensor.
    """
    trace = trace_forward(forward, model, inputs)
    reasons = {conv: _reason_to_skip(conv, trace) for conv in trace.convolutions}
    best: dict[int, Convolution] = {}
    for conv in trace.convolutions:
        rival = best.get(id(conv.tap))
        if reasons[conv] is None and (rival is None or conv.depth >= rival.depth):
            best[id(conv.tap)] = conv
    layers: dict[str, UnitLayer] = {}
    skipped: dict[str, str] = {}
    for conv in trace.convolutions:
        reason, site = reasons[conv], trace.site(conv.tap)
        winner = best.get(id(conv.tap), conv)
        if reason is None and winner is not conv:
            reason = f"its output is added to that of {winner.name!r} before the activation"
        if reason is not None or site is None:
            skipped[conv.name] = reason or ""
            continue
        _, units, height, width = conv.tap.shape
        layers[conv.name] = UnitLayer(
            conv.name, units, (height, width), site, conv.module, conv.norm, conv.activation, conv.summed,
            macs=_macs(conv, trace),
        )  # fmt: skip
    flat = _flat_layers(trace, next(iter(layers.values())).map_size if layers else None)
    head = _head(layers, trace) if len(layers) > 1 else _flat_head(flat, trace)
    flat = {name: one for name, one in flat.items() if name not in layers}
    return FoundUnits(layers, skipped, head, flat, _heads(trace))


def _heads(trace: Trace) -> dict[str, UnitLayer]:
    """Heads of attention over all tokens of an image; windows of it are other images to such a layer."""
    found = {}
    for attention in trace.heads:
        batch, heads, *places = attention.tap.shape
        site = trace.site(attention.tap)
        if site is not None and heads > 1 and trace.batch in (None, batch):
            size = (1, prod(places))
            found[attention.name] = UnitLayer(
                attention.name, heads, size, site, attention.module, None, None, dim=1, grid=False
            )
    return found


def _flat_layers(trace: Trace, grid: tuple[int, int] | None) -> dict[str, UnitLayer]:
    """Units of linear layers and of convolutions in one and three dimensions; the last at each place.

    Args:
        trace: what one forward pass showed.
        grid: size of the maps that patches were made tokens of.
    """
    last = {id(flat.tap): flat for flat in trace.flat}
    found = {}
    for flat in last.values():
        shape, site = flat.tap.shape, trace.site(flat.tap)
        if site is None or len(shape) < 2 or (trace.batch is not None and shape[0] != trace.batch):
            continue
        units = shape[flat.dim]
        places = shape[1:-1] if flat.dim == -1 else shape[2:]
        arranged, extra = _arranged(places, grid) if flat.dim == -1 else (None, 0)
        size = arranged or (1, prod(places))
        found[flat.name] = UnitLayer(
            flat.name, units, size, site, flat.module, flat.norm, flat.activation, flat.summed, flat.dim,
            arranged is not None, extra, _macs(flat, trace),
        )  # fmt: skip
    return found


def _macs(conv: Convolution, trace: Trace) -> float:
    return conv.products / (trace.batch or conv.tap.shape[0]) if conv.products else math.nan


def _arranged(places: tuple[int, ...], grid: tuple[int, int] | None) -> tuple[tuple[int, int] | None, int]:
    """Height and width of the grid that tokens lie on, if they do, and how many come before them."""
    if len(places) == 2 and max(places) >= MIN_MAP_SIZE:
        return (places[0], places[1]), 0
    if len(places) == 1 and grid is not None and 0 <= places[0] - prod(grid) <= _MOST_EXTRA_TOKENS:
        return grid, places[0] - prod(grid)
    return None, 0


def _flat_head(flat: Mapping[str, UnitLayer], trace: Trace) -> str | None:
    """The linear layer that makes the outputs of the model."""
    last = [*flat.values()][-1] if flat else None
    if last is None or last.activation is not None:
        return None
    return last.name if any(shape[-1:] == (last.num_units,) for shape in trace.outputs) else None


def _head(layers: Mapping[str, UnitLayer], trace: Trace) -> str | None:
    last = trace.convolutions[-1].name if trace.convolutions else None
    if last is None or last not in layers or trace.linear_behind:
        return None
    return last if any(shape[1:2] == (layers[last].num_units,) for shape in trace.outputs) else None


def _reason_to_skip(conv: Convolution, trace: Trace) -> str | None:
    shape = conv.tap.shape
    if len(shape) != 4:
        return f"its maps have shape {list(shape)}, not [batch, units, height, width]"
    if trace.batch is not None and shape[0] != trace.batch:
        return f"its maps have {shape[0]} rows for a batch of {trace.batch}"
    if max(shape[2:]) < MIN_MAP_SIZE:
        return (
            f"its maps are {shape[2]}x{shape[3]}; at least {MIN_MAP_SIZE} rows or columns are needed. "
            "Larger input images give larger maps"
        )
    if trace.site(conv.tap) is None:
        return (
            f"its {conv.activation or 'output'} runs outside of every module, where no hook can see it. "
            "Call the model itself, not its forward method"
        )
    return None


def select_layers(found: FoundUnits, layers: str | Sequence[str], *, smallest: int = MIN_MAP_SIZE) -> list[UnitLayer]:
    """Choose among the layers that were found.

    Args:
        found: from :func:`find_unit_layers`.
        layers: ``"auto"`` takes the last output of a stage of each map size, a residual sum where there is one, and
            neither the outputs of the model nor maps smaller than ``smallest``, unless there are no others; ``"all"``
            takes every layer; otherwise names, or globs as in :mod:`fnmatch`, one or several, also of heads of
            attention, such as ``"*#heads"``.
        smallest: rows or columns that maps must have for ``"auto"``.

    Returns:
        The chosen layers, each once, in the order in which they run.

    Raises:
        SettingError: if a name or glob matches nothing, names a layer that was left out, or no layer is left.
    """
    if not found.main:
        raise SettingError(f"The model has no layer whose units can be analysed. {_why_skipped(found)}")
    if layers == "all":
        return list(found.main.values())
    if layers == "auto":
        return _automatic(found, smallest) if len(found.layers) > 1 else _automatic_flat(found, smallest)
    named = {**found.layers, **found.flat, **found.heads}
    chosen: set[str] = set()
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise SettingError("layers is an empty list. Use 'auto', 'all', or names such as " + _names(found.main))
    for pattern in patterns:
        if pattern in found.skipped:
            raise SettingError(f"Layer {pattern!r} cannot be analysed: {found.skipped[pattern]}.")
        matches = [pattern] if pattern in named else fnmatch.filter(found.main, pattern)
        matches = matches or fnmatch.filter(named, pattern)
        if not matches:
            raise SettingError(_unknown(pattern, found))
        chosen.update(matches)
    return [layer for layer in named.values() if layer.name in chosen]


def _automatic(found: FoundUnits, smallest: int) -> list[UnitLayer]:
    usable = [
        layer for layer in found.layers.values() if max(layer.map_size) >= smallest and layer.name != found.head
    ] or list(found.layers.values())
    # Of a size that no stage ends with, the last layer, as in networks that are not written in stages.
    ends = map(_output, _stages([*found.layers.values()]))
    last = {**_last_of_each_size(usable), **_last_of_each_size(layer for layer in ends if layer in usable)}
    return [layer for layer in usable if last[layer.map_size] is layer]


def _automatic_flat(found: FoundUnits, smallest: int) -> list[UnitLayer]:
    """Block outputs on grids where there are some, else all layers but the outputs of the model.

    Of several sizes the last of each is taken, of a single size four, evenly spread.
    """
    usable = [layer for layer in found.main.values() if layer.name != found.head] or list(found.main.values())
    usable = [layer for layer in usable if layer.grid and max(layer.map_size) >= smallest] or usable
    usable = [layer for layer in usable if layer.summed] or usable
    last = {layer.map_size if layer.grid else None: layer for layer in usable}
    if len(last) > 1:
        return [layer for layer in usable if layer in last.values()]
    count = min(len(usable), _MOST_OF_A_SIZE)
    return [usable[-1 - place * len(usable) // count] for place in reversed(range(count))]


def _last_of_each_size(layers: Iterable[UnitLayer]) -> dict[tuple[int, int], UnitLayer]:
    last: dict[tuple[int, int], UnitLayer] = {}
    for layer in layers:
        # A convolution at the beginning of the next stage may still have maps of this size.
        if layer.summed or layer.map_size not in last or not last[layer.map_size].summed:
            last[layer.map_size] = layer
    return last


def _stages(layers: Sequence[UnitLayer], depth: int = 0) -> Iterator[list[UnitLayer]]:
    """Layers by the module that they are part of, taken apart as far as each has maps of at most two sizes.

    A stage begins with a layer or two on the maps of the stage before it.
    """
    parts: dict[str, list[UnitLayer]] = {}
    for layer in layers:
        parts.setdefault(".".join(layer.conv.split(".")[: depth + 1]), []).append(layer)
    for name, members in parts.items():
        whole = all(layer.conv == name for layer in members)
        if not whole and (len(parts) == 1 or len({layer.map_size for layer in members}) > 2):
            yield from _stages(members, depth + 1)
        else:
            yield members


def _output(stage: Sequence[UnitLayer]) -> UnitLayer:
    """The last residual sum of a stage, or else its last layer."""
    return _last_of_each_size(stage)[stage[-1].map_size]


def _unknown(pattern: str, found: FoundUnits) -> str:
    of_heads = pattern.partition("#")[2].startswith("heads")
    known = found.heads if of_heads and found.heads else found.main
    close = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    others = [name for name in known if name not in close]
    left_out = fnmatch.filter(found.skipped, pattern)
    why = (
        f" It matches only layers that were left out: {left_out[0]!r}: {found.skipped[left_out[0]]}."
        if left_out
        else ""
    )
    if of_heads:
        why += (
            " Heads are seen where attention over the tokens of whole images is an nn.MultiheadAttention, one call of "
            "scaled_dot_product_attention, or a softmax and a product."
        )
    return f"No layer matches {pattern!r}.{why} The model has these layers: {_names([*close, *others])}."


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _why_skipped(found: FoundUnits) -> str:
    if not found.skipped:
        return "No two-dimensional convolution ran in Python; inside a scripted module it cannot be seen."
    return "Left out: " + "; ".join(f"{name!r}: {reason}" for name, reason in found.skipped.items()) + "."
