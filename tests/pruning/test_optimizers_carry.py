from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruned import Chain, graph_of, images, seeded
from support import adafactor
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lightning_unitrole.errors import SettingError
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.optimizers import carry_over, check_optimizers
from lightning_unitrole.pruning.removal import Removal, plan_removal, remove

MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1),
    "Adam": torch.optim.Adam,
    "AdamW": lambda groups: torch.optim.AdamW(groups, amsgrad=True),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, momentum=0.5, centered=True),
}


def step(net: nn.Module, optimizer: Optimizer, mask: UnitMask | None = None) -> None:
    optimizer.zero_grad()
    F.cross_entropy(net(images(batch=4)), torch.arange(4)).backward()
    if mask is not None:
        mask.hold_gradients()
    optimizer.step()
    if mask is not None:
        mask.hold()


def groups_of(net: Any) -> list[dict[str, Any]]:
    head = list(net.head.parameters())
    rest = [parameter for name, parameter in net.named_parameters() if not name.startswith("head")]
    return [{"params": rest, "lr": 0.01}, {"params": head, "lr": 0.002}]


def names_of(net: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in net.named_parameters()}


def removal_of(net: nn.Module) -> Removal:
    return plan_removal(graph_of(net, images()), {"first": [1, 5], "second": [0]})


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_the_next_step_is_that_of_the_masked_network(make: Callable[[Any], Optimizer]) -> None:
    net = seeded(Chain)
    optimizer = make(groups_of(net))
    step(net, optimizer)
    removal = removal_of(net)
    masked = copy.deepcopy(net)
    other = make(groups_of(masked))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    check_optimizers([optimizer], names_of(net), removal)
    carry_over([optimizer], remove(net, removal))()
    mask = UnitMask(masked, removal)
    for _ in range(2):
        step(net, optimizer)
        step(masked, other, mask)
    remove(masked, removal)
    for found, expected in zip(net.parameters(), masked.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.002]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == set(names_of(net))
    assert set(map(id, optimizer.state)) == set(names_of(net))


def test_states_by_hand() -> None:
    net = seeded(Chain)
    optimizer = torch.optim.Adam(groups_of(net))
    step(net, optimizer)
    before = {name: optimizer.state[parameter] for name, parameter in net.named_parameters()}
    carry_over([optimizer], remove(net, removal_of(net)))()
    after = optimizer.state[net.second.weight]
    assert torch.equal(after["exp_avg"], before["second.weight"]["exp_avg"][1:][:, [0, 2, 3, 4]])
    assert float(after["step"]) == 1
    assert optimizer.state[net.head.bias] is before["head.bias"]


def test_schedulers_go_on() -> None:
    net = seeded(Chain)
    optimizer = torch.optim.SGD(groups_of(net), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    step(net, optimizer)
    scheduler.step()
    carry_over([optimizer], remove(net, removal_of(net)))()
    before = net.first.weight.detach().clone()
    step(net, optimizer)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0025, 0.0005]
    assert not torch.equal(before, net.first.weight)


def test_frozen_parameters_are_exchanged_without_state() -> None:
    net = seeded(Chain)
    net.second.requires_grad_(False)
    optimizer = torch.optim.SGD(groups_of(net), momentum=0.9)
    step(net, optimizer)
    carry_over([optimizer], remove(net, removal_of(net)))()
    frozen = net.second.weight.detach().clone()
    step(net, optimizer)
    assert torch.equal(net.second.weight, frozen)
    assert net.second.weight not in optimizer.state
    assert any(net.second.weight is parameter for parameter in optimizer.param_groups[0]["params"])


@adafactor
def test_adafactor_is_refused() -> None:
    net = seeded(Chain)
    optimizer = torch.optim.Adafactor(groups_of(net))
    step(net, optimizer)
    with pytest.raises(
        SettingError, match=r"Adafactor keeps '\w+' of shape .* Use mode='mask', or an optimizer such as"
    ):
        check_optimizers([optimizer], names_of(net), removal_of(net))


def test_lbfgs_is_refused() -> None:
    """Its memory lies with the first parameter, also where that is one that is left alone."""
    net = seeded(Chain)
    optimizer = torch.optim.LBFGS(list(net.parameters())[::-1])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(images()).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(SettingError, match=r"LBFGS keeps one memory for all parameters.* Use mode='mask'"):
        check_optimizers([optimizer], names_of(net), removal_of(net))


@adafactor
def test_optimizers_of_other_parameters_are_left_alone() -> None:
    net = seeded(Chain)
    optimizer = torch.optim.Adafactor([net.head.bias])
    step(net, optimizer)
    check_optimizers([optimizer], names_of(net), removal_of(net))
    carry_over([optimizer], remove(net, removal_of(net)))()
    assert optimizer.param_groups[0]["params"][0] is net.head.bias
