"""What an analysis finds: plain, frozen data with no reference to a model or a trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from lightning_unitrole.errors import DataError, refuse_newer

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1
SPLITS = ("train", "val")
_ROUNDING = 1e-6
NO_ROLE = 255
"""Stands in ``roles`` for a class of which one split has no image."""


class UnitRole(IntEnum):
    """What a unit is good for: bit 0 says effective on training images, bit 1 on validation images.

    Source: the four-way role test of Zhao, Zhang & Hu, "Role Taxonomy of Units in DNNs", arXiv:2011.00789.
    """

    NEITHER = 0
    TRAIN_ONLY = 1
    VAL_ONLY = 2
    BOTH = 3


@dataclass(frozen=True)
class AblationCurve:
    """Performance after switching off more and more units of one layer.

    Attributes:
        ablated: ``[P]`` int64, numbers of units that are off, strictly increasing, from 0 to all of them.
        loss: ``[P]`` float64, mean loss over the images.
        accuracy: ``[P]`` float64 in [0, 1]; with a ``score_fn`` its mean score.
        top5: ``[P]`` float64 in [0, 1]; NaN where a top-5 accuracy has no meaning.
    """

    ablated: Tensor
    loss: Tensor
    accuracy: Tensor
    top5: Tensor

    @property
    def turning_point(self) -> int:
        """Largest number of ablated units at which the loss is at its minimum (arXiv:2103.09716, section 4).

        Losses within one part in a million of the minimum count as equal to it: else rounding, which differs with the
        size of a batch, would decide about units that have no effect.
        """
        return _last_minimum(self.ablated, self.loss)

    @property
    def turning_point_by_accuracy(self) -> int:
        """Largest number of ablated units at which the accuracy is at its maximum."""
        return _last_minimum(self.ablated, -self.accuracy)

    @property
    def sharpest_drop(self) -> int:
        """Number of ablated units right after which accuracy falls most per unit (the "phase transition").

        The first such number; NaN counts as no fall.
        """
        if len(self.ablated) < 2:
            return int(self.ablated[0])
        slope = (self.accuracy.diff() / self.ablated.diff()).nan_to_num(nan=float("inf"))
        return int(self.ablated[int(slope.argmin())])

    @property
    def area(self) -> float:
        """Area under the accuracy curve over the *share* of ablated units, in [0, 1]."""
        span = float(self.ablated[-1] - self.ablated[0])
        if span == 0:
            return float(self.accuracy[0])
        return float(torch.trapezoid(self.accuracy, self.ablated.double())) / span


def _last_minimum(ablated: Tensor, values: Tensor) -> int:
    """Largest entry of ``ablated`` at which ``values`` is smallest up to rounding; NaN counts as largest.

    Where all are NaN nothing speaks against any unit, and it is the smallest entry.
    """
    if bool(values.isnan().all()):
        return int(ablated.min())
    values = values.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf"))
    smallest = values.min()
    return int(ablated[values <= smallest + _ROUNDING * smallest.abs()].max())


@dataclass(frozen=True)
class SplitReport:
    """What one split, training or validation, says of the units of one layer (C classes, U units).

    Attributes:
        images: ``[C]`` int64, images of each class that were used.
        entropy: ``[C, U]`` float64, feature entropy in nats; NaN where no map of the unit has a birth point.
        selective_rate: ``[C, U]`` float64 in [0, 1], share of images without a birth point.
        ineffectiveness: ``[C, U]`` float64, entropy / (1 - selective rate); NaN where the entropy is.
        non_finite: ``[C, U]`` int64, maps with NaN or infinity, which are left out of the entropy.
        score: ``[C, U]`` float64, what the criterion says of the unit: higher is more effective.
        order: ``[C, U]`` int64, unit indices from the most to the least effective.
        overall_order: ``[U]`` int64, the same for all classes together (mean rank over the classes).
        curves: ablation over the images of all classes, units in ``overall_order``: ``"least_first"``,
            ``"most_first"`` and ``"random"``. Empty when no ablation was run.
        class_curves: one least-first curve a class, on the images of that class, units in that class's ``order``.
    """

    images: Tensor
    entropy: Tensor
    selective_rate: Tensor
    ineffectiveness: Tensor
    non_finite: Tensor
    score: Tensor
    order: Tensor
    overall_order: Tensor
    curves: Mapping[str, AblationCurve] = field(default_factory=dict)
    class_curves: tuple[AblationCurve | None, ...] = ()

    @property
    def ranking_gap(self) -> float:
        """Area between the least-first and the most-first accuracy curve; NaN when no ablation was run.

        Positive: the ranking knows something. Negative: it misleads here.
        """
        return self._gap_to("most_first")

    @property
    def random_gap(self) -> float:
        """Area between the random and the most-first accuracy curve: what an uninformed least-first order would get."""
        if "random" not in self.curves or "most_first" not in self.curves:
            return float("nan")
        return self.curves["random"].area - self.curves["most_first"].area

    def _gap_to(self, control: str) -> float:
        if "least_first" not in self.curves or control not in self.curves:
            return float("nan")
        return self.curves["least_first"].area - self.curves[control].area


@dataclass(frozen=True)
class LayerReport:
    """What an analysis says of one layer (C classes, U units).

    Attributes:
        name: name of the convolution in the model.
        map_size: height and width of its maps.
        train: measured on training images.
        val: measured on validation images.
        roles: ``[C, U]`` uint8, a :class:`UnitRole` for each class and unit, ``NO_ROLE`` for a class without images on
            both sides; empty ``[0, U]`` without ablation.
        summary: ``[U]`` uint8, the role a unit has in most classes; ties go to the larger :class:`UnitRole`, that is
            to the more useful one. Empty ``[0]`` without ablation.
    """

    name: str
    map_size: tuple[int, int]
    train: SplitReport
    val: SplitReport
    roles: Tensor
    summary: Tensor

    @property
    def num_units(self) -> int:
        """Number of units of the layer."""
        return self.val.entropy.shape[1]

    @property
    def ranking_gap(self) -> float:
        """Ranking gap on validation images, see :attr:`SplitReport.ranking_gap`."""
        return self.val.ranking_gap

    @property
    def role_shares(self) -> dict[UnitRole, float]:
        """Share of each role among the (class, unit) pairs that have one; empty without ablation."""
        known = self.roles[self.roles != NO_ROLE]
        if known.numel() == 0:
            return {}
        return {role: float((known == role).double().mean()) for role in UnitRole}


@dataclass(frozen=True)
class UnitReport:
    """One analysis of one model.

    Attributes:
        layers: a :class:`LayerReport` for each layer, in the order in which the model runs them.
        skipped: for each convolution that ``layers="all"`` or ``"auto"`` left out, why.
        class_names: a name for each class.
        criterion: name of the criterion that ranked the units.
        epoch: epoch of the trainer, 0 for a plain model.
        global_step: optimizer steps taken so far, 0 for a plain model.
    """

    layers: Mapping[str, LayerReport]
    skipped: Mapping[str, str]
    class_names: tuple[str, ...]
    criterion: str
    epoch: int = 0
    global_step: int = 0

    def save(self, path: str | Path) -> None:
        """Write the report to ``path`` as a compressed ``.npz`` archive that loads without pickle."""
        arrays, meta = _flatten(self)
        packed: dict[str, Any] = {key: value.numpy() for key, value in arrays.items()}
        with Path(path).open("wb") as file:
            np.savez_compressed(file, meta=np.array(json.dumps(meta)), **packed)

    @classmethod
    def load(cls, path: str | Path) -> UnitReport:
        """Read a report that :meth:`save` wrote.

        Raises:
            DataError: if the file is not such a report, or was written by a newer version of the package.
        """
        expected = "expected a file that UnitReport.save wrote."
        with Path(path).open("rb") as file:
            try:
                stored = np.load(file, allow_pickle=False)
            except (ValueError, EOFError, BadZipFile) as error:
                raise DataError(f"{path} is not a unit report: it is no .npz archive; {expected}") from error
            if isinstance(stored, np.ndarray) or "meta" not in stored.files:
                raise DataError(f"{path} is not a unit report: it has no 'meta' entry; {expected}")
            meta = json.loads(str(stored["meta"]))
            arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "meta"}
        return _unflatten(arrays, meta)

    def state_dict(self) -> dict[str, Any]:
        """The report as tensors, numbers, strings, lists and dicts alone, fit for a ``weights_only`` checkpoint."""
        arrays, meta = _flatten(self)
        return {"meta": json.dumps(meta), "arrays": arrays}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> UnitReport:
        """Inverse of :meth:`state_dict`.

        Raises:
            DataError: if a newer version of the package wrote it.
        """
        return _unflatten(dict(state["arrays"]), json.loads(state["meta"]))

    def to_pandas(self) -> pd.DataFrame:
        """One row for each layer, class and unit, with the measures of both splits and the role.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("UnitReport.to_pandas needs pandas: pip install pandas") from error
        return pd.DataFrame(list(_rows(self)))

    def rows(self) -> list[list[str]]:
        """The table's cells, head first, one row a layer: entropy, selective rate, role shares, ranking gap."""
        rows = [["layer", "units", "map", "entropy", "sel.rate", "both", "train", "val", "neither", "gap"]]
        for layer in self.layers.values():
            shares = layer.role_shares
            roles = [
                f"{100 * shares[role]:.0f} %" if shares else "-"
                for role in (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER)
            ]
            rows.append(
                [
                    layer.name,
                    str(layer.num_units),
                    "x".join(map(str, layer.map_size)),
                    f"{_finite_mean(layer.val.entropy):.2f}",
                    f"{_finite_mean(layer.val.selective_rate):.2f}",
                    *roles,
                    "-" if math.isnan(layer.ranking_gap) else f"{layer.ranking_gap:+.3f}",
                ]
            )
        return rows

    def table(self) -> str:
        """:meth:`rows` as plain text."""
        return text_table(self.rows())


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right; a line under the first row.

    Example:
        >>> print(text_table([["layer", "units"], ["conv1", "8"]]))
        layer  units
        ------------
        conv1      8
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _finite_mean(values: Tensor) -> float:
    return float(values[values.isfinite()].mean()) if bool(values.isfinite().any()) else float("nan")


