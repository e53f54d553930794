"""Training loops without a Trainer: Fabric's, or plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import digits
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from werkzeug.test import Client

from lightning_unitrole import ReportLogger, UnitReport, analyze
from lightning_unitrole.tensorboard_plugin.plugin import UnitRolesPlugin

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))


def look(model: nn.Module, data: Any, **settings: Any) -> UnitReport:
    return analyze(model, data, data, images_per_class=4, ablation_points=4, backend="torch", **settings)


def shown(directory: Path) -> dict[str, Any]:
    """What the tab knows of the runs below a directory."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"unit_roles": 0})
    multiplexer.AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=MultiplexerDataProvider(multiplexer, str(directory))))
    answer: dict[str, Any] = Client(plugin.get_plugin_apps()["/runs"]).get("/").get_json()
    return answer


def test_a_loop_of_fabric_fills_the_tab(tmp_path: Path) -> None:
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="loop", version="a")
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed", loggers=[logger])
    plain = network()
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    data = digits(60, size=8)
    reports, step = ReportLogger(), 0
    for epoch in range(2):
        for images, labels in fabric.setup_dataloaders(DataLoader(data, 20)):
            fabric.backward(F.cross_entropy(model(images), labels))
            optimizer.step()
            step += 1
        report = look(model.module, data, forward=model, epoch=epoch, global_step=step)
        assert (report.epoch, report.global_step) == (epoch, step)
        assert [*report.layers] == ["2"]
        reports.log(report, fabric.loggers)
    (run,) = shown(tmp_path)["runs"]
    assert run["last_step"] == 6
    assert [layer["name"] for layer in run["layers"]] == ["2"]


def test_what_was_logged_last_is_what_changes_are_told_against() -> None:
    model, data = network(), digits(60, size=8)
    logger = Remembers()
    reports = ReportLogger()
    reports.log(look(model, data), [logger])
    assert not any("role_stability" in key for key in logger.seen)
    reports.log(look(model, data, global_step=1), [logger])
    assert {value for key, value in logger.seen.items() if "role_stability" in key} == {1.0}


class Remembers:
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen |= metrics
