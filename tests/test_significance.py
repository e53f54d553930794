"""Tests of means, and measures of agreement, against other programs and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from lightning_unitrole.reports.contributions import Estimate
from lightning_unitrole.reports.significance import (
    discoveries,
    kappa,
    p_differs,
    p_negative,
    p_positive,
    pooled,
    rank_correlation,
    upper_tail,
)

NAN = math.nan


def estimate(values: Tensor) -> Estimate:
    """Of the mean of ``[N, U]`` values."""
    count = torch.tensor([float(len(values))], dtype=torch.float64)
    return Estimate(count, values.mean(0), values.var(0) / count, (count - 1).expand(values.shape[1]))


def draws(images: int, *, seed: int, shift: float = 0.0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + spread * torch.randn(images, 6, generator=generator, dtype=torch.float64)


def close(found: Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=torch.float64), rtol=tolerance, atol=1e-300, equal_nan=True
    )


@pytest.mark.parametrize("statistic", [-40.0, -1.5, 0.0, 0.3, 2.0, 9.0, 60.0, math.inf, -math.inf])
@pytest.mark.parametrize("freedom", [1.0, 3.7, 99.0, 1e6])
def test_the_tail_is_that_of_students_t(statistic: float, freedom: float) -> None:
    found = upper_tail(*torch.tensor([[statistic], [freedom]], dtype=torch.float64))
    close(found, [stats.t.sf(statistic, freedom)], 1e-9)


def test_nothing_known_has_no_tail() -> None:
    assert upper_tail(torch.tensor([NAN, 1.0]), torch.tensor([3.0, NAN])).isnan().all()


@pytest.mark.parametrize("images", [2, 3, 25])
def test_one_sided_tests_are_scipys(images: int) -> None:
    values = draws(images, seed=images, shift=0.3)
    found = estimate(values)
    close(p_positive(found), stats.ttest_1samp(values.numpy(), 0, alternative="greater").pvalue)
    close(p_negative(found), stats.ttest_1samp(values.numpy(), 0, alternative="less").pvalue)


@pytest.mark.parametrize("sizes", [(2, 2), (5, 40), (30, 30)], ids=str)
def test_welchs_test_is_scipys(sizes: tuple[int, int]) -> None:
    one, other = draws(sizes[0], seed=1), draws(sizes[1], seed=2, shift=0.5, spread=3.0)
    expected = stats.ttest_ind(one.numpy(), other.numpy(), equal_var=False).pvalue
    close(p_differs(estimate(one), estimate(other)), expected)
    close(p_differs(estimate(other), estimate(one)), expected)


def test_without_spread_every_difference_is_one() -> None:
    still = estimate(torch.tensor([[1.0, 2.0, 0.0]] * 4, dtype=torch.float64))
    other = estimate(torch.tensor([[1.0, 2.5, 0.0]] * 4, dtype=torch.float64))
    assert p_differs(still, other).tolist() == [1.0, 0.0, 1.0]
    assert p_positive(still).tolist() == [0.0, 0.0, 0.5]
    assert p_negative(still).tolist() == [1.0, 1.0, 0.5]


def test_one_image_proves_nothing() -> None:
    one = Estimate(*(torch.tensor([value], dtype=torch.float64) for value in (1.0, 5.0, NAN, 0.0)))
    for p_value in (p_positive(one), p_negative(one), p_differs(one, one)):
        assert p_value.isnan().all()


def test_pooling_two_estimates_is_taking_the_images_together() -> None:
    one, other = draws(10, seed=3), draws(30, seed=4)
    both = pooled(estimate(one), estimate(other))
    close(both.mean, torch.cat([one, other]).mean(0))
    # Each side's own spread around its own mean, so that a difference between the sides does not count as spread.
    variance = (one.var(0) / 10) * 0.25**2 + (other.var(0) / 30) * 0.75**2
    close(both.variance, variance)
    assert both.images.tolist() == [40.0]
    assert both.freedom.tolist() == [38.0] * 6


P_VALUES = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.01, 0.05])), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(P_VALUES, st.sampled_from([0.05, 0.2]))
def test_discoveries_are_those_of_scipys_adjusted_values(p_values: list[float], rate: float) -> None:
    adjusted = stats.false_discovery_control(p_values)
    near = abs(adjusted - rate) < 1e-12  # where rounding decides
    found = discoveries(torch.tensor(p_values, dtype=torch.float64), rate).numpy()
    assert (found == (adjusted <= rate))[~near].all()


def test_discoveries_by_hand() -> None:
    # Ten tests at 5 %: the bounds are 0.005, 0.010, 0.015, 0.020, 0.025 and so on; 0.024 is fifth and passes, and so
    # does everything below it, although 0.016 is above its own bound.
    p_values = [0.001, 0.009, 0.016, 0.0195, 0.024, 0.05, 0.3, 0.5, 0.7, 0.9]
    assert discoveries(torch.tensor(p_values)).tolist() == [True] * 5 + [False] * 5


def test_what_was_not_tested_does_not_count_as_a_test() -> None:
    p_values = torch.tensor([0.04, NAN, NAN, 0.03], dtype=torch.float64)
    assert discoveries(p_values).tolist() == [True, False, False, True]
    assert discoveries(torch.tensor([0.04, 1.0, 1.0, 0.03])).tolist() == [False] * 4
    assert discoveries(p_values.view(2, 2)).tolist() == [[True, False], [False, True]]
    assert discoveries(torch.full((2, 3), NAN)).tolist() == [[False] * 3] * 2


def test_few_of_what_is_found_in_noise_and_signal_are_false() -> None:
    """The promise of the procedure, over 200 rounds of 100 tests, of which 20 have something to find."""
    generator = torch.Generator().manual_seed(0)
    false = []
    for _ in range(200):
        values = torch.randn(12, 100, generator=generator, dtype=torch.float64)
        values[:, :20] += 1.5
        found = discoveries(p_positive(estimate(values)))
        false.append(float(found[20:].sum() / found.sum().clamp(min=1)))
    assert 0.02 < sum(false) / len(false) < 0.06  # 0.05 * 80 / 100 on average
    only_noise = [bool(discoveries(p_positive(estimate(draws(12, seed=seed)))).any()) for seed in range(300)]
    assert sum(only_noise) / 300 < 0.09


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_scikit_learns(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randint(-1, 2, (2, 5, 40), generator=generator)
    expected = [cohen_kappa_score(left, right) for left, right in zip(one.numpy(), other.numpy(), strict=True)]
    close(kappa(one, other), expected)
    close(kappa(one[0] > 0, other[0] > 0), cohen_kappa_score((one[0] > 0).numpy(), (other[0] > 0).numpy()))


def test_kappa_by_hand() -> None:
    # Eight of ten agree; by chance 0.6 * 0.6 + 0.4 * 0.4 = 0.52.
    one = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    other = torch.tensor([1, 1, 1, 1, 1, 0, 1, 0, 0, 0])
    assert kappa(one, other).item() == pytest.approx((0.8 - 0.52) / 0.48)
    assert kappa(one, 1 - one).item() == pytest.approx((0 - 0.48) / 0.52)
    assert kappa(one, one).item() == 1
    assert kappa(torch.ones(5), torch.ones(5)).isnan()


@pytest.mark.parametrize("values", ["distinct", "ties"])
def test_rank_correlation_is_scipys(values: str) -> None:
    generator = torch.Generator().manual_seed(7)
    one, other = torch.randn(2, 3, 25, generator=generator, dtype=torch.float64)
    if values == "ties":
        one, other = one.round(), other.round()
    expected = [stats.spearmanr(left, right).statistic for left, right in zip(one.numpy(), other.numpy(), strict=True)]
    close(rank_correlation(one, other), expected)


def test_rank_correlation_by_hand() -> None:
    # Squared differences of the ranks 1, 1, 4, 0, 4 sum to 10: 1 - 6 * 10 / (5 * 24).
    one = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    assert rank_correlation(one, torch.tensor([2.0, 1.0, 5.0, 4.0, 3.0])).item() == pytest.approx(0.5)
    assert rank_correlation(one, one.exp()).item() == pytest.approx(1)
    assert rank_correlation(one, -one).item() == pytest.approx(-1)
    assert rank_correlation(one, torch.ones(5)).isnan()
    ranked_lowest = rank_correlation(one, torch.tensor([NAN, 1.0, 2.0, 3.0, 4.0]))
    assert ranked_lowest.item() == pytest.approx(1)
