"""Pruning for speed. Times are not reproducible, so what is searched for here is operations, read as milliseconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pruned import Frozen
from support import Digits, digits, loaders, make_trainer, trained_net
from torch.utils.data import DataLoader, TensorDataset

from lightning_unitrole import UnitPruning, UnitRoleMonitor
from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.errors import SettingError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.pruning import network as network_state
from lightning_unitrole.pruning.latency import LatencySearch
from lightning_unitrole.pruning.network import NetworkState, count_macs
from lightning_unitrole.pruning.selection import Candidate, Limits, choose, saving

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def network() -> NetworkState:
    data = digits(20)
    session = AnalysisSession(
        Runner(trained_net()), AnalysisOptions(layers="all", ablation_points=0, backend="torch"), data[:2]
    )
    return NetworkState(session, session.probe(DataLoader(TensorDataset(*data[:]), 20), name="validation"))


def candidates(network: NetworkState) -> list[Candidate]:
    groups = [group for group in network.graph.groups if group.reason is None]
    return [Candidate(group, torch.arange(len(group), dtype=torch.float64)) for group in groups]


def original(network: NetworkState) -> dict[str, int]:
    return network.amounts | {f"width/{group.name}": len(group) for group in network.graph.groups}


def operations(network: NetworkState) -> Callable[[], float]:
    """What the network as it is takes, in operations."""
    model, inputs = network.session.runner.model, network.session.example_inputs
    return lambda: float(count_macs(model, model, inputs, batch=network.batch))


def search(
    network: NetworkState,
    target: float,
    limits: Limits | None = None,
    measure: Callable[[], float] | None = None,
) -> LatencySearch:
    macs = network.amounts["macs"]
    return LatencySearch(network, target, limits or Limits(), original(network), macs, measure or operations(network))


def test_no_more_units_go_than_the_target_takes(network: NetworkState) -> None:
    frozen = Frozen(network.session.runner.model)
    macs = network.amounts["macs"]
    found = search(network, 0.6 * macs).choose(candidates(network))
    frozen.assert_unchanged()
    left = macs - saving(network.graph, found, "macs")
    assert left <= 0.6 * macs
    by_operations = choose(
        candidates(network),
        network.graph,
        amount=0.4,
        of="macs",
        limits=Limits(),
        original=original(network),
        now=network.amounts,
    )
    least = macs - saving(network.graph, by_operations, "macs")
    assert least - left <= 0.01 * macs


def test_other_work_that_comes_while_it_searches_changes_nothing(network: NetworkState) -> None:
    macs, quiet, busy = network.amounts["macs"], operations(network), iter(range(10, 10_000))
    found = search(network, 0.6 * macs).choose(candidates(network))
    slower = search(network, 0.6 * macs, measure=lambda: quiet() * (next(busy) // 2)).choose(candidates(network))
    assert slower == found


def test_a_time_that_cannot_be_reached_is_refused_with_the_one_that_can(network: NetworkState) -> None:
    limits = Limits(min_units=4)
    macs = network.amounts["macs"]
    with pytest.raises(SettingError, match="by min_units=4 and round_to=1 it takes") as raised:
        search(network, 1e-9 * macs, limits).check(candidates(network))
    fastest = float(re.search(r"takes (\S+) ms", str(raised.value))[1])
    wish = replace(limits, max_drop=1.0)
    most = search(network, 1e-9 * macs, wish).choose(candidates(network))
    assert macs - saving(network.graph, most, "macs") == pytest.approx(fastest, rel=1e-2)


@pytest.mark.parametrize("latency_batch", [None, 48])
def test_a_network_gets_as_fast_as_was_asked_while_it_trains(
    latency_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        network_state,
        "measure_latency",
        lambda forward, model, inputs, *, device: float(count_macs(forward, model, inputs, batch=len(inputs))),
    )
    torch.manual_seed(0)
    model = Digits()
    model.net = trained_net()
    watching = UnitRoleMonitor(images_per_class=5, backend="torch", every_n_epochs=99)
    pruning = UnitPruning(amount=0.3, of="latency", start_epoch=0, monitor=watching, latency_batch=latency_batch)
    make_trainer(pruning, max_epochs=1).fit(model, *loaders())
    report = pruning.report
    assert report is not None
    assert (report.before.batch, report.after.batch) == (latency_batch or 32,) * 2
    assert len(report.steps) == 1
    assert 0.6 * report.before.latency < report.after.latency <= 0.7 * report.before.latency


@pytest.mark.parametrize("settings", [{}, {"amount": 0.3, "mode": "mask"}])
def test_it_needs_an_amount_and_a_network_that_shrinks(settings: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="of='latency' needs an amount, and mode='remove'"):
        UnitPruning(of="latency", **settings)


def test_a_preview_does_not_count_in_milliseconds() -> None:
    with pytest.raises(SettingError, match="A preview counts in of='macs'"):
        UnitPruning(amount=0.3, of="latency").preview(trained_net(), data=[digits(20)[:]])
