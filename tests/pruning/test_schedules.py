from __future__ import annotations

from typing import Any

import pytest

from lightning_unitrole.errors import SettingError
from lightning_unitrole.pruning.schedules import Schedule


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        pytest.param({"start": 2}, {0: 0, 1: 0, 2: 1, 3: 1}, id="once"),
        pytest.param({"kind": "linear", "end": 4}, {0: 0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1, 9: 1}, id="linear"),
        pytest.param(
            {"kind": "linear", "start": 0, "end": 5, "every": 2},
            {0: 1 / 3, 1: 1 / 3, 2: 2 / 3, 4: 1, 5: 1},
            id="every 2",
        ),
        pytest.param({"kind": "cubic", "end": 2}, {0: 0, 1: 0.875, 2: 1}, id="cubic"),
        pytest.param({"kind": "cubic", "end": 1}, {0: 0, 1: 1}, id="one epoch"),
    ],
)
def test_share(settings: dict[str, Any], shares: dict[int, float]) -> None:
    schedule = Schedule(**settings)
    assert {epoch: schedule.share(epoch) for epoch in shares} == pytest.approx(shares)


def test_due_epochs() -> None:
    schedule = Schedule("linear", start=1, end=6, every=2)
    assert schedule.epochs == [1, 3, 5]
    assert [schedule.latest(epoch) for epoch in (0, 1, 2, 9)] == [None, 1, 1, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"kind": "twice"}, "schedule='twice'; expected one of once, linear, cubic", id="kind"),
        pytest.param({"start": -1}, "start_epoch=-1; expected an integer of at least 0", id="start"),
        pytest.param({"start": 1.5}, "start_epoch=1.5; expected an integer", id="no integer"),
        pytest.param({"every": 0}, "every_n_epochs=0; expected an integer of at least 1", id="every"),
        pytest.param({"kind": "cubic"}, "schedule='cubic' needs end_epoch", id="no end"),
        pytest.param(
            {"kind": "linear", "start": 3, "end": 2},
            "end_epoch=2; expected an integer of at least start_epoch=3",
            id="end",
        ),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Schedule(**settings)
