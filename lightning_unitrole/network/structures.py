"""Nested structures: what goes into a model and comes out of it, in tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Leaf = TypeVar("Leaf")


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


def num_bytes(value: Any) -> int:
    """Memory of all tensors in a nested structure."""
    return sum(tensor.nbytes for tensor in tensors_in(value))


def batch_size(inputs: Any) -> int | None:
    """Number of rows of the first tensor in ``inputs``; ``None`` when it holds none."""
    first = next((tensor for tensor in tensors_in(inputs) if tensor.dim() > 0), None)
    return None if first is None else first.shape[0]


def take_rows(value: Any, rows: Tensor, size: int | None = None) -> Any:
    """Some images of a batch: the entries at ``rows`` of everything that has one entry for each image.

    Args:
        value: tensors, arrays and lists, nested. Lists of labels or file names have entries for images; a list of
            tensors is one of fields, each of which has its own entries. Everything else stays as it is.
        rows: ``[N]`` int64.
        size: number of images in the batch; by default that of the first tensor.
    """
    size = batch_size(value) if size is None else size
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.shape[:1] == (size,) else value
    if isinstance(value, np.ndarray):
        return value[rows.cpu().numpy()] if value.shape[:1] == (size,) else value
    if isinstance(value, Mapping):
        taken: Any = copy.copy(value)
        for key, item in value.items():
            taken[key] = take_rows(item, rows, size)
        return taken
    if not isinstance(value, (list, tuple)):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return dataclasses.replace(value, **{name: take_rows(item, rows, size) for name, item in fields.items()})
        return value
    nested = (Tensor, np.ndarray, list, tuple, Mapping)
    if len(value) == size and not any(isinstance(item, nested) for item in value):
        picked = [value[row] for row in rows.tolist()]
        return picked if isinstance(value, list) else tuple(picked)
    items = [take_rows(item, rows, size) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
