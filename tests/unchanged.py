"""Two trainings that must end alike, one of them looked at; a helper of the tests of what is promised."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from support import Digits, digits, hooks_of, make_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unitrole.callbacks import UnitRoleMonitor

QUIETLY = [
    # Lightning's advice on the number of workers and the logging interval is not what is tested here.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Consider setting `persistent_workers=True`"),
    # torch's own deprecations, raised by Lightning.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # So few images say little, which is said.
    pytest.mark.filterwarnings("ignore:The order by"),
    pytest.mark.filterwarnings("ignore:.*images? of"),
    pytest.mark.filterwarnings("ignore:.*iterable"),
    # A forward pass with a state gives other outputs each time.
    pytest.mark.filterwarnings("ignore:Layer '.*'. what lies behind it cannot be replayed"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature"),
]


class Tiny(pl.LightningModule):
    """Two convolutions, batch normalisation and dropout, at 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.dropout(F.relu(self.norm(self.first(images))), 0.1, self.training)
        return self.head(F.relu(self.second(maps)).mean((2, 3)))

    training_step = Digits.training_step
    validation_step = Digits.validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train_images(count: int = 64) -> Any:
    return digits(count, size=8)


def val_images(count: int = 48) -> Any:
    return digits(count, start=300, size=8)


@dataclass
class Run:
    """What is trained, and on what.

    Attributes:
        module: the module.
        train: its training data.
        val: its validation data.
        trainer: settings of the trainer.
        monitor: settings of the monitor.
        state: what else must be as it was without the monitor, read after training.
    """

    module: pl.LightningModule = field(default_factory=Tiny)
    train: Any = field(default_factory=lambda: DataLoader(train_images(), batch_size=16, shuffle=True))
    val: Any = field(default_factory=lambda: DataLoader(val_images(), batch_size=16))
    trainer: dict[str, Any] = field(default_factory=dict)
    monitor: dict[str, Any] = field(default_factory=dict)
    state: Callable[[], Any] = lambda: None


def monitor(**settings: Any) -> UnitRoleMonitor:
    """A monitor that costs little and looks in each epoch."""
    few = {"images_per_class": 2, "ablation_points": 2, "contribution_steps": 1, "curve_images": 1, "every_n_epochs": 1}
    return UnitRoleMonitor(**{**few, **settings})


def fit(make: Callable[[], Run], *, looked_at: bool) -> tuple[Run, UnitRoleMonitor]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    run = make()
    watching = monitor(**run.monitor)
    trainer = make_trainer(*([watching] if looked_at else ()), **{"max_epochs": 2, **run.trainer})
    trainer.fit(run.module, run.train, run.val)
    return run, watching


def ends(run: Run) -> list[Any]:
    """Everything that a run ends with."""
    tensors = [*run.module.parameters(), *run.module.buffers()]
    drawn = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]  # noqa: NPY002
    return [*(tensor.detach().clone() for tensor in tensors), drawn, hooks_of(run.module), run.state()]


def alike(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two runs ended bit for bit alike."""
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
