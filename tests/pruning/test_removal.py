from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import (
    BatchMean,
    CifarNet,
    DataDependent,
    FixedView,
    InPlaceTraps,
    PartOfBuffer,
    PreActNet,
    SqueezeNet,
    mostly_slow,
)
from pruned import (
    Chain,
    Frozen,
    Net,
    assert_close,
    conv,
    graph_of,
    images,
    known,
    outputs,
    random_items,
    random_removal,
    seeded,
)
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unitrole.errors import DataError, SettingError, TraceError
from lightning_unitrole.pruning.equivalence import remove_checked
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.network import count_macs, count_parameters
from lightning_unitrole.pruning.removal import Removal, plan_removal, regrow, remove
from lightning_unitrole.pruning.selection import saving

NETS = [
    "vgg11_bn",
    "resnet18",
    "densenet121",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "resnext50_32x4d",
    "googlenet",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(NETS, quick=["mobilenet_v3_small", "resnet18", "squeezenet1_1"]))
def test_torchvision(name: str) -> None:
    """The smaller network computes what the masked one does, costs what was foretold, and undo brings all back."""
    net, graph = known(name)
    inputs, items = images(64), random_items(graph)
    removal = plan_removal(graph, items)
    whole = outputs(net, inputs)
    size, cost = count_parameters(net), count_macs(net, net, inputs, batch=2)
    mask = UnitMask(net, removal)
    masked = outputs(net, inputs)
    assert float((masked[0] - whole[0]).abs().max()) > 1e-3
    mask.restore()
    assert torch.equal(outputs(net, inputs)[0], whole[0])

    change = remove_checked(net, net, removal, inputs)
    assert_close(outputs(net, inputs), masked)
    assert size - count_parameters(net) == saving(graph, items, "parameters") > 0
    assert cost - count_macs(net, net, inputs, batch=2) == saving(graph, items, "macs") > 0
    change.undo()
    assert torch.equal(outputs(net, inputs)[0], whole[0])


