from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import CifarNet, FunctionalNet, PreActNet, SqueezeNet, TwoOutputs, torchvision_net
from pruned import Chain, Frozen, Net, conv, graph_of, images, known, reasons, seeded
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lightning_unitrole.errors import BackendError, TraceError
from lightning_unitrole.pruning.coupling import channel_graph


def tied_weights() -> nn.Module:
    net = Net(
        lambda net, x: net.head(net.b(F.relu(net.a(F.relu(net.stem(x))))).mean((2, 3))),
        stem=conv(3, 4),
        a=conv(4, 4),
        b=conv(4, 4),
        head=nn.Linear(4, 3),
    )
    net.b.weight = net.a.weight
    return net


def parametrized() -> nn.Module:
    net = Chain()
    weight_norm(net.first)
    return net


def behind(layer: nn.Module) -> nn.Module:
    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        x = net.first(x)
        if not isinstance(net.between, nn.GroupNorm):
            x = x.permute(0, 2, 3, 1)
            return net.head(net.between(x).amax((1, 2)))
        return net.head(net.between(x).amax((2, 3)))

    return Net(run, first=conv(3, 6), between=layer, head=nn.Linear(6, 4))


def gated_by_one_channel() -> nn.Module:
    return Net(
        lambda net, x: net.head((net.first(x) * net.gate(x).sigmoid()).mean((2, 3))),
        first=conv(3, 6),
        gate=conv(3, 1),
        head=nn.Linear(6, 4),
    )


