"""What the scripts of this folder share: arguments, images, networks, training with a cache, tables and plots."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unitrole import UnitReport, UnitRoleMonitor, feature_entropy
from lightning_unitrole.ranking.criteria import UnitStatistics
from lightning_unitrole.reports.tables import text_table

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VGG = "16,16,M,32,32,32,M,64,64"
"""Plan of the small VGG: widths of convolutions, and M for a pooling that halves the maps."""
VGG16 = "64,64,M,128,128,M,256,256,256,M,512,512,512,M,512,512,512"
"""Plan of VGG-16 for small images, with one linear layer instead of three."""
FLAT = "16,M,32,32,32,32,32"
"""Plan of a network that keeps one map size over five layers."""


# Arguments


def parse(
    argv: Sequence[str] | None,
    description: str | None,
    *,
    cost: str,
    full: Mapping[str, Any],
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    **defaults: Any,
) -> argparse.Namespace:
    """Arguments that all scripts have, and what the script costs, printed before it starts.

    Args:
        argv: the command line without the name of the program; None for that of the process.
        description: what the script answers.
        cost: how long the default settings take.
        full: defaults that ``--full`` replaces.
        options: adds arguments of the script's own.
        **defaults: defaults of the script for the arguments below.
    """
    parser = argparse.ArgumentParser(description=description, epilog=f"Cost: {cost}")
    parser.add_argument("--data", type=Path, help="folder with train/<class>/ and test/<class>/; default: CIFAR-10")
    parser.add_argument("--download-to", type=Path, default=Path("data"), help="where CIFAR-10 is downloaded to")
    parser.add_argument("--cache", type=Path, default=Path("build/reproduction"), help="trained networks and images")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of CSV and PNG")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="larger networks and all the data, for a GPU")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--train-per-class", type=int, default=500, help="training images of each class")
    parser.add_argument("--test-per-class", type=int, default=100, help="test images of each class")
    parser.add_argument("--images-per-class", type=int, default=40, help="images of each class that are analysed")
    parser.add_argument("--ablation-points", type=int, default=16)
    parser.add_argument("--width", type=float, default=1.0, help="factor on the widths of the networks")
    options(parser)
    parser.set_defaults(**defaults)
    if parser.parse_known_args(argv)[0].full:
        parser.set_defaults(**full)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    print(f"Estimated cost: {cost}", file=sys.stderr)
    return arguments


# Images


@dataclass(frozen=True)
class Images:
    """Images of both splits as ``[N, 3, 32, 32]`` bytes with labels ``[N]``, and the names of the classes."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    names: tuple[str, ...]

    def sample(self, split: str, per_class: int, *, seed: int, random_labels: float = 0.0) -> TensorDataset:
        """So many images of each class, normalised, in random order; a share of them with random labels."""
        images, labels = getattr(self, split)
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=draw)
        chosen = torch.cat([order[labels[order] == c][:per_class] for c in range(len(self.names))])
        chosen = chosen[torch.randperm(len(chosen), generator=draw)]
        labels = labels[chosen]
        wrong = torch.randperm(len(labels), generator=draw)[: round(random_labels * len(labels))]
        labels[wrong] = torch.randint(len(self.names), (len(wrong),), generator=draw)
        scaled = images[chosen].float() / 255
        return TensorDataset((scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), labels)


def load_images(options: argparse.Namespace) -> Images:
    """All images, decoded once and kept in the cache."""
    import torchvision
    from torchvision.transforms import functional as transform

    source = str(options.data.resolve() if options.data else "CIFAR10")
    stored = options.cache / f"images-{digest(source)}.pt"
    if stored.exists():
        found = torch.load(stored, weights_only=True)
        return Images(tuple(found["train"]), tuple(found["test"]), tuple(found["names"]))

    def decode(split: str) -> tuple[Tensor, Tensor, list[str]]:
        if options.data is None:
            cifar = torchvision.datasets.CIFAR10(options.download_to, train=split == "train", download=True)
            return torch.from_numpy(cifar.data).permute(0, 3, 1, 2), torch.tensor(cifar.targets), cifar.classes
        folder = torchvision.datasets.ImageFolder(options.data / split)
        shown = progress(folder, f"reading {split} images")
        pixels = [transform.pil_to_tensor(transform.resize(image, [32, 32])) for image, _ in shown]
        return torch.stack(pixels), torch.tensor(folder.targets), folder.classes

    (*train, names), (*test, _) = decode("train"), decode("test")
    stored.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"train": train, "test": test, "names": names}, stored)
    return Images(tuple(train), tuple(test), tuple(names))