def odd(run: Callable[..., Any], head: int = 6, **layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Net(run, first=conv(3, 6), head=nn.Linear(head, 4), **layers)


def pooled(net: Any, x: Tensor) -> Tensor:
    return net.head(x.mean((2, 3)))


RIGHT = {
    "sum in place": CifarNet,
    "pre-activation": PreActNet,
    "depthwise and grouped": SqueezeNet,
    "view": FixedView,
    "batch mean": BatchMean,
    "data dependent": DataDependent,
    "concatenated with itself": odd(
        lambda net, x: pooled(net, (lambda h: torch.cat([h, h.abs()], 1))(net.first(x))), 12
    ),
    "no output where the input is zero": odd(lambda net, x: pooled(net, net.first(x).cos())),
    "one normalisation twice": odd(
        lambda net, x: pooled(net, net.norm(net.second(net.norm(net.first(x)).relu())).relu()),
        second=conv(6, 6),
        norm=nn.BatchNorm2d(6),
    ),
    "transposed": odd(lambda net, x: pooled(net, net.up(net.first(x)).relu()), 5, up=nn.ConvTranspose2d(6, 5, 2, 2)),
    "channel multiplier": odd(lambda net, x: pooled(net, net.more(net.first(x))), 12, more=conv(6, 12, groups=6)),
    "prelu": odd(lambda net, x: pooled(net, net.act(net.first(x))), act=nn.PReLU(6)),
    "instance norm": odd(
        lambda net, x: net.head(net.norm(net.first(x)).amax((2, 3))), norm=nn.InstanceNorm2d(6, affine=True)
    ),
    "batch norm without weights": odd(
        lambda net, x: pooled(net, net.norm(net.first(x))), norm=nn.BatchNorm2d(6, affine=False)
    ),
    "layer norm": odd(
        lambda net, x: net.head(net.norm(net.first(x).permute(0, 2, 3, 1)).amax((1, 2))), norm=nn.LayerNorm(6)
    ),
    "layer norm without bias": odd(
        lambda net, x: net.head(net.norm(net.first(x).permute(0, 2, 3, 1)).amax((1, 2))),
        norm=nn.LayerNorm(6, bias=False),
    ),
    "group norm": odd(lambda net, x: net.head(net.norm(net.first(x)).amax((2, 3))), norm=nn.GroupNorm(3, 6)),
    "normalised over channels": odd(lambda net, x: pooled(net, F.normalize(net.first(x), dim=1))),
}


if hasattr(nn, "RMSNorm"):  # since torch 2.4
    RIGHT["rms norm"] = odd(
        lambda net, x: net.head(net.norm(net.first(x).permute(0, 2, 3, 1)).amax((1, 2))), norm=nn.RMSNorm(6)
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT.keys())
def test_networks_written_in_odd_ways(build: Callable[[], nn.Module], seed: int) -> None:
    net, inputs = seeded(build, seed), images()
    graph = graph_of(net, inputs)
    items = random_items(graph, seed=seed, least=1)
    removal = plan_removal(graph, items)
    everything, whole = Frozen(net), outputs(net, inputs)
    size, cost = count_parameters(net), count_macs(net, net, inputs, batch=2)
    mask = UnitMask(net, removal)
    masked = outputs(net, inputs)
    mask.restore()
    everything.assert_unchanged()
    change = remove_checked(net, net, removal, inputs)
    assert_close(outputs(net, inputs), masked)
    assert size - count_parameters(net) == saving(graph, items, "parameters") > 0
    assert cost - count_macs(net, net, inputs, batch=2) == saving(graph, items, "macs") > 0
    change.undo()
    everything.assert_unchanged()
    assert torch.equal(outputs(net, inputs)[0], whole[0])


WRONG = {
    "channel count in a shape": (
        odd(lambda net, x: net.head(F.adaptive_avg_pool2d(net.first(x), 2).reshape(-1, 24)), 24),
        "the forward pass fails",
    ),
    "channel count of a normalisation": (
        odd(lambda net, x: net.head(F.layer_norm(net.first(x).permute(0, 2, 3, 1), (6,)).amax((1, 2)))),
        "the forward pass fails",
    ),
    "chosen channels": (
        odd(lambda net, x: pooled(net, net.second(net.first(x)[:, [1, 0, 3, 2, 5, 4]])), second=conv(6, 6)),
        "the forward pass fails",
    ),
    "flipped": (odd(lambda net, x: pooled(net, net.second(net.first(x).flip(1))), second=conv(6, 6)), "differ by"),
    "rolled": (odd(lambda net, x: pooled(net, net.second(net.first(x).roll(1, 1))), second=conv(6, 6)), "differ by"),
    "shuffled": (
        odd(lambda net, x: pooled(net, net.second(net.mix(net.first(x)))), mix=nn.ChannelShuffle(2), second=conv(6, 6)),
        "differ by",
    ),
    "softmax over channels": (
        odd(lambda net, x: pooled(net, net.second(net.first(x).softmax(1))), second=conv(6, 6)),
        "differ by",
    ),
    "channels last in the columns": (
        odd(lambda net, x: net.head(net.first(x).permute(0, 2, 3, 1).flatten(1)), 6 * 64),
        "differ by",
    ),
    "padded with channels": (odd(lambda net, x: pooled(net, F.pad(net.first(x), (0, 0, 0, 0, 1, 1))), 8), "differ by"),
    "the first three of a buffer": (InPlaceTraps, "differ by"),
    "through a view of a buffer": (PartOfBuffer, "differ by"),
}


@pytest.mark.parametrize(("build", "why"), WRONG.values(), ids=WRONG.keys())
def test_what_the_graph_does_not_see_is_not_removed(build: Callable[[], nn.Module], why: str) -> None:
    net, inputs = seeded(build), images()
    graph = graph_of(net, inputs)
    assert graph.groups[0].reason is None
    removal = plan_removal(graph, {graph.groups[0].name: [0, 2]})
    everything, whole = Frozen(net), outputs(net, inputs)
    with pytest.raises(TraceError, match=why) as found:
        remove_checked(net, net, removal, inputs)
    assert "skip_layers=" in str(found.value)
    everything.assert_unchanged()
    assert torch.equal(outputs(net, inputs)[0], whole[0])


def test_another_number_of_outputs_is_seen() -> None:
    net, inputs = seeded(Chain), images()

    def forward(x: Tensor) -> list[Tensor]:
        return [net(x), *net.first(x).unbind(1)]

    removal = random_removal(net, inputs)
    everything = Frozen(net)
    with pytest.raises(TraceError, match="have another shape"):
        remove_checked(forward, net, removal, inputs)
    everything.assert_unchanged()


def test_small_differences_are_seen_at_small_outputs() -> None:
    """The tolerance is a share of the outputs, however small they are."""
    net, inputs = (
        seeded(odd(lambda net, x: 1e-4 * pooled(net, net.second(net.first(x).flip(1))), second=conv(6, 6))),
        images(),
    )
    graph = graph_of(net, inputs)
    with pytest.raises(TraceError, match="differ by"):
        remove_checked(net, net, plan_removal(graph, {"first": [0, 2, 3]}), inputs)


def test_half_precision_passes() -> None:
    net, inputs = seeded(CifarNet).to(torch.bfloat16), images(16)
    removal = random_removal(seeded(CifarNet), inputs)
    remove_checked(net, net, removal, inputs.bfloat16())
    assert net.conv1.out_channels < 6


def test_what_a_removal_takes_by_hand() -> None:
    net = seeded(Chain)
    removal = plan_removal(graph_of(net, images()), {"first": [5, 1], "second": [0]})
    assert removal.channels["first"].tolist() == [0, 2, 3, 4]
    assert removal.channels["second"].tolist() == [1, 2, 3, 4]
    assert removal.removed("first.weight", 0).tolist() == [1, 5]
    assert {dim: kept.tolist() for dim, kept in removal.kept["second.weight"].items()} == {
        0: [1, 2, 3, 4],
        1: [0, 2, 3, 4],
    }
    assert removal.shapes["second.weight"] == (5, 6, 3, 3)
    whole = copy.deepcopy(net)
    remove(net, removal)
    assert torch.equal(net.second.weight, whole.second.weight[1:][:, [0, 2, 3, 4]])
    assert torch.equal(net.norm.running_var, whole.norm.running_var[[0, 2, 3, 4]])
    assert torch.equal(net.head.weight, whole.head.weight[:, 1:])
    layers = (net.first.out_channels, net.norm.num_features, net.second.in_channels, net.second.out_channels)
    assert (*layers, net.head.in_features, net.head.out_features) == (4, 4, 4, 4, 4, 4)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        pytest.param(
            {"third": [0]}, "No layer 'third' can be pruned. Those that can are: 'first', 'second'", id="unknown"
        ),
        pytest.param({"head": [0]}, "Layer 'head' cannot be pruned: its channels are an output", id="refused"),
        pytest.param({"second": range(5)}, "All 5 units of layer 'second' would be removed", id="all"),
    ],
)
def test_choices_that_cannot_be(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        plan_removal(graph_of(seeded(Chain), images()), choice)


def test_nothing_chosen_is_nothing_removed() -> None:
    removal = plan_removal(graph_of(seeded(Chain), images()), {"first": []})
    assert (removal.shapes, removal.kept, removal.channels) == ({}, {}, {})


def test_parameters_keep_what_belongs_to_them() -> None:
    net = seeded(Chain).train()
    net.second.requires_grad_(False)
    net.norm.eval()
    net(images()).sum().backward()
    net.first.weight.kind = "stem"
    net.first.weight.data = net.first.weight.data.contiguous(memory_format=torch.channels_last)
    gradient = net.first.weight.grad.clone()
    modes, random = [module.training for module in net.modules()], torch.random.get_rng_state()
    removal = plan_removal(graph_of(net, images()), {"first": [1, 5], "second": [0]})
    change = remove_checked(net, net, removal, images())
    assert net.first.weight.kind == "stem"
    assert net.first.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.first.weight.grad, gradient[[0, 2, 3, 4]])
    assert [p.requires_grad for p in net.second.parameters()] == [False, False]
    assert net.second.weight.grad is None
    assert net.first.weight.requires_grad
    assert modes == [module.training for module in net.modules()]
    assert torch.equal(random, torch.random.get_rng_state())
    assert {one.name for one in change.replaced} == set(removal.kept)


