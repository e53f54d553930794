from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.ranking.criteria import (
    CRITERIA,
    Needs,
    UnitStatistics,
    rank_overall,
    rank_units,
    resolve_criterion,
    score_units,
    taylor_score,
)

NAN = math.nan
LN2 = math.log(2)


def _double(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


STATISTICS = UnitStatistics(
    images=torch.tensor([4, 4]),
    counts=torch.tensor(
        [
            [[0, 2, 2], [2, 1, 1], [4, 0, 0]],
            [[0, 4, 0], [0, 1, 3], [0, 2, 2]],
        ]
    ),
    non_finite=torch.zeros(2, 3, dtype=torch.int64),
    filter_norm=_double([0.5, 2.0, 1.0]),
    activation=_double([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]]),
    positive=_double([[0.75, 0.5, 0.0], [1.0, 0.25, 0.0]]),
    sensitivity=_double([[0.1, 0.3, 0.0], [0.2, 0.0, 0.4]]),
    contribution=_double([[0.5, -0.25, 0.0], [NAN, 1.0, 2.0]]),
)

NO_BIRTHS = torch.zeros(3, 1, 3)

SCORES = {
    # The last unit has no birth for class 0; the first has ineffectiveness 0 for class 1, too low to be believed.
    "feature_entropy": [[-LN2, -2 * LN2, NAN], [NAN, -(2 * LN2 - 0.75 * math.log(3)), -LN2]],
    "filter_norm": [[0.5, 2.0, 1.0], [0.5, 2.0, 1.0]],
    "apoz": [[-0.25, -0.5, -1.0], [0.0, -0.75, -1.0]],
    "mean_activation": [[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]],
    "taylor": [[0.1, 0.3, 0.0], [0.2, 0.0, 0.4]],
    "contribution": [[0.5, -0.25, 0.0], [NAN, 1.0, 2.0]],
    "class_selectivity": [[0.5, 0.0, NAN], [-0.5, 0.0, NAN]],
}


@pytest.mark.parametrize("name", SCORES)
def test_scores(name: str) -> None:
    torch.testing.assert_close(score_units(name, STATISTICS), _double(SCORES[name]), equal_nan=True)


def test_every_criterion_has_been_worked_by_hand() -> None:
    assert {*SCORES, "random"} == set(CRITERIA)


def test_random_is_the_same_each_time_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    score = score_units("random", STATISTICS)
    assert torch.equal(score, score_units("random", STATISTICS))
    assert torch.equal(before, torch.get_rng_state())
    assert len(score.unique()) == 6


def test_ineffectiveness_just_below_the_threshold_ranks_last() -> None:
    # Entropy of 1 in n images: 0.0980 for n = 50, 0.1072 for n = 45.
    counts = torch.tensor([[[0, 1, 49], [0, 1, 44]]])
    score = score_units("feature_entropy", replace(STATISTICS, counts=counts))
    assert torch.isnan(score[0, 0])
    assert score[0, 1] == pytest.approx(-0.10654, abs=1e-4)
    assert rank_units(score).tolist() == [[1, 0]]


def test_class_selectivity_compares_with_the_mean_of_the_other_classes() -> None:
    statistics = replace(
        STATISTICS,
        images=torch.tensor([2, 5, 3]),
        activation=_double([[6.0], [1.0], [3.0]]),
        counts=NO_BIRTHS,
    )
    torch.testing.assert_close(
        score_units("class_selectivity", statistics), _double([[4 / 8], [-3.5 / 5.5], [-0.5 / 6.5]])
    )


@pytest.mark.parametrize("missing", [NAN, 0.0], ids=["NaN", "zero"])
def test_class_selectivity_leaves_out_classes_without_images(missing: float) -> None:
    statistics = replace(
        STATISTICS,
        images=torch.tensor([2, 0, 3]),
        activation=_double([[6.0], [missing], [2.0]]),
        counts=NO_BIRTHS,
    )
    score = score_units("class_selectivity", statistics)
    torch.testing.assert_close(score[[0, 2]], _double([[0.5], [-0.5]]))


def test_class_selectivity_of_one_class_survives_broken_maps_in_another() -> None:
    statistics = replace(
        STATISTICS,
        images=torch.tensor([2, 4, 3]),
        activation=_double([[6.0], [NAN], [2.0]]),
        counts=NO_BIRTHS,
    )
    torch.testing.assert_close(
        score_units("class_selectivity", statistics), _double([[0.5], [NAN], [-0.5]]), equal_nan=True
    )


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("apoz", "positive"),
        ("mean_activation", "activation"),
        ("taylor", "sensitivity"),
        ("contribution", "contribution"),
        ("class_selectivity", "activation"),
    ],
)
def test_what_was_not_gathered_is_named(name: str, field: str) -> None:
    with pytest.raises(DataError, match=rf"UnitStatistics\.{field} was not gathered in this pass"):
        score_units(name, replace(STATISTICS, **{field: None}))


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_say_what_they_need(name: str) -> None:
    """With only what a criterion says that it needs, it works."""
    needs = Needs.of([name])
    kept: dict[str, Any] = {"activation": None, "positive": None, "sensitivity": None, "contribution": None}
    if needs.activation:
        kept |= {"activation": STATISTICS.activation, "positive": STATISTICS.positive}
    if needs.gradient:
        kept["sensitivity"] = STATISTICS.sensitivity
    if needs.contribution:
        kept["contribution"] = STATISTICS.contribution
    assert score_units(name, replace(STATISTICS, **kept)).shape == (2, 3)


