"""What pruning did, for loggers: scalars for each, tables and a chart for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lightning_unitrole.pruning.report import PruningReport
from lightning_unitrole.reports.tables import markdown_table
from lightning_unitrole.tensorboard_plugin.cuts import write_pruning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFIX = "unitrole/pruning"


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
    return {f"{PREFIX}/{key}": value for key, value in scalars.items() if math.isfinite(value)}


def log_pruning(report: PruningReport, loggers: Iterable[Any], *, epoch: int, step: int) -> None:
    """Log what pruning did so far; every logger gets the scalars, TensorBoard charts and tables too.

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
            tables = "\n\n".join(map(markdown_table, (report.rows(), report.step_rows(), report.layer_rows())))
            writer.add_text(f"{PREFIX}/report", tables, step)
            writer.add_figure(f"{PREFIX}/widths", widths_figure(report), step)
            write_pruning(writer, report.state_dict(), epoch=epoch, step=step)
            writer.flush()


def widths_figure(report: PruningReport) -> Figure:
    """How many units each layer has left of those that it had before anything was pruned."""
    layers = list(report.before.widths)
    # A Figure made without pyplot needs no display and leaves the user's own backend and open figures alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.8, 0.28 * len(layers) + 1.6), 3.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    positions = range(len(layers))
    axis.bar(positions, [report.before.widths[name] for name in layers], color="#DDDDDD", label="before")
    axis.bar(positions, [report.after.widths[name] for name in layers], color="#0072B2", label="left")
    axis.set_xticks(positions, layers, rotation=90, fontsize=7)
    axis.set_ylabel("units")
    axis.legend(frameon=False, fontsize=9)
    return figure
