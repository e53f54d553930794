"""From a report to loggers: scalars to every Lightning logger, and figures and charts to TensorBoard.

Keys, with ``<layer>`` the name of a convolution and ``<split>`` ``train`` or ``val``:

=====================================================  =====================================================
``unitrole/<layer>/feature_entropy/<split>``           mean over classes and units, nats
``unitrole/<layer>/selective_rate/<split>``            mean share of images without a birth point, 0 to 1
``unitrole/<layer>/ineffectiveness/<split>``           mean over classes and units, nats
``unitrole/<layer>/ranking_gap/<split>``               area between the ablation curves, -1 to 1
``unitrole/<layer>/role_share/both``                   share of the (class, unit) pairs, 0 to 1
``unitrole/<layer>/role_share/train_only``             the same
``unitrole/<layer>/role_share/val_only``               the same
``unitrole/<layer>/role_share/neither``                the same
``unitrole/<layer>/role_stability``                    share of the pairs with the role of the report before, 0 to 1
=====================================================  =====================================================

Means leave out units without any birth point. A value that does not exist, such as a role share without ablation, is
not logged. TensorBoard gets under the same prefix: histograms ``unitrole/<layer>/feature_entropy`` and
``unitrole/<layer>/ineffectiveness`` (validation), figures ``unitrole/<layer>/ablation`` and ``unitrole/<layer>/roles``
and, where criteria are compared, ``unitrole/<layer>/criteria``, the texts ``unitrole/report`` and
``unitrole/role_transitions``, a layout of the "Custom scalars" dashboard that puts the four role shares of a layer into
one chart, and what the tab "Unit roles" shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from lightning_unitrole.figures import (
    ROLE_LABELS,
    ablation_figure,
    criteria_figure,
    role_map_figure,
    widths_figure,
)
from lightning_unitrole.pruning.history import kept_channels, original_widths
from lightning_unitrole.pruning.removal import Removal
from lightning_unitrole.pruning.report import PruningReport
from lightning_unitrole.results import SPLITS, CriteriaComparison, SplitReport, UnitReport, UnitRole
from lightning_unitrole.roles import role_transitions, stability
from lightning_unitrole.tensorboard_plugin.summary import PluginState, write_report
from lightning_unitrole.tracing import module_of

PREFIX = "unitrole"
Value = TypeVar("Value")
_SHARES = (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER)


def report_scalars(report: UnitReport, *, before: UnitReport | None = None) -> dict[str, float]:
    """The scalars of a report by key; see the head of this module for their meaning and units.

    Args:
        report: the report.
        before: the report before it, to tell how stable the roles are.
    """
    scalars = dict(_scalars(report))
    changes = role_changes(before, report)
    scalars |= {f"{PREFIX}/{name}/role_stability": stability(change) for name, change in changes.items()}
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def _scalars(report: UnitReport) -> Iterator[tuple[str, float]]:
    for name, layer in report.layers.items():
        for split in SPLITS:
            measured: SplitReport = getattr(layer, split)
            for measure in ("feature_entropy", "selective_rate", "ineffectiveness"):
                values = finite_values(getattr(measured, measure.removeprefix("feature_")))
                if len(values):
                    yield f"{PREFIX}/{name}/{measure}/{split}", float(values.mean())
            yield f"{PREFIX}/{name}/ranking_gap/{split}", measured.ranking_gap
        for role, share in layer.role_shares.items():
            yield f"{PREFIX}/{name}/role_share/{role.name.lower()}", share


def scalar_layout(layers: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Layout of TensorBoard's "Custom scalars" dashboard: one chart a layer with its four role shares."""
    return {
        "Unit roles": {
            layer: ["Multiline", [f"{PREFIX}/{layer}/role_share/{role.name.lower()}" for role in _SHARES]]
            for layer in layers
        }
    }


