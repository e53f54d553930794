"""Recording a forward pass: every torch function that sees a tensor derived from a layer's maps is written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_unitrole.ablation.tape import (
    ROWS,
    Call,
    Constant,
    Reference,
    Rows,
    Tape,
    UnreplayableError,
    autocast_state,
    indices_in,
)
from lightning_unitrole.errors import TraceError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import batch_size, leaves, map_leaves, map_tensors, tensors_in
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.tracing import function_name
from lightning_unitrole.network.units import UnitLayer

# Functions that may return something else than tensors without revealing the values that a tensor holds.
_METADATA = frozenset({
    "__get__", "size", "stride", "dim", "ndimension", "numel", "nelement", "__len__", "is_contiguous",
    "is_floating_point", "is_complex", "is_signed", "element_size", "storage_offset", "get_device", "type",
    "is_same_size",
    "is_inference", "__hash__", "__repr__", "__str__", "__format__", "is_tensor", "result_type", "can_cast",
})  # fmt: skip


_LAYOUT = frozenset({"reshape", "movedim"})
"""Functions that bring maps into the layout of a layer's output."""


def record(runner: Runner, layer: UnitLayer, inputs: Any, copies: set[tuple[int, int]]) -> Tape:
    """Run a model on a copy of ``inputs`` and record what depends on the maps of ``layer``.

    Args:
        runner: runs the model, in evaluation mode and without gradients.
        layer: the layer.
        inputs: one batch.
        copies: tensors that have to be copied when they are recorded because the model overwrites them later, as call
            and position; found out here and kept by the caller for the next batch.

    Raises:
        UnreplayableError: if the recorded calls do not determine what the model would do with other maps.
        TraceError: if the forward pass does not reach the layer.
    """
    (tape,) = record_all(runner, [layer], inputs, {layer.name: copies})
    if isinstance(tape, UnreplayableError):
        raise tape
    return tape


def record_all(
    runner: Runner, layers: Sequence[UnitLayer], inputs: Any, copies: Mapping[str, set[tuple[int, int]]]
) -> list[Tape | UnreplayableError]:
    """Record what depends on the maps of each of several layers, in one forward pass.

    Args:
        runner: runs the model, in evaluation mode and without gradients.
        layers: the layers.
        inputs: one batch.
        copies: see :func:`record`, by the layer's name.

    Returns:
        For each layer its tape, or why there is none.

    Raises:
        TraceError: if the forward pass does not reach a layer.
    """
    while True:
        inputs_now = map_tensors(inputs, torch.clone)
        recorder = _Recorder(inputs_now, {layer.name: copies[layer.name] for layer in layers})
        with recorder, UnitTap(runner.model, layers, recorder.tapped):
            outputs = runner.forward(inputs_now)
        tracks = [recorder.tracks[layer.name] for layer in layers]
        for layer, track in zip(layers, tracks, strict=True):
            if track.maps is None:
                raise TraceError(
                    f"Layer {layer.name!r}: the forward pass did not reach its maps ({layer.site}). Find the layers "
                    "again with the same forward function."
                )
        stale = [track.find_stale() for track in tracks]
        if not any(stale):
            return [track.finish(outputs) for track in tracks]


class _Recorder(TorchFunctionMode):
    """Sees every torch function of a forward pass, and lets the track of each layer write down what is its own."""

    def __init__(self, inputs: Any, copies: Mapping[str, set[tuple[int, int]]]) -> None:
        super().__init__()
        self.num_rows = batch_size(inputs)
        # Only a tensor that derives from the inputs can have the batch as its first dimension.
        self.derived: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        for tensor in tensors_in(inputs):
            self.derived[tensor] = True
        # Copies that the pass goes on with, each with the track of its layer and the maps that it is a copy of.
        self.copies_of_maps: MutableMapping[Tensor, tuple[_Track, Tensor]] = WeakTensorKeyDictionary()
        self.tracks = {name: _Track(self, of_layer) for name, of_layer in copies.items()}

    def tapped(self, layer: UnitLayer, maps: Tensor) -> Tensor:
        """Take the maps of a layer, and give what the pass goes on with in their place."""
        track = self.tracks[layer.name]
        if track.maps is not None:
            track.failure = UnreplayableError("a forward pass computes its maps more than once")
            return maps
        with torch._C.DisableTorchFunction():
            track.maps = maps.clone()
        # The pass goes on with a copy of its own: whatever else holds or shares the memory of the maps is not ablated.
        # The tracks of earlier layers see the copy being made.
        passed_on = maps.clone()
        track.numbers[passed_on] = 0
        self.copies_of_maps[passed_on] = track, maps
        return passed_on

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(function)
        if name == "copy_" and len(args) > 1 and args[1] in self.copies_of_maps:
            track, maps = self.copies_of_maps[args[1]]
            if args[0] is maps or _same_memory(args[0], maps):
                # After an activation in place the pass goes on with the maps themselves. Nothing changes in value, and
                # a write that is repeated would stand in the way of gradients.
                track.numbers[args[0]] = track.numbers[args[1]]
                return args[0]
        operands = [*tensors_in(args), *tensors_in(kwargs)]
        depending = [track for track in self.tracks.values() if track.depends_on(operands)]
        if depending and name == "__iter__":
            return iter(self.__torch_function__(torch.unbind, (), args))
        pending = [(track, track.before(name, function, args, kwargs, operands)) for track in depending]
        result = function(*args, **kwargs)
        if name in _LAYOUT and args[0] in self.copies_of_maps:
            self.copies_of_maps[result] = self.copies_of_maps[args[0]]
        for track, call in pending:
            if call is not None:
                track.after(call, name, result, operands)
        if any(tensor in self.derived for tensor in operands) or next(leaves((args, kwargs), Rows), None) is not None:
            changed = args[0] if name == "__setitem__" else result
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
            return torch.Size((Rows(result[0]), *result[1:]))
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        return Rows(result) if type(result) is int and dim in (0, -len(shape)) else result