def augmented(images: Tensor) -> Tensor:
    """Random flips and shifts by up to four pixels, each image its own."""
    count, _, height, width = images.shape
    device = images.device
    flips = torch.rand(count, 1, 1, 1, device=device) < 0.5
    padded = F.pad(torch.where(flips, images.flip(3), images), (4, 4, 4, 4))
    rows = torch.randint(9, (count, 1), device=device) + torch.arange(height, device=device)
    columns = torch.randint(9, (count, 1), device=device) + torch.arange(width, device=device)
    index = torch.arange(count, device=device)
    return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


# Networks

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


class Resize(nn.Module):
    """Scales images to one size, so that this number alone sets the map sizes of a network."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, size, size]``."""
        if images.shape[-1] == self.size:
            return images
        return F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)


def vgg(plan: str, *, size: int, activation: str = "relu", dropout: float = 0.0, classes: int = 10) -> nn.Sequential:
    """Convolutions with batch normalisation and an activation, poolings, and one linear layer.

    Convolutions are called ``conv<number>_<side of its maps>``.
    """
    net = nn.Sequential()
    net.add_module("resize", Resize(size))
    channels, number = 3, 0
    for entry in plan.split(","):
        if entry == "M":
            net.add_module(f"pool{number}", nn.MaxPool2d(2))
            size //= 2
            continue
        number += 1
        net.add_module(f"conv{number}_{size}", nn.Conv2d(channels, int(entry), 3, padding=1, bias=False))
        net.add_module(f"norm{number}", nn.BatchNorm2d(int(entry)))
        net.add_module(f"act{number}", ACTIVATIONS[activation]())
        channels = int(entry)
    net.add_module("average", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("dropout", nn.Dropout(dropout))
    net.add_module("linear", nn.Linear(channels, classes))
    return net


class PaddedShortcut(nn.Module):
    """A shortcut without weights, to more and smaller maps: those added are zero (option A of He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, outputs, H / stride, W / stride]``."""
        added = (self.outputs - self.inputs) // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, added, added))


class Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else PaddedShortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, outputs, H / stride, W / stride]``."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016 with ``6 * blocks + 2`` layers."""

    def __init__(self, blocks: int, *, width: int = 16, size: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.resize = Resize(size)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, 1)
        self.layer2 = self._stage(blocks, width, 2 * width, 2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]``."""
        x = F.relu(self.bn1(self.conv1(self.resize(images))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def published(path: Path) -> tuple[nn.Module, str]:
    """Network and name of a file of weights: a CIFAR ResNet with option-A shortcuts, or that of ``vgg16.py``."""
    stored = torch.load(path, weights_only=True, map_location="cpu")
    state = {key.removeprefix("module."): value for key, value in stored.get("state_dict", stored).items()}
    if "plan" in stored:
        net, name = vgg(stored["plan"], size=32), "VGG-16-BN"
    else:
        blocks = len({key.split(".")[1] for key in state if key.startswith("layer1.")})
        net, name = ResNet(blocks), f"ResNet-{6 * blocks + 2}"
    net.load_state_dict(state)
    return net.eval().to(device()), name


def widened(plan: str, factor: float) -> str:
    """A plan with all widths multiplied."""
    return ",".join(entry if entry == "M" else str(max(4, round(int(entry) * factor))) for entry in plan.split(","))


# Training


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a network comes out: its hash is its name in the cache.

    Attributes:
        plan: of :func:`vgg`, or ``resnet<depth>``.
        size: side to which images are scaled.
        width: width of the first stage of a ResNet.
        random_labels: share of the training images with random labels.
        layers: what the monitor looks at.
        every_n_epochs: how often it does; 0 for not at all.
    """

    plan: str
    seed: int
    size: int = 28
    width: int = 16
    activation: str = "relu"
    dropout: float = 0.0
    train_per_class: int
    test_per_class: int
    random_labels: float = 0.0
    augment: bool = False
    weight_decay: float = 5e-4
    learning_rate: float = 0.05
    batch_size: int = 64
    epochs: int
    layers: str | tuple[str, ...] = "all"
    every_n_epochs: int = 0
    images_per_class: int = 40
    ablation_points: int = 0

    def network(self, classes: int) -> nn.Module:
        """The network with its first weights."""
        torch.manual_seed(self.seed)
        if self.plan.startswith("resnet"):
            blocks = (int(self.plan.removeprefix("resnet")) - 2) // 6
            return ResNet(blocks, width=self.width, size=self.size, classes=classes)
        return vgg(self.plan, size=self.size, activation=self.activation, dropout=self.dropout, classes=classes)


