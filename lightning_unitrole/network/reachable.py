"""What can be reached from some objects, in Python's own terms: attributes, entries, variables of functions, classes.

Models, datasets, samplers and collate functions are the user's: whatever they hold may change when they run.
"""

from __future__ import annotations

import dis
import functools
import io
import random
import sys
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

MOST_OBJECTS = 20_000
"""Objects that are followed, at most; those that are near come first, and large collections last."""

LARGE_COLLECTION = 64

FRAMEWORK_ATTRIBUTES = frozenset(
    {*vars(nn.Module()), "_compiled_call_impl", "_trainer", "_fabric", "_jit_is_scripting"}
)
"""Attributes of a module that belong to torch and Lightning."""

HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)

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
COLLECTIONS = (list, dict, set, deque)


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
        if isinstance(value, (*COLLECTIONS, tuple, frozenset)) and len(value) > LARGE_COLLECTION:
            if not all(issubclass(kind, _ATOMS) for kind in set(map(type, _entries(value)))):
                large.append(value)
        else:
            near.extend(_children(value))


def _entries(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, (Tensor, np.ndarray, ModuleType, io.IOBase)) or is_generator(value):
        return ()
    if isinstance(value, (*COLLECTIONS, tuple, frozenset)):
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
    if is_left_alone(type(value)):
        return ()
    if isinstance(value, data.DataLoader):  # whose live iterator is not touched by those that read a copy
        return (*(part for name, part in vars(value).items() if name != "_iterator"), *users_classes(value))
    return (*_attributes(value).values(), *(part for _, part in slots_of(value)), *users_classes(value))


def _parts_of_module(module: nn.Module) -> Iterable[Any]:
    hooks = (hook for name in HOOKS for hook in (vars(module).get(name) or {}).values() if not isinstance(hook, bool))
    return (*module._modules.values(), *own_attributes(module).values(), *hooks, *users_classes(module))


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
        parts.extend(contents(cell))
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
def stored_globals(code: CodeType) -> frozenset[str]:
    """Names of the global variables that some code writes."""
    found: set[str] = set()
    if dis.opmap["STORE_GLOBAL"] in code.co_code[::2]:
        found = {step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    inner = (stored_globals(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(found).union(*inner)


def contents(cell: CellType) -> Iterator[Any]:
    """The value of a variable in a closure, if it has one."""
    with suppress(ValueError):  # of a variable that is not bound yet
        yield cell.cell_contents


def _attributes(value: Any) -> dict[str, Any]:
    # Not by name, because reading an attribute may run a property.
    attributes = getattr(value, "__dict__", None)
    return attributes if isinstance(attributes, dict) else {}


def slots_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of an object's slots, as far as they are filled."""
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


def users_classes(value: Any) -> list[type]:
    """The classes of an object that are the user's own code."""
    return [kind for kind in type(value).__mro__ if is_users(kind)]


def _package(value: Any) -> str:
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else "builtins"


def is_users(value: Any) -> bool:
    """Whether a function, class or module is the user's own code, as far as its package tells."""
    package = _package(value)
    return package not in _LIBRARIES and package not in sys.stdlib_module_names


def is_left_alone(kind: type) -> bool:
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