def _rows(report: UnitReport) -> Iterator[dict[str, Any]]:
    for layer in report.layers.values():
        classes, units = layer.val.entropy.shape
        for klass in range(classes):
            for unit in range(units):
                row: dict[str, Any] = {"layer": layer.name, "class": report.class_names[klass], "unit": unit}
                for split in SPLITS:
                    measured: SplitReport = getattr(layer, split)
                    for measure in ("entropy", "selective_rate", "ineffectiveness", "score"):
                        row[f"{measure}_{split}"] = float(getattr(measured, measure)[klass, unit])
                role = int(layer.roles[klass, unit]) if layer.roles.numel() else NO_ROLE
                row["role"] = None if role == NO_ROLE else UnitRole(role).name
                yield row


@dataclass(frozen=True)
class CriterionCurves:
    """What the ranking of one criterion does to one layer, on the images of all classes.

    Attributes:
        least_first: ablation curve, least effective units first.
        most_first: ablation curve, most effective units first.
    """

    least_first: AblationCurve
    most_first: AblationCurve

    @property
    def ranking_gap(self) -> float:
        """Area between the two accuracy curves; positive: the ranking knows something."""
        return self.least_first.area - self.most_first.area


@dataclass(frozen=True)
class CriteriaComparison:
    """The curves of several criteria.

    Attributes:
        layers: by layer and by name of the criterion.
    """

    layers: Mapping[str, Mapping[str, CriterionCurves]]

    def only(self, layers: Sequence[str]) -> CriteriaComparison:
        """The same for some of the layers."""
        return CriteriaComparison({layer: self.layers[layer] for layer in layers})

    def best(self) -> str | None:
        """Name of the criterion with the largest mean ranking gap over the layers; None if the random control wins."""
        names = next(iter(self.layers.values())).keys()
        gap = {name: sum(curves[name].ranking_gap for curves in self.layers.values()) for name in names}
        winner = max(gap, key=lambda name: gap[name])
        return None if winner == "random" else winner

    def rows(self, layer: str) -> list[list[str]]:
        """A layer's table of areas under the accuracy curves, head first, the largest ranking gap on top."""
        ranked = sorted(self.layers[layer].items(), key=lambda item: -item[1].ranking_gap)
        return [
            ["criterion", "area least first", "area most first", "ranking gap"],
            *(
                [name, f"{found.least_first.area:.3f}", f"{found.most_first.area:.3f}", f"{found.ranking_gap:+.3f}"]
                for name, found in ranked
            ),
        ]

    def table(self) -> str:
        """The tables of all layers as plain text."""
        return "\n\n".join(f"{layer}\n{text_table(self.rows(layer))}" for layer in self.layers)


