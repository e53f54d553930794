from __future__ import annotations

from typing import Any

import pytest
import torch
from pruned import Chain, Net, conv, graph_of, images, seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.data.sample import Sample
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.pruning.groups import ChannelGroup
from lightning_unitrole.pruning.importance import group_norm, group_taylor, importance_candidates, joint
from lightning_unitrole.pruning.selection import Limits, choose, saving


def residual() -> nn.Module:
    """A trunk of 4 channels that two layers write to and two read from, and a layer inside of the block."""
    return Net(
        lambda net, x: net.head((lambda y: y + net.outer(F.relu(net.inner(y))))(net.stem(x)).relu().mean((2, 3))),
        stem=conv(3, 4),
        inner=conv(4, 5),
        outer=conv(5, 4),
        head=nn.Linear(4, 3),
    )


def sample_of(net: nn.Module, inputs: Tensor, classes: int, *, batch: int) -> tuple[Runner, Sample]:
    labels = torch.arange(len(inputs)) % classes
    data = DataLoader(TensorDataset(inputs, labels), batch)
    runner = Runner(net)
    session = AnalysisSession(runner, AnalysisOptions(layers="all", ablation_points=0), [inputs[:2], labels[:2]])
    return runner, session.sample(session.probe(data, name="validation"))


def groups_of(net: nn.Module, inputs: Tensor) -> list[ChannelGroup]:
    return [group for group in graph_of(net, inputs).groups if group.reason is None]


def test_a_norm_counts_every_layer_that_a_removal_reaches() -> None:
    net = seeded(residual)
    (trunk, _) = groups_of(net, images())
    found = group_norm([trunk], net)["stem"]
    by_hand = (
        net.stem.weight.square().sum((1, 2, 3))
        + net.outer.weight.square().sum((1, 2, 3))
        + net.inner.weight.square().sum((0, 2, 3))
        + net.head.weight.square().sum(0)
    ).detach()
    torch.testing.assert_close(found, by_hand / by_hand.mean())


def test_taylor_is_the_squared_derivative_of_the_loss_by_a_gate_on_the_channel() -> None:
    """The gate stands wherever the channel is read, so its derivative is that of all of these places together."""
    net, inputs = seeded(residual), images(batch=20)
    runner, sample = sample_of(net, inputs, 3, batch=20)
    groups = groups_of(net, inputs)
    found = group_taylor(groups, runner, sample)
    expected = {"stem": torch.zeros(4, dtype=torch.float64), "inner": torch.zeros(5, dtype=torch.float64)}
    order = torch.cat([batch.inputs for batch in sample]), torch.cat([batch.targets for batch in sample])
    parts = list(zip(order[0].split(8), order[1].split(8), strict=True))
    for x, y in parts:
        gates = torch.ones(9, dtype=torch.float64, requires_grad=True)
        trunk, within = gates[:4].view(1, 4, 1, 1), gates[4:].view(1, 5, 1, 1)
        stem = net.stem(x)
        last = (stem + net.outer(F.relu(net.inner(stem * trunk)) * within)).relu()
        loss = F.cross_entropy(net.head((last * trunk).mean((2, 3))), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, gates)
        expected["stem"] += gradient[:4].square() / len(parts)
        expected["inner"] += gradient[4:].square() / len(parts)
    torch.testing.assert_close(found, expected)


def test_how_images_come_in_batches_does_not_matter() -> None:
    net, inputs = seeded(residual), images(batch=16)
    groups = groups_of(net, inputs)
    found = [group_taylor(groups, *sample_of(net, inputs, 3, batch=batch)) for batch in (8, 16)]
    torch.testing.assert_close(found[0], found[1])


def test_frozen_weights_are_judged_too_and_nothing_is_left_behind() -> None:
    net, inputs = seeded(residual), images(batch=6)
    groups, (runner, sample) = groups_of(net, inputs), sample_of(net, inputs, 3, batch=6)
    expected = group_taylor(groups, runner, sample)
    net.requires_grad_(False)
    torch.testing.assert_close(group_taylor(groups, runner, sample), expected)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_gradients_without_a_finite_number_are_an_error() -> None:
    net, inputs = seeded(residual), images(batch=6)
    groups, (runner, sample) = groups_of(net, inputs), sample_of(net, inputs, 3, batch=6)
    with torch.no_grad():
        net.head.weight.fill_(float("inf"))
    with pytest.raises(DataError, match="No gradient of the loss is finite"):
        group_taylor(groups, runner, sample)


def test_items_that_go_together_count_for_their_sum() -> None:
    alone = torch.tensor([4.0, 1.0, 9.0, 1.0], dtype=torch.float64)
    assert joint(alone).tolist() == [4.0**2 - 2**2, 1.0, 7.0**2 - 4**2, 2.0**2 - 1]
    assert float(joint(alone).sum()) == float(alone.sqrt().sum().square())
    # What is masked already comes first, so that the others count for more.
    assert joint(alone, gone=[2]).tolist() == [7.0**2 - 5**2, 4.0**2 - 3**2, 9.0, 5.0**2 - 4**2]


def test_no_layer_is_emptied_because_its_units_are_many_and_alike() -> None:
    net = seeded(lambda: Chain(width=40))
    graph = graph_of(net, images())
    groups = [group for group in graph.groups if group.reason is None]
    alike = {"first": torch.full((40,), 0.01, dtype=torch.float64), "second": torch.ones(5, dtype=torch.float64)}
    original = {"macs": saving(graph, {"first": range(40), "second": range(5)}, "macs")}
    left = []
    for scores in (alike, {name: joint(values) for name, values in alike.items()}):
        candidates = importance_candidates(groups, scores, graph, macs=1, gone={}, drops={})
        chosen = choose(candidates, graph, amount=0.5, of="macs", limits=Limits(), original=original, now=original)
        left.append(40 - len(chosen["first"]))
    assert left[0] < left[1]
    assert left[1] > 10


@pytest.mark.parametrize("drops", [{}, {"first": torch.zeros(6)}], ids=["no curve", "curve"])
def test_importance_counts_for_what_an_item_costs(drops: dict[str, Any]) -> None:
    net = seeded(Chain)
    graph = graph_of(net, images())
    groups = [group for group in graph.groups if group.reason is None]
    scores = {"first": torch.ones(6), "second": torch.ones(5)}
    first, second = importance_candidates(groups, scores, graph, macs=10**6, gone={"first": [2]}, drops=drops)
    # 64 places: a channel of `first` costs 27 weights of its own and 45 of `second`; one of `second` 54 there and 4.
    torch.testing.assert_close(first.scores, torch.full((6,), 1e6 / (64 * (27 + 45))))
    torch.testing.assert_close(second.scores, torch.full((5,), 1e6 / (64 * 54 + 4)))
    assert first.gone == {2}
    assert first.drops is drops.get("first")
