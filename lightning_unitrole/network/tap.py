"""Catching the maps of chosen layers while a model runs forward passes of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from lightning_unitrole.errors import TraceError
from lightning_unitrole.network.attention import open_attention
from lightning_unitrole.network.isolation import eager
from lightning_unitrole.network.layout import are_units, as_maps, from_maps
from lightning_unitrole.network.structures import tensors_in
from lightning_unitrole.network.tracing import function_name
from lightning_unitrole.network.units import UnitLayer

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
            stack.enter_context(open_attention(modules[name] for name in sites))
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
        if replacement is None or replacement is maps:
            return replacement
        in_place = any(maps is operand for operand in tensors_in(operands))
        if not in_place or (torch.is_grad_enabled() and maps.requires_grad):
            return replacement
        # The caller may ignore the result of an in-place call and go on with the operand.
        return cast("Tensor", maps.copy_(replacement))

    def _tapped(self, layer: UnitLayer, maps: Any) -> Tensor | None:
        try:
            self._check(layer, maps)
            self._seen[layer.name] += 1
            given = as_maps(layer, maps)
            replacement = self._on_maps(layer, given)
            if replacement is None or replacement is given:
                return None if replacement is None else cast("Tensor", maps)
            return from_maps(layer, replacement, maps)
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
            return None

    @staticmethod
    def _check(layer: UnitLayer, maps: Any) -> None:
        if not isinstance(maps, Tensor) or not are_units(layer, maps):
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
