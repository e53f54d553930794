"""Two processes must report what one process reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from lightning_unitrole.reports.report import UnitReport

SCRIPT = Path(__file__).with_name("distributed_validate.py")


def report_of(processes: int, folder: Path) -> UnitReport:
    path = folder / f"{processes}.npz"
    environment = {**os.environ, "PL_TORCH_DISTRIBUTED_BACKEND": "gloo", "MASTER_ADDR": "127.0.0.1"}
    subprocess.run([sys.executable, SCRIPT, str(processes), path], check=True, env=environment, timeout=300)
    return UnitReport.load(path)


def test_two_processes_report_what_one_reports_to_the_last_count(tmp_path: Path) -> None:
    one, two = report_of(1, tmp_path).state_dict(), report_of(2, tmp_path).state_dict()
    assert one["meta"] == two["meta"]
    for key, values in one["arrays"].items():
        # Losses are computed in other batches and added in another order; everything that is counted must be equal.
        tolerance = 1e-6 if key.endswith("loss") else 0
        torch.testing.assert_close(
            two["arrays"][key],
            values,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, key=key: f"{key}: {text}",
        )
