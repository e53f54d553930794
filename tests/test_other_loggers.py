"""Tables and pictures in loggers other than TensorBoard's, each with the real library where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard_plugin.synthetic import CONTRIBUTING, Training

from lightning_unitrole.loggers.others import pixels
from lightning_unitrole.loggers.tensorboard import ReportLogger
from lightning_unitrole.reports.figures import ablation_figure

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
REPORT = Training(CONTRIBUTING[:2], contributions=True).report(0, 1, step=7)


def test_a_figure_as_pixels() -> None:
    picture = pixels(ablation_figure(next(iter(REPORT.layers.values()))))
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.shape[1] > picture.shape[0] > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_weights_and_biases_gets_a_table_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from pytorch_lightning.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="unitrole", save_dir=tmp_path, offline=True)
    ReportLogger().log(REPORT, [logger])
    summary = dict(logger.experiment.summary)
    media = Path(logger.experiment.dir) / "media"
    logger.experiment.finish()
    tables = [json.loads(file.read_text()) for file in media.rglob("*.table.json")]
    assert tables[0]["columns"] == REPORT.rows()[0]
    assert tables[0]["data"] == REPORT.rows()[1:]
    assert len(list(media.rglob("*.png"))) == len(REPORT.layers)
    assert "unitrole_removable/features.0" in summary


def test_mlflow_gets_a_table_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip("mlflow")
    from pytorch_lightning.loggers import MLFlowLogger

    logger = MLFlowLogger("unitrole", tracking_uri=f"file:{tmp_path}")
    ReportLogger().log(REPORT, [logger])
    (table,) = tmp_path.rglob("report-7.json")
    assert json.loads(table.read_text())["columns"] == REPORT.rows()[0]
    assert len(list(tmp_path.rglob("ablation-*-7.png"))) == len(REPORT.layers)
