"""What an analysis of a model found: plain, frozen data with no reference to a model or a trainer."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_unitrole.errors import DataError, refuse_newer
from lightning_unitrole.reports.checks import check_layer, check_tensors
from lightning_unitrole.reports.effects import HELPS, HURTS
from lightning_unitrole.reports.examples import SplitExamples
from lightning_unitrole.reports.figures import draw_role_shares, subplots
from lightning_unitrole.reports.layer import SPLITS, LayerReport, SplitReport
from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.reports.storage import BROKEN, read_arrays, write_arrays
from lightning_unitrole.reports.tables import html_table, text_table
from lightning_unitrole.reports.vocabulary import NO_ROLE

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

        Where contributions were measured their means and standard errors are columns too, in nats.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("UnitReport.to_pandas needs pandas: pip install pandas") from error
        frames = [pd.DataFrame(_columns(layer, self.class_names)) for layer in self.layers.values()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """The shares of the roles, one bar a layer.

        Args:
            ax: Matplotlib axes to draw in; a new figure by default.

        Returns:
            The figure and the axes.

        Raises:
            ImportError: if Matplotlib is not installed.
        """
        figure, axes = subplots(ax, height=1.6 + 0.35 * len(self.layers))
        draw_role_shares(axes, {name: layer.role_shares for name, layer in self.layers.items()})
        return figure, axes

    def removable(self, layer: str) -> Tensor:
        """``[K]`` int64, units of a layer that can go at no cost, as measured; empty where there are none.

        They were switched off all at once, on images that the roles had not seen, and in one layer at a time: of
        several layers together the costs may add up.

        Raises:
            DataError: if there is no such layer.
        """
        if layer not in self.layers:
            raise DataError(f"There is no layer {layer!r} in this report; there are: {', '.join(self.layers)}.")
        return self.layers[layer].removable

    def suggest_widths(self) -> dict[str, int]:
        """How wide each layer may be built without what is removable in it, at least 1; see :meth:`removable`.

        Layers that share their channels, as by a residual sum, have to be as wide as the widest of them.
        """
        return {name: max(1, layer.num_units - len(layer.removable)) for name, layer in self.layers.items()}

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return f"<p>{html.escape(repr(self))}</p>{html_table(self.rows())}"

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


def _columns(layer: LayerReport, class_names: Sequence[str]) -> dict[str, Any]:
    """Columns of a table with a row for each class and unit of a layer, by name, ``[C * U]`` each."""
    classes, units = layer.val.entropy.shape
    columns: dict[str, Any] = {
        "layer": [layer.name] * (classes * units),
        "class": np.repeat(np.array(class_names[:classes], dtype=object), units),
        "unit": np.tile(np.arange(units), classes),
    }
    for split in SPLITS:
        measured: SplitReport = getattr(layer, split)
        for measure in ("entropy", "selective_rate", "ineffectiveness", "score"):
            columns[f"{measure}_{split}"] = getattr(measured, measure).numpy().ravel()
        if measured.contributions is not None:
            found = measured.contributions.by_class()
            columns[f"contribution_{split}"] = found.mean.numpy().ravel()
            columns[f"error_{split}"] = found.standard_error.numpy().ravel()
    names = np.full(256, None, dtype=object)
    names[[int(role) for role in UnitRole]] = [role.name for role in UnitRole]
    roles = layer.roles.numpy().ravel() if layer.roles.numel() else np.full(classes * units, NO_ROLE)
    columns["role"] = names[roles]
    return columns


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
