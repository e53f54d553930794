"""The pipeline on a plain module, and what it tells the user."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import digits, hooks_of, small_net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unitrole.ablation import cumulative_ablation
from lightning_unitrole.analysis.advice import shortage
from lightning_unitrole.analysis.functions import analyze
from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.ranking.criteria import CRITERIA, UnitStatistics
from lightning_unitrole.ranking.entropy import birth_histogram, feature_entropy
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.topology import birth_points


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = small_net()
    images, labels = digits(300).tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.train()


def run(model: nn.Module, **settings: Any) -> UnitReport:
    """With the published roles; the default ones have tests of their own."""
    quick: dict[str, Any] = {"images_per_class": 10, "ablation_points": 4, "backend": "torch", "layers": "all"}
    settings = {**quick, "roles": "turning_point", **settings}
    return analyze(model, digits(300), digits(150, start=300), **settings)


@pytest.fixture(scope="module")
def report(trained: nn.Module) -> UnitReport:
    return run(trained)


def test_entropy_is_that_of_the_birth_points_of_the_maps(trained: nn.Module, report: UnitReport) -> None:
    images, labels = digits(150, start=300).tensors
    chosen = torch.cat([(labels == label).nonzero().flatten()[:10] for label in range(10)]).sort().values
    with torch.no_grad():
        maps = trained.eval()[:9](images[chosen])
    trained.train()
    counts = birth_histogram(birth_points(maps, backend="ripser"), labels[chosen], 10)
    layer = report.layers["7"].val
    for got, expected in zip(
        (layer.entropy, layer.selective_rate, layer.ineffectiveness), feature_entropy(counts), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_overall_curves_are_those_of_cumulative_ablation(trained: nn.Module, report: UnitReport) -> None:
    images, labels = digits(150, start=300).tensors
    chosen = torch.cat([(labels == label).nonzero().flatten()[:10] for label in range(10)]).sort().values
    layer = report.layers["3"].val
    trained.eval()
    expected = cumulative_ablation(trained, "3", layer.overall_order.flip(0), [(images[chosen], labels[chosen])])
    trained.train()
    curve = layer.curves["least_first"]
    torch.testing.assert_close(curve.loss, expected.loss[curve.ablated])
    assert curve.turning_point == expected.turning_point


class CountedRows(TorchFunctionMode):
    """Counts the images that a network's only linear layer sees."""

    rows = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            self.rows += len(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "settings",
    [{}, {"effects": "removal"}, {"class_curves": True}, {"roles": "turning_point"}, {"ablation_points": 0}],
    ids=["default", "removal", "class curves", "turning points", "no ablation"],
)
def test_the_passes_of_an_analysis_are_known_beforehand(trained: nn.Module, settings: dict[str, Any]) -> None:
    options = AnalysisOptions(**{"images_per_class": 10, "ablation_points": 16, "backend": "torch", **settings})
    session = AnalysisSession(Runner(trained), options, digits(20).tensors)
    loaders = [DataLoader(data, 50) for data in (digits(300), digits(400, start=300))]
    probes = [session.probe(loader, name="digits", held_out=True) for loader in loaders]
    with CountedRows() as counted:
        session.report(session.samples(*probes))
    # A backward pass counts as two, and is not seen here.
    forward = session.most_passes() / (3 if session.roles_by_contribution else 1)
    assert forward / 2 < counted.rows <= session.most_passes()


def test_a_unit_that_stands_at_both_turning_points_is_effective_on_both(report: UnitReport) -> None:
    layer = report.layers["3"]
    for label in range(10):
        for unit in range(layer.num_units):
            standing = {}
            for split in (layer.train, layer.val):
                curve = split.class_curves[label]
                assert curve is not None
                position = split.order[label].tolist().index(unit)
                standing[id(split)] = position < layer.num_units - curve.turning_point
            on_train, on_val = standing[id(layer.train)], standing[id(layer.val)]
            expected = {
                (True, True): UnitRole.BOTH,
                (True, False): UnitRole.TRAIN_ONLY,
                (False, True): UnitRole.VAL_ONLY,
                (False, False): UnitRole.NEITHER,
            }[on_train, on_val]
            assert layer.roles[label, unit] == expected


