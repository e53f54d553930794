from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from networks import CifarNet
from pruned import Chain, Frozen, Net, assert_close, conv, images, outputs, random_removal, seeded
from torch import nn
from torch.nn import functional as F

from lightning_unitrole.errors import DataError
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.removal import Removal, remove


def layer_normed() -> nn.Module:
    return Net(
        lambda net, x: net.head(F.gelu(net.norm(net.first(x).permute(0, 2, 3, 1))).mean((1, 2))),
        first=conv(3, 6),
        norm=nn.LayerNorm(6),
        head=nn.Linear(6, 4),
    )


Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("build", [CifarNet, Chain, layer_normed])
def test_training_masked_is_training_the_smaller_network(build: Callable[[], nn.Module], optimizer: Optimizer) -> None:
    net, inputs = seeded(build).train(), images(16, batch=4)
    removal = random_removal(net, inputs)
    small = copy.deepcopy(net)
    remove(small, removal)
    mask = UnitMask(net, removal)
    optimizers = optimizer(net.parameters()), optimizer(small.parameters())
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    for step in range(3):
        batch = images(16, batch=4, seed=step)
        norms = []
        for model, one in zip((net, small), optimizers, strict=True):
            one.zero_grad()
            F.cross_entropy(model(batch), torch.arange(4)).backward()
            if model is net:
                mask.hold_gradients()
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
            one.step()
            if model is net:
                mask.hold()
        assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    mask.drop()
    remove(net, removal)
    for (name, found), expected in zip(net.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        assert not torch.equal(expected, before[name])
    for found, expected in zip(net.buffers(), small.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_gradients_of_what_is_masked_are_zero() -> None:
    net, inputs = seeded(Chain), images()
    removal = random_removal(net, inputs)
    mask = UnitMask(net, removal)
    net(inputs).square().sum().backward()
    assert any(parameter.grad.count_nonzero() for parameter in net.parameters())
    nn.init.ones_(net.first.weight.grad)
    mask.hold_gradients()
    leaves = removal.removed("first.weight", 0)
    assert len(leaves) == 2
    assert not net.first.weight.grad[leaves].any()
    assert int(net.first.weight.grad.sum()) == 4 * 27


def test_frozen_parameters_without_gradients() -> None:
    net, inputs = seeded(Chain).requires_grad_(False), images()
    mask = UnitMask(net, random_removal(net, inputs))
    mask.hold_gradients()
    mask.hold()
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(("build", "hooks"), [(Chain, 0), (CifarNet, 0), (layer_normed, 1)])
def test_restored(build: Callable[[], nn.Module], hooks: int) -> None:
    net, inputs = seeded(build), images(16)
    everything, removal = Frozen(net), random_removal(net, inputs)
    mask = UnitMask(net, removal)
    assert mask.hooks == hooks
    with torch.no_grad():
        net.first.weight.add_(1) if hasattr(net, "first") else net.conv1.weight.add_(1)
    mask.hold()
    with torch.no_grad():
        net.first.weight.sub_(1) if hasattr(net, "first") else net.conv1.weight.sub_(1)
    mask.restore()
    name = "first.weight" if hasattr(net, "first") else "conv1.weight"
    weight, first = dict(net.named_parameters())[name], everything.values[0]
    gone = removal.removed(name, 0)
    assert torch.equal(weight[gone], first[gone])
    with torch.no_grad():
        weight.copy_(first)  # what was trained on meanwhile, with its rounding
    everything.assert_unchanged()


def test_dropped_zeros_stay() -> None:
    net, inputs = seeded(layer_normed), images()
    mask = UnitMask(net, random_removal(net, inputs))
    mask.drop()
    assert mask.hooks == 0
    assert not any(module._forward_hooks for module in net.modules())
    assert int((net.first.weight.flatten(1).abs().sum(1) == 0).sum()) == 2


def test_convnext_layer_norm_moves_channels() -> None:
    class Norm2d(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    net = seeded(
        lambda: Net(
            lambda net, x: net.head(net.norm(net.first(x)).amax((2, 3))),
            first=conv(3, 6),
            norm=Norm2d(6),
            head=nn.Linear(6, 4),
        )
    )
    inputs, small = images(), copy.deepcopy(net)
    removal = random_removal(net, inputs)
    remove(small, removal)
    UnitMask(net, removal)
    assert_close(outputs(net, inputs), outputs(small, inputs))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param(lambda: Chain(7), r"'first.weight' has shape \[7, 3, 3, 3\]; expected \[6, 3, 3, 3\]", id="width"),
        pytest.param(CifarNet, "has no parameter or buffer 'first.weight'", id="layers"),
    ],
)
def test_mask_for_another_network(other: Callable[[], nn.Module], message: str) -> None:
    removal: Removal = random_removal(seeded(Chain), images())
    net = seeded(other)
    everything = Frozen(net)
    with pytest.raises(DataError, match=message):
        UnitMask(net, removal)
    everything.assert_unchanged()
