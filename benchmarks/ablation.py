"""Cumulative ablation: the engine against the plain loop and against the floor, side by side in one run.

The plain loop runs the whole model for each point. The floor is what no engine can beat without batching differently:
one full forward pass, and for each point one pass of the same batch through what lies behind the layer, cut by hand.
All three score every image. The engine's time is that of `cumulative_ablation(points=...)`, with recording, its check
against the whole model, and all rounds of refining; the floor gets the points that came out of it.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --threads 1 --processor-time   # on a machine that others use too
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unitrole.ablation import cumulative_ablation
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import UnitLayer, find_unit_layers
from lightning_unitrole.reports.curves import AblationCurve

Data = list[tuple[Tensor, Tensor]]


@dataclass
class Case:
    """A network cut by hand at one layer: `behind(*before(x))` is what the network returns."""

    name: str
    net: nn.Module
    layer: str
    before: Callable[[Tensor], tuple[Tensor, Tensor]]
    behind: Callable[[Tensor, Tensor], Tensor]


def vgg16() -> Case:
    net = torchvision.models.vgg16(weights=None)

    def before(x: Tensor) -> tuple[Tensor, Tensor]:
        maps = net.features[:30](x)
        return maps, maps

    def behind(maps: Tensor, _: Tensor) -> Tensor:
        return net.classifier(torch.flatten(net.avgpool(net.features[30:](maps)), 1))

    return Case("VGG-16 block5_conv3", net, "features.28", before, behind)


def resnet50() -> Case:
    net = torchvision.models.resnet50(weights=None)

    def before(x: Tensor) -> tuple[Tensor, Tensor]:
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        maps = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return maps, maps

    def behind(maps: Tensor, _: Tensor) -> Tensor:
        return net.fc(torch.flatten(net.avgpool(maps), 1))

    return Case("ResNet-50 layer4, last", net, "layer4.2.conv3", before, behind)


def resnet50_inner() -> Case:
    net = torchvision.models.resnet50(weights=None)

    def before(x: Tensor) -> tuple[Tensor, Tensor]:
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        shortcut = net.layer4[0](net.layer3(net.layer2(net.layer1(x))))
        block = net.layer4[1]
        return block.relu(block.bn1(block.conv1(shortcut))), shortcut

    def behind(maps: Tensor, shortcut: Tensor) -> Tensor:
        block = net.layer4[1]
        out = block.bn3(block.conv3(block.relu(block.bn2(block.conv2(maps)))))
        out = net.layer4[2](block.relu(out + shortcut))
        return net.fc(torch.flatten(net.avgpool(out), 1))

    return Case("ResNet-50 layer4.1.conv1", net, "layer4.1.conv1", before, behind)


def mobilenet() -> Case:
    net = torchvision.models.mobilenet_v3_large(weights=None)

    def before(x: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = net.features[:14](x)
        return net.features[14].block[:2](shortcut), shortcut

    def behind(maps: Tensor, shortcut: Tensor) -> Tensor:
        out = net.features[14].block[2:](maps) + shortcut
        return net.classifier(torch.flatten(net.avgpool(net.features[15:](out)), 1))

    return Case("MobileNetV3-L block 14", net, "features.14.block.1.0", before, behind)


def plain(case: Case, layer: UnitLayer, order: Tensor, data: Data, numbers: list[int]) -> list[float]:
    losses = []
    for number in numbers:
        on = torch.ones(layer.num_units, device=order.device)
        on[order[:number]] = 0
        with UnitTap(case.net, [layer], lambda _, maps, on=on: maps * on[:, None, None]):
            losses.append(mean_loss([score(case.net(x), y) for x, y in data]))
    return losses


def floor(case: Case, layer: UnitLayer, order: Tensor, data: Data, numbers: list[int]) -> list[float]:
    scores: list[list[Tensor]] = [[] for _ in numbers]
    for x, y in data:
        maps, shortcut = case.before(x)
        case.behind(maps, shortcut)  # the rest of the one full forward pass
        for number, of_number in zip(numbers, scores, strict=True):
            on = torch.ones(layer.num_units, device=order.device)
            on[order[:number]] = 0
            of_number.append(score(case.behind(maps * on[:, None, None], shortcut), y))
    return [mean_loss(of_number) for of_number in scores]


def score(logits: Tensor, targets: Tensor) -> Tensor:
    loss = F.cross_entropy(logits.double(), targets, reduction="none")
    top5 = (logits.topk(5).indices == targets[:, None]).any(1)
    return torch.stack([loss, (logits.argmax(1) == targets).double(), top5.double()], dim=1)


def mean_loss(scores: list[Tensor]) -> float:
    return float(torch.cat(scores)[:, 0].mean())


def timed(function: Callable[[], object], options: argparse.Namespace) -> float:
    clock = time.process_time if options.processor_time else time.perf_counter
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def randomise(net: nn.Module) -> None:
    """Normalisation statistics of random weights are degenerate, and with them all logits alike."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)


