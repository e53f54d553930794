"""How one object was, noted so that it can be put back: each class here is a note, and calling it undoes what changed.

While a note is kept, iterators that the object holds and that can be copied are read through copies.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from types import CellType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_unitrole.network.reachable import FRAMEWORK_ATTRIBUTES, LARGE_COLLECTION, contents, slots_of

_ITERABLES: tuple[Any, ...] = (
    *([], (), range(1), range(2**70, 2**70 + 1), "a", "ä", b"", bytearray(), set(), {}),
    *({}.values(), {}.items()),
)
REWINDABLE = (*(type(iter(one)) for one in _ITERABLES), type(reversed([])))


class Attributes:
    """The attributes of one object; iterators in them that can be copied are read through copies meanwhile."""

    def __init__(self, attributes: dict[str, Any], *, framework: bool = False) -> None:
        self.attributes, self.left = attributes, FRAMEWORK_ATTRIBUTES - {"training"} if framework else frozenset()
        self.before = {name: value for name, value in attributes.items() if name not in self.left}
        for name, value in self.before.items():
            if type(value) in REWINDABLE:
                attributes[name] = copy.copy(value)

    def __call__(self) -> None:
        """Put attributes back that differ, and take new ones away."""
        for name in [*self.attributes]:
            if name not in self.before and name not in self.left:
                del self.attributes[name]
        for name, value in self.before.items():
            if self.attributes.get(name, self) is not value:
                self.attributes[name] = value


class Slots:
    """The values of one object's slots."""

    def __init__(self, owner: Any, slots: Mapping[str, Any]) -> None:
        self.owner, self.before = owner, dict(slots)
        for name, value in slots.items():
            if type(value) in REWINDABLE:
                object.__setattr__(owner, name, copy.copy(value))

    def __call__(self) -> None:
        """Put slots back that differ, and clear new ones."""
        now = dict(slots_of(self.owner))
        for name in now.keys() - self.before.keys():
            object.__delattr__(self.owner, name)
        for name, value in self.before.items():
            if now.get(name, self) is not value:
                object.__setattr__(self.owner, name, value)


class Parts:
    """The parameters, buffers, children and hooks of one module; most of these dicts are empty."""

    def __init__(self, parts: list[dict[Any, Any]]) -> None:
        self.parts = [(part, part.copy() if part else None) for part in parts]

    def __call__(self) -> None:
        """Put the entries of each part back."""
        for part, before in self.parts:
            if before is None:
                if part:
                    part.clear()
            elif len(part) != len(before) or not all(map(operator.is_, part.values(), before.values())):
                part.clear()
                part.update(before)


class Entries:
    """The entries of one collection."""

    def __init__(self, collection: Any) -> None:
        self.collection = collection
        self.before = collection.items() if isinstance(collection, dict) else collection
        self.before = list(self.before)
        if isinstance(collection, list):
            for index, value in enumerate(self.before if len(self.before) <= LARGE_COLLECTION else ()):
                if type(value) in REWINDABLE:
                    collection[index] = copy.copy(value)
        elif isinstance(collection, dict) and len(self.before) <= LARGE_COLLECTION:
            for name, value in self.before:
                if type(value) in REWINDABLE:
                    collection[name] = copy.copy(value)

    def __call__(self) -> None:
        """Put the entries back, in their order."""
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


class TensorValue:
    """The values of one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        with torch.no_grad():
            self.tensor, self.before = tensor, tensor.detach().clone()

    def __call__(self) -> None:
        """Copy the values back, in place where the shape allows."""
        tensor, before = self.tensor, self.before
        if tensor.shape != before.shape:
            tensor.data = before
        elif not torch.equal(tensor.detach(), before):
            with torch.inference_mode(tensor.is_inference()):
                tensor.data.copy_(before)


class ArrayValue:
    """The values of one array."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array, self.before = array, array.copy()

    def __call__(self) -> None:
        """Copy the values back, in place."""
        if not np.array_equal(self.array, self.before):
            self.array[...] = self.before


class Cell:
    """One variable in a closure."""

    def __init__(self, cell: CellType) -> None:
        self.cell, self.before = cell, [*contents(cell)]
        for value in self.before:
            if type(value) in REWINDABLE:
                cell.cell_contents = copy.copy(value)

    def __call__(self) -> None:
        """Bind the variable again."""
        for value in self.before:
            if next(contents(self.cell), self) is not value:
                self.cell.cell_contents = value


class Global:
    """One global variable."""

    def __init__(self, variables: dict[str, Any], name: str) -> None:
        self.variables, self.name, self.before = variables, name, variables.get(name, self)

    def __call__(self) -> None:
        """Bind the variable again, or take it away."""
        if self.before is self:
            self.variables.pop(self.name, None)
        else:
            self.variables[self.name] = self.before


class ClassAttributes:
    """The attributes of one class that are no methods."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.before = self._now()
        for name, value in self.before.items():
            if type(value) in REWINDABLE:
                type.__setattr__(kind, name, copy.copy(value))

    def _now(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self.kind).items()
            if not name.startswith(("__", "_abc_")) and not callable(value)
        }

    def __call__(self) -> None:
        """Put attributes back that differ, and take new ones away."""
        now = self._now()
        for name in now.keys() - self.before.keys():
            type.__delattr__(self.kind, name)
        for name, value in self.before.items():
            if now.get(name, self) is not value:
                type.__setattr__(self.kind, name, value)
