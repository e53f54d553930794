"""A small network, real images, and a quiet trainer for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 2,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

adafactor = pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch has Adafactor since 2.5")


def digits(count: int, *, start: int = 0, size: int = 16) -> TensorDataset:
    """Some of scikit-learn's handwritten digits, ``[count, 1, size, size]``, with their labels."""
    data = load_digits()
    images = torch.tensor(data.images[start : start + count], dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return TensorDataset(images, torch.tensor(data.target[start : start + count]))


def small_net() -> nn.Sequential:
    """Two convolutions at 16x16 and one at 8x8, with batch normalisation and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 7, 3, padding=1),
        nn.BatchNorm2d(7),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(7, 9, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, 10),
    )


def trained_net() -> nn.Sequential:
    """The same, trained on the first 300 digits: all of them right, and four in five of the next 150."""
    net = small_net()
    net.load_state_dict(torch.load(Path(__file__).parent / "data" / "digits_net.pt", weights_only=True))
    return net


class Digits(pl.LightningModule):
    """Classifies digits; knows nothing of the monitor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels), add_dataloader_idx=False)
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), add_dataloader_idx=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loaders(**settings: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """A shuffled training loader of 300 digits and a validation loader of 150."""
    return (
        DataLoader(digits(300), batch_size=32, shuffle=True, **settings),
        DataLoader(digits(150, start=300), batch_size=32, **settings),
    )


def make_trainer(*callbacks: Any, **settings: Any) -> pl.Trainer:
    """A trainer on the CPU that says nothing and writes nothing."""
    return pl.Trainer(callbacks=list(callbacks), **{**QUIET, **settings})


def fit_in_the_other_lightning(*callbacks: Any, **settings: Any) -> None:
    """Fits the digits in ``lightning.pytorch``, which is another package with classes of its own."""
    pytest.importorskip("lightning.pytorch", minversion="2.6", reason="takes callbacks of the other package since 2.6")
    import lightning.pytorch

    class Other(lightning.pytorch.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        forward = Digits.forward
        training_step = Digits.training_step
        validation_step = Digits.validation_step
        configure_optimizers = Digits.configure_optimizers

    trainer = lightning.pytorch.Trainer(callbacks=list(callbacks), **{**QUIET, **settings})
    trainer.fit(Other(), *loaders())


def hooks_of(model: nn.Module) -> int:
    """Number of forward hooks on a model and all its modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