_SPLIT_TENSORS = (
    "images",
    "entropy",
    "selective_rate",
    "ineffectiveness",
    "non_finite",
    "score",
    "order",
    "overall_order",
)
_CURVE_TENSORS = ("ablated", "loss", "accuracy", "top5")


def _flatten(report: UnitReport) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under flat keys, and everything else as what JSON can hold."""
    arrays: dict[str, Tensor] = {}
    layers = []
    for index, layer in enumerate(report.layers.values()):
        arrays[f"{index}/roles"] = layer.roles
        arrays[f"{index}/summary"] = layer.summary
        curves: dict[str, list[str]] = {}
        for split in SPLITS:
            measured: SplitReport = getattr(layer, split)
            prefix = f"{index}/{split}"
            arrays.update({f"{prefix}/{key}": getattr(measured, key) for key in _SPLIT_TENSORS})
            present = {f"curves/{key}": curve for key, curve in measured.curves.items()}
            present |= {
                f"class_curves/{klass}": curve for klass, curve in enumerate(measured.class_curves) if curve is not None
            }
            for name, curve in present.items():
                arrays.update({f"{prefix}/{name}/{key}": getattr(curve, key) for key in _CURVE_TENSORS})
            curves[split] = list(present)
        layers.append({"name": layer.name, "map_size": list(layer.map_size), "curves": curves})
    meta = {
        "format": FORMAT_VERSION,
        "layers": layers,
        "skipped": dict(report.skipped),
        "class_names": list(report.class_names),
        "criterion": report.criterion,
        "epoch": report.epoch,
        "global_step": report.global_step,
    }
    return {key: value.detach().cpu().contiguous() for key, value in arrays.items()}, meta


def _unflatten(arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> UnitReport:
    refuse_newer("This unit report has format", meta.get("format", 0), FORMAT_VERSION)
    layers = {}
    for index, described in enumerate(meta["layers"]):
        splits = {
            split: _read_split(arrays, f"{index}/{split}", described["curves"][split], len(meta["class_names"]))
            for split in SPLITS
        }
        layers[described["name"]] = LayerReport(
            name=described["name"],
            map_size=(described["map_size"][0], described["map_size"][1]),
            roles=arrays[f"{index}/roles"],
            summary=arrays[f"{index}/summary"],
            **splits,
        )
    return UnitReport(
        layers=layers,
        skipped=dict(meta["skipped"]),
        class_names=tuple(meta["class_names"]),
        criterion=meta["criterion"],
        epoch=meta["epoch"],
        global_step=meta["global_step"],
    )


def _read_split(arrays: Mapping[str, Tensor], prefix: str, present: list[str], num_classes: int) -> SplitReport:
    def curve(name: str) -> AblationCurve:
        return AblationCurve(*(arrays[f"{prefix}/{name}/{key}"] for key in _CURVE_TENSORS))

    overall = {name.removeprefix("curves/"): curve(name) for name in present if name.startswith("curves/")}
    by_class = {f"class_curves/{klass}" for klass in range(num_classes)} & set(present)
    return SplitReport(
        **{key: arrays[f"{prefix}/{key}"] for key in _SPLIT_TENSORS},
        curves=overall,
        class_curves=tuple(
            curve(f"class_curves/{klass}") if f"class_curves/{klass}" in by_class else None
            for klass in range(num_classes)
        )
        if by_class
        else (),
    )
