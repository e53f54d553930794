"""Networks that are cut, held at zero, or refused with what to do."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from networks import torchvision_net
from pruned import Net, conv, graph_of, images, outputs, random_items, seeded
from support import digits, make_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unitrole import UnitPruning, UnitRoleMonitor
from lightning_unitrole.errors import SettingError, TraceError
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.removal import plan_removal, remove

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Shuffled(pl.LightningModule):
    """Channels change places by a reshape that Torch-Pruning cannot follow once they are few."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision_net("shufflenet_v2_x0_5").train()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.expand(-1, 3, -1, -1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def shuffled(mode: str) -> tuple[Shuffled, UnitPruning]:
    torch.manual_seed(0)
    watching = UnitRoleMonitor(images_per_class=2, every_n_epochs=99, backend="torch")
    return Shuffled(), UnitPruning(amount=0.2, of="units", mode=mode, start_epoch=0, monitor=watching)


def fit(model: pl.LightningModule, pruning: UnitPruning) -> None:
    data = digits(60, size=32)
    make_trainer(pruning, max_epochs=1).fit(model, DataLoader(data, 30), DataLoader(data, 30))


def test_a_channel_shuffle_is_refused_with_what_to_do() -> None:
    model, pruning = shuffled("remove")
    with pytest.raises(TraceError, match=r"no channel can be removed\. mode='mask' without remove_at_end holds units"):
        fit(model, pruning)


@pytest.mark.slow
def test_units_of_a_shuffled_network_are_held_at_zero() -> None:
    model, pruning = shuffled("mask")
    fit(model, pruning)
    report = pruning.report
    assert report is not None
    assert report.after.units <= 0.8 * report.before.units
    (step,) = report.steps
    assert step.predicted_loss == pytest.approx(step.loss_after, rel=1e-5)
    for name, units in step.units.items():
        layer = model.get_submodule(name)
        assert int((layer.weight.flatten(1).abs().sum(1) == 0).sum()) == len(units)


def test_units_that_are_taken_on_their_own_are_zero_behind_their_normalisation() -> None:
    net = torchvision_net("shufflenet_v2_x0_5").double().eval()
    inputs = images(32)
    graph = channel_graph(net, net, inputs, batch=2, loose=True)
    by_name = graph.by_name
    assert by_name["conv5.0"].reason is None
    assert set(by_name["conv5.0"].slices) == {("conv5.0.weight", 0), ("conv5.1.weight", 0), ("conv5.1.bias", 0)}
    seen: list[Tensor] = []
    net.conv5[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    mask = UnitMask(net, plan_removal(graph, {"conv5.0": [3, 700]}))
    outputs(net, inputs)
    mask.restore()
    assert (seen[0].abs().sum((0, 2, 3)) == 0).nonzero().flatten().tolist() == [3, 700]


def test_hidden_widths_of_a_vision_transformer_are_cut() -> None:
    from torchvision.models import VisionTransformer

    net = seeded(lambda: VisionTransformer(32, 8, 1, 2, 16, 24, num_classes=5))
    inputs = images(32)
    graph = graph_of(net, inputs)
    free = {group.name: len(group) for group in graph.groups if group.reason is None}
    layer = "encoder.layers.encoder_layer_0"
    assert free == {f"{layer}.mlp.0": 24, f"{layer}.self_attention#heads": 2}
    assert "a MultiheadAttention, from which none can be removed" in str(graph.by_name["conv_proj"].reason)
    removal = plan_removal(graph, random_items(graph, least=1))
    mask = UnitMask(net, removal)
    masked = outputs(net, inputs)
    mask.restore()
    remove(net, removal)
    torch.testing.assert_close(outputs(net, inputs), masked)
    assert net.encoder.layers[0].mlp[0].out_features == 16
    assert net.encoder.layers[0].self_attention.num_heads == 1


@pytest.mark.filterwarnings("ignore:Maximum recursive depth reached")  # the library's
def test_a_network_that_rolls_its_maps_is_followed_and_cut() -> None:
    """The library takes the shifts of the windows for channels, which lead anywhere; hidden layers do not."""
    from torchvision.models import SwinTransformer

    net = seeded(lambda: SwinTransformer([4, 4], 24, [2, 2], [3, 6], [7, 7], num_classes=5))
    inputs = images(64)
    graph = graph_of(net, inputs)
    free = [group.name for group in graph.groups if group.reason is None]
    assert {f"features.{stage}.{block}.mlp.0" for stage in (1, 3) for block in (0, 1)} <= {*free}
    removal = plan_removal(graph, {name: [1, 2] for name in free})
    mask = UnitMask(net, removal)
    masked = outputs(net, inputs)
    mask.restore()
    remove(net, removal)
    torch.testing.assert_close(outputs(net, inputs), masked)


class Hidden(Shuffled):
    """A convolution whose channels are an output, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(1, 4), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 40), nn.ReLU())
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))


def test_hidden_linear_layers_are_pruned_too() -> None:
    torch.manual_seed(0)
    model, watching = Hidden(), UnitRoleMonitor(images_per_class=2, every_n_epochs=99, backend="torch")
    pruning = UnitPruning(amount=0.5, of="parameters", start_epoch=0, monitor=watching)
    fit(model, pruning)
    assert model.net[3].out_features < 40
    assert model.head.in_features == model.net[3].out_features


def test_a_computed_weight_is_refused_with_how_to_make_it_plain() -> None:
    net = Net(lambda net, x: net.head(net.first(x).mean((2, 3))), first=conv(3, 6), head=nn.Linear(6, 4))
    nn.utils.parametrizations.weight_norm(net.first)
    assert "remove_parametrizations" in str(graph_of(seeded(lambda: net), images()).by_name["first"].reason)
    nn.utils.parametrize.remove_parametrizations(net.first, "weight")
    assert graph_of(net.double(), images()).by_name["first"].reason is None


def test_an_amount_out_of_reach_names_what_holds_it_back() -> None:
    torch.manual_seed(0)
    watching = UnitRoleMonitor(images_per_class=2, every_n_epochs=99, backend="torch")
    model = Hidden()
    with pytest.raises(SettingError, match=r"What cannot be pruned: 'head' \(its channels are an output of the net"):
        fit(model, UnitPruning(amount=0.99, of="units", start_epoch=0, monitor=watching))
