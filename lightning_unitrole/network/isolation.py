"""Running models and reading data without leaving a trace: modes, buffers, compiled code and random states."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

_Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

_FRAMEWORK = frozenset({*vars(nn.Module()), "_compiled_call_impl", "_trainer", "_fabric", "_jit_is_scripting"})
"""Attributes of a module that belong to torch and Lightning."""

_DEPTH = 8
_MOST_OBJECTS = 10_000
_MOST_ENTRIES = 64


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate ``model`` inside this context and find everything as it was after it.

    Inside: every module in evaluation mode, no gradients, no inference mode, compiled code bypassed. After it, also
    when an error leaves it: modes, buffers, plain attributes, the random states of the process and those of generators
    that the modules hold are restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    kept = [_ModuleState(module) for module in model.modules()]
    generators = find_generators(*(value for state in kept for value in state.attributes.values()))
    # An inference tensor has no version counter, and a recorded forward pass must see in-place changes.
    with (
        eager(model),
        torch.inference_mode(False),
        torch.no_grad(),
        preserve_rng(generators=generators),
    ):
        try:
            # Flags are set directly: a module may override `train`, and single modules may have been frozen.
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for state in kept:
                state.restore()
            for module, training in modes:
                module.training = training


class _ModuleState:
    """Buffers and plain attributes of one module, by name, to be put back: a forward pass may assign new ones.

    Tensors get their values back, lists, dicts and sets their entries; what an attribute's object holds further inside
    is not protected.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.buffers = dict(module._buffers)
        self.attributes = {name: value for name, value in vars(module).items() if name not in _FRAMEWORK}
        self._values = [
            (tensor, tensor.detach().clone())
            for tensor in (*self.buffers.values(), *self.attributes.values())
            if isinstance(tensor, torch.Tensor) and not _is_uninitialized(tensor)
        ]
        self._entries = [
            (value, value.copy()) for value in self.attributes.values() if type(value) in (list, dict, set)
        ]

    def restore(self) -> None:
        """Put everything back that differs."""
        buffers, attributes = self.module._buffers, vars(self.module)
        if not isinstance(self.module, torch.jit.ScriptModule):  # whose buffers keep their names, and are no dict
            for name in [*buffers]:
                if name not in self.buffers:
                    del buffers[name]
            buffers.update(self.buffers)
        for name in [*attributes]:
            if name not in self.attributes and name not in _FRAMEWORK:
                del attributes[name]
        attributes.update(self.attributes)
        for tensor, value in self._values:
            if tensor.shape != value.shape or not torch.equal(tensor, value):
                tensor.data.copy_(value)
        for value, entries in self._entries:
            if isinstance(value, list):
                value[:] = entries
            else:
                value.clear()
                value.update(entries)


def _is_uninitialized(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Bypass ``torch.compile`` inside this context: compiled code does not run hooks that were added later."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and importing it takes seconds
        yield
        return
    if hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in model.modules():
            attributes = vars(module)
            for name, value in list(attributes.items()):
                if name == "_compiled_call_impl" and value is not None:
                    original = None
                elif callable(value) and hasattr(value, "_torchdynamo_orig_callable"):
                    original = value._torchdynamo_orig_callable
                else:
                    continue
                replaced.append((attributes, name, value))
                attributes[name] = original
        yield
    finally:
        for attributes, name, value in replaced:
            attributes[name] = value


@contextmanager
def preserve_rng(*, devices: bool = True, generators: Sequence[_Generator] = ()) -> Iterator[None]:
    """Leave the random states of torch, NumPy and Python as they were found.

    Args:
        devices: the states of all CUDA devices too.
        generators: further generators to leave as they were, see :func:`find_generators`.
    """
    in_use = devices and torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    before, cuda = _states(generators), torch.cuda.get_rng_state_all() if in_use else []
    try:
        yield
    finally:
        _set_states(generators, before)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def seed_rng(seed: int, generators: Sequence[_Generator] = ()) -> None:
    """Seed torch on the CPU, NumPy, Python and the given generators."""
    seed %= 2**32
    for generator in (*_global_generators(), *generators):
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            bits = generator.bit_generator
            bits.state = type(bits)(seed).state
        else:
            generator.seed(seed)


class OwnRandomness:
    """Random states that take the place of the process's own while they are in use, and go on where they stopped.

    Args:
        seed: where they start.
        generators: further generators to replace, see :func:`find_generators`.
    """

    def __init__(self, seed: int, generators: Sequence[_Generator] = ()) -> None:
        self._generators = generators
        with preserve_rng(devices=False, generators=generators):
            seed_rng(seed, generators)
            self._current = _states(generators)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Draw from these states inside, and leave the others as they were."""
        with preserve_rng(devices=False, generators=self._generators):
            _set_states(self._generators, self._current)
            try:
                yield
            finally:
                self._current = _states(self._generators)


def find_generators(*roots: Any) -> list[_Generator]:
    """Random number generators that objects hold in their attributes, such as the one of a dataset's transform.

    Looks through attributes, dicts, short lists and tuples, partials, methods and closures, to a limited depth. A
    generator that sits in a variable of a module is not found.
    """
    found: list[_Generator] = []
    seen: set[int] = set()
    level = list(roots)
    for _ in range(_DEPTH):
        fresh = []
        for value in level:
            if id(value) not in seen and len(seen) < _MOST_OBJECTS:
                seen.add(id(value))
                fresh.append(value)
        found += [value for value in fresh if _is_generator(value)]
        level = [child for value in fresh if not _is_generator(value) for child in _children(value)]
    return found


def _is_generator(value: Any) -> bool:
    # A SystemRandom asks the operating system: it has no state.
    return isinstance(value, _Generator) and not isinstance(value, random.SystemRandom)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, (torch.Tensor, np.ndarray, type, ModuleType)):
        return ()
    if isinstance(value, dict):
        return list(value.values()) if len(value) <= _MOST_ENTRIES else ()
    if isinstance(value, (list, tuple)):
        return value if len(value) <= _MOST_ENTRIES else ()
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        return (*_cell_contents(value), *(value.__defaults__ or ()))
    # `vars`, because reading an attribute by its name may run a property.
    return list(vars(value).values()) if isinstance(getattr(value, "__dict__", None), dict) else ()


def _cell_contents(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # of a variable that is not bound yet
            yield cell.cell_contents


def _global_generators() -> tuple[_Generator, ...]:
    return torch.default_generator, np.random.mtrand._rand, random._inst


def _states(generators: Sequence[_Generator]) -> list[Any]:
    states: list[Any] = []
    for generator in (*_global_generators(), *generators):
        if isinstance(generator, torch.Generator):
            states.append(generator.get_state())
        elif isinstance(generator, np.random.Generator):
            states.append(generator.bit_generator.state)
        elif isinstance(generator, np.random.RandomState):
            states.append(generator.get_state(legacy=False))
        else:
            states.append(generator.getstate())
    return states


def _set_states(generators: Sequence[_Generator], states: Sequence[Any]) -> None:
    for generator, state in zip((*_global_generators(), *generators), states, strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
        else:
            generator.setstate(state)
