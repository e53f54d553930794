"""LightningCLI builds the callbacks from YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytorch_lightning.cli import LightningCLI
from support import Digits

from lightning_unitrole import UnitPruning, UnitRoleMonitor

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
CONFIG = """
trainer:
  accelerator: cpu
  logger: false
  callbacks:
    - class_path: lightning_unitrole.UnitRoleMonitor
      init_args:
        layers: ["net.*"]
        criterion: taylor
    - class_path: lightning_unitrole.UnitPruning
      init_args:
        amount: 0.5
        of: parameters
        choose_by: roles
        schedule: cubic
        end_epoch: 8
        skip_layers: ["net.0"]
        monitor:
          class_path: lightning_unitrole.UnitRoleMonitor
          init_args:
            images_per_class: 7
"""


def test_the_callbacks_are_built_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(path)])
    cli = LightningCLI(Digits, run=False, seed_everything_default=False)
    watching, pruning = (
        next(one for one in cli.trainer.callbacks if isinstance(one, kind)) for kind in (UnitRoleMonitor, UnitPruning)
    )
    assert watching.settings.criterion == "taylor"
    assert watching.settings.layers == ["net.*"]
    assert (pruning.amount, pruning.of, pruning.choose_by, pruning.skip_layers) == (
        0.5,
        "parameters",
        "roles",
        ["net.0"],
    )
    assert pruning.schedule.epochs == list(range(1, 9))
    assert pruning.monitor is not None
    assert pruning.monitor.settings.images_per_class == 7
