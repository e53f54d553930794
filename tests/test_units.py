from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import (
    CifarNet,
    FunctionalNet,
    PreActNet,
    SqueezeNet,
    Swish,
    TwoOutputs,
    mostly_slow,
    randomised,
    torchvision_net,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode
from torch.utils.flop_counter import FlopCounterMode

from lightning_unitrole.errors import SettingError, TraceError
from lightning_unitrole.network.isolation import undisturbed
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import FoundUnits, UnitLayer, find_unit_layers, select_layers


def images(count: int = 2, size: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(3))


def find(net: nn.Module, inputs: Any) -> FoundUnits:
    return find_unit_layers(net, net, inputs)


def tapped(net: nn.Module, layers: Any, inputs: Any) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}

    def keep(layer: UnitLayer, seen: Tensor) -> None:
        assert layer.name not in maps
        maps[layer.name] = seen.clone()

    with torch.no_grad(), UnitTap(net, layers, keep) as tap:
        net.eval()(inputs)
        assert tap.missing == []
    return maps


def hooks_of(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def test_operations_of_each_layer_are_those_that_torch_counts() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1, groups=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 18 * 18, 10),
    )
    inputs = images(3, size=17)
    with FlopCounterMode(display=False) as counter:
        net(inputs)
    found = find(net, inputs)
    for layer in (*found.layers.values(), *found.flat.values()):
        flops = sum(counter.get_flop_counts()[f"Sequential.{layer.conv}"].values())
        assert layer.macs == flops / (2 * len(inputs)) > 0, layer.name
    assert [*found.layers, *found.flat] == ["0", "2", "4", "7"]


# Number of layers at 64 pixels, and some of them: conv, norm, activation, units, map size.
ZOO = {
    "vgg11": (8, {"features.8": ("features.8", None, "relu", 256, (16, 16))}),
    "vgg11_bn": (8, {"features.25": ("features.25", "features.26", "relu", 512, (4, 4))}),
    "resnet18": (
        13,
        {
            "layer1.0.conv1": ("layer1.0.conv1", "layer1.0.bn1", "relu", 64, (16, 16)),
            "layer2.0.conv2": ("layer2.0.conv2", "layer2.0.bn2", "relu", 128, (8, 8)),
        },
    ),
    "resnet50": (41, {"layer3.5.conv3": ("layer3.5.conv3", "layer3.5.bn3", "relu", 1024, (4, 4))}),
    "densenet121": (
        88,
        {
            "features.conv0": ("features.conv0", "features.norm0", "relu", 64, (32, 32)),
            "features.denseblock1.denselayer2.conv2": (
                "features.denseblock1.denselayer2.conv2",
                None,
                None,
                32,
                (16, 16),
            ),
            "features.transition1.conv": ("features.transition1.conv", None, None, 128, (16, 16)),
        },
    ),
    "mobilenet_v2": (
        40,
        {
            "features.3.conv.1.0": ("features.3.conv.1.0", "features.3.conv.1.1", "hardtanh", 144, (16, 16)),
            "features.3.conv.2": ("features.3.conv.2", "features.3.conv.3", None, 24, (16, 16)),
        },
    ),
    "mobilenet_v3_small": (
        25,
        {"features.4.block.1.0": ("features.4.block.1.0", "features.4.block.1.1", "hardswish", 96, (4, 4))},
    ),
    "efficientnet_b0": (
        34,
        {"features.2.0.block.1.0": ("features.2.0.block.1.0", "features.2.0.block.1.1", "silu", 96, (16, 16))},
    ),
    "convnext_tiny": (18, {"features.1.2.block.0": ("features.1.2.block.0", None, None, 96, (16, 16))}),
    "squeezenet1_1": (13, {"features.3.expand3x3": ("features.3.expand3x3", None, "relu", 64, (15, 15))}),
    "googlenet": (
        45,
        {"inception3a.branch2.1.conv": ("inception3a.branch2.1.conv", "inception3a.branch2.1.bn", "relu", 128, (8, 8))},
    ),
    "shufflenet_v2_x0_5": (
        42,
        {"stage2.0.branch1.0": ("stage2.0.branch1.0", "stage2.0.branch1.1", None, 24, (8, 8))},
    ),
    "regnet_y_400mf": (
        32,
        {
            "trunk_output.block1.block1-0.f.c.0": (
                "trunk_output.block1.block1-0.f.c.0",
                "trunk_output.block1.block1-0.f.c.1",
                "relu",
                48,
                (16, 16),
            )
        },
    ),
    "mnasnet0_5": (37, {"layers.8.0.layers.6": ("layers.8.0.layers.6", "layers.8.0.layers.7", None, 16, (16, 16))}),
}


