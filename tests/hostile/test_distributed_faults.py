"""A fault in one of two processes: neither waits for the other, and both train on alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "distributed_fault.py"
PLACES = ["start", "recording", "measuring", "logging", "choosing", "removing", "masking"]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_in_one_process_is_a_fault_in_all_and_training_goes_on(place: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PL_TORCH_DISTRIBUTED_BACKEND": "gloo", "MASTER_ADDR": "127.0.0.1"}
    subprocess.run([sys.executable, SCRIPT, place, tmp_path], check=True, env=environment, timeout=240)
    first, second = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (0, 1))
    assert [len(one["said"]) for one in (first, second)] == [1, 0]  # the first process speaks for all
    assert "on purpose" in first["said"][0]
    assert ("In process 1: RuntimeError" in first["said"][0]) == (place != "logging")
    assert first["epoch"] == second["epoch"] == 2  # it is tried again
    assert all(torch.equal(one, second["weights"][name]) for name, one in first["weights"].items())
