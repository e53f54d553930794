from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import mostly_slow
from pruned import Chain, graph_of, images, known, random_items, seeded
from torch import Tensor

from lightning_unitrole.errors import SettingError
from lightning_unitrole.pruning.groups import ChannelGraph, ChannelGroup
from lightning_unitrole.pruning.network import count_macs, count_parameters
from lightning_unitrole.pruning.removal import plan_removal, remove
from lightning_unitrole.pruning.selection import (
    Candidate,
    LayerEvidence,
    Limits,
    accuracy_drop,
    choose,
    find_candidates,
    item_scores,
    prunable_groups,
    rank_position,
    role_need,
    saving,
    unit_scores,
)
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.roles import NO_ROLE, UnitRole


def curve(ablated: list[int], accuracy: list[float]) -> AblationCurve:
    values = torch.tensor(accuracy, dtype=torch.float64)
    return AblationCurve(torch.tensor(ablated), 1 - values, values, torch.full_like(values, float("nan")))


def evidence(order: list[int], **measured: Any) -> LayerEvidence:
    return LayerEvidence("layer", torch.tensor(order), **measured)


def group(name: str, width: int, *, parameters: int = 1, reason: str | None = None) -> ChannelGroup:
    """A group of which each item takes one row of a weight."""
    items = [(index,) for index in range(width)]
    return ChannelGroup(name, {name: items}, {(f"{name}.weight", 0): items}, reason)


def graph(**widths: int) -> ChannelGraph:
    """Layers of 10 parameters a unit, each applied at 100 places."""
    return ChannelGraph(
        groups=[group(name, width) for name, width in widths.items()],
        sizes={f"{name}.weight": (width, 10) for name, width in widths.items()},
        parameters=frozenset(f"{name}.weight" for name in widths),
        positions={f"{name}.weight": 100 for name in widths},
    )


def candidate(graph: ChannelGraph, name: str, scores: list[float], **more: Any) -> Candidate:
    (found,) = (one for one in graph.groups if one.name == name)
    return Candidate(found, torch.tensor(scores, dtype=torch.float64), **more)


def chosen(graph: ChannelGraph, *candidates: Candidate, limits: Limits | None = None, **settings: Any) -> Any:
    sizes = {name: shape[0] for name, shape in graph.sizes.items()}
    now = {
        "units": sum(sizes.values()),
        "parameters": 10 * sum(sizes.values()),
        "macs": 1000 * sum(sizes.values()),
    }
    original = now | {f"width/{name.removesuffix('.weight')}": size for name, size in sizes.items()}
    settings = {"amount": 0.5, "of": "units", "original": original, "now": now, **settings}
    return {
        name: sorted(items) for name, items in choose(candidates, graph, limits=limits or Limits(), **settings).items()
    }


def test_positions_are_shares_of_the_layer_from_the_least_effective_up() -> None:
    assert rank_position(evidence([2, 0, 3, 1])).tolist() == [0.75, 0.25, 1.0, 0.5]


@pytest.mark.parametrize(
    ("ablated", "accuracy", "drop"),
    [
        pytest.param([0, 1, 2, 3, 4], [0.9, 0.9, 0.8, 0.5, 0.1], [0.0, 0.1, 0.4, 0.8], id="every number measured"),
        pytest.param([0, 2, 4], [0.9, 0.7, 0.1], [0.1, 0.2, 0.5, 0.8], id="straight lines between points"),
        pytest.param([0, 1, 2, 3, 4], [0.5, 0.6, 0.4, 0.45, 0.1], [0.0, 0.1, 0.1, 0.4], id="never falls"),
        pytest.param([0, 2, 4], [0.5, float("nan"), 0.4], [0.25, 0.5, 0.5, 0.5], id="not a number is all lost"),
    ],
)
def test_a_drop_is_read_where_the_unit_goes(ablated: list[int], accuracy: list[float], drop: list[float]) -> None:
    order = [3, 1, 0, 2]  # unit 2 goes first
    found = accuracy_drop(evidence(order, curve=curve(ablated, accuracy)))
    torch.testing.assert_close(found[[2, 0, 1, 3]], torch.tensor(drop, dtype=torch.float64))


