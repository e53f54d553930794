"""What objects hold, noted so that it can be put back after running code that may change it.

Models, datasets, samplers and collate functions are the user's: they may count, cache, draw from generators of their
own, or read on from where they stopped. A :class:`Snapshot` follows what is reachable from them, in Python's own terms,
and restores it.
"""

from __future__ import annotations

import copy
import dis
import functools
import io
import operator
import random
import sys
import tarfile
import zipfile
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

MOST_OBJECTS = 20_000
"""Objects that are followed, at most; those that are near come first, and large collections last."""

COPIED_BYTES = 64 * 2**20
"""Tensors and arrays that are copied besides the buffers and attributes of modules, in all."""

_LARGE_COLLECTION = 64

FRAMEWORK_ATTRIBUTES = frozenset(
    {*vars(nn.Module()), "_compiled_call_impl", "_trainer", "_fabric", "_jit_is_scripting"}
)
"""Attributes of a module that belong to torch and Lightning."""

_HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)
_PARTS = ("_parameters", "_buffers", "_modules", *_HOOKS)

# fmt: off
_LIBRARIES = frozenset({
    "torch", "torchvision", "torchaudio", "torchmetrics", "torch_pruning", "numpy", "scipy", "pandas", "PIL", "cv2",
    "h5py", "sklearn", "matplotlib", "lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning",
    "lightning_unitrole", "tensorboard", "_pytest", "pytest", "builtins",
})
"""Packages whose functions and classes are taken to keep no state of the user's."""

_LEFT_ALONE = frozenset({
    "lightning", "lightning_fabric", "pytorch_lightning", "lightning_unitrole", "logging", "threading",
    "multiprocessing", "concurrent", "asyncio", "socket", "subprocess", "weakref", "tensorboard", "tqdm", "rich",
    "wandb", "mlflow", "matplotlib", "h5py",
})
"""Packages whose objects go on living while the user's code runs, and must not be put back."""
# fmt: on

_ATOMS = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type(...),
    torch.dtype,
    torch.device,
    BuiltinFunctionType,
    CodeType,
)
_COLLECTIONS = (list, dict, set, deque)
_ITERABLES: tuple[Any, ...] = (
    *([], (), range(1), range(2**70, 2**70 + 1), "a", "ä", b"", bytearray(), set(), {}),
    *({}.values(), {}.items()),
)
_REWINDABLE = (*(type(iter(one)) for one in _ITERABLES), type(reversed([])))


