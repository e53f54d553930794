from __future__ import annotations

import torch
from pruned import Chain, Frozen, Net, conv, images, seeded
from torch import nn

from lightning_unitrole.pruning.network import count_macs, count_parameters, measure_latency


def test_by_hand() -> None:
    net, inputs = seeded(Chain), images(8)
    # 8x8 places: 6 * 3 * 9 in the first convolution, 5 * 6 * 9 in the second; 5 * 4 in the linear layer.
    assert count_macs(net, net, inputs, batch=2) == 64 * (162 + 270) + 20
    assert count_parameters(net) == (162 + 6) + 2 * 6 + (270 + 5) + (20 + 4)


def test_groups_strides_and_layers_that_run_twice() -> None:
    net = Net(
        lambda net, x: net.twice(net.twice(net.coarse(x))),
        coarse=conv(3, 6, stride=2, groups=3),
        twice=conv(6, 6, bias=False),
    )
    assert count_macs(net, net, images(8, batch=3).float(), batch=3) == 16 * (6 * 1 * 9) + 2 * 16 * (6 * 6 * 9)
    assert count_parameters(net) == 6 * 9 + 6 + 6 * 6 * 9


def test_a_module_that_is_given_a_parameter_is_counted() -> None:
    net = Net(lambda net, x: net.head(net.token) + x.mean(), head=nn.Linear(5, 4))
    net.token = nn.Parameter(torch.rand(1, 5))
    assert count_macs(net, net, images(), batch=2) == 10
    assert all(one.requires_grad for one in net.parameters())


def test_attention_counts() -> None:
    attention = nn.MultiheadAttention(9, 3, bias=False, batch_first=True)
    net = Net(lambda net, x: net.attention(*[x.flatten(2)] * 3, need_weights=False)[0], attention=attention).double()
    # Three tokens of width nine: four projections, then scores and values.
    assert count_macs(net, net, images(3), batch=2) == 3 * 4 * 81 + 2 * 3 * 3 * 9


def test_shared_parameters_count_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert count_parameters(net) == 9


def test_measuring_leaves_no_trace() -> None:
    net = seeded(Chain).train()
    everything = Frozen(net)
    assert count_macs(net, net, images(), batch=2) > 0
    assert measure_latency(net, net, images(), device=torch.device("cpu"), repeats=3) > 0
    everything.assert_unchanged()
    assert all(module.training for module in net.modules())
