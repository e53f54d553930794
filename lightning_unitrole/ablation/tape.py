"""Recording one forward pass, and replaying only what depends on one layer's maps.

While a forward pass runs, every torch function that sees a tensor derived from the maps is written down with its
arguments. Replaying repeats these calls alone, on other maps and on any choice of the batch's rows; everything else
enters as the tensor that the recorded pass computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_unitrole.errors import TraceError
from lightning_unitrole.forwards import batch_size, function_name, leaves, map_leaves, map_tensors, tensors_in
from lightning_unitrole.units import UnitLayer, UnitTap

# Functions that may return something else than tensors without revealing the values that a tensor holds.
_METADATA = frozenset({
    "__get__", "size", "stride", "dim", "ndimension", "numel", "nelement", "__len__", "is_contiguous",
    "is_floating_point", "is_complex", "is_signed", "element_size", "storage_offset", "get_device", "type",
    "is_same_size",
    "is_inference", "__hash__", "__repr__", "__str__", "__format__", "is_tensor", "result_type", "can_cast",
})  # fmt: skip

Autocast = tuple[bool, torch.dtype]


class UnreplayableError(Exception):
    """The rest of a forward pass cannot be replayed; the message says why."""


@dataclass(frozen=True)
class _Value:
    """Stands for a tensor among recorded arguments and outputs."""

    index: int


class _Rows(int):
    """The number of images in a batch, read from the shape of a tensor; a replay puts its own number in its place."""


_ROWS = _Value(-1)


@dataclass
class _Constant:
    """A tensor that does not depend on the maps: ``rows`` says that its first dimension is the batch."""

    tensor: Tensor
    version: int
    rows: bool


@dataclass
class _Call:
    """One call to repeat.

    Attributes:
        outputs: values that it returns.
        autocast: state of automatic mixed precision.
        fresh: constants that it writes into, so that it needs copies of its own.
        finished: values that nothing reads after it.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: Autocast
    outputs: list[int] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)


class Tape:
    """What one batch leaves behind: the layer's maps, and the calls that depend on them.

    Attributes:
        maps: ``[B, U, H, W]`` maps of the layer.
        outputs: what the forward pass returned.
        num_bytes: memory that the tape holds, without the parameters of the model.
        bytes_per_row: memory that a replay needs for each row, about.
    """

    def __init__(self, recorder: _Recorder, maps: Tensor, outputs: Any) -> None:
        self.maps = maps
        self.outputs = outputs
        self._template = recorder.references(outputs)
        self._calls = recorder.calls
        self._constants = recorder.constants
        self._plan_lifetimes()
        by_row = [constant.tensor for constant in self._constants.values() if constant.rows]
        self.num_bytes = sum(tensor.nbytes for tensor in [maps, *by_row, *tensors_in(outputs)])
        self.bytes_per_row = self._peak(recorder.sizes) // max(len(maps), 1) + 1

    @property
    def num_rows(self) -> int:
        """Number ``B`` of images of the batch."""
        return len(self.maps)

    def replay(self, off: Tensor, rows: Tensor | None = None) -> Any:
        """Outputs of the model with units switched off.

        Args:
            off: ``[M, U]`` bool, units that are off for each row; ``[1, U]`` for the same in all rows.
            rows: ``[M]`` int64, images of the batch; ``None`` for all of them, in order.

        Returns:
            The outputs, with ``M`` rows.
        """
        maps = self.maps if rows is None else self.maps[rows]
        values: dict[int, Any] = {0: maps.masked_fill(off[:, :, None, None], 0), _ROWS.index: len(maps)}
        del maps

        def constant(index: int) -> Tensor:
            found = self._constants[index]
            return found.tensor[rows] if found.rows and rows is not None else found.tensor

        def value(reference: _Value) -> Any:
            if reference.index not in values:
                values[reference.index] = constant(reference.index)
            return values[reference.index]

        with _autocast_switch(self.maps.device.type) as switch:
            for call in self._calls:
                switch(call.autocast)
                for index in call.fresh:
                    values[index] = constant(index).clone()
                result = call.function(*_filled(call.args, value), **_filled(call.kwargs, value))
                if call.outputs:
                    values.update(zip(call.outputs, tensors_in(result), strict=True))
                del result
                for index in call.finished:
                    values.pop(index, None)
        return map_leaves(self._template, _Value, value)

    def _plan_lifetimes(self) -> None:
        kept = set(_indices(self._template))
        last: dict[int, int] = {}
        for position, call in enumerate(self._calls):
            for index in [*_indices([*call.args, call.kwargs]), *call.outputs]:
                last[index] = position
        for index, position in last.items():
            if index not in kept and index != _ROWS.index:
                self._calls[position].finished.append(index)

    def _peak(self, sizes: dict[int, int]) -> int:
        """Largest sum of the sizes of all tensors that a replay of the whole batch holds at once."""
        live = {0: self.maps.nbytes}
        peak = 2 * self.maps.nbytes
        for call in self._calls:
            for index in _indices([*call.args, call.kwargs]):
                if index in self._constants and self._constants[index].rows:
                    live[index] = self._constants[index].tensor.nbytes
            for index in call.outputs:
                live[index] = max(sizes.get(index, 0), live.get(index, 0))
            peak = max(peak, sum(live.values()))
            for index in call.finished:
                live.pop(index, None)
        return peak