@dataclass(frozen=True)
class Run:
    """A trained network in evaluation mode, what was logged in each epoch, the monitor's reports, and the images."""

    net: nn.Module
    history: list[dict[str, float]]
    reports: list[UnitReport]
    train: TensorDataset
    test: TensorDataset


class Classifier(pl.LightningModule):
    """A network, its loss and its optimizer; knows nothing of the monitor."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.net, self.recipe = net, recipe

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        images, labels = batch
        logits = self(augmented(images) if self.recipe.augment else images)
        loss = F.cross_entropy(logits, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.log("train_accuracy", (logits.argmax(1) == labels).float().mean(), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        images, labels = batch
        logits = self(images)
        self.log("test_loss", F.cross_entropy(logits, labels))
        self.log("test_accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD with momentum and a cosine schedule."""
        settings = {"lr": self.recipe.learning_rate, "weight_decay": self.recipe.weight_decay}
        optimizer = torch.optim.SGD(self.parameters(), momentum=0.9, nesterov=True, **settings)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.recipe.epochs),
        }


class History(pl.Callback):
    """Keeps what was logged, one entry an epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the four measures of the epoch."""
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        logged = {name: float(trainer.callback_metrics[name]) for name in names}
        self.epochs.append({"epoch": trainer.current_epoch + 1, **logged})


def train(recipe: Recipe, images: Images, options: argparse.Namespace, weights: Path | None = None) -> Run:
    """Train with Lightning and the monitor, or take the run from the cache.

    Args:
        recipe: what to train, and how.
        images: all images.
        options: of the command line.
        weights: a file for :func:`published` whose network is trained on; None for a new one by the recipe's plan.
    """
    train_data = images.sample("train", recipe.train_per_class, seed=recipe.seed, random_labels=recipe.random_labels)
    test_data = images.sample("test", recipe.test_per_class, seed=0)
    known = [asdict(recipe), checksum(train_data), checksum(test_data)]
    if weights is None:
        net = recipe.network(len(images.names))
    else:
        net = published(weights)[0].cpu().train()
        known.append(hashlib.sha256(weights.read_bytes()).hexdigest())
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout
    stored = options.cache / f"run-{digest(known)}.pt"
    if not stored.exists():
        history, reports = fit(net, recipe, train_data, test_data)
        state = {"weights": net.state_dict(), "history": history, "reports": [r.state_dict() for r in reports]}
        stored.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, stored)
    state = torch.load(stored, weights_only=True, map_location="cpu")
    net.load_state_dict(state["weights"])
    reports = [UnitReport.from_state_dict(report) for report in state["reports"]]
    return Run(net.eval().to(device()), state["history"], reports, train_data, test_data)