class Snapshot:
    """The state that can be reached from some objects, to be put back with :meth:`restore`.

    Noted are attributes (slots too), the entries of collections, class attributes and global variables that the user's
    functions write, variables in closures, the positions of open files and of iterators over collections, the states of
    random number generators, and the values of tensors and arrays: of modules all buffers and attributes, elsewhere up
    to :data:`COPIED_BYTES`.

    What cannot be noted: what lies behind more than :data:`MOST_OBJECTS` objects, or inside of objects that are written
    in C; and iterators that Python cannot rewind, which :attr:`obstacles` lists.

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
                self._undo.append(_ClassAttributes(value))
        elif isinstance(value, FunctionType):
            if is_users(value):
                self._note_function(value)
        elif isinstance(value, _COLLECTIONS):
            self._undo.append(_Entries(value))
            self._note_attributes(value)
        elif not _is_left_alone(type(value)):
            self._note_attributes(value)

    def _note_attributes(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._undo.append(_Attributes(attributes))
        if slots := dict(_slots(value)):
            self._undo.append(_Slots(value, slots))

    def _note_module(self, module: nn.Module) -> None:
        attributes = vars(module)
        for tensor in (*module._buffers.values(), *own_attributes(module).values()):
            if isinstance(tensor, Tensor):
                self._note_tensor(tensor, always=True)
        self._undo.append(_Parts([attributes[part] for part in _PARTS if isinstance(attributes.get(part), dict)]))
        self._undo.append(_Attributes(attributes, framework=True))

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
        self._undo.append(_TensorValue(tensor))

    def _note_array(self, array: np.ndarray[Any, Any]) -> None:
        if array.flags.writeable and array.dtype != object and self._copied + array.nbytes <= COPIED_BYTES:
            self._copied += array.nbytes
            self._undo.append(_ArrayValue(array))

    def _note_file(self, file: Any) -> None:
        if _is_being_read(file) and _obstacle(file) is None:
            self._undo.append(functools.partial(_rewind, file, file.tell()))

    def _note_function(self, function: FunctionType) -> None:
        self._undo.append(_Attributes(vars(function)))
        self._undo.extend(_Cell(cell) for cell in function.__closure__ or ())
        self._undo.extend(_Global(function.__globals__, name) for name in _stored_globals(function.__code__))


class _Attributes:
    """The attributes of one object; iterators in them that can be copied are read through copies meanwhile."""

    def __init__(self, attributes: dict[str, Any], *, framework: bool = False) -> None:
        self.attributes, self.left = attributes, FRAMEWORK_ATTRIBUTES - {"training"} if framework else frozenset()
        self.before = {name: value for name, value in attributes.items() if name not in self.left}
        for name, value in self.before.items():
            if type(value) in _REWINDABLE:
                attributes[name] = copy.copy(value)

    def __call__(self) -> None:
        for name in [*self.attributes]:
            if name not in self.before and name not in self.left:
                del self.attributes[name]
        for name, value in self.before.items():
            if self.attributes.get(name, self) is not value:
                self.attributes[name] = value


class _Slots:
    """The values of one object's slots."""

    def __init__(self, owner: Any, slots: Mapping[str, Any]) -> None:
        self.owner, self.before = owner, dict(slots)
        for name, value in slots.items():
            if type(value) in _REWINDABLE:
                object.__setattr__(owner, name, copy.copy(value))

    def __call__(self) -> None:
        now = dict(_slots(self.owner))
        for name in now.keys() - self.before.keys():
            object.__delattr__(self.owner, name)
        for name, value in self.before.items():
            if now.get(name, self) is not value:
                object.__setattr__(self.owner, name, value)


class _Parts:
    """The parameters, buffers, children and hooks of one module; most of these dicts are empty."""

    def __init__(self, parts: list[dict[Any, Any]]) -> None:
        self.parts = [(part, part.copy() if part else None) for part in parts]

    def __call__(self) -> None:
        for part, before in self.parts:
            if before is None:
                if part:
                    part.clear()
            elif len(part) != len(before) or not all(map(operator.is_, part.values(), before.values())):
                part.clear()
                part.update(before)


class _Entries:
    """The entries of one collection."""

    def __init__(self, collection: Any) -> None:
        self.collection = collection
        self.before = collection.items() if isinstance(collection, dict) else collection
        self.before = list(self.before)
        if isinstance(collection, list):
            for index, value in enumerate(self.before if len(self.before) <= _LARGE_COLLECTION else ()):
                if type(value) in _REWINDABLE:
                    collection[index] = copy.copy(value)
        elif isinstance(collection, dict) and len(self.before) <= _LARGE_COLLECTION:
            for name, value in self.before:
                if type(value) in _REWINDABLE:
                    collection[name] = copy.copy(value)

    def __call__(self) -> None:
        value, before = self.collection, self.before
        if isinstance(value, dict):
            same = len(value) == len(before) and all(
                key is old_key and item is old
                for (key, item), (old_key, old) in zip(value.items(), before, strict=True)
            )
            if not same:
                value.clear()
                for key, item in before:  # not `update`, which a Counter understands as adding
                    value[key] = item
        elif isinstance(value, set):
            if len(value) != len(before) or not value.issuperset(before):
                value.clear()
                value.update(before)
        elif len(value) != len(before) or not all(map(operator.is_, value, before)):
            value.clear()
            value.extend(before)


class _TensorValue:
    def __init__(self, tensor: Tensor) -> None:
        with torch.no_grad():
            self.tensor, self.before = tensor, tensor.detach().clone()

    def __call__(self) -> None:
        tensor, before = self.tensor, self.before
        if tensor.shape != before.shape:
            tensor.data = before
        elif not torch.equal(tensor.detach(), before):
            with torch.inference_mode(tensor.is_inference()):
                tensor.data.copy_(before)


