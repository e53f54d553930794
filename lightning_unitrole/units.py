"""The units of a model: finding them by running one batch, choosing among them, and tapping their maps.

A unit is one output channel of a convolution, seen after its normalisation and its activation. A convolution whose
output is mixed across channels, pooled or concatenated before any activation is seen after its normalisation
("linear" units).
"""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from lightning_unitrole.errors import SettingError, TraceError
from lightning_unitrole.forwards import eager, function_name, tensors_in
from lightning_unitrole.tracing import Convolution, TapSite, Trace, trace_forward

MIN_MAP_SIZE = 4  # smaller maps cannot hold a one-dimensional cycle


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
    """

    name: str
    num_units: int
    map_size: tuple[int, int]
    tap: TapSite
    conv: str
    norm: str | None
    activation: str | None

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
    """

    layers: Mapping[str, UnitLayer]
    skipped: Mapping[str, str]


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
        layers[conv.name] = UnitLayer(conv.name, units, (height, width), site, conv.module, conv.norm, conv.activation)
    return FoundUnits(layers, skipped)


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


def select_layers(found: FoundUnits, layers: str | Sequence[str]) -> list[UnitLayer]:
    """Choose among the layers that were found.

    Args:
        found: from :func:`find_unit_layers`.
        layers: ``"auto"`` takes the last convolution of each map size, ``"all"`` every one; otherwise names, or
            globs as in :mod:`fnmatch`, one or several.

    Returns:
        The chosen layers, each once, in the order in which they run.

    Raises:
        SettingError: if a name or glob matches nothing, names a layer that was left out, or no layer is left.
    """
    if not found.layers:
        raise SettingError(f"The model has no layer whose units can be analysed. {_why_skipped(found)}")
    if layers == "all":
        return list(found.layers.values())
    if layers == "auto":
        last = {layer.map_size: layer.name for layer in found.layers.values()}
        return [layer for layer in found.layers.values() if last[layer.map_size] == layer.name]
    chosen: set[str] = set()
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise SettingError("layers is an empty list. Use 'auto', 'all', or names such as " + _names(found.layers))
    for pattern in patterns:
        if pattern in found.skipped:
            raise SettingError(f"Layer {pattern!r} cannot be analysed: {found.skipped[pattern]}.")
        matches = [pattern] if pattern in found.layers else fnmatch.filter(found.layers, pattern)
        if not matches:
            raise SettingError(_unknown(pattern, found))
        chosen.update(matches)
    return [layer for layer in found.layers.values() if layer.name in chosen]


def _unknown(pattern: str, found: FoundUnits) -> str:
    close = difflib.get_close_matches(pattern, found.layers, n=3, cutoff=0.5)
    others = [name for name in found.layers if name not in close]
    left_out = fnmatch.filter(found.skipped, pattern)
    why = (
        f" It matches only layers that were left out: {left_out[0]!r}: {found.skipped[left_out[0]]}."
        if left_out
        else ""
    )
    return f"No layer matches {pattern!r}.{why} The model has these layers: {_names([*close, *others])}."


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _why_skipped(found: FoundUnits) -> str:
    if not found.skipped:
        return "No two-dimensional convolution ran in Python; inside a scripted module it cannot be seen."
    return "Left out: " + "; ".join(f"{name!r}: {reason}" for name, reason in found.skipped.items()) + "."


OnMaps = Callable[[UnitLayer, Tensor], "Tensor | None"]


