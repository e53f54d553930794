from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_unitrole.ablation import coarse_points, even_points, falling_points, refined_points
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


def followed(accuracy: Tensor, points: int) -> AblationCurve:
    """Measure where the curve falls, until nothing is wanted any more."""
    ablated = even_points(len(accuracy) - 1, 5)
    while len(more := falling_points(curve_of(-accuracy, ablated), points)):
        assert not {*more.tolist()} & {*ablated.tolist()}, "measured twice"
        ablated = torch.cat([ablated, more]).sort().values
    return curve_of(-accuracy, ablated)


@given(st.integers(1, 700), st.floats(0, 1), st.floats(0.5, 200), st.integers(5, 40))
@settings(max_examples=200, deadline=None)
def test_a_fall_is_followed_and_a_level_is_not(units: int, middle: float, sharpness: float, points: int) -> None:
    share = torch.arange(units + 1, dtype=torch.float64) / units
    accuracy = 0.1 + 0.8 * torch.sigmoid(sharpness * (middle - share))
    curve, whole = followed(accuracy, points), curve_of(-accuracy, torch.arange(units + 1))
    assert len(curve.ablated) <= 2 * points
    between = curve.accuracy.diff().abs() > 0.125 * (curve.accuracy.max() - curve.accuracy.min())
    assert bool((curve.ablated.diff()[between] <= max(units / (points - 1), 1)).all())
    assert curve.area == pytest.approx(whole.area, abs=0.03 + 0.8 / points)


def test_a_curve_that_falls_at_once_needs_few_points() -> None:
    accuracy = torch.where(torch.arange(513) < 20, 0.9, 0.1)
    assert followed(accuracy, 16).ablated.tolist() == [0, 32, 64, 128, 256, 384, 512]
    assert followed(torch.full((513,), 0.7), 16).ablated.tolist() == [0, 128, 256, 384, 512]
    assert followed(torch.full((513,), torch.nan), 16).ablated.tolist() == [0, 128, 256, 384, 512]
