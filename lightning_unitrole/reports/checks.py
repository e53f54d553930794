"""What is read of a layer out of a file, held against what it must be, before anything is computed of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.errors import DataError
from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.effects import Effects
from lightning_unitrole.reports.layer import SPLITS, LayerReport, SplitReport

Expected = Iterator[tuple[str, Tensor, tuple[int, ...], str]]
"""Place, tensor, shape and kind: ``"i"`` integers, ``"f"`` floating-point numbers, ``"b"`` truth values."""


def check_tensors(arrays: Mapping[str, Any]) -> None:
    """Refuse what is no tensor of numbers, or claims to be larger than its memory.

    Raises:
        DataError: if there is something else.
    """
    for key, value in arrays.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise DataError(f"This unit report is damaged: its entry {key!r} is no tensor of numbers.")
        if value.untyped_storage().nbytes() < value.numel() * value.itemsize:
            raise DataError(f"This unit report is damaged: its entry {key!r} claims the shape {list(value.shape)}.")


def check_layer(layer: LayerReport, num_classes: int) -> None:
    """Refuse a layer whose tensors do not fit together.

    Args:
        layer: the layer.
        num_classes: number ``C`` of classes.

    Raises:
        DataError: if a tensor has another size or type than it must have, or holds indices of units that do not exist.
    """
    classes, units = layer.val.entropy.shape
    if classes != num_classes:
        raise DataError(f"This unit report is damaged: layer {layer.name!r} has classes of another size.")
    found = list(_expected(layer, classes, units))
    if wrong := [name for name, tensor, shape, _ in found if tuple(tensor.shape) != shape]:
        raise DataError(f"This unit report is damaged: layer {layer.name!r} has {', '.join(wrong)} of another size.")
    if wrong := [name for name, tensor, _, kind in found if _kind(tensor) not in kind]:
        raise DataError(f"This unit report is damaged: layer {layer.name!r} has {', '.join(wrong)} of another type.")
    for name, tensor, _, kind in found:
        if kind == "i" and name.endswith(("order", "ablated")) and tensor.numel():
            largest = units if name.endswith("ablated") else units - 1
            if int(tensor.min()) < 0 or int(tensor.max()) > largest:
                raise DataError(
                    f"This unit report is damaged: layer {layer.name!r} has {name} from {int(tensor.min())} to "
                    f"{int(tensor.max())}; expected 0 to {largest}."
                )


def _expected(layer: LayerReport, classes: int, units: int) -> Expected:
    yield "roles", layer.roles, (classes if len(layer.roles) else 0, units), "i"
    yield "summary", layer.summary, (units if len(layer.summary) else 0,), "i"
    both: list[tuple[str, Effects | None, tuple[int, ...]]] = [
        ("effects", layer.effects, (classes, units)),
        ("summary_effects", layer.summary_effects, (units,)),
    ]
    for name, effects, shape in both:
        for field in fields(Effects) if effects is not None else ():
            yield f"{name}.{field.name}", getattr(effects, field.name), shape, "b" if field.name == "differs" else "i"
    if layer.check is not None:
        for field in fields(layer.check):
            value = torch.as_tensor(getattr(layer.check, field.name))
            draws = (len(value),) if field.name.startswith("random") and value.dim() else ()
            whole = field.name in ("images", "removed", "helpers")
            yield f"check.{field.name}", value, draws, "i" if whole else "f"
    for split in SPLITS:
        for name, tensor, shape, kind in _expected_of_split(getattr(layer, split), classes, units):
            yield f"{split}.{name}", tensor, shape, kind


def _expected_of_split(split: SplitReport, classes: int, units: int) -> Expected:
    yield "images", split.images, (classes,), "i"
    for name in ("entropy", "selective_rate", "ineffectiveness", "score"):
        yield name, getattr(split, name), (classes, units), "f"
    for name in ("non_finite", "order"):
        yield name, getattr(split, name), (classes, units), "i"
    yield "overall_order", split.overall_order, (units,), "i"
    curves: dict[str, AblationCurve | None] = {f"curves.{name}": curve for name, curve in split.curves.items()}
    curves |= {f"class_curves.{index}": curve for index, curve in enumerate(split.class_curves)}
    for name, curve in curves.items():
        if curve is not None:
            points = max(curve.ablated.numel(), 1)
            yield f"{name}.ablated", curve.ablated, (points,), "i"
            for measure in ("loss", "accuracy", "top5"):
                yield f"{name}.{measure}", getattr(curve, measure), (points,), "f"
    for name in ("contributions", "removal"):
        measured: Contributions | None = getattr(split, name)
        if measured is not None:
            yield f"{name}.images", measured.images, (2, classes), "i"
            for sums in ("sums", "squares"):
                yield f"{name}.{sums}", getattr(measured, sums), (2, classes, units), "f"
            for sums in ("margin", "sizes", "errors"):
                yield f"{name}.{sums}", getattr(measured, sums), (2, classes), "f"
            yield f"{name}.steps", measured.steps, (), "i"


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "b"
    return "f" if tensor.is_floating_point() else "i"
