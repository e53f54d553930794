"""Reports in TensorBoard: scalars, histograms, figures, texts, and the data of the tab "Unit roles".

Besides the scalars of :mod:`lightning_unitrole.loggers.scalars`, grouped as they are: histograms
``unitrole_feature_entropy/<layer>`` and ``unitrole_ineffectiveness/<layer>`` (validation), figures
``unitrole_ablation/<layer>`` and ``unitrole_roles/<layer>`` and, where criteria are compared,
``unitrole_criteria/<layer>``, the texts ``unitrole/report`` and ``unitrole/role_transitions``, a layout of the "Custom
scalars" dashboard that puts the four role shares of a layer into one chart, and what the tab "Unit roles" shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from lightning_unitrole.loggers.others import log_images, log_table
from lightning_unitrole.loggers.scalars import (
    PREFIX,
    finite_values,
    report_scalars,
    role_changes,
    scalar_key,
    scalar_layout,
    under_name,
)
from lightning_unitrole.network.tracing import module_of
from lightning_unitrole.reports.curves import CriteriaComparison
from lightning_unitrole.reports.figures import ablation_figure, criteria_figure, role_map_figure
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.roles import UnitRole, stability
from lightning_unitrole.reports.tables import markdown_table
from lightning_unitrole.reports.vocabulary import ROLE_OF
from lightning_unitrole.tensorboard_plugin.summary import PluginState, write_report

Value = TypeVar("Value")
OnFault = Callable[[str, Exception], None]
"""Called with what could not be logged, and why."""


def raise_fault(what: str, error: Exception) -> None:
    """Let a fault in a logger end the call."""
    raise error


class ReportLogger:
    """Sends the reports of one run to the loggers of Lightning or Fabric. Use it on rank zero.

    For a training loop of your own; :class:`~lightning_unitrole.callbacks.monitor.UnitRoleMonitor` has its own.

    Every logger stands for itself: a fault in one is handed to ``on_fault``, and the others get their data. Data come
    first, figures last.

    Args:
        figures: draw figures for TensorBoard.
        name: tells the reports of one monitor from those of another: scalars have it in their keys, and the rest goes
            to a TensorBoard run of this name within the logger's. Empty for none.

    Example:
        >>> reports = ReportLogger()
        >>> report = analyze(model, train_data, val_data, global_step=step)  # doctest: +SKIP
        >>> reports.log(report, [TensorBoardLogger("logs")])  # doctest: +SKIP
    """

    def __init__(self, *, figures: bool = True, name: str = "") -> None:
        self.figures, self.name = figures, name
        self._writers: dict[str, Any] = {}
        self._roles: Mapping[str, Tensor] = {}
        # What the tab has been told so far, by directory of the logs.
        self._tabs: dict[str, PluginState] = {}

    def log(
        self,
        report: UnitReport,
        loggers: Iterable[Any],
        *,
        before: Mapping[str, Tensor] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        original_units: Mapping[str, int] | None = None,
        on_fault: OnFault = raise_fault,
    ) -> None:
        """Log a report; every logger gets the scalars and what it can show of the rest.

        Args:
            report: what to log.
            loggers: Lightning loggers.
            before: roles of the report before it, by layer, to tell what changed; None for those that were logged last.
            kept: for each module that lost units, the indices that those left had in the beginning.
            original_units: for each of them, how many units it had in the beginning.
            on_fault: called with what could not be logged, and why.
        """
        before = self._roles if before is None else before
        self._roles = {name: layer.roles for name, layer in report.layers.items()}
        named = replace(report, layers=under_name(self.name, report.layers))
        scalars = report_scalars(named, before=under_name(self.name, before))
        changes = role_changes(before, report)
        for logger in loggers:
            name = type(logger).__name__
            attempt = _Attempts(name, on_fault)
            attempt("scalars", logger.log_metrics, {**scalars, "epoch": report.epoch}, step=report.global_step)
            attempt("the table", log_table, named, logger)
            if self.figures:
                attempt("figures", log_images, named, logger)
            writer = self._writer(logger)
            if writer is not None:
                attempt("the tab", self._log_tab, report, writer, kept or {}, original_units or {})
                attempt("texts", _log_texts, report, changes, writer)
                attempt("histograms", _log_histograms, report, writer)
                if self.figures:
                    attempt("figures", _log_figures, report, writer)
                attempt("everything", writer.flush)

    def log_comparison(
        self,
        comparison: CriteriaComparison,
        loggers: Iterable[Any],
        *,
        step: int,
        on_fault: OnFault = raise_fault,
    ) -> None:
        """Draw a comparison of criteria for TensorBoard, one figure a layer.

        Args:
            comparison: what to draw.
            loggers: Lightning loggers.
            step: optimizer steps taken so far.
            on_fault: called with what could not be logged, and why.
        """
        for logger in loggers:
            writer = self._writer(logger)
            if self.figures and writer is not None:
                attempt = _Attempts(type(logger).__name__, on_fault)
                for layer, curves in comparison.layers.items():
                    tag = scalar_key("criteria", layer)
                    attempt("figures", lambda: writer.add_figure(tag, criteria_figure(layer, curves), step))  # noqa: B023
                attempt("everything", writer.flush)

    def _writer(self, logger: Any) -> Any:
        """TensorBoard's writer; None for another logger."""
        writer = getattr(logger, "experiment", None)
        if writer is None or not hasattr(writer, "add_custom_scalars"):
            return None
        if not self.name:
            return writer
        directory = os.path.join(writer.get_logdir(), self.name)
        if directory not in self._writers:
            self._writers[directory] = type(writer)(directory)
        return self._writers[directory]

    def _log_tab(
        self, report: UnitReport, writer: Any, kept: Mapping[str, Tensor], original_units: Mapping[str, int]
    ) -> None:
        directory = writer.get_logdir()
        self._tabs[directory] = write_report(
            writer,
            report,
            step=report.global_step,
            known=self._tabs.get(directory),
            kept=_by_unit_layer(report, kept),
            original_units=_by_unit_layer(report, original_units),
        )


