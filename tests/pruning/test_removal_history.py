from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from networks import CifarNet
from pruned import Chain, Frozen, graph_of, images, outputs, seeded
from support import make_trainer
from torch import Tensor, nn

from lightning_unitrole.errors import DataError
from lightning_unitrole.pruning.history import (
    NAME,
    follow_state_dict,
    kept_channels,
    load_pruned,
    record_removals,
    removals_of,
    reshape,
)
from lightning_unitrole.pruning.removal import plan_removal, remove


def prune(net: nn.Module, items: dict[str, list[int]], inputs: Tensor | None = None) -> None:
    """Remove units and write it down."""
    removal = plan_removal(graph_of(net, images() if inputs is None else inputs), items)
    remove(net, removal)
    record_removals(net, [*removals_of(net), removal])


FIRST, SECOND = {"first": [1, 5]}, {"first": [0], "second": [2, 4]}


def pruned_twice() -> nn.Module:
    net = seeded(Chain)
    prune(net, FIRST)
    prune(net, SECOND)
    return net


def saved_and_loaded(net: nn.Module, tmp_path: Path) -> dict[str, Any]:
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    found: dict[str, Any] = torch.load(tmp_path / "weights.pt", weights_only=True)
    return found


def load(net: nn.Module, weights: dict[str, Any]) -> None:
    handle = follow_state_dict(net)
    net.load_state_dict(weights)
    handle.remove()


def pruned_by(*removals: dict[str, list[int]]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = seeded(Chain, seed=1)
        for items in removals:
            prune(net, items)
        return net

    return build


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(pruned_by(), id="fresh"),
        pytest.param(pruned_by(FIRST), id="pruned less"),
        pytest.param(pruned_by(FIRST, SECOND), id="pruned the same"),
        pytest.param(pruned_by(FIRST, SECOND, {"second": [0]}), id="pruned more"),
        pytest.param(pruned_by({"first": [0]}, {"second": [3]}), id="pruned otherwise"),
        pytest.param(pruned_by(FIRST, {"first": [2]}), id="the second otherwise"),
    ],
)
def test_a_network_follows(start: Callable[[], nn.Module], tmp_path: Path) -> None:
    source, net, inputs = pruned_twice(), start(), images()
    load(net, saved_and_loaded(source, tmp_path))
    assert torch.equal(outputs(net, inputs)[0], outputs(source, inputs)[0])
    assert len(removals_of(net)) == 2
    assert all(one.same_as(other) for one, other in zip(removals_of(net), removals_of(source), strict=True))
    assert net.first.out_channels == net.norm.num_features == 3
    assert net.second.out_channels == net.head.in_features == 3


def test_weights_from_before_any_removal() -> None:
    whole, net, inputs = seeded(Chain), pruned_twice(), images()
    load(net, whole.state_dict())
    assert torch.equal(outputs(net, inputs)[0], outputs(whole, inputs)[0])
    assert removals_of(net) == []
    assert NAME not in dict(net.named_modules())


def test_original_indices_of_what_is_kept() -> None:
    kept = {layer: indices.tolist() for layer, indices in kept_channels(removals_of(pruned_twice())).items()}
    # Without 1 and 5 there are 0, 2, 3, 4; the first of these went next.
    assert kept == {"first": [2, 3, 4], "second": [0, 1, 3]}


def test_a_handle_ends_it() -> None:
    net = seeded(Chain)
    follow_state_dict(net).remove()
    with pytest.raises(RuntimeError, match=NAME):
        net.load_state_dict(pruned_twice().state_dict())


def test_copies_carry_their_own_history() -> None:
    net = pruned_twice()
    other = copy.deepcopy(net)
    reshape(net, [])
    assert (len(removals_of(net)), len(removals_of(other))) == (0, 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param(lambda: Chain(8), r"'first.weight' has shape \[8, 3, 3, 3\]; expected \[6, 3, 3, 3\]", id="width"),
        pytest.param(CifarNet, "has no parameter or buffer 'first.weight'", id="layers"),
    ],
)
def test_a_history_of_another_network(other: Callable[[], nn.Module], message: str) -> None:
    net = seeded(other)
    everything = Frozen(net)
    with pytest.raises(DataError, match=message):
        load(net, pruned_twice().state_dict())
    everything.assert_unchanged()
    assert removals_of(net) == []


