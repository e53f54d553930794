"""Replaying only what depends on one layer's maps.

A tape is the list of the torch functions that saw a tensor derived from the maps, with their arguments. Replaying
repeats these calls alone, on other maps and on any choice of the batch's rows; everything else enters as the tensor
that the recorded pass computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.network.structures import leaves, map_leaves, tensors_in

Autocast = tuple[bool, torch.dtype]


_LINEAR = frozenset(
    {"adaptive_avg_pool2d", "avg_pool2d", "mean", "flatten", "reshape", "view", "squeeze", "linear", "conv2d"}
)
"""Functions that are linear in their first argument, up to a constant."""


class UnreplayableError(Exception):
    """The rest of a forward pass cannot be replayed; the message says why."""


@dataclass(frozen=True)
class Reference:
    """Stands for a tensor among recorded arguments and outputs."""

    index: int


class Rows(int):
    """The number of images in a batch, read from the shape of a tensor; a replay puts its own number in its place."""


ROWS = Reference(-1)


@dataclass
class Constant:
    """A tensor that does not depend on the maps: ``rows`` says that its first dimension is the batch."""

    tensor: Tensor
    version: int
    rows: bool


@dataclass
class Call:
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

    Args:
        maps: ``[B, U, H, W]`` maps of the layer.
        outputs: what the forward pass returned.
        template: the same with a :class:`Reference` in the place of each tensor.
        calls: what to repeat, in order.
        constants: tensors that the calls read, by number.
        sizes: bytes of what each call returns, by number.

    Attributes:
        maps: ``[B, U, H, W]`` maps of the layer.
        outputs: what the forward pass returned.
        num_bytes: memory that the tape holds, without the parameters of the model.
        bytes_per_row: memory that a replay needs for each row, about.
    """

    def __init__(
        self,
        maps: Tensor,
        outputs: Any,
        template: Any,
        calls: list[Call],
        constants: dict[int, Constant],
        sizes: dict[int, int],
    ) -> None:
        self.maps = maps
        self.outputs = outputs
        self._template = template
        self._calls = calls
        self._constants = constants
        self._plan_lifetimes()
        by_row = [constant.tensor for constant in self._constants.values() if constant.rows]
        self.num_bytes = sum(tensor.nbytes for tensor in [maps, *by_row, *tensors_in(outputs)])
        self.bytes_per_row = self._peak(sizes) // max(len(maps), 1) + 1

    @property
    def num_rows(self) -> int:
        """Number ``B`` of images of the batch."""
        return len(self.maps)

    @property
    def reads_images(self) -> bool:
        """Whether a replay reads something of each image besides its maps, as behind a residual connection."""
        return any(constant.rows for constant in self._constants.values())

    @property
    def is_linear(self) -> bool:
        """Whether the outputs are known to be linear in the maps, up to a constant."""
        return bool(self._calls) and all(_is_linear(call, self._constants) for call in self._calls)

    def replay(self, off: Tensor, rows: Tensor | None = None, *, fill: Tensor | None = None) -> Any:
        """Outputs of the model with units switched off.

        Args:
            off: ``[M, U]`` bool, units that are off for each row; ``[1, U]`` for the same in all rows.
            rows: ``[M]`` int64, images of the batch; ``None`` for all of them, in order.
            fill: ``[U, H, W]`` maps of units that are off; zero when left out.

        Returns:
            The outputs, with ``M`` rows.
        """
        return self.replay_maps(switched_off(self.maps if rows is None else self.maps[rows], off, fill), rows)

    def replay_maps(self, maps: Tensor, rows: Tensor | None = None) -> Any:
        """Outputs of the model with other maps in the place of the layer's.

        Args:
            maps: ``[M, U, H, W]``; the model may work on them in place.
            rows: ``[M]`` int64, images of the batch that they belong to; ``None`` for all of them, in order.
        """
        values: dict[int, Any] = {0: maps, ROWS.index: len(maps)}
        del maps

        def constant(index: int) -> Tensor:
            found = self._constants[index]
            return found.tensor[rows] if found.rows and rows is not None else found.tensor

        def value(reference: Reference) -> Any:
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
        return map_leaves(self._template, Reference, value)

    def _plan_lifetimes(self) -> None:
        kept = set(indices_in(self._template))
        last: dict[int, int] = {}
        for position, call in enumerate(self._calls):
            for index in [*indices_in([*call.args, call.kwargs]), *call.outputs]:
                last[index] = position
        for index, position in last.items():
            if index not in kept and index != ROWS.index:
                self._calls[position].finished.append(index)

    def _peak(self, sizes: dict[int, int]) -> int:
        """Largest sum of the sizes of all tensors that a replay of the whole batch holds at once."""
        live = {0: self.maps.nbytes}
        peak = 2 * self.maps.nbytes
        for call in self._calls:
            for index in indices_in([*call.args, call.kwargs]):
                if index in self._constants and self._constants[index].rows:
                    live[index] = self._constants[index].tensor.nbytes
            for index in call.outputs:
                live[index] = max(sizes.get(index, 0), live.get(index, 0))
            peak = max(peak, sum(live.values()))
            for index in call.finished:
                live.pop(index, None)
        return peak


def _is_linear(call: Call, constants: Mapping[int, Constant]) -> bool:
    name = getattr(call.function, "__name__", "")
    if name not in _LINEAR and not (name == "dropout" and call.kwargs.get("training") is False):
        return False
    depends = {*indices_in([*call.args, call.kwargs])} - constants.keys() - {ROWS.index}
    return len(depends) == 1 and call.args[0] == Reference(*depends)


def switched_off(maps: Tensor, off: Tensor, fill: Tensor | None = None) -> Tensor:
    """Maps ``[B, U, H, W]`` with units off, ``[B, U]`` or ``[1, U]`` bool: zero, or as ``fill`` ``[U, H, W]`` says."""
    if fill is None:
        return maps.masked_fill(off[:, :, None, None], 0)
    return torch.where(off[:, :, None, None], fill.to(maps), maps)


def indices_in(structure: Any) -> Iterator[int]:
    """Numbers of the tensors that a structure refers to, in order."""
    return (reference.index for reference in leaves(structure, Reference))


def _filled(arguments: Any, value: Callable[[Reference], Tensor]) -> Any:
    """Recorded arguments with tensors in the place of their numbers."""
    if isinstance(arguments, dict):
        return {name: _filled_one(argument, value) for name, argument in arguments.items()}
    return [_filled_one(argument, value) for argument in arguments]


def _filled_one(argument: Any, value: Callable[[Reference], Tensor]) -> Any:
    if type(argument) is Reference:
        return value(argument)
    return map_leaves(argument, Reference, value) if isinstance(argument, (tuple, list, dict)) else argument


def autocast_state(device_type: str) -> Autocast:
    """Whether automatic mixed precision is on for a device, and its type."""
    try:
        return torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    except (AttributeError, TypeError):  # torch < 2.4 has a function for each device
        if device_type == "cpu":
            return torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
        return torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()


@contextmanager
def _autocast_switch(device_type: str) -> Iterator[Callable[[Autocast], None]]:
    """A function that brings automatic mixed precision into a state, until this context ends."""
    ambient = current = autocast_state(device_type)
    with ExitStack() as stack:

        def switch(state: Autocast) -> None:
            nonlocal current
            if state != current:
                stack.close()
                if state != ambient:
                    stack.enter_context(torch.autocast(device_type, enabled=state[0], dtype=state[1]))
                current = state

        yield switch