class ReportLogger:
    """Sends the reports of one run to Lightning loggers. Use it on rank zero.

    Args:
        figures: draw figures for TensorBoard.
    """

    def __init__(self, *, figures: bool = True) -> None:
        self.figures = figures
        # What the tab has been told so far, by directory of the logs.
        self._tabs: dict[str, PluginState] = {}

    def log(
        self,
        report: UnitReport,
        loggers: Iterable[Any],
        *,
        before: UnitReport | None = None,
        removals: Sequence[Removal] = (),
    ) -> None:
        """Log a report; every logger gets the scalars, TensorBoard the rest too.

        Args:
            report: what to log.
            loggers: Lightning loggers.
            before: the report before it, to tell what changed.
            removals: what the model went through, oldest first, so that a unit keeps its place in the tab.
        """
        scalars = report_scalars(report, before=before)
        changes = role_changes(before, report)
        for logger in loggers:
            logger.log_metrics({**scalars, "epoch": report.epoch}, step=report.global_step)
            writer = getattr(logger, "experiment", None)
            if hasattr(writer, "add_custom_scalars"):
                self._log_to_tensorboard(report, changes, writer, removals)

    def log_comparison(self, comparison: CriteriaComparison, loggers: Iterable[Any], *, step: int) -> None:
        """Draw a comparison of criteria for TensorBoard, one figure a layer.

        Args:
            comparison: what to draw.
            loggers: Lightning loggers.
            step: optimizer steps taken so far.
        """
        for logger in loggers:
            writer: Any = getattr(logger, "experiment", None)
            if self.figures and hasattr(writer, "add_custom_scalars"):
                for layer, curves in comparison.layers.items():
                    writer.add_figure(f"{PREFIX}/{layer}/criteria", criteria_figure(layer, curves), step)
                writer.flush()

    def _log_to_tensorboard(
        self, report: UnitReport, changes: Mapping[str, Tensor], writer: Any, removals: Sequence[Removal]
    ) -> None:
        step = report.global_step
        writer.add_text(f"{PREFIX}/report", markdown_table(report.rows()), step)
        if changes:
            writer.add_text(f"{PREFIX}/role_transitions", _transition_tables(changes), step)
        # The newest layout is the one that is shown, so writing it with every report costs little and suits a run that
        # is resumed into a new file.
        writer.add_custom_scalars(scalar_layout(report.layers))
        for name, layer in report.layers.items():
            for measure in ("feature_entropy", "ineffectiveness"):
                values = finite_values(getattr(layer.val, measure.removeprefix("feature_")))
                if len(values):
                    writer.add_histogram(f"{PREFIX}/{name}/{measure}", values.numpy(), step)
            if self.figures and layer.val.curves:
                writer.add_figure(f"{PREFIX}/{name}/ablation", ablation_figure(layer), step)
            if self.figures and layer.role_shares:
                writer.add_figure(f"{PREFIX}/{name}/roles", role_map_figure(layer, report.class_names), step)
        directory = writer.get_logdir()
        self._tabs[directory] = write_report(
            writer,
            report,
            step=step,
            known=self._tabs.get(directory),
            kept=_by_unit_layer(report, kept_channels(removals)),
            original_units=_by_unit_layer(report, original_widths(removals)),
        )
        writer.flush()


def pruning_scalars(report: PruningReport, *, step: int) -> dict[str, float]:
    """The scalars of what pruning did so far, by key.

    Args:
        report: what was done.
        step: optimizer steps taken so far; the accuracy before pruning belongs to the step at which it was measured.
    """
    size = report.after
    scalars = {
        "parameters": float(size.parameters),
        "macs": float(size.macs),
        "units": float(size.units),
        "latency_ms": size.latency,
        "accuracy": size.accuracy,
    }
    if report.steps and report.steps[-1].global_step == step:
        scalars["accuracy_before"] = report.steps[-1].accuracy_before
    return {f"{PREFIX}/pruning/{key}": value for key, value in scalars.items() if math.isfinite(value)}


def log_pruning(report: PruningReport, loggers: Iterable[Any], *, epoch: int, step: int) -> None:
    """Log what pruning did so far; every logger gets the scalars, TensorBoard a chart of the widths and tables too.

    Args:
        report: what to log.
        loggers: Lightning loggers.
        epoch: epoch of the trainer.
        step: optimizer steps taken so far.
    """
    for logger in loggers:
        logger.log_metrics({**pruning_scalars(report, step=step), "epoch": epoch}, step=step)
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_custom_scalars"):
            tables = f"{markdown_table(report.rows())}\n\n{markdown_table(report.layer_rows())}"
            writer.add_text(f"{PREFIX}/pruning/report", tables, step)
            writer.add_figure(f"{PREFIX}/pruning/widths", widths_figure(report), step)
            writer.flush()


def _by_unit_layer(report: UnitReport, by_module: Mapping[str, Value]) -> dict[str, Value]:
    """The same for each layer of a report, where ``name#1`` is the second call of the module ``name``."""
    modules = {name: module_of(name) for name in report.layers}
    return {name: by_module[module] for name, module in modules.items() if module in by_module}


def role_changes(before: UnitReport | None, after: UnitReport) -> dict[str, Tensor]:
    """``[4, 4]`` role transitions of each layer that has roles, and as many units, in both reports."""
    if before is None:
        return {}
    return {
        name: role_transitions(before.layers[name].roles, layer.roles)
        for name, layer in after.layers.items()
        if name in before.layers and layer.role_shares and before.layers[name].roles.shape == layer.roles.shape
    }


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _transition_tables(changes: Mapping[str, Tensor]) -> str:
    """One table a layer: row, the role before; column, the role now; numbers of (class, unit) pairs."""
    names = [ROLE_LABELS[role] for role in UnitRole]
    tables = []
    for layer, counts in changes.items():
        rows = [["from \\ to", *names]]
        rows += [[name, *map(str, row)] for name, row in zip(names, counts.tolist(), strict=True)]
        tables.append(f"**{layer}**, unchanged {100 * stability(counts):.0f} %\n\n{markdown_table(rows)}")
    return "\n\n".join(tables)


def finite_values(values: Tensor) -> Tensor:
    """The finite values of a tensor, flat."""
    return values[values.isfinite()].flatten()