def test_still_trainable_after_inference_mode() -> None:
    net, inputs = seeded(Chain), images()
    with torch.inference_mode():
        remove_checked(net, net, random_removal(net, inputs), images())
    assert not any(tensor.is_inference() for tensor in net.state_dict().values())
    net.train()(inputs).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()


def test_regrown_with_zeros() -> None:
    net, inputs = seeded(Chain), images()
    whole, removal = copy.deepcopy(net), random_removal(net, inputs)
    remove(net, removal)
    regrow(net, removal)
    UnitMask(whole, removal)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, dict(whole.named_parameters())[name]), name
    assert_close(outputs(net, inputs), outputs(whole, inputs), 0)
    assert net.first.out_channels == net.norm.num_features == net.second.in_channels == 6


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param(lambda: Chain(7), r"'first.weight' has shape \[7, 3, 3, 3\]; expected \[6, 3, 3, 3\]", id="width"),
        pytest.param(SqueezeNet, "has no parameter or buffer 'first.weight'", id="layers"),
    ],
)
def test_a_record_of_another_network(other: Callable[[], nn.Module], message: str) -> None:
    removal = random_removal(seeded(Chain), images())
    net = seeded(other)
    everything = Frozen(net)
    with pytest.raises(DataError, match=message):
        remove(net, removal)
    everything.assert_unchanged()


def test_record_of_a_newer_version() -> None:
    state = random_removal(seeded(Chain), images()).state_dict()
    assert Removal.from_state_dict(state).same_as(Removal.from_state_dict(copy.deepcopy(state)))
    with pytest.raises(DataError, match=r"has version 3; .* Upgrade lightning-unitrole"):
        Removal.from_state_dict({**state, "version": 3})