class _ArrayValue:
    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array, self.before = array, array.copy()

    def __call__(self) -> None:
        if not np.array_equal(self.array, self.before):
            self.array[...] = self.before


class _Cell:
    def __init__(self, cell: CellType) -> None:
        self.cell, self.before = cell, [*_contents(cell)]
        for value in self.before:
            if type(value) in _REWINDABLE:
                cell.cell_contents = copy.copy(value)

    def __call__(self) -> None:
        for value in self.before:
            if next(_contents(self.cell), self) is not value:
                self.cell.cell_contents = value


class _Global:
    def __init__(self, variables: dict[str, Any], name: str) -> None:
        self.variables, self.name, self.before = variables, name, variables.get(name, self)

    def __call__(self) -> None:
        if self.before is self:
            self.variables.pop(self.name, None)
        else:
            self.variables[self.name] = self.before


class _ClassAttributes:
    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.before = self._now()
        for name, value in self.before.items():
            if type(value) in _REWINDABLE:
                type.__setattr__(kind, name, copy.copy(value))

    def _now(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self.kind).items()
            if not name.startswith(("__", "_abc_")) and not callable(value)
        }

    def __call__(self) -> None:
        now = self._now()
        for name in now.keys() - self.before.keys():
            type.__delattr__(self.kind, name)
        for name, value in self.before.items():
            if now.get(name, self) is not value:
                type.__setattr__(self.kind, name, value)


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
    if isinstance(value, Iterator) and not _users_classes(value) and type(value) not in _REWINDABLE:
        return f"a {type(value).__name__}"
    return None


def _is_being_read(file: io.IOBase) -> bool:
    return not file.closed and file.readable()


def reachable(*roots: Any, without: Iterable[Any] = ()) -> Iterator[Any]:
    """Every object that can be reached from some, each once, near ones first; see :class:`Snapshot` for the limits."""
    seen = {id(value) for value in without}
    near, large, far = deque(roots), deque[Any](), deque[Any]()
    while near or far or large:
        if not near and not far:
            value = large.popleft()
            far.extend(value.values() if isinstance(value, dict) else value)
            continue
        value = near.popleft() if near else far.popleft()
        if isinstance(value, _ATOMS) or id(value) in seen:
            continue
        if len(seen) >= MOST_OBJECTS:
            return
        seen.add(id(value))
        yield value
        if isinstance(value, (*_COLLECTIONS, tuple, frozenset)) and len(value) > _LARGE_COLLECTION:
            if not all(issubclass(kind, _ATOMS) for kind in set(map(type, _entries(value)))):
                large.append(value)
        else:
            near.extend(_children(value))


def _entries(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, (Tensor, np.ndarray, ModuleType, io.IOBase)) or is_generator(value):
        return ()
    if isinstance(value, (*_COLLECTIONS, tuple, frozenset)):
        return (*_entries(value), *_attributes(value).values())
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        # A hook of this package gathers what it came for.
        return () if _package(value) in _LEFT_ALONE else _parts_of_function(value)
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return (value.fget,)
    if isinstance(value, type):
        return [part for name, part in vars(value).items() if name != "__dict__"] if is_users(value) else ()
    if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
        return _parts_of_module(value)
    if _is_left_alone(type(value)):
        return ()
    if isinstance(value, data.DataLoader):  # whose live iterator is not touched by those that read a copy
        return (*(part for name, part in vars(value).items() if name != "_iterator"), *_users_classes(value))
    return (*_attributes(value).values(), *(part for _, part in _slots(value)), *_users_classes(value))