def record(
    forward: Callable[[Any], Any], model: nn.Module, layer: UnitLayer, inputs: Any, copies: set[tuple[int, int]]
) -> Tape:
    """Run ``forward`` on a copy of ``inputs`` and record what depends on the maps of ``layer``.

    Args:
        forward: runs the model, in evaluation mode and without gradients.
        model: the model in which the layer was found.
        layer: the layer.
        inputs: one batch.
        copies: tensors that have to be copied when they are recorded because the model overwrites them later, as call
            and position; found out here and kept by the caller for the next batch.

    Raises:
        UnreplayableError: if the recorded calls do not determine what the model would do with other maps.
        TraceError: if the forward pass does not reach the layer.
    """
    while True:
        inputs_now = map_tensors(inputs, torch.clone)
        recorder = _Recorder(inputs_now, copies)
        with UnitTap(model, [layer], recorder.tapped), recorder:
            outputs = forward(inputs_now)
        if recorder.maps is None:
            raise TraceError(
                f"Layer {layer.name!r}: the forward pass did not reach its maps ({layer.site}). Find the layers again "
                "with the same forward function."
            )
        stale = {
            place
            for place, constant in recorder.places.items()
            if place not in copies and _version(constant.tensor) != constant.version
        }
        if not stale:
            return Tape(recorder, recorder.maps, outputs)
        copies |= stale


