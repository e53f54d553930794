"""Reports in loggers other than TensorBoard's: tables and pictures, through what the loggers offer for them.

Scalars go to every logger. The table of a report and the ablation curves of its layers also go to loggers with the
methods ``log_table`` and ``log_image``, as Lightning's ``WandbLogger`` has them, and to ``MLFlowLogger`` as artifacts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_unitrole.loggers.scalars import PREFIX, scalar_key
from lightning_unitrole.reports.figures import ablation_figure
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.tensorboard_plugin.packing import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_table(report: UnitReport, logger: Any) -> None:
    """Log the table of a report, one row a layer; nothing to loggers that take no tables.

    Args:
        report: what to log.
        logger: a Lightning logger.
    """
    head, *rows = report.rows()
    if hasattr(logger, "log_table"):
        logger.log_table(key=f"{PREFIX}_report", columns=head, data=rows, step=report.global_step)
    elif _is_mlflow(logger):
        columns = {name: list(cells) for name, cells in zip(head, zip(*rows, strict=True), strict=True)}
        logger.experiment.log_table(logger.run_id, columns, f"{PREFIX}/report-{report.global_step}.json")


def log_images(report: UnitReport, logger: Any) -> None:
    """Log the ablation curves of each layer as pictures; nothing to loggers that take none.

    Args:
        report: what to log.
        logger: a Lightning logger.
    """
    for name, layer in report.layers.items():
        if not layer.val.curves:
            continue
        if hasattr(logger, "log_image"):
            picture = pixels(ablation_figure(layer))
            logger.log_image(key=scalar_key("ablation", name), images=[picture], step=report.global_step)
        elif _is_mlflow(logger):
            file = f"{PREFIX}/ablation-{name}-{report.global_step}.png"
            logger.experiment.log_figure(logger.run_id, ablation_figure(layer), file)


def pixels(figure: Figure) -> Array:
    """``[H, W, 3]`` uint8 of a figure that was made without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _is_mlflow(logger: Any) -> bool:
    return any(kind.__name__ == "MLFlowLogger" for kind in type(logger).__mro__)