class UnitTap:
    """Hands the maps of chosen layers to a function while the model runs forward passes of its own.

    Use it as a context manager, or call :meth:`attach` and :meth:`remove`. While it is attached, compiled code runs
    eagerly, because compiled code skips hooks. The forward passes must be those of evaluation mode.

    Args:
        model: the model in which the layers were found.
        layers: layers to tap.
        on_maps: called with the layer and its maps ``[B, num_units, H, W]``, in the order in which they are computed.
            The model may overwrite the maps in place afterwards, so copy what is to be kept. A tensor of the same
            shape that it returns takes the place of the maps.
        on_error: called with whatever goes wrong at a tap, instead of raising it out of somebody else's forward pass.

    Raises:
        TraceError: out of the forward pass, if what arrives at a tap is not the maps that were found there.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[UnitLayer],
        on_maps: OnMaps,
        *,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self._model = model
        self._on_error = on_error
        self._layers = list(layers)
        self._on_maps = on_maps
        self._calls: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._modes: list[_FunctionTap] = []
        self._stack: ExitStack | None = None

    @property
    def missing(self) -> list[str]:
        """Names of the layers that gave no maps since the last :meth:`reset`."""
        return [layer.name for layer in self._layers if not self._seen[layer.name]]

    def attach(self) -> None:
        """Put the hooks on the model.

        Raises:
            TraceError: if the model has no module of the name where a layer is to be tapped.
        """
        if self._stack is not None:
            return
        sites: dict[str, list[UnitLayer]] = {}
        for layer in self._layers:
            sites.setdefault(layer.tap.module, []).append(layer)
        modules = dict(self._model.named_modules())
        roots = {layer.tap.root for layer in self._layers if layer.tap.root is not None}
        if unknown := sorted({*sites, *roots} - {*modules}):
            raise TraceError(
                f"The model has no module {unknown[0]!r}, where units are tapped. Find the layers of this model again."
            )
        self.reset()
        with ExitStack() as stack:
            stack.enter_context(eager(self._model))
            stack.callback(self._leave_all)
            for name in roots:
                stack.callback(modules[name].register_forward_pre_hook(lambda *_: self._restart(), prepend=True).remove)
            for name, tapped in sites.items():
                stack.callback(modules[name].register_forward_pre_hook(self._entry(name, tapped)).remove)
                stack.callback(modules[name].register_forward_hook(self._exit(tapped), always_call=True).remove)
            self._stack = stack.pop_all()

    def remove(self) -> None:
        """Take the hooks off again; may be called any number of times."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def reset(self) -> None:
        """Say that a new forward pass begins. Needed only after one that was broken off, and for :attr:`missing`."""
        self._seen.clear()
        self._restart()

    def __enter__(self) -> UnitTap:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _restart(self) -> None:
        self._calls.clear()
        self._leave_all()

    def _leave_all(self) -> None:
        while self._modes:
            self._modes.pop().leave()

    def _entry(self, name: str, layers: list[UnitLayer]) -> Callable[..., None]:
        calls = layers[0].tap.calls
        inside = [layer for layer in layers if layer.tap.function is not None]

        def enter(module: nn.Module, args: Any) -> None:
            call = self._calls[name] % calls
            self._calls[name] += 1
            wanted = {(layer.tap.function, layer.tap.occurrence): layer for layer in inside if layer.tap.call == call}
            if wanted:
                self._modes.append(_FunctionTap(module, wanted, self._replaced))
                self._modes[-1].__enter__()  # type: ignore[no-untyped-call]

        return enter

    def _exit(self, layers: list[UnitLayer]) -> Callable[..., Any]:
        name, calls = layers[0].tap.module, layers[0].tap.calls
        returned = {layer.tap.call: layer for layer in layers if layer.tap.function is None}

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            if self._modes and self._modes[-1].module is module:
                self._modes.pop().leave()
            layer = returned.get((self._calls[name] - 1) % calls)
            if layer is None or output is None:  # None: the forward pass of the module failed
                return None
            return self._replaced(layer, output, args)

        return leave

    def _replaced(self, layer: UnitLayer, maps: Any, operands: Any) -> Tensor | None:
        """What takes the place of ``maps``, the result of a call with ``operands``."""
        replacement = self._tapped(layer, maps)
        if (
            replacement is None
            or torch.is_grad_enabled()
            or not any(maps is operand for operand in tensors_in(operands))
        ):
            return replacement
        # The caller may ignore the result of an in-place call and go on with the operand.
        return cast("Tensor", maps.copy_(replacement))

    def _tapped(self, layer: UnitLayer, maps: Any) -> Tensor | None:
        try:
            self._check(layer, maps)
            self._seen[layer.name] += 1
            return self._on_maps(layer, maps)
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
            return None

    @staticmethod
    def _check(layer: UnitLayer, maps: Any) -> None:
        if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[1] != layer.num_units:
            shape = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise TraceError(
                f"Layer {layer.name!r}: expected maps [batch, {layer.num_units}, height, width] as {layer.site}, got "
                f"{shape}. The forward pass differs from the one in which the layer was found."
            )


class _FunctionTap(TorchFunctionMode):
    """Watches the torch functions that one call of a module runs."""

    def __init__(
        self,
        module: nn.Module,
        wanted: Mapping[tuple[str | None, int], UnitLayer],
        replaced: Callable[[UnitLayer, Any, Any], Tensor | None],
    ) -> None:
        super().__init__()
        self.module = module
        self.wanted = wanted
        self.replaced = replaced
        self.names = {name for name, _ in wanted}
        self.counts: Counter[str] = Counter()
        self.active = True

    def leave(self) -> None:
        """Stop watching. After a forward pass that was broken off, a later mode may be on top: only fall silent."""
        self.active = False
        if _get_current_function_mode() is self:  # type: ignore[no-untyped-call]
            self.__exit__(None, None, None)

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function_name(function)
        if not self.active or name not in self.names:
            return result
        layer = self.wanted.get((name, self.counts[name]))
        self.counts[name] += 1
        replacement = None if layer is None else self.replaced(layer, result, args)
        return result if replacement is None else replacement
