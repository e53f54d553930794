"""What pruning did, as the tab's own data: one event, ``unit_roles/pruning``, whenever units were pruned.

It holds everything since training began, so that the latest one suffices: the network before and after, each cut, and
for each unit of each layer the cut at which it went.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_unitrole.tensorboard_plugin.packing import pack
from lightning_unitrole.tensorboard_plugin.schema import (
    CUT_COLUMNS,
    FORMAT_VERSION,
    NETWORK_COLUMNS,
    PRUNING_TAG,
)
from lightning_unitrole.tensorboard_plugin.summary import write_contents

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def write_pruning(writer: SummaryWriter, state: Mapping[str, Any], *, epoch: int, step: int) -> None:
    """Log what pruning did so far, and flush.

    Args:
        writer: where to log; a logger's ``experiment`` on rank zero.
        state: what :meth:`~lightning_unitrole.pruning.report.PruningReport.state_dict` gives.
        epoch: epoch of the trainer.
        step: optimizer steps taken so far.
    """
    before, after, cuts = state["before"], state["after"], state["steps"]
    layers = list(before["widths"])
    cut_at = {name: np.zeros(before["widths"][name], np.uint16) for name in layers}
    for number, cut in enumerate(cuts, 1):
        for name, units in cut["units"].items():
            if name in cut_at:
                gone = np.asarray(list(units), np.int64)
                cut_at[name][gone[gone < len(cut_at[name])]] = number
    arrays = {
        "network": _table((before, after), NETWORK_COLUMNS),
        "cuts": _table(cuts, CUT_COLUMNS),
        "widths": np.array([[size["widths"].get(name, 0) for name in layers] for size in (before, after)], np.uint32),
        "cut_at": np.concatenate([np.zeros(0, np.uint16), *cut_at.values()]),
    }
    info = {
        "format": FORMAT_VERSION,
        "epoch": epoch,
        "layers": layers,
        "columns": {"network": list(NETWORK_COLUMNS), "cuts": list(CUT_COLUMNS)},
        "kept_whole": {str(name): str(reason) for name, reason in state["skipped"].items()},
    }
    write_contents(writer, {PRUNING_TAG: pack(info, arrays)}, b"", step)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    """``[rows, columns]`` float64; NaN for what a row does not have."""
    table = np.full((len(rows), len(columns)), math.nan)
    for row, values in zip(table, rows, strict=True):
        row[:] = [math.nan if values.get(column) is None else float(values[column]) for column in columns]
    return table