@pytest.mark.parametrize("name", mostly_slow(ZOO, quick={*ZOO} - {"vgg11", "vgg11_bn", "densenet121"}))
def test_torchvision_networks(name: str) -> None:
    net = torchvision_net(name)
    count, expected = ZOO[name]
    found = find(net, images())
    assert len(found.layers) == count
    convolutions = {key for key, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    ran = {*found.layers, *found.skipped}
    assert ran == {key for key in convolutions if not key.startswith("aux")}
    assert all(found.skipped.values())
    for key, (conv, norm, activation, units, size) in expected.items():
        layer = found.layers[key]
        assert (layer.conv, layer.norm, layer.activation, layer.num_units, layer.map_size) == (
            conv,
            norm,
            activation,
            units,
            size,
        )
    maps = tapped(net, found.layers.values(), images())
    for layer in found.layers.values():
        assert maps[layer.name].shape == (2, layer.num_units, *layer.map_size)
    assert hooks_of(net) == 0


def test_every_layer_of_a_residual_network_gives_its_map() -> None:
    net = torchvision_net("resnet18")
    found = find(net, images())
    maps = tapped(net, found.layers.values(), images())
    with torch.no_grad():
        x = net.maxpool(F.relu(net.bn1(net.conv1(images()))))
        for stage in ("layer1", "layer2", "layer3"):
            for index in (0, 1):
                block = getattr(net, stage)[index]
                inner = F.relu(block.bn1(block.conv1(x)))
                x = F.relu(block.bn2(block.conv2(inner)) + (x if block.downsample is None else block.downsample(x)))
                assert torch.equal(maps[f"{stage}.{index}.conv1"], inner)
                assert torch.equal(maps[f"{stage}.{index}.conv2"], x)
    assert found.skipped["layer2.0.downsample.0"] == (
        "its output is added to that of 'layer2.0.conv2' before the activation"
    )
    assert found.skipped["layer4.1.conv2"].startswith("its maps are 2x2; at least 4 rows or columns are needed")
    assert found.layers["layer1.0.conv2"].site == (
        "output of module 'layer1.0.relu' (call 2 of 2 in a forward pass), after relu"
    )


def test_functional_residual_blocks() -> None:
    net = randomised(CifarNet())
    found = find(net, images(size=16))
    assert [*found.layers] == [
        "conv1",
        "block1.conv1",
        "block1.conv2",
        "block2.conv1",
        "block2.conv2",
    ]
    assert found.skipped == {"block2.shortcut.0": "its output is added to that of 'block2.conv2' before the activation"}
    assert found.layers["block1.conv1"].site == "output of call 1 of relu inside module 'block1', after relu"
    assert found.layers["block1.conv2"].site == "output of module 'block1', after relu"
    maps = tapped(net, found.layers.values(), images(size=16))
    with torch.no_grad():
        x = F.relu(net.bn1(net.conv1(images(size=16))))
        assert torch.equal(maps["conv1"], x)
        inner = F.relu(net.block1.bn1(net.block1.conv1(x)))
        assert torch.equal(maps["block1.conv1"], inner)
        assert torch.equal(maps["block1.conv2"], F.relu(net.block1.bn2(net.block1.conv2(inner)) + x))


def test_preactivation_blocks_are_seen_after_the_next_activation() -> None:
    net = randomised(PreActNet())
    found = find(net, images(size=8))
    assert {name: layer.norm for name, layer in found.layers.items()} == {
        "stem": "block1.bn1",
        "block1.conv1": "block1.bn2",
        "block1.conv2": None,
        "block2.conv1": "block2.bn2",
        "block2.conv2": None,
    }
    assert "added to that of 'block1.conv2'" in found.skipped["block1.shortcut"]
    maps = tapped(net, found.layers.values(), images(size=8))
    with torch.no_grad():
        x = net.block1(net.stem(images(size=8)))
        assert torch.equal(maps["block1.conv2"], F.relu(net.block2.bn1(x)))
        assert torch.equal(maps["block2.conv2"], F.relu(net.bn(net.block2(x))))


def test_everything_in_functions_and_in_place() -> None:
    net = FunctionalNet()
    found = find(net, images(size=8))
    assert [(layer.name, layer.activation) for layer in found.layers.values()] == [
        ("kernels.0", "relu"),
        ("kernels.1", "relu"),
        ("kernels.2", "clamp"),
        ("kernels.3", "relu6 gate"),
    ]
    maps = tapped(net, found.layers.values(), images(size=8))
    with torch.no_grad():
        x = images(size=8)
        for index, act in enumerate([F.relu, F.relu, F.relu, F.hardswish]):
            x = act(F.conv2d(x, net.kernels[index], padding=1))
            torch.testing.assert_close(maps[f"kernels.{index}"], x)


def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


@pytest.mark.parametrize(
    ("make", "function", "name"),
    [
        pytest.param(Swish, F.silu, "sigmoid gate", id="swish"),
        pytest.param(lambda: gelu_by_hand, gelu_by_hand, "erf gate", id="gelu by hand"),
        pytest.param(lambda: lambda x: x * torch.tanh(F.softplus(x)), F.mish, "softplus gate", id="mish by hand"),
        *[
            pytest.param(kind, lambda x, kind=kind: kind()(x), None, id=kind.__name__)
            for kind in (
                nn.ReLU,
                nn.ReLU6,
                nn.GELU,
                nn.SiLU,
                nn.Hardswish,
                nn.ELU,
                nn.LeakyReLU,
                nn.PReLU,
                nn.SELU,
                nn.CELU,
            )
        ],
        *[
            pytest.param(kind, lambda x, kind=kind: kind()(x), None, id=kind.__name__)
            for kind in (nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardsigmoid, nn.Hardtanh, nn.RReLU, nn.Softsign)
        ],
        pytest.param(lambda: nn.Threshold(0.1, 0.0), lambda x: F.threshold(x, 0.1, 0.0), "threshold", id="Threshold"),
    ],
)
def test_activations(make: Callable[[], Any], function: Callable[[Tensor], Tensor], name: str | None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.pool = nn.Conv2d(3, 5, 3), nn.InstanceNorm2d(5, affine=True), nn.MaxPool2d(2)
            self.act = make()

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.act(F.dropout(self.norm(self.conv(x)), training=self.training)))

    net = Net().eval()
    found = find(net, images(size=10))
    layer = found.layers["conv"]
    assert layer.activation is not None
    assert name is None or layer.activation == name
    assert layer.norm == "norm"
    with torch.no_grad():
        expected = (
            function(net.norm(net.conv(images(size=10))))
            if make is not nn.RReLU
            else net.act(net.norm(net.conv(images(size=10))))
        )
    torch.testing.assert_close(tapped(net, [layer], images(size=10))["conv"], expected)


@pytest.mark.parametrize("kind", ["dict", "tuple", "named tuple"])
def test_a_convolution_called_twice_is_two_layers(kind: str) -> None:
    net = TwoOutputs(kind)
    found = find(net, images(size=8))
    assert [*found.layers] == ["stem", "shared", "shared#1"]
    maps = tapped(net, found.layers.values(), images(size=8))
    with torch.no_grad():
        stem = F.leaky_relu(net.stem(images(size=8)))
        once = F.leaky_relu(net.shared(stem))
        assert torch.equal(maps["shared"], once)
        assert torch.equal(maps["shared#1"], F.leaky_relu(net.shared(once)))


def test_gates_and_groups() -> None:
    net = SqueezeNet()
    found = find(net, images(size=8))
    assert [*found.layers] == ["stem", "depthwise", "grouped"]
    assert {*found.skipped} == {"squeeze", "excite"}
    assert found.skipped["excite"].startswith("its maps are 1x1")
    with torch.no_grad():
        x = F.silu(net.stem(images(size=8)))
        out = net.norm(net.depthwise(x))
        gate = torch.sigmoid(net.excite(F.relu(net.squeeze(F.adaptive_avg_pool2d(out, 1)))))
        assert torch.equal(
            tapped(net, [found.layers["depthwise"]], images(size=8))["depthwise"], F.silu(out * gate + x)
        )


def test_linear_units_are_seen_before_an_addition() -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.next = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn(self.conv(x))
            out += x
            return self.next(out)

    net = randomised(Bottleneck())
    layer = find(net, images(size=8)).layers["conv"]
    assert layer.activation is None
    assert layer.site == "output of module 'bn', without an activation"
    with torch.no_grad():
        assert torch.equal(tapped(net, [layer], images(size=8))["conv"], net.bn(net.conv(images(size=8))))


def test_only_layers_within_reach_are_found() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(0, 1), nn.Unflatten(0, (-1, 4)), nn.Conv2d(4, 4, 7))
    found = find(net, images(size=10))
    assert [*found.layers] == ["0"]
    assert found.skipped["4"].startswith("its maps are 2x2")