@dataclass
class BySum:
    """A criterion with a setting; as a dataclass that compares, it cannot be hashed."""

    sign: int

    def __call__(self, statistics: UnitStatistics) -> Tensor:
        return self.sign * statistics.counts.sum(-1)


def test_a_function_of_the_users_own() -> None:
    criterion = BySum(-1)
    assert resolve_criterion(criterion) == ("BySum", criterion)
    assert Needs.of([criterion]) == Needs(activation=True, gradient=False, contribution=False)
    score = score_units(criterion, STATISTICS)
    assert score.dtype == torch.float64
    assert torch.equal(score, torch.full((2, 3), -4.0, dtype=torch.float64))


def test_a_built_in_criterion_may_be_given_as_a_function() -> None:
    assert resolve_criterion(taylor_score) == ("taylor_score", taylor_score)
    assert Needs.of([taylor_score]) == Needs(activation=False, gradient=True, contribution=False)


def test_several_criteria_need_what_any_of_them_needs() -> None:
    assert Needs.of(["feature_entropy", "random"]) == Needs(activation=False, gradient=False, contribution=False)
    assert Needs.of(["taylor", "apoz", "contribution"]) == Needs(activation=True, gradient=True, contribution=True)


@pytest.mark.parametrize("criterion", ["entropy", 7, ["apoz"]], ids=["name", "number", "list"])
def test_unknown_criteria_are_refused_with_a_list(criterion: Any) -> None:
    with pytest.raises(
        SettingError, match=r"is not known; expected one of feature_entropy, filter_norm, .*, random, or a"
    ):
        score_units(criterion, STATISTICS)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        pytest.param(torch.zeros(3), r"returned shape \[3\]; expected \[classes, units\] = \[2, 3\]", id="shape"),
        pytest.param([[0.0] * 3] * 2, r"returned a list; expected a tensor \[classes, units\]", id="no tensor"),
    ],
)
def test_scores_of_another_shape_are_refused(returned: Any, message: str) -> None:
    def mine(_: UnitStatistics) -> Any:
        return returned

    with pytest.raises(DataError, match="criterion 'mine' " + message):
        score_units(mine, STATISTICS)


@pytest.mark.parametrize(
    ("score", "order"),
    [
        pytest.param([0.1, 0.3, 0.2], [1, 2, 0], id="distinct"),
        pytest.param([0.5, 0.9, 0.5, 0.9], [1, 3, 0, 2], id="ties by index"),
        pytest.param([NAN, 0.5, NAN, -0.5], [1, 3, 0, 2], id="NaN last, by index"),
        pytest.param([NAN, -math.inf, 0.0, math.inf], [3, 2, 1, 0], id="NaN behind minus infinity"),
        pytest.param([NAN, NAN, NAN], [0, 1, 2], id="all NaN"),
        pytest.param([0, 2, 1], [1, 2, 0], id="integers"),
    ],
)
def test_ranking(score: list[float], order: list[int]) -> None:
    assert rank_units(torch.tensor(score)).tolist() == order


def _key(score: float, unit: int) -> tuple[bool, float, int]:
    return (math.isnan(score), 0 if math.isnan(score) else -score, unit)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([NAN, -math.inf, -1.5, 0.0, 0.25, math.inf]), min_size=1, max_size=9))
def test_ranking_equals_sorting_in_plain_python(score: list[float]) -> None:
    expected = sorted(range(len(score)), key=lambda unit: _key(score[unit], unit))
    assert rank_units(_double(score)).tolist() == expected


def test_ranking_of_a_batch_equals_a_loop() -> None:
    score = torch.randint(0, 4, (2, 3, 7), generator=torch.Generator().manual_seed(1)).double()
    score[score == 3] = NAN
    order = rank_units(score)
    for first in range(2):
        for second in range(3):
            assert torch.equal(order[first, second], rank_units(score[first, second]))


@pytest.mark.parametrize(
    ("order", "images", "overall"),
    [
        pytest.param([[2, 0, 1]], [5], [2, 0, 1], id="one class"),
        pytest.param([[2, 0, 1], [2, 1, 0]], [5, 5], [2, 0, 1], id="tie by index"),
        pytest.param([[0, 1, 2], [2, 1, 0]], [5, 5], [0, 1, 2], id="all equal"),
        pytest.param([[0, 1, 2], [2, 1, 0]], [0, 5], [2, 1, 0], id="class without images does not count"),
        pytest.param([[0, 1, 2], [2, 0, 1], [2, 0, 1]], [1, 1, 9], [0, 2, 1], id="classes count equally"),
        pytest.param([[1, 0, 2]], [0], [0, 1, 2], id="no images"),
    ],
)
def test_overall_ranking(order: list[list[int]], images: list[int], overall: list[int]) -> None:
    assert rank_overall(torch.tensor(order), torch.tensor(images)).tolist() == overall
