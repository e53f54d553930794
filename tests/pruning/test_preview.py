from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pruned import Frozen
from support import Digits, digits, loaders, make_trainer, trained_net
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unitrole import UnitPruning, UnitRoleMonitor
from lightning_unitrole.errors import SettingError
from lightning_unitrole.pruning.report import Prediction, PruningReport, PruningStep

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def trained() -> Digits:
    torch.manual_seed(0)
    model = Digits()
    model.net = trained_net()
    return model


def monitor() -> UnitRoleMonitor:
    return UnitRoleMonitor(images_per_class=13, backend="torch", every_n_epochs=99)


class Precise(Digits):
    """In float64, and nothing is learned, so that the end shows the network right after the cut."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_what_was_predicted_comes_true(mode: str) -> None:
    torch.manual_seed(0)
    model = Precise()
    model.net = trained_net()
    pruning = UnitPruning(amount=0.4, start_epoch=0, mode=mode, monitor=monitor())
    trainer = make_trainer(pruning, max_epochs=1, precision="64-true")
    trainer.fit(model, *loaders())
    (step,) = pruning.report.steps
    assert step.predicted_loss == pytest.approx(step.loss_after, abs=1e-6)
    assert step.predicted_accuracy == step.accuracy_after
    assert step.predicted_loss != pytest.approx(pruning.report.before.loss, abs=1e-3)
    assert f"{step.predicted_loss:.4f}" in pruning.report.table()


def test_a_preview_shows_what_the_cut_brings_and_changes_nothing() -> None:
    model, pruning = trained().double().eval(), UnitPruning(monitor=monitor())
    data = [(images.double(), labels) for images, labels in DataLoader(digits(200, start=500), 50)]
    frozen = Frozen(model)
    found = pruning.preview(model, [0.5, 0.2], data=data)
    frozen.assert_unchanged()
    assert pruning.report is None
    assert [row.amount for row in found.rows] == [0.0, 0.2, 0.5]
    macs = [row.macs for row in found.rows]
    assert macs[0] > macs[1] > macs[2]
    assert macs[2] <= 0.5 * macs[0]
    whole = found.rows[0].prediction
    with torch.no_grad():
        losses = torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in data])
    assert whole.images <= len(losses)
    assert f"{100 * whole.accuracy:.1f} %" in found.table()
    assert found.figure().axes[0].lines[0].get_xdata().tolist() == sorted(macs)


def test_a_score_of_ones_own_is_no_percentage() -> None:
    def minus_loss(outputs: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss = F.cross_entropy(outputs, targets, reduction="none")
        return loss, -loss

    watching = UnitRoleMonitor(images_per_class=13, backend="torch", every_n_epochs=99, score_fn=minus_loss)
    found = UnitPruning(monitor=watching).preview(trained(), [0.3], data=DataLoader(digits(200, start=500), 50))
    head, _, whole, _ = found.table().splitlines()
    assert head.split()[-2:] == ["loss", "score"]
    assert float(whole.split()[-1]) == pytest.approx(-float(whole.split()[-2]), rel=1e-3)
    assert found.figure().axes[0].get_ylabel() == "score before fine-tuning"
    pruning = UnitPruning(amount=0.3, start_epoch=0, monitor=watching)
    make_trainer(pruning, max_epochs=1).fit(trained(), *loaders())
    assert "validation score" in pruning.report.table()
    assert "%" not in pruning.report.table().split("\n\n")[1]
    assert PruningReport.from_state_dict(pruning.report.state_dict()) == pruning.report


def test_a_trainer_is_previewed_after_fit_as_its_cut_would_go() -> None:
    model, pruning = trained(), UnitPruning(amount=0.4, start_epoch=5, monitor=monitor())
    trainer = make_trainer(pruning, max_epochs=1)
    trainer.fit(model, *loaders())
    found = pruning.preview(trainer, [0.4])
    assert found.rows[1].macs <= 0.6 * found.rows[0].macs
    again = UnitPruning(amount=0.4, start_epoch=0, monitor=monitor())
    make_trainer(again, max_epochs=1).fit(model, *loaders())
    assert again.report.steps[0].macs == found.rows[1].macs
    assert again.report.steps[0].predicted_loss == pytest.approx(found.rows[1].prediction.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"amounts": [1.0]}, r"amounts holds 1.0; expected numbers between 0 and 1"),
        ({}, {"data": None}, r"validation images; pass data="),
        ({"choose_by": "roles"}, {}, r"choose_by='roles' needs training images"),
    ],
    ids=["amount", "no data", "roles"],
)
def test_what_cannot_be_previewed(settings: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    data = DataLoader(digits(60, start=500), 30)
    with pytest.raises(SettingError, match=message):
        UnitPruning(monitor=monitor(), **settings).preview(trained(), **{"data": data, **arguments})


def test_an_amount_out_of_reach_is_named() -> None:
    pruning = UnitPruning(monitor=monitor(), min_units=6)
    found = pruning.preview(trained(), [0.1, 0.99], data=DataLoader(digits(60, start=500), 30))
    assert list(found.unreachable) == [0.99]
    assert "0.99: amount=0.99 of the network's macs cannot be removed" in found.table()


@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_a_suggestion_builds_the_narrow_layers(mode: str) -> None:
    model, pruning = trained(), UnitPruning(amount=0.4, start_epoch=0, mode=mode, monitor=monitor())
    with pytest.raises(SettingError, match="Nothing was pruned yet"):
        pruning.suggest()
    make_trainer(pruning, max_epochs=1).fit(model, *loaders())
    found = pruning.suggest()
    assert found.widths == pruning.report.after.widths
    for name, call in found.layers.items():
        layer = eval(call, {"nn": torch.nn})
        if name in found.widths:
            assert len(layer.weight) == found.widths[name]
    assert str(found).count("nn.") == len(found.widths)


def test_a_wilson_interval_stays_within_bounds() -> None:
    assert Prediction(0.0, 1.0, 50).interval == (pytest.approx(0.9287, abs=1e-4), 1.0)
    assert Prediction(0.0, 0.0, 50).interval == (0.0, pytest.approx(0.0713, abs=1e-4))


def test_reports_of_older_versions_have_no_prediction() -> None:
    size = {"parameters": 4, "macs": 4, "widths": {"a": 2}, "latency": 1.0, "batch": 2, "accuracy": 0.5}
    step = {
        "epoch": 1, "global_step": 2, "units": {"a": [0]}, "parameters": 2, "macs": 2,
        "accuracy_before": 0.5, "accuracy_after": 0.4,
    }  # fmt: skip
    found = PruningReport.from_state_dict({"before": size, "after": size, "steps": [step], "skipped": {}})
    assert isinstance(found.steps[0], PruningStep)
    assert math.isnan(found.steps[0].predicted_loss)
    assert found.step_rows()[1] == ["1", "1", "50.0 %", "-", "40.0 %", "-", "-"]