def test_rows_that_are_not_the_batch() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, clips: Tensor) -> Tensor:
            return F.relu(self.conv(clips.flatten(0, 1)))

    found = find(Frames(), torch.randn(2, 5, 3, 8, 8))
    assert found.skipped == {"conv": "its maps have 10 rows for a batch of 2"}


def test_finding_leaves_no_trace() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            assert not torch.is_grad_enabled()
            return F.relu(self.drop(self.bn(self.conv(x)))) + torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002

    net = Counting().train()
    net.bn.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = find(net, images(size=8))
    assert [*found.layers] == ["conv"]
    assert (net.training, net.bn.training, net.drop.training) == (True, False, True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert hooks_of(net) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_forward_pass_that_fails_leaves_no_trace(error: type[BaseException]) -> None:
    class Failing(CifarNet):
        fail = False

        def forward(self, x: Tensor) -> Tensor:
            out = F.relu(self.bn1(self.conv1(x)))
            out = F.relu(self.bn1(self.conv1(x)))
            if self.fail:
                raise error
            return out

    net = Failing()
    found = find(net, images(size=8))
    assert found.layers["conv1"].tap.function == "relu"
    net.fail = True
    with pytest.raises(error):
        find(net.train(), images(size=8))
    assert net.training
    assert _get_current_function_mode() is None
    seen: list[str] = []
    net.eval()
    with UnitTap(net, found.layers.values(), lambda layer, maps: seen.append(layer.name)) as tap:
        with pytest.raises(error):
            net(images(size=8))
        net.fail = False
        seen.clear()
        net(images(size=8))
        assert seen == ["conv1", "conv1#1"]
        tap.reset()
        net.fail = True
        with pytest.raises(error):
            net(images(size=8))
    assert _get_current_function_mode() is None
    assert hooks_of(net) == 0


def test_replacing_maps() -> None:
    net = FunctionalNet().eval()
    found = find(net, images(size=8))
    for layer in found.layers.values():
        with torch.no_grad(), UnitTap(net, [layer], lambda layer, maps: torch.zeros_like(maps)):
            assert torch.count_nonzero(net(images(size=8))) == 0
    with UnitTap(net, [found.layers["kernels.1"]], lambda layer, maps: maps * 2):
        net(images(size=8)).sum().backward()
    assert net.kernels[0].grad is not None


def test_an_inplace_module_whose_result_is_ignored() -> None:
    class Ignoring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            self.act(x)
            return x.mean((2, 3))

    net = Ignoring()
    with torch.no_grad(), UnitTap(net, find(net, images(size=8)).layers.values(), lambda layer, maps: maps * 0):
        assert torch.count_nonzero(net(images(size=8))) == 0


def test_a_part_of_the_model_that_is_called_by_another() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = randomised(CifarNet())

        def step(self, x: Tensor) -> Tensor:
            return self.net(x)

    wrapper = Wrapper().eval()
    found = find_unit_layers(wrapper.step, wrapper, images(size=8))
    assert next(iter(found.layers)) == "net.conv1"
    seen: list[str] = []
    with torch.no_grad(), UnitTap(wrapper, found.layers.values(), lambda layer, maps: seen.append(layer.name)):
        wrapper.step(images(3, size=8))
        wrapper.step(images(size=8))
    assert seen == [*found.layers] * 2


def test_forward_methods_called_without_the_module() -> None:
    net = FunctionalNet()
    found = find_unit_layers(net.forward, net, images(size=8))
    assert not found.layers
    assert found.skipped["kernels.0"] == (
        "its relu runs outside of every module, where no hook can see it. Call the model itself, not its forward method"
    )
    with pytest.raises(SettingError, match=r"no layer whose units can be analysed\. Left out: 'kernels\.0': its relu"):
        select_layers(found, "auto")


def test_a_changed_forward_pass_is_reported() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    layers = find(net, images(size=8)).layers.values()
    net[0] = nn.Conv2d(3, 6, 3)
    with UnitTap(net, layers, lambda layer, maps: None), pytest.raises(TraceError) as caught:
        net(images(size=8))
    assert str(caught.value) == (
        "Layer '0': expected maps [batch, 4, height, width] as output of module '1', after relu, got [2, 6, 6, 6]. The "
        "forward pass differs from the one in which the layer was found."
    )
    with UnitTap(net, layers, lambda layer, maps: None) as tap:
        assert tap.missing == ["0"]
    with pytest.raises(TraceError, match="The model has no module '1', where units are tapped"):
        UnitTap(nn.Sequential(net[0]), layers, lambda layer, maps: None).attach()
    assert hooks_of(net) == 0


@pytest.mark.parametrize("where", ["module", "in place", "function"])
def test_compiled_models_run_eagerly_under_a_tap(where: str) -> None:
    net: Any = randomised(CifarNet())
    if where == "in place":
        net.compile(backend="eager")
    elif where == "module":
        net = torch.compile(net, backend="eager")
    else:
        net.forward = torch.compile(net.forward, backend="eager")
    with torch.no_grad():
        expected = net(images(size=16))  # compiled before anything is tapped
        found = find(net, images(size=16))
        assert len(found.layers) == 5
        assert len(tapped(net, found.layers.values(), images(size=16))) == 5
        torch.testing.assert_close(net(images(size=16)), expected)
    assert hooks_of(net) == 0
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # deprecated, and still how many models are stored
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model_has_no_layers() -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images(size=8))
    with pytest.raises(SettingError, match="No two-dimensional convolution ran in Python"):
        select_layers(find(scripted, images(size=8)), "all")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model_is_left_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x

    scripted = torch.jit.trace(nn.Sequential(Counting(), nn.BatchNorm2d(3)).eval(), images(size=8)).train()
    before = {name: values.clone() for name, values in scripted.named_buffers()}
    with undisturbed(scripted):
        scripted(images(size=8))
    assert scripted.training
    for name, values in scripted.named_buffers():
        assert torch.equal(values, before[name]), name