def test_a_drop_needs_a_curve() -> None:
    with pytest.raises(SettingError, match="Layer 'layer' has no ablation curve to read accuracy drops from"):
        accuracy_drop(evidence([0, 1]))


def test_need_is_the_mean_role_over_classes_that_have_one() -> None:
    neither, train, val, both = UnitRole.NEITHER, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.BOTH
    roles = torch.tensor([[neither, train, both], [neither, val, both], [NO_ROLE] * 3], dtype=torch.uint8)
    assert role_need(evidence([0, 1, 2], roles=roles)).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("roles", [None, torch.full((2, 3), NO_ROLE, dtype=torch.uint8)], ids=["none", "no class"])
def test_need_needs_roles(roles: Tensor | None) -> None:
    with pytest.raises(SettingError, match="Layer 'layer' has no roles to choose units by"):
        role_need(evidence([0, 1, 2], roles=roles))


def test_ties_go_by_rank() -> None:
    layer = evidence([1, 2, 0], curve=curve([0, 1, 2, 3], [0.5] * 4), roles=torch.zeros(1, 3, dtype=torch.uint8))
    for choose_by in ("evidence", "roles", "taylor"):
        assert unit_scores(layer, choose_by).argsort().tolist() == [0, 2, 1], choose_by


def test_an_item_is_judged_by_all_of_its_units() -> None:
    both = ChannelGroup("a", {"a": [(0,), (1,)], "b": [(1, 2), (0, 3)]}, {})
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0, 30.0, 40.0])}
    assert item_scores(both, scores, torch.sum).tolist() == [51.0, 52.0]
    assert item_scores(both, {"b": scores["b"]}, torch.mean).tolist() == [25.0, 25.0]
    assert item_scores(both, {"c": scores["a"]}, torch.sum) is None


def test_items_of_coupled_layers_are_ranked_again() -> None:
    both = ChannelGroup("a", {"a": [(0,), (1,), (2,)], "b": [(0,), (1,), (2,)]}, {})
    layers = [LayerEvidence("a", torch.tensor([0, 1, 2])), LayerEvidence("b", torch.tensor([1, 0, 2]))]
    (found,) = find_candidates([both], layers, choose_by="taylor", gone={})
    assert found.scores.tolist() == pytest.approx([1.0, 1.0, 1 / 3])


def test_of_two_calls_of_a_module_the_more_useful_units_count() -> None:
    calls = [LayerEvidence("a", torch.tensor([0, 1])), LayerEvidence("a#1", torch.tensor([1, 0]))]
    (found,) = find_candidates([group("a", 2)], calls, choose_by="taylor", gone={"a": [1]})
    assert found.scores.tolist() == [1.0, 1.0]
    assert found.drops is None
    assert found.gone == {1}


@pytest.mark.parametrize("of", ["units", "parameters", "macs"])
def test_units_of_all_layers_are_ranked_together(of: str) -> None:
    net = graph(a=4, b=4)
    few, many = candidate(net, "a", [4, 1, 3, 2]), candidate(net, "b", [9, 8, 2.5, 7])
    assert chosen(net, few, many, of=of, amount=0.25) == {"a": [1, 3]}
    assert chosen(net, few, many, of=of, amount=0.26) == {"a": [1, 3], "b": [2]}
    assert chosen(net, few, many, of=of, amount=0.5) == {"a": [1, 2, 3], "b": [2]}


def test_the_amount_counts_from_the_beginning() -> None:
    net = graph(a=6)
    now = {"units": 6, "parameters": 60, "macs": 6000}
    before = {name: value * 2 for name, value in now.items()}
    one = candidate(net, "a", [1, 2, 3, 4, 5, 6])
    assert chosen(net, one, original=before, now=now) == {}
    assert chosen(net, one, original=before, now=now, amount=0.6) == {"a": [0, 1]}


def test_each_layer_loses_its_own_share() -> None:
    net = graph(a=10, b=4)
    scores = [float(index) for index in range(10)]
    found = chosen(net, candidate(net, "a", scores), candidate(net, "b", scores[:4]), of="layer", amount=0.3)
    assert found == {"a": [0, 1, 2], "b": [0]}


