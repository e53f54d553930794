"""Small networks, each written in a way of its own, and torchvision's with statistics that are not degenerate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


def mostly_slow(names: Iterable[str], *, quick: Iterable[str]) -> list[Any]:
    """Parameters of a test, all of them slow but some."""
    quick = [*quick]
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def torchvision_net(name: str, *, num_classes: int = 10) -> nn.Module:
    """A torchvision model in evaluation mode, with reproducible random weights and normalisation statistics."""
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
        return randomised(net)


def randomised(net: nn.Module) -> nn.Module:
    """The same network in evaluation mode, with normalisations and residual scales that change something."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
            if hasattr(module, "layer_scale"):
                nn.init.uniform_(module.layer_scale, 0.5, 1.0)
    return net.eval()


class CifarBlock(nn.Module):
    """The residual block of many CIFAR programs: activations are functions, the shortcut is added in place."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        out = F.relu(out)
        return out


class CifarNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.block1 = CifarBlock(6, 6, 1)
        self.block2 = CifarBlock(6, 8, 2)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.block2(self.block1(out))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


class PreActBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.block1 = PreActBlock(5, 7)
        self.block2 = PreActBlock(7, 7)
        self.bn = nn.BatchNorm2d(7)
        self.fc = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.block2(self.block1(self.stem(x))))).mean((2, 3)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class FunctionalNet(nn.Module):
    """No module but the whole: weights are its own parameters, and activations of many kinds work in place or not."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        shapes = [(6, 3), (7, 6), (8, 7), (9, 8)]
        self.kernels = nn.ParameterList(torch.randn(*shape, 3, 3, generator=generator) / 5 for shape in shapes)
        self.last = nn.Parameter(torch.randn(10, 9, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernels[0], padding=1))
        x = F.conv2d(x, self.kernels[1], padding=1)
        F.relu_(x)
        x = F.conv2d(x, self.kernels[2], padding=1).clamp_(min=0)
        x = F.conv2d(x, self.kernels[3], padding=1)
        x = x * (F.relu6(x + 3) / 6)
        return F.linear(x.mean((2, 3)), self.last)


class Outputs(NamedTuple):
    features: Tensor
    logits: Tensor


class TwoOutputs(nn.Module):
    """One convolution called twice, and several outputs."""

    def __init__(self, kind: str = "dict") -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.LeakyReLU(inplace=True)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.act(self.stem(x))
        x = self.act(self.shared(x))
        x = self.act(self.shared(x))
        features = x.mean((2, 3))
        logits = self.head(features)
        if self.kind == "dict":
            return {"features": features, "logits": logits}
        return (logits, features) if self.kind == "tuple" else Outputs(features, logits)


class SqueezeNet(nn.Module):
    """Grouped and depthwise convolutions, with squeeze-and-excitation before the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.GroupNorm(2, 8)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        out = self.norm(self.depthwise(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(out, 1)))))
        x = F.silu(out * gate + x)
        x = F.gelu(self.grouped(x))
        return self.fc(x.mean((2, 3)))


class FixedView(nn.Module):
    """Writes the batch size into a shape, in a way that can be told from other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).view(batch, -1))


class HiddenSize(FixedView):
    """Writes the batch size into a shape after calculating with it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        rows = len(x) * x.shape[1]
        return self.fc(x.view(rows, 64).view(rows // 4, -1))


class BatchMean(FixedView):
    """Images of a batch influence one another."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x - x.mean(0, keepdim=True)))
        return self.fc(x.flatten(1))


class DataDependent(FixedView):
    """Looks at values and goes one way or the other."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        if x.mean() > 0.1:
            x = 2 * x
        return self.fc(x.flatten(1))


class InPlaceTraps(nn.Module):
    """Overwrites, later on, tensors that were computed before the layer and are read behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        early = self.conv1(x)
        kept = F.relu(early)
        x = F.relu(self.conv2(kept), inplace=True)
        x = x + early  # reads it ...
        early.mul_(3.0)  # ... before it changes
        kept += self.conv3(x)  # written into, although it does not depend on conv2
        buffer = torch.zeros_like(kept)
        buffer[:, :3] = x[:, :3]
        out = F.relu_(kept) + early + buffer
        out.sub_(x)
        return self.fc(out.mean((2, 3)))


class PartOfBuffer(InPlaceTraps):
    """Writes through a view of a tensor that it goes on with."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        buffer = torch.zeros_like(x)
        part = buffer[:, :3]
        part.copy_(F.relu(self.conv2(x))[:, :3])
        return self.fc((x + buffer).mean((2, 3)))
