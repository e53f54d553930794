"""Two processes must report what one process reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_unitrole.reports.report import UnitReport

SCRIPT = Path(__file__).with_name("distributed_validate.py")
TOLERANCE = {"loss": 1e-6, "contributions": 1e-4}
"""Of what is computed in other batches and added in another order; everything that is counted must be equal."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process and two have put their reports."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "PL_TORCH_DISTRIBUTED_BACKEND": "gloo", "MASTER_ADDR": "127.0.0.1"}
    for processes in (1, 2):
        subprocess.run([sys.executable, SCRIPT, str(processes), folder], check=True, env=environment, timeout=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("roles", ["turning_point", "contribution"])
def test_two_processes_report_what_one_reports_to_the_last_count(folder: Path, roles: str) -> None:
    one, two = (UnitReport.load(folder / f"{processes}_{roles}.npz").state_dict() for processes in (1, 2))
    assert one["meta"] == two["meta"]
    assert one["arrays"].keys() == two["arrays"].keys()
    for key, values in one["arrays"].items():
        tolerance = max((limit for name, limit in TOLERANCE.items() if name in key), default=0.0)
        torch.testing.assert_close(
            two["arrays"][key],
            values,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, key=key: f"{key}: {text}",
        )
    assert ("1/effects/val" in one["arrays"]) == (roles == "contribution")