class _Attempts:
    """Calls one thing after another, whatever becomes of the one before."""

    def __init__(self, logger: str, on_fault: OnFault) -> None:
        self.logger, self.on_fault = logger, on_fault

    def __call__(self, what: str, function: Callable[..., Any], *args: Any, **settings: Any) -> None:
        try:
            function(*args, **settings)
        except Exception as error:
            self.on_fault(f"{what} of unit roles to {self.logger}", error)


def is_tensorboard(logger: Any) -> bool:
    """Whether a Lightning logger is one of TensorBoard, in every process alike."""
    return any(kind.__name__ == "TensorBoardLogger" for kind in type(logger).__mro__)


def _log_texts(report: UnitReport, changes: Mapping[str, Tensor], writer: Any) -> None:
    writer.add_text(f"{PREFIX}/report", markdown_table(report.rows()), report.global_step)
    if changes:
        writer.add_text(f"{PREFIX}/role_transitions", _transition_tables(changes), report.global_step)
    # The newest layout is the one that is shown, so writing it with every report costs little and suits a run that is
    # resumed into a new file.
    writer.add_custom_scalars(scalar_layout(report.layers))


def _log_histograms(report: UnitReport, writer: Any) -> None:
    for name, layer in report.layers.items():
        for measure in ("feature_entropy", "ineffectiveness"):
            values = finite_values(getattr(layer.val, measure.removeprefix("feature_")))
            if len(values):
                writer.add_histogram(scalar_key(measure, name), values.numpy(), report.global_step)


def _log_figures(report: UnitReport, writer: Any) -> None:
    for name, layer in report.layers.items():
        if layer.val.curves:
            writer.add_figure(scalar_key("ablation", name), ablation_figure(layer), report.global_step)
        if layer.role_shares:
            figure = role_map_figure(layer, report.class_names)
            writer.add_figure(scalar_key("roles", name), figure, report.global_step)


def _by_unit_layer(report: UnitReport, by_module: Mapping[str, Value]) -> dict[str, Value]:
    """The same for each layer of a report, where ``name#1`` is the second call of the module ``name``."""
    modules = {name: module_of(name) for name in report.layers}
    return {name: by_module[module] for name, module in modules.items() if module in by_module}


def _transition_tables(changes: Mapping[str, Tensor]) -> str:
    """One table a layer: row, the role before; column, the role now; numbers of (class, unit) pairs."""
    names = [ROLE_OF[role].label for role in UnitRole]
    tables = []
    for layer, counts in changes.items():
        rows = [["from \\ to", *names]]
        rows += [[name, *map(str, row)] for name, row in zip(names, counts.tolist(), strict=True)]
        tables.append(f"**{layer}**, unchanged {100 * stability(counts):.0f} %\n\n{markdown_table(rows)}")
    return "\n\n".join(tables)
