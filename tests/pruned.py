"""Networks to remove units from, and the few lines that every test of that needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from networks import torchvision_net
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unitrole.network.structures import tensors_in
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.groups import ChannelGraph
from lightning_unitrole.pruning.removal import Removal, plan_removal


class Net(nn.Module):
    """Some layers and a function that runs them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(before: int, after: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


class Chain(nn.Module):
    """Two convolutions with batch normalisation and a linear layer: ``first``, ``second`` and ``head``."""

    def __init__(self, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.first = conv(3, width)
        self.norm = nn.BatchNorm2d(width)
        self.second = conv(width, 5)
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network in float64 and evaluation mode with random weights, biases and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build().double().eval()
        for name, tensor in net.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.3)
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return net


def images(size: int = 8, *, batch: int = 2, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=generator, dtype=torch.float64)


@cache
def _known(name: str) -> tuple[nn.Module, ChannelGraph]:
    net = torchvision_net(name)
    if name == "vgg11_bn":  # its linear layers are most of the time and of no interest
        net.avgpool = nn.AdaptiveAvgPool2d(2)
        net.classifier = nn.Sequential(nn.Linear(2048, 32), nn.ReLU(), nn.Linear(32, 10))
    net = net.double()
    return net, channel_graph(net, net, images(64), batch=2)


def known(name: str) -> tuple[nn.Module, ChannelGraph]:
    """A copy of a torchvision network in float64, and its channel groups; built once."""
    net, graph = _known(name)
    return copy.deepcopy(net), graph


def graph_of(net: nn.Module, inputs: Tensor) -> ChannelGraph:
    return channel_graph(net, net, inputs, batch=len(inputs))


def random_items(graph: ChannelGraph, *, share: float = 1 / 3, seed: int = 0, least: int = 0) -> dict[str, list[int]]:
    """A random share of each group that can be pruned."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randperm(len(group), generator=generator)[: max(least, int(len(group) * share))].tolist()
        for group in graph.groups
        if group.reason is None and len(group) > 1
    }


def random_removal(net: nn.Module, inputs: Tensor, *, seed: int = 0) -> Removal:
    graph = graph_of(net, inputs)
    return plan_removal(graph, random_items(graph, seed=seed, least=1))


def reasons(net: nn.Module, inputs: Tensor) -> dict[str, str | None]:
    return {group.name: group.reason for group in graph_of(net, inputs).groups}


@torch.no_grad()
def outputs(net: nn.Module, inputs: Tensor) -> list[Tensor]:
    return list(tensors_in(net(inputs)))


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


class Frozen:
    """Everything of a network that must not change, as it was at some time."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.before = self._everything()
        self.values = [tensor.detach().clone() for tensor in self.before[0].values()]

    def _everything(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        plain = {
            f"{name}.{key}": value
            for name, module in self.net.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (int, tuple))
        }
        flags = {name: (tensor.requires_grad, tensor.stride()) for name, tensor in tensors.items()}
        hooks = {name: len(module._forward_hooks) for name, module in self.net.named_modules()}
        return tensors, {"plain": plain, "flags": flags, "hooks": hooks}

    def assert_unchanged(self) -> None:
        tensors, rest = self._everything()
        assert {name: id(tensor) for name, tensor in tensors.items()} == {
            name: id(tensor) for name, tensor in self.before[0].items()
        }
        assert rest == self.before[1]
        for tensor, value in zip(tensors.values(), self.values, strict=True):
            assert torch.equal(tensor, value)
