"""Ways to choose the units to prune, side by side: same trained networks, same fine-tuning, same share of MACs.

A small VGG and a small ResNet are trained on a part of CIFAR-10, lose their units at once, and are fine-tuned. Units
are chosen on images that are neither trained nor tested on; the accuracy is that on test images. No figure is printed
unless the smaller networks compute what the masked ones do.

    python benchmarks/pruning.py --cache DIR                  # downloads CIFAR-10; a broken run goes on where it was
    python benchmarks/pruning.py --cache DIR --data FOLDER    # with train/<class>/ and test/<class>/
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import logging
import platform
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unitrole import UnitPruning, UnitRoleMonitor, load_pruned
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.network import count_macs, count_parameters
from lightning_unitrole.pruning.removal import plan_removal, remove

CHOICES = ("evidence", "roles", "feature_entropy", "filter_norm", "mean_activation", "random")
GROUP_NORM, SCRATCH, UNPRUNED = "Torch-Pruning group norm", "slim from scratch", "not pruned"
AMOUNTS = (0.3, 0.5, 0.7)
FINE_RATE = 0.02
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Data = dict[str, TensorDataset]


def convolution(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = convolution(inputs, outputs, stride), convolution(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, stride, size=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the block."""
        return F.relu(self.second(F.relu(self.first(maps))) + self.shortcut(maps))


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 16, "pool", 32, 32, "pool", 64, 64):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [convolution(channels, width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def resnet() -> nn.Sequential:
    blocks = [Block(12, 12, 1), Block(12, 24, 2), Block(24, 48, 2)]
    return nn.Sequential(
        convolution(3, 12), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)
    )


NETWORKS = {"VGG-7": vgg, "ResNet-8": resnet}


class Classifier(pl.LightningModule):
    """A network, its loss, and SGD with one cycle of the learning rate."""

    def __init__(self, network: str, rate: float) -> None:
        super().__init__()
        self.net, self.rate = NETWORKS[network](), rate

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 10]`` of images ``[B, 3, 32, 32]``."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch, half of it mirrored."""
        images, labels = batch
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        return F.cross_entropy(self(torch.where(mirrored, images.flip(3), images)), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Nothing: the validation images only choose the units."""

    def configure_optimizers(self) -> dict:
        """SGD that warms up and then slows down to nothing."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StartingAccuracy(pl.Callback):
    """Tests the network when its units are gone and nothing is fine-tuned yet; stands behind UnitPruning."""

    def __init__(self, test: TensorDataset) -> None:
        self.test, self.accuracy = test, float("nan")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test."""
        if trainer.current_epoch == 0:
            self.accuracy = accuracy(pl_module, self.test)
            pl_module.train()


def images(options: argparse.Namespace) -> Data:
    """Training, validation (the last fifth of the training images) and test images, decoded once."""
    decode = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(MEAN, STD)]
    )
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "val": [], "test": []}
    for split, count in (("train", options.train_per_class), ("test", options.test_per_class)):
        if options.data is None:
            source = torchvision.datasets.CIFAR10(options.download_to, train=split == "train", download=True)
        else:
            source = torchvision.datasets.ImageFolder(options.data / split)
        targets = torch.tensor(source.targets)
        for label in range(10):
            indices = (targets == label).nonzero().flatten()[:count].tolist()
            decoded = torch.stack([decode(source[index][0]) for index in indices])
            cut = len(decoded) * 4 // 5 if split == "train" else len(decoded)
            parts[split].append((decoded[:cut], targets[indices[:cut]]))
            parts["val"].append((decoded[cut:], targets[indices[cut:]]))
    return {
        part: TensorDataset(torch.cat([x for x, _ in found]), torch.cat([y for _, y in found]))
        for part, found in parts.items()
    }


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    model.eval()
    right = [(model(x).argmax(1) == y).sum() for x, y in DataLoader(data, 250)]
    return int(sum(right)) / len(data)


def fit(model: Classifier, data: Data, epochs: int, seed: int, callbacks: list[pl.Callback]) -> None:
    torch.manual_seed(1000 + seed)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        check_val_every_n_epoch=epochs + 1,
    )
    trainer.fit(model, DataLoader(data["train"], 64, shuffle=True, drop_last=True), DataLoader(data["val"], 250))


def trained(network: str, seed: int, data: Data, options: argparse.Namespace) -> Classifier:
    """A network after its training, from the cache where it is there."""
    torch.manual_seed(seed)
    model, path = Classifier(network, options.rate), options.cache / f"{network}-{seed}.pt"
    if not path.exists():
        fit(model, data, options.epochs, seed, [])
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path))
    return model


def prune_by_group_norm(model: Classifier, amount: float, example: Tensor) -> Classifier:
    """The least that Torch-Pruning's pruner takes to remove this share of the MACs."""
    target = (1 - amount) * macs_of(model, example)
    low, high, best = 0.0, 1.0, model
    for _ in range(12):
        ratio, pruned = (low + high) / 2, copy.deepcopy(model)
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(
            pruned, example, importance, global_pruning=True, pruning_ratio=ratio, ignored_layers=[pruned.net[-1]]
        ).step()
        if macs_of(pruned, example) <= target:
            high, best = ratio, pruned
        else:
            low = ratio
    return best


def macs_of(model: nn.Module, example: Tensor) -> int:
    return count_macs(model, model, example, batch=len(example))


def outcome(network: str, method: str, amount: float, seed: int, data: Data, options: argparse.Namespace) -> dict:
    """One line of results: prune a trained network in one way, fine-tune and test it."""
    model, example = trained(network, seed, data, options), data["val"].tensors[0][:2]
    kept = options.cache / f"{network}-{seed}-{amount}-evidence.pt"
    start, callbacks, epochs = StartingAccuracy(data["test"]), [], options.fine_epochs
    before, started = macs_of(model, example), time.perf_counter()
    if method in CHOICES:
        monitor = UnitRoleMonitor(images_per_class=options.images_per_class, ablation_points=options.ablation_points)
        callbacks = [UnitPruning(choose_by=method, amount=amount, start_epoch=0, monitor=monitor)]
    elif method == GROUP_NORM:
        model = prune_by_group_norm(model, amount, example)
    elif method == SCRATCH:
        model, epochs = load_pruned(lambda: Classifier(network, options.rate), kept), options.epochs + epochs
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    model.rate = options.rate if method == SCRATCH else FINE_RATE
    fit(model.train(), data, epochs, seed, [*callbacks, start])
    if method == "evidence":
        torch.save(model.state_dict(), kept)
    return {
        "network": network,
        "removed": amount,
        "method": method,
        "seed": seed,
        "test_accuracy": accuracy(model, data["test"]),
        "before_fine_tuning": start.accuracy,
        "macs": macs_of(model, example),
        "macs_removed": 1 - macs_of(model, example) / before,
        "parameters": count_parameters(model),
        "seconds": time.perf_counter() - started,
    }


def same_outputs(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a smaller network computes what the masked one does, with a random third of its units gone."""
    model, inputs = copy.deepcopy(model).double().eval(), inputs.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    graph = channel_graph(model, model, inputs, batch=len(inputs))
    groups = [group for group in graph.groups if group.reason is None]
    removal = plan_removal(
        graph, {group.name: torch.randperm(len(group))[: len(group) // 3].tolist() for group in groups}
    )
    with torch.no_grad():
        whole = model(inputs)
        mask = UnitMask(model, removal)
        masked = model(inputs)
        mask.restore()
        remove(model, removal)
        return bool((model(inputs) - masked).abs().max() < 1e-10 < (whole - masked).abs().max())


def cells(seeds: int) -> list[tuple[str, str, float, int]]:
    methods = (*CHOICES, GROUP_NORM, SCRATCH)
    return [
        (network, method, amount, seed)
        for seed in range(seeds)
        for network in NETWORKS
        for method, amount in [(UNPRUNED, 0.0), *((method, amount) for amount in AMOUNTS for method in methods)]
    ]


def seconds_an_epoch(network: str, data: Data) -> float:
    model, times = Classifier(network, 0.1), []
    for _ in range(5):
        start = time.perf_counter()
        model.training_step(tuple(tensor[:64] for tensor in data["train"].tensors), 0).backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * len(data["train"]) / 64


def cost(data: Data, options: argparse.Namespace) -> str:
    """What lies ahead, roughly: a network that lost a share of its MACs is taken to be quicker by half of it."""
    shares = [1 - amount / 2 for amount in AMOUNTS]
    fine, whole = options.fine_epochs, options.epochs + options.fine_epochs
    epochs = whole + sum(shares) * ((len(CHOICES) + 1) * fine + whole)
    minutes = options.seeds * epochs * sum(seconds_an_epoch(network, data) for network in NETWORKS) / 60
    count = len(cells(options.seeds))
    return (
        f"{options.seeds * len(NETWORKS)} networks to train and {count} to fine-tune or train anew: about "
        f"{minutes:.0f} minutes, and as many again at most to choose units and test."
    )


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def table(results: list[dict], network: str, what: str) -> list[str]:
    """Markdown: methods down, amounts across; a star marks the best mean of those that started from trained weights."""
    lines = [f"| {network} | {' | '.join(f'{amount:.0%}' for amount in AMOUNTS)} |", "| --- | --- | --- | --- |"]
    found = {
        (method, amount): [
            line[what]
            for line in results
            if (line["network"], line["method"]) == (network, method) and line["removed"] in (amount, 0)
        ]
        for method in (UNPRUNED, *CHOICES, GROUP_NORM, SCRATCH)
        for amount in AMOUNTS
    }
    means = {key: statistics.mean(values) for key, values in found.items() if values}
    for method in (UNPRUNED, *CHOICES, GROUP_NORM, SCRATCH):
        entries = []
        for amount in AMOUNTS:
            rivals = [means.get((rival, amount), 0) for rival in (*CHOICES, GROUP_NORM)]
            star = " *" if method in (*CHOICES, GROUP_NORM) and means.get((method, amount)) == max(rivals) else ""
            entries.append(spread(found[method, amount]) + star)
        lines.append(f"| {method} | {' | '.join(entries)} |")
    return lines


def verdict(results: list[dict]) -> list[str]:
    """For each method, its lead over random units, paired by network, amount and seed."""
    by_cell = {(line["network"], line["removed"], line["seed"], line["method"]): line for line in results}
    lines = [
        "| points above random units, all pairs | mean | better in | MACs removed beyond the target |",
        "| --- | --- | --- | --- |",
    ]
    leads = {}
    for method in (*CHOICES, GROUP_NORM, SCRATCH):
        pairs = [
            (line["test_accuracy"] - by_cell[(*cell[:3], "random")]["test_accuracy"], line)
            for cell, line in by_cell.items()
            if cell[3] == method and (*cell[:3], "random") in by_cell
        ]
        if pairs:
            leads[method] = statistics.mean(lead for lead, _ in pairs)
            better, removed = (
                sum(lead > 0 for lead, _ in pairs),
                [line["macs_removed"] - line["removed"] for _, line in pairs],
            )
            lines.append(
                f"| {method} | {100 * leads[method]:+.1f} | {better} of {len(pairs)} | "
                f"{100 * statistics.mean(removed):+.1f} points |"
            )
    return [*lines, "", f"Best on average: {max(leads, key=leads.__getitem__, default='nothing yet')}."]


def report(results: list[dict], options: argparse.Namespace) -> str:
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, torchvision, pl))
    head = (
        f"{machine}, Python {platform.python_version()}, {versions}, Torch-Pruning {version('torch-pruning')}. "
        f"{options.train_per_class * 4 // 5} training, {options.train_per_class - options.train_per_class * 4 // 5} "
        f"validation and {options.test_per_class} test images a class, {options.epochs} epochs of training, "
        f"{options.fine_epochs} of fine-tuning, {options.seeds} seeds. Test accuracy, percent, by MACs removed: "
        "mean ± standard deviation over the seeds; * marks the best of those that started from trained weights."
    )
    tables = [
        "\n".join([f"{title}:", "", *table(results, network, what)])
        for what, title in (("test_accuracy", "After fine-tuning"), ("before_fine_tuning", "Before fine-tuning"))
        for network in NETWORKS
    ]
    return "\n\n".join([head, *tables, "\n".join(verdict(results))])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/<class>/ and test/<class>/ instead of a download")
    parser.add_argument("--download-to", type=Path, default=Path("data"))
    parser.add_argument("--train-per-class", type=int, default=250, help="the last fifth of them chooses the units")
    parser.add_argument("--test-per-class", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--fine-epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1, help="largest learning rate of training")
    parser.add_argument("--images-per-class", type=int, default=20, help="images that units are chosen on")
    parser.add_argument("--ablation-points", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("pruning-cache"), help="where networks and results are kept")
    parser.add_argument("--out", type=Path, default=Path("pruning.csv"))
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data = images(options)
    settings = {key: value for key, value in vars(options).items() if key not in ("seeds", "cache", "out", "threads")}
    options.cache = options.cache / hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    options.cache.mkdir(parents=True, exist_ok=True)
    print(cost(data, options), flush=True)
    path = options.cache / "results.jsonl"
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["network"], line["method"], line["removed"], line["seed"]) for line in results}
    for network in NETWORKS:
        if not same_outputs(trained(network, 0, data, options), data["val"].tensors[0][:4]):
            print(f"{network}: the smaller network's outputs differ from the masked network's; no figures.")
            return 1
    for cell in cells(options.seeds):
        if cell not in done:
            results.append(outcome(*cell, data, options))
            with path.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(
                ", ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in results[-1].values()),
                flush=True,
            )
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, results[0])
        writer.writeheader()
        writer.writerows(results)
    print(f"\n{report(results, options)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
