"""Running the forward pass of a model without leaving a trace, and reading what goes in and comes out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_unitrole.isolation import preserve_rng

Leaf = TypeVar("Leaf")


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate ``model`` inside this context and find everything as it was after it.

    Inside: every module in evaluation mode, no gradients, no inference mode, compiled code bypassed. After it, also
    when an error leaves it: modes, buffers and random states are restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    # An inference tensor has no version counter, and a recorded forward pass must see in-place changes.
    with eager(model), torch.inference_mode(False), torch.no_grad(), preserve_rng():
        try:
            # Flags are set directly: a module may override `train`, and single modules may have been frozen.
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextlib.contextmanager
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


def leaves(value: Any, kind: type[Leaf]) -> Iterator[Leaf]:
    """Everything of one type in nested tuples, lists, mappings, slices and dataclasses, in order."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item, kind)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item, kind)
    elif isinstance(value, slice):
        yield from leaves((value.start, value.stop, value.step), kind)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), kind)


def map_leaves(value: Any, kind: type[Leaf], change: Callable[[Leaf], Any]) -> Any:
    """The same nested structure with ``change`` applied to everything of one type; parts without it are handed back."""
    if isinstance(value, kind):
        return change(value)
    if next(leaves(value, kind), None) is None:
        return value
    if isinstance(value, tuple):
        items = [map_leaves(item, kind, change) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return tuple(items) if type(value) in (tuple, torch.Size) else type(value)(items)
    if isinstance(value, list):
        return [map_leaves(item, kind, change) for item in value]
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value)
        for key, item in value.items():
            changed[key] = map_leaves(item, kind, change)
        return changed
    if isinstance(value, slice):
        return slice(*(map_leaves(part, kind, change) for part in (value.start, value.stop, value.step)))
    fields = {field.name: map_leaves(getattr(value, field.name), kind, change) for field in dataclasses.fields(value)}
    return dataclasses.replace(value, **fields)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nested structure, in order; see :func:`leaves`."""
    return leaves(value, Tensor)


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nested structure with ``change`` applied to every tensor; see :func:`map_leaves`."""
    return map_leaves(value, Tensor, change)


def batch_size(inputs: Any) -> int | None:
    """Number of rows of the first tensor in ``inputs``; ``None`` when it holds none."""
    first = next((tensor for tensor in tensors_in(inputs) if tensor.dim() > 0), None)
    return None if first is None else first.shape[0]


def take_rows(inputs: Any, rows: Tensor) -> Any:
    """``inputs`` with ``rows`` taken from every tensor that has the batch as its first dimension."""
    size = batch_size(inputs)

    def take(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.dim() > 0 and tensor.shape[0] == size else tensor

    return map_tensors(inputs, take)


def function_name(function: Any) -> str:
    """Name under which a function that a ``TorchFunctionMode`` sees is counted."""
    return str(getattr(function, "__name__", function))