def test_where_the_second_removal_does_not_fit_the_first_is_undone() -> None:
    removals = removals_of(pruned_twice())
    net = pruned_by({"second": [0]})()
    everything = Frozen(net)
    with pytest.raises(DataError, match="does not fit"):
        reshape(net, [removals[0], removals[0]])
    everything.assert_unchanged()
    assert len(removals_of(net)) == 1


@pytest.mark.parametrize("place", ["history", "removal"])
def test_newer_versions(place: str) -> None:
    weights = pruned_twice().state_dict()
    state = weights[f"{NAME}._extra_state"]
    (state if place == "history" else state["removals"][1])["version"] = 99
    with pytest.raises(DataError, match="has version 99; this version of lightning-unitrole reads up to"):
        load(seeded(Chain), weights)


def test_a_sequential_runs_its_history() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 2)))
    inputs = images()
    prune(net, {"0": [1, 2]}, inputs)
    fresh = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 2)), seed=1)
    load(fresh, net.state_dict())
    assert torch.equal(outputs(fresh, inputs)[0], outputs(net, inputs)[0])


class Module(pl.LightningModule):
    """Keeps its hyperparameters in the checkpoint."""

    def __init__(self, width: int = 3, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Chain(width)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Configured(pl.LightningModule):
    """Takes all its hyperparameters in one argument."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(config)
        self.net = Chain(config["width"])

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def test_load_pruned_with_all_hyperparameters_in_one(tmp_path: Path) -> None:
    source, inputs = Configured({"width": 6}).eval(), images().float()
    prune(source, {"net.first": [0, 3]}, inputs)
    saved: dict[str, Any] = {"state_dict": source.state_dict(), "hyper_parameters": dict(source.hparams)}
    torch.save({**saved, "hparams_name": source._hparams_name}, tmp_path / "one.ckpt")
    loaded = load_pruned(Configured, tmp_path / "one.ckpt")
    assert torch.equal(outputs(loaded, inputs)[0], outputs(source, inputs)[0])


@pytest.mark.parametrize("build", [Chain, lambda width=6: Chain(width)], ids=["class", "function"])
def test_load_pruned(build: Callable[..., nn.Module], tmp_path: Path) -> None:
    source, inputs = pruned_twice().float(), images().float()
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    net = load_pruned(build, tmp_path / "weights.pt", width=6)
    assert torch.equal(outputs(net, inputs)[0], outputs(source, inputs)[0])
    assert not any(module.training for module in net.modules())
    assert not net._load_state_dict_pre_hooks
    with pytest.raises(DataError, match="does not fit this Chain"):
        load_pruned(build, tmp_path / "weights.pt", width=7)


@pytest.mark.parametrize("arguments", [{}, {"lr": 0.5}], ids=["hyperparameters", "overridden"])
def test_load_pruned_lightning_module(arguments: dict[str, Any], tmp_path: Path) -> None:
    source, inputs = Module(width=6).eval(), images().float()
    prune(source, {"net.first": [0, 3]}, inputs)
    trainer = make_trainer()
    trainer.strategy.connect(source)
    trainer.save_checkpoint(tmp_path / "epoch.ckpt")
    net = load_pruned(Module, tmp_path / "epoch.ckpt", **arguments)
    assert net.hparams == {"width": 6, "lr": 0.1, **arguments}
    assert net.net.first.out_channels == 4
    assert torch.equal(outputs(net, inputs)[0], outputs(source, inputs)[0])


def test_load_pruned_leaves_out_what_a_function_does_not_take(tmp_path: Path) -> None:
    checkpoint = {"state_dict": pruned_twice().float().state_dict(), "hyper_parameters": {"width": 6, "lr": 0.1}}
    torch.save(checkpoint, tmp_path / "epoch.ckpt")
    assert load_pruned(partial(Chain), tmp_path / "epoch.ckpt").first.out_channels == 3
