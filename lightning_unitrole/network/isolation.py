"""Running models and reading data without leaving a trace: modes, buffers, compiled code and random states."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import checkpoint as checkpointing
from torch.utils.hooks import RemovableHandle

from lightning_unitrole.errors import DataError, SettingError, TraceError
from lightning_unitrole.network.attention import open_attention
from lightning_unitrole.network.reachable import (
    Generator,
    generator_states,
    is_generator,
    is_uninitialized,
    reachable,
    set_generator_states,
)
from lightning_unitrole.network.snapshot import Snapshot

_guarded: dict[int, Snapshot] = {}
"""For each model that is being evaluated, by its ``id``, how it was before."""

_kept: list[Snapshot] = []
"""How the objects were that are being read from, in the order in which reading began."""


@contextmanager
def undisturbed(model: nn.Module, *, parameters: bool = False) -> Iterator[None]:
    """Evaluate ``model`` inside this context and find everything as it was after it.

    Inside: every module in evaluation mode, no gradients, no inference mode, compiled code bypassed, ranges of
    quantisation as they are, and heads inside of ``nn.MultiheadAttention`` to be seen. After it, also when an error
    leaves it: modes, buffers, attributes of the modules and of what they hold (metrics, memories, hooks with a state,
    generators of their own; see :class:`~lightning_unitrole.network.snapshot.Snapshot`), hooks, and the random states
    of the process are as before. All buffers and tensor attributes are copied once for this; inside of another such
    context of the same model nothing is copied again.

    Not protected: parameters that a forward pass writes in place (see ``parameters``), iterators that cannot be
    rewound, objects written in C, tensors beyond 64 MiB that no module holds as a buffer or attribute (changing them is
    an error, after the fact), and what a forward pass does outside of the process: files, prints, network.

    Args:
        model: the model.
        parameters: copy the parameters too, and refuse a model whose forward pass changes them.

    Raises:
        SettingError: if a lazy module has yet to make its parameters, or, with ``parameters``, a forward pass changed
            some. They are as before then.
        TraceError: if something changed that was too large to be copied.
    """
    refuse_lazy(model)
    outer = _guarded.get(id(model))
    snapshot = Snapshot(model) if outer is None else outer
    readings = len(_kept)
    modes = [(module, module.training) for module in model.modules()]
    weights = [(name, one, one.detach().clone()) for name, one in model.named_parameters()] if parameters else []
    lost: list[str] = []
    # An inference tensor has no version counter, and a recorded forward pass must see in-place changes.
    with (
        eager(model),
        differentiable_checkpoints(),
        still_observers(model),
        open_attention(model.modules()),
        torch.inference_mode(False),
        torch.no_grad(),
        preserve_rng(generators=snapshot.generators),
    ):
        try:
            _guarded[id(model)] = snapshot
            # Flags are set directly: a module may override `train`, and single modules may have been frozen.
            for module, _ in modes:
                module.training = False
            yield
        finally:
            while len(_kept) > readings:  # a fault may leave them begun, to be cleared away who knows when
                _kept.pop().restore()
            if outer is None:
                del _guarded[id(model)]
                lost = snapshot.restore()
            for module, training in modes:
                module.training = training
            changed = [_put_back(weight, before) for _, weight, before in weights]
    if True in changed:
        raise SettingError(
            f"The forward pass of {type(model).__name__} changes its parameter {weights[changed.index(True)][0]!r} in "
            "evaluation mode, so looking at the model would change its training. Change parameters in training mode "
            "only, or in training_step."
        )
    if lost:
        raise TraceError(
            f"The forward pass of {type(model).__name__} changed {lost[0]} that it holds in evaluation mode, which is "
            "too large to be put back. Make it a buffer, or change it in training mode only."
        )


@contextmanager
def untouched(*roots: Any, without: Iterable[Any] = ()) -> Iterator[None]:
    """Read from objects of the user's inside this context and find them, and all that they hold, as before after it.

    Args:
        roots: the objects.
        without: what they hold that is not read in this process.

    Raises:
        DataError: if they hold an iterator that cannot be rewound, or changed something too large to be copied.
    """
    snapshot = Snapshot(*roots, without=without)
    if snapshot.obstacles:
        raise DataError(f"The data hold {snapshot.obstacles[0]}, which cannot be rewound, so they were not read.")
    _kept.append(snapshot)
    lost: list[str] = []
    try:
        yield
    finally:
        for place, one in enumerate(_kept):
            if one is snapshot:
                del _kept[place]
                lost = snapshot.restore()
                break
    if lost:
        raise DataError(f"Reading the data changes {lost[0]} that they hold, which is too large to be put back.")


def _put_back(weight: torch.Tensor, before: torch.Tensor) -> bool:
    """Give a parameter its value back; whether it had another."""
    if torch.equal(weight, before) or bool(((weight == before) | (weight.isnan() & before.isnan())).all()):
        return False
    weight.data.copy_(before)
    return True


def is_lazy(model: nn.Module) -> bool:
    """Whether some parameters have yet to be made by a first forward pass."""
    return any(_unmade(module) for module in model.modules())


def _unmade(module: nn.Module) -> bool:
    return any(map(is_uninitialized, (*module._parameters.values(), *module._buffers.values())))


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model some of whose parameters are made, with random numbers, by its first forward pass.

    Raises:
        SettingError: if it has some.
    """
    for name, module in model.named_modules():
        if _unmade(module):
            raise SettingError(
                f"Module {name!r} is a {type(module).__name__} whose parameters are made by its first forward pass, "
                "and that must not be one of the analysis: its random numbers would be other ones. Run a batch through "
                "the model first, or let the trainer do so (num_sanity_val_steps=1)."
            )


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
def differentiable_checkpoints() -> Iterator[None]:
    """Let activation checkpoints of the reentrant kind be of the other kind inside this context.

    They have gradients only where ``backward`` asks for those of parameters, and hide what is inside of them.
    """
    kind = checkpointing.CheckpointFunction
    before = vars(kind).get("apply")
    try:
        kind.apply = staticmethod(_checkpoint)
        yield
    finally:
        if before is None:
            del kind.apply  # which it inherits
        else:
            kind.apply = before