def _parts_of_module(module: nn.Module) -> Iterable[Any]:
    hooks = (hook for name in _HOOKS for hook in (vars(module).get(name) or {}).values() if not isinstance(hook, bool))
    return (*module._modules.values(), *own_attributes(module).values(), *hooks, *_users_classes(module))


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are neither torch's nor Lightning's."""
    return {name: value for name, value in vars(module).items() if name not in FRAMEWORK_ATTRIBUTES}


def _parts_of_function(function: FunctionType) -> Iterable[Any]:
    parts: list[Any] = [
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
        *vars(function).values(),
    ]
    for cell in function.__closure__ or ():
        parts.extend(_contents(cell))
    if is_users(function):
        names = _names(function.__code__)
        variables = function.__globals__
        for name in names & variables.keys():
            value = variables[name]
            if isinstance(value, ModuleType) and is_users(value):
                members = vars(value)
                parts.extend(members[member] for member in names & members.keys() if _may_hold_state(members[member]))
            elif _may_hold_state(value):
                parts.append(value)
    return parts


def _may_hold_state(value: Any) -> bool:
    if isinstance(value, (ModuleType, type)):
        return False
    return is_users(value) if isinstance(value, FunctionType) else True


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    """Names of the global variables and attributes that some code mentions."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(code.co_names).union(*inner)


@functools.lru_cache(maxsize=4096)
def _stored_globals(code: CodeType) -> frozenset[str]:
    """Names of the global variables that some code writes."""
    found: set[str] = set()
    if dis.opmap["STORE_GLOBAL"] in code.co_code[::2]:
        found = {step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    inner = (_stored_globals(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(found).union(*inner)


def _contents(cell: CellType) -> Iterator[Any]:
    with suppress(ValueError):  # of a variable that is not bound yet
        yield cell.cell_contents


def _attributes(value: Any) -> dict[str, Any]:
    # Not by name, because reading an attribute may run a property.
    attributes = getattr(value, "__dict__", None)
    return attributes if isinstance(attributes, dict) else {}


def _slots(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, type)):
        return
    for kind in type(value).__mro__:
        declared = vars(kind).get("__slots__", ())
        for name in (declared,) if isinstance(declared, str) else tuple(declared):
            if name in ("__dict__", "__weakref__"):
                continue
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{kind.__name__.lstrip('_')}{name}"
            with suppress(AttributeError):
                yield name, object.__getattribute__(value, name)


def _users_classes(value: Any) -> list[type]:
    return [kind for kind in type(value).__mro__ if is_users(kind)]


def _package(value: Any) -> str:
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else "builtins"


def is_users(value: Any) -> bool:
    """Whether a function, class or module is the user's own code, as far as its package tells."""
    package = _package(value)
    return package not in _LIBRARIES and package not in sys.stdlib_module_names


def _is_left_alone(kind: type) -> bool:
    """Whether objects of a class are nobody's state: they belong to a library, or go on living meanwhile."""
    return _left_alone(cast("Hashable", kind))


@functools.lru_cache(maxsize=4096)
def _left_alone(kind: Any) -> bool:
    if any(_package(base) in _LEFT_ALONE for base in kind.__mro__):
        return True
    if issubclass(kind, (SimpleNamespace, data.Dataset, data.Sampler, data.DataLoader)):
        return False
    return not any(map(is_users, kind.__mro__)) and _package(kind) not in ("torchvision", "torchmetrics")


def is_uninitialized(tensor: Any) -> bool:
    """Whether a lazy module has yet to make a tensor."""
    return isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))


def is_generator(value: Any) -> bool:
    """Whether something is a random number generator with a state of its own."""
    # A SystemRandom asks the operating system: it has no state.
    return isinstance(value, Generator) and not isinstance(value, random.SystemRandom)


def generator_states(generators: Sequence[Generator]) -> list[Any]:
    """The states of random number generators."""
    states: list[Any] = []
    for generator in generators:
        if isinstance(generator, torch.Generator):
            states.append(generator.get_state())
        elif isinstance(generator, np.random.Generator):
            states.append(generator.bit_generator.state)
        elif isinstance(generator, np.random.RandomState):
            states.append(generator.get_state(legacy=False))
        else:
            states.append(generator.getstate())
    return states


def set_generator_states(generators: Sequence[Generator], states: Sequence[Any]) -> None:
    """Put the states of random number generators back."""
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
        else:
            generator.setstate(state)
