"""What an analysis of a model found: plain, frozen data with no reference to a model or a trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_unitrole.errors import DataError, refuse_newer
from lightning_unitrole.reports.checks import check_layer, check_tensors
from lightning_unitrole.reports.effects import HELPS, HURTS
from lightning_unitrole.reports.examples import SplitExamples
from lightning_unitrole.reports.layer import SPLITS, LayerReport, SplitReport
from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.reports.storage import BROKEN, read_arrays, write_arrays
from lightning_unitrole.reports.tables import text_table

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 2
ROLE_ORDER = (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER)
EFFECT_ORDER = (HELPS, HURTS)


@dataclass(frozen=True, repr=False)
class UnitReport:
    """One analysis of one model.

    Attributes:
        layers: a :class:`LayerReport` for each layer, in the order in which the model runs them.
        skipped: for each convolution that ``layers="all"`` or ``"auto"`` left out, why.
        class_names: a name for each class.
        criterion: name of the criterion that ranked the units.
        epoch: epoch of the trainer, 0 for a plain model.
        global_step: optimizer steps taken so far, 0 for a plain model.
        role_definition: ``"contribution"`` or ``"turning_point"``.
        examples: by split, the images that units respond to; empty where nobody asked for them. They are for showing
            at once: neither files nor states hold them.
    """

    layers: Mapping[str, LayerReport]
    skipped: Mapping[str, str]
    class_names: tuple[str, ...]
    criterion: str
    epoch: int = 0
    global_step: int = 0
    role_definition: str = "turning_point"
    examples: Mapping[str, SplitExamples] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors of the report."""
        return sum(tensor.nbytes for layer in self.layers.values() for tensor in layer.arrays().values())

    def __repr__(self) -> str:
        units = sum(layer.num_units for layer in self.layers.values())
        return (
            f"UnitReport({len(self.layers)} layers, {units} units, {len(self.class_names)} classes, "
            f"criterion={self.criterion!r}, epoch={self.epoch})"
        )

    def save(self, path: str | Path) -> None:
        """Write the report to ``path`` as a compressed ``.npz`` archive that loads without pickle.

        A file that is there already is replaced only when the new one is whole.
        """
        write_arrays(path, *_flatten(self))

    @classmethod
    def load(cls, path: str | Path) -> UnitReport:
        """Read a report that :meth:`save` wrote.

        Raises:
            DataError: if the file is not such a report, is damaged, or was written by a newer version of the package.
        """
        arrays, meta = read_arrays(path, what="unit report", writer="UnitReport.save")
        return _unflatten(arrays, meta, where=str(path))

    def state_dict(self) -> dict[str, Any]:
        """The report as tensors, numbers, strings, lists and dicts alone, fit for a ``weights_only`` checkpoint."""
        arrays, meta = _flatten(self)
        return {"meta": json.dumps(meta), "arrays": arrays}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> UnitReport:
        """Inverse of :meth:`state_dict`.

        Raises:
            DataError: if it is none, or a newer version of the package wrote it.
        """
        try:
            arrays, meta = dict(state["arrays"]), json.loads(state["meta"])
        except BROKEN as error:
            raise DataError(f"This is not the state of a unit report: {type(error).__name__}: {error}.") from error
        return _unflatten(arrays, meta, where="The state of a unit report")

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
        """The table's cells, head first, one row a layer.

        Entropy and selective rate are means over classes and units on validation images; roles are shares of the
        (class, unit) pairs; "gap" is the ranking gap. With roles by contribution: "differ", the share of the pairs that
        contribute differently on training and on validation images; "agree", the agreement of "helps" between halves of
        the images; and the numbers of units that, over all classes, help or hurt, and of those that are "idle", without
        a measurable effect on any class.
        """
        by_contribution = self.role_definition == "contribution"
        more = ["differ", "agree", "helps", "hurts", "idle"] if by_contribution else []
        rows = [["layer", "units", "map", "entropy", "sel.rate", "both", "train", "val", "neither", *more, "gap"]]
        for layer in self.layers.values():
            shares = layer.role_shares
            row = [layer.name, str(layer.num_units), "x".join(map(str, layer.map_size))]
            row += [_decimal(_finite_mean(layer.val.entropy)), _decimal(_finite_mean(layer.val.selective_rate))]
            row += [_percent(shares.get(role, math.nan)) for role in ROLE_ORDER]
            if by_contribution:
                found = layer.summary_effects
                counts = ["-"] * 2 if found is None else [str(int((found.val == sign).sum())) for sign in EFFECT_ORDER]
                row += [_percent(layer.differing_share), _decimal(layer.agreement), *counts]
                row.append(str(int(layer.without_effect.sum())))
            rows.append([*row, _decimal(layer.ranking_gap, signed=True)])
        return rows

    def table(self) -> str:
        """:meth:`rows` as plain text."""
        return text_table(self.rows())


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.0f} %"


def _decimal(value: float, *, signed: bool = False) -> str:
    return "-" if math.isnan(value) else f"{value:+.3f}" if signed else f"{value:.2f}"


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
                role = int(layer.roles[klass, unit]) if layer.roles.numel() else -1
                row["role"] = UnitRole(role).name if role in list(UnitRole) else None
                yield row


def _flatten(report: UnitReport) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under flat keys, and everything else as what JSON can hold."""
    arrays: dict[str, Tensor] = {}
    for index, layer in enumerate(report.layers.values()):
        arrays |= {f"{index}/{key}": value for key, value in layer.arrays().items()}
    meta = {
        "format": FORMAT_VERSION,
        "layers": [{"name": layer.name, "map_size": list(layer.map_size)} for layer in report.layers.values()],
        "skipped": dict(report.skipped),
        "class_names": list(report.class_names),
        "criterion": report.criterion,
        "epoch": report.epoch,
        "global_step": report.global_step,
        "role_definition": report.role_definition,
    }
    return {key: value.detach().cpu().contiguous() for key, value in arrays.items()}, meta


def _unflatten(arrays: Mapping[str, Tensor], meta: Mapping[str, Any], *, where: str) -> UnitReport:
    try:
        refuse_newer("This unit report has format", int(meta.get("format", 0)), FORMAT_VERSION)
        names = tuple(map(str, meta["class_names"]))
        check_tensors(arrays)
        layers = {}
        for index, described in enumerate(meta["layers"]):
            height, width = map(int, described["map_size"])
            of_layer = {
                key.removeprefix(f"{index}/"): value for key, value in arrays.items() if key.startswith(f"{index}/")
            }
            name = str(described["name"])
            layers[name] = LayerReport.from_arrays(
                of_layer, name=name, map_size=(height, width), num_classes=len(names)
            )
            check_layer(layers[name], len(names))
        return UnitReport(
            layers=layers,
            skipped=dict(meta["skipped"]),
            class_names=names,
            criterion=str(meta["criterion"]),
            epoch=int(meta["epoch"]),
            global_step=int(meta["global_step"]),
            role_definition=str(meta.get("role_definition", "turning_point")),
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except BROKEN as error:
        raise DataError(f"{where} is incomplete or damaged: {type(error).__name__}: {error}.") from error
