"""Train torchvision's ResNet-18 or VGG-16, adapted to 32x32 images, on CIFAR-10 and watch the roles of its units.

CIFAR-10 is downloaded by torchvision, or read from a folder with subfolders train/<class>/ and test/<class>/.
"""

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lightning_unitrole import UnitRoleMonitor

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def resnet18() -> nn.Module:
    """ResNet-18 whose stem keeps the resolution of 32x32 images."""
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def vgg16() -> nn.Module:
    """VGG-16 with batch normalisation and a single linear layer behind its last convolution."""
    network = torchvision.models.vgg16_bn(num_classes=10)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, 10)
    return network


class Classifier(pl.LightningModule):
    """A network, its loss and its optimizer."""

    def __init__(self, network: nn.Module, epochs: int, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.network = network
        self.epochs = epochs
        self.learning_rate = learning_rate

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 10]`` of images ``[B, 3, 32, 32]``."""
        return self.network(images)

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

    def configure_optimizers(self) -> dict:
        """SGD with momentum and a cosine schedule."""
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def datasets(folder: Path | None, download_to: Path) -> tuple[Dataset, Dataset, Dataset]:
    """Training images with augmentation, the same without, and test images."""
    plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *plain])
    still = transforms.Compose(plain)
    if folder is None:

        def load(*, train: bool, transform: transforms.Compose) -> Dataset:
            return torchvision.datasets.CIFAR10(download_to, train=train, transform=transform, download=True)
    else:

        def load(*, train: bool, transform: transforms.Compose) -> Dataset:
            return torchvision.datasets.ImageFolder(folder / ("train" if train else "test"), transform=transform)

    return load(train=True, transform=augment), load(train=True, transform=still), load(train=False, transform=still)


def main() -> None:
    """Train and analyse."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=("resnet18", "vgg16"), default="resnet18")
    parser.add_argument("--data", type=Path, help="folder with train/<class>/ and test/<class>/ instead of a download")
    parser.add_argument("--download-to", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every-n-epochs", type=int, default=5, help="analyse every n-th epoch")
    parser.add_argument("--images-per-class", type=int, default=50)
    parser.add_argument("--ablation-points", type=int, default=32)
    parser.add_argument("--limit-batches", type=int, help="train and validate on so many batches an epoch only")
    parser.add_argument("--log-dir", default="logs")
    arguments = parser.parse_args()

    pl.seed_everything(0)
    train, train_still, test = datasets(arguments.data, arguments.download_to)
    loader_settings = {
        "batch_size": arguments.batch_size,
        "num_workers": arguments.workers,
        "persistent_workers": arguments.workers > 0,
    }
    monitor = UnitRoleMonitor(
        train_data=train_still,
        class_names=train.classes,
        every_n_epochs=arguments.every_n_epochs,
        images_per_class=arguments.images_per_class,
        ablation_points=arguments.ablation_points,
    )
    logger = pl.loggers.TensorBoardLogger(arguments.log_dir, name=f"cifar10-{arguments.network}")
    trainer = pl.Trainer(
        max_epochs=arguments.epochs,
        callbacks=[monitor],
        logger=logger,
        limit_train_batches=arguments.limit_batches,
        limit_val_batches=arguments.limit_batches,
    )
    network = resnet18() if arguments.network == "resnet18" else vgg16()
    trainer.fit(
        Classifier(network, arguments.epochs, arguments.learning_rate),
        DataLoader(train, shuffle=True, **loader_settings),
        DataLoader(test, **loader_settings),
    )
    if monitor.report is not None:
        print(monitor.report.table())
    print(f"\nTo look at the roles:\n\n    tensorboard --logdir {arguments.log_dir}\n")


if __name__ == "__main__":
    main()
