from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_unitrole.ablation import coarse_points, refined_points
from lightning_unitrole.errors import SettingError
from lightning_unitrole.reports.curves import AblationCurve


def curve_of(loss: Tensor, ablated: Tensor) -> AblationCurve:
    values = loss[ablated]
    return AblationCurve(ablated, values, -values, values)


def located(loss: Tensor, points: int) -> AblationCurve:
    """Measure as the driver does, until nothing is wanted any more."""
    ablated = coarse_points(len(loss) - 1, points)
    while len(more := refined_points(curve_of(loss, ablated), points)):
        assert not {*more.tolist()} & {*ablated.tolist()}, "measured twice"
        ablated = torch.cat([ablated, more]).sort().values
    return curve_of(loss, ablated)


@st.composite
def valleys(draw: st.DrawFn) -> Tensor:
    """Strictly falling, flat at the bottom, strictly rising; any of the three may be missing."""
    left, bottom, right = draw(st.integers(0, 400)), draw(st.integers(1, 60)), draw(st.integers(0, 400))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    down = (torch.rand(left, generator=generator, dtype=torch.float64) + 1e-3).cumsum(0).flip(0)
    up = (torch.rand(right, generator=generator, dtype=torch.float64) + 1e-3).cumsum(0)
    return torch.cat([down, torch.zeros(bottom, dtype=torch.float64), up])


@given(valleys(), st.integers(2, 80))
@settings(max_examples=300, deadline=None)
def test_valleys_are_located_exactly(loss: Tensor, points: int) -> None:
    every = curve_of(loss, torch.arange(len(loss)))
    assert located(loss, points).turning_point == every.turning_point


@given(st.lists(st.floats(0, 10, width=16), min_size=2, max_size=300), st.integers(2, 80))
@settings(max_examples=200, deadline=None)
def test_other_curves_end_where_both_neighbours_are_measured(values: list[float], points: int) -> None:
    loss = torch.tensor(values, dtype=torch.float64)
    curve = located(loss, points)
    turning, known = curve.turning_point, {*curve.ablated.tolist()}
    assert {max(turning - 1, 0), turning, min(turning + 1, len(loss) - 1), 0, len(loss) - 1} <= known
    assert loss[turning] == curve.loss.min()


@pytest.mark.parametrize("num_units", [64, 512, 2048])
@pytest.mark.parametrize("points", [32, 64, 128])
def test_the_number_of_points_is_kept(num_units: int, points: int) -> None:
    generator = torch.Generator().manual_seed(8)
    for turning in torch.randint(0, num_units + 1, (25,), generator=generator).tolist():
        loss = (torch.arange(num_units + 1) - turning).double().abs()
        curve = located(loss, points)
        assert curve.turning_point == turning
        assert len(curve.ablated) <= points * 1.2


def test_coarse_points() -> None:
    assert coarse_points(4, None).tolist() == [0, 1, 2, 3, 4]
    assert coarse_points(4, 5).tolist() == [0, 1, 2, 3, 4]
    assert coarse_points(4, 2).tolist() == [0, 4]
    assert coarse_points(1, 64).tolist() == [0, 1]
    grid = coarse_points(512, 64)
    assert len(grid) == 32
    assert (int(grid[0]), int(grid[-1]), int(grid.diff().max())) == (0, 512, 17)
    with pytest.raises(SettingError, match="points=0; expected at least 2"):
        coarse_points(4, 0)
