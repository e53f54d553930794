from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from networks import (
    BatchMean,
    CifarNet,
    DataDependent,
    FixedView,
    FunctionalNet,
    HiddenSize,
    InPlaceTraps,
    PartOfBuffer,
    PreActNet,
    SqueezeNet,
    TwoOutputs,
    mostly_slow,
    randomised,
    torchvision_net,
)
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unitrole.ablation import (
    AblationEngine,
    AblationRequest,
    Replay,
    cumulative_ablation,
    first_tensor,
    measure_curves,
)
from lightning_unitrole.ablation.recorder import record
from lightning_unitrole.errors import DataError, SettingError, TraceError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import UnitLayer, find_unit_layers
from lightning_unitrole.reports.curves import AblationCurve

Data = list[tuple[Tensor, Tensor]]


def make_data(*sizes: int, size: int, dtype: torch.dtype = torch.float64, classes: int = 10) -> Data:
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(0, classes, (count,), generator=generator),
        )
        for count in sizes
    ]


def one_after_another(
    net: nn.Module, layer: UnitLayer, order: Tensor, data: Data, numbers: Sequence[int], group: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain way: a full forward pass of the whole model for every number of units."""
    rows = []
    for number in numbers:
        on = torch.ones(layer.num_units, dtype=torch.bool)
        on[order[:number]] = False

        def switch_off(_: UnitLayer, maps: Tensor, on: Tensor = on) -> Tensor:
            return maps * on[:, None, None]

        losses = []
        with torch.no_grad(), UnitTap(net, [layer], switch_off):
            for inputs, targets in data:
                logits = first_tensor(net(inputs)).double()
                right = (logits.argmax(1) == targets).double()
                top5 = (logits.topk(5).indices == targets[:, None]).any(1).double()
                score = torch.stack([F.cross_entropy(logits, targets, reduction="none"), right, top5], dim=1)
                losses.append(score if group is None else score[targets == group])
        rows.append(torch.cat(losses).mean(0))
    return tuple(torch.stack(rows).unbind(1))


def assert_same(curve: AblationCurve, expected: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    for got, wanted in zip((curve.loss, curve.accuracy, curve.top5), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)
    assert not torch.allclose(curve.loss, curve.loss[0], rtol=0, atol=1e-12), "the ablation changes nothing"


def curves_at(engine: AblationEngine, requests: list[AblationRequest], numbers: list[int]) -> list[AblationCurve]:
    points = torch.tensor(numbers)
    sums = engine.measure(requests, [points] * len(requests))
    return [AblationCurve(points, *(part[:, :3] / part[:, 3:]).unbind(1)) for part in sums]


def check(net: nn.Module, layer: UnitLayer, data: Data, numbers: int = 3, **settings: Any) -> Replay:
    """Measure one layer for all images and for one class; compare both with the plain way."""
    order = torch.randperm(layer.num_units, generator=torch.Generator().manual_seed(5))
    at = torch.linspace(0, layer.num_units, numbers).long().tolist()
    label = int(data[0][1][0])
    requests = [AblationRequest(order), AblationRequest(order.flip(0), group=label)]
    batches = [(inputs, targets, targets) for inputs, targets in data]
    engine = AblationEngine(Runner(net), layer, lambda: batches, **settings)
    overall, of_class = curves_at(engine, requests, at)
    assert_same(overall, one_after_another(net, layer, order, data, at))
    assert_same(of_class, one_after_another(net, layer, order.flip(0), data, at, label))
    assert engine.replay is not None
    return engine.replay


def layers_of(net: nn.Module, data: Data) -> dict[str, UnitLayer]:
    return dict(find_unit_layers(net, net, data[0][0][:2]).layers)


ZOO = {
    "vgg11_bn": ["features.0", "features.18"],
    "resnet18": ["conv1", "layer2.0.conv2"],
    "resnet50": ["layer2.0.conv3", "layer3.5.conv2"],
    "densenet121": ["features.denseblock2.denselayer3.conv2", "features.transition2.conv"],
    "mobilenet_v3_small": ["features.0.0", "features.4.block.1.0", "features.7.block.3.0"],
    "efficientnet_b0": ["features.2.1.block.3.0", "features.5.0.block.1.0"],
    "convnext_tiny": ["features.1.1.block.0", "features.3.1.block.0"],
    "googlenet": ["inception4a.branch2.1.conv"],
    "squeezenet1_1": ["features.3.expand1x1"],
    "regnet_y_400mf": ["trunk_output.block2.block2-0.f.b.0"],
    "shufflenet_v2_x0_5": ["stage2.1.branch2.3"],
}
QUICK = ["mobilenet_v3_small", "shufflenet_v2_x0_5"]


@pytest.mark.parametrize("name", mostly_slow(ZOO, quick=QUICK))
def test_torchvision_networks_in_float64(name: str) -> None:
    net = torchvision_net(name).double()
    if name == "vgg11_bn":  # its hundred million weights behind the convolutions would take most of the time
        net.classifier = nn.Linear(512 * 49, 10).double()
    data = make_data(2, 1, size=32 if name in ("vgg11_bn", "convnext_tiny") else 64)
    found = layers_of(net, data)
    for layer in ZOO[name]:
        assert check(net, found[layer], data) is Replay.ANY_ROWS


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("make", "replay"),
    [
        pytest.param(CifarNet, Replay.ANY_ROWS, id="functional residual"),
        pytest.param(PreActNet, Replay.ANY_ROWS, id="pre-activation"),
        pytest.param(FunctionalNet, Replay.ANY_ROWS, id="functions and in-place"),
        pytest.param(SqueezeNet, Replay.ANY_ROWS, id="grouped, depthwise, squeeze-and-excitation"),
        pytest.param(lambda: TwoOutputs("dict"), Replay.ANY_ROWS, id="dict, shared weights"),
        pytest.param(lambda: TwoOutputs("tuple"), Replay.ANY_ROWS, id="tuple"),
        pytest.param(lambda: TwoOutputs("named tuple"), Replay.ANY_ROWS, id="named tuple"),
        pytest.param(InPlaceTraps, Replay.ANY_ROWS, id="in-place traps"),
    ],
)
def test_every_layer_of_small_networks(make: Callable[[], nn.Module], replay: Replay) -> None:
    net = randomised(make()).double()
    data = make_data(5, 5, 3, 1, size=8)
    for layer in layers_of(net, data).values():
        assert check(net, layer, data, numbers=layer.num_units + 1) is replay


def test_a_batch_size_in_a_shape_needs_pieces_of_that_size() -> None:
    net = HiddenSize().double().eval()
    data = make_data(5, 4, size=8)
    assert check(net, layers_of(net, data)["conv1"], data) is Replay.BATCH_SIZED
    assert check(net, layers_of(net, data)["conv1"], data, max_memory=2**14) is Replay.BATCH_SIZED


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize(
    ("make", "replay"),
    [(FixedView, Replay.ANY_ROWS), (HiddenSize, Replay.BATCH_SIZED), (BatchMean, Replay.WHOLE_BATCH)],
)
def test_batches_of_every_size_are_told_apart(make: Callable[[], nn.Module], replay: Replay, size: int) -> None:
    net = make().double().eval()
    data = make_data(size, size, size=8)
    layer = layers_of(net, data)["conv1"]
    assert check(net, layer, data, numbers=4) is replay


def test_images_that_influence_one_another_are_replayed_together() -> None:
    net = BatchMean().double().eval()
    data = make_data(5, 4, size=8)
    assert check(net, layers_of(net, data)["conv1"], data) is Replay.WHOLE_BATCH


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (DataDependent, "conv1", "the forward pass reads values that depend on it into Python (__bool__)"),
        (PartOfBuffer, "conv2", "the forward pass writes into a part of another tensor in place"),
    ],
)
def test_what_cannot_be_replayed_runs_as_a_whole_and_says_so_once(
    make: Callable[[], nn.Module], layer: str, reason: str
) -> None:
    net = make().double().eval()
    data = make_data(4, 3, size=8)
    with pytest.warns(UserWarning, match="cannot be replayed") as caught:
        assert check(net, layers_of(net, data)[layer], data) is Replay.NONE
    assert [str(warning.message) for warning in caught] == [
        (
            f"Layer {layer!r}: what lies behind it cannot be replayed, because {reason}. The whole model runs for "
            "every number of ablated units instead: slower, with the same result."
        )
    ]


def test_data_flow_out_of_sight_is_noticed() -> None:
    class Hidden(FixedView):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv2(F.relu(self.conv1(x))))
            with torch._C.DisableTorchFunction():
                hidden = x * 2
            return self.fc(hidden.flatten(1))

    net = Hidden().double().eval()
    data = make_data(4, size=8)
    with pytest.warns(UserWarning, match="because a replay gives other outputs than the whole model"):
        assert check(net, layers_of(net, data)["conv1"], data) is Replay.NONE


def test_maps_computed_twice_in_a_forward_pass() -> None:
    net = randomised(CifarNet()).double()
    data = make_data(3, size=8)
    layer = layers_of(net, data)["block1.conv1"]

    def flipped_too(inputs: Tensor) -> Tensor:
        return net(inputs) + net(inputs.flip(3))

    numbers = [0, 2, 6]
    order = torch.randperm(6)
    with pytest.warns(UserWarning, match="a forward pass computes its maps more than once"):
        curve = curves_at(
            AblationEngine(Runner(net, forward=flipped_too), layer, lambda: data), [AblationRequest(order)], numbers
        )[0]

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return flipped_too(x)

    both = Both()
    twice = layers_of(both, data)
    on = torch.ones(6, dtype=torch.bool)
    losses = []
    for number in numbers:
        on[order[:number]] = False
        taps = [twice["net.block1.conv1"], twice["net.block1.conv1#1"]]
        with torch.no_grad(), UnitTap(both, taps, lambda _, maps: maps * on[:, None, None]):
            losses.append(F.cross_entropy(both(data[0][0]), data[0][1]))
    torch.testing.assert_close(curve.loss, torch.stack(losses), rtol=0, atol=1e-12)


def test_the_layer_and_what_is_before_it_run_once_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    net = torchvision_net("resnet18").double()
    data = make_data(5, 5, size=32)
    found = layers_of(net, data)
    layer = found["layer2.1.conv2"]
    for name in ("layer1", "layer3"):

        def count(module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
            # Logged, because what a hook itself holds is put back.
            logging.getLogger("calls").warning("%s", name, extra={"rows": len(args[0])})

        net.get_submodule(name).register_forward_pre_hook(count)
    curves = measure_curves(
        AblationEngine(Runner(net), layer, lambda: data), [AblationRequest(torch.arange(128))], points=16
    )
    assert curves[0] is not None
    # Each batch is recorded once, in whatever number of rounds, and checked once on two images.
    for name in ("layer1", "layer3"):
        rows = [record.rows for record in caplog.records if record.getMessage() == name]
        assert len(rows) == 3
        assert sum(rows) == 12


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", [CifarNet, HiddenSize, BatchMean])
def test_memory_bounds_change_nothing(kind: type[nn.Module]) -> None:
    net = randomised(kind()).double()
    data = make_data(5, 5, 2, size=8)
    layer = layers_of(net, data)["conv1"]
    orders = [torch.randperm(6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    batches = [(inputs, targets, targets % 2) for inputs, targets in data]
    requests = [AblationRequest(order, group) for order, group in zip(orders, (None, 0, 1), strict=True)]
    numbers = [torch.arange(7), torch.tensor([0, 3]), torch.tensor([1, 6])]
    reference = None
    for max_memory in (None, 2**24, 2**15, 2**13, 1):
        engine = AblationEngine(Runner(net), layer, lambda: batches, max_memory=max_memory)
        for _ in range(2):  # the second time from whatever recordings were kept
            sums = engine.measure(requests, numbers)
            reference = reference or sums
            for got, wanted in zip(sums, reference, strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_pieces_have_the_size_that_memory_allows() -> None:
    net = randomised(CifarNet()).double()
    data = make_data(8, size=16)
    layer = layers_of(net, data)["block1.conv1"]
    sizes: list[int] = []

    def score(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(outputs))
        return outputs.sum(1), targets

    with torch.no_grad():
        per_row = record(Runner(net), layer, data[0][0], set()).bytes_per_row
    request = [AblationRequest(torch.arange(6))]
    for rows, largest in ((1000, 48), (20, 16), (8, 8), (3, 3), (0, 1)):
        sizes.clear()
        engine = AblationEngine(Runner(net), layer, lambda: data, max_memory=2 * per_row * rows + 1, score_fn=score)
        engine.measure(request, [torch.arange(1, 7)])
        assert sum(sizes) == 48
        assert max(sizes) == largest


def test_nothing_is_left_behind() -> None:
    class Random(CifarNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            assert not torch.is_grad_enabled()
            random.random()
            return super().forward(self.dropout(x))

    net = randomised(Random()).train()
    net.bn1.eval()
    data = make_data(4, size=8, dtype=torch.float32)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inputs = data[0][0].clone()
    states = torch.get_rng_state(), random.getstate()
    cumulative_ablation(net, "conv1", torch.arange(6), data)
    assert (net.training, net.bn1.training, net.dropout.training) == (True, False, True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.equal(data[0][0], inputs)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_inputs_that_the_model_overwrites_are_copied() -> None:
    class Normalising(FixedView):
        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5).mul_(2.0)
            return super().forward(x)

    net = Normalising().double().eval()
    data = make_data(3, size=8)
    untouched = data[0][0].clone()
    order = torch.randperm(6)
    curve = cumulative_ablation(net, "conv1", order, data)
    assert torch.equal(data[0][0], untouched)
    layer = layers_of(net, [(untouched.clone(), data[0][1])])["conv1"]
    loss = one_after_another(net, layer, order, [(untouched.clone(), data[0][1])], [3])[0]
    torch.testing.assert_close(curve.loss[3:4], loss, rtol=0, atol=1e-12)


def test_inference_mode_and_autocast() -> None:
    net = randomised(CifarNet())
    data = make_data(4, 4, size=8, dtype=torch.float32)
    plain = cumulative_ablation(net, "block1.conv1", torch.arange(6), data)
    with torch.inference_mode():
        inside = cumulative_ablation(net, "block1.conv1", torch.arange(6), [(x.clone(), y.clone()) for x, y in data])
    assert torch.equal(plain.loss, inside.loss)

    def half(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(inputs)

    low = cumulative_ablation(net, "block1.conv1", torch.arange(6), data, forward=half)
    assert not torch.equal(plain.loss, low.loss)
    torch.testing.assert_close(plain.loss, low.loss, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = cumulative_ablation(net, "block1.conv1", torch.arange(6), data)
    torch.testing.assert_close(low.loss, around.loss)


def test_compiled_models() -> None:
    net = randomised(CifarNet())
    data = make_data(4, size=8, dtype=torch.float32)
    expected = cumulative_ablation(net, "block1.conv2", torch.arange(6), data)
    net.compile(backend="eager")
    with torch.no_grad():
        net(data[0][0])
    assert torch.equal(cumulative_ablation(net, "block1.conv2", torch.arange(6), data).loss, expected.loss)
    torch._dynamo.reset()


def test_groups_and_orders_share_one_pass() -> None:
    net = randomised(CifarNet()).double()
    data = make_data(6, 6, 3, size=8, classes=3)
    layer = layers_of(net, data)["block2.conv2"]
    orders = [torch.randperm(8, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    groups = [None, None, 0, 1, 7]
    requests = [AblationRequest(order, group) for order, group in zip(orders, groups, strict=True)]
    curves = measure_curves(AblationEngine(Runner(net), layer, lambda: [(x, y, y) for x, y in data]), requests)
    assert curves[4] is None
    for curve, order, group in zip(curves[:4], orders, groups, strict=False):
        assert curve is not None
        assert_same(curve, one_after_another(net, layer, order, data, range(9), group))


def test_sums_of_several_processes_are_added_before_points_are_refined() -> None:
    net = randomised(CifarNet()).double()
    data = make_data(4, 4, 4, 4, size=8)
    layer = layers_of(net, data)["block2.conv2"]
    request = [AblationRequest(torch.arange(8))]
    numbers = [torch.arange(9)]
    other = AblationEngine(Runner(net), layer, lambda: data[2:]).measure(request, numbers)[0]
    seen: list[list[int]] = []

    class OneOfTwo(Runner):
        def total(self, values: Tensor) -> Tensor:
            seen.append(list(values.shape))
            return values + other

    together = measure_curves(AblationEngine(OneOfTwo(net), layer, lambda: data[:2]), request)[0]
    assert seen == [[9, 4]]
    alone = measure_curves(AblationEngine(Runner(net), layer, lambda: data), request)[0]
    assert together is not None
    assert alone is not None
    torch.testing.assert_close(together.loss, alone.loss, rtol=0, atol=1e-12)


def test_multi_label_scores() -> None:
    net = randomised(TwoOutputs("dict")).double()
    generator = torch.Generator().manual_seed(6)
    labels = torch.randint(0, 2, (5, 10), generator=generator).double()
    data: Any = [(make_data(5, size=8)[0][0], {"labels": labels})]

    def score(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        assert outputs["features"].shape == (len(outputs["logits"]), 6)
        loss = F.binary_cross_entropy_with_logits(outputs["logits"], targets["labels"], reduction="none").mean(1)
        return loss, ((outputs["logits"] > 0) == (targets["labels"] > 0)).double().mean(1)

    order = torch.randperm(6)
    curve = cumulative_ablation(net, "shared", order, data, score_fn=score)
    assert bool(curve.top5.isnan().all())
    layer = layers_of(net, data)["shared"]
    on = torch.ones(6, dtype=torch.bool)
    on[order[:2]] = False
    with torch.no_grad(), UnitTap(net, [layer], lambda _, maps: maps * on[:, None, None]):
        loss, right = score(net(data[0][0]), data[0][1])
    torch.testing.assert_close(curve.loss[2], loss.mean())
    torch.testing.assert_close(curve.accuracy[2], right.mean())


def test_segmentation_scores() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1)).double()
    generator = torch.Generator().manual_seed(7)
    data: Any = [(make_data(3, size=8)[0][0], torch.randint(0, 4, (3, 8, 8), generator=generator))]

    def score(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(outputs, targets, reduction="none").mean((1, 2))
        return loss, (outputs.argmax(1) == targets).double().mean((1, 2))

    curve = cumulative_ablation(net, "0", torch.arange(5), data, score_fn=score)
    with torch.no_grad():
        dark = score(net[2](torch.zeros(3, 5, 8, 8).double()), data[0][1])
    torch.testing.assert_close(curve.loss[5], dark[0].mean())
    with pytest.raises(
        DataError, match=r"The model returned a tensor of shape \[3, 4, 8, 8\] for 3 images; expected logits"
    ):
        cumulative_ablation(net, "0", torch.arange(5), data)


def test_structured_inputs() -> None:
    class Named(FixedView):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return super().forward(batch["image"] * batch["scale"][:, None, None, None])

    net = Named().double().eval()
    inputs = {"image": make_data(4, size=8)[0][0], "scale": torch.rand(4, dtype=torch.float64)}
    data: Any = [(inputs, torch.tensor([1, 2, 3, 4]))]
    order = torch.randperm(6)
    curve = cumulative_ablation(net, "conv1", order, data)
    layer = find_unit_layers(net, net, inputs).layers["conv1"]
    assert_same(curve, one_after_another(net, layer, order, data, range(7)))


def test_few_classes_have_no_top5() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    curve = cumulative_ablation(net, "0", [3, 1, 0, 2], make_data(3, size=8, dtype=torch.float32, classes=5))
    assert bool(curve.top5.isnan().all())
    assert bool(curve.accuracy.isfinite().all())


def test_points_and_progress() -> None:
    net = randomised(CifarNet())
    data = make_data(4, 4, size=8, dtype=torch.float32)
    calls: list[None] = []
    curve = cumulative_ablation(
        net, "block2.conv2", torch.arange(8), data, points=6, progress=lambda: calls.append(None)
    )
    every = cumulative_ablation(net, "block2.conv2", torch.arange(8), data)
    assert {0, 8, curve.turning_point} <= {*curve.ablated.tolist()}
    assert len(calls) % 2 == 0
    torch.testing.assert_close(curve.loss, every.loss[curve.ablated])


class TestBadInput:
    net = randomised(CifarNet())
    data = make_data(3, size=8, dtype=torch.float32)

    def run(self, **changes: Any) -> AblationCurve:
        settings: dict[str, Any] = {"model": self.net, "layer": "conv1", "order": range(6), "data": self.data}
        settings |= changes
        return cumulative_ablation(**settings)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"layer": "conv2"}, SettingError, "No layer matches 'conv2'. The model has these layers: 'conv1', "),
            ({"layer": "block1.*"}, SettingError, "layer='block1.*' matches 2 layers: block1.conv1, block1.conv2."),
            ({"layer": "block2.shortcut.0"}, SettingError, "its output is added to that of 'block2.conv2' before"),
            ({"order": [0, 1, 2]}, SettingError, "Layer 'conv1': order is int64 [3]; expected [6] integers, every"),
            ({"order": torch.rand(6)}, SettingError, "Layer 'conv1': order is float32 [6]; expected [6] integers"),
            (
                {"order": [0, 1, 2, 3, 4, 4]},
                SettingError,
                "Layer 'conv1': order is not a permutation of its 6 units; missing are [5].",
            ),
            ({"points": 1}, SettingError, "points=1; expected at least 2, for none and all units off, or None"),
            ({"max_memory": 0}, SettingError, "max_memory=0; expected a positive number of bytes, or None."),
            ({"data": []}, DataError, "Layer 'conv1': data has no images; expected at least one batch"),
            ({"data": [torch.rand(3, 3, 8, 8)]}, DataError, "A batch of data is a Tensor; expected a pair"),
            (
                {"data": [(torch.rand(2, 3, 8, 8), torch.tensor([0, 10]))]},
                DataError,
                "The targets hold labels from 0 to 10; expected 0 to 9, as the model tells 10 classes apart.",
            ),
            (
                {"data": [(torch.rand(2, 3, 8, 8), torch.tensor([-1, 3]))]},
                DataError,
                "The targets hold labels from -1 to 3; expected 0 to 9",
            ),
            (
                {"data": [(torch.rand(2, 3, 8, 8), torch.tensor([1, 2, 3]))]},
                DataError,
                "A batch has 2 images and 3 targets; expected one target an image.",
            ),
            (
                {"data": [(torch.rand(2, 3, 8, 8), torch.rand(2, 10))]},
                DataError,
                "The targets of a batch are torch.float32 [2, 10]; expected [2] class indices. For another task than",
            ),
            (
                {"score_fn": lambda outputs, targets: (F.cross_entropy(outputs, targets), targets)},
                DataError,
                "score_fn returned [] and [3] for 3 images; expected a loss [3] and a score [3]: one number an image",
            ),
            ({"forward": lambda inputs: None}, SettingError, "The model has no layer whose units can be analysed."),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_messages(self, changes: dict[str, Any], error: type[Exception], message: str) -> None:
        with warnings.catch_warnings(), pytest.raises(error) as caught:
            self.run(**changes)
        assert message in str(caught.value)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in self.net.modules())

    def test_batches_that_come_only_once(self) -> None:
        expected = self.run()
        assert torch.equal(self.run(data=iter(self.data)).loss, expected.loss)
        layer = layers_of(self.net, self.data)["conv1"]
        assert torch.equal(self.run(layer=layer, data=iter(self.data)).loss, expected.loss)
        with pytest.raises(SettingError, match=r"data is a list_iterator, which gives its batches only once; points=4"):
            self.run(data=iter(self.data), points=4)

    def test_a_forward_function_that_does_not_reach_the_layer(self) -> None:
        layer = layers_of(self.net, self.data)["block2.conv1"]
        with pytest.raises(TraceError, match=r"Layer 'block2.conv1': the forward pass did not reach its maps \(output"):
            self.run(layer=layer, order=range(8), forward=lambda x: F.relu(self.net.conv1(x)).mean((2, 3)))

    def test_groups(self) -> None:
        layer = layers_of(self.net, self.data)["conv1"]
        request = [AblationRequest(torch.arange(6), group=1)]
        with pytest.raises(DataError, match="Group 1 is asked for, but the batches have no groups"):
            measure_curves(AblationEngine(Runner(self.net), layer, lambda: self.data), request)
        short = [(x, y, y[:1]) for x, y in self.data]
        with pytest.raises(DataError, match=r"A batch has 3 images and groups \[1\]; expected \[3\]"):
            measure_curves(AblationEngine(Runner(self.net), layer, lambda: short), request)