class _Recorder(TorchFunctionMode):
    def __init__(self, inputs: Any, copies: set[tuple[int, int]]) -> None:
        super().__init__()
        self.copies = copies
        self.calls: list[_Call] = []
        self.constants: dict[int, _Constant] = {}
        self.places: dict[tuple[int, int], _Constant] = {}
        self.sizes: dict[int, int] = {}
        self.maps: Tensor | None = None
        self.num_rows = batch_size(inputs)
        self.numbers: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self.next_number = 1
        self.step = 0
        # State of a tensor (identity, version) to its number; holding the tensor keeps its identity from being reused.
        self.shared: dict[tuple[int, int], tuple[int, Tensor]] = {}
        # Only a tensor that derives from the inputs can have the batch as its first dimension.
        self.derived: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        for tensor in tensors_in(inputs):
            self.derived[tensor] = True
        # Storage that a recorded call wrote into through a tensor that did not depend on the maps before.
        self.overwritten: dict[int, Tensor] = {}

    def tapped(self, layer: UnitLayer, maps: Tensor) -> Tensor:
        if self.maps is not None:
            raise UnreplayableError("a forward pass computes its maps more than once")
        # The pass goes on with a copy of its own: whatever else holds or shares the memory of the maps is not ablated.
        with torch._C.DisableTorchFunction():
            self.maps, passed_on = maps.clone(), maps.clone()
        self.numbers[passed_on] = 0
        return passed_on

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = [*tensors_in(args), *tensors_in(kwargs)]
        if self.maps is not None and any(tensor in self.numbers for tensor in operands):
            return self._record(function, args, kwargs, operands)
        self._check_overwritten(operands)
        result = function(*args, **kwargs)
        if any(tensor in self.derived for tensor in operands) or next(leaves((args, kwargs), _Rows), None) is not None:
            changed = args[0] if function_name(function) == "__setitem__" else result
            for tensor in tensors_in(changed):
                self.derived[tensor] = True
            return self._with_rows(result, args, kwargs)
        return result

    def _with_rows(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A shape, or its first entry, in which the number of images is marked as such."""
        shape = args[0].shape if args and isinstance(args[0], Tensor) else ()
        if shape[:1] != (self.num_rows,):
            return result
        if type(result) is torch.Size and result == shape:
            return torch.Size((_Rows(result[0]), *result[1:]))
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        return _Rows(result) if type(result) is int and dim in (0, -len(shape)) else result

    def _record(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[Tensor]) -> Any:
        name = function_name(function)
        if name == "__iter__":
            return iter(self.__torch_function__(torch.unbind, (), args))
        if name == "copy_" and args[0] not in self.numbers and args[0].shape == args[1].shape:
            return self._record_overwriting(args[0], args[1])
        self.step += 1
        before = [_version(tensor) for tensor in operands]
        recorded, named = self.references((args, kwargs))
        call = _Call(function, recorded, named, _autocast_state(operands[0].device.type))
        result = function(*args, **kwargs)
        outputs = list(tensors_in(result))
        if not outputs and name in _METADATA:
            return self._with_rows(result, args, kwargs)
        written = [tensor for tensor, version in zip(operands, before, strict=True) if _version(tensor) != version]
        if not outputs and not written:
            raise UnreplayableError(f"the forward pass reads values that depend on it into Python ({name})")
        numbers = [number for number in _indices([*call.args, call.kwargs]) if number != _ROWS.index]
        for tensor, number in zip(operands, numbers, strict=True):
            if tensor not in self.numbers and any(tensor is other for other in written):
                # From this call on the tensor depends on the maps, and so does whatever shares its memory.
                call.fresh.append(number)
                self._take_over(tensor, number)
        call.outputs = [self._number(tensor) for tensor in outputs]
        self.calls.append(call)
        return result

    def _record_overwriting(self, target: Tensor, source: Tensor) -> Tensor:
        """Record ``target.copy_(source)`` without the old values of ``target``, which nobody will read."""
        number = self._new_number(target.nbytes)
        call = _Call(
            torch.Tensor.to,
            (self.references(source), target.dtype),
            {"copy": True},
            _autocast_state(target.device.type),
        )
        call.outputs = [number]
        self.calls.append(call)
        self._take_over(target, number)
        return target.copy_(source)

    def _take_over(self, tensor: Tensor, number: int) -> None:
        self.numbers[tensor] = number
        self.sizes[number] = tensor.nbytes
        self.overwritten[tensor.untyped_storage()._cdata] = tensor

    def references(self, structure: Any) -> Any:
        """``structure`` with every tensor replaced by its number."""
        positions = count()
        referring = map_tensors(structure, lambda tensor: self._reference(tensor, next(positions)))
        return map_leaves(referring, _Rows, lambda _: _ROWS)

    def _reference(self, tensor: Tensor, position: int) -> _Value:
        if tensor in self.numbers:
            return _Value(self.numbers[tensor])
        self._check_overwritten([tensor])
        place, state = (self.step, position), (id(tensor), _version(tensor))
        if state not in self.shared:
            copied = tensor.clone() if place in self.copies else tensor
            rows = tensor in self.derived and tensor.dim() > 0 and tensor.shape[0] == self.num_rows
            constant = _Constant(copied, _version(copied), rows)
            number = self._new_number(0)
            self.constants[number] = self.places[place] = constant
            self.shared[state] = number, tensor
        return _Value(self.shared[state][0])

    def _check_overwritten(self, tensors: list[Tensor]) -> None:
        if self.overwritten and any(tensor.untyped_storage()._cdata in self.overwritten for tensor in tensors):
            raise UnreplayableError("the forward pass writes into a part of another tensor in place")

    def _number(self, tensor: Tensor) -> int:
        if tensor not in self.numbers:
            self.numbers[tensor] = self._new_number(0 if tensor._is_view() else tensor.nbytes)
        return self.numbers[tensor]

    def _new_number(self, size: int) -> int:
        number = self.next_number
        self.next_number += 1
        self.sizes[number] = size
        return number


def _version(tensor: Tensor) -> int:
    """Counts in-place changes; an inference tensor cannot be changed outside of inference mode."""
    return -1 if tensor.is_inference() else tensor._version


def _indices(structure: Any) -> Iterator[int]:
    return (reference.index for reference in leaves(structure, _Value))


def _filled(arguments: Any, value: Callable[[_Value], Tensor]) -> Any:
    """Recorded arguments with tensors in the place of their numbers."""
    if isinstance(arguments, dict):
        return {name: _filled_one(argument, value) for name, argument in arguments.items()}
    return [_filled_one(argument, value) for argument in arguments]


def _filled_one(argument: Any, value: Callable[[_Value], Tensor]) -> Any:
    if type(argument) is _Value:
        return value(argument)
    return map_leaves(argument, _Value, value) if isinstance(argument, (tuple, list, dict)) else argument


def _autocast_state(device_type: str) -> Autocast:
    try:
        return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    except (AttributeError, TypeError):  # torch < 2.4 has a function for each device
        if device_type == "cpu":
            return torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
        return torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()


@contextmanager
def _autocast_switch(device_type: str) -> Iterator[Callable[[Autocast], None]]:
    """A function that brings automatic mixed precision into a state, until this context ends."""
    ambient = current = _autocast_state(device_type)
    with ExitStack() as stack:

        def switch(state: Autocast) -> None:
            nonlocal current
            if state != current:
                stack.close()
                if state != ambient:
                    stack.enter_context(torch.autocast(device_type, enabled=state[0], dtype=state[1]))
                current = state

        yield switch
