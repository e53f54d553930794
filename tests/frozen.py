"""Networks whose arithmetic is exact, and the reports that earlier versions of the package gave of them.

Weights and images are multiples of a power of two and everything runs in float64, so every map and every logit is the
same number on every machine, whatever the order of summation. Only logarithms may differ, in the last digit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

REPORTS = Path(__file__).parent / "data" / "reports"
SETTINGS: dict[str, Any] = {"roles": "turning_point", "images_per_class": 12, "ablation_points": 9, "layers": "all"}


def exact_digits(count: int, *, start: int = 0) -> TensorDataset:
    """Handwritten digits, doubled to 16x16 pixels, ``[count, 1, 16, 16]`` float64 in steps of 1/16."""
    data = load_digits()
    images = torch.tensor(data.images[start : start + count]).unsqueeze(1) / 16
    return TensorDataset(F.interpolate(images, scale_factor=2.0), torch.tensor(data.target[start : start + count]))


def exact_vgg() -> nn.Sequential:
    """Three convolutions, at 16x16 and 8x8, trained on the digits and rounded to multiples of 1/16."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 14, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(14, 10),
    )
    net.load_state_dict(torch.load(REPORTS / "exact_vgg.pt", weights_only=True))
    return net.double().eval()


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.shortcut = nn.Conv2d(before, after, 1, stride) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(x)))
        out += self.shortcut(x)
        return F.relu(out)


class ExactResNet(nn.Module):
    """Four residual blocks with weights that are multiples of 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, 1, 1)
        self.body = nn.Sequential(_Block(6, 6, 1), _Block(6, 10, 2), _Block(10, 10, 1), _Block(10, 10, 1))
        self.head = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


def exact_resnet() -> ExactResNet:
    """The network with its weights."""
    net = ExactResNet()
    net.load_state_dict(torch.load(REPORTS / "exact_resnet.pt", weights_only=True))
    return net.double().eval()