def fit(
    net: nn.Module, recipe: Recipe, train_data: TensorDataset, test_data: TensorDataset
) -> tuple[list[dict[str, float]], list[UnitReport]]:
    """Train a network; returns what was logged, and the monitor's reports."""
    history = History()
    callbacks: list[pl.Callback] = [history]
    monitor = None
    if recipe.every_n_epochs:
        monitor = UnitRoleMonitor(
            layers=recipe.layers if isinstance(recipe.layers, str) else list(recipe.layers),
            images_per_class=recipe.images_per_class,
            every_n_epochs=recipe.every_n_epochs,
            ablation_points=recipe.ablation_points,
            roles="turning_point",
        )
        callbacks.append(monitor)
    pl.seed_everything(recipe.seed, verbose=False)
    trainer = pl.Trainer(
        max_epochs=recipe.epochs,
        callbacks=callbacks,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    trainer.fit(
        Classifier(net.to(memory_format=torch.channels_last), recipe),
        DataLoader(train_data, batch_size=recipe.batch_size, shuffle=True),
        DataLoader(test_data, batch_size=256),
    )
    reports = [] if monitor is None else [*monitor.history, *([monitor.report] if monitor.report else [])]
    return history.epochs, reports


def main_recipe(options: argparse.Namespace, seed: int, **changes: Any) -> Recipe:
    """The small VGG on 28 pixels, which several scripts share, with changes."""
    recipe = Recipe(
        plan=widened(VGG, options.width),
        seed=seed,
        train_per_class=options.train_per_class,
        test_per_class=options.test_per_class,
        augment=True,
        epochs=options.epochs,
        every_n_epochs=1,
        images_per_class=options.images_per_class,
    )
    return replace(recipe, **changes)


def random_network(recipe: Recipe, images: Images, data: TensorDataset) -> nn.Module:
    """The same network with random weights, its batch normalisation set to the statistics of the data."""
    net = replace(recipe, seed=recipe.seed + 1000).network(len(images.names)).to(device())
    recalibrate(net, data)
    return net


def recalibrate(net: nn.Module, data: TensorDataset) -> None:
    """Set the statistics of all batch normalisations to those of some images; leaves evaluation mode on."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    net.train()
    with torch.no_grad():
        for inputs, _ in DataLoader(data, batch_size=256):
            net(inputs.to(device()))
    net.eval()


@torch.no_grad()
def evaluate(net: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Mean loss and accuracy in evaluation mode."""
    loss, right = 0.0, 0
    for inputs, labels in DataLoader(data, batch_size=256):
        logits, labels = net(inputs.to(device())), labels.to(device())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
    return loss / len(data), right / len(data)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Numbers


def corrected_entropy(statistics: UnitStatistics) -> Tensor:
    """A criterion: minus the entropy with the correction of Miller and Madow, as few births bias the plain one low."""
    births = statistics.counts[..., 1:]
    bias = ((births > 0).sum(-1) - 1) / (2 * births.sum(-1))
    return -(feature_entropy(statistics.counts)[0] + bias)


def finite_mean(values: Tensor) -> float:
    """Mean over the finite values; NaN where there is none."""
    return float(values[values.isfinite()].mean()) if bool(values.isfinite().any()) else float("nan")


def auc(low: Iterable[float], high: Iterable[float]) -> float:
    """Probability that a value of ``low`` is below one of ``high``; ties count half, NaN as largest."""
    a, b = (np.nan_to_num(np.asarray(list(v), dtype=float), nan=np.inf) for v in (low, high))
    ranks = rankdata(np.concatenate([a, b]))
    return 1 - (ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b))


def rank_correlation(a: Iterable[float], b: Iterable[float]) -> float:
    """Spearman's rank correlation over the pairs of finite values; NaN where one side is constant."""
    pairs = np.asarray([list(a), list(b)], dtype=float)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    if pairs.shape[1] < 3 or (pairs.max(1) == pairs.min(1)).any():
        return float("nan")
    return float(spearmanr(pairs[0], pairs[1]).statistic)


def spread(values: Iterable[float], form: str = "+.3f") -> str:
    """Mean and standard deviation over seeds, in words."""
    known = np.asarray([value for value in values if np.isfinite(value)], dtype=float)
    if len(known) == 0:
        return "-"
    return f"{known.mean():{form}} ± {known.std(ddof=1) if len(known) > 1 else 0:{form.lstrip('+')}}"


# Files


def digest(value: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def checksum(data: TensorDataset) -> str:
    """A short hash of images and labels."""
    parts = [tensor.contiguous().numpy().tobytes() for tensor in data.tensors]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def progress(steps: Iterable[Any], description: str) -> Any:
    """A progress bar around work."""
    from tqdm import tqdm

    return tqdm(steps, desc=description, mininterval=1.0)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a row, the keys of the first row as head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    print(f"wrote {path}", file=sys.stderr)


def select(rows: Iterable[Mapping[str, Any]], value: str, **wanted: Any) -> list[Any]:
    """One column of the rows that have the wanted entries."""
    return [row[value] for row in rows if all(row[key] == entry for key, entry in wanted.items())]


def figure(panels: int = 1, *, width: float = 4.2, height: float = 3.2) -> tuple[Any, list[Any]]:
    """A figure without a window, and its axes side by side."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width * panels, height), layout="constrained")
    return drawn, list(np.atleast_1d(drawn.subplots(1, panels)))


def save_plot(drawn: Any, path: Path) -> None:
    """A small PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=80)
    print(f"wrote {path}", file=sys.stderr)


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for the terminal."""
    print(text_table([list(head), *([str(cell) for cell in row] for row in rows)]))