def sliced(head: int, run: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    return Net(lambda net, x: net.head(run(net.first(x)).mean((2, 3))), first=conv(3, 8), head=nn.Linear(head, 4))


def product_of_halves(x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, 1)
    return left * right.sigmoid()


@pytest.mark.parametrize(
    ("build", "layer", "reason"),
    [
        pytest.param(Chain, "head", "its channels are an output of the network", id="output"),
        pytest.param(TwoOutputs, "stem", "its channels are an output of the network", id="features handed out, too"),
        pytest.param(
            lambda: TwoOutputs("tuple"), "stem", "its channels are an output of the network", id="the second of two"
        ),
        pytest.param(
            lambda: behind(nn.GroupNorm(1, 6)),
            "first",
            "'between', a GroupNorm with one group, normalises all channels together",
            id="GroupNorm of one group",
        ),
        pytest.param(
            lambda: behind(nn.LayerNorm(6, elementwise_affine=False)),
            "first",
            "its channels run through 'between', a LayerNorm",
            id="LayerNorm without weights",
        ),
        pytest.param(tied_weights, "a", "'a.weight' is shared with 'b.weight'", id="tied weights"),
        pytest.param(tied_weights, "stem", "'a.weight' is shared with 'b.weight'", id="before tied weights"),
        pytest.param(
            parametrized, "first", "the weight of 'first' is computed from other parameters", id="parametrization"
        ),
        pytest.param(
            lambda: Net(
                lambda net, x: net.head(net.up(net.first(x)).mean((2, 3))),
                first=conv(3, 6),
                up=nn.ConvTranspose2d(6, 4, 2, 2, groups=2),
                head=nn.Linear(4, 4),
            ),
            "first",
            "'up' is a transposed convolution with groups",
            id="grouped transposed convolution",
        ),
        pytest.param(
            gated_by_one_channel, "first", "cannot be followed to 'gate.weight'", id="spatial gate of one channel"
        ),
        pytest.param(
            lambda: sliced(4, lambda x: F.glu(x, 1)), "first", "cannot be followed to 'head.weight'", id="glu"
        ),
        pytest.param(lambda: sliced(5, lambda x: x[:, :5]), "first", "go another way than the others", id="slice"),
        pytest.param(lambda: sliced(4, product_of_halves), "first", "go another way than the others", id="chunk"),
    ],
)
def test_reasons(build: Callable[[], nn.Module], layer: str, reason: str) -> None:
    found = reasons(seeded(build), images())[layer]
    assert found is not None
    assert reason in found


def test_names_are_told_apart() -> None:
    """Even where the channels of a layer go separate ways it is one group."""
    groups = graph_of(seeded(lambda: sliced(5, lambda x: x[:, :5])), images()).groups
    assert [(group.name, len(group)) for group in groups] == [("first", 8), ("head", 4)]


def test_functional_layers_are_no_groups() -> None:
    assert graph_of(FunctionalNet(), images().float()).groups == []


def test_a_chain_by_hand() -> None:
    graph = graph_of(seeded(Chain), images(8))
    first, second, head = graph.groups
    assert [first.name, second.name, head.name] == ["first", "second", "head"]
    assert [first.reason, second.reason] == [None, None]
    assert dict(first.channels) == {"first": [(unit,) for unit in range(6)]}
    by_tensor = {
        ("first.weight", 0),
        ("first.bias", 0),
        ("norm.weight", 0),
        ("norm.bias", 0),
        ("norm.running_mean", 0),
        ("norm.running_var", 0),
        ("second.weight", 1),
    }
    assert set(first.slices) == by_tensor
    assert all(list(indices) == [(unit,) for unit in range(6)] for indices in first.slices.values())
    assert graph.positions == {"first.weight": 64, "second.weight": 64, "head.weight": 1}
    assert graph.sizes["second.weight"] == (5, 6, 3, 3)
    assert graph.parameters == set(dict(Chain().named_parameters()))


def test_flattened_maps_reach_a_block_of_columns() -> None:
    net = Net(lambda net, x: net.head(net.first(x).flatten(1)), first=conv(3, 5), head=nn.Linear(5 * 16, 2))
    group = graph_of(seeded(lambda: net), images(4)).groups[0]
    assert group.slices["head.weight", 1][3] == tuple(range(48, 64))


@pytest.mark.parametrize(
    ("build", "together"),
    [
        pytest.param(CifarNet, {"conv1", "block1.conv2"}, id="sum in place"),
        pytest.param(PreActNet, {"block1.conv2", "block1.shortcut", "block2.conv2"}, id="shortcut with a convolution"),
        pytest.param(SqueezeNet, {"stem", "depthwise", "excite"}, id="depthwise and a gate"),
    ],
)
def test_layers_that_share_a_width(build: Callable[[], nn.Module], together: set[str]) -> None:
    groups = graph_of(seeded(build), images(16)).groups
    assert [set(group.channels) for group in groups if together & set(group.channels)] == [together]


def test_groups_of_a_convolution_lose_channels_at_the_same_places() -> None:
    groups = {group.name: group for group in graph_of(seeded(SqueezeNet), images()).groups}
    assert groups["grouped"].channels["grouped"] == [(0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11)]
    # A normalisation in two groups, and a convolution in two groups that ties what it keeps apart.
    assert groups["stem"].channels["stem"] == [tuple(range(8))]
    assert groups["stem"].reason == "all of its channels hang together, so that none can leave without the others"


def test_channels_that_groups_of_a_convolution_read_leave_at_the_same_places() -> None:
    net = Net(
        lambda net, x: net.head(net.grouped(net.first(x)).mean((2, 3))),
        first=conv(3, 4),
        grouped=conv(4, 6, groups=2),
        head=nn.Linear(6, 4),
    )
    (first, _, _) = graph_of(seeded(lambda: net), images()).groups
    assert first.channels["first"] == [(0, 2), (1, 3)]
    assert first.slices["grouped.weight", 1] == [(0,), (1,)]


def test_of_a_group_normalisation_whole_groups_leave() -> None:
    (group, _) = graph_of(seeded(lambda: behind(nn.GroupNorm(3, 6))), images()).groups
    assert group.channels["first"] == [(0, 1), (2, 3), (4, 5)]
    assert group.reason is None


def test_every_channel_is_in_one_item_of_one_group() -> None:
    net, graph = known("mobilenet_v3_small")
    assert len({group.name for group in graph.groups}) == len(graph.groups)
    found: dict[str, list[int]] = {}
    for group in graph.groups:
        for layer, channels in group.channels.items():
            found.setdefault(layer, []).extend(channel for item in channels for channel in item)
    widths = {
        layer: module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        for layer, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    assert {layer: sorted(channels) for layer, channels in found.items()} == {
        layer: list(range(width)) for layer, width in widths.items()
    }


@pytest.fixture
def trained() -> nn.Module:
    """A network in the middle of training: mixed modes, frozen parts, gradients."""
    net = seeded(Chain)
    net.train()
    net.norm.eval()
    net.second.requires_grad_(False)
    net(images()).sum().backward()
    return net


def test_tracing_leaves_no_trace(trained: nn.Module) -> None:
    everything = Frozen(trained)
    modes = [module.training for module in trained.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in trained.parameters()]
    random = torch.random.get_rng_state()
    graph_of(trained, images())
    everything.assert_unchanged()
    assert modes == [module.training for module in trained.modules()]
    assert torch.equal(random, torch.random.get_rng_state())
    for parameter, gradient in zip(trained.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_traced_without_gradients_and_frozen(mode: Callable[[], Any]) -> None:
    net = seeded(Chain)
    expected = [(group.name, group.slices) for group in graph_of(net, images()).groups]
    frozen = copy.deepcopy(net).requires_grad_(False)
    inputs = images()
    with mode():
        assert [(group.name, group.slices) for group in graph_of(frozen, inputs).groups] == expected
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_outputs_without_gradient() -> None:
    net = seeded(Chain)
    with pytest.raises(TraceError, match=r"could not be followed .* do not depend on its parameters"):
        channel_graph(lambda x: net(x).argmax(1), net, images(), batch=2)


def test_a_forward_pass_that_cannot_be_followed() -> None:
    net = torchvision_net("shufflenet_v2_x0_5")
    everything = Frozen(net)
    with pytest.raises(TraceError, match="could not be followed to see which channels hang together"):
        graph_of(net, images(64).float())
    everything.assert_unchanged()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(BackendError, match=r"pip install 'lightning-unitrole\[prune\]'"):
        graph_of(Chain(), images().float())
