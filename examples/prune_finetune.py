"""Train a network, prune it while it is fine-tuned, and load the slim network again, all in one `Trainer.fit`.

By default the network is the small VGG of `digits.py`, on scikit-learn's handwritten digits: nothing is downloaded.
With `--network resnet18 --weights DEFAULT` it is torchvision's, on CIFAR-10 or on images in the folders
train/<class>/ and test/<class>/ of `--data`. Training images train, validation images choose the units, and the
accuracies at the end are those on test images, which did neither.
"""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from cifar10 import MEAN, STD
from digits import SmallVGG, digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, random_split
from torchvision import transforms

from lightning_unitrole import UnitPruning, UnitRoleMonitor, load_pruned

Parts = tuple[Dataset, Dataset, Dataset]


class Classifier(pl.LightningModule):
    """A network, its loss and its optimizer; knows nothing of pruning."""

    def __init__(self, network: str, num_classes: int, learning_rate: float, weights: str | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        if network == "small":
            self.net: nn.Module = SmallVGG()
        else:
            self.net = torchvision.models.get_model(network, weights=weights)
            name, head = [one for one in self.net.named_modules() if isinstance(one[1], nn.Linear)][-1]
            if head.out_features != num_classes:
                self.net.set_submodule(name, nn.Linear(head.in_features, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of images."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy on images that choose the units."""
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def digit_parts() -> Parts:
    """997 digits to train on, 300 to choose units on, and 500 to test on."""
    train, test = (loader.dataset for loader in digits())
    train, val = random_split(train, [997, 300], torch.Generator().manual_seed(0))
    return train, val, test


def image_parts(folder: Path | None, download_to: Path, size: int) -> Parts:
    """Images of a folder or of CIFAR-10; every tenth training image chooses units."""
    plain = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    still, augment = transforms.Compose(plain), transforms.Compose([transforms.RandomHorizontalFlip(), *plain])

    def load(train: bool, transform: transforms.Compose) -> Dataset:
        if folder is None:
            return torchvision.datasets.CIFAR10(download_to, train=train, transform=transform, download=True)
        return torchvision.datasets.ImageFolder(folder / ("train" if train else "test"), transform=transform)

    train, train_still = load(True, augment), load(True, still)
    chosen = range(0, len(train), 10)
    rest = [index for index in range(len(train)) if index % 10]
    return Subset(train, rest), Subset(train_still, chosen), load(False, still)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="small", help="small, or a name that torchvision knows, such as resnet18")
    parser.add_argument("--weights", help="torchvision's published weights to begin with, such as DEFAULT")
    parser.add_argument("--data", type=Path, help="folder with train/<class>/ and test/<class>/ instead of CIFAR-10")
    parser.add_argument("--download-to", type=Path, default=Path("data"))
    parser.add_argument("--image-size", type=int, default=64, help="side of the images; the digits have 32")
    parser.add_argument("--epochs", type=int, default=8, help="epochs before pruning")
    parser.add_argument("--pruning-epochs", type=int, default=4, help="epochs that begin with pruning")
    parser.add_argument("--fine-tuning-epochs", type=int, default=6, help="epochs after that")
    parser.add_argument(
        "--baseline", action=argparse.BooleanOptionalAction, default=True, help="train as long without pruning too"
    )
    parser.add_argument("--amount", type=float, default=0.55, help="share of the MACs to remove")
    parser.add_argument("--choose-by", default="group_taylor", help="group_norm, evidence, roles, or a criterion")
    parser.add_argument("--images-per-class", type=int, default=30, help="validation images that choose the units")
    parser.add_argument("--ablation-points", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--limit-batches", type=int, help="train, validate and test on so many batches an epoch only")
    parser.add_argument("--log-dir", default="logs")
    return parser.parse_args()


def fit(arguments: argparse.Namespace, model: Classifier, train: DataLoader, val: DataLoader, *callbacks: Any) -> None:
    """One `Trainer.fit` of all epochs."""
    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_epochs=arguments.epochs + arguments.pruning_epochs + arguments.fine_tuning_epochs,
        callbacks=list(callbacks),
        logger=pl.loggers.TensorBoardLogger(arguments.log_dir, name=f"prune-{arguments.network}"),
        limit_train_batches=arguments.limit_batches,
        limit_val_batches=arguments.limit_batches,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    trainer.fit(model, train, val)


@torch.no_grad()
def describe(name: str, model: Classifier, test: DataLoader, batches: int | None) -> str:
    """Accuracy on test images, and size."""
    model.eval()
    right = [model(images).argmax(1) == labels for images, labels in islice(test, batches)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"  {name:<28}{100 * float(torch.cat(right).float().mean()):5.1f} %  {parameters:>12,} parameters"


def main() -> None:
    """Train, prune, fine-tune, load again, test."""
    arguments = parse()
    if arguments.network == "small":
        parts = digit_parts()
    else:
        parts = image_parts(arguments.data, arguments.download_to, arguments.image_size)
    num_classes = 10 if arguments.network == "small" else len(parts[2].classes)
    train, val, test = (
        DataLoader(part, arguments.batch_size, shuffle=part is parts[0], num_workers=arguments.workers)
        for part in parts
    )

    def network() -> Classifier:
        pl.seed_everything(0)
        return Classifier(arguments.network, num_classes, arguments.learning_rate, arguments.weights)

    pruning = UnitPruning(
        choose_by=arguments.choose_by,
        amount=arguments.amount,
        of="macs",
        schedule="cubic",
        start_epoch=arguments.epochs,
        end_epoch=arguments.epochs + arguments.pruning_epochs - 1,
        monitor=UnitRoleMonitor(images_per_class=arguments.images_per_class, ablation_points=arguments.ablation_points),
    )
    checkpoints = pl.callbacks.ModelCheckpoint(filename="{epoch}", save_top_k=-1)
    model = network()
    fit(arguments, model, train, val, pruning, checkpoints)  # ends with the table of what pruning did
    # A checkpoint holds what was removed, so a fresh Classifier takes its shape, be it from before or after pruning.
    folder, slim = Path(checkpoints.dirpath), Path(checkpoints.best_model_path)
    found = {
        "before pruning": load_pruned(Classifier, folder / f"epoch={arguments.epochs - 1}.ckpt", weights=None),
        "pruned and fine-tuned": model,
        "the same from its checkpoint": load_pruned(Classifier, slim, weights=None),
    }
    print("\nWhat other amounts would have cost, before fine-tuning:")
    print(pruning.preview(found["before pruning"], (0.2, 0.4, 0.6, 0.8), data=val).table())
    if arguments.baseline:
        print("\nTraining as long without pruning, to compare:")
        found["trained as long, not pruned"] = network()
        fit(arguments, found["trained as long, not pruned"], train, val)
    print("\nOn test images:")
    for name, one in found.items():
        print(describe(name, one, test, arguments.limit_batches))
    print(f"\nTo build such a network slim at once, make its layers so:\n{pruning.suggest()}")
    print(f"\nTo go on with the pruned one:\n  load_pruned(Classifier, {str(slim)!r})")
    print(f"\nTo look at the widths and the accuracy over time:\n  tensorboard --logdir {arguments.log_dir}\n")


if __name__ == "__main__":
    main()