def test_the_model_is_left_as_it_was(trained: nn.Module) -> None:
    before = {name: values.clone() for name, values in trained.state_dict().items()}
    trained[1].eval()
    modes = [module.training for module in trained.modules()]
    random_state = torch.get_rng_state()
    run(trained, criterion="taylor")
    assert all(torch.equal(values, before[name]) for name, values in trained.state_dict().items())
    assert [module.training for module in trained.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert hooks_of(trained) == 0
    assert all(parameter.grad is None or parameter.requires_grad for parameter in trained.parameters())
    trained[1].train()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_ranks_every_unit_once(trained: nn.Module, criterion: str) -> None:
    layer = run(trained, criterion=criterion, layers="7", ablation_points=0).layers["7"]
    assert layer.val.order.sort(dim=1).values.tolist() == [list(range(9))] * 10
    assert layer.roles.shape == (0, 9)
    assert layer.ranking_gap != layer.ranking_gap  # not measured


def test_taylor_is_the_first_order_change_of_the_loss(trained: nn.Module) -> None:
    layer = run(trained, criterion="taylor", layers="7", ablation_points=0).layers["7"].train
    images, labels = digits(300).tensors
    rows = (labels == 3).nonzero().flatten()[:10]
    trained.eval()
    maps = trained[:9](images[rows]).detach().requires_grad_()
    F.cross_entropy(trained[9:](maps), labels[rows], reduction="sum").backward()
    trained.train()
    assert maps.grad is not None
    expected = (maps * maps.grad).sum((2, 3)).abs().mean(0).double()
    torch.testing.assert_close(layer.score[3], expected.detach(), rtol=1e-4, atol=1e-7)


def test_a_criterion_may_be_a_function(trained: nn.Module) -> None:
    def smallest_first(statistics: UnitStatistics) -> Tensor:
        assert statistics.activation is not None
        return -statistics.activation

    found = run(trained, criterion=smallest_first, layers="7", ablation_points=0)
    assert found.criterion == "smallest_first"
    reverse = run(trained, criterion="mean_activation", layers="7", ablation_points=0)
    assert torch.equal(found.layers["7"].val.score, -reverse.layers["7"].val.score)


def test_images_may_be_grouped_by_something_else(trained: nn.Module) -> None:
    found = run(trained, group_fn=lambda targets: targets % 2, class_names=["even", "odd"], layers="7")
    assert found.class_names == ("even", "odd")
    assert found.layers["7"].roles.shape == (2, 9)


def test_a_task_of_another_kind_brings_its_own_score() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU())
            self.head = nn.Conv2d(5, 1, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images))

    def score(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        error = (outputs - targets).square().mean((1, 2, 3))
        return error, (error < 0.1).double()

    images = digits(40).tensors[0]
    batches = [(images[start : start + 20], images[start : start + 20]) for start in (0, 20)]
    found = analyze(
        Dense(),
        batches,
        batches,
        layers="body.0",
        images_per_class=40,
        group_fn=lambda targets: torch.zeros(len(targets), dtype=torch.int64),
        num_classes=1,
        score_fn=score,
        backend="torch",
        roles="turning_point",
    )
    layer = found.layers["body.0"]
    assert torch.equal(layer.train.curves["least_first"].loss, layer.val.curves["least_first"].loss)
    assert (layer.roles != UnitRole.TRAIN_ONLY).all()  # the same images on both sides


def test_an_iterator_that_can_be_read_once_is_refused(trained: nn.Module) -> None:
    with pytest.raises(SettingError, match=r"training data are a list_iterator, which can be read only once"):
        analyze(trained, iter([]), digits(10), backend="torch")


def test_empty_training_data_are_said(trained: nn.Module) -> None:
    with pytest.raises(DataError, match=r"training data are empty"):
        analyze(trained, [], digits(10), backend="torch")


def test_outputs_that_are_no_logits_are_said() -> None:
    with pytest.raises(
        DataError, match=r"returned a tensor of shape \[2, 3, 14, 14\].*Pass forward= to pick the logits"
    ):
        analyze(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), digits(10), digits(10), backend="torch")


def test_no_common_class_is_said(trained: nn.Module) -> None:
    images = digits(7).tensors[0]
    sides = [[(images[:3], torch.zeros(3).long())], [(images[3:], torch.ones(4).long())]]
    with pytest.raises(DataError, match=r"training has 3 images of 1 classes, validation 4 of 1"):
        analyze(trained, *sides, backend="torch")


def test_shortage_names_five_classes_and_counts_the_rest() -> None:
    found = torch.full((8,), 3)
    message = shortage(found, found + 1, wanted=4, class_names=[f"c{index}" for index in range(8)])
    assert message is not None
    assert "'c4': 3 and 4; and 3 more" in message
    assert shortage(found, found, wanted=3, class_names=["c"] * 8) is None


class Named(TensorDataset):
    """Digits that say what they are."""

    classes = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Careless(TensorDataset):
    """A dataset whose names must not be asked for."""

    @property
    def classes(self) -> list[str]:
        raise AssertionError("code of the dataset was run")


def test_class_names_are_those_of_the_dataset() -> None:
    data = digits(60)
    settings = {"layers": "all", "images_per_class": 4, "ablation_points": 0}
    named = Subset(Named(*data.tensors), range(60))
    assert analyze(small_net(), named, data, **settings).class_names == Named.classes
    assert analyze(small_net(), DataLoader(named, 8), data, **settings).class_names == Named.classes
    assert analyze(small_net(), Careless(*data.tensors), data, **settings).class_names[:2] == ("0", "1")
    wrong = Named(*data.tensors)
    wrong.classes = ("a", "b")
    assert analyze(small_net(), wrong, data, **settings).class_names[:2] == ("0", "1")
    own = [f"digit {number}" for number in range(10)]
    assert analyze(small_net(), named, data, class_names=own, **settings).class_names == tuple(own)
