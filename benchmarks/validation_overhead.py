"""What the monitor adds to a validation epoch at its defaults, without ablation: ResNet-18 and VGG-16.

Epochs with and without the monitor alternate; medians and the median of the ratios pair by pair are printed. With
``--recorded 1`` every validation image is recorded, which is the worst case: of a larger set only images_per_class of
each class are, a tenth of CIFAR-10's test images at the defaults. The pass over training images that follows comes
once an analysed epoch and costs what so many images cost in validation; it stands in a column of its own. Images are
random numbers held in memory, so no data loader hides the monitor's cost.
"""

import argparse
import logging
import platform
import statistics
import sys
import time
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unitrole import UnitRoleMonitor, birth_points

NETWORKS = {"resnet18": torchvision.models.resnet18, "vgg16": torchvision.models.vgg16_bn}


class Classifier(pl.LightningModule):
    """A network and its validation loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.network(images)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy, as anybody logs them."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())


class Stopwatch(pl.Callback):
    """Seconds of the validation loop, and of what callbacks do when it is over. Comes before them in the trainer."""

    def on_validation_batch_start(self, *_: Any) -> None:
        """Start, at the first batch."""
        if self.start is None:
            _synchronize()
            self.start = time.perf_counter()

    def on_validation_epoch_start(self, *_: Any) -> None:
        """Get ready."""
        self.start: float | None = None

    def on_validation_epoch_end(self, *_: Any) -> None:
        """The loop is over; other callbacks come next."""
        _synchronize()
        self.loop = time.perf_counter() - (self.start or 0.0)

    def on_validation_end(self, *_: Any) -> None:
        """They are done."""
        _synchronize()
        self.after = time.perf_counter() - (self.start or 0.0) - self.loop


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gate() -> None:
    """Refuse to time what is wrong: births of the backend in use must be those of ripser."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    maps = torch.relu(torch.randn(64, 14, 14, generator=torch.Generator().manual_seed(0)))
    if birth_points(maps.to(device)).cpu().tolist() != birth_points(maps, backend="ripser").tolist():
        sys.exit("The birth points of this machine's backend are wrong; no figure is printed.")


def measure(
    name: str, size: int, images: int, classes: int, repeats: int, recorded: float
) -> list[tuple[float, float, float]]:
    """Seconds of the loop without the monitor, with it, and of its pass over training images, for each repeat."""
    model = Classifier(NETWORKS[name](num_classes=classes))
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(images, 3, size, size, generator=generator), torch.arange(images) % classes)
    loader = DataLoader(data, batch_size=32)
    per_class = max(1, round(recorded * images / classes))
    monitor = UnitRoleMonitor(ablation_points=0, train_data=loader, images_per_class=per_class)
    watch = Stopwatch()

    def epoch(*callbacks: pl.Callback) -> tuple[float, float]:
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            callbacks=[watch, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.validate(model, loader, verbose=False)
        return watch.loop, watch.after

    epoch(monitor)
    return [(epoch()[0], *epoch(monitor)) for _ in range(repeats)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=256, help="images of an epoch at 32 pixels; a quarter at 224")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--recorded", type=float, default=1.0, help="share of the images that are recorded")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--pixels", nargs="+", type=int, choices=(32, 224), default=[32, 224])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    gate()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, Python {platform.python_version()}, torch {torch.__version__}, Lightning {pl.__version__}")
    print(f"{'network':<10}{'pixels':>7}{'images':>8}{'without':>10}{'with':>10}{'ratio':>8}{'training pass':>15}")
    for name in arguments.networks:
        for size in arguments.pixels:
            images = arguments.images if size == 32 else max(arguments.images // 4, arguments.classes)
            rounds = measure(name, size, images, arguments.classes, arguments.repeats, arguments.recorded)
            without, with_monitor, after = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(tapped / plain for plain, tapped, _ in rounds)
            print(
                f"{name:<10}{size:>7}{images:>8}{without:>9.3f}s{with_monitor:>9.3f}s{ratio:>8.2f}{after:>14.3f}s",
                flush=True,
            )


if __name__ == "__main__":
    main()
