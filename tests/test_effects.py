"""From contributions to roles: by hand, and on networks where the answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import digits, trained_net
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_unitrole.analysis.functions import analyze
from lightning_unitrole.reports.contributions import Contributions, Estimate
from lightning_unitrole.reports.effects import (
    HELPS,
    HURTS,
    MIN_EFFECT,
    NO_EFFECT,
    UNTESTED,
    Effects,
    agreement_between_halves,
    class_effects,
    measure_effects,
    overall_effects,
    roles_from_effects,
    without_effect,
)
from lightning_unitrole.reports.layer import LayerReport
from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.reports.vocabulary import NO_ROLE, UNDECIDED

BOTH, TRAIN, VAL, NEITHER = (int(role) for role in (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, 0))


def contributions(values: Tensor, images: list[int] | None = None) -> Contributions:
    """The sums over ``[C, N, U]`` values, of which the first ``images[c]`` of each class count."""
    classes, count, _ = values.shape
    sizes = torch.tensor(images or [count] * classes)
    counted = torch.arange(count) < sizes[:, None]
    halves = torch.stack([counted & (torch.arange(count) % 2 == half) for half in (0, 1)])
    whole = values.sum(2)
    return Contributions(
        images=halves.sum(2),
        sums=(values * halves.unsqueeze(-1)).sum(2),
        squares=(values.square() * halves.unsqueeze(-1)).sum(2),
        margin=(whole * halves).sum(2),
        sizes=(whole.abs() * halves).sum(2),
        errors=(0.25 * whole.abs() * halves).sum(2),
        steps=torch.tensor(3),
    )


def noise(classes: int, images: int, units: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, images, units, generator=generator, dtype=torch.float64)


def of(mean: Tensor | list[float], images: int, error: float) -> Estimate:
    """Means that are known up to a standard error."""
    mean = torch.as_tensor(mean, dtype=torch.float64)
    return Estimate(
        torch.tensor([float(images)], dtype=torch.float64),
        mean,
        torch.full_like(mean, error**2),
        torch.full_like(mean, images - 1),
    )


class TestContributions:
    values = noise(3, 7, 4, seed=0) + torch.tensor([0.0, 1.0, -2.0, 5.0])

    def test_by_class(self) -> None:
        found = contributions(self.values, [7, 2, 4]).by_class()
        assert found.images.squeeze(1).tolist() == [7, 2, 4]
        for klass, size in enumerate([7, 2, 4]):
            own = self.values[klass, :size]
            torch.testing.assert_close(found.mean[klass], own.mean(0))
            torch.testing.assert_close(found.variance[klass], own.var(0) / size)
            torch.testing.assert_close(found.standard_error[klass], own.std(0) / size**0.5)
            assert found.freedom[klass].tolist() == [size - 1] * 4

    def test_halves_are_the_even_and_the_odd_images(self) -> None:
        whole = contributions(self.values)
        for half in (0, 1):
            found, expected = whole.half(half).by_class(), contributions(self.values[:, half::2])
            assert found.images.squeeze(1).tolist() == [4 - half] * 3
            torch.testing.assert_close(found.mean, expected.by_class().mean)
            torch.testing.assert_close(found.variance, expected.by_class().variance)

    def test_overall_weighs_classes_equally_whatever_their_numbers_of_images(self) -> None:
        found = contributions(self.values, [7, 2, 4]).overall()
        parts = [self.values[klass, :size] for klass, size in enumerate([7, 2, 4])]
        torch.testing.assert_close(found.mean, torch.stack([part.mean(0) for part in parts]).mean(0))
        variances = torch.stack([part.var(0) / len(part) for part in parts])
        torch.testing.assert_close(found.variance, variances.sum(0) / 9)
        assert found.images.tolist() == [13]
        # Satterthwaite, worked out for one unit.
        one = [float(variance) for variance in variances[:, 0]]
        expected = sum(one) ** 2 / (one[0] ** 2 / 6 + one[1] ** 2 / 1 + one[2] ** 2 / 3)
        assert float(found.freedom[0]) == pytest.approx(expected)

    def test_a_class_with_one_image_or_none_does_not_keep_the_others_from_being_tested(self) -> None:
        found, expected = (
            contributions(self.values, [7, 1, 0]).overall(),
            contributions(self.values[:1]).overall(),
        )
        for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
            torch.testing.assert_close(one, other)
        nothing = contributions(self.values, [1, 1, 1]).overall()
        assert nothing.mean.isnan().all()
        assert nothing.variance.isnan().all()
        assert nothing.images.tolist() == [0]

    def test_without_spread_there_are_degrees_of_freedom_all_the_same(self) -> None:
        found = contributions(torch.ones(2, 5, 3, dtype=torch.float64)).overall()
        assert found.variance.tolist() == [0.0] * 3
        assert found.freedom.tolist() == [8.0] * 3

    def test_scale_is_what_a_unit_does_on_average(self) -> None:
        values = torch.tensor([[[1.0, -3.0]] * 4, [[0.0, 4.0]] * 4], dtype=torch.float64)
        assert contributions(values).scale == 2
        assert contributions(values, [4, 0]).scale == 2
        assert math.isnan(contributions(values, [0, 0]).scale)

    def test_completeness(self) -> None:
        assert contributions(self.values).completeness_error == pytest.approx(0.25)
        assert math.isnan(contributions(torch.zeros(2, 3, 4)).completeness_error)


class TestMeasuring:
    """Scale 1, so that a mean has to be 0.1 at least; 50 images a side."""

    def found(self, train: list[float], val: list[float], error: float = 0.05) -> Effects:
        return measure_effects(of(train, 50, error), of(val, 50, error), 1.0)

    def test_signs_on_both_sides(self) -> None:
        found = self.found([1.0, 0.0, -1.0], [0.9, 0.02, -1.1])
        assert found.differs.tolist() == [False] * 3
        assert found.train.tolist() == found.val.tolist() == [HELPS, NO_EFFECT, HURTS]
        assert found.share(HELPS) == found.share(HURTS) == found.share(NO_EFFECT) == pytest.approx(1 / 3)
        assert found.differing_share == 0

    def test_where_the_sides_differ_each_has_its_own(self) -> None:
        found = self.found([1.0, 0.01, 1.0, -1.0, 1.0, 0.5], [0.0, 0.8, 2.0, 0.01, -1.0, 0.5])
        assert found.differs.tolist() == [True, True, True, True, True, False]
        assert found.train.tolist() == [HELPS, NO_EFFECT, HELPS, HURTS, HELPS, HELPS]
        assert found.val.tolist() == [NO_EFFECT, HELPS, HELPS, NO_EFFECT, HURTS, HELPS]
        assert found.differing_share == pytest.approx(5 / 6)
        assert roles_from_effects(found).tolist() == [TRAIN, VAL, BOTH, NEITHER, TRAIN, BOTH]

    def test_what_neither_side_shows_alone_both_may_show_together(self) -> None:
        # 0.25 with an error of 0.15 is not enough at 5 % in two tests of which one finds nothing; together it is.
        alone = measure_effects(of([0.25, 0.0], 50, 0.15), of([0.25, 0.0], 50, 0.15), 1.0)
        assert alone.train.tolist() == alone.val.tolist() == [HELPS, NO_EFFECT]
        halved = measure_effects(of([0.25, 0.0], 50, 0.3), of([0.25, 0.0], 50, 0.3), 1.0)
        assert halved.train.tolist() == halved.val.tolist() == [NO_EFFECT, NO_EFFECT]

    def test_what_is_sure_but_small_has_no_effect(self) -> None:
        just = MIN_EFFECT + 1e-6
        found = self.found([0.09, just, -0.09, -just], [0.09, just, -0.09, -just], error=1e-4)
        assert found.val.tolist() == [NO_EFFECT, HELPS, NO_EFFECT, HURTS]
        assert self.found([0.5, 0.5], [0.55, 0.71], error=1e-4).differs.tolist() == [False, True]

    def test_what_is_large_but_unsure_has_no_effect(self) -> None:
        found = self.found([3.0, -3.0, 2.0], [3.0, -3.0, -2.0], error=4.0)
        assert found.train.tolist() == found.val.tolist() == [NO_EFFECT] * 3
        assert not found.differs.any()

    def test_many_tests_need_more_evidence_than_one(self) -> None:
        one = measure_effects(of([0.25], 50, 0.15), of([0.25], 50, 0.15), 1.0)
        assert one.val.tolist() == [HELPS]
        many = measure_effects(of([0.25] + [0.0] * 40, 50, 0.15), of([0.25] + [0.0] * 40, 50, 0.15), 1.0)
        assert many.val.tolist() == [NO_EFFECT] * 41

    @pytest.mark.parametrize(("train", "val"), [(3, 50), (50, 3), (0, 50)], ids=str)
    def test_too_few_images_on_either_side_are_no_test(self, train: int, val: int) -> None:
        found = measure_effects(of([1.0, 0.0], train, 0.01), of([1.0, 0.0], val, 0.01), 1.0)
        assert found.train.tolist() == found.val.tolist() == [UNTESTED] * 2
        assert not found.differs.any()
        assert math.isnan(found.differing_share)
        assert math.isnan(found.share(HELPS))

    def test_a_mean_of_unknown_spread_is_no_test(self) -> None:
        found = measure_effects(of([1.0, 0.0], 50, math.nan), of([1.0, 0.0], 50, 0.01), 1.0)
        assert found.val.tolist() == [UNTESTED] * 2


def test_roles_by_hand() -> None:
    values = torch.tensor([HELPS, NO_EFFECT, HURTS], dtype=torch.int8)
    train, val = torch.cartesian_prod(values, values).T
    found = roles_from_effects(Effects(train, val, torch.zeros(9, dtype=torch.bool)))
    assert found.dtype == torch.uint8
    assert found.tolist() == [BOTH, TRAIN, TRAIN, VAL, NEITHER, NEITHER, VAL, NEITHER, NEITHER]


def test_classes_with_too_few_images_are_undecided_and_those_without_have_no_role() -> None:
    effects = torch.full((4, 2), HELPS, dtype=torch.int8)
    effects[1:3] = UNTESTED
    found = roles_from_effects(Effects(effects, effects, effects > 9), torch.tensor([4, 3, 0, 9]))
    assert found.tolist() == [[BOTH] * 2, [UNDECIDED] * 2, [NO_ROLE] * 2, [BOTH] * 2]
    assert roles_from_effects(Effects(effects, effects, effects > 9))[1:3].tolist() == [[UNDECIDED] * 2] * 2


def test_effects_of_a_layer_use_its_own_scale() -> None:
    """Ten times the contributions, the same effects."""
    means = torch.linspace(-1, 1, 9, dtype=torch.float64)
    sides = [noise(3, 40, 9, seed=seed) * 0.2 + means for seed in (1, 2)]
    small, large = (class_effects(*(contributions(factor * side) for side in sides)) for factor in (1.0, 10.0))
    assert {HELPS, NO_EFFECT, HURTS} == set(small.val.flatten().tolist())
    for one, other in zip(vars(small).values(), vars(large).values(), strict=True):
        assert torch.equal(one, other)


def test_agreement_of_halves() -> None:
    means = torch.tensor([1.0, 1.0, 0.0, 0.0, -1.0, 0.5])
    clear = [contributions(0.1 * noise(4, 40, 6, seed=seed) + means) for seed in (0, 1)]
    assert agreement_between_halves(*clear) == 1
    unclear = [contributions(noise(4, 40, 60, seed=seed)) for seed in (0, 1)]
    agreement = agreement_between_halves(*unclear)
    assert math.isnan(agreement) or abs(agreement) < 0.2
    assert math.isnan(agreement_between_halves(*(contributions(noise(4, 3, 6, seed=seed)) for seed in (0, 1))))


def test_nearly_nothing_is_one_sided_between_halves_of_the_same_images() -> None:
    """Twenty layers of noise around true effects: on either side the same."""
    one_sided, differing, pairs = 0, 0, 0
    for seed in range(20):
        means = 0.3 * noise(10, 1, 32, seed=1000 + seed)
        found = class_effects(*(contributions(means + noise(10, 50, 32, seed=2 * seed + side)) for side in (0, 1)))
        roles = roles_from_effects(found)
        one_sided += int(((roles == TRAIN) | (roles == VAL)).sum())
        differing += int(found.differs.sum())
        pairs += roles.numel()
    assert differing <= 0.005 * pairs
    assert one_sided <= 0.005 * pairs


def layer_of(model: nn.Module, train: Any, val: Any, **settings: Any) -> LayerReport:
    quick: dict[str, Any] = {"backend": "torch", "ablation_points": 4, "curve_images": 2}
    (layer,) = analyze(model, train, val, **{**quick, **settings}).layers.values()
    return layer


def test_the_null_on_a_network_with_random_images() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)
    )
    images, labels = torch.randn(480, 3, 6, 6), torch.arange(480) % 4
    halves = [TensorDataset(images[half], labels[half]) for half in (slice(0, 220), slice(220, 480))]
    layer = layer_of(net, *halves, images_per_class=50)
    assert layer.val.images.tolist() == [50] * 4
    assert layer.differing_share <= 0.01
    one_sided = layer.role_shares[UnitRole.TRAIN_ONLY] + layer.role_shares[UnitRole.VAL_ONLY]
    assert one_sided <= 0.005
    assert layer.role_shares[UnitRole.BOTH] > 0.1  # there was something to find
    assert layer.agreement > 0.8


def test_an_overfit_network_differs_between_the_sides_and_not_between_halves_of_one() -> None:
    """All training images right, four in five of the others."""
    settings: dict[str, Any] = {"layers": "7", "images_per_class": 14, "curve_images": 0}
    overfit = layer_of(trained_net(), digits(300), digits(200, start=300), **settings)
    null = layer_of(trained_net(), digits(300, start=300), digits(300, start=600), **settings)
    assert overfit.differing_share > 0.02
    assert null.differing_share < overfit.differing_share / 3


def test_two_images_a_class_leave_every_pair_undecided() -> None:
    layer = layer_of(trained_net(), digits(300), digits(150, start=300), layers="7", images_per_class=2)
    assert layer.roles.tolist() == [[UNDECIDED] * 9] * 10
    assert layer.role_shares == {}
    assert math.isnan(layer.differing_share)
    assert math.isnan(layer.agreement)
    assert layer.effects is not None
    assert set(layer.effects.val.flatten().tolist()) == {UNTESTED}
    # Over all classes there are twenty images on each side, enough for the units as wholes.
    assert set(layer.summary.tolist()) <= {BOTH, TRAIN, VAL, NEITHER}


def test_one_image_a_class_leaves_every_unit_undecided() -> None:
    layer = layer_of(trained_net(), digits(300), digits(150, start=300), layers="7", images_per_class=1)
    assert set(layer.summary.tolist()) == {UNDECIDED}
    assert layer.removable.tolist() == []


def test_overall_effects_use_every_class() -> None:
    """Five images of a class alone say little; of forty classes together, much."""
    sides = [contributions(noise(40, 5, 3, seed=seed) + torch.tensor([0.5, 0.0, -0.5])) for seed in (0, 1)]
    found = overall_effects(*sides)
    assert found.train.tolist() == found.val.tolist() == [HELPS, NO_EFFECT, HURTS]
    assert float((class_effects(*sides).val == NO_EFFECT).double().mean()) > 0.5


def test_a_unit_is_without_effect_only_where_no_class_feels_it() -> None:
    def effects(rows: list[list[int]]) -> Effects:
        signs = torch.tensor(rows, dtype=torch.int8).squeeze(0)
        return Effects(signs, signs.clone(), torch.zeros_like(signs, dtype=torch.bool))

    # Nothing anywhere; helps one class and hurts another; helps one class; nothing where it was tested.
    by_class = effects([[NO_EFFECT, HELPS, HELPS, UNTESTED], [NO_EFFECT, HURTS, NO_EFFECT, NO_EFFECT]])
    overall = effects([[NO_EFFECT, NO_EFFECT, HELPS, NO_EFFECT]])
    assert without_effect(by_class, overall).tolist() == [True, False, False, True]
    one_sided = Effects(by_class.train, torch.zeros_like(by_class.val), by_class.differs)
    assert without_effect(one_sided, overall).tolist() == [True, False, False, True]