@dataclass
class _Pending:
    """A call that is about to be made: how it will be repeated, and the versions of its operands before it."""

    call: Call
    versions: list[int]
    overwrites: Tensor | None = None


class _Track:
    """What depends on the maps of one layer."""

    def __init__(self, recorder: _Recorder, copies: set[tuple[int, int]]) -> None:
        self.recorder = recorder
        self.copies = copies
        self.calls: list[Call] = []
        self.constants: dict[int, Constant] = {}
        self.places: dict[tuple[int, int], Constant] = {}
        self.sizes: dict[int, int] = {}
        self.maps: Tensor | None = None
        self.numbers: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self.next_number = 1
        self.step = 0
        # State of a tensor (identity, version) to its number; holding the tensor keeps its identity from being reused.
        self.shared: dict[tuple[int, int], tuple[int, Tensor]] = {}
        # Storage that a recorded call wrote into through a tensor that did not depend on the maps before.
        self.overwritten: dict[int, Tensor] = {}
        self.failure: UnreplayableError | None = None

    def find_stale(self) -> bool:
        """Whether a tensor was overwritten after it was recorded; the next pass will copy it."""
        stale = {
            place
            for place, constant in self.places.items()
            if place not in self.copies and version_of(constant.tensor) != constant.version
        }
        self.copies |= stale
        return bool(stale) and self.failure is None

    def finish(self, outputs: Any) -> Tape | UnreplayableError:
        """The tape, or why there is none."""
        assert self.maps is not None
        if self.failure is None:
            try:
                template = self.references(outputs)
                return Tape(self.maps, outputs, template, self.calls, self.constants, self.sizes)
            except UnreplayableError as error:
                return error
        return self.failure

    def depends_on(self, operands: list[Tensor]) -> bool:
        """Whether a call with these operands is one to repeat."""
        if self.failure is not None or self.maps is None:
            return False
        if any(tensor in self.numbers for tensor in operands):
            return True
        try:
            self._check_overwritten(operands)
        except UnreplayableError as error:
            self.failure = error
        return False

    def before(
        self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[Tensor]
    ) -> _Pending | None:
        """Note the arguments of a call before it is made; None where that shows that it cannot be repeated."""
        versions = [version_of(tensor) for tensor in operands]
        try:
            if name == "copy_" and args[0] not in self.numbers and args[0].shape == args[1].shape:
                # Without the old values of the target, which nobody will read.
                target, source = args
                autocast = autocast_state(target.device.type)
                call = Call(torch.Tensor.to, (self.references(source), target.dtype), {"copy": True}, autocast)
                return _Pending(call, versions, target)
            self.step += 1
            recorded, named = self.references((args, kwargs))
        except UnreplayableError as error:
            self.failure = error
            return None
        return _Pending(Call(function, recorded, named, autocast_state(operands[0].device.type)), versions)

    def after(self, pending: _Pending, name: str, result: Any, operands: list[Tensor]) -> None:
        """Record a call that was made."""
        call, target = pending.call, pending.overwrites
        if target is not None:
            number = self._new_number(target.nbytes)
            call.outputs = [number]
            self.calls.append(call)
            self._take_over(target, number)
            return
        outputs = list(tensors_in(result))
        if not outputs and name in _METADATA:
            return
        changes = zip(operands, pending.versions, strict=True)
        written = [tensor for tensor, version in changes if version_of(tensor) != version]
        if not outputs and not written:
            self.failure = UnreplayableError(f"the forward pass reads values that depend on it into Python ({name})")
            return
        numbers = [number for number in indices_in([*call.args, call.kwargs]) if number != ROWS.index]
        for tensor, number in zip(operands, numbers, strict=True):
            if tensor not in self.numbers and any(tensor is other for other in written):
                # From this call on the tensor depends on the maps, and so does whatever shares its memory.
                call.fresh.append(number)
                self._take_over(tensor, number)
        call.outputs = [self._number(tensor) for tensor in outputs]
        self.calls.append(call)

    def _take_over(self, tensor: Tensor, number: int) -> None:
        self.numbers[tensor] = number
        self.sizes[number] = tensor.nbytes
        self.overwritten[tensor.untyped_storage()._cdata] = tensor

    def references(self, structure: Any) -> Any:
        """``structure`` with every tensor replaced by its number."""
        positions = count()
        referring = map_tensors(structure, lambda tensor: self._reference(tensor, next(positions)))
        return map_leaves(referring, Rows, lambda _: ROWS)

    def _reference(self, tensor: Tensor, position: int) -> Reference:
        if tensor in self.numbers:
            return Reference(self.numbers[tensor])
        self._check_overwritten([tensor])
        place, state = (self.step, position), (id(tensor), version_of(tensor))
        if state not in self.shared:
            copied = tensor.clone() if place in self.copies else tensor
            recorder = self.recorder
            rows = tensor in recorder.derived and tensor.dim() > 0 and tensor.shape[0] == recorder.num_rows
            constant = Constant(copied, version_of(copied), rows)
            number = self._new_number(0)
            self.constants[number] = self.places[place] = constant
            self.shared[state] = number, tensor
        return Reference(self.shared[state][0])

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


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def version_of(tensor: Tensor) -> int:
    """Counts in-place changes; an inference tensor cannot be changed outside of inference mode."""
    return -1 if tensor.is_inference() else tensor._version