def test_units_that_are_masked_already_stay_chosen() -> None:
    net = graph(a=6)
    masked = candidate(net, "a", [6, 5, 4, 3, 2, 1], gone=frozenset({0}))
    assert chosen(net, masked, amount=0.5) == {"a": [0, 4, 5]}
    assert chosen(net, masked, amount=0.5, of="layer") == {"a": [0, 4, 5]}


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        pytest.param(Limits(), 1, id="one"),
        pytest.param(Limits(min_units=3), 3, id="three"),
        pytest.param(Limits(round_to=4), 4, id="a multiple"),
        pytest.param(Limits(min_units=5, round_to=4), 8, id="a multiple that is enough"),
        pytest.param(Limits(max_drop=0.25), 8, id="a drop"),
        pytest.param(Limits(max_drop=0.25, round_to=4), 8, id="a drop and a multiple"),
        pytest.param(Limits(max_drop=0.35, round_to=8), 10, id="not enough may go for a multiple"),
        pytest.param(Limits(min_units=10), 10, id="nothing may go"),
    ],
)
def test_limits_without_an_amount(limits: Limits, kept: int) -> None:
    """Ten units whose drops are 0.1, 0.2, and so on; of the last case only one may go to keep a multiple of 8."""
    net = graph(a=10)
    drops = torch.arange(1, 11, dtype=torch.float64) / 10
    if limits.max_drop == 0.35 and limits.round_to == 8:
        drops = drops + 0.2
    found = chosen(net, candidate(net, "a", list(range(10)), drops=drops), limits=limits, amount=None)
    assert 10 - len(found.get("a", [])) == kept
    assert found.get("a", []) == list(range(10 - kept))


def test_what_cannot_be_reached_is_an_error_that_says_how_much_can() -> None:
    net = graph(a=4, b=4)
    with pytest.raises(SettingError, match=r"amount=0.5 of the network's macs cannot be removed: .* allow 0\.375 with"):
        chosen(net, candidate(net, "a", [1, 2, 3, 4]), of="macs")


def test_a_limit_wins_over_the_amount() -> None:
    net = graph(a=4)
    drops = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64)
    one = candidate(net, "a", [1, 2, 3, 4], drops=drops)
    assert chosen(net, one, amount=0.7, limits=Limits(max_drop=0.1)) == {"a": [0, 1]}


def test_groups_that_may_be_pruned() -> None:
    net = graph(a=4, b=4, c=4)
    groups = [*net.groups, group("out", 3, reason="its channels are an output of the network")]
    net = ChannelGraph(groups, net.sizes, net.parameters, net.positions)
    found = prunable_groups(net, ["a", "b#1", "out"], skip_layers=["a*"])
    assert [one.name for one in found] == ["b"]
    with pytest.raises(SettingError, match="Layer 'out' cannot be pruned: its channels are an output of the network"):
        prunable_groups(net, ["a", "out"], by_name={"out"})
    with pytest.raises(SettingError, match="skip_layers names 'd', which is none of the layers: a, b, c, out"):
        prunable_groups(net, ["a"], skip_layers=["d"])
    with pytest.raises(
        SettingError, match=r"No layer is left that can be pruned\. 'a': skipped, or not measured; .*'out'"
    ):
        prunable_groups(net, ["a"], skip_layers=["a"])


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["resnet18", "densenet121", "mobilenet_v3_small", "resnext50_32x4d"], quick=["resnet18", "mobilenet_v3_small"]
    ),
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_saving_is_what_the_removal_takes(name: str, seed: int) -> None:
    net, found = known(name)
    inputs = images(64)
    choice = random_items(found, share=0.2 + 0.4 * seed, seed=seed)
    parameters, macs = count_parameters(net), count_macs(net, net, inputs, batch=2)
    expected = saving(found, choice, "parameters"), saving(found, choice, "macs")
    remove(net, plan_removal(found, choice))
    assert (parameters - count_parameters(net), macs - count_macs(net, net, inputs, batch=2)) == expected
    assert min(expected) > 0


def test_units_of_a_saving_are_output_channels() -> None:
    net = seeded(Chain)
    found = graph_of(net, images())
    assert saving(found, {"first": [0, 3], "second": [1]}, "units") == 3
