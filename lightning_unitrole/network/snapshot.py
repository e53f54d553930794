"""How objects are, noted so that they can be put back after running code that may change them.

Models, datasets, samplers and collate functions are the user's: they may count, cache, draw from generators of their
own, or read on from where they stopped. A :class:`Snapshot` notes what is reachable from them, and restores it.
"""

from __future__ import annotations

import functools
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_unitrole.network.reachable import (
    COLLECTIONS,
    HOOKS,
    Generator,
    generator_states,
    is_generator,
    is_left_alone,
    is_uninitialized,
    is_users,
    own_attributes,
    reachable,
    set_generator_states,
    slots_of,
    stored_globals,
    users_classes,
)
from lightning_unitrole.network.undo import (
    REWINDABLE,
    ArrayValue,
    Attributes,
    Cell,
    ClassAttributes,
    Entries,
    Global,
    Parts,
    Slots,
    TensorValue,
)

COPIED_BYTES = 64 * 2**20
"""Tensors and arrays that are copied besides the buffers and attributes of modules, in all."""

_PARTS = ("_parameters", "_buffers", "_modules", *HOOKS)


class Snapshot:
    """The state that can be reached from some objects, to be put back with :meth:`restore`.

    Noted are attributes (slots too), the entries of collections, class attributes and global variables that the user's
    functions write, variables in closures, the positions of open files and of iterators over collections, the states of
    random number generators, and the values of tensors and arrays: of modules all buffers and attributes, elsewhere up
    to :data:`COPIED_BYTES`.

    What cannot be noted: what lies behind more than :data:`~lightning_unitrole.network.reachable.MOST_OBJECTS` objects,
    or inside of objects that are written in C; and iterators that Python cannot rewind, which :attr:`obstacles` lists.

    Args:
        roots: where to begin.
        without: objects that are not followed.

    Attributes:
        generators: random number generators that were found.
        obstacles: for each iterator that cannot be rewound, what it is.
    """

    def __init__(self, *roots: Any, without: Iterable[Any] = ()) -> None:
        objects = list(reachable(*roots, without=without))
        self.generators: list[Generator] = [value for value in objects if is_generator(value)]
        self.obstacles = [what for what in map(_obstacle, objects) if what is not None]
        self._states = generator_states(self.generators)
        self._undo: list[Callable[[], None]] = []
        self._copied = 0
        self._uncopied: list[tuple[Tensor, int]] = []
        for value in objects:
            self._note(value)

    def restore(self) -> list[str]:
        """Put everything back that differs.

        Returns:
            What could not be put back because it was too large to be copied, in words; empty where all is as it was.
        """
        for undo in self._undo:
            undo()
        set_generator_states(self.generators, self._states)
        return [
            f"a tensor of shape {list(tensor.shape)}"
            for tensor, version in self._uncopied
            if tensor._version != version
        ]

    def _note(self, value: Any) -> None:
        if isinstance(value, (tuple, frozenset, MethodType, ModuleType)) or is_generator(value):
            return
        if isinstance(value, Tensor):
            self._note_tensor(value, always=False)
        elif isinstance(value, np.ndarray):
            self._note_array(value)
        elif isinstance(value, torch.jit.ScriptModule):
            for tensor in value.buffers():  # of its parts too, which are not followed
                self._note_tensor(tensor, always=True)
        elif isinstance(value, nn.Module):
            self._note_module(value)
        elif isinstance(value, io.IOBase):
            self._note_file(value)
        elif isinstance(value, type):
            if is_users(value):
                self._undo.append(ClassAttributes(value))
        elif isinstance(value, FunctionType):
            if is_users(value):
                self._note_function(value)
        elif isinstance(value, COLLECTIONS):
            self._undo.append(Entries(value))
            self._note_attributes(value)
        elif not is_left_alone(type(value)):
            self._note_attributes(value)

    def _note_attributes(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._undo.append(Attributes(attributes))
        if slots := dict(slots_of(value)):
            self._undo.append(Slots(value, slots))

    def _note_module(self, module: nn.Module) -> None:
        attributes = vars(module)
        for tensor in (*module._buffers.values(), *own_attributes(module).values()):
            if isinstance(tensor, Tensor):
                self._note_tensor(tensor, always=True)
        self._undo.append(Parts([attributes[part] for part in _PARTS if isinstance(attributes.get(part), dict)]))
        self._undo.append(Attributes(attributes, framework=True))

    def _note_tensor(self, tensor: Tensor, *, always: bool) -> None:
        if is_uninitialized(tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
            return
        if isinstance(tensor, nn.Parameter):
            return
        if not always and self._copied + tensor.nbytes > COPIED_BYTES:
            if not tensor.is_inference():
                self._uncopied.append((tensor, tensor._version))
            return
        self._copied += 0 if always else tensor.nbytes
        self._undo.append(TensorValue(tensor))

    def _note_array(self, array: np.ndarray[Any, Any]) -> None:
        if array.flags.writeable and array.dtype != object and self._copied + array.nbytes <= COPIED_BYTES:
            self._copied += array.nbytes
            self._undo.append(ArrayValue(array))

    def _note_file(self, file: Any) -> None:
        if _is_being_read(file) and _obstacle(file) is None:
            self._undo.append(functools.partial(_rewind, file, file.tell()))

    def _note_function(self, function: FunctionType) -> None:
        self._undo.append(Attributes(vars(function)))
        self._undo.extend(Cell(cell) for cell in function.__closure__ or ())
        self._undo.extend(Global(function.__globals__, name) for name in stored_globals(function.__code__))


def _rewind(file: Any, position: int) -> None:
    if not file.closed:
        file.seek(position)


def find_obstacles(*roots: Any, without: Iterable[Any] = ()) -> list[str]:
    """Iterators that can be reached from some objects and cannot be rewound, in words; nothing is changed."""
    return [what for what in map(_obstacle, reachable(*roots, without=without)) if what is not None]


def find_open_files(*roots: Any, without: Iterable[Any] = ()) -> list[str]:
    """Names of files that can be reached from some objects and are open for reading, archives among them."""
    found = []
    for value in reachable(*roots, without=without):
        file = value
        if isinstance(value, (zipfile.ZipFile, tarfile.TarFile)):
            file = value.fp if isinstance(value, zipfile.ZipFile) else value.fileobj
        if isinstance(file, io.IOBase) and not isinstance(file, io.BytesIO | io.StringIO) and _is_being_read(file):
            found.append(str(getattr(file, "name", type(file).__name__)))
    return found


def _obstacle(value: Any) -> str | None:
    if isinstance(value, io.IOBase):
        try:
            if _is_being_read(value):
                value.tell()
        except (OSError, ValueError):
            return f"the file {getattr(value, 'name', value)!r}, which is being read line by line"
        return None
    if isinstance(value, Iterator) and not users_classes(value) and type(value) not in REWINDABLE:
        return f"a {type(value).__name__}"
    return None


def _is_being_read(file: io.IOBase) -> bool:
    return not file.closed and file.readable()
