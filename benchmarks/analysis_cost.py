"""What one analysis costs, as a share of a training epoch: ResNet-18 and VGG-16 at 32 pixels, ResNet-50 at 224.

Everything that the monitor does in an epoch that it analyses is counted: the passes over training and validation images
with birth points and contributions, the curves, the checks and the roles. Training steps (SGD with momentum) are timed
in the same run, before and after. Every part grows linearly with the number of images, so with ``--scale`` below 1
fewer images are run and the figures are scaled up to the defaults, as the table says. Images are random numbers held in
memory.

``--passes`` prints what the contributions of one layer cost over 1 + 3 K passes through what lies behind it, K nodes:
one recorded pass and, for each node, one forward and about two for the backward pass.
"""

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unitrole import analyze


@dataclass(frozen=True)
class Setting:
    """A network, and the training that it is analysed in."""

    make: Callable[[], nn.Module]
    pixels: int
    classes: int
    epoch: int
    batch: int


def resnet18() -> nn.Module:
    """ResNet-18 with the stem that is usual for CIFAR."""
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


def vgg16() -> nn.Module:
    """VGG-16 with batch normalisation and one linear layer, as is usual for CIFAR."""
    net = torchvision.models.vgg16_bn(num_classes=10)
    net.avgpool, net.classifier = nn.Identity(), nn.Linear(512, 10)
    return net


SETTINGS = {
    "resnet18": Setting(resnet18, 32, 10, 50_000, 64),
    "vgg16": Setting(vgg16, 32, 10, 50_000, 64),
    "resnet50": Setting(torchvision.models.resnet50, 224, 1000, 1_281_167, 8),
}


def images(setting: Setting, classes: int, per_class: int) -> TensorDataset:
    """Random images, so many of each of the first classes."""
    generator = torch.Generator().manual_seed(0)
    count = classes * per_class
    pixels = torch.randn(count, 3, setting.pixels, setting.pixels, generator=generator)
    return TensorDataset(pixels, torch.arange(count) % classes)


def clock(processor: bool) -> float:
    """Seconds, once the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if processor else time.perf_counter()


def training_seconds(net: nn.Module, batch: tuple[Tensor, Tensor], processor: bool) -> float:
    """Seconds of a training step for each image."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    begun = 0.0
    for index in range(4):
        if index == 1:
            begun = clock(processor)
        optimizer.zero_grad()
        F.cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()
    return (clock(processor) - begun) / 3 / len(batch[1])


def measure(name: str, scale: float, most: int, processor: bool) -> tuple[float, float, float, int]:
    """Seconds of a training epoch, of the two passes and of the rest of an analysis at the defaults, and layers."""
    from lightning_unitrole.analysis.options import AnalysisOptions
    from lightning_unitrole.analysis.session import AnalysisSession
    from lightning_unitrole.network.runner import Runner

    setting = SETTINGS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    net = setting.make().to(device)
    options = AnalysisOptions()
    per_class, curve_images = options.images_of_each(setting.classes), options.curve_images_of_each(setting.classes)
    classes = setting.classes if scale == 1 else min(setting.classes, most)
    few, few_curves = max(4, round(per_class * scale)), max(1, round(curve_images * scale))
    data = images(setting, classes, few + few_curves)
    batch = tuple(tensor[: setting.batch].to(device) for tensor in data.tensors)
    before = training_seconds(net, batch, processor)  # type: ignore[arg-type]

    chosen = AnalysisOptions(images_per_class=few, curve_images=few_curves, num_classes=setting.classes)
    runner = Runner(net)
    session = AnalysisSession(runner, chosen, batch)
    loader = DataLoader(data, batch_size=setting.batch)
    samples = session.samples(session.probe(loader, name="train"), session.probe(loader, name="val", held_out=True))
    begun = clock(processor)
    session.observer.measure(samples.train, contributions=True)
    one_pass = clock(processor) - begun
    begun = clock(processor)
    session.report(samples)
    rest = max(clock(processor) - begun - 2 * one_pass, 0.0)
    after = training_seconds(net, batch, processor)  # type: ignore[arg-type]

    passes = 2 * one_pass * setting.classes * per_class / (classes * few)
    rest *= setting.classes * curve_images / (classes * few_curves)
    return (before + after) / 2 * setting.epoch, passes, rest, len(session.layers)


