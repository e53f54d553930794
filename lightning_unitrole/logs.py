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
=====================================================  =====================================================

Means leave out units without any birth point. A value that does not exist, such as a role share without ablation, is
not logged. TensorBoard gets under the same prefix: histograms ``unitrole/<layer>/feature_entropy`` and
``unitrole/<layer>/ineffectiveness`` (validation), figures ``unitrole/<layer>/ablation`` and ``unitrole/<layer>/roles``,
and a layout of the "Custom scalars" dashboard that puts the four role shares of a layer into one chart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from lightning_unitrole.figures import ablation_figure, histogram_values, role_map_figure
from lightning_unitrole.results import SPLITS, SplitReport, UnitReport, UnitRole

PREFIX = "unitrole"
_SHARES = (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER)


def report_scalars(report: UnitReport) -> dict[str, float]:
    """The scalars of a report by key; see the head of this module for their meaning and units."""
    return {key: value for key, value in _scalars(report) if math.isfinite(value)}


def _scalars(report: UnitReport) -> Iterator[tuple[str, float]]:
    for name, layer in report.layers.items():
        for split in SPLITS:
            measured: SplitReport = getattr(layer, split)
            for measure in ("feature_entropy", "selective_rate", "ineffectiveness"):
                values = histogram_values(getattr(measured, measure.removeprefix("feature_")))
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


def log_report(report: UnitReport, loggers: Iterable[Any], *, figures: bool = True) -> dict[str, float]:
    """Send a report to Lightning loggers. Call it on rank zero.

    Args:
        report: what to log.
        loggers: Lightning loggers. Every one gets the scalars, TensorBoard the rest too.
        figures: draw figures.

    Returns:
        The scalars that were logged.
    """
    scalars = report_scalars(report)
    for logger in loggers:
        logger.log_metrics({**scalars, "epoch": report.epoch}, step=report.global_step)
        writer = getattr(logger, "experiment", None)
        if hasattr(writer, "add_custom_scalars"):
            _log_to_tensorboard(report, writer, figures=figures)
            logger.save()
    return scalars


def _log_to_tensorboard(report: UnitReport, writer: Any, *, figures: bool) -> None:
    step = report.global_step
    # TensorBoard shows the newest layout, so it may be written again; a resumed run starts a new file without it.
    writer.add_custom_scalars(scalar_layout(report.layers))
    for name, layer in report.layers.items():
        for measure in ("feature_entropy", "ineffectiveness"):
            values = histogram_values(getattr(layer.val, measure.removeprefix("feature_")))
            if len(values):
                writer.add_histogram(f"{PREFIX}/{name}/{measure}", values.numpy(), step)
        if figures and layer.val.curves:
            writer.add_figure(f"{PREFIX}/{name}/ablation", ablation_figure(layer), step)
        if figures and layer.role_shares:
            writer.add_figure(f"{PREFIX}/{name}/roles", role_map_figure(layer, report.class_names), step)
    writer.flush()
