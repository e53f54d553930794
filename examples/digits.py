"""Train a small VGG on scikit-learn's handwritten digits and watch the roles of its units.

The digits ship with scikit-learn, so nothing is downloaded. The LightningModule knows nothing of the monitor.
"""

import argparse

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unitrole import UnitRoleMonitor


class SmallVGG(pl.LightningModule):
    """Five convolutions at three resolutions, from 32x32 down to 8x8."""

    def __init__(self, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        widths = (16, "pool", 32, 32, "pool", 48, 64)
        layers: list[nn.Module] = []
        channels = 1
        for width in widths:
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 10]`` of images ``[B, 1, 32, 32]``."""
        return self.classifier(self.features(images).mean((2, 3)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class PrintReport(pl.Callback):
    """Prints the monitor's table after each epoch that was analysed."""

    def __init__(self, monitor: UnitRoleMonitor) -> None:
        self.monitor = monitor

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print what is new."""
        report = self.monitor.report
        if trainer.sanity_checking or report is None or report.global_step != trainer.global_step:
            return
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        print(f"\nepoch {report.epoch}, validation accuracy {100 * accuracy:.1f} %\n{report.table()}")


def digits(batch_size: int = 64) -> tuple[DataLoader, DataLoader]:
    """Training and validation loaders of 1,297 and 500 digits, upscaled from 8x8 to 32x32."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, val = (TensorDataset(images[part], labels[part]) for part in (order[:-500], order[-500:]))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(val, batch_size)


def main() -> None:
    """Train, analyse, and say where to look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--every-n-epochs", type=int, default=1, help="analyse every n-th epoch")
    parser.add_argument("--images-per-class", type=int, default=30)
    parser.add_argument("--ablation-points", type=int, default=64)
    parser.add_argument("--log-dir", default="logs")
    arguments = parser.parse_args()

    pl.seed_everything(0)
    train, val = digits()
    monitor = UnitRoleMonitor(
        images_per_class=arguments.images_per_class,
        ablation_points=arguments.ablation_points,
        every_n_epochs=arguments.every_n_epochs,
    )
    logger = pl.loggers.TensorBoardLogger(arguments.log_dir, name="digits")
    trainer = pl.Trainer(
        max_epochs=arguments.epochs,
        callbacks=[monitor, PrintReport(monitor)],
        logger=logger,
        log_every_n_steps=10,
    )
    trainer.fit(SmallVGG(), train, val)
    print(f"\nTensorBoard's files are in {logger.log_dir}. To look at them:")
    print(f"\n    tensorboard --logdir {arguments.log_dir}\n")


if __name__ == "__main__":
    main()
