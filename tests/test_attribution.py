"""What each unit adds to the answers: against the closed form, a plain loop, and hooks that switch single units off."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import (
    BatchMean,
    CifarNet,
    DataDependent,
    FunctionalNet,
    HiddenSize,
    InPlaceTraps,
    PreActNet,
    SqueezeNet,
    TwoOutputs,
    randomised,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_unitrole.ablation.attribution import Attribution, gauss_legendre
from lightning_unitrole.ablation.recorder import record, record_all
from lightning_unitrole.ablation.scores import first_tensor, margins
from lightning_unitrole.ablation.tape import Tape, switched_off
from lightning_unitrole.data.sample import Images
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import UnitLayer, find_unit_layers
from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.significance import rank_correlation

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "functional residual": CifarNet,
    "pre-activation": PreActNet,
    "functions and in-place": FunctionalNet,
    "squeeze-and-excitation": SqueezeNet,
    "shared weights": lambda: TwoOutputs("dict"),
}
RECORDED = {**NETWORKS, "in-place traps": InPlaceTraps}


def make_images(count: int = 6, *, size: int = 8, classes: int = 3, seed: int = 4) -> Images:
    """Images of three classes in turn, of which the first halves are even and the second odd."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    labels = torch.arange(count) % classes
    return Images(inputs, labels, labels, torch.arange(count) // classes % 2)


def layers_of(net: nn.Module, images: Images) -> list[UnitLayer]:
    return [*find_unit_layers(net, net, images.inputs[:2]).layers.values()]


def attribute(
    net: nn.Module, *batches: Images, layers: list[UnitLayer] | None = None, steps: int = 3, **settings: Any
) -> Attribution:
    """The contributions to the images of some batches, of three classes."""
    runner = Runner(net)
    layers = layers_of(net, batches[0]) if layers is None else layers
    found = Attribution(runner, layers, 3, steps=steps, **settings)
    with runner.undisturbed():
        for batch in batches:
            found.add(batch)
    return found


def sums_of(values: Tensor, images: Images) -> Tensor:
    """``[2, 3, U]`` sums of ``[B, U]`` values by half and class."""
    sums = torch.zeros(2, 3, values.shape[1], dtype=torch.float64)
    for row in range(len(values)):
        sums[images.halves[row], images.groups[row]] += values[row]
    return sums


def by_a_plain_loop(net: nn.Module, layer: UnitLayer, images: Images, steps: int) -> Tensor:
    """``[B, U]``: image by image and node by node, through hooks in the whole model."""
    rows = []
    for row in range(len(images.inputs)):
        one, label = images.inputs[row : row + 1], images.targets[row : row + 1]
        caught: list[Tensor] = []
        with torch.no_grad(), UnitTap(net, [layer], lambda _, maps, caught=caught: caught.append(maps.clone())):
            net(one.clone())
        total = torch.zeros_like(caught[0])
        for node, weight in gauss_legendre(steps):
            maps = (node * caught[0]).requires_grad_()
            with UnitTap(net, [layer], lambda _, own, maps=maps: maps.clone()):
                margin = margins(net(one.clone()), label, None).sum()
            total += weight * torch.autograd.grad(margin, maps)[0]
        rows.append((total * caught[0]).sum((2, 3))[0])
    return torch.stack(rows)


def by_switching_off(net: nn.Module, layer: UnitLayer, images: Images, units: list[int]) -> Tensor:
    """``[B, U]`` what the margin loses without each unit, with a hook in the whole model; zero for other units."""
    lost = torch.zeros(len(images.inputs), layer.num_units, dtype=torch.float64)
    with torch.no_grad():
        whole = margins(net(images.inputs.clone()), images.targets, None)
        for unit in units:
            on = torch.ones(layer.num_units, 1, 1, dtype=torch.float64)
            on[unit] = 0
            with UnitTap(net, [layer], lambda _, maps, on=on: maps * on):
                lost[:, unit] = whole - margins(net(images.inputs.clone()), images.targets, None)
    return lost


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("make", RECORDED.values(), ids=RECORDED)
def test_one_recorded_pass_for_all_layers_equals_one_for_each(make: Callable[[], nn.Module]) -> None:
    net = randomised(make()).double()
    images = make_images()
    layers = layers_of(net, images)
    runner = Runner(net)
    generator = torch.Generator().manual_seed(0)
    with runner.undisturbed():
        together = record_all(runner, layers, images.inputs, {layer.name: set() for layer in layers})
        for layer, tape in zip(layers, together, strict=True):
            alone = record(runner, layer, images.inputs, set())
            assert isinstance(tape, Tape)
            assert torch.equal(tape.maps, alone.maps)
            assert torch.equal(first_tensor(tape.outputs), first_tensor(alone.outputs))
            rows = torch.tensor([5, 0, 0, 3, 2, 2, 1])
            off = torch.rand(7, layer.num_units, generator=generator) < 0.5
            expected = first_tensor(alone.replay(off, rows))
            assert torch.equal(first_tensor(tape.replay(off, rows)), expected)
            with UnitTap(net, [layer], lambda _, maps, off=off: switched_off(maps, off)):
                close(expected, first_tensor(net(images.inputs[rows].clone())))


def test_recording_all_layers_runs_the_network_once() -> None:
    net = randomised(CifarNet()).double()
    images = make_images()
    layers, calls = layers_of(net, images), []
    net.conv1.register_forward_hook(lambda *_: calls.append(None))
    with Runner(net).undisturbed():
        record_all(Runner(net), layers, images.inputs, {layer.name: set() for layer in layers})
        assert len(calls) == 1  # afterwards the hook's list is as it was
    assert len(layers) == 5


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_contributions_equal_a_plain_loop(make: Callable[[], nn.Module]) -> None:
    net = randomised(make()).double().requires_grad_(False)
    batches = [make_images(6, seed=1), make_images(3, seed=2)]
    layers = layers_of(net, batches[0])
    results = attribute(net, *batches, layers=layers).results()
    for layer in layers:
        values = [by_a_plain_loop(net, layer, images, 3) for images in batches]
        found = results[layer.name]
        assert found.images.tolist() == [[2, 2, 2], [1, 1, 1]]
        close(found.sums, sum(sums_of(*pair) for pair in zip(values, batches, strict=True)))  # type: ignore[arg-type]
        close(found.squares, sum(sums_of(part.square(), one) for part, one in zip(values, batches, strict=True)))  # type: ignore[arg-type]
        assert int(found.steps) == 3
        assert found.sums.abs().max() > 1e-3


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_removal_effects_equal_a_hook_that_switches_units_off(make: Callable[[], nn.Module]) -> None:
    net = randomised(make()).double()
    images = make_images()
    layers = layers_of(net, images)
    attribution = attribute(net, images, layers=layers, removal=True)
    removal, found = attribution.removal_results(), attribution.results()
    for layer in layers:
        expected = by_switching_off(net, layer, images, [*range(layer.num_units)])
        close(removal[layer.name].sums, sums_of(expected, images))
        close(removal[layer.name].squares, sums_of(expected.square(), images))
        predicted = rank_correlation(found[layer.name].sums.sum((0, 1)), expected.sum(0))
        assert attribution.predictions()[layer.name] == pytest.approx(float(predicted))


@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
def test_nodes_and_weights_integrate_polynomials_exactly(nodes: int) -> None:
    points = gauss_legendre(nodes)
    assert all(0 < node < 1 for node, _ in points)
    for power in range(2 * nodes):
        assert sum(weight * node**power for node, weight in points) == pytest.approx(1 / (power + 1), abs=1e-12)
    assert sum(weight * np.exp(node) for node, weight in gauss_legendre(12)) == pytest.approx(math.e - 1, abs=1e-13)


def linear_head(classes: int = 2, units: int = 5) -> nn.Sequential:
    """A global average pool and a linear layer, behind one convolution."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, units, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(units, classes),
    ).double()


def closed_form(net: nn.Sequential, images: Images, baseline: Tensor | float = 0.0) -> Tensor:
    """``[B, U]`` for two classes, whose margin is linear: the difference of the weights times that of the means."""
    maps = net[:2](images.inputs)
    weight = net[4].weight
    difference = weight[images.targets] - weight[1 - images.targets]
    return (difference * (maps - baseline).mean((2, 3))).detach()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_linear_head_behind_a_global_average_pool_has_a_closed_form(steps: int) -> None:
    net, images = linear_head(), make_images(classes=2)
    attribution = attribute(net, images, steps=steps, removal=True)
    expected = closed_form(net, images)
    for found in (attribution.results()["0"], attribution.removal_results()["0"]):
        close(found.sums, sums_of(expected, images))
        close(found.squares, sums_of(expected.square(), images))
    found = attribution.results()["0"]
    assert found.completeness_error < 1e-12
    close(found.margin, sums_of(expected.sum(1, keepdim=True), images).squeeze(2))
    close(found.sizes, sums_of(expected.sum(1, keepdim=True).abs(), images).squeeze(2))
    assert attribution.predictions()["0"] == pytest.approx(1)


def test_removal_effects_before_a_linear_head_need_no_pass_for_each_unit() -> None:
    class Counted(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += func is torch.nn.functional.linear
            return func(*args, **(kwargs or {}))

    net, images = linear_head(classes=3, units=40), make_images()
    layers = layers_of(net, images)
    calls = []
    for removal in (False, True):
        with Counted() as counted:
            attribution = attribute(net, images, layers=layers, removal=removal)
        calls.append(counted.calls)
    assert calls[1] - calls[0] == 1
    expected = by_switching_off(net, layers[0], images, [*range(40)])
    close(attribution.removal_results()["0"].sums, sums_of(expected, images))
    close(attribution.removal_results()["0"].squares, sums_of(expected.square(), images))


def test_the_path_may_begin_at_the_mean_map() -> None:
    net, images = linear_head(), make_images(classes=2)
    mean = net[:2](images.inputs).mean(0).detach()
    attribution = attribute(net, images, fills={"0": mean}, removal=True)
    expected = closed_form(net, images, mean)
    assert not torch.allclose(expected, closed_form(net, images), atol=1e-3)
    for found in (attribution.results()["0"], attribution.removal_results()["0"]):
        close(found.sums, sums_of(expected, images))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", [CifarNet, SqueezeNet, FunctionalNet])
def test_with_many_nodes_contributions_add_up_to_what_the_layer_does(make: Callable[[], nn.Module]) -> None:
    net, images = randomised(make()).double(), make_images()
    layers = layers_of(net, images)
    errors = {}
    for steps in (1, 4, 100):
        results = attribute(net, images, layers=layers, steps=steps).results()
        errors[steps] = max(found.completeness_error for found in results.values())
    assert errors[100] < 2e-3
    assert errors[100] < errors[4] < errors[1]
    for layer in layers:
        with torch.no_grad():
            whole = margins(net(images.inputs.clone()), images.targets, None)
            with UnitTap(net, [layer], lambda _, maps: torch.zeros_like(maps)):
                whole = whole - margins(net(images.inputs.clone()), images.targets, None)
        close(results[layer.name].margin, sums_of(whole.unsqueeze(1), images).squeeze(2))


def no_gradient(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The default score, by way of NumPy."""
    logits = torch.from_numpy(outputs.detach().numpy())
    margin = margins(logits, targets, None)
    return -margin, (margin > 0).double()


def test_without_a_gradient_permutations_are_sampled_and_it_is_said_once() -> None:
    net, batches = linear_head(), [make_images(6, classes=2, seed=1), make_images(4, classes=2, seed=2)]
    said = (
        "Layer '0': contributions are estimated from sampled permutations of the units, which takes a pass for each "
        "unit, because score_fn has no gradient."
    )
    with pytest.warns(UserWarning, match="sampled permutations") as caught:
        found = attribute(net, *batches, score_fn=no_gradient).results()["0"]
    assert [str(warning.message) for warning in caught] == [said]
    assert int(found.steps) == 0
    assert found.completeness_error < 1e-12
    # Where units do not work together, each permutation says the same.
    close(found.sums, sum(sums_of(closed_form(net, images), images) for images in batches))  # type: ignore[arg-type]


def test_permutations_add_up_and_agree_with_gradients_where_units_work_together() -> None:
    net, images = randomised(SqueezeNet()).double(), make_images(30)
    layers = layers_of(net, images)
    with pytest.warns(UserWarning, match="sampled permutations"):
        sampled = attribute(net, images, layers=layers, score_fn=no_gradient).results()
    exact = attribute(net, images, layers=layers, steps=20).results()
    for layer in layers:
        one, other = sampled[layer.name], exact[layer.name]
        assert one.completeness_error < 1e-12
        close(one.margin, other.margin)
        assert float(rank_correlation(one.by_class().mean, other.by_class().mean).mean()) > 0.7


def test_a_score_of_the_users_own_stands_for_the_margin() -> None:
    net, images = linear_head(), make_images(classes=2)

    def score(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        margin = 3 * margins(outputs, targets, None)
        return -margin, (margin > 0).double()

    found = attribute(net, images, score_fn=score).results()["0"]
    close(found.sums, sums_of(3 * closed_form(net, images), images))


def test_a_network_that_cannot_be_differentiated_is_sampled() -> None:
    """It writes into tensors that the gradient needs, so it could not be trained either."""
    net, images = randomised(InPlaceTraps()).double(), make_images()
    layer = layers_of(net, images)[0]
    said = r"Layer 'conv1'.*sampled.*because the network cannot be differentiated \(one of the variables needed"
    with pytest.warns(UserWarning, match=said):
        attribution = attribute(net, images, layers=[layer], removal=True)
    found = attribution.results()["conv1"]
    assert int(found.steps) == 0
    assert found.completeness_error < 1e-12
    expected = by_switching_off(net, layer, images, [*range(6)])
    close(attribution.removal_results()["conv1"].sums, sums_of(expected, images))


def test_a_layer_without_effect_contributes_nothing() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.used = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            F.relu(self.idle(x))
            return self.fc(F.relu(self.used(x)).mean((2, 3)))

    torch.manual_seed(0)
    attribution = attribute(Idle().double(), make_images(), removal=True)
    found = attribution.results()
    for results in (found, attribution.removal_results()):
        assert not results["idle"].sums.any()
        assert not results["idle"].squares.any()
        assert results["used"].sums.any()
    assert not found["idle"].sizes.any()
    assert found["idle"].images.sum() == 6
    assert math.isnan(found["idle"].completeness_error)
    assert math.isnan(attribution.predictions()["idle"])


def test_images_whose_margins_are_not_finite_are_left_out() -> None:
    net, images = linear_head(), make_images(classes=2)
    broken = images.inputs.clone()
    broken[1, 0, 2, 2] = math.nan
    broken[4, 1, 0, 0] = math.inf
    attribution = attribute(net, images._replace(inputs=broken))
    found = attribution.results()["0"]
    keep = torch.tensor([True, False, True, True, False, True])
    rest = Images(images.inputs[keep], *(part[keep] for part in images[1:]))
    expected = attribute(net, rest).results()["0"]
    assert attribution.left_out == 2
    assert found.images.tolist() == expected.images.tolist()
    for one, other in zip(found.arrays().values(), expected.arrays().values(), strict=True):
        close(one, other)
    assert attribution.predictions()["0"] == pytest.approx(1)


@pytest.mark.parametrize("make", [HiddenSize, BatchMean])
def test_networks_whose_batches_cannot_be_cut(make: Callable[[], nn.Module]) -> None:
    """Whole batches are replayed; where images influence one another, gradients are those of the whole batch."""
    net, images = make().double(), make_images()
    layer = layers_of(net, images)[0]
    removal = attribute(net, images, layers=[layer], removal=True).removal_results()["conv1"]
    expected = by_switching_off(net, layer, images, [*range(6)])
    close(removal.sums, sums_of(expected, images))


def test_what_cannot_be_replayed_runs_as_a_whole_and_says_so_once() -> None:
    net, batches = DataDependent().double(), [make_images(6, seed=1), make_images(3, seed=2)]
    layer = layers_of(net, batches[0])[0]
    with pytest.warns(UserWarning, match=r"Layer 'conv1': what lies behind it cannot be replayed, because") as caught:
        attribution = attribute(net, *batches, layers=[layer], removal=True)
    assert len(caught) == 1
    net.requires_grad_(False)
    values = [by_switching_off(net, layer, images, [*range(6)]) for images in batches]
    expected = sum(sums_of(*pair) for pair in zip(values, batches, strict=True))
    close(attribution.removal_results()["conv1"].sums, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_memory_bounds_change_nothing(rows: int) -> None:
    net, images = randomised(CifarNet()).double(), make_images()
    expected = attribute(net, images, removal=True)
    runner = Runner(net)
    layers = layers_of(net, images)
    small = Attribution(runner, layers, 3, steps=3, removal=True)
    with runner.undisturbed():
        tape = record(runner, layers[0], images.inputs, set())
        small._piece = rows * tape.bytes_per_row
        small.add(images)
    for found, wanted in (
        (small.results(), expected.results()),
        (small.removal_results(), expected.removal_results()),
    ):
        for name, one in found.items():
            for values, others in zip(one.arrays().values(), wanted[name].arrays().values(), strict=True):
                close(values, others)
    assert small.predictions() == pytest.approx(expected.predictions())


def test_batches_add_up_however_they_are_cut() -> None:
    net, images = randomised(PreActNet()).double(), make_images(9)
    layers = layers_of(net, images)
    parts = [Images(*(part[rows] for part in images)) for rows in (slice(0, 1), slice(1, 2), slice(2, 7), slice(7, 9))]
    whole, cut = attribute(net, images, layers=layers), attribute(net, *parts, layers=layers)
    for name, found in cut.results().items():
        for one, other in zip(found.arrays().values(), whole.results()[name].arrays().values(), strict=True):
            close(one, other)
    assert cut.predictions() == pytest.approx(whole.predictions())


@pytest.mark.slow
def test_processes_add_up_to_one() -> None:
    """Their images dealt out in turn, as a probe deals them out."""

    class OneOfSeveral(Runner):
        def __init__(self, model: nn.Module, shard: int, shards: int) -> None:
            super().__init__(model)
            self.shard, self.shards = shard, shards

    net, images = randomised(CifarNet()).double(), make_images(200)
    layers = layers_of(net, images)
    whole = attribute(net, images, layers=layers)
    for shards in (2, 3):
        parts = []
        for shard in range(shards):
            runner = OneOfSeveral(net, shard, shards)
            parts.append(Attribution(runner, layers, 3, steps=3))
            own = [part[shard::shards] for part in images]
            with runner.undisturbed():
                for start in range(0, len(own[0]), 19):
                    parts[-1].add(Images(*(part[start : start + 19] for part in own)))
        for name, expected in whole.results().items():
            found = [part.results()[name].arrays() for part in parts]
            for key, values in expected.arrays().items():
                close(values if key == "steps" else sum(one[key] for one in found), values)  # type: ignore[arg-type]
            close(sum(part._tried[name] for part in parts), whole._tried[name])  # type: ignore[arg-type]


def test_nothing_is_left_behind() -> None:
    net, images = randomised(CifarNet()).double().train(), make_images()
    net.bn1.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inputs, state = images.inputs.clone(), torch.get_rng_state()
    attribute(net, images, removal=True)
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in net.named_parameters()} - {"bn1.weight"}
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(images.inputs, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert net.training


def test_parameters_can_be_trained_again_after_an_error() -> None:
    net, images = linear_head(), make_images(classes=2)
    wrong = images._replace(targets=images.targets + 5)
    with pytest.raises(DataError, match="labels from 5 to 6; expected 0 to 1"):
        attribute(net, wrong, layers=layers_of(net, images))
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_margins_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    found = margins(logits, torch.tensor([1, 2]), None)
    assert found.tolist() == pytest.approx([3 - math.log(math.e + math.e**2), -math.log(2)])
    assert found.dtype == torch.float64
    # The margin is the log-odds of the label, so its sigmoid is the label's probability.
    close(found.sigmoid(), logits.double().softmax(1)[[0, 1], [1, 2]])
    assert margins({"logits": torch.tensor([[2.5]])}, [0], None).tolist() == [2.5]
    assert margins(logits, None, lambda outputs, targets: (outputs[:, 0], targets)).tolist() == [-1.0, 0.0]


def test_a_margin_keeps_counting_where_the_loss_is_zero() -> None:
    """What a training image looks like to a network that has learnt it."""
    sure = torch.tensor([[60.0, 0.0, 0.0]])
    assert float(F.cross_entropy(sure, torch.tensor([0]))) < 1e-20
    assert margins(sure, torch.tensor([0]), None).item() == pytest.approx(60 - math.log(2))


def test_half_precision_networks() -> None:
    net, images = linear_head(), make_images(classes=2)
    expected = attribute(net, images).results()["0"]
    low = images._replace(inputs=images.inputs.bfloat16())
    found = attribute(net.bfloat16(), low).results()["0"]
    close(found.sums, expected.sums, 0.05)


def test_nothing_is_said_of_ordinary_networks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in NETWORKS.values():
            found = attribute(randomised(make()).double(), make_images(3)).results()
            assert all(isinstance(one, Contributions) for one in found.values())
