"""Seeing which loss a program computes, from which outputs and which targets, whatever is around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_unitrole.network.structures import tensors_in
from lightning_unitrole.network.tracing import function_name

Path = tuple[Any, ...]
"""Keys, indices and attribute names that lead to an entry of a batch."""

CLASSIFICATION = ("cross_entropy", "nll_loss", "kl_div", "multi_margin_loss")
BINARY = ("binary_cross_entropy_with_logits", "binary_cross_entropy", "soft_margin_loss", "multilabel_soft_margin_loss")
REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "gaussian_nll_loss")
COMPARISONS = ("cosine_embedding_loss", "hinge_embedding_loss", "margin_ranking_loss", "triplet_margin_loss")
"""Losses without logits: of pairs and triples of outputs."""
LOSSES = frozenset({*CLASSIFICATION, *BINARY, *REGRESSION, *COMPARISONS})

_PREFERRED = (CLASSIFICATION, BINARY, COMPARISONS, REGRESSION)


@dataclass(frozen=True)
class LossCall:
    """One loss that was computed.

    Attributes:
        kind: torch's name of it.
        place: which of the calls of this kind.
        args: what it was called with, in order.
        kwargs: what it was called with by name.
        sources: where in the batch its target comes from.
    """

    kind: str
    place: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sources: frozenset[Path]

    @property
    def outputs(self) -> Tensor:
        """What it was computed from, as logits where they are probabilities."""
        found: Tensor = self.args[0] if self.args else self.kwargs["input"]
        return torch.logit(found, eps=1e-7) if self.kind == "binary_cross_entropy" else found

    @property
    def target(self) -> Any:
        """What the outputs are compared with."""
        return target_of(self.kind, self.args, self.kwargs)


def target_of(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a loss holds its outputs against; None for a triplet loss, which compares outputs alone."""
    if kind == "triplet_margin_loss":
        return None
    return kwargs["target"] if "target" in kwargs else args[-1 if kind in COMPARISONS else 1]


class LossReachedError(Exception):
    """Breaks a step off at its loss, which it holds."""

    def __init__(self, call: LossCall) -> None:
        super().__init__("The step reached its loss.")
        self.call = call


class LossWatch(TorchFunctionMode):
    """Notes every loss that is computed inside this context.

    Args:
        batch: what the losses' targets are looked for in.
        until: kind and place of a loss to break off at, before it is computed.

    Attributes:
        calls: the losses, in order.
    """

    def __init__(self, batch: Any, *, until: tuple[str, int] | None = None) -> None:
        super().__init__()
        self.calls: list[LossCall] = []
        self._until = until
        self._sources: MutableMapping[Tensor, frozenset[Path]] = WeakTensorKeyDictionary()
        if until is None:
            for path, entry in entries(batch):
                if isinstance(entry, Tensor):
                    self._sources[entry] = frozenset([path])

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, function_name(function)
        if name in LOSSES:
            place = sum(call.kind == name for call in self.calls)
            call = LossCall(name, place, args, kwargs, self._of(target_of(name, args, kwargs)))
            self.calls.append(call)
            if self._until == (name, place):
                raise LossReachedError(call)
        result = function(*args, **kwargs)
        if self._until is None and (sources := self._of((args, kwargs))):
            for tensor in tensors_in(result):
                self._sources[tensor] = sources
        return result

    def _of(self, values: Any) -> frozenset[Path]:
        return frozenset().union(*(self._sources.get(tensor, ()) for tensor in tensors_in(values)))

    @property
    def preferred(self) -> LossCall | None:
        """The loss that says most of a network: of classes before one of pairs, and that before a distance."""
        for kinds in _PREFERRED:
            for call in self.calls:
                if call.kind in kinds:
                    return call
        return None


def entries(batch: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Tensors, and lists of numbers, in a batch, with where they are."""
    if isinstance(batch, Tensor) or _are_numbers(batch):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key in batch:
            yield from entries(batch[key], (*path, key))
    elif isinstance(batch, (tuple, list)):
        for index, entry in enumerate(batch):
            yield from entries(entry, (*path, index))
    elif is_dataclass(batch):
        for field in fields(batch):
            yield from entries(getattr(batch, field.name), (*path, field.name))


def entry_at(batch: Any, path: Path) -> Any:
    """The entry of a batch that a path leads to.

    Example:
        >>> entry_at({"image": 1, "labels": [2, 3]}, ("labels", 1))
        3
    """
    for step in path:
        batch = getattr(batch, step) if is_dataclass(batch) and isinstance(step, str) else batch[step]
    return batch


def _are_numbers(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, (bool, int, float)) for one in value)
    )
