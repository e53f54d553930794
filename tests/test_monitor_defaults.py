"""The monitor as it is without settings: roles by contribution, few analyses, no disturbance."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from support import Digits, digits, hooks_of, loaders, make_trainer, trained_net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unitrole.ablation import cumulative_ablation
from lightning_unitrole.callbacks import UnitRoleMonitor
from lightning_unitrole.reports.effects import HELPS, HURTS
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.vocabulary import UNDECIDED

pytestmark = [
    # Lightning's advice on the number of workers and the logging interval is not what is tested here.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # torch's own deprecations, raised by Lightning.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def monitor(**settings: Any) -> UnitRoleMonitor:
    """Images so few that an analysis takes little time, and a backend that need not be compiled first."""
    return UnitRoleMonitor(**{"images_per_class": 8, "curve_images": 4, "backend": "torch", **settings})


def fit(*callbacks: Any, **settings: Any) -> pl.LightningModule:
    pl.seed_everything(3)
    model = Digits()
    model.net = trained_net()
    make_trainer(*callbacks, **settings).fit(model, *loaders())
    return model


@pytest.fixture(scope="module")
def report() -> UnitReport:
    """Of a network that is right about every training image, and about four in five others."""
    watched = monitor(images_per_class=20, train_data=digits(300))
    model = Digits()
    model.net = trained_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(watched).validate(model, DataLoader(digits(300, start=300), 32), verbose=False)
    assert watched.report is not None
    return watched.report


def held_out() -> tuple[Tensor, Tensor]:
    """The four images of each class that come after those that the roles of ``report`` come from."""
    images, labels = digits(300, start=300).tensors
    chosen = [(labels == label).nonzero().flatten()[20:24] for label in range(10)]
    rows = torch.cat(chosen).sort().values
    return images[rows], labels[rows]


def test_defaults() -> None:
    watched = UnitRoleMonitor()
    assert (watched.roles, watched.every_n_epochs, watched.compare_criteria) == ("contribution", "auto", "never")
    assert (watched.images_per_class, watched.effects, watched.off) == ("auto", "contribution", "zero")
    assert watched.settings.roles == "contribution"


def test_a_report_holds_contributions_effects_and_what_speaks_for_them(report: UnitReport) -> None:
    assert report.role_definition == "contribution"
    assert list(report.layers) == ["net.3", "net.7"]
    layer = report.layers["net.7"]
    for split in (layer.train, layer.val):
        assert split.contributions is not None
        assert split.contributions.images.tolist() == [[10] * 10] * 2
        assert split.contributions.sums.shape == (2, 10, 9)
        assert 0 <= split.contributions.completeness_error < 1
        assert split.images.tolist() == [20] * 10
        assert -1 <= split.rank_agreement <= 1
        assert split.removal is None
    assert layer.effects is not None
    assert layer.summary_effects is not None
    assert layer.roles.shape == layer.effects.val.shape == layer.effects.differs.shape == (10, 9)
    assert layer.summary.shape == layer.summary_effects.val.shape == (9,)
    assert sum(layer.role_shares.values()) == pytest.approx(1)
    assert layer.agreement > 0.3
    assert 0 < layer.differing_share < 1
    assert layer.prediction > 0.7


def test_curves_are_over_all_classes_on_images_that_the_roles_have_not_seen(report: UnitReport) -> None:
    for layer in report.layers.values():
        assert layer.train.curves == {}
        assert layer.train.class_curves == layer.val.class_curves == ()
        assert set(layer.val.curves) == {"least_first", "most_first", "contribution", "random", "random_1"}
        for curve in layer.val.curves.values():
            assert curve.ablated[0] == 0
            assert curve.ablated[-1] == layer.num_units
    first, second = (report.layers[name].val.curves["random"].accuracy[0] for name in report.layers)
    assert first == second  # of the whole network


def test_the_contribution_curve_switches_off_first_what_contributes_least(report: UnitReport) -> None:
    layer = report.layers["net.7"]
    assert layer.val.contributions is not None
    order = layer.val.contributions.by_class().mean.abs().mean(0).argsort(stable=True)
    found = layer.val.curves["contribution"]
    expected = cumulative_ablation(trained_net().eval(), "7", order, [held_out()])
    assert len(found.ablated) > 4
    torch.testing.assert_close(found.loss, expected.loss[found.ablated])
    torch.testing.assert_close(found.accuracy, expected.accuracy[found.ablated])


def test_removing_units_is_checked(report: UnitReport) -> None:
    for layer in report.layers.values():
        check, summary = layer.check, layer.summary_effects
        assert check is not None
        assert summary is not None
        assert check.images == 40
        assert check.removed == int(layer.without_effect.sum())
        assert check.helpers == int((summary.val == HELPS).sum())
        assert check.accuracy == float(layer.val.curves["random"].accuracy[0])
        assert check.random_accuracy.shape == check.random_loss.shape == (5,)
        assert set(layer.removable.tolist()) <= set(layer.without_effect.nonzero().flatten().tolist())


def test_the_check_equals_switching_the_units_off_by_hand(report: UnitReport) -> None:
    layer = report.layers["net.7"]
    images, labels = held_out()
    net = trained_net().eval()
    assert layer.summary_effects is not None
    assert layer.check is not None
    for keep, accuracy, loss in (
        (~layer.without_effect, layer.check.removed_accuracy, layer.check.removed_loss),
        (layer.summary_effects.val == HELPS, layer.check.helpers_accuracy, layer.check.helpers_loss),
        (torch.ones(9, dtype=torch.bool), layer.check.accuracy, layer.check.loss),
    ):
        with torch.no_grad():
            logits = net[9:](net[:9](images) * keep[:, None, None])
        assert accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
        assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_a_report_survives_its_file(report: UnitReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.npz")
    before, after = report.state_dict(), UnitReport.load(tmp_path / "report.npz").state_dict()
    assert before["meta"] == after["meta"]
    assert before["arrays"].keys() == after["arrays"].keys()
    for key, values in before["arrays"].items():
        torch.testing.assert_close(after["arrays"][key], values, rtol=0, atol=0, equal_nan=True, msg=key)


def test_roles_are_those_of_the_effects(report: UnitReport) -> None:
    layer = report.layers["net.7"]
    assert layer.effects is not None
    helps_train, helps_val = layer.effects.train == HELPS, layer.effects.val == HELPS
    assert torch.equal(layer.roles & 1, helps_train.to(torch.uint8))
    assert torch.equal(layer.roles >> 1, helps_val.to(torch.uint8))
    assert {HELPS, HURTS} <= set(layer.effects.val.flatten().tolist())


@pytest.mark.parametrize(
    "interval",
    [pytest.param(1.0, id="once_an_epoch"), pytest.param(0.5, id="in_mid_epoch", marks=pytest.mark.slow)],
)
def test_weights_are_bit_identical_with_and_without_the_monitor(interval: float) -> None:
    plain, watched = fit(val_check_interval=interval), fit(monitor(), val_check_interval=interval)
    for name, values in plain.state_dict().items():
        assert torch.equal(values, watched.state_dict()[name]), name
    assert hooks_of(watched) == 0
    assert all(parameter.requires_grad for parameter in watched.parameters())


def test_the_first_and_the_last_epoch_are_analysed_at_least() -> None:
    watched = monitor(budget=1e-9, layers="net.7")
    fit(watched, max_epochs=4)
    assert watched.report is not None
    assert [report.epoch for report in [*watched.history, watched.report]] == [0, 3]


def test_with_a_large_budget_every_epoch_is_analysed() -> None:
    watched = monitor(budget=1e9, layers="net.7")
    fit(watched, max_epochs=3)
    assert watched.report is not None
    assert [report.epoch for report in [*watched.history, watched.report]] == [0, 1, 2]


def test_a_run_that_is_stopped_early_is_analysed_as_it_ends() -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    watched = monitor(budget=1e-9, layers="net.7")
    fit(watched, Stop(), max_epochs=9)
    assert watched.report is not None
    assert [report.global_step for report in [*watched.history, watched.report]] == [10, 30]


def test_it_is_said_what_an_analysis_costs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(monitor(layers="net.7", budget=1e9), max_epochs=2)
    said = [record.getMessage() for record in caplog.records if "analysis" in record.getMessage()]
    assert len(said) == 2
    assert re.fullmatch(
        r"Unit roles: net\.7; 8 images of each of 10 classes, training and validation\. "
        r"One analysis takes at most as long as about \d[\d.]* epochs of training\.",
        said[0],
    )
    assert said[1].endswith("With budget=1e+09, each epoch is analysed.")


def test_scalars_and_figures_in_tensorboard(tmp_path: Path) -> None:
    fit(monitor(layers="net.7", budget=1e9), max_epochs=2, logger=TensorBoardLogger(tmp_path, name="", version=""))
    log = EventAccumulator(str(tmp_path)).Reload()
    tags = log.Tags()

    def tag(key: str) -> str:
        measure, _, detail = key.partition("/")
        return f"unitrole_{measure}/net.7" + (f"/{detail}" if detail else "")

    for key in (
        "role_share/both",
        "role_agreement",
        "role_stability",
        "differing_share",
        "unit_share/helps",
        "unit_share/no_effect",
        "unit_share/hurts",
        "removable",
        "contribution_gap",
        "ranking_gap/val",
        "rank_agreement/train",
        "rank_agreement/val",
    ):
        values = [event.value for event in log.Scalars(tag(key))]
        assert all(map(math.isfinite, values)), key
        assert len(values) == (1 if key == "role_stability" else 2), key
    assert tag("ranking_gap/train") not in tags["scalars"]
    assert {tag("ablation"), tag("roles")} <= set(tags["images"])
    effects = [log.Scalars(tag(f"unit_share/{key}"))[0].value for key in ("helps", "no_effect", "hurts")]
    assert 0 < sum(effects) <= 1  # some units do nothing over all classes, but something to one of them


def test_two_images_a_class_are_logged_as_undecided(tmp_path: Path) -> None:
    watched = monitor(images_per_class=2, layers="net.7", budget=1e9)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(watched, max_epochs=2, logger=logger)
    assert watched.report is not None
    assert set(watched.report.layers["net.7"].roles.flatten().tolist()) == {UNDECIDED}
    logged = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert not any("role_share" in tag or "role_stability" in tag for tag in logged)


def test_removal_effects_may_be_measured_too() -> None:
    watched = monitor(effects="removal", layers="net.7", train_data=digits(300))
    model = Digits()
    model.net = trained_net()
    make_trainer(watched).validate(model, loaders()[1], verbose=False)
    assert watched.report is not None
    split = watched.report.layers["net.7"].val
    assert split.removal is not None
    assert split.contributions is not None
    net, (images, labels) = trained_net().eval(), digits(150, start=300).tensors
    rows = (labels == 3).nonzero().flatten()[:8]

    def margin(keep: Tensor) -> Tensor:
        with torch.no_grad():
            logits = net[9:](net[:9](images[rows]) * keep[:, None, None]).double()
        others = logits.masked_fill(F.one_hot(labels[rows], 10).bool(), -math.inf)
        return logits[:, 3] - others.logsumexp(1)

    for unit in range(9):
        lost = margin(torch.ones(9)) - margin((torch.arange(9) != unit).float())
        found = split.removal.by_class()
        assert float(found.mean[3, unit]) == pytest.approx(float(lost.mean()), rel=1e-4, abs=1e-5)
        assert float(found.standard_error[3, unit]) == pytest.approx(float(lost.std() / 8**0.5), rel=1e-3, abs=1e-5)


def test_units_may_be_replaced_by_their_mean_maps() -> None:
    watched = monitor(off="mean", layers="net.7", train_data=digits(300))
    model = Digits()
    model.net = trained_net()
    make_trainer(watched).validate(model, loaders()[1], verbose=False)
    assert watched.report is not None
    layer = watched.report.layers["net.7"]
    assert layer.prediction > 0.7
    # All units at their means are not all units at zero, but images can hardly be told apart either way.
    assert layer.val.curves["random"].accuracy[-1] < 0.3


def test_a_curve_for_each_class_on_request() -> None:
    watched = monitor(class_curves=True, layers="net.7", train_data=digits(300))
    model = Digits()
    model.net = trained_net()
    make_trainer(watched).validate(model, loaders()[1], verbose=False)
    assert watched.report is not None
    layer = watched.report.layers["net.7"]
    assert len(layer.val.class_curves) == len(layer.train.class_curves) == 10
    assert set(layer.train.curves) == {"least_first", "most_first", "random"}
    assert "contribution" in layer.val.curves


def test_without_ablation_there_are_no_roles() -> None:
    watched = monitor(ablation_points=0, layers="net.7", train_data=digits(300))
    make_trainer(watched).validate(Digits(), loaders()[1], verbose=False)
    assert watched.report is not None
    assert watched.report.layers["net.7"].role_shares == {}
    assert watched.report.layers["net.7"].val.contributions is None