def through_analyze(name: str, scale: float, processor: bool) -> tuple[float, float]:
    """Seconds of a training epoch, and of ``analyze`` with 100 images a class, of which a share is run.

    Reads public names alone, so that it runs on earlier versions of the package as well.
    """
    setting = SETTINGS[name]
    torch.manual_seed(0)
    net, few = setting.make(), max(1, round(100 * scale))
    data, batch = images(setting, min(setting.classes, 10), few), images(setting, 10, 7).tensors
    steps = batch[0][: setting.batch], batch[1][: setting.batch]
    before = training_seconds(net, steps, processor)
    begun = clock(processor)
    analyze(net, DataLoader(data, setting.batch), DataLoader(data, setting.batch), images_per_class=few)
    taken = clock(processor) - begun
    after = training_seconds(net, steps, processor)
    return (before + after) / 2 * setting.epoch, taken * 100 / few


def passes_ratio(name: str, processor: bool) -> float:
    """Seconds of the contributions of the first layer, over 1 + 3 K passes through what lies behind it."""
    from lightning_unitrole.ablation.attribution import Attribution
    from lightning_unitrole.ablation.recorder import record
    from lightning_unitrole.analysis.options import AnalysisOptions
    from lightning_unitrole.analysis.session import AnalysisSession
    from lightning_unitrole.network.runner import Runner

    setting = SETTINGS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    net = setting.make().to(device).eval()
    data = images(setting, min(setting.classes, 10), 2 * setting.batch)
    options, runner = AnalysisOptions(num_classes=setting.classes), Runner(net)
    batch = tuple(tensor[: setting.batch].to(device) for tensor in data.tensors)
    session = AnalysisSession(runner, options, batch)
    layer = session.layers[0]
    loader = DataLoader(data, batch_size=setting.batch)
    sample = session.sample(session.probe(loader, name="train"))
    ratios = []
    with runner.undisturbed():
        attribution = Attribution(runner, [layer], setting.classes, steps=options.contribution_steps)
        for index, some in enumerate(sample):
            begun = clock(processor)
            attribution.add(some)
            taken = clock(processor) - begun
            begun = clock(processor)
            runner.forward(some.inputs)
            whole = clock(processor) - begun
            tape = record(runner, layer, some.inputs, set())
            begun = clock(processor)
            tape.replay_maps(tape.maps.clone())
            behind = clock(processor) - begun
            if index:  # the first batch also checks the recording
                ratios.append((taken - (whole - behind)) / ((1 + 3 * options.contribution_steps) * behind))
    return statistics.median(ratios)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=SETTINGS, default=["resnet18", "vgg16"])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images that are run")
    parser.add_argument("--classes", type=int, default=10, help="classes that have images, with a scale below 1")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--processor-time", action="store_true", help="for a machine that others use too")
    parser.add_argument("--passes", action="store_true", help="contributions over passes instead")
    parser.add_argument("--through-analyze", action="store_true", help="whole calls of analyze, for older versions")
    arguments = parser.parse_args()
    if not 0 < arguments.scale <= 1:
        sys.exit(f"--scale {arguments.scale}; expected a number above 0 and at most 1.")
    warnings.filterwarnings("ignore")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, Python {platform.python_version()}, torch {torch.__version__}, scale {arguments.scale:g}")
    if arguments.through_analyze:
        for name in arguments.networks:
            epoch, taken = through_analyze(name, arguments.scale, arguments.processor_time)
            print(f"{name:<10} epoch {epoch:.0f} s, analysis {taken:.0f} s, analysis / epoch {taken / epoch:.2f}")
        return
    if arguments.passes:
        for name in arguments.networks:
            print(f"{name:<10} contributions / (1 + 3 K passes) {passes_ratio(name, arguments.processor_time):.2f}")
        return
    print(f"{'network':<10}{'layers':>7}{'epoch':>10}{'two passes':>12}{'curves':>9}{'analysis / epoch':>18}")
    for name in arguments.networks:
        epoch, passes, rest, layers = measure(name, arguments.scale, arguments.classes, arguments.processor_time)
        print(
            f"{name:<10}{layers:>7}{epoch:>9.0f}s{passes:>11.0f}s{rest:>8.0f}s{(passes + rest) / epoch:>18.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
