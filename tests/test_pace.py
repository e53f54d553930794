"""How often to analyse, without a trainer."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from lightning_unitrole.callbacks import pace as module
from lightning_unitrole.callbacks.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only entry, which a test may change."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("budget", "epoch_seconds", "analysis_seconds", "epochs", "interval"),
    [
        pytest.param(0.1, 60, 6, 91, 1, id="every epoch costs just the budget"),
        pytest.param(0.1, 60, 12, 91, 3, id="45 analyses in 91 epochs"),
        pytest.param(0.1, 60, 60, 91, 12, id="9 analyses in 91 epochs"),
        pytest.param(0.1, 60, 6000, 91, 90, id="the first and the last, whatever they cost"),
        pytest.param(0.1, 60, 1, 91, 1, id="cheap"),
        pytest.param(1.0, 60, 120, 91, 3, id="as long as the training itself"),
        pytest.param(0.1, 60, 60, 3, 2, id="three epochs"),
        pytest.param(0.1, 60, 60, None, 10, id="no end known"),
        pytest.param(0.1, 60, 3, None, 1, id="no end known, cheap"),
        pytest.param(0.1, 60, 60, 1, 10, id="one epoch"),
        pytest.param(0.1, 0, 1, 10, 9, id="an epoch that takes no time"),
        pytest.param(0.1, 60, 0, 10, 1, id="an analysis that takes no time"),
    ],
)
def test_interval(
    budget: float, epoch_seconds: float, analysis_seconds: float, epochs: int | None, interval: int
) -> None:
    assert Pace(budget).interval(epoch_seconds, analysis_seconds, epochs) == interval


@pytest.mark.parametrize("epochs", [3, 4, 10, 91, 200])
@pytest.mark.parametrize("cost", [0.01, 0.1, 0.35, 1.0, 20.0])
@pytest.mark.parametrize("budget", [0.05, 0.1, 0.5])
def test_a_run_keeps_to_its_budget_and_analyses_both_ends(
    epochs: int, cost: float, budget: float, clock: list[float]
) -> None:
    pace = Pace(budget)
    pace.start(0)
    analysed = []
    for epoch in range(epochs):
        clock[0] += 60
        if pace.due(epoch, epochs):
            analysed.append(epoch)
            with pace.analysing(epoch):
                clock[0] += 60 * cost
            assert not pace.due(epoch, epochs)  # once an epoch, however often it validates
    assert analysed[0] == 0
    assert analysed[-1] == epochs - 1
    assert len(analysed) * cost <= max(budget * epochs, 2 * cost) + 1e-9
    gaps = [after - before for before, after in pairwise(analysed)]
    assert len(set(gaps[:-1])) <= 1  # evenly, but for the last
    assert gaps[-1] <= gaps[0]


def test_time_in_analyses_is_no_training_time(clock: list[float]) -> None:
    pace = Pace(0.1)
    assert math.isnan(pace.epoch_seconds(0))
    pace.start(3)
    clock[0] += 10
    with pace.analysing(3):
        clock[0] += 500
    assert pace.analysis == 500
    assert pace.epoch_seconds(3) == 10
    clock[0] += 20
    assert pace.epoch_seconds(4) == 15


def test_an_analysis_that_fails_has_taken_its_time_too(clock: list[float]) -> None:
    pace = Pace(0.1)
    pace.start(0)

    def fail() -> None:
        with pace.analysing(0):
            clock[0] += 7
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert pace.analysis == 7
    assert not pace.due(0, 10)
    clock[0] += 140
    assert pace.due(1, 10)


def test_a_new_run_begins_with_an_analysis(clock: list[float]) -> None:
    pace = Pace(0.1)
    pace.start(5)
    clock[0] += 10
    with pace.analysing(5):
        clock[0] += 3  # 0.3 of an epoch: one epoch in three
    assert not pace.due(5, None)
    clock[0] += 20
    assert not pace.due(7, None)
    assert pace.due(7, 8)  # the last
    clock[0] += 10
    assert pace.due(8, None)
    pace.forget()
    assert pace.analysis is None
    assert pace.due(0, 10)


def test_in_words(clock: list[float]) -> None:
    pace = Pace(0.1)
    pace.start(0)
    clock[0] += 10
    with pace.analysing(0):
        clock[0] += 3
    assert pace.in_words(0, None) == (
        "One analysis of unit roles takes 3.0 s, 0.30 of a training epoch. With budget=0.1, one epoch in 3 is "
        "analysed, and the last."
    )
    pace.budget = 1.0
    assert pace.in_words(0, None).endswith("With budget=1, each epoch is analysed.")
