"""Units that are no channels of maps of two dimensions: what switching them off does is what a plain hook does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import people
import pytest
import pytorch_lightning as pl
import torch
from networks import mostly_slow
from people import Items, Plain, loaders, pair
from test_setups import CURVE_IMAGES, IMAGES, fit, monitor
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unitrole.errors import SettingError
from lightning_unitrole.network.units import find_unit_layers, select_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, str]]]] = {
    "tokens": (people.Tokens, {"blocks.0.mlp.2": (-1, "blocks.0.mlp"), "blocks.1.mlp.2": (-1, "blocks.1.mlp")}),
    "one dimension": (people.sequence_net, {"1": (1, "3"), "4": (1, "5")}),
    "three dimensions": (people.volume_net, {"1": (1, "2"), "3": (1, "4")}),
    "linear": (people.layer_net, {"1": (-1, "2"), "3": (-1, "4")}),
}
"""Networks, and for each of their layers where its units lie, and which module returns them."""


def loss_without(net: nn.Module, module: str, dim: int, off: Tensor) -> float:
    """Mean loss of the images of the curves with units at zero, by a hook."""

    def hook(_: nn.Module, args: object, output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[dim] = len(off)
        return output.masked_fill(off.view(shape), 0)

    data = Items(people.VAL, 1, pair)
    rows = [index for index in range(len(data)) if IMAGES <= index // people.CLASSES < IMAGES + CURVE_IMAGES]
    handle = net.get_submodule(module).register_forward_hook(hook)
    try:
        with torch.no_grad():
            return float(F.cross_entropy(net.eval()(data.images[rows]), data.labels[rows]))
    finally:
        handle.remove()


@pytest.mark.parametrize("name", mostly_slow(NETS, quick=["tokens"]))
def test_units_of_all_kinds(name: str) -> None:
    make, layers = NETS[name]
    pl.seed_everything(0)
    module = Plain(make())
    report = fit(module, loaders(), monitor())
    assert {key.removeprefix("net.") for key in report.layers} == set(layers)
    for key, layer in report.layers.items():
        dim, site = layers[key.removeprefix("net.")]
        curve, order = layer.val.curves["least_first"], layer.val.overall_order.flip(0)
        for place in (0, len(curve.ablated) // 2, len(curve.ablated) - 1):
            off = torch.zeros(len(order), dtype=torch.bool)
            off[order[: int(curve.ablated[place])]] = True
            expected = loss_without(module.net, site, dim, off)
            assert float(curve.loss[place]) == pytest.approx(expected, rel=1e-4)
        contributions = layer.val.contributions
        assert contributions is not None
        assert bool(contributions.sums.abs().sum() > 0)
        births = layer.val.selective_rate
        assert bool((births < 1).any()) == (name == "tokens")


def headed(*, fused: bool) -> people.Tokens:
    """The transformer with attention whose heads are seen."""
    net = people.Tokens()
    for block in net.blocks:
        block.attention = people.Heads(8)
        block.attention.fused = fused
    return net


@pytest.mark.parametrize("fused", [True, False])
def test_heads_of_attention(fused: bool) -> None:
    pl.seed_everything(0)
    module = Plain(headed(fused=fused))
    report = fit(module, loaders(), monitor(layers=["net.blocks.0.attention#heads", "*.1.attention#heads"]))
    assert list(report.layers) == [f"net.blocks.{index}.attention#heads" for index in (0, 1)]
    data = Items(people.VAL, 1, pair)
    rows = [index for index in range(len(data)) if IMAGES <= index // people.CLASSES < IMAGES + CURVE_IMAGES]
    for index, layer in enumerate(report.layers.values()):
        curve, order = layer.val.curves["least_first"], layer.val.overall_order.flip(0)
        for place in range(len(curve.ablated)):
            off = torch.zeros(4, dtype=torch.bool)
            off[order[: int(curve.ablated[place])]] = True
            net = copy.deepcopy(module.net).eval()
            projection = net.blocks[index].attention.proj
            # Head after head, two channels each.
            projection.register_forward_pre_hook(
                lambda _, args, off=off: args[0].masked_fill(off.repeat_interleave(2), 0)
            )
            with torch.no_grad():
                expected = float(F.cross_entropy(net(data.images[rows]), data.labels[rows]))
            assert float(curve.loss[place]) == pytest.approx(expected, rel=1e-4)
        assert layer.val.contributions is not None
        assert bool(layer.val.contributions.sums.abs().sum() > 0)
        assert bool((layer.val.selective_rate == 1).all())  # no head has birth points


def test_heads_are_chosen_by_name_alone() -> None:
    net = headed(fused=True).eval()
    found = find_unit_layers(net, net, torch.rand(2, 3, 12, 12))
    assert not any("#heads" in layer.name for choice in ("auto", "all") for layer in select_layers(found, choice))
    assert [layer.name for layer in select_layers(found, "*#heads")] == [*found.heads]
    assert str(found.heads["blocks.0.attention#heads"].tap).startswith(
        "output of call 1 of scaled_dot_product_attention"
    )
    with pytest.raises(SettingError, match=r"No layer matches 'blocks\.0\.mlp#heads'.*'blocks\.0\.attention#heads'"):
        select_layers(found, "blocks.0.mlp#heads")
    net = people.sequence_net().eval()
    with pytest.raises(SettingError, match=r"Heads are seen where .* nn\.MultiheadAttention, one call of .*'1'"):
        select_layers(find_unit_layers(net, net, torch.rand(2, 3, 12, 12)), "blocks.0.attention#heads")


def test_heads_inside_of_the_attention_of_torch() -> None:
    pl.seed_everything(0)
    module = Plain(people.Tokens())
    report = fit(module, loaders(), monitor(layers=["*#heads"]))
    assert list(report.layers) == [f"net.blocks.{index}.attention#heads" for index in (0, 1)]
    assert all(type(block.attention) is nn.MultiheadAttention for block in module.net.blocks)
    data = Items(people.VAL, 1, pair)
    rows = [index for index in range(len(data)) if IMAGES <= index // people.CLASSES < IMAGES + CURVE_IMAGES]
    for index, layer in enumerate(report.layers.values()):
        curve, order = layer.val.curves["least_first"], layer.val.overall_order.flip(0)
        for place in range(len(curve.ablated)):
            net = copy.deepcopy(module.net).eval()
            with torch.no_grad():
                for head in order[: int(curve.ablated[place])].tolist():
                    net.blocks[index].attention.out_proj.weight[:, 4 * head : 4 * head + 4] = 0
                expected = float(F.cross_entropy(net(data.images[rows]), data.labels[rows]))
            assert float(curve.loss[place]) == pytest.approx(expected, rel=1e-4)
        assert layer.val.contributions is not None
        assert bool(layer.val.contributions.sums.abs().sum() > 0)


def test_tokens_lie_on_the_grid_of_their_patches_without_the_class_token() -> None:
    net, images = people.Tokens().eval(), torch.rand(2, 3, 12, 12)
    found = find_unit_layers(net, net, images)
    hidden = found.flat["blocks.0.mlp.0"]
    assert (hidden.map_size, hidden.extra, hidden.activation, hidden.num_units) == ((6, 6), 1, "gelu", 12)
    assert found.head == "head"
    assert [layer.name for layer in select_layers(found, "blocks.*.mlp.0")] == ["blocks.0.mlp.0", "blocks.1.mlp.0"]


def test_linear_layers_of_a_convolutional_network_are_there_by_name_alone() -> None:
    net = people.backbone().eval()
    found = find_unit_layers(net, net, torch.rand(2, 3, 12, 12))
    assert [layer.name for layer in select_layers(found, "all")] == ["0", "2", "6"]
    assert [layer.name for layer in select_layers(found, "10")] == ["10"]