def _checkpoint(function: Any, preserve: bool, *args: Any) -> Any:
    return checkpointing.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)


@contextmanager
def still_observers(model: nn.Module) -> Iterator[None]:
    """Let the ranges that quantisation works with stay as they are inside this context.

    Observers go on observing in evaluation mode, so that the network would be another one after each pass. Those that
    have seen nothing so far have no range that could stay.
    """
    fakes = quantizers(model).values()
    fresh = [module for module in fakes if not _has_observed(module)]
    switches = [_switch(module) for module in fakes if module not in fresh]
    before = [switch.clone() for switch in switches]
    needed = {module for parent in fresh for module in parent.modules()}
    observers = [module for module in model.modules() if _is_observer(module) and module not in needed]
    try:
        for switch in switches:
            switch.zero_()
        for observer in observers:
            observer.forward = _unchanged
        yield
    finally:
        for observer in observers:
            vars(observer).pop("forward", None)
        for switch, value in zip(switches, before, strict=True):
            switch.copy_(value)


def quantizers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that round numbers as a quantised network will, by name, as for quantisation-aware training."""
    return {name: module for name, module in model.named_modules() if isinstance(_switch(module), torch.Tensor)}


def _switch(module: nn.Module) -> Any:
    return getattr(module, "observer_enabled", None)


def _has_observed(quantizer: nn.Module) -> bool:
    lowest = getattr(getattr(quantizer, "activation_post_process", None), "min_val", None)
    return not isinstance(lowest, torch.Tensor) or (lowest.numel() > 0 and bool(lowest.isfinite().all()))


def _is_observer(module: nn.Module) -> bool:
    kinds = type(module).__mro__
    return any(kind.__name__ == "ObserverBase" for kind in kinds) and "forward" not in vars(module)


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@contextmanager
def preserve_rng(*, devices: bool = True, generators: Sequence[Generator] = ()) -> Iterator[None]:
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


def seed_rng(seed: int, generators: Sequence[Generator] = ()) -> None:
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

    def __init__(self, seed: int, generators: Sequence[Generator] = ()) -> None:
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


def find_generators(*roots: Any) -> list[Generator]:
    """Random number generators that can be reached from objects, such as the one of a dataset's transform.

    See :func:`~lightning_unitrole.network.reachable.reachable`.
    """
    return [value for value in reachable(*roots) if is_generator(value)]


def _global_generators() -> tuple[Generator, ...]:
    return torch.default_generator, np.random.mtrand._rand, random._inst


def _states(generators: Sequence[Generator]) -> list[Any]:
    return generator_states([*_global_generators(), *generators])


def _set_states(generators: Sequence[Generator], states: Sequence[Any]) -> None:
    set_generator_states([*_global_generators(), *generators], states)


@contextmanager
def with_gradients(parameters: Iterable[nn.Parameter], wanted: bool) -> Iterator[None]:
    """Whether parameters take part in gradients, inside this context."""
    others = [parameter for parameter in parameters if parameter.requires_grad != wanted]
    for parameter in others:
        parameter.requires_grad_(wanted)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(not wanted)


@contextmanager
def hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are on modules inside this context alone."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