def run(case: Case, options: argparse.Namespace, device: torch.device) -> str | None:
    """One line of the table; None when the three ways do not agree."""
    randomise(case.net)
    case.net.to(device).eval()
    data = [
        (torch.randn(size, 3, 224, 224, device=device), torch.randint(0, 1000, (size,), device=device))
        for size in [options.batch] * options.batches
    ]
    with torch.no_grad():
        layer = find_unit_layers(case.net, case.net, data[0][0][:2]).layers[case.layer]
        order = torch.randperm(layer.num_units).to(device)

        def engine() -> AblationCurve:
            return cumulative_ablation(case.net, layer, order, data, points=options.points)

        curve = engine()
        numbers = curve.ablated.tolist()
        some = [0, len(numbers) // 2, len(numbers) - 1]
        expected = torch.tensor(floor(case, layer, order, data, numbers), dtype=torch.float64)
        whole = torch.tensor(plain(case, layer, order, data, [numbers[index] for index in some]), dtype=torch.float64)
        gap = max(float((curve.loss - expected).abs().max()), float((curve.loss[some] - whole).abs().max()))
        if gap > 2e-3 * float(expected.abs().max()):
            print(f"{case.name}: the engine's loss differs from the plain loop or the floor by {gap:.2e}; no figures.")
            return None
        times: dict[str, list[float]] = {"engine": [], "floor": [], "plain": []}
        for _ in range(options.repeats):
            times["engine"].append(timed(engine, options))
            times["floor"].append(timed(lambda: floor(case, layer, order, data, numbers), options))
            seconds = timed(lambda: plain(case, layer, order, data, numbers[some[1] : some[1] + 1]), options)
            times["plain"].append(seconds * len(numbers))
    over_floor = [a / b for a, b in zip(times["engine"], times["floor"], strict=True)]
    over_engine = [a / b for a, b in zip(times["plain"], times["engine"], strict=True)]
    return (
        f"| {case.name} | {layer.num_units} | {len(numbers)} | {min(times['plain']):.2f} | {min(times['floor']):.2f} | "
        f"{min(times['engine']):.2f} | {statistics.median(over_floor):.2f} "
        f"({min(over_floor):.2f}-{max(over_floor):.2f}) | {statistics.median(over_engine):.1f} |"
    )


def main() -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64 if cuda else 4)
    parser.add_argument("--batches", type=int, default=8 if cuda else 3)
    parser.add_argument("--points", type=int, default=64 if cuda else 24)
    parser.add_argument("--repeats", type=int, default=5 if cuda else 3)
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processor-time", action="store_true", help="for a machine that others use too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(0)
    clock = "processor" if options.processor_time else "wall-clock"
    machine = torch.cuda.get_device_name() if cuda else f"{platform.processor() or platform.machine()}"
    print(
        f"{machine}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; float32, 224 pixels, {options.batches} batches of {options.batch}, "
        f"points={options.points}, {options.repeats} repeats, interleaved; {clock} seconds are the "
        "least, ratios the median (least-most); the plain loop is timed on one point and scaled.\n"
    )
    print(
        "| layer | units | points measured | plain loop, s | floor, s | engine, s | engine / floor | plain / engine |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for make in (vgg16, resnet50, resnet50_inner, mobilenet):
        case = make()
        if options.case not in case.name:
            continue
        line = run(case, options, device)
        if line is None:
            return 1
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