def test_layers_can_be_pickled() -> None:
    found = find(CifarNet(), images(size=8))
    assert pickle.loads(pickle.dumps(found)) == found


def test_half_precision_and_channels_last() -> None:
    net = torchvision_net("resnet18").to(memory_format=torch.channels_last)
    layers = find(net, images()).layers
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = tapped(net, [layers["layer1.0.conv2"]], images())
    assert maps["layer1.0.conv2"].dtype == torch.bfloat16


class TestSelect:
    found = find(torchvision_net("resnet18"), images())

    def names(self, layers: Any) -> list[str]:
        return [layer.name for layer in select_layers(self.found, layers)]

    def test_auto_takes_the_last_of_each_map_size(self) -> None:
        assert self.names("auto") == ["conv1", "layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2"]

    def test_all(self) -> None:
        assert self.names("all") == [*self.found.layers]

    def test_names_and_globs_come_in_the_order_of_the_model_and_once(self) -> None:
        assert self.names("layer2.*") == ["layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1", "layer2.1.conv2"]
        assert self.names(["layer2.0.conv1", "conv1", "layer2.0.*"]) == ["conv1", "layer2.0.conv1", "layer2.0.conv2"]

    def test_unknown_names_say_which_exist(self) -> None:
        with pytest.raises(SettingError) as caught:
            self.names("layer1.0.conv3")
        message = str(caught.value)
        assert message.startswith("No layer matches 'layer1.0.conv3'. The model has these layers: 'layer1.0.conv")
        assert "'layer3.1.conv2'" in message

    def test_layers_that_were_left_out_say_why(self) -> None:
        with pytest.raises(SettingError, match=r"Layer 'layer4\.0\.conv1' cannot be analysed: its maps are 2x2"):
            self.names("layer4.0.conv1")
        with pytest.raises(
            SettingError, match=r"It matches only layers that were left out: 'layer4\.0\.conv1': its maps"
        ):
            self.names("layer4.*")

    def test_an_empty_list(self) -> None:
        with pytest.raises(SettingError, match="layers is an empty list"):
            self.names([])
