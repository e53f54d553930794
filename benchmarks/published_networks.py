"""Networks that all ways to prune can cut.

Published CIFAR-10 ResNets, whose shortcuts are 1x1 convolutions that hand channels on, so that their trunks can be cut;
the VGG-16 with batch normalisation that ``reproduction/vgg16.py`` trains; and EfficientNet-Lite0, inverted residual
blocks with depthwise convolutions and ReLU6 as in MobileNetV2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduction"))

import common
import imagenet_networks


class Expected(NamedTuple):
    """What a network is given: mean and deviation of colours, the side of images, the folder of those to test on."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pixels: int
    test: str


NETWORKS = {
    "cifar": Expected(common.MEAN, common.STD, 32, "test"),
    "efficientnet_lite0": Expected((127 / 255,) * 3, (128 / 255,) * 3, 224, "val"),
}


def cifar_network(path: Path) -> nn.Module:
    """The network of a file of weights."""
    net, _ = common.published(path)
    for block in [module for module in net.modules() if isinstance(module, common.Block)]:
        if isinstance(block.shortcut, common.PaddedShortcut):
            block.shortcut = _convolution(block.shortcut)
    return net.cpu().train().to(memory_format=torch.channels_last)


def _convolution(shortcut: common.PaddedShortcut) -> nn.Conv2d:
    """What computes the same, with weights."""
    inputs, outputs = shortcut.inputs, shortcut.outputs
    handing_on = nn.Conv2d(inputs, outputs, 1, shortcut.stride, bias=False)
    first = (outputs - inputs) // 2
    with torch.no_grad():
        handing_on.weight.zero_()
        nn.init.dirac_(handing_on.weight[first : first + inputs])
    return handing_on


def efficientnet_lite0(pixels: int) -> nn.Module:
    """A network with published ImageNet weights, of whose last layer the ten rows of Imagenette's classes are left.

    Running statistics move by a tenth a batch instead of a hundredth, or those from before a cut would outlast a short
    fine-tuning.
    """
    net, rows = imagenet_networks.efficientnet_lite0(pixels), list(imagenet_networks.CLASSES.values())
    whole, net._fc = net._fc, nn.Linear(net._fc.in_features, len(rows))
    with torch.no_grad():
        net._fc.weight.copy_(whole.weight[rows])
        net._fc.bias.copy_(whole.bias[rows])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return net.to(memory_format=torch.channels_last)
